//! q3_k: 256 weights in 16 runs with 6-bit scales under one f16; 3-bit codes.

use super::{Dtype, Encoding, Format};
use crate::kernels::packed::Layout;
use crate::kernels::{Level, kquants, kquants_encode};

/// The q3_k format of ggml.
#[derive(Debug)]
pub(super) struct Q3K;

impl Format for Q3K {
    fn id(&self) -> &'static str {
        "q3_k"
    }

    fn dtype(&self) -> Dtype {
        Dtype::Q3K
    }

    fn fallback(&self) -> Option<&'static str> {
        Some("q4_0")
    }

    fn layout(&self) -> Option<Layout> {
        Some(Layout::Q3K)
    }

    fn encode_rows(&self, source: &[f32], how: &Encoding<'_>, out: &mut [u8]) {
        kquants_encode::encode_q3_k(Level::detect(), source, how.columns(), out);
    }

    fn decode_row(&self, source: &[u8], out: &mut [f32]) {
        kquants::decode_q3_k(source, out);
    }
}
