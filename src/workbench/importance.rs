//! Importance in the project: computed or loaded, used by the plan or not, and llama.cpp's lists of
//! tensor types.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Workbench;
use super::apply::{file_name, resolve};
use super::jobs::JobKind;
use super::state::{Document, Level};
use super::{project, tasks};
use crate::engine::calibration::{Importance, TensorStatistics};
use crate::engine::checkpoint::Checkpoint;
use crate::engine::error::{Error, Fault, Result, Stage};
use crate::engine::plan::{self, Calibration, Plan, ResolvedPlan, tensor_types};

/// An importance matrix with what is shown of it.
#[derive(Clone, Debug)]
pub struct KnownImportance {
    /// What encoders are given.
    pub importance: Arc<Importance>,
    /// Figures of every matrix, layer by layer.
    pub statistics: Arc<[TensorStatistics]>,
    /// Where a plan that uses it finds it again.
    pub calibration: Calibration,
}

impl KnownImportance {
    /// Takes over a matrix that lies in a file, with what is known of the text it was computed on.
    ///
    /// # Errors
    /// A matrix of another model, or one that lies in no file.
    pub(super) fn new(
        importance: Importance,
        text: Option<(PathBuf, String)>,
        checkpoint: &Checkpoint,
    ) -> Result<Self> {
        for tensor in &checkpoint.tensors {
            importance.of(&tensor.name, tensor.row_len())?;
        }
        let calibration = Calibration::of(&importance).ok_or_else(|| {
            Fault::new(Stage::Calibration, "the importance matrix lies in no file").fix("write it first")
        })?;
        let (text, text_hash) = text.unzip();
        Ok(Self {
            statistics: importance.statistics().into(),
            importance: Arc::new(importance),
            calibration: Calibration { text, text_hash, ..calibration },
        })
    }
}

/// A plan worked out, with what its importance matrix lacks where that is loaded.
pub(super) fn resolved(
    plan: &Plan,
    checkpoint: &Checkpoint,
    importance: Option<&Importance>,
) -> Result<Arc<ResolvedPlan>> {
    let mut resolved = plan::resolve(plan, checkpoint)?;
    if let Some(importance) = importance {
        let warnings = plan::check_importance(&resolved, checkpoint, importance)?;
        resolved.warnings.extend(warnings);
    }
    Ok(Arc::new(resolved))
}

impl Document {
    /// The importance matrix that the plan uses, where it is loaded.
    pub fn importance_in_use(&self) -> Option<&Arc<Importance>> {
        let (used, known) = (self.plan().calibration()?, self.importance.as_ref()?);
        let is_same = match &used.imatrix_hash {
            Some(hash) => *hash == known.importance.hash,
            None => used.imatrix.is_some() && used.imatrix == known.calibration.imatrix,
        };
        is_same.then_some(&known.importance)
    }
}

impl Workbench {
    /// Computes importance on a text; the plan uses it when it is there.
    pub(super) fn calibrate(&mut self, text: PathBuf) {
        let Some(document) = &mut self.state.document else { return };
        if let Some(why) = document.cannot_run() {
            self.state.notify(Level::Warning, why);
            return;
        }
        document.calibration_text = Some(text.clone());
        document.is_dirty = true;
        self.look_at_calibration(false);
        let Some(document) = &self.state.document else { return };
        let folder = project::output_folder(&document.project_path);
        let (checkpoint, models) = (document.checkpoint.clone(), self.models.clone());
        self.jobs.spawn(JobKind::Calibrate, format!("importance on {}", file_name(&text)), move |context| {
            tasks::calibrate(&checkpoint, &models, &text, &folder, context)
        });
    }

    /// Computes importance on the text that belongs to the checkpoint or was used last.
    pub(super) fn calibrate_again(&mut self) {
        if let Some(text) = self.state.document.as_ref().and_then(|document| document.calibration_text.clone()) {
            self.calibrate(text);
        }
    }

    /// Reads an importance matrix; the plan uses it when it is there.
    pub(super) fn load_importance(&mut self, path: PathBuf) {
        let Some(document) = &self.state.document else { return };
        let checkpoint = document.checkpoint.clone();
        self.jobs.spawn(JobKind::LoadImportance, format!("read {}", file_name(&path)), move |_| {
            tasks::load_importance(&checkpoint, &path)
        });
    }

    /// Takes a matrix in that a job has computed or read.
    pub(super) fn take_importance(&mut self, fingerprint: &str, known: KnownImportance, is_computed: bool) {
        let Some(document) = self.state.document.as_mut().filter(|d| d.checkpoint.fingerprint == fingerprint) else {
            return;
        };
        let importance = known.importance.clone();
        document.importance = Some(known);
        document.is_dirty = true;
        let verb = if is_computed { "computed" } else { "loaded" };
        let name = importance.file_name().unwrap_or_default().into_owned();
        let text = format!("Importance of {} matrices {verb}: {name}", importance.tensors.len());
        self.state.notify(Level::Info, text);
        if let Err(err) = self.use_importance(true) {
            self.state.notify(Level::Error, err.to_string());
        }
        // The plan may have named this matrix already: then its warnings are new, but no step is.
        if let Some(document) = &mut self.state.document {
            resolve(document);
        }
        self.autosave(true);
    }

    /// Lets the plan use the matrix that is loaded, or none.
    pub(super) fn use_importance(&mut self, is_used: bool) -> Result<()> {
        let Some(document) = &self.state.document else { return Ok(()) };
        let calibration = document.importance.as_ref().filter(|_| is_used).map(|known| known.calibration.clone());
        if is_used && calibration.is_none() {
            return Ok(());
        }
        let name = if is_used { "use importance" } else { "no importance" };
        self.change_plan(name.to_owned(), |_, plan| {
            plan.set_calibration(calibration);
            Ok(())
        })
    }

    /// Adds what one of llama.cpp's files says of tensors to the plan.
    pub(super) fn import_tensor_types(&mut self, path: &Path) -> Result<()> {
        let mut named = 0;
        self.change_plan(format!("types of {}", file_name(path)), |document, plan| {
            named = tensor_types::read(plan, &document.checkpoint, path)?;
            Ok(())
        })?;
        if self.state.document.is_some() {
            self.state.notify(Level::Info, format!("{} names {named} tensors", file_name(path)));
        }
        Ok(())
    }

    /// Writes the plan's types for llama-quantize.
    pub(super) fn export_tensor_types(&mut self, path: &Path) -> Result<()> {
        let Some(document) = &self.state.document else { return Ok(()) };
        let resolved = document.resolved.as_ref().map_err(Error::clone)?;
        let text = tensor_types::write(resolved, &document.checkpoint);
        super::files::write_atomically(path, text.as_bytes()).map_err(Error::io("write", path))?;
        self.state.notify(Level::Info, format!("Tensor types written to {}", path.display()));
        Ok(())
    }
}
