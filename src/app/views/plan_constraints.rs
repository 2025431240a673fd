//! The plan view's constraints: chips that follow every edit, and a row in which they are stated.

use eframe::egui::{Checkbox, DragValue, TextEdit, Ui};

use super::common::{action_button_ui, caption_ui, combo_ui};
use super::gate_strip::{gate_strip_ui, rollback_ui};
use crate::app::context::Cx;
use crate::app::panels::standing::chips_ui;
use crate::app::widgets::secondary_button_ui;
use crate::engine::plan::constraints::{CACHE_TYPES, Constraints, MemoryLimit, RequestLimit, SliceMargin};
use crate::engine::plan::{Plan, ResolvedPlan};
use crate::workbench::{Action, Command, PlanStanding};

/// Bytes in the unit of the controls.
const MIB: f64 = 1_048_576.0;

/// What the rows remember between frames.
#[derive(Default)]
pub(super) struct Memory {
    is_open: bool,
    /// A slice being typed, and its margin in points.
    slice: String,
    points: f64,
}

/// The button that opens and closes the lines in which constraints are stated.
pub(super) fn toggle_ui(ui: &mut Ui, memory: &mut Memory) {
    let text = if memory.is_open { "Constraints done" } else { "State constraints" };
    let help = "What the result must keep to: the planner's limits, and the gates of its candidates";
    if secondary_button_ui(ui, text, true).on_hover_text(help).clicked() {
        memory.is_open = !memory.is_open;
    }
}

/// A line of chips where constraints are stated; below it, while open, a line a kind of constraint.
pub(super) fn constraints_ui(
    ui: &mut Ui,
    cx: &mut Cx<'_>,
    plan: &Plan,
    resolved: &ResolvedPlan,
    standing: &PlanStanding,
    memory: &mut Memory,
) {
    if !plan.constraints().is_empty() {
        ui.horizontal_wrapped(|ui| {
            caption_ui(ui, "Constraints");
            chips_ui(ui, cx, &standing.checks);
            if !cx.is_presenting() {
                action_button_ui(ui, cx, Action::FitConstraints, false);
                action_button_ui(ui, cx, Action::ExportGates, false);
            }
        });
    }
    gates_ui(ui, cx);
    if !memory.is_open || cx.is_presenting() {
        return;
    }
    let mut next = plan.constraints().clone();
    ui.horizontal_wrapped(|ui| {
        sizes_ui(ui, &mut next, resolved);
        speeds_ui(ui, &mut next, standing);
        let kld = 0.02;
        limit_ui(ui, "KLD", "Largest KLD", &mut next.max_kld, kld, 0.001, " nats");
        slices_ui(ui, &mut next, memory);
    });
    if next != *plan.constraints() {
        cx.send(Command::SetConstraints(Box::new(next)));
    }
}

/// The verdicts of the candidate in focus, so that the gate that binds is seen while planning.
fn gates_ui(ui: &mut Ui, cx: &mut Cx<'_>) {
    let Some(document) = cx.document() else { return };
    let focused = document.focused().and_then(|run| Some((run, run.comparison.as_deref()?)));
    let judged = focused.filter(|(_, comparison)| !comparison.gates.is_empty());
    if judged.is_none() && document.gates.is_none() {
        return;
    }
    ui.horizontal_wrapped(|ui| {
        match judged {
            Some((run, comparison)) => {
                caption_ui(ui, format!("Gates of {}", run.name));
                gate_strip_ui(ui, &comparison.gates);
                rollback_ui(ui, comparison);
            }
            None => {
                let count = document.gates.as_ref().map_or(0, |gates| gates.gates.len());
                caption_ui(ui, format!("{count} gates wait for a candidate that is evaluated"));
            }
        }
        if !cx.is_presenting() && document.gates.is_some() {
            action_button_ui(ui, cx, Action::DropGates, false);
        }
    });
}

/// A limit that is there or not, with its value.
fn limit_ui(
    ui: &mut Ui,
    text: &str,
    name: &str,
    value: &mut Option<f64>,
    usual: f64,
    speed: f64,
    suffix: &'static str,
) {
    let mut is_stated = value.is_some();
    if ui.add(Checkbox::new(&mut is_stated, text)).changed() {
        *value = is_stated.then_some(usual);
    }
    if let Some(value) = value {
        let least = f64::MIN_POSITIVE;
        let field = DragValue::new(value).range(least..=f64::MAX).speed(speed).max_decimals(4).suffix(suffix);
        ui.add(field).accessible_name(name);
    }
}

fn sizes_ui(ui: &mut Ui, next: &mut Constraints, resolved: &ResolvedPlan) {
    let in_mib = |bytes: u64| bytes as f64 / MIB;
    let now = in_mib(resolved.padded_bytes);
    let mut file = next.max_file_bytes.map(in_mib);
    let before = file;
    limit_ui(ui, "file size", "Largest file", &mut file, now, now / 200.0, " MiB");
    if file != before {
        next.max_file_bytes = file.map(|mib| ((mib * MIB) as u64).max(1));
    }
    let mut memory = next.max_memory.map(|memory| in_mib(memory.bytes));
    let before = memory;
    limit_ui(ui, "memory", "Largest memory", &mut memory, now * 2.0, now / 100.0, " MiB");
    if memory != before {
        let usual = next.max_memory;
        next.max_memory = memory.map(|mib| {
            let bytes = ((mib * MIB) as u64).max(1);
            usual.map_or_else(|| MemoryLimit::new(bytes), |known| MemoryLimit { bytes, ..known })
        });
    }
    if let Some(memory) = &mut next.max_memory {
        caption_ui(ui, "at");
        let field = DragValue::new(&mut memory.context).range(1..=1 << 24).speed(64).suffix(" tokens");
        ui.add(field).accessible_name("Tokens in the KV cache");
        let chosen = combo_ui(ui, "Type of the KV cache", memory.cache, 60.0, |ui| {
            CACHE_TYPES.into_iter().find(|id| ui.selectable_label(memory.cache == *id, *id).clicked())
        });
        memory.cache = chosen.unwrap_or(memory.cache);
    }
}

fn speeds_ui(ui: &mut Ui, next: &mut Constraints, standing: &PlanStanding) {
    let rounded = |speed: f64| (speed.max(1.0)).round();
    let [decode, prefill] = standing
        .speed
        .map_or([20.0, 200.0], |speed| [speed.decode_tokens_per_second, speed.prefill_tokens_per_second].map(rounded));
    let (name, value) = ("Least decode speed", &mut next.min_decode_tokens_per_second);
    limit_ui(ui, "decode", name, value, decode, decode / 200.0, " tok/s");
    let (name, value) = ("Least prefill speed", &mut next.min_prefill_tokens_per_second);
    limit_ui(ui, "prefill", name, value, prefill, prefill / 200.0, " tok/s");
    let mut seconds = next.max_request.map(|request| request.seconds);
    let before = seconds;
    limit_ui(ui, "request", "Longest request", &mut seconds, 2.0, 0.01, " s");
    if seconds != before {
        let usual = next.max_request;
        next.max_request = seconds
            .map(|seconds| usual.map_or_else(|| RequestLimit::new(seconds), |known| RequestLimit { seconds, ..known }));
    }
    if let Some(request) = &mut next.max_request {
        let read = DragValue::new(&mut request.prompt_tokens).range(1..=1 << 24).suffix(" read");
        ui.add(read).accessible_name("Tokens read by a request");
        let written = DragValue::new(&mut request.output_tokens).range(1..=1 << 24).suffix(" written");
        ui.add(written).accessible_name("Tokens written by a request");
    }
}

fn slices_ui(ui: &mut Ui, next: &mut Constraints, memory: &mut Memory) {
    let mut removed = None;
    for (index, margin) in next.slices.iter_mut().enumerate() {
        caption_ui(ui, format!("{} loses at most", margin.slice));
        let mut points = margin.max_loss * 100.0;
        let field = DragValue::new(&mut points).range(0.0..=100.0).speed(0.1).max_decimals(2).suffix(" points");
        if ui.add(field).accessible_name(format!("Largest loss of {}", margin.slice)).changed() {
            margin.max_loss = points / 100.0;
        }
        let text = format!("Forget {}", margin.slice);
        if secondary_button_ui(ui, &text, true).clicked() {
            removed = Some(index);
        }
    }
    if let Some(index) = removed {
        next.slices.remove(index);
    }
    let field = TextEdit::singleline(&mut memory.slice).hint_text("slice, such as facts/*").desired_width(132.0);
    ui.add(field).accessible_name("Slice that may not get worse");
    let points = DragValue::new(&mut memory.points).range(0.0..=100.0).speed(0.1).max_decimals(2).suffix(" points");
    ui.add(points).accessible_name("Points that it may lose");
    let margin = SliceMargin::new(memory.slice.trim(), memory.points / 100.0).ok();
    let is_new = !memory.slice.trim().is_empty()
        && margin.as_ref().is_some_and(|margin| next.slices.iter().all(|known| known.slice != margin.slice));
    if secondary_button_ui(ui, "Add slice", is_new).clicked() {
        next.slices.extend(margin);
        memory.slice.clear();
    }
}
