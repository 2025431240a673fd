//! The sums of a tensor on a device, and what to do when it fails: the CPU starts the tensor afresh.

use std::cell::RefCell;

use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::device::{Device, Used};
use crate::error::Result;
use crate::format::{Encoding, Format, Shared};
use crate::kernels::scan::Errors;
use crate::progress::Progress;

/// A device with what became of it.
pub(super) struct Place<'a> {
    #[cfg_attr(not(feature = "gpu"), expect(dead_code, reason = "this build has only the CPU"))]
    device: &'a Device,
    used: RefCell<Used>,
}

impl<'a> Place<'a> {
    pub(super) fn new(device: &'a Device) -> Self {
        Self { device, used: RefCell::default() }
    }

    /// What made the figures beside the CPU, for the table: none for the CPU alone.
    pub(super) fn used(&self) -> Option<String> {
        self.used.borrow().in_words()
    }

    /// The sums of the whole tensor under each format; none for formats that the CPU has to take.
    #[cfg(feature = "gpu")]
    pub(super) fn sums(
        &self,
        checkpoint: &Checkpoint,
        tensor: &TensorInfo,
        formats: &[&'static dyn Format],
        how: &Encoding<'_>,
        shared: &[Option<Shared>],
        progress: &Progress,
    ) -> Result<Vec<Option<Errors>>> {
        use crate::kernels::gpu::Failure;

        let mut all = vec![None; formats.len()];
        let Some((gpu, places)) = self.split(tensor, formats, how) else { return Ok(all) };
        // A format that the tensor has already keeps every weight, as f32 does.
        let Some(same) = crate::format::find("f32") else { return Ok(all) };
        let own = |&at: &usize| if formats[at].dtype() == tensor.dtype { same } else { formats[at] };
        let formats: Vec<&'static dyn Format> = places.iter().map(own).collect();
        let shared: Vec<Option<Shared>> = places.iter().map(|&at| shared.get(at).cloned().flatten()).collect();
        match scan(gpu, checkpoint, tensor, &formats, how, &shared, progress) {
            Ok(sums) => {
                let (sums, bytes) = sums?;
                self.used.borrow_mut().worked(gpu.name());
                if places.len() == all.len() {
                    progress.advance(bytes);
                }
                for (at, sums) in places.into_iter().zip(sums) {
                    all[at] = Some(sums);
                }
            }
            // Rows that are too long for it are no failure of the device.
            Err(Failure::TooLarge(_) | Failure::Missing(_)) => {}
            Err(failure) => {
                crate::device::tell(format!("{}: {failure}; the CPU goes on, and nothing is lost.", gpu.name()));
                self.used.borrow_mut().failed(&failure);
            }
        }
        Ok(all)
    }

    /// The device and the places of the formats that it is to scan; none where it has nothing to do.
    #[cfg(feature = "gpu")]
    fn split(
        &self,
        tensor: &TensorInfo,
        formats: &[&'static dyn Format],
        how: &Encoding<'_>,
    ) -> Option<(&'a crate::kernels::gpu::Device, Vec<usize>)> {
        use crate::device::rates::Work;
        use crate::format::gpu::{can_scan, is_search};

        if self.used.borrow().failure().is_some() {
            return None;
        }
        let mut gpu = None;
        let mut is_for = |format: &'static dyn Format| {
            let work = Work::of_scan(is_search(format, how));
            let found = can_scan(format, how).then(|| self.device.gpu_for(work)).flatten();
            gpu = gpu.or(found);
            found.is_some()
        };
        let is_own = |at: &usize| formats[*at].dtype() == tensor.dtype;
        let places: Vec<usize> = (0..formats.len()).filter(|at| is_own(at) || is_for(formats[*at])).collect();
        gpu.map(|gpu| (gpu, places))
    }

    /// None: this build has only the CPU.
    #[cfg(not(feature = "gpu"))]
    pub(super) fn sums(
        &self,
        _: &Checkpoint,
        _: &TensorInfo,
        formats: &[&'static dyn Format],
        _: &Encoding<'_>,
        _: &[Option<Shared>],
        _: &Progress,
    ) -> Result<Vec<Option<Errors>>> {
        Ok(vec![None; formats.len()])
    }
}

/// Streams the tensor's rows through the device; answers the sums and the bytes that were read. The inner
/// result is the engine's: cancel, or a file that cannot be read.
#[cfg(feature = "gpu")]
fn scan(
    gpu: &crate::kernels::gpu::Device,
    checkpoint: &Checkpoint,
    tensor: &TensorInfo,
    formats: &[&'static dyn Format],
    how: &Encoding<'_>,
    shared: &[Option<Shared>],
    progress: &Progress,
) -> std::result::Result<Result<(Vec<Errors>, u64)>, crate::kernels::gpu::Failure> {
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
    // Only then is anything used: a device that fails half way leaves the whole tensor to the CPU.
    scan.finish().map(|sums| Ok((sums, read_bytes)))
}

#[cfg(all(test, feature = "gpu"))]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::kernels::gpu::Failure;
    use crate::sensitivity::SensitivityTable;
    use crate::sensitivity::weight::{WeightOptions, weight_error};

    /// The demo's errors in formats with and without a search.
    fn table(demo: &Checkpoint, device: Device) -> SensitivityTable {
        let formats = ["q8_0", "q4_k", "int4_g128", "f16"].map(str::to_owned).to_vec();
        let options = WeightOptions { formats, device, ..WeightOptions::default() };
        let progress = Progress::default();
        let table = weight_error(demo, &options, &progress, &mut |_, _| {}).expect("measures");
        let snapshot = progress.snapshot();
        assert_eq!(snapshot.done, snapshot.total, "every byte is counted once");
        table
    }

    fn demo() -> Checkpoint {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("assets/demo");
        Checkpoint::open(&folder).expect("the demo opens")
    }

    #[track_caller]
    fn assert_same(ours: &SensitivityTable, theirs: &SensitivityTable) {
        assert_eq!(ours.rows.len(), theirs.rows.len());
        for (ours, theirs) in ours.rows.iter().zip(&theirs.rows) {
            for (ours, theirs) in ours.cells.iter().zip(&theirs.cells) {
                let (ours, theirs) = (ours.as_ref().map(|cell| cell.value), theirs.as_ref().map(|cell| cell.value));
                let (Some(one), Some(other)) = (ours, theirs) else {
                    assert_eq!(ours, theirs);
                    continue;
                };
                assert!((one - other).abs() <= 1e-4 * other, "{one} {other}");
            }
        }
    }

    #[test]
    #[ignore = "needs a graphics driver"]
    fn a_gpu_that_fails_anywhere_in_a_scan_leaves_the_figures_of_the_cpu() {
        let demo = demo();
        let expected = table(&demo, Device::default());
        assert_eq!(expected.device, None);
        crate::device::fail_everywhere_for_test(|device| {
            let found = table(&demo, device);
            assert_same(&found, &expected);
            found.device
        });
    }

    #[test]
    #[ignore = "needs a graphics driver"]
    fn a_tensor_that_is_too_large_for_a_gpu_does_not_end_its_work() {
        let demo = demo();
        let expected = table(&demo, Device::default());
        let too_large = |after| Device::failing_for_test(after, Failure::TooLarge("for a test".to_owned()));
        let none = table(&demo, too_large(0));
        assert!(none.rows == expected.rows && none.device.is_none(), "every tensor is the CPU's");
        // The first tensors are the device's, and no word says that it failed.
        let device = too_large(100);
        let name = device.kernels_name().expect("a GPU").to_owned();
        let some = table(&demo, device);
        assert_same(&some, &expected);
        assert_eq!(some.device, Some(name));
    }
}
