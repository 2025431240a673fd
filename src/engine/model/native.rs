//! The backend on our own kernels: weights stay as they lie in the file, quantized ones packed.

use crate::engine::error::{Fault, Result, Stage};
use crate::engine::format::{self, Dtype};
use crate::engine::kernels::activations::Activations;
use crate::engine::kernels::attention::{self, Heads, Past, Run};
use crate::engine::kernels::dense::{self, Plain};
use crate::engine::kernels::packed::{self, Layout};
use crate::engine::kernels::{float, ops};

use super::backend::{Angles, Backend, StoredMatrix};
use super::{Batch, KvCache};

/// Runs on the CPU's cores.
#[derive(Clone, Copy, Debug, Default)]
pub struct Native;

/// Host rows.
#[derive(Clone, Debug)]
pub struct Rows {
    width: usize,
    values: Vec<f32>,
}

impl Rows {
    /// The values, row after row.
    pub(super) fn into_values(self) -> Vec<f32> {
        self.values
    }

    fn count(&self) -> usize {
        self.values.len() / self.width.max(1)
    }
}

#[derive(Debug)]
enum Weights {
    F32(Vec<f32>),
    F16(Vec<u8>),
    Bf16(Vec<u8>),
    Packed(Layout, Vec<u8>),
}

/// A matrix on the host.
#[derive(Debug)]
pub struct Linear {
    dtype: Dtype,
    rows: usize,
    cols: usize,
    weights: Weights,
}

impl Linear {
    /// Decodes row `index`.
    fn row(&self, index: usize, out: &mut [f32]) {
        let range = index * self.cols..(index + 1) * self.cols;
        match &self.weights {
            Weights::F32(values) => out.copy_from_slice(&values[range]),
            Weights::F16(bytes) => float::decode_f16(&bytes[range.start * 2..range.end * 2], out),
            Weights::Bf16(bytes) => float::decode_bf16(&bytes[range.start * 2..range.end * 2], out),
            Weights::Packed(layout, bytes) => {
                let row_bytes = self.cols / layout.block_len() * layout.block_bytes();
                format::decode_row(self.dtype, &bytes[index * row_bytes..(index + 1) * row_bytes], out);
            }
        }
    }

    fn multiply(&self, x: &Rows, quantized: &mut Vec<Activations>) -> Rows {
        let mut values = vec![0.0; x.count() * self.rows];
        match &self.weights {
            Weights::F32(w) => dense::matmul(Plain::F32(w), self.rows, self.cols, &x.values, &mut values),
            Weights::F16(w) => dense::matmul(Plain::F16(w), self.rows, self.cols, &x.values, &mut values),
            Weights::Bf16(w) => dense::matmul(Plain::Bf16(w), self.rows, self.cols, &x.values, &mut values),
            Weights::Packed(layout, w) => {
                let block = layout.block_len();
                let at = quantized.iter().position(|found| found.block() == block).unwrap_or_else(|| {
                    quantized.push(Activations::quantize(&x.values, x.width, block));
                    quantized.len() - 1
                });
                packed::matmul(*layout, w, self.rows, &quantized[at], &mut values);
            }
        }
        Rows { width: self.rows, values }
    }
}

impl Backend for Native {
    type Rows = Rows;
    type Linear = Linear;
    type Vector = Vec<f32>;

    fn matrix(&self, stored: StoredMatrix) -> Result<Linear> {
        let StoredMatrix { dtype, rows, cols, bytes } = stored;
        let layout = format::of_dtype(dtype).and_then(format::Format::layout);
        let weights = match (dtype, layout) {
            (Dtype::F16, _) => Weights::F16(bytes),
            (Dtype::Bf16, _) => Weights::Bf16(bytes),
            (_, Some(layout)) => Weights::Packed(layout, bytes),
            _ => {
                let mut values = vec![0.0; rows * cols];
                if !format::decode_rows(dtype, cols, &bytes, &mut values) {
                    return Err(Fault::new(Stage::Model, format!("no decoder for {dtype}"))
                        .fix("open a checkpoint in another format")
                        .into());
                }
                Weights::F32(values)
            }
        };
        Ok(Linear { dtype, rows, cols, weights })
    }

    fn vector(&self, values: Vec<f32>) -> Result<Vec<f32>> {
        Ok(values)
    }

    fn matrix_bytes(&self, matrix: &Linear) -> u64 {
        match &matrix.weights {
            Weights::F32(values) => values.len() as u64 * 4,
            Weights::F16(bytes) | Weights::Bf16(bytes) | Weights::Packed(_, bytes) => bytes.len() as u64,
        }
    }

    fn rows_from(&self, values: Vec<f32>, width: usize) -> Result<Rows> {
        Ok(Rows { width, values })
    }

    fn rows_to(&self, rows: &Rows) -> Result<Vec<f32>> {
        Ok(rows.values.clone())
    }

    fn embed(&self, table: &Linear, ids: &[u32]) -> Result<Rows> {
        let mut values = vec![0.0; ids.len() * table.cols];
        for (out, &id) in values.chunks_exact_mut(table.cols).zip(ids) {
            if id as usize >= table.rows {
                return Err(Fault::new(Stage::Model, format!("token {id} is beyond the vocabulary of {}", table.rows))
                    .fix("use the tokenizer that belongs to this model")
                    .into());
            }
            table.row(id as usize, out);
        }
        Ok(Rows { width: table.cols, values })
    }

    fn rms_norm(&self, x: &Rows, weight: &Vec<f32>, eps: f64) -> Result<Rows> {
        let mut values = vec![0.0; x.values.len()];
        ops::rms_norm(&x.values, weight, eps as f32, &mut values);
        Ok(Rows { width: x.width, values })
    }

    fn linears(&self, weights: &[(&Linear, Option<&Vec<f32>>)], x: &Rows) -> Result<Vec<Rows>> {
        let mut quantized = Vec::new();
        Ok(weights
            .iter()
            .map(|(linear, bias)| {
                let mut y = linear.multiply(x, &mut quantized);
                if let Some(bias) = bias {
                    for row in y.values.chunks_exact_mut(y.width) {
                        ops::add(row, bias);
                    }
                }
                y
            })
            .collect())
    }

    fn rope(&self, x: &mut Rows, angles: &Angles) -> Result<()> {
        ops::rope(&mut x.values, x.width, angles.head_dim, &angles.cos, &angles.sin);
        Ok(())
    }

    fn attention(
        &self,
        heads: Heads,
        layer: usize,
        batch: &Batch,
        caches: &mut [KvCache],
        q: &Rows,
        k: &Rows,
        v: &Rows,
    ) -> Result<Rows> {
        let mut values = vec![0.0; q.values.len()];
        {
            let runs: Vec<Run<'_>> = batch
                .segments
                .iter()
                .map(|segment| Run {
                    start: segment.start,
                    len: segment.len,
                    past: batch
                        .lineage(segment)
                        .into_iter()
                        .flat_map(|ancestor| {
                            let cached = ancestor.cache.and_then(|cache| caches[cache].layers.get(layer));
                            let cached = cached.map(|(keys, values)| Past { keys, values });
                            let own = (ancestor.start != segment.start).then(|| {
                                let range = ancestor.start * k.width..(ancestor.start + ancestor.len) * k.width;
                                Past { keys: &k.values[range.clone()], values: &v.values[range] }
                            });
                            cached.into_iter().chain(own)
                        })
                        .collect(),
                })
                .collect();
            attention::attend(heads, &runs, &q.values, &k.values, &v.values, &mut values);
        }
        for segment in &batch.segments {
            if let Some(cache) = segment.cache {
                let layers = &mut caches[cache].layers;
                if layers.len() <= layer {
                    layers.resize_with(layer + 1, Default::default);
                }
                let range = segment.start * k.width..(segment.start + segment.len) * k.width;
                layers[layer].0.extend_from_slice(&k.values[range.clone()]);
                layers[layer].1.extend_from_slice(&v.values[range]);
            }
        }
        Ok(Rows { width: q.width, values })
    }

    fn gated(&self, mut gate: Rows, up: &Rows) -> Result<Rows> {
        ops::silu_mul(&mut gate.values, &up.values);
        Ok(gate)
    }

    fn add(&self, mut x: Rows, y: &Rows) -> Result<Rows> {
        ops::add(&mut x.values, &y.values);
        Ok(x)
    }
}
