//! Reading the 256-weight blocks: q2_k, q3_k, q4_k, q5_k, q6_k.
//!
//! Layouts are ggml's (`ggml-common.h`, MIT). Each block has runs of 16 or 32 weights with small
//! integer scales of their own under one or two f16. Writing them: `kquants_encode.rs`.

use half::f16;

use super::multiversion;

/// Weights a block.
pub(super) const LEN: usize = 256;

#[inline(always)]
fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[inline(always)]
fn unpack_two_bits(bytes: &[u8], codes: &mut [u8]) {
    for (bytes, codes) in bytes.chunks_exact(32).zip(codes.chunks_exact_mut(128)) {
        for (run, codes) in codes.chunks_exact_mut(32).enumerate() {
            for (code, &byte) in codes.iter_mut().zip(bytes) {
                *code = byte >> (2 * run) & 3;
            }
        }
    }
}

/// Scale `k` of q3_k's sixteen, six bits each, less 32.
#[inline(always)]
pub(super) fn q3_scale(scales: &[u8], k: usize) -> i32 {
    let low = if k < 8 { scales[k] & 0x0f } else { scales[k - 8] >> 4 };
    let high = scales[8 + k % 4] >> (2 * (k / 4)) & 3;
    i32::from(low | (high << 4)) - 32
}

/// Scale and minimum `j` of q4_k's and q5_k's eight, six bits each.
#[inline(always)]
pub(super) fn q4_scale(scales: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (scales[j] & 63, scales[j + 4] & 63)
    } else {
        ((scales[j + 4] & 0x0f) | ((scales[j - 4] >> 6) << 4), (scales[j + 4] >> 4) | ((scales[j] >> 6) << 4))
    }
}

#[inline(always)]
fn q3_codes(block: &[u8], codes: &mut [u8]) {
    unpack_two_bits(&block[32..96], codes);
    for (run, codes) in codes.chunks_exact_mut(32).enumerate() {
        for (code, &mask) in codes.iter_mut().zip(&block[..32]) {
            *code |= (mask >> run & 1) << 2;
        }
    }
}

#[inline(always)]
fn q4_codes(bytes: &[u8], codes: &mut [u8]) {
    for (bytes, codes) in bytes.chunks_exact(32).zip(codes.chunks_exact_mut(64)) {
        let (low, high) = codes.split_at_mut(32);
        for l in 0..32 {
            low[l] = bytes[l] & 0x0f;
            high[l] = bytes[l] >> 4;
        }
    }
}

#[inline(always)]
fn q5_codes(block: &[u8], codes: &mut [u8]) {
    q4_codes(&block[48..176], codes);
    for (run, codes) in codes.chunks_exact_mut(32).enumerate() {
        for (code, &mask) in codes.iter_mut().zip(&block[16..48]) {
            *code |= (mask >> run & 1) << 4;
        }
    }
}

#[inline(always)]
fn q6_codes(block: &[u8], codes: &mut [u8]) {
    for (half, codes) in codes.chunks_exact_mut(128).enumerate() {
        let low = &block[half * 64..(half + 1) * 64];
        let high = &block[128 + half * 32..128 + (half + 1) * 32];
        for l in 0..32 {
            codes[l] = (low[l] & 0x0f) | ((high[l] & 3) << 4);
            codes[l + 32] = (low[l + 32] & 0x0f) | ((high[l] >> 2 & 3) << 4);
            codes[l + 64] = (low[l] >> 4) | ((high[l] >> 4 & 3) << 4);
            codes[l + 96] = (low[l + 32] >> 4) | ((high[l] >> 6) << 4);
        }
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
fn codes_q2_k_body(row: &[u8], codes: &mut [u8]) {
    block_codes(row, 84, codes, |block, codes| unpack_two_bits(&block[16..80], codes));
}

#[inline(always)]
fn codes_q3_k_body(row: &[u8], codes: &mut [u8]) {
    block_codes(row, 110, codes, q3_codes);
}

#[inline(always)]
fn codes_q4_k_body(row: &[u8], codes: &mut [u8]) {
    block_codes(row, 144, codes, |block, codes| q4_codes(&block[16..144], codes));
}

#[inline(always)]
fn codes_q5_k_body(row: &[u8], codes: &mut [u8]) {
    block_codes(row, 176, codes, q5_codes);
}

#[inline(always)]
fn codes_q6_k_body(row: &[u8], codes: &mut [u8]) {
    block_codes(row, 210, codes, q6_codes);
}

multiversion! { pub(super) fn codes_q2_k, codes_q2_k_at(row: &[u8], codes: &mut [u8]) => codes_q2_k_body }
multiversion! { pub(super) fn codes_q3_k, codes_q3_k_at(row: &[u8], codes: &mut [u8]) => codes_q3_k_body }
multiversion! { pub(super) fn codes_q4_k, codes_q4_k_at(row: &[u8], codes: &mut [u8]) => codes_q4_k_body }
multiversion! { pub(super) fn codes_q5_k, codes_q5_k_at(row: &[u8], codes: &mut [u8]) => codes_q5_k_body }
multiversion! { pub(super) fn codes_q6_k, codes_q6_k_at(row: &[u8], codes: &mut [u8]) => codes_q6_k_body }

/// Decodes whole q2_k blocks.
pub fn decode_q2_k(source: &[u8], out: &mut [f32]) {
    let mut codes = [0u8; LEN];
    for (block, values) in source.chunks_exact(84).zip(out.chunks_exact_mut(LEN)) {
        let (d, dmin) = (half_at(block, 80), half_at(block, 82));
        unpack_two_bits(&block[16..80], &mut codes);
        for (at, (value, &code)) in values.iter_mut().zip(&codes).enumerate() {
            let byte = block[at / 16];
            *value = d * f32::from(byte & 0x0f) * f32::from(code) - dmin * f32::from(byte >> 4);
        }
    }
}

/// Decodes whole q3_k blocks.
pub fn decode_q3_k(source: &[u8], out: &mut [f32]) {
    let mut codes = [0u8; LEN];
    for (block, values) in source.chunks_exact(110).zip(out.chunks_exact_mut(LEN)) {
        let d = half_at(block, 108);
        q3_codes(block, &mut codes);
        for (at, (value, &code)) in values.iter_mut().zip(&codes).enumerate() {
            *value = d * q3_scale(&block[96..108], at / 16) as f32 * (f32::from(code) - 4.0);
        }
    }
}

#[inline(always)]
fn decode_eight_runs(block: &[u8], codes: &[u8; LEN], values: &mut [f32]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for (j, (values, codes)) in values.chunks_exact_mut(32).zip(codes.chunks_exact(32)).enumerate() {
        let (scale, minimum) = q4_scale(&block[4..16], j);
        let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
        for (value, &code) in values.iter_mut().zip(codes) {
            *value = scale * f32::from(code) - minimum;
        }
    }
}

/// Decodes whole q4_k blocks.
pub fn decode_q4_k(source: &[u8], out: &mut [f32]) {
    let mut codes = [0u8; LEN];
    for (block, values) in source.chunks_exact(144).zip(out.chunks_exact_mut(LEN)) {
        q4_codes(&block[16..144], &mut codes);
        decode_eight_runs(block, &codes, values);
    }
}

/// Decodes whole q5_k blocks.
pub fn decode_q5_k(source: &[u8], out: &mut [f32]) {
    let mut codes = [0u8; LEN];
    for (block, values) in source.chunks_exact(176).zip(out.chunks_exact_mut(LEN)) {
        q5_codes(block, &mut codes);
        decode_eight_runs(block, &codes, values);
    }
}

/// Decodes whole q6_k blocks.
pub fn decode_q6_k(source: &[u8], out: &mut [f32]) {
    let mut codes = [0u8; LEN];
    for (block, values) in source.chunks_exact(210).zip(out.chunks_exact_mut(LEN)) {
        let d = half_at(block, 208);
        q6_codes(block, &mut codes);
        for (at, (value, &code)) in values.iter_mut().zip(&codes).enumerate() {
            *value = d * f32::from(block[192 + at / 16] as i8) * (f32::from(code) - 32.0);
        }
    }
}
