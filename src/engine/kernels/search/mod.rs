//! How the block formats choose their scales: ggml's search loops, followed step by step so that the
//! bytes are the same.
//!
//! Source: `ggml-quants.c` of ggml (MIT licence, copyright 2023-2026 the ggml authors): `make_qx_quants`,
//! `make_q3_quants`, `make_qkx2_quants`, `make_qkx3_quants`, `make_qp_quants`, `nearest_int`. The order
//! of floating-point operations is theirs and must stay so; Rust never contracts to FMA, which equals
//! ggml built with `-ffp-contract=off`.
//!
//! These functions take one run at a time. `lane_search.rs` does the same for eight runs at once, in
//! the lanes of `lanes.rs`, and comes back here for runs with values beyond what it can do.

pub(in crate::kernels) mod lane_search;
pub(in crate::kernels) mod lanes;

/// Runs whose largest magnitude is below this are all zero.
pub(in crate::kernels) const GROUP_MAX_EPS: f32 = 1e-15;

/// Rounds to the nearest integer, halves to even, for |value| < 2^22.
#[inline(always)]
pub(in crate::kernels) fn nearest_int(value: f32) -> i32 {
    let bits = (value + 12_582_912.0).to_bits();
    (bits & 0x007f_ffff) as i32 - 0x0040_0000
}

/// C's conversion of a float to a small integer as x86 does it: by way of i32, truncated.
#[inline(always)]
pub(in crate::kernels) fn c_int(value: f32) -> i32 {
    if (-2_147_483_648.0..2_147_483_648.0).contains(&value) { value as i32 } else { i32::MIN }
}

/// The value of largest magnitude, with its sign, and the magnitude; the first one wins.
#[inline(always)]
pub(in crate::kernels) fn signed_max(values: &[f32]) -> (f32, f32) {
    let (mut max, mut magnitude) = (0.0f32, 0.0f32);
    for &value in values {
        if value.abs() > magnitude {
            magnitude = value.abs();
            max = value;
        }
    }
    (max, magnitude)
}

/// What a symmetric search found.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::kernels) struct Symmetric {
    /// The scale.
    pub(in crate::kernels) scale: f32,
    /// What values were multiplied with to get the codes that fit this scale.
    pub(in crate::kernels) inverse: f32,
    /// True if the run is all zero: then codes are 0, not the offset.
    pub(in crate::kernels) is_zero: bool,
}

impl Symmetric {
    /// The code of a value in `0..2 × max_code`.
    #[inline(always)]
    pub(in crate::kernels) fn code(self, value: f32, max_code: i32) -> u8 {
        if self.is_zero {
            return 0;
        }
        (nearest_int(self.inverse * value).clamp(-max_code, max_code - 1) + max_code) as u8
    }
}

/// The best symmetric scale for codes in `-max_code..max_code`.
#[inline(always)]
pub(in crate::kernels) fn symmetric(values: &[f32], weights: &[f32], max_code: i32) -> Symmetric {
    let (max, magnitude) = signed_max(values);
    if magnitude < GROUP_MAX_EPS {
        return Symmetric { is_zero: true, ..Symmetric::default() };
    }
    let sums = |inverse: f32| {
        let (mut sum_lx, mut sum_l2) = (0.0f32, 0.0f32);
        for (&value, &weight) in values.iter().zip(weights) {
            let l = nearest_int(inverse * value).clamp(-max_code, max_code - 1) as f32;
            sum_lx += weight * value * l;
            sum_l2 += weight * l * l;
        }
        (sum_lx, sum_l2)
    };
    let inverse = -(max_code as f32) / max;
    let (sum_lx, sum_l2) = sums(inverse);
    let scale = if sum_l2 == 0.0 { 0.0 } else { sum_lx / sum_l2 };
    let mut found = Symmetric { scale, inverse, is_zero: false };
    let mut best = scale * sum_lx;
    for inverse in symmetric_steps(max_code).map(|step| -step / max) {
        let (sum_lx, sum_l2) = sums(inverse);
        if sum_l2 > 0.0 && sum_lx * sum_lx > best * sum_l2 {
            found.scale = sum_lx / sum_l2;
            found.inverse = inverse;
            best = found.scale * sum_lx;
        }
    }
    found
}

/// The largest codes that [`symmetric`] tries after `max_code` itself.
#[inline(always)]
pub(in crate::kernels) fn symmetric_steps(max_code: i32) -> impl Iterator<Item = f32> {
    (-9..=9).filter(|&step| step != 0).map(move |step| max_code as f32 + 0.1 * step as f32)
}

/// A symmetric scale and codes weighted by x², improving one code at a time, for q3_k. The codes are offset by
/// `max_code`.
#[inline(always)]
pub(in crate::kernels) fn symmetric_greedy(values: &[f32], codes: &mut [u8], max_code: i32) -> f32 {
    let (max, magnitude) = signed_max(values);
    if magnitude < GROUP_MAX_EPS {
        codes.fill(0);
        return 0.0;
    }
    let inverse = -(max_code as f32) / max;
    let (mut sum_lx, mut sum_l2) = (0.0f32, 0.0f32);
    for (slot, &value) in codes.iter_mut().zip(values) {
        let l = nearest_int(inverse * value).clamp(-max_code, max_code - 1);
        *slot = l as u8;
        let weight = value * value;
        sum_lx += weight * value * l as f32;
        sum_l2 += weight * l as f32 * l as f32;
    }
    for _ in 0..5 {
        let mut changed = 0;
        for (slot, &value) in codes.iter_mut().zip(values) {
            let weight = value * value;
            let old = f32::from(*slot as i8);
            let mut slx = sum_lx - weight * value * old;
            if slx > 0.0 {
                let mut sl2 = sum_l2 - weight * old * old;
                let new = nearest_int(value * sl2 / slx).clamp(-max_code, max_code - 1);
                if new != i32::from(*slot as i8) {
                    slx += weight * value * new as f32;
                    sl2 += weight * new as f32 * new as f32;
                    if sl2 > 0.0 && slx * slx * sum_l2 > sum_lx * sum_lx * sl2 {
                        *slot = new as u8;
                        sum_lx = slx;
                        sum_l2 = sl2;
                        changed += 1;
                    }
                }
            }
        }
        if changed == 0 {
            break;
        }
    }
    for slot in codes.iter_mut() {
        *slot = slot.wrapping_add(max_code as u8);
    }
    if sum_l2 > 0.0 { sum_lx / sum_l2 } else { 0.0 }
}

/// The range of inverse scales that [`with_minimum`] tries, and how it weighs errors.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct Steps {
    first: f32,
    step: f32,
    /// How many are tried, less one.
    pub(in crate::kernels) count: i32,
    /// Weighs the magnitude of an error instead of its square.
    pub(in crate::kernels) absolute_error: bool,
}

impl Steps {
    /// For q4_k.
    pub(in crate::kernels) const Q4_K: Self = Self { first: -1.0, step: 0.1, count: 20, absolute_error: false };
    /// For q5_k.
    pub(in crate::kernels) const Q5_K: Self = Self { first: -0.5, step: 0.1, count: 15, absolute_error: false };
    /// For q2_k.
    pub(in crate::kernels) const Q2_K: Self = Self { first: -0.5, step: 0.1, count: 15, absolute_error: true };
    /// For every format whose columns have an importance.
    pub(in crate::kernels) const WEIGHTED: Self = Self { first: -0.9, step: 0.05, count: 36, absolute_error: false };

    /// The largest code of trial `step`.
    #[inline(always)]
    pub(in crate::kernels) fn top(&self, step: i32, max_code: i32) -> f32 {
        self.first + self.step * step as f32 + max_code as f32
    }
}

/// What a search with a minimum found.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::kernels) struct Affine {
    /// The scale.
    pub(in crate::kernels) scale: f32,
    /// What is subtracted: at least 0.
    pub(in crate::kernels) minimum: f32,
    /// What values less `shift` were multiplied with to get the codes that fit.
    pub(in crate::kernels) inverse: f32,
    /// The minimum when those codes were made.
    pub(in crate::kernels) shift: f32,
}

impl Affine {
    /// The code of a value in `0..=max_code`.
    #[inline(always)]
    pub(in crate::kernels) fn code(self, value: f32, max_code: i32) -> u8 {
        nearest_int(self.inverse * (value - self.shift)).clamp(0, max_code) as u8
    }
}

/// The best scale and minimum for codes in `0..=max_code`.
#[inline(always)]
pub(in crate::kernels) fn with_minimum(values: &[f32], weights: &[f32], max_code: i32, steps: &Steps) -> Affine {
    let mut min = values[0];
    let mut max = values[0];
    let mut sum_w = weights[0];
    let mut sum_x = sum_w * values[0];
    for (&value, &weight) in values.iter().zip(weights).skip(1) {
        if value < min {
            min = value;
        }
        if value > max {
            max = value;
        }
        sum_w += weight;
        sum_x += weight * value;
    }
    if min > 0.0 {
        min = 0.0;
    }
    if max == min {
        return Affine { minimum: -min, ..Affine::default() };
    }
    let code = |inverse: f32, shifted: f32| nearest_int(inverse * shifted).clamp(0, max_code) as f32;
    let error = |inverse: f32, shift: f32, scale: f32, min: f32| {
        let mut sum = 0.0f32;
        for (&value, &weight) in values.iter().zip(weights) {
            let difference = scale * code(inverse, value - shift) + min - value;
            let difference = if steps.absolute_error { difference.abs() } else { difference * difference };
            sum += weight * difference;
        }
        sum
    };
    let inverse = max_code as f32 / (max - min);
    let mut found = Affine { scale: 1.0 / inverse, minimum: 0.0, inverse, shift: min };
    let mut best = error(inverse, min, found.scale, min);
    for step in 0..=steps.count {
        // Later steps start from the best minimum so far, as ggml's do.
        let inverse = steps.top(step, max_code) / (max - min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0f32, 0.0f32, 0.0f32);
        for (&value, &weight) in values.iter().zip(weights) {
            let l = code(inverse, value - min);
            sum_l += weight * l;
            sum_l2 += weight * l * l;
            sum_xl += weight * l * value;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant > 0.0 {
            let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if this_min > 0.0 {
                this_min = 0.0;
                this_scale = sum_xl / sum_l2;
            }
            let current = error(inverse, min, this_scale, this_min);
            if current < best {
                best = current;
                found = Affine { scale: this_scale, minimum: 0.0, inverse, shift: min };
                min = this_min;
            }
        }
    }
    Affine { minimum: -min, ..found }
}

/// A scale and codes for values that should not be negative, weighted: the scales of a block with importance.
///
/// Negative values give the codes that C's conversion to a byte gives them.
#[inline(always)]
pub(in crate::kernels) fn positive<const N: usize>(
    values: &[f32; N],
    weights: &[f32; N],
    max_code: i32,
) -> (f32, [u8; N]) {
    let mut codes = [0u8; N];
    let max = values.iter().fold(0.0f32, |max, &value| if max > value { max } else { value });
    if max < GROUP_MAX_EPS {
        return (0.0, codes);
    }
    let mut inverse = max_code as f32 / max;
    let scale = 1.0 / inverse;
    let mut best = 0.0f32;
    for (&value, &weight) in values.iter().zip(weights) {
        let difference = value - scale * f32::from(nearest_int(inverse * value) as u8);
        best += weight * difference * difference;
    }
    for step in (-4..=4).filter(|&step| step != 0) {
        let this_inverse = (0.1 * step as f32 + max_code as f32) / max;
        let this_scale = 1.0 / this_inverse;
        let mut current = 0.0f32;
        for (&value, &weight) in values.iter().zip(weights) {
            let l = nearest_int(this_inverse * value).min(max_code);
            let difference = value - this_scale * l as f32;
            current += weight * difference * difference;
        }
        if current < best {
            best = current;
            inverse = this_inverse;
        }
    }
    let (mut sum_lx, mut sum_l2) = (0.0f32, 0.0f32);
    for ((slot, &value), &weight) in codes.iter_mut().zip(values).zip(weights) {
        let l = nearest_int(inverse * value).min(max_code);
        *slot = l as u8;
        sum_lx += weight * value * l as f32;
        sum_l2 += weight * l as f32 * l as f32;
    }
    for _ in 0..5 {
        let mut changed = 0;
        for ((slot, &value), &weight) in codes.iter_mut().zip(values).zip(weights) {
            let old = f32::from(*slot);
            let mut slx = sum_lx - weight * value * old;
            let mut sl2 = sum_l2 - weight * old * old;
            if slx > 0.0 && sl2 > 0.0 {
                let new = nearest_int(value * sl2 / slx).min(max_code);
                if new != i32::from(*slot) {
                    slx += weight * value * new as f32;
                    sl2 += weight * new as f32 * new as f32;
                    if slx * slx * sum_l2 > sum_lx * sum_lx * sl2 {
                        *slot = new as u8;
                        sum_lx = slx;
                        sum_l2 = sl2;
                        changed += 1;
                    }
                }
            }
        }
        if changed == 0 {
            break;
        }
    }
    (if sum_l2 > 0.0 { sum_lx / sum_l2 } else { 0.0 }, codes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_round_to_even() {
        assert_eq!(nearest_int(0.5), 0);
        assert_eq!(nearest_int(1.5), 2);
        assert_eq!(nearest_int(-2.5), -2);
        assert_eq!(nearest_int(7.4), 7);
    }

    #[test]
    fn a_not_a_number_converts_as_on_x86() {
        assert_eq!(c_int(f32::NAN), i32::MIN);
        assert_eq!(c_int(f32::INFINITY), i32::MIN);
        assert_eq!(c_int(8.9), 8);
    }
}
