//! Measuring from the window: importance, predicted and measured sensitivity.

use super::*;

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
