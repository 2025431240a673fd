//! Compression kernels on any GPU: error scans, encoders and statistics as WGSL compute through `wgpu`,
//! by Vulkan, Metal or DX12.
//!
//! The shaders follow the CPU's kernels step by step, in f32, without any optional feature. WGSL
//! leaves the last bit of a division and the contraction of a product and a sum to the driver, so that
//! figures agree to 1e-5 and now and then a block takes another of two nearly equal scales; what f32
//! or the search cannot hold (NaN, infinities, values whose squares over- or underflow, runs of equal
//! values) is handed back row by row for the reference to do. Nothing here is needed to compute
//! anything: every failure is a [`Failure`], after which the CPU does the same work.
//!
//! A device is listed by [`adapters`] and opened as a [`Device`], with an
//! adapter and a queue of its own, apart from the window's. [`Scanner`], [`Encoder`]
//! and the two of `statistics` stream a tensor's rows through it, three pieces of a bounded size at a time.

mod adapter;
mod device;
mod encoder;
mod job;
mod recipe;
mod scanner;
mod staging;
mod statistics;

pub use adapter::{Adapter, Kind, adapters, quiet_loader};
pub use device::Device;
pub use encoder::{Encoded, Encoder, RowLayout};
pub use recipe::{Place, Recipe, Scales};
pub use scanner::Scanner;
pub use staging::{PIECE_WEIGHTS, Source};
pub use statistics::{Counted, Counter, Rows, Spread, Spreader, Surveyed, Surveyor};

/// Why a device cannot go on. The CPU can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// There is no such device, or it could not be opened.
    Missing(String),
    /// The device's memory is full.
    OutOfMemory(String),
    /// The device went away, or did not answer in time.
    Lost(String),
    /// The driver refused something.
    Driver(String),
    /// The work has a shape that the device cannot hold.
    TooLarge(String),
    /// What it computed is not what the reference computes.
    Wrong(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (what, why) = match self {
            Self::Missing(why) => ("no such device", why),
            Self::OutOfMemory(why) => ("the device's memory is full", why),
            Self::Lost(why) => ("the device was lost", why),
            Self::Driver(why) => ("the device's driver failed", why),
            Self::TooLarge(why) => ("too large for the device", why),
            Self::Wrong(why) => ("the device computes wrongly", why),
        };
        write!(out, "{what}: {why}")
    }
}

impl std::error::Error for Failure {}
