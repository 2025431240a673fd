//! What the frontier shows: size and predicted damage of every recipe and of the plan, and what was
//! measured of candidates.

use std::sync::Arc;

use crate::app::plots::frontier::{self, Kind, Spot};
use crate::engine::checkpoint::Checkpoint;
use crate::engine::plan::budget::{BudgetOptions, Planner, predicted_damage};
use crate::engine::plan::knapsack::Point;
use crate::engine::plan::{Calibration, Plan, Recipe, ResolvedPlan, Target, resolve};
use crate::engine::sensitivity::{self, Metric, SensitivityTable};
use crate::engine::units;
use crate::workbench::{Document, Run};

/// Recipes that must have a value before a metric is shown.
const LEAST_RECIPES: usize = 2;

/// Metrics that can be shown, the one that says most first.
const METRICS: [&str; 3] = ["kld", "fisher", "weight"];

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
    calibration: Option<Calibration>,
    options: Vec<Offer>,
    tables: [Option<Arc<SensitivityTable>>; 3],
    resolved: Option<Arc<ResolvedPlan>>,
    measured: Vec<Spot>,
    /// What is drawn; none where nothing is measured.
    pub plot: Option<frontier::Frontier>,
    /// Under which metric.
    pub metric: Option<&'static Metric>,
    /// The plan's own damage by metric, in the order of the registry.
    pub damages: Vec<(&'static Metric, f64)>,
    /// The best over all budgets under that metric, by rising bytes of all tensors.
    pub curve: Vec<Point>,
}

impl Frontier {
    /// Shapes the picture anew where its inputs have changed.
    pub fn update(&mut self, document: &Document) {
        let target = document.plan().target();
        let is_other = !self.checkpoint.as_ref().is_some_and(|own| Arc::ptr_eq(own, &document.checkpoint))
            || self.target != Some(target)
            || self.calibration.as_ref() != document.plan().calibration();
        if is_other {
            self.checkpoint = Some(document.checkpoint.clone());
            self.target = Some(target);
            self.calibration = document.plan().calibration().cloned();
            self.options = options(&document.checkpoint, target, self.calibration.as_ref());
        }
        let resolved = document.resolved.as_ref().ok();
        let tables = METRICS.map(|id| document.sensitivity.get(id));
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
                Some((*metric, predicted_damage(table, &document.checkpoint, resolved?)?))
            })
            .collect();
        (self.plot, self.metric) = (None, None);
        self.curve.clear();
        // Divergence of the output says more than distance of the weights, where there is enough of it.
        for id in METRICS {
            let (Some(metric), Some(table)) = (sensitivity::metric(id), document.sensitivity.get(id)) else { continue };
            let measured = if metric.unit == "nats" { self.measured.as_slice() } else { &[] };
            let plan = resolved.map(Arc::as_ref);
            if let Some(mut plot) = shape(&self.options, &document.checkpoint, table, metric, plan, measured) {
                self.curve = curve(document, table);
                let sizes = || plot.spots.iter().map(|spot| spot.size_bytes);
                let shown = sizes().min().unwrap_or(0)..=sizes().max().unwrap_or(0);
                let corners = self.curve.iter().filter(|point| shown.contains(&point.cost));
                plot.curve = corners.map(|point| (point.cost, point.damage)).collect();
                (self.plot, self.metric) = (Some(plot), Some(metric));
                break;
            }
        }
    }
}

/// The recipe that a point stands for.
pub(super) fn recipe_of(spot: &Spot) -> Option<Recipe> {
    Recipe::all().find(|recipe| spot.kind == Kind::Recipe && recipe.name() == spot.name)
}

/// Recipes that the target can hold and that make the checkpoint smaller.
fn options(checkpoint: &Checkpoint, target: Target, calibration: Option<&Calibration>) -> Vec<Offer> {
    Recipe::all()
        .filter(|recipe| target.allows(recipe.base_format()))
        .filter(|recipe| recipe.is_quantized() || target != Target::Gguf)
        .filter_map(|recipe| {
            let mut plan = Plan::of_recipe(target, Some(&checkpoint.fingerprint), recipe);
            plan.set_calibration(calibration.cloned());
            Some(Offer { recipe, resolved: resolve(&plan, checkpoint).ok()? })
        })
        .collect()
}

/// Every candidate whose text was scored against the original's.
fn measured(document: &Document) -> Vec<Spot> {
    let spot = |(index, run): (usize, &Run)| {
        let distance = run.evaluation.as_ref()?.text.as_ref()?.distance.as_ref()?;
        Some(Spot {
            name: run.name.clone(),
            kind: Kind::Measured(index),
            size_bytes: run.report.new_bytes,
            bits_per_weight: run.report.new_bits_per_weight(),
            damage: distance.kld_mean,
            stderr: Some(distance.kld_mean_stderr),
        })
    };
    // A mask is no plan, and its file's size is no memory.
    document.runs.iter().enumerate().filter(|(_, run)| run.mask.is_none()).filter_map(spot).collect()
}

/// The best over all budgets, with what is decided by hand as it is; nothing where nothing is left.
fn curve(document: &Document, table: &SensitivityTable) -> Vec<Point> {
    let plan = document.plan();
    let options = BudgetOptions { ties: plan.ties(), ..BudgetOptions::default() };
    let planner = Planner::new(&document.checkpoint, plan, table, &options);
    planner.map(|planner| planner.frontier()).unwrap_or_default()
}

fn shape(
    options: &[Offer],
    checkpoint: &Checkpoint,
    table: &SensitivityTable,
    metric: &'static Metric,
    plan: Option<&ResolvedPlan>,
    measured: &[Spot],
) -> Option<frontier::Frontier> {
    let spot = |name: &str, kind: Kind, resolved: &ResolvedPlan| {
        Some(Spot {
            name: name.to_owned(),
            kind,
            size_bytes: resolved.new_bytes,
            bits_per_weight: resolved.new_bits_per_weight(),
            damage: predicted_damage(table, checkpoint, resolved)?,
            stderr: None,
        })
    };
    let mut spots: Vec<Spot> =
        options.iter().filter_map(|option| spot(option.recipe.name(), Kind::Recipe, &option.resolved)).collect();
    if spots.len() < LEAST_RECIPES {
        return None;
    }
    if let Some(mut own) = plan.and_then(|plan| spot("plan", Kind::Plan, plan)) {
        // A plan that is a recipe as it is stands on that recipe's point and says so.
        let is_twin = |other: &&Spot| (other.size_bytes, other.damage) == (own.size_bytes, own.damage);
        if let Some(twin) = spots.iter().find(is_twin) {
            own.name = format!("plan: {}", twin.name);
        }
        spots.push(own);
    }
    spots.extend_from_slice(measured);
    let name = match metric.id {
        "kld" => "KLD sum, nats",
        "fisher" => "KLD by Fisher information, sum, nats",
        _ => "weight error sum",
    };
    Some(frontier::Frontier {
        salt: format!("{} {}", checkpoint.fingerprint, metric.id),
        // A sum of single changes is a prediction, however each of them was measured.
        axis: format!("{name}, predicted"),
        unit: metric.unit,
        spots,
        curve: Vec::new(),
    })
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
    fn smaller_recipes_cost_more_and_the_plan_that_is_a_recipe_stands_on_it() {
        let checkpoint = demo();
        let options = options(&checkpoint, Target::Gguf, None);
        let weight = sensitivity::weight::weight_error(
            &checkpoint,
            &sensitivity::weight::WeightOptions::default(),
            &Progress::new(None),
            &mut |_, _| (),
        )
        .expect("measures");
        let metric = sensitivity::metric("weight").expect("known");
        let plan = &options.iter().find(|option| option.recipe == Recipe::Q4KM).expect("offered").resolved;
        let plot = shape(&options, &checkpoint, &weight, metric, Some(plan), &[]).expect("measured");
        let spot = |name: &str| plot.spots.iter().find(|spot| spot.name == name).expect("a point");
        assert!(spot("Q2_K").damage > spot("Q4_K_M").damage && spot("Q4_K_M").damage > spot("Q8_0").damage);
        let own = spot("plan: Q4_K_M");
        assert_eq!((own.kind, own.size_bytes), (Kind::Plan, spot("Q4_K_M").size_bytes));
        assert_eq!(recipe_of(spot("Q4_K_M")), Some(Recipe::Q4KM));
        assert_eq!(recipe_of(own), None);
        assert_eq!(plot.axis, "weight error sum, predicted");
    }
}
