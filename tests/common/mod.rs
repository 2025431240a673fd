//! What several integration tests need: the demo, small models written on the spot, conversions.
#![allow(dead_code, reason = "every test binary uses some of it")]

use std::path::{Path, PathBuf};

use lapidary::engine::checkpoint::{
    Checkpoint, FolderWriter, GgufTensor, GgufWriter, LayerShape, Metadata, ROPE_FREQS, SafeTensor, gguf_metadata_of,
    rope_freqs,
};
use lapidary::engine::format::Dtype;
use lapidary::engine::target::{gguf_names, llama_layout};
use serde_json::{Value, json};

/// The bundled demo's folder.
pub fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo")
}

/// Names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .expect("folder")
        .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Copies the demo's files to `folder`.
pub fn copy_demo(folder: &Path) {
    std::fs::create_dir_all(folder).expect("folder");
    for name in
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    {
        std::fs::copy(demo().join(name), folder.join(name)).expect("copy");
    }
}

/// A small Llama model with numbers that differ from value to value.
#[derive(Clone, Debug)]
pub struct TinyModel {
    pub hidden: usize,
    pub head_dim: usize,
    pub vocab: usize,
    pub layers: Vec<LayerShape>,
    pub is_tied: bool,
    pub has_biases: bool,
    pub rope_scaling: Value,
}

impl Default for TinyModel {
    fn default() -> Self {
        Self {
            hidden: 32,
            head_dim: 8,
            vocab: 40,
            layers: vec![
                LayerShape { heads: 4, kv_heads: 2, mlp_channels: 64 },
                LayerShape { heads: 4, kv_heads: 2, mlp_channels: 64 },
            ],
            is_tied: false,
            has_biases: false,
            rope_scaling: Value::Null,
        }
    }
}

impl TinyModel {
    /// Every tensor's name and shape.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab, self.hidden])];
        for (index, layer) in self.layers.iter().enumerate() {
            let (q, kv) = (layer.heads * self.head_dim, layer.kv_heads * self.head_dim);
            let mut add = |stem: &str, shape: Vec<usize>| {
                if self.has_biases && shape.len() == 2 {
                    tensors.push((format!("model.layers.{index}.{stem}.bias"), vec![shape[0]]));
                }
                tensors.push((format!("model.layers.{index}.{stem}.weight"), shape));
            };
            add("input_layernorm", vec![self.hidden]);
            add("self_attn.q_proj", vec![q, self.hidden]);
            add("self_attn.k_proj", vec![kv, self.hidden]);
            add("self_attn.v_proj", vec![kv, self.hidden]);
            add("self_attn.o_proj", vec![self.hidden, q]);
            add("post_attention_layernorm", vec![self.hidden]);
            add("mlp.gate_proj", vec![layer.mlp_channels, self.hidden]);
            add("mlp.up_proj", vec![layer.mlp_channels, self.hidden]);
            add("mlp.down_proj", vec![self.hidden, layer.mlp_channels]);
        }
        tensors.push(("model.norm.weight".to_owned(), vec![self.hidden]));
        if !self.is_tied {
            tensors.push(("lm_head.weight".to_owned(), vec![self.vocab, self.hidden]));
        }
        tensors
    }

    /// The model's `config.json`.
    pub fn config(&self) -> Value {
        let list = |pick: fn(&LayerShape) -> usize| -> Value {
            let numbers: Vec<usize> = self.layers.iter().map(pick).collect();
            if numbers.iter().all(|number| *number == numbers[0]) { json!(numbers[0]) } else { json!(numbers) }
        };
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": self.hidden, "num_hidden_layers": self.layers.len(), "head_dim": self.head_dim,
            "num_attention_heads": list(|layer| layer.heads), "num_key_value_heads": list(|layer| layer.kv_heads),
            "intermediate_size": list(|layer| layer.mlp_channels), "vocab_size": self.vocab,
            "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "rope_scaling": self.rope_scaling,
            "tie_word_embeddings": self.is_tied, "max_position_embeddings": 128,
            "bos_token_id": 0, "eos_token_id": 1,
        })
    }

    /// Writes a Hugging Face folder in f32.
    pub fn write(&self, target: &Path) {
        let folder = FolderWriter::create(target).expect("folder");
        folder.write_file("config.json", self.config().to_string().as_bytes()).expect("config");
        let tensors: Vec<SafeTensor> =
            self.tensors().into_iter().map(|(name, shape)| SafeTensor { name, shape, dtype: Dtype::F32 }).collect();
        let mut writer = folder.safetensors(&tensors).expect("weights");
        let mut state = 1u32;
        for tensor in &tensors {
            for _ in 0..tensor.shape.iter().product::<usize>() {
                // A linear congruential generator: every value differs, all are small.
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let value = (state >> 8) as f32 / (1 << 24) as f32 - 0.5;
                writer.write_tensor_rows(&(value * 0.2).to_le_bytes()).expect("row");
            }
        }
        writer.finish().expect("weights");
        folder.finish().expect("folder");
    }
}

/// Rows of a tensor as f32, from f32, f16 or bf16.
pub fn rows_f32(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let tensor = checkpoint.tensor(name).unwrap_or_else(|| panic!("no tensor {name}"));
    let mut bytes = Vec::new();
    checkpoint.read_rows(tensor, 0..tensor.row_count(), &mut bytes).expect("reads");
    to_f32(tensor.dtype, &bytes)
}

fn to_f32(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|&chunk| f32::from_le_bytes(chunk)).collect(),
        Dtype::Bf16 => {
            bytes.as_chunks::<2>().0.iter().map(|&chunk| half::bf16::from_le_bytes(chunk).to_f32()).collect()
        }
        Dtype::F16 => bytes.as_chunks::<2>().0.iter().map(|&chunk| half::f16::from_le_bytes(chunk).to_f32()).collect(),
        other => panic!("{other} is not converted here"),
    }
}

fn from_f32(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect(),
        other => panic!("{other} is not converted here"),
    }
}

/// Writes `checkpoint` as an unquantized GGUF: matrices in `dtype`, the rest in f32.
///
/// Answers the metadata and the warnings of the export.
pub fn write_gguf(checkpoint: &Checkpoint, path: &Path, dtype: Dtype) -> (Metadata, Vec<String>) {
    let config = checkpoint.require_config().expect("config");
    let (metadata, warnings) = gguf_metadata_of(checkpoint, config, 0).expect("metadata");
    let mut tensors = Vec::new();
    let mut data = Vec::new();
    for tensor in checkpoint.tensors.iter().filter(|tensor| tensor.stored_name != ROPE_FREQS) {
        let name = gguf_names::to_gguf(&tensor.name).expect("a tensor of the architecture");
        let dtype = if tensor.shape.len() == 1 { Dtype::F32 } else { dtype };
        let values = rows_f32(checkpoint, &tensor.name);
        let shape = config.layers.get(tensor.layer.unwrap_or(0)).expect("layer");
        let heads = match name.split('.').nth(2) {
            Some("attn_q") => Some(shape.heads),
            Some("attn_k") => Some(shape.kv_heads),
            _ => None,
        };
        let (rows, len) = match tensor.shape.as_slice() {
            [only] => (*only, 1),
            _ => (tensor.row_count(), tensor.row_len()),
        };
        let mut ordered = Vec::with_capacity(values.len());
        for row in 0..rows {
            let from = heads.map_or(row, |heads| llama_layout::hugging_face_row(row, rows, heads));
            ordered.extend_from_slice(&values[from * len..(from + 1) * len]);
        }
        data.push(from_f32(dtype, &ordered));
        tensors.push(GgufTensor { name, shape: tensor.shape.clone(), dtype });
    }
    if let Some(factors) = rope_freqs(config) {
        data.push(from_f32(Dtype::F32, &factors));
        tensors.push(GgufTensor { name: ROPE_FREQS.to_owned(), shape: vec![factors.len()], dtype: Dtype::F32 });
    }
    let mut writer = GgufWriter::create(path, &metadata, &tensors).expect("creates");
    for bytes in &data {
        // In uneven pieces, as a streaming pass writes.
        for piece in bytes.chunks(4096 + 12) {
            writer.write_tensor_rows(piece).expect("writes");
        }
    }
    let size_bytes = writer.finish().expect("finishes");
    assert_eq!(size_bytes, std::fs::metadata(path).expect("file").len());
    (metadata, warnings)
}
