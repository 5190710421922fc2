//! Guards the arrows between the layers: the table in `src/lib.rs` says who may import whom, and this reads
//! it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

/// Crates that know a server or Kubernetes, and the layers that may name them.
const CRATES: &[(&str, &[&str])] = &[
    ("kube", &["api", "operator", "cli"]),
    ("k8s_openapi", &["api", "status", "operator", "cli"]),
    ("tokio_postgres", &["postgres", "cli"]),
    ("postgres_protocol", &["postgres"]),
    ("clickhouse", &["clickhouse"]),
    ("axum", &["http"]),
];

/// What the table's words "the destination contract" stand for.
const CONTRACT: &str = include_str!("../src/replication/destination.rs");

/// Who may import whom, from the table in `src/lib.rs`. The destination contract appears as
/// `replication::Name`.
fn table() -> BTreeMap<String, BTreeSet<String>> {
    let names =
        |cell: &str| -> Vec<String> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
    let rows = include_str!("../src/lib.rs").lines().filter_map(|line| line.strip_prefix("//! | [`"));
    let rows: Vec<Vec<String>> =
        rows.map(|row| format!("`{row}").split(" | ").map(str::to_owned).collect()).collect();
    let all: BTreeSet<String> = rows.iter().flat_map(|row| names(&row[0])).collect();
    let mut table = BTreeMap::new();
    for row in &rows {
        let mut may: BTreeSet<String> = names(&row[2]).into_iter().collect();
        if row[2].contains("everything") {
            may.extend(all.clone());
        }
        if row[2].contains("the destination contract") {
            may.extend(contract().into_iter().map(|name| format!("replication::{name}")));
        }
        assert!(!may.is_empty() || row[2].contains("nothing of ours"), "{row:?}");
        for layer in names(&row[0]) {
            table.insert(layer, may.clone());
        }
    }
    table
}

fn contract() -> Vec<String> {
    let items = CONTRACT.lines().filter_map(|line| {
        ["pub trait ", "pub struct ", "pub enum "].iter().find_map(|start| line.strip_prefix(start))
    });
    items.map(|item| item.chars().take_while(|c| c.is_alphanumeric()).collect()).collect()
}

/// The Rust files below `src`, relative to the repository.
fn sources() -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        let entries = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).into_iter().flatten();
        for entry in entries.flatten() {
            let path = folder.join(entry.file_name());
            if entry.path().is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(Path::new("src"), &mut found);
    found.sort();
    found
}

/// The path of a file's module: `src/cli/load/mod.rs` is `["cli", "load"]`.
fn module(file: &Path) -> Vec<String> {
    let mut parts: Vec<String> =
        file.with_extension("").iter().skip(1).map(|part| part.to_string_lossy().into_owned()).collect();
    if parts.last().is_some_and(|last| last == "mod") {
        parts.pop();
    }
    parts
}

/// The text without comments.
fn code(text: &str) -> String {
    let line = |line: &str| match line.trim_start().starts_with("//") {
        true => String::new(),
        false => line.split(" // ").next().unwrap_or_default().to_owned(),
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Where `word` begins a path in `code`, as the text that follows it.
fn paths<'a>(code: &'a str, word: &str) -> Vec<&'a str> {
    let inside = |c: char| c.is_alphanumeric() || c == '_' || c == '$' || c == ':' || c == '"';
    let starts = code.match_indices(word).filter(|(at, _)| !code[..*at].ends_with(inside));
    starts.map(|(at, word)| &code[at + word.len()..]).collect()
}

fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
    &text[..end]
}

/// The paths of a use tree such as `a::{b, c::d}`, and what follows it.
fn tree<'a>(text: &'a str, prefix: &[String], found: &mut Vec<Vec<String>>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = rest.trim_start().trim_start_matches(',').trim_start();
            if rest.is_empty() || rest.starts_with('}') {
                return rest.strip_prefix('}').unwrap_or(rest);
            }
            let before = rest.len();
            rest = tree(rest, prefix, found);
            let next = rest.find([',', '}', '{']).unwrap_or(rest.len());
            rest = &rest[next..];
            assert!(rest.len() < before, "a use tree that this test can't read: {rest}");
        }
    }
    let name = identifier(text);
    let path = [prefix, &[name.to_owned()]].concat();
    match text[name.len()..].strip_prefix("::") {
        Some(rest) => tree(rest, &path, found),
        None => {
            found.push(path);
            &text[name.len()..]
        }
    }
}

/// All paths below `crate::`.
fn imports(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for rest in paths(code, "crate::") {
        tree(rest, &[], &mut found);
    }
    found
}

/// Layers reached by climbing with `super` out of the file's own layer.
fn climbs(code: &str, depth: usize, layers: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut found = Vec::new();
    for mut rest in paths(code, "super::") {
        let mut steps = 1;
        while let Some(next) = rest.strip_prefix("super::") {
            (rest, steps) = (next, steps + 1);
        }
        if steps >= depth && layers.contains_key(identifier(rest)) {
            found.push(identifier(rest).to_owned());
        }
    }
    found
}

#[test]
fn layers_import_only_what_the_table_allows() {
    let table = table();
    let mut wrong = Vec::new();
    for file in sources() {
        let module = module(&file);
        let layer = module[0].as_str();
        if ["lib", "main"].contains(&layer) {
            continue;
        }
        let may = table.get(layer).unwrap_or_else(|| panic!("{layer} is not in the table of src/lib.rs"));
        let code = code(&fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(&file)).unwrap());
        let imports = imports(&code);
        for path in &imports {
            let allowed = path[0] == layer
                || may.contains(&path[0])
                || may.contains(&path.iter().take(2).cloned().collect::<Vec<_>>().join("::"));
            if table.contains_key(&path[0]) && !allowed {
                wrong.push(format!("{}: {layer} may not import crate::{}", file.display(), path.join("::")));
            }
        }
        for other in climbs(&code, module.len(), &table) {
            wrong.push(format!("{}: name {other} as crate::{other}", file.display()));
        }
        for (name, layers) in CRATES {
            let ours = imports.iter().any(|path| path[0] == *name);
            if !ours && !layers.contains(&layer) && !paths(&code, &format!("{name}::")).is_empty() {
                wrong.push(format!("{}: {layer} may not use the crate {name}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_guard_reads_what_people_write() {
    let found = imports(
        "use crate::{\n    api::conditions::{self as types, reason},\n    model::{A, b::C},\n    tls,\n};\nfn f() { crate::status::document(x) }\n// crate::comment\n",
    );
    let found: Vec<String> = found.iter().map(|path| path.join("::")).collect();
    assert_eq!(
        found,
        [
            "api::conditions::self",
            "api::conditions::reason",
            "model::A",
            "model::b::C",
            "tls",
            "status::document",
            "comment"
        ]
    );
    assert!(imports(&code("/// [`crate::api`]\n// crate::api\nlet a = 1; // crate::api")).is_empty());
    let table = table();
    assert_eq!(climbs("super::super::model::X; super::Y; super::super::Z", 2, &table), ["model"]);
    assert!(table["fault"].is_empty() && table["replication"].contains("model"));
    assert!(!table["replication"].contains("clickhouse") && !table["replication"].contains("api"));
    assert!(
        table["clickhouse"].contains("replication::Destination")
            && !table["clickhouse"].contains("replication")
    );
    assert!(table["cli"].contains("clickhouse") && table["telemetry"].contains("model"));
}

/// Layers with circles of more than two files, and at most how many files those circles may have together.
/// Lower a number when it shrinks; never raise it.
const CIRCLES: &[(&str, usize)] = &[("api", 5), ("replication", 7)];

/// Names that a module re-exports, with the child they come from: `pub use child::Name`.
fn re_exports(code: &str, children: &BTreeSet<String>) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for line in code.split(';').map(str::trim_start) {
        let Some((visibility, path)) = line.split_once("use ") else { continue };
        if !visibility.starts_with("pub") {
            continue;
        }
        let mut paths = Vec::new();
        tree(path, &[], &mut paths);
        for mut path in paths {
            if path[0] == "self" {
                path.remove(0);
            }
            if !children.contains(&path[0]) {
                continue;
            }
            if let Some(name) = path.last() {
                found.insert(name.clone(), path[0].clone());
            }
        }
    }
    found
}

/// The text without `pub use`: a module that hands its child's names on needs nothing of the child.
fn without_re_exports(code: &str) -> String {
    let re_export = |line: &&str| line.trim_start().starts_with("pub") && line.contains("use ");
    code.split_inclusive(';').filter(|line| !re_export(line)).collect()
}

/// Which files of the sources import which others of their layer, by module. Tests inside files don't count.
fn imports_inside_layers() -> io::Result<BTreeMap<Vec<String>, BTreeSet<Vec<String>>>> {
    let files: BTreeMap<Vec<String>, String> = sources()
        .iter()
        .filter(|file| !file.ends_with("tests.rs"))
        .map(|file| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
            let text = fs::read_to_string(path)?;
            Ok((module(file), code(text.split("#[cfg(test)]").next().unwrap_or_default())))
        })
        .collect::<io::Result<_>>()?;
    let children = |parent: &[String]| -> BTreeSet<String> {
        let below = files.keys().filter(|file| file.len() == parent.len() + 1 && file.starts_with(parent));
        below.map(|file| file[parent.len()].clone()).collect()
    };
    let resolve = |path: &[String]| -> Option<Vec<String>> {
        let end = (1..=path.len()).rev().find(|end| files.contains_key(&path[..*end]))?;
        let file = path[..end].to_vec();
        let name = path.get(end)?;
        match re_exports(&files[&file], &children(&file)).get(name) {
            Some(child) => Some([&file[..], std::slice::from_ref(child)].concat()),
            None => Some(file),
        }
    };
    let mut graph: BTreeMap<Vec<String>, BTreeSet<Vec<String>>> = BTreeMap::new();
    for (file, code) in &files {
        let mut paths_found = imports(code);
        for mut rest in paths(code, "super::") {
            let mut base = file[..file.len() - 1].to_vec();
            while let Some(next) = rest.strip_prefix("super::") {
                rest = next;
                base.pop();
            }
            tree(rest, &base, &mut paths_found);
        }
        let own = without_re_exports(code);
        for rest in paths(&own, "self::") {
            tree(rest, file, &mut paths_found);
        }
        for child in children(file) {
            if !paths(&own, &format!("{child}::")).is_empty() {
                paths_found.push([&file[..], &[child, "*".to_owned()]].concat());
            }
        }
        let inside = paths_found.iter().filter(|path| path[0] == file[0]).filter_map(|path| resolve(path));
        graph.insert(file.clone(), inside.filter(|other| other != file).collect());
    }
    Ok(graph)
}

#[test]
fn no_circle_of_more_than_two_files_inside_a_layer() {
    let graph = imports_inside_layers().unwrap();
    let reached = |from: &Vec<String>| {
        let (mut seen, mut left) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(file) = left.pop() {
            for next in graph.get(&file).into_iter().flatten() {
                if seen.insert(next.clone()) {
                    left.push(next.clone());
                }
            }
        }
        seen
    };
    let reach: BTreeMap<&Vec<String>, BTreeSet<Vec<String>>> =
        graph.keys().map(|file| (file, reached(file))).collect();
    let mut circles: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (file, to) in &reach {
        let circle = to.iter().filter(|other| reach[other].contains(*file)).count();
        if circle > 2 {
            circles.entry(file[0].as_str()).or_default().insert(file.join("::"));
        }
    }
    let allowed: BTreeMap<&str, usize> = CIRCLES.iter().copied().collect();
    let wrong: Vec<String> = circles
        .iter()
        .filter(|(layer, files)| files.len() > allowed.get(*layer).copied().unwrap_or_default())
        .map(|(layer, files)| format!("CIRCLE {layer} {} {files:?}", files.len()))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
