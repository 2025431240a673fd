//! What a gate with a margin looks at: a paired difference, and how many items would decide it.

use super::stats::{items_to_decide, items_to_narrow};
use super::{Comparison, IntervalMethod, Paired};

/// A paired difference as a gain, so that a loss is negative for every metric.
pub(super) struct Loss<'a> {
    pub difference: f64,
    pub low: f64,
    pub high: f64,
    /// Items, or tokens of a text.
    pub n: usize,
    /// The items, where they are paired as right and wrong, with their shares of lost and gained ones.
    items: Option<(&'a Paired, [f64; 2])>,
}

impl<'a> Loss<'a> {
    pub fn of(metric: &str, paired: Option<&'a Paired>, comparison: &Comparison) -> Option<Self> {
        if metric == "perplexity" {
            let text = comparison.text.as_ref()?;
            let distance = text.distance.as_ref()?;
            let half = 1.96 * distance.perplexity_ratio_stderr;
            let difference = 1.0 - distance.perplexity_ratio;
            let (low, high) = (difference - half, difference + half);
            return Some(Self { difference, low, high, n: text.tokens, items: None });
        }
        let paired = paired?;
        let share = |count: u64| count as f64 / paired.n.max(1) as f64;
        let choice = match metric {
            "accuracy_norm" => Some(paired.norm?),
            "accuracy_bytes" => Some(paired.bytes?),
            _ => None,
        };
        let (difference, [low, high], lost, gained) = match choice {
            Some(choice) => {
                (choice.difference, choice.difference_interval, choice.right_to_wrong, choice.wrong_to_right)
            }
            None => (paired.difference, paired.difference_interval, paired.right_to_wrong, paired.wrong_to_right),
        };
        let shares = [share(lost), share(gained)];
        Some(Self { difference, low, high, n: paired.n, items: Some((paired, shares)) })
    }

    /// What would decide between the interval and a margin that it holds.
    pub fn advice(&self, margin: f64) -> String {
        if self.items.is_some_and(|(paired, _)| paired.interval_method == IntervalMethod::OneGroup) {
            return "all items are of one group, items of others are needed".to_owned();
        }
        let is_above = self.difference > -margin;
        let half = if is_above { self.difference - self.low } else { self.high - self.difference };
        let narrowed = items_to_narrow(self.n as f64, half, (self.difference + margin).abs());
        let Some((paired, [lost, gained])) = self.items else {
            return narrowed.map_or_else(as_good, |needed| format!("about {needed} tokens of text are needed"));
        };
        // Graded answers change by less than a whole item.
        let is_counted = (gained - lost - self.difference).abs() < 1e-9;
        let scored = is_counted.then(|| items_to_decide(lost, gained, margin)).flatten();
        let scored = scored.map(|alone| (alone as f64 * paired.design_effect()).ceil() as u64);
        match scored.filter(|&needed| needed > self.n as u64).or(narrowed) {
            Some(needed) if paired.groups < paired.n => {
                format!("about {needed} items are needed, in more groups like these")
            }
            Some(needed) => format!("about {needed} items are needed"),
            None => as_good(),
        }
    }
}

fn as_good() -> String {
    "the difference is as good as the margin, which no number of items tells apart".to_owned()
}
