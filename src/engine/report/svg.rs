//! Plots of a report as SVG, drawn from the same numbers that the tables show.

use super::document::{Table, escape};

const WIDTH: f64 = 720.0;
const LEFT: f64 = 190.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 44.0;
/// Height of a row of a forest plot.
const ROW: f64 = 22.0;
/// Height of plots that are no list.
const HEIGHT: f64 = 300.0;

/// A value with the interval around it.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    pub name: String,
    pub value: f64,
    pub interval: [f64; 2],
}

/// Points of one line.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    pub name: String,
    pub points: Vec<[f64; 2]>,
}

/// What a plot shows.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// Values with intervals, one under the other, and a line at zero.
    Forest(Vec<Bar>),
    /// Lines over a number.
    Lines(Vec<Line>),
    /// Points with names; `y` with an interval.
    Scatter(Vec<(f64, Bar)>),
}

/// A plot with its axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Plot {
    pub caption: String,
    pub x: String,
    pub y: String,
    /// True for a logarithmic horizontal axis.
    pub is_log: bool,
    /// True where the line of equal x and y helps.
    pub has_diagonal: bool,
    pub shape: Shape,
}

/// Colours that keep apart in light and dark and for most eyes (Okabe and Ito 2008).
const INKS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

/// A linear axis from data to pixels.
#[derive(Clone, Copy)]
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn new(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| value.is_finite()) {
            (low, high) = (low.min(value), high.max(value));
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        let room = if high > low { (high - low) * 0.04 } else { low.abs().max(1.0) * 0.1 };
        Self { low: low - room, high: high + room, from, to }
    }

    fn at(&self, value: f64) -> f64 {
        let share = ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        self.from + share * (self.to - self.from)
    }

    /// Round numbers within the axis: 1, 2 or 5 times a power of ten apart.
    fn ticks(&self) -> Vec<f64> {
        let rough = (self.high - self.low) / 5.0;
        let power = 10_f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].into_iter().map(|times| times * power).find(|step| *step >= rough).unwrap_or(rough);
        let first = (self.low / step).ceil() as i64;
        (first..first + 12).map(|nth| nth as f64 * step).take_while(|tick| *tick <= self.high).collect()
    }
}

/// A number for an axis, without a tail of noise.
fn label(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let text = if value.abs() >= 1e5 || value.abs() < 1e-3 { format!("{value:.0e}") } else { format!("{value:.4}") };
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text };
    text.replace('-', "−")
}

fn text(x: f64, y: f64, anchor: &str, words: &str) -> String {
    format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"12\" fill=\"currentColor\">{}</text>\n",
        escape(words)
    )
}

fn stroke(from: [f64; 2], to: [f64; 2], colour: &str, width: f64, opacity: f64) -> String {
    format!(
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" stroke-width=\"{width}\" \
         stroke-opacity=\"{opacity}\"/>\n",
        from[0], from[1], to[0], to[1]
    )
}

fn dot(x: f64, y: f64, colour: &str) -> String {
    format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>\n")
}

impl Plot {
    /// The plot as one `svg` element.
    pub fn to_svg(&self) -> String {
        let (height, body) = match &self.shape {
            Shape::Forest(bars) => self.forest(bars),
            Shape::Lines(lines) => self.lines(lines),
            Shape::Scatter(points) => self.scatter(points),
        };
        format!(
            "<svg viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" height=\"{height:.0}\" role=\"img\" \
             aria-label=\"{}\" font-family=\"Inter, system-ui, sans-serif\">\n{body}</svg>\n",
            escape(&self.caption)
        )
    }

    /// The numbers of the plot.
    pub fn to_table(&self) -> Table {
        let (x, y) = (format!(">{}", self.x), format!(">{}", self.y));
        match &self.shape {
            Shape::Forest(bars) => {
                let mut table = Table::new(&["", &x, ">from", ">to"]);
                for bar in bars {
                    table.row([bar.name.clone(), label(bar.value), label(bar.interval[0]), label(bar.interval[1])]);
                }
                table
            }
            Shape::Lines(lines) => {
                let mut table = Table::new(&["", &x, &y]);
                for line in lines {
                    line.points.iter().for_each(|[x, y]| table.row([line.name.clone(), label(*x), label(*y)]));
                }
                table
            }
            Shape::Scatter(points) => {
                let mut table = Table::new(&["", &x, &y, ">from", ">to"]);
                for (x, bar) in points {
                    let [low, high] = bar.interval;
                    table.row([bar.name.clone(), label(*x), label(bar.value), label(low), label(high)]);
                }
                table
            }
        }
    }

    /// Horizontal ticks with their lines.
    fn x_axis(&self, axis: Axis, bottom: f64) -> String {
        let mut out = String::new();
        for tick in axis.ticks() {
            let x = axis.at(tick);
            out.push_str(&stroke([x, TOP], [x, bottom], "currentColor", 1.0, 0.12));
            out.push_str(&text(x, bottom + 16.0, "middle", &label(if self.is_log { 10_f64.powf(tick) } else { tick })));
        }
        out.push_str(&text((LEFT + WIDTH - RIGHT) / 2.0, bottom + 36.0, "middle", &self.x));
        out
    }

    fn y_axis(&self, axis: Axis) -> String {
        let mut out = String::new();
        for tick in axis.ticks() {
            let y = axis.at(tick);
            out.push_str(&stroke([LEFT, y], [WIDTH - RIGHT, y], "currentColor", 1.0, 0.12));
            out.push_str(&text(LEFT - 8.0, y + 4.0, "end", &label(tick)));
        }
        out.push_str(&text(LEFT - 60.0, TOP + 10.0, "end", &self.y));
        out
    }

    fn horizontal(&self, value: f64) -> f64 {
        if self.is_log { value.max(1e-300).log10() } else { value }
    }

    fn forest(&self, bars: &[Bar]) -> (f64, String) {
        let bottom = TOP + ROW * bars.len() as f64;
        let ends = bars.iter().flat_map(|bar| [bar.interval[0], bar.interval[1], bar.value]).chain([0.0]);
        let axis = Axis::new(ends, LEFT, WIDTH - RIGHT);
        let mut out = self.x_axis(axis, bottom);
        let zero = axis.at(0.0);
        out.push_str(&stroke([zero, TOP], [zero, bottom], "currentColor", 1.5, 0.6));
        for (row, bar) in bars.iter().enumerate() {
            let y = TOP + ROW * (row as f64 + 0.5);
            let [low, high] = bar.interval;
            // What lies beyond zero as a whole is not chance.
            let ink = if high < 0.0 {
                INKS[1]
            } else if low > 0.0 {
                INKS[2]
            } else {
                INKS[0]
            };
            out.push_str(&stroke([axis.at(low), y], [axis.at(high), y], ink, 2.0, 1.0));
            out.push_str(&dot(axis.at(bar.value), y, ink));
            out.push_str(&text(LEFT - 10.0, y + 4.0, "end", &shortened(&bar.name)));
        }
        (bottom + BOTTOM, out)
    }

    fn lines(&self, lines: &[Line]) -> (f64, String) {
        let bottom = HEIGHT - BOTTOM;
        let points = || lines.iter().flat_map(|line| line.points.iter());
        let x_axis = Axis::new(points().map(|point| self.horizontal(point[0])), LEFT, WIDTH - RIGHT);
        let y_axis = Axis::new(points().map(|point| point[1]), bottom, TOP);
        let mut out = self.x_axis(x_axis, bottom) + &self.y_axis(y_axis);
        if self.has_diagonal {
            let ends = [x_axis.low.max(y_axis.low), x_axis.high.min(y_axis.high)];
            let [from, to] = ends.map(|end| [x_axis.at(end), y_axis.at(end)]);
            out.push_str(&stroke(from, to, "currentColor", 1.0, 0.5));
        }
        for (nth, line) in lines.iter().enumerate() {
            let ink = INKS[nth % INKS.len()];
            let place = |point: &[f64; 2]| [x_axis.at(self.horizontal(point[0])), y_axis.at(point[1])];
            let path: Vec<String> = line.points.iter().map(place).map(|[x, y]| format!("{x:.1},{y:.1}")).collect();
            out.push_str(&format!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{ink}\" stroke-width=\"2\"/>\n",
                path.join(" ")
            ));
            if line.points.len() <= 40 {
                line.points.iter().map(place).for_each(|[x, y]| out.push_str(&dot(x, y, ink)));
            }
            let y = TOP + 26.0 + 18.0 * nth as f64;
            out.push_str(&dot(12.0, y - 4.0, ink));
            out.push_str(&text(22.0, y, "start", &shortened(&line.name)));
        }
        (HEIGHT, out)
    }

    fn scatter(&self, points: &[(f64, Bar)]) -> (f64, String) {
        let bottom = HEIGHT - BOTTOM;
        let x_axis = Axis::new(points.iter().map(|(x, _)| self.horizontal(*x)), LEFT, WIDTH - RIGHT);
        let ends = points.iter().flat_map(|(_, bar)| [bar.interval[0], bar.interval[1], bar.value]);
        let y_axis = Axis::new(ends, bottom, TOP);
        let mut out = self.x_axis(x_axis, bottom) + &self.y_axis(y_axis);
        for (nth, (x, bar)) in points.iter().enumerate() {
            let ink = INKS[nth % INKS.len()];
            let x = x_axis.at(self.horizontal(*x));
            let [low, high] = bar.interval.map(|end| y_axis.at(end));
            out.push_str(&stroke([x, low], [x, high], ink, 2.0, 1.0));
            out.push_str(&dot(x, y_axis.at(bar.value), ink));
            let anchor = if x > WIDTH - 160.0 { "end" } else { "start" };
            let beside = if anchor == "end" { x - 8.0 } else { x + 8.0 };
            out.push_str(&text(beside, y_axis.at(bar.value) - 8.0, anchor, &shortened(&bar.name)));
        }
        (HEIGHT, out)
    }
}

/// A name that fits beside a plot.
fn shortened(name: &str) -> String {
    if name.chars().count() <= 26 {
        return name.to_owned();
    }
    let cut: String = name.chars().take(25).collect();
    format!("{cut}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(shape: Shape) -> Plot {
        Plot { caption: "c<".into(), x: "points".into(), y: "y".into(), is_log: false, has_diagonal: false, shape }
    }

    #[test]
    fn a_loss_beyond_chance_has_another_colour_and_every_bar_its_name() {
        let bar = |name: &str, value: f64, half: f64| Bar {
            name: name.into(),
            value,
            interval: [value - half, value + half],
        };
        let svg = plot(Shape::Forest(vec![bar("a<b", -3.0, 1.0), bar("even", 0.1, 1.0)])).to_svg();
        assert!(svg.contains(INKS[1]) && svg.contains(INKS[0]) && svg.contains("a&lt;b") && svg.contains("even"));
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>") && svg.contains("c&lt;"));
    }

    #[test]
    fn a_plot_of_nothing_or_of_one_value_is_still_a_plot() {
        for shape in [
            Shape::Lines(vec![Line { name: "n".into(), points: vec![[1.0, 2.0]] }]),
            Shape::Lines(Vec::new()),
            Shape::Scatter(vec![(3.0, Bar { name: "m".into(), value: 1.0, interval: [1.0, 1.0] })]),
            Shape::Forest(Vec::new()),
        ] {
            let svg = plot(shape).to_svg();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn ticks_are_round_and_numbers_short() {
        let axis = Axis::new([0.0, 9.7].into_iter(), 0.0, 100.0);
        assert_eq!(axis.ticks(), [0.0, 5.0, 10.0]);
        assert_eq!([0.1 + 0.2, -2.0, 0.0, 1e-5].map(label), ["0.3", "−2", "0", "1e−5"]);
    }
}
