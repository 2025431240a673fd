//! The program: a subcommand runs in the terminal, none opens the window.
//!
//! Everything is in the library. This file only hands the window to the command line, which must
//! not know of it.

use std::process::ExitCode;

use lapidary::cli::{self, OpenWindow};

/// Opens the window, where the program was built with it.
#[cfg(feature = "gui")]
const WINDOW: Option<OpenWindow> = Some(lapidary::app::run);
#[cfg(not(feature = "gui"))]
const WINDOW: Option<OpenWindow> = None;

fn main() -> ExitCode {
    cli::main(WINDOW)
}
