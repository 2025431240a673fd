//! What views share: the empty state without a document, buttons that know why they cannot be
//! pressed, figures in cells, and the grid of layers by roles.

use std::sync::Arc;

use eframe::egui::{Align, ComboBox, Layout, Response, RichText, Ui};
use egui_extras::{Column, Table, TableBuilder};

use crate::app::context::Cx;
use crate::app::theme::{Type, UiTokens as _, space};
use crate::app::widgets::{empty_ui, primary_button_ui, quiet_button_ui, secondary_button_ui};
use crate::engine::checkpoint::{Checkpoint, Role};
use crate::engine::evaluation::Evaluation;
use crate::engine::scoring::{Convention, SpeedResult};
use crate::engine::sensitivity;
use crate::workbench::{Action, Command, Document, RunId};

/// What every view shows while nothing is open.
pub(super) fn no_document_ui(ui: &mut Ui, cx: &mut Cx<'_>, sentence: &str) {
    if let Some(path) = &cx.state().opening {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        empty_ui(ui, "Opening", &format!("Reading the headers of {name}"), None);
        return;
    }
    if empty_ui(ui, "Nothing is open", sentence, Some(Action::OpenDemo.text())) {
        cx.act(Action::OpenDemo);
    }
    ui.vertical_centered(|ui| {
        ui.add_space(space::S);
        if quiet_button_ui(ui, Action::OpenFile.text()).clicked() {
            cx.act(Action::OpenFile);
        }
    });
}

/// A button for an action: disabled with its reason where it cannot be done now.
pub(super) fn action_button_ui(ui: &mut Ui, cx: &mut Cx<'_>, action: Action, is_primary: bool) -> Response {
    let reason = cx.bench.unavailable(action);
    let response = if is_primary {
        primary_button_ui(ui, action.text(), reason.is_none())
    } else {
        secondary_button_ui(ui, action.text(), reason.is_none())
    };
    let response = match reason {
        Some(reason) => response.on_disabled_hover_text(reason),
        None => response.on_hover_text(action.tooltip()),
    };
    if response.clicked() {
        cx.act(action);
    }
    response
}

/// A combo box whose accessible name is `name`; returns what `contents` chose.
pub(super) fn combo_ui<R>(
    ui: &mut Ui,
    name: &str,
    selected: &str,
    width: f32,
    contents: impl FnOnce(&mut Ui) -> Option<R>,
) -> Option<R> {
    let combo = ComboBox::from_id_salt(name).selected_text(selected).width(width);
    let output = combo.show_ui(ui, contents);
    output.response.accessible_name(name);
    output.inner.flatten()
}

/// A figure at the right end of its cell.
pub(super) fn figure_ui(ui: &mut Ui, text: impl Into<String>) -> Response {
    right_ui(ui, Type::Mono.text(text))
}

/// Text at the right end of its cell.
pub(super) fn right_ui(ui: &mut Ui, text: RichText) -> Response {
    ui.with_layout(Layout::right_to_left(Align::Center), |ui| ui.label(text)).inner
}

/// A column's head, above names at the left or above figures at the right.
pub(super) fn head_ui(ui: &mut Ui, text: &str, is_right: bool) {
    let text = Type::SmallStrong.text(text).color(ui.tokens().weak);
    if is_right {
        right_ui(ui, text);
    } else {
        ui.label(text);
    }
}

/// A caption in weak text.
pub(super) fn caption_ui(ui: &mut Ui, text: impl Into<String>) -> Response {
    let weak = ui.tokens().weak;
    ui.label(Type::Small.text(text).color(weak))
}

/// A run's place in the list, which is its colour everywhere.
pub(super) fn candidate_index(document: &Document, id: RunId) -> usize {
    document.runs.iter().position(|run| run.id == id).unwrap_or(0)
}

/// Accuracy over all items with half of its 95 % interval, both in percent.
pub(super) fn accuracy_percent(evaluation: &Evaluation) -> Option<(f64, f64)> {
    let accuracy = evaluation.accuracy()?;
    let sum: f64 = evaluation.items.iter().map(|item| item.score()).sum();
    let (low, high) = crate::engine::comparison::stats::wilson(sum, evaluation.items.len());
    Some((accuracy * 100.0, (high - low) * 50.0))
}

/// A candidate's speed among those of others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct RelativeSpeed {
    /// The ratio times what the reference did; as it was measured where there is no ratio.
    pub tokens_per_second: f64,
    /// Over the original's, measured in turns with it.
    pub ratio: Option<f64>,
}

/// A candidate's speed that can be laid beside those of others: its ratio to the original that was measured in turns
/// with it, times the speed of `reference`, the one original of all. A machine is not equally fast at all times, so
/// speeds of two moments say nothing of each other.
pub(super) fn relative_speed(
    candidate: &Evaluation,
    reference: Option<&Evaluation>,
    rate: impl Fn(&SpeedResult) -> f64,
) -> Option<RelativeSpeed> {
    let measured = rate(candidate.speed.as_ref()?);
    let own = candidate.baseline.as_ref().and_then(|own| own.speed.as_ref()).map(&rate).filter(|own| *own > 0.0);
    let Some(ratio) = own.map(|own| measured / own) else {
        return Some(RelativeSpeed { tokens_per_second: measured, ratio: None });
    };
    let shared = reference.and_then(|reference| reference.speed.as_ref()).map(&rate);
    Some(RelativeSpeed { tokens_per_second: shared.map_or(measured, |shared| ratio * shared), ratio: Some(ratio) })
}

/// How a text is cut into windows.
pub(super) fn convention_in_words(convention: Convention) -> &'static str {
    match convention {
        Convention::NonOverlapping => "windows that do not overlap",
        Convention::LlamaCpp => "the second half of each, as llama.cpp does",
        Convention::Strided => "windows that overlap by half",
    }
}

/// A time in seconds since 1970 as people say it: how long ago.
pub(super) fn ago(created_unix_secs: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_secs());
    ago_from(now, created_unix_secs)
}

fn ago_from(now: u64, then: u64) -> String {
    let elapsed = now.saturating_sub(then);
    match elapsed {
        0..60 => "just now".to_owned(),
        60..3_600 => format!("{} min ago", elapsed / 60),
        3_600..86_400 => format!("{} h ago", elapsed / 3_600),
        _ => format!("{} d ago", elapsed / 86_400),
    }
}

/// True if both are the same shared object, or both nothing.
pub(super) fn is_same<T: ?Sized>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

/// A tensor's name without what all of them share: `3.mlp.down_proj`, `embed_tokens`.
pub(super) fn brief_name(name: &str) -> &str {
    let name = name.strip_suffix(".weight").unwrap_or(name);
    let name = name.strip_prefix("model.").unwrap_or(name);
    name.strip_prefix("layers.").unwrap_or(name)
}

/// Tensors by role and layer; the last column is the model itself where a tensor has no layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Grid {
    /// From the top.
    pub roles: Vec<Role>,
    /// From the left; none is the model outside its layers.
    pub layers: Vec<Option<usize>>,
    /// Row by row, index in the checkpoint.
    pub tensors: Vec<Option<usize>>,
}

impl Grid {
    /// Matrices of layers, and with `with_ends` embedding and head.
    pub fn of(checkpoint: &Checkpoint, with_ends: bool) -> Self {
        let subjects: Vec<(usize, Role, Option<usize>)> = checkpoint
            .tensors
            .iter()
            .enumerate()
            .filter(|(_, tensor)| sensitivity::is_default_subject(tensor))
            .filter(|(_, tensor)| with_ends || (tensor.role.is_layer_linear() && tensor.layer.is_some()))
            .map(|(index, tensor)| (index, tensor.role, tensor.layer))
            .collect();
        Self::of_subjects(&subjects)
    }

    fn of_subjects(subjects: &[(usize, Role, Option<usize>)]) -> Self {
        let mut roles: Vec<Role> =
            Role::ALL.into_iter().filter(|role| subjects.iter().any(|subject| subject.1 == *role)).collect();
        // Ends of the model stand below the layers' matrices.
        roles.sort_by_key(|role| !role.is_layer_linear());
        let mut layers: Vec<Option<usize>> = subjects.iter().map(|subject| subject.2).collect();
        layers.sort_by_key(|layer| layer.unwrap_or(usize::MAX));
        layers.dedup();
        let mut tensors = vec![None; roles.len() * layers.len()];
        for &(index, role, layer) in subjects {
            let row = roles.iter().position(|own| *own == role);
            let column = layers.iter().position(|own| *own == layer);
            if let (Some(row), Some(column)) = (row, column) {
                tensors[row * layers.len() + column].get_or_insert(index);
            }
        }
        Self { roles, layers, tensors }
    }

    /// The tensor at a row and a column.
    pub fn at(&self, row: usize, column: usize) -> Option<usize> {
        self.tensors.get(row * self.layers.len() + column).copied().flatten()
    }

    /// Where a tensor is.
    pub fn find(&self, tensor: usize) -> Option<(usize, usize)> {
        let at = self.tensors.iter().position(|own| *own == Some(tensor))?;
        Some((at / self.layers.len(), at % self.layers.len()))
    }

    /// What stands over or beside a layer.
    pub fn layer_name(layer: Option<usize>) -> String {
        layer.map_or_else(|| "model".to_owned(), |layer| layer.to_string())
    }
}

/// A choice among the runs; the one picked becomes the run that is compared and overlaid.
pub(super) fn focus_picker_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, name: &str, width: f32) {
    let picked = document.picked();
    let selected = picked.map_or("none", |run| run.name.as_str());
    let chosen = combo_ui(ui, name, selected, width, |ui| {
        let mut chosen = None;
        for run in &document.runs {
            if ui.selectable_label(picked.is_some_and(|picked| picked.id == run.id), &run.name).clicked() {
                chosen = Some(run.id);
            }
        }
        chosen
    });
    if let Some(run) = chosen {
        cx.send(Command::FocusRun(Some(run)));
    }
}

/// A table of figures with its head painted: names that take what is left, at least `name_width`, then
/// columns of `figure_width`; each head comes with its explanation.
pub(super) fn figure_table_ui<'a>(
    ui: &'a mut Ui,
    heads: &[(&str, &str)],
    [name_width, figure_width]: [f32; 2],
    height: f32,
) -> Table<'a> {
    TableBuilder::new(ui)
        .striped(false)
        .max_scroll_height(height)
        .cell_layout(Layout::left_to_right(Align::Center))
        .column(Column::remainder().at_least(name_width).clip(true))
        .columns(Column::initial(figure_width).at_least(60.0).clip(true), heads.len() - 1)
        .header(space::ROW_COMPACT, |mut header| {
            for (index, (head, help)) in heads.iter().enumerate() {
                let (_, response) = header.col(|ui| head_ui(ui, head, index > 0));
                response.on_hover_text(*help);
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_puts_the_models_ends_last_and_finds_what_it_holds() {
        let subjects =
            [(0, Role::Embedding, None), (1, Role::Q, Some(0)), (2, Role::Down, Some(0)), (3, Role::Q, Some(2))];
        let grid = Grid::of_subjects(&subjects);
        assert_eq!(grid.roles, [Role::Q, Role::Down, Role::Embedding]);
        assert_eq!(grid.layers, [Some(0), Some(2), None]);
        assert_eq!(grid.at(0, 1), Some(3));
        assert_eq!(grid.at(1, 1), None);
        assert_eq!(grid.find(0), Some((2, 2)));
        assert_eq!(grid.find(9), None);
    }

    #[test]
    fn brief_names_keep_the_layer() {
        assert_eq!(brief_name("model.layers.3.mlp.down_proj.weight"), "3.mlp.down_proj");
        assert_eq!(brief_name("lm_head.weight"), "lm_head");
    }

    #[test]
    fn times_are_told_in_the_largest_whole_unit() {
        assert_eq!(ago_from(100, 90), "just now");
        assert_eq!(ago_from(1_000, 100), "15 min ago");
        assert_eq!(ago_from(100_000, 100), "1 d ago");
        assert_eq!(ago_from(0, 100), "just now");
    }
}
