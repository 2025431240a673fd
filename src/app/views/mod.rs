//! What the centre of the window shows, one file a view.

mod common;
pub mod compare;
mod compare_data;
mod compare_parts;
mod importance;
pub mod overview;
pub mod plan;
mod plan_budget;
mod plan_formats;
mod plan_frontier;
pub mod playground;
mod report;
pub mod runs;
pub mod sensitivity;
pub mod weights;
