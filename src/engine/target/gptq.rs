//! GPTQ and AWQ: integer groups stored as the transpose, in 32-bit words.
//!
//! GPTQ packs codes down the input and zeros along the output, dense for 2, 3, 4 and 8 bits. Its
//! first version stores a zero less one; since that cannot hold 0, tensors with zeros of their own
//! are written as version 2, which stores zeros as they are. AWQ's gemm layout packs eight 4-bit
//! columns into a word in the order 0, 2, 4, 6, 1, 3, 5, 7, codes and zeros alike.

use serde_json::{Value, json};

use super::compressed_tensors::words;
use super::parts::{Matrix, Part};
use crate::format::{Dtype, Granularity, IntScheme};
use crate::kernels::bits;
use crate::kernels::ints::ScaleType;

/// The column of eight that lies in nibble `i` of AWQ's word.
pub const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// The scheme of a matrix that GPTQ can hold: inputs and outputs fill whole words.
fn gptq_scheme(matrix: &Matrix) -> Option<IntScheme> {
    let Dtype::Int(scheme) = matrix.dtype else { return None };
    let is_legal = matches!(scheme.bits(), 2 | 3 | 4 | 8)
        && scheme.granularity() != Granularity::Tensor
        && scheme.scale() == ScaleType::F16
        && matrix.rows.is_multiple_of(32)
        && matrix.cols.is_multiple_of(32)
        && matrix.dtype.row_bytes(matrix.cols).is_some();
    is_legal.then_some(scheme)
}

/// The scheme of a matrix that AWQ can hold.
fn awq_scheme(matrix: &Matrix) -> Option<IntScheme> {
    let Dtype::Int(scheme) = matrix.dtype else { return None };
    let is_legal = scheme.bits() == 4
        && !scheme.is_symmetric()
        && matches!(scheme.granularity(), Granularity::Group(_))
        && scheme.scale() == ScaleType::F16
        && matrix.rows.is_multiple_of(8)
        && matrix.dtype.row_bytes(matrix.cols).is_some();
    is_legal.then_some(scheme)
}

pub(super) fn gptq_parts(matrix: &Matrix) -> Option<Vec<Part>> {
    let scheme = gptq_scheme(matrix)?;
    let (rows, cols, groups) = (matrix.rows, matrix.cols, scheme.row_parts(matrix.cols).groups);
    Some(vec![
        Part::new("qweight", Dtype::I32, &[words(cols, scheme.bits()), rows]),
        Part::new("qzeros", Dtype::I32, &[groups, words(rows, scheme.bits())]),
        Part::new("scales", Dtype::F16, &[groups, rows]),
        Part::new("g_idx", Dtype::I32, &[cols]),
    ])
}

pub(super) fn awq_parts(matrix: &Matrix) -> Option<Vec<Part>> {
    let scheme = awq_scheme(matrix)?;
    let groups = scheme.row_parts(matrix.cols).groups;
    Some(vec![
        Part::new("qweight", Dtype::I32, &[matrix.cols, matrix.rows / 8]),
        Part::new("qzeros", Dtype::I32, &[groups, matrix.rows / 8]),
        Part::new("scales", Dtype::F16, &[groups, matrix.rows]),
    ])
}

/// Packs one matrix; holds its canonical rows until all are there.
#[derive(Debug)]
pub(super) struct Packer {
    is_awq: bool,
    scheme: IntScheme,
    matrix: Matrix,
    rows: Vec<u8>,
}

impl Packer {
    pub(super) fn gptq(matrix: &Matrix) -> Option<Self> {
        Some(Self { is_awq: false, scheme: gptq_scheme(matrix)?, matrix: *matrix, rows: Vec::new() })
    }

    pub(super) fn awq(matrix: &Matrix) -> Option<Self> {
        Some(Self { is_awq: true, scheme: awq_scheme(matrix)?, matrix: *matrix, rows: Vec::new() })
    }

    pub(super) fn rows(&mut self, rows: &[u8]) {
        self.rows.extend_from_slice(rows);
    }

    pub(super) fn finish(self, out: &mut Vec<u8>) {
        let parts = self.scheme.row_parts(self.matrix.cols);
        let (rows, groups) = (self.matrix.rows, parts.groups);
        let row = |index: usize| &self.rows[index * parts.bytes..(index + 1) * parts.bytes];
        if self.is_awq {
            self.awq_codes(out);
        } else {
            // The dense stream of a row, word by word, is a column here.
            let words = words(self.matrix.cols, self.scheme.bits());
            for word in 0..words {
                for index in 0..rows {
                    out.extend_from_slice(&row(index)[word * 4..word * 4 + 4]);
                }
            }
        }
        let grid = |index: usize, group: usize| self.scheme.codes().grid_at(row(index), &parts, group);
        let mut zeros = vec![0; rows];
        for group in 0..groups {
            for (index, zero) in zeros.iter_mut().enumerate() {
                let stored = grid(index, group).zero;
                *zero = if !self.is_awq && is_first_version(self.scheme) { stored.wrapping_sub(1) } else { stored };
            }
            if self.is_awq {
                out.extend(zeros.chunks_exact(8).flat_map(|eight| awq_word(|at| eight[at]).to_le_bytes()));
            } else {
                let start = out.len();
                out.resize(start + words(rows, self.scheme.bits()) * 4, 0);
                let stream = bits::stream_bytes(rows, self.scheme.bits());
                bits::pack(&zeros, self.scheme.bits(), &mut out[start..start + stream]);
            }
        }
        for group in 0..groups {
            for index in 0..rows {
                out.extend_from_slice(&row(index)[parts.scales_at + group * 2..][..2]);
            }
        }
        if !self.is_awq {
            for column in 0..self.matrix.cols {
                out.extend_from_slice(&((column / parts.group) as i32).to_le_bytes());
            }
        }
    }

    /// Eight output channels a word, input after input.
    fn awq_codes(&self, out: &mut Vec<u8>) {
        let parts = self.scheme.row_parts(self.matrix.cols);
        let code = |row: usize, column: usize| self.rows[row * parts.bytes + column / 2] >> (column % 2 * 4) & 15;
        for column in 0..self.matrix.cols {
            for first in (0..self.matrix.rows).step_by(8) {
                out.extend_from_slice(&awq_word(|at| code(first + at, column)).to_le_bytes());
            }
        }
    }
}

/// A word of AWQ's from its eight columns.
fn awq_word(column: impl Fn(usize) -> u8) -> u32 {
    AWQ_ORDER.iter().enumerate().fold(0, |word, (nibble, &at)| word | u32::from(column(at) & 15) << (nibble * 4))
}

/// True if zeros are stored less one, which any reader of GPTQ files understands.
fn is_first_version(scheme: IntScheme) -> bool {
    scheme.is_symmetric()
}

/// `quantization_config` of GPTQ for weights of one type; `kept` are linears that stay plain.
pub fn gptq_config(scheme: IntScheme, kept: &[String]) -> Value {
    let group = match scheme.granularity() {
        Granularity::Group(len) => i32::from(len),
        Granularity::Tensor | Granularity::Channel => -1,
    };
    // "-:" excludes what a pattern matches (GPTQModel).
    let dynamic: serde_json::Map<String, Value> =
        kept.iter().map(|name| (format!("-:^{}$", name.replace('.', r"\.")), json!({}))).collect();
    json!({
        "quant_method": "gptq", "bits": scheme.bits(), "group_size": group, "sym": scheme.is_symmetric(), "desc_act": false,
        "checkpoint_format": if is_first_version(scheme) { "gptq" } else { "gptq_v2" }, "pack_dtype": "int32",
        "lm_head": false, "dynamic": dynamic,
    })
}

/// `quantization_config` of AWQ for weights of one type; `kept` are linears that stay plain.
pub fn awq_config(scheme: IntScheme, kept: &[String]) -> Value {
    json!({
        "quant_method": "awq", "version": "gemm", "bits": scheme.bits(), "group_size": scheme.group(0), "zero_point": true,
        "modules_to_not_convert": if kept.is_empty() { Value::Null } else { json!(kept) },
    })
}
