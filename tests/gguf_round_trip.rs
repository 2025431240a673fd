//! What goes into a GGUF comes out of it: weights, shapes, config, token ids.

mod common;

use std::path::Path;

use common::TinyModel;
use lapidary::engine::checkpoint::{
    Checkpoint, Container, GgufArray, GgufStrings, GgufTensor, GgufValue, GgufWriter, LayerShape, Role,
    gguf_metadata_of, hugging_face_config, lookup,
};
use lapidary::engine::format::Dtype;
use lapidary::engine::model::Tokenizer;
use lapidary::engine::progress::Progress;
use proptest::prelude::*;
use serde_json::{Value, json};

fn assert_same_model(source: &Checkpoint, written: &Checkpoint) {
    assert_eq!(written.config_fault, None);
    assert_eq!(written.warnings, Vec::<String>::new());
    assert_eq!(written.config, source.config);
    for tensor in &source.tensors {
        let other = written.tensor(&tensor.name).unwrap_or_else(|| panic!("no tensor {}", tensor.name));
        assert_eq!(other.shape, tensor.shape, "{}", tensor.name);
        assert_eq!((other.role, other.layer), (tensor.role, tensor.layer), "{}", tensor.name);
        let (ours, theirs) = (common::rows_f32(written, &tensor.name), common::rows_f32(source, &tensor.name));
        assert!(ours == theirs, "rows of {} differ", tensor.name);
    }
}

#[test]
fn the_demo_survives_a_way_through_gguf() {
    let folder = tempfile::tempdir().expect("tempdir");
    let source = Checkpoint::open(&common::demo()).expect("opens");
    for dtype in [Dtype::Bf16, Dtype::F32] {
        let path = folder.path().join(format!("demo-{dtype}.gguf"));
        let (_, warnings) = common::write_gguf(&source, &path, dtype);
        assert_eq!(warnings, Vec::<String>::new());
        let written = Checkpoint::open(&path).expect("opens");
        assert_eq!(written.container, Container::Gguf);
        assert_eq!(written.tensors.len(), source.tensors.len());
        assert_same_model(&source, &written);
    }
}

#[test]
fn any_rows_of_a_permuted_tensor_are_those_of_the_whole() {
    let folder = tempfile::tempdir().expect("tempdir");
    let path = folder.path().join("demo.gguf");
    common::write_gguf(&Checkpoint::open(&common::demo()).expect("opens"), &path, Dtype::Bf16);
    let written = Checkpoint::open(&path).expect("opens");
    let tensor = written.tensor("model.layers.1.self_attn.k_proj.weight").expect("tensor");
    let row_bytes = tensor.row_len() * 2;
    let (mut all, mut some) = (Vec::new(), Vec::new());
    written.read_rows(tensor, 0..tensor.row_count(), &mut all).expect("reads");
    for (start, stop) in [(0, 1), (31, 33), (5, 9), (17, 128), (96, 99), (30, 70), (127, 128)] {
        written.read_rows(tensor, start..stop, &mut some).expect("reads");
        assert!(some == all[start * row_bytes..stop * row_bytes], "rows {start} to {stop}");
    }
}

#[test]
fn the_demos_token_ids_survive() {
    let folder = tempfile::tempdir().expect("tempdir");
    let source = Checkpoint::open(&common::demo()).expect("opens");
    let path = folder.path().join("demo.gguf");
    let (metadata, _) = common::write_gguf(&source, &path, Dtype::Bf16);
    assert_eq!(lookup(&metadata, "tokenizer.ggml.pre").and_then(GgufValue::as_str), Some("smollm"));
    assert_eq!(lookup(&metadata, "tokenizer.ggml.padding_token_id").and_then(GgufValue::as_u64), Some(2));
    assert_eq!(lookup(&metadata, "tokenizer.ggml.add_bos_token").and_then(GgufValue::as_bool), Some(true));
    let ours = Tokenizer::of_checkpoint(&Checkpoint::open(&path).expect("opens")).expect("tokenizer");
    let theirs = Tokenizer::of_checkpoint(&source).expect("tokenizer");
    assert_eq!((ours.bos, &ours.eos, ours.vocab_size()), (theirs.bos, &theirs.eos, theirs.vocab_size()));
    for name in ["evaluation.txt", "calibration.txt", "tasks.jsonl"] {
        let text = std::fs::read_to_string(common::demo().join(name)).expect("text");
        let ids = ours.encode(&text).expect("encodes");
        assert!(ids == theirs.encode(&text).expect("encodes"), "{name}");
        assert_eq!(ours.decode(&ids).expect("decodes"), text, "{name}");
    }
    for text in ["", " ", "a<eos>b", "\n\n 12 345\tß😀\u{0}", "don't  I'LL"] {
        assert_eq!(ours.encode(text).expect("encodes"), theirs.encode(text).expect("encodes"), "{text:?}");
    }
}

#[test]
fn a_gguf_hands_its_tokenizer_on_unchanged() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (first, second) = (folder.path().join("first.gguf"), folder.path().join("second.gguf"));
    common::write_gguf(&Checkpoint::open(&common::demo()).expect("opens"), &first, Dtype::F16);
    let opened = Checkpoint::open(&first).expect("opens");
    common::write_gguf(&opened, &second, Dtype::F16);
    let again = Checkpoint::open(&second).expect("opens");
    assert_eq!(again.gguf_metadata(), opened.gguf_metadata());
    let hash = |checkpoint: &Checkpoint| checkpoint.content_hash(&Progress::default()).expect("hash");
    assert_eq!(hash(&again), hash(&opened), "the same bytes");
}

#[test]
fn uneven_layers_biases_and_stretched_rotation_survive() {
    let folder = tempfile::tempdir().expect("tempdir");
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    for (index, is_tied) in [true, false].into_iter().enumerate() {
        let model = TinyModel {
            layers: vec![
                LayerShape { heads: 4, kv_heads: 2, mlp_channels: 64 },
                LayerShape { heads: 3, kv_heads: 1, mlp_channels: 17 },
            ],
            is_tied,
            has_biases: true,
            rope_scaling: scaling.clone(),
            ..TinyModel::default()
        };
        let source = folder.path().join(format!("source-{index}"));
        model.write(&source);
        let source = Checkpoint::open(&source).expect("opens");
        assert_eq!(source.config_fault, None);
        let path = folder.path().join(format!("{index}.gguf"));
        let (metadata, warnings) = common::write_gguf(&source, &path, Dtype::F32);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("tokenizer"), "{warnings:?}");
        assert_eq!(
            lookup(&metadata, "deci.attention.head_count").and_then(GgufValue::as_array),
            Some(&GgufArray::I32(vec![4, 3]))
        );
        let written = Checkpoint::open(&path).expect("opens");
        assert_same_model(&source, &written);
        assert_eq!(written.tensor("rope_freqs.weight").map(|tensor| tensor.role), Some(Role::Other));
    }
}

#[test]
fn every_ggml_type_is_listed_with_its_size_and_an_unknown_one_too() {
    let folder = tempfile::tempdir().expect("tempdir");
    let path = folder.path().join("types.gguf");
    let dtypes: Vec<Dtype> = Dtype::all().filter(|dtype| dtype.ggml_id().is_some()).collect();
    let tensors: Vec<GgufTensor> =
        dtypes.iter().map(|&dtype| GgufTensor { name: format!("t.{dtype}"), shape: vec![3, 256], dtype }).collect();
    let mut writer = GgufWriter::create(&path, &[], &tensors).expect("creates");
    for (index, tensor) in tensors.iter().enumerate() {
        let count = tensor.byte_count().expect("whole blocks") as usize;
        writer.write_tensor_rows(&vec![index as u8; count]).expect("writes");
    }
    writer.finish().expect("finishes");
    let checkpoint = Checkpoint::open(&path).expect("opens");
    assert_eq!(checkpoint.tensors.len(), dtypes.len());
    let mut bytes = Vec::new();
    for (index, (tensor, dtype)) in checkpoint.tensors.iter().zip(&dtypes).enumerate() {
        assert_eq!((tensor.dtype, tensor.shape.as_slice()), (*dtype, [3, 256].as_slice()));
        checkpoint.read_rows(tensor, 1..2, &mut bytes).expect("reads");
        assert_eq!(bytes, vec![index as u8; 256 / dtype.block_len() * dtype.block_bytes()], "{dtype}");
    }
    assert!(checkpoint.config_fault.is_some(), "no architecture, but the tensors are listed");

    // The same file with the second type made one that nobody has.
    let mut file = std::fs::read(&path).expect("read");
    let name = format!("t.{}", dtypes[1]);
    let at = file.windows(name.len()).position(|window| window == name.as_bytes()).expect("name");
    file[at + name.len() + 20..][..4].copy_from_slice(&99u32.to_le_bytes());
    std::fs::write(&path, file).expect("write");
    let checkpoint = Checkpoint::open(&path).expect("opens all the same");
    let odd = &checkpoint.tensors[1];
    assert_eq!(odd.dtype.to_string(), "ggml type 99");
    assert_eq!(odd.byte_count, 3 * 1024);
    assert!(checkpoint.warnings.iter().any(|warning| warning.contains("99")), "{:?}", checkpoint.warnings);
    checkpoint.read_rows(odd, 0..3, &mut bytes).expect("whole");
    assert!(checkpoint.read_rows(odd, 0..1, &mut bytes).is_err());
}

/// A small tokenizer in the manner of Llama 2: `▁` for spaces, bytes for what has no token.
fn sentence_piece() -> Value {
    let mut tokens: Vec<String> = vec!["<unk>".into(), "<s>".into(), "</s>".into()];
    tokens.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
    let words = ["he", "▁t", "▁the", "er", "in", "▁a", "ing", "▁th", "▁▁", "aa", "aaa", "▁i", "▁in"];
    tokens.extend(words.map(str::to_owned));
    tokens.extend("▁abcdefghijklmnopqrstuvwxyz".chars().map(String::from));
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let mut merges = Vec::new();
    for word in words {
        let mut local: Vec<(&str, &str)> = word
            .char_indices()
            .skip(1)
            .map(|(at, _)| word.split_at(at))
            .filter(|(a, b)| vocab.contains_key(*a) && vocab.contains_key(*b))
            .collect();
        local.sort_by_key(|(a, _)| std::cmp::Reverse(a.len()));
        merges.extend(local.into_iter().map(|(a, b)| json!([a, b])));
    }
    let special = |id: usize, text: &str| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": merges},
    })
}

fn sentence_piece_pair(folder: &Path) -> (Tokenizer, Tokenizer) {
    let model = TinyModel { vocab: 310, is_tied: true, ..TinyModel::default() };
    let source = folder.join("source");
    model.write(&source);
    std::fs::write(source.join("tokenizer.json"), sentence_piece().to_string()).expect("tokenizer");
    let source = Checkpoint::open(&source).expect("opens");
    let path = folder.join("model.gguf");
    let (metadata, warnings) = common::write_gguf(&source, &path, Dtype::F32);
    assert_eq!(warnings, Vec::<String>::new());
    let tokens = lookup(&metadata, "tokenizer.ggml.tokens").and_then(GgufValue::as_strings).expect("tokens");
    assert_eq!((tokens.len(), tokens.get(309)), (310, Some(b"[PAD309]".as_slice())));
    let kinds = lookup(&metadata, "tokenizer.ggml.token_type").and_then(GgufValue::as_array).expect("types");
    let kinds = kinds.to_unsigned().expect("numbers");
    assert_eq!((kinds[0], kinds[1], kinds[3], kinds[300 - 41], kinds[309]), (2, 3, 6, 1, 5));
    let written = Checkpoint::open(&path).expect("opens");
    (Tokenizer::of_checkpoint(&source).expect("ours"), Tokenizer::of_checkpoint(&written).expect("theirs"))
}

#[test]
fn sentence_piece_ids_survive() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (source, written) = sentence_piece_pair(folder.path());
    assert_eq!((source.bos, written.bos), (Some(1), Some(1)));
    let mut runner = proptest::test_runner::TestRunner::default();
    runner
        .run(&"[a-t ]{0,40}|(the|in|aa| |ß|\\n){0,12}", |text| {
            let ids = source.encode(&text).expect("encodes");
            prop_assert_eq!(&written.encode(&text).expect("encodes"), &ids, "{:?}", text);
            prop_assert_eq!(written.decode(&ids).expect("decodes"), source.decode(&ids).expect("decodes"));
            Ok(())
        })
        .expect("the same ids");
}

#[test]
fn a_pre_tokenizer_without_a_name_is_told() {
    let folder = tempfile::tempdir().expect("tempdir");
    let source = folder.path().join("source");
    common::copy_demo(&source);
    let text = std::fs::read_to_string(source.join("tokenizer.json")).expect("read");
    let mut json: Value = serde_json::from_str(&text).expect("json");
    json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("[aeiou]");
    std::fs::write(source.join("tokenizer.json"), json.to_string()).expect("write");
    let source = Checkpoint::open(&source).expect("opens");
    let (metadata, warnings) =
        gguf_metadata_of(&source, source.require_config().expect("config"), 1).expect("metadata");
    assert_eq!(lookup(&metadata, "tokenizer.ggml.pre").and_then(GgufValue::as_str), Some("default"));
    assert!(warnings.iter().any(|warning| warning.contains("pre-tokenizers")), "{warnings:?}");
}

#[test]
fn decoded_rows_are_the_stored_numbers() {
    let source = Checkpoint::open(&common::demo()).expect("opens");
    let tensor = source.tensor("model.layers.0.mlp.down_proj.weight").expect("tensor");
    let (mut raw, mut values) = (Vec::new(), Vec::new());
    source.decode_rows(tensor, 3..7, &mut raw, &mut values).expect("decodes");
    assert!(values == common::rows_f32(&source, &tensor.name)[3 * 512..7 * 512]);
    let folder = tempfile::tempdir().expect("tempdir");
    let path = folder.path().join("odd.gguf");
    let odd = GgufTensor { name: "odd".to_owned(), shape: vec![2, 256], dtype: Dtype::Iq2Xxs };
    let mut writer = GgufWriter::create(&path, &[], &[odd]).expect("creates");
    writer.write_tensor_rows(&[0; 132]).expect("writes");
    writer.finish().expect("finishes");
    let odd = Checkpoint::open(&path).expect("opens");
    odd.decode_rows(&odd.tensors[0], 0..2, &mut raw, &mut values).expect("decodes");
    assert!(values == [0.0; 512], "a scale of zero");
    let mut unknown = odd.tensors[0].clone();
    unknown.dtype = Dtype::Unknown(77);
    let err = odd.decode_rows(&unknown, 0..2, &mut raw, &mut values).expect_err("no decoder");
    assert!(err.to_string().contains("ggml type 77"), "{err}");
}

#[test]
fn a_large_tokenizer_is_read_as_it_was_written() {
    let folder = tempfile::tempdir().expect("tempdir");
    let path = folder.path().join("large.gguf");
    // Several times the reader's buffer, with strings across its ends and one longer than it.
    let mut tokens: GgufStrings = (0..128_256).map(|id| format!("token{id}")).collect();
    tokens.push(&vec![0xff; 3 << 20]);
    tokens.push(b"");
    let merges: GgufStrings = (0..200_000).map(|id| format!("tok{id} en{id}")).collect();
    let metadata = vec![
        ("tokenizer.ggml.tokens".to_owned(), GgufValue::Array(GgufArray::String(tokens))),
        ("tokenizer.ggml.merges".to_owned(), GgufValue::Array(GgufArray::String(merges))),
        (
            "other".to_owned(),
            GgufValue::Array(GgufArray::Array(vec![GgufArray::F64(vec![0.5]), GgufArray::Bool(vec![])])),
        ),
        ("last".to_owned(), GgufValue::I64(-1)),
    ];
    let tensors = [GgufTensor { name: "t".to_owned(), shape: vec![5], dtype: Dtype::I8 }];
    let mut writer = GgufWriter::create(&path, &metadata, &tensors).expect("creates");
    writer.write_tensor_rows(b"abcde").expect("writes");
    writer.finish().expect("finishes");
    let opened = Checkpoint::open(&path).expect("opens");
    assert!(opened.gguf_metadata() == Some(metadata.as_slice()));
    let mut bytes = Vec::new();
    opened.read_rows(&opened.tensors[0], 0..1, &mut bytes).expect("reads");
    assert_eq!(bytes, b"abcde");
}

#[test]
fn a_config_written_for_a_gguf_is_read_as_the_same_shape() {
    let folder = tempfile::tempdir().expect("tempdir");
    let scaling = json!({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    let model = TinyModel {
        layers: vec![
            LayerShape { heads: 4, kv_heads: 2, mlp_channels: 64 },
            LayerShape { heads: 2, kv_heads: 2, mlp_channels: 64 },
        ],
        rope_scaling: scaling,
        ..TinyModel::default()
    };
    let source = folder.path().join("source");
    model.write(&source);
    let original = Checkpoint::open(&source).expect("opens");
    let config = original.require_config().expect("config").clone();
    for base in [None, original.config_json()] {
        let written = hugging_face_config(&config, base, Dtype::F32);
        std::fs::write(source.join("config.json"), Value::Object(written).to_string()).expect("write");
        let again = Checkpoint::open(&source).expect("opens");
        assert_eq!(again.require_config().expect("config"), &config);
    }
}
