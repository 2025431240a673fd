//! Two slices of users side by side in the heads view: which ones, their scores, and the units that one of them
//! needs and the other does not.

use eframe::egui::{DragValue, Grid, Ui};

use super::common::{caption_ui, combo_ui, figure_ui, head_ui};
use crate::app::context::Cx;
use crate::app::theme::space;
use crate::app::widgets::{card_ui, primary_button_ui, section_with_ui, tag_ui};
use crate::engine::structure::slices::{Compared, OneSided, Slice};
use crate::engine::units;
use crate::workbench::{Command, Document, JobKind, ScoredBy};

/// What the scores are.
pub(super) const HINT: &str = "What the first slice loses without a unit less what the second does, by Fisher \
                               information: the lowest are units that the second needs and the first does not";

/// Rows of each end of the list.
const MOST_ROWS: usize = 5;

/// Which slices are compared.
pub(super) struct Memory {
    /// True while this is the score that is shown.
    pub(super) is_on: bool,
    first: Option<Slice>,
    second: Option<Slice>,
    weight: f64,
}

impl Default for Memory {
    fn default() -> Self {
        Self { is_on: false, first: None, second: None, weight: 1.0 }
    }
}

impl Memory {
    /// What units are ranked by, once both are chosen.
    pub(super) fn by(&self) -> Option<ScoredBy> {
        let (first, second) = (self.first.clone()?, self.second.clone()?);
        Some(ScoredBy::Slices { first, second, weight: self.weight })
    }
}

/// Pickers of both slices and the button that scores them.
pub(super) fn slices_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, memory: &mut Memory) {
    pick_ui(ui, document, "First slice", &mut memory.first);
    caption_ui(ui, "less");
    let field = DragValue::new(&mut memory.weight).range(0.0..=10.0).speed(0.01).max_decimals(2);
    ui.add(field)
        .accessible_name("Weight of the second slice")
        .on_hover_text("1 is the plain difference; to prune by it, about a third evens slices out");
    caption_ui(ui, "of");
    pick_ui(ui, document, "Second slice", &mut memory.second);
    if cx.is_presenting() {
        return;
    }
    let chosen: Vec<&Slice> = memory.first.iter().chain(&memory.second).collect();
    let is_running = cx.bench.jobs().any(|job| job.kind == JobKind::ScoreUnits);
    let reason = match chosen[..] {
        _ if is_running => Some("Already scoring"),
        [first, second] if first == second => Some("Choose two different slices"),
        [first, second] if [first, second].iter().all(|slice| document.slice_scores.contains_key(slice)) => {
            Some("Both are scored")
        }
        [_, _] => document.cannot_run(),
        _ => Some("Choose two slices first"),
    };
    let button = primary_button_ui(ui, "Score slices", reason.is_none());
    let button = match reason {
        Some(reason) => button.on_disabled_hover_text(reason),
        None => button.on_hover_text("One backward pass over each slice that is not scored yet"),
    };
    if button.clicked() {
        cx.send(Command::ScoreSlices(chosen.into_iter().cloned().collect()));
    }
}

fn pick_ui(ui: &mut Ui, document: &Document, name: &str, slice: &mut Option<Slice>) {
    let shown = slice.as_ref().map_or_else(|| "choose a slice".to_owned(), Slice::to_string);
    let chosen = combo_ui(ui, name, &shown, 130.0, |ui| {
        let offered = document.slices();
        if offered.is_empty() {
            caption_ui(ui, "Choose tasks, or a calibration text that names its domains");
        }
        let is_chosen = |one: &Slice| slice.as_ref() == Some(one);
        offered.into_iter().find(|one| ui.selectable_label(is_chosen(one), one.to_string()).clicked())
    });
    if chosen.is_some() {
        *slice = chosen;
    }
}

/// The units that one slice loses most by beyond the other, from either end; nothing until both are scored.
pub(super) fn one_sided_ui(ui: &mut Ui, by: Option<&ScoredBy>, found: &[OneSided], shows_heads: bool) {
    let Some(ScoredBy::Slices { first, second, .. }) = by.filter(|_| !found.is_empty()) else { return };
    let is_shown = |one: &&OneSided| match one.unit {
        Compared::KvGroup { .. } => !shows_heads,
        Compared::Head { .. } => shows_heads,
        Compared::Channels { .. } => true,
    };
    let found: Vec<&OneSided> = found.iter().filter(is_shown).collect();
    let ends = MOST_ROWS.min(found.len() / 2);
    card_ui(ui, |ui| {
        section_with_ui(ui, "What one slice loses and the other does not", |ui| {
            tag_ui(ui, "predicted");
            caption_ui(ui, "nats a token without the unit, by Fisher information");
        });
        Grid::new("one-sided units").num_columns(4).spacing([space::L, space::XS]).show(ui, |ui| {
            head_ui(ui, "unit", false);
            for title in [first.to_string(), second.to_string(), "difference".to_owned()] {
                head_ui(ui, &title, true);
            }
            ui.end_row();
            for one in found[..ends].iter().chain(&found[found.len() - ends..]) {
                ui.label(one.unit.to_string());
                for value in [one.first, one.second, one.difference()] {
                    figure_ui(ui, units::significant(value));
                }
                ui.end_row();
            }
        });
    });
}
