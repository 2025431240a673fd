//! What export targets would not take of the plan, and the nearest that they do, one click away.

use std::sync::Arc;

use eframe::egui::containers::menu::{MenuButton, MenuConfig};
use eframe::egui::{PopupCloseBehavior, ScrollArea, Ui};

use super::common::caption_ui;
use crate::app::context::Cx;
use crate::app::theme::{Type, UiTokens as _, space};
use crate::app::widgets::{State, secondary_button_ui, state_word_ui};
use crate::engine::checkpoint::Checkpoint;
use crate::engine::plan::legality::{Issue, RUNTIMES, legality};
use crate::engine::plan::{Plan, Target};
use crate::workbench::{Command, Document};

/// Issues that are listed for a target; the rest are counted.
const MOST_ISSUES: usize = 4;

/// What one target makes of the plan.
struct Found {
    target: Target,
    runtime: &'static str,
    /// What it would not take, or why that could not be looked at.
    issues: Result<Vec<Issue>, String>,
}

/// What the menu remembers between frames.
#[derive(Default)]
pub(super) struct Memory {
    checkpoint: Option<Arc<Checkpoint>>,
    plan: Option<Plan>,
    found: Vec<Found>,
}

impl Memory {
    /// Looks again where the plan has changed.
    pub(super) fn update(&mut self, document: &Document) {
        let is_same = self.checkpoint.as_ref().is_some_and(|own| Arc::ptr_eq(own, &document.checkpoint));
        if is_same && self.plan.as_ref() == Some(document.plan()) {
            return;
        }
        self.checkpoint = Some(document.checkpoint.clone());
        self.plan = Some(document.plan().clone());
        let look = |(target, runtime)| {
            let issues = legality(document.plan(), &document.checkpoint, target).map_err(|err| err.to_string());
            Found { target, runtime, issues }
        };
        self.found = RUNTIMES.into_iter().map(look).collect();
    }
}

/// The menu: every target with what it would not take.
pub(super) fn targets_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, memory: &Memory) {
    let own = document.plan().target();
    let has_issues = |found: &Found| found.issues.as_ref().map_or(true, |issues| !issues.is_empty());
    let is_wrong = memory.found.iter().any(|found| found.target == own && has_issues(found));
    let color = if is_wrong { ui.tokens().undecided } else { ui.tokens().text };
    let config = MenuConfig::new().close_behavior(PopupCloseBehavior::CloseOnClickOutside);
    let menu = MenuButton::new(Type::Body.text("Legal for…").color(color)).config(config);
    let (response, _) = menu.ui(ui, |ui| {
        ui.set_min_width(420.0);
        ScrollArea::vertical().max_height(460.0).show(ui, |ui| {
            for found in &memory.found {
                target_ui(ui, cx, own, found);
            }
        });
    });
    response
        .on_hover_text("What each runtime would not load of this plan, and the nearest that it does")
        .accessible_name("Legality for export targets");
}

fn target_ui(ui: &mut Ui, cx: &mut Cx<'_>, own: Target, found: &Found) {
    let Found { target, runtime, issues } = found;
    let issues = match issues {
        Ok(issues) => issues.as_slice(),
        Err(err) => {
            caption_ui(ui, err.as_str());
            return;
        }
    };
    ui.horizontal(|ui| {
        ui.label(Type::Strong.text(*runtime));
        state_word_ui(ui, if issues.is_empty() { State::Met } else { State::Missed });
        let text = match (issues.is_empty(), *target == own) {
            (true, true) => return,
            (true, false) => format!("Write for {target}"),
            (false, _) => format!("Nearest legal for {target}"),
        };
        if secondary_button_ui(ui, &text, true).on_hover_text("One step of undo").clicked() {
            cx.send(Command::MakeLegal(*target));
        }
    });
    for issue in issues.iter().take(MOST_ISSUES) {
        caption_ui(ui, issue.sentence());
    }
    if issues.len() > MOST_ISSUES {
        caption_ui(ui, format!("and {} more", issues.len() - MOST_ISSUES));
    }
    ui.add_space(space::S);
}
