//! Runs that show what linears multiply, and go on where a device fails half way.

use std::cell::{Cell, RefCell};

use super::backend::Backend;
use super::graph::on_graph;
use super::llama::{Hooks, Llama, Start};
use super::{Batch, Model, guard};
use crate::checkpoint::Role;
use crate::error::{Fault, Result, Stage};
use crate::progress::Progress;

/// Rows that some linears are about to multiply.
#[derive(Clone, Copy, Debug)]
pub struct LinearInput<'a> {
    /// The layer; none for the head.
    pub layer: Option<usize>,
    /// The linears that share this input.
    pub roles: &'a [Role],
    /// Length of a row.
    pub width: usize,
    /// One row a token of the batch.
    pub values: &'a [f32],
}

impl Model {
    /// Runs a batch without caches and shows `watch` what every linear multiplies, the head last.
    ///
    /// # Errors
    /// A token beyond the vocabulary, or cancel.
    pub fn watch_linears(
        &self,
        batch: &Batch,
        progress: &Progress,
        watch: &mut dyn FnMut(LinearInput<'_>),
    ) -> Result<()> {
        self.watched(batch, &Way::Whole, progress, watch).map(|_| ())
    }

    /// Runs a batch and watches it. A device that fails half way has shown some inputs, which were taken in already:
    /// the CPU shows those after them.
    fn watched(
        &self,
        batch: &Batch,
        way: &Way<'_>,
        progress: &Progress,
        watch: &mut dyn FnMut(LinearInput<'_>),
    ) -> Result<Vec<f32>> {
        let shown = Shown::default();
        let done = on_graph!(self, &mut [], graph => watching(graph, batch, way, progress, &shown, watch));
        if shown.is_continued.get() {
            self.graph.worked();
        }
        done
    }

    /// Runs a batch without caches up to what layer `end` is given, which it answers, tokens × hidden, and shows
    /// `watch` what the linears on the way multiply. The way begins at the tokens, or at a layer that `from` names
    /// with what it is given. A run in parts gives the values of a whole one to the last bit.
    ///
    /// # Errors
    /// Layers that the model does not have, states of another batch, a token beyond the vocabulary, or cancel.
    pub fn watch_layers(
        &self,
        batch: &Batch,
        from: Option<(usize, &[f32])>,
        end: usize,
        progress: &Progress,
        watch: &mut dyn FnMut(LinearInput<'_>),
    ) -> Result<Vec<f32>> {
        let layers = self.config.layers.len();
        let is_part = end <= layers && from.is_none_or(|(first, _)| first <= end);
        if !is_part || from.is_some_and(|(_, states)| states.len() != batch.ids.len() * self.config.hidden) {
            let first = from.map_or(0, |(first, _)| first);
            let cause = format!("no run of this batch goes from layer {first} to {end} of {layers}");
            let remedy = "begin with what that layer was given by the same batch";
            return Err(Fault::new(Stage::Model, cause).fix(remedy).into());
        }
        self.watched(batch, &Way::To { from, end }, progress, watch)
    }
}

/// How far a watched run goes.
enum Way<'a> {
    /// From the tokens to the head.
    Whole,
    /// From the tokens, or a layer with what it is given, to what another layer is given.
    To { from: Option<(usize, &'a [f32])>, end: usize },
}

/// How far a run was watched, on whatever device.
#[derive(Default)]
struct Shown {
    count: Cell<usize>,
    /// True if a second run went on where the first had failed.
    is_continued: Cell<bool>,
}

/// Answers the states where the way ends; none after the head. What was `shown` before is not shown again: every
/// run shows the same inputs in the same order.
fn watching<B: Backend>(
    graph: &Llama<B>,
    batch: &Batch,
    way: &Way<'_>,
    progress: &Progress,
    shown: &Shown,
    watch: &mut dyn FnMut(LinearInput<'_>),
) -> Result<Vec<f32>> {
    let tokens = batch.ids.len().max(1);
    let before = shown.count.get();
    shown.is_continued.set(before > 0);
    let met = Cell::new(0);
    // The graph only lends its hooks, so the caller's state changes behind a cell.
    let watch = RefCell::new(watch);
    let show = |layer: Option<usize>, roles: &[Role], rows: &B::Rows| {
        met.set(met.get() + 1);
        if met.get() <= before {
            return Ok(());
        }
        let values = graph.backend.rows_to(rows)?;
        shown.count.set(met.get());
        let input = LinearInput { layer, roles, width: values.len() / tokens, values: &values };
        guard::of_caller(|| (watch.borrow_mut())(input));
        Ok(())
    };
    let in_layer = |layer: usize, roles: &[Role], rows: &B::Rows| show(Some(layer), roles, rows);
    let mut hooks = Hooks { linear_input: Some(&in_layer), progress: Some(progress), ..Hooks::default() };
    match *way {
        Way::Whole => {
            let rows = graph.run(batch, &mut [], Start::Embedding, &mut hooks)?;
            show(None, &[Role::Head], &rows).map(|()| Vec::new())
        }
        Way::To { from, end } => {
            let rows = |states: &[f32]| graph.backend.rows_from(states.to_vec(), graph.config.hidden);
            let from = from.map(|(layer, states)| rows(states).map(|rows| (layer, rows))).transpose()?;
            graph.backend.rows_into(graph.run_to(batch, from, end, &mut hooks)?)
        }
    }
}
