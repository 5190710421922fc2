//! What happens to a Mirror that lives long: it is suspended and changed, its pod ends in every way a pod can end, passwords are
//! rotated, and the cluster itself is restarted under it.

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Condition};
use kube::ResourceExt;
use serde_json::{Value, json};
use walferry::api::{self, conditions};

use crate::{
    harness::{Lab, another, assert_says, cluster, condition, secrecy},
    support::{Writer, eventually},
};

#[track_caller]
fn ready(mirror: &api::Mirror) -> &Condition {
    condition(&mirror.status.as_ref().unwrap().conditions, conditions::READY).unwrap()
}

/// Waits until the operator has looked at the Mirror after it has been changed, and gives the one replicator.
#[track_caller]
fn looked_at(lab: &Lab, name: &str) -> Pod {
    // what it looked at before the change may come to the status after it, once
    for _ in 0..2 {
        lab.sql("INSERT INTO ticks DEFAULT VALUES");
        lab.settle(name);
    }
    let pods = lab.replicators(name);
    assert_eq!(pods.len(), 1, "{pods:?}");
    pods.into_iter().next().unwrap()
}

/// What its pod runs with rolls the pod, and nothing else does; without a pod it keeps what is written meanwhile.
#[test]
fn suspended_and_changed() {
    let lab = Lab::new();
    lab.sql("CREATE TABLE ticks (id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY)");
    let mut mirror = lab.mirror(&["ticks"]);
    let name = lab.streaming(&mirror);
    let first = lab.until_replicator(&name, &[]);
    let generation = lab.deployment(&name).metadata.generation;

    mirror.mirror["metadata"]["labels"] = json!({"team": "billing"});
    mirror.mirror["metadata"]["annotations"] =
        json!({"example.com/note": "none of the replicator's business"});
    mirror.mirror["spec"]["deletionPolicy"] = "Delete".into();
    lab.apply_mirror(&mirror);
    assert_eq!(looked_at(&lab, &name).uid(), first.uid());
    assert_eq!(lab.deployment(&name).metadata.generation, generation);

    mirror.mirror["spec"]["batch"] = json!({"maxDelayMilliseconds": 100});
    lab.apply_mirror(&mirror);
    let second = lab.until_replicator(&name, &[&first]);
    lab.until_ready(&name);
    mirror.mirror["spec"]["replicator"] = json!({"resources": {"limits": {"memory": "200Mi"}}});
    lab.apply_mirror(&mirror);
    let third = lab.until_replicator(&name, &[&first, &second]);
    assert_eq!(memory_limit(&third), "200Mi");
    lab.until_ready(&name);
    assert_eq!(looked_at(&lab, &name).uid(), third.uid());

    mirror.mirror["spec"]["suspend"] = true.into();
    lab.apply_mirror(&mirror);
    lab.until_pod_gone(&third);
    lab.until(&name, "what the slot of the suspended Mirror holds back", |mirror| {
        let retained = mirror.status.as_ref()?.retained_wal_bytes?;
        let ready = ready(mirror);
        let warned = ready.status == "True" && ready.message.contains("disk may fill up");
        (ready.reason == "Suspended" && warned && retained > 0).then_some(())
    });
    lab.sql("INSERT INTO ticks SELECT FROM generate_series(1, 100)");
    mirror.mirror["spec"]["suspend"] = false.into();
    lab.apply_mirror(&mirror);
    lab.until_replicator(&name, &[&third]);
    lab.until_ready(&name);
    lab.settle(&name);
    lab.assert_table("ticks", "id", "id");
}

fn memory_limit(pod: &Pod) -> &str {
    let resources = pod.spec.as_ref().unwrap().containers[0].resources.as_ref().unwrap();
    &resources.limits.as_ref().unwrap()["memory"].0
}

/// A transaction that writes to all tables is open while one joins and one leaves: nothing of it is lost, and what stays goes on.
#[test]
fn tables_join_and_leave() {
    let lab = Lab::new();
    lab.sql(
        "CREATE TABLE stays (id int PRIMARY KEY, n int); CREATE TABLE leaves (id int PRIMARY KEY); CREATE TABLE joins (id int PRIMARY KEY);
        INSERT INTO stays SELECT i, 0 FROM generate_series(1, 100) i; INSERT INTO joins SELECT generate_series(1, 100)",
    );
    let mirror = lab.mirror(&["stays", "leaves"]);
    let name = lab.streaming(&mirror);
    let writer = Writer::start(lab.connect(), |n| {
        let id = n % 100 + 1;
        format!("UPDATE stays SET n = {n} WHERE id = {id}; SELECT pg_sleep(0.01)")
    });
    let mut open = lab.connect();
    let write = "BEGIN; INSERT INTO stays VALUES (1000, 0); INSERT INTO leaves VALUES (1000); INSERT INTO joins VALUES (1000)";
    open.batch_execute(write).unwrap();
    lab.apply_mirror(&another(&mirror, &name, &["stays", "joins"]));
    // Ready all the while, as what stays goes on.
    lab.until_told(&name, "Streaming", &["public.joins is being added while the others stream"]);
    let joined = || {
        lab.until(&name, "nothing to reconcile", |mirror| {
            let status = mirror.status.as_ref()?;
            let settled = condition(&status.conditions, conditions::RECONCILING).is_none();
            (settled && ready(mirror).status == "True").then(|| mirror.clone())
        })
    };
    lab.sql("INSERT INTO stays VALUES (2000, 0); INSERT INTO joins VALUES (2000)");
    eventually("what stays to go on", || {
        lab.target("SELECT count() FROM stays FINAL WHERE id = 2000") == "1\n"
    });
    open.batch_execute("COMMIT").unwrap();
    let status = joined().status.unwrap();
    assert_eq!(status.tables.unwrap().total, 2);
    // no row in the stream has what this writes into the rows that are there
    lab.sql("ALTER TABLE stays ADD c int DEFAULT random() * 1000");
    let note = lab.until_event(&name, "TableResync");
    assert_says(&note, &["public.stays", "copied anew", "ALTER TABLE"]);
    lab.until_ready(&name);
    assert!(writer.finish() > 0);
    lab.sql("INSERT INTO leaves VALUES (3000); INSERT INTO joins VALUES (3000)");
    lab.settle(&name);
    eventually("the copy's end", || lab.target("SELECT count() FROM stays FINAL WHERE c IS NULL") == "0\n");
    joined();
    lab.assert_table("stays", "id, n, c", "id");
    lab.assert_table("joins", "id", "id");
    assert_eq!(lab.target("SELECT count() FROM leaves FINAL WHERE id = 3000"), "0\n");
}

/// New passwords on both sides, at the source in the wrong order: the Secret first.
#[test]
fn passwords_are_rotated() {
    let lab = Lab::new();
    lab.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let mut mirror = lab.mirror(&["t"]);
    let name = lab.streaming(&mirror);
    let first = lab.until_replicator(&name, &[]);
    mirror.secrets[0].1["password"] = "rotated-source-test".into();
    lab.apply(&mirror);
    lab.until(&name, "the failed login and the earlier settings", |mirror| {
        let message = &ready(mirror).message;
        let streams = condition(&mirror.status.as_ref()?.conditions, conditions::STREAMING)?.status == "True";
        (message.contains("password") && message.contains("earlier settings") && streams).then_some(())
    });
    lab.sql("INSERT INTO t VALUES (2)");
    eventually("rows to flow", || lab.target("SELECT count() FROM t FINAL") == "2\n");
    lab.admin(&format!("ALTER ROLE {} PASSWORD 'rotated-source-test'", lab.database));
    // a change makes the operator look at once
    lab.annotate(&name, "example.com/look", "again");
    let second = lab.until_replicator(&name, &[&first]);
    lab.until_ready(&name);

    mirror.secrets[1].1 = json!({"username": "admin", "password": "clickhouse-test"});
    lab.apply(&mirror);
    lab.until_replicator(&name, &[&first, &second]);
    lab.until_ready(&name);
    lab.admin("INSERT INTO t VALUES (3)");
    lab.settle(&name);
    lab.assert_table("t", "id", "id");
    secrecy::check(&lab.space, &["rotated-source-test", "clickhouse-test"]);
}

/// Killed, evicted, out of memory: the status says so where a human can help, and it goes on where it was.
#[test]
fn the_pod_ends() {
    let lab = Lab::new();
    lab.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')");
    let mut mirror = lab.mirror(&["t"]);
    mirror.mirror["spec"]["replicator"] =
        json!({"resources": {"limits": {"memory": "48Mi"}, "requests": {"memory": "16Mi"}}});
    let name = lab.streaming(&mirror);
    let first = lab.until_replicator(&name, &[]);
    lab.kill_pod(&first);
    lab.sql("INSERT INTO t VALUES (2, 'b')");
    let second = lab.until_replicator(&name, &[&first]);
    lab.settle(&name);
    lab.until_ready(&name);

    lab.evict(&second);
    lab.sql("INSERT INTO t VALUES (3, 'c')");
    let third = lab.until_replicator(&name, &[&first, &second]);
    lab.settle(&name);
    lab.until_ready(&name);
    lab.assert_table("t", "id, v", "id");

    lab.sql("INSERT INTO t VALUES (4, repeat('x', 100000000))");
    let message = lab.until_stalled(&name, "ReplicatorOutOfMemory");
    for words in ["48Mi", "spec.replicator.resources.limits.memory"] {
        assert!(message.contains(words), "{message}");
    }
    lab.until_event(&name, "ReplicatorOutOfMemory");
    mirror.mirror["spec"]["replicator"]["resources"]["limits"]["memory"] = "1Gi".into();
    lab.apply_mirror(&mirror);
    lab.until_replicator(&name, &[&first, &second, &third]);
    lab.until_ready(&name);
    lab.settle(&name);
    lab.assert_same(
        "SELECT id, length(v) FROM t ORDER BY id",
        "SELECT id, length(v) FROM t FINAL ORDER BY id",
    );
}

/// The source has removed WAL that the Mirror still needed.
#[test]
fn the_slot_is_invalidated() {
    // checkpoints come only when they are asked for
    let lab = Lab::with_own_postgres(&["-c", "max_slot_wal_keep_size=48MB", "-c", "max_wal_size=4GB"]);
    lab.sql(
        "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, 0 FROM generate_series(1, 1000) i; CREATE TABLE other (v text)",
    );
    let name = lab.streaming(&lab.mirror(&["t"]));
    let pod = lab.until_replicator(&name, &[]);
    lab.patch_mirror(&name, &json!({"spec": {"suspend": true}}));
    lab.until_pod_gone(&pod);
    lab.sql(
        "DELETE FROM t WHERE id % 3 = 0; UPDATE t SET n = 1 WHERE id % 5 = 0; INSERT INTO t VALUES (5000, 5)",
    );
    let fill = || {
        lab.sql("INSERT INTO other SELECT repeat('x', 1000) FROM generate_series(1, 20000)");
        lab.admin("SELECT pg_switch_wal()");
    };
    let at_risk = "SELECT safe_wal_size < 0 FROM pg_replication_slots WHERE database = current_database()";
    eventually("the slot to be at risk", || {
        fill();
        lab.source_value(at_risk) == "t"
    });
    assert_says(&lab.until_event(&name, "SlotAtRisk"), &["will be invalidated", "max_slot_wal_keep_size"]);
    eventually("the slot to be lost", || {
        fill();
        lab.admin("CHECKPOINT");
        let lost = "SELECT wal_status FROM pg_replication_slots WHERE database = current_database()";
        lab.source_value(lost) == "lost"
    });
    lab.patch_mirror(&name, &json!({"spec": {"suspend": false}}));
    let message = lab.until_stalled(&name, "SourceSlotInvalidated");
    for words in ["max_slot_wal_keep_size", "kubectl annotate mirror", "walferry.dev/resync"] {
        assert!(message.contains(words), "{message}");
    }
    lab.annotate(&name, "walferry.dev/resync", "1");
    lab.until_ready(&name);
    lab.settle(&name);
    lab.assert_table("t", "id, n", "id");
    lab.until_event(&name, "ResyncRequested");
}

/// A slot that holds back more WAL than the source would keep by itself, without a limit: told while changes flow, and while no
/// replicator runs.
#[test]
fn the_source_s_disk_fills() {
    let lab = Lab::with_own_postgres(&["-c", "max_wal_size=32MB"]);
    lab.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1); CREATE TABLE other (v text)");
    let name = lab.streaming(&lab.mirror(&["t"]));
    // What it has written keeps the slot where it is.
    let mut open = lab.connect();
    open.batch_execute("BEGIN; INSERT INTO other VALUES ('open')").unwrap();
    lab.sql("INSERT INTO other SELECT repeat('x', 1000) FROM generate_series(1, 60000)");
    let told = |mirror: &api::Mirror, type_, words: &[&str]| {
        let conditions = &mirror.status.as_ref()?.conditions;
        let told = condition(conditions, type_)?;
        words.iter().all(|words| told.message.contains(words)).then(|| told.reason.clone())
    };
    let words = ["MiB of WAL at the source, more than max_wal_size", "its disk may fill up"];
    let reason =
        lab.until(&name, "the disk to be told of", |mirror| told(mirror, conditions::SOURCE_READY, &words));
    assert_eq!(reason, "SourceDiskAtRisk");
    assert_says(&lab.until_event(&name, "SourceDiskAtRisk"), &words);

    lab.patch_mirror(&name, &json!({"spec": {"replicator": {"nodeSelector": {"nowhere": "here"}}}}));
    let reason = lab.until(&name, "the disk to be told of without a replicator", |mirror| {
        told(mirror, conditions::READY, &["meanwhile slot walferry_", words[0]])
    });
    assert_ne!(reason, "Streaming");
    open.batch_execute("COMMIT").unwrap();
    lab.patch_mirror(&name, &json!({"spec": {"replicator": {"nodeSelector": null}}}));
    lab.sql("INSERT INTO t VALUES (2)");
    lab.settle(&name);
    lab.until(&name, "nothing to fear", |mirror| {
        let status = mirror.status.as_ref()?;
        (condition(&status.conditions, conditions::SOURCE_READY)?.reason == "Connected").then_some(())
    });
    lab.assert_table("t", "id", "id");
}

/// The younger of two Mirrors is refused as long as the older one is there, and takes its place when it is gone.
#[test]
fn two_want_one_target() {
    let lab = Lab::new();
    lab.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let older = another(&lab.mirror(&["t"]), "older", &["t"]);
    lab.apply(&older);
    // age is told in seconds
    lab.streaming(&older);
    lab.apply_mirror(&another(&older, "younger", &["t"]));
    let message = lab.until_stalled("younger", "TargetTableTaken");
    assert_says(&message, &["Mirror older", "target.table", &lab.database]);
    assert!(lab.replicators("younger").is_empty());
    assert!(!lab.left_at_source().contains(&lab.name_at_source("younger")));
    lab.sql("INSERT INTO t VALUES (2)");
    lab.settle("older");

    lab.delete::<api::Mirror>("older");
    let message = lab.until_stalled("younger", "DestinationTableConflict");
    assert_says(&message, &["TRUNCATE TABLE", "annotate mirror younger", "walferry.dev/resync"]);
    lab.annotate("younger", "walferry.dev/resync", "1");
    lab.until_ready("younger");
    lab.settle("younger");
    lab.assert_table("t", "id", "id");
}

/// Objects of the names that a replicator gets, with all of its labels, were there before: they stay as they are, also when the Mirror goes.
#[test]
fn objects_of_strangers_are_left_alone() {
    let lab = Lab::new();
    lab.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
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
        let now: Value =
            serde_json::from_str(&lab.space.kubectl(&["get", kind, "walferry-shop", "-o", "json"]).stdout)
                .unwrap();
        for field in ["uid", "labels", "ownerReferences", "deletionTimestamp"] {
            assert_eq!(now["metadata"][field], made["metadata"][field], "{kind} {field}");
        }
        assert_eq!(now["data"], made["data"]);
    };
    for (kind, document) in [("configmap", map), ("deployment", deployment)] {
        let made = lab.space.apply(&document);
        lab.apply(&another(&lab.mirror(&["t"]), "shop", &["t"]));
        let message = lab.until_stalled("shop", "ObjectNotOurs");
        assert_says(
            &message,
            &["walferry-shop in namespace", &format!("kubectl delete {kind} walferry-shop")],
        );
        as_made(kind, &made);
        lab.delete::<api::Mirror>("shop");
        as_made(kind, &made);
        lab.space.kubectl(&["delete", kind, "walferry-shop"]);
    }
}

/// One Mirror is new, one streams and one is being deleted when the operator ends without warning. Of the one that streams, nothing
/// else is said by an operator that has just begun.
#[test]
fn the_operator_is_restarted() {
    let lab = Lab::alone();
    for table in ["new", "streams", "goes"] {
        lab.sql(&format!("CREATE TABLE {table} (id int PRIMARY KEY); INSERT INTO {table} VALUES (1)"));
    }
    let [new, streams, goes] =
        ["new", "streams", "goes"].map(|table| another(&lab.mirror(&["new"]), table, &[table]));
    lab.apply(&streams);
    lab.apply_mirror(&goes);
    let since = |mirror: &api::Mirror| ready(mirror).last_transition_time.clone();
    let streams_since = since(&lab.until_ready("streams"));
    lab.until_ready("goes");
    let pod = lab.until_replicator("streams", &[]);
    lab.apply_mirror(&new);
    lab.begin_delete::<api::Mirror>("goes");
    lab.operator.kill();
    lab.sql("INSERT INTO streams VALUES (2)");
    lab.until_gone("goes");
    lab.until_ready("new");
    lab.settle("streams");
    assert_eq!(lab.until_replicator("streams", &[]).uid(), pod.uid());
    assert_eq!(since(&lab.until_ready("streams")), streams_since);
    for table in ["new", "streams"] {
        lab.assert_table(table, "id", "id");
    }
}

/// An operator is given an image for its replicators that nobody can pull, and then a better one.
#[test]
fn the_image_is_broken() {
    let lab = Lab::alone();
    lab.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let name = lab.streaming(&lab.mirror(&["t"]));
    lab.operator.install(&["--set=replicator.image=localhost/nobody/has:this"]);
    let message = lab.until_stalled(&name, "ReplicatorImageUnavailable");
    assert!(message.contains("localhost/nobody/has:this"), "{message}");
    lab.sql("INSERT INTO t VALUES (2)");
    lab.operator.install(&[]);
    lab.until_ready(&name);
    lab.settle(&name);
    lab.assert_table("t", "id", "id");
}

/// Rows flow while the apiserver is away; a Mirror that is being provisioned then gets there in the end.
#[test]
fn the_apiserver_is_restarted() {
    if !cluster().can_be_disturbed() {
        return;
    }
    let lab = Lab::alone();
    for table in ["new", "streams"] {
        lab.sql(&format!("CREATE TABLE {table} (id int PRIMARY KEY); INSERT INTO {table} VALUES (1)"));
    }
    let [new, streams] = ["new", "streams"].map(|table| another(&lab.mirror(&["new"]), table, &[table]));
    lab.apply(&streams);
    lab.until_ready("streams");
    let pod = lab.until_replicator("streams", &[]);
    lab.apply_mirror(&new);
    cluster().without("apiserver", || {
        lab.sql("INSERT INTO streams VALUES (2)");
        eventually("rows to flow", || lab.target("SELECT count() FROM streams FINAL") == "2\n");
    });
    lab.until_ready("new");
    lab.settle("streams");
    assert_eq!(lab.until_replicator("streams", &[]).uid(), pod.uid());
    for table in ["new", "streams"] {
        lab.assert_table(table, "id", "id");
    }
}
