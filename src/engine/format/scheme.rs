//! Formats with parameters: integer groups, 8-bit floats and bitsandbytes' 4-bit tables.
//!
//! A scheme says how a *canonical row* is laid out. Rows are what every kernel, metric and model
//! works on; containers store the same numbers in parts of their own (`target`):
//!
//! - [`IntScheme`]: `⌈len·bits/8⌉` bytes of dense codes (`kernels::bits`), one scale per group, and if
//!   asymmetric one byte per group with its zero. A weight is `scale × (code − zero)`. Per channel
//!   the row is one group; per tensor as well, with the same scale in every row.
//! - [`Fp8Scheme`]: `len` bytes, then f32 scales: one, or one per 128 columns for blocks of 128 × 128,
//!   repeated in each of the 128 rows. A weight is `value × scale`.
//! - [`BnbScheme`]: `len/2` bytes with the first code of two in the high nibble, then one f32 maximum
//!   per 64 weights, double quantization already undone.

use crate::kernels::bits;
use crate::kernels::bnb::{self, Table};
use crate::kernels::fp8::Fp8;
use crate::kernels::ints::{Codes, RowParts, ScaleType};

/// Rows and columns of an fp8 block.
pub const FP8_BLOCK: usize = 128;

/// What shares one scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Granularity {
    /// The whole tensor.
    Tensor,
    /// One row: an output channel.
    Channel,
    /// So many consecutive weights of a row.
    Group(u16),
}

/// Integer codes with shared scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IntScheme {
    bits: u8,
    granularity: Granularity,
    symmetric: bool,
    scale: ScaleType,
}

impl IntScheme {
    /// A scheme of 2 to 8 bits; groups are multiples of 16 from 16 to 256, or 512 or 1024.
    pub fn new(bits: u32, granularity: Granularity, symmetric: bool, scale: ScaleType) -> Option<Self> {
        let fits = match granularity {
            Granularity::Tensor | Granularity::Channel => true,
            Granularity::Group(len) => group_lens().any(|legal| legal == len),
        };
        ((2..=8).contains(&bits) && fits).then_some(Self { bits: bits as u8, granularity, symmetric, scale })
    }

    /// Every legal scheme.
    pub fn all() -> impl Iterator<Item = Self> {
        let granularities = [Granularity::Tensor, Granularity::Channel];
        let granularities = granularities.into_iter().chain(group_lens().map(Granularity::Group));
        granularities.flat_map(|granularity| {
            (2..=8).flat_map(move |bits| {
                [true, false].into_iter().flat_map(move |symmetric| {
                    ScaleType::ALL.into_iter().map(move |scale| Self { bits, granularity, symmetric, scale })
                })
            })
        })
    }

    /// Bits of a code.
    pub fn bits(self) -> u32 {
        self.bits.into()
    }

    /// What shares one scale.
    pub fn granularity(self) -> Granularity {
        self.granularity
    }

    /// True if no zeros are stored.
    pub fn is_symmetric(self) -> bool {
        self.symmetric
    }

    /// How scales are stored.
    pub fn scale(self) -> ScaleType {
        self.scale
    }

    /// Width, symmetry and scale for the kernels.
    pub fn codes(self) -> Codes {
        Codes { bits: self.bits(), symmetric: self.symmetric, scale: self.scale }
    }

    /// Weights of a group in a row of `len`: the whole row per channel and per tensor.
    pub fn group(self, len: usize) -> usize {
        match self.granularity {
            Granularity::Group(group) => group.into(),
            Granularity::Tensor | Granularity::Channel => len.max(1),
        }
    }

    /// Where the parts of a canonical row of `len` weights begin.
    pub fn row_parts(self, len: usize) -> RowParts {
        self.codes().row_parts(len, self.group(len))
    }

    /// The name of plans and the command line: `int4_g128`, `int8_channel`, `int3_g64_asym_bf16`.
    pub fn id(self) -> String {
        let granularity = match self.granularity {
            Granularity::Tensor => "tensor".to_owned(),
            Granularity::Channel => "channel".to_owned(),
            Granularity::Group(len) => format!("g{len}"),
        };
        let symmetry = if self.symmetric { "" } else { "_asym" };
        let scale = match self.scale {
            ScaleType::F16 => "",
            ScaleType::Bf16 => "_bf16",
            ScaleType::F32 => "_f32",
        };
        format!("int{}_{granularity}{symmetry}{scale}", self.bits)
    }

    /// The same scheme with half the group where that is still a usual one, else per channel.
    pub(super) fn narrower(self) -> Option<Self> {
        let granularity = match self.granularity {
            Granularity::Group(len) if len >= 64 && len.is_multiple_of(32) => Granularity::Group(len / 2),
            Granularity::Group(_) => Granularity::Channel,
            Granularity::Tensor | Granularity::Channel => return None,
        };
        Some(Self { granularity, ..self })
    }

    /// Bytes in a compressed-tensors folder: codes and packed zeros in whole 32-bit words, one scale
    /// per group, channel or tensor, and the shape in 16 bytes; 8 bits per tensor are stored plainly.
    pub(super) fn stored_bytes(self, rows: u64, len: usize) -> Option<u64> {
        if self.bits == 8 && self.granularity == Granularity::Tensor {
            let shared = self.scale.bytes() as u64 + u64::from(!self.symmetric);
            return rows.checked_mul(len as u64)?.checked_add(shared);
        }
        let words = |count: u64| count.checked_mul(self.bits.into()).map(|bits| bits.div_ceil(32) * 4);
        let codes = words(len as u64)?.checked_mul(rows)?;
        let groups = len.div_ceil(self.group(len)) as u64;
        let (scales, zeros) = match self.granularity {
            // One scale and one signed byte for all.
            Granularity::Tensor => (1, 1),
            _ => (groups.checked_mul(rows)?, words(rows)?.checked_mul(groups)?),
        };
        let zeros = if self.symmetric { 0 } else { zeros };
        codes.checked_add(scales.checked_mul(self.scale.bytes() as u64)?)?.checked_add(zeros)?.checked_add(16)
    }
}

/// Legal group lengths: what a plan may ask for, and what files of peers have.
fn group_lens() -> impl Iterator<Item = u16> {
    (1..=16).map(|sixteen| sixteen * 16).chain([512, 1024])
}

/// What shares one scale of an 8-bit float.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fp8Scales {
    /// The whole tensor.
    Tensor,
    /// One row.
    Channel,
    /// A block of 128 rows and 128 columns; those at the edges are smaller.
    Block128,
}

/// 8-bit floats with shared scales in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fp8Scheme {
    /// Which float.
    pub kind: Fp8,
    /// What shares a scale.
    pub scales: Fp8Scales,
}

impl Fp8Scheme {
    /// Every legal scheme.
    pub fn all() -> impl Iterator<Item = Self> {
        [Fp8::E4M3, Fp8::E5M2].into_iter().flat_map(|kind| {
            [Fp8Scales::Tensor, Fp8Scales::Channel, Fp8Scales::Block128]
                .into_iter()
                .map(move |scales| Self { kind, scales })
        })
    }

    /// Columns that share a scale in a row of `len`.
    pub fn group(self, len: usize) -> usize {
        if self.scales == Fp8Scales::Block128 { FP8_BLOCK } else { len.max(1) }
    }

    /// Bytes of a canonical row.
    pub fn row_bytes(self, len: usize) -> usize {
        len + len.div_ceil(self.group(len)) * 4
    }

    /// The name of plans and the command line: `fp8_e4m3_channel`.
    pub fn id(self) -> String {
        let kind = match self.kind {
            Fp8::E4M3 => "e4m3",
            Fp8::E5M2 => "e5m2",
        };
        let scales = match self.scales {
            Fp8Scales::Tensor => "tensor",
            Fp8Scales::Channel => "channel",
            Fp8Scales::Block128 => "block128",
        };
        format!("fp8_{kind}_{scales}")
    }

    /// Number of scales of a tensor.
    pub fn scale_count(self, rows: u64, len: usize) -> u64 {
        match self.scales {
            Fp8Scales::Tensor => 1,
            Fp8Scales::Channel => rows,
            Fp8Scales::Block128 => rows.div_ceil(FP8_BLOCK as u64).saturating_mul(len.div_ceil(FP8_BLOCK) as u64),
        }
    }

    /// Bytes in a compressed-tensors folder.
    pub(super) fn stored_bytes(self, rows: u64, len: usize) -> Option<u64> {
        rows.checked_mul(len as u64)?.checked_add(self.scale_count(rows, len).checked_mul(4)?)
    }
}

/// bitsandbytes' 4-bit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BnbScheme {
    /// Which table of values.
    pub table: Table,
    /// True if the maxima are stored in 8 bits.
    pub double_quantized: bool,
}

impl BnbScheme {
    /// Every legal scheme.
    pub fn all() -> impl Iterator<Item = Self> {
        [Table::Nf4, Table::Fp4]
            .into_iter()
            .flat_map(|table| [false, true].into_iter().map(move |double_quantized| Self { table, double_quantized }))
    }

    /// Bytes of a canonical row; rows are whole blocks of 64.
    pub fn row_bytes(self, len: usize) -> Option<usize> {
        len.is_multiple_of(bnb::BLOCK).then_some(len / 2 + len / bnb::BLOCK * 4)
    }

    /// The name of plans and the command line: `nf4`, `fp4_dq`.
    pub fn id(self) -> String {
        let table = match self.table {
            Table::Nf4 => "nf4",
            Table::Fp4 => "fp4",
        };
        format!("{table}{}", if self.double_quantized { "_dq" } else { "" })
    }

    /// Bytes in a bitsandbytes folder: codes, maxima, their own maxima, and the tables of values.
    ///
    /// The JSON of a tensor's state, some 200 bytes, is not counted: it holds no weights.
    pub(super) fn stored_bytes(self, rows: u64, len: usize) -> Option<u64> {
        let weights = rows.checked_mul(len as u64)?;
        let blocks = weights.div_ceil(bnb::BLOCK as u64);
        let maxima = if self.double_quantized {
            blocks + blocks.div_ceil(bnb::NESTED_BLOCK as u64) * 4 + 256 * 4
        } else {
            blocks.checked_mul(4)?
        };
        weights.div_ceil(2).checked_add(maxima)?.checked_add(16 * 4)
    }
}

/// Bits of one weight, where that does not depend on the tensor's size: scales per channel, per
/// tensor and per block of 128 × 128 are left out.
pub(super) fn int_bits(scheme: IntScheme) -> f64 {
    let bits = f64::from(scheme.bits());
    let zero = if scheme.is_symmetric() { 0.0 } else { bits };
    match scheme.granularity() {
        Granularity::Group(len) => bits + (scheme.scale().bytes() as f64 * 8.0 + zero) / f64::from(len),
        Granularity::Tensor | Granularity::Channel => bits,
    }
}

/// As [`int_bits`] for bitsandbytes' schemes.
pub(super) fn bnb_bits(scheme: BnbScheme) -> f64 {
    let maximum = if scheme.double_quantized { 8.0 + 32.0 / bnb::NESTED_BLOCK as f64 } else { 32.0 };
    4.0 + maximum / bnb::BLOCK as f64
}

/// Bytes of a canonical row of integers, where groups are whole.
pub(super) fn int_row_bytes(scheme: IntScheme, len: usize) -> Option<usize> {
    if len == 0 {
        return Some(0);
    }
    // A hostile length must not overflow on the way to its bytes.
    len.checked_mul(16)?;
    let is_whole = match scheme.granularity() {
        Granularity::Group(group) => len.is_multiple_of(group.into()),
        Granularity::Tensor | Granularity::Channel => true,
    };
    debug_assert!(bits::stream_bytes(len, scheme.bits()) <= len);
    is_whole.then(|| scheme.row_parts(len).bytes)
}
