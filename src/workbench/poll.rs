//! Taking in what jobs tell, once a frame.

use std::sync::Arc;

use super::Workbench;
use super::apply::file_name;
use super::choices::MeasuredWith;
use super::command::Subject;
use super::events::{Event, Outcome};
use super::jobs::JobKind;
use super::state::{CandidateState, Document, Level};
use crate::engine::device;
use crate::engine::error::Result;
use crate::engine::sensitivity::{SensitivityRow, SensitivityTable, output};
use crate::engine::units;

/// Events taken in one frame; the rest waits for the next, so that no frame is long.
const MOST_EVENTS: usize = 2000;

impl Workbench {
    /// Takes in what jobs have told since the last call; true if anything changed.
    pub fn poll(&mut self) -> bool {
        let mut changed = false;
        for _ in 0..MOST_EVENTS {
            let Some(event) = self.jobs.next_event() else { break };
            changed = true;
            self.take_event(event);
        }
        for message in device::take_messages() {
            self.state.notify(Level::Warning, message);
            changed = true;
        }
        self.autosave(false);
        changed
    }

    /// The document, if it is still the one that a result belongs to.
    pub(super) fn document_of(&mut self, fingerprint: &str) -> Option<&mut Document> {
        self.state.document.as_mut().filter(|document| document.checkpoint.fingerprint == fingerprint)
    }

    fn take_event(&mut self, event: Event) {
        match event {
            Event::Profiled { fingerprint, tensor, profile } => {
                if let Some(slot) = self.document_of(&fingerprint).and_then(|d| d.profiles.get_mut(tensor)) {
                    *slot = Some(profile);
                }
            }
            Event::Row { fingerprint, key, empty, row } => {
                if let Some(table) = self.partial_table(&fingerprint, key, &empty) {
                    // The columns may be in another order there.
                    let place = |format: &String| empty.formats.iter().position(|own| own == format);
                    let cells = table.formats.iter().map(|format| row.cells.get(place(format)?)?.clone()).collect();
                    let row = SensitivityRow { cells, ..row };
                    match table.rows.iter_mut().find(|known| known.name == row.name) {
                        Some(known) => *known = row,
                        None => table.rows.push(row),
                    }
                }
            }
            Event::UnitMeasured { fingerprint, empty, value } => self.take_unit(&fingerprint, &empty, value),
            Event::PruneStep { fingerprint, kept } => self.take_prune_step(&fingerprint, *kept),
            Event::Cell { fingerprint, key, empty, at: (row, column), value } => {
                if let Some(table) = self.partial_table(&fingerprint, key, &empty) {
                    let name = empty.rows.get(row).map(|row| row.name.clone());
                    let format = empty.formats.get(column);
                    let place = format.and_then(|format| table.column(format));
                    if let (Some(name), Some(column)) = (name, place)
                        && let Some(row) = table.rows.iter_mut().find(|row| row.name == name)
                    {
                        row.cells[column] = Some(value);
                    }
                }
            }
            Event::Token { subject, token } => {
                if let Some(document) = &mut self.state.document {
                    let playground = &mut document.playground;
                    match subject {
                        Subject::Baseline => playground.baseline.tokens.push(token),
                        Subject::Run(run) if playground.run == Some(run) => playground.candidate.tokens.push(token),
                        Subject::Run(_) => {}
                    }
                }
            }
            Event::Warned { text } => self.state.notify(Level::Warning, text),
            Event::Drafted { text } => {
                if let Some(drafting) = self.state.document.as_mut().and_then(|d| d.playground.drafting.as_mut()) {
                    *drafting = text;
                }
            }
            Event::Ended { result, kind, .. } => {
                let is_cut_short = result.is_err() && kind == JobKind::Evaluate;
                self.take_result(result);
                if is_cut_short {
                    self.look_for_unfinished();
                }
            }
        }
    }

    /// Takes in a finished table; older cells that can stand in it stay.
    fn take_table(&mut self, fingerprint: &str, key: &str, table: SensitivityTable) {
        if let Some(document) = self.document_of(fingerprint) {
            let table = document.sensitivity.get(key).map_or_else(|| table.clone(), |known| table.with(known));
            document.sensitivity.insert(key.to_owned(), Arc::new(table));
            document.is_dirty = true;
        }
    }

    fn take_result(&mut self, result: Result<Outcome>) {
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(err) => {
                self.state.opening = None;
                if !err.is_cancelled() {
                    self.state.notify(Level::Error, err.to_string());
                }
                return;
            }
        };
        match outcome {
            Outcome::Nothing => {}
            Outcome::Opened(opened) => self.take_in(*opened),
            Outcome::TasksRead { fingerprint, tasks } => self.take_tasks(&fingerprint, tasks),
            Outcome::TextRead { fingerprint, text } => self.take_text(&fingerprint, text),
            Outcome::Reopened { run, candidate } => {
                let mut profile = false;
                self.with_document(|document| {
                    if let Some(run) = document.run_mut(run) {
                        profile = candidate.is_ok();
                        run.candidate = match candidate {
                            Ok(checkpoint) => CandidateState::Open(checkpoint),
                            Err(err) => CandidateState::Lost(err),
                        };
                    }
                });
                if profile {
                    self.profile_run(run);
                }
            }
            Outcome::Unfinished { fingerprint, found } => {
                if let Some(document) = self.document_of(&fingerprint) {
                    document.unfinished = found;
                }
            }
            Outcome::Profiled { fingerprint, profiles, faults } => {
                if let Some(document) = self.document_of(&fingerprint) {
                    document.profiles = profiles;
                    document.profile_faults = faults.into_iter().collect();
                }
            }
            Outcome::RunProfiled { run, profiles } => {
                if let Some(run) = self.state.document.as_mut().and_then(|document| document.run_mut(run)) {
                    run.profiles = profiles;
                }
            }
            Outcome::Sensitivity { fingerprint, key, table } => self.take_table(&fingerprint, key, table),
            Outcome::OutputError { fingerprint, table, activations } => {
                let warnings = activations.warnings();
                if let Some(document) = self.document_of(&fingerprint) {
                    document.activations = Some(activations);
                }
                for warning in warnings {
                    self.state.notify(Level::Warning, warning);
                }
                self.take_table(&fingerprint, output::METRIC.id, table);
            }
            Outcome::Units { fingerprint, table } => {
                if let Some(document) = self.document_of(&fingerprint) {
                    document.units.insert(table.metric.clone(), Arc::new(table));
                    document.is_dirty = true;
                }
            }
            Outcome::LookedAtCalibration { fingerprint, info, tells } => {
                self.take_calibration_info(&fingerprint, info, tells);
            }
            Outcome::Calibrated { fingerprint, known, is_computed } => {
                self.take_importance(&fingerprint, *known, is_computed);
            }
            Outcome::ScoredSlices { fingerprint, scores } => {
                if let Some(document) = self.document_of(&fingerprint) {
                    document.slice_scores.extend(scores);
                    document.is_dirty = true;
                }
            }
            Outcome::Scored { fingerprint, scores, attention } => {
                if let Some(document) = self.document_of(&fingerprint) {
                    document.attention = attention.or(document.attention.take());
                    document.unit_scores.insert(scores.metric.clone(), Arc::from(scores));
                    document.is_dirty = true;
                }
            }
            Outcome::PrunedInSteps { fingerprint, kept, refused } => {
                // Those that were told already are known.
                let count = kept.len();
                for step in kept {
                    self.take_prune_step(&fingerprint, step);
                }
                self.state.notify(
                    Level::Info,
                    refused.unwrap_or_else(|| match count {
                        0 => "Nothing more went: the plan takes as much away already".to_owned(),
                        _ => format!("Pruned in steps: {count} kept, each as a plan of its own"),
                    }),
                );
            }
            Outcome::Passed(passed) => {
                let reused = match passed.report.reused_tensors {
                    0 => String::new(),
                    count => format!(", {count} tensors taken over from earlier candidates"),
                };
                let text = format!(
                    "{} written: {} in {}{reused}",
                    passed.name,
                    units::bytes(passed.report.file_bytes),
                    units::seconds(passed.report.elapsed_secs)
                );
                let warnings = passed.report.warnings.clone();
                self.state.notify(Level::Info, text);
                for warning in warnings {
                    self.state.notify(Level::Warning, warning);
                }
                self.add_run(*passed);
            }
            Outcome::Evaluated { fingerprint, subject, evaluation, comparison, with } => {
                if let Some(document) = self.document_of(&fingerprint) {
                    match subject {
                        Subject::Baseline => document.baseline = Some(Arc::from(evaluation)),
                        Subject::Run(id) => {
                            if let Some(baseline) = &evaluation.baseline {
                                document.baseline = Some(Arc::new((**baseline).clone()));
                            }
                            // Tasks, text or choices may have become others meanwhile.
                            let now = MeasuredWith::now(document);
                            if let Some(run) = document.run_mut(id) {
                                run.evaluation = Some(Arc::from(evaluation));
                                run.measured_with = Some(with);
                                run.set_comparison(comparison);
                                run.is_stale = now.is_other_than(run);
                            }
                            document.unfinished.remove(&id);
                            document.judge(id);
                        }
                    }
                    document.is_dirty = true;
                    self.autosave(true);
                }
            }
            Outcome::Compared { run, comparison } => {
                if let Some(document) = &mut self.state.document {
                    if let Some(run) = document.run_mut(run) {
                        run.set_comparison(comparison);
                    }
                    document.judge(run);
                }
            }
            Outcome::Generated { subject, generation } => {
                if let Some(document) = &mut self.state.document {
                    let playground = &mut document.playground;
                    let side = match subject {
                        Subject::Baseline => &mut playground.baseline,
                        Subject::Run(run) if playground.run == Some(run) => &mut playground.candidate,
                        Subject::Run(_) => return,
                    };
                    side.tokens_per_second = (generation.tpot_secs > 0.0).then(|| 1.0 / generation.tpot_secs);
                    side.tokens = generation.tokens;
                    side.is_done = true;
                }
            }
            Outcome::Speculated(speculated) => {
                if let Some(document) = &mut self.state.document {
                    document.playground.drafting = None;
                    document.playground.speculated = Some(*speculated);
                }
            }
            Outcome::Rates(rates) => self.take_rates(*rates),
            Outcome::Devices(devices) => self.state.devices = Some(Arc::new(devices)),
            Outcome::Exported { output, bytes } => {
                let text = format!("{} written to {}", units::bytes(bytes), file_name(&output));
                self.state.notify(Level::Info, text);
            }
        }
    }
}
