//! Sizes, rates and bits as the window and the command line write them.
//!
//! One quantity has one unit and one precision everywhere: sizes in KiB, MiB or GiB, bits per
//! weight with two decimals, percentages with one, KLD with three significant digits.

/// Bytes as text in binary units: `512 B`, `3.50 KiB`, `2.61 MiB`, `12.4 GiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if value < 10.0 {
        2
    } else if value < 100.0 {
        1
    } else {
        0
    };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// Reads a size: `3.2GiB`, `800 MB`, `12k`… with units of 1024 (KiB) or of 1000 (kB), or plain bytes.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|letter: char| letter.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let scale: f64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    let number = number.trim();
    if scale == 1.0 && !number.contains('.') {
        return number.parse().ok();
    }
    let bytes = number.parse::<f64>().ok()? * scale;
    (bytes.is_finite() && bytes >= 0.0 && bytes < u64::MAX as f64).then_some(bytes as u64)
}

/// Bits per weight of `byte_count` bytes that hold `weight_count` weights; 0 for no weights.
pub fn bits_per_weight(byte_count: u64, weight_count: u64) -> f64 {
    if weight_count == 0 { 0.0 } else { byte_count as f64 * 8.0 / weight_count as f64 }
}

/// A count in short form: `950`, `12.3 k`, `4.07 M`, `1.24 B`.
pub fn count(value: u64) -> String {
    let scaled = |divisor: f64, suffix: &str| {
        let number = value as f64 / divisor;
        let decimals = if number < 10.0 {
            2
        } else if number < 100.0 {
            1
        } else {
            0
        };
        format!("{number:.decimals$} {suffix}")
    };
    match value {
        0..=9_999 => value.to_string(),
        10_000..=999_499 => scaled(1e3, "k"),
        999_500..=999_499_999 => scaled(1e6, "M"),
        _ => scaled(1e9, "B"),
    }
}

/// Text, or the dash of what is not known.
pub fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "–".to_owned())
}

/// A KLD or another small positive figure with three significant digits; tiny ones in powers of ten.
pub fn significant(value: f64) -> String {
    let magnitude = value.abs();
    if value == 0.0 {
        "0".to_owned()
    } else if !value.is_finite() {
        value.to_string()
    } else if !(1e-4..1e6).contains(&magnitude) {
        minus(&format!("{value:.2e}"))
    } else {
        let digits = magnitude.log10().floor() as i32;
        let decimals = (2 - digits).max(0) as usize;
        minus(&format!("{value:.decimals$}"))
    }
}

/// A figure for people with the typographic minus, which is as wide as a plus.
pub fn minus(text: &str) -> String {
    match text.strip_prefix('-') {
        Some(rest) => format!("−{rest}"),
        None => text.to_owned(),
    }
}

/// A fraction as a percentage with one decimal: `0.4213` is `42.1 %`.
pub fn percent(fraction: f64) -> String {
    minus(&format!("{:.1} %", fraction * 100.0))
}

/// A duration in seconds in words that fit a progress strip: `0.8 s`, `41 s`, `3 min 20 s`, `2 h 5 min`.
pub fn seconds(value: f64) -> String {
    if !value.is_finite() || value < 0.0 {
        return "–".to_owned();
    }
    if value < 10.0 {
        format!("{value:.1} s")
    } else if value < 60.0 {
        format!("{value:.0} s")
    } else if value < 3600.0 {
        format!("{} min {} s", value as u64 / 60, value as u64 % 60)
    } else {
        format!("{} h {} min", value as u64 / 3600, value as u64 % 3600 / 60)
    }
}

/// A time with three significant digits: `0.812 ms`, `34.5 ms`, `2.50 s`; from a minute on as [`seconds`].
pub fn duration(value: f64) -> String {
    match value {
        _ if !value.is_finite() || !(0.0..60.0).contains(&value) => seconds(value),
        _ if value < 1.0 => format!("{} ms", significant(value * 1e3)),
        _ => format!("{} s", significant(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_keep_three_digits_and_step_up_before_four() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.00 KiB");
        assert_eq!(bytes(8_139_152), "7.76 MiB");
        assert_eq!(bytes(1024 * 1024 - 1), "1.00 MiB");
        assert_eq!(bytes(150 * 1024 * 1024), "150 MiB");
    }

    #[test]
    fn sizes_are_read_in_both_kinds_of_units() {
        assert_eq!(parse_bytes("1234567"), Some(1_234_567));
        assert_eq!(parse_bytes(" 2 KiB "), Some(2048));
        assert_eq!(parse_bytes("1.5mib"), Some(3 << 19));
        assert_eq!(parse_bytes("3GiB"), Some(3 << 30));
        assert_eq!(parse_bytes("1.5 MB"), Some(1_500_000));
        assert_eq!(parse_bytes("2k"), Some(2000));
        assert_eq!(parse_bytes("12 B"), Some(12));
        for bad in ["", "GiB", "-1", "1.2.3MB", "5 xb", "1 kg", "nanGiB", "9e30", "1e30TiB", "3 ib", "2mg"] {
            assert_eq!(parse_bytes(bad), None, "{bad}");
        }
    }

    #[test]
    fn significant_digits_stay_three() {
        assert_eq!(significant(0.01813), "0.0181");
        assert_eq!(significant(1.2345), "1.23");
        assert_eq!(significant(123.45), "123");
        assert_eq!(significant(0.0000123), "1.23e-5");
        assert_eq!(significant(-0.0181), "−0.0181");
        assert_eq!(significant(-2.5e-9), "−2.50e-9");
    }

    #[test]
    fn short_times_are_said_in_milliseconds() {
        let texts = [0.000_812, 0.034_5, 2.5, 75.0, f64::NAN].map(duration);
        assert_eq!(texts, ["0.812 ms", "34.5 ms", "2.50 s", "1 min 15 s", "–"]);
    }

    #[test]
    fn bits_per_weight_of_nothing_is_zero() {
        assert_eq!(bits_per_weight(10, 0), 0.0);
        assert_eq!(bits_per_weight(18, 32), 4.5);
    }
}
