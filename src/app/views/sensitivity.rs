//! The sensitivity view: how much each tensor minds each format, what layers and heads are worth, and
//! what the model sees while it is measured. Three pages; this file has what they share.

use std::collections::BTreeSet;

use eframe::egui::{Checkbox, ComboBox, DragValue, PopupCloseBehavior, ScrollArea, Ui};

use super::common::{action_button_ui, caption_ui, combo_ui, no_document_ui};
use super::importance::importance_ui;
use super::{sensitivity_inputs, sensitivity_map, sensitivity_units};
use crate::app::context::Cx;
use crate::app::theme::{UiTokens as _, space};
use crate::app::widgets::{empty_ui, primary_button_ui, segments_ui, tag_ui};
use crate::engine::format;
use crate::engine::sensitivity::kld::{self, Granularity};
use crate::engine::sensitivity::{self, Metric, SensitivityTable};
use crate::workbench::{Action, Command, Document, JobKind, KldRequest, MeasureOn, SelectMode};

/// Fewer tokens than this say little about rare events.
const LEAST_TOKENS: usize = 8192;

/// What is looked at.
const PAGES: [&str; 3] = ["Tensors", "Layers", "Heads"];

/// What the view remembers between frames.
pub struct Memory {
    page: usize,
    metric: usize,
    on: usize,
    kld_formats: BTreeSet<&'static str>,
    kld_tokens: usize,
    stops_early: bool,
    map: sensitivity_map::Memory,
    inputs: sensitivity_inputs::Memory,
    layers: sensitivity_units::Memory,
    heads: sensitivity_units::Memory,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            page: 0,
            metric: 0,
            on: 0,
            kld_formats: KldRequest::default().formats.into_iter().collect(),
            kld_tokens: LEAST_TOKENS,
            stops_early: false,
            map: Default::default(),
            inputs: Default::default(),
            layers: Default::default(),
            heads: Default::default(),
        }
    }
}

/// Paints the view.
pub fn sensitivity_ui(ui: &mut Ui, cx: &mut Cx<'_>) {
    let bench = cx.bench;
    let Some(document) = &bench.state().document else {
        no_document_ui(ui, cx, "Open a model to measure how much each tensor minds being compressed");
        return;
    };
    let mut memory = std::mem::take(&mut cx.memory.sensitivity);
    ScrollArea::vertical().id_salt("sensitivity").auto_shrink(false).show(ui, |ui| {
        ui.spacing_mut().item_spacing.y = space::S;
        segments_ui(ui, "Show", &PAGES, &mut memory.page);
        match memory.page {
            0 => {
                tensors_ui(ui, cx, document, &mut memory);
                importance_ui(ui, cx, document);
                sensitivity_inputs::inputs_ui(ui, cx, document, &mut memory.inputs);
            }
            1 => {
                let format = memory.map.format().to_owned();
                sensitivity_units::layers_ui(ui, cx, document, &mut memory.layers, &format, &memory.kld_formats);
            }
            _ => sensitivity_units::heads_ui(ui, cx, document, &mut memory.heads),
        }
    });
    cx.memory.sensitivity = memory;
}

/// Metrics of single tensors, cheapest first.
pub(super) fn metrics() -> Vec<&'static Metric> {
    sensitivity::metrics().iter().copied().filter(|metric| metric.id != kld::LAYER_METRIC.id).collect()
}

/// The job that measures a metric and the action that starts it.
fn measured_by(metric: &Metric) -> Option<(JobKind, Action)> {
    match metric.id {
        "weight" => Some((JobKind::WeightError, Action::MeasureWeightError)),
        "output" => Some((JobKind::OutputError, Action::MeasureOutput)),
        "fisher" => Some((JobKind::Fisher, Action::MeasureFisher)),
        "kld" => Some((JobKind::Kld, Action::MeasureKld)),
        _ => None,
    }
}

fn tensors_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, memory: &mut Memory) {
    let metrics = metrics();
    let metric = metrics[memory.metric.min(metrics.len() - 1)];
    let request = memory.request();
    let key = if metric.id == kld::METRIC.id { request.key() } else { metric.id };
    let table = document.sensitivity.get(key);
    memory.map.update(document, metric, table);
    toolbar_ui(ui, cx, memory, (&metrics, metric), table.map(|table| table.as_ref()));
    match table {
        Some(_) => sensitivity_map::map_ui(ui, cx, document, &mut memory.map, metric),
        None => missing_ui(ui, cx, memory, metric),
    }
}

fn toolbar_ui(
    ui: &mut Ui,
    cx: &mut Cx<'_>,
    memory: &mut Memory,
    (metrics, metric): (&[&'static Metric], &Metric),
    table: Option<&SensitivityTable>,
) {
    ui.horizontal_wrapped(|ui| {
        let titles: Vec<&str> = metrics.iter().map(|metric| metric.title).collect();
        segments_ui(ui, "Metric", &titles, &mut memory.metric);
        if metric.id == kld::METRIC.id {
            segments_ui(ui, "Measured on", &["Text", "Tasks"], &mut memory.on);
        }
        if let Some(table) = table {
            sensitivity_map::choices_ui(ui, &mut memory.map, table);
        }
        tag_ui(ui, metric.label.name()).on_hover_text(metric.description);
        if cx.is_presenting() {
            return;
        }
        ui.add_space(space::M);
        if metric.id == kld::METRIC.id {
            kld_controls_ui(ui, cx, memory);
        } else if let (Some((_, action)), true) = (measured_by(metric), table.is_some()) {
            // Without a table the page itself offers it.
            action_button_ui(ui, cx, action, false);
        }
    });
}

fn kld_controls_ui(ui: &mut Ui, cx: &mut Cx<'_>, memory: &mut Memory) {
    formats_ui(ui, &mut memory.kld_formats);
    let tokens = DragValue::new(&mut memory.kld_tokens).range(LEAST_TOKENS..=1_048_576).speed(512).suffix(" tokens");
    ui.add(tokens).accessible_name("Tokens to measure over");
    ui.add(Checkbox::new(&mut memory.stops_early, "end at ±10 %"))
        .on_hover_text("A cell ends once its standard error is a tenth of its value: faster, over fewer tokens");
    let has_tasks = cx.document().is_some_and(|document| document.tasks.is_some());
    let reason = (cx.bench.unavailable(Action::MeasureKld))
        .or_else(|| memory.kld_formats.is_empty().then_some("Choose a format to measure"))
        .or_else(|| (memory.on == 1 && !has_tasks).then_some("Choose tasks first"));
    let button = primary_button_ui(ui, "Measure KLD", reason.is_none());
    let button = match reason {
        Some(reason) => button.on_disabled_hover_text(reason),
        None => button.on_hover_text("Cells that are measured already are not measured again"),
    };
    if button.clicked() {
        cx.send(Command::MeasureKld(memory.request()));
    }
}

/// Boxes to tick formats with.
fn formats_ui(ui: &mut Ui, chosen: &mut BTreeSet<&'static str>) {
    let text = format!("{} formats", chosen.len());
    // The list stays open while boxes are ticked.
    let combo = ComboBox::from_id_salt("Formats to measure")
        .selected_text(text)
        .width(96.0)
        .close_behavior(PopupCloseBehavior::CloseOnClickOutside);
    let output = combo.show_ui(ui, |ui| {
        for format in format::quantized() {
            let mut is_chosen = chosen.contains(format.id());
            if ui.add(Checkbox::new(&mut is_chosen, format.id())).changed() {
                if is_chosen {
                    chosen.insert(format.id());
                } else {
                    chosen.remove(format.id());
                }
            }
        }
    });
    output.response.accessible_name("Formats to measure");
}

fn missing_ui(ui: &mut Ui, cx: &mut Cx<'_>, memory: &Memory, metric: &Metric) {
    let Some((kind, action)) = measured_by(metric) else { return };
    if cx.bench.jobs().any(|job| job.kind == kind) {
        empty_ui(ui, "Being measured", "Tensors fill in as they are measured", None);
        return;
    }
    let is_by_task = metric.id == kld::METRIC.id && memory.on == 1;
    let has_tasks = cx.document().is_some_and(|document| document.tasks.is_some());
    let reason = cx.bench.unavailable(action).or_else(|| (is_by_task && !has_tasks).then_some("Choose tasks first"));
    let sentence = match reason {
        Some(reason) => format!("{}. {reason}", metric.description),
        None => metric.description.to_owned(),
    };
    let button = (reason.is_none() && !cx.is_presenting()).then(|| action.text());
    if empty_ui(ui, "Not measured yet", &sentence, button) {
        if metric.id == kld::METRIC.id {
            cx.send(Command::MeasureKld(memory.request()));
        } else {
            cx.act(action);
        }
    }
}

impl Memory {
    /// What the controls ask for.
    fn request(&self) -> KldRequest {
        // The registry's order, from most bits to fewest.
        let formats = format::quantized().map(|format| format.id()).filter(|id| self.kld_formats.contains(id));
        KldRequest {
            formats: formats.collect(),
            tokens: self.kld_tokens,
            granularity: Granularity::Tensor,
            on: if self.on == 1 { MeasureOn::Tasks } else { MeasureOn::Text },
            stops_early: self.stops_early,
        }
    }
}

/// A choice among the groups of a text; 0 is all tokens.
pub(super) fn group_ui(ui: &mut Ui, groups: &[sensitivity::Group], group: &mut usize) {
    if groups.is_empty() {
        *group = 0;
        return;
    }
    *group = (*group).min(groups.len());
    let name = |index: usize| if index == 0 { "all tokens" } else { groups[index - 1].name.as_str() };
    let chosen = combo_ui(ui, "Group of the text", name(*group), 132.0, |ui| {
        let mut chosen = None;
        for index in 0..=groups.len() {
            let tokens = if index == 0 { None } else { Some(groups[index - 1].tokens) };
            let text = match tokens {
                Some(tokens) => format!("{} · {tokens} tokens", name(index)),
                None => name(index).to_owned(),
            };
            if ui.selectable_label(*group == index, text).clicked() {
                chosen = Some(index);
            }
        }
        chosen
    });
    if let Some(chosen) = chosen {
        *group = chosen;
    }
}

/// What was measured on, in a line; marked where it is not the text that is chosen now.
pub(super) fn basis_ui(ui: &mut Ui, document: &Document, basis: &sensitivity::Basis) {
    let now = document.sensitivity_text();
    let name = now.as_ref().and_then(|path| path.file_stem()).map(|stem| stem.to_string_lossy().into_owned());
    // A text and the JSONL of its documents have the same stem.
    let stem = std::path::Path::new(&basis.name).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let tasks = document.tasks.as_ref().and_then(|tasks| tasks.path.file_stem());
    let is_tasks = tasks.is_some_and(|own| Some(own.to_string_lossy().into_owned()) == stem);
    let text = format!("Measured on {} tokens of {}", basis.tokens, basis.name);
    if name == stem || is_tasks {
        caption_ui(ui, text);
    } else {
        let color = ui.tokens().undecided;
        ui.label(crate::app::theme::Type::Small.text(format!("{text}; another text is chosen now")).color(color));
    }
}

/// How a click changes the selection.
pub(super) fn select_mode(ui: &Ui) -> SelectMode {
    if ui.input(|input| input.modifiers.command) { SelectMode::Toggle } else { SelectMode::Replace }
}
