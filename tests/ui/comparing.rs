//! Evaluating and comparing candidates, and saving what comes of it.

use super::*;
use lapidary::workbench::EvaluationChoices;

/// Clicks the first button whose name starts with these words.
fn click_button_that_starts_with(window: &mut Window, words: &str) {
    let found = window
        .harness
        .get_all_by(|node| node.role() == Role::Button && node.label().is_some_and(|label| label.starts_with(words)));
    let first = found.into_iter().next().unwrap_or_else(|| panic!("a button {words}"));
    first.click();
    window.harness.run();
}

#[test]
fn a_clicked_slice_leads_to_its_changed_answers_and_an_item_shows_what_it_asks() {
    // So high that every card is seen.
    let mut window = Window::with(Start::Run, vec2(1440.0, 6000.0), Executor::Inline);
    window.show(View::Compare);
    let comparison = window.document().runs[0].comparison.clone().expect("compared");
    let slice = comparison.worst_slice.clone().expect("slices");
    let mut changed: Vec<usize> =
        (0..comparison.flips.len()).filter(|&index| comparison.flips.slice_name(index) == slice).collect();
    // Losses are listed first.
    changed.sort_by_key(|&index| comparison.flips.is_gain(index));
    click_button_that_starts_with(&mut window, &format!("{slice} "));
    window.harness.run();
    let words = match changed.len() {
        0 => format!("No answer of {slice} changed"),
        1 => format!("1 changed answer of {slice} below"),
        count => format!("{count} changed answers of {slice} below"),
    };
    assert!(window.says(&words), "{words}");
    let Some(&first) = changed.first() else { return };
    let flip = comparison.flips.get(first).expect("reads");
    window.harness.get_by_label(&flip.id).click();
    window.harness.run();
    window.harness.run();
    let items = &window.document().tasks.as_ref().expect("tasks").items;
    let item = items.iter().flatten().find(|item| item.id == flip.id).expect("the item");
    let item = item.kind.prompt().trim().to_owned();
    assert!(window.says(&format!("Item {}", flip.id)) && window.says(&item), "{item}");
}

#[test]
fn other_ways_to_evaluate_make_results_stale_and_are_used_and_kept() {
    let mut window = Window::new(Start::Run);
    let evaluated = "Every candidate is evaluated on these tasks and this text";
    assert_eq!(window.bench().unavailable(Action::EvaluateCandidates), Some(evaluated));
    let run = window.document().runs[0].id;
    let slices = window.document().runs[0].evaluation.as_ref().expect("evaluated").slices.len();
    let choices = EvaluationChoices { context: Some(64), items_per_slice: Some(1), ..EvaluationChoices::default() };
    window.send(Command::SetEvaluation(Box::new(choices.clone())));
    assert!(window.document().runs[0].is_stale);
    assert_eq!(window.bench().unavailable(Action::EvaluateCandidates), None);
    // The power that energy is estimated with changes nothing that was measured.
    window.send(Command::SetEvaluation(Box::new(EvaluationChoices { watts: Some(10.0), ..Default::default() })));
    assert!(!window.document().runs[0].is_stale);

    window.send(Command::SetEvaluation(Box::new(choices.clone())));
    window.send(Action::EvaluateCandidates);
    assert_eq!(window.errors(), Vec::<&str>::new());
    let own = &window.document().runs[0];
    let evaluation = own.evaluation.as_ref().expect("evaluated");
    assert!(!own.is_stale);
    assert_eq!(evaluation.text.as_ref().map(|text| text.context), Some(64));
    assert_eq!(evaluation.items.len(), slices, "one item of each");

    // Back to the first way, whose items are still in the journal: nothing of them is lost.
    window.send(Command::SetEvaluation(Box::default()));
    assert!(window.document().runs[0].is_stale);
    window.send(Action::SaveProject);
    window.send(Action::OpenDemo);
    assert!(window.document().runs[0].is_stale);
    let all = window.document().tasks.as_ref().expect("tasks").items.len();
    let found = window.document().unfinished.get(&run).copied().expect("the journal is found");
    assert_eq!((found.items, found.of), (2 * all, 2 * all), "the original and the candidate");
    window.send(Command::SetEvaluation(Box::new(choices.clone())));
    window.send(Action::SaveProject);
    window.send(Action::OpenDemo);
    assert_eq!(window.document().choices, choices);
    assert!(!window.document().runs[0].is_stale);
}

#[test]
fn a_failed_candidate_goes_back_to_the_smallest_that_passes() {
    let mut window = Window::new(Start::Run);
    window.send(Command::SetRecipe(lapidary::engine::plan::Recipe::find("Q8_0")));
    window.send(Action::RunPlan);
    assert_eq!(window.document().runs.len(), 2);
    let kld = |window: &Window, run: usize| {
        let evaluation = window.document().runs[run].evaluation.as_ref().expect("evaluated");
        evaluation.text.as_ref().and_then(|text| text.distance.as_ref()).expect("a distance").kld_mean
    };
    // Two bits are far from the original, eight bits near: a limit between them on a scale of ratios.
    let limit = (kld(&window, 0) * kld(&window, 1)).sqrt();
    let gates = window.folder.path().join("gates.toml");
    let judge = |window: &mut Window, limit: f64| {
        let text = format!("[[gate]]\nmetric = \"kld_mean\"\nmax = {limit}\n");
        std::fs::write(&gates, text).expect("writes");
        window.send(Command::LoadGates(gates.clone()));
        assert_eq!(window.errors(), Vec::<&str>::new());
    };
    let rollback = |window: &Window, run: usize| {
        let comparison = window.document().runs[run].comparison.clone().expect("compared");
        comparison.rollback.as_ref().map(|model| model.id.clone())
    };
    judge(&mut window, limit);
    let passing = window.document().runs[1].content_hash.clone();
    assert_eq!((rollback(&window, 0), rollback(&window, 1)), (Some(passing), None));
    window.show(View::Runs);
    assert!(window.says("fail") && window.says("pass"));
    // Where none passes there is only the original.
    judge(&mut window, 1e-12);
    let original = window.document().baseline.as_ref().expect("evaluated").model.id.clone();
    assert_eq!((rollback(&window, 0), rollback(&window, 1)), (Some(original.clone()), Some(original)));
}

#[test]
fn the_menu_of_the_evaluation_changes_how_it_is_done() {
    let mut window = Window::new(Start::Run);
    window.show(View::Compare);
    window.click(Role::Button, "How candidates are evaluated");
    assert!(window.says("of the answers change"), "what the items can find is told");
    window.harness.get_by_label("Prompts as turns of the chat template").click();
    window.harness.run();
    assert!(window.document().choices.chat_template);
    window.harness.get_by_label("At most items of a slice").click();
    window.harness.run();
    assert_eq!(window.document().choices.items_per_slice, Some(100));
}

#[test]
fn a_typed_path_replaces_the_offer_and_folders_are_made_after_asking() {
    if std::env::var_os("DBUS_SESSION_BUS_ADDRESS").is_some() {
        // The system's own dialog would open.
        return;
    }
    let mut window = Window::with(Start::Run, vec2(1440.0, 6000.0), Executor::Inline);
    window.show(View::Compare);
    let ask = |window: &mut Window, path: &std::path::Path| {
        window.click(Role::Button, "Save: Scorecard");
        window.harness.run();
        let field = window.harness.get_by_role_and_label(Role::TextInput, "Path of a file or folder");
        field.type_text(&path.display().to_string());
        window.harness.run();
        window.click(Role::Button, "OK");
    };
    let path = window.folder.path().join("new").join("card.csv");
    ask(&mut window, &path);
    assert!(window.says("is not there") && !path.exists());
    window.click(Role::Button, "Make the folder and save");
    assert!(path.is_file(), "{:?}", window.errors());
    ask(&mut window, &path.join("below.csv"));
    assert!(window.says("is a file and not a folder"));
    window.click(Role::Button, "Cancel");
    assert!(path.is_file() && window.errors().is_empty());
}

#[test]
fn presenters_see_no_button_that_runs() {
    let mut window = Window::new(Start::Run);
    window.show(View::Compare);
    assert!(window.harness.query_by_role_and_label(Role::Button, "Run the plan").is_some());
    window.harness.key_press(Key::F5);
    window.harness.run();
    assert!(window.harness.query_by_role_and_label(Role::Button, "Run the plan").is_none());
    assert!(window.harness.query_by_role_and_label(Role::Button, "How candidates are evaluated").is_none());
}
