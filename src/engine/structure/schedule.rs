//! Pruning in steps: a little, scored anew, measured, until a share is reached or a limit would be passed.
//!
//! Every step is a removal of the checkpoint's own units that can be kept, and a schedule can go on from
//! any of them. The share of step k of n is `s (1 − (1 − k/n)³)`, most at first (Zhu and Gupta, "To prune, or
//! not to prune", 2017). What a step costs is measured: the mean KL divergence of the next-token
//! distribution from the whole model's, weights only.

use serde::Serialize;

use super::{LayerScores, Metric, Sample, ScoreOptions, Take, UnitScores, scores, select};
use crate::checkpoint::{Checkpoint, LayerUnits, Removal, Structure};
use crate::error::{Fault, Result, Stage};
use crate::kernels::ops;
use crate::model::{Batch, Model};
use crate::progress::{Phase, Progress, Unit};
use crate::scoring::mean_and_stderr;

/// How a schedule goes.
#[derive(Clone, Debug)]
pub struct ScheduleOptions {
    /// What units are taken by, scored anew before every step.
    pub metric: Metric,
    /// For [`Metric::Random`].
    pub seed: u64,
    /// What the last step leaves; its shares are those of the checkpoint's units.
    pub take: Take,
    /// Number of steps.
    pub steps: usize,
    /// No step that costs more than so many nats a token is kept.
    pub max_kld: Option<f64>,
    /// Where to go on: what goes already.
    pub start: Removal,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    /// From 1.
    pub index: usize,
    /// All that goes, this step's units and those before.
    #[serde(skip)]
    pub removal: Removal,
    /// Weights of the linears that stay.
    pub layer_weights: u64,
    /// Mean KL divergence from the whole model, in nats a token; measured, weights only.
    pub kld: f64,
    /// Its standard error over windows.
    pub kld_stderr: f64,
}

/// What became of a schedule.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// The steps that were kept, in order.
    pub steps: Vec<Step>,
    /// The step that would have passed the limit, if one did.
    pub refused: Option<Step>,
}

/// Runs a schedule; `sample` is scored on, `held_out` is measured on, and each step is handed to `on_step`.
///
/// # Errors
/// As [`scores`] and [`super::select()`], no steps at all, or cancel; the steps before it were handed out.
pub fn schedule(
    checkpoint: &Checkpoint,
    sample: &Sample,
    held_out: &Sample,
    options: &ScheduleOptions,
    multiple: &dyn Fn(usize) -> usize,
    progress: &Progress,
    on_step: &mut dyn FnMut(&Step),
) -> Result<Schedule> {
    if options.steps == 0 {
        return Err(Fault::new(Stage::Plan, "a schedule needs at least one step").fix("give a number of steps").into());
    }
    let config = checkpoint.require_config()?;
    let illegal = |fault: crate::checkpoint::IllegalRemoval| Fault::new(Stage::Plan, fault.cause).fix(fault.remedy);
    let whole = Model::load(checkpoint, progress)?;
    let mut removal = options.start.clone();
    let mut found = Schedule { steps: Vec::new(), refused: None };
    for index in 1..=options.steps {
        let structure = Structure::new(config, &removal).map_err(illegal)?;
        let view = checkpoint.pruned(&structure, Vec::new());
        let score_options = ScoreOptions { sample: Some(sample), seed: options.seed, device: None };
        let (scored, _) = scores(&view, options.metric, &score_options, progress)?;
        let scored = in_original(&structure, &scored);
        let next = select(config, &scored, &step_of(&options.take, index, options.steps), multiple)?;
        let structure = Structure::new(config, &next).map_err(illegal)?;
        let pruned = Model::load(&checkpoint.pruned(&structure, Vec::new()), progress)?;
        let (kld, kld_stderr) = divergence(&whole, &pruned, held_out, progress)?;
        let step =
            Step { index, removal: next.clone(), layer_weights: structure.config.layer_weights(), kld, kld_stderr };
        if options.max_kld.is_some_and(|most| kld > most) {
            found.refused = Some(step);
            break;
        }
        on_step(&step);
        found.steps.push(step);
        removal = next;
    }
    Ok(found)
}

/// The shares of a step.
fn step_of(take: &Take, index: usize, steps: usize) -> Take {
    let left = 1.0 - index as f64 / steps as f64;
    let done = 1.0 - left.powi(3);
    Take {
        kv_groups: take.kv_groups * done,
        heads: take.heads * done,
        channels: take.channels * done,
        layers: (take.layers as f64 * done).round() as usize,
        share: take.share,
    }
}

/// Scores of what is left at the places of the original's units; what went is below everything, so that it
/// is taken first again.
fn in_original(structure: &Structure, scores: &UnitScores) -> UnitScores {
    let gone = f64::NEG_INFINITY;
    let mut layers: Vec<LayerScores> = structure
        .original
        .layers
        .iter()
        .map(|shape| LayerScores {
            heads: vec![gone; shape.heads],
            kv_groups: vec![gone; shape.kv_heads],
            channels: vec![gone; shape.mlp_channels],
            layer: Some(gone),
            head_stderr: Vec::new(),
        })
        .collect();
    for (kept, own) in structure.layers.iter().zip(&scores.layers) {
        let target = &mut layers[kept.source];
        let lists = [
            (&kept.heads, &own.heads, &mut target.heads),
            (&kept.kv_heads, &own.kv_groups, &mut target.kv_groups),
            (&kept.channels, &own.channels, &mut target.channels),
        ];
        for (places, values, target) in lists {
            places.iter().zip(values).for_each(|(&place, &value)| target[place] = value);
        }
        target.layer = own.layer;
    }
    UnitScores { layers, ..scores.clone() }
}

/// Mean KL divergence of the second model's next-token distribution from the first's, with its standard
/// error over windows.
fn divergence(whole: &Model, pruned: &Model, sample: &Sample, progress: &Progress) -> Result<(f64, f64)> {
    progress.begin(Phase::MeasuringKld, sample.tokens(), Unit::Tokens);
    let mut means = Vec::with_capacity(sample.windows.len());
    for ids in &sample.windows {
        let mut batch = Batch::default();
        batch.push(ids, None, None);
        let logits = |model: &Model| model.logits(&model.hidden(&batch, &mut [], progress)?);
        let (base, changed) = (logits(whole)?, logits(pruned)?);
        let vocab = whole.config.vocab;
        let rows = base.chunks_exact(vocab).zip(changed.chunks_exact(vocab));
        let distances = rows.map(|(base, changed)| {
            ops::kl_divergence(base, ops::log_sum_exp(base), changed, ops::log_sum_exp(changed)).max(0.0)
        });
        means.push(distances.sum::<f64>() / ids.len().max(1) as f64);
        progress.advance(ids.len() as u64);
    }
    Ok(mean_and_stderr(means.iter().copied()))
}

impl Structure {
    /// What this structure leaves out, as a removal.
    pub fn removal(&self) -> Removal {
        let mut removal = Removal::default();
        for (source, shape) in self.original.layers.iter().enumerate() {
            let Some((_, kept)) = self.layer(source) else {
                removal.layers.insert(source);
                continue;
            };
            let without =
                |count: usize, kept: &[usize]| (0..count).filter(|unit| kept.binary_search(unit).is_err()).collect();
            let group = shape.heads / shape.kv_heads;
            let mut units = LayerUnits {
                kv_groups: without(shape.kv_heads, &kept.kv_heads),
                heads: without(shape.heads, &kept.heads),
                channels: without(shape.mlp_channels, &kept.channels),
            };
            let groups = units.kv_groups.clone();
            units.heads.retain(|head| !groups.contains(&(head / group)));
            if !units.is_empty() {
                removal.units.insert(source, units);
            }
        }
        removal
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::Tokenizer;
    use crate::scoring::TextSource;
    use crate::structure::SampleOptions;

    fn demo() -> (Checkpoint, Sample) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo");
        let demo = Checkpoint::open(&folder).expect("opens");
        let text = TextSource::read(&folder.join("calibration.txt")).expect("reads");
        let codec = Tokenizer::of_checkpoint(&demo).expect("tokenizer");
        let options = SampleOptions { context: Some(64), max_windows: Some(3) };
        let sample = Sample::new(&text, &codec, demo.require_config().expect("config"), &options).expect("cuts");
        (demo, sample)
    }

    fn options(steps: usize) -> ScheduleOptions {
        ScheduleOptions {
            metric: Metric::Flap,
            seed: 0,
            take: Take { kv_groups: 0.5, channels: 0.5, ..Take::default() },
            steps,
            max_kld: None,
            start: Removal::default(),
        }
    }

    #[test]
    fn steps_take_more_and_more_and_stop_at_the_limit() {
        let (demo, sample) = demo();
        let progress = Progress::default();
        let run = |options: &ScheduleOptions| {
            let mut told = 0;
            let found =
                schedule(&demo, &sample, &sample, options, &|_| 8, &progress, &mut |_| told += 1).expect("runs");
            assert_eq!(told, found.steps.len());
            found
        };
        let found = run(&options(3));
        assert_eq!(found.steps.len(), 3);
        for pair in found.steps.windows(2) {
            let mut both = pair[0].removal.clone();
            both.add(&pair[1].removal);
            assert_eq!(both, pair[1].removal, "what went stays away");
            assert!(pair[1].layer_weights < pair[0].layer_weights);
        }
        let last = &found.steps[2];
        assert!(last.kld > found.steps[0].kld);
        let structure = Structure::new(demo.require_config().expect("config"), &last.removal).expect("legal");
        assert!(structure.config.layers.iter().all(|layer| (layer.kv_heads, layer.mlp_channels) == (2, 256)));
        assert_eq!(structure.removal(), last.removal);
        // Going on from the second step gives the third.
        let resumed = ScheduleOptions { start: found.steps[1].removal.clone(), ..options(1) };
        assert_eq!(run(&resumed).steps[0].removal, last.removal);
        let limited = ScheduleOptions { max_kld: Some((found.steps[0].kld + found.steps[1].kld) / 2.0), ..options(3) };
        let limited = run(&limited);
        assert_eq!(limited.steps.len(), 1);
        assert_eq!(limited.refused.map(|step| step.index), Some(2));
    }
}
