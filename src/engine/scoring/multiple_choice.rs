//! Multiple choice by log-likelihood: the prompt once, every choice as a branch of it.
//!
//! `acc` takes the choice of the highest Σ ln p, `acc_norm` the highest Σ ln p per character of
//! the choice and `acc_bytes` per UTF-8 byte, as lm-evaluation-harness does. White space in front of a
//! choice is the delimiter and does not count. Among equals the first wins. Where the beginnings differ
//! and the end is the same, every beginning is a prompt of its own.

use rayon::prelude::*;

use super::join::{Joined, join};
use super::rows::{RowRequest, score_rows};
use super::tasks::{ItemResult, TaskItem, TaskKind};
use super::{BATCH_TOKENS, TextCodec, TokenModel, check_ids};
use crate::error::{Error, Fault, Result, Stage};
use crate::model::Batch;
use crate::progress::{Figure, Progress};

/// Puts an item's id in front of an error that has no place yet.
pub(crate) fn in_item(error: Error, id: &str) -> Error {
    match error {
        Error::Fault(mut fault) => {
            let place =
                fault.place.take().map_or_else(|| format!("item {id:?}"), |place| format!("item {id:?}, {place}"));
            fault.place = Some(place);
            Error::Fault(fault)
        }
        other => other,
    }
}

/// Splits items into runs of about [`BATCH_TOKENS`] tokens, at least one item each.
pub(crate) fn runs(costs: &[usize]) -> Vec<std::ops::Range<usize>> {
    let mut runs = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for (index, &cost) in costs.iter().enumerate() {
        if index > start && tokens + cost > BATCH_TOKENS {
            runs.push(start..index);
            (start, tokens) = (index, 0);
        }
        tokens += cost;
    }
    if start < costs.len() {
        runs.push(start..costs.len());
    }
    runs
}

/// Encodes items in parallel; the first error in item order is the one reported.
pub(crate) fn encode_all<T: Send>(
    items: &[&TaskItem],
    progress: &Progress,
    encode: impl Fn(&TaskItem) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let mut encoded = Vec::with_capacity(items.len());
    for chunk in items.chunks(256) {
        progress.check()?;
        let results: Vec<Result<T>> =
            chunk.par_iter().map(|item| encode(item).map_err(|err| in_item(err, &item.id))).collect();
        for result in results {
            encoded.push(result?);
        }
    }
    Ok(encoded)
}

/// Index of the largest value, the first among equals.
fn first_best(values: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (index, value) in values.enumerate() {
        if value > best.1 {
            best = (index, value);
        }
    }
    best.0
}

/// What an item offers and which of it is right.
fn parts(item: &TaskItem) -> Result<(&[String], usize)> {
    match &item.kind {
        TaskKind::MultipleChoice { choices, answer, .. } => Ok((choices, *answer)),
        TaskKind::MultipleContext { contexts, answer, .. } => Ok((contexts, *answer)),
        _ => Err(Fault::new(Stage::Tasks, "not a multiple_choice item").at(format!("item {:?}", item.id)).into()),
    }
}

/// An item's prompts with their continuations: one prompt with all, or one continuation after each.
fn questions(codec: &dyn TextCodec, item: &TaskItem) -> Result<Vec<Joined>> {
    match &item.kind {
        TaskKind::MultipleContext { contexts, continuation, .. } => {
            contexts.iter().map(|context| join(codec, context, &[continuation])).collect()
        }
        TaskKind::MultipleChoice { prompt, choices, .. } => {
            let texts: Vec<&str> = choices.iter().map(String::as_str).collect();
            Ok(vec![join(codec, prompt, &texts)?])
        }
        _ => Err(Fault::new(Stage::Tasks, "not a multiple_choice item").into()),
    }
}

/// Scores multiple_choice and multiple_context items, in their order.
pub fn score(
    model: &dyn TokenModel,
    codec: &dyn TextCodec,
    items: &[&TaskItem],
    progress: &Progress,
) -> Result<Vec<ItemResult>> {
    let joined = encode_all(items, progress, |item| {
        let mut questions = questions(codec, item)?;
        for joined in &mut questions {
            check_ids(&joined.prompt, model.vocab())?;
            for ids in &joined.continuations {
                check_ids(ids, model.vocab())?;
            }
            // The last token of a choice is predicted but never read.
            let longest = joined.longest();
            joined.fit(codec, model.context(), longest - 1)?;
        }
        Ok(questions)
    })?;
    let cost =
        |joined: &Joined| joined.prompt.len() + joined.continuations.iter().map(|ids| ids.len() - 1).sum::<usize>();
    let costs: Vec<usize> = joined.iter().map(|questions| questions.iter().map(cost).sum()).collect();
    let mut results = Vec::with_capacity(items.len());
    for run in runs(&costs) {
        progress.check()?;
        let flat: Vec<&Joined> = joined[run.clone()].iter().flatten().collect();
        let mut likelihoods = score_run(model, &flat, progress)?.into_iter();
        for (item, questions) in items[run.clone()].iter().zip(&joined[run.clone()]) {
            let scores: Vec<f64> = likelihoods.by_ref().take(questions.len()).flatten().collect();
            let mut result = judge(item, scores)?;
            result.truncated = questions.iter().any(|joined| joined.truncated);
            result.prompt_tokens = questions.iter().map(|joined| joined.prompt.len()).max().unwrap_or(0) as u32;
            results.push(result);
        }
        progress.tally(Figure::Accuracy, results[results.len() - run.len()..].iter().map(|result| result.score));
        progress.advance(run.len() as u64);
    }
    Ok(results)
}

/// Which choice these log-likelihoods choose, by each way of normalizing them.
fn judge(item: &TaskItem, scores: Vec<f64>) -> Result<ItemResult> {
    let (choices, answer) = parts(item)?;
    // Every beginning is followed by the same end, so that there is no length to normalize by.
    let by_length = matches!(item.kind, TaskKind::MultipleChoice { .. });
    let best_by = |length: &dyn Fn(&str) -> usize| {
        let lengths = choices.iter().map(|choice| if by_length { length(choice.trim_start()).max(1) } else { 1 });
        first_best(scores.iter().zip(lengths).map(|(score, length)| score / length as f64))
    };
    let best = best_by(&|_| 1);
    let mut result = ItemResult::of(item);
    result.correct = best == answer;
    result.score = f64::from(u8::from(result.correct));
    result.correct_norm = Some(best_by(&|choice| choice.chars().count()) == answer);
    result.correct_bytes = Some(best_by(&str::len) == answer);
    result.prediction.clone_from(&choices[best]);
    result.scores = scores;
    let distances = result.choice_probabilities().into_iter().enumerate().map(|(choice, probability)| {
        let target = if choice == answer { 1.0 } else { 0.0 };
        (probability - target).powi(2)
    });
    result.brier = Some(distances.sum());
    Ok(result)
}

/// Log-likelihoods of every choice of the items of one batch.
fn score_run(model: &dyn TokenModel, items: &[&Joined], progress: &Progress) -> Result<Vec<Vec<f64>>> {
    let mut batch = Batch::default();
    let mut requests = Vec::new();
    // Which choice of which item each target of each request belongs to.
    let mut owners: Vec<Vec<(usize, usize)>> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let prompt = batch.push(&item.prompt, None, None);
        requests.push(RowRequest {
            row: batch.ids.len() - 1,
            targets: item.continuations.iter().map(|ids| ids[0]).collect(),
        });
        owners.push((0..item.continuations.len()).map(|choice| (index, choice)).collect());
        for (choice, ids) in item.continuations.iter().enumerate() {
            let read = &ids[..ids.len() - 1];
            if read.is_empty() {
                continue;
            }
            let first_row = batch.ids.len();
            batch.push(read, Some(prompt), None);
            for (offset, &target) in ids[1..].iter().enumerate() {
                requests.push(RowRequest { row: first_row + offset, targets: vec![target] });
                owners.push(vec![(index, choice)]);
            }
        }
    }
    let hidden = model.hidden(&batch, &mut [], progress)?;
    let scores = score_rows(model, &hidden, &requests, progress)?;
    let mut likelihoods: Vec<Vec<f64>> = items.iter().map(|item| vec![0.0; item.continuations.len()]).collect();
    for (score, owners) in scores.iter().zip(&owners) {
        for (&log_prob, &(item, choice)) in score.log_probs.iter().zip(owners) {
            likelihoods[item][choice] += log_prob;
        }
    }
    Ok(likelihoods)
}

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeCodec, FakeModel};
    use super::*;

    fn item(id: usize, prompt: &str, choices: &[&str], answer: usize) -> TaskItem {
        TaskItem {
            id: id.to_string(),
            task: "t".into(),
            slice: "s".into(),
            group: None,
            fields: Default::default(),
            kind: TaskKind::MultipleChoice {
                prompt: prompt.into(),
                choices: choices.iter().map(|&choice| choice.into()).collect(),
                answer,
            },
        }
    }

    #[test]
    fn packed_choices_score_as_each_alone() {
        let (model, codec) = (FakeModel { context: 40, ..FakeModel::default() }, FakeCodec::default());
        let items: Vec<TaskItem> = (0..200)
            .map(|i| item(i, &"question of some length "[..i % 20], &[" b", "longer one", "c", " ab"], i % 4))
            .collect();
        let borrowed: Vec<&TaskItem> = items.iter().collect();
        let results = score(&model, &codec, &borrowed, &Progress::default()).expect("scores");
        assert_eq!(results.len(), items.len());
        for (item, result) in items.iter().zip(&results) {
            assert_eq!(item.id, result.id);
            let (choices, answer) = parts(item).expect("choices");
            let prompt = item.kind.prompt();
            let mut best = (0, f64::NEG_INFINITY);
            for (index, choice) in choices.iter().enumerate() {
                let joined = join(&codec, prompt, &[choice]).expect("join");
                let mut ids = joined.prompt;
                let mut expected = 0.0;
                for &id in &joined.continuations[0] {
                    expected += model.log_prob(&ids, id);
                    ids.push(id);
                }
                assert!((result.scores[index] - expected).abs() < 1e-5, "{} {expected}", result.scores[index]);
                if expected > best.1 {
                    best = (index, expected);
                }
            }
            assert_eq!(result.correct, best.0 == answer);
            assert_eq!(result.prediction, choices[best.0]);
        }
        assert!(results.iter().any(|result| result.correct) && results.iter().any(|result| !result.correct));
    }

    #[test]
    fn choices_are_normalized_as_the_harness_does_it() {
        // Log-likelihoods by hand; "é" is one character and two bytes.
        let item = item(0, "p", &[" éé", " abc", "abcdefgh"], 0);
        let result = judge(&item, vec![-2.9, -3.3, -2.8]).expect("judged");
        assert_eq!(result.prediction, "abcdefgh");
        assert_eq!((result.correct, result.correct_norm, result.correct_bytes), (false, Some(false), Some(false)));
        let close = |value: Option<f64>, expected: f64| value.is_some_and(|value| (value - expected).abs() < 1e-12);
        let weights = [-0.1_f64, -0.5, 0.0].map(f64::exp);
        let sum: f64 = weights.iter().sum();
        let p = weights.map(|weight| weight / sum);
        assert!(close(result.brier, (p[0] - 1.0).powi(2) + p[1] * p[1] + p[2] * p[2]));
        assert!(close(result.confidence(), p[2]));
        // Per character −1.45, −1.1, −2: the second; per byte −0.725, −1.1, −2: the first.
        let result = judge(&item, vec![-2.9, -3.3, -16.0]).expect("judged");
        assert_eq!((result.correct, result.correct_norm, result.correct_bytes), (true, Some(false), Some(true)));
    }

    #[test]
    fn contexts_are_compared_by_what_follows_them() {
        let (model, codec) = (FakeModel::default(), FakeCodec::default());
        let contexts = ["one beginning", "quite another"].map(str::to_owned).to_vec();
        let kind =
            TaskKind::MultipleContext { contexts: contexts.clone(), continuation: " is the end".into(), answer: 1 };
        let items: Vec<TaskItem> = vec![item(0, "q", &["x", "y"], 0), TaskItem { kind, ..item(1, "", &["x", "y"], 0) }];
        let borrowed: Vec<&TaskItem> = items.iter().collect();
        let results = score(&model, &codec, &borrowed, &Progress::default()).expect("scores");
        let expected: Vec<f64> = contexts
            .iter()
            .map(|context| {
                let joined = join(&codec, context, &[" is the end"]).expect("join");
                let mut ids = joined.prompt;
                let mut sum = 0.0;
                for &id in &joined.continuations[0] {
                    sum += model.log_prob(&ids, id);
                    ids.push(id);
                }
                sum
            })
            .collect();
        for (ours, theirs) in results[1].scores.iter().zip(&expected) {
            assert!((ours - theirs).abs() < 1e-5, "{ours} {theirs}");
        }
        assert_eq!(results[1].correct, expected[1] > expected[0]);
        assert_eq!(results[0].scores.len(), 2);
    }

    #[test]
    fn normalizing_by_characters_may_choose_another() {
        assert_eq!(first_best([-4.0, -5.0].into_iter()), 0);
        assert_eq!(first_best([-4.0 / 1.0, -5.0 / 6.0].into_iter()), 1);
        assert_eq!(first_best([-4.0, -4.0].into_iter()), 0);
    }

    #[test]
    fn an_item_longer_than_the_context_is_cut_and_says_so() {
        let model = FakeModel { context: 8, ..FakeModel::default() };
        let long = item(0, "a long question here", &["xyz", "q"], 0);
        let results = score(&model, &FakeCodec::default(), &[&long], &Progress::default()).expect("scores");
        assert!(results[0].truncated);
        let hopeless = item(1, "q", &["far longer than eight", "q"], 0);
        let error = score(&model, &FakeCodec::default(), &[&hopeless], &Progress::default()).expect_err("too long");
        assert!(error.to_string().contains("item \"1\""), "{error}");
    }

    #[test]
    fn runs_hold_every_item_once_and_respect_the_budget() {
        let costs = [BATCH_TOKENS - 1, 1, 1, 5 * BATCH_TOKENS, 2];
        assert_eq!(runs(&costs), vec![0..2, 2..3, 3..4, 4..5]);
        assert!(runs(&[]).is_empty());
    }
}
