//! What jobs tell the workbench: partial results while they work, and one end.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::choices::MeasuredWith;
use super::command::Subject;
use super::importance::KnownImportance;
use super::jobs::{JobId, JobKind};
use super::measure::CalibrationInfo;
use super::project::Project;
use super::state::{RunId, Speculated};
use super::unfinished::Unfinished;
use super::units::PrunedStep;
use crate::engine::calibration::Activations;
use crate::engine::checkpoint::Checkpoint;
use crate::engine::comparison::{Comparison, GateSet};
use crate::engine::device::Listed;
use crate::engine::error::{Error, Fault, Result};
use crate::engine::evaluation::Evaluation;
use crate::engine::pass::{MaskFacts, PassReport};
use crate::engine::plan::Plan;
use crate::engine::profile::TensorProfile;
use crate::engine::scoring::kernel_rates::KernelRates;
use crate::engine::scoring::{GeneratedToken, Generation, TaskSet, TextSource};
use crate::engine::sensitivity::{SensitivityRow, SensitivityTable, SensitivityValue, UnitTable, UnitValue};
use crate::engine::structure::UnitScores;
use crate::engine::structure::attention::AttentionPatterns;
use crate::engine::structure::slices::Slice;

/// Told by a job.
#[derive(Debug)]
pub(super) enum Event {
    /// One tensor of the original is profiled.
    Profiled { fingerprint: String, tensor: usize, profile: Arc<TensorProfile> },
    /// One row of a sensitivity table is measured.
    Row { fingerprint: String, key: &'static str, empty: Arc<SensitivityTable>, row: SensitivityRow },
    /// One cell of a sensitivity table is measured.
    Cell {
        fingerprint: String,
        key: &'static str,
        empty: Arc<SensitivityTable>,
        at: (usize, usize),
        value: SensitivityValue,
    },
    /// One layer or head is measured.
    UnitMeasured { fingerprint: String, empty: Arc<UnitTable>, value: UnitValue },
    /// A step of pruning is measured and kept.
    PruneStep { fingerprint: String, kept: Box<PrunedStep> },
    /// The playground has one more token.
    Token { subject: Subject, token: GeneratedToken },
    /// Something beside the result did not work.
    Warned { text: String },
    /// The original has written so far, with the candidate as its draft.
    Drafted { text: String },
    /// The job is over.
    Ended { job: JobId, kind: JobKind, result: Result<Outcome> },
}

/// What a job leaves.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Nothing to take in.
    #[cfg_attr(not(test), expect(dead_code, reason = "jobs that only act leave nothing; tests use it today"))]
    Nothing,
    /// A checkpoint is open.
    Opened(Box<Opened>),
    /// Tasks were read.
    TasksRead { fingerprint: String, tasks: Arc<TaskSet> },
    /// The evaluation text was read.
    TextRead { fingerprint: String, text: Arc<TextSource> },
    /// A run's candidate was opened again.
    Reopened { run: RunId, candidate: std::result::Result<Arc<Checkpoint>, Error> },
    /// The original is profiled.
    Profiled { fingerprint: String, profiles: Vec<Option<Arc<TensorProfile>>>, faults: Vec<(usize, Fault)> },
    /// A candidate is profiled.
    RunProfiled { run: RunId, profiles: BTreeMap<String, Arc<TensorProfile>> },
    /// A metric is measured.
    Sensitivity { fingerprint: String, key: &'static str, table: SensitivityTable },
    /// Output error is predicted, from what linears are given.
    OutputError { fingerprint: String, table: SensitivityTable, activations: Arc<Activations> },
    /// Layers or heads are measured.
    Units { fingerprint: String, table: UnitTable },
    /// The calibration text was looked at.
    LookedAtCalibration { fingerprint: String, info: CalibrationInfo, tells: bool },
    /// Importance was computed, or read from a file.
    Calibrated { fingerprint: String, known: Box<KnownImportance>, is_computed: bool },
    /// Units were scored.
    Scored { fingerprint: String, scores: Box<UnitScores>, attention: Option<Arc<AttentionPatterns>> },
    /// Units were scored on slices.
    ScoredSlices { fingerprint: String, scores: Vec<(Slice, Arc<UnitScores>)> },
    /// Units were taken away in steps; the sentence tells of one that was not taken.
    PrunedInSteps { fingerprint: String, kept: Vec<PrunedStep>, refused: Option<String> },
    /// A candidate was written.
    Passed(Box<Passed>),
    /// A model was evaluated.
    Evaluated {
        fingerprint: String,
        subject: Subject,
        evaluation: Box<Evaluation>,
        comparison: Option<Box<Comparison>>,
        with: MeasuredWith,
    },
    /// What earlier evaluations left in the journals, by run.
    Unfinished { fingerprint: String, found: BTreeMap<RunId, Unfinished> },
    /// A saved evaluation was paired with its baseline again.
    Compared { run: RunId, comparison: Option<Box<Comparison>> },
    /// The playground has stopped.
    Generated { subject: Subject, generation: Generation },
    /// The original has written with a draft, after it wrote alone.
    Speculated(Box<Speculated>),
    /// The kernels of this machine are timed.
    Rates(Box<KernelRates>),
    /// The devices of this machine are listed.
    Devices(Vec<Listed>),
    /// A candidate was copied.
    Exported { output: PathBuf, bytes: u64 },
}

/// A checkpoint with its project, if it had one.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) checkpoint: Arc<Checkpoint>,
    pub(super) is_demo: bool,
    pub(super) project_path: PathBuf,
    pub(super) has_own_file: bool,
    pub(super) project: Option<Project>,
    pub(super) warnings: Vec<String>,
    pub(super) tasks: Option<Arc<TaskSet>>,
    pub(super) text: Option<Arc<TextSource>>,
    pub(super) importance: Option<KnownImportance>,
    pub(super) calibration_text: Option<PathBuf>,
    pub(super) gates: Option<Arc<GateSet>>,
}

/// A candidate as the pass left it.
#[derive(Debug)]
pub(super) struct Passed {
    pub(super) fingerprint: String,
    pub(super) name: String,
    pub(super) plan: Plan,
    pub(super) report: PassReport,
    pub(super) content_hash: String,
    pub(super) candidate: Arc<Checkpoint>,
    /// What was masked first, where something was.
    pub(super) mask: Option<Arc<MaskFacts>>,
}
