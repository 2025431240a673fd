//! Scales and their ticks: linear and logarithmic, with labels as short as they can be.

use crate::engine::units::minus;

/// From data to `0..=1` and back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// The value at 0.
    pub min: f64,
    /// The value at 1.
    pub max: f64,
    /// Whether equal steps are equal ratios. Both ends are then positive.
    pub is_log: bool,
}

/// A place on an axis that is named.
#[derive(Clone, Debug, PartialEq)]
pub struct Tick {
    /// Where, in data.
    pub value: f64,
    /// What stands there.
    pub label: String,
}

impl Scale {
    /// A linear scale; ends that are equal or not finite are moved apart.
    pub fn linear(min: f64, max: f64) -> Self {
        let min = if min.is_finite() { min } else { 0.0 };
        let max = if max.is_finite() { max } else { min + 1.0 };
        if max > min {
            Self { min, max, is_log: false }
        } else {
            let pad = if min == 0.0 { 1.0 } else { min.abs() * 0.1 };
            Self { min: min - pad, max: min + pad, is_log: false }
        }
    }

    /// A logarithmic scale; ends that are not positive are replaced.
    pub fn log(min: f64, max: f64) -> Self {
        let max = if max.is_finite() && max > 0.0 { max } else { 1.0 };
        let min = if min.is_finite() && min > 0.0 && min < max { min } else { max / 10.0 };
        Self { min, max, is_log: true }
    }

    /// A linear scale around `values` with some air, and zero where it is near.
    pub fn around(values: impl IntoIterator<Item = f64>, air: f64) -> Self {
        let (min, max) = extent(values);
        let pad = (max - min) * air;
        Self::linear(min - pad, max + pad)
    }

    /// A logarithmic scale around the positive of `values`, by a factor of `air` to both sides.
    pub fn log_around(values: impl IntoIterator<Item = f64>, air: f64) -> Self {
        let (min, max) = extent(values.into_iter().filter(|value| *value > 0.0));
        Self::log(min / air, max * air)
    }

    /// Where `value` lies: 0 at `min`, 1 at `max`, beyond them outside. NaN lies at 0.
    pub fn unit(&self, value: f64) -> f64 {
        if value.is_nan() {
            return 0.0;
        }
        let unit = if self.is_log {
            (value.max(f64::MIN_POSITIVE) / self.min).ln() / (self.max / self.min).ln()
        } else {
            (value - self.min) / (self.max - self.min)
        };
        if unit.is_nan() { 0.0 } else { unit }
    }

    /// The value at `unit`.
    pub fn value(&self, unit: f64) -> f64 {
        if self.is_log { self.min * (self.max / self.min).powf(unit) } else { self.min + (self.max - self.min) * unit }
    }

    /// At most about `most` ticks at round values.
    pub fn ticks(&self, most: usize) -> Vec<Tick> {
        if self.is_log { self.log_ticks(most) } else { self.linear_ticks(most) }
    }

    fn linear_ticks(&self, most: usize) -> Vec<Tick> {
        let span = self.max - self.min;
        let step = round_step(span / most.max(1) as f64);
        if !step.is_finite() || step <= 0.0 {
            return Vec::new();
        }
        let first = (self.min / step).ceil() as i64;
        let last = (self.max / step).floor() as i64;
        (first..=last.min(first + 64))
            .map(|index| {
                let value = index as f64 * step;
                Tick { value, label: plain(value, step) }
            })
            .collect()
    }

    fn log_ticks(&self, most: usize) -> Vec<Tick> {
        let (low, high) = (self.min.log10(), self.max.log10());
        let decades = high - low;
        let most = most.max(2) as f64;
        // Three labels a decade where there is room for them.
        if decades * 3.0 > most + 1.0 {
            let stride = (decades / (most + 1.0)).ceil().max(1.0) as i32;
            let first = (low - 1e-9).ceil() as i32;
            let last = (high + 1e-9).floor() as i32;
            return (first..=last)
                .filter(|power| power.rem_euclid(stride) == 0)
                .map(|power| Tick { value: 10f64.powi(power), label: power_of_ten(power) })
                .collect();
        }
        let mut ticks = Vec::new();
        for power in low.floor() as i32..=high.ceil() as i32 {
            for lead in [1.0, 2.0, 5.0] {
                let value = lead * 10f64.powi(power);
                if value >= self.min * (1.0 - 1e-9) && value <= self.max * (1.0 + 1e-9) {
                    ticks.push(Tick { value, label: plain(value, value) });
                }
            }
        }
        if ticks.len() < 2 {
            return Self { is_log: false, ..*self }.linear_ticks(most as usize);
        }
        ticks
    }
}

/// Smallest and largest of the finite values; `(0, 1)` where there are none.
pub fn extent(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let (min, max) = values
        .into_iter()
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), value| (min.min(value), max.max(value)));
    if min <= max { (min, max) } else { (0.0, 1.0) }
}

/// The next of 1, 2, 2.5, 5 times a power of ten that is at least `raw`.
fn round_step(raw: f64) -> f64 {
    let power = 10f64.powf(raw.log10().floor());
    let lead = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|lead| raw <= lead * power * (1.0 + 1e-9)).unwrap_or(10.0);
    lead * power
}

/// A tick's number with the decimals that its step needs.
fn plain(value: f64, step: f64) -> String {
    let value = if value.abs() < step * 1e-6 { 0.0 } else { value };
    let magnitude = value.abs();
    if magnitude >= 1e3 && step >= 100.0 {
        return short(value);
    }
    if value != 0.0 && magnitude < 1e-4 && step < 1e-4 {
        let power = magnitude.log10().floor() as i32;
        let lead = value / 10f64.powi(power);
        return format!("{}·{}", minus(&format!("{lead:.1}")).trim_end_matches(".0"), ten(power));
    }
    let mut decimals = (-step.log10().floor()).max(0.0) as usize;
    // A step of 2.5 needs one more.
    let scaled = step * 10f64.powi(decimals as i32);
    if (scaled - scaled.round()).abs() > 1e-6 {
        decimals += 1;
    }
    minus(&format!("{value:.decimals$}"))
}

/// `1`, `10`, `100`, then powers.
fn power_of_ten(power: i32) -> String {
    match power {
        -2 => "0.01".to_owned(),
        -1 => "0.1".to_owned(),
        0 => "1".to_owned(),
        1 => "10".to_owned(),
        2 => "100".to_owned(),
        3 => "1k".to_owned(),
        _ => ten(power),
    }
}

fn ten(power: i32) -> String {
    let figures: String = power
        .to_string()
        .chars()
        .map(|sign| match sign {
            '-' => '⁻',
            '0' => '⁰',
            '1' => '¹',
            '2' => '²',
            '3' => '³',
            '4' => '⁴',
            '5' => '⁵',
            '6' => '⁶',
            '7' => '⁷',
            '8' => '⁸',
            _ => '⁹',
        })
        .collect();
    format!("10{figures}")
}

/// A large count: `12k`, `3.4M`.
pub fn short(value: f64) -> String {
    let magnitude = value.abs();
    let (divisor, suffix) = match magnitude {
        m if m >= 1e9 => (1e9, "B"),
        m if m >= 1e6 => (1e6, "M"),
        m if m >= 1e3 => (1e3, "k"),
        _ => (1.0, ""),
    };
    let scaled = value / divisor;
    let decimals = usize::from(scaled.abs() < 10.0 && (scaled - scaled.round()).abs() > 0.04);
    minus(&format!("{scaled:.decimals$}{suffix}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale, most: usize) -> Vec<String> {
        scale.ticks(most).into_iter().map(|tick| tick.label).collect()
    }

    #[test]
    fn linear_ticks_are_round_and_few() {
        assert_eq!(labels(Scale::linear(0.0, 10.0), 5), ["0", "2", "4", "6", "8", "10"]);
        assert_eq!(labels(Scale::linear(-0.1, 0.1), 4), ["−0.10", "−0.05", "0.00", "0.05", "0.10"]);
        assert_eq!(labels(Scale::linear(0.0, 30000.0), 3), ["0", "10k", "20k", "30k"]);
    }

    #[test]
    fn log_ticks_are_decades_or_one_two_five() {
        assert_eq!(labels(Scale::log(1e-5, 1e-1), 5), ["10⁻⁵", "10⁻⁴", "10⁻³", "0.01", "0.1"]);
        assert_eq!(labels(Scale::log(1.0, 10.0), 5), ["1", "2", "5", "10"]);
        assert_eq!(labels(Scale::linear(0.0, 4000.0), 2), ["0", "2k", "4k"]);
        assert!(labels(Scale::log(1e-12, 1.0), 5).len() <= 7);
        assert!(labels(Scale::log(1.01, 1.02), 4).len() >= 2);
    }

    #[test]
    fn a_scale_goes_there_and_back_and_survives_nonsense() {
        for scale in [Scale::linear(-3.0, 7.0), Scale::log(1e-4, 1e2)] {
            for unit in [0.0, 0.25, 1.0] {
                assert!((scale.unit(scale.value(unit)) - unit).abs() < 1e-9);
            }
            assert_eq!(scale.unit(f64::NAN), 0.0);
        }
        for scale in [
            Scale::linear(f64::NAN, f64::NAN),
            Scale::linear(2.0, 2.0),
            Scale::log(-1.0, f64::INFINITY),
            Scale::around([], 0.1),
        ] {
            assert!(scale.max > scale.min);
            assert!(scale.ticks(5).len() < 70);
        }
    }

    #[test]
    fn counts_are_short() {
        assert_eq!(short(950.0), "950");
        assert_eq!(short(1500.0), "1.5k");
        assert_eq!(short(20_000_000.0), "20M");
        assert_eq!(short(-2.5e9), "−2.5B");
    }
}
