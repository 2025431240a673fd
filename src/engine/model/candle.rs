//! The backend on candle: for its devices (CUDA, Metal) and for gradients.
//!
//! Composed operations only: candle's fused softmax, norm and rotary embedding drop gradients
//! without a word (candle #2168, #3568). Weights are widened to f32 on the device; quantized ones
//! are dequantized, so figures made here are "measured, weights only".

use candle_core::{D, Device, Tensor};

use crate::error::{Error, Fault, Result, Stage};
use crate::format;
use crate::kernels::attention::Heads;

use super::backend::{Angles, Backend, StoredMatrix};
use super::{Batch, KvCache};

/// Runs on a device of candle's.
#[derive(Clone, Debug)]
pub struct Candle {
    /// Where tensors live.
    pub device: Device,
}

impl Candle {
    /// The CPU, by way of candle.
    pub fn cpu() -> Self {
        Self { device: Device::Cpu }
    }
}

/// candle's error as one of ours.
pub(super) fn failed(err: candle_core::Error) -> Error {
    Fault::new(Stage::Model, format!("candle: {err}")).fix("run on the CPU's own kernels instead").into()
}

impl Candle {
    fn tensor(&self, values: Vec<f32>, shape: (usize, usize)) -> Result<Tensor> {
        Tensor::from_vec(values, shape, &self.device).map_err(failed)
    }

    /// Keys or values of one head group, `tokens × kv_heads × head_dim`, with each head repeated for its queries.
    fn repeated(rows: &Tensor, heads: Heads) -> candle_core::Result<Tensor> {
        let tokens = rows.dim(0)?;
        let group = heads.heads / heads.kv_heads;
        rows.reshape((tokens, heads.kv_heads, 1, heads.head_dim))?
            .broadcast_as((tokens, heads.kv_heads, group, heads.head_dim))?
            .reshape((tokens, heads.heads, heads.head_dim))?
            .transpose(0, 1)?
            .contiguous()
    }

    /// Attention of `q` (run × width) over `k` and `v` (past + run tokens); the run is causal, the past is seen whole.
    fn attend(heads: Heads, q: &Tensor, k: &Tensor, v: &Tensor, device: &Device) -> candle_core::Result<Tensor> {
        let (run, all) = (q.dim(0)?, k.dim(0)?);
        let q = q.reshape((run, heads.heads, heads.head_dim))?.transpose(0, 1)?.contiguous()?;
        let k = Self::repeated(k, heads)?;
        let v = Self::repeated(v, heads)?;
        let scores = (q.matmul(&k.transpose(1, 2)?.contiguous()?)? * (1.0 / (heads.head_dim as f64).sqrt()))?;
        let mask: Vec<f32> = (0..run)
            .flat_map(|row| (0..all).map(move |key| if key > all - run + row { f32::NEG_INFINITY } else { 0.0 }))
            .collect();
        let mask = Tensor::from_vec(mask, (1, run, all), device)?;
        let scores = scores.broadcast_add(&mask)?;
        let weights = candle_nn::ops::softmax(&scores, D::Minus1)?;
        weights.matmul(&v)?.transpose(0, 1)?.contiguous()?.reshape((run, heads.heads * heads.head_dim))
    }
}

impl Backend for Candle {
    type Rows = Tensor;
    type Linear = Tensor;
    type Vector = Tensor;

    fn matrix(&self, stored: StoredMatrix) -> Result<Tensor> {
        let mut values = vec![0.0; stored.rows * stored.cols];
        if !format::decode_rows(stored.dtype, stored.cols, &stored.bytes, &mut values) {
            return Err(Fault::new(Stage::Model, format!("no decoder for {}", stored.dtype))
                .fix("open a checkpoint in another format")
                .into());
        }
        self.tensor(values, (stored.rows, stored.cols))
    }

    fn vector(&self, values: Vec<f32>) -> Result<Tensor> {
        let len = values.len();
        Tensor::from_vec(values, len, &self.device).map_err(failed)
    }

    fn matrix_bytes(&self, matrix: &Tensor) -> u64 {
        (matrix.elem_count() * matrix.dtype().size_in_bytes()) as u64
    }

    fn rows_from(&self, values: Vec<f32>, width: usize) -> Result<Tensor> {
        let rows = values.len() / width.max(1);
        self.tensor(values, (rows, width))
    }

    fn rows_to(&self, rows: &Tensor) -> Result<Vec<f32>> {
        rows.flatten_all().and_then(|flat| flat.to_vec1()).map_err(failed)
    }

    fn embed(&self, table: &Tensor, ids: &[u32]) -> Result<Tensor> {
        let rows = table.dim(0).map_err(failed)?;
        if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
            return Err(Fault::new(Stage::Model, format!("token {id} is beyond the vocabulary of {rows}"))
                .fix("use the tokenizer that belongs to this model")
                .into());
        }
        Tensor::new(ids, &self.device).and_then(|ids| table.index_select(&ids, 0)).map_err(failed)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
        candle_nn::ops::rms_norm_slow(x, weight, eps as f32).map_err(failed)
    }

    fn linears(&self, weights: &[(&Tensor, Option<&Tensor>)], x: &Tensor) -> Result<Vec<Tensor>> {
        weights
            .iter()
            .map(|(weight, bias)| {
                let y = x.matmul(&weight.t()?)?;
                match bias {
                    Some(bias) => y.broadcast_add(bias),
                    None => Ok(y),
                }
            })
            .collect::<candle_core::Result<_>>()
            .map_err(failed)
    }

    fn rope(&self, x: &mut Tensor, angles: &Angles) -> Result<()> {
        let rotated = || {
            let (tokens, width) = x.dims2()?;
            let half = angles.head_dim / 2;
            let heads = width / angles.head_dim;
            let part = |values: &[f32]| Tensor::from_slice(values, (tokens, 1, half), &self.device);
            let (cos, sin) = (part(&angles.cos)?, part(&angles.sin)?);
            let split = x.reshape((tokens, heads, angles.head_dim))?;
            let (first, second) = (split.narrow(2, 0, half)?, split.narrow(2, half, half)?);
            let left = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
            let right = (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?;
            Tensor::cat(&[left, right], 2)?.reshape((tokens, width))
        };
        *x = rotated().map_err(failed)?;
        Ok(())
    }

    fn attention(
        &self,
        heads: Heads,
        layer: usize,
        batch: &Batch,
        caches: &mut [KvCache],
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<Tensor> {
        let kv_width = heads.kv_heads * heads.head_dim;
        let mut outputs = Vec::with_capacity(batch.segments.len());
        for segment in &batch.segments {
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for ancestor in batch.lineage(segment) {
                if let Some((cached_keys, cached_values)) =
                    ancestor.cache.and_then(|cache| caches[cache].layers.get(layer))
                    && !cached_keys.is_empty()
                {
                    keys.push(self.rows_from(cached_keys.clone(), kv_width)?);
                    values.push(self.rows_from(cached_values.clone(), kv_width)?);
                }
                keys.push(k.narrow(0, ancestor.start, ancestor.len).map_err(failed)?);
                values.push(v.narrow(0, ancestor.start, ancestor.len).map_err(failed)?);
            }
            let output = || {
                let query = q.narrow(0, segment.start, segment.len)?;
                Self::attend(heads, &query, &Tensor::cat(&keys, 0)?, &Tensor::cat(&values, 0)?, &self.device)
            };
            outputs.push(output().map_err(failed)?);
        }
        for segment in &batch.segments {
            if let Some(cache) = segment.cache {
                let layers = &mut caches[cache].layers;
                if layers.len() <= layer {
                    layers.resize_with(layer + 1, Default::default);
                }
                let own = |rows: &Tensor| rows.narrow(0, segment.start, segment.len).map_err(failed);
                layers[layer].0.extend(self.rows_to(&own(k)?)?);
                layers[layer].1.extend(self.rows_to(&own(v)?)?);
            }
        }
        // Segments lie one after another, so their outputs do too.
        Tensor::cat(&outputs, 0).map_err(failed)
    }

    fn gated(&self, gate: Tensor, up: &Tensor) -> Result<Tensor> {
        gate.silu().and_then(|gate| gate * up).map_err(failed)
    }

    fn scale(&self, x: Tensor, factors: &Tensor) -> Result<Tensor> {
        x.broadcast_mul(factors).map_err(failed)
    }

    fn add(&self, x: Tensor, y: &Tensor) -> Result<Tensor> {
        (x + y).map_err(failed)
    }
}
