//! Scans against the formats they stand for, value by value and in their sums.

use proptest::prelude::*;

use super::*;
use crate::format::{self, Encoding, Format};
use crate::kernels::fp8::Fp8;
use crate::kernels::ints::ScaleType;

/// The reference: encode, decode, add in f64.
fn reference(format: &dyn Format, weights: &[f32]) -> Errors {
    let mut bytes = vec![0; format.dtype().row_bytes(weights.len()).expect("whole blocks")];
    let mut coded = vec![0.0; weights.len()];
    format.encode_rows(weights, &Encoding::plain(weights.len()), &mut bytes);
    format.decode_row(&bytes, &mut coded);
    let mut errors = Errors::default();
    errors.add_exactly(weights, &coded);
    errors
}

/// The scan of a format by its id; every level gives the same.
fn scan(id: &str, weights: &[f32]) -> Errors {
    let at = |level: Level| {
        let mut errors = Errors::default();
        match id {
            "q8_0" => q8_0_at(level, weights, &mut errors),
            "q5_1" => q5_1_at(level, weights, &mut errors),
            "q5_0" => q5_0_at(level, weights, &mut errors),
            "q4_1" => q4_1_at(level, weights, &mut errors),
            "q4_0" => q4_0_at(level, weights, &mut errors),
            "f16" => f16_at(level, weights, &mut errors),
            _ => bf16_at(level, weights, &mut errors),
        }
        errors
    };
    let plain = at(Level::Portable);
    let same = |a: f64, b: f64| a == b || (a.is_nan() && b.is_nan());
    let best = at(Level::detect());
    assert!(
        same(plain.signal, best.signal) && same(plain.noise, best.noise) && same(plain.coded, best.coded),
        "{id}: {plain:?} {best:?}"
    );
    best
}

const IDS: [&str; 7] = ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "f16", "bf16"];

/// Equal to 1e-6 of their size; NaN and infinity as they are.
fn agree(a: Errors, b: Errors) -> bool {
    let near = |a: f64, b: f64| {
        (a - b).abs() <= 1e-6 * a.abs().max(b.abs()) || a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
    };
    near(a.signal, b.signal)
        && near(a.coded, b.coded)
        && near(a.noise, b.noise)
        && near(a.max_abs_error, b.max_abs_error)
        // Of an alternating sum only what its terms' size allows.
        && ((a.product - b.product).abs() <= 1e-6 * a.signal.max(a.coded) || near(a.product, b.product))
}

fn check(weights: &[f32]) {
    for id in IDS {
        let format = format::find(id).expect("known");
        let (ours, theirs) = (scan(id, weights), reference(format, weights));
        assert!(agree(ours, theirs), "{id} of {:?}…: {ours:?} {theirs:?}", &weights[..4]);
    }
}

fn normal_like(len: usize, scale: f32, seed: u32) -> Vec<f32> {
    let mut state = seed | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / 4_294_967_296.0 - 0.5
    };
    (0..len).map(|_| (uniform() + uniform() + uniform() + uniform()) * scale).collect()
}

#[test]
fn scans_agree_with_the_formats_on_ordinary_rows_of_awkward_lengths() {
    for (blocks, scale) in [(1, 0.02), (7, 1.0), (8, 3e-5), (9, 700.0), (64, 0.02), (301, 0.5)] {
        check(&normal_like(blocks * 32, scale, 7 + blocks as u32));
    }
}

#[test]
fn scans_agree_with_the_formats_on_extreme_rows() {
    let base = normal_like(1024, 0.02, 5);
    let with = |change: &dyn Fn(usize, f32) -> f32| {
        let weights: Vec<f32> = base.iter().enumerate().map(|(at, &value)| change(at, value)).collect();
        check(&weights);
    };
    with(&|_, _| 0.0);
    with(&|_, _| -0.0);
    with(&|at, value| if at % 3 == 0 { 0.0 } else { value });
    with(&|at, _| if at % 2 == 0 { 0.25 } else { -0.25 });
    with(&|at, value| if at == 70 { 60.0 } else { value });
    with(&|_, value| value * 1e-22);
    with(&|_, value| value * 1e-36);
    with(&|_, value| value * 1e-42);
    with(&|_, value| value * 1e7);
    with(&|_, value| value * 1e30);
    with(&|at, value| if at == 300 { f32::NAN } else { value });
    with(&|at, value| if at == 300 { f32::INFINITY } else { value });
    with(&|at, value| if at % 256 == 255 { f32::NEG_INFINITY } else { value });
}

#[test]
fn a_scan_does_not_depend_on_where_rows_are_cut_at_runs() {
    let weights = normal_like(2048, 0.02, 3);
    for id in IDS {
        let mut parts = Errors::default();
        for part in weights.chunks(512) {
            parts.merge(&scan(id, part));
        }
        assert!(agree(parts, scan(id, &weights)), "{id}");
    }
}

#[test]
fn every_f16_and_every_step_between_two_rounds_as_the_format_does() {
    let mut weights = Vec::new();
    for bits in (0..0x7c00u16).step_by(3) {
        let (low, high) = (half::f16::from_bits(bits).to_f32(), half::f16::from_bits(bits + 1).to_f32());
        let middle = if high.is_finite() { (low + high) / 2.0 } else { 65_520.0 };
        weights.extend([low, -middle, f32::from_bits(middle.to_bits() - 1), f32::from_bits(middle.to_bits() + 1)]);
    }
    for weight in weights {
        assert_eq!(lanes::Grain::F16.round(weight), half::f16::from_f32(weight).to_f32(), "{weight}");
        assert_eq!(lanes::Grain::BF16.round(weight), half::bf16::from_f32(weight).to_f32(), "{weight}");
    }
}

#[test]
fn groups_of_every_length_are_those_of_their_grids() {
    let weights = normal_like(960, 0.3, 13);
    for len in [16, 32, 48, 100, 128, 256, 480, 512, 960, 5000] {
        let how = Groups { bits: 4, len, symmetric: true, scale: ScaleType::F16 };
        let (mut errors, mut grids) = (Errors::default(), Errors::default());
        groups(&weights, 480, how, &mut errors);
        for group in weights.chunks(480).flat_map(|row| row.chunks(len)) {
            let most = group.iter().fold(0.0f32, |most, value| most.max(value.abs()));
            let scale = half::f16::from_f32(most / 7.5).to_f32();
            let coded: Vec<f32> = group
                .iter()
                .map(|weight| scale * ((weight / scale + 8.0).clamp(0.0, 15.0).round_ties_even() - 8.0))
                .collect();
            grids.add_exactly(group, &coded);
        }
        assert!(agree(errors, grids), "{len}: {errors:?} {grids:?}");
    }
}

#[test]
fn fp8_rounds_to_the_nearest_of_its_values() {
    use crate::kernels::float::{f8_e4m3_to_f32, f8_e5m2_to_f32};
    for (kind, decode) in [(Fp8::E4M3, f8_e4m3_to_f32 as fn(u8) -> f32), (Fp8::E5M2, f8_e5m2_to_f32)] {
        let mut values: Vec<f32> = (0..128).map(decode).filter(|value| value.is_finite()).collect();
        values.sort_by(f32::total_cmp);
        assert_eq!(values.last(), Some(&kind.max()));
        for step in 0..60_000 {
            let weight = (step as f32 * 0.37 + 0.001) * kind.max() / 22_300.0 * if step % 2 == 0 { 1.0 } else { 1e-3 };
            let mut errors = Errors::default();
            fp8(&[weight], kind, 1.0, &mut errors);
            let nearest = values.iter().map(|value| (value - weight).abs()).fold(f32::INFINITY, f32::min);
            assert!((errors.max_abs_error as f32 - nearest).abs() <= 1e-6 * weight, "{kind:?} {weight}: {errors:?}");
        }
    }
}

#[test]
fn integer_groups_are_within_half_a_step_and_keep_zero() {
    let weights = normal_like(1000, 0.3, 11);
    for bits in 2..=8 {
        for symmetric in [true, false] {
            let how = Groups { bits, len: 128, symmetric, scale: ScaleType::F32 };
            let mut errors = Errors::default();
            groups(&weights, 500, how, &mut errors);
            let mut plain = Errors::default();
            groups_at(Level::Portable, &weights, 500, how, &mut plain);
            assert_eq!(errors, plain, "{how:?}");
            let mut grids = Errors::default();
            for group in weights.chunks(500).flat_map(|row| row.chunks(128)) {
                let lo = group.iter().copied().fold(0.0, f32::min);
                let hi = group.iter().copied().fold(0.0, f32::max);
                let top = ((1u32 << bits) - 1) as f32;
                let (scale, zero) = if symmetric {
                    (hi.max(-lo) / (top / 2.0), (top + 1.0) / 2.0)
                } else {
                    ((hi - lo) / top, (-lo / ((hi - lo) / top)).round_ties_even())
                };
                grid(group, scale, zero, top, &mut grids);
            }
            assert!(agree(errors, grids), "{how:?}: {errors:?} {grids:?}");
            let most = weights.iter().fold(0.0f32, |most, value| most.max(value.abs()));
            // Half a step, and a whole one at the end of the range that symmetric codes lack.
            let step = 2.0 * f64::from(most) / f64::from((1u32 << bits) - 1);
            assert!(errors.max_abs_error <= step * 1.001 && errors.max_abs_error > 0.0, "{how:?}: {errors:?}");
        }
    }
    let mut errors = Errors::default();
    groups(&[0.0; 64], 64, Groups { bits: 4, len: 32, symmetric: true, scale: ScaleType::F16 }, &mut errors);
    assert_eq!(errors.signal, 0.0);
}

proptest! {
    #[test]
    fn sums_of_any_rows_are_those_of_the_reference(
        pairs in prop::collection::vec((-1.0f32..1.0, -1.0f32..1.0), 1..700),
    ) {
        let (weights, coded): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
        let (mut fast, mut exact) = (Errors::default(), Errors::default());
        fast.add(&weights, &coded);
        exact.add_exactly(&weights, &coded);
        prop_assert!(agree(fast, exact), "{fast:?} {exact:?}");
    }
}
