//! Layers and heads: against the model that really lacks them, and what is known already.

use super::*;
use crate::checkpoint::Role;
use crate::format::Dtype;
use crate::model::{Change, Replacement, Site, StoredMatrix, Tokenizer};
use crate::scoring::{ScoredText, TextOptions, TextSource};

struct Demo {
    checkpoint: Checkpoint,
    model: Model,
    text: GroupedText,
}

fn demo(tokens: usize) -> Demo {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("assets/demo");
    let checkpoint = Checkpoint::open(&path).expect("opens");
    let model = Model::load(&checkpoint, &Progress::default()).expect("loads");
    let tokenizer = Tokenizer::of_checkpoint(&checkpoint).expect("tokenizer");
    let text = TextSource::read(&path.join("calibration.txt")).expect("reads");
    let options = TextOptions { max_tokens: Some(tokens), ..TextOptions::default() };
    let scored = ScoredText::new(&tokenizer, &text, 256, 2048, &options).expect("cut");
    Demo { checkpoint, model, text: GroupedText::plain("calibration.txt", &scored) }
}

impl Demo {
    fn measure(&self, id: &str, options: &UnitOptions) -> (UnitTable, usize) {
        let mut told = 0;
        let metric = metric(id).expect("known");
        let progress = Progress::default();
        let mut tell = |_: &UnitValue| told += 1;
        let table = measure(&self.checkpoint, &self.model, &self.text, metric, options, &progress, &mut tell);
        (table.expect("measures"), told)
    }

    /// The matrix at a site with some columns set to zero.
    fn without_columns(&self, site: Site, zeros: std::ops::Range<usize>) -> Replacement {
        let tensor = (self.checkpoint.tensors.iter())
            .find(|tensor| tensor.layer == site.layer && tensor.role == site.role)
            .expect("a linear");
        let (rows, cols) = (tensor.row_count(), tensor.row_len());
        let mut values = Vec::new();
        self.checkpoint.decode_rows(tensor, 0..rows, &mut Vec::new(), &mut values).expect("reads");
        values.chunks_exact_mut(cols).for_each(|row| row[zeros.clone()].fill(0.0));
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Replacement::new(&self.model, site, StoredMatrix { dtype: Dtype::F32, rows, cols, bytes }).expect("fits")
    }

    fn kld(&self, change: &Change) -> f64 {
        let progress = Progress::default();
        let references =
            super::super::reference::References::run(&self.model, &self.text, &ReferenceOptions::default(), &progress);
        let klds = references.expect("runs").klds(&self.model, change, "here", None, &progress).expect("runs");
        self.text.summary(&klds).0
    }
}

#[test]
fn a_silenced_head_is_one_whose_columns_of_o_are_zero() {
    let demo = demo(250);
    let width = demo.model.config.head_dim;
    let heads = demo.measure("head_ablation", &UnitOptions::default()).0;
    let groups = demo.measure("kv_group_ablation", &UnitOptions::default()).0;
    assert_eq!((heads.values.len(), groups.values.len()), (48, 24));
    let site = Site { layer: Some(3), role: Role::O };
    let near = |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 1e-3, "{found} {expected}");
    let head = heads.value(3, Some(5)).expect("measured");
    near(head.value, demo.kld(&demo.without_columns(site, 5 * width..6 * width).into()));
    assert!(head.stderr > 0.0);
    let group = groups.value(3, Some(2)).expect("measured");
    near(group.value, demo.kld(&demo.without_columns(site, 4 * width..6 * width).into()));
}

#[test]
fn a_removed_layer_is_one_that_adds_nothing() {
    let demo = demo(250);
    let removal = demo.measure("layer_removal", &UnitOptions::default()).0;
    assert_eq!(removal.values.len(), 6);
    for layer in [0, 4] {
        let silent = |role, width| demo.without_columns(Site { layer: Some(layer), role }, 0..width);
        let change = Change { replacements: vec![silent(Role::O, 256), silent(Role::Down, 512)], ..Change::default() };
        let (found, expected) = (removal.value(layer, None).expect("measured").value, demo.kld(&change));
        assert!((found / expected - 1.0).abs() < 1e-3, "{found} {expected}");
    }
}

#[test]
fn influence_is_one_minus_the_cosine_and_known_values_stay() {
    let demo = demo(250);
    let (table, told) = demo.measure("block_influence", &UnitOptions::default());
    assert_eq!((table.values.len(), told, table.label), (6, 6, Label::Predicted));
    assert!(table.values.iter().all(|value| value.value > 0.0 && value.value < 2.0 && value.stderr > 0.0));
    let known = UnitOptions { known: Some(Arc::new(table.clone())), ..UnitOptions::default() };
    assert_eq!(demo.measure("block_influence", &known), (table.clone(), 0));
    let mut part = table;
    part.metric = "layer_removal".to_owned();
    part.values.truncate(2);
    let whole = demo.measure("layer_removal", &UnitOptions::default()).0;
    part.basis = whole.basis.clone();
    let known = UnitOptions { known: Some(Arc::new(part)), ..UnitOptions::default() };
    let (again, told) = demo.measure("layer_removal", &known);
    assert_eq!(told, 4);
    assert_eq!(again.values[2..], whole.values[2..]);
}

#[test]
fn gradients_of_heads_rank_them_about_as_silencing_them_does() {
    let demo = demo(500);
    let gradient = demo.measure("head_gradient", &UnitOptions::default()).0;
    let ablation = demo.measure("head_ablation", &UnitOptions::default()).0;
    let values = |table: &UnitTable| table.values.iter().map(|value| value.value).collect::<Vec<f64>>();
    let rho = super::super::ranks::spearman(&values(&gradient), &values(&ablation)).expect("enough heads");
    assert!(rho > 0.3, "Spearman {rho}");
    let small = UnitOptions { most_gradient_bytes: 1 << 20, ..UnitOptions::default() };
    let metric = metric("head_gradient").expect("known");
    let ended = measure(
        &demo.checkpoint,
        &demo.model,
        &demo.text,
        metric,
        &small,
        &Progress::default(),
        &mut |_: &UnitValue| {},
    );
    assert!(ended.expect_err("refused").to_string().contains("MiB"));
}
