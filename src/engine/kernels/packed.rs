//! Products of activations with rows of packed weights, on the bytes as they lie in the file.
//!
//! Every block format here can be written as `weight = scale × code − minimum` with 8-bit codes, a
//! scale per 16 or 32 weights and a minimum per 16 or 32 weights. A row is unpacked to that form
//! once per product ([`Unpacked`]), stays in the L1 cache, and meets every activation row there, so
//! one integer kernel serves all formats. Activations are quantized as ggml does: q8_0 per 32 for
//! 32-weight blocks, q8_k per 256 for k-quants (see [`super::activations`]).

use rayon::prelude::*;

use super::activations::Activations;
use super::shared_out::SharedOut;
use super::{Level, kquants, legacy};

/// Weights that share one vector of scales in [`Unpacked`].
pub const GROUP: usize = 32;

/// One row of weights as codes, scales and minimums.
#[derive(Clone, Debug, Default)]
pub struct Unpacked {
    /// One byte a weight: unsigned below 128, or signed where [`Unpacked::is_signed`].
    pub codes: Vec<u8>,
    /// Eight lanes a group of 32: four for its first 16 weights, four for its last 16.
    pub scales: Vec<[f32; 8]>,
    /// One a run of 16 weights, to be subtracted; all zero where signed.
    pub minimums: Vec<f32>,
    /// True if codes are `i8` and there are no minimums.
    pub is_signed: bool,
}

impl Unpacked {
    /// A buffer for rows of `len` weights.
    pub fn new(len: usize, layout: Layout) -> Self {
        Self {
            codes: vec![0; len],
            scales: vec![[0.0; 8]; len / GROUP],
            minimums: vec![0.0; len / 16],
            is_signed: layout == Layout::Q8_0,
        }
    }
}

/// A block layout that this module can multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are ggml's")]
pub enum Layout {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

impl Layout {
    /// Weights a block.
    pub fn block_len(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Brings one row of bytes into the form of [`Unpacked`].
    pub fn unpack(self, row: &[u8], out: &mut Unpacked) {
        match self {
            Self::Q4_0 => legacy::unpack_q4_0(row, out),
            Self::Q4_1 => legacy::unpack_q4_1(row, out),
            Self::Q5_0 => legacy::unpack_q5_0(row, out),
            Self::Q5_1 => legacy::unpack_q5_1(row, out),
            Self::Q8_0 => legacy::unpack_q8_0(row, out),
            Self::Q2K => kquants::unpack_q2_k(row, out),
            Self::Q3K => kquants::unpack_q3_k(row, out),
            Self::Q4K => kquants::unpack_q4_k(row, out),
            Self::Q5K => kquants::unpack_q5_k(row, out),
            Self::Q6K => kquants::unpack_q6_k(row, out),
        }
    }
}

/// Multiplies `rows × k` packed weights with every activation row: `out[token × rows + row]`.
///
/// `weights` holds `rows` rows of whole blocks; `k` is a multiple of the block.
pub fn matmul(layout: Layout, weights: &[u8], rows: usize, activations: &Activations, out: &mut [f32]) {
    matmul_at(Level::detect(), layout, weights, rows, activations, out);
}

/// [`matmul`] at a given instruction level, which the CPU must have.
pub fn matmul_at(
    level: Level,
    layout: Layout,
    weights: &[u8],
    rows: usize,
    activations: &Activations,
    out: &mut [f32],
) {
    let k = activations.width();
    let tokens = activations.rows();
    let row_bytes = k / layout.block_len() * layout.block_bytes();
    assert_eq!(weights.len(), rows * row_bytes, "packed weights have whole rows");
    assert_eq!(out.len(), tokens * rows, "output is tokens × rows");
    let target = SharedOut::new(out);
    // At least 64 KiB of codes a task, so that a task outweighs its scheduling.
    let rows_per_task = (64 * 1024 / k.max(1)).clamp(1, 64);
    (0..rows.div_ceil(rows_per_task)).into_par_iter().for_each_init(
        || (Unpacked::new(k, layout), vec![0.0; tokens]),
        |(unpacked, sums), task| {
            let first = task * rows_per_task;
            for row in first..(first + rows_per_task).min(rows) {
                layout.unpack(&weights[row * row_bytes..(row + 1) * row_bytes], unpacked);
                dot_rows(level, unpacked, activations, sums);
                for (token, &sum) in sums.iter().enumerate() {
                    // SAFETY: each task owns the columns of its rows.
                    unsafe { target.write(token * rows + row, sum) };
                }
            }
        },
    );
}

/// One weight row with every activation row.
fn dot_rows(level: Level, weights: &Unpacked, activations: &Activations, sums: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if level == Level::Avx2 {
        // SAFETY: the level says that this CPU has AVX2 and FMA.
        unsafe { avx2::dot_rows(weights, activations, sums) };
        return;
    }
    let _ = level;
    for (token, sum) in sums.iter_mut().enumerate() {
        *sum = dot_portable(weights, activations, token);
    }
}

/// The reference: exact integer products, summed in f32 group by group.
fn dot_portable(weights: &Unpacked, activations: &Activations, token: usize) -> f32 {
    let codes = activations.codes(token);
    let mut total = 0.0f32;
    for (group, (w, x)) in weights.codes.chunks_exact(GROUP).zip(codes.chunks_exact(GROUP)).enumerate() {
        let mut halves = [0i32; 2];
        for (half, (w, x)) in halves.iter_mut().zip(w.chunks_exact(16).zip(x.chunks_exact(16))) {
            for (&w, &x) in w.iter().zip(x) {
                let w = if weights.is_signed { i32::from(w as i8) } else { i32::from(w) };
                *half += w * i32::from(x);
            }
        }
        let scales = &weights.scales[group];
        total +=
            activations.scale_of_group(token, group) * (scales[0] * halves[0] as f32 + scales[4] * halves[1] as f32);
    }
    if !weights.is_signed {
        for (minimum, sum) in weights.minimums.iter().zip(activations.scaled_sums(token)) {
            total -= minimum * sum;
        }
    }
    total
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    //! The same product with 32 weights an instruction.

    use std::arch::x86_64::*;

    use super::{Activations, Unpacked};

    /// Activation rows that share one load of the weights.
    const LANES: usize = 4;

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn dot_rows(weights: &Unpacked, activations: &Activations, sums: &mut [f32]) {
        let mut token = 0;
        while token + LANES <= sums.len() {
            let four = dot::<LANES>(weights, activations, token);
            sums[token..token + LANES].copy_from_slice(&four);
            token += LANES;
        }
        while token < sums.len() {
            sums[token] = dot::<1>(weights, activations, token)[0];
            token += 1;
        }
    }

    #[target_feature(enable = "avx2,fma")]
    fn dot<const N: usize>(weights: &Unpacked, activations: &Activations, first: usize) -> [f32; N] {
        let codes: [&[i8]; N] = std::array::from_fn(|lane| activations.codes(first + lane));
        let scales: [&[f32]; N] = std::array::from_fn(|lane| activations.scales(first + lane));
        let per_scale = activations.groups_per_scale();
        let mut totals = [_mm256_setzero_ps(); N];
        let ones = _mm256_set1_epi16(1);
        let groups = weights.scales.len();
        let mut group = 0;
        let mut block = 0;
        while group < groups {
            let mut partial = [_mm256_setzero_ps(); N];
            for inner in group..(group + per_scale).min(groups) {
                // SAFETY: `inner` counts whole groups of 32 codes.
                let w = unsafe { _mm256_loadu_si256(weights.codes.as_ptr().add(inner * 32).cast()) };
                // SAFETY: one array of eight scales a group.
                let scale = unsafe { _mm256_loadu_ps(weights.scales.as_ptr().add(inner).cast()) };
                let magnitude = if weights.is_signed { _mm256_abs_epi8(w) } else { w };
                for lane in 0..N {
                    debug_assert!(codes[lane].len() >= (inner + 1) * 32);
                    // SAFETY: activations are as wide as the row.
                    let x = unsafe { _mm256_loadu_si256(codes[lane].as_ptr().add(inner * 32).cast()) };
                    let x = if weights.is_signed { _mm256_sign_epi8(x, w) } else { x };
                    // Pairs stay below 2 × 128 × 127, which i16 holds.
                    let pairs = _mm256_maddubs_epi16(magnitude, x);
                    let quads = _mm256_madd_epi16(pairs, ones);
                    partial[lane] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(quads), scale, partial[lane]);
                }
            }
            for lane in 0..N {
                totals[lane] = _mm256_fmadd_ps(partial[lane], _mm256_set1_ps(scales[lane][block]), totals[lane]);
            }
            group += per_scale;
            block += 1;
        }
        if !weights.is_signed {
            for (lane, total) in totals.iter_mut().enumerate() {
                let sums = activations.scaled_sums(first + lane);
                let whole = weights.minimums.len() / 8 * 8;
                for at in (0..whole).step_by(8) {
                    // SAFETY: `at + 8` is within both, which are equally long.
                    let minimum = unsafe { _mm256_loadu_ps(weights.minimums.as_ptr().add(at)) };
                    // SAFETY: as above.
                    let sum = unsafe { _mm256_loadu_ps(sums.as_ptr().add(at)) };
                    *total = _mm256_fnmadd_ps(minimum, sum, *total);
                }
            }
        }
        let mut out = [0.0; N];
        for (lane, total) in totals.iter().enumerate() {
            let mut lanes = [0.0f32; 8];
            // SAFETY: eight floats fit eight floats.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), *total) };
            let mut sum = lanes.iter().sum::<f32>();
            if !weights.is_signed {
                let whole = weights.minimums.len() / 8 * 8;
                let sums = activations.scaled_sums(first + lane);
                for (minimum, scaled) in weights.minimums[whole..].iter().zip(&sums[whole..]) {
                    sum -= minimum * scaled;
                }
            }
            out[lane] = sum;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::format;

    fn noise(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761) | 1;
        (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                (state as f32 / u32::MAX as f32 - 0.5) * 2.0
            })
            .collect()
    }

    const LAYOUTS: [(Layout, &str); 10] = [
        (Layout::Q4_0, "q4_0"),
        (Layout::Q4_1, "q4_1"),
        (Layout::Q5_0, "q5_0"),
        (Layout::Q5_1, "q5_1"),
        (Layout::Q8_0, "q8_0"),
        (Layout::Q2K, "q2_k"),
        (Layout::Q3K, "q3_k"),
        (Layout::Q4K, "q4_k"),
        (Layout::Q5K, "q5_k"),
        (Layout::Q6K, "q6_k"),
    ];

    #[test]
    fn unpacking_equals_decoding_for_every_layout() {
        for (layout, id) in LAYOUTS {
            let format = format::find(id).expect("registered");
            let values = noise(512, 7);
            let mut bytes = vec![0; format.dtype().row_bytes(512).expect("fits")];
            format.encode_rows(&values, &format::Encoding::plain(512), &mut bytes);
            let mut decoded = vec![0.0; 512];
            format.decode_row(&bytes, &mut decoded);
            let mut unpacked = Unpacked::new(512, layout);
            layout.unpack(&bytes, &mut unpacked);
            for (at, &expected) in decoded.iter().enumerate() {
                let code = if unpacked.is_signed {
                    f32::from(unpacked.codes[at] as i8)
                } else {
                    f32::from(unpacked.codes[at])
                };
                let scale = unpacked.scales[at / 32][at % 32 / 16 * 4];
                let value = scale * code - unpacked.minimums[at / 16];
                assert!((value - expected).abs() < 1e-5, "{id} at {at}: {value} {expected}");
            }
        }
    }

    #[test]
    fn every_level_gives_the_product_of_decoded_weights() {
        for (layout, id) in LAYOUTS {
            let format = format::find(id).expect("registered");
            for (k, rows, tokens) in [(256, 1, 1), (512, 7, 5), (768, 65, 9), (256, 3, 4)] {
                let row_bytes = format.dtype().row_bytes(k).expect("fits");
                let mut weights = vec![0; rows * row_bytes];
                let mut decoded = vec![0.0; rows * k];
                for row in 0..rows {
                    let bytes = &mut weights[row * row_bytes..(row + 1) * row_bytes];
                    format.encode_rows(&noise(k, row as u32 + 1), &format::Encoding::plain(k), bytes);
                    format.decode_row(bytes, &mut decoded[row * k..(row + 1) * k]);
                }
                let x = noise(tokens * k, 99);
                let activations = Activations::quantize(&x, k, layout.block_len());
                for level in [Level::Portable, Level::detect()] {
                    let mut out = vec![0.0; tokens * rows];
                    matmul_at(level, layout, &weights, rows, &activations, &mut out);
                    for token in 0..tokens {
                        let restored = activations.restore(token);
                        for row in 0..rows {
                            let expected: f64 = decoded[row * k..(row + 1) * k]
                                .iter()
                                .zip(&restored)
                                .map(|(&w, &x)| f64::from(w) * f64::from(x))
                                .sum();
                            let got = f64::from(out[token * rows + row]);
                            assert!((got - expected).abs() < 2e-3, "{id} {level:?} {k}: {got} {expected}");
                        }
                    }
                }
            }
        }
    }
}
