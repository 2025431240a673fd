//! iq4_xs: the values of iq4_nl under 6-bit scales, eight runs of 32 to an f16.

use super::{Dtype, Encoding, Format};
use crate::kernels::packed::Layout;
use crate::kernels::{Level, nonlinear};

/// The iq4_xs format of ggml.
#[derive(Debug)]
pub(super) struct Iq4Xs;

impl Format for Iq4Xs {
    fn id(&self) -> &'static str {
        "iq4_xs"
    }

    fn dtype(&self) -> Dtype {
        Dtype::Iq4Xs
    }

    fn fallback(&self) -> Option<&'static str> {
        Some("iq4_nl")
    }

    fn layout(&self) -> Option<Layout> {
        Some(Layout::Iq4Xs)
    }

    fn encode_rows(&self, source: &[f32], how: &Encoding<'_>, out: &mut [u8]) {
        nonlinear::encode_iq4_xs(Level::detect(), source, how.columns(), out);
    }

    fn decode_row(&self, source: &[u8], out: &mut [f32]) {
        nonlinear::decode_iq4_xs(source, out);
    }
}
