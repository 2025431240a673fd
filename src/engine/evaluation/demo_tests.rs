//! Scoring of the bundled demo against transformers' numbers (`tests/oracles/transformers_reference.py`).

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{EvaluationOptions, Subject, evaluate};
use crate::checkpoint::Checkpoint;
use crate::model::{Model, Tokenizer};
use crate::progress::Progress;
use crate::scoring::{
    Convention, GenerateOptions, ScoredText, SpeedOptions, TaskSet, TextOptions, TextSource, generate, score_tasks,
};

fn repository(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join(path)
}

struct Demo {
    checkpoint: Checkpoint,
    model: Model,
    tokenizer: Tokenizer,
}

fn demo() -> Demo {
    let checkpoint = Checkpoint::open(&repository("assets/demo")).expect("opens");
    let model = Model::load(&checkpoint, &Progress::default()).expect("loads");
    let tokenizer = Tokenizer::of_checkpoint(&checkpoint).expect("tokenizer");
    Demo { checkpoint, model, tokenizer }
}

fn reference() -> Value {
    let bytes = std::fs::read(repository("tests/fixtures/transformers_demo.json")).expect("fixture");
    serde_json::from_slice(&bytes).expect("json")
}

fn evaluation_text() -> TextSource {
    TextSource::read(&repository("assets/demo/evaluation.txt")).expect("text")
}

fn windows(demo: &Demo, convention: Convention, max_tokens: Option<usize>) -> ScoredText {
    let options = TextOptions { convention, context: Some(256), max_tokens };
    ScoredText::new(&demo.tokenizer, &evaluation_text(), 256, demo.model.config.vocab, &options).expect("windows")
}

#[test]
fn perplexities_of_both_conventions_are_those_of_transformers() {
    let demo = demo();
    let expected = &reference()["perplexity"];
    // The first windows are enough for one convention, since the fixture has every window's sum.
    let text = windows(&demo, Convention::NonOverlapping, Some(20 * 255));
    let result = text.score(&demo.model, &Progress::default()).expect("scores");
    let sums = expected["windows"]["nll_per_window"].as_array().expect("windows");
    let mean = sums[..20].iter().filter_map(Value::as_f64).sum::<f64>() / (20.0 * 255.0);
    assert_eq!((result.windows, result.tokens), (20, 20 * 255));
    assert!((result.nll_mean - mean).abs() < 1e-4 * mean, "{} {mean}", result.nll_mean);
    let all = windows(&demo, Convention::NonOverlapping, None);
    assert_eq!(all.windows.len() as u64, expected["windows"]["windows"].as_u64().expect("count"));
    assert_eq!(all.scored_tokens() as u64, expected["windows"]["tokens"].as_u64().expect("count"));

    let expected = &expected["llama_cpp"];
    let text = windows(&demo, Convention::LlamaCpp, None);
    let result = text.score(&demo.model, &Progress::default()).expect("scores");
    assert_eq!(result.windows as u64, expected["chunks"].as_u64().expect("count"));
    assert_eq!(result.tokens as u64, expected["tokens"].as_u64().expect("count"));
    let mean = expected["mean_nll"].as_f64().expect("mean");
    assert!((result.nll_mean - mean).abs() < 1e-4 * mean, "{} {mean}", result.nll_mean);
}

#[test]
fn greedy_text_is_that_of_transformers_where_the_choice_is_clear() {
    let demo = demo();
    for case in reference()["greedy"].as_array().expect("cases") {
        let options = GenerateOptions { max_tokens: 12, ..GenerateOptions::default() };
        let prompt = case["prompt"].as_str().expect("prompt");
        let mut streamed = Vec::new();
        let written = generate(&demo.model, &demo.tokenizer, prompt, &options, &Progress::default(), &mut |token| {
            streamed.push(token.id)
        })
        .expect("text");
        let margins = case["margins"].as_array().expect("margins").iter().filter_map(Value::as_f64);
        let clear = margins.take_while(|&margin| margin > 0.02).count();
        let expected: Vec<u32> =
            case["ids"].as_array().expect("ids").iter().filter_map(Value::as_u64).map(|id| id as u32).collect();
        assert!(clear >= 3, "{prompt}");
        assert_eq!(streamed[..clear], expected[..clear], "{prompt}");
        assert!(case["text"].as_str().expect("text").starts_with(&written.text[..2]), "{prompt}");
    }
}

#[test]
fn packed_items_of_the_demo_score_as_each_alone() {
    let demo = demo();
    let tasks = TaskSet::read(&repository("assets/demo/tasks.jsonl")).expect("tasks").sample(2);
    let progress = Progress::default();
    let packed = score_tasks(&demo.model, &demo.tokenizer, &tasks, &progress).expect("scores");
    let mut correct = 0;
    for (index, result) in packed.iter().enumerate() {
        let alone = TaskSet { items: tasks.items.pick([index]), ..tasks.clone() };
        let alone = &score_tasks(&demo.model, &demo.tokenizer, &alone, &progress).expect("scores")[0];
        assert_eq!((&alone.id, &alone.prediction), (&result.id, &result.prediction));
        for (ours, theirs) in result.scores.iter().zip(&alone.scores) {
            assert!((ours - theirs).abs() < 1e-2, "{}: {ours} {theirs}", result.id);
        }
        correct += usize::from(result.correct);
    }
    assert!(correct * 10 >= packed.len() * 8, "{correct} of {}", packed.len());
}

/// `tests/oracles/lm_eval_choices.py`: the harness's own code on the same items through transformers.
#[test]
fn multiple_choice_is_scored_as_the_harness_scores_it() {
    let demo = demo();
    let bytes = std::fs::read(repository("tests/fixtures/lm_eval_choices.json")).expect("fixture");
    let fixture: Value = serde_json::from_slice(&bytes).expect("json");
    let theirs = fixture["items"].as_array().expect("items");
    let mut tasks = TaskSet::read(&repository("assets/demo/tasks.jsonl")).expect("tasks");
    let wanted: std::collections::HashMap<&str, &Value> =
        theirs.iter().map(|item| (item["id"].as_str().expect("an id"), item)).collect();
    let is_wanted: Vec<bool> =
        tasks.items.iter().map(|item| wanted.contains_key(item.expect("an item").id.as_str())).collect();
    tasks.items = tasks.items.pick((0..tasks.items.len()).filter(|&index| is_wanted[index]));
    assert!(tasks.items.len() == theirs.len() && theirs.len() >= 120, "{}", theirs.len());
    let results = score_tasks(&demo.model, &demo.tokenizer, &tasks, &Progress::default()).expect("scores");
    for result in &results {
        let item = wanted[result.id.as_str()];
        let expected: Vec<f64> =
            item["log_likelihoods"].as_array().expect("a list").iter().filter_map(Value::as_f64).collect();
        for (ours, theirs) in result.scores.iter().zip(&expected) {
            assert!((ours - theirs).abs() < 2e-3 * theirs.abs().max(1.0), "{}: {ours} {theirs}", result.id);
        }
        assert_eq!(u64::from(result.correct), item["acc"].as_u64().expect("acc"), "{}", result.id);
        assert_eq!(result.correct_norm.map(u64::from), item["acc_norm"].as_u64(), "{}", result.id);
    }
}

#[test]
fn the_demo_is_evaluated_against_itself_without_any_distance() {
    let demo = demo();
    let id = demo.checkpoint.fingerprint.clone();
    let subject = Subject::new(&demo.checkpoint, &demo.model, &demo.tokenizer, id);
    let baseline = super::Baseline { subject: subject.clone(), known: None };
    let tasks = TaskSet::read(&repository("assets/demo/tasks.jsonl")).expect("tasks");
    let options = EvaluationOptions {
        text: TextOptions { max_tokens: Some(1000), ..TextOptions::default() },
        max_items_per_slice: Some(1),
        speed: Some(SpeedOptions { repetitions: 1, min_secs: 0.0, ..SpeedOptions::default() }),
        ..EvaluationOptions::default()
    };
    let progress = Progress::default();
    let result = evaluate(&subject, Some(&baseline), Some(&tasks), Some(&evaluation_text()), &options, &progress)
        .expect("evaluation");
    let distance = result.text.as_ref().and_then(|text| text.distance.as_ref()).expect("distance");
    assert_eq!((distance.kld_mean, distance.same_top_fraction), (0.0, 1.0));
    assert_eq!(result.slices.len(), 22);
    assert_eq!(result.size.bits_per_weight, 16.0);
    let baseline = result.baseline.expect("baseline");
    assert_eq!(baseline.items, result.items);
    assert!(result.speed.expect("speed").decode_tokens_per_second > 0.0);
}

/// The real models, batched and cached: what a draft of the same weights proposes is all accepted, and a coarse
/// draft does not change the text.
#[test]
fn speculation_does_not_change_greedy_text() {
    use crate::scoring::{Drafting, speculate};
    let demo = demo();
    let options = GenerateOptions { max_tokens: 24, ..GenerateOptions::default() };
    for prompt in ["17 + 25 =", "Hugo the miller walked to the", "Ümit"] {
        let progress = Progress::default();
        let alone = generate(&demo.model, &demo.tokenizer, prompt, &options, &progress, &mut |_| {}).expect("text");
        let expected: Vec<u32> = alone.tokens.iter().map(|token| token.id).collect();
        for length in [1, 5] {
            let drafting = Drafting { target: &demo.model, draft: &demo.model, length };
            let ours = speculate(drafting, &demo.tokenizer, prompt, &options, &progress, &mut |_| {}).expect("text");
            assert_eq!(ours.ids, expected, "{prompt} with {length}");
            assert!(ours.acceptance() > 0.9, "{}", ours.acceptance());
        }
    }
}

/// Prints every slice of the whole demo, to be compared with the table in its README.
#[test]
#[ignore = "minutes without optimization; run it by name to compare with assets/demo/README.md"]
fn all_slices_of_the_demo() {
    let demo = demo();
    let tasks = TaskSet::read(&repository("assets/demo/tasks.jsonl")).expect("tasks");
    let start = std::time::Instant::now();
    let items = score_tasks(&demo.model, &demo.tokenizer, &tasks, &Progress::default()).expect("scores");
    for slice in super::slices(&crate::scoring::Items::of(items.clone()).expect("items")) {
        println!("{} / {}: {} {:.3} of {}", slice.task, slice.slice, slice.metric, slice.accuracy, slice.n);
    }
    println!("{:.1} s", start.elapsed().as_secs_f64());
    let accuracy = items.iter().map(|item| item.score).sum::<f64>() / items.len() as f64;
    assert!(accuracy > 0.9, "{accuracy}");
}
