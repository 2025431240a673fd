//! How a candidate's written texts differ from its baseline's, token by token.

use serde::{Deserialize, Serialize};

use super::paired::Pair;

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

/// Compares all texts that both wrote; `None` where there is none.
pub(super) fn compare(pairs: &[Pair<'_>]) -> Option<WrittenComparison> {
    let texts: Vec<&Pair<'_>> =
        pairs.iter().filter(|(a, b)| !(a.token_ids.is_empty() && b.token_ids.is_empty())).collect();
    if texts.is_empty() {
        return None;
    }
    let mut divergences: Vec<f64> = texts
        .iter()
        .filter_map(|(a, b)| first_divergence(&a.token_ids, &b.token_ids))
        .map(|place| place as f64)
        .collect();
    divergences.sort_unstable_by(f64::total_cmp);
    let tokens = |own: fn(&Pair<'_>) -> usize| texts.iter().map(|pair| own(pair)).sum::<usize>() as f64;
    let (base, own) = (tokens(|(a, _)| a.token_ids.len()), tokens(|(_, b)| b.token_ids.len()));
    Some(WrittenComparison {
        n: texts.len(),
        identical_fraction: 1.0 - divergences.len() as f64 / texts.len() as f64,
        first_divergence_median: (!divergences.is_empty())
            .then(|| crate::scoring::text_stats::quantile(&divergences, 0.5)),
        length_ratio: own / base.max(1.0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scoring::ItemResult;

    #[test]
    fn texts_part_where_their_tokens_do() {
        assert_eq!(first_divergence(&[1, 2, 3], &[1, 2, 3]), None);
        assert_eq!(first_divergence(&[1, 2, 3], &[1, 2]), Some(2));
        assert_eq!(first_divergence(&[], &[1]), Some(0));
        let text = |ids: &[u32]| ItemResult { token_ids: ids.to_vec(), ..ItemResult::default() };
        let (a, b) = ([text(&[1, 2]), text(&[1, 2, 3, 4]), text(&[])], [text(&[1, 2]), text(&[1, 9]), text(&[])]);
        let written = compare(&a.iter().zip(&b).collect::<Vec<_>>()).expect("texts");
        assert_eq!((written.n, written.identical_fraction, written.first_divergence_median), (2, 0.5, Some(1.0)));
        assert!((written.length_ratio - 4.0 / 6.0).abs() < 1e-12);
    }
}
