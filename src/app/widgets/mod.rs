//! Small controls that all panels share. Each has an accessible name and takes its colours from the
//! theme; none of them keeps state of its own beyond what egui keeps.

mod button;
mod card;
mod empty;
mod field;
mod format_menu;
pub mod icons;
mod key_values;
mod lock;
mod notice;
mod number;
mod pill;
mod progress;
mod tabs;
mod toast;

pub use button::{icon_button_ui, primary_button_ui, quiet_button_ui, secondary_button_ui};
pub use card::{card_ui, section_ui, section_with_ui, split_line_ui};
pub use empty::empty_ui;
pub use field::search_field_ui;
pub use format_menu::{FormatChoice, FormatMenu, format_menu_ui};
pub use key_values::{KeyValue, key_values_ui};
pub use lock::lock_toggle_ui;
pub use notice::{Level, Notice, notice_ui};
pub use number::{Number, number_ui, number_with_interval};
pub use pill::{State, pill_ui, state_word_ui, tag_ui};
pub use progress::{ProgressAction, ProgressRow, bar_ui, progress_row_ui};
pub use tabs::{segments_ui, tabs_ui};
pub use toast::{Toast, Toasts};
