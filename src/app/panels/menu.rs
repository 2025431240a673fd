//! The menu bar, made from the actions, and at its right what is open.

use eframe::egui::{Align, Button, Layout, MenuBar, Ui};

use crate::app::context::Cx;
use crate::app::theme::{Type, UiTokens as _};
use crate::engine::units;
use crate::workbench::{Action, Command, Group, Shortcut};

/// A shortcut as people write it.
pub fn shortcut_text(shortcut: Shortcut) -> String {
    let mut text = String::new();
    if shortcut.command {
        text.push_str(if cfg!(target_os = "macos") { "Cmd+" } else { "Ctrl+" });
    }
    if shortcut.shift {
        text.push_str("Shift+");
    }
    text.push_str(if shortcut.key == "Escape" { "Esc" } else { shortcut.key });
    text
}

/// Paints the bar.
pub fn menu_ui(ui: &mut Ui, cx: &mut Cx<'_>) {
    MenuBar::new().ui(ui, |ui| {
        for group in Group::ALL {
            ui.menu_button(group.title(), |ui| {
                ui.set_min_width(260.0);
                for action in Action::ALL.into_iter().filter(|action| action.group() == group) {
                    action_ui(ui, cx, action);
                }
                if group == Group::File {
                    recent_ui(ui, cx);
                }
            });
        }
        ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
            ui.label(Type::Small.text(what_is_open(cx)).color(ui.tokens().weak));
        });
    });
}

fn action_ui(ui: &mut Ui, cx: &mut Cx<'_>, action: Action) {
    let why = cx.bench.unavailable(action);
    let mut text = action.text().to_owned();
    let document = cx.document();
    let step = match action {
        Action::Undo => document.and_then(|document| document.history.undo_name()),
        Action::Redo => document.and_then(|document| document.history.redo_name()),
        _ => None,
    };
    if let Some(step) = step {
        text = format!("{text} {step}");
    }
    let mut button = Button::new(text);
    if let Some(shortcut) = action.shortcut() {
        button = button.shortcut_text(shortcut_text(shortcut));
    }
    let response = ui.add_enabled(why.is_none(), button);
    if response.clicked() {
        cx.act(action);
        ui.close();
    }
    match why {
        Some(why) => response.on_disabled_hover_text(why),
        None => response.on_hover_text(action.tooltip()),
    };
}

fn recent_ui(ui: &mut Ui, cx: &mut Cx<'_>) {
    let recent = &cx.state().settings.recent;
    if recent.is_empty() {
        return;
    }
    ui.separator();
    ui.label(Type::Small.text("Recent").color(ui.tokens().weak));
    for path in recent {
        let name =
            path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
        if ui.button(name).on_hover_text(path.display().to_string()).clicked() {
            cx.commands.push(Command::Open(path.clone()));
            ui.close();
        }
    }
}

/// Name, weights, types and device, in one line.
fn what_is_open(cx: &Cx<'_>) -> String {
    let Some(document) = cx.document() else {
        return cx
            .state()
            .opening
            .as_ref()
            .map_or_else(|| "nothing open".to_owned(), |path| format!("opening {}", path.display()));
    };
    let checkpoint = &document.checkpoint;
    let name = if document.is_demo { "demo" } else { checkpoint.name.as_str() };
    let main = checkpoint.tensors.iter().max_by_key(|tensor| tensor.weight_count());
    format!(
        "{name} · {} weights · {} · CPU, {} threads",
        units::count(checkpoint.weight_count()),
        main.map_or("no tensors", |tensor| tensor.dtype.name()),
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shortcut_names_a_key_of_egui() {
        for action in Action::ALL {
            if let Some(shortcut) = action.shortcut() {
                assert!(eframe::egui::Key::from_name(shortcut.key).is_some(), "{action:?} {}", shortcut.key);
                assert!(!shortcut_text(shortcut).is_empty());
            }
        }
    }
}
