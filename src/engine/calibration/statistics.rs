//! Figures of an importance matrix, one row a matrix, as `llama-imatrix --show-statistics` has them.

use std::collections::HashMap;

use serde::Serialize;

use super::{Importance, InputMoments};
use crate::checkpoint::Role;

/// A column whose mean square is no larger is called inactive.
const INACTIVE: f32 = 1e-5;

/// What the columns of one matrix's input look like. `E[x²]` is a column's mean square.
///
/// Definitions are those of `tools/imatrix/imatrix.cpp` (llama.cpp, MIT).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorStatistics {
    /// Hugging Face's name.
    pub name: String,
    /// The layer it belongs to, from 0.
    pub layer: Option<usize>,
    /// What it is in the network.
    #[serde(serialize_with = "write_role")]
    pub role: Role,
    /// Input columns.
    pub columns: usize,
    /// Tokens it saw (of experts, the fewest); none where the file does not say it.
    pub tokens: Option<u64>,
    /// True if these are too few to rely on.
    pub coverage_is_low: bool,
    /// Sum of `E[x²]` over the columns: how strong the input is.
    pub sum: f64,
    /// Smallest `E[x²]`.
    pub min: f64,
    /// Largest `E[x²]`.
    pub max: f64,
    /// Mean of `E[x²]`.
    pub mean: f64,
    /// Standard deviation of `E[x²]` over the columns.
    pub std: f64,
    /// Share of columns with `E[x²]` above 1e-5.
    pub active_share: f64,
    /// Entropy in bits of `E[x²]` taken as a distribution over the columns.
    pub entropy_bits: f64,
    /// That entropy as a share of the largest there can be: 1 where all columns are alike.
    pub entropy_share: f64,
    /// Share of columns more than one deviation above the mean (the ZD score of arXiv:2406.17415, section 3.1).
    pub zd_share: f64,
    /// Cosine of the angle to the same matrix's input one layer earlier, where there is one.
    pub cosine_with_previous: Option<f64>,
}

impl TensorStatistics {
    /// True if it saw too few tokens to rely on.
    pub fn is_low(&self) -> bool {
        self.coverage_is_low
    }
}

fn write_role<S: serde::Serializer>(role: &Role, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(role.name())
}

/// Statistics of every matrix, layer by layer in the order of roles, what belongs to no layer last.
pub(super) fn of(importance: &Importance) -> Vec<TensorStatistics> {
    let places: HashMap<(Option<usize>, &str), &InputMoments> = importance
        .tensors
        .iter()
        .map(|(name, moments)| ((Role::of_name(name).1, without_layer(name)), moments))
        .collect();
    let mut all: Vec<TensorStatistics> = importance
        .tensors
        .iter()
        .map(|(name, moments)| {
            let (role, layer) = Role::of_name(name);
            let previous = layer.and_then(|layer| places.get(&(Some(layer.checked_sub(1)?), without_layer(name))));
            let (tokens, coverage_is_low) = importance.coverage(moments);
            TensorStatistics {
                cosine_with_previous: previous.and_then(|previous| cosine(&moments.sums, &previous.sums)),
                tokens,
                coverage_is_low,
                ..figures(name.clone(), role, layer, moments)
            }
        })
        .collect();
    all.sort_by_key(|tensor| (tensor.layer.unwrap_or(usize::MAX), tensor.role));
    all
}

/// What follows the layer's number, which two layers have in common.
fn without_layer(name: &str) -> &str {
    match name.split_once(".layers.").or_else(|| name.split_once("blk.")) {
        Some((_, rest)) => rest.split_once('.').map_or(rest, |(_, rest)| rest),
        None => name,
    }
}

/// Everything that one matrix tells alone.
fn figures(name: String, role: Role, layer: Option<usize>, moments: &InputMoments) -> TensorStatistics {
    // Experts that saw nothing have no figures.
    let columns = moments.columns().max(1);
    let seen = moments.means().chunks(columns).zip(&moments.counts).filter(|(_, count)| **count > 0);
    let values: Vec<f64> = seen.flat_map(|(means, _)| means).map(|&mean| f64::from(mean)).collect();
    let count = values.len().max(1) as f64;
    let sum: f64 = values.iter().sum();
    let mean = sum / count;
    let std = (values.iter().map(|value| value * value).sum::<f64>() / count - mean * mean).max(0.0).sqrt();
    let share = |test: &dyn Fn(f64) -> bool| values.iter().filter(|&&value| test(value)).count() as f64 / count;
    let shares = values.iter().map(|value| value / sum).filter(|share| *share > 0.0);
    let entropy_bits: f64 = shares.map(|share| -share * share.log2()).sum();
    TensorStatistics {
        name,
        layer,
        role,
        columns,
        tokens: None,
        coverage_is_low: false,
        sum,
        min: if values.is_empty() { 0.0 } else { values.iter().copied().fold(f64::INFINITY, f64::min) },
        max: values.iter().copied().fold(0.0, f64::max),
        mean,
        std,
        active_share: share(&|value| value > f64::from(INACTIVE)),
        entropy_bits,
        entropy_share: if count > 1.0 { entropy_bits / count.log2() } else { 0.0 },
        zd_share: if std > 0.0 { share(&|value| (value - mean) / std > 1.0) } else { 0.0 },
        cosine_with_previous: None,
    }
}

/// Cosine of the angle between two lists; none where either is all zeros or their lengths differ.
fn cosine(a: &[f32], b: &[f32]) -> Option<f64> {
    if a.len() != b.len() {
        return None;
    }
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    cosine.is_finite().then_some(cosine)
}
