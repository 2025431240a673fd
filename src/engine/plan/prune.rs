//! What a plan takes out of the network: units by their original index, and what that leaves.
//!
//! Every edit is checked against the checkpoint before the plan changes, so that a refused click
//! leaves it as it was. What a target's loaders want of shapes is in `shapes.rs`.

use std::borrow::Cow;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use toml_edit::Table;

use super::shapes;
use super::{Plan, Subject, Target};
use crate::checkpoint::{Checkpoint, LayerUnits, ModelConfig, Removal, Structure, TensorInfo};
use crate::error::{Fault, Result, Stage};
use crate::format::Dtype;
use crate::structure::means::InputMeans;

/// What is taken away, and what makes up for it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prune {
    /// The units.
    pub removal: Removal,
    /// A file with the mean inputs of `o` and `down`: their products with the columns that go are added
    /// as biases, so that the mean of every output stays (FLAP's compensation).
    pub means: Option<PathBuf>,
}

/// A bias that the result has and the checkpoint does not.
#[derive(Clone, Debug, PartialEq)]
pub struct AddedBias {
    /// Hugging Face's name in the result.
    pub name: String,
    /// The linear's layer in the result.
    pub layer: usize,
    /// Values.
    pub len: usize,
    /// How it is stored.
    pub dtype: Dtype,
}

impl AddedBias {
    /// Bytes in the result.
    pub fn bytes(&self) -> u64 {
        (self.len * self.dtype.block_bytes()) as u64
    }
}

/// A network that stays, with the checkpoint's tensors as far as they stay.
#[derive(Clone, Debug)]
pub(crate) struct Left {
    pub(crate) structure: Structure,
    /// Those that stay, in the checkpoint's order and under their new names.
    pub(crate) tensors: Vec<TensorInfo>,
    /// Their index among them, for every tensor of the checkpoint.
    pub(crate) places: Vec<Option<usize>>,
}

impl Left {
    pub(crate) fn new(structure: Structure, tensors: &[TensorInfo]) -> Self {
        let (mut left, mut places) = (Vec::new(), Vec::with_capacity(tensors.len()));
        for tensor in structure.tensors(tensors) {
            places.push(tensor.as_ref().map(|_| left.len()));
            left.extend(tensor);
        }
        Self { structure, tensors: left, places }
    }
}

impl Plan {
    /// What the plan takes out of the network.
    pub fn prune(&self) -> &Prune {
        &self.prune
    }

    /// Takes away exactly what `removal` names.
    ///
    /// # Errors
    /// What cannot be taken away, with the nearest legal choice; the plan is unchanged.
    pub fn set_removal(&mut self, checkpoint: &Checkpoint, removal: Removal) -> Result<()> {
        self.set_removal_for(Subject::of(checkpoint), removal)
    }

    /// Takes away what `units` names, beside what goes already.
    ///
    /// # Errors
    /// As [`Plan::set_removal`].
    pub fn remove_units(&mut self, checkpoint: &Checkpoint, units: &Removal) -> Result<()> {
        let mut removal = self.prune.removal.clone();
        removal.add(units);
        self.set_removal(checkpoint, removal)
    }

    /// Gives back what `units` names.
    ///
    /// # Errors
    /// As [`Plan::set_removal`]: what still goes may not be legal by itself.
    pub fn restore_units(&mut self, checkpoint: &Checkpoint, units: &Removal) -> Result<()> {
        let mut removal = self.prune.removal.clone();
        removal.subtract(units);
        self.set_removal(checkpoint, removal)
    }

    pub(super) fn set_removal_for(&mut self, subject: Subject<'_>, mut removal: Removal) -> Result<()> {
        removal.units.retain(|_, units| !units.is_empty());
        if !removal.is_empty() {
            let config = self.shape_of(subject)?;
            Structure::new(config, &removal)
                .map_err(|illegal| Fault::new(Stage::Plan, illegal.cause).fix(illegal.remedy))?;
        }
        let old = std::mem::replace(&mut self.prune.removal, removal);
        self.write_removal(&old);
        Ok(())
    }

    /// Sets or removes the file of mean inputs; see [`Prune::means`].
    pub fn set_means(&mut self, means: Option<PathBuf>) {
        self.prune.means = means;
        let removal = self.prune.removal.clone();
        self.write_removal(&removal);
        let Some(prune) = self.document.get_mut("prune").and_then(toml_edit::Item::as_table_like_mut) else { return };
        match &self.prune.means {
            Some(path) => super::edit::set_value(prune, "means", path.to_string_lossy().as_ref()),
            None => drop(prune.remove("means")),
        }
    }

    /// Reads the mean inputs that the plan names, if it names any.
    ///
    /// # Errors
    /// As [`InputMeans::read`].
    pub fn load_means(&self) -> Result<Option<Arc<InputMeans>>> {
        let is_needed = !self.prune.removal.is_empty();
        let path = self.prune.means.as_deref().filter(|_| is_needed);
        path.map(|path| InputMeans::read(path).map(Arc::new)).transpose()
    }

    fn shape_of<'s>(&self, subject: Subject<'s>) -> Result<&'s ModelConfig> {
        Ok(subject.config.ok_or_else(|| {
            let cause = "the checkpoint does not say how its network is built, so nothing can be taken out of it";
            self.fault_at(cause, prune_span).fix("add its config.json, or remove [prune]")
        })?)
    }

    /// The network that the plan leaves; none where it takes nothing away. Shapes that the target's
    /// loaders cannot read are not refused here.
    ///
    /// # Errors
    /// A plan made for another checkpoint, units that it does not have or that cannot go, with the line.
    pub fn structure(&self, checkpoint: &Checkpoint) -> Result<Option<Structure>> {
        self.structure_for(Subject::of(checkpoint))
    }

    /// The shape of the network that the plan leaves, which is the checkpoint's where it takes nothing away;
    /// none where the checkpoint does not say how it is built.
    ///
    /// # Errors
    /// As [`Plan::structure`].
    pub fn config_left<'c>(&self, checkpoint: &'c Checkpoint) -> Result<Option<Cow<'c, ModelConfig>>> {
        Ok(match self.structure(checkpoint)? {
            Some(structure) => Some(Cow::Owned(structure.config)),
            None => checkpoint.config.as_ref().map(Cow::Borrowed),
        })
    }

    fn structure_for(&self, subject: Subject<'_>) -> Result<Option<Structure>> {
        let removal = &self.prune.removal;
        if removal.is_empty() {
            return Ok(None);
        }
        if self.checkpoint.as_deref().is_some_and(|fingerprint| fingerprint != subject.fingerprint) {
            let cause = "the plan was made for another checkpoint, where these units may be others";
            let fault = self.fault_at(cause, |root| root.get("checkpoint")?.span());
            return Err(fault
                .fix(format!("open that checkpoint, remove [prune], or write checkpoint = \"{}\"", subject.fingerprint))
                .into());
        }
        let config = self.shape_of(subject)?;
        let structure = Structure::new(config, removal).map_err(|illegal| self.prune_fault(&illegal))?;
        Ok(Some(structure))
    }

    /// The network that the plan leaves, refused where the target's loaders cannot read it.
    pub(super) fn left_for(&self, subject: Subject<'_>, warnings: &mut Vec<String>) -> Result<Option<Left>> {
        let Some(structure) = self.structure_for(subject)? else { return Ok(None) };
        if let Some(refusal) = shapes::refusal(self.target, &structure) {
            let fault = self.fault_at(refusal.cause, prune_span);
            return Err(fault.fix(refusal.remedy).into());
        }
        warnings.extend(shapes::warnings(self.target, &structure));
        Ok(Some(Left::new(structure, subject.tensors)))
    }
}

/// Where `[prune]` begins.
fn prune_span(root: &Table) -> Option<Range<usize>> {
    root.get("prune")?.span().or_else(|| root.key("prune")?.span())
}

/// Biases that compensation adds to what stays, and those that the target's loaders then expect beside them.
pub(super) fn added_biases(plan: &Plan, left: &Left, dtype: Dtype) -> Vec<AddedBias> {
    if plan.prune.means.is_none() {
        return Vec::new();
    }
    let structure = &left.structure;
    let loses = |layer: usize, is_attention: bool| {
        let old = &structure.original.layers[structure.layers[layer].source];
        let new = &structure.config.layers[layer];
        if is_attention { new.heads < old.heads } else { new.mlp_channels < old.mlp_channels }
    };
    let layers = 0..structure.config.layers.len();
    // transformers knows biases of all linears of a kind in all layers, or of none.
    let is_all = !matches!(plan.target, Target::Gguf | Target::Lapidary);
    let mut added = Vec::new();
    for is_attention in [true, false] {
        if !layers.clone().any(|layer| loses(layer, is_attention)) {
            continue;
        }
        let (own, others): (&str, &[&str]) = if is_attention {
            ("self_attn.o_proj", &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"])
        } else {
            ("mlp.down_proj", &["mlp.gate_proj", "mlp.up_proj"])
        };
        for layer in layers.clone() {
            let stems = std::iter::once(own).filter(|_| is_all || loses(layer, is_attention));
            for stem in stems.chain(others.iter().copied().filter(|_| is_all)) {
                let name = format!("model.layers.{layer}.{stem}");
                let find = |kind: &str| left.tensors.iter().find(|tensor| tensor.name == format!("{name}.{kind}"));
                if let (None, Some(weight)) = (find("bias"), find("weight")) {
                    added.push(AddedBias { name: format!("{name}.bias"), layer, len: weight.row_count(), dtype });
                }
            }
        }
    }
    added
}

/// All KV groups, heads and channels of one layer as a removal, to build edits from.
pub fn units_of(layer: usize, units: LayerUnits) -> Removal {
    let mut removal = Removal::default();
    removal.units.insert(layer, units);
    removal
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::plan::Constraints;
    use crate::plan::budget::Limit;
    use crate::plan::constraints::MemoryLimit;

    #[test]
    fn limits_of_memory_count_the_cache_of_what_is_left() {
        let demo = Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo")).expect("opens");
        let config = demo.require_config().expect("a network");
        let limit = MemoryLimit { bytes: 1 << 30, context: 1000, cache: "f16" };
        let constraints = Constraints { max_memory: Some(limit), ..Constraints::default() };
        let cache = |plan: &Plan| match constraints.limits(plan.config_left(&demo).expect("fits").as_deref())[..] {
            [Limit::Memory { bytes, cache_bytes }] => {
                assert_eq!(bytes, 1 << 30);
                cache_bytes
            }
            ref other => panic!("one limit: {other:?}"),
        };
        let mut plan = Plan::new(Target::Lapidary, None);
        assert!(matches!(plan.config_left(&demo), Ok(Some(Cow::Borrowed(own))) if own == config));
        let whole = cache(&plan);
        let units = LayerUnits { kv_groups: [1].into(), ..LayerUnits::default() };
        plan.remove_units(&demo, &units_of(2, units)).expect("legal");
        // A key and a value of one head, in f16, for each token.
        assert_eq!(whole - cache(&plan), 2 * 2 * 1000 * config.head_dim as u64);
        plan.remove_units(&demo, &Removal { layers: [0].into(), ..Removal::default() }).expect("legal");
        let of_layer = 2 * 2 * 1000 * (config.layers[0].kv_heads * config.head_dim) as u64;
        assert_eq!(whole - cache(&plan), 2 * 2 * 1000 * config.head_dim as u64 + of_layer);
    }
}
