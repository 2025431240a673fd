//! q5_0: 32 weights share an f16 scale; 5-bit codes around zero.

use super::{Dtype, Encoding, Format, ScanBuffers};
use crate::engine::kernels::legacy;
use crate::engine::kernels::packed::Layout;
use crate::engine::kernels::scan::{self, Errors};

/// The q5_0 format of ggml.
#[derive(Debug)]
pub(super) struct Q50;

impl Format for Q50 {
    fn id(&self) -> &'static str {
        "q5_0"
    }

    fn dtype(&self) -> Dtype {
        Dtype::Q5_0
    }

    fn fallback(&self) -> Option<&'static str> {
        Some("f16")
    }

    fn layout(&self) -> Option<Layout> {
        Some(Layout::Q5_0)
    }

    fn encode_rows(&self, source: &[f32], _: &Encoding<'_>, out: &mut [u8]) {
        legacy::encode_q5_0(source, out);
    }

    fn decode_row(&self, source: &[u8], out: &mut [f32]) {
        legacy::decode_q5_0(source, out);
    }
    fn scan(&self, source: &[f32], _: &Encoding<'_>, _: &mut ScanBuffers, errors: &mut Errors) {
        scan::q5_0(source, errors);
    }
}
