//! Where a pass encodes: on a GPU that shows for sampled rows of every tensor that it writes what the
//! CPU writes, and on the CPU for everything else and from the first failure on.

use std::cell::RefCell;

use crate::checkpoint::TensorInfo;
use crate::device::Device;
use crate::error::Result;
use crate::format::{Dtype, Encoding};

use super::rtn;
#[cfg(not(feature = "gpu"))]
pub(super) use absent::OnDevice;
#[cfg(feature = "gpu")]
pub(super) use encoding::OnDevice;

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
        if let Some(on_device) = slot.as_mut()
            && let (Some(in_bytes), Some(out_bytes)) = (tensor.dtype.row_bytes(how.row_len), to.row_bytes(how.row_len))
        {
            out.clear();
            out.resize(source.len() / in_bytes.max(1) * out_bytes, 0);
            match on_device.encode(how.first_row, source, out) {
                Ok(count) => return Ok(count),
                Err(failure) => {
                    self.give_up(tensor, &failure);
                    // It was counted when its encoder was made.
                    self.state.borrow_mut().tensors -= 1;
                    *slot = None;
                }
            }
        }
        rtn::convert(&tensor.name, tensor.dtype, to, how, source, out)
    }

    /// An encoder for a tensor's rows, if the device is to make them.
    pub(super) fn encoder(&self, tensor: &TensorInfo, to: Dtype, how: Encoding<'a>) -> Option<OnDevice<'a>> {
        /// Fewer weights are encoded before they are up.
        const LEAST_WEIGHTS: u64 = 1 << 12;
        if self.state.borrow().failure.is_some() || tensor.weight_count() < LEAST_WEIGHTS {
            return None;
        }
        match OnDevice::open(self.device, tensor.dtype, to, how, self.searches) {
            Ok(encoder) => {
                self.state.borrow_mut().tensors += usize::from(encoder.is_some());
                encoder
            }
            Err(failure) => {
                self.give_up(tensor, &failure);
                None
            }
        }
    }

    fn give_up(&self, tensor: &TensorInfo, failure: &str) {
        tracing::info!("{}: {failure}; the CPU goes on", tensor.name);
        let mut state = self.state.borrow_mut();
        state.failure.get_or_insert(format!("{failure} (at {})", tensor.name));
    }
}

#[cfg(feature = "gpu")]
mod encoding {
    //! Encoding by the device for kernels.

    use crate::device::Device;
    use crate::device::rates::Work;
    use crate::format::gpu::{DeviceEncoder, can_encode};
    use crate::format::{self, Dtype, Encoding};
    use crate::kernels::gpu::Failure;

    /// An encoder of one tensor on the device.
    pub(in crate::pass) struct OnDevice<'a>(DeviceEncoder<'a>);

    impl<'a> OnDevice<'a> {
        /// An encoder from one type to another, if the device is to do it; or why it failed.
        pub(super) fn open(
            device: &'a Device,
            from: Dtype,
            to: Dtype,
            how: Encoding<'a>,
            searches: bool,
        ) -> Result<Option<Self>, String> {
            let format = format::of_dtype(to).filter(|format| can_encode(*format, &how, searches));
            let Some(format) = format else { return Ok(None) };
            let Some(gpu) = device.gpu_for(Work::Encoding) else { return Ok(None) };
            match DeviceEncoder::new(gpu, from, format, how) {
                Ok(encoder) => Ok(Some(Self(encoder))),
                // Rows that are too long for it are no failure of the device.
                Err(Failure::TooLarge(_) | Failure::Missing(_)) => Ok(None),
                Err(failure) => Err(failure.to_string()),
            }
        }

        /// Encodes rows, as [`DeviceEncoder::encode`]; or why the device failed.
        pub(super) fn encode(&mut self, first_row: usize, source: &[u8], out: &mut [u8]) -> Result<usize, String> {
            self.0.encode(first_row, source, out).map_err(|failure| failure.to_string())
        }
    }
}

#[cfg(not(feature = "gpu"))]
mod absent {
    //! What stands in where this build has only the CPU.

    use std::convert::Infallible;
    use std::marker::PhantomData;

    use crate::device::Device;
    use crate::format::{Dtype, Encoding};

    /// There is none.
    pub(in crate::pass) struct OnDevice<'a>(Infallible, PhantomData<&'a ()>);

    impl<'a> OnDevice<'a> {
        pub(super) fn open(
            _: &'a Device,
            _: Dtype,
            _: Dtype,
            _: Encoding<'a>,
            _: bool,
        ) -> Result<Option<Self>, String> {
            Ok(None)
        }

        pub(super) fn encode(&mut self, _: usize, _: &[u8], _: &mut [u8]) -> Result<usize, String> {
            match self.0 {}
        }
    }
}

#[cfg(all(test, feature = "gpu"))]
mod tests {
    use std::path::{Path, PathBuf};

    use tempfile::TempDir;

    use crate::checkpoint::Checkpoint;
    use crate::device::Device;
    use crate::pass::{PassOptions, PassReport, run};
    use crate::plan::{Plan, resolve};
    use crate::progress::Progress;

    fn demo() -> Checkpoint {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("assets/demo");
        Checkpoint::open(&folder).expect("the demo opens")
    }

    /// What a pass wrote.
    struct Written {
        report: PassReport,
        path: PathBuf,
        /// All files of the candidate, one after another.
        bytes: Vec<u8>,
        _folder: TempDir,
    }

    /// The demo by a plan for `target` of which `rest` is the rest, written with a device.
    fn pass(target: &str, rest: &str, device: Device) -> Written {
        let demo = demo();
        let text = format!("version = 1\ntarget = \"{target}\"\n{rest}\n");
        let resolved = resolve(&Plan::parse(&text, None).expect("a plan"), &demo).expect("resolves");
        // Small chunks, so that rows other than the first come first.
        let options = PassOptions { device, chunk_weights: 100_000, ..PassOptions::default() };
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(if target == "gguf" { "written.gguf" } else { "written" });
        let report = run(&demo, &resolved, &path, &options, &Progress::default()).expect("writes");
        Written { report, bytes: bytes(&path), path, _folder: folder }
    }

    /// The same with the device and with the CPU alone.
    fn passes(target: &str, rest: &str, device: Device) -> [Written; 2] {
        [device, Device::default()].map(|device| pass(target, rest, device))
    }

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
            let rest = format!("[default]\nformat = \"{format}\"\nmethod = \"{method}\"");
            let [found, expected] = passes(target, &rest, gpu.clone());
            assert!(found.bytes == expected.bytes, "{format} {method}");
            let (found, expected) = (found.report, expected.report);
            assert_eq!((expected.device, expected.device_tensors), (None, 0));
            assert_eq!(found.device_tensors > 20, format != "q4_k", "{format}: {} tensors", found.device_tensors);
            assert!(found.warnings == expected.warnings, "{format}: {:?}", found.warnings);
        }
    }

    #[test]
    #[ignore = "needs a graphics driver"]
    fn a_search_on_a_gpu_is_recorded_in_plan_report_and_file() {
        let rest = "search = \"device\"\n[default]\nformat = \"q4_k\"";
        let [searched, plain] = passes("gguf", rest, Device::any_for_test());
        let report = &searched.report;
        assert!(report.device_tensors > 20 && report.device.is_some(), "{report:?}");
        let is_recorded = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains("lapidary.search_device");
        assert!(is_recorded(&searched.bytes));
        assert!(!is_recorded(&plain.bytes), "the CPU made it");
        let candidate = Checkpoint::open(&searched.path).expect("opens");
        assert_eq!(candidate.tensors.len(), demo().tensors.len());
    }

    #[test]
    #[ignore = "needs a graphics driver"]
    fn a_gpu_that_fails_in_a_pass_leaves_it_to_the_cpu_with_a_message() {
        let gpu = Device::any_for_test();
        gpu.break_for_test();
        let [broken, plain] = passes("gguf", "[default]\nformat = \"q8_0\"", gpu);
        assert!(broken.bytes == plain.bytes);
        let report = broken.report;
        assert_eq!(report.device_tensors, 0);
        assert!(report.warnings.iter().any(|warning| warning.contains("was given up")), "{:?}", report.warnings);
    }
}
