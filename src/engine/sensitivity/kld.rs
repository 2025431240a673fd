//! KLD measured, weights only: one tensor at a time is quantized and dequantized in memory, and the
//! output distribution is compared with the original's over the same tokens.
//!
//! The layers before the changed one are not run again: the original's input of every layer is
//! kept where it fits [`KldOptions::kept_bytes`]. Formats are the outer loop, so that one whole
//! column of the map is there before the next begins.

use std::sync::Arc;

use rayon::prelude::*;

use super::{Label, Metric, SensitivityRow, SensitivityTable, SensitivityValue};
use crate::calibration::Importance;
use crate::checkpoint::{Checkpoint, Role, TensorInfo};
use crate::error::{Fault, Result, Stage};
use crate::format::{self, Dtype, Encoding, Format};
use crate::kernels::ops;
use crate::model::{Batch, LayerInputs, Model, Replacement, Site, StoredMatrix};
use crate::progress::{Phase, Progress, Unit};
use crate::scoring::ScoredText;

/// What this metric is.
pub const METRIC: Metric = Metric {
    id: "kld",
    title: "KLD",
    unit: "nats",
    description: "Mean KL divergence of the next-token distribution from the original's when only this tensor is changed",
    label: Label::MeasuredWeightsOnly,
};

/// Tokens that are run together.
const BATCH_TOKENS: usize = 1024;

/// What to measure.
#[derive(Clone, Debug)]
pub struct KldOptions {
    /// Formats by id; every quantized one where none is named.
    pub formats: Vec<String>,
    /// Tensors by name; the default subjects where none is named.
    pub tensors: Option<Vec<String>>,
    /// Memory for the original's layer inputs; beyond it, every run starts at the embedding.
    pub kept_bytes: u64,
    /// Memory for the original's logits; beyond it, they are computed again from its last states.
    pub kept_logit_bytes: u64,
    /// Encodes as a plan with this importance matrix does.
    pub importance: Option<Arc<Importance>>,
}

impl Default for KldOptions {
    fn default() -> Self {
        Self {
            formats: Vec::new(),
            tensors: None,
            kept_bytes: 512 << 20,
            kept_logit_bytes: 256 << 20,
            importance: None,
        }
    }
}

/// A stretch of text with what the original makes of it.
struct Reference {
    batch: Batch,
    /// Rows whose next token is scored.
    rows: Vec<usize>,
    inputs: LayerInputs,
    /// Final states of the scored rows.
    hidden: Vec<f32>,
    /// Logits of the scored rows, where they are kept.
    logits: Option<Vec<f32>>,
}

impl Reference {
    fn logits(&self, model: &Model) -> Result<std::borrow::Cow<'_, [f32]>> {
        Ok(match &self.logits {
            Some(logits) => logits.into(),
            None => model.logits(&self.hidden)?.into(),
        })
    }
}

fn rows_of(hidden: &[f32], width: usize, rows: &[usize]) -> Vec<f32> {
    rows.iter().flat_map(|&row| &hidden[row * width..(row + 1) * width]).copied().collect()
}

/// Runs the original once over the text.
fn references(model: &Model, text: &ScoredText, options: &KldOptions, progress: &Progress) -> Result<Vec<Reference>> {
    let tokens: usize = text.windows.iter().map(|window| window.ids.len()).sum();
    let width = model.config.hidden;
    let keep_inputs = (tokens * width * model.config.layers.len() * 4) as u64 <= options.kept_bytes;
    let keep_logits = (text.scored_tokens() * model.config.vocab * 4) as u64 <= options.kept_logit_bytes;
    let mut batches: Vec<(Batch, Vec<usize>)> = Vec::new();
    for window in &text.windows {
        let full = batches.last().is_none_or(|(batch, _)| batch.ids.len() + window.ids.len() > BATCH_TOKENS);
        if full {
            batches.push(Default::default());
        }
        if let Some((batch, rows)) = batches.last_mut() {
            let start = batch.ids.len();
            // The last token is predicted but never read.
            batch.push(&window.ids[..window.ids.len() - 1], None, None);
            rows.extend((window.scored_from..window.ids.len()).map(|position| start + position - 1));
        }
    }
    batches
        .into_iter()
        .map(|(batch, rows)| {
            let (hidden, inputs) = model.hidden_keeping_inputs(&batch, progress)?;
            let hidden = rows_of(&hidden, width, &rows);
            let logits = if keep_logits { Some(model.logits(&hidden)?) } else { None };
            progress.advance(rows.len() as u64);
            let inputs = if keep_inputs { inputs } else { LayerInputs::default() };
            Ok(Reference { batch, rows, inputs, hidden, logits })
        })
        .collect()
}

/// A tensor as it would come back from `format`, in f32, or `None` if nothing changes.
pub(super) fn requantized(
    checkpoint: &Checkpoint,
    tensor: &TensorInfo,
    format: &dyn Format,
    importance: Option<&[f32]>,
    progress: &Progress,
) -> Result<Option<StoredMatrix>> {
    if format.dtype() == tensor.dtype || format.dtype() == Dtype::F32 {
        return Ok(None);
    }
    let (rows, cols) = (tensor.row_count(), tensor.row_len());
    let row_bytes = format.dtype().row_bytes(cols).ok_or_else(|| {
        Fault::new(Stage::Sensitivity, format!("rows of {cols} do not fill {} blocks", format.id())).at(&tensor.name)
    })?;
    let how = Encoding { importance, scale_choice: super::scale_choice(importance), ..Encoding::plain(cols) };
    let mut values = Vec::new();
    progress.check()?;
    checkpoint.decode_rows(tensor, 0..rows, &mut Vec::new(), &mut values)?;
    let shared = format::survey_matrix(format, &values, &how);
    values.par_chunks_exact_mut(cols).enumerate().for_each_init(
        || vec![0; row_bytes],
        |bytes, (first_row, row)| {
            format.encode_rows(row, &Encoding { first_row, shared: shared.as_ref(), ..how }, bytes);
            format.decode_row(bytes, row);
        },
    );
    progress.check()?;
    let mut bytes = vec![0; values.len() * 4];
    crate::kernels::float::encode_f32(&values, &mut bytes);
    Ok(Some(StoredMatrix { dtype: Dtype::F32, rows, cols, bytes }))
}

/// KLD of every scored token with one matrix replaced.
fn distances(
    model: &Model,
    reference: &Reference,
    replacement: &Replacement,
    site: Site,
    progress: &Progress,
) -> Result<Vec<f64>> {
    let vocab = model.config.vocab;
    let hidden = if site.role == Role::Head {
        None
    } else {
        let hidden = model.hidden_with(&reference.batch, &reference.inputs, replacement, progress)?;
        Some(rows_of(&hidden, model.config.hidden, &reference.rows))
    };
    let logits = model.logits_with(hidden.as_deref().unwrap_or(&reference.hidden), replacement)?;
    let original = reference.logits(model)?;
    Ok(original
        .par_chunks_exact(vocab)
        .zip(logits.par_chunks_exact(vocab))
        .map(|(base, changed)| {
            // Rounding can bring the divergence of nearly equal rows a hair below zero.
            ops::kl_divergence(base, ops::log_sum_exp(base), changed, ops::log_sum_exp(changed)).max(0.0)
        })
        .collect())
}

/// Measures every selected tensor in every format and tells `on_cell` of each (row, column) as it comes.
///
/// # Errors
/// An unknown format or tensor, a tensor that is no matrix of the network, a model that yields no
/// finite numbers, or cancel.
pub fn measured_kld(
    checkpoint: &Checkpoint,
    model: &Model,
    text: &ScoredText,
    options: &KldOptions,
    progress: &Progress,
    on_cell: &mut dyn FnMut(usize, usize, &SensitivityValue),
) -> Result<SensitivityTable> {
    let formats: Vec<&'static dyn Format> = if options.formats.is_empty() {
        format::quantized().collect()
    } else {
        super::select_formats(&options.formats)?
    };
    let selected = super::select_tensors(checkpoint, options.tensors.as_deref())?;
    let tensors: Vec<&TensorInfo> = selected.iter().map(|&index| &checkpoint.tensors[index]).collect();
    let tokens = text.scored_tokens() as u64;
    // The original's own run counts as one more cell.
    let cells = (tensors.len() * formats.len()) as u64 + 1;
    progress.begin(Phase::MeasuringKld, tokens * cells, Unit::Tokens);
    let references = references(model, text, options, progress)?;
    let mut table = SensitivityTable::new(checkpoint, &METRIC, &formats);
    table.imatrix = options.importance.as_ref().map(|importance| importance.hash.clone());
    table.rows = tensors.iter().map(|tensor| SensitivityRow::new(tensor, formats.len())).collect();
    for (column, &asked) in formats.iter().enumerate() {
        for (row, tensor) in tensors.iter().enumerate() {
            let stored = format::fitting(asked, tensor.row_len());
            // Two formats that fall back to the same one are measured once.
            let known = formats[..column]
                .iter()
                .position(|earlier| format::fitting(*earlier, tensor.row_len()).id() == stored.id())
                .and_then(|earlier| table.rows[row].cells[earlier].clone());
            let (mean, stderr) = match known {
                Some(cell) => (cell.value, cell.stderr),
                None => {
                    let site = Site { layer: tensor.layer, role: tensor.role };
                    let columns = super::columns(options.importance.as_deref(), tensor)?;
                    match requantized(checkpoint, tensor, stored, columns, progress)? {
                        None => (0.0, Some(0.0)),
                        Some(matrix) => {
                            let replacement = Replacement::new(site, matrix)?;
                            let mut klds = Vec::with_capacity(tokens as usize);
                            for reference in &references {
                                progress.check()?;
                                klds.extend(distances(model, reference, &replacement, site, progress)?);
                                progress.advance(reference.rows.len() as u64);
                            }
                            let (mean, stderr) = crate::scoring::text_stats::mean_and_stderr(klds.iter().copied());
                            (mean, Some(stderr))
                        }
                    }
                }
            };
            if !mean.is_finite() {
                return Err(Fault::new(Stage::Sensitivity, "the model gives no finite probabilities")
                    .at(&tensor.name)
                    .fix("look for NaN or infinity in the weights: `lapidary profile`")
                    .file(&checkpoint.path)
                    .into());
            }
            let cell =
                SensitivityValue::new(mean, tensor, asked, stored).map(|cell| SensitivityValue { stderr, ..cell });
            if let Some(cell) = &cell {
                on_cell(row, column, cell);
            }
            table.rows[row].cells[column] = cell;
        }
    }
    Ok(table)
}
