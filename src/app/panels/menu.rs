//! The menu bar, made from the actions, and at its right what is open and where work runs.

use eframe::egui::containers::menu::MenuButton;
use eframe::egui::{Align, Button, Layout, MenuBar, Ui};

use crate::app::context::Cx;
use crate::app::theme::{Type, UiTokens as _};
use crate::engine::device::{ALWAYS_CPU, Listed};
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
            device_ui(ui, cx);
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

/// The device picker: what is used in a word, and every device with its memory and what it can do.
fn device_ui(ui: &mut Ui, cx: &mut Cx<'_>) {
    let weak = ui.tokens().weak;
    let word = cx.state().device.in_use().unwrap_or_else(cpu);
    let button = Button::new(Type::Small.text(word).color(weak)).frame(false);
    let (response, _) = MenuButton::from_button(button).ui(ui, |ui| {
        ui.set_min_width(340.0);
        let chosen = cx.state().settings.device.clone();
        let is_auto = matches!(chosen.as_str(), "" | "auto");
        let automatic = "The fastest for each kind of work, by measurement: a GPU if there is one";
        entry_ui(ui, cx, "Automatic", automatic, "auto", is_auto);
        let Some(devices) = cx.state().devices.clone() else {
            cx.commands.push(Command::FindDevices);
            ui.label(Type::Small.text("Looking for devices…").color(weak));
            return;
        };
        for device in devices.iter() {
            let is_cpu = device.kind == "cpu";
            let wish = if is_cpu { "cpu" } else { device.name.as_str() };
            entry_ui(ui, cx, &device.name, &about(device), wish, chosen == wish);
        }
    });
    response
        .on_hover_text("Where scans, profiles, passes and models run; a device that fails leaves its work to the CPU")
        .on_hover_text(ALWAYS_CPU);
}

/// A device and what there is to say of it.
fn entry_ui(ui: &mut Ui, cx: &mut Cx<'_>, name: &str, about: &str, wish: &str, is_chosen: bool) {
    if ui.selectable_label(is_chosen, name).on_hover_text(about).clicked() {
        cx.commands.push(Command::SetDevice(wish.to_owned()));
        ui.close();
    }
    ui.label(Type::Small.text(about).color(ui.tokens().weak));
}

/// Interface, memory and work of a device, in one line.
fn about(device: &Listed) -> String {
    let word = if device.kind == "cpu" { "in the machine" } else { "free" };
    let memory = device.memory.map(|memory| format!("{} {word}", units::bytes(memory)));
    let kind = if device.kind == "software" { Some("computes in software, for tests".to_owned()) } else { None };
    let interface = Some(device.interface.clone()).filter(|interface| !interface.is_empty());
    let runs = Some(format!("can run {}", device.runs.join(", ")));
    let runs_now = Some(device.will_run.join(", ")).filter(|work| !work.is_empty()).map(|work| format!("runs {work}"));
    [interface, memory, kind, runs_now.or(runs)].into_iter().flatten().collect::<Vec<String>>().join(" · ")
}

fn cpu() -> String {
    format!("CPU, {} threads", std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
}

/// Name, weights and types, in one line.
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
        "{name} · {} weights · {} ·",
        units::count(checkpoint.weight_count()),
        main.map_or("no tensors", |tensor| tensor.dtype.name()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_told_with_its_memory_and_what_runs_there() {
        let device = Listed {
            name: "One".to_owned(),
            kind: "discrete",
            interface: "Vulkan".to_owned(),
            driver: String::new(),
            memory: Some(2 << 30),
            runs: vec!["profiles", "passes"],
            will_run: vec!["passes"],
            is_chosen: true,
        };
        assert_eq!(about(&device), "Vulkan · 2.00 GiB free · runs passes");
        assert!(about(&Listed { will_run: Vec::new(), ..device }).ends_with("can run profiles, passes"));
    }

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
