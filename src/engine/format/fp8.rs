//! fp8: e4m3 and e5m2 with an f32 scale per tensor, channel or block of 128 × 128.
//!
//! The scale brings the largest magnitude to the type's largest value, whatever the choice of scale:
//! a float loses nothing by small values, so that clipping would only cost.

use std::borrow::Cow;

use super::scheme::{FP8_BLOCK, Fp8Scales, Fp8Scheme};
use super::survey::{Shared, Survey};
use super::{Dtype, Encoding, Format, ScanBuffers};
use crate::kernels::fp8;
use crate::kernels::scan::{self, Errors};

/// A scaled 8-bit float format.
#[derive(Debug)]
pub(super) struct ScaledFp8 {
    scheme: Fp8Scheme,
    id: &'static str,
    values: [f32; 256],
}

impl ScaledFp8 {
    pub(super) fn new(scheme: Fp8Scheme) -> Self {
        Self { scheme, id: scheme.id().leak(), values: scheme.kind.table() }
    }
}

/// Where the scales of given rows come from.
struct Scales<'a> {
    scheme: Fp8Scheme,
    shared: Option<Cow<'a, Shared>>,
    /// Index of the first row given among those that were surveyed.
    first_row: usize,
}

impl Scales<'_> {
    /// The scale of block `block` of given row `index`.
    fn of(&self, index: usize, block: usize, values: &[f32]) -> f32 {
        match self.shared.as_deref() {
            Some(Shared::Scale(scale)) => *scale,
            Some(Shared::Blocks { scales, per_row }) => {
                let at = (self.first_row + index) / FP8_BLOCK * per_row + block;
                scales.get(at).copied().unwrap_or(f32::EPSILON)
            }
            _ => self.scheme.kind.scale(fp8::most(values)),
        }
    }
}

impl ScaledFp8 {
    /// The scales of rows; without a survey of the tensor, the rows given are all there is.
    fn scales<'a>(&self, source: &[f32], how: &Encoding<'a>) -> Scales<'a> {
        let own = if how.shared.is_none() { super::survey_matrix(self, source, how) } else { None };
        let first_row = if own.is_some() { 0 } else { how.first_row };
        Scales { scheme: self.scheme, shared: how.shared.map(Cow::Borrowed).or(own.map(Cow::Owned)), first_row }
    }
}

impl Format for ScaledFp8 {
    fn id(&self) -> &'static str {
        self.id
    }

    fn dtype(&self) -> Dtype {
        Dtype::Fp8(self.scheme)
    }

    fn encode_rows(&self, source: &[f32], how: &Encoding<'_>, out: &mut [u8]) {
        let (row_len, group) = (how.row_len, self.scheme.group(how.row_len));
        let scales = self.scales(source, how);
        let rows = source.chunks_exact(row_len.max(1)).zip(out.chunks_exact_mut(self.scheme.row_bytes(row_len).max(1)));
        for (index, (row, out)) in rows.enumerate() {
            let (bytes, stored) = out.split_at_mut(row_len);
            let blocks = row.chunks(group).zip(bytes.chunks_mut(group)).zip(stored.as_chunks_mut::<4>().0);
            for (block, ((values, bytes), stored)) in blocks.enumerate() {
                let scale = scales.of(index, block, values);
                fp8::encode(self.scheme.kind, values, scale, bytes);
                *stored = scale.to_le_bytes();
            }
        }
    }

    fn scan(&self, source: &[f32], how: &Encoding<'_>, _: &mut ScanBuffers, errors: &mut Errors) {
        let group = self.scheme.group(how.row_len).max(1);
        let scales = self.scales(source, how);
        for (index, row) in source.chunks_exact(how.row_len.max(1)).enumerate() {
            for (block, values) in row.chunks(group).enumerate() {
                scan::fp8(values, self.scheme.kind, scales.of(index, block, values), errors);
            }
        }
    }

    fn decode_row(&self, source: &[u8], out: &mut [f32]) {
        let group = self.scheme.group(out.len());
        let (bytes, scales) = source.split_at(out.len());
        for ((bytes, scale), values) in bytes.chunks(group).zip(scales.as_chunks::<4>().0).zip(out.chunks_mut(group)) {
            fp8::decode(&self.values, bytes, f32::from_le_bytes(*scale), values);
        }
    }

    fn survey(&self, how: &Encoding<'_>) -> Option<Box<dyn Survey>> {
        let scheme = self.scheme;
        (scheme.scales != Fp8Scales::Channel).then(|| {
            Box::new(ScaleSurvey { scheme, row_len: how.row_len, rows: 0, most: Vec::new() }) as Box<dyn Survey>
        })
    }

    fn bits_per_weight(&self) -> f64 {
        8.0
    }

    fn stored_bytes(&self, rows: u64, len: usize) -> Option<u64> {
        self.scheme.stored_bytes(rows, len)
    }
}

/// Largest magnitudes of a tensor or of its blocks.
struct ScaleSurvey {
    scheme: Fp8Scheme,
    row_len: usize,
    rows: usize,
    most: Vec<f32>,
}

impl Survey for ScaleSurvey {
    fn look(&mut self, rows: &[f32]) {
        let row_len = self.row_len.max(1);
        if self.scheme.scales == Fp8Scales::Tensor {
            let most = self.most.first().copied().unwrap_or(0.0).max(fp8::most(rows));
            self.most = vec![most];
            return;
        }
        let per_row = row_len.div_ceil(FP8_BLOCK);
        for row in rows.chunks_exact(row_len) {
            let first = self.rows / FP8_BLOCK * per_row;
            self.most.resize(first + per_row, 0.0);
            for (most, values) in self.most[first..].iter_mut().zip(row.chunks(FP8_BLOCK)) {
                *most = most.max(fp8::most(values));
            }
            self.rows += 1;
        }
    }

    fn finish(self: Box<Self>) -> Shared {
        let scale = |most: f32| self.scheme.kind.scale(most);
        match self.scheme.scales {
            Fp8Scales::Block128 => Shared::Blocks {
                scales: self.most.iter().map(|&most| scale(most)).collect(),
                per_row: self.row_len.div_ceil(FP8_BLOCK),
            },
            _ => Shared::Scale(scale(self.most.first().copied().unwrap_or(0.0))),
        }
    }
}
