//! The two palettes. Nothing else in the program names a colour by its numbers.

use eframe::egui::Color32;

use super::Tokens;

/// A colour written as on the web: `0xRRGGBB`.
const fn hex(rgb: u32) -> Color32 {
    Color32::from_rgb((rgb >> 16) as u8, (rgb >> 8) as u8, rgb as u8)
}

/// Light text on dark.
pub(super) static DARK: Tokens = Tokens {
    is_dark: true,
    window: hex(0x14161B),
    panel: hex(0x1B1E25),
    raised: hex(0x242833),
    raised_hover: hex(0x2D3240),
    raised_active: hex(0x363C4C),
    hairline: hex(0x323846),
    outline: hex(0x4A5266),
    grid: hex(0x272B35),
    text: hex(0xE7E9EE),
    weak: hex(0x98A2B3),
    accent: hex(0x35B5A6),
    accent_hover: hex(0x4CC7B9),
    on_accent: hex(0x0E1512),
    selection: hex(0x1E3B3E),
    baseline: hex(0x9FB0C8),
    candidates: [hex(0x5AA2F0), hex(0xF0A742), hex(0xC77DDB), hex(0x6CC77F), hex(0xE0718F), hex(0x58C4D6)],
    parts: [
        hex(0x7FA3D6),
        hex(0xD9A866),
        hex(0xB48CC9),
        hex(0x83B98F),
        hex(0xC9858F),
        hex(0x79B5C1),
        hex(0xB8B27A),
        hex(0x8E98AA),
    ],
    pass: hex(0x62C27E),
    fail: hex(0xF06A6A),
    undecided: hex(0xF0B34A),
};

/// Dark text on light.
pub(super) static LIGHT: Tokens = Tokens {
    is_dark: false,
    window: hex(0xF6F7F9),
    panel: hex(0xFFFFFF),
    raised: hex(0xF0F2F5),
    raised_hover: hex(0xE6E9EF),
    raised_active: hex(0xDADFE8),
    hairline: hex(0xD9DEE6),
    outline: hex(0xAEB7C4),
    grid: hex(0xECEFF3),
    text: hex(0x1B2330),
    weak: hex(0x586373),
    accent: hex(0x0E8578),
    accent_hover: hex(0x0B7267),
    on_accent: hex(0xFFFFFF),
    selection: hex(0xD6EEEA),
    baseline: hex(0x5B6B82),
    candidates: [hex(0x1F6FC4), hex(0xB86A00), hex(0x8E44AD), hex(0x2E8B49), hex(0xC03A60), hex(0x11808F)],
    parts: [
        hex(0x8FB2DE),
        hex(0xE3BC84),
        hex(0xC6A5D8),
        hex(0x9CCBA7),
        hex(0xDDA3AC),
        hex(0x93C7D1),
        hex(0xCCC690),
        hex(0xB3BCC9),
    ],
    pass: hex(0x1B7F3E),
    fail: hex(0xC62F2F),
    undecided: hex(0x9A5B00),
};

/// Stops of the damage map on dark, from quiet to loud, each lighter than the one before.
pub(super) const DAMAGE_DARK: [Color32; 5] =
    [hex(0x1B1E25), hex(0x582A5C), hex(0xB8344C), hex(0xF08A3C), hex(0xFCEFB4)];

/// The same on light, each darker than the one before.
pub(super) const DAMAGE_LIGHT: [Color32; 5] =
    [hex(0xFFFFFF), hex(0xFBE3A0), hex(0xEE8E3E), hex(0xB8304C), hex(0x4A1C4E)];

/// Better, neutral, worse on dark.
pub(super) const DIFFERENCE_DARK: [Color32; 3] = [hex(0x4C93E6), hex(0x262A34), hex(0xF5B25A)];

/// Better, neutral, worse on light.
pub(super) const DIFFERENCE_LIGHT: [Color32; 3] = [hex(0x1B5FAE), hex(0xF3F4F7), hex(0xE08A1E)];
