//! iq4_nl: 32 weights share an f16 scale; 4-bit codes stand for values that lie closer near zero.

use super::{Dtype, Encoding, Format};
use crate::kernels::packed::Layout;
use crate::kernels::{Level, nonlinear};

/// The iq4_nl format of ggml.
#[derive(Debug)]
pub(super) struct Iq4Nl;

impl Format for Iq4Nl {
    fn id(&self) -> &'static str {
        "iq4_nl"
    }

    fn dtype(&self) -> Dtype {
        Dtype::Iq4Nl
    }

    fn fallback(&self) -> Option<&'static str> {
        Some("f16")
    }

    fn layout(&self) -> Option<Layout> {
        Some(Layout::Iq4Nl)
    }

    fn encode_rows(&self, source: &[f32], how: &Encoding<'_>, out: &mut [u8]) {
        nonlinear::encode_iq4_nl(Level::detect(), source, how.columns(), out);
    }

    fn decode_row(&self, source: &[u8], out: &mut [f32]) {
        nonlinear::decode_iq4_nl(source, out);
    }
}
