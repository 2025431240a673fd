//! `lapidary report`: evaluations written up as HTML and Markdown, a model card and a documentation sheet.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::cascade;
use super::output;
use super::run;
use super::session::{Answer, Failure, Result, Session};
use crate::engine::comparison::cascade::read_answers;
use crate::engine::comparison::{ComparisonOptions, GateSet, cascade as plan_cascade, compare, speculation};
use crate::engine::error::Error;
use crate::engine::evaluation::Evaluation;
use crate::engine::report::{
    AuditEntry, CardOptions, Environment, HashedFile, ReportInput, Reported, Source, audit, report,
};
use crate::workbench::print_to_pdf;

/// Longest text file that is shown within a report.
const MAX_SHOWN_BYTES: u64 = 256 << 10;

/// Write up evaluations: report, model card, EU AI Act sheet
///
/// Writes report.html, report.md, README.md (the model card), annex.md and annex.html into a folder.
#[derive(Debug, Args)]
pub(super) struct WriteReport {
    /// The original's evaluation (.json)
    #[arg(value_name = "BASE.json")]
    base: PathBuf,
    /// The candidates'; the card describes the first
    #[arg(value_name = "CANDIDATE.json", required = true)]
    candidates: Vec<PathBuf>,
    /// The folder to write into; it is made where it is missing
    #[arg(short, long, value_name = "FOLDER")]
    output: PathBuf,
    #[arg(long, value_name = "TEXT", default_value = "What compression changed")]
    title: String,
    /// The plan that the candidate was made by
    #[arg(long, value_name = "PLAN.toml")]
    plan: Option<PathBuf>,
    /// Limits to judge by
    #[arg(long, value_name = "GATES.toml")]
    gates: Option<PathBuf>,
    /// A file that the result depends on, such as the calibration text; may be given several times
    #[arg(long = "data", value_name = "FILE")]
    data: Vec<PathBuf>,
    /// The audit log: its entries are evidence, and the report is entered into it
    #[arg(long, value_name = "AUDIT.jsonl")]
    log: Option<PathBuf>,
    /// Answers of a model that cannot run here, for the cascade
    #[arg(long, value_name = "ANSWERS.jsonl")]
    answers: Option<PathBuf>,
    /// The hub's id of the original, for the card
    #[arg(long, value_name = "ORG/NAME")]
    base_model: Option<String>,
    /// The licence, for the card
    #[arg(long, value_name = "ID")]
    license: Option<String>,
    /// A language of the model, for the card; may be given several times
    #[arg(long = "language", value_name = "CODE")]
    languages: Vec<String>,
    /// The library that loads the candidate, for the card
    #[arg(long, value_name = "NAME")]
    library: Option<String>,
    /// Say in the card that weights were trained, masked or removed; units that a plan takes away are seen without
    #[arg(long)]
    pruned: bool,
    /// Print the HTML to PDF too, with the browser or printer that this system has
    #[arg(long)]
    pdf: bool,
}

#[derive(Debug, Serialize)]
struct Document {
    version: u32,
    folder: PathBuf,
    files: Vec<HashedFile>,
}

/// A file that the result depends on, as a part of the report.
fn source(what: &str, path: &Path, is_shown: bool) -> Result<Source> {
    let hash = HashedFile::read(path)?.hash;
    let bytes = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
    let text = if is_shown && bytes <= MAX_SHOWN_BYTES {
        Some(std::fs::read_to_string(path).map_err(Error::io("read", path))?)
    } else {
        None
    };
    Ok(Source { what: what.to_owned(), path: path.to_owned(), hash, bytes, text })
}

impl WriteReport {
    pub fn run(&self, session: &Session) -> Result<Answer> {
        let input = self.input(session)?;
        let written = report(&input)?;
        std::fs::create_dir_all(&self.output).map_err(Error::io("create", &self.output))?;
        let mut files = Vec::new();
        for (name, text) in [
            ("report.html", &written.html),
            ("report.md", &written.markdown),
            ("README.md", &written.model_card),
            ("annex.html", &written.annex_html),
            ("annex.md", &written.annex_markdown),
        ] {
            let path = self.output.join(name);
            output::write_file(&path, text)?;
            files.push(HashedFile::read(&path)?);
        }
        if self.pdf {
            let pdf = self.output.join("report.pdf");
            match print_to_pdf(&written.html, &pdf) {
                Ok(_) => files.push(HashedFile::read(&pdf)?),
                Err(err) => session.warn(err.to_string()),
            }
        }
        if let Some(log) = &self.log {
            let mut entry = AuditEntry::now("report");
            entry.inputs = std::iter::once(&self.base)
                .chain(&self.candidates)
                .map(|path| HashedFile::read(path))
                .collect::<crate::engine::error::Result<_>>()?;
            entry.outputs.clone_from(&files);
            audit::append(log, entry)?;
        }
        let document = Document { version: 1, folder: self.output.clone(), files };
        session.answer(&document, || {
            let lines: String = document.files.iter().map(|file| format!("{}  {}\n", file.hash, file.name)).collect();
            format!("written to {}\n{lines}", self.output.display())
        })
    }

    fn input(&self, session: &Session) -> Result<ReportInput> {
        let baseline = Evaluation::read(&self.base)?;
        let gates = self.gates.as_deref().map(GateSet::read).transpose()?;
        let answers = self.answers.as_deref().map(read_answers).transpose()?;
        let mut candidates = Vec::with_capacity(self.candidates.len());
        for path in &self.candidates {
            let evaluation = Evaluation::read(path)?;
            let own = evaluation.baseline.as_deref().filter(|own| own.key == baseline.key).unwrap_or(&baseline);
            let mut comparison = compare(own, &evaluation, &ComparisonOptions::default(), &session.progress)?;
            if let Some(gates) = &gates {
                comparison.apply_gates(gates);
            }
            let speeds = evaluation.speed.as_ref().zip(own.speed.as_ref());
            let distance = comparison.text.as_ref().and_then(|text| text.distance.as_ref());
            let speculation = distance.zip(speeds).map(|(distance, (draft, target))| {
                let (sampled, greedy) = (distance.acceptance_mean, distance.same_top_fraction);
                speculation::speculation_of(sampled, greedy, draft, target)
            });
            let keep = crate::engine::comparison::CascadeOptions::default().keep_quality;
            let cascade = match cascade::options(own, &evaluation, None, 1.0, keep) {
                Ok(options) => plan_cascade(own, &evaluation, answers.as_deref(), &options).ok(),
                Err(Failure::Usage(_)) => None,
                Err(other) => return Err(other),
            };
            candidates.push(Reported { evaluation, comparison, speculation, cascade });
        }
        let mut sources = Vec::new();
        let mut is_pruned = self.pruned;
        if let Some(plan) = &self.plan {
            sources.push(source("plan", plan, true)?);
            is_pruned |= !run::read_plan(plan)?.prune().removal.is_empty();
        }
        if let Some(gates) = &self.gates {
            sources.push(source("gates", gates, true)?);
        }
        for path in &self.data {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            sources.push(source(&name, path, false)?);
        }
        let log = match &self.log {
            Some(log) if log.exists() => audit::read(log)?,
            _ => Vec::new(),
        };
        Ok(ReportInput {
            title: self.title.clone(),
            baseline,
            candidates,
            sources,
            environment: Environment::here(),
            log,
            card: CardOptions {
                base_model: self.base_model.clone(),
                license: self.license.clone(),
                languages: self.languages.clone(),
                library: self.library.clone(),
                is_pruned_or_trained: is_pruned,
                ..CardOptions::default()
            },
        })
    }
}
