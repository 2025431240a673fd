//! What a candidate would be worth as the draft of speculative decoding, from what was measured anyway.
//!
//! A draft token is accepted with probability Σ min(p, q), so that the mean of it over a text predicts the
//! acceptance α without decoding; then a cycle of γ drafts yields (1 − α^(γ+1)) / (1 − α) tokens at the cost
//! of γ·c + 1 steps of the target, where c is the draft's step over the target's (Leviathan, Kalman and Matias,
//! ICML 2023, theorem 3.8). Checking γ + 1 tokens at once costs more than a step on real hardware: where the target's
//! checks were measured their cost is used, else it is taken for one step, as in the paper.

use serde::{Deserialize, Serialize};

use crate::scoring::SpeedResult;

/// Longest draft that is considered.
pub const MAX_DRAFT: usize = 16;

/// Tokens that one cycle is expected to yield, the bonus token included.
pub fn tokens_per_cycle(acceptance: f64, draft: usize) -> f64 {
    let acceptance = acceptance.clamp(0.0, 1.0);
    // The sum and not its closed form, which divides by zero where every draft is accepted.
    (0..=draft as i32).map(|power| acceptance.powi(power)).sum()
}

/// Expected speed-up over plain decoding; `step_cost` is a draft step over a target step, `check_cost` the check
/// of a cycle over a target step (1 in the paper).
pub fn speed_up(acceptance: f64, draft: usize, step_cost: f64, check_cost: f64) -> f64 {
    tokens_per_cycle(acceptance, draft) / (draft as f64 * step_cost + check_cost)
}

/// A draft length with what it is expected to bring.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DraftLength {
    pub draft: usize,
    pub tokens_per_cycle: f64,
    pub speed_up: f64,
    /// Checking this draft over a step of the target.
    #[serde(default = "one_step")]
    pub check_cost: f64,
}

fn one_step() -> f64 {
    1.0
}

/// A candidate as draft of its baseline. Predicted: nothing was decoded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Speculation {
    /// Mean Σ min(p, q) at temperature 1.
    pub acceptance: f64,
    /// The same for greedy decoding: how often both put the same token first.
    pub greedy_acceptance: f64,
    /// A draft step over a target step, from measured times.
    pub step_cost: f64,
    /// True where the cost of checks was measured, false where it is taken for one step.
    #[serde(default)]
    pub is_check_measured: bool,
    /// Every length, the shortest first.
    pub lengths: Vec<DraftLength>,
    /// The length of the largest expected speed-up; 0 where speculation does not pay.
    pub best_draft: usize,
    pub best_speed_up: f64,
    /// The same where tokens are taken greedily.
    pub best_greedy_draft: usize,
    pub best_greedy_speed_up: f64,
}

impl Speculation {
    /// What checking a draft costs over a step of the target; 1 for drafts that were not considered.
    pub fn check_cost(&self, draft: usize) -> f64 {
        let found = self.lengths.iter().find(|length| length.draft == draft);
        found.map_or(1.0, |length| length.check_cost)
    }
}

/// Lengths from 1 on and the best of them; 0 and 1 where none is faster than plain decoding. `check` is the cost
/// of reading so many tokens at once.
fn best(acceptance: f64, step_cost: f64, check: &dyn Fn(usize) -> f64) -> (Vec<DraftLength>, usize, f64) {
    let lengths: Vec<DraftLength> = (1..=MAX_DRAFT)
        .map(|draft| {
            let check_cost = check(draft + 1);
            DraftLength {
                draft,
                tokens_per_cycle: tokens_per_cycle(acceptance, draft),
                speed_up: speed_up(acceptance, draft, step_cost, check_cost),
                check_cost,
            }
        })
        .collect();
    let (mut draft, mut most) = (0, 1.0);
    for length in &lengths {
        if length.speed_up > most {
            (draft, most) = (length.draft, length.speed_up);
        }
    }
    (lengths, draft, most)
}

/// Seconds of reading `tokens` at once, on the straight lines between what was measured, and on the last of them
/// beyond; `None` where nothing was.
fn check_secs(target: &SpeedResult, tokens: usize) -> Option<f64> {
    let alone = (1.0, target.tpot_secs);
    let points: Vec<(f64, f64)> =
        std::iter::once(alone).chain(target.checks.iter().map(|check| (check.tokens as f64, check.secs))).collect();
    let wanted = tokens as f64;
    let [from, to] = points
        .windows(2)
        .find(|ends| wanted <= ends[1].0)
        .or(points.windows(2).next_back())
        .and_then(|ends| <[(f64, f64); 2]>::try_from(ends).ok())?;
    let slope = ((to.1 - from.1) / (to.0 - from.0)).max(0.0);
    Some(from.1 + slope * (wanted - from.0))
}

/// Predicts what a draft brings: its acceptance, sampled and greedy, and both models' seconds for one token. Checks
/// are taken to cost one step; [`speculation_of`] knows better where they were measured.
pub fn speculation(acceptance: f64, greedy_acceptance: f64, draft_secs: f64, target_secs: f64) -> Speculation {
    let step_cost = (draft_secs / target_secs.max(1e-12)).max(0.0);
    predicted([acceptance, greedy_acceptance], step_cost, false, &|_| 1.0)
}

/// Predicts what a draft brings from both models' measured speeds, those of the target's checks among them.
pub fn speculation_of(
    acceptance: f64,
    greedy_acceptance: f64,
    draft: &SpeedResult,
    target: &SpeedResult,
) -> Speculation {
    let step = target.tpot_secs.max(1e-12);
    let check = |tokens: usize| check_secs(target, tokens).map_or(1.0, |secs| (secs / step).max(1.0));
    let step_cost = (draft.tpot_secs / step).max(0.0);
    predicted([acceptance, greedy_acceptance], step_cost, !target.checks.is_empty(), &check)
}

fn predicted(
    [acceptance, greedy_acceptance]: [f64; 2],
    step_cost: f64,
    is_check_measured: bool,
    check: &dyn Fn(usize) -> f64,
) -> Speculation {
    let (lengths, best_draft, best_speed_up) = best(acceptance, step_cost, check);
    let (_, best_greedy_draft, best_greedy_speed_up) = best(greedy_acceptance, step_cost, check);
    Speculation {
        acceptance,
        greedy_acceptance,
        step_cost,
        is_check_measured,
        lengths,
        best_draft,
        best_speed_up,
        best_greedy_draft,
        best_greedy_speed_up,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_ups_are_those_of_leviathans_formula() {
        for (acceptance, cost, expected) in [
            (0.6, 0.1, [Some(1.633), Some(1.647), Some(1.519), Some(1.375)]),
            (0.8, 0.1, [Some(2.033), Some(2.401), Some(2.470), Some(2.405)]),
            (0.9, 0.05, [Some(2.464), Some(3.413), Some(4.013), Some(4.376)]),
            (0.8, 0.5, [Some(1.220), Some(1.121), None, None]),
        ] {
            for (draft, expected) in [2, 4, 6, 8].into_iter().zip(expected) {
                if let Some(expected) = expected {
                    let speed_up = speed_up(acceptance, draft, cost, 1.0);
                    assert!((speed_up - expected).abs() < 6e-4, "{acceptance} {cost} {draft}: {speed_up}");
                }
            }
        }
    }

    #[test]
    fn the_best_length_is_found_and_none_where_it_does_not_pay() {
        let good = speculation(0.8, 0.9, 0.1, 1.0);
        assert_eq!(good.best_draft, 6);
        assert!(good.best_greedy_speed_up > good.best_speed_up);
        let bad = speculation(0.3, 0.3, 0.9, 1.0);
        assert_eq!((bad.best_draft, bad.best_speed_up), (0, 1.0));
        assert_eq!(tokens_per_cycle(1.0, 4), 5.0);
    }

    #[test]
    fn a_check_costs_what_was_measured_between_and_beyond_its_lengths() {
        use crate::scoring::CheckTime;
        let speed =
            |tpot_secs: f64, checks: Vec<CheckTime>| SpeedResult { tpot_secs, checks, ..SpeedResult::default() };
        let check = |tokens: usize, secs: f64| CheckTime { tokens, secs };
        let draft = speed(0.25, Vec::new());
        let target = speed(1.0, vec![check(5, 1.5), check(9, 3.5)]);
        let found = speculation_of(0.8, 0.8, &draft, &target);
        // A draft of one is two tokens: a quarter of the way from 1 to 1.5. Beyond nine the last line goes on.
        let costs = [1, 4, 6, 8, 10].map(|draft| found.check_cost(draft));
        assert_eq!(costs, [1.125, 1.5, 2.5, 3.5, 4.5]);
        assert!(found.is_check_measured);
        assert_eq!(found.lengths[3].speed_up, tokens_per_cycle(0.8, 4) / (4.0 * 0.25 + 1.5));
        // Dear checks shorten the best draft.
        let free = speculation(0.8, 0.8, 0.25, 1.0);
        assert!(found.best_draft < free.best_draft && found.best_speed_up < free.best_speed_up);
        // Without measured checks both are the same.
        assert_eq!(speculation_of(0.8, 0.8, &draft, &speed(1.0, Vec::new())), free);
        assert!(!free.is_check_measured && free.check_cost(5) == 1.0);
    }
}
