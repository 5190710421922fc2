//! `numeric`: to decimals, integers, floats and text.
//!
//! The binary form (`numeric_send`) is four 16-bit words (number of digit groups, weight of the first group,
//! sign, digits shown after the point) and groups of four decimal digits, base 10,000.

use super::encoding::{Encoded, Fit, Malformed, Params};
use crate::clickhouse::types::{ChType, U256};

/// Size, scale and largest magnitudes of an integer or decimal type.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limits {
    width: u8,
    /// Digits after the point.
    pub(super) scale: u8,
    above: U256,
    below: U256,
}

impl Limits {
    /// The limits of a type; nothing in particular for what isn't a number.
    pub(super) fn of(target: &ChType) -> Limits {
        let width = target.width().and_then(|width| u8::try_from(width).ok()).unwrap_or_default();
        match target {
            ChType::Bool => Limits { width, above: U256::power_of_two(0), ..Limits::default() },
            ChType::Int(bits) => {
                let below = U256::power_of_two(bits - 1);
                Limits { width, scale: 0, above: below.minus_one(), below }
            }
            // For 256 bits the power is 0, and one less than that is the highest number.
            ChType::UInt(bits) => {
                Limits { width, above: U256::power_of_two(*bits).minus_one(), ..Limits::default() }
            }
            ChType::Decimal { precision, scale } => {
                let most = U256::power_of_ten(*precision).minus_one();
                Limits { width, scale: *scale, above: most, below: most }
            }
            _ => Limits::default(),
        }
    }
}

/// An unsigned number as wide as the target needs, so that common columns compute in one register.
pub(super) trait Magnitude: Copy + Default + PartialOrd {
    /// `self * factor + addend`, `None` when it doesn't fit.
    fn mul_add(self, factor: u64, addend: u64) -> Option<Self>;
    /// A limit, known to fit.
    fn from_limit(limit: &U256) -> Self;
    /// Appends the `width` lowest bytes of the two's complement.
    fn put(self, negative: bool, width: usize, out: &mut Vec<u8>);
}

impl Magnitude for u64 {
    #[inline]
    fn mul_add(self, factor: u64, addend: u64) -> Option<u64> {
        self.checked_mul(factor)?.checked_add(addend)
    }
    #[inline]
    fn from_limit(limit: &U256) -> u64 {
        limit.0[0]
    }
    #[inline]
    fn put(self, negative: bool, width: usize, out: &mut Vec<u8>) {
        let bytes = if negative { self.wrapping_neg() } else { self }.to_le_bytes();
        match width {
            8 => out.extend_from_slice(&bytes),
            4 => out.extend_from_slice(&bytes[..4]),
            2 => out.extend_from_slice(&bytes[..2]),
            _ => out.push(bytes[0]),
        }
    }
}

impl Magnitude for u128 {
    #[inline]
    fn mul_add(self, factor: u64, addend: u64) -> Option<u128> {
        self.checked_mul(u128::from(factor))?.checked_add(u128::from(addend))
    }
    #[inline]
    fn from_limit(limit: &U256) -> u128 {
        u128::from(limit.0[1]) << 64 | u128::from(limit.0[0])
    }
    #[inline]
    fn put(self, negative: bool, width: usize, out: &mut Vec<u8>) {
        let bytes = if negative { self.wrapping_neg() } else { self }.to_le_bytes();
        out.extend_from_slice(&bytes[..width.min(16)]);
    }
}

impl Magnitude for U256 {
    fn mul_add(self, factor: u64, addend: u64) -> Option<U256> {
        U256::mul_add(self, factor, addend)
    }
    fn from_limit(limit: &U256) -> U256 {
        *limit
    }
    fn put(self, negative: bool, width: usize, out: &mut Vec<u8>) {
        let bytes = if negative { self.negated() } else { self }.to_le_bytes();
        out.extend_from_slice(&bytes[..width.min(32)]);
    }
}

/// A number times a power of ten, cut to an integer.
pub(super) struct Scaled<M> {
    negative: bool,
    /// `None` when it is too large for `M`.
    magnitude: Option<M>,
    /// Whether something other than zeros was cut off.
    inexact: bool,
    /// Whether what was cut off is half a unit or more.
    round_up: bool,
}

impl<M: Magnitude> Scaled<M> {
    /// An integer times `10^scale`.
    #[inline]
    pub(super) fn whole(negative: bool, magnitude: Option<M>, scale: u8) -> Scaled<M> {
        let magnitude = shifted(magnitude, u32::from(scale));
        Scaled { negative, magnitude, inexact: false, round_up: false }
    }
}

/// `magnitude * 10^exponent`.
#[inline]
fn shifted<M: Magnitude>(magnitude: Option<M>, mut exponent: u32) -> Option<M> {
    let mut magnitude = magnitude?;
    if magnitude == M::default() {
        return Some(magnitude);
    }
    // Each step multiplies by ten at least, so a number that doesn't fit ends the loop soon.
    while exponent > 0 {
        let step = exponent.min(4);
        magnitude = magnitude.mul_add(10_u64.pow(step), 0)?;
        exponent -= step;
    }
    Some(magnitude)
}

/// Appends a number, rounded half away from zero as PostgreSQL does and clamped to the type's limits.
#[inline]
pub(super) fn put<M: Magnitude>(params: &Params, number: Scaled<M>, out: &mut Vec<u8>) -> Fit {
    let limits = &params.limits;
    let limit = M::from_limit(if number.negative { &limits.below } else { &limits.above });
    let rounded = number.magnitude.and_then(|magnitude| magnitude.mul_add(1, u64::from(number.round_up)));
    match rounded.filter(|magnitude| *magnitude <= limit) {
        Some(magnitude) => {
            magnitude.put(number.negative, usize::from(limits.width), out);
            if number.inexact { Fit::Adjusted } else { Fit::Exact }
        }
        None => {
            limit.put(number.negative, usize::from(limits.width), out);
            Fit::Adjusted
        }
    }
}

/// `NaN` has no nearest number, so it becomes 0; infinities become the limits.
fn put_special<M: Magnitude>(params: &Params, special: Special, out: &mut Vec<u8>) -> Fit {
    let magnitude = if special == Special::NaN { Some(M::default()) } else { None };
    let negative = special == Special::NegativeInfinity;
    put(params, Scaled { negative, magnitude, inexact: true, round_up: false }, out)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Special {
    NaN,
    Infinity,
    NegativeInfinity,
}

impl Special {
    fn text(self) -> &'static [u8] {
        match self {
            Special::NaN => b"NaN",
            Special::Infinity => b"Infinity",
            Special::NegativeInfinity => b"-Infinity",
        }
    }
}

/// The binary form, taken apart.
enum Binary<'a> {
    Special(Special),
    Finite { negative: bool, weight: i16, scale: u16, groups: &'a [[u8; 2]] },
}

impl<'a> Binary<'a> {
    #[inline]
    fn read(bytes: &'a [u8]) -> Result<Binary<'a>, Malformed> {
        let (words, rest) = bytes.as_chunks::<2>();
        let ([count, weight, sign, scale, groups @ ..], []) = (words, rest) else {
            return Err(Malformed("wrong length"));
        };
        if groups.len() != usize::from(u16::from_be_bytes(*count)) {
            return Err(Malformed("wrong number of digits"));
        }
        let negative = match u16::from_be_bytes(*sign) {
            0x0000 => false,
            0x4000 => true,
            0xC000 => return Ok(Binary::Special(Special::NaN)),
            0xD000 => return Ok(Binary::Special(Special::Infinity)),
            0xF000 => return Ok(Binary::Special(Special::NegativeInfinity)),
            _ => return Err(Malformed("unknown sign")),
        };
        let scale = u16::from_be_bytes(*scale);
        if scale > 0x3FFF {
            return Err(Malformed("scale too large"));
        }
        Ok(Binary::Finite { negative, weight: i16::from_be_bytes(*weight), scale, groups })
    }
}

#[inline]
fn group(bytes: [u8; 2]) -> Result<u16, Malformed> {
    match u16::from_be_bytes(bytes) {
        group @ 0..10_000 => Ok(group),
        _ => Err(Malformed("digit out of range")),
    }
}

/// The binary form to a decimal or an integer.
pub(super) fn binary<M: Magnitude>(params: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    match Binary::read(bytes)? {
        Binary::Special(special) => Ok(put_special::<M>(params, special, out)),
        Binary::Finite { negative, weight, groups, .. } => {
            let number = scale_groups::<M>(negative, weight, groups, params.limits.scale)?;
            Ok(put(params, number, out))
        }
    }
}

fn scale_groups<M: Magnitude>(
    negative: bool,
    weight: i16,
    groups: &[[u8; 2]],
    scale: u8,
) -> Result<Scaled<M>, Malformed> {
    let mut number = Scaled { negative, magnitude: Some(M::default()), inexact: false, round_up: false };
    // The power of ten that the lowest digit of the group in hand counts, in units of the scaled number.
    let mut exponent = 4 * i32::from(weight) + i32::from(scale);
    for bytes in groups {
        let group = group(*bytes)?;
        let cut = match exponent {
            0.. => {
                number.magnitude = number.magnitude.and_then(|m| m.mul_add(10_000, u64::from(group)));
                None
            }
            -3..0 => {
                let unit = 10_u16.pow(exponent.unsigned_abs());
                let kept = u64::from(group / unit);
                number.magnitude = number.magnitude.and_then(|m| m.mul_add(u64::from(10_000 / unit), kept));
                Some((group % unit, unit))
            }
            -4 => Some((group, 10_000)),
            // The first digit that is cut off decides about rounding, and it is a zero or has been read.
            _ => Some((u16::from(group != 0), 10_000)),
        };
        if let Some((remainder, unit)) = cut {
            number.inexact |= remainder != 0;
            number.round_up |= remainder >= unit / 2;
        }
        exponent -= 4;
    }
    let missing = u32::try_from(exponent + 4).unwrap_or(0);
    number.magnitude = shifted(number.magnitude, missing);
    Ok(number)
}

/// The text form to a decimal or an integer.
pub(super) fn text<M: Magnitude>(params: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    let (negative, digits) = match bytes {
        b"NaN" => return Ok(put_special::<M>(params, Special::NaN, out)),
        b"Infinity" => return Ok(put_special::<M>(params, Special::Infinity, out)),
        b"-Infinity" => return Ok(put_special::<M>(params, Special::NegativeInfinity, out)),
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    let mut number = Scaled { negative, magnitude: Some(M::default()), inexact: false, round_up: false };
    let scale = u32::from(params.limits.scale);
    let mut point = false;
    let mut digit_count = 0_usize;
    let mut fraction = 0;
    for byte in digits {
        match byte {
            b'0'..=b'9' => {
                let digit = byte - b'0';
                digit_count += 1;
                if point && fraction >= scale {
                    number.round_up |= fraction == scale && digit >= 5;
                    number.inexact |= digit != 0;
                } else {
                    number.magnitude = number.magnitude.and_then(|m| m.mul_add(10, u64::from(digit)));
                }
                fraction += u32::from(point);
            }
            b'.' if !point => point = true,
            _ => return Err(Malformed("not a number")),
        }
    }
    if digit_count == 0 {
        return Err(Malformed("no digits"));
    }
    number.magnitude = shifted(number.magnitude, scale.saturating_sub(fraction));
    Ok(put(params, number, out))
}

/// The text of the binary form, as `numeric_out` gives it.
pub(super) fn render(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let (negative, weight, scale, groups) = match Binary::read(bytes)? {
        Binary::Special(special) => {
            out.extend_from_slice(special.text());
            return Ok(());
        }
        Binary::Finite { negative, weight, scale, groups } => {
            (negative, i32::from(weight), usize::from(scale), groups)
        }
    };
    let group_at = |index: i32| match usize::try_from(index).ok().and_then(|index| groups.get(index)) {
        Some(bytes) => group(*bytes),
        None => Ok(0),
    };
    if negative {
        out.push(b'-');
    }
    if weight < 0 {
        out.push(b'0');
    }
    for index in 0..=weight {
        let group = group_at(index)?;
        if index == 0 {
            out.extend_from_slice(itoa::Buffer::new().format(group).as_bytes());
        } else {
            out.extend_from_slice(&four_digits(group));
        }
    }
    if scale > 0 {
        out.push(b'.');
        let end = out.len() + scale;
        let mut index = weight + 1;
        while out.len() < end {
            out.extend_from_slice(&four_digits(group_at(index)?));
            index += 1;
        }
        out.truncate(end);
    }
    Ok(())
}

#[inline]
fn four_digits(group: u16) -> [u8; 4] {
    let digit = |unit: u16| b'0' + (group / unit % 10) as u8;
    [digit(1000), digit(100), digit(10), digit(1)]
}
