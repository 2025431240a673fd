//! From a checkpoint's tensors to a graph on a backend: each name looked up, each shape checked.

use crate::checkpoint::{Checkpoint, ModelConfig, TensorInfo};
use crate::error::{Fault, Result, Stage};
use crate::progress::{Phase, Progress, Unit};

use super::backend::{Affine, Backend, StoredMatrix};
use super::llama::{Layer, Llama};

/// Bytes read between two looks at the cancel flag.
const READ_BYTES: usize = 8 << 20;

struct Loader<'a, B: Backend> {
    checkpoint: &'a Checkpoint,
    backend: &'a B,
    progress: &'a Progress,
}

/// Reads a matrix as stored, rows in Hugging Face's order.
pub fn read_matrix(checkpoint: &Checkpoint, tensor: &TensorInfo, progress: &Progress) -> Result<StoredMatrix> {
    let rows = tensor.row_count();
    let step = (READ_BYTES / (tensor.byte_count as usize / rows.max(1)).max(1)).max(1);
    let mut bytes = Vec::new();
    let mut part = Vec::new();
    for first in (0..rows).step_by(step) {
        progress.check()?;
        checkpoint.read_rows(tensor, first..(first + step).min(rows), &mut part)?;
        if bytes.is_empty() {
            // The size was checked against the file when the checkpoint was opened.
            bytes.reserve_exact(tensor.byte_count as usize);
        }
        bytes.extend_from_slice(&part);
    }
    Ok(StoredMatrix { dtype: tensor.dtype, rows, cols: tensor.row_len(), bytes })
}

impl<B: Backend> Loader<'_, B> {
    fn fault(&self, name: &str, cause: String) -> Fault {
        Fault::new(Stage::Model, cause)
            .at(name)
            .fix("the file does not hold the model that its configuration describes")
            .file(&self.checkpoint.path)
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<B::Linear> {
        self.backend.matrix(self.stored(name, rows, cols)?)
    }

    fn stored(&self, name: &str, rows: usize, cols: usize) -> Result<StoredMatrix> {
        let tensor =
            self.checkpoint.tensor(name).ok_or_else(|| self.fault(name, "the tensor is missing".to_owned()))?;
        if tensor.shape != [rows, cols] {
            return Err(self
                .fault(name, format!("shape is {:?} where the configuration wants [{rows}, {cols}]", tensor.shape))
                .into());
        }
        let stored = read_matrix(self.checkpoint, tensor, self.progress)?;
        self.progress.advance(tensor.byte_count);
        Ok(stored)
    }

    fn vector(&self, name: &str, len: usize) -> Result<Option<B::Vector>> {
        let Some(tensor) = self.checkpoint.tensor(name) else {
            return Ok(None);
        };
        if tensor.shape != [len] {
            return Err(self
                .fault(name, format!("shape is {:?} where the configuration wants [{len}]", tensor.shape))
                .into());
        }
        let mut values = Vec::new();
        self.checkpoint.decode_rows(tensor, 0..1, &mut Vec::new(), &mut values)?;
        self.progress.advance(tensor.byte_count);
        self.backend.vector(values).map(Some)
    }

    fn norm(&self, name: &str, len: usize) -> Result<B::Vector> {
        self.vector(name, len)?.ok_or_else(|| self.fault(name, "the tensor is missing".to_owned()).into())
    }

    fn affine(&self, stem: &str, rows: usize, cols: usize) -> Result<Affine<B::Linear, B::Vector>> {
        let weight = self.matrix(&format!("{stem}.weight"), rows, cols)?;
        Ok((weight, self.vector(&format!("{stem}.bias"), rows)?))
    }

    fn layer(&self, index: usize, config: &ModelConfig) -> Result<Layer<B>> {
        let shape = config.layers[index];
        let stem = format!("model.layers.{index}");
        let (q, kv) = (shape.heads * config.head_dim, shape.kv_heads * config.head_dim);
        let hidden = config.hidden;
        Ok(Layer {
            attention_norm: self.norm(&format!("{stem}.input_layernorm.weight"), hidden)?,
            q: self.affine(&format!("{stem}.self_attn.q_proj"), q, hidden)?,
            k: self.affine(&format!("{stem}.self_attn.k_proj"), kv, hidden)?,
            v: self.affine(&format!("{stem}.self_attn.v_proj"), kv, hidden)?,
            o: self.affine(&format!("{stem}.self_attn.o_proj"), hidden, q)?,
            mlp_norm: self.norm(&format!("{stem}.post_attention_layernorm.weight"), hidden)?,
            gate: self.affine(&format!("{stem}.mlp.gate_proj"), shape.mlp_channels, hidden)?,
            up: self.affine(&format!("{stem}.mlp.up_proj"), shape.mlp_channels, hidden)?,
            down: self.affine(&format!("{stem}.mlp.down_proj"), hidden, shape.mlp_channels)?,
        })
    }
}

/// Loads a Llama graph onto `backend`.
pub(super) fn llama<B: Backend>(checkpoint: &Checkpoint, backend: B, progress: &Progress) -> Result<Llama<B>> {
    let config = match (&checkpoint.config, &checkpoint.config_fault) {
        (Some(config), _) => config.clone(),
        (None, Some(fault)) => return Err(fault.clone().into()),
        (None, None) => {
            return Err(Fault::new(Stage::Model, "the checkpoint does not say how its network is built")
                .fix("put its config.json beside it")
                .file(&checkpoint.path)
                .into());
        }
    };
    progress.begin(Phase::Loading, checkpoint.tensor_bytes(), Unit::Bytes);
    let loader = Loader { checkpoint, backend: &backend, progress };
    let embedding = loader.backend.table(loader.stored("model.embed_tokens.weight", config.vocab, config.hidden)?)?;
    let layers = (0..config.layers.len()).map(|index| loader.layer(index, &config)).collect::<Result<_>>()?;
    let norm = loader.norm("model.norm.weight", config.hidden)?;
    let head = if config.tied_embeddings {
        None
    } else {
        Some(loader.matrix("lm_head.weight", config.vocab, config.hidden)?)
    };
    let frequencies = Llama::<B>::frequencies(&config);
    Ok(Llama { backend, config, embedding, layers, norm, head, frequencies })
}
