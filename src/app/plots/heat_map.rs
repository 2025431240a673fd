//! The map of damage: roles down, layers across, one metric at a time, totals at the edges, and the
//! scale drawn beside it with the noise floor marked on it.

use std::ops::Range;

use eframe::egui::{Align2, Color32, Pos2, Rect, Response, Role, Sense, Stroke, Ui, WidgetInfo, pos2, vec2};

use super::canvas::{Canvas, PainterCanvas};
use super::export::{self, Table, cell};
use super::frame::readout;
use super::{Plot, axis::Scale};
use crate::app::theme::{Damage, Tokens, Type, UiTokens as _, space};
use crate::app::widgets::icons::{self, Icon};
use crate::app::widgets::number_with_interval;
use crate::engine::units;

/// One measured cell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    /// The metric's value.
    pub value: f64,
    /// Its standard error; none where the metric has none.
    pub stderr: Option<f64>,
}

/// How the edges sum up a row or a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// Damages that add up, such as KLD of one tensor at a time.
    Sum,
    /// Ratios, such as relative errors.
    Mean,
}

/// The whole map, prepared once when results change.
#[derive(Clone, Debug)]
pub struct HeatMap {
    /// What is measured: `KLD, measured (weights only)`.
    pub metric: String,
    /// Its unit; may be empty.
    pub unit: String,
    /// Under which treatment: `q4_k`; empty where there is but one.
    pub format: String,
    /// Roles, from the top.
    pub rows: Vec<String>,
    /// Layers, from the left.
    pub columns: Vec<String>,
    /// Row by row; none where there is no such tensor.
    pub cells: Vec<Slot>,
    /// Values below it cannot be told from noise.
    pub noise_floor: Option<f64>,
    /// How edges sum up.
    pub edge: Edge,
}

/// A place of the map.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Slot {
    /// The model has no such tensor.
    #[default]
    Absent,
    /// Not measured yet: hatched.
    Pending,
    /// Measured.
    Done(Cell),
}

impl Slot {
    /// The cell, where it is measured.
    pub fn cell(self) -> Option<Cell> {
        if let Self::Done(cell) = self { Some(cell) } else { None }
    }
}

/// Sum or mean of the measured slots with its standard error; none where nothing is measured.
pub fn edge_of(slots: impl IntoIterator<Item = Slot>, edge: Edge) -> Option<Cell> {
    let (mut count, mut sum, mut variance, mut has_error) = (0usize, 0.0, 0.0, false);
    for cell in slots.into_iter().filter_map(Slot::cell) {
        count += 1;
        sum += cell.value;
        if let Some(stderr) = cell.stderr {
            has_error = true;
            variance += stderr * stderr;
        }
    }
    if count == 0 {
        return None;
    }
    let divisor = if edge == Edge::Mean { count as f64 } else { 1.0 };
    Some(Cell { value: sum / divisor, stderr: has_error.then(|| variance.sqrt() / divisor) })
}

impl HeatMap {
    /// The slot at a row and a column.
    pub fn slot(&self, row: usize, column: usize) -> Slot {
        self.cells.get(row * self.columns.len() + column).copied().unwrap_or_default()
    }

    /// The colour scale that fits what is measured so far.
    pub fn scale(&self) -> Option<Damage> {
        Damage::fit(self.cells.iter().filter_map(|slot| Some(slot.cell()?.value)))
    }

    fn row_edge(&self, row: usize) -> Option<Cell> {
        edge_of((0..self.columns.len()).map(|column| self.slot(row, column)), self.edge)
    }

    fn column_edge(&self, column: usize) -> Option<Cell> {
        edge_of((0..self.rows.len()).map(|row| self.slot(row, column)), self.edge)
    }

    fn edge_word(&self) -> &'static str {
        match self.edge {
            Edge::Sum => "sum",
            Edge::Mean => "mean",
        }
    }

    fn geometry(&self, canvas: &dyn Canvas, rect: Rect) -> Geometry {
        let names = self.rows.iter().map(|row| canvas.text_width(row, Type::Small)).fold(30.0, f32::max) + space::S;
        let (rows, columns) = (self.rows.len().max(1), self.columns.len().max(1));
        // From the right: the scale's ticks and bar, then the sums of the rows.
        let legend = 104.0;
        let sums = 62.0;
        let left = rect.left() + names;
        let width = rect.right() - legend - sums - left;
        let step_x = (width / columns as f32).clamp(3.0, 96.0);
        let top = rect.top() + 20.0;
        let room = rect.bottom() - top - 36.0;
        let step_y = (room / rows as f32).clamp(12.0, 34.0);
        let size = vec2(step_x * columns as f32, step_y * rows as f32);
        let grid = Rect::from_min_size(pos2(left, top), size);
        Geometry { grid, step_x, step_y }
    }

    fn draw_slot(&self, canvas: &mut dyn Canvas, rect: Rect, slot: Slot, scale: Option<&Damage>, tokens: &Tokens) {
        match (slot, scale) {
            (Slot::Absent, _) => {
                let kind = Type::Small;
                canvas.text(rect.center(), Align2::CENTER_CENTER, "–", kind, tokens.outline);
            }
            (Slot::Done(cell), Some(scale)) => {
                let color = scale.color(tokens, cell.value);
                canvas.rect(rect, color);
                if rect.width() >= 44.0 && rect.height() >= 14.0 {
                    let (kind, text) = (Type::MonoSmall, compact(cell.value));
                    let ink = tokens.text_on(color);
                    canvas.text(rect.center(), Align2::CENTER_CENTER, &text, kind, ink);
                }
            }
            _ => hatch(canvas, rect, tokens),
        }
    }

    fn draw_legend(&self, canvas: &mut dyn Canvas, rect: Rect, scale: &Damage, tokens: &Tokens) {
        let steps = 64;
        let step = rect.height() / steps as f32;
        for index in 0..steps {
            let unit = 1.0 - (index as f32 + 0.5) / steps as f32;
            let top = rect.top() + step * index as f32;
            // A little overlap, so that no seams show.
            let strip = Rect::from_min_size(pos2(rect.left(), top), vec2(rect.width(), step + 0.5));
            canvas.rect(strip.intersect(rect), Damage::at(tokens, unit));
        }
        canvas.frame(rect, Stroke::new(1.0, tokens.hairline));
        let axis = Scale { min: scale.min, max: scale.max, is_log: scale.is_log };
        for tick in axis.ticks((rect.height() / 28.0) as usize) {
            let y = rect.bottom() - rect.height() * axis.unit(tick.value) as f32;
            let (from, to) = (pos2(rect.right(), y), pos2(rect.right() + 3.0, y));
            canvas.line(from, to, Stroke::new(1.0, tokens.outline));
            let place = pos2(rect.right() + 6.0, y);
            canvas.text(place, Align2::LEFT_CENTER, &tick.label, Type::Small, tokens.weak);
        }
        if let Some(floor) = self.noise_floor {
            let unit = axis.unit(floor);
            if (0.0..=1.0).contains(&unit) {
                let y = rect.bottom() - rect.height() * unit as f32;
                let stroke = Stroke::new(1.5, tokens.accent);
                canvas.line(pos2(rect.left() - 5.0, y), pos2(rect.right(), y), stroke);
                let place = pos2(rect.left() - 7.0, y);
                let kind = Type::Small;
                canvas.text(place, Align2::RIGHT_CENTER, "noise", kind, tokens.accent);
            }
        }
    }

    fn draw_all(&self, canvas: &mut dyn Canvas, rect: Rect, tokens: &Tokens) {
        let geometry = self.geometry(canvas, rect);
        let grid = geometry.grid;
        let scale = self.scale();
        // Column names, thinned where they are narrow.
        let widest = self.columns.iter().map(|c| canvas.text_width(c, Type::Small)).fold(8.0, f32::max);
        let stride = ((widest + 4.0) / geometry.step_x).ceil().max(1.0) as usize;
        for (column, name) in self.columns.iter().enumerate().step_by(stride) {
            let x = geometry.cell(0, column).center().x;
            let place = pos2(x, grid.top() - 3.0);
            canvas.text(place, Align2::CENTER_BOTTOM, name, Type::Small, tokens.weak);
        }
        let sums_x = grid.right() + 56.0;
        let head = pos2(sums_x, grid.top() - 3.0);
        let word = self.edge_word();
        canvas.text(head, Align2::RIGHT_BOTTOM, word, Type::SmallStrong, tokens.weak);
        for (row, name) in self.rows.iter().enumerate() {
            let line = geometry.cell(row, 0);
            let place = pos2(grid.left() - space::S, line.center().y);
            canvas.text(place, Align2::RIGHT_CENTER, name, Type::Small, tokens.text);
            for column in 0..self.columns.len() {
                let place = geometry.cell(row, column).shrink(0.5);
                self.draw_slot(canvas, place, self.slot(row, column), scale.as_ref(), tokens);
            }
            if let Some(edge) = self.row_edge(row) {
                let (kind, text) = (Type::MonoSmall, compact(edge.value));
                let place = pos2(sums_x, line.center().y);
                canvas.text(place, Align2::RIGHT_CENTER, &text, kind, tokens.text);
            }
        }
        canvas.frame(grid, Stroke::new(1.0, tokens.hairline));
        self.draw_column_edges(canvas, &geometry, tokens);
        if let Some(scale) = &scale {
            let legend = Rect::from_min_max(
                pos2(sums_x + 52.0, grid.top()),
                pos2(sums_x + 64.0, grid.bottom().max(grid.top() + 110.0)),
            );
            let head = pos2(legend.left(), grid.top() - 3.0);
            canvas.text(head, Align2::LEFT_BOTTOM, &self.unit, Type::Small, tokens.weak);
            self.draw_legend(canvas, legend, scale, tokens);
        }
    }

    fn draw_column_edges(&self, canvas: &mut dyn Canvas, geometry: &Geometry, tokens: &Tokens) {
        let grid = geometry.grid;
        let y = grid.bottom() + 12.0;
        let place = pos2(grid.left() - space::S, y);
        let word = self.edge_word();
        canvas.text(place, Align2::RIGHT_CENTER, word, Type::SmallStrong, tokens.weak);
        let edges: Vec<Option<Cell>> = (0..self.columns.len()).map(|column| self.column_edge(column)).collect();
        let can_write = geometry.step_x >= 50.0;
        let tallest = edges.iter().flatten().map(|edge| edge.value).fold(0.0, f64::max);
        for (column, edge) in edges.iter().enumerate() {
            let Some(edge) = edge else { continue };
            let x = geometry.cell(0, column).center().x;
            if can_write {
                let (kind, text) = (Type::MonoSmall, compact(edge.value));
                canvas.text(pos2(x, y), Align2::CENTER_CENTER, &text, kind, tokens.text);
            } else if tallest > 0.0 {
                // Many layers: bars instead of figures.
                let height = 22.0 * (edge.value / tallest) as f32;
                let size = vec2((geometry.step_x - 1.0).max(1.0), height.max(1.0));
                let bar = Rect::from_min_size(pos2(x - size.x / 2.0, grid.bottom() + 4.0), size);
                canvas.rect(bar, tokens.baseline);
            }
        }
    }
}

/// Where the cells are.
#[derive(Clone, Copy, Debug)]
struct Geometry {
    grid: Rect,
    step_x: f32,
    step_y: f32,
}

impl Geometry {
    fn cell(&self, row: usize, column: usize) -> Rect {
        let min = self.grid.min + vec2(self.step_x * column as f32, self.step_y * row as f32);
        Rect::from_min_size(min, vec2(self.step_x, self.step_y))
    }

    /// Rows and columns that touch `visible`.
    fn seen(&self, visible: Rect, rows: usize, columns: usize) -> (Range<usize>, Range<usize>) {
        let range = |from: f32, to: f32, start: f32, step: f32, most: usize| {
            let first = ((from - start) / step).floor().max(0.0) as usize;
            let last = ((to - start) / step).ceil().max(0.0) as usize;
            first.min(most)..last.min(most)
        };
        (
            range(visible.top(), visible.bottom(), self.grid.top(), self.step_y, rows),
            range(visible.left(), visible.right(), self.grid.left(), self.step_x, columns),
        )
    }
}

/// A value in few signs: `0.013`, `2.1e-4`.
fn compact(value: f64) -> String {
    let magnitude = value.abs();
    if value == 0.0 || !value.is_finite() || (1e-3..1e4).contains(&magnitude) {
        return units::significant(value);
    }
    format!("{value:.1e}")
}

/// Slanted lines: not measured yet.
fn hatch(canvas: &mut dyn Canvas, rect: Rect, tokens: &Tokens) {
    let stroke = Stroke::new(1.0, tokens.hairline);
    let mut offset = 4.0;
    while offset < rect.width() + rect.height() {
        // A line of slope 1 that enters at the left or the bottom and leaves at the top or right.
        let from = if offset <= rect.height() {
            pos2(rect.left(), rect.top() + offset)
        } else {
            pos2(rect.left() + offset - rect.height(), rect.bottom())
        };
        let to = if offset <= rect.width() {
            pos2(rect.left() + offset, rect.top())
        } else {
            pos2(rect.right(), rect.top() + offset - rect.width())
        };
        canvas.line(from, to, stroke);
        offset += 6.0;
    }
}

impl Plot for HeatMap {
    fn title(&self) -> String {
        let treatment = if self.format.is_empty() { String::new() } else { format!(", {}", self.format) };
        format!("{} by layer{treatment}", self.metric)
    }

    fn draw(&self, canvas: &mut dyn Canvas, rect: Rect, tokens: &Tokens) {
        self.draw_all(canvas, rect, tokens);
    }

    fn table(&self) -> Table {
        let mut table = Table::new(&["role", "layer", "format", "value", "stderr"]);
        for (row, role) in self.rows.iter().enumerate() {
            for (column, layer) in self.columns.iter().enumerate() {
                if let Some(found) = self.slot(row, column).cell() {
                    table.row([
                        role.clone(),
                        layer.clone(),
                        self.format.clone(),
                        cell(found.value),
                        found.stderr.map(cell).unwrap_or_default(),
                    ]);
                }
            }
        }
        table
    }
}

/// What the user did to the map.
#[derive(Clone, Debug)]
pub struct HeatMapOutput {
    /// The plot's own response, for its menu.
    pub response: Response,
    /// Row and column of a cell that was clicked.
    pub clicked: Option<(usize, usize)>,
}

/// The height that the map would like for `rows` rows.
pub fn height_for(rows: usize) -> f32 {
    20.0 + 36.0 + (rows as f32 * 30.0).max(120.0)
}

/// Draws the map as wide as there is room; the selected cell gets an outline, protected ones a lock.
pub fn heat_map_ui(
    ui: &mut Ui,
    map: &HeatMap,
    height: f32,
    selected: Option<(usize, usize)>,
    is_protected: &dyn Fn(usize, usize) -> bool,
) -> HeatMapOutput {
    let size = vec2(ui.available_width(), height);
    let (rect, response) = ui.allocate_exact_size(size, Sense::click());
    response.widget_info(|| WidgetInfo::labeled(Role::Figure, true, map.title()));
    let mut output = HeatMapOutput { response, clicked: None };
    if !ui.is_rect_visible(rect) {
        return output;
    }
    let tokens = ui.tokens();
    let painter = ui.painter_at(rect.expand(1.0));
    let mut canvas = PainterCanvas::new(&painter);
    map.draw_all(&mut canvas, rect, tokens);
    let geometry = map.geometry(&canvas, rect);
    let (rows, columns) = geometry.seen(ui.clip_rect(), map.rows.len(), map.columns.len());
    let mut pointed = None;
    for row in rows {
        for column in columns.clone() {
            let slot = map.slot(row, column);
            if slot == Slot::Absent {
                continue;
            }
            let place = geometry.cell(row, column);
            let id = output.response.id.with((&map.rows[row], &map.columns[column]));
            let cell = ui.interact(place, id, Sense::click());
            cell.widget_info(|| {
                let is_selected = selected == Some((row, column));
                let lock = if is_protected(row, column) { " protected" } else { "" };
                let name = format!("{}{lock}", map.cell_name(row, column));
                WidgetInfo::selected(Role::Button, true, is_selected, name)
            });
            if is_protected(row, column) {
                let mark = Rect::from_min_size(place.right_top() + vec2(-12.0, 1.0), vec2(11.0, 11.0));
                ui.painter().rect_filled(mark, 2.0, tokens.panel);
                icons::paint(ui.painter(), Icon::Lock, mark.center(), 10.0, tokens.accent);
            }
            if cell.clicked() {
                output.clicked = Some((row, column));
            }
            if cell.hovered() {
                pointed = Some((row, column));
            }
            if cell.hovered() || cell.has_focus() {
                outline(ui, place, tokens.text, 1.0);
            }
        }
    }
    if let Some((row, column)) = selected
        && row < map.rows.len()
        && column < map.columns.len()
    {
        outline(ui, geometry.cell(row, column), tokens.accent, 2.0);
    }
    if let (Some((row, column)), Some(pointer)) = (pointed, ui.ctx().pointer_hover_pos()) {
        map.hover(ui, rect, pointer, row, column);
    }
    export::offer_ui(ui, &output.response, map);
    output
}

fn outline(ui: &Ui, rect: Rect, color: Color32, width: f32) {
    let kind = eframe::egui::StrokeKind::Outside;
    ui.painter().rect_stroke(rect.shrink(0.5), 1.0, Stroke::new(width, color), kind);
}

impl HeatMap {
    /// A cell in words: `layer 3 down q4_k 0.0123`.
    pub fn cell_name(&self, row: usize, column: usize) -> String {
        let value = match self.slot(row, column) {
            Slot::Done(cell) => units::significant(cell.value),
            Slot::Pending => "not measured yet".to_owned(),
            Slot::Absent => "none".to_owned(),
        };
        let treatment = if self.format.is_empty() { String::new() } else { format!("{} ", self.format) };
        format!("layer {} {} {treatment}{value}", self.columns[column], self.rows[row])
    }

    fn hover(&self, ui: &Ui, bounds: Rect, pointer: Pos2, row: usize, column: usize) {
        let title = format!("layer {} {}", self.columns[column], self.rows[row]);
        let name = if self.format.is_empty() { self.metric.as_str() } else { self.format.as_str() };
        let lines = match self.slot(row, column) {
            Slot::Done(cell) => {
                let figure = number_with_interval(cell.value, cell.stderr.unwrap_or(0.0), "");
                let text = format!("{} {}", figure.text(), self.unit);
                let is_noise = self.noise_floor.is_some_and(|floor| cell.value < floor);
                let mut lines = vec![(name, text.trim_end().to_owned())];
                if is_noise {
                    lines.push(("below", "noise floor".to_owned()));
                }
                lines
            }
            _ => vec![(name, "not measured yet".to_owned())],
        };
        readout(ui, bounds, pointer, &title, &lines);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(value: f64, stderr: f64) -> Slot {
        Slot::Done(Cell { value, stderr: Some(stderr) })
    }

    #[test]
    fn edges_add_values_and_errors_and_leave_out_what_is_missing() {
        let slots = [done(0.1, 0.03), Slot::Pending, done(0.2, 0.04), Slot::Absent];
        let sum = edge_of(slots, Edge::Sum).expect("two cells");
        assert!((sum.value - 0.3).abs() < 1e-12);
        assert!((sum.stderr.expect("errors") - 0.05).abs() < 1e-12);
        let mean = edge_of(slots, Edge::Mean).expect("two cells");
        assert!((mean.value - 0.15).abs() < 1e-12);
        assert_eq!(edge_of([Slot::Pending], Edge::Sum), None);
    }

    #[test]
    fn values_in_cells_are_short() {
        assert_eq!(compact(0.0123), "0.0123");
        assert_eq!(compact(0.000_123), "1.2e-4");
        assert_eq!(compact(0.0), "0");
    }

    #[test]
    fn only_cells_on_screen_are_visited() {
        let grid = Rect::from_min_size(pos2(0.0, 0.0), vec2(100.0, 100.0));
        let geometry = Geometry { grid, step_x: 10.0, step_y: 10.0 };
        let visible = Rect::from_min_max(pos2(-50.0, 25.0), pos2(35.0, 500.0));
        assert_eq!(geometry.seen(visible, 10, 10), (2..10, 0..4));
    }

    #[test]
    fn the_table_holds_what_is_measured() {
        let map = HeatMap {
            metric: "relative error".to_owned(),
            unit: String::new(),
            format: "q4_k".to_owned(),
            rows: vec!["q".to_owned(), "k".to_owned()],
            columns: vec!["0".to_owned()],
            cells: vec![done(0.5, 0.1), Slot::Pending],
            noise_floor: None,
            edge: Edge::Mean,
        };
        assert_eq!(map.table().rows, [["q", "0", "q4_k", "0.5", "0.1"]]);
        assert_eq!(map.cell_name(1, 0), "layer 0 k q4_k not measured yet");
    }
}
