//! Two models on the same items: accuracies, difference, interval, test and flips of all items or of some.

use serde::{Deserialize, Serialize};

use super::resample::{self, Cluster};
use super::stats;
use crate::error::Result;
use crate::progress::Progress;
use crate::scoring::Item;

/// Below this many differing groups (items, where they stand alone) the score interval is used as well: a bootstrap
/// of a handful is too sure.
const FEW_DISCORDANT: u64 = 10;
/// A pair of results of the same item.
pub(super) type Pair<'a> = (Item<'a>, Item<'a>);

/// How intervals are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComparisonOptions {
    /// Resamples of the paired bootstrap.
    pub resamples: usize,
    /// Its seed.
    pub seed: u64,
}

impl Default for ComparisonOptions {
    fn default() -> Self {
        Self { resamples: 10_000, seed: 42 }
    }
}

/// How an interval of a difference was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IntervalMethod {
    /// Percentiles of a paired bootstrap over items.
    Bootstrap,
    /// The same over groups of items, and nowhere narrower than Student's interval of so many groups.
    ClusterBootstrap,
    /// Tango's score interval, where few items differ.
    Score,
    /// The widest of these on each side, where few differ and they are grouped or graded.
    ScoreAndBootstrap,
    /// Everything that can be: all items are of one group, which says nothing of other groups.
    OneGroup,
}

/// Two models on the same items. Fractions, not points; intervals at 95 %.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    /// Items that both answered.
    pub n: usize,
    /// Independent groups of items; `n` where items stand alone.
    pub groups: usize,
    pub baseline_accuracy: f64,
    /// Wilson's, of as many independent items as groups leave.
    pub baseline_interval: [f64; 2],
    pub candidate_accuracy: f64,
    /// The same.
    pub candidate_interval: [f64; 2],
    /// Candidate minus baseline.
    pub difference: f64,
    pub difference_interval: [f64; 2],
    pub interval_method: IntervalMethod,
    /// Items that were right and are wrong.
    pub right_to_wrong: u64,
    /// Items that were wrong and are right.
    pub wrong_to_right: u64,
    /// Share of items whose correctness changed.
    pub flip_fraction: f64,
    /// Share of the baseline's answers that refuse, by how they begin.
    #[serde(default)]
    pub baseline_refusal_fraction: f64,
    /// The same of the candidate's.
    #[serde(default)]
    pub candidate_refusal_fraction: f64,
    /// Exact McNemar test of the flips; of groups, the same test with whole groups exchanged (sign-flip).
    pub mcnemar_p: f64,
    /// The same, corrected for the number of slices (Holm).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mcnemar_p_holm: Option<f64>,
    /// The difference of all other items, and how much more this slice changed than they, at 95 %.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versus_rest: Option<VersusRest>,
    /// Difference that so many items detect with 80 % power at this share of flips (at least one item in `n`); of
    /// groups, as many independent items as they are worth.
    pub detectable_difference: f64,
}

impl Paired {
    /// Larger half of the difference's interval.
    pub fn margin(&self) -> f64 {
        let [low, high] = self.difference_interval;
        (self.difference - low).max(high - self.difference)
    }

    /// How many grouped items are worth one that stands alone, at least 1.
    pub(super) fn design_effect(&self) -> f64 {
        let alone = stats::detectable(self.n as f64, self.flip_fraction.max(1.0 / self.n as f64));
        if self.groups < self.n { (self.detectable_difference / alone).powi(2).max(1.0) } else { 1.0 }
    }
}

/// A slice's difference beside that of all other items.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct VersusRest {
    /// The slice's difference minus that of the others.
    pub difference: f64,
    pub interval: [f64; 2],
}

/// Two models on one slice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SliceComparison {
    pub task: String,
    pub slice: String,
    pub metric: String,
    #[serde(flatten)]
    pub paired: Paired,
}

impl SliceComparison {
    /// `task/slice`, as gates and sentences name it.
    pub fn name(&self) -> String {
        format!("{}/{}", self.task, self.slice)
    }
}

/// Mean of an item and the variance of that mean, groups as they are (a ratio of two means); of one group, no variance.
fn mean_of(clusters: &[Cluster]) -> (f64, f64) {
    let items = clusters.iter().map(|(_, count)| f64::from(*count)).sum::<f64>().max(1.0);
    let mean = clusters.iter().map(|(sum, _)| sum).sum::<f64>() / items;
    let squares: f64 = clusters.iter().map(|(sum, count)| (sum - mean * f64::from(*count)).powi(2)).sum();
    let groups = clusters.len() as f64;
    (mean, if groups < 2.0 { 0.0 } else { groups / (groups - 1.0) * squares / (items * items) })
}

/// Student's interval of the mean of an item, clipped to what differences can be; all of that for one group.
fn student(clusters: &[Cluster]) -> stats::Interval {
    if clusters.len() < 2 {
        return (-1.0, 1.0);
    }
    let (mean, variance) = mean_of(clusters);
    let half = stats::student_t(clusters.len() - 1) * variance.sqrt();
    ((mean - half).max(-1.0), (mean + half).min(1.0))
}

/// The widest on each side.
fn wider(a: stats::Interval, b: stats::Interval) -> stats::Interval {
    (a.0.min(b.0), a.1.max(b.1))
}

/// How many independent items grouped ones with these values are worth: their number by Kish's design effect (1965),
/// between the number of groups and that of items.
fn independent_items(values: impl Iterator<Item = f64>, clusters: &[Cluster]) -> f64 {
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

/// All pairs, each with the group that it is drawn with.
pub(super) struct Pairs<'a> {
    pub all: Vec<Pair<'a>>,
    /// Numbers of the groups, in the order of their names' hashes: no statistic depends on that order.
    clusters: Vec<u32>,
}

impl<'a> Pairs<'a> {
    pub fn new(all: Vec<Pair<'a>>) -> Self {
        let mut order: Vec<u32> = (0..all.len() as u32).collect();
        let name = |index: u32| all[index as usize].0.cluster();
        order.sort_unstable_by_key(|&index| (name(index), index));
        let mut clusters = vec![0; all.len()];
        let mut number = 0;
        for (nth, &index) in order.iter().enumerate() {
            number += u32::from(nth > 0 && name(index) != name(order[nth - 1]));
            clusters[index as usize] = number;
        }
        Self { all, clusters }
    }

    /// Differences of some pairs, summed over their groups.
    fn clusters_of(&self, members: &[usize]) -> Vec<Cluster> {
        self.sums_of(members, &|(before, after)| after.score() - before.score())
    }

    /// A value of some pairs, summed over their groups.
    fn sums_of(&self, members: &[usize], value: &dyn Fn(&Pair<'_>) -> f64) -> Vec<Cluster> {
        let mut order: Vec<(u32, usize)> = members.iter().map(|&member| (self.clusters[member], member)).collect();
        order.sort_unstable();
        order
            .chunk_by(|a, b| a.0 == b.0)
            .map(|group| (group.iter().map(|&(_, member)| value(&self.all[member])).sum(), group.len() as u32))
            .collect()
    }

    /// How much more some pairs changed than all others, with errors of whole groups (Student's interval of the fewer
    /// groups); `None` where they are all, or too few differ to say, or either are of one group.
    pub fn versus_rest(&self, members: &[usize]) -> Option<VersusRest> {
        let mut is_member = vec![false; self.all.len()];
        members.iter().for_each(|&member| is_member[member] = true);
        let others: Vec<usize> = (0..self.all.len()).filter(|&index| !is_member[index]).collect();
        let (own, rest) = (self.clusters_of(members), self.clusters_of(&others));
        let differ = |clusters: &[Cluster]| clusters.iter().filter(|(sum, _)| *sum != 0.0).count() as u64;
        let fewest = own.len().min(rest.len());
        if fewest < 2 || differ(&own) + differ(&rest) < FEW_DISCORDANT {
            return None;
        }
        let ((own_mean, own_variance), (rest_mean, rest_variance)) = (mean_of(&own), mean_of(&rest));
        let (difference, half) =
            (own_mean - rest_mean, stats::student_t(fewest - 1) * (own_variance + rest_variance).sqrt());
        Some(VersusRest { difference, interval: [difference - half, difference + half] })
    }

    /// Statistics of some pairs, at least one.
    pub fn paired(&self, members: &[usize], options: &ComparisonOptions, progress: &Progress) -> Result<Paired> {
        let pairs: Vec<Pair<'_>> = members.iter().map(|&member| self.all[member]).collect();
        let n = pairs.len();
        let sum = |score: &dyn Fn(&Pair<'_>) -> f64| pairs.iter().map(score).sum::<f64>();
        let baseline_sum = sum(&|(item, _)| item.score());
        let candidate_sum = sum(&|(_, item)| item.score());
        let count = |test: &dyn Fn(&Pair<'_>) -> bool| pairs.iter().filter(|&pair| test(pair)).count() as u64;
        let right_to_wrong = count(&|(a, b)| a.is_correct() && !b.is_correct());
        let wrong_to_right = count(&|(a, b)| !a.is_correct() && b.is_correct());
        // Graded scores may differ where correctness does not.
        let lower = count(&|(a, b)| b.score() < a.score());
        let higher = count(&|(a, b)| b.score() > a.score());
        let is_binary =
            pairs.iter().all(|(a, b)| [a.score(), b.score()].iter().all(|&score| score == 0.0 || score == 1.0));

        let clusters = self.clusters_of(members);
        let is_grouped = clusters.len() < n;
        let differing = if is_grouped {
            self.sums_of(members, &|(a, b)| f64::from(u8::from(a.score() != b.score())))
                .iter()
                .filter(|(items, _)| *items > 0.0)
                .count() as u64
        } else {
            lower + higher
        };
        let score = stats::tango(lower, higher, n);
        let (interval, interval_method) = if n > 1 && clusters.len() == 1 {
            ((-1.0, 1.0), IntervalMethod::OneGroup)
        } else if differing < FEW_DISCORDANT && is_binary && !is_grouped {
            (score, IntervalMethod::Score)
        } else {
            let mut interval = resample::bootstrap(&clusters, options.resamples, options.seed, progress)?;
            if is_grouped {
                interval = wider(interval, student(&clusters));
            }
            if differing < FEW_DISCORDANT {
                (wider(interval, score), IntervalMethod::ScoreAndBootstrap)
            } else if is_grouped {
                (interval, IntervalMethod::ClusterBootstrap)
            } else {
                (interval, IntervalMethod::Bootstrap)
            }
        };
        let flips = right_to_wrong + wrong_to_right;
        let change = |(a, b): &Pair<'_>| f64::from(u8::from(b.is_correct())) - f64::from(u8::from(a.is_correct()));
        let (mcnemar_p, worth) = if is_grouped {
            let net: Vec<Cluster> = self.sums_of(members, &change);
            let p = stats::sign_flip(&net.iter().map(|(sum, _)| *sum as i64).collect::<Vec<_>>());
            (p, independent_items(pairs.iter().map(change), &net))
        } else {
            (stats::mcnemar(right_to_wrong, wrong_to_right), n as f64)
        };
        let interval_of = |score: &dyn Fn(&Pair<'_>) -> f64, sum: f64| {
            let worth = match is_grouped {
                true => independent_items(pairs.iter().map(score), &self.sums_of(members, score)),
                false => n as f64,
            };
            let (low, high) = stats::wilson_of(sum / n as f64, worth);
            [low, high]
        };
        Ok(Paired {
            n,
            groups: clusters.len(),
            baseline_accuracy: baseline_sum / n as f64,
            baseline_interval: interval_of(&|(item, _)| item.score(), baseline_sum),
            candidate_accuracy: candidate_sum / n as f64,
            candidate_interval: interval_of(&|(_, item)| item.score(), candidate_sum),
            difference: (candidate_sum - baseline_sum) / n as f64,
            difference_interval: [interval.0, interval.1],
            interval_method,
            right_to_wrong,
            wrong_to_right,
            flip_fraction: flips as f64 / n as f64,
            baseline_refusal_fraction: count(&|(item, _)| item.is_refusal()) as f64 / n as f64,
            candidate_refusal_fraction: count(&|(_, item)| item.is_refusal()) as f64 / n as f64,
            mcnemar_p,
            mcnemar_p_holm: None,
            versus_rest: None,
            detectable_difference: stats::detectable(worth, flips.max(1) as f64 / n as f64),
        })
    }
}
