//! Pills say a state with a word, a shape and a colour; tags name a format.

use eframe::egui::{Color32, Response, Role, Sense, Stroke, StrokeKind, Ui, WidgetInfo, pos2, vec2};

use super::icons::{self, Icon};
use crate::app::theme::{Tokens, Type, UiTokens as _, space};

/// A judgement. The word differs between gates (pass) and constraints (met); the shape does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Pass,
    Fail,
    Undecided,
    Met,
    Missed,
    Unknown,
}

impl State {
    /// The word that always stands beside the colour.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Undecided => "undecided",
            Self::Met => "met",
            Self::Missed => "missed",
            Self::Unknown => "unknown",
        }
    }

    /// The shape that always stands beside the colour.
    pub fn icon(self) -> Icon {
        match self {
            Self::Pass | Self::Met => Icon::Check,
            Self::Fail | Self::Missed => Icon::Cross,
            Self::Undecided | Self::Unknown => Icon::Undecided,
        }
    }

    /// The colour.
    pub fn color(self, tokens: &Tokens) -> Color32 {
        match self {
            Self::Pass | Self::Met => tokens.pass,
            Self::Fail | Self::Missed => tokens.fail,
            Self::Undecided => tokens.undecided,
            Self::Unknown => tokens.weak,
        }
    }
}

/// A pill with what it is about, and the state: `size ≤ 3 MiB  met`. `what` may be empty.
pub fn pill_ui(ui: &mut Ui, what: &str, state: State) -> Response {
    let tokens = ui.tokens();
    let color = state.color(tokens);
    let painter = ui.painter();
    let word = painter.layout_no_wrap(state.word().to_owned(), Type::SmallStrong.font(), color);
    let what_galley = painter.layout_no_wrap(what.to_owned(), Type::Small.font(), tokens.text);
    let gap = if what.is_empty() { 0.0 } else { space::S };
    let width = space::S + 12.0 + space::XS + what_galley.size().x + gap + word.size().x + space::S + 1.0;
    let (rect, response) = ui.allocate_exact_size(vec2(width, space::ROW_COMPACT), Sense::hover());
    response.widget_info(|| {
        let name = format!("{what} {}", state.word());
        WidgetInfo::labeled(Role::Label, true, name.trim_start())
    });
    if ui.is_rect_visible(rect) {
        let painter = ui.painter();
        let stroke = Stroke::new(1.0, tokens.tint(color, 0.45));
        let radius = rect.height() / 2.0;
        painter.rect(rect, radius, tokens.tint(color, 0.12), stroke, StrokeKind::Inside);
        let mut x = rect.left() + space::S;
        let middle = rect.center().y;
        icons::paint(painter, state.icon(), pos2(x + 6.0, middle), 13.0, color);
        x += 12.0 + space::XS;
        let what_width = what_galley.size().x;
        painter.galley(pos2(x, middle - what_galley.size().y / 2.0), what_galley, tokens.text);
        x += what_width + gap;
        painter.galley(pos2(x, middle - word.size().y / 2.0), word, color);
    }
    response
}

/// The state as shape and word without a ground, for table cells.
pub fn state_word_ui(ui: &mut Ui, state: State) -> Response {
    let tokens = ui.tokens();
    let color = state.color(tokens);
    let font = Type::SmallStrong.font();
    let word = ui.painter().layout_no_wrap(state.word().to_owned(), font, color);
    let size = vec2(14.0 + space::XS + word.size().x, space::ROW_COMPACT);
    let (rect, response) = ui.allocate_exact_size(size, Sense::hover());
    response.widget_info(|| WidgetInfo::labeled(Role::Label, true, state.word()));
    if ui.is_rect_visible(rect) {
        let rest = icons::paint_left(ui.painter(), state.icon(), rect, 14.0, color);
        let origin = pos2(rest.left() + space::XS, rest.center().y - word.size().y / 2.0);
        ui.painter().galley(origin, word, color);
    }
    response
}

/// The name of a format in monospace on a raised ground.
pub fn tag_ui(ui: &mut Ui, format: &str) -> Response {
    let tokens = ui.tokens();
    let font = Type::MonoSmall.font();
    let galley = ui.painter().layout_no_wrap(format.to_owned(), font, tokens.text);
    let size = vec2(galley.size().x + 12.0, 18.0);
    let (rect, response) = ui.allocate_exact_size(size, Sense::hover());
    response.widget_info(|| WidgetInfo::labeled(Role::Label, true, format));
    if ui.is_rect_visible(rect) {
        let stroke = Stroke::new(1.0, tokens.hairline);
        let painter = ui.painter();
        painter.rect(rect, space::RADIUS, tokens.raised, stroke, StrokeKind::Inside);
        let origin = rect.center() - galley.size() / 2.0;
        painter.galley(origin, galley, tokens.text);
    }
    response
}
