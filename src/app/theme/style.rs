//! egui's own style, made of the tokens: what plain buttons, fields, menus and scroll bars look like.

use eframe::egui::{
    self, Color32, CornerRadius, Margin, Stroke, Style, Vec2, Visuals,
    style::{ScrollStyle, Selection, TextCursorStyle, WidgetVisuals, Widgets},
};

use super::{Tokens, Type, space};

/// The style of one theme.
pub(super) fn style(tokens: &Tokens) -> Style {
    let mut style = Style { visuals: visuals(tokens), animation_time: 0.08, ..Style::default() };
    style.text_styles = Type::ALL.map(|kind| (kind.style(), kind.font())).into_iter().collect();
    style.text_styles.insert(egui::TextStyle::Button, Type::Body.font());

    let spacing = &mut style.spacing;
    spacing.item_spacing = Vec2::new(space::S, space::XS);
    spacing.button_padding = Vec2::new(10.0, 3.0);
    spacing.interact_size = Vec2::new(space::ROW, space::ROW);
    spacing.window_margin = Margin::same(16);
    spacing.menu_margin = Margin::same(4);
    spacing.indent = space::L;
    spacing.icon_width = 14.0;
    spacing.icon_width_inner = 8.0;
    spacing.icon_spacing = 6.0;
    spacing.combo_width = 96.0;
    spacing.tooltip_width = 420.0;
    spacing.scroll = ScrollStyle { bar_width: 8.0, ..ScrollStyle::floating() };

    style.interaction.tooltip_delay = 0.35;
    style.interaction.selectable_labels = false;
    style.url_in_tooltip = true;
    style
}

fn visuals(tokens: &Tokens) -> Visuals {
    let base = if tokens.is_dark { Visuals::dark() } else { Visuals::light() };
    let radius = CornerRadius::same(space::RADIUS as u8);
    let hairline = Stroke::new(1.0, tokens.hairline);
    Visuals {
        widgets: widgets(tokens, radius),
        selection: Selection {
            bg_fill: tokens.selection,
            stroke: Stroke::new(1.0, if tokens.is_dark { tokens.text } else { tokens.accent }),
        },
        weak_text_color: Some(tokens.weak),
        hyperlink_color: tokens.accent,
        faint_bg_color: tokens.panel.lerp_to_gamma(tokens.raised, 0.5),
        extreme_bg_color: tokens.raised,
        text_edit_bg_color: Some(tokens.raised),
        code_bg_color: tokens.raised,
        warn_fg_color: tokens.undecided,
        error_fg_color: tokens.fail,
        window_corner_radius: CornerRadius::same(6),
        window_shadow: egui::Shadow::NONE,
        window_fill: tokens.panel,
        window_stroke: hairline,
        window_highlight_topmost: false,
        menu_corner_radius: radius,
        panel_fill: tokens.panel,
        popup_shadow: egui::Shadow::NONE,
        text_cursor: TextCursorStyle {
            stroke: Stroke::new(1.5, tokens.accent),
            // A blinking cursor repaints for ever; a still one costs nothing.
            blink: false,
            ..TextCursorStyle::default()
        },
        indent_has_left_vline: false,
        slider_trailing_fill: true,
        striped: false,
        interact_cursor: None,
        disabled_alpha: 0.5,
        ..base
    }
}

fn widgets(tokens: &Tokens, corner_radius: CornerRadius) -> Widgets {
    let state = |fill: Color32, line: Color32, text: Color32| WidgetVisuals {
        bg_fill: fill,
        weak_bg_fill: fill,
        bg_stroke: Stroke::new(1.0, line),
        corner_radius,
        fg_stroke: Stroke::new(1.0, text),
        expansion: 0.0,
    };
    Widgets {
        noninteractive: state(tokens.panel, tokens.hairline, tokens.text),
        inactive: state(tokens.raised, tokens.hairline, tokens.text),
        hovered: state(tokens.raised_hover, tokens.outline, tokens.text),
        active: state(tokens.raised_active, tokens.accent, tokens.text),
        open: state(tokens.raised_active, tokens.outline, tokens.text),
    }
}
