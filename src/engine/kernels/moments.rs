//! Moments, tails and histogram of f32 values, two looks at each.
//!
//! Sums are taken in f64, in sixteen or eight lanes that are added in a fixed order. The lanes are
//! plain arrays: one body, compiled for the baseline and for AVX2.

use super::multiversion;

/// Number of bins of a histogram.
pub const BINS: usize = 256;

/// Lanes of f64 sums.
const LANES: usize = 8;

/// Tables that take turns, so that equal neighbours do not wait for each other's increment.
const TABLES: usize = 4;

/// What one look at values finds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Survey {
    /// Smallest finite value; +∞ of none.
    pub lo: f32,
    /// Largest finite value; −∞ of none.
    pub hi: f32,
    /// Number of NaN values.
    pub nan_count: u64,
    /// Number of infinite values.
    pub inf_count: u64,
    /// Number of zeros of either sign.
    pub zero_count: u64,
    /// Sum of the finite values.
    pub sum: f64,
}

/// Sums of the second, third and fourth power of the distance from the mean.
pub type Powers = [f64; 3];

#[inline(always)]
fn total(mut lanes: [f64; LANES]) -> f64 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn survey_body(values: &[f32]) -> Survey {
    /// Values between which the counts of lanes cannot overflow.
    const RUN: usize = 1 << 20;
    let mut all =
        Survey { lo: f32::INFINITY, hi: f32::NEG_INFINITY, nan_count: 0, inf_count: 0, zero_count: 0, sum: 0.0 };
    for values in values.chunks(RUN) {
        let mut lo = [f32::INFINITY; 16];
        let mut hi = [f32::NEG_INFINITY; 16];
        let (mut zeros, mut specials) = ([0u32; 16], [0u32; 16]);
        let mut sums = [[0.0f64; LANES]; 2];
        let (vectors, rest) = values.as_chunks::<16>();
        for vector in vectors {
            for lane in 0..16 {
                let value = vector[lane];
                lo[lane] = if value < lo[lane] { value } else { lo[lane] };
                hi[lane] = if value > hi[lane] { value } else { hi[lane] };
            }
            for lane in 0..16 {
                let bits = vector[lane].to_bits() & 0x7fff_ffff;
                zeros[lane] += u32::from(bits == 0);
                specials[lane] += u32::from(bits >= 0x7f80_0000);
            }
            let (low, high) = vector.split_at(LANES);
            for lane in 0..LANES {
                sums[0][lane] += f64::from(low[lane]);
            }
            for lane in 0..LANES {
                sums[1][lane] += f64::from(high[lane]);
            }
        }
        if specials.iter().all(|&count| count == 0) && rest.iter().all(|value| value.is_finite()) {
            all.lo = lo.iter().chain(rest).copied().fold(all.lo, f32::min);
            all.hi = hi.iter().chain(rest).copied().fold(all.hi, f32::max);
            all.zero_count += zeros.iter().map(|&count| u64::from(count)).sum::<u64>();
            all.zero_count += rest.iter().filter(|&&value| value == 0.0).count() as u64;
            all.sum += total(sums[0]) + total(sums[1]) + rest.iter().copied().map(f64::from).sum::<f64>();
            continue;
        }
        // NaN or infinity among them: rare enough for a plain loop.
        for &value in values {
            if value.is_finite() {
                all.lo = all.lo.min(value);
                all.hi = all.hi.max(value);
                all.zero_count += u64::from(value == 0.0);
                all.sum += f64::from(value);
            } else {
                all.nan_count += u64::from(value.is_nan());
                all.inf_count += u64::from(value.is_infinite());
            }
        }
    }
    all
}

#[inline(always)]
fn powers_body(values: &[f32], mean: f64) -> Powers {
    let (mut second, mut third, mut fourth) = ([0.0f64; LANES], [0.0f64; LANES], [0.0f64; LANES]);
    let (vectors, rest) = values.as_chunks::<LANES>();
    for vector in vectors {
        for lane in 0..LANES {
            let distance = f64::from(vector[lane]) - mean;
            let square = distance * distance;
            second[lane] += square;
            third[lane] += square * distance;
            fourth[lane] += square * square;
        }
    }
    for (lane, &value) in rest.iter().enumerate() {
        let distance = f64::from(value) - mean;
        let square = distance * distance;
        second[lane] += square;
        third[lane] += square * distance;
        fourth[lane] += square * square;
    }
    [total(second), total(third), total(fourth)]
}

/// Where values are counted.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Lower edge of the first bin.
    pub lo: f64,
    /// Upper edge of the last bin.
    pub hi: f64,
    /// Distances are taken from here.
    pub mean: f64,
    /// Distances beyond which a value is in a tail.
    pub limits: [f64; 3],
}

impl Scale {
    /// The bin of a value; below the range the first, above it the last, and the first where the range has no width.
    #[inline(always)]
    pub fn bin(&self, value: f64) -> usize {
        // Halves, so that the width of the largest possible range is still finite.
        let width = self.hi * 0.5 - self.lo * 0.5;
        let place = (value * 0.5 - self.lo * 0.5) / width * BINS as f64;
        // A cast saturates: below the range and NaN (no width) go to the first bin, above to the last.
        (place as usize).min(BINS - 1)
    }
}

#[inline(always)]
fn count_body(values: &[f32], scale: &Scale, beyond: &mut [u64; 3], bins: &mut [u64]) {
    let (width, start) = (scale.hi * 0.5 - scale.lo * 0.5, scale.lo * 0.5);
    let mut tables = [[0u32; BINS]; TABLES];
    // u32 counts: far fewer values than that are given at once.
    for values in values.chunks(1 << 30) {
        let mut tails = [[0u64; LANES]; 3];
        let (vectors, rest) = values.as_chunks::<LANES>();
        for vector in vectors {
            let mut places = [0.0f64; LANES];
            for lane in 0..LANES {
                let value = f64::from(vector[lane]);
                let place = (value * 0.5 - start) / width * BINS as f64;
                // NaN (no width) compares as false and becomes 0.
                let place = if place > 0.0 { place } else { 0.0 };
                let place = if place < BINS as f64 - 1.0 { place } else { BINS as f64 - 1.0 };
                // 2⁵²: the whole part ends up in the lowest bits.
                places[lane] = place.floor() + 4_503_599_627_370_496.0;
            }
            for (tails, limit) in tails.iter_mut().zip(scale.limits) {
                for lane in 0..LANES {
                    tails[lane] += u64::from((f64::from(vector[lane]) - scale.mean).abs() > limit);
                }
            }
            for lane in 0..LANES {
                tables[lane % TABLES][places[lane].to_bits() as usize % BINS] += 1;
            }
        }
        for &value in rest {
            let distance = (f64::from(value) - scale.mean).abs();
            for (tails, limit) in tails.iter_mut().zip(scale.limits) {
                tails[0] += u64::from(distance > limit);
            }
            tables[0][scale.bin(f64::from(value))] += 1;
        }
        for (beyond, tails) in beyond.iter_mut().zip(tails) {
            *beyond += tails.iter().sum::<u64>();
        }
        for table in &mut tables {
            for (bin, count) in bins.iter_mut().zip(table) {
                *bin += u64::from(std::mem::take(count));
            }
        }
    }
}

multiversion! {
    /// Range, special values, zeros and sum.
    pub fn survey, survey_at(values: &[f32]) -> Survey => survey_body
}
multiversion! {
    /// Powers of the distance of finite values from `mean`.
    pub fn powers, powers_at(values: &[f32], mean: f64) -> Powers => powers_body
}
multiversion! {
    /// Adds finite values to the counts of tails and bins; `bins` has [`BINS`].
    pub fn count, count_at(values: &[f32], scale: &Scale, beyond: &mut [u64; 3], bins: &mut [u64]) => count_body
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn special_values_are_counted_and_left_out() {
        let mut values = vec![0.5f32; 100];
        (values[3], values[40], values[41], values[99]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0);
        let found = survey(&values);
        assert_eq!((found.nan_count, found.inf_count, found.zero_count), (1, 2, 1));
        assert_eq!((found.lo, found.hi, found.sum), (-0.0, 0.5, 48.0));
        let none = survey(&[]);
        assert!(none.lo > none.hi && none.sum == 0.0);
    }

    #[test]
    fn a_range_without_width_has_everything_in_its_first_bin() {
        let scale = Scale { lo: 1.0, hi: 1.0, mean: 1.0, limits: [0.0; 3] };
        let (mut beyond, mut bins) = ([0; 3], vec![0; BINS]);
        count(&[1.0; 37], &scale, &mut beyond, &mut bins);
        assert_eq!((bins[0], beyond), (37, [0; 3]));
    }

    proptest! {
        #[test]
        fn all_figures_are_those_of_a_plain_loop(
            values in prop::collection::vec(-4.0f32..4.0, 0..300),
            lo in -3.0f64..0.0,
            hi in 0.0f64..3.0,
        ) {
            let found = survey(&values);
            let sum: f64 = values.iter().copied().map(f64::from).sum();
            prop_assert!((found.sum - sum).abs() < 1e-9);
            prop_assert_eq!(found.lo, values.iter().copied().fold(f32::INFINITY, f32::min));
            prop_assert_eq!(found.hi, values.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let mean = sum / values.len().max(1) as f64;
            for (power, found) in [2, 3, 4].into_iter().zip(powers(&values, mean)) {
                let plain: f64 = values.iter().map(|&value| (f64::from(value) - mean).powi(power)).sum();
                prop_assert!((plain - found).abs() < 1e-8 * (1.0 + plain.abs()), "{} {}", plain, found);
            }
            let scale = Scale { lo, hi, mean, limits: [0.5, 1.0, 3.0] };
            let (mut beyond, mut bins) = ([1; 3], vec![1; BINS]);
            count(&values, &scale, &mut beyond, &mut bins);
            let (mut plain_beyond, mut plain_bins) = ([1; 3], vec![1; BINS]);
            for &value in &values {
                plain_bins[scale.bin(f64::from(value))] += 1;
                for (count, limit) in plain_beyond.iter_mut().zip(scale.limits) {
                    *count += u64::from((f64::from(value) - mean).abs() > limit);
                }
            }
            prop_assert_eq!(beyond, plain_beyond);
            prop_assert_eq!(bins, plain_bins);
        }
    }
}
