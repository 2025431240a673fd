//! Several limits at once: least damage within a size and a time.
//!
//! The surrogate relaxation (Glover, "Surrogate constraints", Operations Research 16, 1968): limits
//! are brought to the same unit, weighted and added up to one, which a knapsack answers. Whatever
//! keeps all of them keeps their sum, so each answer bounds the best; limits that an answer breaks
//! get more weight in the next round. Size and time go nearly together, so few rounds suffice.

use super::super::knapsack::{Alternative, Effort, Goal, Problem, Solution};

/// One limit: what every alternative takes of it, and how much there is.
pub(super) struct Cap {
    /// By group and alternative; what is not known is never taken.
    pub(super) costs: Vec<Vec<Option<f64>>>,
    /// What may be spent, above zero.
    pub(super) room: f64,
}

impl Cap {
    fn total(&self, picks: &[usize]) -> f64 {
        self.costs.iter().zip(picks).map(|(group, &pick)| group[pick].unwrap_or(f64::INFINITY)).sum()
    }

    fn share(&self, picks: &[usize]) -> f64 {
        self.total(picks) / self.room
    }

    /// The least that any choice takes.
    pub(super) fn least(&self) -> f64 {
        let least = |group: &Vec<Option<f64>>| group.iter().flatten().copied().fold(f64::INFINITY, f64::min);
        self.costs.iter().map(least).sum()
    }
}

/// Units that a whole limit has in a knapsack.
const WHOLE: u64 = 1 << 40;

/// Rounds in which weights are moved.
const ROUNDS: usize = 24;

/// The knapsack of one weighting of the limits.
fn weighted(damages: &[Vec<f64>], caps: &[Cap], weights: &[f64]) -> Option<Problem> {
    let alternative = |group: usize, pick: usize| {
        let parts = caps.iter().zip(weights).map(|(cap, weight)| Some(weight * cap.costs[group][pick]? / cap.room));
        match parts.sum::<Option<f64>>() {
            // Rounded down: what keeps every limit keeps their sum.
            Some(share) if share < 1e3 => {
                Alternative { cost: (share * WHOLE as f64) as u64, damage: damages[group][pick] }
            }
            _ => Alternative { cost: 0, damage: f64::INFINITY },
        }
    };
    let groups: Vec<Vec<Alternative>> = damages
        .iter()
        .enumerate()
        .map(|(group, all)| (0..all.len()).map(|pick| alternative(group, pick)).collect())
        .collect();
    Problem::new(&groups).ok()
}

/// The best choice that one limit allows, of damages by group and alternative.
pub(super) fn solve_one(damages: &[Vec<f64>], cap: &Cap, effort: &Effort) -> Option<Solution> {
    let problem = weighted(damages, std::slice::from_ref(cap), &[1.0])?;
    let solution = problem.solve_exactly(Goal::CostAtMost(WHOLE), effort)?;
    if cap.total(&solution.picks) <= cap.room {
        return Some(solution);
    }
    // Rounding down let in a millionth of a millionth too much.
    problem.solve_exactly(Goal::CostAtMost(WHOLE - damages.len() as u64), effort)
}

/// The best choice found that keeps every limit, with a bound on the best there is; none where no
/// choice was found that does.
pub(super) fn solve(damages: &[Vec<f64>], caps: &[Cap], effort: &Effort) -> Option<Solution> {
    let keeps_all = |picks: &[usize]| caps.iter().all(|cap| cap.total(picks) <= cap.room);
    let mut weights = vec![1.0 / caps.len() as f64; caps.len()];
    let (mut best, mut bound): (Option<Solution>, f64) = (None, f64::NEG_INFINITY);
    let mut keep = |found: Solution| {
        if keeps_all(&found.picks) && best.as_ref().is_none_or(|best| found.point.damage < best.point.damage) {
            best = Some(found);
        }
    };
    for round in 0..ROUNDS {
        let problem = weighted(damages, caps, &weights)?;
        // Not even the sum can be kept.
        let at_once = problem.solve(Goal::CostAtMost(WHOLE))?;
        bound = bound.max(at_once.bound);
        let shares: Vec<f64> = caps.iter().map(|cap| cap.share(&at_once.picks)).collect();
        if shares.iter().all(|share| *share <= 1.0) {
            keep(problem.solve_exactly(Goal::CostAtMost(WHOLE), effort)?);
            keep(at_once);
            break;
        }
        // A little less than there is, so that the last round has something to show.
        let tighter = WHOLE - (WHOLE >> 10) * (round as u64 + 1);
        problem.solve(Goal::CostAtMost(tighter)).into_iter().for_each(&mut keep);
        let step = 3.0 / (1.0 + round as f64 / 6.0);
        for (weight, share) in weights.iter_mut().zip(&shares) {
            *weight = (*weight * (step * (share.min(4.0) - 1.0)).exp()).max(1e-6);
        }
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= sum);
    }
    for percent in 1..=80 {
        if best.is_some() {
            break;
        }
        let problem = weighted(damages, caps, &weights)?;
        let found = problem.solve(Goal::CostAtMost(WHOLE / 100 * (100 - percent)))?;
        if keeps_all(&found.picks) {
            best = Some(found);
        }
    }
    let mut best = best?;
    fill(damages, caps, &mut best.picks);
    let chosen = damages.iter().zip(&best.picks).map(|(group, &pick)| group[pick]);
    best.point.damage = chosen.sum();
    best.objective = best.point.damage;
    best.bound = bound.min(best.objective);
    best.is_optimal = best.objective - best.bound <= best.objective.abs() * 1e-9;
    Some(best)
}

/// Spends what is left on the single exchanges that save most.
fn fill(damages: &[Vec<f64>], caps: &[Cap], picks: &mut [usize]) {
    const MOST_EXCHANGES: usize = 64;
    let mut totals: Vec<f64> = caps.iter().map(|cap| cap.total(picks)).collect();
    for _ in 0..MOST_EXCHANGES {
        let mut found: Option<(f64, usize, usize)> = None;
        for (group, all) in damages.iter().enumerate() {
            let from = picks[group];
            for (to, damage) in all.iter().enumerate() {
                let gain = all[from] - damage;
                let fits = || {
                    caps.iter().zip(&totals).all(|(cap, total)| {
                        let change = cap.costs[group][to].zip(cap.costs[group][from]).map(|(to, from)| to - from);
                        change.is_some_and(|change| total + change <= cap.room)
                    })
                };
                if gain > found.map_or(0.0, |found| found.0) && fits() {
                    found = Some((gain, group, to));
                }
            }
        }
        let Some((_, group, to)) = found else { return };
        picks[group] = to;
        totals = caps.iter().map(|cap| cap.total(picks)).collect();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The least damage of all choices that keep every limit.
    fn brute_force(damages: &[Vec<f64>], caps: &[Cap]) -> Option<f64> {
        let mut picks = vec![0; damages.len()];
        let mut best: Option<f64> = None;
        loop {
            if caps.iter().all(|cap| cap.total(&picks) <= cap.room) {
                let damage: f64 = damages.iter().zip(&picks).map(|(group, &pick)| group[pick]).sum();
                best = Some(best.map_or(damage, |best: f64| best.min(damage)));
            }
            let Some(group) = (0..picks.len()).find(|&group| picks[group] + 1 < damages[group].len()) else {
                return best;
            };
            picks[group] += 1;
            picks[..group].fill(0);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_limit_is_kept_and_the_bound_is_one(
            groups in prop::collection::vec(prop::collection::vec((0.0_f64..9.0, 1_u32..20, 1_u32..20), 1..5), 1..6),
            rooms in (0.3_f64..1.2, 0.3_f64..1.2),
        ) {
            let damages: Vec<Vec<f64>> =
                groups.iter().map(|group| group.iter().map(|one| one.0).collect()).collect();
            let cap = |cost: fn(&(f64, u32, u32)) -> u32, share: f64| {
                let costs: Vec<Vec<Option<f64>>> = groups
                    .iter()
                    .map(|group| group.iter().map(|one| Some(f64::from(cost(one)))).collect())
                    .collect();
                let most: f64 = costs.iter().map(|group| group.iter().flatten().copied().fold(0.0, f64::max)).sum();
                Cap { costs, room: most * share }
            };
            let caps = [cap(|one| one.1, rooms.0), cap(|one| one.2, rooms.1)];
            let best = brute_force(&damages, &caps);
            let found = solve(&damages, &caps, &Effort::default());
            if let Some(found) = found {
                let best = best.expect("what was found is one");
                prop_assert!(caps.iter().all(|cap| cap.total(&found.picks) <= cap.room));
                prop_assert!(found.bound <= best + 1e-9, "{} {best}", found.bound);
                prop_assert!(found.point.damage >= best - 1e-9);
                prop_assert!(!found.is_optimal || found.point.damage <= best + 1e-6);
            }
            // One limit by itself is answered exactly.
            let alone = brute_force(&damages, &caps[..1]);
            let one = solve_one(&damages, &caps[0], &Effort::default()).map(|found| found.point.damage);
            match (one, alone) {
                (Some(one), Some(alone)) => prop_assert!((one - alone).abs() < 1e-6, "{one} {alone}"),
                (one, alone) => prop_assert_eq!(one.is_some(), alone.is_some()),
            }
        }
    }
}
