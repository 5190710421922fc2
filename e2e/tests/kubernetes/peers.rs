//! ReplicationPeers: the status that a check of the database results in, and when it is checked again.

use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use walferry::api::{ReplicationPeer, ReplicationPeerStatus, conditions};

use crate::{
    harness::{TestEnv, TestNamespace, clickhouse, cluster, condition, own_postgres},
    support::{self, TestCa},
};

/// Watches a peer until `look` returns something.
#[track_caller]
fn until<T>(
    env: &TestEnv,
    name: &str,
    awaited: &str,
    mut look: impl FnMut(&ReplicationPeerStatus) -> Option<T>,
) -> T {
    env.namespace.until(name, awaited, |peer: Option<&ReplicationPeer>| {
        let status = peer?.status.as_ref()?;
        (status.observed_generation == peer?.metadata.generation).then(|| look(status))?
    })
}

#[track_caller]
fn until_ready(env: &TestEnv, name: &str) -> ReplicationPeerStatus {
    until(env, name, "Ready", |status| {
        let ready = condition(&status.conditions, conditions::READY)?;
        (ready.status == "True").then(|| status.clone())
    })
}

/// Waits until a peer is not Ready and a condition of this type has this reason.
#[track_caller]
fn until_failing(env: &TestEnv, name: &str, kind: &str, reason: &str) {
    let status = until(env, name, &format!("{kind} with {reason}"), |status| {
        let found = condition(&status.conditions, kind)?;
        (found.status == "True" && found.reason == reason).then(|| status.clone())
    });
    let other = if kind == conditions::STALLED { conditions::RECONCILING } else { conditions::STALLED };
    assert_eq!(condition(&status.conditions, other), None);
    let ready = condition(&status.conditions, conditions::READY).unwrap();
    assert_eq!(ready.status, "False", "{status:?}");
}

/// Merges a change into a Secret, like `kubectl edit`.
fn edit_secret(namespace: &TestNamespace, name: &str, change: &Value) {
    let api = namespace.api::<Secret>();
    cluster().block_on(api.patch(name, &PatchParams::default(), &Patch::Merge(change))).unwrap();
}

/// This document under another name.
fn named(document: &Value, name: &str) -> Value {
    let mut document = document.clone();
    document["metadata"]["name"] = name.into();
    document
}

#[test]
fn a_peer_says_what_it_is_and_follows_its_secret() {
    let env = TestEnv::new();
    let mirror = env.mirror(&["t"]);
    // The first check finds no Secret.
    env.namespace.apply(&mirror.postgres);
    until_failing(&env, "source", conditions::STALLED, "SecretMissing");
    for document in mirror.documents() {
        if document["kind"] != "Mirror" {
            env.namespace.apply(&document);
        }
    }

    let source = until_ready(&env, "source");
    assert_eq!(
        source.system_identifier,
        Some(env.source_value("SELECT system_identifier FROM pg_control_system()"))
    );
    let version = source.server_version.unwrap();
    assert!(env.source_value("SHOW server_version").starts_with(&version), "{version}");
    let target = until_ready(&env, "target");
    assert_eq!(target.server_version, Some(env.target_value("SELECT version()")));
    assert_eq!(target.system_identifier, None);
    env.namespace
        .kubectl(&["wait", "--for=condition=Ready", "--timeout=10s", "replicationpeers", "--all"])
        .exits(0);
    env.namespace.kubectl(&["get", "replicationpeers"]).exits(0).says(&["READY", "True", &version]);

    for (secret, peer, reason, right) in [
        ("source-login", "source", "SourceAuthenticationFailed", "role-test"),
        ("target-login", "target", "DestinationAuthenticationFailed", "limited-test"),
    ] {
        // A changed Secret is checked immediately.
        edit_secret(&env.namespace, secret, &json!({"stringData": {"password": "not-the-password"}}));
        until_failing(&env, peer, conditions::STALLED, reason);
        // The server's version stays in the status.
        until(&env, peer, "the version", |status| status.server_version.clone());
        edit_secret(&env.namespace, secret, &json!({"data": {"password": null}}));
        until_failing(&env, peer, conditions::STALLED, "SecretKeyMissing");
        edit_secret(&env.namespace, secret, &json!({"stringData": {"password": right}}));
        until_ready(&env, peer);
    }
    env.namespace.kubectl(&["describe", "replicationpeers"]).exits(0).says(&[
        "SecretMissing",
        "SecretKeyMissing",
        "SourceAuthenticationFailed",
        "Connected",
    ]);
    env.assert_secret(&["not-the-password"]);

    // A peer without Mirrors is deleted immediately.
    for peer in ["source", "target"] {
        env.delete::<ReplicationPeer>(peer);
    }
}

/// Each wrong setting has its reason, and a correction is noticed.
#[test]
fn wrong_settings_have_reasons_and_end_when_corrected() {
    let address = cluster().address().to_string();
    let (right, wrong) = (TestCa::new("right"), TestCa::new("wrong"));
    let folder = tempfile::tempdir().unwrap();
    right.server(&[&address]).write_files(folder.path(), &right);
    let postgres = own_postgres(&["--tls", folder.path().to_str().unwrap(), "-c", "wal_level=replica"]);
    let env = TestEnv::with(TestNamespace::new(), support::TestEnv::on(postgres, clickhouse()));
    let mirror = env.mirror(&["t"]);
    for (name, data) in mirror.secrets.iter().cloned().chain([
        ("right".to_owned(), json!({"ca.crt": right.pem()})),
        ("wrong".to_owned(), json!({"ca.crt": wrong.pem(), "other": "-"})),
        ("reader-login".to_owned(), json!({"username": "reader", "password": "reader-test"})),
        ("frozen-login".to_owned(), json!({"username": "frozen", "password": "frozen-test"})),
    ]) {
        env.namespace.apply_secret(&name, &data);
    }
    let apply = |document: &Value, name: &str, changes: &[(&str, Value)]| {
        let mut document = named(document, name);
        for (pointer, value) in changes {
            let (parent, field) = pointer.rsplit_once('/').unwrap();
            document.pointer_mut(&format!("/spec{parent}")).unwrap()[field] = value.clone();
        }
        env.namespace.apply(&document);
    };
    let tls =
        |name: &str, key: &str| json!({"mode": "VerifyFull", "caSecretRef": {"name": name, "key": key}});
    let source = |name: &str, field: &str, value: Value| {
        apply(&mirror.postgres, name, &[(&format!("/postgres/{field}"), value)]);
    };
    let target = |name: &str, field: &str, value: Value| {
        apply(&mirror.clickhouse, name, &[(&format!("/clickhouse/{field}"), value)]);
    };
    apply(&mirror.postgres, "level", &[]);
    source("host", "host", "db.invalid".into());
    source("port", "port", 1.into());
    source("database", "database", "app_nowhere".into());
    source("tls", "tls", tls("right", "ca.crt"));
    source("other-ca", "tls", tls("wrong", "ca.crt"));
    source("no-ca", "tls", tls("right", "ca.pem"));
    source("broken-ca", "tls", tls("wrong", "other"));
    apply(&mirror.clickhouse, "target", &[]);
    target("target-port", "url", format!("http://{address}:1").into());
    target("target-database", "database", "app_nowhere".into());
    target("reader", "credentialsSecretRef", json!({"name": "reader-login"}));
    target("frozen", "credentialsSecretRef", json!({"name": "frozen-login"}));

    let (stalled, reconciling) = (conditions::STALLED, conditions::RECONCILING);
    for (name, kind, reason) in [
        ("level", stalled, "SourceWalLevelNotLogical"),
        ("host", reconciling, "SourceUnreachable"),
        ("port", reconciling, "SourceUnreachable"),
        ("database", stalled, "SourceError"),
        ("tls", stalled, "SourceWalLevelNotLogical"),
        ("other-ca", stalled, "SourceTlsFailed"),
        ("no-ca", stalled, "SecretKeyMissing"),
        ("broken-ca", stalled, "SourceTlsFailed"),
        ("target-port", reconciling, "DestinationUnreachable"),
        ("target-database", stalled, "DestinationDatabaseMissing"),
        ("reader", stalled, "DestinationAccessDenied"),
        ("frozen", stalled, "DestinationReadOnly"),
    ] {
        until_failing(&env, name, kind, reason);
    }
    until_ready(&env, "target");
    env.assert_secret(&["reader-test", "frozen-test"]);

    // A changed spec is checked immediately.
    apply(&mirror.clickhouse, "target-port", &[]);
    target("target-database", "database", env.database.as_str().into());
    for name in ["target-port", "target-database"] {
        until_ready(&env, name);
    }
    env.namespace.kubectl(&["delete", "replicationpeers", "--all"]).exits(0);
}
