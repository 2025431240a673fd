//! Our decoder and tokenizer against transformers' numbers (`tests/oracles/transformers_reference.py`).

use std::path::{Path, PathBuf};

use lapidary::engine::Progress;
use lapidary::engine::checkpoint::Checkpoint;
use lapidary::engine::model::{Batch, KvCache, Model};
use serde_json::Value;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn load(path: &str) -> (Checkpoint, Model) {
    let checkpoint = Checkpoint::open(&repository(path)).expect("opens");
    let model = Model::load(&checkpoint, &Progress::default()).expect("loads");
    (checkpoint, model)
}

fn json(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(repository(path)).expect("fixture")).expect("json")
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("ids").iter().map(|id| id.as_u64().expect("id") as u32).collect()
}

fn logits_of(model: &Model, ids: &[u32]) -> Vec<f32> {
    let mut batch = Batch::default();
    batch.push(ids, None, None);
    model.logits(&model.hidden(&batch, &mut [], &Progress::default()).expect("runs")).expect("logits")
}

/// The largest difference as a share of the largest expected magnitude.
fn relative_difference(ours: &[f32], theirs: &[f32]) -> f32 {
    let most = theirs.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    let difference = ours.iter().zip(theirs).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
    difference / most
}

#[test]
fn tiny_models_of_every_variant_give_transformers_logits() {
    for name in ["biases", "gqa_untied", "head_dim", "rope_llama3"] {
        let folder = format!("tests/fixtures/tiny_llama_{name}");
        let (_, model) = load(&folder);
        let expected = json(&format!("{folder}/expected.json"));
        let logits = logits_of(&model, &ids(&expected["ids"]));
        let vocab = model.config.vocab;
        let positions = ids(&expected["positions"]);
        for (position, row) in positions.iter().zip(expected["logits"].as_array().expect("logits")) {
            let theirs: Vec<f32> =
                row.as_array().expect("row").iter().map(|v| v.as_f64().expect("logit") as f32).collect();
            let ours = &logits[*position as usize * vocab..][..vocab];
            let difference = relative_difference(ours, &theirs);
            assert!(difference < 1e-3, "{name} at {position}: {difference}");
        }
    }
}

#[test]
fn the_demo_gives_transformers_logits() {
    let (_, model) = load("assets/demo");
    let expected = json("tests/fixtures/transformers_demo.json");
    let file = std::fs::read(repository("tests/fixtures/transformers_demo_logits.safetensors")).expect("fixture");
    let tensors = safetensors::SafeTensors::deserialize(&file).expect("fixture");
    for text in expected["texts"].as_array().expect("texts") {
        let tensor = tensors.tensor(text["logits_tensor"].as_str().expect("name")).expect("tensor");
        let theirs: Vec<f32> =
            tensor.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let logits = logits_of(&model, &ids(&text["ids"]));
        let vocab = model.config.vocab;
        for (row, position) in ids(&text["logits_positions"]).iter().enumerate() {
            let ours = &logits[*position as usize * vocab..][..vocab];
            let difference = relative_difference(ours, &theirs[row * vocab..(row + 1) * vocab]);
            assert!(difference < 1e-3, "{} at {position}: {difference}", text["domain"]);
        }
    }
}

#[test]
fn caches_shared_prompts_and_plain_runs_give_the_same_logits() {
    let (_, model) = load("tests/fixtures/tiny_llama_gqa_untied");
    let ids: Vec<u32> = (0..24).map(|i| (i * 7 + 3) % 96).collect();
    let whole = logits_of(&model, &ids);
    let vocab = model.config.vocab;
    let mut caches = vec![KvCache::default()];
    let mut stepwise = Vec::new();
    for run in [&ids[..10], &ids[10..11], &ids[11..24]] {
        let mut batch = Batch::default();
        batch.push(run, None, Some(0));
        let hidden = model.hidden(&batch, &mut caches, &Progress::default()).expect("runs");
        stepwise.extend(model.logits(&hidden).expect("logits"));
    }
    assert_eq!(caches[0].len(), 24);
    assert!(relative_difference(&stepwise, &whole) < 1e-5);
    let mut batch = Batch::default();
    let prompt = batch.push(&ids[..9], None, None);
    batch.push(&[5, 6, 7], Some(prompt), None);
    let middle = batch.push(&ids[9..14], Some(prompt), None);
    batch.push(&ids[14..24], Some(middle), None);
    let logits = model.logits(&model.hidden(&batch, &mut [], &Progress::default()).expect("runs")).expect("logits");
    let rejoined = [&logits[..9 * vocab], &logits[12 * vocab..]].concat();
    assert!(relative_difference(&rejoined, &whole) < 1e-5);
}

#[test]
fn a_token_beyond_the_vocabulary_is_an_error() {
    let (_, model) = load("tests/fixtures/tiny_llama_head_dim");
    let mut batch = Batch::default();
    batch.push(&[4000], None, None);
    let err = model.hidden(&batch, &mut [], &Progress::default()).expect_err("refused").to_string();
    assert!(err.contains("token 4000"), "{err}");
}
