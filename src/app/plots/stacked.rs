//! Where the bytes are: stacked bars of one total each (the original, the plan, candidates), on one
//! axis, so that a smaller model is a shorter bar.

use eframe::egui::{Align2, Pos2, Rect, Response, Stroke, Ui, pos2, vec2};

use super::canvas::{Canvas, PainterCanvas};
use super::export::Table;
use super::frame::readout;
use super::{Plot, plot_ui};
use crate::app::theme::{Tokens, Type, space};
use crate::engine::units;

/// One part of a bar.
#[derive(Clone, Debug)]
pub struct Segment {
    /// A role or a format.
    pub label: String,
    /// Its bytes.
    pub bytes: u64,
    /// Index of its colour, the same in every bar.
    pub part: usize,
}

/// One bar.
#[derive(Clone, Debug)]
pub struct StackedBar {
    /// What stands before it: `original`, `plan`.
    pub name: String,
    /// From the left.
    pub segments: Vec<Segment>,
}

impl StackedBar {
    /// Sum of its parts.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().fold(0, |sum, segment| sum.saturating_add(segment.bytes))
    }
}

/// All bars of one figure.
#[derive(Clone, Debug, Default)]
pub struct Stacked {
    /// What is split: `Size by role`.
    pub title: String,
    /// From the top.
    pub bars: Vec<StackedBar>,
}

const BAR: f32 = 28.0;
const GAP: f32 = 8.0;
const KEY: f32 = 20.0;

impl Stacked {
    /// Height of the figure in points.
    pub fn height(&self) -> f32 {
        (BAR + GAP) * self.bars.len() as f32 + KEY
    }

    fn geometry(&self, canvas: &dyn Canvas, rect: Rect) -> (f32, f32) {
        let names = self.bars.iter().map(|bar| canvas.text_width(&bar.name, Type::Body)).fold(0.0, f32::max);
        let left = if names > 0.0 { names + space::M } else { 0.0 };
        (rect.left() + left, rect.right() - 76.0)
    }

    /// Every segment with its rectangle.
    fn places(&self, left: f32, right: f32, top: f32) -> Vec<(usize, usize, Rect)> {
        let largest = self.bars.iter().map(StackedBar::bytes).max().unwrap_or(0).max(1) as f64;
        let mut places = Vec::new();
        for (row, bar) in self.bars.iter().enumerate() {
            let y = top + (BAR + GAP) * row as f32;
            let mut before = 0u64;
            let x = |bytes: u64| left + (right - left) * (bytes as f64 / largest) as f32;
            for (index, segment) in bar.segments.iter().enumerate() {
                let after = before.saturating_add(segment.bytes);
                let rect = Rect::from_min_max(pos2(x(before), y), pos2(x(after), y + BAR));
                places.push((row, index, rect));
                before = after;
            }
        }
        places
    }

    fn draw_key(&self, canvas: &mut dyn Canvas, at: Pos2, right: f32, tokens: &Tokens) {
        let mut seen: Vec<usize> = Vec::new();
        let mut x = at.x;
        for segment in self.bars.iter().flat_map(|bar| &bar.segments) {
            if segment.bytes == 0 || seen.contains(&segment.part) {
                continue;
            }
            seen.push(segment.part);
            let width = canvas.text_width(&segment.label, Type::Small);
            if x + 14.0 + width > right {
                break;
            }
            let mark = Rect::from_center_size(pos2(x + 5.0, at.y), vec2(9.0, 9.0));
            canvas.rect(mark, tokens.part(segment.part));
            let place = pos2(x + 14.0, at.y);
            canvas.text(place, Align2::LEFT_CENTER, &segment.label, Type::Small, tokens.text);
            x += 14.0 + width + space::M;
        }
    }
}

impl Plot for Stacked {
    fn title(&self) -> String {
        self.title.clone()
    }

    fn draw(&self, canvas: &mut dyn Canvas, rect: Rect, tokens: &Tokens) {
        let (left, right) = self.geometry(canvas, rect);
        for (row, bar) in self.bars.iter().enumerate() {
            let y = rect.top() + (BAR + GAP) * row as f32 + BAR / 2.0;
            let at = pos2(rect.left(), y);
            canvas.text(at, Align2::LEFT_CENTER, &bar.name, Type::Body, tokens.weak);
        }
        let mut ends = vec![left; self.bars.len()];
        for (row, index, place) in self.places(left, right, rect.top()) {
            let segment = &self.bars[row].segments[index];
            let color = tokens.part(segment.part);
            canvas.rect(place, color);
            // Parts are told apart by a gap of the panel's colour too.
            if index > 0 && place.width() > 2.0 {
                let stroke = Stroke::new(1.0, tokens.panel);
                canvas.line(place.left_top(), place.left_bottom(), stroke);
            }
            if canvas.text_width(&segment.label, Type::Small) + 10.0 < place.width() {
                let ink = tokens.text_on(color);
                let kind = Type::Small;
                canvas.text(place.center(), Align2::CENTER_CENTER, &segment.label, kind, ink);
            }
            ends[row] = place.right();
        }
        for (row, (bar, end)) in self.bars.iter().zip(ends).enumerate() {
            let y = rect.top() + (BAR + GAP) * row as f32 + BAR / 2.0;
            let text = units::bytes(bar.bytes());
            let at = pos2(end + space::S, y);
            canvas.text(at, Align2::LEFT_CENTER, &text, Type::Mono, tokens.text);
        }
        let y = rect.top() + (BAR + GAP) * self.bars.len() as f32 + KEY / 2.0 - 2.0;
        self.draw_key(canvas, pos2(left, y), rect.right(), tokens);
    }

    fn table(&self) -> Table {
        let mut table = Table::new(&["bar", "part", "bytes"]);
        for bar in &self.bars {
            for segment in &bar.segments {
                let bytes = segment.bytes.to_string();
                table.row([bar.name.clone(), segment.label.clone(), bytes]);
            }
        }
        table
    }
}

/// Draws the bars as wide as there is room, with the numbers under the pointer.
pub fn stacked_ui(ui: &mut Ui, stacked: &Stacked) -> Response {
    let size = vec2(ui.available_width(), stacked.height());
    let response = plot_ui(ui, stacked, size);
    if let Some(pointer) = response.hover_pos() {
        let (left, right) = stacked.geometry(&PainterCanvas::new(ui.painter()), response.rect);
        let places = stacked.places(left, right, response.rect.top());
        if let Some((row, index, _)) = places.into_iter().find(|place| place.2.contains(pointer)) {
            let bar = &stacked.bars[row];
            let segment = &bar.segments[index];
            let share = segment.bytes as f64 / bar.bytes().max(1) as f64;
            let lines = [("size", units::bytes(segment.bytes)), ("share", units::percent(share))];
            readout(ui, response.rect, pointer, &segment.label, &lines);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_share_one_axis_and_their_parts_touch() {
        let segment = |bytes| Segment { label: "q".to_owned(), bytes, part: 0 };
        let stacked = Stacked {
            title: "Size".to_owned(),
            bars: vec![
                StackedBar { name: "a".to_owned(), segments: vec![segment(60), segment(40)] },
                StackedBar { name: "b".to_owned(), segments: vec![segment(50)] },
            ],
        };
        let places = stacked.places(0.0, 200.0, 0.0);
        assert_eq!(places[0].2.right(), places[1].2.left());
        assert_eq!(places[1].2.right(), 200.0);
        assert_eq!(places[2].2.right(), 100.0);
        let empty = Stacked {
            title: String::new(),
            bars: vec![StackedBar { name: String::new(), segments: vec![segment(0)] }],
        };
        assert!(empty.places(0.0, 100.0, 0.0)[0].2.width() == 0.0);
    }
}
