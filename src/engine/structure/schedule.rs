//! Pruning in steps: a little, scored anew, measured, until a share is reached or a limit would be passed.
//!
//! Every step is a removal of the checkpoint's own units that can be kept, and a schedule can go on from
//! any of them: steps that take nothing more than has gone already are passed over, so that a schedule that was
//! stopped goes on with the step it was at. The share of step k of n is `s (1 − (1 − k/n)³)`, most at first
//! (Zhu and Gupta, "To prune, or not to prune", 2017). What a step costs is measured: the mean KL divergence of the
//! next-token distribution from the whole model's, and what slices of tasks lose against it, weights only.
//!
//! With compensation each step keeps the mean of what it takes as biases, by the means of the model that the step
//! began with: units that went earlier keep the means that they had then.

use std::sync::Arc;

use serde::Serialize;

use super::limits::{Baseline, SliceLimit, SliceLoss};
use super::{Activations, InputMeans, LayerScores, Metric, Sample, ScoreOptions, Take, UnitScores, scores, select};
use crate::checkpoint::{Checkpoint, LayerUnits, Removal, Role, Structure};
use crate::device::Device;
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
    /// No step whose watched slice loses more than it may is kept.
    pub slice: Option<SliceLimit>,
    /// Whether biases keep the mean of what goes.
    pub compensate: bool,
    /// Where to go on: what goes already.
    pub start: Removal,
    /// The means of what goes already, where biases keep them.
    pub start_means: Option<Arc<InputMeans>>,
    /// Where the models run that score and measure.
    pub device: Device,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    /// From 1.
    pub index: usize,
    /// All that goes, this step's units and those before.
    #[serde(skip)]
    pub removal: Removal,
    /// What biases keep of it, where the schedule compensates.
    #[serde(skip)]
    pub means: Option<Arc<InputMeans>>,
    /// Weights of the linears that stay.
    pub layer_weights: u64,
    /// Mean KL divergence from the whole model, in nats a token; measured, weights only.
    pub kld: f64,
    /// Its standard error over windows.
    pub kld_stderr: f64,
    /// What computed.
    pub device: String,
    /// What the watched slice loses, where one is; of several the one that loses most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slice: Option<SliceLoss>,
}

/// What became of a schedule.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Schedule {
    /// The steps that were kept, in order.
    pub steps: Vec<Step>,
    /// The step that would have passed a limit, if one did.
    pub refused: Option<Step>,
}

/// Runs a schedule; `sample` is scored on, `held_out` is measured on, and each step is handed to `on_step`.
///
/// # Errors
/// As [`scores`] and [`super::select()`], no steps at all, a slice that no task has, or cancel; the steps before it
/// were handed out.
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
    let load = |checkpoint: &Checkpoint| Model::load_on(checkpoint, &options.device, progress);
    let whole = load(checkpoint)?;
    let slices = options.slice.as_ref().map(|limit| Baseline::new(checkpoint, &whole, limit, progress)).transpose()?;
    let mut structure = Structure::new(config, &options.start).map_err(illegal)?;
    let mut removal = structure.removal();
    let mut means = options.start_means.clone().unwrap_or_default();
    let mut scored: Option<UnitScores> = None;
    let mut found = Schedule::default();
    for index in 1..=options.steps {
        let known = match scored.take() {
            Some(known) => known,
            None => {
                let view = left_by(checkpoint, &structure, options.compensate.then_some(&*means), progress)?;
                let score_options =
                    ScoreOptions { sample: Some(sample), seed: options.seed, device: Some(&options.device) };
                let (own, seen) = scores(&view, options.metric, &score_options, progress)?;
                if options.compensate {
                    let seen = match seen {
                        Some(seen) => seen,
                        None => Activations::watch(&load(&view)?, sample, progress)?.means(),
                    };
                    means = Arc::new(in_original_means(&structure, &seen, &means));
                }
                in_original(&structure, &own)
            }
        };
        let mut next = select(config, &known, &step_of(&options.take, index, options.steps), multiple)?;
        next.add(&removal);
        let next_structure = Structure::new(config, &next).map_err(illegal)?;
        let next = next_structure.removal();
        if next == removal {
            scored = Some(known);
            continue;
        }
        let view = left_by(checkpoint, &next_structure, options.compensate.then_some(&*means), progress)?;
        let pruned = load(&view)?;
        let (kld, kld_stderr) = divergence(&whole, &pruned, held_out, progress)?;
        let slice = slices.as_ref().map(|slices| slices.loss(&pruned, progress)).transpose()?;
        let is_over = options.max_kld.is_some_and(|most| kld > most)
            || slice.as_ref().zip(options.slice.as_ref()).is_some_and(|(slice, limit)| slice.loss > limit.max_loss);
        let step = Step {
            index,
            removal: next.clone(),
            means: options.compensate.then(|| Arc::clone(&means)),
            layer_weights: next_structure.config.layer_weights(),
            kld,
            kld_stderr,
            device: pruned.device(),
            slice,
        };
        if is_over {
            found.refused = Some(step);
            break;
        }
        on_step(&step);
        found.steps.push(step);
        (removal, structure) = (next, next_structure);
    }
    Ok(found)
}

/// The checkpoint without what goes, with the biases that keep its means.
fn left_by(
    checkpoint: &Checkpoint,
    structure: &Structure,
    means: Option<&InputMeans>,
    progress: &Progress,
) -> Result<Checkpoint> {
    let biases = match means {
        Some(means) if !structure.is_whole() => means.biases(checkpoint, structure, progress)?,
        _ => Vec::new(),
    };
    Ok(checkpoint.pruned(structure, biases))
}

/// Means of what is left at the places of the original's columns; what went keeps the means of `before`.
fn in_original_means(structure: &Structure, seen: &InputMeans, before: &InputMeans) -> InputMeans {
    let mut merged = before.clone();
    let width = structure.original.head_dim;
    for (new, kept) in structure.layers.iter().enumerate() {
        let shape = &structure.original.layers[kept.source];
        let heads: Vec<usize> = kept.heads.iter().flat_map(|head| head * width..(head + 1) * width).collect();
        let linears = [(Role::O, shape.heads * width, heads), (Role::Down, shape.mlp_channels, kept.channels.clone())];
        for (role, count, places) in linears {
            let Some(own) = seen.linears.get(&(new, role)) else { continue };
            let target = merged.linears.entry((kept.source, role)).or_default();
            target.resize(count, 0.0);
            places.iter().zip(own).for_each(|(&place, &mean)| target[place] = mean);
        }
    }
    merged
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
    use crate::scoring::{TaskSet, TextSource};
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
            slice: None,
            compensate: false,
            start: Removal::default(),
            start_means: None,
            device: Device::default(),
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
        // Going on from the second step gives the third, and from the third nothing.
        let resumed = ScheduleOptions { start: found.steps[1].removal.clone(), ..options(3) };
        let resumed = run(&resumed);
        assert_eq!((resumed.steps.len(), &resumed.steps[0]), (1, last));
        assert_eq!(run(&ScheduleOptions { start: last.removal.clone(), ..options(3) }).steps, []);
        let limited = ScheduleOptions { max_kld: Some((found.steps[0].kld + found.steps[1].kld) / 2.0), ..options(3) };
        let limited = run(&limited);
        assert_eq!(limited.steps.len(), 1);
        assert_eq!(limited.refused.map(|step| step.index), Some(2));
    }

    #[test]
    fn biases_keep_the_means_of_the_model_that_a_step_began_with() {
        let (demo, sample) = demo();
        let progress = Progress::default();
        let run = |options: &ScheduleOptions| {
            schedule(&demo, &sample, &sample, options, &|_| 8, &progress, &mut |_| ()).expect("runs")
        };
        let options = ScheduleOptions { compensate: true, ..options(2) };
        let found = run(&options);
        let config = demo.require_config().expect("config");
        let means_of = |view: &Checkpoint| {
            let model = Model::load(view, &progress).expect("loads");
            Activations::watch(&model, &sample, &progress).expect("watches").means()
        };
        let whole = means_of(&demo);
        let [first, second] = &found.steps[..] else { panic!("two steps") };
        let (early, late) = (first.means.as_ref().expect("kept"), second.means.as_ref().expect("kept"));
        assert_eq!(**early, whole, "the first step begins with the whole model");
        // The second begins with what the first left, biases included.
        let structure = Structure::new(config, &first.removal).expect("legal");
        let biases = early.biases(&demo, &structure, &progress).expect("computes");
        let left = means_of(&demo.pruned(&structure, biases));
        for (new, kept) in structure.layers.iter().enumerate() {
            let all = &late.linears[&(kept.source, Role::Down)];
            let gone = (0..512).filter(|channel| kept.channels.binary_search(channel).is_err());
            for channel in gone {
                assert_eq!(all[channel], whole.linears[&(kept.source, Role::Down)][channel]);
            }
            let own: Vec<f32> = kept.channels.iter().map(|&channel| all[channel]).collect();
            assert_eq!(own, left.linears[&(new, Role::Down)]);
            assert_ne!(own, kept.channels.iter().map(|&at| whole.linears[&(new, Role::Down)][at]).collect::<Vec<_>>());
        }
        // A stopped schedule goes on as if it had not been.
        let resumed =
            ScheduleOptions { start: first.removal.clone(), start_means: first.means.clone(), ..options.clone() };
        assert_eq!(run(&resumed).steps, found.steps[1..]);
        assert_ne!(second.kld, run(&ScheduleOptions { compensate: false, ..options }).steps[1].kld, "biases count");
    }

    #[test]
    fn a_slice_that_would_lose_too_much_stops_the_schedule() {
        let (demo, sample) = demo();
        let progress = Progress::default();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo");
        let tasks = TaskSet::read(&folder.join("tasks.jsonl")).expect("reads").sample(12);
        let run = |slice: &str, max_loss: f64| {
            let limit = SliceLimit::new(&tasks, slice, max_loss);
            let slice = Some(limit?);
            schedule(&demo, &sample, &sample, &ScheduleOptions { slice, ..options(3) }, &|_| 8, &progress, &mut |_| ())
        };
        let free = run("recall/long context", 1.0).expect("runs");
        assert_eq!(free.steps.len(), 3);
        let losses: Vec<f64> = free.steps.iter().map(|step| step.slice.as_ref().expect("watched").loss).collect();
        assert!(losses[2] > 0.2, "{losses:?}");
        let limited = run("recall/long context", losses[2] - 0.01).expect("runs");
        assert!(limited.steps.len() < 3 && limited.refused.is_some());
        let slice = free.steps[0].slice.as_ref().expect("watched");
        assert_eq!((slice.task.as_str(), slice.slice.as_str(), slice.n), ("recall", "long context", 12));
        // Of all slices, the one that loses most.
        let worst = run("*", 1.0).expect("runs");
        assert!(worst.steps[2].slice.as_ref().expect("watched").loss >= losses[2]);
        let message = run("recall/nowhere", 0.1).expect_err("refused").to_string();
        assert!(message.contains("long context"), "{message}");
    }
}
