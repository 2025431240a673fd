//! What a text says of a model: perplexity with its error, and the distance to a baseline.
//!
//! The figures are those that `llama-perplexity --kl-divergence` prints. The ratio of perplexities
//! has the error of the paired differences of ln p, which equals the error from both variances and
//! their covariance and is far smaller than two separate errors suggest.

use serde::{Deserialize, Serialize};

use super::softmax::TokenDistance;
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

/// A candidate's distance from its baseline on the same tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextDistance {
    /// KL(baseline‖candidate) in nats, mean over tokens.
    pub kld_mean: f64,
    pub kld_mean_stderr: f64,
    pub kld_median: f64,
    pub kld_p90: f64,
    pub kld_p95: f64,
    pub kld_p99: f64,
    pub kld_p999: f64,
    pub kld_max: f64,
    /// Share of tokens whose most probable token is the baseline's.
    pub same_top_fraction: f64,
    pub same_top_fraction_stderr: f64,
    /// Candidate's perplexity over the baseline's.
    pub perplexity_ratio: f64,
    pub perplexity_ratio_stderr: f64,
    pub ln_perplexity_ratio: f64,
    pub ln_perplexity_ratio_stderr: f64,
    /// Correlation of the two models' −ln p.
    pub nll_correlation: f64,
    /// Change of the true token's probability, as a fraction.
    pub delta_p_mean: f64,
    pub delta_p_mean_stderr: f64,
    pub delta_p_rms: f64,
    /// KLD of all tokens, counted by size.
    pub kld_histogram: KldHistogram,
    /// KLD of every token in text order; kept in memory only.
    #[serde(skip)]
    pub kld_per_token: Vec<f32>,
}

/// Counts of tokens by the common logarithm of their KLD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KldHistogram {
    /// log10 of the first bin's lower edge, in nats; smaller ones, and zero, are in the first bin.
    pub first_log10: i32,
    /// Bins of one power of ten.
    pub bins_per_decade: u32,
    /// The last bin also holds what is larger.
    pub counts: Vec<u64>,
}

impl KldHistogram {
    const FIRST_LOG10: i32 = -7;
    const BINS_PER_DECADE: u32 = 8;
    const BINS: usize = 72;

    /// Counts KLDs, in nats.
    pub fn of(klds: impl Iterator<Item = f64>) -> Self {
        let mut counts = vec![0; Self::BINS];
        for kld in klds {
            // A float outside the range of usize is cut to it, so that zero (−∞) goes to the first bin.
            let bin = (kld.log10() - f64::from(Self::FIRST_LOG10)) * f64::from(Self::BINS_PER_DECADE);
            counts[(bin.max(0.0) as usize).min(Self::BINS - 1)] += 1;
        }
        Self { first_log10: Self::FIRST_LOG10, bins_per_decade: Self::BINS_PER_DECADE, counts }
    }

    /// Lower edge of a bin, in nats.
    pub fn edge(&self, bin: usize) -> f64 {
        10_f64.powf(f64::from(self.first_log10) + bin as f64 / f64::from(self.bins_per_decade.max(1)))
    }
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
fn finite(value: f64) -> f64 {
    if value.is_finite() { value } else { f64::MAX }
}

impl TextResult {
    /// Figures of the scored tokens' −ln p.
    pub(crate) fn new(text: &ScoredText, nlls: &[f64], distance: Option<TextDistance>) -> Self {
        let (nll_mean, nll_stderr) = mean_and_stderr(nlls.iter().copied());
        let perplexity = finite(nll_mean.exp());
        let tokens_per_byte = text.text_tokens as f64 / text.text_bytes.max(1) as f64;
        Self {
            convention: text.convention,
            context: text.context,
            windows: text.windows.len(),
            tokens: nlls.len(),
            perplexity,
            perplexity_stderr: finite(perplexity * nll_stderr),
            nll_mean,
            bits_per_byte: nll_mean / std::f64::consts::LN_2 * tokens_per_byte,
            distance,
        }
    }
}

impl TextDistance {
    /// Figures of the scored tokens' distances.
    pub fn new(tokens: &[TokenDistance]) -> Self {
        let (kld_mean, kld_mean_stderr) = mean_and_stderr(tokens.iter().map(|token| token.kld));
        let mut sorted: Vec<f64> = tokens.iter().map(|token| token.kld).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let (same_top_fraction, same_top_fraction_stderr) =
            mean_and_stderr(tokens.iter().map(|token| f64::from(u8::from(token.same_top))));
        let (ln_ratio, ln_ratio_stderr) = mean_and_stderr(tokens.iter().map(|token| token.nll - token.baseline_nll));
        let (delta_p_mean, delta_p_mean_stderr) = mean_and_stderr(tokens.iter().map(|token| token.delta_p));
        let squares: f64 = tokens.iter().map(|token| token.delta_p * token.delta_p).sum();
        let ratio = finite(ln_ratio.exp());
        Self {
            kld_mean,
            kld_mean_stderr,
            kld_median: quantile(&sorted, 0.5),
            kld_p90: quantile(&sorted, 0.9),
            kld_p95: quantile(&sorted, 0.95),
            kld_p99: quantile(&sorted, 0.99),
            kld_p999: quantile(&sorted, 0.999),
            kld_max: sorted.last().copied().unwrap_or(0.0),
            same_top_fraction,
            same_top_fraction_stderr,
            perplexity_ratio: ratio,
            perplexity_ratio_stderr: finite(ratio * ln_ratio_stderr),
            ln_perplexity_ratio: ln_ratio,
            ln_perplexity_ratio_stderr: ln_ratio_stderr,
            nll_correlation: correlation(tokens),
            delta_p_mean,
            delta_p_mean_stderr,
            delta_p_rms: (squares / tokens.len().max(1) as f64).sqrt(),
            kld_histogram: KldHistogram::of(tokens.iter().map(|token| token.kld)),
            kld_per_token: tokens.iter().map(|token| token.kld as f32).collect(),
        }
    }
}

/// Pearson correlation of both models' −ln p; 1 where one of them does not vary.
fn correlation(tokens: &[TokenDistance]) -> f64 {
    let (mean_a, _) = mean_and_stderr(tokens.iter().map(|token| token.baseline_nll));
    let (mean_b, _) = mean_and_stderr(tokens.iter().map(|token| token.nll));
    let (mut var_a, mut var_b, mut covariance) = (0.0, 0.0, 0.0);
    for token in tokens {
        let (a, b) = (token.baseline_nll - mean_a, token.nll - mean_b);
        var_a += a * a;
        var_b += b * b;
        covariance += a * b;
    }
    if var_a > 0.0 && var_b > 0.0 { covariance / (var_a * var_b).sqrt() } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(baseline_nll: f64, nll: f64, kld: f64) -> TokenDistance {
        TokenDistance { baseline_nll, nll, kld, same_top: kld < 1.0, delta_p: (-nll).exp() - (-baseline_nll).exp() }
    }

    #[test]
    fn the_ratios_error_is_that_of_both_variances_and_their_covariance() {
        let tokens: Vec<TokenDistance> = (0..50)
            .map(|i| {
                let base = 1.0 + f64::from(i % 7);
                token(base, base + 0.1 * f64::from(i % 3), 0.01)
            })
            .collect();
        let stats = TextDistance::new(&tokens);
        let n = tokens.len() as f64;
        let mean = |f: &dyn Fn(&TokenDistance) -> f64| tokens.iter().map(f).sum::<f64>() / n;
        let (a, b) = (mean(&|t| t.baseline_nll), mean(&|t| t.nll));
        let var_a = mean(&|t| (t.baseline_nll - a).powi(2)) / (n - 1.0);
        let var_b = mean(&|t| (t.nll - b).powi(2)) / (n - 1.0);
        let covariance = mean(&|t| (t.baseline_nll - a) * (t.nll - b)) / (n - 1.0);
        let expected = (var_a + var_b - 2.0 * covariance).sqrt();
        assert!((stats.ln_perplexity_ratio_stderr - expected).abs() < 1e-12);
        assert!(stats.nll_correlation > 0.99);
    }

    #[test]
    fn quantiles_lie_between_neighbours() {
        assert_eq!(quantile(&[0.0, 1.0, 2.0, 3.0], 0.5), 1.5);
        assert_eq!(quantile(&[5.0], 0.999), 5.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }

    #[test]
    fn the_histogram_counts_every_token_and_zero_too() {
        let klds = [0.0, 1e-9, 0.02, 0.021, 1e9];
        let histogram = KldHistogram::of(klds.into_iter());
        assert_eq!(histogram.counts.iter().sum::<u64>(), 5);
        assert_eq!((histogram.counts[0], histogram.counts[71]), (2, 1));
        let bin = histogram.counts.iter().position(|&count| count == 2 && count != 0);
        assert_eq!(bin, Some(0));
        let filled = (1..71).find(|&bin| histogram.counts[bin] > 0).expect("a bin");
        assert!(histogram.edge(filled) <= 0.02 && histogram.edge(filled + 1) > 0.021);
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
        let tokens = [token(1.0, 1.5, 0.25), token(2.0, 2.0, 2.0)];
        for distance in [None, Some(TextDistance::new(&tokens))] {
            let has_distance = distance.is_some();
            let mut result = TextResult::new(&text, &[1.5, 2.0], distance);
            let json = serde_json::to_value(&result).expect("json");
            assert_eq!(json.get("kld_mean").is_some(), has_distance);
            assert_eq!(json.get("perplexity").and_then(serde_json::Value::as_f64), Some(1.75_f64.exp()));
            let back: TextResult = serde_json::from_value(json).expect("back");
            if let Some(distance) = &mut result.distance {
                distance.kld_per_token.clear();
            }
            assert_eq!(back, result);
        }
    }
}
