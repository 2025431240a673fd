//! Where the plan stands, kept between frames, and its chips.

use std::sync::Arc;

use eframe::egui::{Sense, Ui};

use crate::app::context::Cx;
use crate::app::widgets::{State as PillState, pill_ui};
use crate::engine::checkpoint::Checkpoint;
use crate::engine::comparison::Comparison;
use crate::engine::evaluation::Evaluation;
use crate::engine::plan::ResolvedPlan;
use crate::engine::plan::standing::{Check, Remedy, Standing};
use crate::engine::scoring::kernel_rates::KernelRates;
use crate::engine::sensitivity::SensitivityTable;
use crate::workbench::{Action, Command, Document, PlanStanding, RunId, State, View};

/// Metrics whose sum predicts the plan's damage, the one that says most first.
const METRICS: [&str; 3] = ["kld", "fisher", "weight"];

/// What was measured of a run, and whether it is stale.
type Measured = (RunId, Option<Arc<Evaluation>>, Option<Arc<Comparison>>, bool);

/// What the standing is made of, to see when it must be made anew.
#[derive(Default)]
struct Sources {
    checkpoint: Option<Arc<Checkpoint>>,
    resolved: Option<Arc<ResolvedPlan>>,
    tables: [Option<Arc<SensitivityTable>>; 3],
    baseline: Option<Arc<Evaluation>>,
    runs: Vec<Measured>,
    rates: Option<Arc<KernelRates>>,
}

/// What the strip and the plan view remember between frames.
#[derive(Default)]
pub struct Memory {
    sources: Sources,
    /// Where the plan stands.
    pub standing: PlanStanding,
    /// The plan's damage by the metrics of `METRICS`.
    pub damages: [Option<f64>; 3],
}

fn is_same<T>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

impl Sources {
    fn of(document: &Document, rates: Option<&Arc<KernelRates>>) -> Self {
        let run = |run: &crate::workbench::Run| (run.id, run.evaluation.clone(), run.comparison.clone(), run.is_stale);
        Self {
            checkpoint: Some(document.checkpoint.clone()),
            resolved: document.resolved.as_ref().ok().cloned(),
            tables: METRICS.map(|metric| document.sensitivity.get(metric).cloned()),
            baseline: document.baseline.clone(),
            runs: document.runs.iter().map(run).collect(),
            rates: rates.cloned(),
        }
    }

    fn are(&self, other: &Self) -> bool {
        is_same(self.checkpoint.as_ref(), other.checkpoint.as_ref())
            && is_same(self.resolved.as_ref(), other.resolved.as_ref())
            && self.tables.iter().zip(&other.tables).all(|(one, other)| is_same(one.as_ref(), other.as_ref()))
            && is_same(self.baseline.as_ref(), other.baseline.as_ref())
            && is_same(self.rates.as_ref(), other.rates.as_ref())
            && self.runs.len() == other.runs.len()
            && self.runs.iter().zip(&other.runs).all(|(one, other)| {
                (one.0, one.3) == (other.0, other.3)
                    && is_same(one.1.as_ref(), other.1.as_ref())
                    && is_same(one.2.as_ref(), other.2.as_ref())
            })
    }
}

impl Memory {
    /// Makes the standing anew where anything it is made of has changed.
    pub fn update(&mut self, state: &State) {
        let Some(document) = &state.document else {
            *self = Self::default();
            return;
        };
        let sources = Sources::of(document, state.rates.as_ref());
        if !self.sources.are(&sources) {
            self.standing = document.standing(state.rates.as_ref());
            self.damages = METRICS.map(|metric| document.predicted_damage(metric));
            self.sources = sources;
        }
    }
}

/// Paints one chip a constraint; an unknown one does on a click what would make it known.
pub fn chips_ui(ui: &mut Ui, cx: &mut Cx<'_>, checks: &[Check]) {
    for check in checks {
        let state = match check.standing {
            Standing::Met => PillState::Met,
            Standing::Missed => PillState::Missed,
            Standing::Unknown => PillState::Unknown,
        };
        let response = pill_ui(ui, &check.what, state).on_hover_text(check.sentence());
        let Some(remedy) = check.remedy else { continue };
        let command: Command = match remedy {
            Remedy::MeasureKernels => Action::MeasureRates.into(),
            Remedy::MeasureSensitivity => Command::Show(View::Sensitivity),
            Remedy::RunPlan => Action::RunPlan.into(),
        };
        let help = match remedy {
            Remedy::MeasureKernels => "Click to time the kernels of this machine",
            Remedy::MeasureSensitivity => "Click to go to the sensitivity",
            Remedy::RunPlan => "Click to run the plan",
        };
        if !cx.is_presenting() && response.interact(Sense::click()).on_hover_text(help).clicked() {
            cx.send(command);
        }
    }
}
