//! The committed CustomResourceDefinitions are the generated ones, and keep to what a structural schema may
//! hold.

use serde_json::Value;

#[test]
fn committed_definitions_are_up_to_date() {
    let committed =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/crds/walferry.dev.yaml")).unwrap();
    assert!(
        committed == walferry::cli::crds::yaml().unwrap(),
        "crds/walferry.dev.yaml is stale; run ./e2e/tools/generate"
    );
}

#[test]
fn committed_reference_is_fresh() {
    let committed = include_str!("../docs/api.md");
    assert!(committed == walferry::cli::crds::markdown(), "docs/api.md is stale; run ./e2e/tools/generate");
}

/// What the API server refuses or what `kubectl explain` would leave unexplained.
fn check(schema: &Value, path: &str) {
    let description = schema.get("description").and_then(Value::as_str).unwrap_or_default();
    assert!(!description.is_empty(), "{path}: no description");
    assert!(schema.get("$ref").is_none(), "{path}: reference");
    let properties = schema.get("properties").and_then(Value::as_object);
    assert!(
        properties.is_none() || schema.get("additionalProperties").is_none(),
        "{path}: both kinds of properties"
    );
    if let Some(format) = schema.get("format").and_then(Value::as_str) {
        assert!(["int32", "int64", "double", "date-time"].contains(&format), "{path}: format {format}");
    }
    for (name, property) in properties.into_iter().flatten() {
        check(property, &format!("{path}.{name}"));
    }
    if let Some(items) = schema.get("items").filter(|items| items.get("properties").is_some()) {
        check(items, &format!("{path}[]"));
    }
}

#[test]
fn schemas_are_structural_and_explained() {
    for definition in walferry::api::custom_resource_definitions() {
        let definition = serde_json::to_value(definition).unwrap();
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        for part in ["spec", "status"] {
            check(&schema["properties"][part], part);
        }
    }
}
