//! Streaming every kind of change.

use nix::sys::signal::Signal;
use serde_json::json;
use walferry::fault::Reason;

use crate::{
    on_both,
    support::{Pg, Proxy, Run, Server, TestEnv, eventually, failed_for, until},
};

/// Inserts, updates, deletes, key changes, savepoints and rollbacks, also several of them in one transaction.
fn every_kind_of_change(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'old' FROM generate_series(1, 20) i");
    let mirror = env.mirror(&["t"]);
    let mut run = env.streaming(&mirror);
    env.sql("INSERT INTO t VALUES (100, 'a'), (101, NULL), (102, '')");
    env.sql("UPDATE t SET v = 'b' WHERE id = 100; DELETE FROM t WHERE id = 101");
    env.sql("BEGIN; INSERT INTO t VALUES (200, 'x'); UPDATE t SET v = 'y' WHERE id = 200; DELETE FROM t WHERE id = 200; INSERT INTO t VALUES (200, 'z'); COMMIT");
    env.sql("BEGIN; INSERT INTO t VALUES (300, 'never'); ROLLBACK");
    env.sql("BEGIN; INSERT INTO t VALUES (400, 'kept'); SAVEPOINT s; UPDATE t SET v = 'undone' WHERE id = 400; ROLLBACK TO s; COMMIT");
    env.sql("UPDATE t SET id = 500 WHERE id = 1; UPDATE t SET id = id + 1000 WHERE id BETWEEN 2 AND 5");
    env.sql("BEGIN; UPDATE t SET id = 600 WHERE id = 6; INSERT INTO t VALUES (6, 'again'); COMMIT");
    env.sql("BEGIN; UPDATE t SET id = 700 WHERE id = 7; UPDATE t SET id = 7 WHERE id = 700; COMMIT");
    env.sql("BEGIN; DELETE FROM t WHERE id = 8; INSERT INTO t VALUES (8, 'reborn'); COMMIT");
    env.settle(&mut run);
    env.assert_table("t", "id, v", "id");
    let table = run.table("t");
    for counter in ["inserted", "updated", "deleted"] {
        assert!(table[counter].as_u64().unwrap() > 0, "{table}");
    }
    run.stop();
    env.verify(&mirror);
}

fn truncate(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql(
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY REFERENCES a);
        INSERT INTO a SELECT generate_series(1, 100); INSERT INTO b SELECT generate_series(1, 100)",
    );
    let mirror = env.mirror(&["a", "b"]);
    let mut run = env.streaming(&mirror);
    env.sql("BEGIN; INSERT INTO a VALUES (101); TRUNCATE a CASCADE; INSERT INTO a VALUES (1), (7); INSERT INTO b VALUES (7); COMMIT");
    env.settle(&mut run);
    env.assert_table("a", "id", "id");
    env.assert_table("b", "id", "id");
    env.sql("TRUNCATE b");
    env.settle(&mut run);
    env.assert_table("b", "id", "id");
    run.stop();
    env.verify(&mirror);
}

/// REPLICA IDENTITY FULL and USING INDEX.
fn other_identities(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql(
        "CREATE TABLE f (id int PRIMARY KEY, v text, n int); ALTER TABLE f REPLICA IDENTITY FULL;
        CREATE TABLE x (id int PRIMARY KEY, code text NOT NULL UNIQUE, v text); ALTER TABLE x REPLICA IDENTITY USING INDEX x_code_key;
        CREATE TABLE u (code text NOT NULL UNIQUE, v text); ALTER TABLE u REPLICA IDENTITY USING INDEX u_code_key;
        INSERT INTO f SELECT i, 'v', i FROM generate_series(1, 10) i;
        INSERT INTO x SELECT i, 'c' || i, 'v' FROM generate_series(1, 10) i; INSERT INTO u SELECT 'c' || i, 'v' FROM generate_series(1, 10) i",
    );
    let mirror = env.mirror(&["f", "x", "u"]);
    let mut run = env.streaming(&mirror);
    for table in ["f", "x", "u"] {
        let key = if table == "f" { "id" } else { "code" };
        let change = if table == "f" { "id + 100" } else { "code || '-new'" };
        let third = if table == "f" { "3" } else { "'c3'" };
        env.sql(&format!(
            "UPDATE {table} SET v = 'w' WHERE {key} = {third}; UPDATE {table} SET {key} = {change} WHERE {key} > {third};
             DELETE FROM {table} WHERE {key} = {third}"
        ));
    }
    env.settle(&mut run);
    env.assert_table("f", "id, v, n", "id");
    env.assert_table("x", "id, code, v", "id");
    env.assert_table("u", "code, v", "code");
    run.stop();
    env.verify(&mirror);
}

/// A large value that an UPDATE does not change is not in the stream.
fn unchanged_toast(pg: Pg) {
    for identity in ["DEFAULT", "FULL"] {
        let env = TestEnv::new(pg);
        env.sql(&format!(
            "CREATE TABLE t (id int PRIMARY KEY, big text, j jsonb, n int); ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
            ALTER TABLE t REPLICA IDENTITY {identity};
            INSERT INTO t SELECT i, repeat(md5(i::text), 400), jsonb_build_object('a', repeat(md5(i::text), 400)), 0 FROM generate_series(1, 40) i"
        ));
        let mirror = env.mirror(&["t"]);
        let mut run = env.streaming(&mirror);
        env.sql("UPDATE t SET n = n + 1 WHERE id <= 10");
        env.sql("UPDATE t SET id = id + 1000 WHERE id BETWEEN 11 AND 20");
        env.sql("BEGIN; INSERT INTO t SELECT 50, repeat('abc', 5000), NULL, 1; UPDATE t SET n = 2 WHERE id = 50; COMMIT");
        env.sql("BEGIN; UPDATE t SET n = 5 WHERE id = 21; DELETE FROM t WHERE id = 21; COMMIT");
        env.sql("BEGIN; UPDATE t SET n = 6 WHERE id = 22; UPDATE t SET big = repeat('new', 5000) WHERE id = 22; UPDATE t SET n = 7 WHERE id = 22; COMMIT");
        env.sql("UPDATE t SET n = 8 WHERE id = 23; UPDATE t SET id = 2300 WHERE id = 23; UPDATE t SET n = 9 WHERE id = 2300");
        env.sql("UPDATE t SET big = NULL WHERE id = 24; UPDATE t SET n = 1 WHERE id = 24");
        env.settle(&mut run);
        env.assert_same(
            "SELECT id, md5(big), length(j->>'a'), n FROM t ORDER BY id",
            "SELECT id, lower(hex(MD5(big))), length(JSONExtractString(j, 'a')), n FROM t FINAL ORDER BY id"
                .replace("length(JSON", "if(j IS NULL, NULL, length(JSON")
                .replace("'a')), n", "'a'))), n")
                .as_str(),
        );
        run.stop();
        env.verify(&mirror);
    }
}

/// Memory stays bounded whatever the transaction's size.
fn a_large_transaction(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY)");
    let mirror = env.mirror(&["t", "u"]);
    let mut run = env.streaming(&mirror);
    env.sql(
        "BEGIN; INSERT INTO t SELECT i, repeat(md5(i::text), 50) FROM generate_series(1, 80000) i; INSERT INTO u SELECT generate_series(1, 1000);
        UPDATE t SET v = 'u' WHERE id % 100 = 0; DELETE FROM t WHERE id % 100 = 1; COMMIT",
    );
    env.settle(&mut run);
    assert_eq!(env.target("SELECT count(), countIf(v = 'u') FROM t FINAL"), "79200\t800\n");
    assert_eq!(env.target("SELECT count() FROM u FINAL"), "1000\n");
    let peak = run.peak_memory_mib();
    assert!(peak <= 128, "{peak} MiB");
    run.stop();
    env.verify(&mirror);
}

/// `/status` shows how much WAL the slot retains, and whether the source may remove it.
fn the_retained_wal_is_reported(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let mut run = env.streaming(&env.mirror(&["t"]));
    run.until_status("the slot's WAL", |status| {
        (status["slotWalStatus"] == "reserved" && status["retainedWalBytes"].is_u64()).then_some(())
    });
    run.stop();
}

on_both!(
    the_retained_wal_is_reported,
    every_kind_of_change,
    truncate,
    other_identities,
    unchanged_toast,
    a_large_transaction
);

/// A transaction on many tables, interleaved with others, arrives whole.
#[test]
fn interleaved_transactions() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE a (id int PRIMARY KEY, v int); CREATE TABLE b (id int PRIMARY KEY, v int)");
    let mirror = env.mirror(&["a", "b"]);
    let mut run = env.streaming(&mirror);
    let (mut first, mut second) = (env.connect(), env.connect());
    first.batch_execute("BEGIN; INSERT INTO a SELECT i, 1 FROM generate_series(1, 100) i").unwrap();
    second.batch_execute("BEGIN; INSERT INTO b SELECT i, 2 FROM generate_series(1, 100) i").unwrap();
    first.batch_execute("INSERT INTO b VALUES (101, 1)").unwrap();
    second.batch_execute("INSERT INTO a VALUES (101, 2); COMMIT").unwrap();
    first.batch_execute("UPDATE a SET v = 3 WHERE id = 101; COMMIT").unwrap();
    env.settle(&mut run);
    env.assert_table("a", "id, v", "id");
    env.assert_table("b", "id, v", "id");
}

/// A transaction deletes a row, and another one, whose INSERT began before that commit, inserts it again.
#[test]
fn an_insert_that_waited_for_a_delete() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, code int UNIQUE, v text)");
    env.sql("INSERT INTO t VALUES (1, 1, 'first')");
    let mut run = env.streaming(&env.mirror(&["t"]));
    let mut deleting = env.connect();
    deleting.batch_execute("BEGIN; DELETE FROM t WHERE id = 1").unwrap();
    let mut inserting = env.connect();
    let waiting =
        std::thread::spawn(move || inserting.batch_execute("INSERT INTO t VALUES (1, 1, 'second')"));
    eventually("the insert to wait", || {
        env.source_value("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") == "1"
    });
    deleting.batch_execute("COMMIT").unwrap();
    waiting.join().unwrap().unwrap();
    env.settle(&mut run);
    assert_eq!(env.target("SELECT id, code, v FROM t FINAL"), "1\t1\tsecond\n");
}

/// A deleted row stays as a tombstone, which FINAL doesn't show.
#[test]
fn tombstones() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v text NOT NULL)");
    let mut run = env.streaming(&env.mirror(&["t"]));
    env.sql("INSERT INTO t VALUES (1, 'x'), (2, 'y')");
    env.sql("DELETE FROM t WHERE id = 1");
    env.settle(&mut run);
    assert_eq!(env.target("SELECT id, v FROM t FINAL"), "2\ty\n");
    assert_eq!(env.target("SELECT DISTINCT id FROM t WHERE _walferry_deleted = 1"), "1\n");
    let versions = env.target_value("SELECT min(_walferry_version) > 0 FROM t");
    assert_eq!(versions, "1");
}

/// Without changes of mirrored tables the slot advances too, so that it retains no WAL of others.
#[test]
fn an_idle_slot_moves() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE unpublished (id int PRIMARY KEY, v text)");
    let mut run = env.streaming(&env.mirror(&["t"]));
    env.sql("INSERT INTO unpublished SELECT i, repeat('x', 100) FROM generate_series(1, 20000) i");
    assert_advances(&env, &mut run);
    // Nor does another database with many writes keep it from that.
    let name = format!("{}_neighbour", env.database);
    env.admin(&format!("CREATE DATABASE {name}"));
    let mut neighbour = env.connect_admin_to(&name);
    neighbour
        .batch_execute("CREATE TABLE busy AS SELECT i, repeat('x', 100) AS v FROM generate_series(1, 100000) i; UPDATE busy SET i = i + 1")
        .unwrap();
    assert_advances(&env, &mut run);
    drop(neighbour);
    env.admin(&format!("DROP DATABASE {name} WITH (FORCE)"));
}

/// The slot advances past the present end of the log, and retains none of it.
#[track_caller]
fn assert_advances(env: &TestEnv, run: &mut Run) {
    let written = env.lsn();
    env.settle(run);
    let (high, low) = (written >> 32, written & 0xFFFF_FFFF);
    for position in ["confirmed_flush_lsn", "restart_lsn"] {
        eventually("the slot to move", || {
            // The source logs a snapshot now and then, and only there can a slot restart; this one makes that
            // immediate.
            env.admin("SELECT pg_log_standby_snapshot()");
            env.slot(run, &format!("{position} >= '{high:X}/{low:X}'")) == "t"
        });
    }
}

/// `pg_stat_replication` shows which Mirror a connection belongs to.
#[test]
fn application_name_has_the_mirror() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let mirror = env.mirror(&["t"]);
    let mut run = env.streaming(&mirror);
    let name = mirror.mirror["metadata"]["name"].as_str().unwrap().to_owned();
    let pid = env.slot(&mut run, "active_pid");
    let shown = env.source_value(&format!("SELECT application_name FROM pg_stat_activity WHERE pid = {pid}"));
    assert!(shown.starts_with("walferry") && shown.contains(&name), "{shown}");
}

/// Batches wait no longer than the spec says.
#[test]
fn small_batches() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v text)");
    let mut mirror = env.mirror(&["t"]);
    mirror.mirror["spec"]["batch"] = json!({"maxBytes": "1Mi", "maxDelayMilliseconds": 50});
    let mut run = env.streaming(&mirror);
    env.sql("INSERT INTO t SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 20000) i");
    env.settle(&mut run);
    env.assert_table("t", "id, v", "id");
}

/// A failed table leaves the others streaming, is in the Mirror's conditions, and retains no WAL.
#[test]
fn a_failed_table_stops_alone() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE good (id int PRIMARY KEY); CREATE TABLE bad (id int PRIMARY KEY)");
    let mirror = env.mirror(&["good", "bad"]);
    let mut run = env.streaming(&mirror);
    env.target("DROP TABLE bad SYNC");
    env.sql("INSERT INTO bad VALUES (1); INSERT INTO good VALUES (1)");
    failed_for(&mut run, "bad", Reason::DestinationTableMissing).resyncs_only("bad");
    env.sql("INSERT INTO bad VALUES (2); INSERT INTO good VALUES (2)");
    env.settle(&mut run);
    env.assert_table("good", "id", "id");
    let ready = run.condition("Ready").unwrap();
    assert_eq!((ready.0.as_str(), ready.1.as_str()), ("True", "StreamingWithFailedTables"), "{ready:?}");
    run.stop();
}

/// While the destination is slow the source still receives status updates, and keeps the connection.
#[test]
fn status_updates_continue_while_the_destination_is_slow() {
    crate::needs_own_server!();
    let postgres = Server::postgres(Pg::V18, &["-c", "wal_sender_timeout=4s"]);
    let clickhouse = Server::clickhouse(&[]);
    let env = TestEnv::on(postgres.into(), clickhouse.into());
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v text)");
    let mut run = env.streaming(&env.mirror(&["t"]));
    let walsender = env.slot(&mut run, "active_pid");
    let frozen = nix::unistd::Pid::from_raw(env.clickhouse_server.pid());
    nix::sys::signal::kill(frozen, Signal::SIGSTOP).unwrap();
    env.sql("INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series(1, 50000) i");
    let silence = || env.silence(&walsender);
    // More than twice wal_sender_timeout.
    let started = std::time::Instant::now();
    eventually("nine seconds to pass with the same connection", || {
        assert!(silence() < 4.0, "no feedback for {} s", silence());
        started.elapsed().as_secs() >= 9
    });
    nix::sys::signal::kill(frozen, Signal::SIGCONT).unwrap();
    env.settle(&mut run);
    env.assert_table("t", "id, v", "id");
    assert_eq!(env.slot(&mut run, "active_pid"), walsender);
}

/// After a broken connection that the server hasn't noticed, our own walsender still holds the slot; it is
/// terminated.
#[test]
fn takes_over_its_own_stale_walsender() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let proxy = Proxy::to(env.postgres_port);
    let mut mirror = env.mirror(&["t"]);
    mirror.postgres["spec"]["postgres"]["port"] = json!(proxy.port);
    let mut run = env.streaming(&mirror);
    let before = env.slot(&mut run, "active_pid");
    proxy.cut_unnoticed();
    env.sql("INSERT INTO t VALUES (1)");
    let after = until("another walsender", || {
        Some(env.slot(&mut run, "active_pid")).filter(|pid| *pid != before && pid != "\\N")
    });
    assert_ne!(before, after);
    env.settle(&mut run);
    assert_eq!(env.target("SELECT id FROM t FINAL"), "1\n");
    assert_eq!(run.status()["slotTakeovers"], 1);
}

/// If the server names standbys that logical slots wait for, the slot is created as a failover slot.
#[test]
fn a_slot_for_failover() {
    crate::needs_own_server!();
    let env = TestEnv::on(Server::postgres(Pg::V18, &[]).into(), Server::shared_clickhouse());
    env.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let set = |standbys: &str| {
        env.connect_admin()
            .batch_execute(&format!("ALTER SYSTEM SET synchronized_standby_slots = '{standbys}'"))
            .unwrap();
        env.connect_admin().batch_execute("SELECT pg_reload_conf()").unwrap();
        eventually("the setting", || env.source_value("SHOW synchronized_standby_slots") == standbys);
    };
    set("standby");
    let mirror = env.mirror(&["t"]);
    env.command("check", &mirror, &[]).exits(0).finds("ok", "source", "replication slot");
    let mut run = env.run(&mirror);
    let slot = "SELECT slot_name FROM pg_replication_slots WHERE failover";
    run.eventually("a slot for failover", || env.source_value(slot).starts_with("walferry_"));
    set("");
    run.until_streaming();
    env.sql("INSERT INTO t VALUES (2)");
    env.settle(&mut run);
    env.assert_table("t", "id", "id");
}

/// A connection of another program that holds our slot is not terminated.
#[test]
fn leaves_another_walsender_alone() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let mirror = env.mirror(&["t"]);
    let mut run = env.streaming(&mirror);
    let slot = run.status()["slotName"].as_str().unwrap().to_owned();
    run.stop();
    let active = || {
        env.source_value(&format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{slot}'"))
    };
    // The walsender ends a little later than walferry.
    eventually("the slot to be free", || active() == "\\N");
    let mut other = std::process::Command::new("pg_recvlogical")
        .args([
            "-h",
            "127.0.0.1",
            "-p",
            &env.postgres_port.to_string(),
            "-U",
            &env.database,
            "-d",
            &env.database,
        ])
        .args(["-S", &slot, "--start", "--no-loop", "-f", "/dev/null", "-o", "proto_version=1", "-o"])
        .arg(format!("publication_names={slot}"))
        .env("PGPASSWORD", "role-test")
        .spawn()
        .unwrap();
    let theirs = until("the other program to have the slot", || Some(active()).filter(|pid| pid != "\\N"));
    let mut run = env.run(&mirror);
    let failure = run.until_status("a retry", |status| {
        let failure = &status["failure"];
        (failure["reason"] == Reason::SourceSlotInUse.name()).then(|| failure.clone())
    });
    let who = format!("PID {theirs} (pg_recvlogical)");
    assert!(failure["message"].as_str().is_some_and(|message| message.contains(&who)), "{failure}");
    assert_eq!(active(), theirs);
    other.kill().unwrap();
    other.wait().unwrap();
    run.until_streaming();
}

/// `/healthz`, `/readyz`, `/metrics` and `/status`.
#[test]
fn http_interface() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let mut run = env.streaming(&env.mirror(&["t"]));
    assert_eq!(run.http("/healthz").unwrap().0, 200);
    eventually("readiness", || run.http("/readyz").unwrap().0 == 200);
    let (code, metrics) = run.http("/metrics").unwrap();
    assert!(code == 200 && metrics.contains("walferry_"), "{metrics}");
    assert_eq!(run.http("/nothing").unwrap().0, 404);
    let status = run.status();
    for field in [
        "namespace",
        "name",
        "conditions",
        "slotName",
        "publicationName",
        "lastLSN",
        "lag",
        "retainedWalBytes",
        "tables",
    ] {
        assert!(status.get(field).is_some(), "{field} is not in {status:#}");
    }
    assert!(status["lag"]["bytes"].is_u64() && status["lag"]["seconds"].is_number(), "{status:#}");
    for field in [
        "schema",
        "name",
        "target",
        "state",
        "rowsCopied",
        "rowsEstimated",
        "inserted",
        "updated",
        "deleted",
        "message",
    ] {
        assert!(status["tables"][0].get(field).is_some(), "{field} is not in {status:#}");
    }
    let kinds: Vec<&str> =
        status["conditions"].as_array().unwrap().iter().map(|c| c["type"].as_str().unwrap()).collect();
    for kind in ["Ready", "SourceReady", "DestinationReady", "Snapshotted", "Streaming", "CaughtUp"] {
        assert!(kinds.contains(&kind), "{kind} is not in {kinds:?}");
    }
    assert!(!kinds.contains(&"Stalled") && !kinds.contains(&"Reconciling"), "{kinds:?}");
}

/// The lag grows while the destination hangs, and is zero again afterwards.
#[test]
fn lag_is_reported() {
    crate::needs_own_server!();
    let clickhouse = Server::clickhouse(&[]);
    let env = TestEnv::on(Server::shared_postgres(Pg::V18), clickhouse.into());
    env.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let mut run = env.streaming(&env.mirror(&["t"]));
    let server = nix::unistd::Pid::from_raw(env.clickhouse_server.pid());
    nix::sys::signal::kill(server, Signal::SIGSTOP).unwrap();
    env.sql("INSERT INTO t SELECT generate_series(1, 1000)");
    run.until_status("a lag", |status| {
        (status["lag"]["bytes"].as_u64()? > 0 && status["lag"]["seconds"].as_f64()? > 0.5).then_some(())
    });
    nix::sys::signal::kill(server, Signal::SIGCONT).unwrap();
    env.settle(&mut run);
    run.until_status("no lag", |status| (status["lag"]["seconds"].as_f64()? < 0.5).then_some(()));
}

/// Many small tables in one Mirror.
#[test]
fn many_tables() {
    let env = TestEnv::new(Pg::V18);
    let names: Vec<String> = (0..60).map(|n| format!("t{n}")).collect();
    for name in &names {
        env.sql(&format!("CREATE TABLE {name} (id int PRIMARY KEY); INSERT INTO {name} VALUES (1)"));
    }
    let mirror = env.mirror(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let mut run = env.streaming(&mirror);
    let insert: Vec<String> = names.iter().map(|name| format!("INSERT INTO {name} VALUES (2)")).collect();
    env.sql(&insert.join(";"));
    env.settle(&mut run);
    for name in &names {
        assert_eq!(env.target_value(&format!("SELECT count() FROM {name} FINAL")), "2");
    }
    run.stop();
    env.verify(&mirror);
}
