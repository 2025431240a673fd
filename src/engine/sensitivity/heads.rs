//! Attention heads and KV groups: how much the model would miss each.
//!
//! By gradient: a factor on each head's output, and how the log-probability of a text's tokens changes
//! with it, in magnitude and averaged over stretches of text (Michel et al., "Are sixteen heads really
//! better than one?", 2019). By ablation: the head's output is set to zero and the KLD measured. A KV
//! group is a KV head with the query heads that share it: what can be removed under grouped queries.

use super::grouped::GroupedText;
use super::units::{UnitKind, UnitMetric, UnitOptions, UnitValue};
use super::{Label, Metric, fisher};
use crate::checkpoint::Checkpoint;
use crate::error::{Fault, Result, Stage};
use crate::model::Differentiable;
use crate::progress::{Phase, Progress, Unit};
use crate::scoring::mean_and_stderr;

/// Importance by gradient.
pub const GRADIENT: UnitMetric = UnitMetric {
    metric: Metric {
        id: "head_gradient",
        title: "Head gradient",
        unit: "nats",
        description: "How fast the text's log-probability changes with a factor on the head's output, in magnitude",
        label: Label::Predicted,
    },
    kind: UnitKind::Head,
};

/// KLD without a head.
pub const ABLATION: UnitMetric = UnitMetric {
    metric: Metric {
        id: "head_ablation",
        title: "KLD without the head",
        unit: "nats",
        description: "Mean KL divergence of the next-token distribution from the original's when this head gives zeros",
        label: Label::MeasuredWeightsOnly,
    },
    kind: UnitKind::Head,
};

/// KLD without a KV group.
pub const GROUP_ABLATION: UnitMetric = UnitMetric {
    metric: Metric {
        id: "kv_group_ablation",
        title: "KLD without the KV group",
        unit: "nats",
        description: "Mean KL divergence of the next-token distribution from the original's when a KV group's heads give zeros",
        label: Label::MeasuredWeightsOnly,
    },
    kind: UnitKind::KvGroup,
};

/// Every head's importance by gradient, from one backward pass per window.
pub(super) fn gradients(
    checkpoint: &Checkpoint,
    text: &GroupedText,
    options: &UnitOptions,
    progress: &Progress,
    found: &mut dyn FnMut(UnitValue),
) -> Result<()> {
    // Weights in f32, and room for the activations of one window.
    fisher::check_memory(checkpoint, 8, options.most_gradient_bytes)?;
    let model = Differentiable::load_frozen(checkpoint, &options.device, progress)?;
    progress.begin(Phase::MeasuringGradients, text.scored_tokens() as u64, Unit::Tokens);
    let mut slopes: Vec<Vec<Vec<f64>>> =
        model.config.layers.iter().map(|shape| vec![Vec::with_capacity(text.windows.len()); shape.heads]).collect();
    for window in &text.windows {
        let window_slopes = model.head_gradients(&window.ids, window.scored_from, progress)?;
        for (slopes, own) in slopes.iter_mut().zip(window_slopes) {
            for (slopes, slope) in slopes.iter_mut().zip(own) {
                slopes.push(f64::from(slope).abs());
            }
        }
        progress.advance((window.ids.len() - window.scored_from) as u64);
    }
    for (layer, heads) in slopes.into_iter().enumerate() {
        for (head, slopes) in heads.into_iter().enumerate() {
            let (value, stderr) = mean_and_stderr(slopes.iter().copied());
            if !value.is_finite() {
                return Err(Fault::new(Stage::Sensitivity, "its gradient is NaN or infinite")
                    .at(format!("head {head} of layer {layer}"))
                    .fix("look for NaN or infinity in the weights: `lapidary profile`")
                    .into());
            }
            found(UnitValue { layer, index: Some(head), value, stderr, groups: Vec::new() });
        }
    }
    Ok(())
}
