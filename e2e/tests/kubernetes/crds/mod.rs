//! The CRDs on a real apiserver.

mod apply;
mod bounds;
mod defaults;
mod former_names;
mod rules;
mod schema;
mod texts;

use serde::Deserialize;
use serde_json::Value;

/// The file that users apply.
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/crds/walferry.dev.yaml");

fn definitions() -> Vec<Value> {
    let text = std::fs::read_to_string(FILE).unwrap();
    serde_yaml::Deserializer::from_str(&text).map(|document| Value::deserialize(document).unwrap()).collect()
}

/// The schema of a kind.
fn schema_of(kind: &str) -> Value {
    let found = definitions().into_iter().find(|definition| definition["spec"]["names"]["kind"] == kind);
    found.unwrap()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}
