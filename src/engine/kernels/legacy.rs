//! Reading the 32-weight blocks: q4_0, q4_1, q5_0, q5_1, q8_0; writing them: `legacy_encode.rs`.
//!
//! Layouts are ggml's (`ggml-common.h`, MIT). A block is little-endian: an f16 scale, for the `_1` types an f16 minimum, for the 5-bit types a
//! u32 of fifth bits, then the codes, low nibbles first.

use half::f16;

use super::multiversion;

/// Weights a block.
pub(super) const LEN: usize = 32;

#[inline(always)]
pub(super) fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[inline(always)]
pub(super) fn word_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// Splits 16 bytes of nibbles into 32 codes: low nibbles first.
#[inline(always)]
pub(super) fn nibbles(bytes: &[u8], codes: &mut [u8]) {
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

/// The codes of blocks of `block_bytes`, one a byte.
#[inline(always)]
fn block_codes(row: &[u8], block_bytes: usize, codes: &mut [u8], read: impl Fn(&[u8], &mut [u8])) {
    for (block, codes) in row.chunks_exact(block_bytes).zip(codes.chunks_exact_mut(LEN)) {
        read(block, codes);
    }
}

#[inline(always)]
pub(super) fn nibble_blocks(row: &[u8], block_bytes: usize, at: usize, codes: &mut [u8]) {
    block_codes(row, block_bytes, codes, |block, codes| nibbles(&block[at..at + 16], codes));
}

#[inline(always)]
fn five_bit_blocks(row: &[u8], block_bytes: usize, at: usize, codes: &mut [u8]) {
    block_codes(row, block_bytes, codes, |block, codes| {
        nibbles(&block[at + 4..at + 20], codes);
        fifth_bits(word_at(block, at), codes);
    });
}

#[inline(always)]
fn codes_q4_0_body(row: &[u8], codes: &mut [u8]) {
    nibble_blocks(row, 18, 2, codes);
}

#[inline(always)]
fn codes_q4_1_body(row: &[u8], codes: &mut [u8]) {
    nibble_blocks(row, 20, 4, codes);
}

#[inline(always)]
fn codes_q5_0_body(row: &[u8], codes: &mut [u8]) {
    five_bit_blocks(row, 22, 2, codes);
}

#[inline(always)]
fn codes_q5_1_body(row: &[u8], codes: &mut [u8]) {
    five_bit_blocks(row, 24, 4, codes);
}

#[inline(always)]
fn codes_q8_0_body(row: &[u8], codes: &mut [u8]) {
    block_codes(row, 34, codes, |block, codes| codes.copy_from_slice(&block[2..34]));
}

multiversion! { pub(super) fn codes_q4_0, codes_q4_0_at(row: &[u8], codes: &mut [u8]) => codes_q4_0_body }
multiversion! { pub(super) fn codes_q4_1, codes_q4_1_at(row: &[u8], codes: &mut [u8]) => codes_q4_1_body }
multiversion! { pub(super) fn codes_q5_0, codes_q5_0_at(row: &[u8], codes: &mut [u8]) => codes_q5_0_body }
multiversion! { pub(super) fn codes_q5_1, codes_q5_1_at(row: &[u8], codes: &mut [u8]) => codes_q5_1_body }
multiversion! { pub(super) fn codes_q8_0, codes_q8_0_at(row: &[u8], codes: &mut [u8]) => codes_q8_0_body }

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
