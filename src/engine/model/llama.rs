//! The Llama graph: RMSNorm, rotary embedding, grouped-query attention, SwiGLU, over any backend.
//!
//! Source: Touvron et al., "LLaMA", 2023; shapes may differ from layer to layer.

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

/// Sees the input of a layer.
type Watch<'a, B> = dyn FnMut(usize, &<B as Backend>::Rows) + 'a;

/// Sees what the linears of these roles in a layer multiply.
type WatchInput<'a, B> = dyn Fn(usize, &[Role], &<B as Backend>::Rows) -> Result<()> + 'a;

/// What a caller may change or watch in a run.
pub(super) struct Hooks<'a, B: Backend> {
    /// A linear that stands in for the one at its site.
    pub(super) swap: Option<(Site, &'a B::Linear)>,
    /// Sees the input of every layer.
    pub(super) layer_input: Option<&'a mut Watch<'a, B>>,
    /// Sees the input of every linear of a layer, once for those that share it.
    pub(super) linear_input: Option<&'a WatchInput<'a, B>>,
    /// Asked between operations.
    pub(super) progress: Option<&'a Progress>,
}

impl<B: Backend> Default for Hooks<'_, B> {
    fn default() -> Self {
        Self { swap: None, layer_input: None, linear_input: None, progress: None }
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

    fn linear<'s>(&'s self, layer: Option<usize>, role: Role, own: &'s B::Linear) -> &'s B::Linear {
        match self.swap {
            Some((site, swapped)) if site == (Site { layer, role }) => swapped,
            _ => own,
        }
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

    /// Runs a batch, from the embedding or from given inputs of a layer, to the states after the final norm.
    pub(super) fn run(
        &self,
        batch: &Batch,
        caches: &mut [KvCache],
        from: Option<(usize, B::Rows)>,
        hooks: &mut Hooks<'_, B>,
    ) -> Result<B::Rows> {
        let backend = &self.backend;
        let angles = self.angles(&batch.positions(caches));
        let (first, mut x) = match from {
            Some((layer, rows)) => (layer, rows),
            None => {
                let table = hooks.linear(None, Role::Embedding, &self.embedding);
                (0, backend.embed(table, &batch.ids)?)
            }
        };
        for (index, layer) in self.layers.iter().enumerate().skip(first) {
            if let Some(watch) = hooks.layer_input.as_mut() {
                watch(index, &x);
            }
            x = self.layer(index, layer, x, batch, caches, &angles, hooks)?;
        }
        for segment in &batch.segments {
            if let Some(cache) = segment.cache {
                caches[cache].len += segment.len;
            }
        }
        backend.rms_norm(&x, &self.norm, self.config.norm_eps)
    }

    #[expect(clippy::too_many_arguments, reason = "the state of one run, passed down once")]
    fn layer(
        &self,
        index: usize,
        layer: &Layer<B>,
        x: B::Rows,
        batch: &Batch,
        caches: &mut [KvCache],
        angles: &Angles,
        hooks: &Hooks<'_, B>,
    ) -> Result<B::Rows> {
        let backend = &self.backend;
        let shape = self.config.layers[index];
        let of = |role: Role| {
            let affine = match role {
                Role::Q => &layer.q,
                Role::K => &layer.k,
                Role::V => &layer.v,
                Role::O => &layer.o,
                Role::Gate => &layer.gate,
                Role::Up => &layer.up,
                _ => &layer.down,
            };
            (hooks.linear(Some(index), role, &affine.0), affine.1.as_ref())
        };
        let normed = backend.rms_norm(&x, &layer.attention_norm, self.config.norm_eps)?;
        hooks.check()?;
        hooks.see(index, &[Role::Q, Role::K, Role::V], &normed)?;
        let mut qkv = backend.linears(&[of(Role::Q), of(Role::K), of(Role::V)], &normed)?.into_iter();
        let mut next = || qkv.next().expect("one output a linear");
        let (mut q, mut k, v) = (next(), next(), next());
        backend.rope(&mut q, angles)?;
        backend.rope(&mut k, angles)?;
        let heads = Heads { heads: shape.heads, kv_heads: shape.kv_heads, head_dim: self.config.head_dim };
        hooks.check()?;
        let mixed = backend.attention(heads, index, batch, caches, &q, &k, &v)?;
        hooks.check()?;
        hooks.see(index, &[Role::O], &mixed)?;
        let attended = single(backend.linears(&[of(Role::O)], &mixed)?);
        let x = backend.add(x, &attended)?;
        let normed = backend.rms_norm(&x, &layer.mlp_norm, self.config.norm_eps)?;
        hooks.check()?;
        hooks.see(index, &[Role::Gate, Role::Up], &normed)?;
        let mut both = backend.linears(&[of(Role::Gate), of(Role::Up)], &normed)?.into_iter();
        let mut next = || both.next().expect("one output a linear");
        let (gate, up) = (next(), next());
        let gated = backend.gated(gate, &up)?;
        hooks.check()?;
        hooks.see(index, &[Role::Down], &gated)?;
        let down = single(backend.linears(&[of(Role::Down)], &gated)?);
        backend.add(x, &down)
    }

    /// Logits of rows of final states, rows × vocabulary.
    pub(super) fn logits(&self, hidden: &B::Rows, hooks: &Hooks<'_, B>) -> Result<B::Rows> {
        let head = match &self.head {
            Some(head) => hooks.linear(None, Role::Head, head),
            None => hooks.linear(None, Role::Embedding, &self.embedding),
        };
        Ok(single(self.backend.linears(&[(head, None)], hidden)?))
    }

    /// Bytes of all matrices in memory.
    pub(super) fn matrix_bytes(&self) -> u64 {
        let bytes = |matrix: &B::Linear| self.backend.matrix_bytes(matrix);
        let layers = self.layers.iter().map(|layer| {
            [&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down]
                .into_iter()
                .map(|affine| bytes(&affine.0))
                .sum::<u64>()
        });
        bytes(&self.embedding) + self.head.as_ref().map_or(0, bytes) + layers.sum::<u64>()
    }
}

/// The only element of a list that has one.
fn single<T>(list: Vec<T>) -> T {
    list.into_iter().next().expect("one output a linear")
}
