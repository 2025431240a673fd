//! Pages of the gallery that show widgets.

use eframe::egui::{self, Ui};
use lapidary::app::theme::{Type, UiTokens as _, space};
use lapidary::app::widgets::{icons::Icon, *};

/// Buttons, tabs, fields, pills, tags, locks.
pub fn controls_page(ui: &mut Ui) {
    tabs_ui(ui, &["Overview", "Weights", "Sensitivity", "Plan", "Runs", "Compare"], 2);
    ui.separator();
    section_with_ui(ui, "Buttons", |ui| {
        let mut chosen = 1;
        segments_ui(ui, "Counts", &["linear", "log"], &mut chosen);
    });
    ui.horizontal(|ui| {
        primary_button_ui(ui, "Run", true);
        primary_button_ui(ui, "Run nothing", false);
        secondary_button_ui(ui, "Open checkpoint…", true);
        secondary_button_ui(ui, "Export…", false);
        quiet_button_ui(ui, "Reset layout");
        icon_button_ui(ui, Icon::Pause, "Pause", true);
        icon_button_ui(ui, Icon::Undo, "Undo", true);
        icon_button_ui(ui, Icon::Redo, "Redo", true);
        icon_button_ui(ui, Icon::Close, "Close", false);
        let mut checked = true;
        ui.checkbox(&mut checked, "Low layers");
        egui::ComboBox::from_label("format").selected_text("q4_k").show_ui(ui, |_| ());
    });
    section_ui(ui, "States");
    ui.horizontal(|ui| {
        pill_ui(ui, "size ≤ 3.00 MiB", State::Met);
        pill_ui(ui, "KLD ≤ 0.02", State::Missed);
        pill_ui(ui, "decode ≥ 2×", State::Unknown);
        pill_ui(ui, "", State::Pass);
        pill_ui(ui, "facts / rare", State::Fail);
        pill_ui(ui, "", State::Undecided);
    });
    ui.add_space(space::S);
    ui.horizontal(|ui| {
        for format in ["bf16", "q8_0", "q6_k", "q4_k", "int4 g128"] {
            tag_ui(ui, format);
        }
        for state in [State::Pass, State::Fail, State::Undecided] {
            state_word_ui(ui, state);
        }
    });
    section_ui(ui, "Rows");
    let mut is_protected = true;
    for (index, (name, format)) in [("layers.0.attn.q", "q4_k"), ("layers.0.attn.k", "q6_k")].into_iter().enumerate() {
        ui.horizontal(|ui| {
            lock_toggle_ui(ui, &mut is_protected, name);
            ui.label(Type::Body.text(name));
            tag_ui(ui, format);
            let number = number_with_interval(0.0181, 0.0004, "nats");
            ui.allocate_ui(egui::vec2(170.0, 20.0), |ui| number_ui(ui, &number, 66.0, None));
            let number = Number::exact(["2.61", "12.4"][index], "MiB");
            ui.allocate_ui(egui::vec2(90.0, 20.0), |ui| number_ui(ui, &number, 0.0, None));
        });
        is_protected = false;
    }
    section_ui(ui, "Fields");
    ui.horizontal(|ui| {
        ui.allocate_ui(egui::vec2(260.0, 24.0), |ui| {
            search_field_ui(ui, "Filter tensors", &mut String::new());
        });
        ui.allocate_ui(egui::vec2(260.0, 24.0), |ui| {
            search_field_ui(ui, "Filter roles", &mut "mlp.down".to_owned());
        });
    });
    section_ui(ui, "Icons");
    ui.horizontal(|ui| {
        use Icon::*;
        for icon in [
            Lock, Unlock, Check, Cross, Undecided, Dash, Warning, Info, Search, Pause, Play, Close, Right, Down, Left,
            Up, More, Undo, Redo, Plus,
        ] {
            let (rect, _) = ui.allocate_exact_size(egui::vec2(24.0, 24.0), egui::Sense::hover());
            icons::paint(ui.painter(), icon, rect.center(), 18.0, ui.tokens().text);
        }
    });
}

/// Cards with figures, and the type scale.
pub fn figures_page(ui: &mut Ui) {
    ui.columns(2, |columns| {
        card_ui(&mut columns[0], |ui| {
            section_ui(ui, "layers.3.mlp.down");
            key_values_ui(
                ui,
                &[
                    KeyValue::new("shape", "256 × 512", ""),
                    KeyValue::new("stored as", "bf16", ""),
                    KeyValue::new("size", "256", "KiB"),
                    KeyValue::new("mean", "−0.0003", ""),
                    KeyValue::new("standard deviation σ", "0.0412", ""),
                    KeyValue::new("beyond 6σ", "0.02", "%"),
                    KeyValue::new("kurtosis", "3.41", ""),
                    KeyValue::new("bits per weight", "4.50", "bpw"),
                ],
            );
        });
        card_ui(&mut columns[1], |ui| {
            for kind in Type::ALL {
                ui.label(kind.text(format!("{kind:?}: 0123456789 ± Δ α σ → ≤ 2.61 MiB")));
            }
            let weak = ui.tokens().weak;
            ui.label(Type::Body.text("weak text beside it").color(weak));
        });
    });
}

/// Notices, progress, an empty view, toasts.
pub fn messages_page(ui: &mut Ui) {
    let long = "tensor layers.3.mlp.down_proj.weight: data ends at byte 8,131,072 and needs \
                8,139,152; the file was cut short while it was copied";
    for (level, text, detail, action) in [
        (Level::Info, "Measured on the file that ships.", "", None),
        (Level::Warning, "3 tensors have outliers beyond 6σ.", "They lose most under 4 bits.", Some("Show them")),
        (Level::Error, long, "Download the file again.", Some("Open another…")),
    ] {
        notice_ui(ui, &Notice { level, text, detail, action });
        ui.add_space(space::S);
    }
    for (name, fraction, is_paused) in [("measuring sensitivity", 0.47, false), ("compressing", 0.8, true)] {
        let row = ProgressRow {
            name: name.to_owned(),
            count: "118 / 252".to_owned(),
            rate: "2.9 tensors/s".to_owned(),
            time_left: "41 s left".to_owned(),
            fraction: Some(fraction),
            is_paused,
            can_pause: true,
            ..Default::default()
        };
        progress_row_ui(ui, &row);
    }
    let sentence = "Evaluate the original and a candidate to see what compression costs.";
    empty_ui(ui, "Nothing to compare yet", sentence, Some("Evaluate"));
    let mut toasts = Toasts::default();
    toasts.add(Level::Info, "Saved plan.toml", Some("Show"));
    toasts.add(Level::Error, "Disk full while writing q4_k_m.gguf", None);
    toasts.show(ui.ctx());
}
