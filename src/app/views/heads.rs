//! The heads view: layers by heads in the frames of their KV groups, a score to colour them by, clicks and
//! boxes that take units away, and what that leaves.

use std::sync::Arc;

use eframe::egui::{DragValue, ScrollArea, Ui};

use super::common::{caption_ui, combo_ui, is_same, no_document_ui};
use super::heads_steps::{self, steps_ui};
use crate::app::context::Cx;
use crate::app::plots::head_map::{Head, HeadMap, LayerHeads, Pick, head_map_ui, height_for};
use crate::app::theme::space;
use crate::app::widgets::{
    KeyValue, Level, Notice, card_ui, key_values_ui, notice_ui, primary_button_ui, secondary_button_ui,
    section_with_ui, segments_ui, tag_ui,
};
use crate::engine::checkpoint::{LayerUnits, ModelConfig, Removal, Structure};
use crate::engine::plan::{ResolvedPlan, Target, nearest_even, units_of};
use crate::engine::sensitivity::UnitTable;
use crate::engine::structure::{Metric, Share, Take, UnitScores};
use crate::engine::units;
use crate::workbench::{Command, Document, JobKind, UnitEdit};

/// What a click is about.
const UNITS: [&str; 2] = ["KV groups", "Query heads"];

/// What shares are of.
const SHARES: [(&str, Share); 3] =
    [("each layer", Share::Layer), ("each kind", Share::Kind), ("one ranking", Share::All)];

/// What the view remembers between frames.
pub struct Memory {
    pub(super) metric: Metric,
    /// A table of measured units that lies over the scores.
    over: Option<String>,
    unit: usize,
    share: usize,
    groups: f64,
    heads: f64,
    channels: f64,
    layers: usize,
    pub(super) steps: heads_steps::Memory,
    shaped: Option<Shaped>,
    map: HeadMap,
}

/// What the map was made of.
struct Shaped {
    /// The plan worked out, which is another one after every edit; none where it cannot be.
    resolved: Option<Arc<ResolvedPlan>>,
    removal: Removal,
    scores: Option<Arc<UnitScores>>,
    over: Option<Arc<UnitTable>>,
    fingerprint: String,
    /// What is left.
    structure: Option<Structure>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            metric: Metric::Flap,
            over: None,
            unit: 0,
            share: 0,
            groups: 0.25,
            heads: 0.0,
            channels: 0.25,
            layers: 0,
            steps: heads_steps::Memory::default(),
            shaped: None,
            map: HeadMap::default(),
        }
    }
}

/// Paints the view.
pub fn heads_ui(ui: &mut Ui, cx: &mut Cx<'_>) {
    let bench = cx.bench;
    let Some(document) = &bench.state().document else {
        no_document_ui(ui, cx, "Open a model to take heads, channels and layers out of it");
        return;
    };
    let Some(config) = &document.checkpoint.config else {
        caption_ui(ui, "This checkpoint does not say how its network is built, so nothing can be taken out of it");
        return;
    };
    let mut memory = std::mem::take(&mut cx.memory.heads);
    memory.update(document, config);
    ScrollArea::vertical().id_salt("heads").auto_shrink(false).show(ui, |ui| {
        ui.spacing_mut().item_spacing.y = space::S;
        toolbar_ui(ui, cx, document, &mut memory);
        if !cx.is_presenting() {
            selection_ui(ui, cx, document, &mut memory);
            steps_ui(ui, cx, document, &mut memory);
        }
        map_ui(ui, cx, document, config, &memory);
        if let Some(structure) = memory.shaped.as_ref().and_then(|shaped| shaped.structure.as_ref()) {
            outcome_ui(ui, cx, document, structure);
        }
    });
    cx.memory.heads = memory;
}

impl Memory {
    /// What the fields above the map ask to take.
    pub(super) fn take(&self) -> Take {
        let share = SHARES[self.share].1;
        Take { share, kv_groups: self.groups, heads: self.heads, channels: self.channels, layers: self.layers }
    }

    /// Shapes the map anew where scores or plan have changed.
    fn update(&mut self, document: &Document, config: &ModelConfig) {
        let removal = &document.plan().prune().removal;
        if self.over.as_ref().is_some_and(|over| !document.units.contains_key(over)) {
            self.over = None;
        }
        let base = document.unit_scores.get(self.metric.name());
        let over = self.over.as_ref().and_then(|over| document.units.get(over));
        let resolved = document.resolved.as_ref().ok();
        let is_current = self.shaped.as_ref().is_some_and(|shaped| {
            let is_same_plan = match resolved {
                Some(_) => is_same(shaped.resolved.as_ref(), resolved),
                None => shaped.resolved.is_none() && shaped.removal == *removal,
            };
            is_same_plan
                && is_same(shaped.scores.as_ref(), base)
                && is_same(shaped.over.as_ref(), over)
                && shaped.fingerprint == document.checkpoint.fingerprint
        });
        if !is_current {
            let scores = document.scores_of(self.metric, self.over.as_deref());
            self.map = map_of(config, removal, scores.as_deref());
            self.map.attention = document.attention.clone();
            self.shaped = Some(Shaped {
                resolved: resolved.cloned(),
                structure: Structure::new(config, removal).ok(),
                removal: removal.clone(),
                scores: base.cloned(),
                over: over.cloned(),
                fingerprint: document.checkpoint.fingerprint.clone(),
            });
        }
    }
}

/// The map of a network, what goes of it and how its heads are scored.
pub(super) fn map_of(config: &ModelConfig, removal: &Removal, scores: Option<&UnitScores>) -> HeadMap {
    let scores = scores.filter(|scores| scores.layers.len() == config.layers.len());
    let mut sorted: Vec<f64> =
        scores.iter().flat_map(|scores| &scores.layers).flat_map(|layer| layer.heads.iter().copied()).collect();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1).max(1) as f32;
    let rank = |score: f64| sorted.partition_point(|other| *other < score) as f32 / last;
    let none = LayerUnits::default();
    let layers = config.layers.iter().enumerate().map(|(index, shape)| {
        let units = removal.units.get(&index).unwrap_or(&none);
        let own = scores.map(|scores| &scores.layers[index]);
        let group = shape.heads / shape.kv_heads;
        let head = |head: usize| {
            let score = own.and_then(|own| Some((*own.heads.get(head)?, own.head_stderr.get(head).copied())));
            let is_gone = units.heads.contains(&head) || units.kv_groups.contains(&(head / group));
            Head { score, rank: score.map_or(0.0, |(score, _)| rank(score)), is_gone }
        };
        let left = shape.mlp_channels.saturating_sub(units.channels.len());
        LayerHeads {
            heads: (0..shape.heads).map(head).collect(),
            group,
            channels_left: left as f32 / shape.mlp_channels.max(1) as f32,
            is_gone: removal.layers.contains(&index),
        }
    });
    let metric = scores.map_or_else(String::new, |scores| scores.metric.clone());
    HeadMap { metric, layers: layers.collect(), attention: None }
}

fn toolbar_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, memory: &mut Memory) {
    ui.horizontal_wrapped(|ui| {
        let chosen = combo_ui(ui, "Score of units", memory.metric.name(), 120.0, |ui| {
            let mut chosen = None;
            for metric in Metric::ALL {
                let label = ui.selectable_label(metric == memory.metric, metric.name());
                if label.on_hover_text(metric.description()).clicked() {
                    chosen = Some(metric);
                }
            }
            chosen
        });
        memory.metric = chosen.unwrap_or(memory.metric);
        let scores = document.unit_scores.get(memory.metric.name());
        over_ui(ui, document, memory);
        if let Some(scores) = document.scores_of(memory.metric, memory.over.as_deref()) {
            tag_ui(ui, scores.label.name()).on_hover_text(memory.metric.description());
        }
        if cx.is_presenting() {
            return;
        }
        let is_running = cx.bench.jobs().any(|job| job.kind == JobKind::ScoreUnits);
        let has_text = document.calibration_text.is_some() || document.text.is_some();
        let reason = match (is_running, memory.metric.needs_sample() && !has_text) {
            (true, _) => Some("Already scoring"),
            (false, true) => Some("This score needs a text: choose one first"),
            (false, false) => document.cannot_run(),
        };
        let text = "Score units";
        let is_enabled = reason.is_none();
        let button = match scores {
            None => primary_button_ui(ui, text, is_enabled),
            Some(_) => secondary_button_ui(ui, text, is_enabled),
        };
        let button = match reason {
            Some(reason) => button.on_disabled_hover_text(reason),
            None => button.on_hover_text("One look at the calibration text for all layers together"),
        };
        if button.clicked() {
            cx.send(Command::ScoreUnits(memory.metric));
        }
        ui.add_space(space::M);
        segments_ui(ui, "Click takes", &UNITS, &mut memory.unit);
    });
}

/// Which measured layers, heads or groups lie over the scores.
fn over_ui(ui: &mut Ui, document: &Document, memory: &mut Memory) {
    if document.units.is_empty() {
        return;
    }
    let shown = memory.over.as_deref().unwrap_or("nothing over it").to_owned();
    let chosen = combo_ui(ui, "Measured units over the score", &shown, 150.0, |ui| {
        let mut chosen = None;
        let names = std::iter::once(None).chain(document.units.keys().map(Some));
        for name in names {
            let text = name.map_or("nothing over it", String::as_str);
            if ui.selectable_label(memory.over.as_ref() == name, text).clicked() {
                chosen = Some(name.cloned());
            }
        }
        chosen
    });
    if let Some(chosen) = chosen {
        memory.over = chosen;
    }
}

/// Shares to take by score.
fn selection_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, memory: &mut Memory) {
    ui.horizontal_wrapped(|ui| {
        let share = |ui: &mut Ui, value: &mut f64, name: &str| {
            let mut percent = *value * 100.0;
            let field = DragValue::new(&mut percent).range(0.0..=95.0).speed(1.0).max_decimals(1).suffix(" %");
            if ui.add(field).accessible_name(format!("Share of {name}")).changed() {
                *value = percent / 100.0;
            }
            caption_ui(ui, name);
        };
        caption_ui(ui, "Take");
        let is_one = SHARES[memory.share].1 == Share::All;
        share(ui, &mut memory.groups, if is_one { "weights" } else { "KV groups" });
        if !is_one {
            share(ui, &mut memory.channels, "channels");
        }
        share(ui, &mut memory.heads, "heads of each group");
        layers_ui(ui, document, memory);
        caption_ui(ui, "of");
        let names = SHARES.map(|share| share.0);
        segments_ui(ui, "Shares are of", &names, &mut memory.share);
        let is_scored = document.unit_scores.contains_key(memory.metric.name());
        let button =
            secondary_button_ui(ui, "Take the lowest", is_scored).on_disabled_hover_text("Score the units first");
        if button.clicked() {
            let over = memory.over.clone();
            let what = format!("take the lowest by {}", over.as_deref().unwrap_or(memory.metric.name()));
            let edit = UnitEdit::Lowest { metric: memory.metric, over, take: memory.take() };
            cx.send(Command::EditUnits { edit, what });
        }
        let is_pruned = !document.plan().prune().removal.is_empty();
        if secondary_button_ui(ui, "Give all back", is_pruned).clicked() {
            let what = "give all units back".to_owned();
            cx.send(Command::EditUnits { edit: UnitEdit::Exactly(Removal::default()), what });
        }
    });
}

/// How many layers to take, where the scores rank layers.
fn layers_ui(ui: &mut Ui, document: &Document, memory: &mut Memory) {
    let scores = document.scores_of(memory.metric, memory.over.as_deref());
    let ranks = scores.is_some_and(|scores| scores.layers.iter().all(|layer| layer.layer.is_some()));
    if !ranks {
        memory.layers = 0;
    }
    let most = document.checkpoint.config.as_ref().map_or(0, |config| config.layers.len().saturating_sub(1));
    let field = DragValue::new(&mut memory.layers).range(0..=most).speed(0.1);
    ui.add_enabled(ranks, field)
        .accessible_name("Layers to take")
        .on_disabled_hover_text("Scores that rank layers are needed: taylor, say, or measured layers over it");
    caption_ui(ui, "layers");
}

fn map_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, config: &ModelConfig, memory: &Memory) {
    card_ui(ui, |ui| {
        section_with_ui(ui, "Heads and channels by layer", |ui| {
            if memory.map.metric.is_empty() {
                caption_ui(ui, "not scored yet");
            } else {
                caption_ui(ui, format!("coloured by rank of {}, quiet is low", memory.map.metric));
            }
        });
        let is_editable = !cx.is_presenting();
        let height = height_for(memory.map.layers.len());
        let output = head_map_ui(ui, &memory.map, height, memory.unit == 1, is_editable);
        let removal = &document.plan().prune().removal;
        if let Some(pick) = output.clicked {
            let (edit, what) = edit_of(config, removal, &memory.map, pick);
            cx.send(Command::EditUnits { edit, what });
        } else if !output.boxed.is_empty() {
            let (edit, what) = boxed_edit(&memory.map, &output.boxed);
            cx.send(Command::EditUnits { edit, what });
        }
        if is_editable {
            caption_ui(
                ui,
                "Click or drag a box to take units away or give them back; a layer's name is the whole layer",
            );
        }
    });
}

fn groups_of(list: &[(usize, usize)]) -> Removal {
    let mut removal = Removal::default();
    for &(layer, group) in list {
        removal.layer_mut(layer).kv_groups.insert(group);
    }
    removal
}

/// All groups of a box go; where all of them go already, they stay.
fn boxed_edit(map: &HeadMap, boxed: &[(usize, usize)]) -> (UnitEdit, String) {
    let is_gone = |&(layer, group): &(usize, usize)| {
        let own = &map.layers[layer];
        own.heads[group * own.group..(group + 1) * own.group].iter().all(|head| head.is_gone)
    };
    let count = boxed.len();
    if boxed.iter().all(is_gone) {
        (UnitEdit::GiveBack(groups_of(boxed)), format!("give {count} KV groups back"))
    } else {
        (UnitEdit::TakeAway(groups_of(boxed)), format!("take {count} KV groups away"))
    }
}

/// What a click does: takes away what stays, gives back what goes.
fn edit_of(config: &ModelConfig, removal: &Removal, map: &HeadMap, pick: Pick) -> (UnitEdit, String) {
    match pick {
        Pick::Layer(layer) => {
            let own = Removal { layers: [layer].into(), ..Removal::default() };
            match removal.layers.contains(&layer) {
                true => (UnitEdit::GiveBack(own), format!("give layer {layer} back")),
                false => (UnitEdit::TakeAway(own), format!("take layer {layer} away")),
            }
        }
        Pick::Group(layer, group) => {
            let own = groups_of(&[(layer, group)]);
            let is_gone = removal.units.get(&layer).is_some_and(|units| units.kv_groups.contains(&group));
            match is_gone {
                true => (UnitEdit::GiveBack(own), format!("give KV group {group} of layer {layer} back")),
                false => (UnitEdit::TakeAway(own), format!("take KV group {group} of layer {layer} away")),
            }
        }
        Pick::Head(layer, head) => {
            let shape = &config.layers[layer];
            let own = units_of(
                layer,
                LayerUnits {
                    heads: even_heads(shape.heads / shape.kv_heads, map, layer, head),
                    ..LayerUnits::default()
                },
            );
            match map.layers[layer].heads[head].is_gone {
                true => (UnitEdit::GiveBack(own), format!("give head {head} of layer {layer} and its like back")),
                false => (UnitEdit::TakeAway(own), format!("take head {head} of layer {layer} and its like away")),
            }
        }
    }
}

/// A head and one of every other group that stays, so that groups stay alike: the lowest where they go, the
/// highest of those that went where they come back.
fn even_heads(group: usize, map: &HeadMap, layer: usize, head: usize) -> std::collections::BTreeSet<usize> {
    let heads = &map.layers[layer].heads;
    let goes = heads[head].is_gone;
    let mut found = std::collections::BTreeSet::from([head]);
    for first in (0..heads.len()).step_by(group) {
        let members = first..first + group;
        let is_whole_gone = heads[members.clone()].iter().all(|head| head.is_gone);
        if members.contains(&head) || (is_whole_gone && !goes) {
            continue;
        }
        let like = members.filter(|&other| heads[other].is_gone == goes);
        let rank = |&other: &usize| heads[other].score.map_or((other - first) as f64, |score| score.0);
        let chosen = match goes {
            true => like.max_by(|a, b| rank(a).total_cmp(&rank(b))),
            false => like.min_by(|a, b| rank(a).total_cmp(&rank(b))),
        };
        found.extend(chosen);
    }
    found
}

/// What is left, and what the target says of it.
fn outcome_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, structure: &Structure) {
    card_ui(ui, |ui| {
        section_with_ui(ui, "What is left", |ui| {
            tag_ui(ui, "predicted");
        });
        let (old, new) = (&structure.original, &structure.config);
        let share = |new: u64, old: u64| format!("{:.1} %", 100.0 * new as f64 / old.max(1) as f64);
        let weights = format!("{} of {}", units::count(new.layer_weights()), units::count(old.layer_weights()));
        let bytes = |config: &ModelConfig| config.kv_bytes_per_token();
        let mut lines = vec![
            KeyValue::new("layers", format!("{} of {}", new.layers.len(), old.layers.len()), ""),
            KeyValue::new("weights of layers", weights, "").hint("Linears only; embeddings and norms stay"),
            KeyValue::new("share of them", share(new.layer_weights(), old.layer_weights()), ""),
            KeyValue::new(
                "multiply-adds of a token",
                share(new.multiplies_per_token(), old.multiplies_per_token()),
                "",
            )
            .hint("Head included, attention over earlier tokens not; decoding time goes with the bytes read"),
            KeyValue::new("KV cache of a token", units::bytes(bytes(new)), "")
                .hint("In f32. Only KV groups and layers make it smaller, query heads do not"),
        ];
        if let Ok(resolved) = &document.resolved {
            let text = format!("{} of {}", units::bytes(resolved.new_bytes), units::bytes(resolved.old_bytes));
            lines.push(KeyValue::new("tensors with the plan's formats", text, ""));
        }
        key_values_ui(ui, &lines);
        legality_ui(ui, cx, document, structure);
    });
}

fn legality_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, structure: &Structure) {
    let target = document.plan().target();
    if removal_is_empty(document) {
        return;
    }
    match &document.resolved {
        Err(err) => {
            let even = nearest_even(target, structure).filter(|_| !cx.is_presenting());
            let text = err.to_string();
            let notice = Notice {
                level: Level::Error,
                text: &text,
                detail: "",
                action: even.as_ref().map(|_| "Make the layers even"),
            };
            if notice_ui(ui, &notice)
                && let Some(even) = even
            {
                let what = "make the layers even".to_owned();
                cx.send(Command::EditUnits { edit: UnitEdit::Exactly(even.removal), what });
            }
        }
        Ok(_) if !structure.config.is_uniform() => {
            let text = match target {
                Target::Gguf => "The layers differ: written as llama.cpp's architecture deci.",
                _ => "The layers differ: only this program reads the folder.",
            };
            notice_ui(ui, &Notice { level: Level::Info, text, detail: "", action: None });
        }
        Ok(_) => {}
    }
}

fn removal_is_empty(document: &Document) -> bool {
    document.plan().prune().removal.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::checkpoint::Checkpoint;

    fn demo() -> Checkpoint {
        Checkpoint::open(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo"))).expect("opens")
    }

    #[test]
    fn a_head_goes_with_one_of_every_other_group_and_comes_back_with_it() {
        let demo = demo();
        let config = demo.config.as_ref().expect("config");
        let mut removal = Removal::default();
        removal.layer_mut(2).kv_groups.insert(3);
        let map = map_of(config, &removal, None);
        let (UnitEdit::TakeAway(units), _) = edit_of(config, &removal, &map, Pick::Head(2, 1)) else {
            panic!("a head that stays is taken away")
        };
        assert_eq!(units.units[&2].heads, [1, 2, 4].into(), "one of each group, none of the one that goes");
        removal.add(&units);
        Structure::new(config, &removal).expect("legal");
        let map = map_of(config, &removal, None);
        let (UnitEdit::GiveBack(back), _) = edit_of(config, &removal, &map, Pick::Head(2, 2)) else {
            panic!("a head that goes comes back")
        };
        removal.subtract(&back);
        assert_eq!(removal.units[&2].heads, std::collections::BTreeSet::new());
    }

    #[test]
    fn boxes_take_and_give_back() {
        let demo = demo();
        let config = demo.config.as_ref().expect("config");
        let mut removal = groups_of(&[(0, 0)]);
        let boxed = [(0, 0), (1, 2)];
        let (UnitEdit::TakeAway(units), what) = boxed_edit(&map_of(config, &removal, None), &boxed) else {
            panic!("one of them stays, so all go")
        };
        assert_eq!(what, "take 2 KV groups away");
        removal.add(&units);
        assert!(matches!(boxed_edit(&map_of(config, &removal, None), &boxed).0, UnitEdit::GiveBack(_)));
    }
}
