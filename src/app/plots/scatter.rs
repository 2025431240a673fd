//! Size against accuracy, with intervals, speed and the Pareto front: what a smaller model costs.

use eframe::egui::{Align2, Color32, Pos2, Rect, Response, Stroke, Ui, pos2, vec2};

use super::axis::Scale;
use super::canvas::{Canvas, PainterCanvas};
use super::export::{Table, cell};
use super::frame::{Axis, Frame, readout};
use super::labels::{self, Wanted};
use super::{Plot, plot_ui};
use crate::app::theme::{Tokens, Type};

/// One model.
#[derive(Clone, Debug)]
pub struct ScatterPoint {
    /// Its name.
    pub name: String,
    /// Size of its files in MiB.
    pub size_mib: f64,
    /// Accuracy in percent.
    pub accuracy_percent: f64,
    /// Half of the interval of the accuracy, in points.
    pub half_width: Option<f64>,
    /// Decode speed, where it was measured: of all points at the same moment, see [`Self::times_baseline`].
    pub tokens_per_second: Option<f64>,
    /// The candidate's speed over the baseline's, measured in turns with it; its speed is then this times the
    /// baseline's, since this machine is not as fast at every moment.
    pub times_baseline: Option<f64>,
    /// Which candidate it is; none for the baseline.
    pub candidate: Option<usize>,
    /// Whether size and accuracy are predictions: drawn hollow.
    pub is_predicted: bool,
}

/// All models of a comparison.
#[derive(Clone, Debug, Default)]
pub struct Scatter {
    /// The baseline and the candidates.
    pub points: Vec<ScatterPoint>,
    /// What the vertical axis is: `accuracy, %` unless told otherwise.
    pub metric: String,
}

/// Indices of the measured points that no other beats: none is as small and as accurate and better in one.
/// By growing size.
pub fn pareto(points: &[ScatterPoint]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..points.len())
        .filter(|&index| {
            let point = &points[index];
            !point.is_predicted && point.size_mib.is_finite() && point.accuracy_percent.is_finite()
        })
        .collect();
    order.sort_by(|&one, &other| {
        let (one, other) = (&points[one], &points[other]);
        one.size_mib.total_cmp(&other.size_mib).then(other.accuracy_percent.total_cmp(&one.accuracy_percent))
    });
    let mut most = f64::NEG_INFINITY;
    order.retain(|&index| {
        let is_better = points[index].accuracy_percent > most;
        most = most.max(points[index].accuracy_percent);
        is_better
    });
    order
}

impl Scatter {
    fn axes(&self) -> (Axis, Axis) {
        let sizes = self.points.iter().map(|point| point.size_mib);
        let (_, largest) = super::axis::extent(sizes);
        let x = Scale::linear(0.0, largest * 1.12);
        let y = Scale::around(
            self.points.iter().flat_map(|point| {
                let half = point.half_width.unwrap_or(0.0);
                [point.accuracy_percent - half, point.accuracy_percent + half]
            }),
            0.12,
        );
        let metric = if self.metric.is_empty() { "accuracy, %".to_owned() } else { self.metric.clone() };
        (Axis { scale: x, name: "size, MiB".to_owned() }, Axis { scale: y, name: metric })
    }

    /// Area of the mark grows with speed; the fastest has radius 11.
    fn radius(&self, point: &ScatterPoint) -> f32 {
        let fastest = self.points.iter().filter_map(|p| p.tokens_per_second).fold(0.0, f64::max);
        match point.tokens_per_second {
            Some(speed) if fastest > 0.0 => (11.0 * (speed / fastest).max(0.0).sqrt() as f32).max(4.0),
            _ => 5.0,
        }
    }

    fn color(point: &ScatterPoint, tokens: &Tokens) -> Color32 {
        point.candidate.map_or(tokens.baseline, |index| tokens.candidate(index))
    }

    fn place(frame: &Frame, point: &ScatterPoint) -> Pos2 {
        frame.at(point.size_mib, point.accuracy_percent)
    }

    fn draw_front(&self, canvas: &mut dyn Canvas, frame: &Frame, tokens: &Tokens) {
        let front = pareto(&self.points);
        let mut steps: Vec<Pos2> = Vec::with_capacity(2 * front.len() + 1);
        for &index in &front {
            let at = Self::place(frame, &self.points[index]);
            // What is not reached yet stays at the accuracy of the smaller one.
            steps.extend(steps.last().map(|last| pos2(at.x, last.y)));
            steps.push(at);
        }
        canvas.path(steps, Stroke::new(1.0, tokens.outline));
    }

    fn label(point: &ScatterPoint) -> String {
        match point.tokens_per_second {
            Some(speed) => format!("{}  {speed:.0} tok/s", point.name),
            None => point.name.clone(),
        }
    }
}

impl Plot for Scatter {
    fn title(&self) -> String {
        "Size against accuracy".to_owned()
    }

    fn draw(&self, canvas: &mut dyn Canvas, rect: Rect, tokens: &Tokens) {
        let (x, y) = self.axes();
        let frame = Frame::new(canvas, rect, &x, &y);
        frame.draw(canvas, rect, &x, &y, tokens);
        self.draw_front(canvas, &frame, tokens);
        let mut wanted = Vec::with_capacity(self.points.len());
        let mut whiskers = Vec::new();
        for point in &self.points {
            let (at, color) = (Self::place(&frame, point), Self::color(point, tokens));
            if let Some(half) = point.half_width {
                let stroke = Stroke::new(1.5, color);
                let low = frame.at(point.size_mib, point.accuracy_percent - half);
                let high = frame.at(point.size_mib, point.accuracy_percent + half);
                canvas.line(low, high, stroke);
                whiskers.push(Rect::from_two_pos(low, high).expand2(vec2(4.0, 2.0)));
                for end in [low, high] {
                    canvas.line(end - vec2(4.0, 0.0), end + vec2(4.0, 0.0), stroke);
                }
            }
            let radius = self.radius(point);
            let fill = if point.is_predicted { tokens.panel } else { tokens.tint(color, 0.8) };
            canvas.disc(at, radius, fill, Stroke::new(1.5, color));
            let width = canvas.text_width(&Self::label(point), Type::Small) + 4.0;
            wanted.push(Wanted { point: at, radius, size: vec2(width, 14.0) });
        }
        let bounds = frame.inner.expand2(vec2(8.0, 4.0));
        for (place, point) in labels::place(&wanted, &whiskers, bounds).into_iter().zip(&self.points) {
            let Some(place) = place else { continue };
            let align = Align2::LEFT_CENTER;
            canvas.rect(place.shrink2(vec2(0.0, 1.0)), tokens.panel);
            let name = pos2(place.left() + 1.0, place.center().y);
            let drawn = canvas.text(name, align, &point.name, Type::SmallStrong, tokens.text);
            if let Some(speed) = point.tokens_per_second {
                let text = format!("{speed:.0} tok/s");
                let right = pos2(drawn.right() + 6.0, place.center().y);
                canvas.text(right, align, &text, Type::Small, tokens.weak);
            }
        }
    }

    fn table(&self) -> Table {
        let mut table = Table::new(&[
            "name",
            "size_mib",
            "accuracy_percent",
            "half_width_points",
            "decode_tokens_per_second",
            "decode_over_baseline",
            "predicted",
            "on_the_front",
        ]);
        let front = pareto(&self.points);
        for (index, point) in self.points.iter().enumerate() {
            table.row([
                point.name.clone(),
                cell(point.size_mib),
                cell(point.accuracy_percent),
                point.half_width.map(cell).unwrap_or_default(),
                point.tokens_per_second.map(cell).unwrap_or_default(),
                point.times_baseline.map(cell).unwrap_or_default(),
                point.is_predicted.to_string(),
                front.contains(&index).to_string(),
            ]);
        }
        table
    }
}

/// Draws the scatter as wide as there is room. Returns its response and the index of a point that
/// was clicked.
pub fn scatter_ui(ui: &mut Ui, scatter: &Scatter, height: f32) -> (Response, Option<usize>) {
    let size = vec2(ui.available_width(), height);
    let response = plot_ui(ui, scatter, size);
    let mut clicked = None;
    if let Some(pointer) = response.hover_pos() {
        let (x, y) = scatter.axes();
        let canvas = PainterCanvas::new(ui.painter());
        let frame = Frame::new(&canvas, response.rect, &x, &y);
        let places = scatter.points.iter().map(|point| Scatter::place(&frame, point));
        if let Some(index) = super::nearest(pointer, places, 24.0) {
            let point = &scatter.points[index];
            let mut accuracy = format!("{:.1} %", point.accuracy_percent);
            if let Some(half) = point.half_width {
                accuracy = format!("{:.1} ± {half:.1} %", point.accuracy_percent);
            }
            let mut lines = vec![("size", format!("{:.2} MiB", point.size_mib)), ("accuracy", accuracy)];
            if let Some(speed) = point.tokens_per_second {
                lines.push(("decode", format!("{speed:.0} tok/s")));
            }
            if let Some(ratio) = point.times_baseline {
                lines.push(("of the original's, in turns", format!("{ratio:.2}×")));
            }
            if point.is_predicted {
                lines.push(("state", "predicted".to_owned()));
            }
            readout(ui, response.rect, pointer, &point.name, &lines);
            if response.clicked() {
                clicked = Some(index);
            }
        }
    }
    (response, clicked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn point(size_mib: f64, accuracy_percent: f64) -> ScatterPoint {
        ScatterPoint {
            name: String::new(),
            size_mib,
            accuracy_percent,
            half_width: None,
            tokens_per_second: None,
            times_baseline: None,
            candidate: None,
            is_predicted: false,
        }
    }

    #[test]
    fn the_front_keeps_what_nothing_beats() {
        let points = [point(8.0, 90.0), point(3.0, 88.0), point(4.0, 85.0), point(2.0, 60.0)];
        assert_eq!(pareto(&points), [3, 1, 0]);
        assert_eq!(pareto(&[point(1.0, f64::NAN)]), [] as [usize; 0]);
        let table = Scatter { points: points.into(), metric: "accuracy, %".to_owned() }.table();
        assert_eq!(table.rows.iter().map(|row| row[7].as_str()).collect::<Vec<_>>(), ["true", "true", "false", "true"]);
        assert_eq!(table.rows[0][..3], ["", "8", "90"]);
    }

    proptest! {
        #[test]
        fn every_point_off_the_front_is_beaten_by_one_on_it(
            pairs in prop::collection::vec((1u32..20, 0u32..20), 1..30)
        ) {
            let points: Vec<ScatterPoint> =
                pairs.iter().map(|&(size, hits)| point(size.into(), hits.into())).collect();
            let front = pareto(&points);
            for (index, one) in points.iter().enumerate() {
                let is_beaten = front.iter().any(|&on| {
                    let other = &points[on];
                    other.size_mib <= one.size_mib && other.accuracy_percent >= one.accuracy_percent
                });
                prop_assert!(front.contains(&index) || is_beaten);
            }
        }
    }
}
