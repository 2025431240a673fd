//! 4-bit codes that stand for values of a table: iq4_nl, iq4_xs and mxfp4.
//!
//! Layouts, tables and searches are ggml's (`ggml-common.h`, `quantize_row_iq4_nl_impl` and
//! `quantize_row_mxfp4_ref` in `ggml-quants.c`, MIT), byte for byte as built with
//! `-ffp-contract=off`. The searches of iq4_nl and iq4_xs put one run of 32 in each lane.

use super::legacy::{LEN, half_at, nibble_blocks, nibbles};
use super::legacy_encode::{put_half, put_nibbles, weighted_group};
use super::search::lane_search;
use super::search::lanes::{IQ4_VALUES, Lanes, by_lanes, four_of, in_lanes};
use super::search::{GROUP_MAX_EPS, c_int, nearest_int};
use super::{Columns, multiversion};

/// Weights in a block of iq4_xs.
const SUPER: usize = 256;

/// Twice the values of e2m1, the 4-bit float of mxfp4 and nvfp4; code 8 is minus zero.
pub(super) const FP4_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The two sums of a trial.
#[inline(always)]
fn iq4_sums<L: Lanes>(values: &[L; LEN], weights: &[L; LEN], inverse: L) -> (L, L) {
    let (mut sum_qx, mut sum_q2) = (L::splat(0.0), L::splat(0.0));
    for (&value, &weight) in values.iter().zip(weights) {
        let q = (inverse * value).iq4_value();
        let product = weight * q;
        sum_qx = sum_qx + product * value;
        sum_q2 = sum_q2 + product * q;
    }
    (sum_qx, sum_q2)
}

/// The best scale for codes of [`IQ4_VALUES`], for eight neighbouring runs of 32.
#[inline(always)]
fn scales<L: Lanes>(values: &[f32; SUPER], weights: &[f32; SUPER]) -> [f32; 8] {
    let (values, weights) = (in_lanes::<L, LEN>(values), in_lanes::<L, LEN>(weights));
    let zero = L::splat(0.0);
    let least = f32::from(IQ4_VALUES[0]);
    let (max, magnitude, _) = lane_search::signed_max(&values);
    let is_zero = L::splat(GROUP_MAX_EPS).greater(magnitude);
    let max = is_zero.choose(L::splat(1.0), max);
    let (sum_qx, sum_q2) = iq4_sums(&values, &weights, L::splat(1.0) / ((L::splat(-0.0) - max) / L::splat(least)));
    let mut scale = sum_q2.greater(zero).choose(sum_qx / sum_q2, zero);
    let mut best = scale * sum_qx;
    for step in -7i8..=7 {
        let (sum_qx, sum_q2) = iq4_sums(&values, &weights, L::splat(f32::from(step) + least) / max);
        let is_better = sum_q2.greater(zero).and((sum_qx * sum_qx).greater(best * sum_q2));
        let this = sum_qx / sum_q2;
        scale = is_better.choose(this, scale);
        best = is_better.choose(this * sum_qx, best);
    }
    is_zero.choose(zero, scale).store()
}

/// The codes of 32 values multiplied with `inverse`.
#[inline(always)]
fn iq4_codes<L: Lanes>(values: &[f32; LEN], inverse: f32) -> [u8; LEN] {
    let inverse = L::splat(inverse);
    let [a, b, c, d] = four_of::<L>(values);
    L::iq4_codes([inverse * a, inverse * b, inverse * c, inverse * d])
}

#[inline(always)]
fn encode_iq4_nl_body<L: Lanes>(source: &[f32], columns: Columns<'_>, out: &mut [u8]) {
    let mut sums =
        if columns.importance.is_some() { lane_search::sums_of_squares::<L>(source, LEN) } else { Vec::new() };
    for sum in &mut sums {
        *sum *= 2.0 / 32.0;
    }
    for (group, (values, out)) in source.chunks(SUPER).zip(out.chunks_mut(8 * 18)).enumerate() {
        let (x, weights) = weighted_group::<L>(values, group, columns, &sums, LEN);
        let found = scales::<L>(&x, &weights);
        for ((x, scale), block) in x.as_chunks::<LEN>().0.iter().zip(found).zip(out.as_chunks_mut::<18>().0) {
            put_half::<L>(block, 0, scale);
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            put_nibbles(&iq4_codes::<L>(x, inverse), &mut block[2..]);
        }
    }
}

#[inline(always)]
fn encode_iq4_xs_body<L: Lanes>(source: &[f32], columns: Columns<'_>, out: &mut [u8]) {
    let sums = if columns.importance.is_some() { lane_search::sums_of_squares::<L>(source, SUPER) } else { Vec::new() };
    let mut weights = [0.0f32; SUPER];
    for (index, (x, block)) in source.as_chunks::<SUPER>().0.iter().zip(out.as_chunks_mut::<136>().0).enumerate() {
        match columns.of(index, SUPER) {
            Some(importance) => {
                let mean = sums[index] * (2.0 / 256.0);
                super::kquants_encode::weighted::<L>(x, importance, mean, &mut weights);
            }
            None => super::kquants_encode::squares(x, &mut weights),
        }
        let scales = scales::<L>(x, &weights);
        let (max_scale, _) = super::search::signed_max(&scales);
        let d = -max_scale / 32.0;
        let id = if d == 0.0 { 0.0 } else { 1.0 / d };
        put_half::<L>(block, 0, d);
        block[2..8].fill(0);
        let mut high = 0u16;
        for (run, values) in x.as_chunks::<LEN>().0.iter().enumerate() {
            let code = nearest_int(id * scales[run]).clamp(-32, 31);
            let scale = d * code as f32;
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            put_nibbles(&iq4_codes::<L>(values, inverse), &mut block[8 + run * 16..8 + (run + 1) * 16]);
            let code = (code + 32) as u8;
            block[4 + run / 2] |= (code & 0x0f) << (4 * (run % 2));
            high |= u16::from(code >> 4) << (2 * run);
        }
        block[2..4].copy_from_slice(&high.to_le_bytes());
    }
}

/// Half the power of two that an e8m0 byte stands for, so that it goes with [`FP4_DOUBLED`].
#[inline(always)]
pub(super) fn e8m0_half(byte: u8) -> f32 {
    // The two least are denormal.
    f32::from_bits(if byte < 2 { 0x0020_0000 << byte } else { u32::from(byte - 1) << 23 })
}

/// The shared exponent of a block whose largest magnitude is `most`, as ggml computes it:
/// `⌊log2 most⌋ − 2 + 127`, the logarithm rounded to a float, the result cut to a byte.
#[inline(always)]
fn shared_exponent(most: f32) -> u8 {
    if most <= 0.0 {
        return 0;
    }
    let bits = most.to_bits();
    let exponent = (bits >> 23) as i32 - 127;
    // Just below a power of two the logarithm rounds up to it; that, denormals and infinity are rare.
    let is_plain = bits & 0x007f_ffff < 0x007f_ff00 && (-126..128).contains(&exponent);
    let floor = if is_plain { exponent as f32 } else { (f64::from(most).log2() as f32).floor() };
    c_int(floor - 2.0 + 127.0) as u8
}

/// The code of the nearest level in each lane, the first of equally near ones.
#[inline(always)]
fn nearest_level<L: Lanes>(value: L, levels: &[f32; 16]) -> L {
    let mut code = L::splat(0.0);
    let mut best = (L::splat(levels[0]) - value).abs();
    for (index, &level) in levels.iter().enumerate().skip(1) {
        let error = (L::splat(level) - value).abs();
        code = best.greater(error).choose(L::splat(index as f32), code);
        best = error.least(best);
    }
    code
}

#[inline(always)]
fn encode_mxfp4_body<L: Lanes>(source: &[f32], out: &mut [u8]) {
    for (x, block) in source.as_chunks::<LEN>().0.iter().zip(out.as_chunks_mut::<17>().0) {
        let [a, b, c, d] = four_of::<L>(x);
        let most = d.abs().most(c.abs().most(b.abs().most(a.abs().most(L::splat(0.0))))).largest();
        block[0] = shared_exponent(most);
        let scale = e8m0_half(block[0]);
        let mut levels = [0.0f32; 16];
        for (slot, level) in levels.iter_mut().zip(FP4_DOUBLED) {
            *slot = f32::from(level) * scale;
        }
        let codes = [
            nearest_level(a, &levels),
            nearest_level(b, &levels),
            nearest_level(c, &levels),
            nearest_level(d, &levels),
        ];
        put_nibbles(&L::truncated(codes), &mut block[1..]);
    }
}

by_lanes! {
    /// Encodes whole iq4_nl blocks: 18 bytes for 32 weights.
    pub fn encode_iq4_nl(source: &[f32], columns: Columns<'_>, out: &mut [u8]) => encode_iq4_nl_body
}
by_lanes! {
    /// Encodes whole iq4_xs blocks: 136 bytes for 256 weights.
    pub fn encode_iq4_xs(source: &[f32], columns: Columns<'_>, out: &mut [u8]) => encode_iq4_xs_body
}
by_lanes! {
    /// Encodes whole mxfp4 blocks: 17 bytes for 32 weights. Importance changes nothing here.
    pub fn encode_mxfp4(source: &[f32], out: &mut [u8]) => encode_mxfp4_body
}

/// The scale of run `run` of an iq4_xs block: six bits, 32 too large.
#[inline(always)]
pub(super) fn iq4_xs_scale(block: &[u8], run: usize) -> u8 {
    let high = u16::from_le_bytes([block[2], block[3]]);
    let low = block[4 + run / 2] >> (4 * (run % 2)) & 0x0f;
    low | ((high >> (2 * run) & 3) as u8) << 4
}

/// The table's values of 16 bytes of nibbles, as signed bytes.
#[inline(always)]
fn levels(table: &[i8; 16], bytes: &[u8], out: &mut [u8]) {
    nibbles(bytes, out);
    for code in out {
        *code = table[usize::from(*code & 0x0f)] as u8;
    }
}

#[inline(always)]
fn iq4_xs_runs(row: &[u8]) -> impl Iterator<Item = (&[u8], f32)> {
    row.chunks_exact(136).flat_map(|block| {
        let d = half_at(block, 0);
        (0..8).map(move |run| {
            (&block[8 + run * 16..8 + (run + 1) * 16], d * (f32::from(iq4_xs_scale(block, run)) - 32.0))
        })
    })
}

/// The codes of whole iq4_nl blocks.
pub(super) fn codes_iq4_nl(row: &[u8], codes: &mut [u8]) {
    nibble_blocks(row, 18, 2, codes);
}

/// The codes of whole iq4_xs blocks.
pub(super) fn codes_iq4_xs(row: &[u8], codes: &mut [u8]) {
    for (block, codes) in row.chunks_exact(136).zip(codes.chunks_exact_mut(SUPER)) {
        nibble_blocks(&block[8..], 16, 0, codes);
    }
}

/// The codes of whole mxfp4 blocks.
pub(super) fn codes_mxfp4(row: &[u8], codes: &mut [u8]) {
    nibble_blocks(row, 17, 1, codes);
}

/// Decodes runs of 32 from the bytes of their codes and their scale.
#[inline(always)]
fn decode_runs<'a>(table: &[i8; 16], runs: impl Iterator<Item = (&'a [u8], f32)>, out: &mut [f32]) {
    for ((bytes, scale), values) in runs.zip(out.as_chunks_mut::<LEN>().0) {
        let mut codes = [0u8; LEN];
        levels(table, bytes, &mut codes);
        for (value, code) in values.iter_mut().zip(codes) {
            *value = scale * f32::from(code as i8);
        }
    }
}

#[inline(always)]
fn decode_iq4_nl_body(source: &[u8], out: &mut [f32]) {
    decode_runs(&IQ4_VALUES, source.chunks_exact(18).map(|block| (&block[2..], half_at(block, 0))), out);
}

#[inline(always)]
fn decode_iq4_xs_body(source: &[u8], out: &mut [f32]) {
    decode_runs(&IQ4_VALUES, iq4_xs_runs(source), out);
}

#[inline(always)]
fn decode_mxfp4_body(source: &[u8], out: &mut [f32]) {
    decode_runs(&FP4_DOUBLED, source.chunks_exact(17).map(|block| (&block[1..], e8m0_half(block[0]))), out);
}

multiversion! {
    /// Decodes whole iq4_nl blocks.
    pub fn decode_iq4_nl, decode_iq4_nl_at(source: &[u8], out: &mut [f32]) => decode_iq4_nl_body
}
multiversion! {
    /// Decodes whole iq4_xs blocks.
    pub fn decode_iq4_xs, decode_iq4_xs_at(source: &[u8], out: &mut [f32]) => decode_iq4_xs_body
}
multiversion! {
    /// Decodes whole mxfp4 blocks.
    pub fn decode_mxfp4, decode_mxfp4_at(source: &[u8], out: &mut [f32]) => decode_mxfp4_body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_through_the_table_and_scales_are_the_decoded_values() {
        // Bytes below 0x70 keep every scale finite.
        let row: Vec<u8> = (0..36 * 8).map(|at| (at * 37 % 0x70) as u8).collect();
        let check = |what: &str, values: Vec<f32>, codes: Vec<u8>, table: &[i8; 16], scale: &dyn Fn(usize) -> f32| {
            for (at, (value, code)) in values.into_iter().zip(codes).enumerate() {
                let again = scale(at / LEN) * f32::from(table[usize::from(code)]);
                assert_eq!(again.to_bits(), value.to_bits(), "{what} {at}");
            }
        };
        type Read<'a, T> = &'a dyn Fn(&[u8], &mut [T]);
        fn all<T: Clone + Default>(row: &[u8], len: usize, read: Read<'_, T>) -> Vec<T> {
            let mut out = vec![T::default(); len];
            read(row, &mut out);
            out
        }
        check("iq4_nl", all(&row, 512, &decode_iq4_nl), all(&row, 512, &codes_iq4_nl), &IQ4_VALUES, &|run| {
            half_at(&row[run * 18..], 0)
        });
        let xs = &row[..2 * 136];
        check("iq4_xs", all(xs, 512, &decode_iq4_xs), all(xs, 512, &codes_iq4_xs), &IQ4_VALUES, &|run| {
            let block = &xs[run / 8 * 136..];
            half_at(block, 0) * (f32::from(iq4_xs_scale(block, run % 8)) - 32.0)
        });
        let mx = &row[..16 * 17];
        check("mxfp4", all(mx, 512, &decode_mxfp4), all(mx, 512, &codes_mxfp4), &FP4_DOUBLED, &|run| {
            e8m0_half(mx[run * 17])
        });
    }

    #[test]
    fn the_shared_exponent_is_that_of_the_rounded_logarithm() {
        assert_eq!(shared_exponent(0.0), 0);
        assert_eq!(shared_exponent(1.0), 125);
        assert_eq!(shared_exponent(1.999), 125);
        // Just below 2^100 the logarithm is 100 as a float; just below 2 it is not 1.
        assert_eq!(shared_exponent(2f32.powi(100).next_down()), 225);
        assert_eq!(shared_exponent(2f32.next_down()), 125);
        // ggml's conversion wraps for denormals.
        assert_eq!(shared_exponent(1e-40), 248);
    }
}
