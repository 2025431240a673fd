//! q4_0: 32 weights share an f16 scale; 4-bit codes around zero.

use super::{Dtype, Encoding, Format, ScanBuffers};
use crate::engine::kernels::legacy;
use crate::engine::kernels::packed::Layout;
use crate::engine::kernels::scan::{self, Errors};

/// The q4_0 format of ggml.
#[derive(Debug)]
pub(super) struct Q40;

impl Format for Q40 {
    fn id(&self) -> &'static str {
        "q4_0"
    }

    fn dtype(&self) -> Dtype {
        Dtype::Q4_0
    }

    fn fallback(&self) -> Option<&'static str> {
        Some("f16")
    }

    fn layout(&self) -> Option<Layout> {
        Some(Layout::Q4_0)
    }

    fn encode_rows(&self, source: &[f32], _: &Encoding<'_>, out: &mut [u8]) {
        legacy::encode_q4_0(source, out);
    }

    fn decode_row(&self, source: &[u8], out: &mut [f32]) {
        legacy::decode_q4_0(source, out);
    }
    fn scan(&self, source: &[f32], _: &Encoding<'_>, _: &mut ScanBuffers, errors: &mut Errors) {
        scan::q4_0(source, errors);
    }
}
