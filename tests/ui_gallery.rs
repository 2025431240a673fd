//! Pictures of every widget and plot, dark and light, to be looked at.
//!
//! They need a software Vulkan driver (Debian: `mesa-vulkan-drivers libvulkan1`), so they are
//! ignored by default: `cargo test --test ui_gallery -- --ignored` writes them to `target/gallery/`.
//! Beside them stand a few tests without pictures, which run everywhere.
#![cfg(feature = "gui")]

mod gallery {
    //! Sample data and the pages of the gallery.
    pub mod plots;
    pub mod widgets;
}

use std::path::PathBuf;

use eframe::egui::{self, Ui, Vec2};
use egui_kittest::Harness;
use lapidary::app::theme;

/// Draws a page in both themes and writes the pictures.
fn render(name: &str, size: Vec2, page: fn(&mut Ui), pointer: Option<(f32, f32)>) {
    for (theme, word) in [(egui::Theme::Dark, "dark"), (egui::Theme::Light, "light")] {
        let mut harness = Harness::builder()
            .with_size(size)
            .with_theme(theme)
            .with_pixels_per_point(1.0)
            .with_context_setup(theme::install)
            .build_ui(move |ui| {
                egui::CentralPanel::default().show(ui, page);
            });
        if let Some((x, y)) = pointer {
            harness.hover_at(egui::pos2(x, y));
        }
        harness.run();
        let picture = harness.render().expect("a Vulkan driver");
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("../gallery");
        std::fs::create_dir_all(&folder).expect("target folder");
        picture.save(folder.join(format!("{name}_{word}.png"))).expect("save");
    }
}

macro_rules! pages {
    ($($name:ident: $size:expr, $pointer:expr => $page:path;)*) => {
        $(
            #[test]
            #[ignore = "needs a software Vulkan driver (mesa-vulkan-drivers, libvulkan1)"]
            fn $name() {
                render(stringify!($name), egui::vec2($size.0, $size.1), $page, $pointer);
            }
        )*
    };
}

pages! {
    controls: (900.0, 560.0), None => gallery::widgets::controls_page;
    figures: (900.0, 420.0), None => gallery::widgets::figures_page;
    messages: (900.0, 560.0), Some((838.0, 250.0)) => gallery::widgets::messages_page;
    histograms: (900.0, 720.0), Some((440.0, 150.0)) => gallery::plots::histograms_page;
    maps: (1000.0, 760.0), Some((230.0, 140.0)) => gallery::plots::maps_page;
    ridges: (900.0, 420.0), Some((330.0, 140.0)) => gallery::plots::ridges_page;
    curves: (900.0, 700.0), Some((222.0, 160.0)) => gallery::plots::curves_page;
    comparisons: (1000.0, 940.0), Some((700.0, 670.0)) => gallery::plots::comparisons_page;
    qualities: (900.0, 860.0), Some((500.0, 150.0)) => gallery::plots::qualities_page;
}

mod without_pictures {
    use eframe::egui;
    use egui_kittest::{Harness, kittest::Queryable as _};
    use lapidary::app::{plots, theme, widgets};

    fn harness<'a, State: 'a>(page: impl FnMut(&mut egui::Ui, &mut State) + 'a, state: State) -> Harness<'a, State> {
        Harness::builder().with_context_setup(theme::install).build_ui_state(page, state)
    }

    #[test]
    fn a_lock_protects_and_unprotects_by_name() {
        let page = |ui: &mut egui::Ui, is_on: &mut bool| {
            widgets::lock_toggle_ui(ui, is_on, "layers.3.mlp.down");
        };
        let mut harness = harness(page, false);
        harness.get_by_label("Protect layers.3.mlp.down").click();
        harness.run();
        assert!(*harness.state());
        harness.get_by_label("Protect layers.3.mlp.down").click();
        harness.run();
        assert!(!*harness.state());
    }

    #[test]
    fn a_tab_is_chosen_by_its_name() {
        let page = |ui: &mut egui::Ui, chosen: &mut Option<usize>| {
            let clicked = widgets::tabs_ui(ui, &["Overview", "Weights", "Plan"], 0);
            *chosen = clicked.or(*chosen);
        };
        let mut harness = harness(page, None);
        harness.get_by_label("Plan").click();
        harness.run();
        assert_eq!(*harness.state(), Some(2));
    }

    #[test]
    fn the_cross_empties_the_filter() {
        let page = |ui: &mut egui::Ui, text: &mut String| {
            widgets::search_field_ui(ui, "Filter tensors", text);
        };
        let mut harness = harness(page, "mlp".to_owned());
        harness.get_by_label("Clear the filter").click();
        harness.run();
        assert_eq!(*harness.state(), "");
    }

    #[test]
    fn a_job_is_cancelled_by_its_button_and_nothing_repaints_by_itself() {
        let page = |ui: &mut egui::Ui, action: &mut Option<widgets::ProgressAction>| {
            let row = widgets::ProgressRow {
                name: "profile".to_owned(),
                fraction: Some(0.4),
                can_pause: true,
                ..Default::default()
            };
            *action = widgets::progress_row_ui(ui, &row).or(*action);
        };
        let mut harness = harness(page, None);
        // `run` panics if repaints continue.
        harness.run();
        harness.get_by_label("Cancel profile").click();
        harness.run();
        assert_eq!(*harness.state(), Some(widgets::ProgressAction::Cancel));
    }

    #[test]
    fn a_cell_of_the_map_is_found_and_clicked_by_what_it_says() {
        let page = |ui: &mut egui::Ui, clicked: &mut Option<(usize, usize)>| {
            let map = super::gallery::plots::map(6, "q4_k");
            let output = plots::heat_map::heat_map_ui(ui, &map, 320.0, None, &|_, _| false);
            *clicked = output.clicked.or(*clicked);
        };
        let mut harness = harness(page, None);
        harness.get_by_label_contains("layer 2 up q4_k").click();
        harness.run();
        assert_eq!(*harness.state(), Some((5, 2)));
    }

    #[test]
    fn every_plot_exports_numbers_and_a_drawing() {
        super::gallery::plots::with_all(|plot| {
            for tokens in [theme::Tokens::dark(), theme::Tokens::light()] {
                let svg = plots::export::svg(plot, egui::vec2(800.0, 400.0), tokens);
                assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{}", plot.title());
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{}", plot.title());
                assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
            }
            let table = plot.table();
            assert!(!table.rows.is_empty(), "{}", plot.title());
            for row in &table.rows {
                assert_eq!(row.len(), table.columns.len(), "{}", plot.title());
            }
        });
    }
}
