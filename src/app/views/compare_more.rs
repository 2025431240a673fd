//! More of the comparison: all candidates in one table, the scorecard with its minimum, and the cascade.

use eframe::egui::{Grid, Ui, vec2};

use super::common::{caption_ui, figure_ui, head_ui};
use super::compare_data;
use super::compare_tables;
use crate::app::context::Cx;
use crate::app::plots::export::offer_table_ui;
use crate::app::plots::lines::{Line, Lines, Mark, lines_ui};
use crate::app::plots::slices::{signed, with_interval};
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
    cascade: Option<Planned>,
}

/// A cascade with its curve.
struct Planned {
    found: Cascade,
    lines: Lines,
    /// Seconds of an item by the original alone.
    baseline_secs: f64,
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
        self.cascade = CascadeOptions::priced(baseline, own, None, 1.0, keep).and_then(|options| {
            let found = cascade(baseline, own, None, &options).ok()?;
            let lines = curve(&found, &comparison.candidate.name, candidate);
            Some(Planned { found, lines, baseline_secs: options.baseline_secs })
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
        let Some(Planned { found, lines, baseline_secs }) = &self.cascade else { return };
        card_ui(ui, |ui| {
            section_with_ui(ui, "Candidate first, original when unsure", |ui| {
                caption_ui(ui, format!("on {} items that the threshold was not chosen on", found.reported_on));
            });
            lines_ui(ui, lines, 200.0);
            let percent = |share: f64| format!("{:.1}", share * 100.0);
            let useless = percent(found.reported.useless_escalation_fraction);
            let hint = format!("{useless} % of all items go on without becoming right");
            let time = format!(
                "{}, the original alone {}",
                units::duration(found.reported.mean_secs),
                units::duration(*baseline_secs)
            );
            let key_values = [
                KeyValue::new("least confidence to keep an answer", format!("{:.4}", found.chosen.threshold), ""),
                KeyValue::new("accuracy", percent(found.reported.accuracy), "%"),
                KeyValue::new("accuracy of the original alone", percent(found.baseline_accuracy), "%"),
                KeyValue::new("items that go on to the original", percent(found.reported.escalated_fraction), "%")
                    .hint(&hint),
                KeyValue::new("time of an item", time, ""),
                KeyValue::new("cost", saved(found.saving), "").hint("Cost is time, by the measured speeds"),
            ];
            key_values_ui(ui, &key_values);
        });
    }
}

/// What a cascade saves of the original's cost, in words.
fn saved(saving: f64) -> String {
    if saving > 5e-4 { format!("{:.1} % saved", saving * 100.0) } else { "the original alone is cheaper".to_owned() }
}

/// What is lost or gained against the original, over the cost, with the threshold that was chosen and both models
/// alone.
fn curve(found: &Cascade, name: &str, candidate: usize) -> Lines {
    let loss = |accuracy: f64| (found.baseline_accuracy - accuracy) * 100.0;
    let at = |point: &CascadePoint| [point.cost_ratio * 100.0, loss(point.accuracy)];
    let mark = |name: &str, candidate, at| Mark { name: name.to_owned(), candidate, at };
    // The curve begins where nothing goes on.
    let alone = found.curve.first().map(|point| mark("the candidate alone", Some(candidate), at(point)));
    let marks = [
        Some(mark("the chosen threshold", Some(candidate), at(&found.reported))),
        Some(mark("the original alone", None, [100.0, 0.0])),
        alone,
    ];
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
        y: "accuracy lost, points".to_owned(),
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
            points: curve.iter().map(|point| at(point)).collect(),
            details: curve.iter().map(details).collect(),
            ..Line::default()
        }],
        marks: marks.into_iter().flatten().collect(),
        ..Lines::default()
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
            let heads =
                ["candidate", "smaller", "KLD, nats", "accuracy, points", "worst slice", "decode", "front", "gates"];
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
                    with_interval(overall.difference * 100.0, overall.difference_interval.map(|end| end * 100.0))
                });
                figure_ui(ui, overall.unwrap_or_else(dash));
                let worst = comparison.slices.iter().min_by(|a, b| a.paired.difference.total_cmp(&b.paired.difference));
                let response = figure_ui(ui, worst.map_or_else(dash, |slice| signed(slice.paired.difference * 100.0)));
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

#[cfg(test)]
mod tests {
    use super::super::compare_data::tests::compared;
    use super::*;

    fn point(escalated_fraction: f64, accuracy: f64, cost_ratio: f64) -> CascadePoint {
        CascadePoint {
            threshold: escalated_fraction,
            escalated_fraction,
            accuracy,
            cost_ratio,
            mean_secs: cost_ratio,
            useless_escalation_fraction: 0.0,
        }
    }

    #[test]
    fn the_curve_keeps_gains_and_marks_both_models_and_the_choice() {
        let found = Cascade {
            chosen_on: 20,
            reported_on: 20,
            curve: vec![point(0.0, 0.5, 2.0), point(0.5, 1.0, 2.5), point(1.0, 0.75, 3.0)],
            chosen: point(0.5, 0.9, 2.4),
            reported: point(0.5, 1.0, 2.5),
            candidate_accuracy: 0.5,
            baseline_accuracy: 0.75,
            oracle_accuracy: 1.0,
            area: 0.8,
            saving: -1.5,
            signal: String::new(),
            note: None,
        };
        let lines = curve(&found, "small", 0);
        assert_eq!(lines.lines[0].points, [[200.0, 25.0], [250.0, -25.0], [300.0, 0.0]]);
        let marks: Vec<(&str, [f64; 2])> = lines.marks.iter().map(|mark| (mark.name.as_str(), mark.at)).collect();
        let expected = [
            ("the chosen threshold", [250.0, -25.0]),
            ("the original alone", [100.0, 0.0]),
            ("the candidate alone", [200.0, 25.0]),
        ];
        assert_eq!(marks, expected);
        assert_eq!(saved(found.saving), "the original alone is cheaper");
        assert_eq!(saved(0.125), "12.5 % saved");
    }

    #[test]
    fn without_speeds_there_is_no_cascade() {
        let (baseline, candidate, comparison) = compared();
        let mut more = More::default();
        more.update(Some((&comparison, &baseline, &candidate)), 0);
        assert!(more.cascade.is_none() && more.card.is_some());
    }
}
