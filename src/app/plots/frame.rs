//! The frame that plots with two axes share: margins, grid, ticks, names of the axes, and the way
//! from data to points.

use eframe::egui::{Align2, Pos2, Rect, Stroke, Ui, pos2, vec2};

use super::axis::Scale;
use super::canvas::Canvas;
use crate::app::theme::{Tokens, Type, space};

/// A scale with the name and unit that stand at it.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    pub scale: Scale,
    /// With its unit: `bits per weight`, `size, MiB`.
    pub name: String,
}

/// Two axes around a rectangle of data.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    /// Where data is drawn.
    pub inner: Rect,
    pub x: Scale,
    pub y: Scale,
}

/// Height that ticks and name of the horizontal axis take.
const BELOW: f32 = 38.0;

impl Frame {
    /// Makes room for the axes inside `rect` without drawing.
    pub fn new(canvas: &dyn Canvas, rect: Rect, x: &Axis, y: &Axis) -> Self {
        let ticks = y.scale.ticks(Self::most_y(rect.height() - BELOW));
        let widest = ticks.iter().map(|tick| canvas.text_width(&tick.label, Type::Small)).fold(18.0, f32::max);
        let left = widest + space::S + 18.0;
        let inner = Rect::from_min_max(
            pos2(rect.left() + left, rect.top() + space::S),
            pos2(rect.right() - space::M, rect.bottom() - BELOW),
        );
        Self { inner, x: x.scale, y: y.scale }
    }

    fn most_y(height: f32) -> usize {
        (height / 38.0).clamp(2.0, 8.0) as usize
    }

    fn most_x(width: f32) -> usize {
        (width / 72.0).clamp(2.0, 10.0) as usize
    }

    /// Draws grid, ticks and names.
    pub fn draw(&self, canvas: &mut dyn Canvas, rect: Rect, x: &Axis, y: &Axis, tokens: &Tokens) {
        let inner = self.inner;
        let grid = Stroke::new(1.0, tokens.grid);
        for tick in self.y.ticks(Self::most_y(inner.height())) {
            let at = self.y_of(tick.value);
            canvas.line(pos2(inner.left(), at), pos2(inner.right(), at), grid);
            let place = pos2(inner.left() - 6.0, at);
            canvas.text(place, Align2::RIGHT_CENTER, &tick.label, Type::Small, tokens.weak);
        }
        for tick in self.x.ticks(Self::most_x(inner.width())) {
            let at = self.x_of(tick.value);
            canvas.line(pos2(at, inner.top()), pos2(at, inner.bottom()), grid);
            let place = pos2(at, inner.bottom() + 3.0);
            canvas.text(place, Align2::CENTER_TOP, &tick.label, Type::Small, tokens.weak);
        }
        let line = Stroke::new(1.0, tokens.outline);
        canvas.line(inner.left_bottom(), inner.right_bottom(), line);
        let below = pos2(inner.center().x, rect.bottom() - 1.0);
        canvas.text(below, Align2::CENTER_BOTTOM, &x.name, Type::Small, tokens.weak);
        let beside = pos2(rect.left() + 8.0, inner.center().y);
        canvas.text_upwards(beside, &y.name, Type::Small, tokens.weak);
    }

    /// The horizontal place of a value, kept within reach of the frame.
    pub fn x_of(&self, value: f64) -> f32 {
        let unit = self.x.unit(value).clamp(-0.5, 1.5) as f32;
        self.inner.left() + self.inner.width() * unit
    }

    /// The vertical place of a value, kept within reach of the frame.
    pub fn y_of(&self, value: f64) -> f32 {
        let unit = self.y.unit(value).clamp(-0.5, 1.5) as f32;
        self.inner.bottom() - self.inner.height() * unit
    }

    /// The place of a pair.
    pub fn at(&self, x: f64, y: f64) -> Pos2 {
        pos2(self.x_of(x), self.y_of(y))
    }

    /// The horizontal value under a place.
    pub fn x_value(&self, x: f32) -> f64 {
        self.x.value(f64::from((x - self.inner.left()) / self.inner.width()))
    }
}

/// The numbers under the pointer, in a small box beside it that stays within the plot.
/// Each line is a name and a figure.
pub(super) fn readout(ui: &Ui, bounds: Rect, pointer: Pos2, title: &str, lines: &[(&str, String)]) {
    let tokens = Tokens::of(ui.visuals().dark_mode);
    let painter = ui.painter_at(bounds);
    let head = painter.layout_no_wrap(title.to_owned(), Type::SmallStrong.font(), tokens.text);
    let rows: Vec<_> = lines
        .iter()
        .map(|(name, figure)| {
            (
                painter.layout_no_wrap((*name).to_owned(), Type::Small.font(), tokens.weak),
                painter.layout_no_wrap(figure.clone(), Type::MonoSmall.font(), tokens.text),
            )
        })
        .collect();
    let gap = space::M;
    let names = rows.iter().map(|(name, _)| name.size().x).fold(0.0, f32::max);
    let figures = rows.iter().map(|(_, figure)| figure.size().x).fold(0.0, f32::max);
    let width = (names + gap + figures).max(head.size().x);
    let row_height = 16.0;
    let head_height = if title.is_empty() { 0.0 } else { 18.0 };
    let size = vec2(width, head_height + row_height * rows.len() as f32) + vec2(16.0, 10.0);
    let mut min = pointer + vec2(14.0, -size.y - 6.0);
    if min.x + size.x > bounds.right() {
        min.x = pointer.x - 14.0 - size.x;
    }
    if min.y < bounds.top() {
        min.y = pointer.y + 14.0;
    }
    min.x = min.x.max(bounds.left());
    min.y = min.y.min(bounds.bottom() - size.y);
    let rect = Rect::from_min_size(min, size);
    let stroke = Stroke::new(1.0, tokens.outline);
    let kind = eframe::egui::StrokeKind::Inside;
    painter.rect(rect, space::RADIUS, tokens.raised, stroke, kind);
    let mut y = rect.top() + 5.0;
    if !title.is_empty() {
        painter.galley(pos2(rect.left() + 8.0, y), head, tokens.text);
        y += head_height;
    }
    for (name, figure) in rows {
        painter.galley(pos2(rect.left() + 8.0, y), name, tokens.weak);
        let x = rect.left() + 8.0 + width - figure.size().x;
        painter.galley(pos2(x, y), figure, tokens.text);
        y += row_height;
    }
}
