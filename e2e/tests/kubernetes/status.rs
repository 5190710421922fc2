//! The status of a Mirror: the conditions of each state, how soon they are set, and that an idle Mirror
//! causes few queries and writes.

use std::pin::pin;

use futures::StreamExt;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};
use kube::{
    Resource, ResourceExt,
    api::{ListParams, Patch, PatchParams, WatchEvent, WatchParams},
};
use serde_json::json;
use walferry::api::{Mirror, MirrorStatus, ReplicationPeer, conditions};

use crate::{
    harness::{TestEnv, TestNamespace, clickhouse, cluster, condition, own_postgres},
    support::{self, DEADLINE, eventually, until},
};

/// An object's state in kstatus, which deployment tools follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kstatus {
    InProgress,
    Failed,
    Current,
    Terminating,
}

/// The generic rules of kstatus for unknown kinds.
fn kstatus(mirror: &Mirror) -> Kstatus {
    if mirror.metadata.deletion_timestamp.is_some() {
        return Kstatus::Terminating;
    }
    let status = mirror.status.clone().unwrap_or_default();
    let is =
        |kind: &str, value: &str| condition(&status.conditions, kind).is_some_and(|it| it.status == value);
    if status.observed_generation != mirror.metadata.generation || is(conditions::RECONCILING, "True") {
        Kstatus::InProgress
    } else if is(conditions::STALLED, "True") {
        Kstatus::Failed
    } else if is(conditions::READY, "True") {
        Kstatus::Current
    } else {
        Kstatus::InProgress
    }
}

/// The resource version from which a watch of this namespace's Mirrors gets all later changes.
fn now(env: &TestEnv) -> String {
    let list = cluster().block_on(env.namespace.api::<Mirror>().list(&ListParams::default())).unwrap();
    list.metadata.resource_version.unwrap()
}

/// Every state of a Mirror since `start`, up to the first one for which `done` is true.
#[track_caller]
fn history(env: &TestEnv, name: &str, start: &str, mut done: impl FnMut(&Mirror) -> bool) -> Vec<Mirror> {
    let api = env.namespace.api::<Mirror>();
    let parameters = WatchParams::default().fields(&format!("metadata.name={name}"));
    let mut seen = Vec::new();
    let collected = cluster().block_on(async {
        tokio::time::timeout(DEADLINE, async {
            let mut events = pin!(api.watch(&parameters, start).await.unwrap());
            while let Some(event) = events.next().await {
                let (WatchEvent::Added(mirror) | WatchEvent::Modified(mirror)) = event.unwrap() else {
                    continue;
                };
                let last = done(&mirror);
                seen.push(mirror);
                if last {
                    return;
                }
            }
            panic!("the watch ended")
        })
        .await
    });
    collected.unwrap_or_else(|_| panic!("not done within {DEADLINE:?}; the states were {seen:#?}"));
    seen
}

/// Asserts what must hold in every state.
#[track_caller]
fn assert_consistent(mirror: &Mirror) {
    let Some(status) = &mirror.status else { return };
    let status = status.clone();
    let kinds: Vec<&str> = status.conditions.iter().map(|condition| condition.type_.as_str()).collect();
    let count = |kind: &str| kinds.iter().filter(|found| **found == kind).count();
    for kind in ["Ready", "SourceReady", "DestinationReady", "Snapshotted", "Streaming", "CaughtUp"] {
        assert_eq!(count(kind), 1, "{kind} in {status:#?}");
    }
    assert!(count("Reconciling") + count("Stalled") <= 1, "{status:#?}");
    for condition in &status.conditions {
        assert_eq!(condition.observed_generation, status.observed_generation, "{status:#?}");
        assert!(!condition.message.is_empty(), "{status:#?}");
        let rare = ["Reconciling", "Stalled"].contains(&condition.type_.as_str());
        assert!(!rare || condition.status == "True", "{status:#?}");
    }
    let name = format!("walferry_{}", mirror.uid().unwrap().replace('-', ""));
    assert_eq!(status.slot_name.as_ref(), Some(&name));
    assert_eq!(status.publication_name.as_ref(), Some(&name));
}

/// Status and reason of Ready, such as `True Streaming`.
fn ready(status: &MirrorStatus) -> String {
    let ready = condition(&status.conditions, conditions::READY).unwrap();
    format!("{} {}", ready.status, ready.reason)
}

/// The status and the reason of a condition.
fn state_of(mirror: &Mirror, kind: &str) -> Option<(String, String)> {
    let found = condition(&mirror.status.as_ref()?.conditions, kind)?;
    Some((found.status.clone(), found.reason.clone()))
}

#[track_caller]
fn assert_state(mirror: &Mirror, kind: &str, status: &str, reason: &str) {
    assert_eq!(state_of(mirror, kind), Some((status.to_owned(), reason.to_owned())), "{kind}: {mirror:#?}");
}

/// Waits for the events of a finished snapshot, which follow the status. There are others if the Mirror was
/// applied before its Secrets.
#[track_caller]
fn assert_snapshot_events(env: &TestEnv, name: &str) {
    let events = || {
        let mut events = env.events(name);
        events.retain(|reason| reason == "Provisioned" || reason.starts_with("Snapshot"));
        events
    };
    eventually("the events", || events().len() >= 3);
    assert_eq!(events(), ["Provisioned", "SnapshotFinished", "SnapshotStarted"]);
}

fn patch_spec(env: &TestEnv, name: &str, spec: serde_json::Value) {
    let patch = Patch::Merge(json!({"spec": spec}));
    cluster().block_on(env.namespace.api::<Mirror>().patch(name, &PatchParams::default(), &patch)).unwrap();
}

/// An environment whose PostgreSQL logs every statement with its database and time.
fn env_with_statement_log() -> TestEnv {
    let postgres =
        own_postgres(&["-c", "log_statement=all", "-c", "log_line_prefix=%d|%m|", "-c", "timezone=UTC"]);
    TestEnv::with(TestNamespace::new(), support::TestEnv::on(postgres, clickhouse()))
}

#[test]
fn from_apply_to_ready_and_then_quiet() {
    let env = env_with_statement_log();
    env.sql("CREATE TABLE users (id bigint PRIMARY KEY, name text); INSERT INTO users SELECT n, 'user ' || n FROM generate_series(1, 1000) n; ANALYZE users");
    let start = now(&env);
    let name = env.apply(&env.mirror(&["users"]));
    let caught_up = |mirror: &Mirror| {
        mirror.status.as_ref().is_some_and(|status| status.retained_wal_bytes.is_some())
            && state_of(mirror, conditions::CAUGHT_UP).is_some_and(|(status, _)| status == "True")
            && kstatus(mirror) == Kstatus::Current
    };
    let states = history(&env, &name, &start, caught_up);
    states.iter().for_each(assert_consistent);

    // The first status has everything that tools need to wait for the Mirror.
    let first = states.iter().find(|mirror| mirror.status.is_some()).unwrap();
    assert_state(first, conditions::READY, "Unknown", "Progressing");
    assert_state(first, conditions::RECONCILING, "True", "Provisioning");
    assert_state(first, conditions::SOURCE_READY, "Unknown", "Provisioning");
    assert_state(first, conditions::SNAPSHOTTED, "False", "Provisioning");
    assert_eq!(first.status.as_ref().unwrap().observed_generation, Some(1));
    assert!(states.iter().all(|mirror| mirror.status.is_some() || kstatus(mirror) == Kstatus::InProgress));
    assert_eq!(kstatus(first), Kstatus::InProgress);

    let last = states.last().unwrap();
    let created = last.creation_timestamp().unwrap().0;
    let became_ready = &condition(&last.status.as_ref().unwrap().conditions, conditions::READY)
        .unwrap()
        .last_transition_time;
    let seconds = became_ready.0.duration_since(created).as_secs();
    println!("from apply to Ready on 1,000 rows: {seconds} s, {} states", states.len());
    assert!(seconds <= 30, "{seconds} s from apply to Ready");

    for (kind, reason) in [
        (conditions::READY, "Streaming"),
        (conditions::SOURCE_READY, "Connected"),
        (conditions::DESTINATION_READY, "Connected"),
        (conditions::SNAPSHOTTED, "Copied"),
        (conditions::STREAMING, "Streaming"),
        (conditions::CAUGHT_UP, "NoLag"),
    ] {
        assert_state(last, kind, "True", reason);
    }
    let status = last.status.clone().unwrap();
    let tables = status.tables.unwrap();
    assert_eq!((tables.total, tables.snapshotting, tables.streaming, tables.failed), (1, 0, 1, 0));
    let snapshot = status.snapshot.unwrap();
    assert_eq!((snapshot.rows_copied, snapshot.rows_estimated), (1000, 1000));
    assert_eq!(status.lag.unwrap().bytes, Some(0));
    assert!(support::parse_lsn(&status.last_lsn.unwrap()).unwrap() > 0);
    let slot = status.slot_name.unwrap();
    assert_eq!(
        env.source_value(&format!(
            "SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}' AND active"
        )),
        "1"
    );

    env.namespace.kubectl(&["wait", "mirror", &name, "--for=condition=Ready", "--timeout=5s"]).exits(0);
    env.namespace.kubectl(&["get", "mirrors"]).exits(0).says(&["True", "Streaming", "source", "target"]);
    assert_snapshot_events(&env, &name);

    assert_idle_is_quiet(&env, &name);

    env.sql("UPDATE users SET name = 'renamed' WHERE id = 7");
    env.settle(&name);
    env.assert_table("users", "id, name", "id");
    suspended(&env, &name);
}

/// The statements that walferry sent to the test's database, from PostgreSQL's log, with their second of the
/// day.
fn statements(env: &TestEnv) -> Vec<(f64, String)> {
    let log = std::fs::read_to_string(env.postgres_server.folder.join("log")).unwrap();
    let of_database = format!("{}|", env.database);
    let statement = |line: &str| {
        // 2026-11-21 13:06:10.123 UTC|LOG:  statement: SELECT 1
        let (time, rest) = line.strip_prefix(&of_database)?.split_once('|')?;
        let text = rest.strip_prefix("LOG:  ")?;
        if !(text.starts_with("statement: ")
            || text.starts_with("execute ")
            || text.starts_with("replication command"))
        {
            return None;
        }
        let clock: Vec<f64> = time.split(' ').nth(1)?.split(':').map(|part| part.parse().unwrap()).collect();
        Some((clock[0] * 3600.0 + clock[1] * 60.0 + clock[2], text.to_owned()))
    };
    // The catalog check opens a new session every 30 s, because only new sessions notice a smart shutdown. A
    // session begins with these statements.
    let begins_session =
        |text: &str| text.contains("server_version_num") || text.contains("pg_postmaster_start_time");
    log.lines().filter_map(statement).filter(|(_, text)| !begins_session(text)).collect()
}

/// Without changes at the source, it gets one query every 10 s, and the apiserver gets only status updates.
fn assert_idle_is_quiet(env: &TestEnv, name: &str) {
    let versions = || {
        let version = |object: Option<String>| object.unwrap();
        let owned = format!("walferry-{name}");
        let config_map = cluster().block_on(env.namespace.api::<ConfigMap>().get(&owned)).unwrap();
        let deployment = cluster().block_on(env.namespace.api::<Deployment>().get(&owned)).unwrap();
        let peers = ["source", "target"].map(|peer| {
            version(
                cluster()
                    .block_on(env.namespace.api::<ReplicationPeer>().get(peer))
                    .unwrap()
                    .resource_version(),
            )
        });
        (version(config_map.meta().resource_version.clone()), version(deployment.resource_version()), peers)
    };
    let written = || env.operator.metric("walferry_operator_status_writes_total", &[("kind", "Mirror")]);
    let known = statements(env).len();
    until("the first query at an idle source", || (statements(env).len() > known).then_some(()));
    let (before, start, begun, writes) = (versions(), now(env), std::time::Instant::now(), written());
    let known = statements(env).len();
    until("two more queries", || (statements(env).len() >= known + 2).then_some(()));
    let window = begun.elapsed();
    let queries = &statements(env)[known - 1..];
    println!("in {window:?} the source got {queries:?}");
    for pair in queries.windows(2) {
        let pause = (pair[1].0 - pair[0].0).rem_euclid(86_400.0);
        assert!(pause > 9.5, "an idle Mirror queried its source after {pause} s: {queries:#?}");
    }

    assert_eq!(versions(), before, "objects or peers of an idle Mirror were written");
    let marked = Patch::Merge(json!({"metadata": {"labels": {"e2e": "end-of-window"}}}));
    cluster().block_on(env.namespace.api::<Mirror>().patch(name, &PatchParams::default(), &marked)).unwrap();
    let states = history(env, name, &start, |mirror| mirror.labels().contains_key("e2e"));
    let states = &states[..states.len() - 1];
    println!(
        "the apiserver got {} status writes of this Mirror, {} of all Mirrors",
        states.len(),
        written() - writes
    );
    let most = window.as_secs() / 5 + 1;
    assert!(states.len() as u64 <= most, "{} writes in {window:?}: {states:#?}", states.len());
    for mirror in states {
        assert_consistent(mirror);
        assert_eq!(ready(mirror.status.as_ref().unwrap()), "True Streaming");
    }
}

/// A suspended Mirror is Ready and reports the WAL that its slot retains.
fn suspended(env: &TestEnv, name: &str) {
    patch_spec(env, name, json!({"suspend": true}));
    let mirror = env.until(name, "suspended with figures", |mirror| {
        (ready(mirror.status.as_ref()?) == "True Suspended"
            && mirror.status.as_ref()?.retained_wal_bytes.is_some())
        .then(|| mirror.clone())
    });
    assert_consistent(&mirror);
    assert_eq!(kstatus(&mirror), Kstatus::Current);
    assert_state(&mirror, conditions::STREAMING, "False", "Suspended");
    assert_state(&mirror, conditions::SNAPSHOTTED, "True", "Copied");
}

/// A failed table stops alone; when all have failed, the Mirror is Stalled.
#[test]
fn failed_tables_are_listed_and_the_rest_streams() {
    let env = TestEnv::new();
    env.sql("CREATE TABLE a (id bigint PRIMARY KEY); CREATE TABLE b (id bigint PRIMARY KEY); INSERT INTO a VALUES (1); INSERT INTO b VALUES (1)");
    let name = env.streaming(&env.mirror(&["a", "b"]));
    env.target("DROP TABLE a SYNC");
    env.sql("INSERT INTO a VALUES (2)");
    let mirror = env.until(&name, "a failed table", |mirror| {
        (ready(mirror.status.as_ref()?) == "True StreamingWithFailedTables").then(|| mirror.clone())
    });
    assert_consistent(&mirror);
    assert_eq!(kstatus(&mirror), Kstatus::Current);
    let status = mirror.status.unwrap();
    let tables = status.tables.unwrap();
    assert_eq!((tables.total, tables.streaming, tables.failed), (2, 1, 1));
    let failed = &status.failed_tables[0];
    assert_eq!(
        (failed.schema.as_str(), failed.name.as_str(), failed.reason.as_str()),
        ("public", "a", "DestinationTableMissing")
    );
    env.sql("INSERT INTO b VALUES (2)");
    env.settle(&name);
    env.assert_table("b", "id", "id");

    env.target("DROP TABLE b SYNC");
    env.sql("INSERT INTO b VALUES (3)");
    env.until_stalled(&name, "AllTablesFailed");
    let mirror =
        env.until(&name, "Failed", |mirror| (kstatus(mirror) == Kstatus::Failed).then(|| mirror.clone()));
    assert_consistent(&mirror);
    let tables = mirror.status.as_ref().unwrap().tables.clone().unwrap();
    assert_eq!((tables.total, tables.streaming, tables.failed), (2, 0, 2));
    eventually("the events", || env.events(&name).contains(&"AllTablesFailed".to_owned()));
    let events = env.events(&name);
    assert_eq!(events.iter().filter(|reason| *reason == "TableFailed").count(), 2, "{events:?}");
}

/// While rows are copied, the status reports the progress.
#[test]
fn a_snapshot_reports_its_progress() {
    let env = TestEnv::new();
    env.sql("CREATE TABLE big (id bigint PRIMARY KEY, note text); INSERT INTO big SELECT n, repeat('x', 100) FROM generate_series(1, 300000) n; ANALYZE big");
    // Each insert into the target takes 3 s, as at a busy server.
    env.target("CREATE TABLE big (id Int64, note Nullable(String), _walferry_version UInt64, _walferry_deleted UInt8) ENGINE = ReplacingMergeTree(_walferry_version, _walferry_deleted) ORDER BY id");
    env.target("CREATE TABLE slow (id Int64, nap UInt8) ENGINE = Null");
    env.target("CREATE MATERIALIZED VIEW slowly TO slow AS SELECT min(id) AS id, sleep(3) AS nap FROM big");
    let start = now(&env);
    let name = env.apply(&env.mirror(&["big"]));
    let states = history(&env, &name, &start, |mirror| kstatus(mirror) == Kstatus::Current);
    states.iter().for_each(assert_consistent);
    let copying = states.iter().find(|mirror| {
        state_of(mirror, conditions::RECONCILING).is_some_and(|(_, reason)| reason == "Snapshotting")
    });
    let copying = copying.unwrap_or_else(|| panic!("no state reports the snapshot: {states:#?}"));
    assert_state(copying, conditions::READY, "Unknown", "Progressing");
    assert_state(copying, conditions::SNAPSHOTTED, "False", "Snapshotting");
    assert_state(copying, conditions::STREAMING, "True", "Streaming");
    let status = copying.status.clone().unwrap();
    assert_eq!(status.tables.unwrap().snapshotting, 1);
    assert_eq!(status.snapshot.unwrap().rows_estimated, 300_000);
    assert_eq!(states.last().unwrap().status.clone().unwrap().snapshot.unwrap().rows_copied, 300_000);
    assert_snapshot_events(&env, &name);
}

/// The operator's memory with ten Mirrors is bounded.
#[test]
fn an_operator_of_ten_mirrors_needs_little_memory() {
    const MOST: u64 = 60 << 20;
    let env = TestEnv::new();
    let mut names = Vec::new();
    for n in 0..10 {
        env.sql(&format!("CREATE TABLE t{n} (id bigint PRIMARY KEY); INSERT INTO t{n} SELECT x FROM generate_series(1, 1000) x"));
        let mut mirror = env.mirror(&[&format!("t{n}")]);
        mirror.mirror["metadata"]["name"] = format!("m{n}").into();
        names.push(env.apply(&mirror));
    }
    for name in &names {
        env.until_ready(name);
    }
    let resident = until("the operator's memory", || resident_bytes(&env).filter(|bytes| *bytes > 0));
    println!("operator: {:.1} MiB resident with at least 10 Mirrors", resident as f64 / f64::from(1 << 20));
    assert!(resident <= MOST, "the operator has {resident} bytes resident");
}

/// The resident memory of the operator's largest process, from kubelet's metrics.
fn resident_bytes(env: &TestEnv) -> Option<u64> {
    let figures = env.operator.pods().into_iter().filter_map(|pod| {
        let node = pod.spec.as_ref()?.node_name.clone()?;
        let path = format!("/api/v1/nodes/{node}/proxy/metrics/cadvisor");
        let text = cluster().kubectl(&["get", "--raw", &path], "").exits(0).stdout;
        let pod = format!("pod=\"{}\"", pod.name_any());
        // `NAME{LABELS} BYTES MILLISECONDS`: one line for each container, and one for the whole pod
        let largest = |name: &str| {
            let lines =
                text.lines().filter(|line| line.starts_with(&format!("{name}{{")) && line.contains(&pod));
            let values =
                lines.filter_map(|line| line.split_once("} ")?.1.split(' ').next()?.parse::<f64>().ok());
            values.reduce(f64::max)
        };
        // kubelet's rss does not include mapped files, such as the program itself.
        Some((largest("container_memory_rss")? + largest("container_memory_mapped_file")?) as u64)
    });
    figures.max()
}
