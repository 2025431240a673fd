//! Several qualities of one candidate as shares of the original's, around a circle, the smallest named: a radar
//! alone rewards the axis that is best.

use eframe::egui::{Align, Align2, Pos2, Rect, Response, Stroke, Ui, Vec2, vec2};

use super::canvas::Canvas;
use super::export::{Table, cell};
use super::{Plot, plot_ui};
use crate::app::theme::{Tokens, Type};

/// A quality over the original's; 1 is the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Spoke {
    pub name: String,
    /// Larger is better.
    pub share: f64,
    /// The quality in words that say which way it went: `4.55× smaller`.
    pub words: String,
}

/// A candidate's qualities.
#[derive(Clone, Debug)]
pub struct Radar {
    pub name: String,
    /// Which candidate, for the colour.
    pub candidate: usize,
    /// At least three.
    pub spokes: Vec<Spoke>,
}

/// Share at the rim: what is better than the original still has a place.
const RIM: f64 = 1.25;

impl Radar {
    /// The smallest share.
    pub fn least(&self) -> Option<&Spoke> {
        self.spokes.iter().min_by(|a, b| a.share.total_cmp(&b.share))
    }

    /// Radius that leaves room for the words around it.
    fn radius(&self, canvas: &dyn Canvas, rect: Rect) -> f32 {
        let width = |spoke: &Spoke| canvas.text_width(&spoke.words, Type::SmallStrong);
        let widest = self.spokes.iter().map(width).fold(0.0, f32::max);
        // The words at the sides stand at the outermost spokes.
        let beside = (rect.width() / 2.0 - widest - 8.0) / self.reach();
        (rect.height() / 2.0 - 26.0).min(beside).max(24.0)
    }

    /// How far the spokes reach to the sides, of a radius of 1; those straight up and down have their words above
    /// and below.
    fn reach(&self) -> f32 {
        (0..self.spokes.len()).map(|index| self.direction(index).x.abs()).fold(0.1, f32::max)
    }

    fn direction(&self, index: usize) -> Vec2 {
        let angle =
            std::f32::consts::TAU * index as f32 / self.spokes.len().max(1) as f32 - std::f32::consts::FRAC_PI_2;
        vec2(angle.cos(), angle.sin())
    }

    fn place(&self, center: Pos2, radius: f32, index: usize, share: f64) -> Pos2 {
        center + self.direction(index) * radius * (share.clamp(0.0, RIM) / RIM) as f32
    }

    fn outline(&self, center: Pos2, radius: f32, share: impl Fn(usize) -> f64) -> Vec<Pos2> {
        (0..=self.spokes.len())
            .map(|index| index % self.spokes.len().max(1))
            .map(|index| self.place(center, radius, index, share(index)))
            .collect()
    }
}

impl Plot for Radar {
    fn title(&self) -> String {
        format!("Qualities of {} beside the original", self.name)
    }

    fn draw(&self, canvas: &mut dyn Canvas, rect: Rect, tokens: &Tokens) {
        if self.spokes.len() < 3 {
            return;
        }
        let (center, radius) = (rect.center(), self.radius(canvas, rect));
        for ring in [0.25, 0.5, 0.75, 1.0, RIM] {
            let color = if ring == 1.0 { tokens.baseline } else { tokens.grid };
            canvas.path(self.outline(center, radius, |_| ring), Stroke::new(1.0, color));
        }
        let color = tokens.candidate(self.candidate);
        canvas.path(self.outline(center, radius, |index| self.spokes[index].share), Stroke::new(2.0, color));
        let least = self.least().cloned();
        for (index, spoke) in self.spokes.iter().enumerate() {
            canvas.line(center, self.place(center, radius, index, RIM), Stroke::new(1.0, tokens.grid));
            let is_least = least.as_ref() == Some(spoke);
            let dot = if is_least { tokens.fail } else { color };
            canvas.disc(self.place(center, radius, index, spoke.share), 3.5, dot, Stroke::new(1.0, dot));
            let at = self.place(center, radius, index, RIM);
            let align = if at.x > rect.center().x + 4.0 {
                Align2::LEFT_CENTER
            } else if at.x < rect.center().x - 4.0 {
                Align2::RIGHT_CENTER
            } else if at.y < rect.center().y {
                Align2::CENTER_BOTTOM
            } else {
                Align2::CENTER_TOP
            };
            let offset = if align.x() == Align::Center { 0.0 } else { (at.x - center.x).signum() * 5.0 };
            let (kind, ink) = if is_least { (Type::SmallStrong, tokens.text) } else { (Type::Small, tokens.weak) };
            // Words that are wider than their room begin or end at the edge.
            let width = canvas.text_width(&spoke.words, kind);
            let words = align.anchor_size(at + vec2(offset, 0.0), vec2(width, 0.0));
            let shift = (rect.left() + 1.0 - words.left()).max(0.0) - (words.right() - rect.right() + 1.0).max(0.0);
            canvas.text(at + vec2(offset + shift, 0.0), align, &spoke.words, kind, ink);
        }
    }

    fn table(&self) -> Table {
        let mut table = Table::new(&["quality", "share_of_the_original", "in_words"]);
        for spoke in &self.spokes {
            table.row([spoke.name.clone(), cell(spoke.share), spoke.words.clone()]);
        }
        table
    }
}

/// Draws the radar as wide as there is room.
pub fn radar_ui(ui: &mut Ui, radar: &Radar, height: f32) -> Response {
    let size = vec2(ui.available_width(), height);
    plot_ui(ui, radar, size)
}

#[cfg(test)]
mod tests {
    use super::super::canvas::SvgCanvas;
    use super::*;
    use eframe::egui::{Color32, pos2};

    #[test]
    fn the_smallest_share_is_named_and_every_spoke_is_in_the_table() {
        let spoke = |name: &str, share| Spoke { name: name.to_owned(), share, words: format!("{name} {share}") };
        let radar = Radar {
            name: "small".to_owned(),
            candidate: 0,
            spokes: vec![spoke("accuracy", 0.98), spoke("worst slice", 0.7), spoke("speed", 1.9)],
        };
        assert_eq!(radar.least().map(|spoke| spoke.name.as_str()), Some("worst slice"));
        assert_eq!(radar.table().rows.len(), 3);
        let center = pos2(150.0, 100.0);
        // A share beyond the rim ends at the rim.
        assert!(radar.place(center, 75.0, 2, 9.0).distance(center) <= 75.001);
        assert_eq!(radar.outline(center, 75.0, |_| 1.0).len(), 4);
    }

    #[test]
    fn no_word_leaves_the_plot() {
        let spoke =
            |name: &str| Spoke { name: name.to_owned(), share: 1.0, words: format!("{name} as it is measured") };
        let spokes = ["accuracy", "worst slice", "same top token", "perplexity", "size", "decode speed"].map(spoke);
        let radar = Radar { name: "small".to_owned(), candidate: 0, spokes: spokes.into() };
        for width in [250.0, 380.0, 900.0] {
            let size = vec2(width, 260.0);
            let mut canvas = Extent { inner: SvgCanvas::new(size, Tokens::of(true).panel), words: Vec::new() };
            radar.draw(&mut canvas, Rect::from_min_size(Pos2::ZERO, size), Tokens::of(true));
            assert_eq!(canvas.words.len(), 6);
            for words in canvas.words {
                assert!(words.left() >= 0.0 && words.right() <= width, "{width}: {words:?}");
            }
        }
    }

    /// Remembers where words were drawn.
    struct Extent {
        inner: SvgCanvas,
        words: Vec<Rect>,
    }

    impl Canvas for Extent {
        fn rect(&mut self, rect: Rect, fill: Color32) {
            self.inner.rect(rect, fill);
        }

        fn frame(&mut self, rect: Rect, stroke: Stroke) {
            self.inner.frame(rect, stroke);
        }

        fn line(&mut self, from: Pos2, to: Pos2, stroke: Stroke) {
            self.inner.line(from, to, stroke);
        }

        fn dashed(&mut self, from: Pos2, to: Pos2, stroke: Stroke) {
            self.inner.dashed(from, to, stroke);
        }

        fn path(&mut self, points: Vec<Pos2>, stroke: Stroke) {
            self.inner.path(points, stroke);
        }

        fn area(&mut self, points: &[Pos2], base: f32, fill: Color32) {
            self.inner.area(points, base, fill);
        }

        fn disc(&mut self, center: Pos2, radius: f32, fill: Color32, stroke: Stroke) {
            self.inner.disc(center, radius, fill, stroke);
        }

        fn text(&mut self, at: Pos2, align: Align2, text: &str, kind: Type, color: Color32) -> Rect {
            let drawn = self.inner.text(at, align, text, kind, color);
            self.words.push(drawn);
            drawn
        }

        fn text_upwards(&mut self, center: Pos2, text: &str, kind: Type, color: Color32) {
            self.inner.text_upwards(center, text, kind, color);
        }

        fn text_width(&self, text: &str, kind: Type) -> f32 {
            self.inner.text_width(text, kind)
        }

        fn visible(&self) -> Rect {
            self.inner.visible()
        }
    }
}
