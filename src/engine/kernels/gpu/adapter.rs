//! Which devices there are, and which one to use.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// What kind of device it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A card with memory of its own.
    Discrete,
    /// Part of the processor, in the machine's memory.
    Integrated,
    /// A share of a GPU given to a virtual machine, or of a kind that the driver does not tell.
    Virtual,
    /// A driver that computes on the CPU: for tests.
    Software,
}

impl Kind {
    /// The kind as a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Discrete => "discrete",
            Self::Integrated => "integrated",
            Self::Virtual => "virtual",
            Self::Software => "software",
        }
    }

    /// True for a GPU: a software driver is slower than the CPU's own kernels.
    pub fn is_real(self) -> bool {
        self != Self::Software
    }
}

/// A device that could be opened.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// The name that its driver gives it.
    pub name: String,
    /// What kind of device it is.
    pub kind: Kind,
    /// The interface: `Vulkan`, `Metal`, `Dx12`.
    pub interface: String,
    /// The driver and its version.
    pub driver: String,
    /// Bytes of its own memory, where the system tells.
    pub memory: Option<u64>,
    pub(super) handle: wgpu::Adapter,
}

/// Waits for what `wgpu` hands out as a future; natively it is ready at once.
pub(super) fn wait<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        std::thread::yield_now();
    }
}

/// Lets Linux's loader of drivers look for devices without a word on stderr: it complains where
/// `XDG_RUNTIME_DIR` is not set, though computing needs no display. Does nothing once there is a second
/// thread; to be called first of all.
pub fn quiet_loader() {
    const VARIABLE: &str = "XDG_RUNTIME_DIR";
    let threads = std::fs::read_dir("/proc/self/task").map(Iterator::count);
    if matches!(threads, Ok(1)) && std::env::var_os(VARIABLE).is_none() {
        // SAFETY: this is the only thread of the process, so that no other reads the environment.
        // A path that no socket can lie under: whoever looks for a display there finds none, as without it.
        unsafe { std::env::set_var(VARIABLE, "/dev/null") };
    }
}

/// Every device that can compute, the strongest kind first. A machine without a driver has none.
pub fn adapters() -> Vec<Adapter> {
    let backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    if (wgpu::Instance::enabled_backend_features() & backends).is_empty() {
        return Vec::new();
    }
    let mut wanted = wgpu::InstanceDescriptor::new_without_display_handle();
    wanted.backends = backends;
    let instance = wgpu::Instance::new(wanted);
    let mut found: Vec<Adapter> =
        wait(instance.enumerate_adapters(backends)).into_iter().filter_map(described).collect();
    found.sort_by_key(|adapter| match adapter.kind {
        Kind::Discrete => 0,
        Kind::Virtual => 1,
        Kind::Integrated => 2,
        Kind::Software => 3,
    });
    found
}

/// An adapter with its description; none if it cannot run compute shaders.
fn described(handle: wgpu::Adapter) -> Option<Adapter> {
    let can_compute = wgpu::DownlevelFlags::COMPUTE_SHADERS;
    if !handle.get_downlevel_capabilities().flags.contains(can_compute) {
        return None;
    }
    let info = handle.get_info();
    let kind = match info.device_type {
        wgpu::DeviceType::DiscreteGpu => Kind::Discrete,
        wgpu::DeviceType::IntegratedGpu => Kind::Integrated,
        wgpu::DeviceType::VirtualGpu | wgpu::DeviceType::Other => Kind::Virtual,
        wgpu::DeviceType::Cpu => Kind::Software,
    };
    let driver = [info.driver.as_str(), info.driver_info.as_str()];
    let driver: Vec<&str> = driver.into_iter().filter(|part| !part.is_empty()).collect();
    Some(Adapter {
        memory: own_memory(&info.device_pci_bus_id),
        name: info.name,
        kind,
        interface: format!("{:?}", info.backend),
        driver: driver.join(" "),
        handle,
    })
}

/// Bytes of a card's memory as the Linux kernel's drivers tell them; `wgpu` has no word for it.
fn own_memory(bus_id: &str) -> Option<u64> {
    // Only what looks like 0000:01:00.0 goes into a path.
    let is_plain = !bus_id.is_empty() && bus_id.chars().all(|c| c.is_ascii_hexdigit() || c == ':' || c == '.');
    let path = is_plain.then(|| format!("/sys/bus/pci/devices/{bus_id}/mem_info_vram_total"))?;
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}
