//! A few pictures of the real window, compared with those in `tests/snapshots`.
//!
//! They hold nothing that varies: no speed, no date, no random draw. Since they need a graphics
//! driver they are ignored by default; `.ci/run` installs a software one (Debian:
//! `mesa-vulkan-drivers libvulkan1`) and runs `cargo test --test ui_pictures -- --ignored`.
//! `UPDATE_SNAPSHOTS=1` writes them anew.
#![cfg(feature = "gui")]

mod window;

use eframe::egui::{Vec2, vec2};
use eframe::egui_wgpu::wgpu;
use egui_kittest::SnapshotOptions;
use lapidary::workbench::{Command, Executor, SelectMode, ThemeChoice, View};
use window::{DOWN, Start, Window};

/// Compares one view with its picture. Rasterisers of different drivers round edges differently.
fn picture(name: &str, view: View, theme: ThemeChoice, size: Vec2) {
    let mut window = Window::with(Start::Opened, size, Executor::Inline);
    let tensor = window.index_of(DOWN);
    window.send(Command::Select { tensor, mode: SelectMode::Replace });
    window.send(Command::SetTheme(theme));
    window.show(view);
    window.harness.remove_cursor();
    window.harness.run();
    // The menu's line names the number of threads of this machine.
    let masked =
        eframe::egui::Rect::from_min_max(eframe::egui::pos2(size.x - 420.0, 0.0), eframe::egui::pos2(size.x, 28.0));
    window.harness.mask(masked);
    let options = SnapshotOptions::new().threshold(1.0).max_failed_pixels(20);
    window.harness.snapshot_options(name, &options);
}

#[test]
#[ignore = "needs a Vulkan driver; .ci/run installs a software one"]
fn the_plan_in_the_dark() {
    picture("plan_dark", View::Plan, ThemeChoice::Dark, vec2(1280.0, 720.0));
}

#[test]
#[ignore = "needs a Vulkan driver; .ci/run installs a software one"]
fn the_plan_in_the_light() {
    picture("plan_light", View::Plan, ThemeChoice::Light, vec2(1280.0, 720.0));
}

#[test]
#[ignore = "needs a Vulkan driver; .ci/run installs a software one"]
fn the_sensitivity_map() {
    picture("sensitivity_dark", View::Sensitivity, ThemeChoice::Dark, vec2(1280.0, 720.0));
}

#[test]
#[ignore = "needs a Vulkan driver; .ci/run installs a software one"]
fn the_weights_in_the_light() {
    picture("weights_light", View::Weights, ThemeChoice::Light, vec2(1280.0, 720.0));
}

#[test]
#[ignore = "needs a Vulkan driver; .ci/run installs a software one"]
fn pictures_are_drawn_by_a_software_vulkan_driver() {
    let setup = egui_kittest::wgpu::default_wgpu_setup();
    let state = egui_kittest::wgpu::create_render_state(setup, Default::default());
    let info = state.adapter.get_info();
    assert_eq!(info.device_type, wgpu::DeviceType::Cpu, "{info:?}");
    assert_eq!(info.backend, wgpu::Backend::Vulkan, "{info:?}");
}
