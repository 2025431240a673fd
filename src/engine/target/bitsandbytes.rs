//! bitsandbytes: nf4 and fp4 weights with their state, and the config.
//!
//! The state of a matrix is a JSON object in a tensor of bytes. White space after the object is
//! legal there; it fills up to a length that is known before the survey.

use serde_json::{Value, json};

use super::parts::{Matrix, Part};
use crate::format::{BnbScheme, Dtype, Shared};
use crate::kernels::bnb::{BLOCK, NESTED_BLOCK, Nested, Table, dynamic_map};

/// The container's name of a table.
pub fn table_name(table: Table) -> &'static str {
    match table {
        Table::Nf4 => "nf4",
        Table::Fp4 => "fp4",
    }
}

/// PyTorch's name of a plain type.
pub(super) fn torch_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
        _ => "float32",
    }
}

/// The state of a matrix, with white space up to a length that does not depend on `offset`.
fn state(scheme: BnbScheme, matrix: &Matrix, offset: f32) -> String {
    let table = table_name(scheme.table);
    let dtype = torch_name(matrix.main);
    let (rows, cols) = (matrix.rows, matrix.cols);
    let mut text =
        format!(r#"{{"quant_type": "{table}", "blocksize": {BLOCK}, "dtype": "{dtype}", "shape": [{rows}, {cols}]"#);
    // Types' names differ in length, which must not show either.
    let mut len = text.len() - dtype.len() + "bfloat16".len() + 1;
    if scheme.double_quantized {
        let nested = format!(r#", "nested_blocksize": {NESTED_BLOCK}, "nested_dtype": "float32", "nested_offset": "#);
        // The longest number that is an f32 written as a double.
        len += nested.len() + 24;
        text += &nested;
        text += &json!(f64::from(offset)).to_string();
    }
    text.push('}');
    while text.len() < len {
        text.push(' ');
    }
    text
}

pub(super) fn parts(matrix: &Matrix) -> Option<Vec<Part>> {
    let Dtype::Bnb(scheme) = matrix.dtype else { return None };
    scheme.row_bytes(matrix.cols)?;
    let weights = matrix.rows.checked_mul(matrix.cols)?;
    let blocks = weights / BLOCK;
    let maximum = if scheme.double_quantized { Dtype::U8 } else { Dtype::F32 };
    let mut parts = vec![
        Part::new("weight", Dtype::U8, &[weights / 2, 1]),
        Part::new("weight.absmax", maximum, &[blocks]),
        Part::new("weight.quant_map", Dtype::F32, &[16]),
    ];
    if scheme.double_quantized {
        parts.push(Part::new("weight.nested_absmax", Dtype::F32, &[blocks.div_ceil(NESTED_BLOCK)]));
        parts.push(Part::new("weight.nested_quant_map", Dtype::F32, &[256]));
    }
    let state = state(scheme, matrix, 0.0);
    let name = format!("weight.quant_state.bitsandbytes__{}", table_name(scheme.table));
    parts.push(Part::new(name, Dtype::U8, &[state.len()]));
    Some(parts)
}

/// Packs one matrix.
#[derive(Debug)]
pub(super) struct Packer {
    scheme: BnbScheme,
    matrix: Matrix,
    nested: Option<Nested>,
    maxima: Vec<u8>,
}

impl Packer {
    pub(super) fn new(matrix: &Matrix, shared: Option<&Shared>) -> Option<Self> {
        let Dtype::Bnb(scheme) = matrix.dtype else { return None };
        let nested = match shared {
            Some(Shared::Nested(nested)) => Some(nested.clone()),
            // An empty matrix has no survey to speak of.
            _ => None,
        };
        (nested.is_some() || !scheme.double_quantized).then_some(Self {
            scheme,
            matrix: *matrix,
            nested,
            maxima: Vec::new(),
        })
    }

    pub(super) fn rows(&mut self, rows: &[u8], out: &mut Vec<u8>) {
        let Some(row_bytes) = self.scheme.row_bytes(self.matrix.cols).filter(|&bytes| bytes > 0) else { return };
        for row in rows.chunks_exact(row_bytes) {
            let (codes, maxima) = row.split_at(self.matrix.cols / 2);
            out.extend_from_slice(codes);
            if self.nested.is_none() {
                self.maxima.extend_from_slice(maxima);
            }
        }
    }

    pub(super) fn finish(self, out: &mut Vec<u8>) {
        let floats =
            |values: &[f32], out: &mut Vec<u8>| out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        match &self.nested {
            None => out.extend_from_slice(&self.maxima),
            Some(nested) => out.extend_from_slice(&nested.codes),
        }
        floats(self.scheme.table.values(), out);
        if let Some(nested) = &self.nested {
            floats(&nested.maxima, out);
            floats(if nested.table.len() == 256 { &nested.table } else { &[] }, out);
            if nested.table.len() != 256 {
                floats(&dynamic_map(), out);
            }
        }
        let offset = self.nested.as_ref().map_or(0.0, |nested| nested.offset);
        out.extend_from_slice(state(self.scheme, &self.matrix, offset).as_bytes());
    }
}

/// `quantization_config` for weights of one type; `kept` are linears that stay plain, by name.
pub fn config(scheme: BnbScheme, kept: &[String], main: Dtype) -> Value {
    json!({
        "quant_method": "bitsandbytes", "load_in_4bit": true, "load_in_8bit": false, "_load_in_4bit": true,
        "_load_in_8bit": false, "bnb_4bit_quant_type": table_name(scheme.table),
        "bnb_4bit_use_double_quant": scheme.double_quantized, "bnb_4bit_compute_dtype": torch_name(main),
        "bnb_4bit_quant_storage": "uint8", "llm_int8_skip_modules": kept, "llm_int8_threshold": 6.0,
        "llm_int8_has_fp16_weight": false, "llm_int8_enable_fp32_cpu_offload": false,
    })
}
