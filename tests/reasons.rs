//! Every reason that the code can give is in the documented list, and every documented one is given.

#![allow(clippy::unwrap_used, reason = "all of this file is a test")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use walferry::api::reference::{CONDITIONS, REASONS};

/// Layers in which a CamelCase word of more than one hump is a reason, unless it is in [`OTHER_WORDS`].
const LAYERS: &[&str] = &["check", "postgres", "replication", "clickhouse"];

/// What a reason begins with that may be written anywhere.
const PREFIXES: &[&str] = &["Source", "Destination", "Replicator"];

/// Words of PostgreSQL, ClickHouse and the API; and what ends a check or a run without a condition.
const OTHER_WORDS: &[&str] = &[
    "DateStyle",
    "DestinationReady",
    "IntervalStyle",
    "MergeTree",
    "NaN",
    "ReplacingMergeTree",
    "ReplicatedReplacingMergeTree",
    "RowBinary",
    "SourceReady",
    "TabSeparated",
    "TimeZone",
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The string literals of one word in the code before the tests.
fn words(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let literals = lines.flat_map(|line| line.split('"').skip(1).step_by(2));
    literals.filter(|word| is_camel_case(word)).map(str::to_owned).collect()
}

fn is_camel_case(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_uppercase()) && word.chars().all(|c| c.is_ascii_alphabetic())
}

fn humps(word: &str) -> usize {
    word.bytes()
        .zip(word.bytes().skip(1))
        .filter(|(a, b)| a.is_ascii_lowercase() && b.is_ascii_uppercase())
        .count()
        + 1
}

/// The values of the constants of `src/api/conditions.rs`: condition types, then reasons.
fn constants() -> (BTreeSet<String>, BTreeSet<String>) {
    let text = include_str!("../src/api/conditions.rs");
    let (types, reasons) = text.split_once("pub mod reason").unwrap();
    let reasons = reasons.lines().filter(|line| !line.contains("_PREFIX"));
    (words(types).into_iter().collect(), words(&reasons.collect::<Vec<_>>().join("\n")).into_iter().collect())
}

/// Every reason of the code.
fn given() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut given = constants().1;
    for file in files {
        let path = file.strip_prefix(&root).unwrap();
        let layer = path.iter().next().unwrap().to_str().unwrap();
        if path.ends_with("tests.rs")
            || path.ends_with("reference.rs")
            || path.starts_with("clickhouse/types")
        {
            continue;
        }
        let is_reason = |word: &String| {
            !OTHER_WORDS.contains(&word.as_str())
                && (PREFIXES.iter().any(|prefix| word.starts_with(prefix) && word.len() > prefix.len())
                    || (LAYERS.contains(&layer) && humps(word) > 1))
        };
        given.extend(words(&fs::read_to_string(&file).unwrap()).into_iter().filter(is_reason));
    }
    given
}

#[test]
fn every_reason_is_documented() {
    let documented: Vec<&str> =
        REASONS.iter().flat_map(|group| group.reasons).map(|reason| reason.name).collect();
    let unique: BTreeSet<String> = documented.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(unique.len(), documented.len(), "a reason is documented twice");
    let given = given();
    let missing: Vec<_> = given.difference(&unique).collect();
    assert!(missing.is_empty(), "document in src/api/reference.rs: {missing:?}");
    let unused: Vec<_> = unique.difference(&given).collect();
    assert!(unused.is_empty(), "nothing gives these any more: {unused:?}");
    assert!(given.contains("SourceSlotLost") && given.contains("DecodeFailed") && given.contains("Behind"));
    for reason in REASONS.iter().flat_map(|group| group.reasons) {
        assert!(is_camel_case(reason.name) && reason.meaning.ends_with('.'), "{}", reason.name);
    }
}

#[test]
fn every_condition_is_documented() {
    let documented: BTreeSet<String> = CONDITIONS.iter().map(|(type_, _)| (*type_).to_owned()).collect();
    assert_eq!(documented, constants().0);
}

#[test]
fn a_new_reason_would_be_seen() {
    let text = "const A: &str = \"SourceOnFire\"; // \"SourceNotThis\"\n// \"SourceNorThis\"\n#[cfg(test)]\nmod tests { \"SourceInATest\" }";
    assert_eq!(words(text)[0], "SourceOnFire");
    assert!(!words(text).iter().any(|word| word == "SourceNorThis" || word == "SourceInATest"));
}
