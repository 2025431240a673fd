//! Several qualities of one candidate as shares of the original's, around a circle, the smallest named: a radar
//! alone rewards the axis that is best.

use eframe::egui::{Align2, Pos2, Rect, Response, Stroke, Ui, pos2, vec2};

use super::canvas::Canvas;
use super::export::{Table, cell};
use super::{Plot, plot_ui};
use crate::app::theme::{Tokens, Type};

/// A quality over the original's; 1 is the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Spoke {
    pub name: String,
    pub share: f64,
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

    fn place(&self, rect: Rect, index: usize, share: f64) -> Pos2 {
        let angle =
            std::f32::consts::TAU * index as f32 / self.spokes.len().max(1) as f32 - std::f32::consts::FRAC_PI_2;
        let radius = (rect.height() / 2.0 - 26.0).max(10.0) * (share.clamp(0.0, RIM) / RIM) as f32;
        pos2(rect.center().x + radius * angle.cos(), rect.center().y + radius * angle.sin())
    }

    fn outline(&self, rect: Rect, share: impl Fn(usize) -> f64) -> Vec<Pos2> {
        (0..=self.spokes.len())
            .map(|index| index % self.spokes.len().max(1))
            .map(|index| self.place(rect, index, share(index)))
            .collect()
    }
}

impl Plot for Radar {
    fn title(&self) -> String {
        format!("Qualities of {} over the original's", self.name)
    }

    fn draw(&self, canvas: &mut dyn Canvas, rect: Rect, tokens: &Tokens) {
        if self.spokes.len() < 3 {
            return;
        }
        for ring in [0.25, 0.5, 0.75, 1.0, RIM] {
            let color = if ring == 1.0 { tokens.baseline } else { tokens.grid };
            canvas.path(self.outline(rect, |_| ring), Stroke::new(1.0, color));
        }
        let color = tokens.candidate(self.candidate);
        canvas.path(self.outline(rect, |index| self.spokes[index].share), Stroke::new(2.0, color));
        let least = self.least().cloned();
        for (index, spoke) in self.spokes.iter().enumerate() {
            canvas.line(rect.center(), self.place(rect, index, RIM), Stroke::new(1.0, tokens.grid));
            let is_least = least.as_ref() == Some(spoke);
            let dot = if is_least { tokens.fail } else { color };
            canvas.disc(self.place(rect, index, spoke.share), 3.5, dot, Stroke::new(1.0, dot));
            let at = self.place(rect, index, RIM);
            let align = if at.x > rect.center().x + 4.0 {
                Align2::LEFT_CENTER
            } else if at.x < rect.center().x - 4.0 {
                Align2::RIGHT_CENTER
            } else if at.y < rect.center().y {
                Align2::CENTER_BOTTOM
            } else {
                Align2::CENTER_TOP
            };
            let offset = vec2((at.x - rect.center().x).signum() * 5.0, 0.0);
            let (kind, ink) = if is_least { (Type::SmallStrong, tokens.text) } else { (Type::Small, tokens.weak) };
            let text = format!("{} {:.0} %", spoke.name, spoke.share * 100.0);
            canvas.text(at + offset, align, &text, kind, ink);
        }
    }

    fn table(&self) -> Table {
        let mut table = Table::new(&["quality", "share_of_the_original"]);
        for spoke in &self.spokes {
            table.row([spoke.name.clone(), cell(spoke.share)]);
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
    use super::*;

    #[test]
    fn the_smallest_share_is_named_and_every_spoke_is_in_the_table() {
        let spoke = |name: &str, share| Spoke { name: name.to_owned(), share };
        let radar = Radar {
            name: "small".to_owned(),
            candidate: 0,
            spokes: vec![spoke("accuracy", 0.98), spoke("worst slice", 0.7), spoke("speed", 1.9)],
        };
        assert_eq!(radar.least().map(|spoke| spoke.name.as_str()), Some("worst slice"));
        assert_eq!(radar.table().rows.len(), 3);
        let rect = Rect::from_min_size(pos2(0.0, 0.0), vec2(300.0, 200.0));
        // A share beyond the rim ends at the rim.
        assert!(radar.place(rect, 2, 9.0).distance(rect.center()) <= 75.0);
        assert_eq!(radar.outline(rect, |_| 1.0).len(), 4);
    }
}
