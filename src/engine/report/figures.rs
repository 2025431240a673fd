//! Tables and plots of a report, each from one part of a comparison.

use super::document::{Block, Document, Table};
use super::svg::{Bar, Line, Plot, Shape};
use super::{LoggedEntry, ReportInput, points, verdict_name};
use crate::comparison::scorecard::Scorecard;
use crate::comparison::{Cascade, Comparison, SliceComparison, speculation::Speculation};
use crate::evaluation::{Reliability, Written};
use crate::scoring::{DistanceBin, TextDistance, TextResult};
use crate::units::{self, or_dash, significant};

/// Flips that a report shows with both outputs.
const MAX_FLIPS: usize = 100;
/// The length of draft whose check a report names.
const CHECKED_DRAFT: usize = 4;
/// Letters of an output in a table.
const MAX_LETTERS: usize = 300;

fn interval([low, high]: [f64; 2]) -> String {
    format!("{} to {}", points(low), points(high))
}

/// One row a model.
pub(super) fn overview(input: &ReportInput) -> Table {
    let mut table = Table::new(&[
        "model",
        ">on disk",
        ">bpw",
        ">perplexity",
        ">KLD (nats)",
        ">same top %",
        ">items",
        ">accuracy %",
        ">difference",
        ">95 %",
        "worst slice",
        ">decode",
        "verdict",
    ]);
    let baseline = &input.baseline;
    table.row([
        format!("{} (baseline)", baseline.model.name),
        units::bytes(baseline.size.file_bytes),
        format!("{:.2}", baseline.size.bits_per_weight),
        or_dash(baseline.text.as_ref().map(|text| format!("{:.4}", text.perplexity))),
        String::new(),
        String::new(),
        baseline.items.len().to_string(),
        or_dash(baseline.accuracy().map(points)),
        String::new(),
        String::new(),
        String::new(),
        "1×".to_owned(),
        String::new(),
    ]);
    for reported in &input.candidates {
        let comparison = &reported.comparison;
        let text = comparison.text.as_ref();
        let distance = text.and_then(|text| text.distance.as_ref());
        let overall = comparison.overall.as_ref();
        let worst = comparison.slices.iter().min_by(|a, b| a.paired.difference.total_cmp(&b.paired.difference));
        table.row([
            comparison.candidate.name.clone(),
            units::bytes(comparison.file_bytes),
            format!("{:.2}", comparison.bits_per_weight),
            or_dash(text.map(|text| format!("{:.4}", text.perplexity))),
            or_dash(distance.map(|distance| significant(distance.kld_mean))),
            or_dash(distance.map(|distance| points(distance.same_top_fraction))),
            or_dash(overall.map(|overall| overall.n.to_string())),
            or_dash(overall.map(|overall| points(overall.candidate_accuracy))),
            or_dash(overall.map(|overall| points(overall.difference))),
            or_dash(overall.map(|overall| interval(overall.difference_interval))),
            or_dash(worst.map(|slice| format!("{} {}", slice.name(), points(slice.paired.difference)))),
            or_dash(comparison.decode_speed_ratio.map(|value| ratio(value, comparison.decode_speed_interval))),
            or_dash(comparison.verdict().map(|verdict| verdict_name(verdict).to_owned())),
        ]);
    }
    table
}

/// Accuracy over size, the baseline among the candidates.
pub(super) fn scatter(input: &ReportInput) -> Option<Plot> {
    let mut places = Vec::new();
    if let Some(overall) = input.candidates.first().and_then(|reported| reported.comparison.overall.as_ref()) {
        let bar = Bar {
            name: input.baseline.model.name.clone(),
            value: overall.baseline_accuracy * 100.0,
            interval: overall.baseline_interval.map(|end| end * 100.0),
        };
        places.push((input.baseline.size.file_bytes as f64 / 1048576.0, bar));
    }
    for reported in &input.candidates {
        if let Some(overall) = &reported.comparison.overall {
            let bar = Bar {
                name: reported.comparison.candidate.name.clone(),
                value: overall.candidate_accuracy * 100.0,
                interval: overall.candidate_interval.map(|end| end * 100.0),
            };
            places.push((reported.comparison.file_bytes as f64 / 1048576.0, bar));
        }
    }
    (!places.is_empty()).then(|| Plot {
        caption: "Accuracy over size, with Wilson intervals".to_owned(),
        x: "MiB on disk".to_owned(),
        y: "accuracy %".to_owned(),
        is_log: true,
        has_diagonal: false,
        shape: Shape::Scatter(places),
    })
}

pub(super) fn gates(comparison: &Comparison) -> Table {
    let mut table = Table::new(&["verdict", "metric", "slice", "limit", ">measured", ">95 %", "why"]);
    for gate in &comparison.gates {
        let binding = if gate.is_binding { " (binding)" } else { "" };
        table.row([
            format!("{}{binding}", verdict_name(gate.verdict)),
            gate.metric.clone(),
            gate.slice.clone().unwrap_or_else(|| "all".to_owned()),
            gate.limit.clone(),
            or_dash(gate.estimate.map(significant)),
            or_dash(gate.interval.map(|[low, high]| format!("{} to {}", significant(low), significant(high)))),
            gate.reason.clone(),
        ]);
    }
    table
}

/// Sentences on every slice that lost more than chance explains, and on failed gates.
pub(super) fn known_regressions(comparison: &Comparison) -> Vec<String> {
    let views = comparison.views.iter().flat_map(|view| &view.slices);
    let mut lost: Vec<&SliceComparison> = comparison
        .slices
        .iter()
        .chain(views)
        .filter(|slice| slice.paired.difference < 0.0 && slice.paired.mcnemar_p_holm.is_some_and(|p| p < 0.05))
        .collect();
    lost.sort_by(|a, b| a.paired.difference.total_cmp(&b.paired.difference));
    lost.into_iter()
        .map(|slice| {
            let paired = &slice.paired;
            format!(
                "{}: {} points ({}); {} of {} items went from right to wrong, {} the other way; p = {} after Holm's correction",
                slice.name(),
                points(paired.difference),
                interval(paired.difference_interval),
                paired.right_to_wrong,
                paired.n,
                paired.wrong_to_right,
                significant(paired.mcnemar_p_holm.unwrap_or(1.0)),
            )
        })
        .collect()
}

pub(super) fn forest(slices: &[SliceComparison], caption: &str) -> Option<Plot> {
    let mut bars: Vec<Bar> = slices
        .iter()
        .map(|slice| Bar {
            name: slice.name(),
            value: slice.paired.difference * 100.0,
            interval: slice.paired.difference_interval.map(|end| end * 100.0),
        })
        .collect();
    bars.sort_by(|a, b| a.value.total_cmp(&b.value));
    (!bars.is_empty()).then(|| Plot {
        caption: caption.to_owned(),
        x: "points".to_owned(),
        y: String::new(),
        is_log: false,
        has_diagonal: false,
        shape: Shape::Forest(bars),
    })
}

pub(super) fn slices(slices: &[SliceComparison]) -> Table {
    let mut table = Table::new(&[
        "slice",
        "metric",
        ">items",
        ">baseline %",
        ">candidate %",
        ">difference",
        ">95 %",
        ">beyond the rest",
        ">right to wrong",
        ">wrong to right",
        ">p (Holm)",
        ">can detect",
    ]);
    for slice in slices {
        let paired = &slice.paired;
        table.row([
            slice.name(),
            slice.metric.clone(),
            paired.n.to_string(),
            points(paired.baseline_accuracy),
            points(paired.candidate_accuracy),
            points(paired.difference),
            interval(paired.difference_interval),
            or_dash(
                paired.versus_rest.map(|rest| format!("{} ({})", points(rest.difference), interval(rest.interval))),
            ),
            paired.right_to_wrong.to_string(),
            paired.wrong_to_right.to_string(),
            significant(paired.mcnemar_p_holm.unwrap_or(paired.mcnemar_p)),
            paired.detectable_difference.map_or_else(|| "none at this share of flips".to_owned(), points),
        ]);
    }
    table
}

pub(super) fn text(text: &TextResult) -> Table {
    let mut table = Table::new(&["figure", ">value", ">standard error"]);
    let convention =
        format!("perplexity ({}, window {}, {} tokens)", text.convention.name(), text.context, text.tokens);
    table.row([convention, format!("{:.4}", text.perplexity), format!("{:.4}", text.perplexity_stderr)]);
    table.row(["bits per byte".to_owned(), format!("{:.4}", text.bits_per_byte), String::new()]);
    if let Some(distance) = &text.distance {
        for (name, value, error) in
            distance.llama_cpp_figures((text.perplexity, text.perplexity_stderr)).into_iter().skip(1)
        {
            table.row([
                name,
                units::minus(&format!("{value:.6}")),
                error.map_or_else(String::new, |error| format!("{error:.6}")),
            ]);
        }
        let reverse = format!("{:.6}", distance.reverse_kld_mean);
        table.row(["Mean    reverse KLD".to_owned(), reverse, format!("{:.6}", distance.reverse_kld_mean_stderr)]);
        if let Some(kept) = &distance.kept {
            // Named beside the mean that it bounds: a lower bound alone would flatter the candidate.
            let name = format!("Mean    KLD at most (from the baseline's top {})", kept.k);
            table.row([name, format!("{:.6}", kept.kld_mean_at_most), String::new()]);
        }
        let acceptance = format!("{:.6}", distance.acceptance_mean);
        table.row(["Mean    Σ min(p, q)".to_owned(), acceptance, format!("{:.6}", distance.acceptance_mean_stderr)]);
    }
    table
}

pub(super) fn kld_histogram(distance: &TextDistance) -> Option<Plot> {
    let histogram = &distance.kld_histogram;
    let total: u64 = histogram.counts.iter().sum();
    let filled = |index: &usize| histogram.counts[*index] > 0;
    let (first, last) = ((0..histogram.counts.len()).find(filled)?, (0..histogram.counts.len()).rfind(filled)?);
    let points = (first..=last)
        .map(|bin| [histogram.edge(bin), histogram.counts[bin] as f64 * 100.0 / total.max(1) as f64])
        .collect();
    Some(Plot {
        caption: "KLD of the tokens: how many of which size".to_owned(),
        x: "KLD, nats".to_owned(),
        y: "% of tokens".to_owned(),
        is_log: true,
        has_diagonal: false,
        shape: Shape::Lines(vec![Line { name: "tokens".to_owned(), points }]),
    })
}

pub(super) fn kld_by_position(distance: &TextDistance) -> Option<Plot> {
    let points: Vec<[f64; 2]> =
        distance.kld_by_position.iter().map(|bin| [(bin.from + bin.to) / 2.0, bin.kld_mean]).collect();
    (points.len() > 1).then(|| Plot {
        caption: "KLD over the position in the window".to_owned(),
        x: "position".to_owned(),
        y: "mean KLD".to_owned(),
        is_log: false,
        has_diagonal: false,
        shape: Shape::Lines(vec![Line { name: "mean".to_owned(), points }]),
    })
}

pub(super) fn distance_bins(title: &str, bins: &[DistanceBin]) -> Table {
    let mut table = Table::new(&[title, ">tokens", ">mean KLD", ">standard error", ">same top %"]);
    for bin in bins {
        table.row([
            format!("{} to {}", significant(bin.from), significant(bin.to)),
            bin.tokens.to_string(),
            significant(bin.kld_mean),
            significant(bin.kld_mean_stderr),
            points(bin.same_top_fraction),
        ]);
    }
    table
}

pub(super) fn calibration(comparison: &Comparison) -> Table {
    let mut table = Table::new(&["model", ">items", ">ECE", ">adaptive ECE", ">overconfidence", ">Brier"]);
    let both = [
        (&comparison.baseline.name, &comparison.baseline_reliability),
        (&comparison.candidate.name, &comparison.candidate_reliability),
    ];
    for (name, reliability) in both {
        if let Some(reliability) = reliability {
            table.row([
                name.clone(),
                reliability.n.to_string(),
                format!("{:.4}", reliability.ece),
                format!("{:.4}", reliability.adaptive_ece),
                units::minus(&format!("{:.4}", reliability.overconfidence)),
                format!("{:.4}", reliability.brier),
            ]);
        }
    }
    table
}

pub(super) fn reliability(comparison: &Comparison) -> Option<Plot> {
    let line = |name: &str, reliability: &Option<Reliability>| {
        reliability.as_ref().map(|reliability| Line {
            name: name.to_owned(),
            points: reliability.bins.iter().map(|bin| [bin.confidence, bin.accuracy]).collect(),
        })
    };
    let lines: Vec<Line> = [
        line(&comparison.baseline.name, &comparison.baseline_reliability),
        line(&comparison.candidate.name, &comparison.candidate_reliability),
    ]
    .into_iter()
    .flatten()
    .collect();
    (!lines.is_empty()).then(|| Plot {
        caption: "Reliability: accuracy over confidence; below the diagonal a model is too sure".to_owned(),
        x: "confidence".to_owned(),
        y: "accuracy".to_owned(),
        is_log: false,
        has_diagonal: true,
        shape: Shape::Lines(lines),
    })
}

pub(super) fn written(comparison: &Comparison) -> Table {
    let mut table = Table::new(&["figure", ">baseline", ">candidate"]);
    let mut both = |name: &str, value: &dyn Fn(&Written) -> String| {
        let of = |written: &Option<Written>| or_dash(written.as_ref().map(value));
        if comparison.candidate_written.is_some() {
            table.row([name.to_owned(), of(&comparison.baseline_written), of(&comparison.candidate_written)]);
        }
    };
    both("texts", &|written| written.n.to_string());
    both("mean tokens", &|written| format!("{:.1}", written.tokens_mean));
    both("not ended %", &|written| points(written.end_of_text_failure_fraction));
    both("repeated 4-grams %", &|written| points(written.repeated_fraction));
    both("texts in a loop %", &|written| points(written.looping_fraction));
    if let Some(written) = &comparison.written {
        let mut add = |name: &str, value: String| table.row([name.to_owned(), String::new(), value]);
        add("texts the same to the last token %", points(written.identical_fraction));
        if let Some(median) = written.first_divergence_median {
            add("tokens before the first different one (median)", format!("{median:.1}"));
        }
        add("length over the baseline's", format!("{:.3}", written.length_ratio));
    }
    table
}

pub(super) fn speculation(speculation: &Speculation) -> Table {
    let mut table = Table::new(&["figure", ">value"]);
    let mut add = |name: &str, value: String| table.row([name.to_owned(), value]);
    add("acceptance, sampled at temperature 1 %", points(speculation.acceptance));
    add("acceptance, greedy %", points(speculation.greedy_acceptance));
    add("cost of a draft step over a target step", format!("{:.3}", speculation.step_cost));
    let check = format!("{:.2}", speculation.check_cost(CHECKED_DRAFT));
    let check = if speculation.is_check_measured { check } else { format!("{check} (assumed, not measured)") };
    add(&format!("cost of checking {CHECKED_DRAFT} drafted tokens over a target step"), check);
    add("best draft length, sampled", speculation.best_draft.to_string());
    add("expected speed-up, sampled", format!("{:.2}×", speculation.best_speed_up));
    add("best draft length, greedy", speculation.best_greedy_draft.to_string());
    add("expected speed-up, greedy", format!("{:.2}×", speculation.best_greedy_speed_up));
    table
}

pub(super) fn cascade(cascade: &Cascade) -> Table {
    let mut table = Table::new(&["figure", ">value"]);
    let mut add = |name: &str, value: String| table.row([name.to_owned(), value]);
    add("items the threshold was chosen on", cascade.chosen_on.to_string());
    add("items it is reported on", cascade.reported_on.to_string());
    add("threshold", format!("{:.4}", cascade.chosen.threshold));
    add("escalated %", points(cascade.reported.escalated_fraction));
    add("accuracy %", points(cascade.reported.accuracy));
    add("accuracy of the large model alone %", points(cascade.baseline_accuracy));
    add("accuracy of the candidate alone %", points(cascade.candidate_accuracy));
    add("accuracy of an oracle %", points(cascade.oracle_accuracy));
    add("cost saved %", points(cascade.saving));
    add("escalations that did not help %", points(cascade.reported.useless_escalation_fraction));
    add("confidence", cascade.signal.clone());
    if let Some(note) = &cascade.note {
        add("note", note.clone());
    }
    table
}

pub(super) fn cascade_curve(cascade: &Cascade) -> Option<Plot> {
    let points = cascade.curve.iter().map(|point| [point.cost_ratio, point.accuracy * 100.0]).collect();
    Some(Plot {
        caption: "Accuracy of the cascade over its cost".to_owned(),
        x: "cost over the large model's".to_owned(),
        y: "accuracy %".to_owned(),
        is_log: false,
        has_diagonal: false,
        shape: Shape::Lines(vec![Line { name: "cascade".to_owned(), points }]),
    })
}

/// Abilities and axes over the baseline's, the smallest named.
pub(super) fn scorecard(document: &mut Document, card: &Scorecard) {
    let mut abilities = Table::new(&["ability", ">items", ">baseline %", ">candidate %", ">kept %", "worst slice"]);
    for ability in &card.abilities {
        abilities.row([
            ability.name.clone(),
            ability.items.to_string(),
            points(ability.baseline_accuracy),
            points(ability.candidate_accuracy),
            or_dash(ability.share.map(points)),
            ability.worst_slice.clone(),
        ]);
    }
    document.table(abilities);
    let mut axes = Table::new(&["axis (LLMCBench)", ">over the baseline", "from"]);
    for axis in &card.axes {
        axes.row([axis.name.clone(), or_dash(axis.value.map(|value| format!("{value:.3}"))), axis.from.clone()]);
    }
    document.table(axes);
    if let Some((name, value)) = &card.least {
        document.text(format!("The least: {name}, {value:.3} of the baseline's. Means hide it."));
    }
}

/// The items that went from right to wrong, with both outputs.
pub(super) fn flips(document: &mut Document, comparison: &Comparison) {
    let lost = comparison.flips.losses().count();
    let gained = comparison.flips.len() - lost;
    if comparison.flips.is_empty() {
        return;
    }
    let cut = |text: &str| text.chars().take(MAX_LETTERS).collect::<String>();
    document.section("Flips");
    document.text(format!("{lost} items went from right to wrong, {gained} from wrong to right."));
    let mut table = Table::new(&["item", "slice", "wanted", "baseline", "candidate"]);
    for index in comparison.flips.losses().take(MAX_FLIPS) {
        match comparison.flips.get(index) {
            Ok(flip) => table.row([
                flip.id.clone(),
                format!("{}/{}", flip.task, flip.slice),
                cut(&flip.wanted),
                cut(&flip.baseline_prediction),
                cut(&flip.candidate_prediction),
            ]),
            Err(err) => {
                document.text(format!("Their texts cannot be shown: {err}"));
                break;
            }
        }
    }
    if !table.rows.is_empty() {
        let title = format!("From right to wrong ({} of {lost})", table.rows.len());
        document.blocks.push(Block::Details(title, vec![Block::Table(table)]));
    }
}

/// What the mean of all items hides: how many slices lost items and how many kept each one, and the worst.
pub(super) fn spread(comparison: &Comparison) -> String {
    let slices = &comparison.slices;
    let lost = slices.iter().filter(|slice| slice.paired.right_to_wrong > 0).count();
    let mut text =
        format!("{lost} of {} slices lost items, {} kept every right answer.", slices.len(), slices.len() - lost);
    if let Some(overall) = &comparison.overall {
        text.push_str(&format!(" All items together moved {} points", points(overall.difference)));
    }
    let worst = slices.iter().min_by(|a, b| a.paired.difference.total_cmp(&b.paired.difference));
    if let Some(worst) = worst.filter(|worst| worst.paired.difference < 0.0) {
        let around = interval(worst.paired.difference_interval);
        text.push_str(&format!("; the worst slice, {}, {} ({around})", worst.name(), points(worst.paired.difference)));
    }
    text.push('.');
    text
}

/// A ratio of speeds with its interval, where it has one.
fn ratio(value: f64, interval: Option<[f64; 2]>) -> String {
    interval.map_or_else(|| format!("{value:.2}×"), |[low, high]| format!("{value:.2}× ({low:.2} to {high:.2})"))
}

/// Accuracies of choices normalized by characters and by bytes, of all items and of every slice that has them.
pub(super) fn normalized(comparison: &Comparison) -> Table {
    let mut table = Table::new(&[
        "slice",
        "metric",
        ">items",
        ">baseline %",
        ">candidate %",
        ">difference",
        ">95 %",
        ">right to wrong",
        ">wrong to right",
    ]);
    let all = comparison.overall.iter().map(|overall| ("all".to_owned(), overall));
    for (name, paired) in all.chain(comparison.slices.iter().map(|slice| (slice.name(), &slice.paired))) {
        for (metric, choice) in [("acc_norm", paired.norm), ("acc_bytes", paired.bytes)] {
            let Some(choice) = choice else { continue };
            table.row([
                name.clone(),
                metric.to_owned(),
                paired.n.to_string(),
                points(choice.baseline_accuracy),
                points(choice.candidate_accuracy),
                points(choice.difference),
                interval(choice.difference_interval),
                choice.right_to_wrong.to_string(),
                choice.wrong_to_right.to_string(),
            ]);
        }
    }
    table
}

pub(super) fn log(log: &[LoggedEntry]) -> Table {
    let mut table = Table::new(&["when", "who", "what", "outcome", "inputs", "outputs", "entry"]);
    for LoggedEntry { id, entry } in log {
        let names = |files: &[super::HashedFile]| {
            files
                .iter()
                .map(|file| format!("{} {}", file.name, &file.hash.get(..12).unwrap_or(&file.hash)))
                .collect::<Vec<_>>()
                .join(", ")
        };
        table.row([
            entry.time.clone(),
            entry.who.clone(),
            entry.what.clone(),
            entry.outcome.clone(),
            names(&entry.inputs),
            names(&entry.outputs),
            id.clone(),
        ]);
    }
    table
}
