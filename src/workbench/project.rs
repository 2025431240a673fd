//! The project file: the plan, its runs and what was measured, so that nothing is lost.
//!
//! JSON with a version; written beside its place and renamed over it; fields that a newer version
//! adds have defaults, so that an old file still opens. Candidates are named by path and content
//! hash and opened again when needed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::choices::{EvaluationChoices, MeasuredWith};
use super::state::{Document, RunId};
use crate::engine::calibration::Activations;
use crate::engine::error::{Error, Fault, Result, Stage};
use crate::engine::evaluation::Evaluation;
use crate::engine::pass::{MaskFacts, PassReport};
use crate::engine::plan::Plan;
use crate::engine::sensitivity::{SensitivityTable, UnitTable};
use crate::engine::structure::UnitScores;
use crate::engine::structure::slices::Slice;

/// Version of the file.
const VERSION: u32 = 1;

/// Largest project file that is read.
const MOST_BYTES: u64 = 2 << 30;

/// A run as the file keeps it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SavedRun {
    pub(super) id: RunId,
    pub(super) name: String,
    /// The plan as TOML.
    pub(super) plan: String,
    /// What was masked first; none in files of versions without masks.
    #[serde(default)]
    pub(super) mask: Option<Arc<MaskFacts>>,
    pub(super) created_unix_secs: u64,
    pub(super) path: PathBuf,
    pub(super) content_hash: String,
    pub(super) report: Arc<PassReport>,
    #[serde(default)]
    pub(super) evaluation: Option<Arc<Evaluation>>,
    /// What the evaluation was made with.
    #[serde(default)]
    pub(super) measured_with: Option<MeasuredWith>,
}

/// A plan with a name, as the file keeps it: a kept one, or the one before a step of history.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SavedPlan {
    pub(super) name: String,
    /// The plan as TOML.
    pub(super) plan: String,
}

/// Steps of history that are kept.
const MOST_STEPS: usize = 60;

/// A project as the file keeps it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Project {
    version: u32,
    /// The checkpoint's path; none for the bundled demo.
    #[serde(default)]
    pub(super) checkpoint: Option<PathBuf>,
    /// The checkpoint's fingerprint when it was last open.
    pub(super) fingerprint: String,
    /// The plan as TOML, comments included.
    pub(super) plan: String,
    /// Steps that led to the plan, oldest first, each with the plan before it.
    #[serde(default)]
    pub(super) history: Vec<SavedPlan>,
    /// Plans that were kept under a name.
    #[serde(default)]
    pub(super) named: Vec<SavedPlan>,
    #[serde(default)]
    pub(super) tasks: Option<PathBuf>,
    #[serde(default)]
    pub(super) text: Option<PathBuf>,
    /// Gates that candidates are judged by.
    #[serde(default)]
    pub(super) gates: Option<PathBuf>,
    /// The text that importance was computed on last.
    #[serde(default)]
    pub(super) calibration_text: Option<PathBuf>,
    #[serde(default)]
    pub(super) baseline: Option<Arc<Evaluation>>,
    #[serde(default)]
    pub(super) sensitivity: BTreeMap<String, Arc<SensitivityTable>>,
    #[serde(default)]
    pub(super) units: BTreeMap<String, Arc<UnitTable>>,
    #[serde(default)]
    pub(super) unit_scores: BTreeMap<String, Arc<UnitScores>>,
    #[serde(default)]
    pub(super) slice_scores: Vec<(Slice, Arc<UnitScores>)>,
    #[serde(default)]
    pub(super) activations: Option<Arc<Activations>>,
    #[serde(default)]
    pub(super) runs: Vec<SavedRun>,
    /// How candidates are evaluated.
    #[serde(default)]
    pub(super) evaluation: EvaluationChoices,
    #[serde(default)]
    pub(super) focused_run: Option<RunId>,
    #[serde(default)]
    pub(super) prompt: String,
}

fn saved(name: &str, plan: &Plan) -> SavedPlan {
    SavedPlan { name: name.to_owned(), plan: plan.to_toml() }
}

impl Project {
    /// What of a document is kept. The demo's own tasks and text are not named: they come with it.
    pub(super) fn of_document(document: &Document) -> Self {
        let folder = &document.checkpoint.path;
        let outside = |path: &Path| (!document.is_demo || !path.starts_with(folder)).then(|| path.to_owned());
        Self {
            version: VERSION,
            checkpoint: (!document.is_demo).then(|| folder.clone()),
            fingerprint: document.checkpoint.fingerprint.clone(),
            plan: document.plan().to_toml(),
            history: document.history.past(MOST_STEPS).iter().map(|(name, plan)| saved(name, plan)).collect(),
            named: document.named.iter().map(|named| saved(&named.name, &named.plan)).collect(),
            tasks: document.tasks.as_ref().and_then(|tasks| outside(&tasks.path)),
            text: document.text.as_ref().and_then(|text| outside(&text.path)),
            gates: document.gates.as_ref().map(|gates| gates.path.clone()),
            calibration_text: document.calibration_text.as_deref().and_then(outside),
            baseline: document.baseline.clone(),
            sensitivity: document.sensitivity.clone(),
            units: document.units.clone(),
            unit_scores: document.unit_scores.clone(),
            slice_scores: document.slice_scores.iter().map(|(slice, own)| (slice.clone(), own.clone())).collect(),
            activations: document.activations.clone(),
            runs: document
                .runs
                .iter()
                .map(|run| SavedRun {
                    id: run.id,
                    name: run.name.clone(),
                    plan: run.plan.to_toml(),
                    mask: run.mask.clone(),
                    created_unix_secs: run.created_unix_secs,
                    path: run.path.clone(),
                    content_hash: run.content_hash.clone(),
                    report: run.report.clone(),
                    evaluation: run.evaluation.clone(),
                    measured_with: run.measured_with.clone(),
                })
                .collect(),
            evaluation: document.choices.clone(),
            focused_run: document.focused_run,
            prompt: document.playground.prompt.clone(),
        }
    }

    /// Reads a project file, of which nothing is taken on trust.
    pub fn read(path: &Path) -> Result<Self> {
        let refuse = |cause: String| Fault::new(Stage::Project, cause).file(path);
        let length = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
        if length > MOST_BYTES {
            return Err(refuse(format!("the file has {length} bytes, too many for a project"))
                .fix("choose a .lapidary file")
                .into());
        }
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        #[derive(Deserialize)]
        struct Header {
            version: u32,
        }
        let not_ours = |err: serde_json::Error| {
            refuse(format!("this is no readable project: {err}")).fix("choose a .lapidary file, or its backup")
        };
        let header: Header = serde_json::from_slice(&bytes).map_err(not_ours)?;
        if header.version > VERSION {
            return Err(refuse(format!("the project has version {}, this program knows {VERSION}", header.version))
                .fix("use a newer Lapidary")
                .into());
        }
        Ok(serde_json::from_slice(&bytes).map_err(not_ours)?)
    }

    /// Writes the project atomically.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let bytes = serde_json::to_vec(self).map_err(|err| {
            Fault::new(Stage::Project, format!("the project cannot be written as JSON: {err}")).file(path)
        })?;
        super::files::write_atomically(path, &bytes).map_err(Error::io("write", path))
    }
}

/// Where the project of a checkpoint is kept until the user gives it a file: by name and fingerprint.
pub(super) fn default_path(data_dir: &Path, name: &str, fingerprint: &str) -> PathBuf {
    let name: String = name.chars().map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect();
    let short: String = fingerprint.chars().take(12).collect();
    data_dir.join("projects").join(format!("{name}-{short}.lapidary"))
}

/// The folder that passes of a project write into: `NAME.lapidary.d`.
pub fn output_folder(project_path: &Path) -> PathBuf {
    let mut name = project_path.file_name().unwrap_or_default().to_owned();
    name.push(".d");
    project_path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_projects_are_safe_names() {
        let path = default_path(Path::new("/d"), "../a b/ü", "0123456789abcdef");
        assert_eq!(path, Path::new("/d/projects/..-a-b-ü-0123456789ab.lapidary"));
        assert_eq!(output_folder(&path), Path::new("/d/projects/..-a-b-ü-0123456789ab.lapidary.d"));
    }

    #[test]
    fn the_first_version_still_opens_and_a_later_one_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("p.lapidary");
        std::fs::write(&path, r#"{"version":1,"fingerprint":"x","plan":"version = 1\n"}"#).expect("writes");
        assert_eq!(Project::read(&path).expect("opens").fingerprint, "x");
        std::fs::write(&path, r#"{"version":2,"fingerprint":"x","plan":""}"#).expect("writes");
        assert!(Project::read(&path).expect_err("refused").to_string().contains("newer Lapidary"));
        std::fs::write(&path, "{").expect("writes");
        assert!(Project::read(&path).expect_err("refused").to_string().contains("no readable project"));
    }
}
