//! Masks for study: single weights set to zero, by magnitude or by Wanda.
//!
//! A mask takes nothing out of the network: shapes, bytes of dense formats and time stay what they were,
//! unless a runtime has a kernel for the pattern. vLLM, the main one to serve 2:4, removed its kernels in
//! 2026. What a mask is good for is to see what sparsity costs in quality.
//!
//! Wanda compares `|W_ij| · ‖x_j‖` within each output row; with a pattern n:m, within each run of m inputs.
//! Source: Sun et al., "A simple and effective pruning approach for large language models", 2023.

use std::fmt;

use crate::checkpoint::RowMap;

/// Which weights of a row are compared with each other, and how many of them go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pattern {
    /// This share of the weights, below 1.
    Share(f64),
    /// `zeros` of every `run` neighbours, counted from the row's start; what is left over stays.
    Blocks {
        /// Weights that go.
        zeros: usize,
        /// Neighbours that are compared.
        run: usize,
    },
}

impl Pattern {
    /// Two of four, which some GPUs multiply faster.
    pub const TWO_OF_FOUR: Self = Self::Blocks { zeros: 2, run: 4 };
    /// Four of eight.
    pub const FOUR_OF_EIGHT: Self = Self::Blocks { zeros: 4, run: 8 };

    /// Reads `0.5`, `2:4` or `4:8`; n:m keeps n of m.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some((kept, run)) = text.split_once(':') {
            let (kept, run): (usize, usize) = (kept.trim().parse().ok()?, run.trim().parse().ok()?);
            return (0 < kept && kept < run && run <= 64).then_some(Self::Blocks { zeros: run - kept, run });
        }
        let share = text.trim().parse::<f64>().ok()?;
        (0.0..1.0).contains(&share).then_some(Self::Share(share))
    }

    /// The share of weights that goes.
    pub fn share(self) -> f64 {
        match self {
            Self::Share(share) => share,
            Self::Blocks { zeros, run } => zeros as f64 / run as f64,
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Share(share) => write!(out, "{share}"),
            Self::Blocks { zeros, run } => write!(out, "{}:{run}", run - zeros),
        }
    }
}

/// Sets the `count` weights with the lowest scores to zero; the first of equals goes.
fn zero_lowest(weights: &mut [f32], scores: &[f32], count: usize, order: &mut Vec<usize>) {
    if count == 0 {
        return;
    }
    order.clear();
    order.extend(0..weights.len());
    let compare = |a: &usize, b: &usize| scores[*a].total_cmp(&scores[*b]).then(a.cmp(b));
    if count < order.len() {
        order.select_nth_unstable_by(count, compare);
    }
    order[..count.min(weights.len())].iter().for_each(|&at| weights[at] = 0.0);
}

/// Masks one row. `norms` are one a column, ‖x_j‖ or anything in proportion to it; without, magnitude decides.
pub fn mask_row(weights: &mut [f32], norms: Option<&[f32]>, pattern: Pattern) {
    let scores: Vec<f32> = match norms {
        Some(norms) => weights.iter().zip(norms).map(|(weight, norm)| weight.abs() * norm).collect(),
        None => weights.iter().map(|weight| weight.abs()).collect(),
    };
    let mut order = Vec::new();
    match pattern {
        Pattern::Share(share) => {
            let count = (weights.len() as f64 * share).floor() as usize;
            zero_lowest(weights, &scores, count, &mut order);
        }
        Pattern::Blocks { zeros, run } => {
            for (weights, scores) in weights.chunks_exact_mut(run).zip(scores.chunks_exact(run)) {
                zero_lowest(weights, scores, zeros, &mut order);
            }
        }
    }
}

/// The smallest weights of a matrix, compared with each other wherever they stand: those below a magnitude, and
/// of those that have it the first.
#[derive(Debug)]
pub(super) struct Smallest {
    magnitude: f32,
    /// Index within the matrix after the last weight of just this magnitude that goes.
    ties_until: usize,
}

impl Smallest {
    /// This share of `values`, all weights of a matrix row by row.
    pub(super) fn of(values: &[f32], share: f64) -> Self {
        let count = (values.len() as f64 * share).floor() as usize;
        if count == 0 {
            return Self { magnitude: 0.0, ties_until: 0 };
        }
        let mut sizes: Vec<f32> = values.iter().map(|value| value.abs()).collect();
        let (below, magnitude, _) = sizes.select_nth_unstable_by(count - 1, f32::total_cmp);
        let magnitude = *magnitude;
        let ties = 1 + below.iter().filter(|size| **size == magnitude).count();
        let last = values.iter().enumerate().filter(|(_, value)| value.abs() == magnitude).nth(ties - 1);
        Self { magnitude, ties_until: last.map_or(0, |(index, _)| index + 1) }
    }
}

impl RowMap for Smallest {
    fn map(&self, row: usize, values: &mut [f32]) {
        let first = row * values.len();
        for (at, value) in values.iter_mut().enumerate() {
            let size = value.abs();
            if size < self.magnitude || (size == self.magnitude && first + at < self.ties_until) {
                *value = 0.0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn zeros(values: &[f32]) -> usize {
        values.iter().filter(|value| **value == 0.0).count()
    }

    fn mask_by_magnitude(weights: &mut [f32], cols: usize, share: f64) {
        let smallest = Smallest::of(weights, share);
        weights.chunks_exact_mut(cols).enumerate().for_each(|(row, values)| smallest.map(row, values));
    }

    proptest! {
        #[test]
        fn rows_lose_exactly_their_share_and_groups_their_number(
            weights in proptest::collection::vec(0.01f32..4.0, 1..80),
            norms in proptest::collection::vec(0.1f32..9.0, 80),
            share in 0.0f64..0.99,
        ) {
            let mut masked = weights.clone();
            mask_row(&mut masked, Some(&norms), Pattern::Share(share));
            prop_assert_eq!(zeros(&masked), (weights.len() as f64 * share).floor() as usize);
            prop_assert!(masked.iter().zip(&weights).all(|(new, old)| *new == 0.0 || new == old), "nothing is updated");
            for pattern in [Pattern::TWO_OF_FOUR, Pattern::FOUR_OF_EIGHT] {
                let Pattern::Blocks { zeros: gone, run } = pattern else { unreachable!() };
                let mut masked = weights.clone();
                mask_row(&mut masked, Some(&norms), pattern);
                prop_assert!(masked.chunks_exact(run).all(|group| zeros(group) == gone));
                prop_assert_eq!(zeros(masked.chunks_exact(run).remainder()), 0);
            }
            // Inputs of one size make Wanda magnitude within the row.
            let (mut wanda, mut magnitude) = (weights.clone(), weights);
            mask_row(&mut wanda, Some(&[2.0; 80]), Pattern::Share(share));
            mask_row(&mut magnitude, None, Pattern::Share(share));
            prop_assert_eq!(wanda, magnitude);
        }
    }

    #[test]
    fn large_inputs_save_small_weights_and_magnitude_looks_at_the_whole_matrix() {
        let mut row = [0.1, 2.0, 1.0, -0.2];
        mask_row(&mut row, Some(&[100.0, 1.0, 0.1, 1.0]), Pattern::Share(0.5));
        assert_eq!(row, [0.1, 2.0, 0.0, 0.0]);
        let mut matrix = [1.0, 2.0, 3.0, 4.0, 0.1, 0.2, 0.3, 0.4];
        mask_by_magnitude(&mut matrix, 4, 0.5);
        assert_eq!(matrix, [1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0]);
        mask_row(&mut matrix[..4], None, Pattern::TWO_OF_FOUR);
        assert_eq!(matrix[..4], [0.0, 0.0, 3.0, 4.0]);
    }

    #[test]
    fn of_equal_magnitudes_the_first_go_whatever_their_row_and_sign() {
        let mut matrix = [2.0, -1.0, 3.0, 1.0, -1.0, 0.5];
        // Three of six: 0.5, then two of the three ones.
        mask_by_magnitude(&mut matrix, 2, 0.5);
        assert_eq!(matrix, [2.0, 0.0, 3.0, 0.0, -1.0, 0.0]);
        let whole = matrix;
        mask_by_magnitude(&mut matrix, 2, 0.1);
        assert_eq!(matrix, whole, "a tenth of six is none");
    }

    #[test]
    fn patterns_are_read_as_the_field_writes_them() {
        assert_eq!(Pattern::parse("2:4"), Some(Pattern::TWO_OF_FOUR));
        assert_eq!(Pattern::parse("0.5"), Some(Pattern::Share(0.5)));
        for wrong in ["4:4", "0:4", "1", "1.5", "a", "2:", "-0.1"] {
            assert_eq!(Pattern::parse(wrong), None, "{wrong}");
        }
        assert_eq!(Pattern::FOUR_OF_EIGHT.to_string(), "4:8");
        assert_eq!(Pattern::FOUR_OF_EIGHT.share(), 0.5);
    }
}
