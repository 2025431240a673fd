//! A draw by seed, in order of layers, heads and channels.

use super::LayerScores;
use crate::checkpoint::ModelConfig;
use crate::scoring::random::Random;

/// Uniform scores; the same ones for the same seed and shape.
pub(super) fn score(config: &ModelConfig, seed: u64) -> Vec<LayerScores> {
    let layers = config.layers.iter().enumerate();
    layers
        .map(|(index, shape)| {
            let mut random = Random::new(seed, index as u64);
            let mut draw = |count: usize| (0..count).map(|_| random.unit()).collect::<Vec<f64>>();
            let (heads, kv_groups, channels, layer) =
                (draw(shape.heads), draw(shape.kv_heads), draw(shape.mlp_channels), draw(1).pop());
            LayerScores { heads, kv_groups, channels, layer, head_stderr: Vec::new() }
        })
        .collect()
}
