//! Everything a menu, a key or the palette can do: one variant with its text, tooltip, shortcut and
//! availability. Menus, palette and shortcuts are made from [`Action::ALL`], so that none can exist
//! without a name and a help text.

use super::jobs::{JobKind, Jobs};
use super::state::{State, View};
use crate::engine::plan::Search;

/// The menu an action is listed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    File,
    Edit,
    Plan,
    Run,
    View,
    Help,
}

impl Group {
    /// Every menu, in order.
    pub const ALL: [Self; 6] = [Self::File, Self::Edit, Self::Plan, Self::Run, Self::View, Self::Help];

    /// The menu's title.
    pub fn title(self) -> &'static str {
        match self {
            Self::File => "File",
            Self::Edit => "Edit",
            Self::Plan => "Plan",
            Self::Run => "Run",
            Self::View => "View",
            Self::Help => "Help",
        }
    }
}

/// A key with its modifiers; `command` is Ctrl, or Cmd on a Mac.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortcut {
    pub command: bool,
    pub shift: bool,
    /// An upper-case letter, a digit, or a name such as `Escape`, `F1`.
    pub key: &'static str,
}

const fn ctrl(key: &'static str) -> Option<Shortcut> {
    Some(Shortcut { command: true, shift: false, key })
}

const fn ctrl_shift(key: &'static str) -> Option<Shortcut> {
    Some(Shortcut { command: true, shift: true, key })
}

const fn bare(key: &'static str) -> Option<Shortcut> {
    Some(Shortcut { command: false, shift: false, key })
}

/// Declares an enum and the list of its variants in their order, which so can never miss one.
macro_rules! listed {
    ($(#[$attribute:meta])* pub enum $name:ident { $($variant:ident,)+ }) => {
        $(#[$attribute])*
        pub enum $name {
            $($variant,)+
        }

        impl $name {
            /// Every one, in the order of the menus.
            pub const ALL: [Self; [$(Self::$variant),+].len()] = [$(Self::$variant),+];
        }
    };
}

listed! {
    /// A thing that can be done without more words. Those ending in `…` ask for a path in the window.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    #[allow(missing_docs, reason = "text and tooltip say what each does")]
    pub enum Action {
        OpenFile,
        OpenFolder,
        OpenPath,
        OpenDemo,
        SaveProject,
        SaveProjectAs,
        LoadTasks,
        LoadText,
        LoadGates,
        DropGates,
        Quit,
        Undo,
        Redo,
        SelectAllLinears,
        ClearSelection,
        ProtectSelection,
        UnprotectSelection,
        ClearChoices,
        ImprovePlan,
        FitConstraints,
        MakePlanLegal,
        ExportGates,
        LoadPlan,
        SavePlan,
        LoadImportance,
        UseImportance,
        DropImportance,
        ToggleDeviceSearch,
        ImportTensorTypes,
        ExportTensorTypes,
        RunPlan,
        RunFrontier,
        MaskWeights,
        MeasureRates,
        Calibrate,
        CalibrateOn,
        ChooseCalibration,
        ChooseExamples,
        MeasureWeightError,
        MeasureOutput,
        MeasureFisher,
        MeasureKld,
        MeasureLayerKld,
        MeasureBlockInfluence,
        MeasureLayerRemoval,
        MeasureHeadGradient,
        MeasureHeadAblation,
        MeasureGroupAblation,
        EvaluateBaseline,
        EvaluateCandidates,
        ToggleKeepBaseline,
        Generate,
        Speculate,
        CancelJobs,
        ShowOverview,
        ShowWeights,
        ShowSensitivity,
        ShowPlan,
        ShowHeads,
        ShowRuns,
        ShowCompare,
        ShowPlayground,
        ShowReport,
        ToggleTheme,
        TogglePresenter,
        Palette,
        About,
    }
}

impl Action {
    fn row(self) -> (Group, &'static str, &'static str, Option<Shortcut>) {
        use Group as G;
        match self {
            Self::OpenFile => {
                (G::File, "Open file…", "Open a .safetensors, .index.json, .gguf or .lapidary file", ctrl("O"))
            }
            Self::OpenFolder => (G::File, "Open folder…", "Open a Hugging Face model folder", ctrl_shift("O")),
            Self::OpenPath => {
                (G::File, "Open path…", "Type or paste a path, where no file dialog is at hand", ctrl("L"))
            }
            Self::OpenDemo => {
                (G::File, "Open the demo model", "The small trained model that comes with Lapidary", None)
            }
            Self::SaveProject => {
                (G::File, "Save project", "Write the project now; it is also saved by itself", ctrl("S"))
            }
            Self::SaveProjectAs => (G::File, "Save project as…", "Give the project a file of its own", ctrl_shift("S")),
            Self::LoadTasks => {
                (G::File, "Choose tasks…", "Evaluate on the items of a JSONL, CSV or Parquet file", None)
            }
            Self::LoadText => (G::File, "Choose text…", "Measure perplexity and KLD on a text file", None),
            Self::LoadGates => (G::File, "Choose gates…", "Judge every candidate by the limits of a gates.toml", None),
            Self::DropGates => {
                (G::File, "Stop using the gates", "Judge candidates by the constraints of their plans alone", None)
            }
            Self::Quit => (G::File, "Quit", "Stop running jobs, save and close", ctrl("Q")),
            Self::Undo => (G::Edit, "Undo", "Take the last change of the plan back", ctrl("Z")),
            Self::Redo => (G::Edit, "Redo", "Make the change again", ctrl_shift("Z")),
            Self::SelectAllLinears => (G::Edit, "Select all linears", "Select every linear of every layer", ctrl("A")),
            Self::ClearSelection => (G::Edit, "Clear the selection", "Select nothing", bare("Escape")),
            Self::ProtectSelection => {
                (G::Plan, "Protect the selection", "Keep the stored values of the selected tensors", ctrl("P"))
            }
            Self::UnprotectSelection => {
                (G::Plan, "Unprotect the selection", "Let the plan change the selected tensors again", ctrl_shift("P"))
            }
            Self::ClearChoices => (
                G::Plan,
                "Clear choices of the selection",
                "Let recipe or default decide for the selected tensors",
                None,
            ),
            Self::ImprovePlan => (
                G::Plan,
                "Improve the plan at its size",
                "Let the planner choose for least predicted damage in the bytes the plan takes now; rules made by hand stay",
                None,
            ),
            Self::FitConstraints => (
                G::Plan,
                "Plan for the constraints",
                "Let the planner choose for least predicted damage within all constraints; rules made by hand stay",
                None,
            ),
            Self::MakePlanLegal => (
                G::Plan,
                "Choose the nearest legal formats",
                "Replace what the target cannot hold, or its runtimes do not load, by the nearest that they do",
                None,
            ),
            Self::ExportGates => (
                G::Plan,
                "Export constraints as gates…",
                "Write the constraints as a gates.toml that candidates are judged by",
                None,
            ),
            Self::LoadPlan => (G::Plan, "Load plan…", "Replace the plan by a plan.toml", None),
            Self::SavePlan => {
                (G::Plan, "Save plan…", "Write the plan as a plan.toml that the command line takes too", None)
            }
            Self::LoadImportance => (
                G::Plan,
                "Load importance…",
                "Use an importance matrix of llama.cpp's, GGUF or .dat, in the plan",
                None,
            ),
            Self::UseImportance => {
                (G::Plan, "Use the importance", "Weight errors by how large each column's input is", None)
            }
            Self::DropImportance => {
                (G::Plan, "Stop using importance", "Let all columns of a matrix count alike again", None)
            }
            Self::ToggleDeviceSearch => (
                G::Plan,
                "Search on the device",
                "Search k-quants, least squares and importance on the device: sooner, and now and then another of two nearly \
                 equal choices than llama.cpp's",
                None,
            ),
            Self::ImportTensorTypes => {
                (G::Plan, "Import tensor types…", "Add the types of a llama.cpp --tensor-type-file to the plan", None)
            }
            Self::ExportTensorTypes => {
                (G::Plan, "Export tensor types…", "Write the plan's types for llama-quantize --tensor-type-file", None)
            }
            Self::RunPlan => {
                (G::Run, "Run the plan", "Write a candidate file with these choices, then evaluate it", ctrl("R"))
            }
            Self::RunFrontier => (
                G::Run,
                "Run three points of the frontier",
                "Write and evaluate the planner's best at three sizes, to see measured points on the curve",
                None,
            ),
            Self::MaskWeights => (
                G::Run,
                "Mask weights for study",
                "Set two of every four weights to zero by Wanda and write that as a candidate, which shows what sparsity costs and saves no memory and no time",
                None,
            ),
            Self::MeasureRates => (
                G::Run,
                "Measure kernel speeds",
                "Time one product in every format, which predictions of a plan's speed need; about half a minute, once",
                None,
            ),
            Self::Calibrate => (
                G::Run,
                "Compute importance",
                "Run the model over its calibration text and see how large the input of each column is",
                None,
            ),
            Self::ChooseExamples => (
                G::Run,
                "Choose worked examples…",
                "Put examples of this file, other items than those that are scored, in front of every prompt",
                None,
            ),
            Self::CalibrateOn => {
                (G::Run, "Compute importance on…", "Choose the text that the model reads for its importance", None)
            }
            Self::MeasureWeightError => (
                G::Run,
                "Measure weight error",
                "Relative error of every tensor in every format, from the weights alone",
                None,
            ),
            Self::ChooseCalibration => (
                G::Run,
                "Choose calibration text…",
                "Measure sensitivity and importance on this text, plain or JSONL with text and domain",
                None,
            ),
            Self::MeasureOutput => (
                G::Run,
                "Predict output error",
                "How far every format moves what each linear gives, from the second moments of its inputs",
                None,
            ),
            Self::MeasureFisher => (
                G::Run,
                "Estimate KLD from gradients",
                "Fisher information times squared error, for every tensor and format, from one backward pass a window",
                None,
            ),
            Self::MeasureLayerKld => {
                (G::Run, "Measure KLD per layer", "Change every linear of one layer at a time", None)
            }
            Self::MeasureBlockInfluence => {
                (G::Run, "Predict block influence", "How far each layer turns its input, from one pass", None)
            }
            Self::MeasureLayerRemoval => {
                (G::Run, "Measure layer removal", "Leave one layer out at a time and measure the KLD", None)
            }
            Self::MeasureHeadGradient => {
                (G::Run, "Predict head importance", "Gradient of a factor on each attention head's output", None)
            }
            Self::MeasureHeadAblation => {
                (G::Run, "Measure head ablation", "Silence one attention head at a time and measure the KLD", None)
            }
            Self::MeasureGroupAblation => (
                G::Run,
                "Measure KV group ablation",
                "Silence the heads of one KV group at a time and measure the KLD",
                None,
            ),
            Self::MeasureKld => (
                G::Run,
                "Measure KLD per tensor",
                "Change one tensor at a time and measure what happens to the output",
                None,
            ),
            Self::EvaluateBaseline => {
                (G::Run, "Evaluate the original", "Score tasks, text and speed of the checkpoint that is open", None)
            }
            Self::EvaluateCandidates => {
                (G::Run, "Evaluate all candidates", "Score every candidate that has no evaluation yet", ctrl("E"))
            }
            Self::ToggleKeepBaseline => (
                G::Run,
                "Keep the original's predictions",
                "Score further candidates without running the original on the text again; KLD is then a lower bound",
                None,
            ),
            Self::Generate => {
                (G::Run, "Generate", "Let original and candidate continue the prompt side by side", ctrl("G"))
            }
            Self::Speculate => (
                G::Run,
                "Write with the candidate as draft",
                "Let the candidate propose and the original check: the original's text, sooner where the draft is good",
                None,
            ),
            Self::CancelJobs => {
                (G::Run, "Cancel all jobs", "Stop everything that runs; nothing half-written remains", None)
            }
            Self::ShowOverview => (G::View, "Overview", "What this checkpoint is and what to do next", ctrl("1")),
            Self::ShowWeights => {
                (G::View, "Weights", "Histograms of every layer, original and candidate overlaid", ctrl("2"))
            }
            Self::ShowSensitivity => (G::View, "Sensitivity", "How much each tensor minds each format", ctrl("3")),
            Self::ShowPlan => (G::View, "Plan", "The choices, tensor by tensor, and what they cost", ctrl("4")),
            Self::ShowHeads => (G::View, "Heads", "Which heads, channels and layers are taken away", ctrl("5")),
            Self::ShowRuns => (G::View, "Runs", "Every candidate with size, distance, speed and accuracy", ctrl("6")),
            Self::ShowCompare => (G::View, "Compare", "Candidates against the original, slice by slice", ctrl("7")),
            Self::ShowPlayground => (G::View, "Playground", "Original and candidate writing side by side", ctrl("8")),
            Self::ShowReport => {
                (G::View, "Report", "What will be written of the result, and the files of it", ctrl("9"))
            }
            Self::ToggleTheme => (G::View, "Light or dark", "Switch between the light and the dark theme", None),
            Self::TogglePresenter => (G::View, "Presenter mode", "Larger text and no editing controls", bare("F5")),
            Self::Palette => (G::Help, "Command palette", "Find anything that can be done by its name", ctrl("K")),
            Self::About => (G::Help, "About Lapidary", "Version and licences", None),
        }
    }

    /// The menu it stands in.
    pub fn group(self) -> Group {
        self.row().0
    }

    /// The words of its menu entry.
    pub fn text(self) -> &'static str {
        self.row().1
    }

    /// One sentence of help.
    pub fn tooltip(self) -> &'static str {
        self.row().2
    }

    /// Its key, if it has one.
    pub fn shortcut(self) -> Option<Shortcut> {
        self.row().3
    }

    /// The view that it shows, if it is about one.
    pub fn view(self) -> Option<View> {
        Some(match self {
            Self::ShowOverview => View::Overview,
            Self::ShowWeights => View::Weights,
            Self::ShowSensitivity => View::Sensitivity,
            Self::ShowPlan => View::Plan,
            Self::ShowHeads => View::Heads,
            Self::ShowRuns => View::Runs,
            Self::ShowCompare => View::Compare,
            Self::ShowPlayground => View::Playground,
            Self::ShowReport => View::Report,
            _ => return None,
        })
    }

    /// Why it cannot be done now, as a short sentence, or `None` if it can.
    pub(super) fn unavailable(self, state: &State, jobs: &Jobs) -> Option<&'static str> {
        let no_document = || state.document.is_none().then_some("Open a checkpoint first");
        let document = state.document.as_ref();
        let unless = |ok: bool, why: &'static str| (!ok).then_some(why);
        match self {
            Self::OpenFile
            | Self::OpenFolder
            | Self::OpenPath
            | Self::OpenDemo
            | Self::Quit
            | Self::ToggleKeepBaseline
            | Self::ToggleTheme
            | Self::TogglePresenter
            | Self::Palette
            | Self::About
            | Self::ShowOverview => None,
            Self::Undo => no_document().or_else(|| {
                unless(document.is_some_and(|d| d.history.undo_name().is_some()), "There is nothing to undo")
            }),
            Self::Redo => no_document().or_else(|| {
                unless(document.is_some_and(|d| d.history.redo_name().is_some()), "There is nothing to redo")
            }),
            Self::ClearSelection | Self::ProtectSelection | Self::UnprotectSelection | Self::ClearChoices => {
                no_document().or_else(|| unless(!state.selection.tensors.is_empty(), "Select a tensor first"))
            }
            Self::ImprovePlan => no_document()
                .or_else(|| unless(document.is_some_and(|d| d.resolved.is_ok()), "The plan has an error"))
                .or_else(|| {
                    unless(document.is_some_and(|d| d.budget_table().is_some()), "Measure the sensitivity first")
                }),
            Self::FitConstraints => no_document()
                .or_else(|| {
                    let has_limits =
                        |d: &super::Document| !d.plan().constraints().limits(d.checkpoint.config.as_ref()).is_empty();
                    unless(document.is_some_and(has_limits), "State a size, a speed or a KLD first")
                })
                .or_else(|| {
                    unless(document.is_some_and(|d| d.budget_table().is_some()), "Measure the sensitivity first")
                }),
            Self::ExportGates => no_document().or_else(|| {
                unless(document.is_some_and(|d| !d.plan().constraints().is_empty()), "The plan states no constraints")
            }),
            Self::RunFrontier => no_document()
                .or_else(|| {
                    unless(document.is_some_and(|d| d.budget_table().is_some()), "Measure the sensitivity first")
                })
                .or_else(|| unless(!jobs.is_running(JobKind::Pass), "A pass is running")),
            Self::MaskWeights => no_document()
                .or_else(|| document.and_then(|d| d.cannot_mask(super::MaskRequest::default().method)))
                .or_else(|| unless(!jobs.is_running(JobKind::Pass), "A pass is running")),
            Self::MeasureRates => unless(!jobs.is_running(JobKind::Rates), "Already measuring"),
            Self::RunPlan => no_document()
                .or_else(|| unless(document.is_some_and(|d| d.resolved.is_ok()), "The plan has an error"))
                .or_else(|| unless(!jobs.is_running(JobKind::Pass), "A pass is running")),
            Self::MeasureWeightError => {
                no_document().or_else(|| unless(!jobs.is_running(JobKind::WeightError), "Already measuring"))
            }
            Self::MeasureOutput
            | Self::MeasureFisher
            | Self::MeasureKld
            | Self::MeasureLayerKld
            | Self::MeasureBlockInfluence
            | Self::MeasureLayerRemoval
            | Self::MeasureHeadGradient
            | Self::MeasureHeadAblation
            | Self::MeasureGroupAblation => {
                let kind = match self {
                    Self::MeasureOutput => JobKind::OutputError,
                    Self::MeasureFisher => JobKind::Fisher,
                    Self::MeasureKld | Self::MeasureLayerKld => JobKind::Kld,
                    _ => JobKind::Units,
                };
                no_document()
                    .or_else(|| document.and_then(|d| d.cannot_run()))
                    .or_else(|| unless(document.is_some_and(|d| d.sensitivity_text().is_some()), "Choose a text first"))
                    .or_else(|| unless(!jobs.is_running(kind), "Already measuring"))
            }
            Self::Calibrate => no_document()
                .or_else(|| document.and_then(|d| d.cannot_run()))
                .or_else(|| {
                    unless(document.is_some_and(|d| d.calibration_text.is_some()), "Choose a calibration text first")
                })
                .or_else(|| unless(!jobs.is_running(JobKind::Calibrate), "Already computing")),
            Self::CalibrateOn => no_document()
                .or_else(|| document.and_then(|d| d.cannot_run()))
                .or_else(|| unless(!jobs.is_running(JobKind::Calibrate), "Already computing")),
            Self::UseImportance => no_document()
                .or_else(|| unless(document.is_some_and(|d| d.importance.is_some()), "Compute or load it first"))
                .or_else(|| unless(document.is_some_and(|d| d.importance_in_use().is_none()), "The plan uses it")),
            Self::DropImportance => no_document()
                .or_else(|| unless(document.is_some_and(|d| d.plan().calibration().is_some()), "The plan uses none")),
            Self::ToggleDeviceSearch => no_document().or_else(|| {
                let is_on = document.is_some_and(|d| d.plan().search() == Search::Device);
                if is_on { None } else { state.no_search_device() }
            }),
            Self::ExportTensorTypes => {
                no_document().or_else(|| unless(document.is_some_and(|d| d.resolved.is_ok()), "The plan has an error"))
            }
            Self::EvaluateBaseline => no_document()
                .or_else(|| document.and_then(|d| d.cannot_run()))
                .or_else(|| unless(document.is_some_and(super::Document::has_data), "Choose tasks or a text first")),
            Self::EvaluateCandidates => no_document()
                .or_else(|| document.and_then(|d| d.cannot_run()))
                .or_else(|| unless(document.is_some_and(|d| !d.runs.is_empty()), "Run a plan first"))
                .or_else(|| {
                    let lacks = |d: &super::Document| d.runs.iter().any(super::Run::lacks_evaluation);
                    unless(document.is_some_and(lacks), "Every candidate is evaluated on these tasks and this text")
                })
                .or_else(|| unless(document.is_some_and(super::Document::has_data), "Choose tasks or a text first")),
            Self::Generate => no_document()
                .or_else(|| document.and_then(|d| d.cannot_run()))
                .or_else(|| unless(!jobs.is_running(JobKind::Generate), "Already writing")),
            Self::Speculate => no_document()
                .or_else(|| document.and_then(|d| d.cannot_run()))
                .or_else(|| {
                    let has_draft = document.and_then(|d| d.focused()?.checkpoint()).is_some();
                    unless(has_draft, "Run a plan first: its candidate is the draft")
                })
                .or_else(|| unless(!jobs.is_running(JobKind::Generate), "Already writing")),
            Self::DropGates => {
                no_document().or_else(|| unless(document.is_some_and(|d| d.gates.is_some()), "No gates were chosen"))
            }
            Self::CancelJobs => unless(jobs.views().next().is_some(), "Nothing is running"),
            _ => no_document(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_action_has_words_and_no_two_share_a_name_or_a_key() {
        for (index, action) in Action::ALL.iter().enumerate() {
            assert!(!action.text().is_empty() && action.tooltip().len() > 10, "{action:?}");
            for other in &Action::ALL[..index] {
                assert_ne!(action.text(), other.text());
                assert!(action.shortcut().is_none() || action.shortcut() != other.shortcut(), "{action:?} {other:?}");
            }
        }
    }

    #[test]
    fn tooltips_are_single_sentences_without_a_full_stop() {
        for action in Action::ALL {
            assert!(!action.tooltip().ends_with('.'), "{action:?}");
        }
    }
}
