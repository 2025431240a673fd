//! The decoder's shape, from `config.json` or GGUF metadata, with per-layer numbers from the start.

/// Heads and channels of one layer; layers may differ once pruned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// MLP channels.
    pub mlp_channels: usize,
}

/// Llama 3's stretching of low rotary frequencies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeScaling {
    pub factor: f64,
    pub low_freq_factor: f64,
    pub high_freq_factor: f64,
    pub original_context: usize,
}

/// Rotary position embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Llama 3's scaling, where the model has it.
    pub scaling: Option<RopeScaling>,
}

/// The shape of a decoder of the Llama family.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// `llama`.
    pub family: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// One entry per layer.
    pub layers: Vec<LayerShape>,
    /// Width of one head.
    pub head_dim: usize,
    /// Number of tokens.
    pub vocab: usize,
    /// Epsilon of RMSNorm.
    pub norm_eps: f64,
    /// Rotary embedding.
    pub rope: Rope,
    /// True if the head reuses the embedding.
    pub tied_embeddings: bool,
    /// Longest context the model was made for.
    pub context: usize,
    /// First token of every text, if the model has one.
    pub bos: Option<u32>,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
}

impl ModelConfig {
    /// Key and value bytes of one token over all layers, at f32.
    pub fn kv_bytes_per_token(&self) -> u64 {
        self.layers
            .iter()
            .map(|layer| 2 * 4 * (layer.kv_heads * self.head_dim) as u64)
            .sum()
    }
}
