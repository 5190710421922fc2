//! Reading ClickHouse's expressions as far as is needed to say which names they use: those of a Mirror, and
//! those that the server shows of a table.

/// A piece of an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// A keyword, a function or a column, as it stands.
    Word(String),
    /// A quoted identifier, without its quotes.
    Quoted(String),
    /// A string, without its quotes.
    Text(String),
    /// Any other character.
    Symbol(char),
}

impl Token {
    /// Whether it is this keyword, which the server writes in capitals.
    pub(super) fn is(&self, keyword: &str) -> bool {
        matches!(self, Token::Word(word) if word.eq_ignore_ascii_case(keyword))
    }

    /// The name of a column that it may be.
    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Token::Word(name) | Token::Quoted(name) => Some(name),
            Token::Text(_) | Token::Symbol(_) => None,
        }
    }
}

/// The pieces of an expression. Comments are none.
pub(super) fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let after = &rest[first.len_utf8()..];
        rest = match first {
            '\'' => {
                let (text, after) = quoted(after, first);
                tokens.push(Token::Text(text));
                after
            }
            '`' | '"' => {
                let (name, after) = quoted(after, first);
                tokens.push(Token::Quoted(name));
                after
            }
            '-' if after.starts_with('-') => after.find('\n').map_or("", |end| &after[end..]),
            '/' if after.starts_with('*') => after.find("*/").map_or("", |end| &after[end + 2..]),
            _ if is_word(first) => {
                let end = rest.find(|character| !is_word(character)).unwrap_or(rest.len());
                tokens.push(Token::Word(rest[..end].to_owned()));
                &rest[end..]
            }
            _ if first.is_whitespace() => after,
            _ => {
                tokens.push(Token::Symbol(first));
                after
            }
        };
    }
    tokens
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// What stands up to the closing quote, and what follows it. A quote is written twice or behind a backslash.
fn quoted(text: &str, quote: char) -> (String, &str) {
    let mut content = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        if character == '\\' {
            content.extend(characters.next().map(|(_, letter)| unescaped(letter)));
        } else if character == quote {
            let after = &text[at + quote.len_utf8()..];
            if !after.starts_with(quote) {
                return (content, after);
            }
            content.push(quote);
            characters.next();
        } else {
            content.push(character);
        }
    }
    (content, "")
}

/// What a letter stands for after a backslash.
fn unescaped(letter: char) -> char {
    match letter {
        '0' => '\0',
        'a' => '\u{7}',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'v' => '\u{b}',
        other => other,
    }
}

/// The parts of a list, separated by commas outside of all parentheses.
pub(super) fn list(tokens: &[Token]) -> Vec<&[Token]> {
    let mut depth = 0_usize;
    let mut parts: Vec<_> = tokens
        .split(|token| {
            match token {
                Token::Symbol('(' | '[' | '{') => depth += 1,
                Token::Symbol(')' | ']' | '}') => depth = depth.saturating_sub(1),
                _ => {}
            }
            depth == 0 && *token == Token::Symbol(',')
        })
        .collect();
    parts.retain(|part| !part.is_empty());
    parts
}

/// Whether a column is used: by its name, or by one of its subcolumns.
pub(super) fn uses(tokens: &[Token], column: &str) -> bool {
    let whole = |token: &Token| {
        token.name().is_some_and(|name| {
            name == column || name.strip_prefix(column).is_some_and(|rest| rest.starts_with('.'))
        })
    };
    if tokens.iter().any(whole) {
        return true;
    }
    // A name with a dot can be written in parts.
    let parts: Vec<&str> = column.split('.').collect();
    parts.len() > 1
        && tokens.windows(2 * parts.len() - 1).any(|window| {
            window.iter().enumerate().all(|(index, token)| match index % 2 {
                0 => token.name() == parts.get(index / 2).copied(),
                _ => *token == Token::Symbol('.'),
            })
        })
}

/// Which rules of a TTL take rows away or change them; those that move or compress parts do no harm.
pub(super) fn deleting_rules(ttl: &[Token]) -> Vec<&[Token]> {
    let keeps = |rule: &[Token]| {
        let moves = rule
            .windows(2)
            .any(|pair| matches!(pair, [to, what] if to.is("TO") && (what.is("DISK") || what.is("VOLUME"))));
        moves || rule.iter().any(|token| token.is("RECOMPRESS"))
    };
    list(ttl).into_iter().filter(|rule| !keeps(rule)).collect()
}

/// What decides which of a table's rows meet in merges and which go, from the statement that the server shows
/// for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Clauses {
    pub(super) partition_by: Vec<Token>,
    pub(super) order_by: Vec<Token>,
    pub(super) ttl: Vec<Token>,
    /// By column.
    pub(super) column_ttls: Vec<(String, Vec<Token>)>,
    pub(super) settings: Vec<(String, String)>,
}

impl Clauses {
    /// Reads `CREATE TABLE name (…) ENGINE = … PARTITION BY … ORDER BY … TTL … SETTINGS …`.
    pub(super) fn of_create_query(sql: &str) -> Clauses {
        let tokens = tokens(sql);
        let Some(open) = tokens.iter().position(|token| *token == Token::Symbol('(')) else {
            return Clauses::default();
        };
        let close = closing(&tokens, open);
        let columns = tokens.get(open + 1..close).unwrap_or_default();
        let rest = tokens.get(close..).unwrap_or_default();
        Clauses {
            partition_by: without_parentheses(clause(rest, "PARTITION")).to_vec(),
            order_by: without_parentheses(clause(rest, "ORDER")).to_vec(),
            ttl: without_parentheses(clause(rest, "TTL")).to_vec(),
            column_ttls: list(columns).into_iter().filter_map(column_ttl).collect(),
            settings: list(clause(rest, "SETTINGS")).into_iter().filter_map(setting).collect(),
        }
    }
}

/// A whole expression without the parentheses around it, which the server keeps as they were written.
pub(super) fn without_parentheses(tokens: &[Token]) -> &[Token] {
    match tokens {
        [Token::Symbol('('), inner @ .., Token::Symbol(')')] if closing(tokens, 0) == tokens.len() - 1 => {
            without_parentheses(inner)
        }
        other => other,
    }
}

fn setting(tokens: &[Token]) -> Option<(String, String)> {
    let [name, Token::Symbol('='), value @ ..] = tokens else { return None };
    let value = value.iter().map(|token| match token {
        Token::Word(text) | Token::Quoted(text) | Token::Text(text) => text.clone(),
        Token::Symbol(symbol) => symbol.to_string(),
    });
    Some((name.name()?.to_owned(), value.collect()))
}

fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0_usize;
    for (index, token) in tokens.iter().enumerate().skip(open) {
        match token {
            Token::Symbol('(') => depth += 1,
            Token::Symbol(')') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return index;
        }
    }
    tokens.len()
}

/// The TTL in a column's declaration: the server quotes its name, so that the word can't be that.
fn column_ttl(declaration: &[Token]) -> Option<(String, Vec<Token>)> {
    let name = declaration.first()?.name()?.to_owned();
    let at = declaration.iter().skip(1).position(|token| token.is("TTL"))? + 2;
    Some((name, declaration.get(at..)?.to_vec()))
}

/// What stands behind a clause's keyword up to the next clause. An expression has at least one token, which
/// may look like a keyword.
fn clause<'a>(tokens: &'a [Token], wanted: &str) -> &'a [Token] {
    const CLAUSES: [&str; 8] =
        ["ENGINE", "PARTITION", "PRIMARY", "ORDER", "SAMPLE", "TTL", "SETTINGS", "COMMENT"];
    let (mut depth, mut begin) = (0_usize, None);
    let mut index = 0;
    while let Some(token) = tokens.get(index) {
        match token {
            Token::Symbol('(') => depth += 1,
            Token::Symbol(')') => depth = depth.saturating_sub(1),
            _ => {}
        }
        let keyword = CLAUSES.iter().find(|keyword| depth == 0 && token.is(keyword));
        if keyword.is_some() {
            if let Some(begin) = begin {
                return tokens.get(begin..index).unwrap_or_default();
            }
            let by = tokens.get(index + 1).is_some_and(|next| next.is("BY") || next.is("KEY"));
            let first = index + if by { 2 } else { 1 };
            if keyword == Some(&wanted) {
                begin = Some(first);
            }
            // The expression's first token, unless it opens a parenthesis, which has to be counted.
            index = first + usize::from(tokens.get(first).is_some_and(|token| token.name().is_some()));
            continue;
        }
        index += 1;
    }
    begin.and_then(|begin| tokens.get(begin..)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(expression: &str, column: &str) -> bool {
        uses(&tokens(expression), column)
    }

    #[test]
    fn names_are_found_however_they_are_written() {
        for expression in [
            "toYYYYMM(created)",
            "toYYYYMM(`created`)",
            "toYYYYMM(\"created\")",
            "created.year",
            "t.created",
            "1 /* x */ + created -- y",
            "concat('it''s', created)",
            "concat('\\'', created)",
        ] {
            assert!(used(expression, "created"), "{expression}");
        }
        for expression in
            ["toYYYYMM(created_at)", "'created'", "1 -- created", "/* created */ 1", "recreated"]
        {
            assert!(!used(expression, "created"), "{expression}");
        }
        assert!(used("f(`a\\`b`)", "a`b") && used("f(\"a\"\"b\")", "a\"b") && used("f(`a``b`)", "a`b"));
        assert!(
            used("f(label.en)", "label.en")
                && used("f(`label.en`)", "label.en")
                && !used("f(label.de)", "label.en")
        );
        assert!(used("v.null", "v") && used("`v.null`", "v"));
    }

    #[test]
    fn a_statement_s_ttls_are_found() {
        let sql = "CREATE TABLE app.u (`id` Int64, `TTL` Array(Tuple(a Int8, b Int8)) DEFAULT f('TTL', x) CODEC(Delta(8), LZ4) TTL created + \
                   toIntervalDay(1), `p` Decimal(9, 2), `at` DateTime COMMENT 'TTL (' TTL at + 1) ENGINE = ReplacingMergeTree(v, d) PARTITION BY \
                   TTL PRIMARY KEY (id, TTL) ORDER BY TTL TTL created + toIntervalDay(1) TO DISK 'default', at + toIntervalMonth(1) WHERE (id > 3) \
                   AND (p = 'x') SETTINGS index_granularity = 8192";
        let found = Clauses::of_create_query(sql);
        let names: Vec<&str> = found.column_ttls.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["TTL", "at"]);
        assert!(uses(&found.column_ttls[0].1, "created") && !uses(&found.column_ttls[0].1, "x"));
        assert_eq!(found.partition_by, tokens("TTL"));
        assert_eq!(found.settings, [("index_granularity".to_owned(), "8192".to_owned())]);
        assert_eq!(list(&found.ttl).len(), 2);
        let rules = deleting_rules(&found.ttl);
        assert_eq!(rules.len(), 1);
        assert!(uses(rules[0], "at") && uses(rules[0], "p") && !uses(rules[0], "created"));
        let none = "CREATE TABLE app.u (`id` Int64) ENGINE = ReplacingMergeTree PARTITION BY (toYYYYMM(at)) ORDER BY TTL SETTINGS a = 'Ne,ver'";
        let found = Clauses::of_create_query(none);
        assert_eq!((found.ttl, found.column_ttls), (Vec::new(), Vec::new()));
        assert_eq!((found.partition_by, found.order_by), (tokens("toYYYYMM(at)"), tokens("TTL")));
        assert_eq!(found.settings, [("a".to_owned(), "Ne,ver".to_owned())]);
    }

    #[test]
    fn lists_are_split_outside_of_parentheses() {
        let tokens = tokens("a, f(b, c), [d, e]");
        assert_eq!(list(&tokens).len(), 3);
        assert!(list(&[]).is_empty());
    }
}
