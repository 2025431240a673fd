//! Pruned folders beside transformers and pruned GGUF files beside llama.cpp: the numbers are those of
//! `tests/oracles/transformers_pruned_folder.py` and `tests/oracles/llama_cpp_pruned.py`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::checkpoint::{LayerUnits, Removal, Role};
use crate::model::{Batch, Model, Tokenizer};
use crate::scoring::{Convention, ScoredText, TextOptions, TextSource};
use crate::structure::{Activations, Sample, SampleOptions};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn demo() -> Checkpoint {
    Checkpoint::open(&root().join("assets/demo")).expect("opens")
}

/// Means of no calibration, but of the right shape: their biases have to arrive.
fn means() -> InputMeans {
    let wave = |len: usize, step: f32| (0..len).map(|at| (at as f32 * step).sin() * 0.2).collect::<Vec<f32>>();
    let layers = (0..6).flat_map(|layer| {
        let step = 0.1 + layer as f32 * 0.03;
        [((layer, Role::O), wave(256, step)), ((layer, Role::Down), wave(512, step))]
    });
    InputMeans { linears: layers.collect() }
}

/// Folders by name: what goes in every layer, layers that go, and whether biases make up for it.
fn plans(demo: &Checkpoint) -> Vec<(&'static str, Plan)> {
    let plan = |units: &dyn Fn(usize) -> LayerUnits, layers: &[usize], target: Target| {
        let mut removal = Removal { layers: layers.iter().copied().collect(), ..Removal::default() };
        (0..6).for_each(|layer| *removal.layer_mut(layer) = units(layer));
        let mut plan = Plan::new(target, Some(&demo.fingerprint));
        plan.set_removal(demo, removal).expect("legal");
        plan
    };
    let groups = |layer: usize| LayerUnits {
        kv_groups: [layer % 4, (layer + 1) % 4].into(),
        channels: (0..512).filter(|channel| (channel + layer).is_multiple_of(4)).collect(),
        ..LayerUnits::default()
    };
    let heads = |layer: usize| LayerUnits {
        heads: (0..4).map(|kv| 2 * kv + (kv + layer) % 2).collect(),
        ..LayerUnits::default()
    };
    let mut with_biases = plan(&groups, &[3], Target::HuggingFace);
    with_biases.set_means(Some("means.safetensors".into()));
    vec![
        ("groups", plan(&groups, &[], Target::HuggingFace)),
        ("heads", plan(&heads, &[1, 4], Target::HuggingFace)),
        ("biases", with_biases),
        ("refused", plan(&|layer| if layer == 2 { groups(2) } else { LayerUnits::default() }, &[], Target::Lapidary)),
    ]
}

fn write(demo: &Checkpoint, plan: &Plan, output: &Path) -> Checkpoint {
    let resolved = plan::resolve(plan, demo).expect("resolves");
    let options =
        PassOptions { means: plan.prune().means.is_some().then(|| Arc::new(means())), ..PassOptions::default() };
    let report = run(demo, &resolved, output, &options, &Progress::default()).expect("passes");
    assert_eq!(report.file_bytes, file_bytes(demo, &resolved).expect("sizes"));
    Checkpoint::open(output).expect("opens")
}

#[test]
#[ignore = "writes what transformers_pruned_folder.py reads into the folder LAPIDARY_PRUNED_OUT"]
fn writes_pruned_folders() {
    let demo = demo();
    let out = PathBuf::from(std::env::var_os("LAPIDARY_PRUNED_OUT").expect("LAPIDARY_PRUNED_OUT names a folder"));
    std::fs::create_dir_all(&out).expect("folder");
    for (name, plan) in plans(&demo) {
        write(&demo, &plan, &out.join(name));
    }
}

#[test]
fn pruned_folders_compute_what_transformers_computes() {
    let demo = demo();
    let fixture = Checkpoint::open(&root().join("tests/fixtures/transformers_pruned_demo.safetensors")).expect("opens");
    let values = |name: &str| {
        let tensor = fixture.tensor(name).expect("there");
        let mut bytes = Vec::new();
        fixture.read_rows(tensor, 0..tensor.row_count(), &mut bytes).expect("reads");
        bytes.chunks_exact(4).map(|chunk| [chunk[0], chunk[1], chunk[2], chunk[3]]).collect::<Vec<[u8; 4]>>()
    };
    let ids: Vec<u32> = values("ids").into_iter().map(u32::from_le_bytes).collect();
    let folder = tempfile::tempdir().expect("tempdir");
    let progress = Progress::default();
    for (name, plan) in plans(&demo).into_iter().filter(|(name, _)| *name != "refused") {
        let written = write(&demo, &plan, &folder.path().join(name));
        let model = Model::load(&written, &progress).expect("loads");
        let mut batch = Batch::default();
        batch.push(&ids, None, None);
        let hidden = model.hidden(&batch, &mut [], &progress).expect("runs");
        let ours = model.logits(&hidden[(ids.len() - 2) * model.config.hidden..]).expect("logits");
        let theirs: Vec<f32> = values(name).into_iter().map(f32::from_le_bytes).collect();
        let size = theirs.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        assert_eq!(ours.len(), theirs.len());
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert!((ours - theirs).abs() < 1e-3 * size, "{name}: {ours} {theirs}");
        }
    }
}

/// GGUF files by name: llama.cpp's `llama` where layers agree, its `deci` where they do not, with biases and without.
fn write_ggufs(demo: &Checkpoint, out: &Path) -> Vec<(&'static str, Checkpoint)> {
    let progress = Progress::default();
    let text = TextSource::read(&root().join("assets/demo/calibration.txt")).expect("reads");
    let codec = Tokenizer::of_checkpoint(demo).expect("tokenizer");
    let options = SampleOptions { context: Some(128), max_windows: Some(16) };
    let sample = Sample::new(&text, &codec, demo.require_config().expect("config"), &options).expect("cuts");
    let model = Model::load(demo, &progress).expect("loads");
    let means = Arc::new(Activations::watch(&model, &sample, &progress).expect("watches").means());
    let even = |layer: usize| LayerUnits {
        kv_groups: [layer % 4].into(),
        channels: (0..512).filter(|channel| (channel + layer).is_multiple_of(4)).collect(),
        ..LayerUnits::default()
    };
    // Layers with 2, 4, 6 and 8 query heads, some of them with one query head a group, and as many widths.
    let uneven = |layer: usize| LayerUnits {
        kv_groups: (0..layer % 3).collect(),
        heads: if layer == 4 { [3, 5, 7].into() } else { Default::default() },
        channels: (0..64 * layer).collect(),
    };
    let plan = |units: &dyn Fn(usize) -> LayerUnits, format: &'static str, has_means: bool| {
        let mut removal = Removal::default();
        (0..6).for_each(|layer| *removal.layer_mut(layer) = units(layer));
        let mut plan = Plan::new(Target::Gguf, Some(&demo.fingerprint));
        plan.set_default_format(Some(format)).expect("legal");
        plan.set_removal(demo, removal).expect("legal");
        plan.set_means(has_means.then(|| "means.safetensors".into()));
        plan
    };
    let plans = [
        ("llama", plan(&even, "f32", false)),
        ("llama-biases", plan(&even, "f32", true)),
        ("deci", plan(&uneven, "f32", false)),
        ("deci-biases", plan(&uneven, "f32", true)),
        ("deci-biases-q8_0", plan(&uneven, "q8_0", true)),
    ];
    let write = |(name, plan): (&'static str, Plan)| {
        let resolved = plan::resolve(&plan, demo).expect("resolves");
        let means = plan.prune().means.is_some().then(|| Arc::clone(&means));
        let output = out.join(format!("{name}.gguf"));
        run(demo, &resolved, &output, &PassOptions { means, ..PassOptions::default() }, &progress).expect("passes");
        (name, Checkpoint::open(&output).expect("opens"))
    };
    plans.into_iter().map(write).collect()
}

#[test]
#[ignore = "writes what llama_cpp_pruned.py reads into the folder LAPIDARY_PRUNED_OUT"]
fn writes_pruned_ggufs() {
    let out = PathBuf::from(std::env::var_os("LAPIDARY_PRUNED_OUT").expect("LAPIDARY_PRUNED_OUT names a folder"));
    std::fs::create_dir_all(&out).expect("folder");
    write_ggufs(&demo(), &out);
}

/// llama.cpp loaded every file and got this perplexity of it.
#[test]
fn pruned_ggufs_compute_what_llama_cpp_computes() {
    let demo = demo();
    let folder = tempfile::tempdir().expect("tempdir");
    let bytes = std::fs::read(root().join("tests/fixtures/llama_cpp_pruned.json")).expect("fixture");
    let fixture: serde_json::Value = serde_json::from_slice(&bytes).expect("json");
    let text = TextSource::read(&root().join("assets/demo/evaluation.txt")).expect("reads");
    let progress = Progress::default();
    for (name, written) in write_ggufs(&demo, folder.path()) {
        let config = written.require_config().expect("config");
        assert_eq!(checkpoint::gguf_architecture(config), name.split('-').next().expect("a name"));
        let has_biases = written.tensors.iter().any(|tensor| tensor.stored_name.ends_with("ffn_down.bias"));
        assert_eq!(has_biases, name.contains("biases"), "{name}");
        let model = Model::load(&written, &progress).expect("loads");
        let codec = Tokenizer::of_checkpoint(&written).expect("tokenizer");
        let options = TextOptions { convention: Convention::LlamaCpp, context: Some(256), ..TextOptions::default() };
        let scored = ScoredText::new(&codec, &text, 256, model.config.vocab, &options).expect("windows");
        let ours = scored.score(&model, &progress).expect("scores").perplexity;
        let theirs = fixture["perplexity"][name].as_f64().expect("measured");
        assert!((ours / theirs - 1.0).abs() < 1e-3, "{name}: ours {ours}, llama.cpp's {theirs}");
    }
}
