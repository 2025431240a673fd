//! PDF through what the system has: the first browser or converter that is installed prints the report's HTML.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::engine::error::{Error, Fault, Result, Stage};

/// Programs that print a page to a file, each with the words that ask for it: `{html}` and `{pdf}` are the files.
const PRINTERS: [(&str, &[&str]); 11] = [
    ("chromium", BROWSER),
    ("chromium-browser", BROWSER),
    ("google-chrome", BROWSER),
    ("google-chrome-stable", BROWSER),
    ("microsoft-edge", BROWSER),
    ("msedge", BROWSER),
    ("brave-browser", BROWSER),
    ("weasyprint", &["{html}", "{pdf}"]),
    ("wkhtmltopdf", &["--print-media-type", "--quiet", "{html}", "{pdf}"]),
    ("libreoffice", OFFICE),
    ("soffice", OFFICE),
];

/// No browser's own header and footer, which would show the date and a temporary file's path; pages have numbers of
/// their own. Old and new browsers call that differently and overlook what they do not know.
const BROWSER: &[&str] = &[
    "--headless",
    "--disable-gpu",
    "--no-pdf-header-footer",
    "--print-to-pdf-no-header",
    "--print-to-pdf={pdf}",
    "{html}",
];

const OFFICE: &[&str] = &["--headless", "--convert-to", "pdf:writer_web_pdf_Export", "--outdir", "{folder}", "{html}"];

/// What folds on screen lies open on paper.
fn unfolded(html: &str) -> String {
    html.replace("<details>", "<details open>")
}

/// What there is to print with: programs on the search path, in the order in which they are tried.
fn installed() -> Vec<(&'static str, &'static [&'static str])> {
    let folders: Vec<PathBuf> =
        std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    let is_there = |name: &str| {
        let name = format!("{name}{}", std::env::consts::EXE_SUFFIX);
        folders.iter().any(|folder| folder.join(&name).is_file())
    };
    PRINTERS.into_iter().filter(|(name, _)| is_there(name)).collect()
}

/// The program that would print, if there is one.
pub fn printer() -> Option<&'static str> {
    installed().first().map(|(name, _)| *name)
}

/// Prints a page of HTML to a PDF file; answers the program that did it.
///
/// # Errors
/// Where no program is installed, or none of them printed.
pub fn print_to_pdf(html: &str, pdf: &Path) -> Result<&'static str> {
    let refuse = |cause: String| -> Error {
        Fault::new(Stage::Project, cause).fix("open the HTML in a browser and print it").file(pdf).into()
    };
    let programs = installed();
    if programs.is_empty() {
        let names: Vec<&str> = PRINTERS.iter().map(|(name, _)| *name).collect();
        return Err(refuse(format!("nothing here prints to PDF: none of {} is installed", names.join(", "))));
    }
    let folder = tempfile::tempdir().map_err(Error::io("create", &std::env::temp_dir()))?;
    let (page, printed) = (folder.path().join("report.html"), folder.path().join("report.pdf"));
    std::fs::write(&page, unfolded(html)).map_err(Error::io("write", &page))?;
    let mut failures = Vec::new();
    for (program, words) in programs {
        let words = words.iter().map(|word| {
            word.replace("{html}", &page.to_string_lossy())
                .replace("{pdf}", &printed.to_string_lossy())
                .replace("{folder}", &folder.path().to_string_lossy())
        });
        let mut command = Command::new(program);
        command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        match command.status() {
            Ok(status) if status.success() => {
                let bytes = std::fs::read(&printed).unwrap_or_default();
                if bytes.starts_with(b"%PDF-") {
                    super::files::write_atomically(pdf, &bytes).map_err(Error::io("write", pdf))?;
                    return Ok(program);
                }
                failures.push(format!("{program} wrote no PDF"));
            }
            Ok(status) => failures.push(format!("{program} ended with {status}")),
            Err(err) => failures.push(format!("{program}: {err}")),
        }
    }
    Err(refuse(format!("the page was not printed: {}", failures.join("; "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_folds_lies_open_on_paper() {
        assert_eq!(
            unfolded("<details>\n<summary>s</summary></details>"),
            "<details open>\n<summary>s</summary></details>"
        );
    }

    #[test]
    fn a_page_becomes_a_pdf_where_a_printer_is_installed_and_else_says_what_is_missing() {
        let folder = tempfile::tempdir().expect("folder");
        let pdf = folder.path().join("a report.pdf");
        match print_to_pdf("<!doctype html><title>t</title><h1>Result</h1>", &pdf) {
            Ok(program) => {
                assert!(std::fs::read(&pdf).expect("a file").starts_with(b"%PDF-"), "{program}");
            }
            Err(err) => {
                assert!(!pdf.exists());
                let text = err.to_string();
                assert!(text.contains("print"), "{text}");
                if printer().is_none() {
                    assert!(text.contains("weasyprint"), "{text}");
                }
            }
        }
    }
}
