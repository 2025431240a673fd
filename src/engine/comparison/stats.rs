//! Paired statistics: Wilson, McNemar, Tango, Holm, medians, and how many items it takes. The bootstrap is in [`super::resample`].
//!
//! Two models answer the same items, so only the items on which they differ say anything about the
//! difference. All figures are two-sided at 95 %.

/// The normal quantile of 95 %, two-sided.
const Z: f64 = 1.959_963_984_540_054;
/// The normal quantile of 80 % power.
const Z_POWER: f64 = 0.841_621_233_572_914_2;

/// An interval around a figure.
pub type Interval = (f64, f64);

/// Wilson's score interval of a proportion (Wilson 1927).
pub fn wilson(successes: f64, count: usize) -> Interval {
    if count == 0 {
        return (0.0, 1.0);
    }
    wilson_of(successes / count as f64, count as f64)
}

/// Wilson's interval of a proportion of `n` independent items, which need not be a whole number of them.
pub fn wilson_of(proportion: f64, n: f64) -> Interval {
    let p = proportion.clamp(0.0, 1.0);
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

/// Steps up to which the sign-flip test is counted out.
const MOST_STEPS: f64 = 5e7;

/// Two-sided sign-flip test of whole groups: the chance that |Σ ±s| reaches |Σ s| when each group's net change `s`
/// might as well have the other sign (Fisher 1935, Pitman 1937). Groups of one item make it the exact
/// [`mcnemar`] test. Counted out where that takes few steps, else by its normal limit.
pub fn sign_flip(net_changes: &[i64]) -> f64 {
    let changes: Vec<usize> =
        net_changes.iter().filter(|&&change| change != 0).map(|change| change.unsigned_abs() as usize).collect();
    let observed = net_changes.iter().sum::<i64>().unsigned_abs() as usize;
    let most: usize = changes.iter().sum();
    if observed == 0 {
        return 1.0;
    }
    if most as f64 * changes.len() as f64 > MOST_STEPS {
        let spread = changes.iter().map(|&change| (change as f64).powi(2)).sum::<f64>().sqrt();
        return 2.0 * normal_cdf(-(observed as f64) / spread);
    }
    // Chances of every sum, the sum of all changes downwards being at 0.
    let mut chances = vec![0.0; 2 * most + 1];
    chances[0] = 1.0;
    let mut reach = 0;
    for change in changes {
        reach += 2 * change;
        for at in (0..=reach).rev() {
            let below = if at >= 2 * change { chances[at - 2 * change] } else { 0.0 };
            chances[at] = (chances[at] + below) / 2.0;
        }
    }
    let tail: f64 = chances[most + observed..].iter().sum();
    (2.0 * tail).min(1.0)
}

/// The 97.5 % quantile of Student's t: exact for 1 and 2 degrees of freedom, else by Fisher and Cornish's series
/// (Abramowitz and Stegun 26.7.5, to 0.2 %).
pub fn student_t(degrees: usize) -> f64 {
    let (z, v) = (Z, degrees as f64);
    match degrees {
        0 => f64::INFINITY,
        1 => 12.706_204_736,
        2 => 4.302_652_73,
        _ => {
            let terms = [
                (z.powi(3) + z) / 4.0,
                (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0,
                (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0,
                (79.0 * z.powi(9) + 776.0 * z.powi(7) + 1482.0 * z.powi(5) - 1920.0 * z.powi(3) - 945.0 * z) / 92160.0,
            ];
            z + terms.iter().rev().fold(0.0, |sum, term| (sum + term) / v)
        }
    }
}

/// Tango's score interval of a paired difference of proportions (Tango 1998), candidate minus baseline.
///
/// It holds for small counts, also where no item differs, where a bootstrap would claim certainty.
pub fn tango(right_to_wrong: u64, wrong_to_right: u64, count: usize) -> Interval {
    tango_of(right_to_wrong as f64, wrong_to_right as f64, count as f64)
}

/// Tango's interval of counts that need not be whole, as of items that were not asked yet.
fn tango_of(lost: f64, gained: f64, n: f64) -> Interval {
    if n <= 0.0 {
        return (-1.0, 1.0);
    }
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

/// Most items that are worth naming as what would decide something.
const MOST_ITEMS: f64 = 1e9;

/// Fewest independent items at which Tango's interval, with these shares of lost and gained ones, lies wholly above
/// `-margin` or wholly below it; `None` where the difference is as good as the margin. Without a lost or gained
/// item the answer is that of an interval around zero.
pub fn items_to_decide(lost: f64, gained: f64, margin: f64) -> Option<u64> {
    let is_above = gained - lost + margin > 0.0;
    let is_decided = |n: f64| {
        let (low, high) = tango_of(lost * n, gained * n, n);
        if is_above { low >= -margin } else { high < -margin }
    };
    let mut enough = 1.0;
    while !is_decided(enough) {
        enough *= 2.0;
        if enough > MOST_ITEMS {
            return None;
        }
    }
    let (mut few, mut enough) = ((enough / 2.0) as u64, enough as u64);
    while enough - few > 1 {
        let middle = few + (enough - few) / 2;
        if is_decided(middle as f64) { enough = middle } else { few = middle }
    }
    Some(enough)
}

/// Items at which an interval of this half width is as narrow as `room`, since it narrows with the root of their
/// number; `None` where it is that already, or where that takes more than can be.
pub fn items_to_narrow(count: f64, half: f64, room: f64) -> Option<u64> {
    let needed = (count * (half / room).powi(2)).ceil();
    (room > 0.0 && needed > count && needed <= MOST_ITEMS).then_some(needed as u64)
}

/// The median with an interval between two of the ordered values that holds it with at least 95 % (David and
/// Nagaraja 2003, section 7.1): no distribution is assumed. Fewer than six values have no such interval.
pub fn median_interval(values: &[f64]) -> (f64, Option<Interval>) {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let n = sorted.len();
    if n == 0 {
        return (f64::NAN, None);
    }
    let median = (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0;
    // The chance that fewer than `outside` of n values lie below the median, for as many as 2.5 % allow.
    let mut ln_term = -(n as f64) * std::f64::consts::LN_2;
    let (mut tail, mut outside) = (0.0, 0);
    loop {
        tail += ln_term.exp();
        if tail > 0.025 {
            break;
        }
        outside += 1;
        ln_term += ((n - outside + 1) as f64).ln() - (outside as f64).ln();
    }
    (median, (outside > 0).then(|| (sorted[outside - 1], sorted[n - outside])))
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

/// Items that a paired test needs, as [`items_needed`], for a difference that can be; not rounded.
fn items_exactly(delta: f64, discordant: f64) -> f64 {
    let root = Z * discordant.sqrt() + Z_POWER * (discordant - delta * delta).max(0.0).sqrt();
    root * root / (delta * delta)
}

/// Items that a paired test needs to detect a difference `delta` with 80 % power, where a share
/// `discordant` of items differs between the models; `None` where that cannot be.
pub fn items_needed(delta: f64, discordant: f64) -> Option<u64> {
    let delta = delta.abs();
    (delta > 0.0 && discordant >= delta && discordant <= 1.0).then(|| items_exactly(delta, discordant).round() as u64)
}

/// Smallest difference that `count` independent items detect with 80 % power at a share `discordant` of differing
/// items: the inverse of [`items_needed`]. `None` where they would not see it even if every differing item had
/// changed the same way, which is the largest difference that this share allows.
pub fn detectable(count: f64, discordant: f64) -> Option<f64> {
    let most = discordant.min(1.0);
    if !(count > 0.0 && most > 0.0 && items_exactly(most, most) <= count) {
        return None;
    }
    let (mut unseen, mut seen) = (0.0, most);
    for _ in 0..60 {
        let middle = (unseen + seen) / 2.0;
        if items_exactly(middle, most) <= count { seen = middle } else { unseen = middle }
    }
    Some(seen)
}

/// Chance that a paired test of `count` items finds a true difference `delta`, where a share `discordant` of
/// items differs between the models: the normal power of the two-sided 95 % interval to lie beyond zero.
pub fn power(count: usize, delta: f64, discordant: f64) -> f64 {
    let delta = delta.abs();
    let spread = (discordant - delta * delta).max(0.0).sqrt();
    let reach = delta * (count as f64).sqrt() - Z * discordant.sqrt();
    if spread <= 0.0 { f64::from(u8::from(reach > 0.0)) } else { normal_cdf(reach / spread) }
}

/// The normal distribution function (Abramowitz and Stegun 7.1.26, to 1.5e-7).
pub fn normal_cdf(z: f64) -> f64 {
    let x = z.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let series = [0.254_829_592, -0.284_496_736, 1.421_413_741, -1.453_152_027, 1.061_405_429];
    let sum = series.iter().rev().fold(0.0, |sum, coefficient| (sum + coefficient) * t);
    let upper = sum * (-x * x).exp() / 2.0;
    if z >= 0.0 { 1.0 - upper } else { upper }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_is_80_percent_at_the_number_of_items_that_it_takes() {
        for (z, expected) in [(0.0, 0.5), (1.959_964, 0.975), (-1.0, 0.158_655), (3.0, 0.998_650)] {
            assert!((normal_cdf(z) - expected).abs() < 1e-6, "{z}");
        }
        for (delta, discordant) in [(0.01, 0.05), (0.02, 0.1)] {
            let items = items_needed(delta, discordant).expect("possible") as usize;
            assert!((power(items, delta, discordant) - 0.8).abs() < 1e-3);
        }
        assert!((power(100, 0.0, 0.1) - 0.025).abs() < 1e-4);
    }

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
    fn groups_of_one_are_mcnemars_test_and_one_group_shows_nothing() {
        for (lost, gained) in [(10, 2), (25, 10), (5, 5), (0, 0), (1, 0), (40, 3)] {
            let singles: Vec<i64> = (0..lost).map(|_| -1).chain((0..gained).map(|_| 1)).collect();
            let (flip, exact) = (sign_flip(&singles), mcnemar(lost, gained));
            assert!((flip - exact).abs() < 1e-12, "({lost}, {gained}): {flip} {exact}");
        }
        // However many items a group has, one alone has two signs and five have 32 patterns of them.
        assert_eq!(sign_flip(&[-20]), 1.0);
        assert_eq!(sign_flip(&[-20, -20, -20, -20, -20]), 2.0 / 32.0);
        // Sums of 6, 4, 2 and 0: four of eight patterns reach 4 or more.
        assert_eq!(sign_flip(&[-3, -2, 1]), 0.5);
        // Too many to count out: 3,000 groups of up to 12 items, a fifth more of them worse.
        let many: Vec<i64> = (0..3000).map(|i| (i % 12 + 1) * if i % 11 < 6 { -1 } else { 1 }).collect();
        let few: Vec<i64> = many.iter().copied().filter(|change| change.abs() < 6).collect();
        for changes in [&many, &few] {
            let spread = changes.iter().map(|&change| (change * change) as f64).sum::<f64>().sqrt();
            let normal = 2.0 * normal_cdf(-(changes.iter().sum::<i64>().abs() as f64) / spread);
            assert!((sign_flip(changes) / normal - 1.0).abs() < 0.1, "{} {normal}", sign_flip(changes));
        }
    }

    #[test]
    fn students_quantiles_are_those_of_the_tables() {
        for (degrees, expected) in
            [(1, 12.706), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (29, 2.0452), (100_000, 1.95998)]
        {
            let t = student_t(degrees);
            assert!((t / expected - 1.0).abs() < 2e-3, "{degrees}: {t}");
        }
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
    }

    #[test]
    fn what_items_detect_is_the_inverse_of_the_items_it_takes_and_never_more_than_flips() {
        for (count, discordant) in [(120, 0.1), (400, 0.05), (7847, 0.1), (3922, 0.05), (100_000, 0.02)] {
            let loss = detectable(f64::from(count), discordant).expect("detectable");
            assert!(loss <= discordant, "{count} {discordant}: {loss}");
            assert_eq!(items_needed(loss, discordant), Some(count as u64));
        }
        assert!((detectable(7847.0, 0.1).expect("detectable") - 0.01).abs() < 1e-6);
        // 2 % of 120 items are 2.4: all of them one way are not seen. It takes 390.
        assert_eq!(items_needed(0.02, 0.02), Some(390));
        assert_eq!((detectable(120.0, 0.02), detectable(389.0, 0.02)), (None, None));
        assert!(detectable(391.0, 0.02).is_some_and(|loss| loss > 0.0199 && loss <= 0.02));
        assert_eq!((detectable(0.0, 0.1), detectable(100.0, 0.0)), (None, None));
        // More items see less, more flips hide more.
        let losses = [1000.0, 2000.0, 4000.0].map(|count| detectable(count, 0.05).expect("detectable"));
        assert!(losses[0] > losses[1] && losses[1] > losses[2], "{losses:?}");
        assert!(detectable(4000.0, 0.1) > detectable(4000.0, 0.05));
    }

    #[test]
    fn the_items_that_decide_are_those_at_which_tangos_interval_leaves_the_margin() {
        // Without flips the interval ends at z² / (n + z²): 0.0200 at 188 items, below it at 189.
        assert_eq!(items_to_decide(0.0, 0.0, 0.02), Some(189));
        assert!(tango(0, 0, 188).0 < -0.02 && tango(0, 0, 189).0 >= -0.02);
        let passes = items_to_decide(0.02, 0.01, 0.02).expect("above the margin");
        let at = |n: u64| tango_of(0.02 * n as f64, 0.01 * n as f64, n as f64);
        assert!(at(passes).0 >= -0.02 && at(passes - 1).0 < -0.02, "{passes}");
        let fails = items_to_decide(0.05, 0.01, 0.02).expect("below the margin");
        let at = |n: u64| tango_of(0.05 * n as f64, 0.01 * n as f64, n as f64);
        assert!(at(fails).1 < -0.02 && at(fails - 1).1 >= -0.02, "{fails}");
        assert_eq!(items_to_decide(0.02, 0.0, 0.02), None);
        // Half as wide takes four times as many.
        assert_eq!(items_to_narrow(100.0, 0.04, 0.02), Some(400));
        assert_eq!((items_to_narrow(100.0, 0.01, 0.02), items_to_narrow(100.0, 0.01, 0.0)), (None, None));
    }

    #[test]
    fn a_median_lies_between_ordered_values_that_the_binomial_names() {
        assert_eq!(median_interval(&[3.0, 1.0, 2.0, 5.0, 4.0]), (3.0, None));
        // All of six: 1 − 2 / 64 = 96.9 %.
        assert_eq!(median_interval(&[6.0, 1.0, 2.0, 5.0, 4.0, 3.0]), (3.5, Some((1.0, 6.0))));
        // Of nine the second and the eighth: 1 − 2 · 10 / 512 = 96.1 %.
        let nine: Vec<f64> = (1..=9).map(f64::from).collect();
        assert_eq!(median_interval(&nine), (5.0, Some((2.0, 8.0))));
        // Of a hundred the 40th and the 61st, as in every table.
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(median_interval(&hundred), (50.5, Some((40.0, 61.0))));
        assert!(median_interval(&[]).0.is_nan());
    }
}
