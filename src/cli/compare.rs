//! `lapidary compare`: candidates against a baseline, paired item by item, with verdicts.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::evaluate::Measure;
use super::output::{self, Table, difference, points, printable};
use super::session::{Answer, Failure, Result, Session};
use crate::engine::comparison::{
    COMPARISON_VERSION, Comparison, ComparisonOptions, GateSet, ParetoPoint, Verdict, compare, pareto_front,
};
use crate::engine::error::Result as EngineResult;
use crate::engine::evaluation::{Evaluation, ModelRef};
use crate::engine::report::{AuditEntry, HashedFile, audit};
use crate::engine::units::{self, or_dash};

/// Items that went from right to wrong, of those shown in a terminal.
const SHOWN_FLIPS: usize = 10;

/// Exit code for a gate that fails or is undecided.
const GATE: u8 = 3;

/// Compare candidates with the model they were made from, item by item
///
/// Compares evaluation files of `lapidary evaluate`, or models, which are then measured on --tasks and --text.
#[derive(Debug, Args)]
pub(super) struct Compare {
    /// The original: an evaluation (.json) or a model
    #[arg(value_name = "BASE")]
    base: PathBuf,
    /// What was made of it, of the same kind
    #[arg(value_name = "CANDIDATE", required = true)]
    candidates: Vec<PathBuf>,
    /// Limits to judge by; ends with code 3 unless every one passes
    #[arg(long, value_name = "GATES.toml")]
    gates: Option<PathBuf>,
    #[command(flatten)]
    measure: Measure,
    /// Write the comparison to this file as JSON
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Add an entry to this audit log
    #[arg(long, value_name = "AUDIT.jsonl")]
    log: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Document {
    version: u32,
    baseline: ModelRef,
    /// What to use: the smallest candidate whose gates pass, else the baseline; null without gates.
    rollback: Option<ModelRef>,
    /// The worst verdict; null without gates.
    verdict: Option<Verdict>,
    comparisons: Vec<Entry>,
}

#[derive(Debug, Serialize)]
struct Entry {
    #[serde(flatten)]
    comparison: Comparison,
    verdict: Option<Verdict>,
    /// True if no other is smaller, more accurate and faster at once.
    on_pareto_front: bool,
}

impl Compare {
    pub fn run(&self, session: &Session) -> Result<Answer> {
        let gates = self.gates.as_deref().map(GateSet::read).transpose()?;
        output::check_target(self.output.as_deref(), &[])?;
        let (baseline, candidates) = self.evaluations(session)?;
        let options = ComparisonOptions::default();
        let mut comparisons = Vec::with_capacity(candidates.len());
        for candidate in &candidates {
            // A baseline measured together with its candidate is the better partner.
            let own = candidate.baseline.as_deref().filter(|own| own.key == baseline.key).unwrap_or(&baseline);
            let mut comparison = compare(own, candidate, &options, &session.progress)?;
            if let Some(gates) = &gates {
                comparison.apply_gates(gates);
            }
            comparisons.push(comparison);
        }
        let document = document(&baseline, comparisons);
        if let Some(output) = &self.output {
            output::write_json(output, &document)?;
        }
        if let Some(log) = &self.log {
            let mut entry = AuditEntry::now("compare");
            entry.inputs = candidates.iter().flat_map(AuditEntry::inputs_of).collect();
            entry.inputs.dedup();
            entry.outputs = self.output.iter().map(|output| HashedFile::read(output)).collect::<EngineResult<_>>()?;
            if let Some(gates) = &self.gates {
                entry.inputs.push(HashedFile::read(gates)?);
            }
            entry.outcome = document.verdict.map_or("no gates", verdict_name).to_owned();
            audit::append(log, entry)?;
        }
        let mut answer = session.answer(&document, || self.text(&document))?;
        if document.verdict.is_some_and(|verdict| verdict != Verdict::Pass) {
            answer.code = GATE;
        }
        Ok(answer)
    }

    /// Baseline and candidates, read or measured.
    fn evaluations(&self, session: &Session) -> Result<(Evaluation, Vec<Evaluation>)> {
        let is_file = |path: &Path| {
            let name = path.to_string_lossy();
            name.ends_with(".json") && !name.ends_with(".index.json")
        };
        let all: Vec<&Path> = std::iter::once(&self.base).chain(&self.candidates).map(PathBuf::as_path).collect();
        let file_count = all.iter().filter(|path| is_file(path)).count();
        if file_count == all.len() {
            if self.measure.tasks.is_some() || self.measure.text.is_some() {
                return Err(Failure::Usage("evaluations hold their results: leave --tasks and --text out".to_owned()));
            }
            let baseline = Evaluation::read(&self.base)?;
            let candidates = self.candidates.iter().map(|path| Evaluation::read(path));
            return Ok((baseline, candidates.collect::<crate::engine::error::Result<_>>()?));
        }
        if file_count > 0 {
            return Err(Failure::Usage("compare evaluations with evaluations, or models with models".to_owned()));
        }
        let mut material = self.measure.read(session, &all)?;
        let base = session.load(&self.base)?;
        material.apply_chat_template(&base)?;
        output::check_target(self.output.as_deref(), &[&base.checkpoint])?;
        let mut measured: Option<Evaluation> = None;
        let mut candidates = Vec::with_capacity(self.candidates.len());
        for path in &self.candidates {
            let candidate = session.load(path)?;
            output::check_target(self.output.as_deref(), &[&candidate.checkpoint])?;
            let evaluation = material.evaluate(session, &candidate, Some(&base), measured.as_ref())?;
            measured = measured.or_else(|| evaluation.baseline.as_deref().cloned());
            candidates.push(evaluation);
        }
        let baseline = measured.ok_or_else(|| Failure::Usage("name at least one candidate".to_owned()))?;
        Ok((baseline, candidates))
    }

    fn text(&self, document: &Document) -> String {
        let mut text = String::new();
        for entry in &document.comparisons {
            text.push_str(&printable(&entry.comparison.sentence));
            text.push('\n');
        }
        text.push('\n');
        text.push_str(&overview(document));
        for entry in &document.comparisons {
            text.push_str(&details(entry));
        }
        if let (Some(model), Some(Verdict::Fail | Verdict::Undecided)) = (&document.rollback, document.verdict) {
            text.push_str(&format!(
                "\nnot every gate passes: use {} ({})\n",
                printable(&model.name),
                printable(&model.id)
            ));
        }
        text.push_str(
            "\n± is a 95 % interval of the paired difference, in points; p is McNemar's, corrected over slices.\n",
        );
        if let Some(output) = &self.output {
            text.push_str(&format!("written to {}\n", output.display()));
        }
        text
    }
}

fn document(baseline: &Evaluation, comparisons: Vec<Comparison>) -> Document {
    let base = ParetoPoint {
        file_bytes: baseline.size.file_bytes,
        accuracy: baseline.accuracy(),
        speed: comparisons.iter().any(|comparison| comparison.decode_speed_ratio.is_some()).then_some(1.0),
    };
    let candidates = comparisons.iter().map(|comparison| ParetoPoint {
        file_bytes: comparison.file_bytes,
        accuracy: comparison.overall.as_ref().map(|overall| overall.candidate_accuracy),
        speed: comparison.decode_speed_ratio,
    });
    let points: Vec<ParetoPoint> = std::iter::once(base).chain(candidates).collect();
    let front = pareto_front(&points);
    let entries = comparisons.into_iter().zip(front.into_iter().skip(1)).map(|(comparison, on_pareto_front)| Entry {
        verdict: comparison.verdict(),
        comparison,
        on_pareto_front,
    });
    let entries: Vec<Entry> = entries.collect();
    let passing = entries.iter().filter(|entry| entry.verdict == Some(Verdict::Pass));
    let smallest = passing.min_by_key(|entry| entry.comparison.file_bytes);
    let usable = smallest.map_or_else(|| baseline.model.clone(), |entry| entry.comparison.candidate.clone());
    Document {
        rollback: entries.iter().any(|entry| entry.verdict.is_some()).then_some(usable),
        version: COMPARISON_VERSION,
        baseline: baseline.model.clone(),
        verdict: entries.iter().filter_map(|entry| entry.verdict).max(),
        comparisons: entries,
    }
}

fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Undecided => "undecided",
        Verdict::Fail => "fail",
    }
}

/// One line per candidate.
fn overview(document: &Document) -> String {
    let titles = [
        "candidate",
        ">on disk",
        ">bpw",
        ">perplexity",
        ">KLD (nats)",
        ">same top %",
        ">accuracy %",
        ">difference",
        ">decode",
        "Pareto front",
        "verdict",
    ];
    let mut table = Table::new(&titles);
    for Entry { comparison, verdict, on_pareto_front } in &document.comparisons {
        let text = comparison.text.as_ref();
        let distance = text.and_then(|text| text.distance.as_ref());
        let overall = comparison.overall.as_ref();
        table.row([
            comparison.candidate.name.clone(),
            units::bytes(comparison.file_bytes),
            format!("{:.2}", comparison.bits_per_weight),
            or_dash(text.map(|text| format!("{:.4}", text.perplexity))),
            or_dash(distance.map(|distance| units::significant(distance.kld_mean))),
            or_dash(distance.map(|distance| points(distance.same_top_fraction))),
            or_dash(overall.map(|overall| points(overall.candidate_accuracy))),
            or_dash(overall.map(|overall| difference(overall.difference, overall.margin()))),
            or_dash(comparison.decode_speed_ratio.map(|ratio| match comparison.decode_speed_interval {
                Some([low, high]) => format!("{ratio:.2}× ({low:.2} to {high:.2})"),
                None => format!("{ratio:.2}×"),
            })),
            if *on_pareto_front { "yes" } else { "no" }.to_owned(),
            or_dash(verdict.map(|verdict| verdict_name(verdict).to_owned())),
        ]);
    }
    table.render()
}

/// Choices normalized by characters or bytes, where the slices have them; else nothing.
fn normalized(comparison: &Comparison) -> String {
    let titles = ["normalized choices", "metric", ">items", ">baseline %", ">candidate %", ">difference"];
    let (mut table, mut rows) = (Table::new(&titles), 0);
    let all = comparison.overall.iter().map(|overall| ("all".to_owned(), overall));
    for (name, paired) in all.chain(comparison.slices.iter().map(|slice| (slice.name(), &slice.paired))) {
        for (metric, choice) in [("acc_norm", &paired.norm), ("acc_bytes", &paired.bytes)] {
            let Some(choice) = choice else { continue };
            let [low, high] = choice.difference_interval;
            table.row([
                name.clone(),
                metric.to_owned(),
                paired.n.to_string(),
                points(choice.baseline_accuracy),
                points(choice.candidate_accuracy),
                difference(choice.difference, (choice.difference - low).max(high - choice.difference)),
            ]);
            rows += 1;
        }
    }
    if rows > 0 { format!("\n{}\n", table.render()) } else { String::new() }
}

/// Slices, gates and warnings of one candidate.
fn details(entry: &Entry) -> String {
    let comparison = &entry.comparison;
    let mut text =
        format!("\n{} against {}\n", printable(&comparison.candidate.name), printable(&comparison.baseline.name));
    if !comparison.slices.is_empty() {
        let titles = [
            "slice",
            "metric",
            ">items",
            ">baseline %",
            ">candidate %",
            ">difference",
            ">right to wrong",
            ">wrong to right",
            ">p",
        ];
        let mut table = Table::new(&titles);
        for slice in &comparison.slices {
            let paired = &slice.paired;
            table.row([
                slice.name(),
                slice.metric.clone(),
                paired.n.to_string(),
                points(paired.baseline_accuracy),
                points(paired.candidate_accuracy),
                difference(paired.difference, paired.margin()),
                paired.right_to_wrong.to_string(),
                paired.wrong_to_right.to_string(),
                units::significant(paired.mcnemar_p_holm.unwrap_or(paired.mcnemar_p)),
            ]);
        }
        text.push_str(&table.render());
    }
    text.push_str(&normalized(comparison));
    if let Some(worst) = &comparison.worst_slice {
        text.push_str(&format!("worst slice: {}\n", printable(worst)));
    }
    for view in &comparison.views {
        let mut table =
            Table::new(&[&format!("by {}", view.by), ">items", ">baseline %", ">candidate %", ">difference", ">p"]);
        for slice in &view.slices {
            let paired = &slice.paired;
            table.row([
                slice.slice.clone(),
                paired.n.to_string(),
                points(paired.baseline_accuracy),
                points(paired.candidate_accuracy),
                difference(paired.difference, paired.margin()),
                units::significant(paired.mcnemar_p_holm.unwrap_or(paired.mcnemar_p)),
            ]);
        }
        text.push('\n');
        text.push_str(&table.render());
    }
    let lost = comparison.flips.losses().count();
    if lost > 0 {
        let mut table = Table::new(&["right to wrong", "slice", "baseline", "candidate"]);
        for index in comparison.flips.losses().take(SHOWN_FLIPS) {
            let flip = match comparison.flips.get(index) {
                Ok(flip) => flip,
                Err(err) => {
                    text.push_str(&format!("\nchanged answers cannot be shown: {err}\n"));
                    break;
                }
            };
            let cut = |text: &str| text.chars().take(40).collect::<String>();
            let slice = format!("{}/{}", flip.task, flip.slice);
            table.row([flip.id.clone(), slice, cut(&flip.baseline_prediction), cut(&flip.candidate_prediction)]);
        }
        text.push('\n');
        text.push_str(&table.render());
        if lost > SHOWN_FLIPS {
            text.push_str(&format!("and {} more; all of them are in --json and -o\n", lost - SHOWN_FLIPS));
        }
    }
    if !comparison.gates.is_empty() {
        let mut table = Table::new(&["verdict", "metric", "slice", "limit", ">measured", "reason"]);
        for gate in &comparison.gates {
            table.row([
                format!("{}{}", verdict_name(gate.verdict), if gate.is_binding { " (binding)" } else { "" }),
                gate.metric.clone(),
                gate.slice.clone().unwrap_or_else(|| "all".to_owned()),
                gate.limit.clone(),
                or_dash(gate.estimate.map(units::significant)),
                gate.reason.clone(),
            ]);
        }
        text.push('\n');
        text.push_str(&table.render());
    }
    for warning in &comparison.warnings {
        text.push_str(&format!("warning: {}\n", printable(warning)));
    }
    text
}
