//! Numeric kernels: a portable reference for each, with faster paths chosen at run time.

pub mod counts;
