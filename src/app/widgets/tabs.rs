//! Choosing one of a few: view tabs with a line under the chosen one, and segments in a frame.

use eframe::egui::{
    Align2, CornerRadius, FontId, Rect, Response, Role, Sense, Stroke, StrokeKind, Ui, WidgetInfo, pos2, vec2,
};

use super::button::focus_ring;
use crate::app::theme::{Type, UiTokens as _, space};

fn width(ui: &Ui, text: &str, font: FontId) -> f32 {
    ui.painter().layout_no_wrap(text.to_owned(), font, ui.tokens().text).size().x
}

/// View tabs: returns the index that was clicked, if any. Arrow keys move with egui's focus.
pub fn tabs_ui(ui: &mut Ui, names: &[&str], selected: usize) -> Option<usize> {
    let mut clicked = None;
    ui.horizontal(|ui| {
        ui.spacing_mut().item_spacing.x = 0.0;
        // The width is that of the semibold word, so that choosing a tab moves nothing.
        let widths: Vec<f32> = names.iter().map(|name| width(ui, name, Type::Strong.font())).collect();
        let room = (ui.available_width() - widths.iter().sum::<f32>()) / (2 * names.len().max(1)) as f32;
        // In a narrow window the words move together before one is cut off.
        let side = room.floor().clamp(space::XS, space::M);
        for (index, (name, width)) in names.iter().zip(widths).enumerate() {
            let is_selected = index == selected;
            let size = vec2(width + 2.0 * side, 32.0);
            let (rect, response) = ui.allocate_exact_size(size, Sense::click());
            name_option(&response, ui, name, is_selected);
            if ui.is_rect_visible(rect) {
                let tokens = ui.tokens();
                let is_bright = is_selected || response.hovered();
                let font = if is_selected { Type::Strong.font() } else { Type::Body.font() };
                let color = if is_bright { tokens.text } else { tokens.weak };
                focus_ring(ui, &response);
                let painter = ui.painter();
                painter.text(rect.center(), Align2::CENTER_CENTER, *name, font, color);
                if is_selected {
                    let line = Rect::from_min_max(
                        pos2(rect.left() + side - space::XS, rect.bottom() - 2.0),
                        pos2(rect.right() - side + space::XS, rect.bottom()),
                    );
                    painter.rect_filled(line, 1.0, tokens.accent);
                }
            }
            if response.clicked() {
                clicked = Some(index);
            }
        }
    });
    clicked
}

/// Segments in one frame, for switches such as log and linear. Returns whether the choice changed.
pub fn segments_ui(ui: &mut Ui, name: &str, options: &[&str], selected: &mut usize) -> bool {
    let before = *selected;
    let widths: Vec<f32> =
        options.iter().map(|option| width(ui, option, Type::Small.font()) + 2.0 * space::S + 4.0).collect();
    // One allocation, filled from the left, so that a parent that runs leftwards keeps the order.
    let size = vec2(widths.iter().sum(), 22.0);
    let (whole, group) = ui.allocate_exact_size(size, Sense::hover());
    let mut left = whole.left();
    for (index, (option, width)) in options.iter().zip(widths).enumerate() {
        let rect = Rect::from_min_size(pos2(left, whole.top()), vec2(width, whole.height()));
        left = rect.right();
        let response = ui.interact(rect, group.id.with(index), Sense::click());
        if response.clicked() {
            *selected = index;
        }
        let is_selected = index == *selected;
        name_option(&response, ui, &format!("{name} {option}"), is_selected);
        if !ui.is_rect_visible(rect) {
            continue;
        }
        let tokens = ui.tokens();
        let (fill, line, text) = if is_selected {
            (tokens.selection, tokens.accent, tokens.text)
        } else if response.hovered() {
            (tokens.raised_hover, tokens.hairline, tokens.text)
        } else {
            (tokens.raised, tokens.hairline, tokens.weak)
        };
        let painter = ui.painter();
        // Neighbours share their line.
        let frame = if index == 0 { rect } else { rect.with_min_x(rect.left() - 1.0) };
        let (corners, stroke) = (corners(index, options.len()), Stroke::new(1.0, line));
        painter.rect(frame, corners, fill, stroke, StrokeKind::Inside);
        let font = Type::Small.font();
        painter.text(rect.center(), Align2::CENTER_CENTER, *option, font, text);
        focus_ring(ui, &response);
    }
    *selected != before
}

fn corners(index: usize, count: usize) -> CornerRadius {
    let radius = space::RADIUS as u8;
    let (left, right) = (if index == 0 { radius } else { 0 }, if index + 1 == count { radius } else { 0 });
    CornerRadius { nw: left, sw: left, ne: right, se: right }
}

fn name_option(response: &Response, ui: &Ui, name: &str, is_selected: bool) {
    response.widget_info(|| WidgetInfo::selected(Role::Tab, ui.is_enabled(), is_selected, name));
}
