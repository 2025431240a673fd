//! The sensitivity map: layers across and roles down under one metric and format, the error of the
//! selected tensor against bits, and the tensors that mind most.

use std::collections::BTreeSet;
use std::sync::Arc;

use eframe::egui::{
    Button, Checkbox, ComboBox, DragValue, Grid as Rows, Label, PopupCloseBehavior, ScrollArea, Ui, vec2,
};

use super::common::{self, Grid, action_button_ui, caption_ui, combo_ui, figure_ui, head_ui, no_document_ui};
use super::importance::importance_ui;
use crate::app::context::Cx;
use crate::app::plots::curve::{Curve, CurvePoint, curve_ui};
use crate::app::plots::heat_map::{Cell, Edge, HeatMap, Slot, heat_map_ui, height_for};
use crate::app::theme::{Type, UiTokens as _, space};
use crate::app::widgets::{card_ui, empty_ui, primary_button_ui, section_ui, section_with_ui, segments_ui, tag_ui};
use crate::engine::checkpoint::Checkpoint;
use crate::engine::format;
use crate::engine::plan::ResolvedPlan;
use crate::engine::sensitivity::{self, Metric, SensitivityTable};
use crate::engine::units;
use crate::workbench::{Action, Command, Document, JobKind, SelectMode};

/// Fewer tokens than this say little about rare events.
const LEAST_TOKENS: usize = 8192;
/// Tensors in the list of the most sensitive.
const RANKED: usize = 14;

/// What the view remembers between frames.
pub struct Memory {
    metric: usize,
    format: String,
    kld_formats: BTreeSet<&'static str>,
    kld_tokens: usize,
    checkpoint: Option<Arc<Checkpoint>>,
    table: Option<Arc<SensitivityTable>>,
    shaped_format: String,
    grid: Grid,
    map: Option<HeatMap>,
    ranked: Vec<Ranked>,
    agreement: Agreement,
    curve: Option<CurveKey>,
    curve_data: Option<Curve>,
}

/// Whether both metrics put the tensors in the same order, and what that was made of.
#[derive(Default)]
struct Agreement {
    tables: [Option<Arc<SensitivityTable>>; 2],
    format: String,
    /// Spearman's coefficient and the number of tensors.
    found: Option<(f64, usize)>,
}

/// What a curve was made of.
struct CurveKey {
    table: Arc<SensitivityTable>,
    resolved: Option<Arc<ResolvedPlan>>,
    tensor: usize,
}

/// A line of the list of the most sensitive tensors.
#[derive(Clone, Debug, PartialEq)]
struct Ranked {
    tensor: usize,
    name: String,
    value: f64,
    stderr: Option<f64>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            metric: 0,
            format: "q4_k".to_owned(),
            kld_formats: ["q8_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k"].into(),
            kld_tokens: LEAST_TOKENS,
            checkpoint: None,
            table: None,
            shaped_format: String::new(),
            grid: Grid::default(),
            map: None,
            ranked: Vec::new(),
            agreement: Agreement::default(),
            curve: None,
            curve_data: None,
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
    let metrics = shown(document);
    let metric = metrics[memory.metric.min(metrics.len() - 1)];
    let table = document.sensitivity.get(metric.id);
    memory.update(document, metric, table);
    ScrollArea::vertical().id_salt("sensitivity").auto_shrink(false).show(ui, |ui| {
        ui.spacing_mut().item_spacing.y = space::S;
        toolbar_ui(ui, cx, &mut memory, (&metrics, metric), table.map(Arc::as_ref));
        let Some(table) = table else {
            missing_ui(ui, cx, metric);
            importance_ui(ui, cx, document);
            return;
        };
        map_ui(ui, cx, document, &memory, metric);
        let is_wide = ui.available_width() > 640.0;
        if is_wide {
            ui.columns(2, |columns| {
                curve_card_ui(&mut columns[0], cx, document, &mut memory, metric, table);
                ranked_ui(&mut columns[1], cx, &memory, metric);
            });
        } else {
            curve_card_ui(ui, cx, document, &mut memory, metric, table);
            ranked_ui(ui, cx, &memory, metric);
        }
        importance_ui(ui, cx, document);
    });
    cx.memory.sensitivity = memory;
}

/// The job that measures a metric and the action that starts it; none where only the command line does.
fn measured_by(metric: &Metric) -> Option<(JobKind, Action)> {
    match metric.id {
        "weight" => Some((JobKind::WeightError, Action::MeasureWeightError)),
        "kld" => Some((JobKind::Kld, Action::MeasureKld)),
        _ => None,
    }
}

/// The metrics that can be measured here or are there already.
fn shown(document: &Document) -> Vec<&'static Metric> {
    let is_shown = |metric: &&Metric| measured_by(metric).is_some() || document.sensitivity.contains_key(metric.id);
    sensitivity::metrics().iter().copied().filter(is_shown).collect()
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
        if let Some(table) = table {
            let chosen = combo_ui(ui, "Format of the map", &memory.format, 84.0, |ui| {
                let mut chosen = None;
                for format in &table.formats {
                    if ui.selectable_label(*format == memory.format, format).clicked() {
                        chosen = Some(format.clone());
                    }
                }
                chosen
            });
            if let Some(format) = chosen {
                memory.format = format;
            }
        }
        tag_ui(ui, metric.label.name()).on_hover_text(metric.description);
        if cx.is_presenting() {
            return;
        }
        ui.add_space(space::M);
        if metric.id == "kld" {
            kld_controls_ui(ui, cx, memory);
        } else if let Some((_, action)) = measured_by(metric) {
            action_button_ui(ui, cx, action, false);
        }
    });
}

fn kld_controls_ui(ui: &mut Ui, cx: &mut Cx<'_>, memory: &mut Memory) {
    let count = memory.kld_formats.len();
    let text = format!("{count} formats");
    // The list stays open while boxes are ticked.
    let combo = ComboBox::from_id_salt("Formats to measure")
        .selected_text(text)
        .width(96.0)
        .close_behavior(PopupCloseBehavior::CloseOnClickOutside);
    let output = combo.show_ui(ui, |ui| {
        for format in format::quantized() {
            let mut is_chosen = memory.kld_formats.contains(format.id());
            if ui.add(Checkbox::new(&mut is_chosen, format.id())).changed() {
                if is_chosen {
                    memory.kld_formats.insert(format.id());
                } else {
                    memory.kld_formats.remove(format.id());
                }
            }
        }
    });
    output.response.accessible_name("Formats to measure");
    let tokens = DragValue::new(&mut memory.kld_tokens).range(LEAST_TOKENS..=1_048_576).speed(512).suffix(" tokens");
    ui.add(tokens).accessible_name("Tokens to measure over");
    let reason = cx
        .bench
        .unavailable(Action::MeasureKld)
        .or_else(|| memory.kld_formats.is_empty().then_some("Choose a format to measure"));
    let button = primary_button_ui(ui, "Measure KLD", reason.is_none());
    let button = match reason {
        Some(reason) => button.on_disabled_hover_text(reason),
        None => button.on_hover_text(Action::MeasureKld.tooltip()),
    };
    if button.clicked() {
        // The registry's order, from most bits to fewest.
        let formats = format::quantized().map(|format| format.id()).filter(|id| memory.kld_formats.contains(id));
        cx.send(Command::MeasureKld { formats: formats.collect(), tokens: memory.kld_tokens });
    }
}

fn missing_ui(ui: &mut Ui, cx: &mut Cx<'_>, metric: &Metric) {
    let Some((kind, action)) = measured_by(metric) else { return };
    if cx.bench.jobs().any(|job| job.kind == kind) {
        empty_ui(ui, "Being measured", "Tensors fill in as they are measured", None);
        return;
    }
    let reason = cx.bench.unavailable(action);
    let sentence = match reason {
        Some(reason) => format!("{}. {reason}", metric.description),
        None => metric.description.to_owned(),
    };
    let button = (reason.is_none() && !cx.is_presenting()).then(|| action.text());
    if empty_ui(ui, "Not measured yet", &sentence, button) {
        cx.act(action);
    }
}

fn map_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, memory: &Memory, metric: &Metric) {
    let Some(map) = &memory.map else { return };
    card_ui(ui, |ui| {
        section_with_ui(ui, &format!("{} by layer and role, {}", metric.title, memory.format), |ui| {
            if let Some(floor) = map.noise_floor {
                caption_ui(ui, format!("noise floor {} {}", units::significant(floor), metric.unit));
            }
        });
        let selected = cx.state().selection.focus.and_then(|tensor| memory.grid.find(tensor));
        let output = heat_map_ui(ui, map, height_for(map.rows.len()), selected);
        if let Some((row, column)) = output.clicked
            && let Some(tensor) = memory.grid.at(row, column)
        {
            let mode = select_mode(ui);
            cx.send(Command::Select { tensor, mode });
        }
        let done = map.cells.iter().filter(|slot| matches!(slot, Slot::Done(_))).count();
        let all = map.cells.iter().filter(|slot| **slot != Slot::Absent).count();
        if done < all {
            caption_ui(ui, format!("{done} of {all} tensors measured in {}", memory.format));
        }
        if let Some((rho, count)) = memory.agreement.found {
            let text = format!(
                "Rank agreement of weight error and KLD in {}: Spearman's ρ {} over {count} tensors",
                memory.format,
                units::minus(&format!("{rho:.2}"))
            );
            caption_ui(ui, text).on_hover_text("1 is the same order, 0 no relation, −1 the opposite order");
        }
        let in_use = document.importance_in_use().map(|importance| &importance.hash);
        match (&memory.table.as_ref().and_then(|table| table.imatrix.clone()), in_use) {
            (None, Some(_)) => drop(caption_ui(ui, "Measured without the importance that the plan uses now")),
            (Some(measured), used) if used != Some(measured) => {
                caption_ui(ui, "Measured with an importance matrix that the plan does not use now");
            }
            _ => {}
        }
        if metric.id == "kld"
            && let Some(total) = document.predicted_damage("kld")
        {
            caption_ui(
                ui,
                format!("The plan's choices add up to {} nats, predicted as their sum", units::significant(total)),
            );
        }
    });
}

fn select_mode(ui: &Ui) -> SelectMode {
    let modifiers = ui.input(|input| input.modifiers);
    if modifiers.command {
        SelectMode::Toggle
    } else if modifiers.shift {
        SelectMode::Extend
    } else {
        SelectMode::Replace
    }
}

fn curve_card_ui(
    ui: &mut Ui,
    cx: &mut Cx<'_>,
    document: &Document,
    memory: &mut Memory,
    metric: &Metric,
    table: &Arc<SensitivityTable>,
) {
    card_ui(ui, |ui| {
        section_ui(ui, "Error against bits");
        let tensor = cx.state().selection.focus.or_else(|| memory.ranked.first().map(|line| line.tensor));
        let Some(tensor) = tensor else {
            caption_ui(ui, "Select a tensor in the map");
            return;
        };
        memory.shape_curve(document, metric, table, tensor);
        let name = document.checkpoint.tensors.get(tensor).map_or("", |tensor| tensor.name.as_str());
        ui.label(Type::Mono.text(name));
        let Some(curve) = &memory.curve_data else {
            caption_ui(ui, "This tensor is not measured");
            return;
        };
        let (_, clicked) = curve_ui(ui, curve, 260.0);
        if cx.is_presenting() {
            return;
        }
        caption_ui(ui, "Click a format to choose it for this tensor");
        let chosen = clicked.and_then(|index| curve.points.get(index));
        if let Some(format) = chosen.and_then(|point| format::find(&point.format)) {
            cx.send(Command::SetFormat { tensors: vec![tensor], format: format.id() });
        }
    });
}

fn ranked_ui(ui: &mut Ui, cx: &mut Cx<'_>, memory: &Memory, metric: &Metric) {
    card_ui(ui, |ui| {
        section_ui(ui, &format!("Most sensitive in {}", memory.format));
        let width = ui.available_width();
        let figures = 72.0;
        let cell = vec2(figures, space::ROW_COMPACT);
        Rows::new("ranked").num_columns(3).spacing(vec2(space::S, space::XS)).show(ui, |ui| {
            head_ui(ui, "tensor", false);
            ui.allocate_ui(cell, |ui| head_ui(ui, if metric.id == "kld" { "KLD" } else { "error" }, true));
            // Cells of a fixed width: a figure that takes what is left would widen the grid frame by frame.
            ui.allocate_ui(cell, |ui| head_ui(ui, if metric.id == "kld" { "±" } else { "" }, true));
            ui.end_row();
            for line in &memory.ranked {
                let is_selected = cx.state().selection.tensors.contains(&line.tensor);
                ui.allocate_ui(vec2((width - 2.0 * figures - 32.0).max(120.0), space::ROW_COMPACT), |ui| {
                    let button = Button::selectable(is_selected, common::brief_name(&line.name)).truncate();
                    if ui.add(button).on_hover_text(&line.name).clicked() {
                        let mode = select_mode(ui);
                        cx.send(Command::Select { tensor: line.tensor, mode });
                    }
                });
                ui.allocate_ui(cell, |ui| figure_ui(ui, units::significant(line.value)));
                let weak = ui.tokens().weak;
                let error = line.stderr.map(units::significant).unwrap_or_default();
                ui.allocate_ui(cell, |ui| common::right_ui(ui, Type::MonoSmall.text(error).color(weak)));
                ui.end_row();
            }
        });
        if memory.ranked.is_empty() {
            ui.add(Label::new("No tensor is measured in this format yet"));
        }
    });
}

impl Memory {
    fn update(&mut self, document: &Document, metric: &Metric, table: Option<&Arc<SensitivityTable>>) {
        let is_other = !common::is_same(self.checkpoint.as_ref(), Some(&document.checkpoint));
        if is_other {
            self.checkpoint = Some(document.checkpoint.clone());
            self.grid = Grid::of(&document.checkpoint, true);
            (self.curve, self.curve_data) = (None, None);
        }
        if let Some(table) = table
            && table.column(&self.format).is_none()
            && let Some(first) = table.column("q4_k").or(Some(0)).and_then(|at| table.formats.get(at))
        {
            self.format = first.clone();
        }
        self.agreement.update(["weight", "kld"].map(|id| document.sensitivity.get(id)), &self.format);
        let is_current = !is_other && common::is_same(self.table.as_ref(), table) && self.shaped_format == self.format;
        if is_current {
            return;
        }
        self.table = table.cloned();
        self.shaped_format = self.format.clone();
        self.map = table.map(|table| heat_map(&self.grid, &document.checkpoint, table, metric, &self.format));
        self.ranked = table.map(|table| ranked(&document.checkpoint, table, &self.format)).unwrap_or_default();
    }

    fn shape_curve(&mut self, document: &Document, metric: &Metric, table: &Arc<SensitivityTable>, tensor: usize) {
        let resolved = document.resolved.as_ref().ok();
        let is_current = self.curve.as_ref().is_some_and(|key| {
            key.tensor == tensor && Arc::ptr_eq(&key.table, table) && common::is_same(key.resolved.as_ref(), resolved)
        });
        if is_current {
            return;
        }
        self.curve = Some(CurveKey { table: table.clone(), resolved: resolved.cloned(), tensor });
        let chosen = resolved.and_then(|plan| plan.decisions.get(tensor)).map(|decision| decision.dtype.name());
        let name = document.checkpoint.tensors.get(tensor).map_or("", |tensor| tensor.name.as_str());
        let target = document.plan().target();
        self.curve_data = curve(table, metric, name, chosen, |format| target.allows(format));
    }
}

impl Agreement {
    fn update(&mut self, tables: [Option<&Arc<SensitivityTable>>; 2], format: &str) {
        let are_same = self.tables.iter().zip(&tables).all(|(then, now)| common::is_same(then.as_ref(), *now));
        if are_same && self.format == format {
            return;
        }
        self.tables = tables.map(Option::<&_>::cloned);
        format.clone_into(&mut self.format);
        let [weight, kld] = &self.tables;
        self.found = weight.as_ref().zip(kld.as_ref()).and_then(|(weight, kld)| agreement(weight, kld, format));
    }
}

/// Spearman's coefficient over the tensors that both tables have a value for, and their number.
fn agreement(one: &SensitivityTable, other: &SensitivityTable, format: &str) -> Option<(f64, usize)> {
    let (own, column) = (one.column(format)?, other.column(format)?);
    let others: std::collections::HashMap<&str, f64> =
        other.rows.iter().filter_map(|row| Some((row.name.as_str(), row.cells.get(column)?.as_ref()?.value))).collect();
    let (ours, theirs): (Vec<f64>, Vec<f64>) = one
        .rows
        .iter()
        .filter_map(|row| Some((row.cells.get(own)?.as_ref()?.value, *others.get(row.name.as_str())?)))
        .unzip();
    Some((sensitivity::ranks::spearman(&ours, &theirs)?, ours.len()))
}

/// Twice the median standard error of what is measured: smaller values may be noise.
fn noise_floor(table: &SensitivityTable) -> Option<f64> {
    let cells = table.rows.iter().flat_map(|row| row.cells.iter().flatten());
    let mut errors: Vec<f64> = cells.filter_map(|cell| cell.stderr).filter(|err| err.is_finite()).collect();
    errors.sort_by(f64::total_cmp);
    let median = errors.get(errors.len() / 2).copied()?;
    (median > 0.0).then_some(2.0 * median)
}

fn heat_map(grid: &Grid, checkpoint: &Checkpoint, table: &SensitivityTable, metric: &Metric, format: &str) -> HeatMap {
    let column = table.column(format);
    let rows: std::collections::HashMap<&str, usize> =
        table.rows.iter().enumerate().map(|(index, row)| (row.name.as_str(), index)).collect();
    let slot = |tensor: Option<usize>| {
        let Some(tensor) = tensor.and_then(|index| checkpoint.tensors.get(index)) else { return Slot::Absent };
        let row = rows.get(tensor.name.as_str()).and_then(|index| table.rows.get(*index));
        let cell = row.and_then(|row| row.cells.get(column?)?.as_ref());
        cell.map_or(Slot::Pending, |cell| Slot::Done(Cell { value: cell.value, stderr: cell.stderr }))
    };
    HeatMap {
        metric: format!("{}, {}", metric.title, metric.label.name()),
        unit: metric.unit.to_owned(),
        format: format.to_owned(),
        rows: grid.roles.iter().map(|role| role.name().to_owned()).collect(),
        columns: grid.layers.iter().map(|layer| Grid::layer_name(*layer)).collect(),
        cells: grid.tensors.iter().map(|tensor| slot(*tensor)).collect(),
        noise_floor: noise_floor(table),
        // Divergences of single changes add up; ratios do not.
        edge: if metric.id == "kld" { Edge::Sum } else { Edge::Mean },
    }
}

/// The tensors that mind `format` most.
fn ranked(checkpoint: &Checkpoint, table: &SensitivityTable, format: &str) -> Vec<Ranked> {
    let Some(column) = table.column(format) else { return Vec::new() };
    let places: std::collections::HashMap<&str, usize> =
        checkpoint.tensors.iter().enumerate().map(|(index, tensor)| (tensor.name.as_str(), index)).collect();
    let mut lines: Vec<Ranked> = table
        .rows
        .iter()
        .filter_map(|row| {
            let cell = row.cells.get(column)?.as_ref()?;
            let tensor = *places.get(row.name.as_str())?;
            Some(Ranked { tensor, name: row.name.clone(), value: cell.value, stderr: cell.stderr })
        })
        .collect();
    lines.sort_by(|one, other| other.value.total_cmp(&one.value).then(one.tensor.cmp(&other.tensor)));
    lines.truncate(RANKED);
    lines
}

/// One tensor under every format; formats that fall back are shown as what they become.
fn curve(
    table: &SensitivityTable,
    metric: &Metric,
    tensor: &str,
    chosen: Option<&str>,
    allows: impl Fn(&str) -> bool,
) -> Option<Curve> {
    let row = table.row(tensor)?;
    // Plain floats hardly err: beside them the rest would be one dot.
    let is_coarse = |id: &str| format::find(id).is_some_and(|format| !format.dtype().is_plain());
    let has_coarse = table.formats.iter().any(|id| is_coarse(id) && allows(id));
    let points: Vec<CurvePoint> = table
        .formats
        .iter()
        .zip(&row.cells)
        .filter(|(id, _)| !has_coarse || is_coarse(id))
        .filter_map(|(format, cell)| {
            let cell = cell.as_ref()?;
            Some(CurvePoint {
                format: format.clone(),
                bits: cell.bits_per_weight,
                error: cell.value,
                stderr: cell.stderr,
                is_legal: cell.fell_back_to.is_none() && allows(format),
            })
        })
        .collect();
    let unit = if metric.unit.is_empty() { String::new() } else { format!(", {}", metric.unit) };
    (!points.is_empty()).then(|| Curve {
        name: tensor.to_owned(),
        metric: format!("{}{unit}, {}", metric.title, metric.label.name()),
        points,
        chosen: chosen.map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::checkpoint::Role;
    use crate::engine::sensitivity::{Label as FigureLabel, SensitivityRow, SensitivityValue};

    fn value(value: f64, stderr: Option<f64>) -> Option<SensitivityValue> {
        Some(SensitivityValue {
            value,
            stderr,
            bits_per_weight: 4.5,
            bytes: 10,
            fell_back_to: None,
            weight_error: None,
        })
    }

    fn table() -> SensitivityTable {
        let row = |name: &str, cells| SensitivityRow {
            name: name.to_owned(),
            role: Role::Q,
            layer: Some(0),
            weight_count: 16,
            cells,
        };
        SensitivityTable {
            version: 1,
            checkpoint: String::new(),
            metric: "kld".to_owned(),
            unit: "nats".to_owned(),
            device: None,
            label: FigureLabel::MeasuredWeightsOnly,
            imatrix: None,
            formats: vec!["q8_0".to_owned(), "q4_k".to_owned()],
            rows: vec![
                row("a", vec![value(1e-4, Some(1e-5)), value(1e-2, Some(3e-5))]),
                row("b", vec![value(2e-4, Some(2e-5)), None]),
            ],
        }
    }

    #[test]
    fn agreement_is_of_tensors_that_both_tables_hold() {
        let table = |metric: &'static Metric, values: &[(&str, Option<f64>)]| {
            let rows = values.iter().map(|(name, value)| sensitivity::SensitivityRow {
                name: (*name).to_owned(),
                role: Role::Q,
                layer: Some(0),
                weight_count: 1,
                cells: vec![value.map(|value| sensitivity::SensitivityValue {
                    value,
                    stderr: None,
                    bits_per_weight: 4.5,
                    bytes: 1,
                    fell_back_to: None,
                    weight_error: None,
                })],
            });
            SensitivityTable {
                version: SensitivityTable::VERSION,
                checkpoint: String::new(),
                metric: metric.id.to_owned(),
                unit: metric.unit.to_owned(),
                device: None,
                label: metric.label,
                imatrix: None,
                formats: vec!["q4_k".to_owned()],
                rows: rows.collect(),
            }
        };
        let metrics = sensitivity::metrics();
        let one = table(metrics[0], &[("a", Some(1.0)), ("b", Some(2.0)), ("c", Some(3.0)), ("d", Some(0.0))]);
        // In another order, and without d.
        let other = table(metrics[1], &[("c", Some(9.0)), ("a", Some(4.0)), ("b", Some(5.0)), ("d", None)]);
        assert_eq!(agreement(&one, &other, "q4_k"), Some((1.0, 3)));
        assert_eq!(agreement(&one, &other, "q8_0"), None);
    }

    #[test]
    fn the_noise_floor_is_twice_the_median_standard_error() {
        assert_eq!(noise_floor(&table()), Some(4e-5));
        let mut without = table();
        for cell in without.rows.iter_mut().flat_map(|row| row.cells.iter_mut().flatten()) {
            cell.stderr = None;
        }
        assert_eq!(noise_floor(&without), None);
    }

    #[test]
    fn a_curve_has_what_is_measured_and_marks_what_the_target_cannot_hold() {
        let metric = sensitivity::metric("kld").expect("known");
        let curve = curve(&table(), metric, "a", Some("q4_k"), |format| format != "q8_0").expect("measured");
        let legal: Vec<(&str, bool)> = curve.points.iter().map(|p| (p.format.as_str(), p.is_legal)).collect();
        assert_eq!(legal, [("q8_0", false), ("q4_k", true)]);
        assert_eq!(curve.chosen.as_deref(), Some("q4_k"));
        assert_eq!(super::curve(&table(), metric, "b", None, |_| true).expect("measured").points.len(), 1);
        assert!(super::curve(&table(), metric, "c", None, |_| true).is_none());
    }
}
