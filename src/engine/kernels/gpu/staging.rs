//! How weights go up: in pieces of bounded size, 16-bit floats as they are, widened on the device.

use super::Failure;
use super::device::Device;
use super::job::Params;

/// Weights of a piece: what goes up at a time, and what one dispatch works on.
pub const PIECE_WEIGHTS: usize = 1 << 20;

/// Pieces on the device at the same time: one goes up while the second is computed and the third comes back. With
/// [`PIECE_WEIGHTS`] this bounds the bytes that are on their way, whatever the size of a tensor.
pub(super) const SLOTS: usize = 3;

/// Most workgroups along one dimension.
pub(super) const SIDE_BY_SIDE: usize = 32_768;

/// What is handed up.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// Weights as they are.
    F32(&'a [f32]),
    /// Little-endian f32.
    F32Bytes(&'a [u8]),
    /// Little-endian f16.
    F16(&'a [u8]),
    /// Little-endian bf16.
    Bf16(&'a [u8]),
}

impl Source<'_> {
    /// Number of weights.
    pub(super) fn len(self) -> usize {
        match self {
            Source::F32(values) => values.len(),
            Source::F32Bytes(bytes) => bytes.len() / 4,
            Source::F16(bytes) | Source::Bf16(bytes) => bytes.len() / 2,
        }
    }
}

/// Rows of a piece.
///
/// # Errors
/// Rows too long for the device.
pub(super) fn most_rows(device: &Device, row_len: usize) -> Result<usize, Failure> {
    let most_rows = (PIECE_WEIGHTS / row_len.max(1)).clamp(1, SIDE_BY_SIDE);
    if row_len == 0 || (most_rows * row_len) as u64 * 4 > device.most_bytes() {
        return Err(Failure::TooLarge(format!("rows of {row_len} weights")));
    }
    Ok(most_rows)
}

/// The importance of every column; where columns have none, all have the same.
pub(super) fn columns(device: &Device, row_len: usize, importance: Option<&[f32]>) -> Result<wgpu::Buffer, Failure> {
    let columns = device.buffer(row_len as u64 * 4, wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST);
    let ones = importance.is_none().then(|| vec![1.0; row_len]);
    let values = importance.or(ones.as_deref()).unwrap_or_default();
    if values.len() != row_len {
        return Err(Failure::Driver(format!("{} columns have an importance, of {row_len}", values.len())));
    }
    device.queue.write_buffer(&columns, 0, bytemuck::cast_slice(values));
    Ok(columns)
}

/// The shaders that widen f16 and bf16.
#[derive(Debug)]
pub(super) struct Widen([wgpu::ComputePipeline; 2]);

impl Widen {
    pub(super) fn new(device: &Device) -> Result<Self, Failure> {
        let widen = |is_half| {
            device.pipeline(&format!("const HALF: bool = {is_half};\n{}", include_str!("decode.wgsl")), "widen")
        };
        Ok(Self([widen(true)?, widen(false)?]))
    }
}

/// The buffers that a piece's weights go through.
#[derive(Debug)]
pub(super) struct Staging {
    raw: wgpu::Buffer,
    params: wgpu::Buffer,
    binding: wgpu::BindGroup,
    /// The weights as f32.
    pub(super) weights: wgpu::Buffer,
}

impl Staging {
    /// Room for so many weights.
    pub(super) fn new(device: &Device, weights: usize, columns: &wgpu::Buffer) -> Self {
        use wgpu::BufferUsages as Usage;
        let raw = device.buffer(weights as u64 * 2 + 4, Usage::STORAGE | Usage::COPY_DST);
        let weights = device.buffer(weights as u64 * 4 + 4, Usage::STORAGE | Usage::COPY_DST);
        let params = Params::buffer(device);
        let unused = device.buffer(32, Usage::STORAGE);
        let binding = device.bind([&raw, columns, &weights, &unused, &params]);
        Self { raw, params, binding, weights }
    }

    /// Sends a piece on its way.
    pub(super) fn put(&self, device: &Device, source: Source<'_>, widen: &Widen) {
        match source {
            Source::F32(values) => device.queue.write_buffer(&self.weights, 0, bytemuck::cast_slice(values)),
            Source::F32Bytes(bytes) => device.queue.write_buffer(&self.weights, 0, bytes),
            Source::F16(bytes) => self.widen(device, bytes, &widen.0[0]),
            Source::Bf16(bytes) => self.widen(device, bytes, &widen.0[1]),
        }
    }

    /// Brings 16-bit floats up and widens them there.
    fn widen(&self, device: &Device, bytes: &[u8], pipeline: &wgpu::ComputePipeline) {
        write_words(device, &self.raw, bytes);
        let words = bytes.len().div_ceil(4);
        let workgroups = words.div_ceil(64);
        let width = workgroups.clamp(1, SIDE_BY_SIDE);
        let params = Params { rows: words as u32, width: (width * 64) as u32, ..Params::default() };
        device.queue.write_buffer(&self.params, 0, &params.bytes());
        device.dispatch(pipeline, &self.binding, [width as u32, workgroups.div_ceil(width) as u32]);
    }
}

/// Writes bytes of which the last word may not be whole.
pub(super) fn write_words(device: &Device, buffer: &wgpu::Buffer, bytes: &[u8]) {
    let whole = bytes.len() / 4 * 4;
    device.queue.write_buffer(buffer, 0, &bytes[..whole]);
    if whole < bytes.len() {
        let mut last = [0; 4];
        last[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
        device.queue.write_buffer(buffer, whole as u64, &last);
    }
}
