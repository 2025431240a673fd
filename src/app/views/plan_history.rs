//! The plan's past: plans kept under a name, the steps that led here, and what changed since any of them.

use std::sync::Arc;

use eframe::egui::containers::menu::{MenuButton, MenuConfig};
use eframe::egui::{Grid, PopupCloseBehavior, ScrollArea, TextEdit, Ui};

use super::common::{caption_ui, combo_ui, figure_ui, head_ui};
use crate::app::context::Cx;
use crate::app::theme::{Type, space};
use crate::app::widgets::{quiet_button_ui, secondary_button_ui};
use crate::engine::plan::{Changes, Plan, ResolvedPlan, changes, resolve};
use crate::engine::sensitivity::SensitivityTable;
use crate::engine::units;
use crate::workbench::{Command, Document, RunId};

/// Steps of history that are listed, the latest first.
const MOST_STEPS: usize = 40;

/// Rows of changed tensors that are listed.
const MOST_ROWS: usize = 400;

/// What the plan is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Other {
    Named(String),
    Run(RunId),
    /// The plan before the step with this index.
    Step(usize),
}

/// What the menus remember between frames.
#[derive(Default)]
pub(super) struct Memory {
    name: String,
    other: Option<Other>,
    /// What `changes` were made of: the other plan, the plan as it is, and the table.
    sources: Option<(Plan, Arc<ResolvedPlan>, Option<Arc<SensitivityTable>>)>,
    changes: Option<Changes>,
}

fn menu<'a>(text: &'a str) -> MenuButton<'a> {
    MenuButton::new(text).config(MenuConfig::new().close_behavior(PopupCloseBehavior::CloseOnClickOutside))
}

/// Both menus: what was kept and done, and what changed.
pub(super) fn history_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, memory: &mut Memory) {
    let (response, _) = menu("History").ui(ui, |ui| {
        ui.set_min_width(320.0);
        kept_ui(ui, cx, document, memory);
        ui.separator();
        steps_ui(ui, cx, document);
    });
    response
        .on_hover_text("Plans kept under a name, and every step that led here")
        .accessible_name("History of the plan");
    let (response, _) = menu("What changed").ui(ui, |ui| {
        ui.set_min_width(520.0);
        changes_ui(ui, document, memory);
    });
    response
        .on_hover_text("The plan beside an earlier one, tensor by tensor")
        .accessible_name("What changed in the plan");
}

fn kept_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, memory: &mut Memory) {
    ui.horizontal(|ui| {
        let field = TextEdit::singleline(&mut memory.name).hint_text("name of this plan").desired_width(180.0);
        ui.add(field).accessible_name("Name to keep the plan under");
        let is_ready = !memory.name.trim().is_empty();
        if secondary_button_ui(ui, "Keep the plan", is_ready).clicked() {
            cx.send(Command::NamePlan(std::mem::take(&mut memory.name)));
        }
    });
    if document.named.is_empty() {
        caption_ui(ui, "No plan is kept under a name yet");
    }
    for named in &document.named {
        ui.horizontal(|ui| {
            ui.label(Type::Strong.text(named.name.as_str()));
            if named.plan == *document.plan() {
                caption_ui(ui, "as it is now");
            } else if secondary_button_ui(ui, &format!("Return to {}", named.name), true).clicked() {
                cx.send(Command::ReturnTo(named.name.clone()));
            }
            if quiet_button_ui(ui, &format!("Forget {}", named.name)).clicked() {
                cx.send(Command::ForgetNamed(named.name.clone()));
            }
        });
    }
}

fn steps_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document) {
    let steps: Vec<&str> = document.history.steps().collect();
    if steps.is_empty() {
        caption_ui(ui, "Nothing was changed yet");
        return;
    }
    caption_ui(ui, "Steps, the latest first; a click goes back to before it, redo comes back");
    ScrollArea::vertical().max_height(280.0).show(ui, |ui| {
        for (index, step) in steps.iter().enumerate().rev().take(MOST_STEPS) {
            if quiet_button_ui(ui, &format!("{} {step}", index + 1)).clicked() {
                cx.send(Command::UndoTo(index));
            }
        }
    });
}

/// The plan that `other` stands for.
fn plan_of<'a>(document: &'a Document, other: &Other) -> Option<&'a Plan> {
    match other {
        Other::Named(name) => document.named.iter().find(|named| named.name == *name).map(|named| &named.plan),
        Other::Run(id) => document.run(*id).map(|run| &run.plan),
        Other::Step(index) => document.history.past(usize::MAX).get(*index).map(|(_, plan)| plan),
    }
}

/// In words, as the list names it.
fn text_of(document: &Document, other: &Other) -> String {
    match other {
        Other::Named(name) => name.clone(),
        Other::Run(id) => document.run(*id).map_or_else(String::new, |run| format!("run {}", run.name)),
        Other::Step(index) => {
            let step = document.history.steps().nth(*index).unwrap_or_default();
            format!("before step {}: {step}", index + 1)
        }
    }
}

/// Everything that the plan can be compared with.
fn others(document: &Document) -> Vec<Other> {
    let named = document.named.iter().map(|named| Other::Named(named.name.clone()));
    let runs = document.runs.iter().rev().filter(|run| run.mask.is_none()).map(|run| Other::Run(run.id));
    let count = document.history.steps().count();
    let steps = (count.saturating_sub(MOST_STEPS)..count).rev().map(Other::Step);
    named.chain(runs).chain(steps).collect()
}

fn changes_ui(ui: &mut Ui, document: &Document, memory: &mut Memory) {
    let offered = others(document);
    let Some(first) = offered.first() else {
        caption_ui(ui, "Keep a plan under a name, run one or change one, to have something to compare with");
        return;
    };
    let other = memory.other.clone().filter(|other| offered.contains(other)).unwrap_or_else(|| first.clone());
    let chosen = combo_ui(ui, "Plan to compare with", &text_of(document, &other), 260.0, |ui| {
        offered.iter().find(|one| ui.selectable_label(**one == other, text_of(document, one)).clicked()).cloned()
    });
    memory.other = Some(chosen.unwrap_or(other));
    memory.update(document);
    let Some(found) = &memory.changes else {
        caption_ui(ui, "One of the two plans cannot be worked out for this checkpoint");
        return;
    };
    let damage = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), units::significant);
    caption_ui(
        ui,
        format!(
            "{} tensors differ, {} are alike; {} and a predicted damage of {} in all",
            found.tensors.len(),
            found.unchanged,
            signed_bytes(found.byte_difference()),
            damage(found.damage_difference())
        ),
    );
    ScrollArea::vertical().max_height(420.0).show(ui, |ui| {
        Grid::new("changed tensors").num_columns(5).spacing([space::L, space::XS]).show(ui, |ui| {
            for (text, is_right) in
                [("tensor", false), ("then", false), ("now", false), ("bytes", true), ("damage", true)]
            {
                head_ui(ui, text, is_right);
            }
            ui.end_row();
            for change in found.tensors.iter().take(MOST_ROWS) {
                ui.label(Type::Small.text(change.name.as_str()));
                ui.label(Type::MonoSmall.text(change.before.as_str()));
                ui.label(Type::MonoSmall.text(change.after.as_str()));
                figure_ui(ui, signed_bytes(change.byte_difference()));
                figure_ui(ui, damage(change.damage_difference()));
                ui.end_row();
            }
        });
    });
}

/// Bytes with a sign.
fn signed_bytes(difference: i64) -> String {
    let size = units::bytes(difference.unsigned_abs());
    if difference < 0 { format!("−{size}") } else { format!("+{size}") }
}

impl Memory {
    /// Compares anew where one of the plans or the table has changed.
    fn update(&mut self, document: &Document) {
        let other = self.other.as_ref().and_then(|other| plan_of(document, other));
        let (Some(other), Ok(now)) = (other, &document.resolved) else {
            (self.sources, self.changes) = (None, None);
            return;
        };
        let table = document.budget_table();
        let is_same = self.sources.as_ref().is_some_and(|(plan, resolved, known)| {
            plan == other && Arc::ptr_eq(resolved, now) && super::common::is_same(known.as_ref(), table)
        });
        if !is_same {
            let then = resolve(other, &document.checkpoint).ok();
            self.changes = then.map(|then| changes(&document.checkpoint, &then, now, table.map(Arc::as_ref)));
            self.sources = Some((other.clone(), now.clone(), table.cloned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_carry_their_sign() {
        assert_eq!([0, 2048, -512].map(signed_bytes), ["+0 B", "+2.00 KiB", "−512 B"]);
    }
}
