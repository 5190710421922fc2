//! The life of a Mirror: it is suspended and changed, its pod ends in every possible way, passwords are
//! rotated, and the cluster is restarted.

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Condition};
use kube::ResourceExt;
use serde_json::{Value, json};
use walferry::api::{self, conditions};

use crate::{
    harness::{TestEnv, another, cluster, condition, secrecy},
    support::{Writer, eventually},
};

#[track_caller]
fn ready(mirror: &api::Mirror) -> &Condition {
    condition(&mirror.status.as_ref().unwrap().conditions, conditions::READY).unwrap()
}

/// Waits until the operator has reconciled the changed Mirror, and returns the only replicator.
#[track_caller]
fn reconciled(env: &TestEnv, name: &str) -> Pod {
    // One status update may still have its cause before the change.
    for _ in 0..2 {
        env.sql("INSERT INTO ticks DEFAULT VALUES");
        env.settle(name);
    }
    let pods = env.replicators(name);
    assert_eq!(pods.len(), 1, "{pods:?}");
    pods.into_iter().next().unwrap()
}

/// Only settings of the replicator replace its pod. A suspended Mirror loses no rows.
#[test]
fn suspended_and_changed() {
    let env = TestEnv::new();
    env.sql("CREATE TABLE ticks (id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY)");
    let mut mirror = env.mirror(&["ticks"]);
    let name = env.streaming(&mirror);
    let first = env.until_replicator(&name, &[]);
    let generation = env.deployment(&name).metadata.generation;

    mirror.mirror["metadata"]["labels"] = json!({"team": "billing"});
    mirror.mirror["metadata"]["annotations"] =
        json!({"example.com/note": "none of the replicator's business"});
    mirror.mirror["spec"]["deletionPolicy"] = "Delete".into();
    env.apply_mirror(&mirror);
    assert_eq!(reconciled(&env, &name).uid(), first.uid());
    assert_eq!(env.deployment(&name).metadata.generation, generation);

    mirror.mirror["spec"]["batch"] = json!({"maxDelayMilliseconds": 100});
    env.apply_mirror(&mirror);
    let second = env.until_replicator(&name, &[&first]);
    env.until_ready(&name);
    mirror.mirror["spec"]["replicator"] = json!({"resources": {"limits": {"memory": "200Mi"}}});
    env.apply_mirror(&mirror);
    let third = env.until_replicator(&name, &[&first, &second]);
    assert_eq!(memory_limit(&third), "200Mi");
    env.until_ready(&name);
    assert_eq!(reconciled(&env, &name).uid(), third.uid());

    mirror.mirror["spec"]["suspend"] = true.into();
    env.apply_mirror(&mirror);
    env.until_pod_gone(&third);
    env.until(&name, "the WAL that the slot of the suspended Mirror retains", |mirror| {
        let retained = mirror.status.as_ref()?.retained_wal_bytes?;
        let ready = ready(mirror);
        (ready.reason == "Suspended" && ready.status == "True" && retained > 0).then_some(())
    });
    env.sql("INSERT INTO ticks SELECT FROM generate_series(1, 100)");
    mirror.mirror["spec"]["suspend"] = false.into();
    env.apply_mirror(&mirror);
    env.until_replicator(&name, &[&third]);
    env.until_ready(&name);
    env.settle(&name);
    env.assert_table("ticks", "id", "id");
}

fn memory_limit(pod: &Pod) -> &str {
    let resources = pod.spec.as_ref().unwrap().containers[0].resources.as_ref().unwrap();
    &resources.limits.as_ref().unwrap()["memory"].0
}

/// A transaction that writes to all tables is open while one is added and one is removed. None of its rows
/// are lost, and the remaining table keeps streaming.
#[test]
fn tables_join_and_leave() {
    let env = TestEnv::new();
    env.sql(
        "CREATE TABLE stays (id int PRIMARY KEY, n int); CREATE TABLE leaves (id int PRIMARY KEY); CREATE TABLE joins (id int PRIMARY KEY);
        INSERT INTO stays SELECT i, 0 FROM generate_series(1, 100) i; INSERT INTO joins SELECT generate_series(1, 100)",
    );
    let mirror = env.mirror(&["stays", "leaves"]);
    let name = env.streaming(&mirror);
    let writer = Writer::start(env.connect(), |n| {
        let id = n % 100 + 1;
        format!("UPDATE stays SET n = {n} WHERE id = {id}; SELECT pg_sleep(0.01)")
    });
    let mut open = env.connect();
    let write = "BEGIN; INSERT INTO stays VALUES (1000, 0); INSERT INTO leaves VALUES (1000); INSERT INTO joins VALUES (1000)";
    open.batch_execute(write).unwrap();
    env.apply_mirror(&another(&mirror, &name, &["stays", "joins"]));
    // The Mirror stays Ready, because the remaining table streams.
    env.until(&name, "a table that is added while the others stream", |mirror| {
        let reconciling = condition(&mirror.status.as_ref()?.conditions, conditions::RECONCILING)?;
        let ready = ready(mirror);
        (reconciling.reason == "Snapshotting" && ready.status == "True" && ready.reason == "Streaming")
            .then_some(())
    });
    let joined = || {
        env.until(&name, "nothing to reconcile", |mirror| {
            let status = mirror.status.as_ref()?;
            let settled = condition(&status.conditions, conditions::RECONCILING).is_none();
            (settled && ready(mirror).status == "True").then(|| mirror.clone())
        })
    };
    env.sql("INSERT INTO stays VALUES (2000, 0); INSERT INTO joins VALUES (2000)");
    eventually("the remaining table to stream", || {
        env.target("SELECT count() FROM stays FINAL WHERE id = 2000") == "1\n"
    });
    open.batch_execute("COMMIT").unwrap();
    let status = joined().status.unwrap();
    assert_eq!(status.tables.unwrap().total, 2);
    // The values that this statement writes to existing rows are not in the stream.
    env.sql("ALTER TABLE stays ADD c int DEFAULT random() * 1000");
    env.until_event(&name, "TableResync");
    env.until_ready(&name);
    assert!(writer.finish() > 0);
    env.sql("INSERT INTO leaves VALUES (3000); INSERT INTO joins VALUES (3000)");
    env.settle(&name);
    eventually("the copy's end", || env.target("SELECT count() FROM stays FINAL WHERE c IS NULL") == "0\n");
    joined();
    env.assert_table("stays", "id, n, c", "id");
    env.assert_table("joins", "id", "id");
    assert_eq!(env.target("SELECT count() FROM leaves FINAL WHERE id = 3000"), "0\n");
}

/// New passwords on both sides, at the source in the wrong order: the Secret first.
#[test]
fn passwords_are_rotated() {
    let env = TestEnv::new();
    env.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let mut mirror = env.mirror(&["t"]);
    let name = env.streaming(&mirror);
    let first = env.until_replicator(&name, &[]);
    mirror.secrets[0].1["password"] = "rotated-source-test".into();
    env.apply(&mirror);
    env.until(&name, "failed authentication while the replicator streams", |mirror| {
        let conditions = &mirror.status.as_ref()?.conditions;
        let streams = condition(conditions, conditions::STREAMING)?.status == "True";
        (ready(mirror).reason == "SourceAuthenticationFailed" && streams).then_some(())
    });
    env.sql("INSERT INTO t VALUES (2)");
    eventually("rows to flow", || env.target("SELECT count() FROM t FINAL") == "2\n");
    env.admin(&format!("ALTER ROLE {} PASSWORD 'rotated-source-test'", env.database));
    // A change of the Mirror is reconciled immediately.
    env.annotate(&name, "example.com/look", "again");
    let second = env.until_replicator(&name, &[&first]);
    env.until_ready(&name);

    mirror.secrets[1].1 = json!({"username": "admin", "password": "clickhouse-test"});
    env.apply(&mirror);
    env.until_replicator(&name, &[&first, &second]);
    env.until_ready(&name);
    env.admin("INSERT INTO t VALUES (3)");
    env.settle(&name);
    env.assert_table("t", "id", "id");
    secrecy::check(&env.namespace, &["rotated-source-test", "clickhouse-test"]);
}

/// The pod is killed, evicted and out of memory: the status reports what needs manual action, and streaming
/// continues.
#[test]
fn the_pod_ends() {
    let env = TestEnv::new();
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')");
    let mut mirror = env.mirror(&["t"]);
    mirror.mirror["spec"]["replicator"] =
        json!({"resources": {"limits": {"memory": "48Mi"}, "requests": {"memory": "16Mi"}}});
    let name = env.streaming(&mirror);
    let first = env.until_replicator(&name, &[]);
    env.kill_pod(&first);
    env.sql("INSERT INTO t VALUES (2, 'b')");
    let second = env.until_replicator(&name, &[&first]);
    env.settle(&name);
    env.until_ready(&name);

    env.evict(&second);
    env.sql("INSERT INTO t VALUES (3, 'c')");
    let third = env.until_replicator(&name, &[&first, &second]);
    env.settle(&name);
    env.until_ready(&name);
    env.assert_table("t", "id, v", "id");

    env.sql("INSERT INTO t VALUES (4, repeat('x', 100000000))");
    env.until_stalled(&name, "ReplicatorOutOfMemory");
    env.until_event(&name, "ReplicatorOutOfMemory");
    mirror.mirror["spec"]["replicator"]["resources"]["limits"]["memory"] = "1Gi".into();
    env.apply_mirror(&mirror);
    env.until_replicator(&name, &[&first, &second, &third]);
    env.until_ready(&name);
    env.settle(&name);
    env.assert_same(
        "SELECT id, length(v) FROM t ORDER BY id",
        "SELECT id, length(v) FROM t FINAL ORDER BY id",
    );
}

/// The source has removed WAL that the Mirror still needed.
#[test]
fn the_slot_is_invalidated() {
    // Only requested checkpoints remove WAL.
    let env = TestEnv::with_own_postgres(&["-c", "max_slot_wal_keep_size=48MB", "-c", "max_wal_size=4GB"]);
    env.sql(
        "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, 0 FROM generate_series(1, 1000) i; CREATE TABLE other (v text)",
    );
    let name = env.streaming(&env.mirror(&["t"]));
    let pod = env.until_replicator(&name, &[]);
    env.patch_mirror(&name, &json!({"spec": {"suspend": true}}));
    env.until_pod_gone(&pod);
    env.sql(
        "DELETE FROM t WHERE id % 3 = 0; UPDATE t SET n = 1 WHERE id % 5 = 0; INSERT INTO t VALUES (5000, 5)",
    );
    let fill = || {
        env.sql("INSERT INTO other SELECT repeat('x', 1000) FROM generate_series(1, 20000)");
        env.admin("SELECT pg_switch_wal()");
    };
    let at_risk = "SELECT safe_wal_size < 0 FROM pg_replication_slots WHERE database = current_database()";
    eventually("the slot to be at risk", || {
        fill();
        env.source_value(at_risk) == "t"
    });
    env.until_event(&name, "SlotAtRisk");
    eventually("the slot to be lost", || {
        fill();
        env.admin("CHECKPOINT");
        let lost = "SELECT wal_status FROM pg_replication_slots WHERE database = current_database()";
        env.source_value(lost) == "lost"
    });
    env.patch_mirror(&name, &json!({"spec": {"suspend": false}}));
    env.until_stalled(&name, "SourceSlotInvalidated");
    env.annotate(&name, "walferry.dev/resync", "1");
    env.until_ready(&name);
    env.settle(&name);
    env.assert_table("t", "id, n", "id");
    env.until_event(&name, "ResyncRequested");
}

/// Without a limit, a slot retains more WAL than the source would keep otherwise. The status reports it while
/// changes stream and while no replicator runs.
#[test]
fn the_source_s_disk_fills() {
    const MAX_WAL_SIZE: i64 = 32 << 20;
    let env = TestEnv::with_own_postgres(&["-c", "max_wal_size=32MB"]);
    env.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1); CREATE TABLE other (v text)");
    let name = env.streaming(&env.mirror(&["t"]));
    // The slot can't advance past this open transaction.
    let mut open = env.connect();
    open.batch_execute("BEGIN; INSERT INTO other VALUES ('open')").unwrap();
    env.sql("INSERT INTO other SELECT repeat('x', 1000) FROM generate_series(1, 60000)");
    env.until_reason(&name, conditions::SOURCE_READY, "SourceDiskAtRisk");
    env.until_event(&name, "SourceDiskAtRisk");

    env.patch_mirror(&name, &json!({"spec": {"replicator": {"nodeSelector": {"nowhere": "here"}}}}));
    env.until(&name, "the retained WAL without a replicator", |mirror| {
        let retained = mirror.status.as_ref()?.retained_wal_bytes?;
        let streaming = condition(&mirror.status.as_ref()?.conditions, conditions::STREAMING)?;
        (streaming.status == "False" && retained > MAX_WAL_SIZE).then_some(())
    });
    open.batch_execute("COMMIT").unwrap();
    env.patch_mirror(&name, &json!({"spec": {"replicator": {"nodeSelector": null}}}));
    env.sql("INSERT INTO t VALUES (2)");
    env.settle(&name);
    env.until_reason(&name, conditions::SOURCE_READY, "Connected");
    env.assert_table("t", "id", "id");
}

/// The younger of two Mirrors is Stalled as long as the older one exists, and can have its target afterwards.
#[test]
fn two_want_one_target() {
    let env = TestEnv::new();
    env.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let older = another(&env.mirror(&["t"]), "older", &["t"]);
    env.apply(&older);
    // Creation times have a resolution of one second.
    env.streaming(&older);
    env.apply_mirror(&another(&older, "younger", &["t"]));
    env.until_stalled("younger", "TargetTableTaken");
    assert!(env.replicators("younger").is_empty());
    assert!(!env.left_at_source().contains(&env.name_at_source("younger")));
    env.sql("INSERT INTO t VALUES (2)");
    env.settle("older");

    env.delete::<api::Mirror>("older");
    env.until_stalled("younger", "DestinationTableConflict");
    env.annotate("younger", "walferry.dev/resync", "1");
    env.until_ready("younger");
    env.settle("younger");
    env.assert_table("t", "id", "id");
}

/// Objects with the names and labels of a replicator existed before: they are not changed, also when the
/// Mirror is deleted.
#[test]
fn objects_of_others_are_left_alone() {
    let env = TestEnv::new();
    env.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let labels = json!({"app.kubernetes.io/managed-by": "walferry", "app.kubernetes.io/component": "replicator", "team": "theirs"});
    let metadata = json!({"name": "walferry-shop", "labels": labels});
    let map =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"theirs": "yes"}});
    let selector = json!({"app": "theirs"});
    let container = json!({"name": "c", "image": "registry.invalid/theirs:1"});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": {
        "replicas": 0, "selector": {"matchLabels": selector},
        "template": {"metadata": {"labels": selector}, "spec": {"containers": [container]}}}});
    let as_made = |kind: &str, made: &Value| {
        let now: Value = serde_json::from_str(
            &env.namespace.kubectl(&["get", kind, "walferry-shop", "-o", "json"]).stdout,
        )
        .unwrap();
        for field in ["uid", "labels", "ownerReferences", "deletionTimestamp"] {
            assert_eq!(now["metadata"][field], made["metadata"][field], "{kind} {field}");
        }
        assert_eq!(now["data"], made["data"]);
    };
    for (kind, document) in [("configmap", map), ("deployment", deployment)] {
        let made = env.namespace.apply(&document);
        env.apply(&another(&env.mirror(&["t"]), "shop", &["t"]));
        env.until_stalled("shop", "ObjectNotOurs");
        as_made(kind, &made);
        env.delete::<api::Mirror>("shop");
        as_made(kind, &made);
        env.namespace.kubectl(&["delete", kind, "walferry-shop"]);
    }
}

/// One Mirror is new, one streams and one is being deleted when the operator is killed. The next operator
/// does not change the conditions of the one that streams.
#[test]
fn the_operator_is_restarted() {
    let env = TestEnv::alone();
    for table in ["new", "streams", "goes"] {
        env.sql(&format!("CREATE TABLE {table} (id int PRIMARY KEY); INSERT INTO {table} VALUES (1)"));
    }
    let [new, streams, goes] =
        ["new", "streams", "goes"].map(|table| another(&env.mirror(&["new"]), table, &[table]));
    env.apply(&streams);
    env.apply_mirror(&goes);
    let since = |mirror: &api::Mirror| ready(mirror).last_transition_time.clone();
    let streams_since = since(&env.until_ready("streams"));
    env.until_ready("goes");
    let pod = env.until_replicator("streams", &[]);
    env.apply_mirror(&new);
    env.begin_delete::<api::Mirror>("goes");
    env.operator.kill();
    env.sql("INSERT INTO streams VALUES (2)");
    env.until_gone("goes");
    env.until_ready("new");
    env.settle("streams");
    assert_eq!(env.until_replicator("streams", &[]).uid(), pod.uid());
    assert_eq!(since(&env.until_ready("streams")), streams_since);
    for table in ["new", "streams"] {
        env.assert_table(table, "id", "id");
    }
}

/// The operator gets a replicator image that can't be pulled, and then a valid one.
#[test]
fn the_image_is_broken() {
    let env = TestEnv::alone();
    env.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let name = env.streaming(&env.mirror(&["t"]));
    env.operator.install(&["--set=replicator.image=localhost/nobody/has:this"]);
    env.until_stalled(&name, "ReplicatorImageUnavailable");
    env.sql("INSERT INTO t VALUES (2)");
    env.operator.install(&[]);
    env.until_ready(&name);
    env.settle(&name);
    env.assert_table("t", "id", "id");
}

/// Rows are replicated while the apiserver is down, and a Mirror that is being provisioned then becomes Ready
/// later.
#[test]
fn the_apiserver_is_restarted() {
    if !cluster().can_be_disturbed() {
        return;
    }
    let env = TestEnv::alone();
    for table in ["new", "streams"] {
        env.sql(&format!("CREATE TABLE {table} (id int PRIMARY KEY); INSERT INTO {table} VALUES (1)"));
    }
    let [new, streams] = ["new", "streams"].map(|table| another(&env.mirror(&["new"]), table, &[table]));
    env.apply(&streams);
    env.until_ready("streams");
    let pod = env.until_replicator("streams", &[]);
    env.apply_mirror(&new);
    cluster().without("apiserver", || {
        env.sql("INSERT INTO streams VALUES (2)");
        eventually("rows to flow", || env.target("SELECT count() FROM streams FINAL") == "2\n");
    });
    env.until_ready("new");
    env.settle("streams");
    assert_eq!(env.until_replicator("streams", &[]).uid(), pod.uid());
    for table in ["new", "streams"] {
        env.assert_table(table, "id", "id");
    }
}
