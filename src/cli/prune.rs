//! The pruning of `lapidary plan`: how much goes, by which score, and what that leaves.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::output::write_file;
use super::session::{Failure, Result, Session};
use crate::engine::checkpoint::{Checkpoint, Removal, Structure};
use crate::engine::error::{Error, Fault, Stage};
use crate::engine::model::Tokenizer;
use crate::engine::plan::{Plan, resolve};
use crate::engine::report::{AuditEntry, PlanFacts, audit};
use crate::engine::scoring::{TaskSet, TextSource};
use crate::engine::sensitivity::Label;
use crate::engine::sensitivity::units::UnitTable;
use crate::engine::structure::limits::SliceLimit;
use crate::engine::structure::schedule::{Schedule, ScheduleOptions, Step, schedule};
use crate::engine::structure::{
    InputMeans, Metric, Sample, SampleOptions, ScoreOptions, Share, Take, UnitScores, scores, select,
};
use crate::engine::units;

/// What the plan takes out of the network.
#[derive(Debug, Args)]
pub(super) struct PruneArgs {
    /// Take this share of the KV groups away, each with its query heads, such as 0.25
    #[arg(long, value_name = "SHARE", value_parser = share, help_heading = "Pruning")]
    prune_groups: Option<f64>,
    /// Take this share of the query heads away, as many from every KV group
    #[arg(long, value_name = "SHARE", value_parser = share, help_heading = "Pruning")]
    prune_heads: Option<f64>,
    /// Take this share of the MLP channels away
    #[arg(long, value_name = "SHARE", value_parser = share, help_heading = "Pruning")]
    prune_channels: Option<f64>,
    /// Take so many layers away, those with the lowest scores
    #[arg(long, value_name = "N", help_heading = "Pruning")]
    prune_layers: Option<usize>,
    /// Take these layers away, such as 3,4; counted from 0
    #[arg(
        long,
        value_name = "LAYERS",
        value_delimiter = ',',
        conflicts_with = "prune_layers",
        help_heading = "Pruning"
    )]
    remove_layers: Vec<usize>,
    /// Take this share of the weights of all KV groups and channels away, by one ranking over all layers
    #[arg(long, value_name = "SHARE", value_parser = share, conflicts_with_all = ["prune_groups", "prune_channels"], help_heading = "Pruning")]
    prune_weights: Option<f64>,
    /// Shares are of the whole network: layers may lose more or less, and then differ in shape
    #[arg(long, conflicts_with = "prune_weights", help_heading = "Pruning")]
    prune_across: bool,
    /// What units are taken away by: random, magnitude, minitron, wanda, flap, taylor, mask_gradient or fisher
    #[arg(long, value_name = "SCORE", value_parser = metric, default_value = "flap", help_heading = "Pruning")]
    score: Metric,
    /// Values of layers, heads or KV groups that `lapidary sensitivity` wrote go over the score's; may be repeated
    #[arg(long, value_name = "TABLE.json", help_heading = "Pruning")]
    units: Vec<PathBuf>,
    /// First take what this text needs and the calibration text does not, to even two groups of users out; best with fisher
    #[arg(long, value_name = "TEXT", help_heading = "Pruning")]
    against: Option<PathBuf>,
    /// How much the scores on the text of --against count
    #[arg(long, value_name = "WEIGHT", default_value_t = 0.33, requires = "against", help_heading = "Pruning")]
    against_weight: f64,
    /// At most so many windows of the text
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = "Pruning")]
    windows: usize,
    /// For the score random
    #[arg(long, value_name = "SEED", default_value_t = 0, help_heading = "Pruning")]
    prune_seed: u64,
    /// MLP channels stay in multiples of this [default: the block of the format that each layer's down gets]
    #[arg(long, value_name = "N", help_heading = "Pruning")]
    multiple: Option<usize>,
    /// Get there in so many steps: scored anew before each, measured after it, and its plan written beside the plan
    #[arg(long, value_name = "N", requires = "output", value_parser = clap::value_parser!(u16).range(1..=100), help_heading = "Pruning")]
    prune_steps: Option<u16>,
    /// With steps, stop before the mean KLD of the next token passes so many nats
    #[arg(long, value_name = "NATS", requires = "prune_steps", help_heading = "Pruning")]
    prune_max_kld: Option<f64>,
    /// With steps, stop before this slice of tasks loses more than it may: task/slice, or * for each of all
    #[arg(long, value_name = "SLICE", requires = "prune_steps", help_heading = "Pruning")]
    prune_slice: Option<String>,
    /// The most that the slice may lose, as a fraction of its items
    #[arg(
        long,
        value_name = "FRACTION",
        default_value_t = 0.02,
        allow_negative_numbers = true,
        requires = "prune_slice",
        help_heading = "Pruning"
    )]
    prune_max_loss: f64,
    /// The tasks of that slice [default for `demo`: its tasks]
    #[arg(long, value_name = "TASKS", requires = "prune_slice", help_heading = "Pruning")]
    prune_tasks: Option<PathBuf>,
    /// At most so many items of a slice
    #[arg(long, value_name = "N", default_value_t = 120, requires = "prune_slice", help_heading = "Pruning")]
    prune_items: usize,
    /// With steps, the text that they are measured on [default for `demo`: its evaluation text]
    #[arg(long, value_name = "TEXT", requires = "prune_steps", help_heading = "Pruning")]
    measure_on: Option<PathBuf>,
    /// With steps, go on from what this plan takes away: a step's plan, say, of a schedule that was stopped
    #[arg(long, value_name = "PLAN.toml", requires = "prune_steps", help_heading = "Pruning")]
    prune_from: Option<PathBuf>,
    /// Keep the mean of what goes as biases; their inputs' means are written beside the plan. With steps, the means of
    /// the model that each step began with
    #[arg(long, requires = "output", help_heading = "Pruning")]
    compensate: bool,
    /// Add an entry for the plan, and one for every step of pruning, to this audit log
    #[arg(long, value_name = "AUDIT.jsonl", requires = "output")]
    log: Option<PathBuf>,
}

/// What is taken away and what is left, as a part of a document.
#[derive(Debug, Serialize)]
pub(super) struct PruneSection {
    score: String,
    /// predicted, or measured with weights only where a table of units was.
    label: &'static str,
    text_hash: Option<String>,
    tokens: u64,
    removed_layers: usize,
    /// Of layers that stay.
    removed_kv_groups: usize,
    removed_heads: usize,
    removed_channels: usize,
    old_layer_weights: u64,
    new_layer_weights: u64,
    /// Multiply-adds of one token, attention over earlier tokens not counted.
    old_multiplies_per_token: u64,
    new_multiplies_per_token: u64,
    old_kv_bytes_per_token: u64,
    new_kv_bytes_per_token: u64,
    /// The steps that were kept, each with its KLD in nats; measured, weights only.
    steps: Vec<Step>,
    /// True if a step was not taken, because it would have passed a limit.
    is_stopped: bool,
    /// That step.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused_step: Option<Step>,
    /// The file of input means, where the plan makes up for what goes.
    means: Option<PathBuf>,
}

/// Reads a share.
fn share(text: &str) -> std::result::Result<f64, String> {
    let share = text.parse::<f64>().ok().filter(|share| (0.0..1.0).contains(share));
    share.ok_or_else(|| "give a share from 0 to below 1, such as 0.25".to_owned())
}

/// Reads a score's name.
fn metric(name: &str) -> std::result::Result<Metric, String> {
    Metric::find(name).ok_or_else(|| format!("the scores are {}", Metric::ALL.map(Metric::name).join(", ")))
}

impl PruneArgs {
    fn take(&self) -> Take {
        let share = match (self.prune_weights, self.prune_across) {
            (Some(_), _) => Share::All,
            (None, true) => Share::Kind,
            (None, false) => Share::Layer,
        };
        Take {
            share,
            kv_groups: self.prune_weights.or(self.prune_groups).unwrap_or(0.0),
            heads: self.prune_heads.unwrap_or(0.0),
            channels: self.prune_weights.or(self.prune_channels).unwrap_or(0.0),
            layers: self.prune_layers.unwrap_or(0),
        }
    }

    /// Puts what is to go into the plan, whose formats are decided; units are scored on `calibration`, and
    /// `output` is the plan's file.
    pub(super) fn apply(
        &self,
        session: &Session,
        path: &Path,
        checkpoint: &Checkpoint,
        plan: &mut Plan,
        calibration: Option<&Path>,
        output: Option<&Path>,
    ) -> Result<Option<PruneSection>> {
        let take = self.take();
        let named = Removal { layers: self.remove_layers.iter().copied().collect(), ..Removal::default() };
        let is_by_score = take.kv_groups + take.heads + take.channels > 0.0 || take.layers > 0;
        if !is_by_score && named.is_empty() {
            return Ok(None);
        }
        let config = checkpoint.require_config()?;
        let mut scored: Option<(UnitScores, Option<InputMeans>)> = None;
        let mut removal = named;
        let mut schedule: Option<Steps> = None;
        if is_by_score {
            let sample = self.sample(session, path, checkpoint, calibration)?;
            let device = session.device()?;
            let device = Some(&device);
            let options = ScoreOptions { sample: sample.as_ref(), seed: self.prune_seed, device };
            let (mut found, means) = scores(checkpoint, self.score, &options, &session.progress)?;
            if let Some(against) = &self.against {
                let text = TextSource::read(against)?;
                let sample = self.windows(checkpoint, &text)?;
                let options = ScoreOptions { sample: Some(&sample), seed: self.prune_seed, device };
                let (other, _) = scores(checkpoint, self.score, &options, &session.progress)?;
                found = found.less(&other, self.against_weight)?;
            }
            for path in &self.units {
                found.lay_over(&UnitTable::read(path)?, config)?;
            }
            let multiple = self.multiples(checkpoint, plan)?;
            let multiple = |layer: usize| multiple.get(layer).copied().unwrap_or(1);
            match (&sample, self.prune_steps) {
                (Some(sample), Some(steps)) => {
                    let done =
                        self.steps(session, path, checkpoint, plan, output, sample, usize::from(steps), &multiple)?;
                    let last = done.schedule.steps.last();
                    removal.add(&last.map_or_else(|| done.start.clone(), |step| step.removal.clone()));
                    schedule = Some(done);
                }
                (None, Some(_)) => {
                    return Err(Failure::Usage("--prune-steps needs a score that looks at a text".to_owned()));
                }
                (_, None) => removal.add(&select(config, &found, &take, &multiple)?),
            }
            scored = Some((found, means));
        }
        plan.set_removal(checkpoint, removal)?;
        let mut written = None;
        if let (true, Some(output)) = (self.compensate && !plan.prune().removal.is_empty(), output) {
            let of_steps = schedule.as_ref().and_then(Steps::means);
            let means = of_steps.or_else(|| scored.as_ref().and_then(|found| found.1.as_ref()));
            let Some(means) = means else {
                return Err(Failure::Usage(
                    "--compensate needs a score that looks at activations: flap, wanda or minitron".to_owned(),
                ));
            };
            written = Some(keep_means(means, output, plan)?);
        }
        let structure = match plan.structure(checkpoint)? {
            Some(structure) => structure,
            // A schedule whose first step would pass the limit has something to tell.
            None if schedule.is_some() => Structure::new(config, &Removal::default())
                .map_err(|fault| Fault::new(Stage::Plan, fault.cause).fix(fault.remedy))
                .map_err(Error::from)?,
            None => return Ok(None),
        };
        let mut section = self.section(&structure, scored.map(|found| found.0), written);
        if let Some(Steps { schedule, .. }) = schedule {
            section.is_stopped = schedule.refused.is_some();
            section.steps = schedule.steps;
            section.refused_step = schedule.refused;
        }
        Ok(Some(section))
    }

    /// Takes units away step by step; the plan of every step is written beside the plan.
    #[expect(clippy::too_many_arguments, reason = "what the command was given, handed on once")]
    fn steps(
        &self,
        session: &Session,
        path: &Path,
        checkpoint: &Checkpoint,
        plan: &Plan,
        output: Option<&Path>,
        sample: &Sample,
        steps: usize,
        multiple: &dyn Fn(usize) -> usize,
    ) -> Result<Steps> {
        let (start, start_means) = match &self.prune_from {
            Some(from) => {
                let text = std::fs::read_to_string(from).map_err(Error::io("read", from))?;
                let plan = Plan::parse(&text, Some(from))?;
                (plan.prune().removal.clone(), if self.compensate { plan.load_means()? } else { None })
            }
            None => (Removal::default(), None),
        };
        let text = self.text(session, path, self.measure_on.as_deref(), "evaluation.txt", "--measure-on")?;
        let held_out = self.windows(checkpoint, &text)?;
        if held_out.text_hash == sample.text_hash {
            session.warn("steps are measured on the text that units are scored on: give another with --measure-on");
        }
        let options = ScheduleOptions {
            metric: self.score,
            seed: self.prune_seed,
            take: self.take(),
            steps,
            max_kld: self.prune_max_kld,
            slice: self.slice_limit(session, path)?,
            compensate: self.compensate,
            start: start.clone(),
            start_means: start_means.clone(),
            device: session.device()?,
        };
        let mut failure = None;
        let mut keep = |step: &Step| {
            let Some(output) = output else { return };
            let file = output.with_extension(format!("step-{}.toml", step.index));
            let kept = keep_step(checkpoint, plan, step, &file)
                .and_then(|toml| self.log_step(session, checkpoint, sample, step, (&file, &toml)));
            if let Err(err) = kept {
                failure.get_or_insert(err);
            }
        };
        let schedule = schedule(checkpoint, sample, &held_out, &options, multiple, &session.progress, &mut keep)?;
        match failure {
            Some(failure) => Err(failure),
            None => Ok(Steps { schedule, start, start_means }),
        }
    }

    /// Enters a step into the audit log, if there is one.
    fn log_step(
        &self,
        session: &Session,
        checkpoint: &Checkpoint,
        sample: &Sample,
        step: &Step,
        plan: (&Path, &str),
    ) -> Result<()> {
        let Some(log) = &self.log else { return Ok(()) };
        let options = [
            ("score", self.score.name().to_owned()),
            ("step", step.index.to_string()),
            ("kld", step.kld.to_string()),
            ("layer_weights", step.layer_weights.to_string()),
        ];
        let facts = PlanFacts {
            checkpoint: (&checkpoint.name, &checkpoint.content_hash(&session.progress)?),
            text: Some(&sample.text_hash),
            plan,
            options: &options,
        };
        audit::append(log, AuditEntry::of_plan("prune step", &facts))?;
        Ok(())
    }

    /// Enters the plan that was written into the audit log, if there is one.
    pub(super) fn log_plan(
        &self,
        session: &Session,
        checkpoint: &Checkpoint,
        section: Option<&PruneSection>,
        plan: (&Path, &str),
    ) -> Result<()> {
        let Some(log) = &self.log else { return Ok(()) };
        let taken = |section: &PruneSection| {
            [
                ("score", section.score.clone()),
                ("layer_weights", section.new_layer_weights.to_string()),
                ("removed_layers", section.removed_layers.to_string()),
                ("removed_kv_groups", section.removed_kv_groups.to_string()),
                ("removed_heads", section.removed_heads.to_string()),
                ("removed_channels", section.removed_channels.to_string()),
            ]
        };
        let options: Vec<(&str, String)> = section.into_iter().flat_map(taken).collect();
        let facts = PlanFacts {
            checkpoint: (&checkpoint.name, &checkpoint.content_hash(&session.progress)?),
            text: section.and_then(|section| section.text_hash.as_deref()),
            plan,
            options: &options,
        };
        audit::append(log, AuditEntry::of_plan("plan", &facts))?;
        Ok(())
    }

    /// What a slice may lose, if a limit on one was asked for.
    fn slice_limit(&self, session: &Session, path: &Path) -> Result<Option<SliceLimit>> {
        let Some(slice) = &self.prune_slice else { return Ok(None) };
        let tasks = match &self.prune_tasks {
            Some(tasks) => tasks.clone(),
            None => session
                .demo_file(&[path], "tasks.jsonl")?
                .ok_or_else(|| Failure::Usage("--prune-slice needs tasks: give them with --prune-tasks".to_owned()))?,
        };
        let tasks = TaskSet::read(&tasks)?.sample(self.prune_items.max(1));
        Ok(Some(SliceLimit::new(&tasks, slice, self.prune_max_loss)?))
    }

    /// A text that was given, or the demo's own.
    fn text(
        &self,
        session: &Session,
        path: &Path,
        given: Option<&Path>,
        own: &str,
        option: &str,
    ) -> Result<TextSource> {
        let text = match given {
            Some(text) => text.to_owned(),
            None => session.demo_file(&[path], own)?.ok_or_else(|| {
                Failure::Usage(format!("the score {} needs a text: give one with {option}", self.score.name()))
            })?,
        };
        Ok(TextSource::read(&text)?)
    }

    fn windows(&self, checkpoint: &Checkpoint, text: &TextSource) -> Result<Sample> {
        let options = SampleOptions { context: None, max_windows: Some(self.windows) };
        let codec = Tokenizer::of_checkpoint(checkpoint)?;
        Ok(Sample::new(text, &codec, checkpoint.require_config()?, &options)?)
    }

    fn sample(
        &self,
        session: &Session,
        path: &Path,
        checkpoint: &Checkpoint,
        calibration: Option<&Path>,
    ) -> Result<Option<Sample>> {
        if !self.score.needs_sample() {
            return Ok(None);
        }
        let text = self.text(session, path, calibration, "calibration.txt", "--calibration")?;
        Ok(Some(self.windows(checkpoint, &text)?))
    }

    /// How many channels of each layer go together: what the blocks of its `down` hold.
    fn multiples(&self, checkpoint: &Checkpoint, plan: &Plan) -> Result<Vec<usize>> {
        let layers = checkpoint.require_config()?.layers.len();
        if let Some(multiple) = self.multiple {
            return Ok(vec![multiple.max(1); layers]);
        }
        let mut multiples = vec![1; layers];
        for decision in &resolve(plan, checkpoint)?.decisions {
            let tensor = &checkpoint.tensors[decision.tensor_index];
            if let (Some(layer), true) = (tensor.layer, tensor.name.ends_with(".mlp.down_proj.weight")) {
                multiples[layer] = decision.dtype.block_len();
            }
        }
        Ok(multiples)
    }

    fn section(&self, structure: &Structure, scores: Option<UnitScores>, means: Option<PathBuf>) -> PruneSection {
        let (old, new) = (&structure.original, &structure.config);
        let pairs = || structure.layers.iter().zip(&new.layers).map(|(kept, left)| (&old.layers[kept.source], left));
        PruneSection {
            score: scores.as_ref().map_or_else(|| "by name".to_owned(), |scores| scores.metric.clone()),
            label: scores.as_ref().map_or(Label::Predicted, |scores| scores.label).name(),
            text_hash: scores.as_ref().and_then(|scores| scores.text_hash.clone()),
            tokens: scores.map_or(0, |scores| scores.tokens),
            removed_layers: old.layers.len() - new.layers.len(),
            removed_kv_groups: pairs().map(|(old, new)| old.kv_heads - new.kv_heads).sum(),
            removed_heads: pairs().map(|(old, new)| old.heads - new.heads).sum(),
            removed_channels: pairs().map(|(old, new)| old.mlp_channels - new.mlp_channels).sum(),
            old_layer_weights: old.layer_weights(),
            new_layer_weights: new.layer_weights(),
            old_multiplies_per_token: old.multiplies_per_token(),
            new_multiplies_per_token: new.multiplies_per_token(),
            old_kv_bytes_per_token: old.kv_bytes_per_token(),
            new_kv_bytes_per_token: new.kv_bytes_per_token(),
            steps: Vec::new(),
            is_stopped: false,
            refused_step: None,
            means,
        }
    }
}

/// A schedule that was run, and what it started from.
struct Steps {
    schedule: Schedule,
    start: Removal,
    start_means: Option<Arc<InputMeans>>,
}

impl Steps {
    /// The means of what goes in the end.
    fn means(&self) -> Option<&InputMeans> {
        match self.schedule.steps.last() {
            Some(step) => step.means.as_deref(),
            None => self.start_means.as_deref(),
        }
    }
}

/// Writes the means that a plan needs beside its file, and names them in the plan.
fn keep_means(means: &InputMeans, plan_file: &Path, plan: &mut Plan) -> Result<PathBuf> {
    let path = plan_file.with_extension("means.safetensors");
    means.write(&path)?;
    // Beside the plan, so by its name alone.
    plan.set_means(path.file_name().map(PathBuf::from));
    Ok(path)
}

/// Writes the plan of a step and answers what was written.
fn keep_step(checkpoint: &Checkpoint, plan: &Plan, step: &Step, file: &Path) -> Result<String> {
    let mut plan = plan.clone();
    plan.set_removal(checkpoint, step.removal.clone())?;
    if let Some(means) = &step.means {
        keep_means(means, file, &mut plan)?;
    }
    let toml = plan.to_toml();
    write_file(file, &toml)?;
    Ok(toml)
}

impl PruneSection {
    /// The section in words.
    pub(super) fn text(&self) -> String {
        let percent = |new: u64, old: u64| format!("{:.1} %", 100.0 * new as f64 / old.max(1) as f64);
        let mut text = format!(
            "Taken away: {} layers; of the others {} KV groups, {} query heads and {} MLP channels; by {} ({}).\n\
             Left: {} of {} weights of layers ({}), {} of the multiply-adds of a token, {} of its KV cache.\n",
            self.removed_layers,
            self.removed_kv_groups,
            self.removed_heads,
            self.removed_channels,
            self.score,
            self.label,
            units::count(self.new_layer_weights),
            units::count(self.old_layer_weights),
            percent(self.new_layer_weights, self.old_layer_weights),
            percent(self.new_multiplies_per_token, self.old_multiplies_per_token),
            percent(self.new_kv_bytes_per_token, self.old_kv_bytes_per_token),
        );
        let told = |step: &Step| {
            let slice = step.slice.as_ref().map_or_else(String::new, |slice| {
                format!(
                    ", {}/{} loses {:.1} ± {:.1} points of {} items",
                    slice.task,
                    slice.slice,
                    slice.loss * 100.0,
                    slice.loss_stderr * 100.0,
                    slice.n
                )
            });
            format!(
                "Step {}: {} weights of layers, KLD {} ± {} nats{slice} (measured, weights only)\n",
                step.index,
                units::count(step.layer_weights),
                units::significant(step.kld),
                units::significant(step.kld_stderr)
            )
        };
        self.steps.iter().for_each(|step| text.push_str(&told(step)));
        if let Some(step) = &self.refused_step {
            text.push_str(&format!("Not taken, because it would pass the limit: {}", told(step)));
        }
        if let Some(means) = &self.means {
            text.push_str(&format!("Mean inputs written to {}\n", means.display()));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_scores_are_read_and_mistakes_answered() {
        assert_eq!(share("0.25"), Ok(0.25));
        assert!(share("1").is_err() && share("-0.1").is_err() && share("a").is_err());
        assert_eq!(metric("flap"), Ok(Metric::Flap));
        assert!(metric("flop").is_err_and(|message| message.contains("mask_gradient")));
    }
}
