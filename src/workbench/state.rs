//! What there is to show: one open document, the selection, and messages.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use super::choices::{EvaluationChoices, MeasuredWith};
use super::command::Subject;
use super::history::History;
use super::importance::KnownImportance;
use super::measure::CalibrationInfo;
#[cfg(doc)]
use super::measure::KldRequest;
use super::settings::Settings;
use super::unfinished::Unfinished;
use super::units::PrunedStep;
use crate::engine::calibration::Activations;
use crate::engine::checkpoint::Checkpoint;
use crate::engine::comparison::{Comparison, GateSet};
use crate::engine::device::{Device, Listed};
use crate::engine::error::{Error, Fault};
use crate::engine::evaluation::Evaluation;
use crate::engine::pass::{MaskFacts, PassReport};
use crate::engine::plan::{Plan, Prune, ResolvedPlan, Target, budget};
use crate::engine::profile::TensorProfile;
use crate::engine::scoring::kernel_rates::KernelRates;
use crate::engine::scoring::{GeneratedToken, SpeculativeGeneration, TaskSet, TextSource};
use crate::engine::sensitivity::{self, SensitivityRow, SensitivityTable, UnitTable};
use crate::engine::structure::UnitScores;
use crate::engine::structure::attention::AttentionPatterns;
use crate::engine::structure::slices::Slice;

/// What decides the bytes of a file beside its tensors: the target, whether metadata tell of an importance
/// matrix, and what is taken away.
pub(super) type OverheadKey = (Target, bool, Prune);

/// What the centre of the window shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the views' titles")]
pub enum View {
    #[default]
    Overview,
    Weights,
    Sensitivity,
    Plan,
    Heads,
    Runs,
    Compare,
    Playground,
    Report,
}

impl View {
    /// Every view, in tab order.
    pub const ALL: [Self; 9] = [
        Self::Overview,
        Self::Weights,
        Self::Sensitivity,
        Self::Plan,
        Self::Heads,
        Self::Runs,
        Self::Compare,
        Self::Playground,
        Self::Report,
    ];

    /// The tab's title.
    pub fn title(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Weights => "Weights",
            Self::Sensitivity => "Sensitivity",
            Self::Plan => "Plan",
            Self::Heads => "Heads",
            Self::Runs => "Runs",
            Self::Compare => "Compare",
            Self::Playground => "Playground",
            Self::Report => "Report",
        }
    }
}

/// How bad a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Something went as asked.
    Info,
    /// Something is odd, but work goes on.
    Warning,
    /// Something asked for did not happen.
    Error,
}

/// A message until it is dismissed.
#[derive(Clone, Debug)]
pub struct Notice {
    /// To dismiss it by.
    pub id: u64,
    /// How bad.
    pub level: Level,
    /// In words, with the remedy.
    pub text: String,
}

/// Which tensors are selected; the focused one is shown in the inspector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Indices in the checkpoint.
    pub tensors: BTreeSet<usize>,
    /// The one clicked last.
    pub focus: Option<usize>,
}

/// Tells runs of a project apart for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct RunId(pub u64);

/// Whether a candidate's file is there.
#[derive(Clone, Debug)]
pub enum CandidateState {
    /// Being opened again after the project was.
    Opening,
    /// Open and ready to measure.
    Open(Arc<Checkpoint>),
    /// The file is gone or cannot be opened.
    Lost(Error),
}

/// A pass that was run: its plan, its candidate and what was measured of it.
#[derive(Clone, Debug)]
pub struct Run {
    /// Tells it apart.
    pub id: RunId,
    /// As the user calls it.
    pub name: String,
    /// The plan as it was run.
    pub plan: Plan,
    /// What was masked before, for study; then the candidate is not what the plan alone makes.
    pub mask: Option<Arc<MaskFacts>>,
    /// When, in seconds since 1970.
    pub created_unix_secs: u64,
    /// Where the candidate lies.
    pub path: PathBuf,
    /// BLAKE3 over the candidate's files: its id.
    pub content_hash: String,
    /// Old and new bytes per tensor and in all.
    pub report: Arc<PassReport>,
    /// The candidate's file.
    pub candidate: CandidateState,
    /// What was measured of it, with the baseline it was measured against.
    pub evaluation: Option<Arc<Evaluation>>,
    /// True if the evaluation was made with other tasks or another text than are chosen now.
    pub is_stale: bool,
    /// Paired with the baseline.
    pub comparison: Option<Arc<Comparison>>,
    /// What the evaluation was made with; none in projects of versions that did not keep it.
    pub measured_with: Option<MeasuredWith>,
    /// Profiles of its tensors by Hugging Face's name, to overlay.
    pub profiles: BTreeMap<String, Arc<TensorProfile>>,
}

impl Run {
    /// True if nothing was measured of it on the tasks and the text that are chosen now.
    pub fn lacks_evaluation(&self) -> bool {
        self.evaluation.is_none() || self.is_stale
    }

    /// The candidate, where it is open.
    pub fn checkpoint(&self) -> Option<&Arc<Checkpoint>> {
        match &self.candidate {
            CandidateState::Open(checkpoint) => Some(checkpoint),
            _ => None,
        }
    }
}

/// One side of the playground.
#[derive(Clone, Debug, Default)]
pub struct PlaygroundSide {
    /// Tokens as they come.
    pub tokens: Vec<GeneratedToken>,
    /// True once it has stopped by itself.
    pub is_done: bool,
    /// Decode speed once it is done.
    pub tokens_per_second: Option<f64>,
}

/// What the original wrote with a candidate as its draft, beside what it took alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Speculated {
    /// Whose drafts they were.
    pub run: RunId,
    /// Tokens drafted at once.
    pub draft_tokens: usize,
    /// The text and how it came about.
    pub generation: SpeculativeGeneration,
    /// Seconds a token of the original alone, on the same prompt just before.
    pub alone_secs_per_token: f64,
    /// Whether greedy text is what the original wrote alone; none where it is sampled.
    pub is_same_text: Option<bool>,
}

impl Speculated {
    /// How much sooner a token is there than without the draft.
    pub fn speed_up(&self) -> f64 {
        let own = self.generation.seconds / self.generation.ids.len().max(1) as f64;
        self.alone_secs_per_token / own.max(1e-12)
    }
}

/// One prompt, original and candidate.
#[derive(Clone, Debug)]
pub struct Playground {
    /// What both continue.
    pub prompt: String,
    /// Tokens to write.
    pub max_tokens: usize,
    /// 0 is greedy.
    pub temperature: f32,
    /// The prompt that the sides below belong to.
    pub written_prompt: String,
    /// The original.
    pub baseline: PlaygroundSide,
    /// The focused run's candidate.
    pub candidate: PlaygroundSide,
    /// Which run that was.
    pub run: Option<RunId>,
    /// Tokens that a draft proposes at once.
    pub draft_tokens: usize,
    /// What was written with drafts so far, while it is being written.
    pub drafting: Option<String>,
    /// The last text that was written with drafts.
    pub speculated: Option<Speculated>,
}

impl Default for Playground {
    fn default() -> Self {
        Self {
            prompt: String::new(),
            max_tokens: 64,
            temperature: 0.0,
            written_prompt: String::new(),
            baseline: PlaygroundSide::default(),
            candidate: PlaygroundSide::default(),
            run: None,
            draft_tokens: 4,
            drafting: None,
            speculated: None,
        }
    }
}

impl Playground {
    /// Index of the first token in which the two sides differ, once both have one there.
    pub fn first_difference(&self) -> Option<usize> {
        let both = self.baseline.tokens.iter().zip(&self.candidate.tokens);
        both.enumerate().find(|(_, (a, b))| a.id != b.id).map(|(index, _)| index)
    }
}

/// A plan that was kept under a name.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedPlan {
    /// What it is called; no two are called alike.
    pub name: String,
    /// The plan as it was.
    pub plan: Plan,
}

/// The open checkpoint and everything made of it.
#[derive(Debug)]
pub struct Document {
    /// The original. Never written to.
    pub checkpoint: Arc<Checkpoint>,
    /// True for the model that comes with the program.
    pub is_demo: bool,
    /// Where the project is kept.
    pub project_path: PathBuf,
    /// True if the user gave the project that place.
    pub has_own_file: bool,
    /// One per tensor, as they come in.
    pub profiles: Vec<Option<Arc<TensorProfile>>>,
    /// Tensors that cannot be profiled, and why.
    pub profile_faults: BTreeMap<usize, Fault>,
    /// The plan with its past.
    pub history: History<Plan>,
    /// Plans that were kept under a name, in the order in which they were.
    pub named: Vec<NamedPlan>,
    /// The plan applied to the checkpoint, or why it cannot be.
    pub resolved: Result<Arc<ResolvedPlan>, Error>,
    /// What was measured per tensor and format, by metric (and by [`KldRequest::key`]); partial while
    /// it is being measured.
    pub sensitivity: BTreeMap<String, Arc<SensitivityTable>>,
    /// What was measured per layer, head or KV group, by metric; partial while it is being measured.
    pub units: BTreeMap<String, Arc<UnitTable>>,
    /// What every linear is given, once output error was predicted.
    pub activations: Option<Arc<Activations>>,
    /// How the calibration text is mixed, once it was looked at.
    pub calibration_info: Option<CalibrationInfo>,
    /// What every unit is worth, by metric, once it is scored.
    pub unit_scores: BTreeMap<String, Arc<UnitScores>>,
    /// What every unit is worth to a slice, by Fisher information, once it is scored there.
    pub slice_scores: BTreeMap<Slice, Arc<UnitScores>>,
    /// The steps that the last pruning in steps kept.
    pub prune_steps: Vec<PrunedStep>,
    /// What heads look at, once units were scored on a text.
    pub attention: Option<Arc<AttentionPatterns>>,
    /// How much each column of each matrix matters, once it is computed or loaded.
    pub importance: Option<KnownImportance>,
    /// The text that importance is computed on and sensitivity measured on, unless told otherwise.
    pub calibration_text: Option<PathBuf>,
    /// Items to score.
    pub tasks: Option<Arc<TaskSet>>,
    /// Text to score.
    pub text: Option<Arc<TextSource>>,
    /// Gates of a file that candidates are judged by, beside those that their own plans state.
    pub gates: Option<Arc<GateSet>>,
    /// How candidates are evaluated.
    pub choices: EvaluationChoices,
    /// What evaluations that were cut short have finished, by run.
    pub unfinished: BTreeMap<RunId, Unfinished>,
    /// The original, measured alone or as a candidate's counterpart.
    pub baseline: Option<Arc<Evaluation>>,
    /// Passes, oldest first.
    pub runs: Vec<Run>,
    /// The run that is compared and overlaid.
    pub focused_run: Option<RunId>,
    /// Prompt and answers.
    pub playground: Playground,
    pub(super) next_run: u64,
    pub(super) is_dirty: bool,
    /// Bytes of a file beside its tensors, once they were needed, with what they were worked out for.
    pub(super) overhead_bytes: Option<(OverheadKey, u64)>,
}

impl Document {
    /// The plan now.
    pub fn plan(&self) -> &Plan {
        self.history.present()
    }

    /// The run with this id.
    pub fn run(&self, id: RunId) -> Option<&Run> {
        self.runs.iter().find(|run| run.id == id)
    }

    pub(super) fn run_mut(&mut self, id: RunId) -> Option<&mut Run> {
        self.runs.iter_mut().find(|run| run.id == id)
    }

    /// `name`, or it with a number, so that no two runs are called alike.
    pub(super) fn free_name(&self, name: &str) -> String {
        let is_taken = |name: &str| self.runs.iter().any(|run| run.name == name);
        if !is_taken(name) {
            return name.to_owned();
        }
        let mut numbered = (2..).map(|number| format!("{name} ({number})"));
        numbered.find(|name| !is_taken(name)).unwrap_or_else(|| name.to_owned())
    }

    /// The run that is compared and overlaid, if any.
    pub fn focused(&self) -> Option<&Run> {
        self.focused_run.and_then(|id| self.run(id))
    }

    /// The run that views of one candidate are about: the one in focus, else the last.
    pub fn picked(&self) -> Option<&Run> {
        self.focused().or_else(|| self.runs.last())
    }

    /// The checkpoint of a subject, where it is open.
    pub fn subject(&self, subject: Subject) -> Option<&Arc<Checkpoint>> {
        match subject {
            Subject::Baseline => Some(&self.checkpoint),
            Subject::Run(id) => self.run(id)?.checkpoint(),
        }
    }

    /// True if there is something to evaluate on.
    pub fn has_data(&self) -> bool {
        self.tasks.is_some() || self.text.is_some()
    }

    /// Why the model cannot be run here, if it cannot.
    pub fn cannot_run(&self) -> Option<&'static str> {
        self.checkpoint.config.is_none().then_some("This checkpoint's network cannot be run by this version")
    }

    /// Sum of the measured or predicted damage of the plan's choices under `metric`; `None` where a choice is not in the table.
    pub fn predicted_damage(&self, metric: &str) -> Option<f64> {
        let (table, resolved) = (self.sensitivity.get(metric)?, self.resolved.as_ref().ok()?);
        budget::predicted_damage(table, &self.checkpoint, resolved)
    }

    /// The sensitivity that a planner goes by: of the tables with a value for at least two formats of
    /// every tensor, the one whose metric says most.
    pub fn budget_table(&self) -> Option<&Arc<SensitivityTable>> {
        let tensors: Vec<&str> = (self.checkpoint.tensors.iter())
            .filter(|tensor| sensitivity::is_default_subject(tensor))
            .map(|tensor| tensor.name.as_str())
            .collect();
        let is_whole = |table: &&Arc<SensitivityTable>| {
            let has_choice = |row: &SensitivityRow| row.cells.iter().flatten().count() > 1;
            let measured = table.rows.iter().filter(|row| has_choice(row)).map(|row| row.name.as_str());
            let measured: BTreeSet<&str> = measured.collect();
            !tensors.is_empty() && tensors.iter().all(|name| measured.contains(name))
        };
        let best_first = sensitivity::metrics().iter().rev();
        best_first.filter_map(|metric| self.sensitivity.get(metric.id)).find(is_whole)
    }
}

/// Everything that a window shows.
#[derive(Debug)]
pub struct State {
    /// The open checkpoint, if any.
    pub document: Option<Document>,
    /// The view in the centre.
    pub view: View,
    /// Selected tensors.
    pub selection: Selection,
    /// Messages, oldest first.
    pub notices: Vec<Notice>,
    /// Theme and recent files.
    pub settings: Settings,
    /// How fast this machine multiplies, once that was measured.
    pub rates: Option<Arc<KernelRates>>,
    /// Where work runs.
    pub device: Device,
    /// Every device, once somebody wanted to see them.
    pub devices: Option<Arc<Vec<Listed>>>,
    /// Larger text, no editing.
    pub presenter: bool,
    /// Set once the user wants to leave.
    pub quit: bool,
    /// The path that is being opened.
    pub opening: Option<PathBuf>,
    next_notice: u64,
}

impl State {
    pub(super) fn new(settings: Settings, rates: Option<Arc<KernelRates>>) -> Self {
        Self {
            document: None,
            view: View::default(),
            selection: Selection::default(),
            notices: Vec::new(),
            device: Device::wished(&settings.device),
            devices: None,
            settings,
            rates,
            presenter: false,
            quit: false,
            opening: None,
            next_notice: 0,
        }
    }

    /// Why no device could search codes, as a short sentence; none too while nobody has looked for devices.
    pub fn no_search_device(&self) -> Option<&'static str> {
        if self.settings.device == "cpu" {
            return Some("The CPU is chosen: choose a device first");
        }
        let devices = self.devices.as_ref()?;
        let is_there = devices.iter().any(Listed::will_run_passes);
        (!is_there).then_some("No device encodes here: the CPU searches")
    }

    /// Shows a message; the same text twice in a row is shown once.
    pub(super) fn notify(&mut self, level: Level, text: impl Into<String>) {
        let text = text.into();
        match level {
            Level::Info => tracing::info!("{text}"),
            Level::Warning => tracing::warn!("{text}"),
            Level::Error => tracing::error!("{text}"),
        }
        if self.notices.last().is_some_and(|last| last.text == text && last.level == level) {
            return;
        }
        self.next_notice += 1;
        self.notices.push(Notice { id: self.next_notice, level, text });
        if self.notices.len() > 20 {
            self.notices.remove(0);
        }
    }
}
