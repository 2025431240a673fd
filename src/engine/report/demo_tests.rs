//! The bundled demo under Q2_K, from the pass to the written report: its slices break in different places, which a
//! mean would hide, and the report says which.

use std::path::{Path, PathBuf};

use super::*;
use crate::checkpoint::Checkpoint;
use crate::comparison::{ComparisonOptions, compare};
use crate::evaluation::{Baseline, EvaluationOptions, Subject, evaluate};
use crate::model::{Model, Tokenizer};
use crate::pass::{self, PassOptions};
use crate::plan::{self, Plan, Recipe, Target};
use crate::progress::Progress;
use crate::scoring::TaskSet;

fn repository(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join(path)
}

#[test]
fn the_demos_slices_break_in_different_places_under_q2_k_and_the_report_says_so() {
    let folder = tempfile::tempdir().expect("folder");
    let progress = Progress::default();
    let demo = Checkpoint::open(&repository("assets/demo")).expect("opens");
    let plan = Plan::of_recipe(Target::Gguf, None, Recipe::find("Q2_K").expect("known"));
    let resolved = plan::resolve(&plan, &demo).expect("legal");
    let path = folder.path().join("q2_k.gguf");
    pass::run(&demo, &resolved, &path, &PassOptions::default(), &progress).expect("runs");
    let candidate = Checkpoint::open(&path).expect("opens");
    let load = |checkpoint: &Checkpoint| {
        let model = Model::load(checkpoint, &progress).expect("loads");
        (model, Tokenizer::of_checkpoint(checkpoint).expect("tokenizer"))
    };
    let (base, own) = (load(&demo), load(&candidate));
    let tasks = TaskSet::read(&repository("assets/demo/tasks.jsonl")).expect("tasks");
    let options = EvaluationOptions { speed: None, ..EvaluationOptions::default() };
    let baseline = Baseline { subject: Subject::new(&demo, &base.0, &base.1, "demo"), known: None };
    let evaluation = evaluate(
        &Subject::new(&candidate, &own.0, &own.1, "q2_k"),
        Some(&baseline),
        Some(&tasks),
        None,
        &options,
        &progress,
    )
    .expect("scores");
    let baseline = evaluation.baseline.as_deref().expect("measured together").clone();
    let comparison = compare(&baseline, &evaluation, &ComparisonOptions::default(), &progress).expect("compares");
    for slice in &comparison.slices {
        println!(
            "{}: {:+.1} points, {} lost, {} gained of {}, p {:.3}",
            slice.name(),
            slice.paired.difference * 100.0,
            slice.paired.right_to_wrong,
            slice.paired.wrong_to_right,
            slice.paired.n,
            slice.paired.mcnemar_p_holm.unwrap_or(1.0)
        );
    }
    let overall = comparison.overall.as_ref().expect("items").difference;
    println!("overall {:+.2} points", overall * 100.0);
    assert_eq!(comparison.slices.len(), 22);
    let slice = |name: &str| comparison.slices.iter().find(|slice| slice.name() == name).expect(name);
    let mut lost: Vec<_> = comparison.slices.iter().filter(|slice| slice.paired.right_to_wrong > 0).collect();
    let whole = comparison.slices.len() - lost.len();
    lost.sort_by(|a, b| a.paired.difference.total_cmp(&b.paired.difference));
    // Long-range recall and arithmetic give way, most others keep every answer, and the mean hides both.
    assert!(whole >= 8 && lost.len() >= 3, "{whole} whole, {} lost", lost.len());
    assert!(slice("recall/long context").paired.difference <= -0.02);
    assert!(
        ["arithmetic/one digit", "arithmetic/two digits"].iter().any(|name| slice(name).paired.right_to_wrong >= 3)
    );
    assert_eq!(slice("recall/word pairs").paired.right_to_wrong, 0);
    let worst = lost[0];
    assert!(overall > -0.02 && worst.paired.difference < 3.0 * overall.min(-0.001), "{overall}");
    let (worst_name, told) = (worst.name(), figures::spread(&comparison));
    assert!(told.contains(&format!("{} of 22 slices lost items, {whole} kept", lost.len())), "{told}");
    let rows: Vec<(String, String)> =
        comparison.slices.iter().map(|slice| (slice.name(), points(slice.paired.difference))).collect();

    let input = ReportInput {
        title: "Q2_K of the demo".into(),
        baseline,
        candidates: vec![Reported { evaluation, comparison, speculation: None, cascade: None }],
        sources: Vec::new(),
        environment: Environment::here(),
        log: Vec::new(),
        card: CardOptions::default(),
    };
    let written = report(&input).expect("report");
    assert!(written.html.contains(&told) && told.contains(&format!("the worst slice, {worst_name}, ")), "{told}");
    assert!(written.html.contains("From right to wrong"));
    // Every slice has its row with its own difference.
    let document = document(&input).expect("document");
    let is_slices = |block: &&Block| matches!(block, Block::Table(table) if table.titles[0] == "slice");
    let Some(Block::Table(table)) = document.blocks.iter().find(is_slices) else { panic!("a table of slices") };
    for (name, difference) in rows {
        let row = table.rows.iter().find(|row| row[0] == name).unwrap_or_else(|| panic!("{name} has no row"));
        assert!(row.iter().any(|cell| cell.contains(&difference)), "{name}: {difference} is not in {row:?}");
    }
}
