//! The walk along the convex hulls of all groups, and the answer that it gives at once.

use std::cmp::Ordering;

use super::{Efficient, Found, Goal, Point, Problem, Step};

/// Rounds of single exchanges that fill what a corner leaves of the limit.
const MOST_EXCHANGES: usize = 16;

/// All steps along the groups' lower convex hulls, steepest first; ties by group, then by cost.
pub(super) fn steps(groups: &[Vec<Efficient>]) -> Vec<Step> {
    let mut steps = Vec::new();
    for (index, group) in groups.iter().enumerate() {
        let hull = hull(group);
        let mut least = f64::INFINITY;
        for pair in hull.windows(2) {
            // Rounding must not let a later step of a group look steeper than an earlier one.
            least = slope(&group[pair[0]], &group[pair[1]]).min(least);
            steps.push(Step { group: index, to: pair[1], slope: least });
        }
    }
    steps.sort_by(|one, other| {
        let by_slope = other.slope.total_cmp(&one.slope);
        by_slope.then(one.group.cmp(&other.group)).then(one.to.cmp(&other.to))
    });
    steps
}

/// What the walk comes to after each number of steps.
pub(super) fn points(groups: &[Vec<Efficient>], steps: &[Step]) -> Vec<Point> {
    let mut at = vec![0; groups.len()];
    let cost = groups.iter().map(|group| group[0].cost).sum::<f64>();
    let damage = groups.iter().map(|group| group[0].damage).sum::<f64>();
    let mut points = vec![(cost, damage)];
    let (mut cost, mut damage) = (cost, damage);
    for step in steps {
        let (from, to) = (groups[step.group][at[step.group]], groups[step.group][step.to]);
        at[step.group] = step.to;
        cost += to.cost - from.cost;
        damage -= from.damage - to.damage;
        points.push((cost, damage));
    }
    points.into_iter().map(|(cost, damage)| Point { cost: cost as u64, damage }).collect()
}

/// Damage saved per unit of cost from a cheap alternative to a dear one.
fn slope(cheap: &Efficient, dear: &Efficient) -> f64 {
    (cheap.damage - dear.damage) / (dear.cost - cheap.cost)
}

/// Indices of the alternatives on the lower convex hull (Andrew's monotone chain).
fn hull(group: &[Efficient]) -> Vec<usize> {
    let mut hull: Vec<usize> = Vec::with_capacity(group.len());
    for index in 0..group.len() {
        while let [.., before, last] = hull[..]
            && slope(&group[before], &group[last]) <= slope(&group[last], &group[index])
        {
            hull.pop();
        }
        hull.push(index);
    }
    hull
}

impl Problem {
    /// The last corner within the limit, filled up greedily.
    pub(super) fn at_once(&self, goal: Goal) -> Option<Found> {
        // Corner `taken`, and the step beyond it: the next one, or undoing the last one.
        let (taken, beyond) = match goal {
            Goal::CostAtMost(limit) => {
                let taken = self.points.partition_point(|point| point.cost <= limit).checked_sub(1)?;
                (taken, self.steps.get(taken))
            }
            Goal::DamageAtMost(limit) => {
                let taken =
                    self.points.partition_point(|point| point.damage.partial_cmp(&limit).is_none_or(Ordering::is_gt));
                self.points.get(taken)?;
                (taken, taken.checked_sub(1).and_then(|last| self.steps.get(last)))
            }
        };
        let corner = self.picks_after(taken);
        let point = self.points.get(taken)?;
        let (objective, used) = match goal {
            Goal::CostAtMost(_) => (point.damage, point.cost as f64),
            Goal::DamageAtMost(_) => (point.cost as f64, point.damage),
        };
        let multiplier = beyond.map(|step| match goal {
            Goal::CostAtMost(_) => step.slope,
            Goal::DamageAtMost(_) => step.slope.recip(),
        });
        let slack = goal.limit() - used;
        let bound = objective - multiplier.map_or(0.0, |multiplier| multiplier * slack);
        let (picks, saved) = self.fill(goal, &corner, taken, slack);
        Some(Found { picks, objective: objective - saved, bound, corner, multiplier })
    }

    /// Indices of efficient alternatives after so many steps of the walk.
    fn picks_after(&self, taken: usize) -> Vec<usize> {
        let pick = |places: &Vec<usize>| {
            let own = places.partition_point(|&place| place < taken);
            own.checked_sub(1).map_or(0, |last| self.steps[places[last]].to)
        };
        self.places.iter().map(pick).collect()
    }

    /// Spends what a corner leaves of the limit: first on later steps of the walk in their order,
    /// then on the single exchanges that save most. Returns the choice and what it saves.
    fn fill(&self, goal: Goal, corner: &[usize], taken: usize, mut slack: f64) -> (Vec<usize>, f64) {
        let mut picks = corner.to_vec();
        let mut saved = 0.0;
        let change = |group: usize, from: usize, to: usize| {
            let (from, to) = (goal.sides(&self.groups[group][from]), goal.sides(&self.groups[group][to]));
            (to.0 - from.0, from.1 - to.1)
        };
        let mut take = |picks: &mut Vec<usize>, group: usize, to: usize, slack: &mut f64| {
            let (used, gain) = change(group, picks[group], to);
            let fits = used <= *slack && gain > 0.0;
            if fits {
                *slack -= used;
                saved += gain;
                picks[group] = to;
            }
            fits
        };
        match goal {
            Goal::CostAtMost(_) => {
                let mut is_blocked = vec![false; self.groups.len()];
                for step in &self.steps[taken..] {
                    if !is_blocked[step.group] {
                        is_blocked[step.group] = !take(&mut picks, step.group, step.to, &mut slack);
                    }
                }
            }
            Goal::DamageAtMost(_) => {
                let mut is_blocked = vec![false; self.groups.len()];
                for (place, step) in self.steps[..taken].iter().enumerate().rev() {
                    let own = self.places[step.group].partition_point(|&other| other < place);
                    let to = own.checked_sub(1).map_or(0, |last| self.steps[self.places[step.group][last]].to);
                    if !is_blocked[step.group] {
                        is_blocked[step.group] = !take(&mut picks, step.group, to, &mut slack);
                    }
                }
            }
        }
        for _ in 0..MOST_EXCHANGES {
            let mut best: Option<(f64, usize, usize)> = None;
            for (group, alternatives) in self.groups.iter().enumerate() {
                for to in 0..alternatives.len() {
                    let (used, gain) = change(group, picks[group], to);
                    if used <= slack && gain > best.map_or(0.0, |best| best.0) {
                        best = Some((gain, group, to));
                    }
                }
            }
            let Some((_, group, to)) = best else { break };
            take(&mut picks, group, to, &mut slack);
        }
        (picks, saved)
    }
}
