//! Where a pass encodes: on a GPU that shows for sampled rows of every tensor that it writes what the
//! CPU writes, and on the CPU for everything else and from the first failure on.

use std::cell::RefCell;

use crate::checkpoint::TensorInfo;
use crate::device::{Device, THEN_CPU, Used};
use crate::error::Result;
use crate::format::{Dtype, Encoding};

use super::rtn;
#[cfg(not(feature = "gpu"))]
pub(super) use absent::OnDevice;
#[cfg(not(feature = "gpu"))]
use absent::{searcher, searches};
#[cfg(feature = "gpu")]
pub(super) use encoding::OnDevice;
#[cfg(feature = "gpu")]
use encoding::{searcher, searches};

/// The device of a pass with what became of it.
pub(super) struct Machine<'a> {
    device: &'a Device,
    /// True if searches may run there too, whose bytes may differ from the CPU's.
    searches: bool,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    /// The device in all that it encoded, and in its searches alone.
    used: Used,
    searched: Used,
    /// Tensors that the device encoded whole.
    tensors: usize,
}

impl<'a> Machine<'a> {
    pub(super) fn new(device: &'a Device, searches: bool) -> Self {
        Self { device, searches, state: RefCell::default() }
    }

    /// What encoded beside the CPU, for the report: none for the CPU alone.
    pub(super) fn used(&self) -> Option<String> {
        self.state.borrow().used.in_brief()
    }

    /// Number of tensors that the device encoded.
    pub(super) fn tensors(&self) -> usize {
        self.state.borrow().tensors
    }

    /// What to tell of a device that failed.
    pub(super) fn warning(&self) -> Option<String> {
        let state = self.state.borrow();
        let failure = state.used.failure()?;
        let name = self.device.kernels_name()?;
        Some(format!("{name} was given up: {failure}. The CPU went on, and nothing is lost."))
    }

    /// What searched beside the CPU so far, for the candidate's metadata: none for the CPU alone.
    pub(super) fn searched(&self) -> Option<String> {
        self.state.borrow().searched.in_brief()
    }

    /// True if codes of this type come from a search that a device can make.
    pub(super) fn is_search(&self, to: Dtype, how: &Encoding<'_>) -> bool {
        self.searches && searches(to, how)
    }

    /// Most bytes that [`Machine::searched`] may have in this pass; none where it stays the CPU's.
    pub(super) fn most_searched_bytes(&self) -> Option<usize> {
        let is_wanted = self.searches && self.state.borrow().used.failure().is_none();
        let name = if is_wanted { searcher(self.device)? } else { return None };
        Some(name.len() + THEN_CPU.len())
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
                Ok(count) => {
                    let mut state = self.state.borrow_mut();
                    state.used.worked(on_device.name());
                    if on_device.is_search() {
                        state.searched.worked(on_device.name());
                    }
                    return Ok(count);
                }
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
        if self.state.borrow().used.failure().is_some() || tensor.weight_count() < LEAST_WEIGHTS {
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
        state.used.failed(format_args!("{failure} (at {})", tensor.name));
        state.searched.failed(failure);
    }
}

#[cfg(feature = "gpu")]
mod encoding {
    //! Encoding by the device for kernels.

    use crate::device::Device;
    use crate::device::rates::Work;
    use crate::format::gpu::{DeviceEncoder, can_encode, is_search};
    use crate::format::{self, Dtype, Encoding};
    use crate::kernels::gpu::Failure;

    /// An encoder of one tensor on the device.
    pub(in crate::pass) struct OnDevice<'a> {
        encoder: DeviceEncoder<'a>,
        name: &'a str,
        is_search: bool,
    }

    /// True if codes of a type come from a search that a device can make.
    pub(super) fn searches(to: Dtype, how: &Encoding<'_>) -> bool {
        format::of_dtype(to).is_some_and(|format| can_encode(format, how, true) && is_search(format, how))
    }

    /// The name of the device that searches are made on, where there is one.
    pub(super) fn searcher(device: &Device) -> Option<&str> {
        device.gpu_for(Work::Searches).map(crate::kernels::gpu::Device::name)
    }

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
            let is_search = is_search(format, &how);
            let Some(gpu) = device.gpu_for(Work::of_encoding(is_search)) else { return Ok(None) };
            match DeviceEncoder::new(gpu, from, format, how) {
                Ok(encoder) => Ok(Some(Self { encoder, name: gpu.name(), is_search })),
                // Rows that are too long for it are no failure of the device.
                Err(Failure::TooLarge(_) | Failure::Missing(_)) => Ok(None),
                Err(failure) => Err(failure.to_string()),
            }
        }

        /// Encodes rows, as [`DeviceEncoder::encode`]; or why the device failed.
        pub(super) fn encode(&mut self, first_row: usize, source: &[u8], out: &mut [u8]) -> Result<usize, String> {
            self.encoder.encode(first_row, source, out).map_err(|failure| failure.to_string())
        }

        /// The device's name.
        pub(super) fn name(&self) -> &str {
            self.name
        }

        /// True if it searches, so that its bytes may differ from the CPU's.
        pub(super) fn is_search(&self) -> bool {
            self.is_search
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

    /// Nothing searches beside the CPU.
    pub(super) fn searches(_: Dtype, _: &Encoding<'_>) -> bool {
        false
    }

    /// Nothing searches beside the CPU.
    pub(super) fn searcher(_: &Device) -> Option<&str> {
        None
    }

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

        pub(super) fn name(&self) -> &str {
            match self.0 {}
        }

        pub(super) fn is_search(&self) -> bool {
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
        assert_eq!((report.device_tensors, report.device), (0, None), "the CPU made all of it");
        assert!(report.warnings.iter().any(|warning| warning.contains("was given up")), "{:?}", report.warnings);
    }

    #[test]
    #[ignore = "needs a graphics driver"]
    fn a_gpu_that_fails_anywhere_in_a_pass_leaves_the_bytes_of_the_cpu() {
        for (target, format) in [("gguf", "q8_0"), ("compressed-tensors", "int4_g128")] {
            let rest = format!("[default]\nformat = \"{format}\"");
            let expected = pass(target, &rest, Device::default());
            crate::device::fail_everywhere_for_test(|device| {
                let found = pass(target, &rest, device);
                assert!(found.bytes == expected.bytes, "{format}: {:?}", found.report.device);
                let is_told = found.report.warnings.iter().any(|warning| warning.contains("was given up"));
                let is_whole = found.report.device.as_ref().is_some_and(|words| !words.contains("then cpu"));
                assert!(is_told != is_whole, "{:?}", found.report);
                found.report.device
            });
        }
    }

    /// What a candidate says of what searched for its codes.
    fn recorded(written: &Written, target: &str) -> Option<String> {
        if target == "gguf" {
            let text = String::from_utf8_lossy(&written.bytes);
            let at = text.find("lapidary.search_device")? + "lapidary.search_device".len();
            // A type and a length of 12 bytes, then the words, filled up with spaces.
            let words: String = text[at..].chars().skip(12).take_while(|c| !c.is_control()).collect();
            return Some(words.split("  ").next().unwrap_or_default().trim().to_owned());
        }
        let config = std::fs::read_to_string(written.path.join("config.json")).expect("a configuration");
        let config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
        Some(config.get("lapidary_search_device")?.as_str().expect("words").to_owned())
    }

    #[test]
    #[ignore = "needs a graphics driver"]
    fn what_searched_is_recorded_whatever_became_of_it() {
        let name = Device::any_for_test().kernels_name().expect("a GPU").to_owned();
        let lost = |after| Device::failing_for_test(after, crate::kernels::gpu::Failure::Lost("for a test".to_owned()));
        for (target, format, method) in [("gguf", "q4_k", "rtn"), ("compressed-tensors", "int4_g128", "rtn_mse")] {
            let rest = format!("search = \"device\"\n[default]\nformat = \"{format}\"\nmethod = \"{method}\"");
            assert_eq!(recorded(&pass(target, &rest, Device::any_for_test()), target), Some(name.clone()), "{target}");
            assert_eq!(recorded(&pass(target, &rest, Device::default()), target), None, "{target}: the CPU alone");
            let early = recorded(&pass(target, &rest, lost(0)), target);
            assert!(early.is_none() || early.as_deref() == Some("cpu"), "{early:?}");
            // A dozen dispatches are some chunks of the first tensor, and far from all tensors.
            let late = pass(target, &rest, lost(12));
            assert_eq!(late.report.device, Some(format!("{name}, then cpu")), "{target}");
            assert_eq!(recorded(&late, target), late.report.device, "{target}");
            Checkpoint::open(&late.path).expect("a whole candidate");
        }
        let plain = pass("gguf", "search = \"device\"\n[default]\nformat = \"q8_0\"", Device::any_for_test());
        assert_eq!(recorded(&plain, "gguf"), None, "there was no search");
    }
}
