//! `lapidary run`: a plan executed, ending with a file that was opened again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::{ArgGroup, Args};
use serde::Serialize;

use super::PATH_HELP;
use super::plan::{self, TensorRow};
use super::session::{Answer, Result, Session};
use crate::engine::calibration::Importance;
use crate::engine::checkpoint::{Checkpoint, ensure_not_source};
use crate::engine::error::{Error, Fault, Stage};
use crate::engine::pass::{self, Earlier, PassOptions};
use crate::engine::plan::{Calibration, Plan, Recipe, Search, Target, resolve};
use crate::engine::report::{AuditEntry, PassFacts, audit};
use crate::engine::units;

/// Largest plan file.
const MAX_PLAN_BYTES: u64 = 64 << 20;

/// Compress a checkpoint as a plan or a recipe says
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).args(["plan", "recipe"]))]
pub(super) struct Run {
    #[arg(value_name = "PATH", help = PATH_HELP)]
    path: PathBuf,
    /// A plan, from `lapidary plan`, the window or your editor
    #[arg(long, value_name = "PLAN.toml")]
    plan: Option<PathBuf>,
    /// A mixture by llama.cpp's name, such as Q4_K_M, or F32, F16, BF16
    #[arg(long, value_name = "RECIPE", value_parser = plan::recipe)]
    recipe: Option<Recipe>,
    /// An importance matrix, from `lapidary calibrate` or llama-imatrix; it goes over the plan's
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// With --recipe, what to write: gguf; hugging_face (float types only); compressed-tensors, bitsandbytes, gptq or awq [default: gguf]
    #[arg(long, value_name = "TARGET", value_parser = plan::target, conflicts_with = "plan")]
    target: Option<Target>,
    /// Where searches of k-quants, least squares and importance run: cpu (the bytes are ggml's) or device (now and then
    /// another of two nearly equal choices; the result says so) [default: as the plan says, else cpu]
    #[arg(long, value_name = "WHERE", value_parser = search)]
    search: Option<Search>,
    /// An earlier result for the same PATH: tensors that its plan decides alike are taken over instead of encoded again
    #[arg(long, value_name = "CANDIDATE", requires = "reuse_plan")]
    reuse: Option<PathBuf>,
    /// The plan that the earlier result was made by
    #[arg(long, value_name = "PLAN.toml", requires = "reuse")]
    reuse_plan: Option<PathBuf>,
    /// The file (GGUF) or folder (all others) to write
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
    target: &'static str,
    recipe: Option<&'static str>,
    output: &'a Path,
    /// The candidate's id: BLAKE3 of its files.
    content_hash: &'a str,
    weight_count: u64,
    /// Fewer where the plan prunes.
    new_weight_count: u64,
    old_bytes: u64,
    new_bytes: u64,
    old_file_bytes: u64,
    file_bytes: u64,
    old_bits_per_weight: f64,
    new_bits_per_weight: f64,
    /// Tensors taken over from an earlier result.
    reused_tensors: usize,
    /// What encoded beside the CPU; null for the CPU alone.
    device: Option<&'a str>,
    /// Tensors that it encoded.
    device_tensors: usize,
    /// Where searches ran: cpu or device.
    search: &'static str,
    elapsed_secs: f64,
    warnings: &'a [String],
    tensors: Vec<TensorRow>,
}

impl Run {
    pub fn run(&self, session: &Session) -> Result<Answer> {
        let checkpoint = session.open(&self.path)?;
        let mut plan = self.plan(&checkpoint)?;
        if let Some(search) = self.search {
            plan.set_search(search);
        }
        let mut importance = self.imatrix.as_deref().map(Importance::read).transpose()?.map(Arc::new);
        if let Some(importance) = &importance {
            plan.set_calibration(Calibration::of(importance));
        }
        let resolved = resolve(&plan, &checkpoint)?;
        ensure_not_source(&checkpoint, &self.output)?;
        if resolved.target == Target::Gguf && self.output.extension().is_none_or(|extension| extension != "gguf") {
            // Under another name nobody could open it, and neither could we.
            return Err(Fault::new(Stage::Pass, "a GGUF file needs a name that ends in .gguf")
                .fix("give such a name with -o")
                .file(&self.output)
                .into());
        }
        if let Some(calibration) = plan.calibration().filter(|_| importance.is_none()) {
            let mut warnings = Vec::new();
            importance =
                Some(calibration.load_on(&checkpoint, &session.device()?, &session.progress, &mut warnings)?);
            warnings.iter().for_each(|warning| session.warn(warning));
        }
        let earlier = self.earlier(&checkpoint, session)?;
        let importance_hash = importance.as_ref().map(|importance| importance.hash.clone());
        let options = PassOptions {
            importance,
            earlier,
            means: plan.load_means()?,
            device: session.device()?,
            ..PassOptions::default()
        };
        let started = Instant::now();
        let report = pass::run(&checkpoint, &resolved, &self.output, &options, &session.progress);
        let inputs = || AuditEntry::inputs_of_pass(&checkpoint, Some(&plan.to_toml()));
        let report = session.logged(report, self.log.as_deref(), "pass", started, inputs)?;
        let candidate = Checkpoint::open(&self.output)?;
        report.warnings.iter().for_each(|warning| session.warn(warning));
        let content_hash = candidate.content_hash(&session.progress)?;
        if let Some(log) = &self.log {
            let facts = PassFacts {
                checkpoint: (&checkpoint.name, &checkpoint.content_hash(&session.progress)?),
                fingerprint: &checkpoint.fingerprint,
                plan: &plan.to_toml(),
                importance: importance_hash.as_deref(),
                mask: None,
                candidate: (&report.output, &content_hash),
                target: resolved.target.name(),
                seconds: report.elapsed_secs,
            };
            audit::append(log, AuditEntry::of_pass(&facts))?;
        }
        let document = Document {
            version: 1,
            path: &checkpoint.path,
            checkpoint: &checkpoint.fingerprint,
            target: resolved.target.name(),
            recipe: resolved.recipe.map(Recipe::name),
            output: &report.output,
            content_hash: &content_hash,
            weight_count: report.weight_count,
            new_weight_count: resolved.new_weight_count,
            old_bytes: report.old_bytes,
            new_bytes: report.new_bytes,
            old_file_bytes: checkpoint.file_bytes(),
            file_bytes: report.file_bytes,
            old_bits_per_weight: report.old_bits_per_weight(),
            new_bits_per_weight: report.new_bits_per_weight(),
            reused_tensors: report.reused_tensors,
            device: report.device.as_deref(),
            device_tensors: report.device_tensors,
            search: resolved.search.name(),
            elapsed_secs: report.elapsed_secs,
            warnings: &report.warnings,
            tensors: plan::rows(&resolved, &checkpoint),
        };
        session.answer(&document, || text(&document))
    }

    /// What tensors may be taken over from.
    fn earlier(&self, checkpoint: &Checkpoint, session: &Session) -> Result<Vec<Earlier>> {
        let (Some(candidate), Some(plan)) = (&self.reuse, &self.reuse_plan) else { return Ok(Vec::new()) };
        let plan = read_plan(plan)?;
        let hash = match plan.calibration() {
            Some(calibration) if calibration.imatrix_hash.is_some() => calibration.imatrix_hash.clone(),
            Some(calibration) => {
                let importance = calibration.load(checkpoint, &session.progress, &mut Vec::new())?;
                Some(importance.hash.clone())
            }
            None => None,
        };
        let plan = Arc::new(resolve(&plan, checkpoint)?);
        Ok(vec![Earlier { candidate: Arc::new(session.open(candidate)?), plan, importance: hash }])
    }

    fn plan(&self, checkpoint: &Checkpoint) -> Result<Plan> {
        let Some(path) = &self.plan else {
            let mut plan = Plan::new(self.target.unwrap_or(Target::Gguf), Some(&checkpoint.fingerprint));
            plan.set_recipe(self.recipe);
            return Ok(plan);
        };
        read_plan(path)
    }
}

fn search(text: &str) -> std::result::Result<Search, String> {
    Search::find(text).ok_or_else(|| format!("there is no {text}; give {}", Search::NAMES.join(" or ")))
}

/// Reads a plan from its file.
pub(super) fn read_plan(path: &Path) -> Result<Plan> {
    let size_bytes = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
    if size_bytes > MAX_PLAN_BYTES {
        return Err(Fault::new(Stage::Plan, format!("the file has {size_bytes} bytes, too many for a plan"))
            .fix("give a TOML file that `lapidary plan` wrote")
            .file(path)
            .into());
    }
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Fault::new(Stage::Plan, "the plan is not UTF-8").fix("save it as UTF-8").file(path))?;
    Ok(Plan::parse(&text, Some(path))?)
}

fn text(document: &Document<'_>) -> String {
    let reused = match document.reused_tensors {
        0 => String::new(),
        count => format!("{count} tensors taken over from the earlier result\n"),
    };
    let device = document.device.map_or_else(String::new, |device| {
        format!("{} of {} tensors encoded by {device}\n", document.device_tensors, document.tensors.len())
    });
    format!(
        "{}\n{}: {} on disk, was {} ({:.2} bpw, was {:.2}), in {}\n{reused}{device}",
        plan::table(&document.tensors),
        document.output.display(),
        units::bytes(document.file_bytes),
        units::bytes(document.old_file_bytes),
        document.new_bits_per_weight,
        document.old_bits_per_weight,
        units::seconds(document.elapsed_secs),
    )
}
