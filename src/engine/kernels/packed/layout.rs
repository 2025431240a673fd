//! What is in a block of every layout, and where it goes in a tile.

use super::super::activations::{CHUNK, RUN};
use super::super::search::lanes::IQ4_VALUES;
use super::super::{kquants, legacy, nonlinear};

/// How the scales of an integer layout are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the field's own")]
pub enum IntScale {
    F16,
    Bf16,
    F32,
}

impl IntScale {
    /// Bytes of one scale.
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }
}

/// Rows of integers: a dense stream of codes, lowest bit first; then a scale a group; then, where
/// groups have a zero point, one byte each. `weight = scale × (code − zero)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IntLayout {
    /// Bits of a code, 2 to 8.
    pub bits: u8,
    /// Weights that share a scale, a multiple of 32; zero if the whole row does.
    pub group: u32,
    /// True if each group stores its zero point; otherwise it is half the range.
    pub has_zeros: bool,
    /// How scales are stored.
    pub scale: IntScale,
}

impl IntLayout {
    /// Weights that share a scale in rows of `cols`.
    pub(super) fn group_len(self, cols: usize) -> usize {
        if self.group == 0 { cols } else { self.group as usize }
    }

    /// Groups in a row of `cols`; the last may be shorter.
    pub(super) fn groups(self, cols: usize) -> usize {
        cols.div_ceil(self.group_len(cols).max(1))
    }

    /// The zero point of groups that store none.
    pub(super) fn middle(self) -> u8 {
        1 << (self.bits - 1)
    }
}

/// A block layout that this module can multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are ggml's")]
pub enum Layout {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
    Mxfp4,
    /// Integers with a scale a group.
    Int(IntLayout),
}

impl Layout {
    /// Weights a block; integers come in runs of 32.
    pub fn block_len(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Iq4Nl | Self::Mxfp4 | Self::Int(_) => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K | Self::Iq4Xs => 256,
        }
    }

    /// Bytes of a row of `cols` weights, if blocks fill it and the kernels take it.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        let block_bytes = match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
            Self::Iq4Nl => 18,
            Self::Iq4Xs => 136,
            Self::Mxfp4 => 17,
            Self::Int(int) => {
                let takes = (2..=8).contains(&int.bits)
                    && int.group.is_multiple_of(RUN as u32)
                    && cols.is_multiple_of(RUN)
                    && cols > 0;
                let per_group = int.scale.bytes() + usize::from(int.has_zeros);
                return takes.then(|| cols * usize::from(int.bits) / 8 + int.groups(cols) * per_group);
            }
        };
        cols.is_multiple_of(self.block_len()).then(|| cols / self.block_len() * block_bytes)
    }

    /// Values that share one scale in activations beside this layout.
    pub fn activation_block(self) -> usize {
        if self.block_len() == CHUNK { CHUNK } else { RUN }
    }

    /// The codes of whole blocks, one a byte.
    pub fn codes(self, row: &[u8], codes: &mut [u8]) {
        match self {
            Self::Q4_0 => legacy::codes_q4_0(row, codes),
            Self::Q4_1 => legacy::codes_q4_1(row, codes),
            Self::Q5_0 => legacy::codes_q5_0(row, codes),
            Self::Q5_1 => legacy::codes_q5_1(row, codes),
            Self::Q8_0 => legacy::codes_q8_0(row, codes),
            Self::Q2K => kquants::codes_q2_k(row, codes),
            Self::Q3K => kquants::codes_q3_k(row, codes),
            Self::Q4K => kquants::codes_q4_k(row, codes),
            Self::Q5K => kquants::codes_q5_k(row, codes),
            Self::Q6K => kquants::codes_q6_k(row, codes),
            Self::Iq4Nl => nonlinear::codes_iq4_nl(row, codes),
            Self::Iq4Xs => nonlinear::codes_iq4_xs(row, codes),
            Self::Mxfp4 => nonlinear::codes_mxfp4(row, codes),
            Self::Int(int) => unpack_stream(int.bits, row, codes),
        }
    }
}

/// Reads codes of `bits` bits from a dense stream, lowest bit first.
fn unpack_stream(bits: u8, stream: &[u8], codes: &mut [u8]) {
    match bits {
        8 => codes.copy_from_slice(&stream[..codes.len()]),
        4 => {
            for (pair, &byte) in codes.as_chunks_mut::<2>().0.iter_mut().zip(stream) {
                *pair = [byte & 0x0f, byte >> 4];
            }
        }
        _ => {
            let (mut held, mut count) = (0u32, 0);
            let mut bytes = stream.iter();
            for code in codes {
                if count < bits {
                    held |= u32::from(bytes.next().copied().unwrap_or_default()) << count;
                    count += 8;
                }
                *code = (held & ((1 << bits) - 1)) as u8;
                held >>= bits;
                count -= bits;
            }
        }
    }
}

/// What stands before the codes of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// A half scale a run of 32; the minimum is `shift × scale`, or a stored half to be added.
    Halves { shift: u8, has_offset: bool },
    /// Half scale and minimum of the chunk, a byte of each a run of 32.
    Eight,
    /// Half scale of the chunk, a signed byte a run of 16 (128 added); the minimum is `shift × scale`.
    Sixteen { shift: u8 },
    /// Half scale and minimum of the chunk, four bits of each a run of 16.
    SixteenPairs,
    /// Half scale of the chunk, a byte a run of 32, less 32.
    EightSigned,
    /// The exponent of a power of two a run of 32.
    Exponents,
    /// Nothing: scales and zeros of a row stand at the tile's start.
    Tile(IntLayout),
}

/// The shape of the tiles of one matrix.
///
/// A tile has `tile_rows` rows. In all of its parts what belongs to one place stands row after row.
/// First the scales (f32, or f16 where the file has that) and zeros of integer layouts, a group
/// after another. Then chunks of 256 columns, the last one shorter: the header, then the codes in
/// planes of 8, 6, 4, 2 and 1 bits (see `repack.rs`).
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub layout: Layout,
    pub header: Header,
    /// Bits of a stored code.
    pub bits: u8,
    /// True if codes are stored as signed bytes.
    pub is_signed: bool,
    /// What codes stand for, if not for themselves.
    pub table: Option<&'static [i8; 16]>,
    pub tile_rows: usize,
    pub cols: usize,
}

impl Plan {
    pub(super) fn new(layout: Layout, tile_rows: usize, cols: usize) -> Self {
        let (header, bits) = match layout {
            Layout::Q4_0 => (Header::Halves { shift: 8, has_offset: false }, 4),
            Layout::Q4_1 => (Header::Halves { shift: 0, has_offset: true }, 4),
            Layout::Q5_0 => (Header::Halves { shift: 16, has_offset: false }, 5),
            Layout::Q5_1 => (Header::Halves { shift: 0, has_offset: true }, 5),
            Layout::Q8_0 => (Header::Halves { shift: 0, has_offset: false }, 8),
            Layout::Q2K => (Header::SixteenPairs, 2),
            Layout::Q3K => (Header::Sixteen { shift: 4 }, 3),
            Layout::Q4K => (Header::Eight, 4),
            Layout::Q5K => (Header::Eight, 5),
            Layout::Q6K => (Header::Sixteen { shift: 32 }, 6),
            Layout::Iq4Nl => (Header::Halves { shift: 0, has_offset: false }, 4),
            Layout::Iq4Xs => (Header::EightSigned, 4),
            Layout::Mxfp4 => (Header::Exponents, 4),
            // Seven bits would overflow pairs of products without a sign.
            Layout::Int(int) => (Header::Tile(int), if int.bits == 7 { 8 } else { int.bits }),
        };
        let table = match layout {
            Layout::Iq4Nl | Layout::Iq4Xs => Some(&IQ4_VALUES),
            Layout::Mxfp4 => Some(&nonlinear::FP4_DOUBLED),
            _ => None,
        };
        Self { layout, header, bits, is_signed: bits == 8, table, tile_rows, cols }
    }

    /// What a code stands for, of layouts with a table.
    pub(super) fn level(&self, code: u8) -> f32 {
        f32::from(self.table.map_or(0, |table| table[usize::from(code)]))
    }

    /// Bytes at the tile's start.
    pub(super) fn head_bytes(&self) -> usize {
        match self.header {
            Header::Tile(int) => {
                int.groups(self.cols) * self.tile_rows * (self.scale_bytes(int) + usize::from(int.has_zeros))
            }
            _ => 0,
        }
    }

    /// Bytes of one scale of an integer layout in the tile.
    pub(super) fn scale_bytes(&self, int: IntLayout) -> usize {
        if int.scale == IntScale::F16 { 2 } else { 4 }
    }

    /// Bytes of a chunk's header for `runs` runs of 32.
    pub(super) fn header_bytes(&self, runs: usize) -> usize {
        self.tile_rows
            * match self.header {
                Header::Halves { has_offset, .. } => runs * if has_offset { 4 } else { 2 },
                Header::Eight => 4 + 16,
                Header::Sixteen { .. } => 2 + 16,
                Header::SixteenPairs => 4 + 16,
                Header::EightSigned => 2 + 8,
                Header::Exponents => runs,
                Header::Tile(_) => 0,
            }
    }

    /// Bytes of a chunk of `runs` runs of 32.
    pub(super) fn chunk_bytes(&self, runs: usize) -> usize {
        self.header_bytes(runs) + runs * self.tile_rows * RUN * usize::from(self.bits) / 8
    }

    /// Bytes of a tile.
    pub(super) fn tile_bytes(&self) -> usize {
        let tail = self.cols % CHUNK / RUN;
        let tail = if tail == 0 { 0 } else { self.chunk_bytes(tail) };
        self.head_bytes() + self.cols / CHUNK * self.chunk_bytes(CHUNK / RUN) + tail
    }

    /// Where the chunk that starts at column `start` stands in a tile, and its number of runs.
    pub(super) fn chunk(&self, start: usize) -> (std::ops::Range<usize>, usize) {
        let runs = CHUNK.min(self.cols - start) / RUN;
        let at = self.head_bytes() + start / CHUNK * self.chunk_bytes(CHUNK / RUN);
        (at..at + self.chunk_bytes(runs), runs)
    }
}
