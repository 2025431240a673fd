//! Sensitivity in the project: which text it is measured on, the jobs that measure it, and taking in
//! what they find, cell by cell, so that nothing finished is measured again.

use std::path::PathBuf;
use std::sync::Arc;

use super::Workbench;
use super::action::Action;
use super::apply::file_name;
use super::jobs::JobKind;
use super::measure_tasks;
use super::state::{Document, Level};
use crate::engine::calibration::{Overlap, Share};
use crate::engine::sensitivity::kld::{self, Granularity};
use crate::engine::sensitivity::units::{self, UnitMetric};
use crate::engine::sensitivity::{SensitivityTable, UnitTable, UnitValue};
use crate::engine::structure::slices::Slice;

/// Tokens over which is measured unless told otherwise.
pub(super) const DEFAULT_TOKENS: usize = 8192;

/// What KLD is measured on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MeasureOn {
    /// The calibration text, grouped by domain where it names them.
    #[default]
    Text,
    /// The right answers of the tasks, grouped by slice.
    Tasks,
}

/// A measurement of KLD that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KldRequest {
    /// Formats by id.
    pub formats: Vec<&'static str>,
    /// Tokens to score, or of tasks to read.
    pub tokens: usize,
    /// What is changed at a time.
    pub granularity: Granularity,
    /// Over which tokens.
    pub on: MeasureOn,
    /// Whether a cell ends once its standard error is a tenth of its value.
    pub stops_early: bool,
}

impl Default for KldRequest {
    fn default() -> Self {
        Self {
            formats: vec!["q8_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k"],
            tokens: DEFAULT_TOKENS,
            granularity: Granularity::Tensor,
            on: MeasureOn::Text,
            stops_early: false,
        }
    }
}

impl KldRequest {
    /// Where its table lies in [`Document::sensitivity`].
    pub fn key(&self) -> &'static str {
        match (self.granularity, self.on) {
            (Granularity::Tensor, MeasureOn::Text) => kld::METRIC.id,
            (Granularity::Tensor, MeasureOn::Tasks) => "kld/tasks",
            (Granularity::Layer, MeasureOn::Text) => kld::LAYER_METRIC.id,
            (Granularity::Layer, MeasureOn::Tasks) => "kld_layer/tasks",
        }
    }
}

/// What is known of the calibration text.
#[derive(Clone, Debug, PartialEq)]
pub struct CalibrationInfo {
    /// The file.
    pub path: PathBuf,
    /// How it is mixed, the largest share first.
    pub mixture: Vec<Share>,
    /// What it shares with the text that candidates are evaluated on, where there is one.
    pub overlap: Option<Overlap>,
}

impl Document {
    /// The text that sensitivity is measured on: the calibration text, else the one candidates are
    /// evaluated on.
    pub fn sensitivity_text(&self) -> Option<PathBuf> {
        self.calibration_text.clone().or_else(|| Some(self.text.as_ref()?.path.clone()))
    }

    /// The sum of what the plan's choices do one at a time beside what all of them did together: the
    /// focused run's KLD with its standard error, where its plan is the one that is shown.
    pub fn additivity(&self) -> Option<(f64, f64, f64)> {
        let run = self.focused().filter(|run| run.mask.is_none())?;
        let distance = run.evaluation.as_ref()?.text.as_ref()?.distance.as_ref()?;
        let table = self.sensitivity.get(kld::METRIC.id)?;
        let resolved = crate::engine::plan::resolve(&run.plan, &self.checkpoint).ok()?;
        let sum = crate::engine::plan::budget::predicted_damage(table, &self.checkpoint, &resolved)?;
        Some((sum, distance.kld_mean, distance.kld_mean_stderr))
    }
}

impl Workbench {
    pub(super) fn measure_weight_error(&mut self) {
        if let Some(document) = &self.state.document {
            let checkpoint = document.checkpoint.clone();
            let importance = document.importance_in_use().cloned();
            self.jobs.spawn(JobKind::WeightError, "weight error of every format", move |context| {
                measure_tasks::weight_error(&checkpoint, importance, context)
            });
        }
    }

    pub(super) fn measure_fisher(&mut self) {
        let Some((document, text)) = self.measurable() else { return };
        let (checkpoint, importance) = (document.checkpoint.clone(), document.importance_in_use().cloned());
        self.jobs.spawn(JobKind::Fisher, "KLD from squared gradients", move |context| {
            measure_tasks::fisher(&checkpoint, &text, importance, context)
        });
    }

    pub(super) fn measure_output(&mut self) {
        let Some((document, text)) = self.measurable() else { return };
        let (checkpoint, importance) = (document.checkpoint.clone(), document.importance_in_use().cloned());
        let models = self.models.clone();
        self.jobs.spawn(JobKind::OutputError, "output error of every format", move |context| {
            measure_tasks::output_error(&checkpoint, &models, &text, importance, context)
        });
    }

    pub(super) fn measure_kld(&mut self, request: KldRequest) {
        let Some((document, text)) = self.measurable() else { return };
        let tasks = match (request.on, &document.tasks) {
            (MeasureOn::Text, _) => None,
            (MeasureOn::Tasks, Some(tasks)) => Some(tasks.clone()),
            (MeasureOn::Tasks, None) => {
                self.state.notify(Level::Warning, "Measuring by task needs tasks: choose some first");
                return;
            }
        };
        let checkpoint = document.checkpoint.clone();
        let importance = document.importance_in_use().cloned();
        let known = document.sensitivity.get(request.key()).cloned();
        let models = self.models.clone();
        let what = match request.granularity {
            Granularity::Tensor => "KLD of one changed tensor at a time",
            Granularity::Layer => "KLD of one changed layer at a time",
        };
        self.jobs.spawn(JobKind::Kld, what, move |context| {
            let on = measure_tasks::On { text, tasks };
            measure_tasks::measured_kld(&checkpoint, &models, &on, &request, importance, known, context)
        });
    }

    pub(super) fn measure_units(&mut self, metric: &'static UnitMetric) {
        let Some((document, text)) = self.measurable() else { return };
        let checkpoint = document.checkpoint.clone();
        let known = document.units.get(metric.metric.id).cloned();
        let models = self.models.clone();
        self.jobs.spawn(JobKind::Units, metric.metric.title, move |context| {
            measure_tasks::units(&checkpoint, &models, &text, metric, known, context)
        });
    }

    /// The document and the text to measure on; says what is missing.
    fn measurable(&mut self) -> Option<(&Document, PathBuf)> {
        let document = self.state.document.as_ref()?;
        let why = match (document.cannot_run(), document.sensitivity_text()) {
            (None, Some(text)) => return Some((self.state.document.as_ref()?, text)),
            (Some(why), _) => why,
            (None, None) => "Measuring needs a text: choose one first",
        };
        self.state.notify(Level::Warning, why);
        None
    }

    /// Measures on this text from now on, and says how it is mixed.
    pub(super) fn choose_calibration(&mut self, path: PathBuf) {
        let Some(document) = &mut self.state.document else { return };
        document.calibration_text = Some(path);
        document.slice_scores.retain(|slice, _| !matches!(slice, Slice::Domain(_)));
        document.is_dirty = true;
        self.look_at_calibration(true);
    }

    /// Reads the calibration text for its mixture and for what it shares with the evaluation text;
    /// with `tells`, a large share is a message too.
    pub(super) fn look_at_calibration(&mut self, tells: bool) {
        let Some(document) = &self.state.document else { return };
        let Some(path) = document.calibration_text.clone().filter(|_| document.cannot_run().is_none()) else { return };
        let (checkpoint, evaluation) = (document.checkpoint.clone(), document.text.clone());
        self.jobs.spawn(JobKind::LookAtText, format!("look at {}", file_name(&path)), move |context| {
            measure_tasks::look_at_calibration(&checkpoint, &path, evaluation.as_deref(), tells, context)
        });
    }

    pub(super) fn take_calibration_info(&mut self, fingerprint: &str, info: CalibrationInfo, tells: bool) {
        let Some(document) = self.state.document.as_mut().filter(|d| d.checkpoint.fingerprint == fingerprint) else {
            return;
        };
        if document.calibration_text.as_ref() != Some(&info.path) {
            return;
        }
        let warning = info.overlap.as_ref().and_then(Overlap::warning).filter(|_| tells);
        document.calibration_info = Some(info);
        if let Some(warning) = warning {
            self.state.notify(Level::Warning, warning);
        }
    }

    /// Puts one value of a layer or head into its table.
    pub(super) fn take_unit(&mut self, fingerprint: &str, empty: &Arc<UnitTable>, value: UnitValue) {
        let Some(document) = self.state.document.as_mut().filter(|d| d.checkpoint.fingerprint == fingerprint) else {
            return;
        };
        let table = document.units.entry(empty.metric.clone()).or_insert_with(|| empty.clone());
        if !table.is_comparable(empty) {
            *table = empty.clone();
        }
        Arc::make_mut(table).insert(value);
        document.is_dirty = true;
    }

    /// The table that partial results go into: what is there, widened by what is being measured.
    pub(super) fn partial_table(
        &mut self,
        fingerprint: &str,
        key: &str,
        empty: &Arc<SensitivityTable>,
    ) -> Option<&mut SensitivityTable> {
        let document = self.state.document.as_mut().filter(|d| d.checkpoint.fingerprint == fingerprint)?;
        document.is_dirty = true;
        let table = document.sensitivity.entry(key.to_owned()).or_insert_with(|| empty.clone());
        let is_narrow = empty.formats.iter().any(|format| table.column(format).is_none());
        if is_narrow || !table.is_comparable(empty) {
            *table = Arc::new(empty.with(table));
        }
        Some(Arc::make_mut(table))
    }
}

/// The action that measures a metric of layers or heads.
pub fn action_of_units(metric: &UnitMetric) -> Option<Action> {
    Some(match metric.metric.id {
        "block_influence" => Action::MeasureBlockInfluence,
        "layer_removal" => Action::MeasureLayerRemoval,
        "head_gradient" => Action::MeasureHeadGradient,
        "head_ablation" => Action::MeasureHeadAblation,
        "kv_group_ablation" => Action::MeasureGroupAblation,
        _ => return None,
    })
}

/// The metric of layers or heads that an action measures.
pub(super) fn units_of_action(action: Action) -> Option<&'static UnitMetric> {
    units::metrics().iter().copied().find(|metric| action_of_units(metric) == Some(action))
}
