//! Where the plan stands: its constraints, its predicted speed, and how far such predictions were off.

use std::sync::Arc;

use super::state::{Document, Run, RunId};
use crate::engine::comparison::{GateSet, Verdict};
use crate::engine::plan::speed::SpeedPrediction;
use crate::engine::plan::standing::{Check, Facts, MeasuredFacts, Standing, checks};
use crate::engine::plan::{Constraints, resolve};
use crate::engine::scoring::SpeedResult;
use crate::engine::scoring::kernel_rates::KernelRates;
use crate::engine::units;

/// What is known of the plan beside its bytes; made anew when the plan or what is measured changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PlanStanding {
    /// The constraints in their order.
    pub checks: Vec<Check>,
    /// How fast the plan's file will be, where the kernels are timed.
    pub speed: Option<SpeedPrediction>,
    /// The speed of the original, predicted the same way or measured.
    pub original_speed: Option<f64>,
    /// For every candidate that was measured: how far its prediction is off, as fractions, writing then reading.
    pub speed_errors: Vec<(RunId, [f64; 2])>,
    /// The evaluated run that chooses as the plan does, if there is one.
    pub measured: Option<RunId>,
}

impl PlanStanding {
    /// The largest error of a predicted decode speed, as a fraction; none before anything was measured.
    pub fn largest_decode_error(&self) -> Option<f64> {
        self.speed_errors.iter().map(|(_, [decode, _])| decode.abs()).max_by(f64::total_cmp)
    }
}

impl Document {
    /// Where the plan stands now.
    pub fn standing(&self, rates: Option<&Arc<KernelRates>>) -> PlanStanding {
        let Ok(resolved) = &self.resolved else { return PlanStanding::default() };
        let model = self.speed_model(rates);
        let speed = model.as_ref().and_then(|model| model.predict(&self.checkpoint, resolved));
        let own = self.runs.iter().rev().find(|run| run.evaluation.is_some() && self.is_of_plan(run));
        let constraints = self.plan().constraints();
        let facts = Facts {
            file_bytes: self.overhead_bytes().map(|bytes| resolved.padded_bytes.saturating_add(bytes)),
            weight_bytes: resolved.new_bytes,
            config: resolved.structure.as_ref().map(|left| &left.config).or(self.checkpoint.config.as_ref()),
            speed,
            kld: ["kld", "fisher"].into_iter().find_map(|metric| self.predicted_damage(metric)),
            measured: own.map(|run| measured(run, constraints, self)).unwrap_or_default(),
        };
        let speed_errors = model.iter().flat_map(|model| {
            self.runs.iter().filter(|run| run.mask.is_none()).filter_map(|run| {
                let measured = speed_of(run)?;
                let resolved = resolve(&run.plan, &self.checkpoint).ok()?;
                Some((run.id, model.predict(&self.checkpoint, &resolved)?.errors(measured)))
            })
        });
        PlanStanding {
            checks: checks(constraints, &facts),
            speed,
            original_speed: self
                .baseline
                .as_ref()
                .and_then(|baseline| Some(baseline.speed.as_ref()?.decode_tokens_per_second)),
            speed_errors: speed_errors.collect(),
            measured: own.map(|run| run.id),
        }
    }

    /// True if a run stored every tensor as the plan does.
    fn is_of_plan(&self, run: &Run) -> bool {
        let Ok(resolved) = &self.resolved else { return false };
        run.mask.is_none()
            && run.plan.target() == self.plan().target()
            && run.plan.calibration() == self.plan().calibration()
            && run.report.tensors.len() == resolved.decisions.len()
            && run.report.tensors.iter().zip(&resolved.decisions).all(|(report, decision)| {
                let method = decision.method.name();
                let is_same_method =
                    decision.is_copy() || decision.is_removed() || report.method == method || report.method == "rtn";
                let to = if decision.is_removed() { "removed" } else { decision.dtype.name() };
                report.to == to && report.new_bytes == decision.new_bytes && is_same_method
            })
    }
}

fn speed_of(run: &Run) -> Option<&SpeedResult> {
    run.evaluation.as_ref()?.speed.as_ref()
}

/// What was measured of a run, for each constraint that only a measurement answers.
fn measured(run: &Run, constraints: &Constraints, document: &Document) -> MeasuredFacts {
    let distance = run.evaluation.as_ref().and_then(|evaluation| evaluation.text.as_ref()?.distance.as_ref());
    MeasuredFacts {
        speed: speed_of(run).map(|speed| [speed.decode_tokens_per_second, speed.prefill_tokens_per_second]),
        kld: distance.map(|distance| distance.kld_mean),
        slices: slices(run, constraints, document).unwrap_or_default(),
    }
}

/// The verdicts of the gates that the slices are.
fn slices(run: &Run, constraints: &Constraints, document: &Document) -> Option<Vec<(Standing, String)>> {
    let comparison = run.comparison.as_ref().filter(|_| !run.is_stale)?;
    let standings = constraints.slices.iter().map(|margin| {
        let one = Constraints { slices: vec![margin.clone()], ..Constraints::default() };
        let text = one.to_gates(document.checkpoint.config.as_ref());
        let results = GateSet::parse(&text, &document.project_path).ok()?.judge(comparison);
        let verdict = results.iter().map(|result| result.verdict).max()?;
        let standing = match verdict {
            Verdict::Pass => Standing::Met,
            Verdict::Fail => Standing::Missed,
            Verdict::Undecided => Standing::Unknown,
        };
        let worst = results.iter().filter_map(|result| result.estimate).min_by(f64::total_cmp);
        let loss = worst.map_or_else(
            || "no slice of this name".to_owned(),
            |worst| units::minus(&format!("{:.2} points at worst", worst * 100.0)),
        );
        Some((standing, loss))
    });
    standings.collect()
}
