//! The range of every channel as one strip: a wide bar in one place is an outlier channel.

use eframe::egui::{Align2, Rect, Response, Stroke, Ui, pos2, vec2};

use super::axis::Scale;
use super::canvas::Canvas;
use super::export::{Table, cell};
use super::frame::readout;
use super::{Plot, plot_ui};
use crate::app::theme::{Tokens, Type, space};
use crate::engine::units;

/// Smallest and largest value of each channel of one tensor.
#[derive(Clone, Copy, Debug)]
pub struct Channels<'a> {
    /// Name of the tensor.
    pub name: &'a str,
    /// Which channels: `output channel` of weights, `input channel` of activations.
    pub what: &'a str,
    /// Per channel.
    pub ranges: &'a [(f32, f32)],
}

/// Joins neighbours, so that at most `most` ranges remain; each covers the channels it stands for.
pub fn joined(ranges: &[(f32, f32)], most: usize) -> Vec<(f32, f32)> {
    let most = most.max(1);
    if ranges.len() <= most {
        return ranges.to_vec();
    }
    (0..most)
        .map(|index| {
            let from = index * ranges.len() / most;
            let to = (index + 1) * ranges.len() / most;
            ranges[from..to]
                .iter()
                .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), range| (low.min(range.0), high.max(range.1)))
        })
        .collect()
}

impl Channels<'_> {
    fn scale(&self) -> Scale {
        let most = self
            .ranges
            .iter()
            .flat_map(|(low, high)| [low.abs(), high.abs()])
            .filter(|value| value.is_finite())
            .fold(0.0, f32::max);
        let most = f64::from(most).max(1e-12);
        Scale::linear(-most, most)
    }

    fn inner(canvas_width: f32, rect: Rect) -> Rect {
        Rect::from_min_max(pos2(rect.left() + canvas_width, rect.top() + 4.0), pos2(rect.right(), rect.bottom() - 18.0))
    }
}

const LEFT: f32 = 56.0;

impl Plot for Channels<'_> {
    fn title(&self) -> String {
        format!("Range of each {} of {}", self.what, self.name)
    }

    fn draw(&self, canvas: &mut dyn Canvas, rect: Rect, tokens: &Tokens) {
        let inner = Self::inner(LEFT, rect);
        let scale = self.scale();
        let y = |value: f64| inner.bottom() - inner.height() * scale.unit(value) as f32;
        for (value, color) in [(scale.max, tokens.grid), (0.0, tokens.hairline), (scale.min, tokens.grid)] {
            let at = y(value);
            canvas.line(pos2(inner.left(), at), pos2(inner.right(), at), Stroke::new(1.0, color));
            let text = units::significant(value);
            let place = pos2(inner.left() - space::S, at);
            canvas.text(place, Align2::RIGHT_CENTER, &text, Type::MonoSmall, tokens.weak);
        }
        let ranges = joined(self.ranges, inner.width().max(1.0) as usize);
        let step = inner.width() / ranges.len().max(1) as f32;
        for (index, (low, high)) in ranges.into_iter().enumerate() {
            if !(low.is_finite() && high.is_finite()) {
                continue;
            }
            let left = inner.left() + step * index as f32;
            let bar = Rect::from_min_max(
                pos2(left, y(f64::from(high))),
                pos2(left + (step - 0.5).max(step * 0.7), y(f64::from(low))),
            );
            canvas.rect(bar, tokens.baseline);
        }
        let text = format!("{} {}s", self.ranges.len(), self.what);
        let below = pos2(inner.center().x, rect.bottom());
        canvas.text(below, Align2::CENTER_BOTTOM, &text, Type::Small, tokens.weak);
    }

    fn table(&self) -> Table {
        let mut table = Table::new(&["channel", "min", "max"]);
        for (index, (low, high)) in self.ranges.iter().enumerate() {
            table.row([index.to_string(), cell(f64::from(*low)), cell(f64::from(*high))]);
        }
        table
    }
}

/// Draws the strip as wide as there is room, with the numbers under the pointer.
pub fn channels_ui(ui: &mut Ui, channels: &Channels<'_>, height: f32) -> Response {
    let size = vec2(ui.available_width(), height);
    let response = plot_ui(ui, channels, size);
    if let Some(pointer) = response.hover_pos() {
        let inner = Channels::inner(LEFT, response.rect);
        if inner.contains(pointer) && !channels.ranges.is_empty() {
            let unit = (pointer.x - inner.left()) / inner.width();
            let count = channels.ranges.len();
            let index = ((unit * count as f32) as usize).min(count - 1);
            let (low, high) = channels.ranges[index];
            let figure = |value: f32| units::significant(f64::from(value));
            let lines = [("max", figure(high)), ("min", figure(low))];
            readout(ui, response.rect, pointer, &format!("channel {index}"), &lines);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn joining_keeps_the_extremes_and_the_number_asked_for(
            ranges in prop::collection::vec((-5.0f32..0.0, 0.0f32..5.0), 1..400),
            most in 1usize..100
        ) {
            let few = joined(&ranges, most);
            prop_assert_eq!(few.len(), most.min(ranges.len()));
            let extremes = |ranges: &[(f32, f32)]| {
                ranges.iter().fold((0.0f32, 0.0f32), |(low, high), range| {
                    (low.min(range.0), high.max(range.1))
                })
            };
            prop_assert_eq!(extremes(&few), extremes(&ranges));
        }
    }
}
