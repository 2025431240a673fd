//! Structural pruning in the project: scores of units, edits of what the plan takes away, and pruning in steps,
//! each of which becomes a step of history and a kept plan.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use super::Workbench;
use super::events::Outcome;
use super::jobs::JobKind;
use super::prune_steps::{self, StepsInput};
use super::state::{Document, Level};
use super::{measure_tasks, project, tasks};
use crate::engine::checkpoint::{ModelConfig, Removal};
use crate::engine::error::{Fault, Result, Stage};
use crate::engine::format::Dtype;
use crate::engine::model::Tokenizer;
use crate::engine::plan::{self, Plan};
use crate::engine::structure::limits::SliceLimit;
use crate::engine::structure::schedule::Step;
use crate::engine::structure::slices::{Slice, SliceSources};
use crate::engine::structure::{Metric, Take, UnitScores, select};

/// What becomes of units.
#[derive(Clone, Debug)]
pub enum UnitEdit {
    /// They go, beside those that go already.
    TakeAway(Removal),
    /// They stay.
    GiveBack(Removal),
    /// Exactly these go.
    Exactly(Removal),
    /// Those with the lowest scores go, and no others; with a table of measured layers, heads or groups laid
    /// over the scores, by its metric.
    Lowest { by: ScoredBy, over: Option<String>, take: Take },
}

/// What units are ranked by.
#[derive(Clone, Debug, PartialEq)]
pub enum ScoredBy {
    /// One metric over one text.
    Metric(Metric),
    /// Fisher scores on the first slice less so many times those on the second: lowest for what the second
    /// needs and the first does not.
    Slices { first: Slice, second: Slice, weight: f64 },
}

impl From<Metric> for ScoredBy {
    fn from(metric: Metric) -> Self {
        Self::Metric(metric)
    }
}

impl std::fmt::Display for ScoredBy {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Metric(metric) => out.write_str(metric.name()),
            Self::Slices { first, second, weight } => write!(out, "{first} less {weight} of {second}"),
        }
    }
}

/// Pruning in steps, going on from what the plan takes away already.
#[derive(Clone, Debug, PartialEq)]
pub struct PruneSteps {
    /// What units are taken by, scored anew before every step.
    pub metric: Metric,
    /// What the last step takes, of the whole model.
    pub take: Take,
    /// Number of steps.
    pub steps: usize,
    /// No step that costs more than so many nats a token is kept.
    pub max_kld: Option<f64>,
    /// No step after which this slice (`task/slice`, or `*` for each) loses more than this fraction is kept.
    pub slice: Option<(String, f64)>,
    /// Whether biases keep the mean of what goes.
    pub compensate: bool,
}

/// A step of pruning that was kept.
#[derive(Clone, Debug, PartialEq)]
pub struct PrunedStep {
    /// The kept plan's name.
    pub name: String,
    /// What was measured.
    pub step: Step,
    /// The file of means that the plan names, where it compensates.
    pub means: Option<PathBuf>,
}

impl Document {
    /// Scores, with a table of measured units laid over them where one is named; none where something is missing
    /// or they do not fit each other. Anything but the scores of one metric is worked out anew: views keep it.
    pub fn scores_of(&self, by: &ScoredBy, over: Option<&str>) -> Option<Arc<UnitScores>> {
        let mut scores = match by {
            ScoredBy::Metric(metric) => self.unit_scores.get(metric.name())?.clone(),
            ScoredBy::Slices { first, second, weight } => {
                let (first, second) = (self.slice_scores.get(first)?, self.slice_scores.get(second)?);
                first.less(second, *weight).ok()?.into()
            }
        };
        if let Some(over) = over {
            let (table, config) = (self.units.get(over)?, self.checkpoint.config.as_ref()?);
            Arc::make_mut(&mut scores).lay_over(table, config).ok()?;
        }
        Some(scores)
    }

    /// The slices that units can be scored on: domains of the calibration text, then slices of tasks.
    pub fn slices(&self) -> Vec<Slice> {
        let mixture = self.calibration_info.iter().flat_map(|info| &info.mixture);
        let domains: BTreeSet<&str> =
            mixture.map(|share| share.domain.as_str()).filter(|domain| !domain.is_empty()).collect();
        let slices = self.tasks.iter().flat_map(|tasks| tasks.items.slices());
        let of_tasks: BTreeSet<String> = slices.map(|slice| slice.name()).collect();
        let domains = domains.into_iter().map(|domain| Slice::Domain(domain.to_owned()));
        domains.chain(of_tasks.into_iter().map(Slice::Tasks)).collect()
    }
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
            (Some(path), _) => match tasks::calibration_source(path) {
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

    /// Scores every unit on slices that it was not scored on yet.
    pub(super) fn score_slices(&mut self, slices: Vec<Slice>) -> Result<()> {
        let Some(document) = &self.state.document else { return Ok(()) };
        if let Some(why) = document.cannot_run() {
            self.state.notify(Level::Warning, why);
            return Ok(());
        }
        let missing: BTreeSet<Slice> =
            slices.into_iter().filter(|slice| !document.slice_scores.contains_key(slice)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let documents = document.calibration_text.as_deref().map(measure_tasks::documents).transpose()?;
        let (checkpoint, tasks) = (document.checkpoint.clone(), document.tasks.clone());
        let names: Vec<String> = missing.iter().map(Slice::to_string).collect();
        self.jobs.spawn(JobKind::ScoreUnits, format!("fisher on {}", names.join(" and ")), move |context| {
            let sources = SliceSources { documents: documents.as_ref(), tasks: tasks.as_deref() };
            let codec = Tokenizer::of_checkpoint(&checkpoint)?;
            let mut scores = Vec::with_capacity(missing.len());
            for slice in missing {
                let own = sources.score(&slice, &checkpoint, &codec, &context.device, &context.progress)?;
                scores.push((slice, Arc::new(own)));
            }
            Ok(Outcome::ScoredSlices { fingerprint: checkpoint.fingerprint.clone(), scores })
        });
        Ok(())
    }

    /// Changes what the plan takes away, as one step of history.
    pub(super) fn edit_units(&mut self, edit: UnitEdit, what: String) -> Result<()> {
        let mut note = None;
        self.change_plan(what, |document, plan| {
            let checkpoint = &document.checkpoint;
            match edit {
                UnitEdit::TakeAway(units) => plan.remove_units(checkpoint, &units),
                UnitEdit::GiveBack(units) => plan.restore_units(checkpoint, &units),
                UnitEdit::Exactly(removal) => plan.set_removal(checkpoint, removal),
                UnitEdit::Lowest { by, over, take } => {
                    let scores = document.scores_of(&by, over.as_deref()).ok_or_else(|| {
                        let by = over.unwrap_or_else(|| by.to_string());
                        Fault::new(Stage::Plan, format!("units are not scored by {by}")).fix("score them first")
                    })?;
                    let multiples = channel_multiples(document, plan)?;
                    let multiple = |layer: usize| multiples.get(layer).copied().unwrap_or(1);
                    let config = checkpoint.require_config()?;
                    let removal = select(config, &scores, &take, &multiple)?;
                    note = note_of_rounding(config, &take, &removal, &multiples);
                    plan.set_removal(checkpoint, removal)
                }
            }
        })?;
        if let Some(note) = note {
            self.state.notify(Level::Info, note);
        }
        Ok(())
    }
}

impl Workbench {
    /// Takes units away step by step; every step that is kept becomes the plan.
    pub(super) fn prune_in_steps(&mut self, request: PruneSteps) -> Result<()> {
        let Some(document) = &self.state.document else { return Ok(()) };
        if let Some(why) = document.cannot_prune_in_steps(request.metric) {
            self.state.notify(Level::Warning, why);
            return Ok(());
        }
        let slice = match (&request.slice, &document.tasks) {
            (Some((slice, most)), Some(tasks)) => Some(SliceLimit::new(tasks, slice, *most)?),
            (Some(_), None) => {
                self.state.notify(Level::Warning, "A limit on a slice needs tasks: choose some first");
                return Ok(());
            }
            (None, _) => None,
        };
        let calibration = document.calibration_text.as_deref().map(tasks::calibration_source).transpose()?;
        let Some(sample) = calibration.or_else(|| document.text.as_deref().cloned()) else { return Ok(()) };
        let held_out = document.text.as_deref().cloned().unwrap_or_else(|| sample.clone());
        let plan = document.plan();
        let input = StepsInput {
            checkpoint: document.checkpoint.clone(),
            sample,
            held_out,
            slice,
            multiples: channel_multiples(document, plan)?,
            start: plan.prune().removal.clone(),
            start_means: if request.compensate { plan.load_means()? } else { None },
            folder: project::output_folder(&document.project_path),
            request,
        };
        let title = format!("prune in {} steps by {}", input.request.steps, input.request.metric.name());
        self.with_document(|document| document.prune_steps.clear());
        self.jobs.spawn(JobKind::PruneSteps, title, move |context| prune_steps::run(&input, context));
        Ok(())
    }

    /// Takes in a step: it is kept under its name and becomes the plan.
    pub(super) fn take_prune_step(&mut self, fingerprint: &str, kept: PrunedStep) {
        if self.document_of(fingerprint).is_none_or(|document| document.prune_steps.contains(&kept)) {
            return;
        }
        let changed = self.change_plan(kept.name.clone(), |document, plan| {
            plan.set_removal(&document.checkpoint, kept.step.removal.clone())?;
            plan.set_means(kept.means.clone());
            Ok(())
        });
        match changed {
            Ok(()) => self.name_plan(&kept.name),
            Err(err) => self.state.notify(Level::Error, err.to_string()),
        }
        self.with_document(|document| {
            document.prune_steps.push(kept);
            document.is_dirty = true;
        });
    }
}

impl Document {
    /// Why units cannot be taken away in steps by a metric, if they cannot.
    pub fn cannot_prune_in_steps(&self, metric: Metric) -> Option<&'static str> {
        if !metric.needs_sample() {
            return Some("Steps need a score that looks at a text, such as flap or taylor");
        }
        if self.calibration_text.is_none() && self.text.is_none() {
            return Some("Steps are scored and measured on texts: choose one first");
        }
        self.cannot_run()
    }
}

/// Says why no channel went although some should.
fn note_of_rounding(config: &ModelConfig, take: &Take, removal: &Removal, multiples: &[usize]) -> Option<String> {
    let went = removal.units.values().any(|own| !own.channels.is_empty());
    let multiple = multiples.iter().copied().max().filter(|&multiple| multiple > 1)?;
    let channels = config.layers.iter().map(|layer| layer.mlp_channels).max()?;
    (take.channels > 0.0 && !went).then(|| {
        format!(
            "No channel went: the plan's formats need them in blocks of {multiple}, and {:.0} % of {channels} is less. \
             Take more, or choose a format of smaller blocks for down",
            100.0 * take.channels
        )
    })
}

/// How many channels of each layer go together, so that the blocks of its `down` stay whole.
fn channel_multiples(document: &Document, plan: &Plan) -> Result<Vec<usize>> {
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
