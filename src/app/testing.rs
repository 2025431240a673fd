//! Help for the unit tests of the window's parts: frames without a window.

use eframe::egui::{Context, RawInput, Ui};

use super::theme;

/// A context with the program's fonts and styles.
pub(super) fn context() -> Context {
    let ctx = Context::default();
    theme::install(&ctx);
    ctx
}

/// Runs one frame at `time_secs` and drops what it would paint.
pub(super) fn frame(ctx: &Context, time_secs: f64, contents: impl FnMut(&mut Ui)) {
    let input = RawInput { time: Some(time_secs), ..RawInput::default() };
    let mut output = ctx.run_ui(input, contents);
    output.textures_delta.clear();
}
