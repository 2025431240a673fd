//! The job that prunes in steps.

use std::path::PathBuf;
use std::sync::Arc;

use super::events::{Event, Outcome};
use super::jobs::Context;
use super::tasks;
use super::units::{PruneSteps, PrunedStep};
use crate::engine::checkpoint::{Checkpoint, Removal};
use crate::engine::error::{Error, Result};
use crate::engine::model::Tokenizer;
use crate::engine::scoring::TextSource;
use crate::engine::structure::limits::SliceLimit;
use crate::engine::structure::schedule::{ScheduleOptions, Step, schedule};
use crate::engine::structure::{InputMeans, Sample, SampleOptions};
use crate::engine::units;

/// Windows that steps are scored and measured on: enough to rank units, few enough for a step in seconds.
const WINDOWS: usize = 32;

/// What the job is given.
pub(super) struct StepsInput {
    pub(super) request: PruneSteps,
    pub(super) checkpoint: Arc<Checkpoint>,
    /// What units are scored on.
    pub(super) sample: TextSource,
    /// What steps are measured on.
    pub(super) held_out: TextSource,
    pub(super) slice: Option<SliceLimit>,
    /// How many channels of each layer go together.
    pub(super) multiples: Vec<usize>,
    pub(super) start: Removal,
    pub(super) start_means: Option<Arc<InputMeans>>,
    /// Where files of means go.
    pub(super) folder: PathBuf,
}

/// Runs the schedule; every step is told when it is measured, so that what was done stays if the job is stopped.
pub(super) fn run(input: &StepsInput, context: &Context) -> Result<Outcome> {
    let (checkpoint, request) = (&*input.checkpoint, &input.request);
    let codec = Tokenizer::of_checkpoint(checkpoint)?;
    let options = SampleOptions { context: None, max_windows: Some(WINDOWS) };
    let windows = |text| Sample::new(text, &codec, checkpoint.require_config()?, &options);
    let (sample, held_out) = (windows(&input.sample)?, windows(&input.held_out)?);
    let options = ScheduleOptions {
        metric: request.metric,
        seed: 0,
        take: request.take,
        steps: request.steps,
        max_kld: request.max_kld,
        slice: input.slice.clone(),
        compensate: request.compensate,
        start: input.start.clone(),
        start_means: input.start_means.clone(),
        device: context.device.clone(),
    };
    let multiple = |layer: usize| input.multiples.get(layer).copied().unwrap_or(1);
    let fingerprint = checkpoint.fingerprint.clone();
    let mut kept = Vec::new();
    let mut failure = None;
    let mut keep = |step: &Step| match keep_step(input, step) {
        Ok(step) => {
            context.offer(Event::PruneStep { fingerprint: fingerprint.clone(), kept: Box::new(step.clone()) });
            kept.push(step);
        }
        Err(err) => drop(failure.get_or_insert(err)),
    };
    let done = schedule(checkpoint, &sample, &held_out, &options, &multiple, &context.progress, &mut keep)?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    let refused = done.refused.map(|step| {
        let slice = step.slice.map_or_else(String::new, |slice| {
            format!(", {}/{} {:.1} points lower", slice.task, slice.slice, 100.0 * slice.loss)
        });
        format!("Step {} was not taken: it would cost KLD {}{slice}", step.index, units::significant(step.kld))
    });
    Ok(Outcome::PrunedInSteps { fingerprint, kept, refused })
}

/// Gives a step its name and writes the means that its plan needs.
fn keep_step(input: &StepsInput, step: &Step) -> Result<PrunedStep> {
    let request = &input.request;
    let name = format!(
        "{} step {} of {}, KLD {}",
        request.metric.name(),
        step.index,
        request.steps,
        units::significant(step.kld)
    );
    let means = match &step.means {
        Some(means) => {
            std::fs::create_dir_all(&input.folder).map_err(Error::io("create", &input.folder))?;
            let path = tasks::candidate_path(&input.folder, &name, Some("means.safetensors"))?;
            means.write(&path)?;
            Some(path)
        }
        None => None,
    };
    Ok(PrunedStep { name, step: Step { means: None, ..step.clone() }, means })
}
