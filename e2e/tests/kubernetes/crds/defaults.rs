//! Defaults that the apiserver sets for missing fields.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    schema::{Path, walk},
    schema_of,
};
use crate::harness::{TestNamespace, install_crds};

/// Minimal specs, and the specs that the apiserver makes of them.
fn cases() -> Vec<(&'static str, Value, Value)> {
    let login = json!({"name": "login"});
    let ca = json!({"name": "ca"});
    let tables = json!([{"schema": "public", "name": "users"}]);
    vec![
        (
            "ReplicationPeer",
            json!({"postgres": {"host": "db", "database": "app", "credentialsSecretRef": login, "tls": {"caSecretRef": ca}}}),
            json!({"postgres": {"host": "db", "port": 5432, "database": "app", "credentialsSecretRef": login,
                "tls": {"mode": "VerifyFull", "caSecretRef": {"name": "ca", "key": "ca.crt"}}}}),
        ),
        (
            "ReplicationPeer",
            json!({"clickhouse": {"url": "https://ch:8443", "database": "app", "credentialsSecretRef": login, "tls": {"caSecretRef": ca}}}),
            json!({"clickhouse": {"url": "https://ch:8443", "database": "app", "credentialsSecretRef": login,
                "tls": {"mode": "VerifyFull", "caSecretRef": {"name": "ca", "key": "ca.crt"}}}}),
        ),
        (
            "Mirror",
            json!({"sourceRef": {"name": "a"}, "destinationRef": {"name": "b"}, "tables": tables}),
            json!({"sourceRef": {"name": "a"}, "destinationRef": {"name": "b"}, "tables": tables,
                "snapshot": {"mode": "Initial", "parallelism": 2}, "batch": {"maxBytes": "32Mi", "maxDelayMilliseconds": 200},
                "outOfRange": "Clamp", "suspend": false, "deletionPolicy": "Delete"}),
        ),
        (
            "Mirror",
            json!({"sourceRef": {"name": "a"}, "destinationRef": {"name": "b"}, "tables": tables,
                "snapshot": {}, "batch": {}, "replicator": {}}),
            json!({"sourceRef": {"name": "a"}, "destinationRef": {"name": "b"}, "tables": tables,
                "snapshot": {"mode": "Initial", "parallelism": 2}, "batch": {"maxBytes": "32Mi", "maxDelayMilliseconds": 200},
                "outOfRange": "Clamp", "suspend": false, "deletionPolicy": "Delete", "replicator": {"logLevel": "Info"}}),
        ),
    ]
}

#[test]
fn are_as_documented() {
    install_crds();
    let namespace = TestNamespace::new();
    let mut tried = BTreeSet::new();
    for (kind, spec, becomes) in cases() {
        let object = json!({"apiVersion": "walferry.dev/v1alpha1", "kind": kind, "metadata": {"name": "example"}, "spec": spec});
        let mut made = namespace.try_create(&object).unwrap_or_else(|status| panic!("{}", status.message));
        assert_eq!(made["spec"], becomes);
        let mut object = object;
        walk(&schema_of(kind), &Path::default(), &mut |path, schema| {
            if !schema["default"].is_null() && path.of(&mut made).is_some() && path.of(&mut object).is_none()
            {
                tried.insert((kind, path.to_string()));
            }
        });
    }
    for kind in ["ReplicationPeer", "Mirror"] {
        walk(&schema_of(kind), &Path::default(), &mut |path, schema| {
            let known = schema["default"].is_null() || tried.contains(&(kind, path.to_string()));
            assert!(known, "{kind}: the default of {path} has no case");
        });
    }
}

#[test]
fn null_is_the_same_as_nothing() {
    install_crds();
    let namespace = TestNamespace::new();
    let object = |spec: Value| json!({"apiVersion": "walferry.dev/v1alpha1", "kind": "ReplicationPeer", "metadata": {"name": "example"}, "spec": spec});
    let postgres = json!({"host": "db", "database": "app", "credentialsSecretRef": {"name": "login"}, "port": null, "tls": null});
    let made = namespace.try_create(&object(json!({"postgres": postgres, "clickhouse": null})));
    let made = made.unwrap_or_else(|status| panic!("{}", status.message));
    assert_eq!(
        made["spec"],
        json!({"postgres": {"host": "db", "port": 5432, "database": "app", "credentialsSecretRef": {"name": "login"}}})
    );
}
