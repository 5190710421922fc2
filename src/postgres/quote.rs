//! The one place that quotes for PostgreSQL.
//!
//! <https://www.postgresql.org/docs/current/sql-syntax-lexical.html>. A NUL byte can't be part of any
//! statement: the server refuses the message, so it needs no escape here.

use crate::model::TableId;

/// `name` as a quoted identifier, whatever it contains.
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `text` as a string constant that means the same whatever `standard_conforming_strings` is.
pub fn literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if doubled.contains('\\') {
        format!("E'{}'", doubled.replace('\\', "\\\\"))
    } else {
        format!("'{doubled}'")
    }
}

/// `text` as a string of the replication commands' own grammar, which knows no backslash escapes.
pub fn replication_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A table's name with its schema, both quoted.
pub fn table(table: &TableId) -> String {
    format!("{}.{}", ident(&table.schema), ident(&table.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_identifiers() {
        assert_eq!(ident("users"), "\"users\"");
        assert_eq!(ident("a\"b c"), "\"a\"\"b c\"");
        assert_eq!(table(&TableId::new("public", "Task\"Run")), "\"public\".\"Task\"\"Run\"");
    }

    #[test]
    fn quotes_literals() {
        assert_eq!(literal(""), "''");
        assert_eq!(literal("O'Hara"), "'O''Hara'");
        assert_eq!(literal("a\\'b"), "E'a\\\\''b'");
        assert_eq!(replication_literal("a\\'b"), "'a\\''b'");
    }
}
