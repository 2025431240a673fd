//! mxfp4: 32 weights share a power of two; codes are 4-bit floats (OCP Microscaling Formats 1.0).

use super::{Dtype, Encoding, Format};
use crate::kernels::packed::Layout;
use crate::kernels::{Level, nonlinear};

/// The mxfp4 format of ggml.
#[derive(Debug)]
pub(super) struct Mxfp4;

impl Format for Mxfp4 {
    fn id(&self) -> &'static str {
        "mxfp4"
    }

    fn dtype(&self) -> Dtype {
        Dtype::Mxfp4
    }

    fn fallback(&self) -> Option<&'static str> {
        Some("f16")
    }

    fn layout(&self) -> Option<Layout> {
        Some(Layout::Mxfp4)
    }

    fn encode_rows(&self, source: &[f32], _: &Encoding<'_>, out: &mut [u8]) {
        nonlinear::encode_mxfp4(Level::detect(), source, out);
    }

    fn decode_row(&self, source: &[u8], out: &mut [f32]) {
        nonlinear::decode_mxfp4(source, out);
    }
}
