//! One shader made ready for rows of one length: its pipelines, its parameters and its dispatches.

use super::Failure;
use super::device::{Device, Dispatch};
use super::recipe::{Before, Program};
use super::staging::SIDE_BY_SIDE;

/// The parameters of a shader: `Params` of `common.wgsl`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Params {
    pub(super) row_len: u32,
    pub(super) rows: u32,
    pub(super) group: u32,
    pub(super) groups: u32,
    pub(super) tiles: u32,
    pub(super) width: u32,
    /// Stays zero: what no compiler knows.
    pub(super) zero: u32,
    pub(super) row_bytes: u32,
    pub(super) scales_at: u32,
    pub(super) zeros_at: u32,
    pub(super) flags_at: u32,
}

/// Bytes of [`Params`].
const PARAMS_BYTES: usize = 48;

impl Params {
    /// A buffer for parameters.
    pub(super) fn buffer(device: &Device) -> wgpu::Buffer {
        device.buffer(PARAMS_BYTES as u64, wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST)
    }

    /// As they are written.
    pub(super) fn bytes(&self) -> [u8; PARAMS_BYTES] {
        let Self { row_len, rows, group, groups, tiles, width, .. } = *self;
        let Self { zero, row_bytes, scales_at, zeros_at, flags_at, .. } = *self;
        bytemuck::cast([row_len, rows, group, groups, tiles, width, zero, row_bytes, scales_at, zeros_at, flags_at, 0])
    }
}

/// One program made ready.
#[derive(Debug)]
pub(super) struct Job {
    before: Option<(wgpu::ComputePipeline, Before)>,
    main: wgpu::ComputePipeline,
    group: usize,
    pub(super) groups: usize,
    pub(super) tiles: usize,
    /// True if the host gives the scales.
    pub(super) is_given: bool,
}

impl Job {
    /// Compiles `source`, whose entry is `entry`, after what comes before it in `program`.
    pub(super) fn new(
        device: &Device,
        program: &Program,
        source: &str,
        entry: &str,
        row_len: usize,
    ) -> Result<Self, Failure> {
        let group = if program.group == 0 { row_len } else { program.group };
        let before = match &program.before {
            Some((source, before)) => Some((device.pipeline(source, "find")?, *before)),
            None => None,
        };
        Ok(Self {
            before,
            main: device.pipeline(source, entry)?,
            group,
            groups: row_len.div_ceil(group),
            tiles: row_len.div_ceil(program.columns),
            is_given: program.is_given,
        })
    }

    /// Workgroups of what comes before: side by side, and below each other.
    fn before_counts(&self, rows: usize) -> [u32; 2] {
        match &self.before {
            Some((_, Before::Groups(side))) => {
                let count = (rows * self.groups * side).div_ceil(64);
                let width = count.clamp(1, SIDE_BY_SIDE);
                [width as u32, count.div_ceil(width) as u32]
            }
            _ => [rows as u32, 1],
        }
    }

    /// The parameters for a piece of so many rows.
    pub(super) fn params(&self, row_len: usize, rows: usize) -> Params {
        Params {
            row_len: row_len as u32,
            rows: rows as u32,
            group: self.group as u32,
            groups: self.groups as u32,
            tiles: self.tiles as u32,
            width: self.before_counts(rows)[0],
            ..Params::default()
        }
    }

    /// The dispatches of a piece, in their order.
    pub(super) fn work<'a>(
        &'a self,
        binding: &'a wgpu::BindGroup,
        rows: usize,
    ) -> impl Iterator<Item = Dispatch<'a>> + use<'a> {
        let before = self.before.as_ref().map(|(pipeline, _)| (pipeline, binding, self.before_counts(rows)));
        before.into_iter().chain([(&self.main, binding, [self.tiles as u32, rows as u32])])
    }

    /// Starts the work on a piece.
    pub(super) fn dispatch(&self, device: &Device, binding: &wgpu::BindGroup, rows: usize) {
        for (pipeline, binding, counts) in self.work(binding, rows) {
            device.dispatch(pipeline, binding, counts);
        }
    }
}
