//! What is told of a Mirror that flows, that does not, and that changes: mappings, lag, readiness and `check`.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Mirror, Pg, Run, Server, TestEnv};

fn asks(mirror: &Mirror, value: &str) -> Mirror {
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

/// Renamed and swapped columns keep their names at the target, whatever is resynced, and `verify` finds both sides equal.
#[test]
fn names_at_the_target_outlive_every_resync() {
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
        let again = asks(&mirror, value);
        env.catch_up(&again);
        same(&env);
        env.verify(&again);
    }
    // Another wish for another column leaves the names of the others alone; one for a column is heard.
    let mut wishes = asks(&mirror, "4 public.t");
    wishes.table(0)["columns"] = json!({"exclude": ["b"], "rename": {"d": "renamed"}});
    env.catch_up(&wishes);
    assert_eq!(columns(&env, "t"), "id,a,b,c,renamed");
    env.assert_same(
        "SELECT id, a, d FROM t ORDER BY id",
        "SELECT id, b, renamed FROM t FINAL WHERE _walferry_deleted = 0 ORDER BY id",
    );
    env.verify(&wishes);
}

/// Until the mirror has seen that a partition was detached the sides differ, and nothing is wrong.
#[test]
fn verify_waits_for_what_the_mirror_has_not_seen() {
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
    // Where nobody will see it, that is told.
    env.sql("ALTER TABLE p ATTACH PARTITION p_2 FOR VALUES FROM (10) TO (20)");
    env.command("verify", &mirror, &[]).exits(2).says(&["changed at the source"]);
}

/// A Mirror that can't go on is a failure of `check`, with the words of its state, until a resync.
#[test]
fn check_repeats_what_the_state_knows() {
    for (what, reason) in [
        (
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()",
            "no longer exists",
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
        env.admin(what);
        env.command("check", &mirror, &[]).exits(1).says(&[reason, "walferry.dev/resync", "1 failure"]);
        let again = asks(&mirror, "1");
        env.command("check", &again, &[]).exits(0);
        env.catch_up(&again);
        env.command("check", &again, &[]).exits(0);
    }
}

/// No lag of 0 while nothing flows.
#[test]
fn lag_while_nothing_flows() {
    crate::needs_own_server!();
    let env = TestEnv::on(Server::postgres(Pg::V18, &[]).into(), Server::shared_clickhouse());
    env.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let mut mirror = env.mirror(&["t"]);
    let mut run = env.streaming(&mirror);
    crate::support::until("the lag to be known", || {
        series(&mut run, "walferry_lag_seconds").filter(|lag| *lag < 30.0)
    });
    assert_eq!(run.http("/readyz").unwrap().0, 200);
    env.restart_postgres(false, || {
        crate::support::until("the lag to grow", || {
            series(&mut run, "walferry_lag_seconds").filter(|lag| *lag >= 3.0)
        });
        assert_eq!(run.http("/readyz").unwrap().0, 503);
    });
    crate::support::until("the lag to fall", || {
        series(&mut run, "walferry_lag_seconds").filter(|lag| *lag < 2.0)
    });
    run.stop();
    // Suspended: nothing is measured but the slot, and nothing flows.
    mirror.mirror["spec"]["suspend"] = json!(true);
    env.sql("INSERT INTO t SELECT generate_series(2, 1000)");
    let mut run = env.run(&mirror);
    crate::support::until("the slot of a suspended Mirror", || {
        series(&mut run, "walferry_retained_wal_bytes")
    });
    assert_eq!(series(&mut run, "walferry_lag_seconds"), None);
    assert!(series(&mut run, "walferry_lag_bytes").is_some_and(|bytes| bytes > 0.0));
    assert_eq!(run.http("/readyz").unwrap().0, 503);
    run.stop();
    // Without its slot it can't go on, and says so.
    mirror.mirror["spec"]["suspend"] = json!(false);
    let mut run = env.streaming(&mirror);
    let slot = env.slot(&mut run, "slot_name");
    run.stop();
    env.admin(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    let mut run = env.run(&mirror);
    assert_eq!(run.until_stalled().0, "SourceSlotLost");
}

/// While a table joins, the Mirror stays ready, and says which one joins.
#[test]
fn ready_while_a_table_joins() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1); CREATE TABLE b (id int PRIMARY KEY); INSERT INTO b VALUES (1)");
    env.catch_up(&env.mirror(&["a"]));
    let mut writer = env.connect();
    writer.batch_execute("BEGIN; INSERT INTO b VALUES (2)").unwrap();
    let mut run = env.run(&env.mirror(&["a", "b"]));
    run.until_status("the table to join", |status| {
        let conditions = status["conditions"].as_array()?;
        let of = |kind: &str| conditions.iter().find(|condition| condition["type"] == kind);
        let joins = of("Reconciling")?["message"].as_str()?.contains("public.b is being added");
        (joins && of("Ready")?["status"] == "True").then_some(())
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

/// One object a line, each key once; and whoever reads no further does no harm.
#[test]
fn what_is_printed_can_be_read() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1); CREATE TABLE stays (id int PRIMARY KEY)");
    let mirror = env.mirror(&["t", "stays"]);
    env.catch_up(&mirror);
    env.sql("DROP TABLE t");
    let options = ["--until-caught-up", "--http", "127.0.0.1:0", "--log-format", "json"];
    let outcome = env.command("run", &mirror, &options).exits(1);
    let lines: Vec<&str> = outcome.stderr.lines().filter(|line| line.starts_with('{')).collect();
    assert!(lines.iter().any(|line| line.contains("table stopped")), "{}", outcome.text());
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
