//! The real window over a small project: the bundled demo with few tasks and a short text.
//!
//! What takes long is made once per test program and copied: opening the demo with its weight
//! errors, and one run with its evaluation. Jobs run inside the call that starts them unless a test
//! asks for threads.
#![allow(dead_code, reason = "each test program uses its part")]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use eframe::egui::{Role, Vec2, vec2};
use egui_kittest::kittest::Queryable as _;
use egui_kittest::{Harness, Node};
use lapidary::app::{LapidaryApp, theme};
use lapidary::engine::plan::Recipe;
use lapidary::workbench::{Action, Command, Document, Executor, Level, Options, State, View, Workbench};
use tempfile::TempDir;

/// Frames in which the window comes to rest: several notices leave one after the other.
const MAX_STEPS: u64 = 8;

/// Index of this tensor is what most tests are about.
pub const DOWN: &str = "model.layers.3.mlp.down_proj.weight";

/// Projects that tests start from.
struct Templates {
    cache: PathBuf,
    /// Opened, weight errors measured, few tasks and a short text chosen.
    opened: PathBuf,
    /// The same with a Q4_K_M run that was evaluated.
    run: PathBuf,
}

fn templates() -> &'static Templates {
    static MADE: OnceLock<Templates> = OnceLock::new();
    MADE.get_or_init(|| {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(concat!("window-", env!("CARGO_CRATE_NAME")));
        if root.exists() {
            std::fs::remove_dir_all(&root).expect("what an earlier run left");
        }
        let cache = root.join("cache");
        let options = |data: PathBuf| Options { cache_dir: cache.clone(), data_dir: data, ..Options::inline_in(&root) };
        let opened = root.join("opened");
        let mut bench = Workbench::new(options(opened.clone()));
        bench.apply(Action::OpenDemo);
        let demo = bench.state().document.as_ref().expect("the demo opens").checkpoint.path.clone();
        let tasks = std::fs::read_to_string(demo.join("tasks.jsonl")).expect("tasks");
        let few: String = tasks.lines().step_by(100).map(|line| format!("{line}\n")).collect();
        let text = std::fs::read_to_string(demo.join("evaluation.txt")).expect("text");
        std::fs::write(root.join("few.jsonl"), few).expect("writes");
        std::fs::write(root.join("short.txt"), &text[..text.floor_char_boundary(8_000)]).expect("writes");
        bench.apply(Command::LoadTasks(root.join("few.jsonl")));
        bench.apply(Command::LoadText(root.join("short.txt")));
        bench.close();
        let run = root.join("run");
        copy_folder(&opened, &run);
        let mut bench = Workbench::new(options(run.clone()));
        bench.apply(Action::OpenDemo);
        bench.apply(Command::SetRecipe(Recipe::find("Q2_K")));
        bench.apply(Action::RunPlan);
        bench.close();
        assert!(bench.state().document.as_ref().is_some_and(|document| document.runs.len() == 1));
        Templates { cache, opened, run }
    })
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("folder");
    for entry in std::fs::read_dir(from).expect("lists") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copies");
        }
    }
}

/// What a window starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// A path that is not there, so no document.
    Empty,
    /// The demo.
    Opened,
    /// The demo with an evaluated run.
    Run,
}

/// A window and the folder that its project lies in.
pub struct Window {
    pub harness: Harness<'static, LapidaryApp>,
    pub folder: TempDir,
}

impl Window {
    pub fn new(start: Start) -> Self {
        Self::with(start, vec2(1440.0, 900.0), Executor::Inline)
    }

    pub fn with(start: Start, size: Vec2, executor: Executor) -> Self {
        let made = templates();
        let folder = tempfile::tempdir().expect("folder");
        let data_dir = folder.path().join("data");
        copy_folder(if start == Start::Run { &made.run } else { &made.opened }, &data_dir);
        let options =
            Options { executor, cache_dir: made.cache.clone(), data_dir, ..Options::inline_in(folder.path()) };
        let path = (start == Start::Empty).then(|| folder.path().join("nowhere.gguf"));
        let mut harness = Harness::builder().with_size(size).with_max_steps(MAX_STEPS).build_eframe(|creation| {
            theme::install(&creation.egui_ctx);
            LapidaryApp::new(Workbench::new(options), path)
        });
        if executor == Executor::Inline {
            harness.run();
        }
        Self { harness, folder }
    }

    pub fn bench(&self) -> &Workbench {
        self.harness.state().bench()
    }

    pub fn state(&self) -> &State {
        self.bench().state()
    }

    pub fn document(&self) -> &Document {
        self.state().document.as_ref().expect("a document is open")
    }

    /// Sends a command without the mouse and draws what comes of it.
    pub fn send(&mut self, command: impl Into<Command>) {
        self.harness.state_mut().bench_mut().apply(command);
        self.harness.run();
    }

    pub fn show(&mut self, view: View) {
        self.send(Command::Show(view));
    }

    /// Clicks the one thing with this role and name.
    pub fn click(&mut self, role: Role, name: &str) {
        self.node(role, name).click();
        self.harness.run();
    }

    /// Scrolls to the one thing with this role and name and clicks it.
    pub fn scroll_and_click(&mut self, role: Role, name: &str) {
        /// Frames in which scrolling comes to rest.
        const FRAMES: usize = 20;
        self.node(role, name).scroll_to_me();
        self.harness.run_steps(FRAMES);
        self.node(role, name).click();
        self.harness.run_steps(FRAMES);
    }

    pub fn node<'t>(&'t self, role: Role, name: &'t str) -> Node<'t> {
        self.harness.get_by_role_and_label(role, name)
    }

    /// Opens the combo box of this name and takes one of its entries.
    pub fn choose(&mut self, combo: &str, entry: &str) {
        self.node(Role::ComboBox, combo).click();
        self.harness.run();
        // The list is painted last, above everything; the entry may have to be scrolled to.
        let found: Vec<_> = self.harness.query_all_by_role_and_label(Role::Button, entry).collect();
        found.last().unwrap_or_else(|| panic!("{combo} offers {entry}")).click_accesskit();
        drop(found);
        self.harness.run();
    }

    /// Whether some text or control contains these words.
    pub fn says(&self, words: &str) -> bool {
        self.harness.query_all_by_label_contains(words).next().is_some()
    }

    pub fn errors(&self) -> Vec<&str> {
        let notices = self.state().notices.iter();
        notices.filter(|notice| notice.level == Level::Error).map(|notice| notice.text.as_str()).collect()
    }

    pub fn index_of(&self, name: &str) -> usize {
        let tensors = &self.document().checkpoint.tensors;
        tensors.iter().position(|tensor| tensor.name == name).expect("tensor")
    }

    /// The format that the plan gives a tensor.
    pub fn format_of(&self, name: &str) -> String {
        let resolved = self.document().resolved.as_ref().expect("the plan resolves");
        resolved.decisions[self.index_of(name)].dtype.to_string()
    }

    /// Bytes of all tensors as planned.
    pub fn planned_bytes(&self) -> u64 {
        self.document().resolved.as_ref().expect("the plan resolves").new_bytes
    }
}
