//! Figures of a comparison beside the tasks: text with its distances, how those are spread, speed and memory.

use eframe::egui::{Grid, Ui, vec2};

use super::common::{caption_ui, convention_in_words, figure_ui, head_ui};
use super::compare_tables;
use crate::app::plots::distribution::{Distribution, distribution_ui};
use crate::app::plots::export::offer_table_ui;
use crate::app::theme::space;
use crate::app::widgets::{KeyValue, card_ui, key_values_ui, number_with_interval, section_ui};
use crate::engine::comparison::Comparison;
use crate::engine::scoring::{SpeedResult, TextResult};
use crate::engine::units;
use crate::workbench::{Document, Run};

/// A speed out of a measurement.
type Rate = fn(&SpeedResult) -> f64;

/// All figures of a comparison that are not of tasks.
pub(super) fn figures_ui(
    ui: &mut Ui,
    document: &Document,
    run: &Run,
    comparison: &Comparison,
    distribution: Option<&Distribution>,
) {
    let is_wide = ui.available_width() > 680.0;
    if is_wide {
        ui.columns(2, |columns| {
            text_ui(&mut columns[0], comparison);
            distribution_card_ui(&mut columns[1], distribution);
            speed_ui(&mut columns[1], document, run);
        });
    } else {
        text_ui(ui, comparison);
        distribution_card_ui(ui, distribution);
        speed_ui(ui, document, run);
    }
}

/// How much of the original's predictions a KLD was measured against; empty where that was everything.
fn kept_in_words(text: &TextResult) -> String {
    let kept = text.distance.as_ref().and_then(|distance| distance.kept);
    kept.map_or_else(String::new, |kept| {
        format!(
            "The mean is a lower bound: of the original the {} most probable tokens of each position were kept, and \
             {:.2} % of the probability is of others",
            kept.k,
            kept.tail_mass_mean * 100.0
        )
    })
}

fn text_ui(ui: &mut Ui, comparison: &Comparison) {
    let Some(text) = &comparison.text else { return };
    card_ui(ui, |ui| {
        section_ui(ui, "Text");
        let plain = |value: f64| units::significant(value);
        let with = |value: f64, stderr: f64| number_with_interval(value, 1.96 * stderr, "").text();
        let kept = kept_in_words(text);
        let mut lines = Vec::new();
        if let Some(baseline) = comparison.baseline_perplexity {
            lines.push(KeyValue::new("perplexity of the original", plain(baseline), ""));
        }
        lines.push(KeyValue::new("perplexity", with(text.perplexity, text.perplexity_stderr), ""));
        if let Some(distance) = &text.distance {
            let hint = "Of the same tokens, so that the error is smaller than that of either";
            let ratio = with(distance.perplexity_ratio, distance.perplexity_ratio_stderr);
            lines.push(KeyValue::new("ratio of perplexities", ratio, "").hint(hint));
            let mean = with(distance.kld_mean, distance.kld_mean_stderr);
            lines.push(KeyValue::new("KLD, mean", mean, "nats"));
            if let Some(bound) = &distance.kept {
                lines.push(KeyValue::new("KLD, mean, at most", plain(bound.kld_mean_at_most), "nats").hint(&kept));
            }
            for (name, value) in [
                ("KLD, median", distance.kld_median),
                ("KLD, 90 % of tokens below", distance.kld_p90),
                ("KLD, 99 % of tokens below", distance.kld_p99),
                ("KLD, largest", distance.kld_max),
            ] {
                lines.push(KeyValue::new(name, plain(value), "nats"));
            }
            let points = (distance.same_top_fraction * 100.0, distance.same_top_fraction_stderr * 100.0);
            lines.push(KeyValue::new("same top token", with(points.0, points.1), "%"));
            let change = (distance.delta_p_mean * 100.0, distance.delta_p_mean_stderr * 100.0);
            let hint = "Change of the probability of the token that really follows";
            lines.push(KeyValue::new("change of the true token", with(change.0, change.1), "points").hint(hint));
        }
        key_values_ui(ui, &lines);
        let convention = convention_in_words(text.convention);
        caption_ui(
            ui,
            format!(
                "{} tokens in windows of {}: {convention}; ± is half of the 95 % interval",
                units::count(text.tokens as u64),
                text.context
            ),
        );
    });
}

fn distribution_card_ui(ui: &mut Ui, distribution: Option<&Distribution>) {
    let Some(distribution) = distribution else { return };
    card_ui(ui, |ui| {
        section_ui(ui, "KLD of single tokens");
        distribution_ui(ui, distribution, 200.0);
    });
}

fn speed_ui(ui: &mut Ui, document: &Document, run: &Run) {
    let Some(evaluation) = &run.evaluation else { return };
    let own = evaluation.baseline.as_deref().or(document.baseline.as_deref());
    let (Some(speed), Some(baseline)) = (&evaluation.speed, own.and_then(|own| own.speed.as_ref())) else { return };
    let card = card_ui(ui, |ui| {
        section_ui(ui, "Speed and memory");
        Grid::new("speed").num_columns(4).spacing(vec2(space::L, space::XS)).show(ui, |ui| {
            head_ui(ui, "", false);
            head_ui(ui, "original", true);
            head_ui(ui, "candidate", true);
            head_ui(ui, "ratio", true);
            ui.end_row();
            let rows: [(&str, Rate); 2] = [
                ("prefill, tok/s", |speed| speed.prefill_tokens_per_second),
                ("decode, tok/s", |speed| speed.decode_tokens_per_second),
            ];
            for (name, value) in rows {
                let (before, after) = (value(baseline), value(speed));
                line_ui(ui, name, format!("{before:.0}"), format!("{after:.0}"), after / before);
            }
            let first = (baseline.ttft_secs, speed.ttft_secs);
            let times = (format!("{:.1}", first.0 * 1e3), format!("{:.1}", first.1 * 1e3));
            line_ui(ui, "first token, ms", times.0, times.1, first.1 / first.0);
            if let Some(own) = own {
                let (before, after) = (own.size.resident_bytes, evaluation.size.resident_bytes);
                let ratio = after as f64 / before.max(1) as f64;
                line_ui(ui, "weights in memory", units::bytes(before), units::bytes(after), ratio);
                let (before, after) = (own.size.file_bytes, evaluation.size.file_bytes);
                let ratio = after as f64 / before.max(1) as f64;
                line_ui(ui, "files", units::bytes(before), units::bytes(after), ratio);
            }
        });
        let threads = speed.threads;
        caption_ui(
            ui,
            format!(
                "{} prompt tokens and {} written ones on {threads} threads{}",
                speed.prefill_tokens,
                speed.decode_tokens,
                if speed.in_turns { ", both measured in turns" } else { "" }
            ),
        );
    });
    if let Some(own) = own {
        let title = format!("Speed and memory of {}", run.name);
        offer_table_ui(ui, &card.response, &title, || Ok(compare_tables::speed(own, evaluation)));
    }
}

fn line_ui(ui: &mut Ui, name: &str, before: String, after: String, ratio: f64) {
    ui.label(name);
    for text in [before, after] {
        figure_ui(ui, text);
    }
    let text = if ratio.is_finite() { format!("{ratio:.2}×") } else { "–".to_owned() };
    figure_ui(ui, text);
    ui.end_row();
}
