//! The few vector operations of a scan, at each instruction level.
//!
//! A scan sums in [`WIDE`] lanes whatever the level: narrower vectors go over a run more than once,
//! each time with their own part of the lanes, so that every level gives the same sums.

/// Lanes of every sum.
pub(super) const WIDE: usize = 16;

/// How a float type of fewer bits rounds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grain {
    /// Mantissa bits of f32 that it lacks.
    pub(super) dropped: i32,
    /// Bits, as f32, of its smallest normal number.
    pub(super) normal: i32,
    /// A power of two around which f32 has the steps of its subnormal numbers.
    pub(super) steps: f32,
    /// Bits, as f32, from which on a rounded value is infinite.
    pub(super) beyond: i32,
}

impl Grain {
    /// Normal from 2⁻¹⁴, then in steps of 2⁻²⁴; what rounds to 2¹⁶ is infinite.
    pub(super) const F16: Self = Self { dropped: 13, normal: (127 - 14) << 23, steps: 0.5, beyond: (127 + 16) << 23 };
    /// The range and the steps of f32.
    pub(super) const BF16: Self = Self { dropped: 16, normal: 0, steps: 0.0, beyond: 0x7f80_0000 };
    /// Normal from 2⁻⁶, then in steps of 2⁻⁹; values are clamped before.
    pub(super) const E4M3: Self = Self { dropped: 20, normal: (127 - 6) << 23, steps: 16_384.0, beyond: 0x7f80_0000 };
    /// Normal from 2⁻¹⁴, then in steps of 2⁻¹⁶; values are clamped before.
    pub(super) const E5M2: Self = Self { dropped: 21, normal: (127 - 14) << 23, steps: 128.0, beyond: 0x7f80_0000 };

    /// The nearest value of the type, ties to even. NaN is not kept.
    #[inline(always)]
    pub(super) fn round(self, value: f32) -> f32 {
        let sign = value.to_bits() & 0x8000_0000;
        let bits = value.to_bits() as i32 & i32::MAX;
        let half = (1 << (self.dropped - 1)) - 1;
        let large = bits.wrapping_add(half + (bits >> self.dropped & 1)) & !((1 << self.dropped) - 1);
        let small = ((f32::from_bits(bits as u32) + self.steps) - self.steps).to_bits() as i32;
        let rounded = if bits < self.normal { small } else { large };
        let bounded = if rounded >= self.beyond { 0x7f80_0000 } else { rounded };
        f32::from_bits(bounded as u32 | sign)
    }
}

/// The greater of two, the second where one is NaN: what the processor's instruction does.
#[inline(always)]
pub(super) fn greater(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The smaller of two, the second where one is NaN.
#[inline(always)]
pub(super) fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// A vector of f32. A level's own type may only be used in functions compiled for that level.
pub(super) trait Lanes: Copy {
    /// Its number of lanes, which divides [`WIDE`].
    const WIDTH: usize;

    /// All lanes the same.
    fn splat(value: f32) -> Self;
    /// The first lanes of a slice, which has at least as many.
    fn load(values: &[f32]) -> Self;
    /// Writes to the first places of a slice, which has at least as many.
    fn store(self, out: &mut [f32]);
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    /// [`greater`] of this and the other.
    fn max(self, other: Self) -> Self;
    /// [`smaller`] of this and the other.
    fn min(self, other: Self) -> Self;
    fn abs(self) -> Self;
    /// This where the other is not zero, and zero there.
    fn where_not_zero(self, other: Self) -> Self;
    /// This where the tested is not zero, and the other where it is.
    fn or_where_zero(self, tested: Self, other: Self) -> Self;
    /// The nearest whole number, half away from zero; for magnitudes below 2²².
    fn round_away(self) -> Self;
    /// Towards zero.
    fn trunc(self) -> Self;
    /// [`Grain::round`].
    fn round_to(self, grain: Grain) -> Self;
    /// The greatest lane.
    fn greatest(self) -> f32;
    /// The smallest lane.
    fn smallest(self) -> f32;
}

/// The largest number below one half, so that 0.49999997 does not round to 1.
const BELOW_HALF: f32 = 0.499_999_97;

/// Plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; WIDE]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, of: impl Fn(f32, f32) -> f32) -> Self {
        let mut out = self.0;
        for (value, other) in out.iter_mut().zip(other.0) {
            *value = of(*value, other);
        }
        Self(out)
    }

    #[inline(always)]
    fn map(self, of: impl Fn(f32) -> f32) -> Self {
        self.zip(self, |value, _| of(value))
    }
}

impl Lanes for Portable {
    const WIDTH: usize = WIDE;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; WIDE])
    }

    #[inline(always)]
    fn load(values: &[f32]) -> Self {
        let mut out = [0.0; WIDE];
        out.copy_from_slice(&values[..WIDE]);
        Self(out)
    }

    #[inline(always)]
    fn store(self, out: &mut [f32]) {
        out[..WIDE].copy_from_slice(&self.0);
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, greater)
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, smaller)
    }

    #[inline(always)]
    fn abs(self) -> Self {
        self.map(f32::abs)
    }

    #[inline(always)]
    fn where_not_zero(self, other: Self) -> Self {
        self.zip(other, |value, other| if other == 0.0 { 0.0 } else { value })
    }

    #[inline(always)]
    fn or_where_zero(self, tested: Self, other: Self) -> Self {
        let mut out = self.0;
        for (value, (tested, other)) in out.iter_mut().zip(tested.0.into_iter().zip(other.0)) {
            *value = if tested == 0.0 { other } else { *value };
        }
        Self(out)
    }

    #[inline(always)]
    fn round_away(self) -> Self {
        self.map(|value| (value + BELOW_HALF.copysign(value)).trunc())
    }

    #[inline(always)]
    fn trunc(self) -> Self {
        self.map(f32::trunc)
    }

    #[inline(always)]
    fn round_to(self, grain: Grain) -> Self {
        self.map(|value| grain.round(value))
    }

    #[inline(always)]
    fn greatest(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, |most, value| greater(value, most))
    }

    #[inline(always)]
    fn smallest(self) -> f32 {
        self.0.into_iter().fold(f32::INFINITY, |least, value| smaller(value, least))
    }
}

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
pub(super) use neon::Neon;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::Avx2;

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! Values of these types exist only within functions compiled for their level, which are called
    //! only on processors that have it: that is what makes every call below safe.

    use std::arch::x86_64::*;

    use super::{BELOW_HALF, Grain, Lanes};

    /// AVX2.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2(__m256);

    /// A method whose body is processor instructions of the type's level.
    macro_rules! instructions {
        ($($(#[$meta:meta])* fn $name:ident($($arg:ident $(: $ty:ty)?),*) -> $ret:ty $body:block)*) => {$(
            $(#[$meta])*
            #[inline(always)]
            fn $name($($arg $(: $ty)?),*) -> $ret {
                // SAFETY: a value of this type says that the processor has the level.
                unsafe { $body }
            }
        )*};
    }

    impl Lanes for Avx2 {
        const WIDTH: usize = 8;

        instructions! {
            fn splat(value: f32) -> Self { Self(_mm256_set1_ps(value)) }
            fn load(values: &[f32]) -> Self {
                assert!(values.len() >= 8);
                Self(_mm256_loadu_ps(values.as_ptr()))
            }
            fn store(self, out: &mut [f32]) -> () {
                assert!(out.len() >= 8);
                _mm256_storeu_ps(out.as_mut_ptr(), self.0);
            }
            fn add(self, other: Self) -> Self { Self(_mm256_add_ps(self.0, other.0)) }
            fn sub(self, other: Self) -> Self { Self(_mm256_sub_ps(self.0, other.0)) }
            fn mul(self, other: Self) -> Self { Self(_mm256_mul_ps(self.0, other.0)) }
            fn div(self, other: Self) -> Self { Self(_mm256_div_ps(self.0, other.0)) }
            fn max(self, other: Self) -> Self { Self(_mm256_max_ps(self.0, other.0)) }
            fn min(self, other: Self) -> Self { Self(_mm256_min_ps(self.0, other.0)) }
            fn abs(self) -> Self { Self(_mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0)) }
            fn where_not_zero(self, other: Self) -> Self {
                Self(_mm256_and_ps(self.0, _mm256_cmp_ps::<_CMP_NEQ_UQ>(other.0, _mm256_setzero_ps())))
            }
            fn or_where_zero(self, tested: Self, other: Self) -> Self {
                let is_zero = _mm256_cmp_ps::<_CMP_EQ_OQ>(tested.0, _mm256_setzero_ps());
                Self(_mm256_blendv_ps(self.0, other.0, is_zero))
            }
            fn round_away(self) -> Self {
                let sign = _mm256_and_ps(self.0, _mm256_set1_ps(-0.0));
                let half = _mm256_or_ps(sign, _mm256_set1_ps(BELOW_HALF));
                Self(_mm256_add_ps(self.0, half)).trunc()
            }
            fn trunc(self) -> Self { Self(_mm256_round_ps::<{ _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC }>(self.0)) }
            fn round_to(self, grain: Grain) -> Self {
                let all = _mm256_castps_si256(self.0);
                let bits = _mm256_and_si256(all, _mm256_set1_epi32(i32::MAX));
                let dropped = _mm_cvtsi32_si128(grain.dropped);
                let odd = _mm256_and_si256(_mm256_srl_epi32(bits, dropped), _mm256_set1_epi32(1));
                let half = _mm256_set1_epi32((1 << (grain.dropped - 1)) - 1);
                let raised = _mm256_add_epi32(bits, _mm256_add_epi32(half, odd));
                let large = _mm256_and_si256(raised, _mm256_set1_epi32(!((1 << grain.dropped) - 1)));
                let steps = _mm256_set1_ps(grain.steps);
                let small = _mm256_sub_ps(_mm256_add_ps(_mm256_castsi256_ps(bits), steps), steps);
                let is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(grain.normal), bits);
                let rounded = _mm256_blendv_epi8(large, _mm256_castps_si256(small), is_small);
                // Clearing what is below the threshold leaves the threshold's own bits at least.
                let infinity = _mm256_set1_epi32(0x7f80_0000);
                let is_beyond = _mm256_cmpgt_epi32(rounded, _mm256_set1_epi32(grain.beyond - 1));
                let bounded = _mm256_blendv_epi8(rounded, infinity, is_beyond);
                Self(_mm256_castsi256_ps(_mm256_or_si256(bounded, _mm256_andnot_si256(_mm256_set1_epi32(i32::MAX), all))))
            }
            fn greatest(self) -> f32 {
                let four = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
                let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
            }
            fn smallest(self) -> f32 {
                let four = _mm_min_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
                let two = _mm_min_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)))
            }
        }
    }
}
