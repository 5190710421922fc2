//! Guards the words: what CONTRIBUTING.md and docs/glossary.md have replaced does not come back, and comments
//! fit the screen.

use std::{
    fs,
    path::{Path, PathBuf},
};

use regex::Regex;

/// Retired words and what to write. They are searched in any case, with `_` read as a blank, so that a
/// pattern finds `let_go` too. A pattern leaves out what is meant otherwise.
const WORDS: &[(&str, &str)] = &[
    (r"\b(tell|tells|telling|told)\b", "report, emit, show; for differences: distinguish"),
    (r"\bby itself\b", "automatically"),
    (r"\bmend(s|ed|ing)?\b", "fix, repair"),
    (r"\b(go|goes|going|went) on\b", "continue"),
    (r"\b(let|lets|letting) go\b", "release, drop"),
    // `"copy_anew"` is a name that state records have.
    (r#"\banew([^\w"]|$)"#, "again; for tables: re-copy, resync"),
    // Of "look at once more" only the first word belongs to "at".
    (r"\bat once( [^m]|[^ ]|$)", "immediately; or: at the same time"),
    (r"\blog-ins?\b", "credentials, connection"),
    (r"\bfor ever\b", "hang, without end"),
    (r"\b(lasting|passing)\b", "terminal, transient"),
    // Kubernetes describes a condition's message as "a human readable message".
    (r"\ba human( [^r]|[^ ]|$)", "manual action required"),
    (r"\blab\b", "test environment"),
    (r"\bstrangers?\b", "unknown, of others"),
    (r"\bdrift(s|ed|ing)?\b", "catalog diff"),
    (r"\bstanding\b", "state, check_columns"),
    (r"\b(take|takes|taken|taking|took) up\b", "restore, apply"),
    (r"\bwish(es|ed)?\b", "spec, requested"),
    (r"\bobstacles?\b", "blocker, cause"),
    (r"\bsurroundings\b", "context, environment"),
    (r"\bfares\b", "state"),
    (r"\bhindered\b", "blocked"),
    (r"\bunasked\b", "offline, not requested"),
    (r"\bseniority\b", "creation order"),
    // The former annotation is walferry.dev/abandon, the former event `Abandoned`.
    (r"(^|[^/`\w])abandon(s|ed|ing)?\b", "drop, skip the clean-up"),
    (r"\bimpostors?\b", "malicious server"),
];

/// Retired identifiers of the Rust code, in their own case, and what to write. A former name in quotes is one
/// that records or files of earlier releases have.
const NAMES: &[(&str, &str)] = &[
    (r#"(^|[^"`\w])\w*Anew\b"#, "TableResync"),
    (r"\bCut\b", "SnapshotBoundary; of connections: Lost"),
    (r"\bSieve\b", "SnapshotFilter"),
    (r"\bVerdict::(Take|Leave)\b", "Apply, Skip"),
    (r"\bSpares\b", "BatchPool"),
    (r#"(^|[^"`\w])[Rr]ereads?(er)?\b"#, "RowFetcher, refetch"),
    (r"\bNotice\b", "Event, RetryObserver"),
    (r"\bTakenOver\b", "SlotTakenOver"),
    (r"\b(struct|enum|type|trait|impl|for) Keeper\b", "ScriptProcess"),
    (r"\b(Lab|Space|Site)\b", "TestEnv, TestNamespace, ChaosEnv"),
    (r"\w*(Obstacle|Surroundings|Seniority|Stranger|Wish|Impostor)\w*", "see docs/glossary.md"),
];

/// Where retired words are searched.
const WORDED: &[&str] = &["src", "e2e", "docs", "README.md", "charts", "config", "crds", "CHANGELOG.md"];

/// Decisions keep the words of their time.
const HISTORY: &str = "docs/adr";

/// Where comments are measured.
const COMMENTED: &[&str] = &["src", "tests", "e2e", "fuzz", ".ci"];

/// The columns of a comment's line, and of what stands before it.
const COLUMNS: usize = 110;

/// What still has retired words or long comments. Remove an entry when it is clean, and add none.
const UNFINISHED: &[&str] = &["e2e/tests/standalone", "src/replication/snapshot", "src/replication/stream"];

fn repository(path: impl AsRef<Path>) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The files below these, with their text. What is built, fuzzers' inputs and files that are not text are
/// left out.
fn texts(tops: &[&str]) -> Vec<(PathBuf, String)> {
    let mut left: Vec<PathBuf> = tops.iter().map(PathBuf::from).collect();
    let mut found = Vec::new();
    while let Some(path) = left.pop() {
        if path.ends_with("target") || path.ends_with("corpus") || path.starts_with(HISTORY) {
            continue;
        }
        if repository(&path).is_dir() {
            let entries = fs::read_dir(repository(&path)).into_iter().flatten().flatten();
            left.extend(entries.map(|entry| path.join(entry.file_name())));
        } else if let Ok(text) = fs::read_to_string(repository(&path)) {
            found.push((path, text));
        }
    }
    found.sort();
    found
}

fn is_unfinished(path: &Path) -> bool {
    UNFINISHED.iter().any(|folder| path.starts_with(folder))
}

fn is_rust(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs")
}

/// Patterns with what to write, and one that finds them all, which makes the search fast.
struct Patterns {
    any: Regex,
    each: Vec<(Regex, &'static str)>,
}

impl Patterns {
    fn new(list: &[(&str, &'static str)], prefix: &str) -> Result<Patterns, regex::Error> {
        let compile = |pattern: &str| Regex::new(&format!("{prefix}{pattern}"));
        let all: Vec<String> = list.iter().map(|(pattern, _)| format!("(?:{pattern})")).collect();
        let each = list.iter().map(|(pattern, standard)| Ok((compile(pattern)?, *standard)));
        Ok(Patterns { any: compile(&all.join("|"))?, each: each.collect::<Result<_, regex::Error>>()? })
    }

    /// Each word of the line, with what to write.
    fn find<'a>(&'a self, line: &'a str) -> impl Iterator<Item = String> + 'a {
        let each = if self.any.is_match(line) { self.each.as_slice() } else { &[] };
        let found = each.iter().filter_map(|(regex, standard)| Some((regex.find(line)?, standard)));
        found.map(|(word, standard)| format!("\"{}\" is retired, write: {standard}", word.as_str().trim()))
    }
}

/// What is wrong with the words of a line.
fn retired(words: &Patterns, names: &Patterns, line: &str, rust: bool) -> Vec<String> {
    let blank = line.replace('_', " ");
    let mut found: Vec<String> = words.find(&blank).collect();
    if rust {
        found.extend(names.find(line));
    }
    found
}

#[test]
fn no_retired_word_comes_back() {
    let (words, names) = (Patterns::new(WORDS, "(?i)").unwrap(), Patterns::new(NAMES, "").unwrap());
    let (mut wrong, mut lines) = (Vec::new(), 0);
    for (path, text) in texts(WORDED).iter().filter(|(path, _)| !is_unfinished(path)) {
        for (index, line) in text.lines().enumerate() {
            lines += 1;
            let found = retired(&words, &names, line, is_rust(path));
            wrong.extend(found.into_iter().map(|word| format!("{}:{}: {word}", path.display(), index + 1)));
        }
    }
    assert!(lines > 20_000, "the files were not read");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether the line is a comment that can be wrapped: a row of a table can't, nor a word or link without a
/// blank.
fn is_long_comment(line: &str, rust: bool) -> bool {
    let trimmed = line.trim_start();
    let text = if rust {
        trimmed.strip_prefix("//").map(|text| text.trim_start_matches(['/', '!']))
    } else {
        trimmed.strip_prefix('#').filter(|text| !text.starts_with('!'))
    };
    let wraps = |text: &str| !text.trim().starts_with('|') && text.trim().contains(' ');
    line.chars().count() > COLUMNS && text.is_some_and(wraps)
}

#[test]
fn comments_fit_the_screen() {
    let mut wrong = Vec::new();
    for (path, text) in texts(COMMENTED).iter().filter(|(path, _)| !is_unfinished(path)) {
        let script = text.starts_with("#!") || path.extension().is_some_and(|extension| extension == "sh");
        if !is_rust(path) && !script {
            continue;
        }
        let long = text.lines().enumerate().filter(|(_, line)| is_long_comment(line, is_rust(path)));
        wrong.extend(long.map(|(index, _)| format!("{}:{}", path.display(), index + 1)));
    }
    assert!(wrong.is_empty(), "comments over {COLUMNS} columns:\n{}", wrong.join("\n"));
}

#[test]
fn the_guards_find_what_is_retired_and_nothing_else() {
    let (words, names) = (Patterns::new(WORDS, "(?i)").unwrap(), Patterns::new(NAMES, "").unwrap());
    for line in [
        "// The source is told of it.",
        "fn let_go(&self) {",
        "It is at once there.",
        "A human has to act.",
        "self.take_up(record)",
        "Release::TakenOver,",
        "struct Cut {",
        "// An abandoned plan.",
        "let fresh = reread::read(session);",
        "Reason::CopiedAnew",
        "enum Wish {",
    ] {
        assert!(!retired(&words, &names, line, true).is_empty(), "{line}");
    }
    for line in [
        "a human readable message",
        "It is looked at once more.",
        "pub const FORMER: &str = \"walferry.dev/abandon\";",
        "#[serde(alias = \"reread\")] // \"CopiedAnew\"",
        "| events `TakenOver`, `Abandoned` | `SlotTakenOver` |",
        "ClickHouse Keeper, Class::Keeper, Reason::SlotTakenOver",
        "Every retold story; the standby itself.",
    ] {
        let rust = !line.starts_with('|');
        assert_eq!(retired(&words, &names, line, rust), Vec::<String>::new(), "{line}");
    }
    let long = format!("    /// {}", "word ".repeat(22));
    assert!(is_long_comment(&long, true) && !is_long_comment(&long, false));
    assert!(!is_long_comment(&long.replace("/// ", "/// | "), true));
    assert!(!is_long_comment(&format!("// https://{}", "x".repeat(COLUMNS)), true));
    assert!(is_long_comment(&format!("# {}", "word ".repeat(22)), false));
}
