//! One tensor's histogram, large: a filled step outline, σ lines, and a candidate's laid over it.

use eframe::egui::{Align2, Color32, Pos2, Rect, Response, Stroke, Ui, pos2, vec2};

use super::axis::{Scale, short};
use super::canvas::Canvas;
use super::export::{Table, cell};
use super::frame::{Axis, Frame, readout};
use super::{Plot, plot_ui};
use crate::app::theme::{Tokens, Type};
use crate::engine::units;

/// Counts in equal bins between two ends.
#[derive(Clone, Copy, Debug)]
pub struct Bins<'a> {
    /// Left end of the first bin.
    pub min: f64,
    /// Right end of the last bin.
    pub max: f64,
    /// Values in each bin.
    pub counts: &'a [u64],
}

impl Bins<'_> {
    /// The width of one bin.
    pub fn bin_width(&self) -> f64 {
        (self.max - self.min) / self.counts.len().max(1) as f64
    }

    /// The bin that holds `value`, if any.
    pub fn bin_of(&self, value: f64) -> Option<usize> {
        let unit = (value - self.min) / (self.max - self.min);
        let count = self.counts.len();
        ((0.0..=1.0).contains(&unit) && count > 0).then(|| ((unit * count as f64) as usize).min(count - 1))
    }
}

/// What the plot shows.
#[derive(Clone, Copy, Debug)]
pub struct Histogram<'a> {
    /// Name of the tensor.
    pub name: &'a str,
    /// The original's counts.
    pub original: Bins<'a>,
    /// A candidate's counts of the same tensor, and its index for the colour.
    pub candidate: Option<(Bins<'a>, usize)>,
    /// Mean of the original.
    pub mean: f64,
    /// Standard deviation of the original.
    pub sigma: f64,
    /// Whether counts are on a logarithmic axis.
    pub is_log: bool,
}

impl Histogram<'_> {
    /// A candidate's counts are compared as densities: its bins may be wider or narrower.
    fn factor(&self, bins: &Bins<'_>) -> f64 {
        let width = bins.bin_width();
        if width > 0.0 { self.original.bin_width() / width } else { 1.0 }
    }

    fn axes(&self) -> (Axis, Axis) {
        let mut min = self.original.min;
        let mut max = self.original.max;
        let mut tallest = self.original.counts.iter().copied().max().unwrap_or(0) as f64;
        if let Some((bins, _)) = &self.candidate {
            (min, max) = (min.min(bins.min), max.max(bins.max));
            let peak = bins.counts.iter().copied().max().unwrap_or(0) as f64 * self.factor(bins);
            // One crowded bin, such as the zeros of a coarse format, may not flatten the rest.
            tallest = tallest.max(peak.min(tallest * 1.6));
        }
        let y = if self.is_log {
            Scale::log(0.6, (tallest * 1.8).max(10.0))
        } else {
            Scale::linear(0.0, (tallest * 1.06).max(1.0))
        };
        (
            Axis { scale: Scale::linear(min, max), name: "weight".to_owned() },
            Axis { scale: y, name: "weights per bin".to_owned() },
        )
    }

    /// The step outline of `bins` in points, from the left end to the right end.
    fn outline(&self, frame: &Frame, bins: &Bins<'_>) -> Vec<Pos2> {
        let factor = self.factor(bins);
        let width = bins.bin_width();
        let mut points = Vec::with_capacity(2 * bins.counts.len());
        for (index, &count) in bins.counts.iter().enumerate() {
            let y = frame.y_of(count as f64 * factor).clamp(frame.inner.top(), frame.inner.bottom());
            let left = bins.min + width * index as f64;
            points.push(pos2(frame.x_of(left), y));
            points.push(pos2(frame.x_of(left + width), y));
        }
        points
    }

    fn draw_bins(
        &self,
        canvas: &mut dyn Canvas,
        frame: &Frame,
        bins: &Bins<'_>,
        color: Color32,
        fill: Option<Color32>,
    ) {
        let points = self.outline(frame, bins);
        if let Some(fill) = fill {
            canvas.area(&points, frame.inner.bottom(), fill);
        }
        canvas.path(points, Stroke::new(1.25, color));
    }
}

impl Plot for Histogram<'_> {
    fn title(&self) -> String {
        format!("Histogram of {}", self.name)
    }

    fn draw(&self, canvas: &mut dyn Canvas, rect: Rect, tokens: &Tokens) {
        let (x, y) = self.axes();
        let rect = below_sigmas(rect);
        let frame = Frame::new(canvas, rect, &x, &y);
        frame.draw(canvas, rect, &x, &y, tokens);
        let fill = tokens.tint(tokens.baseline, 0.3);
        self.draw_bins(canvas, &frame, &self.original, tokens.baseline, Some(fill));
        if let Some((bins, index)) = &self.candidate {
            self.draw_bins(canvas, &frame, bins, tokens.candidate(*index), None);
        }
        self.draw_sigmas(canvas, &frame, tokens);
        self.draw_key(canvas, &frame, tokens);
    }

    fn table(&self) -> Table {
        let mut table = Table::new(&["series", "from", "to", "count"]);
        let both = [("original", Some(self.original)), ("candidate", self.candidate.map(|c| c.0))];
        for (series, bins) in both {
            let Some(bins) = bins else { continue };
            let width = bins.bin_width();
            for (index, count) in bins.counts.iter().enumerate() {
                let from = bins.min + width * index as f64;
                table.row([series.to_owned(), cell(from), cell(from + width), count.to_string()]);
            }
        }
        table
    }
}

impl Histogram<'_> {
    fn draw_sigmas(&self, canvas: &mut dyn Canvas, frame: &Frame, tokens: &Tokens) {
        if !(self.sigma.is_finite() && self.sigma > 0.0) {
            return;
        }
        let mut last_label = f32::NEG_INFINITY;
        for times in [-6i32, -3, -1, 1, 3, 6] {
            let value = self.mean + f64::from(times) * self.sigma;
            let unit = frame.x.unit(value);
            if !(0.0..=1.0).contains(&unit) {
                continue;
            }
            let at = frame.x_of(value);
            let (top, bottom) = (frame.inner.top(), frame.inner.bottom());
            canvas.dashed(pos2(at, top + 14.0), pos2(at, bottom), Stroke::new(1.0, tokens.outline));
            let sign = if times < 0 { "−" } else { "" };
            let number = if times.abs() == 1 { String::new() } else { times.abs().to_string() };
            let label = format!("{sign}{number}σ");
            let half = canvas.text_width(&label, Type::Small) / 2.0;
            if at - half > last_label {
                canvas.text(pos2(at, top - 3.0), Align2::CENTER_BOTTOM, &label, Type::Small, tokens.weak);
                last_label = at + half + 3.0;
            }
        }
    }

    /// Which line is which, in their own colours, where both are drawn.
    fn draw_key(&self, canvas: &mut dyn Canvas, frame: &Frame, tokens: &Tokens) {
        let Some((_, index)) = self.candidate else {
            return;
        };
        // One at each side: the peak between them is the tallest there is.
        let (left, right) = (frame.inner.left_top() + vec2(4.0, 2.0), frame.inner.right_top() + vec2(-4.0, 2.0));
        canvas.text(left, Align2::LEFT_TOP, "original", Type::SmallStrong, tokens.baseline);
        canvas.text(right, Align2::RIGHT_TOP, "candidate", Type::SmallStrong, tokens.candidate(index));
    }

    fn hover(&self, ui: &Ui, response: &Response, pointer: Pos2) {
        let (x, y) = self.axes();
        let frame = {
            let canvas = super::canvas::PainterCanvas::new(ui.painter());
            Frame::new(&canvas, below_sigmas(response.rect), &x, &y)
        };
        if !frame.inner.contains(pointer) {
            return;
        }
        let tokens = Tokens::of(ui.visuals().dark_mode);
        let value = frame.x_value(pointer.x);
        let count = |bins: &Bins<'_>| bins.bin_of(value).map_or(0, |bin| bins.counts[bin]);
        let mut lines = vec![("weight", units::significant(value))];
        if self.sigma > 0.0 {
            let times = (value - self.mean) / self.sigma;
            lines.push(("from mean", format!("{} σ", units::minus(&format!("{times:.1}")))));
        }
        lines.push(("original", units::count(count(&self.original))));
        if let Some((bins, _)) = &self.candidate {
            lines.push(("candidate", units::count(count(bins))));
        }
        let painter = ui.painter_at(response.rect);
        let x = painter.round_to_pixel_center(pointer.x);
        painter.vline(x, frame.inner.y_range(), Stroke::new(1.0, tokens.accent));
        readout(ui, response.rect, pointer, "", &lines);
    }
}

/// The room for axes and data: the σ marks stand above it.
fn below_sigmas(rect: Rect) -> Rect {
    rect.with_min_y(rect.top() + 12.0)
}

/// Draws the histogram at `height` as wide as there is room, with the numbers under the pointer.
pub fn histogram_ui(ui: &mut Ui, histogram: &Histogram<'_>, height: f32) -> Response {
    let size = vec2(ui.available_width(), height);
    let response = plot_ui(ui, histogram, size);
    if let Some(pointer) = response.hover_pos() {
        histogram.hover(ui, &response, pointer);
    }
    response
}

/// The largest number of bins that a small outline keeps.
pub const SMALL_BINS: usize = 64;

/// A histogram as heights in `0..=1` for a small multiple, resampled to [`SMALL_BINS`] bins between
/// `min` and `max`, so that many share one axis. Logarithmic heights show tails.
pub fn small_outline(bins: &Bins<'_>, min: f64, max: f64, is_log: bool) -> Vec<f32> {
    let mut sums = vec![0.0f64; SMALL_BINS];
    let width = bins.bin_width();
    for (index, &count) in bins.counts.iter().enumerate() {
        let center = bins.min + width * (index as f64 + 0.5);
        let unit = (center - min) / (max - min);
        if (0.0..1.0).contains(&unit) {
            sums[(unit * SMALL_BINS as f64) as usize] += count as f64;
        }
    }
    let tallest = sums.iter().copied().fold(0.0, f64::max);
    if tallest <= 0.0 {
        return vec![0.0; SMALL_BINS];
    }
    sums.into_iter()
        .map(|sum| {
            let height = if is_log { (1.0 + sum).ln() / (1.0 + tallest).ln() } else { sum / tallest };
            height as f32
        })
        .collect()
}

/// The tallest bin of the plot as text, for a summary line.
pub fn peak_text(bins: &Bins<'_>) -> String {
    short(bins.counts.iter().copied().max().unwrap_or(0) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BINS: Bins<'_> = Bins { min: -1.0, max: 1.0, counts: &[1, 4, 10, 3] };

    fn histogram() -> Histogram<'static> {
        Histogram { name: "w", original: BINS, candidate: None, mean: 0.0, sigma: 0.3, is_log: false }
    }

    #[test]
    fn every_value_between_the_ends_has_a_bin() {
        assert_eq!(BINS.bin_of(-1.0), Some(0));
        assert_eq!(BINS.bin_of(1.0), Some(3));
        assert_eq!(BINS.bin_of(1.01), None);
        assert_eq!(BINS.bin_of(f64::NAN), None);
        assert_eq!(Bins { min: 0.0, max: 0.0, counts: &[] }.bin_of(0.0), None);
    }

    #[test]
    fn the_table_has_every_bin_of_both_series() {
        let mut with_candidate = histogram();
        with_candidate.candidate = Some((BINS, 0));
        assert_eq!(with_candidate.table().rows.len(), 8);
        assert_eq!(histogram().table().rows[2], ["original", "0", "0.5", "10"]);
    }

    #[test]
    fn bins_of_another_width_are_compared_as_densities() {
        let wide = Bins { min: -2.0, max: 2.0, counts: &[1, 4, 10, 3] };
        assert_eq!(histogram().factor(&wide), 0.5);
    }

    #[test]
    fn a_small_outline_reaches_one_and_keeps_its_length() {
        for is_log in [false, true] {
            let outline = small_outline(&BINS, -2.0, 2.0, is_log);
            assert_eq!(outline.len(), SMALL_BINS);
            assert_eq!(outline.iter().copied().fold(0.0, f32::max), 1.0);
        }
        let nothing = Bins { min: 0.0, max: 1.0, counts: &[] };
        assert!(small_outline(&nothing, 0.0, 1.0, true).iter().all(|height| *height == 0.0));
    }
}
