//! A candidate's speed over its baseline's, with an interval where both were measured in turns.
//!
//! In turns, a repetition of one stands beside one of the other, and what slows the machine for a while slows
//! both: so the ratio is taken pair by pair, and its median has an interval that assumes no distribution.

use super::stats::median_interval;
use crate::evaluation::Evaluation;
use crate::scoring::SpeedResult;
use crate::scoring::conditions::Conditions;

/// One ratio.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ratio {
    pub value: f64,
    /// 95 %.
    pub interval: Option<[f64; 2]>,
}

/// Candidate over baseline; above 1 the candidate is faster.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Ratios {
    pub decode: Option<Ratio>,
    pub prefill: Option<Ratio>,
    pub is_under_load: bool,
}

/// The ratio of two speeds: by pairs of seconds where there are, else as both medians say.
fn ratio(speeds: [f64; 2], pairs: Option<[&[f64]; 2]>) -> Option<Ratio> {
    let pairs = pairs.filter(|[own, other]| own.len() == other.len() && !own.is_empty());
    let (value, interval) = match pairs {
        Some([own, other]) => {
            let ratios: Vec<f64> = own.iter().zip(other).map(|(own, other)| other / own).collect();
            median_interval(&ratios)
        }
        None => (speeds[0] / speeds[1], None),
    };
    let is_known = speeds.iter().all(|&speed| speed > 0.0) && value.is_finite();
    is_known.then(|| Ratio { value, interval: interval.map(|(low, high)| [low, high]) })
}

fn of(own: &SpeedResult, other: &SpeedResult, is_in_turns: bool) -> Ratios {
    Ratios {
        decode: ratio(
            [own.decode_tokens_per_second, other.decode_tokens_per_second],
            is_in_turns.then_some([&own.decode_secs, &other.decode_secs]),
        ),
        prefill: ratio(
            [own.prefill_tokens_per_second, other.prefill_tokens_per_second],
            is_in_turns.then_some([&own.prefill_secs, &other.prefill_secs]),
        ),
        is_under_load: false,
    }
}

/// Candidate's speed over baseline's, with what is to be said about it.
pub(super) fn ratios(baseline: &Evaluation, candidate: &Evaluation, warnings: &mut Vec<String>) -> Ratios {
    let Some(speed) = &candidate.speed else {
        return Ratios::default();
    };
    // The candidate's own baseline was measured in turns with it; another moment is second best.
    let own_baseline = candidate.baseline.as_deref().filter(|own| own.model.id == baseline.model.id);
    let in_turns = own_baseline.and_then(|own| own.speed.as_ref()).filter(|other| other.in_turns && speed.in_turns);
    let Some(other) = in_turns.or(baseline.speed.as_ref()) else {
        return Ratios::default();
    };
    if in_turns.is_none() {
        warnings.push("the speeds were measured at different times".to_owned());
    }
    if (speed.threads, speed.prefill_tokens, speed.decode_tokens)
        != (other.threads, other.prefill_tokens, other.decode_tokens)
    {
        warnings.push("the speeds were measured with different threads or lengths and are left out".to_owned());
        return Ratios::default();
    }
    let is_under_load = [Some(candidate), in_turns.is_none().then_some(baseline)]
        .into_iter()
        .flatten()
        .any(|one| one.conditions.as_ref().is_some_and(Conditions::is_loaded));
    if let Some(cores) = candidate.conditions.as_ref().and_then(|one| one.other_cores).filter(|_| is_under_load) {
        warnings.push(format!("other programs kept {cores:.1} cores busy while speed was measured"));
    }
    Ratios { is_under_load, ..of(speed, other, in_turns.is_some()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_medians_of_pairs_with_the_interval_of_the_binomial() {
        // The machine was twice as slow from the fourth pair on: each pair still says 2, but one.
        let own = [1.0, 1.0, 1.0, 2.0, 2.0, 2.0];
        let other = [2.0, 2.0, 2.0, 4.0, 4.0, 3.0];
        let found = ratio([1.0, 0.5], Some([&own, &other])).expect("a ratio");
        assert_eq!(found, Ratio { value: 2.0, interval: Some([1.5, 2.0]) });
        // Five pairs have a median and no interval; without pairs both medians are what there is.
        let few = ratio([1.0, 0.5], Some([&own[..5], &other[..5]])).expect("a ratio");
        assert_eq!(few, Ratio { value: 2.0, interval: None });
        assert_eq!(ratio([3.0, 1.5], None), Some(Ratio { value: 2.0, interval: None }));
        assert_eq!(ratio([3.0, 0.0], None), None);
    }
}
