//! Texts that kubectl prints: descriptions, columns, short names.

use serde_json::{Value, json};

use super::{
    schema::{Path, walk},
    schema_of,
};
use crate::{
    harness::{TestNamespace, install_crds},
    support::until,
};

/// Replaces each run of white space by one space.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn every_field_has_a_description() {
    for kind in ["ReplicationPeer", "Mirror"] {
        let schema = schema_of(kind);
        walk(&schema, &Path::default(), &mut |path, schema| {
            let documented = schema["description"].as_str().is_some_and(|text| text.len() > 10);
            // The description of an item or entry is that of its list or map.
            let own = !path.to_string().ends_with(['}', ']']);
            assert!(documented || !own, "{kind}: {path} has no description");
        });
    }
}

#[test]
fn kubectl_explain_teaches() {
    install_crds();
    let namespace = TestNamespace::new();
    for path in [
        "peer",
        "peer.spec.postgres",
        "peer.spec.postgres.tls",
        "peer.spec.clickhouse",
        "peer.status",
        "mirror",
        "mirror.spec",
        "mirror.spec.tables",
        "mirror.spec.tables.columns",
        "mirror.spec.tables.engine",
        "mirror.spec.batch",
        "mirror.spec.replicator",
        "mirror.status",
    ] {
        let (name, rest) = path.split_once('.').unwrap_or((path, ""));
        let mut schema = &schema_of(if name == "peer" { "ReplicationPeer" } else { "Mirror" });
        let mut description = &schema["description"];
        for field in rest.split('.').filter(|field| !field.is_empty()) {
            schema = &schema["properties"][field];
            description = &schema["description"];
            if schema["type"] == "array" {
                schema = &schema["items"];
            }
        }
        // The apiserver publishes descriptions a little later than it serves the kind.
        let shown = until(&format!("kubectl explain {path}"), || {
            let outcome = namespace.kubectl(&["explain", path]);
            (outcome.code == Some(0)).then_some(words(&outcome.stdout))
        });
        assert!(shown.contains(&words(description.as_str().unwrap())), "{path}: {shown}");
        for (field, schema) in schema["properties"].as_object().unwrap() {
            if ["apiVersion", "kind", "metadata"].contains(&field.as_str()) {
                continue;
            }
            let text = words(schema["description"].as_str().unwrap_or_default());
            assert!(
                shown.contains(&format!("{field} <")) && shown.contains(&text),
                "{path}.{field}: {shown}"
            );
        }
    }
}

#[test]
fn kubectl_get_shows_what_matters() {
    install_crds();
    // The operator would change the statuses.
    let namespace = TestNamespace::without_operator();
    let peer = |name: &str, spec: Value| json!({"apiVersion": "walferry.dev/v1alpha1", "kind": "ReplicationPeer", "metadata": {"name": name}, "spec": spec});
    namespace.apply(&peer(
        "app",
        json!({"postgres": {"host": "db", "database": "app", "credentialsSecretRef": {"name": "login"}}}),
    ));
    namespace.apply(&json!({"apiVersion": "walferry.dev/v1alpha1", "kind": "Mirror", "metadata": {"name": "orders"}, "spec": {
        "sourceRef": {"name": "app"}, "destinationRef": {"name": "analytics"}, "tables": [{"schema": "public", "name": "orders"}]}}));
    let rows = |arguments: &[&str]| -> Vec<Vec<String>> {
        let outcome = namespace.kubectl(&[&["get"], arguments].concat()).exits(0);
        outcome.stdout.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
    };
    // Without a status, only columns of the spec have values.
    let shown = rows(&["mirrors"]);
    assert_eq!(shown[0].join(" "), "NAME READY REASON SOURCE DESTINATION TABLES LAG LASTLSN AGE");
    assert_eq!(shown[1][..3].join(" "), "orders app analytics");
    let ready = |reason: &str| json!([{"type": "Ready", "status": "True", "reason": reason, "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
    let set = |kind: &str, name: &str, status: Value| {
        let patch = json!({"status": status}).to_string();
        namespace
            .kubectl(&["patch", kind, name, "--subresource=status", "--type=merge", "--patch", &patch])
            .exits(0);
    };
    set(
        "mirror",
        "orders",
        json!({"conditions": ready("Streaming"), "lastLSN": "0/1A2B3C4",
        "lag": {"bytes": 512, "seconds": 0}, "tables": {"total": 3, "snapshotting": 0, "streaming": 3, "failed": 0}}),
    );
    set("peer", "app", json!({"conditions": ready("Connected"), "serverVersion": "18.4"}));
    let shown = rows(&["mirror"]);
    assert_eq!(shown[1][..8].join(" "), "orders True Streaming app analytics 3 512 0/1A2B3C4");
    let shown = rows(&["peer"]);
    assert_eq!(shown[0].join(" "), "NAME READY REASON VERSION AGE");
    assert_eq!(shown[1][..4].join(" "), "app True Connected 18.4");
    // The category lists both kinds.
    let mut shown = rows(&["walferry", "--output=name"]);
    shown.sort();
    assert_eq!(shown.concat(), ["mirror.walferry.dev/orders", "replicationpeer.walferry.dev/app"]);
}
