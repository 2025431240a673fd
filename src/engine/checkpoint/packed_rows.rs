//! Canonical rows out of a packed weight's parts: positioned reads of what the rows need.

use std::ops::Range;

use super::packed::{At, Layout, Parts};
use super::{Checkpoint, TensorInfo};
use crate::error::{Fault, Result, Stage};
use crate::format::{BnbScheme, Dtype, FP8_BLOCK, Fp8Scales, Fp8Scheme, Granularity, IntScheme, Shared};
use crate::kernels::bits;
use crate::kernels::bnb::{BLOCK, NESTED_BLOCK, Nested};
use crate::kernels::float;
use crate::target::gptq::AWQ_ORDER;

/// Rows to be read of a weight, and its parts.
struct Wanted<'a> {
    tensor: &'a TensorInfo,
    parts: &'a Parts,
    rows: Range<usize>,
}

/// Lines of scales and zeros that rows of integers need: their own, or the one of a tensor.
fn scheme_lines(scheme: IntScheme, rows: &Range<usize>) -> Range<usize> {
    if scheme.granularity() == Granularity::Tensor { 0..1 } else { rows.clone() }
}

impl Checkpoint {
    /// Reads `count` bytes of a part from `from`.
    pub(super) fn part(&self, at: &At, from: usize, count: usize) -> Result<Vec<u8>> {
        let end = from.checked_add(count).filter(|&end| end as u64 <= at.byte_count);
        let data = self.source.data.get(at.file).filter(|_| end.is_some()).ok_or_else(|| {
            Fault::new(Stage::Checkpoint, "a packed weight is read beyond its parts").file(&self.path)
        })?;
        let mut bytes = vec![0; count];
        data.read_at(at.offset + from as u64, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads a window of columns of a part that is a matrix of 2- or 4-byte elements: rows one after another.
    fn window(&self, at: &At, columns: Range<usize>) -> Result<Vec<u8>> {
        let (rows, width) = (at.shape[0], at.shape[1]);
        let size = at.dtype.block_bytes();
        if columns.len() == width {
            return self.part(at, 0, rows * width * size);
        }
        let mut out = Vec::with_capacity(rows * columns.len() * size);
        for row in 0..rows {
            out.extend(self.part(at, (row * width + columns.start) * size, columns.len() * size)?);
        }
        Ok(out)
    }

    /// Canonical rows of a packed weight.
    pub(super) fn read_packed(
        &self,
        tensor: &TensorInfo,
        parts: &Parts,
        rows: Range<usize>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let wanted = Wanted { tensor, parts, rows };
        match (tensor.dtype, &parts.layout) {
            (Dtype::Int(scheme), Layout::Packed { .. } | Layout::Bytes) => self.read_ints(scheme, wanted, out),
            (Dtype::Int(scheme), Layout::Gptq { .. } | Layout::Awq) => self.read_transposed(scheme, wanted, out),
            (Dtype::Fp8(scheme), _) => self.read_fp8(scheme, wanted, out),
            (Dtype::Bnb(scheme), Layout::Bnb { .. }) => self.read_bnb(scheme, wanted, out),
            (_, Layout::Sparse) => self.read_sparse(tensor, parts, wanted.rows, out),
            _ => Err(Fault::new(Stage::Checkpoint, "the parts do not fit the type").at(&tensor.name).into()),
        }
    }

    fn read_ints(&self, scheme: IntScheme, wanted: Wanted<'_>, out: &mut Vec<u8>) -> Result<()> {
        let Wanted { tensor, parts, rows } = wanted;
        let cols = tensor.row_len();
        let row = scheme.row_parts(cols);
        let middle = scheme.codes().middle();
        let lines = scheme_lines(scheme, &rows);
        let stored = parts.codes.byte_count as usize / tensor.row_count().max(1);
        let codes = self.part(&parts.codes, rows.start * stored, rows.len() * stored)?;
        let scale_bytes = row.zeros_at - row.scales_at;
        let scales = self.part(&parts.scales, lines.start * scale_bytes, lines.len() * scale_bytes)?;
        let zeros = self.ct_zeros(scheme, parts, lines.clone(), row.groups)?;
        out.resize(rows.len() * row.bytes, 0);
        let mut unpacked = vec![0; cols];
        for (index, out) in out.chunks_exact_mut(row.bytes).enumerate() {
            let codes = &codes[index * stored..(index + 1) * stored];
            match parts.layout {
                Layout::Packed { is_dense: true, .. } => out[..row.scales_at].copy_from_slice(&codes[..row.scales_at]),
                Layout::Packed { is_dense: false, .. } => {
                    let per_word = 32 / scheme.bits() as usize;
                    for (at, code) in unpacked.iter_mut().enumerate() {
                        let bit = at / per_word * 32 + at % per_word * scheme.bits() as usize;
                        *code = bits::get(codes, bit, scheme.bits());
                    }
                    bits::pack(&unpacked, scheme.bits(), &mut out[..row.scales_at]);
                }
                _ => {
                    for (code, &byte) in unpacked.iter_mut().zip(codes) {
                        *code = byte.wrapping_add(middle) & scheme.codes().top();
                    }
                    bits::pack(&unpacked, scheme.bits(), &mut out[..row.scales_at]);
                }
            }
            // A tensor's rows share the one line there is.
            let line = if lines.len() == 1 { 0 } else { index };
            out[row.scales_at..row.zeros_at].copy_from_slice(&scales[line * scale_bytes..][..scale_bytes]);
            if !scheme.is_symmetric() {
                out[row.zeros_at..].copy_from_slice(&zeros[line * row.groups..][..row.groups]);
            }
        }
        Ok(())
    }

    /// Unsigned zeros of rows × groups, the rows being lines of [`scheme_lines`].
    fn ct_zeros(&self, scheme: IntScheme, parts: &Parts, rows: Range<usize>, groups: usize) -> Result<Vec<u8>> {
        let Some(at) = &parts.zeros else { return Ok(Vec::new()) };
        let middle = scheme.codes().middle();
        let mask = scheme.codes().top();
        if at.dtype == Dtype::I8 {
            let bytes = self.part(at, rows.start * groups, rows.len() * groups)?;
            return Ok(bytes.into_iter().map(|zero| zero.wrapping_add(middle) & mask).collect());
        }
        let are_dense = !matches!(parts.layout, Layout::Packed { are_zeros_dense: false, .. });
        let width = scheme.bits() as usize;
        let per_word = 32 / width;
        let bit = |row: usize| if are_dense { row * width } else { row / per_word * 32 + row % per_word * width };
        let first = bit(rows.start) / 32;
        let last = if rows.is_empty() { first } else { (bit(rows.end - 1) + width).div_ceil(32) };
        let words = self.part(at, first * groups * 4, (last - first) * groups * 4)?;
        let mut zeros = Vec::with_capacity(rows.len() * groups);
        for row in rows {
            let at = bit(row) - first * 32;
            for group in 0..groups {
                let word = |index: usize| -> u64 {
                    let from = (index * groups + group) * 4;
                    words
                        .get(from..from + 4)
                        .map_or(0, |bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]).into())
                };
                let two = word(at / 32) | word(at / 32 + 1) << 32;
                zeros.push((two >> (at % 32)) as u8 & mask);
            }
        }
        Ok(zeros)
    }

    /// GPTQ and AWQ: rows are columns there.
    fn read_transposed(&self, scheme: IntScheme, wanted: Wanted<'_>, out: &mut Vec<u8>) -> Result<()> {
        let Wanted { tensor, parts, rows } = wanted;
        let cols = tensor.row_len();
        let row = scheme.row_parts(cols);
        let Some(zeros_at) = parts.zeros.as_ref().filter(|_| !rows.is_empty()) else { return Ok(()) };
        out.resize(rows.len() * row.bytes, 0);
        let scales = self.window(&parts.scales, rows.clone())?;
        let size = scheme.scale().bytes();
        let is_awq = matches!(parts.layout, Layout::Awq);
        // Words that hold the zeros of these rows, and in AWQ the codes too.
        let width = scheme.bits() as usize;
        let words = rows.start * width / 32..(rows.end * width).div_ceil(32);
        let zeros = self.window(zeros_at, words.clone())?;
        let codes = self.window(&parts.codes, if is_awq { words.clone() } else { rows.clone() })?;
        // Where the nibble of a column of AWQ's eight lies.
        let nibble = |row: usize| AWQ_ORDER.iter().position(|&column| column == row % 8).unwrap_or(0);
        let mut unpacked = vec![0; cols];
        for (index, (number, out)) in rows.clone().zip(out.chunks_exact_mut(row.bytes)).enumerate() {
            let awq_bit = |line: usize| (line * words.len() + number / 8 - words.start) * 32 + nibble(number) * 4;
            if is_awq {
                for (column, code) in unpacked.iter_mut().enumerate() {
                    *code = bits::get(&codes, awq_bit(column), 4);
                }
                bits::pack(&unpacked, 4, &mut out[..row.scales_at]);
            } else {
                for (word, bytes) in out[..row.scales_at].chunks_exact_mut(4).enumerate() {
                    bytes.copy_from_slice(&codes[(word * rows.len() + index) * 4..][..4]);
                }
            }
            for group in 0..row.groups {
                let from = (group * rows.len() + index) * size;
                out[row.scales_at + group * size..][..size].copy_from_slice(&scales[from..from + size]);
                let bit = match is_awq {
                    true => awq_bit(group),
                    false => group * words.len() * 32 + number * width - words.start * 32,
                };
                let stored = bits::get(&zeros, bit, scheme.bits());
                let zero = match parts.layout {
                    // Modulo the width, as GPTQModel writes and reads them.
                    Layout::Gptq { is_first_version: true } => stored.wrapping_add(1) & scheme.codes().top(),
                    _ => stored,
                };
                if !scheme.is_symmetric() {
                    out[row.zeros_at + group] = zero;
                } else if zero != scheme.codes().middle() {
                    let cause = format!("row {number} has the zero {zero}, but the config says symmetric");
                    return Err(Fault::new(Stage::Checkpoint, cause)
                        .at(format!("tensor {}", tensor.name))
                        .fix("write \"sym\": false in quantization_config")
                        .file(&self.path)
                        .into());
                }
            }
        }
        Ok(())
    }

    fn read_fp8(&self, scheme: Fp8Scheme, wanted: Wanted<'_>, out: &mut Vec<u8>) -> Result<()> {
        let Wanted { tensor, parts, rows } = wanted;
        let cols = tensor.row_len();
        let per_row = cols.div_ceil(scheme.group(cols));
        let lines = match scheme.scales {
            Fp8Scales::Tensor => 0..1,
            Fp8Scales::Channel => rows.clone(),
            Fp8Scales::Block128 => rows.start / FP8_BLOCK..rows.end.div_ceil(FP8_BLOCK),
        };
        let size = parts.scales.dtype.block_bytes();
        let raw = self.part(&parts.scales, lines.start * per_row * size, lines.len() * per_row * size)?;
        let mut scales = vec![0.0; lines.len() * per_row];
        match parts.scales.dtype {
            Dtype::F16 => float::decode_f16(&raw, &mut scales),
            Dtype::Bf16 => float::decode_bf16(&raw, &mut scales),
            _ => float::decode_f32(&raw, &mut scales),
        }
        let codes = self.part(&parts.codes, rows.start * cols, rows.len() * cols)?;
        out.clear();
        for (row, codes) in rows.zip(codes.chunks_exact(cols)) {
            let line = match scheme.scales {
                Fp8Scales::Tensor => 0,
                Fp8Scales::Channel => row - lines.start,
                Fp8Scales::Block128 => row / FP8_BLOCK - lines.start,
            };
            out.extend_from_slice(codes);
            out.extend(scales[line * per_row..(line + 1) * per_row].iter().flat_map(|scale| scale.to_le_bytes()));
        }
        Ok(())
    }

    fn read_bnb(&self, scheme: BnbScheme, wanted: Wanted<'_>, out: &mut Vec<u8>) -> Result<()> {
        let Wanted { tensor, parts, rows } = wanted;
        let cols = tensor.row_len();
        let (half, per_row) = (cols / 2, cols / BLOCK);
        let codes = self.part(&parts.codes, rows.start * half, rows.len() * half)?;
        let blocks = rows.start * per_row..rows.end * per_row;
        let maxima = match &parts.layout {
            Layout::Bnb { nested: Some((outer, table, offset)) } if scheme.double_quantized => {
                let nested = self.nested(&parts.scales, outer, table, *offset, blocks.clone())?;
                let skipped = blocks.start / NESTED_BLOCK * NESTED_BLOCK;
                blocks.flat_map(|block| nested.value(block - skipped).to_le_bytes()).collect()
            }
            _ => self.part(&parts.scales, blocks.start * 4, blocks.len() * 4)?,
        };
        out.clear();
        for (codes, maxima) in codes.chunks_exact(half).zip(maxima.chunks_exact(per_row * 4)) {
            out.extend_from_slice(codes);
            out.extend_from_slice(maxima);
        }
        Ok(())
    }

    /// Nested maxima of `blocks`, counted from the outer block that the first of them lies in.
    fn nested(&self, codes: &At, outer: &At, table: &At, offset: f32, blocks: Range<usize>) -> Result<Nested> {
        let lines = blocks.start / NESTED_BLOCK..blocks.end.div_ceil(NESTED_BLOCK);
        let first = lines.start * NESTED_BLOCK;
        let floats = |bytes: Vec<u8>| -> Vec<f32> {
            bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        };
        Ok(Nested {
            codes: self.part(codes, first, blocks.end - first)?,
            maxima: floats(self.part(outer, lines.start * 4, lines.len() * 4)?),
            offset,
            table: floats(self.part(table, 0, 1024)?),
        })
    }

    /// What the rows of a packed weight share and its rows do not show: the codes of its maxima.
    pub fn shared(&self, tensor: &TensorInfo) -> Result<Option<Shared>> {
        let Some(parts) = &tensor.parts else { return Ok(None) };
        let Layout::Bnb { nested: Some((outer, table, offset)) } = &parts.layout else { return Ok(None) };
        let blocks = 0..tensor.row_count() * (tensor.row_len() / BLOCK);
        self.nested(&parts.scales, outer, table, *offset, blocks).map(|nested| Some(Shared::Nested(nested)))
    }
}
