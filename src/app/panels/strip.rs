//! The bottom: what the plan makes of the checkpoint, and what is running.

use eframe::egui::{Align, Layout, Ui};

use super::standing::{self, chips_ui};
use crate::app::context::Cx;
use crate::app::theme::{Type, UiTokens as _, space};
use crate::app::widgets::{
    Level as NoticeLevel, Notice, ProgressAction, ProgressRow, notice_ui, primary_button_ui, progress_row_ui,
};
use crate::engine::plan::ResolvedPlan;
use crate::engine::progress::{Phase, Snapshot, Unit};
use crate::engine::units;
use crate::workbench::{Action, Command, Document, JobKind, JobView, Level, PlanStanding, Side};

/// Paints the strip.
pub fn strip_ui(ui: &mut Ui, cx: &mut Cx<'_>) {
    let mut standing = std::mem::take(&mut cx.memory.standing);
    standing.update(cx.state());
    ui.horizontal(|ui| {
        if let Some(document) = cx.document() {
            plan_ui(ui, document, &standing);
        } else {
            ui.label(Type::Body.text("Nothing is open").color(ui.tokens().weak));
        }
        if cx.is_presenting() {
            return;
        }
        ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
            let why = cx.bench.unavailable(Action::RunPlan);
            let response = primary_button_ui(ui, "Run the plan", why.is_none());
            if response.clicked() {
                cx.act(Action::RunPlan);
            }
            response.on_hover_text(why.unwrap_or(Action::RunPlan.tooltip()));
        });
    });
    if !standing.standing.checks.is_empty() {
        ui.horizontal_wrapped(|ui| chips_ui(ui, cx, &standing.standing.checks));
    }
    cx.memory.standing = standing;
    let jobs: Vec<(crate::workbench::JobId, ProgressRow)> =
        cx.bench.jobs().filter(|job| is_shown(job)).map(|job| (job.id, row(&job))).collect();
    // The strip keeps the height of one row, so that the frame does not jump when a job begins.
    if jobs.is_empty() {
        ui.allocate_space(eframe::egui::vec2(1.0, space::ROW));
    }
    for (id, row) in jobs.iter().take(3) {
        match progress_row_ui(ui, row) {
            Some(ProgressAction::Cancel) => cx.send(Command::Cancel(*id)),
            Some(ProgressAction::Pause) => cx.send(Command::Pause { job: *id, paused: true }),
            Some(ProgressAction::Resume) => cx.send(Command::Pause { job: *id, paused: false }),
            None => {}
        }
    }
    if jobs.len() > 3 {
        ui.label(Type::Small.text(format!("and {} more waiting", jobs.len() - 3)).color(ui.tokens().weak));
    }
}

/// Very short work is not worth a row that comes and goes.
fn is_shown(job: &JobView<'_>) -> bool {
    let is_soon_over = matches!(job.kind, JobKind::Open | JobKind::ReadInput);
    !matches!(job.kind, JobKind::Compare | JobKind::LookForUnfinished)
        && (!is_soon_over || job.progress.elapsed.as_millis() > 300)
}

fn plan_ui(ui: &mut Ui, document: &Document, standing: &standing::Memory) {
    let tokens = ui.tokens();
    let resolved = match &document.resolved {
        Ok(resolved) => resolved,
        Err(err) => {
            let text = err.to_string();
            ui.label(Type::Body.text(text.lines().next().unwrap_or("the plan has an error")).color(tokens.fail))
                .on_hover_text(text);
            return;
        }
    };
    ui.label(Type::Body.text("plan").color(tokens.weak));
    let recipe = document.plan().recipe().map_or("no recipe", |recipe| recipe.name());
    let edits = document.plan().rules().len();
    let name = if edits == 0 { recipe.to_owned() } else { format!("{recipe} + {edits}") };
    ui.label(Type::Strong.text(name));
    ui.separator();
    let ratio = resolved.old_bytes as f64 / resolved.new_bytes.max(1) as f64;
    ui.label(Type::Mono.text(format!("{} → {}", units::bytes(resolved.old_bytes), units::bytes(resolved.new_bytes))))
        .on_hover_text("Bytes of all tensors, as stored and as planned");
    ui.label(Type::Mono.text(format!("{ratio:.2}× smaller")));
    ui.separator();
    ui.label(Type::Mono.text(format!("{:.2} bpw", resolved.new_bits_per_weight())))
        .on_hover_text("Bits per weight, scales included");
    ui.separator();
    damage_ui(ui, resolved, standing.damages);
    speed_ui(ui, &standing.standing);
    if !resolved.warnings.is_empty() {
        ui.separator();
        ui.label(Type::Small.text(format!("{} notes", resolved.warnings.len())).color(tokens.undecided))
            .on_hover_text(resolved.warnings.join("\n"));
    }
}

/// The damage that the tensors' own ones add up to, by the metric that says most.
fn damage_ui(ui: &mut Ui, resolved: &ResolvedPlan, [kld, fisher, weight]: [Option<f64>; 3]) {
    let (text, help) = if let Some(sum) = kld {
        let help = "Predicted: the sum of what each tensor's change was measured to do alone (measured, weights only)";
        (format!("KLD ≈ {}", units::significant(sum)), help)
    } else if let Some(sum) = fisher {
        let help = "Predicted: the sum over tensors of half the Fisher information times squared error";
        (format!("KLD ≈ {}", units::significant(sum)), help)
    } else if let Some(sum) = weight {
        let count = resolved.decisions.iter().filter(|decision| !decision.is_copy()).count().max(1);
        let help = "Mean relative weight error of the changed tensors. Measure KLD per tensor for a prediction of the output's change";
        (format!("weight error {}", units::percent(sum / count as f64)), help)
    } else {
        return;
    };
    let weak = ui.tokens().weak;
    ui.label(Type::Mono.text(text)).on_hover_text(help);
    ui.label(Type::Small.text("predicted").color(weak));
}

/// Room that a speed takes beside the button at the right.
const SPEED_WIDTH: f32 = 280.0;

/// How fast the plan's file will write, where the kernels are timed and there is room.
fn speed_ui(ui: &mut Ui, standing: &PlanStanding) {
    let Some(speed) = standing.speed.filter(|_| ui.available_width() > SPEED_WIDTH) else { return };
    ui.separator();
    let decode = units::significant(speed.decode_tokens_per_second);
    let text = match standing.original_speed {
        Some(original) if original > 0.0 => {
            format!("decode ≈ {decode} tok/s, ×{:.2}", speed.decode_tokens_per_second / original)
        }
        _ => format!("decode ≈ {decode} tok/s"),
    };
    let prefill = units::significant(speed.prefill_tokens_per_second);
    let basis = if speed.is_calibrated {
        "brought to the original's measured speed"
    } else {
        "products alone; evaluate the original to take the rest of the network into account"
    };
    let error = match (standing.largest_decode_error(), standing.speed_errors.len()) {
        (Some(error), 1) => format!("; off by {} on the candidate that was measured", units::percent(error)),
        (Some(error), count) => format!("; off by at most {} on {count} measured candidates", units::percent(error)),
        (None, _) => String::new(),
    };
    let help = format!("Predicted from measured kernel speeds, {basis}{error}. Prefill ≈ {prefill} tok/s");
    let weak = ui.tokens().weak;
    ui.label(Type::Mono.text(text)).on_hover_text(help);
    ui.label(Type::Small.text("predicted").color(weak));
}

/// The figure so far: whose it is where two models take turns, and of which items, since those are scored in the order
/// of their file and the first slices need not be like the others.
fn running_in_words(kind: JobKind, side: Option<Side>, progress: &Snapshot) -> String {
    let Some(running) = progress.running else { return String::new() };
    if kind != JobKind::Evaluate || progress.phase != Phase::ScoringTasks {
        return running.text();
    }
    let whose = match side.filter(|_| progress.done > progress.resumed) {
        Some(Side::Original) => "original: ",
        Some(Side::Candidate) => "candidate: ",
        None => "",
    };
    format!("{whose}{} of the items so far", running.text())
}

/// Seconds left in words. An evaluation has several parts, of which only the present one can be foreseen.
fn time_left(kind: JobKind, secs: f64) -> String {
    let part = if kind == JobKind::Evaluate { "this part: " } else { "" };
    format!("{part}{} left", units::seconds(secs))
}

/// A job's counters in words.
fn row(job: &JobView<'_>) -> ProgressRow {
    let Snapshot { phase, unit, done, total, .. } = job.progress;
    let amount = |value: u64| match unit {
        Unit::Bytes => units::bytes(value),
        Unit::Items | Unit::Tokens => value.to_string(),
    };
    let rate = job.progress.rate();
    // What was done in an earlier run took no time in this one.
    let rate = if done <= job.progress.resumed {
        String::new()
    } else {
        match unit {
            Unit::Bytes => format!("{}/s", units::bytes(rate as u64)),
            Unit::Tokens => format!("{rate:.0} tok/s"),
            Unit::Items => format!("{rate:.1} items/s"),
        }
    };
    ProgressRow {
        name: if phase == Phase::Waiting { job.title.to_owned() } else { format!("{} · {}", job.title, phase.name()) },
        count: if phase == Phase::Waiting {
            "waiting".to_owned()
        } else if total == 0 {
            String::new()
        } else {
            format!("{} / {}", amount(done), amount(total))
        },
        rate,
        running: running_in_words(job.kind, job.side, &job.progress),
        time_left: job.progress.seconds_left().map_or_else(String::new, |secs| time_left(job.kind, secs)),
        fraction: (total > 0).then(|| job.progress.fraction() as f32),
        is_paused: job.progress.is_paused,
        is_cancelling: job.progress.is_cancelled,
        can_pause: !matches!(job.kind, JobKind::Generate | JobKind::Open | JobKind::ReadInput),
    }
}

/// Paints messages above everything at the bottom right; informative ones go by themselves.
pub fn notices_ui(ui: &mut Ui, cx: &mut Cx<'_>) {
    use eframe::egui::{Align2, Area, Id, Order, vec2};
    let notices = &cx.state().notices;
    if notices.is_empty() {
        return;
    }
    let now = ui.ctx().time();
    let mut dismissed = Vec::new();
    Area::new(Id::unique("notices"))
        .order(Order::Foreground)
        .anchor(Align2::RIGHT_BOTTOM, vec2(-space::L, -88.0))
        .show(ui.ctx(), |ui| {
            ui.set_max_width(440.0);
            for notice in notices.iter().rev().take(4).rev() {
                let born = Id::unique(("notice", notice.id));
                let since = ui.ctx().data_mut(|data| *data.get_temp_mut_or(born, now));
                let stay = match notice.level {
                    Level::Info => 6.0,
                    Level::Warning => 14.0,
                    Level::Error => f64::INFINITY,
                };
                if now - since > stay {
                    dismissed.push(notice.id);
                    continue;
                }
                if stay.is_finite() {
                    ui.ctx()
                        .request_repaint_after(std::time::Duration::from_secs_f64((stay - (now - since)).max(0.05)));
                }
                let (first, rest) = notice.text.split_once('\n').unwrap_or((&notice.text, ""));
                let level = match notice.level {
                    Level::Info => NoticeLevel::Info,
                    Level::Warning => NoticeLevel::Warning,
                    Level::Error => NoticeLevel::Error,
                };
                if notice_ui(ui, &Notice { level, text: first, detail: rest.trim(), action: Some("Dismiss") }) {
                    dismissed.push(notice.id);
                }
            }
        });
    for id in dismissed {
        cx.send(Command::Dismiss(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::progress::{Figure, Progress};

    #[test]
    fn a_running_figure_says_whose_it_is_and_of_which_items() {
        let progress = Progress::default();
        progress.begin(Phase::ScoringTasks, 100, Unit::Items);
        progress.resume(10);
        progress.tally(Figure::Accuracy, [1.0]);
        let told = |side| running_in_words(JobKind::Evaluate, side, &progress.snapshot());
        assert_eq!(told(Some(Side::Original)), "accuracy 100.0 % of the items so far", "all of it is from before");
        progress.advance(1);
        assert_eq!(told(Some(Side::Original)), "original: accuracy 100.0 % of the items so far");
        assert_eq!(told(Some(Side::Candidate)), "candidate: accuracy 100.0 % of the items so far");
        let other = running_in_words(JobKind::Kld, None, &progress.snapshot());
        assert_eq!(other, "accuracy 100.0 %");
    }

    #[test]
    fn time_left_of_an_evaluation_is_that_of_its_part() {
        assert_eq!(time_left(JobKind::Evaluate, 41.0), "this part: 41 s left");
        assert_eq!(time_left(JobKind::Pass, 41.0), "41 s left");
    }
}
