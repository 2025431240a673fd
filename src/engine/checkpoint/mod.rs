//! Model files, opened lazily: the boundary where hostile input ends.
//!
//! [`Checkpoint::open`] reads headers only and costs milliseconds whatever the size. Every length,
//! offset and count of a header is checked against the file before anything is allocated from it.
//! Tensors are read with positioned reads, so that a file truncated meanwhile is an error and not
//! a crash. Inside the engine everything has Hugging Face's names, order and head layout: GGUF's
//! permuted q and k rows are put back row by row in [`Checkpoint::read_rows`].

mod config;
mod files;
mod gguf;
mod gguf_config;
mod gguf_export;
mod gguf_value;
mod gguf_vocab;
mod gguf_write;
mod hf_export;
mod imatrix;
mod open;
mod output;
mod packed;
mod packed_bnb;
mod packed_ct;
mod packed_gptq;
mod packed_rows;
mod packed_sparse;
mod pruned;
mod read;
mod role;
mod safetensors;
mod safetensors_write;
mod survey;
mod units;

use std::path::{Path, PathBuf};

pub use config::{LayerShape, ModelConfig, Rope, RopeScaling};
pub use gguf_export::{ROPE_FREQS, gguf_architecture, gguf_metadata_of, rope_freqs};
pub use gguf_value::{GgufArray, GgufStrings, GgufValue, Metadata, lookup};
pub use gguf_write::{GgufLayout, GgufTensor, GgufWriter};
pub use hf_export::hugging_face_config;
pub use imatrix::{ImatrixEntry, ImatrixFile};
pub use output::ensure_not_source;
pub use pruned::RowMap;
pub use role::Role;
pub use safetensors_write::{FolderWriter, SafeTensor, SafetensorsWriter, safetensors_bytes};
pub use units::{IllegalRemoval, KeptLayer, LayerUnits, Removal, Structure};

use super::error::{Fault, Result};
use super::format::Dtype;

/// The kind of file or folder a checkpoint came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// One `.safetensors` file, with a `config.json` beside it or without.
    Safetensors,
    /// A folder with `config.json` and safetensors files, or an index of shards.
    HuggingFace,
    /// A GGUF file.
    Gguf,
}

/// One tensor of a checkpoint: what it is and where it lies.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Hugging Face's name, whatever the file calls it.
    pub name: String,
    /// The name in the file.
    pub stored_name: String,
    /// Outermost dimension first, as PyTorch writes it: `[out, in]` for a linear.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub dtype: Dtype,
    /// What it is in the network.
    pub role: Role,
    /// The layer it belongs to, from 0.
    pub layer: Option<usize>,
    /// Bytes in the file.
    pub byte_count: u64,
    /// Index of the file among the checkpoint's files.
    pub(crate) file: usize,
    /// First byte within that file.
    pub(crate) offset: u64,
    /// GGUF's q and k rows are interleaved per head; this is the number of heads to put back.
    pub(crate) permuted_heads: Option<usize>,
    /// Where the parts of a packed weight lie; its rows are put together from them.
    pub(crate) parts: Option<std::sync::Arc<packed::Parts>>,
    /// What it is made of, where it is only a part of a stored tensor.
    pub(crate) view: Option<std::sync::Arc<pruned::View>>,
}

impl TensorInfo {
    /// Number of weights.
    pub fn weight_count(&self) -> u64 {
        self.shape.iter().map(|&len| len as u64).product()
    }

    /// Length of the innermost dimension; 1 for a scalar.
    pub fn row_len(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Number of rows: the product of all dimensions but the innermost.
    pub fn row_count(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    /// True if its bytes lie one after another in the file, so that rows may be read in other lengths than its own.
    pub(crate) fn lies_flat(&self) -> bool {
        self.parts.is_none() && self.view.is_none()
    }

    /// Bits per weight as stored.
    pub fn bits_per_weight(&self) -> f64 {
        super::units::bits_per_weight(self.byte_count, self.weight_count())
    }
}

/// True if any product of a shape's lengths can be computed: a zero must not hide an overflow.
fn products_fit(shape: &[usize]) -> bool {
    shape.iter().try_fold(1usize, |product, &len| product.checked_mul(len.max(1))).is_some()
}

/// A model on disk, opened lazily. Clones share the open files.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// What the user opened.
    pub path: PathBuf,
    /// A short name for a title.
    pub name: String,
    /// What kind of files it is made of.
    pub container: Container,
    /// Every tensor, in file order.
    pub tensors: Vec<TensorInfo>,
    /// The decoder's shape, where the checkpoint says it.
    pub config: Option<ModelConfig>,
    /// Why there is no [`Checkpoint::config`].
    pub config_fault: Option<Fault>,
    /// Oddities that do not stop the file from opening, one sentence each.
    pub warnings: Vec<String>,
    /// BLAKE3 of headers, config and sizes, in hex: tells one checkpoint from another at once.
    pub fingerprint: String,
    /// Open files and what was read beside the tensors.
    source: std::sync::Arc<open::Source>,
}

impl Checkpoint {
    /// Opens a folder, a `.safetensors`, an `.index.json` or a `.gguf`.
    pub fn open(path: &Path) -> Result<Self> {
        open::open(path)
    }

    /// The tensor with Hugging Face's `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// Weights of all tensors together.
    pub fn weight_count(&self) -> u64 {
        self.tensors.iter().map(TensorInfo::weight_count).sum()
    }

    /// Bytes of all tensors together, headers not counted.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.byte_count).sum()
    }
}

#[cfg(test)]
mod tests;
