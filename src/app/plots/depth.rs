//! Values over depth: a line per role across the layers, or a bar per layer with its error.

use eframe::egui::{Align2, Color32, Pos2, Rect, Response, Stroke, Ui, pos2, vec2};

use super::axis::Scale;
use super::canvas::{Canvas, PainterCanvas};
use super::export::{Table, cell};
use super::frame::{Axis, Frame, readout};
use super::labels::{self, Wanted};
use super::{Plot, plot_ui};
use crate::app::theme::{Tokens, Type};
use crate::app::widgets::number_with_interval;
use crate::engine::units;

/// The value of one layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DepthPoint {
    /// The layer, from 0.
    pub layer: usize,
    /// The value.
    pub value: f64,
    /// Its standard error, where it has one.
    pub stderr: Option<f64>,
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// A role, or what the bars are of.
    pub name: String,
    /// Index of its colour.
    pub part: usize,
    /// By growing layer; layers without a value are missing.
    pub points: Vec<DepthPoint>,
}

/// How values are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Lines on a logarithmic axis, named at their right ends.
    Lines,
    /// Bars from zero, of the first series.
    Bars,
}

/// All lines of one figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Depth {
    /// What it is about.
    pub title: String,
    /// What stands at the vertical axis.
    pub metric: String,
    /// Number of layers.
    pub layers: usize,
    /// The lines.
    pub series: Vec<Series>,
    /// How they are drawn.
    pub shape: Shape,
}

impl Depth {
    fn points(&self) -> impl Iterator<Item = &DepthPoint> {
        self.series.iter().flat_map(|series| &series.points)
    }

    fn axes(&self) -> (Axis, Axis) {
        let ends = self.points().flat_map(|point| {
            let stderr = point.stderr.unwrap_or(0.0);
            [point.value, point.value + stderr]
        });
        let values = match self.shape {
            Shape::Lines => Scale::log_around(ends, 1.5),
            Shape::Bars => Scale::linear(0.0, ends.fold(0.0, f64::max) * 1.14),
        };
        // Room for the names of the lines at the right.
        let last = self.layers.max(1) as f64 - 0.5 + if self.shape == Shape::Lines { 0.7 } else { 0.0 };
        let layers = Scale::linear(-0.5, last);
        (Axis { scale: layers, name: "layer".to_owned() }, Axis { scale: values, name: self.metric.clone() })
    }

    fn place(frame: &Frame, point: &DepthPoint) -> Pos2 {
        frame.at(point.layer as f64, point.value.max(frame.y.min))
    }

    fn draw_error(canvas: &mut dyn Canvas, frame: &Frame, point: &DepthPoint, color: Color32) {
        if let Some(stderr) = point.stderr.filter(|stderr| *stderr > 0.0) {
            let low = frame.at(point.layer as f64, (point.value - stderr).max(frame.y.min));
            let high = frame.at(point.layer as f64, point.value + stderr);
            canvas.line(low, high, Stroke::new(1.0, color));
        }
    }

    fn draw_bars(&self, canvas: &mut dyn Canvas, frame: &Frame, tokens: &Tokens) {
        let half = (frame.x_of(0.36) - frame.x_of(0.0)).max(1.0);
        for point in self.series.iter().take(1).flat_map(|series| &series.points) {
            let at = Self::place(frame, point);
            let bar = Rect::from_min_max(pos2(at.x - half, at.y), pos2(at.x + half, frame.inner.bottom()));
            canvas.rect(bar, tokens.baseline);
            Self::draw_error(canvas, frame, point, tokens.text);
            // Small bars beside a tall one cannot be read off the axis.
            let value = units::significant(point.value);
            if canvas.text_width(&value, Type::Small) <= 2.6 * half {
                let top = frame.y_of(point.value + point.stderr.unwrap_or(0.0)).min(at.y);
                canvas.text(pos2(at.x, top - 2.0), Align2::CENTER_BOTTOM, &value, Type::Small, tokens.text);
            }
        }
    }

    fn draw_lines(&self, canvas: &mut dyn Canvas, frame: &Frame, tokens: &Tokens) {
        let mut wanted = Vec::new();
        for series in &self.series {
            let color = tokens.part(series.part);
            let places: Vec<Pos2> = series.points.iter().map(|point| Self::place(frame, point)).collect();
            canvas.path(places.clone(), Stroke::new(1.5, color));
            for (point, at) in series.points.iter().zip(&places) {
                Self::draw_error(canvas, frame, point, color);
                canvas.disc(*at, 2.5, color, Stroke::NONE);
            }
            if let Some(last) = places.last() {
                let size = vec2(canvas.text_width(&series.name, Type::Small), 13.0);
                wanted.push((Wanted { point: *last, radius: 3.0, size }, &series.name, color));
            }
        }
        let labels: Vec<Wanted> = wanted.iter().map(|(one, ..)| Wanted { ..*one }).collect();
        let bounds = frame.inner.expand2(vec2(8.0, 4.0));
        for (place, (_, name, _)) in labels::place(&labels, &[], bounds).into_iter().zip(&wanted) {
            if let Some(place) = place {
                canvas.rect(place.shrink2(vec2(0.0, 1.0)), tokens.panel);
                canvas.text(place.center(), Align2::CENTER_CENTER, name, Type::Small, tokens.text);
            }
        }
    }
}

impl Plot for Depth {
    fn title(&self) -> String {
        self.title.clone()
    }

    fn draw(&self, canvas: &mut dyn Canvas, rect: Rect, tokens: &Tokens) {
        let (x, y) = self.axes();
        let frame = Frame::new(canvas, rect, &x, &y);
        frame.draw(canvas, rect, &x, &y, tokens);
        match self.shape {
            Shape::Lines => self.draw_lines(canvas, &frame, tokens),
            Shape::Bars => self.draw_bars(canvas, &frame, tokens),
        }
    }

    fn table(&self) -> Table {
        let mut table = Table::new(&["series", "layer", "value", "stderr"]);
        for series in &self.series {
            for point in &series.points {
                table.row([
                    series.name.clone(),
                    point.layer.to_string(),
                    cell(point.value),
                    point.stderr.map(cell).unwrap_or_default(),
                ]);
            }
        }
        table
    }
}

/// Draws the figure as wide as there is room. Returns its response and the series and layer of a
/// point that was clicked.
pub fn depth_ui(ui: &mut Ui, depth: &Depth, height: f32) -> (Response, Option<(usize, usize)>) {
    let response = plot_ui(ui, depth, vec2(ui.available_width(), height));
    let mut clicked = None;
    if let Some(pointer) = response.hover_pos() {
        let (x, y) = depth.axes();
        let frame = Frame::new(&PainterCanvas::new(ui.painter()), response.rect, &x, &y);
        let all: Vec<(usize, &DepthPoint)> =
            depth.series.iter().enumerate().flat_map(|(at, own)| own.points.iter().map(move |one| (at, one))).collect();
        let place = |(_, point): &(usize, &DepthPoint)| {
            let at = Depth::place(&frame, point);
            // A bar is found anywhere above its layer.
            if depth.shape == Shape::Bars { pos2(at.x, pointer.y) } else { at }
        };
        if let Some(index) = super::nearest(pointer, all.iter().map(place), 24.0) {
            let (series, point) = all[index];
            let figure = number_with_interval(point.value, point.stderr.unwrap_or(0.0), "").text();
            let title = format!("layer {} {}", point.layer, depth.series[series].name);
            readout(ui, response.rect, pointer, &title, &[(depth.metric.as_str(), figure)]);
            if response.clicked() {
                clicked = Some((series, point.layer));
            }
        }
    }
    (response, clicked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_begin_at_zero_and_lines_are_logarithmic() {
        let point = |layer, value| DepthPoint { layer, value, stderr: Some(0.1) };
        let series = vec![Series { name: "q".to_owned(), part: 0, points: vec![point(0, 1.0), point(2, 10.0)] }];
        let mut depth =
            Depth { title: "t".to_owned(), metric: "KLD".to_owned(), layers: 3, series, shape: Shape::Bars };
        let (_, y) = depth.axes();
        assert!(y.scale.min == 0.0 && !y.scale.is_log && y.scale.max > 10.0);
        depth.shape = Shape::Lines;
        let (x, y) = depth.axes();
        assert!(y.scale.is_log && y.scale.min > 0.0 && x.scale.max > 2.0);
        assert_eq!(depth.table().rows, [["q", "0", "1", "0.1"], ["q", "2", "10", "0.1"]]);
    }
}
