//! Gates in the project: those of a file that the user chose, and those that a run's own plan states. Every
//! comparison is judged by them as it comes, and again when they change.

use std::path::Path;
use std::sync::Arc;

use super::Workbench;
use super::state::{Document, Level, Run, RunId};
use crate::engine::comparison::{GateSet, Verdict};
use crate::engine::error::Result;

impl Document {
    /// What a run is judged by: the chosen gates, then the constraints of the plan that it was made by.
    pub fn gates_of(&self, run: &Run) -> GateSet {
        let mut set = self.gates.as_deref().cloned().unwrap_or_default();
        let constraints = run.plan.constraints();
        if !constraints.is_empty() {
            // A plan that was run takes away what it can.
            let config = run.plan.config_left(&self.checkpoint).ok().flatten();
            let text = constraints.to_gates(config.as_deref());
            match GateSet::parse(&text, Path::new("the plan's constraints")) {
                Ok(stated) => set.gates.extend(stated.gates),
                Err(err) => tracing::warn!("the constraints of {} are no gates: {err}", run.name),
            }
        }
        set
    }

    /// Judges a run's comparison by what holds now.
    pub(super) fn judge(&mut self, id: RunId) {
        let Some(gates) = self.run(id).map(|run| self.gates_of(run)) else { return };
        if let Some(comparison) = self.run_mut(id).and_then(|run| run.comparison.as_mut())
            && (!gates.gates.is_empty() || !comparison.gates.is_empty())
        {
            Arc::make_mut(comparison).apply_gates(&gates);
        }
        self.choose_rollback();
    }

    fn judge_all(&mut self) {
        let runs: Vec<RunId> = self.runs.iter().map(|run| run.id).collect();
        runs.into_iter().for_each(|run| self.judge(run));
    }

    /// What to go back to from a candidate that failed: the smallest one that passes, else the original.
    fn choose_rollback(&mut self) {
        let comparisons = self.runs.iter().filter(|run| !run.is_stale).filter_map(|run| run.comparison.as_deref());
        let passing = comparisons.filter(|one| one.verdict() == Some(Verdict::Pass));
        let smallest = passing.min_by_key(|one| one.file_bytes).map(|one| one.candidate.clone());
        for comparison in self.runs.iter_mut().filter_map(|run| run.comparison.as_mut()) {
            let failed = comparison.verdict() == Some(Verdict::Fail);
            let wanted = failed.then(|| smallest.as_ref().unwrap_or(&comparison.baseline));
            // A change makes views shape their data anew.
            if comparison.rollback.as_ref() != wanted {
                let wanted = wanted.cloned();
                Arc::make_mut(comparison).rollback = wanted;
            }
        }
    }
}

impl Workbench {
    /// Judges all candidates by the gates of a file from now on.
    pub(super) fn load_gates(&mut self, path: &Path) -> Result<()> {
        let gates = GateSet::read(path)?;
        let count = gates.gates.len();
        self.with_document(|document| {
            document.gates = Some(Arc::new(gates));
            document.judge_all();
        });
        self.state.notify(Level::Info, format!("Candidates are judged by {count} gates"));
        Ok(())
    }

    /// Leaves judging to the constraints of the plans.
    pub(super) fn drop_gates(&mut self) {
        self.with_document(|document| {
            document.gates = None;
            document.judge_all();
        });
    }
}
