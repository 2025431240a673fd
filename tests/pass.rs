//! What a pass writes: llama-quantize's bytes, llama.cpp's perplexity, the same file for any number of
//! threads, and nothing where it could not finish.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lapidary::engine::calibration::Importance;
use lapidary::engine::checkpoint::{Checkpoint, Container, lookup};
use lapidary::engine::model::{Model, Tokenizer};
use lapidary::engine::pass::{self, PassOptions};
use lapidary::engine::plan::{self, Calibration, Plan, Recipe, Target};
use lapidary::engine::scoring::{Convention, ScoredText, TextOptions, TextSource};
use lapidary::engine::target::{gguf_names, llama_layout};
use lapidary::engine::{Error, Progress};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn fixture(name: &str) -> Value {
    let path = repository("tests/fixtures").join(name);
    serde_json::from_slice(&std::fs::read(path).expect("fixture")).expect("json")
}

fn demo() -> Checkpoint {
    Checkpoint::open(&repository("assets/demo")).expect("opens")
}

fn compress(checkpoint: &Checkpoint, plan: &Plan, output: &Path) -> Result<pass::PassReport, Error> {
    let resolved = plan::resolve(plan, checkpoint)?;
    let load = |calibration: &Calibration| calibration.load(checkpoint, &Progress::default(), &mut Vec::new());
    let importance = plan.calibration().map(load).transpose()?;
    let options = PassOptions { importance, ..PassOptions::default() };
    pass::run(checkpoint, &resolved, output, &options, &Progress::default())
}

/// What llama-imatrix saw the demo see.
fn imatrix() -> Calibration {
    let path = repository("tests/fixtures/llama_cpp_imatrix.gguf");
    Calibration { imatrix: Some(path), ..Calibration::default() }
}

fn recipe_plan(recipe: &str) -> Plan {
    Plan::of_recipe(Target::Gguf, None, Recipe::find(recipe).expect("known"))
}

/// The tensor's bytes in GGUF's row order, which is what llama-quantize writes.
fn stored_bytes(checkpoint: &Checkpoint, name: &str) -> Vec<u8> {
    let tensor = checkpoint.tensor(name).expect("tensor");
    let rows = tensor.row_count();
    let mut bytes = Vec::new();
    checkpoint.read_rows(tensor, 0..rows, &mut bytes).expect("reads");
    let layer = checkpoint.config.as_ref().expect("config").layers[0];
    let heads = if name.contains("q_proj") {
        layer.heads
    } else if name.contains("k_proj") {
        layer.kv_heads
    } else {
        return bytes;
    };
    let row_bytes = bytes.len() / rows;
    (0..rows)
        .flat_map(|row| {
            let from = llama_layout::hugging_face_row(row, rows, heads);
            bytes[from * row_bytes..(from + 1) * row_bytes].to_vec()
        })
        .collect()
}

/// Writes every recipe and compares each tensor's bytes with llama-quantize's.
fn compare_recipes(key: &str, calibration: Option<&Calibration>, least: usize) {
    let folder = tempfile::tempdir().expect("folder");
    let checkpoint = demo();
    let expected = fixture("llama_cpp_recipes.json");
    let mut wrong = Vec::new();
    let mut compared = 0;
    for recipe in Recipe::all().filter(|recipe| calibration.is_some() || !recipe.needs_importance()) {
        let path = folder.path().join(format!("{}.gguf", recipe.name()));
        let mut plan = recipe_plan(recipe.name());
        plan.set_calibration(calibration.cloned());
        let report = compress(&checkpoint, &plan, &path).expect("runs");
        let candidate = Checkpoint::open(&path).expect("opens");
        let theirs = &expected[key][recipe.name()];
        assert_eq!(report.new_bytes, theirs["data_bytes"].as_u64().expect("bytes"), "{}", recipe.name());
        for (gguf_name, value) in theirs["tensors"].as_object().expect("tensors") {
            let name = gguf_names::to_hugging_face(gguf_name).expect("known name");
            let hash = format!("{:x}", Sha256::digest(stored_bytes(&candidate, &name)));
            compared += 1;
            if Some(hash.as_str()) != value[1].as_str() {
                wrong.push(format!("{} {gguf_name} {}", recipe.name(), value[0]));
            }
        }
    }
    assert!(compared >= least, "{compared}");
    assert!(wrong.is_empty(), "{} of {compared} tensors differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_recipe_writes_llama_quantizes_bytes() {
    compare_recipes("demo", None, 20 * 43);
}

#[test]
fn every_recipe_with_an_importance_matrix_writes_llama_quantizes_bytes() {
    compare_recipes("demo_imatrix", Some(&imatrix()), 21 * 43);
}

#[test]
fn what_is_written_names_the_importance_matrix_as_llama_quantize_does() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("weighted.gguf");
    let mut plan = recipe_plan("Q4_K_M");
    plan.set_calibration(Some(imatrix()));
    let report = compress(&demo(), &plan, &path).expect("runs");
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    let method = |name: &str| report.tensors.iter().find(|tensor| tensor.name == name).expect("it").method.as_str();
    assert_eq!(method("model.layers.1.mlp.down_proj.weight"), "imatrix");
    assert_eq!(method("model.embed_tokens.weight"), "rtn", "a lookup multiplies nothing");
    assert_eq!(method("model.norm.weight"), "rtn");
    let candidate = Checkpoint::open(&path).expect("opens");
    let metadata = candidate.gguf_metadata().expect("a GGUF");
    let expected = fixture("llama_cpp_recipes.json");
    let theirs = expected["imatrix_metadata"].as_object().expect("metadata");
    assert_eq!(theirs.len(), 4);
    for (key, value) in theirs {
        let ours = lookup(metadata, key).unwrap_or_else(|| panic!("{key} is missing"));
        match &value["value"] {
            Value::String(text) => assert_eq!(ours.as_str(), Some(text.as_str()), "{key}"),
            number => assert_eq!(ours.as_u64(), number.as_u64(), "{key}"),
        }
    }
}

#[test]
fn a_plan_whose_importance_matrix_does_not_fit_leaves_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let output = folder.path().join("out.gguf");
    let mut importance = Importance::read(&repository("tests/fixtures/llama_cpp_imatrix.gguf")).expect("reads");
    let mut plan = recipe_plan("Q2_K_S");
    let message = compress(&demo(), &plan, &output).expect_err("refused").to_string();
    assert!(message.contains("needs an importance matrix") && message.contains("Q2_K"), "{message}");
    let resolved = |plan: &Plan| plan::resolve(plan, &demo()).expect("resolves");
    plan.set_calibration(Some(imatrix()));
    let run = |importance: Option<Importance>, plan: &Plan| {
        let options = PassOptions { importance: importance.map(Arc::new), ..PassOptions::default() };
        pass::run(&demo(), &resolved(plan), &output, &options, &Progress::default())
    };
    let message = run(None, &plan).expect_err("refused").to_string();
    assert!(message.contains("not loaded"), "{message}");
    // Q2_K_S is garbage without, Q4_K_M only a little worse.
    let lost = importance.tensors.remove("model.layers.4.mlp.up_proj.weight").expect("it has it");
    let message = run(Some(importance.clone()), &plan).expect_err("refused").to_string();
    assert!(message.contains("layers.4.mlp.up_proj") && message.contains("garbage"), "{message}");
    assert!(!output.exists());
    plan.set_recipe(Recipe::find("Q4_K_M"));
    let report = run(Some(importance.clone()), &plan).expect("runs");
    assert!(report.warnings[0].contains("no entry for model.layers.4.mlp.up_proj.weight"), "{:?}", report.warnings);
    std::fs::remove_file(&output).expect("it is there");
    importance.tensors.insert("model.layers.4.mlp.down_proj.weight".to_owned(), lost);
    let message = run(Some(importance), &plan).expect_err("refused").to_string();
    assert!(message.contains("256 values for its 512 columns"), "{message}");
    assert!(!output.exists());
}

#[test]
fn a_plan_with_a_text_computes_its_own_importance() {
    let folder = tempfile::tempdir().expect("folder");
    let text = std::fs::read_to_string(repository("assets/demo/calibration.txt")).expect("text");
    std::fs::write(folder.path().join("short.txt"), &text[..text.floor_char_boundary(4_000)]).expect("writes");
    let toml =
        "version = 1\nrecipe = \"Q4_0\"\n[calibration]\ntext = \"short.txt\"\ntext_hash = \"other\"\ncontext = 64\n";
    let plan = Plan::parse(toml, Some(&folder.path().join("plan.toml"))).expect("legal");
    let mut warnings = Vec::new();
    let calibration = plan.calibration().expect("it has one");
    let importance = calibration.load(&demo(), &Progress::default(), &mut warnings).expect("computes");
    assert_eq!((importance.chunk_tokens, importance.tensors.len()), (64, 42));
    assert!(warnings[0].contains("not the one that the plan was made with"), "{warnings:?}");
    let output = folder.path().join("out.gguf");
    let report = compress(&demo(), &plan, &output).expect("runs");
    assert!(report.tensors.iter().filter(|tensor| tensor.method == "imatrix").count() >= 41);
}

#[test]
fn our_perplexity_of_what_we_write_is_llama_cpps() {
    let folder = tempfile::tempdir().expect("folder");
    let checkpoint = demo();
    let expected = fixture("llama_cpp_perplexity.json");
    let text = TextSource::read(&repository("assets/demo/evaluation.txt")).expect("text");
    for recipe in ["F32", "Q8_0", "Q4_K_M", "Q2_K", "Q5_0"] {
        let Some(theirs) = expected["models"][recipe]["perplexity"].as_f64() else {
            assert_eq!(recipe, "Q5_0", "only Q5_0 may be missing in the fixture");
            continue;
        };
        let path = folder.path().join(format!("{recipe}.gguf"));
        compress(&checkpoint, &recipe_plan(recipe), &path).expect("runs");
        let candidate = Checkpoint::open(&path).expect("opens");
        let model = Model::load(&candidate, &Progress::default()).expect("loads");
        let tokenizer = Tokenizer::of_checkpoint(&candidate).expect("tokenizer");
        let options = TextOptions { convention: Convention::LlamaCpp, context: Some(256), ..TextOptions::default() };
        let scored = ScoredText::new(&tokenizer, &text, 256, model.config.vocab, &options).expect("windows");
        let ours = scored.score(&model, &Progress::default()).expect("scores").perplexity;
        assert!((ours / theirs - 1.0).abs() < 1e-3, "{recipe}: ours {ours}, llama.cpp's {theirs}");
    }
}

#[test]
fn a_hugging_face_folder_keeps_names_values_and_tokenizer() {
    let folder = tempfile::tempdir().expect("folder");
    let checkpoint = demo();
    let output = folder.path().join("smaller");
    let mut plan = Plan::new(Target::HuggingFace, Some(&checkpoint.fingerprint));
    plan.set_default_format(Some("f16")).expect("legal");
    let down = "model.layers.3.mlp.down_proj.weight";
    plan.set_protected(&checkpoint, &[down], true).expect("legal");
    compress(&checkpoint, &plan, &output).expect("runs");
    let candidate = Checkpoint::open(&output).expect("opens");
    assert_eq!(candidate.container, Container::HuggingFace);
    assert_eq!(candidate.config, checkpoint.config);
    assert_eq!(candidate.tensors.len(), checkpoint.tensors.len());
    for tensor in &checkpoint.tensors {
        let other = candidate.tensor(&tensor.name).expect("same name");
        assert_eq!(other.shape, tensor.shape);
        assert_eq!(other.dtype.name(), if tensor.name == down { "bf16" } else { "f16" });
    }
    assert_eq!(stored_bytes(&candidate, down), stored_bytes(&checkpoint, down));
    let text = "Ümit 17 + 25 = 42";
    let ids = |checkpoint| Tokenizer::of_checkpoint(checkpoint).expect("tokenizer").encode(text).expect("ids");
    assert_eq!(ids(&candidate), ids(&checkpoint));
}

#[test]
fn a_gguf_can_be_compressed_further_and_keeps_its_rows() {
    let folder = tempfile::tempdir().expect("folder");
    let (first, second) = (folder.path().join("q8.gguf"), folder.path().join("mixed.gguf"));
    compress(&demo(), &recipe_plan("Q8_0"), &first).expect("runs");
    let middle = Checkpoint::open(&first).expect("opens");
    let mut plan = Plan::new(Target::Gguf, None);
    let q = "model.layers.2.self_attn.q_proj.weight";
    plan.set_format(&middle, &["model.layers.0.mlp.up_proj.weight"], "q4_0").expect("legal");
    let report = compress(&middle, &plan, &second).expect("runs");
    assert!(report.new_bytes < report.old_bytes);
    let last = Checkpoint::open(&second).expect("opens");
    assert_eq!(stored_bytes(&last, q), stored_bytes(&middle, q));
    assert_eq!(last.tensor("model.layers.0.mlp.up_proj.weight").expect("tensor").dtype.name(), "q4_0");
}

#[test]
fn biases_and_rope_scaling_survive_a_gguf() {
    for name in ["biases", "rope_llama3", "head_dim", "gqa_untied"] {
        let folder = tempfile::tempdir().expect("folder");
        let checkpoint = Checkpoint::open(&repository(&format!("tests/fixtures/tiny_llama_{name}"))).expect("opens");
        let path = folder.path().join("tiny.gguf");
        match compress(&checkpoint, &recipe_plan("F32"), &path) {
            Ok(_) => {}
            // The tiny models have no tokenizer, which a GGUF for llama.cpp needs.
            Err(err) => {
                assert!(err.to_string().contains("tokenizer"), "{err}");
                continue;
            }
        }
        let candidate = Checkpoint::open(&path).expect("opens");
        for tensor in &checkpoint.tensors {
            let other = candidate.tensor(&tensor.name).expect("same name");
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            candidate.decode_rows(other, 0..other.row_count(), &mut Vec::new(), &mut ours).expect("decodes");
            checkpoint.decode_rows(tensor, 0..tensor.row_count(), &mut Vec::new(), &mut theirs).expect("decodes");
            assert_eq!(ours, theirs, "{name} {}", tensor.name);
        }
    }
}

#[test]
fn a_plan_of_another_checkpoint_and_an_output_onto_the_input_are_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("q8.gguf");
    compress(&demo(), &recipe_plan("Q8_0"), &path).expect("runs");
    let small = Checkpoint::open(&path).expect("opens");
    let resolved = plan::resolve(&recipe_plan("Q8_0"), &demo()).expect("resolves");
    let out = folder.path().join("out.gguf");
    let err = pass::run(&small, &resolved, &out, &PassOptions::default(), &Progress::default()).expect_err("refused");
    assert!(err.to_string().contains("another checkpoint"), "{err}");
    let err = compress(&small, &recipe_plan("Q4_0"), &path).expect_err("refused");
    assert!(!err.to_string().is_empty());
    let before = std::fs::read(&path).expect("whole");
    Checkpoint::open(&path).expect("still opens");
    let cancelled = Progress::default();
    cancelled.cancel();
    let resolved = plan::resolve(&recipe_plan("Q4_0"), &small).expect("resolves");
    let err = pass::run(&small, &resolved, &out, &PassOptions::default(), &cancelled).expect_err("cancelled");
    assert!(err.is_cancelled());
    assert_eq!(std::fs::read(&path).expect("whole"), before);
    assert_eq!(std::fs::read_dir(folder.path()).expect("lists").count(), 1, "nothing half-written remains");
}

/// Runs a plan with what it may take over.
fn compress_after(
    checkpoint: &Checkpoint,
    plan: &Plan,
    earlier: Vec<pass::Earlier>,
    output: &Path,
) -> pass::PassReport {
    let resolved = plan::resolve(plan, checkpoint).expect("resolves");
    let load = |calibration: &Calibration| calibration.load(checkpoint, &Progress::default(), &mut Vec::new());
    let importance = plan.calibration().map(load).transpose().expect("an importance matrix");
    let options = PassOptions { importance, earlier, ..PassOptions::default() };
    pass::run(checkpoint, &resolved, output, &options, &Progress::default()).expect("runs")
}

#[test]
fn a_changed_plan_takes_over_what_did_not_change_and_gives_the_same_bytes() {
    let folder = tempfile::tempdir().expect("folder");
    let at = |name: &str| folder.path().join(name);
    let checkpoint = demo();
    let before = recipe_plan("Q4_K_M");
    compress(&checkpoint, &before, &at("before.gguf")).expect("runs");
    let mut after = before.clone();
    let treatment = plan::Treatment::format("q5_k").expect("a format");
    after.set_role_layers(&checkpoint, lookup_role("q"), Some(&[1, 2]), treatment).expect("layers");
    let fresh = compress(&checkpoint, &after, &at("fresh.gguf")).expect("runs");
    assert_eq!(fresh.reused_tensors, 0);
    let earlier = |plan: &Plan, importance: Option<String>| pass::Earlier {
        candidate: Arc::new(Checkpoint::open(&at("before.gguf")).expect("opens")),
        plan: Arc::new(plan::resolve(plan, &checkpoint).expect("resolves")),
        importance,
    };
    let report = compress_after(&checkpoint, &after, vec![earlier(&before, None)], &at("reused.gguf"));
    // All but the two that changed.
    assert!(report.reused_tensors >= 43 - 2, "{}", report.reused_tensors);
    let bytes = |name: &str| std::fs::read(at(name)).expect("written");
    assert!(bytes("reused.gguf") == bytes("fresh.gguf"), "another file");

    // A candidate that is not what its plan says is noticed, and the file is right all the same.
    let mut weighted = after.clone();
    weighted.set_calibration(Some(imatrix()));
    let expected = compress(&checkpoint, &weighted, &at("weighted.gguf")).expect("runs");
    let mut claimed = before.clone();
    claimed.set_calibration(Some(imatrix()));
    let hash = Importance::read(&repository("tests/fixtures/llama_cpp_imatrix.gguf")).expect("reads").hash;
    let report = compress_after(&checkpoint, &weighted, vec![earlier(&claimed, Some(hash))], &at("claimed.gguf"));
    assert!(report.warnings.iter().any(|warning| warning.contains("encoded again")), "{:?}", report.warnings);
    assert!(report.reused_tensors < expected.tensors.len() / 2, "{}", report.reused_tensors);
    assert!(bytes("claimed.gguf") == bytes("weighted.gguf"), "another file");

    // Made with another matrix, only the norms are alike: no matrix weighs them.
    let report = compress_after(&checkpoint, &weighted, vec![earlier(&claimed, None)], &at("other.gguf"));
    assert!(bytes("other.gguf") == bytes("weighted.gguf") && report.reused_tensors == 13, "{}", report.reused_tensors);
}

fn lookup_role(name: &str) -> lapidary::engine::checkpoint::Role {
    lapidary::engine::checkpoint::Role::find(name).expect("a role")
}
