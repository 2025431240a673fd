//! Minitron's importance: mean magnitude over each sequence, then the L2 norm over sequences; heads by the
//! L2 norm over their columns.
//!
//! Source: Muralidharan et al., "Compact language models via pruning and knowledge distillation", 2024,
//! in the order of ModelOpt's `mcore_minitron.py`.

use super::{Activations, Combine, LayerScores};
use crate::checkpoint::{ModelConfig, Role};

pub(super) fn score(config: &ModelConfig, seen: &Activations) -> Vec<LayerScores> {
    let layers = config.layers.iter().enumerate();
    layers
        .map(|(index, shape)| {
            let of = |role: Role| seen.of(index, role).sequence_norms();
            LayerScores::of_columns(shape, config.head_dim, &of(Role::O), &of(Role::Down), Combine::Norm)
        })
        .collect()
}
