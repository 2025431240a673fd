//! Layers: how far each turns the stream of states, and what is lost without it.
//!
//! Block influence is `1 − mean cos(x_in, x_out)` over tokens (Men et al., ShortGPT, 2024): cheap, from
//! one pass, and blind to what later layers make of the difference. Removal runs the model without
//! the layer and measures the KLD: slower, and what really happens.

use rayon::prelude::*;

use super::grouped::GroupedText;
use super::reference::batches;
use super::units::{UnitKind, UnitMetric, UnitValue};
use super::{Label, Metric};
use crate::error::{Fault, Result, Stage};
use crate::model::{Kept, Model};
use crate::progress::{Phase, Progress, Unit};
use crate::scoring::mean_and_stderr;

/// Block influence.
pub const INFLUENCE: UnitMetric = UnitMetric {
    metric: Metric {
        id: "block_influence",
        title: "Block influence",
        unit: "",
        description: "How far a layer turns its input: 1 − mean cosine of a token's state before and after it",
        label: Label::Predicted,
    },
    kind: UnitKind::Layer,
};

/// KLD without a layer.
pub const REMOVAL: UnitMetric = UnitMetric {
    metric: Metric {
        id: "layer_removal",
        title: "KLD without the layer",
        unit: "nats",
        description: "Mean KL divergence of the next-token distribution from the original's when this layer is left out",
        label: Label::MeasuredWeightsOnly,
    },
    kind: UnitKind::Layer,
};

/// Every layer's influence from one pass over the text.
pub(super) fn block_influence(
    model: &Model,
    text: &GroupedText,
    progress: &Progress,
    found: &mut dyn FnMut(UnitValue),
) -> Result<()> {
    let batches = batches(text);
    let tokens: usize = batches.iter().map(|(batch, _)| batch.ids.len()).sum();
    progress.begin(Phase::Calibrating, tokens as u64, Unit::Tokens);
    let layers = model.config.layers.len();
    let mut turned: Vec<Vec<f64>> = vec![Vec::with_capacity(tokens); layers];
    for (batch, _) in batches {
        let (_, inputs) = model.hidden_keeping(&batch, Kept::Layers, progress)?;
        for (layer, turned) in turned.iter_mut().enumerate() {
            let (Some(before), Some(after)) = (inputs.input(layer), inputs.input(layer + 1)) else { continue };
            let width = model.config.hidden;
            let pairs = before.par_chunks_exact(width).zip(after.par_chunks_exact(width));
            turned.par_extend(pairs.map(|(before, after)| 1.0 - cosine(before, after)));
        }
        progress.advance(batch.ids.len() as u64);
    }
    for (layer, turned) in turned.into_iter().enumerate() {
        let (value, stderr) = mean_and_stderr(turned.iter().copied());
        if !value.is_finite() {
            return Err(Fault::new(Stage::Sensitivity, "the layer gives NaN or infinity")
                .at(format!("layer {layer}"))
                .fix("look for NaN or infinity in the weights: `lapidary profile`")
                .into());
        }
        found(UnitValue { layer, index: None, value, stderr, groups: Vec::new() });
    }
    Ok(())
}

/// Cosine of the angle between two states; 1 where both are zeros, since nothing turned.
fn cosine(one: &[f32], other: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let norm = (dot(one, one) * dot(other, other)).sqrt();
    if norm == 0.0 { 1.0 } else { (dot(one, other) / norm).clamp(-1.0, 1.0) }
}
