//! The bundled fonts: Inter for text, JetBrains Mono for figures, the same on every machine.

use std::sync::Arc;

use eframe::egui::{self, FontData, FontDefinitions, FontFamily};

/// Name of the semibold text family.
pub const SEMIBOLD: &str = "semibold";

/// The files of the faces: text, its semibold, figures.
pub const FACES: [&[u8]; 3] = [
    include_bytes!("../../../assets/fonts/Inter-Regular.otf"),
    include_bytes!("../../../assets/fonts/Inter-SemiBold.otf"),
    include_bytes!("../../../assets/fonts/JetBrainsMono-Regular.ttf"),
];

const TEXT: &str = "inter";
const TEXT_SEMIBOLD: &str = "inter-semibold";
const MONO: &str = "jetbrains-mono";

/// The definitions: each family falls back to the other face, so that every sign which either has
/// can be written anywhere.
pub fn definitions() -> FontDefinitions {
    let mut fonts = FontDefinitions::empty();
    for (name, bytes) in [TEXT, TEXT_SEMIBOLD, MONO].into_iter().zip(FACES) {
        fonts.font_data.insert(name.to_owned(), Arc::new(FontData::from_static(bytes)));
    }
    let families = [
        (FontFamily::Proportional, [TEXT, MONO]),
        (FontFamily::Name(SEMIBOLD.into()), [TEXT_SEMIBOLD, MONO]),
        (FontFamily::Monospace, [MONO, TEXT]),
    ];
    for (family, faces) in families {
        fonts.families.insert(family, faces.map(str::to_owned).to_vec());
    }
    fonts
}

/// Loads the fonts into `ctx`.
pub fn install(ctx: &egui::Context) {
    ctx.set_fonts(definitions());
}

#[cfg(test)]
mod tests {
    use super::super::Type;

    #[test]
    fn every_sign_that_the_window_writes_has_a_glyph() {
        crate::app::testing::frame(&crate::app::testing::context(), 0.0, |ui| {
            let signs = "±×·→←↑↓≤≥≠≈−–—…∞σαβγδλμπΔΣΩ°²³⁻¹‰%▸▾▴◂✓✗■□●○ÄÖÜßéèñçğışŞİ“”‘’§©½";
            for kind in Type::ALL {
                for sign in signs.chars() {
                    let has = ui.fonts_mut(|fonts| fonts.has_glyph(&kind.font(), sign));
                    assert!(has, "{kind:?} has no {sign}");
                }
            }
        });
    }

    #[test]
    fn figures_are_as_wide_as_one_another() {
        crate::app::testing::frame(&crate::app::testing::context(), 0.0, |ui| {
            for kind in [Type::Body, Type::Strong, Type::Mono] {
                let widths: Vec<f32> =
                    ('0'..='9').map(|figure| ui.fonts_mut(|fonts| fonts.glyph_width(&kind.font(), figure))).collect();
                let spread = widths.iter().fold(0.0_f32, |most, w| most.max((w - widths[0]).abs()));
                assert!(spread < 0.05, "{kind:?}: {widths:?}");
            }
        });
    }
}
