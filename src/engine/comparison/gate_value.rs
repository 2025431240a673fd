//! What a gate with a hard limit looks at: the measured value, with its interval and its bounds.

use super::gates::Gate;
use super::stats::{Interval, wilson_of};
use super::{Comparison, Paired};

/// A measured value.
pub(super) struct Value {
    pub estimate: f64,
    /// 95 %, where it is known.
    pub interval: Option<[f64; 2]>,
    /// Items or texts that it is a mean of.
    pub n: Option<usize>,
    /// Between what the exact value lies: kept predictions of a baseline bound distances, and a bound is no pass.
    pub bounds: [f64; 2],
}

/// Value, interval and number of items.
type Found = Option<(f64, Option<[f64; 2]>, Option<usize>)>;

fn plain(value: Option<f64>) -> Found {
    Some((value?, None, None))
}

/// A value with its standard error.
fn spread(found: Option<(f64, f64)>) -> Found {
    let (value, stderr) = found?;
    Some((value, Some([value - 1.96 * stderr, value + 1.96 * stderr]), None))
}

/// A ratio with the interval of its repetitions, where there were enough.
fn ratio(value: Option<f64>, interval: Option<[f64; 2]>) -> Found {
    Some((value?, interval, None))
}

/// A share of `n` items or texts, `worth` independent ones.
fn share(fraction: f64, worth: f64, n: usize) -> Found {
    let (low, high): Interval = wilson_of(fraction, worth);
    Some((fraction, Some([low, high]), Some(n)))
}

/// A share of paired items. Groups count as one item each: how alike their items are in this figure is not known, and
/// a gate may rather doubt than be wrong.
fn share_of(paired: Option<&Paired>, fraction: impl Fn(&Paired) -> f64) -> Found {
    let paired = paired?;
    share(fraction(paired), paired.groups as f64, paired.n)
}

impl Value {
    /// The value that a gate judges; `paired` are the items of its slice where `is_sliced`, else all.
    pub fn of(gate: &Gate, is_sliced: bool, paired: Option<&Paired>, comparison: &Comparison) -> Option<Self> {
        let found = if is_sliced { None } else { of_models(gate, comparison) };
        let (estimate, interval, n) = found.or_else(|| of_items(&gate.metric, paired))?;
        Some(Self { estimate, interval, n, bounds: bounds(&gate.metric, estimate, comparison) })
    }
}

/// What is known of items, of a slice or all together.
fn of_items(metric: &str, paired: Option<&Paired>) -> Found {
    match metric {
        "accuracy" => paired.map(|one| (one.candidate_accuracy, Some(one.candidate_interval), Some(one.n))),
        "accuracy_norm" => {
            let accuracy = paired?.norm?.candidate_accuracy;
            share_of(paired, |_| accuracy)
        }
        "accuracy_bytes" => {
            let accuracy = paired?.bytes?.candidate_accuracy;
            share_of(paired, |_| accuracy)
        }
        "flip_fraction" => share_of(paired, |one| one.flip_fraction),
        "right_to_wrong_fraction" => share_of(paired, |one| one.right_to_wrong as f64 / one.n.max(1) as f64),
        "refusal_fraction" => share_of(paired, |one| one.candidate_refusal_fraction),
        "end_of_text_failure_fraction" => {
            let (paired, texts) = (paired?, paired?.unended?);
            let in_groups = paired.groups as f64 / paired.n.max(1) as f64;
            share(texts.fraction, texts.n as f64 * in_groups, texts.n)
        }
        _ => None,
    }
}

/// What is known of the models as wholes.
fn of_models(gate: &Gate, comparison: &Comparison) -> Found {
    let text = comparison.text.as_ref();
    let distance = text.and_then(|text| text.distance.as_ref());
    let written = comparison.candidate_written.as_ref();
    let of_texts = |fraction: f64, n: usize| share(fraction, n as f64, n);
    match gate.metric.as_str() {
        // The smallest of all slices lies between the smallest of their lower and of their upper ends.
        "worst_slice_difference" => {
            let least = |value: &dyn Fn(&Paired) -> f64| {
                comparison.slices.iter().map(|slice| value(&slice.paired)).min_by(f64::total_cmp)
            };
            let ends = least(&|one| one.difference_interval[0]).zip(least(&|one| one.difference_interval[1]));
            Some((least(&|one| one.difference)?, ends.map(|(low, high)| [low, high]), None))
        }
        "reverse_kld_mean" => spread(distance.map(|one| (one.reverse_kld_mean, one.reverse_kld_mean_stderr))),
        "acceptance_mean" => spread(distance.map(|one| (one.acceptance_mean, one.acceptance_mean_stderr))),
        "delta_p_rms" => spread(distance.map(|one| (one.delta_p_rms, one.delta_p_rms_stderr))),
        "kld_mean" => spread(distance.map(|one| (one.kld_mean, one.kld_mean_stderr))),
        "same_top_fraction" => spread(distance.map(|one| (one.same_top_fraction, one.same_top_fraction_stderr))),
        "perplexity" => spread(text.map(|text| (text.perplexity, text.perplexity_stderr))),
        "perplexity_ratio" => spread(distance.map(|one| (one.perplexity_ratio, one.perplexity_ratio_stderr))),
        "kld_median" => plain(distance.map(|one| one.kld_median)),
        "kld_p90" => plain(distance.map(|one| one.kld_p90)),
        "kld_p95" => plain(distance.map(|one| one.kld_p95)),
        "kld_p99" => plain(distance.map(|one| one.kld_p99)),
        "kld_p999" => plain(distance.map(|one| one.kld_p999)),
        "kld_max" => plain(distance.map(|one| one.kld_max)),
        "ece" => plain(comparison.candidate_reliability.as_ref().map(|reliability| reliability.ece)),
        "brier" => plain(comparison.candidate_reliability.as_ref().map(|reliability| reliability.brier)),
        "end_of_text_failure_fraction" => {
            written.and_then(|written| of_texts(written.end_of_text_failure_fraction, written.n))
        }
        "looping_fraction" => written.and_then(|written| of_texts(written.looping_fraction, written.n)),
        "repeated_fraction" => plain(written.map(|written| written.repeated_fraction)),
        "identical_text_fraction" => {
            comparison.written.as_ref().and_then(|written| of_texts(written.identical_fraction, written.n))
        }
        "resident_bytes" => plain(Some(comparison.resident_bytes as f64).filter(|&bytes| bytes > 0.0)),
        "ttft_secs" => plain(comparison.ttft_secs),
        "tpot_secs" => plain(comparison.tpot_secs),
        "bits_per_weight" => plain(Some(comparison.bits_per_weight)),
        "file_bytes" => plain(Some(comparison.file_bytes as f64)),
        "weight_bytes" => plain(comparison.weight_bytes.map(|bytes| bytes as f64)),
        "size_ratio" => plain(Some(comparison.size_ratio)),
        "decode_speed_ratio" => ratio(comparison.decode_speed_ratio, comparison.decode_speed_interval),
        "prefill_speed_ratio" => ratio(comparison.prefill_speed_ratio, comparison.prefill_speed_interval),
        "decode_tokens_per_second" => plain(comparison.candidate_speed.map(|[decode, _]| decode)),
        "prefill_tokens_per_second" => plain(comparison.candidate_speed.map(|[_, prefill]| prefill)),
        "request_seconds" => plain(comparison.candidate_speed.map(|[decode, prefill]| {
            let [read, written] = gate.request_tokens.map(|count| count as f64);
            read / prefill + written / decode
        })),
        _ => None,
    }
}

fn bounds(metric: &str, value: f64, comparison: &Comparison) -> [f64; 2] {
    let distance = comparison.text.as_ref().and_then(|text| text.distance.as_ref());
    let Some(kept) = distance.and_then(|distance| distance.kept).filter(|kept| kept.tail_mass_mean > 0.0) else {
        return [value, value];
    };
    match metric {
        "kld_mean" => [value, kept.kld_mean_at_most],
        "reverse_kld_mean" => [value, f64::INFINITY],
        "acceptance_mean" => [0.0, value],
        metric if metric.starts_with("kld_") => [value, f64::INFINITY],
        _ => [value, value],
    }
}
