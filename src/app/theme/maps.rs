//! Colour maps: damage (sequential, quiet at zero) and difference (diverging).
//!
//! Both are mixed in Oklab (Björn Ottosson, "A perceptual color space for image processing", 2020),
//! so that equal steps look equal, and read from tables, so that a frame costs a lookup per cell.

use std::sync::OnceLock;

use eframe::egui::{Color32, Rgba};

use super::{Tokens, palette};

const STEPS: usize = 256;

fn oklab(color: Color32) -> [f32; 3] {
    let linear = Rgba::from(color);
    let (r, g, b) = (linear.r(), linear.g(), linear.b());
    let l = (0.412_221_46 * r + 0.536_332_55 * g + 0.051_445_995 * b).cbrt();
    let m = (0.211_903_5 * r + 0.680_699_5 * g + 0.107_396_96 * b).cbrt();
    let s = (0.088_302_46 * r + 0.281_718_85 * g + 0.629_978_7 * b).cbrt();
    [
        0.210_454_26 * l + 0.793_617_8 * m - 0.004_072_047 * s,
        1.977_998_5 * l - 2.428_592_2 * m + 0.450_593_7 * s,
        0.025_904_037 * l + 0.782_771_77 * m - 0.808_675_77 * s,
    ]
}

fn from_oklab([lightness, a, b]: [f32; 3]) -> Color32 {
    let l = (lightness + 0.396_337_78 * a + 0.215_803_76 * b).powi(3);
    let m = (lightness - 0.105_561_346 * a - 0.063_854_17 * b).powi(3);
    let s = (lightness - 0.089_484_18 * a - 1.291_485_5 * b).powi(3);
    Color32::from(Rgba::from_rgb(
        (4.076_741_7 * l - 3.307_711_6 * m + 0.230_969_94 * s).clamp(0.0, 1.0),
        (-1.268_438 * l + 2.609_757_4 * m - 0.341_319_38 * s).clamp(0.0, 1.0),
        (-0.004_196_086_3 * l - 0.703_418_6 * m + 1.707_614_7 * s).clamp(0.0, 1.0),
    ))
}

fn table(stops: &[Color32]) -> [Color32; STEPS] {
    let stops: Vec<[f32; 3]> = stops.iter().copied().map(oklab).collect();
    std::array::from_fn(|step| {
        let at = step as f32 / (STEPS - 1) as f32 * (stops.len() - 1) as f32;
        let left = (at as usize).min(stops.len() - 2);
        let share = at - left as f32;
        from_oklab(std::array::from_fn(|axis| stops[left][axis] + (stops[left + 1][axis] - stops[left][axis]) * share))
    })
}

fn look_up(table: &[Color32; STEPS], unit: f32) -> Color32 {
    table[(unit.clamp(0.0, 1.0) * (STEPS - 1) as f32).round() as usize]
}

/// A sequential scale from "nothing lost" (the panel's colour) to "much lost".
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Damage {
    /// Values at or below are quiet.
    pub min: f64,
    /// Values at or above are loudest.
    pub max: f64,
    /// Whether steps are ratios.
    pub is_log: bool,
}

impl Damage {
    /// A scale that fits `values`: logarithmic, at most six decades, whole where it is not.
    /// Values that are not finite or not positive are left out; `None` where nothing remains.
    pub fn fit(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let (mut min, mut max) = (f64::INFINITY, 0.0_f64);
        for value in values.into_iter().filter(|value| value.is_finite() && *value > 0.0) {
            min = min.min(value);
            max = max.max(value);
        }
        if max <= 0.0 {
            return None;
        }
        // One value, or many equal ones, still get a scale with a width.
        let min = min.max(max * 1e-6).min(max / 4.0);
        Some(Self { min, max, is_log: true })
    }

    /// Where `value` lies, in `0..=1`.
    pub fn unit(&self, value: f64) -> f32 {
        let unit = if self.is_log {
            (value.max(f64::MIN_POSITIVE) / self.min).ln() / (self.max / self.min).ln()
        } else {
            (value - self.min) / (self.max - self.min)
        };
        if unit.is_nan() { 0.0 } else { unit.clamp(0.0, 1.0) as f32 }
    }

    /// The value at `unit` of the scale.
    pub fn value(&self, unit: f32) -> f64 {
        let unit = f64::from(unit.clamp(0.0, 1.0));
        if self.is_log { self.min * (self.max / self.min).powf(unit) } else { self.min + (self.max - self.min) * unit }
    }

    /// The colour of `value`.
    pub fn color(&self, tokens: &Tokens, value: f64) -> Color32 {
        Self::at(tokens, self.unit(value))
    }

    /// The colour at `unit` of the scale.
    pub fn at(tokens: &Tokens, unit: f32) -> Color32 {
        static DARK: OnceLock<[Color32; STEPS]> = OnceLock::new();
        static LIGHT: OnceLock<[Color32; STEPS]> = OnceLock::new();
        look_up(
            if tokens.is_dark {
                DARK.get_or_init(|| table(&palette::DAMAGE_DARK))
            } else {
                LIGHT.get_or_init(|| table(&palette::DAMAGE_LIGHT))
            },
            unit,
        )
    }
}

/// A diverging scale: blue is better, orange is worse, in equal steps to both sides of zero.
/// Since both ends are strong, whoever draws it writes the sign too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// The distance from zero at which the colour is strongest.
    pub reach: f64,
}

impl Difference {
    /// The colour of a difference, negative values being better.
    pub fn color(&self, tokens: &Tokens, worse_by: f64) -> Color32 {
        static DARK: OnceLock<[Color32; STEPS]> = OnceLock::new();
        static LIGHT: OnceLock<[Color32; STEPS]> = OnceLock::new();
        let table = if tokens.is_dark {
            DARK.get_or_init(|| table(&palette::DIFFERENCE_DARK))
        } else {
            LIGHT.get_or_init(|| table(&palette::DIFFERENCE_LIGHT))
        };
        let unit = 0.5 + 0.5 * worse_by / self.reach.max(f64::MIN_POSITIVE);
        look_up(table, if unit.is_nan() { 0.5 } else { unit.clamp(0.0, 1.0) as f32 })
    }
}

#[cfg(test)]
mod tests {
    use super::super::contrast::luminance;
    use super::*;

    #[test]
    fn the_damage_map_is_monotone_in_greyscale_and_quiet_at_zero() {
        for tokens in [Tokens::dark(), Tokens::light()] {
            assert_eq!(Damage::at(tokens, 0.0), tokens.panel);
            let shades: Vec<f32> = (0..=32).map(|step| luminance(Damage::at(tokens, step as f32 / 32.0))).collect();
            for pair in shades.windows(2) {
                let rise = pair[1] - pair[0];
                assert!(if tokens.is_dark { rise > 0.0 } else { rise < 0.0 }, "{shades:?}");
            }
        }
    }

    #[test]
    fn the_difference_map_tells_better_from_worse_and_both_from_nothing() {
        let map = Difference { reach: 1.0 };
        for tokens in [Tokens::dark(), Tokens::light()] {
            let [better, none, worse] = [-1.0, 0.0, 1.0].map(|by| map.color(tokens, by));
            assert!(better.b() > better.r() && worse.r() > worse.b());
            for end in [better, worse] {
                assert!((luminance(end) - luminance(none)).abs() > 0.15);
            }
            assert_eq!(map.color(tokens, f64::NAN), none);
        }
    }

    #[test]
    fn a_damage_scale_fits_what_is_there() {
        let scale = Damage::fit([0.0, f64::NAN, 1e-4, 1e-2]).expect("positive values");
        assert_eq!((scale.min, scale.max), (1e-4, 1e-2));
        assert!((scale.unit(1e-3) - 0.5).abs() < 1e-6);
        assert!((scale.value(0.5) - 1e-3).abs() < 1e-9);
        assert_eq!(scale.unit(0.0), 0.0);
        assert_eq!(Damage::fit([0.0, -1.0]), None);
        assert!(Damage::fit([3.0]).is_some_and(|scale| scale.unit(3.0) == 1.0));
    }
}
