//! What a tensor is in the network, read off its name.

use std::fmt;

/// What a tensor does in the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are the field's own")]
pub enum Role {
    Embedding,
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
    Norm,
    Head,
    Other,
}

impl Role {
    /// Every role, in the order in which a model uses them.
    pub const ALL: [Self; 11] = [
        Self::Embedding,
        Self::Q,
        Self::K,
        Self::V,
        Self::O,
        Self::Gate,
        Self::Up,
        Self::Down,
        Self::Norm,
        Self::Head,
        Self::Other,
    ];

    /// The role as one lower-case word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Q => "q",
            Self::K => "k",
            Self::V => "v",
            Self::O => "o",
            Self::Gate => "gate",
            Self::Up => "up",
            Self::Down => "down",
            Self::Norm => "norm",
            Self::Head => "head",
            Self::Other => "other",
        }
    }

    /// The role called `name`.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }

    /// True for the linears inside a layer, which compression is mostly about.
    pub fn is_layer_linear(self) -> bool {
        matches!(
            self,
            Self::Q | Self::K | Self::V | Self::O | Self::Gate | Self::Up | Self::Down
        )
    }

    /// Reads role and layer off a Hugging Face name such as `model.layers.3.mlp.down_proj.weight`.
    ///
    /// A bias keeps its linear's layer but is [`Role::Other`], so that views of linears show weights only.
    pub fn of_name(name: &str) -> (Self, Option<usize>) {
        let mut layer = None;
        let mut parts = name.split('.').peekable();
        while let Some(part) = parts.next() {
            if matches!(part, "layers" | "h" | "blocks")
                && let Some(index) = parts.peek().and_then(|next| next.parse().ok())
            {
                layer = Some(index);
                break;
            }
        }
        let stem = name.strip_suffix(".weight").unwrap_or(name);
        let last = stem.rsplit('.').next().unwrap_or(stem);
        let role = if name.ends_with(".bias") {
            Self::Other
        } else if last.contains("norm") {
            Self::Norm
        } else {
            match last {
                "embed_tokens" | "wte" => Self::Embedding,
                "q_proj" => Self::Q,
                "k_proj" => Self::K,
                "v_proj" => Self::V,
                "o_proj" => Self::O,
                "gate_proj" => Self::Gate,
                "up_proj" => Self::Up,
                "down_proj" => Self::Down,
                "lm_head" => Self::Head,
                _ => Self::Other,
            }
        };
        (role, layer)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_role_and_layer() {
        let cases = [
            ("model.embed_tokens.weight", Role::Embedding, None),
            ("model.layers.12.self_attn.q_proj.weight", Role::Q, Some(12)),
            ("model.layers.0.mlp.down_proj.weight", Role::Down, Some(0)),
            ("model.layers.0.mlp.down_proj.bias", Role::Other, Some(0)),
            (
                "model.layers.3.post_attention_layernorm.weight",
                Role::Norm,
                Some(3),
            ),
            ("model.norm.weight", Role::Norm, None),
            ("lm_head.weight", Role::Head, None),
            ("rope_freqs.weight", Role::Other, None),
        ];
        for (name, role, layer) in cases {
            assert_eq!(Role::of_name(name), (role, layer), "{name}");
        }
    }
}
