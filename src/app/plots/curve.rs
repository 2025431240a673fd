//! Error against bits: one tensor (or the whole model) under every format, each point named.

use eframe::egui::{Align2, Pos2, Rect, Response, Stroke, Ui, vec2};

use super::axis::Scale;
use super::canvas::{Canvas, PainterCanvas};
use super::export::{Table, cell};
use super::frame::{Axis, Frame, readout};
use super::labels::{self, Wanted};
use super::{Plot, plot_ui};
use crate::app::theme::{Tokens, Type};
use crate::app::widgets::number_with_interval;

/// One format.
#[derive(Clone, Debug)]
pub struct CurvePoint {
    /// The format's name.
    pub format: String,
    /// Bits per weight, scales included.
    pub bits: f64,
    /// The error; zero is drawn at the lower edge.
    pub error: f64,
    /// Standard error of it.
    pub stderr: Option<f64>,
    /// Whether the tensor's shape and the target allow it.
    pub is_legal: bool,
}

/// The points of one curve.
#[derive(Clone, Debug)]
pub struct Curve {
    /// Of what: a tensor's name.
    pub name: String,
    /// What stands at the vertical axis: `relative error`, `KLD, nats`.
    pub metric: String,
    /// In any order.
    pub points: Vec<CurvePoint>,
    /// The format in the plan, if any.
    pub chosen: Option<String>,
}

impl Curve {
    /// Indices of the points that no other beats in both bits and error, by growing bits.
    pub fn best(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.points.len())
            .filter(|&index| self.points[index].is_legal && self.points[index].error.is_finite())
            .collect();
        order.sort_by(|&one, &other| {
            let (one, other) = (&self.points[one], &self.points[other]);
            one.bits.total_cmp(&other.bits).then(one.error.total_cmp(&other.error))
        });
        let mut least = f64::INFINITY;
        order.retain(|&index| {
            let is_better = self.points[index].error < least;
            least = least.min(self.points[index].error);
            is_better
        });
        order
    }

    fn axes(&self) -> (Axis, Axis) {
        let bits = Scale::around(self.points.iter().map(|point| point.bits), 0.08);
        let errors = Scale::log_around(
            self.points.iter().flat_map(|point| {
                let stderr = point.stderr.unwrap_or(0.0);
                [point.error, point.error + stderr]
            }),
            1.8,
        );
        (Axis { scale: bits, name: "bits per weight".to_owned() }, Axis { scale: errors, name: self.metric.clone() })
    }

    fn place(frame: &Frame, point: &CurvePoint) -> Pos2 {
        let error = if point.error > 0.0 { point.error } else { frame.y.min };
        frame.at(point.bits, error.max(frame.y.min))
    }
}

impl Plot for Curve {
    fn title(&self) -> String {
        format!("Error against bits of {}", self.name)
    }

    fn draw(&self, canvas: &mut dyn Canvas, rect: Rect, tokens: &Tokens) {
        let (x, y) = self.axes();
        let frame = Frame::new(canvas, rect, &x, &y);
        frame.draw(canvas, rect, &x, &y, tokens);
        let best = self.best();
        // A lossless format has no place on a logarithmic axis: the line ends before it.
        let line: Vec<Pos2> = best
            .iter()
            .map(|&index| &self.points[index])
            .filter(|point| point.error > 0.0)
            .map(|point| Self::place(&frame, point))
            .collect();
        canvas.path(line, Stroke::new(1.25, tokens.tint(tokens.baseline, 0.7)));
        // Points on the line are named first, since they are what one chooses from.
        let rest = (0..self.points.len()).filter(|index| !best.contains(index));
        let order: Vec<usize> = best.iter().copied().chain(rest).collect();
        let mut wanted = Vec::with_capacity(order.len());
        for &index in &order {
            let point = &self.points[index];
            let at = Self::place(&frame, point);
            let is_chosen = self.chosen.as_deref() == Some(&point.format);
            let color = match (point.is_legal, is_chosen) {
                (_, true) => tokens.accent,
                (true, false) => tokens.baseline,
                (false, false) => tokens.outline,
            };
            if let Some(stderr) = point.stderr.filter(|stderr| *stderr > 0.0) {
                let low = frame.at(point.bits, (point.error - stderr).max(frame.y.min));
                let high = frame.at(point.bits, point.error + stderr);
                canvas.line(low, high, Stroke::new(1.0, color));
            }
            let fill = if point.is_legal { color } else { tokens.panel };
            let radius = if is_chosen { 5.5 } else { 4.0 };
            canvas.disc(at, radius, fill, Stroke::new(1.5, color));
            let width = canvas.text_width(&point.format, Type::Small);
            wanted.push(Wanted { point: at, radius, size: vec2(width, 13.0) });
        }
        let bounds = frame.inner.expand2(vec2(4.0, 4.0));
        for (place, &index) in labels::place(&wanted, &[], bounds).into_iter().zip(&order) {
            let point = &self.points[index];
            let is_chosen = self.chosen.as_deref() == Some(&point.format);
            let (kind, color) = match (point.is_legal, is_chosen) {
                (_, true) => (Type::SmallStrong, tokens.text),
                (true, false) => (Type::Small, tokens.text),
                (false, false) => (Type::Small, tokens.weak),
            };
            if let Some(place) = place {
                canvas.rect(place.shrink2(vec2(0.0, 1.0)), tokens.panel);
                canvas.text(place.center(), Align2::CENTER_CENTER, &point.format, kind, color);
            }
        }
    }

    fn table(&self) -> Table {
        let mut table = Table::new(&["tensor", "format", "bits_per_weight", "error", "stderr", "legal"]);
        for point in &self.points {
            table.row([
                self.name.clone(),
                point.format.clone(),
                cell(point.bits),
                cell(point.error),
                point.stderr.map(cell).unwrap_or_default(),
                point.is_legal.to_string(),
            ]);
        }
        table
    }
}

/// Draws the curve as wide as there is room. Returns its response and the index of a point that was
/// clicked.
pub fn curve_ui(ui: &mut Ui, curve: &Curve, height: f32) -> (Response, Option<usize>) {
    let size = vec2(ui.available_width(), height);
    let response = plot_ui(ui, curve, size);
    let mut clicked = None;
    if let Some(pointer) = response.hover_pos() {
        let (x, y) = curve.axes();
        let canvas = PainterCanvas::new(ui.painter());
        let frame = Frame::new(&canvas, response.rect, &x, &y);
        let nearest = super::nearest(pointer, curve.points.iter().map(|point| Curve::place(&frame, point)), 24.0);
        if let Some(index) = nearest {
            let point = &curve.points[index];
            let error = number_with_interval(point.error, point.stderr.unwrap_or(0.0), "").text();
            let mut lines = vec![("bits per weight", format!("{:.2}", point.bits)), (curve.metric.as_str(), error)];
            if !point.is_legal {
                lines.push(("here", "not possible".to_owned()));
            }
            readout(ui, response.rect, pointer, &point.format, &lines);
            if response.clicked() && point.is_legal {
                clicked = Some(index);
            }
        }
    }
    (response, clicked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(format: &str, bits: f64, error: f64, is_legal: bool) -> CurvePoint {
        CurvePoint { format: format.to_owned(), bits, error, stderr: None, is_legal }
    }

    #[test]
    fn the_line_goes_through_the_points_that_nothing_beats() {
        let curve = Curve {
            name: "w".to_owned(),
            metric: "relative error".to_owned(),
            points: vec![
                point("q8_0", 8.5, 0.005, true),
                point("q4_0", 4.5, 0.09, true),
                point("q4_k", 4.5, 0.07, true),
                point("q3_k", 3.44, 0.15, true),
                point("worse", 6.0, 0.2, true),
                point("illegal", 2.0, 0.001, false),
            ],
            chosen: None,
        };
        let names: Vec<&str> = curve.best().into_iter().map(|index| curve.points[index].format.as_str()).collect();
        assert_eq!(names, ["q3_k", "q4_k", "q8_0"]);
        assert_eq!(curve.table().rows.len(), 6);
    }
}
