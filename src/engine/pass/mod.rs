//! A plan executed over a checkpoint, tensor by tensor, ending with the target's file.
//!
//! The noun is [`PassReport`], the entry [`run`]. Rows are read, decoded, encoded on every core and
//! appended, a few million weights at a time, so that private memory does not grow with the model.
//! The same input and plan give the same bytes whatever the number of threads. Until the last byte
//! is written the output is a hidden file beside its place; an error or a cancel leaves nothing.

mod copy;
mod device;
mod folder;
mod mask;
mod prune;
mod reuse;
mod rtn;
mod sparse;
mod write;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

pub use copy::copy_candidate;
pub use mask::{MaskFacts, MaskPass, Masked, SIZE_STATEMENT, mask_formats, masked};
pub use reuse::Earlier;

use super::calibration::Importance;
use super::checkpoint::{self, Checkpoint};
use super::device::Device;
use super::error::{Error, Fault, Result, Stage};
use super::plan::{self, Decision, Plan, ResolvedPlan, Target};
use super::progress::{Phase, Progress, Unit};
use super::structure::means::InputMeans;
use super::units;
use device::Machine;

/// How a pass is run.
#[derive(Clone, Debug)]
pub struct PassOptions {
    /// Weights that are in memory at once, at most, in f32; twice this and the encoded bytes is the pass's working set.
    /// A few cores take fewer, so that a cancel is soon heard.
    pub chunk_weights: usize,
    /// What a plan with an importance matrix needs; see [`plan::Calibration::load`].
    pub importance: Option<Arc<Importance>>,
    /// Earlier candidates of the same checkpoint, the best to take tensors over from first.
    pub earlier: Vec<Earlier>,
    /// What a plan needs that makes up for the mean of what it takes away; see [`plan::Prune::means`].
    pub means: Option<Arc<InputMeans>>,
    /// Stores plain matrices of a Hugging Face folder by mask and values where they get smaller by it: see
    /// [`crate::target::sparse_bitmask`]. How large the result is, is then known only after the pass.
    pub compact_zeros: bool,
    /// Where tensors are encoded; the bytes are the same wherever that is, but for searches that the
    /// plan gives to the device.
    pub device: Device,
}

impl Default for PassOptions {
    fn default() -> Self {
        Self {
            chunk_weights: 4 << 20,
            importance: None,
            earlier: Vec::new(),
            means: None,
            compact_zeros: false,
            device: Device::default(),
        }
    }
}

/// What became of one tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorReport {
    /// Hugging Face's name.
    pub name: String,
    /// Stored as, before.
    pub from: String,
    /// Stored as, now; `removed` where it went with its layer.
    pub to: String,
    /// How its values were chosen: copy, rtn or imatrix.
    #[serde(default)]
    pub method: String,
    /// Number of weights before.
    pub weight_count: u64,
    /// Number of weights now; none in reports of versions that did not prune.
    #[serde(default)]
    pub new_weight_count: Option<u64>,
    /// Bytes before.
    pub old_bytes: u64,
    /// Bytes now.
    pub new_bytes: u64,
    /// Why this choice, in a sentence.
    pub reason: String,
}

impl TensorReport {
    /// Bits per weight, before and now.
    pub fn bits_per_weight(&self) -> (f64, f64) {
        (
            units::bits_per_weight(self.old_bytes, self.weight_count),
            units::bits_per_weight(self.new_bytes, self.new_weight_count.unwrap_or(self.weight_count)),
        )
    }
}

/// What a pass did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PassReport {
    /// The file or folder written.
    pub output: PathBuf,
    /// Every tensor, in the order of the file.
    pub tensors: Vec<TensorReport>,
    /// Number of weights before.
    pub weight_count: u64,
    /// Number of weights now; none in reports of versions that did not prune.
    #[serde(default)]
    pub new_weight_count: Option<u64>,
    /// Tensor bytes before.
    pub old_bytes: u64,
    /// Tensor bytes now.
    pub new_bytes: u64,
    /// Bytes of everything written.
    pub file_bytes: u64,
    /// Tensors that were taken over from earlier candidates, which decided them alike.
    #[serde(default)]
    pub reused_tensors: usize,
    /// The device that encoded beside the CPU, with what became of it.
    #[serde(default)]
    pub device: Option<String>,
    /// Tensors that it encoded.
    #[serde(default)]
    pub device_tensors: usize,
    /// Time from start to renamed file.
    pub elapsed_secs: f64,
    /// What the user should know, one sentence each.
    pub warnings: Vec<String>,
}

impl PassReport {
    /// Bits per weight of all tensors, before.
    pub fn old_bits_per_weight(&self) -> f64 {
        units::bits_per_weight(self.old_bytes, self.weight_count)
    }

    /// Bits per weight of all tensors, now.
    pub fn new_bits_per_weight(&self) -> f64 {
        units::bits_per_weight(self.new_bytes, self.new_weight_count.unwrap_or(self.weight_count))
    }
}

/// Executes `plan` over `checkpoint` and writes `output`: a GGUF file or a folder, as the plan's
/// target says.
///
/// # Errors
/// A plan made for other tensors, an output that is the checkpoint itself, an importance matrix that
/// is missing or another model's, a network that the target cannot name, a disk that is full or read-only, or cancel. Nothing half-written remains.
pub fn run(
    checkpoint: &Checkpoint,
    plan: &ResolvedPlan,
    output: &Path,
    options: &PassOptions,
    progress: &Progress,
) -> Result<PassReport> {
    let started = Instant::now();
    check_fit(checkpoint, plan)?;
    let mut warnings = plan.warnings.clone();
    if plan.has_importance {
        let importance = options.importance.as_deref().ok_or_else(|| {
            Fault::new(Stage::Pass, "the plan has an importance matrix, which is not loaded").fix("load it first")
        })?;
        let more = plan::check_importance(plan, checkpoint, importance)?;
        // Whoever resolved the plan may have looked already.
        warnings.extend(more.into_iter().filter(|warning| !plan.warnings.contains(warning)));
    }
    checkpoint::ensure_not_source(checkpoint, output)?;
    if let Some(folder) = output.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    let pruned = prune::apply(checkpoint, plan, options, progress)?;
    let (source, staying, options) = match &pruned {
        Some(pruned) => (&pruned.checkpoint, &pruned.plan, &pruned.options),
        None => (checkpoint, plan, options),
    };
    let importance = options.importance.as_deref().filter(|_| plan.has_importance);
    // What an earlier plan made of whole tensors is of no use to one that takes parts away.
    let earlier = if pruned.is_some() { &[] } else { options.earlier.as_slice() };
    let reuse = reuse::Reuse::new(source, staying, importance, earlier, progress, &mut warnings)?;
    let machine = Machine::new(&options.device, plan.search == plan::Search::Device);
    let job = write::Job {
        checkpoint: source,
        plan: staying,
        options,
        reuse: &reuse,
        machine: &machine,
        progress,
        not_finite: RefCell::default(),
    };
    progress.begin(Phase::Compressing, job.plan.old_bytes, Unit::Bytes);
    let mut sparse = None;
    let file_bytes = match plan.target {
        Target::Gguf => write::gguf(&job, output, &mut warnings)?,
        _ => {
            sparse = sparse::Sparse::count(&job)?;
            folder::folder(&job, sparse.as_ref(), output)?
        }
    };
    warnings.extend(warning_of_not_finite(&job.not_finite.take()));
    warnings.extend(machine.warning());
    let compact_bytes = |decision: &Decision| sparse.as_ref()?.bytes(job.tensor(decision), decision);
    let staying = job.plan.decisions.iter().map(|decision| (job.method(decision), compact_bytes(decision)));
    let mut staying = staying.collect::<Vec<_>>().into_iter();
    let mut new_bytes = plan.new_bytes;
    let mut report = |decision: &Decision| {
        let (method, compact) = match decision.is_removed() {
            true => ("removed", None),
            false => staying.next().unwrap_or(("copy", None)),
        };
        let own_bytes = compact.unwrap_or(decision.new_bytes);
        new_bytes = new_bytes.saturating_sub(decision.new_bytes).saturating_add(own_bytes);
        TensorReport {
            name: checkpoint.tensors[decision.tensor_index].name.clone(),
            from: decision.old_dtype.name().to_owned(),
            to: if decision.is_removed() { "removed" } else { decision.dtype.name() }.to_owned(),
            method: method.to_owned(),
            weight_count: decision.weight_count,
            new_weight_count: Some(decision.new_weight_count),
            old_bytes: decision.old_bytes,
            new_bytes: own_bytes,
            reason: decision.sentence(),
        }
    };
    let tensors = plan.decisions.iter().map(&mut report).collect();
    Ok(PassReport {
        output: output.to_owned(),
        tensors,
        weight_count: plan.weight_count,
        new_weight_count: Some(plan.new_weight_count),
        old_bytes: plan.old_bytes,
        new_bytes,
        file_bytes,
        reused_tensors: reuse.count(),
        device: machine.used(),
        device_tensors: machine.tensors(),
        elapsed_secs: started.elapsed().as_secs_f64(),
        warnings,
    })
}

/// What to say of tensors that hold weights which are no numbers.
fn warning_of_not_finite(tensors: &[(String, usize)]) -> Option<String> {
    let (worst, count) = tensors.iter().max_by_key(|(_, count)| *count)?;
    let others = match tensors.len() - 1 {
        0 => String::new(),
        1 => " and 1 tensor more".to_owned(),
        more => format!(" and {more} tensors more"),
    };
    Some(format!(
        "{worst} has {} weights that are NaN or infinite{others}: the checkpoint is damaged, and so is what was written \
         of it. `lapidary profile` counts them by tensor; fetch the checkpoint again.",
        units::count(*count as u64)
    ))
}

/// Bytes of everything that [`run`] would write for this plan, but for what its metadata tell of an
/// importance matrix; reads headers and the tokenizer only.
///
/// # Errors
/// A plan made for other tensors, a network that the target cannot name, a tokenizer that cannot be read.
pub fn file_bytes(checkpoint: &Checkpoint, plan: &ResolvedPlan) -> Result<u64> {
    check_fit(checkpoint, plan)?;
    match prune::outline(checkpoint, plan) {
        Some((checkpoint, plan)) => write::file_bytes(&checkpoint, &plan),
        None => write::file_bytes(checkpoint, plan),
    }
}

/// Bytes that the target's file has beside tensors and their padding, whatever formats are chosen: for
/// a GGUF without an importance matrix exactly, else at most.
///
/// # Errors
/// As [`file_bytes`], and a plan that cannot be resolved.
pub fn overhead_bytes(checkpoint: &Checkpoint, plan: &Plan) -> Result<u64> {
    /// By how much the entry of a tensor in a safetensors header may grow with its type and offsets.
    const MOST_GROWTH: u64 = 48;
    /// The same for a weight that becomes up to six parts, named in the configuration too.
    const MOST_PARTS_GROWTH: u64 = 2048;
    let resolved = plan::resolve(plan, checkpoint)?;
    let overhead = file_bytes(checkpoint, &resolved)?.saturating_sub(resolved.padded_bytes);
    Ok(match resolved.target {
        Target::Gguf if resolved.has_importance => overhead + write::MOST_IMATRIX_BYTES,
        Target::Gguf => overhead,
        Target::HuggingFace | Target::Lapidary => overhead + MOST_GROWTH * checkpoint.tensors.len() as u64,
        _ => overhead + MOST_PARTS_GROWTH * checkpoint.tensors.len() as u64,
    })
}

/// A plan was resolved for some checkpoint: it must be this one.
fn check_fit(checkpoint: &Checkpoint, plan: &ResolvedPlan) -> Result<()> {
    let fits = plan.decisions.len() == checkpoint.tensors.len()
        && plan.decisions.iter().all(|decision| {
            checkpoint
                .tensors
                .get(decision.tensor_index)
                .is_some_and(|tensor| tensor.dtype == decision.old_dtype && tensor.byte_count == decision.old_bytes)
        });
    if fits {
        Ok(())
    } else {
        Err(Fault::new(Stage::Pass, "the plan was resolved for another checkpoint")
            .fix("resolve it for this one")
            .file(&checkpoint.path)
            .into())
    }
}

#[cfg(test)]
mod prune_tests;

#[cfg(test)]
mod prune_oracle_tests;

#[cfg(test)]
mod sparse_tests;
