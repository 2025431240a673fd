//! Where a plan's searches run: on the CPU, whose bytes are ggml's, or on the device that encodes.

use eframe::egui::{Checkbox, Ui};

use crate::app::context::Cx;
use crate::app::theme::Type;
use crate::engine::plan::{Plan, Search};
use crate::workbench::{Action, Command};

/// The switch. Whoever comes near it has devices looked for, so that it says whether there is one.
pub(super) fn search_ui(ui: &mut Ui, cx: &mut Cx<'_>, plan: &Plan) {
    let action = Action::ToggleDeviceSearch;
    let mut is_on = plan.search() == Search::Device;
    let reason = cx.bench.unavailable(action);
    let words = Type::Body.text(action.text());
    let response = ui.add_enabled(reason.is_none(), Checkbox::new(&mut is_on, words));
    let is_near = response.contains_pointer() || response.has_focus();
    if is_near && cx.state().devices.is_none() {
        cx.send(Command::FindDevices);
    }
    let response = match (reason, is_on.then(|| cx.state().no_search_device()).flatten()) {
        (Some(reason), _) => response.on_disabled_hover_text(reason),
        (None, Some(reason)) => response.on_hover_text(reason),
        (None, None) => response.on_hover_text(action.tooltip()),
    };
    if response.clicked() {
        cx.act(action);
    }
}
