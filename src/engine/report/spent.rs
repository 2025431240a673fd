//! Time, operations and energy: of a model's evaluation, and of everything in the log.

use super::LoggedEntry;
use crate::evaluation::Evaluation;
use crate::units;

/// What scoring the items of a model took, where it was told.
pub(super) fn energy(evaluation: &Evaluation) -> Option<String> {
    let used = evaluation.energy.as_ref()?;
    let answer = used.joules_per_correct_answer.map_or_else(
        || "no answer was right".to_owned(),
        |joules| format!("{} joules a correct answer", units::significant(joules)),
    );
    let (name, token) = (&evaluation.model.name, units::significant(used.joules_per_token));
    Some(format!("{name}: {token} joules a token, {answer} ({})", used.energy.source.text()))
}

/// Time and operations of everything in the log.
pub(super) fn computed(log: &[LoggedEntry]) -> Vec<String> {
    let seconds: f64 = log.iter().filter_map(|logged| logged.entry.seconds).sum();
    let flop: f64 = log.iter().filter_map(|logged| logged.entry.flop).sum();
    let timed = log.iter().filter(|logged| logged.entry.seconds.is_some()).count();
    let mut lines = Vec::new();
    if seconds > 0.0 {
        lines.push(format!("{} of computing in {timed} entries of the log", units::seconds(seconds)));
    }
    if flop > 0.0 {
        lines.push(format!("{flop:.3e} floating-point operations"));
    }
    lines
}

/// Energy of everything in the log, where some of it was told.
pub(super) fn joules(log: &[LoggedEntry]) -> Option<String> {
    let joules: f64 = log.iter().filter_map(|logged| logged.entry.joules).sum();
    let estimated = log.iter().any(|logged| logged.entry.joules.is_some() && logged.entry.joules_are_estimated);
    let label = if estimated { "estimated" } else { "by the processors' counters, the whole machine's" };
    (joules > 0.0).then(|| format!("{joules:.0} joules ({label})"))
}

/// Time, operations and energy of everything in the log.
pub(super) fn spent(log: &[LoggedEntry]) -> Vec<String> {
    computed(log).into_iter().chain(joules(log)).collect()
}
