//! Energy counters of NVIDIA GPUs, read through the driver's own library where there is one.
//!
//! NVML (`nvml.h` of the driver's documentation) counts the millijoules of each GPU of Volta or later since its
//! driver was loaded. The library is looked for when it is asked for and never needed to build or to start.

use std::ffi::{c_int, c_uint, c_ulonglong, c_void};

use libloading::Library;

/// What the driver installs, by system.
const NAMES: [&str; 3] = ["libnvidia-ml.so.1", "libnvidia-ml.so", "nvml.dll"];

// SAFETY: types of the library's functions, as its header declares them; every call has its own note.
type Init = unsafe extern "C" fn() -> c_int;
type Count = unsafe extern "C" fn(*mut c_uint) -> c_int;
type Handle = unsafe extern "C" fn(c_uint, *mut *mut c_void) -> c_int;
type Energy = unsafe extern "C" fn(*mut c_void, *mut c_ulonglong) -> c_int;

/// GPUs whose counters can be read.
#[derive(Debug)]
pub struct EnergyCounters {
    library: Library,
    /// Indices of the GPUs that count.
    gpus: Vec<c_uint>,
}

impl EnergyCounters {
    /// Opens the library and finds the GPUs that count.
    ///
    /// # Errors
    /// In words, why there is nothing to read: no library, no driver, or no GPU that counts.
    pub fn open() -> Result<Self, String> {
        Self::open_named(&NAMES)
    }

    fn open_named(names: &[&str]) -> Result<Self, String> {
        let library = names
            .iter()
            // SAFETY: the driver's library; loading it runs its own initializers, which only set up its state.
            .find_map(|name| unsafe { Library::new(name) }.ok())
            .ok_or("the NVIDIA driver's library (NVML) is not on this machine")?;
        let mut counters = Self { library, gpus: Vec::new() };
        let mut count: c_uint = 0;
        // SAFETY: symbols of nvml.h with the signatures that it gives them; `count` outlives the call.
        let is_ready = unsafe {
            let init = counters.library.get::<Init>(b"nvmlInit_v2\0");
            let device_count = counters.library.get::<Count>(b"nvmlDeviceGetCount_v2\0");
            matches!((init, device_count), (Ok(init), Ok(device_count)) if init() == 0 && device_count(&mut count) == 0)
        };
        if !is_ready {
            return Err("NVML is there, but its driver does not answer".to_owned());
        }
        counters.gpus = (0..count).filter(|&index| counters.millijoules_of(index).is_some()).collect();
        if counters.gpus.is_empty() {
            return Err(format!("none of {count} NVIDIA GPUs counts its energy"));
        }
        Ok(counters)
    }

    /// Millijoules of every GPU since its driver was loaded; none where one no longer answers.
    pub fn millijoules(&self) -> Option<Vec<u64>> {
        self.gpus.iter().map(|&index| self.millijoules_of(index)).collect()
    }

    fn millijoules_of(&self, index: c_uint) -> Option<u64> {
        let mut device: *mut c_void = std::ptr::null_mut();
        let mut energy: c_ulonglong = 0;
        // SAFETY: as in `open_named`; the handle is only passed back to the library that gave it, and both
        // outputs outlive the calls.
        let is_read = unsafe {
            let handle = self.library.get::<Handle>(b"nvmlDeviceGetHandleByIndex_v2\0").ok()?;
            let total = self.library.get::<Energy>(b"nvmlDeviceGetTotalEnergyConsumption\0").ok()?;
            handle(index, &mut device) == 0 && total(device, &mut energy) == 0
        };
        is_read.then_some(energy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_library_it_says_so() {
        let error = EnergyCounters::open_named(&["libnvidia-ml-that-nobody-has.so.1"]).expect_err("not there");
        assert!(error.contains("not on this machine"), "{error}");
    }

    #[test]
    fn where_a_gpu_counts_its_counter_does_not_fall() {
        match EnergyCounters::open() {
            Ok(counters) => {
                let before = counters.millijoules().expect("readable");
                std::thread::sleep(std::time::Duration::from_millis(150));
                let after = counters.millijoules().expect("readable");
                assert!(!before.is_empty() && before.iter().zip(&after).all(|(before, after)| before <= after));
            }
            Err(reason) => assert!(!reason.is_empty()),
        }
    }
}
