//! Closing the gap: dynamic programming over the groups that can still matter.
//!
//! The expanding core of Pisinger, "A minimal algorithm for the multiple-choice knapsack problem",
//! European Journal of Operational Research 83, 1995: all groups begin at the corner of the walk
//! that the limit falls behind. Groups are opened in the order of how little it costs to move them
//! from there; partial plans that another dominates, or whose bound is no better than the best plan
//! known, are dropped. When none is left the best plan known is the best there is, mostly after a
//! few dozen of a thousand groups.

use super::{Found, Goal, Problem};

/// How long to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Partial plans that are built before the search gives up: a count and no time, so that the
    /// answer is the same on every machine.
    pub most_states: u64,
}

impl Default for Effort {
    fn default() -> Self {
        Self { most_states: 4_000_000 }
    }
}

/// A plan that differs from the corner in opened groups only; both sides relative to the corner.
#[derive(Clone, Copy)]
struct State {
    used: f64,
    value: f64,
    /// The last change that led here; [`NONE`] is the corner itself.
    node: u32,
}

/// One change of a plan, and the one before it.
#[derive(Clone, Copy)]
struct Node {
    before: u32,
    group: u32,
    pick: u32,
}

const NONE: u32 = u32::MAX;

/// A group with the rates at which it is best moved away from the corner.
struct Open {
    group: usize,
    /// Most objective saved per unit of the limit that is spent on it.
    up: f64,
    /// Least objective lost per unit of the limit that it sets free.
    down: f64,
}

/// Replaces the choice of `found` by the best there is, as far as `effort` reaches, and raises its bound.
pub(super) fn improve(problem: &Problem, goal: Goal, found: &mut Found, effort: &Effort) {
    let Some(multiplier) = found.multiplier else { return };
    let tolerance = goal.tolerance(problem);
    if found.objective - found.bound <= tolerance {
        return;
    }
    let sides = |group: usize, pick: usize| goal.sides(&problem.groups[group][pick]);
    let at_corner = |side: fn((f64, f64)) -> f64| -> f64 {
        found.corner.iter().enumerate().map(|(group, &pick)| side(sides(group, pick))).sum()
    };
    let slack = goal.limit() - at_corner(|sides| sides.0);
    let corner_value = at_corner(|sides| sides.1);

    let mut order: Vec<Open> = (0..problem.groups.len()).map(|group| open(problem, goal, group, found)).collect();
    let distance = |open: &Open| (multiplier - open.up).min(open.down - multiplier);
    order.sort_by(|one, other| distance(one).total_cmp(&distance(other)).then(one.group.cmp(&other.group)));
    // Best rates among the groups that are not opened yet.
    let mut rates = vec![(0.0_f64, f64::INFINITY); order.len() + 1];
    for (at, open) in order.iter().enumerate().rev() {
        rates[at] = (rates[at + 1].0.max(open.up), rates[at + 1].1.min(open.down));
    }
    let bound_of = |state: &State, (up, down): (f64, f64)| {
        let left = slack - state.used;
        state.value - if left >= 0.0 { up * left } else { down * left }
    };

    let mut best = found.objective - corner_value;
    let mut best_node = None;
    let mut nodes: Vec<Node> = Vec::new();
    let mut states = vec![State { used: 0.0, value: 0.0, node: NONE }];
    let mut built = 0_u64;
    let mut bound = None;
    for (at, open) in order.iter().enumerate() {
        let corner = found.corner[open.group];
        let from = sides(open.group, corner);
        let moves: Vec<(usize, f64, f64)> = (0..problem.groups[open.group].len())
            .filter(|&pick| pick != corner)
            .map(|pick| (pick, sides(open.group, pick)))
            .map(|(pick, to)| (pick, to.0 - from.0, to.1 - from.1))
            .filter(|&(_, used, value)| value + multiplier * (used - slack) < best - tolerance)
            .collect();
        if moves.is_empty() {
            continue;
        }
        // Runs in their order, which a stable sort merges.
        let mut next: Vec<(State, usize)> = Vec::with_capacity(states.len() * (moves.len() + 1));
        next.extend(states.iter().map(|&state| (state, corner)));
        for &(pick, used, value) in &moves {
            let moved = |state: &State| State { used: state.used + used, value: state.value + value, ..*state };
            next.extend(states.iter().map(|state| (moved(state), pick)));
        }
        built += next.len() as u64;
        next.sort_by(|(one, _), (other, _)| one.used.total_cmp(&other.used).then(one.value.total_cmp(&other.value)));
        let mut least = f64::INFINITY;
        next.retain(|(state, _)| {
            let is_better = state.value < least;
            least = least.min(state.value);
            is_better
        });
        for (state, _) in &next {
            if state.used <= slack && state.value < best {
                best = state.value;
            }
        }
        states.clear();
        for (mut state, pick) in next {
            let is_best = state.used <= slack && state.value == best;
            // The best plan stays until a better one comes, even where nothing more can be made of it.
            let is_open = bound_of(&state, rates[at + 1]) < best - tolerance;
            if !(is_open || is_best) {
                continue;
            }
            if pick != corner {
                nodes.push(Node { before: state.node, group: open.group as u32, pick: pick as u32 });
                state.node = nodes.len() as u32 - 1;
            }
            if is_best {
                best_node = Some(state.node);
            }
            if is_open {
                states.push(state);
            }
        }
        if states.is_empty() {
            break;
        }
        if built > effort.most_states || nodes.len() >= NONE as usize / 2 {
            let least = states.iter().map(|state| bound_of(state, rates[at + 1])).fold(best, f64::min);
            bound = Some(corner_value + least);
            break;
        }
    }
    if let Some(mut node) = best_node {
        found.picks.clone_from(&found.corner);
        while node != NONE {
            let Node { before, group, pick } = nodes[node as usize];
            found.picks[group as usize] = pick as usize;
            node = before;
        }
    }
    found.objective = corner_value + best;
    found.bound = bound.unwrap_or(found.objective).max(found.bound).min(found.objective);
}

/// The rates of a group at the corner.
fn open(problem: &Problem, goal: Goal, group: usize, found: &Found) -> Open {
    let alternatives = &problem.groups[group];
    let (used, value) = goal.sides(&alternatives[found.corner[group]]);
    let mut open = Open { group, up: 0.0, down: f64::INFINITY };
    for alternative in alternatives {
        let (other_used, other_value) = goal.sides(alternative);
        let rate = (value - other_value) / (other_used - used);
        if other_used > used {
            open.up = open.up.max(rate);
        } else if other_used < used {
            open.down = open.down.min(rate);
        }
    }
    open
}
