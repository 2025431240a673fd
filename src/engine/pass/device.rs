//! Where a pass encodes: on a GPU that shows for sampled rows of every tensor that it writes what the
//! CPU writes, and on the CPU for everything else and from the first failure on.

use std::cell::RefCell;

use crate::checkpoint::TensorInfo;
use crate::device::Device;
use crate::error::Result;
use crate::format::{Dtype, Encoding};

use super::rtn;

/// The device of a pass with what became of it.
pub(super) struct Machine<'a> {
    device: &'a Device,
    /// True if searches may run there too, whose bytes may differ from the CPU's.
    searches: bool,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    failure: Option<String>,
    /// Tensors that the device encoded.
    tensors: usize,
}

/// An encoder of one tensor on the device.
#[cfg(feature = "gpu")]
pub(super) struct OnDevice<'a> {
    encoder: crate::format::gpu::DeviceEncoder<'a>,
}

/// There is none in this build.
#[cfg(not(feature = "gpu"))]
pub(super) struct OnDevice<'a>(std::marker::PhantomData<&'a ()>);

impl<'a> Machine<'a> {
    pub(super) fn new(device: &'a Device, searches: bool) -> Self {
        Self { device, searches, state: RefCell::default() }
    }

    /// What encoded, for the report: none for the CPU alone.
    pub(super) fn used(&self) -> Option<String> {
        let state = self.state.borrow();
        if state.tensors == 0 && state.failure.is_none() {
            return None;
        }
        let name = self.device.kernels_name()?;
        Some(if state.failure.is_some() { format!("{name}, then the CPU") } else { name.to_owned() })
    }

    /// Number of tensors that the device encoded.
    pub(super) fn tensors(&self) -> usize {
        self.state.borrow().tensors
    }

    /// What to tell of a device that failed.
    pub(super) fn warning(&self) -> Option<String> {
        let state = self.state.borrow();
        let failure = state.failure.as_ref()?;
        let name = self.device.kernels_name()?;
        Some(format!("{name} was given up: {failure}. The CPU went on, and nothing is lost."))
    }

    /// The device that searches are allowed on, for the candidate's metadata.
    pub(super) fn search_device(&self) -> Option<&str> {
        if self.searches { self.device.kernels_name() } else { None }
    }

    /// Brings rows of a tensor to `to`, the first of which is `how.first_row`, on the device if `slot` has
    /// its encoder. Answers how many of their weights are NaN or infinite.
    ///
    /// # Errors
    /// Those of [`rtn::convert`].
    pub(super) fn convert(
        &self,
        slot: &mut Option<OnDevice<'a>>,
        tensor: &TensorInfo,
        to: Dtype,
        how: &Encoding<'_>,
        source: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<usize> {
        if let Some(count) = self.try_convert(slot, tensor, to, how, source, out) {
            return Ok(count);
        }
        rtn::convert(&tensor.name, tensor.dtype, to, how, source, out)
    }
}

#[cfg(feature = "gpu")]
impl<'a> Machine<'a> {
    /// An encoder for a tensor's rows, if the device is to make them.
    pub(super) fn encoder(&self, tensor: &TensorInfo, to: Dtype, how: Encoding<'a>) -> Option<OnDevice<'a>> {
        use crate::device::rates::Work;
        use crate::format::gpu::{DeviceEncoder, can_encode};

        /// Fewer weights are encoded before they are up.
        const LEAST_WEIGHTS: u64 = 1 << 12;
        if self.state.borrow().failure.is_some() || tensor.weight_count() < LEAST_WEIGHTS {
            return None;
        }
        let format = crate::format::of_dtype(to).filter(|format| can_encode(*format, &how, self.searches))?;
        let gpu = self.device.gpu_for(Work::Encoding)?;
        match DeviceEncoder::new(gpu, tensor.dtype, format, how) {
            Ok(encoder) => {
                self.state.borrow_mut().tensors += 1;
                Some(OnDevice { encoder })
            }
            // Rows that are too long for it are no failure of the device.
            Err(crate::kernels::gpu::Failure::TooLarge(_) | crate::kernels::gpu::Failure::Missing(_)) => None,
            Err(failure) => {
                self.give_up(tensor, &failure);
                None
            }
        }
    }

    fn give_up(&self, tensor: &TensorInfo, failure: &crate::kernels::gpu::Failure) {
        tracing::info!("{}: {failure}; the CPU goes on", tensor.name);
        let mut state = self.state.borrow_mut();
        state.tensors = state.tensors.saturating_sub(1);
        state.failure.get_or_insert(format!("{failure} (at {})", tensor.name));
    }

    /// The rows by the device; none where the CPU has to make them.
    fn try_convert(
        &self,
        slot: &mut Option<OnDevice<'a>>,
        tensor: &TensorInfo,
        to: Dtype,
        how: &Encoding<'_>,
        source: &[u8],
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        let on_device = slot.as_mut()?;
        let (in_bytes, out_bytes) = (tensor.dtype.row_bytes(how.row_len)?, to.row_bytes(how.row_len)?);
        out.clear();
        out.resize(source.len() / in_bytes.max(1) * out_bytes, 0);
        match on_device.encoder.encode(how.first_row, source, out) {
            Ok(count) => Some(count),
            Err(failure) => {
                self.give_up(tensor, &failure);
                *slot = None;
                None
            }
        }
    }
}

#[cfg(not(feature = "gpu"))]
impl<'a> Machine<'a> {
    /// None: this build has only the CPU.
    pub(super) fn encoder(&self, _: &TensorInfo, _: Dtype, _: Encoding<'a>) -> Option<OnDevice<'a>> {
        None
    }

    fn try_convert(
        &self,
        _: &mut Option<OnDevice<'a>>,
        _: &TensorInfo,
        _: Dtype,
        _: &Encoding<'_>,
        _: &[u8],
        _: &mut Vec<u8>,
    ) -> Option<usize> {
        None
    }
}

#[cfg(all(test, feature = "gpu"))]
mod tests {
    use std::path::Path;

    use crate::checkpoint::Checkpoint;
    use crate::device::Device;
    use crate::pass::{PassOptions, PassReport, run};
    use crate::plan::{Plan, resolve};
    use crate::progress::Progress;

    fn demo() -> Checkpoint {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("assets/demo");
        Checkpoint::open(&folder).expect("the demo opens")
    }

    fn pass(text: &str, output: &Path, device: Device) -> PassReport {
        let demo = demo();
        let resolved = resolve(&Plan::parse(text, None).expect("a plan"), &demo).expect("resolves");
        // Small chunks, so that rows other than the first come first.
        let options = PassOptions { device, chunk_weights: 100_000, ..PassOptions::default() };
        run(&demo, &resolved, output, &options, &Progress::default()).expect("writes")
    }

    /// All files of a candidate, one after another.
    fn bytes(path: &Path) -> Vec<u8> {
        if path.is_file() {
            return std::fs::read(path).expect("reads");
        }
        let mut names: Vec<_> =
            std::fs::read_dir(path).expect("lists").map(|entry| entry.expect("an entry").path()).collect();
        names.sort();
        names.iter().flat_map(|path| std::fs::read(path).expect("reads")).collect()
    }

    #[test]
    #[ignore = "needs a graphics driver"]
    fn a_pass_on_a_gpu_writes_the_bytes_of_the_cpu() {
        let folder = tempfile::tempdir().expect("a folder");
        let gpu = Device::any_for_test();
        for (target, format, method) in [
            ("gguf", "q8_0", "rtn"),
            ("gguf", "q4_0", "rtn"),
            ("gguf", "q4_1", "rtn"),
            ("gguf", "q5_0", "rtn"),
            ("gguf", "q5_1", "rtn"),
            ("gguf", "mxfp4", "rtn"),
            // No search runs on the device unasked.
            ("gguf", "q4_k", "rtn"),
            ("compressed-tensors", "int4_g128", "rtn"),
            ("compressed-tensors", "int8_channel", "rtn_percentile"),
            ("compressed-tensors", "int3_g64_asym", "rtn_percentile_99"),
            ("compressed-tensors", "fp8_e4m3_channel", "rtn"),
            ("bitsandbytes", "nf4_dq", "rtn"),
        ] {
            let text = format!(
                "version = 1\ntarget = \"{target}\"\n[default]\nformat = \"{format}\"\nmethod = \"{method}\"\n"
            );
            let at = |name: &str| {
                folder.path().join(format!("{format}_{name}{}", if target == "gguf" { ".gguf" } else { "" }))
            };
            let expected = pass(&text, &at("cpu"), Device::default());
            let found = pass(&text, &at("gpu"), gpu.clone());
            assert_eq!((expected.device, expected.device_tensors), (None, 0));
            assert_eq!(found.device_tensors > 20, format != "q4_k", "{format}: {} tensors", found.device_tensors);
            assert!(found.warnings == expected.warnings, "{format}: {:?}", found.warnings);
            assert!(bytes(&at("gpu")) == bytes(&at("cpu")), "{format} {method}");
        }
    }

    #[test]
    #[ignore = "needs a graphics driver"]
    fn a_search_on_a_gpu_is_recorded_in_plan_report_and_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let text = "version = 1\ntarget = \"gguf\"\nsearch = \"device\"\n[default]\nformat = \"q4_k\"\n";
        let path = folder.path().join("searched.gguf");
        let report = pass(text, &path, Device::any_for_test());
        assert!(report.device_tensors > 20 && report.device.is_some(), "{report:?}");
        let file = String::from_utf8_lossy(&bytes(&path)).into_owned();
        assert!(file.contains("lapidary.search_device"));
        let candidate = Checkpoint::open(&path).expect("opens");
        assert_eq!(candidate.tensors.len(), demo().tensors.len());
        let plain = folder.path().join("plain.gguf");
        pass(text, &plain, Device::default());
        assert!(!String::from_utf8_lossy(&bytes(&plain)).contains("lapidary.search_device"), "the CPU made it");
    }

    #[test]
    #[ignore = "needs a graphics driver"]
    fn a_gpu_that_fails_in_a_pass_leaves_it_to_the_cpu_with_a_message() {
        let folder = tempfile::tempdir().expect("a folder");
        let text = "version = 1\ntarget = \"gguf\"\n[default]\nformat = \"q8_0\"\n";
        let gpu = Device::any_for_test();
        gpu.break_for_test();
        let (broken, plain) = (folder.path().join("broken.gguf"), folder.path().join("plain.gguf"));
        let report = pass(text, &broken, gpu);
        pass(text, &plain, Device::default());
        assert!(bytes(&broken) == bytes(&plain));
        assert_eq!(report.device_tensors, 0);
        assert!(report.warnings.iter().any(|warning| warning.contains("was given up")), "{:?}", report.warnings);
    }
}
