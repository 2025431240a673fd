//! Runs an evaluation: text, tasks, size and speed of a model, and of its baseline where needed.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::{EVALUATION_VERSION, Evaluation, ModelRef, SizeResult, journal, reliability, slices, written};
use crate::checkpoint::Checkpoint;
use crate::error::{Fault, Result, Stage};
use crate::model::{Model, Tokenizer};
use crate::progress::Progress;
use crate::scoring::conditions::{self, LoadWatch};
use crate::scoring::energy::{EnergyMeter, EnergyUse};
use crate::scoring::{
    Conditions, Items, KeptBaseline, KeptOptions, ScoredText, SeedOptions, SpeedOptions, TaskSet, TextCodec,
    TextOptions, TextSource, TokenModel, speed, stability,
};
use crate::units;

/// A model to measure, with what is known of its files.
#[derive(Clone)]
pub struct Subject<'a> {
    pub model: &'a dyn TokenModel,
    pub codec: &'a dyn TextCodec,
    /// A short name for a title.
    pub name: String,
    pub path: PathBuf,
    /// Content hash of its files, which keys the results; a fingerprint of headers does not tell
    /// candidates of equal shape apart.
    pub id: String,
    /// All files on disk.
    pub file_bytes: u64,
    /// Tensors on disk.
    pub tensor_bytes: u64,
    pub weight_count: u64,
    /// Weights in memory.
    pub resident_bytes: u64,
    /// What the cache of keys and values grows by with every token; 0 where unknown.
    pub kv_bytes_per_token: u64,
}

impl<'a> Subject<'a> {
    /// A loaded checkpoint; `id` is the content hash of its files.
    pub fn new(checkpoint: &Checkpoint, model: &'a Model, tokenizer: &'a Tokenizer, id: impl Into<String>) -> Self {
        Self {
            model,
            codec: tokenizer,
            name: checkpoint.name.clone(),
            path: checkpoint.path.clone(),
            id: id.into(),
            file_bytes: checkpoint.file_bytes(),
            tensor_bytes: checkpoint.tensor_bytes(),
            weight_count: checkpoint.weight_count(),
            resident_bytes: model.resident_bytes(),
            kv_bytes_per_token: checkpoint.config.as_ref().map_or(0, |config| config.kv_bytes_per_token()),
        }
    }

    fn size(&self) -> SizeResult {
        SizeResult {
            file_bytes: self.file_bytes,
            bits_per_weight: units::bits_per_weight(self.tensor_bytes, self.weight_count),
            resident_bytes: self.resident_bytes,
            weight_count: self.weight_count,
            kv_bytes_per_token: self.kv_bytes_per_token,
        }
    }

    fn reference(&self) -> ModelRef {
        ModelRef { name: self.name.clone(), path: self.path.clone(), id: self.id.clone() }
    }
}

impl Evaluation {
    /// Everything that follows from the items alone.
    fn summarize_items(&mut self) {
        self.slices = slices(&self.items);
        self.reliability = reliability(&self.items);
        self.written = written(&self.items);
    }
}

/// The model that a candidate is measured against.
#[derive(Clone)]
pub struct Baseline<'a> {
    /// Needed for distances, which come from both models' logits.
    pub subject: Subject<'a>,
    /// An evaluation of it from before: what has the right key is not measured again.
    pub known: Option<&'a Evaluation>,
}

/// What is measured and how.
#[derive(Clone, Debug, PartialEq)]
pub struct EvaluationOptions {
    /// Convention, window and length of the text.
    pub text: TextOptions,
    /// At most so many items of every slice, evenly spread; the same for every model.
    pub max_items_per_slice: Option<usize>,
    /// `None` leaves speed out.
    pub speed: Option<SpeedOptions>,
    /// Writes items several times with different seeds to see whether the model agrees with itself.
    pub seeds: Option<SeedOptions>,
    /// Folder in which finished items and windows are kept, so that an interrupted evaluation goes on where it was.
    pub journal: Option<PathBuf>,
    /// Keeps the baseline's predictions on the text, and takes distances from what is kept; `None` runs both models
    /// side by side, which is exact.
    pub kept: Option<KeptOptions>,
    /// A power to estimate energy with, in watts, where no counter can be read; no part of the key.
    pub watts: Option<f64>,
    /// What computes, for the key.
    pub device: String,
}

impl Default for EvaluationOptions {
    fn default() -> Self {
        Self {
            text: TextOptions::default(),
            max_items_per_slice: None,
            speed: Some(SpeedOptions::default()),
            seeds: None,
            journal: None,
            kept: None,
            watts: None,
            device: "cpu".to_owned(),
        }
    }
}

/// The key of an evaluation: a hash of all that its results depend on.
pub fn key(
    id: &str,
    baseline_id: Option<&str>,
    tasks: Option<&TaskSet>,
    text: Option<&TextSource>,
    options: &EvaluationOptions,
) -> String {
    let mut hasher = blake3::Hasher::new();
    // Every part is preceded by its length, so that no two lists of parts read the same.
    let mut part = |value: &str| {
        hasher.update(&(value.len() as u64).to_le_bytes());
        hasher.update(value.as_bytes());
    };
    let number = |value: Option<usize>| value.map_or_else(String::new, |value| value.to_string());
    part(concat!("evaluation ", env!("CARGO_PKG_VERSION")));
    part(id);
    part(baseline_id.unwrap_or(""));
    part(tasks.map_or("", |tasks| &tasks.hash));
    part(text.map_or("", |text| &text.hash));
    part(options.text.convention.name());
    part(&number(options.text.context));
    part(&number(options.text.max_tokens));
    part(&number(options.max_items_per_slice));
    part(&options.speed.as_ref().map_or_else(String::new, |speed| format!("{speed:?}")));
    part(&options.device);
    if let Some(seeds) = &options.seeds {
        part(&format!("{seeds:?}"));
    }
    if let (Some(kept), Some(_), Some(_)) = (&options.kept, baseline_id, text) {
        part(&format!("top {}", kept.k));
    }
    hasher.finalize().to_hex().to_string()
}

/// Measures a model, and its distance from a baseline.
///
/// Text and tasks may each be left out. Results do not depend on the number of threads, speed apart.
pub fn evaluate(
    subject: &Subject<'_>,
    baseline: Option<&Baseline<'_>>,
    tasks: Option<&TaskSet>,
    text: Option<&TextSource>,
    options: &EvaluationOptions,
    progress: &Progress,
) -> Result<Evaluation> {
    let sampled = match (tasks, options.max_items_per_slice) {
        (Some(tasks), Some(count)) => Some(tasks.sample(count)),
        _ => None,
    };
    let items = sampled.as_ref().or(tasks);

    let mut document = blank(subject, baseline.map(|baseline| baseline.subject.id.as_str()), tasks, text, options);
    let mut reference = baseline.map(|baseline| {
        let fresh = blank(&baseline.subject, None, tasks, text, options);
        match baseline.known.filter(|known| known.key == fresh.key) {
            Some(known) => (Evaluation { baseline: None, ..known.clone() }, true),
            None => (fresh, false),
        }
    });

    if let Some(text) = text {
        let prepared = prepare(subject, text, options)?;
        if let (Some(baseline), Some((reference, _))) = (baseline, &mut reference) {
            let others = prepare(&baseline.subject, text, options)?;
            if others.windows != prepared.windows {
                return Err(Fault::new(
                    Stage::Evaluation,
                    "baseline and candidate cut the text into different tokens, so no distance can be measured",
                )
                .at(subject.name.clone())
                .fix("evaluate them one by one and compare bits per byte")
                .into());
            }
            let journal = text_journal(options, &document.key);
            let (model, journal) = (baseline.subject.model, journal.as_deref());
            let (base, own) = match &options.kept {
                Some(kept) => {
                    let mut kept =
                        KeptBaseline::open_or_make(&prepared, model, &baseline.subject.id, &text.hash, kept, progress)?;
                    prepared.score_kept(&mut kept, subject.model, journal, progress)?
                }
                None => prepared.score_pair_on(model, subject.model, journal, progress)?,
            };
            (reference.text, reference.text_tokens_per_second) = (Some(base), None);
            document.text = Some(own);
        } else {
            let started = Instant::now();
            let journal = text_journal(options, &document.key);
            let (result, read) = prepared.score_on(subject.model, journal.as_deref(), progress)?;
            document.text = Some(result);
            // Of windows that were finished before, nothing is known of the time.
            document.text_tokens_per_second =
                (read > 0).then(|| read as f64 / started.elapsed().as_secs_f64().max(1e-9));
        }
    }
    if let Some(items) = items {
        if let (Some(baseline), Some((reference, false))) = (baseline, &mut reference) {
            let journal = options.journal.as_deref().map(|folder| (folder, reference.key.as_str()));
            let (model, codec) = (baseline.subject.model, baseline.subject.codec);
            (reference.items, reference.energy) = score(&baseline.subject, items, journal, options, progress)?;
            reference.summarize_items();
            if let Some(seeds) = &options.seeds {
                reference.seeds = stability::seed_agreement(model, codec, items, seeds, progress)?;
            }
        }
        let journal = options.journal.as_deref().map(|folder| (folder, document.key.as_str()));
        (document.items, document.energy) = score(subject, items, journal, options, progress)?;
        document.summarize_items();
        if let Some(seeds) = &options.seeds {
            document.seeds = stability::seed_agreement(subject.model, subject.codec, items, seeds, progress)?;
        }
    }
    if let Some(speed) = &options.speed {
        // In turns even where the baseline's speed is known from before: a ratio of two moments says little.
        let mut models = vec![subject.model];
        models.extend(baseline.map(|baseline| baseline.subject.model));
        let (load_average, watch) = (conditions::load_average(), LoadWatch::start());
        let mut results = speed::measure(&models, speed, progress)?.into_iter();
        let conditions = Some(Conditions { load_average, other_cores: watch.stop(), ..Conditions::here() });
        document.speed = results.next();
        if let Some((reference, _)) = &mut reference {
            (reference.speed, reference.conditions) = (results.next(), conditions.clone());
        }
        document.conditions = conditions;
    }
    // It may have failed on the way.
    document.device = subject.model.device();
    document.baseline = reference.map(|(reference, _)| Box::new(reference));
    Ok(document)
}

/// Scores items of a subject, and what that took in energy where it can be told.
fn score(
    subject: &Subject<'_>,
    items: &TaskSet,
    journal: Option<(&Path, &str)>,
    options: &EvaluationOptions,
    progress: &Progress,
) -> Result<(Items, Option<EnergyUse>)> {
    let meter = EnergyMeter::start(options.watts);
    let kept = journal::score(subject.model, subject.codec, items, journal, progress)?;
    let energy = meter.stop();
    Ok((kept.items, energy.and_then(|energy| EnergyUse::new(energy, kept.tokens, kept.correct))))
}

/// Where scored windows of the evaluation with this key are kept.
fn text_journal(options: &EvaluationOptions, key: &str) -> Option<PathBuf> {
    options.journal.as_deref().map(|folder| journal::path_of(folder, key, "text.bin"))
}

/// The windows of a text for a subject; the default window follows the model's context.
fn prepare(subject: &Subject<'_>, text: &TextSource, options: &EvaluationOptions) -> Result<ScoredText> {
    ScoredText::new(subject.codec, text, subject.model.context(), subject.model.vocab(), &options.text)
}

/// A document with all that is known without running the model.
fn blank(
    subject: &Subject<'_>,
    baseline_id: Option<&str>,
    tasks: Option<&TaskSet>,
    text: Option<&TextSource>,
    options: &EvaluationOptions,
) -> Evaluation {
    Evaluation {
        version: EVALUATION_VERSION,
        engine: env!("CARGO_PKG_VERSION").to_owned(),
        key: key(&subject.id, baseline_id, tasks, text, options),
        model: subject.reference(),
        label: "measured".to_owned(),
        device: subject.model.device(),
        text_hash: text.map(|text| text.hash.clone()),
        tasks_hash: tasks.map(|tasks| tasks.hash.clone()),
        text: None,
        text_tokens_per_second: None,
        slices: Vec::new(),
        reliability: None,
        written: None,
        seeds: None,
        size: subject.size(),
        speed: None,
        conditions: Some(Conditions::here()),
        energy: None,
        items: Items::default(),
        baseline: None,
    }
}
