//! A checkpoint masked for study and written: what the command line and the window both do.
//!
//! The noun is [`Masked`], the entry [`masked`]. Quantized by a recipe, the values that stay are rounded
//! afterwards; SparseGPT can quantize within its own sweep instead. Otherwise weights keep the plain type
//! that most of them had, in which masked values are exact.

use std::borrow::Cow;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{PassOptions, PassReport, file_bytes, run};
use crate::checkpoint::{Checkpoint, ensure_not_source};
use crate::error::{Fault, Result, Stage};
use crate::format::{self, Dtype, Format};
use crate::plan::{Plan, Recipe, Target, resolve};
use crate::progress::Progress;
use crate::structure::study::{self, MaskOptions, MaskReport};

/// What must stand beside the size of a file without its zeros.
pub const SIZE_STATEMENT: &str =
    "The file is smaller on disk only: no memory and no time is saved, unless a runtime has a kernel for the pattern.";

/// What is masked and how it is written.
#[derive(Clone, Copy, Debug)]
pub struct MaskPass<'a> {
    /// The mask.
    pub mask: MaskOptions<'a>,
    /// A mixture that the masked weights are quantized by.
    pub recipe: Option<Recipe>,
    /// What is written; without a wish a Hugging Face folder, or one of compressed-tensors where the sweep
    /// quantizes.
    pub target: Option<Target>,
    /// Whether plain folders have their zeros left out: see [`PassOptions::compact_zeros`].
    pub compact_zeros: bool,
}

/// What a masked candidate is: to be told wherever its figures are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MaskFacts {
    /// The mask.
    #[serde(flatten)]
    pub mask: MaskReport,
    /// Bytes of the checkpoint's files.
    pub old_file_bytes: u64,
    /// Bytes of the result with every zero written.
    pub dense_file_bytes: u64,
    /// Bytes of the result.
    pub file_bytes: u64,
    /// True if zeros are left out of the file.
    pub is_compact: bool,
    /// [`SIZE_STATEMENT`] where the file is smaller by its zeros.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_statement: Option<Cow<'static, str>>,
}

impl MaskFacts {
    /// What must be told wherever figures of the candidate are.
    pub fn statements(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.mask.statement.as_ref()).chain(self.size_statement.as_deref())
    }
}

/// A masked checkpoint that was written.
#[derive(Clone, Debug)]
pub struct Masked {
    /// How the masked weights were stored.
    pub plan: Plan,
    /// What was masked.
    pub facts: MaskFacts,
    /// What the pass did.
    pub report: PassReport,
}

/// Formats that SparseGPT can quantize to in its sweep and that can then be written.
pub fn mask_formats() -> impl Iterator<Item = &'static str> {
    let formats = study::joint_formats().map(Format::id);
    formats.filter(|id| Target::CompressedTensors.allows(id))
}

/// Masks `checkpoint` and writes the result to `output`: a GGUF file or a folder, as the target says.
///
/// # Errors
/// As [`study::masked`] and [`run`]: a method that needs a text without one, a format that the sweep cannot
/// bring weights to or that the target cannot hold, an output that is the checkpoint itself, a full disk, or
/// cancel. Nothing half-written remains.
pub fn masked(checkpoint: &Checkpoint, options: &MaskPass<'_>, output: &Path, progress: &Progress) -> Result<Masked> {
    ensure_not_source(checkpoint, output)?;
    let is_quantized = options.mask.format.is_some();
    let target = options.target.unwrap_or(if is_quantized { Target::CompressedTensors } else { Target::HuggingFace });
    let format = options.mask.format.and_then(format::of_dtype);
    if let Some(format) = format.filter(|format| !target.allows(format.id())) {
        // Said before the sweep, which takes long.
        return Err(Fault::new(Stage::Pass, format!("the target {target} does not hold {}", format.id()))
            .fix("quantize to another format, such as int4_g128, for the target compressed-tensors")
            .into());
    }
    let (view, mask) = study::masked(checkpoint, &options.mask, progress)?;
    let mut plan = Plan::new(target, None);
    match (options.recipe, is_quantized) {
        (Some(recipe), _) => plan.set_recipe(Some(recipe)),
        // What was quantized stays as it is, and so does the rest.
        (None, true) => {}
        (None, false) => plan.set_default_format(Some(plain_format(checkpoint)))?,
    }
    let resolved = resolve(&plan, &view)?;
    let dense_file_bytes = file_bytes(&view, &resolved)?;
    let pass = PassOptions { compact_zeros: options.compact_zeros, ..PassOptions::default() };
    let report = run(&view, &resolved, output, &pass, progress)?;
    let is_compact = report.new_bytes < resolved.new_bytes;
    let facts = MaskFacts {
        mask,
        old_file_bytes: checkpoint.file_bytes(),
        dense_file_bytes,
        file_bytes: report.file_bytes,
        is_compact,
        size_statement: is_compact.then_some(Cow::Borrowed(SIZE_STATEMENT)),
    };
    Ok(Masked { plan, facts, report })
}

/// The plain type of most weights, in which masked values of plain weights are exact.
fn plain_format(checkpoint: &Checkpoint) -> &'static str {
    let weights = |dtype: Dtype| -> u64 {
        checkpoint.tensors.iter().filter(|tensor| tensor.dtype == dtype).map(|tensor| tensor.weight_count()).sum()
    };
    let types = [(Dtype::Bf16, "bf16"), (Dtype::F16, "f16"), (Dtype::F32, "f32")];
    types.into_iter().max_by_key(|(dtype, _)| weights(*dtype)).map_or("bf16", |found| found.1)
}
