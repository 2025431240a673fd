//! What people and scripts read: aligned tables, messages, and files that appear whole or not at all.

use std::io::{self, Write};
use std::path::Path;

use super::session::Result;
use crate::engine::checkpoint::{Checkpoint, ensure_not_source};
use crate::engine::error::{Error, Fault, Stage};
use crate::workbench::files::{beside, replace};

/// Columns of text with a header; numbers are aligned to the right.
#[derive(Debug)]
pub(super) struct Table {
    is_right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns; a title that starts with `>` is of a column of numbers.
    pub fn new(titles: &[&str]) -> Self {
        let is_right = titles.iter().map(|title| title.starts_with('>')).collect();
        let header = titles.iter().map(|title| title.strip_prefix('>').unwrap_or(title).to_owned()).collect();
        Self { is_right, rows: vec![header] }
    }

    /// Adds a row; names from files cannot steer the terminal.
    pub fn row<T: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.rows.push(cells.into_iter().map(|cell| printable(cell.as_ref()).replace('\n', "\\n")).collect());
    }

    /// The table as lines.
    pub fn render(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.is_right.len()).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                if column > 0 {
                    line.push_str("  ");
                }
                let padding = " ".repeat(width - cell.chars().count());
                if self.is_right[column] {
                    line.push_str(&padding);
                    line.push_str(cell);
                } else {
                    line.push_str(cell);
                    line.push_str(&padding);
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Text without characters that steer a terminal; line ends stay.
pub(super) fn printable(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' {
            clean.extend(c.escape_default());
        } else {
            clean.push(c);
        }
    }
    clean
}

/// A fraction as a percentage without its sign, for columns that carry it in the title.
pub(super) fn points(fraction: f64) -> String {
    format!("{:.1}", fraction * 100.0)
}

/// A difference of fractions in points with its margin: `−1.2 ± 0.8`.
pub(super) fn difference(value: f64, margin: f64) -> String {
    // Rounded first, so that −0.04 does not read −0.0.
    let rounded = (value * 1000.0).round() / 10.0;
    let sign = if rounded < 0.0 {
        "−"
    } else if rounded > 0.0 {
        "+"
    } else {
        ""
    };
    format!("{sign}{:.1} ± {:.1}", rounded.abs(), margin * 100.0)
}

/// Half of a 95 % interval, from a standard error.
pub(super) fn margin(stderr: f64) -> f64 {
    1.96 * stderr
}

/// Writes the answer to stdout.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// One line on stderr; if stderr is gone there is nobody to tell.
pub(super) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", printable(text));
}

/// What stopped the command.
pub(super) fn error(text: &str) {
    note(&format!("error: {text}"));
}

/// What did not stop the command.
pub(super) fn warning(text: &str) {
    note(&format!("warning: {text}"));
}

/// Makes sure, before long work, that `target` can be written and is none of the checkpoints' own files.
pub(super) fn check_target(target: Option<&Path>, checkpoints: &[&Checkpoint]) -> Result<()> {
    let Some(target) = target else { return Ok(()) };
    for checkpoint in checkpoints {
        ensure_not_source(checkpoint, target)?;
    }
    if target.is_dir() {
        return Err(Fault::new(Stage::Project, "the output is a folder, but a file will be written")
            .fix("choose another name")
            .file(target)
            .into());
    }
    beside(target).map_err(Error::io("write", target))?;
    Ok(())
}

/// Writes a file beside its place and renames it, so that it is there whole or not at all.
pub(super) fn write_file(target: &Path, text: &str) -> Result<()> {
    Ok(replace(target, text.as_bytes()).map_err(Error::io("write", target))?)
}

/// Writes a document as JSON beside its target and renames it, without holding the text.
pub(super) fn write_json(target: &Path, document: &impl serde::Serialize) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut file = io::BufWriter::new(beside(target)?);
        serde_json::to_writer_pretty(&mut file, document)?;
        file.write_all(b"\n")?;
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.as_file().sync_all()?;
        file.persist(target)?;
        Ok(())
    };
    Ok(write().map_err(Error::io("write", target))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_numbers_end_together() {
        let mut table = Table::new(&["tensor", ">>size", "why"]);
        table.row(["a", "512 B", "x"]);
        table.row(["long.name", "3.50 KiB", ""]);
        assert_eq!(table.render(), "tensor        >size  why\na             512 B  x\nlong.name  3.50 KiB\n");
    }

    #[test]
    fn a_name_from_a_file_cannot_steer_the_terminal() {
        let mut table = Table::new(&["tensor"]);
        table.row(["a\u{1b}[2Jb\nc"]);
        assert_eq!(table.render(), "tensor\na\\u{1b}[2Jb\\nc\n");
    }

    #[test]
    fn a_difference_has_a_sign_only_where_it_shows() {
        assert_eq!(difference(-0.0123, 0.008), "−1.2 ± 0.8");
        assert_eq!(difference(-0.0001, 0.008), "0.0 ± 0.8");
        assert_eq!(difference(0.05, 0.0), "+5.0 ± 0.0");
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().expect("folder");
        let target = folder.path().join("a.json");
        write_file(&target, "one").expect("writes");
        check_target(Some(&target), &[]).expect("can be written again");
        write_file(&target, "two").expect("writes");
        assert_eq!(std::fs::read_to_string(&target).expect("reads"), "two");
        assert_eq!(std::fs::read_dir(folder.path()).expect("lists").count(), 1);
        assert!(check_target(Some(folder.path()), &[]).is_err());
        assert!(check_target(Some(&folder.path().join("missing/a.json")), &[]).is_err());
    }
}
