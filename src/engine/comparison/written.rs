//! How a candidate's written texts differ from its baseline's, token by token.

use serde::{Deserialize, Serialize};

use super::paired::Pair;
use crate::error::Result;

/// Both models' greedy texts after the same prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WrittenComparison {
    /// Texts that both wrote.
    pub n: usize,
    /// Share of texts that are the same to the last token.
    pub identical_fraction: f64,
    /// Tokens before the first different one, median over the texts that differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_divergence_median: Option<f64>,
    /// The candidate's tokens over the baseline's, over all texts.
    pub length_ratio: f64,
}

/// Tokens before the first different one; `None` where both are the same.
pub fn first_divergence(a: &[u32], b: &[u32]) -> Option<usize> {
    let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    (same < a.len().max(b.len())).then_some(same)
}

/// Compares all texts that both wrote, each read from where it lies; `None` where there is none.
pub(super) fn compare(pairs: &[Pair<'_>]) -> Result<Option<WrittenComparison>> {
    let (mut texts, mut base, mut own) = (0_usize, 0.0, 0.0);
    let mut divergences = Vec::new();
    for (a, b) in pairs.iter().filter(|(a, b)| a.tokens() + b.tokens() > 0) {
        texts += 1;
        base += f64::from(a.tokens());
        own += f64::from(b.tokens());
        if let Some(place) = first_divergence(&a.read()?.token_ids, &b.read()?.token_ids) {
            divergences.push(place as f64);
        }
    }
    divergences.sort_unstable_by(f64::total_cmp);
    Ok((texts > 0).then(|| WrittenComparison {
        n: texts,
        identical_fraction: 1.0 - divergences.len() as f64 / texts as f64,
        first_divergence_median: (!divergences.is_empty())
            .then(|| crate::scoring::text_stats::quantile(&divergences, 0.5)),
        length_ratio: own / f64::max(base, 1.0),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scoring::{ItemResult, Items};

    #[test]
    fn texts_part_where_their_tokens_do() {
        assert_eq!(first_divergence(&[1, 2, 3], &[1, 2, 3]), None);
        assert_eq!(first_divergence(&[1, 2, 3], &[1, 2]), Some(2));
        assert_eq!(first_divergence(&[], &[1]), Some(0));
        let text = |ids: &[u32]| ItemResult { token_ids: ids.to_vec(), ..ItemResult::default() };
        let held = |texts: [ItemResult; 3]| Items::of(texts).expect("items");
        let (a, b) =
            (held([text(&[1, 2]), text(&[1, 2, 3, 4]), text(&[])]), held([text(&[1, 2]), text(&[1, 9]), text(&[])]));
        let written = compare(&a.iter().zip(b.iter()).collect::<Vec<_>>()).expect("read").expect("texts");
        assert_eq!((written.n, written.identical_fraction, written.first_divergence_median), (2, 0.5, Some(1.0)));
        assert!((written.length_ratio - 4.0 / 6.0).abs() < 1e-12);
    }
}
