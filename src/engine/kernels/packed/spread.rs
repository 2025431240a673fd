//! A chunk of a tile as the products want it: a byte a code, a float a scale and, where these are stored, a minimum.

use super::super::activations::{CHUNK, RUN};
use super::super::lanes::{Lanes, STEP};
use super::super::nonlinear;
use super::layout::{Header, IntLayout, Plan};
use super::repack::planes;

/// Most rows a tile has at any level.
const MAX_ROWS: usize = 16;

/// One chunk of one tile; row after row in every place. Smaller tiles use the first part of each.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(super) struct Spread {
    pub codes: [u8; CHUNK * MAX_ROWS],
    pub scales: [f32; CHUNK / 16 * MAX_ROWS],
    pub minimums: [f32; CHUNK / 16 * MAX_ROWS],
}

impl Spread {
    pub(super) fn new() -> Self {
        Self {
            codes: [0; CHUNK * MAX_ROWS],
            scales: [0.0; CHUNK / 16 * MAX_ROWS],
            minimums: [0.0; CHUNK / 16 * MAX_ROWS],
        }
    }
}

/// Spreads the chunk of `tile` that starts at column `start`: scales and minimums, and, if
/// `has_codes`, the codes. Signed codes need no spreading, see [`stored_codes`].
///
/// # Safety
/// The CPU has the instructions of `L`, and `plan` has its rows.
#[inline(always)]
pub(super) unsafe fn spread<L: Lanes>(plan: &Plan, tile: &[u8], start: usize, has_codes: bool, out: &mut Spread) {
    let (range, runs) = plan.chunk(start);
    let (header, codes) = tile[range].split_at(plan.header_bytes(runs));
    // SAFETY: `header` and `tile` are as long as the plan says; the caller promises the instructions.
    unsafe {
        match plan.header {
            Header::Tile(int) => int_scales::<L>(plan, int, tile, start, runs, out),
            _ => scales::<L>(plan, header, runs, out),
        }
    }
    if plan.is_signed || !has_codes {
        return;
    }
    if let Some(table) = plan.table {
        // SAFETY: the plan's codes of `runs` runs, which also fit the output; the caller promises the instructions.
        return unsafe { table_values::<L>(table, codes, runs, &mut out.codes) };
    }
    let mut shift = 0;
    let mut source = codes;
    for &width in planes(plan.bits) {
        let (plane, rest) = source.split_at(runs * RUN * L::ROWS * usize::from(width) / 8);
        match (width, shift) {
            (6, _) => plane_of_six(plane, RUN * L::ROWS, &mut out.codes),
            (4, _) => first_plane::<4>(plane, RUN * L::ROWS, &mut out.codes),
            (2, _) => first_plane::<2>(plane, RUN * L::ROWS, &mut out.codes),
            (1, 2) => next_plane::<2>(plane, RUN * L::ROWS, &mut out.codes),
            _ => next_plane::<4>(plane, RUN * L::ROWS, &mut out.codes),
        }
        shift += width;
        source = rest;
    }
}

/// The codes of a chunk as they lie in the tile, in planes.
pub(super) fn stored_codes<'a>(plan: &Plan, tile: &'a [u8], start: usize) -> &'a [u8] {
    let (range, runs) = plan.chunk(start);
    &tile[range][plan.header_bytes(runs)..]
}

#[inline(always)]
fn first_plane<const WIDTH: usize>(plane: &[u8], run_len: usize, codes: &mut [u8]) {
    let run_bytes = run_len * WIDTH / 8;
    for (plane, codes) in plane.chunks_exact(run_bytes).zip(codes.chunks_exact_mut(run_len)) {
        for (part, codes) in codes.chunks_exact_mut(run_bytes).enumerate() {
            for (code, &byte) in codes.iter_mut().zip(plane) {
                *code = byte >> (part * WIDTH) & (0xff >> (8 - WIDTH));
            }
        }
    }
}

/// Adds a plane of single bits.
#[inline(always)]
fn next_plane<const SHIFT: usize>(plane: &[u8], run_len: usize, codes: &mut [u8]) {
    let run_bytes = run_len / 8;
    for (plane, codes) in plane.chunks_exact(run_bytes).zip(codes.chunks_exact_mut(run_len)) {
        for (part, codes) in codes.chunks_exact_mut(run_bytes).enumerate() {
            for (code, &byte) in codes.iter_mut().zip(plane) {
                *code |= (byte >> part & 1) << SHIFT;
            }
        }
    }
}

#[inline(always)]
fn plane_of_six(plane: &[u8], run_len: usize, codes: &mut [u8]) {
    let quarter = run_len / 4;
    for (plane, codes) in plane.chunks_exact(3 * quarter).zip(codes.chunks_exact_mut(run_len)) {
        let (stored, last) = codes.split_at_mut(3 * quarter);
        for (code, &byte) in stored.iter_mut().zip(plane) {
            *code = byte & 0x3f;
        }
        let (low, rest) = plane.split_at(quarter);
        let (middle, high) = rest.split_at(quarter);
        for (code, ((&low, &middle), &high)) in last.iter_mut().zip(low.iter().zip(middle).zip(high)) {
            *code = low >> 6 | (middle >> 4 & 0x0c) | (high >> 2 & 0x30);
        }
    }
}

/// What codes of four bits stand for, as signed bytes.
///
/// # Safety
/// The CPU has the instructions of `L`; `plane` and `codes` hold `runs` runs.
#[inline(always)]
unsafe fn table_values<L: Lanes>(table: &[i8; 16], plane: &[u8], runs: usize, codes: &mut [u8]) {
    let vector = L::ROWS * STEP;
    // SAFETY: four vectors of the plane and eight of the codes a run, as the caller promises.
    unsafe {
        let table = L::table(table);
        for step in 0..runs * 4 {
            let raw = L::codes(plane.as_ptr().add(step * vector));
            let to = codes.as_mut_ptr().add((step / 4 * 8 + step % 4) * vector);
            L::store_codes(to, L::lookup(table, L::shift_right(raw, 0, 0x0f)));
            L::store_codes(to.add(4 * vector), L::lookup(table, L::shift_right(raw, 4, 0x0f)));
        }
    }
}

/// # Safety
/// As [`spread`]; `header` is that of a chunk of `runs` runs.
#[inline(always)]
unsafe fn scales<L: Lanes>(plan: &Plan, header: &[u8], runs: usize, out: &mut Spread) {
    let rows = L::ROWS;
    let (scales, minimums) = (out.scales.as_mut_ptr(), out.minimums.as_mut_ptr());
    let from = header.as_ptr();
    // SAFETY: places below the header's length by the plan, and below sixteen runs in the output.
    unsafe {
        match plan.header {
            Header::Halves { shift, has_offset } => {
                for run in 0..runs {
                    let scale = L::load_halves(from.add(run * rows * 2));
                    L::store(scales.add(run * rows), scale);
                    let minimum = if has_offset {
                        L::mul(L::splat(-1.0), L::load_halves(from.add((runs + run) * rows * 2)))
                    } else {
                        L::mul(L::splat(f32::from(shift)), scale)
                    };
                    L::store(minimums.add(run * rows), minimum);
                }
            }
            Header::Eight => {
                let (scale, minimum) = (L::load_halves(from), L::load_halves(from.add(rows * 2)));
                for run in 0..8 {
                    let bytes = from.add((4 + run) * rows);
                    L::store(scales.add(run * rows), L::mul(scale, L::load_bytes(bytes)));
                    L::store(minimums.add(run * rows), L::mul(minimum, L::load_bytes(bytes.add(8 * rows))));
                }
            }
            Header::Sixteen { .. } => {
                let scale = L::load_halves(from);
                less::<L>(scale, 128.0, from.add(2 * rows), 16, scales);
            }
            Header::EightSigned => {
                let scale = L::load_halves(from);
                less::<L>(scale, 32.0, from.add(2 * rows), 8, scales);
            }
            Header::Exponents => {
                for (scale, &byte) in out.scales.iter_mut().zip(&header[..runs * rows]) {
                    *scale = nonlinear::e8m0_half(byte);
                }
            }
            Header::SixteenPairs => {
                let (scale, minimum) = (L::load_halves(from), L::load_halves(from.add(rows * 2)));
                let mut parts = [[0u8; MAX_ROWS]; 2];
                for run in 0..16 {
                    for (row, &pair) in header[(4 + run) * rows..(5 + run) * rows].iter().enumerate() {
                        parts[0][row] = pair & 0x0f;
                        parts[1][row] = pair >> 4;
                    }
                    L::store(scales.add(run * rows), L::mul(scale, L::load_bytes(parts[0].as_ptr())));
                    L::store(minimums.add(run * rows), L::mul(minimum, L::load_bytes(parts[1].as_ptr())));
                }
            }
            Header::Tile(_) => {}
        }
    }
}

/// Scales of `count` runs: `scale × (byte − offset)`, which is exact.
///
/// # Safety
/// The CPU has the instructions of `L`; `bytes` and `out` hold a vector a run.
#[inline(always)]
unsafe fn less<L: Lanes>(scale: L::Floats, offset: f32, bytes: *const u8, count: usize, out: *mut f32) {
    // SAFETY: the caller promises a vector a run.
    unsafe {
        let below = L::mul(scale, L::splat(-offset));
        for run in 0..count {
            L::store(out.add(run * L::ROWS), L::mul_add(L::load_bytes(bytes.add(run * L::ROWS)), scale, below));
        }
    }
}

/// # Safety
/// As [`spread`].
#[inline(always)]
unsafe fn int_scales<L: Lanes>(plan: &Plan, int: IntLayout, tile: &[u8], start: usize, runs: usize, out: &mut Spread) {
    let (rows, width) = (L::ROWS, plan.scale_bytes(int));
    let groups = int.groups(plan.cols);
    let head = &tile[..plan.head_bytes()];
    // Signed codes are 128 less than the file's.
    let below = if plan.is_signed { 128.0 } else { 0.0 };
    for run in 0..runs {
        let group = (start + run * RUN) / int.group_len(plan.cols);
        let at = head[group * rows * width..].as_ptr();
        // SAFETY: a vector of scales, and one of zeros where there are any, for each group; `run` is below 8.
        unsafe {
            let scale = if width == 2 { L::load_halves(at) } else { L::load(at.cast()) };
            let zero = if int.has_zeros {
                L::load_bytes(head[groups * rows * width + group * rows..].as_ptr())
            } else {
                L::splat(f32::from(int.middle()))
            };
            let zero = L::mul_add(zero, L::splat(1.0), L::splat(-below));
            L::store(out.scales.as_mut_ptr().add(run * rows), scale);
            L::store(out.minimums.as_mut_ptr().add(run * rows), L::mul(scale, zero));
        }
    }
}
