//! Tensor names of the Llama architecture: Hugging Face's and GGUF's, both directions.
//!
//! GGUF's names are those of `gguf-py/gguf/tensor_mapping.py` (llama.cpp, MIT). The mapping is
//! one to one, so that a name that went there comes back unchanged.

/// Tensors outside the layers: GGUF's stem, Hugging Face's stem.
const GLOBAL: [(&str, &str); 3] = [
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
];

/// Tensors of one layer: GGUF's stem after `blk.N.`, Hugging Face's after `model.layers.N.`.
const LAYER: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Splits `stem.weight` or `stem.bias`.
fn split_kind(name: &str) -> Option<(&str, &str)> {
    let (stem, kind) = name.rsplit_once('.')?;
    matches!(kind, "weight" | "bias").then_some((stem, kind))
}

/// Splits `N.rest`, where N is written without leading zeros, so that the way back is exact.
fn split_layer(rest: &str) -> Option<(&str, &str)> {
    let (number, rest) = rest.split_once('.')?;
    let is_canonical = number == "0" || !number.starts_with('0');
    (is_canonical
        && number
            .parse::<u32>()
            .is_ok_and(|_| !number.starts_with('+')))
    .then_some((number, rest))
}

/// Hugging Face's name of GGUF's `name`; `None` for names that only GGUF has (`rope_freqs.weight`).
pub fn to_hugging_face(name: &str) -> Option<String> {
    let (stem, kind) = split_kind(name)?;
    if let Some(rest) = stem.strip_prefix("blk.") {
        let (layer, stem) = split_layer(rest)?;
        let (_, theirs) = LAYER.iter().find(|(ours, _)| *ours == stem)?;
        return Some(format!("model.layers.{layer}.{theirs}.{kind}"));
    }
    let (_, theirs) = GLOBAL.iter().find(|(ours, _)| *ours == stem)?;
    Some(format!("{theirs}.{kind}"))
}

/// GGUF's name of Hugging Face's `name`; `None` where the Llama architecture has no such tensor.
pub fn to_gguf(name: &str) -> Option<String> {
    let (stem, kind) = split_kind(name)?;
    if let Some(rest) = stem.strip_prefix("model.layers.") {
        let (layer, stem) = split_layer(rest)?;
        let (ours, _) = LAYER.iter().find(|(_, theirs)| *theirs == stem)?;
        return Some(format!("blk.{layer}.{ours}.{kind}"));
    }
    let (ours, _) = GLOBAL.iter().find(|(_, theirs)| *theirs == stem)?;
    Some(format!("{ours}.{kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_comes_back_unchanged() {
        let mut names: Vec<String> = GLOBAL
            .iter()
            .map(|(_, name)| format!("{name}.weight"))
            .collect();
        for (_, stem) in LAYER {
            names.push(format!("model.layers.0.{stem}.weight"));
            names.push(format!("model.layers.31.{stem}.bias"));
        }
        for name in names {
            let stored = to_gguf(&name).expect("known");
            assert!(stored.len() <= 64);
            assert_eq!(to_hugging_face(&stored).as_deref(), Some(name.as_str()));
        }
    }

    #[test]
    fn names_that_would_not_come_back_are_left_alone() {
        for name in [
            "blk.01.attn_q.weight",
            "blk.+1.attn_q.weight",
            "blk.x.attn_q.weight",
            "rope_freqs.weight",
            "blk.1",
        ] {
            assert_eq!(to_hugging_face(name), None, "{name}");
        }
        assert_eq!(
            to_gguf("model.layers.1.self_attn.rotary_emb.inv_freq"),
            None
        );
    }

    #[test]
    fn the_field_knows_these_names() {
        assert_eq!(
            to_gguf("model.layers.7.self_attn.o_proj.weight").as_deref(),
            Some("blk.7.attn_output.weight")
        );
        assert_eq!(
            to_hugging_face("output.weight").as_deref(),
            Some("lm_head.weight")
        );
    }
}
