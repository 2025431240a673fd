//! q4_0: 32 weights share an f16 scale; 4-bit codes around zero.

use super::{Dtype, Encoding, Format, ScanBuffers};
use crate::kernels::packed::Layout;
use crate::kernels::scan::{self, Errors};
use crate::kernels::{Level, legacy, legacy_encode};

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

    fn encode_rows(&self, source: &[f32], how: &Encoding<'_>, out: &mut [u8]) {
        legacy_encode::encode_q4_0(Level::detect(), source, how.columns(), out);
    }

    fn decode_row(&self, source: &[u8], out: &mut [f32]) {
        legacy::decode_q4_0(source, out);
    }

    fn scan(&self, source: &[f32], how: &Encoding<'_>, buffers: &mut ScanBuffers, errors: &mut Errors) {
        match how.importance {
            None => scan::q4_0(source, errors),
            // The weighted search has no kernel that leaves the bytes out.
            Some(_) => super::scan_by_coding(self, source, how, buffers, errors),
        }
    }
}
