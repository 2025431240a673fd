//! Plots of plain data: slices and small structs in, a picture, a table and hover numbers out.
//!
//! Every plot implements [`Plot`]: it draws itself onto a [`Canvas`], so that the window and the
//! exported SVG are the same drawing, and gives its numbers as a [`Table`] for CSV and for those who
//! do not see the picture. Beside it stands a `…_ui` function that adds pointer and keyboard.
//! Preparation of data is in pure functions, tested without a window.

pub mod axis;
pub mod canvas;
pub mod channels;
pub mod curve;
pub mod depth;
pub mod distribution;
pub mod export;
mod frame;
pub mod frontier;
pub mod head_map;
pub mod heat_map;
pub mod histogram;
pub mod labels;
pub mod lines;
pub mod radar;
pub mod ridges;
pub mod scatter;
pub mod slices;
pub mod stacked;

use eframe::egui::{Rect, Response, Role, Sense, Ui, Vec2, WidgetInfo};

use super::theme::{Tokens, UiTokens as _};
use canvas::{Canvas, PainterCanvas};
pub use export::Table;

/// Something that can be drawn, told and exported.
pub trait Plot {
    /// What the plot is about, for its accessible name and the exported file's title.
    fn title(&self) -> String;

    /// Draws all of it into `rect`.
    fn draw(&self, canvas: &mut dyn Canvas, rect: Rect, tokens: &Tokens);

    /// The numbers behind the picture.
    fn table(&self) -> Table;
}

/// Makes room for a plot, draws it if it is on screen and offers to save it. The response knows the
/// pointer.
pub fn plot_ui(ui: &mut Ui, plot: &dyn Plot, size: Vec2) -> Response {
    let (rect, response) = ui.allocate_exact_size(size, Sense::click());
    response.widget_info(|| WidgetInfo::labeled(Role::Figure, true, plot.title()));
    if ui.is_rect_visible(rect) {
        let painter = ui.painter_at(rect.expand(1.0));
        plot.draw(&mut PainterCanvas::new(&painter), rect, ui.tokens());
        export::offer_ui(ui, &response, plot);
    }
    response
}

/// The index of the point nearest to `pointer`, if one is within `reach` points.
fn nearest(
    pointer: eframe::egui::Pos2,
    points: impl IntoIterator<Item = eframe::egui::Pos2>,
    reach: f32,
) -> Option<usize> {
    points
        .into_iter()
        .map(|point| point.distance(pointer))
        .enumerate()
        .filter(|(_, distance)| *distance <= reach)
        .min_by(|one, other| one.1.total_cmp(&other.1))
        .map(|(index, _)| index)
}
