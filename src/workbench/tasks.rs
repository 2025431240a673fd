//! The bodies of jobs: engine entry functions put together, with nothing of the window's state but
//! what they are given.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::choices::MeasuredWith;
use super::command::Subject;
use super::demo::unpack_demo;
use super::events::{Event, Opened, Outcome, Passed};
use super::importance::KnownImportance;
use super::jobs::Context;
use super::project::{self, Project};
use super::state::{Run, RunId};
use super::whose::Side;
use crate::engine::calibration::{self, Importance, ImportanceOptions};
use crate::engine::checkpoint::Checkpoint;
use crate::engine::comparison::{self, ComparisonOptions, GateSet};
use crate::engine::device::Device;
use crate::engine::error::{Error, Fault, Result, Stage};
use crate::engine::evaluation::{self, Baseline, Evaluation};
use crate::engine::model::{Model, Tokenizer};
use crate::engine::pass::{self, Earlier, MaskFacts, PassOptions, PassReport};
use crate::engine::plan::{self, Plan, ResolvedPlan, Target};
use crate::engine::profile::{self, ProfileOptions};
use crate::engine::progress::Progress;
use crate::engine::report::{AuditEntry, HashedFile, PassFacts, audit};
use crate::engine::scoring::energy::EnergyMeter;
use crate::engine::scoring::{self, GenerateOptions, TaskSet, TextSource};
use crate::engine::structure::{self, Metric, Sample, SampleOptions, ScoreOptions, attention};

/// A model with its tokenizer, ready to run.
pub(super) struct Ready {
    pub(super) model: Model,
    pub(super) tokenizer: Tokenizer,
    /// BLAKE3 over the files: evaluations are kept by it.
    content_hash: String,
}

/// Keys and models, the one used last at the end.
type Loaded = Vec<(String, Arc<Ready>)>;

/// Models loaded last, so that a second look costs nothing. Two: the original and one candidate.
#[derive(Clone, Default)]
pub(super) struct ModelCache {
    loaded: Arc<Mutex<Loaded>>,
}

impl std::fmt::Debug for ModelCache {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("ModelCache").finish_non_exhaustive()
    }
}

impl ModelCache {
    const MOST: usize = 2;

    fn key(checkpoint: &Checkpoint, device: &Device) -> String {
        format!("{} {} {}", checkpoint.path.display(), checkpoint.fingerprint, device.models_in_words())
    }

    /// The model of a checkpoint. A candidate whose own tokenizer cannot be rebuilt (a GGUF that names no
    /// pre-tokenizer we know) is read with that of the checkpoint it was made from.
    pub(super) fn get(&self, checkpoint: &Checkpoint, source: Option<&Ready>, context: &Context) -> Result<Arc<Ready>> {
        let key = Self::key(checkpoint, &context.device);
        {
            let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(index) = loaded.iter().position(|(known, _)| *known == key) {
                let entry = loaded.remove(index);
                loaded.push(entry);
                return Ok(loaded[loaded.len() - 1].1.clone());
            }
            if loaded.len() >= Self::MOST {
                loaded.remove(0);
            }
        }
        let ready = Arc::new(Ready {
            content_hash: checkpoint.content_hash(&context.progress)?,
            model: Model::load_on(checkpoint, &context.device, &context.progress)?,
            tokenizer: Tokenizer::of_checkpoint(checkpoint)
                .or_else(|err| source.map(|source| source.tokenizer.clone()).ok_or(err))?,
        });
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).push((key, ready.clone()));
        Ok(ready)
    }
}

/// What is to be opened.
pub(super) enum Source {
    Demo,
    Path(PathBuf),
}

/// Opens a checkpoint or a project and whatever belongs to it.
pub(super) fn open(source: Source, cache_dir: &Path, data_dir: &Path) -> Result<Outcome> {
    let mut warnings = Vec::new();
    let (path, is_demo, own_project) = match source {
        Source::Demo => (unpack_demo(cache_dir)?, true, None),
        Source::Path(path) if path.extension().is_some_and(|extension| extension == "lapidary") => {
            let project = Project::read(&path)?;
            match project.checkpoint.clone() {
                Some(checkpoint) => (checkpoint, false, Some((path, project))),
                None => (unpack_demo(cache_dir)?, true, Some((path, project))),
            }
        }
        Source::Path(path) => (path, false, None),
    };
    let mut checkpoint = Checkpoint::open(&path)?;
    if is_demo {
        // Its folder in the cache is called by a hash.
        "demo".clone_into(&mut checkpoint.name);
    }
    let checkpoint = Arc::new(checkpoint);
    let has_own_file = own_project.is_some();
    let (project_path, project) = match own_project {
        Some((path, project)) => (path, Some(project)),
        None => {
            let path = project::default_path(data_dir, &checkpoint.name, &checkpoint.fingerprint);
            let project = if path.exists() {
                match Project::read(&path) {
                    Ok(project) => Some(project),
                    Err(err) => {
                        // Kept aside: what cannot be read now may still be rescued by hand.
                        let aside = path.with_extension("lapidary.unreadable");
                        let moved = std::fs::rename(&path, &aside);
                        warnings.push(format!(
                            "the earlier project of this checkpoint cannot be read and was {}: {err}",
                            if moved.is_ok() { "set aside" } else { "left alone" }
                        ));
                        None
                    }
                }
            } else {
                None
            };
            (path, project)
        }
    };
    if let Some(project) = &project
        && project.fingerprint != checkpoint.fingerprint
    {
        warnings.push(
            "the checkpoint has changed since the project was saved; older results may not belong to it".to_owned(),
        );
    }
    let mut pick = |saved: Option<&PathBuf>, own: &str| -> Option<PathBuf> {
        let beside = path.join(own);
        match saved {
            Some(saved) if saved.exists() => Some(saved.clone()),
            Some(saved) => {
                warnings.push(format!("{} is no longer there", saved.display()));
                None
            }
            None => (is_demo || beside.exists()).then_some(beside),
        }
    };
    let tasks_path = pick(project.as_ref().and_then(|project| project.tasks.as_ref()), "tasks.jsonl");
    let text_path = pick(project.as_ref().and_then(|project| project.text.as_ref()), "evaluation.txt");
    let mut keep = |result: Result<Arc<TaskSet>>| result.map_err(|err| warnings.push(err.to_string())).ok();
    let tasks = tasks_path.and_then(|path| keep(TaskSet::read(&path).map(Arc::new)));
    let text = text_path
        .and_then(|path| TextSource::read(&path).map(Arc::new).map_err(|err| warnings.push(err.to_string())).ok());
    let saved = project.as_ref().and_then(|project| project.calibration_text.clone());
    let beside = path.join("calibration.txt");
    let calibration_text = saved.or(Some(beside)).filter(|path| path.is_file());
    let calibration = project.as_ref().and_then(|project| {
        let plan = Plan::parse(&project.plan, Some(&project_path)).ok()?;
        plan.calibration().cloned()
    });
    let importance = calibration.and_then(|calibration| {
        let read = Importance::read(calibration.imatrix.as_deref()?);
        let text = calibration.text.zip(calibration.text_hash);
        let known = read.and_then(|importance| KnownImportance::new(importance, text, &checkpoint));
        known.map_err(|err| warnings.push(err.to_string())).ok()
    });
    let gates = project.as_ref().and_then(|project| {
        let read = GateSet::read(project.gates.as_deref()?).map(Arc::new);
        read.map_err(|err| warnings.push(err.to_string())).ok()
    });
    Ok(Outcome::Opened(Box::new(Opened {
        gates,
        importance,
        calibration_text,
        checkpoint,
        is_demo,
        project_path,
        has_own_file,
        project,
        warnings,
        tasks,
        text,
    })))
}

/// Opens the candidate of a saved run again and checks that it is the same.
pub(super) fn reopen(run: RunId, path: &Path) -> Outcome {
    let candidate = Checkpoint::open(path).map(Arc::new);
    Outcome::Reopened { run, candidate }
}

/// Profiles the original, tensor by tensor.
pub(super) fn profile(checkpoint: &Checkpoint, context: &Context) -> Result<Outcome> {
    let mut tell = |tensor: usize, profile: Arc<profile::TensorProfile>| {
        context.offer(Event::Profiled { fingerprint: checkpoint.fingerprint.clone(), tensor, profile });
    };
    let options = ProfileOptions { device: context.device.clone(), ..ProfileOptions::default() };
    let noun = profile::profile(checkpoint, &options, &context.progress, &mut tell)?;
    Ok(Outcome::Profiled { fingerprint: checkpoint.fingerprint.clone(), profiles: noun.tensors, faults: noun.faults })
}

/// Profiles a candidate for overlaying: each tensor over the range of the original's histogram.
pub(super) fn profile_run(run: RunId, candidate: &Checkpoint, context: &Context) -> Result<Outcome> {
    let options = ProfileOptions { device: context.device.clone(), ..ProfileOptions::default() };
    let noun = profile::profile(candidate, &options, &context.progress, &mut |_, _| {})?;
    let profiles: BTreeMap<_, _> =
        noun.tensors.into_iter().flatten().map(|profile| (profile.name.clone(), profile)).collect();
    Ok(Outcome::RunProfiled { run, profiles })
}

/// Computes importance on a text and writes it into the project's folder.
pub(super) fn calibrate(
    checkpoint: &Checkpoint,
    models: &ModelCache,
    text: &Path,
    folder: &Path,
    context: &Context,
) -> Result<Outcome> {
    let text = calibration_source(text)?;
    let ready = models.get(checkpoint, None, context)?;
    let options = ImportanceOptions::default();
    let mut importance =
        calibration::importance(checkpoint, &ready.model, &ready.tokenizer, &text, &options, &context.progress)?;
    importance.write(&candidate_path(folder, &format!("{}.imatrix", checkpoint.name), Some("gguf"))?)?;
    let known = KnownImportance::new(importance, Some((text.path, text.hash)), checkpoint)?;
    Ok(Outcome::Calibrated { fingerprint: checkpoint.fingerprint.clone(), known: Box::new(known), is_computed: true })
}

/// A text as it is, or the documents of a JSONL as one text.
pub(super) fn calibration_source(path: &Path) -> Result<TextSource> {
    if path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("jsonl")) {
        return Ok(calibration::Documents::read(path)?.source());
    }
    TextSource::read(path)
}

/// Reads an importance matrix and makes sure that it is this checkpoint's.
pub(super) fn load_importance(checkpoint: &Checkpoint, path: &Path) -> Result<Outcome> {
    let known = KnownImportance::new(Importance::read(path)?, None, checkpoint)?;
    Ok(Outcome::Calibrated { fingerprint: checkpoint.fingerprint.clone(), known: Box::new(known), is_computed: false })
}

/// A run whose tensors a pass may take over.
pub(super) struct Predecessor {
    candidate: Arc<Checkpoint>,
    content_hash: String,
    plan: Plan,
}

impl Predecessor {
    /// A run, where its candidate is open and holds what its plan makes of the checkpoint.
    pub(super) fn of(run: &Run) -> Option<Self> {
        if run.mask.is_some() {
            return None;
        }
        let candidate = run.checkpoint()?.clone();
        Some(Self { candidate, content_hash: run.content_hash.clone(), plan: run.plan.clone() })
    }

    /// What a pass needs of it: none where its file is no longer what was written, or another target's.
    fn earlier(&self, checkpoint: &Checkpoint, target: Target, progress: &Progress) -> Result<Option<Earlier>> {
        if self.plan.target() != target {
            return Ok(None);
        }
        let Ok(resolved) = plan::resolve(&self.plan, checkpoint) else { return Ok(None) };
        if self.candidate.content_hash(progress)? != self.content_hash {
            return Ok(None);
        }
        let importance = self.plan.calibration().and_then(|calibration| calibration.imatrix_hash.clone());
        Ok(Some(Earlier { candidate: self.candidate.clone(), plan: Arc::new(resolved), importance }))
    }
}

/// Predecessors that a pass looks at: more of them cost more to check than they save.
const MOST_PREDECESSORS: usize = 3;

/// Scores every unit; with a text and `wants_patterns`, looks at what heads attend to as well.
pub(super) fn score_units(
    checkpoint: &Checkpoint,
    metric: Metric,
    text: Option<&TextSource>,
    wants_patterns: bool,
    context: &Context,
) -> Result<Outcome> {
    /// Windows that say enough of every unit and are looked at in seconds.
    const WINDOWS: usize = 64;
    let sample = match text {
        Some(text) => {
            let options = SampleOptions { context: None, max_windows: Some(WINDOWS) };
            let codec = Tokenizer::of_checkpoint(checkpoint)?;
            Some(Sample::new(text, &codec, checkpoint.require_config()?, &options)?)
        }
        None => None,
    };
    let options = ScoreOptions { sample: sample.as_ref(), seed: 0, device: Some(&context.device) };
    let (scores, _) = structure::scores(checkpoint, metric, &options, &context.progress)?;
    let attention = match sample.filter(|_| wants_patterns) {
        Some(sample) => {
            let model = Model::load_on(checkpoint, &context.device, &context.progress)?;
            Some(Arc::new(attention::patterns(checkpoint, &model, &sample, &context.progress)?))
        }
        None => None,
    };
    Ok(Outcome::Scored { fingerprint: checkpoint.fingerprint.clone(), scores: Box::new(scores), attention })
}

/// Where a project's folder keeps its audit log.
pub(super) fn audit_log(folder: &Path) -> PathBuf {
    folder.join("audit.jsonl")
}

/// Runs a plan, writes into `output` and the log of the project's `folder`, and opens what it wrote.
/// `importance` is what the plan uses, where that is loaded.
#[expect(clippy::too_many_arguments, reason = "a pass and all that it starts from")]
pub(super) fn run_plan(
    checkpoint: &Checkpoint,
    plan: Plan,
    resolved: &ResolvedPlan,
    importance: Option<Arc<Importance>>,
    predecessors: &[Predecessor],
    name: String,
    [output, folder]: [&Path; 2],
    context: &Context,
) -> Result<Outcome> {
    let mut warnings = Vec::new();
    let importance = match (plan.calibration(), importance) {
        (Some(calibration), None) => {
            Some(calibration.load_on(checkpoint, &context.device, &context.progress, &mut warnings)?)
        }
        (_, loaded) => loaded,
    };
    let mut earlier = Vec::new();
    for one in predecessors {
        if earlier.len() < MOST_PREDECESSORS {
            earlier.extend(one.earlier(checkpoint, plan.target(), &context.progress)?);
        }
    }
    let importance_hash = importance.as_ref().map(|importance| importance.hash.clone());
    let options = PassOptions {
        importance,
        earlier,
        means: plan.load_means()?,
        device: context.device.clone(),
        ..PassOptions::default()
    };
    let started = Instant::now();
    let done = pass::run(checkpoint, resolved, output, &options, &context.progress);
    let inputs = || AuditEntry::inputs_of_pass(checkpoint, Some(&plan.to_toml()));
    let mut report = logged(done, "pass", inputs, started, folder, context)?;
    report.warnings.extend(warnings);
    hand_over(checkpoint, Written { name, plan, report, importance_hash, mask: None }, folder, context)
}

/// What a pass wrote.
pub(super) struct Written {
    pub(super) name: String,
    pub(super) plan: Plan,
    pub(super) report: PassReport,
    /// BLAKE3 of the importance matrix, where one was used.
    pub(super) importance_hash: Option<String>,
    /// What was masked, where something was.
    pub(super) mask: Option<MaskFacts>,
}

/// Opens what a pass over `checkpoint` wrote and enters it into the log of the project's `folder`.
pub(super) fn hand_over(
    checkpoint: &Checkpoint,
    written: Written,
    folder: &Path,
    context: &Context,
) -> Result<Outcome> {
    let Written { name, plan, report, importance_hash, mask } = written;
    let candidate = Arc::new(Checkpoint::open(&report.output)?);
    let content_hash = candidate.content_hash(&context.progress)?;
    let facts = PassFacts {
        checkpoint: (&checkpoint.name, &checkpoint.fingerprint),
        fingerprint: &checkpoint.fingerprint,
        plan: &plan.to_toml(),
        importance: importance_hash.as_deref(),
        mask: mask.as_ref().map(|facts| &facts.mask),
        candidate: (&candidate.path, &content_hash),
        target: plan.target().name(),
        seconds: report.elapsed_secs,
    };
    enter(folder, AuditEntry::of_pass(&facts), context);
    Ok(Outcome::Passed(Box::new(Passed {
        fingerprint: checkpoint.fingerprint.clone(),
        name,
        plan,
        report,
        content_hash,
        candidate,
        mask: mask.map(Arc::new),
    })))
}

/// What an evaluation needs of a project.
pub(super) struct EvaluationInput {
    pub(super) baseline: Arc<Checkpoint>,
    /// None evaluates the baseline alone.
    pub(super) candidate: Option<(RunId, Arc<Checkpoint>)>,
    pub(super) known: Option<Arc<Evaluation>>,
    pub(super) tasks: Option<Arc<TaskSet>>,
    pub(super) text: Option<Arc<TextSource>>,
    pub(super) models: ModelCache,
    /// The project's own folder: finished items are kept in it, and the audit log.
    pub(super) folder: PathBuf,
    /// Distances come from kept predictions of the baseline.
    pub(super) keeps_baseline: bool,
    /// Which files, and how they are used.
    pub(super) with: MeasuredWith,
}

/// Evaluates the baseline, or a candidate against it, and pairs them.
pub(super) fn evaluate(input: &EvaluationInput, context: &Context) -> Result<Outcome> {
    let progress = &context.progress;
    let choices = &input.with.choices;
    let options = choices.options(&input.folder, input.keeps_baseline, context.device.models_in_words());
    let (started, meter) = (Instant::now(), EnergyMeter::start(options.watts));
    let log = |evaluation: &Evaluation| {
        let entry = AuditEntry::of_evaluation(evaluation, started.elapsed().as_secs_f64(), meter.stop());
        enter(&input.folder, entry, context);
    };
    let prepared = input.tasks.as_ref().map(|tasks| choices.prepared(tasks, &input.baseline)).transpose()?;
    let (tasks, text) = (prepared.as_deref(), input.text.as_deref());
    let original = input.models.get(&input.baseline, None, context)?;
    let fingerprint = input.baseline.fingerprint.clone();
    let baseline_model = context.whose.watch(&original.model, Side::Original);
    let mut baseline_subject =
        evaluation::Subject::new(&input.baseline, &original.model, &original.tokenizer, original.content_hash.clone());
    baseline_subject.model = &baseline_model;
    let file = |name: &str, hash: &str| HashedFile { name: name.to_owned(), hash: hash.to_owned() };
    let inputs = |models: &[(&str, &str)]| {
        let models = models.iter().map(|(name, hash)| file(name, hash));
        let tasks = tasks.map(|tasks| file("tasks", &tasks.hash));
        models.chain(tasks).chain(text.map(|text| file("text", &text.hash))).collect::<Vec<_>>()
    };
    let baseline_file = (input.baseline.name.as_str(), original.content_hash.as_str());
    let Some((run, candidate)) = &input.candidate else {
        let evaluation = evaluation::evaluate(&baseline_subject, None, tasks, text, &options, progress);
        let inputs = || inputs(&[baseline_file]);
        let evaluation = logged(evaluation, "evaluate", inputs, started, &input.folder, context)?;
        log(&evaluation);
        return Ok(Outcome::Evaluated {
            fingerprint,
            subject: Subject::Baseline,
            evaluation: Box::new(evaluation),
            comparison: None,
            with: input.with.clone(),
        });
    };
    let ready = input.models.get(candidate, Some(&original), context)?;
    let model = context.whose.watch(&ready.model, Side::Candidate);
    let mut subject = evaluation::Subject::new(candidate, &ready.model, &ready.tokenizer, ready.content_hash.clone());
    subject.model = &model;
    let baseline = Baseline { subject: baseline_subject, known: input.known.as_deref() };
    let evaluation = evaluation::evaluate(&subject, Some(&baseline), tasks, text, &options, progress);
    let inputs = || inputs(&[(&candidate.name, &ready.content_hash), baseline_file]);
    let evaluation = logged(evaluation, "evaluate", inputs, started, &input.folder, context)?;
    log(&evaluation);
    let comparison = compare(&evaluation, progress)?;
    Ok(Outcome::Evaluated {
        fingerprint,
        subject: Subject::Run(*run),
        evaluation: Box::new(evaluation),
        comparison: comparison.map(Box::new),
        with: input.with.clone(),
    })
}

/// Enters into the project's audit log what ended without a result, with the reason.
pub(super) fn logged<T>(
    result: Result<T>,
    what: &str,
    inputs: impl FnOnce() -> Vec<HashedFile>,
    started: Instant,
    folder: &Path,
    context: &Context,
) -> Result<T> {
    result.inspect_err(|err| {
        let entry = AuditEntry::unfinished(what, inputs(), started.elapsed().as_secs_f64(), err);
        enter(folder, entry, context);
    })
}

/// Adds an entry to the project's audit log. What cannot be logged is told: the result itself is whole.
fn enter(folder: &Path, entry: AuditEntry, context: &Context) {
    let path = audit_log(folder);
    let made = std::fs::create_dir_all(folder).map_err(Error::io("create", folder));
    if let Err(err) = made.and_then(|()| audit::append(&path, entry)) {
        context.offer(Event::Warned { text: format!("The audit log has no entry of this: {err}") });
    }
}

/// Pairs an evaluation with the baseline inside it.
pub(super) fn compare(evaluation: &Evaluation, progress: &Progress) -> Result<Option<comparison::Comparison>> {
    match &evaluation.baseline {
        Some(baseline) => comparison::compare(baseline, evaluation, &ComparisonOptions::default(), progress).map(Some),
        None => Ok(None),
    }
}

/// Continues a prompt with one model, token by token.
pub(super) fn generate(
    checkpoint: &Checkpoint,
    source: Option<&Checkpoint>,
    subject: Subject,
    models: &ModelCache,
    prompt: &str,
    options: &GenerateOptions,
    context: &Context,
) -> Result<Outcome> {
    let source = source.map(|source| models.get(source, None, context)).transpose()?;
    let ready = models.get(checkpoint, source.as_deref(), context)?;
    let generation =
        scoring::generate(&ready.model, &ready.tokenizer, prompt, options, &context.progress, &mut |token| {
            context.offer(Event::Token { subject, token: token.clone() });
        })?;
    Ok(Outcome::Generated { subject, generation })
}

/// Copies a candidate's files to a place of the user's, atomically.
pub(super) fn export(candidate: &Checkpoint, output: &Path, context: &Context) -> Result<Outcome> {
    let bytes = pass::copy_candidate(candidate, output, &context.progress)?;
    Ok(Outcome::Exported { output: output.to_owned(), bytes })
}

/// A path inside the project's folder for the next candidate, not taken by another.
pub(super) fn candidate_path(folder: &Path, name: &str, extension: Option<&str>) -> Result<PathBuf> {
    let safe: String = name.chars().map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect();
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    (1..10_000)
        .map(|number| {
            let stem = if number == 1 { safe.clone() } else { format!("{safe}-{number}") };
            folder.join(extension.map_or_else(|| stem.clone(), |extension| format!("{stem}.{extension}")))
        })
        .find(|path| !path.exists())
        .ok_or_else(|| {
            Fault::new(Stage::Project, "the project's folder is full of candidates of this name")
                .fix("give the run another name")
                .file(folder)
                .into()
        })
}
