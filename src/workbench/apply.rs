//! The one place that changes the project: commands from the window, events from jobs.

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::Workbench;
use super::action::Action;
use super::choices::{EvaluationChoices, MeasuredWith};
use super::command::{Command, SelectMode, Subject};
use super::events::Outcome;
use super::history::History;
use super::jobs::JobKind;
use super::masking::MaskRequest;
use super::measure::{KldRequest, units_of_action};
use super::project::output_folder;
use super::settings::ThemeChoice;
use super::state::{CandidateState, Document, Level, Playground, PlaygroundSide, Run, RunId, Selection, View};
use super::tasks::{self, EvaluationInput, Source};
use super::{importance, planning};
use crate::engine::device::{self, Device};
use crate::engine::error::{Error, Result};
use crate::engine::plan::Plan;
use crate::engine::plan::budget::Limit;
use crate::engine::scoring::GenerateOptions;
use crate::engine::sensitivity::kld::Granularity;

impl Workbench {
    /// Carries out a command. What cannot be done says so in a notice and changes nothing.
    pub fn apply(&mut self, command: impl Into<Command>) {
        let command = command.into();
        if let Command::Act(action) = command
            && let Some(why) = self.unavailable(action)
        {
            self.state.notify(Level::Warning, format!("{}: {why}", action.text()));
            return;
        }
        if let Err(err) = self.carry_out(command) {
            self.state.notify(Level::Error, err.to_string());
        }
        if self.options.executor == super::Executor::Inline {
            self.poll();
        }
    }

    fn carry_out(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Act(action) => return self.act(action),
            Command::Open(path) => self.open(Source::Path(path)),
            Command::SaveProjectAs(path) => return self.save_project_as(path),
            Command::LoadPlan(path) => {
                let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
                let plan = Plan::parse(&text, Some(&path))?;
                self.change_plan(format!("load {}", file_name(&path)), |_, current| {
                    *current = plan;
                    Ok(())
                })?;
            }
            Command::SavePlan(path) => {
                if let Some(document) = &self.state.document {
                    super::files::write_atomically(&path, document.plan().to_toml().as_bytes())
                        .map_err(Error::io("write", &path))?;
                    self.state.notify(Level::Info, format!("Plan written to {}", path.display()));
                }
            }
            Command::LoadTasks(path) => self.load_tasks(path),
            Command::LoadText(path) => self.load_text(path),
            Command::LoadGates(path) => return self.load_gates(&path),
            Command::SetEvaluation(choices) => self.choose_evaluation(|own| *own = *choices),
            Command::ChooseExamples(path) => self.choose_evaluation(|own| {
                own.examples = Some(path);
                // Examples that are chosen are meant to be shown.
                own.few_shot = own.few_shot.max(1);
            }),
            Command::Show(view) => self.state.view = view,
            Command::Select { tensor, mode } => self.select(tensor, mode),
            Command::SelectSet(tensors) => {
                self.state.selection =
                    Selection { focus: tensors.first().copied(), tensors: tensors.into_iter().collect() };
            }
            Command::SetFormat { tensors, format } => {
                let tensors = self.tied(&tensors);
                let name = format!("{} {}", self.subject_of(&tensors), format);
                self.change_plan(name, |document, plan| {
                    plan.set_format(&document.checkpoint, &names(document, &tensors), format)
                })?;
            }
            Command::SetProtected { tensors, protect } => {
                let tensors = self.tied(&tensors);
                let verb = if protect { "protect" } else { "unprotect" };
                self.change_plan(format!("{verb} {}", self.subject_of(&tensors)), |document, plan| {
                    plan.set_protected(&document.checkpoint, &names(document, &tensors), protect)
                })?;
            }
            Command::ClearChoices { tensors } => {
                self.change_plan(format!("clear {}", self.subject_of(&tensors)), |document, plan| {
                    plan.clear(&document.checkpoint, &names(document, &tensors))
                })?;
            }
            Command::SetRecipe(recipe) => {
                let name = recipe.map_or_else(|| "no recipe".to_owned(), |recipe| format!("recipe {}", recipe.name()));
                self.change_plan(name, |_, plan| {
                    plan.set_recipe(recipe);
                    Ok(())
                })?;
            }
            Command::SetTarget(target) => self.change_plan(format!("target {target}"), |_, plan| {
                plan.set_target(target);
                Ok(())
            })?,
            Command::SetPlan { plan, what } => self.change_plan(what, |_, current| {
                *current = *plan;
                Ok(())
            })?,
            Command::CopyLayer { from, to } => {
                self.change_plan(format!("copy layer {from}"), |document, plan| {
                    plan.copy_layer(&document.checkpoint, from, &to)
                })?;
            }
            Command::SetGlob { glob, treatment } => {
                self.change_plan(format!("tensors {glob}"), |document, plan| {
                    plan.set_glob(&document.checkpoint, &glob, treatment)
                })?;
            }
            Command::SetTies(ties) => self.change_plan(format!("ties: {}", ties.name()), |_, plan| {
                plan.set_ties(ties);
                Ok(())
            })?,
            Command::MakeLegal(target) => return self.make_legal(target),
            Command::SetConstraints(constraints) => return self.set_constraints(*constraints),
            Command::NamePlan(name) => self.name_plan(&name),
            Command::ReturnTo(name) => return self.return_to(&name),
            Command::ForgetNamed(name) => {
                self.with_document(|document| document.named.retain(|named| named.name != name));
            }
            Command::UndoTo(step) => self.step_history(|history| history.undo_to(step)),
            Command::ExportGates(path) => return self.export_gates(&path),
            Command::ScoreUnits(metric) => self.score_units(metric),
            Command::ScoreSlices(slices) => return self.score_slices(slices),
            Command::EditUnits { edit, what } => return self.edit_units(edit, what),
            Command::MaskWeights(request) => return self.mask(request),
            Command::PruneInSteps(request) => return self.prune_in_steps(*request),
            Command::Calibrate(text) => self.calibrate(text),
            Command::LoadImportance(path) => self.load_importance(path),
            Command::ImportTensorTypes(path) => return self.import_tensor_types(&path),
            Command::ExportTensorTypes(path) => return self.export_tensor_types(&path),
            Command::PlanWithin { limit, metric, continues } => {
                return self.plan_within(&[limit], metric, continues);
            }
            Command::MeasureKld(request) => self.measure_kld(request),
            Command::ChooseCalibration(path) => self.choose_calibration(path),
            Command::RunPlan { name, output } => return self.run_plan(name, output),
            Command::Evaluate(subject) => self.evaluate(subject),
            Command::ProfileRun(run) => self.profile_run(run),
            Command::Export { run, output } => {
                let candidate = self.state.document.as_ref().and_then(|d| d.run(run)?.checkpoint().cloned());
                if let Some(candidate) = candidate {
                    self.jobs.spawn(JobKind::Export, format!("copy to {}", file_name(&output)), move |context| {
                        tasks::export(&candidate, &output, context)
                    });
                }
            }
            Command::WriteFile { path, bytes } => {
                super::files::write_atomically(&path, &bytes).map_err(Error::io("write", &path))?;
                self.state.notify(Level::Info, format!("Saved {}", path.display()));
            }
            Command::ForgetRun(run) => self.with_document(|document| {
                document.runs.retain(|known| known.id != run);
                if document.focused_run == Some(run) {
                    document.focused_run = document.runs.last().map(|run| run.id);
                }
            }),
            Command::RollBack(run) => {
                let plan = self
                    .state
                    .document
                    .as_ref()
                    .and_then(|d| d.run(run))
                    // A mask is no plan to go back to.
                    .filter(|run| run.mask.is_none())
                    .map(|run| (run.plan.clone(), run.name.clone()));
                if let Some((plan, name)) = plan {
                    self.change_plan(format!("roll back to {name}"), |_, current| {
                        *current = plan;
                        Ok(())
                    })?;
                    self.state.view = View::Plan;
                }
            }
            Command::RenameRun { run, name } => self.with_document(|document| {
                if let Some(run) = document.run_mut(run) {
                    run.name = name;
                }
            }),
            Command::FocusRun(run) => self.with_document(|document| document.focused_run = run),
            Command::SetPrompt(prompt) => self.with_document(|document| document.playground.prompt = prompt),
            Command::SetGenerateTokens(tokens) => {
                self.with_document(|document| document.playground.max_tokens = tokens.clamp(1, 4096));
            }
            Command::SetTemperature(temperature) => {
                self.with_document(|document| document.playground.temperature = temperature.clamp(0.0, 2.0));
            }
            Command::SetDraftTokens(tokens) => {
                let tokens = tokens.clamp(1, super::drafting::MOST_DRAFTED);
                self.with_document(|document| document.playground.draft_tokens = tokens);
            }
            Command::PrintPdf { path, html } => {
                self.jobs.spawn(JobKind::Export, format!("print {}", file_name(&path)), move |_| {
                    super::printing::print_to_pdf(&html, &path)?;
                    let bytes = std::fs::metadata(&path).map_or(0, |file| file.len());
                    Ok(Outcome::Exported { output: path, bytes })
                });
            }
            Command::Cancel(job) => self.jobs.cancel(job),
            Command::Pause { job, paused } => self.jobs.set_paused(job, paused),
            Command::Dismiss(id) => self.state.notices.retain(|notice| notice.id != id),
            Command::SetTheme(theme) => self.set_theme(theme),
            Command::FindDevices => self.find_devices(),
            Command::SetDevice(wish) => self.set_device(wish),
            Command::Warn(text) => self.state.notify(Level::Warning, text),
        }
        Ok(())
    }

    fn act(&mut self, action: Action) -> Result<()> {
        let selected: Vec<usize> = self.state.selection.tensors.iter().copied().collect();
        match action {
            // These ask for a path or paint something of their own: the window handles them.
            Action::OpenFile
            | Action::OpenFolder
            | Action::OpenPath
            | Action::SaveProjectAs
            | Action::LoadTasks
            | Action::LoadText
            | Action::LoadGates
            | Action::LoadPlan
            | Action::SavePlan
            | Action::LoadImportance
            | Action::CalibrateOn
            | Action::ChooseCalibration
            | Action::ChooseExamples
            | Action::ImportTensorTypes
            | Action::ExportTensorTypes
            | Action::ExportGates
            | Action::Palette
            | Action::About => {}
            Action::OpenDemo => self.open(Source::Demo),
            Action::SaveProject => {
                self.save_project()?;
                if let Some(document) = &self.state.document {
                    let text = format!("Project saved in {}", document.project_path.display());
                    self.state.notify(Level::Info, text);
                }
            }
            Action::Quit => self.state.quit = true,
            Action::Undo => self.step_history(History::undo),
            Action::Redo => self.step_history(History::redo),
            Action::SelectAllLinears => {
                if let Some(document) = &self.state.document {
                    let tensors = document.checkpoint.tensors.iter().enumerate();
                    let linears = tensors.filter(|(_, tensor)| tensor.role.is_layer_linear()).map(|(index, _)| index);
                    let tensors: std::collections::BTreeSet<usize> = linears.collect();
                    // The inspector shows the focus, so there is one.
                    let focus =
                        self.state.selection.focus.filter(|focus| tensors.contains(focus)).or(tensors.first().copied());
                    self.state.selection = Selection { tensors, focus };
                }
            }
            Action::ClearSelection => self.state.selection = Selection::default(),
            Action::ProtectSelection => {
                return self.carry_out(Command::SetProtected { tensors: selected, protect: true });
            }
            Action::UnprotectSelection => {
                return self.carry_out(Command::SetProtected { tensors: selected, protect: false });
            }
            Action::ClearChoices => return self.carry_out(Command::ClearChoices { tensors: selected }),
            Action::ImprovePlan => {
                let resolved = self.state.document.as_ref().and_then(|document| document.resolved.as_ref().ok());
                if let Some(limit) = resolved.map(|resolved| Limit::TensorBytes(resolved.padded_bytes)) {
                    return self.plan_within(&[limit], None, false);
                }
            }
            Action::FitConstraints => return self.fit_constraints(),
            Action::MakePlanLegal => {
                if let Some(target) = self.state.document.as_ref().map(|document| document.plan().target()) {
                    return self.make_legal(target);
                }
            }
            Action::RunFrontier => return self.run_frontier(),
            Action::MeasureRates => self.measure_rates(),
            Action::RunPlan => return self.run_plan(None, None),
            Action::MaskWeights => return self.mask(MaskRequest::default()),
            Action::Calibrate => self.calibrate_again(),
            Action::UseImportance => return self.use_importance(true),
            Action::DropImportance => return self.use_importance(false),
            Action::ToggleDeviceSearch => return self.toggle_device_search(),
            Action::MeasureWeightError => self.measure_weight_error(),
            Action::MeasureOutput => self.measure_output(),
            Action::MeasureFisher => self.measure_fisher(),
            Action::MeasureKld => self.measure_kld(KldRequest::default()),
            Action::MeasureLayerKld => {
                self.measure_kld(KldRequest { granularity: Granularity::Layer, ..KldRequest::default() });
            }
            Action::MeasureBlockInfluence
            | Action::MeasureLayerRemoval
            | Action::MeasureHeadGradient
            | Action::MeasureHeadAblation
            | Action::MeasureGroupAblation => {
                if let Some(metric) = units_of_action(action) {
                    self.measure_units(metric);
                }
            }
            Action::EvaluateBaseline => self.evaluate(Subject::Baseline),
            Action::EvaluateCandidates => {
                let missing: Vec<RunId> = self
                    .state
                    .document
                    .iter()
                    .flat_map(|document| document.runs.iter().filter(|run| run.lacks_evaluation()).map(|run| run.id))
                    .collect();
                for run in missing {
                    self.evaluate(Subject::Run(run));
                }
            }
            Action::ToggleKeepBaseline => self.toggle_keep_baseline(),
            Action::Generate => self.generate(),
            Action::Speculate => self.speculate(),
            Action::DropGates => self.drop_gates(),
            Action::CancelJobs => self.jobs.cancel_all(),
            Action::ToggleTheme => {
                let next = if self.state.settings.theme == ThemeChoice::Light {
                    ThemeChoice::Dark
                } else {
                    ThemeChoice::Light
                };
                self.set_theme(next);
            }
            Action::TogglePresenter => self.state.presenter = !self.state.presenter,
            Action::ShowOverview
            | Action::ShowWeights
            | Action::ShowSensitivity
            | Action::ShowPlan
            | Action::ShowHeads
            | Action::ShowRuns
            | Action::ShowCompare
            | Action::ShowPlayground
            | Action::ShowReport => {
                if let Some(view) = action.view() {
                    self.state.view = view;
                }
            }
        }
        Ok(())
    }

    /// Changes the document, if one is open, so that it has to be saved.
    pub(super) fn with_document(&mut self, change: impl FnOnce(&mut Document)) {
        if let Some(document) = &mut self.state.document {
            change(document);
            document.is_dirty = true;
        }
    }

    fn set_theme(&mut self, theme: ThemeChoice) {
        self.state.settings.theme = theme;
        self.state.settings.save(&self.options.data_dir);
    }

    /// Evaluates in another way from now on.
    fn choose_evaluation(&mut self, change: impl FnOnce(&mut EvaluationChoices)) {
        self.with_document(|document| {
            change(&mut document.choices);
            // What was finished in another way counts for nothing here.
            document.unfinished.clear();
        });
        self.mark_stale();
    }

    fn find_devices(&mut self) {
        if self.state.devices.is_some() || self.jobs.is_running(JobKind::Devices) {
            return;
        }
        let wish = self.state.settings.device.clone();
        self.jobs.spawn(JobKind::Devices, "look for devices", move |_| {
            // A device that was chosen once may be gone: the list is shown all the same.
            let found = device::list(&wish).or_else(|_| device::list("cpu"))?;
            Ok(Outcome::Devices(found))
        });
    }

    fn toggle_keep_baseline(&mut self) {
        let keeps = &mut self.state.settings.keep_baseline;
        *keeps = !*keeps;
        let text = if *keeps {
            "Evaluations from now on keep the original's predictions: KLD is a lower bound, shown with an upper one"
        } else {
            "Evaluations from now on run the original beside each candidate: KLD is exact"
        };
        self.state.settings.save(&self.options.data_dir);
        self.state.notify(Level::Info, text);
    }

    /// Jobs that run already go on where they are.
    fn set_device(&mut self, wish: String) {
        self.state.device = Device::wished(&wish);
        self.jobs.device = self.state.device.clone();
        self.state.settings.device = wish;
        self.state.settings.save(&self.options.data_dir);
        self.state.devices = None;
        self.find_devices();
    }

    fn select(&mut self, tensor: usize, mode: SelectMode) {
        let selection = &mut self.state.selection;
        match (mode, selection.focus) {
            (SelectMode::Toggle, _) => {
                if !selection.tensors.remove(&tensor) {
                    selection.tensors.insert(tensor);
                }
            }
            (SelectMode::Extend, Some(from)) => selection.tensors.extend(from.min(tensor)..=from.max(tensor)),
            _ => selection.tensors = [tensor].into(),
        }
        selection.focus = Some(tensor);
    }

    /// Words for a set of tensors in a step of history.
    fn subject_of(&self, tensors: &[usize]) -> String {
        match (tensors, &self.state.document) {
            ([one], Some(document)) => document
                .checkpoint
                .tensors
                .get(*one)
                .map_or_else(|| "a tensor".to_owned(), |tensor| tensor.name.clone()),
            _ => format!("{} tensors", tensors.len()),
        }
    }

    /// One step of the plan's history: edits a copy, and keeps it if it is another plan.
    pub(super) fn change_plan(
        &mut self,
        name: String,
        edit: impl FnOnce(&Document, &mut Plan) -> Result<()>,
    ) -> Result<()> {
        let Some(document) = &mut self.state.document else { return Ok(()) };
        let mut next = document.plan().clone();
        edit(document, &mut next)?;
        if document.history.push(name, next) {
            resolve(document);
        }
        Ok(())
    }

    fn step_history(&mut self, step: impl FnOnce(&mut History<Plan>) -> bool) {
        if let Some(document) = &mut self.state.document
            && step(&mut document.history)
        {
            resolve(document);
        }
    }

    /// Marks evaluations that were made on other tasks or texts than those chosen now, or in another way.
    pub(super) fn mark_stale(&mut self) {
        self.with_document(|document| {
            let now = MeasuredWith::now(document);
            for run in &mut document.runs {
                run.is_stale = now.is_other_than(run);
            }
        });
    }

    pub(super) fn profile_baseline(&mut self) {
        if let Some(document) = &self.state.document {
            let checkpoint = document.checkpoint.clone();
            self.jobs
                .spawn(JobKind::Profile, "profile the original", move |context| tasks::profile(&checkpoint, context));
        }
    }

    pub(super) fn profile_run(&mut self, run: RunId) {
        if let Some((candidate, name)) = self
            .state
            .document
            .as_ref()
            .and_then(|d| d.run(run))
            .and_then(|run| Some((run.checkpoint()?.clone(), &run.name)))
        {
            self.jobs.spawn(JobKind::Profile, format!("profile {name}"), move |context| {
                tasks::profile_run(run, &candidate, context)
            });
        }
    }

    pub(super) fn evaluate(&mut self, subject: Subject) {
        let Some(document) = &self.state.document else { return };
        if document.cannot_run().is_some() || !document.has_data() {
            return;
        }
        let (candidate, name) = match subject {
            Subject::Baseline => (None, "the original".to_owned()),
            Subject::Run(id) => {
                let Some((run, checkpoint)) = document.run(id).and_then(|run| Some((run, run.checkpoint()?))) else {
                    self.state.notify(Level::Warning, "This candidate's file is not open, so it cannot be evaluated");
                    return;
                };
                (Some((id, checkpoint.clone())), run.name.clone())
            }
        };
        let input = EvaluationInput {
            baseline: document.checkpoint.clone(),
            candidate,
            known: document.baseline.clone(),
            tasks: document.tasks.clone(),
            text: document.text.clone(),
            models: self.models.clone(),
            folder: output_folder(&document.project_path),
            keeps_baseline: self.state.settings.keep_baseline,
            with: MeasuredWith::now(document),
        };
        self.jobs.spawn(JobKind::Evaluate, format!("evaluate {name}"), move |context| tasks::evaluate(&input, context));
    }

    fn generate(&mut self) {
        let models = self.models.clone();
        let Some(document) = &mut self.state.document else { return };
        let options = GenerateOptions {
            max_tokens: document.playground.max_tokens,
            temperature: document.playground.temperature,
            ..GenerateOptions::default()
        };
        let prompt = document.playground.prompt.clone();
        let focused = document.focused().and_then(|run| Some((run.id, run.checkpoint()?.clone(), run.name.clone())));
        document.playground = Playground {
            written_prompt: prompt.clone(),
            baseline: PlaygroundSide::default(),
            candidate: PlaygroundSide::default(),
            run: focused.as_ref().map(|(id, ..)| *id),
            ..document.playground.clone()
        };
        let original = document.checkpoint.clone();
        let mut sides = vec![(Subject::Baseline, original.clone(), "the original".to_owned())];
        sides.extend(focused.map(|(id, checkpoint, name)| (Subject::Run(id), checkpoint, name)));
        for (subject, checkpoint, name) in sides {
            let (models, prompt, options) = (models.clone(), prompt.clone(), options.clone());
            let source = (subject != Subject::Baseline).then(|| original.clone());
            self.jobs.spawn(JobKind::Generate, format!("{name} writes"), move |context| {
                tasks::generate(&checkpoint, source.as_deref(), subject, &models, &prompt, &options, context)
            });
        }
    }

    /// Makes a finished pass a run and has it evaluated.
    pub(super) fn add_run(&mut self, passed: super::events::Passed) {
        let Some(document) = self.state.document.as_mut().filter(|d| d.checkpoint.fingerprint == passed.fingerprint)
        else {
            return;
        };
        let id = RunId(document.next_run);
        document.next_run += 1;
        let created_unix_secs = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        document.runs.push(Run {
            id,
            name: passed.name,
            plan: passed.plan,
            mask: passed.mask,
            created_unix_secs,
            path: passed.candidate.path.clone(),
            content_hash: passed.content_hash,
            report: Arc::new(passed.report),
            candidate: CandidateState::Open(passed.candidate),
            evaluation: None,
            is_stale: false,
            comparison: None,
            measured_with: None,
            profiles: Default::default(),
        });
        document.focused_run = Some(id);
        document.is_dirty = true;
        self.profile_run(id);
        self.evaluate(Subject::Run(id));
        self.autosave(true);
    }
}

pub(super) fn resolve(document: &mut Document) {
    let importance = document.importance_in_use().map(Arc::as_ref);
    document.resolved = importance::resolved(document.plan(), &document.checkpoint, importance);
    planning::know_overhead(document);
    document.is_dirty = true;
}

pub(super) fn names(document: &Document, tensors: &[usize]) -> Vec<String> {
    tensors
        .iter()
        .filter_map(|&index| document.checkpoint.tensors.get(index))
        .map(|tensor| tensor.name.clone())
        .collect()
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}
