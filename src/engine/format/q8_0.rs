//! q8_0: 32 weights share an f16 scale; codes are signed bytes. Close to lossless.

use super::{Dtype, Encoding, Format, ScanBuffers};
use crate::kernels::packed::Layout;
use crate::kernels::scan::{self, Errors};
use crate::kernels::{Level, legacy, legacy_encode};

/// The q8_0 format of ggml.
#[derive(Debug)]
pub(super) struct Q80;

impl Format for Q80 {
    fn id(&self) -> &'static str {
        "q8_0"
    }

    fn dtype(&self) -> Dtype {
        Dtype::Q8_0
    }

    fn fallback(&self) -> Option<&'static str> {
        Some("f16")
    }

    fn layout(&self) -> Option<Layout> {
        Some(Layout::Q8_0)
    }

    fn encode_rows(&self, source: &[f32], _: &Encoding<'_>, out: &mut [u8]) {
        legacy_encode::encode_q8_0(Level::detect(), source, out);
    }

    fn decode_row(&self, source: &[u8], out: &mut [f32]) {
        legacy::decode_q8_0(source, out);
    }
    fn scan(&self, source: &[f32], _: &Encoding<'_>, _: &mut ScanBuffers, errors: &mut Errors) {
        scan::q8_0(source, errors);
    }
}
