//! q6_k: 256 weights in 16 runs with 8-bit scales under one f16; 6-bit codes.

use super::{Dtype, Encoding, Format};
use crate::kernels::packed::Layout;
use crate::kernels::{Level, kquants, kquants_encode};

/// The q6_k format of ggml.
#[derive(Debug)]
pub(super) struct Q6K;

impl Format for Q6K {
    fn id(&self) -> &'static str {
        "q6_k"
    }

    fn dtype(&self) -> Dtype {
        Dtype::Q6K
    }

    fn fallback(&self) -> Option<&'static str> {
        Some("q8_0")
    }

    fn layout(&self) -> Option<Layout> {
        Some(Layout::Q6K)
    }

    fn encode_rows(&self, source: &[f32], how: &Encoding<'_>, out: &mut [u8]) {
        kquants_encode::encode_q6_k(Level::detect(), source, how.columns(), out);
    }

    fn decode_row(&self, source: &[u8], out: &mut [f32]) {
        kquants::decode_q6_k(source, out);
    }
}
