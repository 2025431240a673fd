//! q5_1: 32 weights share an f16 scale and an f16 minimum; 5-bit codes.

use super::{Dtype, Encoding, Format, ScanBuffers};
use crate::kernels::packed::Layout;
use crate::kernels::scan::{self, Errors};
use crate::kernels::{Level, legacy, legacy_encode};

/// The q5_1 format of ggml.
#[derive(Debug)]
pub(super) struct Q51;

impl Format for Q51 {
    fn id(&self) -> &'static str {
        "q5_1"
    }

    fn dtype(&self) -> Dtype {
        Dtype::Q5_1
    }

    fn fallback(&self) -> Option<&'static str> {
        Some("f16")
    }

    fn layout(&self) -> Option<Layout> {
        Some(Layout::Q5_1)
    }

    fn encode_rows(&self, source: &[f32], how: &Encoding<'_>, out: &mut [u8]) {
        legacy_encode::encode_q5_1(Level::detect(), source, how.columns(), out);
    }

    fn decode_row(&self, source: &[u8], out: &mut [f32]) {
        legacy::decode_q5_1(source, out);
    }

    fn scan(&self, source: &[f32], how: &Encoding<'_>, buffers: &mut ScanBuffers, errors: &mut Errors) {
        match how.importance {
            None => scan::q5_1(source, errors),
            // The weighted search has no kernel that leaves the bytes out.
            Some(_) => super::scan_by_coding(self, source, how, buffers, errors),
        }
    }
}
