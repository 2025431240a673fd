//! `lapidary mask`: single weights set to zero, for study.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::PATH_HELP;
use super::plan;
use super::session::{Answer, Failure, Result, Session};
use crate::engine::checkpoint::Checkpoint;
use crate::engine::format::{self, Format};
use crate::engine::model::Tokenizer;
use crate::engine::pass::{self, MaskFacts, MaskPass};
use crate::engine::plan::{Recipe, Target};
use crate::engine::report::{AuditEntry, PassFacts, audit};
use crate::engine::scoring::TextSource;
use crate::engine::structure::masks::Pattern;
use crate::engine::structure::study::{MaskMethod, MaskOptions, USUAL_WINDOWS};
use crate::engine::structure::{Sample, SampleOptions};
use crate::engine::units;

/// Set single weights to zero and write the model, for study
///
/// Nothing gets smaller in memory or faster by a mask, unless a runtime has a kernel for its pattern; only the file may be
/// smaller. To make a model smaller, take units away: `lapidary plan --prune-channels 0.25`.
#[derive(Debug, Args)]
pub(super) struct Mask {
    #[arg(value_name = "PATH", help = PATH_HELP)]
    path: PathBuf,
    /// magnitude, wanda or sparsegpt
    #[arg(long, value_name = "METHOD", value_parser = method, default_value = "wanda")]
    method: MaskMethod,
    /// The share of zeros, such as 0.5, or 2:4 and 4:8: so many of each run of neighbours stay
    #[arg(long, value_name = "PATTERN", value_parser = pattern, default_value = "0.5")]
    pattern: Pattern,
    /// The text that inputs are looked at on [default for `demo`: its calibration text]
    #[arg(long, value_name = "TEXT")]
    calibration: Option<PathBuf>,
    /// At most so many windows of the text
    #[arg(long, value_name = "N", default_value_t = USUAL_WINDOWS)]
    windows: usize,
    /// Memory for what sparsegpt computes, such as 8GiB
    #[arg(long, value_name = "SIZE", value_parser = super::limits::size, default_value = "16GiB")]
    memory: u64,
    /// Quantize the masked weights by a mixture of llama.cpp's name
    #[arg(long, value_name = "RECIPE", value_parser = plan::recipe)]
    recipe: Option<Recipe>,
    /// With sparsegpt, quantize what stays in the same sweep, so that weights make up for both: integers by group or
    /// channel, such as int4_g128
    #[arg(long, value_name = "FORMAT", value_parser = format, conflicts_with = "recipe")]
    quantize: Option<&'static dyn Format>,
    /// What to write: gguf or hugging_face [default: hugging_face, compressed_tensors with --quantize]
    #[arg(long, value_name = "TARGET", value_parser = plan::target)]
    target: Option<Target>,
    /// Write zeros as they are. Plain folders have them left out otherwise (compressed-tensors' sparse-bitmask), which this
    /// program and compressed-tensors 0.10 read
    #[arg(long)]
    dense: bool,
    /// The file (GGUF) or folder to write
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Add an entry to this audit log
    #[arg(long, value_name = "AUDIT.jsonl")]
    log: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Document<'a> {
    version: u32,
    path: &'a Path,
    /// Fingerprint.
    checkpoint: &'a str,
    output: &'a Path,
    content_hash: String,
    #[serde(flatten)]
    facts: &'a MaskFacts,
    elapsed_secs: f64,
}

/// Reads a method's name.
fn method(name: &str) -> std::result::Result<MaskMethod, String> {
    MaskMethod::find(name)
        .ok_or_else(|| format!("the methods are {}", MaskMethod::ALL.map(MaskMethod::name).join(", ")))
}

/// Reads a format's name.
fn format(name: &str) -> std::result::Result<&'static dyn Format, String> {
    format::find(name).ok_or_else(|| "give integers by group or channel, such as int4_g128".to_owned())
}

/// Reads a pattern.
fn pattern(text: &str) -> std::result::Result<Pattern, String> {
    Pattern::parse(text).ok_or_else(|| "give a share below 1, such as 0.5, or a pattern such as 2:4".to_owned())
}

impl Mask {
    pub fn run(&self, session: &Session) -> Result<Answer> {
        let checkpoint = session.open(&self.path)?;
        if let (Some(_), Some(target)) = (self.quantize, self.target)
            && target != Target::CompressedTensors
        {
            return Err(Failure::Usage(format!(
                "--quantize makes integers that the target {target} does not hold: leave --target out"
            )));
        }
        let sample = self.sample(session, &checkpoint)?;
        let device = session.device()?;
        let mask = MaskOptions {
            method: self.method,
            pattern: self.pattern,
            sample: sample.as_ref(),
            most_bytes: self.memory,
            format: self.quantize.map(Format::dtype),
            device: Some(&device),
        };
        let options = MaskPass { mask, recipe: self.recipe, target: self.target, compact_zeros: !self.dense };
        let started = Instant::now();
        let done = pass::masked(&checkpoint, &options, &self.output, &session.progress);
        let inputs = || AuditEntry::inputs_of_pass(&checkpoint, None);
        let done = session.logged(done, self.log.as_deref(), "pass", started, inputs)?;
        session.warn(&*done.facts.mask.statement);
        let content_hash = Checkpoint::open(&self.output)?.content_hash(&session.progress)?;
        if let Some(log) = &self.log {
            let facts = PassFacts {
                checkpoint: (&checkpoint.name, &checkpoint.content_hash(&session.progress)?),
                fingerprint: &checkpoint.fingerprint,
                plan: &done.plan.to_toml(),
                importance: None,
                mask: Some(&done.facts.mask),
                candidate: (&done.report.output, &content_hash),
                target: done.plan.target().name(),
                seconds: done.report.elapsed_secs,
            };
            audit::append(log, AuditEntry::of_pass(&facts))?;
        }
        let document = Document {
            version: 1,
            path: &checkpoint.path,
            checkpoint: &checkpoint.fingerprint,
            output: &self.output,
            content_hash,
            facts: &done.facts,
            elapsed_secs: done.report.elapsed_secs,
        };
        session.answer(&document, || text(&document))
    }

    fn sample(&self, session: &Session, checkpoint: &Checkpoint) -> Result<Option<Sample>> {
        if !self.method.needs_sample() {
            return Ok(None);
        }
        let path = match &self.calibration {
            Some(path) => path.clone(),
            None => session.demo_file(&[&self.path], "calibration.txt")?.ok_or_else(|| {
                Failure::Usage(format!("the method {} needs a text: give one with --calibration", self.method.name()))
            })?,
        };
        let options = SampleOptions { context: None, max_windows: Some(self.windows) };
        let codec = Tokenizer::of_checkpoint(checkpoint)?;
        Ok(Some(Sample::new(&TextSource::read(&path)?, &codec, checkpoint.require_config()?, &options)?))
    }
}

fn text(document: &Document<'_>) -> String {
    let MaskFacts { mask, dense_file_bytes, .. } = document.facts;
    let loss = mask.loss.map_or_else(String::new, |loss| format!(", outputs moved by {}", units::significant(loss)));
    let quantized = mask.format.as_ref().map_or_else(String::new, |format| format!(" and quantized to {format}"));
    let dense = match &document.facts.size_statement {
        Some(statement) => format!(" ({} with its zeros)\n{statement}", units::bytes(*dense_file_bytes)),
        None => String::new(),
    };
    format!(
        "{}: {} of {} weights in {} matrices masked{quantized} by {}{loss}, in {}\n{} on disk, was {}{dense}\n{}\n",
        document.output.display(),
        mask.pattern,
        units::count(mask.weights),
        mask.tensors,
        mask.method,
        units::seconds(document.elapsed_secs),
        units::bytes(document.facts.file_bytes),
        units::bytes(document.facts.old_file_bytes),
        mask.statement,
    )
}
