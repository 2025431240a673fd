//! Lanes of x86-64: AVX2 with FMA and F16C, AVX-512, AVX-512 with VNNI.
//!
//! `vpmaddubsw` multiplies codes without sign with signed activations and adds pairs in `i16`, where
//! several steps of small codes add up before they are widened. Signed codes take the sign over to
//! the activations, and are widened at once: one pair may reach 2 × 128 × 127.
//!
//! `vpdpbusd` of VNNI adds all four products of a step to an `i32`. It wants one side without sign, so
//! signed codes get 128 added, and sums start from −128 times the sum of the activations.
//!
//! # Safety
//! Every function keeps the contract of [`Lanes`]: the CPU has the instructions, pointers are good for a vector.

use std::arch::x86_64::*;

use super::Lanes;

/// Eight rows in 256 bits.
pub(in crate::kernels) struct Avx2;

#[inline(always)]
unsafe fn four(x: *const i8) -> __m256i {
    // SAFETY: the caller promises four activations and AVX2.
    unsafe { _mm256_set1_epi32(x.cast::<i32>().read_unaligned()) }
}

/// A shift by a count that is known once loops are unrolled; at most seven.
macro_rules! shift {
    ($shift:ident, $codes:expr, $by:expr) => {
        match $by {
            0 => $codes,
            1 => $shift::<1>($codes),
            2 => $shift::<2>($codes),
            3 => $shift::<3>($codes),
            4 => $shift::<4>($codes),
            5 => $shift::<5>($codes),
            6 => $shift::<6>($codes),
            _ => $shift::<7>($codes),
        }
    };
}

/// Wraps bodies that are one intrinsic expression.
macro_rules! intrinsics {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty { $body:expr })*) => {
        $(
            $(#[$meta])*
            #[inline(always)]
            unsafe fn $name($($arg: $ty),*) -> $ret {
                // SAFETY: the caller promises the instructions, and pointers that hold a vector.
                unsafe { $body }
            }
        )*
    };
}

impl Lanes for Avx2 {
    const ROWS: usize = 8;
    type Floats = __m256;
    type Ints = __m256i;
    type Codes = __m256i;
    type Narrow = __m256i;
    type Signed = (__m256i, __m256i);
    type Table = __m256i;

    intrinsics! {
        fn splat(value: f32) -> __m256 { _mm256_set1_ps(value) }
        fn load(from: *const f32) -> __m256 { _mm256_loadu_ps(from) }
        fn store(to: *mut f32, value: __m256) -> () { _mm256_storeu_ps(to, value) }
        fn mul(a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
        fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
        fn mul_sub(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fnmadd_ps(a, b, c) }
        fn load_halves(from: *const u8) -> __m256 { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
        fn load_bytes(from: *const u8) -> __m256 {
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())))
        }
        fn load_bf16_pairs(from: *const u8) -> (__m256, __m256) {{
            let pairs = _mm256_loadu_si256(from.cast());
            let second = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            (_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)), _mm256_castsi256_ps(second))
        }}
        fn prefetch(from: *const u8) -> () { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
        fn to_floats(ints: __m256i) -> __m256 { _mm256_cvtepi32_ps(ints) }
        fn zero_ints() -> __m256i { _mm256_setzero_si256() }
        fn add_ints(a: __m256i, b: __m256i) -> __m256i { _mm256_add_epi32(a, b) }
        fn codes(from: *const u8) -> __m256i { _mm256_loadu_si256(from.cast()) }
        fn store_codes(to: *mut u8, codes: __m256i) -> () { _mm256_storeu_si256(to.cast(), codes) }
        fn table(values: &[i8; 16]) -> __m256i {
            _mm256_broadcastsi128_si256(_mm_loadu_si128(values.as_ptr().cast()))
        }
        fn lookup(table: __m256i, codes: __m256i) -> __m256i { _mm256_shuffle_epi8(table, codes) }
        fn shift_left(codes: __m256i, by: u32, mask: u8) -> __m256i {
            _mm256_and_si256(shift!(_mm256_slli_epi16, codes, by), _mm256_set1_epi8(mask as i8))
        }
        fn shift_right(codes: __m256i, by: u32, mask: u8) -> __m256i {
            _mm256_and_si256(shift!(_mm256_srli_epi16, codes, by), _mm256_set1_epi8(mask as i8))
        }
        fn or(a: __m256i, b: __m256i) -> __m256i { _mm256_or_si256(a, b) }
        fn narrow_zero() -> __m256i { _mm256_setzero_si256() }
        fn narrow_add(sum: __m256i, codes: __m256i, x: *const i8) -> __m256i {
            _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, four(x)))
        }
        fn narrow_ints(sum: __m256i) -> __m256i { _mm256_madd_epi16(sum, _mm256_set1_epi16(1)) }
        fn signed_zero(_x_sum: i32) -> __m256i { _mm256_setzero_si256() }
        fn signed(codes: __m256i) -> (__m256i, __m256i) { (codes, _mm256_abs_epi8(codes)) }
        fn signed_add(sum: __m256i, codes: (__m256i, __m256i), x: *const i8) -> __m256i {{
            let pairs = _mm256_maddubs_epi16(codes.1, _mm256_sign_epi8(four(x), codes.0));
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }}
    }
}

/// Sixteen rows in 512 bits.
pub(in crate::kernels) struct Avx512;

/// As [`Avx512`], with byte products that add up in 32 bits.
pub(in crate::kernels) struct Avx512Vnni;

#[inline(always)]
unsafe fn four_wide(x: *const i8) -> __m512i {
    // SAFETY: the caller promises four activations and AVX-512.
    unsafe { _mm512_set1_epi32(x.cast::<i32>().read_unaligned()) }
}

/// What both kinds of AVX-512 share.
macro_rules! common_512 {
    () => {
        const ROWS: usize = 16;
        type Floats = __m512;
        type Ints = __m512i;
        type Codes = __m512i;
        type Narrow = __m512i;
        type Table = __m512i;
        intrinsics! {
            fn splat(value: f32) -> __m512 { _mm512_set1_ps(value) }
            fn load(from: *const f32) -> __m512 { _mm512_loadu_ps(from) }
            fn store(to: *mut f32, value: __m512) -> () { _mm512_storeu_ps(to, value) }
            fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
            fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
            fn mul_sub(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fnmadd_ps(a, b, c) }
            fn load_halves(from: *const u8) -> __m512 { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
            fn load_bytes(from: *const u8) -> __m512 {
                _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())))
            }
            fn load_bf16_pairs(from: *const u8) -> (__m512, __m512) {{
                let pairs = _mm512_loadu_si512(from.cast());
                let second = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
                (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(second))
            }}
            fn prefetch(from: *const u8) -> () { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
            fn to_floats(ints: __m512i) -> __m512 { _mm512_cvtepi32_ps(ints) }
            fn zero_ints() -> __m512i { _mm512_setzero_si512() }
            fn add_ints(a: __m512i, b: __m512i) -> __m512i { _mm512_add_epi32(a, b) }
            fn codes(from: *const u8) -> __m512i { _mm512_loadu_si512(from.cast()) }
            fn store_codes(to: *mut u8, codes: __m512i) -> () { _mm512_storeu_si512(to.cast(), codes) }
            fn table(values: &[i8; 16]) -> __m512i {
                _mm512_broadcast_i32x4(_mm_loadu_si128(values.as_ptr().cast()))
            }
            fn lookup(table: __m512i, codes: __m512i) -> __m512i { _mm512_shuffle_epi8(table, codes) }
            fn shift_left(codes: __m512i, by: u32, mask: u8) -> __m512i {
                _mm512_and_si512(shift!(_mm512_slli_epi16, codes, by), _mm512_set1_epi8(mask as i8))
            }
            fn shift_right(codes: __m512i, by: u32, mask: u8) -> __m512i {
                _mm512_and_si512(shift!(_mm512_srli_epi16, codes, by), _mm512_set1_epi8(mask as i8))
            }
            fn or(a: __m512i, b: __m512i) -> __m512i { _mm512_or_si512(a, b) }
            fn narrow_zero() -> __m512i { _mm512_setzero_si512() }
        }
    };
}

impl Lanes for Avx512 {
    /// Magnitudes of the codes, and which of them are negative.
    type Signed = (__m512i, __mmask64);

    common_512!();

    intrinsics! {
        fn narrow_add(sum: __m512i, codes: __m512i, x: *const i8) -> __m512i {
            _mm512_add_epi16(sum, _mm512_maddubs_epi16(codes, four_wide(x)))
        }
        fn narrow_ints(sum: __m512i) -> __m512i { _mm512_madd_epi16(sum, _mm512_set1_epi16(1)) }
        fn signed_zero(_x_sum: i32) -> __m512i { _mm512_setzero_si512() }
        fn signed(codes: __m512i) -> (__m512i, __mmask64) {
            (_mm512_abs_epi8(codes), _mm512_movepi8_mask(codes))
        }
        fn signed_add(sum: __m512i, codes: (__m512i, __mmask64), x: *const i8) -> __m512i {{
            let x = four_wide(x);
            let x = _mm512_mask_sub_epi8(x, codes.1, _mm512_setzero_si512(), x);
            let pairs = _mm512_maddubs_epi16(codes.0, x);
            _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
        }}
    }
}

impl Lanes for Avx512Vnni {
    /// The codes with 128 added.
    type Signed = __m512i;

    common_512!();

    #[inline(always)]
    unsafe fn narrow_ints(sum: __m512i) -> __m512i {
        sum
    }

    intrinsics! {
        fn narrow_add(sum: __m512i, codes: __m512i, x: *const i8) -> __m512i {
            _mm512_dpbusd_epi32(sum, codes, four_wide(x))
        }
        fn signed_zero(x_sum: i32) -> __m512i { _mm512_set1_epi32(-128 * x_sum) }
        fn signed(codes: __m512i) -> __m512i { _mm512_xor_si512(codes, _mm512_set1_epi8(-128)) }
        fn signed_add(sum: __m512i, codes: __m512i, x: *const i8) -> __m512i {
            _mm512_dpbusd_epi32(sum, codes, four_wide(x))
        }
    }
}
