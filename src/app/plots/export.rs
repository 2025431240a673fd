//! Plots as files: CSV and SVG from the same data, and PNG drawn from that SVG, so that a picture is whole
//! whatever part of the plot is on screen.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use eframe::egui::{
    Context, IconData, Id, Popup, Rect, Response, Role, Sense, Stroke, StrokeKind, Ui, Vec2, WidgetInfo, vec2,
};
use eframe::icon_data::IconDataExt as _;
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{self, fontdb};

use super::Plot;
use super::canvas::SvgCanvas;
use crate::app::theme::{Tokens, UiTokens as _, fonts, space};
use crate::app::widgets::icons;

/// Named columns of text cells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Names with units, in snake case.
    pub columns: Vec<String>,
    /// Cells, as many a row as there are columns.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub fn new(columns: &[&str]) -> Self {
        Self { columns: columns.iter().map(|&name| name.to_owned()).collect(), rows: Vec::new() }
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
    /// A written report, not a plot.
    Html,
    /// The same as Markdown.
    Markdown,
    /// The same printed; until there is a place for it, its bytes are the HTML.
    Pdf,
}

impl Format {
    /// All that a plot can become.
    pub const ALL: [Self; 3] = [Self::Png, Self::Svg, Self::Csv];

    /// What the menu says.
    pub fn text(self) -> &'static str {
        match self {
            Self::Png => "Save picture as PNG…",
            Self::Svg => "Save drawing as SVG…",
            Self::Csv => "Save numbers as CSV…",
            Self::Html => "Save as HTML…",
            Self::Markdown => "Save as Markdown…",
            Self::Pdf => "Print to PDF…",
        }
    }

    /// The file name's ending, without dot.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Svg => "svg",
            Self::Csv => "csv",
            Self::Html => "html",
            Self::Markdown => "md",
            Self::Pdf => "pdf",
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

/// Pixels of a picture for every point of the drawing.
const PICTURE_SCALE: f32 = 2.0;

/// The bundled fonts, read once: a picture looks the same on every machine.
static FONTS: LazyLock<Arc<fontdb::Database>> = LazyLock::new(|| {
    let mut database = fontdb::Database::new();
    for face in fonts::FACES {
        database.load_font_source(fontdb::Source::Binary(Arc::new(face)));
    }
    Arc::new(database)
});

/// An SVG document of ours as a PNG file's bytes, with two pixels for every point.
///
/// # Errors
/// A sentence, where the picture would be too large for memory.
pub fn png(svg: &str) -> Result<Vec<u8>, String> {
    let options = usvg::Options { fontdb: FONTS.clone(), ..usvg::Options::default() };
    let tree = usvg::Tree::from_str(svg, &options).map_err(|err| format!("The picture cannot be drawn: {err}"))?;
    let size = tree.size();
    let [width, height] = [size.width(), size.height()].map(|points| (points * PICTURE_SCALE).ceil() as u32);
    let mut pixels = Pixmap::new(width, height)
        .ok_or_else(|| format!("The picture of {width} × {height} pixels is too large: save the drawing as SVG"))?;
    resvg::render(&tree, Transform::from_scale(PICTURE_SCALE, PICTURE_SCALE), &mut pixels.as_mut());
    IconData { rgba: pixels.take_demultiplied(), width, height }
        .to_png_bytes()
        .map_err(|err| format!("The picture cannot be written: {err}"))
}

/// A plot as the bytes of a file that has no place yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The file's name without ending, made of the plot's title.
    pub stem: String,
    /// What the bytes are.
    pub format: Format,
    /// Content of the file.
    pub bytes: Vec<u8>,
}

/// What plots have become, until the window picks it up with [`take`].
type Outbox = Arc<Mutex<Vec<Result<Saved, String>>>>;

fn outbox(ctx: &Context) -> Outbox {
    ctx.data_mut(|data| data.get_temp_mut_or_default::<Outbox>(Id::unique("plots to save")).clone())
}

/// What has become ready to be saved since the last call; once a frame. Errors are sentences.
pub fn take(ctx: &Context) -> Vec<Result<Saved, String>> {
    let outbox = outbox(ctx);
    let mut ready = outbox.lock().unwrap_or_else(PoisonError::into_inner);
    std::mem::take(&mut *ready)
}

/// Hands over a text that was written, so that the window asks where it goes. It comes out of [`take`].
pub fn hand_over(ctx: &Context, saved: Saved) {
    hand_over_or_tell(ctx, Ok(saved));
}

fn hand_over_or_tell(ctx: &Context, saved: Result<Saved, String>) {
    outbox(ctx).lock().unwrap_or_else(PoisonError::into_inner).push(saved);
    ctx.request_repaint();
}

/// Offers to save a plot that has been drawn: a small button in its corner, seen under the pointer or
/// the keyboard's focus, and the same as a context menu. What was chosen comes out of [`take`].
pub fn offer_ui(ui: &mut Ui, response: &Response, plot: &dyn Plot) {
    if !ui.is_rect_visible(response.rect) {
        return;
    }
    let button = corner_button(ui, response, &plot.title());
    let popup = Popup::menu(&button);
    paint_corner(ui, response, &button, popup.is_open());
    let chosen = popup.show(formats_ui).and_then(|shown| shown.inner).or_else(|| menu(response));
    let Some(format) = chosen else { return };
    let stem = stem(&plot.title());
    let drawing = || svg(plot, response.rect.size(), ui.tokens());
    let bytes = match format {
        Format::Csv => Ok(plot.table().csv().into_bytes()),
        Format::Svg => Ok(drawing().into_bytes()),
        Format::Png => png(&drawing()),
        // A plot's menu offers none of these.
        Format::Html | Format::Markdown | Format::Pdf => return,
    };
    hand_over_or_tell(ui.ctx(), bytes.map(|bytes| Saved { stem, format, bytes }));
}

/// Offers to save the numbers of a table that is shown within `response`, such as a card: the small button of
/// [`offer_ui`], which asks for no format, since there is only CSV. `table` is made when it is wanted; where it
/// cannot be, its error is a sentence.
pub fn offer_table_ui(ui: &mut Ui, response: &Response, title: &str, table: impl FnOnce() -> Result<Table, String>) {
    if !ui.is_rect_visible(response.rect) {
        return;
    }
    let button = corner_button(ui, response, title);
    paint_corner(ui, response, &button, false);
    if button.on_hover_text(Format::Csv.text()).clicked() {
        let saved =
            table().map(|table| Saved { stem: stem(title), format: Format::Csv, bytes: table.csv().into_bytes() });
        hand_over_or_tell(ui.ctx(), saved);
    }
}

/// Side of the button in a plot's corner.
const BUTTON: f32 = 20.0;

/// The button in the corner of what can be saved.
fn corner_button(ui: &Ui, response: &Response, title: &str) -> Response {
    let corner = response.rect.right_top() + vec2(-BUTTON - 2.0, 2.0);
    let place = Rect::from_min_size(corner, Vec2::splat(BUTTON));
    let button = ui.interact(place, response.id.with("save"), Sense::click());
    button.widget_info(|| WidgetInfo::labeled(Role::Button, true, format!("Save: {title}")));
    button
}

/// Paints it where the pointer or the keyboard's focus is.
fn paint_corner(ui: &Ui, response: &Response, button: &Response, is_open: bool) {
    if !(is_open || button.has_focus() || response.contains_pointer() || button.contains_pointer()) {
        return;
    }
    let tokens = ui.tokens();
    let fill = if button.hovered() || is_open { tokens.raised_hover } else { tokens.raised };
    let outline = if button.has_focus() { tokens.accent } else { tokens.outline };
    let stroke = Stroke::new(1.0, outline);
    ui.painter().rect(button.rect, space::RADIUS, fill, stroke, StrokeKind::Inside);
    icons::paint(ui.painter(), icons::Icon::More, button.rect.center(), 14.0, tokens.text);
}

/// A file name out of a title: `histogram-of-model-layers-0-mlp`.
fn stem(title: &str) -> String {
    let mut stem = String::new();
    for letter in title.chars().take(80) {
        if letter.is_alphanumeric() {
            stem.extend(letter.to_lowercase());
        } else if !stem.ends_with('-') && !stem.is_empty() {
            stem.push('-');
        }
    }
    let stem = stem.trim_end_matches('-');
    if stem.is_empty() { "plot".to_owned() } else { stem.to_owned() }
}

/// A context menu on a plot that offers the formats; returns the one that was chosen.
fn menu(response: &Response) -> Option<Format> {
    Popup::context_menu(response).show(formats_ui)?.inner
}

fn formats_ui(ui: &mut Ui) -> Option<Format> {
    let mut chosen = None;
    for format in Format::ALL {
        if ui.button(format.text()).clicked() {
            chosen = Some(format);
            ui.close();
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::plots::canvas::Canvas;
    use crate::app::theme::Type;
    use eframe::egui::{Align2, Event, Modifiers, PointerButton, RawInput, pos2};

    #[test]
    fn csv_quotes_what_needs_it() {
        let mut table = Table::new(&["name", "value"]);
        table.row(["a,\"b\"".to_owned(), cell(0.1)]);
        table.row(["plain".to_owned(), cell(f64::NAN)]);
        assert_eq!(table.csv(), "name,value\r\n\"a,\"\"b\"\"\",0.1\r\nplain,\r\n");
    }

    #[test]
    fn file_names_hold_letters_figures_and_single_dashes() {
        assert_eq!(stem("KLD, nats: layers.0 (q_proj)"), "kld-nats-layers-0-q-proj");
        assert_eq!(stem("…/"), "plot");
    }

    /// What comes of a click on the corner button of something that is shown.
    fn saved_by_a_click(table: impl Fn() -> Result<Table, String>) -> Vec<Result<Saved, String>> {
        let ctx = crate::app::testing::context();
        let button = std::cell::Cell::new(pos2(0.0, 0.0));
        let click = |pressed| Event::PointerButton {
            pos: button.get(),
            button: PointerButton::Primary,
            pressed,
            modifiers: Modifiers::NONE,
        };
        // What is under the pointer is known from the frame before.
        for frame in 0..4 {
            let events = match frame {
                0 => Vec::new(),
                1 => vec![Event::PointerMoved(button.get())],
                step => vec![click(step == 2)],
            };
            let input = RawInput { time: Some(f64::from(frame) * 0.05), events, ..RawInput::default() };
            let mut output = ctx.run_ui(input, |ui| {
                let (rect, response) = ui.allocate_exact_size(vec2(200.0, 100.0), Sense::hover());
                button.set(rect.right_top() + vec2(-BUTTON / 2.0 - 2.0, BUTTON / 2.0 + 2.0));
                offer_table_ui(ui, &response, "Speed, memory", &table);
            });
            output.textures_delta.clear();
        }
        take(&ctx)
    }

    #[test]
    fn a_click_in_the_corner_saves_a_table_or_says_why_not() {
        let mut table = Table::new(&["a"]);
        table.row(["1".to_owned()]);
        let saved = Saved { stem: "speed-memory".to_owned(), format: Format::Csv, bytes: b"a\r\n1\r\n".to_vec() };
        assert_eq!(saved_by_a_click(|| Ok(table.clone())), [Ok(saved)]);
        assert_eq!(saved_by_a_click(|| Err("Gone".to_owned())), [Err("Gone".to_owned())]);
    }

    /// A plot with a bar at its top and one at its bottom, and a word between.
    struct Tall;

    impl Plot for Tall {
        fn title(&self) -> String {
            "Tall".to_owned()
        }

        fn draw(&self, canvas: &mut dyn Canvas, rect: Rect, tokens: &Tokens) {
            let bar = |top: f32| Rect::from_min_size(pos2(rect.left(), top), vec2(rect.width(), 20.0));
            canvas.rect(bar(rect.top()), tokens.text);
            canvas.rect(bar(rect.bottom() - 20.0), tokens.text);
            canvas.text(rect.center(), Align2::CENTER_CENTER, "middle", Type::Body, tokens.text);
        }

        fn table(&self) -> Table {
            Table::default()
        }
    }

    #[test]
    fn a_picture_is_whole_however_tall_the_plot_is_and_has_its_text() {
        let tokens = Tokens::of(true);
        // Taller than any window.
        let drawing = svg(&Tall, vec2(300.0, 4000.0), tokens);
        let bytes = png(&drawing).expect("draws");
        assert_eq!(&bytes[1..4], b"PNG");
        // Width and height in the IHDR chunk, big endian.
        let number = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        assert_eq!((number(16), number(20)), (600, 8000));
        let options = usvg::Options { fontdb: FONTS.clone(), ..usvg::Options::default() };
        let tree = usvg::Tree::from_str(&drawing, &options).expect("reads");
        let mut pixels = Pixmap::new(600, 8000).expect("room");
        resvg::render(&tree, Transform::from_scale(2.0, 2.0), &mut pixels.as_mut());
        let at = |x: u32, y: u32| pixels.pixel(x, y).map(|pixel| [pixel.red(), pixel.green(), pixel.blue()]);
        let [panel, text] = [tokens.panel, tokens.text].map(|color| Some([color.r(), color.g(), color.b()]));
        // The plot stands 8 points inside, the bars are 20 high.
        assert_eq!((at(300, 4), at(300, 36), at(300, 200)), (panel, text, panel));
        assert_eq!((at(300, 8000 - 36), at(300, 8000 - 4)), (text, panel));
        let is_inked = (3960..4040).any(|y| (200..400).any(|x| at(x, y) != panel));
        assert!(is_inked, "the word is drawn in a bundled font");
    }

    #[test]
    fn every_family_that_a_drawing_names_is_bundled() {
        for name in ["Inter", "JetBrains Mono"] {
            let has_it = FONTS.faces().any(|face| face.families.iter().any(|(family, _)| family == name));
            assert!(has_it, "{name}");
        }
        assert_eq!(FONTS.len(), fonts::FACES.len());
    }
}
