//! What the centre of the window shows, one file a view.

mod common;
pub mod compare;
mod compare_data;
mod compare_more;
mod compare_parts;
pub mod heads;
mod heads_steps;
mod heads_went;
mod importance;
pub mod overview;
pub mod plan;
mod plan_budget;
mod plan_constraints;
mod plan_formats;
mod plan_frontier;
mod plan_history;
mod plan_many;
mod plan_target;
pub mod playground;
pub mod report;
pub mod runs;
pub mod sensitivity;
mod sensitivity_curves;
mod sensitivity_inputs;
mod sensitivity_map;
mod sensitivity_units;
pub mod weights;
