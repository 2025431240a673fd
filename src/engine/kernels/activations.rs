//! Activations quantized to 8 bits once per product, as ggml's kernels do.
//!
//! Per 32 values with `scale = max|x| / 127` (ggml's q8_0, whose scale is an f16) beside 32-weight
//! blocks; per 256 values with the sign convention of ggml's q8_k beside k-quants.

use half::f16;

use super::{multiversion, search};

/// Rows of 8-bit codes with their scales and scaled sums.
#[derive(Clone, Debug)]
pub struct Activations {
    width: usize,
    block: usize,
    codes: Vec<i8>,
    scales: Vec<f32>,
    /// Scale × sum of codes, a run of 16.
    scaled_sums: Vec<f32>,
}

impl Activations {
    /// Quantizes rows of `width` values, in blocks of 32 or 256; `width` is a multiple of `block`.
    pub fn quantize(values: &[f32], width: usize, block: usize) -> Self {
        assert!(width.is_multiple_of(block) && values.len().is_multiple_of(width), "whole rows of whole blocks");
        let mut quantized = Self {
            width,
            block,
            codes: vec![0; values.len()],
            scales: vec![0.0; values.len() / block],
            scaled_sums: vec![0.0; values.len() / 16],
        };
        quantize_blocks(values, block, &mut quantized.codes, &mut quantized.scales, &mut quantized.scaled_sums);
        quantized
    }

    /// Values a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.codes.len() / self.width.max(1)
    }

    /// Values that share one scale: 32 or 256.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Groups of 32 that share one scale.
    pub(super) fn groups_per_scale(&self) -> usize {
        self.block / 32
    }

    pub(super) fn codes(&self, row: usize) -> &[i8] {
        &self.codes[row * self.width..(row + 1) * self.width]
    }

    pub(super) fn scales(&self, row: usize) -> &[f32] {
        let per_row = self.width / self.block;
        &self.scales[row * per_row..(row + 1) * per_row]
    }

    pub(super) fn scale_of_group(&self, row: usize, group: usize) -> f32 {
        self.scales(row)[group * 32 / self.block]
    }

    pub(super) fn scaled_sums(&self, row: usize) -> &[f32] {
        let per_row = self.width / 16;
        &self.scaled_sums[row * per_row..(row + 1) * per_row]
    }

    /// One row back in f32, for tests.
    #[cfg(test)]
    pub(super) fn restore(&self, row: usize) -> Vec<f32> {
        self.codes(row)
            .iter()
            .enumerate()
            .map(|(at, &code)| f32::from(code) * self.scales(row)[at / self.block])
            .collect()
    }
}

#[inline(always)]
fn quantize_blocks_body(values: &[f32], block: usize, codes: &mut [i8], scales: &mut [f32], sums: &mut [f32]) {
    let per_block = values.chunks_exact(block).zip(codes.chunks_exact_mut(block));
    for ((x, out), (scale, sums)) in per_block.zip(scales.iter_mut().zip(sums.chunks_exact_mut(block / 16))) {
        let inverse;
        if block == 32 {
            let mut magnitude = 0.0f32;
            for &value in x {
                magnitude = magnitude.max(value.abs());
            }
            let d = magnitude / 127.0;
            inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
            *scale = f16::from_f32(d).to_f32();
        } else {
            let (mut max, mut magnitude) = (0.0f32, 0.0f32);
            for &value in x {
                if value.abs() > magnitude {
                    magnitude = value.abs();
                    max = value;
                }
            }
            inverse = if magnitude == 0.0 { 0.0 } else { -127.0 / max };
            *scale = if magnitude == 0.0 { 0.0 } else { 1.0 / inverse };
        }
        for (code, &value) in out.iter_mut().zip(x) {
            *code = search::nearest_int((value * inverse).clamp(-127.0, 127.0)) as i8;
        }
        for (sum, run) in sums.iter_mut().zip(out.chunks_exact(16)) {
            *sum = *scale * run.iter().map(|&code| i32::from(code)).sum::<i32>() as f32;
        }
    }
}

multiversion! {
    fn quantize_blocks(values: &[f32], block: usize, codes: &mut [i8], scales: &mut [f32], sums: &mut [f32]) => quantize_blocks_body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_restore_values_to_half_a_step() {
        for block in [32, 256] {
            let values: Vec<f32> = (0..512).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
            let quantized = Activations::quantize(&values, 512, block);
            let step = 50.0 / 7.0 / 127.0;
            for (value, back) in values.iter().zip(quantized.restore(0)) {
                assert!((value - back).abs() <= step * 0.51, "{value} {back}");
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
