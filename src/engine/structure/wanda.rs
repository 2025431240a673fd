//! Wanda's score summed over the columns of a unit: mean over rows of `|W_ij|` times `‖x_j‖`.
//!
//! Sources: Sun et al., "A simple and effective pruning approach for large language models", 2023, in the
//! structured form of An et al. (FLAP's Wanda-sp, its metric WIFN), which uses the root of the mean square.

use super::{Activations, Combine, LayerScores, by_columns, column_means};
use crate::checkpoint::{Checkpoint, ModelConfig};
use crate::error::Result;
use crate::progress::Progress;

pub(super) fn score(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    seen: &Activations,
    progress: &Progress,
) -> Result<Vec<LayerScores>> {
    by_columns(config, Combine::Sum, |layer, role| {
        let weights = column_means(checkpoint, layer, role, progress)?;
        let inputs = seen.of(layer, role);
        Ok(weights.into_iter().zip(inputs.mean_squares()).map(|(weight, square)| weight * square.sqrt()).collect())
    })
}
