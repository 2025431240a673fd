//! The lock that protects a tensor: its stored values are kept and the planner leaves it alone.

use eframe::egui::{Response, Role, Sense, Ui, WidgetInfo, vec2};

use super::button::focus_ring;
use super::icons::{self, Icon};
use crate::app::theme::{UiTokens as _, space};

/// A lock to click. `what` is the tensor's name; the control is called "Protect WHAT".
pub fn lock_toggle_ui(ui: &mut Ui, is_protected: &mut bool, what: &str) -> Response {
    let side = space::ROW_COMPACT;
    let (rect, mut response) = ui.allocate_exact_size(vec2(side, side), Sense::click());
    if response.clicked() {
        *is_protected = !*is_protected;
        response.mark_changed();
    }
    let is_on = *is_protected;
    response.widget_info(|| WidgetInfo::selected(Role::CheckBox, ui.is_enabled(), is_on, format!("Protect {what}")));
    if ui.is_rect_visible(rect) {
        let tokens = ui.tokens();
        if response.hovered() {
            ui.painter().rect_filled(rect, space::RADIUS, tokens.raised_hover);
        }
        focus_ring(ui, &response);
        let (icon, color) = match (is_on, response.hovered()) {
            (true, _) => (Icon::Lock, tokens.accent),
            (false, true) => (Icon::Unlock, tokens.text),
            // Open locks are many: quiet until the pointer is there.
            (false, false) => (Icon::Unlock, tokens.outline),
        };
        icons::paint(ui.painter(), icon, rect.center(), 14.0, color);
    }
    response.on_hover_text(if is_on { "Protected: keeps its stored values" } else { "Protect: keep its stored values" })
}
