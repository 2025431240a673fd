//! Encoding on a device, checked against the reference while it goes on.
//!
//! Rows that the device flags are encoded by the format itself. Of the others every
//! [`PROOF_STEP`]th, and the first and the last of every piece, are encoded by both: where all follows
//! from one rounding ([`Recipe::is_exact`]) the bytes must be equal, and what a search found must be no
//! worse than what the reference finds.

use std::collections::VecDeque;
use std::ops::Range;

use rayon::prelude::*;

use super::super::{Dtype, Encoding, Format, Granularity};
use super::{given, recipe, source};
use crate::format;
use crate::kernels::gpu::{Device, Encoder, Failure, Recipe, RowLayout};
use crate::kernels::scan::Errors;

/// One row in so many is encoded by the reference too.
const PROOF_STEP: usize = 64;

/// A search on the device may leave this much more squared error than the reference's, over the rows compared.
const MOST_WORSE: f64 = 1.01;

/// True if a device can encode to the format. `searches` allows searches, whose bytes may differ from
/// the reference's where two choices are nearly equal.
pub fn can_encode(format: &dyn Format, how: &Encoding<'_>, searches: bool) -> bool {
    match (layout(format, how.row_len), recipe(format, how)) {
        (Some(_), Some(recipe)) => searches || recipe.is_exact(how.importance.is_some()),
        _ => false,
    }
}

/// Where the parts of a row begin; none for plain numbers, which the CPU converts as fast as it reads them.
fn layout(format: &dyn Format, row_len: usize) -> Option<RowLayout> {
    let bytes = format.dtype().row_bytes(row_len)?;
    Some(match format.dtype() {
        dtype if dtype.is_plain() => return None,
        Dtype::Int(scheme) => {
            let parts = scheme.row_parts(row_len);
            RowLayout { bytes, scales_at: parts.scales_at, zeros_at: parts.zeros_at }
        }
        _ => RowLayout { bytes, scales_at: row_len, zeros_at: bytes },
    })
}

/// True if the scales of a format come from a survey of the whole tensor.
fn needs_shared(format: &dyn Format) -> bool {
    match format.dtype() {
        Dtype::Int(scheme) => scheme.granularity() == Granularity::Tensor,
        Dtype::Fp8(scheme) => scheme.scales != super::super::Fp8Scales::Channel,
        Dtype::Bnb(scheme) => scheme.double_quantized,
        _ => false,
    }
}

/// Encoding of one tensor's rows.
#[derive(Debug)]
pub struct DeviceEncoder<'a> {
    encoder: Encoder<'a>,
    format: &'static dyn Format,
    how: Encoding<'a>,
    from: Dtype,
    is_exact: bool,
    rows: [u64; 2],
}

/// Squared errors of rows compared: by the device, and by the reference.
type Compared = (f64, f64);

impl<'a> DeviceEncoder<'a> {
    /// Makes ready to bring rows of `from` bytes to `format`; `how` has what a survey of the tensor found.
    ///
    /// # Errors
    /// A failure of the device, or a format that it cannot encode ([`can_encode`]).
    pub fn new(
        device: &'a Device,
        from: Dtype,
        format: &'static dyn Format,
        how: Encoding<'a>,
    ) -> Result<Self, Failure> {
        let missing = || Failure::Missing(format!("an encoder of {}", format.id()));
        let layout = layout(format, how.row_len).ok_or_else(missing)?;
        let recipe: Recipe = recipe(format, &how).ok_or_else(missing)?;
        if needs_shared(format) && how.shared.is_none() {
            return Err(missing());
        }
        let is_exact = recipe.is_exact(how.importance.is_some());
        let encoder = Encoder::new(device, how.row_len, layout, recipe, how.importance)?;
        Ok(Self { encoder, format, how, from, is_exact, rows: [0; 2] })
    }

    /// Rows encoded by the device, and handed back by it.
    pub fn rows(&self) -> [u64; 2] {
        self.rows
    }

    /// Encodes whole rows, the first of which has index `first_row`, from their own bytes; `out` has room
    /// for them. Answers how many of their weights are NaN or infinite.
    ///
    /// # Errors
    /// A failure of the device, or bytes of a sampled row that are not the reference's: `out` is then of no use.
    pub fn encode(&mut self, first_row: usize, source: &[u8], out: &mut [u8]) -> Result<usize, Failure> {
        let row_len = self.how.row_len;
        let in_bytes = self.from.row_bytes(row_len).filter(|&bytes| bytes > 0);
        let in_bytes = in_bytes.ok_or_else(|| Failure::TooLarge(format!("rows of {row_len} weights")))?;
        let out_bytes = self.format.dtype().row_bytes(row_len).unwrap_or(1).max(1);
        let rows = source.len() / in_bytes;
        let step = self.encoder.most_rows();
        let mut flying: VecDeque<Range<usize>> = VecDeque::new();
        let (mut not_finite, mut compared) = (0, (0.0, 0.0));
        let mut first = 0;
        while first < rows || !flying.is_empty() {
            if first < rows && !self.encoder.is_full() {
                let piece = first..(first + step).min(rows);
                self.submit(first_row, &source[piece.start * in_bytes..piece.end * in_bytes], piece.clone())?;
                first = piece.end;
                flying.push_back(piece);
                continue;
            }
            let Some(piece) = flying.pop_front() else { break };
            let bytes = &source[piece.start * in_bytes..piece.end * in_bytes];
            let out = &mut out[piece.start * out_bytes..piece.end * out_bytes];
            let (count, noise) = self.collect(first_row + piece.start, bytes, out)?;
            not_finite += count;
            compared = (compared.0 + noise.0, compared.1 + noise.1);
        }
        if compared.0 > compared.1 * MOST_WORSE {
            let share = compared.0 / compared.1;
            return Err(Failure::Wrong(format!("{} has {share:.3} times the error of the CPU's", self.format.id())));
        }
        Ok(not_finite)
    }

    /// Holds what the device writes against another reference.
    #[cfg(test)]
    pub(super) fn pretend(&mut self, how: Encoding<'a>) {
        self.how = how;
    }

    /// Sends a piece on its way: 16-bit and 32-bit floats as they are, all else decoded.
    fn submit(&mut self, first_row: usize, bytes: &[u8], rows: Range<usize>) -> Result<(), Failure> {
        let row_len = self.how.row_len;
        let count = rows.len();
        let given = self.how.shared.map(|shared| given(shared, first_row + rows.start, count, row_len));
        let mut decoded = Vec::new();
        let source = source(self.from, bytes, row_len, &mut decoded)?;
        self.encoder.submit(source, given.as_deref())
    }

    /// Takes in the oldest piece: its bytes, and what the reference has to say of some of its rows.
    fn collect(&mut self, first_row: usize, source: &[u8], out: &mut [u8]) -> Result<(usize, Compared), Failure> {
        let encoded = self.encoder.collect()?.ok_or_else(|| Failure::Driver("a piece got lost".to_owned()))?;
        if encoded.bytes().len() != out.len() {
            return Err(Failure::Driver(format!("{} bytes instead of {}", encoded.bytes().len(), out.len())));
        }
        out.copy_from_slice(encoded.bytes());
        let row_len = self.how.row_len;
        let out_bytes = self.format.dtype().row_bytes(row_len).unwrap_or(1).max(1);
        let rows = out.len() / out_bytes;
        let in_bytes = source.len() / rows.max(1);
        let mut is_flagged = vec![false; rows];
        encoded.flagged().for_each(|row| is_flagged[row] = true);
        let is_proof = |row: usize| row == 0 || row + 1 == rows || (first_row + row).is_multiple_of(PROOF_STEP);
        let (format, how, from, is_exact) = (self.format, self.how, self.from, self.is_exact);
        let found: Vec<(usize, Compared)> = out
            .par_chunks_exact_mut(out_bytes)
            .zip(source.par_chunks_exact(in_bytes.max(1)))
            .enumerate()
            .filter(|(row, _)| is_flagged[*row] || is_proof(*row))
            .map(|(row, (out, source))| {
                let mut values = vec![0.0; row_len];
                format::decode_row(from, source, &mut values);
                let mut reference = vec![0; out_bytes];
                format.encode_rows(&values, &Encoding { first_row: first_row + row, ..how }, &mut reference);
                if is_flagged[row] {
                    out.copy_from_slice(&reference);
                    return Ok((values.iter().filter(|value| !value.is_finite()).count(), (0.0, 0.0)));
                }
                if out == reference.as_slice() {
                    return Ok((0, (0.0, 0.0)));
                }
                if is_exact {
                    let at = out.iter().zip(&reference).position(|(a, b)| a != b).unwrap_or(0);
                    let place = format!("row {}, byte {at}", first_row + row);
                    return Err(Failure::Wrong(format!("{} differs from the CPU's at {place}", format.id())));
                }
                Ok((0, (noise(format, &values, out), noise(format, &values, &reference))))
            })
            .collect::<Result<_, _>>()?;
        let back = is_flagged.iter().filter(|flag| **flag).count();
        self.rows[0] += (rows - back) as u64;
        self.rows[1] += back as u64;
        let mut all = (0, (0.0, 0.0));
        for (count, (ours, reference)) in found {
            all = (all.0 + count, (all.1.0 + ours, all.1.1 + reference));
        }
        Ok(all)
    }
}

/// The squared error of an encoded row.
fn noise(format: &dyn Format, values: &[f32], row: &[u8]) -> f64 {
    let mut coded = vec![0.0; values.len()];
    format.decode_row(row, &mut coded);
    let mut errors = Errors::default();
    errors.add(values, &coded);
    errors.noise
}
