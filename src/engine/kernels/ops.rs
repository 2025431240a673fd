//! The small operations of a decoder on rows of f32: norm, rotary embedding, gate, softmax.

use rayon::prelude::*;

use super::multiversion;

/// Values that are worth a task of their own.
const TASK: usize = 1 << 14;

/// Lanes that sums are split into, so that the compiler vectorizes them in a fixed order.
const LANES: usize = 16;

/// Combines all lanes, halves first.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], of: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = of(lanes[lane], lanes[lane + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// The largest of the values that are not NaN; −∞ of none.
#[inline(always)]
fn greatest(values: &[f32]) -> f32 {
    let greater = |value: f32, most: f32| if value > most { value } else { most };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (runs, rest) = values.as_chunks::<LANES>();
    for values in runs {
        for lane in 0..LANES {
            lanes[lane] = greater(values[lane], lanes[lane]);
        }
    }
    rest.iter().fold(fold(lanes, greater), |most, &value| greater(value, most))
}

#[inline(always)]
pub(super) fn sum_of_products(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (a_runs, a_rest) = a.as_chunks::<LANES>();
    let (b_runs, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_runs.iter().zip(b_runs) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    let mut total = fold(lanes, |a, b| a + b);
    for (a, b) in a_rest.iter().zip(b_rest) {
        total += a * b;
    }
    total
}

#[inline(always)]
fn rms_norm_body(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let mean = sum_of_products(x, x) / width as f32;
        let scale = 1.0 / (mean + eps).sqrt();
        for ((out, &x), &weight) in out.iter_mut().zip(x).zip(weight) {
            *out = weight * (x * scale);
        }
    }
}

multiversion! {
    pub(super) fn rms_norm_rows, rms_norm_rows_at(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) => rms_norm_body
}

/// RMSNorm of each row: `weight · x / √(mean(x²) + eps)`. Source: Zhang and Sennrich, 2019.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let task = (TASK / weight.len().max(1)).max(1) * weight.len().max(1);
    if x.len() <= task {
        return rms_norm_rows(x, weight, eps, out);
    }
    let tasks = x.par_chunks(task).zip(out.par_chunks_mut(task));
    tasks.for_each(|(x, out)| rms_norm_rows(x, weight, eps, out));
}

/// e^x to about 2 units in the last place, without a call, so that loops over it vectorize.
///
/// Splits x = n·ln 2 + r and takes a polynomial of degree 6 on r; results below 2^-126 are zero.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let clamped = x.clamp(-87.3, 88.7);
    let n = (clamped * std::f32::consts::LOG2_E + 12_582_912.0) - 12_582_912.0;
    let r = (clamped - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4f32;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5.0e-1;
    let value = p * r * r + r + 1.0;
    let power = f32::from_bits(((n as i32 + 127) << 23) as u32);
    if x < -87.3 { 0.0 } else { value * power }
}

#[inline(always)]
fn silu_mul_body(gate: &mut [f32], up: &[f32]) {
    for (gate, &up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp(-*gate)) * up;
    }
}

multiversion! {
    pub(super) fn silu_mul_run, silu_mul_run_at(gate: &mut [f32], up: &[f32]) => silu_mul_body
}

/// SwiGLU: `gate ← silu(gate) · up`. Source: Shazeer, "GLU variants improve transformer", 2020.
pub fn silu_mul(gate: &mut [f32], up: &[f32]) {
    if gate.len() <= TASK {
        return silu_mul_run(gate, up);
    }
    gate.par_chunks_mut(TASK).zip(up.par_chunks(TASK)).for_each(|(gate, up)| silu_mul_run(gate, up));
}

#[inline(always)]
fn add_body(x: &mut [f32], y: &[f32]) {
    for (x, &y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

multiversion! {
    pub(super) fn add_run, add_run_at(x: &mut [f32], y: &[f32]) => add_body
}

/// `x ← x + y`.
pub fn add(x: &mut [f32], y: &[f32]) {
    if x.len() <= TASK {
        return add_run(x, y);
    }
    x.par_chunks_mut(TASK).zip(y.par_chunks(TASK)).for_each(|(x, y)| add_run(x, y));
}

#[inline(always)]
fn rope_body(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    let half = head_dim / 2;
    for head in x.chunks_exact_mut(head_dim) {
        let (first, second) = head.split_at_mut(half);
        for pair in 0..half {
            let (a, b) = (first[pair], second[pair]);
            first[pair] = a * cos[pair] - b * sin[pair];
            second[pair] = b * cos[pair] + a * sin[pair];
        }
    }
}

multiversion! {
    pub(super) fn rope_token, rope_token_at(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) => rope_body
}

/// Rotates every head of every token, `width` values each; `cos` and `sin` have `head_dim / 2` values a
/// token. Pairs are (i, i + head_dim/2) as in Hugging Face's layout.
pub fn rope(x: &mut [f32], width: usize, head_dim: usize, cos: &[f32], sin: &[f32]) {
    let half = head_dim / 2;
    let tokens = (TASK / width.max(1)).max(1);
    let rotate = |(task, x): (usize, &mut [f32])| {
        for (token, x) in x.chunks_exact_mut(width.max(1)).enumerate() {
            let range = (task * tokens + token) * half..(task * tokens + token + 1) * half;
            rope_token(x, head_dim, &cos[range.clone()], &sin[range]);
        }
    };
    if x.len() <= tokens * width {
        return rotate((0, x));
    }
    x.par_chunks_mut(tokens * width).enumerate().for_each(rotate);
}

/// Turns scores into probabilities in place.
#[inline(always)]
pub(super) fn softmax(scores: &mut [f32]) {
    let most = greatest(scores);
    let mut lanes = [0.0f32; LANES];
    let (runs, rest) = scores.as_chunks_mut::<LANES>();
    for scores in runs {
        for lane in 0..LANES {
            scores[lane] = exp(scores[lane] - most);
            lanes[lane] += scores[lane];
        }
    }
    let mut total = fold(lanes, |a, b| a + b);
    for score in rest {
        *score = exp(*score - most);
        total += *score;
    }
    let inverse = 1.0 / total;
    for score in scores.iter_mut() {
        *score *= inverse;
    }
}

#[inline(always)]
fn log_sum_exp_body(logits: &[f32]) -> f32 {
    let most = greatest(logits);
    if !most.is_finite() {
        return most;
    }
    let mut total = 0.0f64;
    for run in logits.chunks(256) {
        let mut lanes = [0.0f32; LANES];
        let (runs, rest) = run.as_chunks::<LANES>();
        for values in runs {
            for lane in 0..LANES {
                lanes[lane] += exp(values[lane] - most);
            }
        }
        let mut sum = 0.0f32;
        for lane in lanes {
            sum += lane;
        }
        for &value in rest {
            sum += exp(value - most);
        }
        total += f64::from(sum);
    }
    most + (total.ln() as f32)
}

multiversion! {
    /// ln Σ e^logit, stable and in a fixed order; what turns logits into log-probabilities.
    pub fn log_sum_exp, log_sum_exp_at(logits: &[f32]) -> f32 => log_sum_exp_body
}

#[inline(always)]
fn kl_divergence_body(base: &[f32], base_lse: f32, other: &[f32], other_lse: f32) -> f64 {
    let mut total = 0.0f64;
    for (base, other) in base.chunks(256).zip(other.chunks(256)) {
        let mut lanes = [0.0f32; LANES];
        let (base_runs, base_rest) = base.as_chunks::<LANES>();
        let (other_runs, other_rest) = other.as_chunks::<LANES>();
        for (base, other) in base_runs.iter().zip(other_runs) {
            for lane in 0..LANES {
                let log_p = base[lane] - base_lse;
                lanes[lane] += exp(log_p) * (log_p - (other[lane] - other_lse));
            }
        }
        let mut sum = 0.0f32;
        for lane in lanes {
            sum += lane;
        }
        for (&base, &other) in base_rest.iter().zip(other_rest) {
            let log_p = base - base_lse;
            sum += exp(log_p) * (log_p - (other - other_lse));
        }
        total += f64::from(sum);
    }
    total
}

multiversion! {
    /// KL(base ‖ other) in nats from two rows of logits and their [`log_sum_exp`].
    pub fn kl_divergence, kl_divergence_at(base: &[f32], base_lse: f32, other: &[f32], other_lse: f32) -> f64 => kl_divergence_body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_the_library_over_its_whole_range() {
        for step in -8800..=8800 {
            let x = step as f32 / 100.0;
            let (got, expected) = (f64::from(exp(x)), f64::from(x).exp());
            if x >= -87.3 {
                assert!((got / expected - 1.0).abs() < 4e-7, "{x}: {got} {expected}");
            } else {
                assert_eq!(got, 0.0);
            }
        }
    }

    #[test]
    fn the_norm_of_a_row_has_unit_mean_square() {
        let x: Vec<f32> = (0..37).map(|i| i as f32 - 11.0).collect();
        let mut out = vec![0.0; 37];
        rms_norm(&x, &[1.0; 37], 0.0, &mut out);
        let mean: f32 = out.iter().map(|v| v * v).sum::<f32>() / 37.0;
        assert!((mean - 1.0).abs() < 1e-5);
    }

    #[test]
    fn rotation_keeps_lengths_and_is_undone_by_its_inverse() {
        let mut x: Vec<f32> = (0..16).map(|i| i as f32).collect();
        let angles = [0.3f32, 1.0, 2.0, 0.01];
        let cos = angles.map(f32::cos);
        let sin = angles.map(f32::sin);
        rope(&mut x, 16, 8, &cos, &sin);
        rope(&mut x, 16, 8, &cos, &sin.map(|s| -s));
        for (at, value) in x.iter().enumerate() {
            assert!((value - at as f32).abs() < 1e-4);
        }
    }

    #[test]
    fn long_inputs_are_those_of_their_rows() {
        let (width, tokens) = (96, 700);
        let x: Vec<f32> = (0..width * tokens).map(|i| ((i * 37 % 101) as f32 - 50.0) / 17.0).collect();
        let y: Vec<f32> = x.iter().rev().copied().collect();
        let weight: Vec<f32> = (0..width).map(|i| 1.0 + i as f32 / 50.0).collect();
        let angles: Vec<f32> = (0..tokens * 16).map(|i| i as f32 * 0.01).collect();
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|angle| (angle.cos(), angle.sin())).unzip();
        let mut normed = vec![0.0; x.len()];
        rms_norm(&x, &weight, 1e-5, &mut normed);
        let (mut gated, mut sum, mut rotated) = (x.clone(), x.clone(), x.clone());
        silu_mul(&mut gated, &y);
        add(&mut sum, &y);
        rope(&mut rotated, width, 32, &cos, &sin);
        for token in 0..tokens {
            let range = token * width..(token + 1) * width;
            let mut row = vec![0.0; width];
            rms_norm(&x[range.clone()], &weight, 1e-5, &mut row);
            assert_eq!(row, normed[range.clone()]);
            row.copy_from_slice(&x[range.clone()]);
            silu_mul(&mut row, &y[range.clone()]);
            assert_eq!(row, gated[range.clone()]);
            row.copy_from_slice(&x[range.clone()]);
            add(&mut row, &y[range.clone()]);
            assert_eq!(row, sum[range.clone()]);
            row.copy_from_slice(&x[range.clone()]);
            rope(&mut row, width, 32, &cos[token * 16..][..16], &sin[token * 16..][..16]);
            assert_eq!(row, rotated[range]);
        }
    }

    #[test]
    fn the_divergence_of_a_distribution_from_itself_is_zero() {
        let logits: Vec<f32> = (0..777).map(|i| ((i * 31 % 97) as f32) / 9.0).collect();
        let lse = log_sum_exp(&logits);
        let exact: f64 = logits.iter().map(|&v| f64::from(v).exp()).sum::<f64>().ln();
        assert!((f64::from(lse) - exact).abs() < 1e-5);
        assert_eq!(kl_divergence(&logits, lse, &logits, lse), 0.0);
        let other: Vec<f32> = logits.iter().rev().copied().collect();
        let other_lse = log_sum_exp(&other);
        let expected: f64 = logits
            .iter()
            .zip(&other)
            .map(|(&p, &q)| {
                let log_p = f64::from(p) - exact;
                log_p.exp() * (log_p - (f64::from(q) - exact))
            })
            .sum();
        let got = kl_divergence(&logits, lse, &other, other_lse);
        assert!((got / expected - 1.0).abs() < 1e-4, "{got} {expected}");
    }

    #[test]
    fn silu_of_zero_is_zero_and_large_values_pass() {
        let mut gate = [0.0, 20.0, -20.0];
        silu_mul(&mut gate, &[3.0, 2.0, 1.0]);
        assert_eq!(gate[0], 0.0);
        assert!((gate[1] - 40.0).abs() < 1e-3);
        assert!(gate[2].abs() < 1e-6);
    }
}
