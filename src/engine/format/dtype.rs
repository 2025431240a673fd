//! Every way a tensor can lie in a file: safetensors' types and ggml's, with their block sizes.
//!
//! A [`Dtype`] only says how many bytes hold how many weights; what can be encoded is the
//! registry's business ([`super::all`]). Type ids and block sizes are ggml's (`ggml.h`,
//! `ggml-common.h`, MIT).

use std::fmt;

use super::scheme::{self, BnbScheme, Fp8Scheme, IntScheme};

/// The storage type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are the field's own")]
pub enum Dtype {
    F64,
    F32,
    F16,
    Bf16,
    F8E4M3,
    F8E5M2,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Q8K,
    Iq2Xxs,
    Iq2Xs,
    Iq3Xxs,
    Iq1S,
    Iq4Nl,
    Iq3S,
    Iq2S,
    Iq4Xs,
    Iq1M,
    Tq1_0,
    Tq2_0,
    Mxfp4,
    Nvfp4,
    Q1_0,
    Q2_0,
    /// Integer codes with shared scales.
    Int(IntScheme),
    /// 8-bit floats with shared scales.
    Fp8(Fp8Scheme),
    /// bitsandbytes' 4-bit codes.
    Bnb(BnbScheme),
    /// A ggml type id that this program does not know; its size comes from the file.
    Unknown(u32),
}

/// Name, ggml's type id if it has one, weights a block, bytes a block.
type Row = (Dtype, &'static str, Option<u32>, usize, usize);

const TABLE: [Row; 42] = [
    (Dtype::F64, "f64", Some(28), 1, 8),
    (Dtype::F32, "f32", Some(0), 1, 4),
    (Dtype::F16, "f16", Some(1), 1, 2),
    (Dtype::Bf16, "bf16", Some(30), 1, 2),
    (Dtype::F8E4M3, "f8_e4m3", None, 1, 1),
    (Dtype::F8E5M2, "f8_e5m2", None, 1, 1),
    (Dtype::I64, "i64", Some(27), 1, 8),
    (Dtype::I32, "i32", Some(26), 1, 4),
    (Dtype::I16, "i16", Some(25), 1, 2),
    (Dtype::I8, "i8", Some(24), 1, 1),
    (Dtype::U64, "u64", None, 1, 8),
    (Dtype::U32, "u32", None, 1, 4),
    (Dtype::U16, "u16", None, 1, 2),
    (Dtype::U8, "u8", None, 1, 1),
    (Dtype::Bool, "bool", None, 1, 1),
    (Dtype::Q4_0, "q4_0", Some(2), 32, 18),
    (Dtype::Q4_1, "q4_1", Some(3), 32, 20),
    (Dtype::Q5_0, "q5_0", Some(6), 32, 22),
    (Dtype::Q5_1, "q5_1", Some(7), 32, 24),
    (Dtype::Q8_0, "q8_0", Some(8), 32, 34),
    (Dtype::Q8_1, "q8_1", Some(9), 32, 36),
    (Dtype::Q2K, "q2_k", Some(10), 256, 84),
    (Dtype::Q3K, "q3_k", Some(11), 256, 110),
    (Dtype::Q4K, "q4_k", Some(12), 256, 144),
    (Dtype::Q5K, "q5_k", Some(13), 256, 176),
    (Dtype::Q6K, "q6_k", Some(14), 256, 210),
    (Dtype::Q8K, "q8_k", Some(15), 256, 292),
    (Dtype::Iq2Xxs, "iq2_xxs", Some(16), 256, 66),
    (Dtype::Iq2Xs, "iq2_xs", Some(17), 256, 74),
    (Dtype::Iq3Xxs, "iq3_xxs", Some(18), 256, 98),
    (Dtype::Iq1S, "iq1_s", Some(19), 256, 50),
    (Dtype::Iq4Nl, "iq4_nl", Some(20), 32, 18),
    (Dtype::Iq3S, "iq3_s", Some(21), 256, 110),
    (Dtype::Iq2S, "iq2_s", Some(22), 256, 82),
    (Dtype::Iq4Xs, "iq4_xs", Some(23), 256, 136),
    (Dtype::Iq1M, "iq1_m", Some(29), 256, 56),
    (Dtype::Tq1_0, "tq1_0", Some(34), 256, 54),
    (Dtype::Tq2_0, "tq2_0", Some(35), 256, 66),
    (Dtype::Mxfp4, "mxfp4", Some(39), 32, 17),
    (Dtype::Nvfp4, "nvfp4", Some(40), 64, 36),
    (Dtype::Q1_0, "q1_0", Some(41), 128, 18),
    (Dtype::Q2_0, "q2_0", Some(42), 64, 18),
];

impl Dtype {
    fn row(self) -> &'static Row {
        /// Stands for every unknown type: no block ever fills it.
        const UNKNOWN: Row = (Dtype::Unknown(u32::MAX), "unknown", None, 1, 0);
        TABLE.iter().find(|row| row.0 == self).unwrap_or(&UNKNOWN)
    }

    /// True for types with parameters, whose rows are canonical rows (see [`IntScheme`]) and never
    /// cut into blocks.
    pub fn is_scheme(self) -> bool {
        matches!(self, Self::Int(_) | Self::Fp8(_) | Self::Bnb(_))
    }

    /// Every type without parameters, in the table's order.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.0)
    }

    /// The field's name in lower case: `bf16`, `q4_k`.
    pub fn name(self) -> &'static str {
        if self.is_scheme() {
            return super::of_dtype(self).map_or("unknown", super::Format::id);
        }
        self.row().1
    }

    /// The type with ggml's id, if there is one.
    pub fn from_ggml(type_id: u32) -> Option<Self> {
        TABLE.iter().find(|row| row.2 == Some(type_id)).map(|row| row.0)
    }

    /// ggml's id of this type, if ggml has it.
    pub fn ggml_id(self) -> Option<u32> {
        if let Self::Unknown(type_id) = self {
            return Some(type_id);
        }
        self.row().2
    }

    /// Weights in one block, which rows must be multiples of; 1 for plain types and per channel.
    pub fn block_len(self) -> usize {
        match self {
            // Per channel and per tensor, a row of one weight is a group.
            Self::Int(scheme) => scheme.group(1),
            Self::Fp8(_) => 1,
            Self::Bnb(_) => crate::kernels::bnb::BLOCK,
            _ => self.row().3,
        }
    }

    /// Bytes of one block; of a type with parameters, those of a row of one block.
    pub fn block_bytes(self) -> usize {
        if self.is_scheme() {
            return self.row_bytes(self.block_len()).unwrap_or(0);
        }
        self.row().4
    }

    /// Exact bits per weight, scales included; of a type with parameters, what does not depend on
    /// the tensor's size ([`super::Format::stored_bytes`] is exact).
    pub fn bits_per_weight(self) -> f64 {
        match self {
            Self::Int(scheme) => return scheme::int_bits(scheme),
            Self::Fp8(_) => return 8.0,
            Self::Bnb(scheme) => return scheme::bnb_bits(scheme),
            _ => {}
        }
        self.block_bytes() as f64 * 8.0 / self.block_len() as f64
    }

    /// Bytes of a row of `len` weights as the engine reads it, if whole blocks hold it.
    pub fn row_bytes(self, len: usize) -> Option<usize> {
        match self {
            Self::Unknown(_) => return None,
            Self::Int(scheme) => return scheme::int_row_bytes(scheme, len),
            Self::Fp8(scheme) => return len.checked_mul(5).map(|_| scheme.row_bytes(len)),
            Self::Bnb(scheme) => return scheme.row_bytes(len),
            _ => {}
        }
        len.is_multiple_of(self.block_len()).then(|| (len / self.block_len()).checked_mul(self.block_bytes())).flatten()
    }

    /// True for types that store one weight after another without shared scales.
    pub fn is_plain(self) -> bool {
        !self.is_scheme() && self.block_len() == 1 && !matches!(self, Self::Unknown(_))
    }

    /// True for plain floating-point types.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::Bf16 | Self::F8E4M3 | Self::F8E5M2)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(type_id) => write!(out, "ggml type {type_id}"),
            known => out.write_str(known.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_every_type_once() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(TABLE.iter().position(|other| other.0 == row.0 || other.1 == row.1), Some(index));
            assert!(row.3 > 0 && row.4 > 0, "{}", row.1);
        }
    }

    #[test]
    fn an_unknown_type_has_an_id_and_no_size() {
        let dtype = Dtype::Unknown(77);
        assert_eq!(dtype.to_string(), "ggml type 77");
        assert_eq!(dtype.row_bytes(256), None);
        assert_eq!(dtype.ggml_id(), Some(77));
        assert!(!dtype.is_plain());
    }

    #[test]
    fn every_ggml_id_finds_its_type_again() {
        for dtype in Dtype::all() {
            if let Some(type_id) = dtype.ggml_id() {
                assert_eq!(Dtype::from_ggml(type_id), Some(dtype));
            }
        }
        assert_eq!(Dtype::from_ggml(4), None, "q4_2 was removed from ggml");
    }

    #[test]
    fn rows_that_blocks_do_not_fill_have_no_size() {
        assert_eq!(Dtype::Q4K.row_bytes(512), Some(288));
        assert_eq!(Dtype::Q4K.row_bytes(300), None);
        assert_eq!(Dtype::Bf16.row_bytes(3), Some(6));
    }
}
