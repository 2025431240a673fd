//! The command palette: anything that can be done, found by its name.

use eframe::egui::{self, Key, Modal, ScrollArea, Ui};

use super::menu::shortcut_text;
use crate::app::context::Cx;
use crate::app::theme::{Type, UiTokens as _, space};
use crate::app::widgets::search_field_ui;
use crate::workbench::Action;

/// Whether it is open, and what was typed.
#[derive(Default)]
pub struct Memory {
    is_open: bool,
    needs_focus: bool,
    text: String,
    chosen: usize,
}

impl Memory {
    /// Opens or closes the palette.
    pub fn toggle(&mut self) {
        self.is_open = !self.is_open;
        self.needs_focus = self.is_open;
        self.text.clear();
        self.chosen = 0;
    }
}

/// How well an action's words fit what was typed: lower is better, none does not fit.
///
/// Every typed word must occur; the earlier in the name, the better.
pub fn rank(action: Action, typed: &str) -> Option<usize> {
    let name = action.text().to_lowercase();
    let whole = format!("{name} {}", action.tooltip().to_lowercase());
    typed
        .to_lowercase()
        .split_whitespace()
        .try_fold(0, |sum, word| name.find(word).or_else(|| whole.find(word).map(|at| at + 1000)).map(|at| sum + at))
}

/// Paints the palette, if it is open.
pub fn palette_ui(ui: &mut Ui, cx: &mut Cx<'_>) {
    if !cx.memory.palette.is_open {
        return;
    }
    let mut found: Vec<(usize, Action)> = Action::ALL
        .into_iter()
        .filter(|action| *action != Action::Palette)
        .filter_map(|action| Some((rank(action, &cx.memory.palette.text)?, action)))
        .collect();
    found.sort_by_key(|(rank, _)| *rank);
    let (down, up, enter) = ui.input_mut(|input| {
        (
            input.consume_key(egui::Modifiers::NONE, Key::ArrowDown),
            input.consume_key(egui::Modifiers::NONE, Key::ArrowUp),
            input.consume_key(egui::Modifiers::NONE, Key::Enter),
        )
    });
    let last = found.len().saturating_sub(1);
    let memory = &mut cx.memory.palette;
    memory.chosen = (memory.chosen + usize::from(down)).saturating_sub(usize::from(up)).min(last);
    let mut done = None;
    let modal = Modal::new(egui::Id::unique("palette")).show(ui.ctx(), |ui| {
        ui.set_width(520.0);
        let field = search_field_ui(ui, "Find a command", &mut cx.memory.palette.text);
        if std::mem::take(&mut cx.memory.palette.needs_focus) {
            field.request_focus();
        }
        if field.changed() {
            cx.memory.palette.chosen = 0;
        }
        ui.add_space(space::S);
        ScrollArea::vertical().max_height(360.0).show(ui, |ui| {
            for (index, (_, action)) in found.iter().enumerate() {
                let why = cx.bench.unavailable(*action);
                let is_chosen = index == cx.memory.palette.chosen;
                let mut button =
                    egui::Button::new(action.text()).selected(is_chosen).min_size(egui::vec2(500.0, space::ROW));
                if let Some(shortcut) = action.shortcut() {
                    button = button.shortcut_text(shortcut_text(shortcut));
                }
                let response = ui.add_enabled(why.is_none(), button);
                let response = match why {
                    Some(why) => response.on_disabled_hover_text(why),
                    None => response.on_hover_text(action.tooltip()),
                };
                if response.clicked() || (enter && is_chosen && why.is_none()) {
                    done = Some(*action);
                }
                if is_chosen && (down || up) {
                    response.scroll_to_me(None);
                }
            }
            if found.is_empty() {
                ui.label(Type::Body.text("No command has these words").color(ui.tokens().weak));
            }
        });
    });
    if let Some(action) = done {
        cx.memory.palette.toggle();
        cx.act(action);
    } else if modal.should_close() {
        cx.memory.palette.toggle();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_in_names_before_tooltips() {
        let best = |typed: &str| {
            let mut all: Vec<_> = Action::ALL.into_iter().filter_map(|a| Some((rank(a, typed)?, a))).collect();
            all.sort_by_key(|(rank, _)| *rank);
            all.first().map(|(_, action)| *action)
        };
        assert_eq!(best("kld"), Some(Action::MeasureKld));
        assert_eq!(best("run plan"), Some(Action::RunPlan));
        assert_eq!(best("undo"), Some(Action::Undo));
        assert_eq!(best("zzz"), None);
    }
}
