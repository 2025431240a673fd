//! Energy by the counters that Linux shows: RAPL's package domains, and memory's where it has its own.
//!
//! The counters of a machine count everything that runs on it. Domains within a package (core, uncore) and the
//! platform's are left out, since adding them would count twice. Often only root may read them; then there is
//! no figure, or one estimated from a power that the user names, which says so.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Where Linux shows the counters.
const FOLDER: &str = "/sys/class/powercap";

/// Energy of some work.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Energy {
    /// Processor packages, in joules.
    pub package_joules: f64,
    /// Memory, where it is counted apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_joules: Option<f64>,
    pub seconds: f64,
    /// True where it is a named power times the time and not a counter.
    pub is_estimate: bool,
}

impl Energy {
    /// All of it.
    pub fn joules(&self) -> f64 {
        self.package_joules + self.memory_joules.unwrap_or(0.0)
    }
}

#[derive(Debug)]
struct Domain {
    folder: PathBuf,
    is_memory: bool,
    range: u64,
    before: u64,
}

fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Counters that were read at the start of some work.
#[derive(Debug)]
pub struct EnergyMeter {
    domains: Vec<Domain>,
    started: Instant,
}

impl EnergyMeter {
    /// Reads the counters; `None` where there are none or they may not be read.
    pub fn start() -> Option<Self> {
        Self::start_in(Path::new(FOLDER))
    }

    fn start_in(folder: &Path) -> Option<Self> {
        let mut domains = Vec::new();
        for entry in std::fs::read_dir(folder).ok()?.flatten() {
            let folder = entry.path();
            let Ok(name) = std::fs::read_to_string(folder.join("name")) else { continue };
            let (is_package, is_memory) = (name.starts_with("package"), name.trim() == "dram");
            if !is_package && !is_memory {
                continue;
            }
            let (Some(before), Some(range)) =
                (number(&folder.join("energy_uj")), number(&folder.join("max_energy_range_uj")))
            else {
                continue;
            };
            domains.push(Domain { folder, is_memory, range, before });
        }
        domains.iter().any(|domain| !domain.is_memory).then(|| Self { domains, started: Instant::now() })
    }

    /// What was used since the start. A counter that wrapped is taken to have wrapped once, which at 200 W takes
    /// over twenty minutes on most machines.
    pub fn stop(&self) -> Option<Energy> {
        let mut energy = Energy {
            package_joules: 0.0,
            memory_joules: None,
            seconds: self.started.elapsed().as_secs_f64(),
            is_estimate: false,
        };
        for domain in &self.domains {
            let now = number(&domain.folder.join("energy_uj"))?;
            let used = if now >= domain.before { now - domain.before } else { domain.range - domain.before + now };
            let joules = used as f64 / 1e6;
            if domain.is_memory {
                *energy.memory_joules.get_or_insert(0.0) += joules;
            } else {
                energy.package_joules += joules;
            }
        }
        Some(energy)
    }
}

/// Energy from a power that the user names, marked as an estimate.
pub fn estimate(watts: f64, seconds: f64) -> Energy {
    Energy { package_joules: watts * seconds, memory_joules: None, seconds, is_estimate: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(folder: &Path, name: &str, label: &str, energy: u64) {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder).expect("folder");
        std::fs::write(folder.join("name"), format!("{label}\n")).expect("name");
        std::fs::write(folder.join("energy_uj"), energy.to_string()).expect("energy");
        std::fs::write(folder.join("max_energy_range_uj"), "1000000000").expect("range");
    }

    #[test]
    fn packages_and_memory_are_added_once_and_a_wrapped_counter_goes_on() {
        let folder = tempfile::tempdir().expect("folder");
        let root = folder.path();
        domain(root, "intel-rapl:0", "package-0", 999_000_000);
        domain(root, "intel-rapl:1", "package-1", 1_000_000);
        domain(root, "intel-rapl:0:0", "core", 5);
        domain(root, "intel-rapl:0:1", "dram", 0);
        let meter = EnergyMeter::start_in(root).expect("counters");
        domain(root, "intel-rapl:0", "package-0", 1_000_000);
        domain(root, "intel-rapl:1", "package-1", 4_000_000);
        domain(root, "intel-rapl:0:0", "core", 900_000_000);
        domain(root, "intel-rapl:0:1", "dram", 500_000);
        let energy = meter.stop().expect("energy");
        assert!((energy.package_joules - 5.0).abs() < 1e-9 && !energy.is_estimate, "{energy:?}");
        assert_eq!(energy.memory_joules, Some(0.5));
        assert!((energy.joules() - 5.5).abs() < 1e-9);
    }

    #[test]
    fn without_counters_there_is_no_figure() {
        let folder = tempfile::tempdir().expect("folder");
        assert!(EnergyMeter::start_in(folder.path()).is_none());
        assert!(EnergyMeter::start_in(&folder.path().join("missing")).is_none());
        assert_eq!(estimate(65.0, 2.0).joules(), 130.0);
    }
}
