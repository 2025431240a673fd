//! The decoder's shape from a GGUF's `llama.*` or `deci.*` metadata.
//!
//! Keys and their defaults are those of llama.cpp's `llama-arch.cpp` and `llama-model.cpp` (MIT). Its
//! `deci` is `llama` with numbers of heads and channels of each layer's own (`models/deci.cpp`).

use std::path::Path;

use super::TensorInfo;
use super::config::{LayerShape, ModelConfig, Rope, RopeScaling};
use super::gguf_value::{GgufValue, lookup};
use super::role::Role;
use crate::error::{Fault, Stage};

/// True for llama.cpp's names of the network that runs here.
pub(super) fn is_llama(architecture: &str) -> bool {
    matches!(architecture, "llama" | "deci")
}

/// Reads `llama.*` keys, or the same ones of `deci`; the errors name key and file.
pub(super) struct LlamaKeys<'a> {
    pub metadata: &'a [(String, GgufValue)],
    pub path: &'a Path,
}

impl<'a> LlamaKeys<'a> {
    fn fault(&self, key: &str, cause: impl Into<String>) -> Fault {
        Fault::new(Stage::Checkpoint, cause)
            .at(format!("metadata {key}"))
            .fix("convert the model again")
            .file(self.path)
    }

    fn get(&self, key: &str) -> Option<&'a GgufValue> {
        let architecture = || lookup(self.metadata, "general.architecture").and_then(GgufValue::as_str);
        match key.strip_prefix("llama.") {
            Some(rest) if architecture() == Some("deci") => lookup(self.metadata, &format!("deci.{rest}")),
            _ => lookup(self.metadata, key),
        }
    }

    fn size_of(&self, key: &str, number: Option<u64>) -> Result<usize, Fault> {
        number
            .filter(|&number| number > 0 && number < 1 << 40)
            .map(|number| number as usize)
            .ok_or_else(|| self.fault(key, "not a positive whole number"))
    }

    fn size(&self, key: &str) -> Result<Option<usize>, Fault> {
        self.get(key).map(|value| self.size_of(key, value.as_u64())).transpose()
    }

    fn need(&self, key: &str) -> Result<usize, Fault> {
        self.size(key)?.ok_or_else(|| self.fault(key, "the key is missing"))
    }

    fn number(&self, key: &str) -> Result<Option<f64>, Fault> {
        self.get(key)
            .map(|value| {
                value
                    .as_f64()
                    .filter(|number| number.is_finite() && *number > 0.0)
                    .ok_or_else(|| self.fault(key, "not a positive number"))
            })
            .transpose()
    }

    /// A number for all layers, or an array with one for each.
    pub fn per_layer(&self, key: &str, layers: usize) -> Result<Option<Vec<usize>>, Fault> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let Some(array) = value.as_array() else {
            return Ok(Some(vec![self.size_of(key, value.as_u64())?; layers]));
        };
        let numbers = array.to_unsigned().ok_or_else(|| self.fault(key, "not whole numbers"))?;
        if numbers.len() != layers {
            return Err(self.fault(key, format!("{} numbers for {layers} layers", numbers.len())));
        }
        numbers.into_iter().map(|number| self.size_of(key, Some(number))).collect::<Result<_, _>>().map(Some)
    }

    /// Number of layers, at most one per tensor, so that nothing is sized by an unchecked number.
    pub fn layer_count(&self, tensor_count: usize) -> Result<usize, Fault> {
        let key = "llama.block_count";
        let layers = self.need(key)?;
        if layers > tensor_count {
            return Err(self.fault(key, format!("{layers} layers cannot be made of {tensor_count} tensors")));
        }
        Ok(layers)
    }

    fn token(&self, key: &str) -> Option<u32> {
        self.get(key).and_then(GgufValue::as_u64).and_then(|id| u32::try_from(id).ok())
    }
}

/// Builds and checks the config; `freq_factors` are the values of `rope_freqs.weight`.
pub(super) fn from_metadata(
    metadata: &[(String, GgufValue)],
    path: &Path,
    tensors: &[TensorInfo],
    freq_factors: Option<Vec<f32>>,
) -> Result<ModelConfig, Fault> {
    let keys = LlamaKeys { metadata, path };
    let architecture = keys.get("general.architecture").and_then(GgufValue::as_str).unwrap_or("(not named)");
    let cannot_run = |key: &str, cause: String| {
        Fault::new(Stage::Checkpoint, cause)
            .at(format!("metadata {key}"))
            .fix("its tensors can still be listed and profiled")
            .file(path)
    };
    if !is_llama(architecture) {
        return Err(cannot_run(
            "general.architecture",
            format!("architecture {architecture} cannot be run yet, only llama"),
        ));
    }
    if let Some(parts) = keys.get("split.count").and_then(GgufValue::as_u64).filter(|&parts| parts > 1) {
        return Err(Fault::new(Stage::Checkpoint, format!("the file is one part of {parts}"))
            .at("metadata split.count")
            .fix("merge the parts with llama-gguf-split --merge and open the result")
            .file(path));
    }
    if keys.get("llama.expert_count").and_then(GgufValue::as_u64).is_some_and(|experts| experts > 0) {
        return Err(cannot_run("llama.expert_count", "a mixture of experts cannot be run yet".to_owned()));
    }
    if let Some(scaling) = keys.get("llama.rope.scaling.type").and_then(GgufValue::as_str)
        && scaling != "none"
    {
        return Err(cannot_run("llama.rope.scaling.type", format!("rotary scaling {scaling} cannot be run yet")));
    }
    let layer_count = keys.layer_count(tensors.len())?;
    let need_layers = |key: &str| -> Result<Vec<usize>, Fault> {
        keys.per_layer(key, layer_count)?.ok_or_else(|| keys.fault(key, "the key is missing"))
    };
    let hidden = keys.need("llama.embedding_length")?;
    let heads = need_layers("llama.attention.head_count")?;
    let kv_heads = keys.per_layer("llama.attention.head_count_kv", layer_count)?.unwrap_or_else(|| heads.clone());
    let channels = need_layers("llama.feed_forward_length")?;
    let head_dim = keys.size("llama.attention.key_length")?.unwrap_or(hidden / heads[0]);
    for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
        if let Some(width) = keys.size(key)?.filter(|&width| width != head_dim) {
            return Err(cannot_run(key, format!("{width} differs from the head width {head_dim}")));
        }
    }
    let theta = keys.number("llama.rope.freq_base")?.unwrap_or(10_000.0);
    let scaling = freq_factors.as_deref().and_then(|factors| RopeScaling::from_factors(factors, theta, head_dim));
    let embedding_rows =
        tensors.iter().find(|tensor| tensor.role == Role::Embedding).and_then(|tensor| tensor.shape.first().copied());
    let config = ModelConfig {
        family: "llama".to_owned(),
        hidden,
        layers: heads
            .iter()
            .zip(&kv_heads)
            .zip(&channels)
            .map(|((&heads, &kv_heads), &mlp_channels)| LayerShape { heads, kv_heads, mlp_channels })
            .collect(),
        head_dim,
        vocab: match keys.size("llama.vocab_size")?.or(embedding_rows) {
            Some(vocab) => vocab,
            None => return Err(keys.fault("llama.vocab_size", "the key is missing")),
        },
        norm_eps: keys
            .number("llama.attention.layer_norm_rms_epsilon")?
            .ok_or_else(|| keys.fault("llama.attention.layer_norm_rms_epsilon", "the key is missing"))?,
        rope: Rope { theta, freq_factors: freq_factors.filter(|_| scaling.is_none()), scaling },
        tied_embeddings: !tensors.iter().any(|tensor| tensor.role == Role::Head),
        context: keys.need("llama.context_length")?,
        bos: keys.token("tokenizer.ggml.bos_token_id"),
        eos: {
            let mut eos = Vec::new();
            for key in ["eos", "eot", "eom"] {
                let id = keys.token(&format!("tokenizer.ggml.{key}_token_id"));
                eos.extend(id.filter(|id| !eos.contains(id)));
            }
            eos
        },
    };
    config.check(tensors, path)?;
    Ok(config)
}
