//! The 256-weight blocks: q2_k, q3_k, q4_k, q5_k, q6_k.
//!
//! Layouts and searches are ggml's reference functions (`ggml-quants.c`, MIT), byte for byte as built
//! with `-ffp-contract=off`. Each block has sub-blocks of 16 or 32 weights with small integer scales
//! of their own; the searches are in `search.rs`.

use half::f16;

use super::multiversion;
use super::packed::Unpacked;
use super::search::{self, GROUP_MAX_EPS, Steps, nearest_int};

const LEN: usize = 256;

#[inline(always)]
fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Writes an f16 and answers the value as it will be read.
#[inline(always)]
fn put_half(block: &mut [u8], at: usize, value: f32) -> f32 {
    let half = f16::from_f32(value);
    block[at..at + 2].copy_from_slice(&half.to_le_bytes());
    half.to_f32()
}

/// Packs 2-bit codes: four runs of 32 share 32 bytes, in each half of 128.
#[inline(always)]
fn pack_two_bits(codes: &[u8; LEN], out: &mut [u8]) {
    for (codes, bytes) in codes.chunks_exact(128).zip(out.chunks_exact_mut(32)) {
        for (l, byte) in bytes.iter_mut().enumerate() {
            *byte = codes[l] | (codes[l + 32] << 2) | (codes[l + 64] << 4) | (codes[l + 96] << 6);
        }
    }
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

/// A run of `N` weights as an array; runs always divide a block.
#[inline(always)]
fn run<const N: usize>(x: &[f32], index: usize) -> &[f32; N] {
    x[index * N..(index + 1) * N].try_into().expect("a run of N values")
}

#[inline(always)]
fn encode_q2_k_body(source: &[f32], out: &mut [u8]) {
    let steps = Steps { first: -0.5, step: 0.1, count: 15, absolute_error: true };
    for (x, block) in source.chunks_exact(LEN).zip(out.chunks_exact_mut(84)) {
        let mut codes = [0u8; LEN];
        let (mut scales, mut minimums) = ([0.0f32; 16], [0.0f32; 16]);
        for j in 0..16 {
            let values: &[f32; 16] = run(x, j);
            let weights = values.map(f32::abs);
            (scales[j], minimums[j]) =
                search::with_minimum(values, &weights, &mut codes[j * 16..(j + 1) * 16], 3, &steps);
        }
        let max_scale = largest(&scales);
        let max_minimum = largest(&minimums);
        block[..16].fill(0);
        let mut d = put_half(block, 80, 0.0);
        let mut dmin = put_half(block, 82, 0.0);
        if max_scale > 0.0 {
            let iscale = 15.0 / max_scale;
            for j in 0..16 {
                block[j] = nearest_int(iscale * scales[j]) as u8;
            }
            d = put_half(block, 80, max_scale / 15.0);
        }
        if max_minimum > 0.0 {
            let iscale = 15.0 / max_minimum;
            for j in 0..16 {
                block[j] |= (nearest_int(iscale * minimums[j]) << 4) as u8;
            }
            dmin = put_half(block, 82, max_minimum / 15.0);
        }
        for j in 0..16 {
            let scale = d * f32::from(block[j] & 0x0f);
            if scale != 0.0 {
                let minimum = dmin * f32::from(block[j] >> 4);
                for (code, &value) in codes[j * 16..(j + 1) * 16].iter_mut().zip(run::<16>(x, j)) {
                    *code = nearest_int((value + minimum) / scale).clamp(0, 3) as u8;
                }
            }
        }
        pack_two_bits(&codes, &mut block[16..80]);
    }
}

#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most, &value| if value > most { value } else { most })
}

/// Scale `k` of q3_k's sixteen, six bits each, less 32.
#[inline(always)]
pub(super) fn q3_scale(scales: &[u8], k: usize) -> i32 {
    let low = if k < 8 { scales[k] & 0x0f } else { scales[k - 8] >> 4 };
    let high = scales[8 + k % 4] >> (2 * (k / 4)) & 3;
    i32::from(low | (high << 4)) - 32
}

#[inline(always)]
fn encode_q3_k_body(source: &[f32], out: &mut [u8]) {
    for (x, block) in source.chunks_exact(LEN).zip(out.chunks_exact_mut(110)) {
        let mut codes = [0i8; LEN];
        let mut scales = [0.0f32; 16];
        let (mut max_scale, mut magnitude) = (0.0f32, 0.0f32);
        for j in 0..16 {
            scales[j] = search::symmetric_greedy(run::<16>(x, j), &mut codes[j * 16..(j + 1) * 16], 4);
            if scales[j].abs() > magnitude {
                magnitude = scales[j].abs();
                max_scale = scales[j];
            }
        }
        block[96..108].fill(0);
        let mut d = put_half(block, 108, 0.0);
        if max_scale != 0.0 {
            let iscale = -32.0 / max_scale;
            for j in 0..16 {
                let l = (nearest_int(iscale * scales[j]).clamp(-32, 31) + 32) as u8;
                if j < 8 {
                    block[96 + j] = l & 0x0f;
                } else {
                    block[96 + j - 8] |= (l & 0x0f) << 4;
                }
                block[104 + j % 4] |= (l >> 4) << (2 * (j / 4));
            }
            d = put_half(block, 108, 1.0 / iscale);
        }
        for j in 0..16 {
            let scale = d * q3_scale(&block[96..108], j) as f32;
            if scale != 0.0 {
                for (code, &value) in codes[j * 16..(j + 1) * 16].iter_mut().zip(run::<16>(x, j)) {
                    *code = (nearest_int(value / scale).clamp(-4, 3) + 4) as i8;
                }
            }
        }
        let mut low = [0u8; LEN];
        block[..32].fill(0);
        for (at, (slot, &code)) in low.iter_mut().zip(&codes).enumerate() {
            *slot = code as u8;
            if code > 3 {
                block[at % 32] |= 1 << (at / 32);
                *slot = (code - 4) as u8;
            }
        }
        pack_two_bits(&low, &mut block[32..96]);
    }
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

/// What q4_k and q5_k share: eight runs of 32 with scale and minimum; fills bytes 0..16 and answers the codes.
#[inline(always)]
fn encode_eight_runs(x: &[f32], block: &mut [u8], max_code: i32, steps: &Steps) -> [u8; LEN] {
    let mut codes = [0u8; LEN];
    let (mut scales, mut minimums) = ([0.0f32; 8], [0.0f32; 8]);
    for j in 0..8 {
        let values: &[f32; 32] = run(x, j);
        let mut sum = 0.0f32;
        for &value in values {
            sum += value * value;
        }
        let mean = (sum / 32.0).sqrt();
        let weights = values.map(|value| mean + value.abs());
        (scales[j], minimums[j]) =
            search::with_minimum(values, &weights, &mut codes[j * 32..(j + 1) * 32], max_code, steps);
    }
    let max_scale = largest(&scales);
    let max_minimum = largest(&minimums);
    let inverse_scale = if max_scale > 0.0 { 63.0 / max_scale } else { 0.0 };
    let inverse_minimum = if max_minimum > 0.0 { 63.0 / max_minimum } else { 0.0 };
    let packed = &mut block[4..16];
    packed.fill(0);
    for j in 0..8 {
        let scale = (nearest_int(inverse_scale * scales[j]) as u8).min(63);
        let minimum = (nearest_int(inverse_minimum * minimums[j]) as u8).min(63);
        if j < 4 {
            packed[j] = scale;
            packed[j + 4] = minimum;
        } else {
            packed[j + 4] = (scale & 0x0f) | ((minimum & 0x0f) << 4);
            packed[j - 4] |= (scale >> 4) << 6;
            packed[j] |= (minimum >> 4) << 6;
        }
    }
    let d = put_half(block, 0, max_scale / 63.0);
    let dmin = put_half(block, 2, max_minimum / 63.0);
    for j in 0..8 {
        let (scale, minimum) = q4_scale(&block[4..16], j);
        let scale = d * f32::from(scale);
        if scale != 0.0 {
            let minimum = dmin * f32::from(minimum);
            for (code, &value) in codes[j * 32..(j + 1) * 32].iter_mut().zip(run::<32>(x, j)) {
                *code = nearest_int((value + minimum) / scale).clamp(0, max_code) as u8;
            }
        }
    }
    codes
}

#[inline(always)]
fn encode_q4_k_body(source: &[f32], out: &mut [u8]) {
    let steps = Steps { first: -1.0, step: 0.1, count: 20, absolute_error: false };
    for (x, block) in source.chunks_exact(LEN).zip(out.chunks_exact_mut(144)) {
        let codes = encode_eight_runs(x, block, 15, &steps);
        for (codes, bytes) in codes.chunks_exact(64).zip(block[16..].chunks_exact_mut(32)) {
            for (l, byte) in bytes.iter_mut().enumerate() {
                *byte = codes[l] | (codes[l + 32] << 4);
            }
        }
    }
}

#[inline(always)]
fn encode_q5_k_body(source: &[f32], out: &mut [u8]) {
    let steps = Steps { first: -0.5, step: 0.1, count: 15, absolute_error: false };
    for (x, block) in source.chunks_exact(LEN).zip(out.chunks_exact_mut(176)) {
        let codes = encode_eight_runs(x, block, 31, &steps);
        let (high, low) = block[16..].split_at_mut(32);
        high.fill(0);
        for (chunk, (codes, bytes)) in codes.chunks_exact(64).zip(low.chunks_exact_mut(32)).enumerate() {
            for l in 0..32 {
                bytes[l] = (codes[l] & 0x0f) | ((codes[l + 32] & 0x0f) << 4);
                high[l] |= (codes[l] >> 4) << (2 * chunk) | (codes[l + 32] >> 4) << (2 * chunk + 1);
            }
        }
    }
}

#[inline(always)]
fn encode_q6_k_body(source: &[f32], out: &mut [u8]) {
    for (x, block) in source.chunks_exact(LEN).zip(out.chunks_exact_mut(210)) {
        let mut codes = [0i8; LEN];
        let mut scales = [0.0f32; 16];
        let (mut max_scale, mut magnitude) = (0.0f32, 0.0f32);
        for j in 0..16 {
            scales[j] = search::symmetric(run::<16>(x, j), &mut codes[j * 16..(j + 1) * 16], 32);
            if scales[j].abs() > magnitude {
                magnitude = scales[j].abs();
                max_scale = scales[j];
            }
        }
        if magnitude < GROUP_MAX_EPS {
            block.fill(0);
            continue;
        }
        let iscale = -128.0 / max_scale;
        let d = put_half(block, 208, 1.0 / iscale);
        for j in 0..16 {
            block[192 + j] = nearest_int(iscale * scales[j]).min(127) as i8 as u8;
            let scale = d * f32::from(block[192 + j] as i8);
            if scale != 0.0 {
                for (code, &value) in codes[j * 16..(j + 1) * 16].iter_mut().zip(run::<16>(x, j)) {
                    *code = (nearest_int(value / scale).clamp(-32, 31) + 32) as i8;
                }
            }
        }
        let (low, high) = block.split_at_mut(128);
        for (half, codes) in codes.chunks_exact(128).enumerate() {
            for l in 0..32 {
                let [a, b, c, e] = [codes[l], codes[l + 32], codes[l + 64], codes[l + 96]].map(|code| code as u8);
                low[half * 64 + l] = (a & 0x0f) | ((c & 0x0f) << 4);
                low[half * 64 + 32 + l] = (b & 0x0f) | ((e & 0x0f) << 4);
                high[half * 32 + l] = (a >> 4) | ((b >> 4) << 2) | ((c >> 4) << 4) | ((e >> 4) << 6);
            }
        }
    }
}

multiversion! {
    /// Encodes whole q2_k blocks: 84 bytes for 256 weights.
    pub fn encode_q2_k(source: &[f32], out: &mut [u8]) => encode_q2_k_body
}
multiversion! {
    /// Encodes whole q3_k blocks: 110 bytes for 256 weights.
    pub fn encode_q3_k(source: &[f32], out: &mut [u8]) => encode_q3_k_body
}
multiversion! {
    /// Encodes whole q4_k blocks: 144 bytes for 256 weights.
    pub fn encode_q4_k(source: &[f32], out: &mut [u8]) => encode_q4_k_body
}
multiversion! {
    /// Encodes whole q5_k blocks: 176 bytes for 256 weights.
    pub fn encode_q5_k(source: &[f32], out: &mut [u8]) => encode_q5_k_body
}
multiversion! {
    /// Encodes whole q6_k blocks: 210 bytes for 256 weights.
    pub fn encode_q6_k(source: &[f32], out: &mut [u8]) => encode_q6_k_body
}

/// Gives each block with its codes, its scale vectors (one a 32) and its minimums (one a 16).
#[inline(always)]
fn unpack_blocks(
    row: &[u8],
    block_bytes: usize,
    out: &mut Unpacked,
    read: impl Fn(&[u8], &mut [u8], &mut [[f32; 8]], &mut [f32]),
) {
    let blocks = row.chunks_exact(block_bytes).zip(out.codes.chunks_exact_mut(LEN));
    for ((block, codes), (scales, minimums)) in
        blocks.zip(out.scales.chunks_exact_mut(8).zip(out.minimums.chunks_exact_mut(16)))
    {
        read(block, codes, scales, minimums);
    }
}

/// Scale vectors of a block with sixteen runs of 16.
#[inline(always)]
fn sixteen_scales(scales: &mut [[f32; 8]], scale: impl Fn(usize) -> f32) {
    for (group, lanes) in scales.iter_mut().enumerate() {
        let (first, last) = (scale(2 * group), scale(2 * group + 1));
        *lanes = [first, first, first, first, last, last, last, last];
    }
}

#[inline(always)]
fn unpack_q2_k_body(row: &[u8], out: &mut Unpacked) {
    unpack_blocks(row, 84, out, |block, codes, scales, minimums| {
        let (d, dmin) = (half_at(block, 80), half_at(block, 82));
        unpack_two_bits(&block[16..80], codes);
        sixteen_scales(scales, |j| d * f32::from(block[j] & 0x0f));
        for (minimum, &byte) in minimums.iter_mut().zip(block) {
            *minimum = dmin * f32::from(byte >> 4);
        }
    });
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
fn unpack_q3_k_body(row: &[u8], out: &mut Unpacked) {
    unpack_blocks(row, 110, out, |block, codes, scales, minimums| {
        let d = half_at(block, 108);
        q3_codes(block, codes);
        sixteen_scales(scales, |j| d * q3_scale(&block[96..108], j) as f32);
        for (j, minimum) in minimums.iter_mut().enumerate() {
            *minimum = 4.0 * (d * q3_scale(&block[96..108], j) as f32);
        }
    });
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
fn eight_scales(block: &[u8], scales: &mut [[f32; 8]], minimums: &mut [f32]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for (j, (lanes, minimums)) in scales.iter_mut().zip(minimums.as_chunks_mut::<2>().0).enumerate() {
        let (scale, minimum) = q4_scale(&block[4..16], j);
        *lanes = [d * f32::from(scale); 8];
        *minimums = [dmin * f32::from(minimum); 2];
    }
}

#[inline(always)]
fn unpack_q4_k_body(row: &[u8], out: &mut Unpacked) {
    unpack_blocks(row, 144, out, |block, codes, scales, minimums| {
        q4_codes(&block[16..144], codes);
        eight_scales(block, scales, minimums);
    });
}

#[inline(always)]
fn unpack_q5_k_body(row: &[u8], out: &mut Unpacked) {
    unpack_blocks(row, 176, out, |block, codes, scales, minimums| {
        q5_codes(block, codes);
        eight_scales(block, scales, minimums);
    });
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

#[inline(always)]
fn unpack_q6_k_body(row: &[u8], out: &mut Unpacked) {
    unpack_blocks(row, 210, out, |block, codes, scales, minimums| {
        let d = half_at(block, 208);
        q6_codes(block, codes);
        sixteen_scales(scales, |j| d * f32::from(block[192 + j] as i8));
        for (minimum, &scale) in minimums.iter_mut().zip(&block[192..208]) {
            *minimum = 32.0 * (d * f32::from(scale as i8));
        }
    });
}

multiversion! { pub(super) fn unpack_q2_k(row: &[u8], out: &mut Unpacked) => unpack_q2_k_body }
multiversion! { pub(super) fn unpack_q3_k(row: &[u8], out: &mut Unpacked) => unpack_q3_k_body }
multiversion! { pub(super) fn unpack_q4_k(row: &[u8], out: &mut Unpacked) => unpack_q4_k_body }
multiversion! { pub(super) fn unpack_q5_k(row: &[u8], out: &mut Unpacked) => unpack_q5_k_body }
multiversion! { pub(super) fn unpack_q6_k(row: &[u8], out: &mut Unpacked) => unpack_q6_k_body }

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
