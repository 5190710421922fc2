//! Every bound of the schemas: a value within it is accepted, a value beyond it is rejected with a message
//! that names the field. The bounds are read from the CRDs, so new fields are covered automatically.

use std::collections::HashSet;

use kube::core::Status;
use serde_json::{Value, json};

use super::{
    schema::{Path, Step, full, walk},
    schema_of,
};
use crate::harness::{TestNamespace, install_crds};

/// A keyword of a schema that restricts one field.
#[derive(Debug)]
struct Bound {
    path: Path,
    keyword: String,
    value: Value,
    /// The field's whole schema.
    schema: Value,
}

/// Keywords that restrict nothing, or are tested elsewhere.
const NOT_BOUNDS: [&str; 11] = [
    "additionalProperties",
    "default",
    "description",
    "items",
    "properties",
    "title",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
    "nullable",
];

fn bounds(schema: &Value, top: &str) -> Vec<Bound> {
    let mut found = Vec::new();
    walk(schema, &Path::default(), &mut |path, schema| {
        let inside = path.to_string();
        if !(inside == top || inside.starts_with(&format!("{top}."))) {
            return;
        }
        for (keyword, value) in schema.as_object().unwrap() {
            if !NOT_BOUNDS.contains(&keyword.as_str()) {
                found.push(Bound {
                    path: path.clone(),
                    keyword: keyword.clone(),
                    value: value.clone(),
                    schema: schema.clone(),
                });
            }
        }
    });
    found
}

impl Bound {
    /// Values beyond the bound, each with the message for the user.
    fn refused(&self, object: &Value) -> Vec<(Value, String)> {
        let field = self.path.in_messages();
        let with = |value: Value| {
            let mut object = object.clone();
            *self.path.of(&mut object).unwrap_or_else(|| panic!("there is no {}", self.path)) = value;
            object
        };
        let number = || self.value.as_f64().unwrap() as i64;
        let length = || self.value.as_u64().unwrap() as usize;
        let says =
            |value: &str, rule: String| format!("{field}: Invalid value: {value}: {field} in body {rule}");
        match (self.keyword.as_str(), &self.value) {
            ("type", Value::String(kind)) => {
                let (wrong, name) =
                    if kind == "string" { (json!(5), "integer") } else { (json!("x"), "string") };
                let rule = format!("must be of type {kind}: \"{name}\"");
                vec![(with(wrong), says(&format!("\"{name}\""), rule))]
            }
            ("x-kubernetes-int-or-string", _) => {
                vec![(
                    with(json!(true)),
                    says("\"boolean\"", "must be of type integer,string: \"boolean\"".into()),
                )]
            }
            ("required", Value::Array(names)) => names
                .iter()
                .map(|name| {
                    let mut object = object.clone();
                    let name = name.as_str().unwrap();
                    self.path.of(&mut object).unwrap().as_object_mut().unwrap().remove(name).unwrap();
                    (object, format!("{}: Required value", self.path.field(name).in_messages()))
                })
                .collect(),
            ("minLength", _) => {
                let least = number();
                vec![(with(json!("")), says("\"\"", format!("should be at least {least} chars long")))]
            }
            ("maxLength", _) => {
                let text = self.text(length() + 1);
                vec![(with(text), format!("{field}: Too long: may not be more than {} bytes", length()))]
            }
            ("minimum", _) => {
                let (least, less) = (number(), number() - 1);
                vec![(
                    with(json!(less)),
                    says(&less.to_string(), format!("should be greater than or equal to {least}")),
                )]
            }
            ("maximum", _) => {
                let (most, more) = (number(), number() + 1);
                vec![(
                    with(json!(more)),
                    says(&more.to_string(), format!("should be less than or equal to {most}")),
                )]
            }
            ("minItems", _) => {
                let least = number();
                vec![(with(json!([])), says("0", format!("should have at least {least} items")))]
            }
            ("maxItems", _) => {
                let (most, more) = (length(), length() + 1);
                vec![(
                    with(self.items(object, more)),
                    format!("{field}: Too many: {more}: must have at most {most} items"),
                )]
            }
            ("maxProperties", _) => {
                let (most, more) = (length(), length() + 1);
                vec![(
                    with(self.entries(object, more)),
                    format!("{field}: Too many: {more}: must have at most {most} items"),
                )]
            }
            ("enum", Value::Array(names)) => {
                let names: Vec<String> = names.iter().map(Value::to_string).collect();
                vec![(
                    with(json!("Nonsense")),
                    format!(
                        "{field}: Unsupported value: \"Nonsense\": supported values: {}",
                        names.join(", ")
                    ),
                )]
            }
            ("format", Value::String(format)) => match format.as_str() {
                // The apiserver ignores integer formats; fields that need a bound have a maximum.
                "int32" | "int64" => vec![],
                "date-time" => vec![(
                    with(json!("noon")),
                    says("\"noon\"", "must be of type date-time: \"noon\"".into()),
                )],
                other => panic!("{}: no case for format {other}", self.path),
            },
            ("x-kubernetes-list-type", Value::String(kind)) => match kind.as_str() {
                "atomic" => vec![],
                "set" | "map" => {
                    let mut object = object.clone();
                    let list = self.path.of(&mut object).unwrap().as_array_mut().unwrap();
                    let item = list[0].clone();
                    let added = list.len();
                    list.push(item.clone());
                    let keys = self.schema["x-kubernetes-list-map-keys"].as_array();
                    let same = keys.map(|keys| {
                        keys.iter()
                            .map(|key| {
                                (key.as_str().unwrap().to_owned(), item[key.as_str().unwrap()].clone())
                            })
                            .collect::<serde_json::Map<_, _>>()
                    });
                    let same = same.map_or(item.clone(), Value::Object);
                    let field = format!("{}[{added}]", self.path.in_messages());
                    vec![(object, format!("{field}: Duplicate value: {same}"))]
                }
                other => panic!("{}: no case for lists of type {other}", self.path),
            },
            (keyword, value) => panic!("{}: no case for {keyword}: {value}", self.path),
        }
    }

    /// The values that are just within the bound.
    fn accepted(&self, object: &Value) -> Vec<Value> {
        let with = |value: Value| {
            let mut object = object.clone();
            *self.path.of(&mut object).unwrap() = value;
            object
        };
        let length = || self.value.as_u64().unwrap() as usize;
        match (self.keyword.as_str(), &self.value) {
            ("minLength" | "maxLength", _) => vec![with(self.text(length()))],
            ("minimum" | "maximum", number) => vec![with(json!(number.as_f64().unwrap() as i64))],
            ("minItems" | "maxItems", _) => vec![with(self.items(object, length()))],
            ("maxProperties", _) => vec![with(self.entries(object, length()))],
            ("enum", Value::Array(names)) => names.iter().map(|name| with(name.clone())).collect(),
            ("x-kubernetes-int-or-string", _) => vec![with(json!(1_048_576)), with(json!("1048576"))],
            _ => vec![],
        }
    }

    /// A valid text of this many characters.
    fn text(&self, length: usize) -> Value {
        let start = if self.path.to_string() == "spec.clickhouse.url" { "https://" } else { "" };
        json!(format!("{start}{}", "x".repeat(length.max(start.len() + 1) - start.len())))
    }

    /// This many items like the existing one.
    fn items(&self, object: &Value, count: usize) -> Value {
        let item = self.path.then(Step::Item).of(&mut object.clone()).unwrap().clone();
        let keys = self.schema["x-kubernetes-list-map-keys"].as_array();
        (0..count)
            .map(|index| {
                let mut item = item.clone();
                match keys {
                    Some(keys) => item[keys.last().unwrap().as_str().unwrap()] = json!(format!("x{index}")),
                    None if item.is_string() => item = json!(format!("x{index}")),
                    None => {}
                }
                item
            })
            .collect()
    }

    /// This many entries like the existing one.
    fn entries(&self, object: &Value, count: usize) -> Value {
        let entry = self.path.then(Step::Entry).of(&mut object.clone()).unwrap().clone();
        (0..count).map(|index| (format!("x{index}"), entry.clone())).collect::<serde_json::Map<_, _>>().into()
    }
}

/// Removes fields that a CEL rule forbids next to a tested value. The rules have their own tests.
fn settle(object: &mut Value) {
    for table in object["spec"]["tables"].as_array_mut().into_iter().flatten() {
        if let Some(operations) = table.get_mut("operations") {
            *operations = every_operation();
        }
    }
    for kind in ["postgres", "clickhouse"] {
        let Some(peer) = object["spec"].get_mut(kind) else { continue };
        let mode = peer["tls"]["mode"].clone();
        let Some(tls) = peer["tls"].as_object_mut() else { continue };
        if mode == "Disable" || mode == "Require" {
            tls.remove("caSecretRef");
        }
        if mode == "Disable" {
            tls.remove("clientCertificateSecretRef");
            if let Some(Value::String(url)) = peer.get_mut("url") {
                *url = url.replace("https://", "http://");
            }
        }
    }
}

fn every_operation() -> Value {
    json!(["Insert", "Update", "Delete", "Truncate"])
}

/// Objects that together have every field: a peer is one of two kinds.
fn objects() -> Vec<Value> {
    let object = |kind: &str, without: &'static str| {
        let given = [
            ("apiVersion", json!("walferry.dev/v1alpha1")),
            ("kind", json!(kind)),
            ("metadata", json!({"name": "example"})),
            ("spec.clickhouse.url", json!("https://ch.example:8443")),
            ("spec.postgres.tls.mode", json!("VerifyFull")),
            ("spec.clickhouse.tls.mode", json!("VerifyFull")),
            ("spec.tables[].operations", every_operation()),
            // With true, a rule would reject these operations.
            ("spec.tables[].insertOnly", json!(false)),
            ("spec.batch.maxBytes", json!("32Mi")),
            ("spec.replicator.resources.limits{}", json!("1Gi")),
            (without, Value::Null),
        ];
        let mut object = full(&schema_of(kind), &Path::default(), &given);
        object["apiVersion"] = json!("walferry.dev/v1alpha1");
        object["kind"] = json!(kind);
        object["metadata"] = json!({"name": "example"});
        object
    };
    vec![
        object("ReplicationPeer", "spec.clickhouse"),
        object("ReplicationPeer", "spec.postgres"),
        object("Mirror", "nothing"),
    ]
}

/// Tries every bound below `top`; `attempt` sends an object to the apiserver. A rejection must name the
/// field, and with `words` have the expected message.
fn check(top: &str, words: bool, attempt: impl Fn(&Value) -> Result<Value, Box<Status>>) {
    let mut wrong = Vec::new();
    let mut seen = HashSet::new();
    for object in objects() {
        if let Err(status) = attempt(&object) {
            wrong.push(format!("with every field: {}", status.message));
        }
        let kind = object["kind"].as_str().unwrap();
        for bound in bounds(&schema_of(kind), top) {
            if bound.path.of(&mut object.clone()).is_none() {
                continue;
            }
            seen.insert((kind.to_owned(), bound.path.to_string()));
            for (object, reads) in bound.refused(&object) {
                let field = reads.split(": ").next().unwrap();
                match attempt(&object) {
                    Ok(_) => wrong.push(format!("taken, though {reads}")),
                    Err(status) if status.message.contains(if words { &reads } else { field }) => {}
                    Err(status) => wrong.push(format!("not '{reads}' but '{}'", status.message)),
                }
            }
            for mut object in bound.accepted(&object) {
                settle(&mut object);
                if let Err(status) = attempt(&object) {
                    wrong.push(format!("{} {}: {}", bound.path, bound.keyword, status.message));
                }
            }
        }
    }
    for kind in ["ReplicationPeer", "Mirror"] {
        for bound in bounds(&schema_of(kind), top) {
            if !seen.contains(&(kind.to_owned(), bound.path.to_string())) {
                wrong.push(format!("no object has {}", bound.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn of_specs() {
    install_crds();
    let namespace = TestNamespace::new();
    // The messages are the apiserver's and differ between its versions.
    check("spec", namespace.cluster.minor_version() == 34, |object| namespace.try_create(object));
}

#[test]
fn of_statuses() {
    install_crds();
    let namespace = TestNamespace::new();
    // Each status needs an object.
    for (index, mut object) in objects().into_iter().enumerate() {
        object["metadata"]["name"] = json!(index.to_string());
        object.as_object_mut().unwrap().remove("status");
        namespace.apply(&object);
    }
    // Only the operator reads these messages.
    check("status", false, |object| {
        let mut object = object.clone();
        object["metadata"]["name"] = json!(if object["kind"] == "Mirror" { "2" } else { "0" });
        namespace.try_status(&object)
    });
}
