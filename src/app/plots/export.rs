//! Plots as files: CSV and SVG from the same data, PNG from the pixels on screen.

use std::sync::Arc;

use eframe::egui::{ColorImage, Context, IconData, Rect, Response, Vec2};
use eframe::icon_data::IconDataExt as _;

use super::Plot;
use super::canvas::SvgCanvas;
use crate::app::theme::Tokens;

/// Named columns of text cells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Names with units, in snake case.
    pub columns: Vec<&'static str>,
    /// Cells, as many a row as there are columns.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub fn new(columns: &[&'static str]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.columns.len());
        self.rows.push(cells.into());
    }

    /// As CSV (RFC 4180): commas, lines that end with CR LF, quotes where they are needed.
    pub fn csv(&self) -> String {
        let mut text = self.columns.join(",");
        text.push_str("\r\n");
        for row in &self.rows {
            for (index, cell) in row.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                if cell.contains([',', '"', '\n', '\r']) {
                    text.push('"');
                    text.push_str(&cell.replace('"', "\"\""));
                    text.push('"');
                } else {
                    text.push_str(cell);
                }
            }
            text.push_str("\r\n");
        }
        text
    }
}

/// A number for a table: the shortest text that reads back as the same number; nothing for NaN.
pub fn cell(value: f64) -> String {
    if value.is_nan() { String::new() } else { value.to_string() }
}

/// What a plot can be saved as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Png,
    Svg,
    Csv,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Png, Self::Svg, Self::Csv];

    /// What the menu says.
    pub fn text(self) -> &'static str {
        match self {
            Self::Png => "Save picture as PNG…",
            Self::Svg => "Save drawing as SVG…",
            Self::Csv => "Save numbers as CSV…",
        }
    }

    /// The file name's ending, without dot.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Svg => "svg",
            Self::Csv => "csv",
        }
    }
}

/// The plot as an SVG document of `size` points, in the theme that is in use.
pub fn svg(plot: &dyn Plot, size: Vec2, tokens: &Tokens) -> String {
    let mut canvas = SvgCanvas::new(size, tokens.panel);
    let rect = Rect::from_min_size(eframe::egui::Pos2::ZERO, size).shrink(8.0);
    plot.draw(&mut canvas, rect, tokens);
    canvas.finish(&plot.title())
}

/// A context menu on a plot that offers the formats; returns the one that was chosen.
pub fn menu(response: &Response) -> Option<Format> {
    let mut chosen = None;
    response.context_menu(|ui| {
        for format in Format::ALL {
            if ui.button(format.text()).clicked() {
                chosen = Some(format);
                ui.close();
            }
        }
    });
    chosen
}

/// Asks for the pixels of `rect` in the window as a PNG file's bytes. `on_done` is called once, from
/// wherever the pixels arrive, and should hand them on and wake the window.
pub fn capture_png(ctx: &Context, rect: Rect, on_done: impl FnOnce(Result<Vec<u8>, String>) + Send + 'static) {
    let pixels_per_point = ctx.pixels_per_point();
    ctx.request_screenshot(move |image: Arc<ColorImage>| {
        on_done(crop_png(&image, rect, pixels_per_point));
    });
}

/// The part of `image` under `rect` as a PNG file's bytes.
fn crop_png(image: &ColorImage, rect: Rect, pixels_per_point: f32) -> Result<Vec<u8>, String> {
    let size = Vec2::new(image.width() as f32, image.height() as f32) / pixels_per_point;
    let whole = Rect::from_min_size(eframe::egui::Pos2::ZERO, size);
    let rect = rect.intersect(whole);
    if !rect.is_positive() {
        return Err("the plot is not on screen".to_owned());
    }
    let part = image.region(&rect, Some(pixels_per_point));
    IconData { rgba: part.as_raw().to_vec(), width: part.width() as u32, height: part.height() as u32 }.to_png_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use eframe::egui::{Color32, pos2};

    #[test]
    fn csv_quotes_what_needs_it() {
        let mut table = Table::new(&["name", "value"]);
        table.row(["a,\"b\"".to_owned(), cell(0.1)]);
        table.row(["plain".to_owned(), cell(f64::NAN)]);
        assert_eq!(table.csv(), "name,value\r\n\"a,\"\"b\"\"\",0.1\r\nplain,\r\n");
    }

    #[test]
    fn a_crop_is_a_png_of_the_part_and_nothing_outside_is_an_error() {
        let image = ColorImage::filled([20, 10], Color32::WHITE);
        let rect = Rect::from_min_max(pos2(2.0, 1.0), pos2(6.0, 4.0));
        let bytes = crop_png(&image, rect, 2.0).expect("inside");
        assert_eq!(&bytes[1..4], b"PNG");
        // Width and height in the IHDR chunk, big endian.
        assert_eq!((bytes[19], bytes[23]), (8, 6));
        assert!(crop_png(&image, rect.translate(Vec2::splat(100.0)), 2.0).is_err());
    }
}
