//! Messages that stand where their cause is, in words, with the remedy as a button.

use eframe::egui::{Frame, Margin, Role, Stroke, Ui, WidgetInfo, vec2};

use super::button::secondary_button_ui;
use super::icons::{self, Icon};
use crate::app::theme::{Tokens, Type, UiTokens as _, space};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Info,
    Warning,
    Error,
}

impl Level {
    /// The icon and colour of the level, and its word for those who see neither.
    pub(super) fn look(self, tokens: &Tokens) -> (Icon, eframe::egui::Color32, &'static str) {
        match self {
            Self::Info => (Icon::Info, tokens.accent, "Note"),
            Self::Warning => (Icon::Warning, tokens.undecided, "Warning"),
            Self::Error => (Icon::Warning, tokens.fail, "Error"),
        }
    }
}

/// One message.
#[derive(Clone, Copy, Debug)]
pub struct Notice<'a> {
    /// How bad it is.
    pub level: Level,
    /// What is the matter, one sentence.
    pub text: &'a str,
    /// What the user can do, or where; drawn weakly below. May be empty.
    pub detail: &'a str,
    /// The remedy as a button.
    pub action: Option<&'a str>,
}

/// Draws the message as wide as there is room. Returns whether the remedy was chosen.
pub fn notice_ui(ui: &mut Ui, notice: &Notice<'_>) -> bool {
    let tokens = ui.tokens();
    let (icon, color, word) = notice.level.look(tokens);
    let mut is_chosen = false;
    let frame = Frame::new()
        .fill(tokens.tint(color, 0.08))
        .stroke(Stroke::new(1.0, tokens.tint(color, 0.4)))
        .corner_radius(space::RADIUS)
        .inner_margin(Margin::symmetric(12, 8));
    let response = frame
        .show(ui, |ui| {
            ui.set_width(ui.available_width());
            ui.horizontal_top(|ui| {
                let (rect, _) = ui.allocate_exact_size(vec2(16.0, 17.0), eframe::egui::Sense::hover());
                icons::paint(ui.painter(), icon, rect.center(), 16.0, color);
                ui.vertical(|ui| {
                    ui.add(eframe::egui::Label::new(notice.text).wrap());
                    if !notice.detail.is_empty() {
                        let detail = Type::Small.text(notice.detail).color(tokens.weak);
                        ui.add(eframe::egui::Label::new(detail).wrap());
                    }
                    if let Some(action) = notice.action {
                        ui.add_space(space::XS);
                        is_chosen = secondary_button_ui(ui, action, true).clicked();
                    }
                });
            });
        })
        .response;
    response.widget_info(|| WidgetInfo::labeled(Role::Alert, true, format!("{word}: {}", notice.text)));
    is_chosen
}
