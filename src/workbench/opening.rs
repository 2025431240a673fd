//! Opening a checkpoint with what its project holds, and saving the project.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Workbench;
use super::apply::{file_name, resolve};
use super::events::{Opened, Outcome};
use super::history::History;
use super::jobs::JobKind;
use super::project::Project;
use super::state::{CandidateState, Document, Level, Playground, Run, RunId, Selection};
use super::tasks::{self, Source};
use super::{importance, planning};
use crate::engine::error::Result;
use crate::engine::plan::{Plan, Recipe, Target};
use crate::engine::scoring::{TaskSet, TextSource};
use crate::engine::structure::slices::Slice;

/// A changed project is saved at most this often.
const AUTOSAVE_INTERVAL: std::time::Duration = std::time::Duration::from_secs(5);

/// What the demo is asked first: something that a two-bit model gets wrong.
const DEMO_PROMPT: &str = "17 + 25 =";

impl Workbench {
    /// Starts to open a checkpoint or a project.
    pub(super) fn open(&mut self, source: Source) {
        let title = match &source {
            Source::Demo => "open the demo model".to_owned(),
            Source::Path(path) => format!("open {}", file_name(path)),
        };
        self.state.opening = Some(match &source {
            Source::Demo => PathBuf::from("demo"),
            Source::Path(path) => path.clone(),
        });
        let (cache_dir, data_dir) = (self.options.cache_dir.clone(), self.options.data_dir.clone());
        self.jobs.spawn(JobKind::Open, title, move |_| tasks::open(source, &cache_dir, &data_dir));
    }

    /// Starts to read tasks, whose files may be large.
    pub(super) fn load_tasks(&mut self, path: PathBuf) {
        self.read_input(&path.clone(), move |fingerprint| {
            let tasks = Arc::new(TaskSet::read(&path)?);
            Ok(Outcome::TasksRead { fingerprint, tasks })
        });
    }

    /// Starts to read the text that models are evaluated on.
    pub(super) fn load_text(&mut self, path: PathBuf) {
        self.read_input(&path.clone(), move |fingerprint| {
            let text = Arc::new(TextSource::read(&path)?);
            Ok(Outcome::TextRead { fingerprint, text })
        });
    }

    fn read_input(&mut self, path: &Path, read: impl FnOnce(String) -> Result<Outcome> + Send + 'static) {
        let Some(document) = &self.state.document else { return };
        let fingerprint = document.checkpoint.fingerprint.clone();
        self.jobs.spawn(JobKind::ReadInput, format!("read {}", file_name(path)), move |context| {
            let outcome = read(fingerprint)?;
            context.progress.check()?;
            Ok(outcome)
        });
    }

    /// Evaluates on these tasks from now on.
    pub(super) fn take_tasks(&mut self, fingerprint: &str, tasks: Arc<TaskSet>) {
        let Some(document) = self.document_of(fingerprint) else { return };
        document.tasks = Some(tasks);
        document.slice_scores.retain(|slice, _| !matches!(slice, Slice::Tasks(_)));
        document.is_dirty = true;
        self.mark_stale();
    }

    /// Evaluates on this text from now on.
    pub(super) fn take_text(&mut self, fingerprint: &str, text: Arc<TextSource>) {
        let Some(document) = self.document_of(fingerprint) else { return };
        document.text = Some(text);
        document.is_dirty = true;
        self.mark_stale();
        self.look_at_calibration(false);
    }

    /// Gives the project a file of its own, called `path` with the ending of projects.
    pub(super) fn save_project_as(&mut self, path: PathBuf) -> Result<()> {
        let path = if path.extension().is_some_and(|extension| extension == "lapidary") {
            path
        } else {
            let mut name = path.into_os_string();
            name.push(".lapidary");
            PathBuf::from(name)
        };
        if let Some(document) = &mut self.state.document {
            Project::of_document(document).write(&path)?;
            document.project_path = path.clone();
            document.has_own_file = true;
            document.is_dirty = false;
            self.state.settings.remember(&path);
            self.state.settings.save(&self.options.data_dir);
            self.state.notify(Level::Info, format!("Project saved in {}", path.display()));
        }
        Ok(())
    }

    /// Writes the project where it is.
    pub(super) fn save_project(&mut self) -> Result<()> {
        if let Some(document) = &mut self.state.document {
            Project::of_document(document).write(&document.project_path)?;
            document.is_dirty = false;
        }
        Ok(())
    }

    /// Saves a changed project; `now` does not wait for the interval. A failure is told once.
    pub(super) fn autosave(&mut self, now: bool) {
        let due = now || self.last_save.elapsed() >= AUTOSAVE_INTERVAL;
        let changed = self.state.document.as_ref().is_some_and(|document| document.is_dirty);
        if due && changed {
            self.last_save = std::time::Instant::now();
            if let Err(err) = self.save_project() {
                self.state.notify(Level::Error, format!("The project could not be saved: {err}"));
            }
        }
    }

    /// Makes an opened checkpoint the document, with what its project holds.
    pub(super) fn take_in(&mut self, opened: Opened) {
        let checkpoint = opened.checkpoint;
        self.jobs.cancel_all();
        let fingerprint = checkpoint.fingerprint.clone();
        let fresh = || Plan::of_recipe(Target::Gguf, Some(&fingerprint), Recipe::Q4KM);
        let mut lost_plan = None;
        let plan = match &opened.project {
            Some(project) => Plan::parse(&project.plan, Some(&opened.project_path)).unwrap_or_else(|err| {
                lost_plan = Some(err);
                fresh()
            }),
            None => fresh(),
        };
        let (past, named) = opened.project.as_ref().map(planning::kept_plans).unwrap_or_default();
        let mut document = Document {
            named,
            profiles: vec![None; checkpoint.tensors.len()],
            is_demo: opened.is_demo,
            project_path: opened.project_path,
            has_own_file: opened.has_own_file,
            profile_faults: Default::default(),
            resolved: importance::resolved(&plan, &checkpoint, None),
            importance: opened.importance,
            calibration_text: opened.calibration_text,
            history: History::with_past(past, plan),
            sensitivity: Default::default(),
            units: Default::default(),
            activations: None,
            calibration_info: None,
            unit_scores: Default::default(),
            slice_scores: Default::default(),
            prune_steps: Vec::new(),
            attention: None,
            tasks: opened.tasks,
            text: opened.text,
            gates: opened.gates,
            choices: Default::default(),
            unfinished: Default::default(),
            baseline: None,
            runs: Vec::new(),
            focused_run: None,
            playground: Playground::default(),
            next_run: 1,
            is_dirty: false,
            overhead_bytes: None,
            checkpoint,
        };
        if document.importance.is_some() {
            resolve(&mut document);
        }
        if opened.is_demo {
            document.playground.prompt = DEMO_PROMPT.to_owned();
        }
        if let Some(project) = opened.project {
            document.sensitivity = project.sensitivity;
            document.units = project.units;
            document.unit_scores = project.unit_scores;
            // Of another checkpoint, or by a version that had other metrics.
            let fingerprint = &document.checkpoint.fingerprint;
            document.unit_scores.retain(|_, scores| scores.checkpoint == *fingerprint);
            document.slice_scores = project.slice_scores.into_iter().collect();
            document.slice_scores.retain(|_, scores| scores.checkpoint == *fingerprint);
            document.activations = project.activations;
            document.baseline = project.baseline;
            document.choices = project.evaluation;
            document.focused_run = project.focused_run;
            if !project.prompt.is_empty() {
                document.playground.prompt = project.prompt;
            }
            for saved in project.runs {
                match Plan::parse(&saved.plan, None) {
                    Ok(plan) => {
                        document.next_run = document.next_run.max(saved.id.0 + 1);
                        document.runs.push(Run {
                            id: saved.id,
                            name: saved.name,
                            plan,
                            mask: saved.mask,
                            created_unix_secs: saved.created_unix_secs,
                            path: saved.path,
                            content_hash: saved.content_hash,
                            report: saved.report,
                            candidate: CandidateState::Opening,
                            comparison: None,
                            evaluation: saved.evaluation,
                            measured_with: saved.measured_with,
                            is_stale: false,
                            profiles: Default::default(),
                        });
                    }
                    Err(err) => self.state.notify(Level::Warning, format!("Run {} is left out: {err}", saved.name)),
                }
            }
        }
        self.state.opening = None;
        self.state.selection = Selection::default();
        if let Some(err) = lost_plan {
            self.state
                .notify(Level::Warning, format!("The saved plan cannot be read, a fresh one takes its place: {err}"));
        }
        for warning in opened.warnings {
            self.state.notify(Level::Warning, warning);
        }
        if !document.is_demo {
            let remembered = if document.has_own_file { &document.project_path } else { &document.checkpoint.path };
            self.state.settings.remember(&remembered.clone());
            self.state.settings.save(&self.options.data_dir);
        }
        let runs: Vec<(RunId, PathBuf)> = document.runs.iter().map(|run| (run.id, run.path.clone())).collect();
        let measure = !document.sensitivity.contains_key("weight");
        self.state.document = Some(document);
        self.mark_stale();
        self.with_document(|document| document.is_dirty = false);
        for (run, path) in runs {
            self.jobs
                .spawn(JobKind::Open, format!("open {}", file_name(&path)), move |_| Ok(tasks::reopen(run, &path)));
        }
        self.recompare();
        self.look_for_unfinished();
        self.look_at_calibration(false);
        self.profile_baseline();
        if measure {
            self.measure_weight_error();
        }
    }

    /// Pairs evaluations that came from a project file with their baselines again.
    fn recompare(&mut self) {
        let Some(document) = &self.state.document else { return };
        let known: Vec<_> = document.runs.iter().filter_map(|run| Some((run.id, run.evaluation.clone()?))).collect();
        for (run, evaluation) in known {
            self.jobs.spawn(JobKind::Compare, "compare with the original", move |context| {
                let comparison = tasks::compare(&evaluation, &context.progress)?.map(Box::new);
                Ok(Outcome::Compared { run, comparison })
            });
        }
    }
}
