//! Tests of evaluations with stand-ins for models.

use super::*;
use crate::progress::Progress;
use crate::scoring::fake::{FakeCodec, FakeModel, assert_same_json};
use crate::scoring::{SpeedOptions, TaskSet, TextSource};

fn subject<'a>(model: &'a FakeModel, codec: &'a FakeCodec, id: &str) -> Subject<'a> {
    Subject {
        model,
        codec,
        name: id.to_owned(),
        path: PathBuf::from(id),
        id: id.to_owned(),
        file_bytes: 1000,
        tensor_bytes: 900,
        weight_count: 1600,
        resident_bytes: 950,
        kv_bytes_per_token: 64,
    }
}

fn tasks() -> TaskSet {
    let lines: Vec<String> = (0..40)
        .map(|i| {
            let (task, slice) = if i % 2 == 0 { ("t", "even") } else { ("u", "odd") };
            format!(
                r#"{{"id":"{i}","task":"{task}","slice":"{slice}","type":"multiple_choice","prompt":"p{i}","choices":["x","y"],"answer":0}}"#
            )
        })
        .collect();
    TaskSet::parse(lines.join("\n").as_bytes(), Path::new("tasks")).expect("tasks")
}

fn text() -> TextSource {
    TextSource::new("text", "the quick brown fox jumps over the lazy dog ".repeat(20))
}

fn options() -> EvaluationOptions {
    let speed = SpeedOptions { repetitions: 1, min_secs: 0.0, ..SpeedOptions::default() };
    EvaluationOptions { speed: Some(speed), ..EvaluationOptions::default() }
}

#[test]
fn a_document_has_the_designs_keys_and_survives_a_file() {
    let (base, codec) = (FakeModel::default(), FakeCodec::default());
    let candidate = FakeModel { noise: 1.0, ..FakeModel::default() };
    let baseline = Baseline { subject: subject(&base, &codec, "base"), known: None };
    let own = subject(&candidate, &codec, "candidate");
    let (tasks, text) = (tasks(), text());
    let result = evaluate(&own, Some(&baseline), Some(&tasks), Some(&text), &options(), &Progress::default())
        .expect("evaluation");
    let json = serde_json::to_string(&result).expect("json");
    let value: serde_json::Value = serde_json::from_str(&json).expect("value");
    for pointer in [
        "/text/perplexity",
        "/text/tokens",
        "/text/kld_mean",
        "/text/kld_mean_stderr",
        "/text/same_top_fraction",
        "/slices/0/task",
        "/slices/0/slice",
        "/slices/0/metric",
        "/slices/0/n",
        "/slices/0/accuracy",
        "/size/file_bytes",
        "/size/bits_per_weight",
        "/size/resident_bytes",
        "/speed/prefill_tokens_per_second",
        "/speed/decode_tokens_per_second",
        "/baseline/text/perplexity",
        "/baseline/slices/1/accuracy",
        "/baseline/speed/decode_tokens_per_second",
    ] {
        assert!(value.pointer(pointer).is_some(), "{pointer}");
    }
    assert!(value.pointer("/baseline/text/kld_mean").is_none());
    assert!(json.rfind("\"baseline\"").expect("baseline") > json.find("\"items\"").expect("items"));
    assert_eq!(value["size"]["bits_per_weight"], 4.5);
    let back = Evaluation::parse(json.as_bytes(), Path::new("e.json")).expect("back");
    assert_same_json(&serde_json::to_value(&back).expect("value"), &value);
    assert_eq!(result.slices.len(), 2);
    assert_eq!(result.slices.iter().map(|slice| slice.n).sum::<usize>(), 40);
}

#[test]
fn a_known_baseline_gives_the_same_document_without_its_tasks_being_scored_again() {
    let (base, codec) = (FakeModel::default(), FakeCodec::default());
    let candidate = FakeModel { noise: 1.0, ..FakeModel::default() };
    let (tasks, text) = (tasks(), text());
    let run = |known: Option<&Evaluation>| {
        let baseline = Baseline { subject: subject(&base, &codec, "base"), known };
        let own = subject(&candidate, &codec, "candidate");
        let progress = Progress::default();
        let mut result =
            evaluate(&own, Some(&baseline), Some(&tasks), Some(&text), &options(), &progress).expect("evaluation");
        // What depends on the moment.
        (result.speed, result.energy, result.conditions) = (None, None, None);
        if let Some(baseline) = &mut result.baseline {
            (baseline.speed, baseline.energy, baseline.conditions) = (None, None, None);
        }
        result
    };
    let alone =
        evaluate(&subject(&base, &codec, "base"), None, Some(&tasks), Some(&text), &options(), &Progress::default())
            .expect("evaluation");
    let fresh = run(None);
    assert_eq!(run(Some(&alone)), fresh);
    // Proof that the known one is used: a mark on it arrives.
    let mut marked = alone.clone();
    let mut items = marked.items.to_vec().expect("items");
    items[0].prediction = "from before".to_owned();
    marked.items = Items::of(items).expect("items");
    let reused = run(Some(&marked)).baseline.expect("baseline");
    assert_eq!(reused.items.get(0).expect("a result").prediction, "from before");
    // Another key is not used.
    marked.key = "another".to_owned();
    assert_eq!(run(Some(&marked)), fresh);
}

#[test]
fn the_key_changes_with_all_that_results_depend_on() {
    let (tasks, text, options) = (tasks(), text(), options());
    let base = key("a", None, Some(&tasks), Some(&text), &options);
    assert_eq!(base, key("a", None, Some(&tasks), Some(&text), &options.clone()));
    let mut other = options.clone();
    other.text.context = Some(32);
    let mut sampled = options.clone();
    sampled.max_items_per_slice = Some(5);
    let mut kept = options.clone();
    kept.kept = Some(crate::scoring::KeptOptions { folder: "k".into(), k: 8 });
    assert_eq!(base, key("a", None, Some(&tasks), Some(&text), &kept), "alone there is no distance");
    assert_ne!(
        key("a", Some("b"), Some(&tasks), Some(&text), &options),
        key("a", Some("b"), Some(&tasks), Some(&text), &kept)
    );
    for different in [
        key("b", None, Some(&tasks), Some(&text), &options),
        key("a", Some("b"), Some(&tasks), Some(&text), &options),
        key("a", None, None, Some(&text), &options),
        key("a", None, Some(&tasks), None, &options),
        key("a", None, Some(&tasks), Some(&text), &other),
        key("a", None, Some(&tasks), Some(&text), &sampled),
    ] {
        assert_ne!(base, different);
    }
}

#[test]
fn different_tokens_have_no_distance() {
    let (base, codec) = (FakeModel::default(), FakeCodec::default());
    let other = FakeCodec { bos: None, ..FakeCodec::default() };
    let baseline = Baseline { subject: subject(&base, &other, "base"), known: None };
    let own = subject(&base, &codec, "candidate");
    let error =
        evaluate(&own, Some(&baseline), None, Some(&text()), &options(), &Progress::default()).expect_err("differ");
    assert!(error.to_string().contains("different tokens"), "{error}");
}

#[test]
fn a_document_of_a_newer_version_or_of_another_kind_is_refused() {
    for (json, expected) in [
        (r#"{"version": 99}"#, "version 99"),
        (r#"{"version": 1}"#, "not an evaluation"),
        ("[]", "not an evaluation"),
        ("", "not an evaluation"),
    ] {
        let error = Evaluation::parse(json.as_bytes(), Path::new("e.json")).expect_err(json).to_string();
        assert!(error.contains(expected) && error.contains("e.json"), "{error}");
    }
}
