//! Formats of ggml that are read and never written here: the i-quants, the ternary ones, nvfp4, and
//! what ggml makes of activations.
//!
//! They are met in files, so they can be profiled, compared and re-planned. One line each: none has
//! an encoder, a fall-back or a packed product of its own.

use super::{Dtype, Encoding, Format};
use crate::kernels::{iquants, small_codes};

/// A format with nothing but a decoder.
#[derive(Debug)]
pub(super) struct DecodeOnly {
    dtype: Dtype,
    decode: fn(&[u8], &mut [f32]),
}

/// Every one of them, from most bits to fewest.
pub(super) const ALL: [&dyn Format; 14] = [
    &DecodeOnly { dtype: Dtype::Q8K, decode: small_codes::decode_q8_k },
    &DecodeOnly { dtype: Dtype::Q8_1, decode: small_codes::decode_q8_1 },
    &DecodeOnly { dtype: Dtype::Nvfp4, decode: small_codes::decode_nvfp4 },
    &DecodeOnly { dtype: Dtype::Iq3S, decode: iquants::decode_iq3_s },
    &DecodeOnly { dtype: Dtype::Iq3Xxs, decode: iquants::decode_iq3_xxs },
    &DecodeOnly { dtype: Dtype::Iq2S, decode: iquants::decode_iq2_s },
    &DecodeOnly { dtype: Dtype::Iq2Xs, decode: iquants::decode_iq2_xs },
    &DecodeOnly { dtype: Dtype::Q2_0, decode: small_codes::decode_q2_0 },
    &DecodeOnly { dtype: Dtype::Iq2Xxs, decode: iquants::decode_iq2_xxs },
    &DecodeOnly { dtype: Dtype::Tq2_0, decode: small_codes::decode_tq2_0 },
    &DecodeOnly { dtype: Dtype::Iq1M, decode: iquants::decode_iq1_m },
    &DecodeOnly { dtype: Dtype::Tq1_0, decode: small_codes::decode_tq1_0 },
    &DecodeOnly { dtype: Dtype::Iq1S, decode: iquants::decode_iq1_s },
    &DecodeOnly { dtype: Dtype::Q1_0, decode: small_codes::decode_q1_0 },
];

impl Format for DecodeOnly {
    fn id(&self) -> &'static str {
        self.dtype.name()
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn is_encodable(&self) -> bool {
        false
    }

    /// # Panics
    /// Always: see [`Format::is_encodable`].
    fn encode_rows(&self, _: &[f32], _: &Encoding<'_>, _: &mut [u8]) {
        panic!("{} is only read", self.dtype);
    }

    fn decode_row(&self, source: &[u8], out: &mut [f32]) {
        (self.decode)(source, out);
    }
}
