//! Floating point numbers as PostgreSQL's output functions show them with `extra_float_digits` above 0: the
//! fewest digits that name the number, with an exponent when it is below -4 or beyond the digits that the
//! type always holds.

use std::{
    fmt::LowerExp,
    io::{Cursor, Write},
    str::FromStr,
};

use super::{encoding::Malformed, number::read_double};

/// `double precision`'s text.
pub(super) fn render_double(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let bits = read_double(bytes)?.to_bits();
    let fraction = bits & ((1 << 52) - 1);
    let exponent = (bits >> 52 & 0x7FF) as i32;
    put(f64::from_bits(bits), Ends::new(fraction, exponent, 52, 1075), 15, out)
}

/// `real`'s text.
pub(super) fn render_single(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let bits = u32::from_be_bytes(bytes.try_into().map_err(|_| Malformed("wrong length"))?);
    let fraction = u64::from(bits & ((1 << 23) - 1));
    let exponent = (bits >> 23 & 0xFF) as i32;
    put(f32::from_bits(bits), Ends::new(fraction, exponent, 23, 150), 6, out)
}

fn put<F: LowerExp + FromStr + PartialEq + Copy + Into<f64>>(
    number: F,
    ends: Ends,
    plain_digits: i32,
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    let value: f64 = number.into();
    if !value.is_finite() {
        out.extend_from_slice(match value {
            _ if value.is_nan() => b"NaN",
            _ if value > 0.0 => b"Infinity",
            _ => b"-Infinity",
        });
        return Ok(());
    }
    let shortest = Decimal::write(format_args!("{number:e}"))?;
    let named_by =
        |text: &Decimal| text.as_str().parse().is_ok_and(|parsed: F| parsed == number) && !ends.include(text);
    // Two texts of this length may be as near as each other: PostgreSQL takes the one with the even digit, as
    // an exact format with that many digits does.
    let mut digits = shortest.digits().saturating_sub(1);
    let mut text = Decimal::write(format_args!("{number:.digits$e}"))?;
    if value != 0.0 && !named_by(&text) {
        text = shortest;
        // PostgreSQL takes only what is strictly nearer to this number than to its neighbours; Rust's
        // shortest text may be just half-way between two. One digit more or two, and it isn't.
        while !named_by(&text) && digits < 17 {
            digits += 1;
            text = Decimal::write(format_args!("{number:.digits$e}"))?;
        }
    }
    text.lay_out(plain_digits, out);
    Ok(())
}

/// The points half-way to the neighbours of a number, each an odd integer times a power of two.
struct Ends([(u64, i32); 2]);

impl Ends {
    fn new(fraction: u64, exponent: i32, fraction_bits: u32, bias: i32) -> Ends {
        let hidden = 1 << fraction_bits;
        let (significand, power) =
            if exponent == 0 { (fraction, 1 - bias) } else { (fraction | hidden, exponent - bias) };
        // Below a power of two the neighbours are twice as dense.
        let lower = match fraction {
            0 if exponent > 1 => (4 * significand - 1, power - 2),
            _ => ((2 * significand).wrapping_sub(1), power - 1),
        };
        Ends([lower, (2 * significand + 1, power - 1)])
    }

    fn include(&self, text: &Decimal) -> bool {
        let (digits, exponent) = text.parts();
        let twos = digits.trailing_zeros();
        let odd = u128::from(digits >> twos.min(63));
        let fives = |exponent: i32| 5_u128.checked_pow(exponent.unsigned_abs());
        self.0.iter().any(|&(end, power)| {
            let end = u128::from(end);
            let equal = match exponent {
                0.. => fives(exponent).and_then(|fives| odd.checked_mul(fives)) == Some(end),
                _ => fives(exponent).and_then(|fives| end.checked_mul(fives)) == Some(odd),
            };
            equal && power == exponent + twos as i32
        })
    }
}

/// `[-]d[.ddd]e[-]dd` without an allocation.
struct Decimal {
    buffer: [u8; 32],
    len: usize,
}

impl Decimal {
    fn write(text: std::fmt::Arguments<'_>) -> Result<Decimal, Malformed> {
        let mut cursor = Cursor::new([0; 32]);
        cursor.write_fmt(text).map_err(|_| Malformed("not a number"))?;
        let len = cursor.position() as usize;
        Ok(Decimal { buffer: cursor.into_inner(), len })
    }

    fn as_str(&self) -> &str {
        self.buffer.get(..self.len).and_then(|text| str::from_utf8(text).ok()).unwrap_or_default()
    }

    fn digits(&self) -> usize {
        let mantissa = self.as_str().split('e').next().unwrap_or_default();
        mantissa.bytes().filter(u8::is_ascii_digit).count()
    }

    /// The digits as an integer, and the power of ten it is multiplied by.
    fn parts(&self) -> (u64, i32) {
        let (mantissa, exponent) = self.as_str().split_once('e').unwrap_or_default();
        let exponent: i32 = exponent.parse().unwrap_or_default();
        let digits = mantissa.bytes().filter(u8::is_ascii_digit);
        let number = digits.clone().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
        (number, exponent + 1 - digits.count() as i32)
    }

    fn lay_out(&self, plain_digits: i32, out: &mut Vec<u8>) {
        let (mantissa, exponent) = self.as_str().split_once('e').unwrap_or_default();
        let exponent: i32 = exponent.parse().unwrap_or_default();
        if !(-4..plain_digits).contains(&exponent) {
            out.extend_from_slice(mantissa.as_bytes());
            out.extend_from_slice(if exponent < 0 { b"e-" } else { b"e+" });
            if exponent.unsigned_abs() < 10 {
                out.push(b'0');
            }
            out.extend_from_slice(itoa::Buffer::new().format(exponent.unsigned_abs()).as_bytes());
            return;
        }
        if mantissa.starts_with('-') {
            out.push(b'-');
        }
        let mut digits = mantissa.bytes().filter(u8::is_ascii_digit);
        if exponent < 0 {
            out.extend_from_slice(b"0.");
            out.resize(out.len() + exponent.unsigned_abs() as usize - 1, b'0');
        }
        for _ in 0..=exponent {
            out.push(digits.next().unwrap_or(b'0'));
        }
        let mut digits = digits.peekable();
        if exponent >= 0 && digits.peek().is_some() {
            out.push(b'.');
        }
        out.extend(digits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn double(number: f64) -> String {
        let mut out = Vec::new();
        render_double(&number.to_be_bytes(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn single(number: f32) -> String {
        let mut out = Vec::new();
        render_single(&number.to_be_bytes(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn shows_doubles_as_postgres() {
        for (number, text) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (-1.5, "-1.5"),
            (0.1, "0.1"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (0.000012345, "1.2345e-05"),
            (123_456.789, "123456.789"),
            (100_000_000_000_000.0, "100000000000000"),
            (1e15, "1e+15"),
            (123_456_789_012_345_680.0, "1.2345678901234568e+17"),
            (68_092_334_744_041.0 / 32.0, "2127885460751.2812"),
            (1e23, "9.999999999999999e+22"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "Infinity"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(double(number), text);
        }
    }

    #[test]
    fn shows_singles_as_postgres() {
        for (number, text) in [
            (1.1, "1.1"),
            (10_384_745.0 / 4.0, "2.5961862e+06"),
            (123_456.0, "123456"),
            (1_234_567.0, "1.234567e+06"),
            (f32::MAX, "3.4028235e+38"),
            (1e-45, "1e-45"),
            (-0.0, "-0"),
        ] {
            assert_eq!(single(number), text);
        }
    }
}
