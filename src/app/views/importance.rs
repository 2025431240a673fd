//! Importance: what the model's inputs look like column by column, where it comes from, whether the
//! plan uses it, and which matrices saw too little text.

use eframe::egui::{Button, Ui};

use super::common::{action_button_ui, brief_name, caption_ui, figure_table_ui, figure_ui};
use crate::app::context::Cx;
use crate::app::theme::{Type, UiTokens as _, space};
use crate::app::widgets::{Level, Notice, card_ui, empty_ui, notice_ui, section_with_ui, tag_ui};
use crate::engine::calibration::TensorStatistics;
use crate::engine::units;
use crate::workbench::{Action, Command, Document, JobKind, KnownImportance, SelectMode};

/// Height of the table with its head.
const TABLE_HEIGHT: f32 = 280.0;

/// A column's head and its explanation.
const HEADS: [(&str, &str); 8] = [
    ("tensor", "The matrix whose input was watched"),
    ("tokens", "Rows that the matrix saw; too few are marked"),
    ("Σ E[x²]", "Sum over the columns of the mean squared input"),
    ("max", "Mean squared input of the strongest column"),
    ("active, %", "Columns with a mean square above 1e-5"),
    ("entropy, %", "100 where all columns are alike, less where few dominate"),
    ("ZD, %", "Columns more than one deviation above the mean"),
    ("cos", "Cosine of the angle to the same matrix's input one layer earlier"),
];

/// Paints the card.
pub(super) fn importance_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document) {
    card_ui(ui, |ui| {
        let known = document.importance.as_ref();
        let is_used = document.importance_in_use().is_some();
        section_with_ui(ui, "Importance", |ui| {
            if known.is_some() {
                tag_ui(ui, if is_used { "used by the plan" } else { "not used by the plan" });
            }
        });
        if !cx.is_presenting() {
            ui.horizontal_wrapped(|ui| controls_ui(ui, cx, known.is_some(), is_used));
        }
        let Some(known) = known else {
            if cx.bench.jobs().any(|job| job.kind == JobKind::Calibrate) {
                empty_ui(ui, "Being computed", "The model reads its calibration text", None);
            } else {
                let sentence = "A weight matters as much as what it is multiplied with: formats with a weighted search \
                                keep the columns that carry much";
                empty_ui(ui, "Not computed yet", sentence, None);
            }
            return;
        };
        caption_ui(ui, source(known));
        for warning in known.importance.warnings() {
            let notice = Notice { level: Level::Warning, text: &warning, detail: "", action: None };
            notice_ui(ui, &notice);
        }
        table_ui(ui, cx, document, &known.statistics);
    });
}

fn controls_ui(ui: &mut Ui, cx: &mut Cx<'_>, is_known: bool, is_used: bool) {
    action_button_ui(ui, cx, Action::Calibrate, !is_known);
    action_button_ui(ui, cx, Action::CalibrateOn, false);
    action_button_ui(ui, cx, Action::LoadImportance, false);
    if is_used {
        action_button_ui(ui, cx, Action::DropImportance, false);
    } else if is_known {
        action_button_ui(ui, cx, Action::UseImportance, false);
    }
}

/// Where a matrix comes from, in a line.
fn source(known: &KnownImportance) -> String {
    let importance = &known.importance;
    let mut text = match importance.chunk_tokens {
        0 => format!("{} chunks", importance.chunk_count),
        tokens => format!("{} chunks of {tokens} tokens", importance.chunk_count),
    };
    if !importance.datasets.is_empty() {
        text += &format!(" of {}", importance.datasets.join(", "));
    }
    if let Some(name) = importance.file_name() {
        text += &format!(" · {name}");
    }
    text
}

fn table_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, statistics: &[TensorStatistics]) {
    ui.push_id("importance table", |ui| {
        figure_table_ui(ui, &HEADS, [160.0, 82.0], TABLE_HEIGHT).body(|body| {
            body.rows(space::ROW_COMPACT, statistics.len(), |mut line| {
                let row = &statistics[line.index()];
                line.col(|ui| name_ui(ui, cx, document, row));
                line.col(|ui| {
                    let text = row.tokens.map_or_else(|| "–".to_owned(), |tokens| tokens.to_string());
                    if row.is_low() {
                        let color = ui.tokens().undecided;
                        let text = Type::Mono.text(format!("low {text}")).color(color);
                        super::common::right_ui(ui, text)
                            .on_hover_text("Too few tokens to tell this matrix's columns apart");
                    } else {
                        figure_ui(ui, text);
                    }
                });
                for text in [
                    units::significant(row.sum),
                    units::significant(row.max),
                    format!("{:.1}", row.active_share * 100.0),
                    format!("{:.1}", row.entropy_share * 100.0),
                    format!("{:.1}", row.zd_share * 100.0),
                    row.cosine_with_previous.map_or_else(|| "–".to_owned(), |cosine| format!("{cosine:.3}")),
                ] {
                    line.col(|ui| drop(figure_ui(ui, text)));
                }
            });
        });
    });
}

/// A name that selects its tensor.
fn name_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, row: &TensorStatistics) {
    let index = document.checkpoint.tensors.iter().position(|tensor| tensor.name == row.name);
    let is_selected = index.is_some_and(|index| cx.state().selection.tensors.contains(&index));
    let button = Button::selectable(is_selected, brief_name(&row.name)).truncate();
    if ui.add(button).on_hover_text(&row.name).clicked()
        && let Some(tensor) = index
    {
        cx.send(Command::Select { tensor, mode: SelectMode::Replace });
    }
}
