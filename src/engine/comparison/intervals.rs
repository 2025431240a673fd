//! Intervals of means of items, alone or in groups.

use super::resample::Cluster;
use super::stats::{self, Interval};

/// Mean of an item and the variance of that mean, groups as they are (a ratio of two means); of one group, no variance.
pub(super) fn mean_of(clusters: &[Cluster]) -> (f64, f64) {
    let items = clusters.iter().map(|(_, count)| f64::from(*count)).sum::<f64>().max(1.0);
    let mean = clusters.iter().map(|(sum, _)| sum).sum::<f64>() / items;
    let squares: f64 = clusters.iter().map(|(sum, count)| (sum - mean * f64::from(*count)).powi(2)).sum();
    let groups = clusters.len() as f64;
    (mean, if groups < 2.0 { 0.0 } else { groups / (groups - 1.0) * squares / (items * items) })
}

/// Student's interval of the mean of an item, clipped to what differences can be; all of that for one group.
pub(super) fn student(clusters: &[Cluster]) -> Interval {
    if clusters.len() < 2 {
        return (-1.0, 1.0);
    }
    let (mean, variance) = mean_of(clusters);
    let half = stats::student_t(clusters.len() - 1) * variance.sqrt();
    ((mean - half).max(-1.0), (mean + half).min(1.0))
}

/// A difference of two independent means, each with its interval: their near ends are combined as errors are (the
/// method of variance estimates recovery; Zou and Donner 2008). A side on which nothing was seen keeps its doubt.
pub(super) fn difference_of(own: (f64, Interval), rest: (f64, Interval)) -> (f64, Interval) {
    let ((own, (own_low, own_high)), (rest, (rest_low, rest_high))) = (own, rest);
    let difference = own - rest;
    let (below, above) = ((own - own_low).hypot(rest_high - rest), (own_high - own).hypot(rest - rest_low));
    (difference, (difference - below, difference + above))
}

/// The widest on each side.
pub(super) fn wider(a: Interval, b: Interval) -> Interval {
    (a.0.min(b.0), a.1.max(b.1))
}

/// How many independent items grouped ones with these values are worth: their number by Kish's design effect (1965),
/// between the number of groups and that of items.
pub(super) fn independent_items(values: impl Iterator<Item = f64>, clusters: &[Cluster]) -> f64 {
    let (mut n, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for value in values {
        n += 1.0;
        sum += value;
        squares += value * value;
    }
    let groups = clusters.len() as f64;
    let alone = (squares - sum * sum / n) / (n * n);
    let (_, together) = mean_of(clusters);
    if clusters.len() < 2 {
        1.0
    } else if alone <= 0.0 {
        n
    } else {
        (n * alone / together).clamp(groups, n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_that_is_certain_leaves_the_other_its_interval() {
        // 3 and 4 make 5, on either side with the ends that face each other.
        let (difference, (low, high)) = difference_of((10.0, (7.0, 10.0)), (2.0, (2.0, 6.0)));
        assert_eq!((difference, low, high), (8.0, 3.0, 8.0));
        let (_, (low, high)) = difference_of((0.5, (0.5, 0.5)), (0.25, (0.125, 0.5)));
        assert_eq!((low, high), (0.0, 0.375));
    }
}
