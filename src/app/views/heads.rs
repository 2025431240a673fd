//! The heads view: layers by heads in the frames of their KV groups, a score to colour them by, clicks and
//! boxes that take units away, and what that leaves.

use std::sync::Arc;

use eframe::egui::containers::menu::{MenuButton, MenuConfig};
use eframe::egui::{DragValue, PopupCloseBehavior, ScrollArea, Ui};

use super::common::{caption_ui, combo_ui, is_same, no_document_ui};
use super::heads_edits::{boxed_edit, edit_of};
use super::heads_masks::{self, masks_ui};
use super::heads_slices::{self, one_sided_ui, slices_ui};
use super::heads_steps::{self, kept_ui, steps_ui};
use crate::app::context::Cx;
use crate::app::plots::head_map::{Head, HeadMap, LayerHeads, head_map_ui, height_for};
use crate::app::theme::space;
use crate::app::widgets::{
    KeyValue, Level, Notice, card_ui, key_values_ui, notice_ui, primary_button_ui, secondary_button_ui,
    section_with_ui, segments_ui, tag_ui,
};
use crate::engine::checkpoint::{LayerUnits, ModelConfig, Removal, Structure};
use crate::engine::plan::{ResolvedPlan, Target, nearest_even};
use crate::engine::sensitivity::UnitTable;
use crate::engine::structure::slices::{OneSided, one_sided};
use crate::engine::structure::{Metric, Share, Take, UnitScores};
use crate::engine::units;
use crate::workbench::{Command, Document, JobKind, ScoredBy, UnitEdit};

/// What a click is about.
const UNITS: [&str; 2] = ["KV groups", "Query heads"];

/// What shares are of.
const SHARES: [(&str, Share); 3] =
    [("each layer", Share::Layer), ("each kind", Share::Kind), ("one ranking", Share::All)];

/// The entry after the metrics: what one slice loses and another does not.
const TWO_SLICES: &str = "two slices";

/// What the view remembers between frames.
pub struct Memory {
    pub(super) metric: Metric,
    pub(super) slices: heads_slices::Memory,
    /// A table of measured units that lies over the scores.
    over: Option<String>,
    unit: usize,
    share: usize,
    groups: f64,
    heads: f64,
    channels: f64,
    layers: usize,
    pub(super) steps: heads_steps::Memory,
    masks: heads_masks::Memory,
    shaped: Option<Shaped>,
    map: HeadMap,
}

/// What the map was made of, and what was worked out for it.
struct Shaped {
    /// The plan worked out, which is another one after every edit; none where it cannot be.
    resolved: Option<Arc<ResolvedPlan>>,
    removal: Removal,
    by: Option<ScoredBy>,
    /// Scores as they were measured: of the metric, or of both slices.
    bases: [Option<Arc<UnitScores>>; 2],
    over: Option<Arc<UnitTable>>,
    fingerprint: String,
    /// The scores that are shown, with what lies over them.
    scores: Option<Arc<UnitScores>>,
    /// What one slice loses and the other does not, the first slice's own first.
    one_sided: Vec<OneSided>,
    /// What is left.
    structure: Option<Structure>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            metric: Metric::Flap,
            slices: heads_slices::Memory::default(),
            over: None,
            unit: 0,
            share: 0,
            groups: 0.25,
            heads: 0.0,
            channels: 0.25,
            layers: 0,
            steps: heads_steps::Memory::default(),
            masks: heads_masks::Memory::default(),
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
        }
        kept_ui(ui, cx, document);
        map_ui(ui, cx, document, config, &memory);
        if let Some(shaped) = &memory.shaped {
            one_sided_ui(ui, shaped.by.as_ref(), &shaped.one_sided, memory.unit == 1);
        }
        if let Some(structure) = memory.shaped.as_ref().and_then(|shaped| shaped.structure.as_ref()) {
            outcome_ui(ui, cx, document, structure);
        }
        masks_ui(ui, cx, document, &mut memory.masks);
    });
    cx.memory.heads = memory;
}

impl Memory {
    /// What the fields above the map ask to take.
    pub(super) fn take(&self) -> Take {
        let share = SHARES[self.share].1;
        Take { share, kv_groups: self.groups, heads: self.heads, channels: self.channels, layers: self.layers }
    }

    /// What units are ranked by; none until both slices are chosen.
    fn by(&self) -> Option<ScoredBy> {
        if self.slices.is_on { self.slices.by() } else { Some(ScoredBy::Metric(self.metric)) }
    }

    /// True if the scores say something of whole layers.
    fn ranks_layers(&self) -> bool {
        self.scores().is_some_and(|scores| scores.layers.iter().all(|layer| layer.layer.is_some()))
    }

    /// The scores that are shown.
    fn scores(&self) -> Option<&UnitScores> {
        self.shaped.as_ref()?.scores.as_deref()
    }

    /// Shapes the map anew where scores or plan have changed.
    fn update(&mut self, document: &Document, config: &ModelConfig) {
        let removal = &document.plan().prune().removal;
        if self.over.as_ref().is_some_and(|over| !document.units.contains_key(over)) {
            self.over = None;
        }
        let by = self.by();
        let bases = match &by {
            Some(ScoredBy::Metric(metric)) => [document.unit_scores.get(metric.name()), None],
            Some(ScoredBy::Slices { first, second, .. }) => {
                [first, second].map(|slice| document.slice_scores.get(slice))
            }
            None => [None, None],
        };
        let over = self.over.as_ref().and_then(|over| document.units.get(over));
        let resolved = document.resolved.as_ref().ok();
        let is_current = self.shaped.as_ref().is_some_and(|shaped| {
            let is_same_plan = match resolved {
                Some(_) => is_same(shaped.resolved.as_ref(), resolved),
                None => shaped.resolved.is_none() && shaped.removal == *removal,
            };
            is_same_plan
                && shaped.by == by
                && shaped.bases.iter().zip(bases).all(|(own, base)| is_same(own.as_ref(), base))
                && is_same(shaped.over.as_ref(), over)
                && shaped.fingerprint == document.checkpoint.fingerprint
        });
        if is_current {
            return;
        }
        let scores = by.as_ref().and_then(|by| document.scores_of(by, self.over.as_deref()));
        self.map = map_of(config, removal, scores.as_deref());
        if let (Some(by @ ScoredBy::Slices { .. }), true) = (&by, scores.is_some()) {
            self.map.metric = by.to_string();
        }
        self.map.attention = document.attention.clone();
        self.shaped = Some(Shaped {
            resolved: resolved.cloned(),
            structure: Structure::new(config, removal).ok(),
            removal: removal.clone(),
            one_sided: match bases {
                [Some(first), Some(second)] => one_sided(first, second),
                _ => Vec::new(),
            },
            bases: bases.map(|base| base.cloned()),
            by,
            scores,
            over: over.cloned(),
            fingerprint: document.checkpoint.fingerprint.clone(),
        });
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
        metric_ui(ui, memory);
        if memory.slices.is_on {
            slices_ui(ui, cx, document, &mut memory.slices);
        } else {
            over_ui(ui, document, memory);
        }
        if let Some(scores) = memory.scores() {
            let hint = if memory.slices.is_on { heads_slices::HINT } else { memory.metric.description() };
            tag_ui(ui, scores.label.name()).on_hover_text(hint);
        }
        if cx.is_presenting() {
            return;
        }
        if !memory.slices.is_on {
            score_button_ui(ui, cx, document, memory.metric);
        }
        ui.add_space(space::M);
        segments_ui(ui, "Click takes", &UNITS, &mut memory.unit);
    });
}

/// By which score units are coloured and taken.
fn metric_ui(ui: &mut Ui, memory: &mut Memory) {
    let shown = if memory.slices.is_on { TWO_SLICES } else { memory.metric.name() };
    let chosen = combo_ui(ui, "Score of units", shown, 120.0, |ui| {
        let mut chosen = None;
        for metric in Metric::ALL {
            let is_shown = !memory.slices.is_on && metric == memory.metric;
            let label = ui.selectable_label(is_shown, metric.name());
            if label.on_hover_text(metric.description()).clicked() {
                chosen = Some(Some(metric));
            }
        }
        if ui.selectable_label(memory.slices.is_on, TWO_SLICES).on_hover_text(heads_slices::HINT).clicked() {
            chosen = Some(None);
        }
        chosen
    });
    match chosen {
        Some(Some(metric)) => (memory.metric, memory.slices.is_on) = (metric, false),
        Some(None) => (memory.slices.is_on, memory.over) = (true, None),
        None => {}
    }
}

fn score_button_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, metric: Metric) {
    let is_running = cx.bench.jobs().any(|job| job.kind == JobKind::ScoreUnits);
    let has_text = document.calibration_text.is_some() || document.text.is_some();
    let reason = match (is_running, metric.needs_sample() && !has_text) {
        (true, _) => Some("Already scoring"),
        (false, true) => Some("This score needs a text: choose one first"),
        (false, false) => document.cannot_run(),
    };
    let text = "Score units";
    let is_enabled = reason.is_none();
    let button = if document.unit_scores.contains_key(metric.name()) {
        secondary_button_ui(ui, text, is_enabled)
    } else {
        primary_button_ui(ui, text, is_enabled)
    };
    let button = match reason {
        Some(reason) => button.on_disabled_hover_text(reason),
        None => button.on_hover_text("One look at the calibration text for all layers together"),
    };
    if button.clicked() {
        cx.send(Command::ScoreUnits(metric));
    }
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

/// A menu of controls that stays open while they are used.
pub(super) fn controls_menu<'a>(text: impl Into<String>) -> MenuButton<'a> {
    MenuButton::new(text.into()).config(MenuConfig::new().close_behavior(PopupCloseBehavior::CloseOnClickOutside))
}

/// A share in percent.
fn share_ui(ui: &mut Ui, value: &mut f64, name: &str) {
    let mut percent = *value * 100.0;
    let field = DragValue::new(&mut percent).range(0.0..=95.0).speed(1.0).max_decimals(1).suffix(" %");
    if ui.add(field).accessible_name(format!("Share of {name}")).changed() {
        *value = percent / 100.0;
    }
    caption_ui(ui, name);
}

/// What to take by score; the rarer choices and the schedule are in menus, so that all fits one row.
fn selection_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, memory: &mut Memory) {
    if !memory.ranks_layers() {
        memory.layers = 0;
    }
    ui.horizontal_wrapped(|ui| {
        caption_ui(ui, "Take");
        let is_one = SHARES[memory.share].1 == Share::All;
        share_ui(ui, &mut memory.groups, if is_one { "weights" } else { "KV groups" });
        if !is_one {
            share_ui(ui, &mut memory.channels, "channels");
        }
        let (response, _) = controls_menu(more_text(memory)).ui(ui, |ui| more_ui(ui, document, memory));
        response.on_hover_text("Query heads, layers, and what shares are of").accessible_name("More to take");
        let is_scored = memory.scores().is_some();
        let button =
            secondary_button_ui(ui, "Take the lowest", is_scored).on_disabled_hover_text("Score the units first");
        if button.clicked()
            && let Some(by) = memory.by()
        {
            let over = memory.over.clone();
            let what = format!("take the lowest by {}", over.clone().unwrap_or_else(|| by.to_string()));
            cx.send(Command::EditUnits { edit: UnitEdit::Lowest { by, over, take: memory.take() }, what });
        }
        steps_ui(ui, cx, document, memory);
        let is_pruned = !document.plan().prune().removal.is_empty();
        if secondary_button_ui(ui, "Give all back", is_pruned).clicked() {
            let what = "give all units back".to_owned();
            cx.send(Command::EditUnits { edit: UnitEdit::Exactly(Removal::default()), what });
        }
    });
}

/// What the closed menu says: what in it differs from the usual.
fn more_text(memory: &Memory) -> String {
    let mut parts = Vec::new();
    if memory.heads > 0.0 {
        parts.push(format!("{:.0} % of heads", memory.heads * 100.0));
    }
    if memory.layers > 0 {
        parts.push(format!("{} layers", memory.layers));
    }
    if memory.share > 0 {
        parts.push(format!("of {}", SHARES[memory.share].0));
    }
    if parts.is_empty() { "More".to_owned() } else { format!("More: {}", parts.join(", ")) }
}

fn more_ui(ui: &mut Ui, document: &Document, memory: &mut Memory) {
    ui.horizontal(|ui| share_ui(ui, &mut memory.heads, "heads of each group"));
    let most = document.checkpoint.config.as_ref().map_or(0, |config| config.layers.len().saturating_sub(1));
    ui.horizontal(|ui| {
        let ranks = memory.ranks_layers();
        let field = DragValue::new(&mut memory.layers).range(0..=most).speed(0.1);
        ui.add_enabled(ranks, field)
            .accessible_name("Layers to take")
            .on_disabled_hover_text("Scores that rank layers are needed: taylor, say, or measured layers over it");
        caption_ui(ui, "layers");
    });
    ui.horizontal(|ui| {
        caption_ui(ui, "Shares are of");
        let names = SHARES.map(|share| share.0);
        segments_ui(ui, "Shares are of", &names, &mut memory.share);
    });
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
        if let Some(speed) = cx.memory.standing.standing.speed {
            let hint = "Of the whole plan on this machine, formats included, by the speeds of its kernels";
            for (name, rate) in
                [("decode", speed.decode_tokens_per_second), ("prefill", speed.prefill_tokens_per_second)]
            {
                lines.push(KeyValue::new(name, units::significant(rate), "tok/s").hint(hint));
            }
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
