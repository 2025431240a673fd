//! How much every unit of the network matters: heads, KV groups, MLP channels and layers.
//!
//! The noun is [`UnitScores`], the entry [`scores`]; one file per metric. Metrics of activations take
//! one forward pass over the sample for all layers together, metrics of gradients one backward pass.
//! [`select()`] turns scores and a share to remove into a [`Removal`](crate::checkpoint::Removal), which a plan takes as an edit.
//!
//! It stands after `sensitivity`, whose metrics of heads and layers are scores too, and before `plan`,
//! which knows nothing of scores.

pub mod activations;
pub mod attention;
pub mod flap;
pub mod gradient;
pub mod limits;
pub mod magnitude;
pub mod masks;
pub mod means;
mod measured;
pub mod minitron;
pub mod random;
pub mod sample;
pub mod schedule;
pub mod select;
pub mod slices;
pub mod sparse_gpt;
pub mod study;
mod walk;
pub mod wanda;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use activations::Activations;
pub use means::InputMeans;
pub use sample::{Sample, SampleOptions};
pub use select::{Share, Take, select};

use super::checkpoint::{Checkpoint, LayerShape, ModelConfig, Role};
use super::device::Device;
use super::error::{Fault, Result, Stage};
use super::model::Model;
use super::progress::Progress;
use super::sensitivity::Label;

/// A way to score units. Larger scores matter more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Metric {
    /// A seeded draw: the floor that every other metric has to beat.
    Random,
    /// Norms of the weights that consume a unit.
    Magnitude,
    /// Norms of activations, by Minitron's order of means.
    Minitron,
    /// Weights times norms of activations.
    Wanda,
    /// Fluctuation of activations times norms of weights, standardised.
    Flap,
    /// Weights times gradients, one by one.
    Taylor,
    /// Gradients of a mask on each unit.
    MaskGradient,
    /// Squared weights times squared gradients, one by one.
    Fisher,
}

impl Metric {
    /// Every metric, cheapest first.
    pub const ALL: [Self; 8] = [
        Self::Random,
        Self::Magnitude,
        Self::Minitron,
        Self::Wanda,
        Self::Flap,
        Self::Taylor,
        Self::MaskGradient,
        Self::Fisher,
    ];

    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Magnitude => "magnitude",
            Self::Minitron => "minitron",
            Self::Wanda => "wanda",
            Self::Flap => "flap",
            Self::Taylor => "taylor",
            Self::MaskGradient => "mask_gradient",
            Self::Fisher => "fisher",
        }
    }

    /// The metric called `name`.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|metric| metric.name() == name)
    }

    /// What it is, in one sentence.
    pub fn description(self) -> &'static str {
        match self {
            Self::Random => "A draw by seed: what any metric must beat",
            Self::Magnitude => "Norm of the columns that read the unit",
            Self::Minitron => "Size of what the unit gives: mean over a sequence, root mean square over sequences",
            Self::Wanda => "Weights that read the unit times the norm of what it gives",
            Self::Flap => "Variance of what the unit gives times the norm of what reads it, standardised within layers",
            Self::Taylor => "First-order change of the loss without the unit, its weights taken one by one",
            Self::MaskGradient => "First-order change of the loss with a factor on what the unit gives",
            Self::Fisher => {
                "Second-order change of the loss without the unit: half its squared weights times Fisher information"
            }
        }
    }

    /// True if it looks at a text.
    pub fn needs_sample(self) -> bool {
        !matches!(self, Self::Random | Self::Magnitude)
    }

    /// True if scores of heads and of channels, and of all layers, are on one scale, so that one ranking can hold all.
    pub fn is_global(self) -> bool {
        matches!(self, Self::Random | Self::Flap | Self::Taylor | Self::MaskGradient | Self::Fisher)
    }
}

/// Scores of one layer's units, by original index.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerScores {
    /// One per query head.
    pub heads: Vec<f64>,
    /// One per KV head, with the query heads that use it.
    pub kv_groups: Vec<f64>,
    /// One per MLP channel.
    pub channels: Vec<f64>,
    /// The layer as a whole, where the metric says something of layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<f64>,
    /// Standard errors of the heads' scores over the sample's windows; empty where they are not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub head_stderr: Vec<f64>,
}

/// The noun of this module: one score per unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnitScores {
    /// Version of this document.
    pub version: u32,
    /// Fingerprint of the checkpoint.
    pub checkpoint: String,
    /// [`Metric::name`], or the name of another source.
    pub metric: String,
    /// No forward pass is made with the change, so always predicted.
    pub label: Label,
    /// BLAKE3 of the text, where one was looked at.
    pub text_hash: Option<String>,
    /// Tokens looked at.
    pub tokens: u64,
    /// What read the text, where one was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// One entry a layer.
    pub layers: Vec<LayerScores>,
}

impl UnitScores {
    /// These scores less `weight` times those of another text: lowest for units that the other text needs and
    /// this one does not. With Fisher information on two slices of users it shows what one of them loses and
    /// the other does not, and taking the lowest evens the two out (Wu et al., "FairPrune", 2022, whose
    /// weight is about a third).
    ///
    /// # Errors
    /// Scores of another checkpoint or by another metric.
    pub fn less(&self, other: &Self, weight: f64) -> Result<Self> {
        if self.checkpoint != other.checkpoint || self.metric != other.metric || self.layers.len() != other.layers.len()
        {
            return Err(Fault::new(Stage::Sensitivity, "the two scores are not of one checkpoint and one metric")
                .fix("score both texts by the same metric")
                .into());
        }
        let mut scores = self.clone();
        for (own, other) in scores.layers.iter_mut().zip(&other.layers) {
            for (own, other) in [
                (&mut own.heads, &other.heads),
                (&mut own.kv_groups, &other.kv_groups),
                (&mut own.channels, &other.channels),
            ] {
                own.iter_mut().zip(other).for_each(|(own, other)| *own -= weight * other);
            }
            own.layer = own.layer.zip(other.layer).map(|(own, other)| own - weight * other);
            for (own, other) in own.head_stderr.iter_mut().zip(&other.head_stderr) {
                *own = own.hypot(weight * other);
            }
        }
        Ok(scores)
    }
}

/// How the scores of a unit's columns make up its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Combine {
    Sum,
    Mean,
    /// Root of the sum of squares.
    Norm,
}

impl Combine {
    fn of(self, values: &[f64]) -> f64 {
        match self {
            Self::Sum => values.iter().sum(),
            Self::Mean => values.iter().sum::<f64>() / values.len().max(1) as f64,
            Self::Norm => values.iter().map(|value| value * value).sum::<f64>().sqrt(),
        }
    }
}

impl LayerScores {
    /// Scores from those of the input columns of `o` and `down`.
    fn of_columns(shape: &LayerShape, head_dim: usize, o: &[f64], down: &[f64], combine: Combine) -> Self {
        let heads: Vec<f64> = o.chunks_exact(head_dim).map(|columns| combine.of(columns)).collect();
        let group = shape.heads / shape.kv_heads;
        let kv_groups: Vec<f64> = heads.chunks_exact(group).map(|heads| combine.of(heads)).collect();
        // Standardised scores say nothing of whole layers: their mean is the same for all.
        let layer = (combine != Combine::Mean).then(|| combine.of(&[combine.of(&kv_groups), combine.of(down)]));
        Self { heads, kv_groups, channels: down.to_vec(), layer, head_stderr: Vec::new() }
    }
}

/// How units are scored.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScoreOptions<'a> {
    /// The text's windows, for metrics that look at a text.
    pub sample: Option<&'a Sample>,
    /// For [`Metric::Random`].
    pub seed: u64,
    /// Where the text is read and gradients are taken; none for the CPU.
    pub device: Option<&'a Device>,
}

/// Scores of all units of a checkpoint, and the means of their activations where these were looked at.
///
/// # Errors
/// A checkpoint that is no network that runs here, a metric that needs a text without one, weights or
/// activations that are not finite, or cancel.
pub fn scores(
    checkpoint: &Checkpoint,
    metric: Metric,
    options: &ScoreOptions<'_>,
    progress: &Progress,
) -> Result<(UnitScores, Option<InputMeans>)> {
    let config = checkpoint.require_config()?;
    let sample = match (metric.needs_sample(), options.sample) {
        (false, _) => None,
        (true, Some(sample)) => Some(sample),
        (true, None) => {
            return Err(Fault::new(Stage::Sensitivity, format!("the metric {} needs a text", metric.name()))
                .fix("give a text, or choose magnitude")
                .into());
        }
    };
    let (mut means, mut ran_on) = (None, None);
    let on_cpu = Device::default();
    let device = options.device.unwrap_or(&on_cpu);
    let layers = match (metric, sample) {
        (Metric::Taylor | Metric::MaskGradient | Metric::Fisher, Some(sample)) => {
            let (layers, device) = gradient::score(checkpoint, metric, sample, device, progress)?;
            ran_on = Some(device);
            layers
        }
        (Metric::Minitron | Metric::Wanda | Metric::Flap, Some(sample)) => {
            let model = Model::load_on(checkpoint, device, progress)?;
            let seen = Activations::watch(&model, sample, progress)?;
            ran_on = Some(model.device());
            drop(model);
            means = Some(seen.means());
            match metric {
                Metric::Minitron => minitron::score(config, &seen),
                Metric::Wanda => wanda::score(checkpoint, config, &seen, progress)?,
                _ => flap::score(checkpoint, config, &seen, progress)?,
            }
        }
        (Metric::Magnitude, _) => magnitude::score(checkpoint, config, progress)?,
        _ => random::score(config, options.seed),
    };
    check_finite(checkpoint, &layers)?;
    let scores = UnitScores {
        version: 1,
        checkpoint: checkpoint.fingerprint.clone(),
        metric: metric.name().to_owned(),
        label: Label::Predicted,
        text_hash: sample.map(|sample| sample.text_hash.clone()),
        tokens: sample.map_or(0, Sample::tokens),
        device: ran_on,
        layers,
    };
    Ok((scores, means))
}

fn check_finite(checkpoint: &Checkpoint, layers: &[LayerScores]) -> Result<()> {
    let is_finite = |scores: &LayerScores| {
        scores.heads.iter().chain(&scores.kv_groups).chain(&scores.channels).all(|score| score.is_finite())
    };
    match layers.iter().position(|scores| !is_finite(scores)) {
        None => Ok(()),
        Some(layer) => Err(Fault::new(Stage::Sensitivity, "the scores of its units are NaN or infinite")
            .at(format!("layer {layer}"))
            .fix("look for NaN or infinity in the weights: `lapidary profile`")
            .file(&checkpoint.path)
            .into()),
    }
}

/// Decodes a layer's `o` or `down`, some rows at a time, and folds them into one value a column.
fn fold_columns(
    checkpoint: &Checkpoint,
    layer: usize,
    role: Role,
    progress: &Progress,
    mut fold: impl FnMut(&mut [f64], &[f32]),
) -> Result<(Vec<f64>, usize)> {
    /// Values decoded at a time.
    const CHUNK_WEIGHTS: usize = 1 << 20;
    let stem = if role == Role::O { "self_attn.o_proj" } else { "mlp.down_proj" };
    let name = format!("model.layers.{layer}.{stem}.weight");
    let tensor = checkpoint
        .tensor(&name)
        .ok_or_else(|| Fault::new(Stage::Sensitivity, "the tensor is missing").at(name).file(&checkpoint.path))?;
    let (rows, cols) = (tensor.row_count(), tensor.row_len());
    let mut columns = vec![0.0; cols];
    let (mut raw, mut values) = (Vec::new(), Vec::new());
    let step = (CHUNK_WEIGHTS / cols.max(1)).max(1);
    for first in (0..rows).step_by(step) {
        progress.check()?;
        checkpoint.decode_rows(tensor, first..(first + step).min(rows), &mut raw, &mut values)?;
        values.chunks_exact(cols).for_each(|row| fold(&mut columns, row));
    }
    Ok((columns, rows))
}

/// Sum of squares of every column.
fn column_squares(checkpoint: &Checkpoint, layer: usize, role: Role, progress: &Progress) -> Result<Vec<f64>> {
    let square = |columns: &mut [f64], row: &[f32]| {
        columns.iter_mut().zip(row).for_each(|(sum, &w)| *sum += f64::from(w) * f64::from(w));
    };
    Ok(fold_columns(checkpoint, layer, role, progress, square)?.0)
}

/// Mean magnitude of every column.
fn column_means(checkpoint: &Checkpoint, layer: usize, role: Role, progress: &Progress) -> Result<Vec<f64>> {
    let add = |columns: &mut [f64], row: &[f32]| {
        columns.iter_mut().zip(row).for_each(|(sum, &w)| *sum += f64::from(w.abs()));
    };
    let (mut sums, rows) = fold_columns(checkpoint, layer, role, progress, add)?;
    sums.iter_mut().for_each(|sum| *sum /= rows.max(1) as f64);
    Ok(sums)
}

/// Scores of every layer from a function that answers the column scores of its `o` and `down`.
fn by_columns(
    config: &ModelConfig,
    combine: Combine,
    mut columns: impl FnMut(usize, Role) -> Result<Vec<f64>>,
) -> Result<Vec<LayerScores>> {
    let layers = config.layers.iter().enumerate();
    layers
        .map(|(index, shape)| {
            let (o, down) = (columns(index, Role::O)?, columns(index, Role::Down)?);
            Ok(LayerScores::of_columns(shape, config.head_dim, &o, &down, combine))
        })
        .collect()
}
