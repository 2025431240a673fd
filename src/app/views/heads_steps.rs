//! Pruning in steps from the heads view: how many, where to stop, and the steps that were kept.

use std::collections::BTreeSet;

use eframe::egui::{DragValue, Grid, ScrollArea, Ui};

use super::common::{caption_ui, figure_ui, head_ui};
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

/// The menu of a schedule: how many steps, where to stop, and its start.
pub(super) fn steps_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, memory: &mut heads::Memory) {
    let (response, _) = heads::controls_menu("In steps").ui(ui, |ui| menu_ui(ui, cx, document, memory));
    response
        .on_hover_text("Take a little, score anew, measure, and go on until a limit would be passed")
        .accessible_name("Pruning in steps");
}

fn menu_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, memory: &mut heads::Memory) {
    ui.set_min_width(300.0);
    let own = &mut memory.steps;
    ui.horizontal(|ui| {
        ui.add(DragValue::new(&mut own.count).range(1..=50).speed(0.1)).accessible_name("Number of steps");
        caption_ui(ui, "steps");
        ui.checkbox(&mut own.limits_kld, "stop before KLD");
        let field = DragValue::new(&mut own.max_kld).range(0.0..=10.0).speed(0.005).max_decimals(4);
        ui.add_enabled(own.limits_kld, field).accessible_name("Largest KLD of a step");
    });
    ui.checkbox(&mut own.compensate, "keep means as biases")
        .on_hover_text("What goes leaves its mean as a bias of o and down, by the model that each step begins with");
    slice_ui(ui, document, own);
    let is_running = cx.bench.jobs().any(|job| job.kind == JobKind::PruneSteps);
    let take = memory.take();
    let takes_nothing = take.kv_groups + take.heads + take.channels == 0.0 && take.layers == 0;
    let reason = match (is_running, takes_nothing, memory.slices.is_on) {
        (true, ..) => Some("Already pruning in steps"),
        (_, true, _) => Some("Choose a share to take first"),
        (.., true) => Some("Steps are scored by one metric: choose one instead of two slices"),
        _ => document.cannot_prune_in_steps(memory.metric),
    };
    let button = secondary_button_ui(ui, "Prune in steps", reason.is_none());
    let button = match reason {
        Some(reason) => button.on_disabled_hover_text(reason),
        None => button.on_hover_text("Every step is kept as a plan. Goes on from what the plan takes away already"),
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
        ui.close();
    }
}

/// Which slice must not lose more than how much.
fn slice_ui(ui: &mut Ui, document: &Document, memory: &mut Memory) {
    let Some(tasks) = &document.tasks else {
        memory.slice = None;
        return;
    };
    ui.horizontal(|ui| {
        caption_ui(ui, "The slice below may lose");
        let mut percent = memory.max_loss * 100.0;
        let field = DragValue::new(&mut percent).range(0.0..=100.0).speed(0.1).max_decimals(1).suffix(" %");
        if ui.add_enabled(memory.slice.is_some(), field).accessible_name("Largest loss of the slice").changed() {
            memory.max_loss = percent / 100.0;
        }
    });
    let text = |slice: Option<&str>| match slice {
        None => "no slice is watched".to_owned(),
        Some("*") => "each slice".to_owned(),
        Some(name) => name.to_owned(),
    };
    // A list and no menu: a menu within this one would close it.
    ScrollArea::vertical().max_height(180.0).show(ui, |ui| {
        let names: BTreeSet<String> = tasks.items.slices().map(|slice| slice.name()).collect();
        for name in [None, Some("*".to_owned())].into_iter().chain(names.into_iter().map(Some)) {
            if ui.selectable_label(memory.slice == name, text(name.as_deref())).clicked() {
                memory.slice = name;
            }
        }
    });
}

/// The steps of the last run; nothing where there was none.
pub(super) fn kept_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document) {
    if document.prune_steps.is_empty() {
        return;
    }
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
