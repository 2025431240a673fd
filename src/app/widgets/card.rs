//! Cards and section headings: the two ways in which a view is divided.

use eframe::egui::{Align, Frame, InnerResponse, Layout, Margin, Response, Stroke, Ui, vec2};

use crate::app::theme::{Type, UiTokens as _, space};

/// A raised area with a hairline around it, as wide as there is room.
pub fn card_ui<R>(ui: &mut Ui, contents: impl FnOnce(&mut Ui) -> R) -> InnerResponse<R> {
    let tokens = ui.tokens();
    Frame::new()
        .fill(tokens.panel)
        .stroke(Stroke::new(1.0, tokens.hairline))
        .corner_radius(6)
        .inner_margin(Margin::symmetric(space::L as i8, space::M as i8))
        .show(ui, |ui| {
            ui.set_width(ui.available_width());
            contents(ui)
        })
}

/// A heading with the room that a new section needs above it.
pub fn section_ui(ui: &mut Ui, title: &str) -> Response {
    section_with_ui(ui, title, |_| ()).response
}

/// A heading with controls at the right end of its line.
pub fn section_with_ui<R>(ui: &mut Ui, title: &str, trailing: impl FnOnce(&mut Ui) -> R) -> InnerResponse<R> {
    ui.add_space(space::XS);
    let size = vec2(ui.available_width(), space::ROW);
    let inner = ui.allocate_ui_with_layout(size, Layout::left_to_right(Align::Center), |ui| {
        ui.set_min_size(size);
        let label = ui.label(Type::Heading.text(title));
        let layout = Layout::right_to_left(Align::Center);
        let inner = ui.with_layout(layout, trailing).inner;
        InnerResponse::new(inner, label)
    });
    ui.add_space(space::XS);
    inner.inner
}

/// One line with something at its left end and something at its right end.
pub fn split_line_ui(ui: &mut Ui, left: impl FnOnce(&mut Ui), right: impl FnOnce(&mut Ui)) {
    let size = vec2(ui.available_width(), space::ROW);
    ui.allocate_ui_with_layout(size, Layout::left_to_right(Align::Center), |ui| {
        ui.set_min_size(size);
        left(ui);
        ui.with_layout(Layout::right_to_left(Align::Center), right);
    });
}
