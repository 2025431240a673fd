//! A plan that prunes, turned into one for the network that is left.
//!
//! The writers see a checkpoint whose tensors are parts of the stored ones and a plan for just those,
//! so that slicing streams as everything else does and any format can be combined with it.

use std::sync::Arc;

use super::PassOptions;
use crate::calibration::{Importance, InputMoments};
use crate::checkpoint::{Checkpoint, Structure};
use crate::error::{Fault, Result, Stage};
use crate::plan::{Choice, Decision, Method, ResolvedPlan, Why};
use crate::progress::Progress;

/// What the writers work on.
pub(super) struct Pruned {
    pub(super) checkpoint: Checkpoint,
    pub(super) plan: ResolvedPlan,
    pub(super) options: PassOptions,
}

/// The pass of the network that is left; none where the plan takes nothing away.
///
/// # Errors
/// A plan with compensation whose means are not loaded or belong to another model, or cancel.
pub(super) fn apply(
    checkpoint: &Checkpoint,
    plan: &ResolvedPlan,
    options: &PassOptions,
    progress: &Progress,
) -> Result<Option<Pruned>> {
    let Some(structure) = plan.structure.as_deref() else { return Ok(None) };
    let biases = match &options.means {
        Some(means) => means.biases(checkpoint, structure, progress)?,
        None if plan.added.is_empty() => Vec::new(),
        None => {
            let cause = "the plan makes up for what it takes away, but the mean inputs are not loaded";
            return Err(Fault::new(Stage::Pass, cause).fix("load the file that [prune] names as means").into());
        }
    };
    let importance = options.importance.as_deref().map(|all| Arc::new(importance_left(checkpoint, structure, all)));
    let options = PassOptions { importance, means: None, ..options.clone() };
    Ok(Some(with_biases(checkpoint, plan, structure, biases, options)))
}

/// The same for a look at sizes: added biases are zeros.
pub(super) fn outline(checkpoint: &Checkpoint, plan: &ResolvedPlan) -> Option<(Checkpoint, ResolvedPlan)> {
    let structure = plan.structure.as_deref()?;
    let Pruned { checkpoint, plan, .. } = with_biases(checkpoint, plan, structure, Vec::new(), PassOptions::default());
    Some((checkpoint, plan))
}

fn with_biases(
    checkpoint: &Checkpoint,
    plan: &ResolvedPlan,
    structure: &Structure,
    mut biases: Vec<(String, Vec<f32>)>,
    options: PassOptions,
) -> Pruned {
    for added in &plan.added {
        if biases.iter().all(|(name, _)| *name != added.name) {
            biases.push((added.name.clone(), vec![0.0; added.len]));
        }
    }
    let checkpoint = checkpoint.pruned(structure, biases);
    let staying = plan.decisions.iter().filter(|decision| !decision.is_removed());
    let decisions = checkpoint.tensors.iter().enumerate().zip(staying.map(Some).chain(std::iter::repeat(None)));
    let decisions = decisions
        .map(|((index, tensor), decision)| {
            let added = || plan.added.iter().find(|added| added.name == tensor.name);
            let dtype =
                decision.map(|decision| decision.dtype).or_else(|| Some(added()?.dtype)).unwrap_or(tensor.dtype);
            Decision {
                tensor_index: index,
                requested: decision.map_or(Choice::Keep, |decision| decision.requested),
                old_dtype: tensor.dtype,
                source_dtype: tensor.dtype,
                dtype,
                why: decision.map_or(Why::Untouched, |decision| decision.why),
                method: decision.map_or(Method::Rtn, |decision| decision.method),
                fell_back_from: decision.and_then(|decision| decision.fell_back_from),
                weight_count: tensor.weight_count(),
                new_weight_count: tensor.weight_count(),
                old_bytes: tensor.byte_count,
                new_bytes: decision.map_or_else(
                    || added().map_or(tensor.byte_count, crate::plan::AddedBias::bytes),
                    |decision| decision.new_bytes,
                ),
            }
        })
        .collect();
    let old_bytes = checkpoint.tensor_bytes();
    let plan = ResolvedPlan { decisions, old_bytes, structure: None, added: Vec::new(), ..plan.clone() };
    Pruned { checkpoint, plan, options }
}

/// The importance matrix of what is left: the same columns under the new names.
fn importance_left(checkpoint: &Checkpoint, structure: &Structure, all: &Importance) -> Importance {
    let mut tensors = std::collections::BTreeMap::new();
    for (tensor, left) in checkpoint.tensors.iter().zip(structure.tensors(&checkpoint.tensors)) {
        let (Some(left), Some(moments)) = (left, all.tensors.get(&tensor.name)) else { continue };
        let is_plain = moments.counts.len() == 1 && moments.sums.len() == tensor.row_len();
        let moments = match is_plain {
            true => InputMoments::new(structure.columns_left(tensor, &moments.sums), moments.counts.clone()),
            false => moments.clone(),
        };
        tensors.insert(left.name, moments);
    }
    Importance { tensors, ..all.clone() }
}
