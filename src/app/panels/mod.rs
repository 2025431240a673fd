//! What frames the centre: menu, list of tensors, inspector, job strip, palette, dialogs.

pub mod dialogs;
pub mod inspector;
pub mod menu;
pub mod palette;
pub mod standing;
pub mod strip;
pub mod tensors;
