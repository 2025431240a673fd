//! Damage against size: the recipes and their Pareto front, the plan, and what was measured of
//! candidates. In the window it can be moved and zoomed; a file shows all of it.

use eframe::egui::{Align2, Pos2, Rect, Response, Role, Stroke, Ui, Vec2, Vec2b, WidgetInfo, pos2, vec2};
use egui_plot::{AxisHints, GridInput, GridMark, Line, MarkerShape, PlotPoint, Points};

use super::axis::Scale;
use super::canvas::{Canvas, PainterCanvas};
use super::export::{self, Table, cell};
use super::frame::{Axis, Frame, readout};
use super::labels::{self, Wanted};
use super::{Plot, nearest};
use crate::app::theme::{Tokens, Type, UiTokens as _};
use crate::app::widgets::number_with_interval;

/// What a point stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A recipe as it is.
    Recipe,
    /// The plan as it is now.
    Plan,
    /// A candidate that was evaluated, by its place in the list of runs.
    Measured(usize),
}

/// One point.
#[derive(Clone, Debug, PartialEq)]
pub struct Spot {
    /// The recipe, `plan`, or the candidate.
    pub name: String,
    /// What it stands for.
    pub kind: Kind,
    /// Bytes of all tensors.
    pub size_bytes: u64,
    /// Bits per weight, scales included.
    pub bits_per_weight: f64,
    /// The damage; what is not positive is drawn at the lower edge.
    pub damage: f64,
    /// Standard error of the damage, where it was measured.
    pub stderr: Option<f64>,
}

impl Spot {
    /// Mebibytes of all tensors.
    pub fn size_mib(&self) -> f64 {
        self.size_bytes as f64 / f64::from(1 << 20)
    }
}

/// The points of one picture.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frontier {
    /// What is moved and zoomed together: another checkpoint or metric starts afresh.
    pub salt: String,
    /// What stands at the vertical axis: `KLD sum, nats, predicted`.
    pub axis: String,
    /// Unit of the damage; empty for a ratio.
    pub unit: &'static str,
    /// In any order.
    pub spots: Vec<Spot>,
    /// The best that a planner finds, as bytes and damage by rising bytes; may be empty.
    pub curve: Vec<(u64, f64)>,
}

impl Frontier {
    /// Indices of the recipes that no other beats in both size and damage, by growing size.
    pub fn front(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.spots.len())
            .filter(|&index| self.spots[index].kind == Kind::Recipe && self.spots[index].damage.is_finite())
            .collect();
        order.sort_by(|&one, &other| {
            let (one, other) = (&self.spots[one], &self.spots[other]);
            one.size_bytes.cmp(&other.size_bytes).then(one.damage.total_cmp(&other.damage))
        });
        let mut least = f64::INFINITY;
        order.retain(|&index| {
            let is_better = self.spots[index].damage < least;
            least = least.min(self.spots[index].damage);
            is_better
        });
        order
    }

    /// The damage as drawn: a logarithmic axis has no place for nothing.
    fn drawn(&self, damage: f64) -> f64 {
        damage.max(self.floor())
    }

    /// Below every damage that can be drawn.
    fn floor(&self) -> f64 {
        let least = self.spots.iter().map(|spot| spot.damage).filter(|damage| *damage > 0.0).fold(f64::MAX, f64::min);
        if least < f64::MAX { least * 0.5 } else { 1e-6 }
    }

    /// The planner's curve as mebibytes and drawn damage.
    fn drawn_curve(&self) -> impl Iterator<Item = (f64, f64)> {
        self.curve.iter().map(|&(bytes, damage)| (bytes as f64 / f64::from(1 << 20), self.drawn(damage)))
    }

    /// Both ends of a measured point's bar.
    fn interval(&self, spot: &Spot) -> Option<(f64, f64)> {
        let stderr = spot.stderr.filter(|stderr| *stderr > 0.0)?;
        Some((self.drawn(spot.damage - stderr), self.drawn(spot.damage + stderr)))
    }

    fn axes(&self) -> (Axis, Axis) {
        let size = Scale::around(self.spots.iter().map(Spot::size_mib), 0.1);
        let damage = self.spots.iter().flat_map(|spot| {
            let (low, high) = self.interval(spot).unwrap_or((self.drawn(spot.damage), self.drawn(spot.damage)));
            [low, high]
        });
        let damage = damage.chain(self.drawn_curve().map(|point| point.1));
        let damage = Scale::log_around(damage, 1.6);
        (Axis { scale: size, name: SIZE.to_owned() }, Axis { scale: damage, name: self.axis.clone() })
    }

    /// Names that touch nothing; the plan first, then what one chooses from, then what was measured.
    fn label(&self, canvas: &mut dyn Canvas, bounds: Rect, tokens: &Tokens, at: impl Fn(&Spot) -> Pos2) {
        let front = self.front();
        let own = self.spots.iter().find(|spot| spot.kind == Kind::Plan);
        let mut order: Vec<usize> = (0..self.spots.len())
            .filter(|&index| {
                let spot = &self.spots[index];
                // A recipe under the plan's point is named there.
                let is_under = own.is_some_and(|own| (own.size_bytes, own.damage) == (spot.size_bytes, spot.damage));
                bounds.contains(at(spot)) && (spot.kind == Kind::Plan || !is_under)
            })
            .collect();
        order.sort_by_key(|index| match self.spots[*index].kind {
            Kind::Plan => 0,
            Kind::Measured(_) => 1,
            Kind::Recipe if front.contains(index) => 2,
            Kind::Recipe => 3,
        });
        let type_of = |spot: &Spot| if spot.kind == Kind::Plan { Type::SmallStrong } else { Type::Small };
        let wanted: Vec<Wanted> = order
            .iter()
            .map(|&index| {
                let spot = &self.spots[index];
                let size = vec2(canvas.text_width(&spot.name, type_of(spot)), 13.0);
                Wanted { point: at(spot), radius: radius(spot.kind), size }
            })
            .collect();
        for (place, index) in labels::place(&wanted, &[], bounds).into_iter().zip(order) {
            let spot = &self.spots[index];
            if let Some(place) = place {
                canvas.text(place.center(), Align2::CENTER_CENTER, &spot.name, type_of(spot), tokens.text);
            }
        }
    }

    fn readout(&self, ui: &Ui, bounds: Rect, pointer: Pos2, spot: &Spot) {
        let damage = number_with_interval(spot.damage, spot.stderr.unwrap_or(0.0), self.unit).text();
        let how = if matches!(spot.kind, Kind::Measured(_)) { "KLD, measured" } else { self.axis.as_str() };
        let lines = [
            ("size, MiB", format!("{:.3}", spot.size_mib())),
            ("bits per weight", format!("{:.2}", spot.bits_per_weight)),
            (how, damage),
        ];
        readout(ui, bounds, pointer, &spot.name, &lines);
    }
}

const SIZE: &str = "size of all tensors, MiB";

fn radius(kind: Kind) -> f32 {
    match kind {
        Kind::Recipe => 4.0,
        Kind::Plan => 6.5,
        Kind::Measured(_) => 5.5,
    }
}

fn color(kind: Kind, tokens: &Tokens) -> eframe::egui::Color32 {
    match kind {
        Kind::Recipe => tokens.baseline,
        Kind::Plan => tokens.accent,
        Kind::Measured(index) => tokens.candidate(index),
    }
}

impl Plot for Frontier {
    fn title(&self) -> String {
        format!("Damage against size of the recipes, {}", self.axis)
    }

    fn draw(&self, canvas: &mut dyn Canvas, rect: Rect, tokens: &Tokens) {
        let (x, y) = self.axes();
        let frame = Frame::new(canvas, rect, &x, &y);
        frame.draw(canvas, rect, &x, &y, tokens);
        let at = |spot: &Spot| frame.at(spot.size_mib(), self.drawn(spot.damage));
        let line = self.front().into_iter().map(|index| &self.spots[index]).filter(|spot| spot.damage > 0.0).map(at);
        canvas.path(line.collect(), Stroke::new(1.25, tokens.tint(tokens.baseline, 0.7)));
        let best = self.drawn_curve().map(|(size, damage)| frame.at(size, damage));
        canvas.path(best.collect(), Stroke::new(1.5, tokens.tint(tokens.accent, 0.8)));
        for spot in in_order(&self.spots) {
            let (center, radius, color) = (at(spot), radius(spot.kind), color(spot.kind, tokens));
            if let Some((low, high)) = self.interval(spot) {
                let x = spot.size_mib();
                canvas.line(frame.at(x, low), frame.at(x, high), Stroke::new(1.5, color));
            }
            if matches!(spot.kind, Kind::Measured(_)) {
                let corner = |x: f32, y: f32| pos2(center.x + x * radius, center.y + y * radius);
                let corners = [corner(0.0, -1.0), corner(1.0, 0.0), corner(0.0, 1.0), corner(-1.0, 0.0)];
                let closed = corners.into_iter().chain(corners.into_iter().take(2));
                canvas.path(closed.collect(), Stroke::new(2.0, color));
            } else {
                canvas.disc(center, radius, color, Stroke::new(1.0, tokens.panel));
            }
        }
        self.label(canvas, frame.inner.expand2(vec2(4.0, 4.0)), tokens, at);
    }

    fn table(&self) -> Table {
        let mut table =
            Table::new(&["name", "kind", "size_bytes", "bits_per_weight", "damage", "stderr", "damage_label"]);
        for spot in &self.spots {
            let (kind, label) = match spot.kind {
                Kind::Recipe => ("recipe", self.axis.as_str()),
                Kind::Plan => ("plan", self.axis.as_str()),
                Kind::Measured(_) => ("candidate", "KLD, nats, measured"),
            };
            table.row([
                spot.name.clone(),
                kind.to_owned(),
                spot.size_bytes.to_string(),
                cell(spot.bits_per_weight),
                cell(spot.damage),
                spot.stderr.map(cell).unwrap_or_default(),
                label.to_owned(),
            ]);
        }
        for &(bytes, damage) in &self.curve {
            let [name, kind] = ["", "planner"].map(str::to_owned);
            table.row([name, kind, bytes.to_string(), String::new(), cell(damage), String::new(), self.axis.clone()]);
        }
        table
    }
}

/// Recipes first, so that the plan and what was measured lie on top of them.
fn in_order(spots: &[Spot]) -> impl Iterator<Item = &Spot> {
    let is_recipe = |spot: &&Spot| spot.kind == Kind::Recipe;
    spots.iter().filter(is_recipe).chain(spots.iter().filter(move |spot| !is_recipe(spot)))
}

/// The scale behind an axis that carries logarithms to base 10.
fn decades(low: f64, high: f64) -> Scale {
    Scale::log(10f64.powf(low), 10f64.powf(high))
}

fn ticks_of(scale: Scale, is_log: bool) -> Vec<(f64, String)> {
    let ticks = scale.ticks(5).into_iter();
    ticks.map(|tick| (if is_log { tick.value.log10() } else { tick.value }, tick.label)).collect()
}

/// Grid lines at round values; the step tells egui_plot how much room a label has.
fn marks(scale: Scale, is_log: bool) -> Vec<GridMark> {
    let ticks = ticks_of(scale, is_log);
    let step = ticks.windows(2).map(|pair| pair[1].0 - pair[0].0).fold(f64::INFINITY, f64::min);
    let step_size = if step.is_finite() { step } else { 1.0 };
    ticks.into_iter().map(|(value, _)| GridMark { value, step_size }).collect()
}

fn mark_text(mark: GridMark, scale: Scale, is_log: bool) -> String {
    let near = |value: f64| (value - mark.value).abs() <= mark.step_size.abs() * 1e-3;
    ticks_of(scale, is_log).into_iter().find(|tick| near(tick.0)).map(|tick| tick.1).unwrap_or_default()
}

/// Draws the frontier as wide as there is room. Dragging moves it, Ctrl with the wheel zooms, a double
/// click shows all of it. Returns its response and the index of a point that was clicked.
pub fn frontier_ui(ui: &mut Ui, frontier: &Frontier, height: f32) -> (Response, Option<usize>) {
    let tokens = ui.tokens();
    let hints = |axis: AxisHints<'static>| {
        axis.tick_label_color(tokens.weak).tick_label_font(Type::Small.font()).label_spacing(6.0..=7.0)
    };
    let across = hints(AxisHints::new_x())
        .label(Type::Small.text(SIZE).color(tokens.weak))
        .formatter(|mark, range| mark_text(mark, Scale::linear(*range.start(), *range.end()), false));
    let upwards = hints(AxisHints::new_y())
        .label(Type::Small.text(&frontier.axis).color(tokens.weak))
        .formatter(|mark, range| mark_text(mark, decades(*range.start(), *range.end()), true));
    let place = |spot: &Spot| [spot.size_mib(), frontier.drawn(spot.damage).log10()];
    let plot = egui_plot::Plot::new(("frontier", &frontier.salt))
        .height(height)
        .show_background(false)
        .show_crosshair(false)
        .allow_scroll(false)
        .auto_bounds(Vec2b::TRUE)
        .set_margin_fraction(Vec2::splat(0.14))
        .grid_color(tokens.grid)
        .grid_fade(0.0)
        .grid_spacing(6.0..=7.0)
        .x_grid_spacer(|input: GridInput| marks(Scale::linear(input.bounds.0, input.bounds.1), false))
        .y_grid_spacer(|input: GridInput| marks(decades(input.bounds.0, input.bounds.1), true))
        .custom_x_axes(vec![across])
        .custom_y_axes(vec![upwards])
        // The numbers under the pointer look the same in every plot: see `readout` below.
        .label_formatter(|_| None);
    let shown = plot.show(ui, |plot| {
        let line: Vec<[f64; 2]> = frontier
            .front()
            .into_iter()
            .map(|index| &frontier.spots[index])
            .filter(|s| s.damage > 0.0)
            .map(place)
            .collect();
        let stroke = Stroke::new(1.25, tokens.tint(tokens.baseline, 0.7));
        plot.line(Line::new("Pareto front of the recipes", line).stroke(stroke).allow_hover(false));
        let best: Vec<[f64; 2]> = frontier.drawn_curve().map(|(size, damage)| [size, damage.log10()]).collect();
        let stroke = Stroke::new(1.5, tokens.tint(tokens.accent, 0.8));
        plot.line(Line::new("Best that the planner finds", best).stroke(stroke).allow_hover(false));
        for spot in in_order(&frontier.spots) {
            let color = color(spot.kind, tokens);
            if let Some((low, high)) = frontier.interval(spot) {
                let x = spot.size_mib();
                let bar = vec![[x, low.log10()], [x, high.log10()]];
                let name = format!("{}, interval", spot.name);
                plot.line(Line::new(name, bar).stroke(Stroke::new(1.5, color)).allow_hover(false));
            }
            let shape = match spot.kind {
                Kind::Measured(_) => MarkerShape::Diamond,
                _ => MarkerShape::Circle,
            };
            let points = Points::new(spot.name.as_str(), vec![place(spot)]).shape(shape).radius(radius(spot.kind));
            plot.points(points.color(color).allow_hover(false));
        }
    });
    let response = shown.response;
    response.widget_info(|| WidgetInfo::labeled(Role::Figure, true, frontier.title()));
    let transform = shown.transform;
    let bounds = *transform.frame();
    let at = |spot: &Spot| {
        let [x, y] = place(spot);
        transform.position_from_point(&PlotPoint::new(x, y))
    };
    let painter = ui.painter_at(bounds);
    frontier.label(&mut PainterCanvas::new(&painter), bounds, tokens, at);
    let mut clicked = None;
    if let Some(pointer) = response.hover_pos() {
        // What lies on top is meant where points share a place, except that a recipe can be chosen.
        let points = frontier.spots.iter().map(at);
        if let Some(index) = nearest(pointer, points, 20.0) {
            frontier.readout(ui, bounds, pointer, &frontier.spots[index]);
            clicked = response.clicked().then_some(index);
        }
    }
    export::offer_ui(ui, &response, frontier);
    (response, clicked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spot(name: &str, kind: Kind, size_bytes: u64, damage: f64) -> Spot {
        Spot { name: name.to_owned(), kind, size_bytes, bits_per_weight: 4.5, damage, stderr: None }
    }

    fn frontier() -> Frontier {
        let mut measured = spot("c1", Kind::Measured(0), 3 << 20, 0.02);
        measured.stderr = Some(0.05);
        Frontier {
            salt: "s".to_owned(),
            axis: "KLD sum, nats, predicted".to_owned(),
            unit: "nats",
            spots: vec![
                spot("big", Kind::Recipe, 8 << 20, 0.0),
                spot("beaten", Kind::Recipe, 5 << 20, 0.2),
                spot("small", Kind::Recipe, 2 << 20, 0.3),
                spot("middle", Kind::Recipe, 4 << 20, 0.1),
                spot("plan", Kind::Plan, 4 << 20, 0.1),
                measured,
            ],
            curve: vec![(2 << 20, 0.25), (4 << 20, 0.05), (8 << 20, 0.0)],
        }
    }

    #[test]
    fn the_front_holds_recipes_that_no_recipe_beats_by_growing_size() {
        let frontier = frontier();
        let names: Vec<&str> = frontier.front().into_iter().map(|index| frontier.spots[index].name.as_str()).collect();
        assert_eq!(names, ["small", "middle", "big"]);
    }

    #[test]
    fn no_damage_and_wide_intervals_are_drawn_above_the_floor() {
        let frontier = frontier();
        assert_eq!(frontier.drawn(0.0), 0.01);
        let (low, high) = frontier.interval(&frontier.spots[5]).expect("measured");
        assert_eq!((low, high), (0.01, 0.07));
        assert!(frontier.interval(&frontier.spots[0]).is_none());
    }

    #[test]
    fn ticks_of_the_logarithmic_axis_show_values() {
        let scale = decades(-2.2, 0.4);
        let texts: Vec<String> = marks(scale, true).into_iter().map(|mark| mark_text(mark, scale, true)).collect();
        assert_eq!(texts, ["0.01", "0.1", "1"]);
        for (low, high) in [(-400.0, 400.0), (1.0, 1.0), (f64::NAN, 2.0), (3.0, 3.0 + 1e-15)] {
            assert!(marks(decades(low, high), true).iter().all(|mark| !mark.value.is_nan()));
        }
    }

    #[test]
    fn a_file_names_the_plan_once_and_says_what_is_predicted() {
        let frontier = frontier();
        let svg = export::svg(&frontier, vec2(640.0, 320.0), Tokens::dark());
        assert!(svg.contains(">plan<") && svg.contains(">small<") && !svg.contains(">middle<"), "{svg}");
        let csv = frontier.table().csv();
        assert!(csv.contains("c1,candidate,3145728,4.5,0.02,0.05,\"KLD, nats, measured\""), "{csv}");
        assert!(csv.contains("\"KLD sum, nats, predicted\""));
        assert!(csv.contains(",planner,4194304,,0.05,,"), "{csv}");
    }
}
