//! Importance against llama-imatrix, its statistics, and what it refuses.

use super::*;
use crate::checkpoint::Checkpoint;
use crate::model::{Model, Tokenizer};
use crate::progress::Progress;
use crate::scoring::TextSource;

fn repository(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join(path)
}

fn llama_cpp() -> Importance {
    Importance::read(&repository("tests/fixtures/llama_cpp_imatrix.gguf")).expect("reads")
}

struct Demo {
    checkpoint: Checkpoint,
    model: Model,
    tokenizer: Tokenizer,
    text: TextSource,
}

impl Demo {
    fn open() -> Self {
        let checkpoint = Checkpoint::open(&repository("assets/demo")).expect("opens");
        Self {
            model: Model::load(&checkpoint, &Progress::default()).expect("loads"),
            tokenizer: Tokenizer::of_checkpoint(&checkpoint).expect("tokenizer"),
            text: TextSource::read(&repository("assets/demo/calibration.txt")).expect("reads"),
            checkpoint,
        }
    }

    fn importance(&self, options: &ImportanceOptions) -> Result<Importance> {
        importance(&self.checkpoint, &self.model, &self.tokenizer, &self.text, options, &Progress::default())
    }
}

#[test]
fn the_demo_sees_what_llama_imatrix_saw() {
    let theirs = llama_cpp();
    let ours = Demo::open().importance(&ImportanceOptions::default()).expect("runs");
    assert_eq!((ours.chunk_count, ours.chunk_tokens, &ours.datasets), (84, 256, &theirs.datasets));
    assert_eq!(ours.tensors.keys().collect::<Vec<_>>(), theirs.tensors.keys().collect::<Vec<_>>());
    let mut worst = 0.0_f64;
    for (name, theirs) in &theirs.tensors {
        let ours = &ours.tensors[name];
        assert_eq!((&ours.counts, ours.columns()), (&theirs.counts, theirs.columns()), "{name}");
        for (a, b) in ours.sums.iter().zip(&theirs.sums) {
            worst = worst.max((f64::from(*a) / f64::from(*b) - 1.0).abs());
        }
    }
    assert!(worst < 1e-3, "the worst column differs by {worst}");
}

#[test]
fn the_sums_do_not_depend_on_the_number_of_threads() {
    let demo = Demo::open();
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
        let options = ImportanceOptions { max_chunks: Some(2), context: Some(64), process_output: true };
        pool.install(|| demo.importance(&options)).expect("runs")
    };
    let one = with(1);
    assert_eq!(one, with(3));
    assert_eq!(one.tensors.len(), 42, "an embedding that serves as head has no entry");
    assert!(one.warnings()[0].contains("42 of 42"), "128 tokens are few: {:?}", one.warnings());
    assert!(one.statistics().iter().all(|tensor| tensor.is_low() && tensor.tokens == Some(128)));
    assert!(llama_cpp().warnings().is_empty());
}

#[test]
fn statistics_are_those_that_llama_imatrix_shows() {
    let text = std::fs::read_to_string(repository("tests/fixtures/llama_cpp_imatrix.json")).expect("fixture");
    let fixture: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let ours = llama_cpp().statistics();
    let rows = fixture["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), ours.len());
    for row in rows {
        let text = |at: usize| row[at].as_str().expect("text");
        let name = gguf_names::to_hugging_face(&format!("blk.{}.{}.weight", text(0), text(1))).expect("known");
        let ours = ours.iter().find(|tensor| tensor.name == name).expect("has it");
        for (at, value, step) in [
            (2, ours.sum, 0.01),
            (3, ours.min, 1e-4),
            (4, ours.max, 1e-4),
            (5, ours.mean, 0.01),
            (6, ours.std, 0.01),
            (7, ours.active_share * 100.0, 0.01),
            (8, ours.columns as f64, 0.0),
            (9, ours.entropy_bits, 1e-4),
            (10, ours.entropy_share * 100.0, 0.01),
            (11, ours.zd_share * 100.0, 0.01),
            (12, ours.cosine_with_previous.unwrap_or(0.0), 1e-4),
        ] {
            let theirs = row[at].as_f64().expect("a number");
            // Theirs are printed with so many places and summed in f32.
            assert!((value - theirs).abs() <= step + 1e-6 * theirs.abs(), "{name} {at}: {value} {theirs}");
        }
    }
}

#[test]
fn what_is_written_is_read_back_the_same() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("again.gguf");
    let mut first = llama_cpp();
    first.write(&path).expect("writes");
    assert_eq!(Importance::read(&path).expect("reads"), first);
    let mut dat = Importance::read(&repository("tests/fixtures/llama_cpp_imatrix.dat")).expect("reads");
    let means = dat.clone();
    dat.write(&path).expect("writes");
    let again = Importance::read(&path).expect("reads");
    for (name, moments) in &means.tensors {
        assert_eq!(moments.means(), again.tensors[name].means(), "{name}");
    }
    assert!(means.statistics().iter().all(|tensor| tensor.tokens.is_none() && !tensor.is_low()));
}

#[test]
fn an_expert_that_saw_nothing_has_ones() {
    let moments = InputMoments::new(vec![8.0, 2.0, 0.0, 0.0], vec![4, 0]);
    assert_eq!(moments.means(), [2.0, 0.5, 1.0, 1.0]);
    assert_eq!((moments.columns(), moments.least_tokens()), (2, 0));
}

#[test]
fn another_models_file_is_refused_by_name() {
    let importance = llama_cpp();
    let name = "model.layers.3.mlp.down_proj.weight";
    assert_eq!(importance.of(name, 512).expect("fits").expect("known").len(), 512);
    assert_eq!(importance.of("lm_head.weight", 256).expect("fits"), None);
    let message = importance.of(name, 256).expect_err("refused").to_string();
    assert!(message.contains(name) && message.contains("512 values"), "{message}");
}

#[test]
fn texts_and_chunks_that_do_not_fit_are_refused() {
    let mut demo = Demo::open();
    let refused = |demo: &Demo, options: ImportanceOptions| demo.importance(&options).expect_err("refused").to_string();
    for context in [4, 257] {
        let message = refused(&demo, ImportanceOptions { context: Some(context), ..ImportanceOptions::default() });
        assert!(message.contains("16 to 256"), "{message}");
    }
    demo.text = TextSource::new("short.txt", "too short");
    assert!(refused(&demo, ImportanceOptions::default()).contains("too few for one chunk of 256"));
    let progress = Progress::default();
    progress.cancel();
    let text = TextSource::read(&repository("assets/demo/calibration.txt")).expect("reads");
    let options = ImportanceOptions::default();
    let ended = importance(&demo.checkpoint, &demo.model, &demo.tokenizer, &text, &options, &progress);
    assert!(ended.expect_err("cancelled").is_cancelled());
}
