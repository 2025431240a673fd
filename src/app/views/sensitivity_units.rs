//! The pages of layers and heads: what each is worth, predicted and measured.

use std::collections::BTreeSet;

use eframe::egui::Ui;

use super::common::{action_button_ui, caption_ui};
use super::sensitivity::{basis_ui, group_ui};
use crate::app::context::Cx;
use crate::app::plots::depth::{Depth, DepthPoint, Series, Shape, depth_ui};
use crate::app::plots::heat_map::{Cell, Edge, HeatMap, Slot, heat_map_ui, height_for};
use crate::app::theme::space;
use crate::app::widgets::{card_ui, empty_ui, primary_button_ui, secondary_button_ui, section_ui, segments_ui, tag_ui};
use crate::engine::checkpoint::ModelConfig;
use crate::engine::sensitivity::kld::{self, Granularity};
use crate::engine::sensitivity::units::{self as unit_metrics, UnitKind, UnitMetric, UnitTable, UnitValue};
use crate::engine::sensitivity::{Group, Metric, SensitivityTable};
use crate::engine::units;
use crate::workbench::{Action, Command, Document, JobKind, KldRequest, action_of_units};

/// What a page remembers between frames.
#[derive(Default)]
pub(super) struct Memory {
    metric: usize,
    group: usize,
}

/// Value and standard error of a unit, in all or of one group.
fn figure(value: &UnitValue, group: usize) -> Option<(f64, f64)> {
    match group.checked_sub(1) {
        None => Some((value.value, value.stderr)),
        Some(index) => value.groups.get(index).map(|own| (own.value, own.stderr)),
    }
}

/// Paints the page of layers.
pub(super) fn layers_ui(
    ui: &mut Ui,
    cx: &mut Cx<'_>,
    document: &Document,
    memory: &mut Memory,
    format: &str,
    formats: &BTreeSet<&'static str>,
) {
    let own: Vec<&'static UnitMetric> =
        unit_metrics::metrics().iter().copied().filter(|metric| metric.kind == UnitKind::Layer).collect();
    let titles: Vec<&str> = own.iter().map(|metric| metric.metric.title).chain([kld::LAYER_METRIC.title]).collect();
    let Some(config) = &document.checkpoint.config else {
        empty_ui(ui, "Nothing to measure", "This checkpoint's network cannot be run by this version", None);
        return;
    };
    memory.metric = memory.metric.min(titles.len() - 1);
    let chosen = own.get(memory.metric);
    let metric = chosen.map_or(&kld::LAYER_METRIC, |own| &own.metric);
    let table = chosen.and_then(|own| document.units.get(own.metric.id));
    let by_format = document.sensitivity.get(kld::LAYER_METRIC.id).filter(|_| chosen.is_none());
    let basis = table.map(|table| &table.basis).or_else(|| by_format.and_then(|table| table.basis.as_ref()));
    ui.horizontal_wrapped(|ui| {
        segments_ui(ui, "Layer metric", &titles, &mut memory.metric);
        let groups: &[Group] = basis.map(|basis| basis.groups.as_slice()).unwrap_or_default();
        group_ui(ui, groups, &mut memory.group);
        tag_ui(ui, metric.label.name()).on_hover_text(metric.description);
        // Where nothing is measured yet, the button stands in the empty page.
        if cx.is_presenting() || (table.is_none() && by_format.is_none()) {
            return;
        }
        ui.add_space(space::M);
        let action = chosen.map_or(Some(Action::MeasureLayerKld), |own| action_of_units(own));
        if let Some(action) = action
            && button_ui(ui, cx, action)
        {
            measure(cx, action, formats);
        }
    });
    let (title, points) = match (table, by_format) {
        (Some(table), _) => (metric.title.to_owned(), unit_points(table, memory.group)),
        (None, Some(table)) => {
            let column = table.column(format).or_else(|| table.column("q4_k")).unwrap_or(0);
            let name = table.formats.get(column).map_or("", String::as_str);
            (format!("{}, {name}", metric.title), format_points(table, column, memory.group))
        }
        (None, None) => return missing_ui(ui, cx, metric, chosen.copied(), formats),
    };
    card_ui(ui, |ui| {
        section_ui(ui, &title);
        let unit = if metric.unit.is_empty() { String::new() } else { format!(", {}", metric.unit) };
        let layers = config.layers.len();
        if points.len() < layers {
            caption_ui(ui, format!("{} of {layers} layers measured", points.len()));
        }
        let ranked = words_of_extremes(&points);
        let series = vec![Series { name: String::new(), part: 0, points }];
        let metric_name = format!("{}{unit}", metric.title);
        let depth = Depth { title, metric: metric_name, layers, series, shape: Shape::Bars };
        depth_ui(ui, &depth, 300.0);
        if let Some(words) = ranked {
            caption_ui(ui, words);
        }
        if let Some(basis) = basis {
            basis_ui(ui, document, basis);
        }
    });
}

/// An action's button; KLD of layers, which takes long, is the page's primary one.
fn button_ui(ui: &mut Ui, cx: &mut Cx<'_>, action: Action) -> bool {
    let reason = cx.bench.unavailable(action);
    let button = match action {
        Action::MeasureLayerKld => primary_button_ui(ui, action.text(), reason.is_none()),
        _ => secondary_button_ui(ui, action.text(), reason.is_none()),
    };
    let button = match reason {
        Some(reason) => button.on_disabled_hover_text(reason),
        None => button.on_hover_text(action.tooltip()),
    };
    button.clicked()
}

/// Starts a measurement; KLD of layers in the formats that are chosen above.
fn measure(cx: &mut Cx<'_>, action: Action, formats: &BTreeSet<&'static str>) {
    if action != Action::MeasureLayerKld {
        cx.act(action);
        return;
    }
    let order = crate::engine::format::quantized().map(|format| format.id()).filter(|id| formats.contains(id));
    let request = KldRequest { formats: order.collect(), granularity: Granularity::Layer, ..KldRequest::default() };
    cx.send(Command::MeasureKld(request));
}

fn unit_points(table: &UnitTable, group: usize) -> Vec<DepthPoint> {
    let points = table.values.iter().filter_map(|value| {
        let (mean, stderr) = figure(value, group)?;
        Some(DepthPoint { layer: value.layer, value: mean, stderr: Some(stderr) })
    });
    points.collect()
}

fn format_points(table: &SensitivityTable, column: usize, group: usize) -> Vec<DepthPoint> {
    let points = table.rows.iter().filter_map(|row| {
        let cell = row.cells.get(column)?.as_ref()?;
        let (value, stderr) = match group.checked_sub(1) {
            None => (cell.value, cell.stderr),
            Some(index) => cell.groups.get(index).map(|own| (own.value, Some(own.stderr)))?,
        };
        Some(DepthPoint { layer: row.layer?, value, stderr })
    });
    points.collect()
}

/// Which layers matter least and most.
fn words_of_extremes(points: &[DepthPoint]) -> Option<String> {
    let order = |one: &&DepthPoint, other: &&DepthPoint| one.value.total_cmp(&other.value);
    let (least, most) = (points.iter().min_by(order)?, points.iter().max_by(order)?);
    (points.len() > 1).then(|| {
        format!(
            "Least in layer {} ({}), most in layer {} ({})",
            least.layer,
            units::significant(least.value),
            most.layer,
            units::significant(most.value)
        )
    })
}

/// Paints the page of heads.
pub(super) fn heads_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, memory: &mut Memory) {
    let own: Vec<&'static UnitMetric> =
        unit_metrics::metrics().iter().copied().filter(|metric| metric.kind != UnitKind::Layer).collect();
    let Some(config) = &document.checkpoint.config else {
        empty_ui(ui, "Nothing to measure", "This checkpoint's network cannot be run by this version", None);
        return;
    };
    memory.metric = memory.metric.min(own.len() - 1);
    let metric = own[memory.metric];
    let table = document.units.get(metric.metric.id);
    ui.horizontal_wrapped(|ui| {
        let titles: Vec<&str> = own.iter().map(|metric| metric.metric.title).collect();
        segments_ui(ui, "Head metric", &titles, &mut memory.metric);
        let groups = table.map(|table| table.basis.groups.as_slice()).unwrap_or_default();
        group_ui(ui, groups, &mut memory.group);
        tag_ui(ui, metric.metric.label.name()).on_hover_text(metric.metric.description);
        if cx.is_presenting() {
            return;
        }
        ui.add_space(space::M);
        if let Some(action) = action_of_units(metric).filter(|_| table.is_some()) {
            action_button_ui(ui, cx, action, false);
        }
    });
    let Some(table) = table else { return missing_ui(ui, cx, &metric.metric, Some(metric), &BTreeSet::new()) };
    let map = head_map(config, metric, table, memory.group);
    card_ui(ui, |ui| {
        section_ui(ui, &format!("{} by layer and {}", metric.metric.title, metric.kind.name()));
        heat_map_ui(ui, &map, height_for(map.rows.len()), None, &|_, _| false);
        let all = map.cells.iter().filter(|slot| **slot != Slot::Absent).count();
        if table.values.len() < all {
            caption_ui(ui, format!("{} of {all} measured", table.values.len()));
        }
        if metric.kind == UnitKind::Head && config.layers.iter().any(|layer| layer.kv_heads < layer.heads) {
            caption_ui(ui, "Heads that share keys and values can only be removed together: see the KV groups");
        }
        basis_ui(ui, document, &table.basis);
    });
}

/// Layers across and heads down.
fn head_map(config: &ModelConfig, metric: &UnitMetric, table: &UnitTable, group: usize) -> HeatMap {
    let count = |layer: usize| match metric.kind {
        UnitKind::KvGroup => config.layers[layer].kv_heads,
        _ => config.layers[layer].heads,
    };
    let layers = config.layers.len();
    let rows = (0..layers).map(count).max().unwrap_or(0);
    let slot = |layer: usize, index: usize| {
        if index >= count(layer) {
            return Slot::Absent;
        }
        let found = table.value(layer, Some(index)).and_then(|value| figure(value, group));
        found.map_or(Slot::Pending, |(value, stderr)| Slot::Done(Cell { value, stderr: Some(stderr) }))
    };
    let mut errors: Vec<f64> = table.values.iter().map(|value| value.stderr).collect();
    errors.sort_by(f64::total_cmp);
    HeatMap {
        metric: format!("{}, {}", metric.metric.title, metric.metric.label.name()),
        unit: metric.metric.unit.to_owned(),
        format: String::new(),
        rows: (0..rows).map(|index| format!("{} {index}", metric.kind.name())).collect(),
        columns: (0..layers).map(|layer| layer.to_string()).collect(),
        cells: (0..rows)
            .flat_map(|index| (0..layers).map(move |layer| (layer, index)))
            .map(|(l, i)| slot(l, i))
            .collect(),
        noise_floor: errors.get(errors.len() / 2).map(|median| 2.0 * median),
        edge: Edge::Mean,
    }
}

/// What is missing, and the button that measures it.
fn missing_ui(
    ui: &mut Ui,
    cx: &mut Cx<'_>,
    metric: &Metric,
    unit: Option<&'static UnitMetric>,
    formats: &BTreeSet<&'static str>,
) {
    let kind = if unit.is_some() { JobKind::Units } else { JobKind::Kld };
    if cx.bench.jobs().any(|job| job.kind == kind) {
        empty_ui(ui, "Being measured", "Values fill in as they are measured", None);
        return;
    }
    let action = unit.map_or(Some(Action::MeasureLayerKld), action_of_units);
    let Some(action) = action else { return };
    let reason = cx.bench.unavailable(action);
    let sentence = match reason {
        Some(reason) => format!("{}. {reason}", metric.description),
        None => metric.description.to_owned(),
    };
    let is_possible = reason.is_none() && !cx.is_presenting();
    if empty_ui(ui, "Not measured yet", &sentence, is_possible.then(|| action.text())) {
        measure(cx, action, formats);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::sensitivity::GroupValue;

    #[test]
    fn figures_are_of_the_group_that_is_chosen() {
        let own = GroupValue { value: 3.0, stderr: 0.5 };
        let value = UnitValue { layer: 0, index: None, value: 1.0, stderr: 0.1, groups: vec![own] };
        assert_eq!(figure(&value, 0), Some((1.0, 0.1)));
        assert_eq!(figure(&value, 1), Some((3.0, 0.5)));
        assert_eq!(figure(&value, 2), None);
    }

    #[test]
    fn the_least_and_the_most_are_named() {
        let point = |layer, value| DepthPoint { layer, value, stderr: None };
        let words = words_of_extremes(&[point(0, 3.0), point(1, 1.0), point(2, 2.0)]).expect("several");
        assert_eq!(words, "Least in layer 1 (1.00), most in layer 0 (3.00)");
        assert_eq!(words_of_extremes(&[point(0, 3.0)]), None);
    }
}
