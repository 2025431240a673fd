//! The lanes of two NEON registers.

use std::arch::aarch64::*;

use super::*;

/// Eight floats in two NEON registers. Only code that [`super::by_lanes`] has entered with NEON switched on
/// may use it.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct Neon(float32x4_t, float32x4_t);

/// Instructions of the level that every user of [`Neon`] has.
macro_rules! neon {
    ($call:expr) => {
        // SAFETY: whoever names `Neon` runs under NEON, see the type.
        unsafe { $call }
    };
}

/// The same instruction on both registers of two vectors.
macro_rules! both {
    ($call:ident($a:expr, $b:expr)) => {
        Self(neon!($call($a.0, $b.0)), neon!($call($a.1, $b.1)))
    };
    ($call:ident($a:expr)) => {
        Self(neon!($call($a.0)), neon!($call($a.1)))
    };
}

impl Add for Neon {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        both!(vaddq_f32(self, other))
    }
}

impl Sub for Neon {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        both!(vsubq_f32(self, other))
    }
}

impl Mul for Neon {
    type Output = Self;
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        both!(vmulq_f32(self, other))
    }
}

impl Div for Neon {
    type Output = Self;
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        both!(vdivq_f32(self, other))
    }
}

/// One bit for each of four lanes of a mask.
#[inline(always)]
fn four_bits(mask: uint32x4_t) -> u32 {
    const BITS: [u32; 4] = [1, 2, 4, 8];
    neon!(vaddvq_u32(vandq_u32(mask, vld1q_u32(BITS.as_ptr()))))
}

/// The bytes of sixteen integers, cut off above.
#[inline(always)]
fn low_bytes([a, b, c, d]: [int32x4_t; 4]) -> uint8x16_t {
    neon!({
        let cut = |a, b| vcombine_u16(vmovn_u32(vreinterpretq_u32_s32(a)), vmovn_u32(vreinterpretq_u32_s32(b)));
        vcombine_u8(vmovn_u16(cut(a, b)), vmovn_u16(cut(c, d)))
    })
}

/// Bytes of eight vectors' integers, in their order.
#[inline(always)]
fn all_bytes(values: [Neon; 4], of: impl Fn(float32x4_t) -> int32x4_t) -> [u8; 32] {
    let [a, b, c, d] = values;
    let mut out = [0; 32];
    let first = low_bytes([of(a.0), of(a.1), of(b.0), of(b.1)]);
    let last = low_bytes([of(c.0), of(c.1), of(d.0), of(d.1)]);
    neon!({
        vst1q_u8(out.as_mut_ptr(), first);
        vst1q_u8(out[16..].as_mut_ptr(), last);
    });
    out
}

/// `search::nearest_int` in each lane.
#[inline(always)]
fn nearest_int(value: float32x4_t) -> int32x4_t {
    neon!({
        let bits = vreinterpretq_s32_f32(vaddq_f32(value, vdupq_n_f32(ROUNDER)));
        vsubq_s32(vandq_s32(bits, vdupq_n_s32(0x007f_ffff)), vdupq_n_s32(0x0040_0000))
    })
}

/// `search::c_int` in each lane: where the instruction saturates or makes zero of NaN, C's gives the smallest.
#[inline(always)]
fn c_int(value: float32x4_t) -> int32x4_t {
    neon!({
        let beyond = vdupq_n_f32(2_147_483_648.0);
        let fits = vandq_u32(vcltq_f32(value, beyond), vcgeq_f32(value, vnegq_f32(beyond)));
        vbslq_s32(fits, vcvtq_s32_f32(value), vdupq_n_s32(i32::MIN))
    })
}

/// The index of the nearest of [`IQ4_VALUES`] in each lane: how many bounds are not above.
#[inline(always)]
fn iq4_index(value: float32x4_t) -> int32x4_t {
    let mut index = neon!(vdupq_n_s32(15));
    for bound in IQ4_BOUNDS {
        // A mask is minus one; what is no number is below none.
        index = neon!(vaddq_s32(index, vreinterpretq_s32_u32(vcltq_f32(value, vdupq_n_f32(bound)))));
    }
    index
}

/// The values at those indices.
#[inline(always)]
fn iq4_looked_up(value: float32x4_t) -> float32x4_t {
    let index = iq4_index(value);
    neon!({
        let bytes = vqtbl1q_s8(vld1q_s8(IQ4_VALUES.as_ptr()), vreinterpretq_u8_s32(index));
        // Each index fills the lowest byte of its lane: move that up, then down again with its sign.
        let value = vshrq_n_s32::<24>(vshlq_n_s32::<24>(vreinterpretq_s32_s8(bytes)));
        vcvtq_f32_s32(value)
    })
}

/// Columns of four rows.
#[inline(always)]
fn four_columns(rows: [float32x4_t; 4]) -> [float32x4_t; 4] {
    let [a, b, c, d] = rows;
    neon!({
        let (even, odd) = (vzip1q_f32(a, c), vzip1q_f32(b, d));
        let (even_high, odd_high) = (vzip2q_f32(a, c), vzip2q_f32(b, d));
        [vzip1q_f32(even, odd), vzip2q_f32(even, odd), vzip1q_f32(even_high, odd_high), vzip2q_f32(even_high, odd_high)]
    })
}

impl Lanes for Neon {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        let four = neon!(vdupq_n_f32(value));
        Self(four, four)
    }

    #[inline(always)]
    fn load(values: &[f32; 8]) -> Self {
        Self(neon!(vld1q_f32(values.as_ptr())), neon!(vld1q_f32(values[4..].as_ptr())))
    }

    #[inline(always)]
    fn store(self) -> [f32; 8] {
        let mut out = [0.0; 8];
        neon!({
            vst1q_f32(out.as_mut_ptr(), self.0);
            vst1q_f32(out[4..].as_mut_ptr(), self.1);
        });
        out
    }

    #[inline(always)]
    fn abs(self) -> Self {
        both!(vabsq_f32(self))
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        both!(vsqrtq_f32(self))
    }

    #[inline(always)]
    fn least(self, other: Self) -> Self {
        // The instruction for it answers NaN where either is no number.
        neon!(Self(
            vbslq_f32(vcltq_f32(self.0, other.0), self.0, other.0),
            vbslq_f32(vcltq_f32(self.1, other.1), self.1, other.1)
        ))
    }

    #[inline(always)]
    fn most(self, other: Self) -> Self {
        neon!(Self(
            vbslq_f32(vcgtq_f32(self.0, other.0), self.0, other.0),
            vbslq_f32(vcgtq_f32(self.1, other.1), self.1, other.1)
        ))
    }

    #[inline(always)]
    fn greater(self, other: Self) -> Self {
        neon!(Self(
            vreinterpretq_f32_u32(vcgtq_f32(self.0, other.0)),
            vreinterpretq_f32_u32(vcgtq_f32(self.1, other.1))
        ))
    }

    #[inline(always)]
    fn equal(self, other: Self) -> Self {
        neon!(Self(
            vreinterpretq_f32_u32(vceqq_f32(self.0, other.0)),
            vreinterpretq_f32_u32(vceqq_f32(self.1, other.1))
        ))
    }

    #[inline(always)]
    fn and(self, other: Self) -> Self {
        let and = |a, b| neon!(vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a), vreinterpretq_u32_f32(b))));
        Self(and(self.0, other.0), and(self.1, other.1))
    }

    #[inline(always)]
    fn choose(self, yes: Self, no: Self) -> Self {
        neon!(Self(
            vbslq_f32(vreinterpretq_u32_f32(self.0), yes.0, no.0),
            vbslq_f32(vreinterpretq_u32_f32(self.1), yes.1, no.1)
        ))
    }

    #[inline(always)]
    fn bits(self) -> u32 {
        let (low, high) = neon!((vreinterpretq_u32_f32(self.0), vreinterpretq_u32_f32(self.1)));
        four_bits(low) | four_bits(high) << 4
    }

    #[inline(always)]
    fn nearest_exact(self) -> Self {
        neon!(Self(vcvtq_f32_s32(nearest_int(self.0)), vcvtq_f32_s32(nearest_int(self.1))))
    }

    #[inline(always)]
    fn truncated(values: [Self; 4]) -> [u8; 32] {
        all_bytes(values, c_int)
    }

    #[inline(always)]
    fn nearest(values: [Self; 4], low: i32, high: i32) -> [u8; 32] {
        let (low, high) = neon!((vdupq_n_s32(low), vdupq_n_s32(high)));
        all_bytes(values, |value| neon!(vminq_s32(vmaxq_s32(nearest_int(value), low), high)))
    }

    #[inline(always)]
    fn transposed(rows: [Self; 8]) -> [Self; 8] {
        let [a, b, c, d, e, f, g, h] = rows;
        let upper = [four_columns([a.0, b.0, c.0, d.0]), four_columns([e.0, f.0, g.0, h.0])];
        let lower = [four_columns([a.1, b.1, c.1, d.1]), four_columns([e.1, f.1, g.1, h.1])];
        [
            Self(upper[0][0], upper[1][0]),
            Self(upper[0][1], upper[1][1]),
            Self(upper[0][2], upper[1][2]),
            Self(upper[0][3], upper[1][3]),
            Self(lower[0][0], lower[1][0]),
            Self(lower[0][1], lower[1][1]),
            Self(lower[0][2], lower[1][2]),
            Self(lower[0][3], lower[1][3]),
        ]
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        neon!(vmaxvq_f32(vmaxq_f32(self.0, self.1)))
    }

    #[inline(always)]
    fn half(value: f32) -> u16 {
        f16::from_f32(value).to_bits()
    }

    #[inline(always)]
    fn fifth_bits(codes: &[u8; 32]) -> u32 {
        const BITS: [u8; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128];
        let sixteen = |codes: &[u8]| {
            neon!({
                let is_set = vtstq_u8(vld1q_u8(codes.as_ptr()), vdupq_n_u8(16));
                let bits = vandq_u8(is_set, vld1q_u8(BITS.as_ptr()));
                u32::from(vaddv_u8(vget_low_u8(bits))) | u32::from(vaddv_u8(vget_high_u8(bits))) << 8
            })
        };
        sixteen(&codes[..16]) | sixteen(&codes[16..]) << 16
    }

    #[inline(always)]
    fn half_away(self) -> Self {
        both!(vrndaq_f32(self))
    }

    #[inline(always)]
    fn iq4_value(self) -> Self {
        Self(iq4_looked_up(self.0), iq4_looked_up(self.1))
    }

    #[inline(always)]
    fn iq4_codes(values: [Self; 4]) -> [u8; 32] {
        all_bytes(values, iq4_index)
    }
}
