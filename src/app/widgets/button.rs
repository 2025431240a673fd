//! Buttons: one primary per view, secondary ones, quiet ones without a frame, and icons.

use eframe::egui::{self, Button, Color32, Response, Role, Sense, Stroke, Ui, WidgetInfo, vec2};

use super::icons::{self, Icon};
use crate::app::theme::{Type, UiTokens as _, space};

/// The one thing to do here. Filled with the accent.
pub fn primary_button_ui(ui: &mut Ui, text: &str, is_enabled: bool) -> Response {
    // A disabled one is a plain button, so that the accent always means "can be done".
    if !is_enabled {
        return secondary_button_ui(ui, text, false);
    }
    let tokens = ui.tokens();
    // Not in a scope: that would take what is left of a wrapped row instead of going to the next.
    let before = ui.visuals().widgets.clone();
    let widgets = &mut ui.visuals_mut().widgets;
    for (state, fill) in [
        (&mut widgets.inactive, tokens.accent),
        (&mut widgets.hovered, tokens.accent_hover),
        (&mut widgets.active, tokens.accent_hover),
    ] {
        state.bg_fill = fill;
        state.weak_bg_fill = fill;
        state.bg_stroke = Stroke::new(1.0, fill);
        state.fg_stroke.color = tokens.on_accent;
    }
    let label = Type::Strong.text(text).color(tokens.on_accent);
    let response = ui.add(Button::new(label).min_size(vec2(0.0, space::ROW)));
    ui.visuals_mut().widgets = before;
    response
}

/// Another thing to do here.
pub fn secondary_button_ui(ui: &mut Ui, text: &str, is_enabled: bool) -> Response {
    ui.add_enabled(is_enabled, Button::new(text).min_size(vec2(0.0, space::ROW)))
}

/// A thing to do that should not draw the eye: text in the accent, a ground only under the pointer.
pub fn quiet_button_ui(ui: &mut Ui, text: &str) -> Response {
    let accent = ui.tokens().accent;
    ui.add(
        Button::new(Type::Body.text(text).color(accent))
            .frame_when_inactive(false)
            .min_size(vec2(0.0, space::ROW_COMPACT)),
    )
}

/// A square button with an icon; `name` is its accessible name and its tooltip.
pub fn icon_button_ui(ui: &mut Ui, icon: Icon, name: &str, is_enabled: bool) -> Response {
    let sense = if is_enabled { Sense::click() } else { Sense::hover() };
    let side = space::ROW_COMPACT;
    let (rect, response) = ui.allocate_exact_size(vec2(side, side), sense);
    response.widget_info(|| WidgetInfo::labeled(Role::Button, is_enabled, name));
    if ui.is_rect_visible(rect) {
        let tokens = ui.tokens();
        let (fill, color) = if !is_enabled {
            (Color32::TRANSPARENT, ui.visuals().disable(tokens.weak))
        } else if response.is_pointer_button_down_on() {
            (tokens.raised_active, tokens.text)
        } else if response.hovered() {
            (tokens.raised_hover, tokens.text)
        } else {
            (Color32::TRANSPARENT, tokens.weak)
        };
        ui.painter().rect_filled(rect, space::RADIUS, fill);
        focus_ring(ui, &response);
        icons::paint(ui.painter(), icon, rect.center(), 14.0, color);
    }
    response.on_hover_text(name)
}

/// An accent outline around a custom widget that has the keyboard.
pub(super) fn focus_ring(ui: &Ui, response: &Response) {
    if response.has_focus() {
        let stroke = Stroke::new(1.5, ui.tokens().accent);
        let kind = egui::StrokeKind::Inside;
        ui.painter().rect_stroke(response.rect, space::RADIUS, stroke, kind);
    }
}
