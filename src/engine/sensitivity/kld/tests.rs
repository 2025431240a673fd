//! Cells against full forwards, their order, groups, and cells that are known already.

use std::path::{Path, PathBuf};

use super::*;
use crate::calibration::Documents;
use crate::model::Tokenizer;
use crate::scoring::TextOptions;

struct Demo {
    checkpoint: Checkpoint,
    model: Model,
    text: GroupedText,
}

fn folder() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("assets/demo")
}

fn demo(tokens: usize) -> Demo {
    let checkpoint = Checkpoint::open(&folder()).expect("opens");
    let model = Model::load(&checkpoint, &Progress::default()).expect("loads");
    let tokenizer = Tokenizer::of_checkpoint(&checkpoint).expect("tokenizer");
    let documents = Documents::read(&folder().join("calibration.jsonl")).expect("reads");
    let options = TextOptions { max_tokens: Some(tokens), ..TextOptions::default() };
    let text = GroupedText::of_documents(&tokenizer, &documents, 256, 2048, &options).expect("cut");
    Demo { checkpoint, model, text }
}

fn options(formats: &[&str], tensors: &[&str]) -> KldOptions {
    KldOptions {
        formats: formats.iter().map(|&id| id.to_owned()).collect(),
        tensors: Some(tensors.iter().map(|&name| name.to_owned()).collect()),
        ..KldOptions::default()
    }
}

impl Demo {
    fn measure(&self, options: &KldOptions) -> (SensitivityTable, Vec<(usize, usize)>) {
        let mut cells = Vec::new();
        let progress = Progress::default();
        let mut tell = |row, column, _: &SensitivityValue| cells.push((row, column));
        let table = measured_kld(&self.checkpoint, &self.model, &self.text, options, &progress, &mut tell);
        let snapshot = progress.snapshot();
        assert_eq!(snapshot.done, snapshot.total, "every token is counted");
        (table.expect("measures"), cells)
    }
}

const EVERY_PLACE: [&str; 6] = [
    "model.embed_tokens.weight",
    "model.layers.1.self_attn.v_proj.weight",
    "model.layers.2.self_attn.o_proj.weight",
    "model.layers.3.mlp.gate_proj.weight",
    "model.layers.4.mlp.up_proj.weight",
    "model.layers.5.mlp.down_proj.weight",
];

#[test]
fn rows_that_are_kept_change_no_bit_of_the_result() {
    let demo = demo(250);
    let mut options = options(&["q2_k"], &EVERY_PLACE);
    let (kept, _) = demo.measure(&options);
    for state_bytes in [demo.model.kept_bytes(600, crate::model::Kept::Layers), 0] {
        options.reference = ReferenceOptions { state_bytes, logit_bytes: 0 };
        assert_eq!(demo.measure(&options).0, kept);
    }
    assert!(kept.rows.iter().all(|row| row.cells[0].as_ref().is_some_and(|cell| cell.value > 0.0)));
}

#[test]
fn groups_split_the_tokens_and_add_up_to_the_whole() {
    let demo = demo(1500);
    let (table, _) = demo.measure(&options(&["q2_k"], &EVERY_PLACE[5..]));
    let basis = table.basis.clone().expect("of a text");
    let cell = table.rows[0].cells[0].clone().expect("measured");
    let sum: f64 = basis.groups.iter().zip(&cell.groups).map(|(group, own)| group.tokens as f64 * own.value).sum();
    assert!((sum / basis.tokens as f64 / cell.value - 1.0).abs() < 1e-9);
    let ranked = table.groups_by_damage("q2_k");
    assert!(ranked.len() > 5 && ranked.is_sorted_by(|one, other| one.1 >= other.1));
    let index = basis.groups.iter().position(|group| group.name == ranked[0].0).expect("a group");
    let own = table.of_group(index).expect("a group");
    assert_eq!(own.rows[0].cells[0].as_ref().map(|cell| cell.value), Some(ranked[0].1));
    assert!(table.of_group(99).is_none());
}

#[test]
fn known_cells_are_not_measured_again_and_other_texts_are_not_mixed() {
    let demo = demo(250);
    let names = &EVERY_PLACE[4..];
    let (first, cells) = demo.measure(&options(&["q3_k"], names));
    // Last layer before the one in the middle.
    assert_eq!(cells, [(1, 0), (0, 0)]);
    let again = KldOptions { known: Some(Arc::new(first.clone())), ..options(&["q8_0", "q3_k", "q4_k"], names) };
    let (wider, cells) = demo.measure(&again);
    assert_eq!(cells, [(1, 2), (0, 2), (1, 0), (0, 0)], "next to four bits first, and q3_k is there");
    assert_eq!(wider.cell(names[0], "q3_k"), first.cell(names[0], "q3_k"));
    assert_eq!(wider.with(&first).formats, ["q8_0", "q4_k", "q3_k"]);
    assert_eq!(wider.with(&first).cell(names[0], "q8_0"), wider.cell(names[0], "q8_0"));
    let mut other = first.clone();
    other.basis.as_mut().expect("of a text").hash = "another".to_owned();
    let again = KldOptions { known: Some(Arc::new(other)), ..options(&["q3_k"], names) };
    assert_eq!(demo.measure(&again).1.len(), 2);
}

#[test]
fn a_layer_changed_as_a_whole_minds_about_the_sum_of_its_tensors() {
    let demo = demo(500);
    let names: Vec<String> = demo
        .checkpoint
        .tensors
        .iter()
        .filter(|tensor| tensor.layer == Some(5) && tensor.role.is_layer_linear())
        .map(|tensor| tensor.name.clone())
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let single = demo.measure(&options(&["q3_k"], &names)).0;
    let whole = KldOptions { granularity: Granularity::Layer, ..options(&["q3_k"], &names[..1]) };
    let (layer, cells) = demo.measure(&whole);
    assert_eq!((layer.metric.as_str(), cells.len(), layer.rows[0].name.as_str()), ("kld_layer", 1, "model.layers.5"));
    let sum: f64 = single.rows.iter().map(|row| row.cells[0].as_ref().expect("measured").value).sum();
    let cell = layer.rows[0].cells[0].as_ref().expect("measured");
    assert!((0.4..2.5).contains(&(cell.value / sum)), "{} {sum}", cell.value);
    let bytes: u64 = single.rows.iter().map(|row| row.cells[0].as_ref().expect("measured").bytes).sum();
    assert_eq!(cell.bytes, bytes);
}

#[test]
fn a_cell_that_is_known_well_enough_ends_early_and_is_measured_whole_when_asked() {
    let demo = demo(5000);
    let early = KldOptions { stop_at: Some(0.5), ..options(&["q2_k"], &EVERY_PLACE[5..]) };
    let (table, _) = demo.measure(&early);
    let cell = table.rows[0].cells[0].as_ref().expect("measured");
    let tokens = cell.stopped_after.expect("half of its value is soon reached");
    assert!((2048..4000).contains(&tokens), "{tokens}");
    assert!(cell.stderr.expect("an estimate") <= 0.5 * cell.value);
    let known = Some(Arc::new(table.clone()));
    assert!(demo.measure(&KldOptions { known: known.clone(), ..early }).1.is_empty());
    let (whole, cells) = demo.measure(&KldOptions { known, ..options(&["q2_k"], &EVERY_PLACE[5..]) });
    assert_eq!((cells.len(), whole.rows[0].cells[0].as_ref().expect("measured").stopped_after), (1, None));
}

#[test]
fn layers_are_visited_coarse_to_fine() {
    let visits = |count: usize| {
        let places = coarse_to_fine(count);
        let mut layers: Vec<usize> = (0..count).collect();
        layers.sort_by_key(|&layer| places[layer]);
        layers
    };
    assert_eq!(visits(6), [0, 5, 2, 1, 3, 4]);
    assert_eq!(visits(1), [0]);
    assert_eq!(visits(0), [0usize; 0]);
    let mut many = visits(80);
    many.sort_unstable();
    assert_eq!(many, (0..80).collect::<Vec<_>>());
}

#[test]
fn a_cancelled_measurement_stops_and_its_cells_can_be_gone_on_with() {
    let demo = demo(250);
    let options = options(&["q3_k", "q4_k"], &EVERY_PLACE[4..]);
    let progress = Progress::default();
    let mut partial = empty_table(&demo.checkpoint, &demo.text, &options).expect("names");
    let mut tell = |row: usize, column: usize, cell: &SensitivityValue| {
        partial.rows[row].cells[column] = Some(cell.clone());
        progress.cancel();
    };
    let ended = measured_kld(&demo.checkpoint, &demo.model, &demo.text, &options, &progress, &mut tell);
    assert!(ended.expect_err("cancelled").is_cancelled());
    let (whole, cells) = demo.measure(&KldOptions { known: Some(Arc::new(partial)), ..options.clone() });
    assert_eq!(cells.len(), 3);
    assert_eq!(whole, demo.measure(&options).0);
}
