//! The decoder's shape, from `config.json` or GGUF metadata, with per-layer numbers from the start.

use std::path::Path;

use serde_json::{Map, Value};

use super::TensorInfo;
use super::hf_export::{OWN_ARCHITECTURE, OWN_MODEL_TYPE};
use super::role::Role;
use crate::error::{Fault, Stage};

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
    /// Divisor of the lowest frequencies.
    pub factor: f64,
    /// Wavelengths above `original_context / low_freq_factor` are divided by `factor`.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_context / high_freq_factor` stay.
    pub high_freq_factor: f64,
    /// Context before the stretching.
    pub original_context: usize,
}

impl RopeScaling {
    /// Divisor of each of the `head_dim / 2` frequencies, as transformers'
    /// `_compute_llama3_parameters` and llama.cpp's converter compute them (both MIT or Apache-2.0).
    pub fn factors(&self, theta: f64, head_dim: usize) -> Vec<f32> {
        let context = self.original_context as f64;
        let (low, high) = (self.low_freq_factor, self.high_freq_factor);
        (0..head_dim / 2)
            .map(|index| {
                let frequency = theta.powf(-(2.0 * index as f64) / head_dim as f64);
                let wavelength = 2.0 * std::f64::consts::PI / frequency;
                let factor = if wavelength < context / high {
                    1.0
                } else if wavelength > context / low {
                    self.factor
                } else {
                    let smooth = (context / wavelength - low) / (high - low);
                    1.0 / ((1.0 - smooth) / self.factor + smooth)
                };
                factor as f32
            })
            .collect()
    }

    /// The scaling that `factors` came from, if it is one that Llama models use.
    ///
    /// GGUF keeps only the divisors. Llama 3.1 and 3.2 differ in `factor` alone, which is the
    /// largest divisor.
    pub fn from_factors(factors: &[f32], theta: f64, head_dim: usize) -> Option<Self> {
        let factor = f64::from(factors.iter().copied().fold(1.0, f32::max));
        let scaling = Self { factor, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
        let ours = scaling.factors(theta, head_dim);
        let same =
            ours.len() == factors.len() && ours.iter().zip(factors).all(|(a, b)| (a - b).abs() <= 1e-4 * a.abs());
        same.then_some(scaling)
    }
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Llama 3's scaling, where the model has it.
    pub scaling: Option<RopeScaling>,
    /// Divisors of the `head_dim / 2` frequencies that a GGUF gives and `scaling` cannot express;
    /// they stand in for it, so at most one of the two is there.
    pub freq_factors: Option<Vec<f32>>,
}

impl Rope {
    /// The divisors to use for each of the `head_dim / 2` frequencies, if any.
    pub fn factors(&self, head_dim: usize) -> Option<Vec<f32>> {
        self.freq_factors.clone().or_else(|| self.scaling.map(|scaling| scaling.factors(self.theta, head_dim)))
    }
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
        self.layers.iter().map(|layer| 2 * 4 * (layer.kv_heads * self.head_dim) as u64).sum()
    }

    /// The shape that `role`'s weight must have in `layer`.
    fn expected_shape(&self, role: Role, layer: &LayerShape) -> Option<[usize; 2]> {
        let (q, kv) = (layer.heads * self.head_dim, layer.kv_heads * self.head_dim);
        Some(match role {
            Role::Q => [q, self.hidden],
            Role::K | Role::V => [kv, self.hidden],
            Role::O => [self.hidden, q],
            Role::Gate | Role::Up => [layer.mlp_channels, self.hidden],
            Role::Down => [self.hidden, layer.mlp_channels],
            _ => return None,
        })
    }

    /// Checks numbers that every source can get wrong, and the tensors against them.
    ///
    /// `source` is the file that the numbers came from.
    pub(super) fn check(&self, tensors: &[TensorInfo], source: &Path) -> Result<(), Fault> {
        let fault = |cause: String| {
            Fault::new(Stage::Checkpoint, cause).fix("use the config that belongs to these weights").file(source)
        };
        if !self.head_dim.is_multiple_of(2) || self.head_dim == 0 {
            return Err(fault(format!("head width {} is not even", self.head_dim)));
        }
        for (index, layer) in self.layers.iter().enumerate() {
            if layer.kv_heads == 0 || layer.heads == 0 || !layer.heads.is_multiple_of(layer.kv_heads) {
                return Err(fault(format!("{} query heads cannot share {} KV heads", layer.heads, layer.kv_heads))
                    .at(format!("layer {index}")));
            }
            if layer.heads.checked_mul(self.head_dim).is_none_or(|width| width > 1 << 32) {
                return Err(fault(format!("{} heads of {} are too many", layer.heads, self.head_dim))
                    .at(format!("layer {index}")));
            }
        }
        if let Some(factors) = &self.rope.freq_factors
            && (factors.len() != self.head_dim / 2
                || factors.iter().any(|factor| !factor.is_finite() || *factor <= 0.0))
        {
            return Err(fault(format!("{} rotary factors do not fit heads of {}", factors.len(), self.head_dim))
                .at("rope_freqs.weight"));
        }
        let by_name: std::collections::HashMap<&str, &TensorInfo> =
            tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
        let require = |name: String, shape: &[usize], is_optional: bool| match by_name.get(name.as_str()) {
            None if is_optional => Ok(()),
            None => Err(fault("the tensor is missing".to_owned()).at(name)),
            Some(tensor) if tensor.shape == shape => Ok(()),
            Some(tensor) => Err(fault(format!("shape {:?}, but the config says {shape:?}", tensor.shape)).at(name)),
        };
        require("model.embed_tokens.weight".to_owned(), &[self.vocab, self.hidden], false)?;
        require("model.norm.weight".to_owned(), &[self.hidden], false)?;
        if !self.tied_embeddings {
            require("lm_head.weight".to_owned(), &[self.vocab, self.hidden], false)?;
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let prefix = format!("model.layers.{index}");
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                require(format!("{prefix}.{norm}.weight"), &[self.hidden], false)?;
            }
            for (stem, role) in [
                ("self_attn.q_proj", Role::Q),
                ("self_attn.k_proj", Role::K),
                ("self_attn.v_proj", Role::V),
                ("self_attn.o_proj", Role::O),
                ("mlp.gate_proj", Role::Gate),
                ("mlp.up_proj", Role::Up),
                ("mlp.down_proj", Role::Down),
            ] {
                if let Some(shape) = self.expected_shape(role, layer) {
                    require(format!("{prefix}.{stem}.weight"), &shape, false)?;
                    require(format!("{prefix}.{stem}.bias"), &shape[..1], true)?;
                }
            }
        }
        Ok(())
    }
}

/// Reads keys of one JSON object; the errors name key and file.
struct Keys<'a> {
    map: &'a Map<String, Value>,
    path: &'a Path,
}

impl<'a> Keys<'a> {
    fn fault(&self, key: &str, cause: impl Into<String>) -> Fault {
        Fault::new(Stage::Checkpoint, cause)
            .at(format!("key {key}"))
            .fix("use the config.json that belongs to the model")
            .file(self.path)
    }

    /// The value, with null counted as absent.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn need(&self, key: &str) -> Result<&'a Value, Fault> {
        self.get(key).ok_or_else(|| self.fault(key, "the key is missing"))
    }

    fn size_of(&self, key: &str, value: &Value) -> Result<usize, Fault> {
        value
            .as_u64()
            .or_else(|| value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..1e15).contains(x)).map(|x| x as u64))
            .filter(|&number| number > 0 && number < 1 << 40)
            .map(|number| number as usize)
            .ok_or_else(|| self.fault(key, format!("{value} is not a positive whole number")))
    }

    fn size(&self, key: &str) -> Result<usize, Fault> {
        self.size_of(key, self.need(key)?)
    }

    fn number(&self, key: &str) -> Result<Option<f64>, Fault> {
        self.get(key)
            .map(|value| {
                value
                    .as_f64()
                    .filter(|number| number.is_finite() && *number > 0.0)
                    .ok_or_else(|| self.fault(key, format!("{value} is not a positive number")))
            })
            .transpose()
    }

    /// One number for all layers or a list with one for each (our own pruned folders).
    fn per_layer(&self, key: &str, layers: usize) -> Result<Vec<usize>, Fault> {
        match self.need(key)? {
            Value::Array(items) if items.len() == layers => items.iter().map(|item| self.size_of(key, item)).collect(),
            Value::Array(items) => Err(self.fault(key, format!("{} numbers for {layers} layers", items.len()))),
            value => Ok(vec![self.size_of(key, value)?; layers]),
        }
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        self.get(key).and_then(Value::as_str)
    }

    /// Token ids: a number or a list.
    fn tokens(&self, key: &str) -> Vec<u32> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        match self.get(key) {
            Some(Value::Array(items)) => items.iter().filter_map(id).collect(),
            Some(value) => id(value).into_iter().collect(),
            None => Vec::new(),
        }
    }
}

/// Parses `config.json` of the Llama architecture and checks it against the tensors.
pub(super) fn from_json(
    map: &Map<String, Value>,
    generation: Option<&Map<String, Value>>,
    path: &Path,
    tensors: &[TensorInfo],
) -> Result<ModelConfig, Fault> {
    let keys = Keys { map, path };
    let architecture = map.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
    let model_type = keys.text("model_type");
    if !matches!(model_type.unwrap_or("llama"), "llama" | OWN_MODEL_TYPE)
        || architecture.is_some_and(|name| !matches!(name, "LlamaForCausalLM" | OWN_ARCHITECTURE))
        || (model_type.is_none() && architecture.is_none())
    {
        let name = model_type.or(architecture).unwrap_or("(not named)");
        return Err(Fault::new(Stage::Checkpoint, format!("architecture {name} cannot be run yet, only llama"))
            .at("key model_type")
            .fix("its tensors can still be listed and profiled")
            .file(path));
    }
    let activation = keys.text("hidden_act").unwrap_or("silu");
    if !matches!(activation, "silu" | "swish") {
        return Err(keys.fault("hidden_act", format!("activation {activation} is not Llama's silu")));
    }
    let layer_count = keys.size("num_hidden_layers")?;
    // Every layer has tensors of its own, so this bounds what is allocated below.
    if layer_count > tensors.len() {
        return Err(keys
            .fault("num_hidden_layers", format!("{layer_count} layers cannot be made of {} tensors", tensors.len())));
    }
    let hidden = keys.size("hidden_size")?;
    let heads = keys.per_layer("num_attention_heads", layer_count)?;
    let kv_heads = match keys.get("num_key_value_heads") {
        Some(_) => keys.per_layer("num_key_value_heads", layer_count)?,
        None => heads.clone(),
    };
    let channels = keys.per_layer("intermediate_size", layer_count)?;
    let head_dim = match keys.get("head_dim") {
        Some(value) => keys.size_of("head_dim", value)?,
        None => hidden / heads[0],
    };
    let has_head = tensors.iter().any(|tensor| tensor.role == Role::Head);
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
        vocab: keys.size("vocab_size")?,
        // transformers' own defaults of LlamaConfig where the key is absent.
        norm_eps: keys.number("rms_norm_eps")?.unwrap_or(1e-6),
        rope: rope_from_json(&keys)?,
        tied_embeddings: keys.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(!has_head),
        context: match keys.get("max_position_embeddings") {
            Some(value) => keys.size_of("max_position_embeddings", value)?,
            None => 2048,
        },
        bos: None,
        eos: Vec::new(),
    };
    let mut config = config;
    let mut sources = Vec::new();
    if let Some(generation) = generation {
        sources.push(Keys { map: generation, path });
    }
    sources.push(keys);
    for source in sources {
        config.bos = config.bos.or(source.tokens("bos_token_id").first().copied());
        for id in source.tokens("eos_token_id") {
            if !config.eos.contains(&id) {
                config.eos.push(id);
            }
        }
    }
    config.check(tensors, path)?;
    Ok(config)
}

/// `rope_theta` and `rope_scaling`, or both in the newer `rope_parameters`.
fn rope_from_json(keys: &Keys<'_>) -> Result<Rope, Fault> {
    let newer = keys.get("rope_parameters").and_then(Value::as_object);
    let older = keys.get("rope_scaling").and_then(Value::as_object);
    let theta = match newer {
        Some(map) => Keys { map, path: keys.path }.number("rope_theta")?,
        None => None,
    };
    let theta = match theta {
        Some(theta) => theta,
        None => keys.number("rope_theta")?.unwrap_or(10_000.0),
    };
    let mut rope = Rope { theta, scaling: None, freq_factors: None };
    let Some(map) = newer.or(older) else {
        return Ok(rope);
    };
    let inner = Keys { map, path: keys.path };
    match inner.text("rope_type").or_else(|| inner.text("type")).unwrap_or("default") {
        "default" => {}
        "llama3" => {
            let need = |key: &str| -> Result<f64, Fault> {
                inner.number(key)?.ok_or_else(|| inner.fault(&format!("rope_scaling.{key}"), "the key is missing"))
            };
            let scaling = RopeScaling {
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                original_context: inner.size("original_max_position_embeddings")?,
            };
            if scaling.high_freq_factor <= scaling.low_freq_factor {
                return Err(inner.fault("rope_scaling.high_freq_factor", "it must exceed low_freq_factor"));
            }
            rope.scaling = Some(scaling);
        }
        other => {
            return Err(keys
                .fault("rope_scaling", format!("rotary scaling {other} cannot be run yet, only llama3"))
                .fix("its tensors can still be listed and profiled"));
        }
    }
    Ok(rope)
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
