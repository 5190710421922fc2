//! CRDs and samples, applied like users apply them.

use serde_json::{Value, json};

use super::{FILE, definitions};
use crate::harness::{TestNamespace, install_crds};

/// Every sample of `config/samples`.
fn samples() -> Vec<std::path::PathBuf> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/config/samples");
    let mut found: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.is_dir());
    found.sort();
    assert!(!found.is_empty());
    found
}

/// Replaces `1.0` by `1`, which is the same number for the apiserver.
fn whole(value: &Value) -> Value {
    match value {
        Value::Number(number) => json!(number.as_f64()),
        Value::Array(items) => items.iter().map(whole).collect(),
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), whole(value))).collect(),
        other => other.clone(),
    }
}

#[test]
fn the_apiserver_has_nothing_to_say_against_the_definitions() {
    install_crds();
    let namespace = TestNamespace::new();
    namespace
        .cluster
        .kubectl(&["apply", "--server-side", "--warnings-as-errors", "--validate=strict", "-f", FILE], "")
        .exits(0);
    for definition in definitions() {
        let name = definition["metadata"]["name"].as_str().unwrap();
        let shown = namespace.kubectl(&["get", "crd", name, "--output=json"]).exits(0);
        let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
        let conditions: Vec<String> = shown["status"]["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|condition| format!("{}={}", condition["type"], condition["status"]).replace('"', ""))
            .collect();
        // A non-structural schema would have the condition NonStructuralSchema=True.
        assert_eq!(conditions, ["NamesAccepted=True", "Established=True"], "{name}");
        // The apiserver drops nothing and adds only its own fields.
        let (ours, theirs) =
            (&definition["spec"]["versions"][0]["schema"], &shown["spec"]["versions"][0]["schema"]);
        assert_eq!(whole(ours), whole(theirs), "{name}");

        // Some warnings are sent only when an object is created, so it is created under another name.
        let copy = definition
            .to_string()
            .replace("walferry.dev", "walferry.example")
            .replace(r#""mirror""#, r#""mirr""#);
        let first = ["create", "--dry-run=server", "--warnings-as-errors", "--validate=strict", "-f", "-"];
        namespace.cluster.kubectl(&first, &copy).exits(0);
    }
}

#[test]
fn samples_applied_twice_change_nothing() {
    install_crds();
    // The operator would change finalizers and statuses.
    for sample in samples() {
        let namespace = TestNamespace::without_operator();
        let sample = sample.to_str().unwrap();
        let apply = || {
            let applied =
                namespace.kubectl(&["apply", "--server-side", "--validate=strict", "-k", sample]).exits(0);
            // A sample can't have a real certificate.
            let warnings = applied.stderr.replace("Warning: x509: malformed certificate\n", "");
            assert_eq!(warnings, "", "{sample}");
            let shown = namespace.kubectl(&["get", "--output=json", "-k", sample]).exits(0);
            let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
            let items = shown["items"].as_array().unwrap().clone();
            items.iter().map(|item| item["metadata"].clone()).collect::<Vec<_>>()
        };
        let first = apply();
        assert!(first.len() >= 3, "{sample}: {first:?}");
        assert_eq!(first, apply(), "{sample}");
        namespace.kubectl(&["diff", "--server-side", "-k", sample]).exits(0);
    }
}

#[test]
fn a_misspelt_field_is_refused() {
    install_crds();
    let namespace = TestNamespace::new();
    let mirror = json!({"apiVersion": "walferry.dev/v1alpha1", "kind": "Mirror", "metadata": {"name": "example"}, "spec": {
        "sourceRef": {"name": "a"}, "destinationRef": {"name": "b"}, "tables": [{"schema": "public", "name": "users"}],
        "batch": {"maxByte": "1Mi"}}});
    let create = ["create", "--validate=strict", "-f", "-"];
    namespace
        .kubectl_with(&create, &mirror.to_string())
        .exits(1)
        .says(&[r#"unknown field "spec.batch.maxByte""#]);
    let apply = ["apply", "--server-side", "-f", "-"];
    namespace
        .kubectl_with(&apply, &mirror.to_string())
        .exits(1)
        .says(&[".spec.batch.maxByte: field not declared in schema"]);
}

#[test]
fn kubectl_shows_the_words_of_a_rule() {
    install_crds();
    let namespace = TestNamespace::new();
    let peer = json!({"apiVersion": "walferry.dev/v1alpha1", "kind": "ReplicationPeer", "metadata": {"name": "example"}, "spec": {}});
    let words = r#"The ReplicationPeer "example" is invalid: spec: Invalid value: "object": exactly one of postgres and clickhouse must be set"#;
    for apply in [&["create", "-f", "-"][..], &["apply", "--server-side", "-f", "-"]] {
        let outcome = namespace.kubectl_with(apply, &peer.to_string()).exits(1);
        assert_eq!(outcome.stderr.trim_end(), words);
    }
}

/// The rules must not cost the apiserver more than it allows for one object, however large.
#[test]
fn the_largest_mirror_is_taken() {
    install_crds();
    let namespace = TestNamespace::new();
    let names =
        |prefix: &str| (0..5).map(|index| format!("{prefix}_of_the_application_{index}")).collect::<Vec<_>>();
    let map = |prefix: &str| {
        names(prefix).into_iter().map(|name| (name, json!("String"))).collect::<serde_json::Map<_, _>>()
    };
    let tables: Vec<Value> = (0..2000)
        .map(|index| {
            json!({"schema": "public", "name": format!("table_{index}"), "target": {"table": format!("target_{index}")},
                "columns": {"exclude": names("excluded"), "rename": map("renamed"), "types": map("typed")}})
        })
        .collect();
    let mirror = json!({"apiVersion": "walferry.dev/v1alpha1", "kind": "Mirror", "metadata": {"name": "large"},
        "spec": {"sourceRef": {"name": "a"}, "destinationRef": {"name": "b"}, "tables": tables}});
    let size = mirror.to_string().len();
    // etcd accepts at most 1.5 MiB.
    assert!((1 << 20..3 << 19).contains(&size), "{size} bytes");
    namespace.try_create(&mirror).unwrap_or_else(|status| panic!("{}", status.message));
}
