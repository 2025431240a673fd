//! Error scans of a tensor's rows on a device: pieces of rows go up while the ones before are computed.

use std::collections::VecDeque;

use super::Failure;
use super::device::{Device, Dispatch, Ticket};
use super::job::{Job, Params};
use super::recipe::Recipe;
use super::staging::{self, SLOTS, Source, Staging, Widen};
use crate::kernels::scan::Errors;

/// Below this, an f32 sum of squares has lost terms to underflow.
const TINY: f32 = 1e-28;

/// The buffers of a job for one piece.
#[derive(Debug)]
struct Buffers {
    params: wgpu::Buffer,
    scales: wgpu::Buffer,
    figures: wgpu::Buffer,
    binding: wgpu::BindGroup,
}

/// The buffers of one piece.
#[derive(Debug)]
struct Slot {
    staging: Staging,
    jobs: Vec<Buffers>,
    readback: wgpu::Buffer,
}

/// A scan in progress: up to three pieces are on the device.
#[derive(Debug)]
pub struct Scanner<'d> {
    device: &'d Device,
    row_len: usize,
    most_rows: usize,
    jobs: Vec<Job>,
    widen: Widen,
    slots: Vec<Slot>,
    next: usize,
    flying: VecDeque<(usize, Ticket)>,
}

impl<'d> Scanner<'d> {
    /// Makes ready to scan rows of `row_len` weights by several recipes; importance has a value a column.
    ///
    /// # Errors
    /// Rows too long for the device, or a failure of it.
    pub fn new(
        device: &'d Device,
        row_len: usize,
        recipes: &[Recipe],
        importance: Option<&[f32]>,
    ) -> Result<Self, Failure> {
        let most_rows = staging::most_rows(device, row_len)?;
        let jobs = recipes.iter().map(|recipe| {
            let program = recipe.program(importance.is_some());
            Job::new(device, &program, &program.scan(), "scan", row_len)
        });
        let jobs: Vec<Job> = jobs.collect::<Result<_, _>>()?;
        let widen = Widen::new(device)?;
        let columns = staging::columns(device, row_len, importance)?;
        let slots = (0..SLOTS).map(|_| Slot::new(device, &jobs, most_rows, row_len, &columns)).collect();
        device.check()?;
        Ok(Self { device, row_len, most_rows, jobs, widen, slots, next: 0, flying: VecDeque::new() })
    }

    /// Rows that one piece may have.
    pub fn most_rows(&self) -> usize {
        self.most_rows
    }

    /// Pieces whose sums are still to be collected.
    pub fn flying(&self) -> usize {
        self.flying.len()
    }

    /// True if a piece has to be collected before the next is submitted.
    pub fn is_full(&self) -> bool {
        self.flying.len() == SLOTS
    }

    /// Sends the next rows on their way. `given` has, for each recipe whose scales the host gives,
    /// a scale and a zero for each group of each row.
    ///
    /// # Errors
    /// More rows than a piece has, or a failure of the device.
    pub fn submit(&mut self, source: Source<'_>, given: &[Option<Vec<[f32; 2]>>]) -> Result<(), Failure> {
        let rows = source.len() / self.row_len;
        if rows > self.most_rows || self.is_full() {
            return Err(Failure::TooLarge(format!("{rows} rows at a time")));
        }
        let slot = &self.slots[self.next];
        let queue = &self.device.queue;
        slot.staging.put(self.device, source, &self.widen);
        let mut fetched = Vec::new();
        for (index, (job, buffers)) in self.jobs.iter().zip(&slot.jobs).enumerate() {
            let params = job.params(self.row_len, rows);
            queue.write_buffer(&buffers.params, 0, &params.bytes());
            if job.is_given {
                let scales =
                    given.get(index).and_then(Option::as_ref).filter(|scales| scales.len() == rows * job.groups);
                let scales = scales.ok_or_else(|| Failure::Driver("scales are missing".to_owned()))?;
                queue.write_buffer(&buffers.scales, 0, bytemuck::cast_slice(scales));
            }
            job.dispatch(self.device, &buffers.binding, rows);
            fetched.push((&buffers.figures, (rows * job.tiles * 16) as u64));
        }
        let ticket = self.device.fetch(&fetched, &slot.readback);
        self.flying.push_back((rows, ticket));
        self.next = (self.next + 1) % SLOTS;
        self.device.check()
    }

    /// Scans the piece that was submitted last `times` more times where it lies, in one submission, and waits for it.
    /// Its sums stay as they are. Does nothing while nothing is on its way.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn repeat(&self, times: usize) -> Result<(), Failure> {
        let Some(&(rows, ..)) = self.flying.back() else { return Ok(()) };
        let slot = &self.slots[(self.next + SLOTS - 1) % SLOTS];
        let jobs = self.jobs.iter().zip(&slot.jobs);
        let once: Vec<Dispatch<'_>> = jobs.flat_map(|(job, own)| job.work(&own.binding, rows)).collect();
        let submission = self.device.dispatch_all((0..times).flat_map(|_| once.iter().copied()));
        self.device.finish(submission)
    }

    /// The sums of every row of the oldest piece, recipe by recipe; `None` for a row that has to be
    /// scanned by the reference. Empty if nothing is on its way.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn collect(&mut self) -> Result<Vec<Vec<Option<Errors>>>, Failure> {
        let Some((rows, ticket)) = self.flying.pop_front() else { return Ok(Vec::new()) };
        let bytes = self.device.read(ticket)?;
        let figures: Vec<[f32; 4]> = bytes.chunks_exact(16).map(bytemuck::pod_read_unaligned).collect();
        let mut rest = figures.as_slice();
        Ok(self
            .jobs
            .iter()
            .map(|job| {
                let (own, others) = rest.split_at((rows * job.tiles).min(rest.len()));
                rest = others;
                own.chunks(job.tiles).map(row_sums).collect()
            })
            .collect())
    }
}

/// The sums of a row from those of its tiles; none if f32 could not hold one.
fn row_sums(tiles: &[[f32; 4]]) -> Option<Errors> {
    let mut errors = Errors::default();
    for &[signal, coded, noise, worst] in tiles {
        if [signal, coded, noise, worst] == [0.0; 4] {
            continue;
        }
        // Comparisons with NaN are false.
        let is_finite = signal + coded + noise < f32::MAX;
        let is_held = is_finite && worst >= 0.0 && signal >= TINY && (noise >= TINY || worst == 0.0);
        if !is_held {
            return None;
        }
        let [signal, coded, noise, worst] = [signal, coded, noise, worst].map(f64::from);
        // (w − ŵ)² = w² − 2wŵ + ŵ²
        let product = 0.5 * (signal + coded - noise);
        errors.merge(&Errors { signal, coded, product, noise, max_abs_error: worst });
    }
    Some(errors)
}

impl Slot {
    fn new(device: &Device, jobs: &[Job], rows: usize, row_len: usize, columns: &wgpu::Buffer) -> Self {
        use wgpu::BufferUsages as Usage;
        let staging = Staging::new(device, rows * row_len, columns);
        let mut bytes = 0;
        let jobs = jobs
            .iter()
            .map(|job| {
                let params = Params::buffer(device);
                let scales = device.buffer((rows * job.groups * 8) as u64, Usage::STORAGE | Usage::COPY_DST);
                let size = (rows * job.tiles * 16) as u64;
                bytes += size;
                let figures = device.buffer(size, Usage::STORAGE | Usage::COPY_SRC);
                let binding = device.bind([&staging.weights, columns, &scales, &figures, &params]);
                Buffers { params, scales, figures, binding }
            })
            .collect();
        let readback = device.buffer(bytes, Usage::MAP_READ | Usage::COPY_DST);
        Self { staging, jobs, readback }
    }
}
