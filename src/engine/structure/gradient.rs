//! Scores from one backward pass a window: Taylor's first order, the gradient of a mask, and Fisher information.
//!
//! Taylor: the sum of `|w · ∂L/∂w|` over all weights of a unit, those that make it and those that read it
//! (Ma et al., "LLM-Pruner", 2023, element-wise). Mask gradient: `|∂L/∂ξ|` for a factor ξ on what the
//! unit gives (Michel et al., 2019). With `y = W x` the latter is `Σ_ij W_ij ∂L/∂W_ij` over the columns
//! that read the unit, so that the gradients of the weights tell it too. Fisher: `½ Σ w² (∂L/∂w)²`, what
//! the loss rises by to second order (diagonal). All are means over windows, a token, with their standard error.

use std::collections::HashMap;

use super::{LayerScores, Metric, Sample};
use crate::checkpoint::{Checkpoint, LayerShape, ModelConfig, Role};
use crate::device::Device;
use crate::error::Result;
use crate::model::{Differentiable, Labels, Site};
use crate::progress::{Phase, Progress, Unit};
use crate::scoring::mean_and_stderr;

/// What one window says of a layer.
#[derive(Clone, Debug)]
struct Window {
    heads: Vec<f64>,
    kv_groups: Vec<f64>,
    channels: Vec<f64>,
}

impl Window {
    fn new(shape: &LayerShape) -> Self {
        Self {
            heads: vec![0.0; shape.heads],
            kv_groups: vec![0.0; shape.kv_heads],
            channels: vec![0.0; shape.mlp_channels],
        }
    }

    /// Adds one matrix's products of weight and gradient.
    fn add(&mut self, role: Role, metric: Metric, head_dim: usize, cols: usize, weights: &[f32], gradients: &[f32]) {
        // Only what reads a unit tells of a mask on it.
        if metric == Metric::MaskGradient && !matches!(role, Role::O | Role::Down) {
            return;
        }
        let product = |(&weight, &gradient): (&f32, &f32)| {
            let product = f64::from(weight) * f64::from(gradient);
            match metric {
                Metric::Fisher => product * product / 2.0,
                Metric::MaskGradient => product,
                _ => product.abs(),
            }
        };
        let rows = weights.chunks_exact(cols).zip(gradients.chunks_exact(cols));
        for (row, (weights, gradients)) in rows.enumerate() {
            let products = weights.iter().zip(gradients).map(product);
            match role {
                Role::O => products.enumerate().for_each(|(col, value)| self.heads[col / head_dim] += value),
                Role::Down => self.channels.iter_mut().zip(products).for_each(|(own, value)| *own += value),
                Role::Q => self.heads[row / head_dim] += products.sum::<f64>(),
                Role::K | Role::V => self.kv_groups[row / head_dim] += products.sum::<f64>(),
                _ => self.channels[row] += products.sum::<f64>(),
            }
        }
    }

    /// The scores of this window, a token.
    fn finish(mut self, tokens: usize) -> Self {
        let group = self.heads.len() / self.kv_groups.len();
        for (own, heads) in self.kv_groups.iter_mut().zip(self.heads.chunks_exact(group)) {
            *own += heads.iter().sum::<f64>();
        }
        let scale = 1.0 / tokens.max(1) as f64;
        for score in self.heads.iter_mut().chain(&mut self.kv_groups).chain(&mut self.channels) {
            *score = (*score * scale).abs();
        }
        self
    }
}

/// Scores of every layer, and what computed; counts windows as [`Phase::MeasuringGradients`].
pub(super) fn score(
    checkpoint: &Checkpoint,
    metric: Metric,
    sample: &Sample,
    device: &Device,
    progress: &Progress,
) -> Result<(Vec<LayerScores>, String)> {
    let model = Differentiable::load(checkpoint, device, progress)?;
    let config: &ModelConfig = &model.config;
    let tensors: HashMap<(Option<usize>, Role), usize> = checkpoint
        .tensors
        .iter()
        .enumerate()
        .filter(|(_, tensor)| tensor.role.is_layer_linear())
        .map(|(index, tensor)| ((tensor.layer, tensor.role), index))
        .collect();
    progress.begin(Phase::MeasuringGradients, sample.tokens(), Unit::Tokens);
    let mut windows: Vec<Vec<Window>> = Vec::with_capacity(sample.windows.len());
    let (mut raw, mut weights) = (Vec::new(), Vec::new());
    for ids in &sample.windows {
        let mut layers: Vec<Window> = config.layers.iter().map(Window::new).collect();
        let mut failure = None;
        let mut visit = |site: Site, gradient: &[f32]| {
            let (Some(layer), Some(&index)) = (site.layer, tensors.get(&(site.layer, site.role))) else { return };
            let tensor = &checkpoint.tensors[index];
            match checkpoint.decode_rows(tensor, 0..tensor.row_count(), &mut raw, &mut weights) {
                Ok(()) => {
                    layers[layer].add(site.role, metric, config.head_dim, tensor.row_len(), &weights, gradient);
                }
                Err(err) => failure = Some(err),
            }
        };
        let scored = model.sequence_gradients(ids, 1, Labels::Text, progress, &mut visit)?;
        if let Some(failure) = failure {
            return Err(failure);
        }
        windows.push(layers.into_iter().map(|layer| layer.finish(scored)).collect());
        progress.advance(ids.len() as u64);
    }
    Ok(((0..config.layers.len()).map(|layer| average(&windows, layer)).collect(), model.device()))
}

/// Means over windows of one layer's scores.
fn average(windows: &[Vec<Window>], layer: usize) -> LayerScores {
    let mean = |pick: fn(&Window) -> &[f64]| -> Vec<(f64, f64)> {
        let count = windows.first().map_or(0, |first| pick(&first[layer]).len());
        (0..count).map(|unit| mean_and_stderr(windows.iter().map(|window| pick(&window[layer])[unit]))).collect()
    };
    let (heads, head_stderr): (Vec<f64>, Vec<f64>) = mean(|window| &window.heads).into_iter().unzip();
    let values = |pick: fn(&Window) -> &[f64]| mean(pick).into_iter().map(|found| found.0).collect::<Vec<f64>>();
    let (kv_groups, channels) = (values(|window| &window.kv_groups), values(|window| &window.channels));
    let layer = Some(kv_groups.iter().chain(&channels).sum());
    LayerScores { heads, kv_groups, channels, layer, head_stderr }
}
