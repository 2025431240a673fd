//! A written document as blocks, from which HTML and Markdown are made.

use super::svg::Plot;

/// A part of a document.
#[derive(Clone, Debug, PartialEq)]
pub enum Block {
    /// A heading, 2 for a chapter, 3 for a section.
    Heading(u8, String),
    Text(String),
    Bullets(Vec<String>),
    Table(Table),
    /// Text as it is in a file.
    Code(String),
    Plot(Plot),
    /// Blocks behind a line that opens them.
    Details(String, Vec<Block>),
}

/// Columns of text with a header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Titles; one that starts with `>` is of a column of numbers.
    pub titles: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub fn new(titles: &[&str]) -> Self {
        Self { titles: titles.iter().map(|&title| title.to_owned()).collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }
}

/// A whole document.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Document {
    pub title: String,
    pub blocks: Vec<Block>,
}

impl Document {
    /// Adds a chapter's heading.
    pub fn chapter(&mut self, title: &str) {
        self.blocks.push(Block::Heading(2, title.to_owned()));
    }

    /// Adds a section's heading.
    pub fn section(&mut self, title: &str) {
        self.blocks.push(Block::Heading(3, title.to_owned()));
    }

    /// Adds a paragraph.
    pub fn text(&mut self, text: impl Into<String>) {
        self.blocks.push(Block::Text(text.into()));
    }

    /// Adds a table that has rows.
    pub fn table(&mut self, table: Table) {
        if !table.rows.is_empty() {
            self.blocks.push(Block::Table(table));
        }
    }

    /// Adds a plot that has something to show.
    pub fn plot(&mut self, plot: Option<Plot>) {
        self.blocks.extend(plot.map(Block::Plot));
    }

    /// The document as Markdown; plots become their tables.
    pub fn to_markdown(&self) -> String {
        let mut text = format!("# {}\n\n", line(&self.title));
        self.blocks.iter().for_each(|block| markdown(block, &mut text));
        text
    }

    /// The document as one HTML file that needs nothing else.
    pub fn to_html(&self) -> String {
        let mut body = format!("<h1>{}</h1>\n", escape(&self.title));
        self.blocks.iter().for_each(|block| html(block, &mut body));
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
             content=\"width=device-width, initial-scale=1\">\n<title>{}</title>\n<style>{STYLE}</style>\n</head>\n\
             <body>\n<main>\n{body}</main>\n</body>\n</html>\n",
            escape(&self.title)
        )
    }
}

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1c1f24; --dim: #5c6470; --line: #d8dce2; --paper: #ffffff; --soft: #f4f6f8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --dim: #9aa3ae; --line: #3a4048; --paper: #16181c; --soft: #1f2228; } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 Inter, system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; } h2 { margin-top: 2.4rem; border-bottom: 1px solid var(--line); font-size: 1.3rem; } h3 { font-size: 1.05rem; }
table { border-collapse: collapse; margin: .8rem 0; font-size: .92em; } th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; overflow-wrap: anywhere; }
th { color: var(--dim); font-weight: 600; } .number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
pre { background: var(--soft); padding: .8rem; overflow-x: auto; font: 13px/1.45 'JetBrains Mono', monospace; }
figure { margin: 1rem 0; } figcaption { color: var(--dim); font-size: .9em; } svg { max-width: 100%; height: auto; color: var(--ink); }
details { margin: .8rem 0; } summary { cursor: pointer; }
@page { size: A4; margin: 16mm 14mm 18mm; @bottom-right { content: counter(page) \" / \" counter(pages); font: 8pt sans-serif; color: #5c6470; } }
@media print {
:root { color-scheme: light; --ink: #1c1f24; --dim: #5c6470; --line: #d8dce2; --paper: #ffffff; --soft: #f4f6f8; }
body { font-size: 10pt; print-color-adjust: exact; -webkit-print-color-adjust: exact; } main { max-width: none; padding: 0; }
h1, h2, h3, summary { break-after: avoid; } p, li { orphans: 3; widows: 3; }
figure, tr { break-inside: avoid; } thead { display: table-header-group; } svg { max-height: 200mm; }
table { width: 100%; font-size: 8pt; } th, td { padding: 1.5pt 3pt; } th, th.number { overflow-wrap: normal; white-space: normal; } td:first-child { overflow-wrap: break-word; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; overflow: visible; font-size: 8pt; }
details { display: block; } details::details-content { content-visibility: visible; block-size: auto; }
}
";

/// Text that means nothing to HTML.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other if other.is_control() && other != '\n' && other != '\t' => {}
            other => safe.push(other),
        }
    }
    safe
}

/// A title's text, and whether its column holds numbers.
fn column(title: &str) -> (&str, bool) {
    title.strip_prefix('>').map_or((title, false), |title| (title, true))
}

fn html(block: &Block, out: &mut String) {
    match block {
        Block::Heading(level, text) => out.push_str(&format!("<h{level}>{}</h{level}>\n", escape(text))),
        Block::Text(text) => out.push_str(&format!("<p>{}</p>\n", escape(text))),
        Block::Bullets(lines) => {
            let items: String = lines.iter().map(|line| format!("<li>{}</li>\n", escape(line))).collect();
            out.push_str(&format!("<ul>\n{items}</ul>\n"));
        }
        Block::Code(text) => out.push_str(&format!("<pre>{}</pre>\n", escape(text))),
        Block::Plot(plot) => {
            out.push_str(&format!(
                "<figure>\n{}<figcaption>{}</figcaption>\n</figure>\n",
                plot.to_svg(),
                escape(&plot.caption)
            ));
        }
        Block::Details(title, blocks) => {
            out.push_str(&format!("<details>\n<summary>{}</summary>\n", escape(title)));
            blocks.iter().for_each(|block| html(block, out));
            out.push_str("</details>\n");
        }
        Block::Table(table) => {
            out.push_str("<table>\n<thead><tr>");
            let columns: Vec<(&str, bool)> = table.titles.iter().map(|title| column(title)).collect();
            let class = |is_number: bool| if is_number { " class=\"number\"" } else { "" };
            for (title, is_number) in &columns {
                out.push_str(&format!("<th{}>{}</th>", class(*is_number), escape(title)));
            }
            out.push_str("</tr></thead>\n<tbody>\n");
            for row in &table.rows {
                out.push_str("<tr>");
                for (cell, (_, is_number)) in row.iter().zip(&columns) {
                    out.push_str(&format!("<td{}>{}</td>", class(*is_number), escape(cell)));
                }
                out.push_str("</tr>\n");
            }
            out.push_str("</tbody>\n</table>\n");
        }
    }
}

/// Text on one line that Markdown does not read as marks.
fn line(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\n' | '\r' => safe.push(' '),
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '#' => {
                safe.push('\\');
                safe.push(letter);
            }
            other if other.is_control() => {}
            other => safe.push(other),
        }
    }
    safe
}

fn markdown(block: &Block, out: &mut String) {
    match block {
        Block::Heading(level, text) => {
            out.push_str(&format!("{} {}\n\n", "#".repeat(usize::from(*level)), line(text)));
        }
        Block::Text(text) => out.push_str(&format!("{}\n\n", line(text))),
        Block::Bullets(lines) => {
            lines.iter().for_each(|text| out.push_str(&format!("- {}\n", line(text))));
            out.push('\n');
        }
        Block::Code(text) => {
            // A fence longer than any within.
            let fence = "`".repeat(3.max(1 + text.split(|letter| letter != '`').map(str::len).max().unwrap_or(0)));
            out.push_str(&format!("{fence}\n{}\n{fence}\n\n", text.trim_end()));
        }
        Block::Plot(plot) => {
            out.push_str(&format!("*{}*\n\n", line(&plot.caption)));
            markdown(&Block::Table(plot.to_table()), out);
        }
        Block::Details(title, blocks) => {
            out.push_str(&format!("**{}**\n\n", line(title)));
            blocks.iter().for_each(|block| markdown(block, out));
        }
        Block::Table(table) => {
            let row =
                |cells: &mut dyn Iterator<Item = String>| format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
            out.push_str(&row(&mut table.titles.iter().map(|title| line(column(title).0))));
            out.push_str(&row(&mut table
                .titles
                .iter()
                .map(|title| if column(title).1 { "---:" } else { "---" }.to_owned())));
            table.rows.iter().for_each(|cells| out.push_str(&row(&mut cells.iter().map(|cell| line(cell)))));
            out.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> Document {
        let mut document = Document { title: "A <b> & c".to_owned(), blocks: Vec::new() };
        document.chapter("Slices | more");
        let mut table = Table::new(&["slice", ">loss"]);
        table.row(["<script>alert(1)</script>", "−1.0"]);
        document.table(table);
        document.table(Table::new(&["empty"]));
        document.blocks.push(Block::Code("``` fence".to_owned()));
        document.blocks.push(Block::Details("open".to_owned(), vec![Block::Bullets(vec!["a*b".to_owned()])]));
        document
    }

    #[test]
    fn nothing_from_a_file_becomes_markup() {
        let html = document().to_html();
        assert!(html.contains("&lt;script&gt;") && !html.contains("<script>") && html.contains("A &lt;b&gt; &amp; c"));
        assert!(html.contains("<td class=\"number\">−1.0</td>") && !html.contains("empty"));
        assert!(html.contains("@media print") && html.contains("counter(page) \" / \""));
        assert!(!html.contains("http://") && !html.contains("https://"), "the file needs nothing else");
    }

    #[test]
    fn markdown_has_the_same_parts() {
        let text = document().to_markdown();
        assert!(text.starts_with("# A \\<b\\> & c\n\n## Slices \\| more\n"));
        assert!(
            text.contains("| slice | loss |\n| --- | ---: |\n| \\<script\\>alert(1)\\</script\\> | −1.0 |"),
            "{text}"
        );
        assert!(text.contains("````\n``` fence\n````") && text.contains("- a\\*b"));
    }
}
