//! Writes checkpoints of the shapes of real models with made-up weights, for speed and memory.
//!
//! Weights are bf16, normal with a deviation of 0.02, and a few input channels of every matrix are
//! six times larger, as outlier channels of trained models are. The same shape and seed give the
//! same bytes. A sparse file has the right size and zeros for weights: enough where only headers matter.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// The shape of a Llama decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub layers: usize,
    pub hidden: usize,
    pub mlp: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    pub tied: bool,
}

impl Shape {
    /// About 1.04 billion weights.
    pub const ONE_B: Self =
        Self { layers: 16, hidden: 2048, mlp: 8192, heads: 32, kv_heads: 8, head_dim: 64, vocab: 32_000, tied: true };

    /// Llama 3.1 8B.
    pub const EIGHT_B: Self = Self {
        layers: 32,
        hidden: 4096,
        mlp: 14_336,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        vocab: 128_256,
        tied: false,
    };

    /// Llama 3.1 70B.
    pub const SEVENTY_B: Self = Self {
        layers: 80,
        hidden: 8192,
        mlp: 28_672,
        heads: 64,
        kv_heads: 8,
        head_dim: 128,
        vocab: 128_256,
        tied: false,
    };

    /// Small enough for a unit test; rows fill the blocks of every format.
    pub const TINY: Self =
        Self { layers: 2, hidden: 256, mlp: 512, heads: 4, kv_heads: 2, head_dim: 64, vocab: 320, tied: true };

    /// Every tensor as name and shape, in file order.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab, self.hidden])];
        for layer in 0..self.layers {
            for (name, shape) in [
                ("input_layernorm", vec![self.hidden]),
                ("self_attn.q_proj", vec![queries, self.hidden]),
                ("self_attn.k_proj", vec![keys, self.hidden]),
                ("self_attn.v_proj", vec![keys, self.hidden]),
                ("self_attn.o_proj", vec![self.hidden, queries]),
                ("post_attention_layernorm", vec![self.hidden]),
                ("mlp.gate_proj", vec![self.mlp, self.hidden]),
                ("mlp.up_proj", vec![self.mlp, self.hidden]),
                ("mlp.down_proj", vec![self.hidden, self.mlp]),
            ] {
                tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
            }
        }
        tensors.push(("model.norm.weight".to_owned(), vec![self.hidden]));
        if !self.tied {
            tensors.push(("lm_head.weight".to_owned(), vec![self.vocab, self.hidden]));
        }
        tensors
    }

    /// Number of weights.
    pub fn weight_count(&self) -> u64 {
        self.tensors().iter().map(|(_, shape)| shape.iter().map(|&len| len as u64).product::<u64>()).sum()
    }

    fn config(&self) -> String {
        let Self { layers, hidden, mlp, heads, kv_heads, head_dim, vocab, tied } = self;
        format!(
            r#"{{
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "hidden_act": "silu",
  "hidden_size": {hidden},
  "intermediate_size": {mlp},
  "num_hidden_layers": {layers},
  "num_attention_heads": {heads},
  "num_key_value_heads": {kv_heads},
  "head_dim": {head_dim},
  "vocab_size": {vocab},
  "tie_word_embeddings": {tied},
  "attention_bias": false,
  "mlp_bias": false,
  "rms_norm_eps": 1e-05,
  "rope_theta": 500000.0,
  "max_position_embeddings": 4096,
  "bos_token_id": 0,
  "eos_token_id": 1,
  "torch_dtype": "bfloat16"
}}
"#
        )
    }

    /// The length-prefixed header of a safetensors file with these tensors, and the bytes of data after it.
    fn header(&self) -> (Vec<u8>, u64) {
        let mut entries = Vec::new();
        let mut end = 0u64;
        for (name, shape) in self.tensors() {
            let start = end;
            end += 2 * shape.iter().map(|&len| len as u64).product::<u64>();
            entries.push(format!(r#""{name}":{{"dtype":"BF16","shape":{shape:?},"data_offsets":[{start},{end}]}}"#));
        }
        let mut json = format!(r#"{{"__metadata__":{{"format":"pt"}},{}}}"#, entries.join(","));
        while json.len() % 8 != 0 {
            json.push(' ');
        }
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.extend(json.into_bytes());
        (header, end)
    }

    /// Writes `config.json` and `model.safetensors` with random weights into `folder`.
    pub fn write(&self, folder: &Path, seed: u64) -> io::Result<()> {
        let mut file = BufWriter::with_capacity(1 << 20, self.create(folder)?);
        file.write_all(&self.header().0)?;
        let mut random = Random(seed | 1);
        let normal = normals(&mut random);
        let mut row = Vec::new();
        for (_, shape) in self.tensors() {
            let row_len = shape.last().copied().unwrap_or(1);
            if shape.len() == 1 {
                for _ in 0..row_len {
                    let spread = normal[(random.next() & 0xffff) as usize];
                    file.write_all(&bf16(1.0 + spread * 2.0))?;
                }
                continue;
            }
            let mut outliers: Vec<usize> = (0..4).map(|_| random.next() as usize % row_len).collect();
            outliers.sort_unstable();
            let codes: Vec<[u8; 2]> = normal.iter().map(|&value| bf16(value)).collect();
            for _ in 0..shape[0] {
                row.clear();
                while row.len() < row_len * 2 {
                    let mut bits = random.next();
                    for _ in 0..4 {
                        row.extend(codes[(bits & 0xffff) as usize]);
                        bits >>= 16;
                    }
                }
                row.truncate(row_len * 2);
                for &column in &outliers {
                    let value = 6.0 * normal[(random.next() & 0xffff) as usize];
                    row[column * 2..column * 2 + 2].copy_from_slice(&bf16(value));
                }
                file.write_all(&row)?;
            }
        }
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_data()
    }

    /// Writes `config.json` and a `model.safetensors` of full length whose weights take no room on disk.
    pub fn write_sparse(&self, folder: &Path) -> io::Result<()> {
        let mut file = self.create(folder)?;
        let (header, data_bytes) = self.header();
        file.write_all(&header)?;
        file.set_len(header.len() as u64 + data_bytes)
    }

    fn create(&self, folder: &Path) -> io::Result<File> {
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join("config.json"), self.config())?;
        File::create(folder.join("model.safetensors"))
    }
}

/// Marsaglia's xorshift64, which is fast and good enough for weights.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Uniform in `0..1`, without 0.
    fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }
}

/// Normal numbers of deviation 0.02 to draw from (Box and Muller's transform).
fn normals(random: &mut Random) -> Vec<f32> {
    let mut values = Vec::with_capacity(1 << 16);
    while values.len() < 1 << 16 {
        let radius = (-2.0 * random.uniform().ln()).sqrt() * 0.02;
        let (sin, cos) = (random.uniform() * std::f64::consts::TAU).sin_cos();
        values.extend([(radius * sin) as f32, (radius * cos) as f32]);
    }
    values
}

/// The nearest bf16, ties to even, as little-endian bytes.
fn bf16(value: f32) -> [u8; 2] {
    let bits = value.to_bits();
    let rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    (rounded as u16).to_le_bytes()
}
