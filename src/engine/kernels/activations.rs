//! Activations quantized to 8 bits once per product, as ggml's kernels do, and laid out for tiles.
//!
//! Per 32 values with `scale = max|x| / 127` (ggml's q8_0, whose scale is an f16) beside 32-weight
//! blocks; per 256 values with the sign convention of ggml's q8_k beside k-quants.
//!
//! Codes lie in the order in which the products read them: chunks of `CHUNK` columns; in a chunk,
//! groups of up to `TOKENS` tokens (`groups`); in a group, steps of four columns, token after token.
//! What belongs to a run of columns (scales, sums) lies run by run, one value a token.

use half::f16;
use rayon::prelude::*;

use super::lanes::STEP;
use super::{Level, multiversion, search};

/// Columns that the products work on at a time.
pub(super) const CHUNK: usize = 256;

/// Columns that share a sum.
pub(super) const RUN: usize = 32;

/// Tokens that meet one load of weights.
pub(super) const TOKENS: usize = 4;

/// From this many values on, quantizing pays for several threads.
const PARALLEL_FROM: usize = 64 * 1024;

/// How tokens are put together: first token and number, the number being 4, 2 or 1.
pub(super) fn groups(tokens: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let count = match tokens - next {
            0 => return None,
            1 => 1,
            2 | 3 => 2,
            _ => TOKENS,
        };
        next += count;
        Some((next - count, count))
    })
}

/// Rows of 8-bit codes with their scales and sums.
#[derive(Clone, Debug, PartialEq)]
pub struct Activations {
    width: usize,
    block: usize,
    rows: usize,
    codes: Vec<i8>,
    /// One a block and row.
    scales: Vec<f32>,
    /// Sum of codes of a run of 32, one a run and row.
    int_sums: Vec<i32>,
    /// The same as floats, times the scale where a block is a run.
    sums: Vec<f32>,
    /// Sums of runs of 16; only beside blocks of 256.
    half_sums: Vec<f32>,
}

/// The part of [`Activations`] that belongs to one chunk.
#[derive(Debug)]
struct ChunkOut<'a> {
    codes: &'a mut [i8],
    scales: &'a mut [f32],
    int_sums: &'a mut [i32],
    sums: &'a mut [f32],
    half_sums: &'a mut [f32],
}

impl Activations {
    /// Quantizes rows of `width` values, in blocks of 32 or 256; `width` is a multiple of `block`.
    pub fn quantize(values: &[f32], width: usize, block: usize) -> Self {
        Self::quantize_at(Level::vectorized(), values, width, block)
    }

    /// [`Self::quantize`] at a given instruction level, which the CPU must have.
    pub(super) fn quantize_at(level: Level, values: &[f32], width: usize, block: usize) -> Self {
        assert!(block == RUN || block == CHUNK, "blocks of 32 or 256");
        assert!(width.is_multiple_of(block) && values.len().is_multiple_of(width.max(1)), "whole rows of whole blocks");
        let rows = values.len() / width.max(1);
        let half_sums = if block == CHUNK { values.len() / 16 } else { 0 };
        let mut quantized = Self {
            width,
            block,
            rows,
            codes: vec![0; values.len()],
            scales: vec![0.0; values.len() / block],
            int_sums: vec![0; values.len() / RUN],
            sums: vec![0.0; values.len() / RUN],
            half_sums: vec![0.0; half_sums],
        };
        if values.is_empty() {
            return quantized;
        }
        let mut halves = quantized.half_sums.chunks_mut(CHUNK / 16 * rows);
        let chunks: Vec<ChunkOut<'_>> = quantized
            .codes
            .chunks_mut(CHUNK * rows)
            .zip(quantized.scales.chunks_mut(CHUNK / block * rows))
            .zip(quantized.int_sums.chunks_mut(CHUNK / RUN * rows))
            .zip(quantized.sums.chunks_mut(CHUNK / RUN * rows))
            .map(|(((codes, scales), int_sums), sums)| {
                let half_sums = halves.next().unwrap_or_default();
                ChunkOut { codes, scales, int_sums, sums, half_sums }
            })
            .collect();
        let quantize = |(index, mut out): (usize, ChunkOut<'_>)| {
            quantize_chunk_at(level, values, width, index * CHUNK, block, &mut out);
        };
        if values.len() < PARALLEL_FROM {
            chunks.into_iter().enumerate().for_each(quantize);
        } else {
            chunks.into_par_iter().enumerate().for_each(quantize);
        }
        quantized
    }

    /// Values a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values that share one scale: 32 or 256.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Codes of `count` rows from `first` on in the chunk that starts at column `start`.
    #[inline(always)]
    pub(super) fn codes(&self, start: usize, first: usize, count: usize) -> &[i8] {
        let len = CHUNK.min(self.width - start);
        &self.codes[start * self.rows + first * len..][..count * len]
    }

    /// Scales from column `start` and row `first` on; the next block's are `rows` further.
    #[inline(always)]
    pub(super) fn scales(&self, start: usize, first: usize) -> &[f32] {
        &self.scales[start / self.block * self.rows + first..]
    }

    /// Sums of runs of 32 from column `start` and row `first` on; the next run's are `rows` further.
    #[inline(always)]
    pub(super) fn sums(&self, start: usize, first: usize) -> &[f32] {
        &self.sums[start / RUN * self.rows + first..]
    }

    /// As [`Self::sums`], for runs of 16.
    #[inline(always)]
    pub(super) fn half_sums(&self, start: usize, first: usize) -> &[f32] {
        &self.half_sums[start / 16 * self.rows + first..]
    }

    /// As [`Self::sums`], without scale.
    #[inline(always)]
    pub(super) fn int_sums(&self, start: usize, first: usize) -> &[i32] {
        &self.int_sums[start / RUN * self.rows + first..]
    }

    /// One row back in f32, for tests.
    #[cfg(test)]
    pub(super) fn restore(&self, row: usize) -> Vec<f32> {
        let (first, count) =
            groups(self.rows).find(|(first, count)| (*first..first + count).contains(&row)).expect("a group");
        (0..self.width)
            .map(|at| {
                let start = at / CHUNK * CHUNK;
                let place = (at - start) / STEP * count * STEP + (row - first) * STEP + at % STEP;
                f32::from(self.codes(start, first, count)[place]) * self.scales(at / self.block * self.block, row)[0]
            })
            .collect()
    }
}

/// The least and the greatest of a block's values, and of zero; eight lanes, so that it vectorizes.
/// Both are NaN where a value is NaN or infinite: a product with it must not come out as a number.
#[inline(always)]
fn range(x: &[f32]) -> (f32, f32) {
    let (mut low, mut high) = ([0.0f32; 8], [0.0f32; 8]);
    // Zero times such a value is NaN, and a sum with NaN stays it.
    let mut poison = [0.0f32; 8];
    for values in x.as_chunks::<8>().0 {
        for lane in 0..8 {
            poison[lane] += values[lane] * 0.0;
            low[lane] = if values[lane] < low[lane] { values[lane] } else { low[lane] };
            high[lane] = if values[lane] > high[lane] { values[lane] } else { high[lane] };
        }
    }
    if poison.iter().any(|value| value.is_nan()) {
        return (f32::NAN, f32::NAN);
    }
    (low.into_iter().fold(0.0, f32::min), high.into_iter().fold(0.0, f32::max))
}

/// Quantizes one block; answers its scale.
#[inline(always)]
fn quantize_block(x: &[f32], codes: &mut [i8]) -> f32 {
    let (scale, inverse);
    let (low, high) = range(x);
    if high.is_nan() {
        codes.fill(0);
        return f32::NAN;
    }
    if x.len() == RUN {
        let d = high.max(-low) / 127.0;
        inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        scale = f16::from_f32(d).to_f32();
    } else {
        // Of two values of one magnitude the first counts, as in a search from the left.
        let max = if high > -low {
            high
        } else if -low > high {
            low
        } else {
            x.iter().copied().find(|value| value.abs() == high).unwrap_or(0.0)
        };
        inverse = if max == 0.0 { 0.0 } else { -127.0 / max };
        scale = if max == 0.0 { 0.0 } else { 1.0 / inverse };
    }
    for (code, &value) in codes.iter_mut().zip(x) {
        *code = search::nearest_int((value * inverse).clamp(-127.0, 127.0)) as i8;
    }
    scale
}

#[inline(always)]
fn quantize_chunk_body(values: &[f32], width: usize, start: usize, block: usize, out: &mut ChunkOut<'_>) {
    let rows = values.len() / width;
    let len = CHUNK.min(width - start);
    let mut codes = [0i8; CHUNK];
    for (first, count) in groups(rows) {
        let panel = &mut out.codes[first * len..(first + count) * len];
        for lane in 0..count {
            let row = first + lane;
            let x = &values[row * width + start..][..len];
            for (at, (x, codes)) in x.chunks_exact(block).zip(codes.chunks_exact_mut(block)).enumerate() {
                out.scales[at * rows + row] = quantize_block(x, codes);
            }
            for (at, run) in codes[..len].chunks_exact(RUN).enumerate() {
                // Sixteen codes of at most 127 fit an i16.
                let (halves, _) = run.as_chunks::<16>();
                let halves = [halves[0], halves[1]].map(|half| i32::from(half.map(i16::from).iter().sum::<i16>()));
                let sum = halves[0] + halves[1];
                out.int_sums[at * rows + row] = sum;
                if block == RUN {
                    out.sums[at * rows + row] = out.scales[at * rows + row] * sum as f32;
                } else {
                    out.sums[at * rows + row] = sum as f32;
                    out.half_sums[2 * at * rows + row] = halves[0] as f32;
                    out.half_sums[(2 * at + 1) * rows + row] = halves[1] as f32;
                }
            }
            let steps = codes[..len].as_chunks::<STEP>().0;
            for (step, place) in steps.iter().zip(panel.as_chunks_mut::<STEP>().0.iter_mut().skip(lane).step_by(count))
            {
                *place = *step;
            }
        }
    }
}

multiversion! {
    at fn quantize_chunk_at(values: &[f32], width: usize, start: usize, block: usize, out: &mut ChunkOut<'_>) => quantize_chunk_body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_restore_values_to_half_a_step() {
        for (block, width) in [(32, 512), (32, 288), (256, 512)] {
            for rows in [1, 3, 9] {
                let values: Vec<f32> = (0..width * rows).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
                let quantized = Activations::quantize(&values, width, block);
                assert_eq!(quantized.rows(), rows);
                let step = 50.0 / 7.0 / 127.0;
                for (row, values) in values.chunks_exact(width).enumerate() {
                    for (value, back) in values.iter().zip(quantized.restore(row)) {
                        assert!((value - back).abs() <= step * 0.51, "{value} {back}");
                    }
                }
            }
        }
    }

    #[test]
    fn sums_are_those_of_the_codes() {
        let values: Vec<f32> = (0..3 * 512).map(|i| ((i * 29 % 113) as f32 - 40.0) / 3.0).collect();
        for block in [32, 256] {
            let quantized = Activations::quantize(&values, 512, block);
            for row in 0..3 {
                let restored = quantized.restore(row);
                for start in (0..512).step_by(RUN) {
                    let sum: f32 = restored[start..start + RUN].iter().sum();
                    let scale = quantized.scales(start / block * block, row)[0];
                    let stored = quantized.sums(start, row)[0] * if block == RUN { 1.0 } else { scale };
                    assert!((sum - stored).abs() < 1e-3, "{sum} {stored}");
                    assert!((sum - quantized.int_sums(start, row)[0] as f32 * scale).abs() < 1e-3);
                    if block == CHUNK {
                        let halves = quantized.half_sums(start, row)[0] + quantized.half_sums(start + 16, row)[0];
                        assert_eq!(halves, quantized.sums(start, row)[0]);
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        for (block, width) in [(32, 64), (256, 512)] {
            for value in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for at in [0, block - 1] {
                    let mut values = vec![0.5; 2 * width];
                    values[width + at] = value;
                    let quantized = Activations::quantize(&values, width, block);
                    let restored = quantized.restore(1);
                    assert!(restored[..block].iter().all(|value| value.is_nan()), "{block} {value}: {restored:?}");
                    let others = restored[block..].iter().chain(&quantized.restore(0)).copied().collect::<Vec<_>>();
                    assert!(others.iter().all(|value| (value - 0.5).abs() < 0.01), "{block} {value}: {others:?}");
                }
            }
        }
    }

    #[test]
    fn zero_rows_stay_zero() {
        let quantized = Activations::quantize(&[0.0; 256], 256, 256);
        assert!(quantized.restore(0).iter().all(|&value| value == 0.0));
        assert_eq!(quantized.rows(), 1);
    }
}
