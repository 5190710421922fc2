//! Everything that may break while it runs: nothing is lost, and what requires manual action stalls with a
//! reason.

use std::time::Duration;

use nix::{sys::signal::Signal, unistd::Pid};
use serde_json::Value;
use walferry::fault::Reason;

use crate::{
    on_both,
    support::{
        Direction, Mirror, Pg, Proxy, Run, Server, TestEnv, UNTIL_CAUGHT_UP, Writer, eventually, parse_lsn,
        stalled_for, until,
    },
};

const TABLES: &str = "CREATE TABLE small (id int PRIMARY KEY, n int NOT NULL, v text);
    CREATE TABLE large (id int PRIMARY KEY, n int NOT NULL, big text); ALTER TABLE large ALTER big SET STORAGE EXTERNAL;
    INSERT INTO small SELECT i, 0, 'v' FROM generate_series(1, 30000) i;
    INSERT INTO large SELECT i, 0, repeat(md5(i::text), 100) FROM generate_series(1, 6000) i;";

/// What the application does all the time: every kind of change, in small and large transactions.
fn application(n: u64) -> String {
    let id = n * 37 % 30000;
    let mut sql = format!(
        "BEGIN; UPDATE small SET n = n + 1 WHERE id BETWEEN {id} AND {id} + 20; DELETE FROM small WHERE id = {id} + 1;
         INSERT INTO small VALUES ({}, {n}, 'new'); UPDATE large SET n = n + 1 WHERE id = {id} % 6000; COMMIT;
         UPDATE small SET id = {} WHERE id = {id} + 7;
         INSERT INTO small VALUES ({id} + 1, -1, 'again') ON CONFLICT DO NOTHING;",
        1_000_000 + n,
        2_000_000 + n,
    );
    if n % 50 == 49 {
        sql += &format!(
            "INSERT INTO small SELECT 3000000 + {n} * 5000 + i, 0, 'many' FROM generate_series(1, 3000) i;"
        );
    }
    sql
}

fn assert_equal(env: &TestEnv, mirror: &Mirror) {
    env.assert_table("small", "id, n, v", "id");
    env.assert_same(
        "SELECT id, n, md5(big) FROM large ORDER BY id",
        "SELECT id, n, lower(hex(MD5(big))) FROM large FINAL WHERE _walferry_deleted = 0 ORDER BY id",
    );
    env.verify(mirror);
}

/// The Ready condition of a status.
fn ready(status: &Value) -> Option<&Value> {
    status["conditions"].as_array()?.iter().find(|condition| condition["type"] == "Ready")
}

/// Waits until the Mirror is not ready.
#[track_caller]
fn until_not_ready(run: &mut Run) {
    run.until_status("the Mirror not to be ready", |status| {
        (ready(status)?["status"] == "False").then_some(())
    });
}

/// Waits for one of the points in the Mirror's life at which the process is killed.
fn wait_for_kill_point(env: &TestEnv, run: &mut Run, number: u32) {
    let copied = |run: &mut Run| run.table("small")["rowsCopied"].as_u64().unwrap_or(0);
    let written =
        |table: &str| env.target_value(&format!("SELECT count() FROM {table}")).parse::<u64>().unwrap();
    let confirmed = |run: &mut Run| env.slot(run, "confirmed_flush_lsn");
    match number {
        // as soon as it has started
        0 => {}
        // while it provisions: the publication exists, the slot perhaps not yet
        1 => run
            .eventually("the publication", || env.source_value("SELECT count(*) FROM pg_publication") == "1"),
        // the slot exists, the tables perhaps not yet
        2 => run.eventually("the slot", || {
            env.source_value("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()")
                == "1"
        }),
        // the first copied rows are stored, perhaps not recorded
        3 => run.eventually("a copied row", || {
            env.clickhouse
                .try_query(&env.database, "SELECT count() FROM small")
                .is_ok_and(|count| count.trim() != "0")
        }),
        // the copy may have ended before the last kill, because a process counts only the rows that it copied
        4 => eventually("copied rows to be recorded", || {
            copied(run) > 0 || run.table("small")["state"] == "Streaming"
        }),
        5 => run.until_streaming(),
        // between an insert and the checkpoint
        6 | 7 => {
            run.until_streaming();
            let (rows, lsn) = (written("small"), confirmed(run));
            eventually("an insert before its checkpoint", || {
                written("small") > rows || confirmed(run) != lsn
            });
        }
        // in the middle of a large transaction
        8 => {
            run.until_streaming();
            let rows = written("small");
            env.sql("INSERT INTO small SELECT 9000000 + i, 0, 'huge' FROM generate_series(1, 100000) i");
            run.eventually("a part of the large transaction", || written("small") > rows + 20000);
        }
        // just after a checkpoint
        _ => {
            run.until_streaming();
            let lsn = confirmed(run);
            eventually("a checkpoint", || confirmed(run) != lsn);
        }
    }
}

/// Killed ten times, each time at another point, while the application writes.
fn killed_at_ten_points(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql(TABLES);
    let mirror = env.mirror(&["small", "large"]);
    let writer = Writer::start(env.connect(), application);
    for number in 0..10 {
        let mut run = env.run(&mirror);
        wait_for_kill_point(&env, &mut run, number);
        run.kill();
    }
    assert!(writer.finish() > 0);
    env.catch_up(&mirror);
    assert_equal(&env, &mirror);
}

fn source_restarts(pg: Pg) {
    crate::needs_own_server!();
    let env = TestEnv::on(Server::postgres(pg, &[]).into(), Server::shared_clickhouse());
    env.sql(TABLES);
    let mirror = env.mirror(&["small", "large"]);
    let mut run = env.streaming(&mirror);
    for n in 0..20 {
        env.sql(&application(n));
    }
    for graceful in [true, false] {
        env.restart_postgres(graceful, || {
            until_not_ready(&mut run);
        });
        for n in 100..110 {
            env.sql(&application(n + 1000 * u64::from(graceful)));
        }
        run.until_streaming();
        env.settle(&mut run);
    }
    run.stop();
    assert_equal(&env, &mirror);
}

fn destination_dies(pg: Pg) {
    crate::needs_own_server!();
    let env = TestEnv::on(Server::shared_postgres(pg), Server::clickhouse(&[]).into());
    env.sql(TABLES);
    let mirror = env.mirror(&["small", "large"]);
    let writer = Writer::start(env.connect(), application);
    // While it copies, and while it streams.
    let mut run = env.run(&mirror);
    eventually("a copied row", || {
        env.clickhouse
            .try_query(&env.database, "SELECT count() FROM small")
            .is_ok_and(|count| count.trim() != "0")
    });
    env.restart_clickhouse(|| {});
    run.until_streaming();
    env.restart_clickhouse(|| {});
    assert!(writer.finish() > 0);
    env.settle(&mut run);
    run.stop();
    assert_equal(&env, &mirror);
}

fn network_cuts(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql(TABLES);
    let (source, target) = (Proxy::to(env.postgres_port), Proxy::to(env.clickhouse.port));
    let mut mirror = env.mirror(&["small", "large"]);
    mirror.postgres["spec"]["postgres"]["port"] = source.port.into();
    mirror.clickhouse["spec"]["clickhouse"]["url"] = format!("http://127.0.0.1:{}", target.port).into();
    let writer = Writer::start(env.connect(), application);
    let mut run = env.run(&mirror);
    let mut count = 0;
    let target_rows =
        || env.clickhouse.try_query(&env.database, "SELECT count() FROM small").unwrap_or_default();
    for round in 0..12 {
        if round % 2 == 0 {
            let before = target_rows();
            until("rows to arrive between two cuts", || (target_rows() != before).then_some(()));
        } else {
            // Only recorded rows count as progress, without which the pauses between retries grow to seconds.
            let before = run.status()["lastLSN"].clone();
            run.until_status("rows to be recorded", |status| (status["lastLSN"] != before).then_some(()));
        }
        if round % 3 == 0 { &target } else { &source }.cut();
        count += 1;
    }
    assert_eq!(count, 12);
    source.set_closed(true);
    source.cut();
    until_not_ready(&mut run);
    source.set_closed(false);
    writer.finish();
    run.until_streaming();
    env.settle(&mut run);
    run.stop();
    assert_equal(&env, &mirror);
}

/// A lost slot stalls the Mirror, also after a restart. It is never replaced silently, which would lose
/// changes.
fn slot_dropped(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let mirror = env.mirror(&["t"]);
    let mut run = env.streaming(&mirror);
    let slot = run.status()["slotName"].as_str().unwrap().to_owned();
    let drop = format!(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{slot}' AND active;
         SELECT pg_drop_replication_slot('{slot}')"
    );
    eventually("the slot to be dropped", || env.connect_admin().batch_execute(&drop).is_ok());
    env.sql("INSERT INTO t VALUES (2)");
    let failure = stalled_for(&mut run, Reason::SourceSlotLost);
    assert!(failure.message.contains(&slot), "{failure:?}");
    assert_eq!(failure.resyncs(), Some(Vec::new()), "{failure:?}");
    assert_eq!(
        env.source_value(&format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}'")),
        "0"
    );
    run.stop();
    let mut run = env.run(&mirror);
    stalled_for(&mut run, Reason::SourceSlotLost);
    assert_eq!(env.target("SELECT id FROM t FINAL"), "1\n");
}

fn slot_dropped_while_stopped(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let mirror = env.mirror(&["t"]);
    env.catch_up(&mirror);
    env.admin("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()");
    env.sql("INSERT INTO t VALUES (2)");
    let outcome = env.command("run", &mirror, &UNTIL_CAUGHT_UP);
    assert!(!matches!(outcome.code, Some(0 | 101) | None), "{outcome:?}");
    stalled_for(&mut env.run(&mirror), Reason::SourceSlotLost);
    assert_eq!(
        env.source_value("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"),
        "0"
    );
}

fn publication_dropped(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let mut run = env.streaming(&env.mirror(&["t"]));
    let publication = run.status()["publicationName"].as_str().unwrap().to_owned();
    env.sql(&format!("DROP PUBLICATION {publication}; INSERT INTO t VALUES (2)"));
    let failure = stalled_for(&mut run, Reason::SourcePublicationChanged);
    assert!(failure.message.contains(&publication), "{failure:?}");
}

/// An address that leads one connection to one server and the next to another has its own reason, and is not
/// reported as unreachable.
#[test]
fn an_address_that_leads_to_two_servers() {
    crate::needs_own_server!();
    let [one, other] = [(); 2].map(|()| std::sync::Arc::new(Server::postgres(Pg::V18, &[])));
    let env = TestEnv::on(std::sync::Arc::clone(&one), Server::shared_clickhouse());
    env.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    env.forget_connections();
    one.stop();
    other.stop();
    other.restore(&one.snapshot());
    one.start_again();
    other.start_again();
    let proxy = Proxy::to(one.port);
    proxy.alternate_with(other.port);
    let mut mirror = env.mirror(&["t"]);
    mirror.postgres["spec"]["postgres"]["port"] = proxy.port.into();
    let mut run = env.run(&mirror);
    run.until_status("the two servers to be reported", |status| {
        let mut conditions = status["conditions"].as_array()?.iter();
        conditions.find(|condition| condition["reason"] == "SourceAddressAmbiguous").map(|_| ())
    });
    proxy.set_target(one.port);
    run.until_streaming();
    env.settle(&mut run);
    env.assert_table("t", "id", "id");
}

on_both!(
    killed_at_ten_points,
    source_restarts,
    destination_dies,
    network_cuts,
    slot_dropped,
    slot_dropped_while_stopped,
    publication_dropped,
);

/// The source has removed WAL that the slot still needed.
#[test]
fn slot_invalidated() {
    crate::needs_own_server!();
    let server = Server::postgres(
        Pg::V18,
        &["-c", "max_slot_wal_keep_size=1MB", "-c", "max_wal_size=32MB", "-c", "min_wal_size=32MB"],
    );
    let env = TestEnv::on(server.into(), Server::shared_clickhouse());
    env.sql("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE other (v text)");
    let mirror = env.mirror(&["t"]);
    env.catch_up(&mirror);
    until("the slot to be lost", || {
        env.sql("INSERT INTO other SELECT repeat('x', 1000) FROM generate_series(1, 20000)");
        env.admin("SELECT pg_switch_wal()");
        env.admin("CHECKPOINT");
        let status = env
            .source_value("SELECT wal_status FROM pg_replication_slots WHERE database = current_database()");
        (status == "lost").then_some(())
    });
    env.command("check", &mirror, &[])
        .exits(1)
        .finds("FAILURE", "source", "replication slot")
        .says(&["max_slot_wal_keep_size"]);
    let mut run = env.run(&mirror);
    let failure = stalled_for(&mut run, Reason::SourceSlotInvalidated);
    assert!(failure.steps.iter().any(|step| step.contains("max_slot_wal_keep_size")), "{failure:?}");
}

/// The peer leads to another database cluster, whose history the destination doesn't have.
#[test]
fn source_restored_from_elsewhere() {
    crate::needs_own_server!();
    let clickhouse = Server::shared_clickhouse();
    let first = TestEnv::on(Server::postgres(Pg::V18, &[]).into(), clickhouse.clone());
    first.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let mirror = first.mirror(&["t"]);
    first.catch_up(&mirror);
    let second = TestEnv::on(Server::postgres(Pg::V18, &[]).into(), clickhouse);
    second.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (2)");
    let mut moved = mirror.clone();
    moved.postgres["spec"]["postgres"]["port"] = second.postgres_port.into();
    moved.postgres["spec"]["postgres"]["database"] = second.database.clone().into();
    moved.secrets[0].1["username"] = second.database.clone().into();
    let outcome = first.command("run", &moved, &UNTIL_CAUGHT_UP);
    assert!(!matches!(outcome.code, Some(0 | 101) | None), "{outcome:?}");
    stalled_for(&mut first.run(&moved), Reason::SourceReplaced);
    assert_eq!(first.target("SELECT id FROM t FINAL"), "1\n");
}

/// A full disk at the destination is retried, and delivery continues automatically once there is room.
#[test]
fn destination_out_of_disk() {
    crate::needs_own_server!();
    let env = TestEnv::on(Server::shared_postgres(Pg::V18), Server::clickhouse(&[]).into());
    env.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let mirror = env.mirror(&["t"]);
    let mut run = env.streaming(&mirror);
    let config = env.clickhouse_server.folder.join("config.xml");
    let plenty = std::fs::read_to_string(&config).unwrap();
    let full = plenty.replace(
        "</clickhouse>",
        "<storage_configuration><disks><default><keep_free_space_bytes>900000000000000</keep_free_space_bytes></default></disks></storage_configuration></clickhouse>",
    );
    std::fs::write(&config, full).unwrap();
    env.restart_clickhouse(|| {});
    env.sql("INSERT INTO t VALUES (1)");
    run.until_status("the full disk to be reported", |status| {
        let ready = ready(status)?;
        (ready["status"] == "False" && ready["reason"] == "ProgressingWithRetry").then_some(())
    });
    assert_eq!(env.target_value("SELECT count() FROM t"), "0");
    std::fs::write(&config, plenty).unwrap();
    env.restart_clickhouse(|| {});
    env.settle(&mut run);
    assert_eq!(env.target("SELECT id FROM t FINAL"), "1\n");
}

/// Too many parts slow the delivery down, and fail nothing.
#[test]
fn destination_has_too_many_parts() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let mut mirror = env.mirror(&["t"]);
    mirror.table(0)["engine"] =
        serde_json::json!({"settings": {"parts_to_throw_insert": "3", "parts_to_delay_insert": "2"}});
    let mut run = env.streaming(&mirror);
    env.target("SYSTEM STOP MERGES t");
    for id in 0..6 {
        env.sql(&format!("INSERT INTO t VALUES ({id})"));
        std::thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(run.table("t")["state"], "Streaming");
    env.target("SYSTEM START MERGES t");
    // The server may leave so few parts unmerged for long.
    env.target("OPTIMIZE TABLE t FINAL");
    env.settle(&mut run);
    env.assert_table("t", "id", "id");
}

/// After SIGTERM it exits with 0 within 10 seconds: while it copies, while it streams, and while the
/// destination hangs.
#[test]
fn stops_in_time() {
    crate::needs_own_server!();
    let env = TestEnv::on(Server::shared_postgres(Pg::V18), Server::clickhouse(&[]).into());
    env.sql(TABLES);
    let mirror = env.mirror(&["small", "large"]);
    let mut run = env.run(&mirror);
    run.port();
    run.stop();
    let mut run = env.run(&mirror);
    eventually("the copy to begin", || run.table("small")["state"] != serde_json::Value::Null);
    run.stop();
    let run = env.streaming(&mirror);
    let server = Pid::from_raw(env.clickhouse_server.pid());
    nix::sys::signal::kill(server, Signal::SIGSTOP).unwrap();
    env.sql(&application(1));
    run.stop();
    nix::sys::signal::kill(server, Signal::SIGCONT).unwrap();
    env.catch_up(&mirror);
    assert_equal(&env, &mirror);
}

/// Every insert of many tables is refused while a TRUNCATE waits for one of them. The failure is reported,
/// delivery continues once its cause is gone, and SIGTERM ends the process.
#[test]
fn many_simultaneous_refusals() {
    const TABLES: usize = 40;
    let env = TestEnv::new(Pg::V18);
    let names: Vec<String> = (0..TABLES).map(|number| format!("t{number}")).collect();
    let each = |statement: &str| {
        env.sql(&names.iter().map(|name| statement.replace('@', name)).collect::<Vec<_>>().join(";"));
    };
    each("CREATE TABLE @ (id int PRIMARY KEY)");
    let target = Proxy::to(env.clickhouse.port);
    let mut mirror = env.mirror(&names.iter().map(String::as_str).collect::<Vec<_>>());
    mirror.clickhouse["spec"]["clickhouse"]["url"] = format!("http://127.0.0.1:{}", target.port).into();
    let mut run = env.streaming(&mirror);
    let database = &env.database;
    let rename = |from: &str, to: &str| {
        env.clickhouse.query("default", &format!("RENAME DATABASE {from} TO {to}"));
    };
    for stops in [false, true] {
        target.set_frozen(Direction::ToServer, true);
        each(&format!("INSERT INTO @ VALUES ({})", u8::from(stops)));
        env.sql("TRUNCATE t0");
        let end = env.lsn();
        run.eventually("all of it to be sent", || {
            let sent = env.source_value(
                "SELECT max(sent_lsn) FROM pg_stat_replication WHERE application_name LIKE 'walferry%'",
            );
            parse_lsn(&sent).is_some_and(|sent| sent >= end)
        });
        rename(database, &format!("{database}_away"));
        target.set_frozen(Direction::ToServer, false);
        until_not_ready(&mut run);
        if stops {
            run.stop();
            rename(&format!("{database}_away"), database);
            break;
        }
        rename(&format!("{database}_away"), database);
        // A stalled Mirror tries again within half a minute.
        env.settle(&mut run);
        assert_eq!(env.target("SELECT count() FROM t0 FINAL"), "0\n");
        assert_eq!(env.target("SELECT id FROM t39 FINAL"), "0\n");
    }
    env.catch_up(&mirror);
    for name in &names {
        env.assert_table(name, "id", "id");
    }
}

/// A statement that the source cancels has its own reason, not that of an unreachable source, and is retried.
#[test]
fn a_canceled_statement() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let mut other = env.connect();
    // CREATE PUBLICATION waits for this lock.
    other.batch_execute("BEGIN; LOCK TABLE t IN SHARE UPDATE EXCLUSIVE MODE").unwrap();
    let mut run = env.run(&env.mirror(&["t"]));
    let failure = run.until_status("the canceled statement to be reported", |status| {
        env.source(
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
        );
        (!status["failure"].is_null()).then(|| status["failure"].clone())
    });
    assert_eq!(failure["reason"], "SourceStatementCanceled", "{failure}");
    assert!(failure["message"].as_str().unwrap().contains("57014"), "{failure}");
    other.batch_execute("ROLLBACK").unwrap();
    run.until_streaming();
    env.settle(&mut run);
    env.assert_table("t", "id", "id");
    run.stop();
}

/// Of two processes with the same file, one streams and the other waits for the slot. Neither spoils a row.
#[test]
fn two_processes_for_one_mirror() {
    let env = TestEnv::new(Pg::V18);
    env.sql(TABLES);
    let mirror = env.mirror(&["small", "large"]);
    let mut first = env.streaming(&mirror);
    let mut second = env.run(&mirror);
    second.port();
    for n in 0..20 {
        env.sql(&application(n));
    }
    let end = env.lsn();
    eventually("one of them to continue", || {
        [&mut first, &mut second].into_iter().any(|run| {
            run.alive()
                && run.status()["lastLSN"]
                    .as_str()
                    .and_then(crate::support::parse_lsn)
                    .is_some_and(|lsn| lsn >= end)
        })
    });
    first.kill();
    second.kill();
    env.catch_up(&mirror);
    assert_equal(&env, &mirror);
}
