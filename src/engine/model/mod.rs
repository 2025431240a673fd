//! Our own config-driven decoder.
//!
//! One graph per family (`llama.rs`) over a small trait of operations ([`backend`]). [`Batch`] packs
//! many sequences into one run: the linears see all tokens at once, attention keeps the sequences
//! apart. Families and devices are each one file.

pub mod backend;
pub mod candle;
mod gguf_tokenizer;
mod gradients;
mod llama;
mod load;
mod native;
mod tokenizer;

pub use backend::{Site, StoredMatrix};
pub use gradients::{Differentiable, Labels};
pub use native::Native;
pub use tokenizer::{TextStream, Tokenizer};

use self::backend::Backend as _;
use self::llama::{Hooks, Llama};
use super::checkpoint::{Checkpoint, ModelConfig, Role};
use super::error::Result;
use super::progress::Progress;

/// A run of consecutive tokens of one sequence within a [`Batch`].
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// First token within [`Batch::ids`].
    pub start: usize,
    /// Number of tokens.
    pub len: usize,
    /// An earlier segment of the same batch that this one continues and attends to: many choices
    /// can share one prompt.
    pub parent: Option<usize>,
    /// Index of the cache that holds what came before and receives these tokens.
    pub cache: Option<usize>,
}

/// Token runs computed together.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// All tokens, segment after segment.
    pub ids: Vec<u32>,
    /// The runs.
    pub segments: Vec<Segment>,
}

impl Batch {
    /// Adds a run of tokens and answers its index; `parent` is the index of an earlier one.
    pub fn push(&mut self, ids: &[u32], parent: Option<usize>, cache: Option<usize>) -> usize {
        let start = self.ids.len();
        self.ids.extend_from_slice(ids);
        self.segments.push(Segment { start, len: ids.len(), parent, cache });
        self.segments.len() - 1
    }

    /// The ancestors of a segment, oldest first, and the segment itself last.
    pub fn lineage<'s>(&'s self, segment: &'s Segment) -> Vec<&'s Segment> {
        let mut line = vec![segment];
        let mut parent = segment.parent;
        while let Some(index) = parent {
            line.push(&self.segments[index]);
            parent = self.segments[index].parent.filter(|&older| older < index);
        }
        line.reverse();
        line
    }

    /// The position of every token in its own sequence.
    pub(super) fn positions(&self, caches: &[KvCache]) -> Vec<usize> {
        let mut positions = vec![0; self.ids.len()];
        for segment in &self.segments {
            let cached = |segment: &Segment| segment.cache.map_or(0, |cache| caches[cache].len);
            let line = self.lineage(segment);
            let before: usize = line.iter().map(|older| cached(older) + older.len).sum::<usize>() - segment.len;
            for (index, position) in positions[segment.start..segment.start + segment.len].iter_mut().enumerate() {
                *position = before + index;
            }
        }
        positions
    }
}

/// Keys and values of one sequence, layer by layer, tokens × (KV heads × head width), after rotation.
#[derive(Clone, Debug, Default)]
pub struct KvCache {
    pub(super) layers: Vec<(Vec<f32>, Vec<f32>)>,
    pub(super) len: usize,
}

impl KvCache {
    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// A matrix that can stand in for one of a model's own in [`Model::hidden_with`].
#[derive(Debug)]
pub struct Replacement {
    site: Site,
    linear: native::Linear,
}

impl Replacement {
    /// Prepares `stored` to stand in at `site`.
    pub fn new(site: Site, stored: StoredMatrix) -> Result<Self> {
        Ok(Self { site, linear: Native.matrix(stored)? })
    }
}

/// Inputs of every layer of one run, kept so that a change in a later layer need not repeat the earlier ones.
#[derive(Debug, Default)]
pub struct LayerInputs {
    rows: Vec<native::Rows>,
}

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

/// A decoder ready to run.
#[derive(Debug)]
pub struct Model {
    /// The shape it was built from.
    pub config: ModelConfig,
    graph: Llama<Native>,
}

impl Model {
    /// Loads the weights as stored: quantized tensors stay packed, 16-bit ones stay 16-bit.
    pub fn load(checkpoint: &Checkpoint, progress: &Progress) -> Result<Self> {
        let graph = load::llama(checkpoint, Native, progress)?;
        Ok(Self { config: graph.config.clone(), graph })
    }

    /// Runs a batch and answers the hidden states after the final norm, tokens × hidden.
    ///
    /// # Errors
    /// A token beyond the vocabulary, or cancel; caches are then of no more use.
    pub fn hidden(&self, batch: &Batch, caches: &mut [KvCache], progress: &Progress) -> Result<Vec<f32>> {
        let mut hooks = Hooks { progress: Some(progress), ..Hooks::default() };
        let rows = self.graph.run(batch, caches, None, &mut hooks)?;
        Ok(rows.into_values())
    }

    /// Runs a batch without caches and keeps the input of every layer.
    pub fn hidden_keeping_inputs(&self, batch: &Batch, progress: &Progress) -> Result<(Vec<f32>, LayerInputs)> {
        let mut inputs = LayerInputs::default();
        let mut keep = |_: usize, rows: &native::Rows| inputs.rows.push(rows.clone());
        let mut hooks = Hooks { layer_input: Some(&mut keep), progress: Some(progress), ..Hooks::default() };
        let rows = self.graph.run(batch, &mut [], None, &mut hooks)?;
        Ok((rows.into_values(), inputs))
    }

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
        let tokens = batch.ids.len().max(1);
        // The graph only lends its hooks, so the caller's state changes behind a cell.
        let watch = std::cell::RefCell::new(watch);
        let show = |layer: Option<usize>, roles: &[Role], rows: &native::Rows| {
            let values = self.graph.backend.rows_to(rows)?;
            (watch.borrow_mut())(LinearInput { layer, roles, width: values.len() / tokens, values: &values });
            Ok(())
        };
        let in_layer = |layer: usize, roles: &[Role], rows: &native::Rows| show(Some(layer), roles, rows);
        let mut hooks = Hooks { linear_input: Some(&in_layer), progress: Some(progress), ..Hooks::default() };
        let rows = self.graph.run(batch, &mut [], None, &mut hooks)?;
        show(None, &[Role::Head], &rows)
    }

    /// Runs a batch without caches with one matrix replaced, from its layer on where the inputs are known.
    pub fn hidden_with(
        &self,
        batch: &Batch,
        inputs: &LayerInputs,
        replacement: &Replacement,
        progress: &Progress,
    ) -> Result<Vec<f32>> {
        let from = replacement.site.layer.and_then(|layer| Some((layer, inputs.rows.get(layer)?.clone())));
        let swap = Some((replacement.site, &replacement.linear));
        let mut hooks = Hooks { swap, progress: Some(progress), ..Hooks::default() };
        Ok(self.graph.run(batch, &mut [], from, &mut hooks)?.into_values())
    }

    /// Logits of some rows of hidden states, rows × vocabulary.
    pub fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>> {
        let rows = self.graph.backend.rows_from(hidden.to_vec(), self.config.hidden)?;
        Ok(self.graph.logits(&rows, &Hooks::default())?.into_values())
    }

    /// [`Model::logits`] with one matrix replaced.
    pub fn logits_with(&self, hidden: &[f32], replacement: &Replacement) -> Result<Vec<f32>> {
        let rows = self.graph.backend.rows_from(hidden.to_vec(), self.config.hidden)?;
        let hooks = Hooks { swap: Some((replacement.site, &replacement.linear)), ..Hooks::default() };
        Ok(self.graph.logits(&rows, &hooks)?.into_values())
    }

    /// Bytes of weights held in memory.
    pub fn resident_bytes(&self) -> u64 {
        self.graph.matrix_bytes()
    }
}

#[cfg(test)]
mod tests;
