//! The same engine for a terminal and for CI: one file per command.
//!
//! Each command turns its arguments into engine calls and answers with one document and one text;
//! [`main`] prints either, so that `--json` is exactly one document by construction. Progress,
//! warnings and errors go to stderr. It ends with 0 done, 1 failed, 2 usage, 3 a gate failed or
//! undecided, 130 interrupted. A reader that goes away early is no failure.

mod bench;
mod budget;
mod calibrate;
mod cascade;
mod compare;
mod demo;
mod devices;
mod evaluate;
mod generate;
mod inspect;
mod limits;
mod mask;
mod output;
mod plan;
mod plan_diff;
mod profile;
mod progress_bar;
mod prune;
mod report;
mod run;
mod sensitivity;
mod session;
mod speculate;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::engine::device::{self, VARIABLE};
use crate::engine::progress::Progress;
use session::{Answer, Failure, Session};

/// Opens the window, on a path if there is one, and returns when it is closed; or says why it cannot.
pub type OpenWindow = fn(Option<PathBuf>) -> std::result::Result<(), String>;

/// What every command's PATH may be.
const PATH_HELP: &str = "A folder, a .safetensors, an .index.json or a .gguf; `demo` is the bundled model";

const AFTER_HELP: &str = "\
Without a command the window opens, on PATH if there is one. PATH is a folder, a .safetensors, an .index.json or a
.gguf; `demo` is the bundled model (a folder of that name is `./demo`), which brings its own tasks and texts.

Exit codes: 0 done, 1 failed, 2 usage, 3 a gate failed or is undecided, 130 interrupted.
LAPIDARY_LOG=debug writes a log to stderr.";

const NO_WINDOW: &str =
    "this lapidary was built without the window; `lapidary --help` lists what the command line does";

const NO_DISPLAY: &str =
    "there is no display to open the window on; `lapidary --help` lists what the command line does without one";

/// A workbench for making language models smaller without breaking them
#[derive(Debug, Parser)]
#[command(
    name = "lapidary",
    version,
    after_help = AFTER_HELP,
    override_usage = "lapidary [PATH]\n       lapidary [OPTIONS] <COMMAND>"
)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What every command takes.
#[derive(Debug, Args)]
struct Common {
    /// Write one JSON document to stdout instead of text
    #[arg(long, global = true)]
    json: bool,
    /// Worker threads [default: one per core]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Where work runs: auto, cpu, or part of a name that `lapidary devices` lists [default: what
    /// LAPIDARY_DEVICE says, else auto]
    #[arg(long, global = true, value_name = "DEVICE")]
    device: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Inspect(inspect::Inspect),
    Profile(profile::Profile),
    Calibrate(calibrate::Calibrate),
    Sensitivity(sensitivity::Sensitivity),
    Plan(Box<plan::MakePlan>),
    Run(run::Run),
    Mask(mask::Mask),
    Evaluate(evaluate::Evaluate),
    Compare(compare::Compare),
    Bench(bench::Bench),
    Generate(generate::Generate),
    Speculate(speculate::Speculate),
    Cascade(cascade::PlanCascade),
    Report(report::WriteReport),
    Demo(demo::Demo),
    Devices(devices::Devices),
    #[command(external_subcommand)]
    Open(Vec<OsString>),
}

/// Runs the program with the process's arguments; `window` is none where it was built without one.
pub fn main(window: Option<OpenWindow>) -> ExitCode {
    device::prepare();
    start_log();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(err) => return usage(&err),
    };
    let Common { json, threads, device } = cli.common;
    if let Some(threads) = threads {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.into())
            .thread_name(|index| format!("worker {index}"))
            .build_global();
        if let Err(err) = pool {
            tracing::warn!("--threads has no effect: {err}");
        }
    }
    let path = match cli.command {
        None => None,
        Some(Command::Open(words)) => match path_to_open(&words) {
            Ok(path) => Some(path),
            Err(err) => return usage(&err),
        },
        // On a worker thread: a parallel step that begins there costs a queue entry, not two switches of threads.
        Some(command) => return rayon::scope(|_| run_command(command, json, device)),
    };
    open_window(window, path)
}

/// Prints a usage error, or the help that was asked for.
fn usage(err: &clap::Error) -> ExitCode {
    // If stderr is gone there is nobody to tell.
    let _ = err.print();
    ExitCode::from(u8::try_from(err.exit_code()).unwrap_or(2))
}

fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("LAPIDARY_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
}

/// A word that is no command is a path to open, if there is such a file.
fn path_to_open(words: &[OsString]) -> std::result::Result<PathBuf, clap::Error> {
    if let [word] = words
        && Path::new(word).exists()
    {
        return Ok(PathBuf::from(word));
    }
    let first = words.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    let names: Vec<String> = Cli::command().get_subcommands().map(|command| command.get_name().to_owned()).collect();
    let message = format!("there is no command or file {first:?}; the commands are {}", names.join(", "));
    Err(Cli::command().error(ErrorKind::InvalidSubcommand, message))
}

fn open_window(window: Option<OpenWindow>, path: Option<PathBuf>) -> ExitCode {
    let opened = if cfg!(feature = "gui") && !has_display() {
        Err(NO_DISPLAY.to_owned())
    } else {
        window.map_or_else(|| Err(NO_WINDOW.to_owned()), |open| open(path))
    };
    match opened {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            output::error(&reason);
            ExitCode::FAILURE
        }
    }
}

/// False on a Linux that names no display; other systems always have one or say so themselves.
fn has_display() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !cfg!(target_os = "linux") || ["WAYLAND_DISPLAY", "WAYLAND_SOCKET", "DISPLAY"].into_iter().any(is_set)
}

/// Ctrl-C asks the work to stop, so that it can clean up; a second one, later, does not wait for it.
fn stop_on_interrupt(progress: &Progress) {
    const PATIENCE: Duration = Duration::from_secs(1);
    let progress = progress.clone();
    let mut first: Option<Instant> = None;
    let handler = move || match first {
        Some(at) if at.elapsed() > PATIENCE => std::process::exit(130),
        Some(_) => {}
        None => {
            first = Some(Instant::now());
            progress.cancel();
        }
    };
    if let Err(err) = ctrlc::set_handler(handler) {
        tracing::warn!("Ctrl-C will end the program without cleaning up: {err}");
    }
}

fn run_command(command: Command, json: bool, device: Option<String>) -> ExitCode {
    let wish = device.or_else(|| std::env::var(VARIABLE).ok()).unwrap_or_default();
    let session = Session::new(json, wish);
    stop_on_interrupt(&session.progress);
    let result = match command {
        Command::Inspect(arguments) => arguments.run(&session),
        Command::Profile(arguments) => arguments.run(&session),
        Command::Calibrate(arguments) => arguments.run(&session),
        Command::Sensitivity(arguments) => arguments.run(&session),
        Command::Plan(arguments) => arguments.run(&session),
        Command::Run(arguments) => arguments.run(&session),
        Command::Mask(arguments) => arguments.run(&session),
        Command::Evaluate(arguments) => arguments.run(&session),
        Command::Compare(arguments) => arguments.run(&session),
        Command::Bench(arguments) => arguments.run(&session),
        Command::Generate(arguments) => arguments.run(&session),
        Command::Speculate(arguments) => arguments.run(&session),
        Command::Cascade(arguments) => arguments.run(&session),
        Command::Report(arguments) => arguments.run(&session),
        Command::Demo(arguments) => arguments.run(&session),
        Command::Devices(arguments) => arguments.run(&session),
        Command::Open(words) => Err(Failure::Usage(format!("{words:?} is not a command"))),
    };
    session.hide_progress();
    for warning in session.warnings() {
        output::warning(&warning);
    }
    let result = result.and_then(|Answer { text, code }| {
        output::print(&text).map_err(Failure::Output)?;
        Ok(code)
    });
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => report(&failure),
    }
}

/// Says once on stderr what went wrong, and answers the exit code.
fn report(failure: &Failure) -> ExitCode {
    match failure {
        Failure::Engine(err) if err.is_cancelled() => {
            output::note("interrupted");
            ExitCode::from(130)
        }
        Failure::Engine(err) => {
            output::error(&err.to_string());
            ExitCode::FAILURE
        }
        Failure::Usage(message) => {
            output::error(message);
            ExitCode::from(2)
        }
        // Whoever read our output has seen enough: `lapidary inspect demo | head`.
        Failure::Output(err) if err.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Failure::Output(err) => {
            output::error(&format!("cannot write to stdout: {err}"));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_word_that_is_neither_command_nor_file_is_refused_with_the_commands() {
        let words = [OsString::from("inspcet"), OsString::from("demo")];
        let message = path_to_open(&words).expect_err("refused").to_string();
        assert!(message.contains("\"inspcet\"") && message.contains("inspect, profile"), "{message}");
        let here = [OsString::from(env!("CARGO_MANIFEST_DIR"))];
        assert_eq!(path_to_open(&here).expect("a path"), PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    }
}
