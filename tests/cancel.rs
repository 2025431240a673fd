//! Cancel in the midst of encoding is heard within a small part of what is left to do.

mod common;

use std::time::{Duration, Instant};

use common::TinyModel;
use lapidary::engine::checkpoint::{Checkpoint, LayerShape};
use lapidary::engine::pass::{self, PassOptions};
use lapidary::engine::plan::{self, Plan};
use lapidary::engine::{Error, Progress};

#[test]
fn cancel_within_a_large_tensor_returns_long_before_the_tensor_is_done() {
    let folder = tempfile::tempdir().expect("folder");
    let source = folder.path().join("model");
    let layers = vec![LayerShape { heads: 4, kv_heads: 2, mlp_channels: 16_384 }];
    TinyModel { hidden: 256, head_dim: 64, layers, ..TinyModel::default() }.write(&source);
    let checkpoint = Checkpoint::open(&source).expect("opens");
    let text = "version = 1\ntarget = \"gguf\"\n[default]\nformat = \"q2_k\"\n";
    let resolved = plan::resolve(&Plan::parse(text, None).expect("a plan"), &checkpoint).expect("resolves");
    // Two threads, as on the smallest machine; with more, larger parts are taken in the same time.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("a pool");
    let output = folder.path().join("out").join("small.gguf");
    let run = |progress: &Progress| {
        let started = Instant::now();
        let result = pool.install(|| pass::run(&checkpoint, &resolved, &output, &PassOptions::default(), progress));
        (result, started, Instant::now())
    };

    let (whole, started, ended) = run(&Progress::default());
    whole.expect("runs");
    let whole = ended - started;
    std::fs::remove_file(&output).expect("the file");

    let progress = Progress::default();
    let (result, asked, returned) = std::thread::scope(|scope| {
        let pass = scope.spawn(|| run(&progress));
        // The three matrices of the feed-forward network are nearly all of it: the middle lies within the second.
        while progress.snapshot().fraction() < 0.5 && !pass.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let asked = Instant::now();
        progress.cancel();
        let (result, _, returned) = pass.join().expect("no panic");
        (result.map(drop), asked, returned)
    });
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    // A step is an eighth of a matrix, so a twenty-fifth of the whole; other programs may take their share meanwhile.
    let waited = returned.saturating_duration_since(asked);
    assert!(waited < whole / 6, "{waited:?} of {whole:?}");
    assert_eq!(common::names(output.parent().expect("a folder")), Vec::<String>::new());
}
