//! Reading the i-quants: iq1_s, iq1_m, iq2_xxs, iq2_xs, iq2_s, iq3_xxs, iq3_s.
//!
//! Groups of four or eight weights are indices into a codebook (`codebooks.rs`), with signs and small
//! scales beside them; 256 weights share an f16. Layouts and the order of operations are ggml's
//! `dequantize_row_iq*` (`ggml-quants.c`, MIT). Nothing here writes them: their searches need
//! importance and tables of neighbours.

use super::codebooks;
use super::legacy::{half_at, word_at};

/// Weights a block.
const LEN: usize = 256;

/// The magnitudes of the three 2-bit levels.
const TWO_BITS: [f32; 4] = [8.0, 25.0, 43.0, 0.0];
/// The magnitudes of iq3_xxs.
const IQ3_XXS: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
/// The magnitudes of iq3_s.
const IQ3_S: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];
/// The levels of iq1_s and iq1_m.
const ONE_BIT: [f32; 4] = [-1.0, 0.0, 1.0, 0.0];
/// What iq1_s and iq1_m add to a group's levels or take from them.
const DELTA: f32 = 0.125;

/// Eight signs from seven bits: the last makes their number even.
fn even_signs(seven: u32) -> u8 {
    (seven | (seven.count_ones() & 1) << 7) as u8
}

/// Eight weights of three levels.
fn put_eight(scale: f32, entry: u16, signs: u8, out: &mut [f32]) {
    for (j, value) in out.iter_mut().enumerate() {
        let sign = if signs >> j & 1 == 1 { -1.0 } else { 1.0 };
        *value = scale * TWO_BITS[usize::from(entry >> (2 * j) & 3)] * sign;
    }
}

/// Four weights of eight levels, with the low four signs.
fn put_four(scale: f32, levels: &[f32; 8], entry: u16, signs: u8, out: &mut [f32]) {
    for (j, value) in out.iter_mut().enumerate() {
        let sign = if signs >> j & 1 == 1 { -1.0 } else { 1.0 };
        *value = scale * levels[usize::from(entry >> (3 * j) & 7)] * sign;
    }
}

/// Eight weights of the one-bit formats.
fn put_shifted(scale: f32, index: usize, is_lowered: bool, out: &mut [f32]) {
    let entry = codebooks::IQ1[index];
    let delta = if is_lowered { -DELTA } else { DELTA };
    for (j, value) in out.iter_mut().enumerate() {
        *value = scale * (ONE_BIT[usize::from(entry >> (2 * j) & 3)] + delta);
    }
}

/// Every block with its 256 values.
fn blocks<'a, const BYTES: usize>(
    source: &'a [u8],
    out: &'a mut [f32],
) -> impl Iterator<Item = (&'a [u8; BYTES], &'a mut [f32; LEN])> {
    source.as_chunks().0.iter().zip(out.as_chunks_mut().0)
}

/// The scale of half a group of 32 from a nibble.
fn nibble_scale(d: f32, nibble: u8) -> f32 {
    d * (0.5 + f32::from(nibble)) * 0.25
}

/// Decodes whole iq2_xxs blocks: 66 bytes for 256 weights.
pub fn decode_iq2_xxs(source: &[u8], out: &mut [f32]) {
    for (block, values) in blocks::<66>(source, out) {
        let d = half_at(block, 0);
        for (run, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let at = 2 + 8 * run;
            let word = word_at(block, at + 4);
            let scale = d * (0.5 + (word >> 28) as f32) * 0.25;
            for (group, values) in values.chunks_exact_mut(8).enumerate() {
                let entry = codebooks::IQ2_XXS[usize::from(block[at + group])];
                put_eight(scale, entry, even_signs(word >> (7 * group) & 127), values);
            }
        }
    }
}

/// Decodes whole iq2_xs blocks: 74 bytes for 256 weights.
pub fn decode_iq2_xs(source: &[u8], out: &mut [f32]) {
    for (block, values) in blocks::<74>(source, out) {
        let d = half_at(block, 0);
        for (group, values) in values.chunks_exact_mut(8).enumerate() {
            let word = u16::from_le_bytes([block[2 + 2 * group], block[3 + 2 * group]]);
            let nibble = block[66 + group / 4] >> (4 * (group / 2 % 2)) & 0x0f;
            let entry = codebooks::IQ2_XS[usize::from(word & 511)];
            put_eight(nibble_scale(d, nibble), entry, even_signs(u32::from(word >> 9)), values);
        }
    }
}

/// Decodes whole iq2_s blocks: 82 bytes for 256 weights.
pub fn decode_iq2_s(source: &[u8], out: &mut [f32]) {
    for (block, values) in blocks::<82>(source, out) {
        let d = half_at(block, 0);
        for (group, values) in values.chunks_exact_mut(8).enumerate() {
            let high = usize::from(block[66 + group / 4] >> (2 * (group % 4)) & 3);
            let nibble = block[74 + group / 4] >> (4 * (group / 2 % 2)) & 0x0f;
            let entry = codebooks::IQ2_S[usize::from(block[2 + group]) | high << 8];
            put_eight(nibble_scale(d, nibble), entry, block[34 + group], values);
        }
    }
}

/// Decodes whole iq3_xxs blocks: 98 bytes for 256 weights.
pub fn decode_iq3_xxs(source: &[u8], out: &mut [f32]) {
    for (block, values) in blocks::<98>(source, out) {
        let d = half_at(block, 0);
        for (group, values) in values.chunks_exact_mut(8).enumerate() {
            let word = word_at(block, 66 + group / 4 * 4);
            let scale = d * (0.5 + (word >> 28) as f32) * 0.5;
            let signs = even_signs(word >> (7 * (group % 4)) & 127);
            let entry = |half: usize| codebooks::IQ3_XXS[usize::from(block[2 + 2 * group + half])];
            put_four(scale, &IQ3_XXS, entry(0), signs, &mut values[..4]);
            put_four(scale, &IQ3_XXS, entry(1), signs >> 4, &mut values[4..]);
        }
    }
}

/// Decodes whole iq3_s blocks: 110 bytes for 256 weights.
pub fn decode_iq3_s(source: &[u8], out: &mut [f32]) {
    for (block, values) in blocks::<110>(source, out) {
        let d = half_at(block, 0);
        for (group, values) in values.chunks_exact_mut(8).enumerate() {
            let nibble = block[106 + group / 8] >> (4 * (group / 4 % 2)) & 0x0f;
            let scale = d * f32::from(1 + 2 * nibble);
            let signs = block[74 + group];
            let entry = |half: usize| {
                let high = usize::from(block[66 + group / 4] >> (2 * (group % 4) + half) & 1);
                codebooks::IQ3_S[usize::from(block[2 + 2 * group + half]) | high << 8]
            };
            put_four(scale, &IQ3_S, entry(0), signs, &mut values[..4]);
            put_four(scale, &IQ3_S, entry(1), signs >> 4, &mut values[4..]);
        }
    }
}

/// Decodes whole iq1_s blocks: 50 bytes for 256 weights.
pub fn decode_iq1_s(source: &[u8], out: &mut [f32]) {
    for (block, values) in blocks::<50>(source, out) {
        let d = half_at(block, 0);
        for (group, values) in values.chunks_exact_mut(8).enumerate() {
            let at = 34 + group / 4 * 2;
            let word = u16::from_le_bytes([block[at], block[at + 1]]);
            let scale = d * f32::from(2 * (word >> 12 & 7) + 1);
            let high = usize::from(word >> (3 * (group % 4)) & 7);
            put_shifted(scale, usize::from(block[2 + group]) | high << 8, word & 0x8000 != 0, values);
        }
    }
}

/// Decodes whole iq1_m blocks: 56 bytes for 256 weights; the f16 lies in four nibbles between the scales.
pub fn decode_iq1_m(source: &[u8], out: &mut [f32]) {
    for (block, values) in blocks::<56>(source, out) {
        let word = |index: usize| u16::from_le_bytes([block[48 + 2 * index], block[49 + 2 * index]]);
        let bits = word(0) >> 12 | (word(1) >> 8 & 0x00f0) | (word(2) >> 4 & 0x0f00) | (word(3) & 0xf000);
        let d = half::f16::from_bits(bits).to_f32();
        for (group, values) in values.chunks_exact_mut(8).enumerate() {
            // Three bits of scale for sixteen weights, four scales a word.
            let scale = d * f32::from(2 * (word(group / 8) >> (3 * (group / 2 % 4)) & 7) + 1);
            let nibble = block[32 + group / 2] >> (4 * (group % 2)) & 0x0f;
            let index = usize::from(block[group]) | usize::from(nibble & 7) << 8;
            put_shifted(scale, index, nibble & 8 != 0, values);
        }
    }
}
