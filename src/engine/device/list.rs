//! The devices there are, and what will run on each.

use serde::Serialize;

#[cfg(feature = "gpu")]
use super::rates::Work;
use super::{Device, machine_memory, model_devices};
use crate::error::Result;
#[cfg(feature = "gpu")]
use crate::kernels::gpu;

/// What a GPU can do by way of `wgpu`.
#[cfg(feature = "gpu")]
const KERNELS: [&str; 3] = ["error scans of formats", "profiles", "passes"];

/// The kinds of work behind each of [`KERNELS`]: any of them makes it run there. Searches of a pass run there
/// only where a plan says so.
#[cfg(feature = "gpu")]
const WORKS: [&[Work]; 3] = [&[Work::Scans, Work::ScanSearches], &[Work::Statistics], &[Work::Encoding]];

/// What a device of candle's can do.
pub(super) const MODELS: &str = "models";

/// What the CPU can do.
pub(super) const ALL: [&str; 4] = ["error scans of formats", "profiles", "passes", MODELS];

/// A device as it is listed.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// `discrete`, `integrated`, `virtual`, `software` or `cpu`.
    pub kind: &'static str,
    /// `Vulkan`, `Metal`, `Dx12`, `CUDA`, `candle`, or several of them; empty for the CPU.
    pub interface: String,
    /// The driver and its version; the instruction level of the CPU.
    pub driver: String,
    /// Bytes of its own memory, or of the machine's for the CPU, where the system tells.
    pub memory: Option<u64>,
    /// What it can do.
    pub runs: Vec<&'static str>,
    /// What will run there.
    pub will_run: Vec<&'static str>,
    /// True if anything will.
    pub is_chosen: bool,
}

impl Listed {
    /// True if models can run on it.
    pub fn runs_models(&self) -> bool {
        self.runs.contains(&MODELS)
    }

    /// True if models run there now.
    pub fn will_run_models(&self) -> bool {
        self.will_run.contains(&MODELS)
    }

    /// True if it is a device beside the CPU that passes encode on now.
    pub fn will_run_passes(&self) -> bool {
        self.kind != "cpu" && self.will_run.contains(&"passes")
    }

    /// Name and interface.
    pub fn in_words(&self) -> String {
        if self.interface.is_empty() { self.name.clone() } else { format!("{} ({})", self.name, self.interface) }
    }
}

/// Every device, the CPU last; `wish` as for [`Device::choose`] says which is marked as chosen.
///
/// # Errors
/// No device has the name.
pub fn list(wish: &str) -> Result<Vec<Listed>> {
    let chosen = Device::choose(wish)?;
    let mut all = adapters(&chosen);
    for device in model_devices() {
        let is_chosen = chosen.models().is_some_and(|chosen| chosen.name == device.name);
        let will_run = if is_chosen { vec![MODELS] } else { Vec::new() };
        if let Some(same) = all.iter_mut().find(|listed| listed.name == device.name) {
            same.interface = format!("{}, {}", same.interface, device.interface);
            same.memory = device.memory.or(same.memory);
            same.runs.push(MODELS);
            same.will_run.extend(will_run);
            same.is_chosen |= is_chosen;
        } else {
            all.push(Listed {
                name: device.name,
                kind: if device.is_real { "discrete" } else { "software" },
                interface: device.interface.to_owned(),
                driver: String::new(),
                memory: device.memory,
                runs: vec![MODELS],
                will_run,
                is_chosen,
            });
        }
    }
    let taken = |work: &&str| all.iter().any(|device| device.will_run.contains(work));
    let will_run: Vec<&str> = ALL.into_iter().filter(|work| !taken(work)).collect();
    all.push(Listed {
        name: "CPU".to_owned(),
        kind: "cpu",
        interface: String::new(),
        driver: crate::kernels::Level::detect().name().to_owned(),
        memory: machine_memory(),
        runs: ALL.to_vec(),
        is_chosen: all.iter().all(|device| !device.is_chosen),
        will_run,
    });
    Ok(all)
}

#[cfg(feature = "gpu")]
fn adapters(chosen: &Device) -> Vec<Listed> {
    let listed = |adapter: gpu::Adapter| {
        let is_chosen = chosen.kernels_name() == Some(adapter.name.as_str());
        let is_there = |works: &[Work]| is_chosen && works.iter().any(|&work| chosen.gpu_for(work).is_some());
        let will_run = WORKS.into_iter().zip(KERNELS).filter(|(works, _)| is_there(works)).map(|(_, name)| name);
        Listed {
            is_chosen,
            kind: adapter.kind.name(),
            will_run: will_run.collect(),
            name: adapter.name,
            interface: adapter.interface,
            driver: adapter.driver,
            memory: adapter.memory,
            runs: KERNELS.to_vec(),
        }
    };
    gpu::adapters().into_iter().map(listed).collect()
}

#[cfg(not(feature = "gpu"))]
fn adapters(_: &Device) -> Vec<Listed> {
    Vec::new()
}
