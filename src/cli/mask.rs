//! `lapidary mask`: single weights set to zero, for study.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::PATH_HELP;
use super::plan;
use super::session::{Answer, Failure, Result, Session};
use crate::engine::checkpoint::{Checkpoint, ensure_not_source};
use crate::engine::format::{self, Dtype, Format};
use crate::engine::model::Tokenizer;
use crate::engine::pass::{self, PassOptions};
use crate::engine::plan::{Plan, Recipe, Target, resolve};
use crate::engine::scoring::TextSource;
use crate::engine::structure::masks::Pattern;
use crate::engine::structure::study::{MaskMethod, MaskOptions, MaskReport, masked};
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
    #[arg(long, value_name = "N", default_value_t = 64)]
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
    mask: MaskReport,
    old_file_bytes: u64,
    /// With every zero written.
    dense_file_bytes: u64,
    file_bytes: u64,
    /// True if zeros are left out of the file.
    is_compact: bool,
    /// What a smaller file is worth.
    #[serde(skip_serializing_if = "Option::is_none")]
    size_statement: Option<&'static str>,
    elapsed_secs: f64,
}

/// What must stand beside the size of a file without its zeros.
const SIZE_STATEMENT: &str =
    "The file is smaller on disk only: no memory and no time is saved, unless a runtime has a kernel for the pattern.";

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
        ensure_not_source(&checkpoint, &self.output)?;
        let sample = self.sample(session, &checkpoint)?;
        let target = self.target.unwrap_or(match self.quantize {
            Some(_) => Target::CompressedTensors,
            None => Target::HuggingFace,
        });
        if self.quantize.is_some() && target != Target::CompressedTensors {
            return Err(Failure::Usage(format!(
                "--quantize makes integers that the target {target} does not hold: leave --target out"
            )));
        }
        let device = session.device()?;
        let options = MaskOptions {
            method: self.method,
            pattern: self.pattern,
            sample: sample.as_ref(),
            most_bytes: self.memory,
            format: self.quantize.map(Format::dtype),
            device: Some(&device),
        };
        let (view, mask) = masked(&checkpoint, &options, &session.progress)?;
        let mut plan = Plan::new(target, None);
        match (self.recipe, self.quantize) {
            (Some(recipe), _) => plan.set_recipe(Some(recipe)),
            // What was quantized stays as it is, and so does the rest.
            (None, Some(_)) => {}
            (None, None) => plan.set_default_format(Some(plain_format(&checkpoint)))?,
        }
        let resolved = resolve(&plan, &view)?;
        let options = PassOptions { compact_zeros: !self.dense, ..PassOptions::default() };
        let dense_file_bytes = pass::file_bytes(&view, &resolved)?;
        let report = pass::run(&view, &resolved, &self.output, &options, &session.progress)?;
        session.warn(mask.statement);
        let is_compact = report.new_bytes < resolved.new_bytes;
        let document = Document {
            version: 1,
            path: &checkpoint.path,
            checkpoint: &checkpoint.fingerprint,
            output: &self.output,
            content_hash: Checkpoint::open(&self.output)?.content_hash(&session.progress)?,
            mask,
            old_file_bytes: checkpoint.file_bytes(),
            dense_file_bytes,
            file_bytes: report.file_bytes,
            is_compact,
            size_statement: is_compact.then_some(SIZE_STATEMENT),
            elapsed_secs: report.elapsed_secs,
        };
        session.answer(&document, || text(&document))
    }

    fn sample(&self, session: &Session, checkpoint: &Checkpoint) -> Result<Option<Sample>> {
        if self.method == MaskMethod::Magnitude {
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

/// The plain type of most weights, in which masked values of plain weights are exact.
fn plain_format(checkpoint: &Checkpoint) -> &'static str {
    let weights = |dtype: Dtype| -> u64 {
        checkpoint.tensors.iter().filter(|tensor| tensor.dtype == dtype).map(|tensor| tensor.weight_count()).sum()
    };
    let types = [(Dtype::Bf16, "bf16"), (Dtype::F16, "f16"), (Dtype::F32, "f32")];
    types.into_iter().max_by_key(|(dtype, _)| weights(*dtype)).map_or("bf16", |found| found.1)
}

fn text(document: &Document<'_>) -> String {
    let loss =
        document.mask.loss.map_or_else(String::new, |loss| format!(", outputs moved by {}", units::significant(loss)));
    let quantized = document.mask.format.map_or_else(String::new, |format| format!(" and quantized to {format}"));
    let dense = match document.size_statement {
        Some(statement) => {
            format!(" ({} with its zeros)\n{statement}", units::bytes(document.dense_file_bytes))
        }
        None => String::new(),
    };
    format!(
        "{}: {} of {} weights in {} matrices masked{quantized} by {}{loss}, in {}\n{} on disk, was {}{dense}\n{}\n",
        document.output.display(),
        document.mask.pattern,
        units::count(document.mask.weights),
        document.mask.tensors,
        document.mask.method,
        units::seconds(document.elapsed_secs),
        units::bytes(document.file_bytes),
        units::bytes(document.old_file_bytes),
        document.mask.statement,
    )
}
