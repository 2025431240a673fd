//! `lapidary demo`: the bundled model, its tasks and texts as files.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::output::Table;
use super::session::{Answer, Result, Session};
use crate::engine::units;
use crate::workbench::{DEMO_FILES, write_demo};

/// Write the bundled demo model, its tasks and texts to a folder
#[derive(Debug, Args)]
pub(super) struct Demo {
    /// The folder, made if it is not there; files that differ are not overwritten
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
}

#[derive(Debug, Serialize)]
struct Document<'a> {
    version: u32,
    output: &'a Path,
    files: Vec<File>,
}

#[derive(Debug, Serialize)]
struct File {
    name: &'static str,
    bytes: u64,
}

impl Demo {
    pub fn run(&self, session: &Session) -> Result<Answer> {
        write_demo(&self.output)?;
        let files = DEMO_FILES.iter().map(|&(name, content)| File { name, bytes: content.len() as u64 }).collect();
        let document = Document { version: 1, output: &self.output, files };
        session.answer(&document, || {
            let mut table = Table::new(&["file", ">size"]);
            for file in &document.files {
                table.row([file.name.to_owned(), units::bytes(file.bytes)]);
            }
            format!("{}\nwritten to {}\n", table.render(), self.output.display())
        })
    }
}
