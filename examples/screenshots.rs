//! Writes the README's pictures: `cargo run --release --example screenshots [-- FOLDER [--quick]]`.
//! `--quick` measures on an eighth of the text and a fifth of the tasks, to look at the layout only.
//!
//! The real window, drawn without a display by whatever Vulkan driver there is (Debian's software
//! one: `mesa-vulkan-drivers`), on the bundled demo: two recipes are run and evaluated on all
//! tasks, sensitivity is measured, and each view is shown once. Takes minutes, since nothing in the
//! pictures is made up. At the end it tells how long the frames took while the work went on.

#[cfg(not(feature = "gui"))]
fn main() {
    eprintln!("pictures of the window need the feature `gui`");
}

#[cfg(feature = "gui")]
fn main() {
    window::main();
}

#[cfg(feature = "gui")]
mod window {
    use std::path::{Path, PathBuf};
    use std::time::{Duration, Instant};

    use eframe::egui::{self, Role};
    use egui_kittest::{Harness, kittest::Queryable as _};
    use lapidary::app::{LapidaryApp, shell, theme};
    use lapidary::engine::plan::Recipe;
    use lapidary::workbench::{
        Action, Command, Executor, KldRequest, Level, Options, SelectMode, ThemeChoice, View, Workbench,
    };

    /// What the overlay, the comparison and the playground show.
    const SHOWN: &str = "Q2_K";
    /// The tensor that the inspector shows.
    const TENSOR: &str = "model.layers.3.mlp.down_proj.weight";

    type Window = Harness<'static, LapidaryApp>;

    pub fn main() {
        let is_quick = std::env::args_os().any(|argument| argument == "--quick");
        let target = std::env::args_os()
            .nth(1)
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("screenshots"), PathBuf::from);
        std::fs::create_dir_all(&target).expect("the folder of the pictures");
        let folder = tempfile::tempdir().expect("a folder for the project");
        let options = Options { executor: Executor::Threads, ..Options::inline_in(folder.path()) };
        let mut window =
            Harness::builder().with_size(egui::vec2(1440.0, 900.0)).with_step_dt(1.0 / 60.0).build_eframe(|creation| {
                theme::install(&creation.egui_ctx);
                LapidaryApp::new(Workbench::new(options), None)
            });
        wait(&mut window, "opening");
        send(&mut window, Command::SetTheme(ThemeChoice::Dark));
        if is_quick {
            let demo = &window.state().bench().state().document.as_ref().expect("the demo is open").checkpoint.path;
            let tasks = std::fs::read_to_string(demo.join("tasks.jsonl")).expect("the demo's tasks");
            let few: String = tasks.lines().step_by(5).map(|line| format!("{line}\n")).collect();
            let path = folder.path().join("few.jsonl");
            std::fs::write(&path, few).expect("fewer tasks");
            send(&mut window, Command::LoadTasks(path));
        }
        let tokens = if is_quick { 1024 } else { 8192 };
        let request = KldRequest { formats: vec!["q6_k", "q4_k", "q2_k"], tokens, ..KldRequest::default() };
        send(&mut window, Command::MeasureKld(request));
        wait(&mut window, "sensitivity");
        for name in ["Q4_K_M", "Q2_K"] {
            send(&mut window, Command::SetRecipe(Recipe::find(name)));
            send(&mut window, Action::RunPlan);
            wait(&mut window, name);
        }
        report_frames(&window);
        let document = window.state().bench().state().document.as_ref().expect("the demo is open");
        let tensor = document.checkpoint.tensors.iter().position(|tensor| tensor.name == TENSOR).expect("a tensor");
        let run = document.runs.iter().find(|run| run.name == SHOWN).expect("its run").id;
        send(&mut window, Command::FocusRun(Some(run)));
        send(&mut window, Command::SetRecipe(Recipe::find("Q4_K_M")));
        send(&mut window, Command::Select { tensor, mode: SelectMode::Replace });
        send(&mut window, Command::SetGenerateTokens(40));
        send(&mut window, Action::Generate);
        wait(&mut window, "generating");

        picture(&mut window, View::Overview, &target.join("overview.png"));
        picture(&mut window, View::Weights, &target.join("weights.png"));
        send(&mut window, Command::Show(View::Sensitivity));
        // The view's own choice stands left of the inspector's.
        let choices = window.query_all_by_role_and_label(Role::Tab, "Metric KLD");
        choices.min_by(|a, b| a.rect().left().total_cmp(&b.rect().left())).expect("a choice of metric").click();
        window.run_steps(2);
        picture(&mut window, View::Sensitivity, &target.join("sensitivity.png"));
        picture(&mut window, View::Runs, &target.join("runs.png"));
        picture(&mut window, View::Plan, &target.join("plan.png"));
        picture(&mut window, View::Compare, &target.join("compare.png"));
        picture(&mut window, View::Playground, &target.join("playground.png"));
        send(&mut window, Command::SetTheme(ThemeChoice::Light));
        picture(&mut window, View::Plan, &target.join("plan-light.png"));
        picture(&mut window, View::Compare, &target.join("compare-light.png"));
        window.state_mut().bench_mut().close();
    }

    fn send(window: &mut Window, command: impl Into<Command>) {
        window.state_mut().bench_mut().apply(command);
        window.run_steps(2);
    }

    /// Draws frames at the pace of a screen until nothing runs any more.
    fn wait(window: &mut Window, what: &str) {
        let started = Instant::now();
        loop {
            window.step();
            let bench = window.state().bench();
            if bench.state().document.is_some() && !bench.is_busy() {
                break;
            }
            assert!(started.elapsed() < Duration::from_secs(1200), "{what} takes too long");
            std::thread::sleep(Duration::from_millis(16));
        }
        for notice in &window.state().bench().state().notices {
            assert!(notice.level != Level::Error, "{what}: {}", notice.text);
        }
        eprintln!("{what}: {:.1} s", started.elapsed().as_secs_f32());
    }

    /// CPU time of the frames that were drawn while every core was busy.
    fn report_frames(window: &Window) {
        let frames = window.state().frame_secs();
        let at = |share| shell::percentile(frames, share).unwrap_or_default() * 1e3;
        eprintln!(
            "CPU time of {} frames during the work: median {:.2} ms, 99th percentile {:.2} ms, longest {:.2} ms",
            frames.len(),
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }

    fn picture(window: &mut Window, view: View, path: &Path) {
        let notices: Vec<u64> = window.state().bench().state().notices.iter().map(|notice| notice.id).collect();
        for notice in notices {
            send(window, Command::Dismiss(notice));
        }
        send(window, Command::Show(view));
        window.remove_cursor();
        window.run_steps(4);
        let image = window.render().expect("a Vulkan driver: on Debian install mesa-vulkan-drivers");
        image.save(path).expect("the picture is written");
        eprintln!("{}", path.display());
    }
}
