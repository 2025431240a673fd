//! Task items from `tasks.jsonl`, and their scoring in file order.
//!
//! One JSON object a line: `id` (unique; pairs items between models), `task`, `slice`, optional
//! `group` (items that share a passage or a template), `type` and its own keys. Other keys with a short
//! text, a number or a yes or no are fields that results can be sliced by; longer ones are notes.
//! Files of the common benchmarks come in through `task_files.rs`.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{TextCodec, TokenModel, chat, completion, multiple_choice};
use crate::error::{Error, Fault, Result, Stage};
use crate::progress::{Figure, Phase, Progress, Unit};

/// Largest tasks file.
pub(super) const MAX_FILE_BYTES: u64 = 512 << 20;
/// Longest line.
const MAX_LINE_BYTES: usize = 4 << 20;
/// Most items.
pub(super) const MAX_ITEMS: usize = 1_000_000;
/// Most choices of one item.
const MAX_CHOICES: usize = 256;
/// Longest reference or answer, since as many tokens are generated.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// Longest id, task, slice or group.
const MAX_NAME_BYTES: usize = 1024;
/// Longest value of a field to slice by.
const MAX_FIELD_BYTES: usize = 64;
/// Most fields of one item.
const MAX_FIELDS: usize = 16;
/// Most tokens that an item may have written.
const MAX_NEW_TOKENS: usize = 4096;
/// Tokens of a chain of thought, where the item does not say.
pub const DEFAULT_THOUGHT_TOKENS: usize = 256;

/// What one item asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskKind {
    /// The most probable of several continuations must be the right one.
    MultipleChoice { prompt: String, choices: Vec<String>, answer: usize },
    /// The same end must be most probable after the right one of several beginnings (WinoGrande's
    /// partial evaluation, Trinh and Le 2018).
    MultipleContext { contexts: Vec<String>, continuation: String, answer: usize },
    /// The greedy continuation must be the answer.
    ExactMatch { prompt: String, answer: String },
    /// The greedy continuation should resemble the reference.
    Generate { prompt: String, reference: String },
    /// The greedy continuation reasons and then answers; only the final answer counts.
    ChainOfThought { prompt: String, answer: String, max_tokens: usize, stop: Vec<String> },
}

impl TaskKind {
    /// The metric's name in results.
    pub fn metric(&self) -> &'static str {
        match self {
            Self::MultipleChoice { .. } | Self::MultipleContext { .. } => "acc",
            Self::ExactMatch { .. } => "exact_match",
            Self::Generate { .. } => "rouge_l_f1",
            Self::ChainOfThought { .. } => "final_answer",
        }
    }

    /// The text before what is scored; of several beginnings the right one.
    pub fn prompt(&self) -> &str {
        match self {
            Self::MultipleChoice { prompt, .. }
            | Self::ExactMatch { prompt, .. }
            | Self::Generate { prompt, .. }
            | Self::ChainOfThought { prompt, .. } => prompt,
            Self::MultipleContext { contexts, answer, .. } => &contexts[*answer],
        }
    }

    /// What a right answer is.
    pub fn wanted(&self) -> &str {
        match self {
            Self::MultipleChoice { choices, answer, .. } => &choices[*answer],
            Self::MultipleContext { contexts, answer, .. } => &contexts[*answer],
            Self::ExactMatch { answer, .. } | Self::ChainOfThought { answer, .. } => answer,
            Self::Generate { reference, .. } => reference,
        }
    }

    /// Changes every text that stands before what is scored.
    pub fn map_prompts(&mut self, change: &mut dyn FnMut(&str) -> Result<String>) -> Result<()> {
        match self {
            Self::MultipleChoice { prompt, .. }
            | Self::ExactMatch { prompt, .. }
            | Self::Generate { prompt, .. }
            | Self::ChainOfThought { prompt, .. } => *prompt = change(prompt)?,
            Self::MultipleContext { contexts, .. } => {
                for context in contexts {
                    *context = change(context)?;
                }
            }
        }
        Ok(())
    }
}

/// One question with its place in the tree of tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskItem {
    /// Unique; pairs the item between models.
    pub id: String,
    /// The task, such as `facts`.
    pub task: String,
    /// The slice of the task, such as `rare`.
    pub slice: String,
    /// Items of one group are not independent of one another.
    pub group: Option<String>,
    /// What else is known of it, such as its language: results can be sliced by it.
    pub fields: BTreeMap<String, String>,
    /// What is asked.
    pub kind: TaskKind,
}

/// All items of a tasks file.
#[derive(Clone, Debug)]
pub struct TaskSet {
    /// Where it came from.
    pub path: PathBuf,
    /// BLAKE3 of the file, and of all that changed its prompts, in hex.
    pub hash: String,
    /// In file order.
    pub items: Vec<TaskItem>,
    /// True where a chat template wrote the prompts, whose special tokens are then recognized.
    pub has_special_tokens: bool,
}

/// The result of one item, kept so that models can be compared item by item.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ItemResult {
    pub id: String,
    pub task: String,
    pub slice: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// What else is known of the item, to slice by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, String>,
    /// `acc`, `exact_match`, `final_answer` or `rouge_l_f1`.
    pub metric: String,
    /// True if the answer was right; for `rouge_l_f1` only if it was equal to the reference.
    pub correct: bool,
    /// 1 or 0 as `correct`, or the F1 in `0..=1`.
    pub score: f64,
    /// Multiple choice with log-likelihoods divided by characters (acc_norm).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correct_norm: Option<bool>,
    /// The same with UTF-8 bytes (acc_bytes).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correct_bytes: Option<bool>,
    /// Brier's score of the choices' softmax: Σ (p − 1 if right else p)², from 0 to 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub brier: Option<f64>,
    /// Share of words in common with the reference, as SQuAD scores it (F1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub f1: Option<f64>,
    /// The text that was chosen or written.
    pub prediction: String,
    /// What would have been right.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub wanted: String,
    /// Tokens that were written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub token_ids: Vec<u32>,
    /// True if the model ended its text itself, where it had room to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<bool>,
    /// Share of the written 4-grams that were written before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeated_fraction: Option<f64>,
    /// Tokens of the prompt.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub prompt_tokens: u32,
    /// How often the rarest token of the right answer occurs in the right answers of all items.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rarest_token_count: u32,
    /// Log-likelihood of every choice, in nats.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scores: Vec<f64>,
    /// True if the prompt was longer than the context and lost its beginning.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl ItemResult {
    /// A result of `item` with nothing scored yet.
    pub(crate) fn of(item: &TaskItem) -> Self {
        Self {
            id: item.id.clone(),
            task: item.task.clone(),
            slice: item.slice.clone(),
            group: item.group.clone(),
            fields: item.fields.clone(),
            metric: item.kind.metric().to_owned(),
            wanted: item.kind.wanted().to_owned(),
            ..Self::default()
        }
    }

    /// The probabilities of the choices: softmax of their log-likelihoods; empty where nothing was chosen.
    pub fn choice_probabilities(&self) -> Vec<f64> {
        let largest = self.scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = self.scores.iter().map(|score| (score - largest).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / sum).collect()
    }

    /// How sure the model is of its answer: the largest probability of a choice.
    pub fn confidence(&self) -> Option<f64> {
        let largest = self.choice_probabilities().into_iter().fold(f64::NAN, f64::max);
        largest.is_finite().then_some(largest)
    }
}

/// A line as it may be written, before it is checked.
#[derive(Deserialize)]
struct RawItem {
    id: Option<String>,
    task: Option<String>,
    slice: Option<String>,
    group: Option<String>,
    r#type: Option<String>,
    prompt: Option<String>,
    choices: Option<Vec<String>>,
    contexts: Option<Vec<String>>,
    continuation: Option<String>,
    answer: Option<serde_json::Value>,
    reference: Option<String>,
    max_tokens: Option<usize>,
    stop: Option<Vec<String>>,
    #[serde(flatten)]
    others: BTreeMap<String, serde_json::Value>,
}

impl TaskSet {
    /// Reads and checks a tasks file or a folder of them: JSONL of the design, or the CSV, Parquet and JSONL of
    /// the common benchmarks.
    pub fn read(path: &Path) -> Result<Self> {
        super::task_files::read(path)
    }

    /// Checks the bytes of a tasks file; `path` is for messages.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let hash = blake3::hash(bytes).to_hex().to_string();
        let text = std::str::from_utf8(bytes).map_err(|err| {
            let line = 1 + bytes[..err.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count();
            Error::from(
                Fault::new(Stage::Tasks, "the text is not UTF-8")
                    .at(format!("line {line}"))
                    .fix("save the file as UTF-8")
                    .file(path),
            )
        })?;
        let mut items = Vec::new();
        let mut lines_of_ids = HashSet::new();
        for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let located = |fault: Fault| fault.at(format!("line {}", index + 1)).file(path);
            if items.len() == MAX_ITEMS {
                return Err(located(
                    Fault::new(Stage::Tasks, format!("the file has more than {MAX_ITEMS} items")).fix("split it"),
                )
                .into());
            }
            let item = item_of_line(line).map_err(located)?;
            if !lines_of_ids.insert(item.id.clone()) {
                return Err(located(
                    Fault::new(Stage::Tasks, format!("the id {:?} was used before", item.id))
                        .fix("give every item its own id: ids pair items between models"),
                )
                .into());
            }
            items.push(item);
        }
        if items.is_empty() {
            return Err(Fault::new(Stage::Tasks, "the file has no items")
                .fix("write one JSON object a line with id, task, slice, type and prompt")
                .file(path)
                .into());
        }
        Ok(Self { path: path.to_owned(), hash, items, has_special_tokens: false })
    }

    /// At most `count` items of every slice, evenly spread over the file; the same for every model.
    pub fn sample(&self, count: usize) -> Self {
        let mut slices: Vec<((&str, &str), Vec<usize>)> = Vec::new();
        let mut places = std::collections::HashMap::new();
        for (index, item) in self.items.iter().enumerate() {
            let key = (item.task.as_str(), item.slice.as_str());
            let place = *places.entry(key).or_insert_with(|| {
                slices.push((key, Vec::new()));
                slices.len() - 1
            });
            slices[place].1.push(index);
        }
        let mut kept: Vec<usize> = slices
            .iter()
            .flat_map(|(_, indices)| {
                let wanted = count.min(indices.len());
                (0..wanted).map(move |nth| indices[nth * indices.len() / wanted])
            })
            .collect();
        kept.sort_unstable();
        Self {
            path: self.path.clone(),
            hash: self.hash.clone(),
            items: kept.into_iter().map(|index| self.items[index].clone()).collect(),
            has_special_tokens: self.has_special_tokens,
        }
    }
}

/// A text that must be there and not be too long.
fn name(value: Option<String>, key: &str) -> std::result::Result<String, Fault> {
    let value = value.ok_or_else(|| missing(key))?;
    if value.is_empty() || value.len() > MAX_NAME_BYTES {
        return Err(Fault::new(Stage::Tasks, format!("`{key}` has {} bytes", value.len()))
            .fix(format!("write 1 to {MAX_NAME_BYTES} bytes")));
    }
    Ok(value)
}

fn missing(key: &str) -> Fault {
    Fault::new(Stage::Tasks, format!("`{key}` is missing")).fix(format!("add \"{key}\" to the object"))
}

/// An answer or a reference: not blank, not too long.
fn answer_text(value: String, key: &str) -> std::result::Result<String, Fault> {
    if value.trim().is_empty() || value.len() > MAX_ANSWER_BYTES {
        return Err(Fault::new(Stage::Tasks, format!("`{key}` has {} bytes", value.len()))
            .fix(format!("write a text of at most {MAX_ANSWER_BYTES} bytes that is not blank")));
    }
    Ok(value)
}

fn item_of_line(line: &str) -> std::result::Result<TaskItem, Fault> {
    if line.len() > MAX_LINE_BYTES {
        return Err(Fault::new(Stage::Tasks, format!("the line has {} bytes, more than {MAX_LINE_BYTES}", line.len()))
            .fix("shorten the prompt"));
    }
    let raw: RawItem = serde_json::from_str(line).map_err(|err| {
        // serde_json adds the line within the text it was given, which is always 1 here.
        let text = err.to_string();
        let cause = text.split(" at line ").next().unwrap_or(&text).to_owned();
        Fault::new(Stage::Tasks, format!("column {}: {cause}", err.column()))
            .fix("write one JSON object a line, texts as strings")
    })?;
    item_of(raw)
}

/// The index of the right one of `count` choices.
fn answer_index(answer: Option<serde_json::Value>, count: usize) -> std::result::Result<usize, Fault> {
    let answer = answer.ok_or_else(|| missing("answer"))?;
    let index = answer.as_u64().and_then(|index| usize::try_from(index).ok());
    index.filter(|&index| index < count).ok_or_else(|| {
        Fault::new(Stage::Tasks, format!("`answer` is {answer}, but there are {count} choices"))
            .fix(format!("write the right choice's index, 0 to {}", count - 1))
    })
}

/// Two to 256 texts, none of them empty.
fn choice_texts(texts: Option<Vec<String>>, key: &str) -> std::result::Result<Vec<String>, Fault> {
    let texts = texts.ok_or_else(|| missing(key))?;
    if !(2..=MAX_CHOICES).contains(&texts.len()) {
        return Err(Fault::new(Stage::Tasks, format!("`{key}` has {} entries", texts.len()))
            .fix(format!("give 2 to {MAX_CHOICES} choices")));
    }
    if texts.iter().any(String::is_empty) {
        return Err(Fault::new(Stage::Tasks, "a choice is empty").fix("give every choice a text"));
    }
    Ok(texts)
}

/// Checks what a line or a row of a table says.
fn item_of(raw: RawItem) -> std::result::Result<TaskItem, Fault> {
    let id = name(raw.id, "id")?;
    let task = name(raw.task, "task")?;
    let slice = name(raw.slice, "slice")?;
    let group = raw.group.map(|group| name(Some(group), "group")).transpose()?;
    let prompt = || raw.prompt.clone().ok_or_else(|| missing("prompt"));
    let text_answer = |answer: &Option<serde_json::Value>, kind: &str| match answer {
        Some(serde_json::Value::String(answer)) => answer_text(answer.clone(), "answer"),
        Some(_) => Err(Fault::new(Stage::Tasks, format!("`answer` of {kind} is not a string")).fix("put it in quotes")),
        None => Err(missing("answer")),
    };
    let kind = match raw.r#type.as_deref() {
        Some("multiple_choice") => {
            let prompt = prompt()?;
            let choices = choice_texts(raw.choices, "choices")?;
            let answer = answer_index(raw.answer, choices.len())?;
            TaskKind::MultipleChoice { prompt, choices, answer }
        }
        Some("multiple_context") => {
            let contexts = choice_texts(raw.contexts, "contexts")?;
            let continuation = answer_text(raw.continuation.ok_or_else(|| missing("continuation"))?, "continuation")?;
            let answer = answer_index(raw.answer, contexts.len())?;
            TaskKind::MultipleContext { contexts, continuation, answer }
        }
        Some("exact_match") => {
            TaskKind::ExactMatch { prompt: prompt()?, answer: text_answer(&raw.answer, "exact_match")? }
        }
        Some("generate") => {
            let reference = answer_text(raw.reference.ok_or_else(|| missing("reference"))?, "reference")?;
            TaskKind::Generate { prompt: prompt()?, reference }
        }
        Some("chain_of_thought") => {
            let max_tokens = raw.max_tokens.unwrap_or(DEFAULT_THOUGHT_TOKENS);
            if !(1..=MAX_NEW_TOKENS).contains(&max_tokens) {
                return Err(Fault::new(Stage::Tasks, format!("`max_tokens` is {max_tokens}"))
                    .fix(format!("write 1 to {MAX_NEW_TOKENS}")));
            }
            let mut stop = raw.stop.unwrap_or_default();
            stop.retain(|text| !text.is_empty());
            let answer = text_answer(&raw.answer, "chain_of_thought")?;
            TaskKind::ChainOfThought { prompt: prompt()?, answer, max_tokens, stop }
        }
        Some(other) => {
            return Err(Fault::new(Stage::Tasks, format!("the type {other:?} is unknown"))
                .fix("use multiple_choice, multiple_context, exact_match, generate or chain_of_thought"));
        }
        None => return Err(missing("type")),
    };
    Ok(TaskItem { id, task, slice, group, fields: fields_of(raw.others), kind })
}

/// Short values that results can be sliced by; longer texts, lists and objects are notes.
pub(super) fn fields_of(others: BTreeMap<String, serde_json::Value>) -> BTreeMap<String, String> {
    let short = others.into_iter().filter_map(|(key, value)| {
        let text = match value {
            serde_json::Value::String(text) => text,
            serde_json::Value::Number(number) => number.to_string(),
            serde_json::Value::Bool(truth) => truth.to_string(),
            _ => return None,
        };
        (!text.is_empty() && text.len() <= MAX_FIELD_BYTES && key.len() <= MAX_FIELD_BYTES).then_some((key, text))
    });
    short.take(MAX_FIELDS).collect()
}

/// Scores all items with packed batches and holds every result; results come in the items' order.
///
/// For the few items that a search asks about; an evaluation holds [`super::Items`] instead.
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
    score_remaining(model, codec, tasks, &none, Lot::ALL, &mut keep, progress)?;
    let mut results: Vec<ItemResult> = results.into_iter().flatten().collect();
    for (result, count) in results.iter_mut().zip(rarest_counts(model, codec, tasks, progress)?) {
        result.rarest_token_count = count;
    }
    Ok(results)
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
        let items: Vec<&TaskItem> = indices.iter().map(|&index| &tasks.items[index]).collect();
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
    /// Everything at once.
    pub const ALL: Self = Self { items: usize::MAX, bytes: usize::MAX };
    /// Seconds of work: what a crash may cost. 32 KiB of prompts are some thousand tokens, which is minutes of the
    /// largest models.
    pub const KEPT: Self = Self { items: 256, bytes: 32 << 10 };
    /// What is scored at once where nothing is kept: enough that the last batch of each lot, which is not full, costs
    /// nothing, and few enough that results do not pile up.
    pub const HELD: Self = Self { items: 8192, bytes: 8 << 20 };
}

/// Cuts the items with these indices into lots of one item at least.
fn lots<'a>(items: &[TaskItem], mut indices: &'a [usize], lot: Lot) -> Vec<&'a [usize]> {
    let mut lots = Vec::new();
    while !indices.is_empty() {
        let mut bytes = 0_usize;
        let fits = |index: &&usize| {
            bytes = bytes.saturating_add(items[**index].kind.prompt().len());
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

/// Answers that are encoded at once.
const ENCODED: usize = 4096;

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
        for items in tasks.items.chunks(ENCODED) {
            progress.check()?;
            let encoded: Vec<Vec<u32>> =
                items.par_iter().map(|item| codec.encode(item.kind.wanted())).collect::<Result<_>>()?;
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

#[cfg(test)]
mod tests {
    use super::*;

    const CHOICE: &str =
        r#"{"id":"a","task":"t","slice":"s","type":"multiple_choice","prompt":"p","choices":["x","y"],"answer":1}"#;

    fn parse(text: &str) -> Result<TaskSet> {
        TaskSet::parse(text.as_bytes(), Path::new("tasks.jsonl"))
    }

    #[test]
    fn the_demo_tasks_are_all_understood() {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("assets/demo/tasks.jsonl");
        let tasks = TaskSet::read(&path).expect("demo tasks");
        assert_eq!(tasks.items.len(), 2500);
        let few = tasks.sample(3);
        assert_eq!(few.items.len(), 22 * 3);
        assert_eq!(few.items[0].id, tasks.items[0].id);
    }

    #[test]
    fn blank_lines_and_extra_keys_are_allowed() {
        let text = format!("\u{feff}{CHOICE}\n\n{}\n", CHOICE.replace("\"a\"", "\"b\",\"note\":[1]"));
        assert_eq!(parse(&text).expect("two items").items.len(), 2);
    }

    #[test]
    fn every_error_names_its_line_and_what_to_do() {
        let bad = [
            (CHOICE.to_owned(), "was used before"),
            ("{".to_owned(), "column"),
            ("[]".to_owned(), "column"),
            (CHOICE.replace("\"a\"", "\"b\"").replace("\"answer\":1", "\"answer\":2"), "there are 2 choices"),
            (CHOICE.replace("\"a\"", "\"b\"").replace("\"answer\":1", "\"answer\":-1"), "there are 2 choices"),
            (CHOICE.replace("\"a\"", "\"b\"").replace(",\"y\"", ""), "1 entries"),
            (CHOICE.replace("\"a\"", "\"b\"").replace("multiple_choice", "essay"), "unknown"),
            (CHOICE.replace("\"a\"", "\"b\"").replace("\"prompt\":\"p\",", ""), "`prompt` is missing"),
            (CHOICE.replace("\"a\"", "\"\""), "`id` has 0 bytes"),
            (r#"{"id":"b","task":"t","slice":"s","type":"exact_match","prompt":"","answer":7}"#.into(), "not a string"),
            (r#"{"id":"b","task":"t","slice":"s","type":"exact_match","prompt":"","answer":" "}"#.into(), "not blank"),
            (r#"{"id":"b","task":"t","slice":"s","type":"generate","prompt":""}"#.into(), "`reference` is missing"),
        ];
        for (line, expected) in bad {
            let text = parse(&format!("{CHOICE}\n\n{line}\n")).expect_err(&line).to_string();
            assert!(text.contains("line 3") && text.contains(expected), "{line}: {text}");
        }
    }

    #[test]
    fn lots_are_bounded_by_items_and_by_text_and_leave_nothing_out() {
        let long = "p".repeat(Lot::KEPT.bytes / 3);
        let lines: Vec<String> = (0..20)
            .map(|i| CHOICE.replace("\"a\"", &format!("\"{i}\"")).replace("\"p\"", &format!("\"{long}\"")))
            .collect();
        let items = parse(&lines.join("\n")).expect("items").items;
        let indices: Vec<usize> = (0..20).collect();
        let sizes = |lot| lots(&items, &indices, lot).iter().map(|lot| lot.len()).collect::<Vec<_>>();
        assert_eq!(sizes(Lot::KEPT), [3, 3, 3, 3, 3, 3, 2]);
        assert_eq!(sizes(Lot { items: 2, ..Lot::KEPT }), [2; 10]);
        assert_eq!(sizes(Lot { items: 7, bytes: 1 }), [1; 20]);
        assert_eq!(sizes(Lot::ALL), [20]);
        assert_eq!(lots(&items, &indices, Lot::KEPT).concat(), indices);
    }

    #[test]
    fn text_that_is_not_utf8_is_located() {
        let fault = TaskSet::parse(b"\n\xff", Path::new("t")).expect_err("not UTF-8").to_string();
        assert!(fault.contains("line 2"), "{fault}");
        assert!(parse("\n").is_err());
    }
}
