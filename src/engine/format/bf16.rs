//! bf16: the upper half of an f32: its range with 8 significant bits.

use super::{Dtype, Encoding, Format, ScanBuffers};
use crate::kernels::float;
use crate::kernels::scan::{self, Errors};

/// The bf16 format.
#[derive(Debug)]
pub(super) struct Bf16;

impl Format for Bf16 {
    fn id(&self) -> &'static str {
        "bf16"
    }

    fn dtype(&self) -> Dtype {
        Dtype::Bf16
    }

    fn encode_rows(&self, source: &[f32], _: &Encoding<'_>, out: &mut [u8]) {
        float::encode_bf16(source, out);
    }

    fn decode_row(&self, source: &[u8], out: &mut [f32]) {
        float::decode_bf16(source, out);
    }
    fn scan(&self, source: &[f32], _: &Encoding<'_>, _: &mut ScanBuffers, errors: &mut Errors) {
        scan::bf16(source, errors);
    }
}
