//! Strings, and what is stored as one: text, bytes, UUIDs, JSON, network addresses.

use std::net::{IpAddr, Ipv4Addr};

use super::{
    encoding::{Encoded, Fit, Malformed, Params},
    json,
};

/// Appends an unsigned LEB128 number, which strings and arrays begin with.
#[inline]
pub(super) fn put_varint(mut number: usize, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

#[inline]
fn put_string(bytes: &[u8], out: &mut Vec<u8>) {
    put_varint(bytes.len(), out);
    out.extend_from_slice(bytes);
}

/// Appends a string whose length is known only once it is written.
pub(super) fn put_rendered(
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    let start = out.len();
    // Most of them are shorter than 128 bytes, whose length takes one.
    out.push(0);
    write(out)?;
    let len = out.len() - start - 1;
    if let (0..0x80, Some(first)) = (len, out.get_mut(start)) {
        *first = len as u8;
        return Ok(());
    }
    let end = out.len();
    put_varint(len, out);
    let prefix = out.len() - end;
    // The length now follows the text: rotate it to the front, and drop the byte that was kept for it.
    if let Some(tail) = out.get_mut(start + 1..) {
        tail.rotate_right(prefix);
    }
    out.remove(start);
    Ok(())
}

/// The bytes as they are.
pub(super) fn verbatim(_: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    put_string(bytes, out);
    Ok(Fit::Exact)
}

/// The text of a binary form.
pub(super) fn rendered(params: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    put_rendered(out, |out| (params.render)(bytes, out))?;
    Ok(Fit::Exact)
}

/// `jsonb`'s binary form: a version byte before the text.
pub(super) fn jsonb(_: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    put_string(jsonb_text(bytes)?, out);
    Ok(Fit::Exact)
}

fn jsonb_text(bytes: &[u8]) -> Result<&[u8], Malformed> {
    match bytes {
        [1, text @ ..] => Ok(text),
        _ => Err(Malformed("unknown version")),
    }
}

/// `json` to the type `JSON`, which holds objects only, and not all of them.
pub(super) fn json_object(_: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    let held = json::is_held(bytes);
    put_string(if held { bytes } else { b"{}" }, out);
    Ok(if held { Fit::Exact } else { Fit::Adjusted })
}

/// `jsonb`'s binary form to the type `JSON`.
pub(super) fn jsonb_object(params: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    json_object(params, jsonb_text(bytes)?, out)
}

/// `bytea`'s text form, `\x` and hexadecimal digits, to the bytes.
pub(super) fn unhex(_: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    let (pairs, rest) = bytes.strip_prefix(b"\\x").unwrap_or(b"0").as_chunks::<2>();
    if !rest.is_empty() {
        return Err(Malformed("not hexadecimal"));
    }
    put_varint(pairs.len(), out);
    for [high, low] in pairs {
        out.push(nibble(*high)? << 4 | nibble(*low)?);
    }
    Ok(Fit::Exact)
}

fn nibble(digit: u8) -> Result<u8, Malformed> {
    char::from(digit).to_digit(16).map(|value| value as u8).ok_or(Malformed("not hexadecimal"))
}

/// ClickHouse keeps a UUID as two little-endian halves.
fn put_uuid(mut uuid: [u8; 16], out: &mut Vec<u8>) {
    for half in uuid.as_chunks_mut::<8>().0 {
        half.reverse();
    }
    out.extend_from_slice(&uuid);
}

/// `uuid`'s binary form.
pub(super) fn binary_uuid(_: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    put_uuid(bytes.try_into().map_err(|_| Malformed("wrong length"))?, out);
    Ok(Fit::Exact)
}

/// `uuid`'s text form.
pub(super) fn text_uuid(_: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    let mut uuid = [0; 16];
    let mut digits = bytes.iter().enumerate().filter(|(at, _)| !matches!(at, 8 | 13 | 18 | 23));
    let dashes = [8, 13, 18, 23].iter().all(|at| bytes.get(*at) == Some(&b'-'));
    if bytes.len() != 36 || !dashes {
        return Err(Malformed("not a UUID"));
    }
    for byte in &mut uuid {
        let (Some((_, high)), Some((_, low))) = (digits.next(), digits.next()) else {
            return Err(Malformed("not a UUID"));
        };
        *byte = nibble(*high)? << 4 | nibble(*low)?;
    }
    put_uuid(uuid, out);
    Ok(Fit::Exact)
}

/// The address of `inet`'s text form, and whether it is one host's.
fn address(bytes: &[u8]) -> Result<(IpAddr, bool), Malformed> {
    let text = std::str::from_utf8(bytes).map_err(|_| Malformed("not an address"))?;
    let (address, bits) = text.split_once('/').unwrap_or((text, ""));
    let address: IpAddr = address.parse().map_err(|_| Malformed("not an address"))?;
    // `cidr` shows the length of a host's mask, `inet` leaves it out.
    let host = if address.is_ipv4() { "32" } else { "128" };
    Ok((address, bits.is_empty() || bits == host))
}

/// `inet` to `IPv4`; an IPv6 address becomes 0.0.0.0, the nearest there is.
pub(super) fn ipv4(_: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    let (address, host) = address(bytes)?;
    let (address, host) = match address {
        IpAddr::V4(address) => (address, host),
        IpAddr::V6(address) => (address.to_ipv4_mapped().unwrap_or(Ipv4Addr::UNSPECIFIED), false),
    };
    out.extend_from_slice(&u32::from(address).to_le_bytes());
    Ok(if host { Fit::Exact } else { Fit::Adjusted })
}

/// `inet` to `IPv6`; an IPv4 address in its mapped form.
pub(super) fn ipv6(_: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    let (address, host) = address(bytes)?;
    let address = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    out.extend_from_slice(&address.octets());
    Ok(if host { Fit::Exact } else { Fit::Adjusted })
}

/// Text as it is.
pub(super) fn render_text(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    out.extend_from_slice(bytes);
    Ok(())
}

/// `jsonb`'s text.
pub(super) fn render_jsonb(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    render_text(jsonb_text(bytes)?, out)
}

/// `bytea`'s text.
pub(super) fn render_hex(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    out.extend_from_slice(b"\\x");
    put_hex(bytes, out);
    Ok(())
}

/// A UUID's text.
pub(super) fn render_uuid(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let start = out.len();
    if bytes.len() != 16 {
        return Err(Malformed("wrong length"));
    }
    put_hex(bytes, out);
    for at in [20, 16, 12, 8] {
        out.insert(start + at, b'-');
    }
    Ok(())
}

fn put_hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    let digit = |value: u8| DIGITS[usize::from(value & 0x0F)];
    for byte in bytes {
        out.extend_from_slice(&[digit(byte >> 4), digit(*byte)]);
    }
}
