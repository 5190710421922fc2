//! Booleans, integers and floating point numbers.

use super::{
    encoding::{Encoded, Fit, Malformed, Params},
    numeric::{self, Magnitude, Scaled, put},
};

const LENGTH: Malformed = Malformed("wrong length");

/// A way to read an integer.
pub(super) trait Integer {
    /// Reads one value.
    fn read(bytes: &[u8]) -> Result<i64, Malformed>;
}

/// Defines readers of big-endian signed integers.
macro_rules! binary_integers {
    ($($name:ident $number:ty),*) => {$(
        #[doc = concat!("The binary form of a `", stringify!($number), "`, or of a shorter one from before the column was made wider.")]
        pub(super) struct $name;
        impl Integer for $name {
            #[inline]
            fn read(bytes: &[u8]) -> Result<i64, Malformed> {
                match bytes.try_into() {
                    Ok(bytes) => Ok(i64::from(<$number>::from_be_bytes(bytes))),
                    Err(_) if bytes.len() < size_of::<$number>() => shorter(bytes),
                    Err(_) => Err(LENGTH),
                }
            }
        }
    )*};
}
binary_integers!(BinaryInt2 i16, BinaryInt4 i32, BinaryInt8 i64);

#[cold]
fn shorter(bytes: &[u8]) -> Result<i64, Malformed> {
    match *bytes {
        [a, b] => Ok(i64::from(i16::from_be_bytes([a, b]))),
        [a, b, c, d] => Ok(i64::from(i32::from_be_bytes([a, b, c, d]))),
        _ => Err(LENGTH),
    }
}

/// The binary form of an `oid`.
pub(super) struct BinaryOid;
impl Integer for BinaryOid {
    #[inline]
    fn read(bytes: &[u8]) -> Result<i64, Malformed> {
        Ok(i64::from(u32::from_be_bytes(bytes.try_into().map_err(|_| LENGTH)?)))
    }
}

/// The binary form of a `double precision`, or of a `real` from before the column was made wider.
#[inline]
pub(super) fn read_double(bytes: &[u8]) -> Result<f64, Malformed> {
    match bytes.try_into() {
        Ok(bytes) => Ok(f64::from_be_bytes(bytes)),
        Err(_) => Ok(f64::from(f32::from_be_bytes(bytes.try_into().map_err(|_| LENGTH)?))),
    }
}

/// The text form of an integer.
pub(super) struct TextInt;
impl Integer for TextInt {
    #[inline]
    fn read(bytes: &[u8]) -> Result<i64, Malformed> {
        let (negative, digits) = match bytes {
            [b'-', digits @ ..] => (true, digits),
            digits => (false, digits),
        };
        if digits.is_empty() {
            return Err(Malformed("no digits"));
        }
        digits
            .iter()
            .try_fold(0_i64, |number, byte| {
                let digit = i64::from(byte.wrapping_sub(b'0'));
                let shifted = number.checked_mul(10).filter(|_| digit <= 9)?;
                if negative { shifted.checked_sub(digit) } else { shifted.checked_add(digit) }
            })
            .ok_or(Malformed("not an integer"))
    }
}

/// The binary form of a boolean.
pub(super) struct BinaryBool;
impl Integer for BinaryBool {
    #[inline]
    fn read(bytes: &[u8]) -> Result<i64, Malformed> {
        match bytes {
            [value @ 0..=1] => Ok(i64::from(*value)),
            _ => Err(Malformed("neither 0 nor 1")),
        }
    }
}

/// The text form of a boolean.
pub(super) struct TextBool;
impl Integer for TextBool {
    #[inline]
    fn read(bytes: &[u8]) -> Result<i64, Malformed> {
        match bytes {
            b"t" => Ok(1),
            b"f" => Ok(0),
            _ => Err(Malformed("neither t nor f")),
        }
    }
}

/// A number of `N` bytes, of the same type on both sides: big-endian there, little-endian here.
pub(super) fn swap<I: Integer, const N: usize>(_: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    match <[u8; N]>::try_from(bytes) {
        Ok(mut number) => {
            number.reverse();
            out.extend_from_slice(&number);
        }
        Err(_) => out.extend(I::read(bytes)?.to_le_bytes().into_iter().take(N)),
    }
    Ok(Fit::Exact)
}

/// An integer to an integer or decimal that `M` holds.
pub(super) fn integer<I: Integer, M: Magnitude>(params: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    let number = I::read(bytes)?;
    let magnitude = M::default().mul_add(0, number.unsigned_abs());
    Ok(put(params, Scaled::whole(number < 0, magnitude, params.limits.scale), out))
}

/// An integer to `Float64`.
pub(super) fn integer_to_double<I: Integer>(_: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    let number = I::read(bytes)?;
    put_double(number as f64, out);
    Ok(exactly(number as f64 as i128 == i128::from(number)))
}

/// An integer to `Float32`.
pub(super) fn integer_to_single<I: Integer>(_: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    let number = I::read(bytes)?;
    put_single(number as f32, out);
    Ok(exactly(number as f32 as i128 == i128::from(number)))
}

/// The text form of a number to `Float32`.
pub(super) fn parsed_single(_: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    let (number, fit) = nearest_single(bytes)?;
    put_single(number, out);
    Ok(fit)
}

/// The text form of a number to `Float64`.
pub(super) fn parsed_double(_: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    let (number, fit) = nearest_double(bytes)?;
    put_double(number, out);
    Ok(fit)
}

/// The binary form of a `numeric` to `Float32`.
pub(super) fn numeric_to_single(_: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    // The column's own tail is the scratch space: the text is written after the values, read, and replaced.
    let start = out.len();
    numeric::render(bytes, out)?;
    let (number, fit) = nearest_single(out.get(start..).unwrap_or_default())?;
    out.truncate(start);
    put_single(number, out);
    Ok(fit)
}

/// The binary form of a `numeric` to `Float64`.
pub(super) fn numeric_to_double(_: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    let start = out.len();
    numeric::render(bytes, out)?;
    let (number, fit) = nearest_double(out.get(start..).unwrap_or_default())?;
    out.truncate(start);
    put_double(number, out);
    Ok(fit)
}

/// The nearest number, which is never infinite unless the text says so.
fn nearest_single(text: &[u8]) -> Result<(f32, Fit), Malformed> {
    let number: f32 = parsed(text)?;
    let overflow = number.is_infinite() && !names_infinity(text);
    Ok((if overflow { f32::MAX.copysign(number) } else { number }, exactly(!overflow)))
}

/// As [`nearest_single`].
fn nearest_double(text: &[u8]) -> Result<(f64, Fit), Malformed> {
    let number: f64 = parsed(text)?;
    let overflow = number.is_infinite() && !names_infinity(text);
    Ok((if overflow { f64::MAX.copysign(number) } else { number }, exactly(!overflow)))
}

/// `real` to `Float32`.
pub(super) fn single(_: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    put_single(f32::from_be_bytes(bytes.try_into().map_err(|_| LENGTH)?), out);
    Ok(Fit::Exact)
}

/// `double precision` to `Float64`.
pub(super) fn double(_: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    put_double(read_double(bytes)?, out);
    Ok(Fit::Exact)
}

/// `real` to `Float64`.
pub(super) fn single_to_double(_: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    put_double(f64::from(f32::from_be_bytes(bytes.try_into().map_err(|_| LENGTH)?)), out);
    Ok(Fit::Exact)
}

/// The text form of `real` to `Float64`.
pub(super) fn text_single_to_double(_: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    put_double(f64::from(parsed::<f32>(bytes)?), out);
    Ok(Fit::Exact)
}

/// `double precision` to `Float32`.
pub(super) fn double_to_single(_: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    Ok(narrow(read_double(bytes)?, out))
}

/// The text form of `double precision` to `Float32`.
pub(super) fn text_double_to_single(_: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    Ok(narrow(parsed(bytes)?, out))
}

/// Rounding to single precision is what a `Float32` asks for; only leaving its range counts.
fn narrow(number: f64, out: &mut Vec<u8>) -> Fit {
    let single = number as f32;
    let overflow = single.is_infinite() && number.is_finite();
    put_single(if overflow { f32::MAX.copysign(single) } else { single }, out);
    exactly(!overflow)
}

fn parsed<T: std::str::FromStr>(bytes: &[u8]) -> Result<T, Malformed> {
    let text = std::str::from_utf8(bytes).ok();
    text.and_then(|text| text.parse().ok()).ok_or(Malformed("not a number"))
}

fn names_infinity(bytes: &[u8]) -> bool {
    bytes.last().is_some_and(u8::is_ascii_alphabetic)
}

/// There are many NaNs, whose text is the same: the same one is stored.
fn put_double(number: f64, out: &mut Vec<u8>) {
    let number = if number.is_nan() { f64::NAN } else { number };
    out.extend_from_slice(&number.to_le_bytes());
}

/// As [`put_double`].
fn put_single(number: f32, out: &mut Vec<u8>) {
    let number = if number.is_nan() { f32::NAN } else { number };
    out.extend_from_slice(&number.to_le_bytes());
}

fn exactly(exact: bool) -> Fit {
    if exact { Fit::Exact } else { Fit::Adjusted }
}

/// An integer's text.
pub(super) fn render<I: Integer>(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    out.extend_from_slice(itoa::Buffer::new().format(I::read(bytes)?).as_bytes());
    Ok(())
}

/// A boolean's text.
pub(super) fn render_bool(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    out.push(if BinaryBool::read(bytes)? == 1 { b't' } else { b'f' });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wider_type_reads_what_was_shorter() {
        assert_eq!(BinaryInt8::read(&(-5_i16).to_be_bytes()).ok(), Some(-5));
        assert_eq!(BinaryInt8::read(&(-70_000_i32).to_be_bytes()).ok(), Some(-70_000));
        assert_eq!(BinaryInt4::read(&i16::MIN.to_be_bytes()).ok(), Some(i64::from(i16::MIN)));
        assert!(
            BinaryInt4::read(&5_i64.to_be_bytes()).is_err()
                && BinaryInt2::read(&5_i32.to_be_bytes()).is_err()
        );
        assert!(BinaryInt8::read(&[1]).is_err() && BinaryOid::read(&[0, 1]).is_err());
        assert_eq!(read_double(&0.1_f32.to_be_bytes()).ok(), Some(f64::from(0.1_f32)));
        assert!(read_double(&[1, 2]).is_err());
    }
}
