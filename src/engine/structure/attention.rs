//! What heads look at: their mean attention pattern over short stretches of a text.
//!
//! Computed from what the query and key linears are given, beside the forward pass and not inside it, so
//! that the fast kernel need not keep its weights: `softmax(q kᵀ / √d)` with rotated q and k, causal.

use rayon::prelude::*;

use super::{Sample, activations};
use crate::checkpoint::{Checkpoint, ModelConfig, Role};
use crate::error::{Fault, Result, Stage};
use crate::model::Model;
use crate::progress::Progress;

/// Tokens of a stretch: enough to tell the last token, the first and oneself apart, few enough to draw.
const TOKENS: usize = 32;

/// Stretches that are averaged.
const STRETCHES: usize = 16;

/// Mean patterns of all heads.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionPatterns {
    /// Tokens of a stretch.
    pub tokens: usize,
    /// By layer: head after head, row of a query after row, the weight of every key; rows add up to 1.
    pub layers: Vec<Vec<f32>>,
}

impl AttentionPatterns {
    /// The pattern of a head, `tokens` × `tokens`.
    pub fn head(&self, layer: usize, head: usize) -> Option<&[f32]> {
        let len = self.tokens * self.tokens;
        self.layers.get(layer)?.get(head * len..(head + 1) * len)
    }
}

/// The first stretches of a sample's windows.
fn stretches(sample: &Sample) -> Option<Sample> {
    let tokens = sample.windows.iter().map(Vec::len).min()?.min(TOKENS);
    let windows = sample.windows.iter().take(STRETCHES).map(|ids| ids[..tokens].to_vec()).collect();
    Some(Sample { windows, text_hash: sample.text_hash.clone() })
}

/// Mean attention patterns over the first tokens of a sample's windows.
///
/// # Errors
/// An empty sample, weights that cannot be decoded, or cancel.
pub fn patterns(
    checkpoint: &Checkpoint,
    model: &Model,
    sample: &Sample,
    progress: &Progress,
) -> Result<AttentionPatterns> {
    let sample = stretches(sample)
        .ok_or_else(|| Fault::new(Stage::Calibration, "the sample is empty").fix("use a longer text"))?;
    let tokens = sample.windows.first().map_or(0, Vec::len);
    let config = &model.config;
    let mut inputs: Vec<Vec<f32>> = vec![Vec::new(); config.layers.len()];
    activations::run(model, &sample, progress, &mut |input, _| {
        if let (Some(layer), Some(Role::Q)) = (input.layer, input.roles.first()) {
            inputs[layer].extend_from_slice(input.values);
        }
    })?;
    let rotation = Rotation::new(config, tokens);
    let layers = inputs
        .iter()
        .enumerate()
        .map(|(layer, input)| of_layer(checkpoint, config, layer, input, tokens, &rotation, progress))
        .collect::<Result<_>>()?;
    Ok(AttentionPatterns { tokens, layers })
}

/// Cosines and sines of every position, half a head each.
struct Rotation {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotation {
    fn new(config: &ModelConfig, tokens: usize) -> Self {
        let half = config.head_dim / 2;
        let factors = config.rope.factors(config.head_dim);
        let frequency = |index: usize| {
            let divisor = factors.as_ref().and_then(|all| all.get(index)).copied().unwrap_or(1.0);
            config.rope.theta.powf(-2.0 * index as f64 / config.head_dim as f64) / f64::from(divisor)
        };
        let angles = (0..tokens).flat_map(|position| (0..half).map(move |index| (position, index)));
        let angles: Vec<f64> = angles.map(|(position, index)| position as f64 * frequency(index)).collect();
        let cos = angles.iter().map(|angle| angle.cos() as f32).collect();
        Self { half, cos, sin: angles.iter().map(|angle| angle.sin() as f32).collect() }
    }

    /// Rotates one head's values of a token, Hugging Face's halves.
    fn apply(&self, position: usize, values: &mut [f32]) {
        let (first, second) = values.split_at_mut(self.half);
        let at = position * self.half..(position + 1) * self.half;
        for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(&self.cos[at.clone()]).zip(&self.sin[at]) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

/// `x Wᵀ + b` of a layer's linear, rotated: row of a token after row, head beside head.
fn projected(
    checkpoint: &Checkpoint,
    layer: usize,
    stem: &str,
    input: &[f32],
    tokens: usize,
    rotation: &Rotation,
) -> Result<Vec<f32>> {
    let name = |kind: &str| format!("model.layers.{layer}.self_attn.{stem}.{kind}");
    let tensor = checkpoint.tensor(&name("weight")).ok_or_else(|| {
        Fault::new(Stage::Sensitivity, "the tensor is missing").at(name("weight")).file(&checkpoint.path)
    })?;
    let (rows, cols) = (tensor.row_count(), tensor.row_len());
    let (mut raw, mut weights, mut bias) = (Vec::new(), Vec::new(), vec![0.0; rows]);
    checkpoint.decode_rows(tensor, 0..rows, &mut raw, &mut weights)?;
    if let Some(stored) = checkpoint.tensor(&name("bias")) {
        checkpoint.decode_rows(stored, 0..1, &mut raw, &mut bias)?;
    }
    let mut out = vec![0.0; input.len() / cols * rows];
    out.par_chunks_exact_mut(rows).zip(input.par_chunks_exact(cols)).enumerate().for_each(|(token, (out, x))| {
        for ((value, row), bias) in out.iter_mut().zip(weights.chunks_exact(cols)).zip(&bias) {
            *value = row.iter().zip(x).map(|(w, x)| w * x).sum::<f32>() + bias;
        }
        for head in out.chunks_exact_mut(2 * rotation.half) {
            rotation.apply(token % tokens, head);
        }
    });
    Ok(out)
}

fn of_layer(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    layer: usize,
    input: &[f32],
    tokens: usize,
    rotation: &Rotation,
    progress: &Progress,
) -> Result<Vec<f32>> {
    progress.check()?;
    let (shape, width) = (config.layers[layer], config.head_dim);
    let q = projected(checkpoint, layer, "q_proj", input, tokens, rotation)?;
    let k = projected(checkpoint, layer, "k_proj", input, tokens, rotation)?;
    let (q_row, k_row) = (shape.heads * width, shape.kv_heads * width);
    let stretches = q.len() / (tokens * q_row).max(1);
    let mut patterns = vec![0.0; shape.heads * tokens * tokens];
    patterns.par_chunks_exact_mut(tokens * tokens).enumerate().for_each(|(head, pattern)| {
        let kv = head / (shape.heads / shape.kv_heads);
        let mut weights = vec![0.0f32; tokens];
        for stretch in 0..stretches {
            let query = |token: usize| &q[(stretch * tokens + token) * q_row + head * width..][..width];
            let key = |token: usize| &k[(stretch * tokens + token) * k_row + kv * width..][..width];
            for row in 0..tokens {
                let own = query(row);
                let mut most = f32::NEG_INFINITY;
                for (token, weight) in weights[..=row].iter_mut().enumerate() {
                    let dot: f32 = own.iter().zip(key(token)).map(|(a, b)| a * b).sum();
                    *weight = dot / (width as f32).sqrt();
                    most = most.max(*weight);
                }
                let total: f32 = weights[..=row]
                    .iter_mut()
                    .map(|weight| {
                        *weight = (*weight - most).exp();
                        *weight
                    })
                    .sum();
                let scale = 1.0 / (total * stretches as f32);
                let out = &mut pattern[row * tokens..=row * tokens + row];
                out.iter_mut().zip(&weights).for_each(|(out, weight)| *out += weight * scale);
            }
        }
    });
    Ok(patterns)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn patterns_times_values_are_what_heads_give() {
        for name in ["biases", "gqa_untied", "rope_llama3"] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../tests/fixtures/tiny_llama_{name}"));
            let checkpoint = Checkpoint::open(&folder).expect("opens");
            let progress = Progress::default();
            let model = Model::load(&checkpoint, &progress).expect("loads");
            // One stretch, so that the mean is the pattern.
            let sample = Sample { windows: vec![vec![5, 17, 2, 90, 44, 8, 8, 61]], text_hash: String::new() };
            let found = patterns(&checkpoint, &model, &sample, &progress).expect("computes");
            let tokens = found.tokens;
            let config = &model.config;
            let mut seen = Vec::new();
            activations::run(&model, &sample, &progress, &mut |input, _| {
                if let (Some(layer), Some(role @ (Role::Q | Role::O))) = (input.layer, input.roles.first()) {
                    seen.push((layer, *role, input.values.to_vec()));
                }
            })
            .expect("runs");
            let input =
                |layer: usize, role: Role| &seen.iter().find(|one| (one.0, one.1) == (layer, role)).expect("seen").2;
            // No rotation of values.
            let still = Rotation {
                half: config.head_dim / 2,
                cos: vec![1.0; tokens * config.head_dim],
                sin: vec![0.0; tokens * config.head_dim],
            };
            for (layer, shape) in config.layers.iter().enumerate() {
                let v =
                    projected(&checkpoint, layer, "v_proj", input(layer, Role::Q), tokens, &still).expect("projects");
                let given = input(layer, Role::O);
                for head in 0..shape.heads {
                    let pattern = found.head(layer, head).expect("there");
                    let kv = head / (shape.heads / shape.kv_heads);
                    for row in 0..tokens {
                        let weights = &pattern[row * tokens..(row + 1) * tokens];
                        assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
                        assert!(weights[row + 1..].iter().all(|weight| *weight == 0.0), "causal");
                        for at in 0..config.head_dim {
                            let mixed: f32 = (0..tokens)
                                .map(|token| weights[token] * v[(token * shape.kv_heads + kv) * config.head_dim + at])
                                .sum();
                            let theirs = given[(row * shape.heads + head) * config.head_dim + at];
                            assert!(
                                (mixed - theirs).abs() < 1e-4 * (1.0 + theirs.abs()),
                                "{name} {layer} {head}: {mixed} {theirs}"
                            );
                        }
                    }
                }
            }
            assert_eq!(found.head(0, 99), None);
        }
    }
}
