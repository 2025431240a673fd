//! What was measured of a model: text distances, tasks by slice, size and speed.
//!
//! The noun is [`Evaluation`], which is also the document that `lapidary evaluate` writes: keys are
//! stable, units are in their names, and `baseline` holds the same for the model it was measured
//! against. The entry is [`evaluate`].

mod journal;
mod reliability;
mod run;

use std::io::BufReader;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use reliability::{Reliability, ReliabilityBin, Written, reliability, written};
pub use run::{Baseline, EvaluationOptions, Subject, evaluate, key};

use super::error::{Error, Fault, Result, Stage};
use super::scoring::energy::EnergyUse;
use super::scoring::text_stats::mean_and_stderr;
use super::scoring::{Conditions, Item, Items, SeedAgreement, SpeedResult, TextResult};

/// Version of the document; a higher one is refused.
pub const EVALUATION_VERSION: u32 = 1;

/// Largest evaluation document.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// Which model was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRef {
    /// A short name for a title.
    pub name: String,
    pub path: PathBuf,
    /// Content hash of its files, or a checkpoint's fingerprint.
    pub id: String,
}

/// Accuracy on one slice of one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SliceResult {
    pub task: String,
    pub slice: String,
    /// `acc`, `exact_match`, `final_answer` or `rouge_l_f1`.
    pub metric: String,
    /// Items.
    pub n: usize,
    /// Mean score of the items, as a fraction.
    pub accuracy: f64,
    /// Sample standard deviation over √n.
    pub accuracy_stderr: f64,
    /// Multiple choice normalized by characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acc_norm: Option<f64>,
    /// Multiple choice normalized by UTF-8 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acc_bytes: Option<f64>,
    /// Brier's score of multiple choice, 0 to 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub brier: Option<f64>,
    /// Words in common with the reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub f1: Option<f64>,
    /// Items whose prompt did not fit the context.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub truncated: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// Size on disk and in memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SizeResult {
    /// All files on disk.
    pub file_bytes: u64,
    /// Stored bits of all tensors over their weights, scales included.
    pub bits_per_weight: f64,
    /// Weights in memory when ready to run.
    pub resident_bytes: u64,
    pub weight_count: u64,
    /// What the cache of keys and values grows by with every token, in f32 as it is held here; 0 where unknown.
    #[serde(default)]
    pub kv_bytes_per_token: u64,
}

/// What was measured of one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Version of this document.
    pub version: u32,
    /// Version of the program that measured.
    pub engine: String,
    /// Same key, same results: never computed twice.
    pub key: String,
    pub model: ModelRef,
    /// Measured on the file's own bytes with the kernels that a user runs.
    pub label: String,
    /// What computed, such as `cpu`.
    pub device: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_hash: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks_hash: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextResult>,
    /// Tokens of the text read a second, logits and sums included; none where the baseline was read along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_tokens_per_second: Option<f64>,
    /// By task and slice, in the order of the tasks file.
    #[serde(default)]
    pub slices: Vec<SliceResult>,
    /// How far confidence and accuracy of the multiple choices agree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reliability: Option<Reliability>,
    /// Ends and loops of the written texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<Written>,
    /// Agreement with itself over seeds, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seeds: Option<SeedAgreement>,
    pub size: SizeResult,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<SpeedResult>,
    /// The machine that measured, and its load while speed was measured; none in documents of before it was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditions: Option<Conditions>,
    /// What scoring the items took, where a counter could be read or a power was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy: Option<EnergyUse>,
    /// Every item, in the order of the tasks file; texts stay on disk.
    #[serde(default)]
    pub items: Items,
    /// The same for the baseline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Box<Evaluation>>,
}

impl Evaluation {
    /// Mean score of all items, as a fraction.
    pub fn accuracy(&self) -> Option<f64> {
        let count = self.items.len();
        (count > 0).then(|| self.items.iter().map(|item| item.score()).sum::<f64>() / count as f64)
    }

    /// Reads a document, of which nothing is taken on trust. Its items go from the file to [`Items`] one by one.
    pub fn read(path: &Path) -> Result<Self> {
        let length = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
        if length > MAX_FILE_BYTES {
            return Err(Fault::new(Stage::Evaluation, format!("the document has {length} bytes"))
                .fix("give a file that `lapidary evaluate` wrote")
                .file(path)
                .into());
        }
        let open = || std::fs::File::open(path).map(BufReader::new).map_err(Error::io("read", path));
        let refuse = |err: serde_json::Error| Self::refuse(&err, path);
        Self::check_version(&serde_json::from_reader(open()?).map_err(refuse)?, path)?;
        Ok(serde_json::from_reader(open()?).map_err(refuse)?)
    }

    /// Reads a document from memory; `path` is for messages.
    pub fn parse(json: &[u8], path: &Path) -> Result<Self> {
        let refuse = |err: serde_json::Error| Self::refuse(&err, path);
        Self::check_version(&serde_json::from_slice(json).map_err(refuse)?, path)?;
        Ok(serde_json::from_slice(json).map_err(refuse)?)
    }

    fn refuse(err: &serde_json::Error, path: &Path) -> Fault {
        Fault::new(Stage::Evaluation, format!("not an evaluation document: {err}"))
            .fix("give a file that `lapidary evaluate` wrote")
            .file(path)
    }

    fn check_version(header: &Header, path: &Path) -> Result<()> {
        if header.version > EVALUATION_VERSION {
            return Err(Fault::new(
                Stage::Evaluation,
                format!("the document has version {}, this program knows {EVALUATION_VERSION}", header.version),
            )
            .fix("use a newer Lapidary")
            .file(path)
            .into());
        }
        Ok(())
    }
}

/// What is read of a document before the rest.
#[derive(Deserialize)]
struct Header {
    version: u32,
}

/// Accuracy of every task, slice and metric, in order of first appearance.
pub fn slices(items: &Items) -> Vec<SliceResult> {
    group(items)
        .into_iter()
        .map(|members| {
            let first = members[0];
            let (accuracy, accuracy_stderr) = mean_and_stderr(members.iter().map(|item| item.score()));
            let mean = |value: &dyn Fn(&Item<'_>) -> Option<f64>| {
                let (mut sum, mut count) = (0.0, 0_usize);
                for value in members.iter().filter_map(value) {
                    sum += value;
                    count += 1;
                }
                (count > 0).then(|| sum / count as f64)
            };
            let share = |right: Option<bool>| right.map(|right| f64::from(u8::from(right)));
            SliceResult {
                task: first.task().to_owned(),
                slice: first.slice().to_owned(),
                metric: first.metric().to_owned(),
                n: members.len(),
                accuracy,
                accuracy_stderr,
                acc_norm: mean(&|item| share(item.is_correct_norm())),
                acc_bytes: mean(&|item| share(item.is_correct_bytes())),
                brier: mean(&|item| item.brier()),
                f1: mean(&|item| item.f1()),
                truncated: members.iter().filter(|item| item.is_truncated()).count(),
            }
        })
        .collect()
}

/// Items of each task, slice and metric together, in order of first appearance; no group is empty.
fn group(items: &Items) -> Vec<Vec<Item<'_>>> {
    let mut places = vec![None; items.labels()];
    let mut groups: Vec<Vec<Item<'_>>> = Vec::new();
    for item in items.iter() {
        let place = *places[item.label()].get_or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        groups[place].push(item);
    }
    groups
}

#[cfg(test)]
mod demo_tests;
#[cfg(test)]
mod llama_cpp_tests;
#[cfg(test)]
mod tests;
