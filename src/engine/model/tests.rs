//! The two backends compared, operation by operation and as whole models.

use std::path::Path;

use super::backend::{Angles, Backend, Site, StoredMatrix};
use super::candle::{Broken, Candle, Precision};
use super::llama::{Hooks, Llama, Start};
use super::native::Native;
use super::{Batch, Change, Kept, KvCache, LayerInputs, Model, Replacement, load};
use crate::checkpoint::{Checkpoint, Role};
use crate::device::Device;
use crate::format::Dtype;
use crate::kernels::attention::Heads;
use crate::progress::Progress;

fn wave(len: usize, step: f32) -> Vec<f32> {
    (0..len).map(|at| (at as f32 * step + 0.3).sin()).collect()
}

fn stored(rows: usize, cols: usize, step: f32) -> StoredMatrix {
    let bytes = wave(rows * cols, step).iter().flat_map(|value| value.to_le_bytes()).collect();
    StoredMatrix { dtype: Dtype::F32, rows, cols, bytes }
}

#[track_caller]
fn assert_close(what: &str, ours: &[f32], theirs: &[f32]) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (at, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert!((a - b).abs() < 1e-4 * (1.0 + b.abs()), "{what} at {at}: {a} {b}");
    }
}

/// What each operation gives on a backend, from the same inputs.
fn operations<B: Backend>(backend: &B) -> Vec<(&'static str, Vec<f32>)> {
    let (tokens, width, kv_width) = (11, 24, 12);
    let rows = |len: usize, step| backend.rows_from(wave(tokens * len, step), len).expect("rows");
    let host = |rows: &B::Rows| backend.rows_to(rows).expect("values");
    let heads = Heads { heads: 4, kv_heads: 2, head_dim: 6 };
    let table = backend.matrix(stored(50, width, 0.37)).expect("matrix");
    let bias = backend.vector(wave(7, 0.9)).expect("vector");
    let weight = backend.matrix(stored(7, width, 0.11)).expect("matrix");
    let norm = backend.vector(wave(width, 0.5)).expect("vector");
    let mut out = Vec::new();
    out.push(("embed", host(&backend.embed(&table, &[3, 0, 49]).expect("embeds"))));
    out.push(("rms_norm", host(&backend.rms_norm(&rows(width, 0.7), &norm, 1e-5).expect("norms"))));
    for y in backend.linears(&[(&weight, Some(&bias)), (&weight, None)], &rows(width, 0.21)).expect("multiplies") {
        out.push(("linears", host(&y)));
    }
    let mut rotated = rows(width, 0.33);
    let angles = Angles { head_dim: 6, cos: wave(tokens * 3, 0.8), sin: wave(tokens * 3, 0.6) };
    let turns = backend.turns(angles).expect("turns");
    backend.rope(&mut rotated, &turns).expect("rotates");
    out.push(("rope", host(&rotated)));
    let mut batch = Batch::default();
    let prompt = batch.push(&[1; 4], None, None);
    batch.push(&[2; 3], Some(prompt), None);
    batch.push(&[3; 4], None, Some(0));
    let mut caches = vec![KvCache::default()];
    for _ in 0..2 {
        // The second time, the cache holds what the first left.
        let (q, k, v) = (rows(width, 0.9), rows(kv_width, 0.4), rows(kv_width, 0.7));
        out.push(("attention", host(&backend.attention(heads, 0, &batch, &mut caches, &q, &k, &v).expect("attends"))));
    }
    out.push(("gated", host(&backend.gated(rows(width, 0.3), &rows(width, 0.8)).expect("gates"))));
    out.push(("add", host(&backend.add(rows(width, 0.3), &rows(width, 0.8)).expect("adds"))));
    out
}

#[test]
fn both_backends_give_the_same_result_for_every_operation() {
    for ((name, ours), (_, theirs)) in operations(&Native).iter().zip(&operations(&Candle::cpu())) {
        assert_close(name, ours, theirs);
    }
}

#[test]
fn both_backends_give_the_same_hidden_states_of_a_model() {
    for name in ["biases", "rope_llama3"] {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
            .join("tests/fixtures")
            .join(format!("tiny_llama_{name}"));
        let checkpoint = Checkpoint::open(&folder).expect("opens");
        let progress = Progress::default();
        let mut batch = Batch::default();
        batch.push(&[5, 17, 2, 90, 44, 8, 8, 61], None, None);
        let native = load::llama(&checkpoint, Native, &progress).expect("loads");
        let candle = load::llama(&checkpoint, Candle::cpu(), &progress).expect("loads");
        let ours = native.run(&batch, &mut [], Start::Embedding, &mut Hooks::default()).expect("runs");
        let ours = native.backend.rows_into(ours).expect("values");
        let theirs = candle.run(&batch, &mut [], Start::Embedding, &mut Hooks::default()).expect("runs");
        let theirs = candle.backend.rows_to(&theirs).expect("values");
        assert_close(name, &ours, &theirs);
    }
}

#[test]
fn gradients_reach_every_weight_on_candle() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("tests/fixtures/tiny_llama_biases");
    let checkpoint = Checkpoint::open(&folder).expect("opens");
    let mut graph: Llama<Candle> = load::llama(&checkpoint, Candle::cpu(), &Progress::default()).expect("loads");
    let mut vars = Vec::new();
    let mut track = |slot: &mut candle_core::Tensor| {
        let variable = candle_core::Var::from_tensor(slot).expect("variable");
        *slot = variable.as_tensor().clone();
        vars.push(variable);
    };
    track(graph.embedding.dense().expect("in f32"));
    track(&mut graph.norm);
    for layer in &mut graph.layers {
        let linears =
            [&mut layer.q, &mut layer.k, &mut layer.v, &mut layer.o, &mut layer.gate, &mut layer.up, &mut layer.down];
        linears.into_iter().for_each(|affine| track(affine.0.dense().expect("in f32")));
        [&mut layer.attention_norm, &mut layer.mlp_norm].into_iter().for_each(&mut track);
    }
    let mut batch = Batch::default();
    batch.push(&[5, 17, 2, 90, 44, 8], None, None);
    let hidden = graph.run(&batch, &mut [], Start::Embedding, &mut Hooks::default()).expect("runs");
    let logits = graph.logits(&hidden, &Hooks::default()).expect("logits");
    let loss = logits.sqr().and_then(|squares| squares.sum_all()).expect("loss");
    let gradients = loss.backward().expect("backward");
    for (index, variable) in vars.iter().enumerate() {
        let gradient = gradients.get(variable).unwrap_or_else(|| panic!("weight {index} has no gradient"));
        let size = gradient.sqr().and_then(|squares| squares.sum_all()).and_then(|sum| sum.to_scalar::<f32>());
        assert!(size.expect("size") > 0.0, "the gradient of weight {index} is zero");
    }
}

#[test]
fn a_run_that_begins_inside_the_network_gives_what_a_whole_run_gives() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("tests/fixtures/tiny_llama_biases");
    let checkpoint = Checkpoint::open(&folder).expect("opens");
    let progress = Progress::default();
    let model = Model::load(&checkpoint, &progress).expect("loads");
    let mut batch = Batch::default();
    batch.push(&[5, 17, 2, 90, 44, 8, 8, 61], None, None);
    let whole = model.hidden(&batch, &mut [], &progress).expect("runs");
    let heads = model.config.layers[1].heads;
    let scaled = |factor: f32| Change { head_factors: vec![(1, vec![factor; heads])], ..Change::default() };
    let removed = Change { removed_layers: vec![1], ..Change::default() };
    for kept in [Kept::Nothing, Kept::Layers, Kept::Everything] {
        let (hidden, inputs) = model.hidden_keeping(&batch, kept, &progress).expect("runs");
        assert_eq!(hidden, whole, "{kept:?}");
        assert_eq!(inputs.input(2).is_some(), kept != Kept::Nothing);
        let with = |change: &Change| model.hidden_with(&batch, &inputs, change, &progress).expect("runs");
        assert_eq!(with(&scaled(1.0)), whole, "{kept:?}: a factor of one changes nothing");
        assert_ne!(with(&scaled(0.5)), whole);
        let without = with(&removed);
        let from_tokens = model.hidden_with(&batch, &LayerInputs::default(), &removed, &progress).expect("runs");
        assert!(without == from_tokens && without != whole, "{kept:?}");
    }
    let refused = |change: Change| {
        let ended = model.hidden_with(&batch, &LayerInputs::default(), &change, &progress);
        ended.expect_err("refused").to_string()
    };
    assert!(refused(Change { removed_layers: vec![9], ..Change::default() }).contains("no layer 9 among 2"));
    let short = Change { head_factors: vec![(0, vec![1.0])], ..Change::default() };
    assert!(refused(short).contains("1 factors for the 4 heads"));
}

/// The demo in a format, written by a pass.
fn demo_as(format: &str, folder: &Path) -> Checkpoint {
    let demo = Checkpoint::open(&Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("assets/demo"));
    let demo = demo.expect("the demo opens");
    let text = format!("version = 1\ntarget = \"gguf\"\n[default]\nformat = \"{format}\"\n");
    let plan = crate::plan::Plan::parse(&text, None).expect("a plan");
    let resolved = crate::plan::resolve(&plan, &demo).expect("resolves");
    let output = folder.join(format!("{format}.gguf"));
    crate::pass::run(&demo, &resolved, &output, &Default::default(), &Progress::default()).expect("writes");
    Checkpoint::open(&output).expect("opens")
}

/// By how much two lists differ, as a share of the second's length as a vector.
fn distance(ours: &[f32], theirs: &[f32]) -> f64 {
    let sum = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let differences = &mut ours.iter().zip(theirs).map(|(a, b)| f64::from(a - b));
    (sum(differences) / sum(&mut theirs.iter().map(|&value| f64::from(value)))).sqrt()
}

/// A device that is candle on the CPU, with so much memory.
fn candle(memory: Option<u64>) -> Device {
    Device::for_models(crate::device::ModelDevice::for_test(memory))
}

#[test]
fn a_model_on_a_device_gives_what_the_cpu_gives_whatever_its_weights_are_stored_as() {
    let folder = tempfile::tempdir().expect("a folder");
    let progress = Progress::default();
    let ids: Vec<u32> = (0..96).map(|at| (at * 37 + 11) % 512).collect();
    // Plain weights agree to the rounding of f32; quantized products also round their inputs, each kernel by itself.
    for (format, most) in [
        ("f32", 1e-4),
        ("bf16", 1e-4),
        ("q8_0", 0.02),
        ("q4_0", 0.02),
        ("q4_k", 0.02),
        ("q6_k", 0.02),
        ("iq4_nl", 0.02),
    ] {
        let checkpoint = demo_as(format, folder.path());
        let mut batch = Batch::default();
        let prompt = batch.push(&ids[..40], None, None);
        batch.push(&ids[40..60], Some(prompt), None);
        batch.push(&ids[60..], None, Some(0));
        let run = |device: &Device| {
            let model = Model::load_on(&checkpoint, device, &progress).expect("loads");
            let mut caches = vec![KvCache::default()];
            let hidden = model.hidden(&batch, &mut caches, &progress).expect("runs");
            let mut next = Batch::default();
            next.push(&[5, 9], None, Some(0));
            let after = model.hidden(&next, &mut caches, &progress).expect("goes on");
            caches[0].truncate(36);
            let again = model.hidden(&next, &mut caches, &progress).expect("goes on");
            let repeated = distance(&again, &after);
            assert!(repeated < 1e-5, "{format}: a cache that was cut back gives the same: {repeated}");
            let logits = model.logits(&hidden[..model.config.hidden * 7]).expect("logits");
            (hidden, after, logits, model.device())
        };
        let (hidden, after, logits, device) = run(&Device::default());
        assert_eq!(device, "cpu");
        // With little memory, most matrices go up for every product.
        for memory in [None, Some(64 << 20), Some(1)] {
            let found = run(&candle(memory));
            assert_eq!(found.3.contains("streamed"), memory == Some(1), "{format}: {}", found.3);
            for (what, ours, theirs) in
                [("hidden", &found.0, &hidden), ("after", &found.1, &after), ("logits", &found.2, &logits)]
            {
                let distance = distance(ours, theirs);
                assert!(distance < most, "{format} {memory:?}: {what} differ by {distance}");
            }
        }
    }
}

#[test]
fn sixteen_bit_products_stay_near_those_of_f32() {
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoint = demo_as("bf16", folder.path());
    let progress = Progress::default();
    let mut batch = Batch::default();
    batch.push(&(0..64).map(|at| (at * 29 + 3) % 512).collect::<Vec<u32>>(), None, None);
    let of = |precision| {
        let backend = Candle::new(candle_core::Device::Cpu, precision, u64::MAX);
        let graph = load::llama(&checkpoint, backend, &progress).expect("loads");
        let rows = graph.run(&batch, &mut [], Start::Embedding, &mut Hooks::default()).expect("runs");
        graph.backend.rows_into(rows).expect("values")
    };
    let distance = distance(&of(Precision::Stored), &of(Precision::Wide));
    assert!(distance > 0.0 && distance < 0.02, "{distance}");
}

#[test]
fn a_change_on_a_device_has_the_effect_that_it_has_on_the_cpu() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("tests/fixtures/tiny_llama_biases");
    let checkpoint = Checkpoint::open(&folder).expect("opens");
    let progress = Progress::default();
    let mut batch = Batch::default();
    batch.push(&[5, 17, 2, 90, 44, 8, 8, 61], None, None);
    let tensor = checkpoint.tensor("model.layers.1.mlp.down_proj.weight").expect("named");
    let (rows, cols) = (tensor.row_count(), tensor.row_len());
    let run = |device: &Device| {
        let model = Model::load_on(&checkpoint, device, &progress).expect("loads");
        let heads = model.config.layers[0].heads;
        let site = Site { layer: Some(1), role: Role::Down };
        let swapped = Replacement::new(&model, site, stored(rows, cols, 0.013)).expect("fits");
        let changes = [
            Change::from(swapped),
            Change { head_factors: vec![(0, vec![0.5; heads])], ..Change::default() },
            Change { removed_layers: vec![1], ..Change::default() },
        ];
        let (whole, inputs) = model.hidden_keeping(&batch, Kept::Everything, &progress).expect("runs");
        let mut out = vec![whole, inputs.input(1).expect("kept").into_owned()];
        for change in &changes {
            out.push(model.hidden_with(&batch, &inputs, change, &progress).expect("runs"));
        }
        let mut seen = Vec::new();
        model.watch_linears(&batch, &progress, &mut |input| seen.extend_from_slice(input.values)).expect("runs");
        out.push(seen);
        out
    };
    for (index, (ours, theirs)) in run(&candle(None)).iter().zip(&run(&Device::default())).enumerate() {
        assert_close(&format!("part {index}"), ours, theirs);
    }
}

#[test]
fn a_device_that_fails_leaves_its_work_and_its_caches_to_the_cpu() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("tests/fixtures/tiny_llama_biases");
    let checkpoint = Checkpoint::open(&folder).expect("opens");
    let progress = Progress::default();
    let model = Model::load_on(&checkpoint, &candle(None), &progress).expect("loads");
    let reference = Model::load(&checkpoint, &progress).expect("loads");
    let (mut caches, mut expected) = (vec![KvCache::default()], vec![KvCache::default()]);
    let run = |model: &Model, ids: &[u32], caches: &mut [KvCache]| {
        let mut batch = Batch::default();
        batch.push(ids, None, Some(0));
        model.hidden(&batch, caches, &progress).expect("runs")
    };
    assert_close("before", &run(&model, &[5, 17, 2], &mut caches), &run(&reference, &[5, 17, 2], &mut expected));
    assert_eq!(model.device(), "candle on the CPU (candle)");
    model.graph.device().expect("still computes").break_for_test(broken_after(0));
    assert_close("after", &run(&model, &[90, 44], &mut caches), &run(&reference, &[90, 44], &mut expected));
    assert!(model.device().contains("then cpu") && model.device().contains("broken"), "{}", model.device());
    assert_close("later", &run(&model, &[8], &mut caches), &run(&reference, &[8], &mut expected));
    // A device that cannot even load is not asked again.
    let refused =
        Replacement::new(&model, Site { layer: Some(0), role: Role::Q }, stored(1, 1, 0.1)).expect("for the CPU");
    assert_eq!(refused.site().layer, Some(0));
}

/// A device of which so many further products succeed.
fn broken_after(products: usize) -> Broken {
    Broken { products_left: Some(products), ..Broken::default() }
}

/// An input of linears: layer, first role, values.
type Seen = Vec<(Option<usize>, Role, Vec<f32>)>;

#[track_caller]
fn assert_same_inputs(what: &str, ours: &Seen, theirs: &Seen) {
    let places = |seen: &Seen| seen.iter().map(|(layer, role, _)| (*layer, *role)).collect::<Vec<_>>();
    assert_eq!(places(ours), places(theirs), "{what}");
    for ((_, _, ours), (_, _, theirs)) in ours.iter().zip(theirs) {
        assert_close(what, ours, theirs);
    }
}

#[test]
fn a_device_that_fails_at_any_product_of_a_watched_run_shows_every_input_once() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("tests/fixtures/tiny_llama_biases");
    let checkpoint = Checkpoint::open(&folder).expect("opens");
    let progress = Progress::default();
    let reference = Model::load(&checkpoint, &progress).expect("loads");
    let mut batch = Batch::default();
    batch.push(&[5, 17, 2], None, None);
    batch.push(&[44, 8, 61, 7], None, None);
    let layers = reference.config.layers.len();
    let whole = |model: &Model| {
        let mut seen = Seen::new();
        let mut watch = |input: super::LinearInput<'_>| {
            seen.push((input.layer, input.roles[0], input.values.to_vec()));
        };
        model.watch_linears(&batch, &progress, &mut watch).expect("runs");
        seen
    };
    let in_parts = |model: &Model| {
        let mut seen = Seen::new();
        let mut states = Vec::new();
        for layer in 0..layers {
            let mut watch = |input: super::LinearInput<'_>| {
                seen.push((input.layer, input.roles[0], input.values.to_vec()));
            };
            let from = (layer > 0).then_some((layer, states.as_slice()));
            states = model.watch_layers(&batch, from, layer + 1, &progress, &mut watch).expect("runs");
        }
        (seen, states)
    };
    let (expected, (expected_parts, expected_states)) = (whole(&reference), in_parts(&reference));
    assert_eq!(expected.len(), 4 * layers + 1, "four inputs a layer, and the head's");
    // Seven products a layer; the head is shown and not multiplied.
    for products in 0..=7 * layers {
        for panics in [false, true] {
            let broken = || {
                let model = Model::load_on(&checkpoint, &candle(None), &progress).expect("loads");
                let how = Broken { panics, ..broken_after(products) };
                model.graph.device().expect("computes").break_for_test(how);
                model
            };
            let what = format!("{products} products");
            let model = broken();
            assert_same_inputs(&what, &whole(&model), &expected);
            let is_left = products < 7 * layers;
            assert_eq!(model.device().contains("then cpu"), is_left, "{what}: {}", model.device());
            let model = broken();
            let (seen, states) = in_parts(&model);
            assert_same_inputs(&what, &seen, &expected_parts);
            assert_close(&what, &states, &expected_states);
            assert_eq!(model.device().contains("then cpu"), is_left, "{what}: {}", model.device());
        }
    }
}

#[test]
fn a_panic_of_whoever_watches_is_no_failure_of_the_device() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("tests/fixtures/tiny_llama_biases");
    let checkpoint = Checkpoint::open(&folder).expect("opens");
    let progress = Progress::default();
    let model = Model::load_on(&checkpoint, &candle(None), &progress).expect("loads");
    let mut batch = Batch::default();
    batch.push(&[5, 17, 2], None, None);
    let run = || model.watch_linears(&batch, &progress, &mut |_| panic!("a mistake of ours"));
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).expect_err("it goes through");
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"a mistake of ours"));
    assert_eq!(model.device(), "candle on the CPU (candle)");
}

#[test]
fn caches_that_a_lost_device_does_not_give_back_are_computed_again() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("tests/fixtures/tiny_llama_biases");
    let checkpoint = Checkpoint::open(&folder).expect("opens");
    let progress = Progress::default();
    let reference = Model::load(&checkpoint, &progress).expect("loads");
    let run = |model: &Model, ids: &[u32], parent: Option<&[u32]>, caches: &mut [KvCache]| {
        let mut batch = Batch::default();
        let parent = parent.map(|ids| batch.push(ids, None, None));
        batch.push(ids, parent, Some(0));
        model.hidden(&batch, caches, &progress)
    };
    let lost = || {
        let model = Model::load_on(&checkpoint, &candle(None), &progress).expect("loads");
        let how = Broken { is_unreadable: true, ..broken_after(0) };
        (model, how)
    };
    let (model, how) = lost();
    let (mut caches, mut expected) = (vec![KvCache::default()], vec![KvCache::default()]);
    for (model, caches) in [(&model, &mut caches), (&reference, &mut expected)] {
        run(model, &[5, 17, 2, 61], None, caches).expect("runs");
        // A token that was tried and taken back is not computed again.
        caches[0].truncate(3);
        run(model, &[8], None, caches).expect("runs");
    }
    model.graph.device().expect("computes").break_for_test(how);
    let ours = run(&model, &[90, 44], None, &mut caches).expect("goes on");
    assert_close("lost", &ours, &run(&reference, &[90, 44], None, &mut expected).expect("runs"));
    assert_eq!((caches[0].len(), caches[0].ids.as_slice()), (6, &[5, 17, 2, 8, 90, 44][..]));
    assert!(model.device().contains("then cpu") && model.device().contains("broken"), "{}", model.device());
    let ours = run(&model, &[7], None, &mut caches).expect("goes on");
    assert_close("later", &ours, &run(&reference, &[7], None, &mut expected).expect("runs"));

    // What such tokens continue is not held, so that they cannot be computed again.
    let (model, how) = lost();
    let mut caches = vec![KvCache::default()];
    run(&model, &[5, 17], Some(&[2, 61]), &mut caches).expect("runs");
    model.graph.device().expect("computes").break_for_test(how);
    let error = run(&model, &[7], None, &mut caches).expect_err("nothing is left of it");
    assert!(error.is_of_device() && error.to_string().contains("unreadable"), "{error}");

    // Before the first token there is nothing to lose, and nothing that the device made.
    let (model, how) = lost();
    model.graph.device().expect("computes").break_for_test(how);
    let ours = run(&model, &[5, 17], None, &mut [KvCache::default()]).expect("goes on");
    assert_close("at once", &ours, &run(&reference, &[5, 17], None, &mut [KvCache::default()]).expect("runs"));
    assert!(model.device().starts_with("cpu (") && !model.device().contains("then"), "{}", model.device());
}
