//! The search field: a magnifier, a hint that is also its name, and a cross that empties it.

use eframe::egui::{Margin, Response, TextEdit, Ui, pos2, vec2};

use super::icons::{self, Icon};
use crate::app::theme::{UiTokens as _, space};

/// A field as wide as there is room. `name` is its hint and its accessible name.
pub fn search_field_ui(ui: &mut Ui, name: &str, text: &mut String) -> Response {
    let tokens = ui.tokens();
    let edit = TextEdit::singleline(text)
        .hint_text(name)
        .desired_width(f32::INFINITY)
        .min_size(vec2(0.0, space::ROW))
        .margin(Margin { left: 26, right: 24, top: 3, bottom: 3 });
    let mut response = ui.add(edit).accessible_name(name);
    let middle = response.rect.center().y;
    let icon = pos2(response.rect.left() + 14.0, middle);
    icons::paint(ui.painter(), Icon::Search, icon, 13.0, tokens.weak);
    if !text.is_empty() {
        let center = pos2(response.rect.right() - 13.0, middle);
        let rect = eframe::egui::Rect::from_center_size(center, vec2(18.0, 18.0));
        let clear = ui.interact(rect, response.id.with("clear"), eframe::egui::Sense::click());
        clear.widget_info(|| eframe::egui::WidgetInfo::labeled(eframe::egui::Role::Button, true, "Clear the filter"));
        let color = if clear.hovered() { tokens.text } else { tokens.weak };
        icons::paint(ui.painter(), Icon::Close, center, 11.0, color);
        if clear.clicked() {
            text.clear();
            response.mark_changed();
        }
    }
    response
}
