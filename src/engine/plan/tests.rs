//! Plans as a whole: text, edits and decisions on made-up checkpoints.

mod edits;

use proptest::prelude::*;

use super::resolve::resolve_for;
use super::*;
use crate::checkpoint::Role;
use crate::error::Error;
use crate::format::Dtype;

pub(super) fn tensor(name: &str, shape: &[usize], dtype: Dtype) -> TensorInfo {
    let (role, layer) = Role::of_name(name);
    let row_len = shape.last().copied().unwrap_or(1);
    let rows: usize = shape.iter().rev().skip(1).product();
    let row_bytes = row_len.div_ceil(dtype.block_len()) * dtype.block_bytes();
    TensorInfo {
        name: name.to_owned(),
        stored_name: name.to_owned(),
        shape: shape.to_vec(),
        dtype,
        role,
        layer,
        byte_count: (rows * row_bytes) as u64,
        file: 0,
        offset: 0,
        permuted_heads: None,
        parts: None,
        view: None,
    }
}

/// A tied Llama of `layers` layers, width 256, MLP 512, in bf16.
pub(super) fn llama(layers: usize) -> Vec<TensorInfo> {
    let mut tensors = vec![tensor("model.embed_tokens.weight", &[1024, 256], Dtype::Bf16)];
    for layer in 0..layers {
        for (part, shape) in [
            ("input_layernorm", &[256][..]),
            ("self_attn.q_proj", &[256, 256]),
            ("self_attn.k_proj", &[128, 256]),
            ("self_attn.v_proj", &[128, 256]),
            ("self_attn.o_proj", &[256, 256]),
            ("mlp.gate_proj", &[512, 256]),
            ("mlp.up_proj", &[512, 256]),
            ("mlp.down_proj", &[256, 512]),
        ] {
            tensors.push(tensor(&format!("model.layers.{layer}.{part}.weight"), shape, Dtype::Bf16));
        }
    }
    tensors.push(tensor("model.norm.weight", &[256], Dtype::Bf16));
    tensors
}

pub(super) fn subject(tensors: &[TensorInfo]) -> Subject<'_> {
    Subject { tensors, config: None, fingerprint: "f1" }
}

pub(super) fn parse(text: &str) -> Plan {
    Plan::parse(text, None).expect("a legal plan")
}

pub(super) fn fault(result: Result<impl std::fmt::Debug>) -> Fault {
    match result.expect_err("must be refused") {
        Error::Fault(fault) => *fault,
        other => panic!("not a fault: {other}"),
    }
}

/// The decision about the tensor called `model.layers.{name}.weight`.
fn decided(resolved: &ResolvedPlan, tensors: &[TensorInfo], name: &str) -> Decision {
    let name = format!("model.layers.{name}.weight");
    resolved.decisions[tensors.iter().position(|tensor| tensor.name == name).expect("a tensor")]
}

const COMMENTED: &str = r#"# How we ship the small one.
version = 1
target = "gguf" # llama.cpp only

[default] # everything else
format = "q4_k"
method = "rtn"

# The first layer matters.
[[rule]]
match = "model.layers.0.*" # all of it
format = "q6_k"

# Down projections hold the outliers,
# so they stay.
[[rule]]
role = "down"
layers = "1-2"
protect = true
# end
"#;

#[test]
fn a_plan_nobody_edits_is_written_back_byte_for_byte() {
    assert_eq!(parse(COMMENTED).to_toml(), COMMENTED);
}

#[test]
fn mistakes_are_refused_with_line_reason_and_the_nearest_legal_choice() {
    let cases = [
        ("version = 1\n[[rule]]\nmatch = \"*\"\nformat = \"q4k\"\n", 4, "no format \"q4k\"", "\"q4_k\""),
        ("version = 1\nrecipe = \"Q4_KM\"\n", 2, "no recipe \"Q4_KM\"", "\"Q4_K_M\""),
        ("version = 1\ntarget = \"ggfu\"\n", 2, "no target", "\"gguf\""),
        ("version = 1\n\n\n[[rule]]\nrole = \"donw\"\nformat = \"f16\"\n", 5, "no role \"donw\"", "\"down\""),
        ("version = 1\n[[rule]]\nmatch = \"*\"\nfromat = \"f16\"\n", 4, "no key \"fromat\"", "\"format\""),
        ("version = 1\n[[rules]]\nmatch = \"*\"\n", 2, "no key \"rules\"", "\"rule\""),
        ("version = 1\n[default]\nformat = \"q4_k\"\nmethod = \"gptq\"\n", 4, "no method \"gptq\"", "\"rtn\""),
        ("version = 1\n\n[prune]\nlayers = 4\n", 4, "not a list", "\"4-7\""),
        ("version = 1\n[prune]\nlayers = [0,\n -1]\n", 4, "neither an index", "\"3-5\""),
        ("version = 1\n[prune]\nlayer = 3\n", 3, "not a table", "[prune.layer.3]"),
        ("version = 1\n[prune.layer.x]\nheads = [1]\n", 2, "no layer", "[prune.layer.3]"),
        ("version = 1\n[prune.layer.1]\nhead = [1]\n", 3, "no key \"head\"", "\"heads\""),
        ("version = 1\n[prune.layer.1]\nchannels = [\"0-99999999\"]\n", 3, "neither an index", "\"3-5\""),
        ("version = 1\n[calibration]\n", 2, "neither", "imatrix"),
        ("version = 1\n[calibration]\nimatirx = \"a\"\n", 3, "no key \"imatirx\"", "\"imatrix\""),
        ("version = 1\n[calibration]\ntext = \"a\"\ncontext = 0\n", 4, "whole number", "512"),
        ("version = 1\n[calibration]\ntext = \"a\"\nprocess_output = 1\n", 4, "neither true", "true"),
        ("version = 1\ncalibration = \"a\"\n", 2, "not a table", "[calibration]"),
        ("version = 2\n", 1, "version 2", "version of the program"),
        ("target = \"gguf\"\n", 1, "does not say its version", "version = 1"),
        ("version = 1\ntarget =\n", 2, "not TOML", "line"),
        ("version = 1\n[[rule]]\nlayers = \"4-2\"\nformat = \"f16\"\n", 3, "backwards", "3-5"),
        ("version = 1\n[[rule]]\nlayers = 4\nformat = \"f16\"\n", 3, "an integer, not a string", "layers = \"…\""),
        ("version = 1\n[[rule]]\nformat = \"f16\"\n", 2, "which tensors", "match"),
        ("version = 1\n[[rule]]\nmatch = \"*\"\n", 2, "what to do", "protect = true"),
        ("version = 1\n[[rule]]\nmatch = \"*\"\nprotect = false\n", 4, "says nothing", "format"),
        ("version = 1\n[[rule]]\nmatch = \"*\"\nprotect = true\nformat = \"f16\"\n", 2, "protected", "either"),
        ("version = 1\n[[rule]]\nmatch = \"a[\"\nformat = \"f16\"\n", 3, "glob", "special"),
        ("version = 1\nrecipe = \"Q4_0\"\n[default]\nformat = \"q4_k\"\n", 4, "both", "remove one"),
        ("version = 1\nrule = [1]\n", 2, "list of tables", "[[rule]]"),
        ("version = 1\ndefault = 3\n", 2, "not a table", "[default]"),
    ];
    for (text, line, cause, remedy) in cases {
        let fault = fault(Plan::parse(text, Some(std::path::Path::new("plan.toml"))));
        assert_eq!(fault.place.as_deref(), Some(format!("line {line}").as_str()), "{text}: {fault}");
        assert!(fault.cause.contains(cause), "{text}: {fault}");
        assert!(fault.remedy.as_deref().is_some_and(|text| text.contains(remedy)), "{text}: {fault}");
        assert_eq!(fault.path.as_deref(), Some(std::path::Path::new("plan.toml")));
    }
}

#[test]
fn what_the_checkpoint_does_not_have_is_refused_with_its_line() {
    let tensors = llama(4);
    let cases = [
        ("match = \"model.layers.0.mlp.down_prj.weight\"", "no tensor matches", "model.layers.0.mlp.down_proj.weight"),
        ("role = \"head\"", "role head", "embedding"),
        ("role = \"down\"\nlayers = \"2-4\"", "no layer 4", "layers 0-3"),
        ("role = \"embedding\"\nlayers = \"0\"", "no tensor matches", "down"),
    ];
    for (matcher, cause, remedy) in cases {
        let plan = parse(&format!("version = 1\n[[rule]]\n{matcher}\nformat = \"f16\"\n"));
        let fault = fault(resolve_for(&plan, subject(&tensors)));
        assert!(fault.cause.contains(cause), "{fault}");
        assert!(fault.remedy.as_deref().is_some_and(|text| text.contains(remedy)), "{fault}");
        let line = if matcher.contains("layers = \"2-4\"") { "line 4" } else { "line 3" };
        assert_eq!(fault.place.as_deref(), Some(line), "{fault}");
    }
}

#[test]
fn what_the_target_cannot_hold_is_refused_with_its_line() {
    let tensors = llama(2);
    for (text, line) in [
        ("version = 1\ntarget = \"hugging_face\"\nrecipe = \"Q4_K_M\"\n", 3),
        ("version = 1\ntarget = \"hugging_face\"\n[default]\nformat = \"q8_0\"\n", 4),
        ("version = 1\ntarget = \"hugging_face\"\n[[rule]]\nmatch = \"*\"\nformat = \"q8_0\"\n", 5),
    ] {
        let fault = fault(resolve_for(&parse(text), subject(&tensors)));
        assert_eq!(fault.place, Some(format!("line {line}")), "{fault}");
        assert!(fault.remedy.as_deref().is_some_and(|text| text.contains("bf16")), "{fault}");
    }
    let plan = parse("version = 1\ntarget = \"hugging_face\"\nrecipe = \"F16\"\n");
    let resolved = resolve_for(&plan, subject(&tensors)).expect("floats are legal");
    assert!(resolved.decisions.iter().all(|decision| decision.dtype == Dtype::F16));
}

#[test]
fn the_last_matching_rule_wins_over_rules_and_default() {
    let tensors = llama(4);
    let resolved = resolve_for(&parse(COMMENTED), subject(&tensors)).expect("resolves");
    let dtype = |name| decided(&resolved, &tensors, name).dtype;
    assert_eq!(dtype("0.mlp.down_proj"), Dtype::Q6K);
    assert_eq!(dtype("1.mlp.down_proj"), Dtype::Bf16, "protected");
    assert_eq!(dtype("1.mlp.up_proj"), Dtype::Q4K, "the default");
    assert_eq!(dtype("3.mlp.down_proj"), Dtype::Q4K, "the default");
    let more = format!("{COMMENTED}\n[[rule]]\nmatch = \"*.{{down,up}}_proj.*\"\nformat = \"q8_0\"\n");
    let resolved = resolve_for(&parse(&more), subject(&tensors)).expect("resolves");
    let decision = decided(&resolved, &tensors, "1.mlp.down_proj");
    assert_eq!((decision.dtype, decision.why), (Dtype::Q8_0, Why::Rule(2)));
    assert_eq!(decided(&resolved, &tensors, "0.self_attn.q_proj").why, Why::Rule(0));
    assert!(resolved.warnings.iter().any(|text| text.starts_with("Rule 2 ")), "{:?}", resolved.warnings);
}

#[test]
fn protected_and_untouched_tensors_keep_their_stored_type_and_vectors_are_f32() {
    let mut tensors = llama(1);
    tensors.push(tensor("model.layers.0.self_attn.q_proj.bias", &[256], Dtype::F16));
    tensors.push(tensor("extra.weight", &[4, 256], Dtype::Q4K));
    tensors.push(tensor("codes.weight", &[4, 256], Dtype::Unknown(77)));
    tensors.push(tensor("fp8.weight", &[4, 256], Dtype::F8E4M3));
    tensors.push(tensor("positions", &[16], Dtype::I64));
    let plan = parse("version = 1\n[default]\nformat = \"q8_0\"\n[[rule]]\nmatch = \"*\"\nprotect = true\n");
    let resolved = resolve_for(&plan, subject(&tensors)).expect("resolves");
    let dtypes: Vec<Dtype> = resolved.decisions.iter().rev().take(5).map(|decision| decision.dtype).collect();
    assert_eq!(dtypes, [Dtype::I64, Dtype::F16, Dtype::Unknown(77), Dtype::Q4K, Dtype::F32]);
    let q = decided(&resolved, &tensors, "0.self_attn.q_proj");
    assert_eq!((q.dtype, q.why), (Dtype::Bf16, Why::Protected(0)));
    assert!(q.is_copy());
    let norm = decided(&resolved, &tensors, "0.input_layernorm");
    assert_eq!((norm.dtype, norm.why), (Dtype::F32, Why::OneDimensional));

    let plan = parse("version = 1\n[default]\nformat = \"q8_0\"\n");
    let resolved = resolve_for(&plan, subject(&tensors)).expect("resolves");
    let codes = resolved.decisions[tensors.len() - 3];
    assert_eq!((codes.dtype, codes.why), (Dtype::Unknown(77), Why::Undecodable));
    assert!(resolved.warnings.iter().any(|text| text.contains("codes.weight")), "{:?}", resolved.warnings);
    assert!(resolved.warnings.iter().any(|text| text.contains("already quantized")), "{:?}", resolved.warnings);

    let plan = parse("version = 1\ntarget = \"hugging_face\"\n");
    let fault = fault(resolve_for(&plan, subject(&tensors)));
    assert_eq!(fault.place.as_deref(), Some("tensor codes.weight"));
}

#[test]
fn rows_that_do_not_fill_blocks_fall_back_as_in_llama_cpp_and_the_plan_says_so() {
    for (id, at_320) in
        [("q2_k", "q4_0"), ("q3_k", "q4_0"), ("q4_k", "q5_0"), ("q5_k", "q5_1"), ("q6_k", "q8_0"), ("q8_0", "q8_0")]
    {
        assert_eq!(fit(id, 512), id);
        assert_eq!(fit(id, 320), at_320);
        assert_eq!(fit(id, 100), "f16");
    }
    let tensors = [tensor("model.layers.0.mlp.up_proj.weight", &[8, 320], Dtype::F32)];
    let plan = parse("version = 1\n[default]\nformat = \"q4_k\"\n");
    let resolved = resolve_for(&plan, subject(&tensors)).expect("resolves");
    let decision = resolved.decisions[0];
    assert_eq!((decision.dtype, decision.fell_back_from), (Dtype::Q5_0, Some("q4_k")));
    assert_eq!(decision.new_bytes, 8 * 10 * 22);
    assert!(decision.sentence().contains("blocks of 256, so it becomes q5_0"), "{}", decision.sentence());
    assert!(resolved.warnings[0].contains("q4_k → q5_0"), "{:?}", resolved.warnings);
}

#[test]
fn a_recipe_decides_first_and_rules_come_on_top() {
    let tensors = llama(6);
    let mut plan = Plan::of_recipe(Target::Gguf, Some("f1"), Recipe::Q4KM);
    plan.set_exact(subject(&tensors), &["model.layers.2.mlp.down_proj.weight"], Treatment::format("q8_0").expect("id"))
        .expect("edit");
    let resolved = resolve_for(&plan, subject(&tensors)).expect("resolves");
    let dtype = |name| decided(&resolved, &tensors, name).dtype;
    assert_eq!(resolved.decisions[0].dtype, Dtype::Q6K, "the tied embedding is the head");
    // Of six layers the third and the last get more bits.
    assert_eq!(dtype("2.self_attn.v_proj"), Dtype::Q6K);
    assert_eq!(dtype("5.mlp.down_proj"), Dtype::Q6K);
    assert_eq!(dtype("1.mlp.down_proj"), Dtype::Q4K);
    assert_eq!(dtype("2.mlp.down_proj"), Dtype::Q8_0, "the rule");
    assert_eq!(resolved.file_type, 15);
    assert_eq!(resolved.warnings, [""; 0]);
    assert!(resolved.is_quantized());
}

#[test]
fn a_plan_for_another_checkpoint_is_worked_out_with_a_warning() {
    let plan = Plan::new(Target::Gguf, Some("other"));
    let resolved = resolve_for(&plan, subject(&llama(1))).expect("resolves");
    assert_eq!(resolved.warnings, ["The plan was made for another checkpoint."]);
    assert_eq!(resolved.file_type, 32, "mostly bf16");
}

#[test]
fn a_matcher_that_saw_another_checkpoint_matches_this_one_anew() {
    let plan = parse("version = 1\n[[rule]]\nrole = \"down\"\nformat = \"q8_0\"\n");
    let (small, large) = (llama(1), llama(3));
    resolve_for(&plan, subject(&small)).expect("resolves");
    let other = Subject { tensors: &large, config: None, fingerprint: "f2" };
    let resolved = resolve_for(&plan, other).expect("resolves");
    let count = resolved.decisions.iter().filter(|decision| decision.dtype == Dtype::Q8_0).count();
    assert_eq!(count, 3);
}

proptest! {
    #[test]
    fn resolving_is_total_and_the_bytes_add_up(
        shapes in prop::collection::vec((prop::collection::vec(0_usize..700, 0..4), 0_usize..4, 0_usize..4), 1..12),
        recipe in prop::option::of(0_usize..17),
        format in 0_usize..13,
    ) {
        let parts = ["mlp.down_proj", "self_attn.v_proj", "input_layernorm", "other"];
        let dtypes = [Dtype::F32, Dtype::Bf16, Dtype::F16, Dtype::F64];
        let tensors: Vec<TensorInfo> = shapes
            .iter()
            .enumerate()
            .map(|(layer, (shape, part, dtype))| {
                tensor(&format!("model.layers.{layer}.{}.weight", parts[*part]), shape, dtypes[*dtype])
            })
            .collect();
        let mut plan = Plan::new(Target::Gguf, None);
        plan.set_recipe(recipe.and_then(|index| Recipe::all().nth(index)));
        let id = crate::format::all()[format].id();
        plan.set_exact(subject(&tensors), &[&tensors[0].name], Treatment::format(id).expect("id")).expect("edit");
        let resolved = resolve_for(&plan, subject(&tensors)).expect("total");
        prop_assert_eq!(resolved.decisions.len(), tensors.len());
        for (decision, tensor) in resolved.decisions.iter().zip(&tensors) {
            let row_bytes = decision.dtype.row_bytes(tensor.row_len());
            prop_assert!(row_bytes.is_some(), "{:?} cannot hold {:?}", decision.dtype, tensor.shape);
            let rows: usize = tensor.shape.iter().rev().skip(1).product();
            prop_assert_eq!(decision.new_bytes, (rows * row_bytes.expect("checked")) as u64);
            prop_assert!(!decision.sentence().is_empty());
        }
        prop_assert_eq!(resolved.new_bytes, resolved.decisions.iter().map(|decision| decision.new_bytes).sum::<u64>());
        prop_assert_eq!(resolved.old_bytes, tensors.iter().map(|tensor| tensor.byte_count).sum::<u64>());
        prop_assert!(resolved.padded_bytes >= resolved.new_bytes);
        prop_assert!(resolved.padded_bytes < resolved.new_bytes + 32 * tensors.len() as u64);
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "(version = 1\n)?(\\[\\[rule\\]\\]\n|[a-z]{1,8} = [\"0-9a-z*{}\\[]{0,9}\n|#.{0,9}\n){0,8}") {
        let _ = Plan::parse(&text, None);
    }
}

/// A figure, not a check: `cargo test --release --lib plan -- --ignored --nocapture`.
#[test]
#[ignore = "prints a duration"]
fn resolving_a_thousand_tensors_under_a_hundred_rules_is_quick() {
    let tensors = llama(125);
    let mut text = "version = 1\nrecipe = \"Q4_K_M\"\n".to_owned();
    for rule in 0..100 {
        text += &format!("[[rule]]\nmatch = \"model.layers.{rule}.*_proj.weight\"\nformat = \"q6_k\"\n");
    }
    let plan = parse(&text);
    for _ in 0..3 {
        let start = std::time::Instant::now();
        let resolved = resolve_for(&plan, subject(&tensors)).expect("resolves");
        println!("{} tensors in {:?}", resolved.decisions.len(), start.elapsed());
    }
}

#[test]
fn calibration_survives_editing_and_its_paths_start_at_the_plan() {
    let text = "version = 1\nrecipe = \"Q4_0\"\n\n[calibration]\nimatrix = \"a.gguf\" # mine\ncontext = 128\n";
    let path = std::path::Path::new("folder").join("plan.toml");
    let mut plan = Plan::parse(text, Some(&path)).expect("legal");
    let calibration = plan.calibration().expect("it has one").clone();
    assert_eq!(calibration.imatrix.as_deref(), Some(std::path::Path::new("folder").join("a.gguf").as_path()));
    assert_eq!((calibration.options.context, calibration.text.as_deref()), (Some(128), None));
    plan.set_recipe(Recipe::find("Q5_0"));
    assert!(plan.to_toml().contains("a.gguf\" # mine"), "{}", plan.to_toml());
    let before = plan.clone();
    plan.set_calibration(None);
    assert!(!plan.to_toml().contains("calibration") && plan != before);
    plan.set_calibration(Some(calibration));
    assert_eq!(plan, before);
    let again = parse(&plan.to_toml());
    assert_eq!(again.calibration(), plan.calibration(), "{}", plan.to_toml());
}

#[test]
fn importance_weights_what_heeds_it_unless_a_rule_says_rtn() {
    let tensors = llama(2);
    let calibration = "[calibration]\nimatrix = \"a.gguf\"\n";
    let rules = "[[rule]]\nrole = \"q\"\nformat = \"q4_k\"\nmethod = \"rtn\"\n[[rule]]\nrole = \"k\"\nformat = \"q8_0\"\n\
                 [[rule]]\nrole = \"v\"\nformat = \"q4_k\"\nmethod = \"imatrix\"\n";
    let plan = parse(&format!("version = 1\nrecipe = \"Q4_0\"\n{rules}{calibration}"));
    let resolved = resolve_for(&plan, subject(&tensors)).expect("resolves");
    assert!(resolved.has_importance);
    let method = |name: &str| decided(&resolved, &tensors, name).method;
    assert_eq!(method("0.self_attn.q_proj"), Method::Rtn);
    assert_eq!(method("0.self_attn.k_proj"), Method::Rtn, "q8_0 has no weighted search");
    assert_eq!(method("0.self_attn.v_proj"), Method::Imatrix);
    assert_eq!(method("0.mlp.up_proj"), Method::Imatrix);
    assert!(decided(&resolved, &tensors, "0.mlp.up_proj").sentence().contains("imatrix-weighted"));

    let plan = parse(&format!("version = 1\nrecipe = \"Q4_0\"\n{rules}"));
    let fault = fault(resolve_for(&plan, subject(&tensors)));
    assert!(fault.cause.contains("needs an importance matrix"), "{fault}");
    assert_eq!(fault.place.as_deref(), Some("line 13"), "{fault}");
}

#[test]
fn quantizing_again_names_what_is_lost_pair_by_pair() {
    let mut tensors = llama(2);
    for tensor in &mut tensors {
        if tensor.name.contains("mlp") {
            tensor.dtype = Dtype::Q4K;
            tensor.byte_count = tensor.weight_count() / 256 * 144;
        }
    }
    let plan = parse("version = 1\nrecipe = \"Q6_K\"\n[[rule]]\nrole = \"down\"\nformat = \"q3_k\"\n");
    let resolved = resolve_for(&plan, subject(&tensors)).expect("resolves");
    let warns = |words: &str| resolved.warnings.iter().filter(|text| text.contains(words)).count();
    assert_eq!(warns("q4_k → q6_k"), 1, "{:?}", resolved.warnings);
    assert_eq!(warns("q6_k takes more room and cannot bring back what q4_k lost"), 1, "{:?}", resolved.warnings);
    assert_eq!(warns("what q4_k lost stays lost and q3_k adds its own error"), 1, "{:?}", resolved.warnings);
}
