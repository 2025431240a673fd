//! Where scans run: which devices there are, which one is used, and how its failure is told.
//!
//! The CPU is always there and does everything. A GPU does the error scans of formats
//! ([`crate::kernels::gpu`]); one that fails is left for the CPU, and no result is lost. A driver that
//! computes in software is listed, and used only where it is asked for by name.

#[cfg(feature = "gpu")]
use std::sync::Arc;

use serde::Serialize;

use crate::error::{Fault, Result, Stage};
#[cfg(feature = "gpu")]
use crate::kernels::gpu::{self, Wish};

/// The variable that names a device where no option does.
pub const VARIABLE: &str = "LAPIDARY_DEVICE";

/// What a GPU can do.
#[cfg(feature = "gpu")]
const SCANS: &[&str] = &["error scans of formats"];

/// What the CPU can do.
const ALL: &[&str] = &["error scans of formats", "profiles", "passes", "models"];

/// A device as it is listed.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// `discrete`, `integrated`, `virtual`, `software` or `cpu`.
    pub kind: &'static str,
    /// `Vulkan`, `Metal` or `Dx12`; empty for the CPU.
    pub interface: String,
    /// The driver and its version; the instruction level of the CPU.
    pub driver: String,
    /// Bytes of its own memory, where the system tells.
    pub memory: Option<u64>,
    /// What it can do.
    pub runs: &'static [&'static str],
    /// True if scans run there.
    pub is_chosen: bool,
}

/// Where scans run: a GPU that was opened, or the CPU.
#[derive(Clone, Debug, Default)]
pub struct Device {
    #[cfg(feature = "gpu")]
    gpu: Option<Arc<gpu::Device>>,
}

#[cfg(feature = "gpu")]
impl Device {
    /// The device that a wish means: `auto` is a real GPU if there is one, `cpu` the CPU, and
    /// anything else a part of a name.
    ///
    /// # Errors
    /// No device has the name, or the one named cannot be opened; `auto` takes the CPU then.
    pub fn choose(wish: &str) -> Result<Self> {
        let wish = Wish::parse(wish);
        if wish == Wish::Cpu {
            return Ok(Self::default());
        }
        let fault = |failure: gpu::Failure| {
            Fault::new(Stage::Sensitivity, failure.to_string())
                .fix("see `lapidary devices` for the names, or take --device cpu")
        };
        let adapter = gpu::choose(&wish, gpu::adapters()).map_err(fault)?;
        match adapter.map(|adapter| gpu::Device::open(&adapter)).transpose() {
            Ok(gpu) => Ok(Self { gpu: gpu.map(Arc::new) }),
            Err(failure) if wish == Wish::Auto => {
                tracing::warn!("{failure}; the CPU is used");
                Ok(Self::default())
            }
            Err(failure) => Err(fault(failure).into()),
        }
    }

    /// The GPU, if it is one.
    pub(crate) fn gpu(&self) -> Option<&gpu::Device> {
        self.gpu.as_deref()
    }

    /// The name that results carry; none for the CPU.
    pub fn name(&self) -> Option<&str> {
        self.gpu().map(gpu::Device::name)
    }
}

#[cfg(not(feature = "gpu"))]
impl Device {
    /// The CPU for `auto` and `cpu`: this build has no other device.
    ///
    /// # Errors
    /// Any other name.
    pub fn choose(wish: &str) -> Result<Self> {
        if ["", "auto", "cpu"].contains(&wish.trim().to_ascii_lowercase().as_str()) {
            return Ok(Self::default());
        }
        Err(Fault::new(Stage::Sensitivity, format!("no such device: {wish}; this build has only the CPU"))
            .fix("build with the feature gpu, or take --device cpu")
            .into())
    }

    /// The name that results carry; none for the CPU.
    pub fn name(&self) -> Option<&str> {
        None
    }
}

impl Device {
    /// The device that [`VARIABLE`] names, else that of `auto`; the CPU, with a warning in the log,
    /// where there is none of the name.
    pub fn automatic() -> Self {
        let wish = std::env::var(VARIABLE).unwrap_or_default();
        Self::choose(&wish).unwrap_or_else(|error| {
            tracing::warn!("{error}; the CPU is used");
            Self::default()
        })
    }
}

/// Every device, the CPU last; `wish` as for [`Device::choose`] says which is marked as chosen.
///
/// # Errors
/// No device has the name.
pub fn list(wish: &str) -> Result<Vec<Listed>> {
    let chosen = Device::choose(wish)?;
    let cpu = Listed {
        name: "CPU".to_owned(),
        kind: "cpu",
        interface: String::new(),
        driver: crate::kernels::Level::detect().name().to_owned(),
        memory: None,
        runs: ALL,
        is_chosen: chosen.name().is_none(),
    };
    Ok(adapters(&chosen).into_iter().chain([cpu]).collect())
}

#[cfg(feature = "gpu")]
fn adapters(chosen: &Device) -> Vec<Listed> {
    let listed = |adapter: gpu::Adapter| Listed {
        is_chosen: chosen.name() == Some(adapter.name.as_str()),
        kind: adapter.kind.name(),
        name: adapter.name,
        interface: adapter.interface,
        driver: adapter.driver,
        memory: adapter.memory,
        runs: SCANS,
    };
    gpu::adapters().into_iter().map(listed).collect()
}

#[cfg(not(feature = "gpu"))]
fn adapters(_: &Device) -> Vec<Listed> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_always_there_and_a_device_of_no_such_name_is_told() {
        let all = list("cpu").expect("the CPU needs no driver");
        let last = all.last().expect("the CPU");
        assert!(last.kind == "cpu" && last.is_chosen && last.runs.contains(&"passes"));
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
}
