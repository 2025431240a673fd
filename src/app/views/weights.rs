//! The weights view.

use eframe::egui::Ui;

use crate::app::context::Cx;

/// What the view remembers between frames.
#[derive(Default)]
pub struct Memory {}

/// Paints the view.
pub fn weights_ui(ui: &mut Ui, cx: &mut Cx<'_>) {
    let _ = (ui, cx);
}
