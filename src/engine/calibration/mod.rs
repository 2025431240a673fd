//! What the model sees: how large the inputs of every linear are, column by column.
//!
//! The noun is [`Importance`], the entry [`importance`]. A weight matters as much as what it is
//! multiplied with: formats with a weighted search take the mean square of each input column as
//! the weight of that column's errors. Computed by our own forward pass over a text, cut into
//! chunks as llama-imatrix cuts it, and kept in llama.cpp's own files, so that either program can
//! use what the other computed.
//!
//! Beside it: what every channel of every input looks like and their second moments ([`activations`]),
//! and the texts themselves, their mixture and what they share ([`documents`]).
//!
//! Source: `tools/imatrix/imatrix.cpp` (llama.cpp, MIT); the idea is that of llama.cpp #4861.

pub mod activations;
mod collect;
pub mod documents;
pub mod statistics;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use activations::{ActivationOptions, Activations, InputActivations, InputFigures};
pub use collect::{ImportanceOptions, importance};
pub use documents::{Document, Documents, Overlap, Share};
pub use statistics::TensorStatistics;

use super::checkpoint::{ImatrixEntry, ImatrixFile, Role};
use super::error::{Fault, Result, Stage};
use super::target::gguf_names;

/// Fewer tokens than this say little of any matrix.
const LEAST_TOKENS: u64 = 512;

/// Tokens a chunk of a `.dat`, which does not say it: llama-imatrix's own guess.
const DAT_CHUNK_TOKENS: u32 = 512;

/// Squared inputs of one matrix, or of a stack of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct InputMoments {
    /// Per expert and column, the sum over the tokens of the squared input.
    pub sums: Vec<f32>,
    /// Tokens that each expert saw; one number for a plain matrix.
    pub counts: Vec<u64>,
    /// Per expert and column, the mean; all ones for an expert that saw nothing, as in llama.cpp.
    means: Vec<f32>,
}

impl InputMoments {
    /// Moments of `sums` over `counts` tokens; there is at least one count and they divide the sums.
    pub(crate) fn new(sums: Vec<f32>, counts: Vec<u64>) -> Self {
        let columns = (sums.len() / counts.len().max(1)).max(1);
        let means = sums
            .chunks(columns)
            .zip(&counts)
            .flat_map(|(sums, &count)| sums.iter().map(move |&sum| if count == 0 { 1.0 } else { sum / count as f32 }))
            .collect();
        Self { sums, counts, means }
    }

    /// Mean square of each input column, expert after expert.
    pub fn means(&self) -> &[f32] {
        &self.means
    }

    /// Input columns of one expert.
    pub fn columns(&self) -> usize {
        self.sums.len() / self.counts.len().max(1)
    }

    /// Tokens that the expert which saw fewest has seen.
    pub fn least_tokens(&self) -> u64 {
        self.counts.iter().copied().min().unwrap_or(0)
    }
}

/// How much each input column of each matrix matters.
#[derive(Clone, Debug, PartialEq)]
pub struct Importance {
    /// By Hugging Face's name of the weight, or the file's own where that has none.
    pub tensors: BTreeMap<String, InputMoments>,
    /// Names of the texts it was computed on.
    pub datasets: Vec<String>,
    /// Chunks of text it was computed on.
    pub chunk_count: u32,
    /// Tokens a chunk; 0 where the file does not say it.
    pub chunk_tokens: u32,
    /// The file it lies in, if any.
    pub path: Option<PathBuf>,
    /// BLAKE3 of names, counts and sums, in hex.
    pub hash: String,
    /// False for a `.dat`, which counts calls where the GGUF form counts tokens.
    pub counts_are_tokens: bool,
}

impl Importance {
    /// Reads llama.cpp's GGUF form or the older `.dat`.
    ///
    /// # Errors
    /// As [`ImatrixFile::read`].
    pub fn read(path: &Path) -> Result<Self> {
        let mut read = Self::of_file(ImatrixFile::read(path)?);
        read.path = Some(path.to_owned());
        Ok(read)
    }

    /// Writes llama.cpp's GGUF form, which is then the file it lies in; answers the bytes written.
    ///
    /// # Errors
    /// As [`ImatrixFile::write`].
    pub fn write(&mut self, path: &Path) -> Result<u64> {
        let bytes = self.to_file().write(path)?;
        self.path = Some(path.to_owned());
        Ok(bytes)
    }

    pub(crate) fn of_file(file: ImatrixFile) -> Self {
        let mut hasher = blake3::Hasher::new();
        for (name, entry) in &file.entries {
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            hasher.update(&(entry.counts.len() as u64).to_le_bytes());
            for count in &entry.counts {
                hasher.update(&count.to_le_bytes());
            }
            hasher.update(&(entry.sums.len() as u64).to_le_bytes());
            for sum in &entry.sums {
                hasher.update(&sum.to_le_bytes());
            }
        }
        let hash = hasher.finalize().to_hex().to_string();
        let tensors = file
            .entries
            .into_iter()
            .map(|(name, entry)| {
                let name = gguf_names::to_hugging_face(&name).unwrap_or(name);
                (name, InputMoments::new(entry.sums, entry.counts))
            })
            .collect();
        Self {
            tensors,
            datasets: file.datasets,
            chunk_count: file.chunk_count,
            chunk_tokens: file.chunk_size,
            path: None,
            hash,
            counts_are_tokens: !file.is_legacy,
        }
    }

    /// The form that llama.cpp reads today. Calls of a `.dat` become tokens by llama-imatrix's guess;
    /// a power of two, so that the means stay what they are.
    fn to_file(&self) -> ImatrixFile {
        let scale = if self.counts_are_tokens { 1 } else { DAT_CHUNK_TOKENS };
        let entries = self.tensors.iter().map(|(name, moments)| {
            let name = gguf_names::to_gguf(name).unwrap_or_else(|| name.clone());
            let sums = moments.sums.iter().map(|sum| sum * scale as f32).collect();
            (name, ImatrixEntry { sums, counts: moments.counts.iter().map(|count| count * u64::from(scale)).collect() })
        });
        ImatrixFile {
            entries: entries.collect(),
            datasets: self.datasets.clone(),
            chunk_count: self.chunk_count,
            chunk_size: if self.counts_are_tokens { self.chunk_tokens } else { DAT_CHUNK_TOKENS },
            is_legacy: false,
        }
    }

    /// Mean squared input of each of the `columns` columns of the matrix called `name`; none where
    /// nothing is known of it.
    ///
    /// # Errors
    /// An entry of another width: the file belongs to another model. The embedding's is then ignored,
    /// as llama.cpp ignores it, since a lookup multiplies nothing.
    pub fn of(&self, name: &str, columns: usize) -> Result<Option<&[f32]>> {
        match self.tensors.get(name) {
            None => Ok(None),
            Some(moments) if moments.counts.len() == 1 && moments.columns() == columns => Ok(Some(moments.means())),
            Some(_) if Role::of_name(name).0 == Role::Embedding => Ok(None),
            Some(moments) => {
                let cause =
                    format!("the importance matrix has {} values for its {columns} columns", moments.sums.len());
                let fault =
                    Fault::new(Stage::Calibration, cause).at(name).fix("use one that was computed for this model");
                Err(match &self.path {
                    Some(path) => fault.file(path),
                    None => fault,
                }
                .into())
            }
        }
    }

    /// Statistics of every matrix, layer by layer; see [`TensorStatistics`].
    pub fn statistics(&self) -> Vec<TensorStatistics> {
        statistics::of(self)
    }

    /// The file's name alone: what is written into models names no folder of the user's.
    pub fn file_name(&self) -> Option<Cow<'_, str>> {
        Some(self.path.as_ref()?.file_name()?.to_string_lossy())
    }

    /// Tokens that a matrix saw (of experts, the fewest), and whether these are too few to tell its
    /// columns apart; nothing where the file does not say it.
    pub fn coverage(&self, moments: &InputMoments) -> (Option<u64>, bool) {
        let tokens = self.counts_are_tokens.then(|| moments.least_tokens());
        (tokens, tokens.is_some_and(|tokens| tokens < LEAST_TOKENS.max(moments.columns() as u64)))
    }

    /// What the user should know of it, one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let low: Vec<(&String, &InputMoments)> =
            self.tensors.iter().filter(|(_, moments)| self.coverage(moments).1).collect();
        let Some((name, least)) = low.iter().min_by_key(|(_, moments)| moments.least_tokens()) else {
            return Vec::new();
        };
        vec![format!(
            "{} of {} matrices saw too few tokens to tell their columns apart; the least is {name} with {} for {} \
             columns. Calibrate on more text.",
            low.len(),
            self.tensors.len(),
            least.least_tokens(),
            least.columns(),
        )]
    }
}

#[cfg(test)]
mod tests;
