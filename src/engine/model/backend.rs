//! What a decoder needs of a device: a handful of operations on rows of activations.
//!
//! One graph per family (`llama.rs`) is written over this trait, so every backend has the same
//! hooks and the same batches. `native.rs` runs our packed kernels; [`super::candle`] composes
//! candle's operations, for its devices and for gradients. A test compares them operation by operation.

use crate::checkpoint::Role;
use crate::error::Result;
use crate::kernels::attention::Heads;

use super::{Batch, KvCache};

/// A linear of a layer, the embedding or the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Site {
    /// The layer, or none for the embedding and the head.
    pub layer: Option<usize>,
    /// Which linear.
    pub role: Role,
}

/// A matrix as it lies in the file, rows in Hugging Face's order.
#[derive(Clone, Debug)]
pub struct StoredMatrix {
    /// How `bytes` are laid out.
    pub dtype: crate::format::Dtype,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// `rows` rows one after another.
    pub bytes: Vec<u8>,
}

/// Cosines and sines of every position, `positions × head_dim / 2` each.
#[derive(Clone, Debug)]
pub struct Angles {
    /// Width of one head.
    pub head_dim: usize,
    /// Cosines.
    pub cos: Vec<f32>,
    /// Sines.
    pub sin: Vec<f32>,
}

/// A linear with its bias.
pub type Affine<L, V> = (L, Option<V>);

/// Operations of a device. `Rows` is tokens × width.
pub trait Backend: Sync + std::fmt::Debug {
    /// Activations.
    type Rows: Clone;
    /// A weight matrix, ready to multiply.
    type Linear: std::fmt::Debug + Send + Sync;
    /// A norm's weight or a bias.
    type Vector: std::fmt::Debug + Send + Sync;
    /// Cosines and sines where the rotations read them.
    type Turns;

    /// Takes over a matrix, repacked as the device likes it.
    fn matrix(&self, stored: StoredMatrix) -> Result<Self::Linear>;
    /// Takes over a matrix whose rows are looked up, and which may be multiplied too.
    fn table(&self, stored: StoredMatrix) -> Result<Self::Linear> {
        self.matrix(stored)
    }
    /// Takes over a vector.
    fn vector(&self, values: Vec<f32>) -> Result<Self::Vector>;
    /// Bytes that a matrix holds in memory.
    fn matrix_bytes(&self, matrix: &Self::Linear) -> u64;

    /// Rows of host values, tokens × `width`.
    fn rows_from(&self, values: Vec<f32>, width: usize) -> Result<Self::Rows>;
    /// Rows back as host values.
    fn rows_to(&self, rows: &Self::Rows) -> Result<Vec<f32>>;
    /// The same for rows that are no longer needed.
    fn rows_into(&self, rows: Self::Rows) -> Result<Vec<f32>> {
        self.rows_to(&rows)
    }
    /// Cosines and sines for all layers of a run.
    fn turns(&self, angles: Angles) -> Result<Self::Turns>;

    /// The table's rows of `ids`.
    fn embed(&self, table: &Self::Linear, ids: &[u32]) -> Result<Self::Rows>;
    /// RMSNorm.
    fn rms_norm(&self, x: &Self::Rows, weight: &Self::Vector, eps: f64) -> Result<Self::Rows>;
    /// Several linears of the same input, which is quantized once for all of them.
    fn linears(&self, weights: &[(&Self::Linear, Option<&Self::Vector>)], x: &Self::Rows) -> Result<Vec<Self::Rows>>;
    /// Rotary embedding of every head of every token, in place; one row of `turns` a token.
    fn rope(&self, x: &mut Self::Rows, turns: &Self::Turns) -> Result<()>;
    /// Causal attention of a batch in layer `layer`; caches are read and then extended.
    #[expect(clippy::too_many_arguments, reason = "queries, keys and values belong together here")]
    fn attention(
        &self,
        heads: Heads,
        layer: usize,
        batch: &Batch,
        caches: &mut [KvCache],
        q: &Self::Rows,
        k: &Self::Rows,
        v: &Self::Rows,
    ) -> Result<Self::Rows>;
    /// `silu(gate) · up`.
    fn gated(&self, gate: Self::Rows, up: &Self::Rows) -> Result<Self::Rows>;
    /// Every column times its factor.
    fn scale(&self, x: Self::Rows, factors: &Self::Vector) -> Result<Self::Rows>;
    /// `x + y`.
    fn add(&self, x: Self::Rows, y: &Self::Rows) -> Result<Self::Rows>;
}
