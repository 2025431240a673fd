//! Causal attention with grouped queries over several stretches of keys.
//!
//! A run of tokens sees the stretches before it whole (a cache, a shared prompt) and itself
//! causally, so many answers can share one prompt without copying its keys.

use rayon::prelude::*;

use super::shared_out::SharedOut;
use super::{multiversion, ops};

/// Keys and values that a run of tokens sees in full; rows are `kv_heads × head_dim`.
#[derive(Clone, Copy, Debug)]
pub struct Past<'a> {
    /// One row a token.
    pub keys: &'a [f32],
    /// One row a token.
    pub values: &'a [f32],
}

/// A run of tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Run<'a> {
    /// First token in `q`, `k` and `v`.
    pub start: usize,
    /// Number of tokens.
    pub len: usize,
    /// What came before, oldest first.
    pub past: Vec<Past<'a>>,
}

/// Heads of one layer.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
}

/// Query rows that one task works on.
const ROWS: usize = 16;

/// Attention of every run: `q` is tokens × (heads × head_dim), `k` and `v` tokens × (kv_heads × head_dim).
pub fn attend(shape: Heads, runs: &[Run<'_>], q: &[f32], k: &[f32], v: &[f32], out: &mut [f32]) {
    let width = shape.heads * shape.head_dim;
    let target = SharedOut::new(out);
    let mut tasks = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        for first in (0..run.len).step_by(ROWS) {
            tasks.push((index, first, ROWS.min(run.len - first)));
        }
    }
    tasks.par_iter().for_each_init(
        || (Vec::new(), vec![0.0; shape.head_dim]),
        |(scores, mixed), &(index, first, count)| {
            let run = &runs[index];
            let kv_width = shape.kv_heads * shape.head_dim;
            let own = Past {
                keys: &k[run.start * kv_width..(run.start + run.len) * kv_width],
                values: &v[run.start * kv_width..(run.start + run.len) * kv_width],
            };
            for row in first..first + count {
                let token = run.start + row;
                for head in 0..shape.heads {
                    let query = &q[token * width + head * shape.head_dim..][..shape.head_dim];
                    let view = View { shape, past: &run.past, own, own_len: row + 1, head };
                    attend_one(&view, query, scores, mixed);
                    for (at, &value) in mixed.iter().enumerate() {
                        // SAFETY: each task owns the rows of its tokens.
                        unsafe { target.write(token * width + head * shape.head_dim + at, value) };
                    }
                }
            }
        },
    );
}

/// What one query of one head sees.
struct View<'a> {
    shape: Heads,
    past: &'a [Past<'a>],
    own: Past<'a>,
    own_len: usize,
    head: usize,
}

#[inline(always)]
fn attend_one_body(view: &View<'_>, query: &[f32], scores: &mut Vec<f32>, mixed: &mut [f32]) {
    let shape = view.shape;
    let kv_width = shape.kv_heads * shape.head_dim;
    let offset = view.head / (shape.heads / shape.kv_heads) * shape.head_dim;
    let scale = 1.0 / (shape.head_dim as f32).sqrt();
    scores.clear();
    for past in view.past {
        for key in past.keys.chunks_exact(kv_width) {
            scores.push(scale * ops::sum_of_products(query, &key[offset..offset + shape.head_dim]));
        }
    }
    for key in view.own.keys.chunks_exact(kv_width).take(view.own_len) {
        scores.push(scale * ops::sum_of_products(query, &key[offset..offset + shape.head_dim]));
    }
    ops::softmax(scores);
    mixed.fill(0.0);
    let own = view.own.values.chunks_exact(kv_width).take(view.own_len);
    let values = view.past.iter().flat_map(|past| past.values.chunks_exact(kv_width)).chain(own);
    for (value, &weight) in values.zip(scores.iter()) {
        for (mixed, &value) in mixed.iter_mut().zip(&value[offset..offset + shape.head_dim]) {
            *mixed += weight * value;
        }
    }
}

multiversion! {
    fn attend_one(view: &View<'_>, query: &[f32], scores: &mut Vec<f32>, mixed: &mut [f32]) => attend_one_body
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(len: usize, step: f32) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * step).sin()).collect()
    }

    #[test]
    fn splitting_a_sequence_into_past_and_run_changes_nothing() {
        let shape = Heads { heads: 4, kv_heads: 2, head_dim: 6 };
        let (tokens, width, kv_width) = (23, 24, 12);
        let (q, k, v) = (wave(tokens * width, 0.37), wave(tokens * kv_width, 0.71), wave(tokens * kv_width, 0.13));
        let mut whole = vec![0.0; tokens * width];
        attend(shape, &[Run { start: 0, len: tokens, past: vec![] }], &q, &k, &v, &mut whole);
        let (first, second) = (9, 14);
        let past = vec![
            Past { keys: &k[..4 * kv_width], values: &v[..4 * kv_width] },
            Past { keys: &k[4 * kv_width..first * kv_width], values: &v[4 * kv_width..first * kv_width] },
        ];
        let mut rest = vec![0.0; second * width];
        attend(
            shape,
            &[Run { start: 0, len: second, past }],
            &q[first * width..],
            &k[first * kv_width..],
            &v[first * kv_width..],
            &mut rest,
        );
        for (a, b) in whole[first * width..].iter().zip(&rest) {
            assert!((a - b).abs() < 1e-5);
        }
    }

    #[test]
    fn the_first_token_sees_only_itself() {
        let shape = Heads { heads: 2, kv_heads: 1, head_dim: 3 };
        let v = [1.0, 2.0, 3.0];
        let mut out = vec![0.0; 6];
        attend(shape, &[Run { start: 0, len: 1, past: vec![] }], &[0.5; 6], &[0.1; 3], &v, &mut out);
        for (at, value) in out.iter().enumerate() {
            assert!((value - v[at % 3]).abs() < 1e-6);
        }
    }
}
