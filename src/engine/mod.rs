//! Everything that computes. Nothing here knows of a window, a terminal or a project.
//!
//! The modules are listed in the order in which they may use each other: each only those above it.

pub mod units;

pub mod error;

pub mod progress;

pub use lapidary_kernels::{format, kernels};

pub mod device;

pub mod target;

pub mod checkpoint;

pub mod model;

pub mod scoring;

pub mod profile;

pub mod calibration;

pub mod sensitivity;

pub mod structure;

pub mod plan;

pub mod pass;

pub mod evaluation;

pub mod comparison;

pub mod report;

pub use error::{Error, Fault, Result, Stage};
pub use progress::Progress;
