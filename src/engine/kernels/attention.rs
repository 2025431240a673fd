//! Causal attention with grouped queries over several stretches of keys.
//!
//! A run of tokens sees the stretches before it whole (a cache, a shared prompt) and itself
//! causally, so many answers can share one prompt without copying its keys.
//!
//! A task takes a few tokens and the query heads that share a key head. Scores and outputs are
//! tiles of rows × columns in registers, over panels of keys and values that are laid out once for
//! all rows of the task; scores of a row are kept whole, so that the softmax is the plain one.

use rayon::prelude::*;

use super::shared_out::SharedOut;
use super::{Level, ops};

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

/// Tokens that one task works on.
const TOKENS: usize = 32;

/// Columns of a tile of scores or of output.
const COLS: usize = 16;

/// Query rows of a tile; their accumulators fit the registers.
const ROWS: usize = 4;

/// From this many query rows on it pays to lay keys and values out for tiles.
const MANY_ROWS: usize = 8;

/// Products below which the work is not spread over threads.
const SMALL: usize = 1 << 15;

/// One task: some tokens of a run, and the query heads that share a key head.
struct Task {
    run: usize,
    first: usize,
    count: usize,
    kv_head: usize,
}

/// Buffers that one thread reuses from task to task.
#[derive(Default)]
struct Buffers {
    /// Scaled query rows, `head_dim` each: the heads of the first token, of the second …
    queries: Vec<f32>,
    /// Transposed keys of one panel: `head_dim × COLS`.
    panel: Vec<f32>,
    /// Scores and then weights of each query row, at a stride of whole panels.
    scores: Vec<f32>,
    /// One panel of values: `keys × COLS`.
    values: Vec<f32>,
    /// Outputs of the query rows.
    mixed: Vec<f32>,
}

/// Attention of every run: `q` is tokens × (heads × head_dim), `k` and `v` tokens × (kv_heads × head_dim).
pub fn attend(shape: Heads, runs: &[Run<'_>], q: &[f32], k: &[f32], v: &[f32], out: &mut [f32]) {
    attend_at(Level::detect(), shape, runs, q, k, v, out);
}

/// [`attend`] at a given instruction level, which the CPU must have.
pub fn attend_at(level: Level, shape: Heads, runs: &[Run<'_>], q: &[f32], k: &[f32], v: &[f32], out: &mut [f32]) {
    let width = shape.heads * shape.head_dim;
    let kv_width = shape.kv_heads * shape.head_dim;
    let target = SharedOut::new(out);
    let mut tasks = Vec::new();
    let mut products = 0;
    for (run, Run { len, past, .. }) in runs.iter().enumerate() {
        products += len * (len + past.iter().map(|past| past.keys.len() / kv_width.max(1)).sum::<usize>()) * width;
        for first in (0..*len).step_by(TOKENS) {
            let count = TOKENS.min(len - first);
            tasks.extend((0..shape.kv_heads).map(|kv_head| Task { run, first, count, kv_head }));
        }
    }
    let work = |buffers: &mut Buffers, task: &Task| {
        let run = &runs[task.run];
        let own = run.start * kv_width..(run.start + task.first + task.count) * kv_width;
        let mut stretches = run.past.clone();
        stretches.push(Past { keys: &k[own.clone()], values: &v[own] });
        let token = run.start + task.first;
        let view = View {
            shape,
            queries: &q[token * width..(token + task.count) * width],
            stretches: &stretches,
            kv_head: task.kv_head,
        };
        attend_block(level, &view, buffers);
        let group = shape.heads / shape.kv_heads;
        for (row, values) in buffers.mixed.chunks_exact(shape.head_dim).enumerate() {
            let at = (token + row / group) * width + (task.kv_head * group + row % group) * shape.head_dim;
            for (lane, &value) in values.iter().enumerate() {
                // SAFETY: each task owns the places of its tokens and heads.
                unsafe { target.write(at + lane, value) };
            }
        }
    };
    if products < SMALL {
        let mut buffers = Buffers::default();
        tasks.iter().for_each(|task| work(&mut buffers, task));
    } else {
        tasks.par_iter().for_each_init(Buffers::default, work);
    }
}

/// What the queries of one task see; its tokens are the last ones of the last stretch.
struct View<'a> {
    shape: Heads,
    /// Tokens × (heads × head_dim).
    queries: &'a [f32],
    stretches: &'a [Past<'a>],
    kv_head: usize,
}

impl<'a> View<'a> {
    /// The rows of this head's keys, oldest first.
    #[inline(always)]
    fn keys(&self) -> impl Iterator<Item = &'a [f32]> {
        self.rows(|stretch| stretch.keys)
    }

    /// The rows of this head's values, oldest first.
    #[inline(always)]
    fn values(&self) -> impl Iterator<Item = &'a [f32]> {
        self.rows(|stretch| stretch.values)
    }

    #[inline(always)]
    fn rows(&self, part: impl Fn(&Past<'a>) -> &'a [f32]) -> impl Iterator<Item = &'a [f32]> {
        let head_dim = self.shape.head_dim;
        let (width, offset) = (self.shape.kv_heads * head_dim, self.kv_head * head_dim);
        let rows = self.stretches.iter().flat_map(move |stretch| part(stretch).chunks_exact(width));
        rows.map(move |row| &row[offset..offset + head_dim])
    }
}

/// `sums[row][col] += Σ weights[row][i] × panel[i][col]`, in the order of `i`; with one rounding a
/// term where the processor has an instruction for it.
#[inline(always)]
fn tile<const FUSED: bool>(weights: [&[f32]; ROWS], panel: &[[f32; COLS]], sums: &mut [[f32; COLS]; ROWS]) {
    let add = |sums: &mut [f32; COLS], weight: f32, cols: &[f32; COLS]| {
        for col in 0..COLS {
            sums[col] = if FUSED { weight.mul_add(cols[col], sums[col]) } else { sums[col] + weight * cols[col] };
        }
    };
    let [a, b, c, d] = weights.map(|row| &row[..panel.len()]);
    let [mut sum_a, mut sum_b, mut sum_c, mut sum_d] = *sums;
    for (at, cols) in panel.iter().enumerate() {
        add(&mut sum_a, a[at], cols);
        add(&mut sum_b, b[at], cols);
        add(&mut sum_c, c[at], cols);
        add(&mut sum_d, d[at], cols);
    }
    *sums = [sum_a, sum_b, sum_c, sum_d];
}

/// Up to [`ROWS`] rows of a matrix; the last one again where there are fewer.
#[inline(always)]
fn four_rows(matrix: &[f32], stride: usize, first: usize, rows: usize) -> [&[f32]; ROWS] {
    [0, 1, 2, 3].map(|row: usize| &matrix[(first + row).min(rows - 1) * stride..][..stride])
}

#[inline(always)]
fn attend_block_body<const FUSED: bool>(view: &View<'_>, buffers: &mut Buffers) {
    let Heads { heads, kv_heads, head_dim } = view.shape;
    let Buffers { queries, panel, scores, values, mixed } = buffers;
    let (group, width) = (heads / kv_heads, heads * head_dim);
    let tokens = view.queries.len() / width;
    let rows = tokens * group;
    let scale = 1.0 / (head_dim as f32).sqrt();
    queries.clear();
    for token in view.queries.chunks_exact(width) {
        let own = &token[view.kv_head * group * head_dim..][..group * head_dim];
        queries.extend(own.iter().map(|value| value * scale));
    }
    let key_count = view.keys().count();
    // A token sees itself and what came before.
    let seen = |row: usize| key_count - tokens + row / group + 1;
    let stride = key_count.next_multiple_of(COLS);
    // Scores that nobody sees are read by tiles and must be numbers.
    scores.clear();
    scores.resize(rows * stride, 0.0);
    let is_many = rows >= MANY_ROWS;

    if is_many {
        panel.clear();
        panel.resize(head_dim * COLS, 0.0);
        let mut keys = view.keys();
        for first in (0..key_count).step_by(COLS) {
            let panel = panel.as_chunks_mut::<COLS>().0;
            for (col, key) in keys.by_ref().take(COLS).enumerate() {
                for (cols, &value) in panel.iter_mut().zip(key) {
                    cols[col] = value;
                }
            }
            for row in (0..rows).step_by(ROWS) {
                let last = (row + ROWS).min(rows);
                if seen(last - 1) <= first {
                    continue;
                }
                let mut sums = [[0.0; COLS]; ROWS];
                tile::<FUSED>(four_rows(queries, head_dim, row, rows), panel, &mut sums);
                for (row, sums) in (row..last).zip(&sums) {
                    scores[row * stride + first..][..COLS].copy_from_slice(sums);
                }
            }
        }
    } else {
        for (at, key) in view.keys().enumerate() {
            for (row, query) in queries.chunks_exact(head_dim).enumerate() {
                scores[row * stride + at] = ops::sum_of_products(query, key);
            }
        }
    }

    for (row, scores) in scores.chunks_exact_mut(stride).enumerate() {
        let (seen, unseen) = scores.split_at_mut(seen(row));
        ops::softmax(seen);
        unseen.fill(0.0);
    }

    mixed.clear();
    mixed.resize(rows * head_dim, 0.0);
    for first in (0..head_dim).step_by(COLS) {
        let cols = COLS.min(head_dim - first);
        values.clear();
        values.resize(key_count * COLS, 0.0);
        let panel = values.as_chunks_mut::<COLS>().0;
        for (place, value) in panel.iter_mut().zip(view.values()) {
            place[..cols].copy_from_slice(&value[first..first + cols]);
        }
        for row in (0..rows).step_by(ROWS) {
            let last = (row + ROWS).min(rows);
            let mut sums = [[0.0; COLS]; ROWS];
            tile::<FUSED>(four_rows(scores, stride, row, rows), &panel[..seen(last - 1)], &mut sums);
            for (row, sums) in (row..last).zip(&sums) {
                mixed[row * head_dim + first..][..cols].copy_from_slice(&sums[..cols]);
            }
        }
    }
}

/// Scores, softmax and outputs of one task.
fn attend_block(level: Level, view: &View<'_>, buffers: &mut Buffers) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn with_avx2(view: &View<'_>, buffers: &mut Buffers) {
            attend_block_body::<true>(view, buffers);
        }
        if level >= Level::Avx2 {
            // SAFETY: the level says that this CPU has AVX2, FMA and F16C.
            return unsafe { with_avx2(view, buffers) };
        }
    }
    let _ = level;
    // Every 64-bit ARM processor fuses; the baseline of x86-64 would have to call a function.
    attend_block_body::<{ cfg!(target_arch = "aarch64") }>(view, buffers);
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

    /// Softmax of the scaled products in f64, token by token.
    fn reference(shape: Heads, tokens: usize, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
        let Heads { heads, kv_heads, head_dim } = shape;
        let mut out = Vec::new();
        for token in 0..tokens {
            for head in 0..heads {
                let part = |matrix: &'_ [f32], row: usize, count: usize, head: usize| -> Vec<f64> {
                    matrix[(row * count + head) * head_dim..][..head_dim]
                        .iter()
                        .map(|&value| f64::from(value))
                        .collect()
                };
                let (query, kv_head) = (part(q, token, heads, head), head / (heads / kv_heads));
                let weights: Vec<f64> = (0..=token)
                    .map(|at| {
                        let key = part(k, at, kv_heads, kv_head);
                        let dot: f64 = query.iter().zip(&key).map(|(a, b)| a * b).sum();
                        (dot / (head_dim as f64).sqrt()).exp()
                    })
                    .collect();
                let total: f64 = weights.iter().sum();
                for lane in 0..head_dim {
                    let mixed = (0..=token).map(|at| weights[at] * part(v, at, kv_heads, kv_head)[lane]).sum::<f64>();
                    out.push(mixed / total);
                }
            }
        }
        out
    }

    #[test]
    fn every_shape_and_length_agrees_with_a_plain_softmax() {
        for (heads, kv_heads, head_dim) in [(1, 1, 8), (4, 4, 16), (4, 1, 64), (6, 2, 20), (3, 3, 5), (8, 2, 32)] {
            let shape = Heads { heads, kv_heads, head_dim };
            for tokens in [1, 2, 3, 15, 16, 17, 33, 70] {
                let q = wave(tokens * heads * head_dim, 0.37);
                let (k, v) = (wave(tokens * kv_heads * head_dim, 0.71), wave(tokens * kv_heads * head_dim, 0.13));
                let mut out = vec![f32::NAN; q.len()];
                attend(shape, &[Run { start: 0, len: tokens, past: vec![] }], &q, &k, &v, &mut out);
                let mut plain = vec![f32::NAN; q.len()];
                let run = Run { start: 0, len: tokens, past: vec![] };
                attend_at(Level::Portable, shape, &[run], &q, &k, &v, &mut plain);
                for (got, plain) in out.iter().zip(&plain) {
                    assert!((got - plain).abs() < 1e-5, "{shape:?} {tokens}: {got} {plain}");
                }
                for (got, expected) in out.iter().zip(reference(shape, tokens, &q, &k, &v)) {
                    assert!((f64::from(*got) - expected).abs() < 1e-5, "{shape:?} {tokens}: {got} {expected}");
                }
                if tokens > 1 {
                    // The last token alone, with the others behind it.
                    let (first, kv_width) = (tokens - 1, kv_heads * head_dim);
                    let past = vec![Past { keys: &k[..first * kv_width], values: &v[..first * kv_width] }];
                    let mut last = vec![f32::NAN; heads * head_dim];
                    let (q, k, v) = (&q[first * heads * head_dim..], &k[first * kv_width..], &v[first * kv_width..]);
                    attend(shape, &[Run { start: 0, len: 1, past }], q, k, v, &mut last);
                    for (got, expected) in last.iter().zip(&out[first * heads * head_dim..]) {
                        assert!((got - expected).abs() < 1e-5, "{shape:?} {tokens}: {got} {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_number_of_threads_changes_nothing() {
        let shape = Heads { heads: 8, kv_heads: 2, head_dim: 32 };
        let tokens = 90;
        let (q, k, v) = (wave(tokens * 256, 0.37), wave(tokens * 64, 0.71), wave(tokens * 64, 0.13));
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            let mut out = vec![0.0; tokens * 256];
            pool.install(|| {
                attend(shape, &[Run { start: 0, len: tokens, past: vec![] }], &q, &k, &v, &mut out);
            });
            out
        };
        assert_eq!(with(1), with(3));
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
