//! Former names of the API: deprecated, and read as the names of today.
//!
//! This is the one place that knows what they mean. [`normalize`] replaces them where an object comes in,
//! from a file or from the API server, so that everything else meets only today's names.

use std::{borrow::Cow, fmt};

use super::{Mirror, MirrorSpec, Operation, OutOfRange, SnapshotMode, rules::is_contradictory};

/// Fields that have another name now.
const FIELDS: &[&str] = &["insertOnly"];

/// Values that have another name now, by the path of their field.
const VALUES: &[(&str, &str)] = &[("spec.outOfRange", "Nearest"), ("spec.snapshot.mode", "Only")];

/// What `insertOnly: true` means.
const APPEND_ONLY: [Operation; 2] = [Operation::Insert, Operation::Truncate];

/// A former name that an object uses. It prints as what is deprecated and what to use instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormerName {
    /// The field, as in `spec.tables[0].insertOnly`.
    pub path: String,
    used: &'static str,
    advice: &'static str,
}

impl fmt::Display for FormerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is deprecated: {}", self.used, self.advice)
    }
}

/// Whether the field is accepted only as a former name, so that no message should propose it.
pub fn is_former_field(name: &str) -> bool {
    FIELDS.contains(&name)
}

/// Whether the value of the field at `path` is accepted only as a former name.
pub fn is_former_value(path: &str, value: &str) -> bool {
    VALUES.contains(&(path, value))
}

/// The Mirror with the names of today, and the former names that it uses.
pub fn normalized(mirror: &Mirror) -> (Cow<'_, Mirror>, Vec<FormerName>) {
    let mut current = mirror.spec.clone();
    let found = normalize(&mut current);
    if found.is_empty() {
        return (Cow::Borrowed(mirror), found);
    }
    (Cow::Owned(Mirror { spec: current, ..mirror.clone() }), found)
}

/// Replaces former names by those of today and lists what it replaced. A table whose `insertOnly` contradicts
/// its `operations` stays as it is, for [`super::mirror_problems`] to refuse.
pub fn normalize(spec: &mut MirrorSpec) -> Vec<FormerName> {
    let mut found = Vec::new();
    if spec.snapshot.mode == SnapshotMode::Only {
        spec.snapshot.mode = SnapshotMode::InitialOnly;
        found.push(former("spec.snapshot.mode".to_owned(), "Only", "use InitialOnly instead"));
    }
    if spec.out_of_range == OutOfRange::Nearest {
        spec.out_of_range = OutOfRange::Clamp;
        found.push(former("spec.outOfRange".to_owned(), "Nearest", "use Clamp instead"));
    }
    for (index, table) in spec.tables.iter_mut().enumerate() {
        let path = || format!("spec.tables[{index}].insertOnly");
        match table.insert_only {
            Some(true) if !is_contradictory(table) => {
                if table.operations.is_empty() {
                    table.operations = APPEND_ONLY.to_vec();
                }
                let advice = "use operations: [Insert, Truncate] instead";
                found.push(former(path(), "insertOnly: true", advice));
            }
            Some(false) => found.push(former(path(), "insertOnly: false", "it has no effect, leave it out")),
            _ => continue,
        }
        table.insert_only = None;
    }
    found
}

fn former(path: String, used: &'static str, advice: &'static str) -> FormerName {
    FormerName { path, used, advice }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::{custom_resource_definitions, mirror_problems};

    /// A Mirror of one table, with these settings.
    fn mirror(spec: Value, table: Value) -> Mirror {
        let mut object = json!({"apiVersion": crate::api::API_VERSION, "kind": "Mirror", "metadata": {"name": "m"}, "spec": {
            "sourceRef": {"name": "a"}, "destinationRef": {"name": "b"}, "tables": [{"schema": "public", "name": "t"}]}});
        let extend = |into: &mut Value, from: Value| {
            into.as_object_mut().unwrap().extend(from.as_object().unwrap().clone());
        };
        extend(&mut object["spec"], spec);
        extend(&mut object["spec"]["tables"][0], table);
        serde_json::from_value(object).unwrap()
    }

    /// What the former names of a Mirror are reported as.
    fn warnings(mirror: &Mirror) -> Vec<String> {
        let found = normalized(mirror).1;
        found.iter().map(|name| format!("{}: {name}", name.path)).collect()
    }

    #[test]
    fn former_names_mean_those_of_today() {
        for (former, current, warning) in [
            (
                mirror(json!({"outOfRange": "Nearest"}), json!({})),
                mirror(json!({"outOfRange": "Clamp"}), json!({})),
                "spec.outOfRange: Nearest is deprecated: use Clamp instead",
            ),
            (
                mirror(json!({"snapshot": {"mode": "Only"}}), json!({})),
                mirror(json!({"snapshot": {"mode": "InitialOnly"}}), json!({})),
                "spec.snapshot.mode: Only is deprecated: use InitialOnly instead",
            ),
            (
                mirror(json!({}), json!({"insertOnly": true})),
                mirror(json!({}), json!({"operations": ["Insert", "Truncate"]})),
                "spec.tables[0].insertOnly: insertOnly: true is deprecated: use operations: [Insert, Truncate] instead",
            ),
            (
                mirror(json!({}), json!({"insertOnly": true, "operations": ["Truncate", "Insert"]})),
                mirror(json!({}), json!({"operations": ["Truncate", "Insert"]})),
                "spec.tables[0].insertOnly: insertOnly: true is deprecated: use operations: [Insert, Truncate] instead",
            ),
            (
                mirror(json!({}), json!({"insertOnly": false})),
                mirror(json!({}), json!({})),
                "spec.tables[0].insertOnly: insertOnly: false is deprecated: it has no effect, leave it out",
            ),
            (
                mirror(json!({}), json!({"insertOnly": false, "operations": ["Insert", "Truncate"]})),
                mirror(json!({}), json!({"operations": ["Insert", "Truncate"]})),
                "spec.tables[0].insertOnly: insertOnly: false is deprecated: it has no effect, leave it out",
            ),
        ] {
            assert_eq!(mirror_problems(&former.spec), []);
            assert_eq!(normalized(&former).0.spec, current.spec);
            assert_eq!(warnings(&former), [warning]);
            assert!(matches!(normalized(&current), (Cow::Borrowed(_), found) if found.is_empty()));
        }
    }

    #[test]
    fn a_contradiction_is_refused_and_not_resolved() {
        for listed in [json!(["Insert", "Update", "Delete", "Truncate"]), json!(["Insert"])] {
            let contradictory = mirror(json!({}), json!({"insertOnly": true, "operations": listed}));
            let (left, found) = normalized(&contradictory);
            assert_eq!((&left.spec, found), (&contradictory.spec, Vec::new()));
            let problems = mirror_problems(&left.spec);
            let [problem] = problems.as_slice() else { panic!("{problems:?}") };
            assert_eq!(problem.path, "spec.tables[0]");
            assert!(problem.message.contains("insertOnly") && problem.message.contains("operations"));
        }
    }

    /// A user who reads the schema has to see which names are deprecated, and what to write.
    #[test]
    fn the_schema_has_former_names_and_calls_them_deprecated() {
        let crds = serde_json::to_value(custom_resource_definitions()).unwrap();
        let spec = &crds[1]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        for (path, value) in VALUES {
            let mut field = spec;
            for name in path.split('.').skip(1) {
                field = &field["properties"][name];
            }
            assert!(field["enum"].as_array().unwrap().contains(&json!(value)), "{path}");
            let description = field["description"].as_str().unwrap();
            assert!(description.contains(&format!("{value}: deprecated, write ")), "{description}");
        }
        for name in FIELDS {
            let field = &spec["properties"]["tables"]["items"]["properties"][name];
            assert!(field["description"].as_str().unwrap().starts_with("Deprecated: write "));
        }
    }
}
