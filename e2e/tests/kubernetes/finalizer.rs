//! What becomes of a Mirror that is deleted: nothing of it stays at the source, and the target tables stay.

use std::{
    io::ErrorKind,
    net::TcpListener,
    time::{Duration, Instant},
};

use k8s_openapi::api::apps::v1::Deployment;
use serde_json::json;
use walferry::api::{self, ReplicationPeer, conditions};

use crate::{
    harness::{TestEnv, another, assert_says, clickhouse, cluster, condition, own_postgres},
    support::{self, eventually, until},
};

/// How many records of this Mirror there are at the destination.
fn records(env: &TestEnv, uid: &str) -> String {
    env.target_value(&format!(
        "SELECT count() FROM _walferry_state FINAL WHERE mirror = '{uid}' AND value != ''"
    ))
}

/// The UID as slot, publication and state have it.
fn uid_of(name_at_source: &str) -> &str {
    name_at_source.strip_prefix("walferry_").unwrap()
}

/// The peer names another server by the time that its Mirror goes: nothing there is taken for the Mirror's slot, and the message has the place.
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
    let made_at = format!("in database {}", env.database);
    let message = env.until_stalled(&name, "SourceReplaced");
    assert_says(&message, &[&made_at, "Point the peer back", &at_source]);
    env.begin_delete::<api::Mirror>(&name);
    let words = ["SourceReplaced", &made_at, "nothing was dropped", "walferry.dev/skip-cleanup"];
    env.until_told(&name, "CleanupFailed", &words);
    assert!(env.left_at_source().contains(&at_source));

    env.namespace.apply_secret("source-login", &mirror.secrets[0].1);
    env.namespace.apply(&mirror.postgres);
    env.until_gone(&name);
    assert!(!env.left_at_source().contains(&at_source));
}

/// In all ways that a Mirror can go while its servers answer: its pod was killed just now, it is to be retained, it has no pod, and its
/// peers were deleted before it.
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

    // Peers stay as long as they are in use, and say by which.
    for peer in ["source", "target"] {
        env.begin_delete::<ReplicationPeer>(peer);
        env.namespace.until(peer, "the Mirrors that use it", |peer: Option<&ReplicationPeer>| {
            let ready = condition(&peer?.status.as_ref()?.conditions, conditions::READY)?;
            let named = ["streams", "retained", "suspended"].iter().all(|name| ready.message.contains(name));
            (ready.reason == "Deleting" && named).then_some(())
        });
    }
    env.sql("INSERT INTO a SELECT generate_series(101, 200)");
    env.settle("streams");

    env.kill_pod(&env.until_replicator("streams", &[]));
    env.delete::<api::Mirror>("streams");
    let note = env.until_event("streams", "CleanedUp");
    for done in
        [format!("slot {streams_at_source} dropped"), format!("publication {streams_at_source} dropped")]
    {
        assert!(note.contains(&done), "{note}");
    }
    assert!(!env.left_at_source().contains(streams_at_source), "{}", env.left_at_source());
    assert_eq!(records(&env, uid_of(streams_at_source)), "0");
    env.assert_table("a", "id", "id");

    env.delete::<api::Mirror>("retained");
    let note = env.until_event("retained", "Retained");
    assert!(note.contains(retained_at_source), "{note}");
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

/// The replicator gets so little processor time that it is still copying when it has to end.
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
        // there is no table yet
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

/// Clean-up is retried with backoff, and succeeds when the source is back, unless the user skips it.
#[test]
fn while_the_source_is_down() {
    let mut env = TestEnv::with_own_postgres(&[]);
    env.sql("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)");
    let waits = another(&env.mirror(&["a"]), "waits", &["a"]);
    env.apply(&waits);
    env.apply_mirror(&another(&waits, "skipped", &["b"]));
    let [waits_at_source, skipped_at_source] = ["waits", "skipped"].map(|name| {
        env.until_ready(name);
        env.name_at_source(name)
    });
    env.restart_postgres(false, || {
        let address = cluster().address();
        let port = (address, env.postgres_port);
        for name in ["waits", "skipped"] {
            env.begin_delete::<api::Mirror>(name);
            // a second time is no other thing
            env.begin_delete::<api::Mirror>(name);
        }
        for name in ["waits", "skipped"] {
            let (server, database) = (format!("{address}:{}", env.postgres_port), &env.database);
            let place = format!("at {server} in database {database}");
            let by_hand = "SELECT pg_drop_replication_slot(";
            let words = [
                "source",
                "kubectl annotate mirror",
                name,
                "walferry.dev/skip-cleanup=true",
                &place,
                by_hand,
            ];
            env.until_told(name, "CleanupFailed", &words);
            env.until(name, "the side that the fault lies on", |mirror| {
                let source = condition(&mirror.status.as_ref()?.conditions, conditions::SOURCE_READY)?;
                (source.status == "False" && source.reason == "SourceUnreachable").then_some(())
            });
        }
        env.annotate("skipped", "walferry.dev/skip-cleanup", "true");
        env.until_gone("skipped");
        let note = env.until_event("skipped", "CleanupSkipped");
        let drop = format!("SELECT pg_drop_replication_slot('{skipped_at_source}')");
        assert!(note.contains(&drop) && note.contains("remain if they exist"), "{note}");
        assert_tries_less_and_less(port);
    });
    env.until_gone("waits");
    let note = env.until_event("waits", "CleanedUp");
    assert!(note.contains(&format!("slot {waits_at_source} dropped")), "{note}");
    assert_eq!(env.left_at_source(), format!("{skipped_at_source}\n{skipped_at_source}\n"));
    env.leaves_nothing = false;
}

/// Stands in for a server that ends every connection at once, and sees how often one comes.
fn assert_tries_less_and_less(port: (std::net::IpAddr, u16)) {
    let listener = TcpListener::bind(port).unwrap();
    listener.set_nonblocking(true).unwrap();
    let times: [Instant; 3] = [(); 3].map(|()| {
        until("a try to clean up", || match listener.accept() {
            Ok(_) => Some(Instant::now()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        })
    });
    let pauses = [times[1] - times[0], times[2] - times[1]];
    assert!(pauses.iter().all(|pause| *pause > Duration::from_millis(500)), "{pauses:?}");
}

/// At each step that a new Mirror takes; and then the namespace goes with all that is in it.
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
