//! Lines over a number, such as accuracy over confidence or KLD over the position: the baseline's and the
//! candidate's on the same axes, with intervals where they are known, how many values a point stands for, single
//! points that have a name, and the diagonal where it means something.

use eframe::egui::{Align2, Pos2, Rect, Response, Stroke, Ui, pos2, vec2};

use super::axis::Scale;
use super::canvas::{Canvas, PainterCanvas};
use super::export::{Table, cell};
use super::frame::{Axis, Frame, readout};
use super::labels::{self, Wanted};
use super::{Plot, plot_ui};
use crate::app::theme::{Tokens, Type};
use crate::engine::units;

/// One line.
#[derive(Clone, Debug, Default)]
pub struct Line {
    /// Whose it is.
    pub name: String,
    /// Which candidate; none for the baseline.
    pub candidate: Option<usize>,
    /// From left to right.
    pub points: Vec<[f64; 2]>,
    /// Both ends of the interval of each point's y; empty where none is known.
    pub intervals: Vec<[f64; 2]>,
    /// What else is known of each point, as [`Lines::details`] names it.
    pub details: Vec<Vec<f64>>,
}

/// A point that has a name.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    /// What it is.
    pub name: String,
    /// Which candidate's; none for the baseline.
    pub candidate: Option<usize>,
    pub at: [f64; 2],
}

/// Lines with their axes.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    /// What the plot is about.
    pub title: String,
    /// With its unit.
    pub x: String,
    pub y: String,
    /// True where equal x and y is what one hopes for; both axes then go from 0 to 1.
    pub has_diagonal: bool,
    /// What the table has of each point beside its place: names with units, in snake case.
    pub details: &'static [&'static str],
    pub lines: Vec<Line>,
    /// Which of the details is how many values a point stands for; the first two are then the ends of its bin, and
    /// bars at the bottom show how the values are spread.
    pub counts: Option<usize>,
    pub marks: Vec<Mark>,
}

/// Share of the height that the tallest bar of counts has.
const COUNTS_HEIGHT: f32 = 0.16;

impl Lines {
    fn axes(&self) -> (Axis, Axis) {
        let points = || {
            let marks = self.marks.iter().map(|mark| mark.at);
            self.lines.iter().flat_map(|line| line.points.iter().copied()).chain(marks)
        };
        let (x, y) = if self.has_diagonal {
            (Scale::linear(0.0, 1.0), Scale::linear(0.0, 1.0))
        } else {
            let ends = self.lines.iter().flat_map(|line| line.intervals.iter().flatten().copied());
            let heights = || points().map(|point| point[1]).chain(ends.clone()).filter(|end| end.is_finite());
            let (lowest, highest) = (heights().fold(0.0, f64::min), heights().fold(0.0, f64::max));
            let air = (highest - lowest).max(1e-9) * 0.1;
            // Zero is at the edge where nothing lies below it.
            let low = if lowest < 0.0 { lowest - air } else { 0.0 };
            (Scale::around(points().map(|point| point[0]), 0.02), Scale::linear(low, highest + air))
        };
        (Axis { scale: x, name: self.x.clone() }, Axis { scale: y, name: self.y.clone() })
    }

    fn color(candidate: Option<usize>, tokens: &Tokens) -> eframe::egui::Color32 {
        candidate.map_or(tokens.baseline, |index| tokens.candidate(index))
    }

    /// How many values lie in which bin, as bars along the bottom, those of the lines side by side.
    fn draw_counts(&self, canvas: &mut dyn Canvas, frame: &Frame, column: usize, tokens: &Tokens) {
        let count = |details: &Vec<f64>| details.get(column).copied().unwrap_or(0.0);
        let tallest = self.lines.iter().flat_map(|line| line.details.iter().map(count)).fold(0.0, f64::max);
        if tallest <= 0.0 {
            return;
        }
        let share = 1.0 / self.lines.len() as f32;
        for (place, line) in self.lines.iter().enumerate() {
            let fill = tokens.tint(Self::color(line.candidate, tokens), 0.3);
            for details in &line.details {
                let [Some(&from), Some(&to)] = [details.first(), details.get(1)] else { continue };
                let (left, right) = (frame.x_of(from) + 1.0, frame.x_of(to) - 1.0);
                let width = (right - left).max(2.0) * share;
                let left = left + width * place as f32;
                let height = frame.inner.height() * COUNTS_HEIGHT * (count(details) / tallest) as f32;
                let bottom = frame.inner.bottom();
                // A bin that has few of very many is still there.
                let top = bottom - if height > 0.0 { height.max(1.5) } else { 0.0 };
                canvas.rect(Rect::from_min_max(pos2(left, top), pos2(left + width, bottom)), fill);
            }
        }
    }

    fn draw_line(canvas: &mut dyn Canvas, frame: &Frame, line: &Line, tokens: &Tokens) {
        let color = Self::color(line.candidate, tokens);
        let stroke = Stroke::new(1.0, color);
        for (point, [low, high]) in line.points.iter().zip(&line.intervals) {
            let (low, high) = (frame.at(point[0], *low), frame.at(point[0], *high));
            canvas.line(low, high, stroke);
            for end in [low, high] {
                canvas.line(end - vec2(3.0, 0.0), end + vec2(3.0, 0.0), stroke);
            }
        }
        let points: Vec<Pos2> = line.points.iter().map(|point| frame.at(point[0], point[1])).collect();
        // Discs that touch are a thick line, which hides the thin one.
        let is_dense = points.len() as f32 * 8.0 > frame.inner.width();
        for at in points.iter().filter(|_| !is_dense) {
            canvas.disc(*at, 3.0, color, stroke);
        }
        canvas.path(points, Stroke::new(1.5, color));
    }

    /// Named points as rings, beside them their names where there is room.
    fn draw_marks(&self, canvas: &mut dyn Canvas, frame: &Frame, tokens: &Tokens) {
        const RADIUS: f32 = 5.0;
        let mut wanted = Vec::with_capacity(self.marks.len());
        for mark in &self.marks {
            let at = frame.at(mark.at[0], mark.at[1]);
            canvas.disc(at, RADIUS, tokens.panel, Stroke::new(2.0, Self::color(mark.candidate, tokens)));
            let width = canvas.text_width(&mark.name, Type::Small) + 4.0;
            wanted.push(Wanted { point: at, radius: RADIUS, size: vec2(width, 14.0) });
        }
        let places = labels::place(&wanted, &[], frame.inner.expand2(vec2(8.0, 4.0)));
        for (place, mark) in places.into_iter().zip(&self.marks) {
            let Some(place) = place else { continue };
            canvas.rect(place.shrink2(vec2(0.0, 1.0)), tokens.panel);
            let at = pos2(place.left() + 2.0, place.center().y);
            canvas.text(at, Align2::LEFT_CENTER, &mark.name, Type::Small, tokens.text);
        }
    }

    /// Which colour is whose, where there are several.
    fn draw_legend(&self, canvas: &mut dyn Canvas, frame: &Frame, tokens: &Tokens) {
        if self.lines.len() < 2 {
            return;
        }
        let mut y = frame.inner.top() + 8.0;
        for line in &self.lines {
            let left = frame.inner.left() + 8.0;
            let room = canvas.text_width(&line.name, Type::Small) + 26.0;
            canvas.rect(Rect::from_min_size(pos2(left - 3.0, y - 7.0), vec2(room, 14.0)), tokens.panel);
            let stroke = Stroke::new(2.0, Self::color(line.candidate, tokens));
            canvas.line(pos2(left, y), pos2(left + 14.0, y), stroke);
            canvas.text(pos2(left + 19.0, y), Align2::LEFT_CENTER, &line.name, Type::Small, tokens.text);
            y += 16.0;
        }
    }

    /// What is told of a point under the pointer: its place, its interval and all that is known of it.
    fn told(&self, line: &Line, index: usize) -> Vec<(String, String)> {
        let figure = |value: f64| units::significant(value);
        let point = line.points[index];
        let mut rows = vec![(self.x.clone(), figure(point[0])), (self.y.clone(), figure(point[1]))];
        if let Some([low, high]) = line.intervals.get(index) {
            rows.push(("95 % interval".to_owned(), format!("{} to {}", figure(*low), figure(*high))));
        }
        let details = line.details.get(index).map(Vec::as_slice).unwrap_or_default();
        for (place, (name, value)) in self.details.iter().zip(details).enumerate() {
            let is_count = self.counts == Some(place) || *name == "tokens";
            let text = if is_count { format!("{value:.0}") } else { figure(*value) };
            rows.push((name.replace("_percent", ", %").replace('_', " "), text));
        }
        rows
    }
}

impl Plot for Lines {
    fn title(&self) -> String {
        self.title.clone()
    }

    fn draw(&self, canvas: &mut dyn Canvas, rect: Rect, tokens: &Tokens) {
        let (x, y) = self.axes();
        let frame = Frame::new(canvas, rect, &x, &y);
        frame.draw(canvas, rect, &x, &y, tokens);
        if self.has_diagonal {
            canvas.dashed(frame.at(0.0, 0.0), frame.at(1.0, 1.0), Stroke::new(1.0, tokens.weak));
        }
        if let Some(column) = self.counts {
            self.draw_counts(canvas, &frame, column, tokens);
        }
        for line in &self.lines {
            Self::draw_line(canvas, &frame, line, tokens);
        }
        self.draw_legend(canvas, &frame, tokens);
        self.draw_marks(canvas, &frame, tokens);
    }

    fn table(&self) -> Table {
        let (x, y) = (column(&self.x), column(&self.y));
        let has_intervals = self.lines.iter().any(|line| !line.intervals.is_empty());
        let mut table = Table::new(&["line", &x, &y]);
        if has_intervals {
            table.columns.extend(["low".to_owned(), "high".to_owned()]);
        }
        table.columns.extend(self.details.iter().map(|&name| name.to_owned()));
        for line in &self.lines {
            for (index, point) in line.points.iter().enumerate() {
                let details = line.details.get(index).map(Vec::as_slice).unwrap_or_default();
                let mut row = vec![line.name.clone(), cell(point[0]), cell(point[1])];
                if has_intervals {
                    let ends = line.intervals.get(index).map_or([f64::NAN; 2], |ends| *ends);
                    row.extend(ends.map(cell));
                }
                // Every row has every column.
                row.extend((0..self.details.len()).map(|at| details.get(at).copied().map(cell).unwrap_or_default()));
                table.rows.push(row);
            }
        }
        table
    }
}

/// The name of a column for an axis: `mean KLD, nats` is `mean_kld_nats`.
fn column(axis: &str) -> String {
    let words = axis.replace('%', " percent ").replace(['\'', '’'], "").to_lowercase();
    words.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty()).collect::<Vec<_>>().join("_")
}

/// Draws the lines as wide as there is room, with the numbers under the pointer.
pub fn lines_ui(ui: &mut Ui, lines: &Lines, height: f32) -> Response {
    let size = vec2(ui.available_width(), height);
    let response = plot_ui(ui, lines, size);
    if let Some(pointer) = response.hover_pos() {
        let (x, y) = lines.axes();
        let frame = Frame::new(&PainterCanvas::new(ui.painter()), response.rect, &x, &y);
        let points: Vec<(&Line, usize)> =
            lines.lines.iter().flat_map(|line| (0..line.points.len()).map(move |index| (line, index))).collect();
        let places = points.iter().map(|(line, index)| frame.at(line.points[*index][0], line.points[*index][1]));
        if let Some(nearest) = super::nearest(pointer, places, 24.0) {
            let (line, index) = points[nearest];
            let told = lines.told(line, index);
            let rows: Vec<(&str, String)> = told.iter().map(|(name, figure)| (name.as_str(), figure.clone())).collect();
            readout(ui, response.rect, pointer, &line.name, &rows);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_point_and_a_diagonal_fixes_the_axes() {
        let points = vec![[0.5, 0.4], [0.9, 0.7]];
        let line = Line { name: "a".to_owned(), points, details: vec![vec![12.0]], ..Line::default() };
        let mut lines = Lines {
            title: "t".to_owned(),
            x: "the original's, %".to_owned(),
            y: "mean KLD, nats".to_owned(),
            has_diagonal: true,
            details: &["items"],
            lines: vec![line],
            ..Lines::default()
        };
        let csv = "line,the_originals_percent,mean_kld_nats,items\r\na,0.5,0.4,12\r\na,0.9,0.7,\r\n";
        assert_eq!(lines.table().csv(), csv);
        assert_eq!((lines.axes().0.scale.min, lines.axes().1.scale.max), (0.0, 1.0));
        lines.has_diagonal = false;
        assert!(lines.axes().1.scale.max < 0.9);
        lines.lines.clear();
        assert!(lines.axes().1.scale.max > 0.0);
    }

    #[test]
    fn intervals_and_named_points_are_within_the_axes_and_told() {
        let line = Line {
            name: "a".to_owned(),
            points: vec![[2.0, 0.5]],
            intervals: vec![[-0.25, 1.5]],
            details: vec![vec![1.0, 3.0, 1200.0]],
            ..Line::default()
        };
        let lines = Lines {
            x: "confidence".to_owned(),
            y: "accuracy".to_owned(),
            details: &["from", "to", "items"],
            counts: Some(2),
            lines: vec![line],
            marks: vec![Mark { name: "alone".to_owned(), candidate: None, at: [10.0, 0.0] }],
            ..Lines::default()
        };
        let (x, y) = lines.axes();
        assert!(x.scale.min < 2.0 && x.scale.max > 10.0);
        assert!(y.scale.min < -0.25 && y.scale.max > 1.5);
        let csv = "line,confidence,accuracy,low,high,from,to,items\r\na,2,0.5,-0.25,1.5,1,3,1200\r\n";
        assert_eq!(lines.table().csv(), csv);
        let told = lines.told(&lines.lines[0], 0);
        let told: Vec<String> = told.iter().map(|(name, figure)| format!("{name} {figure}")).collect();
        let expected =
            ["confidence 2.00", "accuracy 0.500", "95 % interval −0.250 to 1.50", "from 1.00", "to 3.00", "items 1200"];
        assert_eq!(told, expected);
    }
}
