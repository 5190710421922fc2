//! Reads YAML files into documents that remember where they stand.

use std::{
    fmt,
    io::Read,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::LoadError;
use crate::api::Problem;

/// Where a document stands, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    file: PathBuf,
    number: usize,
    /// Kind and name, as far as they are known.
    what: String,
}

impl Place {
    /// The name of its file.
    pub(super) fn file(&self) -> String {
        file_name(&self.file)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, document {}", file_name(&self.file), self.number)?;
        if self.what.is_empty() { Ok(()) } else { write!(f, " ({})", self.what) }
    }
}

fn file_name(file: &Path) -> String {
    if is_stdin(file) { "standard input".to_owned() } else { file.display().to_string() }
}

fn is_stdin(file: &Path) -> bool {
    file.as_os_str() == "-"
}

/// One document of a file.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) place: Place,
    pub(super) value: Value,
}

impl Document {
    fn new(file: &Path, number: usize, value: Value) -> Self {
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let what = format!("{} {}", text("/kind"), text("/metadata/name")).trim().to_owned();
        Document { place: Place { file: file.to_owned(), number, what }, value }
    }
}

/// Reads all documents of a file (`-`: standard input), leaving out empty ones. What is not YAML goes to
/// `problems`.
///
/// # Errors
/// [`LoadError::Read`] when the file can't be read.
pub(super) fn read(file: &Path, problems: &mut Vec<String>) -> Result<Vec<Document>, LoadError> {
    let text = if is_stdin(file) {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(file)
    };
    let text = text.map_err(|source| LoadError::Read { file: file_name(file), source })?;
    Ok(parse(file, &text, problems))
}

/// The documents of a file's text.
pub(super) fn parse(file: &Path, text: &str, problems: &mut Vec<String>) -> Vec<Document> {
    let mut documents = Vec::new();
    for (index, document) in serde_yaml::Deserializer::from_str(text).enumerate() {
        let number = index + 1;
        let place = Place { file: file.to_owned(), number, what: String::new() };
        match serde_yaml::Value::deserialize(document) {
            Ok(serde_yaml::Value::Null) => {}
            Ok(value) => match to_json(value, "") {
                Ok(value) => documents.push(Document::new(file, number, value)),
                Err(problem) => problems.push(format!("{place}: {problem}")),
            },
            Err(error) => {
                problems.push(format!("{place}: not valid YAML: {error}"));
                // After a syntax error the boundaries of documents are unknown.
                break;
            }
        }
    }
    documents
}

/// YAML knows more than the JSON that Kubernetes takes: what is more is refused.
fn to_json(value: serde_yaml::Value, path: &str) -> Result<Value, Problem> {
    use serde_yaml::Value as Yaml;
    let wrong = |message: &str| Problem::new(if path.is_empty() { "document" } else { path }, message);
    Ok(match value {
        Yaml::Null => Value::Null,
        Yaml::Bool(value) => Value::Bool(value),
        Yaml::Number(number) => serde_json::to_value(number)
            .ok()
            .filter(Value::is_number)
            .ok_or_else(|| wrong("must be a finite number"))?,
        Yaml::String(text) => Value::String(text),
        Yaml::Sequence(items) => {
            let items = items.into_iter().enumerate();
            Value::Array(
                items
                    .map(|(index, item)| to_json(item, &format!("{path}[{index}]")))
                    .collect::<Result<_, _>>()?,
            )
        }
        Yaml::Mapping(fields) => {
            let mut map = Map::new();
            for (name, value) in fields {
                let Yaml::String(name) = name else {
                    return Err(wrong("the names of fields must be strings; quote them"));
                };
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                let value = to_json(value, &path)?;
                map.insert(name, value);
            }
            Value::Object(map)
        }
        Yaml::Tagged(_) => return Err(wrong("YAML tags (!…) are not supported")),
    })
}
