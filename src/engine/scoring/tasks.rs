//! Task items and their results: what is asked, and what a model made of it.
//!
//! An item has an `id` (unique; pairs items between models), `task`, `slice`, optional `group` (items that share a
//! passage or a template) and what it asks. Files come in through `task_files.rs`, items are held by
//! `task_items.rs` and scored by `lots.rs`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::TaskItems;
use crate::error::Result;

/// Tokens of a chain of thought, where the item does not say.
pub const DEFAULT_THOUGHT_TOKENS: usize = 256;

/// What one item asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// All items of a tasks file; a copy of it shares them.
#[derive(Clone, Debug)]
pub struct TaskSet {
    /// Where it came from.
    pub path: PathBuf,
    /// BLAKE3 of the file, and of all that changed its prompts, in hex.
    pub hash: String,
    /// In file order.
    pub items: TaskItems,
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

impl TaskSet {
    /// Reads and checks a tasks file or a folder of them: JSONL of the design, or the CSV, Parquet and JSONL of
    /// the common benchmarks.
    ///
    /// Files are read once from their beginning to their end, however large; memory holds a line of them.
    ///
    /// # Errors
    /// A file that cannot be read, and the first of its lines or rows that is no item, with its place.
    pub fn read(path: &Path) -> Result<Self> {
        super::task_files::read(path)
    }

    /// Checks the bytes of a tasks file; `path` is for messages.
    ///
    /// # Errors
    /// As for [`Self::read`].
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        super::task_files::parse(bytes, path)
    }

    /// At most `count` items of every slice, evenly spread over the file; the same for every model.
    pub fn sample(&self, count: usize) -> Self {
        Self { items: self.items.sample(count), ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_tasks_are_all_understood() {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("assets/demo/tasks.jsonl");
        let tasks = TaskSet::read(&path).expect("demo tasks");
        assert_eq!(tasks.items.len(), 2500);
        let few = tasks.sample(3);
        assert_eq!(few.items.len(), 22 * 3);
        assert_eq!(few.items.get(0).expect("an item"), tasks.items.get(0).expect("an item"));
    }
}
