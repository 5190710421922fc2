//! The schemas of the CRDs: every field, and an object that has every field.

use std::fmt;

use serde_json::{Map, Value, json};

/// A step from an object into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Field(String),
    /// An item of a list; of an object, the first.
    Item,
    /// A value of a map; of an object, the first.
    Entry,
}

/// Where a field is. It prints as `spec.tables[].columns.rename{}`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(Vec<Step>);

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, step) in self.0.iter().enumerate() {
            match step {
                Step::Field(name) if index == 0 => write!(f, "{name}")?,
                Step::Field(name) => write!(f, ".{name}")?,
                Step::Item => write!(f, "[]")?,
                Step::Entry => write!(f, "{{}}")?,
            }
        }
        Ok(())
    }
}

impl Path {
    pub fn then(&self, step: Step) -> Path {
        Path([&self.0[..], &[step]].concat())
    }

    pub fn field(&self, name: &str) -> Path {
        self.then(Step::Field(name.to_owned()))
    }

    /// The field's name in the apiserver's messages about an object.
    pub fn in_messages(&self) -> String {
        self.to_string().replace("[]", "[0]").replace("{}", &format!(".{ENTRY}"))
    }

    /// The value there.
    pub fn of<'a>(&self, object: &'a mut Value) -> Option<&'a mut Value> {
        self.0.iter().try_fold(object, |value, step| match step {
            Step::Field(name) => value.get_mut(name),
            Step::Item => value.get_mut(0),
            Step::Entry => value.as_object_mut()?.values_mut().next(),
        })
    }
}

/// The name of the entry that [`full`] puts into every map.
const ENTRY: &str = "entry";

/// Calls `visit` with every field below `schema`, itself first.
pub fn walk(schema: &Value, path: &Path, visit: &mut impl FnMut(&Path, &Value)) {
    visit(path, schema);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        walk(property, &path.field(name), visit);
    }
    if schema["items"].is_object() {
        walk(&schema["items"], &path.then(Step::Item), visit);
    }
    if schema["additionalProperties"].is_object() {
        walk(&schema["additionalProperties"], &path.then(Step::Entry), visit);
    }
}

/// A value with every field, one item in each list and one entry in each map. `given` has the values that
/// can't be derived from the schema; null leaves a field out.
pub fn full(schema: &Value, path: &Path, given: &[(&str, Value)]) -> Value {
    if let Some((_, value)) = given.iter().find(|(wanted, _)| *wanted == path.to_string()) {
        return value.clone();
    }
    if let Some(first) = schema["enum"].get(0) {
        return first.clone();
    }
    match schema["type"].as_str() {
        Some("object") if schema["additionalProperties"].is_object() => {
            json!({ENTRY: full(&schema["additionalProperties"], &path.then(Step::Entry), given)})
        }
        Some("object") => {
            let properties = schema["properties"].as_object().into_iter().flatten();
            let fields = properties.map(|(name, it)| (name.clone(), full(it, &path.field(name), given)));
            Value::Object(fields.filter(|(_, value)| !value.is_null()).collect::<Map<_, _>>())
        }
        Some("array") => json!([full(&schema["items"], &path.then(Step::Item), given)]),
        Some("string") if schema["format"] == "date-time" => json!("2026-01-01T00:00:00Z"),
        Some("string") => json!("x"),
        Some("boolean") => json!(true),
        Some("integer") => json!(1),
        None if schema["x-kubernetes-int-or-string"] == true => json!(1),
        other => panic!("{path}: what is a value of type {other:?}?"),
    }
}
