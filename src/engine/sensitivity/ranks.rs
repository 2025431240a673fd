//! Rank agreement: whether two metrics put tensors in the same order, whatever their units.

/// Spearman's rank correlation of pairs (Spearman 1904): Pearson's correlation of the ranks, where
/// equal values share the mean of their ranks. 1 is the same order, -1 the opposite.
///
/// None where there are fewer than three pairs, where lengths differ, where a value is NaN, and where
/// all values of a side are equal.
pub fn spearman(one: &[f64], other: &[f64]) -> Option<f64> {
    let count = one.len();
    if count != other.len() || count < 3 || one.iter().chain(other).any(|value| value.is_nan()) {
        return None;
    }
    let (one, other) = (ranks(one), ranks(other));
    // Ties share ranks, so that the mean is the same with and without them.
    let mean = (count as f64 + 1.0) / 2.0;
    let (mut both, mut first, mut second) = (0.0, 0.0, 0.0);
    for (a, b) in one.iter().zip(&other) {
        let (a, b) = (a - mean, b - mean);
        both += a * b;
        first += a * a;
        second += b * b;
    }
    (first > 0.0 && second > 0.0).then(|| (both / (first * second).sqrt()).clamp(-1.0, 1.0))
}

/// Ranks from 1, the mean of their places for equal values.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    // Compared by `==`: both zeros are one value.
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = before as f64 + (tied.len() as f64 + 1.0) / 2.0;
        tied.iter().for_each(|&index| ranks[index] = rank);
        before += tied.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn assert_near(found: Option<f64>, wanted: f64) {
        let found = found.expect("a coefficient");
        assert!((found - wanted).abs() < 1e-12, "{found} is not {wanted}");
    }

    #[test]
    fn equal_values_share_the_mean_of_their_places() {
        assert_eq!(ranks(&[30.0, 10.0, 20.0, 20.0]), [4.0, 1.0, 2.5, 2.5]);
        assert_eq!(ranks(&[0.0, -0.0, -1.0]), [2.5, 2.5, 1.0]);
    }

    #[test]
    fn without_ties_it_is_the_textbook_formula() {
        // Ranks 1 2 3 4 5 against 2 1 4 3 5: 1 - 6 * 4 / (5 * 24).
        assert_near(spearman(&[0.1, 0.2, 0.3, 0.4, 0.5], &[20.0, 10.0, 40.0, 30.0, 900.0]), 0.8);
        assert_near(spearman(&[1.0, 2.0, 3.0], &[-1.0, -5.0, -9.0]), -1.0);
    }

    #[test]
    fn with_ties_it_is_the_correlation_of_the_ranks() {
        // Ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4: 4.5 / sqrt(4.5 * 5).
        assert_near(spearman(&[1.0, 2.0, 2.0, 3.0], &[1.0, 7.0, 5.0, 9.0]), 4.5 / 22.5f64.sqrt());
    }

    #[test]
    fn nothing_is_said_of_too_little() {
        assert_eq!(spearman(&[1.0, 2.0], &[1.0, 2.0]), None);
        assert_eq!(spearman(&[1.0, 2.0, 3.0], &[1.0, 2.0]), None);
        assert_eq!(spearman(&[1.0, 1.0, 1.0], &[1.0, 2.0, 3.0]), None);
        assert_eq!(spearman(&[1.0, f64::NAN, 1.0], &[1.0, 2.0, 3.0]), None);
    }

    proptest! {
        #[test]
        fn only_the_order_counts(values in prop::collection::vec((-4i32..4, -4i32..4), 3..40)) {
            let one: Vec<f64> = values.iter().map(|pair| f64::from(pair.0)).collect();
            let other: Vec<f64> = values.iter().map(|pair| f64::from(pair.1)).collect();
            let bent: Vec<f64> = one.iter().map(|value| value.exp()).collect();
            prop_assert_eq!(spearman(&one, &other), spearman(&bent, &other));
            prop_assert_eq!(spearman(&one, &other), spearman(&other, &one));
        }
    }
}
