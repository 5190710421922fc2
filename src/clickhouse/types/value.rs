//! Single values in ClickHouse's `RowBinary` form: finding their end, ordering them, showing them.
//!
//! <https://clickhouse.com/docs/interfaces/formats/RowBinary>

use std::{
    cmp::Ordering,
    net::{Ipv4Addr, Ipv6Addr},
};

use super::{ChType, U256, civil_from_days};

/// The bytes are not `RowBinary` of the type.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed RowBinary {0}")]
pub struct RowBinaryError(String);

impl ChType {
    /// Length of the value that `bytes` begins with, `None` when more bytes are needed to know or hold it.
    ///
    /// A nullable value begins with one byte, 1 for NULL. JSON is expected as a string
    /// (`output_format_binary_write_json_as_string = 1`).
    ///
    /// # Errors
    /// [`RowBinaryError`] for a null flag or a length that can't be.
    pub fn row_binary_len(&self, bytes: &[u8]) -> Result<Option<usize>, RowBinaryError> {
        match self {
            ChType::Nullable(inner) => match bytes.split_first() {
                None => Ok(None),
                Some((1, _)) => Ok(Some(1)),
                Some((0, rest)) => Ok(inner.row_binary_len(rest)?.map(|len| len + 1)),
                Some(_) => Err(self.malformed()),
            },
            ChType::Array(element) => {
                let Some((count, mut at)) = self.varint(bytes)? else { return Ok(None) };
                for _ in 0..count {
                    match element.row_binary_len(bytes.get(at..).unwrap_or_default())? {
                        Some(len) => at += len,
                        None => return Ok(None),
                    }
                }
                Ok(Some(at))
            }
            other => {
                let len = match other.width() {
                    Some(width) => Some(width),
                    None => self.varint(bytes)?.and_then(|(len, at)| at.checked_add(len)),
                };
                Ok(len.filter(|len| *len <= bytes.len()))
            }
        }
    }

    /// Orders two whole values as ClickHouse's `ORDER BY` does, `NULLS LAST` and NaN after numbers; a UUID as
    /// its text (`ORDER BY toString(u)`), for ClickHouse itself orders UUIDs by their second half.
    pub fn compare(&self, a: &[u8], b: &[u8]) -> Ordering {
        match self {
            ChType::Nullable(inner) => match (a.split_first(), b.split_first()) {
                (Some((0, a)), Some((0, b))) => inner.compare(a, b),
                (a, b) => a.map(|(null, _)| null).cmp(&b.map(|(null, _)| null)),
            },
            ChType::Int(_)
            | ChType::Decimal { .. }
            | ChType::Date32
            | ChType::DateTime64(..)
            | ChType::Time64(_) => {
                let number = |bytes| {
                    let number = U256::from_le_slice(bytes, true);
                    (!number.is_negative(), number)
                };
                number(a).cmp(&number(b))
            }
            ChType::Bool | ChType::UInt(_) | ChType::Date | ChType::DateTime(_) | ChType::IPv4 => {
                U256::from_le_slice(a, false).cmp(&U256::from_le_slice(b, false))
            }
            ChType::Float32 | ChType::Float64 => {
                let (a, b) = (float(a), float(b));
                a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
            }
            ChType::Uuid => uuid_bytes(a).cmp(&uuid_bytes(b)),
            ChType::IPv6 => a.cmp(b),
            ChType::String | ChType::LowCardinality | ChType::Json => self.content(a).cmp(self.content(b)),
            ChType::Array(element) => {
                let (a, b) = (self.elements(element, a), self.elements(element, b));
                let differing = a.iter().zip(&b).map(|(a, b)| element.compare(a, b));
                differing.fold(Ordering::Equal, Ordering::then).then(a.len().cmp(&b.len()))
            }
        }
    }

    /// A string's bytes without their length.
    fn content<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        match self.varint(bytes) {
            Ok(Some((_, at))) => bytes.get(at..).unwrap_or_default(),
            _ => &[],
        }
    }

    fn elements<'a>(&self, element: &ChType, bytes: &'a [u8]) -> Vec<&'a [u8]> {
        let Ok(Some((count, mut at))) = self.varint(bytes) else { return Vec::new() };
        let mut elements = Vec::new();
        for _ in 0..count {
            let rest = bytes.get(at..).unwrap_or_default();
            let Ok(Some(len)) = element.row_binary_len(rest) else { break };
            elements.push(rest.get(..len).unwrap_or_default());
            at += len;
        }
        elements
    }

    /// An unsigned LEB128 number and where it ends.
    fn varint(&self, bytes: &[u8]) -> Result<Option<(usize, usize)>, RowBinaryError> {
        let mut number = 0_u64;
        for (index, byte) in bytes.iter().take(9).enumerate() {
            number |= u64::from(byte & 0x7F) << (7 * index);
            if byte & 0x80 == 0 {
                return Ok(Some((usize::try_from(number).map_err(|_| self.malformed())?, index + 1)));
            }
        }
        if bytes.len() >= 9 { Err(self.malformed()) } else { Ok(None) }
    }

    fn malformed(&self) -> RowBinaryError {
        RowBinaryError(self.to_string())
    }
}

/// A value as readable text: as ClickHouse shows it in text formats, strings without quotes, NULL as `NULL`.
pub fn display(value_type: &ChType, bytes: &[u8]) -> String {
    match value_type {
        ChType::Nullable(inner) => match bytes.split_first() {
            Some((0, rest)) => display(inner, rest),
            _ => "NULL".to_owned(),
        },
        ChType::Bool => (bytes.first() == Some(&1)).to_string(),
        ChType::Int(_) => decimal(bytes, true, 0),
        ChType::UInt(_) => decimal(bytes, false, 0),
        ChType::Decimal { scale, .. } => decimal(bytes, true, *scale),
        ChType::Float32 | ChType::Float64 => match bytes.try_into() {
            Ok(single) => f32::from_le_bytes(single).to_string(),
            Err(_) => float(bytes).to_string(),
        },
        ChType::String | ChType::LowCardinality | ChType::Json => {
            String::from_utf8_lossy(value_type.content(bytes)).into_owned()
        }
        ChType::Uuid => {
            let mut text = format!("{:032x}", u128::from_be_bytes(uuid_bytes(bytes)));
            for at in [20, 16, 12, 8] {
                text.insert(at, '-');
            }
            text
        }
        ChType::Date => date(integer(bytes, false)),
        ChType::Date32 => date(integer(bytes, true)),
        ChType::DateTime(_) => date_time(integer(bytes, false), 0),
        ChType::DateTime64(precision, _) => date_time(integer(bytes, true), *precision),
        ChType::Time64(precision) => time(integer(bytes, true), *precision),
        ChType::IPv4 => Ipv4Addr::from(integer(bytes, false) as u32).to_string(),
        ChType::IPv6 => Ipv6Addr::from(bytes.try_into().unwrap_or([0; 16])).to_string(),
        ChType::Array(element) => {
            let elements = value_type.elements(element, bytes);
            let shown: Vec<String> = elements.into_iter().map(|bytes| display(element, bytes)).collect();
            format!("[{}]", shown.join(", "))
        }
    }
}

fn integer(bytes: &[u8], signed: bool) -> i64 {
    U256::from_le_slice(bytes, signed).0[0] as i64
}

fn float(bytes: &[u8]) -> f64 {
    match (bytes.try_into(), bytes.try_into()) {
        (Ok(single), _) => f64::from(f32::from_le_bytes(single)),
        (_, Ok(double)) => f64::from_le_bytes(double),
        _ => f64::NAN,
    }
}

/// ClickHouse keeps a UUID as two little-endian halves.
fn uuid_bytes(bytes: &[u8]) -> [u8; 16] {
    let mut ordered = bytes.try_into().unwrap_or([0; 16]);
    for half in ordered.as_chunks_mut::<8>().0 {
        half.reverse();
    }
    ordered
}

fn decimal(bytes: &[u8], signed: bool, scale: u8) -> String {
    let mut number = U256::from_le_slice(bytes, signed);
    let negative = signed && number.is_negative();
    if negative {
        number = number.negated();
    }
    let mut reversed = String::new();
    let mut written = 0;
    while number != U256::default() || written <= scale {
        if written == scale && scale > 0 {
            reversed.push('.');
        }
        let (rest, digit) = number.div_rem_ten();
        reversed.push(char::from(b'0' + digit));
        number = rest;
        written += 1;
    }
    if negative {
        reversed.push('-');
    }
    reversed.chars().rev().collect()
}

fn date(days: i64) -> String {
    let (year, month, day) = civil_from_days(days);
    format!("{year:04}-{month:02}-{day:02}")
}

fn date_time(ticks: i64, precision: u8) -> String {
    let day = 86_400 * 10_i64.pow(u32::from(precision));
    format!("{} {}", date(ticks.div_euclid(day)), time(ticks.rem_euclid(day), precision))
}

fn time(ticks: i64, precision: u8) -> String {
    let second = 10_i64.pow(u32::from(precision));
    let sign = if ticks < 0 { "-" } else { "" };
    let (seconds, fraction) = ((ticks / second).abs(), (ticks % second).abs());
    let clock = format!("{sign}{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    match precision {
        0 => clock,
        width => format!("{clock}.{fraction:0width$}", width = usize::from(width)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clickhouse::types::parse;

    fn of(text: &str) -> ChType {
        parse(text).unwrap()
    }

    #[test]
    fn finds_the_end_of_values() {
        for (value_type, bytes, len) in [
            ("Int32", &[1, 2, 3, 4, 5][..], Some(4)),
            ("Int32", &[1, 2, 3], None),
            ("Decimal(76, 0)", &[0; 40], Some(32)),
            ("String", b"\x03abcd", Some(4)),
            ("String", b"\x03ab", None),
            ("String", b"\x80", None),
            ("String", &[0x80, 0x01, 0], None),
            ("Nullable(Int16)", &[1, 9], Some(1)),
            ("Nullable(Int16)", &[0, 9, 9, 9], Some(3)),
            ("Nullable(Int16)", &[], None),
            ("Array(Nullable(String))", b"\x03\0\x01a\x01\0\0zz", Some(7)),
            ("Array(Nullable(String))", b"\x03\0\x01a\x01", None),
        ] {
            assert_eq!(of(value_type).row_binary_len(bytes), Ok(len), "{value_type} {bytes:?}");
        }
        assert!(of("Nullable(Int8)").row_binary_len(&[2, 0]).is_err());
        assert!(of("String").row_binary_len(&[0xFF; 12]).is_err());
        assert_eq!(of("Array(Int8)").row_binary_len(&[0xFF, 0xFF, 0xFF, 0x7F, 1]), Ok(None));
    }

    #[test]
    fn orders_as_clickhouse_does() {
        use Ordering::{Equal, Greater, Less};
        let int = |number: i32| number.to_le_bytes();
        assert_eq!(of("Int32").compare(&int(-1), &int(1)), Less);
        assert_eq!(of("Int32").compare(&int(-1), &int(-2)), Greater);
        assert_eq!(of("UInt32").compare(&int(-1), &int(1)), Greater);
        assert_eq!(of("Date32").compare(&int(-5), &int(-5)), Equal);
        assert_eq!(of("String").compare(b"\x02ab", b"\x01b"), Less);
        assert_eq!(of("String").compare(b"\x01a", b"\x02ab"), Less);
        assert_eq!(of("Nullable(Int32)").compare(&[1], &[0, 1, 0, 0, 0]), Greater);
        let double = |number: f64| number.to_le_bytes();
        assert_eq!(of("Float64").compare(&double(f64::NAN), &double(f64::INFINITY)), Greater);
        assert_eq!(of("Float64").compare(&double(-0.0), &double(0.0)), Equal);
        let uuid = |first: u64, second: u64| [first.to_le_bytes(), second.to_le_bytes()].concat();
        assert_eq!(of("UUID").compare(&uuid(1, 2), &uuid(2, 1)), Less);
        assert_eq!(of("Array(Int8)").compare(&[1, 5], &[2, 5, 0]), Less);
        assert_eq!(of("Array(Int8)").compare(&[2, 5, 9], &[2, 6, 0]), Less);
    }

    #[test]
    fn shows_values() {
        for (value_type, bytes, shown) in [
            ("Bool", &[1][..], "true"),
            ("Int16", &(-12_i16).to_le_bytes(), "-12"),
            ("UInt8", &[255], "255"),
            ("Decimal(9, 3)", &(-5_i32).to_le_bytes(), "-0.005"),
            ("Decimal(9, 0)", &[0; 4], "0"),
            ("Decimal(9, 2)", &12_345_i32.to_le_bytes(), "123.45"),
            ("Float32", &1.1_f32.to_le_bytes(), "1.1"),
            ("String", b"\x02hi", "hi"),
            ("Nullable(String)", &[1], "NULL"),
            ("Date32", &(-25_567_i32).to_le_bytes(), "1900-01-01"),
            ("DateTime64(6, 'UTC')", &(-1_i64).to_le_bytes(), "1969-12-31 23:59:59.999999"),
            ("DateTime('UTC')", &[0; 4], "1970-01-01 00:00:00"),
            ("Time64(6)", &86_400_000_000_i64.to_le_bytes(), "24:00:00.000000"),
            ("IPv4", &[4, 3, 2, 1], "1.2.3.4"),
            ("IPv6", &[0; 16], "::"),
            ("Array(Nullable(Int8))", &[2, 0, 7, 1], "[7, NULL]"),
            (
                "UUID",
                &[7, 6, 5, 4, 3, 2, 1, 0, 15, 14, 13, 12, 11, 10, 9, 8],
                "00010203-0405-0607-0809-0a0b0c0d0e0f",
            ),
        ] {
            assert_eq!(display(&of(value_type), bytes), shown);
        }
    }
}
