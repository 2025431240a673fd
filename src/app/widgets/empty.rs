//! What a view shows while there is nothing to show: what is missing, and the button that brings it.

use eframe::egui::{Align, Layout, Ui, vec2};

use super::button::primary_button_ui;
use crate::app::theme::{Type, UiTokens as _, space};

/// A sentence in the middle of the room that is left and, where there is one, the action.
/// Returns whether the action was chosen.
pub fn empty_ui(ui: &mut Ui, title: &str, sentence: &str, action: Option<&str>) -> bool {
    let weak = ui.tokens().weak;
    let width = ui.available_width().min(420.0);
    let room = ui.available_height();
    let mut is_chosen = false;
    ui.vertical_centered(|ui| {
        // Where the height is not bounded (in a scroll area), a fixed lead is enough.
        let lead = if room.is_finite() { (room * 0.5 - 56.0).clamp(space::XL, 240.0) } else { 48.0 };
        ui.add_space(lead);
        ui.allocate_ui_with_layout(vec2(width, 0.0), Layout::top_down(Align::Center), |ui| {
            ui.label(Type::Heading.text(title));
            ui.add_space(space::XS);
            ui.label(Type::Body.text(sentence).color(weak));
            if let Some(action) = action {
                ui.add_space(space::L);
                is_chosen = primary_button_ui(ui, action, true).clicked();
            }
        });
    });
    is_chosen
}
