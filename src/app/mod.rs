//! The window: theme, widgets, plots and panels over the workbench.
//!
//! [`theme`] holds every colour, size and font; [`widgets`] are the small controls that all panels
//! share; [`plots`] draw data from plain structs. Panels read the workbench and emit commands.

pub mod plots;
#[cfg(test)]
mod testing;
pub mod theme;
pub mod widgets;
