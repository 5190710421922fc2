//! Invalid configurations: each has a reason from the documented list and does not cause a reconcile loop.

use std::time::Duration;

use serde_json::{Value, json};
use walferry::{
    api::{self, conditions},
    fault::Reason,
};

use crate::{
    harness::{TestEnv, TestNamespace, cluster, condition},
    support::{eventually, until},
};

/// How long reconciles are counted. Stalled objects are reconciled every 60 s, objects that are retried after
/// 1, 2, 4, 8 and so on seconds.
const OBSERVED: Duration = Duration::from_secs(15);

/// A Mirror of this table under another name, changed by `change`.
fn mirror(env: &TestEnv, name: &str, table: &str, change: impl FnOnce(&mut Value)) -> Value {
    let mut mirror = env.mirror(&[table]).mirror;
    mirror["metadata"]["name"] = name.into();
    // Each Mirror has its own target, so that the change is its only fault.
    mirror["spec"]["tables"][0]["target"] = json!({"table": name.replace('-', "_")});
    change(&mut mirror["spec"]);
    mirror
}

/// Waits until Ready is False for the reason of a condition of this type.
#[track_caller]
fn until_failing(env: &TestEnv, name: &str, kind: &str, reason: &str) {
    let found = env.until(name, &format!("{kind} with {reason}"), |mirror| {
        let status = mirror.status.as_ref()?;
        let found = condition(&status.conditions, kind)?;
        let ready = condition(&status.conditions, conditions::READY)?;
        (found.reason == reason && ready.status == "False" && ready.message == found.message)
            .then(|| status.clone())
    });
    let other = if kind == conditions::STALLED { conditions::RECONCILING } else { conditions::STALLED };
    assert_eq!(condition(&found.conditions, other), None);
    assert_eq!(found.observed_generation, Some(1));
    assert!(Reason::parse(reason).is_some(), "{reason} is not documented");
}

/// Applies peers that can't be used: changes of the valid ones.
fn bad_peers(env: &TestEnv) {
    let good = env.mirror(&["t"]);
    env.namespace
        .apply_secret("wrong-login", &json!({"username": env.database, "password": "not-the-password"}));
    env.namespace.apply_secret("reader-login", &json!({"username": "reader", "password": "reader-test"}));
    env.namespace.apply_secret("half-login", &json!({"username": env.database}));
    for (name, document, side, field, value) in [
        ("wrong-host", &good.postgres, "postgres", "host", json!("db.invalid")),
        ("wrong-port", &good.postgres, "postgres", "port", json!(1)),
        ("wrong-database", &good.postgres, "postgres", "database", json!("app_nowhere")),
        (
            "wrong-password",
            &good.postgres,
            "postgres",
            "credentialsSecretRef",
            json!({"name": "wrong-login"}),
        ),
        ("late-secret", &good.postgres, "postgres", "credentialsSecretRef", json!({"name": "late-login"})),
        ("late-key", &good.postgres, "postgres", "credentialsSecretRef", json!({"name": "half-login"})),
        ("refusing", &good.clickhouse, "clickhouse", "credentialsSecretRef", json!({"name": "reader-login"})),
        ("silent", &good.clickhouse, "clickhouse", "url", json!(format!("http://{}:1", cluster().address()))),
    ] {
        let mut document = document.clone();
        document["metadata"]["name"] = name.into();
        document["spec"][side][field] = value;
        env.namespace.apply(&document);
    }
}

#[test]
fn failures_have_reasons_without_a_loop_and_end_when_corrected() {
    let env = TestEnv::alone();
    env.sql(
        "CREATE TABLE t (id bigint PRIMARY KEY, org bigint); INSERT INTO t SELECT n, n FROM generate_series(1, 10) n;
         CREATE TABLE keyless (id bigint)",
    );
    for document in env.mirror(&["t"]).documents().into_iter().filter(|document| document["kind"] != "Mirror")
    {
        env.namespace.apply(&document);
    }
    bad_peers(&env);
    let source = |peer: &'static str| move |spec: &mut Value| spec["sourceRef"]["name"] = peer.into();
    let target = |peer: &'static str| move |spec: &mut Value| spec["destinationRef"]["name"] = peer.into();
    let (stalled, reconciling) = (conditions::STALLED, conditions::RECONCILING);
    let cases = [
        (mirror(&env, "host", "t", source("wrong-host")), reconciling, "SourceUnreachable"),
        (mirror(&env, "port", "t", source("wrong-port")), reconciling, "SourceUnreachable"),
        (mirror(&env, "database", "t", source("wrong-database")), stalled, "SourceError"),
        (mirror(&env, "password", "t", source("wrong-password")), stalled, "SourceAuthenticationFailed"),
        (mirror(&env, "no-secret", "t", source("late-secret")), stalled, "SecretMissing"),
        (mirror(&env, "no-key", "t", source("late-key")), stalled, "SecretKeyMissing"),
        (mirror(&env, "no-peer", "t", source("nobody")), stalled, "PeerMissing"),
        (mirror(&env, "wrong-kind", "t", source("target")), stalled, "InvalidSpec"),
        (mirror(&env, "unknown-table", "tt", |_| {}), stalled, "SourceTableMissing"),
        (mirror(&env, "no-identity", "keyless", |_| {}), stalled, "SourceReplicaIdentityMissing"),
        (
            mirror(&env, "row-filter", "t", |spec| spec["tables"][0]["where"] = "id > AND".into()),
            stalled,
            "SourceRowFilterInvalid",
        ),
        (
            mirror(&env, "filter-column", "t", |spec| spec["tables"][0]["where"] = "org > 1".into()),
            stalled,
            "SourceRowFilterInvalid",
        ),
        (mirror(&env, "refused", "t", target("refusing")), stalled, "DestinationAccessDenied"),
        (mirror(&env, "unanswered", "t", target("silent")), reconciling, "DestinationUnreachable"),
    ];
    for (document, ..) in &cases {
        env.namespace.apply(document);
    }
    for (document, kind, reason) in &cases {
        let name = document["metadata"]["name"].as_str().unwrap();
        until_failing(&env, name, kind, reason);
        let events = env.events(name);
        assert_eq!(events.iter().any(|event| event == reason), *kind == stalled, "{name}: {events:?}");
    }
    assert_eq!(env.left_at_source(), "", "nothing is created for a Mirror that can't run");
    env.assert_secret(&["not-the-password", "reader-test"]);

    let count = || {
        let of = |controller| {
            env.operator.metric("walferry_operator_reconciles_total", &[("controller", controller)])
        };
        (of("mirror"), of("peer"))
    };
    let before = count();
    // The absence of events can't be awaited, only observed for a while.
    std::thread::sleep(OBSERVED);
    let after = count();
    let (mirrors, peers) = (after.0 - before.0, after.1 - before.1);
    println!("{} Mirrors and 10 peers in {OBSERVED:?}: {mirrors} and {peers} reconciles", cases.len());
    assert!(before.0 >= cases.len() as f64 && before.1 >= 10.0, "not all reconciles are counted: {before:?}");
    // Three Mirrors and three peers are retried, at most 4 times each in this time. A change of a peer's
    // status may cause one more reconcile of its Mirrors.
    assert!(
        mirrors <= 2.0 * cases.len() as f64,
        "{mirrors} reconciles of {} Mirrors in {OBSERVED:?}",
        cases.len()
    );
    assert!(peers <= 20.0, "{peers} reconciles of 10 peers in {OBSERVED:?}");

    // Adding what is missing and correcting what is wrong is enough; the Mirrors are not changed.
    let login = json!({"username": env.database, "password": "role-test"});
    for name in ["late-login", "half-login", "wrong-login"] {
        env.namespace.apply_secret(name, &login);
    }
    let mut nobody = env.mirror(&["t"]).postgres;
    nobody["metadata"]["name"] = "nobody".into();
    env.namespace.apply(&nobody);
    for name in ["no-secret", "no-key", "password", "no-peer"] {
        env.until_ready(name);
    }
}

/// What was created until then is removed.
#[test]
fn a_mirror_deleted_while_it_is_being_created_leaves_nothing() {
    let env = TestEnv::new();
    // The table is empty, because the next Mirror must not find rows in its target.
    env.sql("CREATE TABLE t (id bigint PRIMARY KEY)");
    let mirror = env.mirror(&["t"]);
    let name = env.apply(&mirror);
    env.delete::<api::Mirror>(&name);
    assert_eq!(env.left_at_source(), "");
    // Later, when its pod has started and may be connected to the source already.
    env.apply(&mirror);
    eventually("a pod", || !env.replicators(&name).is_empty());
    env.delete::<api::Mirror>(&name);
    assert_eq!(env.left_at_source(), "");
    // Later still, when it has a publication at the source.
    env.apply(&mirror);
    eventually("a publication", || !env.left_at_source().is_empty());
    env.delete::<api::Mirror>(&name);
    assert_eq!(env.left_at_source(), "");
    assert!(env.replicators(&name).is_empty());
}

/// An object that the CRD would reject, left by an older CRD or a change of etcd, is Stalled and blocks no
/// other.
#[test]
fn an_invalid_object_stalls_alone() {
    let env = TestEnv::alone();
    env.sql("CREATE TABLE t (id bigint PRIMARY KEY)");
    let mirror = env.mirror(&["t"]);
    {
        let _lax = Lax::begin(&env.namespace);
        for (mut document, field) in [(mirror.mirror.clone(), "sourceRef"), (mirror.mirror.clone(), "tables")]
        {
            document["metadata"]["name"] = format!("no-{}", field.to_lowercase()).into();
            document["spec"].as_object_mut().unwrap().remove(field);
            eventually("the CRD to accept any spec", || env.namespace.try_apply(&document).is_ok());
        }
    }
    for name in ["no-sourceref", "no-tables"] {
        // The object can't be deserialized as a Mirror.
        let stalled = until("Stalled", || {
            let object = env.namespace.kubectl(&["get", "mirror", name, "-o", "json"]).exits(0).stdout;
            let object: Value = serde_json::from_str(&object).unwrap();
            let conditions = object["status"]["conditions"].as_array()?;
            conditions.iter().find(|condition| condition["type"] == conditions::STALLED).cloned()
        });
        assert_eq!(stalled["reason"], "InvalidSpec");
    }
    env.namespace.kubectl(&["delete", "mirror", "no-sourceref", "--timeout=30s"]).exits(0);
    // Other Mirrors are reconciled as usual.
    env.streaming(&mirror);
    // An invalid object can be corrected.
    let mut corrected = mirror.mirror.clone();
    corrected["metadata"]["name"] = "no-tables".into();
    corrected["spec"]["tables"][0]["target"] = json!({"table": "other"});
    env.namespace.apply(&corrected);
    env.until_ready("no-tables");
}

/// Makes the CRD of Mirror accept any spec until it is dropped.
struct Lax {
    required: Value,
    rules: Value,
}

const DEFINITION: &str = "mirrors.walferry.dev";
const SPEC: &str = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";

impl Lax {
    fn begin(namespace: &TestNamespace) -> Lax {
        let definition = namespace.kubectl(&["get", "crd", DEFINITION, "-o", "json"]).exits(0).stdout;
        let definition: Value = serde_json::from_str(&definition).unwrap();
        let spec = definition.pointer(SPEC).unwrap();
        let lax = Lax { required: spec["required"].clone(), rules: spec["x-kubernetes-validations"].clone() };
        lax.set(&json!([]), &json!([]));
        lax
    }

    fn set(&self, required: &Value, rules: &Value) {
        let patch = json!([
            {"op": "replace", "path": format!("{SPEC}/required"), "value": required},
            {"op": "add", "path": format!("{SPEC}/x-kubernetes-validations"), "value": rules},
        ]);
        cluster()
            .kubectl(&["patch", "crd", DEFINITION, "--type=json", "--patch", &patch.to_string()], "")
            .exits(0);
    }
}

impl Drop for Lax {
    fn drop(&mut self) {
        self.set(&self.required, &self.rules);
    }
}
