//! The Llama graph: RMSNorm, rotary embedding, grouped-query attention, SwiGLU, over any backend.
//!
//! Source: Touvron et al., "LLaMA", 2023; shapes may differ from layer to layer.

use std::ops::Range;

use crate::checkpoint::{ModelConfig, Role};
use crate::error::Result;
use crate::kernels::attention::Heads;
use crate::progress::Progress;

use super::backend::{Affine, Angles, Backend, Site};
use super::{Batch, KvCache};

/// One layer's weights.
#[derive(Debug)]
pub(super) struct Layer<B: Backend> {
    pub(super) attention_norm: B::Vector,
    pub(super) q: Affine<B::Linear, B::Vector>,
    pub(super) k: Affine<B::Linear, B::Vector>,
    pub(super) v: Affine<B::Linear, B::Vector>,
    pub(super) o: Affine<B::Linear, B::Vector>,
    pub(super) mlp_norm: B::Vector,
    pub(super) gate: Affine<B::Linear, B::Vector>,
    pub(super) up: Affine<B::Linear, B::Vector>,
    pub(super) down: Affine<B::Linear, B::Vector>,
}

/// A decoder's weights on a backend.
#[derive(Debug)]
pub(super) struct Llama<B: Backend> {
    pub(super) backend: B,
    pub(super) config: ModelConfig,
    pub(super) embedding: B::Linear,
    pub(super) layers: Vec<Layer<B>>,
    pub(super) norm: B::Vector,
    /// None where the embedding serves as head too.
    pub(super) head: Option<B::Linear>,
    /// Inverse frequencies of the rotary embedding, scaling included.
    pub(super) frequencies: Vec<f32>,
}

/// A place between the operations of a layer where its rows can be kept, and a run begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// What a layer is given; of the layer after the last one, what the final norm is given.
    Input,
    /// What the heads of a layer give, which `o` multiplies.
    Mixed,
    /// The stream between attention and MLP.
    Middle,
    /// What `down` multiplies.
    Gated,
}

/// Where a run begins: the rows of its layer up to there are known.
pub(super) enum Start<R> {
    /// At the tokens.
    Embedding,
    /// With a layer's input.
    Layer(usize, R),
    /// With a layer's input and what its heads give.
    Output { layer: usize, input: R, mixed: R },
    /// With the stream after a layer's attention.
    Mlp { layer: usize, middle: R },
    /// With that and what the layer's `down` multiplies.
    Down { layer: usize, middle: R, gated: R },
}

/// Sees the rows at a place of a layer.
type Watch<'a, B> = dyn FnMut(usize, Place, &<B as Backend>::Rows) + 'a;

/// Sees what the linears of these roles in a layer multiply.
type WatchInput<'a, B> = dyn Fn(usize, &[Role], &<B as Backend>::Rows) -> Result<()> + 'a;

/// What a caller may change or watch in a run.
pub(super) struct Hooks<'a, B: Backend> {
    /// Linears that stand in for those at their sites.
    pub(super) swaps: &'a [(Site, &'a B::Linear)],
    /// Layers that hand on what they are given.
    pub(super) removed_layers: &'a [usize],
    /// By layer, factors of the columns that its heads give.
    pub(super) head_factors: &'a [(usize, B::Vector)],
    /// Sees the rows at every place of every layer.
    pub(super) states: Option<&'a mut Watch<'a, B>>,
    /// Sees the input of every linear of a layer, once for those that share it.
    pub(super) linear_input: Option<&'a WatchInput<'a, B>>,
    /// Asked between operations.
    pub(super) progress: Option<&'a Progress>,
}

impl<B: Backend> Default for Hooks<'_, B> {
    fn default() -> Self {
        Self { swaps: &[], removed_layers: &[], head_factors: &[], states: None, linear_input: None, progress: None }
    }
}

impl<B: Backend> Hooks<'_, B> {
    /// Stops a cancelled run; called before every group of linears.
    fn check(&self) -> Result<()> {
        self.progress.map_or(Ok(()), Progress::check)
    }

    /// Shows the rows that some linears of a layer are about to multiply.
    fn see(&self, layer: usize, roles: &[Role], rows: &B::Rows) -> Result<()> {
        self.linear_input.map_or(Ok(()), |watch| watch(layer, roles, rows))
    }

    /// Shows the rows at a place of a layer.
    fn keep(&mut self, layer: usize, place: Place, rows: &B::Rows) {
        if let Some(watch) = self.states.as_mut() {
            watch(layer, place, rows);
        }
    }

    fn linear<'s>(&'s self, layer: Option<usize>, role: Role, own: &'s B::Linear) -> &'s B::Linear {
        let site = Site { layer, role };
        self.swaps.iter().find(|(at, _)| *at == site).map_or(own, |(_, swapped)| *swapped)
    }

    fn factors(&self, layer: usize) -> Option<&B::Vector> {
        self.head_factors.iter().find(|(at, _)| *at == layer).map(|(_, factors)| factors)
    }
}

impl<B: Backend> Layer<B> {
    /// A linear with what stands in for it, and its bias.
    fn linear<'s>(
        &'s self,
        index: usize,
        role: Role,
        hooks: &'s Hooks<'_, B>,
    ) -> (&'s B::Linear, Option<&'s B::Vector>) {
        let affine = match role {
            Role::Q => &self.q,
            Role::K => &self.k,
            Role::V => &self.v,
            Role::O => &self.o,
            Role::Gate => &self.gate,
            Role::Up => &self.up,
            _ => &self.down,
        };
        (hooks.linear(Some(index), role, &affine.0), affine.1.as_ref())
    }
}

impl<B: Backend> Llama<B> {
    /// Inverse frequencies: `theta^(−2i/head_dim)`, divided by the scaling's factors.
    pub(super) fn frequencies(config: &ModelConfig) -> Vec<f32> {
        let factors = config.rope.factors(config.head_dim);
        (0..config.head_dim / 2)
            .map(|index| {
                let exponent = -2.0 * index as f64 / config.head_dim as f64;
                let divisor = factors.as_ref().and_then(|all| all.get(index)).copied().unwrap_or(1.0);
                (config.rope.theta.powf(exponent) / f64::from(divisor)) as f32
            })
            .collect()
    }

    fn angles(&self, positions: &[usize]) -> Angles {
        let mut cos = Vec::with_capacity(positions.len() * self.frequencies.len());
        let mut sin = Vec::with_capacity(positions.len() * self.frequencies.len());
        for &position in positions {
            for &frequency in &self.frequencies {
                let angle = position as f32 * frequency;
                cos.push(angle.cos());
                sin.push(angle.sin());
            }
        }
        Angles { head_dim: self.config.head_dim, cos, sin }
    }

    /// Runs a batch from where `start` says to the states after the final norm.
    pub(super) fn run(
        &self,
        batch: &Batch,
        caches: &mut [KvCache],
        start: Start<B::Rows>,
        hooks: &mut Hooks<'_, B>,
    ) -> Result<B::Rows> {
        let backend = &self.backend;
        let turns = backend.turns(self.angles(&batch.positions(caches)))?;
        let (first, x) = match start {
            Start::Embedding => (0, self.embed(batch, hooks)?),
            Start::Layer(layer, input) => (layer, input),
            Start::Output { layer, input, mixed } => {
                let middle = self.output(layer, input, mixed, hooks)?;
                (layer + 1, self.mlp(layer, middle, hooks)?)
            }
            Start::Mlp { layer, middle } => (layer + 1, self.mlp(layer, middle, hooks)?),
            Start::Down { layer, middle, gated } => (layer + 1, self.down(layer, middle, &gated, hooks)?),
        };
        let x = self.through(first..self.layers.len(), x, batch, caches, &turns, hooks)?;
        hooks.keep(self.layers.len(), Place::Input, &x);
        for segment in &batch.segments {
            if let Some(cache) = segment.cache {
                let ids = &batch.ids[segment.start..segment.start + segment.len];
                caches[cache].extend(ids, segment.parent.is_none());
            }
        }
        backend.rms_norm(&x, &self.norm, self.config.norm_eps)
    }

    /// Runs a batch without caches up to what layer `end` is given: from the tokens, or from what an earlier layer
    /// is given.
    pub(super) fn run_to(
        &self,
        batch: &Batch,
        from: Option<(usize, B::Rows)>,
        end: usize,
        hooks: &mut Hooks<'_, B>,
    ) -> Result<B::Rows> {
        let turns = self.backend.turns(self.angles(&batch.positions(&[])))?;
        let (first, x) = match from {
            Some(from) => from,
            None => (0, self.embed(batch, hooks)?),
        };
        self.through(first..end, x, batch, &mut [], &turns, hooks)
    }

    /// What the first layer is given.
    fn embed(&self, batch: &Batch, hooks: &Hooks<'_, B>) -> Result<B::Rows> {
        self.backend.embed(hooks.linear(None, Role::Embedding, &self.embedding), &batch.ids)
    }

    /// Takes rows through some layers.
    fn through(
        &self,
        layers: Range<usize>,
        mut x: B::Rows,
        batch: &Batch,
        caches: &mut [KvCache],
        turns: &B::Turns,
        hooks: &mut Hooks<'_, B>,
    ) -> Result<B::Rows> {
        for layer in layers {
            hooks.keep(layer, Place::Input, &x);
            if hooks.removed_layers.contains(&layer) {
                continue;
            }
            let mixed = self.mix(layer, &x, batch, caches, turns, hooks)?;
            let middle = self.output(layer, x, mixed, hooks)?;
            x = self.mlp(layer, middle, hooks)?;
        }
        Ok(x)
    }

    /// Attention: what the heads of a layer give.
    fn mix(
        &self,
        index: usize,
        x: &B::Rows,
        batch: &Batch,
        caches: &mut [KvCache],
        turns: &B::Turns,
        hooks: &mut Hooks<'_, B>,
    ) -> Result<B::Rows> {
        let (backend, layer, shape) = (&self.backend, &self.layers[index], self.config.layers[index]);
        let normed = backend.rms_norm(x, &layer.attention_norm, self.config.norm_eps)?;
        hooks.check()?;
        hooks.see(index, &[Role::Q, Role::K, Role::V], &normed)?;
        let linears = [Role::Q, Role::K, Role::V].map(|role| layer.linear(index, role, hooks));
        let mut qkv = backend.linears(&linears, &normed)?.into_iter();
        let mut next = || qkv.next().expect("one output a linear");
        let (mut q, mut k, v) = (next(), next(), next());
        backend.rope(&mut q, turns)?;
        backend.rope(&mut k, turns)?;
        let heads = Heads { heads: shape.heads, kv_heads: shape.kv_heads, head_dim: self.config.head_dim };
        hooks.check()?;
        let mixed = backend.attention(heads, index, batch, caches, &q, &k, &v)?;
        hooks.keep(index, Place::Mixed, &mixed);
        hooks.check()?;
        Ok(mixed)
    }

    /// Adds what the heads of a layer give to the stream.
    fn output(&self, index: usize, x: B::Rows, mixed: B::Rows, hooks: &mut Hooks<'_, B>) -> Result<B::Rows> {
        let backend = &self.backend;
        let mixed = match hooks.factors(index) {
            Some(factors) => backend.scale(mixed, factors)?,
            None => mixed,
        };
        hooks.see(index, &[Role::O], &mixed)?;
        let attended = single(backend.linears(&[self.layers[index].linear(index, Role::O, hooks)], &mixed)?);
        let middle = backend.add(x, &attended)?;
        hooks.keep(index, Place::Middle, &middle);
        Ok(middle)
    }

    /// The gated MLP of a layer.
    fn mlp(&self, index: usize, middle: B::Rows, hooks: &mut Hooks<'_, B>) -> Result<B::Rows> {
        let (backend, layer) = (&self.backend, &self.layers[index]);
        let normed = backend.rms_norm(&middle, &layer.mlp_norm, self.config.norm_eps)?;
        hooks.check()?;
        hooks.see(index, &[Role::Gate, Role::Up], &normed)?;
        let linears = [Role::Gate, Role::Up].map(|role| layer.linear(index, role, hooks));
        let mut both = backend.linears(&linears, &normed)?.into_iter();
        let mut next = || both.next().expect("one output a linear");
        let (gate, up) = (next(), next());
        let gated = backend.gated(gate, &up)?;
        hooks.keep(index, Place::Gated, &gated);
        hooks.check()?;
        self.down(index, middle, &gated, hooks)
    }

    /// The last linear of a layer.
    fn down(&self, index: usize, middle: B::Rows, gated: &B::Rows, hooks: &Hooks<'_, B>) -> Result<B::Rows> {
        hooks.see(index, &[Role::Down], gated)?;
        let down = single(self.backend.linears(&[self.layers[index].linear(index, Role::Down, hooks)], gated)?);
        self.backend.add(middle, &down)
    }

    /// Logits of rows of final states, rows × vocabulary.
    pub(super) fn logits(&self, hidden: &B::Rows, hooks: &Hooks<'_, B>) -> Result<B::Rows> {
        let head = match &self.head {
            Some(head) => hooks.linear(None, Role::Head, head),
            None => hooks.linear(None, Role::Embedding, &self.embedding),
        };
        Ok(single(self.backend.linears(&[(head, None)], hidden)?))
    }

    /// Every matrix that a run multiplies, in its order, the head last.
    pub(super) fn multiplied(&self) -> impl Iterator<Item = &B::Linear> {
        let layers = self.layers.iter().flat_map(|layer| {
            [&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down].map(|affine| &affine.0)
        });
        layers.chain(std::iter::once(self.head.as_ref().unwrap_or(&self.embedding)))
    }

    /// Every matrix, the embedding among them.
    fn matrices(&self) -> impl Iterator<Item = &B::Linear> {
        self.head.as_ref().map(|_| &self.embedding).into_iter().chain(self.multiplied())
    }

    /// Bytes of all matrices in memory.
    pub(super) fn matrix_bytes(&self) -> u64 {
        self.matrices().map(|matrix| self.backend.matrix_bytes(matrix)).sum()
    }
}

/// The only element of a list that has one.
fn single<T>(list: Vec<T>) -> T {
    list.into_iter().next().expect("one output a linear")
}
