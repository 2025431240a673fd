//! Encoding of a tensor's rows on a device: pieces of rows go up while the ones before are encoded.

use std::collections::VecDeque;

use super::Failure;
use super::device::{Device, Ticket};
use super::job::{Job, Params};
use super::recipe::Recipe;
use super::staging::{self, SLOTS, Source, Staging, Widen};

/// How an encoded row is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowLayout {
    /// Bytes of a row.
    pub bytes: usize,
    /// First byte of the scales of integer groups and 8-bit floats.
    pub scales_at: usize,
    /// First byte of the zeros of asymmetric groups.
    pub zeros_at: usize,
}

/// Encoded rows.
#[derive(Debug)]
pub struct Encoded {
    bytes: Vec<u8>,
    row_bytes: usize,
    flags_at: usize,
    rows: usize,
}

impl Encoded {
    /// The rows' bytes, one after another.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.rows * self.row_bytes]
    }

    /// Rows that the reference has to encode: what f32 or the search cannot hold.
    pub fn flagged(&self) -> impl Iterator<Item = usize> {
        let flags = self.bytes[self.flags_at * 4..].chunks_exact(4).take(self.rows).enumerate();
        flags.filter(|(_, flag)| flag != &[0; 4]).map(|(row, _)| row)
    }
}

/// The buffers of one piece.
#[derive(Debug)]
struct Slot {
    staging: Staging,
    params: wgpu::Buffer,
    scales: wgpu::Buffer,
    encoded: wgpu::Buffer,
    binding: wgpu::BindGroup,
    readback: wgpu::Buffer,
}

/// An encoder in progress: up to three pieces are on the device.
#[derive(Debug)]
pub struct Encoder<'d> {
    device: &'d Device,
    row_len: usize,
    layout: RowLayout,
    most_rows: usize,
    job: Job,
    widen: Widen,
    slots: Vec<Slot>,
    next: usize,
    flying: VecDeque<(usize, Ticket)>,
}

impl<'d> Encoder<'d> {
    /// Makes ready to encode rows of `row_len` weights; importance has a value a column.
    ///
    /// # Errors
    /// Rows too long for the device, a recipe that is not written on devices, or a failure of the device.
    pub fn new(
        device: &'d Device,
        row_len: usize,
        layout: RowLayout,
        recipe: Recipe,
        importance: Option<&[f32]>,
    ) -> Result<Self, Failure> {
        use wgpu::BufferUsages as Usage;
        let most_rows = staging::most_rows(device, row_len)?;
        let program = recipe.program(importance.is_some());
        let source = program.encode().ok_or_else(|| Failure::Missing("an encoder of this format".to_owned()))?;
        let job = Job::new(device, &program, &source, "encode", row_len)?;
        let widen = Widen::new(device)?;
        let columns = staging::columns(device, row_len, importance)?;
        let bytes = (Self::flags_at(&layout, most_rows) + most_rows) as u64 * 4;
        if bytes > device.most_bytes() {
            return Err(Failure::TooLarge(format!("rows of {} bytes", layout.bytes)));
        }
        let slot = |_| {
            let staging = Staging::new(device, most_rows * row_len, &columns);
            let params = Params::buffer(device);
            let scales = device.buffer((most_rows * job.groups * 8) as u64, Usage::STORAGE | Usage::COPY_DST);
            let encoded = device.buffer(bytes, Usage::STORAGE | Usage::COPY_SRC | Usage::COPY_DST);
            let binding = device.bind([&staging.weights, &columns, &scales, &encoded, &params]);
            let readback = device.buffer(bytes, Usage::MAP_READ | Usage::COPY_DST);
            Slot { staging, params, scales, encoded, binding, readback }
        };
        let slots = (0..SLOTS).map(slot).collect();
        device.check()?;
        Ok(Self { device, row_len, layout, most_rows, job, widen, slots, next: 0, flying: VecDeque::new() })
    }

    /// First word of the flags after so many rows; the last words of rows may reach a little beyond them.
    fn flags_at(layout: &RowLayout, rows: usize) -> usize {
        (rows * layout.bytes).div_ceil(4) + 9
    }

    /// Rows that one piece may have.
    pub fn most_rows(&self) -> usize {
        self.most_rows
    }

    /// True if a piece has to be collected before the next is submitted.
    pub fn is_full(&self) -> bool {
        self.flying.len() == SLOTS
    }

    /// Sends the next rows on their way. `given` has, where the host gives the scales, a scale and a
    /// zero for each group of each row.
    ///
    /// # Errors
    /// More rows than a piece has, or a failure of the device.
    pub fn submit(&mut self, source: Source<'_>, given: Option<&[[f32; 2]]>) -> Result<(), Failure> {
        let rows = source.len() / self.row_len;
        if rows > self.most_rows || self.is_full() {
            return Err(Failure::TooLarge(format!("{rows} rows at a time")));
        }
        let slot = &self.slots[self.next];
        slot.staging.put(self.device, source, &self.widen);
        let flags_at = Self::flags_at(&self.layout, rows);
        let params = Params {
            row_bytes: self.layout.bytes as u32,
            scales_at: self.layout.scales_at as u32,
            zeros_at: self.layout.zeros_at as u32,
            flags_at: flags_at as u32,
            ..self.job.params(self.row_len, rows)
        };
        self.device.queue.write_buffer(&slot.params, 0, &params.bytes());
        if self.job.is_given {
            let scales = given.filter(|scales| scales.len() == rows * self.job.groups);
            let scales = scales.ok_or_else(|| Failure::Driver("scales are missing".to_owned()))?;
            self.device.queue.write_buffer(&slot.scales, 0, bytemuck::cast_slice(scales));
        }
        let bytes = (flags_at + rows) as u64 * 4;
        self.device.clear(&slot.encoded, bytes);
        self.job.dispatch(self.device, &slot.binding, rows);
        let ticket = self.device.fetch(&[(&slot.encoded, bytes)], &slot.readback);
        self.flying.push_back((rows, ticket));
        self.next = (self.next + 1) % SLOTS;
        self.device.check()
    }

    /// The oldest piece; none if nothing is on its way.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn collect(&mut self) -> Result<Option<Encoded>, Failure> {
        let Some((rows, ticket)) = self.flying.pop_front() else { return Ok(None) };
        let bytes = self.device.read(ticket)?;
        let flags_at = Self::flags_at(&self.layout, rows);
        Ok(Some(Encoded { bytes, row_bytes: self.layout.bytes, flags_at, rows }))
    }
}
