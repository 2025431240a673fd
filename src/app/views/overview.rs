//! The overview: what this checkpoint is, where its bytes are, what to do next, and what is odd.

use std::collections::BTreeMap;
use std::sync::Arc;

use eframe::egui::{Button, Label, ScrollArea, Ui, vec2};

use super::common::{self, action_button_ui, candidate_index, caption_ui, no_document_ui};
use crate::app::context::Cx;
use crate::app::plots::stacked::{Segment, Stacked, StackedBar, stacked_ui};
use crate::app::theme::{Type, UiTokens as _, space};
use crate::app::widgets::{
    KeyValue, Level, Notice, card_ui, icons, key_values_ui, notice_ui, primary_button_ui, secondary_button_ui,
    section_ui,
};
use crate::engine::checkpoint::{Checkpoint, Container, LayerShape, Role};
use crate::engine::plan::ResolvedPlan;
use crate::engine::units;
use crate::workbench::{Action, Command, Document, SelectMode, View};

/// Share of weights beyond six sigma from which a tensor is said to have outliers. A normal
/// distribution has 2e-9.
const OUTLIER_SHARE: f64 = 1e-4;
/// Most oddities that are listed; the rest are counted.
const MOST_FINDINGS: usize = 12;

/// What the view remembers between frames.
#[derive(Default)]
pub struct Memory {
    checkpoint: Option<Arc<Checkpoint>>,
    file_bytes: u64,
    profiled: usize,
    faults: usize,
    resolved: Option<Arc<ResolvedPlan>>,
    findings: Vec<Finding>,
    sizes: Stacked,
    dtypes: String,
    shows_all: bool,
}

/// Something that the user should know, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    /// Index in the checkpoint; none where it is about the whole.
    tensor: Option<usize>,
    level: Level,
    text: String,
}

/// Paints the view.
pub fn overview_ui(ui: &mut Ui, cx: &mut Cx<'_>) {
    let bench = cx.bench;
    let Some(document) = &bench.state().document else {
        no_document_ui(ui, cx, "Open a model in safetensors or GGUF, or start with the one that comes with Lapidary");
        return;
    };
    let mut memory = std::mem::take(&mut cx.memory.overview);
    memory.update(document);
    ScrollArea::vertical().id_salt("overview").auto_shrink(false).show(ui, |ui| {
        ui.spacing_mut().item_spacing.y = space::S;
        verdict_ui(ui, document);
        let is_wide = ui.available_width() > 640.0;
        if is_wide {
            ui.columns(2, |columns| {
                model_ui(&mut columns[0], document, &memory);
                size_ui(&mut columns[1], document, &memory);
                next_ui(&mut columns[1], cx, document);
            });
        } else {
            model_ui(ui, document, &memory);
            size_ui(ui, document, &memory);
            next_ui(ui, cx, document);
        }
        findings_ui(ui, cx, &mut memory);
    });
    cx.memory.overview = memory;
}

/// The sentence of the run that is focused.
fn verdict_ui(ui: &mut Ui, document: &Document) {
    let Some(run) = document.focused() else { return };
    let Some(comparison) = &run.comparison else { return };
    let color = ui.tokens().candidate(candidate_index(document, run.id));
    card_ui(ui, |ui| {
        ui.horizontal_top(|ui| {
            let (rect, _) = ui.allocate_exact_size(vec2(4.0, 24.0), eframe::egui::Sense::hover());
            ui.painter().rect_filled(rect, 2.0, color);
            ui.add(Label::new(Type::Heading.text(&comparison.sentence)).wrap());
        });
        if run.is_stale {
            caption_ui(ui, "Measured with other tasks or another text than are chosen now");
        }
    });
}

fn model_ui(ui: &mut Ui, document: &Document, memory: &Memory) {
    let checkpoint = &document.checkpoint;
    card_ui(ui, |ui| {
        section_ui(ui, &checkpoint.name);
        let mut lines = Vec::new();
        let container = match checkpoint.container {
            Container::Safetensors => "safetensors",
            Container::HuggingFace => "Hugging Face folder",
            Container::Gguf => "GGUF",
        };
        lines.push(KeyValue::new("container", container, ""));
        if let Some(config) = &checkpoint.config {
            let per_layer = |value: fn(&LayerShape) -> usize| range(config.layers.iter().map(value));
            lines.push(KeyValue::new("family", &config.family, ""));
            lines.push(KeyValue::new("layers", config.layers.len().to_string(), ""));
            let heads = format!("{} / {}", per_layer(|layer| layer.heads), per_layer(|layer| layer.kv_heads));
            lines.push(KeyValue::new("heads / KV heads", heads, ""));
            lines.push(KeyValue::new("head width", config.head_dim.to_string(), ""));
            lines.push(KeyValue::new("width", config.hidden.to_string(), ""));
            lines.push(KeyValue::new("MLP channels", per_layer(|layer| layer.mlp_channels), ""));
            lines.push(KeyValue::new("vocabulary", units::count(config.vocab as u64), "tokens"));
            lines.push(KeyValue::new("context", units::count(config.context as u64), "tokens"));
            let tied = if config.tied_embeddings { "shared with the embedding" } else { "own weights" };
            lines.push(KeyValue::new("head", tied, ""));
            let bos = config.bos.map_or_else(|| "none".to_owned(), |id| format!("token {id}"));
            lines
                .push(KeyValue::new("texts begin with", bos, "").hint("The token that stands before every text (BOS)"));
        }
        lines.push(KeyValue::new("tensors", checkpoint.tensors.len().to_string(), ""));
        lines.push(KeyValue::new("weights", units::count(checkpoint.weight_count()), ""));
        lines.push(KeyValue::new("stored as", &memory.dtypes, ""));
        lines.push(KeyValue::new("files", units::bytes(memory.file_bytes), ""));
        let bits = units::bits_per_weight(checkpoint.tensor_bytes(), checkpoint.weight_count());
        lines.push(KeyValue::new("bits per weight", format!("{bits:.2}"), "bpw"));
        key_values_ui(ui, &lines);
    });
}

/// One number where all layers agree, else the least and the most.
fn range(values: impl Iterator<Item = usize>) -> String {
    let (least, most) = values.fold((usize::MAX, 0), |(least, most), value| (least.min(value), most.max(value)));
    if least >= most { most.to_string() } else { format!("{least}–{most}") }
}

fn size_ui(ui: &mut Ui, document: &Document, memory: &Memory) {
    card_ui(ui, |ui| {
        section_ui(ui, "Size by role");
        stacked_ui(ui, &memory.sizes);
        if let Ok(resolved) = &document.resolved {
            let ratio = resolved.old_bytes as f64 / resolved.new_bytes.max(1) as f64;
            let text = format!(
                "The plan writes {} instead of {}, {:.2} bpw, {ratio:.1}× smaller",
                units::bytes(resolved.new_bytes),
                units::bytes(resolved.old_bytes),
                resolved.new_bits_per_weight(),
            );
            caption_ui(ui, text);
        }
    });
}

fn next_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document) {
    if cx.is_presenting() {
        return;
    }
    card_ui(ui, |ui| {
        section_ui(ui, "What to do next");
        let has_run = !document.runs.is_empty();
        ui.spacing_mut().item_spacing.y = space::XS;
        if secondary_button_ui(ui, "Decide what to compress", true).clicked() {
            cx.act(Action::ShowPlan);
        }
        caption_ui(ui, "Choose a recipe, protect layers, see the size at once");
        ui.add_space(space::XS);
        if document.sensitivity.contains_key("kld") {
            if secondary_button_ui(ui, "Look at the sensitivity", true).clicked() {
                cx.act(Action::ShowSensitivity);
            }
            caption_ui(ui, "Which tensors mind being compressed");
        } else {
            action_button_ui(ui, cx, Action::MeasureKld, false);
            caption_ui(ui, "Which tensors matter, one changed at a time");
        }
        ui.add_space(space::XS);
        if has_run {
            if primary_button_ui(ui, "Compare candidates", true).clicked() {
                cx.act(Action::ShowCompare);
            }
            caption_ui(ui, "What the smaller model gains and loses");
        } else {
            action_button_ui(ui, cx, Action::RunPlan, true);
            caption_ui(ui, "Write the smaller model and see what it cost");
        }
    });
}

fn findings_ui(ui: &mut Ui, cx: &mut Cx<'_>, memory: &mut Memory) {
    if memory.findings.is_empty() {
        return;
    }
    card_ui(ui, |ui| {
        section_ui(ui, "Worth knowing");
        let most = if memory.shows_all { usize::MAX } else { MOST_FINDINGS };
        for finding in memory.findings.iter().take(most) {
            let Some(tensor) = finding.tensor else {
                notice_ui(ui, &Notice { level: finding.level, text: &finding.text, detail: "", action: None });
                continue;
            };
            ui.horizontal(|ui| {
                let tokens = ui.tokens();
                let (icon, color) = match finding.level {
                    Level::Info => (icons::Icon::Info, tokens.accent),
                    Level::Warning => (icons::Icon::Warning, tokens.undecided),
                    Level::Error => (icons::Icon::Warning, tokens.fail),
                };
                let (rect, _) = ui.allocate_exact_size(vec2(16.0, space::ROW_COMPACT), eframe::egui::Sense::hover());
                icons::paint(ui.painter(), icon, rect.center(), 14.0, color);
                let button = Button::new(finding.text.as_str()).frame_when_inactive(false).truncate();
                if ui.add(button).on_hover_text("Select this tensor").clicked() {
                    cx.send(Command::Select { tensor, mode: SelectMode::Replace });
                    cx.send(Command::Show(View::Weights));
                }
            });
        }
        let rest = memory.findings.len().saturating_sub(most);
        if rest > 0 && secondary_button_ui(ui, &format!("Show {rest} more"), true).clicked() {
            memory.shows_all = true;
        }
    });
}

impl Memory {
    /// Shapes what is shown anew where its inputs have changed.
    fn update(&mut self, document: &Document) {
        let is_other = !common::is_same(self.checkpoint.as_ref(), Some(&document.checkpoint));
        if is_other {
            self.checkpoint = Some(document.checkpoint.clone());
            self.file_bytes = document.checkpoint.file_bytes();
            self.dtypes = dtype_mix(&document.checkpoint);
            self.shows_all = false;
        }
        let resolved = document.resolved.as_ref().ok();
        let is_replanned = !common::is_same(self.resolved.as_ref(), resolved);
        if is_other || is_replanned {
            self.resolved = resolved.cloned();
            self.sizes = sizes(&document.checkpoint, resolved.map(Arc::as_ref));
        }
        let profiled = document.profiles.iter().flatten().count();
        let faults = document.profile_faults.len();
        if is_other || is_replanned || (profiled, faults) != (self.profiled, self.faults) {
            (self.profiled, self.faults) = (profiled, faults);
            self.findings = findings(document);
        }
    }
}

/// `bf16 99.8 %, f32 0.2 %`: shares of the weights.
fn dtype_mix(checkpoint: &Checkpoint) -> String {
    let mut weights: BTreeMap<String, u64> = BTreeMap::new();
    for tensor in &checkpoint.tensors {
        *weights.entry(tensor.dtype.to_string()).or_default() += tensor.weight_count();
    }
    mix_text(weights.into_iter().collect())
}

fn mix_text(mut parts: Vec<(String, u64)>) -> String {
    parts.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
    let total: u64 = parts.iter().map(|part| part.1).sum();
    if let [(only, _)] = parts.as_slice() {
        return only.clone();
    }
    let shown = parts.iter().take(3);
    let texts: Vec<String> =
        shown.map(|(name, count)| format!("{name} {}", units::percent(*count as f64 / total.max(1) as f64))).collect();
    let more = parts.len().saturating_sub(3);
    let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
    texts.join(", ") + &tail
}

/// Attention, MLP and the ends of the model as parts; roles of one part share a colour family.
const PARTS: [(&str, &[Role]); 6] = [
    ("embedding", &[Role::Embedding]),
    ("attention", &[Role::Q, Role::K, Role::V, Role::O]),
    ("MLP", &[Role::Gate, Role::Up, Role::Down]),
    ("norms", &[Role::Norm]),
    ("head", &[Role::Head]),
    ("other", &[Role::Other]),
];

fn sizes(checkpoint: &Checkpoint, resolved: Option<&ResolvedPlan>) -> Stacked {
    let now = checkpoint.tensors.iter().map(|tensor| (tensor.role, tensor.byte_count));
    let mut bars = vec![bar("original", now)];
    if let Some(resolved) = resolved {
        let roles = |index: usize| checkpoint.tensors.get(index).map_or(Role::Other, |tensor| tensor.role);
        let planned = resolved.decisions.iter().map(|decision| (roles(decision.tensor_index), decision.new_bytes));
        bars.push(bar("plan", planned));
    }
    Stacked { title: "Size by role".to_owned(), bars }
}

fn bar(name: &str, bytes: impl Iterator<Item = (Role, u64)>) -> StackedBar {
    let mut sums = [0u64; PARTS.len()];
    for (role, count) in bytes {
        if let Some(part) = PARTS.iter().position(|part| part.1.contains(&role)) {
            sums[part] = sums[part].saturating_add(count);
        }
    }
    let segments = PARTS
        .iter()
        .zip(sums)
        .enumerate()
        .filter(|(_, (_, bytes))| *bytes > 0)
        .map(|(part, ((label, _), bytes))| Segment { label: (*label).to_owned(), bytes, part })
        .collect();
    StackedBar { name: name.to_owned(), segments }
}

/// Everything odd, what matters most first.
fn findings(document: &Document) -> Vec<Finding> {
    let checkpoint = &document.checkpoint;
    let mut list = Vec::new();
    if let Some(fault) = &checkpoint.config_fault {
        let text = format!("The network cannot be run: {}", sentence_of(&fault.cause, fault.remedy.as_deref()));
        list.push(Finding { tensor: None, level: Level::Warning, text });
    }
    for warning in &checkpoint.warnings {
        list.push(Finding { tensor: None, level: Level::Warning, text: warning.clone() });
    }
    for (index, fault) in &document.profile_faults {
        let name = checkpoint.tensors.get(*index).map_or("", |tensor| tensor.name.as_str());
        let text = format!("{name}: {}", sentence_of(&fault.cause, fault.remedy.as_deref()));
        list.push(Finding { tensor: Some(*index), level: Level::Warning, text });
    }
    for (index, profile) in document.profiles.iter().enumerate() {
        let Some(profile) = profile else { continue };
        if profile.nan_count > 0 || profile.inf_count > 0 {
            let (nan, inf) = (units::count(profile.nan_count), units::count(profile.inf_count));
            let text = format!("{}: {nan} NaN and {inf} infinite weights", profile.name);
            list.push(Finding { tensor: Some(index), level: Level::Error, text });
        }
    }
    let mut outliers: Vec<(usize, f64)> = document
        .profiles
        .iter()
        .enumerate()
        .filter_map(|(index, profile)| Some((index, profile.as_ref()?.beyond_6_sigma_share)))
        .filter(|(index, share)| *share >= OUTLIER_SHARE && checkpoint.tensors[*index].shape.len() > 1)
        .collect();
    outliers.sort_by(|one, other| other.1.total_cmp(&one.1));
    for (index, share) in outliers {
        let name = &checkpoint.tensors[index].name;
        let text = format!("{name}: {:.2} % of its weights lie beyond 6σ, which coarse formats hurt", share * 100.0);
        list.push(Finding { tensor: Some(index), level: Level::Info, text });
    }
    if let Ok(resolved) = &document.resolved {
        for decision in resolved.decisions.iter().filter(|decision| decision.fell_back_from.is_some()) {
            let name = &checkpoint.tensors[decision.tensor_index].name;
            let text = format!("{name}: {}", decision.sentence());
            list.push(Finding { tensor: Some(decision.tensor_index), level: Level::Info, text });
        }
    }
    list
}

fn sentence_of(cause: &str, remedy: Option<&str>) -> String {
    remedy.map_or_else(|| cause.to_owned(), |remedy| format!("{cause}; {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_that_differ_are_told_as_a_range() {
        assert_eq!(range([8, 8, 8].into_iter()), "8");
        assert_eq!(range([8, 6].into_iter()), "6–8");
        assert_eq!(range(std::iter::empty()), "0");
    }

    #[test]
    fn the_mix_names_the_largest_share_first_and_counts_the_rest() {
        let part = |name: &str, count| (name.to_owned(), count);
        assert_eq!(mix_text(vec![part("bf16", 7)]), "bf16");
        assert_eq!(mix_text(vec![part("f32", 1), part("bf16", 9)]), "bf16 90.0 %, f32 10.0 %");
        let many = vec![part("a", 4), part("b", 3), part("c", 2), part("d", 1)];
        assert_eq!(mix_text(many), "a 40.0 %, b 30.0 %, c 20.0 % and 1 more");
    }

    #[test]
    fn roles_of_one_part_are_added_up_and_absent_parts_left_out() {
        let bar = bar("original", [(Role::Q, 3), (Role::O, 4), (Role::Down, 5), (Role::Norm, 0)].into_iter());
        let parts: Vec<(&str, u64)> = bar.segments.iter().map(|s| (s.label.as_str(), s.bytes)).collect();
        assert_eq!(parts, [("attention", 7), ("MLP", 5)]);
        assert_eq!(bar.segments[1].part, 2);
    }
}
