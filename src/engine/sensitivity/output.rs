//! Predicted error of a linear's output: how far a format moves what the linear gives on a text.
//!
//! The value is `E‖(W − Q(W))x‖² / E‖Wx‖²` over the text's tokens. Both expectations follow from the
//! inputs' second moments, `E‖Ax‖² = tr(A E[xxᵀ] Aᵀ)`, so that one forward pass serves every format.
//! Where only the diagonal of `E[xxᵀ]` is known, channels are taken as uncorrelated: errors of
//! different columns then neither add up nor cancel. Nothing of what follows the linear is seen.

use std::sync::Arc;

use rayon::prelude::*;

use super::coded::Decoded;
use super::grouped::GroupedText;
use super::{Label, Metric, SensitivityRow, SensitivityTable};
use crate::calibration::{ActivationOptions, Activations, Importance, InputActivations};
use crate::checkpoint::{Checkpoint, Role};
use crate::error::Result;
use crate::kernels::dense::{Dense, Panels, Plain};
use crate::model::Model;
use crate::progress::{Phase, Progress, Unit};

/// What this metric is.
pub const METRIC: Metric = Metric {
    id: "output",
    title: "Output error",
    unit: "",
    description: "How far a format moves a linear's output on a text: E‖(W − Q(W))x‖² / E‖Wx‖², from its inputs' second moments",
    label: Label::Predicted,
};

/// What to predict.
#[derive(Clone, Debug, Default)]
pub struct OutputOptions {
    /// Formats by id; every one where none is named.
    pub formats: Vec<String>,
    /// Tensors by name; the default subjects where none is named.
    pub tensors: Option<Vec<String>>,
    /// Encodes as a plan with this importance matrix does.
    pub importance: Option<Arc<Importance>>,
    /// Memory for products of channels.
    pub activations: ActivationOptions,
}

/// Runs the model over the text once and fills the table; each finished row is handed to `on_row`.
/// The activations come back too. Counts tokens as [`Phase::Calibrating`], then bytes as
/// [`Phase::MeasuringWeights`]. An embedding that is no head multiplies nothing and has no values.
///
/// # Errors
/// An unknown format or tensor, a tensor that cannot be decoded, a model that yields no finite
/// numbers, or cancel.
pub fn output_error(
    checkpoint: &Checkpoint,
    model: &Model,
    text: &GroupedText,
    options: &OutputOptions,
    progress: &Progress,
    on_row: &mut dyn FnMut(usize, &SensitivityRow),
) -> Result<(SensitivityTable, Activations)> {
    let formats = super::select_formats(&options.formats)?;
    let selected = super::select_tensors(checkpoint, options.tensors.as_deref())?;
    let activations = Activations::collect(model, &text.windows, &text.name, &options.activations, progress)?;
    let tensors = || selected.iter().map(|&index| &checkpoint.tensors[index]);
    progress.begin(Phase::MeasuringWeights, tensors().map(|tensor| tensor.byte_count).sum(), Unit::Bytes);
    let mut table = SensitivityTable::new(checkpoint, &METRIC, &formats);
    table.imatrix = options.importance.as_ref().map(|importance| importance.hash.clone());
    table.basis = Some(text.basis_without_groups());
    for tensor in tensors() {
        let mut row = SensitivityRow::new(tensor, formats.len());
        let is_lookup = tensor.role == Role::Embedding && !model.config.tied_embeddings;
        let input = activations.input(tensor.layer, tensor.role).filter(|_| !is_lookup);
        if let Some(input) = input.filter(|input| input.width() == tensor.row_len()) {
            if input.products.is_none() {
                table.diagonal_only.push(tensor.name.clone());
            }
            let columns = super::columns(options.importance.as_deref(), tensor)?;
            let decoded = Decoded::read(checkpoint, tensor, columns, progress)?;
            let energy = Energy::new(input);
            let signal = energy.of(&decoded.values);
            row.cells = decoded.cells(&formats, progress, &mut |weights, coded| {
                let error: Vec<f32> = weights.iter().zip(coded).map(|(weight, coded)| weight - coded).collect();
                Some(energy.of(&error) / signal)
            })?;
        }
        on_row(table.rows.len(), &row);
        table.rows.push(row);
        progress.advance(tensor.byte_count);
    }
    table.device = Some(model.device()).filter(|device| device != "cpu");
    Ok((table, activations))
}

/// `Σ_t ‖A x_t‖²` of matrices `A` over the tokens of one input.
pub(crate) struct Energy<'a> {
    input: &'a InputActivations,
    products: Option<Dense>,
}

impl<'a> Energy<'a> {
    pub(crate) fn new(input: &'a InputActivations) -> Self {
        let products = input.products.as_ref().map(|products| {
            let bytes: Vec<u8> = products.iter().flat_map(|value| value.to_le_bytes()).collect();
            Dense::new(Plain::F32, &bytes, input.width(), input.width())
        });
        Self { input, products }
    }

    /// `tr(A S Aᵀ)` with the sums of products `S`, or of squares alone; rows are summed in their order.
    pub(crate) fn of(&self, matrix: &[f32]) -> f64 {
        let width = self.input.width().max(1);
        let rows: Vec<f64> = match &self.products {
            Some(products) => {
                let mut moved = vec![0.0; matrix.len()];
                products.matmul(&Panels::new(matrix, width), &mut moved);
                let pairs = matrix.par_chunks_exact(width).zip(moved.par_chunks_exact(width));
                let dot = |(row, moved): (&[f32], &[f32])| {
                    row.iter().zip(moved).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>()
                };
                pairs.map(dot).collect()
            }
            None => matrix
                .par_chunks_exact(width)
                .map(|row| {
                    let terms = row.iter().zip(&self.input.squares);
                    terms.map(|(&value, &square)| f64::from(value) * f64::from(value) * square).sum()
                })
                .collect(),
        };
        rows.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::checkpoint::TensorInfo;
    use crate::model::{Batch, Tokenizer};
    use crate::scoring::{ScoredText, TextOptions, TextSource};

    struct Demo {
        checkpoint: Checkpoint,
        model: Model,
        text: GroupedText,
    }

    fn demo() -> Demo {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("assets/demo");
        let checkpoint = Checkpoint::open(&path).expect("opens");
        let model = Model::load(&checkpoint, &Progress::default()).expect("loads");
        let tokenizer = Tokenizer::of_checkpoint(&checkpoint).expect("tokenizer");
        let text = TextSource::read(&path.join("calibration.txt")).expect("reads");
        let options = TextOptions { max_tokens: Some(500), ..TextOptions::default() };
        let scored =
            ScoredText::new(&tokenizer, &text, model.config.context, model.config.vocab, &options).expect("cut");
        Demo { checkpoint, model, text: GroupedText::plain("calibration.txt", &scored) }
    }

    /// `Σ‖A x‖²` over the real inputs of a linear.
    fn brute(demo: &Demo, tensor: &TensorInfo, matrices: &[&[f32]]) -> Vec<f64> {
        let width = tensor.row_len();
        let mut sums = vec![0.0; matrices.len()];
        for window in &demo.text.windows {
            let mut batch = Batch::default();
            batch.push(&window.ids, None, None);
            let watch = &mut |input: crate::model::LinearInput<'_>| {
                let role = if tensor.role == Role::Embedding { Role::Head } else { tensor.role };
                if input.layer != tensor.layer || !input.roles.contains(&role) {
                    return;
                }
                for (sum, matrix) in sums.iter_mut().zip(matrices) {
                    for x in input.values.chunks_exact(width) {
                        for row in matrix.chunks_exact(width) {
                            let y: f64 = row.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
                            *sum += y * y;
                        }
                    }
                }
            };
            demo.model.watch_linears(&batch, &Progress::default(), watch).expect("runs");
        }
        sums
    }

    /// Full moments give what multiplying every input gives; the diagonal alone is within a factor.
    #[test]
    fn the_error_is_that_of_the_outputs_on_the_real_inputs() {
        let demo = demo();
        let progress = Progress::default();
        let names = ["model.layers.2.self_attn.k_proj.weight", "model.layers.5.self_attn.o_proj.weight"];
        let options = OutputOptions {
            formats: vec!["q8_0".to_owned(), "q3_k".to_owned()],
            tensors: Some(names.map(str::to_owned).to_vec()),
            ..OutputOptions::default()
        };
        let run = |options: &OutputOptions| {
            output_error(&demo.checkpoint, &demo.model, &demo.text, options, &progress, &mut |_, _| {}).expect("runs")
        };
        let (full, activations) = run(&options);
        let narrow = OutputOptions { activations: ActivationOptions { most_product_bytes: 0 }, ..options.clone() };
        let (diagonal, _) = run(&narrow);
        assert!(full.diagonal_only.is_empty() && diagonal.diagonal_only.len() == 2);
        assert!(activations.tokens >= 500 && activations.distinct_tokens > 50);
        for name in names {
            let tensor = demo.checkpoint.tensor(name).expect("named");
            let decoded = Decoded::read(&demo.checkpoint, tensor, None, &progress).expect("reads");
            for format in &options.formats {
                let known = crate::format::find(format).expect("known");
                let coded = decoded.coded(known, &progress).expect("codes").expect("changes");
                let error: Vec<f32> = decoded.values.iter().zip(&coded).map(|(w, q)| w - q).collect();
                let sums = brute(&demo, tensor, &[&error, &decoded.values]);
                let expected = sums[0] / sums[1];
                let found = full.cell(name, format).expect("a value").value;
                assert!((found / expected - 1.0).abs() < 1e-4, "{name} {format}: {found} {expected}");
                let rough = diagonal.cell(name, format).expect("a value").value;
                // Signals add up over correlated channels where rounding errors do not.
                assert!((0.2..5.0).contains(&(rough / expected)), "{name} {format}: {rough} {expected}");
            }
        }
    }
}
