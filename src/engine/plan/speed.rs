//! Speed of a plan before it is run: a roofline over its matrices.
//!
//! Writing a token multiplies every matrix once and reads it from memory once: a matrix takes the
//! longer of both, its weights times the kernel's measured time for each, or its bytes over the
//! memory's measured speed (Williams, Waterman and Patterson, "Roofline", CACM 52, 2009). Keys and
//! values of the context are read beside it. A token of a prompt shares the reading with the
//! others, so it takes the kernel's time for many tokens at once.
//!
//! What lies outside of products (attention, norms, sampling) is not in a kernel's rate. Where the
//! original was measured, the difference to its own prediction is added to every plan's
//! ([`SpeedModel::calibrated`]): it does not depend on formats. Times add up tensor by tensor, so a
//! planner can spend them like bytes.

use std::sync::Arc;

use serde::Serialize;

use super::ResolvedPlan;
use crate::checkpoint::{Checkpoint, ModelConfig, Role, TensorInfo};
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

/// Predicts times of a checkpoint's matrices in any format.
#[derive(Clone, Debug)]
pub struct SpeedModel {
    rates: Arc<KernelRates>,
    /// True if the embedding is the head as well.
    is_tied: bool,
    /// Bytes of keys and values that a written token reads.
    cache_bytes: f64,
    /// Tokens of a prompt: its last one alone is multiplied with the head.
    prompt_tokens: f64,
    /// Time beside products.
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
        let mut model = Self {
            rates,
            is_tied: !tensors.iter().any(|tensor| tensor.role == Role::Head),
            cache_bytes: 0.0,
            prompt_tokens: USUAL_TOKENS as f64,
            rest: Secs::default(),
            scale: Secs { decode: 1.0, prefill: 1.0 },
            is_calibrated: false,
        };
        model.at_depth(config, USUAL_TOKENS, USUAL_TOKENS);
        model
    }

    /// Where writing begins and how long prompts are.
    fn at_depth(&mut self, config: Option<&ModelConfig>, depth: usize, prompt: usize) {
        self.cache_bytes = config.map_or(0, ModelConfig::kv_bytes_per_token) as f64 * depth as f64;
        self.prompt_tokens = prompt.max(1) as f64;
    }

    /// The same, brought to what was measured of the original: time that its products do not
    /// explain is added to every plan's; where they explain more than there was, they are scaled.
    #[must_use]
    pub fn calibrated(mut self, checkpoint: &Checkpoint, measured: &SpeedResult) -> Self {
        if measured.threads != self.rates.machine.threads {
            return self;
        }
        self.at_depth(checkpoint.config.as_ref(), measured.decode_depth, measured.prefill_tokens);
        let stored = checkpoint.tensors.iter().map(|tensor| (tensor, tensor.dtype, tensor.weight_count()));
        let Some(products) = self.products(stored) else { return self };
        let fixed = self.fixed();
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

    /// Time for reading the context, which no format changes.
    fn fixed(&self) -> Secs {
        Secs { decode: self.cache_bytes / self.rates.memory_bytes_per_second, prefill: 0.0 }
    }

    /// Time that is the same in every plan.
    pub fn base(&self) -> Secs {
        let fixed = self.fixed();
        self.rest + Secs { decode: fixed.decode * self.scale.decode, prefill: fixed.prefill * self.scale.prefill }
    }

    /// Time of one tensor with `weight_count` weights stored as `dtype`; none without a rate of its
    /// format. What is no matrix of a product takes none.
    pub fn tensor(&self, tensor: &TensorInfo, dtype: Dtype, weight_count: u64) -> Option<Secs> {
        let secs = self.unscaled(tensor, dtype, weight_count)?;
        Some(Secs { decode: secs.decode * self.scale.decode, prefill: secs.prefill * self.scale.prefill })
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
        let decisions = resolved.decisions.iter();
        let stored = decisions.map(|one| Some((tensors.get(one.tensor_index)?, one.dtype, one.weight_count)));
        let stored: Option<Vec<_>> = stored.collect();
        Some(self.prediction(self.products(stored?.into_iter())?))
    }

    /// The speed at so much time in products.
    pub(super) fn prediction(&self, products: Secs) -> SpeedPrediction {
        let all = products + self.base();
        SpeedPrediction {
            decode_tokens_per_second: 1.0 / all.decode.max(1e-12),
            prefill_tokens_per_second: 1.0 / all.prefill.max(1e-12),
            is_calibrated: self.is_calibrated,
        }
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
    use crate::plan::tests::{llama, parse, subject};
    use crate::plan::{Plan, Recipe, Target, resolve::resolve_for};
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
}
