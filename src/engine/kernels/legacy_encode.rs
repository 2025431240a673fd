//! Writing the 32-weight blocks: q4_0, q4_1, q5_0, q5_1, q8_0, with and without importance.
//!
//! The steps are ggml's `quantize_row_q*_ref` and `quantize_row_q*_impl` (`ggml-quants.c`, MIT), byte
//! for byte as built with `-ffp-contract=off`. Without importance a block is a few vectors; with it,
//! eight blocks are searched at a time, one a lane.

use super::kquants_encode::weighted;
use super::lanes::{Lanes, by_lanes, four_of};
use super::legacy::LEN;
use super::search::{self, Affine, Steps, Symmetric};
use super::{Columns, lane_search};

#[inline(always)]
pub(super) fn put_half<L: Lanes>(block: &mut [u8], at: usize, value: f32) {
    block[at..at + 2].copy_from_slice(&L::half(value).to_le_bytes());
}

#[inline(always)]
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// The least and the greatest of 32 values and two bounds.
#[inline(always)]
fn range<L: Lanes>(x: &[f32; LEN], least: f32, most: f32) -> (f32, f32) {
    let [a, b, c, d] = four_of::<L>(x);
    // The bound stays where a value is no number, as in the reference.
    let low = d.least(c.least(b.least(a.least(L::splat(least)))));
    let high = d.most(c.most(b.most(a.most(L::splat(most)))));
    let negated = L::splat(-0.0) - low;
    (-negated.largest(), high.largest())
}

/// The least and the greatest of 32 values; of zeros the first decides the sign.
#[inline(always)]
fn signed_range<L: Lanes>(x: &[f32; LEN]) -> (f32, f32) {
    let (mut min, mut max) = range::<L>(x, f32::MAX, -f32::MAX);
    if min == 0.0 || max == 0.0 {
        (min, max) = (f32::MAX, -f32::MAX);
        for &value in x {
            min = if value < min { value } else { min };
            max = if value > max { value } else { max };
        }
    }
    (min, max)
}

/// The first value of largest magnitude, with its sign.
#[inline(always)]
fn signed_max<L: Lanes>(x: &[f32; LEN]) -> f32 {
    let (low, high) = range::<L>(x, 0.0, 0.0);
    if -low > high {
        low
    } else if high > -low {
        high
    } else {
        // Both signs reach it: the order decides.
        search::signed_max(x).0
    }
}

#[inline(always)]
pub(super) fn put_nibbles(codes: &[u8; LEN], out: &mut [u8]) {
    let (low, high) = codes.split_at(16);
    for ((byte, low), high) in out.iter_mut().zip(low).zip(high) {
        *byte = (low & 0x0f) | (high << 4);
    }
}

/// Writes the fifth bits, then the nibbles.
#[inline(always)]
fn put_five_bits(codes: &[u8; LEN], out: &mut [u8]) {
    let mut high = 0u32;
    for (j, &code) in codes.iter().enumerate() {
        high |= u32::from(code >> 4 & 1) << j;
    }
    out[..4].copy_from_slice(&high.to_le_bytes());
    put_nibbles(codes, &mut out[4..20]);
}

/// Codes `truncate((x − shift) × factor + half)`, as bytes.
#[inline(always)]
fn codes<L: Lanes>(x: &[f32; LEN], shift: f32, factor: f32, half: f32) -> [u8; LEN] {
    let (shift, factor, half) = (L::splat(shift), L::splat(factor), L::splat(half));
    let [a, b, c, d] = four_of::<L>(x);
    L::truncated([
        (a - shift) * factor + half,
        (b - shift) * factor + half,
        (c - shift) * factor + half,
        (d - shift) * factor + half,
    ])
}

/// Clamps from above as ggml does, in signed bytes.
#[inline(always)]
fn at_most(codes: [u8; LEN], most: i8) -> [u8; LEN] {
    codes.map(|code| (code as i8).min(most) as u8)
}

/// Gives every block of values with its bytes.
#[inline(always)]
fn each_block(source: &[f32], out: &mut [u8], block_bytes: usize, encode: impl Fn(&[f32; LEN], &mut [u8])) {
    for (x, block) in source.as_chunks::<LEN>().0.iter().zip(out.chunks_exact_mut(block_bytes)) {
        encode(x, block);
    }
}

/// Searches eight blocks at a time with `search` and gives each block with what was found.
#[inline(always)]
pub(super) fn each_weighted<L: Lanes, F: Copy>(
    source: &[f32],
    columns: Columns<'_>,
    out: &mut [u8],
    block_bytes: usize,
    search: impl Fn(&[f32; 8 * LEN], &[f32; 8 * LEN]) -> [F; 8],
    mean: impl Fn(usize) -> f32,
    encode: impl Fn(&[f32; LEN], F, &mut [u8]),
) {
    let mut x = [0.0f32; 8 * LEN];
    let mut weights = [0.0f32; 8 * LEN];
    for (group, (values, out)) in source.chunks(8 * LEN).zip(out.chunks_mut(8 * block_bytes)).enumerate() {
        // The last group may have fewer blocks: the others stay what they are and are dropped.
        x[..values.len()].copy_from_slice(values);
        for (block, values) in values.as_chunks::<LEN>().0.iter().enumerate() {
            let index = group * 8 + block;
            let weights = &mut weights[block * LEN..(block + 1) * LEN];
            match columns.of(index, LEN) {
                Some(importance) => weighted::<L>(values, importance, mean(index), weights),
                None => {
                    for (weight, value) in weights.iter_mut().zip(values) {
                        *weight = value * value;
                    }
                }
            }
        }
        let found = search(&x, &weights);
        for ((x, found), block) in x.as_chunks::<LEN>().0.iter().zip(found).zip(out.chunks_exact_mut(block_bytes)) {
            encode(x, found, block);
        }
    }
}

/// [`each_weighted`] with the mean square of each block's row.
#[inline(always)]
fn each_in_row<L: Lanes, F: Copy>(
    source: &[f32],
    columns: Columns<'_>,
    out: &mut [u8],
    block_bytes: usize,
    search: impl Fn(&[f32; 8 * LEN], &[f32; 8 * LEN]) -> [F; 8],
    encode: impl Fn(&[f32; LEN], F, &mut [u8]),
) {
    let mut means = lane_search::sums_of_squares::<L>(source, columns.row_len);
    for mean in &mut means {
        *mean /= columns.row_len as f32;
    }
    let mean = |index: usize| means[index * LEN / columns.row_len];
    each_weighted::<L, F>(source, columns, out, block_bytes, search, mean, encode);
}

/// Codes of a symmetric search.
#[inline(always)]
fn symmetric_codes<L: Lanes>(x: &[f32; LEN], found: Symmetric, max_code: i32) -> [u8; LEN] {
    if found.is_zero {
        return [0; LEN];
    }
    let inverse = L::splat(found.inverse);
    let [a, b, c, d] = four_of::<L>(x);
    L::nearest([inverse * a, inverse * b, inverse * c, inverse * d], -max_code, max_code - 1)
        .map(|code| code.wrapping_add(max_code as u8))
}

/// Codes of a search with a minimum.
#[inline(always)]
fn affine_codes<L: Lanes>(x: &[f32; LEN], found: Affine, max_code: i32) -> [u8; LEN] {
    let (inverse, shift) = (L::splat(found.inverse), L::splat(found.shift));
    let [a, b, c, d] = four_of::<L>(x);
    L::nearest(
        [inverse * (a - shift), inverse * (b - shift), inverse * (c - shift), inverse * (d - shift)],
        0,
        max_code,
    )
}

#[inline(always)]
fn encode_q4_0_body<L: Lanes>(source: &[f32], columns: Columns<'_>, out: &mut [u8]) {
    if columns.importance.is_some() {
        let search = |x: &[f32; 256], weights: &[f32; 256]| lane_search::symmetric::<L, LEN>(x, weights, 8);
        return each_in_row::<L, _>(source, columns, out, 18, search, |x, found, block| {
            put_half::<L>(block, 0, found.scale);
            put_nibbles(&symmetric_codes::<L>(x, found, 8), &mut block[2..]);
        });
    }
    each_block(source, out, 18, |x, block| {
        let d = signed_max::<L>(x) / -8.0;
        put_half::<L>(block, 0, d);
        put_nibbles(&at_most(codes::<L>(x, 0.0, inverse(d), 8.5), 15), &mut block[2..]);
    });
}

#[inline(always)]
fn encode_q4_1_body<L: Lanes>(source: &[f32], columns: Columns<'_>, out: &mut [u8]) {
    if columns.importance.is_some() {
        let search = |x: &[f32; 256], weights: &[f32; 256]| {
            lane_search::with_minimum::<L, LEN>(x, weights, 15, &Steps::WEIGHTED)
        };
        return each_in_row::<L, _>(source, columns, out, 20, search, |x, found, block| {
            put_half::<L>(block, 0, found.scale);
            put_half::<L>(block, 2, -found.minimum);
            put_nibbles(&affine_codes::<L>(x, found, 15), &mut block[4..]);
        });
    }
    each_block(source, out, 20, |x, block| {
        let (min, max) = signed_range::<L>(x);
        let d = (max - min) / 15.0;
        put_half::<L>(block, 0, d);
        put_half::<L>(block, 2, min);
        put_nibbles(&at_most(codes::<L>(x, min, inverse(d), 0.5), 15), &mut block[4..]);
    });
}

#[inline(always)]
fn encode_q5_0_body<L: Lanes>(source: &[f32], columns: Columns<'_>, out: &mut [u8]) {
    if columns.importance.is_some() {
        let search = |x: &[f32; 256], weights: &[f32; 256]| lane_search::symmetric::<L, LEN>(x, weights, 16);
        return each_in_row::<L, _>(source, columns, out, 22, search, |x, found, block| {
            put_half::<L>(block, 0, found.scale);
            put_five_bits(&symmetric_codes::<L>(x, found, 16), &mut block[2..]);
        });
    }
    each_block(source, out, 22, |x, block| {
        let d = signed_max::<L>(x) / -16.0;
        put_half::<L>(block, 0, d);
        put_five_bits(&at_most(codes::<L>(x, 0.0, inverse(d), 16.5), 31), &mut block[2..]);
    });
}

#[inline(always)]
fn encode_q5_1_body<L: Lanes>(source: &[f32], columns: Columns<'_>, out: &mut [u8]) {
    if columns.importance.is_some() {
        let search = |x: &[f32; 256], weights: &[f32; 256]| {
            lane_search::with_minimum::<L, LEN>(x, weights, 31, &Steps::WEIGHTED)
        };
        return each_in_row::<L, _>(source, columns, out, 24, search, |x, found, block| {
            put_half::<L>(block, 0, found.scale);
            put_half::<L>(block, 2, -found.minimum);
            put_five_bits(&affine_codes::<L>(x, found, 31), &mut block[4..]);
        });
    }
    each_block(source, out, 24, |x, block| {
        let (min, max) = signed_range::<L>(x);
        let d = (max - min) / 31.0;
        put_half::<L>(block, 0, d);
        put_half::<L>(block, 2, min);
        put_five_bits(&codes::<L>(x, min, inverse(d), 0.5), &mut block[4..]);
    });
}

#[inline(always)]
fn encode_q8_0_body<L: Lanes>(source: &[f32], out: &mut [u8]) {
    each_block(source, out, 34, |x, block| {
        let vectors = four_of::<L>(x);
        let [a, b, c, d] = vectors;
        let zero = L::splat(0.0);
        let magnitude = d.abs().most(c.abs().most(b.abs().most(a.abs().most(zero)))).largest();
        let scale = magnitude / 127.0;
        put_half::<L>(block, 0, scale);
        let factor = L::splat(inverse(scale));
        block[2..].copy_from_slice(&L::truncated([
            (a * factor).half_away(),
            (b * factor).half_away(),
            (c * factor).half_away(),
            (d * factor).half_away(),
        ]));
    });
}

by_lanes! {
    /// Encodes whole q4_0 blocks: 18 bytes for 32 weights.
    pub fn encode_q4_0(source: &[f32], columns: Columns<'_>, out: &mut [u8]) => encode_q4_0_body
}
by_lanes! {
    /// Encodes whole q4_1 blocks: 20 bytes for 32 weights.
    pub fn encode_q4_1(source: &[f32], columns: Columns<'_>, out: &mut [u8]) => encode_q4_1_body
}
by_lanes! {
    /// Encodes whole q5_0 blocks: 22 bytes for 32 weights.
    pub fn encode_q5_0(source: &[f32], columns: Columns<'_>, out: &mut [u8]) => encode_q5_0_body
}
by_lanes! {
    /// Encodes whole q5_1 blocks: 24 bytes for 32 weights.
    pub fn encode_q5_1(source: &[f32], columns: Columns<'_>, out: &mut [u8]) => encode_q5_1_body
}
by_lanes! {
    /// Encodes whole q8_0 blocks: 34 bytes for 32 weights. Importance changes nothing here.
    pub fn encode_q8_0(source: &[f32], out: &mut [u8]) => encode_q8_0_body
}
