//! One choice per group at least damage within a budget: the multiple-choice knapsack.
//!
//! A group (a tensor, tensors that a runtime wants alike, later a whole layer) has alternatives of
//! which exactly one is taken; costs and damages add up. Pins, forbidden formats and ties are not
//! known here: they are alternatives that the caller leaves out or adds up beforehand.
//!
//! [`Problem::new`] keeps of every group what is not dominated, and of that the lower convex hull.
//! All steps along the hulls, steepest first, are the walk from the cheapest plan to the least
//! damaging one: its corners ([`Problem::frontier`]) are optimal for their own cost, and between two
//! corners the straight line is the bound of the linear relaxation (Sinha and Zoltners, "The
//! multiple-choice knapsack problem", Operations Research 27, 1979). [`Problem::solve`] answers from
//! that walk at once, with its gap to the bound; [`Problem::solve_exactly`] closes the gap.
//!
//! Damages are rounded up to a grid 2⁻⁵² times as fine as their largest sum, so that every sum is
//! exact in `f64`, whatever its order: results do not depend on how they were found.

mod exact;
mod hull;

#[cfg(test)]
mod tests;

use std::fmt;

pub use exact::Effort;

/// One way to treat a group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alternative {
    /// What it takes of the budget: bytes, or nanoseconds.
    pub cost: u64,
    /// What it does to the model, not negative; one that is not finite is never taken.
    pub damage: f64,
}

/// What bounds the choice; the other quantity is made as small as it can be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// Least damage with a sum of costs of at most this.
    CostAtMost(u64),
    /// Least cost with a sum of damages of at most this.
    DamageAtMost(f64),
}

/// What a plan comes to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Sum of costs.
    pub cost: u64,
    /// Sum of damages.
    pub damage: f64,
}

/// One alternative per group, and how good that is.
#[derive(Clone, Debug, PartialEq)]
pub struct Solution {
    /// For every group the index of its alternative, as it was given.
    pub picks: Vec<usize>,
    /// What they come to.
    pub point: Point,
    /// What was made small: the damage, or the cost where the damage was limited.
    pub objective: f64,
    /// No choice within the limit has a smaller objective than this.
    pub bound: f64,
    /// True where that is proven to be the objective itself: of damages to one part in 10¹² of the
    /// largest sum, of costs exactly.
    pub is_optimal: bool,
}

impl Solution {
    /// How much better the best choice could be.
    pub fn gap(&self) -> f64 {
        (self.objective - self.bound).max(0.0)
    }
}

/// Why there is nothing to solve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsolvable {
    /// The group with this index has no alternative of finite damage.
    NoAlternative(usize),
    /// Costs sum up to 2⁵³ or more, or damages to infinity.
    TooLarge,
}

impl fmt::Display for Unsolvable {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAlternative(group) => write!(out, "group {group} has no alternative"),
            Self::TooLarge => out.write_str("costs or damages are too large to be added up"),
        }
    }
}

impl std::error::Error for Unsolvable {}

/// An alternative that no other of its group dominates.
#[derive(Clone, Copy, Debug)]
struct Efficient {
    /// Its index in the group as given.
    index: usize,
    /// Sums of costs stay below 2⁵³, so that they are exact.
    cost: f64,
    /// On the grid.
    damage: f64,
}

/// From one alternative on a group's hull to the next dearer one.
#[derive(Clone, Copy, Debug)]
struct Step {
    group: usize,
    /// Index among the group's efficient alternatives that it leads to.
    to: usize,
    /// Damage saved per unit of cost.
    slope: f64,
}

/// Groups with what can be the answer, and the walk over all budgets.
#[derive(Clone, Debug)]
pub struct Problem {
    /// Efficient alternatives by rising cost and falling damage.
    groups: Vec<Vec<Efficient>>,
    /// All hull steps, steepest first; those of one group in their order.
    steps: Vec<Step>,
    /// For every group where its steps stand in `steps`, rising.
    places: Vec<Vec<usize>>,
    /// After so many steps: one more than there are steps.
    points: Vec<Point>,
    /// Smaller differences of damage mean nothing.
    tolerance: f64,
}

impl Problem {
    /// Prepares `groups` for any number of questions.
    ///
    /// # Errors
    /// A group with nothing to choose, or sums that cannot be exact.
    pub fn new(groups: &[Vec<Alternative>]) -> Result<Self, Unsolvable> {
        let finite = |group: &[Alternative]| -> Vec<(usize, Alternative)> {
            group.iter().copied().enumerate().filter(|(_, alternative)| alternative.damage.is_finite()).collect()
        };
        let (mut cost_sum, mut damage_sum) = (0_u64, 0.0_f64);
        for (index, group) in groups.iter().enumerate() {
            let group = finite(group);
            let most = group.iter().map(|(_, alternative)| alternative.cost).max();
            cost_sum = cost_sum.saturating_add(most.ok_or(Unsolvable::NoAlternative(index))?);
            damage_sum += group.iter().map(|(_, alternative)| alternative.damage.abs()).fold(0.0, f64::max);
        }
        if cost_sum >= 1 << f64::MANTISSA_DIGITS || !damage_sum.is_finite() {
            return Err(Unsolvable::TooLarge);
        }
        let grid = grid_below(damage_sum);
        let groups: Vec<Vec<Efficient>> = groups.iter().map(|group| efficient(finite(group), grid)).collect();
        let steps = hull::steps(&groups);
        let mut places = vec![Vec::new(); groups.len()];
        for (place, step) in steps.iter().enumerate() {
            places[step.group].push(place);
        }
        let points = hull::points(&groups, &steps);
        Ok(Self { groups, steps, places, points, tolerance: damage_sum * 1e-12 })
    }

    /// The cheapest plan there is: smaller budgets cannot be met.
    pub fn floor(&self) -> Point {
        self.points.first().copied().unwrap_or(Point { cost: 0, damage: 0.0 })
    }

    /// The least damaging plan there is, at the least cost at which it is to be had.
    pub fn best(&self) -> Point {
        self.points.last().copied().unwrap_or(Point { cost: 0, damage: 0.0 })
    }

    /// Least cost of one group.
    pub fn floor_of(&self, group: usize) -> Option<u64> {
        self.groups.get(group)?.first().map(|first| first.cost as u64)
    }

    /// Corners of the best that is to be had over all budgets, by rising cost and falling damage.
    /// Each is optimal for its own cost; the line between two is the bound between them.
    pub fn frontier(&self) -> &[Point] {
        &self.points
    }

    /// The best that can be had at once: the last corner within the limit, and what else fits.
    /// `None` if even the cheapest (or the least damaging) plan does not fit.
    pub fn solve(&self, goal: Goal) -> Option<Solution> {
        Some(self.at_once(goal)?.into_solution(self, goal))
    }

    /// The best there is, or the best found within `effort`.
    /// `None` if even the cheapest (or the least damaging) plan does not fit.
    pub fn solve_exactly(&self, goal: Goal, effort: &Effort) -> Option<Solution> {
        let mut found = self.at_once(goal)?;
        exact::improve(self, goal, &mut found, effort);
        Some(found.into_solution(self, goal))
    }

    /// What a choice among the efficient alternatives comes to.
    fn point_of(&self, picks: &[usize]) -> Point {
        let chosen = || self.groups.iter().zip(picks).map(|(group, &pick)| group[pick]);
        Point { cost: chosen().map(|one| one.cost as u64).sum(), damage: chosen().map(|one| one.damage).sum() }
    }
}

/// A choice among efficient alternatives, with the corner of the walk that it was found from.
struct Found {
    picks: Vec<usize>,
    /// Objective of `picks`.
    objective: f64,
    bound: f64,
    /// The corner within the limit.
    corner: Vec<usize>,
    /// Objective saved per unit of what is limited, just beyond the corner; none at the walk's end.
    multiplier: Option<f64>,
}

impl Found {
    fn into_solution(self, problem: &Problem, goal: Goal) -> Solution {
        let tolerance = goal.tolerance(problem);
        let index_of = |(group, pick): (&Vec<Efficient>, &usize)| group[*pick].index;
        Solution {
            point: problem.point_of(&self.picks),
            picks: problem.groups.iter().zip(&self.picks).map(index_of).collect(),
            objective: self.objective,
            bound: self.bound.min(self.objective),
            is_optimal: self.objective - self.bound <= tolerance,
        }
    }
}

impl Goal {
    /// What the limit counts, and what is made small.
    fn sides(self, one: &Efficient) -> (f64, f64) {
        match self {
            Self::CostAtMost(_) => (one.cost, one.damage),
            Self::DamageAtMost(_) => (one.damage, one.cost),
        }
    }

    fn limit(self) -> f64 {
        match self {
            Self::CostAtMost(limit) => limit as f64,
            Self::DamageAtMost(limit) => limit,
        }
    }

    /// A smaller gain in the objective is none.
    fn tolerance(self, problem: &Problem) -> f64 {
        match self {
            Self::CostAtMost(_) => problem.tolerance,
            // Costs are whole numbers; rounding of slopes stays far below this.
            Self::DamageAtMost(_) => 0.5,
        }
    }
}

/// The power of two in whose multiples all sums up to `sum` are exact.
fn grid_below(sum: f64) -> f64 {
    if sum <= 0.0 {
        return f64::MIN_POSITIVE;
    }
    let exponent = sum.log2().ceil() as i32 + 1 - f64::MANTISSA_DIGITS as i32 + 1;
    // Subnormal numbers are multiples of their own smallest already.
    2.0_f64.powi(exponent).max(f64::MIN_POSITIVE)
}

/// What no other alternative beats in both ways: of equals the first.
fn efficient(group: Vec<(usize, Alternative)>, grid: f64) -> Vec<Efficient> {
    let rounded = |(index, alternative): (usize, Alternative)| Efficient {
        index,
        cost: alternative.cost as f64,
        damage: (alternative.damage / grid).ceil() * grid,
    };
    let mut group: Vec<Efficient> = group.into_iter().map(rounded).collect();
    group.sort_by(|one, other| {
        let by_cost = one.cost.total_cmp(&other.cost);
        by_cost.then(one.damage.total_cmp(&other.damage)).then(one.index.cmp(&other.index))
    });
    let mut least = f64::INFINITY;
    group.retain(|one| {
        let is_better = one.damage < least;
        least = least.min(one.damage);
        is_better
    });
    group
}
