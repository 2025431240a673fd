//! What the comparison view draws, shaped from evaluations and comparisons.

use super::common::{accuracy_percent, relative_speed};
use crate::app::plots::distribution::Distribution;
use crate::app::plots::lines::{Line, Lines};
use crate::app::plots::radar::{Radar, Spoke};
use crate::app::plots::scatter::{Scatter, ScatterPoint};
use crate::app::plots::slices::{SliceRow, Slices, signed};
use crate::app::widgets::State;
use crate::engine::comparison::stats::wilson;
use crate::engine::comparison::{Comparison, Paired, SliceComparison, SliceView, Verdict};
use crate::engine::evaluation::{Evaluation, Reliability};
use crate::engine::scoring::{DistanceBin, SpeedResult, TextDistance};
use crate::engine::units;
use crate::workbench::RunId;

/// A model with a name: the baseline, or the candidate with this index.
pub(super) struct Model<'a> {
    pub name: &'a str,
    pub candidate: Option<usize>,
    pub evaluation: &'a Evaluation,
}

/// Size against accuracy; where no items were scored, against the share of equal top tokens.
///
/// Speeds are those of one moment: the original's as it was measured, and a candidate's own ratio to the original
/// times that.
pub(super) fn scatter(models: &[Model<'_>]) -> Scatter {
    let reference = models.iter().find(|model| model.candidate.is_none()).map(|model| model.evaluation);
    let has_items = models.iter().any(|model| accuracy_percent(model.evaluation).is_some());
    let points = models
        .iter()
        .filter_map(|model| {
            let evaluation = model.evaluation;
            let (value, half) = if has_items {
                accuracy_percent(evaluation).map(|(value, half)| (value, Some(half)))?
            } else {
                same_top(evaluation, model.candidate.is_none())?
            };
            let decode = |speed: &SpeedResult| speed.decode_tokens_per_second;
            let relative = model.candidate.and_then(|_| relative_speed(evaluation, reference, decode));
            let own = evaluation.speed.as_ref().filter(|_| model.candidate.is_none()).map(decode);
            Some(ScatterPoint {
                name: model.name.to_owned(),
                size_mib: evaluation.size.file_bytes as f64 / f64::from(1u32 << 20),
                accuracy_percent: value,
                half_width: half,
                tokens_per_second: own.or(relative.map(|relative| relative.tokens_per_second)),
                times_baseline: relative.and_then(|relative| relative.ratio),
                candidate: model.candidate,
                is_predicted: false,
            })
        })
        .collect();
    let metric = if has_items { "accuracy, %" } else { "same top token, %" };
    Scatter { points, metric: metric.to_owned() }
}

/// The baseline agrees with itself.
fn same_top(evaluation: &Evaluation, is_baseline: bool) -> Option<(f64, Option<f64>)> {
    let text = evaluation.text.as_ref()?;
    if is_baseline {
        return Some((100.0, None));
    }
    let distance = text.distance.as_ref()?;
    Some((distance.same_top_fraction * 100.0, Some(distance.same_top_fraction_stderr * 196.0)))
}

/// Which run a point of the scatter stands for; none for the baseline.
pub(super) fn run_of(runs: &[RunId], point: &ScatterPoint) -> Option<RunId> {
    runs.get(point.candidate?).copied()
}

/// Slices in percent, the largest loss first, with the verdict of a gate that names them.
pub(super) fn slices(comparison: &Comparison, name: &str, candidate: usize) -> Slices {
    let rows = comparison.slices.iter().map(|slice| row(slice, comparison)).collect();
    let mut slices = Slices { name: name.to_owned(), candidate, rows };
    slices.sort();
    slices
}

fn row(slice: &SliceComparison, comparison: &Comparison) -> SliceRow {
    let paired = &slice.paired;
    let name = slice.name();
    let [low, high] = paired.difference_interval;
    let percent = |interval: [f64; 2]| interval.map(|end| end * 100.0);
    let verdicts = comparison.gates.iter().filter(|gate| gate.slice.as_deref() == Some(&name));
    SliceRow {
        items: paired.n,
        baseline: paired.baseline_accuracy * 100.0,
        baseline_interval: percent(paired.baseline_interval),
        candidate: paired.candidate_accuracy * 100.0,
        candidate_interval: percent(paired.candidate_interval),
        difference: paired.difference * 100.0,
        low: low * 100.0,
        high: high * 100.0,
        p: paired.mcnemar_p,
        p_holm: paired.mcnemar_p_holm,
        verdict: verdicts.map(|gate| gate.verdict).max().map(state),
        name,
    }
}

/// The items cut in another way: by the length of the prompt, by a field.
pub(super) fn view_slices(comparison: &Comparison, view: &SliceView, name: &str, candidate: usize) -> Slices {
    let rows = view.slices.iter().map(|slice| SliceRow { name: slice.slice.clone(), ..row(slice, comparison) });
    Slices { name: format!("{name} by {}", view.by), candidate, rows: rows.collect() }
}

/// Accuracy over confidence of both models.
pub(super) fn reliability(comparison: &Comparison, candidate: usize) -> Option<Lines> {
    let line = |name: &str, candidate: Option<usize>, reliability: &Option<Reliability>| {
        reliability.as_ref().map(|reliability| Line {
            name: name.to_owned(),
            candidate,
            points: reliability.bins.iter().map(|bin| [bin.confidence, bin.accuracy]).collect(),
            intervals: reliability
                .bins
                .iter()
                .map(|bin| <[f64; 2]>::from(wilson(bin.accuracy * bin.n as f64, bin.n)))
                .collect(),
            details: reliability.bins.iter().map(|bin| vec![bin.from, bin.to, bin.n as f64]).collect(),
        })
    };
    let lines: Vec<Line> = [
        line("original", None, &comparison.baseline_reliability),
        line(&comparison.candidate.name, Some(candidate), &comparison.candidate_reliability),
    ]
    .into_iter()
    .flatten()
    .collect();
    (!lines.is_empty()).then(|| Lines {
        title: "Reliability".to_owned(),
        x: "confidence".to_owned(),
        y: "accuracy".to_owned(),
        has_diagonal: true,
        details: &["from", "to", "items"],
        counts: Some(2),
        lines,
        ..Lines::default()
    })
}

/// What the mean KLD is shown over, with the name of the button.
pub(super) const KLD_OVER: [&str; 3] = ["position", "token count", "confidence"];

/// Mean KLD over the position in the window, over how often the true token occurs, and over the original's
/// confidence, in the order of [`KLD_OVER`].
pub(super) fn kld_over(distance: &TextDistance, name: &str, candidate: usize) -> [Option<Lines>; 3] {
    let middle = |bin: &DistanceBin| (bin.from + bin.to) / 2.0;
    let details =
        |bin: &DistanceBin| vec![bin.from, bin.to, bin.tokens as f64, bin.kld_mean_stderr, bin.same_top_fraction];
    let interval = |bin: &DistanceBin| {
        let half = 1.96 * bin.kld_mean_stderr.max(0.0);
        [(bin.kld_mean - half).max(0.0), bin.kld_mean + half]
    };
    let lines = |title: &str, x: &str, bins: &[DistanceBin], place: &dyn Fn(&DistanceBin) -> f64| {
        let points: Vec<[f64; 2]> = bins.iter().map(|bin| [place(bin), bin.kld_mean]).collect();
        (points.len() > 1).then(|| Lines {
            title: format!("KLD over {title}"),
            x: x.to_owned(),
            y: "mean KLD, nats".to_owned(),
            has_diagonal: false,
            details: &["from", "to", "tokens", "mean_kld_stderr_nats", "same_top_fraction"],
            lines: vec![Line {
                name: name.to_owned(),
                candidate: Some(candidate),
                points,
                intervals: bins.iter().map(interval).collect(),
                details: bins.iter().map(details).collect(),
            }],
            ..Lines::default()
        })
    };
    [
        lines("the position in the window", "position, tokens", &distance.kld_by_position, &middle),
        // Bins are powers of two.
        lines("how often the true token occurs", "occurrences, log2", &distance.kld_by_token_count, &|bin| {
            bin.from.max(1.0).log2()
        }),
        lines("the original's confidence", "probability of its first choice", &distance.kld_by_confidence, &middle),
    ]
}

/// What the candidate keeps or gains, each over the original's, in words that say which way it went. The worst slice
/// is the one that lost most points, as everywhere.
pub(super) fn radar(comparison: &Comparison, candidate: usize) -> Option<Radar> {
    let spoke = |name: &str, share: f64, words: String| {
        share.is_finite().then(|| Spoke { name: name.to_owned(), share, words: format!("{name} {words}") })
    };
    let kept =
        |slice: &Paired| (slice.baseline_accuracy > 0.0).then(|| slice.candidate_accuracy / slice.baseline_accuracy);
    let points = |paired: &Paired| format!("{} points", signed(paired.difference * 100.0));
    let worst = comparison.slices.iter().min_by(|a, b| a.paired.difference.total_cmp(&b.paired.difference));
    let distance = comparison.text.as_ref().and_then(|text| text.distance.as_ref());
    let spokes: Vec<Spoke> = [
        comparison.overall.as_ref().and_then(|all| spoke("accuracy", kept(all)?, points(all))),
        worst.and_then(|slice| spoke("worst slice", kept(&slice.paired)?, points(&slice.paired))),
        distance.and_then(|distance| {
            spoke("same top token", distance.same_top_fraction, units::percent(distance.same_top_fraction))
        }),
        distance.and_then(|distance| {
            let ratio = distance.perplexity_ratio;
            spoke("perplexity", 1.0 / ratio, times(ratio, "higher", "lower"))
        }),
        spoke("files", comparison.size_ratio, times(comparison.size_ratio, "smaller", "larger")),
        comparison.decode_speed_ratio.and_then(|ratio| spoke("decode", ratio, times(ratio, "faster", "slower"))),
    ]
    .into_iter()
    .flatten()
    .collect();
    (spokes.len() >= 3).then(|| Radar { name: comparison.candidate.name.clone(), candidate, spokes })
}

/// A ratio in words: `4.55× smaller`, or with the other word and the inverse where it is below one. What differs by
/// less than a tenth is a percentage.
fn times(ratio: f64, more: &str, less: &str) -> String {
    let (factor, word) = if ratio >= 1.0 { (ratio, more) } else { (1.0 / ratio, less) };
    if (ratio - 1.0).abs() < 5e-4 {
        return "the same".to_owned();
    }
    if factor < 1.1 {
        return format!("{:.1} % {word}", (ratio - 1.0).abs() * 100.0);
    }
    format!("{factor:.2}× {word}")
}

/// The pill of a verdict.
pub(super) fn state(verdict: Verdict) -> State {
    match verdict {
        Verdict::Pass => State::Pass,
        Verdict::Fail => State::Fail,
        Verdict::Undecided => State::Undecided,
    }
}

/// KLD of all tokens; the empty decades at both ends are left out.
pub(super) fn distribution(distance: &TextDistance, candidate: usize) -> Option<Distribution> {
    let histogram = &distance.kld_histogram;
    let first = histogram.counts.iter().position(|count| *count > 0)?;
    let last = histogram.counts.iter().rposition(|count| *count > 0)?;
    Some(Distribution {
        name: "KLD per token".to_owned(),
        unit: "nats".to_owned(),
        min: histogram.edge(first),
        max: histogram.edge(last + 1),
        counts: histogram.counts[first..=last].to_vec(),
        mean: distance.kld_mean,
        p99: distance.kld_p99,
        candidate,
    })
}

/// Indices of the flips to show: of one slice, or all; losses first.
pub(super) fn flips(comparison: &Comparison, slice: Option<&str>) -> Vec<usize> {
    let flips = &comparison.flips;
    let mut found: Vec<usize> =
        (0..flips.len()).filter(|&index| slice.is_none_or(|slice| flips.slice_name(index) == slice)).collect();
    found.sort_by_key(|&index| flips.is_gain(index));
    found
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::engine::comparison::{ComparisonOptions, compare};
    use crate::engine::evaluation::{EVALUATION_VERSION, ModelRef, SizeResult, slices as slices_of};
    use crate::engine::progress::Progress;
    use crate::engine::scoring::{ItemResult, Items};

    fn item(id: usize, slice: &str, correct: bool) -> ItemResult {
        ItemResult {
            id: id.to_string(),
            task: "facts".to_owned(),
            slice: slice.to_owned(),
            metric: "acc".to_owned(),
            correct,
            score: f64::from(u8::from(correct)),
            prediction: if correct { "right" } else { "wrong" }.to_owned(),
            ..ItemResult::default()
        }
    }

    /// `wrong` tells which items of the slice `rare` are wrong; `common` is always right.
    fn evaluation(name: &str, mib: u64, wrong: impl Fn(usize) -> bool) -> Evaluation {
        let rare = (0..20).map(|id| item(id, "rare", !wrong(id)));
        let common = (20..40).map(|id| item(id, "common", true));
        let items = Items::of(rare.chain(common)).expect("items");
        Evaluation {
            version: EVALUATION_VERSION,
            engine: String::new(),
            key: String::new(),
            model: ModelRef { name: name.to_owned(), path: name.into(), id: name.to_owned() },
            label: "measured".to_owned(),
            device: "cpu".to_owned(),
            text_hash: None,
            tasks_hash: None,
            text: None,
            text_tokens_per_second: None,
            slices: slices_of(&items),
            reliability: None,
            written: None,
            seeds: None,
            size: SizeResult {
                file_bytes: mib << 20,
                bits_per_weight: 4.5,
                resident_bytes: 0,
                weight_count: 1,
                kv_bytes_per_token: 0,
            },
            speed: None,
            conditions: None,
            energy: None,
            items,
            baseline: None,
        }
    }

    pub fn compared() -> (Evaluation, Evaluation, Comparison) {
        let (baseline, candidate) = (evaluation("base", 8, |_| false), evaluation("small", 2, |id| id < 10));
        let options = ComparisonOptions { resamples: 200, ..ComparisonOptions::default() };
        let comparison = compare(&baseline, &candidate, &options, &Progress::new(None)).expect("compares");
        (baseline, candidate, comparison)
    }

    #[test]
    fn the_scatter_has_sizes_in_mib_and_accuracies_in_percent() {
        let (baseline, candidate, _) = compared();
        let models = [
            Model { name: "base", candidate: None, evaluation: &baseline },
            Model { name: "small", candidate: Some(1), evaluation: &candidate },
        ];
        let scatter = scatter(&models);
        assert_eq!(scatter.metric, "accuracy, %");
        let [base, small] = scatter.points.as_slice() else { panic!("two points") };
        assert_eq!((base.size_mib, base.accuracy_percent, base.candidate), (8.0, 100.0, None));
        assert_eq!((small.size_mib, small.accuracy_percent), (2.0, 75.0));
        assert!(small.half_width.expect("an interval") > 5.0);
        assert_eq!(run_of(&[RunId(4), RunId(7)], small), Some(RunId(7)));
        assert_eq!(run_of(&[RunId(4)], base), None);
    }

    #[test]
    fn speeds_of_two_moments_are_brought_to_that_of_the_original() {
        use super::super::compare_tables::tests::speed_of;
        let (mut baseline, mut candidate, _) = compared();
        // The candidate ran while the machine was a tenth as fast: twice its own original.
        let mut slow = baseline.clone();
        (baseline.speed, slow.speed, candidate.speed) =
            (Some(speed_of(1000.0)), Some(speed_of(100.0)), Some(speed_of(200.0)));
        let models = |candidate: &Evaluation| {
            let base = Model { name: "base", candidate: None, evaluation: &baseline };
            scatter(&[base, Model { name: "small", candidate: Some(0), evaluation: candidate }])
        };
        let speeds = |candidate: &Evaluation| -> Vec<(Option<f64>, Option<f64>)> {
            models(candidate).points.iter().map(|point| (point.tokens_per_second, point.times_baseline)).collect()
        };
        candidate.baseline = None;
        assert_eq!(speeds(&candidate), [(Some(1000.0), None), (Some(200.0), None)], "no ratio is known");
        candidate.baseline = Some(Box::new(slow));
        assert_eq!(speeds(&candidate), [(Some(1000.0), None), (Some(2000.0), Some(2.0))]);
    }

    #[test]
    fn the_radar_names_what_was_measured_and_the_least_of_it() {
        let (_, _, comparison) = compared();
        let radar = radar(&comparison, 0).expect("three qualities");
        let names: Vec<&str> = radar.spokes.iter().map(|spoke| spoke.name.as_str()).collect();
        assert_eq!(names, ["accuracy", "worst slice", "files"]);
        let words: Vec<&str> = radar.spokes.iter().map(|spoke| spoke.words.as_str()).collect();
        assert_eq!(words, ["accuracy −25.0 points", "worst slice −50.0 points", "files 4.00× smaller"]);
        assert_eq!(radar.least().map(|spoke| (spoke.name.as_str(), spoke.share)), Some(("worst slice", 0.5)));
        assert!(reliability(&comparison, 0).is_none(), "nothing was chosen with a confidence");
    }

    #[test]
    fn ratios_are_told_in_the_direction_that_they_have() {
        assert_eq!(times(4.55, "smaller", "larger"), "4.55× smaller");
        assert_eq!(times(0.5, "faster", "slower"), "2.00× slower");
        assert_eq!(times(0.99, "higher", "lower"), "1.0 % lower");
        assert_eq!(times(1.0, "higher", "lower"), "the same");
    }

    #[test]
    fn the_largest_loss_stands_first_and_flips_can_be_told_by_slice() {
        let (_, _, comparison) = compared();
        let slices = slices(&comparison, "small", 0);
        assert_eq!(slices.rows[0].name, "facts/rare");
        assert_eq!(slices.rows[0].difference, -50.0);
        assert!(slices.rows[0].high < 0.0);
        // Ten flips, all losses: 2 · 0.5¹⁰; of two slices the smaller p counts twice, and no flips are no evidence.
        let close = |value: f64, expected: f64| (value - expected).abs() < 1e-12;
        assert!(close(slices.rows[0].p, 2.0 / 1024.0), "{}", slices.rows[0].p);
        assert!(slices.rows[0].p_holm.is_some_and(|p| close(p, 4.0 / 1024.0)), "{:?}", slices.rows[0].p_holm);
        assert_eq!((slices.rows[1].p, slices.rows[1].p_holm), (1.0, Some(1.0)));
        let [low, high] = slices.rows[0].candidate_interval;
        assert!(low < 50.0 && high > 50.0 && (low + high - 100.0).abs() < 1e-9, "Wilson's is even about a half");
        assert_eq!(slices.rows[1].difference, 0.0);
        assert_eq!(flips(&comparison, None).len(), 10);
        assert_eq!(flips(&comparison, Some("facts/rare")).len(), 10);
        assert!(flips(&comparison, Some("facts/common")).is_empty());
    }
}
