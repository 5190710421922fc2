//! Every CEL rule of the CRDs: an object that satisfies it is accepted, an object that violates it is
//! rejected with the message for the user. A rule without a case here fails the test.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    schema::{Path, walk},
    schema_of,
};
use crate::harness::{TestNamespace, install_crds};

/// A rule and specs on both sides of it.
struct Case {
    kind: &'static str,
    /// The field that has the rule.
    at: &'static str,
    /// The apiserver's message after "… is invalid: ". It ends with the rule's message.
    reads: &'static str,
    /// The spec of the existing object, for rules about changes.
    before: Option<Value>,
    refused: Value,
    accepted: Value,
}

fn postgres(extra: Value) -> Value {
    let mut postgres =
        json!({"host": "db.example", "database": "app", "credentialsSecretRef": {"name": "app-db"}});
    merge(&mut postgres, extra);
    json!({"postgres": postgres})
}

fn clickhouse(extra: Value) -> Value {
    let mut clickhouse = json!({"url": "https://ch.example:8443", "database": "analytics", "credentialsSecretRef": {"name": "ch"}});
    merge(&mut clickhouse, extra);
    json!({"clickhouse": clickhouse})
}

fn mirror(extra: Value) -> Value {
    let mut mirror = json!({"sourceRef": {"name": "app"}, "destinationRef": {"name": "analytics"}, "tables": [{"schema": "public", "name": "users"}]});
    merge(&mut mirror, extra);
    mirror
}

/// A Mirror whose second table has additional fields.
fn table(extra: Value) -> Value {
    let mut table = json!({"schema": "public", "name": "orders"});
    merge(&mut table, extra);
    mirror(json!({"tables": [{"schema": "public", "name": "users"}, table]}))
}

fn columns(columns: Value) -> Value {
    table(json!({"columns": columns}))
}

fn replicator(replicator: Value) -> Value {
    mirror(json!({"replicator": replicator}))
}

/// Sets the fields of `extra`.
fn merge(value: &mut Value, extra: Value) {
    let Value::Object(extra) = extra else { panic!("fields") };
    value.as_object_mut().unwrap().extend(extra);
}

fn cases() -> Vec<Case> {
    let peer = |at, reads, refused, accepted| Case {
        kind: "ReplicationPeer",
        at,
        reads,
        before: None,
        refused,
        accepted,
    };
    let of_mirror =
        |at, reads, refused, accepted| Case { kind: "Mirror", at, reads, before: None, refused, accepted };
    let mut both = postgres(json!({}));
    merge(&mut both, clickhouse(json!({})));
    let mut cases = names();
    cases.extend([
        peer(
            "spec",
            "spec: Invalid value: \"object\": exactly one of postgres and clickhouse must be set",
            both,
            clickhouse(json!({})),
        ),
        peer(
            "spec",
            "spec: Invalid value: \"object\": exactly one of postgres and clickhouse must be set",
            json!({}),
            postgres(json!({})),
        ),
        Case {
            before: Some(postgres(json!({}))),
            ..peer(
                "spec",
                "spec: Invalid value: \"object\": a peer can't change from postgres to clickhouse or back; make another ReplicationPeer",
                clickhouse(json!({})),
                postgres(json!({"host": "standby.example", "port": 5433})),
            )
        },
        peer(
            "spec.clickhouse",
            "spec.clickhouse: Invalid value: \"object\": an https url needs a tls.mode other than Disable, and an http url takes no tls but Disable",
            clickhouse(json!({"tls": {"mode": "Disable"}})),
            clickhouse(json!({"tls": {"mode": "Require"}})),
        ),
        peer(
            "spec.clickhouse",
            "spec.clickhouse: Invalid value: \"object\": an https url needs a tls.mode other than Disable, and an http url takes no tls but Disable",
            clickhouse(json!({"url": "http://ch.example:8123", "tls": {}})),
            clickhouse(json!({"url": "http://ch.example:8123", "tls": {"mode": "Disable"}})),
        ),
        peer(
            "spec.clickhouse.url",
            "spec.clickhouse.url: Invalid value: \"string\": must be http://host:port or https://host:port, without user, path or query",
            clickhouse(json!({"url": "https://user:secret@ch.example:8443"})),
            clickhouse(json!({"url": "https://[2001:db8::1]:8443/"})),
        ),
        peer(
            "spec.clickhouse.tls",
            "spec.clickhouse.tls: Invalid value: \"object\": caSecretRef is used only with mode VerifyCa or VerifyFull",
            clickhouse(json!({"tls": {"mode": "Require", "caSecretRef": {"name": "ca"}}})),
            clickhouse(json!({"tls": {"mode": "VerifyCa", "caSecretRef": {"name": "ca"}}})),
        ),
        peer(
            "spec.clickhouse.tls",
            "spec.clickhouse.tls: Invalid value: \"object\": clientCertificateSecretRef can't be used with mode Disable",
            clickhouse(
                json!({"url": "http://ch.example:8123", "tls": {"mode": "Disable", "clientCertificateSecretRef": {"name": "me"}}}),
            ),
            clickhouse(json!({"tls": {"mode": "Require", "clientCertificateSecretRef": {"name": "me"}}})),
        ),
        peer(
            "spec.postgres.tls",
            "spec.postgres.tls: Invalid value: \"object\": caSecretRef is used only with mode VerifyCa or VerifyFull",
            postgres(json!({"tls": {"mode": "Disable", "caSecretRef": {"name": "ca", "key": "root.pem"}}})),
            postgres(json!({"tls": {"caSecretRef": {"name": "ca", "key": "root.pem"}}})),
        ),
        peer(
            "spec.postgres.tls",
            "spec.postgres.tls: Invalid value: \"object\": clientCertificateSecretRef can't be used with mode Disable",
            postgres(json!({"tls": {"mode": "Disable", "clientCertificateSecretRef": {"name": "me"}}})),
            postgres(json!({"tls": {"mode": "VerifyFull", "clientCertificateSecretRef": {"name": "me"}}})),
        ),
        Case {
            before: Some(mirror(json!({}))),
            ..of_mirror(
                "spec.sourceRef",
                "spec.sourceRef: Invalid value: \"object\": sourceRef can't be changed; make another Mirror",
                mirror(json!({"sourceRef": {"name": "other"}})),
                mirror(json!({"suspend": true})),
            )
        },
        Case {
            before: Some(mirror(json!({}))),
            ..of_mirror(
                "spec.destinationRef",
                "spec.destinationRef: Invalid value: \"object\": destinationRef can't be changed; make another Mirror",
                mirror(json!({"destinationRef": {"name": "other"}})),
                mirror(json!({"tables": [{"schema": "public", "name": "orders"}]})),
            )
        },
        of_mirror(
            "spec.batch.maxBytes",
            "spec.batch.maxBytes: Invalid value: \"\": must be a size from 1Mi to 1Gi, such as 32Mi or 33554432",
            mirror(json!({"batch": {"maxBytes": "64MB"}})),
            mirror(json!({"batch": {"maxBytes": "64Mi"}})),
        ),
        of_mirror(
            "spec.batch.maxBytes",
            "spec.batch.maxBytes: Invalid value: \"\": must be a size from 1Mi to 1Gi, such as 32Mi or 33554432",
            mirror(json!({"batch": {"maxBytes": 1_048_575}})),
            mirror(json!({"batch": {"maxBytes": 1_048_576}})),
        ),
        of_mirror(
            "spec.batch.maxBytes",
            "spec.batch.maxBytes: Invalid value: \"\": must be a size from 1Mi to 1Gi, such as 32Mi or 33554432",
            mirror(json!({"batch": {"maxBytes": "1025Mi"}})),
            mirror(json!({"batch": {"maxBytes": "1Gi"}})),
        ),
        of_mirror(
            "spec.tables[].operations",
            "spec.tables[1].operations: Invalid value: \"array\": operations must have Insert, each operation once, and Delete only together with Update",
            table(json!({"operations": ["Insert", "Delete"]})),
            table(json!({"operations": ["Truncate", "Insert"]})),
        ),
        of_mirror(
            "spec.tables[].operations",
            "spec.tables[1].operations: Invalid value: \"array\": operations must have Insert, each operation once, and Delete only together with Update",
            table(json!({"operations": ["Update", "Delete", "Truncate"]})),
            table(json!({"operations": ["Delete", "Update", "Insert"]})),
        ),
        of_mirror(
            "spec.tables[]",
            "spec.tables[1]: Invalid value: \"object\": insertOnly: true contradicts operations; leave insertOnly out, which is deprecated",
            table(json!({"insertOnly": true, "operations": ["Insert", "Update", "Delete", "Truncate"]})),
            table(json!({"insertOnly": true, "operations": ["Insert", "Truncate"]})),
        ),
        of_mirror(
            "spec.tables[].target.table",
            "spec.tables[1].target.table: Invalid value: \"string\": table names that begin with _walferry are walferry's own",
            table(json!({"target": {"table": "_walferry_state"}})),
            table(json!({"target": {"table": "orders_v2"}})),
        ),
        of_mirror(
            "spec.tables[].columns",
            "spec.tables[1].columns: Invalid value: \"object\": a column in exclude can't be in rename too",
            columns(json!({"exclude": ["secret", "note"], "rename": {"note": "remark"}})),
            columns(json!({"exclude": ["secret"], "rename": {"note": "remark"}})),
        ),
        of_mirror(
            "spec.tables[].columns",
            "spec.tables[1].columns: Invalid value: \"object\": a column in exclude can't be in types too",
            columns(json!({"exclude": ["payload"], "types": {"payload": "JSON"}})),
            columns(json!({"exclude": ["secret"], "types": {"payload": "JSON"}})),
        ),
        of_mirror(
            "spec.tables[].columns",
            "spec.tables[1].columns: Invalid value: \"object\": new names must not be empty or begin with _walferry",
            columns(json!({"rename": {"version": "_walferry_version"}})),
            columns(json!({"rename": {"_walferry_version": "version"}})),
        ),
        of_mirror(
            "spec.tables[].columns",
            "spec.tables[1].columns: Invalid value: \"object\": new names must not be empty or begin with _walferry",
            columns(json!({"rename": {"version": ""}})),
            columns(json!({"rename": {"createdAt": "created_at"}})),
        ),
        of_mirror(
            "spec.tables[].columns",
            "spec.tables[1].columns: Invalid value: \"object\": types must not be empty",
            columns(json!({"types": {"price": ""}})),
            columns(json!({"types": {"price": "Decimal(18, 4)"}})),
        ),
        of_mirror(
            "spec.tables[].engine.settings",
            "spec.tables[1].engine.settings: Invalid value: \"object\": setting names are lower-case letters, digits and _",
            table(json!({"engine": {"settings": {"index_granularity = 1, x": "1"}}})),
            table(json!({"engine": {"settings": {"index_granularity": "1024"}}})),
        ),
        of_mirror(
            "spec.replicator.podLabels",
            "spec.replicator.podLabels: Invalid value: \"object\": labels that begin with app.kubernetes.io/ or walferry.dev/ are walferry's own",
            replicator(json!({"podLabels": {"app.kubernetes.io/name": "mine"}})),
            replicator(json!({"podLabels": {"team": "billing", "example.org/name": "mine"}})),
        ),
        of_mirror(
            "spec.replicator.podAnnotations",
            "spec.replicator.podAnnotations: Invalid value: \"object\": annotations that begin with app.kubernetes.io/ or walferry.dev/ are walferry's own",
            replicator(json!({"podAnnotations": {"walferry.dev/config-hash": "0"}})),
            replicator(json!({"podAnnotations": {"example.org/owner": "billing"}})),
        ),
        of_mirror(
            "spec.replicator.resources.requests",
            "spec.replicator.resources.requests: Invalid value: \"object\": must be amounts that are not negative, such as 500m or 256Mi",
            replicator(json!({"resources": {"requests": {"cpu": "-1"}}})),
            replicator(json!({"resources": {"requests": {"cpu": 1, "memory": "0"}}})),
        ),
        of_mirror(
            "spec.replicator.resources.limits",
            "spec.replicator.resources.limits: Invalid value: \"object\": must be amounts that are not negative, such as 500m or 256Mi",
            replicator(json!({"resources": {"limits": {"memory": "256MB"}}})),
            replicator(
                json!({"resources": {"requests": {"memory": "128Mi"}, "limits": {"memory": "256Mi"}}}),
            ),
        ),
        of_mirror(
            "spec.replicator.resources",
            "spec.replicator.resources: Invalid value: \"object\": a request must not be greater than the limit of the same name",
            replicator(json!({"resources": {"requests": {"cpu": 1}, "limits": {"cpu": "999m"}}})),
            replicator(
                json!({"resources": {"requests": {"cpu": 1}, "limits": {"cpu": "1000m", "memory": "64Mi"}}}),
            ),
        ),
    ]);
    cases
}

/// Fields whose text becomes part of the path of a request to the API server, or of a file.
fn names() -> Vec<Case> {
    const NAME: &str = "must be a name that Kubernetes takes: lower-case letters, digits, - and ., with a letter or digit at both ends of each part";
    const KEY: &str =
        "must be a key that a Secret can have: letters, digits, -, _ and ., and not . or .. at the beginning";
    let case = |kind, at: &'static str, of: &dyn Fn(&str) -> Value, right: &str, wrong: &str| {
        let rule = if at.ends_with(".key") { KEY } else { NAME };
        let reads = format!("{}: Invalid value: \"string\": {rule}", at.replace("[]", "[0]"));
        Case { kind, at, reads: reads.leak(), before: None, refused: of(wrong), accepted: of(right) }
    };
    let mut cases = Vec::new();
    let tls = |tls: Value| json!({"tls": tls});
    for (wrong, right) in [
        ("?watch=true", "db-login.example"),
        ("?fieldSelector=metadata.name%3Dapp-db", "0"),
        ("app-db?x=y", "a--b"),
        ("../configmaps/x", "a.b.c"),
        ("a..b", &"a".repeat(253)),
        ("App", "app"),
    ] {
        let login = |name: &str| json!({"credentialsSecretRef": {"name": name}});
        let ca = |name: &str| tls(json!({"mode": "VerifyFull", "caSecretRef": {"name": name}}));
        let client =
            |name: &str| tls(json!({"mode": "VerifyFull", "clientCertificateSecretRef": {"name": name}}));
        cases.extend([
            case(
                "ReplicationPeer",
                "spec.postgres.credentialsSecretRef.name",
                &|n| postgres(login(n)),
                right,
                wrong,
            ),
            case("ReplicationPeer", "spec.postgres.tls.caSecretRef.name", &|n| postgres(ca(n)), right, wrong),
            case(
                "ReplicationPeer",
                "spec.postgres.tls.clientCertificateSecretRef.name",
                &|n| postgres(client(n)),
                right,
                wrong,
            ),
            case(
                "ReplicationPeer",
                "spec.clickhouse.credentialsSecretRef.name",
                &|n| clickhouse(login(n)),
                right,
                wrong,
            ),
            case(
                "ReplicationPeer",
                "spec.clickhouse.tls.caSecretRef.name",
                &|n| clickhouse(ca(n)),
                right,
                wrong,
            ),
            case(
                "ReplicationPeer",
                "spec.clickhouse.tls.clientCertificateSecretRef.name",
                &|n| clickhouse(client(n)),
                right,
                wrong,
            ),
            case(
                "Mirror",
                "spec.sourceRef.name",
                &|n| mirror(json!({"sourceRef": {"name": n}})),
                right,
                wrong,
            ),
            case(
                "Mirror",
                "spec.destinationRef.name",
                &|n| mirror(json!({"destinationRef": {"name": n}})),
                right,
                wrong,
            ),
            case(
                "Mirror",
                "spec.replicator.imagePullSecrets[].name",
                &|n| replicator(json!({"imagePullSecrets": [{"name": n}]})),
                right,
                wrong,
            ),
            case(
                "Mirror",
                "spec.replicator.priorityClassName",
                &|n| replicator(json!({"priorityClassName": n})),
                right,
                wrong,
            ),
        ]);
    }
    for (wrong, right) in [("../x", "Root_CA-1.pem"), ("..data", ".hidden"), (".", "a..b"), ("a b", "0")] {
        let ca = |key: &str| tls(json!({"mode": "VerifyFull", "caSecretRef": {"name": "ca", "key": key}}));
        cases.extend([
            case("ReplicationPeer", "spec.postgres.tls.caSecretRef.key", &|k| postgres(ca(k)), right, wrong),
            case(
                "ReplicationPeer",
                "spec.clickhouse.tls.caSecretRef.key",
                &|k| clickhouse(ca(k)),
                right,
                wrong,
            ),
        ]);
    }
    cases
}

/// Every rule of a kind with its field.
fn rules(kind: &str) -> BTreeSet<(String, String, String)> {
    let mut found = BTreeSet::new();
    walk(&schema_of(kind), &Path::default(), &mut |path, schema| {
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            let message = rule["message"].as_str().unwrap_or_else(|| panic!("{path}: a rule has no message"));
            found.insert((kind.to_owned(), path.to_string(), message.to_owned()));
        }
    });
    found
}

#[test]
fn say_what_is_wrong() {
    install_crds();
    let namespace = TestNamespace::new();
    let object = |kind: &str, name: &str, spec: &Value| json!({"apiVersion": "walferry.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    let mut covered = BTreeSet::new();
    let mut wrong = Vec::new();
    for case in cases() {
        let message = case.reads.splitn(4, ": ").nth(3).unwrap();
        covered.insert((case.kind.to_owned(), case.at.to_owned(), message.to_owned()));
        let attempt = |spec: &Value| match &case.before {
            Some(before) => {
                namespace.apply(&object(case.kind, "changed", before));
                namespace.try_respec(&object(case.kind, "changed", spec))
            }
            None => namespace.try_create(&object(case.kind, "made", spec)),
        };
        let name = if case.before.is_some() { "changed" } else { "made" };
        let reads = format!("{}.walferry.dev \"{name}\" is invalid: {}", case.kind, case.reads);
        match attempt(&case.refused) {
            Ok(_) => wrong.push(format!("taken, though {}", case.reads)),
            Err(status) if status.message == reads => {}
            Err(status) => wrong.push(format!("not\n  {reads}\nbut\n  {}", status.message)),
        }
        if let Err(status) = attempt(&case.accepted) {
            wrong.push(format!("refused, though it keeps '{message}': {}", status.message));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let all = &rules("ReplicationPeer") | &rules("Mirror");
    let untried: Vec<_> = all.symmetric_difference(&covered).collect();
    assert!(untried.is_empty(), "rules without a case, or cases without a rule: {untried:#?}");
}
