//! Rows of the common benchmarks as task items: which columns a benchmark has, and how its prompt is written.
//!
//! A layout is recognized by its columns, as the data sets are published on the Hugging Face hub; prompts are
//! written as lm-evaluation-harness's default task of that name writes them, so that figures compare.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::task_lines::fields_of;
use super::tasks::{DEFAULT_THOUGHT_TOKENS, TaskItem, TaskKind};
use crate::error::{Fault, Stage};

/// A row of a table, by column.
pub(super) type Row = Map<String, Value>;

type Outcome<T> = std::result::Result<T, Fault>;

/// A benchmark that is known by its columns.
struct Layout {
    name: &'static str,
    columns: &'static [&'static str],
    read: fn(&Row) -> Outcome<(String, TaskKind)>,
}

/// The more columns, the earlier: `question` and `answer` alone are many things.
const LAYOUTS: [Layout; 8] = [
    Layout { name: "hellaswag", columns: &["ctx", "endings", "label"], read: hellaswag },
    Layout { name: "piqa", columns: &["goal", "sol1", "sol2", "label"], read: piqa },
    Layout { name: "winogrande", columns: &["sentence", "option1", "option2", "answer"], read: winogrande },
    Layout { name: "arc", columns: &["question", "choices", "answerKey"], read: arc },
    Layout { name: "mmlu", columns: &["question", "choices", "answer"], read: mmlu },
    Layout { name: "mmlu", columns: &["question", "A", "B", "C", "D", "answer"], read: mmlu_letters },
    Layout { name: "multiple_choice", columns: &["prompt", "choices", "answer"], read: plain_choice },
    Layout { name: "gsm8k", columns: &["question", "answer"], read: gsm8k },
];

/// Columns that name an item's slice, the first that is there.
const SLICE_COLUMNS: [&str; 8] =
    ["slice", "subject", "activity_label", "category", "language", "source_id", "level", "type"];

fn fault(cause: impl Into<String>) -> Fault {
    Fault::new(Stage::Tasks, cause).fix("see that the row has the columns of its benchmark")
}

fn text(row: &Row, column: &str) -> Outcome<String> {
    match row.get(column) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Number(number)) => Ok(number.to_string()),
        _ => Err(fault(format!("column `{column}` has no text"))),
    }
}

fn texts(value: Option<&Value>, column: &str) -> Outcome<Vec<String>> {
    let parsed;
    // In CSV a list is written as JSON.
    let value = match value {
        Some(Value::String(json)) => {
            parsed = serde_json::from_str::<Value>(json).ok();
            parsed.as_ref()
        }
        other => other,
    };
    let list = value.and_then(Value::as_array).ok_or_else(|| fault(format!("column `{column}` has no list")))?;
    let strings: Option<Vec<String>> = list.iter().map(|entry| entry.as_str().map(str::to_owned)).collect();
    strings.filter(|strings| strings.len() >= 2).ok_or_else(|| fault(format!("column `{column}` has no two texts")))
}

/// A label as an index: 0-based number, or a letter.
fn index(row: &Row, column: &str, count: usize) -> Outcome<usize> {
    let label = text(row, column)?;
    let label = label.trim();
    let found = match label.as_bytes() {
        [letter @ b'A'..=b'Z'] => Some(usize::from(letter - b'A')),
        _ => label.parse().ok(),
    };
    found.filter(|&index| index < count).ok_or_else(|| {
        fault(format!("column `{column}` is {label:?}, but there are {count} choices"))
            .fix("labels of test splits are often kept back: use the validation split")
    })
}

fn spaced(choices: Vec<String>) -> Vec<String> {
    choices.into_iter().map(|choice| format!(" {}", choice.trim())).collect()
}

fn choice(prompt: String, choices: Vec<String>, answer: usize) -> TaskKind {
    TaskKind::MultipleChoice { prompt, choices, answer }
}

/// The harness's clean-up of WikiHow texts.
fn without_brackets(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut clean = String::with_capacity(text.len());
    let mut depth = 0_usize;
    for letter in text.chars() {
        match letter {
            '[' => depth += 1,
            ']' if depth > 0 => depth -= 1,
            _ if depth == 0 => clean.push(letter),
            _ => {}
        }
    }
    clean.replace("  ", " ")
}

fn hellaswag(row: &Row) -> Outcome<(String, TaskKind)> {
    let (context, end) = match (text(row, "ctx_a"), text(row, "ctx_b")) {
        (Ok(a), Ok(b)) => (a, b),
        _ => (text(row, "ctx")?, String::new()),
    };
    // As Python's capitalize: the first letter large, the others small.
    let mut letters = end.chars();
    let end = letters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().collect::<String>() + &letters.as_str().to_lowercase());
    let joined = format!("{context} {end}");
    let activity = text(row, "activity_label").unwrap_or_default();
    let prompt = if activity.is_empty() {
        without_brackets(&joined)
    } else {
        without_brackets(&format!("{activity}: {joined}"))
    };
    let endings = texts(row.get("endings"), "endings")?;
    let answer = index(row, "label", endings.len())?;
    Ok((activity, choice(prompt, spaced(endings.iter().map(|ending| without_brackets(ending)).collect()), answer)))
}

fn piqa(row: &Row) -> Outcome<(String, TaskKind)> {
    let prompt = format!("Question: {}\nAnswer:", text(row, "goal")?);
    let choices = vec![text(row, "sol1")?, text(row, "sol2")?];
    Ok((String::new(), choice(prompt, spaced(choices), index(row, "label", 2)?)))
}

fn winogrande(row: &Row) -> Outcome<(String, TaskKind)> {
    let sentence = text(row, "sentence")?;
    let (before, after) = sentence.split_once('_').ok_or_else(|| fault("the sentence has no `_` to fill"))?;
    let contexts = ["option1", "option2"].map(|column| Ok(format!("{before}{}", text(row, column)?)));
    let contexts = contexts.into_iter().collect::<Outcome<Vec<String>>>()?;
    let answer = match text(row, "answer")?.trim() {
        "1" => 0,
        "2" => 1,
        other => return Err(fault(format!("column `answer` is {other:?}, neither 1 nor 2"))),
    };
    Ok((String::new(), TaskKind::MultipleContext { contexts, continuation: format!(" {}", after.trim()), answer }))
}

fn arc(row: &Row) -> Outcome<(String, TaskKind)> {
    let parsed: Value;
    let choices = match row.get("choices") {
        Some(Value::String(json)) => {
            parsed = serde_json::from_str(json).map_err(|_| fault("column `choices` is not JSON"))?;
            &parsed
        }
        Some(other) => other,
        None => return Err(fault("column `choices` is missing")),
    };
    let labels = texts(choices.get("label"), "choices.label")?;
    let answers = texts(choices.get("text"), "choices.text")?;
    let key = text(row, "answerKey")?;
    let answer = labels
        .iter()
        .position(|label| *label == key)
        .filter(|&place| place < answers.len())
        .ok_or_else(|| fault(format!("column `answerKey` is {key:?}, which no choice has")))?;
    let prompt = format!("Question: {}\nAnswer:", text(row, "question")?);
    Ok((String::new(), choice(prompt, spaced(answers), answer)))
}

/// How MMLU's description of a subject begins and ends.
const DESCRIPTION: &str = "The following are multiple choice questions (with answers) about ";
const DESCRIPTION_END: &str = ".\n\n";

/// A prompt as the description of its task, which stands once before all examples, and the rest.
pub(super) fn described(prompt: &str) -> (&str, &str) {
    let length = prompt
        .strip_prefix(DESCRIPTION)
        .and_then(|rest| Some(DESCRIPTION.len() + rest.find(DESCRIPTION_END)? + DESCRIPTION_END.len()));
    prompt.split_at(length.unwrap_or(0))
}

/// Question, lettered choices, and the letters as what is scored.
fn lettered(row: &Row, choices: &[String], answer: usize) -> Outcome<(String, TaskKind)> {
    let subject = text(row, "subject").unwrap_or_default();
    let letters: Vec<String> = (0..choices.len()).map(|place| char::from(b'A' + place as u8).to_string()).collect();
    let lines: Vec<String> =
        letters.iter().zip(choices).map(|(letter, choice)| format!("{letter}. {}", choice.trim())).collect();
    let header = if subject.is_empty() {
        String::new()
    } else {
        format!("{DESCRIPTION}{}{DESCRIPTION_END}", subject.replace('_', " "))
    };
    let prompt = format!("{header}{}\n{}\nAnswer:", text(row, "question")?.trim(), lines.join("\n"));
    Ok((subject, choice(prompt, spaced(letters), answer)))
}

fn mmlu(row: &Row) -> Outcome<(String, TaskKind)> {
    let choices = texts(row.get("choices"), "choices")?;
    if choices.len() > 26 {
        return Err(fault(format!("{} choices have no letters", choices.len())));
    }
    lettered(row, &choices, index(row, "answer", choices.len())?)
}

fn mmlu_letters(row: &Row) -> Outcome<(String, TaskKind)> {
    let choices = ["A", "B", "C", "D"].map(|column| text(row, column)).into_iter().collect::<Outcome<Vec<String>>>()?;
    lettered(row, &choices, index(row, "answer", 4)?)
}

fn plain_choice(row: &Row) -> Outcome<(String, TaskKind)> {
    let choices = texts(row.get("choices"), "choices")?;
    let answer = index(row, "answer", choices.len())?;
    Ok((String::new(), choice(text(row, "prompt")?, choices, answer)))
}

fn gsm8k(row: &Row) -> Outcome<(String, TaskKind)> {
    let kind = TaskKind::ChainOfThought {
        prompt: format!("Question: {}\nAnswer:", text(row, "question")?),
        answer: text(row, "answer")?,
        max_tokens: DEFAULT_THOUGHT_TOKENS,
        stop: vec!["Question:".to_owned()],
    };
    Ok((String::new(), kind))
}

/// The task item of a row; `task` names its file, `number` its place in it.
pub(super) fn item_of_row(row: Row, task: &str, number: usize) -> Outcome<TaskItem> {
    let layout = LAYOUTS
        .iter()
        .find(|layout| layout.columns.iter().all(|column| row.contains_key(*column)))
        .ok_or_else(|| {
            let columns: Vec<&str> = row.keys().map(String::as_str).collect();
            Fault::new(Stage::Tasks, format!("the columns {} are of no known benchmark", columns.join(", "))).fix(
                "give the columns of MMLU, HellaSwag, ARC, PIQA, WinoGrande or GSM8K, or prompt, choices and answer",
            )
        })?;
    let (own_slice, kind) = (layout.read)(&row)?;
    let named = SLICE_COLUMNS.iter().find_map(|column| row.get(*column)?.as_str().filter(|text| !text.is_empty()));
    let slice = if own_slice.is_empty() { named.unwrap_or("all").to_owned() } else { own_slice };
    let id = ["id", "ind", "question_id"]
        .iter()
        .find_map(|column| text(&row, column).ok())
        .map_or_else(|| format!("{task}-{number}"), |id| format!("{task}-{id}-{number}"));
    let cut = |text: String| text.chars().take(200).collect::<String>();
    // Columns that the prompt is made of are not fields to slice by.
    let others: BTreeMap<String, Value> = row
        .into_iter()
        .filter(|(column, _)| {
            !layout.columns.contains(&column.as_str()) && !["ctx_a", "ctx_b", "id", "ind"].contains(&column.as_str())
        })
        .collect();
    Ok(TaskItem {
        id: cut(id),
        task: if task.is_empty() { layout.name.to_owned() } else { cut(task.to_owned()) },
        slice: cut(slice),
        group: None,
        fields: fields_of(others),
        kind,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(row: Value) -> TaskItem {
        let Value::Object(row) = row else { panic!("an object") };
        item_of_row(row, "bench", 3).expect("an item")
    }

    #[test]
    fn every_benchmark_is_known_by_its_columns() {
        let mmlu = item(serde_json::json!({"question": "1+1?", "subject": "abstract_algebra",
            "choices": ["1", "2", "3", "4"], "answer": 1}));
        assert_eq!(mmlu.slice, "abstract_algebra");
        assert_eq!(
            mmlu.kind.prompt(),
            "The following are multiple choice questions (with answers) about abstract algebra.\n\n1+1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
        );
        assert_eq!(mmlu.kind.wanted(), " B");

        let swag = item(serde_json::json!({"ind": 24, "activity_label": "Roof shingle removal",
            "ctx_a": "A man is sitting on a roof.", "ctx_b": "he", "ctx": "A man is sitting on a roof. he",
            "endings": ["is using wrap.", "[substeps] is ripping tiles.", "c", "d"], "label": "1"}));
        assert_eq!(swag.kind.prompt(), "Roof shingle removal: A man is sitting on a roof. He");
        assert_eq!((swag.kind.wanted(), swag.id.as_str()), (" is ripping tiles.", "bench-24-3"));

        let arc = item(serde_json::json!({"id": "M_7", "question": "Why?", "answerKey": "2",
            "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}}));
        assert_eq!((arc.kind.prompt(), arc.kind.wanted()), ("Question: Why?\nAnswer:", " y"));

        let piqa = item(serde_json::json!({"goal": "Dry it", "sol1": "sun", "sol2": "rain", "label": 0}));
        assert_eq!(piqa.kind.wanted(), " sun");

        let wino = item(serde_json::json!({"sentence": "Ann paid Bo because _ was owed.", "option1": "Ann",
            "option2": "Bo", "answer": "2"}));
        assert_eq!(
            wino.kind,
            TaskKind::MultipleContext {
                contexts: vec!["Ann paid Bo because Ann".into(), "Ann paid Bo because Bo".into()],
                continuation: " was owed.".into(),
                answer: 1
            }
        );

        let gsm = item(serde_json::json!({"question": "How many?", "answer": "2+3=5\n#### 5", "language": "en"}));
        assert_eq!(
            (gsm.kind.metric(), gsm.slice.as_str(), gsm.fields["language"].as_str()),
            ("final_answer", "en", "en")
        );
    }

    #[test]
    fn rows_that_fit_nothing_or_hide_their_label_are_refused() {
        for (row, expected) in [
            (serde_json::json!({"text": "x"}), "no known benchmark"),
            (serde_json::json!({"goal": "g", "sol1": "a", "sol2": "b", "label": -1}), "2 choices"),
            (serde_json::json!({"sentence": "none", "option1": "a", "option2": "b", "answer": "1"}), "no `_`"),
            (serde_json::json!({"question": "q", "choices": ["a"], "answer": 0}), "no two texts"),
        ] {
            let Value::Object(row) = row else { panic!("an object") };
            let error = item_of_row(row, "t", 0).expect_err("refused").to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
