//! One line of `tasks.jsonl` as an item, with everything checked that it says.
//!
//! One JSON object a line: `id` (unique; pairs items between models), `task`, `slice`, optional
//! `group` (items that share a passage or a template), `type` and its own keys. Other keys with a short
//! text, a number or a yes or no are fields that results can be sliced by; longer ones are notes.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::tasks::{DEFAULT_THOUGHT_TOKENS, TaskItem, TaskKind};
use crate::error::{Fault, Stage};

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

/// The item that a line says.
pub(super) fn item_of_line(line: &str) -> std::result::Result<TaskItem, Fault> {
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
