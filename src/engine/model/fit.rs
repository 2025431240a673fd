//! What a model needs of a device's memory, known before anything is loaded.

use serde::Serialize;

use super::candle::{Candle, Precision};
use crate::checkpoint::{Checkpoint, ModelConfig};
use crate::device::{Listed, ModelDevice, machine_memory};
use crate::error::Result;
use crate::format::Dtype;
use crate::units;

/// Tokens that one batch holds, more or less: enough rows for fast linears, few enough for short waits.
pub const BATCH_TOKENS: usize = 1536;

/// Part of a device's memory that is left to the driver and to the gaps between allocations.
const SPARE_SHARE: f64 = 0.08;

/// Most bytes of weights that are brought up before they are multiplied, where they do not all stay up.
const MOST_AHEAD: u64 = 2 << 30;

/// A place that models run on, as far as what fits there depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelPlace {
    /// Its name in words.
    pub name: String,
    /// Bytes that it has; none where the system does not tell.
    pub memory: Option<u64>,
    /// How a device holds weights; none for the CPU, which holds them as they are stored.
    pub precision: Option<Precision>,
}

impl ModelPlace {
    /// The CPU with the machine's memory.
    pub fn cpu() -> Self {
        Self { name: "CPU".to_owned(), memory: machine_memory(), precision: None }
    }

    /// A device of a list; none where no model runs on it.
    pub fn of(device: &Listed) -> Option<Self> {
        if !device.runs_models() {
            return None;
        }
        let precision = match device.kind {
            "cpu" => None,
            "software" => Some(Precision::Wide),
            _ => Some(Precision::Stored),
        };
        Some(Self { name: device.in_words(), memory: device.memory, precision })
    }

    /// Bytes that a matrix of `count` weights takes there, of which a file has `stored` bytes.
    pub fn held_bytes(&self, dtype: Dtype, count: u64, stored: u64) -> u64 {
        self.precision.map_or(stored, |precision| Candle::held_bytes(precision, dtype, count, stored))
    }

    /// Bytes of a checkpoint's matrices there.
    pub fn weight_bytes(&self, checkpoint: &Checkpoint) -> u64 {
        let matrices = checkpoint.tensors.iter().filter(|tensor| tensor.shape.len() == 2);
        matrices.map(|tensor| self.held_bytes(tensor.dtype, tensor.weight_count(), tensor.byte_count)).sum()
    }
}

impl From<&ModelDevice> for ModelPlace {
    fn from(device: &ModelDevice) -> Self {
        Self { name: device.in_words(), memory: device.memory, precision: Some(Precision::of(device)) }
    }
}

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

/// How a model fits a place.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fit {
    /// The device, or the CPU.
    pub device: String,
    /// Bytes that it has; null where the system does not tell.
    pub memory_bytes: Option<u64>,
    /// Tokens of the longest sequence that room is left for.
    pub context: usize,
    /// What the model needs.
    #[serde(flatten)]
    pub needs: Needs,
    /// Weights that have to be streamed layer by layer: on a device.
    pub streamed_bytes: u64,
    /// What is missing: on the CPU, where nothing is streamed.
    pub missing_bytes: u64,
}

impl Fit {
    /// The fit of a model with matrices of `weight_bytes`, as the place holds them, under a context.
    pub fn new(config: &ModelConfig, weight_bytes: u64, context: usize, place: &ModelPlace) -> Self {
        let context = context.min(config.context).max(1);
        let needs = Needs::new(config, weight_bytes, context);
        let room = place.memory.map_or(u64::MAX, |memory| needs.room(memory));
        let is_cpu = place.precision.is_none();
        let stay = if is_cpu { room } else { Shares::of(room, weight_bytes).stay };
        let rest = weight_bytes.saturating_sub(stay);
        Self {
            device: place.name.clone(),
            memory_bytes: place.memory,
            context,
            needs,
            streamed_bytes: if is_cpu { 0 } else { rest },
            missing_bytes: if is_cpu { rest } else { 0 },
        }
    }

    /// The fit of a checkpoint as it lies on disk.
    ///
    /// # Errors
    /// A checkpoint that is no network that runs here.
    pub fn of_checkpoint(checkpoint: &Checkpoint, context: usize, place: &ModelPlace) -> Result<Self> {
        Ok(Self::new(checkpoint.require_config()?, place.weight_bytes(checkpoint), context, place))
    }

    /// True if all weights stay there.
    pub fn fits(&self) -> bool {
        self.streamed_bytes == 0 && self.missing_bytes == 0
    }

    /// What it needs, without the place's name.
    pub fn needs_in_words(&self) -> String {
        let Needs { weight_bytes, kv_bytes, activation_bytes } = self.needs;
        format!(
            "weights {}, keys and values of {} tokens {}, activations {}",
            units::bytes(weight_bytes),
            self.context,
            units::bytes(kv_bytes),
            units::bytes(activation_bytes)
        )
    }

    /// What comes of it.
    pub fn verdict(&self) -> String {
        match self.memory_bytes {
            None => "how much memory it has is not known".to_owned(),
            Some(_) if self.fits() => "fits".to_owned(),
            Some(_) if self.missing_bytes > 0 => {
                format!("{} too much: the system will swap, or stop the program", units::bytes(self.missing_bytes))
            }
            Some(_) => format!("{} of the weights are streamed layer by layer", units::bytes(self.streamed_bytes)),
        }
    }

    /// Place, needs and verdict as a sentence.
    pub fn sentence(&self) -> String {
        let memory = self.memory_bytes.map_or_else(String::new, |memory| format!(" ({})", units::bytes(memory)));
        format!("{}{memory}: {}: {}", self.device, self.needs_in_words(), self.verdict())
    }
}

/// What becomes of the room for weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shares {
    /// Bytes of matrices that stay.
    pub(super) stay: u64,
    /// Bytes of those that come up for each product, held before they are asked for.
    pub(super) ahead: u64,
}

impl Shares {
    /// All for what stays, if that is enough; else a part is for what comes and goes.
    pub(super) fn of(room: u64, weight_bytes: u64) -> Self {
        let ahead = if weight_bytes <= room { 0 } else { (room / 8).min(MOST_AHEAD) };
        Self { stay: room - ahead, ahead }
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

/// Bytes of a device that a checkpoint's matrices may take, those that come and go among them.
pub(super) fn shares(checkpoint: &Checkpoint, device: &ModelDevice) -> Shares {
    Shares::of(room(checkpoint, device), ModelPlace::from(device).weight_bytes(checkpoint))
}

/// Bytes that are left for matrices beside keys, values and activations.
pub(super) fn room(checkpoint: &Checkpoint, device: &ModelDevice) -> u64 {
    match (device.free_memory(), &checkpoint.config) {
        (Some(memory), Some(config)) => Needs::new(config, 0, config.context.min(USUAL_CONTEXT)).room(memory),
        _ => u64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demo() -> Checkpoint {
        let folder = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("assets/demo");
        Checkpoint::open(&folder).expect("the demo opens")
    }

    fn place(memory: Option<u64>, precision: Option<Precision>) -> ModelPlace {
        ModelPlace { name: "One".to_owned(), memory, precision }
    }

    #[test]
    fn a_model_larger_than_the_memory_is_streamed_and_that_is_said_beforehand() {
        let demo = demo();
        let fit = |memory| Fit::of_checkpoint(&demo, 512, &place(memory, Some(Precision::Stored))).expect("a network");
        let large = fit(Some(1 << 40));
        assert!(large.fits() && large.sentence().ends_with("fits"), "{}", large.sentence());
        let needs = large.needs;
        let tight = needs.kv_bytes + needs.activation_bytes + needs.weight_bytes / 2;
        let small = fit(Some(tight));
        assert!(!small.fits() && small.sentence().contains("streamed"), "{}", small.sentence());
        assert!(small.sentence().contains(&units::bytes(small.streamed_bytes)));
        assert!(fit(None).fits());
    }

    #[test]
    fn the_cpu_streams_nothing_and_says_what_is_missing() {
        let demo = demo();
        let fit = |memory| Fit::of_checkpoint(&demo, 512, &place(Some(memory), None)).expect("a network");
        let needs = fit(1 << 40).needs;
        assert_eq!(needs.weight_bytes, place(None, Some(Precision::Stored)).weight_bytes(&demo), "bf16 either way");
        let small = fit(needs.kv_bytes + needs.activation_bytes);
        assert!(!small.fits() && small.streamed_bytes == 0, "{small:?}");
        // 8 % are left to the system, so that not even keys, values and activations leave room.
        assert_eq!(small.missing_bytes, needs.weight_bytes);
        assert!(small.sentence().contains("swap"), "{}", small.sentence());
    }

    #[test]
    fn what_comes_and_goes_has_a_part_of_the_room_only_where_not_everything_stays() {
        assert_eq!(Shares::of(800, 800), Shares { stay: 800, ahead: 0 });
        assert_eq!(Shares::of(800, 801), Shares { stay: 700, ahead: 100 });
        let large = Shares::of(64 << 30, 65 << 30);
        assert_eq!(large, Shares { stay: (64 << 30) - MOST_AHEAD, ahead: MOST_AHEAD });
        assert_eq!(Shares::of(0, 1), Shares { stay: 0, ahead: 0 });
    }

    #[test]
    fn more_context_needs_more_and_none_beyond_the_models_own() {
        let demo = demo();
        let fit = |context| Fit::of_checkpoint(&demo, context, &place(None, None)).expect("a network");
        let own = demo.config.as_ref().expect("a network").context;
        assert!(fit(64).needs.kv_bytes < fit(128).needs.kv_bytes);
        assert_eq!(fit(own), fit(own * 4));
        assert_eq!(fit(128).needs.kv_bytes, 2 * fit(64).needs.kv_bytes);
    }
}
