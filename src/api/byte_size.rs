//! Sizes such as `64Mi`: a whole number of bytes, or one with a binary suffix.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The least `batch.maxBytes`, 1Mi: below it the smallest blocks of a few wide tables don't fit.
pub const MIN_BATCH_BYTES: u64 = 1 << 20;

/// The most `batch.maxBytes`, 1Gi.
pub const MAX_BATCH_BYTES: u64 = 1 << 30;

/// The bytes that `batch.maxBytes` asks for: a whole number, or a string of digits with an optional `Ki`,
/// `Mi` or `Gi`.
/// `None` when it is not such a size or lies outside [`MIN_BATCH_BYTES`] to [`MAX_BATCH_BYTES`].
pub fn batch_bytes(size: &IntOrString) -> Option<u64> {
    let bytes = match size {
        IntOrString::Int(bytes) => u64::try_from(*bytes).ok()?,
        IntOrString::String(text) => parse(text)?,
    };
    (MIN_BATCH_BYTES..=MAX_BATCH_BYTES).contains(&bytes).then_some(bytes)
}

fn parse(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|character: char| !character.is_ascii_digit());
    let factor = match &text[digits.len()..] {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return None,
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_sizes() {
        let text = |text: &str| batch_bytes(&IntOrString::String(text.to_owned()));
        assert_eq!(text("32Mi"), Some(32 << 20));
        assert_eq!(text("1048576"), Some(1 << 20));
        assert_eq!(text("2048Ki"), Some(2 << 20));
        assert_eq!(text("1Gi"), Some(1 << 30));
        assert_eq!(batch_bytes(&IntOrString::Int(1 << 22)), Some(1 << 22));
        for wrong in [
            "",
            "Mi",
            "64MB",
            "64M",
            "1.5Mi",
            "-1Mi",
            "+1Mi",
            "1 Mi",
            "1Ki",
            "2Gi",
            "99999999999999999999",
            "1Ω",
            "٣Mi",
        ] {
            assert_eq!(text(wrong), None, "{wrong}");
        }
        assert_eq!(batch_bytes(&IntOrString::Int(-1)), None);
        assert_eq!(batch_bytes(&IntOrString::Int(1)), None);
    }
}
