//! The bodies of jobs that measure sensitivity.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::events::{Event, Outcome};
use super::jobs::Context;
use super::measure::{CalibrationInfo, DEFAULT_TOKENS, KldRequest};
use super::tasks::ModelCache;
use crate::engine::calibration::{Documents, Importance, Overlap};
use crate::engine::checkpoint::{Checkpoint, ModelConfig};
use crate::engine::error::Result;
use crate::engine::model::Tokenizer;
use crate::engine::scoring::{TaskSet, TextOptions, TextSource};
use crate::engine::sensitivity::fisher::{self, FisherOptions};
use crate::engine::sensitivity::kld::{self, KldOptions};
use crate::engine::sensitivity::output::{self, OutputOptions};
use crate::engine::sensitivity::units::{self, UnitMetric, UnitOptions};
use crate::engine::sensitivity::weight::{self, WeightOptions};
use crate::engine::sensitivity::{
    GroupedText, Metric, SensitivityRow, SensitivityTable, SensitivityValue, UnitTable, select_formats,
};

/// The share of a cell's value that its standard error falls to before it ends early.
const STOP_AT: f64 = 0.1;

/// What KLD is measured on: the tasks where there are some, else the text.
pub(super) struct On {
    pub(super) text: PathBuf,
    pub(super) tasks: Option<Arc<TaskSet>>,
}

/// Documents of a file, with domains where it or a JSONL beside it names them.
pub(super) fn documents(path: &Path) -> Result<Documents> {
    let documents = Documents::read(path)?;
    if !documents.domains().is_empty() {
        return Ok(documents);
    }
    Ok(Documents::beside(&documents.source()))
}

fn cut(tokenizer: &Tokenizer, path: &Path, tokens: usize, config: &ModelConfig) -> Result<GroupedText> {
    let options = TextOptions { max_tokens: Some(tokens), ..TextOptions::default() };
    GroupedText::of_documents(tokenizer, &documents(path)?, config.context, config.vocab, &options)
}

/// A table without rows, for partial results to go into.
fn empty(
    checkpoint: &Checkpoint,
    metric: &Metric,
    text: Option<&GroupedText>,
    importance: Option<&Arc<Importance>>,
) -> Result<Arc<SensitivityTable>> {
    let mut empty = SensitivityTable::new(checkpoint, metric, &select_formats(&[])?);
    empty.imatrix = importance.map(|importance| importance.hash.clone());
    empty.basis = text.map(GroupedText::basis_without_groups);
    Ok(Arc::new(empty))
}

/// Tells the window of finished rows.
fn tell_rows<'a>(
    context: &'a Context,
    key: &'static str,
    empty: Arc<SensitivityTable>,
) -> impl FnMut(usize, &SensitivityRow) + 'a {
    move |_, row| {
        let (fingerprint, empty) = (empty.checkpoint.clone(), empty.clone());
        context.offer(Event::Row { fingerprint, key, empty, row: row.clone() });
    }
}

fn measured(key: &'static str, table: SensitivityTable) -> Outcome {
    Outcome::Sensitivity { fingerprint: table.checkpoint.clone(), key, table }
}

/// Measures the relative weight error of every tensor in every format.
pub(super) fn weight_error(
    checkpoint: &Checkpoint,
    importance: Option<Arc<Importance>>,
    context: &Context,
) -> Result<Outcome> {
    let empty = empty(checkpoint, &weight::METRIC, None, importance.as_ref())?;
    let options = WeightOptions { importance, device: context.device.clone(), ..WeightOptions::default() };
    let mut tell = tell_rows(context, weight::METRIC.id, empty);
    let table = weight::weight_error(checkpoint, &options, &context.progress, &mut tell)?;
    Ok(measured(weight::METRIC.id, table))
}

/// Predicts KLD of every tensor in every format from gradients on a text.
pub(super) fn fisher(
    checkpoint: &Checkpoint,
    text: &Path,
    importance: Option<Arc<Importance>>,
    context: &Context,
) -> Result<Outcome> {
    let tokenizer = Tokenizer::of_checkpoint(checkpoint)?;
    let text = cut(&tokenizer, text, DEFAULT_TOKENS, checkpoint.require_config()?)?;
    let empty = empty(checkpoint, &fisher::METRIC, Some(&text), importance.as_ref())?;
    let options = FisherOptions { importance, device: context.device.clone(), ..FisherOptions::default() };
    let mut tell = tell_rows(context, fisher::METRIC.id, empty);
    let table = fisher::predicted_kld(checkpoint, &text, &options, &context.progress, &mut tell)?;
    Ok(measured(fisher::METRIC.id, table))
}

/// Predicts the error of every linear's output in every format, and keeps what linears are given.
pub(super) fn output_error(
    checkpoint: &Checkpoint,
    models: &ModelCache,
    text: &Path,
    importance: Option<Arc<Importance>>,
    context: &Context,
) -> Result<Outcome> {
    let ready = models.get(checkpoint, None, context)?;
    let text = cut(&ready.tokenizer, text, DEFAULT_TOKENS, &ready.model.config)?;
    let empty = empty(checkpoint, &output::METRIC, Some(&text), importance.as_ref())?;
    let options = OutputOptions { importance, ..OutputOptions::default() };
    let mut tell = tell_rows(context, output::METRIC.id, empty);
    let (table, mut activations) =
        output::output_error(checkpoint, &ready.model, &text, &options, &context.progress, &mut tell)?;
    // Only the figures of channels are shown; the products are large.
    activations.inputs.iter_mut().for_each(|input| input.products = None);
    let fingerprint = checkpoint.fingerprint.clone();
    Ok(Outcome::OutputError { fingerprint, table, activations: Arc::new(activations) })
}

/// Measures KLD of what is not known yet and tells the window of every cell.
pub(super) fn measured_kld(
    checkpoint: &Checkpoint,
    models: &ModelCache,
    on: &On,
    request: &KldRequest,
    importance: Option<Arc<Importance>>,
    known: Option<Arc<SensitivityTable>>,
    context: &Context,
) -> Result<Outcome> {
    let ready = models.get(checkpoint, None, context)?;
    let config = &ready.model.config;
    let text = match &on.tasks {
        Some(tasks) => GroupedText::of_tasks(&ready.tokenizer, tasks, config.context, config.vocab, request.tokens)?,
        None => cut(&ready.tokenizer, &on.text, request.tokens, config)?,
    };
    let options = KldOptions {
        formats: request.formats.iter().map(|&id| id.to_owned()).collect(),
        granularity: request.granularity,
        stop_at: request.stops_early.then_some(STOP_AT),
        importance,
        known,
        ..KldOptions::default()
    };
    let empty = Arc::new(kld::empty_table(checkpoint, &text, &options)?);
    let key = request.key();
    let mut tell = |row, column, value: &SensitivityValue| {
        let (fingerprint, empty) = (checkpoint.fingerprint.clone(), empty.clone());
        context.offer(Event::Cell { fingerprint, key, empty, at: (row, column), value: value.clone() });
    };
    let table = kld::measured_kld(checkpoint, &ready.model, &text, &options, &context.progress, &mut tell)?;
    Ok(measured(key, table))
}

/// Measures layers or heads.
pub(super) fn units(
    checkpoint: &Checkpoint,
    models: &ModelCache,
    text: &Path,
    metric: &'static UnitMetric,
    known: Option<Arc<UnitTable>>,
    context: &Context,
) -> Result<Outcome> {
    let ready = models.get(checkpoint, None, context)?;
    let text = cut(&ready.tokenizer, text, DEFAULT_TOKENS, &ready.model.config)?;
    let empty = Arc::new(UnitTable::new(checkpoint, metric, &text));
    let options = UnitOptions { known, device: context.device.clone(), ..UnitOptions::default() };
    let mut tell = |value: &units::UnitValue| {
        let (fingerprint, empty) = (checkpoint.fingerprint.clone(), empty.clone());
        context.offer(Event::UnitMeasured { fingerprint, empty, value: value.clone() });
    };
    let table = units::measure(checkpoint, &ready.model, &text, metric, &options, &context.progress, &mut tell)?;
    Ok(Outcome::Units { fingerprint: checkpoint.fingerprint.clone(), table })
}

/// How the calibration text is mixed and what it shares with the text that candidates are evaluated on.
pub(super) fn look_at_calibration(
    checkpoint: &Checkpoint,
    path: &Path,
    evaluation: Option<&TextSource>,
    tells: bool,
    context: &Context,
) -> Result<Outcome> {
    let tokenizer = Tokenizer::of_checkpoint(checkpoint)?;
    let own = documents(path)?;
    context.progress.check()?;
    let mixture = own.mixture(&tokenizer)?;
    context.progress.check()?;
    let overlap = match evaluation {
        Some(evaluation) => {
            let (own, theirs) = (own.encode(&tokenizer)?, Documents::of_text(evaluation).encode(&tokenizer)?);
            Some(Overlap::count(&own, &theirs, Overlap::NGRAM))
        }
        None => None,
    };
    let info = CalibrationInfo { path: path.to_owned(), mixture, overlap };
    Ok(Outcome::LookedAtCalibration { fingerprint: checkpoint.fingerprint.clone(), info, tells })
}
