//! Blocks with scales that are no numbers: they are counted, named and never measured.

mod common;

use std::path::{Path, PathBuf};

use common::demo;
use lapidary::engine::Progress;
use lapidary::engine::checkpoint::Checkpoint;
use lapidary::engine::evaluation::{EvaluationOptions, Subject, evaluate};
use lapidary::engine::format::Dtype;
use lapidary::engine::model::{Model, Tokenizer};
use lapidary::engine::pass::{self, PassOptions, PassReport};
use lapidary::engine::plan::{self, Plan};
use lapidary::engine::profile::{ProfileOptions, profile};
use lapidary::engine::scoring::{GenerateOptions, TaskSet, TextOptions, TextSource, generate, score_tasks};

/// A q4_k matrix, whose damage reaches the logits only through another quantized product.
const VALUES: &str = "model.layers.2.self_attn.v_proj.weight";
/// A q8_0 matrix.
const DOWN: &str = "model.layers.1.mlp.down_proj.weight";

/// The warning of both, the worse by name.
const WARNING: &str =
    "model.layers.2.self_attn.v_proj.weight has 512 weights that are NaN or infinite and 1 tensor more";

fn run(checkpoint: &Checkpoint, text: &str, output: &Path) -> PassReport {
    let plan = Plan::parse(&format!("version = 1\ntarget = \"gguf\"\n{text}"), None).expect("a plan");
    let resolved = plan::resolve(&plan, checkpoint).expect("resolves");
    pass::run(checkpoint, &resolved, output, &PassOptions::default(), &Progress::default()).expect("runs")
}

/// The demo with its linears in q4_k, and q8_0 where they are down projections.
fn sound(folder: &Path) -> PathBuf {
    let path = folder.join("sound.gguf");
    let text = "[default]\nformat = \"q4_k\"\n[[rule]]\nrole = \"down\"\nformat = \"q8_0\"\n";
    let report = run(&Checkpoint::open(&demo()).expect("opens"), text, &path);
    assert!(report.warnings.iter().all(|warning| !warning.contains("NaN")), "{:?}", report.warnings);
    path
}

fn rows(checkpoint: &Checkpoint, name: &str) -> Vec<u8> {
    let tensor = checkpoint.tensor(name).expect("a tensor");
    let mut bytes = Vec::new();
    checkpoint.read_rows(tensor, 0..tensor.row_count(), &mut bytes).expect("reads");
    bytes
}

/// Where the data of a tensor whose rows are not permuted begin in the file.
fn place(file: &[u8], checkpoint: &Checkpoint, name: &str) -> usize {
    let data = rows(checkpoint, name);
    file.windows(data.len()).position(|window| window == data).expect("the tensor's bytes")
}

/// The same with a block of NaN and one of −∞ in the first tensor, and one of 4 NaN and 28 ∞ in the second.
fn damaged(folder: &Path, tensors: &[&str]) -> Checkpoint {
    let sound = sound(folder);
    let checkpoint = Checkpoint::open(&sound).expect("opens");
    let mut file = std::fs::read(&sound).expect("reads");
    for &name in tensors {
        let at = place(&file, &checkpoint, name);
        match checkpoint.tensor(name).expect("a tensor").dtype {
            Dtype::Q4K => {
                // NaN as the scale of scales.
                file[at..at + 2].copy_from_slice(&0x7e00u16.to_le_bytes());
                // A scale of 1, a minimum of infinity, and eight runs that take each of them once.
                let block = &mut file[at + 144..at + 2 * 144];
                block[..2].copy_from_slice(&0x3c00u16.to_le_bytes());
                block[2..4].copy_from_slice(&0x7c00u16.to_le_bytes());
                block[4..12].fill(0x01);
                block[12..16].fill(0x11);
            }
            Dtype::Q8_0 => {
                file[at..at + 2].copy_from_slice(&0x7c00u16.to_le_bytes());
                file[at + 2..at + 6].fill(0);
                file[at + 6..at + 34].fill(1);
            }
            other => panic!("{name} is {other}"),
        }
    }
    let path = folder.join("damaged.gguf");
    std::fs::write(&path, file).expect("writes");
    Checkpoint::open(&path).expect("opens")
}

#[test]
fn a_profile_counts_them_by_tensor() {
    let folder = tempfile::tempdir().expect("folder");
    let checkpoint = damaged(folder.path(), &[VALUES, DOWN]);
    let profile = profile(&checkpoint, &ProfileOptions::default(), &Progress::default(), &mut |_, _| {}).expect("runs");
    assert!(profile.faults.is_empty());
    for found in profile.tensors.iter().map(|tensor| tensor.as_ref().expect("profiled")) {
        let expected = match found.name.as_str() {
            VALUES => (256, 256),
            DOWN => (4, 28),
            _ => (0, 0),
        };
        assert_eq!((found.nan_count, found.inf_count), expected, "{}", found.name);
        assert_eq!(found.histogram.counts.iter().sum::<u64>(), found.finite_count(), "{}", found.name);
        let figures = [found.min, found.max, found.mean, found.std];
        assert!(figures.iter().all(|figure| figure.is_finite()), "{} {figures:?}", found.name);
    }
}

#[test]
fn a_pass_that_encodes_them_again_names_them() {
    let folder = tempfile::tempdir().expect("folder");
    let checkpoint = damaged(folder.path(), &[VALUES, DOWN]);
    let report = run(&checkpoint, "[default]\nformat = \"q5_k\"\n", &folder.path().join("again.gguf"));
    assert!(report.tensors.iter().any(|tensor| tensor.name == VALUES && tensor.to == "q5_k"));
    assert!(report.warnings.iter().any(|warning| warning.starts_with(WARNING)), "{:?}", report.warnings);
}

#[test]
fn a_pass_that_copies_them_names_them_too() {
    let folder = tempfile::tempdir().expect("folder");
    let checkpoint = damaged(folder.path(), &[VALUES, DOWN]);
    let output = folder.path().join("copy.gguf");
    let report = run(&checkpoint, "", &output);
    assert!(report.tensors.iter().all(|tensor| tensor.method == "copy"));
    assert!(report.warnings.iter().any(|warning| warning.starts_with(WARNING)), "{:?}", report.warnings);
    let copy = Checkpoint::open(&output).expect("opens");
    for name in [VALUES, DOWN] {
        assert!(rows(&copy, name) == rows(&checkpoint, name), "{name}");
    }
}

#[test]
fn an_evaluation_says_so_instead_of_giving_figures() {
    let text = TextSource::read(&demo().join("evaluation.txt")).expect("text");
    let tasks = TaskSet::read(&demo().join("tasks.jsonl")).expect("tasks").sample(1);
    for name in [VALUES, DOWN] {
        let folder = tempfile::tempdir().expect("folder");
        let checkpoint = damaged(folder.path(), &[name]);
        let progress = Progress::default();
        let model = Model::load(&checkpoint, &progress).expect("loads");
        let tokenizer = Tokenizer::of_checkpoint(&checkpoint).expect("tokenizer");
        let subject = Subject::new(&checkpoint, &model, &tokenizer, "damaged");
        let options = EvaluationOptions {
            text: TextOptions { max_tokens: Some(1000), ..TextOptions::default() },
            speed: None,
            ..EvaluationOptions::default()
        };
        let of_text = evaluate(&subject, None, None, Some(&text), &options, &progress).map(drop);
        let of_tasks = score_tasks(&model, &tokenizer, &tasks, &progress).map(drop);
        let written = generate(
            &model,
            &tokenizer,
            "The capital of",
            &GenerateOptions { max_tokens: 4, ..GenerateOptions::default() },
            &progress,
            &mut |_| {},
        )
        .map(drop);
        for (what, result) in [("text", of_text), ("tasks", of_tasks), ("generation", written)] {
            let said = result.expect_err(what).to_string();
            assert!(said.contains("the model's logits are NaN or infinite"), "{name} {what}: {said}");
            assert!(said.contains("look in the profile"), "{name} {what}: {said}");
        }
    }
}
