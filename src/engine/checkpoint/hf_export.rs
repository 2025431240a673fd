//! `config.json` of a Hugging Face folder that we write: the source's own, with our numbers.

use serde_json::{Map, Value, json};

use super::config::ModelConfig;
use crate::format::Dtype;

/// The model type of folders whose layers differ in shape.
pub(super) const OWN_MODEL_TYPE: &str = "lapidary_llama";

/// The architecture of such folders.
pub(super) const OWN_ARCHITECTURE: &str = "LapidaryLlamaForCausalLM";

/// What such folders say to who opens them with another program.
const OWN_NOTE: &str = "Llama with heads and channels that differ from layer to layer. Only Lapidary reads this folder; \
     for llama.cpp, export it as GGUF.";

/// A `config.json` for `config`, keeping every other key of the source's (`base`).
///
/// Numbers that differ between layers are written as lists, under a model type of our own: transformers
/// needs them equal, and so refuses the folder by a name that says why. `dtype` is the type of most weights.
pub fn hugging_face_config(
    config: &ModelConfig,
    base: Option<&Map<String, Value>>,
    dtype: Dtype,
) -> Map<String, Value> {
    let mut map = base.cloned().unwrap_or_default();
    // The weights are written anew; whoever packs them says so himself.
    map.remove("quantization_config");
    map.remove("compression_config");
    let mut set = |key: &str, value: Value| {
        map.insert(key.to_owned(), value);
    };
    if base.is_none() {
        set("architectures", json!(["LlamaForCausalLM"]));
        set("model_type", json!("llama"));
        set("hidden_act", json!("silu"));
        set("bos_token_id", json!(config.bos));
        set(
            "eos_token_id",
            match config.eos.as_slice() {
                [only] => json!(only),
                many => json!(many),
            },
        );
        set("rope_theta", json!(config.rope.theta));
        set(
            "rope_scaling",
            match config.rope.scaling {
                None => Value::Null,
                Some(scaling) => json!({
                    "rope_type": "llama3",
                    "factor": scaling.factor,
                    "low_freq_factor": scaling.low_freq_factor,
                    "high_freq_factor": scaling.high_freq_factor,
                    "original_max_position_embeddings": scaling.original_context,
                }),
            },
        );
    }
    let name = match dtype {
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
        _ => "float32",
    };
    set("torch_dtype", json!(name));
    set("hidden_size", json!(config.hidden));
    set("num_hidden_layers", json!(config.layers.len()));
    set("head_dim", json!(config.head_dim));
    set("vocab_size", json!(config.vocab));
    set("rms_norm_eps", json!(config.norm_eps));
    set("tie_word_embeddings", json!(config.tied_embeddings));
    set("max_position_embeddings", json!(config.context));
    let per_layer = |pick: &dyn Fn(usize) -> usize| -> Value {
        let numbers: Vec<usize> = (0..config.layers.len()).map(pick).collect();
        match numbers.first() {
            Some(first) if numbers.iter().all(|number| number == first) => json!(first),
            _ => json!(numbers),
        }
    };
    set("num_attention_heads", per_layer(&|layer| config.layers[layer].heads));
    set("num_key_value_heads", per_layer(&|layer| config.layers[layer].kv_heads));
    set("intermediate_size", per_layer(&|layer| config.layers[layer].mlp_channels));
    let is_ours = map.get("model_type").and_then(Value::as_str) == Some(OWN_MODEL_TYPE);
    if !config.is_uniform() {
        map.insert("architectures".to_owned(), json!([OWN_ARCHITECTURE]));
        map.insert("model_type".to_owned(), json!(OWN_MODEL_TYPE));
        map.insert("lapidary_note".to_owned(), json!(OWN_NOTE));
    } else if is_ours {
        map.insert("architectures".to_owned(), json!(["LlamaForCausalLM"]));
        map.insert("model_type".to_owned(), json!("llama"));
        map.remove("lapidary_note");
    }
    // The newer spelling, if the source has it.
    if map.contains_key("dtype") {
        map.insert("dtype".to_owned(), json!(name));
    }
    map
}
