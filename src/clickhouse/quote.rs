//! Quoting for ClickHouse: the one place that does it.
//!
//! <https://clickhouse.com/docs/sql-reference/syntax>

/// `name` as a quoted identifier, in backticks, whatever characters it has.
pub fn ident(name: &str) -> String {
    quoted(name, '`')
}

/// `text` as a string literal, in single quotes, whatever characters it has.
pub fn literal(text: &str) -> String {
    quoted(text, '\'')
}

/// `database.table`, both quoted.
pub fn table(database: &str, table: &str) -> String {
    format!("{}.{}", ident(database), ident(table))
}

/// Identifiers and strings have the same escapes; a NUL would otherwise end the statement in some places.
fn quoted(text: &str, quote: char) -> String {
    let mut sql = String::with_capacity(text.len() + 2);
    sql.push(quote);
    for character in text.chars() {
        match character {
            '\0' => sql.push_str("\\0"),
            '\\' => sql.push_str("\\\\"),
            _ if character == quote => sql.extend(['\\', quote]),
            _ => sql.push(character),
        }
    }
    sql.push(quote);
    sql
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_identifiers() {
        assert_eq!(ident("users"), "`users`");
        assert_eq!(ident("a`b\\c'd\0"), "`a\\`b\\\\c'd\\0`");
        assert_eq!(table("app", "TaskRun"), "`app`.`TaskRun`");
    }

    #[test]
    fn quotes_literals() {
        assert_eq!(literal("plain"), "'plain'");
        assert_eq!(literal("it's `q` \\ ü\0\n"), "'it\\'s `q` \\\\ ü\\0\n'");
    }
}
