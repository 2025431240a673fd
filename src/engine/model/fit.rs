//! What a model needs of a device's memory, known before anything is loaded.

use serde::Serialize;

use super::candle::{Candle, Precision};
use crate::checkpoint::{Checkpoint, ModelConfig};
use crate::device::ModelDevice;

/// Tokens that one batch holds, more or less: enough rows for fast linears, few enough for short waits.
pub const BATCH_TOKENS: usize = 1536;

/// Part of a device's memory that is left to the driver and to the gaps between allocations.
const SPARE_SHARE: f64 = 0.08;

/// Bytes that a run needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Needs {
    /// All matrices as the device holds them.
    pub weight_bytes: u64,
    /// Keys and values of one sequence of the given length, in f32.
    pub kv_bytes: u64,
    /// Rows and scores of the largest batch while a layer computes.
    pub activation_bytes: u64,
}

/// How a model fits a device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fit {
    /// The device.
    pub device: String,
    /// Bytes that it has; null where the system does not tell.
    pub memory_bytes: Option<u64>,
    /// What the model needs.
    #[serde(flatten)]
    pub needs: Needs,
    /// Weights that have to be streamed layer by layer.
    pub streamed_bytes: u64,
}

impl Fit {
    /// The fit of a model with matrices of `weight_bytes` under a context.
    pub fn new(config: &ModelConfig, weight_bytes: u64, context: usize, device: &ModelDevice) -> Self {
        let needs = Needs::new(config, weight_bytes, context);
        let streamed_bytes = device.memory.map_or(0, |memory| weight_bytes.saturating_sub(needs.room(memory)));
        Self { device: device.in_words(), memory_bytes: device.memory, needs, streamed_bytes }
    }

    /// True if all weights stay on the device.
    pub fn fits(&self) -> bool {
        self.streamed_bytes == 0
    }

    /// The verdict as a sentence.
    pub fn sentence(&self) -> String {
        use crate::units::bytes;
        let Needs { weight_bytes, kv_bytes, activation_bytes } = self.needs;
        let needs = format!(
            "weights {}, keys and values {}, activations {}",
            bytes(weight_bytes),
            bytes(kv_bytes),
            bytes(activation_bytes)
        );
        match self.memory_bytes {
            None => format!("{}: {needs}; how much memory it has is not known", self.device),
            Some(memory) if self.fits() => format!("{} ({}): {needs}: fits", self.device, bytes(memory)),
            Some(memory) => format!(
                "{} ({}): {needs}: {} of the weights are streamed layer by layer",
                self.device,
                bytes(memory),
                bytes(self.streamed_bytes)
            ),
        }
    }
}

impl Needs {
    /// What a model needs with matrices of `weight_bytes` and sequences of `context` tokens.
    pub fn new(config: &ModelConfig, weight_bytes: u64, context: usize) -> Self {
        let tokens = BATCH_TOKENS.max(context) as u64;
        let widest = config.layers.iter().map(|layer| {
            let q = layer.heads * config.head_dim;
            let kv = layer.kv_heads * config.head_dim;
            // The stream twice, what attention works on, and gate, up and their product.
            2 * config.hidden + 3 * q + 4 * kv + 3 * layer.mlp_channels
        });
        let heads = config.layers.iter().map(|layer| layer.heads).max().unwrap_or(0) as u64;
        // Scores and weights of every head of the longest sequence; logits are asked for in parts as long.
        let scores = 2 * heads * (context as u64) * (context as u64);
        let logits = config.vocab as u64 * (context as u64).min(512);
        let rows = widest.max().unwrap_or(0) as u64 * tokens;
        Self {
            weight_bytes,
            kv_bytes: config.kv_bytes_per_token() * context as u64,
            activation_bytes: 4 * (rows + scores + logits),
        }
    }

    /// Bytes that are left for weights.
    pub fn room(&self, memory: u64) -> u64 {
        let usable = memory - (memory as f64 * SPARE_SHARE) as u64;
        usable.saturating_sub(self.kv_bytes + self.activation_bytes)
    }
}

/// The context that memory is set aside for where nobody says.
pub const USUAL_CONTEXT: usize = 2048;

/// Bytes of a device that matrices may take.
pub(super) fn room(checkpoint: &Checkpoint, device: &ModelDevice) -> u64 {
    match (device.memory, &checkpoint.config) {
        (Some(memory), Some(config)) => Needs::new(config, 0, config.context.min(USUAL_CONTEXT)).room(memory),
        _ => u64::MAX,
    }
}

/// Bytes of a checkpoint's matrices as a device holds them.
pub fn device_bytes(checkpoint: &Checkpoint, precision: Precision) -> u64 {
    let matrices = checkpoint.tensors.iter().filter(|tensor| tensor.shape.len() == 2);
    matrices.map(|tensor| Candle::held_bytes(precision, tensor.dtype, tensor.weight_count(), tensor.byte_count)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::bytes;

    fn device(memory: Option<u64>) -> ModelDevice {
        ModelDevice::for_test(memory)
    }

    #[test]
    fn a_model_larger_than_the_memory_is_streamed_and_that_is_said_beforehand() {
        let folder = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("assets/demo");
        let checkpoint = Checkpoint::open(&folder).expect("the demo opens");
        let config = checkpoint.config.as_ref().expect("has a network");
        let weights = device_bytes(&checkpoint, Precision::Stored);
        let large = Fit::new(config, weights, 512, &device(Some(1 << 40)));
        assert!(large.fits() && large.sentence().ends_with("fits"), "{}", large.sentence());
        let needs = large.needs;
        let tight = needs.kv_bytes + needs.activation_bytes + weights / 2;
        let small = Fit::new(config, weights, 512, &device(Some(tight)));
        assert!(!small.fits() && small.sentence().contains("streamed"), "{}", small.sentence());
        assert!(small.sentence().contains(&bytes(small.streamed_bytes)));
        assert!(Fit::new(config, weights, 512, &device(None)).fits());
    }
}
