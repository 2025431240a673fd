//! Norms of the columns of `o` and `down` that read a unit: cheap, and often worse than a draw.

use super::{Combine, LayerScores, by_columns, column_squares};
use crate::checkpoint::{Checkpoint, ModelConfig};
use crate::error::Result;
use crate::progress::Progress;

/// L2 norm of every column, summed over a head.
pub(super) fn score(checkpoint: &Checkpoint, config: &ModelConfig, progress: &Progress) -> Result<Vec<LayerScores>> {
    by_columns(config, Combine::Sum, |layer, role| {
        let squares = column_squares(checkpoint, layer, role, progress)?;
        Ok(squares.into_iter().map(f64::sqrt).collect())
    })
}
