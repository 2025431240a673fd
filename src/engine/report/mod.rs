//! Written up: a report as HTML and Markdown, a model card, a technical-documentation sheet, an audit log.
//!
//! The noun is [`Report`], the entry [`report`]. Everything in it comes from evaluations, comparisons, files with
//! their hashes and the log; what nobody measured is left out or left blank and marked, never filled in.

pub mod annex;
pub mod audit;
mod card;
mod document;
mod figures;
mod spent;
mod svg;

use std::path::PathBuf;

pub use audit::{AuditEntry, HashedFile, LoggedEntry, PassFacts, PlanFacts};
pub use card::CardOptions;
pub use document::{Block, Document, Table};
pub use svg::{Bar, Line, Plot, Shape};

use super::comparison::scorecard::scorecard;
use super::comparison::{Cascade, Comparison, Verdict, speculation::Speculation};
use super::error::{Error, Fault, Result, Stage};
use super::evaluation::Evaluation;
use super::units;

/// A candidate with its comparison.
#[derive(Clone, Debug)]
pub struct Reported {
    pub evaluation: Evaluation,
    pub comparison: Comparison,
    pub speculation: Option<Speculation>,
    pub cascade: Option<Cascade>,
}

/// A text file that the result depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// What it is: `plan`, `gates`, `calibration text`.
    pub what: String,
    pub path: PathBuf,
    /// BLAKE3 in hex.
    pub hash: String,
    pub bytes: u64,
    /// The text, where it belongs into the report.
    pub text: Option<String>,
}

/// The machine and the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    pub program: String,
    pub system: String,
    pub processor: String,
    pub threads: usize,
    pub kernels: String,
    /// When the report was written, UTC.
    pub written_at: String,
}

impl Environment {
    /// This machine, now.
    pub fn here() -> Self {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processor =
            cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
        Self {
            program: format!("Lapidary {}", env!("CARGO_PKG_VERSION")),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            processor: processor.unwrap_or("unknown").to_owned(),
            threads: rayon::current_num_threads(),
            kernels: crate::kernels::Level::detect().name().to_owned(),
            written_at: audit::utc(std::time::SystemTime::now()),
        }
    }
}

/// Everything that a report is made of.
#[derive(Clone, Debug)]
pub struct ReportInput {
    pub title: String,
    pub baseline: Evaluation,
    /// At least one, the one that the card describes first.
    pub candidates: Vec<Reported>,
    pub sources: Vec<Source>,
    pub environment: Environment,
    pub log: Vec<LoggedEntry>,
    pub card: CardOptions,
}

/// A written-up result in all its forms.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    pub html: String,
    pub markdown: String,
    /// `README.md` of the candidate's repository.
    pub model_card: String,
    /// The technical-documentation sheet, as Markdown and as HTML.
    pub annex_markdown: String,
    pub annex_html: String,
}

/// Writes up a result.
///
/// # Errors
/// Where there is no candidate.
pub fn report(input: &ReportInput) -> Result<Report> {
    let document = document(input)?;
    let Some(first) = input.candidates.first() else { return Err(nothing_to_report()) };
    let annex = annex::document(input, first);
    Ok(Report {
        html: document.to_html(),
        markdown: document.to_markdown(),
        model_card: card::model_card(input, first),
        annex_markdown: annex.to_markdown(),
        annex_html: annex.to_html(),
    })
}

fn nothing_to_report() -> Error {
    Fault::new(Stage::Comparison, "there is no candidate to report on")
        .fix("run a plan and evaluate what it wrote")
        .into()
}

/// The report in parts, before it is written as HTML or Markdown.
///
/// # Errors
/// Where there is no candidate.
pub fn document(input: &ReportInput) -> Result<Document> {
    if input.candidates.is_empty() {
        return Err(nothing_to_report());
    }
    Ok(document_of(input))
}

/// BLAKE3 of a text, in hex.
pub fn hash_of(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

/// The verdict as a word.
pub(crate) fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Undecided => "undecided",
        Verdict::Fail => "fail",
    }
}

/// A fraction in points with a true minus.
fn points(value: f64) -> String {
    units::minus(&format!("{:.2}", value * 100.0))
}

fn document_of(input: &ReportInput) -> Document {
    let mut document = Document { title: input.title.clone(), blocks: Vec::new() };
    document.chapter("Result");
    for reported in &input.candidates {
        document.text(reported.comparison.sentence.clone());
    }
    document.table(figures::overview(input));
    document.plot(figures::scatter(input));
    document.text("Intervals are 95 %. Differences are candidate minus baseline on the same items.");
    for reported in &input.candidates {
        candidate(&mut document, &input.baseline, reported, input.candidates.len() > 1);
    }
    provenance(&mut document, input);
    document
}

fn candidate(document: &mut Document, baseline: &Evaluation, reported: &Reported, is_one_of_many: bool) {
    let comparison = &reported.comparison;
    document.chapter(&if is_one_of_many {
        format!("{} against {}", comparison.candidate.name, comparison.baseline.name)
    } else {
        "What changed".to_owned()
    });
    if !comparison.gates.is_empty() {
        document.section("Gates");
        document.table(figures::gates(comparison));
        if let Some(rollback) = &comparison.rollback {
            document.text(format!("A gate failed. Go back to {} ({}).", rollback.name, rollback.id));
        }
    }
    let regressions = figures::known_regressions(comparison);
    document.section("Known regressions");
    if regressions.is_empty() {
        document.text("No slice lost more than chance explains, corrected for the number of slices (Holm).");
    } else {
        document.blocks.push(Block::Bullets(regressions));
    }
    if !comparison.slices.is_empty() {
        document.section("Slices");
        document.text(figures::spread(comparison));
        document.plot(figures::forest(&comparison.slices, "Difference by slice, in points"));
        document.table(figures::slices(&comparison.slices));
        let normalized = figures::normalized(comparison);
        if !normalized.rows.is_empty() {
            document.section("Choices by normalized likelihood");
            document.table(normalized);
        }
    }
    for view in &comparison.views {
        document.section(&format!("By {}", view.by));
        document.table(figures::slices(&view.slices));
    }
    if !comparison.slices.is_empty() {
        document.section("Scorecard");
        let (before, after) = (baseline.size.resident_bytes, reported.evaluation.size.resident_bytes);
        let ratio = (before > 0 && after > 0).then(|| before as f64 / after as f64);
        figures::scorecard(document, &scorecard(comparison, ratio));
    }
    if let Some(text) = &comparison.text {
        document.section("Text");
        document.table(figures::text(text));
        if let Some(distance) = &text.distance {
            document.plot(figures::kld_histogram(distance));
            document.plot(figures::kld_by_position(distance));
            document.table(figures::distance_bins("baseline's confidence", &distance.kld_by_confidence));
            document.table(figures::distance_bins("times the token occurs", &distance.kld_by_token_count));
        }
    }
    let reliabilities = [&comparison.baseline_reliability, &comparison.candidate_reliability];
    if reliabilities.iter().any(|one| one.is_some()) {
        document.section("Calibration");
        document.table(figures::calibration(comparison));
        document.plot(figures::reliability(comparison));
    }
    if comparison.written.is_some() || comparison.candidate_written.is_some() {
        document.section("Written texts");
        document.table(figures::written(comparison));
    }
    if let Some(speculation) = &reported.speculation {
        document.section("As a draft (predicted)");
        document.table(figures::speculation(speculation));
    }
    if let Some(cascade) = &reported.cascade {
        document.section("In a cascade");
        document.table(figures::cascade(cascade));
        document.plot(figures::cascade_curve(cascade));
    }
    figures::flips(document, comparison);
    if !comparison.warnings.is_empty() {
        document.section("Warnings");
        document.blocks.push(Block::Bullets(comparison.warnings.clone()));
    }
}

/// Data with hashes, plan, environment, compute and log.
fn provenance(document: &mut Document, input: &ReportInput) {
    document.chapter("Provenance");
    let mut models = Table::new(&["model", "content hash", ">bytes", ">bits per weight", "evaluation"]);
    let all = std::iter::once(&input.baseline).chain(input.candidates.iter().map(|reported| &reported.evaluation));
    for evaluation in all {
        models.row([
            evaluation.model.name.clone(),
            evaluation.model.id.clone(),
            evaluation.size.file_bytes.to_string(),
            format!("{:.3}", evaluation.size.bits_per_weight),
            evaluation.key.clone(),
        ]);
    }
    document.table(models);
    let mut data = Table::new(&["file", "name", "BLAKE3", ">bytes"]);
    for source in &input.sources {
        let name = source.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        data.row([source.what.clone(), name, source.hash.clone(), source.bytes.to_string()]);
    }
    document.table(data);
    let environment = &input.environment;
    let mut machine = Table::new(&["environment", ""]);
    machine.row(["program", environment.program.as_str()]);
    machine.row(["system", environment.system.as_str()]);
    machine.row(["processor", environment.processor.as_str()]);
    machine.row(["threads", &environment.threads.to_string()]);
    machine.row(["kernels", environment.kernels.as_str()]);
    machine.row(["written", environment.written_at.as_str()]);
    document.text("This report was written on:");
    document.table(machine);
    let mut measured = Table::new(&["measured", "program", "processor", "system", ">threads", ">other load"]);
    let all = std::iter::once(&input.baseline).chain(input.candidates.iter().map(|reported| &reported.evaluation));
    for evaluation in all {
        if let Some(conditions) = &evaluation.conditions {
            measured.row([
                evaluation.model.name.clone(),
                format!("Lapidary {}, {} kernels, {}", evaluation.engine, conditions.level, evaluation.device),
                conditions.processor.clone(),
                conditions.system.clone(),
                conditions.threads.to_string(),
                units::or_dash(conditions.other_cores.map(|cores| format!("{cores:.1} cores"))),
            ]);
        }
    }
    if !measured.rows.is_empty() {
        document.text("What was measured was measured on:");
        document.table(measured);
    }
    let mut spent = spent::spent(&input.log);
    let all = std::iter::once(&input.baseline).chain(input.candidates.iter().map(|reported| &reported.evaluation));
    spent.extend(all.filter_map(spent::energy));
    if !spent.is_empty() {
        document.section("Compute and energy");
        document.blocks.push(Block::Bullets(spent));
    }
    for source in &input.sources {
        if let Some(text) = &source.text {
            document.blocks.push(Block::Details(
                format!("{}: {}", source.what, source.path.display()),
                vec![Block::Code(text.clone())],
            ));
        }
    }
    if !input.log.is_empty() {
        document.section("Audit log");
        document.table(figures::log(&input.log));
    }
}

#[cfg(test)]
mod demo_tests;
#[cfg(test)]
mod tests;
