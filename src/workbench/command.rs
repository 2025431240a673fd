//! What a window or a test can ask of a workbench.

use std::path::PathBuf;
use std::sync::Arc;

use super::action::Action;
use super::choices::EvaluationChoices;
use super::jobs::JobId;
use super::masking::MaskRequest;
use super::measure::KldRequest;
use super::settings::ThemeChoice;
use super::state::{RunId, View};
use super::units::{PruneSteps, UnitEdit};
use crate::engine::plan::budget::Limit;
use crate::engine::plan::{Constraints, Plan, Recipe, Target, Ties, Treatment};
use crate::engine::structure::Metric;
use crate::engine::structure::slices::Slice;

/// How a click changes the selection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelectMode {
    /// Only this one.
    Replace,
    /// In or out.
    Toggle,
    /// Everything from the last one to this one.
    Extend,
}

/// A model of the project: the original or what a run made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// The checkpoint that is open.
    Baseline,
    /// A run's candidate.
    Run(RunId),
}

/// One change of the project, asked for.
#[derive(Clone, Debug)]
pub enum Command {
    /// Anything that a menu or a key can do without more words.
    Act(Action),
    /// Opens a checkpoint or a project, by what the path is.
    Open(PathBuf),
    /// Writes the project to a file and goes on there.
    SaveProjectAs(PathBuf),
    /// Replaces the plan by a file's.
    LoadPlan(PathBuf),
    /// Writes the plan to a file.
    SavePlan(PathBuf),
    /// Takes tasks from a JSONL file.
    LoadTasks(PathBuf),
    /// Takes the text to evaluate on.
    LoadText(PathBuf),
    /// Evaluates candidates in this way from now on.
    SetEvaluation(Box<EvaluationChoices>),
    /// Puts worked examples of a file in front of every prompt.
    ChooseExamples(PathBuf),
    /// Judges candidates by the gates of a file.
    LoadGates(PathBuf),
    /// Shows another view.
    Show(View),
    /// Selects a tensor by its index in the checkpoint.
    Select { tensor: usize, mode: SelectMode },
    /// Selects exactly these tensors.
    SelectSet(Vec<usize>),
    /// Chooses the format of tensors.
    SetFormat { tensors: Vec<usize>, format: &'static str },
    /// Protects tensors, or lets go of them.
    SetProtected { tensors: Vec<usize>, protect: bool },
    /// Takes the choices made for tensors back, so that recipe or default decide.
    ClearChoices { tensors: Vec<usize> },
    /// Treats the linears of layers as those of another one.
    CopyLayer { from: usize, to: Vec<usize> },
    /// Treats all tensors whose names a glob matches.
    SetGlob { glob: String, treatment: Treatment },
    /// Which tensors of a layer share a format under the plan's target.
    SetTies(Ties),
    /// Turns the plan to a target, with the nearest legal choice wherever it has none.
    MakeLegal(Target),
    /// States what the result must keep to.
    SetConstraints(Box<Constraints>),
    /// Keeps the plan as it is now under a name.
    NamePlan(String),
    /// Makes a plan that was kept the plan, as one step of history.
    ReturnTo(String),
    /// Forgets a plan that was kept.
    ForgetNamed(String),
    /// Goes back to before the step of history with this index.
    UndoTo(usize),
    /// Writes the plan's constraints as gates.
    ExportGates(PathBuf),
    /// Starts the plan from one of llama.cpp's recipes; none keeps every tensor as it is.
    SetRecipe(Option<Recipe>),
    /// What the result is written for.
    SetTarget(Target),
    /// Replaces the whole plan, as one step of history.
    SetPlan { plan: Box<Plan>, what: String },
    /// Lets the planner choose within a limit, by the table of `metric` or of the metric that says
    /// most; rules made by hand stay. What `continues` an earlier one belongs to the same step.
    PlanWithin { limit: Limit, metric: Option<&'static str>, continues: bool },
    /// Measures KLD of what is changed at a time; finished cells are not measured again.
    MeasureKld(KldRequest),
    /// Measures sensitivity and importance on this text from now on.
    ChooseCalibration(PathBuf),
    /// Scores every head, KV group and channel.
    ScoreUnits(Metric),
    /// Scores every head, KV group and channel on slices of users.
    ScoreSlices(Vec<Slice>),
    /// Changes which units the plan takes away.
    EditUnits { edit: UnitEdit, what: String },
    /// Takes units away step by step, scored anew and measured each time.
    PruneInSteps(Box<PruneSteps>),
    /// Sets single weights to zero for study and writes that as a candidate.
    MaskWeights(MaskRequest),
    /// Computes how much each input column matters on a text, and lets the plan use it.
    Calibrate(PathBuf),
    /// Reads an importance matrix of llama.cpp's, and lets the plan use it.
    LoadImportance(PathBuf),
    /// Adds the types of a llama.cpp --tensor-type-file to the plan.
    ImportTensorTypes(PathBuf),
    /// Writes the plan's types as such a file.
    ExportTensorTypes(PathBuf),
    /// Runs the plan; to a place of its own unless told where.
    RunPlan { name: Option<String>, output: Option<PathBuf> },
    /// Evaluates a model of the project on its tasks and text.
    Evaluate(Subject),
    /// Measures the candidate's weights, to lay them over the original's.
    ProfileRun(RunId),
    /// Copies a candidate to a place of the user's.
    Export { run: RunId, output: PathBuf },
    /// Writes a small file of the window's, such as a plot.
    WriteFile { path: PathBuf, bytes: Arc<[u8]> },
    /// Takes a run off the list; its files stay. Can be undone.
    ForgetRun(RunId),
    /// Makes a run's plan the plan.
    RollBack(RunId),
    /// Names a run.
    RenameRun { run: RunId, name: String },
    /// Chooses the run that is compared and overlaid.
    FocusRun(Option<RunId>),
    /// Sets the prompt of the playground.
    SetPrompt(String),
    /// Sets how many tokens the playground writes.
    SetGenerateTokens(usize),
    /// Sets the sampling temperature; 0 is greedy.
    SetTemperature(f32),
    /// Sets how many tokens a draft proposes at once.
    SetDraftTokens(usize),
    /// Prints a page of HTML to a PDF file with what the system has.
    PrintPdf { path: PathBuf, html: Arc<str> },
    /// Stops a job.
    Cancel(JobId),
    /// Holds a job or lets it go on.
    Pause { job: JobId, paused: bool },
    /// Takes a message off the screen.
    Dismiss(u64),
    /// Light, dark or the system's.
    SetTheme(ThemeChoice),
    /// Lists the devices.
    FindDevices,
    /// Runs work on a device from now on: `auto`, `cpu` or a name.
    SetDevice(String),
    /// A message from the window itself, such as a dialog that cannot be shown.
    Warn(String),
}

impl From<Action> for Command {
    fn from(action: Action) -> Self {
        Self::Act(action)
    }
}
