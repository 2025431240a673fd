//! Recipes against llama-quantize: the type of every tensor, for the bundled demo and for shapes
//! from a toy to 70B. `tests/oracles/llama_cpp_reference.py` made the fixture.

use lapidary::engine::format;
use lapidary::engine::plan::recipe::{ModelShape, TensorShape, choose};
use lapidary::engine::plan::{Recipe, fit};
use serde_json::Value;

fn fixture() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/llama_cpp_recipes.json");
    let text = std::fs::read_to_string(path).expect("the fixture lies in the repository");
    serde_json::from_str(&text).expect("the fixture is JSON")
}

/// A tensor's name in a GGUF, its name in Hugging Face's checkpoints, and its shape.
type Tensor = (String, String, Vec<usize>);

struct Shape {
    layers: usize,
    width: usize,
    heads: usize,
    kv_heads: usize,
    head_width: usize,
    mlp_width: usize,
    vocabulary: usize,
    is_tied: bool,
}

impl Shape {
    fn read(value: &Value) -> Self {
        let number = |key: &str| value[key].as_u64().expect(key) as usize;
        Self {
            layers: number("layers"),
            width: number("width"),
            heads: number("heads"),
            kv_heads: number("kv_heads"),
            head_width: number("head_width"),
            mlp_width: number("mlp_width"),
            vocabulary: number("vocabulary"),
            is_tied: value["tied"].as_bool().expect("tied"),
        }
    }

    /// Every matrix and norm of a Llama of this shape, in an order that no file has.
    fn tensors(&self) -> Vec<Tensor> {
        let (width, kv_width) = (self.width, self.kv_heads * self.head_width);
        let q_width = self.heads * self.head_width;
        let mut tensors = Vec::new();
        for layer in (0..self.layers).rev() {
            for (ggml, hugging_face, shape) in [
                ("ffn_down", "mlp.down_proj", vec![width, self.mlp_width]),
                ("ffn_gate", "mlp.gate_proj", vec![self.mlp_width, width]),
                ("ffn_up", "mlp.up_proj", vec![self.mlp_width, width]),
                ("attn_q", "self_attn.q_proj", vec![q_width, width]),
                ("attn_k", "self_attn.k_proj", vec![kv_width, width]),
                ("attn_v", "self_attn.v_proj", vec![kv_width, width]),
                ("attn_output", "self_attn.o_proj", vec![width, q_width]),
                ("attn_norm", "input_layernorm", vec![width]),
                ("ffn_norm", "post_attention_layernorm", vec![width]),
            ] {
                tensors.push((
                    format!("blk.{layer}.{ggml}.weight"),
                    format!("model.layers.{layer}.{hugging_face}.weight"),
                    shape,
                ));
            }
        }
        let outer = |ggml: &str, name: &str, shape| (ggml.to_owned(), name.to_owned(), shape);
        tensors.push(outer("output_norm.weight", "model.norm.weight", vec![width]));
        let vocabulary = vec![self.vocabulary, width];
        tensors.push(outer("token_embd.weight", "model.embed_tokens.weight", vocabulary.clone()));
        if !self.is_tied {
            tensors.push(outer("output.weight", "lm_head.weight", vocabulary));
        }
        tensors
    }

    /// The format of every tensor under a recipe, and whether it fell back; none for vectors.
    fn chosen(&self, recipe: Recipe, tensors: &[Tensor]) -> Vec<Option<(&'static str, bool)>> {
        let shapes: Vec<TensorShape<'_>> =
            tensors.iter().map(|(_, name, shape)| TensorShape::of_name(name, shape)).collect();
        let model = ModelShape { layers: self.layers, heads: self.heads, kv_heads: self.kv_heads };
        let wanted = choose(recipe, model, false, &shapes);
        let fitted = wanted.into_iter().zip(tensors).map(|(wanted, (_, _, shape))| {
            let wanted = wanted?;
            let fitting = fit(wanted, *shape.last()?);
            Some((fitting, fitting != wanted))
        });
        fitted.collect()
    }
}

/// What llama-quantize chose for a tensor, from runs of layers such as `[["q6_k", 2], ["q4_k", 2]]`.
fn expected<'a>(types: &'a Value, ggml: &str) -> Option<&'a str> {
    let Some(rest) = ggml.strip_prefix("blk.") else {
        return types[ggml].as_str();
    };
    let (layer, part) = rest.split_once('.')?;
    let layer: u64 = layer.parse().ok()?;
    let mut end = 0;
    types[format!("blk.{part}")].as_array()?.iter().find_map(|run| {
        end += run[1].as_u64()?;
        (layer < end).then(|| run[0].as_str()).flatten()
    })
}

#[test]
fn every_tensor_of_every_shape_gets_llama_quantizes_type() {
    let fixture = fixture();
    let mut compared = 0;
    for (name, entry) in fixture["shapes"].as_object().expect("shapes") {
        let shape = Shape::read(entry);
        let tensors = shape.tensors();
        for (recipe_name, outcome) in entry["recipes"].as_object().expect("recipes") {
            let Some(recipe) = Recipe::find(recipe_name) else {
                assert_eq!(recipe_name, "Q2_K_S", "it needs an importance matrix");
                continue;
            };
            let chosen = shape.chosen(recipe, &tensors);
            for ((ggml, _, _), chosen) in tensors.iter().zip(&chosen) {
                let Some((format, _)) = chosen else {
                    assert_eq!(expected(&outcome["types"], ggml), None, "{ggml} is no vector");
                    continue;
                };
                assert_eq!(expected(&outcome["types"], ggml), Some(*format), "{name}, {recipe_name}: {ggml}");
                compared += 1;
            }
            let fallbacks = chosen.iter().flatten().filter(|(_, fell_back)| *fell_back).count();
            assert_eq!(outcome["fallbacks"], fallbacks, "{name}, {recipe_name}");
        }
    }
    assert!(compared > 30_000, "only {compared} tensors were compared");
}

#[test]
fn the_demo_gets_llama_quantizes_types_bytes_and_file_types() {
    let fixture = fixture();
    let demo = Shape {
        layers: 6,
        width: 256,
        heads: 8,
        kv_heads: 4,
        head_width: 32,
        mlp_width: 512,
        vocabulary: 2048,
        is_tied: true,
    };
    let tensors = demo.tensors();
    let recipes = fixture["demo"].as_object().expect("demo");
    let mut compared = 0;
    for recipe in Recipe::all() {
        let outcome = &recipes[recipe.name()];
        let mut byte_count = 0;
        for ((ggml, _, shape), chosen) in tensors.iter().zip(demo.chosen(recipe, &tensors)) {
            let id = chosen.map_or("f32", |(id, _)| id);
            if chosen.is_some() {
                assert_eq!(outcome["tensors"][ggml][0], id, "{recipe}: {ggml}");
            }
            let row_len = *shape.last().expect("not a scalar");
            let dtype = format::find(id).expect("a format").dtype();
            let rows: usize = shape.iter().rev().skip(1).product();
            byte_count += rows * dtype.row_bytes(row_len).expect("whole blocks");
        }
        assert_eq!(outcome["data_bytes"], byte_count, "{recipe}");
        assert_eq!(outcome["file_type"], recipe.file_type(), "{recipe}");
        compared += 1;
    }
    assert_eq!(compared, 17);
}
