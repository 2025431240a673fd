//! Relative weight error: how far a format moves a tensor's weights, without running the model.
//!
//! The value is the Frobenius norm of the change over that of the weights, `‖W − Q(W)‖ / ‖W‖`.
//! It needs nothing but the weights and takes seconds, and says nothing of whether the model uses
//! the directions that moved: predicted, not measured.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::place::Place;
use super::{Label, Metric, SensitivityRow, SensitivityTable, SensitivityValue};
use crate::calibration::Importance;
use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::device::Device;
use crate::error::{Fault, Result, Stage};
use crate::format::{self, Encoding, Format, ScanBuffers, Shared};
use crate::kernels::scan::Errors;
use crate::progress::{Phase, Progress, Unit};

/// The metric of this file.
pub const METRIC: Metric = Metric {
    id: "weight",
    title: "Relative weight error",
    unit: "",
    description: "How far a format moves the weights: ‖W − Q(W)‖ / ‖W‖",
    label: Label::Predicted,
};

/// What to look at.
#[derive(Clone, Debug, Default)]
pub struct WeightOptions {
    /// Ids of formats; empty for every one.
    pub formats: Vec<String>,
    /// Names of tensors; none for layers' matrices, embedding and head.
    pub tensors: Option<Vec<String>>,
    /// Encodes as a plan with this importance matrix does.
    pub importance: Option<Arc<Importance>>,
    /// Where the scans run.
    pub device: Device,
}

/// Other ways to look at the same change.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightError {
    /// Signal to quantization noise ratio in decibels, `20 log10(‖W‖ / ‖W − Q(W)‖)`; none without noise.
    pub sqnr_db: Option<f64>,
    /// Largest change of one weight.
    pub max_abs_error: f64,
    /// Cosine of the angle between the weights before and after; none where either is all zeros.
    pub cosine: Option<f64>,
}

/// The metric's value and its companions; none where a block was destroyed by NaN or infinity.
fn figures(sums: &Errors) -> Option<(f64, WeightError)> {
    let value = if sums.noise == 0.0 { 0.0 } else { (sums.noise / sums.signal).sqrt() };
    let cosine = sums.product / (sums.signal * sums.coded).sqrt();
    (value.is_finite() && sums.max_abs_error.is_finite()).then(|| {
        let error = WeightError {
            sqnr_db: (value > 0.0).then(|| -20.0 * value.log10()),
            max_abs_error: sums.max_abs_error,
            cosine: cosine.is_finite().then(|| cosine.clamp(-1.0, 1.0)),
        };
        (value, error)
    })
}

/// Fills the table, tensor after tensor with every core, and hands each finished row to `on_row`
/// with its index in the table.
///
/// A tensor that is already stored in a format keeps its bytes and has no error there. Counts the
/// bytes of the tensors as [`Phase::MeasuringWeights`].
///
/// # Errors
/// An unknown format or tensor, a type that cannot be decoded, an unreadable file, or cancel.
pub fn weight_error(
    checkpoint: &Checkpoint,
    options: &WeightOptions,
    progress: &Progress,
    on_row: &mut dyn FnMut(usize, &SensitivityRow),
) -> Result<SensitivityTable> {
    let formats = super::select_formats(&options.formats)?;
    let selected = super::select_tensors(checkpoint, options.tensors.as_deref())?;
    let tensors: Vec<&TensorInfo> = selected.iter().map(|&index| &checkpoint.tensors[index]).collect();
    if let Some(tensor) = tensors.iter().find(|tensor| !format::is_decodable(tensor.dtype)) {
        return Err(Fault::new(
            Stage::Sensitivity,
            format!("{} weights cannot be decoded by this version", tensor.dtype),
        )
        .at(&tensor.name)
        .fix("open the checkpoint that it was made from")
        .file(&checkpoint.path)
        .into());
    }
    progress.begin(Phase::MeasuringWeights, tensors.iter().map(|tensor| tensor.byte_count).sum(), Unit::Bytes);
    let mut table = SensitivityTable::new(checkpoint, &METRIC, &formats);
    table.imatrix = options.importance.as_ref().map(|importance| importance.hash.clone());
    let place = Place::new(&options.device);
    for tensor in tensors {
        let columns = super::columns(options.importance.as_deref(), tensor)?;
        let row = tensor_errors(checkpoint, tensor, &formats, columns, &place, progress)?;
        on_row(table.rows.len(), &row);
        table.rows.push(row);
    }
    table.device = place.used();
    Ok(table)
}

/// One row of the table.
fn tensor_errors(
    checkpoint: &Checkpoint,
    tensor: &TensorInfo,
    formats: &[&'static dyn Format],
    importance: Option<&[f32]>,
    place: &Place<'_>,
    progress: &Progress,
) -> Result<SensitivityRow> {
    let row_len = tensor.row_len();
    let mut row = SensitivityRow::new(tensor, formats.len());
    // Several formats may fall back to the same one, which is then tried once.
    let mut tried: Vec<&'static dyn Format> = Vec::new();
    let mut columns = Vec::new();
    for &asked in formats {
        let stored = format::fitting(asked, row_len);
        if !stored.fits(row_len) {
            columns.push(None);
            continue;
        }
        let known = tried.iter().position(|format| format.id() == stored.id());
        columns.push(Some(known.unwrap_or(tried.len())));
        if known.is_none() {
            tried.push(stored);
        }
    }
    let sums = all_sums(checkpoint, tensor, &tried, importance, place, progress)?;
    for ((cell, &asked), column) in row.cells.iter_mut().zip(formats).zip(columns) {
        if let Some(column) = column
            && let Some((value, error)) = figures(&sums[column])
        {
            *cell = SensitivityValue::new(value, tensor, asked, tried[column])
                .map(|cell| SensitivityValue { weight_error: Some(error), ..cell });
        }
    }
    Ok(row)
}

/// Sums of the whole tensor under each format. Spans have a size that depends on the tensor alone
/// and are merged in order, so that the sums do not depend on the number of threads.
fn all_sums(
    checkpoint: &Checkpoint,
    tensor: &TensorInfo,
    formats: &[&'static dyn Format],
    importance: Option<&[f32]>,
    place: &Place<'_>,
    progress: &Progress,
) -> Result<Vec<Errors>> {
    let row_len = tensor.row_len().max(1);
    let row_count = tensor.row_count();
    let span_weights = (tensor.weight_count() / 256).clamp(16 << 10, 256 << 10) as usize;
    let step = (span_weights / row_len).max(1);
    let how = Encoding { importance, scale_choice: super::scale_choice(importance), ..Encoding::plain(row_len) };
    let shared = checkpoint.survey(tensor, formats, &how, progress)?;
    let mut total = place.sums(checkpoint, tensor, formats, &how, &shared, progress)?;
    let left: Vec<usize> = (0..formats.len()).filter(|&at| total[at].is_none()).collect();
    if left.is_empty() {
        return Ok(total.into_iter().flatten().collect());
    }
    let spans: Vec<Vec<Errors>> = (0..row_count.div_ceil(step))
        .into_par_iter()
        .map_init(Buffers::default, |buffers, span| {
            let rows = span * step..((span + 1) * step).min(row_count);
            span_sums(checkpoint, tensor, rows, (formats, &left), &how, &shared, buffers, progress)
        })
        .collect::<Result<_>>()?;
    for span in &spans {
        for (&at, sums) in left.iter().zip(span) {
            total[at].get_or_insert_default().merge(sums);
        }
    }
    // A tensor without rows has no spans.
    Ok(total.into_iter().map(Option::unwrap_or_default).collect())
}

/// Weights that are decoded and scanned at a time: they stay in the second-level cache while every
/// format has its turn.
const PIECE_WEIGHTS: usize = 32 * 1024;

/// Buffers that one thread reuses from span to span.
#[derive(Default)]
struct Buffers {
    raw: Vec<u8>,
    weights: Vec<f32>,
    scan: ScanBuffers,
}

/// Sums of some rows under those of the formats whose places `wanted` has.
#[expect(clippy::too_many_arguments, reason = "one private step of one loop")]
fn span_sums(
    checkpoint: &Checkpoint,
    tensor: &TensorInfo,
    rows: Range<usize>,
    (formats, wanted): (&[&'static dyn Format], &[usize]),
    how: &Encoding<'_>,
    shared: &[Option<Shared>],
    buffers: &mut Buffers,
    progress: &Progress,
) -> Result<Vec<Errors>> {
    let Buffers { raw, weights, scan } = buffers;
    let row_len = tensor.row_len().max(1);
    // Rows of one head that have to be put back in order are read together.
    let together = tensor.permuted_heads.map_or(1, |heads| (tensor.row_count() / heads.max(1)).max(1));
    let step = (PIECE_WEIGHTS / row_len).max(1).next_multiple_of(together);
    let mut all = vec![Errors::default(); wanted.len()];
    for first in rows.clone().step_by(step) {
        progress.check()?;
        let piece = first..(first + step).min(rows.end);
        checkpoint.decode_rows(tensor, piece.clone(), raw, weights)?;
        for (sums, &at) in all.iter_mut().zip(wanted) {
            let (format, shared) = (formats[at], &shared[at]);
            if format.dtype() == tensor.dtype {
                sums.add(weights, weights);
                continue;
            }
            // The slowest formats take a while for one row: look at the flag before each.
            for (row, weights) in piece.clone().zip(weights.chunks_exact(row_len)) {
                progress.check()?;
                let how = Encoding { first_row: row, shared: shared.as_ref(), ..*how };
                format.scan(weights, &how, scan, sums);
            }
        }
        progress.advance(raw.len() as u64);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Role;

    /// A safetensors file of one f32 matrix with a layer's name.
    fn write(folder: &std::path::Path, row_count: usize, row_len: usize) -> Checkpoint {
        let values: Vec<u8> =
            (0..row_count * row_len).flat_map(|index| ((index as f32 * 0.37).sin() * 0.02).to_le_bytes()).collect();
        let mut header = format!(
            r#"{{"{NAME}":{{"dtype":"F32","shape":[{row_count},{row_len}],"data_offsets":[0,{}]}}}}"#,
            values.len()
        );
        while header.len() % 8 != 0 {
            header.push(' ');
        }
        let path = folder.join("model.safetensors");
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &values].concat();
        std::fs::write(&path, file).expect("a temporary folder can be written");
        Checkpoint::open(&path).expect("a well-formed file")
    }

    const NAME: &str = "model.layers.0.mlp.up_proj.weight";

    fn table(checkpoint: &Checkpoint, formats: &[&str]) -> SensitivityTable {
        let options =
            WeightOptions { formats: formats.iter().map(|&id| id.to_owned()).collect(), ..WeightOptions::default() };
        weight_error(checkpoint, &options, &Progress::default(), &mut |_, _| {}).expect("readable")
    }

    #[test]
    fn fewer_bits_mean_more_error_and_exact_sizes() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let checkpoint = write(folder.path(), 40, 512);
        let table = table(&checkpoint, &["f32", "bf16", "q8_0", "q4_0", "q4_k", "q2_k"]);
        let values: Vec<f64> = table.rows[0].cells.iter().map(|cell| cell.as_ref().expect("a value").value).collect();
        assert_eq!(values[0], 0.0);
        assert!(values[1] < 0.004 && values[1] < values[2] && values[2] < 0.01, "{values:?}");
        assert!(values[2] < values[3] && values[4] < values[5] && values[5] < 0.5, "{values:?}");
        let cell = table.cell(NAME, "Q4_K").expect("a value");
        assert_eq!((cell.bytes, cell.bits_per_weight, cell.fell_back_to.as_deref()), (40 * 288, 4.5, None));
        let text = serde_json::to_string(&table).expect("numbers only");
        assert!(text.contains(r#""role":"up""#) && text.contains(r#""label":"predicted""#), "{text}");
        let read: SensitivityTable = serde_json::from_str(&text).expect("the same document");
        let again = read.cell(NAME, "q4_k").expect("a value");
        assert!((again.value - cell.value).abs() < 1e-12 && again.bytes == cell.bytes, "{text}");
        assert_eq!((&read.formats, read.rows[0].role), (&table.formats, Role::Up));
        assert_eq!(table.value_range(Some(0)), None, "no error has no place on a logarithmic scale");
        assert_eq!(table.value_range(None), Some((values[1], values[5])));
    }

    #[test]
    fn the_error_is_that_of_the_encoded_rows_whatever_the_number_of_threads() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let checkpoint = write(folder.path(), 300, 256);
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            pool.install(|| table(&checkpoint, &["q4_0"]))
        };
        let one = with(1);
        assert_eq!(one, with(3));
        let format = format::find("q4_0").expect("a known format");
        let (mut raw, mut weights) = (Vec::new(), Vec::new());
        checkpoint.decode_rows(&checkpoint.tensors[0], 0..300, &mut raw, &mut weights).expect("readable");
        let mut encoded = vec![0; format.dtype().row_bytes(256).expect("whole blocks")];
        let (mut coded, mut noise, mut signal) = (vec![0.0; 256], 0.0, 0.0);
        for row in weights.chunks_exact(256) {
            format.encode_rows(row, &Encoding::plain(row.len()), &mut encoded);
            format.decode_row(&encoded, &mut coded);
            for (weight, coded) in row.iter().zip(&coded) {
                noise += f64::from(weight - coded).powi(2);
                signal += f64::from(*weight).powi(2);
            }
        }
        let value = one.cell(NAME, "q4_0").expect("a value").value;
        assert!((value - (noise / signal).sqrt()).abs() < 1e-6, "{value}");
    }

    #[test]
    fn rows_that_do_not_fill_blocks_fall_back_and_say_so() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let checkpoint = write(folder.path(), 8, 96);
        let table = table(&checkpoint, &["q4_k", "q8_0"]);
        let cell = table.cell(NAME, "q4_k").expect("a value");
        let expected = format::fitting(format::find("q4_k").expect("a known format"), 96);
        assert_eq!(cell.fell_back_to.as_deref(), Some(expected.id()));
        assert_eq!(cell.bytes, 8 * expected.dtype().row_bytes(96).expect("it fits") as u64);
        assert_eq!(table.cell(NAME, "q8_0").expect("a value").fell_back_to, None);
    }

    #[test]
    fn unknown_names_and_cancel_are_told() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let checkpoint = write(folder.path(), 8, 96);
        let run = |options: &WeightOptions, progress: &Progress| {
            weight_error(&checkpoint, options, progress, &mut |_, _| {}).expect_err("an error")
        };
        let options = WeightOptions { formats: vec!["q9".to_owned()], ..WeightOptions::default() };
        assert!(run(&options, &Progress::default()).to_string().contains("q4_k"));
        let options = WeightOptions {
            formats: Vec::new(),
            tensors: Some(vec!["model.nothing".to_owned()]),
            ..WeightOptions::default()
        };
        assert!(run(&options, &Progress::default()).to_string().contains("model.nothing"));
        let progress = Progress::default();
        progress.cancel();
        assert!(run(&WeightOptions::default(), &progress).is_cancelled());
    }

    #[test]
    fn the_error_of_halved_weights_is_one_half() {
        let weights = [3.0, -4.0, 0.0];
        let mut sums = Errors::default();
        sums.add_exactly(&weights, &[1.5, -2.0, 0.0]);
        let (value, error) = figures(&sums).expect("finite");
        assert!((value - 0.5).abs() < 1e-12);
        assert!((error.sqnr_db.expect("noise") - 6.0206).abs() < 1e-4);
        assert_eq!(error.max_abs_error, 2.0);
        assert!((error.cosine.expect("not zero") - 1.0).abs() < 1e-12);
    }

    #[test]
    fn zeros_kept_as_zeros_have_no_error_and_no_angle() {
        let mut sums = Errors::default();
        sums.add_exactly(&[0.0; 4], &[0.0; 4]);
        let (value, error) = figures(&sums).expect("finite");
        assert_eq!((value, error.sqnr_db, error.cosine), (0.0, None, None));
        sums.add_exactly(&[0.0], &[1.0]);
        assert!(figures(&sums).is_none(), "noise without signal has no ratio");
    }

    #[test]
    fn a_block_destroyed_by_infinity_has_no_figure() {
        let mut sums = Errors::default();
        sums.add_exactly(&[f32::INFINITY, 1.0], &[f32::NAN, f32::NAN]);
        assert!(figures(&sums).is_none());
    }
}
