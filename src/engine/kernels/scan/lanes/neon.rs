//! The lanes of two NEON registers.
//!
//! Values of this type exist only within functions compiled for NEON, which are called only on processors that
//! have it: that is what makes every call below safe.

use std::arch::aarch64::*;

use super::{BELOW_HALF, Grain, Lanes};

/// Eight floats.
#[derive(Clone, Copy)]
pub(in super::super) struct Neon(float32x4_t, float32x4_t);

/// Instructions of the level that every user of [`Neon`] has.
macro_rules! neon {
    ($call:expr) => {
        // SAFETY: a value of this type says that the processor has NEON.
        unsafe { $call }
    };
}

/// The same function of both registers of two or three vectors.
macro_rules! both {
    ($call:ident($($arg:ident),*)) => {
        // SAFETY: a value of this type says that the processor has NEON.
        unsafe { Self($call($($arg.0),*), $call($($arg.1),*)) }
    };
}

/// # Safety
/// The processor has NEON.
#[inline(always)]
unsafe fn greater(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // The instruction for it answers NaN where either is no number.
    neon!(vbslq_f32(vcgtq_f32(a, b), a, b))
}

/// # Safety
/// The processor has NEON.
#[inline(always)]
unsafe fn smaller(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    neon!(vbslq_f32(vcltq_f32(a, b), a, b))
}

/// # Safety
/// The processor has NEON.
#[inline(always)]
unsafe fn where_not_zero(value: float32x4_t, tested: float32x4_t) -> float32x4_t {
    neon!(vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(value), vceqzq_f32(tested))))
}

/// # Safety
/// The processor has NEON.
#[inline(always)]
unsafe fn or_where_zero(value: float32x4_t, tested: float32x4_t, other: float32x4_t) -> float32x4_t {
    neon!(vbslq_f32(vceqzq_f32(tested), other, value))
}

/// # Safety
/// The processor has NEON.
#[inline(always)]
unsafe fn round_away(value: float32x4_t) -> float32x4_t {
    neon!({
        let sign = vandq_u32(vreinterpretq_u32_f32(value), vdupq_n_u32(0x8000_0000));
        let half = vorrq_u32(sign, vreinterpretq_u32_f32(vdupq_n_f32(BELOW_HALF)));
        vrndq_f32(vaddq_f32(value, vreinterpretq_f32_u32(half)))
    })
}

/// [`Grain::round`] in each lane.
///
/// # Safety
/// The processor has NEON.
#[inline(always)]
unsafe fn round_to(value: float32x4_t, grain: Grain) -> float32x4_t {
    neon!({
        let all = vreinterpretq_s32_f32(value);
        let bits = vandq_s32(all, vdupq_n_s32(i32::MAX));
        let odd = vandq_s32(vshlq_s32(bits, vdupq_n_s32(-grain.dropped)), vdupq_n_s32(1));
        let raised = vaddq_s32(bits, vaddq_s32(vdupq_n_s32((1 << (grain.dropped - 1)) - 1), odd));
        let large = vandq_s32(raised, vdupq_n_s32(!((1 << grain.dropped) - 1)));
        let steps = vdupq_n_f32(grain.steps);
        let small = vreinterpretq_s32_f32(vsubq_f32(vaddq_f32(vreinterpretq_f32_s32(bits), steps), steps));
        let rounded = vbslq_s32(vcltq_s32(bits, vdupq_n_s32(grain.normal)), small, large);
        let is_beyond = vcgeq_s32(rounded, vdupq_n_s32(grain.beyond));
        let bounded = vbslq_s32(is_beyond, vdupq_n_s32(0x7f80_0000), rounded);
        vreinterpretq_f32_s32(vorrq_s32(bounded, vbicq_s32(all, vdupq_n_s32(i32::MAX))))
    })
}

impl Lanes for Neon {
    const WIDTH: usize = 8;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        let four = neon!(vdupq_n_f32(value));
        Self(four, four)
    }

    #[inline(always)]
    fn load(values: &[f32]) -> Self {
        assert!(values.len() >= 8);
        // SAFETY: there are eight values, and NEON as above.
        unsafe { Self(vld1q_f32(values.as_ptr()), vld1q_f32(values.as_ptr().add(4))) }
    }

    #[inline(always)]
    fn store(self, out: &mut [f32]) {
        assert!(out.len() >= 8);
        // SAFETY: there are eight places, and NEON as above.
        unsafe {
            vst1q_f32(out.as_mut_ptr(), self.0);
            vst1q_f32(out.as_mut_ptr().add(4), self.1);
        }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        both!(vaddq_f32(self, other))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        both!(vsubq_f32(self, other))
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        both!(vmulq_f32(self, other))
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        both!(vdivq_f32(self, other))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        both!(greater(self, other))
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        both!(smaller(self, other))
    }

    #[inline(always)]
    fn abs(self) -> Self {
        both!(vabsq_f32(self))
    }

    #[inline(always)]
    fn where_not_zero(self, other: Self) -> Self {
        both!(where_not_zero(self, other))
    }

    #[inline(always)]
    fn or_where_zero(self, tested: Self, other: Self) -> Self {
        both!(or_where_zero(self, tested, other))
    }

    #[inline(always)]
    fn round_away(self) -> Self {
        both!(round_away(self))
    }

    #[inline(always)]
    fn trunc(self) -> Self {
        both!(vrndq_f32(self))
    }

    #[inline(always)]
    fn round_to(self, grain: Grain) -> Self {
        // SAFETY: as above.
        unsafe { Self(round_to(self.0, grain), round_to(self.1, grain)) }
    }

    #[inline(always)]
    fn greatest(self) -> f32 {
        // Of a number and NaN these answer the number.
        neon!(vmaxnmvq_f32(vmaxnmq_f32(self.0, self.1)))
    }

    #[inline(always)]
    fn smallest(self) -> f32 {
        neon!(vminnmvq_f32(vminnmq_f32(self.0, self.1)))
    }
}
