//! A standby as the source, which PostgreSQL 16 and later can decode.

use std::sync::Arc;

use walferry::fault::{Reason, Remedy, Side};

use crate::support::{
    Direction, Mirror, Outcome, Pg, Proxy, Run, Server, Standby, TestEnv, failed_for, stalled_for, until,
};

/// A primary with an environment and its standby: with these settings, or else with those that a Mirror
/// needs.
fn pair(settings: Option<&[&str]>) -> (TestEnv, Standby) {
    let env = TestEnv::on(Arc::new(Server::postgres(Pg::V18, &[])), Server::shared_clickhouse());
    let standby = match settings {
        Some(settings) => Standby::with(&env.postgres_server, "standby", settings),
        None => Standby::of(&env.postgres_server, "standby"),
    };
    (env, standby)
}

/// A Mirror of these tables from the server at this port.
fn mirror_from(port: u16, env: &TestEnv, tables: &[&str]) -> Mirror {
    let mut mirror = env.mirror(tables);
    mirror.postgres["spec"]["postgres"]["port"] = port.into();
    mirror
}

/// Runs the statements that `check` prints for the primary, as the role that owns the tables.
#[track_caller]
pub fn run_at_the_primary(env: &TestEnv, standby: &Standby, check: Outcome) {
    let text = check.exits(1).text();
    let after = text.lines().skip_while(|line| *line != "    -- at the primary");
    let statements: Vec<&str> = after.take_while(|line| line.starts_with("    ")).collect();
    assert!(!statements.is_empty(), "{text}");
    env.sql(&statements.join("\n"));
    standby.until_replayed(env.lsn());
}

/// Waits until the slot exists at the standby, which takes a record of the primary's running transactions.
#[track_caller]
pub fn slot_made(env: &TestEnv, run: &mut Run) {
    until("the slot to be made", || {
        // The primary also logs such a snapshot on its own, every 15 s.
        env.admin("SELECT pg_log_standby_snapshot()");
        let status = run.status();
        (status["tables"].as_array()?.iter().any(|table| table["state"] != "Pending")).then_some(())
    });
}

/// A Mirror's whole life at a standby: check, copy, changes, a schema change, large values, an added table, a
/// table that breaks the application's writes, resyncs and teardown.
#[test]
fn a_standby_is_a_source() {
    crate::needs_own_server!();
    let (env, standby) = pair(None);
    env.sql(
        "CREATE TABLE plain (id int PRIMARY KEY, v text); INSERT INTO plain SELECT i, i::text FROM generate_series(1, 5000) i;
        CREATE TABLE large (id int PRIMARY KEY, n int, v text); ALTER TABLE large ALTER v SET STORAGE EXTERNAL;
        INSERT INTO large SELECT i, 0, repeat(md5(i::text), 200) FROM generate_series(1, 50) i;
        CREATE TABLE parts (id int, v text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
        CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100); INSERT INTO parts VALUES (1, 'a');
        CREATE TABLE keyed (id int PRIMARY KEY, v text); INSERT INTO keyed VALUES (1, 'a');
        CREATE TABLE later (id int PRIMARY KEY, v text); INSERT INTO later VALUES (1, 'a');
        CREATE TABLE filtered (id int PRIMARY KEY, v text); INSERT INTO filtered VALUES (1, 'a'), (7, 'b');",
    );
    standby.until_replayed(env.lsn());
    let tables = ["plain", "large", "parts", "keyed", "filtered"];
    let mut mirror = mirror_from(standby.server.port, &env, &tables);
    mirror.table(4)["where"] = "id > 5".into();
    run_at_the_primary(&env, &standby, env.command("check", &mirror, &[]));
    let check = env.command("check", &mirror, &[]).exits(0).finds("ok", "source", "version");
    check.finds("ok", "source", "wal_level").says(&["its primary needs logical too"]);

    // A transaction from before the slot, whose rows are not in the stream: the slot waits for its end.
    let mut early = env.connect();
    early.batch_execute("BEGIN; INSERT INTO plain VALUES (100001, 'early')").unwrap();
    standby.until_replayed(env.lsn());
    let mut run = env.run(&mirror);
    run.until_status("the reason for which the slot waits", |status| {
        let conditions = status["conditions"].as_array()?;
        let waits = conditions.iter().find(|condition| condition["reason"] == "SourceSlotNotReady")?;
        waits["message"].as_str()?.contains("pg_log_standby_snapshot()").then_some(())
    });
    early.batch_execute("COMMIT").unwrap();
    slot_made(&env, &mut run);
    // Until the primary has feedback about the slot it removes catalog rows that the slot needs.
    run.eventually("feedback about the slot to reach the primary", || {
        env.source_value("SELECT count(catalog_xmin) FROM pg_replication_slots") == "1"
    });
    run.until_streaming();
    env.sql(
        "UPDATE plain SET v = 'new' WHERE id % 3 = 0; DELETE FROM plain WHERE id % 7 = 0; UPDATE plain SET id = -id WHERE id < 10;
        UPDATE large SET n = n + 1; UPDATE large SET v = repeat('x', 9000) WHERE id = 3; INSERT INTO parts VALUES (2, 'b');
        CREATE TABLE parts_2 (v text, id int NOT NULL); INSERT INTO parts_2 VALUES ('came', 150);
        ALTER TABLE parts ATTACH PARTITION parts_2 FOR VALUES FROM (100) TO (200); UPDATE parts SET id = 101 WHERE id = 1;
        ALTER TABLE plain ADD w int DEFAULT 5; INSERT INTO plain VALUES (100002, 'wide', 6); UPDATE filtered SET id = id + 5",
    );
    env.settle(&mut run);
    compare(&env);
    run.eventually("the rows of the attached partition", || {
        env.target_value("SELECT count() FROM parts FINAL WHERE id = 150 AND _walferry_deleted = 0") == "1"
    });

    // A lost key makes the application's writes fail: a standby can't change the publication, so the remedy
    // is for the primary.
    env.sql("ALTER TABLE keyed DROP CONSTRAINT keyed_pkey; INSERT INTO keyed VALUES (2, 'x')");
    let failure = failed_for(&mut run, "keyed", Reason::SourceReplicaIdentityMissing);
    let publication = run.status()["publicationName"].as_str().unwrap().to_owned();
    env.sql(&failure.sql(Side::Source));
    env.sql("UPDATE keyed SET v = 'b'; TRUNCATE filtered; INSERT INTO filtered VALUES (9, 'c')");
    env.settle(&mut run);
    compare(&env);
    run.stop();

    // A table is added: rows that an open transaction wrote to it before are only in the copy.
    let mut mirror =
        mirror_from(standby.server.port, &env, &["plain", "large", "parts", "filtered", "later"]);
    mirror.table(3)["where"] = "id > 5".into();
    let mut early = env.connect();
    early.batch_execute("BEGIN; INSERT INTO later VALUES (2, 'before it is added')").unwrap();
    run_at_the_primary(&env, &standby, env.command("check", &mirror, &[]));
    let mut without = mirror.clone();
    without.mirror["spec"]["tables"].as_array_mut().unwrap().pop();
    env.catch_up(&without);
    let mut run = env.run(&mirror);
    let message = run.until_status("the copy to wait for the writer", |status| {
        let tables = status["tables"].as_array()?;
        let table = tables.iter().find(|table| table["name"] == "later")?;
        (table["reason"] == "WaitingForTransactions").then(|| table["message"].as_str().unwrap().to_owned())
    });
    let sql =
        "SELECT backend_xid FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()";
    assert!(message.contains(&env.source_value(sql)), "{message}");
    early.batch_execute("INSERT INTO later VALUES (3, 'after it was added'); COMMIT").unwrap();
    run.until_streaming();
    env.settle(&mut run);
    env.assert_table("later", "id, v", "id");
    compare(&env);
    run.stop();

    // One table is resynced, then all of them.
    mirror.mirror["metadata"]["annotations"]["walferry.dev/resync"] = "1 public.plain".into();
    let run = env.streaming(&mirror);
    compare(&env);
    run.stop();
    mirror.mirror["metadata"]["annotations"]["walferry.dev/resync"] = "2".into();
    let mut run = env.run(&mirror);
    run.until_status("the new slot to be provisioned", |status| {
        (status["phase"] == "Provisioning").then_some(())
    });
    slot_made(&env, &mut run);
    run.until_streaming();
    env.sql("INSERT INTO plain VALUES (100004, 'y', 1)");
    env.settle(&mut run);
    compare(&env);
    env.verify(&mirror);
    run.stop();

    let drop = format!("DROP PUBLICATION \"{publication}\"");
    env.command("teardown", &mirror, &[]).exits(0).says(&[&drop, "at the primary"]);
    let left = "SELECT count(*) FROM pg_replication_slots";
    assert_eq!(standby.value(left), "0");
    env.sql(&drop);
}

/// Compares both sides by SQL.
#[track_caller]
fn compare(env: &TestEnv) {
    env.assert_table("plain", "id, v, w", "id");
    env.assert_same(
        "SELECT id, n, md5(v) FROM large ORDER BY id",
        "SELECT id, n, lower(hex(MD5(v))) FROM large FINAL WHERE _walferry_deleted = 0 ORDER BY id",
    );
    env.assert_same(
        "SELECT id, v FROM parts WHERE id <> 150 ORDER BY id",
        "SELECT id, v FROM parts FINAL WHERE _walferry_deleted = 0 AND id <> 150 ORDER BY id",
    );
    env.assert_same(
        "SELECT id, v FROM filtered WHERE id > 5 ORDER BY id",
        "SELECT id, v FROM filtered FINAL WHERE _walferry_deleted = 0 ORDER BY id",
    );
}

/// Without hot_standby_feedback the primary vacuums rows that the standby needs: a copy's query is canceled
/// and retried, the slot is invalidated, and the remedy keeps the next one.
#[test]
fn conflicts_with_recovery() {
    crate::needs_own_server!();
    let (env, standby) = pair(Some(&["max_standby_streaming_delay=0"]));
    env.sql(
        "CREATE TABLE wide (id int PRIMARY KEY, v text);
        INSERT INTO wide SELECT i, repeat(md5(i::text) || md5((-i)::text), 8) FROM generate_series(1, 60000) i",
    );
    standby.until_replayed(env.lsn());
    let source = Proxy::to(standby.server.port);
    let mut mirror = mirror_from(source.port, &env, &["wide"]);
    let check = env.command("check", &mirror, &[]).finds("warning", "source", "hot_standby_feedback");
    run_at_the_primary(&env, &standby, check);

    // The network is so slow that the copy still reads rows when they are vacuumed.
    let mut run = env.run(&mirror);
    slot_made(&env, &mut run);
    source.set_bytes_per_second(Direction::ToClient, 200_000);
    let copies = || {
        standby.value(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY %' AND backend_xmin IS NOT NULL",
        )
    };
    run.eventually("the copy to read", || copies() != "0");
    env.sql("DELETE FROM wide WHERE id % 2 = 0");
    // VACUUM is repeated, because something else, such as autovacuum's ANALYZE, may still see the rows.
    let vacuum = |tables: &str| {
        env.admin(&format!("VACUUM {tables}"));
        standby.until_replayed(env.lsn());
    };
    until("the query of the copy to be canceled", || {
        vacuum("wide");
        (copies() == "0").then_some(())
    });
    source.set_bytes_per_second(Direction::ToClient, 0);
    until("the copy to be canceled", || run.log().contains("conflict with recovery").then_some(()));
    run.until_streaming();
    env.settle(&mut run);
    env.assert_table("wide", "id, v", "id");

    env.sql("CREATE TABLE gone (id int)");
    env.sql("DROP TABLE gone");
    until("the slot to be lost", || {
        vacuum("pg_class, pg_attribute");
        let lost = "SELECT count(*) FROM pg_replication_slots WHERE invalidation_reason = 'rows_removed'";
        (standby.value(lost) == "1").then_some(())
    });
    let failure = stalled_for(&mut run, Reason::SourceSlotInvalidated);
    let [Remedy::Act { how }, Remedy::Resync { .. }] = &failure.remedies[..] else { panic!("{failure:?}") };
    assert!(how.contains("hot_standby_feedback = on"), "{failure:?}");
    run.stop();
    env.command("check", &mirror, &[]).exits(1).finds("FAILURE", "source", "replication slot");
    standby.set("hot_standby_feedback = on");
    mirror.mirror["metadata"]["annotations"]["walferry.dev/resync"] = "1".into();
    env.sql("DELETE FROM wide WHERE id % 3 = 0");
    let mut run = env.run(&mirror);
    slot_made(&env, &mut run);
    run.until_streaming();
    env.settle(&mut run);
    env.assert_table("wide", "id, v", "id");
    run.stop();
}
