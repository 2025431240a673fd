//! Where and under what load something was measured: what a figure of speed means nothing without.

use serde::{Deserialize, Serialize};

use super::kernel_rates::Machine;

/// Share of the worker threads' cores that other programs may take before a speed counts as measured under load.
const LIGHT_LOAD: f64 = 0.1;

/// The machine that measured, and what else it did meanwhile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// Name of the processor.
    pub processor: String,
    /// Operating system and architecture.
    pub system: String,
    /// Instruction level of the kernels.
    pub level: String,
    /// Worker threads.
    pub threads: usize,
    /// Processes that wanted a core in the minute before speed was measured, this program's own among them; `None`
    /// where speed was not measured or the system does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_average: Option<f64>,
    /// Cores that other programs kept busy while speed was measured, on average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_cores: Option<f64>,
}

impl Conditions {
    /// This machine, before anything was measured.
    pub fn here() -> Self {
        let machine = Machine::here();
        Self {
            processor: machine.cpu,
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            level: machine.level,
            threads: machine.threads,
            load_average: None,
            other_cores: None,
        }
    }

    /// True where other programs took more than a tenth of the cores that this one works with.
    pub fn is_loaded(&self) -> bool {
        self.other_cores.is_some_and(|cores| cores > LIGHT_LOAD * self.threads as f64)
    }
}

/// Processes that wanted a core in the last minute; `None` where the system does not say.
pub fn load_average() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

/// Clock ticks of all cores, and of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticks {
    all: u64,
    busy: u64,
    own: u64,
    cores: u64,
}

impl Ticks {
    fn now() -> Option<Self> {
        let read = |path: &str| std::fs::read_to_string(path).ok();
        Self::parse(&read("/proc/stat")?, &read("/proc/self/stat")?)
    }

    /// Linux's `/proc/stat` and `/proc/self/stat`.
    fn parse(machine: &str, process: &str) -> Option<Self> {
        let numbers: Vec<u64> = machine
            .lines()
            .next()?
            .strip_prefix("cpu ")?
            .split_whitespace()
            .map_while(|text| text.parse().ok())
            .collect();
        // User, nice, system, idle, waiting, interrupts (hard and soft), stolen; guests are counted in the first two.
        let told: &[u64] = numbers.get(..8)?;
        let all: u64 = told.iter().sum();
        let cores = machine.lines().skip(1).take_while(|line| line.starts_with("cpu")).count() as u64;
        // The name of the process may hold spaces and brackets: what is numbered begins after the last one.
        let mut fields = process.rsplit_once(')')?.1.split_whitespace().skip(11);
        let mut own = || fields.next()?.parse::<u64>().ok();
        Some(Self { all, busy: all - told[3] - told[4], own: own()? + own()?, cores })
    }

    /// Cores that others kept busy since `before`.
    fn others_since(&self, before: &Self) -> Option<f64> {
        let all = self.all.checked_sub(before.all).filter(|&ticks| ticks > 0)?;
        let busy = self.busy.saturating_sub(before.busy).saturating_sub(self.own.saturating_sub(before.own));
        Some(busy as f64 / all as f64 * self.cores as f64)
    }
}

/// Watches what other programs do to the cores.
#[derive(Clone, Copy, Debug)]
pub struct LoadWatch(Option<Ticks>);

impl LoadWatch {
    /// Begins to watch.
    pub fn start() -> Self {
        Self(Ticks::now())
    }

    /// Cores that other programs kept busy since the start; `None` where the system does not say.
    pub fn stop(&self) -> Option<f64> {
        Ticks::now()?.others_since(self.0.as_ref()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_do_is_all_that_is_busy_less_what_we_are() {
        let machine =
            |user: u64, idle: u64| format!("cpu  {user} 0 100 {idle} 50 0 0 0 7 0\ncpu0 1 2 3\ncpu1 1 2 3\nintr 5\n");
        let process = |user: u64| format!("42 (a (b) c) S 1 1 1 0 -1 4194304 9 0 0 0 {user} 10 0 0 20 0 3 0\n");
        let before = Ticks::parse(&machine(1000, 2000), &process(400)).expect("ticks");
        assert_eq!(before, Ticks { all: 3150, busy: 1100, own: 410, cores: 2 });
        // 200 ticks passed on two cores, 150 of them busy, 100 of those ours.
        let after = Ticks::parse(&machine(1150, 2050), &process(500)).expect("ticks");
        assert_eq!(after.others_since(&before), Some(0.5));
        assert_eq!(before.others_since(&before), None);
        assert_eq!(Ticks::parse("intr 1", &process(1)), None);
    }

    #[test]
    fn a_tenth_of_the_cores_is_light() {
        let with = |other_cores| Conditions { threads: 4, other_cores, ..Conditions::here() }.is_loaded();
        assert_eq!([None, Some(0.4), Some(0.41)].map(with), [false, false, true]);
    }
}
