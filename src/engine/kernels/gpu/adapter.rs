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
    lend_memory(&mut found);
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
    let heap = || if matches!(kind, Kind::Discrete | Kind::Virtual) { largest_heap(&handle) } else { None };
    Some(Adapter {
        memory: own_memory(&info.device_pci_bus_id).or_else(heap),
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

/// Bytes of the largest heap that Vulkan's driver calls the device's own, which for a card is its memory; none by
/// another interface.
#[cfg(any(windows, target_os = "linux", target_os = "android", target_os = "freebsd"))]
fn largest_heap(handle: &wgpu::Adapter) -> Option<u64> {
    /// `VK_MEMORY_HEAP_DEVICE_LOCAL_BIT`.
    const OWN: u32 = 1;
    // SAFETY: what is lent is only asked and never destroyed.
    let adapter = unsafe { handle.as_hal::<wgpu::hal::api::Vulkan>() }?;
    let instance = adapter.shared_instance().raw_instance();
    // SAFETY: the physical device is this instance's, and both live as long as what is lent.
    let found = unsafe { instance.get_physical_device_memory_properties(adapter.raw_physical_device()) };
    let own = found.memory_heaps_as_slice().iter().filter(|heap| heap.flags.as_raw() & OWN != 0);
    own.map(|heap| heap.size).max()
}

/// None: Vulkan is not this system's own interface.
#[cfg(not(any(windows, target_os = "linux", target_os = "android", target_os = "freebsd")))]
fn largest_heap(_: &wgpu::Adapter) -> Option<u64> {
    None
}

/// A card that is there by several interfaces has its memory by all of them: DX12 does not tell it here.
fn lend_memory(adapters: &mut [Adapter]) {
    let card = |adapter: &Adapter| {
        let info = adapter.handle.get_info();
        (info.vendor, info.device)
    };
    let known: Vec<((u32, u32), u64)> =
        adapters.iter().filter_map(|adapter| Some((card(adapter), adapter.memory?))).collect();
    for adapter in adapters.iter_mut().filter(|adapter| adapter.memory.is_none()) {
        let own = card(adapter);
        adapter.memory = known.iter().find(|(other, _)| *other == own).map(|&(_, bytes)| bytes);
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs a graphics driver"]
    fn cards_have_the_memory_of_their_heaps_and_software_has_none() {
        let adapters = adapters();
        assert!(!adapters.is_empty(), "no Vulkan driver: install Debian's mesa-vulkan-drivers");
        for adapter in adapters.iter().filter(|adapter| adapter.interface == "Vulkan") {
            let heap = largest_heap(&adapter.handle).expect("every driver has a heap");
            assert!(heap >= 1 << 20, "{}: {heap}", adapter.name);
            match adapter.kind {
                Kind::Software => assert_eq!(adapter.memory, None, "{}: it is the machine's", adapter.name),
                Kind::Discrete => assert!(adapter.memory >= Some(heap), "{}: {:?}", adapter.name, adapter.memory),
                Kind::Integrated | Kind::Virtual => {}
            }
        }
    }
}
