//! Pruning in steps from the heads view: how many, where to stop, and the steps that were kept.

use std::collections::BTreeSet;

use eframe::egui::{DragValue, Grid, Ui};

use super::common::{caption_ui, combo_ui, figure_ui, head_ui};
use super::heads;
use crate::app::context::Cx;
use crate::app::theme::space;
use crate::app::widgets::{quiet_button_ui, secondary_button_ui, section_with_ui, tag_ui};
use crate::engine::units;
use crate::workbench::{Command, Document, JobKind, PruneSteps};

/// What the row of controls remembers.
pub(super) struct Memory {
    count: usize,
    limits_kld: bool,
    max_kld: f64,
    /// `task/slice`, or `*` for each.
    slice: Option<String>,
    max_loss: f64,
    compensate: bool,
}

impl Default for Memory {
    fn default() -> Self {
        Self { count: 4, limits_kld: false, max_kld: 0.1, slice: None, max_loss: 0.02, compensate: false }
    }
}

/// The controls, and below them the steps of the last run.
pub(super) fn steps_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, memory: &mut heads::Memory) {
    ui.horizontal_wrapped(|ui| {
        let own = &mut memory.steps;
        caption_ui(ui, "In");
        ui.add(DragValue::new(&mut own.count).range(1..=50).speed(0.1)).accessible_name("Number of steps");
        caption_ui(ui, "steps");
        ui.checkbox(&mut own.limits_kld, "stop before KLD");
        let field = DragValue::new(&mut own.max_kld).range(0.0..=10.0).speed(0.005).max_decimals(4);
        ui.add_enabled(own.limits_kld, field).accessible_name("Largest KLD of a step");
        slice_ui(ui, document, own);
        let text = "keep means as biases";
        ui.checkbox(&mut own.compensate, text)
            .on_hover_text("What goes leaves its mean as a bias of o and down, by the model that each step begins with");
        let is_running = cx.bench.jobs().any(|job| job.kind == JobKind::PruneSteps);
        let take = memory.take();
        let takes_nothing = take.kv_groups + take.heads + take.channels == 0.0 && take.layers == 0;
        let reason = match (is_running, takes_nothing) {
            (true, _) => Some("Already pruning in steps"),
            (_, true) => Some("Choose a share to take first"),
            _ => document.cannot_prune_in_steps(memory.metric),
        };
        let button = secondary_button_ui(ui, "Prune in steps", reason.is_none());
        let button = match reason {
            Some(reason) => button.on_disabled_hover_text(reason),
            None => button.on_hover_text(
                "Takes a little, scores anew and measures; every step is kept as a plan. Goes on from what the plan takes \
                 away already",
            ),
        };
        if button.clicked() {
            let own = &memory.steps;
            cx.send(Command::PruneInSteps(Box::new(PruneSteps {
                metric: memory.metric,
                take,
                steps: own.count,
                max_kld: own.limits_kld.then_some(own.max_kld),
                slice: own.slice.clone().map(|slice| (slice, own.max_loss)),
                compensate: own.compensate,
            })));
        }
    });
    if !document.prune_steps.is_empty() {
        kept_ui(ui, cx, document);
    }
}

/// Which slice must not lose more than how much.
fn slice_ui(ui: &mut Ui, document: &Document, memory: &mut Memory) {
    let Some(tasks) = &document.tasks else {
        memory.slice = None;
        return;
    };
    let text = |slice: Option<&str>| match slice {
        None => "no slice is watched".to_owned(),
        Some("*") => "each slice".to_owned(),
        Some(name) => name.to_owned(),
    };
    let shown = text(memory.slice.as_deref());
    let chosen = combo_ui(ui, "Slice that steps watch", &shown, 160.0, |ui| {
        let names: BTreeSet<String> = tasks.items.iter().map(|item| format!("{}/{}", item.task, item.slice)).collect();
        let mut chosen = None;
        for name in [None, Some("*".to_owned())].into_iter().chain(names.into_iter().map(Some)) {
            if ui.selectable_label(memory.slice == name, text(name.as_deref())).clicked() {
                chosen = Some(name);
            }
        }
        chosen
    });
    memory.slice = chosen.unwrap_or(memory.slice.take());
    caption_ui(ui, "may lose");
    let mut percent = memory.max_loss * 100.0;
    let field = DragValue::new(&mut percent).range(0.0..=100.0).speed(0.1).max_decimals(1).suffix(" %");
    if ui.add_enabled(memory.slice.is_some(), field).accessible_name("Largest loss of the slice").changed() {
        memory.max_loss = percent / 100.0;
    }
}

fn kept_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document) {
    section_with_ui(ui, "Steps that were kept", |ui| {
        tag_ui(ui, "measured, weights only");
    });
    let whole = document.checkpoint.config.as_ref().map_or(1, |config| config.layer_weights()).max(1);
    Grid::new("kept steps").num_columns(5).spacing([space::L, space::XS]).show(ui, |ui| {
        for (title, is_right) in [("step", false), ("weights of layers", true), ("KLD", true), ("slice", true)] {
            head_ui(ui, title, is_right);
        }
        ui.end_row();
        for kept in &document.prune_steps {
            let step = &kept.step;
            ui.label(format!("{}", step.index)).on_hover_text(&kept.name);
            figure_ui(ui, format!("{:.1} %", 100.0 * step.layer_weights as f64 / whole as f64));
            let kld = format!("{} ± {}", units::significant(step.kld), units::significant(step.kld_stderr));
            figure_ui(ui, kld);
            let slice = step.slice.as_ref().map_or_else(String::new, |slice| {
                let (loss, stderr) = (100.0 * slice.loss, 100.0 * slice.loss_stderr);
                format!("{} {}", slice.slice, units::minus(&format!("{:+.1} ± {stderr:.1} points", -loss)))
            });
            figure_ui(ui, slice);
            let is_plan = document.plan().prune().removal == step.removal;
            let name = format!("Return to step {}", step.index);
            if is_plan {
                caption_ui(ui, "the plan now");
            } else if !cx.is_presenting() && quiet_button_ui(ui, &name).clicked() {
                cx.send(Command::ReturnTo(kept.name.clone()));
            }
            ui.end_row();
        }
    });
}
