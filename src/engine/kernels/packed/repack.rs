//! From rows of blocks to tiles of interleaved rows, once a matrix, and single rows back.
//!
//! Codes of a run of 32 columns come in eight steps: four columns of each row of the tile, row after
//! row. Each plane of bits keeps the place of a code in the run: a plane of `b` bits holds, in
//! its byte `i`, the codes at `i`, `i + n`, `i + 2n` …, lowest bits first, `n` being the plane's bytes.
//! Six bits are one plane: the codes of three quarters of the run, one a byte, and in the two highest
//! bits those of the last quarter, lowest bits first. That takes the fewest operations to bring apart.

use half::{bf16, f16};

use super::super::activations::{CHUNK, RUN};
use super::super::lanes::STEP;
use super::super::{kquants, nonlinear};
use super::layout::{Header, IntLayout, IntScale, Layout, Plan};

/// Widths of the planes that make up a code, lowest bits first.
pub(super) fn planes(bits: u8) -> &'static [u8] {
    match bits {
        2 => &[2],
        3 => &[2, 1],
        4 => &[4],
        5 => &[4, 1],
        6 => &[6],
        _ => &[8],
    }
}

/// Interleaves up to a tile of rows; missing rows stay zero.
pub(super) fn tile(plan: &Plan, source: &[u8], tile: &mut [u8]) {
    let row_bytes = plan.layout.row_bytes(plan.cols).expect("checked when the matrix was made");
    let tile_rows = plan.tile_rows;
    let mut codes = vec![0u8; CHUNK * tile_rows];
    let mut row_codes = [0u8; CHUNK];
    if let Header::Tile(int) = plan.header {
        for (row, source) in source.chunks_exact(row_bytes).enumerate() {
            int_head(plan, int, source, row, tile);
        }
    }
    for start in (0..plan.cols).step_by(CHUNK) {
        let (range, runs) = plan.chunk(start);
        let len = runs * RUN;
        let row_codes = &mut row_codes[..len];
        let chunk = &mut tile[range];
        let (header, planes_out) = chunk.split_at_mut(plan.header_bytes(runs));
        codes.fill(0);
        for (row, source) in source.chunks_exact(row_bytes).enumerate() {
            let source = match plan.layout {
                Layout::Int(int) => &source[start * usize::from(int.bits) / 8..],
                layout => {
                    let block_bytes = row_bytes / (plan.cols / layout.block_len());
                    &source[start / layout.block_len() * block_bytes..][..len / layout.block_len() * block_bytes]
                }
            };
            plan.layout.codes(source, row_codes);
            if matches!(plan.layout, Layout::Int(_)) && plan.is_signed {
                row_codes.iter_mut().for_each(|code| *code ^= 0x80);
            }
            let places = codes.as_chunks_mut::<STEP>().0.iter_mut().skip(row).step_by(tile_rows);
            for (place, step) in places.zip(row_codes.as_chunks::<STEP>().0) {
                *place = *step;
            }
            block_header(plan, source, row, runs, header);
        }
        pack_planes(plan.bits, &codes[..len * tile_rows], RUN * tile_rows, planes_out);
    }
}

/// Splits codes into planes, run by run.
fn pack_planes(bits: u8, codes: &[u8], run_len: usize, mut out: &mut [u8]) {
    let mut shift = 0;
    if bits == 6 {
        let quarter = run_len / 4;
        for (codes, plane) in codes.chunks_exact(run_len).zip(out.chunks_exact_mut(3 * quarter)) {
            for (place, byte) in plane.iter_mut().enumerate() {
                let tops = codes[3 * quarter + place % quarter] >> (2 * (place / quarter));
                *byte = codes[place] | tops << 6;
            }
        }
        return;
    }
    for &width in planes(bits) {
        let run_bytes = run_len * usize::from(width) / 8;
        let (plane, rest) = out.split_at_mut(codes.len() / run_len * run_bytes);
        for (codes, plane) in codes.chunks_exact(run_len).zip(plane.chunks_exact_mut(run_bytes)) {
            for (part, codes) in codes.chunks_exact(run_bytes).enumerate() {
                for (byte, &code) in plane.iter_mut().zip(codes) {
                    let piece = (code >> shift) & (0xff >> (8 - width));
                    *byte |= piece << (part * usize::from(width));
                }
            }
        }
        shift += width;
        out = rest;
    }
}

/// Copies what a row's blocks say of their scales into the chunk's header.
fn block_header(plan: &Plan, source: &[u8], row: usize, runs: usize, header: &mut [u8]) {
    let rows = plan.tile_rows;
    let put_half = |header: &mut [u8], place: usize, from: &[u8]| {
        header[(place * rows + row) * 2..][..2].copy_from_slice(&from[..2]);
    };
    match plan.header {
        Header::Halves { has_offset, .. } => {
            for (run, block) in source.chunks_exact(source.len() / runs).enumerate() {
                put_half(header, run, block);
                if has_offset {
                    put_half(header, runs + run, &block[2..]);
                }
            }
        }
        Header::Eight => {
            put_half(header, 0, source);
            put_half(header, 1, &source[2..]);
            for run in 0..8 {
                let (scale, minimum) = kquants::q4_scale(&source[4..16], run);
                header[4 * rows + run * rows + row] = scale;
                header[4 * rows + (8 + run) * rows + row] = minimum;
            }
        }
        Header::Sixteen { .. } => {
            let is_q6 = plan.layout == Layout::Q6K;
            put_half(header, 0, if is_q6 { &source[208..] } else { &source[108..] });
            for run in 0..16 {
                let scale =
                    if is_q6 { i32::from(source[192 + run] as i8) } else { kquants::q3_scale(&source[96..108], run) };
                header[2 * rows + run * rows + row] = (scale + 128) as u8;
            }
        }
        Header::SixteenPairs => {
            put_half(header, 0, &source[80..]);
            put_half(header, 1, &source[82..]);
            for run in 0..16 {
                header[4 * rows + run * rows + row] = source[run];
            }
        }
        Header::EightSigned => {
            put_half(header, 0, source);
            for run in 0..8 {
                header[(2 + run) * rows + row] = nonlinear::iq4_xs_scale(source, run);
            }
        }
        Header::Exponents => {
            for (run, block) in source.chunks_exact(source.len() / runs).enumerate() {
                header[run * rows + row] = block[0];
            }
        }
        Header::Tile(_) => {}
    }
}

/// Scale and zero point of group `group` of an integer row as the file has them.
fn int_group(int: IntLayout, cols: usize, source: &[u8], group: usize) -> (f32, u8) {
    let scales = cols * usize::from(int.bits) / 8;
    let at = &source[scales + group * int.scale.bytes()..];
    let scale = match int.scale {
        IntScale::F16 => f16::from_le_bytes([at[0], at[1]]).to_f32(),
        IntScale::Bf16 => bf16::from_le_bytes([at[0], at[1]]).to_f32(),
        IntScale::F32 => f32::from_le_bytes([at[0], at[1], at[2], at[3]]),
    };
    let zeros = scales + int.groups(cols) * int.scale.bytes();
    (scale, if int.has_zeros { source[zeros + group] } else { int.middle() })
}

fn int_head(plan: &Plan, int: IntLayout, source: &[u8], row: usize, tile: &mut [u8]) {
    let (rows, groups) = (plan.tile_rows, int.groups(plan.cols));
    let width = plan.scale_bytes(int);
    for group in 0..groups {
        let (scale, zero) = int_group(int, plan.cols, source, group);
        let place = (group * rows + row) * width;
        if width == 2 {
            tile[place..place + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        } else {
            tile[place..place + 4].copy_from_slice(&scale.to_le_bytes());
        }
        if int.has_zeros {
            tile[groups * rows * width + group * rows + row] = zero;
        }
    }
}

/// Decodes one row of a tile, operation by operation as the format's decoder does.
pub(super) fn row(plan: &Plan, tile: &[u8], row: usize, out: &mut [f32]) {
    let rows = plan.tile_rows;
    let mut codes = [0u8; CHUNK];
    for (start, values) in (0..plan.cols).step_by(CHUNK).zip(out.chunks_mut(CHUNK)) {
        let (range, runs) = plan.chunk(start);
        let (header, planes_in) = tile[range].split_at(plan.header_bytes(runs));
        row_codes(plan, planes_in, row, runs, &mut codes);
        let half = |place: usize| {
            let at = (place * rows + row) * 2;
            f16::from_le_bytes([header[at], header[at + 1]]).to_f32()
        };
        let byte = |from: usize, place: usize| header[from * rows + place * rows + row];
        for (at, (value, &code)) in values.iter_mut().zip(&codes).enumerate() {
            let (run, half_run) = (at / RUN, at / 16);
            *value = match plan.header {
                _ if plan.layout == Layout::Q8_0 => f32::from(code as i8) * half(run),
                _ if plan.layout == Layout::Iq4Nl => plan.level(code) * half(run),
                Header::EightSigned => half(0) * (f32::from(byte(2, run)) - 32.0) * plan.level(code),
                Header::Exponents => nonlinear::e8m0_half(byte(0, run)) * plan.level(code),
                Header::Halves { shift, has_offset } => {
                    (f32::from(code) - f32::from(shift)) * half(run) + if has_offset { half(runs + run) } else { 0.0 }
                }
                Header::Eight => {
                    half(0) * f32::from(byte(4, run)) * f32::from(code) - half(1) * f32::from(byte(4, 8 + run))
                }
                Header::Sixteen { shift } => {
                    half(0) * (f32::from(byte(2, half_run)) - 128.0) * (f32::from(code) - f32::from(shift))
                }
                Header::SixteenPairs => {
                    let pair = byte(4, half_run);
                    half(0) * f32::from(pair & 0x0f) * f32::from(code) - half(1) * f32::from(pair >> 4)
                }
                Header::Tile(int) => {
                    let (scale, zero) = tile_group(plan, int, tile, row, (start + at) / int.group_len(plan.cols));
                    let code = if plan.is_signed { code ^ 0x80 } else { code };
                    scale * (f32::from(code) - f32::from(zero))
                }
            };
        }
    }
}

/// Scale and zero point of a group of one row of a tile.
fn tile_group(plan: &Plan, int: IntLayout, tile: &[u8], row: usize, group: usize) -> (f32, u8) {
    let (rows, width) = (plan.tile_rows, plan.scale_bytes(int));
    let at = &tile[(group * rows + row) * width..];
    let scale = if width == 2 {
        f16::from_le_bytes([at[0], at[1]]).to_f32()
    } else {
        f32::from_le_bytes([at[0], at[1], at[2], at[3]])
    };
    let zeros = int.groups(plan.cols) * rows * width;
    (scale, if int.has_zeros { tile[zeros + group * rows + row] } else { int.middle() })
}

/// Gathers the codes of one row of a chunk.
fn row_codes(plan: &Plan, mut source: &[u8], row: usize, runs: usize, codes: &mut [u8; CHUNK]) {
    let run_len = RUN * plan.tile_rows;
    let mut shift = 0;
    codes.fill(0);
    for &width in planes(plan.bits) {
        let run_bytes = run_len * usize::from(width) / 8;
        let (plane, rest) = source.split_at(runs * run_bytes);
        for (plane, codes) in plane.chunks_exact(run_bytes).zip(codes.chunks_exact_mut(RUN)) {
            for (at, code) in codes.iter_mut().enumerate() {
                let place = at / STEP * plan.tile_rows * STEP + row * STEP + at % STEP;
                if width == 6 {
                    *code = code_of_six(plane, place);
                    continue;
                }
                let piece = plane[place % run_bytes] >> (place / run_bytes * usize::from(width));
                *code |= (piece & (0xff >> (8 - width))) << shift;
            }
        }
        shift += width;
        source = rest;
    }
}

/// The code at a place of a run in its plane of six bits.
fn code_of_six(plane: &[u8], place: usize) -> u8 {
    let quarter = plane.len() / 3;
    match plane.get(place) {
        Some(byte) => byte & 0x3f,
        None => (0..3).map(|part| plane[place - (3 - part) * quarter] >> 6 << (2 * part)).sum(),
    }
}
