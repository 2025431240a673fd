//! A candidate against its baseline, paired item by item, with a sentence that a stakeholder can read.
//!
//! The noun is [`Comparison`], the entry [`compare`]. Accuracy is compared only on items that both
//! models answered; intervals resample those items (whole groups of them where items share a
//! passage), and every slice has its own. [`gates`] turn a comparison into verdicts, [`pareto`]
//! says which of many candidates are worth a look.

pub mod gates;
pub mod pareto;
pub mod stats;
mod verdict;

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

pub use gates::{Gate, GateResult, GateSet, Verdict};
pub use pareto::{ParetoPoint, pareto_front};

use super::error::{Fault, Result, Stage};
use super::evaluation::{Evaluation, ModelRef};
use super::progress::Progress;
use super::scoring::{ItemResult, TextResult};

/// Version of the document.
pub const COMPARISON_VERSION: u32 = 1;

/// Below this many differing items the score interval is used: a bootstrap of a handful is too sure.
const FEW_DISCORDANT: u64 = 10;

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
    /// The same over groups of items.
    ClusterBootstrap,
    /// Tango's score interval, where few items differ.
    Score,
    /// The wider of both on each side, where few items differ and they are grouped or graded.
    ScoreAndBootstrap,
}

/// Two models on the same items. Fractions, not points; intervals at 95 %.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    /// Items that both answered.
    pub n: usize,
    /// Independent groups of items; `n` where items stand alone.
    pub groups: usize,
    pub baseline_accuracy: f64,
    /// Wilson's.
    pub baseline_interval: [f64; 2],
    pub candidate_accuracy: f64,
    /// Wilson's.
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
    /// Exact McNemar test of the flips.
    pub mcnemar_p: f64,
    /// The same, corrected for the number of slices (Holm).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mcnemar_p_holm: Option<f64>,
    /// Difference that so many items detect with 80 % power at this share of flips (at least one item in `n`).
    pub detectable_difference: f64,
}

impl Paired {
    /// Larger half of the difference's interval.
    pub fn margin(&self) -> f64 {
        let [low, high] = self.difference_interval;
        (self.difference - low).max(high - self.difference)
    }
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

/// An item whose correctness changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flip {
    pub id: String,
    pub task: String,
    pub slice: String,
    /// True if the candidate is right where the baseline was wrong.
    pub gained: bool,
    pub baseline_prediction: String,
    pub candidate_prediction: String,
}

/// A candidate against its baseline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    pub version: u32,
    pub baseline: ModelRef,
    pub candidate: ModelRef,
    /// The result in one sentence; gates are part of it once they were applied.
    pub sentence: String,
    /// Baseline's file over candidate's: 3.1 is 3.1× smaller.
    pub size_ratio: f64,
    pub file_bytes: u64,
    pub bits_per_weight: f64,
    /// Bytes of the candidate's tensors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_bytes: Option<u64>,
    /// The candidate's tokens written and tokens read a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate_speed: Option<[f64; 2]>,
    /// Candidate's speed over baseline's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_speed_ratio: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill_speed_ratio: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline_perplexity: Option<f64>,
    /// The candidate's, with its distance to this baseline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextResult>,
    /// All paired items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overall: Option<Paired>,
    /// In the order of the tasks file.
    pub slices: Vec<SliceComparison>,
    pub flips: Vec<Flip>,
    /// Items that only one of both answered; they count nowhere.
    pub unpaired_items: usize,
    /// What a reader must know, one sentence each.
    pub warnings: Vec<String>,
    /// Verdicts, once gates were applied.
    pub gates: Vec<GateResult>,
}

impl Comparison {
    /// Applies gates and says so in the sentence.
    pub fn apply_gates(&mut self, gates: &GateSet) {
        self.gates = gates.judge(self);
        self.sentence = verdict::sentence(self);
    }

    /// Fail if a gate fails, else undecided if one is, else pass; `None` without gates.
    pub fn verdict(&self) -> Option<Verdict> {
        self.gates.iter().map(|gate| gate.verdict).max()
    }
}

/// A pair of results of the same item.
type Pair<'a> = (&'a ItemResult, &'a ItemResult);

/// Compares two evaluations.
pub fn compare(
    baseline: &Evaluation,
    candidate: &Evaluation,
    options: &ComparisonOptions,
    progress: &Progress,
) -> Result<Comparison> {
    let mut warnings = Vec::new();
    let (pairs, unpaired_items) = pair(baseline, candidate)?;
    if unpaired_items > 0 {
        warnings.push(format!("{unpaired_items} items were answered by only one of the models and are left out"));
    }
    let truncated = pairs.iter().filter(|(a, b)| a.truncated || b.truncated).count();
    if truncated > 0 {
        warnings.push(format!("{truncated} items are longer than the context and lost their beginning"));
    }

    let overall = if pairs.is_empty() { None } else { Some(paired(&pairs, options, progress)?) };
    let mut slices = Vec::new();
    for members in by_slice(&pairs) {
        let (item, _) = members[0];
        slices.push(SliceComparison {
            task: item.task.clone(),
            slice: item.slice.clone(),
            metric: item.metric.clone(),
            paired: paired(&members, options, progress)?,
        });
    }
    let p_values: Vec<f64> = slices.iter().map(|slice| slice.paired.mcnemar_p).collect();
    for (slice, adjusted) in slices.iter_mut().zip(stats::holm(&p_values)) {
        slice.paired.mcnemar_p_holm = Some(adjusted);
    }
    let flips = pairs
        .iter()
        .filter(|(a, b)| a.correct != b.correct)
        .map(|(a, b)| Flip {
            id: a.id.clone(),
            task: a.task.clone(),
            slice: a.slice.clone(),
            gained: b.correct,
            baseline_prediction: a.prediction.clone(),
            candidate_prediction: b.prediction.clone(),
        })
        .collect();

    let text = text_against(baseline, candidate, &mut warnings);
    let (decode_speed_ratio, prefill_speed_ratio) = speed_ratios(baseline, candidate, &mut warnings);
    let mut comparison = Comparison {
        version: COMPARISON_VERSION,
        baseline: baseline.model.clone(),
        candidate: candidate.model.clone(),
        sentence: String::new(),
        size_ratio: baseline.size.file_bytes as f64 / candidate.size.file_bytes.max(1) as f64,
        file_bytes: candidate.size.file_bytes,
        bits_per_weight: candidate.size.bits_per_weight,
        weight_bytes: Some((candidate.size.bits_per_weight * candidate.size.weight_count as f64 / 8.0).round() as u64),
        candidate_speed: candidate
            .speed
            .as_ref()
            .map(|speed| [speed.decode_tokens_per_second, speed.prefill_tokens_per_second]),
        decode_speed_ratio,
        prefill_speed_ratio,
        baseline_perplexity: baseline.text.as_ref().map(|text| text.perplexity),
        text,
        overall,
        slices,
        flips,
        unpaired_items,
        warnings,
        gates: Vec::new(),
    };
    comparison.sentence = verdict::sentence(&comparison);
    Ok(comparison)
}

/// Pairs items by id, in the baseline's order, and counts those without a partner.
fn pair<'a>(baseline: &'a Evaluation, candidate: &'a Evaluation) -> Result<(Vec<Pair<'a>>, usize)> {
    let mut partners: HashMap<&str, &ItemResult> = HashMap::with_capacity(candidate.items.len());
    for item in &candidate.items {
        if partners.insert(&item.id, item).is_some() {
            return Err(Fault::new(Stage::Comparison, format!("the id {:?} occurs twice", item.id))
                .fix("evaluate the candidate again")
                .file(&candidate.model.path)
                .into());
        }
    }
    let mut pairs = Vec::with_capacity(baseline.items.len());
    for item in &baseline.items {
        let Some(partner) = partners.remove(item.id.as_str()) else {
            continue;
        };
        if (&item.task, &item.slice, &item.metric) != (&partner.task, &partner.slice, &partner.metric) {
            return Err(Fault::new(
                Stage::Comparison,
                "baseline and candidate have different tasks, slices or metrics for the same id",
            )
            .at(format!("item {:?}", item.id))
            .fix("evaluate both with the same tasks file")
            .into());
        }
        pairs.push((item, partner));
    }
    if pairs.is_empty() && !baseline.items.is_empty() && !candidate.items.is_empty() {
        return Err(Fault::new(Stage::Comparison, "baseline and candidate have no item in common")
            .fix("evaluate both with the same tasks file")
            .into());
    }
    // A baseline document that repeats an id finds no partner for the repetition, so it counts as unpaired.
    let unpaired = baseline.items.len() - pairs.len() + partners.len();
    Ok((pairs, unpaired))
}

/// Pairs of each task, slice and metric, in order of first appearance; none is empty.
fn by_slice<'a>(pairs: &[Pair<'a>]) -> Vec<Vec<Pair<'a>>> {
    let mut places = HashMap::new();
    let mut slices: Vec<Vec<Pair<'a>>> = Vec::new();
    for &(item, partner) in pairs {
        let key = (item.task.as_str(), item.slice.as_str(), item.metric.as_str());
        let place = *places.entry(key).or_insert_with(|| {
            slices.push(Vec::new());
            slices.len() - 1
        });
        slices[place].push((item, partner));
    }
    slices
}

/// Statistics of some pairs, at least one.
fn paired(pairs: &[Pair<'_>], options: &ComparisonOptions, progress: &Progress) -> Result<Paired> {
    let n = pairs.len();
    let sum = |score: &dyn Fn(&Pair<'_>) -> f64| pairs.iter().map(score).sum::<f64>();
    let baseline_sum = sum(&|(item, _)| item.score);
    let candidate_sum = sum(&|(_, item)| item.score);
    let count = |test: &dyn Fn(&Pair<'_>) -> bool| pairs.iter().filter(|&pair| test(pair)).count() as u64;
    let right_to_wrong = count(&|(a, b)| a.correct && !b.correct);
    let wrong_to_right = count(&|(a, b)| !a.correct && b.correct);
    // Graded scores may differ where correctness does not.
    let lower = count(&|(a, b)| b.score < a.score);
    let higher = count(&|(a, b)| b.score > a.score);
    let is_binary = pairs.iter().all(|(a, b)| [a.score, b.score].iter().all(|&score| score == 0.0 || score == 1.0));

    // Groups in the order of their names, so that the seed means the same everywhere.
    let mut clusters: BTreeMap<(&str, &str), (f64, u32)> = BTreeMap::new();
    for (a, b) in pairs {
        let name = a.group.as_deref().map_or(("item", a.id.as_str()), |group| ("group", group));
        let cluster = clusters.entry(name).or_insert((0.0, 0));
        cluster.0 += b.score - a.score;
        cluster.1 += 1;
    }
    let clusters: Vec<(f64, u32)> = clusters.into_values().collect();
    let is_grouped = clusters.len() < n;
    let score = stats::tango(lower, higher, n);
    let (interval, interval_method) = if lower + higher < FEW_DISCORDANT {
        if is_binary && !is_grouped {
            (score, IntervalMethod::Score)
        } else {
            let drawn = stats::bootstrap(&clusters, options.resamples, options.seed, progress)?;
            ((score.0.min(drawn.0), score.1.max(drawn.1)), IntervalMethod::ScoreAndBootstrap)
        }
    } else {
        let method = if is_grouped { IntervalMethod::ClusterBootstrap } else { IntervalMethod::Bootstrap };
        (stats::bootstrap(&clusters, options.resamples, options.seed, progress)?, method)
    };
    let flips = right_to_wrong + wrong_to_right;
    let interval_of = |sum: f64| {
        let (low, high) = stats::wilson(sum, n);
        [low, high]
    };
    Ok(Paired {
        n,
        groups: clusters.len(),
        baseline_accuracy: baseline_sum / n as f64,
        baseline_interval: interval_of(baseline_sum),
        candidate_accuracy: candidate_sum / n as f64,
        candidate_interval: interval_of(candidate_sum),
        difference: (candidate_sum - baseline_sum) / n as f64,
        difference_interval: [interval.0, interval.1],
        interval_method,
        right_to_wrong,
        wrong_to_right,
        flip_fraction: flips as f64 / n as f64,
        mcnemar_p: stats::mcnemar(right_to_wrong, wrong_to_right),
        mcnemar_p_holm: None,
        detectable_difference: stats::detectable(n, flips.max(1) as f64 / n as f64),
    })
}

/// The candidate's text figures, with distances only if they are distances from this baseline.
fn text_against(baseline: &Evaluation, candidate: &Evaluation, warnings: &mut Vec<String>) -> Option<TextResult> {
    let mut text = candidate.text.clone()?;
    let measured_against = candidate.baseline.as_ref().map(|own| own.model.id.as_str());
    if text.distance.is_some() && measured_against != Some(baseline.model.id.as_str()) {
        text.distance = None;
        warnings.push("the candidate's KLD was measured against another baseline and is left out".to_owned());
    }
    if let Some(other) = &baseline.text {
        let same = (other.convention, other.context, other.tokens) == (text.convention, text.context, text.tokens)
            && baseline.text_hash == candidate.text_hash;
        if !same {
            warnings.push("the perplexities are of different texts or conventions and cannot be compared".to_owned());
        }
    }
    Some(text)
}

/// Candidate's speed over baseline's: decode and prefill.
fn speed_ratios(
    baseline: &Evaluation,
    candidate: &Evaluation,
    warnings: &mut Vec<String>,
) -> (Option<f64>, Option<f64>) {
    let Some(speed) = &candidate.speed else {
        return (None, None);
    };
    // The candidate's own baseline was measured in turns with it; another moment is second best.
    let in_turns = candidate
        .baseline
        .as_ref()
        .filter(|own| own.model.id == baseline.model.id)
        .and_then(|own| own.speed.as_ref())
        .filter(|other| other.in_turns && speed.in_turns);
    let Some(other) = in_turns.or(baseline.speed.as_ref()) else {
        return (None, None);
    };
    if in_turns.is_none() {
        warnings.push("the speeds were measured at different times".to_owned());
    }
    if (speed.threads, speed.prefill_tokens, speed.decode_tokens)
        != (other.threads, other.prefill_tokens, other.decode_tokens)
    {
        warnings.push("the speeds were measured with different threads or lengths and are left out".to_owned());
        return (None, None);
    }
    let ratio =
        |own: f64, other: f64| (own > 0.0 && other > 0.0).then(|| own / other).filter(|ratio| ratio.is_finite());
    (
        ratio(speed.decode_tokens_per_second, other.decode_tokens_per_second),
        ratio(speed.prefill_tokens_per_second, other.prefill_tokens_per_second),
    )
}

#[cfg(test)]
pub(crate) mod tests;
