//! `[calibration]` of a plan: where the importance matrix comes from.
//!
//! Either the file of one that is computed already, or the text to compute it on:
//!
//! ```toml
//! [calibration]
//! imatrix = "model.imatrix.gguf"   # relative to the plan
//! imatrix_hash = "…"               # optional: the matrix that the plan was made with
//! text = "calibration.txt"
//! text_hash = "…"                  # optional: BLAKE3 of the text
//! context = 512                    # tokens a chunk
//! process_output = true            # the head too
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml_edit::{Item, Table, TableLike};

use super::ResolvedPlan;
use crate::calibration::{self, Importance, ImportanceOptions};
use crate::checkpoint::{Checkpoint, Role};
use crate::device::Device;
use crate::error::{Fault, Result, Stage};
use crate::format::Dtype;
use crate::model::{Model, Tokenizer};
use crate::plan::{Method, Recipe};
use crate::progress::Progress;
use crate::scoring::TextSource;

/// Keys of the section.
pub(super) const KEYS: [&str; 6] = ["imatrix", "imatrix_hash", "text", "text_hash", "context", "process_output"];

/// Where a plan's importance matrix comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calibration {
    /// llama.cpp's GGUF form or its `.dat`; without it, importance is computed on the text.
    pub imatrix: Option<PathBuf>,
    /// [`Importance::hash`] of the matrix that the plan was made with.
    pub imatrix_hash: Option<String>,
    /// The text that it was computed on, or is to be.
    pub text: Option<PathBuf>,
    /// BLAKE3 of that text, in hex.
    pub text_hash: Option<String>,
    /// How it is computed on the text.
    pub options: ImportanceOptions,
}

impl Calibration {
    /// The file that an importance matrix was read from or written to.
    pub fn of(importance: &Importance) -> Option<Self> {
        let path = importance.path.as_deref()?;
        Some(Self {
            imatrix: Some(std::path::absolute(path).unwrap_or_else(|_| path.to_owned())),
            imatrix_hash: Some(importance.hash.clone()),
            ..Self::default()
        })
    }

    /// The same with paths from the folder of the plan's file.
    pub(super) fn beside(mut self, plan: Option<&Path>) -> Self {
        if let Some(folder) = plan.and_then(Path::parent) {
            for path in [&mut self.imatrix, &mut self.text].into_iter().flatten() {
                *path = folder.join(&path);
            }
        }
        self
    }

    /// The section as TOML.
    pub(super) fn to_item(&self) -> Item {
        let mut table = Table::new();
        let mut set = |key: &str, value: Option<toml_edit::Value>| {
            if let Some(value) = value {
                table.insert(key, Item::Value(value));
            }
        };
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned().into());
        set("imatrix", path(&self.imatrix));
        set("imatrix_hash", self.imatrix_hash.clone().map(Into::into));
        set("text", path(&self.text));
        set("text_hash", self.text_hash.clone().map(Into::into));
        let context = self.options.context.and_then(|context| i64::try_from(context).ok());
        set("context", context.map(Into::into));
        set("process_output", self.options.process_output.then(|| true.into()));
        Item::Table(table)
    }

    /// Reads the importance matrix, or computes it on the text. What looks odd goes to `warnings`.
    ///
    /// # Errors
    /// A file that cannot be read, or a model that cannot be run here.
    pub fn load(
        &self,
        checkpoint: &Checkpoint,
        progress: &Progress,
        warnings: &mut Vec<String>,
    ) -> Result<Arc<Importance>> {
        self.load_on(checkpoint, &Device::default(), progress, warnings)
    }

    /// As [`Calibration::load`], the text read on a device.
    ///
    /// # Errors
    /// As there.
    pub fn load_on(
        &self,
        checkpoint: &Checkpoint,
        device: &Device,
        progress: &Progress,
        warnings: &mut Vec<String>,
    ) -> Result<Arc<Importance>> {
        let mut differs = |what: &str, was: &Option<String>, is: &str| {
            if was.as_ref().is_some_and(|was| was != is) {
                warnings.push(format!("The {what} is not the one that the plan was made with."));
            }
        };
        if let Some(path) = &self.imatrix {
            let importance = Importance::read(path)?;
            differs("importance matrix", &self.imatrix_hash, &importance.hash);
            return Ok(Arc::new(importance));
        }
        let Some(path) = &self.text else {
            return Err(Fault::new(Stage::Plan, "[calibration] names neither an importance matrix nor a text")
                .fix("add imatrix = \"…\"")
                .into());
        };
        let text = TextSource::read(path)?;
        differs("calibration text", &self.text_hash, &text.hash);
        let model = Model::load_on(checkpoint, device, progress)?;
        let tokenizer = Tokenizer::of_checkpoint(checkpoint)?;
        calibration::importance(checkpoint, &model, &tokenizer, &text, &self.options, progress).map(Arc::new)
    }
}

/// A number from 1, if the key is there; the answer to anything else is what is wrong with it.
pub(super) fn positive(table: &dyn TableLike, key: &str) -> std::result::Result<Option<usize>, String> {
    match table.get(key) {
        None => Ok(None),
        Some(item) => match item.as_integer().and_then(|number| usize::try_from(number).ok()) {
            Some(number) if number > 0 => Ok(Some(number)),
            _ => Err(format!("\"{key}\" is no whole number from 1")),
        },
    }
}

/// What an importance matrix lacks for a plan, one sentence each.
///
/// # Errors
/// A matrix made for another model, or one that lacks what a recipe cannot do without.
pub fn check_importance(
    resolved: &ResolvedPlan,
    checkpoint: &Checkpoint,
    importance: &Importance,
) -> Result<Vec<String>> {
    let mut warnings = importance.warnings();
    let mut missing = Vec::new();
    for decision in &resolved.decisions {
        let tensor = &checkpoint.tensors[decision.tensor_index];
        if decision.is_copy() || decision.method != Method::Imatrix {
            continue;
        }
        let is_known = importance.of(&tensor.name, tensor.row_len())?.is_some();
        // A lookup multiplies nothing, and the head is watched only on request.
        if is_known || matches!(tensor.role, Role::Embedding | Role::Head) {
            continue;
        }
        if resolved.recipe == Some(Recipe::Q2KS) && decision.dtype == Dtype::Q2K {
            return Err(Fault::new(
                Stage::Plan,
                "the importance matrix has no entry for it, without which Q2_K_S is garbage",
            )
            .at(&tensor.name)
            .fix("calibrate again, or choose the recipe Q2_K")
            .into());
        }
        missing.push(tensor.name.as_str());
    }
    if let [first, rest @ ..] = missing.as_slice() {
        warnings.push(match rest.len() {
            0 => format!("The importance matrix has no entry for {first}; its columns count alike."),
            others => format!(
                "The importance matrix has no entry for {} tensors, the first is {first}; their columns count alike.",
                others + 1
            ),
        });
    }
    Ok(warnings)
}
