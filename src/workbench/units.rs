//! Structural pruning in the project: scores of units, and edits of what the plan takes away.

use super::Workbench;
use super::jobs::JobKind;
use super::state::Level;
use super::tasks;
use crate::engine::checkpoint::Removal;
use crate::engine::error::{Fault, Result, Stage};
use crate::engine::format::Dtype;
use crate::engine::plan::{self, Plan};
use crate::engine::scoring::TextSource;
use crate::engine::structure::{Metric, Take, select};

/// What becomes of units.
#[derive(Clone, Debug)]
pub enum UnitEdit {
    /// They go, beside those that go already.
    TakeAway(Removal),
    /// They stay.
    GiveBack(Removal),
    /// Exactly these go.
    Exactly(Removal),
    /// Those with the lowest scores of a metric go, and no others.
    Lowest { metric: Metric, take: Take },
}

impl Workbench {
    /// Scores every unit on the calibration text, or on the one to evaluate on where there is none.
    pub(super) fn score_units(&mut self, metric: Metric) {
        let Some(document) = &self.state.document else { return };
        if let Some(why) = document.cannot_run() {
            self.state.notify(Level::Warning, why);
            return;
        }
        let text = match (&document.calibration_text, &document.text) {
            _ if !metric.needs_sample() => None,
            (Some(path), _) => match TextSource::read(path) {
                Ok(text) => Some(text),
                Err(err) => {
                    self.state.notify(Level::Error, err.to_string());
                    return;
                }
            },
            (None, Some(text)) => Some(text.as_ref().clone()),
            (None, None) => {
                let text = format!("Scoring by {} needs a text: choose one first", metric.name());
                self.state.notify(Level::Warning, text);
                return;
            }
        };
        let checkpoint = document.checkpoint.clone();
        let wants_patterns = document.attention.is_none();
        self.jobs.spawn(JobKind::ScoreUnits, format!("{} of every head and channel", metric.name()), move |context| {
            tasks::score_units(&checkpoint, metric, text.as_ref(), wants_patterns, context)
        });
    }

    /// Changes what the plan takes away, as one step of history.
    pub(super) fn edit_units(&mut self, edit: UnitEdit, what: String) -> Result<()> {
        self.change_plan(what, |document, plan| {
            let checkpoint = &document.checkpoint;
            match edit {
                UnitEdit::TakeAway(units) => plan.remove_units(checkpoint, &units),
                UnitEdit::GiveBack(units) => plan.restore_units(checkpoint, &units),
                UnitEdit::Exactly(removal) => plan.set_removal(checkpoint, removal),
                UnitEdit::Lowest { metric, take } => {
                    let scores = document.unit_scores.get(metric.name()).ok_or_else(|| {
                        Fault::new(Stage::Plan, format!("units are not scored by {}", metric.name()))
                            .fix("score them first")
                    })?;
                    let multiples = channel_multiples(document, plan)?;
                    let multiple = |layer: usize| multiples.get(layer).copied().unwrap_or(1);
                    let removal = select(checkpoint.require_config()?, scores, &take, &multiple)?;
                    plan.set_removal(checkpoint, removal)
                }
            }
        })
    }
}

/// How many channels of each layer go together, so that the blocks of its `down` stay whole.
fn channel_multiples(document: &super::Document, plan: &Plan) -> Result<Vec<usize>> {
    let checkpoint = &document.checkpoint;
    let mut whole = plan.clone();
    whole.set_removal(checkpoint, Removal::default())?;
    let mut multiples = vec![1; checkpoint.require_config()?.layers.len()];
    for decision in &plan::resolve(&whole, checkpoint)?.decisions {
        let tensor = &checkpoint.tensors[decision.tensor_index];
        if let (Some(layer), true) = (tensor.layer, tensor.name.ends_with(".mlp.down_proj.weight")) {
            multiples[layer] = Dtype::block_len(decision.dtype);
        }
    }
    Ok(multiples)
}
