//! The knapsack against brute force, and at the size of a model.

use proptest::prelude::*;

use super::*;

fn alternative(cost: u64, damage: f64) -> Alternative {
    Alternative { cost, damage }
}

/// Costs, and damages in sixteenths: sums of them are exact, so that equal means equal.
fn any_groups() -> impl Strategy<Value = Vec<Vec<Alternative>>> {
    let one = (0_u64..40, 0_u32..200).prop_map(|(cost, damage)| alternative(cost, f64::from(damage) / 16.0));
    prop::collection::vec(prop::collection::vec(one, 1..6), 1..7)
}

/// Every choice there is.
fn all_points(groups: &[Vec<Alternative>]) -> Vec<Point> {
    groups.iter().fold(vec![Point { cost: 0, damage: 0.0 }], |points, group| {
        let add =
            |point: &Point, one: &Alternative| Point { cost: point.cost + one.cost, damage: point.damage + one.damage };
        points.iter().flat_map(|point| group.iter().map(move |one| add(point, one))).collect()
    })
}

fn sum_of(groups: &[Vec<Alternative>], picks: &[usize]) -> Point {
    let chosen = || groups.iter().zip(picks).map(|(group, &pick)| group[pick]);
    Point { cost: chosen().map(|one| one.cost).sum(), damage: chosen().map(|one| one.damage).sum() }
}

/// As many groups as a model has tensors: damage falls by four with every bit, with some scatter.
fn model_like(groups: usize, seed: u64) -> Vec<Vec<Alternative>> {
    let mut state = seed;
    let mut random = move || {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    };
    let bits = [2.06, 2.625, 3.06, 3.4375, 4.25, 4.5, 5.0, 5.5, 6.0, 6.5625, 8.5, 16.0];
    (0..groups)
        .map(|_| {
            let weights = [8192 * 1024, 8192 * 8192, 8192 * 28672][(random() * 3.0) as usize];
            let fragility = 10.0_f64.powf(random() * 4.0 - 5.0);
            let one = |bits: f64| {
                let damage = fragility * 4.0_f64.powf(-bits) * (0.7 + 0.6 * random());
                alternative((f64::from(weights) * bits / 8.0) as u64, damage)
            };
            bits.map(one).to_vec()
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn least_damage_within_a_cost_equals_brute_force(groups in any_groups(), limit in 0_u64..240) {
        let problem = Problem::new(&groups).expect("has choices");
        let fitting = all_points(&groups).into_iter().filter(|point| point.cost <= limit);
        let best = fitting.map(|point| point.damage).min_by(f64::total_cmp);
        let goal = Goal::CostAtMost(limit);
        let exact = problem.solve_exactly(goal, &Effort::default());
        prop_assert_eq!(exact.as_ref().map(|exact| exact.point.damage), best);
        if let (Some(exact), Some(at_once)) = (exact, problem.solve(goal)) {
            prop_assert!(exact.is_optimal && exact.point.cost <= limit);
            prop_assert_eq!(sum_of(&groups, &exact.picks), exact.point);
            prop_assert_eq!(sum_of(&groups, &at_once.picks), at_once.point);
            prop_assert!(at_once.point.cost <= limit && at_once.objective >= exact.objective);
            prop_assert!(at_once.bound <= exact.objective + 1e-9, "{} {}", at_once.bound, exact.objective);
            prop_assert!(!at_once.is_optimal || at_once.objective == exact.objective);
        }
    }

    #[test]
    fn least_cost_within_a_damage_equals_brute_force(groups in any_groups(), limit in 0_u32..1300) {
        let limit = f64::from(limit) / 16.0;
        let problem = Problem::new(&groups).expect("has choices");
        let best = all_points(&groups).into_iter().filter(|point| point.damage <= limit).map(|point| point.cost).min();
        let goal = Goal::DamageAtMost(limit);
        let exact = problem.solve_exactly(goal, &Effort::default());
        prop_assert_eq!(exact.as_ref().map(|exact| exact.point.cost), best);
        if let (Some(exact), Some(at_once)) = (exact, problem.solve(goal)) {
            prop_assert!(exact.is_optimal && exact.point.damage <= limit);
            prop_assert_eq!(sum_of(&groups, &exact.picks), exact.point);
            prop_assert!(at_once.point.damage <= limit && at_once.objective >= exact.objective);
            prop_assert!(at_once.bound <= exact.objective + 1e-9);
        }
    }

    #[test]
    fn the_frontier_is_convex_and_its_corners_are_the_best_for_their_cost(groups in any_groups()) {
        let problem = Problem::new(&groups).expect("has choices");
        let corners = problem.frontier();
        prop_assert_eq!((corners[0], corners[corners.len() - 1]), (problem.floor(), problem.best()));
        let all = all_points(&groups);
        for corner in corners {
            let better = all.iter().filter(|point| point.cost <= corner.cost && point.damage < corner.damage);
            prop_assert_eq!(better.count(), 0);
            let found = problem.solve(Goal::CostAtMost(corner.cost)).expect("fits");
            prop_assert!(found.is_optimal);
            prop_assert_eq!(found.point, *corner);
        }
        for three in corners.windows(3) {
            let slope = |a: Point, b: Point| (a.damage - b.damage) / (b.cost - a.cost) as f64;
            prop_assert!(slope(three[0], three[1]) >= slope(three[1], three[2]) - 1e-12);
        }
    }
}

#[test]
fn budgets_below_the_floor_and_damages_below_the_best_have_no_answer() {
    let groups = vec![vec![alternative(10, 1.0), alternative(20, 0.5)], vec![alternative(7, 0.25)]];
    let problem = Problem::new(&groups).expect("has choices");
    assert_eq!(problem.floor(), Point { cost: 17, damage: 1.25 });
    assert_eq!((problem.floor_of(0), problem.floor_of(1), problem.floor_of(2)), (Some(10), Some(7), None));
    assert_eq!(problem.solve(Goal::CostAtMost(16)), None);
    assert_eq!(problem.solve(Goal::DamageAtMost(0.7)), None);
    assert_eq!(problem.solve(Goal::DamageAtMost(f64::NAN)), None);
    assert_eq!(problem.solve_exactly(Goal::CostAtMost(16), &Effort::default()), None);
    assert_eq!(problem.solve(Goal::CostAtMost(u64::MAX)).expect("fits").point, problem.best());
    assert_eq!(problem.solve(Goal::DamageAtMost(f64::INFINITY)).expect("fits").point, problem.floor());
}

#[test]
fn alternatives_without_a_finite_damage_are_never_taken() {
    let groups = vec![vec![alternative(1, f64::NAN), alternative(2, f64::INFINITY), alternative(3, 0.5)]];
    let problem = Problem::new(&groups).expect("has one choice");
    assert_eq!(problem.solve(Goal::CostAtMost(9)).expect("fits").picks, [2]);
    assert_eq!(Problem::new(&[vec![alternative(1, f64::NAN)]]).err(), Some(Unsolvable::NoAlternative(0)));
    assert_eq!(Problem::new(&[vec![], vec![]]).err(), Some(Unsolvable::NoAlternative(0)));
    assert_eq!(Problem::new(&[vec![alternative(u64::MAX, 0.0)]]).err(), Some(Unsolvable::TooLarge));
}

#[test]
fn nothing_to_choose_costs_nothing() {
    let problem = Problem::new(&[]).expect("empty is fine");
    let found = problem.solve(Goal::CostAtMost(0)).expect("fits");
    assert_eq!((found.picks.len(), found.point.cost, found.is_optimal), (0, 0, true));
}

#[test]
fn of_equal_alternatives_the_first_is_taken() {
    let same = vec![alternative(5, 0.5); 3];
    let problem = Problem::new(&[same.clone(), same]).expect("has choices");
    assert_eq!(problem.solve_exactly(Goal::CostAtMost(12), &Effort::default()).expect("fits").picks, [0, 0]);
}

#[test]
fn a_search_that_is_cut_short_says_so_and_keeps_a_true_bound() {
    let groups = model_like(300, 3);
    let problem = Problem::new(&groups).expect("has choices");
    let (floor, best) = (problem.floor().cost, problem.best().cost);
    let mut cut = 0;
    for part in 1..20 {
        let goal = Goal::CostAtMost(floor + (best - floor) * part / 20);
        let short = problem.solve_exactly(goal, &Effort { most_states: 1 }).expect("fits");
        let long = problem.solve_exactly(goal, &Effort::default()).expect("fits");
        let at_once = problem.solve(goal).expect("fits");
        assert!(long.is_optimal);
        assert!(short.bound <= long.objective && at_once.bound <= short.bound);
        assert!(long.objective <= short.objective && short.objective <= at_once.objective);
        cut += usize::from(!short.is_optimal);
    }
    assert!(cut > 0, "one state cannot prove everything");
}

#[test]
fn a_model_of_a_thousand_tensors_is_planned_at_once_and_exactly() {
    let groups = model_like(1000, 1);
    let at_once = || {
        let started = std::time::Instant::now();
        let problem = Problem::new(&groups).expect("has choices");
        let (floor, best) = (problem.floor().cost, problem.best().cost);
        let goal = Goal::CostAtMost(floor + (best - floor) / 5);
        let found = problem.solve(goal).expect("fits");
        (started.elapsed(), problem, goal, found)
    };
    // The best of many: the machine may be busy with something else.
    let took = (0..20).map(|_| at_once().0).min().expect("some");
    assert!(took.as_millis() < 50, "{took:?}");
    let (_, problem, goal, at_once) = at_once();
    assert!(at_once.gap() < at_once.objective * 1e-3, "{} of {}", at_once.gap(), at_once.objective);
    let exact = problem.solve_exactly(goal, &Effort::default()).expect("fits");
    assert!(exact.is_optimal && exact.objective <= at_once.objective);
}

#[test]
#[ignore = "a benchmark: prints times"]
fn times_of_a_thousand_groups_by_twelve() {
    for seed in 1..=5 {
        let groups = model_like(1000, seed);
        let started = std::time::Instant::now();
        let problem = Problem::new(&groups).expect("has choices");
        let prepared = started.elapsed();
        let (floor, best) = (problem.floor().cost, problem.best().cost);
        for percent in [5, 20, 40, 60, 80] {
            for is_cost in [true, false] {
                let cost = floor + (best - floor) * percent / 100;
                let goal = if is_cost {
                    Goal::CostAtMost(cost)
                } else {
                    Goal::DamageAtMost(problem.solve(Goal::CostAtMost(cost)).expect("fits").point.damage * 1.000_1)
                };
                let started = std::time::Instant::now();
                let at_once = problem.solve(goal).expect("fits");
                let solved = started.elapsed();
                let started = std::time::Instant::now();
                let exact = problem.solve_exactly(goal, &Effort::default()).expect("fits");
                println!(
                    "seed {seed} {percent:2} % {} prepare {prepared:?} at once {solved:?} gap {:.1e} exact {:?} gap {:.1e} proven {}",
                    if is_cost { "cost  " } else { "damage" },
                    at_once.gap() / at_once.objective,
                    started.elapsed(),
                    exact.gap() / exact.objective,
                    exact.is_optimal
                );
            }
        }
    }
}
