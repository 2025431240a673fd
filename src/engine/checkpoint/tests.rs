//! Tests of opening and reading the bundled demo and small files written here.

use super::*;
use std::path::Path;

/// The bundled demo's folder.
fn demo() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/demo"))
}

#[test]
fn the_demo_opens_with_its_shape() {
    let checkpoint = Checkpoint::open(demo()).expect("opens");
    assert_eq!(checkpoint.container, Container::HuggingFace);
    assert_eq!(checkpoint.name, "demo");
    assert_eq!(checkpoint.config_fault, None);
    assert_eq!(checkpoint.warnings, Vec::<String>::new());
    let config = checkpoint.config.as_ref().expect("config");
    assert!(config.tied_embeddings && config.layers.len() == 6);
    assert_eq!((config.hidden, config.head_dim, config.vocab, config.context), (256, 32, 2048, 256));
    assert_eq!((config.bos, config.eos.as_slice()), (Some(0), [1].as_slice()));
    assert_eq!(checkpoint.weight_count(), 4_066_560);
    assert!(checkpoint.file_bytes() > checkpoint.tensor_bytes());
}

#[test]
fn the_file_alone_has_the_same_config_and_fingerprint() {
    let folder = Checkpoint::open(demo()).expect("opens");
    let file = Checkpoint::open(&demo().join("model.safetensors")).expect("opens");
    assert_eq!(file.container, Container::Safetensors);
    assert_eq!(file.config, folder.config);
    assert_eq!(file.fingerprint, folder.fingerprint);
    assert_eq!(file.name, "demo");
}

#[test]
fn some_rows_are_the_same_as_all_rows() {
    let checkpoint = Checkpoint::open(demo()).expect("opens");
    let tensor = checkpoint.tensor("model.layers.2.self_attn.q_proj.weight").expect("tensor");
    let (mut all, mut some) = (Vec::new(), Vec::new());
    checkpoint.read_rows(tensor, 0..256, &mut all).expect("reads");
    checkpoint.read_rows(tensor, 10..13, &mut some).expect("reads");
    assert_eq!(all.len(), 256 * 512);
    assert_eq!(some, all[10 * 512..13 * 512]);
    checkpoint.read_rows(tensor, 7..7, &mut some).expect("reads");
    assert!(some.is_empty());
    assert!(checkpoint.read_rows(tensor, 250..257, &mut some).is_err());
}
