//! Asking for paths: the system's dialog on a thread of its own, or a typed path where there is none.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};

use eframe::egui::text::{CCursor, CCursorRange};
use eframe::egui::{self, Modal, TextEdit, Ui};

use crate::app::context::Cx;
use crate::app::plots::export::{self, Format, Saved};
use crate::app::theme::{Type, UiTokens as _, space};
use crate::app::widgets::{primary_button_ui, secondary_button_ui};
use crate::workbench::{Action, Command, RunId, Workbench};

/// What is being asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    Action(Action),
    Export(RunId),
    Plot(Format, Arc<[u8]>),
}

/// A dialog of the system that has not been answered.
struct Pending {
    wanted: Wanted,
    answer: Receiver<Option<PathBuf>>,
}

/// A path being typed.
struct Typed {
    wanted: Wanted,
    text: String,
    needs_focus: bool,
    reason: Option<&'static str>,
    /// What is in the way of the path that was given last.
    obstacle: Option<Obstacle>,
}

/// Why a file cannot be written at a path just so.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Obstacle {
    /// It cannot be at all: a sentence with the remedy.
    Refused(String),
    /// Folders would have to be made first.
    NoFolder(PathBuf),
}

/// What stands in the way of writing a file at `path`.
fn obstacle(path: &Path) -> Option<Obstacle> {
    if path.is_dir() {
        return Some(Obstacle::Refused(format!("{} is a folder: add a file name", path.display())));
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty())?;
    // The nearest part of the path that is there decides whether the rest can be made.
    let there = parent.ancestors().find(|part| part.exists());
    match there {
        Some(part) if !part.is_dir() => {
            Some(Obstacle::Refused(format!("{} is a file and not a folder: give another place", part.display())))
        }
        _ if parent.is_dir() => None,
        _ => Some(Obstacle::NoFolder(parent.to_owned())),
    }
}

/// Open dialogs.
#[derive(Default)]
pub struct Memory {
    pending: Option<Pending>,
    typed: Option<Typed>,
    about: bool,
    answers: Vec<Command>,
}

/// True for actions that this module handles.
pub fn is_dialog(action: Action) -> bool {
    matches!(
        action,
        Action::OpenFile
            | Action::OpenFolder
            | Action::OpenPath
            | Action::SaveProjectAs
            | Action::LoadTasks
            | Action::LoadText
            | Action::LoadGates
            | Action::LoadPlan
            | Action::SavePlan
            | Action::LoadImportance
            | Action::CalibrateOn
            | Action::ChooseCalibration
            | Action::ChooseExamples
            | Action::ImportTensorTypes
            | Action::ExportTensorTypes
            | Action::ExportGates
            | Action::About
    )
}

/// What a path dropped on the window stands for.
pub fn command_for_dropped(path: PathBuf) -> Command {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("toml") => Command::LoadPlan(path),
        Some("jsonl") => Command::LoadTasks(path),
        Some("txt") => Command::LoadText(path),
        Some("dat") => Command::LoadImportance(path),
        _ => Command::Open(path),
    }
}

fn command_for(wanted: Wanted, path: PathBuf) -> Command {
    match wanted {
        Wanted::Export(run) => Command::Export { run, output: path },
        Wanted::Plot(format, bytes) => {
            let path = if path.extension().is_some() { path } else { path.with_extension(format.extension()) };
            match format {
                // What waits to be printed is its HTML.
                Format::Pdf => Command::PrintPdf { path, html: String::from_utf8_lossy(&bytes).into() },
                _ => Command::WriteFile { path, bytes },
            }
        }
        Wanted::Action(Action::SaveProjectAs) => Command::SaveProjectAs(path),
        Wanted::Action(Action::LoadTasks) => Command::LoadTasks(path),
        Wanted::Action(Action::LoadText) => Command::LoadText(path),
        Wanted::Action(Action::LoadGates) => Command::LoadGates(path),
        Wanted::Action(Action::LoadPlan) => Command::LoadPlan(path),
        Wanted::Action(Action::SavePlan) => Command::SavePlan(path),
        Wanted::Action(Action::LoadImportance) => Command::LoadImportance(path),
        Wanted::Action(Action::CalibrateOn) => Command::Calibrate(path),
        Wanted::Action(Action::ChooseExamples) => Command::ChooseExamples(path),
        Wanted::Action(Action::ChooseCalibration) => Command::ChooseCalibration(path),
        Wanted::Action(Action::ImportTensorTypes) => Command::ImportTensorTypes(path),
        Wanted::Action(Action::ExportTensorTypes) => Command::ExportTensorTypes(path),
        Wanted::Action(Action::ExportGates) => Command::ExportGates(path),
        Wanted::Action(_) => Command::Open(path),
    }
}

/// True for what is written and not read.
fn is_written(wanted: &Wanted) -> bool {
    match wanted {
        Wanted::Export(_) | Wanted::Plot(..) => true,
        Wanted::Action(action) => {
            matches!(action, Action::SaveProjectAs | Action::SavePlan | Action::ExportTensorTypes | Action::ExportGates)
        }
    }
}

fn title(wanted: &Wanted) -> &'static str {
    match wanted {
        Wanted::Export(_) => "Export the candidate to",
        Wanted::Plot(Format::Png, _) => "Save the picture as (.png)",
        Wanted::Plot(Format::Svg, _) => "Save the drawing as (.svg)",
        Wanted::Plot(Format::Csv, _) => "Save the numbers as (.csv)",
        Wanted::Plot(Format::Html, _) => "Save the document as (.html)",
        Wanted::Plot(Format::Markdown, _) => "Save the document as (.md)",
        Wanted::Plot(Format::Pdf, _) => "Print the document to (.pdf)",
        Wanted::Action(Action::OpenFolder) => "Open a model folder",
        Wanted::Action(Action::SaveProjectAs) => "Save the project as",
        Wanted::Action(Action::LoadTasks) => "Choose tasks (.jsonl, .csv or .parquet)",
        Wanted::Action(Action::ChooseExamples) => "Choose worked examples (.jsonl, .csv or .parquet)",
        Wanted::Action(Action::LoadGates) => "Choose gates (.toml)",
        Wanted::Action(Action::LoadText) => "Choose a text (.txt)",
        Wanted::Action(Action::LoadPlan) => "Load a plan (.toml)",
        Wanted::Action(Action::SavePlan) => "Save the plan as (.toml)",
        Wanted::Action(Action::LoadImportance) => "Load an importance matrix (.gguf or .dat)",
        Wanted::Action(Action::CalibrateOn | Action::ChooseCalibration) => "Choose a calibration text (.txt or .jsonl)",
        Wanted::Action(Action::ImportTensorTypes) => "Import tensor types (.txt)",
        Wanted::Action(Action::ExportTensorTypes) => "Export tensor types as (.txt)",
        Wanted::Action(Action::ExportGates) => "Export gates as (.toml)",
        Wanted::Action(_) => "Open a checkpoint or project",
    }
}

/// The system's dialog for what is wanted; blocks, so it runs on a thread of its own.
fn system_dialog(wanted: &Wanted, file_name: String) -> Option<PathBuf> {
    let dialog = rfd::FileDialog::new().set_title(title(wanted));
    match wanted {
        Wanted::Action(Action::OpenFolder) => dialog.pick_folder(),
        Wanted::Action(Action::SaveProjectAs) => {
            dialog.add_filter("Lapidary project", &["lapidary"]).set_file_name(file_name).save_file()
        }
        Wanted::Action(Action::SavePlan) => dialog.add_filter("Plan", &["toml"]).set_file_name(file_name).save_file(),
        Wanted::Action(Action::ExportGates) => {
            dialog.add_filter("Gates", &["toml"]).set_file_name(file_name).save_file()
        }
        Wanted::Action(Action::ExportTensorTypes) => {
            dialog.add_filter("Tensor types", &["txt"]).set_file_name(file_name).save_file()
        }
        Wanted::Export(_) => dialog.set_file_name(file_name).save_file(),
        Wanted::Plot(format, _) => {
            dialog.add_filter("Plot", &[format.extension()]).set_file_name(file_name).save_file()
        }
        Wanted::Action(Action::LoadTasks | Action::ChooseExamples) => {
            dialog.add_filter("Tasks", &["jsonl", "csv", "parquet"]).pick_file()
        }
        Wanted::Action(Action::LoadGates) => dialog.add_filter("Gates", &["toml"]).pick_file(),
        Wanted::Action(Action::LoadImportance) => {
            dialog.add_filter("Importance matrix", &["gguf", "dat", "imatrix"]).pick_file()
        }
        Wanted::Action(Action::ImportTensorTypes) => dialog.add_filter("Tensor types", &["txt"]).pick_file(),
        Wanted::Action(Action::LoadText) => dialog.add_filter("Text", &["txt", "md", "raw"]).pick_file(),
        Wanted::Action(Action::CalibrateOn | Action::ChooseCalibration) => {
            dialog.add_filter("Text", &["txt", "md", "raw", "jsonl"]).pick_file()
        }
        Wanted::Action(Action::LoadPlan) => dialog.add_filter("Plan", &["toml"]).pick_file(),
        Wanted::Action(_) => {
            dialog.add_filter("Models and projects", &["safetensors", "gguf", "json", "lapidary"]).pick_file()
        }
    }
}

impl Memory {
    /// Asks for what an action needs.
    pub fn ask(&mut self, action: Action, bench: &Workbench) {
        match action {
            Action::About => self.about = true,
            Action::OpenPath => self.type_path(Wanted::Action(action), String::new(), None),
            _ => {
                let stem =
                    bench.state().document.as_ref().map_or("project", |document| document.checkpoint.name.as_str());
                let name = match action {
                    Action::SavePlan => "plan.toml".to_owned(),
                    Action::ExportGates => "gates.toml".to_owned(),
                    Action::ExportTensorTypes => "tensor-types.txt".to_owned(),
                    _ => format!("{stem}.lapidary"),
                };
                self.show(Wanted::Action(action), name);
            }
        }
    }

    /// Asks where a candidate shall be copied to.
    pub fn ask_export(&mut self, run: RunId, candidate: &Path) {
        let name =
            candidate.file_name().map_or_else(|| "candidate".to_owned(), |name| name.to_string_lossy().into_owned());
        self.show(Wanted::Export(run), name);
    }

    /// Asks where a plot shall be saved.
    pub fn ask_save_plot(&mut self, plot: Saved) {
        let name = format!("{}.{}", plot.stem, plot.format.extension());
        self.show(Wanted::Plot(plot.format, plot.bytes.into()), name);
    }

    /// Commands that answered dialogs stand for.
    pub(in crate::app) fn answers(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.answers)
    }

    fn type_path(&mut self, wanted: Wanted, text: String, reason: Option<&'static str>) {
        self.typed = Some(Typed { wanted, text, needs_focus: true, reason, obstacle: None });
    }

    fn show(&mut self, wanted: Wanted, file_name: String) {
        if self.pending.is_some() {
            return;
        }
        let offered = if matches!(wanted, Wanted::Plot(..)) { format!("~/{file_name}") } else { String::new() };
        // A portal answers over D-Bus; without a session bus there is nobody to ask.
        if cfg!(target_os = "linux") && std::env::var_os("DBUS_SESSION_BUS_ADDRESS").is_none() {
            self.type_path(wanted, offered, Some("This session has no file dialog, so type or paste the path"));
            return;
        }
        if cfg!(target_os = "macos") {
            // AppKit's dialogs belong to the main thread.
            if let Some(path) = system_dialog(&wanted, file_name) {
                self.answers.push(command_for(wanted, path));
            }
            return;
        }
        let (sender, answer) = sync_channel(1);
        let asked = wanted.clone();
        let spawned = std::thread::Builder::new().name("file dialog".to_owned()).spawn(move || {
            if sender.send(system_dialog(&asked, file_name)).is_err() {
                tracing::debug!("the window closed before its dialog");
            }
        });
        match spawned {
            Ok(_) => self.pending = Some(Pending { wanted, answer }),
            Err(err) => {
                tracing::warn!("no thread for the dialog: {err}");
                self.type_path(wanted, offered, Some("The file dialog cannot be shown, so type or paste the path"));
            }
        }
    }
}

/// Paints what is typed here, and takes in answers of the system's dialog.
pub fn dialogs_ui(ui: &mut Ui, cx: &mut Cx<'_>) {
    for plot in export::take(ui.ctx()) {
        match plot {
            Ok(plot) => cx.memory.dialogs.ask_save_plot(plot),
            Err(sentence) => cx.send(Command::Warn(sentence)),
        }
    }
    let memory = &mut cx.memory.dialogs;
    if let Some(pending) = &memory.pending {
        match pending.answer.try_recv() {
            Ok(path) => {
                let wanted = pending.wanted.clone();
                memory.answers.extend(path.map(|path| command_for(wanted, path)));
                memory.pending = None;
            }
            Err(TryRecvError::Disconnected) => memory.pending = None,
            Err(TryRecvError::Empty) => ui.ctx().request_repaint_after(std::time::Duration::from_millis(100)),
        }
    }
    typed_ui(ui, memory);
    if memory.about {
        let modal = Modal::new(egui::Id::unique("about")).show(ui.ctx(), |ui| {
            ui.set_width(420.0);
            ui.label(Type::Title.text("Lapidary"));
            ui.label(Type::Body.text(format!("Version {}", env!("CARGO_PKG_VERSION"))));
            ui.add_space(space::S);
            ui.label("A workbench for making language models smaller without breaking them.");
            ui.label("MIT or Apache-2.0. Fonts: Inter and JetBrains Mono, SIL Open Font License.");
            ui.label("Formats and searches follow ggml (MIT, the ggml authors).");
            ui.add_space(space::M);
            primary_button_ui(ui, "Close", true).clicked()
        });
        if modal.inner || modal.should_close() {
            memory.about = false;
        }
    }
}

fn typed_ui(ui: &mut Ui, memory: &mut Memory) {
    let Some(typed) = &mut memory.typed else { return };
    let wanted = typed.wanted.clone();
    let modal = Modal::new(egui::Id::unique("typed path")).show(ui.ctx(), |ui| {
        ui.set_width(560.0);
        ui.label(Type::Heading.text(title(&wanted)));
        if let Some(reason) = typed.reason {
            ui.label(Type::Small.text(reason).color(ui.tokens().weak));
        }
        ui.add_space(space::S);
        let field = path_field_ui(ui, typed);
        let entered = field.lost_focus() && ui.input(|input| input.key_pressed(egui::Key::Enter));
        if field.changed() {
            typed.obstacle = None;
        }
        let verb = match &typed.obstacle {
            None => "OK",
            Some(Obstacle::Refused(sentence)) => {
                ui.label(Type::Small.text(sentence).color(ui.tokens().fail));
                "OK"
            }
            Some(Obstacle::NoFolder(folder)) => {
                let sentence = format!("The folder {} is not there", folder.display());
                ui.label(Type::Small.text(sentence).color(ui.tokens().undecided));
                "Make the folder and save"
            }
        };
        ui.add_space(space::M);
        ui.horizontal(|ui| {
            let is_refused = matches!(typed.obstacle, Some(Obstacle::Refused(_)));
            let is_ready = !typed.text.trim().is_empty() && !is_refused;
            let ok = primary_button_ui(ui, verb, is_ready).clicked() || (entered && is_ready);
            let cancel = secondary_button_ui(ui, "Cancel", true).clicked();
            (ok, cancel)
        })
        .inner
    });
    let (ok, cancel) = modal.inner;
    if ok {
        let path = expand_home(typed.text.trim().trim_matches('"'));
        // A folder that is not there is made after it was asked for: the second answer to the same path.
        let is_asked = matches!(typed.obstacle, Some(Obstacle::NoFolder(_)));
        typed.obstacle = obstacle(&path)
            .filter(|found| is_written(&wanted) && !(is_asked && matches!(found, Obstacle::NoFolder(_))));
        if typed.obstacle.is_none() {
            memory.answers.push(command_for(wanted, path));
            memory.typed = None;
        }
    } else if cancel || modal.should_close() {
        memory.typed = None;
    }
}

/// The field for the path; what is offered is selected at first, so that typing replaces it.
fn path_field_ui(ui: &mut Ui, typed: &mut Typed) -> egui::Response {
    let edit = TextEdit::singleline(&mut typed.text).hint_text("Path of a file or folder").desired_width(f32::INFINITY);
    let mut output = edit.show(ui);
    if std::mem::take(&mut typed.needs_focus) {
        let whole = CCursorRange::two(CCursor::new(0), CCursor::new(typed.text.chars().count()));
        output.state.cursor.set_char_range(Some(whole));
        output.state.store(ui.ctx(), output.response.id);
        output.response.request_focus();
    }
    output.response.response.accessible_name("Path of a file or folder")
}

/// A leading `~` stands for the home folder, as in a shell.
fn expand_home(text: &str) -> PathBuf {
    match (text.strip_prefix("~/"), directories::UserDirs::new()) {
        (Some(rest), Some(dirs)) => dirs.home_dir().join(rest),
        _ => PathBuf::from(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_gets_the_ending_of_its_format_unless_it_was_given_one() {
        let written = |path: &str| match command_for(Wanted::Plot(Format::Svg, Arc::from(*b"x")), path.into()) {
            Command::WriteFile { path, .. } => path,
            other => panic!("{other:?}"),
        };
        assert_eq!(written("a/map"), PathBuf::from("a/map.svg"));
        assert_eq!(written("a/map.txt"), PathBuf::from("a/map.txt"));
        match command_for(Wanted::Plot(Format::Pdf, Arc::from(*b"<h1>x</h1>")), "a/report".into()) {
            Command::PrintPdf { path, html } => {
                assert_eq!((path, &*html), (PathBuf::from("a/report.pdf"), "<h1>x</h1>"));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_file_is_no_folder_and_missing_folders_are_asked_for() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("report.html");
        std::fs::write(&file, "x").expect("writes");
        assert_eq!(obstacle(&file), None, "an old file is replaced");
        assert_eq!(obstacle(&folder.path().join("new.html")), None);
        assert_eq!(obstacle(Path::new("new.html")), None, "beside where the program was started");
        for path in [file.join("new.html"), file.join("a/new.html"), folder.path().to_owned()] {
            assert!(matches!(obstacle(&path), Some(Obstacle::Refused(_))), "{}", path.display());
        }
        let deep = folder.path().join("a/b/new.html");
        assert_eq!(obstacle(&deep), Some(Obstacle::NoFolder(folder.path().join("a/b"))));
    }

    #[test]
    fn dropped_files_do_what_their_kind_is_for() {
        assert!(matches!(command_for_dropped("a/plan.toml".into()), Command::LoadPlan(_)));
        assert!(matches!(command_for_dropped("t.jsonl".into()), Command::LoadTasks(_)));
        assert!(matches!(command_for_dropped("t.txt".into()), Command::LoadText(_)));
        assert!(matches!(command_for_dropped("m.gguf".into()), Command::Open(_)));
        assert!(matches!(command_for_dropped("folder".into()), Command::Open(_)));
    }
}
