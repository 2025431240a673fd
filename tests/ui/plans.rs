//! The Plan view, runs and what comes of them.

use super::*;

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
fn searches_are_taken_back_from_a_device_that_is_not_there_and_not_given_to_it() {
    use lapidary::engine::plan::Search;
    let mut window = Window::new(Start::Opened);
    window.show(View::Plan);
    let mut plan = window.document().plan().clone();
    plan.set_search(Search::Device);
    window.send(Command::SetPlan { plan: Box::new(plan), what: "search".to_owned() });
    window.send(Command::SetDevice("cpu".to_owned()));
    window.click(Role::CheckBox, "Search on the device");
    assert_eq!(window.document().plan().search(), Search::Cpu);
    assert_eq!(window.document().history.undo_name(), Some("search on the CPU"));
    window.click(Role::CheckBox, "Search on the device");
    assert_eq!(window.document().plan().search(), Search::Cpu, "without a device it cannot be turned on");
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

/// Answers the window's question for a path and reads what was written there.
fn save_as(window: &mut Window, name: &str) -> String {
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
    std::fs::read_to_string(&path).unwrap_or_else(|err| panic!("{name}: {err}; {:?}", window.errors()))
}

#[test]
fn plots_and_tables_of_the_comparison_are_saved() {
    // So high that every card is seen.
    let mut window = Window::with(Start::Run, vec2(1440.0, 6000.0), Executor::Inline);
    window.show(View::Compare);
    let offered = [
        "Size against accuracy",
        "Accuracy by slice, Q2_K",
        "Speed and memory of Q2_K",
        "Distribution of KLD per token",
        "KLD over the position in the window",
        "Qualities of ",
        "Scorecard",
    ];
    for name in offered {
        assert!(window.says(&format!("Save: {name}")), "{name}");
    }
    if std::env::var_os("DBUS_SESSION_BUS_ADDRESS").is_some() {
        // The system's own dialog would open; without one the path is typed.
        return;
    }
    let slices = window.document().runs[0].comparison.as_ref().expect("compared").slices.len();
    window.click(Role::Button, "Save: Accuracy by slice, Q2_K");
    window.click(Role::Button, "Save numbers as CSV…");
    let csv = save_as(&mut window, "slices.csv");
    assert_eq!(csv.lines().count(), 1 + slices);
    assert!(csv.starts_with("slice,items,baseline_percent,") && csv.contains(",mcnemar_p,mcnemar_p_holm,verdict\r\n"));
    window.click(Role::Button, "Save: Scorecard");
    let csv = save_as(&mut window, "scorecard.csv");
    assert!(csv.starts_with("kind,name,items,original_percent,candidate_percent,kept,from\r\nability,"), "{csv}");
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
        let text = save_as(&mut window, name);
        assert!(text.starts_with(beginning), "{name}: {}", &text[..text.floor_char_boundary(80)]);
    }
    let html = std::fs::read_to_string(window.folder.path().join("report.html")).expect("written");
    // The project's own log is part of it.
    assert!(html.contains("Audit log") && html.contains("<svg"));
}

#[test]
fn an_evaluation_in_the_middle_is_cancelled_by_its_button() {
    let mut window = threaded();
    let tasks = window.document().checkpoint.path.join("tasks.jsonl");
    window.harness.state_mut().bench_mut().apply(Command::LoadTasks(tasks.clone()));
    until(&mut window, "reading", |window| window.document().tasks.as_ref().is_some_and(|read| read.path == tasks));
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
