//! How candidates are evaluated, in a menu beside the button that evaluates, and what so many items can find before
//! anything runs.

use eframe::egui::{Checkbox, DragValue, Grid, Ui, vec2};

use super::common::{action_button_ui, caption_ui, combo_ui, convention_in_words};
use super::heads::controls_menu;
use crate::app::context::Cx;
use crate::app::theme::space;
use crate::app::widgets::quiet_button_ui;
use crate::engine::comparison::stats;
use crate::engine::scoring::Convention;
use crate::workbench::{Action, Command, Document, EvaluationChoices};

/// Share of answers that change, for which the smallest loss that is found is told.
const FLIPS: f64 = 0.05;

/// Items a slice that are offered first where a limit is wished for.
const FIRST_LIMIT: usize = 100;

/// The menu; what is chosen there holds for evaluations from now on.
pub(super) fn evaluation_menu_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document) {
    let is_other = document.choices != EvaluationChoices::default();
    let text = if is_other { "Evaluation: as chosen" } else { "Evaluation" };
    let (response, _) = controls_menu(text).ui(ui, |ui| menu_ui(ui, cx, document));
    let hint = "Windows of the text, worked examples, chat template, items of a slice, seeds, power";
    response.on_hover_text(hint).accessible_name("How candidates are evaluated");
}

fn menu_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document) {
    let mut next = document.choices.clone();
    ui.set_min_width(420.0);
    Grid::new("evaluation").num_columns(2).spacing(vec2(space::M, space::S)).show(ui, |ui| {
        caption_ui(ui, "Text is read in");
        let chosen = combo_ui(ui, "Windows of the text", convention_in_words(next.convention), 250.0, |ui| {
            Convention::ALL
                .into_iter()
                .find(|one| ui.selectable_label(*one == next.convention, convention_in_words(*one)).clicked())
        });
        next.convention = chosen.unwrap_or(next.convention);
        ui.end_row();
        let longest = document.checkpoint.config.as_ref().map_or(1 << 20, |config| config.context).max(8);
        let usual = next.convention.default_context(longest);
        optional_ui(ui, "Tokens of a window", &mut next.context, usual, 8, longest);
        optional_ui(ui, "At most items of a slice", &mut next.items_per_slice, FIRST_LIMIT, 1, 1_000_000);
        seeds_ui(ui, &mut next.seeds);
        watts_ui(ui, &mut next.watts);
    });
    ui.checkbox(&mut next.chat_template, "Prompts as turns of the chat template")
        .on_hover_text("Of the original's own; an evaluation fails where it has none");
    examples_ui(ui, cx, &mut next);
    detectable_ui(ui, document, &next);
    if next != document.choices {
        cx.send(Command::SetEvaluation(Box::new(next)));
    }
}

/// A number that there need not be: a box that switches it on at `first`, and its field.
fn optional_ui(ui: &mut Ui, name: &str, value: &mut Option<usize>, first: usize, least: usize, most: usize) {
    let mut is_on = value.is_some();
    if ui.add(Checkbox::new(&mut is_on, name)).changed() {
        *value = is_on.then_some(first.clamp(least, most));
    }
    match value {
        Some(number) => {
            ui.add(DragValue::new(number).range(least..=most)).accessible_name(format!("{name}, number"));
        }
        None => {
            caption_ui(ui, "as many as there are");
        }
    }
    ui.end_row();
}

fn seeds_ui(ui: &mut Ui, seeds: &mut usize) {
    let mut is_on = *seeds > 1;
    let hint = "Writes 50 items several times at temperature 0.7 to see whether the model agrees with itself";
    if ui.add(Checkbox::new(&mut is_on, "Agreement over seeds")).on_hover_text(hint).changed() {
        *seeds = if is_on { 5 } else { 0 };
    }
    if is_on {
        ui.add(DragValue::new(seeds).range(2..=100)).accessible_name("Number of seeds");
    } else {
        caption_ui(ui, "not measured");
    }
    ui.end_row();
}

fn watts_ui(ui: &mut Ui, watts: &mut Option<f64>) {
    let mut is_on = watts.is_some();
    let hint = "Where no counter of the processor or a GPU can be read; the energy is then called an estimate";
    if ui.add(Checkbox::new(&mut is_on, "Estimate energy with")).on_hover_text(hint).changed() {
        *watts = is_on.then_some(65.0);
    }
    match watts {
        Some(watts) => {
            let field = DragValue::new(watts).range(0.1..=10_000.0).suffix(" W");
            ui.add(field).accessible_name("Power in watts");
        }
        None => {
            caption_ui(ui, "counters only");
        }
    }
    ui.end_row();
}

/// Which file worked examples come from, and how many stand before a prompt.
fn examples_ui(ui: &mut Ui, cx: &mut Cx<'_>, next: &mut EvaluationChoices) {
    ui.horizontal(|ui| {
        action_button_ui(ui, cx, Action::ChooseExamples, false);
        let Some(path) = &next.examples else {
            caption_ui(ui, "no examples in front of prompts");
            return;
        };
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        ui.add(DragValue::new(&mut next.few_shot).range(0..=64)).accessible_name("Examples before a prompt");
        caption_ui(ui, format!("of {name}")).on_hover_text(path.display().to_string());
        if quiet_button_ui(ui, "None").clicked() {
            (next.examples, next.few_shot) = (None, 0);
        }
    });
}

/// What the items can find, as a caption.
pub(super) fn detectable_ui(ui: &mut Ui, document: &Document, choices: &EvaluationChoices) {
    if let Some(words) = detectable_in_words(document, choices) {
        caption_ui(ui, words).on_hover_text(
            "The smallest loss of accuracy that a paired test finds in four of five cases, known before anything runs",
        );
    }
}

/// What all items and those of the smallest slice can find.
pub(super) fn detectable_in_words(document: &Document, choices: &EvaluationChoices) -> Option<String> {
    let tasks = document.tasks.as_ref()?;
    let most = choices.items_per_slice.unwrap_or(usize::MAX);
    let slices: Vec<(String, usize)> = tasks
        .items
        .slices()
        .map(|slice| (slice.name(), slice.items.min(most)))
        .filter(|(_, count)| *count > 0)
        .collect();
    words_of(&slices)
}

fn words_of(slices: &[(String, usize)]) -> Option<String> {
    let (name, least) = slices.iter().min_by_key(|(_, count)| *count)?;
    let all: usize = slices.iter().map(|(_, count)| count).sum();
    let loss = |items: usize| match detectable(items) {
        Some(loss) => format!("a loss of {:.1} points", loss * 100.0),
        None => "none, however one-sided,".to_owned(),
    };
    let share = FLIPS * 100.0;
    let smallest = if slices.len() > 1 {
        format!(", and {} in the smallest slice ({name}, {least} items)", loss(*least))
    } else {
        String::new()
    };
    let words = format!("Where {share:.0} % of the answers change, {all} items find {}{smallest}", loss(all));
    Some(words.trim_end_matches(',').to_owned())
}

/// The smallest loss that so many items find with 80 % power, as a fraction; none where not even a change of all
/// those answers for the worse would be found.
fn detectable(items: usize) -> Option<f64> {
    stats::detectable(items as f64, FLIPS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_found_is_never_more_than_what_changes() {
        // A difference cannot be larger than the share of answers that change.
        assert_eq!(detectable(1), None);
        assert_eq!(detectable(20), None);
        let loss = detectable(100_000).expect("found");
        assert!(loss > 0.0 && loss < 0.01, "{loss}");
        let slices = [("t/a".to_owned(), 100_000), ("t/b".to_owned(), 10)];
        let words = words_of(&slices).expect("items");
        assert!(words.starts_with("Where 5 % of the answers change, 100010 items find a loss of 0."), "{words}");
        assert!(words.ends_with(", and none, however one-sided, in the smallest slice (t/b, 10 items)"), "{words}");
        let few = words_of(&[("t/b".to_owned(), 10)]).expect("items");
        assert_eq!(few, "Where 5 % of the answers change, 10 items find none, however one-sided");
        assert_eq!(words_of(&[]), None);
    }
}
