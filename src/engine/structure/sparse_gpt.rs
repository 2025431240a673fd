//! SparseGPT: a mask whose error the weights that stay make up for, column by column.
//!
//! With `H` the second moments of the inputs and `U` the upper Cholesky factor of its inverse, the error of
//! a column is spread over those after it: `W[:, k] −= e · U[j, k]` with `e = (w − q) / U[j, j]`. The sum of
//! the squared `e` is then exactly the error of the outputs, `tr(ΔW H ΔWᵀ)`. Weights that stay can be
//! quantized in the same sweep. All in f64: the factor of a badly conditioned `H` does not bear less.
//!
//! Source: Frantar and Alistarh, "SparseGPT", 2023; the constants are those of its reference code.

use rayon::prelude::*;

use super::masks::Pattern;
use crate::error::{Fault, Result, Stage};
use crate::progress::Progress;

/// Columns that are decided together.
const BLOCK: usize = 128;

/// What is added to the diagonal, as a share of its mean.
const DAMPING: f64 = 0.01;

/// Brings a weight that stays to a value that its format can hold, by row and column.
pub type Store<'a> = dyn Fn(usize, usize, f64) -> f64 + Sync + 'a;

/// How far the outputs move.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Swept {
    /// `½ tr(ΔW H ΔWᵀ)` with the damped `H`.
    pub loss: f64,
    /// Weights that are zero now.
    pub zeros: usize,
}

/// `U`, upper triangular, with `H⁻¹ = Uᵀ U`; rows one after another.
///
/// From the end backwards `H = R Rᵀ` with `R` upper triangular, and `U = R⁻¹`.
///
/// # Errors
/// A matrix that is not positive definite, or cancel.
pub fn inverse_factor(hessian: &[f64], size: usize, progress: &Progress) -> Result<Vec<f64>> {
    let mut factor = vec![0.0; size * size];
    for col in (0..size).rev() {
        progress.check()?;
        let after = |row: usize| row * size + col + 1..(row + 1) * size;
        let own: Vec<f64> = factor[after(col)].to_vec();
        let square = hessian[col * size + col] - own.iter().map(|value| value * value).sum::<f64>();
        if square.is_nan() || square <= 0.0 {
            return Err(Fault::new(Stage::Calibration, "the second moments of the inputs are not positive definite")
                .at(format!("column {col}"))
                .fix("calibrate on more text")
                .into());
        }
        let diagonal = square.sqrt();
        factor[..col * size].par_chunks_exact_mut(size).enumerate().for_each(|(row, values)| {
            let dot: f64 = values[col + 1..].iter().zip(&own).map(|(a, b)| a * b).sum();
            values[col] = (hessian[row * size + col] - dot) / diagonal;
        });
        factor[col * size + col] = diagonal;
    }
    // Row by row from the last: U[i, :] = (e_i − Σ_k>i R[i, k] U[k, :]) / R[i, i].
    for row in (0..size).rev() {
        progress.check()?;
        let (before, inverse) = factor.split_at_mut((row + 1) * size);
        let own = &mut before[row * size..];
        let scale = 1.0 / own[row];
        let mut sums = vec![0.0; size - row - 1];
        sums.par_iter_mut().enumerate().for_each(|(offset, sum)| {
            let col = row + 1 + offset;
            // Above the diagonal only: rows row+1 to col of U have something in this column.
            *sum = (row + 1..=col).map(|k| own[k] * inverse[(k - row - 1) * size + col]).sum();
        });
        for (value, sum) in own[row + 1..].iter_mut().zip(sums) {
            *value = -sum * scale;
        }
        own[row] = scale;
    }
    Ok(factor)
}

/// Masks `weights` (rows × `cols`) and makes up for it. `hessian` is `(2/n) Σ x xᵀ`, `cols` × `cols`; inputs
/// that were never active lose their weights.
///
/// # Errors
/// Moments that are not finite or not of this width, or cancel.
pub fn sweep(
    weights: &mut [f32],
    cols: usize,
    hessian: &[f64],
    pattern: Pattern,
    store: Option<&Store<'_>>,
    progress: &Progress,
) -> Result<Swept> {
    if hessian.len() != cols * cols || !hessian.iter().all(|value| value.is_finite()) {
        return Err(Fault::new(
            Stage::Calibration,
            "the second moments of the inputs are not finite or of another width",
        )
        .fix("calibrate this checkpoint again")
        .into());
    }
    let mut hessian = hessian.to_vec();
    let mut values: Vec<f64> = weights.iter().map(|&weight| f64::from(weight)).collect();
    for col in (0..cols).filter(|col| hessian[col * cols + col] == 0.0).collect::<Vec<usize>>() {
        hessian[col * cols + col] = 1.0;
        values.iter_mut().skip(col).step_by(cols).for_each(|value| *value = 0.0);
    }
    let mean = (0..cols).map(|col| hessian[col * cols + col]).sum::<f64>() / cols.max(1) as f64;
    (0..cols).for_each(|col| hessian[col * cols + col] += DAMPING * mean);
    let factor = inverse_factor(&hessian, cols, progress)?;
    drop(hessian);

    let mut loss = 0.0;
    for start in (0..cols).step_by(BLOCK) {
        progress.check()?;
        let end = (start + BLOCK).min(cols);
        let chosen = match pattern {
            Pattern::Share(share) => Some(lowest_of_block(&values, cols, &factor, start..end, share)),
            Pattern::Blocks { .. } => None,
        };
        let row_losses: Vec<f64> = values
            .par_chunks_exact_mut(cols)
            .enumerate()
            .map(|(row, values)| {
                let mask = chosen.as_ref().map(|all| &all[row * (end - start)..(row + 1) * (end - start)]);
                sweep_row(row, values, &factor, start..end, mask, pattern, store)
            })
            .collect();
        // In the order of the rows, whatever the number of threads.
        loss += row_losses.iter().sum::<f64>();
    }
    for (weight, value) in weights.iter_mut().zip(&values) {
        *weight = *value as f32;
    }
    Ok(Swept { loss: loss / 2.0, zeros: weights.iter().filter(|weight| **weight == 0.0).count() })
}

/// The mask of a block, rows × its columns: the lowest `w² / U_jj²` of all rows together.
fn lowest_of_block(
    values: &[f64],
    cols: usize,
    factor: &[f64],
    block: std::ops::Range<usize>,
    share: f64,
) -> Vec<bool> {
    let scores: Vec<f64> = values
        .chunks_exact(cols)
        .flat_map(|row| block.clone().map(move |col| (row[col] / factor[col * cols + col]).powi(2)))
        .collect();
    let count = (scores.len() as f64 * share).floor() as usize;
    let mut order: Vec<usize> = (0..scores.len()).collect();
    if count > 0 && count < order.len() {
        order.select_nth_unstable_by(count, |&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)));
    }
    let mut mask = vec![false; scores.len()];
    order[..count].iter().for_each(|&at| mask[at] = true);
    mask
}

/// Sweeps one row over a block and spreads what the block moved over the columns after it.
fn sweep_row(
    row: usize,
    values: &mut [f64],
    factor: &[f64],
    block: std::ops::Range<usize>,
    mask: Option<&[bool]>,
    pattern: Pattern,
    store: Option<&Store<'_>>,
) -> f64 {
    let cols = values.len();
    let mut loss = 0.0;
    let mut errors = vec![0.0; block.len()];
    let mut group: Vec<usize> = Vec::new();
    for col in block.clone() {
        let is_zero = match (mask, pattern) {
            (Some(mask), _) => mask[col - block.start],
            (None, Pattern::Blocks { zeros, run }) => {
                if col.is_multiple_of(run) {
                    // With the weights as the columns before have left them; a run that is cut off stays.
                    group.clear();
                    if col + run <= cols {
                        group.extend(col..col + run);
                        let score = |at: &usize| (values[*at] / factor[at * cols + at]).powi(2);
                        group.sort_by(|a, b| score(a).total_cmp(&score(b)).then(a.cmp(b)));
                        group.truncate(zeros);
                    }
                }
                group.contains(&col)
            }
            (None, Pattern::Share(_)) => false,
        };
        let weight = values[col];
        let new = match (is_zero, store) {
            (true, _) => 0.0,
            (false, Some(store)) => store(row, col, weight),
            (false, None) => weight,
        };
        let own = &factor[col * cols..(col + 1) * cols];
        let error = (weight - new) / own[col];
        loss += error * error;
        for (value, u) in values[col + 1..block.end].iter_mut().zip(&own[col + 1..block.end]) {
            *value -= error * u;
        }
        values[col] = new;
        errors[col - block.start] = error;
    }
    for (error, col) in errors.into_iter().zip(block.clone()).filter(|(error, _)| *error != 0.0) {
        let own = &factor[col * cols + block.end..(col + 1) * cols];
        values[block.end..].iter_mut().zip(own).for_each(|(value, u)| *value -= error * u);
    }
    loss
}

#[cfg(test)]
mod tests {
    use super::super::masks::{Smallest, mask_row};
    use super::*;
    use crate::checkpoint::RowMap as _;

    fn wave(len: usize, step: f64) -> Vec<f32> {
        (0..len).map(|at| ((at as f64 * step + 0.3).sin() * (1.0 + (at % 7) as f64)) as f32).collect()
    }

    /// Masks by magnitude: a share of the whole matrix, or of each run of its rows.
    fn mask_by_magnitude(weights: &mut [f32], cols: usize, pattern: Pattern) {
        let smallest = match pattern {
            Pattern::Share(share) => Some(Smallest::of(weights, share)),
            Pattern::Blocks { .. } => None,
        };
        for (row, values) in weights.chunks_exact_mut(cols).enumerate() {
            match &smallest {
                Some(smallest) => smallest.map(row, values),
                None => mask_row(values, None, pattern),
            }
        }
    }

    /// Second moments of correlated inputs.
    fn moments(cols: usize) -> Vec<f64> {
        let mut sums = vec![0.0; cols * cols];
        let samples = 3 * cols;
        for sample in 0..samples {
            let shared = (sample as f64 * 0.7).sin() * 2.0;
            let x: Vec<f64> = (0..cols).map(|col| shared + ((sample * (col + 3)) as f64 * 0.91).cos()).collect();
            for a in 0..cols {
                for b in 0..cols {
                    sums[a * cols + b] += 2.0 / samples as f64 * x[a] * x[b];
                }
            }
        }
        sums
    }

    /// `tr(Δ H Δᵀ)`.
    fn moved(old: &[f32], new: &[f32], cols: usize, hessian: &[f64]) -> f64 {
        let delta: Vec<f64> = old.iter().zip(new).map(|(a, b)| f64::from(a - b)).collect();
        let row = |row: &[f64]| -> f64 {
            (0..cols).map(|a| row[a] * (0..cols).map(|b| hessian[a * cols + b] * row[b]).sum::<f64>()).sum()
        };
        delta.chunks_exact(cols).map(row).sum()
    }

    fn damped(hessian: &[f64], cols: usize) -> Vec<f64> {
        let mut hessian = hessian.to_vec();
        let mean = (0..cols).map(|col| hessian[col * cols + col]).sum::<f64>() / cols as f64;
        (0..cols).for_each(|col| hessian[col * cols + col] += DAMPING * mean);
        hessian
    }

    #[test]
    fn the_factor_gives_the_inverse() {
        let cols = 37;
        let hessian = damped(&moments(cols), cols);
        let factor = inverse_factor(&hessian, cols, &Progress::default()).expect("definite");
        for a in 0..cols {
            for b in 0..cols {
                // (Uᵀ U) H = 1.
                let entry: f64 = (0..cols)
                    .map(|k| {
                        (0..cols).map(|r| factor[r * cols + a] * factor[r * cols + k]).sum::<f64>()
                            * hessian[k * cols + b]
                    })
                    .sum();
                let expected = if a == b { 1.0 } else { 0.0 };
                assert!((entry - expected).abs() < 1e-8, "{a} {b} {entry}");
                assert!(a <= b || factor[a * cols + b] == 0.0, "upper triangular");
            }
        }
        let mut singular = hessian;
        singular[0] = -1.0;
        assert!(inverse_factor(&singular, cols, &Progress::default()).is_err());
    }

    #[test]
    fn the_loss_is_the_error_of_the_outputs_and_below_that_of_a_bare_mask() {
        let (rows, cols) = (24, 200);
        let (weights, hessian) = (wave(rows * cols, 0.37), moments(cols));
        for pattern in [Pattern::Share(0.5), Pattern::TWO_OF_FOUR, Pattern::FOUR_OF_EIGHT] {
            let mut swept = weights.clone();
            let found = sweep(&mut swept, cols, &hessian, pattern, None, &Progress::default()).expect("sweeps");
            let error = moved(&weights, &swept, cols, &damped(&hessian, cols));
            assert!((found.loss * 2.0 - error).abs() < 1e-3 * error, "{} {error}", found.loss * 2.0);
            let mut bare = weights.clone();
            mask_by_magnitude(&mut bare, cols, pattern);
            assert!(error < 0.8 * moved(&weights, &bare, cols, &damped(&hessian, cols)), "{pattern}");
            if let Pattern::Blocks { zeros, run } = pattern {
                assert!(
                    swept.chunks_exact(run).all(|group| group.iter().filter(|value| **value == 0.0).count() == zeros)
                );
            }
            assert!(found.zeros >= rows * cols / 2 - cols, "{}", found.zeros);
        }
    }

    #[test]
    fn without_correlation_it_is_magnitude_and_updates_nothing() {
        let (rows, cols) = (10, 64);
        let mut identity = vec![0.0; cols * cols];
        (0..cols).for_each(|col| identity[col * cols + col] = 2.0);
        let mut swept = wave(rows * cols, 0.73);
        let mut masked = swept.clone();
        sweep(&mut swept, cols, &identity, Pattern::Share(0.5), None, &Progress::default()).expect("sweeps");
        mask_by_magnitude(&mut masked, cols, Pattern::Share(0.5));
        assert_eq!(swept, masked);
    }

    #[test]
    fn dead_inputs_lose_their_weights_and_the_rest_can_be_quantized() {
        let (rows, cols) = (6, 48);
        let mut hessian = moments(cols);
        for other in 0..cols {
            hessian[5 * cols + other] = 0.0;
            hessian[other * cols + 5] = 0.0;
        }
        let weights = wave(rows * cols, 0.21);
        let mut swept = weights.clone();
        let grid = |_: usize, _: usize, value: f64| (value * 4.0).round() / 4.0;
        let found = sweep(&mut swept, cols, &hessian, Pattern::Share(0.25), Some(&grid), &Progress::default());
        assert!(found.expect("sweeps").loss > 0.0);
        assert!(swept.iter().skip(5).step_by(cols).all(|value| *value == 0.0));
        assert!(swept.iter().all(|value| (value * 4.0).fract() == 0.0), "every weight is on the grid");
        let plain: Vec<f32> = weights.iter().map(|value| (value * 4.0).round() / 4.0).collect();
        assert_ne!(swept, plain, "weights made up for each other");
        assert!(sweep(&mut swept, cols, &hessian[1..], Pattern::Share(0.5), None, &Progress::default()).is_err());
    }

    #[test]
    fn one_sweep_moves_the_outputs_less_than_a_mask_and_rounding_after_it() {
        let (rows, cols) = (24, 200);
        let (weights, hessian) = (wave(rows * cols, 0.37), moments(cols));
        let damped = damped(&hessian, cols);
        let grid = |_: usize, _: usize, value: f64| (value * 2.0).round() / 2.0;
        for pattern in [Pattern::Share(0.5), Pattern::TWO_OF_FOUR] {
            let mut joint = weights.clone();
            let found = sweep(&mut joint, cols, &hessian, pattern, Some(&grid), &Progress::default()).expect("sweeps");
            assert!(joint.iter().all(|value| (value * 2.0).fract() == 0.0), "every weight is on the grid");
            let one = moved(&weights, &joint, cols, &damped);
            assert!((found.loss * 2.0 - one).abs() < 1e-3 * one, "the loss counts both: {} {one}", found.loss * 2.0);
            let mut after = weights.clone();
            sweep(&mut after, cols, &hessian, pattern, None, &Progress::default()).expect("sweeps");
            after.iter_mut().for_each(|value| *value = grid(0, 0, f64::from(*value)) as f32);
            let two = moved(&weights, &after, cols, &damped);
            assert!(one < two, "{pattern}: {one} {two}");
        }
    }

    #[test]
    fn the_values_do_not_depend_on_the_number_of_threads() {
        let (weights, hessian) = (wave(16 * 150, 0.5), moments(150));
        let sweep_with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
            let mut swept = weights.clone();
            let found =
                pool.install(|| sweep(&mut swept, 150, &hessian, Pattern::TWO_OF_FOUR, None, &Progress::default()));
            (swept, found.expect("sweeps"))
        };
        assert_eq!(sweep_with(1), sweep_with(4));
    }
}
