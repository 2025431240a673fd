//! Error scans on a device: what [`Format::scan`] adds up, for many rows at a time and for several
//! formats at once; and encoding ([`DeviceEncoder`]).
//!
//! Rows that the device flags are scanned by the format itself, so that the sums are those of the
//! reference to 1e-5 whatever the values.

mod encode;

pub use encode::{DeviceEncoder, can_encode};

use std::collections::VecDeque;

use rayon::prelude::*;

use super::{Dtype, Encoding, Format, Fp8Scales, Granularity, ScanBuffers, Shared};
use crate::kernels::gpu::{Device, Failure, Place, Recipe, Scales, Scanner, Source};
use crate::kernels::ints::ScaleChoice;
use crate::kernels::scan::Errors;

/// What a device has to do for a format; `None` where only the CPU can.
fn recipe(format: &dyn Format, how: &Encoding<'_>) -> Option<Recipe> {
    Some(match format.dtype() {
        Dtype::F32 => Recipe::F32,
        Dtype::F16 => Recipe::F16,
        Dtype::Bf16 => Recipe::Bf16,
        Dtype::Q4_0 => Recipe::Q4_0,
        Dtype::Q4_1 => Recipe::Q4_1,
        Dtype::Q5_0 => Recipe::Q5_0,
        Dtype::Q5_1 => Recipe::Q5_1,
        Dtype::Q8_0 => Recipe::Q8_0,
        Dtype::Mxfp4 => Recipe::Mxfp4,
        Dtype::Iq4Nl => Recipe::Iq4Nl,
        Dtype::Iq4Xs => Recipe::Iq4Xs,
        Dtype::Q2K => Recipe::Q2K,
        Dtype::Q3K => Recipe::Q3K,
        Dtype::Q4K => Recipe::Q4K,
        Dtype::Q5K => Recipe::Q5K,
        Dtype::Q6K => Recipe::Q6K,
        Dtype::Int(scheme) => {
            let (group, scales) = match (scheme.granularity(), how.scale_choice) {
                (Granularity::Tensor, _) => (0, Scales::Given),
                (granularity, choice) => {
                    let group = if let Granularity::Group(len) = granularity { len.into() } else { 0 };
                    let scales = match choice {
                        ScaleChoice::AbsMax => Scales::Range,
                        ScaleChoice::LeastSquares => Scales::LeastSquares,
                        ScaleChoice::Percentile(percent) => {
                            let len = if group == 0 { how.row_len } else { group };
                            let rest = how.row_len % len.max(1);
                            let last = if rest == 0 { len } else { rest };
                            Scales::Percentile { whole: Place::of(len, percent), last: Place::of(last, percent) }
                        }
                    };
                    (group, scales)
                }
            };
            let codes = scheme.codes();
            Recipe::Integers { bits: codes.bits, symmetric: codes.symmetric, scale: codes.scale, group, scales }
        }
        Dtype::Fp8(scheme) => {
            let (group, scales) = match scheme.scales {
                Fp8Scales::Tensor => (0, Scales::Given),
                Fp8Scales::Channel => (0, Scales::Range),
                Fp8Scales::Block128 => (super::FP8_BLOCK, Scales::Given),
            };
            Recipe::Fp8 { kind: scheme.kind, group, scales }
        }
        Dtype::Bnb(scheme) => Recipe::Table { table: scheme.table, is_nested: scheme.double_quantized },
        _ => return None,
    })
}

/// True if a device can scan the format.
pub fn can_scan(format: &dyn Format, how: &Encoding<'_>) -> bool {
    recipe(format, how).is_some()
}

/// True if the codes of a format come from a search, which takes far longer than one rounding.
pub fn is_search(format: &dyn Format, how: &Encoding<'_>) -> bool {
    recipe(format, how).is_some_and(|recipe| !recipe.is_exact(how.importance.is_some()))
}

/// Scale and zero of every group of some rows, of what the tensor shares.
fn given(shared: &Shared, first_row: usize, rows: usize, row_len: usize) -> Vec<[f32; 2]> {
    match shared {
        Shared::Grid(grid) => vec![[grid.scale, f32::from(grid.zero)]; rows],
        Shared::Scale(scale) => vec![[*scale, 0.0]; rows],
        Shared::Blocks { scales, per_row } => {
            let of_row = |row: usize| {
                let first = row / super::FP8_BLOCK * per_row;
                (first..first + per_row).map(|at| [scales.get(at).copied().unwrap_or(f32::EPSILON), 0.0])
            };
            (first_row..first_row + rows).flat_map(of_row).collect()
        }
        Shared::Nested(nested) => {
            let per_row = row_len / crate::kernels::bnb::BLOCK;
            (first_row * per_row..(first_row + rows) * per_row).map(|at| [nested.value(at), 0.0]).collect()
        }
    }
}

/// Bytes of a row as it is stored.
fn row_bytes(dtype: Dtype, row_len: usize) -> Result<usize, Failure> {
    let bytes = dtype.row_bytes(row_len).filter(|&bytes| bytes > 0);
    bytes.ok_or_else(|| Failure::TooLarge(format!("rows of {row_len} weights in {dtype}")))
}

/// Stored rows as they go up: floats of 16 and 32 bits as they are, all else decoded into `decoded`.
fn source<'a>(dtype: Dtype, bytes: &'a [u8], row_len: usize, decoded: &'a mut Vec<f32>) -> Result<Source<'a>, Failure> {
    Ok(match dtype {
        Dtype::F32 => Source::F32Bytes(bytes),
        Dtype::F16 => Source::F16(bytes),
        Dtype::Bf16 => Source::Bf16(bytes),
        _ => {
            let stored = row_bytes(dtype, row_len)?;
            decoded.resize(bytes.len() / stored * row_len, 0.0);
            let rows = bytes.par_chunks_exact(stored).zip(decoded.par_chunks_exact_mut(row_len));
            if !rows.map(|(row, out)| super::decode_row(dtype, row, out)).all(|is_known| is_known) {
                return Err(Failure::Missing(format!("a decoder of {dtype}")));
            }
            Source::F32(decoded)
        }
    })
}

/// Rows on the device, kept as they came for those that it hands back.
#[derive(Debug)]
struct Piece {
    first_row: usize,
    dtype: Dtype,
    bytes: Vec<u8>,
}

/// A scan of a tensor by several formats.
#[derive(Debug)]
pub struct DeviceScan<'a> {
    scanner: Scanner<'a>,
    formats: &'a [&'static dyn Format],
    how: Encoding<'a>,
    shared: &'a [Option<Shared>],
    pieces: VecDeque<Piece>,
    spare: Vec<Vec<u8>>,
    sums: Vec<Errors>,
    rows: [u64; 2],
}

impl<'a> DeviceScan<'a> {
    /// Makes ready to scan rows of `how.row_len` weights; `shared` has what a survey of the tensor
    /// found for each format.
    ///
    /// # Errors
    /// A failure of the device, or a format that it cannot scan ([`can_scan`]).
    pub fn new(
        device: &'a Device,
        formats: &'a [&'static dyn Format],
        how: Encoding<'a>,
        shared: &'a [Option<Shared>],
    ) -> Result<Self, Failure> {
        let recipes: Option<Vec<Recipe>> = formats.iter().map(|format| recipe(*format, &how)).collect();
        let recipes = recipes.ok_or_else(|| Failure::Missing("a format with a search of its own".to_owned()))?;
        Ok(Self {
            scanner: Scanner::new(device, how.row_len, &recipes, how.importance)?,
            formats,
            how,
            shared,
            pieces: VecDeque::new(),
            spare: Vec::new(),
            sums: vec![Errors::default(); formats.len()],
            rows: [0; 2],
        })
    }

    /// Rows that may be added at a time.
    pub fn most_rows(&self) -> usize {
        self.scanner.most_rows()
    }

    /// A buffer for the next rows, with old bytes or none.
    pub fn buffer(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    /// Adds whole rows of `dtype` as they are stored, the first of which has index `first_row`. Floats of 16 and
    /// 32 bits go up as they are, all else is decoded first.
    ///
    /// # Errors
    /// A failure of the device, or a type that nothing here decodes: what was added so far is lost.
    pub fn add(&mut self, first_row: usize, dtype: Dtype, bytes: Vec<u8>) -> Result<(), Failure> {
        while self.scanner.is_full() {
            self.collect()?;
        }
        let row_len = self.how.row_len;
        let rows = bytes.len() / row_bytes(dtype, row_len)?;
        let given: Vec<Option<Vec<[f32; 2]>>> = self
            .shared
            .iter()
            .map(|shared| shared.as_ref().map(|shared| given(shared, first_row, rows, row_len)))
            .collect();
        let mut decoded = Vec::new();
        self.scanner.submit(source(dtype, &bytes, row_len, &mut decoded)?, &given)?;
        self.pieces.push_back(Piece { first_row, dtype, bytes });
        Ok(())
    }

    /// Scans the rows that were added last `times` more times where they lie and waits for it: how fast the device is by
    /// itself, with nothing going up or coming down. Sums stay as they are.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn repeat(&self, times: usize) -> Result<(), Failure> {
        self.scanner.repeat(times)
    }

    /// Takes in the sums of the oldest piece.
    fn collect(&mut self) -> Result<(), Failure> {
        let found = self.scanner.collect()?;
        let Some(piece) = self.pieces.pop_front() else { return Ok(()) };
        for (index, rows) in found.into_iter().enumerate() {
            let back = rows.iter().filter(|sums| sums.is_none()).count() as u64;
            self.rows[0] += rows.len() as u64 - back;
            self.rows[1] += back;
            let (format, shared) = (self.formats[index], self.shared.get(index).and_then(Option::as_ref));
            let row_len = self.how.row_len;
            let stored = piece.bytes.par_chunks(row_bytes(piece.dtype, row_len)?);
            let sums: Vec<Errors> = rows
                .into_par_iter()
                .zip(stored)
                .enumerate()
                .map_init(<(Vec<f32>, ScanBuffers)>::default, |(weights, buffers), (row, (sums, stored))| {
                    sums.unwrap_or_else(|| {
                        let mut sums = Errors::default();
                        let how = Encoding { first_row: piece.first_row + row, shared, ..self.how };
                        weights.resize(row_len, 0.0);
                        // It could be decoded when it was added.
                        super::decode_row(piece.dtype, stored, weights);
                        format.scan(weights, &how, buffers, &mut sums);
                        sums
                    })
                })
                .collect();
            sums.iter().for_each(|sums| self.sums[index].merge(sums));
        }
        self.spare.push(piece.bytes);
        Ok(())
    }

    /// Rows so far, each counted once a format: scanned by the device, and handed back by it.
    pub fn rows(&self) -> [u64; 2] {
        self.rows
    }

    /// The sums of all rows, a format each.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn finish(&mut self) -> Result<Vec<Errors>, Failure> {
        while self.scanner.flying() > 0 {
            self.collect()?;
        }
        Ok(std::mem::replace(&mut self.sums, vec![Errors::default(); self.formats.len()]))
    }
}

#[cfg(test)]
mod tests;
