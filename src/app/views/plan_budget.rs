//! The plan view's budget: a limit with a proposal for it, and a slider along the frontier that plans
//! anew on every move.

use eframe::egui::{DragValue, Slider, Ui};

use super::common::{caption_ui, combo_ui};
use super::plan_frontier::Frontier;
use crate::app::context::Cx;
use crate::app::widgets::secondary_button_ui;
use crate::engine::plan::ResolvedPlan;
use crate::engine::plan::budget::Limit;
use crate::engine::plan::speed::SpeedPrediction;
use crate::engine::units;
use crate::workbench::Command;

/// Bytes in the unit of the controls.
const MIB: f64 = 1_048_576.0;

/// What is limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    File,
    Tensors,
    Bits,
    Kld,
    Decode,
    Prefill,
}

impl Kind {
    const ALL: [Self; 6] = [Self::File, Self::Tensors, Self::Bits, Self::Kld, Self::Decode, Self::Prefill];

    /// True if there is what the limit is predicted from.
    fn is_offered(self, predicts_kld: bool, predicts_speed: bool) -> bool {
        match self {
            Self::Kld => predicts_kld,
            Self::Decode | Self::Prefill => predicts_speed,
            _ => true,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::File => "file size",
            Self::Tensors => "size of all tensors",
            Self::Bits => "bits per weight",
            Self::Kld => "predicted KLD",
            Self::Decode => "decode speed",
            Self::Prefill => "prefill speed",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::File | Self::Tensors => " MiB",
            Self::Bits => " bpw",
            Self::Kld => " nats",
            Self::Decode | Self::Prefill => " tok/s",
        }
    }

    fn limit(self, value: f64) -> Limit {
        match self {
            Self::File => Limit::FileBytes((value * MIB) as u64),
            Self::Tensors => Limit::TensorBytes((value * MIB) as u64),
            Self::Bits => Limit::BitsPerWeight(value),
            Self::Kld => Limit::Damage(value),
            Self::Decode => Limit::DecodeSpeed(value),
            Self::Prefill => Limit::PrefillSpeed(value),
        }
    }
}

/// What the row remembers between frames.
#[derive(Default)]
pub(super) struct Memory {
    kind: Kind,
    /// What was typed; none follows the plan.
    value: Option<f64>,
    /// Mebibytes under the pointer while the slider is held.
    held_mib: Option<f64>,
}

/// One line: what is limited and to what, the button that asks for a plan, and the slider.
pub(super) fn budget_ui(
    ui: &mut Ui,
    cx: &mut Cx<'_>,
    resolved: &ResolvedPlan,
    frontier: &Frontier,
    speed: Option<SpeedPrediction>,
    memory: &mut Memory,
) {
    let metric = frontier.metric;
    let predicts_kld = metric.is_some_and(|metric| metric.unit == "nats");
    let own_damage = frontier.damages.iter().find(|(own, _)| Some(own.id) == metric.map(|metric| metric.id));
    if !memory.kind.is_offered(predicts_kld, speed.is_some()) {
        (memory.kind, memory.value) = (Kind::default(), None);
    }
    ui.horizontal_wrapped(|ui| {
        caption_ui(ui, "Budget");
        let chosen = combo_ui(ui, "What is limited", memory.kind.text(), 132.0, |ui| {
            let mut chosen = None;
            let offered = Kind::ALL.into_iter().filter(|kind| kind.is_offered(predicts_kld, speed.is_some()));
            for kind in offered {
                if ui.selectable_label(memory.kind == kind, kind.text()).clicked() {
                    chosen = Some(kind);
                }
            }
            chosen
        });
        if let Some(kind) = chosen {
            (memory.kind, memory.value) = (kind, None);
        }
        let now = match memory.kind {
            Kind::File | Kind::Tensors => resolved.padded_bytes as f64 / MIB,
            Kind::Bits => resolved.new_bits_per_weight(),
            Kind::Kld => own_damage.map_or(0.0, |own| own.1),
            Kind::Decode => speed.map_or(0.0, |speed| speed.decode_tokens_per_second),
            Kind::Prefill => speed.map_or(0.0, |speed| speed.prefill_tokens_per_second),
        };
        let mut value = memory.value.unwrap_or(now);
        let speed = (now / 200.0).max(1e-6);
        let typed = DragValue::new(&mut value).range(0.0..=f64::MAX).speed(speed).suffix(memory.kind.unit());
        let typed = typed.max_decimals(if memory.kind == Kind::Kld { 6 } else { 3 });
        if ui.add(typed).accessible_name("Limit").changed() {
            memory.value = Some(value);
        }
        let propose = secondary_button_ui(ui, "Propose", metric.is_some());
        let why = "Plan for least predicted damage within the limit; rules made by hand stay";
        if propose.on_hover_text(why).on_disabled_hover_text("Measure the sensitivity first").clicked() {
            let limit = memory.kind.limit(value);
            cx.send(Command::PlanWithin { limit, metric: metric.map(|metric| metric.id), continues: false });
        }
        if let (Some(first), Some(last)) = (frontier.curve.first(), frontier.curve.last()) {
            slider_ui(ui, cx, [first.cost, last.cost], resolved, frontier, memory);
            let text = format!("{}, at least {}", units::bytes(resolved.padded_bytes), units::bytes(first.cost));
            caption_ui(ui, text)
                .on_hover_text("All tensors in the smallest formats measured, but for what rules made by hand decide");
        }
    });
}

/// Walks the frontier: every move is a plan of its own, a whole drag one step of undo.
fn slider_ui(
    ui: &mut Ui,
    cx: &mut Cx<'_>,
    ends: [u64; 2],
    resolved: &ResolvedPlan,
    frontier: &Frontier,
    memory: &mut Memory,
) {
    let [low, high] = ends.map(|bytes| bytes as f64 / MIB);
    let was_held = memory.held_mib.is_some();
    let mut mib = memory.held_mib.unwrap_or(resolved.padded_bytes as f64 / MIB);
    let slider = Slider::new(&mut mib, low..=high.max(low)).show_value(false).logarithmic(true);
    let response = ui.add(slider).accessible_name("Size of all tensors to plan for");
    let is_held = response.dragged();
    if response.changed() {
        // Bytes below the first corner are lost to rounding only.
        let limit = Limit::TensorBytes(((mib * MIB).ceil() as u64).max(ends[0]));
        let metric = frontier.metric.map(|metric| metric.id);
        cx.send(Command::PlanWithin { limit, metric, continues: was_held && is_held });
    }
    // Held from the first change on: only then there is a step that later moves belong to.
    memory.held_mib = (is_held && (was_held || response.changed())).then_some(mib);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_limit_is_in_its_own_unit() {
        assert_eq!(Kind::File.limit(2.5), Limit::FileBytes(5 << 19));
        assert_eq!(Kind::Tensors.limit(1.0), Limit::TensorBytes(1 << 20));
        assert_eq!(Kind::Bits.limit(4.5), Limit::BitsPerWeight(4.5));
        assert_eq!(Kind::Kld.limit(0.02), Limit::Damage(0.02));
        assert_eq!(Kind::Decode.limit(9.0), Limit::DecodeSpeed(9.0));
        assert!(!Kind::Prefill.is_offered(true, false) && !Kind::Kld.is_offered(false, true));
        for kind in Kind::ALL {
            assert!(kind.unit().starts_with(' ') && !kind.text().is_empty());
        }
    }
}
