//! Dates and times.
//!
//! PostgreSQL counts days and microseconds from 2000-01-01, with the extreme numbers as infinities, and its
//! calendar reaches from 4713 BC to the year 294276; ClickHouse counts from 1970-01-01.

use super::encoding::{Encoded, Fit, Malformed, Params};
use crate::clickhouse::types::{civil_from_days, days_from_civil};

/// Days from 1970-01-01 to 2000-01-01.
const EPOCH_DAYS: i64 = 10_957;
/// Days since 1970 of the first and the last day of `Date32` and `DateTime64`.
const FIRST_DAY: i64 = -25_567;
const LAST_DAY: i64 = 120_529;
const MICROS_OF_SECOND: i64 = 1_000_000;
const MICROS_OF_DAY: i64 = 86_400 * MICROS_OF_SECOND;

const LENGTH: Malformed = Malformed("wrong length");
const NOT_A_DATE: Malformed = Malformed("not a date");
const NOT_A_TIME: Malformed = Malformed("not a time");

/// A date type: the days since 1970 that it holds.
pub(super) trait Days: Sized {
    /// The first and the last day.
    const RANGE: (i64, i64);
    /// Appends a day in the range.
    fn put(day: i64, out: &mut Vec<u8>);
}

/// `Date32`
impl Days for i32 {
    const RANGE: (i64, i64) = (FIRST_DAY, LAST_DAY);
    fn put(day: i64, out: &mut Vec<u8>) {
        out.extend_from_slice(&(day as i32).to_le_bytes());
    }
}

/// `Date`
impl Days for u16 {
    const RANGE: (i64, i64) = (0, u16::MAX as i64);
    fn put(day: i64, out: &mut Vec<u8>) {
        out.extend_from_slice(&(day as u16).to_le_bytes());
    }
}

/// Days since 2000; infinities are the extremes of `i32`, which no calendar date reaches.
fn put_date<D: Days>(day: i64, out: &mut Vec<u8>) -> Fit {
    let day = day + EPOCH_DAYS;
    let nearest = day.clamp(D::RANGE.0, D::RANGE.1);
    D::put(nearest, out);
    if nearest == day { Fit::Exact } else { Fit::Adjusted }
}

/// `date`'s binary form.
pub(super) fn binary_date<D: Days>(_: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    let day = i32::from_be_bytes(bytes.try_into().map_err(|_| LENGTH)?);
    Ok(put_date::<D>(i64::from(day), out))
}

/// `date`'s text form.
pub(super) fn text_date<D: Days>(_: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    let day = match bytes {
        b"infinity" => i64::from(i32::MAX),
        b"-infinity" => i64::from(i32::MIN),
        _ => {
            let (bytes, before_christ) = strip_era(bytes);
            let (date, rest) = read_date(bytes, before_christ)?;
            if !rest.is_empty() {
                return Err(NOT_A_DATE);
            }
            date
        }
    };
    Ok(put_date::<D>(day, out))
}

/// Microseconds since 2000 as `DateTime64` ticks: rounded as PostgreSQL's `timestamp(p)` rounds, then
/// clamped.
fn put_ticks(params: &Params, micros: i64, out: &mut Vec<u8>) -> Fit {
    let ticks_of_second = 10_i64.pow(u32::from(params.precision));
    let (ticks, exact) = scaled(micros, params.precision);
    let since_1970 = EPOCH_DAYS * 86_400 * ticks_of_second;
    let first = FIRST_DAY * 86_400 * ticks_of_second;
    // With nine digits the range ends where the integer does.
    let last = ((LAST_DAY + 1) * 86_400).checked_mul(ticks_of_second).map_or(i64::MAX, |end| end - 1);
    let ticks = ticks.and_then(|ticks| ticks.checked_add(since_1970));
    let fits = ticks.filter(|ticks| (first..=last).contains(ticks));
    let nearest = fits.unwrap_or(if micros < 0 { first } else { last });
    out.extend_from_slice(&nearest.to_le_bytes());
    if exact && fits.is_some() { Fit::Exact } else { Fit::Adjusted }
}

/// Microseconds in units of `10^-precision` seconds, rounded half away from zero, and whether nothing was cut
/// off; `None` when they don't fit.
fn scaled(micros: i64, precision: u8) -> (Option<i64>, bool) {
    match precision {
        6 => (Some(micros), true),
        7.. => (micros.checked_mul(10_i64.pow(u32::from(precision) - 6)), true),
        _ => {
            let unit = 10_i64.pow(6 - u32::from(precision));
            let (quotient, remainder) = (micros / unit, micros % unit);
            let away = i64::from(remainder.abs() * 2 >= unit) * remainder.signum();
            (Some(quotient + away), remainder == 0)
        }
    }
}

fn put_seconds(micros: i64, out: &mut Vec<u8>) -> Fit {
    let (seconds, exact) = scaled(micros, 0);
    let seconds = seconds.unwrap_or(0) + EPOCH_DAYS * 86_400;
    let nearest = seconds.clamp(0, i64::from(u32::MAX));
    out.extend_from_slice(&(nearest as u32).to_le_bytes());
    if exact && nearest == seconds { Fit::Exact } else { Fit::Adjusted }
}

/// The binary form of both timestamps to `DateTime64`.
pub(super) fn binary_ticks(params: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    Ok(put_ticks(params, i64::from_be_bytes(bytes.try_into().map_err(|_| LENGTH)?), out))
}

/// The text form of a timestamp to `DateTime64`.
pub(super) fn text_ticks<const ZONE: bool>(params: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    Ok(put_ticks(params, read_timestamp::<ZONE>(bytes)?, out))
}

/// The binary form of both timestamps to `DateTime`.
pub(super) fn binary_seconds(_: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    Ok(put_seconds(i64::from_be_bytes(bytes.try_into().map_err(|_| LENGTH)?), out))
}

/// The text form of a timestamp to `DateTime`.
pub(super) fn text_seconds<const ZONE: bool>(_: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    Ok(put_seconds(read_timestamp::<ZONE>(bytes)?, out))
}

fn put_time(params: &Params, micros: i64, out: &mut Vec<u8>) -> Encoded {
    if !(0..=MICROS_OF_DAY).contains(&micros) {
        return Err(NOT_A_TIME);
    }
    let (ticks, exact) = scaled(micros, params.precision);
    out.extend_from_slice(&ticks.unwrap_or_default().to_le_bytes());
    Ok(if exact { Fit::Exact } else { Fit::Adjusted })
}

/// The binary form of `time`.
pub(super) fn binary_time(params: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    put_time(params, i64::from_be_bytes(bytes.try_into().map_err(|_| LENGTH)?), out)
}

/// The text form of `time`.
pub(super) fn text_time(params: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    match read_clock(bytes)? {
        (micros, []) => put_time(params, micros, out),
        _ => Err(NOT_A_TIME),
    }
}

fn strip_era(bytes: &[u8]) -> (&[u8], bool) {
    match bytes.strip_suffix(b" BC") {
        Some(bytes) => (bytes, true),
        None => (bytes, false),
    }
}

/// `YYYY-MM-DD` with four to seven digits of year, as days since 2000, and what follows it.
fn read_date(bytes: &[u8], before_christ: bool) -> Result<(i64, &[u8]), Malformed> {
    let length = bytes.iter().position(|byte| *byte == b'-').filter(|length| (4..=7).contains(length));
    let (year, rest) = length.and_then(|length| bytes.split_at_checked(length)).ok_or(NOT_A_DATE)?;
    let year = i64::from(digits(year).ok_or(NOT_A_DATE)?);
    let [b'-', m1, m2, b'-', d1, d2, rest @ ..] = rest else { return Err(NOT_A_DATE) };
    let (month, day) = (digits(&[*m1, *m2]).ok_or(NOT_A_DATE)?, digits(&[*d1, *d2]).ok_or(NOT_A_DATE)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return Err(NOT_A_DATE);
    }
    let year = if before_christ { 1 - year } else { year };
    Ok((days_from_civil(year, month, day) - EPOCH_DAYS, rest))
}

/// `HH:MM:SS[.f]` with up to six digits of fraction, as microseconds, and what follows it.
fn read_clock(bytes: &[u8]) -> Result<(i64, &[u8]), Malformed> {
    let [h1, h2, b':', m1, m2, b':', s1, s2, rest @ ..] = bytes else { return Err(NOT_A_TIME) };
    let hours = digits(&[*h1, *h2]).filter(|hours| *hours <= 24).ok_or(NOT_A_TIME)?;
    let minutes = digits(&[*m1, *m2]).filter(|minutes| *minutes < 60).ok_or(NOT_A_TIME)?;
    let seconds = digits(&[*s1, *s2]).filter(|seconds| *seconds < 60).ok_or(NOT_A_TIME)?;
    let mut micros = i64::from(hours * 3600 + minutes * 60 + seconds) * MICROS_OF_SECOND;
    let [b'.', fraction @ ..] = rest else { return Ok((micros, rest)) };
    let length = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (fraction, rest) = fraction.split_at(length);
    if !(1..=6).contains(&length) {
        return Err(NOT_A_TIME);
    }
    micros += i64::from(digits(fraction).ok_or(NOT_A_TIME)?) * 10_i64.pow(6 - length as u32);
    Ok((micros, rest))
}

/// Microseconds since 2000. The session's time zone is UTC, so an offset is always `+00`.
fn read_timestamp<const ZONE: bool>(bytes: &[u8]) -> Result<i64, Malformed> {
    match bytes {
        b"infinity" => return Ok(i64::MAX),
        b"-infinity" => return Ok(i64::MIN),
        _ => {}
    }
    let (bytes, before_christ) = strip_era(bytes);
    let (days, rest) = read_date(bytes, before_christ)?;
    let [b' ', clock @ ..] = rest else { return Err(NOT_A_TIME) };
    let (micros, rest) = read_clock(clock)?;
    if rest != if ZONE { b"+00".as_slice() } else { b"" } {
        return Err(Malformed("not in UTC"));
    }
    days.checked_mul(MICROS_OF_DAY).and_then(|date| date.checked_add(micros)).ok_or(NOT_A_TIME)
}

/// A number of at most seven digits.
fn digits(bytes: &[u8]) -> Option<u32> {
    bytes
        .iter()
        .try_fold(0, |number, byte| byte.is_ascii_digit().then(|| number * 10 + u32::from(byte - b'0')))
}

/// `date`'s text.
pub(super) fn render_date(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    match i32::from_be_bytes(bytes.try_into().map_err(|_| LENGTH)?) {
        i32::MAX => out.extend_from_slice(b"infinity"),
        i32::MIN => out.extend_from_slice(b"-infinity"),
        day => {
            let before_christ = put_calendar(i64::from(day), out);
            out.extend_from_slice(if before_christ { b" BC" } else { b"" });
        }
    }
    Ok(())
}

/// A timestamp's text, in UTC.
pub(super) fn render_timestamp<const ZONE: bool>(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    match i64::from_be_bytes(bytes.try_into().map_err(|_| LENGTH)?) {
        i64::MAX => out.extend_from_slice(b"infinity"),
        i64::MIN => out.extend_from_slice(b"-infinity"),
        micros => {
            let before_christ = put_calendar(micros.div_euclid(MICROS_OF_DAY), out);
            out.push(b' ');
            put_clock(micros.rem_euclid(MICROS_OF_DAY), out);
            out.extend_from_slice(if ZONE { b"+00" } else { b"" });
            out.extend_from_slice(if before_christ { b" BC" } else { b"" });
        }
    }
    Ok(())
}

/// `time`'s text.
pub(super) fn render_time(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let micros = i64::from_be_bytes(bytes.try_into().map_err(|_| LENGTH)?);
    if !(0..=MICROS_OF_DAY).contains(&micros) {
        return Err(NOT_A_TIME);
    }
    put_clock(micros, out);
    Ok(())
}

/// Appends `YYYY-MM-DD`, answers whether it is before Christ.
fn put_calendar(day: i64, out: &mut Vec<u8>) -> bool {
    let (year, month, day) = civil_from_days(day + EPOCH_DAYS);
    let (year, before_christ) = if year <= 0 { (1 - year, true) } else { (year, false) };
    put_padded(year as u64, 4, out);
    out.push(b'-');
    put_padded(u64::from(month), 2, out);
    out.push(b'-');
    put_padded(u64::from(day), 2, out);
    before_christ
}

/// Appends `HH:MM:SS[.f]`, the fraction without trailing zeros.
fn put_clock(micros: i64, out: &mut Vec<u8>) {
    let (seconds, fraction) = ((micros / MICROS_OF_SECOND) as u64, (micros % MICROS_OF_SECOND) as u64);
    put_padded(seconds / 3600, 2, out);
    out.push(b':');
    put_padded(seconds / 60 % 60, 2, out);
    out.push(b':');
    put_padded(seconds % 60, 2, out);
    if fraction > 0 {
        out.push(b'.');
        put_padded(fraction, 6, out);
        while out.last() == Some(&b'0') {
            out.pop();
        }
    }
}

fn put_padded(number: u64, width: usize, out: &mut Vec<u8>) {
    let mut buffer = itoa::Buffer::new();
    let text = buffer.format(number).as_bytes();
    out.resize(out.len() + width.saturating_sub(text.len()), b'0');
    out.extend_from_slice(text);
}
