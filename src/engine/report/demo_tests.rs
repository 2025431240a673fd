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
    let broken: Vec<String> = comparison
        .slices
        .iter()
        .filter(|slice| slice.paired.difference < 0.0 && slice.paired.mcnemar_p_holm.is_some_and(|p| p < 0.05))
        .map(|slice| slice.name())
        .collect();
    let whole: Vec<String> =
        comparison.slices.iter().filter(|slice| slice.paired.right_to_wrong == 0).map(|slice| slice.name()).collect();
    assert!(!broken.is_empty() && whole.len() >= 6, "broken {broken:?}, whole {whole:?}");
    let worst = comparison.slices.iter().map(|slice| slice.paired.difference).fold(0.0, f64::min);
    assert!(worst < 3.0 * overall && overall < 0.0, "worst {worst}, overall {overall}");

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
    let document = document(&input).expect("document");
    let place = document
        .blocks
        .iter()
        .position(|block| matches!(block, Block::Heading(_, title) if title == "Known regressions"))
        .expect("a section");
    let Block::Bullets(told) = &document.blocks[place + 1] else { panic!("a list: {:?}", document.blocks[place + 1]) };
    for slice in &broken {
        assert!(told.iter().any(|line| line.starts_with(&format!("{slice}: "))), "{slice} is not in {told:?}");
    }
    for slice in &whole {
        assert!(!told.iter().any(|line| line.starts_with(&format!("{slice}: "))), "{slice} is in {told:?}");
    }
    assert!(broken.iter().all(|slice| written.html.contains(slice)));
    assert!(written.html.contains("From right to wrong"));
}
