//! A chunk of a tile as the products want it: a byte a code, a float a scale and minimum.

use super::super::activations::{CHUNK, RUN};
use super::super::lanes::Lanes;
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
    let mut shift = 0;
    let mut source = codes;
    for &width in planes(plan.bits) {
        let (plane, rest) = source.split_at(runs * RUN * L::ROWS * usize::from(width) / 8);
        match (width, shift) {
            (4, _) => first_plane::<4>(plane, RUN * L::ROWS, &mut out.codes),
            (2, 0) => first_plane::<2>(plane, RUN * L::ROWS, &mut out.codes),
            (2, _) => next_plane::<2, 4>(plane, RUN * L::ROWS, &mut out.codes),
            (1, 2) => next_plane::<1, 2>(plane, RUN * L::ROWS, &mut out.codes),
            _ => next_plane::<1, 4>(plane, RUN * L::ROWS, &mut out.codes),
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

#[inline(always)]
fn next_plane<const WIDTH: usize, const SHIFT: usize>(plane: &[u8], run_len: usize, codes: &mut [u8]) {
    let run_bytes = run_len * WIDTH / 8;
    for (plane, codes) in plane.chunks_exact(run_bytes).zip(codes.chunks_exact_mut(run_len)) {
        for (part, codes) in codes.chunks_exact_mut(run_bytes).enumerate() {
            for (code, &byte) in codes.iter_mut().zip(plane) {
                *code |= (byte >> (part * WIDTH) & (0xff >> (8 - WIDTH))) << SHIFT;
            }
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
            Header::Sixteen { shift } => {
                let scale = L::load_halves(from);
                for run in 0..16 {
                    let byte = L::load_bytes(from.add((2 + run) * rows));
                    let scale = L::mul(scale, L::mul_add(byte, L::splat(1.0), L::splat(-128.0)));
                    L::store(scales.add(run * rows), scale);
                    L::store(minimums.add(run * rows), L::mul(L::splat(f32::from(shift)), scale));
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
