//! The look as data: named colours, spacing and type, and the egui style made of them.
//!
//! Panels and widgets never name a colour; they ask the [`Tokens`] of the theme in use through
//! [`UiTokens::tokens`]. Colour constructors live in this folder only. A look starts with
//! [`install`], once per context, and changes with [`apply`].

pub mod contrast;
pub mod fonts;
pub mod maps;
mod palette;
mod style;

use eframe::egui::{self, Color32, FontFamily, FontId, TextStyle};

pub use maps::{Damage, Difference};

/// Gaps of the spacing grid, in points.
pub mod space {
    /// Between an icon and its word.
    pub const XS: f32 = 4.0;
    /// Between controls of one group.
    pub const S: f32 = 8.0;
    /// Inside a card.
    pub const M: f32 = 12.0;
    /// Between groups.
    pub const L: f32 = 16.0;
    /// Between sections.
    pub const XL: f32 = 24.0;
    /// Height of a table row or a control.
    pub const ROW: f32 = 24.0;
    /// Height of a row where many must fit.
    pub const ROW_COMPACT: f32 = 20.0;
    /// Corner radius of everything that has corners.
    pub const RADIUS: f32 = 4.0;
}

/// The one type scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// 11.5: captions, axis ticks, units.
    Small,
    /// 11.5 semibold: column heads, words in pills.
    SmallStrong,
    /// 13: everything that is read.
    Body,
    /// 13 semibold: names and sums.
    Strong,
    /// 16 semibold: headings of views and cards.
    Heading,
    /// 22 semibold: the one sentence or number of a view.
    Title,
    /// 12.5 monospace: figures in tables and fields.
    Mono,
    /// 11 monospace: figures in dense places.
    MonoSmall,
}

impl Type {
    /// All of the scale, smallest job first.
    pub const ALL: [Self; 8] = [
        Self::Small,
        Self::SmallStrong,
        Self::Body,
        Self::Strong,
        Self::Heading,
        Self::Title,
        Self::Mono,
        Self::MonoSmall,
    ];

    /// Size in points.
    pub fn size(self) -> f32 {
        match self {
            Self::Small | Self::SmallStrong => 11.5,
            Self::Body | Self::Strong => 13.0,
            Self::Heading => 16.0,
            Self::Title => 22.0,
            Self::Mono => 12.5,
            Self::MonoSmall => 11.0,
        }
    }

    /// Whether it is drawn in the semibold face.
    pub fn is_strong(self) -> bool {
        matches!(self, Self::SmallStrong | Self::Strong | Self::Heading | Self::Title)
    }

    /// Whether it is drawn in the monospace face.
    pub fn is_mono(self) -> bool {
        matches!(self, Self::Mono | Self::MonoSmall)
    }

    /// The font for a painter.
    pub fn font(self) -> FontId {
        let family = if self.is_mono() {
            FontFamily::Monospace
        } else if self.is_strong() {
            FontFamily::Name(fonts::SEMIBOLD.into())
        } else {
            FontFamily::Proportional
        };
        FontId::new(self.size(), family)
    }

    /// The same as egui's text style, for labels.
    pub fn style(self) -> TextStyle {
        match self {
            Self::Small => TextStyle::Small,
            Self::Body => TextStyle::Body,
            Self::Heading => TextStyle::Heading,
            Self::Mono => TextStyle::Monospace,
            Self::SmallStrong => TextStyle::Name("small_strong".into()),
            Self::Strong => TextStyle::Name("strong".into()),
            Self::Title => TextStyle::Name("title".into()),
            Self::MonoSmall => TextStyle::Name("mono_small".into()),
        }
    }

    /// Text in this style.
    pub fn text(self, text: impl Into<String>) -> egui::RichText {
        egui::RichText::new(text).text_style(self.style())
    }
}

/// The named colours of one theme. See `assets` of the design: one job per name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tokens {
    /// Whether text is light on dark.
    pub is_dark: bool,
    /// Behind everything.
    pub window: Color32,
    /// Panels and views.
    pub panel: Color32,
    /// Cards and inputs.
    pub raised: Color32,
    /// A raised thing under the pointer.
    pub raised_hover: Color32,
    /// A raised thing pressed or open.
    pub raised_active: Color32,
    /// One-point lines between things.
    pub hairline: Color32,
    /// Outline of a control under the pointer.
    pub outline: Color32,
    /// Grid lines in plots, quieter than hairlines.
    pub grid: Color32,
    /// Text.
    pub text: Color32,
    /// Units, captions, hints.
    pub weak: Color32,
    /// Selection, the primary button, focus.
    pub accent: Color32,
    /// The primary button under the pointer.
    pub accent_hover: Color32,
    /// Text on the accent.
    pub on_accent: Color32,
    /// Background of a selected row.
    pub selection: Color32,
    /// The original checkpoint, everywhere.
    pub baseline: Color32,
    /// Candidates in their order.
    pub candidates: [Color32; 6],
    /// Parts of a whole (roles, formats): calm, told apart by lightness too.
    pub parts: [Color32; 8],
    /// A gate that holds.
    pub pass: Color32,
    /// A gate that does not hold, an error.
    pub fail: Color32,
    /// A gate that the data cannot decide, a warning.
    pub undecided: Color32,
}

impl Tokens {
    /// The colours of light text on dark.
    pub fn dark() -> &'static Self {
        &palette::DARK
    }

    /// The colours of dark text on light.
    pub fn light() -> &'static Self {
        &palette::LIGHT
    }

    /// The colours of a mode.
    pub fn of(is_dark: bool) -> &'static Self {
        if is_dark { Self::dark() } else { Self::light() }
    }

    /// The colour of the candidate at `index`; they repeat after six.
    pub fn candidate(&self, index: usize) -> Color32 {
        self.candidates[index % self.candidates.len()]
    }

    /// The colour of part `index` of a whole; they repeat after eight.
    pub fn part(&self, index: usize) -> Color32 {
        self.parts[index % self.parts.len()]
    }

    /// Text that can be read on `background`, whichever of the two ends contrasts more.
    pub fn text_on(&self, background: Color32) -> Color32 {
        let (light, dark) = (Self::dark().text, Self::light().text);
        if contrast::ratio(light, background) >= contrast::ratio(dark, background) { light } else { dark }
    }

    /// `color` laid thinly over the panel: fills of curves, backgrounds of pills. Opaque, so that
    /// it looks the same in an exported picture.
    pub fn tint(&self, color: Color32, share: f32) -> Color32 {
        self.panel.lerp_to_gamma(color, share)
    }
}

/// Which theme to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Whatever the desktop uses.
    #[default]
    System,
    /// Light text on dark.
    Dark,
    /// Dark text on light.
    Light,
}

/// How much larger everything is in presenter mode.
pub const PRESENTER_SCALE: f32 = 1.5;

/// Loads the fonts and both styles into `ctx`. Once, before the first frame.
pub fn install(ctx: &egui::Context) {
    fonts::install(ctx);
    for (theme, tokens) in [(egui::Theme::Dark, Tokens::dark()), (egui::Theme::Light, Tokens::light())] {
        ctx.set_style_of(theme, style::style(tokens));
    }
}

/// Chooses the theme, and the scale of presenter mode. Cheap enough for every frame: it changes
/// only what differs.
pub fn apply(ctx: &egui::Context, mode: Mode, is_presenting: bool) {
    let preference = match mode {
        Mode::System => egui::ThemePreference::System,
        Mode::Dark => egui::ThemePreference::Dark,
        Mode::Light => egui::ThemePreference::Light,
    };
    if ctx.options(|options| options.theme_preference) != preference {
        ctx.set_theme(preference);
    }
    // The zoom that a user chose with Ctrl+plus is left alone until presenting starts or ends.
    let id = egui::Id::unique("lapidary_presenting");
    let was_presenting = ctx.data(|data| data.get_temp::<bool>(id)).unwrap_or(false);
    if was_presenting != is_presenting {
        ctx.data_mut(|data| data.insert_temp(id, is_presenting));
        ctx.set_zoom_factor(if is_presenting { PRESENTER_SCALE } else { 1.0 });
    }
}

/// Access to the tokens from wherever something is painted.
pub trait UiTokens {
    /// The colours of the theme in use.
    fn tokens(&self) -> &'static Tokens;
}

impl UiTokens for egui::Ui {
    fn tokens(&self) -> &'static Tokens {
        Tokens::of(self.visuals().dark_mode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both() -> [(&'static str, &'static Tokens); 2] {
        [("dark", Tokens::dark()), ("light", Tokens::light())]
    }

    #[track_caller]
    fn assert_contrast(what: &str, front: Color32, back: Color32, least: f32) {
        let ratio = contrast::ratio(front, back);
        assert!(ratio >= least, "{what}: {ratio:.2} to 1, needs {least} to 1");
    }

    #[test]
    fn every_text_can_be_read_on_every_ground() {
        for (theme, tokens) in both() {
            let grounds = [
                ("window", tokens.window),
                ("panel", tokens.panel),
                ("raised", tokens.raised),
                ("raised_hover", tokens.raised_hover),
                ("selection", tokens.selection),
            ];
            for (ground, back) in grounds {
                assert_contrast(&format!("{theme} text on {ground}"), tokens.text, back, 4.5);
                assert_contrast(&format!("{theme} weak on {ground}"), tokens.weak, back, 4.5);
            }
            for (word, front) in [("pass", tokens.pass), ("fail", tokens.fail), ("undecided", tokens.undecided)] {
                assert_contrast(&format!("{theme} {word} on panel"), front, tokens.panel, 4.5);
                let pill = tokens.tint(front, 0.12);
                assert_contrast(&format!("{theme} text on {word} pill"), tokens.text, pill, 4.5);
            }
            assert_contrast(&format!("{theme} button"), tokens.on_accent, tokens.accent, 4.5);
            let hover = tokens.accent_hover;
            assert_contrast(&format!("{theme} hovered button"), tokens.on_accent, hover, 4.5);
        }
    }

    #[test]
    fn data_stands_out_from_the_panel() {
        for (theme, tokens) in both() {
            assert_contrast(&format!("{theme} baseline"), tokens.baseline, tokens.panel, 3.0);
            assert_contrast(&format!("{theme} accent"), tokens.accent, tokens.panel, 3.0);
            for (index, color) in tokens.candidates.into_iter().enumerate() {
                assert_contrast(&format!("{theme} candidate {index}"), color, tokens.panel, 3.0);
            }
            for (index, color) in tokens.parts.into_iter().enumerate() {
                let what = format!("{theme} label on part {index}");
                assert_contrast(&what, tokens.text_on(color), color, 4.5);
            }
        }
    }

    #[test]
    fn presenting_scales_all_and_ends_where_it_began() {
        let ctx = crate::app::testing::context();
        for (is_presenting, scale) in [(true, PRESENTER_SCALE), (false, 1.0)] {
            apply(&ctx, Mode::Dark, is_presenting);
            crate::app::testing::frame(&ctx, 0.0, |_| ());
            assert_eq!(ctx.zoom_factor(), scale);
            assert_eq!(ctx.theme(), egui::Theme::Dark);
        }
    }
}
