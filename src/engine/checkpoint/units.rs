//! Units of structure: what pruning takes away, and what is left of the network's shape.
//!
//! A unit can go alone only if it is internal to a block: a KV group with its query heads, query
//! heads as many from every group, a channel of an MLP, or a whole layer. Head width never changes,
//! since rotary positions depend on it. Indices are always those of the checkpoint before pruning.

use std::collections::{BTreeMap, BTreeSet};

use super::config::{LayerShape, ModelConfig};
use super::role::Role;

/// Units of one layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerUnits {
    /// KV heads, each with all query heads that use it.
    pub kv_groups: BTreeSet<usize>,
    /// Query heads; as many from every group that stays.
    pub heads: BTreeSet<usize>,
    /// Channels of the MLP.
    pub channels: BTreeSet<usize>,
}

impl LayerUnits {
    /// True if no unit is named.
    pub fn is_empty(&self) -> bool {
        self.kv_groups.is_empty() && self.heads.is_empty() && self.channels.is_empty()
    }
}

/// Units to take away, by their indices in the checkpoint as it is, counted from 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// Whole layers.
    pub layers: BTreeSet<usize>,
    /// Units of layers that stay.
    pub units: BTreeMap<usize, LayerUnits>,
}

/// A part of the removal that cannot be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IllegalRemoval {
    /// The layer whose units it is about; none where it is about the list of layers.
    pub layer: Option<usize>,
    /// The list it stands in: `layers`, `kv_groups`, `heads` or `channels`.
    pub list: &'static str,
    /// The index at fault, where one is.
    pub index: Option<usize>,
    /// What is wrong.
    pub cause: String,
    /// The nearest legal choice.
    pub remedy: String,
}

/// What stays of one layer, by original indices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptLayer {
    /// Its index before.
    pub source: usize,
    /// Query heads.
    pub heads: Vec<usize>,
    /// KV heads.
    pub kv_heads: Vec<usize>,
    /// MLP channels.
    pub channels: Vec<usize>,
}

/// A network with units taken out: its new shape, and which old units it is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Structure {
    /// The shape that is left.
    pub config: ModelConfig,
    /// The shape before.
    pub original: ModelConfig,
    /// What stays, layer by layer.
    pub layers: Vec<KeptLayer>,
}

impl Removal {
    /// True if nothing is taken away.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty() && self.units.values().all(LayerUnits::is_empty)
    }

    /// Units of `layer`, to add to.
    pub fn layer_mut(&mut self, layer: usize) -> &mut LayerUnits {
        self.units.entry(layer).or_default()
    }

    /// Takes away what `other` takes away too.
    pub fn add(&mut self, other: &Self) {
        self.layers.extend(&other.layers);
        for (&layer, units) in &other.units {
            let own = self.layer_mut(layer);
            own.kv_groups.extend(&units.kv_groups);
            own.heads.extend(&units.heads);
            own.channels.extend(&units.channels);
        }
    }

    /// Gives back what `other` names.
    pub fn subtract(&mut self, other: &Self) {
        self.layers.retain(|layer| !other.layers.contains(layer));
        for (layer, units) in &other.units {
            if let Some(own) = self.units.get_mut(layer) {
                own.kv_groups.retain(|unit| !units.kv_groups.contains(unit));
                own.heads.retain(|unit| !units.heads.contains(unit));
                own.channels.retain(|unit| !units.channels.contains(unit));
            }
        }
        self.units.retain(|_, units| !units.is_empty());
    }
}

fn illegal(layer: Option<usize>, list: &'static str, cause: String, remedy: impl Into<String>) -> IllegalRemoval {
    IllegalRemoval { layer, list, index: None, cause, remedy: remedy.into() }
}

/// Refuses the first index of a list that the network does not have.
fn check_range(
    layer: Option<usize>,
    list: &'static str,
    unit: &str,
    indices: &BTreeSet<usize>,
    count: usize,
) -> Result<(), IllegalRemoval> {
    let Some(&index) = indices.range(count..).next() else { return Ok(()) };
    let place = layer.map_or_else(|| "the checkpoint".to_owned(), |layer| format!("layer {layer}"));
    let last = count.saturating_sub(1);
    let mut fault = illegal(layer, list, format!("there is no {unit} {index}"), format!("{place} has 0 to {last}"));
    fault.index = Some(index);
    Err(fault)
}

/// What stays of a layer of `shape` without `units`.
fn kept(layer: usize, shape: &LayerShape, units: &LayerUnits) -> Result<KeptLayer, IllegalRemoval> {
    let here = Some(layer);
    check_range(here, "kv_groups", "KV group", &units.kv_groups, shape.kv_heads)?;
    check_range(here, "heads", "query head", &units.heads, shape.heads)?;
    check_range(here, "channels", "MLP channel", &units.channels, shape.mlp_channels)?;
    let group = shape.heads / shape.kv_heads;
    let members = |kv: usize| kv * group..(kv + 1) * group;
    let left = |kv: usize| members(kv).filter(|head| !units.heads.contains(head)).count();
    // A group without query heads is a group that goes.
    let kv_heads: Vec<usize> =
        (0..shape.kv_heads).filter(|kv| !units.kv_groups.contains(kv) && left(*kv) > 0).collect();
    let Some(&first) = kv_heads.first() else {
        let list = if units.kv_groups.is_empty() { "heads" } else { "kv_groups" };
        let cause = format!("all query heads of layer {layer} would go");
        return Err(illegal(
            here,
            list,
            cause,
            format!("keep one KV group, or take the layer with layers = [{layer}]"),
        ));
    };
    if let Some(&other) = kv_heads.iter().find(|&&kv| left(kv) != left(first)) {
        let (fewer, more) = if left(other) < left(first) { (other, first) } else { (first, other) };
        let cause = format!(
            "KV group {fewer} would keep {} query heads and group {more} {}, but every group must keep as many",
            left(fewer),
            left(more),
        );
        let remedy = format!(
            "take {} of the heads {} to {} too, or the whole group with kv_groups = [{fewer}]",
            left(more) - left(fewer),
            members(more).start,
            members(more).end - 1,
        );
        return Err(illegal(here, "heads", cause, remedy));
    }
    // Layers have tens of thousands of channels and this runs on every click: one walk, no look-ups.
    let mut channels: Vec<usize> = Vec::with_capacity(shape.mlp_channels - units.channels.len());
    let mut next = 0;
    for &gone in &units.channels {
        channels.extend(next..gone);
        next = gone + 1;
    }
    channels.extend(next..shape.mlp_channels);
    if channels.is_empty() {
        let cause = format!("all MLP channels of layer {layer} would go");
        let remedy = format!("keep one, or take the layer with layers = [{layer}]");
        return Err(illegal(here, "channels", cause, remedy));
    }
    let heads = kv_heads.iter().flat_map(|&kv| members(kv)).filter(|head| !units.heads.contains(head)).collect();
    Ok(KeptLayer { source: layer, heads, kv_heads, channels })
}

impl Structure {
    /// The network of `config` without what `removal` names.
    ///
    /// # Errors
    /// An index that the network does not have, no layer left, a layer without heads or channels,
    /// or query heads taken unevenly from the KV groups that stay.
    pub fn new(config: &ModelConfig, removal: &Removal) -> Result<Self, IllegalRemoval> {
        let count = config.layers.len();
        check_range(None, "layers", "layer", &removal.layers, count)?;
        if removal.layers.len() == count {
            let cause = "all layers would go".to_owned();
            return Err(illegal(None, "layers", cause, "keep the first and the last, which matter most"));
        }
        let known: BTreeSet<usize> = removal.units.keys().copied().collect();
        if let Err(fault) = check_range(None, "layers", "layer", &known, count) {
            return Err(IllegalRemoval { layer: fault.index, ..fault });
        }
        let none = LayerUnits::default();
        let layers = (0..count)
            .filter(|layer| !removal.layers.contains(layer))
            .map(|layer| kept(layer, &config.layers[layer], removal.units.get(&layer).unwrap_or(&none)))
            .collect::<Result<Vec<KeptLayer>, _>>()?;
        let shapes = layers.iter().map(|layer| LayerShape {
            heads: layer.heads.len(),
            kv_heads: layer.kv_heads.len(),
            mlp_channels: layer.channels.len(),
        });
        let config_left = ModelConfig { layers: shapes.collect(), ..config.clone() };
        Ok(Self { config: config_left, original: config.clone(), layers })
    }

    /// True if nothing was taken away.
    pub fn is_whole(&self) -> bool {
        self.config.layers == self.original.layers
    }

    /// The new index of an old layer, and what stays of it; none where it went.
    pub fn layer(&self, source: usize) -> Option<(usize, &KeptLayer)> {
        let index = self.layers.binary_search_by_key(&source, |layer| layer.source).ok()?;
        Some((index, &self.layers[index]))
    }
}

impl LayerShape {
    /// Weights of the seven linears of a layer of this shape, biases and norms not counted.
    pub fn linear_weights(&self, hidden: usize, head_dim: usize) -> u64 {
        let attention = 2 * (self.heads + self.kv_heads) * head_dim;
        (hidden * (attention + 3 * self.mlp_channels)) as u64
    }
}

impl ModelConfig {
    /// True if all layers have the same shape, which most programs want.
    pub fn is_uniform(&self) -> bool {
        self.layers.windows(2).all(|pair| pair[0] == pair[1])
    }

    /// Weights of the linears of all layers.
    pub fn layer_weights(&self) -> u64 {
        self.layers.iter().map(|layer| layer.linear_weights(self.hidden, self.head_dim)).sum()
    }

    /// Multiply-adds of one token at decoding, attention over earlier tokens not counted.
    pub fn multiplies_per_token(&self) -> u64 {
        self.layer_weights() + (self.vocab * self.hidden) as u64
    }
}

/// What a removal cuts out of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// Nothing.
    Whole,
    /// Rows of a matrix or elements of a bias, by query heads, KV heads or channels.
    Outputs(UnitKind),
    /// Columns of a matrix.
    Inputs(UnitKind),
}

/// Units that a tensor's rows or columns belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnitKind {
    Heads,
    KvHeads,
    Channels,
}

/// What a removal cuts out of the tensor of this Hugging Face name.
pub(super) fn cut_of(name: &str) -> Cut {
    let (stem, is_weight) = match (name.strip_suffix(".weight"), name.strip_suffix(".bias")) {
        (Some(stem), _) => (stem, true),
        (None, Some(stem)) => (stem, false),
        (None, None) => return Cut::Whole,
    };
    match Role::of_name(&format!("{stem}.weight")).0 {
        Role::Q => Cut::Outputs(UnitKind::Heads),
        Role::K | Role::V => Cut::Outputs(UnitKind::KvHeads),
        Role::Gate | Role::Up => Cut::Outputs(UnitKind::Channels),
        Role::O if is_weight => Cut::Inputs(UnitKind::Heads),
        Role::Down if is_weight => Cut::Inputs(UnitKind::Channels),
        _ => Cut::Whole,
    }
}

#[cfg(test)]
#[path = "units_tests.rs"]
mod tests;
