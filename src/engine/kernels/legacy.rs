//! The 32-weight blocks: q4_0, q4_1, q5_0, q5_1, q8_0.
//!
//! Layouts and rounding are ggml's reference functions (`ggml-quants.c`, MIT), byte for byte. A
//! block is little-endian: an f16 scale, for the `_1` types an f16 minimum, for the 5-bit types a
//! u32 of fifth bits, then the codes, low nibbles first.

use half::f16;

use super::packed::Unpacked;
use super::{multiversion, search};

const LEN: usize = 32;

#[inline(always)]
fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[inline(always)]
fn put_half(block: &mut [u8], at: usize, value: f32) {
    block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

#[inline(always)]
fn word_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// The first value of largest magnitude, with its sign.
#[inline(always)]
fn signed_max(values: &[f32]) -> f32 {
    let (mut max, mut magnitude) = (0.0f32, 0.0f32);
    for &value in values {
        if magnitude < value.abs() {
            magnitude = value.abs();
            max = value;
        }
    }
    max
}

#[inline(always)]
fn range(values: &[f32]) -> (f32, f32) {
    let (mut min, mut max) = (f32::MAX, -f32::MAX);
    for &value in values {
        if value < min {
            min = value;
        }
        if value > max {
            max = value;
        }
    }
    (min, max)
}

#[inline(always)]
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

#[inline(always)]
fn encode_q4_0_body(source: &[f32], out: &mut [u8]) {
    for (x, block) in source.chunks_exact(LEN).zip(out.chunks_exact_mut(18)) {
        let d = signed_max(x) / -8.0;
        let id = inverse(d);
        put_half(block, 0, d);
        let code = |value: f32| (i32::from(search::c_int(value * id + 8.5) as i8)).min(15) as u8;
        for j in 0..16 {
            block[2 + j] = code(x[j]) | (code(x[j + 16]) << 4);
        }
    }
}

#[inline(always)]
fn encode_q4_1_body(source: &[f32], out: &mut [u8]) {
    for (x, block) in source.chunks_exact(LEN).zip(out.chunks_exact_mut(20)) {
        let (min, max) = range(x);
        let d = (max - min) / 15.0;
        let id = inverse(d);
        put_half(block, 0, d);
        put_half(block, 2, min);
        let code = |value: f32| (i32::from(search::c_int((value - min) * id + 0.5) as i8)).min(15) as u8;
        for j in 0..16 {
            block[4 + j] = code(x[j]) | (code(x[j + 16]) << 4);
        }
    }
}

#[inline(always)]
fn put_five_bits(block: &mut [u8], at: usize, code: impl Fn(usize) -> u8) {
    let mut high = 0u32;
    for j in 0..16 {
        let (low_half, high_half) = (code(j), code(j + 16));
        block[at + 4 + j] = (low_half & 0x0f) | ((high_half & 0x0f) << 4);
        high |= u32::from((low_half & 0x10) >> 4) << j;
        high |= u32::from((high_half & 0x10) >> 4) << (j + 16);
    }
    block[at..at + 4].copy_from_slice(&high.to_le_bytes());
}

#[inline(always)]
fn encode_q5_0_body(source: &[f32], out: &mut [u8]) {
    for (x, block) in source.chunks_exact(LEN).zip(out.chunks_exact_mut(22)) {
        let d = signed_max(x) / -16.0;
        let id = inverse(d);
        put_half(block, 0, d);
        put_five_bits(block, 2, |j| (i32::from(search::c_int(x[j] * id + 16.5) as i8)).min(31) as u8);
    }
}

#[inline(always)]
fn encode_q5_1_body(source: &[f32], out: &mut [u8]) {
    for (x, block) in source.chunks_exact(LEN).zip(out.chunks_exact_mut(24)) {
        let (min, max) = range(x);
        let d = (max - min) / 31.0;
        let id = inverse(d);
        put_half(block, 0, d);
        put_half(block, 2, min);
        put_five_bits(block, 4, |j| search::c_int((x[j] - min) * id + 0.5) as u8);
    }
}

#[inline(always)]
fn encode_q8_0_body(source: &[f32], out: &mut [u8]) {
    for (x, block) in source.chunks_exact(LEN).zip(out.chunks_exact_mut(34)) {
        let magnitude = x.iter().fold(0.0f32, |most, value| if value.abs() > most { value.abs() } else { most });
        let d = magnitude / 127.0;
        let id = inverse(d);
        put_half(block, 0, d);
        for (code, &value) in block[2..].iter_mut().zip(x) {
            *code = search::c_int((value * id).round()) as u8;
        }
    }
}

multiversion! {
    /// Encodes whole q4_0 blocks: 18 bytes for 32 weights.
    pub fn encode_q4_0(source: &[f32], out: &mut [u8]) => encode_q4_0_body
}
multiversion! {
    /// Encodes whole q4_1 blocks: 20 bytes for 32 weights.
    pub fn encode_q4_1(source: &[f32], out: &mut [u8]) => encode_q4_1_body
}
multiversion! {
    /// Encodes whole q5_0 blocks: 22 bytes for 32 weights.
    pub fn encode_q5_0(source: &[f32], out: &mut [u8]) => encode_q5_0_body
}
multiversion! {
    /// Encodes whole q5_1 blocks: 24 bytes for 32 weights.
    pub fn encode_q5_1(source: &[f32], out: &mut [u8]) => encode_q5_1_body
}
multiversion! {
    /// Encodes whole q8_0 blocks: 34 bytes for 32 weights.
    pub fn encode_q8_0(source: &[f32], out: &mut [u8]) => encode_q8_0_body
}

/// Splits 16 bytes of nibbles into 32 codes: low nibbles first.
#[inline(always)]
fn nibbles(bytes: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(16);
    for j in 0..16 {
        low[j] = bytes[j] & 0x0f;
        high[j] = bytes[j] >> 4;
    }
}

/// Adds the fifth bits to 32 codes.
#[inline(always)]
fn fifth_bits(word: u32, codes: &mut [u8]) {
    for (j, code) in codes.iter_mut().enumerate() {
        *code |= ((word >> j & 1) << 4) as u8;
    }
}

#[inline(always)]
fn unpack_blocks(row: &[u8], block_bytes: usize, out: &mut Unpacked, read: impl Fn(&[u8], &mut [u8]) -> (f32, f32)) {
    let blocks = row.chunks_exact(block_bytes).zip(out.codes.chunks_exact_mut(LEN));
    for ((block, codes), (scales, minimums)) in
        blocks.zip(out.scales.iter_mut().zip(out.minimums.as_chunks_mut::<2>().0))
    {
        let (scale, minimum) = read(block, codes);
        *scales = [scale; 8];
        *minimums = [minimum; 2];
    }
}

#[inline(always)]
fn unpack_q4_0_body(row: &[u8], out: &mut Unpacked) {
    unpack_blocks(row, 18, out, |block, codes| {
        nibbles(&block[2..18], codes);
        let d = half_at(block, 0);
        (d, 8.0 * d)
    });
}

#[inline(always)]
fn unpack_q4_1_body(row: &[u8], out: &mut Unpacked) {
    unpack_blocks(row, 20, out, |block, codes| {
        nibbles(&block[4..20], codes);
        (half_at(block, 0), -half_at(block, 2))
    });
}

#[inline(always)]
fn unpack_q5_0_body(row: &[u8], out: &mut Unpacked) {
    unpack_blocks(row, 22, out, |block, codes| {
        nibbles(&block[6..22], codes);
        fifth_bits(word_at(block, 2), codes);
        let d = half_at(block, 0);
        (d, 16.0 * d)
    });
}

#[inline(always)]
fn unpack_q5_1_body(row: &[u8], out: &mut Unpacked) {
    unpack_blocks(row, 24, out, |block, codes| {
        nibbles(&block[8..24], codes);
        fifth_bits(word_at(block, 4), codes);
        (half_at(block, 0), -half_at(block, 2))
    });
}

#[inline(always)]
fn unpack_q8_0_body(row: &[u8], out: &mut Unpacked) {
    unpack_blocks(row, 34, out, |block, codes| {
        codes.copy_from_slice(&block[2..34]);
        (half_at(block, 0), 0.0)
    });
}

multiversion! { pub(super) fn unpack_q4_0(row: &[u8], out: &mut Unpacked) => unpack_q4_0_body }
multiversion! { pub(super) fn unpack_q4_1(row: &[u8], out: &mut Unpacked) => unpack_q4_1_body }
multiversion! { pub(super) fn unpack_q5_0(row: &[u8], out: &mut Unpacked) => unpack_q5_0_body }
multiversion! { pub(super) fn unpack_q5_1(row: &[u8], out: &mut Unpacked) => unpack_q5_1_body }
multiversion! { pub(super) fn unpack_q8_0(row: &[u8], out: &mut Unpacked) => unpack_q8_0_body }

/// Decodes blocks whose codes and affine terms `read` gives: `offset + scale × (code − shift)`.
#[inline(always)]
fn decode_blocks(
    source: &[u8],
    block_bytes: usize,
    out: &mut [f32],
    read: impl Fn(&[u8], &mut [u8; LEN]) -> (f32, f32, f32),
) {
    let mut codes = [0u8; LEN];
    for (block, values) in source.chunks_exact(block_bytes).zip(out.chunks_exact_mut(LEN)) {
        let (scale, shift, offset) = read(block, &mut codes);
        for (value, &code) in values.iter_mut().zip(&codes) {
            *value = (f32::from(code) - shift) * scale + offset;
        }
    }
}

/// Decodes whole q4_0 blocks.
pub fn decode_q4_0(source: &[u8], out: &mut [f32]) {
    decode_blocks(source, 18, out, |block, codes| {
        nibbles(&block[2..18], codes);
        (half_at(block, 0), 8.0, 0.0)
    });
}

/// Decodes whole q4_1 blocks.
pub fn decode_q4_1(source: &[u8], out: &mut [f32]) {
    decode_blocks(source, 20, out, |block, codes| {
        nibbles(&block[4..20], codes);
        (half_at(block, 0), 0.0, half_at(block, 2))
    });
}

/// Decodes whole q5_0 blocks.
pub fn decode_q5_0(source: &[u8], out: &mut [f32]) {
    decode_blocks(source, 22, out, |block, codes| {
        nibbles(&block[6..22], codes);
        fifth_bits(word_at(block, 2), codes);
        (half_at(block, 0), 16.0, 0.0)
    });
}

/// Decodes whole q5_1 blocks.
pub fn decode_q5_1(source: &[u8], out: &mut [f32]) {
    decode_blocks(source, 24, out, |block, codes| {
        nibbles(&block[8..24], codes);
        fifth_bits(word_at(block, 4), codes);
        (half_at(block, 0), 0.0, half_at(block, 2))
    });
}

/// Decodes whole q8_0 blocks.
pub fn decode_q8_0(source: &[u8], out: &mut [f32]) {
    for (block, values) in source.chunks_exact(34).zip(out.chunks_exact_mut(LEN)) {
        let d = half_at(block, 0);
        for (value, &code) in values.iter_mut().zip(&block[2..]) {
            *value = f32::from(code as i8) * d;
        }
    }
}
