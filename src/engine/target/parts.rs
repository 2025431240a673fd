//! What a container stores for one weight matrix: parts of its own, made from canonical rows.
//!
//! Rows come in order and in chunks of any size; a [`Packer`] appends the bytes of the parts in the
//! order of [`parts`]. Only what a part needs from every row is held back: scales, zeros, maxima;
//! GPTQ and AWQ store the transpose, so that they hold the packed codes of one tensor.
//!
//! Layouts: `reference` of compressed-tensors 0.20 (Apache-2.0), bitsandbytes 0.50 (MIT),
//! GPTQModel 7.7 (Apache-2.0) and AutoAWQ 0.2.9 (MIT), each checked against its own packing code.

use super::{bitsandbytes, compressed_tensors, gptq};
use crate::format::{Dtype, Shared};
use crate::kernels::ints::ScaleType;

/// A container for quantized weights in safetensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// compressed-tensors: integers of any width, fp8 e4m3.
    CompressedTensors,
    /// bitsandbytes: nf4 and fp4.
    Bitsandbytes,
    /// GPTQ: integers of 2, 3, 4 and 8 bits, packed along the input.
    Gptq,
    /// AWQ's gemm layout: 4-bit groups with zeros, packed along the output.
    Awq,
}

/// One stored tensor of a weight matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What follows the module's name and a dot: `weight_packed`.
    pub suffix: String,
    /// A plain type.
    pub dtype: Dtype,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
}

impl Part {
    pub(super) fn new(suffix: impl Into<String>, dtype: Dtype, shape: &[usize]) -> Self {
        Self { suffix: suffix.into(), dtype, shape: shape.to_vec() }
    }

    /// Bytes of the part.
    pub fn bytes(&self) -> u64 {
        self.shape.iter().fold(self.dtype.block_bytes() as u64, |bytes, &len| bytes.saturating_mul(len as u64))
    }
}

/// A weight matrix to be packed.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    /// A type with parameters.
    pub dtype: Dtype,
    /// Output channels.
    pub rows: usize,
    /// Input channels.
    pub cols: usize,
    /// The plain type that the model's other weights have.
    pub main: Dtype,
}

/// The parts of a matrix in the order in which they are written; `None` where the container cannot
/// hold it.
pub fn parts(scheme: Scheme, matrix: &Matrix) -> Option<Vec<Part>> {
    match scheme {
        Scheme::CompressedTensors => compressed_tensors::parts(matrix),
        Scheme::Bitsandbytes => bitsandbytes::parts(matrix),
        Scheme::Gptq => gptq::gptq_parts(matrix),
        Scheme::Awq => gptq::awq_parts(matrix),
    }
}

/// The plain type of a scale.
pub(super) fn scale_dtype(scale: ScaleType) -> Dtype {
    match scale {
        ScaleType::F16 => Dtype::F16,
        ScaleType::Bf16 => Dtype::Bf16,
        ScaleType::F32 => Dtype::F32,
    }
}

/// Turns canonical rows into the parts' bytes.
#[derive(Debug)]
pub struct Packer(Kind);

#[derive(Debug)]
enum Kind {
    CompressedTensors(compressed_tensors::Packer),
    Bitsandbytes(bitsandbytes::Packer),
    Gptq(gptq::Packer),
}

impl Packer {
    /// A packer for a matrix that [`parts`] knows; `shared` is what its survey found, which double
    /// quantization needs.
    pub fn new(scheme: Scheme, matrix: &Matrix, shared: Option<&Shared>) -> Option<Self> {
        parts(scheme, matrix)?;
        Some(Self(match scheme {
            Scheme::CompressedTensors => Kind::CompressedTensors(compressed_tensors::Packer::new(matrix)?),
            Scheme::Bitsandbytes => Kind::Bitsandbytes(bitsandbytes::Packer::new(matrix, shared)?),
            Scheme::Gptq => Kind::Gptq(gptq::Packer::gptq(matrix)?),
            Scheme::Awq => Kind::Gptq(gptq::Packer::awq(matrix)?),
        }))
    }

    /// Takes whole canonical rows and appends what can be written of the parts to `out`.
    pub fn rows(&mut self, rows: &[u8], out: &mut Vec<u8>) {
        match &mut self.0 {
            Kind::CompressedTensors(packer) => packer.rows(rows, out),
            Kind::Bitsandbytes(packer) => packer.rows(rows, out),
            Kind::Gptq(packer) => packer.rows(rows),
        }
    }

    /// Appends the rest.
    pub fn finish(self, out: &mut Vec<u8>) {
        match self.0 {
            Kind::CompressedTensors(packer) => packer.finish(out),
            Kind::Bitsandbytes(packer) => packer.finish(out),
            Kind::Gptq(packer) => packer.finish(out),
        }
    }
}
