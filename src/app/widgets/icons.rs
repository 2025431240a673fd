//! Icons drawn by the painter, so that they need no glyph, scale with the text and take any colour.
//!
//! Each is drawn into the square around a centre with a given side, in lines 1.5 points wide.

use eframe::egui::{Color32, Painter, Pos2, Rect, Shape, Stroke, StrokeKind, Vec2, pos2, vec2};

/// What can be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Icon {
    Lock,
    Unlock,
    Check,
    Cross,
    /// A ring with a dash: not known, not decided.
    Undecided,
    Dash,
    Warning,
    Info,
    Search,
    Pause,
    Play,
    Close,
    Right,
    Down,
    Left,
    Up,
    More,
    Undo,
    Redo,
    Plus,
}

/// Draws `icon` centred at `center` in a square of `side` points.
pub fn paint(painter: &Painter, icon: Icon, center: Pos2, side: f32, color: Color32) {
    let unit = side / 16.0;
    let at = |x: f32, y: f32| pos2(center.x + (x - 8.0) * unit, center.y + (y - 8.0) * unit);
    let stroke = Stroke::new(1.5 * unit.max(0.7), color);
    let line = |points: &[(f32, f32)]| {
        let points = points.iter().map(|&(x, y)| at(x, y)).collect();
        painter.add(Shape::line(points, stroke));
    };
    let fill = |points: &[(f32, f32)]| {
        let points = points.iter().map(|&(x, y)| at(x, y)).collect();
        painter.add(Shape::convex_polygon(points, color, Stroke::NONE));
    };
    let arc = |x: f32, y: f32, radius: f32, from: f32, to: f32| {
        let points = (0..=16)
            .map(|step| {
                let angle = from + (to - from) * step as f32 / 16.0;
                at(x + radius * angle.cos(), y + radius * angle.sin())
            })
            .collect();
        painter.add(Shape::line(points, stroke));
    };
    use std::f32::consts::PI;
    match icon {
        Icon::Lock | Icon::Unlock => {
            let body = Rect::from_min_max(at(3.5, 7.5), at(12.5, 13.5));
            if icon == Icon::Lock {
                painter.rect_filled(body, 1.5 * unit, color);
                line(&[(5.5, 7.5), (5.5, 5.5)]);
                line(&[(10.5, 7.5), (10.5, 5.5)]);
                arc(8.0, 5.5, 2.5, PI, 2.0 * PI);
            } else {
                painter.rect_stroke(body, 1.5 * unit, stroke, StrokeKind::Inside);
                line(&[(5.5, 7.5), (5.5, 4.5)]);
                arc(8.0, 4.5, 2.5, PI, 1.9 * PI);
            }
        }
        Icon::Check => line(&[(3.5, 8.5), (6.5, 11.5), (12.5, 4.5)]),
        Icon::Cross | Icon::Close => {
            line(&[(4.5, 4.5), (11.5, 11.5)]);
            line(&[(11.5, 4.5), (4.5, 11.5)]);
        }
        Icon::Undecided => {
            painter.circle_stroke(at(8.0, 8.0), 5.5 * unit, stroke);
            line(&[(5.8, 8.0), (10.2, 8.0)]);
        }
        Icon::Dash => line(&[(4.0, 8.0), (12.0, 8.0)]),
        Icon::Warning => {
            line(&[(8.0, 2.5), (14.0, 13.0), (2.0, 13.0), (8.0, 2.5), (8.6, 3.55)]);
            line(&[(8.0, 6.5), (8.0, 9.5)]);
            painter.circle_filled(at(8.0, 11.2), 0.9 * unit, color);
        }
        Icon::Info => {
            painter.circle_stroke(at(8.0, 8.0), 5.5 * unit, stroke);
            line(&[(8.0, 7.5), (8.0, 11.0)]);
            painter.circle_filled(at(8.0, 5.3), 0.9 * unit, color);
        }
        Icon::Search => {
            painter.circle_stroke(at(7.0, 7.0), 4.0 * unit, stroke);
            line(&[(10.0, 10.0), (13.5, 13.5)]);
        }
        Icon::Pause => {
            let bar = vec2(2.6 * unit, 9.0 * unit);
            for x in [5.4, 10.6] {
                painter.rect_filled(Rect::from_center_size(at(x, 8.0), bar), 0.5 * unit, color);
            }
        }
        Icon::Play => fill(&[(4.5, 3.0), (13.0, 8.0), (4.5, 13.0)]),
        Icon::Right => fill(&[(6.0, 4.0), (11.0, 8.0), (6.0, 12.0)]),
        Icon::Left => fill(&[(10.0, 4.0), (10.0, 12.0), (5.0, 8.0)]),
        Icon::Down => fill(&[(4.0, 6.0), (12.0, 6.0), (8.0, 11.0)]),
        Icon::Up => fill(&[(8.0, 5.0), (12.0, 10.0), (4.0, 10.0)]),
        Icon::More => {
            for x in [3.5, 8.0, 12.5] {
                painter.circle_filled(at(x, 8.0), 1.2 * unit, color);
            }
        }
        Icon::Undo => {
            arc(8.5, 9.0, 4.0, PI, 2.4 * PI);
            fill(&[(1.8, 8.2), (7.2, 8.2), (4.5, 12.0)]);
        }
        Icon::Redo => {
            arc(7.5, 9.0, 4.0, 2.0 * PI, 0.6 * PI);
            fill(&[(8.8, 8.2), (14.2, 8.2), (11.5, 12.0)]);
        }
        Icon::Plus => {
            line(&[(8.0, 3.5), (8.0, 12.5)]);
            line(&[(3.5, 8.0), (12.5, 8.0)]);
        }
    }
}

/// Draws `icon` on the left edge of `rect`, centred vertically, and returns the rest of `rect`.
pub fn paint_left(painter: &Painter, icon: Icon, rect: Rect, side: f32, color: Color32) -> Rect {
    let center = pos2(rect.left() + side / 2.0, rect.center().y);
    paint(painter, icon, center, side, color);
    Rect::from_min_max(rect.min + Vec2::new(side, 0.0), rect.max)
}
