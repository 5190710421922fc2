//! ClickHouse's exceptions as text: reading them, and keeping values of rows out of what is shown.

use super::policy::{self, Quotes};

/// Most bytes of a server's message that are kept.
const LONGEST: usize = 1000;

/// The words of ClickHouse's own with which messages about a value begin; what follows them may be the value.
const OWN_WORDS: [&str; 58] = [
    "a",
    "an",
    "and",
    "array",
    "as",
    "at",
    "be",
    "bool",
    "boolean",
    "by",
    "cannot",
    "column",
    "convert",
    "converting",
    "data",
    "date",
    "datetime",
    "decimal",
    "division",
    "element",
    "enum",
    "expected",
    "failed",
    "float",
    "for",
    "from",
    "here",
    "in",
    "inner",
    "input",
    "insert",
    "integer",
    "into",
    "invalid",
    "is",
    "json",
    "math",
    "not",
    "null",
    "number",
    "object",
    "of",
    "out",
    "overflow",
    "parse",
    "parsing",
    "passed",
    "quoted",
    "range",
    "read",
    "string",
    "text",
    "to",
    "too",
    "type",
    "uuid",
    "value",
    "zero",
];

/// Number and message of `Code: 60. DB::Exception: … (UNKNOWN_TABLE) (version …)`. Where the statement had to
/// do with rows, a message that may quote one of their values is reduced to what is certainly the server's
/// own.
pub(super) fn parse(answer: &str, quotes: Quotes) -> Option<(i32, String)> {
    let rest = answer.trim_start().strip_prefix("Code: ")?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let code = rest[..digits].parse().ok()?;
    let message = rest[digits..].trim_start_matches('.').trim_start().trim_start_matches("DB::Exception: ");
    let message = message.rfind(" (version ").map_or(message, |end| &message[..end]);
    let message = without_hints(message);
    let message = message.trim_end().trim_end_matches('.');
    let message = match policy::may_quote_values(code, quotes) {
        true => without_values(code, message),
        false => shortened(message, LONGEST),
    };
    Some((code, message))
}

/// How the server begins to guess what was meant.
const HINTS: [&str; 2] = ["maybe you meant", "did you mean"];

/// Takes out the server's guesses: it looks for similar names everywhere, so that they may be those of other
/// users' databases and tables.
fn without_hints(message: &str) -> String {
    let (mut kept, mut rest) = (String::new(), message);
    loop {
        let lower = rest.to_ascii_lowercase();
        let Some(at) = HINTS.iter().filter_map(|hint| lower.find(hint)).min() else {
            kept.push_str(rest);
            return kept;
        };
        let before = rest[..at].trim_end();
        kept.push_str(before.strip_suffix(['.', ',', ':', ';', '(']).unwrap_or(before));
        rest = behind_hint(&rest[at..]);
    }
}

/// What follows a guess: a list in brackets, or names with a question mark behind them, which may hold any
/// character themselves. Of one that has neither, only the code's name.
fn behind_hint(hint: &str) -> &str {
    let end = hint.rfind([']', '?']).map(|end| end + 1).or_else(|| hint.rfind(" ("));
    end.and_then(|end| hint.get(end..)).unwrap_or_default()
}

/// What is certainly not a value: how the message begins, a constraint's name, a view's, and the code's.
fn without_values(code: i32, message: &str) -> String {
    let own = |word: &&str| OWN_WORDS.contains(&word.to_ascii_lowercase().as_str());
    let words = message.split([' ', ':']).take_while(own);
    let mut parts: Vec<String> = vec![words.collect::<Vec<_>>().join(" ")];
    let constraint = message.strip_prefix("Constraint `").and_then(|rest| rest.split('`').next());
    parts.extend(constraint.map(|name| format!("constraint `{name}` is violated")));
    let view = message.rsplit_once("while pushing to view ").map(|(_, rest)| rest);
    let in_name = |c: char| c.is_ascii_alphanumeric() || "_.`$-".contains(c);
    parts.extend(view.map(|rest| {
        let end = rest.find(|c| !in_name(c)).unwrap_or(rest.len());
        format!("while pushing to view {}", rest[..end].trim_end_matches('.'))
    }));
    parts.extend(policy::name_of(code).map(|name| format!("({name})")));
    parts.retain(|part| !part.is_empty());
    match parts.is_empty() {
        true => "the server's log has its message".to_owned(),
        false => parts.join(" "),
    }
}

/// At most `most` bytes, on a character's boundary, on one line.
fn shortened(text: &str, most: usize) -> String {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    let mut line: String = text[..end].split_whitespace().collect::<Vec<_>>().join(" ");
    if end < text.len() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_exceptions() {
        let text = "Code: 60. DB::Exception: Unknown table expression identifier 'app.t' in scope SELECT * FROM app.t. \
                    Maybe you meant app.d?. (UNKNOWN_TABLE) (version 26.7.2.1)\n";
        let (code, message) = parse(text, Quotes::Rows).unwrap();
        assert_eq!(code, 60);
        assert_eq!(
            message,
            "Unknown table expression identifier 'app.t' in scope SELECT * FROM app.t. (UNKNOWN_TABLE)"
        );
        assert_eq!(parse("Code: 516", Quotes::Rows).unwrap().0, 516);
        let keeper = "Code: 999. Coordination::Exception: lost (KEEPER_EXCEPTION)";
        assert_eq!(parse(keeper, Quotes::Rows).unwrap().0, 999);
        for text in ["", "502 Bad Gateway", "<html>", "Code: x. DB::Exception"] {
            assert_eq!(parse(text, Quotes::Rows), None, "{text}");
        }
        let long = format!("Code: 60. DB::Exception: {}", "ü".repeat(5000));
        assert!(parse(&long, Quotes::Rows).unwrap().1.len() < 1100);
    }

    #[test]
    fn guesses_are_not_shown() {
        for (said, shown) in [
            (
                "Table app.t does not exist. Maybe you meant other.secret?. (X)",
                "Table app.t does not exist. (X)",
            ),
            ("Unknown `x`. Maybe you meant: `o'?`.`secret`?. (X)", "Unknown `x`. (X)"),
            ("Unknown `x` in f(']'). Maybe you meant: ['y']', 'secret']. (X)", "Unknown `x` in f(']'). (X)"),
            ("Missing 'x', maybe you meant: 'secret': While processing x. (X)", "Missing 'x' (X)"),
            ("Setting a: Maybe you meant ['secret', 'c']", "Setting a"),
            (
                "No x. Did you mean secret?: while pushing to view app.mv. (X)",
                "No x: while pushing to view app.mv. (X)",
            ),
            ("nothing", "nothing"),
        ] {
            let shown_now = without_hints(said);
            assert!(!shown_now.contains("secret"), "{shown_now}");
            assert_eq!(shown_now, shown);
        }
    }

    #[test]
    fn keeps_values_out_of_messages() {
        let of = |text: &str| parse(&format!("Code: {text} (version 26.7.2.1)"), Quotes::Rows).unwrap().1;
        for (text, shown) in [
            (
                "469. DB::Exception: Constraint `c1` for table app.z is violated at row 1. Expression: (a > 5). Column values: \
                 a = 3. (VIOLATED_CONSTRAINT)",
                "constraint `c1` is violated (VIOLATED_CONSTRAINT)",
            ),
            (
                "6. DB::Exception: Cannot parse string 'geh\\'eim' as UInt8: syntax error: while pushing to view app.mv \
                 (0a-b). (CANNOT_PARSE_TEXT)",
                "Cannot parse string while pushing to view app.mv (CANNOT_PARSE_TEXT)",
            ),
            (
                "117. DB::Exception: Cannot parse JSON object here: {\"n\": 12345678901234567890123}: (INCORRECT_DATA)",
                "Cannot parse JSON object here (INCORRECT_DATA)",
            ),
            (
                "70. DB::Exception: Cannot convert string secret to type UInt8",
                "Cannot convert string (CANNOT_CONVERT_TYPE)",
            ),
            ("36. DB::Exception: Invalid time zone: Secret/City. (BAD_ARGUMENTS)", "Invalid (BAD_ARGUMENTS)"),
            ("49. DB::Exception: secret. (LOGICAL_ERROR)", "(LOGICAL_ERROR)"),
            ("123456. DB::Exception: secret", "the server's log has its message"),
        ] {
            assert_eq!(of(text), shown);
        }
    }

    #[test]
    fn a_statement_without_rows_has_its_whole_message() {
        let text = "Code: 27. DB::Exception: Cannot parse input: expected 'eof' before: 'abc'. (CANNOT_PARSE_INPUT_ASSERTION_FAILED)";
        let (_, message) = parse(text, Quotes::Statement).unwrap();
        assert_eq!(
            message,
            "Cannot parse input: expected 'eof' before: 'abc'. (CANNOT_PARSE_INPUT_ASSERTION_FAILED)"
        );
    }
}
