//! Speed of a plan before it is run: a roofline over its matrices.
//!
//! Writing a token multiplies every matrix once and reads it from memory once: a matrix takes the
//! longer of both, its weights times the kernel's measured time for each, or its bytes over the
//! memory's measured speed (Williams, Waterman and Patterson, "Roofline", CACM 52, 2009). A token of a
//! prompt shares the reading with the others, so it takes the kernel's time for many tokens at once.
//!
//! Attention is a roofline too: keys and values of the context are read once, and every query head
//! multiplies with them at the speed of f32 products that memory does not hold up. Both are of the
//! network that the plan leaves: KV groups, heads and layers that it takes away cost nothing.
//!
//! What lies outside of both (norms, activations, sampling) is not in a kernel's rate. Where the
//! original was measured, the difference to its own prediction is added to every plan's
//! ([`SpeedModel::calibrated`]): it does not depend on formats, and layers share it alike, so a plan
//! with fewer layers gets as much less of it. Times add up tensor by tensor, so a planner can spend
//! them like bytes.

use std::sync::Arc;

use serde::Serialize;

use super::ResolvedPlan;
use crate::checkpoint::{Checkpoint, ModelConfig, Role, Structure, TensorInfo};
use crate::format::{self, Dtype};
use crate::scoring::SpeedResult;
use crate::scoring::kernel_rates::KernelRates;

/// Seconds that something takes: per written token, and per token of a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Secs {
    /// For a token that is written.
    pub decode: f64,
    /// For a token of a prompt that is read.
    pub prefill: f64,
}

impl std::ops::Add for Secs {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { decode: self.decode + other.decode, prefill: self.prefill + other.prefill }
    }
}

/// How fast a plan's file will be here.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SpeedPrediction {
    /// Tokens written a second, one at a time.
    pub decode_tokens_per_second: f64,
    /// Tokens of a prompt read a second.
    pub prefill_tokens_per_second: f64,
    /// True if the original's measured speed was taken into account.
    pub is_calibrated: bool,
}

impl Secs {
    /// Each time by its own factor.
    fn scaled(self, by: Self) -> Self {
        Self { decode: self.decode * by.decode, prefill: self.prefill * by.prefill }
    }
}

/// What a network does beside its matrices: pruning changes it, formats do not.
#[derive(Clone, Copy, Debug, Default)]
struct Attention {
    /// Bytes of the keys and values of one token.
    cache_bytes: f64,
    /// Multiplications of a token with one token of its context: with keys, then with values.
    multiplies: f64,
    layers: f64,
}

impl Attention {
    fn of(config: &ModelConfig) -> Self {
        let heads: usize = config.layers.iter().map(|layer| layer.heads).sum();
        Self {
            cache_bytes: config.kv_bytes_per_token() as f64,
            multiplies: (2 * heads * config.head_dim) as f64,
            layers: config.layers.len() as f64,
        }
    }
}

/// Predicts times of a checkpoint's matrices in any format.
#[derive(Clone, Debug)]
pub struct SpeedModel {
    rates: Arc<KernelRates>,
    /// True if the embedding is the head as well.
    is_tied: bool,
    /// The network before anything is taken away.
    whole: Attention,
    /// Tokens that a written one looks back at.
    depth: f64,
    /// Tokens of a prompt: its last one alone is multiplied with the head.
    prompt_tokens: f64,
    /// Time beside products and attention.
    rest: Secs,
    /// Measured over predicted time of products, where products alone were predicted too slow.
    scale: Secs,
    is_calibrated: bool,
}

/// Tokens that are there when writing begins, and that a prompt has, unless something was measured.
const USUAL_TOKENS: usize = 128;

impl SpeedModel {
    /// A model of `checkpoint` on the machine that `rates` are of.
    pub fn new(rates: Arc<KernelRates>, checkpoint: &Checkpoint) -> Self {
        Self::of(rates, &checkpoint.tensors, checkpoint.config.as_ref())
    }

    pub(super) fn of(rates: Arc<KernelRates>, tensors: &[TensorInfo], config: Option<&ModelConfig>) -> Self {
        Self {
            rates,
            is_tied: !tensors.iter().any(|tensor| tensor.role == Role::Head),
            whole: config.map(Attention::of).unwrap_or_default(),
            depth: USUAL_TOKENS as f64,
            prompt_tokens: USUAL_TOKENS as f64,
            rest: Secs::default(),
            scale: Secs { decode: 1.0, prefill: 1.0 },
            is_calibrated: false,
        }
    }

    /// The same, brought to what was measured of the original: time that its products do not
    /// explain is added to every plan's; where they explain more than there was, they are scaled.
    #[must_use]
    pub fn calibrated(self, checkpoint: &Checkpoint, measured: &SpeedResult) -> Self {
        self.calibrated_for(&checkpoint.tensors, measured)
    }

    fn calibrated_for(mut self, tensors: &[TensorInfo], measured: &SpeedResult) -> Self {
        if measured.threads != self.rates.machine.threads {
            return self;
        }
        self.depth = measured.decode_depth as f64;
        self.prompt_tokens = measured.prefill_tokens.max(1) as f64;
        let stored = tensors.iter().map(|tensor| (tensor, tensor.dtype, tensor.weight_count()));
        let Some(products) = self.products(stored) else { return self };
        let fixed = self.attention(self.whole);
        let apart = |measured: f64, products: f64, fixed: f64| {
            let rest = measured - products - fixed;
            if rest >= 0.0 || products <= 0.0 { (rest.max(0.0), 1.0) } else { (0.0, measured / (products + fixed)) }
        };
        let (decode, decode_scale) = apart(measured.tpot_secs, products.decode, fixed.decode);
        let (prefill, prefill_scale) =
            apart(1.0 / measured.prefill_tokens_per_second.max(1e-9), products.prefill, fixed.prefill);
        self.rest = Secs { decode, prefill };
        self.scale = Secs { decode: decode_scale, prefill: prefill_scale };
        self.is_calibrated = true;
        self
    }

    /// The rates that it goes by.
    pub fn rates(&self) -> &Arc<KernelRates> {
        &self.rates
    }

    /// Time of attention over the context, which no format changes.
    fn attention(&self, of: Attention) -> Secs {
        // Without a rate of it, computing is taken to hide behind reading.
        let per_multiply = self.rates.of("f32").map_or(0.0, |rate| rate.prefill_secs_per_weight);
        let reading = of.cache_bytes * self.depth / self.rates.memory_bytes_per_second;
        let computing = of.multiplies * self.depth * per_multiply;
        // A prompt's tokens look back at half of it on average.
        let prefill = of.multiplies * 0.5 * self.prompt_tokens * per_multiply;
        Secs { decode: reading.max(computing), prefill }
    }

    /// Time that is the same in whatever formats a network is stored: the one that a plan leaves, or
    /// the whole one where it takes nothing away.
    pub fn base(&self, left: Option<&Structure>) -> Secs {
        let left = left.map_or(self.whole, |left| Attention::of(&left.config));
        let share = if self.whole.layers > 0.0 { left.layers / self.whole.layers } else { 1.0 };
        self.rest.scaled(Secs { decode: share, prefill: share }) + self.attention(left).scaled(self.scale)
    }

    /// Time of one tensor with `weight_count` weights stored as `dtype`; none without a rate of its
    /// format. What is no matrix of a product takes none.
    pub fn tensor(&self, tensor: &TensorInfo, dtype: Dtype, weight_count: u64) -> Option<Secs> {
        Some(self.unscaled(tensor, dtype, weight_count)?.scaled(self.scale))
    }

    fn unscaled(&self, tensor: &TensorInfo, dtype: Dtype, weight_count: u64) -> Option<Secs> {
        let is_head = tensor.role == Role::Head || (tensor.role == Role::Embedding && self.is_tied);
        if tensor.shape.len() != 2 || !(is_head || tensor.role.is_layer_linear()) {
            return Some(Secs::default());
        }
        let rate = self.rates.of(format::of_dtype(dtype)?.id())?;
        let weights = weight_count as f64;
        let computing = weights * rate.decode_secs_per_weight;
        let reading = weights * rate.bytes_per_weight / self.rates.memory_bytes_per_second;
        let decode = self.rates.product_secs + computing.max(reading);
        let prefill = if is_head {
            decode / self.prompt_tokens
        } else {
            self.rates.product_secs / self.prompt_tokens + weights * rate.prefill_secs_per_weight
        };
        Some(Secs { decode, prefill })
    }

    fn products<'t>(&self, tensors: impl Iterator<Item = (&'t TensorInfo, Dtype, u64)>) -> Option<Secs> {
        let mut sum = Secs::default();
        for (tensor, dtype, weights) in tensors {
            sum = sum + self.tensor(tensor, dtype, weights)?;
        }
        Some(sum)
    }

    /// How fast a plan's file will be; none where a format was not rated.
    pub fn predict(&self, checkpoint: &Checkpoint, resolved: &ResolvedPlan) -> Option<SpeedPrediction> {
        self.predict_for(&checkpoint.tensors, resolved)
    }

    pub(super) fn predict_for(&self, tensors: &[TensorInfo], resolved: &ResolvedPlan) -> Option<SpeedPrediction> {
        let decisions = resolved.decisions.iter().filter(|one| !one.is_removed());
        let stored = decisions.map(|one| Some((tensors.get(one.tensor_index)?, one.dtype, one.new_weight_count)));
        let stored: Option<Vec<_>> = stored.collect();
        let all = self.products(stored?.into_iter())? + self.base(resolved.structure.as_deref());
        Some(SpeedPrediction {
            decode_tokens_per_second: 1.0 / all.decode.max(1e-12),
            prefill_tokens_per_second: 1.0 / all.prefill.max(1e-12),
            is_calibrated: self.is_calibrated,
        })
    }
}

impl SpeedPrediction {
    /// Seconds for a prompt of so many tokens and so many tokens written after it.
    pub fn request_secs(&self, prompt_tokens: usize, output_tokens: usize) -> f64 {
        prompt_tokens as f64 / self.prefill_tokens_per_second + output_tokens as f64 / self.decode_tokens_per_second
    }

    /// How far the prediction was from what was measured of the file, as fractions: 0.1 is predicted
    /// ten percent too fast. Writing first, then reading.
    pub fn errors(&self, measured: &SpeedResult) -> [f64; 2] {
        let error = |predicted: f64, measured: f64| predicted / measured.max(1e-12) - 1.0;
        [
            error(self.decode_tokens_per_second, measured.decode_tokens_per_second),
            error(self.prefill_tokens_per_second, measured.prefill_tokens_per_second),
        ]
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::checkpoint::{LayerShape, Rope};
    use crate::plan::tests::{llama, parse, subject};
    use crate::plan::{Plan, Recipe, Subject, Target, resolve::resolve_for};
    use crate::scoring::kernel_rates::{FormatRate, Machine};

    /// A machine on which a byte is read in a nanosecond, and computing never is the longer part.
    pub(in crate::plan) fn rates() -> Arc<KernelRates> {
        let rate = |bits: f64| FormatRate {
            bytes_per_weight: bits / 8.0,
            decode_secs_per_weight: 1e-12,
            prefill_secs_per_weight: 1e-11 * (20.0 - bits).max(1.0),
        };
        let all = format::all().iter().map(|format| (format.id().to_owned(), rate(format.bits_per_weight())));
        Arc::new(KernelRates {
            version: KernelRates::VERSION,
            machine: Machine {
                cpu: "made up".to_owned(),
                level: "portable".to_owned(),
                threads: 2,
                engine: "0".to_owned(),
            },
            measured_unix_secs: 0,
            memory_bytes_per_second: 1e9,
            product_secs: 1e-6,
            formats: all.collect::<BTreeMap<_, _>>(),
        })
    }

    #[test]
    fn a_memory_bound_model_takes_the_time_of_its_bytes() {
        let tensors = llama(2);
        let resolved = resolve_for(&parse("version = 1\nrecipe = \"Q8_0\"\n"), subject(&tensors)).expect("resolves");
        let model = SpeedModel::of(rates(), &tensors, None);
        let prediction = model.predict_for(&tensors, &resolved).expect("all formats are rated");
        // The embedding is the head; norms are no products.
        let matrices = resolved.decisions.iter().filter(|one| tensors[one.tensor_index].shape.len() == 2);
        let (bytes, count) = matrices.fold((0, 0), |(bytes, count), one| (bytes + one.new_bytes, count + 1));
        let secs = bytes as f64 * 1e-9 + f64::from(count) * 1e-6;
        let expected = 1.0 / secs;
        assert!((prediction.decode_tokens_per_second / expected - 1.0).abs() < 1e-9, "{prediction:?} {expected}");
        assert!(!prediction.is_calibrated);
        let smaller = Plan::of_recipe(Target::Gguf, None, Recipe::Q4KM);
        let smaller = resolve_for(&smaller, subject(&tensors)).expect("resolves");
        let faster = model.predict_for(&tensors, &smaller).expect("rated");
        assert!(faster.decode_tokens_per_second > prediction.decode_tokens_per_second);
        // On this machine a prompt prefers what is quick to decode.
        assert!(faster.prefill_tokens_per_second < prediction.prefill_tokens_per_second);
        let secs = prediction.request_secs(100, 10);
        let parts = 100.0 / prediction.prefill_tokens_per_second + 10.0 / prediction.decode_tokens_per_second;
        assert!((secs - parts).abs() < 1e-12);
    }

    #[test]
    fn a_format_that_was_not_rated_leaves_the_speed_unknown() {
        let tensors = llama(1);
        let resolved = resolve_for(&parse("version = 1\nrecipe = \"Q8_0\"\n"), subject(&tensors)).expect("resolves");
        let mut rates = (*rates()).clone();
        rates.formats.remove("q8_0");
        let model = SpeedModel::of(Arc::new(rates), &tensors, None);
        assert_eq!(model.predict_for(&tensors, &resolved), None);
    }

    /// The network that [`llama`]'s tensors are of.
    fn network(layers: usize) -> ModelConfig {
        ModelConfig {
            family: "llama".to_owned(),
            hidden: 256,
            layers: vec![LayerShape { heads: 4, kv_heads: 2, mlp_channels: 512 }; layers],
            head_dim: 64,
            vocab: 1024,
            norm_eps: 1e-5,
            rope: Rope { theta: 10_000.0, scaling: None, freq_factors: None },
            tied_embeddings: true,
            context: 512,
            bos: None,
            eos: Vec::new(),
        }
    }

    /// Products of a plan in q8_0, and what the model takes for the network that it leaves.
    fn parts(model: &SpeedModel, tensors: &[TensorInfo], config: &ModelConfig, prune: &str) -> (Secs, Secs, Secs) {
        let plan = parse(&format!("version = 1\nrecipe = \"Q8_0\"\ncheckpoint = \"f1\"\n{prune}"));
        let subject = Subject { tensors, config: Some(config), fingerprint: "f1" };
        let resolved = resolve_for(&plan, subject).expect("resolves");
        let staying = resolved.decisions.iter().filter(|one| !one.is_removed());
        let stored = staying.map(|one| (&tensors[one.tensor_index], one.dtype, one.new_weight_count));
        let products = model.products(stored).expect("rated");
        let speed = model.predict_for(tensors, &resolved).expect("rated");
        let all = Secs { decode: 1.0 / speed.decode_tokens_per_second, prefill: 1.0 / speed.prefill_tokens_per_second };
        (products, all, model.base(resolved.structure.as_deref()))
    }

    fn assert_close(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-9 * expected.abs(), "{found} for {expected}");
    }

    #[test]
    fn units_that_are_taken_away_are_not_attended_with() {
        let (tensors, config) = (llama(2), network(2));
        let model = SpeedModel::of(rates(), &tensors, Some(&config));
        // 2 layers · keys and values · 2 heads of 64 · 4 bytes · 128 tokens, a byte a nanosecond.
        let reading = 2.0 * 2.0 * 128.0 * 4.0 * 128.0 * 1e-9;
        // 2 layers · keys and values · 4 heads of 64 · 64 of 128 tokens on average.
        let computing = 2.0 * 2.0 * 256.0 * 64.0 * 1e-11;
        let whole = parts(&model, &tensors, &config, "");
        let groups = "[prune.layer.0]\nkv_groups = [1]\n[prune.layer.1]\nkv_groups = [0]\n";
        let heads = "[prune.layer.0]\nheads = [0, 2]\n[prune.layer.1]\nheads = [1, 3]\n";
        for (prune, decode, prefill) in [
            ("", reading, computing),
            (groups, reading / 2.0, computing / 2.0),
            // Their keys and values stay for the other query heads.
            (heads, reading, computing / 2.0),
            ("[prune]\nlayers = [1]\n", reading / 2.0, computing / 2.0),
        ] {
            let (products, all, base) = parts(&model, &tensors, &config, prune);
            assert_close(base.decode, decode);
            assert_close(base.prefill, prefill);
            assert_close(all.decode, products.decode + decode);
            assert_close(all.prefill, products.prefill + prefill);
            assert!(prune.is_empty() || (products.decode < whole.0.decode && all.decode < whole.1.decode), "{prune}");
        }
    }

    #[test]
    fn what_is_measured_beside_products_goes_with_its_layers() {
        let (tensors, config) = (llama(2), network(2));
        let model = SpeedModel::of(rates(), &tensors, Some(&config));
        let stored = tensors.iter().map(|tensor| (tensor, tensor.dtype, tensor.weight_count()));
        let original = model.products(stored).expect("rated") + model.base(None);
        let (decode, prefill) = (original.decode + 0.004, original.prefill + 0.002);
        let measured = SpeedResult {
            prefill_tokens_per_second: 1.0 / prefill,
            prefill_tokens_per_second_quartiles: [1.0 / prefill; 2],
            decode_tokens_per_second: 1.0 / decode,
            decode_tokens_per_second_quartiles: [1.0 / decode; 2],
            ttft_secs: 128.0 * prefill,
            tpot_secs: decode,
            prefill_tokens: USUAL_TOKENS,
            decode_tokens: 16,
            decode_depth: USUAL_TOKENS,
            repetitions: 3,
            threads: 2,
            ..SpeedResult::default()
        };
        let calibrated = model.clone().calibrated_for(&tensors, &measured);
        let whole = calibrated.base(None);
        assert_close(whole.decode - model.base(None).decode, 0.004);
        assert_close(whole.prefill - model.base(None).prefill, 0.002);
        let (.., half) = parts(&calibrated, &tensors, &config, "[prune]\nlayers = [0]\n");
        assert_close(half.decode, whole.decode / 2.0);
        assert_close(half.prefill, whole.prefill / 2.0);
    }
}
