//! q5_0: 32 weights share an f16 scale; 5-bit codes around zero.

use super::{Dtype, Encoding, Format};
use crate::engine::kernels::packed::Layout;
use crate::engine::kernels::{Level, legacy, legacy_encode};

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

    fn encode_rows(&self, source: &[f32], how: &Encoding<'_>, out: &mut [u8]) {
        legacy_encode::encode_q5_0(Level::detect(), source, how.columns(), out);
    }

    fn decode_row(&self, source: &[u8], out: &mut [f32]) {
        legacy::decode_q5_0(source, out);
    }
}
