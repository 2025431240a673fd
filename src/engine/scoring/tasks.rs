//! Task items from `tasks.jsonl`, and their scoring in file order.
//!
//! One JSON object a line: `id` (unique; pairs items between models), `task`, `slice`, optional
//! `group` (items that share a passage or a template), `type` and its own keys. Keys that are not
//! named here are ignored, so that a file may carry notes.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{TextCodec, TokenModel, completion, multiple_choice};
use crate::error::{Error, Fault, Result, Stage};
use crate::progress::{Phase, Progress, Unit};

/// Largest tasks file.
const MAX_FILE_BYTES: u64 = 512 << 20;
/// Longest line.
const MAX_LINE_BYTES: usize = 4 << 20;
/// Most items.
const MAX_ITEMS: usize = 1_000_000;
/// Most choices of one item.
const MAX_CHOICES: usize = 256;
/// Longest reference or answer, since as many tokens are generated.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// Longest id, task, slice or group.
const MAX_NAME_BYTES: usize = 1024;

/// What one item asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskKind {
    /// The most probable of several continuations must be the right one.
    MultipleChoice { prompt: String, choices: Vec<String>, answer: usize },
    /// The greedy continuation must be the answer.
    ExactMatch { prompt: String, answer: String },
    /// The greedy continuation should resemble the reference.
    Generate { prompt: String, reference: String },
}

impl TaskKind {
    /// The metric's name in results.
    pub fn metric(&self) -> &'static str {
        match self {
            Self::MultipleChoice { .. } => "acc",
            Self::ExactMatch { .. } => "exact_match",
            Self::Generate { .. } => "rouge_l_f1",
        }
    }

    /// The text before what is scored.
    pub fn prompt(&self) -> &str {
        match self {
            Self::MultipleChoice { prompt, .. } | Self::ExactMatch { prompt, .. } | Self::Generate { prompt, .. } => {
                prompt
            }
        }
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
    /// What is asked.
    pub kind: TaskKind,
}

/// All items of a tasks file.
#[derive(Clone, Debug)]
pub struct TaskSet {
    /// Where it came from.
    pub path: PathBuf,
    /// BLAKE3 of the file, in hex.
    pub hash: String,
    /// In file order.
    pub items: Vec<TaskItem>,
}

/// The result of one item, kept so that models can be compared item by item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ItemResult {
    pub id: String,
    pub task: String,
    pub slice: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// `acc`, `exact_match` or `rouge_l_f1`.
    pub metric: String,
    /// True if the answer was right; for `rouge_l_f1` only if it was equal to the reference.
    pub correct: bool,
    /// 1 or 0 as `correct`, or the F1 in `0..=1`.
    pub score: f64,
    /// Multiple choice with log-likelihoods divided by characters (acc_norm).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correct_norm: Option<bool>,
    /// The text that was chosen or written.
    pub prediction: String,
    /// Log-likelihood of every choice, in nats.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scores: Vec<f64>,
    /// True if the prompt was longer than the context and lost its beginning.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

impl ItemResult {
    /// A result of `item` with nothing scored yet.
    pub(crate) fn of(item: &TaskItem) -> Self {
        Self {
            id: item.id.clone(),
            task: item.task.clone(),
            slice: item.slice.clone(),
            group: item.group.clone(),
            metric: item.kind.metric().to_owned(),
            correct: false,
            score: 0.0,
            correct_norm: None,
            prediction: String::new(),
            scores: Vec::new(),
            truncated: false,
        }
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
    answer: Option<serde_json::Value>,
    reference: Option<String>,
}

impl TaskSet {
    /// Reads and checks a tasks file.
    pub fn read(path: &Path) -> Result<Self> {
        let length = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
        if length > MAX_FILE_BYTES {
            return Err(Fault::new(Stage::Tasks, format!("the file has {length} bytes, more than {MAX_FILE_BYTES}"))
                .fix("split it, or score a sample of its items")
                .file(path)
                .into());
        }
        Self::parse(&std::fs::read(path).map_err(Error::io("read", path))?, path)
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
        Ok(Self { path: path.to_owned(), hash, items })
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
    let id = name(raw.id, "id")?;
    let task = name(raw.task, "task")?;
    let slice = name(raw.slice, "slice")?;
    let group = raw.group.map(|group| name(Some(group), "group")).transpose()?;
    let prompt = raw.prompt.ok_or_else(|| missing("prompt"))?;
    let kind = match raw.r#type.as_deref() {
        Some("multiple_choice") => {
            let choices = raw.choices.ok_or_else(|| missing("choices"))?;
            if !(2..=MAX_CHOICES).contains(&choices.len()) {
                return Err(Fault::new(Stage::Tasks, format!("`choices` has {} entries", choices.len()))
                    .fix(format!("give 2 to {MAX_CHOICES} choices")));
            }
            if choices.iter().any(String::is_empty) {
                return Err(Fault::new(Stage::Tasks, "a choice is empty").fix("give every choice a text"));
            }
            let answer = raw.answer.ok_or_else(|| missing("answer"))?;
            let index = answer.as_u64().and_then(|index| usize::try_from(index).ok());
            match index.filter(|&index| index < choices.len()) {
                Some(answer) => TaskKind::MultipleChoice { prompt, choices, answer },
                None => {
                    return Err(Fault::new(
                        Stage::Tasks,
                        format!("`answer` is {answer}, but there are {} choices", choices.len()),
                    )
                    .fix(format!("write the right choice's index, 0 to {}", choices.len() - 1)));
                }
            }
        }
        Some("exact_match") => match raw.answer {
            Some(serde_json::Value::String(answer)) => {
                TaskKind::ExactMatch { prompt, answer: answer_text(answer, "answer")? }
            }
            Some(_) => {
                return Err(Fault::new(Stage::Tasks, "`answer` of exact_match is not a string").fix("put it in quotes"));
            }
            None => return Err(missing("answer")),
        },
        Some("generate") => {
            let reference = raw.reference.ok_or_else(|| missing("reference"))?;
            TaskKind::Generate { prompt, reference: answer_text(reference, "reference")? }
        }
        Some(other) => {
            return Err(Fault::new(Stage::Tasks, format!("the type {other:?} is unknown"))
                .fix("use multiple_choice, exact_match or generate"));
        }
        None => return Err(missing("type")),
    };
    Ok(TaskItem { id, task, slice, group, kind })
}

/// Scores all items with packed batches; results come in the items' order.
pub fn score_tasks(
    model: &dyn TokenModel,
    codec: &dyn TextCodec,
    tasks: &TaskSet,
    progress: &Progress,
) -> Result<Vec<ItemResult>> {
    progress.begin(Phase::ScoringTasks, tasks.items.len() as u64, Unit::Items);
    let mut choosing = Vec::new();
    let mut writing = Vec::new();
    for (index, item) in tasks.items.iter().enumerate() {
        match item.kind {
            TaskKind::MultipleChoice { .. } => choosing.push(index),
            TaskKind::ExactMatch { .. } | TaskKind::Generate { .. } => writing.push(index),
        }
    }
    let mut results: Vec<Option<ItemResult>> = vec![None; tasks.items.len()];
    let chosen: Vec<&TaskItem> = choosing.iter().map(|&index| &tasks.items[index]).collect();
    for (index, result) in choosing.into_iter().zip(multiple_choice::score(model, codec, &chosen, progress)?) {
        results[index] = Some(result);
    }
    let written: Vec<&TaskItem> = writing.iter().map(|&index| &tasks.items[index]).collect();
    for (index, result) in writing.into_iter().zip(completion::score(model, codec, &written, progress)?) {
        results[index] = Some(result);
    }
    Ok(results.into_iter().flatten().collect())
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
    fn text_that_is_not_utf8_is_located() {
        let fault = TaskSet::parse(b"\n\xff", Path::new("t")).expect_err("not UTF-8").to_string();
        assert!(fault.contains("line 2"), "{fault}");
        assert!(parse("\n").is_err());
    }
}
