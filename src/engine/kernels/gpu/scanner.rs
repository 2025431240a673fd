//! Error scans of a tensor's rows on a device: pieces of rows go up while the ones before are computed.

use std::collections::VecDeque;

use super::Failure;
use super::device::{Device, Ticket};
use super::recipe::{Before, Recipe};
use crate::kernels::scan::Errors;

/// Weights of a piece: what goes up at a time, and what one dispatch works on.
pub const PIECE_WEIGHTS: usize = 1 << 20;

/// Pieces on the device at the same time: one goes up while the other is computed.
const SLOTS: usize = 2;

/// Most workgroups along one dimension.
const SIDE_BY_SIDE: usize = 32_768;

/// Below this, an f32 sum of squares has lost terms to underflow.
const TINY: f32 = 1e-28;

/// What is handed up.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// Weights as they are.
    F32(&'a [f32]),
    /// Little-endian f16.
    F16(&'a [u8]),
    /// Little-endian bf16.
    Bf16(&'a [u8]),
}

/// The parameters of a shader: `Params` of `common.wgsl`.
type Params = [u32; 8];

/// One recipe made ready.
#[derive(Debug)]
struct Job {
    before: Option<(wgpu::ComputePipeline, Before)>,
    scan: wgpu::ComputePipeline,
    group: usize,
    groups: usize,
    tiles: usize,
    is_given: bool,
}

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
    raw: wgpu::Buffer,
    raw_params: wgpu::Buffer,
    raw_binding: wgpu::BindGroup,
    weights: wgpu::Buffer,
    jobs: Vec<Buffers>,
    readback: wgpu::Buffer,
}

/// A scan in progress: up to two pieces are on the device.
#[derive(Debug)]
pub struct Scanner<'d> {
    device: &'d Device,
    row_len: usize,
    most_rows: usize,
    jobs: Vec<Job>,
    widen: [wgpu::ComputePipeline; 2],
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
        let most_rows = (PIECE_WEIGHTS / row_len.max(1)).clamp(1, SIDE_BY_SIDE);
        let words = most_rows * row_len;
        if row_len == 0 || words as u64 * 4 > device.most_bytes() {
            return Err(Failure::TooLarge(format!("rows of {row_len} weights")));
        }
        let jobs = recipes.iter().map(|&recipe| Job::new(device, recipe, row_len, importance.is_some()));
        let jobs: Vec<Job> = jobs.collect::<Result<_, _>>()?;
        let widen = |is_half| {
            device.pipeline(&format!("const HALF: bool = {is_half};\n{}", include_str!("decode.wgsl")), "widen")
        };
        let widen = [widen(true)?, widen(false)?];
        let columns = device.buffer(row_len as u64 * 4, wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST);
        // Where columns have no importance, all have the same.
        let ones = importance.is_none().then(|| vec![1.0; row_len]);
        let values = importance.or(ones.as_deref()).unwrap_or_default();
        if values.len() != row_len {
            return Err(Failure::Driver(format!("{} columns have an importance, of {row_len}", values.len())));
        }
        device.queue.write_buffer(&columns, 0, bytemuck::cast_slice(values));
        let slots = (0..SLOTS).map(|_| Slot::new(device, &jobs, words, most_rows, &columns)).collect();
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
        let weights = match source {
            Source::F32(values) => values.len(),
            Source::F16(bytes) | Source::Bf16(bytes) => bytes.len() / 2,
        };
        let rows = weights / self.row_len;
        if rows > self.most_rows || self.is_full() {
            return Err(Failure::TooLarge(format!("{rows} rows at a time")));
        }
        let slot = &self.slots[self.next];
        let queue = &self.device.queue;
        match source {
            Source::F32(values) => queue.write_buffer(&slot.weights, 0, bytemuck::cast_slice(values)),
            Source::F16(bytes) => self.widen(slot, bytes, &self.widen[0]),
            Source::Bf16(bytes) => self.widen(slot, bytes, &self.widen[1]),
        }
        let mut fetched = Vec::new();
        for (index, (job, buffers)) in self.jobs.iter().zip(&slot.jobs).enumerate() {
            let total = rows * job.groups;
            let mut width = 1;
            if let Some((_, Before::Groups(side))) = &job.before {
                width = (total * side).div_ceil(64).clamp(1, SIDE_BY_SIDE);
            }
            let params: Params = [self.row_len, rows, job.group, job.groups, job.tiles, width, 0, 0].map(|n| n as u32);
            queue.write_buffer(&buffers.params, 0, bytemuck::cast_slice(&params));
            if job.is_given {
                let scales = given.get(index).and_then(Option::as_ref).filter(|scales| scales.len() == total);
                let scales = scales.ok_or_else(|| Failure::Driver("scales are missing".to_owned()))?;
                queue.write_buffer(&buffers.scales, 0, bytemuck::cast_slice(scales));
            }
            match &job.before {
                Some((pipeline, Before::Rows)) => {
                    self.device.dispatch(pipeline, &buffers.binding, [rows as u32, 1]);
                }
                Some((pipeline, Before::Groups(side))) => {
                    let count = (total * side).div_ceil(64);
                    let counts = [width as u32, count.div_ceil(width) as u32];
                    self.device.dispatch(pipeline, &buffers.binding, counts);
                }
                None => {}
            }
            self.device.dispatch(&job.scan, &buffers.binding, [job.tiles as u32, rows as u32]);
            fetched.push((&buffers.figures, (rows * job.tiles * 16) as u64));
        }
        let ticket = self.device.fetch(&fetched, &slot.readback);
        self.flying.push_back((rows, ticket));
        self.next = (self.next + 1) % SLOTS;
        self.device.check()
    }

    /// Brings 16-bit floats up and widens them there.
    fn widen(&self, slot: &Slot, bytes: &[u8], pipeline: &wgpu::ComputePipeline) {
        let whole = bytes.len() / 4 * 4;
        self.device.queue.write_buffer(&slot.raw, 0, &bytes[..whole]);
        if whole < bytes.len() {
            // An odd number of weights: the last word is filled up.
            let last = [bytes[whole], bytes[whole + 1], 0, 0];
            self.device.queue.write_buffer(&slot.raw, whole as u64, &last);
        }
        let words = bytes.len().div_ceil(4);
        let workgroups = words.div_ceil(64);
        let width = workgroups.clamp(1, SIDE_BY_SIDE);
        let params: Params = [0, words, 0, 0, 0, width * 64, 0, 0].map(|n| n as u32);
        self.device.queue.write_buffer(&slot.raw_params, 0, bytemuck::cast_slice(&params));
        let counts = [width as u32, workgroups.div_ceil(width) as u32];
        self.device.dispatch(pipeline, &slot.raw_binding, counts);
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

impl Job {
    fn new(device: &Device, recipe: Recipe, row_len: usize, is_weighted: bool) -> Result<Self, Failure> {
        let program = recipe.program(is_weighted);
        let group = if program.group == 0 { row_len } else { program.group };
        let before = match &program.before {
            Some((source, before)) => Some((device.pipeline(source, "find")?, *before)),
            None => None,
        };
        Ok(Self {
            before,
            scan: device.pipeline(&program.scan, "scan")?,
            group,
            groups: row_len.div_ceil(group),
            tiles: row_len.div_ceil(program.columns),
            is_given: program.is_given,
        })
    }
}

impl Slot {
    fn new(device: &Device, jobs: &[Job], words: usize, rows: usize, columns: &wgpu::Buffer) -> Self {
        use wgpu::BufferUsages as Usage;
        let weights = device.buffer(words as u64 * 4 + 4, Usage::STORAGE | Usage::COPY_DST);
        let raw = device.buffer(words as u64 * 2 + 4, Usage::STORAGE | Usage::COPY_DST);
        let raw_params = device.buffer(32, Usage::UNIFORM | Usage::COPY_DST);
        let unused = device.buffer(32, Usage::STORAGE);
        let raw_binding = device.bind([&raw, columns, &weights, &unused, &raw_params]);
        let mut bytes = 0;
        let jobs = jobs
            .iter()
            .map(|job| {
                let params = device.buffer(32, Usage::UNIFORM | Usage::COPY_DST);
                let scales = device.buffer((rows * job.groups * 8) as u64, Usage::STORAGE | Usage::COPY_DST);
                let size = (rows * job.tiles * 16) as u64;
                bytes += size;
                let figures = device.buffer(size, Usage::STORAGE | Usage::COPY_SRC);
                let binding = device.bind([&weights, columns, &scales, &figures, &params]);
                Buffers { params, scales, figures, binding }
            })
            .collect();
        let readback = device.buffer(bytes, Usage::MAP_READ | Usage::COPY_DST);
        Self { raw, raw_params, raw_binding, weights, jobs, readback }
    }
}
