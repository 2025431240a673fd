//! Properties that every registered format must have, by a loop over the registry.

use proptest::prelude::*;

use super::*;

/// The largest error that a format may make on values in −1..1, as a share of the largest magnitude.
fn bound(id: &str) -> f32 {
    match id {
        "f32" => 0.0,
        "f16" => 1e-3,
        "bf16" => 8e-3,
        "q8_0" => 0.01,
        "q6_k" => 0.08,
        "q5_k" | "q5_1" | "q5_0" => 0.14,
        "q4_k" | "q4_1" | "q4_0" | "iq4_nl" | "iq4_xs" => 0.25,
        "q3_k" => 0.5,
        "int8_g128" | "int8_channel" => 0.01,
        "fp8_e4m3_block128" | "fp8_e4m3_channel" => 0.04,
        "fp8_e5m2_channel" => 0.08,
        "int4_g32" | "int4_g128" | "int4_g128_asym" | "nf4" | "nf4_dq" | "fp4" => 0.2,
        _ => 1.0,
    }
}

#[test]
fn fallbacks_end_at_a_format_without_blocks() {
    for format in all() {
        assert!(fitting(*format, 7).fits(7), "{}", format.id());
        assert_eq!(fitting(*format, 256).id(), format.id());
    }
    assert_eq!(fitting(find("Q4_K").expect("known"), 96).id(), "q5_0");
    assert_eq!(fitting(find("q6_k").expect("known"), 33).id(), "f16");
}

#[test]
fn the_registry_has_no_two_of_one_name_or_layout() {
    let known: Vec<_> = decodable().collect();
    for (index, format) in known.iter().enumerate() {
        assert!(known[..index].iter().all(|other| other.id() != format.id() && other.dtype() != format.dtype()));
        let found = find(&format.id().to_uppercase());
        assert_eq!(found.map(Format::id), format.is_encodable().then_some(format.id()));
        assert!(is_decodable(format.dtype()) && of_dtype(format.dtype()).is_some());
    }
    assert!(all().iter().all(|format| format.is_encodable()) && all().len() + 14 == known.len());
}

#[test]
fn hostile_values_encode_and_decode_without_panic() {
    for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e38, -1e38, 1e-44, 0.0] {
        for format in all() {
            let mut values = vec![0.5; 256];
            values[3] = special;
            values[100] = -special;
            let mut bytes = vec![0; format.dtype().row_bytes(256).expect("fits")];
            format.encode_rows(&values, &Encoding::plain(values.len()), &mut bytes);
            let mut back = vec![0.0; 256];
            format.decode_row(&bytes, &mut back);
        }
    }
}

#[test]
fn scans_see_the_errors_of_the_encoded_rows() {
    let mut state = 9u32;
    let mut weights: Vec<f32> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    })
    .take(6 * 768)
    .collect();
    weights[768] = 30.0;
    weights[2000] = f32::NAN;
    weights[3000..3100].fill(0.0);
    let how = Encoding::plain(768);
    for format in all() {
        let mut bytes = vec![0; 6 * format.dtype().row_bytes(768).expect("fits")];
        let mut coded = vec![0.0; weights.len()];
        format.encode_rows(&weights, &how, &mut bytes);
        decode_rows(format.dtype(), 768, &bytes, &mut coded);
        let (mut exact, mut scanned) = (Errors::default(), Errors::default());
        exact.add_exactly(&weights, &coded);
        format.scan(&weights, &how, &mut ScanBuffers::default(), &mut scanned);
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * b.abs() || a == b || (a.is_nan() && b.is_nan());
        assert!(
            near(scanned.signal, exact.signal)
                && near(scanned.noise, exact.noise)
                && near(scanned.coded, exact.coded)
                && near(scanned.product, exact.product)
                && near(scanned.max_abs_error, exact.max_abs_error),
            "{}: {scanned:?} {exact:?}",
            format.id()
        );
    }
}

#[test]
fn the_type_of_every_ggml_file_can_be_decoded() {
    for dtype in Dtype::all().filter(|dtype| dtype.ggml_id().is_some()) {
        assert!(is_decodable(dtype), "{dtype}");
    }
}

#[test]
#[should_panic(expected = "only read")]
fn a_format_that_is_only_read_is_not_encoded() {
    let format = of_dtype(Dtype::Iq2Xxs).expect("known");
    format.encode_rows(&[0.0; 256], &Encoding::plain(256), &mut [0; 66]);
}

#[test]
fn plain_types_decode_to_their_values() {
    let mut out = [0.0];
    assert!(decode_row(Dtype::I16, &(-5i16).to_le_bytes(), &mut out) && out[0] == -5.0);
    assert!(decode_row(Dtype::F64, &2.5f64.to_le_bytes(), &mut out) && out[0] == 2.5);
    assert!(decode_row(Dtype::Bool, &[7], &mut out) && out[0] == 1.0);
    assert!(!decode_row(Dtype::Unknown(77), &[0; 82], &mut out));
}

proptest! {
    #[test]
    fn any_bytes_decode_without_panic(noise in prop::collection::vec(any::<u8>(), 2048), fill in any::<bool>()) {
        for format in decodable() {
            let dtype = format.dtype();
            let mut bytes = noise[..dtype.row_bytes(512).expect("fits")].to_vec();
            if fill {
                // Scales that are no numbers, wherever they lie.
                bytes.fill(0xff);
            }
            format.decode_row(&bytes, &mut [0.0; 512]);
        }
    }

    #[test]
    fn importance_that_is_not_a_number_does_not_stop_an_encoder(value in any::<f32>(), weight in any::<f32>()) {
        for format in all() {
            let mut values = vec![0.25f32; 512];
            values[77] = value;
            let mut importance = vec![1.0f32; 256];
            importance[5] = weight;
            let mut bytes = vec![0; format.dtype().row_bytes(512).expect("fits")];
            let how = Encoding { importance: Some(&importance), ..Encoding::plain(256) };
            format.encode_rows(&values, &how, &mut bytes);
        }
    }

    #[test]
    fn errors_stay_within_the_bound_of_each_format(values in prop::collection::vec(-1.0f32..1.0, 512)) {
        let most = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        for format in all() {
            let mut bytes = vec![0; format.dtype().row_bytes(512).expect("fits")];
            format.encode_rows(&values, &Encoding::plain(values.len()), &mut bytes);
            let mut back = vec![0.0; 512];
            format.decode_row(&bytes, &mut back);
            for (value, decoded) in values.iter().zip(&back) {
                prop_assert!((value - decoded).abs() <= bound(format.id()) * most, "{}: {value} {decoded}", format.id());
            }
        }
    }
}
