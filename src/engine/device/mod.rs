//! Where work runs: which devices there are, which one is used, and how its failure is told.
//!
//! The CPU is always there and does everything. A GPU that `wgpu` opens does scans, statistics and
//! encoding ([`crate::kernels::gpu`]); one that candle opens runs models. Often they are the same card by
//! two names of its interface. A device that fails is left for the CPU, and no result is lost. What
//! computes in software is listed, and used only where it is asked for by name.
//!
//! `auto` takes a real GPU for each kind of work that it does faster than the CPU, by a measurement on
//! first use, and of several the fastest; a device that is named does everything that it can.

mod list;
mod model_rates;
mod models;
#[cfg(feature = "gpu")]
pub mod rates;
mod used;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

pub use list::{Listed, list};
pub use model_rates::{ModelRates, Rate};
pub use models::{ModelDevice, model_devices};
#[cfg(feature = "gpu")]
use rates::{Rates, Work};
pub(crate) use used::{THEN_CPU, Used};

use crate::error::{Fault, Result, Stage};
#[cfg(feature = "gpu")]
use crate::kernels::gpu;

/// The variable that names a device where no option does.
pub const VARIABLE: &str = "LAPIDARY_DEVICE";

/// What the CPU does whatever device is chosen, as a sentence.
pub const ALWAYS_CPU: &str = "Always on the CPU: sums over activations and SparseGPT's sweep, scores of units from weights, \
statistics of logits, planning and files; searches of k-quants and by importance too, unless the plan says search = \"device\"";

/// Where work runs: devices that are opened when they are first needed, and the CPU for all that they do not do.
#[derive(Clone, Debug)]
pub struct Device {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    wish: Wish,
    #[cfg(feature = "gpu")]
    gpu: OnceLock<Option<Gpu>>,
    models: OnceLock<Option<ModelDevice>>,
}

impl Default for Device {
    fn default() -> Self {
        Self::new(Wish::Cpu)
    }
}

/// An open GPU.
#[cfg(feature = "gpu")]
#[derive(Debug)]
struct Gpu {
    device: gpu::Device,
    /// True if it does everything that it can, fast or not.
    is_named: bool,
    rates: OnceLock<Option<Rates>>,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wish {
    Auto,
    Cpu,
    Named(String),
}

impl Wish {
    /// Reads `auto`, `cpu` or a part of a name, in any case.
    fn parse(text: &str) -> Self {
        match text.trim().to_ascii_lowercase().as_str() {
            "" | "auto" => Self::Auto,
            "cpu" => Self::Cpu,
            name => Self::Named(name.to_owned()),
        }
    }

    /// True for a device of this name, or for a real one where any will do.
    fn means(&self, name: &str, is_real: bool) -> bool {
        match self {
            Self::Auto => is_real,
            Self::Cpu => false,
            Self::Named(part) => name.to_ascii_lowercase().contains(part),
        }
    }
}

impl Device {
    fn new(wish: Wish) -> Self {
        let inner = Inner {
            wish,
            #[cfg(feature = "gpu")]
            gpu: OnceLock::new(),
            models: OnceLock::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The devices that a wish means: `auto` is real GPUs if there are any, `cpu` the CPU, and
    /// anything else a part of a name.
    ///
    /// # Errors
    /// No device has the name, or the one named cannot be opened; `auto` takes the CPU then.
    pub fn choose(wish: &str) -> Result<Self> {
        let device = Self::new(Wish::parse(wish));
        if !matches!(device.inner.wish, Wish::Named(_)) {
            return Ok(device);
        }
        if device.models().is_none() && device.kernels_name().is_none() {
            let known = names();
            let cause = format!("no such device: {wish}; devices: {}", known.join(", "));
            return Err(Fault::new(Stage::Device, cause)
                .fix("see `lapidary devices` for the names, or take --device cpu")
                .into());
        }
        Ok(device)
    }

    /// The GPU, if there is one and it is to do this work.
    #[cfg(feature = "gpu")]
    pub(crate) fn gpu_for(&self, work: Work) -> Option<&gpu::Device> {
        let gpu = self.opened()?;
        gpu.is_for(work).then_some(&gpu.device)
    }

    /// The GPU for kernels, whatever it is to do.
    #[cfg(feature = "gpu")]
    pub(crate) fn gpu(&self) -> Option<&gpu::Device> {
        self.opened().map(|gpu| &gpu.device)
    }

    /// The GPU for kernels, opened on first use.
    #[cfg(feature = "gpu")]
    fn opened(&self) -> Option<&Gpu> {
        let wish = &self.inner.wish;
        if *wish == Wish::Cpu {
            return None;
        }
        let open = || {
            let adapters = gpu::adapters().into_iter();
            let mut meant = adapters.filter(|adapter| wish.means(&adapter.name, adapter.kind.is_real()));
            match wish {
                Wish::Auto => Gpu::fastest(&meant.collect::<Vec<_>>()),
                _ => Gpu::open(&meant.next()?, true),
            }
        };
        self.inner.gpu.get_or_init(open).as_ref()
    }

    /// What was measured of it and of the CPU, where `auto` chose it.
    #[cfg(feature = "gpu")]
    pub fn rates(&self) -> Option<Rates> {
        let gpu = self.opened()?;
        if gpu.is_named { None } else { gpu.rates() }
    }

    /// The name of the device for kernels, which results carry; none for the CPU.
    #[cfg(feature = "gpu")]
    pub fn kernels_name(&self) -> Option<&str> {
        self.gpu().map(gpu::Device::name)
    }

    /// The name of the device for kernels, which results carry; none for the CPU.
    #[cfg(not(feature = "gpu"))]
    pub fn kernels_name(&self) -> Option<&str> {
        None
    }

    /// The device that models run on; none for the CPU.
    pub fn models(&self) -> Option<&ModelDevice> {
        let wish = &self.inner.wish;
        if *wish == Wish::Cpu {
            return None;
        }
        let find = || {
            let mut meant = model_devices().into_iter().filter(|device| wish.means(&device.name, device.is_real));
            if *wish == Wish::Auto { model_rates::fastest(meant) } else { meant.next() }
        };
        self.inner.models.get_or_init(find).as_ref()
    }

    /// What was measured of the device that `auto` chose for models, in tokens a second; none where it is named or
    /// the CPU.
    pub fn model_rates(&self) -> Option<ModelRates> {
        let device = self.models().filter(|_| self.inner.wish == Wish::Auto)?;
        model_rates::known(device).ok()
    }

    /// What models run on, in words: `cpu`, or name and interface.
    pub fn models_in_words(&self) -> String {
        self.models().map_or_else(|| "cpu".to_owned(), ModelDevice::in_words)
    }

    /// The first GPU for kernels, a software one too.
    #[cfg(all(test, feature = "gpu"))]
    pub(crate) fn any_for_test() -> Self {
        let adapter = gpu::adapters().into_iter().next().expect("a Vulkan, Metal or DX12 driver");
        let device = Self::choose(&adapter.name).expect("it opens");
        assert!(device.gpu().is_some(), "{} does not open", adapter.name);
        device
    }

    /// Lets the GPU for kernels fail at the next thing it is asked for.
    #[cfg(all(test, feature = "gpu"))]
    pub(crate) fn break_for_test(&self) {
        self.gpu().expect("a GPU").give_up(gpu::Failure::Lost("broken for a test".to_owned()));
    }

    /// The first GPU for kernels, which fails after so many dispatches.
    #[cfg(all(test, feature = "gpu"))]
    pub(crate) fn failing_for_test(dispatches: usize, failure: gpu::Failure) -> Self {
        let device = Self::any_for_test();
        device.gpu().expect("a GPU").fail_after(dispatches, failure);
        device
    }

    /// A device that runs models and nothing else.
    #[cfg(test)]
    pub(crate) fn for_models(device: ModelDevice) -> Self {
        let made = Self::new(Wish::Named("nothing else".to_owned()));
        made.inner.models.get_or_init(|| Some(device));
        made
    }

    /// The name of any device that is used beside the CPU.
    pub fn name(&self) -> Option<&str> {
        self.kernels_name().or_else(|| self.models().map(|device| device.name.as_str()))
    }
}

#[cfg(feature = "gpu")]
impl Gpu {
    /// Opens a device; a failure is told.
    fn open(adapter: &gpu::Adapter, is_named: bool) -> Option<Self> {
        match gpu::Device::open(adapter) {
            Ok(device) => Some(Self { device, is_named, rates: OnceLock::new() }),
            Err(failure) => {
                tell(format!("{failure}; the CPU is used."));
                None
            }
        }
    }

    /// The fastest of some devices; one alone is not measured before it has something to do.
    fn fastest(adapters: &[gpu::Adapter]) -> Option<Self> {
        let mut opened: Vec<Self> = adapters.iter().filter_map(|adapter| Self::open(adapter, false)).collect();
        if opened.len() < 2 {
            return opened.pop();
        }
        opened.retain(|own| own.rates().is_some());
        let seconds = |own: &Self| own.rates().map_or(f64::INFINITY, |rates| rates.device_seconds());
        let best = opened.into_iter().min_by(|one, other| seconds(one).total_cmp(&seconds(other)))?;
        tracing::info!("{} is the fastest of {} devices for kernels", best.device.name(), adapters.len());
        Some(best)
    }

    fn is_for(&self, work: Work) -> bool {
        self.is_named || self.rates().is_some_and(|rates| rates.of(work).favours_device())
    }

    /// True if it is sound and was found the faster for any kind of work, or named.
    fn is_in_use(&self) -> bool {
        let is_faster = |rates: &Rates| Work::ALL.into_iter().any(|work| rates.of(work).favours_device());
        let is_taken = self.is_named || self.rates.get().and_then(Option::as_ref).is_some_and(is_faster);
        is_taken && self.device.check().is_ok()
    }

    /// The rates, measured once.
    fn rates(&self) -> Option<Rates> {
        const ROWS: usize = 2048;
        *self.rates.get_or_init(|| match Rates::measure(&self.device, ROWS) {
            Ok(rates) => Some(rates),
            Err(failure) => {
                tell(format!("{}: {failure}; the CPU is used.", self.device.name()));
                None
            }
        })
    }
}

impl Device {
    /// What a wish means, whether or not there is such a device; an empty one is what [`VARIABLE`] says.
    pub fn wished(wish: &str) -> Self {
        let variable = std::env::var(VARIABLE).unwrap_or_default();
        Self::new(Wish::parse(if wish.is_empty() { &variable } else { wish }))
    }

    /// The devices that work has been given to so far, with their interfaces; none where all was done by
    /// the CPU. Opens and measures nothing.
    pub fn in_use(&self) -> Option<String> {
        #[cfg(feature = "gpu")]
        let opened = self.inner.gpu.get().and_then(Option::as_ref);
        #[cfg(feature = "gpu")]
        let kernels = opened.filter(|gpu| gpu.is_in_use()).map(|gpu| gpu.device.name().to_owned());
        #[cfg(not(feature = "gpu"))]
        let kernels: Option<String> = None;
        let models = self.inner.models.get().and_then(Option::as_ref).map(|device| device.name.clone());
        match (kernels, models) {
            (Some(kernels), Some(models)) if kernels != models => Some(format!("{kernels}, {models}")),
            (kernels, models) => kernels.or(models),
        }
    }
}

/// Lets the first GPU for kernels fail at its first dispatch, later and later, and never: `run` is given it, says
/// what became of it in words, and checks its own results. Sees that no other device is named than the one that
/// made something.
#[cfg(all(test, feature = "gpu"))]
pub(crate) fn fail_everywhere_for_test(mut run: impl FnMut(Device) -> Option<String>) {
    use gpu::Failure::{Driver, Lost, OutOfMemory};
    let name = Device::any_for_test().kernels_name().expect("a GPU").to_owned();
    let text = || "for a test".to_owned();
    for failure in [Lost(text()), OutOfMemory(text()), Driver(text())] {
        assert_eq!(run(Device::failing_for_test(0, failure.clone())), None, "{failure} at once");
        // Where it fails after it made something.
        let mut late = 0;
        for dispatches in (0..16).map(|power| 1 << power) {
            match run(Device::failing_for_test(dispatches, failure.clone())) {
                None => assert_eq!(late, 0, "{failure} after {dispatches} dispatches: it made more before"),
                Some(words) if words == name => break,
                Some(words) => {
                    assert!(words.starts_with(&format!("{name}, then cpu")), "{words}");
                    late += 1;
                    // The other failures end alike: one place in the midst is enough.
                    if !matches!(failure, Lost(_)) {
                        break;
                    }
                }
            }
        }
        assert!(late > 0, "{failure}: never in the midst of the work");
    }
}

/// What devices have failed at since somebody last asked, a sentence each.
static MESSAGES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Notes that a device has left work to the CPU, for whoever asks next; the same sentence once.
pub(crate) fn tell(message: String) {
    const MOST: usize = 100;
    tracing::info!("{message}");
    let mut messages = MESSAGES.lock().unwrap_or_else(PoisonError::into_inner);
    if messages.len() < MOST && !messages.contains(&message) {
        messages.push(message);
    }
}

/// Takes the sentences that devices have left, oldest first.
pub fn take_messages() -> Vec<String> {
    std::mem::take(&mut *MESSAGES.lock().unwrap_or_else(PoisonError::into_inner))
}

/// What has to be set before there is a second thread, so that looking for devices prints nothing.
pub fn prepare() {
    #[cfg(feature = "gpu")]
    gpu::quiet_loader();
}

/// Bytes of the machine's memory, where the system tells: on Linux.
pub fn machine_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The names of all devices.
fn names() -> Vec<String> {
    let models = model_devices().into_iter().map(|device| device.name);
    #[cfg(feature = "gpu")]
    let models = gpu::adapters().into_iter().map(|adapter| adapter.name).chain(models);
    let mut names: Vec<String> = models.chain(["cpu".to_owned()]).collect();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::list::{ALL, MODELS};
    use super::*;

    #[test]
    fn the_cpu_is_always_there_and_a_device_of_no_such_name_is_told() {
        let all = list("cpu").expect("the CPU needs no driver");
        let last = all.last().expect("the CPU");
        assert!(last.kind == "cpu" && last.is_chosen && last.will_run == ALL);
        assert!(all.iter().filter(|device| device.is_chosen).count() == 1);
        let error = Device::choose("no such thing").expect_err("no device has that name").to_string();
        assert!(error.contains("no such thing") && error.contains("cpu"), "{error}");
        assert_eq!(Device::choose("cpu").expect("the CPU").name(), None);
    }

    #[test]
    fn a_software_driver_is_never_chosen_unasked() {
        let all = list("auto").expect("auto always finds one");
        let chosen = all.iter().find(|device| device.is_chosen).expect("one is chosen");
        assert!(chosen.kind != "software", "{chosen:?}");
    }

    #[test]
    fn a_device_for_models_alone_leaves_the_rest_to_the_cpu() {
        let device = Device::choose("candle on").expect("candle is always there");
        assert!(device.kernels_name().is_none() && device.models().is_some());
        let all = list("candle on").expect("candle is always there");
        let last = all.last().expect("the CPU");
        assert!(!last.is_chosen && !last.will_run.contains(&MODELS) && last.will_run.contains(&"passes"), "{all:?}");
    }

    #[cfg(feature = "gpu")]
    #[test]
    fn the_faster_of_device_and_cpu_is_chosen_for_each_kind_of_work() {
        let (fast, slow) = (rates::Rate { device: 2.0, cpu: 1.0 }, rates::Rate { device: 1.0, cpu: 2.0 });
        let rates = Rates { scans: slow, scan_searches: fast, encoding: slow, searches: fast, statistics: slow };
        let faster: Vec<Work> = Work::ALL.into_iter().filter(|&work| rates.of(work).favours_device()).collect();
        assert_eq!(faster, [Work::ScanSearches, Work::Searches]);
    }

    #[cfg(feature = "gpu")]
    #[test]
    #[ignore = "needs a graphics driver"]
    fn rates_of_a_gpu_are_measured() {
        let adapter = gpu::adapters().into_iter().next().expect("a driver");
        let rates = Rates::measure(&gpu::Device::open(&adapter).expect("opens"), 64).expect("measures");
        for work in Work::ALL {
            let rate = rates.of(work);
            assert!(rate.device > 1e4 && rate.cpu > 1e4, "{work:?}: {rate:?}");
        }
    }
}
