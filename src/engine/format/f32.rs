//! f32: the value itself.

use super::{Dtype, Encoding, Format};
use crate::kernels::float;

/// The f32 format.
#[derive(Debug)]
pub(super) struct F32;

impl Format for F32 {
    fn id(&self) -> &'static str {
        "f32"
    }

    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn encode_rows(&self, source: &[f32], _: &Encoding<'_>, out: &mut [u8]) {
        float::encode_f32(source, out);
    }

    fn decode_row(&self, source: &[u8], out: &mut [f32]) {
        float::decode_f32(source, out);
    }
}
