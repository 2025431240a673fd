//! The strip of a running job: name, how much, how fast, how long still, a bar, pause and cancel.
//!
//! Nothing here asks for a repaint: the worker's waker does, when there is something new to show.

use eframe::egui::{Align, Align2, Layout, Rect, Role, Sense, Ui, UiBuilder, WidgetInfo, pos2, vec2};

use super::button::icon_button_ui;
use super::icons::Icon;
use crate::app::theme::{Type, UiTokens as _, space};

/// What a strip shows, all formatted.
#[derive(Clone, Debug, Default)]
pub struct ProgressRow {
    /// The job in words.
    pub name: String,
    /// `118 / 252`; empty where the total is unknown.
    pub count: String,
    /// `2.9 tensors/s`; may be empty.
    pub rate: String,
    /// The figure of what is done so far, `accuracy 93.1 ± 0.8 %`; may be empty.
    pub running: String,
    /// `41 s left`; may be empty.
    pub time_left: String,
    /// Done over total in `0..=1`; none where the total is unknown.
    pub fraction: Option<f32>,
    /// Whether the job stands still.
    pub is_paused: bool,
    /// Whether it was told to stop.
    pub is_cancelling: bool,
    /// Whether it can pause.
    pub can_pause: bool,
}

/// What the user asked of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgressAction {
    Pause,
    Resume,
    Cancel,
}

/// A thin bar. `fraction` none draws an empty one.
pub fn bar_ui(ui: &mut Ui, name: &str, fraction: Option<f32>, width: f32) {
    let (rect, response) = ui.allocate_exact_size(vec2(width, space::ROW_COMPACT), Sense::hover());
    response.widget_info(|| {
        let mut info = WidgetInfo::labeled(Role::ProgressIndicator, true, name);
        info.value = fraction.map(f64::from);
        info
    });
    paint_bar(ui, rect, fraction, ui.tokens().accent);
}

fn paint_bar(ui: &Ui, rect: Rect, fraction: Option<f32>, color: eframe::egui::Color32) {
    let bar = Rect::from_center_size(rect.center(), vec2(rect.width(), 6.0));
    let painter = ui.painter();
    painter.rect_filled(bar, 3.0, ui.tokens().raised_active);
    if let Some(fraction) = fraction {
        let width = (bar.width() * fraction.clamp(0.0, 1.0)).max(6.0).min(bar.width());
        painter.rect_filled(Rect::from_min_size(bar.min, vec2(width, 6.0)), 3.0, color);
    }
}

/// One strip as wide as there is room. Its columns keep their places whatever the numbers do.
pub fn progress_row_ui(ui: &mut Ui, row: &ProgressRow) -> Option<ProgressAction> {
    let tokens = ui.tokens();
    let size = vec2(ui.available_width(), space::ROW);
    let (rect, response) = ui.allocate_exact_size(size, Sense::hover());
    response.widget_info(|| {
        let parts = [&row.name, &row.count, &row.running, &row.time_left].map(String::as_str);
        let text: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        let mut info = WidgetInfo::labeled(Role::ProgressIndicator, true, text.join(" "));
        info.value = row.fraction.map(f64::from);
        info
    });
    if !row.running.is_empty() {
        response.on_hover_text(format!("so far: {}", row.running));
    }
    // Right to left: buttons, time left, rate; left to right: name, count; the bar takes the rest.
    let mut action = None;
    let buttons_width = 2.0 * space::ROW_COMPACT + space::XS;
    let buttons = Rect::from_min_max(pos2(rect.right() - buttons_width, rect.top()), rect.max);
    let builder = UiBuilder::new().max_rect(buttons).layout(Layout::right_to_left(Align::Center));
    ui.scope_builder(builder, |ui| {
        ui.spacing_mut().item_spacing.x = space::XS;
        let name = format!("Cancel {}", row.name);
        if icon_button_ui(ui, Icon::Close, &name, !row.is_cancelling).clicked() {
            action = Some(ProgressAction::Cancel);
        }
        if row.can_pause {
            let (icon, verb, chosen) = if row.is_paused {
                (Icon::Play, "Resume", ProgressAction::Resume)
            } else {
                (Icon::Pause, "Pause", ProgressAction::Pause)
            };
            let name = format!("{verb} {}", row.name);
            if icon_button_ui(ui, icon, &name, !row.is_cancelling).clicked() {
                action = Some(chosen);
            }
        }
    });
    let painter = ui.painter_at(rect);
    let y = rect.center().y;
    let status = if row.is_cancelling {
        "cancelling"
    } else if row.is_paused {
        "paused"
    } else {
        &row.time_left
    };
    let (small, mono) = (Type::Small.font(), Type::MonoSmall.font());
    let mut right = buttons.left() - space::M;
    painter.text(pos2(right, y), Align2::RIGHT_CENTER, status, small.clone(), tokens.text);
    right -= 150.0;
    if rect.width() > 640.0 {
        painter.text(pos2(right, y), Align2::RIGHT_CENTER, &row.rate, small, tokens.weak);
        right -= 110.0;
    }
    if !row.running.is_empty() && rect.width() > 1100.0 {
        painter.text(pos2(right, y), Align2::RIGHT_CENTER, &row.running, mono.clone(), tokens.text);
        right -= 400.0;
    }
    let name_width = 340.0_f32.min(rect.width() * 0.3);
    let name_rect = Rect::from_min_size(rect.min, vec2(name_width, rect.height()));
    painter.with_clip_rect(name_rect).text(
        pos2(rect.left(), y),
        Align2::LEFT_CENTER,
        &row.name,
        Type::Body.font(),
        tokens.text,
    );
    let mut left = rect.left() + name_width + space::S;
    if !row.count.is_empty() {
        left += 140.0;
        painter.text(pos2(left, y), Align2::RIGHT_CENTER, &row.count, mono.clone(), tokens.text);
        left += space::M;
    }
    if right - left > 24.0 {
        let bar = Rect::from_min_max(pos2(left, rect.top()), pos2(right, rect.bottom()));
        let color = if row.is_paused { tokens.undecided } else { tokens.accent };
        paint_bar(ui, bar, row.fraction, color);
    }
    action
}
