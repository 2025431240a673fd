//! What plots draw on: the window's painter, or an SVG document. One drawing serves both.

use std::fmt::Write as _;

use eframe::egui::{Align2, Color32, Mesh, Painter, Pos2, Rect, Shape, Stroke, StrokeKind, pos2};

use crate::app::theme::Type;

/// The few things that a plot needs. Coordinates are points, y grows downwards.
pub trait Canvas {
    /// A filled rectangle without corners.
    fn rect(&mut self, rect: Rect, fill: Color32);

    /// The outline of a rectangle, inside it.
    fn frame(&mut self, rect: Rect, stroke: Stroke);

    /// A straight line.
    fn line(&mut self, from: Pos2, to: Pos2, stroke: Stroke);

    /// A dashed straight line.
    fn dashed(&mut self, from: Pos2, to: Pos2, stroke: Stroke);

    /// A line through points.
    fn path(&mut self, points: Vec<Pos2>, stroke: Stroke);

    /// The area between a line through `points`, whose x grows, and the horizontal at `base`.
    fn area(&mut self, points: &[Pos2], base: f32, fill: Color32);

    /// A disc with an outline.
    fn disc(&mut self, center: Pos2, radius: f32, fill: Color32, stroke: Stroke);

    /// Text, anchored; returns the room that it takes.
    fn text(&mut self, at: Pos2, align: Align2, text: &str, kind: Type, color: Color32) -> Rect;

    /// Text that reads upwards, centred at `center`.
    fn text_upwards(&mut self, center: Pos2, text: &str, kind: Type, color: Color32);

    /// How wide `text` will be.
    fn text_width(&self, text: &str, kind: Type) -> f32;

    /// The part that can be seen; what lies outside need not be drawn.
    fn visible(&self) -> Rect;
}

/// Draws into the window.
pub struct PainterCanvas<'a> {
    painter: &'a Painter,
}

impl<'a> PainterCanvas<'a> {
    /// A canvas over a painter.
    pub fn new(painter: &'a Painter) -> Self {
        Self { painter }
    }

    /// Centres thin horizontals and verticals on pixels, so that they are not smeared over two.
    fn snap(&self, mut from: Pos2, mut to: Pos2) -> [Pos2; 2] {
        if from.x == to.x {
            from.x = self.painter.round_to_pixel_center(from.x);
            to.x = from.x;
        }
        if from.y == to.y {
            from.y = self.painter.round_to_pixel_center(from.y);
            to.y = from.y;
        }
        [from, to]
    }
}

impl Canvas for PainterCanvas<'_> {
    fn rect(&mut self, rect: Rect, fill: Color32) {
        self.painter.rect_filled(rect, 0.0, fill);
    }

    fn frame(&mut self, rect: Rect, stroke: Stroke) {
        self.painter.rect_stroke(rect, 0.0, stroke, StrokeKind::Inside);
    }

    fn line(&mut self, from: Pos2, to: Pos2, stroke: Stroke) {
        self.painter.line_segment(self.snap(from, to), stroke);
    }

    fn dashed(&mut self, from: Pos2, to: Pos2, stroke: Stroke) {
        self.painter.extend(Shape::dashed_line(&self.snap(from, to), stroke, 3.0, 3.0));
    }

    fn path(&mut self, points: Vec<Pos2>, stroke: Stroke) {
        self.painter.add(Shape::line(points, stroke));
    }

    fn area(&mut self, points: &[Pos2], base: f32, fill: Color32) {
        // egui fills convex shapes only; a strip of quads fills any curve over a base.
        let mut mesh = Mesh::default();
        mesh.reserve_vertices(2 * points.len());
        mesh.reserve_triangles(2 * points.len());
        for (index, &point) in points.iter().enumerate() {
            mesh.colored_vertex(point, fill);
            mesh.colored_vertex(pos2(point.x, base), fill);
            if index > 0 {
                let at = 2 * index as u32;
                mesh.add_triangle(at - 2, at - 1, at);
                mesh.add_triangle(at - 1, at + 1, at);
            }
        }
        self.painter.add(mesh);
    }

    fn disc(&mut self, center: Pos2, radius: f32, fill: Color32, stroke: Stroke) {
        self.painter.circle(center, radius, fill, stroke);
    }

    fn text(&mut self, at: Pos2, align: Align2, text: &str, kind: Type, color: Color32) -> Rect {
        self.painter.text(at, align, text, kind.font(), color)
    }

    fn text_upwards(&mut self, center: Pos2, text: &str, kind: Type, color: Color32) {
        let galley = self.painter.layout_no_wrap(text.to_owned(), kind.font(), color);
        let origin = center - galley.size() / 2.0;
        let shape = eframe::epaint::TextShape::new(origin, galley, color)
            .with_angle_and_anchor(-std::f32::consts::FRAC_PI_2, Align2::CENTER_CENTER);
        self.painter.add(shape);
    }

    fn text_width(&self, text: &str, kind: Type) -> f32 {
        self.painter.layout_no_wrap(text.to_owned(), kind.font(), Color32::PLACEHOLDER).size().x
    }

    fn visible(&self) -> Rect {
        self.painter.clip_rect()
    }
}

/// Writes an SVG 1.1 document. Text stays text, in the bundled fonts' names with common fallbacks.
pub struct SvgCanvas {
    body: String,
    size: eframe::egui::Vec2,
}

impl SvgCanvas {
    /// An empty document of `size` points on `background`.
    pub fn new(size: eframe::egui::Vec2, background: Color32) -> Self {
        let mut canvas = Self { body: String::new(), size };
        canvas.rect(Rect::from_min_size(Pos2::ZERO, size), background);
        canvas
    }

    /// The finished document with its `title`.
    pub fn finish(self, title: &str) -> String {
        let (width, height) = (self.size.x, self.size.y);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\">\n<title>{}</title>\n{}</svg>\n",
            escape(title),
            self.body
        )
    }

    fn push(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = self.body.write_fmt(element);
        self.body.push('\n');
    }

    fn points(points: impl IntoIterator<Item = Pos2>) -> String {
        let mut text = String::new();
        for point in points {
            let _ = write!(text, "{:.2},{:.2} ", point.x, point.y);
        }
        text.truncate(text.trim_end().len());
        text
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn hex(color: Color32) -> String {
    let [r, g, b, _] = color.to_srgba_unmultiplied();
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// `fill="#rrggbb"`, with its opacity where it has one.
fn fill(color: Color32) -> String {
    match color.a() {
        255 => format!("fill=\"{}\"", hex(color)),
        0 => "fill=\"none\"".to_owned(),
        alpha => format!("fill=\"{}\" fill-opacity=\"{:.3}\"", hex(color), f32::from(alpha) / 255.0),
    }
}

fn line(stroke: Stroke) -> String {
    if stroke.is_empty() {
        return String::new();
    }
    let opacity = f32::from(stroke.color.a()) / 255.0;
    let color = hex(stroke.color);
    format!("stroke=\"{color}\" stroke-opacity=\"{opacity:.3}\" stroke-width=\"{}\"", stroke.width)
}

fn font(kind: Type) -> String {
    let family = if kind.is_mono() {
        "JetBrains Mono, DejaVu Sans Mono, monospace"
    } else {
        "Inter, Helvetica, Arial, sans-serif"
    };
    let weight = if kind.is_strong() { " font-weight=\"600\"" } else { "" };
    format!("font-family=\"{family}\" font-size=\"{}\"{weight}", kind.size())
}

impl Canvas for SvgCanvas {
    fn rect(&mut self, rect: Rect, color: Color32) {
        let (x, y, width, height) = (rect.left(), rect.top(), rect.width(), rect.height());
        let fill = fill(color);
        self.push(format_args!("<rect x=\"{x:.2}\" y=\"{y:.2}\" width=\"{width:.2}\" height=\"{height:.2}\" {fill}/>"));
    }

    fn frame(&mut self, rect: Rect, stroke: Stroke) {
        let rect = rect.shrink(stroke.width / 2.0);
        let (x, y, width, height) = (rect.left(), rect.top(), rect.width(), rect.height());
        let line = line(stroke);
        self.push(format_args!(
            "<rect x=\"{x:.2}\" y=\"{y:.2}\" width=\"{width:.2}\" height=\"{height:.2}\" \
             fill=\"none\" {line}/>"
        ));
    }

    fn line(&mut self, from: Pos2, to: Pos2, stroke: Stroke) {
        self.path(vec![from, to], stroke);
    }

    fn dashed(&mut self, from: Pos2, to: Pos2, stroke: Stroke) {
        let (points, line) = (Self::points([from, to]), line(stroke));
        self.push(format_args!("<polyline points=\"{points}\" stroke-dasharray=\"3 3\" {line}/>"));
    }

    fn path(&mut self, points: Vec<Pos2>, stroke: Stroke) {
        let (points, line) = (Self::points(points), line(stroke));
        self.push(format_args!("<polyline points=\"{points}\" fill=\"none\" {line}/>"));
    }

    fn area(&mut self, points: &[Pos2], base: f32, color: Color32) {
        let (Some(first), Some(last)) = (points.first(), points.last()) else {
            return;
        };
        let ends = [pos2(last.x, base), pos2(first.x, base)];
        let outline = Self::points(points.iter().copied().chain(ends));
        let fill = fill(color);
        self.push(format_args!("<polygon points=\"{outline}\" {fill}/>"));
    }

    fn disc(&mut self, center: Pos2, radius: f32, color: Color32, stroke: Stroke) {
        let (fill, line) = (fill(color), line(stroke));
        let Pos2 { x, y } = center;
        self.push(format_args!("<circle cx=\"{x:.2}\" cy=\"{y:.2}\" r=\"{radius:.2}\" {fill} {line}/>"));
    }

    fn text(&mut self, at: Pos2, align: Align2, text: &str, kind: Type, color: Color32) -> Rect {
        use eframe::egui::Align;
        let size = eframe::egui::vec2(self.text_width(text, kind), kind.size() * 1.2);
        let rect = align.anchor_size(at, size);
        let anchor = match align.x() {
            Align::Min => "start",
            Align::Center => "middle",
            Align::Max => "end",
        };
        // The baseline of these fonts lies 0.36 of the size below the middle of a line.
        let y = rect.center().y + kind.size() * 0.36;
        let (font, fill, text) = (font(kind), fill(color), escape(text));
        self.push(format_args!(
            "<text x=\"{:.2}\" y=\"{y:.2}\" text-anchor=\"{anchor}\" {font} {fill}>{text}</text>",
            at.x
        ));
        rect
    }

    fn text_upwards(&mut self, center: Pos2, text: &str, kind: Type, color: Color32) {
        let (font, fill, text) = (font(kind), fill(color), escape(text));
        let (x, y) = (center.x + kind.size() * 0.36, center.y);
        self.push(format_args!(
            "<text x=\"{x:.2}\" y=\"{y:.2}\" transform=\"rotate(-90 {x:.2} {y:.2})\" \
             text-anchor=\"middle\" {font} {fill}>{text}</text>"
        ));
    }

    fn text_width(&self, text: &str, kind: Type) -> f32 {
        // Mean advance of the bundled faces; viewers with other fonts differ a little.
        let advance = if kind.is_mono() { 0.6 } else { 0.55 };
        text.chars().count() as f32 * kind.size() * advance
    }

    fn visible(&self) -> Rect {
        Rect::from_min_size(Pos2::ZERO, self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_svg_document_escapes_its_text_and_keeps_opacity() {
        let mut canvas = SvgCanvas::new(eframe::egui::vec2(10.0, 10.0), Color32::WHITE);
        let red = Color32::from_rgba_unmultiplied(255, 0, 0, 128);
        canvas.rect(Rect::EVERYTHING.intersect(canvas.visible()), red);
        canvas.text(Pos2::ZERO, Align2::LEFT_TOP, "a < b & \"c\"", Type::Body, Color32::BLACK);
        let document = canvas.finish("x<y");
        assert!(document.contains("a &lt; b &amp; &quot;c&quot;"), "{document}");
        assert!(document.contains("fill-opacity=\"0.502\""), "{document}");
        assert!(document.contains("<title>x&lt;y</title>"), "{document}");
    }
}
