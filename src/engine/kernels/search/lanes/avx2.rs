//! The lanes of an AVX2 register.

use std::arch::x86_64::*;

use super::*;

/// Eight floats in one AVX register. Only code that [`super::by_lanes`] has entered with AVX2,
/// FMA and F16C switched on may use it.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct Avx2(__m256);

/// An instruction of the level that every user of [`Avx2`] has.
macro_rules! avx {
    ($call:expr) => {
        // SAFETY: whoever names `Avx2` runs under AVX2, FMA and F16C, see the type.
        unsafe { $call }
    };
}

impl Add for Avx2 {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(avx!(_mm256_add_ps(self.0, other.0)))
    }
}

impl Sub for Avx2 {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(avx!(_mm256_sub_ps(self.0, other.0)))
    }
}

impl Mul for Avx2 {
    type Output = Self;
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(avx!(_mm256_mul_ps(self.0, other.0)))
    }
}

impl Div for Avx2 {
    type Output = Self;
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Self(avx!(_mm256_div_ps(self.0, other.0)))
    }
}

/// The low bytes of four vectors of integers.
#[inline(always)]
fn low_bytes([a, b, c, d]: [__m256i; 4]) -> [u8; 32] {
    avx!({
        let byte = _mm256_set1_epi32(0xff);
        let first = _mm256_packus_epi32(_mm256_and_si256(a, byte), _mm256_and_si256(b, byte));
        let last = _mm256_packus_epi32(_mm256_and_si256(c, byte), _mm256_and_si256(d, byte));
        let bytes = _mm256_packus_epi16(first, last);
        // Packing works within each half of a register: bring the quarters into order.
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let mut out = [0u8; 32];
        _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_permutevar8x32_epi32(bytes, order));
        out
    })
}

/// Transposes four rows within each half of the registers.
#[inline(always)]
fn four_columns(a: __m256, b: __m256, c: __m256, d: __m256) -> [__m256; 4] {
    avx!({
        let (first_low, first_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let (last_low, last_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
        [
            _mm256_shuffle_ps::<0b01_00_01_00>(first_low, last_low),
            _mm256_shuffle_ps::<0b11_10_11_10>(first_low, last_low),
            _mm256_shuffle_ps::<0b01_00_01_00>(first_high, last_high),
            _mm256_shuffle_ps::<0b11_10_11_10>(first_high, last_high),
        ]
    })
}

/// `search::nearest_int` in each lane.
#[inline(always)]
fn nearest_int(value: __m256) -> __m256i {
    avx!({
        let bits = _mm256_castps_si256(_mm256_add_ps(value, _mm256_set1_ps(ROUNDER)));
        _mm256_sub_epi32(_mm256_and_si256(bits, _mm256_set1_epi32(0x007f_ffff)), _mm256_set1_epi32(0x0040_0000))
    })
}

/// Eight entries of a table in the order in which lanes of minus the index find them.
const fn by_negated<const N: usize>(values: [f32; N], first: usize, step: usize) -> [f32; 8] {
    let mut out = [0.0; 8];
    let mut index = 0;
    while index < 8 && first + index * step < N {
        out[(8 - index) % 8] = values[first + index * step];
        index += 1;
    }
    out
}

const IQ4_FLOATS: [f32; 16] = {
    let mut out = [0.0; 16];
    let mut index = 0;
    while index < 16 {
        out[index] = IQ4_VALUES[index] as f32;
        index += 1;
    }
    out
};

/// True unless less, also for what is no number.
#[inline(always)]
fn is_above(value: __m256, bound: __m256) -> __m256 {
    avx!(_mm256_cmp_ps::<_CMP_NLT_UQ>(value, bound))
}

/// A binary search of [`IQ4_BOUNDS`]: minus half the index, and a mask of the odd ones.
#[inline(always)]
fn iq4_search(value: __m256) -> (__m256i, __m256) {
    const THIRDS: [f32; 8] = by_negated(IQ4_BOUNDS, 1, 4);
    const LASTS: [f32; 8] = by_negated(IQ4_BOUNDS, 0, 2);
    avx!({
        let first = is_above(value, _mm256_set1_ps(IQ4_BOUNDS[7]));
        let bound = _mm256_blendv_ps(_mm256_set1_ps(IQ4_BOUNDS[3]), _mm256_set1_ps(IQ4_BOUNDS[11]), first);
        let second = _mm256_castps_si256(is_above(value, bound));
        let first = _mm256_castps_si256(first);
        let index = _mm256_add_epi32(_mm256_add_epi32(first, first), second);
        let third = is_above(value, _mm256_permutevar8x32_ps(_mm256_loadu_ps(THIRDS.as_ptr()), index));
        let index = _mm256_add_epi32(_mm256_add_epi32(index, index), _mm256_castps_si256(third));
        (index, is_above(value, _mm256_permutevar8x32_ps(_mm256_loadu_ps(LASTS.as_ptr()), index)))
    })
}

/// The index of the nearest of [`IQ4_VALUES`] in each lane.
#[inline(always)]
fn iq4_code(value: __m256) -> __m256i {
    let (half, is_odd) = iq4_search(value);
    avx!({
        let negated = _mm256_add_epi32(_mm256_add_epi32(half, half), _mm256_castps_si256(is_odd));
        _mm256_sub_epi32(_mm256_setzero_si256(), negated)
    })
}

impl Lanes for Avx2 {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self(avx!(_mm256_set1_ps(value)))
    }

    #[inline(always)]
    fn load(values: &[f32; 8]) -> Self {
        Self(avx!(_mm256_loadu_ps(values.as_ptr())))
    }

    #[inline(always)]
    fn store(self) -> [f32; 8] {
        let mut out = [0.0; 8];
        avx!(_mm256_storeu_ps(out.as_mut_ptr(), self.0));
        out
    }

    #[inline(always)]
    fn abs(self) -> Self {
        Self(avx!(_mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0)))
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        Self(avx!(_mm256_sqrt_ps(self.0)))
    }

    #[inline(always)]
    fn least(self, other: Self) -> Self {
        Self(avx!(_mm256_min_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn most(self, other: Self) -> Self {
        Self(avx!(_mm256_max_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn greater(self, other: Self) -> Self {
        Self(avx!(_mm256_cmp_ps::<_CMP_GT_OQ>(self.0, other.0)))
    }

    #[inline(always)]
    fn equal(self, other: Self) -> Self {
        Self(avx!(_mm256_cmp_ps::<_CMP_EQ_OQ>(self.0, other.0)))
    }

    #[inline(always)]
    fn and(self, other: Self) -> Self {
        Self(avx!(_mm256_and_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn choose(self, yes: Self, no: Self) -> Self {
        Self(avx!(_mm256_blendv_ps(no.0, yes.0, self.0)))
    }

    #[inline(always)]
    fn bits(self) -> u32 {
        avx!(_mm256_movemask_ps(self.0)) as u32
    }

    #[inline(always)]
    fn nearest_exact(self) -> Self {
        Self(avx!(_mm256_cvtepi32_ps(nearest_int(self.0))))
    }

    #[inline(always)]
    fn truncated([a, b, c, d]: [Self; 4]) -> [u8; 32] {
        avx!(low_bytes([
            _mm256_cvttps_epi32(a.0),
            _mm256_cvttps_epi32(b.0),
            _mm256_cvttps_epi32(c.0),
            _mm256_cvttps_epi32(d.0),
        ]))
    }

    #[inline(always)]
    fn nearest([a, b, c, d]: [Self; 4], low: i32, high: i32) -> [u8; 32] {
        avx!({
            let (low, high) = (_mm256_set1_epi32(low), _mm256_set1_epi32(high));
            low_bytes([
                _mm256_min_epi32(_mm256_max_epi32(nearest_int(a.0), low), high),
                _mm256_min_epi32(_mm256_max_epi32(nearest_int(b.0), low), high),
                _mm256_min_epi32(_mm256_max_epi32(nearest_int(c.0), low), high),
                _mm256_min_epi32(_mm256_max_epi32(nearest_int(d.0), low), high),
            ])
        })
    }

    #[inline(always)]
    fn transposed(rows: [Self; 8]) -> [Self; 8] {
        let [a, b, c, d, e, f, g, h] = rows;
        let upper = four_columns(a.0, b.0, c.0, d.0);
        let lower = four_columns(e.0, f.0, g.0, h.0);
        avx!([
            Self(_mm256_permute2f128_ps::<0x20>(upper[0], lower[0])),
            Self(_mm256_permute2f128_ps::<0x20>(upper[1], lower[1])),
            Self(_mm256_permute2f128_ps::<0x20>(upper[2], lower[2])),
            Self(_mm256_permute2f128_ps::<0x20>(upper[3], lower[3])),
            Self(_mm256_permute2f128_ps::<0x31>(upper[0], lower[0])),
            Self(_mm256_permute2f128_ps::<0x31>(upper[1], lower[1])),
            Self(_mm256_permute2f128_ps::<0x31>(upper[2], lower[2])),
            Self(_mm256_permute2f128_ps::<0x31>(upper[3], lower[3])),
        ])
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        avx!({
            let four = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        })
    }

    #[inline(always)]
    fn half(value: f32) -> u16 {
        avx!(_mm_extract_epi16::<0>(_mm_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm_set_ss(value)))) as u16
    }

    #[inline(always)]
    fn fifth_bits(codes: &[u8; 32]) -> u32 {
        avx!({
            let codes = _mm256_loadu_si256(codes.as_ptr().cast());
            // The sign bits are gathered; what the shift carries over from a neighbour stays below.
            _mm256_movemask_epi8(_mm256_slli_epi16::<3>(codes)) as u32
        })
    }

    #[inline(always)]
    fn half_away(self) -> Self {
        avx!({
            // The float below one half, so that adding it never rounds up to an integer that is too far.
            let below_half = _mm256_set1_ps(0.5_f32.next_down());
            let sign = _mm256_and_ps(self.0, _mm256_set1_ps(-0.0));
            Self(_mm256_add_ps(self.0, _mm256_or_ps(below_half, sign)))
        })
    }

    #[inline(always)]
    fn iq4_value(self) -> Self {
        const EVEN: [f32; 8] = by_negated(IQ4_FLOATS, 0, 2);
        const ODD: [f32; 8] = by_negated(IQ4_FLOATS, 1, 2);
        let (half, is_odd) = iq4_search(self.0);
        avx!({
            let even = _mm256_permutevar8x32_ps(_mm256_loadu_ps(EVEN.as_ptr()), half);
            let odd = _mm256_permutevar8x32_ps(_mm256_loadu_ps(ODD.as_ptr()), half);
            Self(_mm256_blendv_ps(even, odd, is_odd))
        })
    }

    #[inline(always)]
    fn iq4_codes([a, b, c, d]: [Self; 4]) -> [u8; 32] {
        low_bytes([iq4_code(a.0), iq4_code(b.0), iq4_code(c.0), iq4_code(d.0)])
    }
}
