//! Taking tensors over from earlier candidates, so that a changed plan recomputes only what changed.
//!
//! A tensor is taken over where an earlier plan for the same checkpoint decides it alike: same type,
//! same method, same importance matrix. Rows come from the candidate in Hugging Face's order and go
//! through the same writer, so the file is byte for byte what encoding again would give. Before that
//! its first and last rows are encoded and compared: a candidate that another encoder, matrix or plan
//! made is noticed, told, and not used.
//!
//! Formats whose rows share figures of the whole tensor (packed folders) are encoded again.

use std::collections::HashMap;
use std::sync::Arc;

use super::rtn;
use crate::calibration::Importance;
use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::error::Result;
use crate::format::Encoding;
use crate::plan::{Decision, Method, ResolvedPlan, Search, is_alike};
use crate::progress::Progress;

/// Rows at each end of a tensor that are encoded again for comparison.
const PROOF_ROWS: usize = 8;

/// A candidate with what it was made by.
#[derive(Clone, Debug)]
pub struct Earlier {
    /// The candidate's files.
    pub candidate: Arc<Checkpoint>,
    /// Its plan, worked out for the checkpoint that is compressed now.
    pub plan: Arc<ResolvedPlan>,
    /// [`Importance::hash`] of the matrix that it was encoded with, if it was.
    pub importance: Option<String>,
}

/// Where rows of tensors are found already encoded.
#[derive(Debug, Default)]
pub(super) struct Reuse {
    /// By index in the checkpoint: the candidate and the tensor's index there.
    found: HashMap<usize, (Arc<Checkpoint>, usize)>,
}

/// A tensor of an earlier candidate.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    candidate: &'a Checkpoint,
    tensor: &'a TensorInfo,
}

impl Rows<'_> {
    /// Replaces `out` by the bytes of some rows.
    pub(super) fn read(&self, rows: std::ops::Range<usize>, out: &mut Vec<u8>) -> Result<()> {
        self.candidate.read_rows(self.tensor, rows, out)
    }
}

impl Reuse {
    /// What `plan` can take over; what looks right and is not goes to `warnings`.
    ///
    /// # Errors
    /// A checkpoint that cannot be read, or cancel; a candidate that cannot be read is not used.
    pub(super) fn new(
        checkpoint: &Checkpoint,
        plan: &ResolvedPlan,
        importance: Option<&Importance>,
        earlier: &[Earlier],
        progress: &Progress,
        warnings: &mut Vec<String>,
    ) -> Result<Self> {
        let mut reuse = Self::default();
        for one in earlier.iter().filter(|one| is_of_whole(&one.plan, plan)) {
            let by_name: HashMap<&str, usize> =
                one.candidate.tensors.iter().enumerate().map(|(at, tensor)| (tensor.name.as_str(), at)).collect();
            let mut differing = 0;
            for (decision, before) in plan.decisions.iter().zip(&one.plan.decisions) {
                let tensor = &checkpoint.tensors[decision.tensor_index];
                let is_known = reuse.found.contains_key(&decision.tensor_index);
                if is_known || !is_reusable(decision, before, importance, one) {
                    continue;
                }
                let Some(&at) = by_name.get(tensor.name.as_str()) else { continue };
                let known = &one.candidate.tensors[at];
                if known.dtype != decision.dtype || known.shape != tensor.shape {
                    continue;
                }
                progress.check()?;
                let rows = Rows { candidate: &one.candidate, tensor: known };
                if is_proven(checkpoint, tensor, decision, importance, rows)? {
                    reuse.found.insert(decision.tensor_index, (one.candidate.clone(), at));
                } else {
                    differing += 1;
                }
            }
            if differing > 0 {
                warnings.push(format!(
                    "{differing} tensors of {} are not what this plan makes of them, so they were encoded again.",
                    one.candidate.name
                ));
            }
        }
        Ok(reuse)
    }

    /// Number of tensors that are taken over.
    pub(super) fn count(&self) -> usize {
        self.found.len()
    }

    /// The rows of a tensor, where they are taken over.
    pub(super) fn rows(&self, decision: &Decision) -> Option<Rows<'_>> {
        let (candidate, at) = self.found.get(&decision.tensor_index)?;
        Some(Rows { candidate, tensor: candidate.tensors.get(*at)? })
    }
}

/// True if an earlier plan was for the same tensors, took nothing away, and left searches to the CPU: what a device
/// found would be taken over without its name.
fn is_of_whole(earlier: &ResolvedPlan, plan: &ResolvedPlan) -> bool {
    earlier.search == Search::Cpu && earlier.structure.is_none() && earlier.decisions.len() == plan.decisions.len()
}

/// True if both decisions give the same bytes by what is known of them. What is copied needs no help.
fn is_reusable(decision: &Decision, before: &Decision, importance: Option<&Importance>, earlier: &Earlier) -> bool {
    let is_weighted = matches!(decision.method, Method::Imatrix | Method::RtnMse);
    let has_same_importance = importance.map(|importance| &importance.hash) == earlier.importance.as_ref();
    is_alike(decision, before)
        && decision.tensor_index == before.tensor_index
        && !decision.is_copy()
        && !decision.dtype.is_scheme()
        && (!is_weighted || has_same_importance)
}

/// True if the tensor's first and last rows come out as they are in the candidate.
fn is_proven(
    checkpoint: &Checkpoint,
    tensor: &TensorInfo,
    decision: &Decision,
    importance: Option<&Importance>,
    rows: Rows<'_>,
) -> Result<bool> {
    let is_weighted = matches!(decision.method, Method::Imatrix | Method::RtnMse);
    let columns = match importance.filter(|_| is_weighted) {
        Some(importance) => importance.of(&tensor.name, tensor.row_len())?,
        None => None,
    };
    let count = tensor.row_count();
    let first = 0..count.min(PROOF_ROWS);
    let last = count.saturating_sub(PROOF_ROWS).max(first.end)..count;
    let (mut raw, mut encoded, mut known) = (Vec::new(), Vec::new(), Vec::new());
    for range in [first, last].into_iter().filter(|range| !range.is_empty()) {
        if rows.read(range.clone(), &mut known).is_err() {
            return Ok(false);
        }
        checkpoint.read_rows(tensor, range.clone(), &mut raw)?;
        let how = Encoding {
            importance: columns,
            scale_choice: decision.method.scale_choice(),
            first_row: range.start,
            ..Encoding::plain(tensor.row_len())
        };
        rtn::convert(&tensor.name, tensor.dtype, decision.dtype, &how, &raw, &mut encoded)?;
        if encoded != known {
            return Ok(false);
        }
    }
    Ok(true)
}
