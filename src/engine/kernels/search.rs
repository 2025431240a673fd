//! How k-quants choose their scales: ggml's search loops, followed step by step so that the bytes
//! are the same.
//!
//! Source: `ggml-quants.c` of ggml (MIT licence, copyright 2023-2026 the ggml authors): `make_qx_quants`,
//! `make_q3_quants`, `make_qkx2_quants`, `nearest_int`. The order of floating-point operations is
//! theirs and must stay so; Rust never contracts to FMA, which equals ggml built with
//! `-ffp-contract=off`.

/// Groups whose largest magnitude is below this are all zero.
pub(super) const GROUP_MAX_EPS: f32 = 1e-15;

/// Rounds to the nearest integer, halves to even, for |value| < 2^22.
#[inline(always)]
pub(super) fn nearest_int(value: f32) -> i32 {
    let bits = (value + 12_582_912.0).to_bits();
    (bits & 0x007f_ffff) as i32 - 0x0040_0000
}

/// C's conversion of a float to a small integer as x86 does it: by way of i32, truncated.
#[inline(always)]
pub(super) fn c_int(value: f32) -> i32 {
    if (-2_147_483_648.0..2_147_483_648.0).contains(&value) { value as i32 } else { i32::MIN }
}

/// The value of largest magnitude, with its sign, and the magnitude; the first one wins.
#[inline(always)]
fn signed_max(values: &[f32]) -> (f32, f32) {
    let (mut max, mut magnitude) = (0.0f32, 0.0f32);
    for &value in values {
        if value.abs() > magnitude {
            magnitude = value.abs();
            max = value;
        }
    }
    (max, magnitude)
}

/// Symmetric codes in `-max_code..max_code` for `values`, offset by `max_code`, weighted by x²; answers the scale.
#[inline(always)]
pub(super) fn symmetric(values: &[f32], codes: &mut [i8], max_code: i32) -> f32 {
    let (max, magnitude) = signed_max(values);
    if magnitude < GROUP_MAX_EPS {
        codes.fill(0);
        return 0.0;
    }
    let code = |iscale: f32, value: f32| nearest_int(iscale * value).clamp(-max_code, max_code - 1);
    let sums = |iscale: f32| {
        let (mut sum_lx, mut sum_l2) = (0.0f32, 0.0f32);
        for &value in values {
            let l = code(iscale, value) as f32;
            let weight = value * value;
            sum_lx += weight * value * l;
            sum_l2 += weight * l * l;
        }
        (sum_lx, sum_l2)
    };
    let store = |iscale: f32, codes: &mut [i8]| {
        for (slot, &value) in codes.iter_mut().zip(values) {
            *slot = (code(iscale, value) + max_code) as i8;
        }
    };
    let iscale = -(max_code as f32) / max;
    store(iscale, codes);
    let (sum_lx, sum_l2) = sums(iscale);
    let mut scale = if sum_l2 == 0.0 { 0.0 } else { sum_lx / sum_l2 };
    let mut best = scale * sum_lx;
    for step in (-9..=9).filter(|&step| step != 0) {
        let iscale = -(max_code as f32 + 0.1 * step as f32) / max;
        let (sum_lx, sum_l2) = sums(iscale);
        if sum_l2 > 0.0 && sum_lx * sum_lx > best * sum_l2 {
            store(iscale, codes);
            scale = sum_lx / sum_l2;
            best = scale * sum_lx;
        }
    }
    scale
}

/// As [`symmetric`], improving one code at a time, for q3_k.
#[inline(always)]
pub(super) fn symmetric_greedy(values: &[f32], codes: &mut [i8], max_code: i32) -> f32 {
    let (max, magnitude) = signed_max(values);
    if magnitude < GROUP_MAX_EPS {
        codes.fill(0);
        return 0.0;
    }
    let iscale = -(max_code as f32) / max;
    let (mut sum_lx, mut sum_l2) = (0.0f32, 0.0f32);
    for (slot, &value) in codes.iter_mut().zip(values) {
        let l = nearest_int(iscale * value).clamp(-max_code, max_code - 1);
        *slot = l as i8;
        let weight = value * value;
        sum_lx += weight * value * l as f32;
        sum_l2 += weight * l as f32 * l as f32;
    }
    for _ in 0..5 {
        let mut changed = 0;
        for (slot, &value) in codes.iter_mut().zip(values) {
            let weight = value * value;
            let old = f32::from(*slot);
            let mut slx = sum_lx - weight * value * old;
            if slx > 0.0 {
                let mut sl2 = sum_l2 - weight * old * old;
                let new = nearest_int(value * sl2 / slx).clamp(-max_code, max_code - 1);
                if new != i32::from(*slot) {
                    slx += weight * value * new as f32;
                    sl2 += weight * new as f32 * new as f32;
                    if sl2 > 0.0 && slx * slx * sum_l2 > sum_lx * sum_lx * sl2 {
                        *slot = new as i8;
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
        *slot += max_code as i8;
    }
    if sum_l2 > 0.0 { sum_lx / sum_l2 } else { 0.0 }
}

/// The range of inverse scales that [`with_minimum`] tries, and how it weighs errors.
pub(super) struct Steps {
    pub(super) first: f32,
    pub(super) step: f32,
    pub(super) count: i32,
    pub(super) absolute_error: bool,
}

/// Codes in `0..=max_code` with a scale and a minimum (at most 0) for `N` values; answers scale and −minimum.
#[inline(always)]
pub(super) fn with_minimum<const N: usize>(
    values: &[f32; N],
    weights: &[f32; N],
    codes: &mut [u8],
    max_code: i32,
    steps: &Steps,
) -> (f32, f32) {
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
        codes.fill(0);
        return (0.0, -min);
    }
    let error = |difference: f32| {
        if steps.absolute_error { difference.abs() } else { difference * difference }
    };
    let code = |iscale: f32, shifted: f32| nearest_int(iscale * shifted).clamp(0, max_code);
    let iscale = max_code as f32 / (max - min);
    let mut scale = 1.0 / iscale;
    let mut best = 0.0f32;
    for ((slot, &value), &weight) in codes.iter_mut().zip(values).zip(weights) {
        let l = code(iscale, value - min);
        *slot = l as u8;
        best += weight * error(scale * l as f32 + min - value);
    }
    let mut trial = [0u8; N];
    for step in 0..=steps.count {
        // Later steps start from the best minimum so far, as ggml's do.
        let iscale = (steps.first + steps.step * step as f32 + max_code as f32) / (max - min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0f32, 0.0f32, 0.0f32);
        for ((slot, &value), &weight) in trial.iter_mut().zip(values).zip(weights) {
            let l = code(iscale, value - min);
            *slot = l as u8;
            let l = l as f32;
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
            let mut current = 0.0f32;
            for ((&l, &value), &weight) in trial.iter().zip(values).zip(weights) {
                current += weight * error(this_scale * f32::from(l) + this_min - value);
            }
            if current < best {
                codes.copy_from_slice(&trial);
                best = current;
                scale = this_scale;
                min = this_min;
            }
        }
    }
    (scale, -min)
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
