//! q2_k: 256 weights in 16 runs with 4-bit scales and minimums; 2-bit codes.

use super::{Dtype, Encoding, Format};
use crate::kernels::packed::Layout;
use crate::kernels::{Level, kquants, kquants_encode};

/// The q2_k format of ggml.
#[derive(Debug)]
pub(super) struct Q2K;

impl Format for Q2K {
    fn id(&self) -> &'static str {
        "q2_k"
    }

    fn dtype(&self) -> Dtype {
        Dtype::Q2K
    }

    fn fallback(&self) -> Option<&'static str> {
        Some("q4_0")
    }

    fn layout(&self) -> Option<Layout> {
        Some(Layout::Q2K)
    }

    fn encode_rows(&self, source: &[f32], how: &Encoding<'_>, out: &mut [u8]) {
        kquants_encode::encode_q2_k(Level::detect(), source, how.columns(), out);
    }

    fn decode_row(&self, source: &[u8], out: &mut [f32]) {
        kquants::decode_q2_k(source, out);
    }
}
