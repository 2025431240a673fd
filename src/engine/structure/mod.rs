//! How much every unit of the network matters: heads, KV groups, MLP channels and layers.
//!
//! It stands after `sensitivity`, whose model hooks and calibration it shares, and before `plan`, which
//! takes its selections as edits; a plan knows nothing of scores.

pub mod means;
