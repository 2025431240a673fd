//! What a device has to do for one format: which shaders with which constants.

use std::fmt::Write as _;

use crate::kernels::bnb::Table;
use crate::kernels::fp8::Fp8;
use crate::kernels::ints::{Codes, ScaleType, percentile_place};

/// Where the scales of integer groups and 8-bit floats come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scales {
    /// Given by the host, for each group of each row: what a whole tensor or several rows share.
    Given,
    /// From the range of the group.
    Range,
    /// From the least weighted squared error, as [`crate::kernels::ints::ScaleChoice::LeastSquares`] takes it.
    LeastSquares,
    /// From the magnitude at these places of a whole and of a row's last group, in order of size.
    Percentile {
        /// In a whole group.
        whole: Place,
        /// In the last group of a row, which may be shorter.
        last: Place,
    },
}

/// A place between two of the magnitudes of a group in order of size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Index of the one below.
    pub below: u32,
    /// How far from there to the next, 0 to 1, as the bits of two f32 whose sum it is.
    pub part: [u32; 2],
}

impl Place {
    /// The place of a percentile among `count` magnitudes.
    pub fn of(count: usize, percent: f32) -> Self {
        let (below, part) = percentile_place(count, percent);
        let high = part as f32;
        Self { below: below as u32, part: [high, (part - f64::from(high)) as f32].map(f32::to_bits) }
    }
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
    /// What rounds the weights, without an entry.
    shader: String,
    /// The entry that adds up errors.
    scan: &'static str,
    /// The entry that writes bytes; none where nothing is gained by writing them on a device.
    emit: Option<&'static str>,
    /// Columns of a tile.
    pub(super) columns: usize,
    /// Weights that share an entry of the scales; 0 for a whole row.
    pub(super) group: usize,
    /// True if the host gives the scales.
    pub(super) is_given: bool,
}

impl Program {
    /// The shader that adds up errors; its entry is `scan`.
    pub(super) fn scan(&self) -> String {
        ["const EMITS: bool = false;", &self.shader, self.scan].join("\n")
    }

    /// The shader that writes bytes; its entry is `encode`.
    pub(super) fn encode(&self) -> Option<String> {
        Some(["const EMITS: bool = true;", &self.shader, include_str!("emit.wgsl"), self.emit?].join("\n"))
    }
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
#[derive(Clone, Default)]
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

    fn list(mut self, name: &str, kind: &str, values: impl Iterator<Item = String>) -> Self {
        let texts: Vec<String> = values.collect();
        let kind = format!("array<{kind}, {}>", texts.len());
        let _ = writeln!(self.0, "var<private> {name}: {kind} = {kind}({});", texts.join(", "));
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

    /// True if every choice follows from one rounding, so that the bytes are those of the reference.
    /// Searches compare sums that may differ in their last bits.
    pub fn is_exact(self, is_weighted: bool) -> bool {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => !is_weighted,
            Self::F32 | Self::F16 | Self::Bf16 | Self::Q8_0 | Self::Mxfp4 => true,
            Self::Integers { scales, .. } => scales != Scales::LeastSquares,
            Self::Fp8 { .. } | Self::Table { .. } => true,
            Self::Iq4Nl | Self::Iq4Xs | Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => false,
        }
    }

    /// How a block of 32 weights is written: its place in the order of `blocks_emit.wgsl`, and its bytes.
    fn block_layout(self) -> (usize, usize) {
        match self {
            Self::Q4_0 => (0, 18),
            Self::Q4_1 => (1, 20),
            Self::Q5_0 => (2, 22),
            Self::Q5_1 => (3, 24),
            Self::Q8_0 => (4, 34),
            Self::Mxfp4 => (5, 17),
            // iq4_nl, the only other one that [`Self::block`] is called for.
            _ => (6, 18),
        }
    }

    /// The shaders, for columns with or without importance.
    pub(super) fn program(self, is_weighted: bool) -> Program {
        let means = |program| self.by_row_means(program);
        match self {
            Self::F16 => Self::plain(0),
            Self::Bf16 => Self::plain(1),
            Self::F32 => Self::plain(2),
            Self::Integers { bits, symmetric, scale, group, scales } => {
                integers(Codes { bits, symmetric, scale }, group, scales)
            }
            Self::Fp8 { kind, group, scales } => {
                let mode = if kind == Fp8::E4M3 { 4 } else { 5 };
                let constants = Constants::default().count("MODE", mode).number("TOP", kind.max()).count("BITS", 8);
                let constants = constants.number("MIDDLE", 0.0).flag("SYMMETRIC", true).count("SCALE", 2);
                scaled(&constants, group, scales)
            }
            Self::Q2K => superblock(0, 16, 84, is_weighted),
            Self::Q3K => superblock(1, 16, 110, is_weighted),
            Self::Q4K => superblock(2, 32, 144, is_weighted),
            Self::Q5K => superblock(3, 32, 176, is_weighted),
            Self::Q6K => superblock(4, 16, 210, is_weighted),
            Self::Iq4Xs => superblock(5, 32, 136, is_weighted),
            Self::Iq4Nl => self.block(is_weighted, "nonlinear(row, column)"),
            Self::Q4_0 if is_weighted => means(self.block(true, "weighted_around(row, column, 8.0)")),
            Self::Q5_0 if is_weighted => means(self.block(true, "weighted_around(row, column, 16.0)")),
            Self::Q4_1 if is_weighted => means(self.block(true, "weighted_above(row, column, 15.0)")),
            Self::Q5_1 if is_weighted => means(self.block(true, "weighted_above(row, column, 31.0)")),
            Self::Q4_0 => self.block(false, "around(8.0)"),
            Self::Q5_0 => self.block(false, "around(16.0)"),
            Self::Q4_1 => self.block(false, "above(15.0)"),
            Self::Q5_1 => self.block(false, "above(31.0)"),
            Self::Q8_0 => self.block(false, "bytes()"),
            Self::Mxfp4 => self.block(false, "microscaled()"),
            Self::Table { table, is_nested } => tables(table, is_nested),
        }
    }

    fn plain(mode: usize) -> Program {
        let shader = Constants::default().count("MODE", mode).number("TOP", 0.0).with(&[include_str!("plain.wgsl")]);
        let scan = include_str!("plain_main.wgsl");
        Program { before: None, shader, scan, emit: None, columns: 2048, group: 0, is_given: false }
    }

    /// A block a lane.
    fn block(self, is_weighted: bool, call: &str) -> Program {
        const RUN: usize = 32;
        let (layout, bytes) = self.block_layout();
        let code = format!("fn code_block(row: u32, column: u32) {{ {call}; }}");
        let is_search = is_weighted || self == Self::Iq4Nl;
        let parts: &[&str] = if is_search {
            &[SEARCH, include_str!("weighted.wgsl"), &code]
        } else {
            &[include_str!("blocks.wgsl"), &code]
        };
        let constants = Constants::default().count("RUN", RUN).flag("WEIGHTED", is_weighted);
        let constants = constants.count("LAYOUT", layout).count("BYTES", bytes);
        blocks(constants.with(parts), RUN)
    }

    fn by_row_means(self, program: Program) -> Program {
        debug_assert!(self.needs_row_means(), "only these are weighed by row");
        let means = Constants::default().with(&[include_str!("means.wgsl")]);
        Program { before: Some((means, Before::Rows)), ..program }
    }
}

fn integers(codes: Codes, group: usize, scales: Scales) -> Program {
    let scale = match codes.scale {
        ScaleType::F16 => 0,
        ScaleType::Bf16 => 1,
        ScaleType::F32 => 2,
    };
    let constants = Constants::default()
        .count("MODE", 3)
        .number("TOP", f32::from(codes.top()))
        .count("BITS", codes.bits as usize)
        .number("MIDDLE", f32::from(codes.middle()))
        .flag("SYMMETRIC", codes.symmetric)
        .count("SCALE", scale);
    scaled(&constants, group, scales)
}

/// Weights that are rounded one by one under scales that are found before, or given.
fn scaled(constants: &Constants, group: usize, scales: Scales) -> Program {
    let is_given = scales == Scales::Given;
    let before = (!is_given).then(|| {
        // A search sums in eight lanes, as the reference does.
        let side = match (scales, group) {
            (Scales::LeastSquares, _) => 8,
            (_, 0) => 64,
            _ => (group.next_power_of_two() / 8).clamp(2, 64),
        };
        let mut before = constants.clone().count("SIDE", side).flag("SEARCH", scales == Scales::LeastSquares);
        let none = Place { below: 0, part: [0; 2] };
        let (clips, whole, last) = match scales {
            Scales::Percentile { whole, last } => (true, whole, last),
            _ => (false, none, none),
        };
        before = before.flag("CLIPS", clips);
        for (name, place) in [("WHOLE", whole), ("LAST", last)] {
            let [part, rest] = place.part.map(f32::from_bits);
            before = before
                .count(&format!("{name}_BELOW"), place.below as usize)
                .number(&format!("{name}_PART"), part)
                .number(&format!("{name}_REST"), rest);
        }
        (before.with(&[include_str!("scales.wgsl")]), Before::Groups(side))
    });
    Program {
        before,
        shader: constants.clone().with(&[include_str!("plain.wgsl")]),
        scan: include_str!("plain_main.wgsl"),
        emit: Some(include_str!("plain_emit.wgsl")),
        columns: 2048,
        group,
        is_given,
    }
}

/// The entries of a shader that has a block a lane.
fn blocks(shader: String, run: usize) -> Program {
    Program {
        before: None,
        shader: shader + include_str!("blocks_lane.wgsl"),
        scan: include_str!("lanes_main.wgsl"),
        emit: Some(include_str!("blocks_emit.wgsl")),
        columns: 64 * run,
        group: 0,
        is_given: false,
    }
}

fn superblock(kind: usize, run: usize, bytes: usize, is_weighted: bool) -> Program {
    let constants = Constants::default().count("KIND", kind).count("RUN", run).flag("WEIGHTED", is_weighted);
    Program {
        before: None,
        shader: constants.count("BYTES", bytes).with(&[SEARCH, include_str!("superblocks.wgsl")]),
        scan: include_str!("lanes_main.wgsl"),
        emit: Some(include_str!("superblocks_emit.wgsl")),
        columns: 64 * run,
        group: 0,
        is_given: false,
    }
}

fn tables(table: Table, is_nested: bool) -> Program {
    const RUN: usize = crate::kernels::bnb::BLOCK;
    let (order, bounds) = (table.order(), table.bounds());
    let number = |value: f32| format!("{value:?}f");
    let constants = Constants::default().count("RUN", RUN).flag("NESTED", is_nested).count("LAYOUT", 7);
    let shader = constants
        .count("BYTES", RUN / 2)
        .list("levels", "f32", order.iter().map(|&code| number(table.values()[usize::from(code)])))
        .list("bounds", "f32", bounds.iter().map(|&bound| number(bound)))
        .list("order", "u32", order.iter().map(|code| format!("{code}u")))
        .with(&[
            include_str!("blocks.wgsl"),
            include_str!("tables.wgsl"),
            "fn code_block(row: u32, column: u32) { table_codes(row, column); }",
        ]);
    Program { group: RUN, is_given: is_nested, ..blocks(shader, RUN) }
}
