//! Deletion of a Mirror: nothing of it stays at the source, and the target tables stay.

use std::{
    io::ErrorKind,
    net::TcpListener,
    time::{Duration, Instant},
};

use k8s_openapi::api::apps::v1::Deployment;
use serde_json::json;
use walferry::api::{self, ReplicationPeer, conditions};

use crate::{
    harness::{TestEnv, another, clickhouse, cluster, condition, own_postgres},
    support::{self, eventually, until},
};

/// The number of this Mirror's records at the destination.
fn records(env: &TestEnv, uid: &str) -> String {
    env.target_value(&format!(
        "SELECT count() FROM _walferry_state FINAL WHERE mirror = '{uid}' AND value != ''"
    ))
}

/// The UID in the names of slot and publication and in the state table.
fn uid_of(name_at_source: &str) -> &str {
    name_at_source.strip_prefix("walferry_").unwrap()
}

/// The peer names another server when its Mirror is deleted: nothing is dropped there, and the deletion
/// waits.
#[test]
fn stays_while_the_peer_names_another_server() {
    let env = TestEnv::new();
    env.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let mirror = env.mirror(&["t"]);
    let name = env.streaming(&mirror);
    let at_source = env.name_at_source(&name);
    env.patch_mirror(&name, &json!({"spec": {"suspend": true}}));
    let other = support::TestEnv::on(own_postgres(&[]), clickhouse());
    let there = other.mirror(&["t"]);
    let mut moved = mirror.postgres.clone();
    for field in ["port", "database"] {
        moved["spec"]["postgres"][field] = there.postgres["spec"]["postgres"][field].clone();
    }
    env.namespace.apply_secret("source-login", &there.secrets[0].1);
    env.namespace.apply(&moved);
    env.until_stalled(&name, "SourceReplaced");
    env.begin_delete::<api::Mirror>(&name);
    env.until_reason(&name, conditions::READY, "CleanupFailed");
    env.until_reason(&name, conditions::SOURCE_READY, "SourceReplaced");
    assert!(env.left_at_source().contains(&at_source));

    env.namespace.apply_secret("source-login", &mirror.secrets[0].1);
    env.namespace.apply(&mirror.postgres);
    env.until_gone(&name);
    assert!(!env.left_at_source().contains(&at_source));
}

/// Mirrors are deleted after their peers: one whose pod has just been killed, one with the policy Retain, and
/// one without a pod.
#[test]
fn leaves_target_tables_and_nothing_else() {
    let env = TestEnv::new();
    for table in ["a", "b", "c"] {
        env.sql(&format!(
            "CREATE TABLE {table} (id int PRIMARY KEY); INSERT INTO {table} SELECT generate_series(1, 100)"
        ));
    }
    let streams = another(&env.mirror(&["a"]), "streams", &["a"]);
    let mut retained = another(&streams, "retained", &["b"]);
    retained.mirror["spec"]["deletionPolicy"] = "Retain".into();
    let suspended = another(&streams, "suspended", &["c"]);
    env.apply(&streams);
    env.apply_mirror(&retained);
    env.apply_mirror(&suspended);
    let names = ["streams", "retained", "suspended"].map(|name| {
        env.until_ready(name);
        env.settle(name);
        env.name_at_source(name)
    });
    let [streams_at_source, retained_at_source, suspended_at_source] = &names;
    let pod = env.until_replicator("suspended", &[]);
    env.patch_mirror("suspended", &json!({"spec": {"suspend": true}}));
    env.until_pod_gone(&pod);

    // Peers stay as long as Mirrors use them.
    for peer in ["source", "target"] {
        env.begin_delete::<ReplicationPeer>(peer);
        env.namespace.until(peer, "Deleting", |peer: Option<&ReplicationPeer>| {
            let ready = condition(&peer?.status.as_ref()?.conditions, conditions::READY)?;
            (ready.reason == "Deleting").then_some(())
        });
    }
    env.sql("INSERT INTO a SELECT generate_series(101, 200)");
    env.settle("streams");

    env.kill_pod(&env.until_replicator("streams", &[]));
    env.delete::<api::Mirror>("streams");
    env.until_event("streams", "CleanedUp");
    assert!(!env.left_at_source().contains(streams_at_source), "{}", env.left_at_source());
    assert_eq!(records(&env, uid_of(streams_at_source)), "0");
    env.assert_table("a", "id", "id");

    env.delete::<api::Mirror>("retained");
    env.until_event("retained", "Retained");
    assert_eq!(env.left_at_source().matches(retained_at_source).count(), 2, "{}", env.left_at_source());
    assert_ne!(records(&env, uid_of(retained_at_source)), "0");
    env.sql(&format!("SELECT pg_drop_replication_slot('{retained_at_source}')"));
    env.sql(&format!("DROP PUBLICATION {retained_at_source}"));

    env.delete::<api::Mirror>("suspended");
    assert!(!env.left_at_source().contains(suspended_at_source), "{}", env.left_at_source());
    assert_eq!(records(&env, uid_of(suspended_at_source)), "0");
    env.assert_table("c", "id", "id");

    for peer in ["source", "target"] {
        env.namespace.until::<ReplicationPeer, ()>(peer, "gone", |peer| peer.is_none().then_some(()));
    }
}

/// The replicator has so little CPU time that it is still copying when it has to end.
#[test]
fn while_rows_are_copied() {
    let env = TestEnv::new();
    env.sql(
        "CREATE TABLE t (id int PRIMARY KEY, v text); ALTER TABLE t ALTER v SET STORAGE PLAIN;
        INSERT INTO t SELECT i, repeat(md5(i::text), 40) FROM generate_series(1, 200000) i",
    );
    let mut mirror = env.mirror(&["t"]);
    mirror.mirror["spec"]["snapshot"] = json!({"parallelism": 1});
    mirror.mirror["spec"]["replicator"] = json!({"resources": {"limits": {"cpu": "30m"}}});
    let name = env.apply(&mirror);
    eventually("some rows to be copied", || {
        // The table may not exist yet.
        let copied = env.clickhouse.try_query(&env.database, "SELECT count() FROM t");
        copied.is_ok_and(|rows| rows != "0\n")
    });
    let at_source = env.name_at_source(&name);
    env.begin_delete::<api::Mirror>(&name);
    env.until_gone(&name);
    assert_eq!(env.left_at_source(), "");
    assert_eq!(records(&env, uid_of(&at_source)), "0");
    let copied: u32 = env.target_value("SELECT count() FROM t FINAL").parse().unwrap();
    assert!((1..200_000).contains(&copied), "{copied} rows were copied");
}

/// Cleanup is retried with backoff and succeeds when the source is available again, unless the user skips it.
#[test]
fn while_the_source_is_down() {
    let mut env = TestEnv::with_own_postgres(&[]);
    env.sql("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)");
    let waits = another(&env.mirror(&["a"]), "waits", &["a"]);
    env.apply(&waits);
    env.apply_mirror(&another(&waits, "skipped", &["b"]));
    for name in ["waits", "skipped"] {
        env.until_ready(name);
    }
    let skipped_at_source = env.name_at_source("skipped");
    env.restart_postgres(false, || {
        let address = cluster().address();
        let port = (address, env.postgres_port);
        for name in ["waits", "skipped"] {
            env.begin_delete::<api::Mirror>(name);
            // A second deletion changes nothing.
            env.begin_delete::<api::Mirror>(name);
        }
        for name in ["waits", "skipped"] {
            env.until_reason(name, conditions::READY, "CleanupFailed");
            env.until(name, "an unreachable source", |mirror| {
                let source = condition(&mirror.status.as_ref()?.conditions, conditions::SOURCE_READY)?;
                (source.status == "False" && source.reason == "SourceUnreachable").then_some(())
            });
        }
        env.annotate("skipped", "walferry.dev/skip-cleanup", "true");
        env.until_gone("skipped");
        env.until_event("skipped", "CleanupSkipped");
        assert_backs_off(port);
    });
    env.until_gone("waits");
    env.until_event("waits", "CleanedUp");
    assert_eq!(env.left_at_source(), format!("{skipped_at_source}\n{skipped_at_source}\n"));
    env.leaves_nothing = false;
}

/// Listens in the place of the server and asserts that there are pauses between attempts to connect.
fn assert_backs_off(port: (std::net::IpAddr, u16)) {
    let listener = TcpListener::bind(port).unwrap();
    listener.set_nonblocking(true).unwrap();
    let times: [Instant; 3] = [(); 3].map(|()| {
        until("an attempt to clean up", || match listener.accept() {
            Ok(_) => Some(Instant::now()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        })
    });
    let pauses = [times[1] - times[0], times[2] - times[1]];
    assert!(pauses.iter().all(|pause| *pause > Duration::from_millis(500)), "{pauses:?}");
}

/// Mirrors are deleted at each step of their creation, and then together with their namespace.
#[test]
fn right_after_creation_and_with_the_namespace() {
    let env = TestEnv::new();
    let steps = ["created", "kept", "deployed", "begun", "streams", "new"];
    for step in steps {
        env.sql(&format!("CREATE TABLE {step} (id int PRIMARY KEY)"));
    }
    let [created, kept, deployed, begun, streams, new] =
        steps.map(|step| another(&env.mirror(&["created"]), step, &[step]));
    env.apply(&created);
    env.begin_delete::<api::Mirror>("created");
    env.apply_mirror(&kept);
    env.until("kept", "its finalizer", |mirror| mirror.metadata.finalizers.as_ref().map(drop));
    env.begin_delete::<api::Mirror>("kept");
    env.apply_mirror(&deployed);
    let deployment = "walferry-deployed";
    env.namespace.until(deployment, "made", |deployment: Option<&Deployment>| deployment.map(drop));
    env.begin_delete::<api::Mirror>("deployed");
    env.apply_mirror(&begun);
    let at_source = env.name_at_source("begun");
    eventually("its publication", || env.left_at_source().contains(&at_source));
    env.begin_delete::<api::Mirror>("begun");
    for name in ["created", "kept", "deployed", "begun"] {
        env.until_gone(name);
    }
    assert_eq!(env.left_at_source(), "");

    env.apply_mirror(&streams);
    env.until_ready("streams");
    env.apply_mirror(&new);
    env.delete_namespace();
    assert_eq!(env.left_at_source(), "");
}
