//! A technical-documentation sheet: the items of the EU AI Act's Annex XI (general-purpose models) and Annex IV
//! (high-risk systems) that a compression changes. Facts, not legal advice.
//!
//! Every filled field names its evidence: an evaluation's key, a hash of a file, an entry of the log, and only such
//! as the fact stands in. What only the provider knows, or what an evaluation did not record, stays blank and says so.

use super::{AuditEntry, Block, Document, ReportInput, Reported, Table, figures, points, spent, verdict_name};
use crate::units;

/// What stands in a field that the program cannot fill.
pub const BLANK: &str = "[to be filled in by the provider]";

/// Training compute from which the Commission's guidelines presume a general-purpose model (18 July 2025).
const PRESUMED_FLOP: f64 = 1e23;

/// One item of an annex.
struct Field {
    item: &'static str,
    asks: &'static str,
    /// What is known with the id of its evidence.
    answer: Option<(String, String)>,
}

fn known(item: &'static str, asks: &'static str, text: impl Into<String>, evidence: impl Into<String>) -> Field {
    Field { item, asks, answer: Some((text.into(), evidence.into())) }
}

fn blank(item: &'static str, asks: &'static str) -> Field {
    Field { item, asks, answer: None }
}

fn maybe(item: &'static str, asks: &'static str, answer: Option<(String, String)>) -> Field {
    Field { item, asks, answer }
}

/// The sheet of one candidate.
pub fn document(input: &ReportInput, reported: &Reported) -> Document {
    let mut sheet = Document {
        title: format!("Technical documentation of a modification: {}", reported.comparison.candidate.name),
        blocks: Vec::new(),
    };
    sheet.text(
        "This sheet covers what a compression changes in the documentation of its original. It belongs beside the original \
         provider's documentation and replaces none of it. It is not legal advice.",
    );
    let fields = [annex_xi(input, reported), annex_iv(input, reported)];
    let blanks = fields.iter().flatten().filter(|field| field.answer.is_none()).count();
    sheet.text(format!(
        "{blanks} fields are blank because only the provider knows them, or because nothing recorded them."
    ));
    let chapters = ["Annex XI: general-purpose AI models", "Annex IV: high-risk AI systems"];
    for (title, fields) in chapters.into_iter().zip(fields) {
        sheet.chapter(title);
        let mut table = Table::new(&["item", "what is asked", "answer", "evidence"]);
        for field in fields {
            let (answer, evidence) = field.answer.unwrap_or((BLANK.to_owned(), String::new()));
            table.row([field.item.to_owned(), field.asks.to_owned(), answer, evidence]);
        }
        sheet.table(table);
    }
    sheet.chapter("Share of the modification in the compute of training");
    sheet.text(modification_share(input));
    let regressions = figures::known_regressions(&reported.comparison);
    if !regressions.is_empty() {
        sheet.chapter("Groups that perform worse than in the original");
        sheet.blocks.push(Block::Bullets(regressions));
    }
    sheet
}

/// Ids of the entries of the log that a fact stands in; empty where there is none.
fn entries(input: &ReportInput, holds: impl Fn(&AuditEntry) -> bool) -> String {
    let ids: Vec<&str> =
        input.log.iter().filter(|logged| holds(&logged.entry)).map(|logged| logged.id.as_str()).collect();
    ids.join(", ")
}

/// Entries of changes to a model: plans, and passes that wrote a file.
fn is_change(entry: &AuditEntry) -> bool {
    matches!(entry.what.as_str(), "pass" | "plan" | "prune step") && !["failed", "cancelled"].contains(&&*entry.outcome)
}

/// How much was computed, beside the third of the original's training from which a modifier becomes a provider.
fn modification_share(input: &ReportInput) -> String {
    let flop: f64 = input.log.iter().filter_map(|logged| logged.entry.flop).sum();
    if flop <= 0.0 {
        return format!(
            "The log counts no floating-point operations. The guidelines of July 2025 look at one third of the original's \
             training compute, or, where that is unknown, at one third of {PRESUMED_FLOP:.0e}. {BLANK}"
        );
    }
    let third = PRESUMED_FLOP / 3.0;
    format!(
        "The log counts {flop:.3e} floating-point operations, {:.2e} % of one third of {PRESUMED_FLOP:.0e} (the fallback where the \
         original's training compute is unknown). The original's own training compute: {BLANK}",
        flop / third * 100.0
    )
}

fn annex_xi(input: &ReportInput, reported: &Reported) -> Vec<Field> {
    let (base, own, comparison) = (&input.baseline, &reported.evaluation, &reported.comparison);
    let hash = |what: &str| {
        input.sources.iter().find(|source| source.what == what).map(|source| format!("{what} {}", source.hash))
    };
    let plan = input.sources.iter().find(|source| source.what == "plan");
    // A plan and gates are no data.
    let of_data = || input.sources.iter().filter(|source| source.what != "plan" && source.what != "gates");
    let data: Vec<String> = of_data().map(|source| format!("{} ({} bytes)", source.what, source.bytes)).collect();
    let hashes: Vec<String> = of_data().map(|source| format!("{} {}", source.what, source.hash)).collect();
    let (computed, energy) = (spent::computed(&input.log), spent::joules(&input.log));
    vec![
        blank("1.1(a)", "tasks that the model is intended for, and systems it can be integrated in"),
        blank("1.1(b)", "acceptable use policies"),
        blank("1.1(c)", "date of release and methods of distribution"),
        known(
            "1.1(d)",
            "architecture and number of parameters",
            format!(
                "{} weights before, {} after; {:.3} and {:.3} bits per weight",
                units::count(base.size.weight_count),
                units::count(own.size.weight_count),
                base.size.bits_per_weight,
                own.size.bits_per_weight
            ),
            format!("content {} and {}", base.model.id, own.model.id),
        ),
        known(
            "1.1(e)",
            "modality and format of inputs and outputs",
            "text in, text out, as the original",
            format!("content {}", own.model.id),
        ),
        maybe(
            "1.1(f)",
            "licence",
            input.card.license.as_ref().map(|license| (license.clone(), "named by the user".to_owned())),
        ),
        maybe(
            "1.2(a)",
            "technical means for integration",
            Some((
                format!(
                    "{} on disk, {} of weights in memory, {} of KV cache a token",
                    units::bytes(own.size.file_bytes),
                    units::bytes(own.size.resident_bytes),
                    units::bytes(own.size.kv_bytes_per_token)
                ),
                format!("evaluation {}", own.key),
            )),
        ),
        maybe(
            "1.2(b)",
            "design specifications, key design choices, what is optimised for",
            plan.map(|plan| {
                (
                    "the plan of the compression, one choice for every tensor; see the report".to_owned(),
                    format!("plan {}", plan.hash),
                )
            }),
        ),
        blank("1.2(b)", "rationale and assumptions of these choices"),
        maybe(
            "1.2(c)",
            "data used for training, testing and validation: type, provenance, curation, counts",
            (!data.is_empty()).then(|| (data.join(", "), hashes.join(", "))),
        ),
        blank("1.2(c)", "provenance, licences and curation of these data"),
        maybe(
            "1.2(d)",
            "computational resources, time",
            (!computed.is_empty()).then(|| {
                let cited = entries(input, |entry| entry.seconds.is_some() || entry.flop.is_some());
                (computed.join("; "), cited)
            }),
        ),
        maybe(
            "1.2(e)",
            "known or estimated energy consumption",
            energy.map(|energy| (energy, entries(input, |entry| entry.joules.is_some()))),
        ),
        maybe(
            "2.1",
            "evaluation strategies, criteria, metrics, results and limits",
            comparison.overall.as_ref().map(|overall| {
                let text = format!(
                    "{} paired items, accuracy {} points ({} to {}); {}",
                    overall.n,
                    points(overall.difference),
                    points(overall.difference_interval[0]),
                    points(overall.difference_interval[1]),
                    comparison
                        .verdict()
                        .map_or("no gates".to_owned(), |verdict| format!("gates: {}", verdict_name(verdict)))
                );
                let evidence = [Some(format!("evaluation {}", own.key)), hash("tasks"), hash("text"), hash("gates")];
                (text, evidence.into_iter().flatten().collect::<Vec<_>>().join(", "))
            }),
        ),
        blank("2.2", "adversarial testing (models with systemic risk)"),
        maybe(
            "2.2",
            "model adaptations",
            plan.map(|plan| ("compression by the plan".to_owned(), format!("plan {}", plan.hash))),
        ),
    ]
}

fn annex_iv(input: &ReportInput, reported: &Reported) -> Vec<Field> {
    let (own, comparison) = (&reported.evaluation, &reported.comparison);
    let evaluation = format!("evaluation {}", own.key);
    let conditions = own.conditions.as_ref();
    let is_test = |entry: &AuditEntry| entry.what == "evaluate" || entry.what == "compare";
    let tested: Vec<String> = input
        .log
        .iter()
        .filter(|logged| is_test(&logged.entry))
        .map(|logged| format!("{} {} ({})", logged.entry.time, logged.entry.what, logged.entry.outcome))
        .collect();
    let changes = input.log.iter().filter(|logged| is_change(&logged.entry)).count();
    let worst = comparison.slices.iter().min_by(|a, b| a.paired.difference.total_cmp(&b.paired.difference));
    vec![
        blank("1(a)", "intended purpose, provider, version and its relation to earlier ones"),
        known(
            "1(c)",
            "versions of software",
            match conditions {
                Some(conditions) => format!("Lapidary {}, {} kernels", own.engine, conditions.level),
                None => format!("Lapidary {}", own.engine),
            },
            evaluation.clone(),
        ),
        maybe(
            "1(e)",
            "hardware on which it was measured",
            conditions.map(|conditions| {
                let machine =
                    format!("{}, {}, {} threads", conditions.processor, conditions.system, conditions.threads);
                // What computed is named where it is not the processor.
                let text = if own.device == "cpu" { machine } else { format!("{}; {machine}", own.device) };
                (text, evaluation.clone())
            }),
        ),
        known(
            "2(a)",
            "pre-trained parts and how they were modified",
            format!("{} compressed to {}", input.baseline.model.name, own.model.name),
            format!("content {} and {}", input.baseline.model.id, own.model.id),
        ),
        blank("2(f)", "pre-determined changes"),
        maybe(
            "2(g)",
            "validation and testing: procedures, data, metrics; dated reports and logs",
            (!tested.is_empty()).then(|| (tested.join("; "), entries(input, is_test))),
        ),
        blank("2(h)", "cybersecurity measures"),
        maybe(
            "3",
            "accuracy for specific groups, capabilities and limits",
            worst.map(|slice| {
                let text = format!(
                    "{} slices; the one that lost most is {} with {} points ({} to {})",
                    comparison.slices.len(),
                    slice.name(),
                    points(slice.paired.difference),
                    points(slice.paired.difference_interval[0]),
                    points(slice.paired.difference_interval[1])
                );
                (text, evaluation.clone())
            }),
        ),
        blank("4", "why these metrics are appropriate"),
        blank("5", "risk management"),
        maybe(
            "6",
            "relevant changes through the lifecycle",
            (changes > 0).then(|| (format!("changes in the audit log: {changes}"), entries(input, is_change))),
        ),
        blank("7", "harmonised standards that were applied"),
        blank("8", "EU declaration of conformity"),
        maybe(
            "9",
            "post-market plan: what is gone back to after a failure",
            comparison.rollback.as_ref().map(|rollback| {
                (format!("a gate failed: go back to {}", rollback.name), format!("content {}", rollback.id))
            }),
        ),
    ]
}
