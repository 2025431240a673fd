//! Predicted damage against bits: every recipe, the plan, and what was measured of candidates.

use std::collections::HashMap;
use std::sync::Arc;

use crate::app::plots::curve::{Curve, CurvePoint};
use crate::engine::checkpoint::Checkpoint;
use crate::engine::plan::{Plan, Recipe, ResolvedPlan, Target, resolve};
use crate::engine::sensitivity::{self, Metric, SensitivityTable};
use crate::engine::{format, units};
use crate::workbench::Document;

/// Name of the plan's own point.
const PLAN: &str = "this plan";

/// A recipe worked out for the checkpoint.
#[derive(Debug)]
struct Offer {
    recipe: Recipe,
    resolved: ResolvedPlan,
}

/// The frontier, kept as long as what it is made of stays the same.
#[derive(Default)]
pub(super) struct Frontier {
    checkpoint: Option<Arc<Checkpoint>>,
    target: Option<Target>,
    options: Vec<Offer>,
    tables: [Option<Arc<SensitivityTable>>; 2],
    resolved: Option<Arc<ResolvedPlan>>,
    measured: Vec<(String, f64, f64, f64)>,
    /// What is drawn; none where nothing is measured.
    pub curve: Option<Curve>,
    /// Under which metric.
    pub metric: Option<&'static Metric>,
    /// The plan's own damage by metric, in the order of the registry.
    pub damages: Vec<(&'static Metric, f64)>,
}

impl Frontier {
    /// Shapes the picture anew where its inputs have changed.
    pub fn update(&mut self, document: &Document) {
        let target = document.plan().target();
        let is_other = !self.checkpoint.as_ref().is_some_and(|own| Arc::ptr_eq(own, &document.checkpoint))
            || self.target != Some(target);
        if is_other {
            self.checkpoint = Some(document.checkpoint.clone());
            self.target = Some(target);
            self.options = options(&document.checkpoint, target);
        }
        let resolved = document.resolved.as_ref().ok();
        let tables = ["kld", "weight"].map(|id| document.sensitivity.get(id));
        let measured = measured(document);
        let is_current = !is_other
            && super::common::is_same(self.resolved.as_ref(), resolved)
            && self.tables.iter().zip(&tables).all(|(then, now)| super::common::is_same(then.as_ref(), *now))
            && measured == self.measured;
        if is_current {
            return;
        }
        self.tables = tables.map(Option::<&_>::cloned);
        self.resolved = resolved.cloned();
        self.measured = measured;
        self.damages = sensitivity::metrics()
            .iter()
            .filter_map(|metric| {
                let table = document.sensitivity.get(metric.id)?;
                Some((*metric, damage(table, &document.checkpoint, resolved?)?))
            })
            .collect();
        (self.curve, self.metric) = (None, None);
        // Divergence of the output says more than distance of the weights, where there is enough of it.
        for id in ["kld", "weight"] {
            let (Some(metric), Some(table)) = (sensitivity::metric(id), document.sensitivity.get(id)) else { continue };
            let measured = if id == "kld" { self.measured.as_slice() } else { &[] };
            let plan = resolved.map(Arc::as_ref);
            if let Some(curve) = frontier(&self.options, &document.checkpoint, table, metric, plan, measured) {
                (self.curve, self.metric) = (Some(curve), Some(metric));
                break;
            }
        }
    }

    /// The recipe of a point that was clicked.
    pub fn recipe_of(&self, point: &CurvePoint) -> Option<Recipe> {
        Recipe::all().find(|recipe| recipe.name() == point.format)
    }
}

/// Recipes that the target can hold and that make the checkpoint smaller.
fn options(checkpoint: &Checkpoint, target: Target) -> Vec<Offer> {
    Recipe::all()
        .filter(|recipe| target.allows(recipe.base_format()))
        .filter(|recipe| recipe.is_quantized() || target != Target::Gguf)
        .filter_map(|recipe| {
            let plan = Plan::of_recipe(target, Some(&checkpoint.fingerprint), recipe);
            Some(Offer { recipe, resolved: resolve(&plan, checkpoint).ok()? })
        })
        .collect()
}

/// Name, bits, KLD and its standard error of every candidate that was evaluated.
fn measured(document: &Document) -> Vec<(String, f64, f64, f64)> {
    document
        .runs
        .iter()
        .filter_map(|run| {
            let distance = run.evaluation.as_ref()?.text.as_ref()?.distance.as_ref()?;
            let name = format!("{} (measured)", run.name);
            Some((name, run.report.new_bits_per_weight(), distance.kld_mean, distance.kld_mean_stderr))
        })
        .collect()
}

/// Sum of the damage of a plan's choices; none where one of them is not in the table.
fn damage(table: &SensitivityTable, checkpoint: &Checkpoint, resolved: &ResolvedPlan) -> Option<f64> {
    let rows: HashMap<&str, usize> =
        table.rows.iter().enumerate().map(|(index, row)| (row.name.as_str(), index)).collect();
    let mut total = 0.0;
    for decision in &resolved.decisions {
        let tensor = checkpoint.tensors.get(decision.tensor_index)?;
        if decision.is_copy() || !sensitivity::is_default_subject(tensor) {
            continue;
        }
        let format = format::of_dtype(decision.dtype)?;
        let column = table.column(format.id());
        if format.dtype().is_plain() && column.is_none() {
            continue;
        }
        let row = table.rows.get(*rows.get(tensor.name.as_str())?)?;
        total += row.cells.get(column?)?.as_ref()?.value;
    }
    Some(total)
}

fn frontier(
    options: &[Offer],
    checkpoint: &Checkpoint,
    table: &SensitivityTable,
    metric: &Metric,
    plan: Option<&ResolvedPlan>,
    measured: &[(String, f64, f64, f64)],
) -> Option<Curve> {
    let point = |name: &str, resolved: &ResolvedPlan| {
        Some(CurvePoint {
            format: name.to_owned(),
            bits: resolved.new_bits_per_weight(),
            error: damage(table, checkpoint, resolved)?,
            stderr: None,
            is_legal: true,
        })
    };
    let mut points: Vec<CurvePoint> =
        options.iter().filter_map(|option| point(option.recipe.name(), &option.resolved)).collect();
    if points.len() < 2 {
        return None;
    }
    let own = plan.and_then(|plan| point(PLAN, plan));
    // A plan that is a recipe as it is stands on that recipe's point.
    let twin = own.as_ref().and_then(|own| {
        points.iter().find(|other| other.bits == own.bits && other.error == own.error).map(|other| other.format.clone())
    });
    let chosen = match (twin, own) {
        (Some(name), _) => Some(name),
        (None, Some(own)) => {
            points.push(own);
            Some(PLAN.to_owned())
        }
        (None, None) => None,
    };
    points.extend(measured.iter().map(|(name, bits, kld, stderr)| CurvePoint {
        format: name.clone(),
        bits: *bits,
        error: *kld,
        stderr: Some(*stderr),
        is_legal: true,
    }));
    let name = if metric.id == "kld" { "KLD sum, nats" } else { "weight error sum" };
    Some(Curve { name: "the whole model".to_owned(), metric: format!("{name}, predicted"), points, chosen })
}

/// The plan's damage in words for its card: `0.0181 nats`.
pub(super) fn damage_text(metric: &Metric, value: f64) -> String {
    let text = units::significant(value);
    if metric.unit.is_empty() { text } else { format!("{text} {}", metric.unit) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::progress::Progress;

    fn demo() -> Checkpoint {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo");
        Checkpoint::open(&path).expect("the demo opens")
    }

    #[test]
    fn fewer_bits_cost_more_and_the_plan_that_is_a_recipe_stands_on_it() {
        let checkpoint = demo();
        let options = options(&checkpoint, Target::Gguf);
        let weight = sensitivity::weight::weight_error(
            &checkpoint,
            &sensitivity::weight::WeightOptions::default(),
            &Progress::new(None),
            &mut |_, _| (),
        )
        .expect("measures");
        let metric = sensitivity::metric("weight").expect("known");
        let plan = &options.iter().find(|option| option.recipe == Recipe::Q4KM).expect("offered").resolved;
        let curve = frontier(&options, &checkpoint, &weight, metric, Some(plan), &[]).expect("measured");
        let error = |name: &str| curve.points.iter().find(|point| point.format == name).expect("a point").error;
        assert!(error("Q2_K") > error("Q4_K_M") && error("Q4_K_M") > error("Q8_0"));
        assert_eq!(curve.chosen.as_deref(), Some("Q4_K_M"));
        assert!(curve.points.iter().all(|point| point.format != PLAN));
    }
}
