//! The metadata of a GGUF that we write: model keys as llama.cpp's converter writes them.
//!
//! Keys and types are those of `convert_hf_to_gguf.py` and `gguf-py` (llama.cpp, MIT). A source
//! that is itself a GGUF hands its other keys on unchanged; see [`super::gguf_vocab`] for the
//! tokenizer of a Hugging Face folder.

use super::config::{LayerShape, ModelConfig};
use super::gguf_value::{GgufArray, GgufValue, Metadata};
use super::{Checkpoint, gguf_vocab};
use crate::error::Result;

/// Keys with this prefix tell of a file that the new one no longer is.
const STALE_PREFIXES: [&str; 2] = ["split.", "quantize.imatrix."];

/// The tensor with Llama 3's rotary divisors.
pub const ROPE_FREQS: &str = "rope_freqs.weight";

/// Metadata of a GGUF with the weights of `checkpoint` and the shape of `config`, which differs
/// from the checkpoint's own once pruned. `file_type` is llama.cpp's `general.file_type`.
///
/// The second answer is what the user should know, one sentence each.
///
/// # Errors
/// Where the tokenizer cannot be read or has more tokens than the model.
pub fn gguf_metadata_of(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    file_type: u32,
) -> Result<(Metadata, Vec<String>)> {
    let mut metadata = Metadata::new();
    let mut warnings = Vec::new();
    let mut set = |key: &str, value: GgufValue| metadata.push((key.to_owned(), value));
    let number = |value: usize| GgufValue::U32(u32::try_from(value).unwrap_or(u32::MAX));
    let architecture = gguf_architecture(config);
    set("general.architecture", GgufValue::String(architecture.to_owned()));
    set("general.type", GgufValue::String("model".to_owned()));
    let name = checkpoint
        .gguf_metadata()
        .and_then(|old| super::lookup(old, "general.name")?.as_str())
        .unwrap_or(&checkpoint.name);
    set("general.name", GgufValue::String(name.to_owned()));
    let mut model = |key: &str, value: GgufValue| set(&format!("{architecture}.{key}"), value);
    model("block_count", number(config.layers.len()));
    model("context_length", number(config.context));
    model("embedding_length", number(config.hidden));
    model("feed_forward_length", per_layer(&config.layers, |layer| layer.mlp_channels));
    model("attention.head_count", per_layer(&config.layers, |layer| layer.heads));
    model("attention.head_count_kv", per_layer(&config.layers, |layer| layer.kv_heads));
    model("rope.freq_base", GgufValue::F32(config.rope.theta as f32));
    model("attention.layer_norm_rms_epsilon", GgufValue::F32(config.norm_eps as f32));
    model("attention.key_length", number(config.head_dim));
    model("attention.value_length", number(config.head_dim));
    model("vocab_size", number(config.vocab));
    model("rope.dimension_count", number(config.head_dim));
    set("general.quantization_version", GgufValue::U32(2));
    set("general.file_type", GgufValue::U32(file_type));
    match checkpoint.gguf_metadata() {
        Some(old) => {
            for (key, value) in old {
                // A model whose layers no longer agree, or agree again, goes by the other name.
                let rest = ["llama.", "deci."].iter().find_map(|prefix| key.strip_prefix(prefix));
                let key = &rest.map_or_else(|| key.clone(), |rest| format!("{architecture}.{rest}"));
                let is_stale = key == "general.alignment"
                    || STALE_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
                    || metadata.iter().any(|(known, _)| known == key);
                if !is_stale {
                    metadata.push((key.clone(), value.clone()));
                }
            }
        }
        None => metadata.extend(gguf_vocab::tokenizer_metadata(checkpoint, config, &mut warnings)?),
    }
    Ok((metadata, warnings))
}

/// The architecture that llama.cpp reads `config` by: its `llama` takes one number of heads and of
/// channels for all layers, its `deci` one a layer and is the same network otherwise.
pub fn gguf_architecture(config: &ModelConfig) -> &'static str {
    if config.is_uniform() { "llama" } else { "deci" }
}

/// One number where all layers agree, else an array, as llama.cpp reads it.
fn per_layer(layers: &[LayerShape], pick: impl Fn(&LayerShape) -> usize) -> GgufValue {
    let numbers: Vec<usize> = layers.iter().map(pick).collect();
    match numbers.first() {
        Some(&first) if numbers.iter().all(|&number| number == first) => {
            GgufValue::U32(u32::try_from(first).unwrap_or(u32::MAX))
        }
        _ => GgufValue::Array(GgufArray::I32(
            numbers.iter().map(|&number| i32::try_from(number).unwrap_or(i32::MAX)).collect(),
        )),
    }
}

/// Values of the extra f32 tensor [`ROPE_FREQS`], shape `[head_dim / 2]`, which a model with
/// Llama 3's scaling needs. A source that is a GGUF lists that tensor itself.
pub fn rope_freqs(config: &ModelConfig) -> Option<Vec<f32>> {
    config.rope.factors(config.head_dim)
}
