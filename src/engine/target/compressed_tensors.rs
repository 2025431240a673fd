//! compressed-tensors: pack-quantized, int-quantized and float-quantized weights and their config.
//!
//! pack-quantized stores `code` (a signed number plus `2^(bits−1)`) as a dense stream in 32-bit
//! words, row by row, and zeros the same way down the columns. That is the layout since late 2025:
//! before, 3, 5, 6 and 7 bits left the rest of each word empty, which is read too.
//! Integers per tensor of 8 bits are int-quantized, all others packed, since runtimes load
//! weight-only integers from packed files; fp8 e4m3 is float-quantized.

use serde_json::{Map, Value, json};

use super::parts::{Matrix, Part, scale_dtype};
use crate::format::{Dtype, FP8_BLOCK, Fp8Scales, Fp8Scheme, Granularity, IntScheme};
use crate::kernels::bits;
use crate::kernels::fp8::Fp8;

/// The layout that files say they have.
const VERSION: &str = "0.20.0";

/// True for integers that are stored one a byte.
fn is_plain_int(scheme: IntScheme) -> bool {
    scheme.bits() == 8 && scheme.granularity() == Granularity::Tensor
}

/// The container's own name of how a type is stored; `None` for what it cannot hold.
pub fn format_name(dtype: Dtype) -> Option<&'static str> {
    match dtype {
        Dtype::Int(scheme) if is_plain_int(scheme) => Some("int-quantized"),
        Dtype::Int(_) => Some("pack-quantized"),
        Dtype::Fp8(Fp8Scheme { kind: Fp8::E4M3, .. }) => Some("float-quantized"),
        _ => None,
    }
}

/// 32-bit words of a dense stream.
pub fn words(count: usize, bits: u32) -> usize {
    (count * bits as usize).div_ceil(32)
}

pub(super) fn parts(matrix: &Matrix) -> Option<Vec<Part>> {
    let (rows, cols) = (matrix.rows, matrix.cols);
    matrix.dtype.row_bytes(cols)?;
    format_name(matrix.dtype)?;
    match matrix.dtype {
        Dtype::Int(scheme) => {
            let groups = scheme.row_parts(cols).groups;
            let scales: &[usize] = if scheme.granularity() == Granularity::Tensor { &[1] } else { &[rows, groups] };
            let scale = Part::new("weight_scale", scale_dtype(scheme.scale()), scales);
            let mut parts = if is_plain_int(scheme) {
                vec![Part::new("weight", Dtype::I8, &[rows, cols]), scale]
            } else {
                vec![
                    Part::new("weight_packed", Dtype::I32, &[rows, words(cols, scheme.bits())]),
                    scale,
                    Part::new("weight_shape", Dtype::I64, &[2]),
                ]
            };
            if !scheme.is_symmetric() {
                parts.push(match scheme.granularity() {
                    Granularity::Tensor => Part::new("weight_zero_point", Dtype::I8, &[1]),
                    _ => Part::new("weight_zero_point", Dtype::I32, &[words(rows, scheme.bits()), groups]),
                });
            }
            Some(parts)
        }
        Dtype::Fp8(scheme) => {
            let scales: &[usize] = match scheme.scales {
                Fp8Scales::Tensor => &[1],
                Fp8Scales::Channel => &[rows, 1],
                Fp8Scales::Block128 => &[rows.div_ceil(FP8_BLOCK), cols.div_ceil(FP8_BLOCK)],
            };
            Some(vec![Part::new("weight", Dtype::F8E4M3, &[rows, cols]), Part::new("weight_scale", Dtype::F32, scales)])
        }
        _ => None,
    }
}

/// Packs one matrix.
#[derive(Debug)]
pub(super) struct Packer {
    matrix: Matrix,
    row: usize,
    scales: Vec<u8>,
    zeros: Vec<u8>,
}

impl Packer {
    pub(super) fn new(matrix: &Matrix) -> Option<Self> {
        format_name(matrix.dtype)?;
        Some(Self { matrix: *matrix, row: 0, scales: Vec::new(), zeros: Vec::new() })
    }

    pub(super) fn rows(&mut self, rows: &[u8], out: &mut Vec<u8>) {
        let Some(row_bytes) = self.matrix.dtype.row_bytes(self.matrix.cols).filter(|&bytes| bytes > 0) else { return };
        for row in rows.chunks_exact(row_bytes) {
            match self.matrix.dtype {
                Dtype::Int(scheme) => self.int_row(scheme, row, out),
                Dtype::Fp8(scheme) => self.fp8_row(scheme, row, out),
                _ => {}
            }
            self.row += 1;
        }
    }

    fn int_row(&mut self, scheme: IntScheme, row: &[u8], out: &mut Vec<u8>) {
        let parts = scheme.row_parts(self.matrix.cols);
        let codes = &row[..parts.scales_at];
        if is_plain_int(scheme) {
            out.extend(codes.iter().map(|code| code ^ 0x80));
        } else {
            let end = out.len() + words(self.matrix.cols, scheme.bits()) * 4;
            out.extend_from_slice(codes);
            out.resize(end, 0);
        }
        // Rows of a tensor share what the first one says.
        if scheme.granularity() != Granularity::Tensor || self.row == 0 {
            self.scales.extend_from_slice(&row[parts.scales_at..parts.zeros_at]);
            self.zeros.extend_from_slice(&row[parts.zeros_at..parts.bytes]);
        }
    }

    fn fp8_row(&mut self, scheme: Fp8Scheme, row: &[u8], out: &mut Vec<u8>) {
        let (codes, scales) = row.split_at(self.matrix.cols);
        out.extend_from_slice(codes);
        let is_first = match scheme.scales {
            Fp8Scales::Tensor => self.row == 0,
            Fp8Scales::Channel => true,
            Fp8Scales::Block128 => self.row.is_multiple_of(FP8_BLOCK),
        };
        if is_first {
            self.scales.extend_from_slice(scales);
        }
    }

    pub(super) fn finish(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.scales);
        let Dtype::Int(scheme) = self.matrix.dtype else { return };
        if !is_plain_int(scheme) {
            out.extend_from_slice(&(self.matrix.rows as i64).to_le_bytes());
            out.extend_from_slice(&(self.matrix.cols as i64).to_le_bytes());
        }
        if scheme.is_symmetric() {
        } else if scheme.granularity() == Granularity::Tensor {
            let middle = scheme.codes().middle();
            out.extend(self.zeros.iter().map(|zero| zero.wrapping_sub(middle)));
        } else {
            out.extend(packed_zeros(&self.zeros, self.matrix.rows, scheme.bits()));
        }
    }
}

/// Zeros of rows × groups as a dense stream of 32-bit words down every column.
pub fn packed_zeros(zeros: &[u8], rows: usize, bits: u32) -> Vec<u8> {
    let groups = zeros.len() / rows.max(1);
    let words = words(rows, bits);
    let mut out = vec![0; words * groups * 4];
    let (mut column, mut stream) = (vec![0; rows], vec![0; words * 4]);
    for group in 0..groups {
        for (row, zero) in column.iter_mut().enumerate() {
            *zero = zeros[row * groups + group];
        }
        stream.fill(0);
        bits::pack(&column, bits, &mut stream[..bits::stream_bytes(rows, bits)]);
        for (word, bytes) in stream.chunks_exact(4).enumerate() {
            out[(word * groups + group) * 4..][..4].copy_from_slice(bytes);
        }
    }
    out
}

/// The `weights` of a config group.
fn weights(dtype: Dtype) -> Value {
    let (bits, kind, symmetric, strategy, group, block) = match dtype {
        Dtype::Int(scheme) => {
            let (strategy, group) = match scheme.granularity() {
                Granularity::Tensor => ("tensor", Value::Null),
                Granularity::Channel => ("channel", Value::Null),
                Granularity::Group(len) => ("group", json!(len)),
            };
            (scheme.bits(), "int", scheme.is_symmetric(), strategy, group, Value::Null)
        }
        Dtype::Fp8(scheme) => match scheme.scales {
            Fp8Scales::Tensor => (8, "float", true, "tensor", Value::Null, Value::Null),
            Fp8Scales::Channel => (8, "float", true, "channel", Value::Null, Value::Null),
            Fp8Scales::Block128 => (8, "float", true, "block", Value::Null, json!([FP8_BLOCK, FP8_BLOCK])),
        },
        _ => return Value::Null,
    };
    json!({
        "num_bits": bits, "type": kind, "symmetric": symmetric, "strategy": strategy, "group_size": group,
        "block_structure": block, "dynamic": false, "actorder": null, "observer": "minmax", "observer_kwargs": {},
    })
}

/// `quantization_config` for modules by their types; `ignored` are linears that stay plain.
///
/// One type for all linears but the ignored is said as such; several are listed by name.
pub fn config(modules: &[(String, Dtype)], ignored: &[String]) -> Value {
    let mut groups: Vec<(Dtype, Vec<&str>)> = Vec::new();
    for (name, dtype) in modules {
        match groups.iter_mut().find(|group| group.0 == *dtype) {
            Some(group) => group.1.push(name),
            None => groups.push((*dtype, vec![name])),
        }
    }
    let formats: Vec<&str> = groups.iter().filter_map(|group| format_name(group.0)).collect();
    let format = match formats.first() {
        Some(first) if formats.iter().all(|format| format == first) => first,
        _ => "mixed-precision",
    };
    let is_uniform = groups.len() == 1;
    let groups: Map<String, Value> = groups
        .into_iter()
        .enumerate()
        .map(|(index, (dtype, names))| {
            let targets = if is_uniform { json!(["Linear"]) } else { json!(names) };
            let group = json!({
                "targets": targets, "weights": weights(dtype), "input_activations": null, "output_activations": null,
                "format": format_name(dtype),
            });
            (format!("group_{index}"), group)
        })
        .collect();
    json!({
        "quant_method": "compressed-tensors", "version": VERSION, "quantization_status": "compressed", "format": format,
        "config_groups": groups, "ignore": ignored, "kv_cache_scheme": null, "global_compression_ratio": null,
    })
}
