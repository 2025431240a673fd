//! FLAP: units whose output hardly varies can be replaced by its mean.
//!
//! The score of a column is WIFV, its variance over tokens times the squared norm of the weights that read
//! it. As in AL-AM, the attention's score is squared, both are standardised within a layer, and a head is
//! the mean of its columns, so that one ranking holds heads and channels of all layers; a unit's cost in
//! that ranking is its weights, which for grouped heads is `(2g + 2)·d/3` channels a KV group.
//!
//! Source: An et al., "Fluctuation-based Adaptive Structured Pruning for large language models", 2023;
//! the mean that is taken away is the final one (Welford), not the running one of the reference code.

use super::{Activations, Combine, LayerScores, by_columns, column_squares};
use crate::checkpoint::{Checkpoint, ModelConfig, Role};
use crate::error::Result;
use crate::progress::Progress;

pub(super) fn score(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    seen: &Activations,
    progress: &Progress,
) -> Result<Vec<LayerScores>> {
    by_columns(config, Combine::Mean, |layer, role| {
        let weights = column_squares(checkpoint, layer, role, progress)?;
        let inputs = seen.of(layer, role);
        let mut scores: Vec<f64> =
            weights.into_iter().zip(inputs.variances()).map(|(weight, variance)| weight * variance).collect();
        if role == Role::O {
            scores.iter_mut().for_each(|score| *score *= *score);
        }
        standardise(&mut scores);
        Ok(scores)
    })
}

/// Mean 0 and deviation 1 (of a sample); all zero where nothing varies.
pub(super) fn standardise(scores: &mut [f64]) {
    let count = scores.len() as f64;
    let mean = scores.iter().sum::<f64>() / count.max(1.0);
    let squares: f64 = scores.iter().map(|score| (score - mean).powi(2)).sum();
    let deviation = (squares / (count - 1.0).max(1.0)).sqrt();
    for score in scores {
        *score = if deviation > 0.0 { (*score - mean) / deviation } else { 0.0 };
    }
}
