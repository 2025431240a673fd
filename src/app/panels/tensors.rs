//! The list of layers and tensors at the left: grouped or sorted, filtered, selected with mouse or keys.

use eframe::egui::{self, Align, Key, Layout, Modifiers, Sense, TextStyle, Ui, vec2};
use egui_extras::{Column, TableBuilder};

use crate::app::context::Cx;
use crate::app::theme::{Type, UiTokens as _, space};
use crate::app::widgets::icons::{self, Icon};
use crate::app::widgets::{empty_ui, search_field_ui};
use crate::engine::units;
use crate::workbench::{Action, Command, Document, SelectMode};

/// What the list is ordered by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Order {
    /// Layer after layer, each under its heading.
    #[default]
    Layer,
    /// Largest first.
    Size,
    /// What loses most under the plan's choice first.
    Damage,
}

impl Order {
    const ALL: [(Self, &'static str); 3] = [(Self::Layer, "layer"), (Self::Size, "size"), (Self::Damage, "error")];
}

/// A line of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    Heading { layer: Option<usize>, count: usize, is_open: bool },
    Tensor(usize),
}

/// Filter, order and what is folded.
#[derive(Default)]
pub struct Memory {
    filter: String,
    order: Order,
    folded: std::collections::BTreeSet<Option<usize>>,
    scroll_to_focus: bool,
    cached: Option<(Key4, Vec<Line>)>,
}

/// What the cached lines were made from.
type Key4 = (String, String, Order, u64);

/// The short name of a tensor within its layer: `q`, `down`, `input_layernorm`.
fn short_name(name: &str) -> &str {
    let stem = name.strip_suffix(".weight").unwrap_or(name);
    let last = stem.rsplit('.').next().unwrap_or(stem);
    last.strip_suffix("_proj").unwrap_or(last)
}

/// A name outside the layers without what goes without saying: `embed_tokens`.
fn whole_name(name: &str) -> &str {
    let name = name.strip_prefix("model.").unwrap_or(name);
    name.strip_suffix(".weight").unwrap_or(name)
}

/// The error of what the plan chooses for a tensor, by weight metric; 0 where nothing changes.
fn damage(document: &Document, tensor: usize) -> Option<f64> {
    let resolved = document.resolved.as_ref().ok()?;
    let decision = resolved.decisions.get(tensor)?;
    if decision.is_copy() || decision.is_removed() {
        return Some(0.0);
    }
    let format = crate::engine::format::of_dtype(decision.dtype)?;
    let name = &document.checkpoint.tensors[tensor].name;
    Some(document.sensitivity.get("weight")?.cell(name, format.id())?.value)
}

fn lines(document: &Document, memory: &Memory) -> Vec<Line> {
    let filter = memory.filter.to_lowercase();
    let words: Vec<&str> = filter.split_whitespace().collect();
    let tensors = &document.checkpoint.tensors;
    let mut found: Vec<usize> = (0..tensors.len())
        .filter(|&index| {
            let name = tensors[index].name.to_lowercase();
            let role = tensors[index].role.name();
            words.iter().all(|word| name.contains(word) || role == *word)
        })
        .collect();
    match memory.order {
        Order::Size => {
            found.sort_by_key(|&index| std::cmp::Reverse(tensors[index].byte_count));
            found.into_iter().map(Line::Tensor).collect()
        }
        Order::Damage => {
            let mut ranked: Vec<(f64, usize)> =
                found.into_iter().map(|index| (damage(document, index).unwrap_or(-1.0), index)).collect();
            ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
            ranked.into_iter().map(|(_, index)| Line::Tensor(index)).collect()
        }
        Order::Layer => {
            let mut layers: Vec<Option<usize>> = found.iter().map(|&index| tensors[index].layer).collect();
            layers.sort_unstable();
            layers.dedup();
            let mut lines = Vec::with_capacity(found.len() + layers.len());
            for layer in layers {
                let mut members: Vec<usize> =
                    found.iter().copied().filter(|&index| tensors[index].layer == layer).collect();
                members.sort_by_key(|&index| (tensors[index].role, index));
                let is_open = !words.is_empty() || !memory.folded.contains(&layer);
                lines.push(Line::Heading { layer, count: members.len(), is_open });
                if is_open {
                    lines.extend(members.into_iter().map(Line::Tensor));
                }
            }
            lines
        }
    }
}

/// A number that changes with everything the lines depend on besides filter and order.
fn revision(document: &Document, memory: &Memory) -> u64 {
    let resolved = document.resolved.as_ref().map_or(0, |resolved| std::sync::Arc::as_ptr(resolved) as u64);
    let table = document
        .sensitivity
        .get("weight")
        .map_or(0, |table| std::sync::Arc::as_ptr(table) as u64 ^ table.rows.len() as u64);
    let by_damage = if memory.order == Order::Damage { resolved ^ table.rotate_left(17) } else { 0 };
    memory.folded.iter().fold(by_damage, |sum, layer| sum.rotate_left(5) ^ layer.map_or(1, |layer| layer as u64 + 2))
}

/// Paints the list.
pub fn tensors_ui(ui: &mut Ui, cx: &mut Cx<'_>) {
    let Some(document) = cx.document() else {
        if empty_ui(ui, "No tensors", "Drop a checkpoint here, or start with the demo model", Some("Open the demo")) {
            cx.act(Action::OpenDemo);
        }
        return;
    };
    let memory = &mut cx.memory.tensors;
    search_field_ui(ui, "Filter tensors", &mut memory.filter);
    ui.add_space(space::XS);
    ui.horizontal(|ui| {
        ui.label(Type::Small.text("by").color(ui.tokens().weak));
        for (order, name) in Order::ALL {
            let chosen = memory.order == order;
            let label = egui::Button::selectable(chosen, Type::Small.text(name));
            if ui.add(label).on_hover_text(format!("Order the list by {name}")).clicked() {
                memory.order = order;
            }
        }
        ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
            ui.label(
                Type::Small.text(format!("{} tensors", document.checkpoint.tensors.len())).color(ui.tokens().weak),
            );
        });
    });
    let key =
        (document.checkpoint.fingerprint.clone(), memory.filter.clone(), memory.order, revision(document, memory));
    let lines = match memory.cached.take() {
        Some((known, lines)) if known == key => lines,
        _ => lines(document, memory),
    };
    keys(ui, cx, &lines);
    table_ui(ui, cx, document, &lines);
    cx.memory.tensors.cached = Some((key, lines));
}

/// Arrow keys move through the list when nothing is being typed.
fn keys(ui: &Ui, cx: &mut Cx<'_>, lines: &[Line]) {
    if ui.ctx().egui_wants_keyboard_input() {
        return;
    }
    let mut step = 0isize;
    let mut extend = false;
    ui.input_mut(|input| {
        // Shift first: a pattern without it also matches with it.
        for (modifiers, extends) in [(Modifiers::SHIFT, true), (Modifiers::NONE, false)] {
            if input.consume_key(modifiers, Key::ArrowDown) {
                step = 1;
                extend = extends;
            }
            if input.consume_key(modifiers, Key::ArrowUp) {
                step = -1;
                extend = extends;
            }
        }
    });
    if step == 0 {
        return;
    }
    let order: Vec<usize> =
        lines.iter().filter_map(|line| if let Line::Tensor(index) = line { Some(*index) } else { None }).collect();
    let focus = cx.state().selection.focus;
    let at = focus.and_then(|focus| order.iter().position(|&index| index == focus));
    let next = match at {
        Some(at) => at.saturating_add_signed(step).min(order.len().saturating_sub(1)),
        None => 0,
    };
    if let Some(&tensor) = order.get(next) {
        let mode = if extend { SelectMode::Extend } else { SelectMode::Replace };
        cx.send(Command::Select { tensor, mode });
        cx.memory.tensors.scroll_to_focus = true;
    }
}

fn table_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, lines: &[Line]) {
    let scroll_to = if std::mem::take(&mut cx.memory.tensors.scroll_to_focus) {
        let focus = cx.state().selection.focus;
        lines.iter().position(|line| matches!(line, Line::Tensor(index) if Some(*index) == focus))
    } else {
        None
    };
    let mut table = TableBuilder::new(ui)
        .id_salt("tensor list")
        .sense(Sense::click())
        .striped(false)
        .cell_layout(Layout::left_to_right(Align::Center))
        .column(Column::remainder().at_least(90.0).clip(true))
        .column(Column::exact(52.0))
        .column(Column::exact(62.0))
        .column(Column::exact(18.0));
    if let Some(row) = scroll_to {
        table = table.scroll_to_row(row, None);
    }
    table.body(|body| {
        body.rows(space::ROW_COMPACT, lines.len(), |mut row| match &lines[row.index()] {
            Line::Heading { layer, count, is_open } => {
                row.col(|ui| {
                    let name = layer.map_or_else(|| "model".to_owned(), |layer| format!("layer {layer}"));
                    let (rect, response) =
                        ui.allocate_exact_size(vec2(ui.available_width(), space::ROW_COMPACT), Sense::click());
                    response.widget_info(|| {
                        egui::WidgetInfo::selected(
                            egui::Role::Button,
                            true,
                            *is_open,
                            format!("{name}, {count} tensors"),
                        )
                    });
                    let icon = if *is_open { Icon::Down } else { Icon::Right };
                    let rest = icons::paint_left(ui.painter(), icon, rect, 8.0, ui.tokens().weak);
                    ui.painter().text(
                        rest.left_center() + vec2(space::XS, 0.0),
                        egui::Align2::LEFT_CENTER,
                        name,
                        Type::Strong.font(),
                        ui.tokens().text,
                    );
                    if response.clicked() {
                        let folded = &mut cx.memory.tensors.folded;
                        if !folded.remove(layer) {
                            folded.insert(*layer);
                        }
                    }
                });
                row.col(|_| {});
                row.col(|_| {});
                row.col(|_| {});
            }
            Line::Tensor(index) => tensor_row(&mut row, cx, document, *index),
        });
    });
}

fn tensor_row(row: &mut egui_extras::TableRow<'_, '_>, cx: &mut Cx<'_>, document: &Document, index: usize) {
    let tensor = &document.checkpoint.tensors[index];
    let is_selected = cx.state().selection.tensors.contains(&index);
    row.set_selected(is_selected);
    let decision = document.resolved.as_ref().ok().and_then(|resolved| resolved.decisions.get(index));
    let is_protected = decision.is_some_and(|decision| matches!(decision.why, crate::engine::plan::Why::Protected(_)));
    let mut clicked = None;
    row.col(|ui| {
        ui.add_space(space::M);
        let shown = if tensor.layer.is_some() { short_name(&tensor.name) } else { whole_name(&tensor.name) };
        let label = ui.add(egui::Label::new(shown).selectable(false).truncate().sense(Sense::click()));
        label.widget_info(|| egui::WidgetInfo::selected(egui::Role::Button, true, is_selected, &tensor.name));
        if label.clicked() {
            clicked = Some(ui.input(|input| input.modifiers));
        }
        label.on_hover_text(format!("{}\n{:?} {}", tensor.name, tensor.shape, tensor.dtype));
    });
    row.col(|ui| {
        let dtype = decision.map_or(tensor.dtype, |decision| decision.dtype);
        let color = if dtype == tensor.dtype { ui.tokens().weak } else { ui.tokens().text };
        ui.label(
            egui::RichText::new(dtype.name()).text_style(TextStyle::Monospace).size(Type::Small.size()).color(color),
        );
    });
    row.col(|ui| {
        ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
            if let Some(error) = damage(document, index).filter(|error| *error > 0.0) {
                ui.label(
                    egui::RichText::new(units::significant(error))
                        .text_style(TextStyle::Monospace)
                        .size(Type::Small.size())
                        .color(ui.tokens().weak),
                )
                .on_hover_text("Relative weight error of the plan's choice, predicted");
            }
        });
    });
    row.col(|ui| {
        if is_protected {
            let (rect, response) = ui.allocate_exact_size(vec2(14.0, 14.0), Sense::hover());
            icons::paint(ui.painter(), Icon::Lock, rect.center(), 11.0, ui.tokens().accent);
            response.on_hover_text("Protected: keeps its stored values");
        }
    });
    let response = row.response();
    if response.clicked() || clicked.is_some() {
        let modifiers = clicked.unwrap_or_else(|| response.ctx.input(|input| input.modifiers));
        let mode = if modifiers.shift {
            SelectMode::Extend
        } else if modifiers.command {
            SelectMode::Toggle
        } else {
            SelectMode::Replace
        };
        cx.send(Command::Select { tensor: index, mode });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_within_a_layer_are_short() {
        assert_eq!(short_name("model.layers.3.mlp.down_proj.weight"), "down");
        assert_eq!(short_name("model.layers.3.input_layernorm.weight"), "input_layernorm");
        assert_eq!(short_name("model.layers.3.self_attn.q_proj.bias"), "bias");
    }
}
