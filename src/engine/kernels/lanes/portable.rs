//! Lanes as plain arrays: the reference, and what any CPU can run.
//!
//! # Safety
//! Every function keeps the contract of [`Lanes`]: the CPU has the instructions, pointers are good for a vector.

use std::array::from_fn;

use half::{bf16, f16};

use super::{Lanes, STEP};

/// Eight rows in arrays.
pub(in crate::kernels) struct Portable;

/// Rows a tile.
const ROWS: usize = 8;

#[inline(always)]
unsafe fn bytes<const N: usize>(from: *const u8) -> [u8; N] {
    // SAFETY: the caller promises as many bytes as a vector holds.
    unsafe { from.cast::<[u8; N]>().read_unaligned() }
}

impl Lanes for Portable {
    const ROWS: usize = ROWS;
    type Floats = [f32; ROWS];
    type Ints = [i32; ROWS];
    type Codes = [u8; ROWS * STEP];
    type Narrow = [i32; ROWS];
    type Signed = [u8; ROWS * STEP];
    type Table = [i8; 16];

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::Floats {
        [value; ROWS]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::Floats {
        // SAFETY: the caller promises eight floats.
        unsafe { from.cast::<[f32; ROWS]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::Floats) {
        // SAFETY: the caller promises room for eight floats.
        unsafe { to.cast::<[f32; ROWS]>().write_unaligned(value) }
    }

    #[inline(always)]
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        from_fn(|row| a[row] * b[row])
    }

    #[inline(always)]
    unsafe fn mul_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        from_fn(|row| a[row] * b[row] + c[row])
    }

    #[inline(always)]
    unsafe fn mul_sub(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        from_fn(|row| c[row] - a[row] * b[row])
    }

    #[inline(always)]
    unsafe fn load_halves(from: *const u8) -> Self::Floats {
        // SAFETY: the caller promises eight halves.
        let halves = unsafe { bytes::<{ ROWS * 2 }>(from) };
        from_fn(|row| f16::from_le_bytes([halves[2 * row], halves[2 * row + 1]]).to_f32())
    }

    #[inline(always)]
    unsafe fn load_bytes(from: *const u8) -> Self::Floats {
        // SAFETY: the caller promises eight bytes.
        unsafe { bytes::<ROWS>(from) }.map(f32::from)
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u8) -> (Self::Floats, Self::Floats) {
        // SAFETY: the caller promises sixteen values.
        let pairs = unsafe { bytes::<{ ROWS * 4 }>(from) };
        let value = |at: usize| bf16::from_le_bytes([pairs[2 * at], pairs[2 * at + 1]]).to_f32();
        (from_fn(|row| value(2 * row)), from_fn(|row| value(2 * row + 1)))
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}

    #[inline(always)]
    unsafe fn to_floats(ints: Self::Ints) -> Self::Floats {
        ints.map(|int| int as f32)
    }

    #[inline(always)]
    unsafe fn zero_ints() -> Self::Ints {
        [0; ROWS]
    }

    #[inline(always)]
    unsafe fn add_ints(a: Self::Ints, b: Self::Ints) -> Self::Ints {
        from_fn(|row| a[row] + b[row])
    }

    #[inline(always)]
    unsafe fn codes(from: *const u8) -> Self::Codes {
        // SAFETY: the caller promises a step.
        unsafe { bytes(from) }
    }

    #[inline(always)]
    unsafe fn store_codes(to: *mut u8, codes: Self::Codes) {
        // SAFETY: the caller promises room for a step.
        unsafe { to.cast::<Self::Codes>().write_unaligned(codes) }
    }

    #[inline(always)]
    unsafe fn table(values: &[i8; 16]) -> Self::Table {
        *values
    }

    #[inline(always)]
    unsafe fn lookup(table: Self::Table, codes: Self::Codes) -> Self::Codes {
        codes.map(|code| table[usize::from(code & 0x0f)] as u8)
    }

    #[inline(always)]
    unsafe fn shift_left(codes: Self::Codes, by: u32, mask: u8) -> Self::Codes {
        codes.map(|code| code << by & mask)
    }

    #[inline(always)]
    unsafe fn shift_right(codes: Self::Codes, by: u32, mask: u8) -> Self::Codes {
        codes.map(|code| code >> by & mask)
    }

    #[inline(always)]
    unsafe fn or(a: Self::Codes, b: Self::Codes) -> Self::Codes {
        from_fn(|at| a[at] | b[at])
    }

    #[inline(always)]
    unsafe fn narrow_zero() -> Self::Narrow {
        [0; ROWS]
    }

    #[inline(always)]
    unsafe fn narrow_add(sum: Self::Narrow, codes: Self::Codes, x: *const i8) -> Self::Narrow {
        // SAFETY: the caller promises four activations.
        let x = unsafe { bytes::<STEP>(x.cast()) }.map(|byte| i32::from(byte as i8));
        from_fn(|row| sum[row] + (0..STEP).map(|k| i32::from(codes[row * STEP + k]) * x[k]).sum::<i32>())
    }

    #[inline(always)]
    unsafe fn narrow_ints(sum: Self::Narrow) -> Self::Ints {
        sum
    }

    #[inline(always)]
    unsafe fn signed_zero(_: i32) -> Self::Ints {
        [0; ROWS]
    }

    #[inline(always)]
    unsafe fn signed(codes: Self::Codes) -> Self::Signed {
        codes
    }

    #[inline(always)]
    unsafe fn signed_add(sum: Self::Ints, codes: Self::Signed, x: *const i8) -> Self::Ints {
        // SAFETY: the caller promises four activations.
        let x = unsafe { bytes::<STEP>(x.cast()) }.map(|byte| i32::from(byte as i8));
        from_fn(|row| sum[row] + (0..STEP).map(|k| i32::from(codes[row * STEP + k] as i8) * x[k]).sum::<i32>())
    }
}
