//! The searches of `search` for eight runs at once, one a lane.
//!
//! Each lane does the reference's operations in the reference's order, branches become masks, so the
//! results are the same to the bit. Rounding is done on floats here, which is ggml's `nearest_int`
//! only below 2^22: every search bounds what it will round before it starts, and hands the eight runs
//! to the reference where the bound (or a value that is no number) forbids.

use super::lanes::{Lanes, eight, in_lanes};
use super::{Affine, GROUP_MAX_EPS, Steps, Symmetric};

/// Products up to this may be rounded by [`Lanes::rounded`], with room for the bound's own rounding.
const SAFE: f32 = 1_000_000.0;

/// [`super::with_minimum`] of eight neighbouring runs of `N` values.
#[inline(always)]
pub(in crate::kernels) fn with_minimum<L: Lanes, const N: usize>(
    values: &[f32],
    weights: &[f32],
    max_code: i32,
    steps: &Steps,
) -> [Affine; 8] {
    let in_eight = if steps.absolute_error {
        with_minimum_in_lanes::<L, N, true>(&in_lanes(values), &in_lanes(weights), max_code, steps)
    } else {
        with_minimum_in_lanes::<L, N, false>(&in_lanes(values), &in_lanes(weights), max_code, steps)
    };
    in_eight.unwrap_or_else(|| {
        std::array::from_fn(|run| {
            let range = run * N..(run + 1) * N;
            super::with_minimum(&values[range.clone()], &weights[range], max_code, steps)
        })
    })
}

/// True if products of values of this magnitude can be rounded in every lane.
#[inline(always)]
fn is_safe<L: Lanes>(inverse: L, magnitude: L) -> bool {
    L::splat(SAFE).greater(inverse.abs() * magnitude).all()
}

/// A weighted error.
#[inline(always)]
fn error<L: Lanes, const ABSOLUTE: bool>(difference: L, weight: L) -> L {
    weight * if ABSOLUTE { difference.abs() } else { difference * difference }
}

#[inline(always)]
fn with_minimum_in_lanes<L: Lanes, const N: usize, const ABSOLUTE: bool>(
    values: &[L; N],
    weights: &[L; N],
    max_code: i32,
    steps: &Steps,
) -> Option<[Affine; 8]> {
    let zero = L::splat(0.0);
    let top = L::splat(max_code as f32);
    let (mut min, mut max) = (values[0], values[0]);
    let mut sum_w = weights[0];
    let mut sum_x = sum_w * values[0];
    let mut magnitudes = values[0].abs();
    for (&value, &weight) in values.iter().zip(weights).skip(1) {
        min = value.least(min);
        max = value.most(max);
        sum_w = sum_w + weight;
        sum_x = sum_x + weight * value;
        magnitudes = magnitudes + value.abs();
    }
    min = zero.least(min);
    let is_flat = max.equal(min);
    let flat_minimum = min;
    // Flat runs go along with a range of one; what they find is dropped.
    let one = L::splat(1.0);
    let mut best_inverse = top / is_flat.choose(one, max - min);
    let mut best_shift = min;
    if !is_safe(best_inverse, magnitudes + min.abs()) {
        return None;
    }
    let mut best_scale = one / best_inverse;
    let mut best = zero;
    for (&value, &weight) in values.iter().zip(weights) {
        let l = (best_inverse * (value - min)).rounded().clamped(zero, top);
        best = best + error::<L, ABSOLUTE>((best_scale * l + min) - value, weight);
    }
    let mut trial = [zero; N];
    for step in 0..=steps.count {
        let inverse = L::splat(steps.top(step, max_code)) / is_flat.choose(one, max - min);
        if !is_safe(inverse, magnitudes + min.abs()) {
            return None;
        }
        let (mut sum_l, mut sum_l2, mut sum_xl) = (zero, zero, zero);
        for ((slot, &value), &weight) in trial.iter_mut().zip(values).zip(weights) {
            let l = (inverse * (value - min)).rounded().clamped(zero, top);
            *slot = l;
            let weighted = weight * l;
            sum_l = sum_l + weighted;
            sum_l2 = sum_l2 + weighted * l;
            sum_xl = sum_xl + weighted * value;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        let scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        let this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
        let is_above = this_min.greater(zero);
        let scale = is_above.choose(sum_xl / sum_l2, scale);
        let this_min = is_above.choose(zero, this_min);
        let mut current = zero;
        for ((&l, &value), &weight) in trial.iter().zip(values).zip(weights) {
            current = current + error::<L, ABSOLUTE>((scale * l + this_min) - value, weight);
        }
        let is_better = determinant.greater(zero).and(best.greater(current));
        best = is_better.choose(current, best);
        best_scale = is_better.choose(scale, best_scale);
        best_inverse = is_better.choose(inverse, best_inverse);
        best_shift = is_better.choose(min, best_shift);
        min = is_better.choose(this_min, min);
    }
    let scales = is_flat.choose(zero, best_scale).store();
    // Negated last, so that a zero gets the sign that ggml's has.
    let minimums = is_flat.choose(flat_minimum, min).store();
    let inverses = is_flat.choose(zero, best_inverse).store();
    let shifts = is_flat.choose(zero, best_shift).store();
    Some(std::array::from_fn(|lane| Affine {
        scale: scales[lane],
        minimum: -minimums[lane],
        inverse: inverses[lane],
        shift: shifts[lane],
    }))
}

/// The first value of largest magnitude in each lane, that magnitude, and the sum of all magnitudes.
#[inline(always)]
pub(in crate::kernels) fn signed_max<L: Lanes, const N: usize>(values: &[L; N]) -> (L, L, L) {
    let zero = L::splat(0.0);
    let (mut max, mut magnitude, mut sum) = (zero, zero, zero);
    for &value in values {
        let this = value.abs();
        let is_larger = this.greater(magnitude);
        max = is_larger.choose(value, max);
        magnitude = is_larger.choose(this, magnitude);
        sum = sum + this;
    }
    (max, magnitude, sum)
}

/// [`super::symmetric`] of eight neighbouring runs of `N` values.
#[inline(always)]
pub(in crate::kernels) fn symmetric<L: Lanes, const N: usize>(
    values: &[f32],
    weights: &[f32],
    max_code: i32,
) -> [Symmetric; 8] {
    symmetric_in_lanes::<L, N>(&in_lanes(values), &in_lanes(weights), max_code).unwrap_or_else(|| {
        std::array::from_fn(|run| {
            let range = run * N..(run + 1) * N;
            super::symmetric(&values[range.clone()], &weights[range], max_code)
        })
    })
}

/// The two sums of a trial; `products` are the weighted values.
#[inline(always)]
fn symmetric_sums<L: Lanes, const N: usize>(
    values: &[L; N],
    weights: &[L; N],
    products: &[L; N],
    inverse: L,
    max_code: i32,
) -> (L, L) {
    let (low, high) = (L::splat(-max_code as f32), L::splat((max_code - 1) as f32));
    let (mut sum_lx, mut sum_l2) = (L::splat(0.0), L::splat(0.0));
    for ((&value, &weight), &product) in values.iter().zip(weights).zip(products) {
        let l = (inverse * value).rounded().clamped(low, high);
        sum_lx = sum_lx + product * l;
        sum_l2 = sum_l2 + weight * l * l;
    }
    (sum_lx, sum_l2)
}

#[inline(always)]
fn symmetric_in_lanes<L: Lanes, const N: usize>(
    values: &[L; N],
    weights: &[L; N],
    max_code: i32,
) -> Option<[Symmetric; 8]> {
    let zero = L::splat(0.0);
    let (max, magnitude, magnitudes) = signed_max(values);
    let is_zero = L::splat(GROUP_MAX_EPS).greater(magnitude);
    let max = is_zero.choose(L::splat(1.0), max);
    let mut best_inverse = L::splat(-max_code as f32) / max;
    // Twice as much, for the trials' larger steps.
    if !is_safe(best_inverse, magnitudes + magnitudes) {
        return None;
    }
    let mut products = [zero; N];
    for ((product, &value), &weight) in products.iter_mut().zip(values).zip(weights) {
        *product = weight * value;
    }
    let (sum_lx, sum_l2) = symmetric_sums(values, weights, &products, best_inverse, max_code);
    let mut best_scale = sum_l2.equal(zero).choose(zero, sum_lx / sum_l2);
    let mut best = best_scale * sum_lx;
    for step in super::symmetric_steps(max_code) {
        let inverse = L::splat(-step) / max;
        let (sum_lx, sum_l2) = symmetric_sums(values, weights, &products, inverse, max_code);
        let is_better = sum_l2.greater(zero).and((sum_lx * sum_lx).greater(best * sum_l2));
        let scale = sum_lx / sum_l2;
        best_scale = is_better.choose(scale, best_scale);
        best = is_better.choose(scale * sum_lx, best);
        best_inverse = is_better.choose(inverse, best_inverse);
    }
    let scales = is_zero.choose(zero, best_scale).store();
    let inverses = best_inverse.store();
    let zeros = is_zero.bits();
    Some(std::array::from_fn(|lane| Symmetric {
        scale: scales[lane],
        inverse: inverses[lane],
        is_zero: zeros >> lane & 1 == 1,
    }))
}

/// The scales of [`super::symmetric_greedy`] for eight neighbouring runs of 16 values.
#[inline(always)]
pub(in crate::kernels) fn symmetric_greedy<L: Lanes>(values: &[f32], max_code: i32) -> [f32; 8] {
    symmetric_greedy_in_lanes::<L>(&in_lanes(values), max_code).unwrap_or_else(|| {
        std::array::from_fn(|run| super::symmetric_greedy(&values[run * 16..(run + 1) * 16], &mut [0; 16], max_code))
    })
}

#[inline(always)]
fn symmetric_greedy_in_lanes<L: Lanes>(values: &[L; 16], max_code: i32) -> Option<[f32; 8]> {
    let zero = L::splat(0.0);
    let (low, high) = (L::splat(-max_code as f32), L::splat((max_code - 1) as f32));
    let (max, magnitude, magnitudes) = signed_max(values);
    let is_zero = L::splat(GROUP_MAX_EPS).greater(magnitude);
    let inverse = low / is_zero.choose(L::splat(1.0), max);
    if !is_safe(inverse, magnitudes) {
        return None;
    }
    let mut codes = [zero; 16];
    let (mut sum_lx, mut sum_l2) = (zero, zero);
    for (slot, &value) in codes.iter_mut().zip(values) {
        let l = (inverse * value).rounded().clamped(low, high);
        *slot = l;
        let weight = value * value;
        sum_lx = sum_lx + weight * value * l;
        sum_l2 = sum_l2 + weight * l * l;
    }
    // A lane without a change would repeat itself, so all may go on until none has one.
    for _ in 0..5 {
        let mut changed = 0;
        for (slot, &value) in codes.iter_mut().zip(values) {
            let old = *slot;
            let weight = value * value;
            let product = weight * value;
            let slx = sum_lx - product * old;
            let sl2 = sum_l2 - weight * old * old;
            let new = (value * sl2 / slx).nearest_exact().clamped(low, high);
            let new_slx = slx + product * new;
            let new_sl2 = sl2 + weight * new * new;
            let is_better = (new_slx * new_slx * sum_l2).greater(sum_lx * sum_lx * new_sl2);
            let is_better = is_better.and(slx.greater(zero)).and(new_sl2.greater(zero));
            // Where the code stays, the sums stay too.
            let is_better = new.equal(old).choose(zero, is_better);
            changed |= is_better.bits();
            *slot = is_better.choose(new, old);
            sum_lx = is_better.choose(new_slx, sum_lx);
            sum_l2 = is_better.choose(new_sl2, sum_l2);
        }
        if changed == 0 {
            break;
        }
    }
    let scale = sum_l2.greater(zero).choose(sum_lx / sum_l2, zero);
    Some(is_zero.choose(zero, scale).store())
}

/// Sums of squares of eight neighbouring stretches of `len` values, each added up in order.
#[inline(always)]
pub(in crate::kernels) fn sums_of_eight<L: Lanes>(values: &[f32], len: usize) -> [f32; 8] {
    let mut sum = L::splat(0.0);
    for first in (0..len).step_by(8) {
        let mut rows = [sum; 8];
        for (row, lanes) in rows.iter_mut().enumerate() {
            *lanes = eight(&values[row * len + first..]);
        }
        for value in L::transposed(rows) {
            sum = sum + value * value;
        }
    }
    sum.store()
}

/// Sums of squares of neighbouring stretches of `len` values, a multiple of eight, each added up in order.
#[inline(always)]
pub(in crate::kernels) fn sums_of_squares<L: Lanes>(values: &[f32], len: usize) -> Vec<f32> {
    let mut sums = Vec::with_capacity(values.len() / len);
    let groups = values.chunks_exact(8 * len);
    let rest = groups.remainder();
    for group in groups {
        sums.extend(sums_of_eight::<L>(group, len));
    }
    for stretch in rest.chunks_exact(len) {
        sums.push(stretch.iter().fold(0.0f32, |sum, value| sum + value * value));
    }
    sums
}

#[cfg(test)]
mod tests;
