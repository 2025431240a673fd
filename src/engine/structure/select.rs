//! From scores to units to take away: a share of every layer, of every kind, or of all together.
//!
//! Ties go to the lower index, so that the same scores select the same units. What is selected is always
//! legal: a KV group and a multiple of channels stay in every layer, and query heads go evenly.

use super::{LayerScores, Metric, UnitScores};
use crate::checkpoint::{LayerUnits, ModelConfig, Removal};
use crate::error::{Fault, Result, Stage};

/// Of what the shares of a [`Take`] are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Share {
    /// Of each layer: every layer keeps the same shape.
    #[default]
    Layer,
    /// Of each kind over the whole network: layers differ.
    Kind,
    /// One ranking of groups and channels of all layers by score, with weights as their cost.
    All,
}

/// How much to take away.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Take {
    /// Of what the shares are.
    pub share: Share,
    /// Share of KV groups; with [`Share::All`] of the weights of all groups and channels.
    pub kv_groups: f64,
    /// Share of the query heads of every KV group that stays, rounded to whole heads.
    pub heads: f64,
    /// Share of MLP channels; with [`Share::All`] it goes with `kv_groups`.
    pub channels: f64,
    /// Number of layers.
    pub layers: usize,
}

/// Indices of the `count` lowest scores.
fn lowest(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)));
    order.truncate(count);
    order
}

/// How many of `count` channels stay when about `kept` should, in multiples of `multiple`.
fn rounded(kept: f64, count: usize, multiple: usize) -> usize {
    let multiple = multiple.clamp(1, count);
    let stay = (kept / multiple as f64).round() as usize * multiple;
    if stay >= count { count } else { stay.max(multiple) }
}

fn share_of(share: f64, count: usize) -> usize {
    ((share * count as f64).round() as usize).min(count.saturating_sub(1))
}

/// A unit in a ranking of several layers.
#[derive(Clone, Copy, Debug)]
struct Ranked {
    score: f64,
    cost: f64,
    layer: usize,
    unit: usize,
    is_group: bool,
}

/// The units to take away; `multiple` tells how many channels of a layer go together, by its index.
///
/// # Errors
/// Shares outside 0 to 1, scores of another checkpoint's shape, or one ranking of scores that are not on one scale.
pub fn select(
    config: &ModelConfig,
    scores: &UnitScores,
    take: &Take,
    multiple: &dyn Fn(usize) -> usize,
) -> Result<Removal> {
    check(config, scores, take)?;
    let mut removal = Removal::default();
    let whole: Vec<f64> = scores.layers.iter().map(|layer| layer.layer.unwrap_or_default()).collect();
    removal.layers.extend(lowest(&whole, take.layers.min(config.layers.len() - 1)));
    let staying: Vec<usize> = (0..config.layers.len()).filter(|layer| !removal.layers.contains(layer)).collect();
    match take.share {
        Share::Layer => {
            for &layer in &staying {
                let shape = &config.layers[layer];
                let own = &scores.layers[layer];
                let units = removal.layer_mut(layer);
                units.kv_groups.extend(lowest(&own.kv_groups, share_of(take.kv_groups, shape.kv_heads)));
                let kept = (1.0 - take.channels) * shape.mlp_channels as f64;
                let kept = rounded(kept, shape.mlp_channels, multiple(layer));
                units.channels.extend(lowest(&own.channels, shape.mlp_channels - kept));
            }
        }
        Share::Kind => {
            let ranked = ranking(config, scores, &staying, true);
            for (is_group, share) in [(true, take.kv_groups), (false, take.channels)] {
                let own: Vec<Ranked> = ranked.iter().filter(|unit| unit.is_group == is_group).copied().collect();
                take_lowest(config, scores, own, share, multiple, &mut removal);
            }
        }
        Share::All => {
            let ranked = ranking(config, scores, &staying, false);
            take_lowest(config, scores, ranked, take.kv_groups, multiple, &mut removal);
        }
    }
    for &layer in &staying {
        let shape = &config.layers[layer];
        let group = shape.heads / shape.kv_heads;
        let count = share_of(take.heads, group);
        let own = &scores.layers[layer].heads;
        let units = removal.layer_mut(layer);
        for kv in (0..shape.kv_heads).filter(|kv| !units.kv_groups.contains(kv)).collect::<Vec<usize>>() {
            let first = kv * group;
            units.heads.extend(lowest(&own[first..first + group], count).into_iter().map(|head| first + head));
        }
    }
    removal.units.retain(|_, units: &mut LayerUnits| !units.is_empty());
    Ok(removal)
}

fn check(config: &ModelConfig, scores: &UnitScores, take: &Take) -> Result<()> {
    let fault = |cause: String| Fault::new(Stage::Plan, cause);
    for (name, share) in [("KV groups", take.kv_groups), ("query heads", take.heads), ("channels", take.channels)] {
        if !(0.0..1.0).contains(&share) {
            return Err(fault(format!("a share of {share} of the {name} cannot go"))
                .fix("give a share from 0 to below 1")
                .into());
        }
    }
    let fits = |(own, shape): (&LayerScores, &crate::checkpoint::LayerShape)| {
        (own.heads.len(), own.kv_groups.len(), own.channels.len()) == (shape.heads, shape.kv_heads, shape.mlp_channels)
    };
    if scores.layers.len() != config.layers.len() || !scores.layers.iter().zip(&config.layers).all(fits) {
        return Err(fault("the scores are of another network".to_owned())
            .fix("score the units of this checkpoint")
            .into());
    }
    if take.layers > 0 && scores.layers.iter().any(|layer| layer.layer.is_none()) {
        let cause = format!("scores by {} do not rank layers", scores.metric);
        return Err(fault(cause).fix("use taylor, or name the layers").into());
    }
    let is_global = Metric::find(&scores.metric).is_some_and(Metric::is_global);
    if take.share == Share::All && !is_global {
        let cause = format!("scores by {} of heads and of channels cannot be compared", scores.metric);
        return Err(fault(cause).fix("use flap or taylor, or take a share of each kind").into());
    }
    Ok(())
}

/// All groups and channels of the layers that stay, lowest first. Scores that are not on one scale are
/// divided by their layer's L2 norm first (Michel et al., 2019).
fn ranking(config: &ModelConfig, scores: &UnitScores, staying: &[usize], is_by_kind: bool) -> Vec<Ranked> {
    let is_global = Metric::find(&scores.metric).is_some_and(Metric::is_global);
    let norm = |values: &[f64]| match is_by_kind && !is_global {
        // What went in an earlier step of a schedule is below everything.
        true => {
            let finite = values.iter().filter(|value| value.is_finite());
            finite.map(|value| value * value).sum::<f64>().sqrt().max(f64::MIN_POSITIVE)
        }
        false => 1.0,
    };
    let mut ranked = Vec::new();
    for &layer in staying {
        let (shape, own) = (&config.layers[layer], &scores.layers[layer]);
        let group = shape.heads / shape.kv_heads;
        let costs = [(2 * group + 2) as f64 * config.head_dim as f64, 3.0];
        for (is_group, values, cost) in [(true, &own.kv_groups, costs[0]), (false, &own.channels, costs[1])] {
            let scale = norm(values);
            let unit = |(unit, &score): (usize, &f64)| Ranked { score: score / scale, cost, layer, unit, is_group };
            ranked.extend(values.iter().enumerate().map(unit));
        }
    }
    let place = |unit: &Ranked| (unit.layer, !unit.is_group, unit.unit);
    ranked.sort_by(|a, b| a.score.total_cmp(&b.score).then_with(|| place(a).cmp(&place(b))));
    ranked
}

/// Takes the lowest of a ranking whose cost comes nearest to `share` of all, then rounds channels layer by layer.
fn take_lowest(
    config: &ModelConfig,
    scores: &UnitScores,
    ranked: Vec<Ranked>,
    share: f64,
    multiple: &dyn Fn(usize) -> usize,
    removal: &mut Removal,
) {
    let wanted = share * ranked.iter().map(|unit| unit.cost).sum::<f64>();
    let mut spent = 0.0;
    let mut lost_channels: Vec<Option<usize>> = vec![None; config.layers.len()];
    for unit in ranked {
        if !unit.is_group {
            lost_channels[unit.layer].get_or_insert(0);
        }
        // Nearest: half of the next unit may go beyond.
        if spent + unit.cost / 2.0 > wanted {
            continue;
        }
        let shape = &config.layers[unit.layer];
        if unit.is_group {
            let groups = &mut removal.layer_mut(unit.layer).kv_groups;
            if groups.len() + 1 < shape.kv_heads {
                groups.insert(unit.unit);
                spent += unit.cost;
            }
        } else if let Some(lost) = &mut lost_channels[unit.layer]
            && *lost + 1 < shape.mlp_channels
        {
            *lost += 1;
            spent += unit.cost;
        }
    }
    for (layer, lost) in lost_channels.into_iter().enumerate() {
        let Some(lost) = lost else { continue };
        let count = config.layers[layer].mlp_channels;
        let kept = rounded((count - lost) as f64, count, multiple(layer));
        let own = lowest(&scores.layers[layer].channels, count - kept);
        removal.layer_mut(layer).channels.extend(own);
    }
}
