//! Faults of a cluster, once during the snapshot and once while a Mirror streams: its programs and the
//! operator are killed, the replicator's pod is deleted, and the node is drained.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::json;
use walferry::api::conditions;

use crate::{
    harness::{TestEnv, cluster, condition},
    support::{Writer, eventually},
};

/// The partitions of the table that is copied slowly: one chunk each.
const CHUNKS: u32 = 30;
/// The rows of one partition.
const ROWS: u32 = 100;

#[test]
fn while_it_copies_and_while_it_streams() {
    if !cluster().can_be_disturbed() {
        return;
    }
    let env = TestEnv::alone();
    make_tables(&env);
    let mut mirror = env.mirror(&["ticks", "big"]);
    mirror.mirror["spec"]["snapshot"] = json!({"parallelism": 1});
    let writer = Writer::start(env.connect(), |n| {
        let id = n * 7919 % u64::from(CHUNKS * ROWS);
        format!(
            "UPDATE big SET n = n + 1 WHERE id = {id}; INSERT INTO ticks DEFAULT VALUES; SELECT pg_sleep(0.02)"
        )
    });
    let name = env.apply(&mirror);
    let mut pods = vec![env.until_replicator(&name, &[])];
    until_copying(&env, &name);

    programs_are_killed(&env, &name, &pods);
    the_pod_is_deleted(&env, &name, &mut pods);
    the_node_is_drained(&env, &name, &mut pods, false);
    until_copying(&env, &name);
    let before = arrivals(&env);
    assert!(before.len() < CHUNKS as usize, "the snapshot ended before the faults did: {before:?}");
    env.target("DROP VIEW slowly SYNC");
    env.until_ready(&name);

    programs_are_killed(&env, &name, &pods);
    the_pod_is_deleted(&env, &name, &mut pods);
    the_node_is_drained(&env, &name, &mut pods, true);
    env.until_ready(&name);
    assert!(writer.finish() > 0);
    env.settle(&name);
    env.assert_table("big", "id, n", "id");
    env.assert_table("ticks", "id", "id");
    assert_copied_once(&env);
    // No transient error was reported as Stalled, and no table failed.
    let mut events = env.events(&name);
    events.retain(|reason| reason != "SlotTakenOver");
    assert_eq!(events, ["Provisioned", "SnapshotFinished", "SnapshotStarted"]);
}

/// Creates a table of many chunks, each of which takes 3 s to insert and is recorded in `arrivals`, and a
/// fast table.
fn make_tables(env: &TestEnv) {
    env.sql(&format!(
        "CREATE TABLE ticks (id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY);
        CREATE TABLE big (id int PRIMARY KEY, n int NOT NULL) PARTITION BY RANGE (id);
        DO $$ BEGIN FOR i IN 0..{CHUNKS} - 1 LOOP
            EXECUTE format('CREATE TABLE big%s PARTITION OF big FOR VALUES FROM (%s) TO (%s)', i, i * {ROWS}, (i + 1) * {ROWS});
        END LOOP; END $$;
        INSERT INTO big SELECT id, 0 FROM generate_series(0, {CHUNKS} * {ROWS} - 1) id"
    ));
    env.target("CREATE TABLE big (id Int32, n Int32, _walferry_version UInt64, _walferry_deleted UInt8) ENGINE = ReplacingMergeTree(_walferry_version, _walferry_deleted) ORDER BY id");
    env.target("CREATE TABLE arrivals (at Int64, first Int32) ENGINE = MergeTree ORDER BY at");
    env.target("CREATE MATERIALIZED VIEW arriving TO arrivals AS SELECT toUnixTimestamp64Nano(now64(9)) AS at, min(id) AS first FROM big WHERE _walferry_version = 0 HAVING count() > 0");
    env.target("CREATE TABLE slow (id Int32, nap UInt8) ENGINE = Null");
    env.target("CREATE MATERIALIZED VIEW slowly TO slow AS SELECT min(id) AS id, sleep(3) AS nap FROM big");
}

/// The first key of each chunk in the order of arrival. A chunk whose insert was not confirmed arrives twice
/// in a row.
fn arrivals(env: &TestEnv) -> Vec<String> {
    let mut firsts: Vec<_> =
        env.target("SELECT first FROM arrivals ORDER BY at").lines().map(str::to_owned).collect();
    firsts.dedup();
    firsts
}

/// Asserts that no chunk was copied again after a later one.
#[track_caller]
fn assert_copied_once(env: &TestEnv) {
    let mut firsts = arrivals(env);
    let in_order = firsts.clone();
    firsts.sort();
    firsts.dedup();
    assert_eq!((firsts.len(), in_order.len()), (CHUNKS as usize, CHUNKS as usize), "{in_order:?}");
}

/// Waits until the status reports the snapshot and at least one chunk is copied.
#[track_caller]
fn until_copying(env: &TestEnv, name: &str) {
    env.until_reason(name, conditions::RECONCILING, "Snapshotting");
    eventually("a finished chunk", || arrivals(env).len() > 1);
}

/// Waits until what is committed now in the fast table is at the destination.
#[track_caller]
fn until_rows_flow(env: &TestEnv) {
    let id = env.source_value("SELECT max(id) FROM ticks");
    eventually("rows to flow", || {
        env.clickhouse
            .try_query(&env.database, &format!("SELECT max(id) >= {id} FROM ticks"))
            .is_ok_and(|flows| flows == "1\n")
    });
}

/// Kills the operator and the cluster's programs. The current replicator, the last of `pods`, must continue.
fn programs_are_killed(env: &TestEnv, name: &str, pods: &[Pod]) {
    // The next operator leads when the Lease of this one expires, so there is none while the programs are
    // killed.
    env.operator.kill();
    for program in ["etcd", "kubelet", "apiserver"] {
        cluster().without(program, || until_rows_flow(env));
    }
    let present = env.until_replicator(name, &[]);
    assert_eq!(present.uid(), pods.last().unwrap().uid());
}

fn the_pod_is_deleted(env: &TestEnv, name: &str, pods: &mut Vec<Pod>) {
    env.begin_delete::<Pod>(&pods.last().unwrap().name_any());
    next_replicator(env, name, pods);
    until_rows_flow(env);
}

/// Drains the replicator's node, which the status must report, and with `with_operator` evicts the operator
/// too.
fn the_node_is_drained(env: &TestEnv, name: &str, pods: &mut Vec<Pod>, with_operator: bool) {
    let node = Node::cordon(pods.last().unwrap());
    node.drain("--pod-selector=app.kubernetes.io/component=replicator");
    env.until(name, "that no node can run the replicator", |mirror| {
        let conditions = &mirror.status.as_ref()?.conditions;
        let reconciling = condition(conditions, conditions::RECONCILING)?;
        let ready = condition(conditions, conditions::READY)?;
        (ready.status == "False" && reconciling.reason == "ReplicatorUnschedulable").then_some(())
    });
    if with_operator {
        node.drain("--pod-selector=");
    }
    drop(node);
    next_replicator(env, name, pods);
    until_rows_flow(env);
}

/// Waits for a replicator that is not in `pods`.
#[track_caller]
fn next_replicator(env: &TestEnv, name: &str, pods: &mut Vec<Pod>) -> Pod {
    let next = env.until_replicator(name, &pods.iter().collect::<Vec<_>>());
    pods.push(next.clone());
    next
}

/// A cordoned node, which is uncordoned when this is dropped.
struct Node(String);

impl Node {
    /// Cordons the node of a pod.
    #[track_caller]
    fn cordon(pod: &Pod) -> Node {
        let node = Node(pod.spec.as_ref().unwrap().node_name.clone().unwrap());
        cluster().kubectl(&["cordon", &node.0], "").exits(0);
        node
    }

    /// Evicts the selected pods and waits for their end. Neither --force nor --delete-emptydir-data is
    /// needed.
    #[track_caller]
    fn drain(&self, selector: &str) {
        cluster().kubectl(&["drain", &self.0, selector, "--timeout=60s"], "").exits(0);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        cluster().kubectl(&["uncordon", &self.0], "");
    }
}
