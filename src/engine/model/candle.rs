//! The backend on candle: for its devices (CUDA, Metal) and for gradients.
//!
//! Composed operations only: candle's fused softmax, norm and rotary embedding drop gradients
//! without a word (candle #2168, #3568). How weights are held is [`Precision`]: for gradients all in
//! f32; for runs as they lie in the file, block formats multiplied by candle's own quantized kernels
//! where it has them. What does not fit the device stays on the host and goes up for each product, while
//! those before are multiplied.
//! The stream between the layers is f32 everywhere.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{D, DType, Device, Module as _, Tensor};
use half::{bf16, f16};

use crate::device::ModelDevice;
use crate::error::{Error, Fault, Result, Stage};
use crate::format::{self, Dtype};
use crate::kernels::attention::Heads;

use super::ahead::Ahead;
use super::backend::{Angles, Backend, StoredMatrix};
use super::{Batch, KvCache};

/// How weights are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Everything widened to f32: for gradients.
    Full,
    /// Block formats packed, 16-bit floats widened: products have f32 inputs, as our own kernels' have.
    Wide,
    /// Block formats packed, 16-bit floats as they are: products have inputs of 16 bits, which is what
    /// the matrix units of GPUs multiply.
    Stored,
}

/// Runs on a device of candle's.
#[derive(Clone, Debug)]
pub struct Candle {
    /// Where tensors live.
    pub device: Device,
    precision: Precision,
    /// Bytes that matrices may still take; further ones stay on the host.
    room: Arc<AtomicU64>,
    /// The 16-bit type of the matrices that were loaded in one.
    half: Arc<OnceLock<DType>>,
    /// What brings matrices up before they are multiplied, where they do not all stay.
    uplift: Arc<OnceLock<Uplift>>,
    #[cfg(test)]
    broken: Arc<Mutex<Broken>>,
    /// The last mask: every layer of a run asks for the same one.
    mask: Arc<Mutex<Option<Mask>>>,
}

/// What is broken of a device.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Broken {
    /// Products that still succeed, where others fail after them.
    pub(super) products_left: Option<usize>,
    /// True if those do so by a panic.
    pub(super) panics: bool,
    /// True if nothing on it can be read.
    pub(super) is_unreadable: bool,
}

/// A mask with the numbers of its rows and columns.
type Mask = ((usize, usize), Tensor);

/// A matrix of a model on a device.
#[derive(Debug)]
pub struct Linear {
    weights: Weights,
    /// The rows of a table that is looked up and cannot be there.
    host: Option<Arc<StoredMatrix>>,
    rows: usize,
    bytes: u64,
}

#[derive(Debug)]
enum Weights {
    Dense(Tensor),
    Quantized(QMatMul),
    /// On the host, for want of room.
    Streamed(Arc<StoredMatrix>),
}

impl Linear {
    /// The values as one tensor, where they are plain numbers on the device.
    pub(super) fn dense(&mut self) -> Option<&mut Tensor> {
        match &mut self.weights {
            Weights::Dense(tensor) => Some(tensor),
            _ => None,
        }
    }

    /// The matrix on the host, where it goes up for every product.
    pub(super) fn streamed(&self) -> Option<&Arc<StoredMatrix>> {
        match &self.weights {
            Weights::Streamed(stored) => Some(stored),
            _ => None,
        }
    }
}

/// Matrices that come up in the order in which they are multiplied.
#[derive(Debug)]
struct Uplift {
    /// The place of each in the order, by its address on the host, where it stays as long as its model.
    places: HashMap<usize, usize>,
    ahead: Ahead<Weights>,
}

/// The address of a matrix on the host.
fn address(stored: &Arc<StoredMatrix>) -> usize {
    Arc::as_ptr(stored).addr()
}

/// candle's error as one of ours: the CPU can do the same.
pub(super) fn failed(err: candle_core::Error) -> Error {
    Fault::new(Stage::Device, format!("candle: {err}")).fix("take --device cpu").into()
}

/// What candle calls a block format that it can multiply.
fn packed(dtype: Dtype) -> Option<GgmlDType> {
    Some(match dtype {
        Dtype::Q4_0 => GgmlDType::Q4_0,
        Dtype::Q4_1 => GgmlDType::Q4_1,
        Dtype::Q5_0 => GgmlDType::Q5_0,
        Dtype::Q5_1 => GgmlDType::Q5_1,
        Dtype::Q8_0 => GgmlDType::Q8_0,
        Dtype::Q2K => GgmlDType::Q2K,
        Dtype::Q3K => GgmlDType::Q3K,
        Dtype::Q4K => GgmlDType::Q4K,
        Dtype::Q5K => GgmlDType::Q5K,
        Dtype::Q6K => GgmlDType::Q6K,
        _ => return None,
    })
}

impl Precision {
    /// What runs have on a device: its matrix units' 16 bits, but not on the CPU.
    pub fn of(device: &ModelDevice) -> Self {
        if device.is_real { Self::Stored } else { Self::Wide }
    }
}

impl Candle {
    /// A device of candle's; matrices take at most `room` bytes of it.
    pub fn new(device: Device, precision: Precision, room: u64) -> Self {
        Self {
            device,
            precision,
            room: Arc::new(AtomicU64::new(room)),
            half: Arc::default(),
            uplift: Arc::default(),
            #[cfg(test)]
            broken: Arc::default(),
            mask: Arc::default(),
        }
    }

    /// The CPU, by way of candle, with everything in f32.
    pub fn cpu() -> Self {
        Self::new(Device::Cpu, Precision::Full, u64::MAX)
    }

    fn tensor(&self, values: Vec<f32>, shape: (usize, usize)) -> Result<Tensor> {
        Tensor::from_vec(values, shape, &self.device).map_err(failed)
    }

    /// The form in which a matrix is held.
    fn form(precision: Precision, dtype: Dtype) -> Form {
        match (precision, dtype) {
            (Precision::Full, _) => Form::Wide,
            (Precision::Stored, Dtype::F16 | Dtype::Bf16) => Form::Half,
            (_, dtype) => packed(dtype).map_or(Form::Wide, Form::Packed),
        }
    }

    /// Bytes that a matrix of `count` weights in `stored` bytes takes on a device.
    pub(super) fn held_bytes(precision: Precision, dtype: Dtype, count: u64, stored: u64) -> u64 {
        match Self::form(precision, dtype) {
            Form::Wide => count * 4,
            Form::Half => count * 2,
            Form::Packed(_) => stored,
        }
    }

    /// Lets matrices that go up for every product do so while others are multiplied, in the order of
    /// `streamed` over and over, at most `ahead` bytes before they are asked for.
    pub(super) fn stream_ahead(&self, streamed: Vec<Arc<StoredMatrix>>, ahead: u64) {
        let bytes = |stored: &Arc<StoredMatrix>| {
            let count = (stored.rows * stored.cols) as u64;
            Self::held_bytes(self.precision, stored.dtype, count, stored.bytes.len() as u64)
        };
        let sizes = streamed.iter().map(bytes).collect();
        let places = streamed.iter().map(address).zip(0..).collect();
        let (device, precision) = (self.device.clone(), self.precision);
        let make = move |index: usize| bring_up(&device, precision, &streamed[index]);
        if let Some(ahead) = Ahead::new(sizes, ahead, make) {
            // Once a model; a second order would be the same.
            let _ = self.uplift.set(Uplift { places, ahead });
        }
    }

    /// A matrix that goes up for a product: already there, or brought up now.
    fn streamed(&self, stored: &Arc<StoredMatrix>) -> Result<Weights> {
        let uplift = self.uplift.get();
        let place = uplift.and_then(|uplift| Some((uplift, *uplift.places.get(&address(stored))?)));
        let found = place.and_then(|(uplift, place)| uplift.ahead.take(place));
        found.unwrap_or_else(|| bring_up(&self.device, self.precision, stored))
    }

    /// Takes a matrix over: up, if there is room.
    fn take(&self, stored: StoredMatrix, is_table: bool) -> Result<Linear> {
        if !format::is_decodable(stored.dtype) {
            return Err(Fault::new(Stage::Model, format!("no decoder for {}", stored.dtype))
                .fix("open a checkpoint in another format")
                .into());
        }
        let form = Self::form(self.precision, stored.dtype);
        let (rows, count) = (stored.rows, (stored.rows * stored.cols) as u64);
        let bytes = Self::held_bytes(self.precision, stored.dtype, count, stored.bytes.len() as u64);
        let room = self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| room.checked_sub(bytes));
        let stored = Arc::new(stored);
        if let Form::Half = form {
            let _ = self.half.set(if stored.dtype == Dtype::F16 { DType::F16 } else { DType::BF16 });
        }
        if room.is_err() {
            let bytes = stored.bytes.len() as u64;
            let host = is_table.then(|| Arc::clone(&stored));
            return Ok(Linear { weights: Weights::Streamed(stored), host, rows, bytes });
        }
        let weights = bring_up(&self.device, self.precision, &stored)?;
        let host = (is_table && matches!(form, Form::Packed(_))).then_some(stored);
        Ok(Linear { weights, host, rows, bytes })
    }

    /// Lets the device break.
    #[cfg(test)]
    pub(super) fn break_for_test(&self, how: Broken) {
        *self.broken.lock().expect("no test panics here") = how;
    }

    /// What a broken device does instead of a product.
    #[cfg(test)]
    fn break_product(&self) -> Result<()> {
        let panics = {
            let mut broken = self.broken.lock().expect("no test panics here");
            match broken.products_left {
                None => return Ok(()),
                Some(0) => broken.panics,
                Some(left) => {
                    broken.products_left = Some(left - 1);
                    return Ok(());
                }
            }
        };
        assert!(!panics, "a library that gives up");
        Err(failed(candle_core::Error::Msg("broken".to_owned())))
    }

    fn product(&self, weights: &Weights, x: &Tensor) -> Result<Tensor> {
        #[cfg(test)]
        self.break_product()?;
        let product = match weights {
            Weights::Quantized(matrix) => x.contiguous().and_then(|x| matrix.forward(&x)),
            Weights::Dense(matrix) => {
                // Beside matrices of 16 bits, others round what goes in and comes out as those do, so that
                // one standing in for another differs by its weights alone.
                let own = if matrix.dtype() == DType::F32 { self.half.get().copied() } else { Some(matrix.dtype()) };
                let narrow = |rows: &Tensor| own.map_or(Ok(rows.clone()), |half| rows.to_dtype(half));
                let product =
                    || narrow(&narrow(x)?.to_dtype(matrix.dtype())?.matmul(&matrix.t()?)?)?.to_dtype(DType::F32);
                product()
            }
            Weights::Streamed(stored) => return self.product(&self.streamed(stored)?, x),
        };
        product.map_err(failed)
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
    fn attend(&self, heads: Heads, q: &Tensor, k: &Tensor, v: &Tensor) -> candle_core::Result<Tensor> {
        let (run, all) = (q.dim(0)?, k.dim(0)?);
        let q = q.reshape((run, heads.heads, heads.head_dim))?.transpose(0, 1)?.contiguous()?;
        let k = Self::repeated(k, heads)?;
        let v = Self::repeated(v, heads)?;
        let scores = (q.matmul(&k.transpose(1, 2)?.contiguous()?)? * (1.0 / (heads.head_dim as f64).sqrt()))?;
        // A single token sees everything before it.
        let scores = if run == 1 { scores } else { scores.broadcast_add(&self.mask(run, all)?)? };
        let weights = candle_nn::ops::softmax(&scores, D::Minus1)?;
        weights.matmul(&v)?.transpose(0, 1)?.contiguous()?.reshape((run, heads.heads * heads.head_dim))
    }

    /// What keeps a run of tokens from seeing its own future.
    fn mask(&self, run: usize, all: usize) -> candle_core::Result<Tensor> {
        let mut slot = self.mask.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((shape, mask)) = slot.as_ref()
            && *shape == (run, all)
        {
            return Ok(mask.clone());
        }
        let mask: Vec<f32> = (0..run)
            .flat_map(|row| (0..all).map(move |key| if key > all - run + row { f32::NEG_INFINITY } else { 0.0 }))
            .collect();
        let mask = Tensor::from_vec(mask, (1, run, all), &self.device)?;
        *slot = Some(((run, all), mask.clone()));
        Ok(mask)
    }
}

/// Brings a matrix up. Takes no thread of a pool: one of those may be waiting for it.
fn bring_up(device: &Device, precision: Precision, stored: &StoredMatrix) -> Result<Weights> {
    let shape = (stored.rows, stored.cols);
    let dense = |values: candle_core::Result<Tensor>| values.map(Weights::Dense);
    let pairs = || stored.bytes.as_chunks::<2>().0.iter();
    let up = || match Candle::form(precision, stored.dtype) {
        Form::Packed(kind) => {
            let storage = QStorage::from_data(stored.bytes.as_slice().into(), device, kind)?;
            QMatMul::from_qtensor(QTensor::new(storage, shape)?).map(Weights::Quantized)
        }
        Form::Half if stored.dtype == Dtype::F16 => {
            let values: Vec<f16> = pairs().map(|&pair| f16::from_le_bytes(pair)).collect();
            dense(Tensor::from_vec(values, shape, device))
        }
        Form::Half => {
            let values: Vec<bf16> = pairs().map(|&pair| bf16::from_le_bytes(pair)).collect();
            dense(Tensor::from_vec(values, shape, device))
        }
        Form::Wide => {
            let mut values = vec![0.0; stored.rows * stored.cols];
            // Asked for before.
            format::decode_rows(stored.dtype, stored.cols, &stored.bytes, &mut values);
            dense(Tensor::from_vec(values, shape, device))
        }
    };
    up().map_err(failed)
}

/// How a matrix is held on the device.
#[derive(Clone, Copy)]
enum Form {
    Wide,
    Half,
    Packed(GgmlDType),
}

/// Cosines and sines on the device, `tokens × 1 × head_dim / 2`.
#[derive(Debug)]
pub struct Turns {
    head_dim: usize,
    cos: Tensor,
    sin: Tensor,
}

impl Backend for Candle {
    type Rows = Tensor;
    type Linear = Linear;
    type Vector = Tensor;
    type Turns = Turns;

    fn matrix(&self, stored: StoredMatrix) -> Result<Linear> {
        self.take(stored, false)
    }

    fn table(&self, stored: StoredMatrix) -> Result<Linear> {
        self.take(stored, true)
    }

    fn vector(&self, values: Vec<f32>) -> Result<Tensor> {
        let len = values.len();
        Tensor::from_vec(values, len, &self.device).map_err(failed)
    }

    fn matrix_bytes(&self, matrix: &Linear) -> u64 {
        matrix.bytes
    }

    fn rows_from(&self, values: Vec<f32>, width: usize) -> Result<Tensor> {
        let rows = values.len() / width.max(1);
        self.tensor(values, (rows, width))
    }

    fn rows_to(&self, rows: &Tensor) -> Result<Vec<f32>> {
        #[cfg(test)]
        if self.broken.lock().expect("no test panics here").is_unreadable {
            return Err(failed(candle_core::Error::Msg("unreadable".to_owned())));
        }
        rows.flatten_all().and_then(|flat| flat.to_vec1()).map_err(failed)
    }

    fn turns(&self, angles: Angles) -> Result<Turns> {
        let half = angles.head_dim / 2;
        let tokens = angles.cos.len() / half.max(1);
        let part = |values: Vec<f32>| Tensor::from_vec(values, (tokens, 1, half), &self.device).map_err(failed);
        Ok(Turns { head_dim: angles.head_dim, cos: part(angles.cos)?, sin: part(angles.sin)? })
    }

    fn embed(&self, table: &Linear, ids: &[u32]) -> Result<Tensor> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= table.rows) {
            return Err(Fault::new(Stage::Model, format!("token {id} is beyond the vocabulary of {}", table.rows))
                .fix("use the tokenizer that belongs to this model")
                .into());
        }
        match (&table.weights, &table.host) {
            (Weights::Dense(values), _) => Tensor::new(ids, &self.device)
                .and_then(|ids| values.index_select(&ids, 0)?.to_dtype(DType::F32))
                .map_err(failed),
            (_, Some(stored)) => {
                let row_bytes = stored.bytes.len() / stored.rows.max(1);
                let mut values = vec![0.0; ids.len() * stored.cols];
                for (out, &id) in values.chunks_exact_mut(stored.cols.max(1)).zip(ids) {
                    let row = &stored.bytes[id as usize * row_bytes..(id as usize + 1) * row_bytes];
                    format::decode_row(stored.dtype, row, out);
                }
                self.tensor(values, (ids.len(), stored.cols))
            }
            _ => Err(Fault::new(Stage::Model, "rows of a matrix that is only multiplied were asked for").into()),
        }
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
        candle_nn::ops::rms_norm_slow(x, weight, eps as f32).map_err(failed)
    }

    fn linears(&self, weights: &[(&Linear, Option<&Tensor>)], x: &Tensor) -> Result<Vec<Tensor>> {
        weights
            .iter()
            .map(|(linear, bias)| {
                let y = self.product(&linear.weights, x)?;
                match bias {
                    Some(bias) => y.broadcast_add(bias).map_err(failed),
                    None => Ok(y),
                }
            })
            .collect()
    }

    fn rope(&self, x: &mut Tensor, turns: &Turns) -> Result<()> {
        let rotated = || {
            let (tokens, width) = x.dims2()?;
            let half = turns.head_dim / 2;
            let heads = width / turns.head_dim;
            let split = x.reshape((tokens, heads, turns.head_dim))?;
            let (first, second) = (split.narrow(2, 0, half)?, split.narrow(2, half, half)?);
            let left = (first.broadcast_mul(&turns.cos)? - second.broadcast_mul(&turns.sin)?)?;
            let right = (second.broadcast_mul(&turns.cos)? + first.broadcast_mul(&turns.sin)?)?;
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
        let mut outputs = Vec::with_capacity(batch.segments.len());
        let own = |rows: &Tensor, start: usize, len: usize| rows.narrow(0, start, len).map_err(failed);
        for segment in &batch.segments {
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for ancestor in batch.lineage(segment) {
                if let Some((cached_keys, cached_values)) =
                    ancestor.cache.and_then(|cache| caches[cache].on_device.get(layer))
                {
                    keys.push(cached_keys.clone());
                    values.push(cached_values.clone());
                }
                keys.push(own(k, ancestor.start, ancestor.len)?);
                values.push(own(v, ancestor.start, ancestor.len)?);
            }
            let output = || {
                let query = q.narrow(0, segment.start, segment.len)?;
                self.attend(heads, &query, &Tensor::cat(&keys, 0)?, &Tensor::cat(&values, 0)?)
            };
            outputs.push(output().map_err(failed)?);
        }
        for segment in &batch.segments {
            if let Some(cache) = segment.cache {
                let (keys, values) = (own(k, segment.start, segment.len)?, own(v, segment.start, segment.len)?);
                let layers = &mut caches[cache].on_device;
                let longer = |old: Option<&Tensor>, new: Tensor| match old {
                    Some(old) => Tensor::cat(&[old, &new], 0).map_err(failed),
                    None => Ok(new),
                };
                let old = layers.get(layer);
                let both = (longer(old.map(|old| &old.0), keys)?, longer(old.map(|old| &old.1), values)?);
                if layer < layers.len() {
                    layers[layer] = both;
                } else {
                    layers.push(both);
                }
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
