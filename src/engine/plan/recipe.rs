//! llama.cpp's mixtures: which type each tensor gets under `Q4_K_M` and its like.
//!
//! The rules are those of `llama_tensor_get_type_impl`, `tensor_allows_quantization` and
//! `init_quantize_state_counters` in llama.cpp's `src/llama-quant.cpp` (MIT licence, Copyright (c)
//! 2023-2026 The ggml authors), for the Llama architecture without experts. They are a heuristic on
//! names, positions, head counts and whether there is an importance matrix: nothing is measured.
//! Type ids of files are `enum llama_ftype` in `include/llama.h`.

use std::fmt;

use super::Subject;
use crate::checkpoint::Role;

/// A mixture by llama.cpp's name: all of those whose types can be written here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the field's own")]
pub enum Recipe {
    F32,
    Bf16,
    F16,
    Q8_0,
    Mxfp4Moe,
    Q6K,
    Q5KM,
    Q5KS,
    Q5_1,
    Q5_0,
    Q4KM,
    Q4KS,
    Q4_1,
    Q4_0,
    Iq4Nl,
    Iq4Xs,
    Q3KL,
    Q3KM,
    Q3KS,
    Q2K,
    Q2KS,
}

/// Recipe, llama.cpp's name, the format it starts from, `general.file_type`.
type Row = (Recipe, &'static str, &'static str, u32);

const TABLE: [Row; 21] = [
    (Recipe::F32, "F32", "f32", 0),
    (Recipe::Bf16, "BF16", "bf16", 32),
    (Recipe::F16, "F16", "f16", 1),
    (Recipe::Q8_0, "Q8_0", "q8_0", 7),
    (Recipe::Mxfp4Moe, "MXFP4_MOE", "mxfp4", 38),
    (Recipe::Q6K, "Q6_K", "q6_k", 18),
    (Recipe::Q5KM, "Q5_K_M", "q5_k", 17),
    (Recipe::Q5KS, "Q5_K_S", "q5_k", 16),
    (Recipe::Q5_1, "Q5_1", "q5_1", 9),
    (Recipe::Q5_0, "Q5_0", "q5_0", 8),
    (Recipe::Q4KM, "Q4_K_M", "q4_k", 15),
    (Recipe::Q4KS, "Q4_K_S", "q4_k", 14),
    (Recipe::Q4_1, "Q4_1", "q4_1", 3),
    (Recipe::Q4_0, "Q4_0", "q4_0", 2),
    (Recipe::Iq4Nl, "IQ4_NL", "iq4_nl", 25),
    (Recipe::Iq4Xs, "IQ4_XS", "iq4_xs", 30),
    (Recipe::Q3KL, "Q3_K_L", "q3_k", 13),
    (Recipe::Q3KM, "Q3_K_M", "q3_k", 12),
    (Recipe::Q3KS, "Q3_K_S", "q3_k", 11),
    (Recipe::Q2K, "Q2_K", "q2_k", 10),
    (Recipe::Q2KS, "Q2_K_S", "q2_k", 21),
];

/// Names that llama-quantize takes for another.
const ALIASES: [(&str, Recipe); 3] = [("Q5_K", Recipe::Q5KM), ("Q4_K", Recipe::Q4KM), ("Q3_K", Recipe::Q3KM)];

impl Recipe {
    fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// Every recipe, from most bits to fewest.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.0)
    }

    /// llama.cpp's name: `Q4_K_M`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The recipe called `name`, in any case; `Q4_K` is `Q4_K_M`, as for llama-quantize.
    pub fn find(name: &str) -> Option<Self> {
        let by_name = TABLE.iter().find(|row| row.1.eq_ignore_ascii_case(name)).map(|row| row.0);
        by_name.or_else(|| ALIASES.iter().find(|alias| alias.0.eq_ignore_ascii_case(name)).map(|alias| alias.1))
    }

    /// True if llama-quantize refuses the recipe without an importance matrix.
    pub fn needs_importance(self) -> bool {
        self == Self::Q2KS
    }

    /// Id of the format that most tensors get; of `MXFP4_MOE`, that of the experts.
    pub fn base_format(self) -> &'static str {
        self.row().2
    }

    /// llama.cpp's `general.file_type`.
    pub fn file_type(self) -> u32 {
        self.row().3
    }

    /// True if the recipe quantizes, false for plain floats.
    pub fn is_quantized(self) -> bool {
        !matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// What the mixtures need to know of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelShape {
    /// Number of layers.
    pub layers: usize,
    /// Query heads of the first layer.
    pub heads: usize,
    /// Key and value heads of the first layer.
    pub kv_heads: usize,
}

impl ModelShape {
    /// Query heads that share one value head, rounded down; 0 without value heads.
    fn heads_per_kv(self) -> usize {
        self.heads.checked_div(self.kv_heads).unwrap_or(0)
    }

    /// llama.cpp calls the model "70B": by its layers and shared heads, whatever its width.
    fn is_70b(self) -> bool {
        self.layers == 80 && self.heads != self.kv_heads
    }

    /// By the configuration, or by the rows of the first layer's tensors where there is none.
    pub(super) fn of(subject: Subject<'_>) -> Self {
        let layers = subject.layer_count();
        if let Some(first) = subject.config.and_then(|config| config.layers.first()) {
            return Self { layers, heads: first.heads, kv_heads: first.kv_heads };
        }
        let rows = |role: Role| {
            let mut tensors = subject.tensors.iter();
            let found = tensors.find(|tensor| tensor.role == role && tensor.layer == Some(0));
            found.and_then(|tensor| tensor.shape.first().copied()).unwrap_or(0)
        };
        // Only the ratio and equality count, and head_dim is the same for both.
        Self { layers, heads: rows(Role::Q), kv_heads: rows(Role::K) }
    }
}

/// What the mixtures need to know of a tensor.
#[derive(Clone, Copy, Debug)]
pub struct TensorShape<'a> {
    /// Hugging Face's name.
    pub name: &'a str,
    /// Outermost dimension first.
    pub shape: &'a [usize],
    /// What it is in the network.
    pub role: Role,
    /// The layer it belongs to, from 0.
    pub layer: Option<usize>,
}

impl<'a> TensorShape<'a> {
    /// Role and layer are read off Hugging Face's name.
    pub fn of_name(name: &'a str, shape: &'a [usize]) -> Self {
        let (role, layer) = Role::of_name(name);
        Self { name, shape, role, layer }
    }

    /// True if the tensor has one dimension only, as ggml counts: trailing ones do not count.
    pub fn is_vector(&self) -> bool {
        let skip = self.shape.iter().take_while(|&&len| len == 1).count();
        self.shape.len() - skip < 2
    }

    /// True if llama.cpp would quantize the tensor at all.
    ///
    /// Vectors, norms, biases, routers, position and type embeddings and small convolutions stay
    /// as they are.
    pub fn may_quantize(&self) -> bool {
        if self.is_vector() {
            return false;
        }
        match self.role {
            Role::Norm => false,
            Role::Other => self.name.ends_with("weight") && !NEVER.iter().any(|part| self.name.contains(part)),
            _ => self.name.ends_with("weight"),
        }
    }

    /// True for the value projection, fused with query and key or not.
    fn is_value(&self) -> bool {
        self.role == Role::V
            || (self.role == Role::Other
                && (self.name.ends_with("qkv_proj.weight") || self.name.ends_with("query_key_value.weight")))
    }
}

/// Parts of Hugging Face names of matrices that llama.cpp never quantizes.
const NEVER: [&str; 9] = [
    "mlp.gate.weight",
    "block_sparse_moe.gate.weight",
    "router.weight",
    "wpe.weight",
    "position_embeddings",
    "embed_positions",
    "token_type_embeddings",
    "relative_attention_bias",
    "conv1d",
];

/// Layers that deserve more bits: the first and last eighth and every third between.
fn use_more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// The format of every tensor under `recipe`, before shapes force a fall-back; `None` for tensors
/// that llama.cpp leaves as they are. `has_importance` tells whether there is an importance matrix.
///
/// Layers are counted per kind of tensor in the order of layers, as llama.cpp does, and not read
/// off the names: in a model whose layers lack some tensors the two differ.
pub fn choose(
    recipe: Recipe,
    model: ModelShape,
    has_importance: bool,
    tensors: &[TensorShape<'_>],
) -> Vec<Option<&'static str>> {
    choose_around(recipe, model, has_importance, tensors, &|_| false)
}

/// As [`choose`], for llama-quantize with `--tensor-type`: tensors whose type was given by hand are
/// not counted there, so that those after them get what an earlier layer would have got.
pub(super) fn choose_around(
    recipe: Recipe,
    model: ModelShape,
    has_importance: bool,
    tensors: &[TensorShape<'_>],
    by_hand: &dyn Fn(usize) -> bool,
) -> Vec<Option<&'static str>> {
    let mut chosen = vec![None; tensors.len()];
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&index| (tensors[index].layer, tensors[index].name));

    let is_tied = !tensors.iter().any(|tensor| tensor.role == Role::Head);
    let value_count = tensors.iter().filter(|tensor| tensor.is_value()).count();
    let (mut value_index, mut down_index) = (0, 0);
    for index in order {
        let tensor = &tensors[index];
        if !tensor.may_quantize() || by_hand(index) {
            continue;
        }
        let base = recipe.base_format();
        chosen[index] = Some(if !recipe.is_quantized() {
            base
        } else if recipe == Recipe::Mxfp4Moe {
            // Experts alone become mxfp4, and there are none here.
            "q8_0"
        } else if tensor.role == Role::Head || (is_tied && tensor.role == Role::Embedding) {
            output(base, tensor.shape.last().copied().unwrap_or(1))
        } else if tensor.is_value() {
            value_index += 1;
            value(recipe, model, value_index - 1, value_count)
        } else if tensor.role == Role::Down {
            down_index += 1;
            down(recipe, down_index - 1, model.layers, has_importance)
        } else if tensor.role == Role::O {
            match recipe {
                Recipe::Q2K => "q3_k",
                Recipe::Q3KM => "q4_k",
                Recipe::Q3KL => "q5_k",
                _ => base,
            }
        } else {
            base
        });
    }
    chosen
}

/// The head, or the embedding that serves as one: at least six bits.
fn output(base: &'static str, row_len: usize) -> &'static str {
    let block_len = crate::format::find(base).map_or(1, |format| format.dtype().block_len());
    if base == "q8_0" || !row_len.is_multiple_of(block_len) { "q8_0" } else { "q6_k" }
}

/// The value projection of the `index`-th of `count` layers.
fn value(recipe: Recipe, model: ModelShape, index: usize, count: usize) -> &'static str {
    let shares_heads = model.heads_per_kv() >= 4;
    let format = match recipe {
        Recipe::Q2K | Recipe::Q2KS if shares_heads => "q4_k",
        Recipe::Q2K => "q3_k",
        Recipe::Q3KM if index < 2 => "q5_k",
        Recipe::Q3KM => "q4_k",
        Recipe::Q3KL => "q5_k",
        Recipe::Iq4Nl | Recipe::Iq4Xs if shares_heads => "q5_k",
        Recipe::Q4KM | Recipe::Q5KM if use_more_bits(index, count) => "q6_k",
        Recipe::Q4KS if index < 4 => "q5_k",
        _ => recipe.base_format(),
    };
    // Eight heads share one value head there, so that more bits cost next to nothing.
    if model.is_70b() && matches!(format, "q3_k" | "q4_k") { "q5_k" } else { format }
}

/// The MLP's last projection in the `index`-th of `count` layers.
fn down(recipe: Recipe, index: usize, count: usize, has_importance: bool) -> &'static str {
    let is_early = index < count / 8;
    match recipe {
        Recipe::Q2K => "q3_k",
        Recipe::Q2KS if is_early => "q4_k",
        Recipe::Q3KM if index < count / 16 => "q5_k",
        Recipe::Q3KM => "q4_k",
        Recipe::Q3KL => "q5_k",
        Recipe::Q4KM | Recipe::Q5KM if use_more_bits(index, count) => "q6_k",
        Recipe::Iq4Nl | Recipe::Iq4Xs if is_early && !has_importance => "q5_k",
        Recipe::Q4KS if is_early => "q5_k",
        // The first layers' outliers are too much for a format without an offset.
        Recipe::Q4_0 if is_early && has_importance => "q4_1",
        Recipe::Q5_0 if is_early && has_importance => "q5_1",
        _ => recipe.base_format(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, index, "{}", row.1);
        }
    }

    #[test]
    fn recipes_are_found_in_any_case_and_by_llama_quantizes_aliases() {
        assert_eq!(Recipe::find("q4_k_m"), Some(Recipe::Q4KM));
        assert_eq!(Recipe::find("Q4_K"), Some(Recipe::Q4KM));
        assert_eq!(Recipe::find("Q3_K"), Some(Recipe::Q3KM));
        assert!(Recipe::all().all(|recipe| recipe.needs_importance() == (recipe.name() == "Q2_K_S")));
    }

    #[test]
    fn more_bits_go_to_the_ends_and_to_every_third_layer() {
        let layers = |count| (0..count).filter(|&layer| use_more_bits(layer, count)).collect::<Vec<_>>();
        assert_eq!(layers(16), [0, 1, 4, 7, 10, 13, 14, 15]);
        assert_eq!(layers(6), [2, 5]);
        assert_eq!(layers(32), [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]);
    }

    #[test]
    fn vectors_are_what_ggml_calls_so() {
        let is_vector = |shape: &[usize]| TensorShape::of_name("x.weight", shape).is_vector();
        assert!(is_vector(&[]) && is_vector(&[7]) && is_vector(&[1, 7]) && is_vector(&[1, 1]));
        assert!(!is_vector(&[7, 1]) && !is_vector(&[2, 7]));
    }

    #[test]
    fn tensors_that_are_no_plain_weights_are_left_alone() {
        let may = |name| TensorShape::of_name(name, &[64, 64]).may_quantize();
        assert!(may("model.layers.0.mlp.gate_proj.weight") && may("lm_head.weight"));
        assert!(!may("model.layers.0.mlp.gate.weight"), "a router");
        assert!(!may("model.layers.0.input_layernorm.weight"));
        assert!(!may("model.layers.0.self_attn.q_proj.bias"));
        assert!(!may("model.layers.0.self_attn.q_proj.weight_scale_inv"));
    }

    /// Names and shapes of a Llama model with 2,048 rows of 4,096 each.
    fn llama(layers: usize, is_tied: bool) -> Vec<String> {
        let mut names = vec!["model.embed_tokens.weight".to_owned(), "model.norm.weight".to_owned()];
        if !is_tied {
            names.push("lm_head.weight".to_owned());
        }
        // Safetensors files sort layers as text: 0, 1, 10, 11, …, 2.
        let mut order: Vec<usize> = (0..layers).collect();
        order.sort_by_key(usize::to_string);
        for layer in order {
            for part in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"] {
                names.push(format!("model.layers.{layer}.{part}.weight"));
            }
            for part in ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm"] {
                names.push(format!("model.layers.{layer}.{part}.weight"));
            }
        }
        names
    }

    /// The format of each layer's tensor of one role under a recipe.
    fn by_layer(recipe: Recipe, layers: usize, heads: usize, kv_heads: usize, role: Role) -> Vec<&'static str> {
        let names = llama(layers, false);
        let tensors: Vec<TensorShape<'_>> =
            names.iter().map(|name| TensorShape::of_name(name, &[2048, 4096])).collect();
        let chosen = choose(recipe, ModelShape { layers, heads, kv_heads }, false, &tensors);
        let mut found: Vec<_> = tensors
            .iter()
            .zip(chosen)
            .filter(|(tensor, _)| tensor.role == role)
            .map(|(tensor, format)| (tensor.layer, format.expect("a weight")))
            .collect();
        found.sort_unstable();
        found.into_iter().map(|(_, format)| format).collect()
    }

    fn layers_with(formats: &[&str], wanted: &str) -> Vec<usize> {
        (0..formats.len()).filter(|&layer| formats[layer] == wanted).collect()
    }

    #[test]
    fn q4_k_m_gives_six_bits_to_half_of_value_and_down_whatever_the_file_order() {
        for role in [Role::V, Role::Down] {
            let formats = by_layer(Recipe::Q4KM, 16, 32, 8, role);
            assert_eq!(layers_with(&formats, "q6_k"), [0, 1, 4, 7, 10, 13, 14, 15], "{role}");
            assert_eq!(layers_with(&formats, "q4_k").len(), 8, "{role}");
        }
        for role in [Role::Q, Role::K, Role::O, Role::Gate, Role::Up] {
            assert!(by_layer(Recipe::Q4KM, 16, 32, 8, role).iter().all(|&format| format == "q4_k"), "{role}");
        }
    }

    #[test]
    fn a_model_of_80_layers_with_shared_heads_has_five_bit_values() {
        let formats = by_layer(Recipe::Q4KM, 80, 64, 8, Role::V);
        assert_eq!(layers_with(&formats, "q4_k"), [0_usize; 0]);
        assert_eq!(layers_with(&formats, "q5_k").len(), 80 - layers_with(&formats, "q6_k").len());
        assert!(layers_with(&by_layer(Recipe::Q3KS, 80, 64, 8, Role::V), "q5_k").len() == 80);
        let unshared = by_layer(Recipe::Q4KM, 80, 64, 64, Role::V);
        assert!(layers_with(&unshared, "q4_k").len() > 30, "65B shares no heads");
        assert!(layers_with(&by_layer(Recipe::Q4KM, 80, 64, 8, Role::Down), "q4_k").len() > 30);
    }

    #[test]
    fn the_small_recipes_look_at_layers_and_heads_as_llama_cpp_does() {
        assert_eq!(layers_with(&by_layer(Recipe::Q4KS, 32, 32, 8, Role::V), "q5_k"), [0, 1, 2, 3]);
        assert_eq!(layers_with(&by_layer(Recipe::Q4KS, 16, 32, 8, Role::Down), "q5_k"), [0, 1]);
        assert_eq!(layers_with(&by_layer(Recipe::Q3KM, 32, 32, 8, Role::V), "q5_k"), [0, 1]);
        assert_eq!(layers_with(&by_layer(Recipe::Q3KM, 32, 32, 8, Role::Down), "q5_k"), [0, 1]);
        assert_eq!(layers_with(&by_layer(Recipe::Q3KM, 16, 32, 8, Role::Down), "q5_k"), [0]);
        assert!(by_layer(Recipe::Q3KM, 16, 32, 8, Role::O).iter().all(|&format| format == "q4_k"));
        assert!(by_layer(Recipe::Q2K, 16, 32, 8, Role::V).iter().all(|&format| format == "q4_k"));
        assert!(by_layer(Recipe::Q2K, 16, 8, 4, Role::V).iter().all(|&format| format == "q3_k"));
        assert!(by_layer(Recipe::Q2K, 16, 8, 4, Role::Q).iter().all(|&format| format == "q2_k"));
    }

    #[test]
    fn a_tied_embedding_is_stored_as_the_head_it_is() {
        for (is_tied, expected) in [(true, "q6_k"), (false, "q4_k")] {
            let names = llama(2, is_tied);
            let tensors: Vec<TensorShape<'_>> =
                names.iter().map(|name| TensorShape::of_name(name, &[512, 256])).collect();
            let chosen = choose(Recipe::Q4KM, ModelShape { layers: 2, heads: 8, kv_heads: 4 }, false, &tensors);
            assert_eq!(chosen[0], Some(expected));
            assert_eq!(chosen[1], None, "norms are left alone");
            if !is_tied {
                assert_eq!(chosen[2], Some("q6_k"));
            }
        }
        assert_eq!(output("q8_0", 256), "q8_0");
        assert_eq!(output("q4_k", 320), "q8_0", "320 is no multiple of 256");
        assert_eq!(output("q4_0", 320), "q6_k", "320 is a multiple of 32; shapes fall back later");
    }
}
