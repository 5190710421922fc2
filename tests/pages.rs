//! Guards the Markdown pages: links lead somewhere, and each file, item and test that ARCHITECTURE.md and the
//! glossary name is there. Whoever renames one corrects the page.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where pages are.
const PAGES: &[&str] = &[".", ".github", "charts/walferry", "config", "docs", "docs/adr"];

/// Where paths in the text begin. Other spans of code with a slash are not looked at.
const FOLDERS: &[&str] = &[".ci/", "charts/", "config/", "crds/", "docs/", "e2e/", "fuzz/", "src/", "tests/"];

fn repository(path: impl AsRef<Path>) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(repository(path)).unwrap_or_default()
}

/// The files of a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(repository(folder)).into_iter().flatten().flatten();
    entries.map(|entry| folder.join(entry.file_name())).collect()
}

fn has_extension(path: &Path, wanted: &str) -> bool {
    path.extension().is_some_and(|extension| extension == wanted)
}

/// The lines outside of code blocks.
fn prose(page: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    page.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        !inside && !fence
    })
}

/// The targets of a page's links within the repository.
fn links(page: &str) -> Vec<&str> {
    let targets = prose(page)
        .flat_map(|line| line.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next()));
    targets.filter(|target| !target.contains("://") && !target.starts_with("mailto:")).collect()
}

/// The anchors that GitHub gives a page's headings.
fn anchors(page: &str) -> Vec<String> {
    let mut anchors: Vec<String> = Vec::new();
    for heading in prose(page).filter(|line| line.starts_with('#')) {
        let text = heading.trim_start_matches('#').trim();
        // Of a link in a heading its text counts.
        let text: String =
            text.split("](").map(|part| part.split_once(')').map_or(part, |(_, rest)| rest)).collect();
        let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let anchor: String =
            kept.map(|c| if c == ' ' { '-' } else { c }).flat_map(char::to_lowercase).collect();
        let same = anchors.iter().filter(|other| **other == anchor).count();
        anchors.push(anchor.clone());
        if same > 0 {
            anchors.push(format!("{anchor}-{same}"));
        }
    }
    anchors
}

/// What is wrong with a link of the page at `path`.
fn broken(path: &Path, page: &str, link: &str) -> Option<String> {
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = path.parent().unwrap_or(Path::new("")).join(file);
    if !file.is_empty() && !repository(&target).exists() {
        return Some(format!("{}: {link} is not there", path.display()));
    }
    let lacks = |page: &str| !anchors(page).iter().any(|known| known == anchor);
    let lacks = match (anchor.is_empty(), file.is_empty()) {
        (true, _) => false,
        (false, true) => lacks(page),
        (false, false) => has_extension(&target, "md") && lacks(&read(&target)),
    };
    lacks.then(|| format!("{}: {link} names no heading", path.display()))
}

#[test]
fn every_link_leads_somewhere() {
    let pages =
        PAGES.iter().flat_map(|folder| files(Path::new(folder))).filter(|path| has_extension(path, "md"));
    let (mut faults, mut looked) = (Vec::new(), 0);
    for path in pages {
        let page = read(&path);
        for link in links(&page) {
            looked += 1;
            faults.extend(broken(&path, &page, link));
        }
    }
    assert!(looked > 50, "the pages were not read");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// What is below src/.
#[derive(Default)]
struct Sources {
    names: Vec<String>,
    text: String,
}

impl Sources {
    fn add(&mut self, folder: &Path) {
        for path in files(folder) {
            if repository(&path).is_dir() {
                self.add(&path);
            } else if has_extension(&path, "rs") {
                self.names.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
                self.text.push_str(&read(&path));
            }
        }
    }
}

/// What the text has between single backticks.
fn code(text: &str) -> Vec<&str> {
    prose(text).flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

/// What is wrong with a span of code: a path that is not there, a test that is not in it (`path::name`), a
/// file's name or an identifier that src/ does not have.
fn stale(span: &str, sources: &Sources) -> Option<String> {
    if FOLDERS.iter().any(|folder| span.starts_with(folder)) {
        let (path, test) = span.split_once("::").unwrap_or((span, ""));
        if !repository(path).exists() {
            return Some(format!("`{span}`: there is no {path}"));
        }
        let lacks = !test.is_empty() && !read(path).contains(&format!("fn {test}("));
        return lacks.then(|| format!("`{span}`: {path} has no test of this name"));
    }
    let is_identifier = span.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let is_file = !span.contains('/') && span.ends_with(".rs");
    let lacks = is_identifier && !sources.text.contains(span)
        || is_file && !sources.names.iter().any(|name| name == span);
    lacks.then(|| format!("`{span}`: nothing below src/ has this name"))
}

/// What is wrong with the spans of code of a page; `folders` have the sources that it names.
fn stale_spans(path: &str, folders: &[&str], least: usize) -> Vec<String> {
    let page = read(path);
    let mut sources = Sources::default();
    folders.iter().for_each(|folder| sources.add(Path::new(folder)));
    let spans = code(&page);
    assert!(spans.len() > least, "{path} was not read");
    spans.iter().filter_map(|span| stale(span, &sources)).collect()
}

#[test]
fn what_the_architecture_names_is_there() {
    let faults = stale_spans("ARCHITECTURE.md", &["src"], 100);
    assert!(faults.is_empty(), "ARCHITECTURE.md:\n{}", faults.join("\n"));
}

#[test]
fn what_the_glossary_names_is_there() {
    let faults = stale_spans("docs/glossary.md", &["src", "e2e"], 100);
    assert!(faults.is_empty(), "docs/glossary.md:\n{}", faults.join("\n"));
}

#[test]
fn the_guards_find_what_is_not_there() {
    let sources = Sources { names: vec!["lib.rs".to_owned()], text: "fn decode(".to_owned() };
    let this = "tests/pages.rs";
    for right in ["src/lib.rs", "src/", "lib.rs", "decode", "a.b", "a/b.rs", &format!("{this}::read")] {
        assert_eq!(stale(right, &sources), None, "{right}");
    }
    for wrong in ["src/no.rs", "no.rs", "encode", &format!("{this}::no")] {
        assert!(stale(wrong, &sources).is_some(), "{wrong}");
    }
    let page =
        "# A `b`: c\n```\n# no [x](y)\n```\n## Two\n## Two\n[d](#two-1) [e](https://x.y) [f](src/lib.rs)";
    assert_eq!(links(page), ["#two-1", "src/lib.rs"]);
    assert_eq!(anchors(page), ["a-b-c", "two", "two", "two-1"]);
    let fault = |link| broken(Path::new("docs/x.md"), page, link);
    assert!(fault("#two-1").is_none() && fault("../README.md").is_none());
    assert!(
        fault("#three").is_some() && fault("README.md").is_some() && fault("../README.md#no-such").is_some()
    );
}
