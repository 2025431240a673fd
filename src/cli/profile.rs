//! `lapidary profile`: statistics and histograms of every tensor.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::PATH_HELP;
use super::output::{Table, points};
use super::session::{Answer, Result, Session};
use crate::engine::checkpoint::Checkpoint;
use crate::engine::profile::{ProfileOptions, TensorProfile, profile};
use crate::engine::units;

/// Measure statistics and histograms of every tensor
#[derive(Debug, Args)]
pub(super) struct Profile {
    #[arg(value_name = "PATH", help = PATH_HELP)]
    path: PathBuf,
}

#[derive(Debug, Serialize)]
struct Document<'a> {
    version: u32,
    path: &'a Path,
    /// Fingerprint.
    checkpoint: &'a str,
    tensors: Vec<Row<'a>>,
    faults: Vec<Unprofiled<'a>>,
    /// What looked at large tensors beside the CPU; null for the CPU alone.
    device: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    profile: &'a TensorProfile,
    role: &'static str,
    layer: Option<usize>,
    dtype: &'static str,
    shape: &'a [usize],
}

#[derive(Debug, Serialize)]
struct Unprofiled<'a> {
    name: &'a str,
    cause: &'a str,
}

impl Profile {
    pub fn run(&self, session: &Session) -> Result<Answer> {
        let checkpoint = session.open(&self.path)?;
        let options = ProfileOptions { device: session.device()?, ..ProfileOptions::default() };
        let noun = profile(&checkpoint, &options, &session.progress, &mut |_, _| {})?;
        let rows = checkpoint.tensors.iter().zip(&noun.tensors).filter_map(|(tensor, profile)| {
            let profile = profile.as_deref()?;
            let (role, layer) = (tensor.role.name(), tensor.layer);
            Some(Row { profile, role, layer, dtype: tensor.dtype.name(), shape: &tensor.shape })
        });
        let faults = noun.faults.iter().map(|(index, fault)| {
            session.warn(fault.to_string());
            Unprofiled { name: &checkpoint.tensors[*index].name, cause: &fault.cause }
        });
        let document = Document {
            version: 1,
            path: &checkpoint.path,
            checkpoint: &checkpoint.fingerprint,
            tensors: rows.collect(),
            faults: faults.collect(),
            device: noun.device.as_deref(),
        };
        session.answer(&document, || text(&document, &checkpoint))
    }
}

fn text(document: &Document<'_>, checkpoint: &Checkpoint) -> String {
    let titles = [
        "tensor",
        "type",
        ">weights",
        ">mean",
        ">std",
        ">min",
        ">max",
        ">kurtosis",
        ">zero %",
        ">>3σ %",
        ">>6σ %",
        ">NaN",
        ">inf",
    ];
    let mut table = Table::new(&titles);
    for row in &document.tensors {
        let figures = row.profile;
        table.row([
            figures.name.clone(),
            row.dtype.to_owned(),
            units::count(figures.count),
            units::significant(figures.mean),
            units::significant(figures.std),
            units::significant(figures.min),
            units::significant(figures.max),
            figures.excess_kurtosis.map_or_else(|| "–".to_owned(), |kurtosis| units::minus(&format!("{kurtosis:.2}"))),
            points(figures.zero_share),
            format!("{:.2}", figures.beyond_3_sigma_share * 100.0),
            units::significant(figures.beyond_6_sigma_share * 100.0),
            figures.nan_count.to_string(),
            figures.inf_count.to_string(),
        ]);
    }
    let total = format!(
        "{} weights in {} of {} tensors. Kurtosis is excess: 0 for a normal distribution. --json has the histograms.\n",
        units::count(document.tensors.iter().map(|row| row.profile.count).sum()),
        document.tensors.len(),
        checkpoint.tensors.len(),
    );
    let device = document.device.map_or_else(String::new, |device| format!("Looked at by {device}.\n"));
    format!("{}\n{total}{device}", table.render())
}
