//! The selection at the right: what it is, how its weights look, what each format would do to it,
//! and the controls that decide.

use eframe::egui::Ui;

use crate::app::context::Cx;
use crate::app::plots::curve::{Curve, CurvePoint, curve_ui};
use crate::app::plots::histogram::{Bins, Histogram, histogram_ui};
use crate::app::theme::{Type, UiTokens as _, space};
use crate::app::widgets::{
    FormatChoice, FormatMenu, KeyValue, Level, Notice, empty_ui, format_menu_ui, key_values_ui, lock_toggle_ui,
    notice_ui, quiet_button_ui, section_ui, segments_ui,
};
use crate::engine::profile::TensorProfile;
use crate::engine::sensitivity::metric;
use crate::engine::{plan::Why, units};
use crate::workbench::{Action, Command, Document};

/// What the inspector remembers.
#[derive(Default)]
pub struct Memory {
    /// 0 is logarithmic, 1 linear.
    scale: usize,
    /// Index among the metrics that are measured.
    metric: usize,
}

/// Paints the inspector.
pub fn inspector_ui(ui: &mut Ui, cx: &mut Cx<'_>) {
    let Some(document) = cx.document() else {
        ui.label(Type::Body.text("Nothing is open").color(ui.tokens().weak));
        return;
    };
    let selection = &cx.state().selection;
    let focus = selection.focus.filter(|index| *index < document.checkpoint.tensors.len());
    let Some(focus) = focus else {
        if empty_ui(
            ui,
            "Nothing selected",
            "Click a tensor in the list, a ridge or a cell of the map",
            Some("Select all linears"),
        ) {
            cx.act(Action::SelectAllLinears);
        }
        return;
    };
    let chosen: Vec<usize> =
        if selection.tensors.contains(&focus) { selection.tensors.iter().copied().collect() } else { vec![focus] };
    head_ui(ui, document, focus, chosen.len());
    choice_ui(ui, cx, document, focus, &chosen);
    if let Some(fault) = document.profile_faults.get(&focus) {
        notice_ui(
            ui,
            &Notice {
                level: Level::Warning,
                text: &fault.cause,
                detail: fault.remedy.as_deref().unwrap_or(""),
                action: None,
            },
        );
    }
    match &document.profiles[focus] {
        Some(profile) => profile_ui(ui, cx, document, profile),
        None if document.profile_faults.contains_key(&focus) => {}
        None => {
            ui.add_space(space::M);
            ui.label(Type::Small.text("Weights are being counted").color(ui.tokens().weak));
        }
    }
    error_ui(ui, cx, document, focus);
}

fn head_ui(ui: &mut Ui, document: &Document, focus: usize, count: usize) {
    let tensor = &document.checkpoint.tensors[focus];
    let name = tensor.name.strip_prefix("model.").unwrap_or(&tensor.name);
    ui.label(Type::Heading.text(name.strip_suffix(".weight").unwrap_or(name)));
    let shape: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
    let line = format!(
        "{} · {} · {} · {:.2} bpw",
        shape.join(" × "),
        tensor.dtype,
        units::bytes(tensor.byte_count),
        tensor.bits_per_weight()
    );
    ui.label(Type::Small.text(line).color(ui.tokens().weak));
    if count > 1 {
        ui.label(
            Type::Small
                .text(format!("and {} more selected: choices below go to all", count - 1))
                .color(ui.tokens().accent),
        );
    }
}

fn choice_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, focus: usize, chosen: &[usize]) {
    let decision = document.resolved.as_ref().ok().and_then(|resolved| resolved.decisions.get(focus));
    section_ui(ui, "Choice");
    let Some(decision) = decision else {
        if let Err(err) = &document.resolved {
            notice_ui(
                ui,
                &Notice {
                    level: Level::Error,
                    text: "The plan cannot be applied",
                    detail: &err.to_string(),
                    action: None,
                },
            );
        }
        return;
    };
    ui.horizontal(|ui| {
        let is_protected = matches!(decision.why, Why::Protected(_));
        if cx.is_presenting() {
            ui.label(Type::Body.text(decision.dtype.name()));
            return;
        }
        let label = ui.label(Type::Body.text("Store as").color(ui.tokens().weak));
        let menu = FormatMenu {
            name: "Store as",
            selected: decision.dtype.name(),
            width: 96.0,
            none: None,
            row_len: Some(document.checkpoint.tensors[focus].row_len()),
        };
        let (response, picked) = format_menu_ui(ui, menu, document.plan().target().formats());
        response.labelled_by(label.id).on_hover_text("Format of the selected tensors in the candidate");
        if let Some(FormatChoice::Format(format)) = picked {
            cx.send(Command::SetFormat { tensors: chosen.to_vec(), format });
        }
        let mut protect = is_protected;
        if lock_toggle_ui(ui, &mut protect, "the selection").on_hover_text("Protect: keep the stored values").changed()
        {
            cx.send(Command::SetProtected { tensors: chosen.to_vec(), protect });
        }
        if matches!(decision.why, Why::Rule(_) | Why::Protected(_))
            && quiet_button_ui(ui, "Clear").on_hover_text(Action::ClearChoices.tooltip()).clicked()
        {
            cx.send(Command::ClearChoices { tensors: chosen.to_vec() });
        }
    });
    ui.add_space(space::XS);
    let line = format!(
        "{} → {} · {:.2} bpw",
        units::bytes(decision.old_bytes),
        units::bytes(decision.new_bytes),
        decision.bits_per_weight()
    );
    ui.label(Type::MonoSmall.text(line));
    ui.label(Type::Small.text(decision.sentence()).color(ui.tokens().weak));
}

/// The candidate's profile of the same tensor, to lay over the original's.
fn candidate_profile<'d>(document: &'d Document, name: &str) -> Option<(&'d TensorProfile, usize)> {
    let run = document.focused()?;
    let index = document.runs.iter().position(|known| known.id == run.id)?;
    Some((run.profiles.get(name)?, index))
}

/// The bins of a profile as plots take them.
pub fn bins(profile: &TensorProfile) -> Bins<'_> {
    Bins { min: profile.histogram.min, max: profile.histogram.max, counts: &profile.histogram.counts }
}

fn profile_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, profile: &TensorProfile) {
    section_ui(ui, "Weights");
    segments_ui(ui, "Counts", &["log", "linear"], &mut cx.memory.inspector.scale);
    ui.add_space(space::XS);
    let overlay = candidate_profile(document, &profile.name);
    let histogram = Histogram {
        name: &profile.name,
        original: bins(profile),
        candidate: overlay.map(|(profile, index)| (bins(profile), index)),
        mean: profile.mean,
        sigma: profile.std,
        is_log: cx.memory.inspector.scale == 0,
    };
    histogram_ui(ui, &histogram, 150.0);
    let percent = |share: f64| format!("{:.3}", share * 100.0);
    let mut lines = vec![
        KeyValue::new("mean", units::significant(profile.mean), ""),
        KeyValue::new("standard deviation σ", units::significant(profile.std), ""),
        KeyValue::new(
            "range",
            format!("{} … {}", units::significant(profile.min), units::significant(profile.max)),
            "",
        ),
        KeyValue::new("largest magnitude", units::significant(profile.abs_max), ""),
        KeyValue::new(
            "excess kurtosis",
            profile.excess_kurtosis.map_or_else(|| "–".to_owned(), units::significant),
            "",
        )
        .hint("0 for a normal distribution; larger means heavier tails"),
        KeyValue::new("beyond 3 σ", percent(profile.beyond_3_sigma_share), "%")
            .hint("0.270 % for a normal distribution"),
        KeyValue::new("beyond 4 σ", percent(profile.beyond_4_sigma_share), "%")
            .hint("0.006 % for a normal distribution"),
        KeyValue::new("beyond 6 σ", percent(profile.beyond_6_sigma_share), "%")
            .hint("Outliers: they stretch the scale of their block"),
        KeyValue::new("zeros", percent(profile.zero_share), "%"),
    ];
    if profile.nan_count + profile.inf_count > 0 {
        lines.push(KeyValue::new("NaN", profile.nan_count.to_string(), ""));
        lines.push(KeyValue::new("infinite", profile.inf_count.to_string(), ""));
    }
    ui.add_space(space::S);
    key_values_ui(ui, &lines);
}

fn error_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, focus: usize) {
    let tensor = &document.checkpoint.tensors[focus];
    let measured: Vec<&str> = document
        .sensitivity
        .iter()
        .filter(|(id, _)| metric(id).is_some())
        .filter(|(_, table)| table.row(&tensor.name).is_some_and(|row| row.cells.iter().any(Option::is_some)))
        .map(|(id, _)| id.as_str())
        .collect();
    if measured.is_empty() {
        return;
    }
    section_ui(ui, "Error by format");
    let titles: Vec<&str> = measured.iter().map(|id| metric(id).map_or(*id, |metric| metric.title)).collect();
    let chosen = &mut cx.memory.inspector.metric;
    *chosen = (*chosen).min(measured.len() - 1);
    if measured.len() > 1 {
        segments_ui(ui, "Metric", &titles, chosen);
        ui.add_space(space::XS);
    }
    let id = measured[*chosen];
    let (Some(table), Some(metric)) = (document.sensitivity.get(id), metric(id)) else { return };
    ui.label(Type::Small.text(metric.label.name()).color(ui.tokens().weak)).on_hover_text(metric.description);
    let target = document.plan().target();
    let points: Vec<CurvePoint> = table
        .formats
        .iter()
        .filter_map(|format| {
            let cell = table.cell(&tensor.name, format)?;
            (cell.fell_back_to.is_none() && cell.value > 0.0).then(|| CurvePoint {
                format: format.clone(),
                bits: cell.bits_per_weight,
                error: cell.value,
                stderr: cell.stderr,
                is_legal: target.allows(format),
            })
        })
        .collect();
    let decision = document.resolved.as_ref().ok().and_then(|resolved| resolved.decisions.get(focus));
    let unit = if metric.unit.is_empty() { String::new() } else { format!(", {}", metric.unit) };
    let curve = Curve {
        name: tensor.name.clone(),
        metric: format!("{}{unit}", metric.title),
        points,
        chosen: decision.map(|decision| decision.dtype.name().to_owned()),
    };
    let (_, clicked) = curve_ui(ui, &curve, 190.0);
    if let Some(point) = clicked.and_then(|index| curve.points.get(index))
        && let Some(format) = crate::engine::format::find(&point.format)
        && !cx.is_presenting()
    {
        cx.send(Command::SetFormat { tensors: vec![focus], format: format.id() });
    }
}
