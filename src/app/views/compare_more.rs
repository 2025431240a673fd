//! More of the comparison: all candidates in one table, the scorecard with its minimum, and the cascade.

use eframe::egui::{Grid, Ui, vec2};

use super::common::{caption_ui, figure_ui, head_ui};
use super::compare_data;
use super::compare_tables;
use crate::app::context::Cx;
use crate::app::plots::export::offer_table_ui;
use crate::app::plots::lines::{Line, Lines, lines_ui};
use crate::app::theme::{Type, space};
use crate::app::widgets::{
    KeyValue, card_ui, key_values_ui, number_with_interval, pill_ui, quiet_button_ui, section_with_ui,
};
use crate::engine::comparison::cascade::CascadePoint;
use crate::engine::comparison::scorecard::{Scorecard, scorecard};
use crate::engine::comparison::{Cascade, CascadeOptions, Comparison, ParetoPoint, cascade, pareto_front};
use crate::engine::evaluation::Evaluation;
use crate::engine::units;
use crate::workbench::{Command, Document, Run};

/// Shaped data of these parts, made anew when the comparison changes.
#[derive(Default)]
pub(super) struct More {
    card: Option<Scorecard>,
    cascade: Option<(Cascade, Lines)>,
}

impl More {
    /// Shapes a comparison of two evaluations.
    pub fn update(&mut self, compared: Option<(&Comparison, &Evaluation, &Evaluation)>, candidate: usize) {
        *self = Self::default();
        let Some((comparison, baseline, own)) = compared else { return };
        if !comparison.slices.is_empty() {
            let (before, after) = (baseline.size.resident_bytes, own.size.resident_bytes);
            let ratio = (before > 0 && after > 0).then(|| before as f64 / after as f64);
            self.card = Some(scorecard(comparison, ratio));
        }
        let keep = CascadeOptions::default().keep_quality;
        let planned = CascadeOptions::priced(baseline, own, None, 1.0, keep)
            .and_then(|options| cascade(baseline, own, None, &options).ok());
        self.cascade = planned.map(|found| {
            let lines = curve(&found, &comparison.candidate.name, candidate);
            (found, lines)
        });
    }

    /// Abilities and axes, the smallest named.
    pub fn card_ui(&self, ui: &mut Ui) {
        let Some(card) = &self.card else { return };
        let shown = card_ui(ui, |ui| {
            section_with_ui(ui, "Scorecard", |ui| {
                if let Some((name, value)) = &card.least {
                    caption_ui(ui, format!("the least: {name}, {value:.3}"));
                }
            });
            Grid::new("abilities").num_columns(5).striped(true).spacing(vec2(space::L, space::XS)).show(ui, |ui| {
                for (index, head) in
                    ["ability", "original, %", "candidate, %", "kept", "worst slice"].iter().enumerate()
                {
                    head_ui(ui, head, (1..4).contains(&index));
                }
                ui.end_row();
                for ability in &card.abilities {
                    ui.label(&ability.name).on_hover_text(format!("{} items", ability.items));
                    figure_ui(ui, format!("{:.1}", ability.baseline_accuracy * 100.0));
                    figure_ui(ui, format!("{:.1}", ability.candidate_accuracy * 100.0));
                    figure_ui(ui, ability.share.map_or_else(|| "–".to_owned(), |share| format!("{share:.3}")));
                    caption_ui(ui, &ability.worst_slice);
                    ui.end_row();
                }
            });
            ui.add_space(space::S);
            let lines: Vec<KeyValue<'_>> = card
                .axes
                .iter()
                .map(|axis| {
                    let value = axis.value.map_or_else(|| "–".to_owned(), |value| format!("{value:.3}"));
                    KeyValue::new(&axis.name, value, "").hint(&axis.from)
                })
                .collect();
            key_values_ui(ui, &lines);
        });
        offer_table_ui(ui, &shown.response, "Scorecard", || Ok(compare_tables::scorecard(card)));
    }

    /// The candidate first, the original where it is not sure.
    pub fn cascade_ui(&self, ui: &mut Ui) {
        let Some((found, lines)) = &self.cascade else { return };
        card_ui(ui, |ui| {
            section_with_ui(ui, "Candidate first, original when unsure", |ui| {
                caption_ui(ui, format!("on {} items that the threshold was not chosen on", found.reported_on));
            });
            lines_ui(ui, lines, 180.0);
            let percent = |share: f64| format!("{:.1}", share * 100.0);
            let lines = [
                KeyValue::new("least confidence to keep an answer", format!("{:.4}", found.chosen.threshold), ""),
                KeyValue::new("accuracy", percent(found.reported.accuracy), "%"),
                KeyValue::new("accuracy of the original alone", percent(found.baseline_accuracy), "%"),
                KeyValue::new("items that go on to the original", percent(found.reported.escalated_fraction), "%"),
                KeyValue::new("cost saved", percent(found.saving), "%").hint("Cost is time, by the measured speeds"),
            ];
            key_values_ui(ui, &lines);
        });
    }
}

/// Points lost against the original, over the cost.
fn curve(found: &Cascade, name: &str, candidate: usize) -> Lines {
    let loss = |accuracy: f64| ((found.baseline_accuracy - accuracy) * 100.0).max(0.0);
    let mut curve: Vec<&CascadePoint> = found.curve.iter().collect();
    curve.sort_by(|one, other| one.cost_ratio.total_cmp(&other.cost_ratio));
    let details = |point: &&CascadePoint| {
        vec![
            point.threshold,
            point.escalated_fraction * 100.0,
            point.accuracy * 100.0,
            point.mean_secs,
            point.useless_escalation_fraction * 100.0,
        ]
    };
    Lines {
        title: format!("Cascade of {name} and the original"),
        x: "cost of an item over the original's, %".to_owned(),
        y: "lost, points".to_owned(),
        has_diagonal: false,
        details: &[
            "least_confidence_kept",
            "escalated_percent",
            "accuracy_percent",
            "mean_secs",
            "useless_escalation_percent",
        ],
        lines: vec![Line {
            name: name.to_owned(),
            candidate: Some(candidate),
            points: curve.iter().map(|point| [point.cost_ratio * 100.0, loss(point.accuracy)]).collect(),
            details: curve.iter().map(details).collect(),
        }],
    }
}

/// Every candidate that was compared, a line each; a click on one looks at it.
pub(super) fn all_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document) {
    let compared: Vec<(&Run, &Comparison)> =
        document.runs.iter().filter_map(|run| Some((run, run.comparison.as_deref()?))).collect();
    if compared.len() < 2 {
        return;
    }
    let points: Vec<ParetoPoint> = compared.iter().map(|(_, comparison)| point_of(comparison)).collect();
    let front = pareto_front(&points);
    let card = card_ui(ui, |ui| {
        section_with_ui(ui, "All candidates", |ui| {
            caption_ui(ui, "differences in points with 95 % intervals, paired with the original");
        });
        Grid::new("all candidates").num_columns(8).striped(true).spacing(vec2(space::L, space::XS)).show(ui, |ui| {
            let heads = ["candidate", "smaller", "KLD, nats", "accuracy", "worst slice", "decode", "front", "gates"];
            for (index, head) in heads.iter().enumerate() {
                head_ui(ui, head, (1..=5).contains(&index));
            }
            ui.end_row();
            for ((run, comparison), &is_on_front) in compared.iter().zip(&front) {
                if quiet_button_ui(ui, &run.name).on_hover_text("Look at this candidate").clicked() {
                    cx.send(Command::FocusRun(Some(run.id)));
                }
                let dash = || "–".to_owned();
                figure_ui(ui, format!("{:.2}×", comparison.size_ratio));
                let distance = comparison.text.as_ref().and_then(|text| text.distance.as_ref());
                let kld = distance.map(|distance| {
                    number_with_interval(distance.kld_mean, 1.96 * distance.kld_mean_stderr, "").text()
                });
                figure_ui(ui, kld.unwrap_or_else(dash));
                let overall = comparison.overall.as_ref().map(|overall| {
                    number_with_interval(overall.difference * 100.0, overall.margin() * 100.0, "").text()
                });
                figure_ui(ui, overall.unwrap_or_else(dash));
                let worst = comparison.slices.iter().min_by(|a, b| a.paired.difference.total_cmp(&b.paired.difference));
                let response = figure_ui(
                    ui,
                    worst.map_or_else(dash, |slice| units::minus(&format!("{:.1}", slice.paired.difference * 100.0))),
                );
                if let Some(worst) = worst {
                    response.on_hover_text(worst.name());
                }
                figure_ui(ui, comparison.decode_speed_ratio.map_or_else(dash, |ratio| format!("{ratio:.2}×")));
                ui.label(Type::Small.text(if is_on_front { "on it" } else { "" }));
                match comparison.verdict() {
                    Some(verdict) => pill_ui(ui, "", compare_data::state(verdict)),
                    None => caption_ui(ui, "none"),
                };
                ui.end_row();
            }
        });
    });
    offer_table_ui(ui, &card.response, "All candidates", || {
        let named = compared.iter().map(|(run, comparison)| (run.name.as_str(), *comparison));
        Ok(compare_tables::candidates(named.zip(front)))
    });
}

fn point_of(comparison: &Comparison) -> ParetoPoint {
    ParetoPoint {
        file_bytes: comparison.file_bytes,
        accuracy: comparison.overall.as_ref().map(|overall| overall.candidate_accuracy),
        speed: comparison.decode_speed_ratio,
    }
}
