//! Every kind of lanes against the plain one.

use super::*;

/// The results of every operation over awkward values.
fn operations<L: Lanes>() -> Vec<u32> {
    let values = [
        0.0,
        -0.0,
        1.5,
        -2.5,
        1e-40,
        f32::MAX,
        f32::INFINITY,
        f32::NAN,
        0.5,
        255.7,
        -1.2,
        6e6,
        -9e9,
        127.5,
        31.0,
        1e-7,
    ];
    let mut out = Vec::new();
    for shift in 0..16 {
        let pick = |at: usize| values[(at + shift) % 16];
        let a = L::load(&std::array::from_fn(pick));
        let b = L::load(&std::array::from_fn(|lane| pick(lane * 5 + 3)));
        let several = [a + b, a - b, a * b, a / b, a.abs(), a.abs().sqrt(), a.least(b), a.most(b)];
        let masks = [a.greater(b), a.equal(b), a.greater(b).choose(a, b), a.equal(b).and(b), a.nearest_exact()];
        for vector in several.into_iter().chain(masks).chain(L::transposed(several)) {
            // Not-a-numbers differ in their sign between instructions and the compiler's folding.
            out.extend(vector.store().map(|lane| if lane.is_nan() { u32::MAX } else { lane.to_bits() }));
        }
        out.push(a.greater(b).bits());
        out.extend(L::truncated([a, b, a, b]).map(u32::from));
        out.extend(L::nearest([a, b, b, a], -32, 31).map(u32::from));
        out.push(L::fifth_bits(&L::truncated([a, b, a + b, b])));
        out.extend(L::truncated([a.half_away(); 4]).map(u32::from));
        let scaled = [a * L::splat(20.0), b, a, b * L::splat(-3.7)];
        out.extend(L::iq4_codes(scaled).map(u32::from));
        out.extend(scaled.into_iter().flat_map(|lanes| lanes.iq4_value().store()).map(f32::to_bits));
        out.push(a.abs().least(L::splat(9.0)).largest().to_bits());
        out.push(u32::from(L::half(pick(0).least_of(1e30))));
    }
    out
}

trait LeastOf {
    fn least_of(self, other: f32) -> f32;
}

impl LeastOf for f32 {
    fn least_of(self, other: f32) -> f32 {
        if self < other { self } else { other }
    }
}

#[test]
fn the_nearest_of_sixteen_values_is_ggmls() {
    // ggml's `best_index_int8`: a binary search, then the smaller of two rounded distances.
    let theirs = |x: f32| {
        let values = IQ4_VALUES.map(f32::from);
        let above = (1..15).find(|&k| x < values[k]).unwrap_or(15);
        if x <= values[0] {
            0
        } else if x >= values[15] || x - values[above - 1] >= values[above] - x {
            above
        } else {
            above - 1
        }
    };
    for bound in IQ4_BOUNDS.into_iter().chain(IQ4_VALUES.map(f32::from)).chain([0.0, 1e-30, -1e-30, 1e9, -1e9]) {
        let mut x = bound - 1e-4;
        while x <= bound + 1e-4 {
            assert_eq!(usize::from(iq4_code(x)), theirs(x), "{x}");
            x = x.next_up();
            if x.abs() < 1e-3 && x > bound - 9e-5 {
                break;
            }
        }
    }
}

#[test]
fn every_kind_of_lanes_computes_the_same() {
    let plain = operations::<Plain>();
    assert!(plain.len() > 1000);
    #[cfg(target_arch = "x86_64")]
    if crate::kernels::Level::detect() >= crate::kernels::Level::Avx2 {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn with_avx2() -> Vec<u32> {
            operations::<Avx2>()
        }
        // SAFETY: the level says that this CPU has them.
        assert_eq!(unsafe { with_avx2() }, plain);
    }
    #[cfg(target_arch = "aarch64")]
    {
        #[target_feature(enable = "neon")]
        fn with_neon() -> Vec<u32> {
            operations::<Neon>()
        }
        assert!(crate::kernels::Level::Neon.is_available());
        // SAFETY: the level says that this CPU has NEON.
        assert_eq!(unsafe { with_neon() }, plain);
    }
}
