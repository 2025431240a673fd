//! Energy by the counters that a machine shows: RAPL's package domains, memory's where it has its own, and NVML's
//! for NVIDIA GPUs.
//!
//! The counters of a machine count everything that runs on it. Domains within a package (core, uncore) and the
//! platform's are left out, since adding them would count twice. Often only root may read RAPL; where no counter
//! can be read there is no figure, or one estimated from a power that the user names, which says so.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::kernels::nvml::EnergyCounters;

/// Where Linux shows the counters.
const FOLDER: &str = "/sys/class/powercap";

/// Which counters a figure is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnergySource {
    /// The processor's.
    Rapl,
    /// The GPUs'.
    Nvml,
    /// Both.
    RaplAndNvml,
    /// None: a power that was named, times the time.
    NamedPower,
}

impl EnergySource {
    /// What it is, for people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Rapl => "counted by RAPL, the whole machine without GPUs",
            Self::Nvml => "counted by NVML, the GPUs alone",
            Self::RaplAndNvml => "counted by RAPL and NVML, the whole machine",
            Self::NamedPower => "estimated from the power named",
        }
    }
}

/// Energy of some work.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Energy {
    /// Processor packages, in joules; 0 where only GPUs count. Of an estimate, all of it.
    pub package_joules: f64,
    /// Memory, where it is counted apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_joules: Option<f64>,
    /// GPUs, where they count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_joules: Option<f64>,
    pub seconds: f64,
    pub source: EnergySource,
    /// True where it is a named power times the time and not a counter.
    pub is_estimate: bool,
}

impl Energy {
    /// All of it.
    pub fn joules(&self) -> f64 {
        self.package_joules + self.memory_joules.unwrap_or(0.0) + self.gpu_joules.unwrap_or(0.0)
    }
}

/// Energy of scoring a model's items.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EnergyUse {
    #[serde(flatten)]
    pub energy: Energy,
    /// Tokens that were read of prompts, and written.
    pub tokens: u64,
    /// Items that were answered right meanwhile; those taken over from an interrupted run are not among them.
    pub correct: u64,
    pub joules_per_token: f64,
    /// None where no answer was right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joules_per_correct_answer: Option<f64>,
}

impl EnergyUse {
    /// Shares of `energy` for `tokens` and `correct` answers; none where nothing was read.
    pub fn new(energy: Energy, tokens: u64, correct: u64) -> Option<Self> {
        let joules = energy.joules();
        (tokens > 0).then(|| Self {
            energy,
            tokens,
            correct,
            joules_per_token: joules / tokens as f64,
            joules_per_correct_answer: (correct > 0).then(|| joules / correct as f64),
        })
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

/// What a counter counts: a package, or its memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Counted {
    package: String,
    is_memory: bool,
}

/// Folders of packages and their memory, those of the processor's own registers first. Many machines show the same
/// package a second time, as memory-mapped registers (`intel-rapl-mmio`), which must not be added.
fn domains(root: &Path) -> Vec<(PathBuf, Counted)> {
    let name_of = |folder: &Path| Some(std::fs::read_to_string(folder.join("name")).ok()?.trim().to_owned());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        let folder = entry.path();
        let Some(name) = name_of(&folder) else { continue };
        if name.starts_with("package") {
            found.push((folder, Counted { package: name, is_memory: false }));
        } else if name == "dram" {
            let own = entry.file_name().to_string_lossy().into_owned();
            // `intel-rapl:0:1` is a part of `intel-rapl:0`, which has the name of the package.
            let parent = own.rsplit_once(':').map_or(own.as_str(), |(parent, _)| parent);
            let package = name_of(&root.join(parent)).unwrap_or_else(|| parent.to_owned());
            found.push((folder, Counted { package, is_memory: true }));
        }
    }
    let is_mapped = |folder: &Path| folder.file_name().is_some_and(|name| name.to_string_lossy().contains("mmio"));
    found.sort_by(|(a, _), (b, _)| is_mapped(a).cmp(&is_mapped(b)).then_with(|| a.cmp(b)));
    found
}

/// Counters that were read at the start of some work.
#[derive(Debug)]
pub struct EnergyMeter {
    domains: Vec<Domain>,
    gpus: Option<(EnergyCounters, Vec<u64>)>,
    watts: Option<f64>,
    started: Instant,
    /// Why what is missing is missing.
    reasons: Vec<String>,
}

impl EnergyMeter {
    /// Reads the counters. `watts` is a power to estimate with where none can be read.
    pub fn start(watts: Option<f64>) -> Self {
        Self::start_in(Path::new(FOLDER), EnergyCounters::open(), watts)
    }

    fn start_in(folder: &Path, gpus: Result<EnergyCounters, String>, watts: Option<f64>) -> Self {
        let mut meter = Self { domains: Vec::new(), gpus: None, watts, started: Instant::now(), reasons: Vec::new() };
        let mut is_hidden = false;
        let mut counted = HashSet::new();
        for (folder, name) in domains(folder) {
            if counted.contains(&name) {
                continue;
            }
            match (number(&folder.join("energy_uj")), number(&folder.join("max_energy_range_uj"))) {
                (Some(before), Some(range)) => {
                    meter.domains.push(Domain { folder, is_memory: name.is_memory, range, before });
                    counted.insert(name);
                }
                _ => is_hidden = true,
            }
        }
        if !meter.domains.iter().any(|domain| !domain.is_memory) {
            meter.domains.clear();
            let reason = if is_hidden {
                "only root may read the processor's counters (RAPL)"
            } else {
                "no RAPL counters are shown"
            };
            meter.reasons.push(reason.to_owned());
        }
        match gpus.map(|counters| counters.millijoules().map(|before| (counters, before))) {
            Ok(read) => meter.gpus = read,
            Err(reason) => meter.reasons.push(reason),
        }
        meter
    }

    /// Why there is no figure, or not all of it; empty where every counter is read.
    pub fn missing(&self) -> String {
        self.reasons.join("; ")
    }

    /// What was used since the start; `None` where nothing can be read and no power was named. A counter that
    /// wrapped is taken to have wrapped once, which at 200 W takes over twenty minutes on most machines.
    pub fn stop(&self) -> Option<Energy> {
        let seconds = self.started.elapsed().as_secs_f64();
        let (mut package_joules, mut memory_joules) = (0.0, None);
        for domain in &self.domains {
            let now = number(&domain.folder.join("energy_uj"))?;
            let used = if now >= domain.before { now - domain.before } else { domain.range - domain.before + now };
            let joules = used as f64 / 1e6;
            if domain.is_memory {
                *memory_joules.get_or_insert(0.0) += joules;
            } else {
                package_joules += joules;
            }
        }
        let gpu_joules = self.gpus.as_ref().and_then(|(counters, before)| {
            let after = counters.millijoules()?;
            Some(after.iter().zip(before).map(|(after, before)| after.saturating_sub(*before) as f64 / 1e3).sum())
        });
        let source = match (self.domains.is_empty(), gpu_joules.is_some()) {
            (false, false) => EnergySource::Rapl,
            (false, true) => EnergySource::RaplAndNvml,
            (true, true) => EnergySource::Nvml,
            (true, false) => return self.watts.map(|watts| estimate(watts, seconds)),
        };
        Some(Energy { package_joules, memory_joules, gpu_joules, seconds, source, is_estimate: false })
    }
}

/// Energy from a power that the user names, marked as an estimate.
pub fn estimate(watts: f64, seconds: f64) -> Energy {
    Energy {
        package_joules: watts * seconds,
        memory_joules: None,
        gpu_joules: None,
        seconds,
        source: EnergySource::NamedPower,
        is_estimate: true,
    }
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
        let meter = EnergyMeter::start_in(root, Err("no GPU".to_owned()), Some(65.0));
        assert_eq!(meter.missing(), "no GPU");
        domain(root, "intel-rapl:0", "package-0", 1_000_000);
        domain(root, "intel-rapl:1", "package-1", 4_000_000);
        domain(root, "intel-rapl:0:0", "core", 900_000_000);
        domain(root, "intel-rapl:0:1", "dram", 500_000);
        let energy = meter.stop().expect("energy");
        assert!((energy.package_joules - 5.0).abs() < 1e-9 && !energy.is_estimate, "{energy:?}");
        assert_eq!(energy.memory_joules, Some(0.5));
        assert!((energy.joules() - 5.5).abs() < 1e-9);
        assert_eq!(energy.source, EnergySource::Rapl);
        let used = EnergyUse::new(energy, 11, 5).expect("tokens");
        assert!((used.joules_per_token - 0.5).abs() < 1e-9);
        assert!((used.joules_per_correct_answer.expect("answers") - 1.1).abs() < 1e-9);
        assert!(EnergyUse::new(energy, 0, 0).is_none());
        assert_eq!(EnergyUse::new(energy, 11, 0).expect("tokens").joules_per_correct_answer, None);
    }

    #[test]
    fn a_package_that_is_shown_twice_is_counted_once() {
        let folder = tempfile::tempdir().expect("folder");
        let root = folder.path();
        let all = |energy: u64| {
            domain(root, "intel-rapl-mmio:0", "package-0", energy);
            domain(root, "intel-rapl-mmio:0:0", "dram", energy);
            domain(root, "intel-rapl:0", "package-0", energy);
            domain(root, "intel-rapl:0:1", "dram", energy);
            domain(root, "intel-rapl:1", "package-1", energy);
            domain(root, "intel-rapl:1:0", "dram", energy);
            domain(root, "intel-rapl:2", "psys", energy);
        };
        all(1_000_000);
        let meter = EnergyMeter::start_in(root, Err("no GPU".to_owned()), None);
        assert_eq!(meter.domains.len(), 4);
        assert!(meter.domains.iter().all(|domain| !domain.folder.to_string_lossy().contains("mmio")));
        all(3_000_000);
        let energy = meter.stop().expect("energy");
        // Two joules of each of two packages, and of the memory of each.
        assert_eq!((energy.package_joules, energy.memory_joules), (4.0, Some(4.0)));
        // Where only the mapped registers can be read, they are what counts.
        std::fs::remove_file(root.join("intel-rapl:0/energy_uj")).expect("removes");
        let meter = EnergyMeter::start_in(root, Err("no GPU".to_owned()), None);
        assert_eq!(meter.domains.len(), 4);
        assert!(meter.domains.iter().any(|domain| domain.folder.ends_with("intel-rapl-mmio:0")));
    }

    #[test]
    fn without_counters_there_is_no_figure() {
        let folder = tempfile::tempdir().expect("folder");
        for root in [folder.path().to_owned(), folder.path().join("missing")] {
            let none = EnergyMeter::start_in(&root, Err("no GPU".to_owned()), None);
            assert!(none.stop().is_none());
            assert_eq!(none.missing(), "no RAPL counters are shown; no GPU");
        }
        std::fs::create_dir(folder.path().join("intel-rapl:0")).expect("folder");
        std::fs::write(folder.path().join("intel-rapl:0/name"), "package-0").expect("name");
        let hidden = EnergyMeter::start_in(folder.path(), Err("no GPU".to_owned()), Some(65.0));
        assert!(hidden.missing().contains("only root"), "{}", hidden.missing());
        let estimated = hidden.stop().expect("a named power");
        assert!(estimated.is_estimate && estimated.source == EnergySource::NamedPower);
        assert_eq!(estimate(65.0, 2.0).joules(), 130.0);
    }
}
