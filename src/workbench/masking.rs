//! Masks for study in the project: single weights set to zero, written as a candidate that says what it is.
//!
//! A mask is no part of a plan: the run keeps it beside the plan that its weights were stored by, and what
//! plans are compared or predicted with leaves such runs out.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::Workbench;
use super::events::Outcome;
use super::jobs::{Context, JobKind};
use super::state::{Document, Level, Run};
use super::{project, tasks};
use crate::engine::checkpoint::Checkpoint;
use crate::engine::comparison::Comparison;
use crate::engine::error::Result;
use crate::engine::format::Format;
use crate::engine::model::Tokenizer;
use crate::engine::pass::{self, MaskFacts, MaskPass};
use crate::engine::report::AuditEntry;
use crate::engine::scoring::TextSource;
use crate::engine::structure::masks::Pattern;
use crate::engine::structure::study::{MaskMethod, MaskOptions, USUAL_MEMORY, USUAL_WINDOWS};
use crate::engine::structure::{Sample, SampleOptions};

/// A mask that is asked for.
#[derive(Clone, Copy, Debug)]
pub struct MaskRequest {
    /// How weights are chosen.
    pub method: MaskMethod,
    /// Which are compared and how many go.
    pub pattern: Pattern,
    /// With SparseGPT, the integers that what stays is brought to in the same sweep.
    pub quantize: Option<&'static dyn Format>,
}

impl Default for MaskRequest {
    fn default() -> Self {
        Self { method: MaskMethod::Wanda, pattern: Pattern::TWO_OF_FOUR, quantize: None }
    }
}

impl MaskRequest {
    /// Method, pattern and format, as its candidate is called.
    pub fn name(&self) -> String {
        let format = self.quantize.map_or_else(String::new, |format| format!(" {}", format.id()));
        format!("{} {}{format}", self.method.name(), self.pattern)
    }
}

impl Run {
    /// Takes in how it compares; what a mask does not save is told beside it.
    pub(super) fn set_comparison(&mut self, comparison: Option<Box<Comparison>>) {
        let mask = self.mask.as_deref();
        self.comparison = comparison.map(|mut comparison| {
            let statements = mask.into_iter().flat_map(MaskFacts::statements);
            comparison.warnings.extend(statements.map(str::to_owned));
            Arc::from(comparison)
        });
    }
}

impl Document {
    /// Why a method cannot mask this model, if it cannot.
    pub fn cannot_mask(&self, method: MaskMethod) -> Option<&'static str> {
        if !method.needs_sample() {
            return None;
        }
        if self.calibration_text.is_none() && self.text.is_none() {
            return Some("This method looks at a text: choose one first");
        }
        self.cannot_run()
    }
}

/// What the job is given.
struct MaskInput {
    request: MaskRequest,
    checkpoint: Arc<Checkpoint>,
    /// What inputs are looked at on, for methods that do.
    text: Option<TextSource>,
    name: String,
    output: PathBuf,
    /// The project's own folder, with the audit log.
    folder: PathBuf,
}

impl Workbench {
    /// Masks the model and writes it as a candidate, which is then evaluated like any other.
    pub(super) fn mask(&mut self, request: MaskRequest) -> Result<()> {
        let Some(document) = &self.state.document else { return Ok(()) };
        let is_running = self.jobs.is_running(JobKind::Pass).then_some("A pass is running");
        if let Some(why) = is_running.or(document.cannot_mask(request.method)) {
            self.state.notify(Level::Warning, why);
            return Ok(());
        }
        let text = match (&document.calibration_text, &document.text) {
            _ if !request.method.needs_sample() => None,
            (Some(path), _) => Some(tasks::calibration_source(path)?),
            (None, text) => text.as_deref().cloned(),
        };
        let folder = project::output_folder(&document.project_path);
        let name = document.free_name(&request.name());
        let input = MaskInput {
            request,
            checkpoint: document.checkpoint.clone(),
            text,
            output: tasks::candidate_path(&folder, &name, None)?,
            folder,
            name,
        };
        let title = format!("mask by {}", input.name);
        self.jobs.spawn(JobKind::Pass, title, move |context| run(&input, context));
        Ok(())
    }
}

/// Masks and writes.
fn run(input: &MaskInput, context: &Context) -> Result<Outcome> {
    let checkpoint = &*input.checkpoint;
    let sample = match &input.text {
        Some(text) => {
            let options = SampleOptions { context: None, max_windows: Some(USUAL_WINDOWS) };
            let codec = Tokenizer::of_checkpoint(checkpoint)?;
            Some(Sample::new(text, &codec, checkpoint.require_config()?, &options)?)
        }
        None => None,
    };
    let mask = MaskOptions {
        method: input.request.method,
        pattern: input.request.pattern,
        sample: sample.as_ref(),
        most_bytes: USUAL_MEMORY,
        format: input.request.quantize.map(Format::dtype),
        device: Some(&context.device),
    };
    let options = MaskPass { mask, recipe: None, target: None, compact_zeros: true };
    let started = Instant::now();
    let done = pass::masked(checkpoint, &options, &input.output, &context.progress);
    let inputs = || AuditEntry::inputs_of_pass(checkpoint, None);
    let done = tasks::logged(done, "pass", inputs, started, &input.folder, context)?;
    let written = tasks::Written {
        name: input.name.clone(),
        plan: done.plan,
        report: done.report,
        importance_hash: None,
        mask: Some(done.facts),
    };
    tasks::hand_over(checkpoint, written, &input.folder, context)
}
