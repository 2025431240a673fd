//! `lapidary plan --diff`: two plans side by side, tensor by tensor.

use std::path::Path;

use serde::Serialize;

use super::output::Table;
use super::run::read_plan;
use super::session::{Answer, Result, Session};
use crate::engine::checkpoint::Checkpoint;
use crate::engine::plan::{Changes, changes, resolve};
use crate::engine::sensitivity::SensitivityTable;
use crate::engine::units::{self, or_dash};

#[derive(Debug, Serialize)]
struct Document<'a> {
    version: u32,
    path: &'a Path,
    before: &'a Path,
    after: &'a Path,
    /// After less before.
    byte_difference: i64,
    /// After less before, predicted; null where a choice was not measured.
    damage_difference: Option<f64>,
    /// Id of the metric that damages are of.
    metric: Option<&'a str>,
    #[serde(flatten)]
    changes: &'a Changes,
}

/// Compares two plans for a checkpoint; damages by `table`, where there is one.
pub(super) fn run(
    session: &Session,
    checkpoint: &Checkpoint,
    before: &Path,
    after: &Path,
    table: Option<&SensitivityTable>,
) -> Result<Answer> {
    let [first, second] = [before, after].map(|path| -> Result<_> { Ok(resolve(&read_plan(path)?, checkpoint)?) });
    let found = changes(checkpoint, &first?, &second?, table);
    let document = Document {
        version: 1,
        path: &checkpoint.path,
        before,
        after,
        byte_difference: found.byte_difference(),
        damage_difference: found.damage_difference(),
        metric: table.map(|table| table.metric.as_str()),
        changes: &found,
    };
    session.answer(&document, || text(&found))
}

/// Bytes with a sign.
fn signed(difference: i64) -> String {
    let size = units::bytes(difference.unsigned_abs());
    if difference < 0 { format!("−{size}") } else { format!("+{size}") }
}

fn text(found: &Changes) -> String {
    let mut table = Table::new(&["tensor", "before", "after", ">size", ">difference", ">damage difference"]);
    let damage = |value: Option<f64>| or_dash(value.map(units::significant));
    for change in &found.tensors {
        table.row([
            change.name.clone(),
            change.before.clone(),
            change.after.clone(),
            units::bytes(change.after_bytes),
            signed(change.byte_difference()),
            damage(change.damage_difference()),
        ]);
    }
    table.row([
        "all".to_owned(),
        String::new(),
        String::new(),
        units::bytes(found.after_bytes),
        signed(found.byte_difference()),
        damage(found.damage_difference()),
    ]);
    let changed = found.tensors.len();
    format!("{}\n{changed} tensors differ, {} are alike; damages are predicted.\n", table.render(), found.unchanged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_carry_their_sign() {
        assert_eq!([0, 2048, -512].map(signed), ["+0 B", "+2.00 KiB", "−512 B"]);
    }
}
