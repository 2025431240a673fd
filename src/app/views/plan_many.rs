//! Choices for many tensors at once: a role in some layers, a pattern of names, a layer's choices
//! copied to others, and what is tied together.

use eframe::egui::containers::menu::{MenuButton, MenuConfig};
use eframe::egui::{Checkbox, DragValue, PopupCloseBehavior, TextEdit, Ui};

use super::common::{action_button_ui, caption_ui, combo_ui};
use crate::app::context::Cx;
use crate::app::widgets::{FormatChoice, FormatMenu, format_menu_ui, secondary_button_ui};
use crate::engine::checkpoint::{Checkpoint, Role};
use crate::engine::plan::{LayerSet, Ties, Treatment};
use crate::workbench::{Action, Command, Document};

/// What the controls for many tensors are set to.
pub(super) struct Bulk {
    /// None is every linear.
    role: Option<Role>,
    from: usize,
    to: usize,
    format: &'static str,
    glob: String,
    source: usize,
    targets: String,
}

impl Default for Bulk {
    fn default() -> Self {
        Self {
            role: None,
            from: 0,
            to: usize::MAX,
            format: "q6_k",
            glob: String::new(),
            source: 0,
            targets: String::new(),
        }
    }
}

/// The controls, as lines that wrap.
pub(super) fn bulk_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, bulk: &mut Bulk) {
    let last = document.checkpoint.tensors.iter().filter_map(|tensor| tensor.layer).max().unwrap_or(0);
    (bulk.from, bulk.to) = (bulk.from.min(last), bulk.to.min(last));
    ui.horizontal_wrapped(|ui| {
        caption_ui(ui, "Many at once");
        roles_ui(ui, bulk, last);
        let tensors = bulk_tensors(&document.checkpoint, bulk);
        let menu =
            FormatMenu { name: "Format for many", selected: bulk.format, width: 76.0, none: None, row_len: None };
        if let (_, Some(FormatChoice::Format(id))) = format_menu_ui(ui, menu, document.plan().target().formats()) {
            bulk.format = id;
        }
        let text = format!("Set {} tensors", tensors.len());
        if secondary_button_ui(ui, &text, !tensors.is_empty()).clicked() {
            cx.send(Command::SetFormat { tensors: tensors.clone(), format: bulk.format });
        }
        let config = MenuConfig::new().close_behavior(PopupCloseBehavior::CloseOnClickOutside);
        let (response, _) = MenuButton::new("More").config(config).ui(ui, |ui| {
            ui.set_min_width(420.0);
            ui.horizontal(|ui| glob_ui(ui, cx, bulk));
            ui.horizontal(|ui| copy_ui(ui, cx, bulk, last));
            ui.horizontal(|ui| ties_ui(ui, cx, document.plan().ties()));
            ui.horizontal(|ui| {
                let text = format!("Select {} tensors", tensors.len());
                if secondary_button_ui(ui, &text, !tensors.is_empty()).clicked() {
                    cx.send(Command::SelectSet(tensors));
                }
                action_button_ui(ui, cx, Action::ClearChoices, false);
            });
        });
        let help = "Tensors by a pattern of their names, a layer's choices for others, and what is tied together";
        response.on_hover_text(help).accessible_name("More ways to choose for many");
    });
}

fn roles_ui(ui: &mut Ui, bulk: &mut Bulk, last: usize) {
    let selected = bulk.role.map_or("all linears", Role::name);
    let chosen = combo_ui(ui, "Role to change", selected, 92.0, |ui| {
        let mut chosen = None;
        if ui.selectable_label(bulk.role.is_none(), "all linears").clicked() {
            chosen = Some(None);
        }
        for role in Role::ALL.into_iter().filter(|role| role.is_layer_linear()) {
            if ui.selectable_label(bulk.role == Some(role), role.name()).clicked() {
                chosen = Some(Some(role));
            }
        }
        chosen
    });
    if let Some(role) = chosen {
        bulk.role = role;
    }
    caption_ui(ui, "of layers");
    ui.add(DragValue::new(&mut bulk.from).range(0..=last)).accessible_name("First layer to change");
    caption_ui(ui, "to");
    ui.add(DragValue::new(&mut bulk.to).range(0..=last)).accessible_name("Last layer to change");
}

/// Tensors by a pattern of their names, stored in the format of the line above or protected.
fn glob_ui(ui: &mut Ui, cx: &mut Cx<'_>, bulk: &mut Bulk) {
    caption_ui(ui, "Names");
    let field = TextEdit::singleline(&mut bulk.glob).hint_text("*.layers.0.*").desired_width(140.0);
    ui.add(field).accessible_name("Pattern of tensor names");
    let glob = bulk.glob.trim().to_owned();
    if secondary_button_ui(ui, &format!("Set to {}", bulk.format), !glob.is_empty()).clicked() {
        let treatment = Treatment::Format { format: bulk.format, method: None };
        cx.send(Command::SetGlob { glob: glob.clone(), treatment });
    }
    if secondary_button_ui(ui, "Protect them", !glob.is_empty()).clicked() {
        cx.send(Command::SetGlob { glob, treatment: Treatment::Protect });
    }
}

/// One layer's choices for others.
fn copy_ui(ui: &mut Ui, cx: &mut Cx<'_>, bulk: &mut Bulk, last: usize) {
    caption_ui(ui, "Copy layer");
    bulk.source = bulk.source.min(last);
    ui.add(DragValue::new(&mut bulk.source).range(0..=last)).accessible_name("Layer to copy");
    caption_ui(ui, "to");
    let field = TextEdit::singleline(&mut bulk.targets).hint_text("1-3,5").desired_width(64.0);
    ui.add(field).accessible_name("Layers to copy to");
    let layers = layers_of(&bulk.targets, last);
    let button = secondary_button_ui(ui, "Copy choices", layers.is_some());
    let why = "Write layers as 1-3 or 0,2,4-6";
    if button.on_hover_text("Treat every linear of these layers alike").on_disabled_hover_text(why).clicked() {
        cx.send(Command::CopyLayer { from: bulk.source, to: layers.unwrap_or_default() });
    }
}

/// The layers that a text names, if all of them are there.
fn layers_of(text: &str, last: usize) -> Option<Vec<usize>> {
    let layers = LayerSet::parse(text).ok().filter(|layers| layers.last() <= last)?;
    Some(layers.iter().collect())
}

/// Switches for what shares a format.
fn ties_ui(ui: &mut Ui, cx: &mut Cx<'_>, ties: Ties) {
    let mut next = ties;
    caption_ui(ui, "Alike").on_hover_text("Runtimes that fuse linears want one format in each set");
    ui.add(Checkbox::new(&mut next.attention, "q, k, v"));
    ui.add(Checkbox::new(&mut next.mlp, "gate, up"));
    if next != ties {
        cx.send(Command::SetTies(next));
    }
}

fn bulk_tensors(checkpoint: &Checkpoint, bulk: &Bulk) -> Vec<usize> {
    let range = bulk.from.min(bulk.to)..=bulk.to.max(bulk.from);
    let fits = |role: Role| bulk.role.map_or(role.is_layer_linear(), |own| own == role);
    checkpoint
        .tensors
        .iter()
        .enumerate()
        .filter(|(_, tensor)| fits(tensor.role) && tensor.layer.is_some_and(|layer| range.contains(&layer)))
        .map(|(index, _)| index)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_at_once_takes_the_role_in_the_layers_named() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo");
        let checkpoint = Checkpoint::open(&path).expect("the demo opens");
        let bulk = Bulk { role: Some(Role::Down), from: 2, to: 1, ..Bulk::default() };
        let found: Vec<Option<usize>> =
            bulk_tensors(&checkpoint, &bulk).into_iter().map(|index| checkpoint.tensors[index].layer).collect();
        assert_eq!(found, [Some(1), Some(2)]);
        let every = bulk_tensors(&checkpoint, &Bulk { to: 0, ..Bulk::default() });
        assert_eq!(every.len(), 7);
    }

    #[test]
    fn layers_beyond_the_last_are_no_place_to_copy_to() {
        assert_eq!(layers_of("1-2, 5", 5), Some(vec![1, 2, 5]));
        assert_eq!(layers_of("1-6", 5), None);
        assert_eq!(layers_of("", 5), None);
    }
}
