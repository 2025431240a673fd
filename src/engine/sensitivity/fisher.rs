//! Predicted KLD of every tensor and format from one backward pass over a text.
//!
//! To second order, moving the weights by `e` moves the next-token distribution by
//! `½ Σ F e²` nats a token, where `F` is the Fisher information of each weight: the mean square of
//! the gradient of the log-probability of a token drawn from the model itself (Amari, 1998;
//! diagonal as in Kirkpatrick et al., 2017). `F` is summed sequence by sequence, one f32 a weight;
//! then every format costs one encoding and no forward pass. With the text's own tokens for labels
//! the same sum predicts the rise of the loss (the first-order term is left out: at the end of
//! training it is noise).
//!
//! What it leaves out: how errors of different weights add up or cancel (`F`'s other entries) and
//! all that is not quadratic. It ranks well and underestimates coarse formats.

use std::collections::HashMap;
use std::sync::Arc;

use rayon::prelude::*;

use super::coded::Decoded;
use super::grouped::GroupedText;
use super::{Label, Metric, SensitivityRow, SensitivityTable};
use crate::calibration::Importance;
use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::device::Device;
use crate::error::{Fault, Result, Stage};
use crate::model::{Differentiable, Labels, Site};
use crate::progress::{Phase, Progress, Unit};
use crate::units;

/// What this metric is.
pub const METRIC: Metric = Metric {
    id: "fisher",
    title: "KLD by Fisher information",
    unit: "nats",
    description: "KLD predicted from squared gradients: half the sum of Fisher information times squared error",
    label: Label::Predicted,
};

/// What to predict.
#[derive(Clone, Debug)]
pub struct FisherOptions {
    /// Formats by id; every one where none is named.
    pub formats: Vec<String>,
    /// Tensors by name; the default subjects where none is named.
    pub tensors: Option<Vec<String>>,
    /// Which tokens the gradients are of.
    pub labels: Labels,
    /// Encodes as a plan with this importance matrix does.
    pub importance: Option<Arc<Importance>>,
    /// Memory for weights, gradients and information; a larger model is refused.
    pub most_bytes: u64,
    /// Where the gradients are taken.
    pub device: Device,
}

impl Default for FisherOptions {
    fn default() -> Self {
        Self {
            formats: Vec::new(),
            tensors: None,
            labels: Labels::Sampled { seed: 1 },
            importance: None,
            most_bytes: 16 << 30,
            device: Device::default(),
        }
    }
}

/// Fills the table; each finished row is handed to `on_row` with its index. Counts scored tokens as
/// [`Phase::MeasuringGradients`], then bytes as [`Phase::MeasuringWeights`].
///
/// # Errors
/// An unknown format or tensor, a model too large for [`FisherOptions::most_bytes`], a tensor that
/// cannot be decoded, gradients that are not finite, or cancel.
pub fn predicted_kld(
    checkpoint: &Checkpoint,
    text: &GroupedText,
    options: &FisherOptions,
    progress: &Progress,
    on_row: &mut dyn FnMut(usize, &SensitivityRow),
) -> Result<SensitivityTable> {
    let formats = super::select_formats(&options.formats)?;
    let selected = super::select_tensors(checkpoint, options.tensors.as_deref())?;
    // Weights, their gradients and the information, four bytes each.
    check_memory(checkpoint, 12, options.most_bytes)?;
    let information = Information::measure(checkpoint, &selected, text, options, progress)?;
    let tensors = || selected.iter().map(|&index| (index, &checkpoint.tensors[index]));
    progress.begin(Phase::MeasuringWeights, tensors().map(|(_, tensor)| tensor.byte_count).sum(), Unit::Bytes);
    let mut table = SensitivityTable::new(checkpoint, &METRIC, &formats);
    table.imatrix = options.importance.as_ref().map(|importance| importance.hash.clone());
    table.basis = Some(text.basis_without_groups());
    table.device = information.device.clone();
    for (index, tensor) in tensors() {
        let columns = super::columns(options.importance.as_deref(), tensor)?;
        let decoded = Decoded::read(checkpoint, tensor, columns, progress)?;
        let mut row = SensitivityRow::new(tensor, formats.len());
        if let Some(sums) = information.sums.get(&index) {
            row.cells = decoded.cells(&formats, progress, &mut |weights, coded| {
                Some(information.damage(sums, weights, coded, tensor.row_len()))
            })?;
        }
        on_row(table.rows.len(), &row);
        table.rows.push(row);
        progress.advance(tensor.byte_count);
    }
    Ok(table)
}

/// Refuses a model that needs more than `most_bytes` at so many bytes a weight.
pub(super) fn check_memory(checkpoint: &Checkpoint, bytes_per_weight: u64, most_bytes: u64) -> Result<()> {
    let weights: u64 = checkpoint.tensors.iter().map(TensorInfo::weight_count).sum();
    let needed = weights.saturating_mul(bytes_per_weight);
    if needed <= most_bytes {
        return Ok(());
    }
    Err(Fault::new(
        Stage::Sensitivity,
        format!("gradients of this model need {}, more than {}", units::bytes(needed), units::bytes(most_bytes)),
    )
    .fix("use a metric without gradients, which holds less in memory")
    .file(&checkpoint.path)
    .into())
}

/// Summed squares of gradients, one a weight.
struct Information {
    /// By index among the checkpoint's tensors.
    sums: HashMap<usize, Vec<f32>>,
    tokens: usize,
    /// What took the gradients, but for the CPU.
    device: Option<String>,
}

impl Information {
    fn measure(
        checkpoint: &Checkpoint,
        selected: &[usize],
        text: &GroupedText,
        options: &FisherOptions,
        progress: &Progress,
    ) -> Result<Self> {
        let model = Differentiable::load(checkpoint, &options.device, progress)?;
        let places: HashMap<Site, usize> = selected
            .iter()
            .map(|&index| {
                let tensor = &checkpoint.tensors[index];
                (Site { layer: tensor.layer, role: tensor.role }, index)
            })
            .collect();
        let mut sums: HashMap<usize, Vec<f32>> = selected
            .iter()
            .map(|&index| (index, vec![0.0; checkpoint.tensors[index].weight_count() as usize]))
            .collect();
        progress.begin(Phase::MeasuringGradients, text.scored_tokens() as u64, Unit::Tokens);
        let mut tokens = 0;
        for (number, window) in text.windows.iter().enumerate() {
            // Every window draws its own tokens, whatever the order of the work.
            let labels = match options.labels {
                Labels::Sampled { seed } => {
                    Labels::Sampled { seed: seed.wrapping_add((number as u64).wrapping_mul(0xd134_2543_de82_ef95)) }
                }
                Labels::Text => Labels::Text,
            };
            let mut add = |site: Site, gradient: &[f32]| {
                if let Some(sum) = places.get(&site).and_then(|index| sums.get_mut(index)) {
                    sum.par_iter_mut().zip(gradient).for_each(|(sum, &slope)| *sum += slope * slope);
                }
            };
            let count = model.sequence_gradients(&window.ids, window.scored_from, labels, progress, &mut add)?;
            tokens += count;
            progress.advance(count as u64);
        }
        let device = Some(model.device()).filter(|device| device != "cpu");
        Ok(Self { sums, tokens, device })
    }

    /// `½ Σ F e²` in nats a token, for a tensor with these summed squares of gradients.
    fn damage(&self, sums: &[f32], weights: &[f32], coded: &[f32], cols: usize) -> f64 {
        // Rows are summed one by one and then in order, so that threads do not change the result.
        let cols = cols.max(1);
        let rows: Vec<f64> = weights
            .par_chunks_exact(cols)
            .zip(sums.par_chunks_exact(cols))
            .zip(coded.par_chunks_exact(cols))
            .map(|((weights, sums), coded)| {
                let terms = weights.iter().zip(sums).zip(coded).map(|((&weight, &sum), &coded)| {
                    let error = f64::from(weight) - f64::from(coded);
                    f64::from(sum) * error * error
                });
                terms.sum::<f64>()
            })
            .collect();
        0.5 * rows.iter().sum::<f64>() / self.tokens.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::{Model, Tokenizer};
    use crate::scoring::{ScoredText, TextOptions, TextSource};
    use crate::sensitivity::kld::{KldOptions, measured_kld};
    use crate::sensitivity::ranks::spearman;

    /// The demo's rankings by prediction and by measurement agree, and small damage is predicted in
    /// size as well.
    #[test]
    fn predictions_rank_tensors_as_the_measured_kld_does() {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("assets/demo");
        let checkpoint = Checkpoint::open(&path).expect("the demo opens");
        let progress = Progress::default();
        let model = Model::load(&checkpoint, &progress).expect("loads");
        let tokenizer = Tokenizer::of_checkpoint(&checkpoint).expect("has a tokenizer");
        let text = TextSource::read(&path.join("calibration.txt")).expect("readable");
        let options = TextOptions { max_tokens: Some(1500), ..TextOptions::default() };
        let scored =
            ScoredText::new(&tokenizer, &text, model.config.context, model.config.vocab, &options).expect("cut");
        let scored = GroupedText::plain("calibration.txt", &scored);
        let formats = vec!["q4_k".to_owned()];
        let fisher = FisherOptions { formats: formats.clone(), ..FisherOptions::default() };
        let predicted = predicted_kld(&checkpoint, &scored, &fisher, &progress, &mut |_, _| {}).expect("predicts");
        let kld = KldOptions { formats, ..KldOptions::default() };
        let measured =
            measured_kld(&checkpoint, &model, &scored, &kld, &progress, &mut |_, _, _| {}).expect("measures");
        let column = |table: &SensitivityTable| -> Vec<f64> {
            table.rows.iter().map(|row| row.cells[0].as_ref().expect("a value").value).collect()
        };
        let (predicted, measured) = (column(&predicted), column(&measured));
        let rho = spearman(&predicted, &measured).expect("enough tensors");
        assert!(rho > 0.85, "Spearman {rho}");
        let (sum_predicted, sum_measured): (f64, f64) = (predicted.iter().sum(), measured.iter().sum());
        assert!((0.4..2.5).contains(&(sum_predicted / sum_measured)), "{sum_predicted} {sum_measured}");
    }

    #[test]
    fn a_model_beyond_the_memory_allowed_is_refused_before_it_is_loaded() {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("assets/demo");
        let checkpoint = Checkpoint::open(&path).expect("the demo opens");
        let err = check_memory(&checkpoint, 12, 1 << 20).expect_err("refused");
        assert!(err.to_string().contains("MiB"), "{err}");
    }
}
