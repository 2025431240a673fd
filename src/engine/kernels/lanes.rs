//! Eight floats that move together: what the encoders are written in.
//!
//! The searches of ggml's encoders add up one number after another, and the order decides the last
//! bit. So a search is not spread over the lanes of a register: each lane holds a block (or a run of
//! a block) of its own and goes through the reference's operations one by one. [`Plain`] is the
//! portable meaning of every operation; [`Avx2`] does the same in one instruction each. Nothing here
//! fuses a multiplication with an addition.

use std::ops::{Add, Div, Mul, Sub};

use half::f16;

/// Adding and subtracting this rounds a float of magnitude below 2^22 to the nearest integer.
const ROUNDER: f32 = 12_582_912.0;

/// The values of iq4_nl's and iq4_xs's codes (`kvalues_iq4nl` of `ggml-common.h`, MIT).
pub(super) const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Where the nearest of [`IQ4_VALUES`] changes: half way between neighbours.
///
/// ggml compares the two rounded distances. Near a half-way point both are exact, and elsewhere
/// rounding cannot turn them round, so comparing with the half-way point decides the same.
const IQ4_BOUNDS: [f32; 15] =
    [-115.5, -93.5, -74.0, -57.0, -42.0, -28.5, -16.0, -4.5, 7.0, 19.0, 31.5, 45.5, 61.0, 79.0, 101.0];

/// Eight floats, or as a mask eight all-one or all-zero bit patterns.
pub(super) trait Lanes:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// The same value in every lane.
    fn splat(value: f32) -> Self;
    /// Lane `i` is `values[i]`.
    fn load(values: &[f32; 8]) -> Self;
    /// The lanes as an array.
    fn store(self) -> [f32; 8];
    /// Magnitudes.
    fn abs(self) -> Self;
    /// Square roots, correctly rounded.
    fn sqrt(self) -> Self;
    /// `self` where it is less than `other`, else `other` (also where either is no number).
    fn least(self, other: Self) -> Self;
    /// `self` where it is greater than `other`, else `other` (also where either is no number).
    fn most(self, other: Self) -> Self;
    /// Mask of the lanes where `self` is greater; false for what is no number.
    fn greater(self, other: Self) -> Self;
    /// Mask of the lanes where both are equal.
    fn equal(self, other: Self) -> Self;
    /// Mask of the lanes where both masks are true; with a mask and a value, the value or zero.
    fn and(self, other: Self) -> Self;
    /// This mask's choice: `yes` where it is true.
    fn choose(self, yes: Self, no: Self) -> Self;
    /// One bit a lane of this mask.
    fn bits(self) -> u32;
    /// ggml's `nearest_int` as a float, whatever the value.
    fn nearest_exact(self) -> Self;
    /// The low bytes of C's truncation to an int, in the order of the vectors.
    fn truncated(values: [Self; 4]) -> [u8; 32];
    /// The low bytes of ggml's `nearest_int`, whatever the values, clamped, in the order of the vectors.
    fn nearest(values: [Self; 4], low: i32, high: i32) -> [u8; 32];
    /// Lane `i` of row `j` becomes lane `j` of row `i`.
    fn transposed(rows: [Self; 8]) -> [Self; 8];
    /// The largest lane; the values are numbers.
    fn largest(self) -> f32;
    /// The nearest f16, halves to even.
    fn half(value: f32) -> u16;
    /// Bit 4 of every code, the first in the lowest bit.
    fn fifth_bits(codes: &[u8; 32]) -> u32;
    /// A value that [`Lanes::truncated`] makes the nearest integer, halves away from zero.
    fn half_away(self) -> Self;
    /// The nearest value of [`IQ4_VALUES`]; between two the upper one, and the last for what is no number.
    fn iq4_value(self) -> Self;
    /// The indices of those values, in the order of the vectors.
    fn iq4_codes(values: [Self; 4]) -> [u8; 32];

    /// True if the mask is true in every lane.
    #[inline(always)]
    fn all(self) -> bool {
        self.bits() == 0xff
    }

    /// ggml's `nearest_int` as a float, for magnitudes below 2^22.
    #[inline(always)]
    fn rounded(self) -> Self {
        let rounder = Self::splat(ROUNDER);
        (self + rounder) - rounder
    }

    /// Clamps numbers.
    #[inline(always)]
    fn clamped(self, low: Self, high: Self) -> Self {
        self.most(low).least(high)
    }
}

/// The portable lanes: plain arrays, which the compiler vectorizes as far as it can.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain([f32; 8]);

impl Plain {
    #[inline(always)]
    fn map(self, op: impl Fn(f32) -> f32) -> Self {
        let mut out = self.0;
        for lane in &mut out {
            *lane = op(*lane);
        }
        Self(out)
    }

    #[inline(always)]
    fn zip(self, other: Self, op: impl Fn(f32, f32) -> f32) -> Self {
        let mut out = self.0;
        for (lane, other) in out.iter_mut().zip(other.0) {
            *lane = op(*lane, other);
        }
        Self(out)
    }

    #[inline(always)]
    fn test(self, other: Self, op: impl Fn(f32, f32) -> bool) -> Self {
        self.zip(other, |a, b| f32::from_bits(if op(a, b) { u32::MAX } else { 0 }))
    }
}

impl Add for Plain {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
}

impl Sub for Plain {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
}

impl Mul for Plain {
    type Output = Self;
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
}

impl Div for Plain {
    type Output = Self;
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
}

impl Lanes for Plain {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; 8])
    }

    #[inline(always)]
    fn load(values: &[f32; 8]) -> Self {
        Self(*values)
    }

    #[inline(always)]
    fn store(self) -> [f32; 8] {
        self.0
    }

    #[inline(always)]
    fn abs(self) -> Self {
        self.map(f32::abs)
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        self.map(f32::sqrt)
    }

    #[inline(always)]
    fn least(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn most(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn greater(self, other: Self) -> Self {
        self.test(other, |a, b| a > b)
    }

    #[inline(always)]
    fn equal(self, other: Self) -> Self {
        self.test(other, |a, b| a == b)
    }

    #[inline(always)]
    fn and(self, other: Self) -> Self {
        self.zip(other, |a, b| f32::from_bits(a.to_bits() & b.to_bits()))
    }

    #[inline(always)]
    fn choose(self, yes: Self, no: Self) -> Self {
        Self(std::array::from_fn(|lane| if self.0[lane].to_bits() == 0 { no.0[lane] } else { yes.0[lane] }))
    }

    #[inline(always)]
    fn bits(self) -> u32 {
        self.0.iter().enumerate().fold(0, |bits, (lane, mask)| bits | (mask.to_bits() >> 31) << lane)
    }

    #[inline(always)]
    fn nearest_exact(self) -> Self {
        self.map(|value| super::search::nearest_int(value) as f32)
    }

    #[inline(always)]
    fn truncated(values: [Self; 4]) -> [u8; 32] {
        std::array::from_fn(|at| super::search::c_int(values[at / 8].0[at % 8]) as u8)
    }

    #[inline(always)]
    fn nearest(values: [Self; 4], low: i32, high: i32) -> [u8; 32] {
        std::array::from_fn(|at| super::search::nearest_int(values[at / 8].0[at % 8]).clamp(low, high) as u8)
    }

    #[inline(always)]
    fn transposed(rows: [Self; 8]) -> [Self; 8] {
        std::array::from_fn(|i| Self(std::array::from_fn(|j| rows[j].0[i])))
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        self.0.iter().fold(self.0[0], |most, &value| if value > most { value } else { most })
    }

    #[inline(always)]
    fn half(value: f32) -> u16 {
        f16::from_f32(value).to_bits()
    }

    #[inline(always)]
    fn fifth_bits(codes: &[u8; 32]) -> u32 {
        codes.iter().enumerate().fold(0, |bits, (j, &code)| bits | u32::from(code >> 4 & 1) << j)
    }

    #[inline(always)]
    fn half_away(self) -> Self {
        self.map(f32::round)
    }

    #[inline(always)]
    fn iq4_value(self) -> Self {
        self.map(|value| f32::from(IQ4_VALUES[iq4_code(value) as usize]))
    }

    #[inline(always)]
    fn iq4_codes(values: [Self; 4]) -> [u8; 32] {
        std::array::from_fn(|at| iq4_code(values[at / 8].0[at % 8]))
    }
}

/// The index of the nearest of [`IQ4_VALUES`].
#[inline(always)]
fn iq4_code(value: f32) -> u8 {
    // Negated, so that what is no number is beyond every bound, as in ggml's binary search.
    IQ4_BOUNDS.iter().map(|&bound| u8::from(!(value < bound))).sum()
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::Avx2;

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! The lanes of an AVX2 register.

    use std::arch::x86_64::*;

    use super::*;

    /// Eight floats in one AVX register. Only code that [`super::by_lanes`] has entered with AVX2,
    /// FMA and F16C switched on may use it.
    #[derive(Clone, Copy, Debug)]
    pub(in super::super) struct Avx2(__m256);

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

    /// `nearest_int` of `search.rs` in each lane.
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
}

// Bodies for `by_lanes` call no closure that uses lanes: a closure is a function of its own, compiled
// without the instructions that its caller has, and the compiler need not inline it.

/// Compiles one body that is generic over [`Lanes`] for every instruction level; the level is the
/// function's first argument, and the CPU must have it.
macro_rules! by_lanes {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) => $body:ident) => {
        $(#[$meta])*
        $vis fn $name(level: $crate::engine::kernels::Level, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn with_avx2($($arg: $ty),*) {
                    $body::<$crate::engine::kernels::lanes::Avx2>($($arg),*);
                }
                if level >= $crate::engine::kernels::Level::Avx2 {
                    // SAFETY: the level says that this CPU has AVX2, FMA and F16C.
                    return unsafe { with_avx2($($arg),*) };
                }
            }
            let _ = level;
            $body::<$crate::engine::kernels::lanes::Plain>($($arg),*);
        }
    };
}
pub(super) use by_lanes;

/// Brings eight runs of `N` neighbouring values into lanes: lane `r` of vector `i` is value `i` of run `r`.
#[inline(always)]
pub(super) fn in_lanes<L: Lanes, const N: usize>(values: &[f32]) -> [L; N] {
    let mut out = [L::splat(0.0); N];
    for (first, vectors) in out.chunks_exact_mut(8).enumerate() {
        let mut rows = [L::splat(0.0); 8];
        for (run, row) in rows.iter_mut().enumerate() {
            *row = eight(&values[run * N + first * 8..]);
        }
        vectors.copy_from_slice(&L::transposed(rows));
    }
    out
}

/// The first eight values.
#[inline(always)]
pub(super) fn eight<L: Lanes>(values: &[f32]) -> L {
    L::load(values.first_chunk().expect("runs have a multiple of eight values"))
}

/// The four vectors of 32 values.
#[inline(always)]
pub(super) fn four_of<L: Lanes>(values: &[f32]) -> [L; 4] {
    [eight(values), eight(&values[8..]), eight(&values[16..]), eight(&values[24..])]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `check` with every kind of lanes that this CPU has.
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
            } else if x >= values[15] || !(x - values[above - 1] < values[above] - x) {
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
        if super::super::Level::detect() >= super::super::Level::Avx2 {
            #[target_feature(enable = "avx2,fma,f16c")]
            fn with_avx2() -> Vec<u32> {
                operations::<Avx2>()
            }
            // SAFETY: the level says that this CPU has them.
            assert_eq!(unsafe { with_avx2() }, plain);
        }
    }
}
