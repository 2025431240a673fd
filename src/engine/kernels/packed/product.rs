//! The products themselves: a chunk of a tile with a group of tokens, in registers.

use std::cell::RefCell;

use rayon::prelude::*;

use super::super::Level;
use super::super::activations::{Activations, CHUNK, RUN, TOKENS, groups};
use super::super::lanes::{self, Lanes, STEP};
use super::super::shared_out::SharedOut;
use super::layout::{Header, Plan};
use super::spread::{self, Spread};

/// Codes that one task multiplies at least, so that it outweighs its scheduling.
const TASK_CODES: usize = 64 * 1024;

/// Most tiles that share one pass over the activations.
const MAX_TILES: usize = 4;

/// How far ahead of the codes in use the next are asked for, in bytes.
const AHEAD: usize = 2048;

/// What a thread keeps from task to task.
#[derive(Default)]
struct Scratch {
    spreads: Vec<Spread>,
    totals: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Operands of one kernel call.
#[derive(Clone, Copy, Debug)]
struct Meeting<'a> {
    codes: *const u8,
    scales: *const f32,
    minimums: *const f32,
    /// Activations of the group of tokens.
    x: *const i8,
    x_scales: *const f32,
    x_sums: *const f32,
    x_int_sums: *const i32,
    /// From one run of scales or sums to the next.
    x_stride: usize,
    /// Runs of 32 columns.
    runs: usize,
    /// What codes on planes stand for, if they do not count themselves.
    table: &'a [i8; 16],
    totals: *mut f32,
    /// From one token's totals to the next.
    totals_stride: usize,
}

type Kernel = unsafe fn(&Meeting<'_>);

/// What distinguishes kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Codes up to 15 with a scale a run of 32; activations with a scale a run.
    Four,
    /// Codes up to 63, likewise.
    Six,
    /// Codes up to 15; activations with a scale a chunk.
    FourChunk,
    /// Codes up to 31, likewise.
    FiveChunk,
    /// Codes up to 3 with a scale a run of 16, likewise.
    SixteenChunk,
    /// Codes up to 7 with a scale a run of 16 and a minimum of 4 times that, likewise.
    SixteenBelow4,
    /// Codes up to 63 with a scale a run of 16 and a minimum of 32 times that, likewise.
    SixteenBelow32,
    /// Signed codes; activations with a scale a run; no minimums.
    Signed,
    /// Signed codes; activations with a scale a chunk; no minimums.
    SignedChunk,
    /// Signed codes, with minimums.
    SignedMinimums,
}

impl Kind {
    fn of(plan: &Plan) -> Self {
        match (plan.header, plan.bits) {
            (Header::Eight, 4) => Self::FourChunk,
            (Header::Eight, _) => Self::FiveChunk,
            (Header::EightSigned, _) => Self::SignedChunk,
            (Header::SixteenPairs, _) => Self::SixteenChunk,
            (Header::Sixteen { shift: 4 }, _) => Self::SixteenBelow4,
            (Header::Sixteen { .. }, _) => Self::SixteenBelow32,
            _ if plan.table.is_some() => Self::Signed,
            (Header::Tile(int), 8) if int.has_zeros || int.bits != 8 => Self::SignedMinimums,
            (_, 8) => Self::Signed,
            (_, ..=4) => Self::Four,
            _ => Self::Six,
        }
    }

    /// True if runs of 16 have scales of their own.
    fn has_sixteens(self) -> bool {
        matches!(self, Self::SixteenChunk | Self::SixteenBelow4 | Self::SixteenBelow32)
    }
}

/// There are no minimums.
const NO_MINIMUMS: i32 = 0;

/// Minimums are in [`Spread::minimums`]. Any number above zero says that they are so many times the scale.
const STORED_MINIMUMS: i32 = -1;

/// A chunk of a tile with `T` tokens, added to their totals.
///
/// `FLUSH` steps add up before they are widened, none for signed codes; runs have `LEN` columns; the
/// activations have a scale a run, or else (`CHUNKED`) one a chunk. `MINIMUMS` is [`NO_MINIMUMS`],
/// [`STORED_MINIMUMS`] or, beside chunked activations, how many scales they are.
///
/// # Safety
/// The CPU has the instructions of `L`, and the pointers of `m` are good for its runs and `T` tokens.
#[inline(always)]
unsafe fn meet<
    L: Lanes,
    const T: usize,
    const FLUSH: usize,
    const LEN: usize,
    const CHUNKED: bool,
    const MINIMUMS: i32,
>(
    m: &Meeting<'_>,
) {
    // SAFETY: the caller promises all that is asked here.
    unsafe {
        let mut partial = [L::splat(0.0); T];
        for run in 0..m.runs * (RUN / LEN) {
            let mut ints = [L::zero_ints(); T];
            if FLUSH == 0 {
                for (lane, ints) in ints.iter_mut().enumerate() {
                    *ints = L::signed_zero(*m.x_int_sums.add(run * m.x_stride + lane));
                }
                for step in run * (LEN / STEP)..(run + 1) * (LEN / STEP) {
                    let at = m.codes.add(step * L::ROWS * STEP);
                    let codes = L::signed(L::codes(at));
                    if T == 1 {
                        L::prefetch(at.wrapping_add(AHEAD));
                    }
                    for (lane, ints) in ints.iter_mut().enumerate() {
                        *ints = L::signed_add(*ints, codes, m.x.add((step * T + lane) * STEP));
                    }
                }
            } else {
                for flush in 0..(LEN / STEP).checked_div(FLUSH).unwrap_or_default() {
                    let mut sums = [L::narrow_zero(); T];
                    for step in 0..FLUSH {
                        let step = run * (LEN / STEP) + flush * FLUSH + step;
                        let codes = L::codes(m.codes.add(step * L::ROWS * STEP));
                        for (lane, sum) in sums.iter_mut().enumerate() {
                            *sum = L::narrow_add(*sum, codes, m.x.add((step * T + lane) * STEP));
                        }
                    }
                    for (ints, sum) in ints.iter_mut().zip(sums) {
                        *ints = L::add_ints(*ints, L::narrow_ints(sum));
                    }
                }
            }
            let scale = L::load(m.scales.add(run * L::ROWS));
            for (lane, partial) in partial.iter_mut().enumerate() {
                let scale =
                    if CHUNKED { scale } else { L::mul(scale, L::splat(*m.x_scales.add(run * m.x_stride + lane))) };
                let x_sum = m.x_sums.wrapping_add(run * m.x_stride + lane);
                *partial = L::mul_add(raised::<L, MINIMUMS>(ints[lane], x_sum), scale, *partial);
            }
            if MINIMUMS == STORED_MINIMUMS {
                let minimum = L::load(m.minimums.add(run * L::ROWS));
                for (lane, partial) in partial.iter_mut().enumerate() {
                    *partial = L::mul_sub(minimum, L::splat(*m.x_sums.add(run * m.x_stride + lane)), *partial);
                }
            }
        }
        finish::<L, T, CHUNKED>(m, partial);
    }
}

/// Sums of codes as floats, less what minimums of `MINIMUMS` scales make of the activations' sum:
/// whole numbers below 2²⁴, which is exact.
///
/// # Safety
/// The CPU has the instructions of `L`; `x_sum` is good where there are such minimums.
#[inline(always)]
unsafe fn raised<L: Lanes, const MINIMUMS: i32>(ints: L::Ints, x_sum: *const f32) -> L::Floats {
    // SAFETY: the caller promises all that is asked here.
    unsafe {
        let sum = L::to_floats(ints);
        if MINIMUMS > 0 { L::mul_sub(L::splat(MINIMUMS as f32), L::splat(*x_sum), sum) } else { sum }
    }
}

/// As [`meet`], for few tokens: codes of `BITS` bits (4 or 5) come straight from the tile's planes.
///
/// Integer sums are exact and floats are added in the order of [`meet`], so both give the same bits.
///
/// # Safety
/// As [`meet`]; `m.codes` are the planes of the chunk.
#[inline(always)]
unsafe fn meet_planes<L: Lanes, const T: usize, const BITS: u8, const CHUNKED: bool>(m: &Meeting<'_>) {
    let vector = L::ROWS * STEP;
    // SAFETY: the caller promises all that is asked here.
    unsafe {
        let high = m.codes.add(m.runs * 4 * vector);
        let mut partial = [L::splat(0.0); T];
        for run in 0..m.runs {
            // Eight steps of four bits fit one sum, four of five bits.
            let mut sums = [[L::narrow_zero(); T]; 2];
            for step in 0..4 {
                let at = m.codes.add((run * 4 + step) * vector);
                let raw = L::codes(at);
                L::prefetch(at.wrapping_add(AHEAD));
                for half in 0..2 {
                    let mut codes = L::shift_right(raw, 4 * half as u32, 0x0f);
                    let at = step + 4 * half;
                    if BITS == 5 {
                        let bits = L::codes(high.add(run * vector));
                        let bits = if at < 4 {
                            L::shift_left(bits, 4 - at as u32, 0x10)
                        } else {
                            L::shift_right(bits, at as u32 - 4, 0x10)
                        };
                        codes = L::or(codes, bits);
                    }
                    for (lane, sum) in sums[if BITS == 4 { 0 } else { half }].iter_mut().enumerate() {
                        *sum = L::narrow_add(*sum, codes, m.x.add(((run * 8 + at) * T + lane) * STEP));
                    }
                }
            }
            let scale = L::load(m.scales.add(run * L::ROWS));
            let minimum = L::load(m.minimums.add(run * L::ROWS));
            for (lane, partial) in partial.iter_mut().enumerate() {
                let mut ints = L::narrow_ints(sums[0][lane]);
                if BITS == 5 {
                    ints = L::add_ints(ints, L::narrow_ints(sums[1][lane]));
                }
                let at = run * m.x_stride + lane;
                let scale = if CHUNKED { scale } else { L::mul(scale, L::splat(*m.x_scales.add(at))) };
                *partial = L::mul_add(L::to_floats(ints), scale, *partial);
                *partial = L::mul_sub(minimum, L::splat(*m.x_sums.add(at)), *partial);
            }
        }
        finish::<L, T, CHUNKED>(m, partial);
    }
}

/// As [`meet_planes`], for six bits with a scale a run of 16 and minimums of 32 scales.
///
/// # Safety
/// As [`meet_planes`].
#[inline(always)]
unsafe fn meet_sixes<L: Lanes, const T: usize>(m: &Meeting<'_>) {
    let vector = L::ROWS * STEP;
    // SAFETY: the caller promises all that is asked here.
    unsafe {
        let mut partial = [L::splat(0.0); T];
        for run in 0..m.runs {
            let mut ints = [[L::zero_ints(); T]; 2];
            // Steps 0, 2, 4 and 6, then the odd ones.
            for first in 0..2 {
                let at = |part: usize| m.codes.wrapping_add((run * 6 + 2 * part + first) * vector);
                let parts = [L::codes(at(0)), L::codes(at(1)), L::codes(at(2))];
                if first == 0 || vector >= 64 {
                    for part in 0..3 {
                        L::prefetch(at(part).wrapping_add(AHEAD));
                    }
                }
                let low = L::or(L::shift_right(parts[0], 6, 0x03), L::shift_right(parts[1], 4, 0x0c));
                let codes = [
                    L::shift_right(parts[0], 0, 0x3f),
                    L::shift_right(parts[1], 0, 0x3f),
                    L::shift_right(parts[2], 0, 0x3f),
                    L::or(low, L::shift_right(parts[2], 2, 0x30)),
                ];
                for (half, ints) in ints.iter_mut().enumerate() {
                    let x = m.x.add((run * 8 + 4 * half + first) * T * STEP);
                    for (lane, ints) in ints.iter_mut().enumerate() {
                        // Two steps of six bits fit.
                        let sum = L::narrow_add(L::narrow_zero(), codes[2 * half], x.add(lane * STEP));
                        let sum = L::narrow_add(sum, codes[2 * half + 1], x.add((2 * T + lane) * STEP));
                        *ints = L::add_ints(*ints, L::narrow_ints(sum));
                    }
                }
            }
            for (half, ints) in ints.into_iter().enumerate() {
                let at = run * 2 + half;
                let scale = L::load(m.scales.add(at * L::ROWS));
                for (lane, partial) in partial.iter_mut().enumerate() {
                    let sum = raised::<L, 32>(ints[lane], m.x_sums.add(at * m.x_stride + lane));
                    *partial = L::mul_add(sum, scale, *partial);
                }
            }
        }
        finish::<L, T, true>(m, partial);
    }
}

/// As [`meet_planes`], for four bits that stand for the values of a table; without minimums.
///
/// # Safety
/// As [`meet_planes`].
#[inline(always)]
unsafe fn meet_levels<L: Lanes, const T: usize, const CHUNKED: bool>(m: &Meeting<'_>) {
    let vector = L::ROWS * STEP;
    // SAFETY: the caller promises all that is asked here.
    unsafe {
        let table = L::table(m.table);
        let mut partial = [L::splat(0.0); T];
        for run in 0..m.runs {
            let mut ints = [L::zero_ints(); T];
            for (lane, ints) in ints.iter_mut().enumerate() {
                *ints = L::signed_zero(*m.x_int_sums.add(run * m.x_stride + lane));
            }
            for step in 0..4 {
                let at = m.codes.add((run * 4 + step) * vector);
                let raw = L::codes(at);
                L::prefetch(at.wrapping_add(AHEAD));
                for half in 0..2 {
                    let codes = L::signed(L::lookup(table, L::shift_right(raw, 4 * half as u32, 0x0f)));
                    let at = run * 8 + 4 * half + step;
                    for (lane, ints) in ints.iter_mut().enumerate() {
                        *ints = L::signed_add(*ints, codes, m.x.add((at * T + lane) * STEP));
                    }
                }
            }
            let scale = L::load(m.scales.add(run * L::ROWS));
            for (lane, partial) in partial.iter_mut().enumerate() {
                let at = run * m.x_stride + lane;
                let scale = if CHUNKED { scale } else { L::mul(scale, L::splat(*m.x_scales.add(at))) };
                *partial = L::mul_add(L::to_floats(ints[lane]), scale, *partial);
            }
        }
        finish::<L, T, CHUNKED>(m, partial);
    }
}

/// Adds a chunk's sums to the totals.
///
/// # Safety
/// As [`meet`].
#[inline(always)]
unsafe fn finish<L: Lanes, const T: usize, const CHUNKED: bool>(m: &Meeting<'_>, partial: [L::Floats; T]) {
    // SAFETY: the caller promises totals of `T` tokens.
    unsafe {
        for (lane, partial) in partial.into_iter().enumerate() {
            let scale = if CHUNKED { *m.x_scales.add(lane) } else { 1.0 };
            let total = m.totals.add(lane * m.totals_stride);
            L::store(total, L::mul_add(partial, L::splat(scale), L::load(total)));
        }
    }
}

/// A level with its kernels compiled for it.
trait Compiled: Lanes {
    /// The kernel of `kind` for a group of `count` tokens.
    fn kernel(kind: Kind, count: usize) -> Kernel;

    /// The kernel on planes for a group of one token, or else two; none where codes must be spread.
    fn planes_kernel(kind: Kind, bits: u8, is_one: bool) -> Option<Kernel>;

    /// [`spread::spread`] compiled for the level.
    ///
    /// # Safety
    /// As there.
    unsafe fn spread(plan: &Plan, tile: &[u8], start: usize, has_codes: bool, out: &mut Spread);
}

/// Implements [`Compiled`] with functions that switch a level's features on.
macro_rules! compiled {
    ($level:ident, $lanes:ty, $(#[$feature:meta])*) => {
        impl Compiled for $lanes {
            fn kernel(kind: Kind, count: usize) -> Kernel {
                $(#[$feature])*
                unsafe fn meet_here<
                    const T: usize,
                    const FLUSH: usize,
                    const LEN: usize,
                    const CHUNKED: bool,
                    const MINIMUMS: i32,
                >(
                    m: &Meeting<'_>,
                ) {
                    // SAFETY: the level was checked, the operands are the caller's promise.
                    unsafe { meet::<$lanes, T, FLUSH, LEN, CHUNKED, MINIMUMS>(m) }
                }
                macro_rules! by_count {
                    ($flush:literal, $len:literal, $chunked:literal, $minimums:expr) => {
                        match count {
                            1 => meet_here::<1, $flush, $len, $chunked, { $minimums }>,
                            2 => meet_here::<2, $flush, $len, $chunked, { $minimums }>,
                            _ => meet_here::<TOKENS, $flush, $len, $chunked, { $minimums }>,
                        }
                    };
                }
                match kind {
                    Kind::Four => by_count!(8, 32, false, STORED_MINIMUMS),
                    Kind::Six => by_count!(2, 32, false, STORED_MINIMUMS),
                    Kind::FourChunk => by_count!(8, 32, true, STORED_MINIMUMS),
                    Kind::FiveChunk => by_count!(4, 32, true, STORED_MINIMUMS),
                    Kind::SixteenChunk => by_count!(4, 16, true, STORED_MINIMUMS),
                    Kind::SixteenBelow4 => by_count!(4, 16, true, 4),
                    Kind::SixteenBelow32 => by_count!(2, 16, true, 32),
                    Kind::Signed => by_count!(0, 32, false, NO_MINIMUMS),
                    Kind::SignedChunk => by_count!(0, 32, true, NO_MINIMUMS),
                    Kind::SignedMinimums => by_count!(0, 32, false, STORED_MINIMUMS),
                }
            }

            fn planes_kernel(kind: Kind, bits: u8, is_one: bool) -> Option<Kernel> {
                $(#[$feature])*
                unsafe fn planes<const T: usize, const BITS: u8, const CHUNKED: bool>(m: &Meeting<'_>) {
                    // SAFETY: the level was checked, the operands are the caller's promise.
                    unsafe { meet_planes::<$lanes, T, BITS, CHUNKED>(m) }
                }
                $(#[$feature])*
                unsafe fn sixes<const T: usize>(m: &Meeting<'_>) {
                    // SAFETY: as above.
                    unsafe { meet_sixes::<$lanes, T>(m) }
                }
                $(#[$feature])*
                unsafe fn levels<const T: usize, const CHUNKED: bool>(m: &Meeting<'_>) {
                    // SAFETY: as above.
                    unsafe { meet_levels::<$lanes, T, CHUNKED>(m) }
                }
                let (one, two): (Kernel, Kernel) = match (kind, bits) {
                    (Kind::Four, 4) => (planes::<1, 4, false>, planes::<2, 4, false>),
                    (Kind::Six, 5) => (planes::<1, 5, false>, planes::<2, 5, false>),
                    (Kind::FourChunk, 4) => (planes::<1, 4, true>, planes::<2, 4, true>),
                    (Kind::FiveChunk, 5) => (planes::<1, 5, true>, planes::<2, 5, true>),
                    (Kind::SixteenBelow32, 6) => (sixes::<1>, sixes::<2>),
                    (Kind::Signed, 4) => (levels::<1, false>, levels::<2, false>),
                    (Kind::SignedChunk, 4) => (levels::<1, true>, levels::<2, true>),
                    _ => return None,
                };
                Some(if is_one { one } else { two })
            }

            unsafe fn spread(plan: &Plan, tile: &[u8], start: usize, has_codes: bool, out: &mut Spread) {
                $(#[$feature])*
                unsafe fn spread_here(plan: &Plan, tile: &[u8], start: usize, has_codes: bool, out: &mut Spread) {
                    // SAFETY: the level was checked, the operands are the caller's promise.
                    unsafe { spread::spread::<$lanes>(plan, tile, start, has_codes, out) }
                }
                // SAFETY: the caller promises the level.
                unsafe { spread_here(plan, tile, start, has_codes, out) }
            }
        }
    };
}

lanes::for_every_level!(compiled);

/// Multiplies `rows` rows in tiles with every activation row: `out[token × rows + row]`.
pub(super) fn matmul(level: Level, plan: &Plan, tiles: &[u8], rows: usize, activations: &Activations, out: &mut [f32]) {
    let target = SharedOut::new(out);
    let tokens = activations.rows();
    let per_task = (TASK_CODES / (plan.cols * plan.tile_rows).max(1)).clamp(1, MAX_TILES);
    let width = per_task * plan.tile_rows;
    tiles.par_chunks(per_task * plan.tile_bytes()).enumerate().for_each(|(task, tiles)| {
        SCRATCH.with_borrow_mut(|Scratch { spreads, totals }| {
            if spreads.len() < per_task {
                spreads.resize_with(per_task, Spread::new);
            }
            let spreads = &mut spreads[..per_task];
            totals.clear();
            totals.resize(tokens * width, 0.0f32);
            lanes::with_lanes!(level, L => several_tiles::<L>(plan, tiles, activations, spreads, totals));
            let first = task * width;
            let count = width.min(rows - first);
            for (token, totals) in totals.chunks_exact(width).enumerate() {
                // SAFETY: each task owns the columns of its rows.
                unsafe { target.write_run(token * rows + first, &totals[..count]) };
            }
        });
    });
}

/// A few tiles with all tokens; `totals` has `spreads.len()` tiles a token.
///
/// The CPU must have the instructions of `L`.
fn several_tiles<L: Compiled>(
    plan: &Plan,
    tiles: &[u8],
    activations: &Activations,
    spreads: &mut [Spread],
    totals: &mut [f32],
) {
    let kind = Kind::of(plan);
    let tokens = activations.rows();
    // Few tokens do not repay spreading codes, and read tile after tile as fast as memory gives them.
    let is_few = tokens < TOKENS;
    let on_planes = if is_few { L::planes_kernel(kind, plan.bits, true) } else { None };
    let kernels = match on_planes {
        Some(one) => [one, L::planes_kernel(kind, plan.bits, false).unwrap_or(one), one],
        None => [1, 2, TOKENS].map(|count| L::kernel(kind, count)),
    };
    let totals_stride = spreads.len() * L::ROWS;
    assert_eq!(plan.tile_rows, L::ROWS, "tiles of this level");
    assert_eq!(totals.len(), tokens * totals_stride, "a total for every token and row");
    let at_once = if is_few { 1 } else { spreads.len() };
    let tile_bytes = plan.tile_bytes();
    for (pass, tiles) in tiles.chunks(at_once * tile_bytes).enumerate() {
        for start in (0..plan.cols).step_by(CHUNK) {
            for (tile, spread) in tiles.chunks_exact(tile_bytes).zip(spreads.iter_mut()) {
                // SAFETY: the level's rows by the assertion above.
                unsafe { L::spread(plan, tile, start, on_planes.is_none(), spread) };
            }
            for (first, count) in groups(tokens) {
                let kernel = kernels[if count == TOKENS { 2 } else { count - 1 }];
                let x_sums = if kind.has_sixteens() {
                    activations.half_sums(start, first)
                } else {
                    activations.sums(start, first)
                };
                for (index, (tile, spread)) in tiles.chunks_exact(tile_bytes).zip(spreads.iter()).enumerate() {
                    let codes = if plan.is_signed || on_planes.is_some() {
                        spread::stored_codes(plan, tile, start)
                    } else {
                        spread.codes.as_slice()
                    };
                    let meeting = Meeting {
                        codes: codes.as_ptr(),
                        scales: spread.scales.as_ptr(),
                        minimums: spread.minimums.as_ptr(),
                        x: activations.codes(start, first, count).as_ptr(),
                        x_scales: activations.scales(start, first).as_ptr(),
                        x_sums: x_sums.as_ptr(),
                        x_int_sums: activations.int_sums(start, first).as_ptr(),
                        x_stride: tokens,
                        runs: CHUNK.min(plan.cols - start) / RUN,
                        table: plan.table.unwrap_or(&[0; 16]),
                        totals: totals[first * totals_stride + (pass * at_once + index) * L::ROWS..].as_mut_ptr(),
                        totals_stride,
                    };
                    // SAFETY: codes, scales and activations of the chunk's runs, and totals of `count`
                    // tokens, are in bounds; the level was chosen because the CPU has it.
                    unsafe { kernel(&meeting) };
                }
            }
        }
    }
}
