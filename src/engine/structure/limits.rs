//! What a slice of tasks may lose while units go.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::error::{Fault, Result, Stage};
use crate::model::{Model, Tokenizer};
use crate::progress::Progress;
use crate::scoring::{TaskSet, mean_and_stderr, task_scores};

/// A limit on what one slice, or each of all, may lose.
#[derive(Clone, Debug)]
pub struct SliceLimit {
    /// Its items.
    tasks: TaskSet,
    /// The most that its mean score may fall by, as a fraction.
    pub max_loss: f64,
}

impl SliceLimit {
    /// A limit on the slice called `name`, as `slice` or `task/slice`; `*` is each of all slices.
    ///
    /// # Errors
    /// A slice that no item has, with those there are.
    pub fn new(tasks: &TaskSet, name: &str, max_loss: f64) -> Result<Self> {
        let mut own = tasks.clone();
        if name != "*" {
            own.items = tasks.items.of_slices(|slice| slice.slice == name || slice.name() == name);
        }
        if own.items.is_empty() {
            let known: BTreeSet<String> = tasks.items.slices().map(|slice| slice.name()).collect();
            let known: Vec<String> = known.into_iter().collect();
            return Err(Fault::new(Stage::Tasks, format!("no item is of the slice {name:?}"))
                .fix(format!("the slices are {}, or * for each of them", known.join(", ")))
                .file(&tasks.path)
                .into());
        }
        Ok(Self { tasks: own, max_loss })
    }
}

/// What a slice lost against the whole model, item by item.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SliceLoss {
    /// Its task.
    pub task: String,
    /// Its name.
    pub slice: String,
    /// Items.
    pub n: usize,
    /// By how much its mean score fell, as a fraction; negative where it rose.
    pub loss: f64,
    /// Standard error of that over its items, paired.
    pub loss_stderr: f64,
}

/// What the whole model makes of the items.
pub(super) struct Baseline<'a> {
    limit: &'a SliceLimit,
    codec: Tokenizer,
    /// Of every item.
    scores: Vec<f64>,
}

impl<'a> Baseline<'a> {
    pub(super) fn new(
        checkpoint: &Checkpoint,
        whole: &Model,
        limit: &'a SliceLimit,
        progress: &Progress,
    ) -> Result<Self> {
        let codec = Tokenizer::of_checkpoint(checkpoint)?;
        let scores = task_scores(whole, &codec, &limit.tasks, progress)?;
        Ok(Self { limit, codec, scores })
    }

    /// What the slice loses, or that of all which loses most; the first of equals.
    pub(super) fn loss(&self, pruned: &Model, progress: &Progress) -> Result<SliceLoss> {
        let items = &self.limit.tasks.items;
        let scores = task_scores(pruned, &self.codec, &self.limit.tasks, progress)?;
        let mut slices: Vec<Vec<f64>> = vec![Vec::new(); items.labels()];
        for (index, (before, after)) in self.scores.iter().zip(&scores).enumerate() {
            slices[items.label(index)].push(before - after);
        }
        let mut worst: Option<SliceLoss> = None;
        for (label, lost) in slices.iter().enumerate().filter(|(_, lost)| !lost.is_empty()) {
            let (loss, loss_stderr) = mean_and_stderr(lost.iter().copied());
            if worst.as_ref().is_none_or(|worst| loss > worst.loss) {
                let slice = items.slice(label);
                worst = Some(SliceLoss {
                    task: slice.task.to_owned(),
                    slice: slice.slice.to_owned(),
                    n: lost.len(),
                    loss,
                    loss_stderr,
                });
            }
        }
        worst.ok_or_else(|| Fault::new(Stage::Tasks, "there is no item to watch").fix("choose tasks").into())
    }
}
