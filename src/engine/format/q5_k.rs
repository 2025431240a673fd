//! q5_k: 256 weights in 8 runs with 6-bit scales and minimums; 5-bit codes.

use super::{Dtype, Encoding, Format};
use crate::kernels::packed::Layout;
use crate::kernels::{Level, kquants, kquants_encode};

/// The q5_k format of ggml.
#[derive(Debug)]
pub(super) struct Q5K;

impl Format for Q5K {
    fn id(&self) -> &'static str {
        "q5_k"
    }

    fn dtype(&self) -> Dtype {
        Dtype::Q5K
    }

    fn fallback(&self) -> Option<&'static str> {
        Some("q5_1")
    }

    fn layout(&self) -> Option<Layout> {
        Some(Layout::Q5K)
    }

    fn encode_rows(&self, source: &[f32], how: &Encoding<'_>, out: &mut [u8]) {
        kquants_encode::encode_q5_k(Level::detect(), source, how.columns(), out);
    }

    fn decode_row(&self, source: &[u8], out: &mut [f32]) {
        kquants::decode_q5_k(source, out);
    }
}
