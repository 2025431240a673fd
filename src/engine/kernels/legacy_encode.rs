//! Writing the 32-weight blocks: q4_0, q4_1, q5_0, q5_1, q8_0, with and without importance.
//!
//! The steps are ggml's `quantize_row_q*_ref` and `quantize_row_q*_impl` (`ggml-quants.c`, MIT), byte
//! for byte as built with `-ffp-contract=off`. Without importance a block is a few vectors; with it,
//! eight blocks are searched at a time, one a lane.

use super::Columns;
use super::kquants_encode::{squares, weighted};
use super::legacy::LEN;
use super::search::lanes::{Lanes, by_lanes, four_of};
use super::search::{self, Affine, Steps, Symmetric, lane_search};

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
    if -low == high {
        // Both signs reach it: the order decides.
        return search::signed_max(x).0;
    }
    if -low > high { low } else { high }
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
fn put_five_bits<L: Lanes>(codes: &[u8; LEN], out: &mut [u8]) {
    out[..4].copy_from_slice(&L::fifth_bits(codes).to_le_bytes());
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
    let mut codes = codes;
    for code in &mut codes {
        *code = (*code as i8).min(most) as u8;
    }
    codes
}

/// Every block of values with its bytes.
#[inline(always)]
fn blocks<'a, const BYTES: usize>(
    source: &'a [f32],
    out: &'a mut [u8],
) -> impl Iterator<Item = (&'a [f32; LEN], &'a mut [u8; BYTES])> {
    source.as_chunks().0.iter().zip(out.as_chunks_mut().0)
}

/// Up to eight blocks, filled up with zeros, and the weights of their errors: by importance where there is some, else
/// the squares. `means` has a mean square for each `stretch` of the source.
#[inline(always)]
pub(super) fn weighted_group<L: Lanes>(
    values: &[f32],
    group: usize,
    columns: Columns<'_>,
    means: &[f32],
    stretch: usize,
) -> ([f32; 8 * LEN], [f32; 8 * LEN]) {
    let mut x = [0.0f32; 8 * LEN];
    let mut weights = [0.0f32; 8 * LEN];
    x[..values.len()].copy_from_slice(values);
    let blocks = values.as_chunks::<LEN>().0.iter().zip(weights.as_chunks_mut::<LEN>().0);
    for (index, (values, weights)) in (group * 8..).zip(blocks) {
        match columns.of(index, LEN) {
            Some(importance) => weighted::<L>(values, importance, means[index * LEN / stretch], weights),
            None => squares(values, weights),
        }
    }
    (x, weights)
}

/// The mean square of each row.
#[inline(always)]
fn row_means<L: Lanes>(source: &[f32], row_len: usize) -> Vec<f32> {
    let mut means = lane_search::sums_of_squares::<L>(source, row_len);
    for mean in &mut means {
        *mean /= row_len as f32;
    }
    means
}

/// What a weighted search finds for eight blocks, and how a block is written with it.
trait Found<L: Lanes>: Sized {
    /// Bytes before the codes.
    const HEAD: usize;
    fn search(x: &[f32; 8 * LEN], weights: &[f32; 8 * LEN], max_code: i32) -> [Self; 8];
    fn put_head(&self, block: &mut [u8]);
    fn codes(self, x: &[f32; LEN], max_code: i32) -> [u8; LEN];
}

impl<L: Lanes> Found<L> for Symmetric {
    const HEAD: usize = 2;

    #[inline(always)]
    fn search(x: &[f32; 8 * LEN], weights: &[f32; 8 * LEN], max_code: i32) -> [Self; 8] {
        lane_search::symmetric::<L, LEN>(x, weights, max_code)
    }

    #[inline(always)]
    fn put_head(&self, block: &mut [u8]) {
        put_half::<L>(block, 0, self.scale);
    }

    #[inline(always)]
    fn codes(self, x: &[f32; LEN], max_code: i32) -> [u8; LEN] {
        if self.is_zero {
            return [0; LEN];
        }
        let inverse = L::splat(self.inverse);
        let [a, b, c, d] = four_of::<L>(x);
        let codes = L::nearest([inverse * a, inverse * b, inverse * c, inverse * d], -max_code, max_code - 1);
        raised(codes, max_code)
    }
}

impl<L: Lanes> Found<L> for Affine {
    const HEAD: usize = 4;

    #[inline(always)]
    fn search(x: &[f32; 8 * LEN], weights: &[f32; 8 * LEN], max_code: i32) -> [Self; 8] {
        lane_search::with_minimum::<L, LEN>(x, weights, max_code, &Steps::WEIGHTED)
    }

    #[inline(always)]
    fn put_head(&self, block: &mut [u8]) {
        put_half::<L>(block, 0, self.scale);
        put_half::<L>(block, 2, -self.minimum);
    }

    #[inline(always)]
    fn codes(self, x: &[f32; LEN], max_code: i32) -> [u8; LEN] {
        let (inverse, shift) = (L::splat(self.inverse), L::splat(self.shift));
        let [a, b, c, d] = four_of::<L>(x);
        L::nearest(
            [inverse * (a - shift), inverse * (b - shift), inverse * (c - shift), inverse * (d - shift)],
            0,
            max_code,
        )
    }
}

/// Writes every block as the search of `F` finds it, weighted by importance.
#[inline(always)]
fn encode_weighted<L: Lanes, F: Found<L>, const BYTES: usize>(
    source: &[f32],
    columns: Columns<'_>,
    out: &mut [u8],
    max_code: i32,
    put_codes: impl Fn(&[u8; LEN], &mut [u8]),
) {
    let means = row_means::<L>(source, columns.row_len);
    for (group, (values, out)) in source.chunks(8 * LEN).zip(out.chunks_mut(8 * BYTES)).enumerate() {
        let (x, weights) = weighted_group::<L>(values, group, columns, &means, columns.row_len);
        let found = F::search(&x, &weights, max_code);
        for ((x, block), found) in blocks::<BYTES>(&x, out).zip(found) {
            found.put_head(block);
            put_codes(&found.codes(x, max_code), &mut block[F::HEAD..]);
        }
    }
}

/// Signed codes brought to `0..2 × max_code`.
#[inline(always)]
pub(super) fn raised(codes: [u8; LEN], max_code: i32) -> [u8; LEN] {
    let mut codes = codes;
    for code in &mut codes {
        *code = code.wrapping_add(max_code as u8);
    }
    codes
}

#[inline(always)]
fn encode_q4_0_body<L: Lanes>(source: &[f32], columns: Columns<'_>, out: &mut [u8]) {
    if columns.importance.is_some() {
        return encode_weighted::<L, Symmetric, 18>(source, columns, out, 8, put_nibbles);
    }
    for (x, block) in blocks::<18>(source, out) {
        let d = signed_max::<L>(x) / -8.0;
        put_half::<L>(block, 0, d);
        put_nibbles(&at_most(codes::<L>(x, 0.0, inverse(d), 8.5), 15), &mut block[2..]);
    }
}

#[inline(always)]
fn encode_q4_1_body<L: Lanes>(source: &[f32], columns: Columns<'_>, out: &mut [u8]) {
    if columns.importance.is_some() {
        return encode_weighted::<L, Affine, 20>(source, columns, out, 15, put_nibbles);
    }
    for (x, block) in blocks::<20>(source, out) {
        let (min, max) = signed_range::<L>(x);
        let d = (max - min) / 15.0;
        put_half::<L>(block, 0, d);
        put_half::<L>(block, 2, min);
        put_nibbles(&at_most(codes::<L>(x, min, inverse(d), 0.5), 15), &mut block[4..]);
    }
}

#[inline(always)]
fn encode_q5_0_body<L: Lanes>(source: &[f32], columns: Columns<'_>, out: &mut [u8]) {
    if columns.importance.is_some() {
        return encode_weighted::<L, Symmetric, 22>(source, columns, out, 16, put_five_bits::<L>);
    }
    for (x, block) in blocks::<22>(source, out) {
        let d = signed_max::<L>(x) / -16.0;
        put_half::<L>(block, 0, d);
        put_five_bits::<L>(&at_most(codes::<L>(x, 0.0, inverse(d), 16.5), 31), &mut block[2..]);
    }
}

#[inline(always)]
fn encode_q5_1_body<L: Lanes>(source: &[f32], columns: Columns<'_>, out: &mut [u8]) {
    if columns.importance.is_some() {
        return encode_weighted::<L, Affine, 24>(source, columns, out, 31, put_five_bits::<L>);
    }
    for (x, block) in blocks::<24>(source, out) {
        let (min, max) = signed_range::<L>(x);
        let d = (max - min) / 31.0;
        put_half::<L>(block, 0, d);
        put_half::<L>(block, 2, min);
        put_five_bits::<L>(&codes::<L>(x, min, inverse(d), 0.5), &mut block[4..]);
    }
}

#[inline(always)]
fn encode_q8_0_body<L: Lanes>(source: &[f32], out: &mut [u8]) {
    for (x, block) in blocks::<34>(source, out) {
        let [a, b, c, d] = four_of::<L>(x);
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
    }
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
