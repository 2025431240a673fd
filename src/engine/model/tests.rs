//! The two backends compared, operation by operation and as whole models.

use std::path::Path;

use super::backend::{Angles, Backend, StoredMatrix};
use super::candle::Candle;
use super::llama::{Hooks, Llama, Start};
use super::native::Native;
use super::{Batch, Change, Kept, KvCache, LayerInputs, Model, load};
use crate::checkpoint::Checkpoint;
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
        let ours = native.run(&batch, &mut [], Start::Embedding, &mut Hooks::default()).expect("runs").into_values();
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
    let var = |tensor: &candle_core::Tensor| candle_core::Var::from_tensor(tensor).expect("variable");
    let mut vars = vec![var(&graph.embedding), var(&graph.norm)];
    graph.embedding = vars[0].as_tensor().clone();
    graph.norm = vars[1].as_tensor().clone();
    for layer in &mut graph.layers {
        let linears =
            [&mut layer.q, &mut layer.k, &mut layer.v, &mut layer.o, &mut layer.gate, &mut layer.up, &mut layer.down];
        let norms = [&mut layer.attention_norm, &mut layer.mlp_norm];
        for slot in linears.into_iter().map(|affine| &mut affine.0).chain(norms) {
            let variable = var(slot);
            *slot = variable.as_tensor().clone();
            vars.push(variable);
        }
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
