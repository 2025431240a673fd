//! Eight floats that move together: what the encoders are written in.
//!
//! The searches of ggml's encoders add up one number after another, and the order decides the last
//! bit. So a search is not spread over the lanes of a register: each lane holds a block (or a run of
//! a block) of its own and goes through the reference's operations one by one. [`Plain`] is the
//! portable meaning of every operation; `Avx2` and `Neon` do the same in an instruction or two each. Nothing here
//! fuses a multiplication with an addition.

use std::ops::{Add, Div, Mul, Sub};

use half::f16;

/// Adding and subtracting this rounds a float of magnitude below 2^22 to the nearest integer.
const ROUNDER: f32 = 12_582_912.0;

/// The values of iq4_nl's and iq4_xs's codes (`kvalues_iq4nl` of `ggml-common.h`, MIT).
pub(in crate::kernels) const IQ4_VALUES: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Where the nearest of [`IQ4_VALUES`] changes: half way between neighbours.
///
/// ggml compares the two rounded distances. Near a half-way point both are exact, and elsewhere
/// rounding cannot turn them round, so comparing with the half-way point decides the same.
const IQ4_BOUNDS: [f32; 15] =
    [-115.5, -93.5, -74.0, -57.0, -42.0, -28.5, -16.0, -4.5, 7.0, 19.0, 31.5, 45.5, 61.0, 79.0, 101.0];

/// Eight floats, or as a mask eight all-one or all-zero bit patterns.
pub(in crate::kernels) trait Lanes:
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
pub(in crate::kernels) struct Plain([f32; 8]);

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
        self.map(|value| super::nearest_int(value) as f32)
    }

    #[inline(always)]
    fn truncated(values: [Self; 4]) -> [u8; 32] {
        std::array::from_fn(|at| super::c_int(values[at / 8].0[at % 8]) as u8)
    }

    #[inline(always)]
    fn nearest(values: [Self; 4], low: i32, high: i32) -> [u8; 32] {
        std::array::from_fn(|at| super::nearest_int(values[at / 8].0[at % 8]).clamp(low, high) as u8)
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
        let mut nearest = Self::splat(f32::from(IQ4_VALUES[0]));
        for (&bound, &value) in IQ4_BOUNDS.iter().zip(&IQ4_VALUES[1..]) {
            nearest = Self::splat(bound).greater(self).choose(nearest, Self::splat(f32::from(value)));
        }
        nearest
    }

    #[inline(always)]
    fn iq4_codes(values: [Self; 4]) -> [u8; 32] {
        std::array::from_fn(|at| iq4_code(values[at / 8].0[at % 8]))
    }
}

/// The index of the nearest of [`IQ4_VALUES`].
#[inline(always)]
fn iq4_code(value: f32) -> u8 {
    // What is no number is beyond every bound, as in ggml's binary search.
    IQ4_BOUNDS.iter().map(|&bound| u8::from(bound <= value || value.is_nan())).sum()
}

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
pub(in crate::kernels) use avx2::Avx2;
#[cfg(target_arch = "aarch64")]
pub(in crate::kernels) use neon::Neon;

// Bodies for `by_lanes` call no closure that uses lanes: a closure is a function of its own, compiled
// without the instructions that its caller has, and the compiler need not inline it.

/// Compiles one body that is generic over [`Lanes`] for every instruction level; the level is the
/// function's first argument, and the CPU must have it.
macro_rules! by_lanes {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) => $body:ident) => {
        $(#[$meta])*
        $vis fn $name(level: $crate::kernels::Level, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn with_avx2($($arg: $ty),*) {
                    $body::<$crate::kernels::search::lanes::Avx2>($($arg),*);
                }
                if level >= $crate::kernels::Level::Avx2 {
                    // SAFETY: the level says that this CPU has AVX2, FMA and F16C.
                    return unsafe { with_avx2($($arg),*) };
                }
            }
            #[cfg(target_arch = "aarch64")]
            {
                #[target_feature(enable = "neon")]
                fn with_neon($($arg: $ty),*) {
                    $body::<$crate::kernels::search::lanes::Neon>($($arg),*);
                }
                if level >= $crate::kernels::Level::Neon {
                    // SAFETY: the level says that this CPU has NEON.
                    return unsafe { with_neon($($arg),*) };
                }
            }
            let _ = level;
            $body::<$crate::kernels::search::lanes::Plain>($($arg),*);
        }
    };
}
pub(in crate::kernels) use by_lanes;

/// Brings eight runs of `N` neighbouring values into lanes: lane `r` of vector `i` is value `i` of run `r`.
#[inline(always)]
pub(in crate::kernels) fn in_lanes<L: Lanes, const N: usize>(values: &[f32]) -> [L; N] {
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
pub(in crate::kernels) fn eight<L: Lanes>(values: &[f32]) -> L {
    L::load(values.first_chunk().expect("runs have a multiple of eight values"))
}

/// The four vectors of 32 values.
#[inline(always)]
pub(in crate::kernels) fn four_of<L: Lanes>(values: &[f32]) -> [L; 4] {
    [eight(values), eight(&values[8..]), eight(&values[16..]), eight(&values[24..])]
}

#[cfg(test)]
mod tests;
