//! Products with weights that are plain floats: f32, f16, bf16, and integers by way of f32.
//!
//! Sixteen-bit rows are widened a panel at a time inside each task, never the whole matrix. Many
//! tokens go through the `gemm` crate, few through dot products.

use rayon::prelude::*;

use super::shared_out::SharedOut;
use super::{float, multiversion, ops};

/// How the rows lie in memory.
#[derive(Clone, Copy, Debug)]
pub enum Plain<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Little-endian bytes of half precision.
    F16(&'a [u8]),
    /// Little-endian bytes of bf16.
    Bf16(&'a [u8]),
}

/// Up to this many tokens, dot products beat packing panels for `gemm`.
const FEW_TOKENS: usize = 3;

/// Rows that one task multiplies.
const PANEL: usize = 64;

#[inline(always)]
fn dots_body(row: &[f32], x: &[f32], sums: &mut [f32]) {
    for (sum, x) in sums.iter_mut().zip(x.chunks_exact(row.len())) {
        *sum = ops::sum_of_products(row, x);
    }
}

multiversion! {
    /// One weight row with every activation row.
    fn dots(row: &[f32], x: &[f32], sums: &mut [f32]) => dots_body
}

/// Multiplies `rows × k` weights with every activation row of `x`: `out[token × rows + row]`.
pub fn matmul(weights: Plain<'_>, rows: usize, k: usize, x: &[f32], out: &mut [f32]) {
    let tokens = x.len() / k.max(1);
    assert_eq!(out.len(), tokens * rows, "output is tokens × rows");
    if out.is_empty() {
        return;
    }
    let target = SharedOut::new(out);
    (0..rows.div_ceil(PANEL)).into_par_iter().for_each_init(
        || (Vec::new(), vec![0.0; tokens]),
        |(panel, sums): &mut (Vec<f32>, Vec<f32>), task| {
            let first = task * PANEL;
            let count = PANEL.min(rows - first);
            let range = first * k..(first + count) * k;
            let panel: &[f32] = match weights {
                Plain::F32(values) => &values[range],
                Plain::F16(bytes) => {
                    panel.resize(count * k, 0.0);
                    float::decode_f16(&bytes[range.start * 2..range.end * 2], panel);
                    panel
                }
                Plain::Bf16(bytes) => {
                    panel.resize(count * k, 0.0);
                    float::decode_bf16(&bytes[range.start * 2..range.end * 2], panel);
                    panel
                }
            };
            if tokens <= FEW_TOKENS {
                for (row, weights) in panel.chunks_exact(k).enumerate() {
                    dots(weights, x, sums);
                    for (token, &sum) in sums.iter().enumerate() {
                        // SAFETY: each task owns the columns of its rows.
                        unsafe { target.write(token * rows + first + row, sum) };
                    }
                }
            } else {
                let last = target.pointer((tokens - 1) * rows + first + count - 1);
                debug_assert!(!last.is_null());
                // SAFETY: the tile is `tokens × count` at row stride `rows`, its last element is
                // within the output by the call above, and each task owns its columns. `panel` is
                // `count × k` and `x` is `tokens × k`, both row-major.
                unsafe {
                    gemm::gemm(
                        tokens,
                        count,
                        k,
                        target.pointer(first),
                        1,
                        rows as isize,
                        false,
                        x.as_ptr(),
                        1,
                        k as isize,
                        panel.as_ptr(),
                        k as isize,
                        1,
                        0.0f32,
                        1.0f32,
                        false,
                        false,
                        false,
                        gemm::Parallelism::None,
                    );
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_plain_types_and_batch_sizes_agree_with_a_plain_sum() {
        for (rows, k, tokens) in [(1, 1, 1), (5, 7, 2), (70, 33, 3), (64, 256, 4), (130, 96, 17)] {
            let weights: Vec<f32> = (0..rows * k).map(|i| ((i * 7 % 23) as f32 - 11.0) / 8.0).collect();
            let x: Vec<f32> = (0..tokens * k).map(|i| ((i * 5 % 19) as f32 - 9.0) / 4.0).collect();
            let mut f16 = vec![0; rows * k * 2];
            let mut bf16 = vec![0; rows * k * 2];
            float::encode_f16(&weights, &mut f16);
            float::encode_bf16(&weights, &mut bf16);
            for plain in [Plain::F32(&weights), Plain::F16(&f16), Plain::Bf16(&bf16)] {
                let mut out = vec![f32::NAN; tokens * rows];
                matmul(plain, rows, k, &x, &mut out);
                for token in 0..tokens {
                    for row in 0..rows {
                        let expected: f32 = (0..k).map(|i| weights[row * k + i] * x[token * k + i]).sum();
                        let got = out[token * rows + row];
                        assert!((got - expected).abs() < 1e-3, "{rows}×{k}, {tokens}: {got} {expected}");
                    }
                }
            }
        }
    }
}
