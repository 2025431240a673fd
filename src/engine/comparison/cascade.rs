//! The candidate first, the original where the candidate is unsure: cost, time and accuracy of every threshold.
//!
//! Everything comes from stored results. The threshold is chosen on one half of the items and reported on the
//! other, since a threshold that was chosen on the items it is judged by looks better than it is. An item is
//! kept by the candidate where its confidence reaches the threshold; the cost of an escalated item is that of
//! both models. A third model that cannot run here takes part by a JSONL of its answers: last, in the original's
//! place, where nothing follows it and its confidences say nothing; or first, where they decide what escalates.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Fault, Result, Stage};
use crate::evaluation::Evaluation;
use crate::scoring::Item;
use crate::scoring::items::hash_of;

/// Points of a curve.
const MAX_POINTS: usize = 200;
/// Items that both halves together need.
const MIN_ITEMS: usize = 20;
/// Largest file of answers.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// Where the answers of a third model stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ThirdRole {
    /// In the place of the original: what the candidate is unsure of goes to the third model.
    #[default]
    Last,
    /// In the place of the candidate: what the third model is unsure of, by its own confidences, goes to the original.
    First,
}

/// What a cascade is planned with.
#[derive(Clone, Debug, PartialEq)]
pub struct CascadeOptions {
    /// Cost of an item by the candidate, in any unit.
    pub candidate_cost: f64,
    /// Cost of an item by the model that is escalated to.
    pub baseline_cost: f64,
    /// Seconds of an item by the candidate.
    pub candidate_secs: f64,
    pub baseline_secs: f64,
    /// The accuracy that must be kept, as a share of the large model's.
    pub keep_quality: f64,
    /// Where a third model's answers stand, if there are any.
    pub third: ThirdRole,
}

impl Default for CascadeOptions {
    fn default() -> Self {
        Self {
            candidate_cost: 0.3,
            baseline_cost: 1.0,
            candidate_secs: 0.3,
            baseline_secs: 1.0,
            keep_quality: 0.99,
            third: ThirdRole::Last,
        }
    }
}

impl CascadeOptions {
    /// Costs and times by the measured speeds of both models; `candidate_cost` names the candidate's cost instead.
    /// `None` where no speed was measured and no cost is named.
    pub fn priced(
        baseline: &Evaluation,
        candidate: &Evaluation,
        candidate_cost: Option<f64>,
        baseline_cost: f64,
        keep_quality: f64,
    ) -> Option<Self> {
        // Multiple choice reads and does not write, so that prefill is what it costs.
        let secs = |one: &Evaluation| one.speed.as_ref().map(|speed| speed.ttft_secs);
        let own_base = candidate.baseline.as_deref().filter(|own| own.model.id == baseline.model.id);
        let times = secs(candidate).zip(own_base.and_then(secs).or(secs(baseline)));
        let measured = times.map(|(own, other)| baseline_cost * own / other.max(1e-12));
        let candidate_cost = candidate_cost.or(measured)?;
        let (candidate_secs, baseline_secs) = times.unwrap_or((candidate_cost, baseline_cost));
        Some(Self {
            candidate_cost,
            baseline_cost,
            candidate_secs,
            baseline_secs,
            keep_quality,
            third: ThirdRole::default(),
        })
    }
}

/// An answer of a model that cannot run here: one line of its JSONL.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The item's id.
    pub id: String,
    /// Whether it is right, or the answer itself, which is then compared with what is wanted.
    #[serde(default)]
    pub correct: Option<bool>,
    #[serde(default)]
    pub answer: Option<String>,
    /// How sure it is; needed where it answers first, without effect where it answers last.
    #[serde(default)]
    pub confidence: Option<f64>,
    /// Price of this answer, in the unit of the other costs.
    #[serde(default)]
    pub price: Option<f64>,
    #[serde(default)]
    pub latency_secs: Option<f64>,
}

/// One threshold on the items it is reported for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CascadePoint {
    /// Least confidence with which the candidate's answer is kept.
    pub threshold: f64,
    /// Share of items that go on to the large model.
    pub escalated_fraction: f64,
    pub accuracy: f64,
    /// Mean cost of an item over the large model's own.
    pub cost_ratio: f64,
    /// Mean seconds of an item.
    pub mean_secs: f64,
    /// Share of items that were escalated without becoming right.
    pub useless_escalation_fraction: f64,
}

/// A cascade's whole curve, and the threshold that was chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cascade {
    /// Items that the threshold was chosen on, and items that it is reported on.
    pub chosen_on: usize,
    pub reported_on: usize,
    /// The curve on the items that are reported, from no escalation to all.
    pub curve: Vec<CascadePoint>,
    /// The cheapest threshold that kept the quality on the first half, on the first half.
    pub chosen: CascadePoint,
    /// The same threshold on the other half: what to believe.
    pub reported: CascadePoint,
    pub candidate_accuracy: f64,
    pub baseline_accuracy: f64,
    /// Accuracy of an oracle that escalates just the items that only the large model gets right.
    pub oracle_accuracy: f64,
    /// Area under accuracy over escalated share, 0 to 1.
    pub area: f64,
    /// 1 − cost over that of the large model alone.
    pub saving: f64,
    /// What the confidences are.
    pub signal: String,
    /// What of a third model's answers took no part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// An item as a cascade sees it.
#[derive(Clone, Copy)]
struct Case {
    confidence: f64,
    small: f64,
    small_cost: f64,
    small_secs: f64,
    large: f64,
    large_cost: f64,
    large_secs: f64,
}

/// Reads the answers of a model that cannot run here.
pub fn read_answers(path: &Path) -> Result<Vec<Answer>> {
    let length = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
    let fault = |line: usize, cause: String| -> Error {
        Fault::new(Stage::Comparison, cause)
            .at(format!("line {line}"))
            .fix("write one JSON object a line with id, answer or correct, confidence, price, latency_secs")
            .file(path)
            .into()
    };
    if length > MAX_FILE_BYTES {
        return Err(fault(1, format!("the file has {length} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let mut answers = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let answer: Answer = serde_json::from_str(line).map_err(|err| fault(index + 1, err.to_string()))?;
        if answer.correct.is_none() && answer.answer.is_none() {
            return Err(fault(index + 1, "neither `correct` nor `answer` is there".to_owned()));
        }
        let numbers = [answer.confidence, answer.price, answer.latency_secs];
        if numbers.into_iter().flatten().any(|number| !number.is_finite() || number < 0.0) {
            return Err(fault(index + 1, "a number is negative or not finite".to_owned()));
        }
        answers.push(answer);
    }
    Ok(answers)
}

/// True for the half on which a threshold is chosen: by the hash of what is drawn together.
fn is_for_choosing(item: &Item<'_>) -> bool {
    let (_, hash) = item.cluster();
    (hash >> 120) & 1 == 0
}

fn point(cases: &[Case], threshold: f64) -> CascadePoint {
    let count = cases.len().max(1) as f64;
    let (mut escalated, mut right, mut cost, mut secs, mut useless, mut large) = (0_usize, 0.0, 0.0, 0.0, 0_usize, 0.0);
    for case in cases {
        cost += case.small_cost;
        secs += case.small_secs;
        large += case.large_cost;
        if case.confidence >= threshold {
            right += case.small;
        } else {
            escalated += 1;
            right += case.large;
            cost += case.large_cost;
            secs += case.large_secs;
            useless += usize::from(case.large <= case.small);
        }
    }
    CascadePoint {
        threshold,
        escalated_fraction: escalated as f64 / count,
        accuracy: right / count,
        cost_ratio: cost / large.max(1e-12),
        mean_secs: secs / count,
        useless_escalation_fraction: useless as f64 / count,
    }
}

/// Thresholds that divide the items: never escalate, each confidence, always escalate.
fn thresholds(cases: &[Case]) -> Vec<f64> {
    let mut values: Vec<f64> = cases.iter().map(|case| case.confidence).collect();
    values.sort_unstable_by(f64::total_cmp);
    values.dedup();
    let step = values.len().div_ceil(MAX_POINTS).max(1);
    let above = values.last().map_or(1.0, |last| last + 1.0);
    values.into_iter().step_by(step).chain([above]).collect()
}

/// Right or wrong, cost and seconds of a third model's answer to an item.
fn answered(answer: &Answer, item: &Item<'_>, [cost, secs]: [f64; 2]) -> Result<(f64, f64, f64)> {
    let right = match (answer.correct, answer.answer.as_deref()) {
        (Some(right), _) => right,
        (None, Some(text)) => text.trim() == item.read()?.wanted.trim(),
        (None, None) => false,
    };
    Ok((f64::from(u8::from(right)), answer.price.unwrap_or(cost), answer.latency_secs.unwrap_or(secs)))
}

/// Items that the large model answers, by the hash of their id.
type ById<'a> = HashMap<[u8; 16], Item<'a>>;

/// The candidate's items first, then the baseline or the third model in its place.
fn candidate_first(
    item: &Item<'_>,
    large: &ById<'_>,
    third: Option<&Answer>,
    options: &CascadeOptions,
) -> Result<Option<Case>> {
    let Some(confidence) = item.confidence() else { return Ok(None) };
    let own = [options.baseline_cost, options.baseline_secs];
    let (right, large_cost, large_secs) = match (third, large.get(&item.id_hash())) {
        (Some(answer), _) => answered(answer, item, own)?,
        (None, Some(large)) => (large.score(), own[0], own[1]),
        (None, None) => return Ok(None),
    };
    let (small_cost, small_secs) = (options.candidate_cost, options.candidate_secs);
    Ok(Some(Case { confidence, small: item.score(), small_cost, small_secs, large: right, large_cost, large_secs }))
}

/// The third model's answers first, then the baseline's item.
fn third_first(item: &Item<'_>, answer: &Answer, options: &CascadeOptions) -> Result<Option<Case>> {
    let Some(confidence) = answer.confidence else { return Ok(None) };
    let (small, small_cost, small_secs) = answered(answer, item, [options.candidate_cost, options.candidate_secs])?;
    let (large, large_cost, large_secs) = (item.score(), options.baseline_cost, options.baseline_secs);
    Ok(Some(Case { confidence, small, small_cost, small_secs, large, large_cost, large_secs }))
}

/// What the confidences are, and what of a third model's answers took no part.
fn words(third: Option<&[Answer]>, role: ThirdRole) -> (String, Option<String>) {
    let of_choices = || "largest probability of a choice (softmax of the log-likelihoods)".to_owned();
    let Some(answers) = third else { return (of_choices(), None) };
    let stated = answers.iter().filter(|answer| answer.confidence.is_some()).count();
    match role {
        ThirdRole::Last => {
            let note = "the third model's confidences are not used: it answers last, and nothing follows it";
            (of_choices(), (stated > 0).then(|| note.to_owned()))
        }
        ThirdRole::First => {
            let missing = answers.len() - stated;
            let note = format!("{missing} answers of the third model state no confidence and are left out");
            ("the confidence that the third model states".to_owned(), (missing > 0).then_some(note))
        }
    }
}

/// Plans a cascade from two evaluations of the same items; the answers of `third` stand in the place of one of both
/// models, as the options say.
///
/// # Errors
/// Where fewer than twenty items have a confidence and both answers.
pub fn cascade(
    baseline: &Evaluation,
    candidate: &Evaluation,
    third: Option<&[Answer]>,
    options: &CascadeOptions,
) -> Result<Cascade> {
    let by_id: ById<'_> = baseline.items.iter().map(|item| (item.id_hash(), item)).collect();
    let answers: Option<HashMap<[u8; 16], &Answer>> =
        third.map(|third| third.iter().map(|answer| (hash_of(&answer.id), answer)).collect());
    let is_first = answers.is_some() && options.third == ThirdRole::First;
    let (mut choosing, mut reporting) = (Vec::new(), Vec::new());
    for item in if is_first { &baseline.items } else { &candidate.items }.iter() {
        let answer = answers.as_ref().map(|answers| answers.get(&item.id_hash()).copied());
        let case = match answer {
            Some(None) => None,
            Some(Some(answer)) if is_first => third_first(&item, answer, options)?,
            answer => candidate_first(&item, &by_id, answer.flatten(), options)?,
        };
        let Some(case) = case else { continue };
        if is_for_choosing(&item) { choosing.push(case) } else { reporting.push(case) }
    }
    let (signal, note) = words(third, options.third);
    if choosing.len() + reporting.len() < MIN_ITEMS || choosing.is_empty() || reporting.is_empty() {
        return Err(Fault::new(
            Stage::Comparison,
            format!("{} items have a confidence and both answers", choosing.len() + reporting.len()),
        )
        .fix(format!("a cascade needs at least {MIN_ITEMS} multiple-choice items that both models answered"))
        .into());
    }
    let mean = |cases: &[Case], value: &dyn Fn(&Case) -> f64| cases.iter().map(value).sum::<f64>() / cases.len() as f64;
    let wanted = options.keep_quality * mean(&choosing, &|case| case.large);
    let on_choosing: Vec<CascadePoint> =
        thresholds(&choosing).into_iter().map(|threshold| point(&choosing, threshold)).collect();
    let keeps = |point: &&CascadePoint| point.accuracy >= wanted - 1e-12;
    let cheapest = on_choosing.iter().filter(keeps).min_by(|a, b| a.cost_ratio.total_cmp(&b.cost_ratio));
    // The last one escalates everything and so keeps the large model's accuracy whole.
    let chosen = *cheapest.or(on_choosing.last()).ok_or_else(|| Fault::new(Stage::Comparison, "no item"))?;
    let reported = point(&reporting, chosen.threshold);
    let mut curve: Vec<CascadePoint> =
        thresholds(&reporting).into_iter().map(|threshold| point(&reporting, threshold)).collect();
    curve.sort_by(|a, b| a.escalated_fraction.total_cmp(&b.escalated_fraction));
    let area = curve
        .windows(2)
        .map(|pair| {
            (pair[1].escalated_fraction - pair[0].escalated_fraction) * (pair[0].accuracy + pair[1].accuracy) / 2.0
        })
        .sum();
    Ok(Cascade {
        chosen_on: choosing.len(),
        reported_on: reporting.len(),
        curve,
        chosen,
        reported,
        candidate_accuracy: mean(&reporting, &|case| case.small),
        baseline_accuracy: mean(&reporting, &|case| case.large),
        oracle_accuracy: mean(&reporting, &|case| case.small.max(case.large)),
        area,
        saving: 1.0 - reported.cost_ratio,
        signal,
        note,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::evaluation;
    use super::*;
    use crate::scoring::random::Random;
    use crate::scoring::{ItemResult, Items};

    /// The small model is right as often as it says, the large one nine times in ten.
    fn models() -> (Evaluation, Evaluation) {
        let mut random = Random::new(8, 0);
        let (mut small, mut large) = (Vec::new(), Vec::new());
        for id in 0..4000 {
            let confidence = 0.5 + 0.4999 * random.unit();
            let make = |correct: bool| ItemResult {
                id: id.to_string(),
                task: "t".into(),
                slice: "s".into(),
                metric: "acc".into(),
                wanted: "yes".into(),
                correct,
                score: f64::from(u8::from(correct)),
                scores: vec![confidence.ln(), (1.0 - confidence).ln()],
                ..ItemResult::default()
            };
            small.push(make(random.unit() < confidence));
            large.push(make(random.unit() < 0.9));
        }
        (evaluation("large", 100, 1.0, large), evaluation("small", 30, 3.0, small))
    }

    #[test]
    fn a_threshold_from_one_half_holds_on_the_other_and_saves() {
        let (large, small) = models();
        let options = CascadeOptions { candidate_cost: 0.2, keep_quality: 0.97, ..CascadeOptions::default() };
        let cascade = cascade(&large, &small, None, &options).expect("cascade");
        assert_eq!(cascade.chosen_on + cascade.reported_on, 4000);
        assert!(cascade.chosen_on > 1800 && cascade.reported_on > 1800);
        assert!(cascade.reported.accuracy > 0.94 * cascade.baseline_accuracy, "{:?}", cascade.reported);
        assert!(cascade.saving > 0.1 && (cascade.saving - (1.0 - cascade.reported.cost_ratio)).abs() < 1e-12);
        // Saving is the kept share minus the cost of asking the small model first.
        let kept = 1.0 - cascade.reported.escalated_fraction;
        assert!((cascade.saving - (kept - 0.2)).abs() < 1e-9);
        let (first, last) = (cascade.curve[0], cascade.curve[cascade.curve.len() - 1]);
        assert_eq!((first.escalated_fraction, last.escalated_fraction), (0.0, 1.0));
        assert!((first.accuracy - cascade.candidate_accuracy).abs() < 1e-12);
        assert!((last.accuracy - cascade.baseline_accuracy).abs() < 1e-12);
        assert!(cascade.oracle_accuracy > cascade.baseline_accuracy && cascade.area > cascade.candidate_accuracy);
    }

    #[test]
    fn a_third_model_takes_part_by_its_answers() {
        let (large, small) = models();
        let answers: Vec<Answer> = (0..4000)
            .map(|id| Answer {
                id: id.to_string(),
                correct: None,
                answer: Some(if id % 20 == 0 { "no" } else { " yes " }.to_owned()),
                confidence: None,
                price: Some(3.0),
                latency_secs: Some(2.0),
            })
            .collect();
        let cascade = cascade(&large, &small, Some(&answers), &CascadeOptions::default()).expect("cascade");
        assert!((cascade.baseline_accuracy - 0.95).abs() < 0.01, "{}", cascade.baseline_accuracy);
        assert!(cascade.curve[cascade.curve.len() - 1].mean_secs > 2.0);
        assert_eq!(cascade.note, None);
    }

    #[test]
    fn a_third_model_that_answers_first_escalates_by_its_own_confidences() {
        let (large, small) = models();
        // Sure of the first half, all of which it gets right, and of nothing else.
        let answers: Vec<Answer> = (0..4000)
            .map(|id| Answer {
                id: id.to_string(),
                correct: Some(id < 2000),
                answer: None,
                confidence: (id < 3900).then_some(if id < 2000 { 0.9 } else { 0.1 }),
                price: Some(0.25),
                latency_secs: Some(0.5),
            })
            .collect();
        let options = CascadeOptions { third: ThirdRole::First, ..CascadeOptions::default() };
        let first = cascade(&large, &small, Some(&answers), &options).expect("cascade");
        // Nothing below 0.1, the unsure half below 0.9, all above: three points, whatever the candidate says.
        assert_eq!(first.chosen_on + first.reported_on, 3900);
        assert_eq!(first.curve.iter().map(|point| point.threshold).collect::<Vec<_>>(), [0.1, 0.9, 1.9]);
        assert_eq!(first.chosen.threshold, 0.9);
        let escalated = first.reported.escalated_fraction;
        assert!((first.candidate_accuracy - (1.0 - escalated)).abs() < 1e-12);
        assert!((first.reported.cost_ratio - (0.25 + escalated)).abs() < 1e-12);
        assert!((first.reported.mean_secs - (0.5 + escalated)).abs() < 1e-12);
        assert!(first.signal.contains("third model states"));
        assert!(first.note.is_some_and(|note| note.starts_with("100 answers")));
        // Last, the same confidences are read and not used, which is said.
        let last = cascade(&large, &small, Some(&answers), &CascadeOptions::default()).expect("cascade");
        assert!(last.note.is_some_and(|note| note.contains("not used")) && last.signal.contains("choice"));
    }

    #[test]
    fn answers_are_read_with_the_line_of_a_mistake() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("api.jsonl");
        std::fs::write(&path, "{\"id\":\"1\",\"answer\":\"x\",\"price\":0.1}\n\n{\"id\":\"2\"}\n").expect("write");
        let error = read_answers(&path).expect_err("no answer").to_string();
        assert!(error.contains("line 3") && error.contains("neither"), "{error}");
        std::fs::write(&path, "{\"id\":\"1\",\"correct\":true}").expect("write");
        assert_eq!(read_answers(&path).expect("one")[0].correct, Some(true));
    }

    #[test]
    fn too_few_items_are_refused() {
        let (mut large, mut small) = models();
        for model in [&mut large, &mut small] {
            let few: Vec<ItemResult> = (0..10).map(|index| model.items.get(index).expect("an item")).collect();
            model.items = Items::of(few).expect("items");
        }
        assert!(cascade(&large, &small, None, &CascadeOptions::default()).is_err());
    }
}
