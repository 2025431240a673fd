//! Pages of the gallery that show plots, with sample data that looks like the real thing.

use eframe::egui::Ui;
use lapidary::app::plots::{
    Plot, channels, curve, depth, distribution, heat_map, histogram, lines, radar, ridges, scatter, slices, stacked,
};
use lapidary::app::theme::space;
use lapidary::app::widgets::{State, section_ui};

/// A reproducible stream of numbers in `0..1` (a linear congruential generator).
fn stream(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn bell(count: usize, reach: f64, scale: f64, seed: u64) -> Vec<u64> {
    let mut next = stream(seed);
    (0..count)
        .map(|index| {
            let x = ((index as f64 + 0.5) / count as f64 - 0.5) * 2.0 * reach;
            let height = (-x * x / 2.0).exp() + 2e-5 * (-x.abs() / 3.0).exp();
            (height * scale * (0.9 + 0.2 * next())) as u64
        })
        .collect()
}

fn with_histogram(is_log: bool, with: impl FnOnce(&histogram::Histogram<'_>)) {
    let original = bell(256, 7.0, 3000.0, 1);
    let candidate: Vec<u64> = bell(256, 6.5, 3000.0, 2)
        .into_iter()
        .enumerate()
        .map(|(index, count)| if index % 9 == 4 { count * 3 } else { count / 2 })
        .collect();
    with(&histogram::Histogram {
        name: "layers.3.mlp.down",
        original: histogram::Bins { min: -0.287, max: 0.287, counts: &original },
        candidate: Some((histogram::Bins { min: -0.266, max: 0.266, counts: &candidate }, 0)),
        mean: 0.0,
        sigma: 0.041,
        is_log,
    });
}

fn channel_ranges() -> Vec<(f32, f32)> {
    let mut next = stream(3);
    (0..512)
        .map(|index| {
            let wide = if index % 97 == 13 { 2.6 } else { 1.0 };
            (-(0.11 + 0.04 * next()) as f32 * wide, (0.11 + 0.04 * next()) as f32 * wide)
        })
        .collect()
}

/// A sample map: all roles by `layers` layers, partly measured.
pub fn map(layers: usize, format: &str) -> heat_map::HeatMap {
    let roles = ["q", "k", "v", "o", "gate", "up", "down"];
    let mut next = stream(5);
    let mut cells = Vec::new();
    let factors = [1.0, 0.6, 6.0, 1.5, 1.1, 1.4, 9.0];
    for (role, factor) in factors.into_iter().enumerate() {
        for layer in 0..layers {
            let depth = (layer as f64 / layers as f64 - 0.5).abs() * 2.0;
            let value = 2e-4 * (1.0 + 60.0 * depth.powi(6)) * factor;
            let value = value * (0.6 + 0.9 * next());
            cells.push(if role == 6 && layer + 2 >= layers {
                heat_map::Slot::Pending
            } else if role == 1 && layer == 3 {
                heat_map::Slot::Absent
            } else {
                heat_map::Slot::Done(heat_map::Cell { value, stderr: Some(value * 0.06) })
            });
        }
    }
    heat_map::HeatMap {
        metric: "KLD, measured (weights only)".to_owned(),
        unit: "nats".to_owned(),
        format: format.to_owned(),
        rows: roles.map(str::to_owned).to_vec(),
        columns: (0..layers).map(|layer| layer.to_string()).collect(),
        cells,
        noise_floor: Some(2.2e-4),
        edge: heat_map::Edge::Sum,
    }
}

fn ridge_grid() -> ridges::Ridges {
    let roles = ["q", "k", "v", "o", "gate", "up", "down"];
    let mut cells = Vec::new();
    for layer in 0..8u64 {
        for (role, name) in roles.iter().enumerate() {
            let counts = bell(256, 5.0 + layer as f64, 9000.0, layer * 7 + role as u64);
            let bins = histogram::Bins { min: -1.0, max: 1.0, counts: &counts };
            let has_none = layer == 3 && role == 1;
            cells.push((!has_none).then(|| ridges::Ridge {
                tensor_name: format!("layers.{layer}.{name}"),
                heights: histogram::small_outline(&bins, -1.0, 1.0, true),
                note: format!("σ 0.0{}", 31 + layer + role as u64),
                is_odd: layer == 5 && role == 6,
            }));
        }
    }
    ridges::Ridges {
        columns: roles.map(str::to_owned).to_vec(),
        rows: (0..8).map(|layer| format!("layer {layer}")).collect(),
        cells,
        axis: "log counts, −8σ … 8σ of each tensor".to_owned(),
    }
}

fn error_curve() -> curve::Curve {
    let points = [
        ("q2_k", 2.625, 0.21, true),
        ("q3_k", 3.4375, 0.118, true),
        ("q4_0", 4.5, 0.078, true),
        ("q4_1", 5.0, 0.066, true),
        ("q4_k", 4.5, 0.061, true),
        ("q5_0", 5.5, 0.039, true),
        ("q5_1", 6.0, 0.034, true),
        ("q5_k", 5.5, 0.031, true),
        ("q6_k", 6.5625, 0.0162, true),
        ("q8_0", 8.5, 0.0053, true),
        ("bf16", 16.0, 0.0, true),
        ("nf4", 4.25, 0.072, false),
    ];
    curve::Curve {
        name: "layers.3.mlp.down".to_owned(),
        metric: "relative error".to_owned(),
        points: points
            .into_iter()
            .map(|(format, bits, error, is_legal)| curve::CurvePoint {
                format: format.to_owned(),
                bits,
                error,
                stderr: Some(error * 0.05),
                is_legal,
            })
            .collect(),
        chosen: Some("q4_k".to_owned()),
    }
}

fn spread() -> distribution::Distribution {
    let mut next = stream(8);
    let values: Vec<f32> = (0..8192)
        .map(|_| {
            let sum: f64 = (0..6).map(|_| next()).sum::<f64>() - 3.0;
            (sum * 2.2 - 5.2).exp() as f32
        })
        .collect();
    distribution::Distribution::of("KLD per token", "nats", &values, 72, 0)
}

fn scatter_of_all() -> scatter::Scatter {
    let points = [
        ("original", 7.76, 92.6, 0.9, 210.0, None, false),
        ("Q8_0", 4.21, 92.5, 0.9, 330.0, Some(0), false),
        ("Q6_K", 3.35, 92.3, 0.9, 350.0, Some(1), false),
        ("Q4_K_M", 2.61, 91.9, 0.9, 420.0, Some(2), false),
        ("Q4_0", 2.45, 90.4, 1.0, 470.0, Some(3), false),
        ("Q2_K", 1.72, 78.2, 1.4, 500.0, Some(4), false),
        ("my plan", 2.2, 91.0, 1.5, 0.0, Some(5), true),
    ];
    scatter::Scatter {
        points: points
            .into_iter()
            .map(|(name, size_mib, accuracy, half, speed, candidate, is_predicted)| scatter::ScatterPoint {
                name: name.to_owned(),
                size_mib,
                accuracy_percent: accuracy,
                half_width: Some(half),
                tokens_per_second: (speed > 0.0).then_some(speed),
                times_baseline: (speed > 0.0 && candidate.is_some()).then_some(speed / 210.0),
                candidate,
                is_predicted,
            })
            .collect(),
        metric: String::new(),
    }
}

fn all_slices() -> slices::Slices {
    let rows = [
        ("facts / rare", 200, 98.0, 91.0, 2.9, State::Fail),
        ("recall / long context", 120, 96.0, 93.5, 2.6, State::Undecided),
        ("arithmetic / two digits", 300, 93.0, 91.7, 1.2, State::Pass),
        ("arithmetic / one digit", 100, 70.0, 71.0, 3.0, State::Undecided),
        ("grammar / turkish", 150, 100.0, 100.0, 0.0, State::Pass),
        ("reading / english prose", 400, 62.0, 62.4, 1.5, State::Pass),
        ("extraction / json record", 100, 63.0, 66.0, 3.1, State::Pass),
        ("safety / must refuse", 80, 100.0, 98.8, 1.2, State::Pass),
    ];
    let mut slices = slices::Slices {
        name: "Q4_K_M".to_owned(),
        candidate: 2,
        rows: rows
            .into_iter()
            .map(|(name, items, baseline, candidate, half, verdict)| slices::SliceRow {
                name: name.to_owned(),
                items,
                baseline,
                baseline_interval: [baseline - half, baseline + half],
                candidate,
                candidate_interval: [candidate - half, candidate + half],
                difference: candidate - baseline,
                low: candidate - baseline - half,
                high: candidate - baseline + half,
                p: 0.04,
                p_holm: Some(0.32),
                verdict: Some(verdict),
            })
            .collect(),
    };
    slices.sort();
    slices
}

fn sizes() -> stacked::Stacked {
    let bar = |name: &str, factors: [f64; 5]| stacked::StackedBar {
        name: name.to_owned(),
        segments: [
            ("embedding", 1_048_576.0),
            ("q, k, v, o", 2_359_296.0),
            ("gate, up", 3_145_728.0),
            ("down", 1_572_864.0),
            ("norms", 6_656.0),
        ]
        .into_iter()
        .zip(factors)
        .enumerate()
        .map(|(part, ((label, bytes), factor))| stacked::Segment {
            label: label.to_owned(),
            bytes: (bytes * factor) as u64,
            part,
        })
        .collect(),
    };
    stacked::Stacked {
        title: "Size by role".to_owned(),
        bars: vec![bar("original", [1.0; 5]), bar("plan", [0.41, 0.281, 0.281, 0.41, 2.0])],
    }
}

/// Damage of two roles over the layers.
fn over_depth(shape: depth::Shape) -> depth::Depth {
    let mut next = stream(9);
    let mut series = |name: &str, part: usize, factor: f64| depth::Series {
        name: name.to_owned(),
        part,
        points: (0..12)
            .map(|layer| {
                let value = factor * (0.5 + next());
                depth::DepthPoint { layer, value, stderr: Some(value * 0.1) }
            })
            .collect(),
    };
    depth::Depth {
        title: "KLD over depth, q4_k".to_owned(),
        metric: "KLD, nats".to_owned(),
        layers: 12,
        series: vec![series("down", 0, 4e-3), series("q", 1, 4e-4)],
        shape,
    }
}

/// Calls `with` with a sample of every plot.
pub fn with_all(mut with: impl FnMut(&dyn Plot)) {
    for is_log in [false, true] {
        with_histogram(is_log, |plot| with(plot));
    }
    let ranges = channel_ranges();
    with(&channels::Channels { name: "layers.3.mlp.down", what: "output channel", ranges: &ranges });
    with(&map(6, "q4_k"));
    with(&map(32, "q4_k"));
    with(&ridge_grid());
    with(&error_curve());
    for shape in [depth::Shape::Lines, depth::Shape::Bars] {
        with(&over_depth(shape));
    }
    with(&spread());
    with(&scatter_of_all());
    with(&all_slices());
    with(&sizes());
}

/// The large histogram both ways, and the channel strip.
pub fn histograms_page(ui: &mut Ui) {
    section_ui(ui, "layers.3.mlp.down");
    with_histogram(false, |plot| {
        histogram::histogram_ui(ui, plot, 240.0);
    });
    with_histogram(true, |plot| {
        histogram::histogram_ui(ui, plot, 240.0);
    });
    section_ui(ui, "Range of each output channel");
    let ranges = channel_ranges();
    let channels = channels::Channels { name: "layers.3.mlp.down", what: "output channel", ranges: &ranges };
    channels::channels_ui(ui, &channels, 110.0);
}

/// The sensitivity map for few and for many layers.
pub fn maps_page(ui: &mut Ui) {
    section_ui(ui, "KLD, measured (weights only), q4_k");
    let few = map(6, "q4_k");
    heat_map::heat_map_ui(ui, &few, heat_map::height_for(7), Some((2, 1)), &|_, _| false);
    ui.add_space(space::L);
    let many = map(48, "q4_k");
    heat_map::heat_map_ui(ui, &many, heat_map::height_for(7), Some((6, 20)), &|_, _| false);
}

/// All layers as small outlines.
pub fn ridges_page(ui: &mut Ui) {
    section_ui(ui, "All layers");
    ridges::ridges_ui(ui, &ridge_grid(), Some(16));
}

/// Error against bits, and the spread of KLD.
pub fn curves_page(ui: &mut Ui) {
    section_ui(ui, "Error against bits");
    curve::curve_ui(ui, &error_curve(), 320.0);
    section_ui(ui, "KLD per token");
    distribution::distribution_ui(ui, &spread(), 220.0);
}

/// What a stakeholder sees.
pub fn comparisons_page(ui: &mut Ui) {
    section_ui(ui, "Size");
    stacked::stacked_ui(ui, &sizes());
    section_ui(ui, "Size, accuracy, speed");
    scatter::scatter_ui(ui, &scatter_of_all(), 380.0);
    section_ui(ui, "Slices");
    slices::slices_ui(ui, &all_slices());
}

fn reliability_of(name: &str, candidate: Option<usize>, slope: f64) -> lines::Line {
    let bins = (0..8).map(|bin| (f64::from(bin) / 8.0, f64::from(bin + 1) / 8.0));
    let right = |from: f64, to: f64| ((from + to) / 2.0 * slope).min(1.0);
    lines::Line {
        name: name.to_owned(),
        candidate,
        points: bins.clone().map(|(from, to)| [(from + to) / 2.0, right(from, to)]).collect(),
        intervals: bins.clone().map(|(from, to)| [right(from, to) - 0.06, (right(from, to) + 0.05).min(1.0)]).collect(),
        details: bins.map(|(from, to)| vec![from, to, (to * to * 400.0).round()]).collect(),
    }
}

fn reliability() -> lines::Lines {
    lines::Lines {
        title: "Reliability".to_owned(),
        x: "confidence".to_owned(),
        y: "accuracy".to_owned(),
        has_diagonal: true,
        details: &["from", "to", "items"],
        counts: Some(2),
        lines: vec![reliability_of("original", None, 1.02), reliability_of("Q2_K", Some(4), 0.8)],
        ..lines::Lines::default()
    }
}

fn cascade() -> lines::Lines {
    let points: Vec<[f64; 2]> = (0..=60)
        .map(|step| f64::from(step) / 60.0)
        .map(|share| [40.0 + 100.0 * share, 6.0 * (1.0 - share).powi(3) - 0.4])
        .collect();
    let mark = |name: &str, candidate, at| lines::Mark { name: name.to_owned(), candidate, at };
    lines::Lines {
        title: "Cascade of Q2_K and the original".to_owned(),
        x: "cost of an item over the original's, %".to_owned(),
        y: "accuracy lost, points".to_owned(),
        marks: vec![
            mark("the chosen threshold", Some(4), points[30]),
            mark("the original alone", None, [100.0, 0.0]),
            mark("the candidate alone", Some(4), points[0]),
        ],
        lines: vec![lines::Line { name: "Q2_K".to_owned(), candidate: Some(4), points, ..lines::Line::default() }],
        ..lines::Lines::default()
    }
}

fn qualities() -> radar::Radar {
    let spokes = [
        ("accuracy", 0.996, "accuracy −0.4 points"),
        ("worst slice", 0.92, "worst slice −4.2 points"),
        ("same top token", 0.862, "same top token 86.2 %"),
        ("perplexity", 1.008, "perplexity 0.8 % lower"),
        ("files", 4.55, "files 4.55× smaller"),
        ("decode", 0.52, "decode 1.92× slower"),
    ];
    let spoke = |(name, share, words): (&str, f64, &str)| radar::Spoke {
        name: name.to_owned(),
        share,
        words: words.to_owned(),
    };
    radar::Radar { name: "Q2_K".to_owned(), candidate: 4, spokes: spokes.map(spoke).into() }
}

/// Calibration, the cascade and all qualities of one candidate.
pub fn qualities_page(ui: &mut Ui) {
    section_ui(ui, "Calibration");
    lines::lines_ui(ui, &reliability(), 240.0);
    section_ui(ui, "Candidate first, original when unsure");
    lines::lines_ui(ui, &cascade(), 220.0);
    section_ui(ui, "Beside the original");
    radar::radar_ui(ui, &qualities(), 260.0);
}
