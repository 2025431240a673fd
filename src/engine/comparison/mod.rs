//! A candidate against its baseline, paired item by item, with a sentence that a stakeholder can read.
//!
//! The noun is [`Comparison`], the entry [`compare`]. Accuracy is compared only on items that both
//! models answered; intervals resample those items (whole groups of them where items share a
//! passage), and every slice has its own. [`gates`] turn a comparison into verdicts, [`pareto`]
//! says which of many candidates are worth a look.

pub mod cascade;
mod flips;
mod gate_loss;
mod gate_value;
pub mod gates;
mod intervals;
mod paired;
pub mod pareto;
pub mod resample;
pub mod scorecard;
pub mod speculation;
mod speeds;
pub mod stats;
mod verdict;
mod views;
mod written;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

pub use cascade::{Cascade, CascadeOptions, ThirdRole, cascade};
pub use flips::{Flip, Flips};
pub use gates::{Gate, GateResult, GateSet, Verdict};
pub use paired::{ComparisonOptions, IntervalMethod, Paired, PairedChoice, SliceComparison, Unended, VersusRest};
pub use pareto::{ParetoPoint, pareto_front};
pub use views::SliceView;
pub use written::WrittenComparison;

use paired::{Pair, Pairs};

use super::error::{Fault, Result, Stage};
use super::evaluation::{Evaluation, ModelRef, Reliability, Written};
use super::progress::Progress;
use super::scoring::{Item, TextResult};

/// Version of the document.
pub const COMPARISON_VERSION: u32 = 1;

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
    /// Candidate's speed over baseline's: the median of repetitions in turns, else the ratio of both medians.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_speed_ratio: Option<f64>,
    /// 95 % interval of that median; none where fewer than six repetitions were measured in turns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_speed_interval: Option<[f64; 2]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill_speed_ratio: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill_speed_interval: Option<[f64; 2]>,
    /// True where other programs kept cores busy while speed was measured.
    #[serde(default)]
    pub is_speed_under_load: bool,
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
    /// The slice that lost most, as `task/slice`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worst_slice: Option<String>,
    /// The same items cut in other ways: by a field, by the prompt's length, by rare tokens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub views: Vec<SliceView>,
    /// How the written texts differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<WrittenComparison>,
    /// The candidate's own written texts: ends and loops.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate_written: Option<Written>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline_written: Option<Written>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline_reliability: Option<Reliability>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate_reliability: Option<Reliability>,
    /// The candidate's times, where its speed was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft_secs: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpot_secs: Option<f64>,
    /// The candidate's weights in memory.
    #[serde(default)]
    pub resident_bytes: u64,
    /// Items that went from right to wrong and back; their texts stay on disk.
    pub flips: Flips,
    /// Items that only one of both answered; they count nowhere.
    pub unpaired_items: usize,
    /// What a reader must know, one sentence each.
    pub warnings: Vec<String>,
    /// Verdicts, once gates were applied.
    pub gates: Vec<GateResult>,
    /// What to go back to after a failed gate: the model and the hash of its files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<ModelRef>,
}

impl Comparison {
    /// Applies gates and says so in the sentence.
    pub fn apply_gates(&mut self, gates: &GateSet) {
        self.gates = gates.judge(self);
        self.rollback = (self.verdict() == Some(Verdict::Fail)).then(|| self.baseline.clone());
        self.sentence = verdict::sentence(self);
    }

    /// Fail if a gate fails, else undecided if one is, else pass; `None` without gates.
    pub fn verdict(&self) -> Option<Verdict> {
        self.gates.iter().map(|gate| gate.verdict).max()
    }
}

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
    let truncated = pairs.iter().filter(|(a, b)| a.is_truncated() || b.is_truncated()).count();
    if truncated > 0 {
        warnings.push(format!("{truncated} items are longer than the context and lost their beginning"));
    }

    let pairs = Pairs::new(pairs);
    let everything: Vec<usize> = (0..pairs.all.len()).collect();
    let overall = if everything.is_empty() { None } else { Some(pairs.paired(&everything, options, progress)?) };
    let mut slices = Vec::new();
    for members in views::by_slice(&pairs) {
        slices.push(views::slice_comparison(&pairs, &members, None, options, progress)?);
    }
    views::correct(&mut slices);
    let worst = slices.iter().min_by(|a, b| a.paired.difference.total_cmp(&b.paired.difference));
    let worst_slice = worst.map(SliceComparison::name);
    let views = views::views(&pairs, options, progress)?;
    let flips = Flips::among(&pairs.all, &baseline.items, &candidate.items);

    let text = text_against(baseline, candidate, &mut warnings);
    let speeds = speeds::ratios(baseline, candidate, &mut warnings);
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
        decode_speed_ratio: speeds.decode.map(|ratio| ratio.value),
        decode_speed_interval: speeds.decode.and_then(|ratio| ratio.interval),
        prefill_speed_ratio: speeds.prefill.map(|ratio| ratio.value),
        prefill_speed_interval: speeds.prefill.and_then(|ratio| ratio.interval),
        is_speed_under_load: speeds.is_under_load,
        baseline_perplexity: baseline.text.as_ref().map(|text| text.perplexity),
        text,
        overall,
        slices,
        worst_slice,
        views,
        written: written::compare(&pairs.all)?,
        candidate_written: candidate.written.clone(),
        baseline_written: baseline.written.clone(),
        baseline_reliability: baseline.reliability.clone(),
        candidate_reliability: candidate.reliability.clone(),
        ttft_secs: candidate.speed.as_ref().map(|speed| speed.ttft_secs),
        tpot_secs: candidate.speed.as_ref().map(|speed| speed.tpot_secs),
        resident_bytes: candidate.size.resident_bytes,
        flips,
        unpaired_items,
        warnings,
        gates: Vec::new(),
        rollback: None,
    };
    comparison.sentence = verdict::sentence(&comparison);
    Ok(comparison)
}

/// Pairs items by id, in the baseline's order, and counts those without a partner.
fn pair<'a>(baseline: &'a Evaluation, candidate: &'a Evaluation) -> Result<(Vec<Pair<'a>>, usize)> {
    let mut partners: HashMap<[u8; 16], Item<'_>> = HashMap::with_capacity(candidate.items.len());
    for item in candidate.items.iter() {
        if partners.insert(item.id_hash(), item).is_some() {
            return Err(Fault::new(Stage::Comparison, format!("the id {:?} occurs twice", item.read()?.id))
                .fix("evaluate the candidate again")
                .file(&candidate.model.path)
                .into());
        }
    }
    let mut pairs = Vec::with_capacity(baseline.items.len());
    for item in baseline.items.iter() {
        let Some(partner) = partners.remove(&item.id_hash()) else {
            continue;
        };
        if (item.task(), item.slice(), item.metric()) != (partner.task(), partner.slice(), partner.metric()) {
            return Err(Fault::new(
                Stage::Comparison,
                "baseline and candidate have different tasks, slices or metrics for the same id",
            )
            .at(format!("item {:?}", item.read()?.id))
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

#[cfg(test)]
pub(crate) mod tests;
