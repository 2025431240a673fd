//! Relative luminance and contrast, as WCAG 2.1 defines them.

use eframe::egui::{Color32, Rgba};

/// Relative luminance in `0..=1` of an opaque colour (WCAG 2.1, "relative luminance").
pub fn luminance(color: Color32) -> f32 {
    let linear = Rgba::from(color);
    0.2126 * linear.r() + 0.7152 * linear.g() + 0.0722 * linear.b()
}

/// Contrast ratio of two opaque colours, from 1 (none) to 21 (black on white).
pub fn ratio(one: Color32, other: Color32) -> f32 {
    let (one, other) = (luminance(one), luminance(other));
    (one.max(other) + 0.05) / (one.min(other) + 0.05)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn black_on_white_is_twenty_one_to_one() {
        assert!((ratio(Color32::BLACK, Color32::WHITE) - 21.0).abs() < 0.01);
        assert!((ratio(Color32::WHITE, Color32::WHITE) - 1.0).abs() < 1e-6);
    }
}
