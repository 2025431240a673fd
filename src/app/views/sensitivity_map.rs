//! The page of tensors: layers across and roles down under one metric, format and group of the text,
//! and beneath it the tensors that mind most. Click selects, shift-click protects.

use std::sync::Arc;

use eframe::egui::{Button, Grid as Rows, Label, Ui, vec2};

use super::common::{self, Grid, caption_ui, combo_ui, figure_ui, head_ui};
use super::sensitivity::{basis_ui, group_ui, select_mode};
use super::sensitivity_curves::{self, Curves};
use crate::app::context::Cx;
use crate::app::plots::heat_map::{Cell, Edge, HeatMap, Slot, heat_map_ui, height_for};
use crate::app::theme::{Type, UiTokens as _, space};
use crate::app::widgets::{card_ui, section_ui, section_with_ui};
use crate::engine::checkpoint::Checkpoint;
use crate::engine::plan::Why;
use crate::engine::sensitivity::{Metric, SensitivityTable};
use crate::engine::units;
use crate::workbench::{Command, Document};

/// Tensors in the list of the most sensitive.
const RANKED: usize = 14;

/// Groups that are named as the most sensitive.
const NAMED_GROUPS: usize = 4;

/// What the page remembers between frames.
pub(super) struct Memory {
    format: String,
    group: usize,
    checkpoint: Option<Arc<Checkpoint>>,
    /// The table as it was measured, and what of it is shown.
    table: Option<Arc<SensitivityTable>>,
    shown: Option<Arc<SensitivityTable>>,
    shaped: (String, usize),
    grid: Grid,
    map: Option<HeatMap>,
    ranked: Vec<Ranked>,
    groups: Option<String>,
    curves: Curves,
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
            format: "q4_k".to_owned(),
            group: 0,
            checkpoint: None,
            table: None,
            shown: None,
            shaped: (String::new(), 0),
            grid: Grid::default(),
            map: None,
            ranked: Vec::new(),
            groups: None,
            curves: Curves::default(),
        }
    }
}

impl Memory {
    /// The format of the map.
    pub(super) fn format(&self) -> &str {
        &self.format
    }

    /// Shapes what is shown, where something changed.
    pub(super) fn update(&mut self, document: &Document, metric: &Metric, table: Option<&Arc<SensitivityTable>>) {
        let is_other = !common::is_same(self.checkpoint.as_ref(), Some(&document.checkpoint));
        if is_other {
            self.checkpoint = Some(document.checkpoint.clone());
            self.grid = Grid::of(&document.checkpoint, true);
            self.curves = Curves::default();
        }
        if let Some(table) = table
            && table.column(&self.format).is_none()
            && let Some(first) = table.column("q4_k").or(Some(0)).and_then(|at| table.formats.get(at))
        {
            self.format = first.clone();
        }
        let groups = table.and_then(|table| table.basis.as_ref()).map_or(0, |basis| basis.groups.len());
        self.group = self.group.min(groups);
        let shape = (self.format.clone(), self.group);
        if !is_other && common::is_same(self.table.as_ref(), table) && self.shaped == shape {
            return;
        }
        self.table = table.cloned();
        self.shaped = shape;
        let of_group = |table: &Arc<SensitivityTable>| match self.group.checked_sub(1) {
            Some(index) => table.of_group(index).map(Arc::new),
            None => Some(table.clone()),
        };
        self.shown = table.and_then(of_group);
        let shown = self.shown.as_deref();
        self.map = shown.map(|table| heat_map(&self.grid, &document.checkpoint, table, metric, &self.format));
        self.ranked = shown.map(|table| ranked(&document.checkpoint, table, &self.format)).unwrap_or_default();
        self.groups = table.and_then(|table| most_sensitive_groups(table, &self.format));
    }
}

/// The choices of format and group.
pub(super) fn choices_ui(ui: &mut Ui, memory: &mut Memory, table: &SensitivityTable) {
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
    let groups = table.basis.as_ref().map(|basis| basis.groups.as_slice()).unwrap_or_default();
    group_ui(ui, groups, &mut memory.group);
}

/// Paints map, curves, agreement and list.
pub(super) fn map_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, memory: &mut Memory, metric: &Metric) {
    map_card_ui(ui, cx, document, memory, metric);
    let Some(table) = memory.shown.clone() else { return };
    let tensor = cx.state().selection.focus.or_else(|| memory.ranked.first().map(|line| line.tensor));
    let subject = sensitivity_curves::Subject { document, metric, table: &table, format: &memory.format, tensor };
    memory.curves.update(&subject, &memory.grid);
    if ui.available_width() > 640.0 {
        ui.columns(2, |columns| {
            sensitivity_curves::bits_ui(&mut columns[0], cx, &subject, &memory.curves);
            sensitivity_curves::depth_card_ui(&mut columns[1], cx, &memory.curves, &memory.grid);
        });
        ui.columns(2, |columns| {
            ranked_ui(&mut columns[0], cx, memory, metric);
            sensitivity_curves::trust_ui(&mut columns[1], &memory.curves, &memory.format);
        });
    } else {
        sensitivity_curves::bits_ui(ui, cx, &subject, &memory.curves);
        sensitivity_curves::depth_card_ui(ui, cx, &memory.curves, &memory.grid);
        ranked_ui(ui, cx, memory, metric);
        sensitivity_curves::trust_ui(ui, &memory.curves, &memory.format);
    }
}

fn is_protected(document: &Document, tensor: usize) -> bool {
    let decision = document.resolved.as_ref().ok().and_then(|resolved| resolved.decisions.get(tensor));
    decision.is_some_and(|decision| matches!(decision.why, Why::Protected(_)))
}

fn map_card_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, memory: &Memory, metric: &Metric) {
    let Some(map) = &memory.map else { return };
    card_ui(ui, |ui| {
        section_with_ui(ui, &format!("{} by layer and role, {}", metric.title, memory.format), |ui| {
            if let Some(floor) = map.noise_floor {
                caption_ui(ui, format!("noise floor {} {}", units::significant(floor), metric.unit));
            }
        });
        let selected = cx.state().selection.focus.and_then(|tensor| memory.grid.find(tensor));
        let locked = |row, column| memory.grid.at(row, column).is_some_and(|tensor| is_protected(document, tensor));
        let output = heat_map_ui(ui, map, height_for(map.rows.len()), selected, &locked);
        if let Some((row, column)) = output.clicked
            && let Some(tensor) = memory.grid.at(row, column)
        {
            if ui.input(|input| input.modifiers.shift) && !cx.is_presenting() {
                let protect = !is_protected(document, tensor);
                cx.send(Command::SetProtected { tensors: vec![tensor], protect });
            } else {
                let mode = select_mode(ui);
                cx.send(Command::Select { tensor, mode });
            }
        }
        if !cx.is_presenting() {
            caption_ui(ui, "Click selects a tensor, shift-click protects it or lets go of it");
        }
        let done = map.cells.iter().filter(|slot| matches!(slot, Slot::Done(_))).count();
        let all = map.cells.iter().filter(|slot| **slot != Slot::Absent).count();
        if done < all {
            caption_ui(ui, format!("{done} of {all} tensors measured in {}", memory.format));
        }
        if let Some(groups) = &memory.groups {
            caption_ui(ui, groups);
        }
        if let Some(table) = &memory.table {
            if let Some(basis) = &table.basis {
                basis_ui(ui, document, basis);
            }
            if !table.diagonal_only.is_empty() {
                let count = table.diagonal_only.len();
                caption_ui(
                    ui,
                    format!("In {count} wide tensors channels are taken as uncorrelated, for want of memory"),
                );
            }
        }
        importance_note_ui(ui, document, memory);
    });
}

/// Says where the map and the plan differ in what encoders are given.
fn importance_note_ui(ui: &mut Ui, document: &Document, memory: &Memory) {
    let in_use = document.importance_in_use().map(|importance| &importance.hash);
    match (&memory.table.as_ref().and_then(|table| table.imatrix.clone()), in_use) {
        (None, Some(_)) => drop(caption_ui(ui, "Measured without the importance that the plan uses now")),
        (Some(measured), used) if used != Some(measured) => {
            caption_ui(ui, "Measured with an importance matrix that the plan does not use now");
        }
        _ => {}
    }
}

fn ranked_ui(ui: &mut Ui, cx: &mut Cx<'_>, memory: &Memory, metric: &Metric) {
    card_ui(ui, |ui| {
        section_ui(ui, &format!("Most sensitive in {}", memory.format));
        let width = ui.available_width();
        let figures = 72.0;
        let cell = vec2(figures, space::ROW_COMPACT);
        Rows::new("ranked").num_columns(3).spacing(vec2(space::S, space::XS)).show(ui, |ui| {
            head_ui(ui, "tensor", false);
            ui.allocate_ui(cell, |ui| head_ui(ui, if metric.unit == "nats" { "KLD" } else { "error" }, true));
            // Cells of a fixed width: a figure that takes what is left would widen the grid frame by frame.
            let has_error = memory.ranked.iter().any(|line| line.stderr.is_some());
            ui.allocate_ui(cell, |ui| head_ui(ui, if has_error { "±" } else { "" }, true));
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
        edge: if metric.unit == "nats" { Edge::Sum } else { Edge::Mean },
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

/// The groups that mind most, in words.
fn most_sensitive_groups(table: &SensitivityTable, format: &str) -> Option<String> {
    let groups = table.groups_by_damage(format);
    let named = groups.iter().take(NAMED_GROUPS).filter(|(_, value, _)| *value > 0.0);
    let names: Vec<String> =
        named.map(|(name, value, whole)| format!("{name} ({:.1}×)", value / whole.max(f64::MIN_POSITIVE))).collect();
    (!names.is_empty()).then(|| format!("Most sensitive in {format}, beside all tokens: {}", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::checkpoint::Role;
    use crate::engine::sensitivity::{
        Basis, Group, GroupValue, Label as FigureLabel, SensitivityRow, SensitivityValue,
    };

    fn value(value: f64, stderr: Option<f64>) -> Option<SensitivityValue> {
        let group = |factor: f64| GroupValue { value: value * factor, stderr: 0.0 };
        Some(SensitivityValue {
            value,
            stderr,
            stopped_after: None,
            bits_per_weight: 4.5,
            bytes: 10,
            fell_back_to: None,
            groups: vec![group(0.5), group(2.0)],
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
        let group = |name: &str| Group { name: name.to_owned(), tokens: 10 };
        SensitivityTable {
            version: 1,
            checkpoint: String::new(),
            metric: "kld".to_owned(),
            unit: "nats".to_owned(),
            label: FigureLabel::MeasuredWeightsOnly,
            device: None,
            imatrix: None,
            basis: Some(Basis {
                name: "t.txt".to_owned(),
                hash: String::new(),
                tokens: 20,
                groups: vec![group("story"), group("turkish")],
            }),
            diagonal_only: Vec::new(),
            formats: vec!["q8_0".to_owned(), "q4_k".to_owned()],
            rows: vec![
                row("a", vec![value(1e-4, Some(1e-5)), value(1e-2, Some(3e-5))]),
                row("b", vec![value(2e-4, Some(2e-5)), None]),
            ],
        }
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
    fn the_groups_that_mind_most_are_named_first() {
        let words = most_sensitive_groups(&table(), "q4_k").expect("groups");
        assert!(words.ends_with("turkish (2.0×), story (0.5×)"), "{words}");
        assert_eq!(most_sensitive_groups(&SensitivityTable { basis: None, ..table() }, "q4_k"), None);
    }
}
