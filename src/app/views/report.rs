//! The result written up: report, model card and documentation sheet of what is compared, each saved where the user
//! says.

use eframe::egui::Ui;

use super::common::caption_ui;
use crate::app::plots::export::{Format, Saved, hand_over};
use crate::app::widgets::{card_ui, secondary_button_ui, section_ui};
use crate::engine::comparison::Comparison;
use crate::engine::comparison::speculation::speculation;
use crate::engine::evaluation::Evaluation;
use crate::engine::report::{CardOptions, Environment, Report, ReportInput, Reported, Source, report};
use crate::workbench::{Document, Run};

/// A document that can be written.
struct Offer {
    button: &'static str,
    hint: &'static str,
    stem: &'static str,
    format: Format,
    text: fn(Report) -> String,
}

const OFFERS: [Offer; 4] = [
    Offer {
        button: "Report as HTML…",
        hint: "One file with tables and plots; any browser prints it to PDF",
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
        button: "Model card…",
        hint: "README.md for the Hugging Face hub; licence and base model are left for you to fill in",
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
];

/// Buttons that write up the run in focus beside all others that were compared.
pub(super) fn report_card_ui(ui: &mut Ui, document: &Document, run: &Run) {
    let mut problem = None;
    card_ui(ui, |ui| {
        section_ui(ui, "Written up");
        ui.horizontal_wrapped(|ui| {
            for offer in &OFFERS {
                if !secondary_button_ui(ui, offer.button, true).on_hover_text(offer.hint).clicked() {
                    continue;
                }
                match input(document, run).map(|input| report(&input)) {
                    Some(Ok(written)) => {
                        let bytes = (offer.text)(written).into_bytes();
                        hand_over(ui.ctx(), Saved { stem: offer.stem.to_owned(), format: offer.format, bytes });
                    }
                    Some(Err(err)) => problem = Some(err.to_string()),
                    None => problem = Some("the original was not evaluated with this candidate".to_owned()),
                }
            }
        });
        caption_ui(
            ui,
            problem
                .as_deref()
                .unwrap_or("Every figure comes from the evaluations here; what nobody measured is left out"),
        );
    });
}

/// Everything that was compared, the run in focus first; `None` where its baseline is not known.
fn input(document: &Document, run: &Run) -> Option<ReportInput> {
    let baseline = run.evaluation.as_ref()?.baseline.as_deref().or(document.baseline.as_deref())?.clone();
    let others = document.runs.iter().filter(|other| other.id != run.id);
    let candidates: Vec<Reported> = std::iter::once(run)
        .chain(others)
        .filter_map(|run| Some(reported(run.evaluation.as_deref()?, run.comparison.as_deref()?)))
        .collect();
    let plan = run.plan.to_toml();
    let hash = |text: &str| Source {
        what: "plan".to_owned(),
        path: "plan.toml".into(),
        hash: crate::engine::report::hash_of(text),
        bytes: text.len() as u64,
        text: Some(text.to_owned()),
    };
    let mut sources = vec![hash(&plan)];
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
        log: Vec::new(),
        card: CardOptions::default(),
    })
}

fn reported(evaluation: &Evaluation, comparison: &Comparison) -> Reported {
    let base = evaluation.baseline.as_deref().and_then(|baseline| baseline.speed.as_ref());
    let speeds = evaluation.speed.as_ref().zip(base);
    let distance = comparison.text.as_ref().and_then(|text| text.distance.as_ref());
    let speculation = distance.zip(speeds).map(|(distance, (draft, target))| {
        speculation(distance.acceptance_mean, distance.same_top_fraction, draft.tpot_secs, target.tpot_secs)
    });
    Reported { evaluation: evaluation.clone(), comparison: comparison.clone(), speculation, cascade: None }
}
