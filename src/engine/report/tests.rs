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
