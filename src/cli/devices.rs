//! `lapidary devices`: what scans can run on, and where they will.

use clap::Args;
use serde::Serialize;

use super::output::{Table, or_dash, printable};
use super::session::{Answer, Result, Session};
use crate::engine::device::{self, Listed};
use crate::engine::units;

/// List the devices and say what will run where
///
/// `auto` takes a real GPU if there is one; a driver that computes in software is used only where it is named.
#[derive(Debug, Args)]
pub(super) struct Devices {}

#[derive(Debug, Serialize)]
struct Document {
    version: u32,
    devices: Vec<Listed>,
}

impl Devices {
    pub fn run(&self, session: &Session) -> Result<Answer> {
        let document = Document { version: 1, devices: device::list(session.device_wish())? };
        session.answer(&document, || text(&document.devices))
    }
}

fn text(devices: &[Listed]) -> String {
    let mut table = Table::new(&["device", "kind", "interface", "driver", ">memory", "can run"]);
    for device in devices {
        table.row([
            printable(&device.name),
            device.kind.to_owned(),
            or_dash((!device.interface.is_empty()).then(|| device.interface.clone())),
            printable(&device.driver),
            or_dash(device.memory.map(units::bytes)),
            device.runs.join(", "),
        ]);
    }
    let chosen = devices.iter().find(|device| device.is_chosen).map_or("CPU", |device| device.name.as_str());
    format!("{}\nerror scans run on: {}; everything else on the CPU\n", table.render(), printable(chosen))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_says_where_scans_run() {
        let listed = |name: &str, is_chosen| Listed {
            name: name.to_owned(),
            kind: "discrete",
            interface: String::new(),
            driver: String::new(),
            memory: Some(8 << 30),
            runs: &["error scans of formats"],
            is_chosen,
        };
        let text = text(&[listed("One", false), listed("Two", true)]);
        assert!(text.contains("error scans run on: Two"), "{text}");
        assert!(text.contains("8.00 GiB"), "{text}");
    }
}
