//! Every lane against the reference, over runs of every awkward kind.

use proptest::prelude::*;

use super::super::lanes::by_lanes;
use super::*;
use crate::kernels::Level;

/// Runs that the searches find hard: ordinary, heavy-tailed, tiny, huge, denormal, flat, ties, not finite.
fn runs(len: usize) -> impl Strategy<Value = Vec<f32>> {
    let value = prop_oneof![
        6 => -1.0f32..1.0,
        1 => Just(0.0f32),
        1 => Just(-0.0f32),
        1 => (-31i8..31).prop_map(|half| f32::from(half) * 0.5),
        1 => any::<f32>().prop_map(|value| if value.is_nan() { 0.25 } else { value }),
    ];
    let scale = prop_oneof![
        4 => Just(1.0f32), 1 => Just(0.02f32), 1 => Just(1e-20f32), 1 => Just(1e-40f32), 1 => Just(1e30f32), 1 => Just(0.0f32)
    ];
    let run = (prop::collection::vec(value, len), scale, any::<bool>()).prop_map(|(mut run, scale, is_positive)| {
        for value in &mut run {
            *value *= scale;
            if is_positive {
                *value = value.abs();
            }
        }
        run
    });
    prop::collection::vec(run, 8).prop_map(|runs| runs.concat())
}

fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

/// Compares the codes of every value, and the scale.
fn compare_affine<L: Lanes, const N: usize>(values: &[f32], weights: &[f32], max_code: i32, steps: &Steps) {
    let found = with_minimum::<L, N>(values, weights, max_code, steps);
    for (run, found) in found.into_iter().enumerate() {
        let range = run * N..(run + 1) * N;
        let one = super::super::with_minimum(&values[range.clone()], &weights[range.clone()], max_code, steps);
        assert!(same(one.scale, found.scale) && same(one.minimum, found.minimum), "{one:?} {found:?}");
        for &value in &values[range] {
            assert_eq!(one.code(value, max_code), found.code(value, max_code), "{value} {one:?} {found:?}");
        }
    }
}

fn compare_symmetric<L: Lanes, const N: usize>(values: &[f32], weights: &[f32], max_code: i32) {
    let found = symmetric::<L, N>(values, weights, max_code);
    for (run, found) in found.into_iter().enumerate() {
        let range = run * N..(run + 1) * N;
        let one = super::super::symmetric(&values[range.clone()], &weights[range.clone()], max_code);
        assert!(same(one.scale, found.scale), "{one:?} {found:?}");
        for &value in &values[range] {
            assert_eq!(one.code(value, max_code), found.code(value, max_code), "{value} {one:?} {found:?}");
        }
    }
}

fn compare_all<L: Lanes>(values: &[f32], weights: &[f32], _: &mut [u8]) {
    compare_affine::<L, 32>(values, weights, 15, &Steps::Q4_K);
    compare_affine::<L, 32>(values, weights, 31, &Steps::Q5_K);
    compare_affine::<L, 32>(values, weights, 31, &Steps::WEIGHTED);
    compare_affine::<L, 16>(&values[..128], &weights[..128], 3, &Steps::Q2_K);
    compare_symmetric::<L, 32>(values, weights, 8);
    compare_symmetric::<L, 16>(&values[..128], &weights[..128], 32);
    compare_symmetric::<L, 16>(&values[128..], &weights[128..], 4);
    let found = symmetric_greedy::<L>(&values[..128], 4);
    for (run, scale) in found.into_iter().enumerate() {
        let one = super::super::symmetric_greedy(&values[run * 16..(run + 1) * 16], &mut [0; 16], 4);
        assert!(same(one, scale), "{one} {scale}");
    }
    let sums = sums_of_squares::<L>(values, 16);
    for (run, sum) in sums.into_iter().enumerate() {
        let one = values[run * 16..(run + 1) * 16].iter().fold(0.0f32, |sum, value| sum + value * value);
        assert!(same(one, sum), "{one} {sum}");
    }
}

by_lanes! {
    fn compare(values: &[f32], weights: &[f32], unused: &mut [u8]) => compare_all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_lane_finds_what_the_reference_finds(values in runs(32), importance in runs(32)) {
        let weights: Vec<f32> = values.iter().zip(&importance).map(|(value, weight)| weight.abs() + value * value).collect();
        for level in [Level::Portable, Level::detect()] {
            compare(level, &values, &weights, &mut []);
        }
    }
}
