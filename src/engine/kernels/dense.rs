//! Products with weights that are plain floats, and with formats that have no kernel of their own.
//!
//! Weights lie in tiles of two vectors of rows, column after column, in the precision of the file;
//! sixteen-bit weights are widened in registers. Formats without a layout in [`super::packed`] are decoded
//! a tile of rows at a time into the same product, never the whole matrix.
//!
//! A token's product is the same in every batch: columns are added one after another within chunks
//! of 256, and chunks one after another.

use std::cell::RefCell;

use half::{bf16, f16};
use rayon::prelude::*;

use super::Level;
use super::activations::CHUNK;
use super::lanes::{self, Lanes};
use super::shared_out::SharedOut;

/// How plain weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plain {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// bf16.
    Bf16,
}

impl Plain {
    /// Bytes of one weight.
    pub fn bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    /// The place of a row in a column of a tile of `tile_rows`; bf16 rows of both halves alternate,
    /// which is how a vector widens.
    fn place(self, row: usize, tile_rows: usize) -> usize {
        let half = tile_rows / 2;
        match self {
            Self::Bf16 => row % half * 2 + row / half,
            Self::F32 | Self::F16 => row,
        }
    }
}

/// Tiles that one task multiplies.
const TASK_TILES: usize = 4;

/// Most tokens that meet one load of weights.
const TOKENS: usize = 6;

/// How far ahead of the weights in use the next are asked for, in bytes.
const AHEAD: usize = 2048;

/// How tokens are put together: first token and number, the number being 6, 4, 2 or 1.
fn groups(tokens: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let count = match tokens - next {
            0 => return None,
            1 => 1,
            2 | 3 => 2,
            // Eight are better two times four than six and two.
            4 | 5 | 8 => 4,
            _ => TOKENS,
        };
        next += count;
        Some((next - count, count))
    })
}

/// From this many values on, laying out activations pays for several threads.
const PARALLEL_FROM: usize = 64 * 1024;

/// Activations as the products read them: chunks of 256 columns, groups of tokens, columns, tokens.
#[derive(Clone, Debug)]
pub struct Panels {
    width: usize,
    rows: usize,
    values: Vec<f32>,
}

impl Panels {
    /// Lays out rows of `width` values.
    pub fn new(values: &[f32], width: usize) -> Self {
        assert!(values.len().is_multiple_of(width.max(1)), "whole rows");
        let rows = values.len() / width.max(1);
        let mut panels = vec![0.0; values.len()];
        let lay_out = |(index, out): (usize, &mut [f32])| {
            let start = index * CHUNK;
            let len = CHUNK.min(width - start);
            for (first, count) in groups(rows) {
                let panel = &mut out[first * len..(first + count) * len];
                let rows = &values[first * width + start..];
                match count {
                    1 => panel.copy_from_slice(&rows[..len]),
                    2 => interleave_rows::<2>(rows, width, panel),
                    4 => interleave_rows::<4>(rows, width, panel),
                    _ => interleave_rows::<TOKENS>(rows, width, panel),
                }
            }
        };
        if values.len() >= PARALLEL_FROM {
            panels.par_chunks_mut(CHUNK * rows).enumerate().for_each(lay_out);
        } else if rows > 0 {
            panels.chunks_mut(CHUNK * rows).enumerate().for_each(lay_out);
        }
        Self { width, rows, values: panels }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values a row.
    pub fn width(&self) -> usize {
        self.width
    }

    fn group(&self, start: usize, first: usize, count: usize) -> &[f32] {
        let len = CHUNK.min(self.width - start);
        &self.values[start * self.rows + first * len..][..count * len]
    }
}

/// Lays out the first values of `N` rows that are `width` apart, column after column.
fn interleave_rows<const N: usize>(rows: &[f32], width: usize, panel: &mut [f32]) {
    let len = panel.len() / N;
    let rows: [&[f32]; N] = std::array::from_fn(|lane| &rows[lane * width..][..len]);
    for (at, place) in panel.as_chunks_mut::<N>().0.iter_mut().enumerate() {
        *place = rows.map(|row| row[at]);
    }
}

/// A matrix of plain weights, ready to multiply at one instruction level.
#[derive(Clone, Debug)]
pub struct Dense {
    plain: Plain,
    level: Level,
    rows: usize,
    cols: usize,
    tiles: Vec<u8>,
}

/// Rows a tile at a level.
fn tile_rows(level: Level) -> usize {
    2 * level.tile_rows()
}

impl Dense {
    /// Lays out `rows` rows of `cols` weights for this CPU; `bytes` holds them as the file does.
    pub fn new(plain: Plain, bytes: &[u8], rows: usize, cols: usize) -> Self {
        Self::new_at(Level::detect(), plain, bytes, rows, cols)
    }

    /// [`Dense::new`] for a given instruction level, which the CPU must have.
    ///
    /// # Panics
    /// If `bytes` does not hold `rows × cols` weights.
    pub fn new_at(level: Level, plain: Plain, bytes: &[u8], rows: usize, cols: usize) -> Self {
        assert_eq!(bytes.len(), rows * cols * plain.bytes(), "plain weights have whole rows");
        assert!(level.is_available(), "this CPU has {}", level.name());
        let tile_rows = tile_rows(level);
        let mut tiles = vec![0; rows.div_ceil(tile_rows) * tile_rows * cols * plain.bytes()];
        if !tiles.is_empty() {
            let source = bytes.par_chunks(tile_rows * cols * plain.bytes());
            tiles.par_chunks_mut(tile_rows * cols * plain.bytes()).zip(source).for_each(|(tile, source)| {
                if plain == Plain::F32 {
                    interleave::<4>(plain, source, cols, tile_rows, tile)
                } else {
                    interleave::<2>(plain, source, cols, tile_rows, tile)
                }
            });
        }
        Self { plain, level, rows, cols, tiles }
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes that the matrix holds in memory.
    pub fn resident_bytes(&self) -> usize {
        self.tiles.len()
    }

    /// Row `index` as f32.
    pub fn row(&self, index: usize, out: &mut [f32]) {
        assert!(index < self.rows && out.len() == self.cols, "a row of the matrix");
        let (tile_rows, bytes) = (tile_rows(self.level), self.plain.bytes());
        let column_bytes = tile_rows * bytes;
        let tile = &self.tiles[index / tile_rows * column_bytes * self.cols..][..column_bytes * self.cols];
        let place = self.plain.place(index % tile_rows, tile_rows) * bytes;
        for (value, column) in out.iter_mut().zip(tile.chunks_exact(column_bytes)) {
            let at = &column[place..];
            *value = match self.plain {
                Plain::F32 => f32::from_le_bytes([at[0], at[1], at[2], at[3]]),
                Plain::F16 => f16::from_le_bytes([at[0], at[1]]).to_f32(),
                Plain::Bf16 => bf16::from_le_bytes([at[0], at[1]]).to_f32(),
            };
        }
    }

    /// Multiplies with every activation row: `out[token × rows + row]`.
    pub fn matmul(&self, panels: &Panels, out: &mut [f32]) {
        multiply(self.level, &Source::Tiles(self.plain, &self.tiles), self.rows, self.cols, panels, out);
    }
}

/// Multiplies with rows that `decode` gives: from a first row on, as many whole rows as its output
/// holds. `out[token × rows + row]`.
pub fn matmul_decoded(
    rows: usize,
    cols: usize,
    decode: &(dyn Fn(usize, &mut [f32]) + Sync),
    panels: &Panels,
    out: &mut [f32],
) {
    matmul_decoded_at(Level::detect(), rows, cols, decode, panels, out);
}

/// [`matmul_decoded`] at a given instruction level, which the CPU must have.
pub fn matmul_decoded_at(
    level: Level,
    rows: usize,
    cols: usize,
    decode: &(dyn Fn(usize, &mut [f32]) + Sync),
    panels: &Panels,
    out: &mut [f32],
) {
    assert!(level.is_available(), "this CPU has {}", level.name());
    multiply(level, &Source::Decoded(decode), rows, cols, panels, out);
}

/// Where tiles come from.
enum Source<'a> {
    Tiles(Plain, &'a [u8]),
    Decoded(&'a (dyn Fn(usize, &mut [f32]) + Sync)),
}

/// Turns rows of elements of `N` bytes into a tile; missing rows stay as they are.
fn interleave<const N: usize>(plain: Plain, source: &[u8], cols: usize, tile_rows: usize, tile: &mut [u8]) {
    let tile = tile.as_chunks_mut::<N>().0;
    for (row, source) in source.as_chunks::<N>().0.chunks_exact(cols.max(1)).enumerate() {
        let place = plain.place(row, tile_rows);
        for (slot, value) in tile.iter_mut().skip(place).step_by(tile_rows).zip(source) {
            *slot = *value;
        }
    }
}

/// What a thread keeps from task to task.
#[derive(Default)]
struct Scratch {
    totals: Vec<f32>,
    decoded: Vec<f32>,
    tiles: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

fn multiply(level: Level, source: &Source<'_>, rows: usize, cols: usize, panels: &Panels, out: &mut [f32]) {
    let tokens = panels.rows();
    assert_eq!(panels.width(), cols, "activations are as wide as the rows");
    assert_eq!(out.len(), tokens * rows, "output is tokens × rows");
    if out.is_empty() {
        return;
    }
    let target = SharedOut::new(out);
    let tile_rows = tile_rows(level);
    let tiles_in_all = rows.div_ceil(tile_rows);
    let task_tiles = match source {
        Source::Tiles(..) => TASK_TILES,
        Source::Decoded(_) => 1,
    };
    let width = task_tiles * tile_rows;
    (0..tiles_in_all.div_ceil(task_tiles)).into_par_iter().for_each(|task| {
        SCRATCH.with_borrow_mut(|scratch| {
            let first = task * width;
            let count = width.min(rows - first);
            let tiles = task_tiles.min(tiles_in_all - task * task_tiles);
            scratch.totals.clear();
            scratch.totals.resize(tokens * width, 0.0);
            let (plain, bytes) = match source {
                Source::Tiles(plain, bytes) => {
                    let tile_bytes = tile_rows * cols * plain.bytes();
                    (*plain, &bytes[task * task_tiles * tile_bytes..][..tiles * tile_bytes])
                }
                Source::Decoded(decode) => {
                    scratch.decoded.resize(count * cols, 0.0);
                    scratch.tiles.clear();
                    scratch.tiles.resize(tile_rows * cols, 0.0);
                    decode(first, &mut scratch.decoded);
                    let tile = bytemuck::cast_slice_mut(&mut scratch.tiles);
                    interleave::<4>(Plain::F32, bytemuck::cast_slice(&scratch.decoded), cols, tile_rows, tile);
                    (Plain::F32, bytemuck::cast_slice(&scratch.tiles))
                }
            };
            lanes::with_lanes!(level, L => several_tiles::<L>(plain, bytes, panels, width, &mut scratch.totals));
            for (token, totals) in scratch.totals.chunks_exact(width).enumerate() {
                // SAFETY: each task owns the columns of its rows.
                unsafe { target.write_run(token * rows + first, &totals[..count]) };
            }
        });
    });
}

/// Operands of one kernel call.
#[derive(Clone, Copy, Debug)]
struct Meeting {
    /// The first tile's columns of the chunk.
    weights: *const u8,
    /// From one tile to the next, in bytes.
    weights_stride: usize,
    x: *const f32,
    /// Columns of the chunk.
    cols: usize,
    totals: *mut f32,
    /// From one token's totals to the next.
    totals_stride: usize,
}

type Kernel = unsafe fn(&Meeting);

/// `R` tiles with `T` tokens over a chunk, added to their totals; `KIND` is a [`Plain`]; `FIRST` if
/// these weights were not met before and come from memory.
///
/// # Safety
/// The CPU has the instructions of `L`, and the pointers of `m` are good for its columns, tiles and tokens.
#[inline(always)]
unsafe fn meet<L: Lanes, const R: usize, const T: usize, const KIND: u8, const FIRST: bool>(m: &Meeting) {
    let size = if KIND == Plain::F32 as u8 { 4 } else { 2 };
    // SAFETY: the caller promises all that is asked here.
    unsafe {
        let mut partial = [[[L::splat(0.0); 2]; T]; R];
        for column in 0..m.cols {
            for (tile, partial) in partial.iter_mut().enumerate() {
                let at = m.weights.add(tile * m.weights_stride + column * 2 * L::ROWS * size);
                if FIRST {
                    L::prefetch(at.wrapping_add(AHEAD));
                }
                let (first, second) = if KIND == Plain::Bf16 as u8 {
                    L::load_bf16_pairs(at)
                } else if KIND == Plain::F16 as u8 {
                    (L::load_halves(at), L::load_halves(at.add(L::ROWS * 2)))
                } else {
                    (L::load(at.cast()), L::load(at.cast::<f32>().add(L::ROWS)))
                };
                for (lane, sums) in partial.iter_mut().enumerate() {
                    let x = L::splat(*m.x.add(column * T + lane));
                    sums[0] = L::mul_add(first, x, sums[0]);
                    sums[1] = L::mul_add(second, x, sums[1]);
                }
            }
        }
        for (tile, partial) in partial.into_iter().enumerate() {
            for (lane, sums) in partial.into_iter().enumerate() {
                for (half, sum) in sums.into_iter().enumerate() {
                    let total = m.totals.add(lane * m.totals_stride + (2 * tile + half) * L::ROWS);
                    L::store(total, L::mul_add(sum, L::splat(1.0), L::load(total)));
                }
            }
        }
    }
}

/// A level with its kernels compiled for it.
trait Compiled: Lanes {
    /// The kernel for a group of `count` tokens, and the tiles it takes at once; of one tile if
    /// `is_single`. `is_first` of several groups asks for weights ahead.
    fn kernel(plain: Plain, count: usize, is_single: bool, is_first: bool) -> (Kernel, usize);
}

/// Implements [`Compiled`] with functions that switch a level's features on.
macro_rules! compiled {
    ($level:ident, $lanes:ty, $(#[$feature:meta])*) => {
        impl Compiled for $lanes {
            fn kernel(plain: Plain, count: usize, is_single: bool, is_first: bool) -> (Kernel, usize) {
                $(#[$feature])*
                unsafe fn meet_here<const R: usize, const T: usize, const KIND: u8, const FIRST: bool>(m: &Meeting) {
                    // SAFETY: the level was checked, the operands are the caller's promise.
                    unsafe { meet::<$lanes, R, T, KIND, FIRST>(m) }
                }
                macro_rules! by_count {
                    ($kind:expr) => {
                        match (count, is_single) {
                            (1, false) => (meet_here::<4, 1, { $kind as u8 }, false> as Kernel, 4),
                            (1, true) => (meet_here::<1, 1, { $kind as u8 }, false> as Kernel, 1),
                            (2, false) => (meet_here::<2, 2, { $kind as u8 }, false> as Kernel, 2),
                            (2, true) => (meet_here::<1, 2, { $kind as u8 }, false> as Kernel, 1),
                            (4, _) if is_first => (meet_here::<1, 4, { $kind as u8 }, true> as Kernel, 1),
                            (4, _) => (meet_here::<1, 4, { $kind as u8 }, false> as Kernel, 1),
                            _ if is_first => (meet_here::<1, TOKENS, { $kind as u8 }, true> as Kernel, 1),
                            _ => (meet_here::<1, TOKENS, { $kind as u8 }, false> as Kernel, 1),
                        }
                    };
                }
                match plain {
                    Plain::F32 => by_count!(Plain::F32),
                    Plain::F16 => by_count!(Plain::F16),
                    Plain::Bf16 => by_count!(Plain::Bf16),
                }
            }
        }
    };
}

lanes::for_every_level!(compiled);

/// A few tiles with all tokens; `totals` has `width` rows a token. The CPU must have the instructions of `L`.
fn several_tiles<L: Compiled>(plain: Plain, tiles: &[u8], panels: &Panels, width: usize, totals: &mut [f32]) {
    let tile_rows = 2 * L::ROWS;
    let tile_bytes = tile_rows * panels.width() * plain.bytes();
    let count_of_tiles = tiles.len() / tile_bytes;
    assert!(count_of_tiles * tile_rows <= width && totals.len() == panels.rows() * width, "totals of all tiles");
    let block = tiles_in_cache(panels.rows(), tile_rows * CHUNK * plain.bytes()).min(count_of_tiles);
    for start in (0..panels.width()).step_by(CHUNK) {
        for block_start in (0..count_of_tiles).step_by(block.max(1)) {
            let block_end = (block_start + block).min(count_of_tiles);
            for (first, count) in groups(panels.rows()) {
                let is_first = first == 0;
                let mut tile = block_start;
                while tile < block_end {
                    let (several, at_once) = L::kernel(plain, count, false, is_first);
                    let (kernel, at_once) = if tile + at_once <= block_end {
                        (several, at_once)
                    } else {
                        L::kernel(plain, count, true, is_first)
                    };
                    let meeting = Meeting {
                        weights: tiles[tile * tile_bytes + start * tile_rows * plain.bytes()..].as_ptr(),
                        weights_stride: tile_bytes,
                        x: panels.group(start, first, count).as_ptr(),
                        cols: CHUNK.min(panels.width() - start),
                        totals: totals[first * width + tile * tile_rows..].as_mut_ptr(),
                        totals_stride: width,
                    };
                    // SAFETY: `at_once` tiles from `tile` on, the chunk's columns and `count` tokens are in
                    // bounds; the level was chosen because the CPU has it.
                    unsafe { kernel(&meeting) };
                    tile += at_once;
                }
            }
        }
    }
}

/// How many tiles meet all tokens before the next do, when a chunk of one has `chunk_bytes`.
fn tiles_in_cache(tokens: usize, chunk_bytes: usize) -> usize {
    match tokens {
        // Every weight is met once: the more rows the better.
        ..4 => usize::MAX,
        // The tokens' chunk stays in the first-level cache beside one tile's.
        4..=16 => 1,
        // Half of the first-level cache for weights, and tokens pass by.
        _ => (16 * 1024 / chunk_bytes).max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::super::float;
    use super::*;

    fn ramp(len: usize, step: usize, modulus: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * step % modulus) as f32 - (modulus / 2) as f32) / 8.0).collect()
    }

    #[test]
    fn all_plain_types_and_batch_sizes_agree_with_a_plain_sum_at_every_level() {
        for (rows, k, tokens) in [(1, 1, 1), (5, 7, 2), (70, 33, 3), (64, 256, 4), (130, 600, 17), (200, 300, 1)] {
            let weights = ramp(rows * k, 7, 23);
            let x = ramp(tokens * k, 5, 19);
            let mut f32s = vec![0; rows * k * 4];
            let mut f16s = vec![0; rows * k * 2];
            let mut bf16s = vec![0; rows * k * 2];
            float::encode_f32(&weights, &mut f32s);
            float::encode_f16(&weights, &mut f16s);
            float::encode_bf16(&weights, &mut bf16s);
            let panels = Panels::new(&x, k);
            for level in Level::available() {
                let check = |out: &[f32], what: &str| {
                    for token in 0..tokens {
                        for row in 0..rows {
                            let expected: f32 = (0..k).map(|i| weights[row * k + i] * x[token * k + i]).sum();
                            let got = out[token * rows + row];
                            assert!(
                                (got - expected).abs() < 1e-3,
                                "{what} {level:?} {rows}×{k}, {tokens}: {got} {expected}"
                            );
                        }
                    }
                };
                for (plain, bytes) in [(Plain::F32, &f32s), (Plain::F16, &f16s), (Plain::Bf16, &bf16s)] {
                    let dense = Dense::new_at(level, plain, bytes, rows, k);
                    let mut out = vec![f32::NAN; tokens * rows];
                    dense.matmul(&panels, &mut out);
                    check(&out, &format!("{plain:?}"));
                    let mut row = vec![0.0; k];
                    for index in 0..rows {
                        dense.row(index, &mut row);
                        assert_eq!(row, weights[index * k..(index + 1) * k], "row {index} of {plain:?} {level:?}");
                    }
                }
                let mut out = vec![f32::NAN; tokens * rows];
                let decode = |first: usize, out: &mut [f32]| out.copy_from_slice(&weights[first * k..][..out.len()]);
                matmul_decoded_at(level, rows, k, &decode, &panels, &mut out);
                check(&out, "decoded");
            }
        }
    }

    #[test]
    fn a_token_has_the_same_product_in_every_batch() {
        let (rows, k, tokens) = (83, 530, 17);
        let mut weights = vec![0; rows * k * 2];
        float::encode_bf16(&ramp(rows * k, 17, 101), &mut weights);
        let x: Vec<f32> = (0..tokens * k).map(|i| (i as f32 * 0.37).sin()).collect();
        for level in Level::available() {
            let dense = Dense::new_at(level, Plain::Bf16, &weights, rows, k);
            let product = |x: &[f32]| {
                let mut out = vec![0.0; x.len() / k * rows];
                dense.matmul(&Panels::new(x, k), &mut out);
                out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let whole = product(&x);
            for part in [1, 2, 3, 4, 6, 8] {
                let parts: Vec<u32> = x.chunks(part * k).flat_map(&product).collect();
                assert!(parts == whole, "{level:?} in parts of {part}");
            }
        }
    }
}
