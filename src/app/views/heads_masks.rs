//! Masks for study in the heads view: which weights go, the button that writes the candidate, and the masked
//! candidates with what their files are worth.

use eframe::egui::{DragValue, Grid, Ui};

use super::common::{caption_ui, combo_ui, figure_ui, head_ui};
use crate::app::context::Cx;
use crate::app::theme::space;
use crate::app::widgets::{
    FormatChoice, FormatMenu, card_ui, format_menu_ui, secondary_button_ui, section_with_ui, segments_ui,
};
use crate::engine::format;
use crate::engine::pass::mask_formats;
use crate::engine::structure::masks::Pattern;
use crate::engine::structure::study::{MaskMethod, STATEMENT};
use crate::engine::units;
use crate::workbench::{Command, Document, JobKind, MaskRequest};

/// Patterns to choose from; the first is any share of the weights.
const PATTERNS: [&str; 3] = ["any place", "2:4", "4:8"];

/// What the menu of formats says where nothing is quantized.
const PLAIN: &str = "not quantized";

/// What the controls remember.
pub(super) struct Memory {
    method: MaskMethod,
    pattern: usize,
    share: f64,
    quantize: Option<&'static str>,
}

impl Default for Memory {
    fn default() -> Self {
        Self { method: MaskMethod::Wanda, pattern: 1, share: 0.5, quantize: None }
    }
}

impl Memory {
    fn request(&self) -> MaskRequest {
        let pattern = match self.pattern {
            0 => Pattern::Share(self.share),
            1 => Pattern::TWO_OF_FOUR,
            _ => Pattern::FOUR_OF_EIGHT,
        };
        let quantize = self.quantize.filter(|_| self.method == MaskMethod::SparseGpt);
        MaskRequest { method: self.method, pattern, quantize: quantize.and_then(format::find) }
    }
}

/// The card.
pub(super) fn masks_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, memory: &mut Memory) {
    let has_masked = document.runs.iter().any(|run| run.mask.is_some());
    if cx.is_presenting() && !has_masked {
        return;
    }
    card_ui(ui, |ui| {
        section_with_ui(ui, "Masks for study", |ui| {
            caption_ui(ui, "single weights set to zero, which takes nothing out of the network");
        });
        if !cx.is_presenting() {
            controls_ui(ui, cx, document, memory);
        }
        caption_ui(ui, STATEMENT);
        if has_masked {
            candidates_ui(ui, document);
        }
    });
}

fn controls_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, memory: &mut Memory) {
    ui.horizontal_wrapped(|ui| {
        let chosen = combo_ui(ui, "Mask method", memory.method.name(), 100.0, |ui| {
            let mut chosen = None;
            for method in MaskMethod::ALL {
                let label = ui.selectable_label(method == memory.method, method.name());
                if label.on_hover_text(method.description()).clicked() {
                    chosen = Some(method);
                }
            }
            chosen
        });
        memory.method = chosen.unwrap_or(memory.method);
        segments_ui(ui, "Mask pattern", &PATTERNS, &mut memory.pattern);
        let mut percent = memory.share * 100.0;
        let field = DragValue::new(&mut percent).range(0.0..=95.0).speed(1.0).max_decimals(1).suffix(" %");
        let field = ui.add_enabled(memory.pattern == 0, field).accessible_name("Share of weights to mask");
        if field.on_disabled_hover_text("The pattern says how many go").changed() {
            memory.share = percent / 100.0;
        }
        quantize_ui(ui, memory);
        let is_running = cx.bench.jobs().any(|job| job.kind == JobKind::Pass).then_some("A pass is running");
        let reason = is_running.or(document.cannot_mask(memory.method));
        let button = secondary_button_ui(ui, "Write the masked candidate", reason.is_none());
        let button = match reason {
            Some(reason) => button.on_disabled_hover_text(reason),
            None => button.on_hover_text("Masks every linear of the layers, writes the result and evaluates it"),
        };
        if button.clicked() {
            cx.send(Command::MaskWeights(memory.request()));
        }
    });
}

/// What stays can be brought to integers by the sweep that makes up for what goes.
fn quantize_ui(ui: &mut Ui, memory: &mut Memory) {
    let is_possible = memory.method == MaskMethod::SparseGpt;
    let selected = memory.quantize.filter(|_| is_possible).unwrap_or(PLAIN);
    let menu = FormatMenu { name: "Quantize in the sweep", selected, width: 120.0, none: Some(PLAIN), row_len: None };
    let chosen = ui.add_enabled_ui(is_possible, |ui| {
        let (response, chosen) = format_menu_ui(ui, menu, mask_formats());
        response.on_disabled_hover_text("Only sparsegpt changes weights that stay");
        chosen
    });
    match chosen.inner {
        Some(FormatChoice::None) => memory.quantize = None,
        Some(FormatChoice::Format(id)) => memory.quantize = Some(id),
        None => {}
    }
}

/// The masked candidates: what went, and what the files take with and without their zeros.
fn candidates_ui(ui: &mut Ui, document: &Document) {
    Grid::new("masked candidates").num_columns(5).spacing([space::L, space::XS]).show(ui, |ui| {
        for (title, is_right) in [
            ("candidate", false),
            ("weights masked over", true),
            ("on disk", true),
            ("with its zeros", true),
            ("was", true),
        ] {
            head_ui(ui, title, is_right);
        }
        ui.end_row();
        for (run, facts) in document.runs.iter().filter_map(|run| Some((run, run.mask.as_deref()?))) {
            ui.label(&run.name).on_hover_text(facts.mask.name());
            figure_ui(ui, units::count(facts.mask.weights));
            for bytes in [facts.file_bytes, facts.dense_file_bytes, facts.old_file_bytes] {
                figure_ui(ui, units::bytes(bytes));
            }
            ui.end_row();
        }
    });
    let statement = document.runs.iter().find_map(|run| run.mask.as_ref()?.size_statement.as_deref());
    if let Some(statement) = statement {
        caption_ui(ui, statement);
    }
}
