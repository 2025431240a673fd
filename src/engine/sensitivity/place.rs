//! The sums of a tensor on a device, and what to do when it fails: the CPU starts the tensor afresh.

use std::cell::RefCell;

use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::device::Device;
use crate::error::Result;
use crate::format::{Encoding, Format, Shared};
use crate::kernels::scan::Errors;
use crate::progress::Progress;

/// A device with what became of it.
pub(super) struct Place<'a> {
    device: &'a Device,
    failure: RefCell<Option<String>>,
}

impl<'a> Place<'a> {
    pub(super) fn new(device: &'a Device) -> Self {
        Self { device, failure: RefCell::default() }
    }

    /// What made the figures, for the table: none for the CPU alone.
    pub(super) fn used(&self) -> Option<String> {
        let name = self.device.kernels_name()?;
        Some(match &*self.failure.borrow() {
            None => name.to_owned(),
            Some(failure) => format!("{name}, then the CPU ({failure})"),
        })
    }

    /// The sums of the whole tensor under each format; none where the CPU has to take them.
    #[cfg(feature = "gpu")]
    pub(super) fn sums(
        &self,
        checkpoint: &Checkpoint,
        tensor: &TensorInfo,
        formats: &[&'static dyn Format],
        how: &Encoding<'_>,
        shared: &[Option<Shared>],
        progress: &Progress,
    ) -> Result<Option<Vec<Errors>>> {
        let gpu = self.device.gpu_for(crate::device::rates::Work::Scans);
        let Some(gpu) = gpu.filter(|_| self.failure.borrow().is_none()) else { return Ok(None) };
        // A format that the tensor has already keeps every weight, as f32 does.
        let Some(same) = crate::format::find("f32") else { return Ok(None) };
        let formats: Vec<&'static dyn Format> =
            formats.iter().map(|&format| if format.dtype() == tensor.dtype { same } else { format }).collect();
        if formats.iter().any(|format| !crate::format::gpu::can_scan(*format, how)) {
            return Ok(None);
        }
        match scan(gpu, checkpoint, tensor, &formats, how, shared, progress) {
            Ok(sums) => sums.map(Some),
            Err(failure) => {
                crate::device::tell(format!("{}: {failure}; the CPU goes on, and nothing is lost.", gpu.name()));
                *self.failure.borrow_mut() = Some(failure.to_string());
                Ok(None)
            }
        }
    }

    /// None: this build has only the CPU.
    #[cfg(not(feature = "gpu"))]
    pub(super) fn sums(
        &self,
        _: &Checkpoint,
        _: &TensorInfo,
        _: &[&'static dyn Format],
        _: &Encoding<'_>,
        _: &[Option<Shared>],
        _: &Progress,
    ) -> Result<Option<Vec<Errors>>> {
        Ok(None)
    }
}

/// Streams the tensor's rows through the device. The inner result is the engine's: cancel, or a file
/// that cannot be read.
#[cfg(feature = "gpu")]
fn scan(
    gpu: &crate::kernels::gpu::Device,
    checkpoint: &Checkpoint,
    tensor: &TensorInfo,
    formats: &[&'static dyn Format],
    how: &Encoding<'_>,
    shared: &[Option<Shared>],
    progress: &Progress,
) -> std::result::Result<Result<Vec<Errors>>, crate::kernels::gpu::Failure> {
    use crate::format::gpu::DeviceScan;
    use crate::kernels::gpu::Failure;

    let mut scan = DeviceScan::new(gpu, formats, *how, shared)?;
    let rows = tensor.row_count();
    // Rows of one head that have to be put back in order are read together.
    let together = tensor.permuted_heads.map_or(1, |heads| (rows / heads.max(1)).max(1));
    let step = scan.most_rows() / together * together;
    if step == 0 {
        return Err(Failure::TooLarge(format!("{together} rows of {} weights at a time", how.row_len)));
    }
    let mut read_bytes = 0;
    for first in (0..rows).step_by(step) {
        let mut raw = scan.buffer();
        let piece = first..(first + step).min(rows);
        if let Err(error) = progress.check().and_then(|()| checkpoint.read_rows(tensor, piece, &mut raw)) {
            return Ok(Err(error));
        }
        read_bytes += raw.len() as u64;
        scan.add(first, tensor.dtype, raw)?;
    }
    let sums = scan.finish()?;
    // Not before: a device that fails half way leaves the whole tensor to the CPU.
    progress.advance(read_bytes);
    Ok(Ok(sums))
}
