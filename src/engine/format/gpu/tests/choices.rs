//! Which codes and scales a device chooses, block by block. Division and contraction are inexact in WGSL, so that of two
//! choices that are nearly equal it now and then takes the other one: at most for one block of a thousand.

use rayon::prelude::*;

use super::*;

/// Blocks of every format, and at most so many of them with another choice.
const BLOCKS: usize = 20_000;
const MOST_OTHERS: usize = BLOCKS / 1000;

/// Length of the rows and of the blocks in them: what shares a scale, or 128 weights where that is a whole tensor.
fn lengths(format: &dyn Format) -> (usize, usize) {
    match format.dtype() {
        Dtype::Int(scheme) => match scheme.granularity() {
            Granularity::Group(len) => (2048, len.into()),
            _ => (128, 128),
        },
        Dtype::Fp8(_) => (128, 128),
        dtype => (2048, dtype.block_len()),
    }
}

/// Blocks whose decoded weights differ. Codes under a scale of zero differ in their bytes and not in their weights.
fn others(format: &dyn Format, ours: &[u8], reference: &[u8], row_len: usize, block: usize) -> usize {
    let row_bytes = format.dtype().row_bytes(row_len).expect("whole blocks");
    let differing = |ours: &[u8], reference: &[u8]| {
        if ours == reference {
            return 0;
        }
        let [ours, reference] = [ours, reference].map(|row| {
            let mut values = vec![0.0; row_len];
            format.decode_row(row, &mut values);
            values
        });
        ours.chunks(block).zip(reference.chunks(block)).filter(|(a, b)| a != b).count()
    };
    ours.par_chunks(row_bytes).zip(reference.par_chunks(row_bytes)).map(|(a, b)| differing(a, b)).sum()
}

#[test]
fn blocks_are_told_apart_by_what_they_decode_to() {
    let format = format::find("q8_0").expect("a known format");
    let mut reference = vec![0; 4 * 34];
    format.encode_rows(&weights(Spread::Normal, 128, 1, 3), &Encoding::plain(128), &mut reference);
    let mut ours = reference.clone();
    assert_eq!(others(format, &ours, &reference, 128, 32), 0);
    // A code of the second block and two of the fourth.
    for at in [34 + 5, 3 * 34 + 2, 3 * 34 + 33] {
        ours[at] ^= 1;
    }
    assert_eq!(others(format, &ours, &reference, 128, 32), 2);
}

#[test]
#[ignore = "needs a graphics driver"]
fn at_most_one_block_of_a_thousand_takes_another_choice() {
    let device = device();
    let mut troubles = Vec::new();
    // f32, f16 and bf16 have no blocks and nothing to choose: their errors are compared beside this.
    for &format in format::all().iter().filter(|format| !format.dtype().is_plain()) {
        let (row_len, block) = lengths(format);
        let rows = (BLOCKS * block).div_ceil(row_len);
        let mut values = weights(Spread::Normal, row_len, rows / 2, 21);
        values.extend(weights(Spread::Heavy, row_len, rows - rows / 2, 22));
        let mut random = Random(3);
        let importance: Vec<f32> = (0..row_len).map(|_| 0.05 + random.unit() * random.unit()).collect();
        let plain = Encoding::plain(row_len);
        let scale_choice = ScaleChoice::LeastSquares;
        let weighted = Encoding { importance: Some(&importance), scale_choice, ..plain };
        for how in [plain, weighted] {
            let is_weighted = how.importance.is_some();
            let case = format!("{} weighted {is_weighted}", format.id());
            if is_weighted && can_encode(format, &how, false) {
                // It heeds no importance.
                continue;
            }
            assert!(can_encode(format, &how, true), "{case}: the device has no encoder");
            let (ours, reference, counts) = match encoded(&device, format, &values, how) {
                Ok(all) => all,
                Err(failure) => {
                    troubles.push(format!("{case}: {failure}"));
                    continue;
                }
            };
            let others = others(format, &ours, &reference, row_len, block);
            let share = others as f64 / BLOCKS as f64 * 100.0;
            println!(
                "{case}: {others} of {BLOCKS} blocks take another choice ({share:.4} %), {} rows handed back",
                counts[1]
            );
            if others > MOST_OTHERS {
                troubles.push(format!("{case}: {others} of {BLOCKS} blocks take another choice"));
            }
            // Rows that the device hands back are the reference's own: too many, and nothing was compared.
            if counts[1] > counts[0] {
                troubles.push(format!("{case}: the device handed {} of {rows} rows back", counts[1]));
            }
        }
    }
    assert!(troubles.is_empty(), "{}", troubles.join("\n"));
}
