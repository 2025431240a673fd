//! Writing the 256-weight blocks: q2_k, q3_k, q4_k, q5_k, q6_k, with and without importance.
//!
//! The steps are ggml's `quantize_row_q*_K_ref` and `quantize_row_q*_K_impl` (`ggml-quants.c`, MIT),
//! byte for byte as built with `-ffp-contract=off`. First every run gets the scale (and minimum) that
//! suits it, eight runs at a time (`lane_search.rs`); then the scales are rounded to few bits, and the
//! codes follow from the rounded ones.

use super::Columns;
use super::kquants::{LEN, q3_scale, q4_scale};
use super::legacy_encode::raised;
use super::search::lanes::{Lanes, by_lanes, four_of};
use super::search::{self, Affine, GROUP_MAX_EPS, Steps, Symmetric, lane_search, nearest_int};

/// Writes an f16 and answers the value as it will be read.
#[inline(always)]
fn put_half<L: Lanes>(block: &mut [u8], at: usize, value: f32) -> f32 {
    let bits = L::half(value);
    block[at..at + 2].copy_from_slice(&bits.to_le_bytes());
    half::f16::from_bits(bits).to_f32_const()
}

#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most, &value| if value > most { value } else { most })
}

/// A block's values, the importance of its columns, and the sum of its squares (0 without importance).
#[derive(Clone, Copy)]
struct Block<'a> {
    values: &'a [f32; LEN],
    importance: Option<&'a [f32]>,
    square_sum: f32,
}

/// Sums of the squares of each block where importance needs them.
#[inline(always)]
fn square_sums<L: Lanes>(source: &[f32], columns: Columns<'_>) -> Vec<f32> {
    if columns.importance.is_some() { lane_search::sums_of_squares::<L>(source, LEN) } else { Vec::new() }
}

/// Every block with its bytes.
#[inline(always)]
fn blocks<'a, const BYTES: usize>(
    source: &'a [f32],
    columns: Columns<'a>,
    sums: &'a [f32],
    out: &'a mut [u8],
) -> impl Iterator<Item = (Block<'a>, &'a mut [u8; BYTES])> {
    let pairs = source.as_chunks::<LEN>().0.iter().zip(out.as_chunks_mut().0);
    pairs.enumerate().map(move |(index, (values, bytes))| {
        let square_sum = sums.get(index).copied().unwrap_or(0.0);
        (Block { values, importance: columns.of(index, LEN), square_sum }, bytes)
    })
}

/// ggml's weights of errors where columns have an importance: `importance × √(mean + x²)`.
#[inline(always)]
pub(super) fn weighted<L: Lanes>(values: &[f32], importance: &[f32], mean: f32, weights: &mut [f32]) {
    let runs = values.as_chunks::<8>().0.iter().zip(importance.as_chunks::<8>().0);
    for ((x, importance), weights) in runs.zip(weights.as_chunks_mut::<8>().0) {
        let x = L::load(x);
        *weights = (L::load(importance) * (L::splat(mean) + x * x).sqrt()).store();
    }
}

/// The weights of errors where nothing is known of the columns.
#[inline(always)]
pub(super) fn squares(values: &[f32], weights: &mut [f32]) {
    for (weight, value) in weights.iter_mut().zip(values) {
        *weight = value * value;
    }
}

/// Sums of neighbouring runs of `N` weights.
#[inline(always)]
fn run_sums<const N: usize, const RUNS: usize>(weights: &[f32; LEN]) -> [f32; RUNS] {
    std::array::from_fn(|run| {
        let mut sum = 0.0f32;
        for &weight in &weights[run * N..(run + 1) * N] {
            sum += weight;
        }
        sum
    })
}

/// The codes of a block by its rounded scales and minimums; runs whose scale became zero keep the codes of their search.
#[inline(always)]
fn affine_codes<L: Lanes, const RUNS: usize>(
    values: &[f32; LEN],
    found: &[Affine; RUNS],
    scales: &[f32; RUNS],
    minimums: &[f32; RUNS],
    max_code: i32,
) -> [u8; LEN] {
    let mut codes = [0u8; LEN];
    let len = LEN / RUNS;
    for (chunk, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let mut vectors = four_of::<L>(&values[chunk * 32..]);
        for (vector, lanes) in vectors.iter_mut().enumerate() {
            let run = (chunk * 32 + vector * 8) / len;
            *lanes = (*lanes + L::splat(minimums[run])) / L::splat(scales[run]);
        }
        *codes = L::nearest(vectors, 0, max_code);
    }
    for run in (0..RUNS).filter(|&run| scales[run] == 0.0) {
        for at in run * len..(run + 1) * len {
            codes[at] = found[run].code(values[at], max_code);
        }
    }
    codes
}

/// As [`affine_codes`] without minimums: codes in `0..2 × max_code` around `max_code`. Runs whose scale became zero are
/// left to `keep`.
#[inline(always)]
fn symmetric_codes<L: Lanes>(
    values: &[f32; LEN],
    scales: &[f32; 16],
    max_code: i32,
    keep: impl Fn(usize, &[f32], &mut [u8]),
) -> [u8; LEN] {
    let mut codes = [0u8; LEN];
    for (chunk, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let mut vectors = four_of::<L>(&values[chunk * 32..]);
        for (vector, lanes) in vectors.iter_mut().enumerate() {
            *lanes = *lanes / L::splat(scales[(chunk * 32 + vector * 8) / 16]);
        }
        *codes = raised(L::nearest(vectors, -max_code, max_code - 1), max_code);
    }
    for run in (0..16).filter(|&run| scales[run] == 0.0) {
        let range = run * 16..(run + 1) * 16;
        keep(run, &values[range.clone()], &mut codes[range]);
    }
    codes
}

/// Two halves of eight as one array.
#[inline(always)]
fn joined<T: Copy + Default>(first: [T; 8], last: [T; 8]) -> [T; 16] {
    let mut out = [T::default(); 16];
    out[..8].copy_from_slice(&first);
    out[8..].copy_from_slice(&last);
    out
}

/// Packs 2-bit codes: four runs of 32 share 32 bytes, in each half of 128.
#[inline(always)]
fn pack_two_bits(codes: &[u8; LEN], out: &mut [u8]) {
    for (codes, bytes) in codes.as_chunks::<128>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        for (l, byte) in bytes.iter_mut().enumerate() {
            *byte = codes[l] | (codes[l + 32] << 2) | (codes[l + 64] << 4) | (codes[l + 96] << 6);
        }
    }
}

#[inline(always)]
fn encode_q2_k_body<L: Lanes>(source: &[f32], columns: Columns<'_>, out: &mut [u8]) {
    let sums = square_sums::<L>(source, columns);
    for (block, bytes) in blocks::<84>(source, columns, &sums, out) {
        let x = block.values;
        let mut weights = [0.0f32; LEN];
        let steps = match block.importance {
            Some(importance) => {
                weighted::<L>(x, importance, block.square_sum / 256.0, &mut weights);
                Steps::WEIGHTED
            }
            None => {
                for (weight, value) in weights.iter_mut().zip(x) {
                    *weight = value.abs();
                }
                Steps::Q2_K
            }
        };
        let found = joined(
            lane_search::with_minimum::<L, 16>(&x[..128], &weights[..128], 3, &steps),
            lane_search::with_minimum::<L, 16>(&x[128..], &weights[128..], 3, &steps),
        );
        let (scales, minimums) = (found.map(|run| run.scale), found.map(|run| run.minimum));
        let (d, dmin);
        if block.importance.is_some() {
            let sums = run_sums::<16, 16>(&weights);
            let (scale, scale_codes) = search::positive(&scales, &sums, 15);
            let (minimum, minimum_codes) = search::positive(&minimums, &sums, 15);
            for j in 0..16 {
                bytes[j] = scale_codes[j] | (minimum_codes[j] << 4);
            }
            d = put_half::<L>(bytes, 80, scale);
            dmin = put_half::<L>(bytes, 82, minimum);
        } else {
            bytes[..16].fill(0);
            let (max_scale, max_minimum) = (largest(&scales), largest(&minimums));
            let inverse = if max_scale > 0.0 { 15.0 / max_scale } else { 0.0 };
            let inverse_minimum = if max_minimum > 0.0 { 15.0 / max_minimum } else { 0.0 };
            for j in 0..16 {
                if max_scale > 0.0 {
                    bytes[j] = nearest_int(inverse * scales[j]) as u8;
                }
                if max_minimum > 0.0 {
                    bytes[j] |= (nearest_int(inverse_minimum * minimums[j]) << 4) as u8;
                }
            }
            d = put_half::<L>(bytes, 80, max_scale / 15.0);
            dmin = put_half::<L>(bytes, 82, max_minimum / 15.0);
        }
        let scales: [f32; 16] = std::array::from_fn(|j| d * f32::from(bytes[j] & 0x0f));
        let minimums: [f32; 16] = std::array::from_fn(|j| dmin * f32::from(bytes[j] >> 4));
        let codes = affine_codes::<L, 16>(x, &found, &scales, &minimums, 3);
        pack_two_bits(&codes, &mut bytes[16..80]);
    }
}

/// Puts scale `j` of q3_k's sixteen, six bits, into twelve zeroed bytes.
#[inline(always)]
fn put_q3_scale(scales: &mut [u8], j: usize, code: u8) {
    if j < 8 {
        scales[j] = code & 0x0f;
    } else {
        scales[j - 8] |= (code & 0x0f) << 4;
    }
    scales[8 + j % 4] |= (code >> 4) << (2 * (j / 4));
}

#[inline(always)]
fn encode_q3_k_body<L: Lanes>(source: &[f32], columns: Columns<'_>, out: &mut [u8]) {
    let sums = square_sums::<L>(source, columns);
    for (block, bytes) in blocks::<110>(source, columns, &sums, out) {
        let x = block.values;
        bytes[96..108].fill(0);
        let mut found = [Symmetric::default(); 16];
        let d = if let Some(importance) = block.importance {
            let mut weights = [0.0f32; LEN];
            weighted::<L>(x, importance, 2.0 * block.square_sum / 256.0, &mut weights);
            found = joined(
                lane_search::symmetric::<L, 16>(&x[..128], &weights[..128], 4),
                lane_search::symmetric::<L, 16>(&x[128..], &weights[128..], 4),
            );
            let scales = found.map(|run| run.scale);
            let whole = search::symmetric(&scales, &run_sums::<16, 16>(&weights), 32);
            for (j, &scale) in scales.iter().enumerate() {
                put_q3_scale(&mut bytes[96..108], j, whole.code(scale, 32));
            }
            put_half::<L>(bytes, 108, whole.scale)
        } else {
            let scales = joined(
                lane_search::symmetric_greedy::<L>(&x[..128], 4),
                lane_search::symmetric_greedy::<L>(&x[128..], 4),
            );
            let (max_scale, _) = search::signed_max(&scales);
            if max_scale == 0.0 {
                put_half::<L>(bytes, 108, 0.0)
            } else {
                let inverse = -32.0 / max_scale;
                for (j, &scale) in scales.iter().enumerate() {
                    // ggml keeps the integer in a byte before it clamps it.
                    let code = nearest_int(inverse * scale) as i8;
                    put_q3_scale(&mut bytes[96..108], j, (i32::from(code).clamp(-32, 31) + 32) as u8);
                }
                put_half::<L>(bytes, 108, 1.0 / inverse)
            }
        };
        let scales: [f32; 16] = std::array::from_fn(|j| d * q3_scale(&bytes[96..108], j) as f32);
        let mut codes = symmetric_codes::<L>(x, &scales, 4, |run, values, codes| {
            if block.importance.is_none() {
                search::symmetric_greedy(values, codes, 4);
            } else {
                for (code, &value) in codes.iter_mut().zip(values) {
                    *code = found[run].code(value, 4);
                }
            }
        });
        let (high, low) = bytes[..96].split_at_mut(32);
        high.fill(0);
        for (run, codes) in codes.as_chunks::<32>().0.iter().enumerate() {
            for (mask, &code) in high.iter_mut().zip(codes) {
                *mask |= (code >> 2) << run;
            }
        }
        for code in &mut codes {
            *code &= 3;
        }
        pack_two_bits(&codes, low);
    }
}

/// What q4_k and q5_k share: eight runs of 32 with scale and minimum; fills bytes 0..16 and answers the codes.
#[inline(always)]
fn encode_eight_runs<L: Lanes>(block: Block<'_>, bytes: &mut [u8], max_code: i32, steps: &Steps) -> [u8; LEN] {
    let x = block.values;
    let mut weights = [0.0f32; LEN];
    let steps = match block.importance {
        Some(importance) => {
            weighted::<L>(x, importance, 2.0 * block.square_sum / 256.0, &mut weights);
            &Steps::WEIGHTED
        }
        None => {
            let sums = lane_search::sums_of_eight::<L>(x, 32);
            for (run, sum) in sums.into_iter().enumerate() {
                let mean = (sum / 32.0).sqrt();
                for at in run * 32..(run + 1) * 32 {
                    weights[at] = mean + x[at].abs();
                }
            }
            steps
        }
    };
    let found = lane_search::with_minimum::<L, 32>(x, &weights, max_code, steps);
    let (scales, minimums) = (found.map(|run| run.scale), found.map(|run| run.minimum));
    let (mut scale_codes, mut minimum_codes) = ([0u8; 8], [0u8; 8]);
    let (d, dmin);
    if block.importance.is_some() {
        let sums = run_sums::<32, 8>(&weights);
        (d, scale_codes) = search::positive(&scales, &sums, 63);
        (dmin, minimum_codes) = search::positive(&minimums, &sums, 63);
        if max_code == 31 {
            // Only q5_k's steps have this; it matters where a negative scale became a large byte.
            scale_codes = scale_codes.map(|code| code.min(63));
            minimum_codes = minimum_codes.map(|code| code.min(63));
        }
    } else {
        let (max_scale, max_minimum) = (largest(&scales), largest(&minimums));
        let inverse = if max_scale > 0.0 { 63.0 / max_scale } else { 0.0 };
        let inverse_minimum = if max_minimum > 0.0 { 63.0 / max_minimum } else { 0.0 };
        for j in 0..8 {
            scale_codes[j] = (nearest_int(inverse * scales[j]) as u8).min(63);
            minimum_codes[j] = (nearest_int(inverse_minimum * minimums[j]) as u8).min(63);
        }
        (d, dmin) = (max_scale / 63.0, max_minimum / 63.0);
    }
    let packed = &mut bytes[4..16];
    packed.fill(0);
    for j in 0..8 {
        let (scale, minimum) = (scale_codes[j], minimum_codes[j]);
        if j < 4 {
            packed[j] = scale;
            packed[j + 4] = minimum;
        } else {
            packed[j + 4] = (scale & 0x0f) | ((minimum & 0x0f) << 4);
            packed[j - 4] |= (scale >> 4) << 6;
            packed[j] |= (minimum >> 4) << 6;
        }
    }
    let d = put_half::<L>(bytes, 0, d);
    let dmin = put_half::<L>(bytes, 2, dmin);
    let read: [(u8, u8); 8] = std::array::from_fn(|j| q4_scale(&bytes[4..16], j));
    let scales = read.map(|(scale, _)| d * f32::from(scale));
    let minimums = read.map(|(_, minimum)| dmin * f32::from(minimum));
    affine_codes::<L, 8>(x, &found, &scales, &minimums, max_code)
}

#[inline(always)]
fn encode_q4_k_body<L: Lanes>(source: &[f32], columns: Columns<'_>, out: &mut [u8]) {
    let sums = square_sums::<L>(source, columns);
    for (block, bytes) in blocks::<144>(source, columns, &sums, out) {
        let codes = encode_eight_runs::<L>(block, bytes, 15, &Steps::Q4_K);
        for (codes, bytes) in codes.as_chunks::<64>().0.iter().zip(bytes[16..].as_chunks_mut::<32>().0) {
            for (l, byte) in bytes.iter_mut().enumerate() {
                *byte = codes[l] | (codes[l + 32] << 4);
            }
        }
    }
}

#[inline(always)]
fn encode_q5_k_body<L: Lanes>(source: &[f32], columns: Columns<'_>, out: &mut [u8]) {
    let sums = square_sums::<L>(source, columns);
    for (block, bytes) in blocks::<176>(source, columns, &sums, out) {
        let codes = encode_eight_runs::<L>(block, bytes, 31, &Steps::Q5_K);
        let (high, low) = bytes[16..].split_at_mut(32);
        high.fill(0);
        for (chunk, (codes, bytes)) in codes.as_chunks::<64>().0.iter().zip(low.as_chunks_mut::<32>().0).enumerate() {
            for l in 0..32 {
                bytes[l] = (codes[l] & 0x0f) | ((codes[l + 32] & 0x0f) << 4);
                high[l] |= (codes[l] >> 4) << (2 * chunk) | (codes[l + 32] >> 4) << (2 * chunk + 1);
            }
        }
    }
}

#[inline(always)]
fn encode_q6_k_body<L: Lanes>(source: &[f32], columns: Columns<'_>, out: &mut [u8]) {
    let blocks = source.as_chunks::<LEN>().0.iter().zip(out.chunks_exact_mut(210));
    for (index, (x, bytes)) in blocks.enumerate() {
        let mut own = [0.0f32; LEN];
        let weights = match columns.of(index, LEN) {
            // Taken as it is here, unlike in the other formats.
            Some(importance) => importance,
            None => {
                squares(x, &mut own);
                &own[..]
            }
        };
        let found = joined(
            lane_search::symmetric::<L, 16>(&x[..128], &weights[..128], 32),
            lane_search::symmetric::<L, 16>(&x[128..], &weights[128..], 32),
        );
        let scales = found.map(|run| run.scale);
        let (max_scale, magnitude) = search::signed_max(&scales);
        if magnitude < GROUP_MAX_EPS {
            bytes.fill(0);
            continue;
        }
        let inverse = -128.0 / max_scale;
        let d = put_half::<L>(bytes, 208, 1.0 / inverse);
        for j in 0..16 {
            bytes[192 + j] = nearest_int(inverse * scales[j]).min(127) as u8;
        }
        let scales: [f32; 16] = std::array::from_fn(|j| d * f32::from(bytes[192 + j] as i8));
        let codes = symmetric_codes::<L>(x, &scales, 32, |run, values, codes| {
            for (code, &value) in codes.iter_mut().zip(values) {
                *code = found[run].code(value, 32);
            }
        });
        let (low, high) = bytes.split_at_mut(128);
        let halves = low.as_chunks_mut::<64>().0.iter_mut().zip(high.as_chunks_mut::<32>().0);
        for (codes, (low, high)) in codes.as_chunks::<128>().0.iter().zip(halves) {
            for l in 0..32 {
                let [a, b, c, e] = [codes[l], codes[l + 32], codes[l + 64], codes[l + 96]];
                low[l] = (a & 0x0f) | ((c & 0x0f) << 4);
                low[32 + l] = (b & 0x0f) | ((e & 0x0f) << 4);
                high[l] = (a >> 4) | ((b >> 4) << 2) | ((c >> 4) << 4) | ((e >> 4) << 6);
            }
        }
    }
}

by_lanes! {
    /// Encodes whole q2_k blocks: 84 bytes for 256 weights.
    pub fn encode_q2_k(source: &[f32], columns: Columns<'_>, out: &mut [u8]) => encode_q2_k_body
}
by_lanes! {
    /// Encodes whole q3_k blocks: 110 bytes for 256 weights.
    pub fn encode_q3_k(source: &[f32], columns: Columns<'_>, out: &mut [u8]) => encode_q3_k_body
}
by_lanes! {
    /// Encodes whole q4_k blocks: 144 bytes for 256 weights.
    pub fn encode_q4_k(source: &[f32], columns: Columns<'_>, out: &mut [u8]) => encode_q4_k_body
}
by_lanes! {
    /// Encodes whole q5_k blocks: 176 bytes for 256 weights.
    pub fn encode_q5_k(source: &[f32], columns: Columns<'_>, out: &mut [u8]) => encode_q5_k_body
}
by_lanes! {
    /// Encodes whole q6_k blocks: 210 bytes for 256 weights.
    pub fn encode_q6_k(source: &[f32], columns: Columns<'_>, out: &mut [u8]) => encode_q6_k_body
}
