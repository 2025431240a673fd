//! Beneath the map: one tensor over all formats, roles over depth, and how far the metrics can be
//! trusted: whether they rank tensors alike, and whether single damages add up to that of a whole plan.

use std::sync::Arc;

use eframe::egui::{Grid as Rows, Ui, vec2};

use super::common::{self, Grid, caption_ui, figure_ui, head_ui};
use super::sensitivity::select_mode;
use crate::app::context::Cx;
use crate::app::plots::curve::{Curve, CurvePoint, curve_ui};
use crate::app::plots::depth::{Depth, DepthPoint, Series, Shape, depth_ui};
use crate::app::theme::{Type, UiTokens as _, space};
use crate::app::widgets::{card_ui, section_ui};
use crate::engine::evaluation::Evaluation;
use crate::engine::format;
use crate::engine::plan::ResolvedPlan;
use crate::engine::sensitivity::{self, Metric, SensitivityTable};
use crate::engine::units;
use crate::workbench::{Command, Document, RunId};

/// What is shown now.
pub(super) struct Subject<'a> {
    pub document: &'a Document,
    pub metric: &'a Metric,
    /// The table, of one group of the text where one is chosen.
    pub table: &'a Arc<SensitivityTable>,
    pub format: &'a str,
    pub tensor: Option<usize>,
}

/// Shaped figures and what they were made of.
#[derive(Default)]
pub(super) struct Curves {
    bits_key: Option<BitsKey>,
    bits: Option<Curve>,
    depth_key: Option<(Arc<SensitivityTable>, String)>,
    depth: Option<Depth>,
    agreement: Agreement,
    additivity_key: Option<AdditivityKey>,
    additivity: Option<Additivity>,
}

struct BitsKey {
    table: Arc<SensitivityTable>,
    resolved: Option<Arc<ResolvedPlan>>,
    tensor: Option<usize>,
}

/// Whether metrics put the tensors in the same order, and what that was made of.
#[derive(Default)]
struct Agreement {
    tables: Vec<Arc<SensitivityTable>>,
    format: String,
    /// Titles of two metrics, Spearman's coefficient and the number of tensors.
    pairs: Vec<(&'static str, &'static str, f64, usize)>,
}

struct AdditivityKey {
    run: Option<RunId>,
    evaluation: Option<Arc<Evaluation>>,
    table: Option<Arc<SensitivityTable>>,
}

/// The sum of single damages beside the damage of all together.
#[derive(Clone, Debug, PartialEq)]
struct Additivity {
    run: String,
    sum: f64,
    whole: f64,
    stderr: f64,
}

impl Curves {
    /// Shapes what is shown, where something changed.
    pub(super) fn update(&mut self, subject: &Subject<'_>, grid: &Grid) {
        self.update_bits(subject);
        let depth_key = (subject.table.clone(), subject.format.to_owned());
        let is_same =
            self.depth_key.as_ref().is_some_and(|key| Arc::ptr_eq(&key.0, &depth_key.0) && key.1 == depth_key.1);
        if !is_same {
            self.depth = depth(grid, subject);
            self.depth_key = Some(depth_key);
        }
        self.agreement.update(subject.document, subject.format);
        self.update_additivity(subject.document);
    }

    fn update_bits(&mut self, subject: &Subject<'_>) {
        let resolved = subject.document.resolved.as_ref().ok();
        let is_current = self.bits_key.as_ref().is_some_and(|key| {
            key.tensor == subject.tensor
                && Arc::ptr_eq(&key.table, subject.table)
                && common::is_same(key.resolved.as_ref(), resolved)
        });
        if is_current {
            return;
        }
        self.bits_key =
            Some(BitsKey { table: subject.table.clone(), resolved: resolved.cloned(), tensor: subject.tensor });
        self.bits = subject.tensor.and_then(|tensor| {
            let name = &subject.document.checkpoint.tensors.get(tensor)?.name;
            let chosen = resolved.and_then(|plan| plan.decisions.get(tensor)).map(|decision| decision.dtype.name());
            let target = subject.document.plan().target();
            bits_curve(subject.table, subject.metric, name, chosen, |format| target.allows(format))
        });
    }

    fn update_additivity(&mut self, document: &Document) {
        let run = document.focused();
        let evaluation = run.and_then(|run| run.evaluation.as_ref());
        let table = document.sensitivity.get("kld");
        let is_current = self.additivity_key.as_ref().is_some_and(|key| {
            key.run == run.map(|run| run.id)
                && common::is_same(key.evaluation.as_ref(), evaluation)
                && common::is_same(key.table.as_ref(), table)
        });
        if is_current {
            return;
        }
        self.additivity_key =
            Some(AdditivityKey { run: run.map(|run| run.id), evaluation: evaluation.cloned(), table: table.cloned() });
        let found = document.additivity().zip(run);
        self.additivity =
            found.map(|((sum, whole, stderr), run)| Additivity { run: run.name.clone(), sum, whole, stderr });
    }
}

impl Agreement {
    fn update(&mut self, document: &Document, format: &str) {
        let tables: Vec<(&'static Metric, &Arc<SensitivityTable>)> = super::sensitivity::metrics()
            .into_iter()
            .filter_map(|metric| Some((metric, document.sensitivity.get(metric.id)?)))
            .collect();
        let are_same = self.tables.len() == tables.len()
            && self.tables.iter().zip(&tables).all(|(then, (_, now))| Arc::ptr_eq(then, now));
        if are_same && self.format == format {
            return;
        }
        format.clone_into(&mut self.format);
        self.pairs.clear();
        for (index, (one, own)) in tables.iter().enumerate() {
            for (other, theirs) in &tables[index + 1..] {
                if let Some((rho, count)) = agreement(own, theirs, format) {
                    self.pairs.push((one.title, other.title, rho, count));
                }
            }
        }
        self.tables = tables.into_iter().map(|(_, table)| table.clone()).collect();
    }
}

/// One tensor under every format; a click chooses one.
pub(super) fn bits_ui(ui: &mut Ui, cx: &mut Cx<'_>, subject: &Subject<'_>, curves: &Curves) {
    card_ui(ui, |ui| {
        section_ui(ui, "Error against bits");
        let Some(tensor) = subject.tensor else {
            caption_ui(ui, "Select a tensor in the map");
            return;
        };
        let name = subject.document.checkpoint.tensors.get(tensor).map_or("", |tensor| tensor.name.as_str());
        ui.label(Type::Mono.text(name));
        let Some(curve) = &curves.bits else {
            caption_ui(ui, "This tensor is not measured");
            return;
        };
        let (_, clicked) = curve_ui(ui, curve, 260.0);
        if cx.is_presenting() {
            return;
        }
        caption_ui(ui, "Click a format to choose it for this tensor");
        let chosen = clicked.and_then(|index| curve.points.get(index));
        if let Some(format) = chosen.and_then(|point| format::find(&point.format)) {
            cx.send(Command::SetFormat { tensors: vec![tensor], format: format.id() });
        }
    });
}

/// A line per role over the layers; a click selects the tensor.
pub(super) fn depth_card_ui(ui: &mut Ui, cx: &mut Cx<'_>, curves: &Curves, grid: &Grid) {
    card_ui(ui, |ui| {
        section_ui(ui, "Roles over depth");
        let Some(depth) = &curves.depth else {
            caption_ui(ui, "No layer is measured in this format yet");
            return;
        };
        let (_, clicked) = depth_ui(ui, depth, 282.0);
        if let Some((series, layer)) = clicked
            && let Some(row) = grid.roles.iter().position(|role| depth.series[series].name == role.name())
            && let Some(column) = grid.layers.iter().position(|own| *own == Some(layer))
            && let Some(tensor) = grid.at(row, column)
        {
            let mode = select_mode(ui);
            cx.send(Command::Select { tensor, mode });
        }
    });
}

/// How far figures can be trusted.
pub(super) fn trust_ui(ui: &mut Ui, curves: &Curves, format: &str) {
    card_ui(ui, |ui| {
        section_ui(ui, &format!("Rank agreement in {format}"));
        if curves.agreement.pairs.is_empty() {
            caption_ui(ui, "Measure a second metric to see whether both rank the tensors alike");
        } else {
            agreement_ui(ui, &curves.agreement.pairs);
        }
        section_ui(ui, "Additivity");
        let Some(found) = &curves.additivity else {
            caption_ui(ui, "Measure KLD per tensor and evaluate a run to see whether single damages add up");
            return;
        };
        let ratio = found.whole / found.sum.max(f64::MIN_POSITIVE);
        ui.label(format!(
            "{}: single tensors add up to {} nats, all together measure {} ± {}",
            found.run,
            units::significant(found.sum),
            units::significant(found.whole),
            units::significant(1.96 * found.stderr)
        ));
        let weak = ui.tokens().weak;
        let words = Type::Small.text(format!("The whole is {ratio:.2} times the sum: {}", trust(ratio))).color(weak);
        ui.label(words).on_hover_text("The sum is of one text, the whole of the text that candidates are evaluated on");
    });
}

/// Pairs of metrics with Spearman's coefficient.
fn agreement_ui(ui: &mut Ui, pairs: &[(&str, &str, f64, usize)]) {
    // Cells of a fixed width: a figure that takes what is left would widen the grid frame by frame.
    let cell = vec2(88.0, space::ROW_COMPACT);
    Rows::new("agreement").num_columns(3).spacing(vec2(space::S, space::XS)).show(ui, |ui| {
        head_ui(ui, "metrics", false);
        ui.allocate_ui(cell, |ui| head_ui(ui, "Spearman's ρ", true));
        ui.allocate_ui(cell, |ui| head_ui(ui, "tensors", true));
        ui.end_row();
        for (one, other, rho, count) in pairs {
            ui.label(format!("{one} · {other}"))
                .on_hover_text("1 is the same order, 0 no relation, −1 the opposite order");
            ui.allocate_ui(cell, |ui| figure_ui(ui, units::minus(&format!("{rho:.2}"))));
            ui.allocate_ui(cell, |ui| figure_ui(ui, count.to_string()));
            ui.end_row();
        }
    });
}

/// What a ratio of whole and sum says of predictions.
fn trust(ratio: f64) -> &'static str {
    match ratio {
        0.67..1.5 => "sums predict plans of this size well",
        ..0.67 => "sums overestimate here; errors cancel",
        _ => "sums underestimate here; errors reinforce one another",
    }
}

/// Spearman's coefficient over the tensors that both tables have a value for, and their number.
fn agreement(one: &SensitivityTable, other: &SensitivityTable, format: &str) -> Option<(f64, usize)> {
    let (own, column) = (one.column(format)?, other.column(format)?);
    let others: std::collections::HashMap<&str, f64> =
        other.rows.iter().filter_map(|row| Some((row.name.as_str(), row.cells.get(column)?.as_ref()?.value))).collect();
    let (ours, theirs): (Vec<f64>, Vec<f64>) = one
        .rows
        .iter()
        .filter_map(|row| Some((row.cells.get(own)?.as_ref()?.value, *others.get(row.name.as_str())?)))
        .unzip();
    Some((sensitivity::ranks::spearman(&ours, &theirs)?, ours.len()))
}

/// Roles over the layers in one format; none where nothing is measured.
fn depth(grid: &Grid, subject: &Subject<'_>) -> Option<Depth> {
    let column = subject.table.column(subject.format)?;
    let layers = grid.layers.iter().flatten().max()? + 1;
    let series = |(part, role): (usize, &crate::engine::checkpoint::Role)| {
        let mut points: Vec<DepthPoint> = (subject.table.rows.iter())
            .filter(|row| row.role == *role)
            .filter_map(|row| {
                let cell = row.cells.get(column)?.as_ref()?;
                Some(DepthPoint { layer: row.layer?, value: cell.value, stderr: cell.stderr })
            })
            .collect();
        points.sort_by_key(|point| point.layer);
        (!points.is_empty()).then(|| Series { name: role.name().to_owned(), part, points })
    };
    let series: Vec<Series> = grid.roles.iter().enumerate().filter_map(series).collect();
    let unit = if subject.metric.unit.is_empty() { String::new() } else { format!(", {}", subject.metric.unit) };
    (!series.is_empty()).then(|| Depth {
        title: format!("{} over depth, {}", subject.metric.title, subject.format),
        metric: format!("{}{unit}", subject.metric.title),
        layers,
        series,
        shape: Shape::Lines,
    })
}

/// One tensor under every format; formats that fall back are shown as what they become.
fn bits_curve(
    table: &SensitivityTable,
    metric: &Metric,
    tensor: &str,
    chosen: Option<&str>,
    allows: impl Fn(&str) -> bool,
) -> Option<Curve> {
    let row = table.row(tensor)?;
    // Plain floats hardly err: beside them the rest would be one dot.
    let is_coarse = |id: &str| format::find(id).is_some_and(|format| !format.dtype().is_plain());
    let has_coarse = table.formats.iter().any(|id| is_coarse(id) && allows(id));
    let points: Vec<CurvePoint> = table
        .formats
        .iter()
        .zip(&row.cells)
        .filter(|(id, _)| !has_coarse || is_coarse(id))
        .filter_map(|(format, cell)| {
            let cell = cell.as_ref()?;
            Some(CurvePoint {
                format: format.clone(),
                bits: cell.bits_per_weight,
                error: cell.value,
                stderr: cell.stderr,
                is_legal: cell.fell_back_to.is_none() && allows(format),
            })
        })
        .collect();
    let unit = if metric.unit.is_empty() { String::new() } else { format!(", {}", metric.unit) };
    (!points.is_empty()).then(|| Curve {
        name: tensor.to_owned(),
        metric: format!("{}{unit}, {}", metric.title, metric.label.name()),
        points,
        chosen: chosen.map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::checkpoint::Role;
    use crate::engine::sensitivity::{Label, SensitivityRow, SensitivityValue};

    fn table(formats: &[&str], rows: &[(&str, &[Option<f64>])]) -> SensitivityTable {
        let cell = |value: &Option<f64>| {
            value.map(|value| SensitivityValue {
                value,
                stderr: None,
                stopped_after: None,
                bits_per_weight: 4.5,
                bytes: 1,
                fell_back_to: None,
                groups: Vec::new(),
                weight_error: None,
            })
        };
        let rows = rows.iter().map(|(name, values)| SensitivityRow {
            name: (*name).to_owned(),
            role: Role::Q,
            layer: Some(0),
            weight_count: 1,
            cells: values.iter().map(cell).collect(),
        });
        SensitivityTable {
            version: SensitivityTable::VERSION,
            checkpoint: String::new(),
            metric: "kld".to_owned(),
            unit: "nats".to_owned(),
            label: Label::MeasuredWeightsOnly,
            device: None,
            imatrix: None,
            basis: None,
            diagonal_only: Vec::new(),
            formats: formats.iter().map(|&format| format.to_owned()).collect(),
            rows: rows.collect(),
        }
    }

    #[test]
    fn agreement_is_of_tensors_that_both_tables_hold() {
        let one =
            table(&["q4_k"], &[("a", &[Some(1.0)]), ("b", &[Some(2.0)]), ("c", &[Some(3.0)]), ("d", &[Some(0.0)])]);
        // In another order, and without d.
        let other = table(&["q4_k"], &[("c", &[Some(9.0)]), ("a", &[Some(4.0)]), ("b", &[Some(5.0)]), ("d", &[None])]);
        assert_eq!(agreement(&one, &other, "q4_k"), Some((1.0, 3)));
        assert_eq!(agreement(&one, &other, "q8_0"), None);
    }

    #[test]
    fn a_curve_has_what_is_measured_and_marks_what_the_target_cannot_hold() {
        let metric = sensitivity::metric("kld").expect("known");
        let table = table(&["q8_0", "q4_k"], &[("a", &[Some(1e-4), Some(1e-2)]), ("b", &[Some(2e-4), None])]);
        let curve = bits_curve(&table, metric, "a", Some("q4_k"), |format| format != "q8_0").expect("measured");
        let legal: Vec<(&str, bool)> = curve.points.iter().map(|p| (p.format.as_str(), p.is_legal)).collect();
        assert_eq!(legal, [("q8_0", false), ("q4_k", true)]);
        assert_eq!(curve.chosen.as_deref(), Some("q4_k"));
        assert_eq!(bits_curve(&table, metric, "b", None, |_| true).expect("measured").points.len(), 1);
        assert!(bits_curve(&table, metric, "c", None, |_| true).is_none());
    }

    #[test]
    fn the_whole_beside_the_sum_is_put_in_words() {
        assert!(trust(1.1).contains("well"));
        assert!(trust(0.3).contains("cancel"));
        assert!(trust(2.0).contains("reinforce"));
    }
}
