//! The figures that the README quotes, measured on this machine: `cargo run --release --example figures`.
//!
//! - the demo from opening to a compared Q4_K_M candidate on all slices;
//! - private memory while a 1B-shaped checkpoint is compressed (`--large`, writes 5 GB to the temporary folder);
//! - bytes, prefill and decoding of a 1B-shaped checkpoint without a quarter of its channels and KV groups, beside the
//!   whole one, private memory of that pass, and what scoring by activations costs (`--pruned`, on one thread with
//!   `RAYON_NUM_THREADS=1`; takes an existing 1B-shaped folder with `--source FOLDER`);
//! - CPU time of a frame while a pass uses every core (`--frames`).
//!
//! Absolute times drift with whatever else the machine does; the load is printed beside them.

#[path = "../tests/common/synthetic.rs"]
mod synthetic;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lapidary::engine::Progress;
use lapidary::engine::checkpoint::{Checkpoint, LayerUnits, Removal};
use lapidary::engine::model::{Batch, Model};
use lapidary::engine::pass::{self, PassOptions};
use lapidary::engine::plan::{self, Plan, Recipe, Target};
use lapidary::engine::scoring::{SpeedOptions, SpeedResult, TokenModel, speed};
use lapidary::engine::structure::{self, Activations, Metric, Sample, ScoreOptions};
use lapidary::workbench::{Action, DEMO_FILES, Options, Workbench};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let wants = |flag: &str| arguments.iter().any(|argument| argument == flag);
    println!("threads {}, load {}", rayon::current_num_threads(), load());
    if !wants("--large") && !wants("--frames") && !wants("--pruned") {
        demo();
    }
    if wants("--large") {
        large();
    }
    if wants("--pruned") {
        let at = arguments.iter().position(|argument| argument == "--source");
        pruned(at.and_then(|at| arguments.get(at + 1)).map(Path::new));
    }
    if wants("--frames") {
        frames();
    }
}

fn load() -> String {
    std::fs::read_to_string("/proc/loadavg").map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// Anonymous memory of this process in bytes, mapped file pages apart; 0 where the system does not tell.
fn private_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|rest| rest.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn demo() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let started = Instant::now();
    let mut bench = Workbench::new(Options::inline_in(folder.path()));
    bench.apply(Action::OpenDemo);
    let opened = started.elapsed();
    bench.apply(Action::RunPlan);
    let elapsed = started.elapsed();
    let document = bench.state().document.as_ref().expect("the demo is open");
    let run = document.focused().expect("a run");
    let comparison = run.comparison.as_ref().expect("compared");
    println!("demo opened, profiled and weight errors measured: {:.1} s", opened.as_secs_f64());
    println!("demo from opening to a compared Q4_K_M candidate: {:.1} s", elapsed.as_secs_f64());
    println!("{}", comparison.sentence);
}

/// Writes a 1B-shaped checkpoint with the demo's tokenizer.
fn one_b(source: &Path) {
    println!("writing a 1B-shaped checkpoint");
    synthetic::Shape::ONE_B.write(source, 1).expect("writes");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let content = DEMO_FILES.iter().find(|(known, _)| *known == name).expect("bundled").1;
        std::fs::write(source.join(name), content).expect("writes");
    }
}

/// Does `work` and answers the largest private memory meanwhile, in bytes.
fn peak_of(work: impl FnOnce()) -> u64 {
    let peak = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("memory".to_owned())
            .spawn_scoped(scope, || {
                while !done.load(Ordering::Relaxed) {
                    peak.fetch_max(private_bytes(), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(5));
                }
            })
            .expect("spawns");
        work();
        done.store(true, Ordering::Relaxed);
    });
    peak.into_inner()
}

fn large() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = folder.path().join("1b");
    one_b(&source);
    let peak = peak_of(|| compress(&source, &folder.path().join("q4.gguf")));
    println!("largest private memory during the pass: {} MiB", peak >> 20);
}

/// A quarter of the KV groups and channels goes from every layer.
fn pruned(given: Option<&Path>) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = given.map_or_else(|| folder.path().join("1b"), Path::to_owned);
    if given.is_none() {
        one_b(&source);
    }
    let checkpoint = Checkpoint::open(&source).expect("opens");
    let config = checkpoint.require_config().expect("a network");
    let mut removal = Removal::default();
    for (layer, shape) in config.layers.iter().enumerate() {
        *removal.layer_mut(layer) = LayerUnits {
            kv_groups: (0..shape.kv_heads).filter(|group| (group + layer).is_multiple_of(4)).collect(),
            channels: (0..shape.mlp_channels).filter(|channel| (channel + layer).is_multiple_of(4)).collect(),
            ..LayerUnits::default()
        };
    }
    for format in ["bf16", "q8_0", "q4_0"] {
        let write = |name: &str, removal: Removal| {
            let output = folder.path().join(format!("{name}-{format}.gguf"));
            let mut plan = Plan::new(Target::Gguf, None);
            plan.set_default_format(Some(format)).expect("legal");
            plan.set_removal(&checkpoint, removal).expect("legal");
            let resolved = plan::resolve(&plan, &checkpoint).expect("resolves");
            let options = PassOptions::default();
            let mut secs = 0.0;
            let peak = peak_of(|| {
                let report = pass::run(&checkpoint, &resolved, &output, &options, &Progress::default()).expect("runs");
                secs = report.elapsed_secs;
            });
            println!("{name} {format}: pass of {secs:.1} s, largest private memory {} MiB", peak >> 20);
            output
        };
        let (whole, less) = (write("whole", Removal::default()), write("pruned", removal.clone()));
        // In turns, and each alone in memory: two models side by side take each other's cache and large pages.
        let mut rounds: [Vec<SpeedResult>; 2] = Default::default();
        for _ in 0..3 {
            for (path, own) in [&whole, &less].into_iter().zip(&mut rounds) {
                let checkpoint = Checkpoint::open(path).expect("opens");
                let model = Model::load(&checkpoint, &Progress::default()).expect("loads");
                let options = SpeedOptions { repetitions: 3, max_secs: 300.0, ..SpeedOptions::default() };
                let models: [&dyn TokenModel; 1] = [&model];
                own.extend(speed::measure(&models, &options, &Progress::default()).expect("measures"));
            }
        }
        let bytes = [&whole, &less].map(|path| Checkpoint::open(path).expect("opens").file_bytes() as f64);
        let rates = |pick: fn(&SpeedResult) -> f64| {
            rounds.each_ref().map(|own| {
                let mut rates: Vec<f64> = own.iter().map(pick).collect();
                rates.sort_by(f64::total_cmp);
                rates[rates.len() / 2]
            })
        };
        let prefill = rates(|speed| speed.prefill_tokens_per_second);
        let decode = rates(|speed| speed.decode_tokens_per_second);
        println!(
            "{format}: bytes fall by {:.1} %, prefill time by {:.1} % ({:.1} to {:.1} tok/s), decode time by {:.1} % ({:.2} to {:.2} tok/s)",
            100.0 * (1.0 - bytes[1] / bytes[0]),
            100.0 * (1.0 - prefill[0] / prefill[1]),
            prefill[0],
            prefill[1],
            100.0 * (1.0 - decode[0] / decode[1]),
            decode[0],
            decode[1],
        );
    }
    scores_cost(&checkpoint);
}

/// What a score of all layers by activations costs beside one forward pass over the same windows.
fn scores_cost(checkpoint: &Checkpoint) {
    let windows =
        (0..4u32).map(|window| (0..256).map(|at| (at * 7919 + window * 104_729) % 2000 + 3).collect()).collect();
    let sample = Sample { windows, text_hash: String::new() };
    let progress = Progress::default();
    let model = Model::load(checkpoint, &progress).expect("loads");
    let mut batch = Batch::default();
    for ids in &sample.windows {
        batch.push(ids, None, None);
    }
    let started = Instant::now();
    model.hidden(&batch, &mut [], &progress).expect("runs");
    let forward = started.elapsed().as_secs_f64();
    let started = Instant::now();
    Activations::watch(&model, &sample, &progress).expect("watches");
    let watched = started.elapsed().as_secs_f64();
    println!(
        "one forward pass over {} tokens: {forward:.1} s; the same with all layers' activations: {watched:.1} s, {:.2} times",
        sample.tokens(),
        watched / forward
    );
    drop(model);
    for metric in [Metric::Magnitude, Metric::Minitron, Metric::Wanda, Metric::Flap] {
        let started = Instant::now();
        let options = ScoreOptions { sample: Some(&sample), seed: 0, device: None };
        structure::scores(checkpoint, metric, &options, &progress).expect("scores");
        let secs = started.elapsed().as_secs_f64();
        println!("scores by {}, with loading the model and reading its weights: {secs:.1} s", metric.name());
    }
}

fn compress(source: &Path, output: &Path) {
    let opening = Instant::now();
    let checkpoint = Checkpoint::open(source).expect("opens");
    println!("opened in {:.1} ms", opening.elapsed().as_secs_f64() * 1e3);
    let plan = Plan::of_recipe(Target::Gguf, None, Recipe::Q4KM);
    let resolved = plan::resolve(&plan, &checkpoint).expect("resolves");
    let report =
        pass::run(&checkpoint, &resolved, output, &PassOptions::default(), &Progress::default()).expect("runs");
    println!(
        "compressed {:.2} B weights to {} MiB in {:.1} s: {:.1} M weights/s",
        report.weight_count as f64 / 1e9,
        report.file_bytes >> 20,
        report.elapsed_secs,
        report.weight_count as f64 / 1e6 / report.elapsed_secs
    );
}

#[cfg(not(feature = "gui"))]
fn frames() {
    println!("frames need the gui feature");
}

#[cfg(feature = "gui")]
fn frames() {
    use eframe::egui;
    use egui_kittest::Harness;
    use lapidary::app::{LapidaryApp, shell, theme};
    use lapidary::workbench::{Command, Executor, View};

    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = Options { executor: Executor::Threads, ..Options::inline_in(folder.path()) };
    let mut harness = Harness::builder().with_size(egui::vec2(1440.0, 900.0)).build_eframe(|creation| {
        theme::install(&creation.egui_ctx);
        LapidaryApp::new(Workbench::new(options), None)
    });
    let deadline = Instant::now() + Duration::from_secs(60);
    while harness.state().bench().state().document.is_none() && Instant::now() < deadline {
        harness.step();
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("frames at 1440 × 900 while passes and evaluations use every core, logic and painting commands:");
    let mut all = Vec::new();
    for view in View::ALL {
        let already = harness.state().frame_secs().len();
        let started = Instant::now();
        harness.state_mut().bench_mut().apply(Command::Show(view));
        while started.elapsed() < Duration::from_secs(6) {
            if !harness.state().bench().is_busy() {
                harness.state_mut().bench_mut().apply(Action::RunPlan);
            }
            harness.step();
            std::thread::sleep(Duration::from_millis(4));
        }
        let secs: Vec<f32> = harness.state().frame_secs().iter().skip(already).copied().collect();
        report(view.title(), &secs);
        all.extend(secs);
    }
    report("all", &all);
    harness.state_mut().bench_mut().close();

    fn report(name: &str, secs: &[f32]) {
        let at = |share| shell::percentile(secs, share).unwrap_or(0.0) * 1e3;
        println!("{name:12} {:5} frames, median {:.2} ms, 99th percentile {:.2} ms", secs.len(), at(0.5), at(0.99));
    }
}
