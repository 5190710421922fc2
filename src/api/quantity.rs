//! Amounts of resources such as `500m` and `256Mi`, as Kubernetes writes them.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// An amount in billionths, the resolution of Kubernetes; larger amounts are clamped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amount(u128);

/// Billionths in one.
const ONE: u128 = 1_000_000_000;

/// The amount of a quantity; `None` when it isn't one or is negative.
pub fn amount(quantity: &IntOrString) -> Option<Amount> {
    match quantity {
        IntOrString::Int(number) => Some(Amount(u128::try_from(*number).ok()? * ONE)),
        IntOrString::String(text) => parse(text),
    }
}

/// `<digits>[.<digits>]<suffix>`, where the suffix is a power of 1024, of 1000 or of ten (`e3`).
fn parse(text: &str) -> Option<Amount> {
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    let (unsigned, negative) = match unsigned.strip_prefix('-').filter(|_| unsigned.len() == text.len()) {
        Some(rest) => (rest, true),
        None => (unsigned, false),
    };
    let end = unsigned.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || fraction.contains('.') {
        return None;
    }
    let (base, power) = match suffix {
        "Ki" => (1024, 1),
        "Mi" => (1024, 2),
        "Gi" => (1024, 3),
        "Ti" => (1024, 4),
        "Pi" => (1024, 5),
        "Ei" => (1024, 6),
        "n" => (10, -9),
        "u" => (10, -6),
        "m" => (10, -3),
        "" => (10, 0),
        "k" => (10, 3),
        "M" => (10, 6),
        "G" => (10, 9),
        "T" => (10, 12),
        "P" => (10, 15),
        "E" => (10, 18),
        _ => (10, suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?),
    };
    // An amount too large for the type is larger than any that a node has.
    let value: u128 = digits.parse().unwrap_or(u128::MAX);
    if negative && value > 0 {
        return None;
    }
    let (factor, tens) = match base {
        1024 => (1024_u128.pow(power.unsigned_abs()), 0),
        _ => (1, power),
    };
    let tens = tens.saturating_add(9).saturating_sub(i32::try_from(fraction.len()).unwrap_or(i32::MAX));
    let shift = 10_u128.checked_pow(tens.unsigned_abs());
    let value = value.saturating_mul(factor);
    Some(Amount(match (tens >= 0, shift) {
        (true, shift) if value > 0 => value.saturating_mul(shift.unwrap_or(u128::MAX)),
        (true, _) => 0,
        // What is finer than a billionth counts as one, as Kubernetes rounds.
        (false, Some(shift)) => value.div_ceil(shift),
        (false, None) => u128::from(value > 0),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Option<Amount> {
        amount(&IntOrString::String(text.to_owned()))
    }

    #[test]
    fn reads_what_kubernetes_reads() {
        for (written, billionths) in [
            ("0", 0),
            ("-0", 0),
            ("1", ONE),
            ("+1", ONE),
            ("1.", ONE),
            (".5", ONE / 2),
            ("500m", ONE / 2),
            ("0.1", ONE / 10),
            ("100m", ONE / 10),
            ("1n", 1),
            ("0.1n", 1),
            ("3u", 3_000),
            ("2k", 2_000 * ONE),
            ("1e3", 1_000 * ONE),
            ("1E-3", ONE / 1_000),
            ("64Mi", (64 << 20) * ONE),
            ("1.5Gi", (3 << 29) * ONE),
            ("2E", 2_000_000_000_000_000_000 * ONE),
            ("1Ei", (1 << 60) * ONE),
        ] {
            assert_eq!(text(written), Some(Amount(billionths)), "{written}");
        }
        assert_eq!(amount(&IntOrString::Int(2)), text("2"));
        for wrong in [
            "", ".", "m", "-1", "1.2.3", "1Mb", "256MB", "1 Mi", "1ki", "e3", "1e", "1e1.5.2", "+-1", "--1",
            "٣",
        ] {
            assert_eq!(text(wrong), None, "{wrong}");
        }
        assert_eq!(amount(&IntOrString::Int(-1)), None);
    }

    #[test]
    fn compares_across_suffixes() {
        assert!(text("300m") == text("0.3") && text("1Gi") > text("1G") && text("1024Mi") == text("1Gi"));
        assert!(text("9".repeat(60).as_str()) > text("8Ei"));
        assert!(text("1e999999999") > text("8Ei") && text("1e-999999999") == text("1n"));
    }
}
