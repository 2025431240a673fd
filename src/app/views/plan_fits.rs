//! Whether what the plan makes fits the devices that models run on, a line a device.

use std::sync::Arc;

use eframe::egui::containers::menu::{MenuButton, MenuConfig};
use eframe::egui::{PopupCloseBehavior, Ui};

use super::common::caption_ui;
use crate::app::context::Cx;
use crate::app::theme::{Type, UiTokens as _, space};
use crate::app::widgets::{State, state_word_ui};
use crate::engine::device::Listed;
use crate::engine::model::fit::{Fit, ModelPlace};
use crate::engine::plan::room::fit_on;
use crate::engine::plan::{Constraints, ResolvedPlan};
use crate::workbench::{Command, Document};

/// From this size on, devices are looked for before anybody asks: smaller models fit everywhere.
const WORTH_LOOKING: u64 = 1 << 30;

/// How the plan fits one device.
struct Found {
    fit: Fit,
    /// True if models run there now.
    is_chosen: bool,
}

/// What the menu remembers between frames.
#[derive(Default)]
pub(super) struct Memory {
    resolved: Option<Arc<ResolvedPlan>>,
    devices: Option<Arc<Vec<Listed>>>,
    constraints: Constraints,
    found: Vec<Found>,
}

impl Memory {
    /// Looks again where the plan or the list of devices has changed.
    fn update(&mut self, document: &Document, resolved: &Arc<ResolvedPlan>, devices: &Arc<Vec<Listed>>) {
        let is_same = self.resolved.as_ref().is_some_and(|own| Arc::ptr_eq(own, resolved))
            && self.devices.as_ref().is_some_and(|own| Arc::ptr_eq(own, devices))
            && self.constraints == *document.plan().constraints();
        if is_same {
            return;
        }
        self.resolved = Some(Arc::clone(resolved));
        self.devices = Some(Arc::clone(devices));
        self.constraints = document.plan().constraints().clone();
        let look = |device: &Listed| {
            let fit = fit_on(&document.checkpoint, document.plan(), resolved, &ModelPlace::of(device)?)?;
            Some(Found { fit, is_chosen: device.will_run_models() })
        };
        self.found = devices.iter().filter_map(look).collect();
    }

    /// True if the plan does not fit where models run now.
    fn is_too_large(&self) -> bool {
        self.found.iter().any(|found| found.is_chosen && !found.fit.fits())
    }
}

/// The menu: every device that runs models, with what comes of the plan there.
pub(super) fn fits_ui(
    ui: &mut Ui,
    cx: &mut Cx<'_>,
    document: &Document,
    resolved: &Arc<ResolvedPlan>,
    memory: &mut Memory,
) {
    let devices = cx.state().devices.clone();
    if let Some(devices) = &devices {
        memory.update(document, resolved, devices);
    } else if resolved.new_bytes >= WORTH_LOOKING {
        cx.send(Command::FindDevices);
    }
    let is_known = devices.is_some();
    let color = if is_known && memory.is_too_large() { ui.tokens().undecided } else { ui.tokens().text };
    let config = MenuConfig::new().close_behavior(PopupCloseBehavior::CloseOnClickOutside);
    let menu = MenuButton::new(Type::Body.text("Fits on…").color(color)).config(config);
    let (response, _) = menu.ui(ui, |ui| {
        ui.set_min_width(420.0);
        if !is_known {
            cx.send(Command::FindDevices);
            caption_ui(ui, "Looking for devices…");
            return;
        }
        for found in &memory.found {
            found_ui(ui, found);
        }
    });
    response
        .on_hover_text("Whether weights, keys and values of what this plan makes fit where models run")
        .accessible_name("What fits which device");
}

fn found_ui(ui: &mut Ui, found: &Found) {
    let Found { fit, is_chosen } = found;
    ui.horizontal(|ui| {
        ui.label(Type::Strong.text(fit.device.as_str()));
        let state = match fit.memory_bytes {
            None => State::Unknown,
            Some(_) if fit.fits() => State::Met,
            Some(_) => State::Missed,
        };
        state_word_ui(ui, state);
        if *is_chosen {
            caption_ui(ui, "models run here");
        }
    });
    caption_ui(ui, fit.verdict());
    caption_ui(ui, fit.needs_in_words());
    ui.add_space(space::S);
}
