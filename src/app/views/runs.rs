//! The runs: the original and every candidate as a row with what was measured, and what can be done
//! with each.

use eframe::egui::{Align, Button, Label, Layout, Sense, TextEdit, Ui, vec2};
use egui_extras::{Column, TableBuilder, TableRow};

use super::common::{self, accuracy_percent, action_button_ui, caption_ui, figure_ui, head_ui, no_document_ui};
use super::compare_data;
use super::evaluation_menu::evaluation_menu_ui;
use crate::app::context::Cx;
use crate::app::theme::{Tokens, Type, UiTokens as _, space};
use crate::app::widgets::{
    Number, empty_ui, number_ui, number_with_interval, pill_ui, secondary_button_ui, section_with_ui, tag_ui,
};
use crate::engine::evaluation::Evaluation;
use crate::engine::scoring::SpeedResult;
use crate::engine::units;
use crate::workbench::{Action, CandidateState, Command, Document, JobKind, Run, RunId, Subject, View, Workbench};

/// Two compact lines and a little air.
const ROW_HEIGHT: f32 = 2.0 * space::ROW_COMPACT + 4.0;

/// What the view remembers between frames.
#[derive(Default)]
pub struct Memory {
    /// The run whose name is being changed, and the name so far.
    renaming: Option<(RunId, String)>,
}

/// Paints the view.
pub fn runs_ui(ui: &mut Ui, cx: &mut Cx<'_>) {
    let bench = cx.bench;
    let Some(document) = &bench.state().document else {
        no_document_ui(ui, cx, "Open a model; each pass over it becomes a run that is listed here");
        return;
    };
    if document.runs.is_empty() && document.baseline.is_none() {
        let is_possible = bench.unavailable(Action::RunPlan).is_none() && !cx.is_presenting();
        let sentence = "A run writes a candidate with the plan's choices and measures what that cost";
        if empty_ui(ui, "No runs yet", sentence, is_possible.then(|| Action::RunPlan.text())) {
            cx.act(Action::RunPlan);
        }
        return;
    }
    let mut memory = std::mem::take(&mut cx.memory.runs);
    let count = document.runs.len();
    let title = if count == 1 { "1 candidate".to_owned() } else { format!("{count} candidates") };
    section_with_ui(ui, &title, |ui| {
        if !cx.is_presenting() {
            action_button_ui(ui, cx, Action::RunPlan, true);
            action_button_ui(ui, cx, Action::EvaluateCandidates, false);
            evaluation_menu_ui(ui, cx, document);
        }
    });
    table_ui(ui, cx, document, &mut memory);
    cx.memory.runs = memory;
}

/// Which columns the table has beside its figures.
#[derive(Clone, Copy, Debug)]
struct Shown {
    /// That of the buttons.
    is_editing: bool,
    /// That of the gates' verdicts; without gates it would be empty.
    verdicts: bool,
}

fn table_ui(ui: &mut Ui, cx: &mut Cx<'_>, document: &Document, memory: &mut Memory) {
    let shown = Shown {
        is_editing: !cx.is_presenting(),
        verdicts: document.runs.iter().any(|run| run.comparison.as_deref().is_some_and(|one| one.verdict().is_some())),
    };
    ui.push_id("runs table", |ui| {
        let figure = |width: f32| Column::initial(width).at_least(60.0).clip(true);
        let mut table = TableBuilder::new(ui)
            .striped(false)
            .auto_shrink(false)
            .cell_layout(Layout::left_to_right(Align::Center))
            .column(Column::initial(140.0).at_least(110.0).clip(true))
            .column(figure(74.0))
            .column(figure(146.0))
            .column(figure(96.0))
            .column(figure(84.0));
        if shown.verdicts {
            table = table.column(figure(84.0));
        }
        if shown.is_editing {
            table = table.column(Column::remainder().at_least(140.0).clip(true));
        }
        let mut heads = vec![
            ("candidate", "state"),
            ("size", "bpw"),
            ("KLD, nats", "perplexity"),
            ("accuracy", ""),
            ("decode", "prefill"),
        ];
        if shown.verdicts {
            heads.push(("verdict", "of the gates"));
        }
        table
            .header(2.0 * space::ROW_COMPACT, |mut header| {
                for (index, (first, second)) in heads.into_iter().enumerate() {
                    let is_figure = (1..=4).contains(&index);
                    header.col(|ui| {
                        two_lines_ui(ui, |ui| head_ui(ui, first, is_figure), |ui| head_ui(ui, second, is_figure));
                    });
                }
                if shown.is_editing {
                    header.col(|_| ());
                }
            })
            .body(|body| {
                body.rows(ROW_HEIGHT, document.runs.len() + 1, |mut line| match line.index().checked_sub(1) {
                    None => baseline_row_ui(&mut line, cx, document, shown),
                    Some(index) => {
                        let run = &document.runs[index];
                        line.set_selected(document.focused_run == Some(run.id));
                        run_row_ui(&mut line, cx, memory, (run, index), document.baseline.as_deref(), shown);
                    }
                });
            });
    });
}

/// One figure over another, in a row of [`ROW_HEIGHT`].
fn two_lines_ui(ui: &mut Ui, first: impl FnOnce(&mut Ui), second: impl FnOnce(&mut Ui)) {
    let size = vec2(ui.available_width(), space::ROW_COMPACT);
    ui.vertical(|ui| {
        ui.spacing_mut().item_spacing.y = 0.0;
        let layout = Layout::left_to_right(Align::Center);
        ui.add_space(2.0);
        ui.allocate_ui_with_layout(size, layout, first);
        ui.allocate_ui_with_layout(size, layout, second);
    });
}

fn baseline_row_ui(line: &mut TableRow<'_, '_>, cx: &mut Cx<'_>, document: &Document, shown: Shown) {
    let checkpoint = &document.checkpoint;
    let measured = document.baseline.as_deref();
    line.col(|ui| {
        let color = ui.tokens().baseline;
        let word = match (measured, is_evaluating(cx.bench, "the original")) {
            (_, true) => "original, evaluating",
            (Some(_), false) => "original, evaluated",
            (None, false) => "original, not evaluated",
        };
        mark_ui(ui, color);
        two_lines_ui(
            ui,
            |ui| {
                ui.add(Label::new(Type::Strong.text(&checkpoint.name)).truncate());
            },
            |ui| {
                caption_ui(ui, word);
            },
        );
    });
    let bytes = measured.map_or_else(|| checkpoint.tensor_bytes(), |evaluation| evaluation.size.file_bytes);
    let bits = units::bits_per_weight(checkpoint.tensor_bytes(), checkpoint.weight_count());
    line.col(|ui| size_ui(ui, bytes, bits));
    figures_ui(line, measured, None);
    if shown.verdicts {
        line.col(|_| ());
    }
    if shown.is_editing {
        line.col(|ui| {
            if measured.is_none() {
                let reason = cx.bench.unavailable(Action::EvaluateBaseline);
                let button = secondary_button_ui(ui, "Evaluate", reason.is_none());
                let button = button.on_disabled_hover_text(reason.unwrap_or_default());
                if button.accessible_name("Evaluate the original").clicked() {
                    cx.act(Action::EvaluateBaseline);
                }
            }
        });
    }
}

fn run_row_ui(
    line: &mut TableRow<'_, '_>,
    cx: &mut Cx<'_>,
    memory: &mut Memory,
    (run, index): (&Run, usize),
    reference: Option<&Evaluation>,
    shown: Shown,
) {
    let state = state_of(cx.bench, run);
    line.col(|ui| {
        let color = ui.tokens().candidate(index);
        mark_ui(ui, color);
        two_lines_ui(
            ui,
            |ui| name_ui(ui, cx, memory, run),
            |ui| {
                let color = state.color(ui.tokens());
                let response = ui.label(Type::Small.text(state.word()).color(color));
                if let CandidateState::Lost(err) = &run.candidate {
                    response.on_hover_text(err.to_string());
                }
                if let Some(facts) = &run.mask {
                    tag_ui(ui, "masked").on_hover_text(facts.mask.statement.as_ref());
                }
                caption_ui(ui, common::ago(run.created_unix_secs)).on_hover_text(run.path.display().to_string());
            },
        );
    });
    line.col(|ui| {
        let statement = run.mask.as_ref().and_then(|facts| facts.size_statement.as_deref());
        let size = ui.scope(|ui| size_ui(ui, run.report.file_bytes, run.report.new_bits_per_weight()));
        if let Some(statement) = statement {
            size.response.on_hover_text(statement);
        }
    });
    figures_ui(line, run.evaluation.as_deref(), Some(reference));
    if shown.verdicts {
        line.col(|ui| verdict_ui(ui, run));
    }
    if shown.is_editing {
        line.col(|ui| actions_ui(ui, cx, memory, run, state, shown));
    }
}

fn size_ui(ui: &mut Ui, bytes: u64, bits: f64) {
    two_lines_ui(
        ui,
        |ui| {
            figure_ui(ui, units::bytes(bytes));
        },
        |ui| {
            number_ui(ui, &Number::exact(format!("{bits:.2}"), "bpw"), 0.0, None);
        },
    );
}

/// What the gates say, worst first, with the one that decides under the pointer.
fn verdict_ui(ui: &mut Ui, run: &Run) {
    let Some(comparison) = run.comparison.as_deref() else { return };
    match comparison.verdict() {
        Some(verdict) => {
            let decides = comparison.gates.iter().filter(|gate| gate.verdict == verdict);
            let reasons: Vec<String> = decides.take(3).map(|gate| format!("{}: {}", gate.limit, gate.reason)).collect();
            pill_ui(ui, "", compare_data::state(verdict)).on_hover_text(reasons.join("\n"));
        }
        None => {
            caption_ui(ui, "no gates");
        }
    }
}

/// KLD over perplexity, accuracy, decode over prefill speed. For a candidate, `reference` is the original whose speed
/// all candidates are laid beside.
fn figures_ui(line: &mut TableRow<'_, '_>, evaluation: Option<&Evaluation>, reference: Option<Option<&Evaluation>>) {
    let text = evaluation.and_then(|evaluation| evaluation.text.as_ref());
    let distance = text.and_then(|text| text.distance.as_ref());
    let speed = evaluation.and_then(|evaluation| evaluation.speed.as_ref());
    line.col(|ui| {
        let kld =
            distance.map_or_else(missing, |own| number_with_interval(own.kld_mean, 1.96 * own.kld_mean_stderr, ""));
        let perplexity =
            text.map_or_else(missing, |own| number_with_interval(own.perplexity, 1.96 * own.perplexity_stderr, ""));
        let hint = "Mean KL divergence from the original in nats, ± half of its 95 % interval";
        two_lines_ui(
            ui,
            |ui| {
                number_ui(ui, &kld, 76.0, None).on_hover_text(hint);
            },
            |ui| {
                number_ui(ui, &perplexity, 76.0, None).on_hover_text("Perplexity, ± half of its 95 % interval");
            },
        );
    });
    line.col(|ui| {
        let number = evaluation
            .and_then(accuracy_percent)
            .map_or_else(missing, |(value, half)| number_with_interval(value, half, "%"));
        let hint = "Share of all items that are right, ± half of its 95 % interval";
        two_lines_ui(
            ui,
            |ui| {
                number_ui(ui, &number, 40.0, None).on_hover_text(hint);
            },
            |_| (),
        );
    });
    let rate = |value: fn(&SpeedResult) -> f64| match reference {
        None => speed.map(|speed| (value(speed), None, value(speed))),
        Some(reference) => evaluation.and_then(|own| {
            let relative = common::relative_speed(own, reference, value)?;
            Some((relative.tokens_per_second, relative.ratio, own.speed.as_ref().map_or(0.0, value)))
        }),
    };
    let rates: [Option<(f64, Option<f64>, f64)>; 2] =
        [rate(|speed| speed.decode_tokens_per_second), rate(|speed| speed.prefill_tokens_per_second)];
    line.col(|ui| {
        let [decode, prefill] = rates;
        two_lines_ui(ui, |ui| rate_ui(ui, decode), |ui| rate_ui(ui, prefill));
    });
}

/// A speed with, under the pointer, how it came about: the shown one, the ratio to the original's, the measured one.
fn rate_ui(ui: &mut Ui, rate: Option<(f64, Option<f64>, f64)>) {
    let number = rate.map_or_else(missing, |(shown, ..)| Number::exact(format!("{shown:.0}"), "tok/s"));
    let response = number_ui(ui, &number, 0.0, None);
    if let Some((_, Some(ratio), measured)) = rate {
        response.on_hover_text(format!(
            "{ratio:.2}× the original's, measured in turns with it, times the original's speed above. At its own \
             moment it was {measured:.0} tok/s"
        ));
    }
}

fn missing() -> Number {
    Number::exact("–", "")
}

fn mark_ui(ui: &mut Ui, color: eframe::egui::Color32) {
    let (rect, _) = ui.allocate_exact_size(vec2(10.0, space::ROW_COMPACT), Sense::hover());
    ui.painter().circle_filled(rect.center(), 4.0, color);
}

fn name_ui(ui: &mut Ui, cx: &mut Cx<'_>, memory: &mut Memory, run: &Run) {
    if let Some((id, text)) = &mut memory.renaming
        && *id == run.id
    {
        let edit = TextEdit::singleline(text).desired_width(f32::INFINITY);
        let response = ui.add(edit).accessible_name(format!("Name of {}", run.name));
        if !response.has_focus() && !response.lost_focus() {
            response.request_focus();
        }
        if response.lost_focus() {
            let is_given_up = ui.input(|input| input.key_pressed(eframe::egui::Key::Escape));
            let name = text.trim().to_owned();
            memory.renaming = None;
            if !is_given_up && !name.is_empty() && name != run.name {
                cx.send(Command::RenameRun { run: run.id, name });
            }
        }
        return;
    }
    let is_focused = cx.document().is_some_and(|document| document.focused_run == Some(run.id));
    let button = Button::selectable(is_focused, run.name.as_str()).truncate();
    if ui.add(button).on_hover_text("Lay this candidate over the original everywhere").clicked() {
        cx.send(Command::FocusRun(Some(run.id)));
    }
}

fn actions_ui(ui: &mut Ui, cx: &mut Cx<'_>, memory: &mut Memory, run: &Run, state: RunState, shown: Shown) {
    let name = &run.name;
    ui.spacing_mut().item_spacing.x = space::XS;
    let is_open = run.checkpoint().is_some();
    if run.comparison.is_some() {
        let compare = secondary_button_ui(ui, "Compare", true);
        if compare.accessible_name(format!("Compare {name}")).clicked() {
            cx.send(Command::FocusRun(Some(run.id)));
            cx.send(Command::Show(View::Compare));
        }
    }
    let has_data = cx.document().is_some_and(|document| document.has_data() && document.cannot_run().is_none());
    let can_evaluate = is_open && has_data && state != RunState::Evaluating;
    // Beside verdicts there is room for two buttons; the menu evaluates again.
    if matches!(state, RunState::New | RunState::Evaluating) || (state == RunState::Stale && !shown.verdicts) {
        let button = secondary_button_ui(ui, "Evaluate", can_evaluate);
        let button = button.on_disabled_hover_text("Needs tasks or a text, and a file that is there");
        if button.accessible_name(format!("Evaluate {name}")).clicked() {
            cx.send(Command::Evaluate(Subject::Run(run.id)));
        }
    }
    let menu = ui.menu_button("More", |ui| {
        if ui.add_enabled(is_open, Button::new("Export…")).clicked() {
            cx.memory.dialogs.ask_export(run.id, &run.path);
            ui.close();
        }
        // A mask is no plan to go back to.
        if run.mask.is_none() && ui.button("Roll the plan back to this run").clicked() {
            cx.send(Command::RollBack(run.id));
            cx.send(Command::Show(View::Plan));
            ui.close();
        }
        if ui.button("Rename").clicked() {
            memory.renaming = Some((run.id, run.name.clone()));
            ui.close();
        }
        if ui.add_enabled(can_evaluate, Button::new("Evaluate again")).clicked() {
            cx.send(Command::Evaluate(Subject::Run(run.id)));
            ui.close();
        }
        if ui.button("Forget").on_hover_text("Takes it off the list; its files stay").clicked() {
            cx.send(Command::ForgetRun(run.id));
            ui.close();
        }
    });
    menu.response.accessible_name(format!("More for {name}"));
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RunState {
    Opening,
    Lost,
    Evaluating,
    Stale,
    New,
    Evaluated,
}

impl RunState {
    fn word(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Lost => "lost",
            Self::Evaluating => "evaluating",
            Self::Stale => "stale",
            Self::New => "not evaluated",
            Self::Evaluated => "evaluated",
        }
    }

    fn color(self, tokens: &Tokens) -> eframe::egui::Color32 {
        match self {
            Self::Lost => tokens.fail,
            Self::Stale => tokens.undecided,
            Self::Evaluating => tokens.accent,
            Self::Opening | Self::New => tokens.weak,
            Self::Evaluated => tokens.text,
        }
    }
}

fn is_evaluating(bench: &Workbench, name: &str) -> bool {
    bench.jobs().any(|job| job.kind == JobKind::Evaluate && job.title == format!("evaluate {name}"))
}

fn state_of(bench: &Workbench, run: &Run) -> RunState {
    match &run.candidate {
        CandidateState::Opening => RunState::Opening,
        CandidateState::Lost(_) => RunState::Lost,
        CandidateState::Open(_) if is_evaluating(bench, &run.name) => RunState::Evaluating,
        CandidateState::Open(_) if run.evaluation.is_none() => RunState::New,
        CandidateState::Open(_) if run.is_stale => RunState::Stale,
        CandidateState::Open(_) => RunState::Evaluated,
    }
}
