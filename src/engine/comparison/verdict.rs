//! The sentence that a stakeholder reads first.

use super::gates::{GateResult, Verdict};
use super::{Comparison, Paired, SliceComparison};
use crate::units;

/// Slices or gates that the sentence names; the rest are counted.
const NAMED: usize = 2;
/// Ratios nearer to 1 are called the same.
const SAME_SIZE: f64 = 0.005;
const SAME_SPEED: f64 = 0.03;

/// Size, speed and accuracy, then what stands out.
pub(super) fn sentence(comparison: &Comparison) -> String {
    let mut parts = vec![size(comparison.size_ratio)];
    if let Some(ratio) = comparison.decode_speed_ratio {
        parts.push(speed(comparison, ratio));
    }
    if let Some(overall) = &comparison.overall {
        parts.push(format!("accuracy {} points", points(overall)));
    } else if let Some(distance) = comparison.text.as_ref().and_then(|text| text.distance.as_ref()) {
        // What was kept of the baseline's predictions bounds the distance from below.
        let bound = if distance.kept.is_some_and(|kept| kept.tail_mass_mean > 0.0) { "at least " } else { "" };
        parts.push(format!("KLD {bound}{}", units::significant(distance.kld_mean)));
        parts.push(format!("same top token {}", units::percent(distance.same_top_fraction)));
    }
    let mut text = format!("{}: {}", comparison.candidate.name, parts.join(", "));
    let rest = if comparison.gates.is_empty() { slices(comparison) } else { gates(comparison) };
    if !rest.is_empty() {
        text.push_str("; ");
        text.push_str(&rest);
    }
    text
}

/// `3.1×`, with as many digits as one reads.
fn times(ratio: f64) -> String {
    if ratio < 9.95 { format!("{ratio:.1}×") } else { format!("{ratio:.0}×") }
}

fn size(ratio: f64) -> String {
    if (ratio - 1.0).abs() <= SAME_SIZE {
        "same size".to_owned()
    } else if ratio > 1.0 {
        format!("{} smaller", small_times(ratio))
    } else {
        format!("{} larger", small_times(1.0 / ratio.max(1e-9)))
    }
}

/// A fact where the interval leaves 1 out, a range where it does not, and no more than "about" without one.
fn speed(comparison: &Comparison, ratio: f64) -> String {
    let faster = || {
        if ratio > 1.0 {
            format!("{} faster decoding", small_times(ratio))
        } else {
            format!("{} slower decoding", small_times(1.0 / ratio.max(1e-9)))
        }
    };
    let text = match comparison.decode_speed_interval {
        Some([low, high]) if low >= 1.0 - SAME_SPEED && high <= 1.0 + SAME_SPEED => "same decoding speed".to_owned(),
        Some([low, high]) if low > 1.0 || high < 1.0 => faster(),
        Some([low, high]) => format!("decoding {low:.2} to {high:.2}× as fast (undecided)"),
        None if (ratio - 1.0).abs() <= SAME_SPEED => "about the same decoding speed".to_owned(),
        None => format!("about {}", faster()),
    };
    if comparison.is_speed_under_load { format!("{text} (measured under load)") } else { text }
}

/// A ratio near 1 needs a second decimal, or it reads `1.0× smaller`.
fn small_times(ratio: f64) -> String {
    if ratio < 1.1 { format!("{ratio:.2}×") } else { times(ratio) }
}

/// `−0.4 ± 0.6`, in percentage points with a true minus.
pub(super) fn points(paired: &Paired) -> String {
    // Rounded first, so that −0.04 does not read −0.0.
    let value = (paired.difference * 1000.0).round() / 10.0;
    let sign = if value < 0.0 {
        "−"
    } else if value > 0.0 {
        "+"
    } else {
        ""
    };
    format!("{sign}{:.1} ± {:.1}", value.abs(), paired.margin() * 100.0)
}

/// Slices that changed beyond chance, the largest loss first.
fn slices(comparison: &Comparison) -> String {
    let mut changed: Vec<&SliceComparison> =
        comparison.slices.iter().filter(|slice| slice.paired.mcnemar_p_holm.is_some_and(|p| p < 0.05)).collect();
    if comparison.slices.is_empty() {
        return String::new();
    }
    if changed.is_empty() {
        return "no slice changes beyond chance".to_owned();
    }
    changed.sort_by(|a, b| a.paired.difference.total_cmp(&b.paired.difference));
    let mut parts: Vec<String> =
        changed.iter().take(NAMED).map(|slice| format!("{} {}", slice.name(), points(&slice.paired))).collect();
    if changed.len() > NAMED {
        parts.push(format!("and {} more slices change", changed.len() - NAMED));
    }
    parts.join(", ")
}

/// Gates that fail, else those that are undecided.
fn gates(comparison: &Comparison) -> String {
    let with = |verdict: Verdict| -> Vec<&GateResult> {
        comparison.gates.iter().filter(|gate| gate.verdict == verdict).collect()
    };
    let (failed, undecided) = (with(Verdict::Fail), with(Verdict::Undecided));
    if failed.is_empty() && undecided.is_empty() {
        let count = comparison.gates.len();
        return if count == 1 { "passes its gate".to_owned() } else { format!("passes all {count} gates") };
    }
    let mut parts: Vec<String> =
        failed.iter().take(NAMED).map(|gate| format!("{}: fails the gate", subject(comparison, gate))).collect();
    if failed.len() > NAMED {
        parts.push(format!("{} more gates fail", failed.len() - NAMED));
    }
    match undecided.len() {
        0 => {}
        1 => parts.push(format!("{}: undecided", subject(comparison, undecided[0]))),
        count => parts.push(format!("{count} gates undecided")),
    }
    parts.join("; ")
}

/// What a gate is about, with its figure: `facts/rare −7.0 ± 2.9` or `kld_mean 0.0312`.
fn subject(comparison: &Comparison, gate: &GateResult) -> String {
    let slice = gate.slice.as_ref().and_then(|name| comparison.slices.iter().find(|slice| slice.name() == *name));
    match (gate.metric.as_str(), slice, &comparison.overall, gate.estimate) {
        ("accuracy", Some(slice), _, _) => format!("{} {}", slice.name(), points(&slice.paired)),
        ("accuracy", None, Some(overall), Some(_)) => format!("accuracy {}", points(overall)),
        (metric, Some(slice), _, Some(value)) => {
            format!("{} {metric} {}", slice.name(), units::significant(value))
        }
        (metric, None, _, Some(value)) => format!("{metric} {}", units::significant(value)),
        (metric, _, _, None) => metric.to_owned(),
    }
}
