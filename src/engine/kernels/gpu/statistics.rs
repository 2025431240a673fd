//! Statistics of a tensor's rows on a device.
//!
//! Floats of 8 and 16 bits are counted by their patterns ([`Counter`]), from which every figure follows exactly as
//! on the CPU. f32 takes two looks: [`Surveyor`] for range, special values and sum, [`Spreader`] for
//! bins, tails and powers. Bins and tails are told apart by integer comparison with the first value of
//! each, so that their counts are the CPU's; sums are of f32 in tiles of at most 4096 weights.

use std::collections::VecDeque;

use super::Failure;
use super::device::{Device, Ticket};
use super::job::Params;
use super::staging::{self, SLOTS};
use crate::kernels::counts::{KeyRange, PATTERNS};
use crate::kernels::moments::{BINS, Scale};

/// Columns of a tile: `COLUMNS` of the shader.
const COLUMNS: usize = 4096;

/// Counts before the ranges that a survey writes.
const RANGES: usize = 4;

/// Tails.
const TAILS: usize = 3;

/// Patterns of a byte.
const BYTES: usize = 256;

/// More weights than this overflow a count.
const MOST_WEIGHTS: u64 = 1 << 32;

/// A row's shape, and how rows share ranges.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// Weights a row.
    pub len: usize,
    /// Number of rows of the tensor.
    pub count: usize,
    /// Rows that share a range.
    pub fold: usize,
}

impl Rows {
    fn entries(&self) -> usize {
        self.count.div_ceil(self.fold.max(1))
    }
}

/// Rows streaming through one shader that adds to one list of counts.
#[derive(Debug)]
struct Pieces<'d> {
    device: &'d Device,
    pipeline: wgpu::ComputePipeline,
    rows: Rows,
    word_bytes: usize,
    infinity: u32,
    most_rows: usize,
    tiles: usize,
    counts: wgpu::Buffer,
    counts_bytes: u64,
    slots: Vec<Slot>,
    next: usize,
    flying: VecDeque<Ticket>,
    sums: [f64; 4],
}

/// The buffers of one piece.
#[derive(Debug)]
struct Slot {
    words: wgpu::Buffer,
    params: wgpu::Buffer,
    figures: wgpu::Buffer,
    binding: wgpu::BindGroup,
    readback: wgpu::Buffer,
}

impl<'d> Pieces<'d> {
    fn new(
        device: &'d Device,
        entry: &str,
        rows: Rows,
        word_bytes: usize,
        limits: &[u32],
        start: &[u32],
    ) -> Result<Self, Failure> {
        use wgpu::BufferUsages as Usage;
        if rows.len as u64 * rows.count as u64 >= MOST_WEIGHTS {
            return Err(Failure::TooLarge(format!("{} rows of {} weights", rows.count, rows.len)));
        }
        let most_rows = staging::most_rows(device, rows.len)?;
        let tiles = rows.len.div_ceil(COLUMNS);
        // The entry is part of the key under which pipelines are kept.
        let source = format!("// {entry}\n{}", include_str!("statistics.wgsl"));
        let pipeline = device.pipeline(&source, entry)?;
        let filled = |values: &[u32], usage| {
            let buffer = device.buffer(values.len() as u64 * 4, Usage::STORAGE | Usage::COPY_DST | usage);
            device.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(values));
            buffer
        };
        let counts_bytes = start.len() as u64 * 4;
        if counts_bytes > device.most_bytes() {
            return Err(Failure::TooLarge(format!("{} ranges", rows.entries())));
        }
        let (limits, counts) = (filled(limits, Usage::empty()), filled(start, Usage::COPY_SRC));
        let slot = |_| {
            let words = device.buffer((most_rows * rows.len * word_bytes) as u64 + 4, Usage::STORAGE | Usage::COPY_DST);
            let params = Params::buffer(device);
            let figures = device.buffer((most_rows * tiles * 16) as u64, Usage::STORAGE | Usage::COPY_SRC);
            let binding = device.bind([&words, &limits, &figures, &counts, &params]);
            let readback = device.buffer((most_rows * tiles * 16) as u64, Usage::MAP_READ | Usage::COPY_DST);
            Slot { words, params, figures, binding, readback }
        };
        let slots = (0..SLOTS).map(slot).collect();
        device.check()?;
        let infinity = if entry == "count" { 0 } else { f32::INFINITY.to_bits() };
        let (next, flying, sums) = (0, VecDeque::new(), [0.0; 4]);
        Ok(Self {
            device,
            pipeline,
            rows,
            word_bytes,
            infinity,
            most_rows,
            tiles,
            counts,
            counts_bytes,
            slots,
            next,
            flying,
            sums,
        })
    }

    /// Sends whole rows on their way, little-endian; the first has index `first_row`.
    fn add(&mut self, first_row: usize, bytes: &[u8]) -> Result<(), Failure> {
        let rows = bytes.len() / (self.rows.len * self.word_bytes);
        if rows > self.most_rows {
            return Err(Failure::TooLarge(format!("{rows} rows at a time")));
        }
        if self.flying.len() == SLOTS {
            self.collect()?;
        }
        let slot = &self.slots[self.next];
        staging::write_words(self.device, &slot.words, bytes);
        let params = Params {
            row_len: self.rows.len as u32,
            rows: rows as u32,
            group: self.rows.fold as u32,
            groups: first_row as u32,
            tiles: self.tiles as u32,
            width: self.infinity,
            ..Params::default()
        };
        self.device.queue.write_buffer(&slot.params, 0, &params.bytes());
        self.device.dispatch(&self.pipeline, &slot.binding, [self.tiles as u32, rows as u32]);
        let figures = (rows * self.tiles * 16) as u64;
        self.flying.push_back(self.device.fetch(&[(&slot.figures, figures)], &slot.readback));
        self.next = (self.next + 1) % SLOTS;
        self.device.check()
    }

    /// Adds up the tiles of the oldest piece, in their order.
    fn collect(&mut self) -> Result<(), Failure> {
        let Some(ticket) = self.flying.pop_front() else { return Ok(()) };
        let bytes = self.device.read(ticket)?;
        for tile in bytes.chunks_exact(16).map(bytemuck::pod_read_unaligned::<[f32; 4]>) {
            self.sums.iter_mut().zip(tile).for_each(|(sum, value)| *sum += f64::from(value));
        }
        Ok(())
    }

    /// The counts and the sums of all rows.
    fn finish(&mut self) -> Result<(Vec<u32>, [f64; 4]), Failure> {
        while !self.flying.is_empty() {
            self.collect()?;
        }
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let readback = self.device.buffer(self.counts_bytes, usage);
        let ticket = self.device.fetch(&[(&self.counts, self.counts_bytes)], &readback);
        let bytes = self.device.read(ticket)?;
        Ok((bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect(), self.sums))
    }
}

/// Counts of zero, then ranges of nothing.
fn start(counts: usize, entries: usize) -> Vec<u32> {
    let mut start = vec![0; counts];
    start.extend([u32::MAX, 0].repeat(entries));
    start
}

/// What a [`Counter`] finds.
#[derive(Debug)]
pub struct Counted {
    /// How often each of the 256 or 65,536 patterns occurs.
    pub counts: Vec<u32>,
    /// The range of each entry, as keys of the patterns' order.
    pub ranges: Vec<KeyRange>,
}

/// Counts floats of 8 or 16 bits by their patterns.
#[derive(Debug)]
pub struct Counter<'d> {
    pieces: Pieces<'d>,
    patterns: usize,
}

impl<'d> Counter<'d> {
    /// Makes ready to count floats of 16 bits; `infinity` is the pattern of infinity.
    ///
    /// # Errors
    /// Rows or a tensor too large for the device, or a failure of it.
    pub fn new(device: &'d Device, rows: Rows, infinity: u16) -> Result<Self, Failure> {
        let mut pieces = Pieces::new(device, "count", rows, 2, &[], &start(PATTERNS, rows.entries()))?;
        pieces.infinity = infinity.into();
        Ok(Self { pieces, patterns: PATTERNS })
    }

    /// Makes ready to count floats of 8 bits; `special` is the first pattern of infinity or NaN, without its sign.
    ///
    /// # Errors
    /// As those of [`Self::new`].
    pub fn of_bytes(device: &'d Device, rows: Rows, special: u8) -> Result<Self, Failure> {
        let mut pieces = Pieces::new(device, "count_bytes", rows, 1, &[], &start(BYTES, rows.entries()))?;
        pieces.infinity = special.into();
        Ok(Self { pieces, patterns: BYTES })
    }

    /// Rows that may be added at a time.
    pub fn most_rows(&self) -> usize {
        self.pieces.most_rows
    }

    /// Adds whole rows, little-endian; the first has index `first_row`.
    ///
    /// # Errors
    /// A failure of the device: what was added so far is lost.
    pub fn add(&mut self, first_row: usize, bytes: &[u8]) -> Result<(), Failure> {
        self.pieces.add(first_row, bytes)
    }

    /// The counts of all rows.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn finish(&mut self) -> Result<Counted, Failure> {
        let (mut counts, _) = self.pieces.finish()?;
        let zero = self.patterns as i32 / 2;
        let key = |biased: u32| (biased as i32 - zero) as i16;
        let range = |range: &[u32]| match range {
            [lo, hi] if lo <= hi => KeyRange { lo: key(*lo), hi: key(*hi) },
            _ => KeyRange::EMPTY,
        };
        let ranges = counts[self.patterns..].chunks(2).map(range).collect();
        counts.truncate(self.patterns);
        Ok(Counted { counts, ranges })
    }
}

/// What a [`Surveyor`] finds.
#[derive(Debug)]
pub struct Surveyed {
    /// Number of NaN values.
    pub nan_count: u32,
    /// Number of infinite values.
    pub inf_count: u32,
    /// Number of zeros of either sign.
    pub zero_count: u32,
    /// Sum of the finite values; not finite where f32 could not hold a part of it.
    pub sum: f64,
    /// Smallest and largest finite value of each entry.
    pub ranges: Vec<Option<(f32, f32)>>,
}

/// The first look at f32 values.
#[derive(Debug)]
pub struct Surveyor<'d>(Pieces<'d>);

impl<'d> Surveyor<'d> {
    /// Makes ready to look.
    ///
    /// # Errors
    /// Rows or a tensor too large for the device, or a failure of it.
    pub fn new(device: &'d Device, rows: Rows) -> Result<Self, Failure> {
        Ok(Self(Pieces::new(device, "survey", rows, 4, &[], &start(RANGES, rows.entries()))?))
    }

    /// Rows that may be added at a time.
    pub fn most_rows(&self) -> usize {
        self.0.most_rows
    }

    /// Adds whole rows, little-endian; the first has index `first_row`.
    ///
    /// # Errors
    /// A failure of the device: what was added so far is lost.
    pub fn add(&mut self, first_row: usize, bytes: &[u8]) -> Result<(), Failure> {
        self.0.add(first_row, bytes)
    }

    /// The figures of all rows.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn finish(&mut self) -> Result<Surveyed, Failure> {
        let (counts, sums) = self.0.finish()?;
        let range = |range: &[u32]| match range {
            [lo, hi] if lo <= hi => Some((of_key(*lo), of_key(*hi))),
            _ => None,
        };
        Ok(Surveyed {
            nan_count: counts[0],
            inf_count: counts[1],
            zero_count: counts[2],
            sum: sums[0],
            ranges: counts[RANGES..].chunks(2).map(range).collect(),
        })
    }
}

/// An integer that is ordered as finite values are.
fn key_of(value: f32) -> u32 {
    let bits = value.to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

/// The value with a key.
fn of_key(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key & !(1 << 31) } else { !key })
}

/// The first key whose value fulfils what all later ones fulfil too; one past the largest value if none does.
fn first_key(holds: impl Fn(f64) -> bool) -> u32 {
    let (mut low, mut high) = (key_of(f32::MIN), key_of(f32::MAX) + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(f64::from(of_key(middle))) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

/// What a [`Spreader`] finds.
#[derive(Debug)]
pub struct Spread {
    /// Values of each bin.
    pub bins: Vec<u32>,
    /// Values in each tail.
    pub beyond: [u32; TAILS],
    /// Sums of the second, third and fourth power of the distance from the mean; not finite where f32
    /// could not hold a part of them.
    pub powers: [f64; 3],
}

/// The second look at f32 values.
#[derive(Debug)]
pub struct Spreader<'d> {
    pieces: Pieces<'d>,
    factor: f64,
}

impl<'d> Spreader<'d> {
    /// Makes ready to look at values whose largest magnitude is `most`.
    ///
    /// # Errors
    /// Rows or a tensor too large for the device, or a failure of it.
    pub fn new(device: &'d Device, rows: Rows, scale: &Scale, most: f32) -> Result<Self, Failure> {
        // A power of two that brings distances near 1, so that their fourth powers are held.
        let exponent = if most > 0.0 { -most.log2().floor() } else { 0.0 }.clamp(-100.0, 100.0);
        let factor = exponent.exp2();
        let mut limits: Vec<u32> = (1..BINS).map(|bin| first_key(|value| scale.bin(value) >= bin)).collect();
        for limit in scale.limits {
            limits.push(first_key(|value| scale.mean - value <= limit));
            limits.push(first_key(|value| value - scale.mean > limit));
        }
        let high = scale.mean as f32;
        limits.extend([high, (scale.mean - f64::from(high)) as f32, factor].map(f32::to_bits));
        let pieces = Pieces::new(device, "spread", rows, 4, &limits, &start(BINS + TAILS, 0))?;
        Ok(Self { pieces, factor: f64::from(factor) })
    }

    /// Rows that may be added at a time.
    pub fn most_rows(&self) -> usize {
        self.pieces.most_rows
    }

    /// Adds whole rows, little-endian; the first has index `first_row`.
    ///
    /// # Errors
    /// A failure of the device: what was added so far is lost.
    pub fn add(&mut self, first_row: usize, bytes: &[u8]) -> Result<(), Failure> {
        self.pieces.add(first_row, bytes)
    }

    /// The figures of all rows.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn finish(&mut self) -> Result<Spread, Failure> {
        let (mut counts, sums) = self.pieces.finish()?;
        let beyond = [counts[BINS], counts[BINS + 1], counts[BINS + 2]];
        counts.truncate(BINS);
        let powers = std::array::from_fn(|at| sums[at] / self.factor.powi(at as i32 + 2));
        Ok(Spread { bins: counts, beyond, powers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_ordered_as_the_values_are() {
        let values = [f32::MIN, -1.0, -1e-40, -0.0, 0.0, 1e-40, 0.5, f32::MAX];
        assert!(values.windows(2).all(|pair| key_of(pair[0]) < key_of(pair[1])));
        assert!(values.iter().all(|&value| of_key(key_of(value)).to_bits() == value.to_bits()));
    }

    #[test]
    fn the_first_key_of_a_bin_is_the_first_value_that_falls_into_it() {
        let scale = Scale { lo: -0.7, hi: 1.1, mean: 0.1, limits: [0.5; 3] };
        for bin in [1, 100, 255] {
            let first = first_key(|value| scale.bin(value) >= bin);
            assert_eq!(scale.bin(of_key(first).into()), bin);
            assert_eq!(scale.bin(of_key(first - 1).into()), bin - 1);
        }
        let flat = Scale { lo: 1.0, hi: 1.0, mean: 1.0, limits: [0.0; 3] };
        // Without a width all that is larger than the one value falls into the last bin.
        assert_eq!(first_key(|value| flat.bin(value) >= 1), key_of(1.0) + 1);
    }
}
