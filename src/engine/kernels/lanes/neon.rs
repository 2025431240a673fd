//! Lanes of AArch64: NEON, and NEON with dot products.
//!
//! `sdot` adds the four products of a step to an `i32`; codes below 128 may count as signed. Without
//! it, products of bytes are widened to `i16` and added in pairs.
//!
//! # Safety
//! Every function keeps the contract of [`Lanes`]: the CPU has the instructions, pointers are good for a vector.

use std::arch::aarch64::*;
use std::arch::asm;

use half::f16;

use super::Lanes;

/// Eight rows in pairs of 128 bits, on any AArch64.
pub(in crate::kernels) struct Neon;

/// As [`Neon`], with dot products of bytes.
pub(in crate::kernels) struct NeonDot;

/// Wraps bodies of intrinsics.
macro_rules! intrinsics {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty { $body:expr })*) => {
        $(
            #[inline(always)]
            unsafe fn $name($($arg: $ty),*) -> $ret {
                // SAFETY: the caller promises the instructions, and pointers that hold a vector.
                unsafe { $body }
            }
        )*
    };
}

/// Four activations, again and again.
#[inline(always)]
unsafe fn four(x: *const i8) -> int8x16_t {
    // SAFETY: the caller promises four activations and NEON.
    unsafe { vreinterpretq_s8_s32(vdupq_n_s32(x.cast::<i32>().read_unaligned())) }
}

#[inline(always)]
unsafe fn sdot(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the caller promises dot products; only registers are touched.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// Sums of pairs: rows 0 and 1, 2 and 3 of a vector of codes.
#[inline(always)]
unsafe fn pairs(sum: [int32x4_t; 2], codes: int8x16_t, x: int8x16_t) -> [int32x4_t; 2] {
    // SAFETY: the caller promises NEON.
    unsafe {
        [
            vpadalq_s16(sum[0], vmull_s8(vget_low_s8(codes), vget_low_s8(x))),
            vpadalq_s16(sum[1], vmull_s8(vget_high_s8(codes), vget_high_s8(x))),
        ]
    }
}

/// What both kinds share.
macro_rules! common {
    () => {
        const ROWS: usize = 8;
        type Floats = [float32x4_t; 2];
        type Ints = [int32x4_t; 2];
        type Codes = [uint8x16_t; 2];
        type Signed = [int8x16_t; 2];
        type Table = uint8x16_t;

        #[inline(always)]
        unsafe fn prefetch(_: *const u8) {}

        intrinsics! {
            fn splat(value: f32) -> Self::Floats { [vdupq_n_f32(value); 2] }
            fn load(from: *const f32) -> Self::Floats { [vld1q_f32(from), vld1q_f32(from.add(4))] }
            fn store(to: *mut f32, value: Self::Floats) -> () {{
                vst1q_f32(to, value[0]);
                vst1q_f32(to.add(4), value[1]);
            }}
            fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats { [vmulq_f32(a[0], b[0]), vmulq_f32(a[1], b[1])] }
            fn mul_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
                [vfmaq_f32(c[0], a[0], b[0]), vfmaq_f32(c[1], a[1], b[1])]
            }
            fn mul_sub(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
                [vfmsq_f32(c[0], a[0], b[0]), vfmsq_f32(c[1], a[1], b[1])]
            }
            fn load_halves(from: *const u8) -> Self::Floats {{
                let halves = from.cast::<[[u8; 2]; 8]>().read_unaligned();
                let floats = halves.map(|half| f16::from_le_bytes(half).to_f32());
                [vld1q_f32(floats.as_ptr()), vld1q_f32(floats.as_ptr().add(4))]
            }}
            fn load_bytes(from: *const u8) -> Self::Floats {{
                let wide = vmovl_u8(vld1_u8(from));
                [vcvtq_f32_u32(vmovl_u16(vget_low_u16(wide))), vcvtq_f32_u32(vmovl_high_u16(wide))]
            }}
            fn load_bf16_pairs(from: *const u8) -> (Self::Floats, Self::Floats) {{
                let pairs = [vld1q_u8(from), vld1q_u8(from.add(16))].map(|pair| vreinterpretq_u32_u8(pair));
                let first = pairs.map(|pair| vreinterpretq_f32_u32(vshlq_n_u32::<16>(pair)));
                let second = pairs.map(|pair| vreinterpretq_f32_u32(vandq_u32(pair, vdupq_n_u32(0xffff_0000))));
                (first, second)
            }}
            fn to_floats(ints: Self::Ints) -> Self::Floats { [vcvtq_f32_s32(ints[0]), vcvtq_f32_s32(ints[1])] }
            fn zero_ints() -> Self::Ints { [vdupq_n_s32(0); 2] }
            fn add_ints(a: Self::Ints, b: Self::Ints) -> Self::Ints { [vaddq_s32(a[0], b[0]), vaddq_s32(a[1], b[1])] }
            fn codes(from: *const u8) -> Self::Codes { [vld1q_u8(from), vld1q_u8(from.add(16))] }
            fn store_codes(to: *mut u8, codes: Self::Codes) -> () {{
                vst1q_u8(to, codes[0]);
                vst1q_u8(to.add(16), codes[1]);
            }}
            fn table(values: &[i8; 16]) -> uint8x16_t { vld1q_u8(values.as_ptr().cast()) }
            fn lookup(table: uint8x16_t, codes: Self::Codes) -> Self::Codes {
                codes.map(|codes| vqtbl1q_u8(table, codes))
            }
            fn shift_left(codes: Self::Codes, by: u32, mask: u8) -> Self::Codes {
                codes.map(|codes| vandq_u8(vshlq_u8(codes, vdupq_n_s8(by as i8)), vdupq_n_u8(mask)))
            }
            fn shift_right(codes: Self::Codes, by: u32, mask: u8) -> Self::Codes {
                codes.map(|codes| vandq_u8(vshlq_u8(codes, vdupq_n_s8(-(by as i8))), vdupq_n_u8(mask)))
            }
            fn or(a: Self::Codes, b: Self::Codes) -> Self::Codes { [vorrq_u8(a[0], b[0]), vorrq_u8(a[1], b[1])] }
            fn signed_zero(_x_sum: i32) -> Self::Ints { [vdupq_n_s32(0); 2] }
            fn signed(codes: Self::Codes) -> Self::Signed { codes.map(|codes| vreinterpretq_s8_u8(codes)) }
        }
    };
}

impl Lanes for NeonDot {
    type Narrow = [int32x4_t; 2];

    common!();

    #[inline(always)]
    unsafe fn narrow_ints(sum: Self::Narrow) -> Self::Ints {
        sum
    }

    intrinsics! {
        fn narrow_zero() -> Self::Narrow { [vdupq_n_s32(0); 2] }
        fn narrow_add(sum: Self::Narrow, codes: Self::Codes, x: *const i8) -> Self::Narrow {{
            let x = four(x);
            [sdot(sum[0], vreinterpretq_s8_u8(codes[0]), x), sdot(sum[1], vreinterpretq_s8_u8(codes[1]), x)]
        }}
        fn signed_add(sum: Self::Ints, codes: Self::Signed, x: *const i8) -> Self::Ints {{
            let x = four(x);
            [sdot(sum[0], codes[0], x), sdot(sum[1], codes[1], x)]
        }}
    }
}

impl Lanes for Neon {
    /// Two partial sums a row, rows in pairs.
    type Narrow = [[int32x4_t; 2]; 2];

    common!();

    intrinsics! {
        fn narrow_zero() -> Self::Narrow { [[vdupq_n_s32(0); 2]; 2] }
        fn narrow_add(sum: Self::Narrow, codes: Self::Codes, x: *const i8) -> Self::Narrow {{
            let x = four(x);
            [pairs(sum[0], vreinterpretq_s8_u8(codes[0]), x), pairs(sum[1], vreinterpretq_s8_u8(codes[1]), x)]
        }}
        fn narrow_ints(sum: Self::Narrow) -> Self::Ints {
            [vpaddq_s32(sum[0][0], sum[0][1]), vpaddq_s32(sum[1][0], sum[1][1])]
        }
        fn signed_add(sum: Self::Ints, codes: Self::Signed, x: *const i8) -> Self::Ints {{
            let x = four(x);
            let zero = [vdupq_n_s32(0); 2];
            let (low, high) = (pairs(zero, codes[0], x), pairs(zero, codes[1], x));
            [vaddq_s32(sum[0], vpaddq_s32(low[0], low[1])), vaddq_s32(sum[1], vpaddq_s32(high[0], high[1]))]
        }}
    }
}
