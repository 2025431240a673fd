//! Tests of configs: defaults, lists per layer, faults that name key and file.

use super::*;
use serde_json::json;

/// The tensors that a small tied model of one layer needs.
fn tensors(layers: &[LayerShape], hidden: usize, vocab: usize, head_dim: usize) -> Vec<TensorInfo> {
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocab, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    for (index, layer) in layers.iter().enumerate() {
        let (q, kv) = (layer.heads * head_dim, layer.kv_heads * head_dim);
        for (stem, shape) in [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![q, hidden]),
            ("self_attn.k_proj", vec![kv, hidden]),
            ("self_attn.v_proj", vec![kv, hidden]),
            ("self_attn.o_proj", vec![hidden, q]),
            ("mlp.gate_proj", vec![layer.mlp_channels, hidden]),
            ("mlp.up_proj", vec![layer.mlp_channels, hidden]),
            ("mlp.down_proj", vec![hidden, layer.mlp_channels]),
        ] {
            shapes.push((format!("model.layers.{index}.{stem}.weight"), shape));
        }
    }
    shapes
        .into_iter()
        .map(|(name, shape)| {
            let (role, layer) = Role::of_name(&name);
            TensorInfo {
                stored_name: name.clone(),
                name,
                shape,
                dtype: crate::format::Dtype::F32,
                role,
                layer,
                byte_count: 0,
                file: 0,
                offset: 0,
                permuted_heads: None,
                parts: None,
                view: None,
            }
        })
        .collect()
}

fn small() -> Map<String, Value> {
    let Value::Object(map) = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24, "vocab_size": 10,
    }) else {
        unreachable!()
    };
    map
}

fn parse(map: &Map<String, Value>, layers: &[LayerShape], head_dim: usize) -> Result<ModelConfig, Fault> {
    from_json(map, None, Path::new("config.json"), &tensors(layers, 16, 10, head_dim))
}

const PLAIN: LayerShape = LayerShape { heads: 4, kv_heads: 4, mlp_channels: 24 };

#[test]
fn absent_keys_take_the_defaults_of_transformers() {
    let config = parse(&small(), &[PLAIN], 4).expect("parses");
    assert_eq!(config.layers, [PLAIN]);
    assert_eq!((config.head_dim, config.norm_eps, config.rope.theta), (4, 1e-6, 10_000.0));
    assert!(config.tied_embeddings, "no lm_head in the file");
}

#[test]
fn a_missing_key_is_named_with_its_file() {
    for key in ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"] {
        let mut map = small();
        map.remove(key);
        let text = parse(&map, &[PLAIN], 4).expect_err(key).to_string();
        assert!(text.contains(key) && text.contains("missing") && text.contains("config.json"), "{text}");
    }
}

#[test]
fn layers_may_have_their_own_numbers() {
    let layers =
        [LayerShape { heads: 4, kv_heads: 2, mlp_channels: 24 }, LayerShape { heads: 2, kv_heads: 1, mlp_channels: 7 }];
    let mut map = small();
    map.insert("num_hidden_layers".to_owned(), json!(2));
    map.insert("num_attention_heads".to_owned(), json!([4, 2]));
    map.insert("num_key_value_heads".to_owned(), json!([2, 1]));
    map.insert("intermediate_size".to_owned(), json!([24, 7]));
    map.insert("head_dim".to_owned(), json!(8));
    assert_eq!(parse(&map, &layers, 8).expect("parses").layers, layers);
    map.insert("intermediate_size".to_owned(), json!([24, 7, 9]));
    assert!(parse(&map, &layers, 8).expect_err("length").to_string().contains("3 numbers for 2 layers"));
}

#[test]
fn rope_is_read_in_its_old_and_new_spelling() {
    let inner = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_theta": 500000.0});
    let mut old = small();
    old.insert("rope_scaling".to_owned(), inner.clone());
    old.insert("rope_theta".to_owned(), json!(500_000));
    let mut new = small();
    new.insert("rope_parameters".to_owned(), inner);
    let (old, new) = (parse(&old, &[PLAIN], 4).expect("old"), parse(&new, &[PLAIN], 4).expect("new"));
    assert_eq!(old.rope, new.rope);
    assert_eq!(old.rope.theta, 500_000.0);
    assert_eq!(old.rope.scaling.map(|scaling| scaling.original_context), Some(8192));
    let mut yarn = small();
    yarn.insert("rope_scaling".to_owned(), json!({"type": "yarn", "factor": 4.0}));
    assert!(parse(&yarn, &[PLAIN], 4).expect_err("yarn").to_string().contains("yarn"));
}

#[test]
fn lies_about_shapes_are_told_with_the_tensors_name() {
    let mut map = small();
    map.insert("vocab_size".to_owned(), json!(11));
    let text = parse(&map, &[PLAIN], 4).expect_err("vocab").to_string();
    assert!(text.contains("model.embed_tokens.weight") && text.contains("[11, 16]"), "{text}");
    for (key, value) in [
        ("num_key_value_heads", json!(3)),
        ("num_hidden_layers", json!(1_000_000_000_000_u64)),
        ("num_hidden_layers", json!(2)),
        ("head_dim", json!(5)),
        ("hidden_size", json!(-1)),
        ("hidden_size", json!("16")),
        ("num_attention_heads", json!(1u64 << 39)),
        ("hidden_act", json!("gelu")),
        ("model_type", json!("mamba")),
    ] {
        let mut map = small();
        map.insert(key.to_owned(), value.clone());
        assert!(parse(&map, &[PLAIN], 4).is_err(), "{key} {value}");
    }
}

#[test]
fn several_end_tokens_come_from_both_files() {
    let mut map = small();
    map.insert("eos_token_id".to_owned(), json!([2, 3]));
    map.insert("bos_token_id".to_owned(), json!(1));
    let generation = json!({"eos_token_id": 7, "bos_token_id": 1});
    let config = from_json(&map, generation.as_object(), Path::new("config.json"), &tensors(&[PLAIN], 16, 10, 4))
        .expect("parses");
    assert_eq!((config.bos, config.eos), (Some(1), vec![7, 2, 3]));
}

#[test]
fn rotary_factors_lead_back_to_their_scaling() {
    let scaling = RopeScaling { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
    let factors = scaling.factors(500_000.0, 64);
    assert_eq!(factors.len(), 32);
    assert_eq!((factors[0], factors[31]), (1.0, 32.0));
    assert_eq!(RopeScaling::from_factors(&factors, 500_000.0, 64), Some(scaling));
    let mut odd = factors;
    odd[16] += 0.5;
    assert_eq!(RopeScaling::from_factors(&odd, 500_000.0, 64), None);
}
