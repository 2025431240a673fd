//! The comparison: the sentence a stakeholder needs, size against accuracy and speed, slices with
//! their differences, distances of the text, and the items whose answer changed.

use std::sync::Arc;

use eframe::egui::{Align, Label, ScrollArea, Sense, Ui, vec2};

use super::common::{action_button_ui, candidate_index, caption_ui, focus_picker_ui, no_document_ui};
use super::compare_data::{self, Model};
use super::compare_figures;
use super::compare_more;
use super::compare_parts;
use super::compare_tables;
use super::evaluation_menu::{detectable_in_words, detectable_ui, evaluation_menu_ui};
use super::gate_strip::{gate_strip_ui, rollback_ui};
use crate::app::context::Cx;
use crate::app::plots::distribution::Distribution;
use crate::app::plots::export::offer_table_ui;
use crate::app::plots::scatter::{Scatter, scatter_ui};
use crate::app::plots::slices::{Slices, slices_selected_ui};
use crate::app::theme::{Type, UiTokens as _, space};
use crate::app::widgets::{
    Level, Notice, card_ui, empty_ui, notice_ui, quiet_button_ui, secondary_button_ui, section_with_ui,
};
use crate::engine::comparison::{Comparison, Flip};
use crate::engine::evaluation::Evaluation;
use crate::workbench::{Action, Command, Document, Run, RunId, Subject, Unfinished};

/// Flips that are shown at first, and more with each wish.
const FLIPS: usize = 12;

/// What the view remembers between frames.
#[derive(Default)]
pub struct Memory {
    /// Slice whose flips are shown; none for all.
    slice: Option<String>,
    flips_shown: usize,
    /// True for one frame: the changed answers shall be scrolled to.
    wants_flips: bool,
    /// The flip whose texts stand side by side.
    open_flip: Option<String>,
    /// What that item asks; read when it was opened.
    asked: Option<compare_parts::Asked>,
    key: Key,
    scatter: Scatter,
    slices: Slices,
    distribution: Option<Distribution>,
    parts: compare_parts::Parts,
    more: compare_more::More,
    flips: Vec<usize>,
    /// The first of them with their texts, as many as are shown.
    texts: Vec<Flip>,
    /// Why no more texts could be read.
    unread: Option<String>,
}

/// What the shaped data was made of. The objects are kept, so that no other takes their place.
#[derive(Default)]
struct Key {
    runs: Vec<(RunId, String, Option<Arc<Evaluation>>)>,
    baseline: Option<Arc<Evaluation>>,
    comparison: Option<Arc<Comparison>>,
    slice: Option<String>,
}

/// Paints the view.
pub fn compare_ui(ui: &mut Ui, cx: &mut Cx<'_>) {
    let bench = cx.bench;
    let Some(document) = &bench.state().document else {
        no_document_ui(ui, cx, "Open a model, run a plan, and see here what the smaller model gains and loses");
        return;
    };
    if document.runs.is_empty() {
        let is_possible = bench.unavailable(Action::RunPlan).is_none() && !cx.is_presenting();
        let sentence = "Run a plan first: its candidate is then compared with the original, item by item";
        if empty_ui(ui, "Nothing to compare yet", sentence, is_possible.then(|| Action::RunPlan.text())) {
            cx.act(Action::RunPlan);
        }
        ui.vertical_centered(|ui| detectable_ui(ui, document, &document.choices));
        return;
    }
    let mut memory = std::mem::take(&mut cx.memory.compare);
    memory.update(document);
    ScrollArea::vertical().id_salt("compare").auto_shrink(false).show(ui, |ui| {
        ui.spacing_mut().item_spacing.y = space::S;
        picker_ui(ui, cx, document);
        let run = document.picked();
        let compared = run.and_then(|run| Some((run, run.comparison.as_deref()?)));
        if let Some((run, comparison)) = compared {
            sentence_ui(ui, document, run, comparison);
        } else if let Some(run) = run {
            missing_ui(ui, cx, run);
            detectable_ui(ui, document, &document.choices);
        }
        scatter_card_ui(ui, cx, &memory);
        compare_more::all_ui(ui, cx, document);
        if let Some((run, comparison)) = compared {
            super::heads_went::went_ui(ui, document, run, comparison);
            slices_card_ui(ui, &mut memory);
            memory.parts.views_ui(ui);
            compare_figures::figures_ui(ui, document, run, comparison, memory.distribution.as_ref());
            memory.parts.figures_ui(ui, comparison);
            memory.more.card_ui(ui);
            compare_parts::draft_ui(ui, comparison, run);
            memory.more.cascade_ui(ui);
            flips_ui(ui, document, comparison, &mut memory);
            written_up_ui(ui, cx);
        }
    });
    cx.memory.compare = memory;
}

/// The way to the report.
fn written_up_ui(ui: &mut Ui, cx: &mut Cx<'_>) {
    ui.horizontal_wrapped(|ui| {
        if secondary_button_ui(ui, "Write it up", true).on_hover_text(Action::ShowReport.tooltip()).clicked() {
            cx.act(Action::ShowReport);
        }
        caption_ui(ui, "as a report, a model card and a documentation sheet");
    });
}

fn picker_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document) {
    ui.horizontal_wrapped(|ui| {
        caption_ui(ui, "Candidate");
        focus_picker_ui(ui, cx, document, "Candidate to compare", 180.0);
        if cx.is_presenting() {
            return;
        }
        // Before the button, which comes when a choice makes results stale: an open menu keeps its place.
        evaluation_menu_ui(ui, cx, document);
        if document.runs.iter().any(Run::lacks_evaluation) {
            let button = action_button_ui(ui, cx, Action::EvaluateCandidates, false);
            if let Some(words) = detectable_in_words(document, &document.choices) {
                button.on_hover_text(words);
            }
        }
        action_button_ui(ui, cx, Action::LoadGates, false);
    });
}

fn sentence_ui(ui: &mut Ui, document: &Document, run: &Run, comparison: &Comparison) {
    let color = ui.tokens().candidate(candidate_index(document, run.id));
    card_ui(ui, |ui| {
        ui.horizontal_top(|ui| {
            let (rect, _) = ui.allocate_exact_size(vec2(5.0, 28.0), Sense::hover());
            ui.painter().rect_filled(rect, 2.0, color);
            ui.add(Label::new(Type::Title.text(&comparison.sentence)).wrap());
        });
        ui.horizontal_wrapped(|ui| gate_strip_ui(ui, &comparison.gates));
        rollback_ui(ui, comparison);
        if run.is_stale {
            let text = "Measured with other tasks or another text than are chosen now";
            notice_ui(ui, &Notice { level: Level::Warning, text, detail: "", action: None });
        }
        for warning in &comparison.warnings {
            notice_ui(ui, &Notice { level: Level::Warning, text: warning, detail: "", action: None });
        }
    });
}

/// What is said of a candidate that is not evaluated, with the button that evaluates it.
pub(super) fn missing_ui(ui: &mut Ui, cx: &mut Cx<'_>, run: &Run) {
    let is_busy = cx.bench.jobs().any(|job| job.title == format!("evaluate {}", run.name));
    let unfinished = cx.document().and_then(|document| document.unfinished.get(&run.id));
    let text = match unfinished {
        _ if is_busy => format!("{} is being evaluated", run.name),
        Some(found) => stopped_in_words(&run.name, found),
        None => format!("{} is not evaluated yet", run.name),
    };
    let can_evaluate = !is_busy
        && !cx.is_presenting()
        && run.checkpoint().is_some()
        && cx.document().is_some_and(|document| document.has_data() && document.cannot_run().is_none());
    let detail = "Original and candidate are scored on the same items, the same text, and for speed";
    let action = can_evaluate.then_some("Evaluate");
    if notice_ui(ui, &Notice { level: Level::Info, text: &text, detail, action }) {
        cx.send(Command::Evaluate(Subject::Run(run.id)));
    }
}

/// How far an evaluation came that was cut short.
fn stopped_in_words(name: &str, found: &Unfinished) -> String {
    let text = if found.has_text { ", and what was read of the text" } else { "" };
    format!(
        "An evaluation of {name} was stopped after {} of {} items{text}: Evaluate goes on there",
        found.items, found.of
    )
}

fn scatter_card_ui(ui: &mut Ui, cx: &mut Cx<'_>, memory: &Memory) {
    if memory.scatter.points.is_empty() {
        return;
    }
    card_ui(ui, |ui| {
        section_with_ui(ui, "Size, accuracy and speed", |ui| {
            caption_ui(ui, "the line is the Pareto front, larger marks decode faster").on_hover_text(
                "Speeds are of one moment: each candidate's ratio to the original that was measured in turns with it, \
                 times the original's",
            );
        });
        let (_, clicked) = scatter_ui(ui, &memory.scatter, 280.0);
        let runs: Vec<RunId> = memory.key.runs.iter().map(|run| run.0).collect();
        let point = clicked.and_then(|index| memory.scatter.points.get(index));
        if let Some(run) = point.and_then(|point| compare_data::run_of(&runs, point)) {
            cx.send(Command::FocusRun(Some(run)));
        }
    });
}

/// The words that lead to the changed answers of a slice; where there are none, a sentence that says so.
fn changed_below(slice: &str, count: usize) -> Result<String, String> {
    match count {
        0 => Err(format!("No answer of {slice} changed")),
        1 => Ok(format!("1 changed answer of {slice} below")),
        _ => Ok(format!("{count} changed answers of {slice} below")),
    }
}

fn slices_card_ui(ui: &mut Ui, memory: &mut Memory) {
    if memory.slices.rows.is_empty() {
        return;
    }
    card_ui(ui, |ui| {
        section_with_ui(ui, "Slices, largest loss first", |ui| {
            caption_ui(ui, "95 % intervals of paired items; click a slice to see its changed answers");
        });
        if let Some(clicked) = slices_selected_ui(ui, &memory.slices, memory.slice.as_deref()) {
            let name = memory.slices.rows[clicked].name.clone();
            memory.slice = (memory.slice.as_ref() != Some(&name)).then_some(name);
            memory.flips_shown = FLIPS;
            ui.ctx().request_repaint();
        } else if let Some(slice) = &memory.slice {
            match changed_below(slice, memory.flips.len()) {
                Ok(link) if quiet_button_ui(ui, &link).clicked() => memory.wants_flips = true,
                Ok(_) => {}
                Err(nothing) => {
                    caption_ui(ui, nothing);
                }
            }
        }
    });
}

fn flips_ui(ui: &mut Ui, document: &Document, comparison: &Comparison, memory: &mut Memory) {
    if comparison.flips.is_empty() {
        return;
    }
    let title = match &memory.slice {
        Some(slice) => format!("Changed answers in {slice}"),
        None => "Changed answers".to_owned(),
    };
    let card = card_ui(ui, |ui| {
        let gained = memory.flips.iter().filter(|index| comparison.flips.is_gain(**index)).count();
        section_with_ui(ui, &title, |ui| {
            caption_ui(ui, format!("{} lost, {gained} gained", memory.flips.len() - gained));
            if memory.slice.is_some() && quiet_button_ui(ui, "All slices").clicked() {
                memory.slice = None;
            }
        });
        let most = memory.flips_shown.max(FLIPS);
        memory.read_flips(comparison, most);
        if let Some(err) = &memory.unread {
            ui.label(format!("Their texts cannot be shown: {err}"));
        }
        compare_parts::flip_list_ui(ui, &memory.texts, &mut memory.open_flip, memory.asked.as_ref());
        compare_parts::Asked::read(&mut memory.asked, memory.open_flip.as_deref(), document);
        let rest = memory.flips.len().saturating_sub(most);
        if rest > 0 && secondary_button_ui(ui, &format!("Show {} more of {rest}", rest.min(3 * FLIPS)), true).clicked()
        {
            memory.flips_shown = most + 3 * FLIPS;
        }
    });
    if std::mem::take(&mut memory.wants_flips) {
        card.response.scroll_to_me(Some(Align::TOP));
    }
    offer_table_ui(ui, &card.response, &title, || compare_tables::flips(&comparison.flips, &memory.flips));
}

impl Memory {
    fn update(&mut self, document: &Document) {
        let run = document.picked();
        let comparison = run.and_then(|run| run.comparison.as_ref());
        if self.key.is_of(document, comparison, self.slice.as_ref()) {
            return;
        }
        if !super::common::is_same(self.key.comparison.as_ref(), comparison) {
            self.slice = None;
            self.open_flip = None;
            self.asked = None;
            self.flips_shown = FLIPS;
        }
        self.key = Key {
            runs: document.runs.iter().map(|run| (run.id, run.name.clone(), run.evaluation.clone())).collect(),
            baseline: document.baseline.clone(),
            comparison: comparison.cloned(),
            slice: self.slice.clone(),
        };
        let baseline =
            document.baseline.iter().map(|evaluation| Model { name: "original", candidate: None, evaluation });
        let candidates = document.runs.iter().enumerate().filter_map(|(index, run)| {
            let evaluation = run.evaluation.as_deref()?;
            Some(Model { name: &run.name, candidate: Some(index), evaluation })
        });
        let models: Vec<Model<'_>> = baseline.chain(candidates).collect();
        self.scatter = compare_data::scatter(&models);
        let index = run.map_or(0, |run| candidate_index(document, run.id));
        let name = run.map_or("", |run| run.name.as_str());
        self.slices = comparison.map(|found| compare_data::slices(found, name, index)).unwrap_or_default();
        let distance = comparison.and_then(|found| found.text.as_ref()?.distance.as_ref());
        self.distribution = distance.and_then(|distance| compare_data::distribution(distance, index));
        self.parts.update(comparison.map(Arc::as_ref), name, index);
        let own = run.and_then(|run| run.evaluation.as_deref());
        let baseline = own.and_then(|own| own.baseline.as_deref().or(document.baseline.as_deref()));
        let compared = comparison.zip(baseline).zip(own);
        self.more.update(compared.map(|((comparison, baseline), own)| (comparison.as_ref(), baseline, own)), index);
        self.flips = comparison.map(|found| compare_data::flips(found, self.slice.as_deref())).unwrap_or_default();
        self.texts.clear();
        self.unread = None;
    }

    /// Reads the texts of the flips that are shown, and were not read before, from where they lie.
    fn read_flips(&mut self, comparison: &Comparison, most: usize) {
        let most = most.min(self.flips.len());
        while self.texts.len() < most && self.unread.is_none() {
            match comparison.flips.get(self.flips[self.texts.len()]) {
                Ok(flip) => self.texts.push(flip),
                Err(err) => self.unread = Some(err.to_string()),
            }
        }
    }
}

impl Key {
    fn is_of(&self, document: &Document, comparison: Option<&Arc<Comparison>>, slice: Option<&String>) -> bool {
        use super::common::is_same;
        self.runs.len() == document.runs.len()
            && self.runs.iter().zip(&document.runs).all(|((id, name, evaluation), run)| {
                *id == run.id && *name == run.name && is_same(evaluation.as_ref(), run.evaluation.as_ref())
            })
            && is_same(self.baseline.as_ref(), document.baseline.as_ref())
            && is_same(self.comparison.as_ref(), comparison)
            && self.slice.as_ref() == slice
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_leads_to_its_changed_answers_or_says_that_there_are_none() {
        assert_eq!(changed_below("facts/rare", 5), Ok("5 changed answers of facts/rare below".to_owned()));
        assert_eq!(changed_below("facts/rare", 1), Ok("1 changed answer of facts/rare below".to_owned()));
        assert_eq!(changed_below("facts/rare", 0), Err("No answer of facts/rare changed".to_owned()));
    }

    #[test]
    fn a_stopped_evaluation_says_how_far_it_came() {
        let mut found = Unfinished { items: 2939, of: 5000, has_text: false };
        let start = "An evaluation of q4 was stopped after 2939 of 5000 items";
        assert_eq!(stopped_in_words("q4", &found), format!("{start}: Evaluate goes on there"));
        found.has_text = true;
        let text = ", and what was read of the text";
        assert_eq!(stopped_in_words("q4", &found), format!("{start}{text}: Evaluate goes on there"));
    }
}
