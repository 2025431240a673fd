//! How a positive quantity such as the KLD per token is spread: a histogram over a logarithmic axis
//! with its mean and its 99th percentile marked.

use eframe::egui::{Align2, Pos2, Rect, Response, Stroke, Ui, pos2, vec2};

use super::axis::Scale;
use super::canvas::{Canvas, PainterCanvas};
use super::export::{Table, cell};
use super::frame::{Axis, Frame, readout};
use super::{Plot, plot_ui};
use crate::app::theme::{Tokens, Type};
use crate::engine::units;

/// Counts in bins that are equally wide on a logarithmic axis.
#[derive(Clone, Debug)]
pub struct Distribution {
    /// Of what: `KLD per token`.
    pub name: String,
    /// Its unit.
    pub unit: String,
    /// Left end of the first bin.
    pub min: f64,
    /// Right end of the last bin.
    pub max: f64,
    /// Values in each bin; what lies outside is counted in the nearest.
    pub counts: Vec<u64>,
    /// Mean of all values, zeros included.
    pub mean: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Which candidate, for the colour.
    pub candidate: usize,
}

impl Distribution {
    /// Sorts `values` into `bins` bins over at most eight decades below the largest.
    pub fn of(name: &str, unit: &str, values: &[f32], bins: usize, candidate: usize) -> Self {
        let mut sorted: Vec<f32> = values.iter().copied().filter(|value| value.is_finite()).collect();
        sorted.sort_by(f32::total_cmp);
        let largest = f64::from(sorted.last().copied().unwrap_or(1.0)).max(1e-12);
        let smallest = sorted.iter().copied().find(|value| *value > 0.0).map_or(largest / 10.0, f64::from);
        let scale = Scale::log(smallest.max(largest * 1e-8), largest * 1.001);
        let mut counts = vec![0u64; bins.max(1)];
        for value in &sorted {
            let unit = scale.unit(f64::from(*value)).clamp(0.0, 1.0);
            let bin = ((unit * counts.len() as f64) as usize).min(counts.len() - 1);
            counts[bin] += 1;
        }
        let count = sorted.len().max(1);
        let mean = sorted.iter().map(|value| f64::from(*value)).sum::<f64>() / count as f64;
        let rank = ((count as f64 * 0.99).ceil() as usize).clamp(1, count) - 1;
        let p99 = sorted.get(rank).copied().map_or(0.0, f64::from);
        Self {
            name: name.to_owned(),
            unit: unit.to_owned(),
            min: scale.min,
            max: scale.max,
            counts,
            mean,
            p99,
            candidate,
        }
    }

    fn axes(&self) -> (Axis, Axis) {
        let tallest = self.counts.iter().copied().max().unwrap_or(0).max(1) as f64;
        (
            Axis { scale: Scale::log(self.min, self.max), name: format!("{}, {}", self.name, self.unit) },
            Axis { scale: Scale::linear(0.0, tallest * 1.15), name: "tokens".to_owned() },
        )
    }

    fn edge(&self, index: usize) -> f64 {
        Scale::log(self.min, self.max).value(index as f64 / self.counts.len() as f64)
    }
}

impl Plot for Distribution {
    fn title(&self) -> String {
        format!("Distribution of {}", self.name)
    }

    fn draw(&self, canvas: &mut dyn Canvas, rect: Rect, tokens: &Tokens) {
        let (x, y) = self.axes();
        let frame = Frame::new(canvas, rect, &x, &y);
        frame.draw(canvas, rect, &x, &y, tokens);
        let color = tokens.candidate(self.candidate);
        let mut points: Vec<Pos2> = Vec::with_capacity(2 * self.counts.len());
        for (index, count) in self.counts.iter().enumerate() {
            points.push(frame.at(self.edge(index), *count as f64));
            points.push(frame.at(self.edge(index + 1), *count as f64));
        }
        canvas.area(&points, frame.inner.bottom(), tokens.tint(color, 0.28));
        canvas.path(points, Stroke::new(1.25, color));
        let marks = [("mean", self.mean), ("99 %", self.p99)];
        let marks = marks.into_iter().filter(|(_, value)| (0.0..=1.0).contains(&frame.x.unit(*value)));
        let (top, bottom) = (frame.inner.top(), frame.inner.bottom());
        for (_, value) in marks.clone() {
            let at = frame.x_of(value);
            canvas.dashed(pos2(at, top), pos2(at, bottom), Stroke::new(1.0, tokens.text));
        }
        let mut taken: Option<Rect> = None;
        for (word, value) in marks {
            let at = frame.x_of(value);
            let text = format!("{word} {}", units::significant(value));
            let width = canvas.text_width(&text, Type::Small);
            let align = if at + width + 6.0 > frame.inner.right() { Align2::RIGHT_TOP } else { Align2::LEFT_TOP };
            let offset = if align == Align2::RIGHT_TOP { -4.0 } else { 4.0 };
            let mut place = pos2(at + offset, top);
            let room = align.anchor_size(place, vec2(width, 14.0));
            if taken.is_some_and(|other| other.intersects(room.expand(2.0))) {
                place.y += 15.0;
            }
            // No dashes through a word.
            canvas.rect(align.anchor_size(place, vec2(width, 14.0)).expand2(vec2(2.0, 0.0)), tokens.panel);
            taken = Some(canvas.text(place, align, &text, Type::Small, tokens.text));
        }
    }

    fn table(&self) -> Table {
        let mut table = Table::new(&["from", "to", "count"]);
        for (index, count) in self.counts.iter().enumerate() {
            let (from, to) = (self.edge(index), self.edge(index + 1));
            table.row([cell(from), cell(to), count.to_string()]);
        }
        table
    }
}

/// Draws the distribution as wide as there is room, with the numbers under the pointer.
pub fn distribution_ui(ui: &mut Ui, distribution: &Distribution, height: f32) -> Response {
    let size = vec2(ui.available_width(), height);
    let response = plot_ui(ui, distribution, size);
    if let Some(pointer) = response.hover_pos() {
        let (x, y) = distribution.axes();
        let frame = Frame::new(&PainterCanvas::new(ui.painter()), response.rect, &x, &y);
        if frame.inner.contains(pointer) {
            let unit = frame.x.unit(frame.x_value(pointer.x)).clamp(0.0, 1.0);
            let count = distribution.counts.len();
            let bin = ((unit * count as f64) as usize).min(count - 1);
            let total: u64 = distribution.counts.iter().sum();
            let above: u64 = distribution.counts[bin..].iter().sum();
            let from = distribution.edge(bin);
            let lines = [
                ("from", format!("{} {}", units::significant(from), distribution.unit)),
                ("tokens", units::count(distribution.counts[bin])),
                ("as large or larger", units::percent(above as f64 / total.max(1) as f64)),
            ];
            readout(ui, response.rect, pointer, "", &lines);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_values_are_counted_zeros_in_the_first_bin() {
        let values = [0.0, 1e-3, 1e-2, 1e-1, 1.0, f32::NAN];
        let found = Distribution::of("KLD", "nats", &values, 10, 0);
        assert_eq!(found.counts.iter().sum::<u64>(), 5);
        assert_eq!(found.counts[0], 2);
        assert!((found.mean - 1.111 / 5.0).abs() < 1e-6);
        assert_eq!(found.p99, 1.0);
        assert!(found.table().rows.len() == 10);
    }

    #[test]
    fn nothing_is_a_flat_line_and_no_panic() {
        let found = Distribution::of("KLD", "nats", &[], 8, 0);
        assert_eq!(found.counts.iter().sum::<u64>(), 0);
        assert_eq!(found.mean, 0.0);
    }
}
