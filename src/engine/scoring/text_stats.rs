//! What a text says of a model: perplexity and bits per byte, with the convention that they hold for.

use serde::{Deserialize, Serialize};

use super::distance::TextDistance;
use super::sketch::Moments;
use super::text::{Convention, ScoredText};

/// A model's figures on a text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextResult {
    /// Windows and scored tokens; figures of different conventions cannot be compared.
    pub convention: Convention,
    /// Tokens of a window.
    pub context: usize,
    pub windows: usize,
    /// Scored tokens.
    pub tokens: usize,
    /// e to the mean −ln p.
    pub perplexity: f64,
    pub perplexity_stderr: f64,
    /// Mean −ln p of a scored token, in nats.
    pub nll_mean: f64,
    /// The mean −log2 p of a token over the mean bytes of a token of this text: comparable between tokenizers.
    pub bits_per_byte: f64,
    /// Against the baseline, where there is one.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub distance: Option<TextDistance>,
}

/// Mean and its standard error (sample standard deviation over √n; 0 for fewer than two values).
pub fn mean_and_stderr(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let (mut count, mut sum) = (0_u64, 0.0);
    for value in values.clone() {
        count += 1;
        sum += value;
    }
    if count == 0 {
        return (0.0, 0.0);
    }
    let mean = sum / count as f64;
    if count == 1 {
        return (mean, 0.0);
    }
    let squares: f64 = values.map(|value| (value - mean) * (value - mean)).sum();
    (mean, (squares / (count - 1) as f64 / count as f64).sqrt())
}

/// Value at a fraction of a sorted list, linear between neighbours; 0 of nothing.
pub fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    let at = fraction.clamp(0.0, 1.0) * last as f64;
    let below = at.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (at - below as f64)
}

/// JSON has no infinity, and a perplexity beyond f64 is no more than "broken".
pub(crate) fn finite(value: f64) -> f64 {
    if value.is_finite() { value } else { f64::MAX }
}

impl TextResult {
    /// Figures of the scored tokens' −ln p.
    pub(crate) fn new(text: &ScoredText, nlls: &Moments, distance: Option<TextDistance>) -> Self {
        let (nll_mean, nll_stderr) = (nlls.mean(), nlls.stderr());
        let perplexity = finite(nll_mean.exp());
        let tokens_per_byte = text.text_tokens as f64 / text.text_bytes.max(1) as f64;
        Self {
            convention: text.convention,
            context: text.context,
            windows: text.windows.len(),
            tokens: nlls.count() as usize,
            perplexity,
            perplexity_stderr: finite(perplexity * nll_stderr),
            nll_mean,
            bits_per_byte: nll_mean / std::f64::consts::LN_2 * tokens_per_byte,
            distance,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::distance::{DistanceStats, tests::token};
    use super::*;

    #[test]
    fn quantiles_lie_between_neighbours() {
        assert_eq!(quantile(&[0.0, 1.0, 2.0, 3.0], 0.5), 1.5);
        assert_eq!(quantile(&[5.0], 0.999), 5.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }

    #[test]
    fn figures_survive_a_file_with_and_without_a_baseline() {
        let text = ScoredText {
            convention: Convention::LlamaCpp,
            context: 512,
            windows: Vec::new(),
            text_tokens: 10,
            text_bytes: 40,
        };
        let mut stats = DistanceStats::new(512);
        stats.push(&token(1.0, 1.5, 0.25), 300, 1);
        stats.push(&token(2.0, 2.0, 2.0), 400, 7);
        let mut nlls = Moments::default();
        [1.5, 2.0].into_iter().for_each(|nll| nlls.push(nll));
        for distance in [None, Some(stats.finish())] {
            let has_distance = distance.is_some();
            let result = TextResult::new(&text, &nlls, distance);
            let json = serde_json::to_value(&result).expect("json");
            assert_eq!(json.get("kld_mean").is_some(), has_distance);
            assert_eq!(json.get("perplexity").and_then(serde_json::Value::as_f64), Some(1.75_f64.exp()));
            let back: TextResult = serde_json::from_value(json).expect("back");
            assert_eq!(back, result);
        }
    }
}
