//! Parts of the comparison: the items cut in other ways, calibration, the radar with its
//! minimum, and the two texts of a flip side by side.

use eframe::egui::{Align, Grid, Label, Layout, ScrollArea, Sense, Ui, vec2};

use super::common::{caption_ui, head_ui};
use super::compare_data;
use super::compare_tables;
use crate::app::plots::export::offer_table_ui;
use crate::app::plots::lines::{Lines, lines_ui};
use crate::app::plots::radar::{Radar, radar_ui};
use crate::app::plots::slices::{Slices, slices_ui};
use crate::app::theme::{Type, UiTokens as _, space};
use crate::app::widgets::{
    KeyValue, card_ui, key_values_ui, quiet_button_ui, section_ui, section_with_ui, segments_ui,
};
use crate::engine::comparison::speculation::speculation_of;
use crate::engine::comparison::{Comparison, Flip};
use crate::engine::units;
use crate::workbench::{Document, Run};

/// Shaped data of the parts, made anew when the comparison changes.
#[derive(Default)]
pub(super) struct Parts {
    views: Vec<(String, Slices)>,
    view: usize,
    reliability: Option<Lines>,
    kld_over: [Option<Lines>; 3],
    kld_axis: usize,
    radar: Option<Radar>,
}

impl Parts {
    /// Shapes a comparison.
    pub fn update(&mut self, comparison: Option<&Comparison>, name: &str, candidate: usize) {
        let view = self.view;
        *self = Self { kld_axis: self.kld_axis, ..Self::default() };
        let Some(comparison) = comparison else { return };
        self.views = comparison
            .views
            .iter()
            .map(|view| (view.by.clone(), compare_data::view_slices(comparison, view, name, candidate)))
            .collect();
        self.view = view.min(self.views.len().saturating_sub(1));
        self.reliability = compare_data::reliability(comparison, candidate);
        let distance = comparison.text.as_ref().and_then(|text| text.distance.as_ref());
        self.kld_over = distance.map(|distance| compare_data::kld_over(distance, name, candidate)).unwrap_or_default();
        self.radar = compare_data::radar(comparison, candidate);
    }

    /// The items by prompt length, by rare tokens, by each field.
    pub fn views_ui(&mut self, ui: &mut Ui) {
        if self.views.is_empty() {
            return;
        }
        card_ui(ui, |ui| {
            section_with_ui(ui, "The same items cut otherwise", |ui| {
                let names: Vec<&str> = self.views.iter().map(|(by, _)| by.as_str()).collect();
                segments_ui(ui, "Cut items by", &names, &mut self.view);
            });
            if let Some((_, slices)) = self.views.get(self.view) {
                slices_ui(ui, slices);
            }
        });
    }

    /// Calibration, KLD over position, written texts and the radar.
    pub fn figures_ui(&mut self, ui: &mut Ui, comparison: &Comparison) {
        if ui.available_width() > 680.0 {
            ui.columns(2, |columns| {
                self.radar_ui(&mut columns[0]);
                written_ui(&mut columns[0], comparison);
                self.reliability_ui(&mut columns[1], comparison);
                self.kld_over_ui(&mut columns[1]);
            });
        } else {
            self.radar_ui(ui);
            written_ui(ui, comparison);
            self.reliability_ui(ui, comparison);
            self.kld_over_ui(ui);
        }
    }

    fn radar_ui(&self, ui: &mut Ui) {
        let Some(radar) = &self.radar else { return };
        card_ui(ui, |ui| {
            section_with_ui(ui, "Beside the original", |ui| {
                caption_ui(ui, "the ring is the original, further out is better");
            });
            radar_ui(ui, radar, 260.0);
            if let Some(least) = radar.least() {
                caption_ui(ui, format!("the least: {}", least.words));
            }
        });
    }

    fn reliability_ui(&self, ui: &mut Ui, comparison: &Comparison) {
        let Some(lines) = &self.reliability else { return };
        card_ui(ui, |ui| {
            section_ui(ui, "Calibration");
            lines_ui(ui, lines, 220.0);
            let ece = |reliability: &Option<crate::engine::evaluation::Reliability>| {
                reliability.as_ref().map_or_else(|| "–".to_owned(), |one| format!("{:.1}", one.ece * 100.0))
            };
            let (before, after) = (ece(&comparison.baseline_reliability), ece(&comparison.candidate_reliability));
            caption_ui(
                ui,
                format!(
                    "expected calibration error {before} points, then {after}; below the line is too sure. Bars: 95 % intervals, \
                     and at the bottom how the items are spread"
                ),
            );
        });
    }

    fn kld_over_ui(&mut self, ui: &mut Ui) {
        if self.kld_over.iter().all(Option::is_none) {
            return;
        }
        card_ui(ui, |ui| {
            section_with_ui(ui, "KLD over", |ui| {
                segments_ui(ui, "KLD over", &compare_data::KLD_OVER, &mut self.kld_axis);
            });
            match self.kld_over.get(self.kld_axis).and_then(Option::as_ref) {
                Some(lines) => {
                    lines_ui(ui, lines, 180.0);
                }
                None => {
                    caption_ui(ui, "All tokens lie in one place here");
                }
            }
        });
    }
}

fn written_ui(ui: &mut Ui, comparison: &Comparison) {
    let (Some(written), own) = (&comparison.written, &comparison.candidate_written) else { return };
    card_ui(ui, |ui| {
        section_ui(ui, "Written texts");
        let percent = |share: f64| format!("{:.1}", share * 100.0);
        let mut lines = vec![KeyValue::new("the same to the last token", percent(written.identical_fraction), "%")];
        if let Some(median) = written.first_divergence_median {
            lines.push(KeyValue::new("tokens before the first different one", units::significant(median), ""));
        }
        lines.push(KeyValue::new("length over the original's", format!("{:.2}", written.length_ratio), "×"));
        if let Some(own) = own {
            lines.push(KeyValue::new("not ended", percent(own.end_of_text_failure_fraction), "%"));
            lines.push(KeyValue::new("repeated 4-grams", percent(own.repeated_fraction), "%"));
        }
        key_values_ui(ui, &lines);
    });
}

/// What the candidate would bring as the draft of speculative decoding; predicted, nothing is decoded for it.
pub(super) fn draft_ui(ui: &mut Ui, comparison: &Comparison, run: &Run) {
    let distance = comparison.text.as_ref().and_then(|text| text.distance.as_ref());
    let speeds = run.evaluation.as_ref().and_then(|own| own.speed.as_ref().zip(own.baseline.as_ref()?.speed.as_ref()));
    let (Some(distance), Some((draft, target))) = (distance, speeds) else { return };
    let found = speculation_of(distance.acceptance_mean, distance.same_top_fraction, draft, target);
    let title = "As a draft for the original (predicted)";
    let card = card_ui(ui, |ui| {
        section_ui(ui, title);
        let percent = |share: f64| format!("{:.1}", share * 100.0);
        let hint = "Mean overlap of both next-token distributions: Σ min(p, q)";
        let check = match found.is_check_measured {
            true => "Measured: the original reads so many tokens at once",
            false => "Not measured, taken for one step as in Leviathan's formula",
        };
        let best = |length: usize, speed_up: f64| match length {
            0 => "none is faster".to_owned(),
            _ => format!("{length} tokens, {speed_up:.2}×"),
        };
        let lines = [
            KeyValue::new("accepted, sampled", percent(found.acceptance), "%").hint(hint),
            KeyValue::new("accepted, greedy", percent(found.greedy_acceptance), "%"),
            KeyValue::new("a draft step over one of the original's", format!("{:.2}", found.step_cost), "×"),
            KeyValue::new("checking 4 drafts over one step", format!("{:.2}", found.check_cost(4)), "×").hint(check),
            KeyValue::new("best draft, sampled", best(found.best_draft, found.best_speed_up), ""),
            KeyValue::new("best draft, greedy", best(found.best_greedy_draft, found.best_greedy_speed_up), ""),
        ];
        key_values_ui(ui, &lines);
    });
    offer_table_ui(ui, &card.response, title, || Ok(compare_tables::drafts(&found)));
}

/// What an item asks.
pub(super) struct Asked {
    id: String,
    /// None where the tasks have no such item, or it cannot be read.
    prompt: Option<String>,
}

impl Asked {
    /// Reads what the item `open` asks from the document's tasks, where that was not read before.
    pub fn read(asked: &mut Option<Self>, open: Option<&str>, document: &Document) {
        if asked.as_ref().map(|asked| asked.id.as_str()) == open {
            return;
        }
        *asked = open.map(|id| {
            let tasks = document.tasks.as_ref();
            let item = tasks.and_then(|tasks| tasks.items.iter().flatten().find(|item| item.id == id));
            Self { id: id.to_owned(), prompt: item.map(|item| item.kind.prompt().to_owned()) }
        });
    }
}

/// Height that a prompt takes before it is scrolled.
const PROMPT_HEIGHT: f32 = 140.0;

/// Changed answers in rows; the one that was clicked shows both texts side by side.
pub(super) fn flip_list_ui(ui: &mut Ui, flips: &[Flip], open: &mut Option<String>, asked: Option<&Asked>) {
    let (id_width, slice_width) = (100.0, 130.0);
    let width = ((ui.available_width() - id_width - slice_width - 3.0 * space::M) / 2.0).max(100.0);
    Grid::new("flips").num_columns(4).striped(true).spacing(vec2(space::M, space::XS)).show(ui, |ui| {
        for head in ["item", "slice", "original", "candidate"] {
            head_ui(ui, head, false);
        }
        ui.end_row();
        for flip in flips {
            let tokens = ui.tokens();
            let cell = |ui: &mut Ui, text: &str, width: f32, color| {
                ui.scope(|ui| {
                    ui.set_width(width);
                    let label = Label::new(Type::Small.text(text).color(color)).truncate().sense(Sense::click());
                    ui.add(label).on_hover_text("Show both texts").clicked()
                })
                .inner
            };
            let (before, after) = if flip.gained { (tokens.weak, tokens.pass) } else { (tokens.text, tokens.fail) };
            let sign = if flip.gained { "gained" } else { "lost" };
            let clicked = [
                cell(ui, &flip.id, id_width, tokens.weak),
                cell(ui, &format!("{}/{}", flip.task, flip.slice), slice_width, tokens.text),
                cell(ui, flip.baseline_prediction.trim(), width, before),
                cell(ui, &format!("{sign}  {}", flip.candidate_prediction.trim()), width, after),
            ];
            ui.end_row();
            if clicked.contains(&true) {
                *open = (open.as_ref() != Some(&flip.id)).then(|| flip.id.clone());
            }
        }
    });
    if let Some(flip) = flips.iter().find(|flip| open.as_ref() == Some(&flip.id))
        && side_by_side_ui(
            ui,
            flip,
            asked.filter(|asked| asked.id == flip.id).and_then(|asked| asked.prompt.as_deref()),
        )
    {
        *open = None;
    }
}

/// Both models' texts beside each other under what was asked and what would have been right; true if it shall be closed.
fn side_by_side_ui(ui: &mut Ui, flip: &Flip, prompt: Option<&str>) -> bool {
    let mut is_closed = false;
    card_ui(ui, |ui| {
        section_with_ui(ui, &format!("Item {}", flip.id), |ui| is_closed = quiet_button_ui(ui, "Close").clicked());
        if let Some(prompt) = prompt {
            ScrollArea::vertical().id_salt("prompt").max_height(PROMPT_HEIGHT).show(ui, |ui| {
                ui.add(Label::new(Type::Mono.text(prompt.trim())).wrap());
            });
        }
        if !flip.wanted.is_empty() {
            caption_ui(ui, format!("wanted: {}", flip.wanted.trim()));
        }
        ui.columns(2, |columns| {
            let texts = [
                ("original", &flip.baseline_prediction, !flip.gained),
                ("candidate", &flip.candidate_prediction, flip.gained),
            ];
            for (column, (whose, text, is_right)) in columns.iter_mut().zip(texts) {
                column.with_layout(Layout::top_down_justified(Align::Min), |ui| {
                    let tokens = ui.tokens();
                    let (word, color) = if is_right { ("right", tokens.pass) } else { ("wrong", tokens.fail) };
                    ui.label(Type::SmallStrong.text(format!("{whose}, {word}")).color(color));
                    let text = Some(text.trim()).filter(|text| !text.is_empty()).unwrap_or("(nothing)");
                    ui.add(Label::new(Type::Mono.text(text)).wrap());
                });
            }
        });
    });
    is_closed
}
