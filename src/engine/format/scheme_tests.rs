//! Properties of the formats with parameters: names, sizes, errors and hostile values.

use proptest::prelude::*;

use super::*;
use crate::kernels::ints::ScaleType;

/// Encodes a matrix of rows of `len` and decodes it again.
fn round_trip(format: &dyn Format, values: &[f32], len: usize, choice: ScaleChoice) -> Vec<f32> {
    let how = Encoding { scale_choice: choice, ..Encoding::plain(len) };
    let shared = survey_matrix(format, values, &how);
    let row_bytes = format.dtype().row_bytes(len).expect("whole blocks");
    let mut bytes = vec![0; row_bytes * (values.len() / len)];
    // Row by row, as a pass on several threads does it.
    for (first_row, (row, out)) in values.chunks(len).zip(bytes.chunks_mut(row_bytes)).enumerate() {
        format.encode_rows(row, &Encoding { first_row, shared: shared.as_ref(), ..how }, out);
    }
    let mut at_once = vec![0; bytes.len()];
    format.encode_rows(values, &Encoding { shared: shared.as_ref(), ..how }, &mut at_once);
    assert_eq!(bytes, at_once, "{}: rows together are rows one by one", format.id());
    let mut back = vec![0.0; values.len()];
    assert!(decode_rows(format.dtype(), len, &bytes, &mut back));
    back
}

fn any_scheme() -> impl Strategy<Value = &'static dyn Format> {
    let formats: Vec<&'static dyn Format> = parameterized().collect();
    prop::sample::select(formats)
}

#[test]
fn names_are_read_and_written_alike() {
    let mut seen = std::collections::HashSet::new();
    for format in parameterized() {
        assert!(seen.insert(format.id()), "{} twice", format.id());
        assert_eq!(find(&format.id().to_uppercase()).map(|found| found.dtype()), Some(format.dtype()));
        assert_eq!(format.dtype().name(), format.id());
        assert!(!format.dtype().is_plain() && format.dtype().ggml_id().is_none());
    }
    for id in ["int4_g128", "int4_g128_asym", "int8_channel", "int3_g64_asym_bf16", "int8_tensor_f32", "nf4_dq", "fp4"]
    {
        assert_eq!(find(id).map(|format| format.id()), Some(id));
    }
    for id in ["int9_g128", "int4_g17", "int4_g0", "int4", "int4_g128_sym", "fp8", "nf4_", "int1_channel", "int4_g2048"]
    {
        assert!(find(id).is_none(), "{id}");
    }
}

#[test]
fn a_group_that_rows_do_not_fill_becomes_narrower_and_at_last_the_row() {
    let fitted = |id: &str, len: usize| fitting(find(id).expect(id), len).id();
    assert_eq!(fitted("int4_g128", 128), "int4_g128");
    assert_eq!(fitted("int4_g128", 192), "int4_g64");
    assert_eq!(fitted("int4_g128_asym_bf16", 96), "int4_g32_asym_bf16");
    assert_eq!(fitted("int4_g128", 48), "int4_channel");
    assert_eq!(fitted("int4_g48", 64), "int4_channel");
    assert_eq!(fitted("nf4", 100), "bf16");
    assert_eq!(fitted("fp8_e4m3_block128", 100), "fp8_e4m3_block128");
    for format in parameterized() {
        assert!(fitting(format, 7).fits(7) && fitting(format, 1).fits(1), "{}", format.id());
    }
}

#[test]
fn canonical_rows_lie_as_the_module_says() {
    let format = find("int4_g16_asym").expect("known");
    let mut row = vec![0.0; 32];
    row[0] = -1.0;
    row[1] = 14.0;
    row[17] = 7.5;
    let mut bytes = vec![0; format.dtype().row_bytes(32).expect("whole groups")];
    assert_eq!(bytes.len(), 16 + 2 * 2 + 2);
    format.encode_rows(&row, &Encoding::plain(32), &mut bytes);
    assert_eq!((bytes[0], bytes[8], &bytes[20..]), (0xf0, 0xf0, &[1, 0][..]), "the first code in the low nibble");
    assert_eq!(half::f16::from_le_bytes([bytes[16], bytes[17]]).to_f32(), 1.0);
    assert_eq!(half::f16::from_le_bytes([bytes[18], bytes[19]]).to_f32(), 0.5);
}

#[test]
fn a_tensor_shares_one_scale_and_blocks_share_theirs() {
    let (rows, len) = (300, 200);
    let values: Vec<f32> = (0..rows * len).map(|at| ((at * 7919 % 2003) as f32 - 1001.0) / 1001.0).collect();
    let mut spiked = values.clone();
    spiked[250 * len + 3] = 64.0;
    let tensor = find("fp8_e4m3_tensor").expect("known");
    let back = round_trip(tensor, &spiked, len, ScaleChoice::AbsMax);
    assert_eq!(back[250 * len + 3], 64.0);
    let blocks = find("fp8_e4m3_block128").expect("known");
    let block_back = round_trip(blocks, &spiked, len, ScaleChoice::AbsMax);
    // The spike spoils its own block of 128 rows and columns and no other.
    assert_eq!(block_back[..128 * len], round_trip(blocks, &values, len, ScaleChoice::AbsMax)[..128 * len]);
    let tensor8 = find("int8_tensor").expect("known");
    let scheme_row = |values: &[f32]| {
        let mut bytes = vec![0; tensor8.dtype().row_bytes(len).expect("any") * rows];
        tensor8.encode_rows(values, &Encoding::plain(len), &mut bytes);
        bytes.chunks(len + 2).map(|row| [row[len], row[len + 1]]).collect::<std::collections::HashSet<_>>().len()
    };
    assert_eq!(scheme_row(&spiked), 1);
}

#[test]
fn least_squares_is_never_worse_and_importance_steers_it() {
    let len = 128;
    let values: Vec<f32> = (0..64 * len).map(|at| ((at as f32 * 0.37).sin() * 8.0).powi(3) / 512.0).collect();
    let error = |back: &[f32], weight: &dyn Fn(usize) -> f64| -> f64 {
        let pairs = values.iter().zip(back).enumerate();
        pairs.map(|(at, (a, b))| weight(at % len) * f64::from(a - b).powi(2)).sum()
    };
    for id in ["int4_g128", "int3_g128_asym", "int2_channel", "int4_tensor"] {
        let format = find(id).expect("known");
        let plain = round_trip(format, &values, len, ScaleChoice::AbsMax);
        let searched = round_trip(format, &values, len, ScaleChoice::LeastSquares);
        assert!(error(&searched, &|_| 1.0) <= error(&plain, &|_| 1.0) * 1.0001, "{id}");
        round_trip(format, &values, len, ScaleChoice::Percentile(99.0));
    }
    let format = find("int3_g128").expect("known");
    let importance: Vec<f32> = (0..len).map(|column| if column < 16 { 100.0 } else { 0.01 }).collect();
    let how =
        Encoding { importance: Some(&importance), scale_choice: ScaleChoice::LeastSquares, ..Encoding::plain(len) };
    let mut bytes = vec![0; format.dtype().row_bytes(len).expect("fits") * 64];
    format.encode_rows(&values, &how, &mut bytes);
    let mut back = vec![0.0; values.len()];
    decode_rows(format.dtype(), len, &bytes, &mut back);
    let weight = |column: usize| f64::from(importance[column]);
    let searched = round_trip(format, &values, len, ScaleChoice::LeastSquares);
    assert!(error(&back, &weight) < error(&searched, &weight));
}

#[test]
fn sizes_count_what_rows_share_once() {
    let bytes = |id: &str, rows, len| find(id).expect("known").stored_bytes(rows, len).expect("fits");
    assert_eq!(bytes("int4_g128", 64, 256), 64 * 256 / 2 + 64 * 2 * 2 + 16);
    assert_eq!(bytes("int4_g128_asym", 65, 256), 65 * 128 + 65 * 2 * 2 + 2 * 36 + 16, "65 zeros of 4 bits in 9 words");
    assert_eq!(bytes("int3_channel", 4, 100), 4 * 40 + 4 * 2 + 16, "300 bits in 10 words");
    assert_eq!(bytes("int8_tensor_f32", 10, 99), 990 + 4);
    assert_eq!(bytes("fp8_e4m3_block128", 130, 300), 130 * 300 + 2 * 3 * 4);
    assert_eq!(bytes("fp8_e5m2_tensor", 130, 300), 130 * 300 + 4);
    assert_eq!(bytes("nf4", 64, 128), 64 * 64 + 128 * 4 + 64);
    assert_eq!(bytes("nf4_dq", 64, 1024), 64 * 512 + 1024 + 4 * 4 + 1024 + 64);
    assert_eq!(find("nf4").expect("known").stored_bytes(4, 100), None);
    assert_eq!(find("int4_g128").expect("known").stored_bytes(u64::MAX, 256), None, "no overflow");
}

proptest! {
    #[test]
    fn errors_are_at_most_a_step(
        format in any_scheme(),
        seed in 0u32..1000,
        spread in prop::sample::select(vec![1e-3f32, 1.0, 100.0]),
    ) {
        let len = if matches!(format.dtype(), Dtype::Int(scheme) if format.fits(768) && scheme.group(1) <= 256) { 768 } else { 1024 };
        prop_assume!(format.fits(len));
        let mut state = seed;
        let values: Vec<f32> = (0..3 * len)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state as f32 / u32::MAX as f32 - 0.5) * 2.0 * spread
            })
            .collect();
        let back = round_trip(format, &values, len, ScaleChoice::AbsMax);
        let share = match format.dtype() {
            // A step, and what rounding the scale to 8 bits moves the outermost code by.
            Dtype::Int(scheme) => 2.0 / ((1 << scheme.bits()) - 1) as f32 + if scheme.scale() == ScaleType::Bf16 { 1.0 / 128.0 } else { 1.0 / 1024.0 },
            Dtype::Fp8(scheme) => if scheme.kind == crate::kernels::fp8::Fp8::E4M3 { 1.0 / 16.0 } else { 1.0 / 8.0 },
            _ => 0.22,
        };
        for (value, back) in values.iter().zip(&back) {
            prop_assert!((value - back).abs() <= share * spread * 1.001, "{}: {} {}", format.id(), value, back);
        }
    }

    #[test]
    fn hostile_values_spoil_no_more_than_themselves(
        format in any_scheme(),
        special in prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 1e-44, -0.0]),
    ) {
        let len = 1024;
        let format = fitting(format, len);
        let mut values = vec![0.25f32; 2 * len];
        values[5] = special;
        values[len + 900] = -special;
        let back = round_trip(format, &values, len, ScaleChoice::LeastSquares);
        if !special.is_finite() {
            prop_assert!((back[6] - 0.25).abs() <= 0.1, "{}: {}", format.id(), back[6]);
        }
        // Any bytes decode to something.
        let noise: Vec<u8> = (0..format.dtype().row_bytes(len).expect("fits")).map(|at| (at * 151 + 77) as u8).collect();
        format.decode_row(&noise, &mut values[..len]);
        for choice in [ScaleChoice::AbsMax, ScaleChoice::Percentile(99.9)] {
            round_trip(format, &[0.0; 1024], len, choice);
            round_trip(format, &[f32::NAN; 1024], len, choice);
        }
    }
}
