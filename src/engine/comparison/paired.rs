//! Two models on the same items: accuracies, difference, interval, test and flips of all items or of some.

use serde::{Deserialize, Serialize};

use super::intervals::{difference_of, independent_items, student, wider};
use super::resample::{self, Cluster};
use super::stats::{self, Interval};
use crate::error::Result;
use crate::progress::Progress;
use crate::scoring::Item;

/// Below this many differing groups (items, where they stand alone) the score interval is used as well: a bootstrap
/// of a handful is too sure.
const FEW_DISCORDANT: u64 = 10;
/// Differing groups below which nothing is said of how they spread.
const FEWEST_DIFFERING: u64 = 3;
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
    /// groups, as many independent items as they are worth. `None` where even all flips one way would not be seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detectable_difference: Option<f64>,
    /// How many items that stand alone these are worth: `n`, or fewer where they come in groups; 0 where unknown.
    #[serde(default)]
    pub independent_items: f64,
    /// Choices by log-likelihood over characters (`acc_norm`), where every item has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm: Option<PairedChoice>,
    /// The same over UTF-8 bytes (`acc_bytes`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<PairedChoice>,
    /// Written texts that had room to end and did not, where there are such texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unended: Option<Unended>,
}

/// The same items judged by another choice: a normalized accuracy. Fractions; intervals at 95 %.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairedChoice {
    pub baseline_accuracy: f64,
    pub candidate_accuracy: f64,
    /// Candidate minus baseline.
    pub difference: f64,
    pub difference_interval: [f64; 2],
    pub right_to_wrong: u64,
    pub wrong_to_right: u64,
}

/// Texts of the candidate that had room to end by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unended {
    pub n: usize,
    /// Share of them that were cut because the model did not end them.
    pub fraction: f64,
}

impl Paired {
    /// Larger half of the difference's interval.
    pub fn margin(&self) -> f64 {
        let [low, high] = self.difference_interval;
        (self.difference - low).max(high - self.difference)
    }

    /// How many grouped items are worth one that stands alone, at least 1.
    pub(super) fn design_effect(&self) -> f64 {
        if self.independent_items > 0.0 { (self.n as f64 / self.independent_items).max(1.0) } else { 1.0 }
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

    /// A value of some pairs, summed over their groups.
    fn sums_of(&self, members: &[usize], value: &dyn Fn(&Pair<'_>) -> f64) -> Vec<Cluster> {
        let mut order: Vec<(u32, usize)> = members.iter().map(|&member| (self.clusters[member], member)).collect();
        order.sort_unstable();
        order
            .chunk_by(|a, b| a.0 == b.0)
            .map(|group| (group.iter().map(|&(_, member)| value(&self.all[member])).sum(), group.len() as u32))
            .collect()
    }

    /// How much more some pairs changed than all others, each side with the doubt that it has alone; `None` where
    /// they are all, where too few differ on the whole, or where a side cannot say how its groups spread.
    pub fn versus_rest(&self, members: &[usize]) -> Option<VersusRest> {
        let mut is_member = vec![false; self.all.len()];
        members.iter().for_each(|&member| is_member[member] = true);
        let others: Vec<usize> = (0..self.all.len()).filter(|&index| !is_member[index]).collect();
        let (own, rest) = (Change::of(self, members, &score), Change::of(self, &others, &score));
        if others.is_empty() || own.differing + rest.differing < FEW_DISCORDANT {
            return None;
        }
        let (difference, (low, high)) = difference_of(own.alone()?, rest.alone()?);
        Some(VersusRest { difference, interval: [low, high] })
    }

    /// The members judged by a choice that not every item has.
    fn choice(
        &self,
        members: &[usize],
        is_right: &dyn Fn(&Item<'_>) -> Option<bool>,
        options: &ComparisonOptions,
        progress: &Progress,
    ) -> Result<Option<PairedChoice>> {
        let is_missing = |(a, b): &Pair<'_>| is_right(a).is_none() || is_right(b).is_none();
        if members.iter().any(|&member| is_missing(&self.all[member])) {
            return Ok(None);
        }
        let value = |item: &Item<'_>| f64::from(u8::from(is_right(item) == Some(true)));
        let change = Change::of(self, members, &value);
        let ((low, high), _) = change.interval(options, progress)?;
        let mean = |sum: f64| sum / members.len() as f64;
        Ok(Some(PairedChoice {
            baseline_accuracy: mean(change.before),
            candidate_accuracy: mean(change.after),
            difference: mean(change.after - change.before),
            difference_interval: [low, high],
            right_to_wrong: change.lower,
            wrong_to_right: change.higher,
        }))
    }

    /// Statistics of some pairs, at least one.
    pub fn paired(&self, members: &[usize], options: &ComparisonOptions, progress: &Progress) -> Result<Paired> {
        let pairs: Vec<Pair<'_>> = members.iter().map(|&member| self.all[member]).collect();
        let n = pairs.len();
        let count = |test: &dyn Fn(&Pair<'_>) -> bool| pairs.iter().filter(|&pair| test(pair)).count() as u64;
        let right_to_wrong = count(&|(a, b)| a.is_correct() && !b.is_correct());
        let wrong_to_right = count(&|(a, b)| !a.is_correct() && b.is_correct());
        let changes = Change::of(self, members, &score);
        let (interval, interval_method) = changes.interval(options, progress)?;
        let is_grouped = changes.is_grouped();
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
        let texts = count(&|(_, item)| item.ended().is_some());
        let unended = count(&|(_, item)| item.ended() == Some(false)) as f64 / texts.max(1) as f64;
        Ok(Paired {
            n,
            groups: changes.clusters.len(),
            baseline_accuracy: changes.before / n as f64,
            baseline_interval: interval_of(&|(item, _)| item.score(), changes.before),
            candidate_accuracy: changes.after / n as f64,
            candidate_interval: interval_of(&|(_, item)| item.score(), changes.after),
            difference: (changes.after - changes.before) / n as f64,
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
            independent_items: worth,
            norm: self.choice(members, &|item| item.is_correct_norm(), options, progress)?,
            bytes: self.choice(members, &|item| item.is_correct_bytes(), options, progress)?,
            unended: (texts > 0).then_some(Unended { n: texts as usize, fraction: unended }),
        })
    }
}

/// What an item is worth in its own metric, 0 to 1.
fn score(item: &Item<'_>) -> f64 {
    item.score()
}

/// How a value of some pairs changed.
struct Change {
    /// Sums over all of them.
    before: f64,
    after: f64,
    /// Items whose value fell and rose.
    lower: u64,
    higher: u64,
    /// True where every value is 0 or 1.
    is_binary: bool,
    /// Groups in which a value differs, items where they stand alone.
    differing: u64,
    count: usize,
    /// Differences, summed over groups.
    clusters: Vec<Cluster>,
}

impl Change {
    fn of(pairs: &Pairs<'_>, members: &[usize], value: &dyn Fn(&Item<'_>) -> f64) -> Self {
        let (mut before, mut after, mut lower, mut higher, mut is_binary) = (0.0, 0.0, 0, 0, true);
        for &member in members {
            let (a, b) = &pairs.all[member];
            let (a, b) = (value(a), value(b));
            before += a;
            after += b;
            lower += u64::from(b < a);
            higher += u64::from(b > a);
            is_binary &= [a, b].iter().all(|&value| value == 0.0 || value == 1.0);
        }
        let mut order: Vec<(u32, usize)> = members.iter().map(|&member| (pairs.clusters[member], member)).collect();
        order.sort_unstable();
        let (mut clusters, mut differing) = (Vec::new(), 0);
        for group in order.chunk_by(|a, b| a.0 == b.0) {
            let (mut sum, mut has_changed) = (0.0, false);
            for &(_, member) in group {
                let (a, b) = &pairs.all[member];
                let (a, b) = (value(a), value(b));
                sum += b - a;
                has_changed |= a != b;
            }
            clusters.push((sum, group.len() as u32));
            differing += u64::from(has_changed);
        }
        Self { before, after, lower, higher, is_binary, differing, count: members.len(), clusters }
    }

    fn is_grouped(&self) -> bool {
        self.clusters.len() < self.count
    }

    /// The interval of the mean difference, with how it was made.
    fn interval(&self, options: &ComparisonOptions, progress: &Progress) -> Result<(Interval, IntervalMethod)> {
        let score = stats::tango(self.lower, self.higher, self.count);
        if self.count > 1 && self.clusters.len() == 1 {
            return Ok(((-1.0, 1.0), IntervalMethod::OneGroup));
        }
        if self.differing < FEW_DISCORDANT && self.is_binary && !self.is_grouped() {
            return Ok((score, IntervalMethod::Score));
        }
        let mut interval = resample::bootstrap(&self.clusters, options.resamples, options.seed, progress)?;
        if self.is_grouped() {
            interval = wider(interval, student(&self.clusters));
        }
        Ok(if self.differing < FEW_DISCORDANT {
            (wider(interval, score), IntervalMethod::ScoreAndBootstrap)
        } else if self.is_grouped() {
            (interval, IntervalMethod::ClusterBootstrap)
        } else {
            (interval, IntervalMethod::Bootstrap)
        })
    }

    /// The mean difference with an interval that needs no drawing and is not certain where nothing differs.
    fn alone(&self) -> Option<(f64, Interval)> {
        let mean = (self.after - self.before) / self.count as f64;
        if self.is_binary && !self.is_grouped() {
            return Some((mean, stats::tango(self.lower, self.higher, self.count)));
        }
        let has_spread = self.clusters.len() >= 2 && self.differing >= FEWEST_DIFFERING;
        has_spread.then(|| (mean, student(&self.clusters)))
    }
}
