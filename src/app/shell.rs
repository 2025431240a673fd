//! The frame around the views, and the one place where commands leave the window.
//!
//! [`LapidaryApp::logic`](eframe::App::logic) takes in what jobs have finished and runs also while
//! the window is hidden; `ui` paints and gathers commands, which are carried out when the frame is
//! painted. Actions that ask for a path open a dialog here and become a command when it is answered.

use std::path::PathBuf;
use std::time::Instant;

use eframe::egui::{self, Frame, Margin, Panel, ScrollArea, Ui};

use super::context::{Cx, Memory};
use super::panels::{dialogs, inspector, menu, palette, strip, tensors};
use super::theme::{self, Mode, UiTokens as _, space};
use super::views;
use super::widgets::tabs_ui;
use crate::workbench::{Action, Command, ThemeChoice, View, Workbench};

/// Frames whose CPU time is kept.
const FRAMES_KEPT: usize = 2048;

/// The window's state: the workbench and what panels remember.
pub struct LapidaryApp {
    bench: Workbench,
    memory: Memory,
    commands: Vec<Command>,
    first_open: Option<Option<PathBuf>>,
    frame_secs: Vec<f32>,
    logic_secs: f32,
    started: Option<Instant>,
}

impl LapidaryApp {
    /// A window on `path`, or on the bundled demo where there is none.
    pub fn new(bench: Workbench, path: Option<PathBuf>) -> Self {
        Self {
            bench,
            memory: Memory::default(),
            commands: Vec::new(),
            first_open: Some(path),
            frame_secs: Vec::new(),
            logic_secs: 0.0,
            started: None,
        }
    }

    /// Has the log tell how long after `started` the first frame was there.
    #[must_use]
    pub fn timed_from(self, started: Instant) -> Self {
        Self { started: Some(started), ..self }
    }

    /// The workbench, for tests and for the command that makes screenshots.
    pub fn bench(&self) -> &Workbench {
        &self.bench
    }

    /// The workbench, to send commands to from a test.
    pub fn bench_mut(&mut self) -> &mut Workbench {
        &mut self.bench
    }

    /// CPU time of the last frames (logic and painting commands, not the GPU), in seconds.
    pub fn frame_secs(&self) -> &[f32] {
        &self.frame_secs
    }

    fn keys(&mut self, ctx: &egui::Context) {
        // What is open above the window takes Escape and its own keys.
        let typing = ctx.egui_wants_keyboard_input() || ctx.memory(|memory| memory.top_modal_layer().is_some());
        // A pattern without Shift also matches with it, so those with Shift come first.
        let has_shift = |action: &Action| action.shortcut().is_some_and(|shortcut| shortcut.shift);
        let (with_shift, without): (Vec<_>, Vec<_>) = Action::ALL.into_iter().partition(has_shift);
        for action in with_shift.into_iter().chain(without) {
            let Some(shortcut) = action.shortcut() else { continue };
            let Some(key) = egui::Key::from_name(shortcut.key) else { continue };
            // A bare key belongs to the text field that has the focus.
            if typing && !shortcut.command && !shortcut.key.starts_with('F') {
                continue;
            }
            // Text fields have their own undo and select-all.
            if typing && matches!(action, Action::Undo | Action::Redo | Action::SelectAllLinears) {
                continue;
            }
            let modifiers = egui::Modifiers {
                command: shortcut.command,
                ctrl: shortcut.command,
                shift: shortcut.shift,
                ..Default::default()
            };
            if ctx.input_mut(|input| input.consume_shortcut(&egui::KeyboardShortcut::new(modifiers, key))) {
                self.commands.push(action.into());
            }
        }
    }

    fn drops(&mut self, ctx: &egui::Context) {
        let dropped = ctx.input(|input| input.raw.dropped_files.first().map(|file| file.path().to_path_buf()));
        if let Some(path) = dropped {
            self.commands.push(dialogs::command_for_dropped(path));
        }
    }

    fn frame_ui(&mut self, ui: &mut Ui) {
        let mut cx = Cx { bench: &self.bench, commands: &mut self.commands, memory: &mut self.memory };
        let tokens = ui.tokens();
        let bar = Frame::new().fill(tokens.panel).inner_margin(Margin::symmetric(8, 4));
        Panel::top("menu").frame(bar).show(ui, |ui| menu::menu_ui(ui, &mut cx));
        let strip_frame = Frame::new().fill(tokens.panel).inner_margin(Margin::symmetric(12, 8));
        Panel::bottom("strip").frame(strip_frame).show(ui, |ui| strip::strip_ui(ui, &mut cx));
        let side = Frame::new().fill(tokens.panel).inner_margin(Margin::same(8));
        if !cx.is_presenting() {
            Panel::left("tensors")
                .frame(side)
                .default_size(300.0)
                .size_range(220.0..=520.0)
                .show(ui, |ui| tensors::tensors_ui(ui, &mut cx));
            Panel::right("inspector")
                .frame(side.inner_margin(Margin::same(12)))
                .default_size(330.0)
                .size_range(260.0..=560.0)
                .show(ui, |ui| {
                    ScrollArea::vertical()
                        .id_salt("inspector scroll")
                        .show(ui, |ui| inspector::inspector_ui(ui, &mut cx));
                });
        }
        let tabs = Frame::new().fill(tokens.window).inner_margin(Margin::symmetric(12, 0));
        Panel::top("tabs").frame(tabs).show(ui, |ui| {
            let titles = View::ALL.map(View::title);
            let selected = View::ALL.iter().position(|view| *view == cx.state().view).unwrap_or(0);
            if let Some(index) = tabs_ui(ui, &titles, selected) {
                cx.send(Command::Show(View::ALL[index]));
            }
        });
        let centre = Frame::new().fill(tokens.window).inner_margin(Margin::same(space::M as i8));
        egui::CentralPanel::default().frame(centre).show(ui, |ui| match cx.state().view {
            View::Overview => views::overview::overview_ui(ui, &mut cx),
            View::Weights => views::weights::weights_ui(ui, &mut cx),
            View::Sensitivity => views::sensitivity::sensitivity_ui(ui, &mut cx),
            View::Plan => views::plan::plan_ui(ui, &mut cx),
            View::Heads => views::heads::heads_ui(ui, &mut cx),
            View::Runs => views::runs::runs_ui(ui, &mut cx),
            View::Compare => views::compare::compare_ui(ui, &mut cx),
            View::Playground => views::playground::playground_ui(ui, &mut cx),
            View::Report => views::report::report_ui(ui, &mut cx),
        });
        palette::palette_ui(ui, &mut cx);
        dialogs::dialogs_ui(ui, &mut cx);
        strip::notices_ui(ui, &mut cx);
    }

    /// Carries out what the frame asked for.
    fn carry_out(&mut self, ctx: &egui::Context) {
        for command in std::mem::take(&mut self.commands) {
            match command {
                Command::Act(Action::Palette) => self.memory.palette.toggle(),
                // What is on screen changes, also where the theme has been the system's so far.
                Command::Act(Action::ToggleTheme) => {
                    let is_dark = ctx.theme() == egui::Theme::Dark;
                    let next = if is_dark { ThemeChoice::Light } else { ThemeChoice::Dark };
                    self.bench.apply(Command::SetTheme(next));
                }
                Command::Act(action) if dialogs::is_dialog(action) => match self.bench.unavailable(action) {
                    None => self.memory.dialogs.ask(action, &self.bench),
                    Some(_) => self.bench.apply(action),
                },
                other => self.bench.apply(other),
            }
            ctx.request_repaint();
        }
        for command in self.memory.dialogs.answers() {
            self.bench.apply(command);
            ctx.request_repaint();
        }
        if self.bench.state().quit {
            ctx.send_viewport_cmd(egui::ViewportCommand::Close);
        }
    }
}

impl eframe::App for LapidaryApp {
    fn logic(&mut self, ctx: &egui::Context, _frame: &mut eframe::Frame) {
        let started = Instant::now();
        if let Some(path) = self.first_open.take() {
            match path {
                Some(path) => self.bench.apply(Command::Open(path)),
                None => self.bench.apply(Action::OpenDemo),
            }
        }
        if self.bench.poll() {
            ctx.request_repaint();
        }
        let mode = match self.bench.state().settings.theme {
            ThemeChoice::System => Mode::System,
            ThemeChoice::Dark => Mode::Dark,
            ThemeChoice::Light => Mode::Light,
        };
        theme::apply(ctx, mode, self.bench.state().presenter);
        if self.bench.is_busy() {
            // The clock of a job goes on also when it has nothing new to tell.
            ctx.request_repaint_after(std::time::Duration::from_millis(250));
        }
        self.logic_secs = started.elapsed().as_secs_f32();
    }

    fn ui(&mut self, ui: &mut Ui, _frame: &mut eframe::Frame) {
        let started = Instant::now();
        let ctx = ui.ctx().clone();
        self.keys(&ctx);
        self.drops(&ctx);
        self.frame_ui(ui);
        self.carry_out(&ctx);
        if self.frame_secs.len() >= FRAMES_KEPT {
            self.frame_secs.drain(..FRAMES_KEPT / 2);
        }
        if let Some(start) = self.started.take() {
            tracing::info!("first frame after {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
        }
        self.frame_secs.push(started.elapsed().as_secs_f32() + self.logic_secs);
    }

    fn on_exit(&mut self) {
        self.bench.close();
        if let Some(secs) = percentile(&self.frame_secs, 0.99) {
            tracing::info!(
                "CPU time of a frame, 99th percentile: {:.2} ms of {} frames",
                secs * 1e3,
                self.frame_secs.len()
            );
        }
    }
}

/// The value below which a share of the sorted values lies.
pub fn percentile(values: &[f32], share: f64) -> Option<f32> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f32::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last as f64 * share).round() as usize).copied()
}
