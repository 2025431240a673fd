//! `lapidary calibrate`: what the model sees of a text, kept as an importance matrix.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::PATH_HELP;
use super::output::{self, Table, points};
use super::session::{Answer, Failure, Result, Session};
use crate::engine::calibration::{
    Documents, Importance, ImportanceOptions, Overlap, Share, TensorStatistics, importance,
};
use crate::engine::checkpoint::Checkpoint;
use crate::engine::error::{Fault, Stage};
use crate::engine::scoring::TextSource;
use crate::engine::units::{self, or_dash};

/// Compute how much each input column of every matrix matters, or show it
///
/// The file is llama.cpp's: plan, run and sensitivity take it with --imatrix, and so does llama-quantize.
#[derive(Debug, Args)]
pub(super) struct Calibrate {
    #[arg(value_name = "PATH", help = PATH_HELP)]
    path: PathBuf,
    /// The text that the model reads: plain, or JSONL with `text` and `domain` [default for `demo`: its calibration text]
    #[arg(long, value_name = "TEXT")]
    text: Option<PathBuf>,
    /// Warn where this evaluation text shares runs of 13 tokens with the text that is read
    #[arg(long, value_name = "TEXT", conflicts_with = "imatrix")]
    evaluation: Option<PathBuf>,
    /// Show an importance matrix that is there already, llama.cpp's GGUF form or its .dat
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text", "context", "chunks", "process_output"])]
    imatrix: Option<PathBuf>,
    /// Tokens a chunk, BOS included [default: 512, or the model's context where that is shorter]
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// At most so many chunks [default: all that the text has]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunks: Option<u32>,
    /// Watch the head too
    #[arg(long)]
    process_output: bool,
    /// Write the importance matrix to this file, as llama.cpp's GGUF form
    #[arg(short, long, value_name = "OUT.gguf")]
    output: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Document<'a> {
    version: u32,
    path: &'a Path,
    /// Fingerprint.
    checkpoint: &'a str,
    /// The file read or written, if any.
    imatrix: Option<&'a Path>,
    imatrix_hash: &'a str,
    datasets: &'a [String],
    chunk_count: u32,
    chunk_tokens: u32,
    /// What computed, with what became of it; none for a matrix that was read.
    device: Option<String>,
    warnings: Vec<String>,
    /// How the text is mixed, the largest share first; empty for a matrix that was read.
    mixture: Vec<Share>,
    /// What the text shares with an evaluation text, where one was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    overlap: Option<Overlap>,
    tensors: Vec<TensorStatistics>,
}

impl Calibrate {
    pub fn run(&self, session: &Session) -> Result<Answer> {
        let Computed { checkpoint, mut importance, device, mixture, overlap } = match &self.imatrix {
            Some(path) => Computed::read(session.open(&self.path)?, Importance::read(path)?),
            None => self.compute(session)?,
        };
        for tensor in &checkpoint.tensors {
            importance.of(&tensor.name, tensor.row_len())?;
        }
        if let Some(output) = &self.output {
            importance.write(output)?;
        }
        let document = Document {
            version: 1,
            path: &checkpoint.path,
            checkpoint: &checkpoint.fingerprint,
            imatrix: importance.path.as_deref(),
            imatrix_hash: &importance.hash,
            datasets: &importance.datasets,
            chunk_count: importance.chunk_count,
            chunk_tokens: importance.chunk_tokens,
            device,
            warnings: importance.warnings().into_iter().chain(overlap.as_ref().and_then(Overlap::warning)).collect(),
            mixture,
            overlap,
            tensors: importance.statistics(),
        };
        document.warnings.iter().for_each(|warning| session.warn(warning));
        session.answer(&document, || text(&document, self.output.as_deref()))
    }

    /// Runs the model over its text.
    fn compute(&self, session: &Session) -> Result<Computed> {
        let path = match &self.text {
            Some(path) => path.clone(),
            None => session
                .demo_file(&[&self.path], "calibration.txt")?
                .ok_or_else(|| Failure::Usage("importance is computed on a text: give one with --text".to_owned()))?,
        };
        let documents = Documents::read(&path)?;
        let documents =
            if documents.domains().is_empty() { Documents::beside(&TextSource::read(&path)?) } else { documents };
        let text = if path.extension().is_some_and(|ending| ending == "jsonl") {
            documents.source()
        } else {
            TextSource::read(&path)?
        };
        let evaluation = self.evaluation.as_deref().map(Documents::read).transpose()?;
        let loaded = session.load(&self.path)?;
        if let Some(output) = &self.output {
            output::check_target(Some(output), &[&loaded.checkpoint])?;
            if output.canonicalize().is_ok_and(|real| path.canonicalize().is_ok_and(|text| text == real)) {
                return Err(Fault::new(Stage::Calibration, "the output would replace the text")
                    .fix("choose another name")
                    .file(output)
                    .into());
            }
        }
        let options = ImportanceOptions {
            context: self.context,
            max_chunks: self.chunks.map(|chunks| chunks as usize),
            process_output: self.process_output,
        };
        let config = &loaded.model.config;
        if self.process_output && config.tied_embeddings {
            session.warn(
                "--process-output has no effect: the embedding serves as head, and llama.cpp keeps no entry for it",
            );
        }
        let found =
            importance(&loaded.checkpoint, &loaded.model, &loaded.tokenizer, &text, &options, &session.progress)?;
        let mixture = documents.mixture(&loaded.tokenizer)?;
        let overlap = match evaluation {
            Some(evaluation) => {
                let (own, theirs) = (documents.encode(&loaded.tokenizer)?, evaluation.encode(&loaded.tokenizer)?);
                Some(Overlap::count(&own, &theirs, Overlap::NGRAM))
            }
            None => None,
        };
        let device = Some(loaded.model.device());
        Ok(Computed { checkpoint: loaded.checkpoint, importance: found, device, mixture, overlap })
    }
}

/// An importance matrix with what is known of how it came about.
struct Computed {
    checkpoint: Checkpoint,
    importance: Importance,
    device: Option<String>,
    mixture: Vec<Share>,
    overlap: Option<Overlap>,
}

impl Computed {
    /// One that was read.
    fn read(checkpoint: Checkpoint, importance: Importance) -> Self {
        Self { checkpoint, importance, device: None, mixture: Vec::new(), overlap: None }
    }
}

fn text(document: &Document<'_>, output: Option<&Path>) -> String {
    let titles = [
        "tensor",
        ">tokens",
        ">columns",
        ">Σ E[x²]",
        ">min",
        ">max",
        ">mean",
        ">std",
        ">active %",
        ">entropy %",
        ">ZD %",
        ">cos",
    ];
    let mut table = Table::new(&titles);
    for row in &document.tensors {
        let mark = if row.is_low() { "*" } else { "" };
        table.row([
            row.name.clone(),
            or_dash(row.tokens.map(|tokens| format!("{tokens}{mark}"))),
            row.columns.to_string(),
            units::significant(row.sum),
            units::significant(row.min),
            units::significant(row.max),
            units::significant(row.mean),
            units::significant(row.std),
            points(row.active_share),
            points(row.entropy_share),
            points(row.zd_share),
            or_dash(row.cosine_with_previous.map(|cosine| format!("{cosine:.4}"))),
        ]);
    }
    let chunks = match document.chunk_tokens {
        0 => format!("{} chunks", document.chunk_count),
        tokens => format!("{} chunks of {tokens} tokens", document.chunk_count),
    };
    let mut text = format!(
        "{}\nx: an input of the matrix; E over {chunks}{}. entropy: 100 where all columns are alike. ZD: columns more than one\n\
         deviation above the mean. cos: with the layer before.\n",
        table.render(),
        if document.datasets.is_empty() { String::new() } else { format!(" of {}", document.datasets.join(", ")) },
    );
    if document.tensors.iter().any(TensorStatistics::is_low) {
        text.push_str("* Too few tokens to rely on.\n");
    }
    let total: usize = document.mixture.iter().map(|share| share.tokens).sum();
    if document.mixture.len() > 1 {
        let shares = document.mixture.iter().map(|share| {
            let name = if share.domain.is_empty() { "no domain" } else { &share.domain };
            format!("{name} {} %", points(share.tokens as f64 / total.max(1) as f64))
        });
        text.push_str(&format!("The text's mixture: {}.\n", shares.collect::<Vec<_>>().join(", ")));
    }
    if let Some(overlap) = &document.overlap {
        text.push_str(&format!(
            "Of the evaluation text's runs of {} tokens, {} % are in this text too.\n",
            overlap.ngram,
            points(overlap.share())
        ));
    }
    if let Some(device) = document.device.as_deref().filter(|device| *device != "cpu") {
        text.push_str(&format!("Computed by {device}.\n"));
    }
    if let Some(output) = output {
        text.push_str(&format!("\nwritten to {}\n", output.display()));
    }
    text
}
