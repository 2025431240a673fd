//! What a device has to do for one format: which shaders with which constants.

use std::fmt::Write as _;

use crate::kernels::bnb::Table;
use crate::kernels::fp8::Fp8;
use crate::kernels::ints::{Codes, ScaleType};

/// Where the scales of integer groups and 8-bit floats come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scales {
    /// Given by the host, for each group of each row: what a whole tensor or several rows share.
    Given,
    /// From the range of the group.
    Range,
    /// From the least weighted squared error, as [`crate::kernels::ints::ScaleChoice::LeastSquares`] takes it.
    LeastSquares,
}

/// How a format moves weights, in the terms of the shaders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Recipe {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Mxfp4,
    Iq4Nl,
    Iq4Xs,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    /// Integers in groups of so many weights of a row.
    Integers {
        bits: u32,
        symmetric: bool,
        scale: ScaleType,
        group: usize,
        scales: Scales,
    },
    /// 8-bit floats; the group is 0 for a whole row.
    Fp8 {
        kind: Fp8,
        group: usize,
        scales: Scales,
    },
    /// bitsandbytes' tables; nested maxima are given by the host.
    Table {
        table: Table,
        is_nested: bool,
    },
}

/// A shader with what its dispatch needs to know.
#[derive(Clone, Debug)]
pub(super) struct Program {
    /// The shader that finds scales or means first, and what its workgroups take.
    pub(super) before: Option<(String, Before)>,
    /// The shader that adds up errors.
    pub(super) scan: String,
    /// Columns of a tile.
    pub(super) columns: usize,
    /// Weights that share an entry of the scales; 0 for a whole row.
    pub(super) group: usize,
    /// True if the host gives the scales.
    pub(super) is_given: bool,
}

/// How the work of the first shader is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// A workgroup a row.
    Rows,
    /// So many lanes a group.
    Groups(usize),
}

const COMMON: &str = include_str!("common.wgsl");
const SEARCH: &str = include_str!("search.wgsl");

/// Constants as WGSL.
#[derive(Default)]
struct Constants(String);

impl Constants {
    fn number(mut self, name: &str, value: f32) -> Self {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "const {name}: f32 = {value:?}f;");
        self
    }

    fn count(mut self, name: &str, value: usize) -> Self {
        let _ = writeln!(self.0, "const {name}: u32 = {value}u;");
        self
    }

    fn flag(mut self, name: &str, value: bool) -> Self {
        let _ = writeln!(self.0, "const {name}: bool = {value};");
        self
    }

    fn list(mut self, name: &str, values: &[f32]) -> Self {
        let texts: Vec<String> = values.iter().map(|value| format!("{value:?}f")).collect();
        let len = values.len();
        let _ = writeln!(self.0, "var<private> {name}: array<f32, {len}> = array<f32, {len}>({});", texts.join(", "));
        self
    }

    fn with(self, parts: &[&str]) -> String {
        [&[self.0.as_str(), COMMON][..], parts].concat().join("\n")
    }
}

impl Recipe {
    /// True if the errors of 32-weight blocks are weighed with the mean square of their row.
    fn needs_row_means(self) -> bool {
        matches!(self, Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1)
    }

    /// The shaders, for columns with or without importance.
    pub(super) fn program(self, is_weighted: bool) -> Program {
        match self {
            Self::F16 => Self::plain(0),
            Self::Bf16 => Self::plain(1),
            Self::F32 => Self::plain(2),
            Self::Integers { bits, symmetric, scale, group, scales } => {
                integers(Codes { bits, symmetric, scale }, group, scales)
            }
            Self::Fp8 { kind, group, scales } => {
                let mode = if kind == Fp8::E4M3 { 4 } else { 5 };
                let constants = || Constants::default().count("MODE", mode).number("TOP", kind.max());
                let unused = |constants: Constants| {
                    constants.number("MIDDLE", 0.0).flag("SYMMETRIC", true).count("SCALE", 2).flag("SEARCH", false)
                };
                scaled(constants, unused, group, scales)
            }
            Self::Q2K => superblock(0, 16, is_weighted),
            Self::Q3K => superblock(1, 16, is_weighted),
            Self::Q4K => superblock(2, 32, is_weighted),
            Self::Q5K => superblock(3, 32, is_weighted),
            Self::Q6K => superblock(4, 16, is_weighted),
            Self::Iq4Xs => superblock(5, 32, is_weighted),
            Self::Iq4Nl => block(32, is_weighted, "nonlinear(row, column)"),
            Self::Q4_0 if is_weighted => self.by_row_means("weighted_around(row, column, 8.0)"),
            Self::Q5_0 if is_weighted => self.by_row_means("weighted_around(row, column, 16.0)"),
            Self::Q4_1 if is_weighted => self.by_row_means("weighted_above(row, column, 15.0)"),
            Self::Q5_1 if is_weighted => self.by_row_means("weighted_above(row, column, 31.0)"),
            Self::Q4_0 => block(32, false, "around(8.0)"),
            Self::Q5_0 => block(32, false, "around(16.0)"),
            Self::Q4_1 => block(32, false, "above(15.0)"),
            Self::Q5_1 => block(32, false, "above(31.0)"),
            Self::Q8_0 => block(32, false, "bytes()"),
            Self::Mxfp4 => block(32, false, "microscaled()"),
            Self::Table { table, is_nested } => tables(table, is_nested),
        }
    }

    fn plain(mode: usize) -> Program {
        let scan = Constants::default().count("MODE", mode).number("TOP", 0.0).with(&[include_str!("plain.wgsl")]);
        Program { before: None, scan, columns: 2048, group: 0, is_given: false }
    }

    fn by_row_means(self, call: &str) -> Program {
        debug_assert!(self.needs_row_means(), "only these are weighed by row");
        let means = Constants::default().with(&[include_str!("means.wgsl")]);
        Program { before: Some((means, Before::Rows)), ..block(32, true, call) }
    }
}

fn integers(codes: Codes, group: usize, scales: Scales) -> Program {
    let constants = || Constants::default().count("MODE", 3).number("TOP", f32::from(codes.top()));
    let more = |constants: Constants| {
        let scale = match codes.scale {
            ScaleType::F16 => 0,
            ScaleType::Bf16 => 1,
            ScaleType::F32 => 2,
        };
        constants
            .number("MIDDLE", f32::from(codes.middle()))
            .flag("SYMMETRIC", codes.symmetric)
            .count("SCALE", scale)
            .flag("SEARCH", scales == Scales::LeastSquares)
    };
    scaled(constants, more, group, scales)
}

/// Weights that are rounded one by one under scales that are found before, or given.
fn scaled(
    constants: impl Fn() -> Constants,
    more: impl Fn(Constants) -> Constants,
    group: usize,
    scales: Scales,
) -> Program {
    let is_given = scales == Scales::Given;
    let before = (!is_given).then(|| {
        // A search sums in eight lanes, as the reference does.
        let side = match (scales, group) {
            (Scales::LeastSquares, _) => 8,
            (_, 0) => 64,
            _ => (group.next_power_of_two() / 8).clamp(2, 64),
        };
        (more(constants()).count("SIDE", side).with(&[include_str!("scales.wgsl")]), Before::Groups(side))
    });
    Program { before, scan: constants().with(&[include_str!("plain.wgsl")]), columns: 2048, group, is_given }
}

/// A block a lane.
fn block(run: usize, is_weighted: bool, call: &str) -> Program {
    let code = format!("fn code_block(row: u32, column: u32) {{ {call}; }}");
    let is_search = is_weighted || call.starts_with("nonlinear");
    let parts: &[&str] = if is_search {
        &[SEARCH, include_str!("weighted.wgsl"), &code, include_str!("blocks_main.wgsl")]
    } else {
        &[include_str!("blocks.wgsl"), &code, include_str!("blocks_main.wgsl")]
    };
    let scan = Constants::default().count("RUN", run).flag("WEIGHTED", is_weighted).with(parts);
    Program { before: None, scan, columns: 64 * run, group: 0, is_given: false }
}

fn superblock(kind: usize, run: usize, is_weighted: bool) -> Program {
    let constants = Constants::default().count("KIND", kind).count("RUN", run).flag("WEIGHTED", is_weighted);
    let scan = constants.with(&[SEARCH, include_str!("superblocks.wgsl")]);
    Program { before: None, scan, columns: 64 * run, group: 0, is_given: false }
}

fn tables(table: Table, is_nested: bool) -> Program {
    const RUN: usize = crate::kernels::bnb::BLOCK;
    let mut levels = *table.values();
    levels.sort_by(f32::total_cmp);
    let bounds: Vec<f32> = levels.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0).collect();
    let constants = Constants::default().count("RUN", RUN).flag("NESTED", is_nested);
    let code = "fn code_block(row: u32, column: u32) { table_codes(row, column); }";
    let scan = constants.list("levels", &levels).list("bounds", &bounds).with(&[
        include_str!("blocks.wgsl"),
        include_str!("tables.wgsl"),
        code,
        include_str!("blocks_main.wgsl"),
    ]);
    Program { before: None, scan, columns: 64 * RUN, group: RUN, is_given: is_nested }
}
