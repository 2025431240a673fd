//! Figures with their uncertainty, aligned at the right.

use eframe::egui::{Align2, Color32, Response, Role, Sense, Ui, WidgetInfo, pos2, vec2};

use crate::app::theme::{Type, UiTokens as _, space};

/// A formatted figure, and how far it may be off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Number {
    /// The figure.
    pub value: String,
    /// Half the width of its interval in the same unit; empty where it has none.
    pub interval: String,
    /// The unit; may be empty.
    pub unit: &'static str,
}

impl Number {
    /// A figure without interval.
    pub fn exact(value: impl Into<String>, unit: &'static str) -> Self {
        Self { value: value.into(), interval: String::new(), unit }
    }

    /// As one line of text: `0.0181 ± 0.0004 nats`.
    pub fn text(&self) -> String {
        let mut text = self.value.clone();
        if !self.interval.is_empty() {
            text.push_str(" ± ");
            text.push_str(&self.interval);
        }
        if !self.unit.is_empty() {
            text.push(' ');
            text.push_str(self.unit);
        }
        text
    }
}

/// A figure and its interval with as many decimals as the interval supports: two significant digits
/// of the interval, and the same number of decimals for the figure, at most eight.
pub fn number_with_interval(value: f64, half_width: f64, unit: &'static str) -> Number {
    if !half_width.is_finite() || half_width <= 0.0 {
        return Number::exact(crate::engine::units::significant(value), unit);
    }
    let decimals = (1 - half_width.log10().floor() as i32).clamp(0, 8) as usize;
    Number {
        value: crate::engine::units::minus(&format!("{value:.decimals$}")),
        interval: format!("{half_width:.decimals$}"),
        unit,
    }
}

/// A table cell as wide as there is room: the figure ends where the interval begins, so that figures
/// align whether or not they have one. `interval_width` is the room kept for `± …` in points.
pub fn number_ui(ui: &mut Ui, number: &Number, interval_width: f32, color: Option<Color32>) -> Response {
    let tokens = ui.tokens();
    let size = vec2(ui.available_width(), space::ROW_COMPACT);
    let (rect, response) = ui.allocate_exact_size(size, Sense::hover());
    response.widget_info(|| WidgetInfo::labeled(Role::Label, true, number.text()));
    if ui.is_rect_visible(rect) {
        let (painter, y) = (ui.painter_at(rect), rect.center().y);
        let mut right = rect.right();
        if !number.unit.is_empty() {
            let (font, align) = (Type::Small.font(), Align2::RIGHT_CENTER);
            let drawn = painter.text(pos2(right, y), align, number.unit, font, tokens.weak);
            right = drawn.left() - space::XS;
        }
        if !number.interval.is_empty() {
            let text = format!("± {}", number.interval);
            let (font, align) = (Type::MonoSmall.font(), Align2::LEFT_CENTER);
            let left = right - interval_width + space::XS;
            painter.text(pos2(left, y), align, text, font, tokens.weak);
        }
        painter.text(
            pos2(right - interval_width, y),
            Align2::RIGHT_CENTER,
            &number.value,
            Type::Mono.font(),
            color.unwrap_or(tokens.text),
        );
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_decides_how_many_decimals_are_honest() {
        assert_eq!(number_with_interval(0.018123, 0.00042, "nats").text(), "0.01812 ± 0.00042 nats");
        assert_eq!(number_with_interval(61.337, 1.26, "%").text(), "61.3 ± 1.3 %");
        assert_eq!(number_with_interval(1234.5, 56.0, "tok/s").text(), "1234 ± 56 tok/s");
        assert_eq!(number_with_interval(0.5, 0.0, "").text(), "0.500");
        assert_eq!(number_with_interval(0.5, f64::NAN, "").text(), "0.500");
    }
}
