//! Arrays and vectors.
//!
//! An array's binary form (`array_send`): dimensions, a flag, the element type, then length and lower bound
//! of each dimension, then the elements, each with its length (-1 for NULL). Its text form: `{1,NULL,"a b"}`,
//! nested for more dimensions, behind `[2:4]=` where lower bounds are not 1.
//! <https://www.postgresql.org/docs/current/arrays.html>

use super::{
    encoding::{Encoded, Fit, Malformed, Params, Render},
    float_text,
    string::put_rendered,
};

const MALFORMED: Malformed = Malformed("not an array");
/// PostgreSQL's `MAXDIM`.
const MOST_DIMENSIONS: usize = 6;

/// Called for each element in storage order; `None` is NULL.
pub(super) type Visit<'a> = dyn FnMut(Option<&[u8]>) -> Result<(), Malformed> + 'a;

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], Malformed> {
    let (word, rest) = bytes.split_first_chunk::<N>().ok_or(MALFORMED)?;
    *bytes = rest;
    Ok(*word)
}

/// Length and lower bound of each dimension, and the elements' bytes.
struct Shape<'a> {
    dimensions: [(usize, i32); MOST_DIMENSIONS],
    count: usize,
    elements: &'a [u8],
}

impl<'a> Shape<'a> {
    fn read(mut bytes: &'a [u8]) -> Result<Shape<'a>, Malformed> {
        let count = u32::from_be_bytes(take(&mut bytes)?) as usize;
        let _flags_and_element_type: [u8; 8] = take(&mut bytes)?;
        let mut dimensions = [(0, 1); MOST_DIMENSIONS];
        for dimension in dimensions.get_mut(..count).ok_or(MALFORMED)? {
            let length = u32::from_be_bytes(take(&mut bytes)?) as usize;
            if length == 0 {
                return Err(MALFORMED);
            }
            *dimension = (length, i32::from_be_bytes(take(&mut bytes)?));
        }
        Ok(Shape { dimensions, count, elements: bytes })
    }

    fn dimensions(&self) -> &[(usize, i32)] {
        self.dimensions.get(..self.count).unwrap_or_default()
    }

    fn next(elements: &mut &'a [u8]) -> Result<Option<&'a [u8]>, Malformed> {
        match i32::from_be_bytes(take(elements)?) {
            -1 => Ok(None),
            len => {
                let len = usize::try_from(len).map_err(|_| MALFORMED)?;
                let (element, rest) = elements.split_at_checked(len).ok_or(MALFORMED)?;
                *elements = rest;
                Ok(Some(element))
            }
        }
    }
}

/// Visits the elements of the binary form; answers whether there are several dimensions.
pub(super) fn visit_binary(bytes: &[u8], visit: &mut Visit<'_>) -> Result<bool, Malformed> {
    let mut shape = Shape::read(bytes)?;
    let mut expected = usize::from(shape.count > 0);
    for (length, _) in shape.dimensions() {
        expected = expected.checked_mul(*length).ok_or(MALFORMED)?;
    }
    while !shape.elements.is_empty() {
        expected = expected.checked_sub(1).ok_or(MALFORMED)?;
        visit(Shape::next(&mut shape.elements)?)?;
    }
    if expected > 0 { Err(MALFORMED) } else { Ok(shape.count > 1) }
}

/// Visits the elements of the text form; answers whether there are several dimensions. `scratch` is for
/// elements with escapes.
pub(super) fn visit_text(
    bytes: &[u8],
    scratch: &mut Vec<u8>,
    visit: &mut Visit<'_>,
) -> Result<bool, Malformed> {
    let mut rest = match bytes {
        [b'[', ..] => {
            let bounds = bytes.iter().position(|byte| *byte == b'=').ok_or(MALFORMED)?;
            bytes.get(bounds + 1..).unwrap_or_default()
        }
        _ => bytes,
    };
    if rest == b"{}" {
        return Ok(false);
    }
    let (mut depth, mut deepest) = (0_usize, 0);
    loop {
        while let [b'{', after @ ..] = rest {
            (depth, rest) = (depth + 1, after);
        }
        if depth == 0 || depth > MOST_DIMENSIONS {
            return Err(MALFORMED);
        }
        deepest = deepest.max(depth);
        rest = visit_text_element(rest, scratch, visit)?;
        while let [b'}', after @ ..] = rest {
            (depth, rest) = (depth.checked_sub(1).ok_or(MALFORMED)?, after);
        }
        match rest {
            [] if depth == 0 => return Ok(deepest > 1),
            [b',', after @ ..] if depth > 0 => rest = after,
            _ => return Err(MALFORMED),
        }
    }
}

/// Visits the element that `rest` begins with, answers what follows it.
fn visit_text_element<'a>(
    rest: &'a [u8],
    scratch: &mut Vec<u8>,
    visit: &mut Visit<'_>,
) -> Result<&'a [u8], Malformed> {
    let Some(mut quoted) = rest.strip_prefix(b"\"") else {
        let end = rest.iter().position(|byte| matches!(byte, b',' | b'}')).ok_or(MALFORMED)?;
        let (element, rest) = rest.split_at(end);
        match element {
            [] => return Err(MALFORMED),
            b"NULL" => visit(None)?,
            _ => visit(Some(element))?,
        }
        return Ok(rest);
    };
    scratch.clear();
    loop {
        let end = quoted.iter().position(|byte| matches!(byte, b'"' | b'\\')).ok_or(MALFORMED)?;
        let (plain, special) = quoted.split_at(end);
        scratch.extend_from_slice(plain);
        match special {
            [b'\\', escaped, rest @ ..] => {
                scratch.push(*escaped);
                quoted = rest;
            }
            [b'"', rest @ ..] => {
                visit(Some(scratch))?;
                return Ok(rest);
            }
            _ => return Err(MALFORMED),
        }
    }
}

/// The binary form as a string in PostgreSQL's text form.
pub(super) fn to_string(params: &Params, bytes: &[u8], out: &mut Vec<u8>) -> Encoded {
    put_rendered(out, |out| render(params.render, bytes, out))?;
    Ok(Fit::Exact)
}

fn render(element: Render, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let shape = Shape::read(bytes)?;
    let dimensions = shape.dimensions();
    if dimensions.is_empty() {
        out.extend_from_slice(b"{}");
        return Ok(());
    }
    if dimensions.iter().any(|(_, lower)| *lower != 1) {
        for (length, lower) in dimensions {
            let upper = i64::from(*lower) + *length as i64 - 1;
            out.push(b'[');
            out.extend_from_slice(itoa::Buffer::new().format(*lower).as_bytes());
            out.push(b':');
            out.extend_from_slice(itoa::Buffer::new().format(upper).as_bytes());
            out.push(b']');
        }
        out.push(b'=');
    }
    let mut elements = shape.elements;
    render_dimension(dimensions, &mut elements, element, out)?;
    if elements.is_empty() { Ok(()) } else { Err(MALFORMED) }
}

fn render_dimension(
    dimensions: &[(usize, i32)],
    elements: &mut &[u8],
    element: Render,
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    let Some(((length, _), inner)) = dimensions.split_first() else {
        return match Shape::next(elements)? {
            None => {
                out.extend_from_slice(b"NULL");
                Ok(())
            }
            Some(bytes) => render_element(element, bytes, out),
        };
    };
    out.push(b'{');
    for index in 0..*length {
        if index > 0 {
            out.push(b',');
        }
        render_dimension(inner, elements, element, out)?;
    }
    out.push(b'}');
    Ok(())
}

/// An element, in quotes where the text form would be read as something else.
fn render_element(element: Render, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let start = out.len();
    element(bytes, out)?;
    let text = out.get(start..).unwrap_or_default();
    let special = |byte: &u8| matches!(byte, b'"' | b'\\' | b'{' | b'}' | b',' | b' ' | b'\t'..=b'\r');
    if !text.is_empty() && !text.eq_ignore_ascii_case(b"NULL") && !text.iter().any(special) {
        return Ok(());
    }
    let escapes = text.iter().filter(|byte| needs_escape(**byte)).count();
    let mut from = out.len();
    let mut to = from + escapes + 2;
    out.resize(to, b'"');
    // From the end on, so that every byte moves once; the last byte is the closing quote already.
    to -= 1;
    while from > start {
        from -= 1;
        to -= 1;
        let byte = out.get(from).copied().unwrap_or_default();
        if let Some(place) = out.get_mut(to) {
            *place = byte;
        }
        if needs_escape(byte) {
            to -= 1;
            if let Some(place) = out.get_mut(to) {
                *place = b'\\';
            }
        }
    }
    if let Some(place) = out.get_mut(start) {
        *place = b'"';
    }
    Ok(())
}

fn needs_escape(byte: u8) -> bool {
    matches!(byte, b'"' | b'\\')
}

/// Visits the numbers of a vector's binary form: their count, an unused word, then each as `real`.
pub(super) fn visit_binary_vector(bytes: &[u8], visit: &mut Visit<'_>) -> Result<bool, Malformed> {
    for number in vector(bytes)? {
        visit(Some(number))?;
    }
    Ok(false)
}

fn vector(mut bytes: &[u8]) -> Result<&[[u8; 4]], Malformed> {
    let count = u16::from_be_bytes(take(&mut bytes)?);
    let _unused: [u8; 2] = take(&mut bytes)?;
    match bytes.as_chunks::<4>() {
        (numbers, []) if numbers.len() == usize::from(count) => Ok(numbers),
        _ => Err(Malformed("not a vector")),
    }
}

/// Visits the numbers of a vector's text form, `[1,2.5]`.
pub(super) fn visit_text_vector(bytes: &[u8], visit: &mut Visit<'_>) -> Result<bool, Malformed> {
    let numbers = bytes.strip_prefix(b"[").and_then(|bytes| bytes.strip_suffix(b"]"));
    let numbers = numbers.ok_or(Malformed("not a vector"))?;
    if !numbers.is_empty() {
        for number in numbers.split(|byte| *byte == b',') {
            visit(Some(number))?;
        }
    }
    Ok(false)
}

/// A vector's text.
pub(super) fn render_vector(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    out.push(b'[');
    for (index, number) in vector(bytes)?.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        float_text::render_single(number, out)?;
    }
    out.push(b']');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(text: &str) -> Result<(Vec<Option<String>>, bool), Malformed> {
        let mut found = Vec::new();
        let nested = visit_text(text.as_bytes(), &mut Vec::new(), &mut |element| {
            found.push(element.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap()));
            Ok(())
        })?;
        Ok((found, nested))
    }

    #[test]
    fn reads_the_text_form() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(elements("{}"), Ok((vec![], false)));
        assert_eq!(elements("{1,NULL,3}"), Ok((vec![some("1"), None, some("3")], false)));
        assert_eq!(
            elements(r#"{"a b","NULL","","q\"\\,{}"}"#),
            Ok((vec![some("a b"), some("NULL"), some(""), some(r#"q"\,{}"#)], false))
        );
        assert_eq!(elements("[0:1]={7,8}"), Ok((vec![some("7"), some("8")], false)));
        assert_eq!(elements("{{1,2},{3,NULL}}"), Ok((vec![some("1"), some("2"), some("3"), None], true)));
        for text in [
            "",
            "{",
            "}",
            "1",
            "{1",
            "{1}}",
            "{1,}",
            "{,1}",
            "{1}2",
            "{\"a}",
            "{\"a\\",
            "[1:2]",
            "{{{{{{{1}}}}}}}",
        ] {
            assert!(elements(text).is_err(), "{text}");
        }
    }

    fn binary(dimensions: &[(u32, i32)], elements: &[Option<&str>]) -> Vec<u8> {
        let mut bytes = (dimensions.len() as u32).to_be_bytes().to_vec();
        bytes.extend([0; 8]);
        for (length, lower) in dimensions {
            bytes.extend(length.to_be_bytes());
            bytes.extend(lower.to_be_bytes());
        }
        for element in elements {
            match element {
                None => bytes.extend((-1_i32).to_be_bytes()),
                Some(text) => {
                    bytes.extend((text.len() as u32).to_be_bytes());
                    bytes.extend(text.as_bytes());
                }
            }
        }
        bytes
    }

    fn shown(bytes: &[u8]) -> Result<String, Malformed> {
        let mut out = Vec::new();
        render(super::super::string::render_text, bytes, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn renders_the_binary_form() {
        assert_eq!(shown(&binary(&[], &[])).unwrap(), "{}");
        assert_eq!(
            shown(&binary(&[(5, 1)], &[Some("a"), None, Some("null"), Some(""), Some("x\"y\\")])).unwrap(),
            r#"{a,NULL,"null","","x\"y\\"}"#
        );
        assert_eq!(
            shown(&binary(&[(2, 0), (1, 5)], &[Some("a"), Some("b c")])).unwrap(),
            r#"[0:1][5:5]={{a},{"b c"}}"#
        );
        assert!(shown(&binary(&[(2, 1)], &[Some("a")])).is_err());
        assert!(shown(&binary(&[(1, 1)], &[Some("a"), Some("b")])).is_err());
    }

    #[test]
    fn binary_elements_are_as_many_as_declared() {
        let count = |bytes: &[u8]| {
            let mut count = 0;
            visit_binary(bytes, &mut |_| {
                count += 1;
                Ok(())
            })
            .map(|nested| (count, nested))
        };
        assert_eq!(count(&binary(&[], &[])), Ok((0, false)));
        assert_eq!(count(&binary(&[(2, 1)], &[None, Some("")])), Ok((2, false)));
        assert_eq!(count(&binary(&[(1, 1), (2, 1)], &[None, Some("")])), Ok((2, true)));
        assert_eq!(count(&binary(&[(3, 1)], &[None])), Err(MALFORMED));
        assert_eq!(count(&binary(&[], &[None])), Err(MALFORMED));
        assert_eq!(count(&binary(&[(1, 1); 7], &[None])), Err(MALFORMED));
    }
}
