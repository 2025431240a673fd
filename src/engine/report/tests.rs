//! Tests of reports on comparisons made by hand.

use std::path::Path;

use super::*;
use crate::comparison::tests::pair_of_models;
use crate::comparison::{ComparisonOptions, Flip, Flips, GateSet, compare, speculation};
use crate::progress::Progress;

fn input() -> ReportInput {
    let (baseline, evaluation) = pair_of_models();
    let mut comparison =
        compare(&baseline, &evaluation, &ComparisonOptions::default(), &Progress::default()).expect("comparison");
    let gates = "[[gate]]\nmetric = \"accuracy\"\nslice = \"*\"\nmax_loss = 0.02\n";
    comparison.apply_gates(&GateSet::parse(gates, Path::new("g")).expect("gates"));
    let mut flips: Vec<Flip> = comparison.flips.iter().collect::<Result<_>>().expect("flips");
    let lost = flips.iter_mut().find(|flip| !flip.gained).expect("a loss");
    lost.candidate_prediction = "<img src=x onerror=alert(1)>".into();
    comparison.flips = Flips::of(flips).expect("flips");
    let plan = Source {
        what: "plan".into(),
        path: "plan.toml".into(),
        hash: "feedc0de".into(),
        bytes: 10,
        text: Some("recipe = \"Q4_K_M\"".into()),
    };
    let entry =
        AuditEntry { flop: Some(4.2e15), joules: Some(120.0), seconds: Some(60.0), ..AuditEntry::now("evaluate") };
    ReportInput {
        title: "Q4_K_M of the base".into(),
        baseline,
        candidates: vec![Reported {
            evaluation,
            comparison,
            speculation: Some(speculation::speculation(0.8, 0.9, 0.1, 1.0)),
            cascade: None,
        }],
        sources: vec![plan],
        environment: Environment::here(),
        log: vec![LoggedEntry { id: "entry-id".into(), entry }],
        card: CardOptions {
            base_model: Some("org/base".into()),
            license: Some("mit".into()),
            ..CardOptions::default()
        },
    }
}

#[test]
fn a_report_has_every_part_and_nothing_from_a_model_becomes_markup() {
    let report = report(&input()).expect("report");
    for part in [
        "Known regressions",
        "facts/rare",
        "<svg",
        "Gates",
        "fail",
        "Go back to base",
        "feedc0de",
        "Q4_K_M",
        "From right to wrong",
        "Mean    KLD",
        "As a draft",
        "entry-id",
        "120 joules",
    ] {
        assert!(report.html.contains(part), "{part}");
    }
    assert!(!report.html.contains("<img") && report.html.contains("&lt;img"));
    assert!(report.markdown.contains("## Provenance") && report.markdown.contains("facts/rare"));
}

#[test]
fn the_card_begins_with_metadata_that_the_hub_knows() {
    let mut input = input();
    let card = report(&input).expect("report").model_card;
    assert!(
        card.starts_with("---\nbase_model: \"org/base\"\nbase_model_relation: quantized\nlicense: \"mit\"\n"),
        "{card}"
    );
    assert!(card.contains("pipeline_tag: \"text-generation\"") && card.contains("- \"quantized\""));
    input.card =
        CardOptions { base_model: Some("a: b\n# c".into()), is_pruned_or_trained: true, ..CardOptions::default() };
    let card = report(&input).expect("report").model_card;
    assert!(card.contains("base_model: \"a: b\\n# c\"\nbase_model_relation: finetune\n# license:"), "{card}");
    assert!(card.contains("- \"pruned\""));
}

#[test]
fn a_model_with_fewer_weights_is_no_mere_quantization() {
    let mut input = input();
    input.candidates[0].evaluation.size.weight_count = input.baseline.size.weight_count - 1;
    let card = report(&input).expect("report").model_card;
    assert!(card.contains("base_model_relation: finetune\n") && card.contains("- \"pruned\""), "{card}");
}

/// The answer and the evidence of an item that asks for this.
fn field(input: &ReportInput, item: &str, asks: &str) -> (String, String) {
    let sheet = annex::document(input, &input.candidates[0]);
    let tables = sheet.blocks.iter().filter_map(|block| match block {
        Block::Table(table) => Some(table),
        _ => None,
    });
    let row = tables.flat_map(|table| &table.rows).find(|row| row[0] == item && row[1].starts_with(asks));
    row.map(|row| (row[2].clone(), row[3].clone())).expect("a field")
}

#[test]
fn the_sheet_cites_only_what_is_evidence_of_a_fact() {
    let mut input = input();
    let logged = |id: &str, what: &str, outcome: &str| LoggedEntry {
        id: id.into(),
        entry: AuditEntry { outcome: outcome.into(), ..AuditEntry::now(what) },
    };
    input.log.push(logged("pass-id", "pass", "done"));
    input.log.push(logged("failed-id", "pass", "failed"));
    input.log.push(logged("report-id", "report", "done"));
    let source = |what: &str, hash: &str| Source {
        what: what.into(),
        path: what.into(),
        hash: hash.into(),
        bytes: 7,
        text: None,
    };
    input.sources.push(source("gates", "gates-hash"));
    input.sources.push(source("calibration.txt", "data-hash"));
    // Data are neither plan nor gates; tests are no passes, changes no tests; time is of what was timed.
    assert_eq!(
        field(&input, "1.2(c)", "data used"),
        ("calibration.txt (7 bytes)".to_owned(), "calibration.txt data-hash".to_owned())
    );
    assert_eq!(field(&input, "2(g)", "validation").1, "entry-id");
    assert_eq!(field(&input, "6", "relevant"), ("changes in the audit log: 1".to_owned(), "pass-id".to_owned()));
    assert_eq!(field(&input, "1.2(d)", "computational").1, "entry-id");
    let (energy, cited) = field(&input, "1.2(e)", "known");
    assert!(energy.starts_with("120 joules") && cited == "entry-id", "{energy} {cited}");
    // The machine is the one that measured, and not the one that writes.
    assert_eq!(field(&input, "1(e)", "hardware"), (annex::BLANK.to_owned(), String::new()));
    assert_eq!(field(&input, "1(c)", "versions").0, "Lapidary 0");
    input.candidates[0].evaluation.conditions = Some(crate::scoring::Conditions {
        processor: "Abacus 3".into(),
        system: "linux arm64".into(),
        level: "avx2".into(),
        threads: 5,
        load_average: None,
        other_cores: None,
    });
    assert_eq!(
        field(&input, "1(e)", "hardware"),
        ("Abacus 3, linux arm64, 5 threads".to_owned(), "evaluation Q4_K_M".to_owned())
    );
    assert_eq!(field(&input, "1(c)", "versions").0, "Lapidary 0, avx2 kernels");
    let card = report(&input).expect("report").model_card;
    assert!(card.contains("Measured by Lapidary 0 on linux arm64 (Abacus 3), 5 threads."), "{card}");
}

#[test]
fn every_filled_field_of_the_annex_names_its_evidence_and_the_others_are_blank() {
    let sheet = annex::document(&input(), &input().candidates[0]);
    let (mut filled, mut blank) = (0, 0);
    for block in &sheet.blocks {
        let Block::Table(table) = block else { continue };
        for row in &table.rows {
            if row[2] == annex::BLANK {
                blank += 1;
                assert!(row[3].is_empty());
            } else {
                filled += 1;
                assert!(!row[3].is_empty(), "{row:?}");
            }
        }
    }
    assert!(filled >= 12 && blank >= 10, "{filled} {blank}");
    let markdown = sheet.to_markdown();
    assert!(markdown.contains("plan feedc0de") && markdown.contains("entry-id"), "{markdown}");
    assert!(markdown.contains("4.200e15") && markdown.contains("1.26e-5 %"), "{markdown}");
}

#[test]
fn a_report_on_nothing_is_refused() {
    let mut input = input();
    input.candidates.clear();
    assert!(report(&input).is_err());
}
