//! Units and masks from the Heads view.

use super::*;

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
    // So high that nothing of the comparison has to be scrolled to.
    let mut window = Window::with(Start::Opened, vec2(1440.0, 4000.0), Executor::Inline);
    let checkpoint = window.document().checkpoint.clone();
    let progress = Progress::default();
    let tasks = TaskSet::read(&checkpoint.path.join("tasks.jsonl")).expect("tasks");
    let codec = Tokenizer::of_checkpoint(&checkpoint).expect("tokenizer");
    let model = Model::load(&checkpoint, &progress).expect("loads");
    let config = checkpoint.require_config().expect("a network");
    // Items that the evaluation below does not have.
    let ids = |tasks: &TaskSet| -> Vec<String> { tasks.items.iter().map(|item| item.expect("an item").id).collect() };
    let (all, held_out) = (ids(&tasks), ids(&tasks.sample(40)));
    let mut seen = tasks.clone();
    seen.items = tasks.items.pick((0..all.len()).filter(|&index| !held_out.contains(&all[index])));
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
    let is_chosen = |line: &&str| held_out.iter().any(|id| line.contains(&format!("\"{id}\"")));
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
