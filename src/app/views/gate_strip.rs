//! Gates as a strip of verdicts: what failed or is undecided first, and the rest in a menu.

use eframe::egui::containers::menu::MenuButton;
use eframe::egui::{Grid, Label, ScrollArea, Ui, vec2};

use super::common::caption_ui;
use super::compare_data::state;
use crate::app::theme::{Type, UiTokens as _, space};
use crate::app::widgets::pill_ui;
use crate::engine::comparison::{Comparison, GateResult, Verdict};

/// Pills that a strip shows; with a gate for every slice there are dozens.
const SHOWN: usize = 6;
/// Largest height of the menu's list.
const MENU_HEIGHT: f32 = 420.0;

/// What a gate judges, in words.
fn what(gate: &GateResult) -> String {
    let metric = &gate.metric;
    let what = gate.slice.as_deref().map_or_else(|| metric.clone(), |slice| format!("{metric} on {slice}"));
    if gate.is_binding { format!("{what} (least room)") } else { what }
}

/// The gates in the order in which they matter: failed, undecided, the one with least room, the others.
fn by_weight(gates: &[GateResult]) -> Vec<&GateResult> {
    let mut ordered: Vec<&GateResult> = gates.iter().collect();
    ordered.sort_by_key(|gate| match gate.verdict {
        Verdict::Fail => 0,
        Verdict::Undecided => 1,
        Verdict::Pass => 3 - u8::from(gate.is_binding),
    });
    ordered
}

/// How many gates have each verdict, such as `22 pass, 3 undecided`.
fn counts(gates: &[&GateResult]) -> String {
    let parts =
        [(Verdict::Fail, "fail"), (Verdict::Undecided, "undecided"), (Verdict::Pass, "pass")].map(|(verdict, word)| {
            match gates.iter().filter(|gate| gate.verdict == verdict).count() {
                0 => None,
                count => Some(format!("{count} {word}")),
            }
        });
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The verdicts that matter most as pills, put into a row that wraps, and a menu of all where there are more.
pub(super) fn gate_strip_ui(ui: &mut Ui, gates: &[GateResult]) {
    let ordered = by_weight(gates);
    let shown = if ordered.len() <= SHOWN + 1 { ordered.len() } else { SHOWN };
    for gate in &ordered[..shown] {
        pill_ui(ui, &what(gate), state(gate.verdict)).on_hover_text(format!("{}: {}", gate.limit, gate.reason));
    }
    let rest = &ordered[shown..];
    if !rest.is_empty() {
        MenuButton::new(format!("and {} more: {}", rest.len(), counts(rest))).ui(ui, |ui| all_ui(ui, &ordered));
    }
}

/// Every gate with its limit and why its verdict is what it is.
fn all_ui(ui: &mut Ui, ordered: &[&GateResult]) {
    ui.set_min_width(640.0);
    caption_ui(ui, format!("{} gates: {}", ordered.len(), counts(ordered)));
    ScrollArea::vertical().max_height(MENU_HEIGHT).show(ui, |ui| {
        Grid::new("all gates").num_columns(2).spacing(vec2(space::M, space::XS)).show(ui, |ui| {
            for gate in ordered {
                pill_ui(ui, &what(gate), state(gate.verdict));
                let text = Type::Small.text(format!("{}: {}", gate.limit, gate.reason)).color(ui.tokens().weak);
                ui.add(Label::new(text).extend());
                ui.end_row();
            }
        });
    });
}

/// What to go back to after a failure.
pub(super) fn rollback_ui(ui: &mut Ui, comparison: &Comparison) {
    if let Some(rollback) = &comparison.rollback {
        let hash = rollback.id.get(..12).unwrap_or(&rollback.id);
        caption_ui(ui, format!("a gate failed: go back to {} ({hash})", rollback.name)).on_hover_text(&rollback.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(slice: &str, verdict: Verdict, is_binding: bool) -> GateResult {
        GateResult {
            metric: "accuracy".into(),
            slice: Some(slice.into()),
            limit: "max_loss = 0.02".into(),
            line: 1,
            estimate: None,
            interval: None,
            n: None,
            slack: None,
            is_binding,
            verdict,
            reason: String::new(),
        }
    }

    #[test]
    fn what_failed_comes_first_and_the_rest_is_counted() {
        let gates = [
            gate("a", Verdict::Pass, false),
            gate("b", Verdict::Pass, true),
            gate("c", Verdict::Undecided, false),
            gate("d", Verdict::Fail, false),
            gate("e", Verdict::Pass, false),
        ];
        let ordered = by_weight(&gates);
        let names: Vec<String> = ordered.iter().map(|gate| what(gate)).collect();
        let expected =
            ["accuracy on d", "accuracy on c", "accuracy on b (least room)", "accuracy on a", "accuracy on e"];
        assert_eq!(names, expected);
        assert_eq!(counts(&ordered), "1 fail, 1 undecided, 3 pass");
        assert_eq!(counts(&ordered[2..]), "3 pass");
    }
}
