//! The plan: recipe and target on top, what it costs, the frontier of choices, and the table of
//! tensors grouped by layer, edited in place.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use eframe::egui::{Align, Button, Grid, Layout, Sense, Ui, vec2};
use egui_extras::{Column, TableBuilder};

use super::common::{self, action_button_ui, caption_ui, combo_ui, figure_ui, head_ui, no_document_ui};
use super::plan_frontier::{self, damage_text, recipe_of};
use super::{plan_budget, plan_constraints, plan_fits, plan_history, plan_many, plan_search, plan_target};
use crate::app::context::Cx;
use crate::app::plots::frontier::{Frontier, Kind, Spot, frontier_ui};
use crate::app::theme::{Type, UiTokens as _, space};
use crate::app::widgets::{
    FormatChoice, FormatMenu, KeyValue, Level, Notice, card_ui, format_menu_ui, icons, key_values_ui, lock_toggle_ui,
    notice_ui, number_with_interval, section_ui, section_with_ui,
};
use crate::engine::checkpoint::{Checkpoint, TensorInfo};
use crate::engine::plan::{Decision, Recipe, ResolvedPlan, Target, Why};
use crate::engine::sensitivity::SensitivityTable;
use crate::engine::{format, units};
use crate::workbench::{Action, Command, Document, SelectMode};

/// Warnings that are shown; the rest are counted.
const MOST_WARNINGS: usize = 2;

/// Height of the two cards on top.
const CARD_HEIGHT: f32 = 240.0;

/// What the view remembers between frames.
#[derive(Default)]
pub struct Memory {
    frontier: plan_frontier::Frontier,
    collapsed: BTreeSet<Option<usize>>,
    checkpoint: Option<Arc<Checkpoint>>,
    resolved: Option<Arc<ResolvedPlan>>,
    groups: Vec<Group>,
    rows: Vec<Row>,
    tables: [Option<Arc<SensitivityTable>>; 2],
    /// Per tensor: weight error and KLD of its choice.
    costs: Vec<[Option<f64>; 2]>,
    bulk: plan_many::Bulk,
    budget: plan_budget::Memory,
    constraints: plan_constraints::Memory,
    history: plan_history::Memory,
    targets: plan_target::Memory,
    fits: plan_fits::Memory,
}

/// The tensors of one layer, or those outside all layers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    layer: Option<usize>,
    tensors: Vec<usize>,
    old_bytes: u64,
    new_bytes: u64,
    weight_count: u64,
}

/// A line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    /// Head of the group with this index.
    Group(usize),
    /// Index in the checkpoint.
    Tensor(usize),
}

/// Paints the view.
pub fn plan_ui(ui: &mut Ui, cx: &mut Cx<'_>) {
    let bench = cx.bench;
    let Some(document) = &bench.state().document else {
        no_document_ui(ui, cx, "Open a model to decide what to compress");
        return;
    };
    let mut memory = std::mem::take(&mut cx.memory.plan);
    memory.update(document);
    ui.spacing_mut().item_spacing.y = space::S;
    if !cx.is_presenting() {
        controls_ui(ui, cx, document, &mut memory);
    }
    match &document.resolved {
        Ok(resolved) => {
            let standing = std::mem::take(&mut cx.memory.standing);
            let (plan, own) = (document.plan(), &mut memory.constraints);
            plan_constraints::constraints_ui(ui, cx, plan, resolved, &standing.standing, own);
            cx.memory.standing = standing;
            let is_wide = ui.available_width() > 600.0;
            if is_wide {
                ui.columns(2, |columns| {
                    totals_ui(&mut columns[0], cx, &memory, resolved);
                    frontier_card_ui(&mut columns[1], cx, &memory);
                });
            } else {
                totals_ui(ui, cx, &memory, resolved);
            }
            if !cx.is_presenting() {
                let speed = cx.memory.standing.standing.speed;
                plan_budget::budget_ui(ui, cx, resolved, &memory.frontier, speed, &mut memory.budget);
                plan_many::bulk_ui(ui, cx, document, &mut memory.bulk);
            }
            table_ui(ui, cx, document, resolved, &mut memory);
        }
        Err(err) => {
            let text = err.to_string();
            let (cause, detail) = text.split_once('\n').unwrap_or((&text, ""));
            let can_undo = bench.unavailable(Action::Undo).is_none();
            let notice = Notice {
                level: Level::Error,
                text: cause,
                detail: detail.trim(),
                action: can_undo.then_some("Undo the last change"),
            };
            if notice_ui(ui, &notice) {
                cx.act(Action::Undo);
            }
            action_button_ui(ui, cx, Action::MakePlanLegal, false);
        }
    }
    cx.memory.plan = memory;
}

fn target_text(target: Target) -> &'static str {
    match target {
        Target::Gguf => "GGUF for llama.cpp",
        Target::HuggingFace => "Hugging Face folder",
        Target::CompressedTensors => "compressed-tensors folder",
        Target::Bitsandbytes => "bitsandbytes folder",
        Target::Gptq => "GPTQ folder",
        Target::Awq => "AWQ folder",
        Target::Lapidary => "Lapidary folder",
    }
}

fn controls_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, memory: &mut Memory) {
    let plan = document.plan();
    ui.horizontal_wrapped(|ui| {
        caption_ui(ui, "Recipe");
        let selected = plan.recipe().map_or("none", Recipe::name);
        let chosen = combo_ui(ui, "Recipe", selected, 96.0, |ui| {
            let mut chosen = None;
            if ui.selectable_label(plan.recipe().is_none(), "none").clicked() {
                chosen = Some(None);
            }
            let is_possible = |recipe: &Recipe| !recipe.needs_importance() || plan.calibration().is_some();
            let offered = Recipe::all().filter(|recipe| plan.target().allows(recipe.base_format()));
            for recipe in offered.filter(is_possible) {
                if ui.selectable_label(plan.recipe() == Some(recipe), recipe.name()).clicked() {
                    chosen = Some(Some(recipe));
                }
            }
            chosen
        });
        if let Some(recipe) = chosen {
            cx.send(Command::SetRecipe(recipe));
        }
        caption_ui(ui, "Default");
        let selected = match (plan.recipe(), plan.default_format()) {
            (Some(_), _) => "as the recipe says",
            (None, Some(id)) => id,
            (None, None) => "as stored",
        };
        let menu =
            FormatMenu { name: "Default format", selected, width: 132.0, none: Some("as stored"), row_len: None };
        match format_menu_ui(ui, menu, plan.target().formats()).1 {
            Some(FormatChoice::None) => cx.send(Command::SetRecipe(None)),
            Some(FormatChoice::Format(id)) => {
                let mut next = plan.clone();
                match next.set_default_format(Some(id)) {
                    Ok(()) => cx.send(Command::SetPlan { plan: Box::new(next), what: format!("default {id}") }),
                    Err(err) => cx.send(Command::Warn(err.to_string())),
                }
            }
            None => {}
        }
        caption_ui(ui, "for");
        let chosen = combo_ui(ui, "Target", target_text(plan.target()), 148.0, |ui| {
            let mut chosen = None;
            for target in Target::ALL {
                if ui.selectable_label(target == plan.target(), target_text(target)).clicked() {
                    chosen = Some(target);
                }
            }
            chosen
        });
        if let Some(target) = chosen {
            cx.send(Command::SetTarget(target));
        }
    });
    ui.horizontal_wrapped(|ui| {
        ui.menu_button("Formats", |ui| super::plan_formats::formats_ui(ui, document))
            .response
            .on_hover_text("Bits per weight and shape rules of every format, and the model's size in each")
            .accessible_name("Formats side by side");
        plan_target::targets_ui(ui, cx, document, &memory.targets);
        if let Ok(resolved) = &document.resolved {
            plan_fits::fits_ui(ui, cx, document, resolved, &mut memory.fits);
        }
        plan_history::history_ui(ui, cx, document, &mut memory.history);
        if document.resolved.is_ok() {
            plan_constraints::toggle_ui(ui, &mut memory.constraints);
        }
        plan_search::search_ui(ui, cx, plan);
    });
}

fn totals_ui(ui: &mut Ui, cx: &mut Cx<'_>, memory: &Memory, resolved: &ResolvedPlan) {
    card_ui(ui, |ui| {
        ui.set_min_height(CARD_HEIGHT);
        section_ui(ui, "What it comes to");
        let ratio = resolved.old_bytes as f64 / resolved.new_bytes.max(1) as f64;
        let size = format!("{} → {}", units::bytes(resolved.old_bytes), units::bytes(resolved.new_bytes));
        let bits = format!("{:.2} → {:.2}", resolved.old_bits_per_weight(), resolved.new_bits_per_weight());
        let protected = resolved.decisions.iter().filter(|decision| matches!(decision.why, Why::Protected(_))).count();
        let changed = resolved.decisions.iter().filter(|decision| !decision.is_copy()).count();
        let fallen = resolved.decisions.iter().filter(|decision| decision.fell_back_from.is_some()).count();
        let mut lines = vec![
            KeyValue::new("all tensors", size, ""),
            KeyValue::new("bits per weight", bits, "bpw"),
            KeyValue::new("smaller by", format!("{ratio:.2}"), "×"),
            KeyValue::new("tensors changed", format!("{changed} of {}", resolved.decisions.len()), ""),
            KeyValue::new("protected", protected.to_string(), ""),
        ];
        if fallen > 0 {
            let hint = "Their rows do not fill the blocks of the format that was asked for";
            lines.push(KeyValue::new("fell back to another format", fallen.to_string(), "").hint(hint));
        }
        let damages: Vec<(String, String)> = memory
            .frontier
            .damages
            .iter()
            .map(|(metric, value)| (format!("Σ {}, predicted", metric.title), damage_text(metric, *value)))
            .collect();
        lines.extend(
            damages
                .iter()
                .map(|(key, value)| KeyValue::new(key, value, "").hint("The damage of each choice alone, added up")),
        );
        key_values_ui(ui, &lines);
        if damages.is_empty() && !cx.is_presenting() {
            caption_ui(ui, "Damage is predicted once the sensitivity of these formats is measured");
        }
        for warning in resolved.warnings.iter().take(MOST_WARNINGS) {
            notice_ui(ui, &Notice { level: Level::Warning, text: warning, detail: "", action: None });
        }
        let rest = resolved.warnings.len().saturating_sub(MOST_WARNINGS);
        if rest > 0 {
            let all = resolved.warnings[MOST_WARNINGS..].join("\n");
            caption_ui(ui, format!("{rest} more warnings")).on_hover_text(all);
        }
    });
}

fn frontier_card_ui(ui: &mut Ui, cx: &mut Cx<'_>, memory: &Memory) {
    card_ui(ui, |ui| {
        ui.set_min_height(CARD_HEIGHT);
        let mut chosen = None;
        let is_roomy = ui.available_width() > 420.0;
        section_with_ui(ui, "Damage against size", |ui| {
            if !cx.is_presenting() && is_roomy && memory.frontier.plot.is_some() {
                action_button_ui(ui, cx, Action::RunFrontier, false);
            }
            if let Some(plot) = &memory.frontier.plot {
                let numbers = ui.menu_button("Numbers", |ui| numbers_ui(ui, cx, plot));
                numbers.response.accessible_name("Numbers of the recipes");
                chosen = numbers.inner.flatten();
            }
            // The axis names it too, so a narrow card leaves it out.
            if let Some(metric) = memory.frontier.metric
                && is_roomy
            {
                caption_ui(ui, format!("{}, predicted", metric.title)).on_hover_text(metric.description);
            }
        });
        let Some(plot) = &memory.frontier.plot else {
            caption_ui(ui, "Measure the sensitivity to see what each recipe would cost");
            action_button_ui(ui, cx, Action::MeasureWeightError, false);
            return;
        };
        let (_, clicked) = frontier_ui(ui, plot, CARD_HEIGHT - 36.0);
        let recipe = chosen.or_else(|| recipe_of(plot.spots.get(clicked?)?));
        if !cx.is_presenting()
            && let Some(recipe) = recipe
        {
            cx.send(Command::SetRecipe(Some(recipe)));
        }
    });
}

/// The frontier as a table; returns a recipe that was clicked.
fn numbers_ui(ui: &mut Ui, cx: &Cx<'_>, plot: &Frontier) -> Option<Recipe> {
    let mut chosen = None;
    let mut spots: Vec<&Spot> = plot.spots.iter().collect();
    spots.sort_by(|one, other| one.size_bytes.cmp(&other.size_bytes).then(other.damage.total_cmp(&one.damage)));
    caption_ui(ui, plot.axis.as_str());
    Grid::new("frontier numbers").num_columns(4).spacing([space::M, space::XS]).show(ui, |ui| {
        for (text, is_right) in [("", false), ("size", true), ("bpw", true), ("damage", true)] {
            head_ui(ui, text, is_right);
        }
        ui.end_row();
        for spot in spots {
            match recipe_of(spot) {
                Some(recipe) if !cx.is_presenting() => {
                    if ui.button(recipe.name()).on_hover_text("Plan by this recipe").clicked() {
                        chosen = Some(recipe);
                        ui.close();
                    }
                }
                _ => {
                    ui.label(&spot.name);
                }
            }
            figure_ui(ui, units::bytes(spot.size_bytes));
            figure_ui(ui, format!("{:.2}", spot.bits_per_weight));
            let damage = number_with_interval(spot.damage, spot.stderr.unwrap_or(0.0), "").text();
            let is_measured = matches!(spot.kind, Kind::Measured(_));
            figure_ui(ui, if is_measured { format!("{damage} measured") } else { damage });
            ui.end_row();
        }
    });
    chosen
}

fn table_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, resolved: &ResolvedPlan, memory: &mut Memory) {
    let mut toggled = None;
    ui.push_id("plan table", |ui| {
        ui.spacing_mut().item_spacing.y = 0.0;
        let figure = |width: f32| Column::initial(width).at_least(40.0).resizable(true).clip(true);
        let table = TableBuilder::new(ui)
            .striped(false)
            .auto_shrink(false)
            .cell_layout(Layout::left_to_right(Align::Center))
            .column(Column::initial(150.0).at_least(96.0).resizable(true).clip(true))
            .column(Column::initial(58.0).at_least(40.0).resizable(true).clip(true))
            .column(Column::initial(42.0).at_least(36.0).resizable(true).clip(true))
            .column(Column::initial(84.0).at_least(76.0).resizable(true).clip(true))
            .column(Column::exact(24.0))
            .column(figure(74.0))
            .column(figure(44.0))
            .column(figure(66.0))
            .column(figure(66.0))
            .column(Column::remainder().at_least(60.0).clip(true));
        let heads = [
            ("tensor", false),
            ("role", false),
            ("from", false),
            ("to", false),
            ("", false),
            ("size", true),
            ("bpw", true),
            ("error", true),
            ("KLD", true),
            ("why", false),
        ];
        table
            .header(space::ROW, |mut header| {
                for (text, is_right) in heads {
                    header.col(|ui| head_ui(ui, text, is_right));
                }
            })
            .body(|body| {
                body.rows(space::ROW, memory.rows.len(), |mut line| match memory.rows[line.index()] {
                    Row::Group(index) => {
                        let group = &memory.groups[index];
                        let is_open = !memory.collapsed.contains(&group.layer);
                        if group_row_ui(&mut line, group, is_open) {
                            toggled = Some(group.layer);
                        }
                    }
                    Row::Tensor(index) => {
                        let Some(decision) = resolved.decisions.get(index) else { return };
                        line.set_selected(cx.state().selection.tensors.contains(&index));
                        let costs = memory.costs.get(index).copied().unwrap_or_default();
                        tensor_row_ui(&mut line, cx, document, decision, costs);
                    }
                });
            });
    });
    if let Some(layer) = toggled {
        if !memory.collapsed.remove(&layer) {
            memory.collapsed.insert(layer);
        }
        memory.rows = rows_of(&memory.groups, &memory.collapsed);
    }
}

fn group_row_ui(line: &mut egui_extras::TableRow<'_, '_>, group: &Group, is_open: bool) -> bool {
    let mut is_clicked = false;
    let name = group.layer.map_or_else(|| "model".to_owned(), |layer| format!("layer {layer}"));
    line.col(|ui| {
        let icon = if is_open { icons::Icon::Down } else { icons::Icon::Right };
        let (rect, _) = ui.allocate_exact_size(vec2(14.0, space::ROW_COMPACT), Sense::hover());
        icons::paint(ui.painter(), icon, rect.center(), 12.0, ui.tokens().weak);
        is_clicked = ui.add(Button::new(Type::Strong.text(name.as_str())).frame_when_inactive(false)).clicked();
    });
    line.col(|ui| {
        caption_ui(ui, format!("{} tensors", group.tensors.len()));
    });
    for _ in 0..3 {
        line.col(|_| ());
    }
    line.col(|ui| {
        let text = format!("{} before", units::bytes(group.old_bytes));
        figure_ui(ui, units::bytes(group.new_bytes)).on_hover_text(text);
    });
    line.col(|ui| {
        figure_ui(ui, format!("{:.2}", units::bits_per_weight(group.new_bytes, group.weight_count)));
    });
    for _ in 0..3 {
        line.col(|_| ());
    }
    is_clicked
}

fn tensor_row_ui(
    line: &mut egui_extras::TableRow<'_, '_>,
    cx: &mut Cx<'_>,
    document: &Document,
    decision: &Decision,
    costs: [Option<f64>; 2],
) {
    let index = decision.tensor_index;
    let Some(tensor) = document.checkpoint.tensors.get(index) else { return };
    let name = tensor.name.as_str();
    let is_editing = !cx.is_presenting();
    line.col(|ui| {
        ui.add_space(space::M);
        let is_selected = cx.state().selection.tensors.contains(&index);
        let button = Button::selectable(is_selected, short_name(name)).truncate();
        let response = ui.add(button).on_hover_text(name).accessible_name(name);
        if response.clicked() {
            let modifiers = ui.input(|input| input.modifiers);
            let mode = if modifiers.command {
                SelectMode::Toggle
            } else if modifiers.shift {
                SelectMode::Extend
            } else {
                SelectMode::Replace
            };
            cx.send(Command::Select { tensor: index, mode });
        }
    });
    line.col(|ui| {
        caption_ui(ui, tensor.role.name());
    });
    line.col(|ui| {
        let weak = ui.tokens().weak;
        ui.label(Type::MonoSmall.text(decision.old_dtype.to_string()).color(weak));
    });
    line.col(|ui| {
        let to = decision.dtype.to_string();
        if is_editing {
            choice_ui(ui, cx, document, index, name, &to);
        } else {
            ui.label(Type::Mono.text(to));
        }
    });
    line.col(|ui| {
        let mut is_protected = matches!(decision.why, Why::Protected(_));
        ui.add_enabled_ui(is_editing, |ui| {
            if lock_toggle_ui(ui, &mut is_protected, name).changed() {
                cx.send(Command::SetProtected { tensors: subjects(cx, index), protect: is_protected });
            }
        });
    });
    line.col(|ui| {
        let text = format!("{} before", units::bytes(decision.old_bytes));
        figure_ui(ui, units::bytes(decision.new_bytes)).on_hover_text(text);
    });
    line.col(|ui| {
        figure_ui(ui, format!("{:.2}", decision.bits_per_weight()));
    });
    for cost in costs {
        line.col(|ui| {
            figure_ui(ui, cost.map_or_else(|| "–".to_owned(), units::significant));
        });
    }
    line.col(|ui| {
        let sentence = decision.sentence();
        let color = if decision.fell_back_from.is_some() { ui.tokens().undecided } else { ui.tokens().weak };
        let label = eframe::egui::Label::new(Type::Small.text(sentence.as_str()).color(color)).truncate();
        ui.add(label).on_hover_text(sentence);
    });
}

fn choice_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, index: usize, name: &str, to: &str) {
    let row_len = document.checkpoint.tensors.get(index).map(TensorInfo::row_len);
    let name = format!("Format of {name}");
    let menu = FormatMenu { name: &name, selected: to, width: 72.0, none: Some("as the plan says"), row_len };
    match format_menu_ui(ui, menu, document.plan().target().formats()).1 {
        Some(FormatChoice::None) => cx.send(Command::ClearChoices { tensors: subjects(cx, index) }),
        Some(FormatChoice::Format(format)) => cx.send(Command::SetFormat { tensors: subjects(cx, index), format }),
        None => {}
    }
}

/// The whole selection where the row is part of it, else the row alone.
fn subjects(cx: &Cx<'_>, index: usize) -> Vec<usize> {
    let selected = &cx.state().selection.tensors;
    if selected.contains(&index) { selected.iter().copied().collect() } else { vec![index] }
}

/// A tensor's name without what its group and its ending say already.
fn short_name(name: &str) -> &str {
    let name = name.strip_suffix(".weight").unwrap_or(name);
    let mut rest = name.strip_prefix("model.").unwrap_or(name);
    if let Some(after) = rest.strip_prefix("layers.") {
        rest = after.split_once('.').map_or(after, |(_, tail)| tail);
    }
    rest
}

impl Memory {
    fn update(&mut self, document: &Document) {
        self.frontier.update(document);
        self.targets.update(document);
        let resolved = document.resolved.as_ref().ok();
        let is_other = !common::is_same(self.checkpoint.as_ref(), Some(&document.checkpoint));
        let is_replanned = !common::is_same(self.resolved.as_ref(), resolved);
        if is_other {
            self.checkpoint = Some(document.checkpoint.clone());
            self.collapsed.clear();
        }
        if is_other || is_replanned {
            self.resolved = resolved.cloned();
            self.groups = resolved.map(|resolved| groups(&document.checkpoint, resolved)).unwrap_or_default();
            self.rows = rows_of(&self.groups, &self.collapsed);
        }
        let tables = ["weight", "kld"].map(|id| document.sensitivity.get(id));
        let are_same = tables.iter().zip(&self.tables).all(|(now, then)| common::is_same(then.as_ref(), *now));
        if is_other || is_replanned || !are_same {
            self.tables = tables.map(|table| table.cloned());
            self.costs =
                resolved.map(|resolved| costs(&document.checkpoint, resolved, &self.tables)).unwrap_or_default();
        }
    }
}

/// Tensors by layer, what lies outside of them first; in the checkpoint's order of layers.
fn groups(checkpoint: &Checkpoint, resolved: &ResolvedPlan) -> Vec<Group> {
    let mut groups: std::collections::BTreeMap<Option<usize>, Group> = std::collections::BTreeMap::new();
    for decision in &resolved.decisions {
        let Some(tensor) = checkpoint.tensors.get(decision.tensor_index) else { continue };
        let group = groups.entry(tensor.layer).or_insert_with(|| Group {
            layer: tensor.layer,
            tensors: Vec::new(),
            old_bytes: 0,
            new_bytes: 0,
            weight_count: 0,
        });
        group.tensors.push(decision.tensor_index);
        group.old_bytes = group.old_bytes.saturating_add(decision.old_bytes);
        group.new_bytes = group.new_bytes.saturating_add(decision.new_bytes);
        group.weight_count = group.weight_count.saturating_add(decision.weight_count);
    }
    let mut groups: Vec<Group> = groups.into_values().collect();
    for group in &mut groups {
        group.tensors.sort_by_key(|&index| (checkpoint.tensors[index].role, index));
    }
    groups
}

fn rows_of(groups: &[Group], collapsed: &BTreeSet<Option<usize>>) -> Vec<Row> {
    let mut rows = Vec::new();
    for (index, group) in groups.iter().enumerate() {
        rows.push(Row::Group(index));
        if !collapsed.contains(&group.layer) {
            rows.extend(group.tensors.iter().map(|&tensor| Row::Tensor(tensor)));
        }
    }
    rows
}

/// What each choice costs under both metrics, where that is measured.
fn costs(
    checkpoint: &Checkpoint,
    resolved: &ResolvedPlan,
    tables: &[Option<Arc<SensitivityTable>>; 2],
) -> Vec<[Option<f64>; 2]> {
    let rows = tables.each_ref().map(|table| {
        let rows = table.iter().flat_map(|table| table.rows.iter().enumerate());
        rows.map(|(index, row)| (row.name.as_str(), index)).collect::<HashMap<&str, usize>>()
    });
    resolved
        .decisions
        .iter()
        .map(|decision| {
            let mut found = [None; 2];
            if decision.is_copy() {
                return found;
            }
            let Some(tensor) = checkpoint.tensors.get(decision.tensor_index) else { return found };
            for ((cost, table), rows) in found.iter_mut().zip(tables).zip(&rows) {
                *cost = table.as_ref().and_then(|table| {
                    let column = table.column(format::of_dtype(decision.dtype)?.id())?;
                    let row = table.rows.get(*rows.get(tensor.name.as_str())?)?;
                    Some(row.cells.get(column)?.as_ref()?.value)
                });
            }
            found
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::plan::{Plan, resolve};

    fn demo() -> (Checkpoint, ResolvedPlan) {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo");
        let checkpoint = Checkpoint::open(&path).expect("the demo opens");
        let plan = Plan::of_recipe(Target::Gguf, None, Recipe::Q4KM);
        let resolved = resolve(&plan, &checkpoint).expect("resolves");
        (checkpoint, resolved)
    }

    #[test]
    fn every_tensor_is_in_one_group_and_their_bytes_are_the_plans() {
        let (checkpoint, resolved) = demo();
        let groups = groups(&checkpoint, &resolved);
        assert_eq!(groups[0].layer, None);
        assert_eq!(groups.iter().map(|group| group.tensors.len()).sum::<usize>(), checkpoint.tensors.len());
        assert_eq!(groups.iter().map(|group| group.new_bytes).sum::<u64>(), resolved.new_bytes);
        let all = rows_of(&groups, &BTreeSet::new());
        assert_eq!(all.len(), groups.len() + checkpoint.tensors.len());
        let without_first = rows_of(&groups, &BTreeSet::from([None]));
        assert_eq!(without_first.len(), all.len() - groups[0].tensors.len());
    }

    #[test]
    fn names_leave_out_what_the_group_says() {
        assert_eq!(short_name("model.layers.3.mlp.down_proj.weight"), "mlp.down_proj");
        assert_eq!(short_name("model.embed_tokens.weight"), "embed_tokens");
        assert_eq!(short_name("lm_head.weight"), "lm_head");
    }
}
