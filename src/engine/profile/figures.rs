//! The arithmetic of a profile: moments, tails and histogram, from counts or from values.
//!
//! Central moments of chunks are merged with the pairwise update of Pébay, "Formulas for robust,
//! one-pass parallel computation of covariances and arbitrary-order statistical moments" (Sandia
//! report SAND2008-6212), which stays exact where sums of powers would cancel.

pub use crate::kernels::moments::BINS;
use crate::kernels::moments::{self, Scale, Survey};

/// Count, mean and sums of powers of the distance from the mean.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moments {
    pub(super) count: u64,
    pub(super) mean: f64,
    /// Sums of the second, third and fourth power.
    m2: f64,
    m3: f64,
    m4: f64,
}

impl Moments {
    /// Moments of weighted values, in two sweeps.
    pub(super) fn of(values: impl Iterator<Item = (f64, u64)> + Clone) -> Self {
        let (mut count, mut sum) = (0, 0.0);
        for (value, times) in values.clone() {
            count += times;
            sum += value * times as f64;
        }
        if count == 0 {
            return Self::default();
        }
        let mean = sum / count as f64;
        let (mut m2, mut m3, mut m4) = (0.0, 0.0, 0.0);
        for (value, times) in values {
            let distance = value - mean;
            let square = distance * distance;
            let times = times as f64;
            m2 += square * times;
            m3 += square * distance * times;
            m4 += square * square * times;
        }
        Self { count, mean, m2, m3, m4 }
    }

    /// Moments of finite values whose sum is known.
    pub(super) fn of_singles(values: &[f32], survey: &Survey) -> Self {
        let count = values.len() as u64;
        if count == 0 {
            return Self::default();
        }
        let mean = survey.sum / count as f64;
        let [m2, m3, m4] = moments::powers(values, mean);
        Self { count, mean, m2, m3, m4 }
    }

    /// Moments of sums that were taken elsewhere.
    #[cfg(feature = "gpu")]
    pub(super) fn of_sums(count: u64, mean: f64, [m2, m3, m4]: [f64; 3]) -> Self {
        Self { count, mean, m2, m3, m4 }
    }

    /// Moments of one value repeated, without the rounding of a sum.
    pub(super) fn of_constant(value: f64, count: u64) -> Self {
        Self { count, mean: value, ..Self::default() }
    }

    /// Moments of both sets of values together.
    #[must_use]
    pub(super) fn merge(&self, other: &Self) -> Self {
        if self.count == 0 {
            return *other;
        }
        if other.count == 0 {
            return *self;
        }
        let count = self.count + other.count;
        let (a, b, n) = (self.count as f64, other.count as f64, count as f64);
        let delta = other.mean - self.mean;
        let square = delta * delta;
        Self {
            count,
            mean: self.mean + delta * b / n,
            m2: self.m2 + other.m2 + square * a * b / n,
            m3: self.m3
                + other.m3
                + square * delta * a * b * (a - b) / (n * n)
                + 3.0 * delta * (a * other.m2 - b * self.m2) / n,
            m4: self.m4
                + other.m4
                + square * square * a * b * (a * a - a * b + b * b) / (n * n * n)
                + 6.0 * square * (a * a * other.m2 + b * b * self.m2) / (n * n)
                + 4.0 * delta * (a * other.m3 - b * self.m3) / n,
        }
    }

    /// Standard deviation of the whole population: divided by the count, not by one less.
    pub(super) fn std(&self) -> f64 {
        if self.count == 0 { 0.0 } else { (self.m2 / self.count as f64).sqrt() }
    }

    /// Fourth central moment over the squared variance, less the normal distribution's 3.
    pub(super) fn excess_kurtosis(&self) -> Option<f64> {
        let kurtosis = self.count as f64 * self.m4 / (self.m2 * self.m2) - 3.0;
        kurtosis.is_finite().then_some(kurtosis)
    }
}

/// What the second look at the values counts: tails and bins.
#[derive(Clone, Debug)]
pub(super) struct Spread {
    scale: Scale,
    /// Values more than 3, 4 and 6 standard deviations from the mean.
    pub(super) beyond: [u64; 3],
    /// Values of each bin.
    pub(super) bins: Vec<u64>,
}

impl Spread {
    /// Nothing counted yet; `lo..=hi` is the histogram's range.
    pub(super) fn new(lo: f64, hi: f64, mean: f64, std: f64) -> Self {
        let scale = Scale { lo, hi, mean, limits: [3.0, 4.0, 6.0].map(|sigmas| sigmas * std) };
        Self { scale, beyond: [0; 3], bins: vec![0; BINS] }
    }

    /// Counts a finite value `times` times.
    #[inline]
    pub(super) fn add(&mut self, value: f64, times: u64) {
        let distance = (value - self.scale.mean).abs();
        for (count, limit) in self.beyond.iter_mut().zip(self.scale.limits) {
            *count += if distance > limit { times } else { 0 };
        }
        self.bins[self.scale.bin(value)] += times;
    }

    /// Counts finite values.
    pub(super) fn add_singles(&mut self, values: &[f32]) {
        moments::count(values, &self.scale, &mut self.beyond, &mut self.bins);
    }

    /// What is counted against.
    #[cfg(feature = "gpu")]
    pub(super) fn scale(&self) -> &Scale {
        &self.scale
    }

    /// Adds another's counts.
    pub(super) fn merge(&mut self, other: &Self) {
        for (count, more) in self.beyond.iter_mut().zip(other.beyond) {
            *count += more;
        }
        for (count, more) in self.bins.iter_mut().zip(&other.bins) {
            *count += more;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn once(values: &[f64]) -> Moments {
        Moments::of(values.iter().map(|&value| (value, 1)))
    }

    #[test]
    fn a_two_point_distribution_has_an_excess_kurtosis_of_minus_two() {
        let moments = once(&[-1.0, 1.0, -1.0, 1.0]);
        assert_eq!((moments.mean, moments.std()), (0.0, 1.0));
        assert_eq!(moments.excess_kurtosis(), Some(-2.0));
        assert_eq!(once(&[2.0, 2.0]).excess_kurtosis(), None, "a constant has no shape");
        assert_eq!(once(&[]).std(), 0.0);
    }

    #[test]
    fn a_far_away_mean_does_not_cancel() {
        let values: Vec<f64> = (0..1000).map(|index| 1e9 + f64::from(index % 2)).collect();
        let halves = once(&values[..300]).merge(&once(&values[300..]));
        assert!((halves.std() - 0.5).abs() < 1e-9, "{}", halves.std());
        assert!((halves.excess_kurtosis().expect("not constant") + 2.0).abs() < 1e-6);
    }

    #[test]
    fn the_largest_value_falls_into_the_last_bin_and_tails_are_strict() {
        let mut spread = Spread::new(-1.0, 1.0, 0.0, 0.25);
        for value in [-1.0, -0.999, 0.0, 0.75, 0.751, 1.0] {
            spread.add(value, 1);
        }
        assert_eq!(spread.bins[0], 2);
        assert_eq!(spread.bins[128], 1);
        assert_eq!(spread.bins[255], 1);
        assert_eq!(spread.beyond, [4, 0, 0]);
        let mut huge = Spread::new(f64::MIN, f64::MAX, 0.0, 1.0);
        huge.add(f64::MAX, 3);
        huge.add(0.0, 1);
        assert_eq!((huge.bins[255], huge.bins[128]), (3, 1));
        let mut constant = Spread::new(1.0, 1.0, 1.0, 0.0);
        constant.add(1.0, 5);
        assert_eq!(constant.bins[0], 5);
    }

    proptest! {
        #[test]
        fn merged_moments_are_those_of_all_values(
            values in prop::collection::vec(-100.0f64..100.0, 2..60),
            cut in 0.0f64..1.0,
        ) {
            let cut = (values.len() as f64 * cut) as usize;
            let merged = once(&values[..cut]).merge(&once(&values[cut..]));
            let all = once(&values);
            prop_assert_eq!(merged.count, all.count);
            for (a, b) in [(merged.mean, all.mean), (merged.m2, all.m2), (merged.m3, all.m3), (merged.m4, all.m4)] {
                prop_assert!((a - b).abs() <= 1e-9 * (1.0 + all.m4), "{} {}", a, b);
            }
        }
    }
}
