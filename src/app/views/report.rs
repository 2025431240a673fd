//! The result written up: what the report will say, live, and the buttons that write it: report, model card and
//! documentation sheet, each saved where the user says.

use std::sync::Arc;

use eframe::egui::style::ScrollStyle;
use eframe::egui::{CollapsingHeader, Grid, Label, ScrollArea, TextEdit, Ui, vec2};

use super::common::{action_button_ui, caption_ui, figure_ui, focus_picker_ui, head_ui, is_same, no_document_ui};
use crate::app::context::Cx;
use crate::app::plots::export::{Format, Saved, hand_over};
use crate::app::theme::{Type, space};
use crate::app::widgets::{Level, Notice, card_ui, empty_ui, notice_ui, secondary_button_ui, section_ui};
use crate::engine::comparison::speculation::speculation_of;
use crate::engine::comparison::{CascadeOptions, Comparison, cascade};
use crate::engine::evaluation::Evaluation;
use crate::engine::report::{
    self, Block, CardOptions, Document as Written, Environment, Report, ReportInput, Reported, Source, Table, audit,
};
use crate::workbench::{Action, Document, Run, RunId, output_folder, printer};

/// Rows of a table that the preview shows; the files have all of them.
const SHOWN_ROWS: usize = 30;

/// A document that can be written.
struct Offer {
    button: &'static str,
    hint: &'static str,
    stem: &'static str,
    format: Format,
    text: fn(Report) -> String,
}

const OFFERS: [Offer; 6] = [
    Offer {
        button: "Report as HTML…",
        hint: "One file with tables and plots that needs nothing else",
        stem: "report",
        format: Format::Html,
        text: |report| report.html,
    },
    Offer {
        button: "Report as Markdown…",
        hint: "The same with tables in place of plots",
        stem: "report",
        format: Format::Markdown,
        text: |report| report.markdown,
    },
    Offer {
        button: "Report as PDF…",
        hint: "The HTML printed by the browser or converter of this system",
        stem: "report",
        format: Format::Pdf,
        text: |report| report.html,
    },
    Offer {
        button: "Model card…",
        hint: "README.md for the Hugging Face hub, with the names given below",
        stem: "README",
        format: Format::Markdown,
        text: |report| report.model_card,
    },
    Offer {
        button: "EU AI Act sheet…",
        hint: "Annex XI and IV: what compression changes, each field with its evidence, the rest marked blank",
        stem: "annex",
        format: Format::Html,
        text: |report| report.annex_html,
    },
    Offer {
        button: "Sheet as Markdown…",
        hint: "The same sheet as Markdown, to be filled in",
        stem: "annex",
        format: Format::Markdown,
        text: |report| report.annex_markdown,
    },
];

/// What the view remembers between frames.
#[derive(Default)]
pub struct Memory {
    key: Key,
    written: Option<Result<Written, String>>,
    /// Why the last wish was not granted.
    problem: Option<String>,
    /// What only the user knows, for the card.
    base_model: String,
    license: String,
    /// The program that prints, looked for once.
    printer: Option<Option<&'static str>>,
}

/// What the preview was made of. The objects are kept, so that no other takes their place.
#[derive(Default)]
struct Key {
    focus: Option<RunId>,
    runs: Vec<(RunId, String, Option<Arc<Comparison>>)>,
    baseline: Option<Arc<Evaluation>>,
}

impl Key {
    fn of(document: &Document, run: &Run) -> Self {
        Self {
            focus: Some(run.id),
            runs: document.runs.iter().map(|run| (run.id, run.name.clone(), run.comparison.clone())).collect(),
            baseline: document.baseline.clone(),
        }
    }

    fn is_of(&self, document: &Document, run: &Run) -> bool {
        self.focus == Some(run.id)
            && is_same(self.baseline.as_ref(), document.baseline.as_ref())
            && self.runs.len() == document.runs.len()
            && self.runs.iter().zip(&document.runs).all(|((id, name, comparison), run)| {
                *id == run.id && *name == run.name && is_same(comparison.as_ref(), run.comparison.as_ref())
            })
    }
}

/// Paints the view.
pub fn report_ui(ui: &mut Ui, cx: &mut Cx<'_>) {
    let bench = cx.bench;
    let Some(document) = &bench.state().document else {
        no_document_ui(ui, cx, "Open a model, run a plan, and write up what the smaller model gains and loses");
        return;
    };
    let is_compared = |run: &Run| run.comparison.is_some() && run.evaluation.is_some();
    // The one that the picker names, and no other in its place.
    let run = document.picked().filter(|_| document.runs.iter().any(is_compared));
    let Some(run) = run else {
        let sentence = "A report is made of measurements: run a plan and let its candidate be evaluated";
        empty_ui(ui, "Nothing to report yet", sentence, None);
        if !cx.is_presenting() {
            ui.vertical_centered(|ui| {
                let action = if document.runs.is_empty() { Action::RunPlan } else { Action::EvaluateCandidates };
                action_button_ui(ui, cx, action, true);
            });
        }
        return;
    };
    let mut memory = std::mem::take(&mut cx.memory.report);
    if is_compared(run) && !memory.key.is_of(document, run) {
        memory.key = Key::of(document, run);
        memory.problem = None;
        memory.written = input(document, run, CardOptions::default())
            .map(|input| report::document(&input).map_err(|err| err.to_string()));
    }
    ScrollArea::vertical().id_salt("report").auto_shrink(false).show(ui, |ui| {
        ui.spacing_mut().item_spacing.y = space::S;
        ui.horizontal_wrapped(|ui| {
            caption_ui(ui, "Candidate that comes first");
            focus_picker_ui(ui, cx, document, "Candidate to report on", 180.0);
        });
        if !is_compared(run) {
            super::compare::missing_ui(ui, cx, run);
            return;
        }
        offers_ui(ui, document, run, &mut memory, cx.is_presenting());
        match &memory.written {
            Some(Ok(written)) => preview_ui(ui, written),
            Some(Err(problem)) => {
                let notice = Notice { level: Level::Error, text: problem, detail: "", action: None };
                notice_ui(ui, &notice);
            }
            None => {
                let text = "The original was not evaluated with this candidate";
                notice_ui(ui, &Notice { level: Level::Warning, text, detail: "", action: None });
            }
        }
    });
    cx.memory.report = memory;
}

/// The buttons, and what only the user knows.
fn offers_ui(ui: &mut Ui, document: &Document, run: &Run, memory: &mut Memory, is_presenting: bool) {
    let printer = *memory.printer.get_or_insert_with(printer);
    card_ui(ui, |ui| {
        section_ui(ui, "Write");
        let can_write = matches!(memory.written, Some(Ok(_)));
        ui.horizontal_wrapped(|ui| {
            for offer in &OFFERS {
                let lacks_printer = offer.format == Format::Pdf && printer.is_none();
                let response = secondary_button_ui(ui, offer.button, can_write && !lacks_printer);
                let response = response.on_hover_text(offer.hint).on_disabled_hover_text(if lacks_printer {
                    "Nothing here prints: install Chromium, WeasyPrint or LibreOffice, or print the HTML in a browser"
                } else {
                    "There is nothing to write yet"
                });
                if !response.clicked() {
                    continue;
                }
                let card = card_of(run, &memory.base_model, &memory.license);
                memory.problem = match input(document, run, card).map(|input| report::report(&input)) {
                    Some(Ok(written)) => {
                        let bytes = (offer.text)(written).into_bytes();
                        hand_over(ui.ctx(), Saved { stem: offer.stem.to_owned(), format: offer.format, bytes });
                        None
                    }
                    Some(Err(err)) => Some(err.to_string()),
                    None => Some("the original was not evaluated with this candidate".to_owned()),
                };
            }
        });
        if !is_presenting {
            ui.horizontal_wrapped(|ui| {
                for (name, hint, value) in [
                    ("Base model", "the hub's id of the original", &mut memory.base_model),
                    ("Licence", "as the hub calls it", &mut memory.license),
                ] {
                    caption_ui(ui, name);
                    let edit = TextEdit::singleline(value).hint_text(hint).desired_width(220.0);
                    ui.add(edit).accessible_name(format!("{name} for the card"));
                }
            });
        }
        let text = "Every figure comes from the evaluations here; what nobody measured is left out or marked blank";
        caption_ui(ui, memory.problem.as_deref().unwrap_or(text));
    });
}

fn card_of(run: &Run, base_model: &str, license: &str) -> CardOptions {
    let given = |text: &str| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
    CardOptions {
        base_model: given(base_model),
        license: given(license),
        is_pruned_or_trained: !run.plan.prune().removal.is_empty() || run.mask.is_some(),
        tags: run.mask.iter().map(|_| "masked".to_owned()).collect(),
        ..CardOptions::default()
    }
}

/// The document by chapters; the first is open.
fn preview_ui(ui: &mut Ui, written: &Written) {
    ui.label(Type::Title.text(&written.title));
    let is_chapter = |block: &Block| matches!(block, Block::Heading(2, _));
    let blocks = &written.blocks;
    let starts: Vec<usize> = (0..blocks.len()).filter(|&index| is_chapter(&blocks[index])).collect();
    for (place, &start) in starts.iter().enumerate() {
        let end = starts.get(place + 1).copied().unwrap_or(blocks.len());
        let Block::Heading(_, title) = &blocks[start] else { continue };
        CollapsingHeader::new(Type::Heading.text(title)).id_salt(("chapter", place)).default_open(place == 0).show(
            ui,
            |ui| {
                for (index, block) in blocks[start + 1..end].iter().enumerate() {
                    block_ui(ui, block, (place, index));
                }
            },
        );
    }
}

fn block_ui(ui: &mut Ui, block: &Block, id: (usize, usize)) {
    match block {
        Block::Heading(_, text) => {
            ui.add_space(space::S);
            ui.label(Type::Strong.text(text));
        }
        Block::Text(text) => {
            ui.add(Label::new(Type::Body.text(text)).wrap());
        }
        Block::Bullets(lines) => {
            for line in lines {
                ui.add(Label::new(Type::Body.text(format!("• {line}"))).wrap());
            }
        }
        Block::Table(table) => table_ui(ui, table, id),
        Block::Code(text) => {
            ui.add(Label::new(Type::MonoSmall.text(text)).wrap());
        }
        Block::Plot(plot) => {
            CollapsingHeader::new(Type::Small.text(format!("{} (drawn in the HTML)", plot.caption)))
                .id_salt(("plot", id))
                .show(ui, |ui| table_ui(ui, &plot.to_table(), id));
        }
        Block::Details(title, blocks) => {
            CollapsingHeader::new(Type::Small.text(title)).id_salt(("details", id)).show(ui, |ui| {
                for (index, block) in blocks.iter().enumerate() {
                    block_ui(ui, block, (id.0 * 1000 + id.1 + 1, index));
                }
            });
        }
    }
}

fn table_ui(ui: &mut Ui, table: &Table, id: (usize, usize)) {
    ui.scope(|ui| whole_table_ui(ui, table, id));
}

fn whole_table_ui(ui: &mut Ui, table: &Table, id: (usize, usize)) {
    let columns: Vec<(&str, bool)> = table
        .titles
        .iter()
        .map(|title| title.strip_prefix('>').map_or((title.as_str(), false), |t| (t, true)))
        .collect();
    // A bar that is seen: the columns beyond the edge are not the least.
    ui.spacing_mut().scroll = ScrollStyle::solid();
    ScrollArea::horizontal().id_salt(("table scroll", id)).show(ui, |ui| {
        Grid::new(("table", id)).num_columns(columns.len()).striped(true).spacing(vec2(space::L, space::XS)).show(
            ui,
            |ui| {
                for (title, is_number) in &columns {
                    head_ui(ui, title, *is_number);
                }
                ui.end_row();
                for row in table.rows.iter().take(SHOWN_ROWS) {
                    for (cell, (_, is_number)) in row.iter().zip(&columns) {
                        if *is_number {
                            figure_ui(ui, cell);
                        } else {
                            let short: String = cell.chars().take(80).collect();
                            ui.label(Type::Body.text(short));
                        }
                    }
                    ui.end_row();
                }
            },
        );
    });
    if table.rows.len() > SHOWN_ROWS {
        caption_ui(ui, format!("and {} more rows in the files", table.rows.len() - SHOWN_ROWS));
    }
}

/// Everything that was compared, the run in focus first; `None` where its baseline is not known.
fn input(document: &Document, run: &Run, card: CardOptions) -> Option<ReportInput> {
    let baseline = run.evaluation.as_ref()?.baseline.as_deref().or(document.baseline.as_deref())?.clone();
    let others = document.runs.iter().filter(|other| other.id != run.id);
    let candidates: Vec<Reported> = std::iter::once(run)
        .chain(others)
        .filter_map(|run| Some(reported(run.evaluation.as_deref()?, run.comparison.as_deref()?)))
        .collect();
    let plan = run.plan.to_toml();
    let mut sources = vec![Source {
        what: "plan".to_owned(),
        path: "plan.toml".into(),
        hash: report::hash_of(&plan),
        bytes: plan.len() as u64,
        text: Some(plan),
    }];
    sources.extend(document.gates.iter().filter_map(|gates| {
        let text = std::fs::read_to_string(&gates.path).ok()?;
        let (hash, bytes) = (report::hash_of(&text), text.len() as u64);
        Some(Source { what: "gates".to_owned(), path: gates.path.clone(), hash, bytes, text: Some(text) })
    }));
    sources.extend(document.tasks.iter().map(|tasks| Source {
        what: "tasks".to_owned(),
        path: tasks.path.clone(),
        hash: tasks.hash.clone(),
        bytes: std::fs::metadata(&tasks.path).map_or(0, |file| file.len()),
        text: None,
    }));
    sources.extend(document.text.iter().map(|text| Source {
        what: "text".to_owned(),
        path: text.path.clone(),
        hash: text.hash.clone(),
        bytes: text.text.len() as u64,
        text: None,
    }));
    Some(ReportInput {
        title: format!("{} against {}", run.name, baseline.model.name),
        baseline,
        candidates,
        sources,
        environment: Environment::here(),
        log: audit::read(&output_folder(&document.project_path).join("audit.jsonl")).unwrap_or_default(),
        card,
    })
}

fn reported(evaluation: &Evaluation, comparison: &Comparison) -> Reported {
    let baseline = evaluation.baseline.as_deref();
    let speeds = evaluation.speed.as_ref().zip(baseline.and_then(|baseline| baseline.speed.as_ref()));
    let distance = comparison.text.as_ref().and_then(|text| text.distance.as_ref());
    let speculation = distance.zip(speeds).map(|(distance, (draft, target))| {
        speculation_of(distance.acceptance_mean, distance.same_top_fraction, draft, target)
    });
    let cascade = baseline.and_then(|baseline| {
        let keep = CascadeOptions::default().keep_quality;
        let options = CascadeOptions::priced(baseline, evaluation, None, 1.0, keep)?;
        cascade(baseline, evaluation, None, &options).ok()
    });
    Reported { evaluation: evaluation.clone(), comparison: comparison.clone(), speculation, cascade }
}
