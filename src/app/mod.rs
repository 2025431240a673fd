//! The window: theme, widgets, plots, panels and views over the workbench.
//!
//! [`theme`] holds every colour, size and font; [`widgets`] are the small controls that all panels
//! share; [`plots`] draw data from plain structs; [`panels`] frame the centre and [`views`] fill it.
//! Panels read the workbench and emit commands; [`shell`] carries them out after the frame.

pub mod context;
pub mod panels;
pub mod plots;
pub mod shell;
#[cfg(test)]
mod testing;
pub mod theme;
pub mod views;
pub mod widgets;

use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Wake, Waker};

use eframe::egui;

pub use shell::LapidaryApp;

use crate::workbench::{Options, Workbench};

/// Lets jobs ask for a frame without knowing what a frame is.
struct FrameWaker(egui::Context);

impl Wake for FrameWaker {
    fn wake(self: Arc<Self>) {
        self.0.request_repaint();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.request_repaint();
    }
}

/// A waker for the window of `ctx`.
pub fn waker(ctx: &egui::Context) -> Waker {
    Waker::from(Arc::new(FrameWaker(ctx.clone())))
}

/// Opens the window, on `path` or on the bundled demo, and stays until it is closed.
///
/// # Errors
/// One sentence with the remedy where no window can be had.
pub fn run(path: Option<PathBuf>) -> Result<(), String> {
    let started = std::time::Instant::now();
    let icon = eframe::icon_data::from_png_bytes(include_bytes!("../../assets/icon.png"))
        .map_err(|err| format!("the icon in this program is damaged: {err}"))?;
    let options = eframe::NativeOptions {
        viewport: egui::ViewportBuilder::default()
            .with_title("Lapidary")
            .with_app_id("lapidary")
            .with_icon(icon)
            .with_inner_size([1440.0, 900.0])
            .with_min_inner_size([900.0, 560.0])
            .with_drag_and_drop(true),
        ..Default::default()
    };
    eframe::run_native(
        "lapidary",
        options,
        Box::new(|creation| {
            theme::install(&creation.egui_ctx);
            let bench = Workbench::new(Options::for_user(Some(waker(&creation.egui_ctx))));
            Ok(Box::new(LapidaryApp::new(bench, path).timed_from(started)))
        }),
    )
    .map_err(|err| explain(&err.to_string()))
}

/// What a user can do about a window that does not open.
fn explain(cause: &str) -> String {
    let lower = cause.to_lowercase();
    let package = if lower.contains("xkbcommon") {
        Some("libxkbcommon0 and libxkbcommon-x11-0")
    } else if lower.contains("libx11") || lower.contains("xlib") {
        Some("libx11-6, libxcursor1, libxi6 and libxrandr2")
    } else if lower.contains("wayland") {
        Some("libwayland-client0")
    } else if lower.contains("adapter") || lower.contains("vulkan") || lower.contains("wgpu") {
        Some("libvulkan1 and mesa-vulkan-drivers")
    } else {
        None
    };
    let remedy = package.map_or_else(
        || "see `lapidary --help` for the command line, which needs no window".to_owned(),
        |names| format!("on Debian or Ubuntu install {names}, or use the command line: `lapidary --help`"),
    );
    format!("the window cannot be opened: {cause}; {remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_told_with_its_package() {
        assert!(explain("XKBNotFound: libxkbcommon-x11.so could not be loaded").contains("libxkbcommon-x11-0"));
        assert!(explain("no suitable adapter found").contains("mesa-vulkan-drivers"));
        assert!(explain("something else").contains("lapidary --help"));
    }
}
