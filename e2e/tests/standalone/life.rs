//! What a Mirror reports while it streams, while it doesn't, and when it changes: columns, lag, readiness,
//! `check`.

use std::process::{Command, Stdio};

use serde_json::{Value, json};
use walferry::fault::Reason;

use crate::support::{Mirror, Pg, Run, Server, TestEnv, UNTIL_CAUGHT_UP, stalled_for, until};

/// The Mirror with this value of the resync annotation.
fn resynced(mirror: &Mirror, value: &str) -> Mirror {
    let mut mirror = mirror.clone();
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": value});
    mirror
}

fn columns(env: &TestEnv, table: &str) -> String {
    env.target_value(&format!(
        "SELECT arrayStringConcat(groupArray(name), ',') FROM (SELECT name FROM system.columns WHERE database = currentDatabase() AND \
         table = '{table}' AND NOT startsWith(name, '_walferry') ORDER BY position)"
    ))
}

/// A series of `/metrics`, `None` when there is none.
fn series(run: &mut Run, name: &str) -> Option<f64> {
    let (_, text) = run.http("/metrics").unwrap();
    let line = text.lines().find(|line| line.starts_with(&format!("{name}{{")))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// Renamed and exchanged columns keep their names at the target over every resync, and `verify` finds both
/// sides equal.
#[test]
fn names_at_the_target_survive_every_resync() {
    let env = TestEnv::new(Pg::V18);
    env.sql(
        "CREATE TABLE t (id int PRIMARY KEY, a text, b text, c text); INSERT INTO t SELECT i, 'a', 'b', 'c' FROM generate_series(1, 50) i;
        CREATE TABLE other (id int PRIMARY KEY)",
    );
    let mirror = env.mirror(&["t", "other"]);
    let mut run = env.streaming(&mirror);
    env.sql(
        "BEGIN; ALTER TABLE t RENAME a TO x; ALTER TABLE t RENAME b TO a; ALTER TABLE t RENAME x TO b; ALTER TABLE t RENAME c TO d; COMMIT;
        INSERT INTO t (id, a, b, d) VALUES (100, 'was b', 'was a', 'was c')",
    );
    env.settle(&mut run);
    env.verify(&mirror);
    run.stop();
    let same = |env: &TestEnv| {
        assert_eq!(columns(env, "t"), "id,a,b,c");
        env.assert_same(
            "SELECT id, b, a, d FROM t ORDER BY id",
            "SELECT id, a, b, c FROM t FINAL WHERE _walferry_deleted = 0 ORDER BY id",
        );
    };
    same(&env);
    for value in ["1", "2 public.t", "3"] {
        env.sql("UPDATE t SET d = d || '+' WHERE id < 9");
        let again = resynced(&mirror, value);
        env.catch_up(&again);
        same(&env);
        env.verify(&again);
    }
    // A changed spec of some columns is applied to them, and leaves the names of the others unchanged.
    let mut changed = resynced(&mirror, "4 public.t");
    changed.table(0)["columns"] = json!({"exclude": ["b"], "rename": {"d": "renamed"}});
    env.catch_up(&changed);
    assert_eq!(columns(&env, "t"), "id,a,b,c,renamed");
    env.assert_same(
        "SELECT id, a, d FROM t ORDER BY id",
        "SELECT id, b, renamed FROM t FINAL WHERE _walferry_deleted = 0 ORDER BY id",
    );
    env.verify(&changed);
}

/// Until the Mirror has noticed that a partition was detached, both sides differ, and `verify` waits.
#[test]
fn verify_waits_for_a_detached_partition() {
    let env = TestEnv::new(Pg::V18);
    env.sql(
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (0) TO (10);
        CREATE TABLE p_2 PARTITION OF p FOR VALUES FROM (10) TO (20); INSERT INTO p SELECT generate_series(1, 19)",
    );
    let mirror = env.mirror(&["p"]);
    let run = env.streaming(&mirror);
    env.sql("ALTER TABLE p DETACH PARTITION p_2");
    env.verify(&mirror);
    run.stop();
    // When nothing runs that would notice it, `verify` is inconclusive.
    env.sql("ALTER TABLE p ATTACH PARTITION p_2 FOR VALUES FROM (10) TO (20)");
    env.command("verify", &mirror, &[]).exits(2).says(&["changed at the source"]);
}

/// A Mirror that can't continue is a failure of `check`, with the resync that helps, until that is requested.
#[test]
fn check_fails_until_a_resync() {
    for (statement, check) in [
        (
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()",
            "replication slot",
        ),
        (
            "DO $$ BEGIN EXECUTE 'DROP PUBLICATION ' || (SELECT pubname FROM pg_publication); END $$",
            "publication",
        ),
    ] {
        let env = TestEnv::new(Pg::V18);
        env.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
        let mirror = env.mirror(&["t"]);
        env.catch_up(&mirror);
        env.command("check", &mirror, &[]).exits(0);
        env.admin(statement);
        let report = env.command("check", &mirror, &[]).exits(1).finds("FAILURE", "source", check);
        report.says(&["walferry.dev/resync", "1 failure"]);
        let again = resynced(&mirror, "1");
        env.command("check", &again, &[]).exits(0);
        env.catch_up(&again);
        env.command("check", &again, &[]).exits(0);
    }
}

/// The lag is never reported as 0 while nothing is streamed.
#[test]
fn lag_while_nothing_is_streamed() {
    crate::needs_own_server!();
    let env = TestEnv::on(Server::postgres(Pg::V18, &[]).into(), Server::shared_clickhouse());
    env.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let mut mirror = env.mirror(&["t"]);
    let mut run = env.streaming(&mirror);
    until("the lag to be known", || series(&mut run, "walferry_lag_seconds").filter(|lag| *lag < 30.0));
    assert_eq!(run.http("/readyz").unwrap().0, 200);
    env.restart_postgres(false, || {
        until("the lag to grow", || series(&mut run, "walferry_lag_seconds").filter(|lag| *lag >= 3.0));
        assert_eq!(run.http("/readyz").unwrap().0, 503);
    });
    until("the lag to fall", || series(&mut run, "walferry_lag_seconds").filter(|lag| *lag < 2.0));
    run.stop();
    // A suspended Mirror streams nothing and measures only its slot.
    mirror.mirror["spec"]["suspend"] = json!(true);
    env.sql("INSERT INTO t SELECT generate_series(2, 1000)");
    let mut run = env.run(&mirror);
    until("the slot of a suspended Mirror", || series(&mut run, "walferry_retained_wal_bytes"));
    assert_eq!(series(&mut run, "walferry_lag_seconds"), None);
    assert!(series(&mut run, "walferry_lag_bytes").is_some_and(|bytes| bytes > 0.0));
    assert_eq!(run.http("/readyz").unwrap().0, 503);
    run.stop();
    // Without its slot the Mirror stalls.
    mirror.mirror["spec"]["suspend"] = json!(false);
    let mut run = env.streaming(&mirror);
    let slot = env.slot(&mut run, "slot_name");
    run.stop();
    env.admin(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    let mut run = env.run(&mirror);
    stalled_for(&mut run, Reason::SourceSlotLost);
}

/// While a table is added, the Mirror stays ready and names that table.
#[test]
fn ready_while_a_table_is_added() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1); CREATE TABLE b (id int PRIMARY KEY); INSERT INTO b VALUES (1)");
    env.catch_up(&env.mirror(&["a"]));
    let mut writer = env.connect();
    writer.batch_execute("BEGIN; INSERT INTO b VALUES (2)").unwrap();
    let mut run = env.run(&env.mirror(&["a", "b"]));
    run.until_status("the table to be added", |status| {
        let conditions = status["conditions"].as_array()?;
        let of = |kind: &str| conditions.iter().find(|condition| condition["type"] == kind);
        let added = of("Reconciling")?["message"].as_str()?.contains("public.b");
        (added && of("Ready")?["status"] == "True").then_some(())
    });
    env.sql("INSERT INTO a VALUES (2)");
    env.settle(&mut run);
    env.assert_table("a", "id", "id");
    writer.batch_execute("COMMIT").unwrap();
    run.until_streaming();
    run.until_status("nothing to reconcile", |status| {
        let conditions = status["conditions"].as_array()?;
        conditions.iter().all(|condition| condition["type"] != "Reconciling").then_some(())
    });
    run.stop();
}

/// A JSON log has one object a line with each key once, and a reader that closes the output causes no panic.
#[test]
fn output_is_valid_and_may_be_cut_off() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1); CREATE TABLE stays (id int PRIMARY KEY)");
    let mirror = env.mirror(&["t", "stays"]);
    env.catch_up(&mirror);
    env.sql("DROP TABLE t");
    let outcome = env.command("run", &mirror, &UNTIL_CAUGHT_UP).exits(1);
    let outcome = outcome.refuses("public.t", Reason::SourceTableDropped);
    let lines: Vec<&str> = outcome.stderr.lines().filter(|line| line.starts_with('{')).collect();
    for line in lines {
        serde_json::from_str::<Value>(line).unwrap();
        assert_eq!(line.matches("\"message\":").count(), 1, "{line}");
    }
    let file = env.write(&mirror);
    for command in ["verify", "check"] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_walferry"))
            .args([command, "-f", file.to_str().unwrap()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.code().is_some_and(|code| code != 101) && !said.contains("panicked"), "{said}");
    }
}
