//! Lines over a number, such as accuracy over confidence or KLD over the position: the baseline's and the
//! candidate's on the same axes, with the diagonal where it means something.

use eframe::egui::{Pos2, Rect, Response, Stroke, Ui, vec2};

use super::axis::Scale;
use super::canvas::{Canvas, PainterCanvas};
use super::export::{Table, cell};
use super::frame::{Axis, Frame, readout};
use super::{Plot, plot_ui};
use crate::app::theme::Tokens;
use crate::engine::units;

/// One line.
#[derive(Clone, Debug)]
pub struct Line {
    /// Whose it is.
    pub name: String,
    /// Which candidate; none for the baseline.
    pub candidate: Option<usize>,
    /// From left to right.
    pub points: Vec<[f64; 2]>,
    /// What else is known of each point, as [`Lines::details`] names it.
    pub details: Vec<Vec<f64>>,
}

/// Lines with their axes.
#[derive(Clone, Debug)]
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
}

impl Lines {
    fn axes(&self) -> (Axis, Axis) {
        let points = || self.lines.iter().flat_map(|line| line.points.iter());
        let (x, y) = if self.has_diagonal {
            (Scale::linear(0.0, 1.0), Scale::linear(0.0, 1.0))
        } else {
            let highest = points().map(|point| point[1]).fold(0.0, f64::max);
            (Scale::around(points().map(|point| point[0]), 0.02), Scale::linear(0.0, highest.max(1e-9) * 1.1))
        };
        (Axis { scale: x, name: self.x.clone() }, Axis { scale: y, name: self.y.clone() })
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
        for line in &self.lines {
            let color = line.candidate.map_or(tokens.baseline, |index| tokens.candidate(index));
            let points: Vec<Pos2> = line.points.iter().map(|point| frame.at(point[0], point[1])).collect();
            for at in &points {
                canvas.disc(*at, 3.0, color, Stroke::new(1.0, color));
            }
            canvas.path(points, Stroke::new(1.5, color));
        }
    }

    fn table(&self) -> Table {
        let (x, y) = (column(&self.x), column(&self.y));
        let mut table = Table::new(&["line", &x, &y]);
        table.columns.extend(self.details.iter().map(|&name| name.to_owned()));
        for line in &self.lines {
            for (index, point) in line.points.iter().enumerate() {
                let details = line.details.get(index).map(Vec::as_slice).unwrap_or_default();
                let mut row = vec![line.name.clone(), cell(point[0]), cell(point[1])];
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
        let points: Vec<(&Line, [f64; 2])> =
            lines.lines.iter().flat_map(|line| line.points.iter().map(move |point| (line, *point))).collect();
        let places = points.iter().map(|(_, point)| frame.at(point[0], point[1]));
        if let Some(index) = super::nearest(pointer, places, 24.0) {
            let (line, point) = points[index];
            let figures = [(lines.x.as_str(), point[0]), (lines.y.as_str(), point[1])];
            let rows = figures.map(|(name, value)| (name, units::significant(value)));
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
        let line = Line { name: "a".to_owned(), candidate: None, points, details: vec![vec![12.0]] };
        let mut lines = Lines {
            title: "t".to_owned(),
            x: "the original's, %".to_owned(),
            y: "mean KLD, nats".to_owned(),
            has_diagonal: true,
            details: &["items"],
            lines: vec![line],
        };
        let csv = "line,the_originals_percent,mean_kld_nats,items\r\na,0.5,0.4,12\r\na,0.9,0.7,\r\n";
        assert_eq!(lines.table().csv(), csv);
        assert_eq!((lines.axes().0.scale.min, lines.axes().1.scale.max), (0.0, 1.0));
        lines.has_diagonal = false;
        assert!(lines.axes().1.scale.max < 0.9);
        lines.lines.clear();
        assert!(lines.axes().1.scale.max > 0.0);
    }
}
