//! What the centre of the window shows, one file a view.

pub mod compare;
pub mod overview;
pub mod plan;
pub mod playground;
pub mod runs;
pub mod sensitivity;
pub mod weights;
