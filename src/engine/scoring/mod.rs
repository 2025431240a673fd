//! How well a model predicts: texts, tasks, generation and speed.
//!
//! Everything here sees a model through [`TokenModel`] and a tokenizer through [`TextCodec`], so
//! that the packing of batches, the joining of prompts and the statistics are tested without one.
//! All batches pack many sequences, because a linear over a thousand rows costs far less per row
//! than over one; logits are taken only at the rows that are scored.

pub mod answers;
pub mod chat;
pub mod completion;
pub mod conditions;
pub mod distance;
pub mod energy;
pub mod few_shot;
pub mod generation;
pub mod items;
mod join;
pub mod kernel_rates;
pub mod kernel_speed;
mod layouts;
mod line_reader;
pub(crate) mod lists;
pub mod lots;
pub mod multiple_choice;
pub mod random;
pub mod rows;
pub mod sketch;
pub mod softmax;
pub mod speculative;
pub mod speed;
pub mod speed_grid;
mod spool;
pub mod stability;
mod task_files;
pub mod task_items;
mod task_lines;
mod task_parquet;
pub mod tasks;
pub mod text;
mod text_journal;
pub mod text_stats;
pub mod top_k;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod layout_tests;

pub use conditions::Conditions;
pub use distance::{DistanceBin, KldHistogram, Percentiles, TextDistance};
pub use generation::{GenerateOptions, GeneratedToken, Generation, generate};
pub use items::{Item, ItemWriter, Items};
pub use lots::{score_tasks, task_scores};
pub use softmax::{TokenDistance, token_distance};
pub use speculative::{Drafting, SpeculativeGeneration, speculate};
pub use speed::{CheckTime, SpeedOptions, SpeedResult};
pub use speed_grid::{SpeedCell, SpeedGridOptions};
pub use stability::{SeedAgreement, SeedOptions};
pub use task_items::{TaskItemWriter, TaskItems, TaskSlice};
pub use tasks::{ItemResult, TaskItem, TaskKind, TaskSet};
pub use text::{Convention, ScoredText, TextOptions, TextSource};
pub use text_stats::{TextResult, mean_and_stderr};
pub use top_k::{KeptBaseline, KeptFrom, KeptOptions};

use super::error::{Fault, Result, Stage};
pub use super::model::fit::BATCH_TOKENS;
use super::model::{Batch, KvCache, Model, Tokenizer};
use super::progress::Progress;

/// What scoring needs of a decoder.
pub trait TokenModel: Sync {
    /// Number of tokens it knows.
    fn vocab(&self) -> usize;

    /// Width of a hidden state.
    fn width(&self) -> usize;

    /// Longest sequence it was made for.
    fn context(&self) -> usize;

    /// Hidden states after the final norm, tokens × width, in the order of `batch.ids`.
    fn hidden(&self, batch: &Batch, caches: &mut [KvCache], progress: &Progress) -> Result<Vec<f32>>;

    /// Logits of some rows of hidden states, rows × vocabulary.
    fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>>;

    /// What computes, in words.
    fn device(&self) -> String {
        "cpu".to_owned()
    }
}

impl TokenModel for Model {
    fn vocab(&self) -> usize {
        self.config.vocab
    }

    fn width(&self) -> usize {
        self.config.hidden
    }

    fn context(&self) -> usize {
        self.config.context
    }

    fn hidden(&self, batch: &Batch, caches: &mut [KvCache], progress: &Progress) -> Result<Vec<f32>> {
        Self::hidden(self, batch, caches, progress)
    }

    fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>> {
        Self::logits(self, hidden)
    }

    fn device(&self) -> String {
        Self::device(self)
    }
}

/// What scoring needs of a tokenizer.
pub trait TextCodec: Sync {
    /// Token ids of `text`, no special tokens added.
    fn encode(&self, text: &str) -> Result<Vec<u32>>;

    /// The same with special tokens recognized where they are written out, for prompts of a chat template.
    fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        self.encode(text)
    }

    /// Text of `ids`, special tokens left out.
    fn decode(&self, ids: &[u32]) -> Result<String>;

    /// Put before every text, if the model has one.
    fn bos(&self) -> Option<u32>;

    /// Tokens that end a text.
    fn eos(&self) -> &[u32];
}

impl TextCodec for Tokenizer {
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Self::encode(self, text)
    }

    fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        Self::encode_with_special(self, text)
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        Self::decode(self, ids)
    }

    fn bos(&self) -> Option<u32> {
        self.bos
    }

    fn eos(&self) -> &[u32] {
        &self.eos
    }
}

/// Refuses ids that the model does not have, before they index its embedding.
pub(crate) fn check_ids(ids: &[u32], vocab: usize) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= vocab) {
        None => Ok(()),
        Some(id) => Err(Fault::new(
            Stage::Tokenizer,
            format!("the tokenizer gives token {id}, but the model knows only {vocab} tokens"),
        )
        .fix("use the tokenizer that belongs to this checkpoint")
        .into()),
    }
}

/// The answer to logits that are not numbers: the model is broken, and no figure of it means anything.
pub(crate) fn not_finite(place: impl Into<String>) -> Fault {
    Fault::new(Stage::Evaluation, "the model's logits are NaN or infinite")
        .at(place)
        .fix("look in the profile for tensors with NaN or infinity, or for values beyond f16's range")
}
