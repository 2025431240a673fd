//! The figures that the README quotes, measured on this machine: `cargo run --release --example figures`.
//!
//! - the demo from opening to a compared Q4_K_M candidate on all slices;
//! - private memory while a 1B-shaped checkpoint is compressed (`--large`, writes 5 GB to the temporary folder);
//! - CPU time of a frame while a pass uses every core (`--frames`).
//!
//! Absolute times drift with whatever else the machine does; the load is printed beside them.

#[path = "../tests/common/synthetic.rs"]
mod synthetic;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lapidary::engine::Progress;
use lapidary::engine::checkpoint::Checkpoint;
use lapidary::engine::pass::{self, PassOptions};
use lapidary::engine::plan::{self, Plan, Recipe, Target};
use lapidary::workbench::{Action, DEMO_FILES, Options, Workbench};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let wants = |flag: &str| arguments.iter().any(|argument| argument == flag);
    println!("threads {}, load {}", rayon::current_num_threads(), load());
    if !wants("--large") && !wants("--frames") {
        demo();
    }
    if wants("--large") {
        large();
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

fn large() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = folder.path().join("1b");
    println!("writing a 1B-shaped checkpoint");
    synthetic::Shape::ONE_B.write(&source, 1).expect("writes");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let content = DEMO_FILES.iter().find(|(known, _)| *known == name).expect("bundled").1;
        std::fs::write(source.join(name), content).expect("writes");
    }
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
        compress(&source, &folder.path().join("q4.gguf"));
        done.store(true, Ordering::Relaxed);
    });
    println!("largest private memory during the pass: {} MiB", peak.load(Ordering::Relaxed) >> 20);
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
