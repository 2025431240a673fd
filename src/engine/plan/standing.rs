//! How a plan stands to its constraints: each met, missed or unknown, with what is known.
//!
//! Sizes are exact before anything is run. Speed and KLD are predicted until the plan's candidate
//! was measured; slices are unknown until then. What is not known is never taken for met.

use serde::Serialize;

use super::Constraints;
use super::constraints::cache_values;
use super::speed::SpeedPrediction;
use crate::checkpoint::ModelConfig;
use crate::units;

/// Where a constraint stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Kept.
    Met,
    /// Not kept.
    Missed,
    /// Not known yet.
    Unknown,
}

impl Standing {
    /// The standing as a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "missed",
            Self::Unknown => "unknown",
        }
    }

    fn of(is_met: bool) -> Self {
        if is_met { Self::Met } else { Self::Missed }
    }
}

/// How a value came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// Computed from the plan: sizes.
    Exact,
    /// Without running the plan.
    Predicted,
    /// Of the plan's own candidate.
    Measured,
}

impl Basis {
    /// The basis as a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Predicted => "predicted",
            Self::Measured => "measured",
        }
    }
}

/// What would make an unknown one known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Remedy {
    /// Time the kernels of this machine.
    MeasureKernels,
    /// Measure the sensitivity in nats.
    MeasureSensitivity,
    /// Run the plan and evaluate its candidate.
    RunPlan,
}

/// One constraint and where it stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// The constraint: `file ≤ 2.50 MiB`.
    pub what: String,
    /// Where it stands.
    pub standing: Standing,
    /// The value, where it is known: `2.41 MiB`.
    pub value: Option<String>,
    /// How it came about.
    pub basis: Option<Basis>,
    /// What would make it known.
    pub remedy: Option<Remedy>,
}

impl Check {
    /// Value, basis and standing in words.
    pub fn sentence(&self) -> String {
        match (&self.value, self.basis, self.remedy) {
            (Some(value), Some(basis), _) => format!("{value}, {}", basis.name()),
            (_, _, Some(Remedy::MeasureKernels)) => "unknown until the kernels of this machine are timed".to_owned(),
            (_, _, Some(Remedy::MeasureSensitivity)) => "unknown until the sensitivity is measured in nats".to_owned(),
            _ => "unknown until the plan is run and its candidate is evaluated".to_owned(),
        }
    }
}

/// What was measured of the plan's own candidate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MeasuredFacts {
    /// Tokens written and tokens read a second.
    pub speed: Option<[f64; 2]>,
    /// Mean KLD.
    pub kld: Option<f64>,
    /// By slice constraint, in their order: the standing and the loss in words.
    pub slices: Vec<(Standing, String)>,
}

/// What is known of a plan.
#[derive(Clone, Debug, Default)]
pub struct Facts<'a> {
    /// Bytes of the whole file.
    pub file_bytes: Option<u64>,
    /// Bytes of all tensors.
    pub weight_bytes: u64,
    /// The network, for its KV cache.
    pub config: Option<&'a ModelConfig>,
    /// How fast it will be.
    pub speed: Option<SpeedPrediction>,
    /// Predicted KLD in nats.
    pub kld: Option<f64>,
    /// What was measured.
    pub measured: MeasuredFacts,
}

/// Where a plan stands to each of its constraints, in the order of the file.
pub fn checks(constraints: &Constraints, facts: &Facts<'_>) -> Vec<Check> {
    let mut checks = Vec::new();
    if let Some(most) = constraints.max_file_bytes {
        let found = facts.file_bytes;
        checks.push(Check {
            what: format!("file ≤ {}", units::bytes(most)),
            standing: found.map_or(Standing::Unknown, |bytes| Standing::of(bytes <= most)),
            value: found.map(units::bytes),
            basis: found.map(|_| Basis::Exact),
            remedy: None,
        });
    }
    if let Some(memory) = constraints.max_memory {
        let values = facts.config.map(cache_values);
        let found = values.map(|values| facts.weight_bytes.saturating_add(memory.cache_bytes(values)));
        checks.push(Check {
            what: format!("memory ≤ {} at {} tokens", units::bytes(memory.bytes), memory.context),
            standing: found.map_or(Standing::Unknown, |bytes| Standing::of(bytes <= memory.bytes)),
            value: found.map(|bytes| {
                let cache = bytes.saturating_sub(facts.weight_bytes);
                format!("{}, {} of it KV cache in {}", units::bytes(bytes), units::bytes(cache), memory.cache)
            }),
            basis: found.map(|_| Basis::Exact),
            remedy: None,
        });
    }
    speed_checks(constraints, facts, &mut checks);
    if let Some(most) = constraints.max_kld {
        let found = known(facts.measured.kld, facts.kld);
        checks.push(Check {
            what: format!("KLD ≤ {}", units::significant(most)),
            standing: found.map_or(Standing::Unknown, |(kld, _)| Standing::of(kld <= most)),
            value: found.map(|(kld, _)| format!("{} nats", units::significant(kld))),
            basis: found.map(|found| found.1),
            remedy: found.is_none().then_some(Remedy::MeasureSensitivity),
        });
    }
    for (index, margin) in constraints.slices.iter().enumerate() {
        let found = facts.measured.slices.get(index);
        checks.push(Check {
            what: format!("{} loses ≤ {} points", margin.slice, units::significant(margin.max_loss * 100.0)),
            standing: found.map_or(Standing::Unknown, |found| found.0),
            value: found.map(|found| found.1.clone()),
            basis: found.map(|_| Basis::Measured),
            remedy: found.is_none().then_some(Remedy::RunPlan),
        });
    }
    checks
}

/// Measured before predicted.
fn known(measured: Option<f64>, predicted: Option<f64>) -> Option<(f64, Basis)> {
    measured.map(|value| (value, Basis::Measured)).or(predicted.map(|value| (value, Basis::Predicted)))
}

fn speed_checks(constraints: &Constraints, facts: &Facts<'_>, checks: &mut Vec<Check>) {
    let measured = facts.measured.speed.map(|[decode, prefill]| SpeedPrediction {
        decode_tokens_per_second: decode,
        prefill_tokens_per_second: prefill,
        is_calibrated: true,
    });
    let found = |value: fn(&SpeedPrediction, &Constraints) -> f64| {
        let of = |speed: &SpeedPrediction| value(speed, constraints);
        known(measured.as_ref().map(of), facts.speed.as_ref().map(of))
    };
    let mut tell =
        |what: String, found: Option<(f64, Basis)>, is_met: &dyn Fn(f64) -> bool, text: &dyn Fn(f64) -> String| {
            checks.push(Check {
                what,
                standing: found.map_or(Standing::Unknown, |(value, _)| Standing::of(is_met(value))),
                value: found.map(|(value, _)| text(value)),
                basis: found.map(|found| found.1),
                remedy: found.is_none().then_some(Remedy::MeasureKernels),
            });
        };
    let tokens = |speed: f64| format!("{} tok/s", units::significant(speed));
    if let Some(least) = constraints.min_decode_tokens_per_second {
        let found = found(|speed, _| speed.decode_tokens_per_second);
        tell(format!("decode ≥ {}", tokens(least)), found, &|speed| speed >= least, &tokens);
    }
    if let Some(least) = constraints.min_prefill_tokens_per_second {
        let found = found(|speed, _| speed.prefill_tokens_per_second);
        tell(format!("prefill ≥ {}", tokens(least)), found, &|speed| speed >= least, &tokens);
    }
    if let Some(most) = constraints.max_request {
        let found = found(|speed, constraints| {
            let request = constraints.max_request.map(|request| (request.prompt_tokens, request.output_tokens));
            request.map_or(0.0, |(prompt, output)| speed.request_secs(prompt, output))
        });
        let what =
            format!("request ≤ {} for {} + {}", units::duration(most.seconds), most.prompt_tokens, most.output_tokens);
        tell(what, found, &|secs| secs <= most.seconds, &|secs| units::duration(secs));
    }
}

#[cfg(test)]
mod tests {
    use super::super::constraints::{MemoryLimit, RequestLimit, SliceMargin};
    use super::*;

    fn constraints() -> Constraints {
        Constraints {
            max_file_bytes: Some(1000),
            max_memory: Some(MemoryLimit::new(1 << 20)),
            min_decode_tokens_per_second: Some(50.0),
            min_prefill_tokens_per_second: Some(100.0),
            max_request: Some(RequestLimit { seconds: 2.0, prompt_tokens: 100, output_tokens: 50 }),
            max_kld: Some(0.02),
            slices: vec![SliceMargin { slice: "facts/*".to_owned(), max_loss: 0.02 }],
        }
    }

    #[test]
    fn nothing_known_is_nothing_met_and_every_unknown_names_its_remedy() {
        let found = checks(&constraints(), &Facts::default());
        assert_eq!(found.len(), 7);
        for check in &found {
            assert_eq!((check.standing, &check.value), (Standing::Unknown, &None), "{check:?}");
            assert!(check.sentence().starts_with("unknown until"), "{check:?}");
        }
        let remedies: Vec<Option<Remedy>> = found[2..].iter().map(|check| check.remedy).collect();
        let [kernels, kld, run] = [Remedy::MeasureKernels, Remedy::MeasureSensitivity, Remedy::RunPlan].map(Some);
        assert_eq!(remedies, [kernels, kernels, kernels, kld, run]);
    }

    #[test]
    fn what_is_measured_goes_before_what_is_predicted() {
        let speed = |decode: f64| SpeedPrediction {
            decode_tokens_per_second: decode,
            prefill_tokens_per_second: 100.0,
            is_calibrated: false,
        };
        let mut facts = Facts { file_bytes: Some(1000), speed: Some(speed(60.0)), kld: Some(0.01), ..Facts::default() };
        let standing = |facts: &Facts<'_>| -> Vec<Standing> {
            checks(&constraints(), facts).iter().map(|check| check.standing).collect()
        };
        let (met, missed, unknown) = (Standing::Met, Standing::Missed, Standing::Unknown);
        assert_eq!(standing(&facts), [met, unknown, met, met, met, met, unknown]);
        facts.measured = MeasuredFacts {
            speed: Some([40.0, 90.0]),
            kld: Some(0.03),
            slices: vec![(Standing::Missed, "3 points".to_owned())],
        };
        facts.file_bytes = Some(1001);
        assert_eq!(standing(&facts), [missed, unknown, missed, missed, missed, missed, missed]);
        let decode = &checks(&constraints(), &facts)[2];
        assert_eq!((decode.what.as_str(), decode.sentence().as_str()), ("decode ≥ 50.0 tok/s", "40.0 tok/s, measured"));
    }
}
