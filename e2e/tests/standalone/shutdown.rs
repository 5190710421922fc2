//! The source never depends on the destination, nor on walferry: it shuts down in seconds, whatever walferry
//! waits for.

use std::time::{Duration, Instant};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use walferry::fault::{Reason, Side};

use crate::{
    on_both,
    support::{Mirror, Pg, Proxy, Run, Server, Standby, TestEnv, eventually},
};

/// How long a fast shutdown may take.
const WITHIN: Duration = Duration::from_secs(5);

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, v text);
    CREATE TABLE wide (id int PRIMARY KEY, big text, n int); ALTER TABLE wide ALTER big SET STORAGE EXTERNAL;
    INSERT INTO wide SELECT i, repeat(md5(i::text), 100), 0 FROM generate_series(1, 5) i;
    CREATE TABLE log (id int, v text); ALTER TABLE log REPLICA IDENTITY FULL;";

/// What waits for the destination: a row, a schema change, a TRUNCATE, re-fetched values, a change without a
/// key, and more rows than a batch may hold.
const CHANGES: [&str; 6] = [
    "INSERT INTO t VALUES (1, 'row')",
    "ALTER TABLE t ADD x int; INSERT INTO t VALUES (2, 'b', 2)",
    "INSERT INTO t VALUES (3, 'c', 3); TRUNCATE t; INSERT INTO t VALUES (4, 'd', 4)",
    "UPDATE wide SET n = n + 1",
    "INSERT INTO log VALUES (1, 'a'), (1, 'a'), (2, 'b'); DELETE FROM log WHERE id = 2",
    "INSERT INTO t SELECT i, repeat('x', 1000), i FROM generate_series(100, 20000) i",
];

fn signal(server: &Server, signal: Signal) {
    kill(Pid::from_raw(server.pid()), signal).unwrap();
}

/// Servers of the test's own, because the source is shut down and the destination stopped.
fn env(pg: Pg) -> TestEnv {
    let settings = [
        "-c",
        "log_line_prefix=%m %b %a ",
        "-c",
        "log_replication_commands=on",
        "-c",
        "log_disconnections=on",
    ];
    let env = TestEnv::on(Server::postgres(pg, &settings).into(), Server::clickhouse(&[]).into());
    env.sql(TABLES);
    env
}

fn mirror(env: &TestEnv) -> Mirror {
    let mut mirror = env.mirror(&["t", "wide", "log"]);
    mirror.mirror["spec"]["batch"] = serde_json::json!({"maxBytes": "1Mi"});
    mirror
}

/// Shuts the source down as `pg_ctl stop` does.
#[track_caller]
fn shut_down(env: &TestEnv, what: &str) {
    let began = Instant::now();
    env.postgres_server.stop();
    let took = began.elapsed();
    assert!(took < WITHIN, "the source took {took:?} to shut down: {what}");
}

/// Waits until the source has sent walferry everything that is committed, or walferry stops reading.
fn until_sent(env: &TestEnv) {
    let end = env.lsn();
    let mut last = String::new();
    eventually("the changes to be sent", || {
        let sent = env.source_value(
            "SELECT coalesce(max(sent_lsn), '0/0') FROM pg_stat_replication WHERE application_name LIKE 'walferry%'",
        );
        // A stream that is blocked keeps its position.
        let stands = std::mem::replace(&mut last, sent.clone()) == sent;
        std::thread::sleep(Duration::from_millis(200));
        crate::support::parse_lsn(&sent).unwrap() >= end || stands
    });
}

/// After the source is back nothing is lost and no row is there twice.
#[track_caller]
fn assert_arrived(env: &TestEnv, run: &mut Run) {
    env.settle(run);
    // A TRUNCATE directly after an ALTER TABLE may cause a re-copy of the table.
    run.until_streaming();
    let columns = if env
        .source_value("SELECT count(*) FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'x'")
        == "1"
    {
        "id, v, x"
    } else {
        "id, v"
    };
    env.assert_table("t", columns, "id");
    env.assert_same(
        "SELECT id, md5(big), n FROM wide ORDER BY id",
        "SELECT id, lower(hex(MD5(big))), n FROM wide FINAL WHERE _walferry_deleted = 0 ORDER BY id",
    );
    env.assert_same(
        "SELECT id, v, count(*) FROM log GROUP BY id, v ORDER BY id, v",
        "SELECT id, v, sum(_walferry_sign) AS times FROM log FINAL GROUP BY id, v HAVING times != 0 ORDER BY id, v",
    );
}

/// Runs each of the changes while the destination accepts nothing, and shuts the source down each time. Returns
/// the log.
fn shuts_down_while(pg: Pg, changes: &[&str], begin: impl Fn(&TestEnv), end: impl Fn(&TestEnv)) -> String {
    let env = env(pg);
    let mut run = env.streaming(&mirror(&env));
    for change in changes {
        begin(&env);
        env.sql(change);
        until_sent(&env);
        shut_down(&env, change);
        run.until_status("the shutdown to be reported", |status| {
            let reason = Reason::parse(status["failure"]["reason"].as_str()?)?;
            (reason.side() == Side::Source).then_some(())
        });
        end(&env);
        env.postgres_server.start_again();
        assert_arrived(&env, &mut run);
    }
    let log = run.log();
    run.stop();
    log
}

fn destination_hangs(pg: Pg) {
    crate::needs_own_server!();
    let log = shuts_down_while(
        pg,
        &CHANGES,
        |env| signal(&env.clickhouse_server, Signal::SIGSTOP),
        |env| signal(&env.clickhouse_server, Signal::SIGCONT),
    );
    assert!(!log.contains("stalled"), "{log}");
}

fn destination_is_gone(pg: Pg) {
    crate::needs_own_server!();
    let (kill, start) =
        (|env: &TestEnv| env.clickhouse_server.kill(), |env: &TestEnv| env.clickhouse_server.start_again());
    let log = shuts_down_while(pg, &CHANGES, kill, start);
    assert!(!log.contains("stalled"), "{log}");
}

/// The destination answers and refuses every statement: the Mirror stalls, and continues automatically.
#[test]
fn destination_refuses() {
    crate::needs_own_server!();
    let rename = |env: &TestEnv, from: &str, to: &str| {
        env.clickhouse.query("default", &format!("RENAME DATABASE {from} TO {to}"));
    };
    shuts_down_while(
        Pg::V18,
        &CHANGES[..1],
        |env| rename(env, &env.database, &format!("{}_away", env.database)),
        |env| rename(env, &format!("{}_away", env.database), &env.database),
    );
}

/// walferry is stopped by SIGSTOP when the source begins to shut down.
fn walferry_was_stopped(pg: Pg) {
    crate::needs_own_server!();
    let env = env(pg);
    let mut run = env.streaming(&mirror(&env));
    for change in CHANGES {
        run.signal(Signal::SIGSTOP);
        env.sql(change);
        signal(&env.postgres_server, Signal::SIGINT);
        eventually("the shutdown to begin", || {
            let login = format!(
                "host=127.0.0.1 port={} user=postgres password=postgres-test dbname=postgres",
                env.postgres_port
            );
            postgres::Client::connect(&login, postgres::NoTls).is_err()
        });
        run.signal(Signal::SIGCONT);
        shut_down(&env, change);
        env.postgres_server.start_again();
        assert_arrived(&env, &mut run);
    }
    run.stop();
}

/// walferry stays stopped: PostgreSQL ends the stream after its own timeout.
#[test]
fn walferry_stays_stopped() {
    crate::needs_own_server!();
    let settings = ["-c", "wal_sender_timeout=4s"];
    let env = TestEnv::on(Server::postgres(Pg::V18, &settings).into(), Server::shared_clickhouse());
    env.sql(TABLES);
    let mut run = env.streaming(&mirror(&env));
    run.signal(Signal::SIGSTOP);
    env.sql("INSERT INTO t VALUES (1, 'row')");
    let began = Instant::now();
    env.postgres_server.stop();
    assert!(began.elapsed() < Duration::from_secs(4) + WITHIN, "{:?}", began.elapsed());
    run.signal(Signal::SIGCONT);
    env.postgres_server.start_again();
    assert_arrived(&env, &mut run);
}

/// A smart shutdown waits for every session, and doesn't notify those that are open.
#[test]
fn smart_shutdown() {
    crate::needs_own_server!();
    let env = env(Pg::V18);
    let mut run = env.streaming(&mirror(&env));
    signal(&env.clickhouse_server, Signal::SIGSTOP);
    env.sql("INSERT INTO t VALUES (1, 'row')");
    env.forget_connections();
    let server = env.postgres_server.pid();
    signal(&env.postgres_server, Signal::SIGTERM);
    eventually("the source to be down", || {
        std::fs::read_to_string(format!("/proc/{server}/stat")).map_or(true, |stat| stat.contains(") Z "))
    });
    signal(&env.clickhouse_server, Signal::SIGCONT);
    env.postgres_server.stop();
    env.postgres_server.start_again();
    assert_arrived(&env, &mut run);
}

/// The primary is stopped and its standby promoted while the destination hangs.
#[test]
fn switchover() {
    crate::needs_own_server!();
    let mut env = env(Pg::V18);
    let standby = Standby::of(&env.postgres_server, "standby");
    standby.hold_slots(&env.postgres_server);
    eventually("the setting", || env.source_value("SHOW synchronized_standby_slots") == "standby");
    let address = Proxy::to(env.postgres_port);
    let mut mirror = mirror(&env);
    mirror.postgres["spec"]["postgres"]["port"] = address.port.into();
    let before = env.lsn();
    let mut run = env.streaming(&mirror);
    let slot = run.status()["slotName"].as_str().unwrap().to_owned();
    standby.until_synced(&env.postgres_server, &slot, before);
    signal(&env.clickhouse_server, Signal::SIGSTOP);
    env.sql(CHANGES[1]);
    until_sent(&env);
    shut_down(&env, "a switchover");
    standby.promote();
    env.postgres_port = standby.server.port;
    address.set_target(env.postgres_port);
    signal(&env.clickhouse_server, Signal::SIGCONT);
    env.sql("INSERT INTO t VALUES (5, 'e', 5)");
    run.eventually("a row of the promoted standby", || {
        env.clickhouse
            .try_query(&env.database, "SELECT count() FROM t FINAL WHERE id = 5")
            .is_ok_and(|count| count == "1\n")
    });
    assert_arrived(&env, &mut run);
}

/// The source shuts down in the middle of the copy, of a table with and one without a key.
fn while_it_copies(pg: Pg) {
    crate::needs_own_server!();
    let env = env(pg);
    env.sql(
        "INSERT INTO t SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, 100000) i;
         INSERT INTO log SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, 50000) i",
    );
    let mut run = env.run(&mirror(&env));
    run.eventually("copied rows", || {
        env.clickhouse
            .try_query(&env.database, "SELECT count() FROM t")
            .is_ok_and(|count| count.trim() != "0")
    });
    signal(&env.clickhouse_server, Signal::SIGSTOP);
    env.sql("INSERT INTO t VALUES (-1, 'row'); INSERT INTO log VALUES (-1, 'row')");
    until_sent(&env);
    shut_down(&env, "a copy");
    signal(&env.clickhouse_server, Signal::SIGCONT);
    env.postgres_server.start_again();
    assert_arrived(&env, &mut run);
    run.stop();
}

/// An orderly end leaves no error in the source's log.
fn leaves_no_complaint(pg: Pg) {
    crate::needs_own_server!();
    let env = env(pg);
    let mirror = mirror(&env);
    let mut run = env.streaming(&mirror);
    env.sql("ALTER TABLE t ADD x int; INSERT INTO t VALUES (1, 'a', 1); ALTER TABLE wide DROP big; INSERT INTO wide VALUES (9, 9)");
    env.settle(&mut run);
    run.stop();
    env.sql("INSERT INTO t SELECT i, repeat('x', 1000), i FROM generate_series(100, 20000) i");
    env.catch_up(&mirror);
    let run = env.streaming(&mirror);
    env.sql("INSERT INTO t SELECT i, repeat('x', 1000), i FROM generate_series(20001, 30000) i");
    run.stop();
    eventually("the slot to be free", || env.source_value("SELECT count(*) FROM pg_stat_replication") == "0");
    let log = std::fs::read_to_string(env.postgres_server.folder.join("log")).unwrap();
    for complaint in
        ["client lost", "could not send data", "could not receive data", "unexpected EOF", "FATAL"]
    {
        let lines: Vec<_> = log.lines().filter(|line| line.contains(complaint)).collect();
        // A server that is starting up refuses every connection with FATAL.
        let lines: Vec<_> = lines.iter().filter(|line| !line.contains("starting up")).collect();
        assert!(lines.is_empty(), "{lines:#?}");
    }
}

on_both!(leaves_no_complaint, destination_hangs, destination_is_gone, walferry_was_stopped, while_it_copies);
