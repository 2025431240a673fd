//! Short messages in the corner that go by themselves. They block nothing and repaint only when the
//! next of them is due to go.

use std::time::Duration;

use eframe::egui::{Align2, Area, Context, Frame, Id, Label, Margin, Order, Role, Stroke, WidgetInfo, vec2};

use super::button::{icon_button_ui, quiet_button_ui};
use super::icons::{self, Icon};
use super::notice::Level;
use crate::app::theme::{UiTokens as _, space};

/// One message.
#[derive(Clone, Debug)]
pub struct Toast {
    /// How bad it is; errors stay until they are closed.
    pub level: Level,
    /// What happened.
    pub text: String,
    /// One thing to do about it, such as "Undo".
    pub action: Option<String>,
    serial: u64,
    /// When it goes, in the context's time; none until it was first shown.
    gone_at_secs: Option<f64>,
}

/// The messages on screen, newest last.
#[derive(Clone, Debug, Default)]
pub struct Toasts {
    toasts: Vec<Toast>,
    next_serial: u64,
}

impl Toasts {
    /// How long a message stays.
    pub const STAY_SECS: f64 = 6.0;
    /// At most so many are shown; the oldest goes first.
    pub const MOST: usize = 4;

    /// Adds a message and returns the number by which its action is reported.
    pub fn add(&mut self, level: Level, text: impl Into<String>, action: Option<&str>) -> u64 {
        let serial = self.next_serial;
        self.next_serial += 1;
        let (text, action) = (text.into(), action.map(str::to_owned));
        self.toasts.push(Toast { level, text, action, serial, gone_at_secs: None });
        if self.toasts.len() > Self::MOST {
            self.toasts.remove(0);
        }
        serial
    }

    /// The messages on screen, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Toast> {
        self.toasts.iter()
    }

    /// Draws them and forgets those whose time is over. Returns the number of a message whose
    /// action was chosen.
    pub fn show(&mut self, ctx: &Context) -> Option<u64> {
        if self.toasts.is_empty() {
            return None;
        }
        let now = ctx.time();
        let mut next_secs = f64::INFINITY;
        self.toasts.retain_mut(|toast| {
            if toast.level == Level::Error {
                return true;
            }
            let gone_at = *toast.gone_at_secs.get_or_insert(now + Self::STAY_SECS);
            next_secs = next_secs.min(gone_at - now);
            gone_at > now
        });
        if next_secs.is_finite() {
            ctx.request_repaint_after(Duration::from_secs_f64(next_secs.max(0.05)));
        }
        let (mut closed, mut chosen) = (None, None);
        Area::new(Id::unique("toasts"))
            .order(Order::Foreground)
            .anchor(Align2::RIGHT_BOTTOM, vec2(-space::L, -64.0))
            .show(ctx, |ui| {
                ui.set_width(340.0);
                for toast in &self.toasts {
                    match toast_ui(ui, toast) {
                        Some(Choice::Close) => closed = Some(toast.serial),
                        Some(Choice::Act) => chosen = Some(toast.serial),
                        None => {}
                    }
                }
            });
        self.toasts.retain(|toast| ![closed, chosen].contains(&Some(toast.serial)));
        chosen
    }
}

enum Choice {
    Close,
    Act,
}

fn toast_ui(ui: &mut eframe::egui::Ui, toast: &Toast) -> Option<Choice> {
    let tokens = ui.tokens();
    let (icon, color, word) = toast.level.look(tokens);
    let mut choice = None;
    let response = Frame::new()
        .fill(tokens.raised)
        .stroke(Stroke::new(1.0, tokens.outline))
        .corner_radius(6)
        .inner_margin(Margin::symmetric(12, 8))
        .show(ui, |ui| {
            ui.set_width(ui.available_width());
            ui.horizontal_top(|ui| {
                let (rect, _) = ui.allocate_exact_size(vec2(16.0, 20.0), eframe::egui::Sense::hover());
                icons::paint(ui.painter(), icon, rect.center(), 16.0, color);
                let text_width = ui.available_width() - space::ROW_COMPACT - space::S;
                ui.vertical(|ui| {
                    ui.set_width(text_width);
                    ui.add_space(1.0);
                    ui.add(Label::new(&toast.text).wrap());
                    if let Some(action) = &toast.action
                        && quiet_button_ui(ui, action).clicked()
                    {
                        choice = Some(Choice::Act);
                    }
                });
                let name = format!("Close message: {}", toast.text);
                if icon_button_ui(ui, Icon::Close, &name, true).clicked() {
                    choice = Some(Choice::Close);
                }
            });
        })
        .response;
    response.widget_info(|| WidgetInfo::labeled(Role::Alert, true, format!("{word}: {}", toast.text)));
    choice
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(toasts: &mut Toasts, ctx: &Context, time_secs: f64) {
        crate::app::testing::frame(ctx, time_secs, |ui| {
            toasts.show(ui.ctx());
        });
    }

    #[test]
    fn notes_go_by_themselves_and_errors_stay() {
        let ctx = crate::app::testing::context();
        let mut toasts = Toasts::default();
        toasts.add(Level::Info, "saved", None);
        toasts.add(Level::Error, "disk full", None);
        frame(&mut toasts, &ctx, 1.0);
        assert_eq!(toasts.iter().count(), 2);
        frame(&mut toasts, &ctx, 1.5 + Toasts::STAY_SECS);
        let left: Vec<&str> = toasts.iter().map(|toast| toast.text.as_str()).collect();
        assert_eq!(left, ["disk full"]);
    }

    #[test]
    fn the_oldest_makes_room() {
        let mut toasts = Toasts::default();
        for number in 0..6 {
            toasts.add(Level::Info, number.to_string(), None);
        }
        assert_eq!(toasts.iter().count(), Toasts::MOST);
        assert_eq!(toasts.iter().next().map(|toast| toast.text.as_str()), Some("2"));
    }
}
