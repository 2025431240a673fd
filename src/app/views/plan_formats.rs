//! The formats of the plan's target side by side, before anything is run: exact bits with scales,
//! the rows they can hold, what others become, and the size of the model with every linear in them.

use eframe::egui::{Grid, ScrollArea, Ui};

use super::common::{caption_ui, figure_ui, head_ui};
use crate::app::theme::{Type, UiTokens as _, space};
use crate::engine::checkpoint::Checkpoint;
use crate::engine::format::{self, Format};
use crate::engine::plan::ResolvedPlan;
use crate::engine::units;
use crate::workbench::Document;

/// The table, as the content of a menu.
pub(super) fn formats_ui(ui: &mut Ui, document: &Document) {
    let Ok(resolved) = &document.resolved else {
        caption_ui(ui, "The plan cannot be applied, so sizes are unknown");
        return;
    };
    let target = document.plan().target();
    caption_ui(ui, "Each format for every linear of this model, scales included; the rest as planned");
    ScrollArea::vertical().max_height(460.0).show(ui, |ui| {
        Grid::new("formats").num_columns(5).spacing([space::L, space::XS]).show(ui, |ui| {
            let heads =
                [("format", false), ("bpw", true), ("model", true), ("fall back", true), ("rows it can hold", false)];
            for (text, is_right) in heads {
                head_ui(ui, text, is_right);
            }
            ui.end_row();
            for format in target.formats().filter_map(format::find) {
                let whole = Whole::of(&document.checkpoint, resolved, format);
                ui.label(Type::Mono.text(format.id()));
                figure_ui(ui, format!("{:.2}", whole.bits_per_weight()));
                figure_ui(ui, units::bytes(whole.bytes));
                figure_ui(ui, format!("{} of {}", whole.fallen, whole.linears));
                let weak = ui.tokens().weak;
                ui.label(Type::Small.text(format::rule(format)).color(weak));
                ui.end_row();
            }
        });
    });
}

/// The model with every linear of its layers in one format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Whole {
    bytes: u64,
    linear_bytes: u64,
    linear_weights: u64,
    linears: usize,
    /// Linears that become another format.
    fallen: usize,
}

impl Whole {
    fn of(checkpoint: &Checkpoint, resolved: &ResolvedPlan, format: &'static dyn Format) -> Self {
        let mut whole = Self { bytes: 0, linear_bytes: 0, linear_weights: 0, linears: 0, fallen: 0 };
        for decision in &resolved.decisions {
            let Some(tensor) = checkpoint.tensors.get(decision.tensor_index) else { continue };
            if !tensor.role.is_layer_linear() {
                whole.bytes = whole.bytes.saturating_add(decision.new_bytes);
                continue;
            }
            let fitting = format::fitting(format, tensor.row_len());
            whole.linears += 1;
            whole.fallen += usize::from(fitting.id() != format.id());
            let stored = fitting.stored_bytes(tensor.row_count() as u64, tensor.row_len()).unwrap_or(0);
            whole.bytes = whole.bytes.saturating_add(stored);
            whole.linear_bytes = whole.linear_bytes.saturating_add(stored);
            whole.linear_weights = whole.linear_weights.saturating_add(decision.weight_count);
        }
        whole
    }

    /// Exact bits of a linear's weight, with the scales that rows and tensors share.
    fn bits_per_weight(&self) -> f64 {
        units::bits_per_weight(self.linear_bytes, self.linear_weights)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::plan::{Plan, Recipe, Target, resolve};

    #[test]
    fn the_size_of_a_whole_model_is_that_of_a_plan_with_this_format() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo");
        let checkpoint = Checkpoint::open(&path).expect("the demo opens");
        // The recipe Q8_0 asks for q8_0 everywhere, so its linears are those of the table's line.
        let plan = Plan::of_recipe(Target::Gguf, None, Recipe::Q8_0);
        let resolved = resolve(&plan, &checkpoint).expect("resolves");
        let whole = Whole::of(&checkpoint, &resolved, format::find("q8_0").expect("registered"));
        assert_eq!(whole.bytes, resolved.new_bytes);
        assert_eq!((whole.linears, whole.fallen), (42, 0));
        assert_eq!(whole.bits_per_weight(), 8.5);
        let smaller = Whole::of(&checkpoint, &resolved, format::find("q4_0").expect("registered"));
        assert!(smaller.bytes < whole.bytes);
    }
}
