//! The open project's state: commands in, events in, one place that changes it.
//!
//! A window reads [`Workbench::state`], sends [`Command`]s to [`Workbench::apply`] and calls
//! [`Workbench::poll`] once a frame, which takes in what jobs have finished. Nothing here knows of
//! egui: jobs wake the window through a [`Waker`]. State never holds a lock that a worker holds.

mod action;
mod apply;
mod choices;
mod command;
mod demo;
mod drafting;
mod events;
pub(crate) mod files;
mod history;
mod importance;
mod jobs;
mod judging;
mod masking;
mod measure;
mod measure_tasks;
mod opening;
mod planning;
mod poll;
mod printing;
mod project;
mod prune_steps;
mod rates;
mod settings;
mod standing;
mod state;
mod tasks;
mod unfinished;
mod units;
mod whose;

use std::path::PathBuf;
use std::task::Waker;

pub use action::{Action, Group, Shortcut};
pub use choices::{EvaluationChoices, MeasuredWith};
pub use command::{Command, SelectMode, Subject};
pub use demo::{DEMO_FILES, unpack_demo, write_demo};
pub use history::History;
pub use importance::KnownImportance;
pub use jobs::{Executor, JobId, JobKind, JobView};
pub use masking::MaskRequest;
pub use measure::{CalibrationInfo, KldRequest, MeasureOn, action_of_units};
pub use printing::{print_to_pdf, printer};
pub use project::{Project, output_folder};
pub use rates::{keep_rates, known_rates};
pub use settings::{Settings, ThemeChoice};
pub use standing::PlanStanding;
pub use state::{
    CandidateState, Document, Level, NamedPlan, Notice, Playground, PlaygroundSide, Run, RunId, Selection, Speculated,
    State, View,
};
pub use unfinished::Unfinished;
pub use units::{PruneSteps, PrunedStep, ScoredBy, UnitEdit};
pub use whose::Side;

use jobs::Jobs;

/// Where a workbench keeps its files and how it runs jobs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Told when there is something new to show.
    pub waker: Option<Waker>,
    /// Threads, or inside the call for tests.
    pub executor: Executor,
    /// Unpacked demo and other things that can be made again.
    pub cache_dir: PathBuf,
    /// Projects that were never given a place of their own, and settings.
    pub data_dir: PathBuf,
}

impl Options {
    /// The user's own folders and real threads.
    pub fn for_user(waker: Option<Waker>) -> Self {
        let dirs = directories::ProjectDirs::from("", "", "lapidary");
        let fallback = || std::env::temp_dir().join("lapidary");
        Self {
            waker,
            executor: Executor::Threads,
            cache_dir: dirs.as_ref().map_or_else(fallback, |dirs| dirs.cache_dir().to_owned()),
            data_dir: dirs.as_ref().map_or_else(fallback, |dirs| dirs.data_dir().to_owned()),
        }
    }

    /// Everything under one folder, jobs run inside the call that starts them.
    pub fn inline_in(folder: impl Into<PathBuf>) -> Self {
        let folder = folder.into();
        Self { waker: None, executor: Executor::Inline, cache_dir: folder.join("cache"), data_dir: folder.join("data") }
    }
}

/// The open project and what is being done to it.
#[derive(Debug)]
pub struct Workbench {
    state: State,
    jobs: Jobs,
    models: tasks::ModelCache,
    last_save: std::time::Instant,
    options: Options,
}

impl Workbench {
    /// An empty workbench with the user's settings.
    pub fn new(options: Options) -> Self {
        let settings = Settings::load(&options.data_dir);
        let state = State::new(settings, rates::known_rates(&options.cache_dir));
        Self {
            jobs: Jobs::new(options.waker.clone(), options.executor, state.device.clone()),
            state,
            models: tasks::ModelCache::default(),
            last_save: std::time::Instant::now(),
            options,
        }
    }

    /// What there is to show.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Running and waiting jobs, oldest first.
    pub fn jobs(&self) -> impl Iterator<Item = JobView<'_>> {
        self.jobs.views()
    }

    /// True while any job runs or waits.
    pub fn is_busy(&self) -> bool {
        self.jobs.views().next().is_some()
    }

    /// Why an action cannot be done now, or `None` if it can.
    pub fn unavailable(&self, action: Action) -> Option<&'static str> {
        action.unavailable(&self.state, &self.jobs)
    }

    /// Stops every job and waits for them, then saves; for a window that closes.
    pub fn close(&mut self) {
        self.jobs.cancel_all();
        self.jobs.join_all();
        self.poll();
        self.autosave(true);
    }
}
