//! What a run took out of the network: original and candidate side by side, and the slices that paid for it.

use std::collections::BTreeSet;
use std::sync::Arc;

use eframe::egui::{Grid, Ui};

use super::common::{caption_ui, figure_ui, head_ui};
use super::heads::map_of;
use crate::app::plots::head_map::{head_map_ui, height_for};
use crate::app::theme::{Type, space};
use crate::app::widgets::{KeyValue, card_ui, key_values_ui, section_with_ui};
use crate::engine::checkpoint::{LayerUnits, ModelConfig, Removal};
use crate::engine::comparison::Comparison;
use crate::engine::units;
use crate::workbench::{Document, Run};

/// From this width on the two maps stand beside each other.
const WIDE: f32 = 640.0;

/// Original and candidate on the heads, channels and layers that went; nothing where the run took nothing.
pub(super) fn went_ui(ui: &mut Ui, document: &Document, run: &Run, comparison: &Comparison) {
    let removal = &run.plan.prune().removal;
    let Some(config) = document.checkpoint.config.as_ref().filter(|_| !removal.is_empty()) else { return };
    card_ui(ui, |ui| {
        section_with_ui(ui, "Heads, channels and layers that went", |ui| {
            caption_ui(ui, "original and candidate");
        });
        if let Some(sentence) = cost(comparison) {
            ui.label(Type::Body.text(sentence));
        }
        // Any metric that is there: what went is told beside what it was worth.
        let scores = document.unit_scores.values().next().map(Arc::as_ref);
        let (whole, left) = (map_of(config, &Removal::default(), scores), map_of(config, removal, scores));
        let height = height_for(config.layers.len());
        let side_ui = |ui: &mut Ui, name: &str, map| {
            caption_ui(ui, name);
            ui.push_id(name, |ui| head_map_ui(ui, map, height, false, false));
        };
        if ui.available_width() >= WIDE {
            ui.columns(2, |columns| {
                side_ui(&mut columns[0], "original", &whole);
                side_ui(&mut columns[1], &run.name, &left);
            });
        } else {
            side_ui(ui, "original", &whole);
            side_ui(ui, &run.name, &left);
        }
        layers_ui(ui, config, removal);
        let Some(new) = run.checkpoint().and_then(|candidate| candidate.config.as_ref()) else { return };
        totals_ui(ui, config, new);
    });
}

/// What the run lost over all items, and the slice that lost most.
fn cost(comparison: &Comparison) -> Option<String> {
    let overall = comparison.overall.as_ref()?;
    let worst = comparison.worst_slice.as_ref()?;
    let worst = comparison.slices.iter().find(|slice| slice.name() == *worst)?;
    if worst.paired.difference >= 0.0 {
        return Some(format!("No slice lost by it; all items {}", points(overall.difference, overall.margin())));
    }
    Some(format!(
        "{} lost most: {}; all items {}",
        worst.name(),
        points(worst.paired.difference, worst.paired.margin()),
        points(overall.difference, overall.margin())
    ))
}

fn points(difference: f64, margin: f64) -> String {
    units::minus(&format!("{:+.1} ± {:.1} points", difference * 100.0, margin * 100.0))
}

/// Indices as people list them: 0, 3-7.
fn indices(list: &BTreeSet<usize>) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &index in list {
        match runs.last_mut() {
            Some(run) if run.1 + 1 == index => run.1 = index,
            _ => runs.push((index, index)),
        }
    }
    let text = |(first, last): &(usize, usize)| match last - first {
        0 => first.to_string(),
        1 => format!("{first}, {last}"),
        _ => format!("{first}-{last}"),
    };
    runs.iter().map(text).collect::<Vec<String>>().join(", ")
}

/// One row for every layer that lost something.
fn layers_ui(ui: &mut Ui, config: &ModelConfig, removal: &Removal) {
    let none = LayerUnits::default();
    Grid::new("layers that lost units").num_columns(4).spacing([space::L, space::XS]).show(ui, |ui| {
        let heads = [("layer", false), ("KV groups that went", false), ("query heads that went", false)];
        heads.into_iter().for_each(|(title, is_right)| head_ui(ui, title, is_right));
        head_ui(ui, "channels", true);
        ui.end_row();
        for (layer, shape) in config.layers.iter().enumerate() {
            let units = removal.units.get(&layer).unwrap_or(&none);
            let is_gone = removal.layers.contains(&layer);
            if !is_gone && units.is_empty() {
                continue;
            }
            ui.label(format!("layer {layer}"));
            if is_gone {
                ui.label("all");
                ui.label("all");
                figure_ui(ui, format!("{} → 0", shape.mlp_channels));
            } else {
                ui.label(indices(&units.kv_groups));
                ui.label(indices(&units.heads));
                figure_ui(ui, format!("{} → {}", shape.mlp_channels, shape.mlp_channels - units.channels.len()));
            }
            ui.end_row();
        }
    });
}

fn totals_ui(ui: &mut Ui, old: &ModelConfig, new: &ModelConfig) {
    let heads = |config: &ModelConfig| config.layers.iter().map(|layer| layer.heads).sum::<usize>();
    let groups = |config: &ModelConfig| config.layers.iter().map(|layer| layer.kv_heads).sum::<usize>();
    let channels = |config: &ModelConfig| config.layers.iter().map(|layer| layer.mlp_channels).sum::<usize>();
    let pair = |old: String, new: String| format!("{old} → {new}");
    let count = |count: usize| count.to_string();
    let weights = pair(units::count(old.layer_weights()), units::count(new.layer_weights()));
    let cache = pair(units::bytes(old.kv_bytes_per_token()), units::bytes(new.kv_bytes_per_token()));
    key_values_ui(
        ui,
        &[
            KeyValue::new("layers", pair(count(old.layers.len()), count(new.layers.len())), ""),
            KeyValue::new("query heads", pair(count(heads(old)), count(heads(new))), ""),
            KeyValue::new("KV heads", pair(count(groups(old)), count(groups(new))), ""),
            KeyValue::new("MLP channels", pair(count(channels(old)), count(channels(new))), ""),
            KeyValue::new("weights of layers", weights, ""),
            KeyValue::new("KV cache of a token, f32", cache, ""),
        ],
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_indices_are_told_as_such() {
        assert_eq!(indices(&[0, 3, 4, 5, 8, 9].into()), "0, 3-5, 8, 9");
        assert_eq!(indices(&BTreeSet::new()), "");
        assert_eq!(points(-0.254, 0.03), "−25.4 ± 3.0 points");
    }
}
