//! Small multiples: the histograms of all layers per role, one filled outline each, the selected one
//! in the accent. A click selects.

use eframe::egui::{Align2, Id, Pos2, Rect, Response, Role, Sense, Stroke, Ui, WidgetInfo, pos2, vec2};

use super::Plot;
use super::canvas::{Canvas, PainterCanvas};
use super::export::{self, Table, cell};
use crate::app::theme::{Tokens, Type, UiTokens as _, space};

/// One outline of the grid.
#[derive(Clone, Debug)]
pub struct Ridge {
    /// The tensor, for its accessible name.
    pub tensor_name: String,
    /// Heights in `0..=1`, left to right (see `histogram::small_outline`).
    pub heights: Vec<f32>,
    /// What is written in its corner, such as its σ; may be empty.
    pub note: String,
    /// Whether it stands out (outliers, NaN) and gets a mark.
    pub is_odd: bool,
}

/// Rows are layers, columns are roles.
#[derive(Clone, Debug, Default)]
pub struct Ridges {
    /// What stands over the columns.
    pub columns: Vec<String>,
    /// What stands beside the rows.
    pub rows: Vec<String>,
    /// Row by row; none where a layer has no such tensor or it is not profiled yet.
    pub cells: Vec<Option<Ridge>>,
    /// The axis that all share, such as `−6σ … 6σ of each tensor`.
    pub axis: String,
}

/// Height of one row of outlines.
pub const ROW_HEIGHT: f32 = 34.0;
const HEAD_HEIGHT: f32 = 22.0;

impl Ridges {
    /// Height of the whole grid in points.
    pub fn height(&self) -> f32 {
        HEAD_HEIGHT + ROW_HEIGHT * self.rows.len() as f32 + 20.0
    }

    fn left(&self, canvas: &dyn Canvas) -> f32 {
        self.rows.iter().map(|row| canvas.text_width(row, Type::Small)).fold(24.0, f32::max) + space::S
    }

    fn cell_rect(&self, rect: Rect, left: f32, row: usize, column: usize) -> Rect {
        let width = (rect.width() - left) / self.columns.len().max(1) as f32;
        Rect::from_min_size(
            pos2(rect.left() + left + width * column as f32, rect.top() + HEAD_HEIGHT + ROW_HEIGHT * row as f32),
            vec2(width, ROW_HEIGHT),
        )
    }

    fn draw_cell(canvas: &mut dyn Canvas, rect: Rect, ridge: Option<&Ridge>, is_selected: bool, tokens: &Tokens) {
        let mut inner = rect.shrink2(vec2(4.0, 3.0));
        if is_selected {
            canvas.rect(rect.shrink(1.0), tokens.selection);
        }
        let base = inner.bottom() - 1.0;
        let line = Stroke::new(1.0, tokens.hairline);
        canvas.line(pos2(inner.left(), base), pos2(inner.right(), base), line);
        let Some(ridge) = ridge else {
            canvas.text(inner.center(), Align2::CENTER_CENTER, "–", Type::Small, tokens.weak);
            return;
        };
        // The note has room of its own, or none is written.
        if !ridge.note.is_empty() && inner.width() > 130.0 {
            let kind = Type::MonoSmall;
            let at = inner.right_bottom() - vec2(0.0, 3.0);
            let note = canvas.text(at, Align2::RIGHT_BOTTOM, &ridge.note, kind, tokens.weak);
            inner.max.x = note.left() - space::XS;
        }
        let color = if is_selected { tokens.accent } else { tokens.baseline };
        let ground = if is_selected { tokens.selection } else { tokens.panel };
        let count = ridge.heights.len().max(2) - 1;
        let points: Vec<Pos2> = ridge
            .heights
            .iter()
            .enumerate()
            .map(|(index, height)| {
                let x = inner.left() + inner.width() * index as f32 / count as f32;
                pos2(x, base - (inner.height() - 3.0) * height)
            })
            .collect();
        canvas.area(&points, base, ground.lerp_to_gamma(color, 0.32));
        canvas.path(points, Stroke::new(1.0, color));
        if ridge.is_odd {
            let center = inner.left_top() + vec2(4.0, 5.0);
            canvas.disc(center, 3.0, tokens.undecided, Stroke::NONE);
        }
    }

    fn draw_all(&self, canvas: &mut dyn Canvas, rect: Rect, selected: Option<usize>, tokens: &Tokens) {
        let left = self.left(canvas);
        let columns = self.columns.len();
        for (column, name) in self.columns.iter().enumerate() {
            let at = self.cell_rect(rect, left, 0, column).left_top() + vec2(4.0, -6.0);
            canvas.text(at, Align2::LEFT_BOTTOM, name, Type::SmallStrong, tokens.weak);
        }
        let visible = canvas.visible();
        for (row, name) in self.rows.iter().enumerate() {
            let line = self.cell_rect(rect, left, row, 0);
            if line.bottom() < visible.top() || line.top() > visible.bottom() {
                continue;
            }
            let at = pos2(rect.left() + left - space::S, line.bottom() - 5.0);
            canvas.text(at, Align2::RIGHT_BOTTOM, name, Type::Small, tokens.weak);
            for column in 0..columns {
                let index = row * columns + column;
                let cell = self.cells.get(index).and_then(Option::as_ref);
                let place = self.cell_rect(rect, left, row, column);
                Self::draw_cell(canvas, place, cell, selected == Some(index), tokens);
            }
        }
        let below = pos2(rect.right(), rect.top() + self.height() - 2.0);
        canvas.text(below, Align2::RIGHT_BOTTOM, &self.axis, Type::Small, tokens.weak);
    }
}

impl Plot for Ridges {
    fn title(&self) -> String {
        "Histograms of all layers".to_owned()
    }

    fn draw(&self, canvas: &mut dyn Canvas, rect: Rect, tokens: &Tokens) {
        self.draw_all(canvas, rect, None, tokens);
    }

    fn table(&self) -> Table {
        let mut table = Table::new(&["tensor", "bin", "height"]);
        for ridge in self.cells.iter().flatten() {
            for (bin, height) in ridge.heights.iter().enumerate() {
                let height = cell(f64::from(*height));
                table.row([ridge.tensor_name.clone(), bin.to_string(), height]);
            }
        }
        table
    }
}

/// Draws the grid in its full height (put it into a scroll area) and returns the index, row by row,
/// of a cell that was clicked. Only what is on screen costs anything.
pub fn ridges_ui(ui: &mut Ui, ridges: &Ridges, selected: Option<usize>) -> Option<usize> {
    let size = vec2(ui.available_width(), ridges.height());
    let (rect, response) = ui.allocate_exact_size(size, Sense::hover());
    response.widget_info(|| WidgetInfo::labeled(Role::Figure, true, ridges.title()));
    if !ui.is_rect_visible(rect) {
        return None;
    }
    let painter = ui.painter_at(rect);
    let mut canvas = PainterCanvas::new(&painter);
    ridges.draw_all(&mut canvas, rect, selected, ui.tokens());
    let left = ridges.left(&canvas);
    let columns = ridges.columns.len().max(1);
    let mut clicked = None;
    for (index, ridge) in ridges.cells.iter().enumerate() {
        let Some(ridge) = ridge else { continue };
        let place = ridges.cell_rect(rect, left, index / columns, index % columns);
        if !ui.is_rect_visible(place) {
            continue;
        }
        let id = response.id.with(&ridge.tensor_name);
        if cell_response(ui, place, id, ridge, selected == Some(index)).clicked() {
            clicked = Some(index);
        }
    }
    export::offer_ui(ui, &response, ridges);
    clicked
}

fn cell_response(ui: &Ui, rect: Rect, id: Id, ridge: &Ridge, is_selected: bool) -> Response {
    let response = ui.interact(rect, id, Sense::click());
    response.widget_info(|| {
        let name = format!("Histogram of {}", ridge.tensor_name);
        WidgetInfo::selected(Role::Button, true, is_selected, name)
    });
    if response.hovered() || response.has_focus() {
        let color = if response.has_focus() { ui.tokens().accent } else { ui.tokens().outline };
        let kind = eframe::egui::StrokeKind::Inside;
        ui.painter().rect_stroke(rect.shrink(1.0), 2.0, Stroke::new(1.0, color), kind);
    }
    response.on_hover_text_at_pointer(&ridge.tensor_name)
}
