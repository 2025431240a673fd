//! f16: half precision, 11 significant bits; overflows beyond 65,504.

use super::{Dtype, Encoding, Format, ScanBuffers};
use crate::kernels::float;
use crate::kernels::scan::{self, Errors};

/// The f16 format.
#[derive(Debug)]
pub(super) struct F16;

impl Format for F16 {
    fn id(&self) -> &'static str {
        "f16"
    }

    fn dtype(&self) -> Dtype {
        Dtype::F16
    }

    fn encode_rows(&self, source: &[f32], _: &Encoding<'_>, out: &mut [u8]) {
        float::encode_f16(source, out);
    }

    fn decode_row(&self, source: &[u8], out: &mut [f32]) {
        float::decode_f16(source, out);
    }
    fn scan(&self, source: &[f32], _: &Encoding<'_>, _: &mut ScanBuffers, errors: &mut Errors) {
        scan::f16(source, errors);
    }
}
