//! Whether a model is as sure as it is right, and whether it still knows when to stop.
//!
//! The confidence of a multiple choice is the softmax of its choices' log-likelihoods. ECE is
//! Σ n_b/N · |accuracy_b − confidence_b| over 15 bins of equal width (Naeini et al. 2015; Guo et al. 2017),
//! the adaptive one over 15 bins of equal count (Nixon et al. 2019).

use serde::{Deserialize, Serialize};

use crate::scoring::{Item, Items};

/// Bins of the diagram.
const BINS: usize = 15;

/// Items of like confidence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReliabilityBin {
    /// Confidence at which the bin begins.
    pub from: f64,
    /// And ends.
    pub to: f64,
    pub n: usize,
    /// Mean confidence.
    pub confidence: f64,
    pub accuracy: f64,
}

/// A reliability diagram with its figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reliability {
    pub n: usize,
    /// Expected calibration error, as a fraction.
    pub ece: f64,
    /// The same over bins of equal count.
    pub adaptive_ece: f64,
    /// Mean confidence minus accuracy: positive where the model is too sure.
    pub overconfidence: f64,
    /// Brier's score over all choices, 0 to 2.
    pub brier: f64,
    /// Bins that have items.
    pub bins: Vec<ReliabilityBin>,
}

/// Items that were sure to a degree, and right or wrong.
type Sure = (f64, bool);

fn bin_of(items: &[Sure], from: f64, to: f64) -> ReliabilityBin {
    let count = items.len() as f64;
    ReliabilityBin {
        from,
        to,
        n: items.len(),
        confidence: items.iter().map(|(confidence, _)| confidence).sum::<f64>() / count,
        accuracy: items.iter().filter(|(_, correct)| *correct).count() as f64 / count,
    }
}

fn gap(bins: &[ReliabilityBin], count: usize) -> f64 {
    bins.iter().map(|bin| bin.n as f64 / count as f64 * (bin.accuracy - bin.confidence).abs()).sum()
}

/// The diagram of all multiple-choice items; `None` where there is none.
pub fn reliability(items: &Items) -> Option<Reliability> {
    let mut sure: Vec<Sure> = items.iter().filter_map(|item| Some((item.confidence()?, item.is_correct()))).collect();
    if sure.is_empty() {
        return None;
    }
    sure.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let count = sure.len();
    let place = |confidence: f64| ((confidence * BINS as f64) as usize).min(BINS - 1);
    let bins: Vec<ReliabilityBin> = sure
        .chunk_by(|a, b| place(a.0) == place(b.0))
        .map(|members| {
            let bin = place(members[0].0);
            bin_of(members, bin as f64 / BINS as f64, (bin + 1) as f64 / BINS as f64)
        })
        .collect();
    let equal: Vec<ReliabilityBin> = sure
        .chunks(count.div_ceil(BINS))
        .map(|members| bin_of(members, members[0].0, members[members.len() - 1].0))
        .collect();
    let briers: Vec<f64> = items.iter().filter_map(|item| item.brier()).collect();
    let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / count as f64;
    let confidence = mean(&mut sure.iter().map(|(confidence, _)| *confidence));
    let accuracy = mean(&mut sure.iter().map(|(_, correct)| f64::from(u8::from(*correct))));
    Some(Reliability {
        n: count,
        ece: gap(&bins, count),
        adaptive_ece: gap(&equal, count),
        overconfidence: confidence - accuracy,
        brier: briers.iter().sum::<f64>() / briers.len().max(1) as f64,
        bins,
    })
}

/// What written texts have in common, whatever they say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Written {
    /// Items that had room to end by themselves.
    pub n: usize,
    pub tokens_mean: f64,
    /// Share of texts that were cut because the model did not end them.
    pub end_of_text_failure_fraction: f64,
    /// Mean share of 4-grams that were written before.
    pub repeated_fraction: f64,
    /// Share of texts of which more than half repeats itself.
    pub looping_fraction: f64,
}

/// Stability of all written texts; `None` where there is none.
pub fn written(items: &Items) -> Option<Written> {
    let texts: Vec<Item<'_>> = items.iter().filter(|item| item.ended().is_some()).collect();
    if texts.is_empty() {
        return None;
    }
    let count = texts.len() as f64;
    let share = |test: &dyn Fn(&Item<'_>) -> bool| texts.iter().filter(|item| test(item)).count() as f64 / count;
    let repeated = |item: &Item<'_>| item.repeated_fraction().unwrap_or(0.0);
    Some(Written {
        n: texts.len(),
        tokens_mean: texts.iter().map(|item| f64::from(item.tokens())).sum::<f64>() / count,
        end_of_text_failure_fraction: share(&|item| item.ended() == Some(false)),
        repeated_fraction: texts.iter().map(repeated).sum::<f64>() / count,
        looping_fraction: share(&|item| repeated(item) > 0.5),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scoring::ItemResult;
    use crate::scoring::random::Random;

    fn held(items: impl IntoIterator<Item = ItemResult>) -> Items {
        Items::of(items).expect("items")
    }

    fn item(confidence: f64, correct: bool) -> ItemResult {
        let scores = vec![confidence.ln(), (1.0 - confidence).ln()];
        ItemResult { correct, scores, brier: Some(0.5), ..ItemResult::default() }
    }

    #[test]
    fn a_calibrated_simulator_has_an_ece_near_zero_and_an_overconfident_one_its_gap() {
        let mut random = Random::new(3, 0);
        let simulate = |gap: f64, random: &mut Random| -> Vec<ItemResult> {
            (0..40_000)
                .map(|_| {
                    let confidence = 0.5 + random.unit() * 0.4999;
                    item(confidence, random.unit() < confidence - gap)
                })
                .collect()
        };
        let calibrated = reliability(&held(simulate(0.0, &mut random))).expect("items");
        assert!(calibrated.ece < 0.01 && calibrated.adaptive_ece < 0.012, "{calibrated:?}");
        let sure = reliability(&held(simulate(0.2, &mut random))).expect("items");
        assert!((sure.ece - 0.2).abs() < 0.01 && (sure.overconfidence - 0.2).abs() < 0.01, "{}", sure.ece);
        assert_eq!(sure.bins.iter().map(|bin| bin.n).sum::<usize>(), 40_000);
        assert!(reliability(&held([ItemResult::default()])).is_none());
    }

    #[test]
    fn an_ece_by_hand() {
        // 0.9 sure, half right; 0.6 sure, all right: (2·0.4 + 2·0.4) / 4.
        let items = [item(0.9, true), item(0.9, false), item(0.6, true), item(0.6, true)];
        let diagram = reliability(&held(items)).expect("items");
        assert!((diagram.ece - 0.4).abs() < 1e-12, "{}", diagram.ece);
        assert_eq!(diagram.bins.len(), 2);
    }

    #[test]
    fn texts_that_do_not_end_or_repeat_themselves_are_counted() {
        let text = |ended: bool, repeated: f64| ItemResult {
            ended: Some(ended),
            repeated_fraction: Some(repeated),
            token_ids: vec![1; 10],
            ..ItemResult::default()
        };
        let all = [text(true, 0.0), text(false, 0.9), text(false, 0.1), text(true, 0.0), ItemResult::default()];
        let written = written(&held(all)).expect("texts");
        assert_eq!((written.n, written.end_of_text_failure_fraction, written.looping_fraction), (4, 0.5, 0.25));
        assert!((written.repeated_fraction - 0.25).abs() < 1e-12);
    }
}
