//! Our own config-driven decoder.
//!
//! One graph per family over a small backend trait. [`Batch`] packs many sequences into one run:
//! the linears see all tokens at once, attention keeps the sequences apart.

mod gguf_tokenizer;
mod tokenizer;

pub use tokenizer::{TextStream, Tokenizer};

use super::checkpoint::{Checkpoint, ModelConfig};
use super::error::Result;
use super::progress::Progress;

/// A run of consecutive tokens of one sequence within a [`Batch`].
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// First token within [`Batch::ids`].
    pub start: usize,
    /// Number of tokens.
    pub len: usize,
    /// A segment of the same batch that this one continues and attends to: many choices can share one prompt.
    pub parent: Option<usize>,
    /// Index of the cache that holds what came before and receives these tokens.
    pub cache: Option<usize>,
}

/// Token runs computed together.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// All tokens, segment after segment.
    pub ids: Vec<u32>,
    /// The runs.
    pub segments: Vec<Segment>,
}

impl Batch {
    /// Adds a run of tokens and answers its index.
    pub fn push(&mut self, ids: &[u32], parent: Option<usize>, cache: Option<usize>) -> usize {
        let start = self.ids.len();
        self.ids.extend_from_slice(ids);
        self.segments.push(Segment { start, len: ids.len(), parent, cache });
        self.segments.len() - 1
    }
}

/// Keys and values of one sequence, layer by layer.
#[derive(Clone, Debug, Default)]
pub struct KvCache {
    pub(crate) layers: Vec<(Vec<f32>, Vec<f32>)>,
    pub(crate) len: usize,
}

impl KvCache {
    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// A decoder ready to run.
#[derive(Debug)]
pub struct Model {
    /// The shape it was built from.
    pub config: ModelConfig,
}

impl Model {
    /// Loads the weights as stored: quantized tensors stay packed.
    pub fn load(checkpoint: &Checkpoint, progress: &Progress) -> Result<Self> {
        let _ = (checkpoint, progress);
        todo!()
    }

    /// Runs a batch and answers the hidden states after the final norm, tokens × hidden.
    pub fn hidden(&self, batch: &Batch, caches: &mut [KvCache]) -> Result<Vec<f32>> {
        let _ = (batch, caches);
        todo!()
    }

    /// Logits of some rows of hidden states, rows × vocabulary.
    pub fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>> {
        let _ = hidden;
        todo!()
    }

    /// Bytes of weights held in memory.
    pub fn resident_bytes(&self) -> u64 {
        todo!()
    }
}
