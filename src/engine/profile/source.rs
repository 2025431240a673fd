//! Where a profile's weights come from: positioned reads of any stretch of a tensor, and what the
//! bit patterns of small types mean.

use std::ops::Range;

use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::error::{Fault, Result, Stage};
use crate::format::{self, Dtype};
use crate::kernels::counts::{KeyRange, Order, PATTERNS};

/// A tensor as a run of units that can be read in any stretches.
///
/// A unit is one weight of a plain type, and one row or, where that is long, one block of a
/// quantized one, so that a single row of any length streams through a small buffer. Only rows that
/// are put into another order while they are read (GGUF's q and k) have to be read whole.
#[derive(Debug)]
pub(super) struct Source<'a> {
    checkpoint: &'a Checkpoint,
    view: TensorInfo,
    /// Weights of one unit.
    pub(super) unit_len: usize,
    /// Bytes of one unit.
    pub(super) unit_bytes: usize,
    /// Number of units.
    pub(super) unit_count: usize,
    /// Units that should be read together: the rows of one head where they have to be put back in order.
    together: usize,
}

/// Rows of blocks up to this length are decoded as a whole.
const LONG_ROW: usize = 64 * 1024;

impl<'a> Source<'a> {
    /// The units of `tensor`.
    pub(super) fn new(checkpoint: &'a Checkpoint, tensor: &TensorInfo) -> Result<Self> {
        let mut view = tensor.clone();
        // Rows of types with parameters cannot be cut: what a group shares lies at their end. Neither can
        // rows that are put together when they are read.
        let is_short = tensor.dtype.is_scheme()
            || !tensor.lies_flat()
            || (!tensor.dtype.is_plain() && tensor.row_len() <= LONG_ROW);
        let mut together = 1;
        if let Some(heads) = tensor.permuted_heads {
            together = (tensor.row_count() / heads.max(1)).max(1);
        } else if !is_short {
            let unit_len = tensor.dtype.block_len();
            let unit_count = usize::try_from(tensor.weight_count() / unit_len as u64)
                .map_err(|_| Fault::new(Stage::Profile, "too many weights").at(&tensor.name))?;
            view.shape = vec![unit_count, unit_len];
        }
        let (unit_len, unit_count) = (view.row_len(), view.row_count());
        let unit_bytes = view.dtype.row_bytes(unit_len).ok_or_else(|| {
            Fault::new(Stage::Profile, format!("rows of {unit_len} weights do not fill {} blocks", view.dtype))
                .at(&tensor.name)
        })?;
        Ok(Self { checkpoint, view, unit_len, unit_bytes, unit_count, together })
    }

    /// Units that fit into `byte_count` bytes, but as many as have to be read together.
    pub(super) fn units_in(&self, byte_count: usize) -> usize {
        (byte_count / self.unit_bytes.max(1)).max(1).next_multiple_of(self.together)
    }

    /// The same for a number of weights.
    pub(super) fn units_of(&self, weight_count: usize) -> usize {
        (weight_count / self.unit_len.max(1)).max(1).next_multiple_of(self.together)
    }

    /// The stored bytes of `units`.
    pub(super) fn read(&self, units: Range<usize>, raw: &mut Vec<u8>) -> Result<()> {
        self.checkpoint.read_rows(&self.view, units, raw)
    }

    /// The stored bytes of whole rows of `tensor`, whose source this is.
    #[cfg(feature = "gpu")]
    pub(super) fn read_rows(&self, rows: Range<usize>, tensor: &TensorInfo, raw: &mut Vec<u8>) -> Result<()> {
        self.checkpoint.read_rows(tensor, rows, raw)
    }

    /// True if single precision holds the weights: f32 itself, and blocks that decode to it.
    pub(super) fn is_single(&self) -> bool {
        !matches!(self.view.dtype, Dtype::F64 | Dtype::I64 | Dtype::I32 | Dtype::U64 | Dtype::U32)
    }

    /// The weights of `units` in single precision.
    pub(super) fn read_singles(&self, units: Range<usize>, buffers: &mut Buffers) -> Result<()> {
        self.checkpoint.decode_rows(&self.view, units, &mut buffers.raw, &mut buffers.singles)
    }

    /// The weights of `units` in double precision, which holds all but the longest integers exactly.
    pub(super) fn read_values(&self, units: Range<usize>, buffers: &mut Buffers) -> Result<()> {
        let Buffers { raw, singles: decoded, values } = buffers;
        values.clear();
        macro_rules! plain {
            ($kind:ty) => {{
                self.read(units, raw)?;
                let words = raw.as_chunks::<{ size_of::<$kind>() }>().0;
                values.extend(words.iter().map(|&word| <$kind>::from_le_bytes(word) as f64));
            }};
        }
        match self.view.dtype {
            Dtype::F64 => plain!(f64),
            Dtype::I64 => plain!(i64),
            Dtype::I32 => plain!(i32),
            Dtype::U64 => plain!(u64),
            Dtype::U32 => plain!(u32),
            _ => {
                self.checkpoint.decode_rows(&self.view, units, raw, decoded)?;
                values.extend(decoded.iter().map(|&value| f64::from(value)));
            }
        }
        Ok(())
    }
}

/// Buffers that one thread reuses from read to read.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// Stored bytes.
    pub(super) raw: Vec<u8>,
    /// Weights in single precision.
    pub(super) singles: Vec<f32>,
    /// Weights in double precision.
    pub(super) values: Vec<f64>,
}

/// A type of at most 16 bits: what each bit pattern means.
#[derive(Debug)]
pub(super) struct Narrow {
    /// One byte a weight instead of two.
    pub(super) is_byte: bool,
    /// How its bits are ordered.
    pub(super) order: Order,
    /// The value of each pattern.
    pub(super) values: Vec<f32>,
    /// The keys of finite values.
    pub(super) finite: KeyRange,
}

impl Narrow {
    /// The patterns of `dtype`, if it has at most 16 bits and a decoder.
    pub(super) fn of(dtype: Dtype) -> Option<Self> {
        let (is_byte, order) = match dtype {
            Dtype::F16 | Dtype::Bf16 => (false, Order::SignMagnitude),
            Dtype::I16 => (false, Order::Signed),
            Dtype::U16 => (false, Order::Unsigned),
            Dtype::F8E4M3 | Dtype::F8E5M2 => (true, Order::SignMagnitude),
            Dtype::I8 => (true, Order::Signed),
            Dtype::U8 | Dtype::Bool => (true, Order::Unsigned),
            _ => return None,
        };
        let patterns: Vec<u8> =
            if is_byte { (0..=u8::MAX).collect() } else { (0..=u16::MAX).flat_map(u16::to_le_bytes).collect() };
        let mut values = vec![0.0; if is_byte { 256 } else { PATTERNS }];
        if !format::decode_row(dtype, &patterns, &mut values) {
            return None;
        }
        let mut narrow = Self { is_byte, order, values, finite: KeyRange::EMPTY };
        for pattern in 0..narrow.values.len() {
            if narrow.values[pattern].is_finite() {
                let key = narrow.key(pattern);
                narrow.finite = narrow.finite.union(KeyRange { lo: key, hi: key });
            }
        }
        Some(narrow)
    }

    fn key(&self, pattern: usize) -> i16 {
        if self.is_byte { i16::from(self.order.key8(pattern as u8)) } else { self.order.key16(pattern as u16) }
    }

    /// The value that has this key.
    pub(super) fn value_of_key(&self, key: i16) -> f32 {
        let pattern = if self.is_byte {
            usize::from(self.order.key8(key as u8) as u8)
        } else {
            usize::from(self.order.key16(key as u16) as u16)
        };
        self.values[pattern]
    }
}
