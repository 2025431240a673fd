//! How far a candidate's predictions on a text are from its baseline's.
//!
//! The figures are those of `llama-perplexity --kl-divergence`, under their definitions
//! (`tools/perplexity/perplexity.cpp`), and those that people ask for beside them: the reverse KLD, the
//! overlap of both distributions, and the KLD over position, over the frequency of the true token and over
//! the baseline's confidence. The ratio of perplexities has the error of both variances and their
//! covariance, which is far smaller than two separate errors suggest.
//!
//! [`DistanceStats`] takes tokens one at a time and holds the same memory for a thousand and for a
//! thousand million of them ([`super::sketch`] says how exact its quantiles are).

use serde::{Deserialize, Serialize};

use super::sketch::{Moments, PairMoments, Quantiles};
use super::softmax::TokenDistance;
use super::text_stats::finite;
use super::top_k::KeptFrom;

/// Bins of the KLD over the position in the window.
const POSITION_BINS: usize = 16;
/// Bins of the KLD over the baseline's confidence.
const CONFIDENCE_BINS: usize = 10;
/// Bins of the KLD over a token's count: 1, 2 to 3, 4 to 7 …, the last without end.
const COUNT_BINS: usize = 16;

/// Quantiles under llama.cpp's names, linear between neighbours.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    pub max: f64,
    pub p999: f64,
    pub p99: f64,
    pub p95: f64,
    pub p90: f64,
    pub p75: f64,
    pub median: f64,
    pub p25: f64,
    pub p10: f64,
    pub p05: f64,
    pub p01: f64,
    pub p001: f64,
    pub min: f64,
}

impl Percentiles {
    fn of(values: &mut Quantiles) -> Self {
        Self {
            max: values.max(),
            p999: values.quantile(0.999),
            p99: values.quantile(0.99),
            p95: values.quantile(0.95),
            p90: values.quantile(0.9),
            p75: values.quantile(0.75),
            median: values.quantile(0.5),
            p25: values.quantile(0.25),
            p10: values.quantile(0.1),
            p05: values.quantile(0.05),
            p01: values.quantile(0.01),
            p001: values.quantile(0.001),
            min: values.min(),
        }
    }

    /// Names as llama.cpp prints them, from the largest to the smallest.
    pub fn named(&self) -> [(&'static str, f64); 13] {
        [
            ("Maximum", self.max),
            ("99.9%", self.p999),
            ("99.0%", self.p99),
            ("95.0%", self.p95),
            ("90.0%", self.p90),
            ("75.0%", self.p75),
            ("Median", self.median),
            ("25.0%", self.p25),
            ("10.0%", self.p10),
            ("5.0%", self.p05),
            ("1.0%", self.p01),
            ("0.1%", self.p001),
            ("Minimum", self.min),
        ]
    }
}

/// Tokens that have something in common, such as a place in the window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DistanceBin {
    /// Smallest value of the bin.
    pub from: f64,
    /// First value beyond it.
    pub to: f64,
    pub tokens: u64,
    pub kld_mean: f64,
    pub kld_mean_stderr: f64,
    pub same_top_fraction: f64,
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
    /// The same and the smaller ones.
    #[serde(default)]
    pub kld_percentiles: Percentiles,
    /// KL(candidate‖baseline) in nats.
    #[serde(default)]
    pub reverse_kld_mean: f64,
    #[serde(default)]
    pub reverse_kld_mean_stderr: f64,
    #[serde(default)]
    pub reverse_kld_percentiles: Percentiles,
    /// Share of tokens whose most probable token is the baseline's.
    pub same_top_fraction: f64,
    pub same_top_fraction_stderr: f64,
    /// The baseline's perplexity on the same tokens.
    #[serde(default)]
    pub baseline_perplexity: f64,
    #[serde(default)]
    pub baseline_perplexity_stderr: f64,
    /// Candidate's perplexity over the baseline's.
    pub perplexity_ratio: f64,
    pub perplexity_ratio_stderr: f64,
    pub ln_perplexity_ratio: f64,
    pub ln_perplexity_ratio_stderr: f64,
    /// Candidate's perplexity minus the baseline's.
    #[serde(default)]
    pub perplexity_difference: f64,
    #[serde(default)]
    pub perplexity_difference_stderr: f64,
    /// Correlation of the two models' −ln p.
    pub nll_correlation: f64,
    /// Change of the true token's probability, as a fraction.
    pub delta_p_mean: f64,
    pub delta_p_mean_stderr: f64,
    pub delta_p_rms: f64,
    #[serde(default)]
    pub delta_p_rms_stderr: f64,
    #[serde(default)]
    pub delta_p_percentiles: Percentiles,
    /// Mean Σ min(p, q): the chance that the candidate's draft of a token is accepted by the baseline.
    #[serde(default)]
    pub acceptance_mean: f64,
    #[serde(default)]
    pub acceptance_mean_stderr: f64,
    /// KLD of all tokens, counted by size.
    pub kld_histogram: KldHistogram,
    /// Over the position of the true token in its window.
    #[serde(default)]
    pub kld_by_position: Vec<DistanceBin>,
    /// Over how often the true token occurs among the scored ones.
    #[serde(default)]
    pub kld_by_token_count: Vec<DistanceBin>,
    /// Over the baseline's probability of its most probable token.
    #[serde(default)]
    pub kld_by_confidence: Vec<DistanceBin>,
    /// False where the stream was too long for exact quantiles, which then are within 0.1 %.
    #[serde(default)]
    pub quantiles_are_exact: bool,
    /// Where the baseline's predictions were kept and not made anew: how exact the distances are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<KeptFrom>,
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

    fn new() -> Self {
        let counts = vec![0; Self::BINS];
        Self { first_log10: Self::FIRST_LOG10, bins_per_decade: Self::BINS_PER_DECADE, counts }
    }

    fn push(&mut self, kld: f64) {
        // A float outside the range of usize is cut to it, so that zero (−∞) goes to the first bin.
        let bin = (kld.log10() - f64::from(Self::FIRST_LOG10)) * f64::from(Self::BINS_PER_DECADE);
        self.counts[(bin.max(0.0) as usize).min(Self::BINS - 1)] += 1;
    }

    /// Lower edge of a bin, in nats.
    pub fn edge(&self, bin: usize) -> f64 {
        10_f64.powf(f64::from(self.first_log10) + bin as f64 / f64::from(self.bins_per_decade.max(1)))
    }
}

/// KLD and agreement of the tokens of one bin.
#[derive(Clone, Copy, Debug, Default)]
struct BinStats {
    kld: Moments,
    same_top: u64,
}

impl BinStats {
    fn push(&mut self, token: &TokenDistance) {
        self.kld.push(token.kld);
        self.same_top += u64::from(token.same_top);
    }
}

/// The bins that have tokens; `edge` gives the first value of each bin.
fn bins(stats: &[BinStats], edge: impl Fn(usize) -> f64) -> Vec<DistanceBin> {
    let filled = stats.iter().enumerate().filter(|(_, bin)| bin.kld.count() > 0);
    filled
        .map(|(index, bin)| DistanceBin {
            from: edge(index),
            to: edge(index + 1),
            tokens: bin.kld.count(),
            kld_mean: bin.kld.mean(),
            kld_mean_stderr: bin.kld.stderr(),
            same_top_fraction: bin.same_top as f64 / bin.kld.count() as f64,
        })
        .collect()
}

/// Distances of a text, token by token.
#[derive(Clone, Debug)]
pub struct DistanceStats {
    nlls: PairMoments,
    kld: Moments,
    reverse_kld: Moments,
    same_top: Moments,
    delta_p: Moments,
    delta_p_squared: Moments,
    overlap: Moments,
    klds: Quantiles,
    reverse_klds: Quantiles,
    delta_ps: Quantiles,
    histogram: KldHistogram,
    position_width: usize,
    by_position: [BinStats; POSITION_BINS],
    by_count: [BinStats; COUNT_BINS],
    by_confidence: [BinStats; CONFIDENCE_BINS],
}

impl DistanceStats {
    /// Nothing yet, of windows of `context` tokens.
    pub fn new(context: usize) -> Self {
        Self {
            nlls: PairMoments::default(),
            kld: Moments::default(),
            reverse_kld: Moments::default(),
            same_top: Moments::default(),
            delta_p: Moments::default(),
            delta_p_squared: Moments::default(),
            overlap: Moments::default(),
            klds: Quantiles::default(),
            reverse_klds: Quantiles::default(),
            delta_ps: Quantiles::default(),
            histogram: KldHistogram::new(),
            position_width: context.div_ceil(POSITION_BINS).max(1),
            by_position: Default::default(),
            by_count: Default::default(),
            by_confidence: Default::default(),
        }
    }

    /// Takes in a token that stands at `position` of its window and occurs `count` times among the scored ones.
    pub fn push(&mut self, token: &TokenDistance, position: u32, count: u32) {
        self.nlls.push(token.baseline_nll, token.nll);
        self.kld.push(token.kld);
        self.reverse_kld.push(token.reverse_kld);
        self.same_top.push(f64::from(u8::from(token.same_top)));
        self.delta_p.push(token.delta_p);
        self.delta_p_squared.push(token.delta_p * token.delta_p);
        self.overlap.push(token.overlap);
        self.klds.push(token.kld);
        self.reverse_klds.push(token.reverse_kld);
        self.delta_ps.push(token.delta_p);
        self.histogram.push(token.kld);
        self.by_position[(position as usize / self.position_width).min(POSITION_BINS - 1)].push(token);
        self.by_count[(count.max(1).ilog2() as usize).min(COUNT_BINS - 1)].push(token);
        let confidence = (token.confidence * CONFIDENCE_BINS as f64) as usize;
        self.by_confidence[confidence.min(CONFIDENCE_BINS - 1)].push(token);
    }

    /// Both models' −ln p: the baseline's as `a`, the candidate's as `b`.
    pub fn nlls(&self) -> PairMoments {
        self.nlls
    }

    /// The figures of all that was taken in.
    pub fn finish(mut self) -> TextDistance {
        let PairMoments { a, b, .. } = self.nlls;
        let count = a.count().max(1) as f64;
        let covariance = self.nlls.covariance();
        let ln_ratio = b.mean() - a.mean();
        let ln_ratio_stderr = ((a.variance() + b.variance() - 2.0 * covariance).max(0.0) / count).sqrt();
        let (ratio, base, own) = (finite(ln_ratio.exp()), finite(a.mean().exp()), finite(b.mean().exp()));
        let difference_variance = own * own * b.variance() + base * base * a.variance() - 2.0 * own * base * covariance;
        let kld = Percentiles::of(&mut self.klds);
        let rms = self.delta_p_squared.mean().sqrt();
        let width = self.position_width as f64;
        TextDistance {
            kld_mean: self.kld.mean(),
            kld_mean_stderr: self.kld.stderr(),
            kld_median: kld.median,
            kld_p90: kld.p90,
            kld_p95: kld.p95,
            kld_p99: kld.p99,
            kld_p999: kld.p999,
            kld_max: kld.max,
            kld_percentiles: kld,
            reverse_kld_mean: self.reverse_kld.mean(),
            reverse_kld_mean_stderr: self.reverse_kld.stderr(),
            reverse_kld_percentiles: Percentiles::of(&mut self.reverse_klds),
            same_top_fraction: self.same_top.mean(),
            same_top_fraction_stderr: self.same_top.stderr(),
            baseline_perplexity: base,
            baseline_perplexity_stderr: finite(base * a.stderr()),
            perplexity_ratio: ratio,
            perplexity_ratio_stderr: finite(ratio * ln_ratio_stderr),
            ln_perplexity_ratio: ln_ratio,
            ln_perplexity_ratio_stderr: ln_ratio_stderr,
            perplexity_difference: finite(own - base),
            perplexity_difference_stderr: finite((difference_variance.max(0.0) / count).sqrt()),
            nll_correlation: self.nlls.correlation(),
            delta_p_mean: self.delta_p.mean(),
            delta_p_mean_stderr: self.delta_p.stderr(),
            delta_p_rms: rms,
            delta_p_rms_stderr: if rms > 0.0 { self.delta_p_squared.stderr() / (2.0 * rms) } else { 0.0 },
            delta_p_percentiles: Percentiles::of(&mut self.delta_ps),
            acceptance_mean: self.overlap.mean(),
            acceptance_mean_stderr: self.overlap.stderr(),
            kld_by_position: bins(&self.by_position, |bin| bin as f64 * width),
            kld_by_token_count: bins(&self.by_count, |bin| 2_f64.powi(bin as i32)),
            kld_by_confidence: bins(&self.by_confidence, |bin| bin as f64 / CONFIDENCE_BINS as f64),
            quantiles_are_exact: self.klds.is_exact(),
            kept: None,
            kld_histogram: self.histogram,
        }
    }
}

impl TextDistance {
    /// Every figure with its error, where it has one, named and scaled as `llama-perplexity --kl-divergence` prints it.
    ///
    /// Probabilities are percentages there; `perplexity` is the candidate's with its error.
    pub fn llama_cpp_figures(&self, perplexity: (f64, f64)) -> Vec<(String, f64, Option<f64>)> {
        let mut figures = vec![
            ("Mean PPL(Q)".to_owned(), perplexity.0, Some(perplexity.1)),
            ("Mean PPL(base)".to_owned(), self.baseline_perplexity, Some(self.baseline_perplexity_stderr)),
            ("Cor(ln(PPL(Q)), ln(PPL(base)))".to_owned(), self.nll_correlation * 100.0, None),
            ("Mean ln(PPL(Q)/PPL(base))".to_owned(), self.ln_perplexity_ratio, Some(self.ln_perplexity_ratio_stderr)),
            ("Mean PPL(Q)/PPL(base)".to_owned(), self.perplexity_ratio, Some(self.perplexity_ratio_stderr)),
            ("Mean PPL(Q)-PPL(base)".to_owned(), self.perplexity_difference, Some(self.perplexity_difference_stderr)),
            ("Mean    KLD".to_owned(), self.kld_mean, Some(self.kld_mean_stderr)),
        ];
        // KLD is never negative, so that llama.cpp prints no lower quartile of it.
        let quartiles = ["75.0%", "25.0%"];
        let klds = self.kld_percentiles.named();
        figures.extend(
            klds.iter()
                .filter(|(name, _)| !quartiles.contains(name))
                .map(|(name, value)| (format!("{name:<7} KLD"), *value, None)),
        );
        let percent = |value: f64| value * 100.0;
        figures.push(("Mean    Δp".to_owned(), percent(self.delta_p_mean), Some(percent(self.delta_p_mean_stderr))));
        let deltas = self.delta_p_percentiles.named();
        figures.extend(deltas.iter().map(|(name, value)| (format!("{name:<7} Δp"), percent(*value), None)));
        figures.push(("RMS Δp".to_owned(), percent(self.delta_p_rms), Some(percent(self.delta_p_rms_stderr))));
        figures.push((
            "Same top p".to_owned(),
            percent(self.same_top_fraction),
            Some(percent(self.same_top_fraction_stderr)),
        ));
        figures
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn token(baseline_nll: f64, nll: f64, kld: f64) -> TokenDistance {
        TokenDistance {
            baseline_nll,
            nll,
            kld,
            same_top: kld < 1.0,
            delta_p: (-nll).exp() - (-baseline_nll).exp(),
            reverse_kld: kld / 2.0,
            overlap: (-kld).exp(),
            confidence: (-baseline_nll).exp(),
        }
    }

    fn stats(tokens: &[TokenDistance]) -> TextDistance {
        let mut stats = DistanceStats::new(64);
        for (index, token) in tokens.iter().enumerate() {
            stats.push(token, index as u32 % 64, 1 + index as u32 % 5);
        }
        stats.finish()
    }

    #[test]
    fn the_ratios_error_is_that_of_both_variances_and_their_covariance() {
        let tokens: Vec<TokenDistance> = (0..50)
            .map(|i| {
                let base = 1.0 + f64::from(i % 7);
                token(base, base + 0.1 * f64::from(i % 3), 0.01)
            })
            .collect();
        let stats = stats(&tokens);
        let n = tokens.len() as f64;
        let mean = |f: &dyn Fn(&TokenDistance) -> f64| tokens.iter().map(f).sum::<f64>() / n;
        let (a, b) = (mean(&|t| t.baseline_nll), mean(&|t| t.nll));
        let var_a = mean(&|t| (t.baseline_nll - a).powi(2)) / (n - 1.0);
        let var_b = mean(&|t| (t.nll - b).powi(2)) / (n - 1.0);
        let covariance = mean(&|t| (t.baseline_nll - a) * (t.nll - b)) / (n - 1.0);
        let expected = (var_a + var_b - 2.0 * covariance).sqrt();
        assert!((stats.ln_perplexity_ratio_stderr - expected).abs() < 1e-12);
        assert!((stats.ln_perplexity_ratio - (b - a)).abs() < 1e-12);
        assert!(stats.nll_correlation > 0.99);
        let (ppl_a, ppl_b) = (a.exp(), b.exp());
        let expected = (ppl_b * ppl_b * var_b + ppl_a * ppl_a * var_a - 2.0 * ppl_a * ppl_b * covariance).sqrt();
        assert!((stats.perplexity_difference_stderr - expected).abs() < 1e-9);
        let squares = mean(&|t| t.delta_p * t.delta_p);
        assert!((stats.delta_p_rms - squares.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn every_token_is_in_one_bin_of_each_kind() {
        let tokens: Vec<TokenDistance> =
            (0..640).map(|i| token(0.1 + f64::from(i % 9), 1.0, if i % 64 < 32 { 0.5 } else { 0.1 })).collect();
        let stats = stats(&tokens);
        for bins in [&stats.kld_by_position, &stats.kld_by_token_count, &stats.kld_by_confidence] {
            assert_eq!(bins.iter().map(|bin| bin.tokens).sum::<u64>(), 640);
            assert!(bins.iter().all(|bin| bin.from < bin.to && bin.same_top_fraction == 1.0));
        }
        assert_eq!(stats.kld_by_position.len(), 16);
        let halves = [0, 15].map(|bin| stats.kld_by_position[bin].kld_mean);
        assert!((halves[0] - 0.5).abs() < 1e-12 && (halves[1] - 0.1).abs() < 1e-12);
        let edges: Vec<f64> = stats.kld_by_token_count.iter().map(|bin| bin.from).collect();
        assert_eq!(edges, [1.0, 2.0, 4.0]);
        assert!(stats.kld_by_confidence.iter().all(|bin| (0.0..=1.0).contains(&bin.from)));
    }

    #[test]
    fn the_histogram_counts_every_token_and_zero_too() {
        let mut histogram = KldHistogram::new();
        [0.0, 1e-9, 0.02, 0.021, 1e9].into_iter().for_each(|kld| histogram.push(kld));
        assert_eq!(histogram.counts.iter().sum::<u64>(), 5);
        assert_eq!((histogram.counts[0], histogram.counts[71]), (2, 1));
        let filled = (1..71).find(|&bin| histogram.counts[bin] > 0).expect("a bin");
        assert!(histogram.edge(filled) <= 0.02 && histogram.edge(filled + 1) > 0.021);
    }

    #[test]
    fn figures_have_llama_cpps_names() {
        let figures = stats(&[token(1.0, 1.5, 0.25), token(2.0, 2.0, 0.5)]).llama_cpp_figures((5.0, 0.1));
        for name in ["Mean    KLD", "99.9%   KLD", "Median  KLD", "Minimum KLD", "25.0%   Δp", "RMS Δp", "Same top p"]
        {
            assert!(figures.iter().any(|figure| figure.0 == name), "{name}");
        }
        assert!(!figures.iter().any(|figure| figure.0 == "75.0%   KLD"));
    }
}
