//! The playground: one prompt, the original and a candidate writing side by side, the first
//! differing token marked, the probability of each token under the pointer, and the candidate as the
//! original's draft.

use eframe::egui::text::LayoutJob;
use eframe::egui::{Color32, DragValue, Label, ScrollArea, Slider, TextEdit, TextFormat, Ui};

use super::common::{action_button_ui, candidate_index, caption_ui, focus_picker_ui, no_document_ui};
use crate::app::context::Cx;
use crate::app::theme::{Tokens, Type, UiTokens as _, space};
use crate::app::widgets::{card_ui, empty_ui, secondary_button_ui, section_with_ui};
use crate::engine::scoring::GeneratedToken;
use crate::engine::units;
use crate::workbench::{Action, Command, Document, JobId, JobKind, PlaygroundSide, Speculated};

/// What the view remembers between frames.
#[derive(Default)]
pub struct Memory {}

/// Paints the view.
pub fn playground_ui(ui: &mut Ui, cx: &mut Cx<'_>) {
    let bench = cx.bench;
    let Some(document) = &bench.state().document else {
        no_document_ui(ui, cx, "Open a model to let it write");
        return;
    };
    if let Some(reason) = document.cannot_run() {
        empty_ui(ui, "This model cannot write here", reason, None);
        return;
    }
    ScrollArea::vertical().id_salt("playground").auto_shrink(false).show(ui, |ui| {
        ui.spacing_mut().item_spacing.y = space::S;
        prompt_ui(ui, cx, document);
        let playground = &document.playground;
        let difference = playground.first_difference();
        speculation_ui(ui, cx, document);
        if playground.written_prompt.is_empty() && playground.baseline.tokens.is_empty() {
            if playground.speculated.is_none() && playground.drafting.is_none() {
                empty_ui(ui, "Nothing written yet", "Original and candidate continue the prompt token by token", None);
            }
            return;
        }
        let tokens = ui.tokens();
        let run = playground.run.and_then(|id| document.run(id));
        ui.columns(2, |columns| {
            let original = Side {
                title: "Original",
                color: tokens.baseline,
                prompt: &playground.written_prompt,
                side: &playground.baseline,
                difference,
            };
            original.show(&mut columns[0]);
            match run {
                Some(run) => {
                    let candidate = Side {
                        title: &run.name,
                        color: tokens.candidate(candidate_index(document, run.id)),
                        prompt: &playground.written_prompt,
                        side: &playground.candidate,
                        difference,
                    };
                    candidate.show(&mut columns[1]);
                }
                None => no_candidate_ui(&mut columns[1], cx, document),
            }
        });
        if run.is_some() {
            caption_ui(ui, verdict(document, difference));
        }
    });
}

fn prompt_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document) {
    let playground = &document.playground;
    card_ui(ui, |ui| {
        let mut prompt = playground.prompt.clone();
        let edit = TextEdit::multiline(&mut prompt).hint_text("Prompt").desired_rows(3).desired_width(f32::INFINITY);
        if ui.add(edit).accessible_name("Prompt").changed() {
            cx.send(Command::SetPrompt(prompt));
        }
        ui.horizontal_wrapped(|ui| {
            let writing: Vec<JobId> =
                cx.bench.jobs().filter(|job| job.kind == JobKind::Generate).map(|job| job.id).collect();
            if writing.is_empty() {
                action_button_ui(ui, cx, Action::Generate, true);
            } else if secondary_button_ui(ui, "Stop", true).clicked() {
                for job in writing {
                    cx.send(Command::Cancel(job));
                }
            }
            ui.add_space(space::S);
            caption_ui(ui, "At most");
            let mut most = playground.max_tokens;
            let drag = DragValue::new(&mut most).range(1..=4096).suffix(" tokens");
            if ui.add(drag).accessible_name("Tokens to write").changed() {
                cx.send(Command::SetGenerateTokens(most));
            }
            caption_ui(ui, "Temperature");
            let mut temperature = playground.temperature;
            let slider = Slider::new(&mut temperature, 0.0..=2.0).step_by(0.05).fixed_decimals(2);
            let response = ui.add(slider).on_hover_text("0 takes the most probable token every time");
            if response.accessible_name("Temperature").changed() {
                cx.send(Command::SetTemperature(temperature));
            }
            run_picker_ui(ui, cx, document);
        });
    });
}

fn run_picker_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document) {
    if document.runs.is_empty() {
        return;
    }
    caption_ui(ui, "Beside");
    focus_picker_ui(ui, cx, document, "Candidate to write", 140.0);
}

fn no_candidate_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document) {
    card_ui(ui, |ui| {
        if !document.runs.is_empty() {
            caption_ui(ui, "Choose a candidate above and generate again");
            return;
        }
        caption_ui(ui, "Run a plan to see a candidate write beside the original");
        if !cx.is_presenting() {
            action_button_ui(ui, cx, Action::RunPlan, false);
        }
    });
}

/// Speculation: the candidate drafts, the original checks, and the text is the original's own.
fn speculation_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document) {
    let playground = &document.playground;
    if document.focused().is_none() && playground.speculated.is_none() {
        return;
    }
    card_ui(ui, |ui| {
        section_with_ui(ui, "The candidate as a draft", |ui| {
            caption_ui(ui, "every text is the original's: a draft that it would not have written is refused");
        });
        ui.horizontal_wrapped(|ui| {
            action_button_ui(ui, cx, Action::Speculate, false);
            caption_ui(ui, "drafting");
            let mut tokens = playground.draft_tokens;
            let drag = DragValue::new(&mut tokens).range(1..=16).suffix(" tokens at once");
            if ui.add(drag).accessible_name("Tokens drafted at once").changed() {
                cx.send(Command::SetDraftTokens(tokens));
            }
        });
        let is_writing = cx.bench.jobs().any(|job| job.kind == JobKind::Generate);
        if let Some(text) = playground.drafting.as_ref().filter(|_| is_writing) {
            let text = if text.is_empty() { "the original writes alone first, for comparison" } else { text.as_str() };
            ui.add(Label::new(Type::Body.text(text)).wrap());
        } else if let Some(found) = &playground.speculated {
            ui.add(Label::new(Type::Body.text(found.generation.text.trim_end())).wrap());
            caption_ui(ui, speculation_text(document, found));
        }
    });
}

/// What drafting came to, in a sentence.
fn speculation_text(document: &Document, found: &Speculated) -> String {
    let generation = &found.generation;
    let name = document.run(found.run).map_or("a candidate", |run| run.name.as_str());
    let same = match found.is_same_text {
        Some(true) => "the same text as the original's alone",
        Some(false) => "another text than the original's alone: two tokens were as good as equal",
        None => "drawn from the original's distribution",
    };
    format!(
        "{name} drafted {} tokens at once: {} of {} accepted ({}), {:.2} tokens a check, {:.2}× the speed of the \
         original alone; {same}",
        found.draft_tokens,
        generation.accepted,
        generation.drafted,
        units::percent(generation.acceptance()),
        generation.tokens_per_cycle(),
        found.speed_up(),
    )
}

/// What the difference comes to, in a sentence.
fn verdict(document: &Document, difference: Option<usize>) -> String {
    let playground = &document.playground;
    let both = playground.baseline.tokens.len().min(playground.candidate.tokens.len());
    match difference {
        Some(index) => format!("They part at token {}: the texts are the same before it", index + 1),
        None if both == 0 => "Waiting for both to write".to_owned(),
        None => format!("The first {both} tokens are the same"),
    }
}

/// One of the two texts.
struct Side<'a> {
    title: &'a str,
    color: Color32,
    prompt: &'a str,
    side: &'a PlaygroundSide,
    difference: Option<usize>,
}

impl Side<'_> {
    fn show(&self, ui: &mut Ui) {
        let tokens = ui.tokens();
        card_ui(ui, |ui| {
            section_with_ui(ui, self.title, |ui| {
                let (rect, _) = ui.allocate_exact_size(eframe::egui::vec2(10.0, 10.0), eframe::egui::Sense::hover());
                ui.painter().circle_filled(rect.center(), 4.0, self.color);
            });
            let job = self.layout(tokens, ui.available_width());
            let (origin, galley, response) = Label::new(job).selectable(false).layout_in_ui(ui);
            if ui.is_rect_visible(response.rect) {
                ui.painter().galley(origin, galley.clone(), tokens.text);
            }
            if let Some(pointer) = response.hover_pos() {
                let at = galley.cursor_from_pos(pointer - origin).index;
                let index = token_at(self.prompt.chars().count(), &self.side.tokens, usize::from(at));
                if let Some(token) = index.and_then(|index| self.side.tokens.get(index)) {
                    response.on_hover_ui_at_pointer(|ui| token_ui(ui, token));
                }
            }
            ui.add_space(space::XS);
            let count = self.side.tokens.len();
            let text = match (self.side.tokens_per_second, self.side.is_done) {
                (Some(speed), _) => format!("{count} tokens at {speed:.0} tok/s"),
                (None, true) => format!("{count} tokens"),
                (None, false) if count == 0 => "waiting".to_owned(),
                (None, false) => format!("{count} tokens so far"),
            };
            caption_ui(ui, text);
        });
    }

    fn layout(&self, tokens: &Tokens, width: f32) -> LayoutJob {
        let mut job = LayoutJob::default();
        job.wrap.max_width = width;
        let font = Type::Body.font();
        let format = |color: Color32| TextFormat { font_id: font.clone(), color, ..TextFormat::default() };
        job.append(self.prompt, 0.0, format(tokens.weak));
        for (index, token) in self.side.tokens.iter().enumerate() {
            let mut style = format(tokens.text);
            if self.difference == Some(index) {
                style.background = tokens.tint(self.color, 0.35);
                style.underline = eframe::egui::Stroke::new(1.5, self.color);
            }
            job.append(&token.text, 0.0, style);
        }
        job
    }
}

fn token_ui(ui: &mut Ui, token: &GeneratedToken) {
    ui.label(Type::Strong.text(format!("{:?} {}", token.text, units::percent(token.probability))));
    for other in &token.alternatives {
        let text = format!("{:>6}  {:?}", units::percent(other.probability), other.text);
        ui.label(Type::MonoSmall.text(text));
    }
}

/// The token that wrote the character at `at` of prompt and text together.
fn token_at(prompt_chars: usize, tokens: &[GeneratedToken], at: usize) -> Option<usize> {
    let mut left = at.checked_sub(prompt_chars)?;
    for (index, token) in tokens.iter().enumerate() {
        let count = token.text.chars().count();
        if left < count {
            return Some(index);
        }
        left -= count;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> GeneratedToken {
        GeneratedToken { id: 0, text: text.to_owned(), probability: 0.5, alternatives: Vec::new() }
    }

    #[test]
    fn a_character_belongs_to_the_token_that_wrote_it() {
        let tokens = [token("ab"), token(""), token("é…"), token("z")];
        assert_eq!(token_at(3, &tokens, 2), None);
        assert_eq!(token_at(3, &tokens, 3), Some(0));
        assert_eq!(token_at(3, &tokens, 4), Some(0));
        assert_eq!(token_at(3, &tokens, 5), Some(2));
        assert_eq!(token_at(3, &tokens, 7), Some(3));
        assert_eq!(token_at(3, &tokens, 8), None);
    }
}
