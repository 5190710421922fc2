//! Whether a text that goes into a statement between parentheses can leave them.
//!
//! The databases define what an expression means. This module only ensures that it stays one expression, so
//! that nothing of it is read as another clause or statement. Where a lexer's reading depends on a version or
//! a setting, the text is refused.

use std::{iter::Peekable, str::Chars};

/// The database that evaluates the expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// A PostgreSQL condition.
    Postgres,
    /// A ClickHouse expression.
    ClickHouse,
}

const SELECT: &str = "must not have a sub-select (quote a column of the name select)";
const PARENTHESES: &str = "must have its parentheses in pairs";
const QUOTES: &str = "must have its quotes in pairs";
const BACKSLASH: &str = "must not have a backslash right before a quote; write a quote in a text twice";
const COMMENT: &str = "must not have comments";
const BLOCK_COMMENT: &str = "must not have comments in /* */; begin them with --";
const CHARACTER: &str =
    "must be one expression: outside quotes it can't have ; $ # \\ or a quotation mark that isn't ASCII";

/// Makes sure that `text` is within its parentheses from its first to its last character.
///
/// # Errors
/// What it must, or must not, have.
pub(super) fn stays_inside(text: &str, dialect: Dialect) -> Result<(), &'static str> {
    let mut depth = 0_usize;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            // A name in PostgreSQL, where a backslash is a letter.
            '"' if dialect == Dialect::Postgres => {
                characters.find(|next| *next == '"').ok_or(QUOTES)?;
            }
            '\'' | '"' => skip_quoted(&mut characters, character)?,
            '`' if dialect == Dialect::ClickHouse => skip_quoted(&mut characters, character)?,
            '(' => depth += 1,
            ')' => depth = depth.checked_sub(1).ok_or(PARENTHESES)?,
            '-' if characters.peek() == Some(&'-') => match dialect {
                // The line's end is added behind the text.
                Dialect::Postgres => {
                    while characters.next().is_some_and(|next| !matches!(next, '\n' | '\r')) {}
                }
                Dialect::ClickHouse => return Err(COMMENT),
            },
            '/' if matches!(characters.peek(), Some('*' | '/')) => match dialect {
                Dialect::Postgres => return Err(BLOCK_COMMENT),
                Dialect::ClickHouse => return Err(COMMENT),
            },
            ';' | '$' | '#' | '\\' | '\u{2018}'..='\u{201f}' => return Err(CHARACTER),
            letter if letter.is_alphanumeric() || letter == '_' => {
                let word = word(letter, &mut characters);
                if word.eq_ignore_ascii_case("select") {
                    return Err(SELECT);
                }
            }
            _ => {}
        }
    }
    if depth == 0 { Ok(()) } else { Err(PARENTHESES) }
}

/// Goes behind the quote that ends what `quote` has begun. A quote that is doubled ends one text and begins
/// another.
fn skip_quoted(characters: &mut Peekable<Chars<'_>>, quote: char) -> Result<(), &'static str> {
    let mut before = quote;
    for character in characters.by_ref() {
        match character {
            end if end == quote && before == '\\' => return Err(BACKSLASH),
            end if end == quote => return Ok(()),
            other => before = other,
        }
    }
    Err(QUOTES)
}

fn word(first: char, characters: &mut Peekable<Chars<'_>>) -> String {
    let mut word = String::from(first);
    while let Some(next) = characters.next_if(|next| next.is_alphanumeric() || *next == '_') {
        word.push(next);
    }
    word
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn takes_expressions() {
        for text in [
            "\"projectId\" IS NOT NULL -- all of them",
            "a = 'it''s; -- fine)' AND (b OR c)",
            "id > 5 -- first (\n AND id < 9",
            "name = 'select' AND \"select\" > 1 AND selected",
            "tags[1] = 'a' AND path ~ '^/x/*$'",
            "E'a\\tb' = c AND \"x\\\" = 1",
        ] {
            assert_eq!(stays_inside(text, Dialect::Postgres), Ok(()), "{text}");
        }
        for text in [
            "toYYYYMM(created_at)",
            "(region, toMonday(`created at`))",
            "created_at + INTERVAL 90 DAY",
            "concat('it''s', \"b\", '\\t--')",
            "a - -1 / 2",
        ] {
            assert_eq!(stays_inside(text, Dialect::ClickHouse), Ok(()), "{text}");
        }
    }

    #[test]
    fn refuses_what_could_leave_the_parentheses() {
        let both = [
            ("true) ; DROP TABLE t; --", PARENTHESES),
            ("true), TABLE other WHERE (true", PARENTHESES),
            ("(true", PARENTHESES),
            ("true; DROP TABLE t", CHARACTER),
            ("id IN (SELECT 1)", SELECT),
            ("id IN (\nsElEcT\n1)", SELECT),
            ("a = 'open", QUOTES),
            ("a = \"open", QUOTES),
            ("a = '\\') OR (b = '", BACKSLASH),
            ("a = E'\\') OR true --'", BACKSLASH),
            ("$$) ; DROP TABLE t; --$$", CHARACTER),
            ("a = \u{2018}) OR (\u{2019}", CHARACTER),
        ];
        for (text, message) in both {
            assert_eq!(stays_inside(text, Dialect::Postgres), Err(message), "{text}");
            assert_eq!(stays_inside(text, Dialect::ClickHouse), Err(message), "{text}");
        }
        for text in ["true /* ", "true // x"] {
            assert_eq!(stays_inside(text, Dialect::Postgres), Err(BLOCK_COMMENT), "{text}");
            assert_eq!(stays_inside(text, Dialect::ClickHouse), Err(COMMENT), "{text}");
        }
        // PostgreSQL ends a comment at a carriage return too.
        assert_eq!(stays_inside("true -- \r) OR (true", Dialect::Postgres), Err(PARENTHESES));
        for text in ["1 -- x", "1 # x", "`open", "`a\\`) ORDER BY tuple()`"] {
            assert!(stays_inside(text, Dialect::ClickHouse).is_err(), "{text}");
        }
    }

    proptest! {
        /// Whatever is accepted ends outside quotes and comments: the parenthesis behind it closes the one
        /// before it.
        #[test]
        fn what_follows_is_read_as_it_stands(text in "[a()'\"`\\\\ \n\r;$#/*-]{0,12}") {
            for dialect in [Dialect::Postgres, Dialect::ClickHouse] {
                if stays_inside(&text, dialect).is_ok() {
                    prop_assert_eq!(stays_inside(&format!("({text}\n)"), dialect), Ok(()));
                    prop_assert_eq!(stays_inside(&format!("({text}\n))"), dialect), Err(PARENTHESES));
                }
            }
        }
    }
}
