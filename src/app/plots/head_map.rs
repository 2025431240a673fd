//! Layers by heads: query heads in the frames of their KV groups, coloured by rank of a score, crossed
//! out where they go.

use std::sync::Arc;

use eframe::egui::{Align2, Rect, Response, Role, Sense, Stroke, Ui, WidgetInfo, pos2, vec2};

use super::Plot;
use super::canvas::{Canvas, PainterCanvas};
use super::export::{self, Table, cell};
use super::frame::readout;
use crate::app::theme::{Damage, Tokens, Type, UiTokens as _, space};
use crate::engine::structure::attention::AttentionPatterns;
use crate::engine::units;

/// One query head.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Head {
    /// Its score and standard error, where it is scored.
    pub score: Option<(f64, Option<f64>)>,
    /// Where its score lies among all heads, from 0 for the lowest to 1.
    pub rank: f32,
    /// True if it goes.
    pub is_gone: bool,
}

/// One layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerHeads {
    /// Query heads, group after group.
    pub heads: Vec<Head>,
    /// Query heads of a KV group.
    pub group: usize,
    /// Share of its MLP channels that stays.
    pub channels_left: f32,
    /// True if the whole layer goes.
    pub is_gone: bool,
}

/// The whole map, prepared when scores or the plan change.
#[derive(Clone, Debug, Default)]
pub struct HeadMap {
    /// What heads are coloured by; empty where they are not scored.
    pub metric: String,
    /// From the first layer.
    pub layers: Vec<LayerHeads>,
    /// What heads look at, shown under the pointer.
    pub attention: Option<Arc<AttentionPatterns>>,
}

/// What a click takes or gives back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// A whole layer.
    Layer(usize),
    /// A layer's KV group.
    Group(usize, usize),
    /// A layer's query head.
    Head(usize, usize),
}

/// What the user did to the map.
#[derive(Clone, Debug)]
pub struct HeadMapOutput {
    /// The plot's own response, for its menu.
    pub response: Response,
    /// What was clicked.
    pub clicked: Option<Pick>,
    /// KV groups that a dragged box touched, by layer and index.
    pub boxed: Vec<(usize, usize)>,
}

/// Room for the layers' names, and for the bars of channels.
const NAMES: f32 = 58.0;
const BARS: f32 = 120.0;
const TOP: f32 = 22.0;

/// Where the heads are.
#[derive(Clone, Copy, Debug)]
struct Geometry {
    left: f32,
    top: f32,
    step_x: f32,
    step_y: f32,
    bars: f32,
}

impl Geometry {
    fn head(&self, layer: usize, head: usize) -> Rect {
        let min = pos2(self.left + self.step_x * head as f32, self.top + self.step_y * layer as f32);
        Rect::from_min_size(min, vec2(self.step_x, self.step_y))
    }

    fn heads(&self, layer: usize, heads: std::ops::Range<usize>) -> Rect {
        self.head(layer, heads.start).union(self.head(layer, heads.end.saturating_sub(1)))
    }

    fn name(&self, layer: usize) -> Rect {
        Rect::from_min_size(pos2(self.left - NAMES, self.head(layer, 0).top()), vec2(NAMES - space::XS, self.step_y))
    }
}

impl HeadMap {
    fn most_heads(&self) -> usize {
        self.layers.iter().map(|layer| layer.heads.len()).max().unwrap_or(1).max(1)
    }

    fn geometry(&self, rect: Rect) -> Geometry {
        let count = self.layers.len().max(1) as f32;
        let step_x = ((rect.width() - NAMES - BARS) / self.most_heads() as f32).clamp(3.0, 44.0);
        let step_y = ((rect.height() - TOP - 4.0) / count).clamp(6.0, 30.0);
        let left = rect.left() + NAMES;
        Geometry {
            left,
            top: rect.top() + TOP,
            step_x,
            step_y,
            bars: left + step_x * self.most_heads() as f32 + space::L,
        }
    }

    fn draw_all(&self, canvas: &mut dyn Canvas, rect: Rect, tokens: &Tokens) {
        let geometry = self.geometry(rect);
        let above = rect.top() + TOP - 4.0;
        canvas.text(
            pos2(geometry.left, above),
            Align2::LEFT_BOTTOM,
            "query heads in KV groups",
            Type::Small,
            tokens.weak,
        );
        canvas.text(pos2(geometry.bars, above), Align2::LEFT_BOTTOM, "MLP channels", Type::Small, tokens.weak);
        for (index, layer) in self.layers.iter().enumerate() {
            let name = geometry.name(index);
            let color = if layer.is_gone { tokens.weak } else { tokens.text };
            if geometry.step_y >= 11.0 || index.is_multiple_of(4) {
                canvas.text(name.right_center(), Align2::RIGHT_CENTER, &format!("layer {index}"), Type::Small, color);
            }
            for (head, own) in layer.heads.iter().enumerate() {
                draw_head(canvas, geometry.head(index, head), own, layer.is_gone, tokens);
            }
            for first in (0..layer.heads.len()).step_by(layer.group.max(1)) {
                let group = geometry.heads(index, first..first + layer.group.max(1));
                canvas.frame(group.shrink(0.5), Stroke::new(1.0, tokens.outline));
            }
            let row = geometry.head(index, 0);
            let room = Rect::from_min_size(pos2(geometry.bars, row.top()), vec2(BARS - 48.0, row.height()))
                .shrink2(vec2(0.0, row.height() * 0.3));
            canvas.rect(room, tokens.raised);
            let left = if layer.is_gone { 0.0 } else { layer.channels_left };
            canvas.rect(Rect::from_min_size(room.min, vec2(room.width() * left, room.height())), tokens.baseline);
            if geometry.step_y >= 11.0 {
                let text = format!("{:.0} %", left * 100.0);
                canvas.text(room.right_center() + vec2(4.0, 0.0), Align2::LEFT_CENTER, &text, Type::MonoSmall, color);
            }
        }
    }

    /// A head in words, for its accessible name.
    fn head_name(&self, layer: usize, head: usize) -> String {
        let own = &self.layers[layer];
        let state = if own.is_gone || own.heads[head].is_gone { "goes" } else { "stays" };
        format!("layer {layer} head {head} {state}")
    }

    fn group_name(&self, layer: usize, group: usize) -> String {
        let own = &self.layers[layer];
        let heads = &own.heads[group * own.group..(group + 1) * own.group];
        let state = if own.is_gone || heads.iter().all(|head| head.is_gone) { "goes" } else { "stays" };
        format!("layer {layer} KV group {group} {state}")
    }
}

fn draw_head(canvas: &mut dyn Canvas, rect: Rect, head: &Head, is_layer_gone: bool, tokens: &Tokens) {
    let inner = rect.shrink(1.5);
    let is_gone = head.is_gone || is_layer_gone;
    match (is_gone, head.score) {
        (true, _) => {
            canvas.rect(inner, tokens.window);
            let stroke = Stroke::new(1.0, tokens.fail);
            canvas.line(inner.left_top(), inner.right_bottom(), stroke);
            canvas.line(inner.left_bottom(), inner.right_top(), stroke);
        }
        (false, Some(_)) => canvas.rect(inner, Damage::at(tokens, head.rank)),
        (false, None) => canvas.rect(inner, tokens.raised),
    }
}

impl Plot for HeadMap {
    fn title(&self) -> String {
        match self.metric.as_str() {
            "" => "Heads by layer".to_owned(),
            metric => format!("Heads by layer, coloured by {metric}"),
        }
    }

    fn draw(&self, canvas: &mut dyn Canvas, rect: Rect, tokens: &Tokens) {
        self.draw_all(canvas, rect, tokens);
    }

    fn table(&self) -> Table {
        let mut table = Table::new(&["layer", "head", "kv_group", "score", "stderr", "goes"]);
        for (index, layer) in self.layers.iter().enumerate() {
            for (head, own) in layer.heads.iter().enumerate() {
                let (score, stderr) = own.score.map_or((None, None), |(score, stderr)| (Some(score), stderr));
                table.row([
                    index.to_string(),
                    head.to_string(),
                    (head / layer.group.max(1)).to_string(),
                    score.map(cell).unwrap_or_default(),
                    stderr.map(cell).unwrap_or_default(),
                    (layer.is_gone || own.is_gone).to_string(),
                ]);
            }
        }
        table
    }
}

/// The height that the map would like.
pub fn height_for(layers: usize) -> f32 {
    TOP + 4.0 + (layers as f32 * 26.0).clamp(60.0, 640.0)
}

/// Draws the map as wide as there is room. With `by_head`, a click is about one query head, else about its group.
pub fn head_map_ui(ui: &mut Ui, map: &HeadMap, height: f32, by_head: bool, is_editable: bool) -> HeadMapOutput {
    let size = vec2(ui.available_width(), height);
    let sense = if is_editable { Sense::click_and_drag() } else { Sense::click() };
    let (rect, response) = ui.allocate_exact_size(size, sense);
    response.widget_info(|| WidgetInfo::labeled(Role::Figure, true, map.title()));
    let mut output = HeadMapOutput { response, clicked: None, boxed: Vec::new() };
    if !ui.is_rect_visible(rect) {
        return output;
    }
    let tokens = ui.tokens();
    let painter = ui.painter_at(rect.expand(1.0));
    map.draw_all(&mut PainterCanvas::new(&painter), rect, tokens);
    let geometry = map.geometry(rect);
    let mut pointed = None;
    for (index, layer) in map.layers.iter().enumerate() {
        if !ui.clip_rect().intersects(geometry.heads(index, 0..layer.heads.len().max(1))) {
            continue;
        }
        let unit = if by_head { 1 } else { layer.group.max(1) };
        for first in (0..layer.heads.len()).step_by(unit) {
            let place = geometry.heads(index, first..first + unit);
            let id = output.response.id.with((index, first, unit));
            let response = ui.interact(place, id, if is_editable { Sense::click() } else { Sense::hover() });
            let name = || if by_head { map.head_name(index, first) } else { map.group_name(index, first / unit) };
            let is_gone = layer.is_gone || layer.heads[first..first + unit].iter().all(|head| head.is_gone);
            response.widget_info(|| WidgetInfo::selected(Role::Button, is_editable, is_gone, name()));
            if response.clicked() {
                output.clicked =
                    Some(if by_head { Pick::Head(index, first) } else { Pick::Group(index, first / unit) });
            }
            if let (true, Some(at)) = (response.hovered(), ui.ctx().pointer_hover_pos()) {
                let within = ((at.x - place.left()) / geometry.step_x).max(0.0) as usize;
                pointed = Some((index, first + within.min(unit - 1)));
            }
            if response.hovered() || response.has_focus() {
                let kind = eframe::egui::StrokeKind::Inside;
                ui.painter().rect_stroke(place, 1.0, Stroke::new(1.5, tokens.accent), kind);
            }
        }
        let id = output.response.id.with(("layer", index));
        let name = ui.interact(geometry.name(index), id, if is_editable { Sense::click() } else { Sense::hover() });
        name.widget_info(|| {
            let state = if layer.is_gone { "goes" } else { "stays" };
            WidgetInfo::selected(Role::Button, is_editable, layer.is_gone, format!("layer {index} {state}"))
        });
        if name.clicked() {
            output.clicked = Some(Pick::Layer(index));
        }
    }
    box_ui(ui, map, &geometry, &mut output, tokens);
    if let (Some((layer, head)), Some(pointer)) = (pointed, ui.ctx().pointer_hover_pos()) {
        hover(ui, map, rect, pointer, layer, head);
        lens_ui(ui, map, rect, pointer, layer, head);
    }
    export::offer_ui(ui, &output.response, map);
    output
}

/// Draws the box that is being dragged, and tells its groups when it is let go.
fn box_ui(ui: &Ui, map: &HeadMap, geometry: &Geometry, output: &mut HeadMapOutput, tokens: &Tokens) {
    let response = &output.response;
    if !response.dragged() && !response.drag_stopped() {
        return;
    }
    let (Some(from), Some(to)) =
        (ui.input(|input| input.pointer.press_origin()), ui.input(|input| input.pointer.latest_pos()))
    else {
        return;
    };
    let area = Rect::from_two_pos(from, to);
    if response.drag_stopped() {
        for (index, layer) in map.layers.iter().enumerate() {
            for group in 0..layer.heads.len() / layer.group.max(1) {
                let place = geometry.heads(index, group * layer.group..(group + 1) * layer.group);
                if area.intersects(place.shrink(1.0)) {
                    output.boxed.push((index, group));
                }
            }
        }
    } else {
        let kind = eframe::egui::StrokeKind::Inside;
        ui.painter().rect_stroke(area, 0.0, Stroke::new(1.0, tokens.accent), kind);
    }
}

/// Side of the square that shows what a head looks at.
const LENS: f32 = 112.0;

/// Draws a head's mean attention pattern below the pointer, or above where there is no room: queries down,
/// keys across, stronger where more is looked at.
fn lens_ui(ui: &Ui, map: &HeadMap, bounds: Rect, pointer: eframe::egui::Pos2, layer: usize, head: usize) {
    let Some(patterns) = &map.attention else { return };
    let Some(pattern) = patterns.head(layer, head) else { return };
    let tokens = ui.tokens();
    let below = pointer.y + LENS + 28.0 < bounds.bottom();
    let top = if below { pointer.y + 24.0 } else { (pointer.y - LENS - 96.0).max(bounds.top()) };
    let left = (pointer.x + 14.0).min(bounds.right() - LENS - 8.0).max(bounds.left());
    let rect = Rect::from_min_size(pos2(left, top), vec2(LENS, LENS));
    let painter = ui.painter_at(bounds.expand(1.0));
    painter.rect_filled(rect.expand(4.0), space::RADIUS, tokens.raised);
    let step = LENS / patterns.tokens.max(1) as f32;
    for (row, weights) in pattern.chunks_exact(patterns.tokens.max(1)).enumerate() {
        for (column, &weight) in weights[..=row.min(weights.len() - 1)].iter().enumerate() {
            let place = pos2(rect.left() + step * column as f32, rect.top() + step * row as f32);
            let cell = Rect::from_min_size(place, vec2(step, step));
            painter.rect_filled(cell, 0.0, Damage::at(tokens, weight.sqrt()));
        }
    }
    let kind = eframe::egui::StrokeKind::Outside;
    painter.rect_stroke(rect.expand(4.0), space::RADIUS, Stroke::new(1.0, tokens.outline), kind);
}

fn hover(ui: &Ui, map: &HeadMap, bounds: Rect, pointer: eframe::egui::Pos2, layer: usize, head: usize) {
    let own = &map.layers[layer];
    let title = format!("layer {layer} head {head}, KV group {}", head / own.group.max(1));
    let Some(found) = own.heads.get(head) else { return };
    let mut lines: Vec<(&str, String)> = Vec::new();
    match found.score {
        Some((score, stderr)) => {
            let error = stderr.map_or_else(String::new, |stderr| format!(" ± {}", units::significant(stderr)));
            lines.push((map.metric.as_str(), format!("{}{error}", units::significant(score))));
            lines.push(("rank", format!("{:.0} % of the heads are lower", found.rank * 100.0)));
        }
        None => lines.push(("score", "not scored yet".to_owned())),
    }
    lines.push(("plan", if own.is_gone || found.is_gone { "goes" } else { "stays" }.to_owned()));
    readout(ui, bounds, pointer, &title, &lines);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> HeadMap {
        let head = |rank: f32| Head { score: Some((f64::from(rank), Some(0.1))), rank, is_gone: rank < 0.3 };
        let layer = LayerHeads {
            heads: [0.1, 0.2, 0.8, 0.9].map(head).to_vec(),
            group: 2,
            channels_left: 0.75,
            is_gone: false,
        };
        let layers = vec![layer.clone(), LayerHeads { is_gone: true, ..layer }];
        HeadMap { metric: "flap".to_owned(), layers, attention: None }
    }

    #[test]
    fn names_say_what_goes_and_the_table_has_every_head() {
        let map = map();
        assert_eq!(map.group_name(0, 0), "layer 0 KV group 0 goes");
        assert_eq!(map.group_name(0, 1), "layer 0 KV group 1 stays");
        assert_eq!(map.head_name(1, 3), "layer 1 head 3 goes");
        assert_eq!(map.table().csv().lines().count(), 9);
        assert_eq!(map.title(), "Heads by layer, coloured by flap");
    }

    #[test]
    fn heads_lie_beside_each_other_within_the_room() {
        let map = map();
        let rect = Rect::from_min_size(pos2(10.0, 20.0), vec2(500.0, height_for(2)));
        let geometry = map.geometry(rect);
        assert_eq!(geometry.head(0, 1).left(), geometry.head(0, 0).right());
        assert!(geometry.head(1, 3).bottom() <= rect.bottom() && geometry.bars < rect.right());
        assert_eq!(geometry.heads(0, 0..2).width(), 2.0 * geometry.step_x);
    }
}
