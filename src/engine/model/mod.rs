//! Our own config-driven decoder.
//!
//! One graph per family (`llama.rs`) over a small trait of operations ([`backend`]). [`Batch`] packs
//! many sequences into one run: the linears see all tokens at once, attention keeps the sequences
//! apart. Families and devices are each one file.

mod ahead;
pub mod backend;
pub mod candle;
pub mod fit;
mod gguf_tokenizer;
mod gradients;
mod graph;
mod guard;
mod llama;
mod load;
mod native;
mod tokenizer;
mod watch;

pub use backend::{Site, StoredMatrix};
pub use gradients::{Differentiable, Labels};
pub use native::Native;
pub use tokenizer::{TextStream, Tokenizer};
pub use watch::LinearInput;

use std::borrow::Cow;
use std::sync::OnceLock;

use self::backend::Backend;
use self::candle::Candle;
use self::graph::{Graph, on_graph};
use self::llama::{Hooks, Llama, Place, Start};
use super::checkpoint::{Checkpoint, ModelConfig, Role};
use super::device::Device;
use super::error::{Fault, Result, Stage};
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
    /// The same where a device computes.
    pub(super) on_device: Vec<(candle_core::Tensor, candle_core::Tensor)>,
    pub(super) len: usize,
    /// The tokens held; fewer where some continue a segment that is not held, from the first of those on.
    pub(super) ids: Vec<u32>,
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

    /// Forgets the tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        for (keys, values) in &mut self.layers {
            keys.truncate(keys.len() / self.len * len);
            values.truncate(values.len() / self.len * len);
        }
        if len == 0 {
            self.on_device.clear();
        }
        for (keys, values) in &mut self.on_device {
            // The rows are there, so that this is a view and cannot fail.
            if let (Ok(fewer_keys), Ok(fewer_values)) = (keys.narrow(0, 0, len), values.narrow(0, 0, len)) {
                (*keys, *values) = (fewer_keys, fewer_values);
            }
        }
        self.len = len;
        self.ids.truncate(len);
    }

    /// Notes tokens whose keys and values are held now; `is_alone` if nothing but what is held comes before them.
    pub(super) fn extend(&mut self, ids: &[u32], is_alone: bool) {
        if is_alone && self.ids.len() == self.len {
            self.ids.extend_from_slice(ids);
        }
        self.len += ids.len();
    }

    /// Brings back what a device holds, for the CPU to go on with.
    ///
    /// # Errors
    /// A device that cannot be read; nothing is changed then.
    fn bring_back(&mut self, backend: &Candle) -> Result<()> {
        if self.len == 0 {
            self.on_device.clear();
            return Ok(());
        }
        // A run that failed may have added to some layers.
        let host = |rows: &candle_core::Tensor| {
            let rows = rows.narrow(0, 0, self.len).map_err(candle::failed)?;
            backend.rows_to(&rows)
        };
        let layers = self.on_device.iter().map(|(keys, values)| Ok((host(keys)?, host(values)?)));
        let layers = layers.collect::<Result<Vec<_>>>()?;
        if !layers.is_empty() {
            self.layers = layers;
            self.on_device.clear();
        }
        Ok(())
    }
}

/// A matrix that can stand in for one of a model's own.
#[derive(Debug)]
pub struct Replacement {
    site: Site,
    on_device: Option<(StoredMatrix, candle::Linear)>,
    on_cpu: OnceLock<native::Linear>,
}

impl Replacement {
    /// Prepares `stored` to stand in at `site` of `model`.
    ///
    /// # Errors
    /// A type without decoder, or a failure of the model's device: prepare it again for the CPU then.
    pub fn new(model: &Model, site: Site, stored: StoredMatrix) -> Result<Self> {
        let mut made = Self { site, on_device: None, on_cpu: OnceLock::new() };
        if let Some(device) = model.graph.device() {
            match guard::on_device(|| device.matrix(stored.clone())) {
                Ok(linear) => {
                    made.on_device = Some((stored, linear));
                    return Ok(made);
                }
                Err(err) if err.is_of_device() => {
                    model.graph.give_up(&err)?;
                }
                Err(err) => return Err(err),
            }
        }
        made.on_cpu = Native.matrix(stored)?.into();
        Ok(made)
    }

    /// Where it stands in.
    pub fn site(&self) -> Site {
        self.site
    }
}

/// A backend that replacements can be prepared for.
trait Swaps: Backend {
    fn of(replacement: &Replacement) -> Result<&Self::Linear>;
    fn states(inputs: &LayerInputs) -> &[LayerStates<Self::Rows>];
    fn keep(states: Vec<LayerStates<Self::Rows>>) -> LayerInputs;
}

impl Swaps for Native {
    fn of(replacement: &Replacement) -> Result<&native::Linear> {
        if let (None, Some((stored, _))) = (replacement.on_cpu.get(), &replacement.on_device) {
            let linear = Native.matrix(stored.clone())?;
            return Ok(replacement.on_cpu.get_or_init(|| linear));
        }
        replacement.on_cpu.get().ok_or_else(elsewhere)
    }

    fn states(inputs: &LayerInputs) -> &[LayerStates<native::Rows>] {
        if let LayerInputs::OnCpu(states) = inputs { states } else { &[] }
    }

    fn keep(states: Vec<LayerStates<native::Rows>>) -> LayerInputs {
        LayerInputs::OnCpu(states)
    }
}

impl Swaps for Candle {
    fn of(replacement: &Replacement) -> Result<&candle::Linear> {
        replacement.on_device.as_ref().map(|(_, linear)| linear).ok_or_else(elsewhere)
    }

    fn states(inputs: &LayerInputs) -> &[LayerStates<candle_core::Tensor>] {
        if let LayerInputs::OnDevice(states) = inputs { states } else { &[] }
    }

    fn keep(states: Vec<LayerStates<candle_core::Tensor>>) -> LayerInputs {
        LayerInputs::OnDevice(states)
    }
}

fn elsewhere() -> super::error::Error {
    Fault::new(Stage::Model, "a matrix was prepared for another device than the model runs on")
        .fix("prepare it for this model")
        .into()
}

/// What a run changes of a model, in memory and for that run alone.
#[derive(Debug, Default)]
pub struct Change {
    /// Matrices that stand in for the model's own.
    pub replacements: Vec<Replacement>,
    /// Layers that hand on what they are given.
    pub removed_layers: Vec<usize>,
    /// By layer, one factor per query head: 0 silences a head, as if its columns of `o` were zero.
    pub head_factors: Vec<(usize, Vec<f32>)>,
}

impl From<Replacement> for Change {
    fn from(replacement: Replacement) -> Self {
        Self { replacements: vec![replacement], ..Self::default() }
    }
}

/// How much of a run is kept, so that a change need not repeat what comes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kept {
    /// Nothing: every run starts at the tokens.
    Nothing,
    /// The input of every layer.
    Layers,
    /// The rows within every layer too: what the heads give, the stream between, what `down` multiplies.
    Everything,
}

/// Rows of one layer in an unchanged run.
#[derive(Debug)]
pub struct LayerStates<R> {
    input: Option<R>,
    mixed: Option<R>,
    middle: Option<R>,
    gated: Option<R>,
}

impl<R> Default for LayerStates<R> {
    fn default() -> Self {
        Self { input: None, mixed: None, middle: None, gated: None }
    }
}

/// Rows of an unchanged run, layer by layer, that changed runs start from.
#[derive(Debug)]
pub enum LayerInputs {
    /// In memory.
    OnCpu(Vec<LayerStates<native::Rows>>),
    /// On the device that computes.
    OnDevice(Vec<LayerStates<candle_core::Tensor>>),
}

impl Default for LayerInputs {
    fn default() -> Self {
        Self::OnCpu(Vec::new())
    }
}

impl LayerInputs {
    /// What layer `index` was given, tokens × hidden; one past the last layer, what the final norm was given.
    pub fn input(&self, index: usize) -> Option<Cow<'_, [f32]>> {
        match self {
            Self::OnCpu(layers) => Some(layers.get(index)?.input.as_ref()?.values().into()),
            Self::OnDevice(layers) => {
                let rows = layers.get(index)?.input.as_ref()?;
                // A device that fails here is told of by the next run.
                rows.flatten_all().and_then(|flat| flat.to_vec1()).ok().map(Cow::Owned)
            }
        }
    }
}

/// The last place before `change` has an effect.
fn start<R: Clone>(layers: &[LayerStates<R>], change: &Change) -> Start<R> {
    /// The place of a layer's rows that a changed linear needs: later is better.
    fn depth(role: Role) -> usize {
        match role {
            Role::Q | Role::K | Role::V => 0,
            Role::O => 1,
            Role::Gate | Role::Up => 2,
            _ => 3,
        }
    }
    let swapped = change.replacements.iter().map(|own| match own.site {
        Site { layer: Some(layer), role } => Some((layer, depth(role))),
        // The head multiplies what the last layer gives.
        Site { role: Role::Head, .. } => Some((layers.len(), 0)),
        Site { .. } => None,
    });
    let removed = change.removed_layers.iter().map(|&layer| Some((layer, 0)));
    let scaled = change.head_factors.iter().map(|(layer, _)| Some((*layer, 1)));
    let all: Option<Vec<(usize, usize)>> = swapped.chain(removed).chain(scaled).collect();
    let first = all.and_then(|all| all.into_iter().min());
    let begin = |(layer, depth): (usize, usize)| {
        let states = layers.get(layer)?;
        let copy = |rows: &Option<R>| rows.clone();
        let inside = match depth {
            0 => None,
            1 => {
                copy(&states.input).zip(copy(&states.mixed)).map(|(input, mixed)| Start::Output { layer, input, mixed })
            }
            2 => copy(&states.middle).map(|middle| Start::Mlp { layer, middle }),
            _ => copy(&states.middle).zip(copy(&states.gated)).map(|(middle, gated)| Start::Down {
                layer,
                middle,
                gated,
            }),
        };
        inside.or_else(|| Some(Start::Layer(layer, copy(&states.input)?)))
    };
    first.and_then(begin).unwrap_or(Start::Embedding)
}

/// A decoder ready to run.
///
/// Where a device computes and fails, the weights are loaded for the CPU, which does the same work
/// again; [`Model::device`] tells of it.
#[derive(Debug)]
pub struct Model {
    /// The shape it was built from.
    pub config: ModelConfig,
    graph: Graph,
}

impl Model {
    /// Loads the weights as stored for the CPU: quantized tensors stay packed, 16-bit ones stay 16-bit.
    pub fn load(checkpoint: &Checkpoint, progress: &Progress) -> Result<Self> {
        Self::load_on(checkpoint, &Device::default(), progress)
    }

    /// Loads the weights onto a device, as far as they fit; for the CPU where the device fails.
    ///
    /// # Errors
    /// What the CPU cannot load either, or cancel.
    pub fn load_on(checkpoint: &Checkpoint, device: &Device, progress: &Progress) -> Result<Self> {
        let graph = Graph::load(checkpoint, device, progress)?;
        Ok(Self { config: graph.config().clone(), graph })
    }

    /// What computes, in words: `cpu`, or a device's name, with what became of it.
    pub fn device(&self) -> String {
        self.graph.device_in_words()
    }

    /// Runs a batch and answers the hidden states after the final norm, tokens × hidden.
    ///
    /// # Errors
    /// A token beyond the vocabulary, or cancel; caches are then of no more use.
    pub fn hidden(&self, batch: &Batch, caches: &mut [KvCache], progress: &Progress) -> Result<Vec<f32>> {
        on_graph!(self, caches, graph => {
            let mut hooks = Hooks { progress: Some(progress), ..Hooks::default() };
            let rows = graph.run(batch, caches, Start::Embedding, &mut hooks);
            rows.and_then(|rows| graph.backend.rows_into(rows))
        })
    }

    /// Runs a batch without caches and keeps rows of every layer.
    pub fn hidden_keeping(&self, batch: &Batch, kept: Kept, progress: &Progress) -> Result<(Vec<f32>, LayerInputs)> {
        on_graph!(self, &mut [], graph => keeping(graph, batch, kept, progress))
    }

    /// Bytes that [`Model::hidden_keeping`] keeps of `tokens` tokens.
    pub fn kept_bytes(&self, tokens: usize, kept: Kept) -> u64 {
        let config = &self.config;
        let values: usize = match kept {
            Kept::Nothing => 0,
            Kept::Layers => config.hidden * (config.layers.len() + 1),
            Kept::Everything => {
                let layers = config.layers.iter();
                let inside = layers.map(|layer| 2 * config.hidden + layer.heads * config.head_dim + layer.mlp_channels);
                inside.sum::<usize>() + config.hidden
            }
        };
        (tokens * values * 4) as u64
    }

    /// Runs a batch without caches with something changed, from the last place that `inputs` knows.
    ///
    /// # Errors
    /// A token beyond the vocabulary, a change of layers or heads that the model does not have, or cancel.
    pub fn hidden_with(
        &self,
        batch: &Batch,
        inputs: &LayerInputs,
        change: &Change,
        progress: &Progress,
    ) -> Result<Vec<f32>> {
        let head_factors = self.column_factors(change)?;
        on_graph!(self, &mut [], graph => changed(graph, batch, inputs, change, &head_factors, progress))
    }

    /// Factors of heads as factors of the columns that they give.
    fn column_factors(&self, change: &Change) -> Result<Vec<(usize, Vec<f32>)>> {
        let refuse = |cause: String| Fault::new(Stage::Model, cause).fix("count layers and heads of this model from 0");
        let layers = self.config.layers.len();
        if let Some(layer) = change.removed_layers.iter().find(|layer| **layer >= layers) {
            return Err(refuse(format!("there is no layer {layer} among {layers}")).into());
        }
        let of_layer = |(layer, factors): &(usize, Vec<f32>)| {
            let heads = self.config.layers.get(*layer).map_or(0, |shape| shape.heads);
            if factors.len() != heads {
                return Err(refuse(format!("{} factors for the {heads} heads of layer {layer}", factors.len())).into());
            }
            let columns = factors.iter().flat_map(|&factor| std::iter::repeat_n(factor, self.config.head_dim));
            Ok((*layer, columns.collect()))
        };
        change.head_factors.iter().map(of_layer).collect()
    }

    /// Logits of some rows of hidden states, rows × vocabulary.
    pub fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>> {
        self.logits_with(hidden, &Change::default())
    }

    /// [`Model::logits`] with something changed.
    pub fn logits_with(&self, hidden: &[f32], change: &Change) -> Result<Vec<f32>> {
        on_graph!(self, &mut [], graph => logits(graph, hidden, change))
    }

    /// Bytes of weights held in memory.
    pub fn resident_bytes(&self) -> u64 {
        self.graph.matrix_bytes()
    }
}

fn keeping<B: Swaps>(
    graph: &Llama<B>,
    batch: &Batch,
    kept: Kept,
    progress: &Progress,
) -> Result<(Vec<f32>, LayerInputs)> {
    let mut layers: Vec<LayerStates<B::Rows>> = Vec::new();
    let mut keep = |layer: usize, place: Place, rows: &B::Rows| {
        let is_kept = kept == Kept::Everything || (kept == Kept::Layers && place == Place::Input);
        if !is_kept {
            return;
        }
        layers.resize_with(layers.len().max(layer + 1), LayerStates::default);
        let states = &mut layers[layer];
        let slot = match place {
            Place::Input => &mut states.input,
            Place::Mixed => &mut states.mixed,
            Place::Middle => &mut states.middle,
            Place::Gated => &mut states.gated,
        };
        *slot = Some(rows.clone());
    };
    let mut hooks = Hooks { states: Some(&mut keep), progress: Some(progress), ..Hooks::default() };
    let rows = graph.run(batch, &mut [], Start::Embedding, &mut hooks)?;
    Ok((graph.backend.rows_into(rows)?, B::keep(layers)))
}

fn changed<B: Swaps>(
    graph: &Llama<B>,
    batch: &Batch,
    inputs: &LayerInputs,
    change: &Change,
    head_factors: &[(usize, Vec<f32>)],
    progress: &Progress,
) -> Result<Vec<f32>> {
    let swaps = swaps::<B>(change)?;
    let head_factors: Vec<(usize, B::Vector)> = head_factors
        .iter()
        .map(|(layer, factors)| Ok((*layer, graph.backend.vector(factors.clone())?)))
        .collect::<Result<_>>()?;
    let mut hooks = Hooks {
        swaps: &swaps,
        removed_layers: &change.removed_layers,
        head_factors: &head_factors,
        progress: Some(progress),
        ..Hooks::default()
    };
    let rows = graph.run(batch, &mut [], start(B::states(inputs), change), &mut hooks)?;
    graph.backend.rows_into(rows)
}

fn logits<B: Swaps>(graph: &Llama<B>, hidden: &[f32], change: &Change) -> Result<Vec<f32>> {
    let rows = graph.backend.rows_from(hidden.to_vec(), graph.config.hidden)?;
    let swaps = swaps::<B>(change)?;
    let hooks = Hooks { swaps: &swaps, ..Hooks::default() };
    graph.backend.rows_into(graph.logits(&rows, &hooks)?)
}

fn swaps<B: Swaps>(change: &Change) -> Result<Vec<(Site, &B::Linear)>> {
    change.replacements.iter().map(|own| Ok((own.site, B::of(own)?))).collect()
}

#[cfg(test)]
mod tests;
