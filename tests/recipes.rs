//! Recipes and tensor-type files against llama-quantize: the type of every tensor, for the bundled
//! demo and for shapes from a toy to 70B, with an importance matrix and without.
//! `tests/oracles/llama_cpp_reference.py` made the fixtures.

use std::path::{Path, PathBuf};

use lapidary::engine::checkpoint::Checkpoint;
use lapidary::engine::format;
use lapidary::engine::plan::recipe::{ModelShape, TensorShape, choose};
use lapidary::engine::plan::{Calibration, Plan, Recipe, Target, Treatment, fit, resolve, tensor_types};
use lapidary::engine::target::gguf_names;
use serde_json::Value;

#[path = "common/synthetic.rs"]
mod synthetic;

fn fixtures() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures"))
}

fn read(name: &str) -> Value {
    let text = std::fs::read_to_string(fixtures().join(name)).expect("the fixture lies in the repository");
    serde_json::from_str(&text).expect("the fixture is JSON")
}

fn fixture() -> Value {
    read("llama_cpp_recipes.json")
}

/// The file that llama-quantize was given, and the plan whose types it holds.
const WRITTEN: &str = "tensor_types/written.txt";

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

    /// A checkpoint of this shape: headers, and weights that take no room on disk.
    fn checkpoint(&self, folder: &Path) -> Checkpoint {
        let shape = synthetic::Shape {
            layers: self.layers,
            hidden: self.width,
            mlp: self.mlp_width,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_width,
            vocab: self.vocabulary,
            tied: self.is_tied,
        };
        shape.write_sparse(folder).expect("written");
        Checkpoint::open(folder).expect("opens")
    }

    /// The format of every tensor under a recipe, and whether it fell back; none for vectors.
    fn chosen(&self, recipe: Recipe, has_importance: bool, tensors: &[Tensor]) -> Vec<Option<(&'static str, bool)>> {
        let shapes: Vec<TensorShape<'_>> =
            tensors.iter().map(|(_, name, shape)| TensorShape::of_name(name, shape)).collect();
        let model = ModelShape { layers: self.layers, heads: self.heads, kv_heads: self.kv_heads };
        let wanted = choose(recipe, model, has_importance, &shapes);
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

/// What llama-quantize did with one recipe, with an importance matrix and without.
fn outcomes<'a>(entry: &'a Value, recipe: &str) -> [(bool, &'a Value); 2] {
    let plain = &entry["recipes"][recipe];
    let same = entry["imatrix_same"].as_array().expect("names").iter().any(|name| name == recipe);
    let weighted = if same { plain } else { &entry["imatrix"][recipe] };
    [(false, plain), (true, weighted)]
}

#[test]
fn every_tensor_of_every_shape_gets_llama_quantizes_type() {
    let fixture = fixture();
    let (mut compared, mut differing) = (0, 0);
    for (name, entry) in fixture["shapes"].as_object().expect("shapes") {
        let shape = Shape::read(entry);
        let tensors = shape.tensors();
        for recipe in Recipe::all() {
            for (has_importance, outcome) in outcomes(entry, recipe.name()) {
                let chosen = shape.chosen(recipe, has_importance, &tensors);
                for ((ggml, _, _), chosen) in tensors.iter().zip(&chosen) {
                    let Some((format, _)) = chosen else {
                        assert_eq!(expected(&outcome["types"], ggml), None, "{ggml} is no vector");
                        continue;
                    };
                    let theirs = expected(&outcome["types"], ggml);
                    assert_eq!(theirs, Some(*format), "{name}, {recipe}, importance {has_importance}: {ggml}");
                    compared += 1;
                }
                let fallbacks = chosen.iter().flatten().filter(|(_, fell_back)| *fell_back).count();
                assert_eq!(outcome["fallbacks"], fallbacks, "{name}, {recipe}");
            }
            differing += usize::from(!entry["imatrix"][recipe.name()].is_null());
            let needs = entry["recipes"][recipe.name()]["requires_imatrix"] == true;
            // Where no row fills its blocks, Q2_K_S has no tensor of q2_k left.
            assert!(!needs || recipe.needs_importance(), "{name}, {recipe}");
        }
    }
    assert!(compared > 150_000, "only {compared} tensors were compared");
    assert!(differing > 50, "an importance matrix changed only {differing} choices");
}

/// What the test above asks of the recipes alone, asked of whole plans for checkpoints.
#[test]
fn a_plan_of_a_recipe_resolves_to_llama_quantizes_types() {
    let fixture = fixture();
    let mut compared = 0;
    for (name, entry) in fixture["shapes"].as_object().expect("shapes") {
        let shape = Shape::read(entry);
        // Larger ones are of no other kind, and not every file system can make them out of nothing.
        if shape.width > 2048 {
            continue;
        }
        let folder = tempfile::tempdir().expect("folder");
        let checkpoint = shape.checkpoint(folder.path());
        for recipe in Recipe::all() {
            for (has_importance, outcome) in outcomes(entry, recipe.name()) {
                if recipe.needs_importance() && !has_importance {
                    continue;
                }
                let mut plan = Plan::of_recipe(Target::Gguf, None, recipe);
                let calibration = Calibration { imatrix: Some(PathBuf::from("x.gguf")), ..Calibration::default() };
                plan.set_calibration(has_importance.then_some(calibration));
                for (ggml, dtype) in planned(&plan, &checkpoint) {
                    let theirs = expected(&outcome["types"], &ggml);
                    assert_eq!(theirs, Some(dtype.as_str()), "{name}, {recipe}, importance {has_importance}: {ggml}");
                    compared += 1;
                }
            }
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
    let mut compared = 0;
    for (has_importance, key) in [(false, "demo"), (true, "demo_imatrix")] {
        for recipe in Recipe::all() {
            let outcome = &fixture[key][recipe.name()];
            if recipe.needs_importance() && !has_importance {
                assert!(outcome["error"].as_str().expect("refused").contains("requires an importance matrix"));
                continue;
            }
            let mut byte_count = 0;
            for ((ggml, _, shape), chosen) in tensors.iter().zip(demo.chosen(recipe, has_importance, &tensors)) {
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
    }
    assert_eq!(compared, 20 + 21);
}

fn demo() -> Checkpoint {
    Checkpoint::open(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo"))).expect("opens")
}

/// The format of every matrix of the demo that a plan may quantize, by GGUF's name.
fn planned(plan: &Plan, checkpoint: &Checkpoint) -> Vec<(String, String)> {
    let decisions = resolve(plan, checkpoint).expect("resolves").decisions;
    decisions
        .iter()
        .map(|decision| (&checkpoint.tensors[decision.tensor_index], decision.dtype.to_string()))
        .filter(|(tensor, _)| tensor.shape.len() == 2)
        .map(|(tensor, dtype)| (gguf_names::to_gguf(&tensor.name).expect("a name"), dtype))
        .collect()
}

#[test]
fn a_list_of_tensor_types_means_to_us_what_it_means_to_llama_quantize() {
    let checkpoint = demo();
    let fixture = read("llama_cpp_tensor_types.json");
    let mut compared = 0;
    for (name, recipes) in fixture["files"].as_object().expect("files") {
        for (recipe, theirs) in recipes.as_object().expect("recipes") {
            let mut plan = Plan::of_recipe(Target::Gguf, None, Recipe::find(recipe).expect("known"));
            let path = fixtures().join("tensor_types").join(name);
            assert!(tensor_types::read(&mut plan, &checkpoint, &path).expect("reads") > 20);
            for (tensor, dtype) in planned(&plan, &checkpoint) {
                assert_eq!(theirs[&tensor], dtype.as_str(), "{name}, {recipe}: {tensor}");
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 2 * 3 * 43);
}

#[test]
fn llama_quantize_gives_a_plan_that_we_wrote_for_it_the_plans_types() {
    let checkpoint = demo();
    let mut plan = Plan::of_recipe(Target::Gguf, None, Recipe::Q4KM);
    let choice = |id: &str| Treatment::format(id).expect("known");
    plan.set_glob(&checkpoint, "model.layers.[01].mlp.down_proj.*", choice("q6_k")).expect("legal");
    plan.set_glob(&checkpoint, "*.k_proj.*", choice("iq4_xs")).expect("legal");
    plan.set_glob(&checkpoint, "model.layers.3.*", Treatment::Protect).expect("legal");
    plan.set_format(&checkpoint, &["model.embed_tokens.weight"], "q8_0").expect("legal");
    let text = tensor_types::write(&resolve(&plan, &checkpoint).expect("resolves"), &checkpoint);
    let path = fixtures().join(WRITTEN);
    assert_eq!(text, std::fs::read_to_string(path).expect("the file that llama-quantize was given"));
    let fixture = read("llama_cpp_tensor_types.json");
    let theirs = &fixture["files"]["written.txt"];
    for recipe in ["Q4_K_M", "Q3_K_M", "Q8_0"] {
        for (tensor, dtype) in planned(&plan, &checkpoint) {
            assert_eq!(theirs[recipe][&tensor], dtype.as_str(), "{recipe}: {tensor}");
        }
    }
}
