//! What targets want of shapes: which can hold a pruned network, and which even one is nearest.
//!
//! llama.cpp's `llama` wants one number of heads and of channels for all layers, its `deci` takes one a
//! layer (`src/models/deci.cpp`). transformers' Llama wants even layers too, and a head count that
//! divides the hidden size (`configuration_llama.py`, `validate_architecture`), although it knows
//! `head_dim`; so do the programs that load what transformers loads.

use super::Target;
use crate::checkpoint::{LayerShape, LayerUnits, Removal, Structure};
use crate::units;

/// Why a target cannot hold a network, and what could be done.
pub(super) struct Refusal {
    pub(super) cause: String,
    pub(super) remedy: String,
}

/// An even network that a target can hold, near to an uneven one.
#[derive(Clone, Debug, PartialEq)]
pub struct EvenShape {
    /// Every layer's.
    pub shape: LayerShape,
    /// What is taken away to get there: nothing that was not to go.
    pub removal: Removal,
    /// Weights that stay although they were to go: what evenness costs.
    pub kept_weights: u64,
}

/// True if the target's loaders want even layers and a head count that divides the width.
pub fn wants_even(target: Target) -> bool {
    !matches!(target, Target::Gguf | Target::Lapidary)
}

/// True if the target's loaders read a network of this structure.
pub fn can_hold(target: Target, structure: &Structure) -> bool {
    let divides = |shape: &LayerShape| structure.config.hidden.is_multiple_of(shape.heads);
    !wants_even(target) || (structure.config.is_uniform() && structure.config.layers.iter().all(divides))
}

/// The even network that takes most away without touching what was to stay; none where the layers that stay were uneven before.
pub fn nearest_even(target: Target, structure: &Structure) -> Option<EvenShape> {
    let first = *structure.original.layers.get(structure.layers.first()?.source)?;
    if structure.layers.iter().any(|layer| structure.original.layers[layer.source] != first) {
        return None;
    }
    let most = |pick: fn(&LayerShape) -> usize| structure.config.layers.iter().map(pick).max();
    let kv_heads = most(|layer| layer.kv_heads)?;
    let per_group = most(|layer| layer.heads / layer.kv_heads)?;
    let channels = most(|layer| layer.mlp_channels)?;
    let is_legal = |heads: usize| !wants_even(target) || structure.config.hidden.is_multiple_of(heads);
    let counts = (kv_heads..=first.kv_heads)
        .flat_map(|kv| (per_group..=first.heads / first.kv_heads).map(move |group| (kv, group)))
        .filter(|(kv, group)| is_legal(kv * group));
    let shape = |(kv, group): (usize, usize)| LayerShape { heads: kv * group, kv_heads: kv, mlp_channels: channels };
    let weights = |shape: &LayerShape| shape.linear_weights(structure.config.hidden, structure.config.head_dim);
    let shape = counts.map(shape).min_by_key(weights)?;
    let kept = weights(&shape) * structure.layers.len() as u64;
    Some(EvenShape {
        shape,
        removal: evened(structure, &first, &shape),
        kept_weights: kept.saturating_sub(structure.config.layer_weights()),
    })
}

/// The removal that leaves `shape` in every layer: what goes, less as many as are too many, the first ones first.
fn evened(structure: &Structure, original: &LayerShape, shape: &LayerShape) -> Removal {
    let group = original.heads / original.kv_heads;
    let per_group = shape.heads / shape.kv_heads;
    /// The `count` of `0..all` that stay: those that do already and the first of the others.
    fn stay(already: &[usize], all: impl Iterator<Item = usize>, count: usize) -> Vec<usize> {
        let others = all.filter(|unit| !already.contains(unit));
        already.iter().copied().chain(others).take(count).collect()
    }
    let mut removal = Removal::default();
    let count = structure.original.layers.len();
    removal.layers = (0..count).filter(|&layer| structure.layer(layer).is_none()).collect();
    for layer in &structure.layers {
        let kv_heads = stay(&layer.kv_heads, 0..original.kv_heads, shape.kv_heads);
        let mut units = LayerUnits::default();
        for kv in 0..original.kv_heads {
            if !kv_heads.contains(&kv) {
                units.kv_groups.insert(kv);
                continue;
            }
            let members = kv * group..(kv + 1) * group;
            let own: Vec<usize> = layer.heads.iter().copied().filter(|head| members.contains(head)).collect();
            let heads = stay(&own, members.clone(), per_group);
            units.heads.extend(members.filter(|head| !heads.contains(head)));
        }
        let mut is_kept = vec![false; original.mlp_channels];
        layer.channels.iter().for_each(|&channel| is_kept[channel] = true);
        let mut missing = shape.mlp_channels.saturating_sub(layer.channels.len());
        for (channel, is_kept) in is_kept.into_iter().enumerate().filter(|(_, is_kept)| !is_kept) {
            debug_assert!(!is_kept);
            if missing > 0 {
                missing -= 1;
            } else {
                units.channels.insert(channel);
            }
        }
        if !units.is_empty() {
            removal.units.insert(layer.source, units);
        }
    }
    removal
}

/// Why `target` cannot hold the network, if it cannot.
pub(super) fn refusal(target: Target, structure: &Structure) -> Option<Refusal> {
    if can_hold(target, structure) {
        return None;
    }
    let config = &structure.config;
    let cause = if config.is_uniform() {
        let heads = config.layers.first().map_or(0, |layer| layer.heads);
        format!(
            "{heads} query heads do not divide the width {}, which loaders of {target} folders refuse",
            config.hidden
        )
    } else {
        format!("the layers would differ in shape, which loaders of {target} folders refuse")
    };
    let others = format!("or write target = \"{}\" or \"{}\"", Target::Gguf, Target::Lapidary);
    let remedy = match nearest_even(target, structure) {
        Some(EvenShape { shape, kept_weights, .. }) => format!(
            "the nearest even shape has {} query heads, {} KV heads and {} MLP channels in every layer and keeps {} \
             weights more; {others}",
            shape.heads,
            shape.kv_heads,
            shape.mlp_channels,
            units::count(kept_weights)
        ),
        None => others.trim_start_matches("or ").to_owned(),
    };
    Some(Refusal { cause, remedy })
}

/// What the user should know of a network that the target holds.
pub(super) fn warnings(target: Target, structure: &Structure) -> Vec<String> {
    if structure.config.is_uniform() {
        return Vec::new();
    }
    match target {
        Target::Gguf => vec![
            "The layers differ in shape, so the file is written as llama.cpp's architecture deci, which takes numbers of each \
             layer's own; programs that only know llama will not load it."
                .to_owned(),
        ],
        Target::Lapidary => {
            vec!["The layers differ in shape: only this program reads the folder. llama.cpp reads the GGUF target.".to_owned()]
        }
        _ => Vec::new(),
    }
}
