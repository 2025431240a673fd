//! The one menu in which formats are chosen: each with its bits per weight and its shape rule.

use eframe::egui::{Align, ComboBox, Layout, Response, Ui};

use super::tag_ui;
use crate::app::theme::{Type, UiTokens as _, space};
use crate::engine::format;

/// A menu of formats.
#[derive(Clone, Copy, Debug)]
pub struct FormatMenu<'a> {
    /// The accessible name.
    pub name: &'a str,
    /// What is shown while the menu is closed.
    pub selected: &'a str,
    /// Width of the closed menu in points.
    pub width: f32,
    /// An entry before the formats that means none of them.
    pub none: Option<&'a str>,
    /// Weights a row of the tensor that the choice is for: formats that its rows do not fill say
    /// what they become.
    pub row_len: Option<usize>,
}

/// What was clicked in a [`FormatMenu`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormatChoice {
    /// The entry before the formats.
    None,
    /// A format, by its id.
    Format(&'static str),
}

/// Width of the open menu's entries in points.
const ENTRY_WIDTH: f32 = 236.0;

/// Shows the menu with `formats` in the order given.
pub fn format_menu_ui(
    ui: &mut Ui,
    menu: FormatMenu<'_>,
    formats: impl Iterator<Item = &'static str>,
) -> (Response, Option<FormatChoice>) {
    let mut chosen = None;
    let combo = ComboBox::from_id_salt(menu.name).selected_text(menu.selected).width(menu.width).height(420.0);
    let response = combo
        .show_ui(ui, |ui| {
            ui.set_min_width(ENTRY_WIDTH);
            if let Some(none) = menu.none
                && ui.selectable_label(menu.selected == none, none).clicked()
            {
                chosen = Some(FormatChoice::None);
            }
            for id in formats {
                if entry_ui(ui, id, menu.selected == id, menu.row_len) {
                    chosen = Some(FormatChoice::Format(id));
                }
            }
        })
        .response
        .accessible_name(menu.name);
    (response, chosen)
}

fn entry_ui(ui: &mut Ui, id: &'static str, is_selected: bool, row_len: Option<usize>) -> bool {
    let Some(format) = format::find(id) else {
        return false;
    };
    let fitting = row_len.map_or(format, |row_len| format::fitting(format, row_len));
    ui.horizontal(|ui| {
        let response = ui.selectable_label(is_selected, id).on_hover_text(format::rule(format));
        ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
            let weak = ui.tokens().weak;
            ui.label(Type::MonoSmall.text(format!("{:.2} bpw", fitting.bits_per_weight())).color(weak));
            if fitting.id() != id {
                ui.add_space(space::XS);
                tag_ui(ui, &format!("becomes {}", fitting.id()));
            }
        });
        response.clicked()
    })
    .inner
}
