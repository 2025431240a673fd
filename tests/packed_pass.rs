//! Folders with packed weights: what a pass writes is what the plan said, opens again with the same
//! weights, and computes what transformers computes of it (`transformers_quantized_folder.py`).

use std::path::{Path, PathBuf};

use lapidary::engine::checkpoint::Checkpoint;
use lapidary::engine::format::{self, Encoding, survey_matrix};
use lapidary::engine::model::{Batch, Model};
use lapidary::engine::pass::{self, PassOptions, PassReport};
use lapidary::engine::plan::{self, Plan, Target, Why};
use lapidary::engine::{Error, Progress};
use serde_json::Value;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn demo() -> Checkpoint {
    Checkpoint::open(&repository("assets/demo")).expect("opens")
}

fn plan(text: &str) -> Plan {
    Plan::parse(&format!("version = 1\n{text}"), None).expect("a plan")
}

/// One format for all linears.
fn uniform(target: &str, format: &str) -> Plan {
    plan(&format!("target = \"{target}\"\n[default]\nformat = \"{format}\"\n"))
}

/// Several formats, and a layer that stays as it is.
fn mixed() -> Plan {
    plan(
        "target = \"compressed-tensors\"\n[default]\nformat = \"int4_g128\"\n[[rule]]\nrole = \"down\"\nformat = \"int8_channel\"\n\
         [[rule]]\nmatch = \"model.layers.0.*\"\nprotect = true\n",
    )
}

fn compress(checkpoint: &Checkpoint, plan: &Plan, output: &Path) -> Result<PassReport, Error> {
    let resolved = plan::resolve(plan, checkpoint)?;
    pass::run(
        checkpoint,
        &resolved,
        output,
        &PassOptions { chunk_weights: 20_000, ..PassOptions::default() },
        &Progress::default(),
    )
}

fn rows(checkpoint: &Checkpoint, name: &str) -> Vec<u8> {
    let tensor = checkpoint.tensor(name).unwrap_or_else(|| panic!("no {name}"));
    let mut bytes = Vec::new();
    checkpoint.read_rows(tensor, 0..tensor.row_count(), &mut bytes).expect("reads");
    bytes
}

fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let tensor = checkpoint.tensor(name).unwrap_or_else(|| panic!("no {name}"));
    let mut values = Vec::new();
    checkpoint.decode_rows(tensor, 0..tensor.row_count(), &mut Vec::new(), &mut values).expect("decodes");
    values
}

fn logits(checkpoint: &Checkpoint, ids: &[u32]) -> Vec<f32> {
    let model = Model::load(checkpoint, &Progress::default()).expect("loads");
    let mut batch = Batch::default();
    batch.push(ids, None, None);
    model.logits(&model.hidden(&batch, &mut [], &Progress::default()).expect("runs")).expect("logits")
}

/// Every uniform case: target and format.
const CASES: [(&str, &str); 14] = [
    ("compressed-tensors", "int4_g128"),
    ("compressed-tensors", "int4_g128_asym"),
    ("compressed-tensors", "int3_g64_asym_bf16"),
    ("compressed-tensors", "int8_channel"),
    ("compressed-tensors", "int8_tensor"),
    ("compressed-tensors", "fp8_e4m3_channel"),
    ("compressed-tensors", "fp8_e4m3_tensor"),
    ("compressed-tensors", "fp8_e4m3_block128"),
    ("bitsandbytes", "nf4"),
    ("bitsandbytes", "nf4_dq"),
    ("bitsandbytes", "fp4"),
    ("bitsandbytes", "fp4_dq"),
    ("gptq", "int3_g64_asym"),
    ("awq", "int4_g128_asym"),
];

#[test]
fn a_folder_holds_what_the_plan_said_and_opens_with_the_same_weights() {
    let place = tempfile::tempdir().expect("folder");
    let original = demo();
    for (target, id) in CASES {
        let output = place.path().join(format!("{target}-{id}"));
        let report =
            compress(&original, &uniform(target, id), &output).unwrap_or_else(|err| panic!("{target} {id}: {err}"));
        let candidate = Checkpoint::open(&output).expect("opens");
        assert!(candidate.config.is_some(), "{target} {id}: {:?}", candidate.config_fault);
        assert_eq!(candidate.tensor_bytes(), report.new_bytes, "{target} {id}: bytes as the plan said");
        assert_eq!(candidate.tensors.len(), original.tensors.len(), "{target} {id}");
        let format = format::find(id).expect("known");
        for tensor in &original.tensors {
            let found = candidate.tensor(&tensor.name).unwrap_or_else(|| panic!("{} is missing", tensor.name));
            assert_eq!(found.shape, tensor.shape);
            if !tensor.role.is_layer_linear() {
                assert_eq!(rows(&candidate, &tensor.name), rows(&original, &tensor.name), "{} stays", tensor.name);
                continue;
            }
            assert_eq!(found.dtype, format.dtype(), "{target} {}", tensor.name);
            let weights = values(&original, &tensor.name);
            let how = Encoding::plain(tensor.row_len());
            let shared = survey_matrix(format, &weights, &how);
            let mut expected = vec![0; format.dtype().row_bytes(tensor.row_len()).expect("fits") * tensor.row_count()];
            format.encode_rows(&weights, &Encoding { shared: shared.as_ref(), ..how }, &mut expected);
            assert!(rows(&candidate, &tensor.name) == expected, "{target} {id} {}", tensor.name);
        }
    }
}

#[test]
fn a_packed_folder_copied_keeps_every_byte_and_another_container_every_weight() {
    let place = tempfile::tempdir().expect("folder");
    let original = demo();
    for (target, id, other) in [
        ("compressed-tensors", "int4_g128_asym", "awq"),
        ("bitsandbytes", "nf4_dq", "bitsandbytes"),
        ("gptq", "int4_g128", "compressed-tensors"),
        ("awq", "int4_g64_asym", "gptq"),
        ("compressed-tensors", "fp8_e4m3_block128", "hugging_face"),
    ] {
        let first = place.path().join(format!("{target}-{id}"));
        compress(&original, &uniform(target, id), &first).expect("runs");
        let candidate = Checkpoint::open(&first).expect("opens");
        let again = place.path().join(format!("{target}-{id}-again"));
        let kept = |target: &str| plan(&format!("target = \"{target}\"\n"));
        compress(&candidate, &kept(target), &again).expect("runs");
        let file = |folder: &Path| std::fs::read(folder.join("model.safetensors")).expect("weights");
        assert!(file(&first) == file(&again), "{target} {id}: a copy has the same bytes");
        let moved = place.path().join(format!("{target}-{id}-{other}"));
        compress(&candidate, &kept(other), &moved).expect("runs");
        let moved = Checkpoint::open(&moved).expect("opens");
        let name = "model.layers.3.self_attn.o_proj.weight";
        assert_eq!(values(&moved, name), values(&candidate, name), "{target} {id} to {other}");
        // And back to a GGUF: decoded, nothing lost.
        let gguf = place.path().join(format!("{target}-{id}.gguf"));
        compress(&candidate, &kept("gguf"), &gguf).expect("runs");
        assert_eq!(values(&Checkpoint::open(&gguf).expect("opens"), name), values(&candidate, name));
    }
}

#[test]
fn transformers_decodes_and_computes_the_same() {
    let path = repository("tests/fixtures/transformers_quantized_demo.json");
    let expected: Value = serde_json::from_slice(&std::fs::read(path).expect("fixture")).expect("json");
    let ids: Vec<u32> =
        expected["ids"].as_array().expect("ids").iter().map(|id| id.as_u64().expect("id") as u32).collect();
    let place = tempfile::tempdir().expect("folder");
    let original = demo();
    let folders = expected["folders"].as_object().expect("folders");
    assert_eq!(folders.len(), 13);
    for (name, theirs) in folders {
        let target = if name.contains("nf4") || name.contains("fp4") { "bitsandbytes" } else { "compressed-tensors" };
        let plan = if name == "mixed" { mixed() } else { uniform(target, name) };
        let output = place.path().join(name);
        compress(&original, &plan, &output).expect("runs");
        let candidate = Checkpoint::open(&output).expect("opens");
        let modules = theirs["square_sums"].as_object().expect("sums");
        let packed = candidate.tensors.iter().filter(|tensor| tensor.dtype.is_scheme()).count();
        assert_eq!((packed, packed as u64), (modules.len(), theirs["modules"].as_u64().expect("count")), "{name}");
        for (module, sum) in modules {
            let ours: f64 =
                values(&candidate, &format!("{module}.weight")).iter().map(|value| f64::from(*value).powi(2)).sum();
            let theirs = sum.as_f64().expect("number");
            assert!((ours - theirs).abs() <= 1e-5 * theirs, "{name} {module}: {ours} {theirs}");
        }
        let logits = logits(&candidate, &ids);
        let vocab = logits.len() / ids.len();
        let last = &logits[(ids.len() - 1) * vocab..];
        let most = last.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        for (at, (ours, theirs)) in last.iter().zip(theirs["last_logits"].as_array().expect("logits")).enumerate() {
            let theirs = theirs.as_f64().expect("number") as f32;
            // Integer groups meet activations of 8 bits here, as other CPU runtimes' do; transformers computes in f32.
            assert!((ours - theirs).abs() <= 5e-3 * most, "{name} logit {at}: {ours} {theirs}");
        }
    }
}

#[test]
fn what_a_target_cannot_hold_is_refused_with_the_nearest_that_it_can() {
    let original = demo();
    let refusal = |plan: &Plan| plan::resolve(plan, &original).expect_err("refused").to_string();
    for (target, id, words) in [
        ("gguf", "int4_g128", "compressed-tensors"),
        ("compressed-tensors", "q4_k", "\"int4_g32\""),
        ("compressed-tensors", "fp8_e5m2_channel", "\"fp8_e4m3_"),
        ("bitsandbytes", "int4_g128", "nf4"),
        ("gptq", "int5_g128", "compressed-tensors"),
        ("awq", "int4_g128", "int4_g128_asym"),
        ("hugging_face", "nf4", "bitsandbytes"),
    ] {
        let text = refusal(&uniform(target, id));
        assert!(text.contains(words) && text.contains("cannot hold"), "{target} {id}: {text}");
    }
    let two = plan(
        "target = \"gptq\"\n[default]\nformat = \"int4_g128\"\n[[rule]]\nrole = \"down\"\nformat = \"int8_g128\"\n",
    );
    assert!(refusal(&two).contains("one format for all"), "{}", refusal(&two));
}

#[test]
fn embedding_head_and_norms_stay_plain_and_say_why() {
    let resolved = plan::resolve(&uniform("compressed-tensors", "int4_g128"), &demo()).expect("resolves");
    let embedding =
        &resolved.decisions[demo().tensors.iter().position(|t| t.name == "model.embed_tokens.weight").expect("there")];
    assert_eq!(embedding.why, Why::KeptByTarget(Target::CompressedTensors));
    assert!(embedding.is_copy() && embedding.sentence().contains("stays plain"), "{}", embedding.sentence());
    let warned = resolved.warnings.iter().any(|warning| warning.contains("int4_g128_bf16"));
    assert!(warned, "scales in f16 beside weights in bf16: {:?}", resolved.warnings);
    let split = plan(
        "target = \"compressed-tensors\"\n[default]\nformat = \"int4_g128_bf16\"\n[[rule]]\nrole = \"q\"\nformat = \"int8_channel_bf16\"\n",
    );
    let resolved = plan::resolve(&split, &demo()).expect("resolves");
    assert!(resolved.warnings.iter().any(|warning| warning.contains("q, k and v")), "{:?}", resolved.warnings);
}

#[test]
fn the_choice_of_scales_follows_the_method() {
    let place = tempfile::tempdir().expect("folder");
    let original = demo();
    let name = "model.layers.2.mlp.down_proj.weight";
    let weights = values(&original, name);
    let error = |method: &str| {
        let text =
            format!("target = \"compressed-tensors\"\n[default]\nformat = \"int2_g64_asym\"\nmethod = \"{method}\"\n");
        let output = place.path().join(method);
        let report = compress(&original, &plan(&text), &output).expect("runs");
        let row = report.tensors.iter().find(|tensor| tensor.name == name).expect("reported");
        assert_eq!(row.method, method);
        let coded = values(&Checkpoint::open(&output).expect("opens"), name);
        weights.iter().zip(&coded).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
    };
    let (plain, searched, clipped) = (error("rtn"), error("rtn_mse"), error("rtn_percentile_99"));
    assert!(searched < 0.9 * plain, "{searched} {plain}");
    assert!(clipped != plain && clipped > searched, "{clipped}");
}
