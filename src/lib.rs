//! Lapidary: a workbench for making language models smaller without breaking them.
//!
//! Data flows one way:
//! **checkpoint → profile → calibration → sensitivity → plan → pass → evaluation → comparison → report.**
//! Each stage in [`engine`] exports one noun and one entry function: borrowed input, options with
//! `Default`, a [`engine::progress::Progress`], and a `Result` of the noun.
//!
//! Layers, each using only those before it: [`engine`] computes and knows of no window;
//! [`workbench`] holds the open project, takes commands and runs jobs; `app` paints it;
//! [`cli`] is the same engine for a terminal. `tests/architecture.rs` proves the order.
//!
//! Where to start reading: [`engine::checkpoint::Checkpoint::open`], then [`engine::plan::Plan`],
//! then [`engine::pass::run`]; for the window, [`workbench::Workbench::apply`].

pub use lapidary_engine as engine;

pub mod cli;
pub mod workbench;

#[cfg(feature = "gui")]
pub mod app;
