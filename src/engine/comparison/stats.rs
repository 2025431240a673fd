//! Paired statistics: Wilson, McNemar, Tango, the paired bootstrap, Holm, and how many items it takes.
//!
//! Two models answer the same items, so only the items on which they differ say anything about the
//! difference. All figures are two-sided at 95 %.

use rayon::prelude::*;

use crate::error::Result;
use crate::progress::Progress;
use crate::scoring::random::Random;
use crate::scoring::text_stats::quantile;

/// The normal quantile of 95 %, two-sided.
const Z: f64 = 1.959_963_984_540_054;
/// The normal quantile of 80 % power.
const Z_POWER: f64 = 0.841_621_233_572_914_2;
/// Resamples that one task of the bootstrap draws; part of the seed's meaning.
const CHUNK: usize = 250;

/// An interval around a figure.
pub type Interval = (f64, f64);

/// Wilson's score interval of a proportion (Wilson 1927).
pub fn wilson(successes: f64, count: usize) -> Interval {
    if count == 0 {
        return (0.0, 1.0);
    }
    let n = count as f64;
    let p = (successes / n).clamp(0.0, 1.0);
    let scale = 1.0 + Z * Z / n;
    let centre = (p + Z * Z / (2.0 * n)) / scale;
    let half = Z / scale * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    ((centre - half).max(0.0), (centre + half).min(1.0))
}

/// Exact two-sided McNemar test: a binomial of the discordant items with p = ½; 1 where there are none.
pub fn mcnemar(right_to_wrong: u64, wrong_to_right: u64) -> f64 {
    let (few, count) = (right_to_wrong.min(wrong_to_right), right_to_wrong + wrong_to_right);
    if count == 0 {
        return 1.0;
    }
    // Terms C(n, k) / 2^n in logs, so that thousands of items do not underflow early.
    let mut ln_term = -(count as f64) * std::f64::consts::LN_2;
    let mut tail = ln_term.exp();
    for k in 1..=few {
        ln_term += ((count - k + 1) as f64).ln() - (k as f64).ln();
        tail += ln_term.exp();
    }
    (2.0 * tail).min(1.0)
}

/// Tango's score interval of a paired difference of proportions (Tango 1998), candidate minus baseline.
///
/// It holds for small counts, also where no item differs, where a bootstrap would claim certainty.
pub fn tango(right_to_wrong: u64, wrong_to_right: u64, count: usize) -> Interval {
    if count == 0 {
        return (-1.0, 1.0);
    }
    let (n, lost, gained) = (count as f64, right_to_wrong as f64, wrong_to_right as f64);
    // The score statistic falls in `delta`; q is the restricted estimate of the share of lost items.
    let score = |delta: f64| {
        let a = 2.0 * n;
        let b = -gained - lost + (2.0 * n - gained + lost) * delta;
        let c = -lost * delta * (1.0 - delta);
        let q = ((b * b - 4.0 * a * c).max(0.0).sqrt() - b) / (2.0 * a);
        let variance = n * (2.0 * q + delta * (1.0 - delta));
        let difference = gained - lost - n * delta;
        if variance <= 1e-12 { difference.signum() * f64::INFINITY } else { difference / variance.sqrt() }
    };
    let estimate = (gained - lost) / n;
    let solve = |mut inside: f64, mut outside: f64, wanted: f64| {
        for _ in 0..100 {
            let middle = (inside + outside) / 2.0;
            if (score(middle) - wanted).signum() == (score(outside) - wanted).signum() {
                outside = middle;
            } else {
                inside = middle;
            }
        }
        (inside + outside) / 2.0
    };
    let low = if estimate <= -1.0 { -1.0 } else { solve(estimate, -1.0, Z) };
    let high = if estimate >= 1.0 { 1.0 } else { solve(estimate, 1.0, -Z) };
    (low, high)
}

/// Percentile interval of the mean of clusters drawn with replacement; the same for every number of threads.
///
/// A cluster is a sum of differences and a number of items; items that share a passage or a
/// template are one cluster, since drawing them singly would take them for independent.
pub fn bootstrap(clusters: &[(f64, u32)], resamples: usize, seed: u64, progress: &Progress) -> Result<Interval> {
    if clusters.is_empty() || resamples == 0 {
        return Ok((0.0, 0.0));
    }
    let all_single = clusters.iter().all(|&(_, count)| count == 1);
    let sums: Vec<f64> = clusters.iter().map(|&(sum, _)| sum).collect();
    let len = clusters.len() as u64;
    let chunks: Vec<Result<Vec<f64>>> = (0..resamples.div_ceil(CHUNK))
        .into_par_iter()
        .map(|chunk| {
            let mut random = Random::new(seed, chunk as u64);
            let wanted = CHUNK.min(resamples - chunk * CHUNK);
            let mut means = Vec::with_capacity(wanted);
            for _ in 0..wanted {
                progress.check()?;
                let (mut sum, mut count) = (0.0, 0_u64);
                let mut left = clusters.len();
                while left > 0 {
                    // Two 32-bit indices of one number, by multiply and shift (Lemire 2019).
                    let bits = random.next_u64();
                    let first = (((bits & 0xFFFF_FFFF) * len) >> 32) as usize;
                    let second = (((bits >> 32) * len) >> 32) as usize;
                    for place in [first, second].into_iter().take(left) {
                        sum += sums[place];
                        if !all_single {
                            count += u64::from(clusters[place].1);
                        }
                    }
                    left = left.saturating_sub(2);
                }
                means.push(sum / if all_single { len as f64 } else { count.max(1) as f64 });
            }
            Ok(means)
        })
        .collect();
    let mut means = Vec::with_capacity(resamples);
    for chunk in chunks {
        means.extend(chunk?);
    }
    means.sort_unstable_by(f64::total_cmp);
    Ok((quantile(&means, 0.025), quantile(&means, 0.975)))
}

/// Holm's step-down correction: adjusted p-values in the order given (Holm 1979).
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut adjusted = vec![0.0; p_values.len()];
    let mut largest = 0.0_f64;
    for (rank, &index) in order.iter().enumerate() {
        largest = largest.max((p_values[index] * (p_values.len() - rank) as f64).min(1.0));
        adjusted[index] = largest;
    }
    adjusted
}

/// Items that a paired test needs to detect a difference `delta` with 80 % power, where a share
/// `discordant` of items differs between the models; `None` where that cannot be.
pub fn items_needed(delta: f64, discordant: f64) -> Option<u64> {
    let delta = delta.abs();
    if !(delta > 0.0 && discordant >= delta && discordant <= 1.0) {
        return None;
    }
    let root = Z * discordant.sqrt() + Z_POWER * (discordant - delta * delta).sqrt();
    Some((root * root / (delta * delta)).round() as u64)
}

/// Smallest difference that `count` items detect with 80 % power at a share `discordant` of differing items.
pub fn detectable(count: usize, discordant: f64) -> f64 {
    if count == 0 { 1.0 } else { ((Z + Z_POWER) * (discordant / count as f64).sqrt()).min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mcnemar_gives_the_checked_values() {
        for (lost, gained, expected) in
            [(10, 2, 0.0386), (25, 10, 0.0167), (30, 12, 0.00792), (5, 5, 1.0), (0, 0, 1.0), (2, 10, 0.0386)]
        {
            let p = mcnemar(lost, gained);
            assert!((p - expected).abs() < 5e-5_f64.max(expected * 2e-3), "({lost}, {gained}): {p}");
        }
        assert!(mcnemar(5000, 4000) < 1e-20);
        assert!((mcnemar(5000, 5000) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn wilson_gives_the_checked_intervals() {
        let close = |(low, high): Interval, a: f64, b: f64| (low - a).abs() < 6e-4 && (high - b).abs() < 6e-4;
        assert!(close(wilson(45.0, 50), 0.786, 0.957));
        assert!(close(wilson(900.0, 1000), 0.880, 0.917));
        assert_eq!(wilson(0.0, 0), (0.0, 1.0));
    }

    #[test]
    fn tango_is_symmetric_and_doubts_where_nothing_differs() {
        let (low, high) = tango(0, 0, 100);
        let expected = Z * Z / (100.0 + Z * Z);
        assert!((high - expected).abs() < 1e-6 && (low + expected).abs() < 1e-6, "{low} {high}");
        let (low, high) = tango(12, 2, 44);
        assert!(low < -10.0 / 44.0 && high > -10.0 / 44.0 && high < 0.0, "{low} {high}");
        let (swapped_low, swapped_high) = tango(2, 12, 44);
        assert!((swapped_low + high).abs() < 1e-9 && (swapped_high + low).abs() < 1e-9);
        // With many items it is the interval of a normal mean.
        let (low, _) = tango(600, 500, 100_000);
        let normal = -0.001 - Z * (1100.0_f64 / 1e10 - 1e-6 / 1e5).sqrt();
        assert!((low - normal).abs() < 2e-5, "{low} {normal}");
        assert_eq!(tango(5, 0, 5).0, -1.0);
    }

    #[test]
    fn the_bootstrap_agrees_with_the_normal_interval_and_with_itself() {
        let clusters: Vec<(f64, u32)> = (0..1000).map(|i| (if i % 10 == 0 { -1.0 } else { 0.0 }, 1)).collect();
        let run = |threads, seed| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
            pool.install(|| bootstrap(&clusters, 4000, seed, &Progress::default()).expect("interval"))
        };
        let (low, high) = run(1, 1);
        let half = Z * (0.09_f64 / 1000.0).sqrt();
        assert!((low - (-0.1 - half)).abs() < 2e-3 && (high - (-0.1 + half)).abs() < 2e-3, "{low} {high}");
        assert_eq!(run(1, 1), run(4, 1));
    }

    #[test]
    fn items_of_one_group_widen_the_interval() {
        // 100 groups of 10 items that all go wrong together.
        let single: Vec<(f64, u32)> = (0..1000).map(|i| (if i < 100 { -1.0 } else { 0.0 }, 1)).collect();
        let grouped: Vec<(f64, u32)> = (0..100).map(|i| (if i < 10 { -10.0 } else { 0.0 }, 10)).collect();
        let width = |clusters: &[(f64, u32)]| {
            let (low, high) = bootstrap(clusters, 2000, 1, &Progress::default()).expect("interval");
            high - low
        };
        let ratio = width(&grouped) / width(&single);
        assert!((2.7..3.7).contains(&ratio), "{ratio} instead of √10");
    }

    #[test]
    fn a_cancel_stops_the_bootstrap() {
        let progress = Progress::default();
        progress.cancel();
        assert!(bootstrap(&[(1.0, 1)], 10, 1, &progress).is_err_and(|err| err.is_cancelled()));
    }

    #[test]
    fn holm_steps_down_and_never_falls() {
        let adjusted = holm(&[0.01, 0.04, 0.03, 0.005]);
        for (value, expected) in adjusted.iter().zip([0.03, 0.06, 0.06, 0.02]) {
            assert!((value - expected).abs() < 1e-12, "{adjusted:?}");
        }
        assert_eq!(holm(&[0.9, 0.8]), [1.0, 1.0]);
    }

    #[test]
    fn the_number_of_items_is_that_of_the_reference() {
        for (delta, discordant, expected) in
            [(0.01, 0.05, 3922_u64), (0.01, 0.10, 7847), (0.02, 0.10, 1960), (0.005, 0.05, 15696)]
        {
            let items = items_needed(delta, discordant).expect("possible");
            assert!(items.abs_diff(expected) <= 2, "{delta} {discordant}: {items}");
        }
        assert_eq!(items_needed(0.1, 0.05), None);
        assert!((detectable(7847, 0.1) - 0.01).abs() < 1e-4);
    }
}
