//! Gradients of what a model says of a text with respect to every matrix, through candle.
//!
//! One backward pass a sequence: activations of one sequence and one gradient of the whole model
//! are in memory at a time, and each matrix's gradient is handed out and dropped.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use candle_core::{Tensor, Var};

use super::backend::Site;
use super::candle::{Candle, Linear, Precision, failed};
use super::fit::ModelPlace;
use super::llama::{Hooks, Llama, Start};
use super::{Batch, guard, load};
use crate::checkpoint::{Checkpoint, ModelConfig, Role};
use crate::device::{Device, Used, tell};
use crate::error::{Fault, Result, Stage};
use crate::progress::Progress;

/// Which next tokens the log-likelihood is taken of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Labels {
    /// Drawn from the model's own distribution: the square of the gradient is then an estimate of
    /// the Fisher information, the curvature of the KL divergence from the model to its neighbours.
    Sampled {
        /// Same seed, same draws.
        seed: u64,
    },
    /// The text's own: the square is the empirical Fisher information.
    Text,
}

/// A decoder on operations that have gradients.
///
/// Where a device computes and fails, the CPU starts the sequence again and does all further ones.
#[derive(Debug)]
pub struct Differentiable {
    /// The shape it was built from.
    pub config: ModelConfig,
    graph: Llama<Candle>,
    /// Matrices whose gradients are wanted.
    matrices: Vec<(Site, Var)>,
    /// What loads the same for the CPU, where this is on a device.
    fallback: Option<Fallback>,
}

#[derive(Debug)]
struct Fallback {
    checkpoint: Checkpoint,
    device: String,
    is_frozen: bool,
    on_cpu: OnceLock<Box<Differentiable>>,
    used: Mutex<Used>,
}

impl Fallback {
    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is done with a matrix of a graph that was loaded.
type Track<'a> = dyn FnMut(Site, &mut Linear) -> Result<()> + 'a;

impl Differentiable {
    /// Loads every matrix in f32, none of which gets a gradient: for [`Differentiable::head_gradients`].
    ///
    /// # Errors
    /// As [`Differentiable::load`].
    pub fn load_frozen(checkpoint: &Checkpoint, device: &Device, progress: &Progress) -> Result<Self> {
        Self::load_either(checkpoint, device, true, progress)
    }

    /// Loads every matrix in f32, each with a gradient, onto a device where they fit, else for the CPU.
    ///
    /// # Errors
    /// What [`super::Model::load`] refuses, a type without decoder, or cancel.
    pub fn load(checkpoint: &Checkpoint, device: &Device, progress: &Progress) -> Result<Self> {
        Self::load_either(checkpoint, device, false, progress)
    }

    fn load_either(checkpoint: &Checkpoint, device: &Device, is_frozen: bool, progress: &Progress) -> Result<Self> {
        if let Some(models) = device.models() {
            // Weights, and as much again for their gradients.
            let place = ModelPlace { precision: Some(Precision::Full), ..models.into() };
            let wanted = place.weight_bytes(checkpoint) * if is_frozen { 1 } else { 2 };
            if wanted <= super::fit::room(checkpoint, models) {
                let backend = Candle::new(models.handle().clone(), Precision::Full, u64::MAX);
                match guard::on_device(|| Self::load_onto(checkpoint, backend, is_frozen, progress)) {
                    Ok(loaded) => {
                        let fallback = Fallback {
                            checkpoint: checkpoint.clone(),
                            device: models.in_words(),
                            is_frozen,
                            on_cpu: OnceLock::new(),
                            used: Mutex::default(),
                        };
                        return Ok(Self { fallback: Some(fallback), ..loaded });
                    }
                    Err(err) if err.is_of_device() => tell(format!("{}: {err}; the CPU is used.", models.name)),
                    Err(err) => return Err(err),
                }
            } else {
                tell(format!("{} has no room for gradients of this model; the CPU is used.", models.name));
            }
        }
        Self::load_onto(checkpoint, Candle::cpu(), is_frozen, progress)
    }

    fn load_onto(checkpoint: &Checkpoint, backend: Candle, is_frozen: bool, progress: &Progress) -> Result<Self> {
        let mut graph: Llama<Candle> = load::llama(checkpoint, backend, progress)?;
        let mut matrices = Vec::new();
        if !is_frozen {
            each_matrix(&mut graph, &mut |site, linear| {
                let slot = linear.dense().ok_or_else(|| Fault::new(Stage::Model, "a matrix that is not in f32"))?;
                let variable = Var::from_tensor(slot).map_err(failed)?;
                *slot = variable.as_tensor().clone();
                matrices.push((site, variable));
                Ok(())
            })?;
        }
        Ok(Self { config: graph.config.clone(), graph, matrices, fallback: None })
    }

    /// What computes, in words.
    pub fn device(&self) -> String {
        let Some(fallback) = &self.fallback else { return "cpu".to_owned() };
        let used = fallback.used();
        match used.failure() {
            None => fallback.device.clone(),
            Some(_) => used.in_brief().unwrap_or_else(|| "cpu".to_owned()),
        }
    }

    /// Notes that the device, if this runs on one, made a result or a part of one.
    fn worked(&self) {
        if let Some(fallback) = &self.fallback {
            fallback.used().worked(&fallback.device);
        }
    }

    /// The answer of `work` here, or on the CPU once the device has failed.
    fn with_fallback<T>(&self, mut work: impl FnMut(&Self) -> Result<T>) -> Result<T> {
        let Some(fallback) = &self.fallback else { return work(self) };
        if let Some(on_cpu) = fallback.on_cpu.get() {
            return work(on_cpu);
        }
        match guard::on_device(|| work(self)) {
            Err(err) if err.is_of_device() => {
                tell(format!("{}: {err}; the CPU goes on, and nothing is lost.", fallback.device));
                fallback.used().failed(&err);
                let quiet = Progress::default();
                let loaded = Self::load_onto(&fallback.checkpoint, Candle::cpu(), fallback.is_frozen, &quiet)?;
                work(fallback.on_cpu.get_or_init(|| Box::new(loaded)))
            }
            done => {
                if done.is_ok() {
                    self.worked();
                }
                done
            }
        }
    }

    /// Bytes of f32 weights held.
    pub fn resident_bytes(&self) -> u64 {
        self.graph.matrix_bytes()
    }

    /// The gradient of the sum of log-probabilities of the tokens at positions `scored_from..` of one
    /// sequence, given to `visit` matrix by matrix, row after row; answers the number of tokens scored.
    ///
    /// # Errors
    /// A token beyond the vocabulary, candle's failures, or cancel.
    pub fn sequence_gradients(
        &self,
        ids: &[u32],
        scored_from: usize,
        labels: Labels,
        progress: &Progress,
        visit: &mut dyn FnMut(Site, &[f32]),
    ) -> Result<usize> {
        let mut seen = 0;
        self.with_fallback(|own| {
            let Some((likelihood, count)) = own.likelihood(ids, scored_from, labels, &[], progress)? else {
                return Ok(0);
            };
            let gradients = likelihood.backward().map_err(failed)?;
            for (index, (site, matrix)) in own.matrices.iter().enumerate() {
                progress.check()?;
                // An untouched matrix has no gradient: its square is zero.
                if let Some(gradient) = gradients.get(matrix)
                    && index >= seen
                {
                    let host = gradient.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).map_err(failed)?;
                    guard::of_caller(|| visit(*site, &host));
                    own.worked();
                }
                // A device that fails half way has shown these; the CPU shows the rest.
                seen = index + 1;
            }
            Ok(count)
        })
    }

    /// How the mean log-probability of the text's own tokens at positions `scored_from..` changes with
    /// a factor on each head's output, at factor 1: layer by layer, one slope per query head.
    ///
    /// # Errors
    /// A token beyond the vocabulary, candle's failures, or cancel.
    pub fn head_gradients(&self, ids: &[u32], scored_from: usize, progress: &Progress) -> Result<Vec<Vec<f32>>> {
        self.with_fallback(|own| own.head_gradients_here(ids, scored_from, progress))
    }

    fn head_gradients_here(&self, ids: &[u32], scored_from: usize, progress: &Progress) -> Result<Vec<Vec<f32>>> {
        let mut factors = Vec::new();
        let mut columns = Vec::new();
        for (index, shape) in self.config.layers.iter().enumerate() {
            let ones = Var::ones(shape.heads, candle_core::DType::F32, &self.graph.backend.device).map_err(failed)?;
            let wide = || {
                let column = ones.as_tensor().reshape((shape.heads, 1))?;
                column.broadcast_as((shape.heads, self.config.head_dim))?.contiguous()?.flatten_all()
            };
            columns.push((index, wide().map_err(failed)?));
            factors.push(ones);
        }
        let Some((likelihood, count)) = self.likelihood(ids, scored_from, Labels::Text, &columns, progress)? else {
            return Ok(factors.iter().map(|ones| vec![0.0; ones.elem_count()]).collect());
        };
        let gradients = likelihood.backward().map_err(failed)?;
        let of_layer = |ones: &Var| match gradients.get(ones) {
            Some(slopes) => {
                let slopes = slopes.to_vec1::<f32>().map_err(failed)?;
                Ok(slopes.into_iter().map(|slope| slope / count as f32).collect())
            }
            None => Ok(vec![0.0; ones.elem_count()]),
        };
        factors.iter().map(of_layer).collect()
    }

    /// The sum of log-probabilities of the tokens at positions `scored_from..` and their number; none
    /// where there is no such token.
    fn likelihood(
        &self,
        ids: &[u32],
        scored_from: usize,
        labels: Labels,
        head_factors: &[(usize, Tensor)],
        progress: &Progress,
    ) -> Result<Option<(Tensor, usize)>> {
        let from = scored_from.max(1);
        let count = ids.len().saturating_sub(from);
        if count == 0 {
            return Ok(None);
        }
        let mut batch = Batch::default();
        // The last token is predicted but never read.
        batch.push(&ids[..ids.len() - 1], None, None);
        let mut hooks = Hooks { head_factors, progress: Some(progress), ..Hooks::default() };
        let hidden = self.graph.run(&batch, &mut [], Start::Embedding, &mut hooks)?;
        let scored = hidden.narrow(0, from - 1, count).map_err(failed)?;
        let logits = self.graph.logits(&scored, &Hooks::default())?;
        let chosen: Vec<u32> = match labels {
            Labels::Text => ids[from..].to_vec(),
            Labels::Sampled { seed } => {
                let host = logits.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).map_err(failed)?;
                let mut draws = Draws(seed);
                host.chunks_exact(self.config.vocab).map(|row| draws.token(row)).collect()
            }
        };
        Ok(Some((log_likelihood(&logits, &chosen).map_err(failed)?, count)))
    }
}

/// Shows every matrix of a graph to `track`.
fn each_matrix(graph: &mut Llama<Candle>, track: &mut Track<'_>) -> Result<()> {
    track(Site { layer: None, role: Role::Embedding }, &mut graph.embedding)?;
    for (index, layer) in graph.layers.iter_mut().enumerate() {
        let linears = [
            (Role::Q, &mut layer.q),
            (Role::K, &mut layer.k),
            (Role::V, &mut layer.v),
            (Role::O, &mut layer.o),
            (Role::Gate, &mut layer.gate),
            (Role::Up, &mut layer.up),
            (Role::Down, &mut layer.down),
        ];
        for (role, affine) in linears {
            track(Site { layer: Some(index), role }, &mut affine.0)?;
        }
    }
    match &mut graph.head {
        Some(head) => track(Site { layer: None, role: Role::Head }, head),
        None => Ok(()),
    }
}

fn log_likelihood(logits: &Tensor, chosen: &[u32]) -> candle_core::Result<Tensor> {
    let rows = chosen.len();
    let index = Tensor::from_slice(chosen, (rows, 1), logits.device())?;
    candle_nn::ops::log_softmax(logits, candle_core::D::Minus1)?.gather(&index, 1)?.sum_all()
}

/// A small generator (SplitMix64, Steele et al., 2014) so that draws are the same everywhere.
struct Draws(u64);

impl Draws {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((word ^ (word >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// One token of a row of logits by its softmax.
    fn token(&mut self, logits: &[f32]) -> u32 {
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |logit: f32| f64::from(logit - most).exp();
        let total: f64 = logits.iter().copied().map(weight).sum();
        let mut left = self.uniform() * total;
        for (token, &logit) in logits.iter().enumerate() {
            left -= weight(logit);
            if left < 0.0 {
                return token as u32;
            }
        }
        logits.len().saturating_sub(1) as u32
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::candle::Broken;
    use crate::model::{Change, Model, Replacement, StoredMatrix};

    fn tiny() -> Checkpoint {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("tests/fixtures/tiny_llama_biases");
        Checkpoint::open(&folder).expect("opens")
    }

    /// Sum of the log-probabilities of `ids[1..]` by our own kernels.
    fn likelihood(model: &Model, ids: &[u32], change: &Change) -> f64 {
        let mut batch = Batch::default();
        batch.push(&ids[..ids.len() - 1], None, None);
        let progress = Progress::default();
        let hidden = model.hidden_with(&batch, &Default::default(), change, &progress);
        let logits = model.logits(&hidden.expect("runs")).expect("logits");
        let rows = logits.chunks_exact(model.config.vocab).zip(&ids[1..]);
        rows.map(|(row, &id)| {
            let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
            f64::from(row[id as usize]) - sum.ln()
        })
        .sum()
    }

    #[test]
    fn gradients_are_the_slopes_of_the_log_likelihood() {
        let checkpoint = tiny();
        let progress = Progress::default();
        let ids = [5, 17, 2, 90, 44, 8, 8, 61];
        let model = Model::load(&checkpoint, &progress).expect("loads");
        let differentiable = Differentiable::load(&checkpoint, &Device::default(), &progress).expect("loads");
        let site = Site { layer: Some(1), role: Role::Down };
        let mut gradient = Vec::new();
        let count = differentiable
            .sequence_gradients(&ids, 1, Labels::Text, &progress, &mut |at, values| {
                if at == site {
                    gradient = values.to_vec();
                }
            })
            .expect("differentiates");
        assert_eq!(count, ids.len() - 1);
        let tensor = checkpoint.tensor("model.layers.1.mlp.down_proj.weight").expect("named");
        let (rows, cols) = (tensor.row_count(), tensor.row_len());
        let mut weights = Vec::new();
        checkpoint.decode_rows(tensor, 0..rows, &mut Vec::new(), &mut weights).expect("readable");
        // A step along a fixed direction changes the likelihood by its product with the gradient.
        let direction: Vec<f32> = (0..weights.len()).map(|at| ((at * 37 % 101) as f32 / 50.0 - 1.0) * 1e-3).collect();
        let along = |sign: f32| {
            let bytes = weights.iter().zip(&direction).flat_map(|(w, d)| (w + sign * d).to_le_bytes()).collect();
            let stored = StoredMatrix { dtype: crate::format::Dtype::F32, rows, cols, bytes };
            likelihood(&model, &ids, &Replacement::new(&model, site, stored).expect("fits").into())
        };
        let slope = (along(1.0) - along(-1.0)) / 2.0;
        let expected: f64 = gradient.iter().zip(&direction).map(|(&g, &d)| f64::from(g) * f64::from(d)).sum();
        assert!((slope - expected).abs() < 0.02 * expected.abs().max(1e-4), "{slope} {expected}");
    }

    #[test]
    fn slopes_of_heads_are_those_of_the_likelihood() {
        let checkpoint = tiny();
        let progress = Progress::default();
        let ids = [5, 17, 2, 90, 44, 8, 8, 61];
        let model = Model::load(&checkpoint, &progress).expect("loads");
        let frozen = Differentiable::load_frozen(&checkpoint, &Device::default(), &progress).expect("loads");
        let slopes = frozen.head_gradients(&ids, 1, &progress).expect("differentiates");
        for (layer, slopes) in slopes.iter().enumerate() {
            assert_eq!(slopes.len(), model.config.layers[layer].heads);
            for (head, &slope) in slopes.iter().enumerate() {
                let with = |factor: f32| {
                    let mut factors = vec![1.0; slopes.len()];
                    factors[head] = factor;
                    let change = Change { head_factors: vec![(layer, factors)], ..Change::default() };
                    likelihood(&model, &ids, &change) / (ids.len() - 1) as f64
                };
                let expected = (with(1.02) - with(0.98)) / 0.04;
                let slope = f64::from(slope);
                assert!((slope - expected).abs() < 0.02 * expected.abs() + 2e-5, "{layer} {head}: {slope} {expected}");
            }
        }
    }

    #[test]
    fn draws_follow_the_distribution_and_repeat_with_their_seed() {
        let logits = [0.0f32, (3.0f32).ln(), f32::NEG_INFINITY];
        let draw = |seed| {
            let mut draws = Draws(seed);
            (0..4000).map(|_| draws.token(&logits)).collect::<Vec<u32>>()
        };
        let tokens = draw(7);
        assert_eq!(tokens, draw(7));
        let ones = tokens.iter().filter(|&&token| token == 1).count() as f64 / 4000.0;
        assert!((ones - 0.75).abs() < 0.03, "{ones}");
        assert!(!tokens.contains(&2));
    }

    #[test]
    fn gradients_on_a_device_that_fails_are_those_of_the_cpu() {
        let checkpoint = tiny();
        let progress = Progress::default();
        let ids = [5, 17, 2, 90, 44, 8, 8, 61];
        let device = Device::for_models(crate::device::ModelDevice::for_test(None));
        let of = |model: &Differentiable| {
            let mut all = Vec::new();
            let labels = Labels::Text;
            model
                .sequence_gradients(&ids, 1, labels, &progress, &mut |_, own| all.extend_from_slice(own))
                .expect("runs");
            (all, model.head_gradients(&ids, 1, &progress).expect("runs"))
        };
        let expected = of(&Differentiable::load(&checkpoint, &Device::default(), &progress).expect("loads"));
        for panics in [false, true] {
            let model = Differentiable::load(&checkpoint, &device, &progress).expect("loads");
            assert_eq!(of(&model), expected);
            assert_eq!(model.device(), "candle on the CPU (candle)");
            let broken = Broken { products_left: Some(3), panics, ..Broken::default() };
            model.graph.backend.break_for_test(broken);
            assert_eq!(of(&model), expected);
            assert!(model.device().ends_with("then cpu"), "{}", model.device());
        }
        let model = Differentiable::load(&checkpoint, &device, &progress).expect("loads");
        let broken = Broken { products_left: Some(0), is_unreadable: true, ..Broken::default() };
        model.graph.backend.break_for_test(broken);
        assert_eq!(of(&model), expected);
        assert_eq!(model.device(), "cpu", "the device made nothing");
    }
}
