//! Items that are answered by writing: exact_match, generate and chain_of_thought.
//!
//! exact_match is checked by reading prompt and answer at once: where every token of the answer is
//! the model's first choice, greedy writing would have written just that, so one packed batch
//! replaces as many steps as the answer has tokens. Only wrong items are written out.

use super::answers;
use super::generation::{Start, greedy};
use super::join::{Joined, join};
use super::multiple_choice::{encode_all, in_item, runs};
use super::rows::{RowRequest, score_rows};
use super::tasks::{ItemResult, TaskItem, TaskKind};
use super::{TextCodec, TokenModel, check_ids};
use crate::error::{Fault, Result, Stage};
use crate::model::Batch;
use crate::progress::Progress;

/// Scores exact_match and generate items, in their order.
pub fn score(
    model: &dyn TokenModel,
    codec: &dyn TextCodec,
    items: &[&TaskItem],
    progress: &Progress,
) -> Result<Vec<ItemResult>> {
    let joined = encode_all(items, progress, |item| {
        let (prompt, wanted) = match &item.kind {
            TaskKind::ExactMatch { prompt, answer } => (prompt, answer),
            TaskKind::Generate { prompt, reference } => (prompt, reference),
            TaskKind::ChainOfThought { prompt, answer, .. } => (prompt, answer),
            TaskKind::MultipleChoice { .. } | TaskKind::MultipleContext { .. } => {
                return Err(Fault::new(Stage::Tasks, "not an item that is answered by writing").into());
            }
        };
        let mut joined = join(codec, prompt, &[wanted])?;
        check_ids(&joined.prompt, model.vocab())?;
        check_ids(&joined.continuations[0], model.vocab())?;
        // The last token that is written is never read.
        let room = match &item.kind {
            // A thought that does not fit is cut, rather than the question: half of the context stays for that.
            TaskKind::ChainOfThought { max_tokens, .. } => (*max_tokens).min(model.context() / 2),
            _ => joined.longest() - 1,
        };
        joined.fit(codec, model.context(), room)?;
        Ok(joined)
    })?;
    let mut written: Vec<Vec<u32>> = vec![Vec::new(); items.len()];
    let mut starts = Vec::new();
    let mut owners = Vec::new();
    let mut verifying = Vec::new();
    for (index, (item, joined)) in items.iter().zip(&joined).enumerate() {
        if matches!(item.kind, TaskKind::ExactMatch { .. }) {
            verifying.push(index);
        } else {
            starts.push(Start { ids: joined.prompt.clone(), max_new: room_to_write(item, joined) });
            owners.push(index);
        }
    }
    verify(model, codec, &joined, &verifying, &mut written, &mut starts, &mut owners, progress)?;
    let continued = greedy(model, codec.eos(), &starts, progress, &mut |count| progress.advance(count as u64))?;
    for (index, ids) in owners.into_iter().zip(continued) {
        written[index].extend(ids);
    }
    items
        .iter()
        .zip(&joined)
        .zip(&written)
        .map(|((item, joined), ids)| {
            judge(codec, item, joined, ids, model.context()).map_err(|err| in_item(err, &item.id))
        })
        .collect()
}

/// Tokens that a written text may have: a little more than the reference, so that a longer one counts against the model.
fn room_to_write(item: &TaskItem, joined: &Joined) -> usize {
    match &item.kind {
        TaskKind::ChainOfThought { max_tokens, .. } => *max_tokens,
        _ => joined.continuations[0].len() * 3 / 2 + 8,
    }
}

/// Reads exact_match items with their answers; those that part from the answer before its last token go to `starts`.
#[expect(clippy::too_many_arguments, reason = "three parallel outputs of one private step")]
fn verify(
    model: &dyn TokenModel,
    codec: &dyn TextCodec,
    joined: &[Joined],
    verifying: &[usize],
    written: &mut [Vec<u32>],
    starts: &mut Vec<Start>,
    owners: &mut Vec<usize>,
    progress: &Progress,
) -> Result<()> {
    let costs: Vec<usize> =
        verifying.iter().map(|&index| joined[index].prompt.len() + joined[index].continuations[0].len() - 1).collect();
    for run in runs(&costs) {
        progress.check()?;
        let run = &verifying[run];
        let mut batch = Batch::default();
        let mut requests = Vec::new();
        for &index in run {
            let (prompt, answer) = (&joined[index].prompt, &joined[index].continuations[0]);
            let ids = [prompt.as_slice(), &answer[..answer.len() - 1]].concat();
            let first_row = batch.ids.len() + prompt.len() - 1;
            batch.push(&ids, None, None);
            requests.extend((0..answer.len()).map(|step| RowRequest { row: first_row + step, targets: Vec::new() }));
        }
        let hidden = model.hidden(&batch, &mut [], progress)?;
        let scores = score_rows(model, &hidden, &requests, progress)?;
        let mut scores = scores.iter();
        let mut finished = 0;
        for &index in run {
            let answer = &joined[index].continuations[0];
            let tops: Vec<u32> = scores.by_ref().take(answer.len()).map(|score| score.top).collect();
            let agreed = tops.iter().zip(answer).take_while(|(top, id)| top == id).count();
            written[index] = answer[..agreed].to_vec();
            finished += 1;
            let Some(&other) = tops.get(agreed).filter(|top| !codec.eos().contains(top)) else {
                continue;
            };
            written[index].push(other);
            let left = answer.len() - written[index].len();
            if left > 0 {
                let ids = [joined[index].prompt.as_slice(), &written[index]].concat();
                starts.push(Start { ids, max_new: left });
                owners.push(index);
                finished -= 1;
            }
        }
        progress.advance(finished);
    }
    Ok(())
}

/// Compares what was written with what was wanted.
fn judge(codec: &dyn TextCodec, item: &TaskItem, joined: &Joined, ids: &[u32], context: usize) -> Result<ItemResult> {
    let mut result = ItemResult::of(item);
    result.truncated = joined.truncated;
    result.prompt_tokens = joined.prompt.len() as u32;
    result.prediction = codec.decode(ids)?.trim().to_owned();
    result.token_ids = ids.to_vec();
    let mut stopped = false;
    let yes_or_no = |correct: bool| (correct, f64::from(u8::from(correct)));
    match &item.kind {
        TaskKind::ExactMatch { answer, .. } => {
            (result.correct, result.score) = yes_or_no(result.prediction == answer.trim());
        }
        TaskKind::Generate { reference, .. } => {
            result.correct = result.prediction == reference.trim();
            result.score = answers::rouge_l_f1(&result.prediction, reference);
            result.f1 = Some(answers::word_f1(&result.prediction, reference));
        }
        TaskKind::ChainOfThought { answer, stop, .. } => {
            let thought = answers::until_stop(&result.prediction, stop);
            stopped = thought.len() < result.prediction.len();
            result.prediction = thought.trim().to_owned();
            (result.correct, result.score) = yes_or_no(answers::same_final_answer(&result.prediction, answer));
        }
        TaskKind::MultipleChoice { .. } | TaskKind::MultipleContext { .. } => {}
    }
    if !matches!(item.kind, TaskKind::ExactMatch { .. }) {
        let room = room_to_write(item, joined).min((context + 1).saturating_sub(joined.prompt.len()));
        result.ended = Some(stopped || ids.len() < room);
        result.repeated_fraction = answers::repeated_fraction(ids);
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeCodec, FakeModel};
    use super::super::lots::score_tasks;
    use super::super::tasks::TaskSet;
    use super::*;

    fn greedy_text(model: &FakeModel, prompt: &[u32], count: usize) -> (Vec<u32>, String) {
        let mut ids = prompt.to_vec();
        for _ in 0..count {
            let top = model.top(&ids);
            if top == 1 {
                break;
            }
            ids.push(top);
        }
        let written = ids[prompt.len()..].to_vec();
        let text = FakeCodec::default().decode(&written).expect("decode");
        (written, text)
    }

    #[test]
    fn verified_answers_are_those_that_greedy_writing_gives() {
        let (model, codec) = (FakeModel::default(), FakeCodec::default());
        let mut items = Vec::new();
        let mut expected = Vec::new();
        for index in 0..120_usize {
            let prompt = format!("question {}", index * 37);
            let mut ids = vec![0];
            ids.extend(codec.encode(&prompt).expect("encode"));
            let (_, text) = greedy_text(&model, &ids, 1 + index % 4);
            // A third right, a third wrong at the end, a third wrong from the start.
            let answer = match index % 3 {
                0 => text,
                1 => format!("{text}~"),
                _ => format!("~{text}"),
            };
            if answer.trim().is_empty() {
                continue;
            }
            let joined = join(&codec, &prompt, &[&answer]).expect("join");
            let (_, written) = greedy_text(&model, &joined.prompt, joined.continuations[0].len());
            expected.push((written.trim().to_owned(), written.trim() == answer.trim()));
            let item = TaskItem {
                id: index.to_string(),
                task: "t".into(),
                slice: "s".into(),
                group: None,
                fields: Default::default(),
                kind: TaskKind::ExactMatch { prompt, answer },
            };
            items.push(item);
        }
        let borrowed: Vec<&TaskItem> = items.iter().collect();
        let progress = Progress::default();
        let results = score(&model, &codec, &borrowed, &progress).expect("results");
        assert_eq!(progress.snapshot().done, items.len() as u64);
        assert!(results.iter().any(|result| result.correct));
        assert!(results.iter().any(|result| !result.correct));
        for (result, (text, correct)) in results.iter().zip(&expected) {
            assert_eq!((&result.prediction, result.correct), (text, *correct));
        }
    }

    #[test]
    fn results_of_mixed_types_come_in_file_order() {
        let text = [
            r#"{"id":"w","task":"t","slice":"s","type":"generate","prompt":"p","reference":"some words"}"#,
            r#"{"id":"c","task":"t","slice":"s","type":"multiple_choice","prompt":"p","choices":["x","y"],"answer":1}"#,
            r#"{"id":"e","task":"t","slice":"s","type":"exact_match","prompt":"p","answer":"x"}"#,
        ]
        .join("\n");
        let tasks = TaskSet::parse(text.as_bytes(), std::path::Path::new("t")).expect("tasks");
        let results =
            score_tasks(&FakeModel::default(), &FakeCodec::default(), &tasks, &Progress::default()).expect("results");
        let ids: Vec<&str> = results.iter().map(|result| result.id.as_str()).collect();
        assert_eq!(ids, ["w", "c", "e"]);
        assert_eq!(results[0].metric, "rouge_l_f1");
    }

    #[test]
    fn a_written_text_has_its_tokens_its_end_and_its_loops() {
        let (model, codec) = (FakeModel::default(), FakeCodec::default());
        let text =
            r#"{"id":"w","task":"t","slice":"s","type":"chain_of_thought","prompt":"p","answer":"7","max_tokens":9}"#;
        let tasks = TaskSet::parse(text.as_bytes(), std::path::Path::new("t")).expect("tasks");
        let result = &score_tasks(&model, &codec, &tasks, &Progress::default()).expect("results")[0];
        let mut ids = vec![0];
        ids.extend(codec.encode("p").expect("encode"));
        let (written, _) = greedy_text(&model, &ids, 9);
        assert_eq!(result.token_ids, written);
        assert_eq!(result.ended, Some(written.len() < 9));
        assert_eq!((result.metric.as_str(), result.prompt_tokens), ("final_answer", 2));
        assert!(result.repeated_fraction.is_some_and(|share| (0.0..1.0).contains(&share)));
        assert_eq!(result.wanted, "7");
    }

    #[test]
    fn a_broken_model_is_a_fault_and_not_a_wrong_answer() {
        let codec = FakeCodec::default();
        let mut ids = vec![0];
        ids.extend(codec.encode("p").expect("encode"));
        let model = FakeModel { poison: Some(FakeModel::state(&ids)), ..FakeModel::default() };
        let text = r#"{"id":"e","task":"t","slice":"s","type":"exact_match","prompt":"p","answer":"x"}"#;
        let tasks = TaskSet::parse(text.as_bytes(), std::path::Path::new("t")).expect("tasks");
        let error = score_tasks(&model, &codec, &tasks, &Progress::default()).expect_err("NaN");
        assert!(error.to_string().contains("NaN"), "{error}");
    }
}
