//! What the model sees while it is measured: the calibration text, how it is mixed and what it shares
//! with the evaluation text; and the inputs of every linear, channel by channel.

use std::sync::Arc;

use eframe::egui::{Button, Ui};

use super::common::{self, action_button_ui, caption_ui, figure_table_ui, figure_ui};
use crate::app::context::Cx;
use crate::app::plots::channels::{Channels, channels_ui};
use crate::app::theme::{Type, space};
use crate::app::widgets::{Level, Notice, card_ui, empty_ui, notice_ui, section_ui, section_with_ui, tag_ui};
use crate::engine::calibration::{Activations, InputActivations, InputFigures};
use crate::engine::units;
use crate::workbench::{Action, CalibrationInfo, Command, Document, JobKind, SelectMode};

/// Height of the table with its head.
const TABLE_HEIGHT: f32 = 240.0;

/// A column's head and its explanation.
const HEADS: [(&str, &str); 6] = [
    ("input of", "The linears that multiply it"),
    ("rms", "Root mean square over tokens and channels"),
    ("largest", "Largest magnitude of any token"),
    ("channel", "The channel of the largest magnitude"),
    ("outliers", "Channels whose largest magnitude is more than six times the root mean square"),
    ("entropy, %", "Of the squared input over channels: 100 where all are alike, less where few dominate"),
];

/// What the cards remember between frames.
#[derive(Default)]
pub(super) struct Memory {
    activations: Option<Arc<Activations>>,
    figures: Vec<InputFigures>,
    /// Ranges of the channels of the input with this index.
    strip: Option<(usize, Vec<(f32, f32)>)>,
}

/// Paints both cards.
pub(super) fn inputs_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, memory: &mut Memory) {
    card_ui(ui, |ui| calibration_ui(ui, cx, document));
    card_ui(ui, |ui| activations_ui(ui, cx, document, memory));
}

fn calibration_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document) {
    section_ui(ui, "Calibration text");
    if !cx.is_presenting() {
        ui.horizontal_wrapped(|ui| {
            action_button_ui(ui, cx, Action::ChooseCalibration, document.calibration_text.is_none());
        });
    }
    let Some(path) = &document.calibration_text else {
        caption_ui(ui, "None is chosen: sensitivity is measured on the text that candidates are evaluated on");
        return;
    };
    ui.label(Type::Mono.text(path.file_name().unwrap_or(path.as_os_str()).to_string_lossy()));
    match &document.calibration_info {
        Some(info) => info_ui(ui, info),
        None => drop(caption_ui(ui, "Not looked at yet")),
    }
}

fn info_ui(ui: &mut Ui, info: &CalibrationInfo) {
    let total: usize = info.mixture.iter().map(|share| share.tokens).sum();
    let documents: usize = info.mixture.iter().map(|share| share.documents).sum();
    let sum = format!("{documents} documents, {} tokens", units::count(total as u64));
    caption_ui(ui, sum);
    if info.mixture.iter().any(|share| !share.domain.is_empty()) {
        ui.horizontal_wrapped(|ui| {
            for share in &info.mixture {
                let name = if share.domain.is_empty() { "no domain" } else { &share.domain };
                let percent = share.tokens as f64 / total.max(1) as f64 * 100.0;
                tag_ui(ui, &format!("{name} {percent:.1} %"))
                    .on_hover_text(format!("{} documents, {} tokens", share.documents, share.tokens));
            }
        });
    } else {
        caption_ui(ui, "It names no domains: a JSONL with text and domain shows how it is mixed");
    }
    match &info.overlap {
        Some(overlap) => match overlap.warning() {
            Some(warning) => {
                notice_ui(ui, &Notice { level: Level::Warning, text: &warning, detail: "", action: None });
            }
            None => drop(caption_ui(
                ui,
                format!(
                    "{:.1} % of the evaluation text's runs of {} tokens are in it too",
                    overlap.share() * 100.0,
                    overlap.ngram
                ),
            )),
        },
        None => drop(caption_ui(ui, "There is no evaluation text to compare it with")),
    }
}

fn activations_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, memory: &mut Memory) {
    section_with_ui(ui, "Inputs of linears", |ui| {
        if document.activations.is_some() {
            tag_ui(ui, "predicted");
        }
    });
    let Some(activations) = &document.activations else {
        if cx.bench.jobs().any(|job| job.kind == JobKind::OutputError) {
            empty_ui(ui, "Being collected", "The model reads its calibration text", None);
            return;
        }
        if !cx.is_presenting() {
            action_button_ui(ui, cx, Action::MeasureOutput, false);
        }
        caption_ui(ui, "Predicting output error shows how large each channel of every input gets");
        return;
    };
    memory.update(activations);
    let share = activations.distinct_tokens as f64 / activations.vocab.max(1) as f64 * 100.0;
    caption_ui(
        ui,
        format!(
            "{} tokens of {}, {} different ones: {share:.1} % of the vocabulary",
            units::count(activations.tokens),
            activations.text,
            activations.distinct_tokens
        ),
    );
    for warning in activations.warnings() {
        notice_ui(ui, &Notice { level: Level::Warning, text: &warning, detail: "", action: None });
    }
    let selected = selected_input(cx, document, activations);
    if let Some((index, ranges)) = memory.strip_of(activations, selected.unwrap_or(0)) {
        let name = name_of(&activations.inputs[index]);
        channels_ui(ui, &Channels { name: &name, what: "input channel", ranges }, 92.0);
    }
    table_ui(ui, cx, document, activations, &memory.figures, selected);
}

impl Memory {
    fn update(&mut self, activations: &Arc<Activations>) {
        if common::is_same(self.activations.as_ref(), Some(activations)) {
            return;
        }
        self.figures = activations.inputs.iter().map(|input| input.figures(activations.tokens)).collect();
        self.strip = None;
        self.activations = Some(activations.clone());
    }

    /// Largest magnitudes of an input's channels as ranges around zero.
    fn strip_of(&mut self, activations: &Activations, index: usize) -> Option<(usize, &[(f32, f32)])> {
        if self.strip.as_ref().is_none_or(|(own, _)| *own != index) {
            let largest = &activations.inputs.get(index)?.largest;
            self.strip = Some((index, largest.iter().map(|value| (-value, *value)).collect()));
        }
        self.strip.as_ref().map(|(own, ranges)| (*own, ranges.as_slice()))
    }
}

/// The input of the tensor that is selected.
fn selected_input(cx: &Cx<'_>, document: &Document, activations: &Activations) -> Option<usize> {
    let tensor = document.checkpoint.tensors.get(cx.state().selection.focus?)?;
    let input = activations.input(tensor.layer, tensor.role)?;
    activations.inputs.iter().position(|own| std::ptr::eq(own, input))
}

/// An input in words: `layer 3 q, k, v`.
fn name_of(input: &InputActivations) -> String {
    let roles: Vec<&str> = input.roles.iter().map(|role| role.name()).collect();
    match input.layer {
        Some(layer) => format!("layer {layer} {}", roles.join(", ")),
        None => roles.join(", "),
    }
}

fn table_ui(
    ui: &mut Ui,
    cx: &mut Cx<'_>,
    document: &Document,
    activations: &Activations,
    figures: &[InputFigures],
    selected: Option<usize>,
) {
    ui.push_id("inputs table", |ui| {
        figure_table_ui(ui, &HEADS, [140.0, 88.0], TABLE_HEIGHT).body(|body| {
            body.rows(space::ROW_COMPACT, figures.len(), |mut line| {
                let index = line.index();
                let (input, row) = (&activations.inputs[index], &figures[index]);
                line.col(|ui| {
                    let button = Button::selectable(selected == Some(index), name_of(input)).truncate();
                    if ui.add(button).clicked()
                        && let Some(tensor) =
                            document.checkpoint.tensors.iter().position(|tensor| {
                                tensor.layer == input.layer && input.roles.first() == Some(&tensor.role)
                            })
                    {
                        cx.send(Command::Select { tensor, mode: SelectMode::Replace });
                    }
                });
                for text in [
                    units::significant(row.rms),
                    units::significant(row.largest),
                    row.largest_channel.to_string(),
                    row.outliers.to_string(),
                    format!("{:.1}", row.entropy_share * 100.0),
                ] {
                    line.col(|ui| drop(figure_ui(ui, text)));
                }
            });
        });
    });
    caption_ui(ui, "Select a line, or one of its tensors in the map, to see its channels above");
}
