//! The weights: one tensor's histogram large, with its figures, and all layers as small multiples.

use std::sync::Arc;

use eframe::egui::{ScrollArea, Ui};

use super::common::{self, Grid, candidate_index, caption_ui, no_document_ui};
use crate::app::context::Cx;
use crate::app::plots::channels::{Channels, channels_ui};
use crate::app::plots::histogram::{Bins, Histogram, histogram_ui, small_outline};
use crate::app::plots::ridges::{Ridge, Ridges, ridges_ui};
use crate::app::theme::{Type, UiTokens as _, space};
use crate::app::widgets::{
    KeyValue, Level, Notice, bar_ui, card_ui, key_values_ui, notice_ui, secondary_button_ui, section_with_ui,
    segments_ui, tag_ui,
};
use crate::engine::checkpoint::Checkpoint;
use crate::engine::profile::TensorProfile;
use crate::engine::units;
use crate::workbench::{Command, Document, SelectMode};

/// Share of weights beyond six sigma from which a small histogram gets a mark.
const ODD_SHARE: f64 = 1e-4;

/// What the view remembers between frames.
pub struct Memory {
    /// 1 is logarithmic.
    counts: usize,
    checkpoint: Option<Arc<Checkpoint>>,
    profiled: usize,
    grid: Grid,
    ridges: Ridges,
    shown: Option<Arc<TensorProfile>>,
    channels: Vec<(f32, f32)>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            counts: 1,
            checkpoint: None,
            profiled: 0,
            grid: Grid::default(),
            ridges: Ridges::default(),
            shown: None,
            channels: Vec::new(),
        }
    }
}

/// Paints the view.
pub fn weights_ui(ui: &mut Ui, cx: &mut Cx<'_>) {
    let bench = cx.bench;
    let Some(document) = &bench.state().document else {
        no_document_ui(ui, cx, "Open a model to see how its weights are spread");
        return;
    };
    let mut memory = std::mem::take(&mut cx.memory.weights);
    memory.update(document);
    let focus = cx.state().selection.focus.or_else(|| memory.grid.tensors.iter().flatten().next().copied());
    ScrollArea::vertical().id_salt("weights").auto_shrink(false).show(ui, |ui| {
        ui.spacing_mut().item_spacing.y = space::S;
        if let Some(index) = focus {
            tensor_ui(ui, cx, document, &mut memory, index);
        }
        ridges_card_ui(ui, cx, document, &memory, focus);
    });
    cx.memory.weights = memory;
}

fn tensor_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, memory: &mut Memory, index: usize) {
    let Some(tensor) = document.checkpoint.tensors.get(index) else { return };
    let profile = document.profiles.get(index).and_then(Option::as_ref);
    card_ui(ui, |ui| {
        section_with_ui(ui, &tensor.name, |ui| {
            segments_ui(ui, "Counts", &["linear", "log"], &mut memory.counts);
            tag_ui(ui, &tensor.dtype.to_string());
        });
        let Some(profile) = profile else {
            match document.profile_faults.get(&index) {
                Some(fault) => {
                    let detail = fault.remedy.as_deref().unwrap_or_default();
                    notice_ui(ui, &Notice { level: Level::Warning, text: &fault.cause, detail, action: None });
                }
                None => {
                    caption_ui(ui, "Being measured");
                }
            }
            return;
        };
        memory.show_channels(profile);
        let room = ui.available_width();
        let is_wide = room > 700.0;
        let figures = 250.0;
        ui.horizontal_top(|ui| {
            ui.vertical(|ui| {
                ui.set_width(if is_wide { room - figures - space::XL } else { room });
                plots_ui(ui, cx, document, memory, profile);
            });
            if is_wide {
                ui.add_space(space::M);
                ui.vertical(|ui| {
                    ui.set_width(figures);
                    figures_ui(ui, profile);
                });
            }
        });
        if !is_wide {
            figures_ui(ui, profile);
        }
    });
}

fn plots_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, memory: &Memory, profile: &TensorProfile) {
    if profile.finite_count() == 0 {
        let text = "This tensor holds no finite weight";
        notice_ui(ui, &Notice { level: Level::Error, text, detail: "", action: None });
        return;
    }
    let run = document.focused();
    let candidate = run.and_then(|run| {
        let found = run.profiles.get(&profile.name)?;
        Some((bins_of(found), candidate_index(document, run.id)))
    });
    let histogram = Histogram {
        name: &profile.name,
        original: bins_of(profile),
        candidate,
        mean: profile.mean,
        sigma: profile.std,
        is_log: memory.counts == 1,
    };
    histogram_ui(ui, &histogram, 240.0);
    if let Some(run) = run {
        ui.horizontal(|ui| {
            if candidate.is_some() {
                let color = ui.tokens().candidate(candidate_index(document, run.id));
                ui.label(Type::Small.text(format!("{} laid over the original", run.name)).color(color));
            } else if run.profiles.is_empty() && run.checkpoint().is_some() {
                let text = format!("Lay {} over it", run.name);
                if secondary_button_ui(ui, &text, true).clicked() {
                    cx.send(Command::ProfileRun(run.id));
                }
            }
        });
    }
    if memory.channels.len() > 1 {
        channels_ui(ui, &Channels { name: &profile.name, what: "output channel", ranges: &memory.channels }, 92.0);
        let folded = profile.channels.rows_per_entry;
        if folded > 1 {
            caption_ui(ui, format!("Each bar covers {folded} neighbouring channels"));
        }
    }
}

fn figures_ui(ui: &mut Ui, profile: &TensorProfile) {
    let figure = units::significant;
    // Rare weights beyond σ lines need more digits than a percentage with one decimal has.
    let share = |value: f64| units::significant(value * 100.0);
    let kurtosis = profile.excess_kurtosis.map_or_else(|| "–".to_owned(), |value| units::minus(&format!("{value:.2}")));
    let mut lines = vec![
        KeyValue::new("weights", units::count(profile.count), ""),
        KeyValue::new("minimum", figure(profile.min), ""),
        KeyValue::new("maximum", figure(profile.max), ""),
        KeyValue::new("mean", figure(profile.mean), ""),
        KeyValue::new("standard deviation σ", figure(profile.std), ""),
        KeyValue::new("largest magnitude", figure(profile.abs_max), ""),
        KeyValue::new("excess kurtosis", kurtosis, "").hint("0 for a normal distribution, larger for heavier tails"),
        KeyValue::new("zeros", share(profile.zero_share), "%"),
        KeyValue::new("beyond 3σ", share(profile.beyond_3_sigma_share), "%").hint("0.27 % for a normal distribution"),
        KeyValue::new("beyond 4σ", share(profile.beyond_4_sigma_share), "%").hint("0.0063 % for a normal distribution"),
        KeyValue::new("beyond 6σ", share(profile.beyond_6_sigma_share), "%").hint("2e-7 % for a normal distribution"),
        KeyValue::new("NaN", units::count(profile.nan_count), ""),
        KeyValue::new("infinite", units::count(profile.inf_count), ""),
    ];
    if let Some(distinct) = profile.distinct_count {
        lines.push(KeyValue::new("different values", units::count(distinct), ""));
    }
    key_values_ui(ui, &lines);
}

fn ridges_card_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, memory: &Memory, focus: Option<usize>) {
    if memory.grid.tensors.is_empty() {
        return;
    }
    card_ui(ui, |ui| {
        let total = document.checkpoint.tensors.len();
        section_with_ui(ui, "All layers", |ui| {
            let done = memory.profiled + document.profile_faults.len();
            if done < total {
                bar_ui(ui, "Profiled tensors", Some(done as f32 / total as f32), 120.0);
                caption_ui(ui, format!("{done} / {total}"));
            }
        });
        let (rows, columns) = (memory.ridges.rows.len(), memory.ridges.columns.len());
        let selected = focus
            .and_then(|tensor| memory.grid.find(tensor))
            .map(|(role, layer)| ridge_of(role, layer, columns))
            .filter(|ridge| *ridge < rows * columns);
        if let Some(clicked) = ridges_ui(ui, &memory.ridges, selected)
            && let Some(tensor) = tensor_of(&memory.grid, clicked)
        {
            let modifiers = ui.input(|input| input.modifiers);
            let mode = if modifiers.command {
                SelectMode::Toggle
            } else if modifiers.shift {
                SelectMode::Extend
            } else {
                SelectMode::Replace
            };
            cx.send(Command::Select { tensor, mode });
        }
    });
}

/// Small multiples have layers down and roles across: index of a cell of the grid there.
fn ridge_of(role: usize, layer: usize, columns: usize) -> usize {
    layer * columns + role
}

/// The tensor of a small multiple.
fn tensor_of(grid: &Grid, ridge: usize) -> Option<usize> {
    let columns = grid.roles.len().max(1);
    grid.at(ridge % columns, ridge / columns)
}

fn bins_of(profile: &TensorProfile) -> Bins<'_> {
    Bins { min: profile.histogram.min, max: profile.histogram.max, counts: &profile.histogram.counts }
}

impl Memory {
    fn update(&mut self, document: &Document) {
        let is_other = !common::is_same(self.checkpoint.as_ref(), Some(&document.checkpoint));
        let profiled = document.profiles.iter().flatten().count();
        if !is_other && profiled == self.profiled {
            return;
        }
        if is_other {
            self.checkpoint = Some(document.checkpoint.clone());
            self.grid = Grid::of(&document.checkpoint, false);
            self.ridges = Ridges {
                columns: self.grid.roles.iter().map(|role| role.name().to_owned()).collect(),
                rows: self.grid.layers.iter().map(|layer| Grid::layer_name(*layer)).collect(),
                cells: vec![None; self.grid.tensors.len()],
                axis: "−6σ … 6σ of each tensor, logarithmic counts".to_owned(),
            };
        }
        self.profiled = profiled;
        for (index, cell) in self.ridges.cells.iter_mut().enumerate() {
            if cell.is_none() {
                *cell = tensor_of(&self.grid, index)
                    .and_then(|tensor| document.profiles.get(tensor)?.as_deref())
                    .map(ridge);
            }
        }
    }

    /// Channel ranges of the tensor that is shown, with NaN where a channel has no finite weight.
    fn show_channels(&mut self, profile: &Arc<TensorProfile>) {
        if !common::is_same(self.shown.as_ref(), Some(profile)) {
            self.shown = Some(profile.clone());
            let ranges = profile.channels.ranges.iter();
            self.channels = ranges.map(|range| range.unwrap_or((f32::NAN, f32::NAN))).collect();
        }
    }
}

fn ridge(profile: &TensorProfile) -> Ridge {
    let reach = 6.0 * profile.std.max(f64::MIN_POSITIVE);
    Ridge {
        tensor_name: profile.name.clone(),
        heights: small_outline(&bins_of(profile), profile.mean - reach, profile.mean + reach, true),
        note: format!("σ {}", units::significant(profile.std)),
        is_odd: profile.nan_count + profile.inf_count > 0 || profile.beyond_6_sigma_share >= ODD_SHARE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::checkpoint::Role;

    #[test]
    fn small_multiples_have_layers_down_and_roles_across() {
        let grid = Grid {
            roles: vec![Role::Q, Role::Down],
            layers: vec![Some(0), Some(1), Some(2)],
            tensors: (10..16).map(Some).collect(),
        };
        // Second row of the multiples is layer 1: q is 11, down is 14.
        assert_eq!(tensor_of(&grid, 2), Some(11));
        assert_eq!(tensor_of(&grid, 3), Some(14));
        for tensor in 10..16 {
            let (role, layer) = grid.find(tensor).expect("in the grid");
            assert_eq!(tensor_of(&grid, ridge_of(role, layer, 2)), Some(tensor));
        }
    }
}
