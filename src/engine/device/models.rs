//! Devices that models run on, by way of candle: CUDA where this build has it, Metal on macOS, and
//! candle's own CPU path, which is there for tests and never taken unasked.

use candle_core::Device;

/// A device that models can run on.
#[derive(Clone, Debug)]
pub struct ModelDevice {
    /// Its name.
    pub name: String,
    /// `CUDA`, `Metal` or `candle`.
    pub interface: &'static str,
    /// Bytes that were free when it was opened, where the system tells.
    pub memory: Option<u64>,
    /// True for a GPU.
    pub is_real: bool,
    handle: Device,
}

impl ModelDevice {
    /// candle's handle.
    pub(crate) fn handle(&self) -> &Device {
        &self.handle
    }

    /// Bytes that are free now, where the system tells: other models may have come and gone since the device was
    /// opened.
    pub(crate) fn free_memory(&self) -> Option<u64> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(device) = &self.handle {
            return cuda::free_bytes(device).or(self.memory);
        }
        self.memory
    }

    /// Name and interface.
    pub fn in_words(&self) -> String {
        format!("{} ({})", self.name, self.interface)
    }

    /// candle's CPU path with so much memory.
    #[cfg(test)]
    pub(crate) fn for_test(memory: Option<u64>) -> Self {
        Self { memory, ..candle_cpu() }
    }
}

/// The variable that says how many bytes candle's CPU path may take for a model, to try what happens
/// on a device with little memory.
const MEMORY_VARIABLE: &str = "LAPIDARY_CANDLE_MEMORY";

fn candle_cpu() -> ModelDevice {
    let memory = std::env::var(MEMORY_VARIABLE).ok().and_then(|text| text.parse().ok());
    ModelDevice {
        name: "candle on the CPU".to_owned(),
        interface: "candle",
        memory,
        is_real: false,
        handle: Device::Cpu,
    }
}

/// Every device that models can run on, real ones first. Drivers that are missing are no error.
pub fn model_devices() -> Vec<ModelDevice> {
    let real = std::iter::empty::<ModelDevice>();
    #[cfg(feature = "cuda")]
    let real = real.chain(cuda::devices());
    #[cfg(target_os = "macos")]
    let real = real.chain(metal());
    real.chain([candle_cpu()]).collect()
}

#[cfg(target_os = "macos")]
fn metal() -> Option<ModelDevice> {
    let handle = Device::new_metal(0).map_err(|err| tracing::info!("no Metal: {err}")).ok()?;
    let Device::Metal(device) = &handle else { return None };
    let memory = device.device().recommended_max_working_set_size();
    let name = device.device().architecture_name();
    Some(ModelDevice { name, interface: "Metal", memory: Some(memory as u64), is_real: true, handle })
}

#[cfg(feature = "cuda")]
mod cuda {
    //! NVIDIA's devices. The libraries are loaded when they are asked for, and may be missing: what
    //! loads them panics then, which happens on a thread of its own and ends as "there is none".

    use std::sync::OnceLock;

    use candle_core::CudaDevice;

    use super::{Device, ModelDevice};

    /// The thread whose panics are expected.
    const THREAD: &str = "cuda probe";

    /// Devices in the driver's order; opened once, since each has a stream and handles of its libraries.
    pub(super) fn devices() -> Vec<ModelDevice> {
        static FOUND: OnceLock<Vec<ModelDevice>> = OnceLock::new();
        let found = FOUND.get_or_init(open).iter().cloned();
        found.map(|device| ModelDevice { memory: device.free_memory(), ..device }).collect()
    }

    /// Bytes that are free on a device now.
    pub(super) fn free_bytes(device: &CudaDevice) -> Option<u64> {
        let stream = device.cuda_stream();
        // What was given back is free once the work before it is done.
        stream.synchronize().ok()?;
        stream.context().mem_get_info().ok().map(|(free, _)| free as u64)
    }

    fn open() -> Vec<ModelDevice> {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if std::thread::current().name() != Some(THREAD) {
                before(info);
            }
        }));
        let probe = std::thread::Builder::new().name(THREAD.to_owned()).spawn(|| {
            // Ordinals are dense: the first that is missing ends the list.
            (0..).map_while(device).collect::<Vec<_>>()
        });
        let found = probe.ok().and_then(|thread| thread.join().ok());
        if found.is_none() {
            tracing::info!("the CUDA libraries are missing: models run on the CPU");
        }
        found.unwrap_or_default()
    }

    fn device(ordinal: usize) -> Option<ModelDevice> {
        let handle = Device::new_cuda(ordinal).map_err(|err| tracing::info!("no CUDA device {ordinal}: {err}")).ok()?;
        let Device::Cuda(device) = &handle else { return None };
        let stream = device.cuda_stream();
        let context = stream.context();
        let name = context.name().unwrap_or_else(|_| format!("CUDA device {ordinal}"));
        let memory = free_bytes(device);
        Some(ModelDevice { name, interface: "CUDA", memory, is_real: true, handle })
    }
}
