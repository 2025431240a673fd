//! The window as a user meets it: controls are found by role and name, what comes of them is read
//! from the workbench's state. No picture is taken, so no graphics driver is needed. The harness
//! itself fails where an input has no accessible name or a character has no glyph.
#![cfg(feature = "gui")]

#[path = "../window/mod.rs"]
mod window;

mod comparing;
mod plans;
mod pruning;
mod sensitivity;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eframe::App as _;
use eframe::egui::{self, Key, Modifiers, Role, vec2};
use egui_kittest::kittest::Queryable as _;
use lapidary::app::shell::percentile;
use lapidary::engine::Progress;
use lapidary::engine::checkpoint::{Checkpoint, Removal};
use lapidary::engine::model::{Model, Tokenizer};
use lapidary::engine::plan::Target;
use lapidary::engine::scoring::TaskSet;
use lapidary::engine::sensitivity::{GroupedText, units};
use lapidary::workbench::{
    Action, Command, Executor, JobKind, KldRequest, Level, ScoredBy, ThemeChoice, UnitEdit, View,
};
use window::{DOWN, Start, Window};

const UP: &str = "model.layers.0.mlp.up_proj.weight";
const Q: &str = "model.layers.0.self_attn.q_proj.weight";

fn ctrl() -> Modifiers {
    Modifiers { ctrl: true, command: true, ..Modifiers::NONE }
}

fn ctrl_shift() -> Modifiers {
    Modifiers { shift: true, ..ctrl() }
}

/// A file as the system hands it over when it is dropped.
#[derive(Debug)]
struct Dropped(PathBuf);

impl egui::DroppedFile for Dropped {
    fn path(&self) -> &std::path::Path {
        &self.0
    }

    fn bytes(&self) -> Result<Vec<u8>, String> {
        std::fs::read(&self.0).map_err(|err| err.to_string())
    }
}

/// Draws frames until `done`, as a window with running jobs does.
fn until(window: &mut Window, what: &str, done: impl Fn(&Window) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !done(window) {
        window.harness.step();
        assert!(Instant::now() < deadline, "timed out: {what}; {:?}", window.errors());
        std::thread::sleep(Duration::from_millis(2));
    }
    window.harness.step();
}

fn threaded() -> Window {
    let mut window = Window::with(Start::Opened, vec2(1440.0, 900.0), Executor::Threads);
    until(&mut window, "opening", |window| window.state().document.is_some() && !window.bench().is_busy());
    window
}

/// A calibration set of a few documents, so that measuring takes seconds.
fn choose_short_calibration(window: &mut Window) {
    let whole = std::fs::read_to_string(window.document().checkpoint.path.join("calibration.jsonl")).expect("text");
    let few: String = whole.lines().take(24).map(|line| format!("{line}\n")).collect();
    let path = window.folder.path().join("few.jsonl");
    std::fs::write(&path, few).expect("writes");
    window.send(Command::ChooseCalibration(path.clone()));
    assert_eq!(window.document().calibration_text.as_ref(), Some(&path));
}

#[test]
fn every_view_draws_in_both_themes_without_a_document_with_one_and_after_a_run() {
    for start in [Start::Empty, Start::Opened, Start::Run] {
        let mut window = Window::new(start);
        assert_eq!(window.state().document.is_some(), start != Start::Empty);
        for theme in [ThemeChoice::Dark, ThemeChoice::Light] {
            window.send(Command::SetTheme(theme));
            for presenter in [false, true] {
                for view in View::ALL {
                    window.show(view);
                }
                window.send(Action::TogglePresenter);
                assert_eq!(window.state().presenter, !presenter);
            }
        }
        // The demo's own kept tasks are not there for the empty window.
        assert_eq!(window.errors().len(), usize::from(start == Start::Empty), "{:?}", window.errors());
    }
}

#[test]
fn the_window_opens_on_the_demo_and_says_what_it_is() {
    let window = Window::new(Start::Opened);
    assert!(window.document().is_demo);
    assert!(window.document().profiles.iter().all(Option::is_some));
    assert!(window.says("4.07 M weights"));
    assert!(window.says("What to do next"));
    assert_eq!(window.errors(), Vec::<&str>::new());
}

#[test]
fn tabs_and_their_keys_change_the_view() {
    let mut window = Window::new(Start::Opened);
    for view in View::ALL {
        window.click(Role::Tab, view.title());
        assert_eq!(window.state().view, view);
    }
    window.harness.key_press_modifiers(ctrl(), Key::Num4);
    window.harness.run();
    assert_eq!(window.state().view, View::Plan);
}

#[test]
fn the_list_selects_with_mouse_and_keys() {
    let mut window = Window::new(Start::Opened);
    window.show(View::Weights);
    let rows = |window: &Window, name: &str| {
        let rect = window.node(Role::Button, name).rect();
        rect.center()
    };
    let (q, up) = (window.index_of(Q), window.index_of(UP));
    window.click(Role::Button, Q);
    assert_eq!(window.state().selection.tensors.iter().copied().collect::<Vec<_>>(), [q]);
    assert!(window.says("layers.0.self_attn.q_proj"), "the inspector names it");
    assert!(rows(&window, UP).x < 320.0, "the list stands at the left");

    window.node(Role::Button, UP).click_modifiers(ctrl());
    window.harness.run();
    assert_eq!(window.state().selection.tensors.len(), 2);
    assert_eq!(window.state().selection.focus, Some(up));
    window.node(Role::Button, UP).click_modifiers(ctrl());
    window.harness.run();
    assert_eq!(window.state().selection.tensors.len(), 1);

    window.click(Role::Button, Q);
    window.node(Role::Button, UP).click_modifiers(Modifiers::SHIFT);
    window.harness.run();
    assert_eq!(window.state().selection.tensors.len(), q.abs_diff(up) + 1);
    assert!(window.says("more selected"));

    window.click(Role::Button, Q);
    window.harness.key_press(Key::ArrowDown);
    window.harness.run();
    let below = window.state().selection.focus.expect("a focus");
    assert_ne!(below, q);
    assert_eq!(window.state().selection.tensors.len(), 1);
    window.harness.key_press_modifiers(Modifiers::SHIFT, Key::ArrowUp);
    window.harness.run();
    assert_eq!(window.state().selection.focus, Some(q));
    assert!(window.state().selection.tensors.len() >= 2);
    window.harness.key_press(Key::Escape);
    window.harness.run();
    assert!(window.state().selection.tensors.is_empty());

    window.click(Role::Button, "Select all linears");
    assert_eq!(window.state().selection.tensors.len(), 7 * 6);
    assert!(window.state().selection.focus.is_some());
}

#[test]
fn the_filter_leaves_what_has_its_words() {
    let mut window = Window::new(Start::Opened);
    window.show(View::Weights);
    window.harness.get_by_role_and_label(Role::TextInput, "Filter tensors").focus();
    window.harness.run();
    window.harness.get_by_role_and_label(Role::TextInput, "Filter tensors").type_text("layers.3 down");
    window.harness.run();
    assert!(window.harness.query_by_role_and_label(Role::Button, DOWN).is_some());
    assert!(window.harness.query_by_role_and_label(Role::Button, Q).is_none());
    window.click(Role::Button, "Clear the filter");
    assert!(window.harness.query_by_role_and_label(Role::Button, Q).is_some());
}

#[test]
fn the_palette_finds_and_does_what_is_typed() {
    let mut window = Window::new(Start::Opened);
    window.harness.key_press_modifiers(ctrl(), Key::K);
    window.harness.run();
    window.harness.get_by_role_and_label(Role::TextInput, "Find a command").type_text("presenter");
    window.harness.run();
    window.harness.key_press(Key::Enter);
    window.harness.run();
    assert!(window.state().presenter);
    assert!(window.harness.query_by_label("Find a command").is_none(), "it closes");
    window.harness.key_press_modifiers(ctrl(), Key::K);
    window.harness.run();
    window.harness.key_press(Key::Escape);
    window.harness.run();
    assert!(window.harness.query_by_label("Find a command").is_none());
}

#[test]
fn menus_hold_every_action_and_light_or_dark_is_kept() {
    let mut window = Window::new(Start::Opened);
    let dark = window.state().settings.theme;
    window.click(Role::Button, "View");
    let item = window.harness.get_by(|node| node.label().is_some_and(|label| label.starts_with("Light or dark")));
    item.click();
    window.harness.run();
    assert_ne!(window.state().settings.theme, dark);
    let settings = std::fs::read_to_string(window.folder.path().join("data").join("settings.json")).expect("settings");
    assert!(settings.to_lowercase().contains("light"), "{settings}");
}

#[test]
fn the_device_picker_lists_what_there_is_and_the_choice_is_kept() {
    let mut window = Window::new(Start::Opened);
    let picker = window.harness.get_by(|node| node.label().is_some_and(|label| label.starts_with("CPU, ")));
    picker.click();
    window.harness.run();
    window.harness.run();
    assert!(window.state().devices.as_ref().is_some_and(|devices| devices.last().is_some_and(|cpu| cpu.kind == "cpu")));
    window.harness.get_by(|node| node.label().as_deref() == Some("candle on the CPU")).click();
    window.harness.run();
    assert_eq!(window.state().settings.device, "candle on the CPU");
    let settings = std::fs::read_to_string(window.folder.path().join("data").join("settings.json")).expect("settings");
    assert!(settings.contains("candle on the CPU"), "{settings}");
    assert_eq!(window.state().device.models_in_words(), "candle on the CPU (candle)");
    // It is in use once work has asked for it.
    window.harness.run();
    assert!(window.says("candle on the CPU"), "the menu bar says what is used");
    assert_eq!(window.errors(), Vec::<&str>::new());
}

#[test]
fn presenter_mode_hides_what_edits() {
    let mut window = Window::new(Start::Run);
    window.show(View::Plan);
    assert!(window.harness.query_by_role_and_label(Role::ComboBox, "Recipe").is_some());
    window.harness.key_press(Key::F5);
    window.harness.run();
    for (role, name) in [(Role::ComboBox, "Recipe"), (Role::TextInput, "Filter tensors"), (Role::ComboBox, "Store as")]
    {
        assert!(window.harness.query_by_role_and_label(role, name).is_none(), "{name}");
    }
    window.harness.key_press(Key::F5);
    window.harness.run();
    assert!(window.harness.query_by_role_and_label(Role::TextInput, "Filter tensors").is_some());
}

#[test]
fn dropped_files_open_and_wrong_ones_leave_the_document_with_an_error() {
    let mut window = Window::new(Start::Opened);
    let drop_file = |window: &mut Window, path: PathBuf| {
        window.harness.input_mut().dropped_files = vec![Arc::new(Dropped(path))];
        window.harness.run();
    };
    let demo = window.document().checkpoint.path.clone();
    drop_file(&mut window, demo.join("model.safetensors"));
    assert_eq!(window.errors(), Vec::<&str>::new());
    assert!(!window.document().is_demo);
    assert!(window.document().checkpoint.path.ends_with("model.safetensors"));

    let broken = window.folder.path().join("broken.gguf");
    std::fs::write(&broken, [255; 64]).expect("writes");
    drop_file(&mut window, broken);
    assert_eq!(window.errors().len(), 1);
    assert!(window.says("broken.gguf"), "the error is on the screen");
    assert!(window.document().checkpoint.path.ends_with("model.safetensors"));
    let alerts = window.harness.query_all_by_role(Role::Alert).count();
    assert!(alerts >= 1);
    window.click(Role::Button, "Dismiss");
    assert!(window.errors().is_empty());

    let plan = window.folder.path().join("plan.toml");
    window.send(Command::SavePlan(plan.clone()));
    drop_file(&mut window, plan);
    assert_eq!(window.errors(), Vec::<&str>::new());
}

#[test]
fn a_typed_path_opens_and_a_wrong_one_says_so() {
    let mut window = Window::new(Start::Opened);
    let demo = window.document().checkpoint.path.clone();
    let type_path = |window: &mut Window, path: &str| {
        window.harness.key_press_modifiers(ctrl(), Key::L);
        window.harness.run();
        let field = window.harness.get_by_role_and_label(Role::TextInput, "Path of a file or folder");
        field.type_text(path);
        window.harness.run();
        window.click(Role::Button, "OK");
    };
    type_path(&mut window, "/nowhere/model.gguf");
    assert_eq!(window.errors().len(), 1);
    assert!(window.errors()[0].contains("/nowhere/model.gguf"));
    assert!(window.document().is_demo);
    type_path(&mut window, &demo.join("model.safetensors").display().to_string());
    assert!(window.document().checkpoint.path.ends_with("model.safetensors"));
}

#[test]
fn a_frame_costs_little_and_repaints_stop() {
    let mut window = Window::new(Start::Run);
    for view in View::ALL {
        window.show(view);
        // `run` fails where a view asks for frames for ever.
        window.harness.run();
    }
    let frames = window.harness.state().frame_secs().len();
    assert!(frames > 14);
    // Generous: a guard against work done per frame, not a measurement.
    let median = percentile(window.harness.state().frame_secs(), 0.5).expect("frames");
    assert!(median < 0.1, "{median} s");
}
