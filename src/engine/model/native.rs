//! The backend on our own kernels: weights stay as they lie in the file, quantized ones packed.

use crate::error::{Fault, Result, Stage};
use crate::format::{self, Dtype};
use crate::kernels::activations::Activations;
use crate::kernels::attention::{self, Heads, Past, Run};
use crate::kernels::dense::{self, Dense, Panels, Plain};
use crate::kernels::ops;
use crate::kernels::packed::Packed;

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
    pub(super) fn values(&self) -> &[f32] {
        &self.values
    }

    fn count(&self) -> usize {
        self.values.len() / self.width.max(1)
    }
}

#[derive(Debug)]
enum Weights {
    Dense(Dense),
    Packed(Packed),
    /// Rows as the file has them, decoded a few at a time.
    Stored(Vec<u8>),
}

/// A matrix on the host.
#[derive(Debug)]
pub struct Linear {
    dtype: Dtype,
    rows: usize,
    cols: usize,
    weights: Weights,
}

/// One input, in the forms that the weights it meets ask for; each is made once.
struct Input<'a> {
    rows: &'a Rows,
    panels: Option<Panels>,
    quantized: Vec<Activations>,
}

impl Input<'_> {
    fn panels(&mut self) -> &Panels {
        self.panels.get_or_insert_with(|| Panels::new(&self.rows.values, self.rows.width))
    }

    fn quantized(&mut self, block: usize) -> &Activations {
        let at = self.quantized.iter().position(|found| found.block() == block).unwrap_or_else(|| {
            self.quantized.push(Activations::quantize(&self.rows.values, self.rows.width, block));
            self.quantized.len() - 1
        });
        &self.quantized[at]
    }
}

impl Linear {
    /// Decodes row `index`.
    fn row(&self, index: usize, out: &mut [f32]) {
        match &self.weights {
            Weights::Dense(weights) => weights.row(index, out),
            Weights::Packed(weights) => weights.row(index, out),
            Weights::Stored(bytes) => self.decode(bytes, index, out),
        }
    }

    /// Decodes as many rows as `out` holds, from row `first` on.
    fn decode(&self, bytes: &[u8], first: usize, out: &mut [f32]) {
        let row_bytes = bytes.len() / self.rows;
        let count = out.len() / self.cols;
        format::decode_rows(self.dtype, self.cols, &bytes[first * row_bytes..(first + count) * row_bytes], out);
    }

    fn multiply(&self, x: &mut Input<'_>) -> Rows {
        let mut values = vec![0.0; x.rows.count() * self.rows];
        match &self.weights {
            Weights::Dense(weights) => weights.matmul(x.panels(), &mut values),
            Weights::Packed(weights) => {
                weights.matmul(x.quantized(weights.layout().activation_block()), &mut values);
            }
            Weights::Stored(bytes) => {
                let decode = |first: usize, out: &mut [f32]| self.decode(bytes, first, out);
                dense::matmul_decoded(self.rows, self.cols, &decode, x.panels(), &mut values);
            }
        }
        Rows { width: self.rows, values }
    }
}

impl Backend for Native {
    type Rows = Rows;
    type Linear = Linear;
    type Vector = Vec<f32>;
    type Turns = Angles;

    fn matrix(&self, stored: StoredMatrix) -> Result<Linear> {
        let StoredMatrix { dtype, rows, cols, bytes } = stored;
        let layout = format::of_dtype(dtype).and_then(format::Format::layout);
        let layout =
            layout.filter(|layout| layout.row_bytes(cols).is_some_and(|bytes| dtype.row_bytes(cols) == Some(bytes)));
        let weights = match (dtype, layout) {
            (Dtype::F32, _) => Weights::Dense(Dense::new(Plain::F32, &bytes, rows, cols)),
            (Dtype::F16, _) => Weights::Dense(Dense::new(Plain::F16, &bytes, rows, cols)),
            (Dtype::Bf16, _) => Weights::Dense(Dense::new(Plain::Bf16, &bytes, rows, cols)),
            (_, Some(layout)) => Weights::Packed(Packed::new(layout, &bytes, rows, cols)),
            _ if format::is_decodable(dtype) => Weights::Stored(bytes),
            _ => {
                return Err(Fault::new(Stage::Model, format!("no decoder for {dtype}"))
                    .fix("open a checkpoint in another format")
                    .into());
            }
        };
        Ok(Linear { dtype, rows, cols, weights })
    }

    fn vector(&self, values: Vec<f32>) -> Result<Vec<f32>> {
        Ok(values)
    }

    fn matrix_bytes(&self, matrix: &Linear) -> u64 {
        match &matrix.weights {
            Weights::Dense(weights) => weights.resident_bytes() as u64,
            Weights::Packed(weights) => weights.resident_bytes() as u64,
            Weights::Stored(bytes) => bytes.len() as u64,
        }
    }

    fn rows_from(&self, values: Vec<f32>, width: usize) -> Result<Rows> {
        Ok(Rows { width, values })
    }

    fn rows_to(&self, rows: &Rows) -> Result<Vec<f32>> {
        Ok(rows.values.clone())
    }

    fn rows_into(&self, rows: Rows) -> Result<Vec<f32>> {
        Ok(rows.values)
    }

    fn turns(&self, angles: Angles) -> Result<Angles> {
        Ok(angles)
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
        let mut input = Input { rows: x, panels: None, quantized: Vec::new() };
        Ok(weights
            .iter()
            .map(|(linear, bias)| {
                let mut y = linear.multiply(&mut input);
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

    fn scale(&self, mut x: Rows, factors: &Vec<f32>) -> Result<Rows> {
        for row in x.values.chunks_exact_mut(x.width) {
            row.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor);
        }
        Ok(x)
    }

    fn add(&self, mut x: Rows, y: &Rows) -> Result<Rows> {
        ops::add(&mut x.values, &y.values);
        Ok(x)
    }
}
