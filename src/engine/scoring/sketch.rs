//! Moments and quantiles of a stream of numbers, in memory that does not grow with it.
//!
//! [`Quantiles`] keeps the first 65,536 values as they are, so that up to there every quantile is
//! exact. A longer stream is counted in buckets of geometrically growing width (DDSketch; Masson,
//! Rim and Lee, VLDB 2019): every quantile then lies within 0.1 % of the exact one, relative to its
//! size, for sizes from 1e-12 to 1e9, at no more than 700 kB. Counts do not depend on the order.

/// Values kept exactly.
const EXACT: usize = 65_536;
/// Largest relative error of a quantile of a counted stream.
pub const RELATIVE_ERROR: f64 = 0.001;
/// Smaller sizes are counted as zero.
const SMALLEST: f64 = 1e-12;
/// Larger sizes are counted as this.
const LARGEST: f64 = 1e9;

/// Count, mean and spread (Welford 1962).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moments {
    count: u64,
    mean: f64,
    squares: f64,
}

impl Moments {
    /// Takes one value in.
    pub fn push(&mut self, value: f64) {
        self.count += 1;
        let before = value - self.mean;
        self.mean += before / self.count as f64;
        self.squares += before * (value - self.mean);
    }

    /// Values taken in.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their mean; 0 of nothing.
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// Sample variance; 0 of fewer than two values.
    pub fn variance(&self) -> f64 {
        if self.count < 2 { 0.0 } else { (self.squares / (self.count - 1) as f64).max(0.0) }
    }

    /// Standard error of the mean: sample standard deviation over √n.
    pub fn stderr(&self) -> f64 {
        if self.count < 2 { 0.0 } else { (self.variance() / self.count as f64).sqrt() }
    }
}

/// Moments of pairs, with their covariance.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PairMoments {
    pub a: Moments,
    pub b: Moments,
    products: f64,
}

impl PairMoments {
    /// Takes one pair in.
    pub fn push(&mut self, a: f64, b: f64) {
        let before = a - self.a.mean;
        self.a.push(a);
        self.b.push(b);
        self.products += before * (b - self.b.mean);
    }

    /// Sample covariance; 0 of fewer than two pairs.
    pub fn covariance(&self) -> f64 {
        if self.a.count < 2 { 0.0 } else { self.products / (self.a.count - 1) as f64 }
    }

    /// Pearson's correlation; 1 where one of both does not vary.
    pub fn correlation(&self) -> f64 {
        let scale = (self.a.variance() * self.b.variance()).sqrt();
        if scale > 0.0 { (self.covariance() / scale).clamp(-1.0, 1.0) } else { 1.0 }
    }
}

/// Quantiles of a stream.
#[derive(Clone, Debug, Default)]
pub struct Quantiles {
    exact: Vec<f64>,
    is_sorted: bool,
    counted: Option<Box<Counted>>,
    count: u64,
    min: f64,
    max: f64,
}

#[derive(Clone, Debug)]
struct Counted {
    negative: Vec<u64>,
    zero: u64,
    positive: Vec<u64>,
}

/// Natural log of the ratio between the edges of a bucket.
fn ln_step() -> f64 {
    ((1.0 + RELATIVE_ERROR) / (1.0 - RELATIVE_ERROR)).ln()
}

fn bucket(size: f64) -> usize {
    ((size.min(LARGEST) / SMALLEST).ln() / ln_step()).ceil().max(0.0) as usize
}

/// The value whose relative distance to both edges of a bucket is the same.
fn value_of(bucket: usize) -> f64 {
    SMALLEST * (bucket as f64 * ln_step()).exp() * (1.0 - RELATIVE_ERROR)
}

impl Counted {
    fn new() -> Self {
        let len = bucket(LARGEST) + 1;
        Self { negative: vec![0; len], zero: 0, positive: vec![0; len] }
    }

    fn push(&mut self, value: f64) {
        if value.abs() < SMALLEST {
            self.zero += 1;
        } else if value < 0.0 {
            self.negative[bucket(-value)] += 1;
        } else {
            self.positive[bucket(value)] += 1;
        }
    }

    /// The value at a place of the sorted stream, from 0.
    fn at(&self, place: u64) -> f64 {
        let mut left = place;
        for (index, &count) in self.negative.iter().enumerate().rev() {
            if left < count {
                return -value_of(index);
            }
            left -= count;
        }
        if left < self.zero {
            return 0.0;
        }
        left -= self.zero;
        for (index, &count) in self.positive.iter().enumerate() {
            if left < count {
                return value_of(index);
            }
            left -= count;
        }
        LARGEST
    }
}

impl Quantiles {
    /// Takes one value in; one that is not a number is left out.
    pub fn push(&mut self, value: f64) {
        if value.is_nan() {
            return;
        }
        (self.min, self.max) =
            if self.count == 0 { (value, value) } else { (self.min.min(value), self.max.max(value)) };
        self.count += 1;
        if let Some(counted) = &mut self.counted {
            counted.push(value);
            return;
        }
        self.exact.push(value);
        self.is_sorted = false;
        if self.exact.len() > EXACT {
            let mut counted = Box::new(Counted::new());
            std::mem::take(&mut self.exact).into_iter().for_each(|value| counted.push(value));
            self.counted = Some(counted);
        }
    }

    /// Values taken in.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// True as long as quantiles are exact.
    pub fn is_exact(&self) -> bool {
        self.counted.is_none()
    }

    /// Smallest value, exact; 0 of nothing.
    pub fn min(&self) -> f64 {
        self.min
    }

    /// Largest value, exact; 0 of nothing.
    pub fn max(&self) -> f64 {
        self.max
    }

    /// Value at a fraction of the sorted stream, linear between neighbours; 0 of nothing.
    pub fn quantile(&mut self, fraction: f64) -> f64 {
        let Some(counted) = &self.counted else {
            if !self.is_sorted {
                self.exact.sort_unstable_by(f64::total_cmp);
                self.is_sorted = true;
            }
            return super::text_stats::quantile(&self.exact, fraction);
        };
        // Both ends are known exactly.
        if fraction <= 0.0 {
            return self.min;
        }
        if fraction >= 1.0 {
            return self.max;
        }
        let at = fraction * (self.count - 1) as f64;
        let below = counted.at(at.floor() as u64);
        let above = counted.at(at.ceil() as u64);
        (below + (above - below) * at.fract()).clamp(self.min, self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::super::random::Random;
    use super::super::text_stats::{mean_and_stderr, quantile};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_long_stream_has_its_quantiles_within_the_promised_error() {
        let mut random = Random::new(5, 0);
        let values: Vec<f64> = (0..200_000)
            .map(|index| match index % 10 {
                0 => 0.0,
                1..4 => -10_f64.powf(random.unit() * 8.0 - 7.0),
                _ => 10_f64.powf(random.unit() * 9.0 - 7.0),
            })
            .collect();
        let mut sketch = Quantiles::default();
        values.iter().for_each(|&value| sketch.push(value));
        assert!(!sketch.is_exact() && sketch.count() == 200_000);
        let mut sorted = values;
        sorted.sort_unstable_by(f64::total_cmp);
        assert_eq!((sketch.quantile(0.0), sketch.quantile(1.0)), (sorted[0], sorted[199_999]));
        for fraction in [0.001, 0.01, 0.05, 0.1, 0.25, 0.35, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999] {
            let (ours, exact) = (sketch.quantile(fraction), quantile(&sorted, fraction));
            assert!((ours - exact).abs() <= 1.1 * RELATIVE_ERROR * exact.abs(), "{fraction}: {ours} {exact}");
        }
    }

    #[test]
    fn nothing_and_what_is_no_number_do_no_harm() {
        let mut sketch = Quantiles::default();
        sketch.push(f64::NAN);
        assert_eq!((sketch.count(), sketch.quantile(0.5), sketch.max()), (0, 0.0, 0.0));
        assert_eq!((Moments::default().mean(), Moments::default().stderr()), (0.0, 0.0));
    }

    proptest! {
        #[test]
        fn a_short_stream_is_exact_and_moments_are_those_of_two_passes(
            values in prop::collection::vec(-1e3_f64..1e3, 1..200), fraction in 0.0_f64..1.0,
        ) {
            let (mut sketch, mut pairs) = (Quantiles::default(), PairMoments::default());
            for &value in &values {
                sketch.push(value);
                pairs.push(value, 3.0 - 2.0 * value);
            }
            let mut sorted = values.clone();
            sorted.sort_unstable_by(f64::total_cmp);
            prop_assert_eq!(sketch.quantile(fraction), quantile(&sorted, fraction));
            let (mean, stderr) = mean_and_stderr(values.iter().copied());
            prop_assert!((pairs.a.mean() - mean).abs() < 1e-9 && (pairs.a.stderr() - stderr).abs() < 1e-9);
            if pairs.a.variance() > 1e-6 {
                prop_assert!((pairs.correlation() + 1.0).abs() < 1e-6);
            }
        }
    }
}
