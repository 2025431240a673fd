//! What the metrics are worth: whether they find a layer that was made fragile, rank tensors alike,
//! and measure in the time they promise. Long ones are ignored:
//! `cargo test --release -p lapidary-engine --lib -- --ignored --nocapture sensitivity::proofs`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::fisher::{FisherOptions, predicted_kld};
use super::kld::{Granularity, KldOptions, measured_kld};
use super::output::{OutputOptions, output_error};
use super::ranks::spearman;
use super::units::{self, UnitOptions};
use super::weight::{WeightOptions, weight_error};
use super::{GroupedText, ReferenceOptions, SensitivityTable, is_default_subject};
use crate::calibration::Documents;
use crate::checkpoint::{Checkpoint, FolderWriter, Role, SafeTensor};
use crate::format::Dtype;
use crate::model::{Batch, Model, Tokenizer};
use crate::progress::Progress;
use crate::scoring::TextOptions;

const FORMATS: [&str; 6] = ["q8_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k"];

fn folder() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("assets/demo")
}

struct Subject {
    checkpoint: Checkpoint,
    model: Model,
    text: GroupedText,
}

impl Subject {
    fn open(path: &Path, tokens: usize) -> Self {
        let checkpoint = Checkpoint::open(path).expect("opens");
        let model = Model::load(&checkpoint, &Progress::default()).expect("loads");
        let tokenizer = Tokenizer::of_checkpoint(&checkpoint).expect("tokenizer");
        let documents = Documents::read(&folder().join("calibration.jsonl")).expect("reads");
        let options = TextOptions { max_tokens: Some(tokens), ..TextOptions::default() };
        let text = GroupedText::of_documents(&tokenizer, &documents, 256, 2048, &options).expect("cut");
        Self { checkpoint, model, text }
    }

    fn linears(&self) -> Vec<String> {
        let subjects = self.checkpoint.tensors.iter().filter(|tensor| is_default_subject(tensor));
        subjects.filter(|tensor| tensor.layer.is_some()).map(|tensor| tensor.name.clone()).collect()
    }

    fn kld(&self, formats: &[&str], granularity: Granularity, reference: ReferenceOptions) -> SensitivityTable {
        self.kld_until(None, formats, granularity, reference)
    }

    fn kld_until(
        &self,
        stop_at: Option<f64>,
        formats: &[&str],
        granularity: Granularity,
        reference: ReferenceOptions,
    ) -> SensitivityTable {
        let options = KldOptions {
            stop_at,
            formats: strings(formats),
            tensors: Some(self.linears()),
            granularity,
            reference,
            ..KldOptions::default()
        };
        let progress = Progress::default();
        measured_kld(&self.checkpoint, &self.model, &self.text, &options, &progress, &mut |_, _, _| {}).expect("kld")
    }

    fn fisher(&self, formats: &[&str]) -> SensitivityTable {
        let options =
            FisherOptions { formats: strings(formats), tensors: Some(self.linears()), ..FisherOptions::default() };
        predicted_kld(&self.checkpoint, &self.text, &options, &Progress::default(), &mut |_, _| {}).expect("fisher")
    }

    fn output(&self, formats: &[&str]) -> SensitivityTable {
        let options =
            OutputOptions { formats: strings(formats), tensors: Some(self.linears()), ..OutputOptions::default() };
        let progress = Progress::default();
        output_error(&self.checkpoint, &self.model, &self.text, &options, &progress, &mut |_, _| {}).expect("output").0
    }

    fn weight(&self, formats: &[&str]) -> SensitivityTable {
        let options =
            WeightOptions { formats: strings(formats), tensors: Some(self.linears()), ..WeightOptions::default() };
        weight_error(&self.checkpoint, &options, &Progress::default(), &mut |_, _| {}).expect("weight")
    }
}

fn strings(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|&id| id.to_owned()).collect()
}

fn column(table: &SensitivityTable, format: &str) -> Vec<f64> {
    let at = table.column(format).expect("a column");
    table.rows.iter().map(|row| row.cells[at].as_ref().expect("a value").value).collect()
}

/// The layer whose rows have the largest value, and that row's role.
fn first(table: &SensitivityTable, format: &str) -> (usize, Role) {
    let values = column(table, format);
    let most = (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b])).expect("rows");
    (table.rows[most].layer.expect("a layer"), table.rows[most].role)
}

/// Which layer is made fragile, and which columns of its MLP's input.
const FRAGILE: usize = 2;
const COLUMNS: [usize; 5] = [9, 70, 131, 170, 222];

/// Writes the demo with some input columns of one layer's gate and up times 30 and the norm before
/// them divided by 30 there: the same function in f32, and blocks that cannot hold their values.
fn plant(target: &Path) {
    let demo = Checkpoint::open(&folder()).expect("opens");
    let norm = format!("model.layers.{FRAGILE}.post_attention_layernorm.weight");
    let wide = ["gate_proj", "up_proj"].map(|name| format!("model.layers.{FRAGILE}.mlp.{name}.weight"));
    let out = FolderWriter::create(target).expect("folder");
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        out.write_file(name, &std::fs::read(folder().join(name)).expect("reads")).expect("writes");
    }
    let tensors: Vec<SafeTensor> = demo
        .tensors
        .iter()
        .map(|tensor| SafeTensor { name: tensor.name.clone(), shape: tensor.shape.clone(), dtype: Dtype::F32 })
        .collect();
    let mut writer = out.safetensors(&tensors).expect("weights");
    for tensor in &demo.tensors {
        let mut values = Vec::new();
        demo.decode_rows(tensor, 0..tensor.row_count(), &mut Vec::new(), &mut values).expect("reads");
        for row in values.chunks_exact_mut(tensor.row_len()) {
            for column in COLUMNS {
                if wide.contains(&tensor.name) {
                    row[column] *= 30.0;
                } else if tensor.name == norm {
                    row[column] /= 30.0;
                }
            }
        }
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        writer.write_tensor_rows(&bytes).expect("rows");
    }
    writer.finish().expect("weights");
    out.finish().expect("folder");
}

#[test]
fn a_planted_fragile_layer_computes_the_same_and_is_found_first() {
    let place = tempfile::tempdir().expect("folder");
    let target = place.path().join("fragile");
    plant(&target);
    let (demo, fragile) = (Subject::open(&folder(), 500), Subject::open(&target, 500));
    let mut batch = Batch::default();
    batch.push(&demo.text.windows[0].ids, None, None);
    let hidden = |subject: &Subject| subject.model.hidden(&batch, &mut [], &Progress::default()).expect("runs");
    let (one, other) = (hidden(&demo), hidden(&fragile));
    let largest = one.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    let apart = one.iter().zip(&other).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(apart < 1e-3 * largest, "the function is the same: {apart} of {largest}");

    // One scale for many columns: what K-quants' small blocks partly repair is plain here.
    let formats = ["int4_g128", "int4_channel"];
    let kld = |subject: &Subject, granularity| subject.kld(&formats, granularity, ReferenceOptions::default());
    let sound = kld(&demo, Granularity::Tensor);
    let (tensors, layers) = (kld(&fragile, Granularity::Tensor), kld(&fragile, Granularity::Layer));
    let predicted = [fragile.weight(&formats), fragile.output(&formats), fragile.fisher(&formats)];
    for format in formats {
        assert_ne!(first(&sound, format).0, FRAGILE, "it is not the most sensitive layer by nature");
        let (layer, role) = first(&tensors, format);
        assert!(layer == FRAGILE && matches!(role, Role::Gate | Role::Up), "{format}: {layer} {role}");
        assert_eq!(first(&layers, format).0, FRAGILE, "{format}");
        let found = predicted.each_ref().map(|table| first(table, format).0 == FRAGILE);
        println!("{format}: found first by weight {}, output {}, fisher {}", found[0], found[1], found[2]);
        assert!(found[1], "{format}: the inputs' moments show the planted columns");
    }
}

/// Spearman's coefficients of every metric with measured KLD.
#[test]
#[ignore = "minutes in a debug build"]
fn metrics_rank_tensors_as_measured_kld_does() {
    let demo = Subject::open(&folder(), 8192);
    let measured = demo.kld(&FORMATS, Granularity::Tensor, ReferenceOptions::default());
    let predicted = [demo.weight(&FORMATS), demo.output(&FORMATS), demo.fisher(&FORMATS)];
    println!("{:8} {:>8} {:>8} {:>8}", "format", "weight", "output", "fisher");
    for format in FORMATS {
        let rhos = predicted
            .each_ref()
            .map(|table| spearman(&column(table, format), &column(&measured, format)).expect("enough tensors"));
        println!("{format:8} {:8.3} {:8.3} {:8.3}", rhos[0], rhos[1], rhos[2]);
        assert!(rhos[2] > 0.8, "fisher in {format}: {}", rhos[2]);
    }
}

/// 42 linears by 6 formats over 8,192 tokens: the time with what is kept, and with full forwards.
#[test]
#[ignore = "minutes"]
fn the_map_takes_less_than_full_forwards() {
    let demo = Subject::open(&folder(), 8192);
    let time = |reference: ReferenceOptions| {
        let started = Instant::now();
        let table = demo.kld(&FORMATS, Granularity::Tensor, reference);
        (started.elapsed().as_secs_f64(), table)
    };
    let (kept, table) = time(ReferenceOptions::default());
    println!(
        "kept states: {kept:.1} s for {} cells over {} tokens",
        table.rows.len() * FORMATS.len(),
        demo.text.scored_tokens()
    );
    let (full, full_table) = time(ReferenceOptions { state_bytes: 0, ..ReferenceOptions::default() });
    println!("full forwards: {full:.1} s; {:.2} times as long; map {:.0} % of three minutes", full / kept, kept / 1.8);
    assert_eq!(table, full_table, "not one bit differs");
    let started = Instant::now();
    let early = demo.kld_until(Some(0.1), &FORMATS, Granularity::Tensor, ReferenceOptions::default());
    let early_secs = started.elapsed().as_secs_f64();
    let rho = spearman(&column(&early, "q4_k"), &column(&table, "q4_k")).expect("enough tensors");
    println!(
        "stopping at 10 % of each value: {early_secs:.1} s, {:.2} times faster, ranks agree to {rho:.3}",
        kept / early_secs
    );
    assert!(full / kept >= 1.5, "{}", full / kept);
}

/// Times of the metrics of layers and heads.
#[test]
#[ignore = "minutes"]
fn layers_and_heads_are_measured_in_time() {
    let demo = Subject::open(&folder(), 8192);
    for metric in units::metrics() {
        let started = Instant::now();
        let options = UnitOptions::default();
        let table = units::measure(
            &demo.checkpoint,
            &demo.model,
            &demo.text,
            metric,
            &options,
            &Progress::default(),
            &mut |_| {},
        )
        .expect("measures");
        let most = table.values.iter().max_by(|a, b| a.value.total_cmp(&b.value)).expect("values");
        println!(
            "{:18} {:6.1} s, {} values, most at layer {} {:?}: {:.4} ± {:.4}",
            metric.metric.id,
            started.elapsed().as_secs_f64(),
            table.values.len(),
            most.layer,
            most.index,
            most.value,
            most.stderr
        );
    }
}
