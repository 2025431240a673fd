//! Storage formats and the kernels that encode, decode, measure and multiply them: numbers in, numbers out.
//! A crate of its own, so that it is compiled once and optimized fully in every profile.
//!
//! The modules are listed in the order in which they may use each other: each only those above it.

pub mod kernels;

pub mod format;
