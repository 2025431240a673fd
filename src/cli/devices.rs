//! `lapidary devices`: what work can run on, where it will, and whether a model fits there.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::PATH_HELP;
use super::output::{Table, printable};
use super::session::{Answer, Result, Session};
use crate::engine::device::{self, ALWAYS_CPU, Device, Listed, ModelRates};
use crate::engine::model::fit::{Fit, ModelPlace, USUAL_CONTEXT};
use crate::engine::units::{self, or_dash};

/// List the devices and say what will run where
///
/// `auto` takes a real GPU for each kind of work that it does faster than the CPU here; what computes in software is used
/// only where it is named. With PATH, says whether that model fits where models run; `lapidary plan` says it of what a plan makes.
#[derive(Debug, Args)]
pub(super) struct Devices {
    #[arg(value_name = "PATH", help = PATH_HELP)]
    path: Option<PathBuf>,
    /// With PATH, the longest sequence to leave room for
    #[arg(long, value_name = "TOKENS", default_value_t = USUAL_CONTEXT, requires = "path")]
    context: usize,
}

#[derive(Debug, Serialize)]
struct Document {
    version: u32,
    devices: Vec<Listed>,
    /// What no device takes from the CPU, as a sentence.
    always_cpu: &'static str,
    /// Weights a second, where `auto` chose between a GPU and the CPU.
    rates: Option<Measured>,
    /// Tokens a second through a small layer, where `auto` chose a device for models.
    model_rates: Option<ModelRates>,
    /// How the model at PATH fits where models run.
    fit: Option<Fit>,
    /// The same as a sentence.
    fit_sentence: Option<String>,
}

impl Devices {
    pub fn run(&self, session: &Session) -> Result<Answer> {
        let device = session.device()?;
        let fit = match &self.path {
            Some(path) => Some(Fit::of_checkpoint(&session.open(path)?, self.context, &model_place(&device))?),
            None => None,
        };
        let fit_sentence = fit.as_ref().map(Fit::sentence);
        let devices = device::list(session.device_wish())?;
        let (rates, model_rates) = (rates(&device), device.model_rates());
        let document = Document { version: 1, devices, always_cpu: ALWAYS_CPU, rates, model_rates, fit, fit_sentence };
        session.answer(&document, || text(&document))
    }
}

/// Where models run.
pub(super) fn model_place(device: &Device) -> ModelPlace {
    device.models().map_or_else(ModelPlace::cpu, ModelPlace::from)
}

#[cfg(feature = "gpu")]
type Measured = crate::engine::device::rates::Rates;
#[cfg(not(feature = "gpu"))]
type Measured = ();

#[cfg(feature = "gpu")]
fn rates(device: &Device) -> Option<Measured> {
    device.rates()
}

#[cfg(not(feature = "gpu"))]
fn rates(_: &Device) -> Option<Measured> {
    None
}

fn text(document: &Document) -> String {
    let devices = &document.devices;
    let mut table = Table::new(&["device", "kind", "interface", "driver", ">memory", "can run", "will run"]);
    for device in devices {
        table.row([
            printable(&device.name),
            device.kind.to_owned(),
            or_dash((!device.interface.is_empty()).then(|| device.interface.clone())),
            printable(&device.driver),
            or_dash(device.memory.map(units::bytes)),
            device.runs.join(", "),
            or_dash((!device.will_run.is_empty()).then(|| device.will_run.join(", "))),
        ]);
    }
    let fit = document.fit_sentence.as_ref().map_or_else(String::new, |fit| format!("\n{fit}\n"));
    format!("{}\n{}\n{fit}", table.render(), document.always_cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_says_what_runs_where_and_what_fits() {
        let listed = |name: &str, will_run: &[&'static str]| Listed {
            name: name.to_owned(),
            kind: "discrete",
            interface: String::new(),
            driver: String::new(),
            memory: Some(8 << 30),
            runs: vec!["error scans of formats", "models"],
            will_run: will_run.to_vec(),
            is_chosen: !will_run.is_empty(),
        };
        let devices = vec![listed("One", &[]), listed("Two", &["models"])];
        let fit_sentence = Some("Two (8 GiB): fits".to_owned());
        let text = text(&Document {
            version: 1,
            devices,
            always_cpu: ALWAYS_CPU,
            rates: None,
            model_rates: None,
            fit: None,
            fit_sentence,
        });
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.iter().any(|line| line.starts_with("One") && line.ends_with('–')), "{text}");
        assert!(lines.iter().any(|line| line.starts_with("Two") && line.trim_end().ends_with("models")), "{text}");
        assert!(text.contains("8.00 GiB") && text.contains(ALWAYS_CPU) && text.ends_with("fits\n"), "{text}");
    }
}
