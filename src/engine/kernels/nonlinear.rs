//! 4-bit codes that stand for values of a table: iq4_nl, iq4_xs and mxfp4.
//!
//! Layouts, tables and searches are ggml's (`ggml-common.h`, `quantize_row_iq4_nl_impl` and
//! `quantize_row_mxfp4_ref` in `ggml-quants.c`, MIT), byte for byte as built with
//! `-ffp-contract=off`. The searches of iq4_nl and iq4_xs put one run of 32 in each lane.

use super::legacy::{LEN, half_at, nibbles};
use super::legacy_encode::{put_half, put_nibbles, weighted_group};
use super::packed::Unpacked;
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
fn e8m0_half(byte: u8) -> f32 {
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

/// The scale of run `run` of an iq4_xs block, six bits less 32.
#[inline(always)]
fn iq4_xs_scale(block: &[u8], run: usize) -> i32 {
    let high = u16::from_le_bytes([block[2], block[3]]);
    let low = block[4 + run / 2] >> (4 * (run % 2)) & 0x0f;
    i32::from(low) | i32::from(high >> (2 * run) & 3) << 4
}

/// The table's values of 16 bytes of nibbles, as signed bytes.
#[inline(always)]
fn levels(table: &[i8; 16], bytes: &[u8], out: &mut [u8]) {
    nibbles(bytes, out);
    for code in out {
        *code = table[usize::from(*code & 0x0f)] as u8;
    }
}

/// Gives runs of 32 with the bytes of their codes and their scale in the form of [`Unpacked`]: signed codes, no minimums.
#[inline(always)]
fn unpack_runs<'a>(table: &[i8; 16], runs: impl Iterator<Item = (&'a [u8], f32)>, out: &mut Unpacked) {
    let places = out.codes.chunks_exact_mut(LEN).zip(out.scales.iter_mut());
    for ((bytes, scale), (codes, scales)) in runs.zip(places) {
        levels(table, bytes, codes);
        *scales = [scale; 8];
    }
}

#[inline(always)]
fn unpack_iq4_nl_body(row: &[u8], out: &mut Unpacked) {
    unpack_runs(&IQ4_VALUES, row.chunks_exact(18).map(|block| (&block[2..], half_at(block, 0))), out);
}

#[inline(always)]
fn iq4_xs_runs(row: &[u8]) -> impl Iterator<Item = (&[u8], f32)> {
    row.chunks_exact(136).flat_map(|block| {
        let d = half_at(block, 0);
        (0..8).map(move |run| (&block[8 + run * 16..8 + (run + 1) * 16], d * (iq4_xs_scale(block, run) - 32) as f32))
    })
}

#[inline(always)]
fn unpack_iq4_xs_body(row: &[u8], out: &mut Unpacked) {
    unpack_runs(&IQ4_VALUES, iq4_xs_runs(row), out);
}

#[inline(always)]
fn unpack_mxfp4_body(row: &[u8], out: &mut Unpacked) {
    unpack_runs(&FP4_DOUBLED, row.chunks_exact(17).map(|block| (&block[1..], e8m0_half(block[0]))), out);
}

multiversion! {
    /// Brings a row of iq4_nl into signed codes of the table and scales, for [`Unpacked::is_signed`].
    pub fn unpack_iq4_nl(row: &[u8], out: &mut Unpacked) => unpack_iq4_nl_body
}
multiversion! {
    /// Brings a row of iq4_xs into signed codes of the table and scales, for [`Unpacked::is_signed`].
    pub fn unpack_iq4_xs(row: &[u8], out: &mut Unpacked) => unpack_iq4_xs_body
}
multiversion! {
    /// Brings a row of mxfp4 into signed codes of the table and scales, for [`Unpacked::is_signed`].
    pub fn unpack_mxfp4(row: &[u8], out: &mut Unpacked) => unpack_mxfp4_body
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
    pub fn decode_iq4_nl(source: &[u8], out: &mut [f32]) => decode_iq4_nl_body
}
multiversion! {
    /// Decodes whole iq4_xs blocks.
    pub fn decode_iq4_xs(source: &[u8], out: &mut [f32]) => decode_iq4_xs_body
}
multiversion! {
    /// Decodes whole mxfp4 blocks.
    pub fn decode_mxfp4(source: &[u8], out: &mut [f32]) => decode_mxfp4_body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpacked_codes_and_scales_are_the_decoded_values() {
        type Unpack = fn(&[u8], &mut Unpacked);
        type Decode = fn(&[u8], &mut [f32]);
        let kinds: [(usize, Unpack, Decode); 3] = [
            (36 * 8, unpack_iq4_nl, decode_iq4_nl),
            (2 * 136, unpack_iq4_xs, decode_iq4_xs),
            (16 * 17, unpack_mxfp4, decode_mxfp4),
        ];
        for (len, unpack, decode) in kinds {
            // Bytes below 0x70 keep every scale finite.
            let row: Vec<u8> = (0..len).map(|at| (at * 37 % 0x70) as u8).collect();
            let mut values = vec![0.0; 512];
            decode(&row, &mut values);
            let mut unpacked =
                Unpacked { codes: vec![0; 512], scales: vec![[0.0; 8]; 16], minimums: vec![0.0; 32], is_signed: true };
            unpack(&row, &mut unpacked);
            for (at, value) in values.into_iter().enumerate() {
                let again = unpacked.scales[at / 32][0] * f32::from(unpacked.codes[at] as i8);
                assert_eq!(again.to_bits(), value.to_bits(), "{len} {at}");
            }
        }
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
