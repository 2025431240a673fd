//! KLD measured, weights only: one tensor, or one whole layer, at a time is quantized and dequantized
//! in memory, and the output distribution is compared with the original's over the same tokens. In
//! the networks that run here a role occurs once in a layer, so a tensor is also one role of one layer.
//!
//! What comes before the change is not run again: the original's rows are kept where they fit
//! [`ReferenceOptions`]. The picture is there early: formats come in the order of what they tell,
//! beginning next to four bits, where most plans lie, and layers are visited coarse to fine (first,
//! last, middle, then the middles of what is left) with all roles of a layer together, so that depth
//! and roles can be seen after a few cells. Finished cells of an earlier table of the same text are
//! taken over and never measured again.

use std::sync::Arc;

use super::coded::Decoded;
use super::grouped::GroupedText;
use super::reference::{ReferenceOptions, References};
use super::{GroupValue, Label, Metric, SensitivityRow, SensitivityTable, SensitivityValue};
use crate::calibration::Importance;
use crate::checkpoint::{Checkpoint, Role, TensorInfo};
use crate::error::{Fault, Result, Stage};
use crate::format::{self, Dtype, Format};
use crate::kernels::float;
use crate::model::{Change, Model, Replacement, Site, StoredMatrix};
use crate::progress::{Phase, Progress, Unit};
use crate::units;

/// KLD of single tensors.
pub const METRIC: Metric = Metric {
    id: "kld",
    title: "KLD",
    unit: "nats",
    description: "Mean KL divergence of the next-token distribution from the original's when only this tensor is changed",
    label: Label::MeasuredWeightsOnly,
};

/// KLD of whole layers.
pub const LAYER_METRIC: Metric = Metric {
    id: "kld_layer",
    title: "KLD of a layer",
    unit: "nats",
    description: "Mean KL divergence of the next-token distribution from the original's when every linear of one layer is changed",
    label: Label::MeasuredWeightsOnly,
};

/// What is changed at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Granularity {
    /// One tensor: one role of one layer, the embedding or the head.
    #[default]
    Tensor,
    /// Every linear of one layer.
    Layer,
}

impl Granularity {
    /// The metric whose table holds such cells.
    pub fn metric(self) -> &'static Metric {
        match self {
            Self::Tensor => &METRIC,
            Self::Layer => &LAYER_METRIC,
        }
    }
}

/// What to measure.
#[derive(Clone, Debug, Default)]
pub struct KldOptions {
    /// Formats by id; every quantized one where none is named.
    pub formats: Vec<String>,
    /// Tensors by name; the default subjects where none is named. Of layers, those that they lie in.
    pub tensors: Option<Vec<String>>,
    /// What is changed at a time.
    pub granularity: Granularity,
    /// Memory for the original's run.
    pub reference: ReferenceOptions,
    /// Encodes as a plan with this importance matrix does.
    pub importance: Option<Arc<Importance>>,
    /// Ends a cell early once its standard error is this share of its value: faster, with figures of
    /// fewer tokens; none measures all of the text.
    pub stop_at: Option<f64>,
    /// An earlier table, whose cells of the same text and importance are taken over.
    pub known: Option<Arc<SensitivityTable>>,
}

/// A row to measure: tensors that are changed together.
struct Subject<'a> {
    row: SensitivityRow,
    tensors: Vec<&'a TensorInfo>,
}

/// What was found of one cell.
struct Measured {
    value: f64,
    stderr: Option<f64>,
    stopped_after: Option<usize>,
    groups: Vec<GroupValue>,
}

/// The rows and columns that [`measured_kld`] fills, still empty but for what is known.
///
/// # Errors
/// An unknown format or tensor.
pub fn empty_table(checkpoint: &Checkpoint, text: &GroupedText, options: &KldOptions) -> Result<SensitivityTable> {
    let formats = formats(options)?;
    let mut table = SensitivityTable::new(checkpoint, options.granularity.metric(), &formats);
    table.imatrix = options.importance.as_ref().map(|importance| importance.hash.clone());
    table.basis = Some(text.basis());
    table.rows = subjects(checkpoint, options, formats.len())?.into_iter().map(|subject| subject.row).collect();
    if let Some(known) = options.known.as_ref().filter(|known| known.is_comparable(&table)) {
        for row in &mut table.rows {
            for (cell, format) in row.cells.iter_mut().zip(&table.formats) {
                let is_enough = |cell: &&SensitivityValue| options.stop_at.is_some() || cell.stopped_after.is_none();
                *cell = known.cell(&row.name, format).filter(is_enough).cloned();
            }
        }
        table.device = known.device.clone();
    }
    Ok(table)
}

/// Measures every cell that is not known and tells `on_cell` of each (row, column) as it comes.
///
/// # Errors
/// An unknown format or tensor, a tensor that is no matrix of the network, a model that yields no
/// finite numbers, or cancel.
pub fn measured_kld(
    checkpoint: &Checkpoint,
    model: &Model,
    text: &GroupedText,
    options: &KldOptions,
    progress: &Progress,
    on_cell: &mut dyn FnMut(usize, usize, &SensitivityValue),
) -> Result<SensitivityTable> {
    let formats = formats(options)?;
    let mut table = empty_table(checkpoint, text, options)?;
    let subjects = subjects(checkpoint, options, formats.len())?;
    let cells = order(&table, &formats);
    let tokens = text.scored_tokens() as u64;
    // The original's own run counts as one more cell.
    progress.begin(Phase::MeasuringKld, tokens * (cells.len() as u64 + 1), Unit::Tokens);
    if cells.is_empty() {
        progress.advance(tokens);
        return Ok(table);
    }
    let references = References::run(model, text, &options.reference, progress)?;
    for (row, column) in cells {
        let (subject, asked) = (&subjects[row], formats[column]);
        // Two formats that fall back to the same ones are measured once.
        let stored = |format: &'static dyn Format| {
            subject.tensors.iter().map(move |tensor| format::fitting(format, tensor.row_len()).id())
        };
        let same = |other: &usize| *other != column && stored(formats[*other]).eq(stored(asked));
        let twin = (0..formats.len()).filter(same).find_map(|other| table.rows[row].cells[other].as_ref());
        let measured = match twin {
            Some(twin) => {
                progress.advance(tokens);
                Measured {
                    value: twin.value,
                    stderr: twin.stderr,
                    stopped_after: twin.stopped_after,
                    groups: twin.groups.clone(),
                }
            }
            None => {
                let change = change(checkpoint, model, subject, asked, options, progress)?;
                if change.replacements.is_empty() {
                    progress.advance(tokens);
                    let groups = table.basis.as_ref().map_or(0, |basis| basis.groups.len());
                    let groups = vec![GroupValue { value: 0.0, stderr: 0.0 }; groups];
                    Measured { value: 0.0, stderr: Some(0.0), stopped_after: None, groups }
                } else {
                    let klds = references.klds(model, &change, &subject.row.name, options.stop_at, progress)?;
                    let (value, stderr, groups) = text.summary(&klds);
                    let stopped_after = (klds.len() < tokens as usize).then_some(klds.len());
                    Measured { value, stderr: Some(stderr), stopped_after, groups }
                }
            }
        };
        let cell = cell(subject, asked, measured);
        if let Some(cell) = &cell {
            on_cell(row, column, cell);
        }
        table.rows[row].cells[column] = cell;
    }
    // Only now: the device may have failed meanwhile.
    table.device = Some(model.device()).filter(|device| device != "cpu");
    Ok(table)
}

fn formats(options: &KldOptions) -> Result<Vec<&'static dyn Format>> {
    if options.formats.is_empty() {
        return Ok(format::quantized().collect());
    }
    super::select_formats(&options.formats)
}

/// What is changed at a time, in the checkpoint's order.
fn subjects<'a>(checkpoint: &'a Checkpoint, options: &KldOptions, columns: usize) -> Result<Vec<Subject<'a>>> {
    let selected = super::select_tensors(checkpoint, options.tensors.as_deref())?;
    let tensors = selected.iter().map(|&index| &checkpoint.tensors[index]);
    if options.granularity == Granularity::Tensor {
        let subject = |tensor| Subject { row: SensitivityRow::new(tensor, columns), tensors: vec![tensor] };
        return Ok(tensors.map(subject).collect());
    }
    let mut layers: Vec<usize> = tensors.filter_map(|tensor| tensor.layer).collect();
    layers.sort_unstable();
    layers.dedup();
    let linears = |layer: usize| -> Vec<&'a TensorInfo> {
        let tensors = checkpoint.tensors.iter();
        tensors
            .filter(|tensor| tensor.layer == Some(layer) && tensor.role.is_layer_linear())
            .filter(|tensor| super::is_default_subject(tensor))
            .collect()
    };
    let subject = |layer: usize| {
        let tensors = linears(layer);
        let row = SensitivityRow {
            name: format!("model.layers.{layer}"),
            role: Role::Other,
            layer: Some(layer),
            weight_count: tensors.iter().map(|tensor| tensor.weight_count()).sum(),
            cells: vec![None; columns],
        };
        Subject { row, tensors }
    };
    Ok(layers.into_iter().map(subject).filter(|subject| !subject.tensors.is_empty()).collect())
}

/// The cells to measure in the order of what they tell.
fn order(table: &SensitivityTable, formats: &[&'static dyn Format]) -> Vec<(usize, usize)> {
    /// Where most plans lie.
    const USUAL_BITS: f64 = 4.5;
    let mut columns: Vec<usize> = (0..formats.len()).collect();
    let distance = |column: usize| (formats[column].bits_per_weight() - USUAL_BITS).abs();
    columns.sort_by(|&one, &other| distance(one).total_cmp(&distance(other)));
    let layers = table.rows.iter().filter_map(|row| row.layer).max().map_or(0, |last| last + 1);
    let places = coarse_to_fine(layers);
    let mut rows: Vec<usize> = (0..table.rows.len()).collect();
    // What belongs to no layer comes last: it costs most.
    rows.sort_by_key(|&row| table.rows[row].layer.map_or(usize::MAX, |layer| places[layer]));
    let all = columns.iter().flat_map(|&column| rows.iter().map(move |&row| (row, column)));
    all.filter(|&(row, column)| table.rows[row].cells[column].is_none()).collect()
}

/// The place of each of `count` layers when first, last, middle and the middles between are taken in turn.
pub(super) fn coarse_to_fine(count: usize) -> Vec<usize> {
    let mut places = vec![usize::MAX; count];
    let mut next = 0;
    let mut take = |layer: usize| {
        if places[layer] == usize::MAX {
            places[layer] = next;
            next += 1;
        }
    };
    if let Some(last) = count.checked_sub(1) {
        take(0);
        take(last);
        let mut spans = std::collections::VecDeque::from([(0, last)]);
        while let Some((from, to)) = spans.pop_front() {
            if to - from > 1 {
                let middle = from + (to - from) / 2;
                take(middle);
                spans.extend([(from, middle), (middle, to)]);
            }
        }
    }
    places
}

/// The tensors of a subject as they come back from `asked`; those that do not change are left out.
fn change(
    checkpoint: &Checkpoint,
    model: &Model,
    subject: &Subject<'_>,
    asked: &'static dyn Format,
    options: &KldOptions,
    progress: &Progress,
) -> Result<Change> {
    let mut change = Change::default();
    for tensor in &subject.tensors {
        let columns = super::columns(options.importance.as_deref(), tensor)?;
        let stored = format::fitting(asked, tensor.row_len());
        if !stored.fits(tensor.row_len()) {
            let cause = format!("rows of {} do not fill {} blocks", tensor.row_len(), stored.id());
            return Err(Fault::new(Stage::Sensitivity, cause).at(&tensor.name).fix("leave this format out").into());
        }
        let decoded = Decoded::read(checkpoint, tensor, columns, progress)?;
        if let Some(values) = decoded.coded(stored, progress)? {
            let mut bytes = vec![0; values.len() * 4];
            float::encode_f32(&values, &mut bytes);
            let (rows, cols) = (tensor.row_count(), tensor.row_len());
            let matrix = StoredMatrix { dtype: Dtype::F32, rows, cols, bytes };
            change.replacements.push(Replacement::new(model, Site { layer: tensor.layer, role: tensor.role }, matrix)?);
        }
    }
    Ok(change)
}

fn cell(subject: &Subject<'_>, asked: &'static dyn Format, measured: Measured) -> Option<SensitivityValue> {
    let parts = subject
        .tensors
        .iter()
        .map(|tensor| SensitivityValue::new(measured.value, tensor, asked, format::fitting(asked, tensor.row_len())));
    let parts: Vec<SensitivityValue> = parts.collect::<Option<_>>()?;
    let bytes: u64 = parts.iter().map(|part| part.bytes).sum();
    Some(SensitivityValue {
        value: measured.value,
        stderr: measured.stderr,
        stopped_after: measured.stopped_after,
        bits_per_weight: units::bits_per_weight(bytes, subject.row.weight_count),
        bytes,
        fell_back_to: parts.iter().find_map(|part| part.fell_back_to.clone()),
        groups: measured.groups,
        weight_error: None,
    })
}

#[cfg(test)]
mod tests;
