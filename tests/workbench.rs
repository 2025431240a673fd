//! The main job without a window: open the demo, decide, run, see what it cost, find it all again.

use std::path::Path;
use std::time::{Duration, Instant};

use lapidary::engine::checkpoint::{Checkpoint, Removal};
use lapidary::engine::pass;
use lapidary::engine::plan::budget::Limit;
use lapidary::engine::plan::standing::Standing;
use lapidary::engine::plan::{Constraints, Recipe, Search, Target, Ties};
use lapidary::engine::progress::Phase;
use lapidary::engine::report::audit;
use lapidary::engine::structure::masks::Pattern;
use lapidary::engine::structure::slices::Slice;
use lapidary::engine::structure::study::MaskMethod;
use lapidary::engine::structure::{Share, Take};
use lapidary::workbench::{
    Action, Command, Executor, Level, MaskRequest, Options, ScoredBy, SelectMode, State, Subject, UnitEdit, View,
    Workbench, output_folder,
};

fn inline(folder: &Path) -> Workbench {
    Workbench::new(Options::inline_in(folder))
}

fn threaded(folder: &Path) -> Workbench {
    Workbench::new(Options { executor: Executor::Threads, ..Options::inline_in(folder) })
}

fn errors(state: &State) -> Vec<&str> {
    state.notices.iter().filter(|notice| notice.level != Level::Info).map(|notice| notice.text.as_str()).collect()
}

/// Polls until `done`, as a window would.
fn wait(bench: &mut Workbench, what: &str, done: impl Fn(&Workbench) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !done(bench) {
        bench.poll();
        assert!(Instant::now() < deadline, "timed out: {what}; {:?}", errors(bench.state()));
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn index_of(bench: &Workbench, name: &str) -> usize {
    let document = bench.state().document.as_ref().expect("open");
    document.checkpoint.tensors.iter().position(|tensor| tensor.name == name).expect("tensor")
}

/// The demo with few tasks, so that tests that are not about them stay short.
fn open_small(bench: &mut Workbench, folder: &Path) {
    bench.apply(Action::OpenDemo);
    let document = bench.state().document.as_ref().expect("open");
    let tasks = std::fs::read_to_string(document.checkpoint.path.join("tasks.jsonl")).expect("tasks");
    let few: String = tasks.lines().step_by(50).map(|line| format!("{line}\n")).collect();
    let text = std::fs::read_to_string(document.checkpoint.path.join("evaluation.txt")).expect("text");
    let short = &text[..text.floor_char_boundary(12_000)];
    std::fs::write(folder.join("tasks.jsonl"), few).expect("writes");
    std::fs::write(folder.join("text.txt"), short).expect("writes");
    bench.apply(Command::LoadTasks(folder.join("tasks.jsonl")));
    bench.apply(Command::LoadText(folder.join("text.txt")));
}

const DOWN: &str = "model.layers.3.mlp.down_proj.weight";

#[test]
fn the_demo_goes_from_opening_to_a_compared_candidate() {
    let folder = tempfile::tempdir().expect("folder");
    let mut bench = inline(folder.path());
    open_small(&mut bench, folder.path());
    let document = bench.state().document.as_ref().expect("open");
    assert!(document.profiles.iter().all(Option::is_some));
    assert!(document.sensitivity.contains_key("weight"));
    let before = document.resolved.as_ref().expect("resolves").new_bytes;

    let down = index_of(&bench, DOWN);
    bench.apply(Command::Select { tensor: down, mode: SelectMode::Replace });
    bench.apply(Action::ProtectSelection);
    let document = bench.state().document.as_ref().expect("open");
    assert!(document.resolved.as_ref().expect("resolves").new_bytes > before);
    bench.apply(Action::Undo);
    assert_eq!(bench.state().document.as_ref().expect("open").resolved.as_ref().expect("resolves").new_bytes, before);
    bench.apply(Action::Redo);

    bench.apply(Action::RunPlan);
    assert_eq!(errors(bench.state()), Vec::<&str>::new());
    let document = bench.state().document.as_ref().expect("open");
    let run = document.focused().expect("a run");
    let kept = run.report.tensors.iter().find(|tensor| tensor.name == DOWN).expect("reported");
    assert_eq!((kept.from.as_str(), kept.to.as_str()), ("bf16", "bf16"));
    assert!(run.report.new_bits_per_weight() < 8.0);
    let evaluation = run.evaluation.as_ref().expect("evaluated");
    let text = evaluation.text.as_ref().expect("text");
    let distance = text.distance.as_ref().expect("distance");
    assert!(distance.kld_mean > 0.0 && distance.kld_mean < 0.5, "{}", distance.kld_mean);
    assert_eq!(evaluation.items.len(), 50);
    let comparison = run.comparison.as_ref().expect("compared");
    assert!(comparison.size_ratio > 1.5, "{}", comparison.size_ratio);
    assert!(!run.profiles.is_empty());
    assert!(document.baseline.is_some());
}

#[test]
fn a_project_is_found_again_with_its_runs_and_plan() {
    let folder = tempfile::tempdir().expect("folder");
    let mut bench = inline(folder.path());
    open_small(&mut bench, folder.path());
    let down = index_of(&bench, DOWN);
    bench.apply(Command::SetFormat { tensors: vec![down], format: "q8_0" });
    bench.apply(Action::RunPlan);
    let mine = folder.path().join("mine");
    bench.apply(Command::SaveProjectAs(mine.clone()));
    bench.close();

    let mut again = inline(folder.path());
    again.apply(Command::Open(mine.with_extension("lapidary")));
    assert_eq!(errors(again.state()), Vec::<&str>::new());
    let document = again.state().document.as_ref().expect("open");
    assert_eq!(document.plan().rules().len(), 1);
    assert_eq!(document.tasks.as_ref().expect("tasks").items.len(), 50);
    let run = document.focused().expect("run");
    assert!(run.checkpoint().is_some() && run.comparison.is_some() && !run.is_stale);
    assert!(again.state().settings.recent[0].ends_with("mine.lapidary"));
}

#[test]
fn what_cannot_be_done_says_why_and_changes_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let mut bench = inline(folder.path());
    for action in [Action::RunPlan, Action::Undo, Action::MeasureKld, Action::Generate] {
        bench.apply(action);
    }
    assert_eq!(errors(bench.state()).len(), 4);
    assert!(errors(bench.state()).iter().all(|text| text.contains("Open a checkpoint first")));
    bench.apply(Command::Open(folder.path().join("nowhere.gguf")));
    assert!(errors(bench.state()).last().expect("told").contains("nowhere.gguf"));
    assert!(bench.state().document.is_none());
    bench.apply(Command::Show(View::Compare));
    assert_eq!(bench.state().view, View::Compare);
}

#[test]
fn a_broken_file_leaves_the_open_document_alone() {
    let folder = tempfile::tempdir().expect("folder");
    let mut bench = inline(folder.path());
    open_small(&mut bench, folder.path());
    let broken = folder.path().join("broken.safetensors");
    std::fs::write(&broken, [255; 64]).expect("writes");
    bench.apply(Command::Open(broken));
    assert_eq!(errors(bench.state()).len(), 1);
    assert!(bench.state().document.as_ref().expect("still open").is_demo);
    bench.apply(Command::LoadPlan(folder.path().join("tasks.jsonl")));
    assert_eq!(errors(bench.state()).len(), 2);
    assert!(bench.state().document.as_ref().expect("open").history.undo_name().is_none());
}

#[test]
fn both_sides_of_the_playground_write() {
    let folder = tempfile::tempdir().expect("folder");
    let mut bench = inline(folder.path());
    open_small(&mut bench, folder.path());
    bench.apply(Command::SetRecipe(lapidary::engine::plan::Recipe::find("Q2_K")));
    bench.apply(Action::RunPlan);
    bench.apply(Command::SetPrompt("8 - 3 =".to_owned()));
    bench.apply(Command::SetGenerateTokens(6));
    bench.apply(Action::Generate);
    let playground = &bench.state().document.as_ref().expect("open").playground;
    assert!(playground.baseline.is_done && playground.candidate.is_done);
    let text: String = playground.baseline.tokens.iter().map(|token| token.text.as_str()).collect();
    assert!(text.starts_with(" 5"), "{text:?}");
}

#[test]
fn a_candidate_drafts_in_the_playground_and_the_text_stays_the_originals() {
    let folder = tempfile::tempdir().expect("folder");
    let mut bench = inline(folder.path());
    open_small(&mut bench, folder.path());
    assert_eq!(bench.unavailable(Action::Speculate), Some("Run a plan first: its candidate is the draft"));
    bench.apply(Command::SetRecipe(lapidary::engine::plan::Recipe::find("Q2_K")));
    bench.apply(Action::RunPlan);
    bench.apply(Command::SetPrompt("Hugo the miller walked to the".to_owned()));
    bench.apply(Command::SetGenerateTokens(24));
    bench.apply(Command::SetDraftTokens(3));
    bench.apply(Action::Generate);
    bench.apply(Action::Speculate);
    let playground = &bench.state().document.as_ref().expect("open").playground;
    let found = playground.speculated.as_ref().expect("a text");
    let alone: Vec<u32> = playground.baseline.tokens.iter().map(|token| token.id).collect();
    assert_eq!((&found.generation.ids, found.is_same_text), (&alone, Some(true)));
    assert!(found.generation.accepted > 0 && found.draft_tokens == 3 && found.speed_up() > 0.0);
    assert!(playground.drafting.is_none());
    // Sampled text is drawn anew; nobody claims that it is the same.
    bench.apply(Command::SetTemperature(1.0));
    bench.apply(Action::Speculate);
    let playground = &bench.state().document.as_ref().expect("open").playground;
    assert_eq!(playground.speculated.as_ref().expect("a text").is_same_text, None);
    assert_eq!(errors(bench.state()), Vec::<&str>::new());
}

#[test]
fn an_evaluation_that_was_stopped_goes_on_with_the_items_that_are_left() {
    let folder = tempfile::tempdir().expect("folder");
    let mut bench = threaded(folder.path());
    bench.apply(Action::OpenDemo);
    wait(&mut bench, "opening", |bench| bench.state().document.is_some() && !bench.is_busy());
    let items =
        |bench: &Workbench| bench.jobs().find(|job| job.progress.phase == Phase::ScoringTasks).map(|job| job.progress);
    bench.apply(Action::EvaluateBaseline);
    wait(&mut bench, "the first items", |bench| items(bench).is_some_and(|progress| progress.done > 600));
    let running = items(&bench).and_then(|progress| progress.running).expect("a running figure");
    assert!(running.text().starts_with("accuracy ") && running.margin().is_some_and(|margin| margin < 0.1));
    // As a crash would: the job ends in the middle, and the window with it.
    bench.close();
    assert!(bench.state().document.as_ref().expect("open").baseline.is_none());
    let mut again = threaded(folder.path());
    again.apply(Action::OpenDemo);
    wait(&mut again, "opening", |bench| bench.state().document.is_some() && !bench.is_busy());
    again.apply(Action::EvaluateBaseline);
    wait(&mut again, "items", |bench| items(bench).is_some());
    let resumed = items(&again).map_or(0, |progress| progress.resumed);
    assert!(resumed >= 256, "{resumed}");
    wait(&mut again, "the rest", |bench| !bench.is_busy());
    let baseline = again.state().document.as_ref().expect("open").baseline.clone().expect("evaluated");
    assert_eq!(baseline.items.len(), 2500);
    let log = std::fs::read_dir(folder.path().join("data/projects")).expect("projects").flatten();
    let log = log.map(|entry| entry.path().join("audit.jsonl")).find(|path| path.exists()).expect("an audit log");
    assert!(std::fs::read_to_string(log).expect("text").contains("\"what\":\"evaluate\""));
}

#[test]
fn predictions_of_the_original_that_are_kept_serve_every_candidate() {
    let folder = tempfile::tempdir().expect("folder");
    let mut bench = inline(folder.path());
    open_small(&mut bench, folder.path());
    bench.apply(Action::ToggleKeepBaseline);
    for recipe in ["Q2_K", "Q4_K_M"] {
        bench.apply(Command::SetRecipe(lapidary::engine::plan::Recipe::find(recipe)));
        bench.apply(Action::RunPlan);
    }
    let document = bench.state().document.as_ref().expect("open");
    assert_eq!(document.runs.len(), 2);
    let means: Vec<f64> = document
        .runs
        .iter()
        .map(|run| {
            let text = run.comparison.as_ref().and_then(|comparison| comparison.text.as_ref()).expect("a text");
            let distance = text.distance.as_ref().expect("a distance");
            let kept = distance.kept.expect("from kept predictions");
            assert!(kept.k == 64 && kept.tail_mass_mean > 0.0 && kept.kld_mean_at_most > distance.kld_mean);
            distance.kld_mean
        })
        .collect();
    assert!(means[0] > means[1], "{means:?}");
    assert_eq!(errors(bench.state()), Vec::<&str>::new());
}

#[test]
fn candidates_are_judged_by_chosen_gates_and_by_their_plans_constraints() {
    let folder = tempfile::tempdir().expect("folder");
    let mut bench = inline(folder.path());
    open_small(&mut bench, folder.path());
    bench.apply(Command::SetConstraints(Box::new(Constraints { max_file_bytes: Some(1), ..Constraints::default() })));
    bench.apply(Command::SetRecipe(lapidary::engine::plan::Recipe::find("Q2_K")));
    bench.apply(Action::RunPlan);
    let compared = |bench: &Workbench| {
        let document = bench.state().document.as_ref().expect("open");
        document.runs[0].comparison.clone().expect("compared")
    };
    let own = compared(&bench);
    assert_eq!((own.gates.len(), own.gates[0].metric.as_str()), (1, "file_bytes"));
    assert!(own.rollback.as_ref().is_some_and(|rollback| !rollback.id.is_empty()) && own.gates[0].is_binding);
    let gates = folder.path().join("gates.toml");
    std::fs::write(&gates, "[[gate]]\nmetric = \"kld_mean\"\nmax = 5.0\n").expect("writes");
    bench.apply(Command::LoadGates(gates.clone()));
    let both = compared(&bench);
    assert_eq!(both.gates.iter().map(|gate| gate.metric.as_str()).collect::<Vec<_>>(), ["kld_mean", "file_bytes"]);
    bench.close();
    let mut again = inline(folder.path());
    again.apply(Action::OpenDemo);
    assert_eq!(compared(&again).gates.len(), 2, "the gates are in the project");
    again.apply(Action::DropGates);
    assert_eq!(compared(&again).gates.len(), 1);
    std::fs::write(&gates, "[[gate]]\nmetric = \"luck\"\nmin = 1\n").expect("writes");
    again.apply(Command::LoadGates(gates));
    assert_eq!(errors(again.state()).len(), 1);
}

#[test]
fn a_cancelled_pass_leaves_no_file_and_the_next_one_works() {
    let folder = tempfile::tempdir().expect("folder");
    let mut bench = threaded(folder.path());
    bench.apply(Action::OpenDemo);
    wait(&mut bench, "opening", |bench| bench.state().document.is_some() && !bench.is_busy());
    let target = folder.path().join("out").join("a.gguf");
    bench.apply(Command::RunPlan { name: None, output: Some(target.clone()) });
    bench.apply(Action::CancelJobs);
    wait(&mut bench, "cancel", |bench| !bench.is_busy());
    assert!(bench.state().document.as_ref().expect("open").runs.is_empty());
    let left = std::fs::read_dir(folder.path().join("out")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "nothing half-written remains");
    bench.apply(Command::RunPlan { name: None, output: Some(target.clone()) });
    wait(&mut bench, "pass", |bench| !bench.state().document.as_ref().expect("open").runs.is_empty());
    assert!(target.exists());
    bench.apply(Action::CancelJobs);
    bench.close();
    assert_eq!(errors(bench.state()), Vec::<&str>::new());
}

#[test]
fn a_pass_that_fails_is_in_the_audit_log_with_its_reason() {
    let folder = tempfile::tempdir().expect("folder");
    let mut bench = inline(folder.path());
    bench.apply(Action::OpenDemo);
    let taken = folder.path().join("taken");
    std::fs::write(&taken, "a file and no folder").expect("writes");
    bench.apply(Command::RunPlan { name: None, output: Some(taken.join("a.gguf")) });
    assert_eq!(errors(bench.state()).len(), 1);
    let project = &bench.state().document.as_ref().expect("open").project_path;
    let log = output_folder(project).join("audit.jsonl");
    let entries = audit::read(&log).expect("a log");
    let [logged] = entries.as_slice() else { panic!("{entries:?}") };
    assert_eq!((logged.entry.what.as_str(), logged.entry.outcome.as_str()), ("pass", "failed"));
    assert!(logged.entry.options["reason"].contains("taken"), "{:?}", logged.entry.options);
    assert!(logged.entry.inputs.iter().any(|input| input.name == "plan"));
}

#[test]
fn closing_the_window_during_an_evaluation_saves_the_run() {
    let folder = tempfile::tempdir().expect("folder");
    let mut bench = threaded(folder.path());
    bench.apply(Action::OpenDemo);
    wait(&mut bench, "opening", |bench| bench.state().document.is_some() && !bench.is_busy());
    bench.apply(Action::RunPlan);
    wait(&mut bench, "pass", |bench| !bench.state().document.as_ref().expect("open").runs.is_empty());
    let started = Instant::now();
    bench.close();
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let mut again = inline(folder.path());
    again.apply(Action::OpenDemo);
    let document = again.state().document.as_ref().expect("open");
    assert_eq!(document.runs.len(), 1);
    assert!(document.runs[0].checkpoint().is_some());
}

#[test]
fn a_candidate_can_be_exported_rolled_back_to_and_forgotten() {
    let folder = tempfile::tempdir().expect("folder");
    let mut bench = inline(folder.path());
    open_small(&mut bench, folder.path());
    bench.apply(Action::RunPlan);
    let id = bench.state().document.as_ref().expect("open").focused_run.expect("run");
    bench.apply(Command::SetRecipe(lapidary::engine::plan::Recipe::find("Q8_0")));
    bench.apply(Command::RollBack(id));
    let document = bench.state().document.as_ref().expect("open");
    assert_eq!(document.plan().recipe().map(|recipe| recipe.name()), Some("Q4_K_M"));
    let copy = folder.path().join("copies").join("copy.gguf");
    bench.apply(Command::Export { run: id, output: copy.clone() });
    let original = &bench.state().document.as_ref().expect("open").run(id).expect("run").path;
    assert_eq!(std::fs::read(&copy).expect("copy"), std::fs::read(original).expect("original"));
    bench.apply(Command::Evaluate(Subject::Baseline));
    bench.apply(Command::ForgetRun(id));
    assert!(bench.state().document.as_ref().expect("open").focused().is_none());
    assert!(copy.exists());
}

#[test]
fn searches_go_to_a_device_and_back_as_steps_of_history_and_not_where_there_is_none() {
    let folder = tempfile::tempdir().expect("folder");
    let mut bench = inline(folder.path());
    open_small(&mut bench, folder.path());
    let search = |bench: &Workbench| bench.state().document.as_ref().expect("open").plan().search();
    // Nobody has looked for devices yet: the plan may say so, and a pass uses one where there is one.
    assert_eq!(bench.unavailable(Action::ToggleDeviceSearch), None);
    bench.apply(Action::ToggleDeviceSearch);
    assert_eq!(search(&bench), Search::Device);
    let document = bench.state().document.as_ref().expect("open");
    assert!(document.plan().to_toml().contains("search = \"device\""));
    assert_eq!(document.resolved.as_ref().expect("resolves").search, Search::Device);
    assert_eq!(document.history.undo_name(), Some("search on the device"));

    bench.apply(Command::SetDevice("cpu".to_owned()));
    assert_eq!(bench.unavailable(Action::ToggleDeviceSearch), None, "what is on can be turned off");
    bench.apply(Action::ToggleDeviceSearch);
    assert_eq!(search(&bench), Search::Cpu);
    assert!(!bench.state().document.as_ref().expect("open").plan().to_toml().contains("search ="));
    let reason = "The CPU is chosen: choose a device first";
    assert_eq!(bench.unavailable(Action::ToggleDeviceSearch), Some(reason));
    bench.apply(Action::Undo);
    assert_eq!(search(&bench), Search::Device);
    bench.apply(Action::Undo);
    assert_eq!(search(&bench), Search::Cpu);

    // candle's CPU path runs models and encodes nothing.
    bench.apply(Command::SetDevice("candle on the CPU".to_owned()));
    assert!(bench.state().devices.is_some());
    assert_eq!(bench.unavailable(Action::ToggleDeviceSearch), Some("No device encodes here: the CPU searches"));
}

#[test]
fn importance_is_computed_used_undone_saved_and_found_again() {
    let folder = tempfile::tempdir().expect("folder");
    let mut bench = inline(folder.path());
    open_small(&mut bench, folder.path());
    let document = |bench: &Workbench| bench.state().document.as_ref().expect("open").plan().calibration().is_some();
    assert_eq!(bench.unavailable(Action::DropImportance), Some("The plan uses none"));
    let text = std::fs::read_to_string(folder.path().join("text.txt")).expect("text");
    let short = folder.path().join("short.txt");
    std::fs::write(&short, &text[..text.floor_char_boundary(6_000)]).expect("writes");
    bench.apply(Command::Calibrate(short.clone()));
    assert_eq!(errors(bench.state()), Vec::<&str>::new());
    let known = bench.state().document.as_ref().expect("open").importance.clone().expect("computed");
    assert_eq!(known.statistics.len(), 42);
    let path = known.importance.path.clone().expect("a file");
    assert!(path.is_file() && path.parent().is_some_and(|folder| folder.to_string_lossy().ends_with(".lapidary.d")));
    assert!(document(&bench) && bench.unavailable(Action::UseImportance) == Some("The plan uses it"));
    bench.apply(Action::Undo);
    assert!(!document(&bench));
    bench.apply(Action::UseImportance);
    assert!(document(&bench));

    bench.apply(Command::SetRecipe(lapidary::engine::plan::Recipe::find("Q2_K_S")));
    bench.apply(Action::RunPlan);
    let run = bench.state().document.as_ref().expect("open").focused().expect("a run");
    let weighted = run.report.tensors.iter().filter(|tensor| tensor.method == "imatrix").count();
    assert!(weighted >= 42, "{weighted}");
    bench.apply(Action::MeasureWeightError);
    let table = &bench.state().document.as_ref().expect("open").sensitivity["weight"];
    assert_eq!(table.imatrix.as_ref(), Some(&known.importance.hash));
    let mine = folder.path().join("mine.lapidary");
    bench.apply(Command::SaveProjectAs(mine.clone()));
    bench.close();

    let mut again = inline(folder.path());
    again.apply(Command::Open(mine.clone()));
    assert_eq!(errors(again.state()), Vec::<&str>::new());
    let opened = again.state().document.as_ref().expect("open");
    assert_eq!(opened.importance_in_use().map(|found| &found.hash), Some(&known.importance.hash));
    assert_eq!(opened.calibration_text.as_ref(), Some(&short));
    again.close();

    std::fs::remove_file(path).expect("it is there");
    let mut lost = inline(folder.path());
    lost.apply(Command::Open(mine));
    assert!(errors(lost.state()).iter().any(|text| text.contains("imatrix.gguf")), "{:?}", errors(lost.state()));
    assert!(lost.state().document.is_some());
}

#[test]
fn a_foreign_importance_matrix_and_lists_of_types_say_what_is_wrong() {
    let folder = tempfile::tempdir().expect("folder");
    let mut bench = inline(folder.path());
    open_small(&mut bench, folder.path());
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    bench.apply(Command::LoadImportance(folder.path().join("text.txt")));
    assert!(errors(bench.state()).last().expect("told").contains("text.txt"));
    assert!(bench.state().document.as_ref().expect("open").importance.is_none());
    bench.apply(Command::LoadImportance(fixtures.join("llama_cpp_imatrix.dat")));
    assert_eq!(errors(bench.state()).len(), 1);
    assert!(bench.state().document.as_ref().expect("open").importance_in_use().is_some());

    let types = folder.path().join("types.txt");
    bench.apply(Command::ExportTensorTypes(types.clone()));
    let written = std::fs::read_to_string(&types).expect("written");
    assert_eq!(written.lines().count(), 43);
    bench.apply(Command::SetRecipe(lapidary::engine::plan::Recipe::find("Q8_0")));
    bench.apply(Command::ImportTensorTypes(types.clone()));
    let again = folder.path().join("again.txt");
    bench.apply(Command::ExportTensorTypes(again.clone()));
    assert_eq!(std::fs::read_to_string(again).expect("written"), written);
    std::fs::write(&types, "nonsense").expect("writes");
    bench.apply(Command::ImportTensorTypes(types));
    assert!(errors(bench.state()).last().expect("told").contains("PATTERN=TYPE"));
}

#[test]
fn a_budget_is_one_step_of_history_and_a_drag_too() {
    let folder = tempfile::tempdir().expect("folder");
    let mut bench = inline(folder.path());
    bench.apply(Action::OpenDemo);
    let start = bench.state().document.as_ref().expect("open").plan().clone();
    let bytes = |bench: &Workbench| {
        let document = bench.state().document.as_ref().expect("open");
        document.resolved.as_ref().expect("resolves").padded_bytes
    };
    let damage = |bench: &Workbench| {
        bench.state().document.as_ref().expect("open").predicted_damage("weight").expect("measured")
    };
    let (own_bytes, own_damage) = (bytes(&bench), damage(&bench));
    assert!(bench.unavailable(Action::ImprovePlan).is_none());
    bench.apply(Action::ImprovePlan);
    assert!(bytes(&bench) <= own_bytes && damage(&bench) < own_damage);
    assert_ne!(bench.state().document.as_ref().expect("open").plan(), &start);

    // Three moves of a slider, then undo: back before the drag; again: back before the proposal.
    let improved = bench.state().document.as_ref().expect("open").plan().clone();
    for (step, percent) in [95, 90, 85].into_iter().enumerate() {
        let limit = Limit::TensorBytes(own_bytes * percent / 100);
        bench.apply(Command::PlanWithin { limit, metric: Some("weight"), continues: step > 0 });
        assert!(bytes(&bench) <= own_bytes * percent / 100);
    }
    bench.apply(Action::Undo);
    assert_eq!(bench.state().document.as_ref().expect("open").plan(), &improved);
    bench.apply(Action::Undo);
    assert_eq!(bench.state().document.as_ref().expect("open").plan(), &start);

    // A file limit knows the metadata; what is protected stays; the impossible changes nothing.
    let down = index_of(&bench, DOWN);
    bench.apply(Command::SetProtected { tensors: vec![down], protect: true });
    let limit = Limit::FileBytes(own_bytes);
    bench.apply(Command::PlanWithin { limit, metric: None, continues: false });
    let document = bench.state().document.as_ref().expect("open");
    let resolved = document.resolved.as_ref().expect("resolves");
    assert!(lapidary::engine::pass::file_bytes(&document.checkpoint, resolved).expect("laid out") <= own_bytes);
    assert_eq!(resolved.decisions[down].dtype.name(), "bf16");
    let before = document.plan().clone();
    bench.apply(Command::PlanWithin { limit: Limit::FileBytes(1000), metric: None, continues: false });
    assert_eq!(bench.state().document.as_ref().expect("open").plan(), &before);
    assert!(errors(bench.state()).iter().any(|text| text.contains("the least is")), "{:?}", errors(bench.state()));
}

#[test]
fn a_pruned_plan_has_its_own_overhead_beside_the_tensors() {
    let folder = tempfile::tempdir().expect("folder");
    let mut bench = inline(folder.path());
    bench.apply(Action::OpenDemo);
    let constraints = Constraints { max_file_bytes: Some(4 << 20), ..Constraints::default() };
    bench.apply(Command::SetConstraints(Box::new(constraints)));
    let overhead = |bench: &Workbench| {
        let document = bench.state().document.as_ref().expect("open");
        let own = pass::overhead_bytes(&document.checkpoint, document.plan()).expect("laid out");
        assert_eq!(document.overhead_bytes(), Some(own));
        own
    };
    let whole = overhead(&bench);
    let document = bench.state().document.as_ref().expect("open");
    let mut plan = document.plan().clone();
    let removal = Removal { layers: [1].into(), ..Removal::default() };
    plan.set_removal(&document.checkpoint, removal).expect("a layer");
    bench.apply(Command::SetPlan { plan: Box::new(plan), what: "one layer less".to_owned() });
    assert!(overhead(&bench) < whole, "nine tensors less to name");
    bench.apply(Action::Undo);
    assert_eq!(overhead(&bench), whole);
}

#[test]
fn constraints_kept_plans_and_ties_live_in_the_project() {
    let folder = tempfile::tempdir().expect("folder");
    let mut bench = inline(folder.path());
    bench.apply(Action::OpenDemo);
    let document = |bench: &Workbench| bench.state().document.as_ref().expect("open").plan().clone();
    let standings = |bench: &Workbench| -> Vec<Standing> {
        let found = bench.state().document.as_ref().expect("open").standing(bench.state().rates.as_ref());
        found.checks.iter().map(|check| check.standing).collect()
    };
    assert!(bench.unavailable(Action::FitConstraints).is_some() && bench.unavailable(Action::ExportGates).is_some());
    let constraints = Constraints {
        max_file_bytes: Some(9 << 18),
        min_decode_tokens_per_second: Some(1e-3),
        max_kld: Some(0.5),
        ..Constraints::default()
    };
    bench.apply(Command::SetConstraints(Box::new(constraints.clone())));
    let (met, missed, unknown) = (Standing::Met, Standing::Missed, Standing::Unknown);
    assert_eq!(standings(&bench), [missed, unknown, unknown]);

    // Planning for a speed without kernel rates is refused; without it the size is met at once.
    bench.apply(Action::FitConstraints);
    assert!(errors(bench.state()).iter().any(|text| text.contains("kernels of this machine")));
    let sizes = Constraints { min_decode_tokens_per_second: None, max_kld: None, ..constraints };
    bench.apply(Command::SetConstraints(Box::new(sizes)));
    bench.apply(Command::NamePlan(" as the recipe ".to_owned()));
    bench.apply(Action::FitConstraints);
    assert_eq!(standings(&bench), [met]);
    let fitted = document(&bench);
    let gates = folder.path().join("gates.toml");
    bench.apply(Command::ExportGates(gates.clone()));
    assert!(std::fs::read_to_string(gates).expect("written").contains("file_bytes"));

    // With ties, k and v follow q.
    bench.apply(Command::SetTies(Ties { attention: true, mlp: false }));
    let q = index_of(&bench, "model.layers.2.self_attn.q_proj.weight");
    let v = index_of(&bench, "model.layers.2.self_attn.v_proj.weight");
    bench.apply(Command::SetFormat { tensors: vec![q], format: "q5_0" });
    let dtype = |bench: &Workbench, index: usize| {
        let document = bench.state().document.as_ref().expect("open");
        document.resolved.as_ref().expect("resolves").decisions[index].dtype.name()
    };
    assert_eq!((dtype(&bench, q), dtype(&bench, v)), ("q5_0", "q5_0"));
    bench.apply(Command::CopyLayer { from: 2, to: vec![3] });
    assert_eq!(dtype(&bench, index_of(&bench, "model.layers.3.self_attn.k_proj.weight")), "q5_0");
    bench.apply(Command::MakeLegal(Target::Gptq));
    assert_eq!(document(&bench).target(), Target::Gptq);
    bench.apply(Action::Undo);

    // A kept plan comes back, and both it and the steps survive closing.
    bench.apply(Command::ReturnTo("as the recipe".to_owned()));
    assert_eq!(document(&bench).recipe(), Some(Recipe::Q4KM));
    let steps = bench.state().document.as_ref().expect("open").history.steps().count();
    bench.close();
    let mut again = inline(folder.path());
    again.apply(Action::OpenDemo);
    let kept = again.state().document.as_ref().expect("open");
    assert_eq!(kept.named.len(), 1);
    assert_eq!(kept.history.steps().count(), steps);
    let fit = kept.history.steps().position(|step| step == "plan within a budget").expect("a step");
    again.apply(Command::UndoTo(fit + 1));
    assert_eq!(document(&again), fitted);
    again.apply(Command::ForgetNamed("as the recipe".to_owned()));
    assert!(again.state().document.as_ref().expect("open").named.is_empty());
}

#[test]
fn the_frontier_is_run_at_three_sizes_and_later_passes_take_over_tensors() {
    let folder = tempfile::tempdir().expect("folder");
    let mut bench = inline(folder.path());
    // Without tasks and texts nothing is evaluated.
    let model = folder.path().join("model");
    std::fs::create_dir(&model).expect("folder");
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo").join(name);
        std::fs::copy(source, model.join(name)).expect("copied");
    }
    bench.apply(Command::Open(model));
    let before = bench.state().document.as_ref().expect("open").plan().clone();
    bench.apply(Action::RunFrontier);
    let document = bench.state().document.as_ref().expect("open");
    assert_eq!(document.runs.len(), 3, "{:?}", errors(bench.state()));
    assert_eq!(document.plan(), &before);
    let bytes: Vec<u64> = document.runs.iter().map(|run| run.report.new_bytes).collect();
    assert!(bytes[0] < bytes[1] && bytes[1] < bytes[2], "{bytes:?}");
    assert!(document.runs.iter().all(|run| run.name.starts_with("frontier")));

    bench.apply(Action::RunPlan);
    let down = index_of(&bench, DOWN);
    bench.apply(Command::SetFormat { tensors: vec![down], format: "q8_0" });
    bench.apply(Action::RunPlan);
    let runs = &bench.state().document.as_ref().expect("open").runs;
    assert!(runs[4].report.reused_tensors >= 41, "{}", runs[4].report.reused_tensors);
}

/// Values of a tensor.
fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let tensor = checkpoint.tensor(name).expect("a tensor");
    let mut values = Vec::new();
    checkpoint.decode_rows(tensor, 0..tensor.row_count(), &mut Vec::new(), &mut values).expect("decodes");
    values
}

#[test]
fn a_mask_becomes_a_candidate_that_says_what_it_is_and_is_no_plan() {
    let folder = tempfile::tempdir().expect("folder");
    let mut bench = inline(folder.path());
    open_small(&mut bench, folder.path());
    let request = MaskRequest { method: MaskMethod::Magnitude, pattern: Pattern::TWO_OF_FOUR, quantize: None };
    bench.apply(Command::MaskWeights(request));
    assert_eq!(errors(bench.state()), Vec::<&str>::new());
    let document = bench.state().document.as_ref().expect("open");
    let run = document.focused().expect("a run");
    let id = run.id;
    let facts = run.mask.clone().expect("what was masked");
    assert_eq!((run.name.as_str(), facts.mask.name().as_str()), ("magnitude 2:4", "magnitude 2:4"));
    assert_eq!(facts.mask.tensors, 42);
    assert!(facts.is_compact && facts.file_bytes < facts.dense_file_bytes);
    assert_eq!(facts.file_bytes, run.report.file_bytes);
    assert_eq!(facts.statements().count(), 2);
    let tells = |warnings: &[String]| facts.statements().all(|text| warnings.iter().any(|own| own == text));
    assert!(tells(&run.comparison.as_ref().expect("compared").warnings));
    let (masked, whole) = (values(run.checkpoint().expect("open"), DOWN), values(&document.checkpoint, DOWN));
    assert!(masked.chunks_exact(4).all(|four| four.iter().filter(|value| **value == 0.0).count() >= 2));
    assert!(masked.iter().zip(&whole).all(|(own, old)| *own == 0.0 || own == old), "what stays is as it was");
    let log = std::fs::read_to_string(output_folder(&document.project_path).join("audit.jsonl")).expect("a log");
    assert!(log.contains("\"mask\":\"magnitude 2:4\""), "{log}");

    // There is no plan to go back to, and no pass takes its tensors over.
    let plan = document.plan().to_toml();
    bench.apply(Command::RollBack(id));
    assert_eq!(bench.state().document.as_ref().expect("open").plan().to_toml(), plan);
    bench.apply(Command::SetRecipe(None));
    bench.apply(Command::SetTarget(Target::HuggingFace));
    bench.apply(Action::RunPlan);
    let run = bench.state().document.as_ref().expect("open").focused().expect("a run");
    assert!(run.mask.is_none() && run.report.reused_tensors == 0);
    assert_eq!(values(run.checkpoint().expect("open"), DOWN), whole);

    // It is known for what it is when the project is opened again, and asked for twice it has another name.
    let mine = folder.path().join("mine.lapidary");
    bench.apply(Command::SaveProjectAs(mine.clone()));
    bench.close();
    let mut again = inline(folder.path());
    again.apply(Command::Open(mine));
    again.apply(Command::MaskWeights(request));
    assert_eq!(errors(again.state()), Vec::<&str>::new());
    let document = again.state().document.as_ref().expect("open");
    let run = document.run(id).expect("the masked run");
    assert_eq!(run.mask.as_deref(), Some(&*facts));
    assert!(tells(&run.comparison.as_ref().expect("compared").warnings));
    assert_eq!(document.focused().expect("a run").name, "magnitude 2:4 (2)");
}

#[test]
fn a_cancelled_mask_leaves_no_file_and_sparsegpt_quantizes_in_its_sweep() {
    let folder = tempfile::tempdir().expect("folder");
    let mut bench = threaded(folder.path());
    bench.apply(Action::OpenDemo);
    wait(&mut bench, "opening", |bench| bench.state().document.is_some() && !bench.is_busy());
    let path = bench.state().document.as_ref().expect("open").checkpoint.path.join("calibration.txt");
    let text = std::fs::read_to_string(path).expect("text");
    std::fs::write(folder.path().join("short.txt"), &text[..text.floor_char_boundary(8_000)]).expect("writes");
    bench.apply(Command::ChooseCalibration(folder.path().join("short.txt")));
    wait(&mut bench, "reading", |bench| !bench.is_busy());
    let quantize = lapidary::engine::format::find("int4_g128");
    let request = MaskRequest { method: MaskMethod::SparseGpt, pattern: Pattern::FOUR_OF_EIGHT, quantize };
    bench.apply(Command::MaskWeights(request));
    assert!(bench.is_busy());
    bench.apply(Command::MaskWeights(request));
    assert!(errors(bench.state()).iter().any(|text| text.contains("A pass is running")));
    bench.apply(Action::CancelJobs);
    wait(&mut bench, "cancel", |bench| !bench.is_busy());
    let document = bench.state().document.as_ref().expect("open");
    assert!(document.runs.is_empty());
    let candidates = std::fs::read_dir(output_folder(&document.project_path)).expect("the folder");
    let left: Vec<_> = candidates.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("sparsegpt")), "{left:?}");
    bench.apply(Command::MaskWeights(request));
    wait(&mut bench, "pass", |bench| !bench.state().document.as_ref().expect("open").runs.is_empty());
    let run = &bench.state().document.as_ref().expect("open").runs[0];
    assert_eq!(run.name, "sparsegpt 4:8 int4_g128");
    let facts = run.mask.as_deref().expect("what was masked");
    assert_eq!((facts.mask.format.as_deref(), run.plan.target()), (Some("int4_g128"), Target::CompressedTensors));
    assert!(facts.mask.loss.is_some_and(|loss| loss > 0.0) && facts.mask.text_hash.is_some());
    bench.apply(Action::CancelJobs);
    bench.close();
}

#[test]
fn units_are_scored_on_two_slices_once_and_their_difference_prunes() {
    let folder = tempfile::tempdir().expect("folder");
    let mut bench = inline(folder.path());
    open_small(&mut bench, folder.path());
    let slice = |name: &str| Slice::Domain(name.to_owned());
    let (first, second) = (slice("arithmetic"), slice("french"));
    let offered = bench.state().document.as_ref().expect("open").slices();
    assert!(
        offered.contains(&first)
            && offered.contains(&second)
            && offered.iter().any(|own| matches!(own, Slice::Tasks(_)))
    );
    bench.apply(Command::ScoreSlices(vec![first.clone(), second.clone()]));
    assert_eq!(errors(bench.state()), Vec::<&str>::new());
    let by = ScoredBy::Slices { first: first.clone(), second: second.clone(), weight: 1.0 };
    let document = bench.state().document.as_ref().expect("open");
    let difference = document.scores_of(&by, None).expect("both are scored");
    let (own, other) = (document.slice_scores[&first].clone(), document.slice_scores[&second].clone());
    assert_ne!(own.text_hash, other.text_hash);
    for (layer, scores) in difference.layers.iter().enumerate() {
        for (group, score) in scores.kv_groups.iter().enumerate() {
            assert_eq!(*score, own.layers[layer].kv_groups[group] - other.layers[layer].kv_groups[group]);
        }
    }
    let take = Take { share: Share::Layer, kv_groups: 0.25, ..Take::default() };
    let edit = UnitEdit::Lowest { by: by.clone(), over: None, take };
    bench.apply(Command::EditUnits { edit, what: "even two slices out".to_owned() });
    let document = bench.state().document.as_ref().expect("open");
    for (layer, scores) in difference.layers.iter().enumerate() {
        let groups = scores.kv_groups.iter().enumerate();
        let least = groups.min_by(|one, other| one.1.total_cmp(other.1)).map(|(group, _)| group);
        let gone = &document.plan().prune().removal.units[&layer].kv_groups;
        assert_eq!(gone.iter().copied().collect::<Vec<_>>(), Vec::from_iter(least), "layer {layer}");
    }

    // A quarter of 512 channels is half a block of the plan's k-quants: none goes, and that is said.
    let take = Take { share: Share::Layer, channels: 0.25, ..Take::default() };
    let edit = UnitEdit::Lowest { by: by.clone(), over: None, take };
    bench.apply(Command::EditUnits { edit, what: "channels out".to_owned() });
    let said = |bench: &Workbench| bench.state().notices.iter().any(|notice| notice.text.contains("in blocks of 256"));
    assert!(said(&bench));

    // Scored once; found again with the project; dropped with the text that they were of.
    bench.apply(Command::ScoreSlices(vec![second.clone(), first.clone()]));
    let document = bench.state().document.as_ref().expect("open");
    assert!(std::sync::Arc::ptr_eq(&document.slice_scores[&first], &own));
    let mine = folder.path().join("mine.lapidary");
    bench.apply(Command::SaveProjectAs(mine.clone()));
    bench.close();
    let mut again = inline(folder.path());
    again.apply(Command::Open(mine));
    let document = again.state().document.as_ref().expect("open");
    assert_eq!(document.slice_scores.get(&first), Some(&own));
    let text = document.text.as_ref().expect("text").path.clone();
    again.apply(Command::ChooseCalibration(text));
    let document = again.state().document.as_ref().expect("open");
    assert!(document.slice_scores.is_empty() && document.scores_of(&by, None).is_none());
}
