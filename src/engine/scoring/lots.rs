//! Scoring of task items in lots: as much at once as costs nothing, and no more texts in memory than one lot has.

use rayon::prelude::*;

use super::tasks::{ItemResult, TaskItem, TaskKind, TaskSet};
use super::{TaskItems, TextCodec, TokenModel, chat, completion, multiple_choice};
use crate::error::Result;
use crate::progress::{Figure, Phase, Progress, Unit};

/// Scores all items with packed batches and holds every result; results come in the items' order.
///
/// For few items that are looked at one by one; an evaluation holds [`super::Items`] instead.
///
/// # Errors
/// What the model, the tokenizer and reading items answer.
pub fn score_tasks(
    model: &dyn TokenModel,
    codec: &dyn TextCodec,
    tasks: &TaskSet,
    progress: &Progress,
) -> Result<Vec<ItemResult>> {
    let mut results: Vec<Option<ItemResult>> = vec![None; tasks.items.len()];
    let none = vec![None; tasks.items.len()];
    let mut keep = |indices: &[usize], scored: Vec<ItemResult>| -> Result<()> {
        for (&index, result) in indices.iter().zip(scored) {
            results[index] = Some(result);
        }
        Ok(())
    };
    score_remaining(model, codec, tasks, &none, Lot::HELD, &mut keep, progress)?;
    let mut results: Vec<ItemResult> = results.into_iter().flatten().collect();
    for (result, count) in results.iter_mut().zip(rarest_counts(model, codec, tasks, progress)?) {
        result.rarest_token_count = count;
    }
    Ok(results)
}

/// Scores all items with packed batches and holds of each its score alone, in the items' order.
///
/// # Errors
/// As for [`score_tasks`].
pub fn task_scores(
    model: &dyn TokenModel,
    codec: &dyn TextCodec,
    tasks: &TaskSet,
    progress: &Progress,
) -> Result<Vec<f64>> {
    let mut scores = vec![0.0; tasks.items.len()];
    let none = vec![None; tasks.items.len()];
    let mut keep = |indices: &[usize], scored: Vec<ItemResult>| -> Result<()> {
        for (&index, result) in indices.iter().zip(&scored) {
            scores[index] = result.score;
        }
        Ok(())
    };
    score_remaining(model, codec, tasks, &none, Lot::HELD, &mut keep, progress)?;
    Ok(scores)
}

/// Takes a lot's results with their places among all items.
pub type OnScored<'a> = dyn FnMut(&[usize], Vec<ItemResult>) -> Result<()> + 'a;

/// Scores the items that have no score in `done`, a lot at a time; `on_scored` takes each lot and decides what stays.
pub fn score_remaining(
    model: &dyn TokenModel,
    codec: &dyn TextCodec,
    tasks: &TaskSet,
    done: &[Option<f64>],
    lot: Lot,
    on_scored: &mut OnScored<'_>,
    progress: &Progress,
) -> Result<()> {
    let special = chat::SpecialCodec(codec);
    let codec = if tasks.has_special_tokens { &special } else { codec };
    let remaining: Vec<usize> = (0..tasks.items.len()).filter(|&index| done[index].is_none()).collect();
    progress.begin(Phase::ScoringTasks, tasks.items.len() as u64, Unit::Items);
    progress.resume((tasks.items.len() - remaining.len()) as u64);
    progress.tally(Figure::Accuracy, done.iter().flatten().copied());
    for indices in lots(&tasks.items, &remaining, lot) {
        let items = tasks.items.read(indices)?;
        let items: Vec<&TaskItem> = items.iter().collect();
        on_scored(indices, score_items(model, codec, &items, progress)?)?;
    }
    Ok(())
}

/// How much is scored between two writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lot {
    /// Most items.
    pub items: usize,
    /// Most bytes of prompts; a single item may have more.
    pub bytes: usize,
}

impl Lot {
    /// Seconds of work: what a crash may cost. 32 KiB of prompts are some thousand tokens, which is minutes of the
    /// largest models.
    pub const KEPT: Self = Self { items: 256, bytes: 32 << 10 };
    /// What is scored at once where nothing is kept: enough that the last batch of each lot, which is not full, costs
    /// nothing, and few enough that results do not pile up.
    pub const HELD: Self = Self { items: 8192, bytes: 8 << 20 };
}

/// Cuts the items with these indices into lots of one item at least.
fn lots<'a>(items: &TaskItems, mut indices: &'a [usize], lot: Lot) -> Vec<&'a [usize]> {
    let mut lots = Vec::new();
    while !indices.is_empty() {
        let mut bytes = 0_usize;
        let fits = |index: &&usize| {
            bytes = bytes.saturating_add(items.prompt_bytes(**index));
            bytes <= lot.bytes
        };
        let by_bytes = indices.iter().take(lot.items).take_while(fits).count();
        let (first, rest) = indices.split_at(by_bytes.max(1));
        lots.push(first);
        indices = rest;
    }
    lots
}

/// Scores some items: those that choose together, then those that write.
fn score_items(
    model: &dyn TokenModel,
    codec: &dyn TextCodec,
    items: &[&TaskItem],
    progress: &Progress,
) -> Result<Vec<ItemResult>> {
    let chooses =
        |item: &TaskItem| matches!(item.kind, TaskKind::MultipleChoice { .. } | TaskKind::MultipleContext { .. });
    let (choosing, writing): (Vec<usize>, Vec<usize>) = (0..items.len()).partition(|&index| chooses(items[index]));
    let pick = |indices: &[usize]| -> Vec<&TaskItem> { indices.iter().map(|&index| items[index]).collect() };
    let mut results: Vec<Option<ItemResult>> = vec![None; items.len()];
    for (index, result) in choosing.iter().zip(multiple_choice::score(model, codec, &pick(&choosing), progress)?) {
        results[*index] = Some(result);
    }
    let written = completion::score(model, codec, &pick(&writing), progress)?;
    progress.tally(Figure::Accuracy, written.iter().map(|result| result.score));
    for (index, result) in writing.iter().zip(written) {
        results[*index] = Some(result);
    }
    Ok(results.into_iter().flatten().collect())
}

/// Most answers that are encoded at once.
const ENCODED: usize = 4096;
/// Bytes of answers after which no more are encoded at once.
const ENCODED_BYTES: usize = 8 << 20;

/// For every item how often the rarest token of its right answer occurs in all right answers.
///
/// Answers are encoded twice, some thousand at a time, so that their tokens are never held together.
pub(crate) fn rarest_counts(
    model: &dyn TokenModel,
    codec: &dyn TextCodec,
    tasks: &TaskSet,
    progress: &Progress,
) -> Result<Vec<u32>> {
    let special = chat::SpecialCodec(codec);
    let codec = if tasks.has_special_tokens { &special } else { codec };
    let mut counts = vec![0_u32; model.vocab()];
    let mut rarest = Vec::with_capacity(tasks.items.len());
    for is_counting in [true, false] {
        let mut items = tasks.items.iter();
        while let Some(answers) = next_answers(&mut items)? {
            progress.check()?;
            let encoded: Vec<Vec<u32>> =
                answers.par_iter().map(|answer| codec.encode(answer)).collect::<Result<_>>()?;
            for ids in encoded {
                if !is_counting {
                    rarest.push(ids.iter().filter_map(|&id| counts.get(id as usize)).copied().min().unwrap_or(0));
                    continue;
                }
                for id in ids {
                    if let Some(count) = counts.get_mut(id as usize) {
                        *count += 1;
                    }
                }
            }
        }
    }
    Ok(rarest)
}

/// The right answers of the next items; none at the end.
fn next_answers(items: &mut impl Iterator<Item = Result<TaskItem>>) -> Result<Option<Vec<String>>> {
    let (mut answers, mut bytes) = (Vec::new(), 0);
    while answers.len() < ENCODED && bytes < ENCODED_BYTES {
        let Some(item) = items.next() else { break };
        let answer = item?.kind.wanted().to_owned();
        bytes += answer.len();
        answers.push(answer);
    }
    Ok((!answers.is_empty()).then_some(answers))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const CHOICE: &str =
        r#"{"id":"a","task":"t","slice":"s","type":"multiple_choice","prompt":"p","choices":["x","y"],"answer":1}"#;

    #[test]
    fn lots_are_bounded_by_items_and_by_text_and_leave_nothing_out() {
        let long = "p".repeat(Lot::KEPT.bytes / 3);
        let lines: Vec<String> = (0..20)
            .map(|i| CHOICE.replace("\"a\"", &format!("\"{i}\"")).replace("\"p\"", &format!("\"{long}\"")))
            .collect();
        let items = TaskSet::parse(lines.join("\n").as_bytes(), Path::new("tasks.jsonl")).expect("items").items;
        let indices: Vec<usize> = (0..20).collect();
        let sizes = |lot| lots(&items, &indices, lot).iter().map(|lot| lot.len()).collect::<Vec<_>>();
        assert_eq!(sizes(Lot::KEPT), [3, 3, 3, 3, 3, 3, 2]);
        assert_eq!(sizes(Lot { items: 2, ..Lot::KEPT }), [2; 10]);
        assert_eq!(sizes(Lot { items: 7, bytes: 1 }), [1; 20]);
        assert_eq!(sizes(Lot { items: usize::MAX, bytes: usize::MAX }), [20]);
        assert_eq!(lots(&items, &indices, Lot::KEPT).concat(), indices);
    }

    #[test]
    fn answers_come_by_thousands_and_not_more_than_fit() {
        let item = |id: usize, answer: String| TaskItem {
            id: id.to_string(),
            task: "t".into(),
            slice: "s".into(),
            group: None,
            fields: Default::default(),
            kind: TaskKind::ExactMatch { prompt: String::new(), answer },
        };
        let sizes = |count: usize, letters: usize| {
            let mut items = (0..count).map(|id| Ok(item(id, "x".repeat(letters))));
            let mut sizes = Vec::new();
            while let Some(answers) = next_answers(&mut items).expect("answers") {
                sizes.push(answers.len());
            }
            sizes
        };
        assert_eq!(sizes(ENCODED * 2 + 3, 1), [ENCODED, ENCODED, 3]);
        assert_eq!(sizes(5, ENCODED_BYTES / 2), [2, 2, 1]);
        assert!(sizes(0, 1).is_empty());
    }

    #[test]
    fn scores_alone_are_those_of_the_results() {
        let lines: Vec<String> = (0..300)
            .map(|i| {
                let line = CHOICE.replace("\"a\"", &format!("\"{i}\"")).replace("\"p\"", &format!("\"p{i}\""));
                if i % 3 == 0 { line.replace("\"answer\":1", "\"answer\":0") } else { line }
            })
            .collect();
        let tasks = TaskSet::parse(lines.join("\n").as_bytes(), Path::new("tasks.jsonl")).expect("items");
        let (model, codec) = (super::super::fake::FakeModel::default(), super::super::fake::FakeCodec::default());
        let whole = score_tasks(&model, &codec, &tasks, &Progress::default()).expect("results");
        let scores = task_scores(&model, &codec, &tasks, &Progress::default()).expect("scores");
        assert_eq!(scores, whole.iter().map(|result| result.score).collect::<Vec<_>>());
        assert!(scores.contains(&0.0) && scores.contains(&1.0));
    }
}
