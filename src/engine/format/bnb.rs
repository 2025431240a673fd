//! nf4 and fp4: blocks of 64 weights under one maximum, as bitsandbytes stores them.
//!
//! bitsandbytes cuts blocks out of the whole tensor, row after row; rows of whole blocks are the
//! same thing. The codes follow from the exact maxima, as there, also where double quantization
//! then stores the maxima in 8 bits.

use super::scheme::{self, BnbScheme};
use super::survey::{Shared, Survey};
use super::{Dtype, Encoding, Format};
use crate::kernels::bnb::{self, BLOCK, Nested};

/// A 4-bit table format.
#[derive(Debug)]
pub(super) struct Bnb {
    scheme: BnbScheme,
    id: &'static str,
}

impl Bnb {
    pub(super) fn new(scheme: BnbScheme) -> Self {
        Self { scheme, id: scheme.id().leak() }
    }
}

impl Format for Bnb {
    fn id(&self) -> &'static str {
        self.id
    }

    fn dtype(&self) -> Dtype {
        Dtype::Bnb(self.scheme)
    }

    fn fallback(&self) -> Option<&'static str> {
        Some("bf16")
    }

    fn encode_rows(&self, source: &[f32], how: &Encoding<'_>, out: &mut [u8]) {
        let row_len = how.row_len;
        let Some(row_bytes) = self.scheme.row_bytes(row_len).filter(|&bytes| bytes > 0) else { return };
        let own = if how.shared.is_none() { super::survey_matrix(self, source, how) } else { None };
        let first_row = if own.is_some() { 0 } else { how.first_row };
        let shared = how.shared.or(own.as_ref());
        let per_row = row_len / BLOCK;
        let mut maxima = vec![0.0; per_row];
        for (index, (row, out)) in source.chunks_exact(row_len).zip(out.chunks_exact_mut(row_bytes)).enumerate() {
            let (codes, stored) = out.split_at_mut(row_len / 2);
            bnb::encode(self.scheme.table, row, codes, &mut maxima);
            if let Some(Shared::Nested(nested)) = shared {
                for (block, most) in maxima.iter_mut().enumerate() {
                    *most = nested.value((first_row + index) * per_row + block);
                }
            }
            for (bytes, most) in stored.as_chunks_mut::<4>().0.iter_mut().zip(&maxima) {
                *bytes = most.to_le_bytes();
            }
        }
    }

    fn decode_row(&self, source: &[u8], out: &mut [f32]) {
        let (codes, maxima) = source.split_at(out.len() / 2);
        let maxima = maxima.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
        bnb::decode(self.scheme.table, codes, maxima, out);
    }

    fn survey(&self, _: &Encoding<'_>) -> Option<Box<dyn Survey>> {
        self.scheme.double_quantized.then(|| Box::new(MaximaSurvey(Vec::new())) as Box<dyn Survey>)
    }

    fn bits_per_weight(&self) -> f64 {
        scheme::bnb_bits(self.scheme)
    }

    fn stored_bytes(&self, rows: u64, len: usize) -> Option<u64> {
        self.fits(len).then(|| self.scheme.stored_bytes(rows, len)).flatten()
    }
}

/// The maxima of all blocks of a tensor.
struct MaximaSurvey(Vec<f32>);

impl Survey for MaximaSurvey {
    fn look(&mut self, rows: &[f32]) {
        self.0.extend(rows.chunks(BLOCK).map(crate::kernels::fp8::most));
    }

    fn finish(self: Box<Self>) -> Shared {
        Shared::Nested(Nested::of(&self.0))
    }
}
