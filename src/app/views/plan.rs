//! The plan view.

use eframe::egui::Ui;

use crate::app::context::Cx;

/// What the view remembers between frames.
#[derive(Default)]
pub struct Memory {}

/// Paints the view.
pub fn plan_ui(ui: &mut Ui, cx: &mut Cx<'_>) {
    let _ = (ui, cx);
}
