//! Whether ClickHouse's type `JSON` holds a value that PostgreSQL takes for JSON.
//!
//! The server refuses a whole block for one that it doesn't hold: it counts levels, decodes escapes, puts
//! numbers into 64 bits, and flattens an object into paths, of which each may come once.

use std::collections::HashSet;

/// Most objects and arrays inside each other.
const DEEPEST: usize = 1023;

/// Whether this JSON text is an object that the type holds.
pub(super) fn is_held(text: &[u8]) -> bool {
    let mut reader = Reader { rest: text };
    reader.spaces();
    reader.peek() == Some(b'{') && reader.object_alone(1).is_some()
}

/// What a member of an object is when the object is flattened.
enum Member {
    /// A path of its own.
    Leaf,
    /// Nothing: `null`, or an object, whose members are paths.
    Inner,
}

/// Reads a JSON text whose syntax was checked; each function gives `None` where the type doesn't hold what it
/// read.
struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    fn skip(&mut self, bytes: usize) {
        self.rest = self.rest.get(bytes..).unwrap_or_default();
    }

    fn spaces(&mut self) {
        let end = self.rest.iter().position(|byte| !byte.is_ascii_whitespace()).unwrap_or(self.rest.len());
        self.skip(end);
    }

    /// A separator, and the spaces around it.
    fn separator(&mut self) -> Option<u8> {
        self.spaces();
        let found = self.peek()?;
        self.skip(1);
        self.spaces();
        Some(found)
    }

    /// An object that is flattened on its own: the value, or one in an array.
    fn object_alone(&mut self, depth: usize) -> Option<()> {
        self.object(depth, &mut String::new(), &mut HashSet::new())
    }

    /// An object at `prefix`, whose leaves join `paths`.
    fn object(&mut self, depth: usize, prefix: &mut String, paths: &mut HashSet<String>) -> Option<()> {
        if depth > DEEPEST {
            return None;
        }
        let mut keys = HashSet::new();
        self.separator()?;
        if self.peek() == Some(b'}') {
            self.skip(1);
            return Some(());
        }
        loop {
            let key = self.string()?;
            self.separator()?;
            let length = prefix.len();
            if length > 0 {
                prefix.push('.');
            }
            prefix.push_str(&key);
            if !keys.insert(key) {
                return None;
            }
            if let Member::Leaf = self.member(depth, prefix, paths)?
                && !paths.insert(prefix.clone())
            {
                return None;
            }
            prefix.truncate(length);
            if self.separator()? != b',' {
                return Some(());
            }
        }
    }

    fn member(&mut self, depth: usize, prefix: &mut String, paths: &mut HashSet<String>) -> Option<Member> {
        match self.peek()? {
            b'{' => {
                self.object(depth + 1, prefix, paths)?;
                Some(Member::Inner)
            }
            b'n' => {
                self.skip(4);
                Some(Member::Inner)
            }
            _ => {
                self.element(depth)?;
                Some(Member::Leaf)
            }
        }
    }

    /// A value that is no member of an object that is flattened.
    fn element(&mut self, depth: usize) -> Option<()> {
        match self.peek()? {
            b'{' => self.object_alone(depth + 1),
            b'[' => self.array(depth + 1),
            b'"' => self.string().map(drop),
            b't' | b'n' => {
                self.skip(4);
                Some(())
            }
            b'f' => {
                self.skip(5);
                Some(())
            }
            _ => self.number(),
        }
    }

    fn array(&mut self, depth: usize) -> Option<()> {
        if depth > DEEPEST {
            return None;
        }
        self.separator()?;
        if self.peek() == Some(b']') {
            self.skip(1);
            return Some(());
        }
        loop {
            self.element(depth)?;
            if self.separator()? != b',' {
                return Some(());
            }
        }
    }

    /// Integers have to fit 64 bits, signed or not; other numbers a double.
    fn number(&mut self) -> Option<()> {
        let in_number = |byte: &u8| byte.is_ascii_digit() || b"+-.eE".contains(byte);
        let end = self.rest.iter().position(|byte| !in_number(byte)).unwrap_or(self.rest.len());
        let text = std::str::from_utf8(self.rest.get(..end)?).ok()?;
        let held = match text.contains(['.', 'e', 'E']) {
            true => text.parse::<f64>().is_ok_and(f64::is_finite),
            false => text.parse::<u64>().is_ok() || text.parse::<i64>().is_ok(),
        };
        self.skip(end);
        held.then_some(())
    }

    /// A string without its escapes, which have to be whole characters.
    fn string(&mut self) -> Option<String> {
        self.skip(1);
        let mut decoded = Vec::new();
        loop {
            let end = self.rest.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
            decoded.extend_from_slice(self.rest.get(..end)?);
            let escapes = self.rest.get(end) == Some(&b'\\');
            self.skip(end + 1);
            if !escapes {
                return String::from_utf8(decoded).ok();
            }
            let character = self.escape()?;
            decoded.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }

    fn escape(&mut self) -> Option<char> {
        let letter = self.peek()?;
        self.skip(1);
        Some(match letter {
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let first = self.unit()?;
                let mut units = vec![first];
                // A pair of surrogates is one character.
                if (0xD800..0xDC00).contains(&first) && self.rest.starts_with(b"\\u") {
                    self.skip(2);
                    units.push(self.unit()?);
                }
                char::decode_utf16(units).next()?.ok()?
            }
            other => char::from(other),
        })
    }

    fn unit(&mut self) -> Option<u16> {
        let digits = std::str::from_utf8(self.rest.get(..4)?).ok()?;
        let unit = u16::from_str_radix(digits, 16).ok()?;
        self.skip(4);
        Some(unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a real server took and refused.
    #[test]
    fn what_the_server_refuses_is_not_held() {
        let nested = |open: &str, close: &str, levels: usize| {
            format!("{{\"a\":{}1{}}}", open.repeat(levels - 1), close.repeat(levels - 1))
        };
        let (deep, deep_arrays) = (nested("{\"a\":", "}", 1023), nested("[", "]", 1023));
        for text in [
            r#"{"a":"\ud83d\ude00"}"#,
            r#"{"a":"\u0000 \" \\ \/ \n"}"#,
            r#"{"n": 18446744073709551615, "m": -9223372036854775808, "z": -0}"#,
            r#"{"e": 1e308, "f": 1e-400, "g": 123456789012345678901234567890.5, "h": 1E5}"#,
            r#" { "" : 1 , "x" : [ ] , "y" : { } } "#,
            r#"{"a":{"b":null},"a.b":2}"#,
            r#"{"a.b":{"c":1},"a":{"b":{"d":1}}}"#,
            r#"{"a":1,"a.b":2}"#,
            r#"{"a":{"b":{}},"a.b":1}"#,
            r#"{"a":[1,"x",null,true,false,{"b":1},{"b":1},[2,[3]]]}"#,
            &deep,
            &deep_arrays,
        ] {
            assert!(is_held(text.as_bytes()), "{text}");
        }
        let (deep, deep_arrays) = (nested("{\"a\":", "}", 1024), nested("[", "]", 1024));
        for text in [
            "[1]",
            "null",
            "1",
            r#"{"a":"\ud83d"}"#,
            r#"{"a":"\ud83dx"}"#,
            r#"{"a":"\udc00"}"#,
            r#"{"a":"\ud83d\u0041"}"#,
            r#"{"\ud83d":1}"#,
            r#"{"n": 18446744073709551616}"#,
            r#"{"n": [-9223372036854775809]}"#,
            r#"{"e": 1e400}"#,
            r#"{"e": 1.7976931348623159e308}"#,
            r#"{"a":1,"a":2}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"a":{},"a":{}}"#,
            r#"{"a":null,"a":null}"#,
            r#"{"a":{"b":1},"a.b":2}"#,
            r#"{"a":[{"b":1,"b":2}]}"#,
            r#"{"a":[{"b":{"c":1},"b.c":2}]}"#,
            &deep,
            &deep_arrays,
        ] {
            assert!(!is_held(text.as_bytes()), "{text}");
        }
    }
}
