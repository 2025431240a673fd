//! Every slice of the tasks as one line: baseline and candidate as dots on one axis, and their
//! difference with its interval on another, worst first.

use eframe::egui::{Align2, Color32, Rect, Role, Sense, Stroke, Ui, WidgetInfo, pos2, vec2};

use super::Plot;
use super::axis::{Scale, Tick};
use super::canvas::{Canvas, PainterCanvas};
use super::export::{self, Table, cell};
use super::frame::readout;
use crate::app::theme::{Tokens, Type, UiTokens as _, space};
use crate::app::widgets::State;
use crate::engine::units::{self, minus};

/// One slice, in percent and percentage points.
#[derive(Clone, Debug)]
pub struct SliceRow {
    /// `facts / rare`.
    pub name: String,
    /// Paired items.
    pub items: usize,
    /// The baseline's accuracy.
    pub baseline: f64,
    /// Its own interval.
    pub baseline_interval: [f64; 2],
    /// The candidate's accuracy.
    pub candidate: f64,
    /// Its own interval.
    pub candidate_interval: [f64; 2],
    /// Candidate less baseline, in points.
    pub difference: f64,
    /// Lower end of its interval.
    pub low: f64,
    /// Upper end of its interval.
    pub high: f64,
    /// Chance of flips at least as lopsided where nothing changed: McNemar's exact test.
    pub p: f64,
    /// The same, corrected for the number of slices by Holm's method, where it was.
    pub p_holm: Option<f64>,
    /// What the gate says, where there is one.
    pub verdict: Option<State>,
}

/// All slices of one candidate.
#[derive(Clone, Debug, Default)]
pub struct Slices {
    /// The candidate's name.
    pub name: String,
    /// Which candidate it is, for the colour.
    pub candidate: usize,
    /// Sorted by [`Slices::sort`].
    pub rows: Vec<SliceRow>,
}

const ROW: f32 = 22.0;
const HEAD: f32 = 34.0;

impl Slices {
    /// Puts the largest loss first; equal losses stay in the order of their names.
    pub fn sort(&mut self) {
        self.rows
            .sort_by(|one, other| one.difference.total_cmp(&other.difference).then_with(|| one.name.cmp(&other.name)));
    }

    /// Height of all rows in points.
    pub fn height(&self) -> f32 {
        HEAD + ROW * self.rows.len() as f32 + space::S
    }

    fn columns(&self, canvas: &dyn Canvas, rect: Rect) -> Columns {
        let names = self
            .rows
            .iter()
            .map(|row| canvas.text_width(&row.name, Type::Body))
            .fold(60.0, f32::max)
            .min(rect.width() * 0.3);
        let left = rect.left() + names + space::S + 44.0 + space::M;
        let has_verdicts = self.rows.iter().any(|row| row.verdict.is_some());
        let right = rect.right() - if has_verdicts { 84.0 } else { 0.0 };
        let figures =
            self.rows.iter().map(|row| canvas.text_width(&row.figure(), Type::MonoSmall)).fold(60.0, f32::max);
        let gap = 44.0;
        let plots = (right - figures - space::S - left - gap).max(80.0);
        let first = plots * 0.5;
        Columns {
            names: rect.left()..=rect.left() + names,
            items: left - space::M,
            dots: left + 6.0..=left + first - 6.0,
            difference: left + first + gap..=left + plots + gap - 4.0,
            figures: right,
            verdict: right + space::M,
        }
    }

    fn reach(&self) -> Scale {
        let ends = self.rows.iter().flat_map(|row| [row.low, row.high, row.difference]);
        let most = ends.filter(|end| end.is_finite()).fold(1.0, |most: f64, end| most.max(end.abs()));
        Scale::linear(-most * 1.05, most * 1.05)
    }

    fn draw_all(&self, canvas: &mut dyn Canvas, rect: Rect, tokens: &Tokens) {
        let columns = self.columns(canvas, rect);
        let accuracy = Scale::linear(0.0, 100.0);
        let difference = self.reach();
        let bottom = rect.top() + HEAD + ROW * self.rows.len() as f32;
        let top = rect.top() + HEAD - 2.0;
        let weak = tokens.weak;
        let mut head = |x: f32, align: Align2, text: &str| {
            canvas.text(pos2(x, rect.top() + 1.0), align, text, Type::SmallStrong, weak);
        };
        head(rect.left(), Align2::LEFT_TOP, "slice");
        head(columns.items, Align2::RIGHT_TOP, "items");
        head(*columns.dots.start(), Align2::LEFT_TOP, "accuracy, %");
        head(*columns.difference.start(), Align2::LEFT_TOP, "difference, points");
        for (scale, range) in [(&accuracy, &columns.dots), (&difference, &columns.difference)] {
            let width = range.end() - range.start();
            for tick in ticks(scale, (width / 56.0) as usize) {
                let x = range.start() + width * scale.unit(tick.value) as f32;
                let is_zero = tick.value == 0.0 && scale.min < 0.0;
                let color = if is_zero { tokens.outline } else { tokens.grid };
                canvas.line(pos2(x, top), pos2(x, bottom), Stroke::new(1.0, color));
                let at = pos2(x, top - 1.0);
                canvas.text(at, Align2::CENTER_BOTTOM, &tick.label, Type::Small, weak);
            }
        }
        let visible = canvas.visible();
        for (index, row) in self.rows.iter().enumerate() {
            let y = rect.top() + HEAD + ROW * (index as f32 + 0.5);
            if y + ROW > visible.top() && y - ROW < visible.bottom() {
                self.draw_row(canvas, &columns, row, y, (&accuracy, &difference), tokens);
            }
        }
    }

    fn draw_row(
        &self,
        canvas: &mut dyn Canvas,
        columns: &Columns,
        row: &SliceRow,
        y: f32,
        (accuracy, difference): (&Scale, &Scale),
        tokens: &Tokens,
    ) {
        let color = tokens.candidate(self.candidate);
        let name = shorten(canvas, &row.name, columns.names.end() - columns.names.start());
        let at = pos2(*columns.names.start(), y);
        canvas.text(at, Align2::LEFT_CENTER, &name, Type::Body, tokens.text);
        let items = row.items.to_string();
        let at = pos2(columns.items, y);
        canvas.text(at, Align2::RIGHT_CENTER, &items, Type::MonoSmall, tokens.weak);

        let place = |scale: &Scale, range: &std::ops::RangeInclusive<f32>, value: f64| {
            range.start() + (range.end() - range.start()) * scale.unit(value).clamp(0.0, 1.0) as f32
        };
        let (from, to) = (place(accuracy, &columns.dots, row.baseline), place(accuracy, &columns.dots, row.candidate));
        canvas.line(pos2(from, y), pos2(to, y), Stroke::new(2.0, tokens.tint(color, 0.5)));
        // The baseline is a ring, so that both can be seen where they coincide.
        canvas.disc(pos2(to, y), 4.0, color, Stroke::NONE);
        canvas.disc(pos2(from, y), 5.5, Color32::TRANSPARENT, Stroke::new(1.5, tokens.baseline));

        let at = |value: f64| place(difference, &columns.difference, value);
        let (zero, end) = (at(0.0), at(row.difference));
        let bar = Rect::from_two_pos(pos2(zero, y - 5.0), pos2(end, y + 5.0));
        canvas.rect(bar, tokens.tint(color, 0.4));
        let stroke = Stroke::new(1.25, tokens.text);
        let (low, high) = (at(row.low), at(row.high));
        canvas.line(pos2(low, y), pos2(high, y), stroke);
        for x in [low, high] {
            canvas.line(pos2(x, y - 3.5), pos2(x, y + 3.5), stroke);
        }
        canvas.disc(pos2(end, y), 2.5, tokens.text, Stroke::NONE);

        let at = pos2(columns.figures, y);
        canvas.text(at, Align2::RIGHT_CENTER, &row.figure(), Type::MonoSmall, tokens.text);
        if let Some(verdict) = row.verdict {
            let at = pos2(columns.verdict, y);
            let color = verdict.color(tokens);
            // A sign and a word beside the colour.
            let sign = match verdict {
                State::Pass | State::Met => "✓",
                State::Fail | State::Missed => "✗",
                State::Undecided | State::Unknown => "?",
            };
            let text = format!("{sign} {}", verdict.word());
            canvas.text(at, Align2::LEFT_CENTER, &text, Type::SmallStrong, color);
        }
    }
}

impl SliceRow {
    fn figure(&self) -> String {
        with_interval(self.difference, [self.low, self.high])
    }
}

/// Round ticks, at least three where the scale has so many: one alone says nothing of a scale.
fn ticks(scale: &Scale, most: usize) -> Vec<Tick> {
    (most..most + 6).map(|most| scale.ticks(most)).find(|ticks| ticks.len() >= 3).unwrap_or_else(|| scale.ticks(most))
}

/// A difference with the ends of its interval, which need not lie evenly about it: `−4.2 (−9.4 to −0.9)`.
pub fn with_interval(points: f64, [low, high]: [f64; 2]) -> String {
    format!("{} ({} to {})", signed(points), signed(low), signed(high))
}

/// Where the columns are.
struct Columns {
    names: std::ops::RangeInclusive<f32>,
    /// Right end of the counts.
    items: f32,
    dots: std::ops::RangeInclusive<f32>,
    difference: std::ops::RangeInclusive<f32>,
    /// Right end of the figures.
    figures: f32,
    /// Left end of the verdicts.
    verdict: f32,
}

/// A difference with its sign: `+0.4`, `−7.0`, `0.0`.
pub fn signed(points: f64) -> String {
    let text = format!("{points:.1}");
    if text == "-0.0" || text == "0.0" {
        "0.0".to_owned()
    } else if points > 0.0 {
        format!("+{text}")
    } else {
        minus(&text)
    }
}

/// `text` with an ellipsis where it is wider than `width`.
fn shorten(canvas: &dyn Canvas, text: &str, width: f32) -> String {
    if canvas.text_width(text, Type::Body) <= width {
        return text.to_owned();
    }
    let mut short = text.to_owned();
    while short.pop().is_some() {
        let candidate = format!("{short}…");
        if canvas.text_width(&candidate, Type::Body) <= width {
            return candidate;
        }
    }
    "…".to_owned()
}

impl Plot for Slices {
    fn title(&self) -> String {
        format!("Accuracy by slice, {}", self.name)
    }

    fn draw(&self, canvas: &mut dyn Canvas, rect: Rect, tokens: &Tokens) {
        self.draw_all(canvas, rect, tokens);
    }

    fn table(&self) -> Table {
        let mut table = Table::new(&[
            "slice",
            "items",
            "baseline_percent",
            "baseline_low_percent",
            "baseline_high_percent",
            "candidate_percent",
            "candidate_low_percent",
            "candidate_high_percent",
            "difference_points",
            "low_points",
            "high_points",
            "mcnemar_p",
            "mcnemar_p_holm",
            "verdict",
        ]);
        for row in &self.rows {
            table.row([
                row.name.clone(),
                row.items.to_string(),
                cell(row.baseline),
                cell(row.baseline_interval[0]),
                cell(row.baseline_interval[1]),
                cell(row.candidate),
                cell(row.candidate_interval[0]),
                cell(row.candidate_interval[1]),
                cell(row.difference),
                cell(row.low),
                cell(row.high),
                cell(row.p),
                row.p_holm.map(cell).unwrap_or_default(),
                row.verdict.map(|verdict| verdict.word().to_owned()).unwrap_or_default(),
            ]);
        }
        table
    }
}

/// Draws all rows (put it into a scroll area) and returns the index of one that was clicked.
pub fn slices_ui(ui: &mut Ui, slices: &Slices) -> Option<usize> {
    slices_selected_ui(ui, slices, None)
}

/// The same with the row of that name marked.
pub fn slices_selected_ui(ui: &mut Ui, slices: &Slices, selected: Option<&str>) -> Option<usize> {
    let size = vec2(ui.available_width(), slices.height());
    let (rect, response) = ui.allocate_exact_size(size, Sense::hover());
    response.widget_info(|| WidgetInfo::labeled(Role::Figure, true, slices.title()));
    if !ui.is_rect_visible(rect) {
        return None;
    }
    let tokens = ui.tokens();
    let mut clicked = None;
    let mut pointed = None;
    for (index, row) in slices.rows.iter().enumerate() {
        let top = rect.top() + HEAD + ROW * index as f32;
        let line = Rect::from_min_size(pos2(rect.left(), top), vec2(rect.width(), ROW));
        if !ui.is_rect_visible(line) {
            continue;
        }
        let id = response.id.with(&row.name);
        let line_response = ui.interact(line, id, Sense::click());
        let is_selected = selected == Some(row.name.as_str());
        line_response.widget_info(|| {
            let difference = signed(row.difference);
            let name = format!("{} {difference} points", row.name);
            WidgetInfo::selected(Role::Button, true, is_selected, name)
        });
        if is_selected {
            ui.painter().rect_filled(line, space::RADIUS, tokens.tint(tokens.accent, 0.18));
        }
        if line_response.hovered() || line_response.has_focus() {
            let fill = if is_selected { tokens.tint(tokens.accent, 0.28) } else { tokens.raised };
            ui.painter().rect_filled(line, space::RADIUS, fill);
        }
        if line_response.hovered() {
            pointed = Some(row);
        }
        if line_response.clicked() {
            clicked = Some(index);
        }
    }
    let painter = ui.painter_at(rect.expand(1.0));
    slices.draw_all(&mut PainterCanvas::new(&painter), rect, tokens);
    if let (Some(row), Some(pointer)) = (pointed, ui.ctx().pointer_hover_pos()) {
        let corrected = row.p_holm.map_or_else(String::new, |p| format!(", corrected {}", units::significant(p)));
        let lines = [
            ("original", format!("{:.1} %", row.baseline)),
            ("candidate", format!("{:.1} %", row.candidate)),
            ("difference", format!("{} points", signed(row.difference))),
            ("interval", format!("{} to {}", signed(row.low), signed(row.high))),
            ("McNemar p", units::significant(row.p) + &corrected),
            ("items", row.items.to_string()),
        ];
        readout(ui, rect, pointer, &row.name, &lines);
    }
    export::offer_ui(ui, &response, slices);
    clicked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, difference: f64) -> SliceRow {
        SliceRow {
            name: name.to_owned(),
            items: 100,
            baseline: 90.0,
            baseline_interval: [82.5, 94.5],
            candidate: 90.0 + difference,
            candidate_interval: [80.0, 95.0],
            difference,
            low: difference - 1.0,
            high: difference + 1.0,
            p: 0.25,
            p_holm: Some(0.5),
            verdict: Some(State::Pass),
        }
    }

    #[test]
    fn the_table_has_every_slice_with_intervals_and_both_p() {
        let plain = SliceRow { p_holm: None, verdict: None, ..row("b, c", 0.5) };
        let slices = Slices { name: "q4".to_owned(), candidate: 0, rows: vec![row("a", -3.0), plain] };
        let csv = slices.table().csv();
        let lines: Vec<&str> = csv.lines().collect();
        let names = "slice,items,baseline_percent,baseline_low_percent,baseline_high_percent,candidate_percent,\
            candidate_low_percent,candidate_high_percent,difference_points,low_points,high_points,mcnemar_p,\
            mcnemar_p_holm,verdict";
        assert_eq!(lines[0], names);
        assert_eq!(lines[1], "a,100,90,82.5,94.5,87,80,95,-3,-4,-2,0.25,0.5,pass");
        assert_eq!(lines[2], "\"b, c\",100,90,82.5,94.5,90.5,80,95,0.5,-0.5,1.5,0.25,,");
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn the_largest_loss_comes_first() {
        let rows = vec![row("b", 0.5), row("a", -3.0), row("d", -3.0), row("c", -7.0)];
        let mut slices = Slices { name: "q4".to_owned(), candidate: 0, rows };
        slices.sort();
        let names: Vec<&str> = slices.rows.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names, ["c", "a", "d", "b"]);
    }

    #[test]
    fn intervals_are_written_with_both_ends() {
        assert_eq!(with_interval(-4.2, [-9.4, -0.9]), "−4.2 (−9.4 to −0.9)");
        assert_eq!(with_interval(0.0, [-0.5, 0.5]), "0.0 (−0.5 to +0.5)");
    }

    #[test]
    fn a_scale_of_differences_has_three_ticks_however_narrow() {
        for reach in [1.05, 10.5, 13.0, 52.0, 99.0] {
            let scale = Scale::linear(-reach, reach);
            for most in 0..6 {
                let found = ticks(&scale, most);
                assert!(found.len() >= 3, "{reach} {most}: {found:?}");
                assert!(found.iter().any(|tick| tick.value == 0.0));
            }
        }
    }

    #[test]
    fn differences_carry_their_sign_and_zero_carries_none() {
        assert_eq!(signed(-7.04), "−7.0");
        assert_eq!(signed(0.4), "+0.4");
        assert_eq!(signed(-0.01), "0.0");
    }
}
