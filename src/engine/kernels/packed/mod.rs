//! Products of activations with packed weights, repacked once so that a vector holds a step of rows.
//!
//! Every block format here can be written as `weight = scale × code − minimum`, with a scale and a
//! minimum per run of 16 or 32 weights. [`Packed`] keeps the file's codes and scales, bit for bit as
//! many, but interleaves tiles of rows (see `repack.rs`), so that four activations repeated over a
//! vector meet four weights of every row of the tile and no sum crosses lanes. A product goes over
//! a row in chunks of 256: the chunk's codes are spread to bytes in the L1 cache (`spread.rs`) and
//! meet all tokens there (`product.rs`). One kernel serves all formats and all batch sizes.
//!
//! Activations are quantized as ggml does (see [`super::activations`]). Integer products are exact;
//! `f32` sums have one order for each instruction level, whatever the number of threads.

mod layout;
mod product;
mod repack;
mod spread;
#[cfg(test)]
mod tests;

pub use layout::{IntLayout, IntScale, Layout};

use rayon::prelude::*;

use super::Level;
use super::activations::Activations;
use layout::Plan;

/// A matrix of packed weights, ready to multiply at one instruction level.
#[derive(Clone, Debug)]
pub struct Packed {
    layout: Layout,
    level: Level,
    rows: usize,
    cols: usize,
    tiles: Vec<u8>,
}

impl Packed {
    /// Repacks `rows` rows of `cols` weights for this CPU; `bytes` holds them as the file does.
    pub fn new(layout: Layout, bytes: &[u8], rows: usize, cols: usize) -> Self {
        Self::new_at(Level::detect(), layout, bytes, rows, cols)
    }

    /// [`Packed::new`] for a given instruction level, which the CPU must have.
    ///
    /// # Panics
    /// If `bytes` does not hold `rows` whole rows, or blocks do not fill a row.
    pub fn new_at(level: Level, layout: Layout, bytes: &[u8], rows: usize, cols: usize) -> Self {
        let row_bytes = layout.row_bytes(cols).expect("blocks fill a row");
        assert_eq!(bytes.len(), rows * row_bytes, "packed weights have whole rows");
        assert!(level.is_available(), "this CPU has {}", level.name());
        let plan = Plan::new(layout, level.tile_rows(), cols);
        let mut tiles = vec![0; rows.div_ceil(plan.tile_rows) * plan.tile_bytes()];
        if !tiles.is_empty() {
            tiles
                .par_chunks_mut(plan.tile_bytes())
                .zip(bytes.par_chunks(row_bytes * plan.tile_rows))
                .for_each(|(tile, source)| repack::tile(&plan, source, tile));
        }
        Self { layout, level, rows, cols, tiles }
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How the weights lay in the file.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Bytes that the matrix holds in memory.
    pub fn resident_bytes(&self) -> usize {
        self.tiles.len()
    }

    /// Decodes row `index` to the values that the format's decoder gives.
    pub fn row(&self, index: usize, out: &mut [f32]) {
        assert!(index < self.rows && out.len() == self.cols, "a row of the matrix");
        let plan = Plan::new(self.layout, self.level.tile_rows(), self.cols);
        let tile = &self.tiles[index / plan.tile_rows * plan.tile_bytes()..][..plan.tile_bytes()];
        repack::row(&plan, tile, index % plan.tile_rows, out);
    }

    /// Multiplies with every activation row: `out[token × rows + row]`.
    ///
    /// Activations are in blocks of [`Layout::activation_block`].
    pub fn matmul(&self, activations: &Activations, out: &mut [f32]) {
        assert_eq!(activations.width(), self.cols, "activations are as wide as the rows");
        assert_eq!(activations.block(), self.layout.activation_block(), "activations in the layout's blocks");
        assert_eq!(out.len(), activations.rows() * self.rows, "output is tokens × rows");
        if out.is_empty() {
            return;
        }
        let plan = Plan::new(self.layout, self.level.tile_rows(), self.cols);
        product::matmul(self.level, &plan, &self.tiles, self.rows, activations, out);
    }
}
