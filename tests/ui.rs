//! The window as a user meets it: controls are found by role and name, what comes of them is read
//! from the workbench's state. No picture is taken, so no graphics driver is needed. The harness
//! itself fails where an input has no accessible name or a character has no glyph.
#![cfg(feature = "gui")]

mod window;

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
fn formats_and_locks_change_the_plan_and_can_be_undone_and_redone() {
    let mut window = Window::new(Start::Opened);
    let before = window.planned_bytes();
    window.click(Role::Button, Q);
    window.choose("Store as", "q8_0");
    assert_eq!(window.format_of(Q), "q8_0");
    let with_q8 = window.planned_bytes();
    assert!(with_q8 > before);

    window.click(Role::CheckBox, "Protect the selection");
    assert_eq!(window.format_of(Q), "bf16");
    assert_eq!(window.document().history.undo_name(), Some(format!("protect {Q}").as_str()));

    window.harness.key_press_modifiers(ctrl(), Key::Z);
    window.harness.run();
    assert_eq!(window.format_of(Q), "q8_0");
    window.harness.key_press_modifiers(ctrl(), Key::Z);
    window.harness.run();
    assert_eq!(window.planned_bytes(), before);
    window.harness.key_press_modifiers(ctrl_shift(), Key::Z);
    window.harness.run();
    assert_eq!(window.planned_bytes(), with_q8);
    window.click(Role::Button, "Clear");
    assert_eq!(window.planned_bytes(), before);
}

#[test]
fn the_plan_view_changes_recipe_target_and_many_tensors_at_once() {
    let mut window = Window::new(Start::Opened);
    window.show(View::Plan);
    let before = window.planned_bytes();
    window.choose("Recipe", "Q2_K");
    assert!(window.planned_bytes() < before);
    window.choose("Format for many", "q8_0");
    window.click(Role::Button, "Set 42 tensors");
    assert_eq!(window.format_of(DOWN), "q8_0");
    assert!(window.planned_bytes() > before);
    let bytes = window.planned_bytes();
    window.send(Action::Undo);
    window.send(Action::Redo);
    assert_eq!(window.planned_bytes(), bytes);
    window.choose("Target", "Hugging Face folder");
    assert_eq!(window.document().plan().target(), lapidary::engine::plan::Target::HuggingFace);
}

#[test]
fn constraints_are_stated_in_the_plan_view_and_follow_every_edit_in_the_strip() {
    let mut window = Window::new(Start::Opened);
    window.show(View::Plan);
    window.click(Role::Button, "State constraints");
    window.click(Role::CheckBox, "file size");
    let most = window.document().plan().constraints().max_file_bytes.expect("stated");
    let chips = |window: &Window, words: &str| window.harness.query_all_by_label_contains(words).count();
    let chip = format!("file ≤ {}", lapidary::engine::units::bytes(most));
    // In the view and in the strip: the tensors fill the limit, and metadata come on top.
    assert_eq!(chips(&window, &format!("{chip} missed")), 2);
    window.choose("Recipe", "Q2_K");
    assert_eq!(chips(&window, &format!("{chip} met")), 2);
    window.click(Role::CheckBox, "decode");
    assert_eq!(chips(&window, "tok/s unknown"), 2, "no speed is guessed");
    window.send(Action::Undo);
    assert_eq!(chips(&window, "tok/s unknown"), 0);
}

#[test]
fn a_plan_is_kept_compared_and_turned_legal_from_its_menus() {
    let mut window = Window::new(Start::Opened);
    window.show(View::Plan);
    window.send(Command::NamePlan("mine".to_owned()));
    window.send(Command::SetRecipe(lapidary::engine::plan::Recipe::find("Q2_K")));
    window.click(Role::Button, "What changed in the plan");
    assert!(window.says("tensors differ"));
    window.send(Command::Show(View::Plan));
    window.harness.key_press(eframe::egui::Key::Escape);
    window.harness.run();
    window.click(Role::Button, "History of the plan");
    window.click(Role::Button, "Return to mine");
    assert_eq!(window.document().plan().recipe().map(|recipe| recipe.name()), Some("Q4_K_M"));
    window.harness.key_press(eframe::egui::Key::Escape);
    window.harness.run();
    window.click(Role::Button, "What fits which device");
    // The list of devices is there one frame after it was asked for.
    window.harness.run();
    assert!(window.state().devices.is_some());
    assert!(window.says("models run here") && window.says("keys and values of"));
    window.harness.key_press(eframe::egui::Key::Escape);
    window.harness.run();
    window.click(Role::Button, "Legality for export targets");
    window.click(Role::Button, "Nearest legal for gptq");
    assert_eq!(window.document().plan().target(), lapidary::engine::plan::Target::Gptq);
    assert!(window.document().resolved.is_ok());
}

#[test]
fn a_cell_of_the_map_selects_its_tensor() {
    let mut window = Window::new(Start::Opened);
    window.show(View::Sensitivity);
    let cells: Vec<_> = window.harness.query_all_by_label_contains("layer 3 down q4_k").collect();
    cells.first().expect("the map has the cell").click();
    drop(cells);
    window.harness.run();
    assert_eq!(window.state().selection.focus, Some(window.index_of(DOWN)));
    window.choose("Format of the map", "q2_k");
    assert!(window.says("layer 3 down q2_k"));
}

#[test]
fn running_the_plan_adds_a_run_that_can_be_compared_renamed_and_rolled_back_to() {
    let mut window = Window::new(Start::Opened);
    window.show(View::Weights);
    window.click(Role::Button, "Run the plan");
    assert_eq!(window.errors(), Vec::<&str>::new());
    assert_eq!(window.document().runs.len(), 1);
    assert!(window.document().runs[0].path.exists());
    window.show(View::Runs);
    window.click(Role::Button, "Compare Q4_K_M");
    assert_eq!(window.state().view, View::Compare);
    let sentence = &window.document().runs[0].comparison.as_ref().expect("compared").sentence;
    assert!(sentence.starts_with("Q4_K_M") && sentence.contains("smaller"), "{sentence}");
    assert!(window.says(sentence));
    assert!(window.says("KLD, mean"));

    window.show(View::Plan);
    window.choose("Recipe", "Q8_0");
    window.show(View::Runs);
    window.click(Role::Button, "More for Q4_K_M");
    window.click(Role::Button, "Roll the plan back to this run");
    assert_eq!(window.state().view, View::Plan);
    assert_eq!(window.document().plan().recipe().map(|recipe| recipe.name()), Some("Q4_K_M"));
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
fn both_sides_of_the_playground_write_and_their_first_difference_is_told() {
    let mut window = Window::new(Start::Run);
    window.show(View::Playground);
    window.send(Command::SetGenerateTokens(8));
    window.click(Role::Button, "Generate");
    let playground = &window.document().playground;
    assert!(playground.baseline.is_done && playground.candidate.is_done);
    let words = match playground.first_difference() {
        Some(_) => "They part at token",
        None => "tokens are the same",
    };
    assert!(window.says(words));
    assert!(window.says("tok/s"));
}

#[test]
fn the_candidate_drafts_in_the_playground() {
    let mut window = Window::new(Start::Run);
    window.show(View::Playground);
    window.send(Command::SetGenerateTokens(8));
    window.click(Role::Button, "Write with the candidate as draft");
    assert_eq!(window.document().playground.speculated.as_ref().expect("written").is_same_text, Some(true));
    assert!(window.says("accepted") && window.says("the same text as the original's alone"));
}

#[test]
fn the_report_is_shown_and_each_of_its_files_is_written() {
    let mut window = Window::new(Start::Run);
    window.show(View::Report);
    assert!(window.says("Q2_K against demo") && window.says("Every figure comes from the evaluations here"));
    if std::env::var_os("DBUS_SESSION_BUS_ADDRESS").is_some() {
        // The system's own dialog would open; without one the path is typed.
        return;
    }
    for (button, name, beginning) in [
        ("Report as HTML…", "report.html", "<!doctype html>"),
        ("Report as Markdown…", "report.md", "# Q2\\_K against demo"),
        ("Model card…", "README.md", "---\n"),
        ("EU AI Act sheet…", "annex.html", "<!doctype html>"),
        ("Sheet as Markdown…", "annex.md", "# "),
    ] {
        window.click(Role::Button, button);
        let path = window.folder.path().join(name);
        let field = window.harness.get_by_role_and_label(Role::TextInput, "Path of a file or folder");
        field.focus();
        window.harness.run();
        window.harness.key_press_modifiers(ctrl(), Key::A);
        window.harness.run();
        let field = window.harness.get_by_role_and_label(Role::TextInput, "Path of a file or folder");
        field.type_text(&path.display().to_string());
        window.harness.run();
        window.click(Role::Button, "OK");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|err| panic!("{name}: {err}; {:?}", window.errors()));
        assert!(text.starts_with(beginning), "{name}: {}", &text[..text.floor_char_boundary(80)]);
    }
    let html = std::fs::read_to_string(window.folder.path().join("report.html")).expect("written");
    // The project's own log is part of it.
    assert!(html.contains("Audit log") && html.contains("<svg"));
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

#[test]
fn an_evaluation_in_the_middle_is_cancelled_by_its_button() {
    let mut window = threaded();
    let tasks = window.document().checkpoint.path.join("tasks.jsonl");
    window.harness.state_mut().bench_mut().apply(Command::LoadTasks(tasks));
    window.harness.state_mut().bench_mut().apply(Action::EvaluateBaseline);
    until(&mut window, "evaluating", |window| {
        window.bench().jobs().any(|job| job.kind == JobKind::Evaluate && job.progress.done > 0)
    });
    let started = Instant::now();
    window
        .harness
        .get_by(|node| {
            node.role() == Role::Button && node.label().is_some_and(|label| label.starts_with("Cancel evaluate"))
        })
        .click();
    until(&mut window, "cancelling", |window| !window.bench().is_busy());
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert!(window.document().baseline.is_none());
    assert!(window.state().notices.iter().all(|notice| notice.level != Level::Error));
    // The window lives on.
    window.harness.state_mut().bench_mut().apply(Command::Show(View::Plan));
    window.harness.step();
    assert_eq!(window.state().view, View::Plan);
}

#[test]
fn closing_the_window_during_a_pass_leaves_nothing_half_written_and_the_project_saved() {
    let mut window = threaded();
    let folder = window.folder.path().join("out");
    let target = folder.join("a.gguf");
    let bench = window.harness.state_mut().bench_mut();
    bench.apply(Command::SetRecipe(lapidary::engine::plan::Recipe::find("Q3_K_M")));
    bench.apply(Command::RunPlan { name: None, output: Some(target.clone()) });
    until(&mut window, "the pass", |window| {
        !window.document().runs.is_empty()
            || window.bench().jobs().any(|job| job.kind == JobKind::Pass && job.progress.done > 0)
    });
    let started = Instant::now();
    window.harness.state_mut().on_exit();
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    // Either the pass was quicker than we, and its file is whole, or there is none.
    for entry in std::fs::read_dir(&folder).into_iter().flatten() {
        let path = entry.expect("entry").path();
        assert_eq!(path, target);
        Checkpoint::open(&path).expect("a whole file");
    }
    let project = window.document().project_path.clone();
    let saved = std::fs::read_to_string(project).expect("saved");
    assert!(saved.contains("Q3_K_M"), "the plan is in the project");
    assert_eq!(window.errors(), Vec::<&str>::new());
}

#[test]
fn importance_is_computed_and_dropped_from_its_card() {
    let mut window = Window::new(Start::Opened);
    window.show(View::Sensitivity);
    assert!(window.says("Not computed yet"));
    let text = window.folder.path().join("calibration.txt");
    let whole = std::fs::read_to_string(window.document().checkpoint.path.join("calibration.txt")).expect("text");
    std::fs::write(&text, &whole[..whole.floor_char_boundary(3_000)]).expect("writes");
    window.send(Command::Calibrate(text.clone()));
    assert_eq!(window.errors(), Vec::<&str>::new());
    assert_eq!(window.document().calibration_text.as_ref(), Some(&text));
    assert!(window.says("used by the plan") && window.says("3 chunks of 256 tokens"));
    let before = window.planned_bytes();
    window.scroll_and_click(Role::Button, "Stop using importance");
    assert!(window.document().plan().calibration().is_none() && window.says("not used by the plan"));
    window.scroll_and_click(Role::Button, "Use the importance");
    assert!(window.document().importance_in_use().is_some());
    assert_eq!(window.planned_bytes(), before, "Q4_K_M has the same types with an importance matrix");
    window.scroll_and_click(Role::Button, "Compute importance");
    assert!(window.document().importance_in_use().is_some());
    assert_eq!(window.errors(), Vec::<&str>::new());
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
fn predicted_metrics_are_measured_in_the_window_and_show_what_the_model_sees() {
    let mut window = Window::new(Start::Opened);
    choose_short_calibration(&mut window);
    window.show(View::Sensitivity);
    assert!(window.says("few.jsonl") && window.says("24 documents"));
    assert!(window.says("story"), "the mixture is visible");
    for (metric, button, id) in [
        ("Metric Output error", "Predict output error", "output"),
        ("Metric KLD by Fisher information", "Estimate KLD from gradients", "fisher"),
    ] {
        window.click(Role::Tab, metric);
        assert!(window.says("Not measured yet"));
        let buttons: Vec<_> = window.harness.query_all_by_role_and_label(Role::Button, button).collect();
        buttons.first().expect("a button").click();
        drop(buttons);
        window.harness.run();
        assert_eq!(window.errors(), Vec::<&str>::new());
        let table = &window.document().sensitivity[id];
        assert_eq!(table.label.name(), "predicted");
        assert!(table.basis.as_ref().is_some_and(|basis| basis.name == "few.jsonl" && basis.tokens > 500));
        assert!(window.says("predicted") && window.says("of few.jsonl"));
    }
    assert!(window.document().activations.is_some());
    assert!(window.says("of the vocabulary"));
    assert!(window.says("Spearman's ρ"), "three metrics can be compared");
    assert!(window.says("Output error · KLD by Fisher information"), "{:?}", window.document().sensitivity.keys());
}

#[test]
fn layers_and_heads_are_measured_from_their_pages_and_kept() {
    let mut window = Window::new(Start::Opened);
    choose_short_calibration(&mut window);
    window.show(View::Sensitivity);
    window.click(Role::Tab, "Show Layers");
    for (metric, button) in [
        ("Layer metric Block influence", "Predict block influence"),
        ("Layer metric KLD without the layer", "Measure layer removal"),
    ] {
        window.click(Role::Tab, metric);
        window.click(Role::Button, button);
        assert!(window.says("Least in layer"), "{metric}");
    }
    window.click(Role::Tab, "Show Heads");
    for (metric, button, cell) in [
        ("Head metric Head gradient", "Predict head importance", "layer 5 head 7"),
        ("Head metric KLD without the KV group", "Measure KV group ablation", "layer 5 KV group 3"),
    ] {
        window.click(Role::Tab, metric);
        window.click(Role::Button, button);
        assert!(window.says(cell), "{metric}");
    }
    assert_eq!(window.errors(), Vec::<&str>::new());
    let counts: Vec<usize> = window.document().units.values().map(|table| table.values.len()).collect();
    assert_eq!(counts, [6, 48, 24, 6], "block influence, gradient, groups, removal");
    window.send(Action::SaveProject);
    let saved = std::fs::read_to_string(&window.document().project_path).expect("saved");
    assert!(saved.contains("kv_group_ablation"));
}

#[test]
fn kld_by_group_is_shown_cells_are_not_measured_twice_and_shift_click_protects() {
    let mut window = Window::new(Start::Opened);
    choose_short_calibration(&mut window);
    window.show(View::Sensitivity);
    let request = KldRequest { formats: vec!["q4_k"], tokens: 1, ..KldRequest::default() };
    window.send(Command::MeasureKld(request.clone()));
    window.click(Role::Tab, "Metric KLD");
    assert!(window.says("Most sensitive in q4_k, beside all tokens"));
    let first = window.document().sensitivity["kld"].clone();
    let group = first.basis.as_ref().expect("of a text").groups.iter().position(|group| group.tokens > 0);
    let group = group.expect("a group with tokens");
    let basis = first.basis.clone().expect("of a text");
    let own = first.of_group(group).expect("a group").cell(DOWN, "q4_k").expect("measured").value;
    window
        .choose("Group of the text", &format!("{} · {} tokens", basis.groups[group].name, basis.groups[group].tokens));
    assert!(window.says(&format!("layer 3 down q4_k {}", lapidary::engine::units::significant(own))));

    window.send(Command::MeasureKld(KldRequest { formats: vec!["q4_k", "q2_k"], ..request }));
    let both = &window.document().sensitivity["kld"];
    assert_eq!(both.formats, ["q4_k", "q2_k"]);
    assert_eq!(both.cell(DOWN, "q4_k"), first.cell(DOWN, "q4_k"));

    let cells: Vec<_> = window.harness.query_all_by_label_contains("layer 3 down q4_k").collect();
    cells.first().expect("the map has the cell").click_modifiers(Modifiers::SHIFT);
    drop(cells);
    window.harness.run();
    assert_eq!(window.format_of(DOWN), "bf16");
    assert_eq!(window.document().history.undo_name(), Some(format!("protect {DOWN}").as_str()));
    assert!(window.says("protected"));
    assert_eq!(window.errors(), Vec::<&str>::new());
}

#[test]
fn heads_are_scored_taken_away_and_given_back() {
    let mut window = Window::new(Start::Opened);
    window.show(View::Heads);
    assert!(window.says("not scored yet"));
    window.click(Role::Button, "Score units");
    assert_eq!(window.errors(), Vec::<&str>::new());
    assert!(window.document().unit_scores.contains_key("flap"));
    window.click(Role::Button, "layer 2 KV group 1 stays");
    let removal = |window: &Window| window.document().plan().prune().removal.clone();
    assert_eq!(removal(&window).units[&2].kv_groups, [1].into());
    window.click(Role::Button, "layer 2 KV group 1 goes");
    assert!(removal(&window).is_empty());
    window.click(Role::Button, "layer 4 stays");
    assert_eq!(removal(&window).layers, [4].into());
    window.send(Action::Undo);
    assert!(removal(&window).is_empty());

    window.click(Role::Button, "Take the lowest");
    let resolved = window.document().resolved.as_ref().expect("resolves");
    assert!(resolved.new_weight_count < resolved.weight_count);
    assert!(removal(&window).units.values().all(|units| units.kv_groups.len() == 1));
    window.send(Command::SetTarget(Target::HuggingFace));
    assert!(window.says("Make the layers even"), "six heads do not divide the width");
    window.click(Role::Button, "Give all back");
    assert!(removal(&window).is_empty());
}

#[test]
fn units_go_in_steps_that_are_kept_and_gone_on_with() {
    let mut window = Window::new(Start::Opened);
    choose_short_calibration(&mut window);
    window.show(View::Heads);
    window.send(Command::SetRecipe(None));
    window.send(Command::SetTarget(Target::Lapidary));
    window.click(Role::Button, "Pruning in steps");
    window.click(Role::CheckBox, "keep means as biases");
    window.click(Role::Button, "each slice");
    window.click(Role::Button, "Prune in steps");
    // One slice lost more than 2 %: the schedule stopped, and what was kept is the plan.
    let kept = window.document().prune_steps.clone();
    assert!(kept.len() < 4, "{kept:?}");
    assert!(window.state().notices.iter().any(|notice| notice.text.contains("was not taken")));
    let removal = |window: &Window| window.document().plan().prune().removal.clone();
    assert_eq!(removal(&window), kept.last().map(|step| step.step.removal.clone()).unwrap_or_default());

    // Without a limit the rest goes, from where it stopped.
    window.click(Role::Button, "Pruning in steps");
    window.click(Role::Button, "no slice is watched");
    window.click(Role::Button, "Prune in steps");
    assert_eq!(window.errors(), Vec::<&str>::new());
    let rest = window.document().prune_steps.clone();
    assert_eq!(kept.len() + rest.len(), 4);
    assert!(window.says("Steps that were kept") && window.says("the plan now"));
    let last = &rest.last().expect("a step").step;
    assert_eq!((last.index, &removal(&window)), (4, &last.removal));
    let structure = window.document().plan().structure(&window.document().checkpoint).expect("legal").expect("prunes");
    assert!(structure.config.layers.iter().all(|layer| (layer.kv_heads, layer.mlp_channels) == (3, 384)));
    assert!(window.document().plan().prune().means.as_ref().is_some_and(|path| path.is_file()));
    // Every step is a kept plan; one click goes back to it, and each can be run.
    let first = &rest[0];
    window.scroll_and_click(Role::Button, &format!("Return to step {}", first.step.index));
    assert_eq!(removal(&window), first.step.removal);
    window.send(Action::RunPlan);
    assert_eq!(window.errors(), Vec::<&str>::new());
    let run = &window.document().runs[0];
    let candidate = run.checkpoint().expect("open");
    assert!(candidate.tensors.iter().any(|tensor| tensor.name.ends_with("down_proj.bias")), "the means that went");

    // Random scores look at no text, so there is nothing to score anew.
    window.send(Command::PruneInSteps(Box::new(lapidary::workbench::PruneSteps {
        metric: lapidary::engine::structure::Metric::Random,
        take: Default::default(),
        steps: 1,
        max_kld: None,
        slice: None,
        compensate: false,
    })));
    assert!(window.state().notices.iter().any(|notice| notice.text.contains("looks at a text")));
}

#[test]
fn layers_go_by_measured_scores_laid_over_and_scores_are_kept() {
    let mut window = Window::new(Start::Opened);
    choose_short_calibration(&mut window);
    window.send(Action::MeasureBlockInfluence);
    assert_eq!(window.errors(), Vec::<&str>::new());
    window.show(View::Heads);
    window.click(Role::Button, "Score units");
    let influence = window.document().units["block_influence"].clone();
    window.choose("Measured units over the score", "block_influence");
    let flap = ScoredBy::Metric(lapidary::engine::structure::Metric::Flap);
    let scores = window.document().scores_of(&flap, Some("block_influence"));
    let scores = scores.expect("laid over");
    assert!((0..6).all(|layer| scores.layers[layer].layer == influence.value(layer, None).map(|value| value.value)));
    let edit = UnitEdit::Lowest {
        by: flap,
        over: Some("block_influence".to_owned()),
        take: lapidary::engine::structure::Take { layers: 1, ..Default::default() },
    };
    window.send(Command::EditUnits { edit, what: "take the lowest layer".to_owned() });
    let least = influence.values.iter().min_by(|a, b| a.value.total_cmp(&b.value)).expect("values").layer;
    assert_eq!(window.document().plan().prune().removal, Removal { layers: [least].into(), ..Removal::default() });

    // Saved with the project and there when it is opened again.
    let path = window.folder.path().join("kept.lapidary");
    window.send(Command::SaveProjectAs(path.clone()));
    let flap = window.document().unit_scores["flap"].clone();
    window.send(Command::Open(path));
    assert_eq!(window.document().unit_scores.get("flap"), Some(&flap));
}

/// The heads that long-range recall hangs on are found by measurement, slice by slice; without them that slice
/// falls and the average hardly does, and the Compare view says so.
#[test]
fn pruning_the_heads_of_long_range_recall_shows_in_its_slice_and_not_in_the_average() {
    const SLICE: &str = "recall / long context";
    const GROUPS: usize = 4;
    let mut window = Window::new(Start::Opened);
    let checkpoint = window.document().checkpoint.clone();
    let progress = Progress::default();
    let tasks = TaskSet::read(&checkpoint.path.join("tasks.jsonl")).expect("tasks");
    let codec = Tokenizer::of_checkpoint(&checkpoint).expect("tokenizer");
    let model = Model::load(&checkpoint, &progress).expect("loads");
    let config = checkpoint.require_config().expect("a network");
    // Items that the evaluation below does not have.
    let mut seen = tasks.clone();
    let held_out = tasks.sample(40);
    seen.items.retain(|item| held_out.items.iter().all(|other| other.id != item.id));
    let text = GroupedText::of_tasks(&codec, &seen, config.context, config.vocab, 12_000).expect("items");
    let metric = &lapidary::engine::sensitivity::heads::GROUP_ABLATION;
    let table = units::measure(&checkpoint, &model, &text, metric, &Default::default(), &progress, &mut |_| {});
    let table = table.expect("measures");
    let slice = table.basis.groups.iter().position(|group| group.name == SLICE).expect("the slice");
    // Of the KV groups that all slices together hardly miss, those that this slice misses most beside the others.
    let share = |value: &units::UnitValue| {
        let others: f64 = value.groups.iter().map(|group| group.value).sum::<f64>() - value.groups[slice].value;
        value.groups[slice].value * (value.groups.len() - 1) as f64 / others
    };
    let mut ranked: Vec<&units::UnitValue> = table.values.iter().filter(|value| value.value < 0.1).collect();
    ranked.sort_by(|a, b| share(b).total_cmp(&share(a)));
    let mut removal = Removal::default();
    for value in &ranked[..GROUPS] {
        println!(
            "layer {} group {:?}: {:.3} nats of the slice, {:.3} of all",
            value.layer, value.index, value.groups[slice].value, value.value
        );
        removal.layer_mut(value.layer).kv_groups.extend(value.index);
    }

    let lines = std::fs::read_to_string(checkpoint.path.join("tasks.jsonl")).expect("tasks");
    let is_chosen = |line: &&str| held_out.items.iter().any(|item| line.contains(&format!("\"{}\"", item.id)));
    let few: String = lines.lines().filter(is_chosen).map(|line| format!("{line}\n")).collect();
    let path = window.folder.path().join("held_out.jsonl");
    std::fs::write(&path, few).expect("writes");
    window.send(Command::LoadTasks(path));
    window.send(Command::SetRecipe(None));
    window.send(Command::SetTarget(Target::Lapidary));
    let what = "take the heads of long-range recall".to_owned();
    window.send(Command::EditUnits { edit: UnitEdit::Exactly(removal), what });
    window.send(Action::RunPlan);
    assert_eq!(window.errors(), Vec::<&str>::new());
    let comparison = window.document().runs[0].comparison.clone().expect("compared");
    let fell = |name: &str| {
        let slice = comparison.slices.iter().find(|slice| slice.name() == name).expect("a slice");
        (-slice.paired.difference, slice.paired.margin())
    };
    let (loss, margin) = fell("recall/long context");
    let average = -comparison.overall.as_ref().expect("items").difference;
    println!("{}", comparison.sentence);
    for slice in &comparison.slices {
        println!("{}: {:+.1} ± {:.1}", slice.name(), slice.paired.difference * 100.0, slice.paired.margin() * 100.0);
    }
    assert_eq!(comparison.worst_slice.as_deref(), Some("recall/long context"));
    assert!(loss - margin > 0.1 && average < loss / 4.0, "the slice fell by {loss} ± {margin}, all by {average}");
    window.show(View::Compare);
    assert!(window.says("recall/long context lost most"));
    assert!(window.says(&comparison.sentence));
    for value in &ranked[..GROUPS] {
        assert!(window.says(&format!("layer {} KV group {} goes", value.layer, value.index.expect("a group"))));
    }
}

#[test]
fn a_mask_for_study_is_written_from_the_heads_view_with_its_statements() {
    let mut window = Window::new(Start::Opened);
    window.show(View::Heads);
    assert!(window.says("A mask is for study"));
    window.node(Role::ComboBox, "Mask method").scroll_to_me();
    window.harness.run_steps(20);
    window.choose("Mask method", "magnitude");
    window.scroll_and_click(Role::Tab, "Mask pattern 4:8");
    window.scroll_and_click(Role::Button, "Write the masked candidate");
    assert_eq!(window.errors(), Vec::<&str>::new());
    let run = window.document().focused().expect("a run");
    let facts = run.mask.clone().expect("what was masked");
    assert_eq!(facts.mask.name(), "magnitude 4:8");
    assert!(window.says("smaller on disk only"));
    // Wherever its figures are, it is called what it is.
    window.show(View::Runs);
    assert!(window.says("masked"));
    window.show(View::Compare);
    assert!(window.says("A mask is for study") && window.says("smaller on disk only"));
}

#[test]
fn two_slices_are_picked_scored_and_pruned_by() {
    let mut window = Window::new(Start::Opened);
    window.show(View::Heads);
    window.choose("Score of units", "two slices");
    assert!(window.says("not scored yet"));
    window.choose("First slice", "domain arithmetic");
    window.choose("Second slice", "domain french");
    window.click(Role::Button, "Score slices");
    assert_eq!(window.errors(), Vec::<&str>::new());
    assert_eq!(window.document().slice_scores.len(), 2);
    assert!(window.says("What one slice loses and the other does not"));
    window.click(Role::Button, "Take the lowest");
    let removal = &window.document().plan().prune().removal;
    assert!(removal.units.values().all(|units| units.kv_groups.len() == 1) && removal.units.len() == 6);
    assert_eq!(
        window.document().history.undo_name(),
        Some("take the lowest by domain arithmetic less 1 of domain french")
    );
}

#[test]
fn the_heads_controls_take_two_rows() {
    let mut window = Window::new(Start::Opened);
    window.show(View::Heads);
    let middle = |role: Role, name: &str| window.node(role, name).rect().center().y;
    let first = [
        middle(Role::ComboBox, "Score of units"),
        middle(Role::Button, "Score units"),
        middle(Role::Tab, "Click takes Query heads"),
    ];
    let second = [
        middle(Role::Button, "More to take"),
        middle(Role::Button, "Take the lowest"),
        middle(Role::Button, "Pruning in steps"),
        middle(Role::Button, "Give all back"),
    ];
    let is_row = |row: &[f32]| row.iter().all(|own| (own - row[0]).abs() < 8.0);
    assert!(is_row(&first) && is_row(&second), "{first:?} {second:?}");
    assert!(second[0] > first[0]);
}
