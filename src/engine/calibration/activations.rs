//! What every linear is given on a text: how large each channel gets, how its energy is spread, and
//! the second moments that tell the error of a linear's output.
//!
//! One forward pass. Of every input the sum of squares and the largest magnitude of each channel are
//! kept; where they fit the memory allowed, also the sums of products of every two channels.

use std::collections::HashMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{ModelConfig, Role};
use crate::error::{Fault, Result, Stage};
use crate::kernels::dense::{Dense, Panels, Plain};
use crate::model::{Batch, LinearInput, Model};
use crate::progress::{Phase, Progress, Unit};
use crate::scoring::BATCH_TOKENS;
use crate::scoring::text::Window;
use crate::units;

/// A channel whose largest value is so many times the root mean square of its input is an outlier.
/// Dettmers et al. (LLM.int8, 2022) call values of magnitude 6 outliers where the rest is near 1.
const OUTLIER: f64 = 6.0;

/// How activations are collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActivationOptions {
    /// Memory for products of channels. Narrow inputs come first; what does not fit has its squares alone.
    pub most_product_bytes: u64,
}

impl Default for ActivationOptions {
    fn default() -> Self {
        Self { most_product_bytes: 1 << 30 }
    }
}

/// What some linears were given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InputActivations {
    /// The layer; none for the head.
    pub layer: Option<usize>,
    /// The linears that share this input.
    #[serde(serialize_with = "write_roles", deserialize_with = "read_roles")]
    pub roles: Vec<Role>,
    /// Sum over the tokens of the squared input, per channel.
    pub squares: Vec<f64>,
    /// Largest magnitude, per channel.
    pub largest: Vec<f32>,
    /// Sums of products, channels × channels, row after row; symmetric. Not written to files.
    #[serde(skip)]
    pub products: Option<Vec<f32>>,
}

/// Figures of one input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InputFigures {
    /// Root mean square over tokens and channels.
    pub rms: f64,
    /// Largest magnitude.
    pub largest: f64,
    /// The channel of it.
    pub largest_channel: usize,
    /// Channels whose largest magnitude is more than six times the root mean square.
    pub outliers: usize,
    /// Entropy of the squared input taken as a distribution over channels, as a share of the largest
    /// there can be: 1 where all channels are alike.
    pub entropy_share: f64,
}

/// Inputs of every linear of a model on a text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Activations {
    /// Layer by layer, the head last.
    pub inputs: Vec<InputActivations>,
    /// Tokens that were read.
    pub tokens: u64,
    /// How many different tokens of the vocabulary were among them.
    pub distinct_tokens: usize,
    /// Tokens that the model knows.
    pub vocab: usize,
    /// The text's name.
    pub text: String,
}

impl InputActivations {
    /// Channels.
    pub fn width(&self) -> usize {
        self.squares.len()
    }

    /// Figures over `tokens` tokens.
    pub fn figures(&self, tokens: u64) -> InputFigures {
        let sum: f64 = self.squares.iter().sum();
        let rms = (sum / (tokens.max(1) as f64 * self.width().max(1) as f64)).sqrt();
        let most = self.largest.iter().copied().enumerate().max_by(|one, other| one.1.total_cmp(&other.1));
        let (largest_channel, largest) = most.unwrap_or((0, 0.0));
        let outliers = self.largest.iter().filter(|value| f64::from(**value) > OUTLIER * rms).count();
        let shares = self.squares.iter().map(|square| square / sum).filter(|share| *share > 0.0);
        let entropy: f64 = shares.map(|share| -share * share.ln()).sum();
        let entropy_share = if self.width() > 1 { entropy / (self.width() as f64).ln() } else { 0.0 };
        InputFigures { rms, largest: f64::from(largest), largest_channel, outliers, entropy_share }
    }
}

impl Activations {
    /// The input of a linear; of an embedding, that of the head it serves as.
    pub fn input(&self, layer: Option<usize>, role: Role) -> Option<&InputActivations> {
        let role = if role == Role::Embedding { Role::Head } else { role };
        self.inputs.iter().find(|input| input.layer == layer && input.roles.contains(&role))
    }

    /// Runs `model` over the windows and sums what its linears are given. Counts tokens as [`Phase::Calibrating`].
    ///
    /// # Errors
    /// A model that yields no finite numbers, or cancel.
    pub fn collect(
        model: &Model,
        windows: &[Window],
        text: &str,
        options: &ActivationOptions,
        progress: &Progress,
    ) -> Result<Self> {
        let tokens: usize = windows.iter().map(|window| window.ids.len()).sum();
        progress.begin(Phase::Calibrating, tokens as u64, Unit::Tokens);
        let most_width = widest_with_products(&model.config, options.most_product_bytes);
        let mut inputs: Vec<InputActivations> = Vec::new();
        let mut places: HashMap<(Option<usize>, Role), usize> = HashMap::new();
        let mut seen = vec![false; model.config.vocab];
        let mut rest = windows;
        while !rest.is_empty() {
            let mut batch = Batch::default();
            let mut count = 0;
            for window in rest {
                if count > 0 && batch.ids.len() + window.ids.len() > BATCH_TOKENS {
                    break;
                }
                batch.push(&window.ids, None, None);
                count += 1;
            }
            rest = &rest[count..];
            for &id in &batch.ids {
                if let Some(seen) = seen.get_mut(id as usize) {
                    *seen = true;
                }
            }
            model.watch_linears(&batch, progress, &mut |input| {
                let Some(&first) = input.roles.first() else { return };
                let place = *places.entry((input.layer, first)).or_insert_with(|| {
                    inputs.push(InputActivations {
                        layer: input.layer,
                        roles: input.roles.to_vec(),
                        squares: vec![0.0; input.width],
                        largest: vec![0.0; input.width],
                        products: (input.width <= most_width).then(|| vec![0.0; input.width * input.width]),
                    });
                    inputs.len() - 1
                });
                inputs[place].add(&input);
            })?;
            progress.advance(batch.ids.len() as u64);
        }
        if let Some(broken) = inputs.iter().find(|input| input.squares.iter().any(|square| !square.is_finite())) {
            let place = match broken.layer {
                Some(layer) => format!("layer {layer}, {}", broken.roles.first().map_or("linear", |role| role.name())),
                None => "head".to_owned(),
            };
            return Err(Fault::new(Stage::Calibration, "inputs of a linear are NaN or infinite")
                .at(place)
                .fix("look for NaN or infinity in the weights: `lapidary profile`")
                .into());
        }
        Ok(Self {
            inputs,
            tokens: tokens as u64,
            distinct_tokens: seen.iter().filter(|seen| **seen).count(),
            vocab: model.config.vocab,
            text: text.to_owned(),
        })
    }

    /// What the user should know of the text, where it is too little.
    pub fn warnings(&self) -> Vec<String> {
        let widest = self.inputs.iter().map(InputActivations::width).max().unwrap_or(0);
        if self.tokens >= widest as u64 {
            return Vec::new();
        }
        vec![format!(
            "The text has {} tokens, fewer than the {widest} channels of the widest linear: second moments are not full. \
             Use more text.",
            units::count(self.tokens)
        )]
    }
}

/// Widest input whose products are kept: all inputs up to it fit the memory together.
fn widest_with_products(config: &ModelConfig, most_bytes: u64) -> usize {
    let layers = config.layers.iter();
    let mut widths: Vec<usize> = layers
        .flat_map(|layer| [config.hidden, layer.heads * config.head_dim, config.hidden, layer.mlp_channels])
        .chain([config.hidden])
        .collect();
    widths.sort_unstable();
    let mut left = most_bytes;
    let mut most = 0;
    for same in widths.chunk_by(|one, other| one == other) {
        let bytes = (same[0] as u64).saturating_mul(same[0] as u64).saturating_mul(4 * same.len() as u64);
        match left.checked_sub(bytes) {
            Some(rest) => (left, most) = (rest, same[0]),
            None => break,
        }
    }
    most
}

/// Channels that one task sums: enough for whole cache lines, few enough for every core.
const TASK_CHANNELS: usize = 64;

impl InputActivations {
    /// Adds rows in their order whatever the number of threads.
    fn add(&mut self, input: &LinearInput<'_>) {
        let tasks = self.squares.par_chunks_mut(TASK_CHANNELS).zip(self.largest.par_chunks_mut(TASK_CHANNELS));
        tasks.enumerate().for_each(|(task, (squares, largest))| {
            let from = task * TASK_CHANNELS;
            for row in input.values.chunks_exact(input.width) {
                for ((square, largest), &value) in squares.iter_mut().zip(largest.iter_mut()).zip(&row[from..]) {
                    *square += f64::from(value) * f64::from(value);
                    *largest = largest.max(value.abs());
                }
            }
        });
        if let Some(products) = &mut self.products {
            add_products(products, input);
        }
    }
}

/// Adds `XᵀX`: rows of the transpose multiplied with one another.
fn add_products(products: &mut [f32], input: &LinearInput<'_>) {
    let width = input.width;
    let tokens = input.values.len() / width.max(1);
    let mut channels = vec![0.0f32; input.values.len()];
    channels.par_chunks_exact_mut(tokens.max(1)).enumerate().for_each(|(channel, out)| {
        for (out, row) in out.iter_mut().zip(input.values.chunks_exact(width)) {
            *out = row[channel];
        }
    });
    let bytes: Vec<u8> = channels.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut sums = vec![0.0; width * width];
    Dense::new(Plain::F32, &bytes, width, tokens).matmul(&Panels::new(&channels, tokens), &mut sums);
    products.par_iter_mut().zip(sums).for_each(|(product, sum)| *product += sum);
}

fn write_roles<S: serde::Serializer>(roles: &[Role], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_seq(roles.iter().map(|role| role.name()))
}

fn read_roles<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<Role>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    let role = |name: &String| Role::find(name).ok_or_else(|| serde::de::Error::custom(format!("no role {name:?}")));
    names.iter().map(role).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::checkpoint::Checkpoint;

    fn tiny() -> Model {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("tests/fixtures/tiny_llama_biases");
        let checkpoint = Checkpoint::open(&folder).expect("opens");
        Model::load(&checkpoint, &Progress::default()).expect("loads")
    }

    fn windows() -> Vec<Window> {
        let ids = |seed: u32| (0..12).map(|at| (at * 7 + seed) % 90).collect();
        (0..5).map(|seed| Window { ids: ids(seed), scored_from: 1 }).collect()
    }

    #[test]
    fn sums_are_those_of_the_rows_whatever_the_threads() {
        let model = tiny();
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
            let options = ActivationOptions::default();
            pool.install(|| Activations::collect(&model, &windows(), "t", &options, &Progress::default()))
                .expect("runs")
        };
        let found = with(1);
        assert_eq!(found, with(3));
        assert_eq!(found.inputs.len(), 4 * model.config.layers.len() + 1);
        let (mut batch, mut rows) = (Batch::default(), Vec::new());
        for window in windows() {
            batch.push(&window.ids, None, None);
        }
        model
            .watch_linears(&batch, &Progress::default(), &mut |input| {
                if input.layer == Some(1) && input.roles == [Role::Down] {
                    rows = input.values.to_vec();
                }
            })
            .expect("runs");
        let input = found.input(Some(1), Role::Down).expect("watched");
        let width = input.width();
        let products = input.products.as_ref().expect("small");
        for a in 0..width {
            let column = |at: usize| rows.chunks_exact(width).map(move |row| f64::from(row[at]));
            let squares: f64 = column(a).map(|value| value * value).sum();
            assert!((input.squares[a] - squares).abs() <= 1e-9 * squares);
            assert_eq!(f64::from(input.largest[a]), column(a).map(f64::abs).fold(0.0, f64::max));
            for b in 0..width {
                let product: f64 = column(a).zip(column(b)).map(|(a, b)| a * b).sum();
                let bound = 1e-5 * (squares * input.squares[b]).sqrt();
                assert!((f64::from(products[a * width + b]) - product).abs() <= bound, "{a} {b}");
            }
        }
        let figures = input.figures(found.tokens);
        assert!(figures.entropy_share > 0.0 && figures.entropy_share <= 1.0);
        assert_eq!(figures.largest, f64::from(input.largest[figures.largest_channel]));
    }

    #[test]
    fn products_beyond_the_memory_allowed_are_left_out_widest_first() {
        let model = tiny();
        let narrow = (model.config.hidden * model.config.hidden * 4) as u64 * 7;
        let options = ActivationOptions { most_product_bytes: narrow };
        let found = Activations::collect(&model, &windows(), "t", &options, &Progress::default()).expect("runs");
        assert!(found.input(Some(0), Role::Q).expect("watched").products.is_some());
        assert!(found.input(Some(0), Role::Down).expect("watched").products.is_none());
        let none = ActivationOptions { most_product_bytes: 0 };
        let found = Activations::collect(&model, &windows(), "t", &none, &Progress::default()).expect("runs");
        assert!(found.inputs.iter().all(|input| input.products.is_none()));
        assert!(found.warnings().is_empty() || found.tokens < 64);
    }

    #[test]
    fn figures_find_the_channel_that_sticks_out() {
        let input = InputActivations {
            layer: Some(0),
            roles: vec![Role::Q],
            squares: vec![10.0, 10.0, 10.0, 0.0],
            largest: vec![1.0, 12.0, 2.0, 0.0],
            products: None,
        };
        let figures = input.figures(10);
        assert_eq!((figures.largest_channel, figures.outliers), (1, 1));
        assert!((figures.entropy_share - 3f64.ln() / 4f64.ln()).abs() < 1e-12);
    }
}
