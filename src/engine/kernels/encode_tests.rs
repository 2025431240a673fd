//! Every encoder at every instruction level: the same bytes.

use proptest::prelude::*;

use super::{Columns, Level, kquants_encode as kquants, legacy_encode as legacy, nonlinear};

type Encode = fn(Level, &[f32], Columns<'_>, &mut [u8]);

/// Each encoder with the weights and the bytes of its blocks.
const ENCODERS: [(&str, usize, usize, Encode); 13] = [
    ("q8_0", 32, 34, |level, source, _, out| legacy::encode_q8_0(level, source, out)),
    ("q4_0", 32, 18, legacy::encode_q4_0),
    ("q4_1", 32, 20, legacy::encode_q4_1),
    ("q5_0", 32, 22, legacy::encode_q5_0),
    ("q5_1", 32, 24, legacy::encode_q5_1),
    ("iq4_nl", 32, 18, nonlinear::encode_iq4_nl),
    ("mxfp4", 32, 17, |level, source, _, out| nonlinear::encode_mxfp4(level, source, out)),
    ("iq4_xs", 256, 136, nonlinear::encode_iq4_xs),
    ("q2_k", 256, 84, kquants::encode_q2_k),
    ("q3_k", 256, 110, kquants::encode_q3_k),
    ("q4_k", 256, 144, kquants::encode_q4_k),
    ("q5_k", 256, 176, kquants::encode_q5_k),
    ("q6_k", 256, 210, kquants::encode_q6_k),
];

/// Weights of three rows of 768, of very different sizes from run to run.
fn weights() -> impl Strategy<Value = Vec<f32>> {
    let run = (prop::collection::vec(-1.0f32..1.0, 32), -45i8..30).prop_map(|(mut run, exponent)| {
        let scale = 10f32.powi(i32::from(exponent));
        // Most runs are of ordinary size.
        for value in &mut run {
            *value *= if exponent % 3 == 0 { scale } else { 0.05 };
        }
        run
    });
    prop::collection::vec(run, 72).prop_map(|runs| runs.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_level_writes_the_same_bytes(
        source in weights(),
        importance in prop::collection::vec(prop_oneof![Just(0.0f32), 0.0f32..3.0], 768),
        rows in 1usize..4,
    ) {
        for (name, len, bytes, encode) in ENCODERS {
            // Blocks of 32 also in rows that do not fill groups of eight.
            let row_len = if len == 32 { 96 * 5 } else { 768 };
            let source = &source[..rows * row_len];
            for importance in [None, Some(&importance[..row_len])] {
                let columns = Columns { row_len, importance };
                let encoded = |level| {
                    let mut out = vec![0; source.len() / len * bytes];
                    encode(level, source, columns, &mut out);
                    out
                };
                let whole = encoded(Level::detect());
                prop_assert!(whole == encoded(Level::Portable), "{name}");
                let mut by_row = Vec::new();
                for row in source.chunks_exact(row_len) {
                    let mut out = vec![0; row_len / len * bytes];
                    encode(Level::detect(), row, columns, &mut out);
                    by_row.extend(out);
                }
                prop_assert!(whole == by_row, "{name}: rows together differ from rows alone");
            }
        }
    }
}
