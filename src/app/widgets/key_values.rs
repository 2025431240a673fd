//! A list of named figures: names at the left, figures aligned at the right in monospace, then units.

use eframe::egui::{Align2, Response, Role, Sense, Ui, WidgetInfo, pos2, vec2};

use crate::app::theme::{Type, UiTokens as _, space};

/// One line: `key`, `value`, and a `unit` that may be empty.
#[derive(Clone, Debug, Default)]
pub struct KeyValue<'a> {
    /// What it is.
    pub key: &'a str,
    /// How much, already formatted.
    pub value: String,
    /// In what; drawn weakly after the figure.
    pub unit: &'a str,
    /// Told under the pointer; empty for nothing.
    pub hint: &'a str,
}

impl<'a> KeyValue<'a> {
    /// A line without hint.
    pub fn new(key: &'a str, value: impl Into<String>, unit: &'a str) -> Self {
        Self { key, value: value.into(), unit, hint: "" }
    }

    /// Adds what is told under the pointer.
    #[must_use]
    pub fn hint(mut self, hint: &'a str) -> Self {
        self.hint = hint;
        self
    }
}

/// Draws the lines as wide as there is room. Figures end at one column, units begin at the next.
pub fn key_values_ui(ui: &mut Ui, lines: &[KeyValue<'_>]) {
    let tokens = ui.tokens();
    let unit_width = lines
        .iter()
        .filter(|line| !line.unit.is_empty())
        .map(|line| {
            let galley = ui.painter().layout_no_wrap(line.unit.to_owned(), Type::Small.font(), tokens.weak);
            galley.size().x + space::XS
        })
        .fold(0.0, f32::max);
    ui.scope(|ui| {
        ui.spacing_mut().item_spacing.y = 0.0;
        for line in lines {
            let size = vec2(ui.available_width(), space::ROW_COMPACT);
            let (rect, response) = ui.allocate_exact_size(size, Sense::hover());
            name_line(&response, line);
            if !ui.is_rect_visible(rect) {
                continue;
            }
            let (painter, y) = (ui.painter(), rect.center().y);
            let figure = pos2(rect.right() - unit_width, y);
            let value = painter.layout_no_wrap(line.value.clone(), Type::Mono.font(), tokens.text);
            // A long key ends where the figure begins.
            let key_width = (figure.x - value.size().x - space::S - rect.left()).max(0.0);
            let clip = eframe::egui::Rect::from_min_size(rect.min, vec2(key_width, rect.height()));
            painter.with_clip_rect(clip.intersect(painter.clip_rect())).text(
                pos2(rect.left(), y),
                Align2::LEFT_CENTER,
                line.key,
                Type::Body.font(),
                tokens.weak,
            );
            let origin = Align2::RIGHT_CENTER.anchor_size(figure, value.size()).min;
            painter.galley(origin, value, tokens.text);
            painter.text(
                pos2(figure.x + space::XS, y),
                Align2::LEFT_CENTER,
                line.unit,
                Type::Small.font(),
                tokens.weak,
            );
            if !line.hint.is_empty() {
                response.on_hover_text(line.hint);
            }
        }
    });
}

fn name_line(response: &Response, line: &KeyValue<'_>) {
    response.widget_info(|| {
        let text = format!("{} {} {}", line.key, line.value, line.unit);
        WidgetInfo::labeled(Role::Label, true, text.trim_end())
    });
}
