//! The source never depends on the destination, nor on walferry: it shuts down in seconds, whatever walferry waits for.

use std::time::{Duration, Instant};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    on_both,
    support::{Lab, Mirror, Pg, Proxy, Run, Server, Standby, eventually},
};

/// How long a fast shutdown may take.
const WITHIN: Duration = Duration::from_secs(5);

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, v text);
    CREATE TABLE wide (id int PRIMARY KEY, big text, n int); ALTER TABLE wide ALTER big SET STORAGE EXTERNAL;
    INSERT INTO wide SELECT i, repeat(md5(i::text), 100), 0 FROM generate_series(1, 5) i;
    CREATE TABLE log (id int, v text); ALTER TABLE log REPLICA IDENTITY FULL;";

/// What waits at the destination: a row, a schema change, a TRUNCATE, values to be read again, a change without a key, more than
/// a batch may hold.
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

/// Servers of its own, as the source is shut down and the destination stopped.
fn lab(pg: Pg) -> Lab {
    let settings = [
        "-c",
        "log_line_prefix=%m %b %a ",
        "-c",
        "log_replication_commands=on",
        "-c",
        "log_disconnections=on",
    ];
    let lab = Lab::on(Server::postgres(pg, &settings).into(), Server::clickhouse(&[]).into());
    lab.sql(TABLES);
    lab
}

fn mirror(lab: &Lab) -> Mirror {
    let mut mirror = lab.mirror(&["t", "wide", "log"]);
    mirror.mirror["spec"]["batch"] = serde_json::json!({"maxBytes": "1Mi"});
    mirror
}

/// Shuts the source down as `pg_ctl stop` does.
#[track_caller]
fn shut_down(lab: &Lab, what: &str) {
    let began = Instant::now();
    lab.postgres_server.stop();
    let took = began.elapsed();
    assert!(took < WITHIN, "the source took {took:?} to shut down: {what}");
}

/// Waits until walferry was sent everything that is committed, as far as it reads.
fn until_sent(lab: &Lab) {
    let end = lab.lsn();
    let mut last = String::new();
    eventually("the changes to be sent", || {
        let sent = lab.source_value(
            "SELECT coalesce(max(sent_lsn), '0/0') FROM pg_stat_replication WHERE application_name LIKE 'walferry%'",
        );
        // A stream that is held up has stopped where it is.
        let stands = std::mem::replace(&mut last, sent.clone()) == sent;
        std::thread::sleep(Duration::from_millis(200));
        crate::support::parse_lsn(&sent).unwrap() >= end || stands
    });
}

/// The source is back: nothing is lost, nothing comes twice, and nothing else was wrong.
#[track_caller]
fn assert_arrived(lab: &Lab, run: &mut Run) {
    lab.settle(run);
    // A TRUNCATE right behind an ALTER TABLE may have the table copied once more.
    run.until_streaming();
    let columns = if lab
        .source_value("SELECT count(*) FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'x'")
        == "1"
    {
        "id, v, x"
    } else {
        "id, v"
    };
    lab.assert_table("t", columns, "id");
    lab.assert_same(
        "SELECT id, md5(big), n FROM wide ORDER BY id",
        "SELECT id, lower(hex(MD5(big))), n FROM wide FINAL WHERE _walferry_deleted = 0 ORDER BY id",
    );
    lab.assert_same(
        "SELECT id, v, count(*) FROM log GROUP BY id, v ORDER BY id, v",
        "SELECT id, v, sum(_walferry_sign) AS times FROM log FINAL GROUP BY id, v HAVING times != 0 ORDER BY id, v",
    );
}

/// Runs each of the changes while the destination takes nothing, and shuts the source down. Gives the log.
fn shuts_down_while(pg: Pg, changes: &[&str], begin: impl Fn(&Lab), end: impl Fn(&Lab)) -> String {
    let lab = lab(pg);
    let mut run = lab.streaming(&mirror(&lab));
    for change in changes {
        begin(&lab);
        lab.sql(change);
        until_sent(&lab);
        shut_down(&lab, change);
        run.until_status("the shutdown to be told", |status| {
            let ready =
                status["conditions"].as_array()?.iter().find(|condition| condition["type"] == "Ready")?;
            (ready["status"] == "False" && ready["message"].as_str()?.contains("source")).then_some(())
        });
        end(&lab);
        lab.postgres_server.start_again();
        assert_arrived(&lab, &mut run);
    }
    let log = run.log();
    run.stop();
    log
}

fn destination_hangs(pg: Pg) {
    let log = shuts_down_while(
        pg,
        &CHANGES,
        |lab| signal(&lab.clickhouse_server, Signal::SIGSTOP),
        |lab| signal(&lab.clickhouse_server, Signal::SIGCONT),
    );
    assert!(!log.contains("stalled"), "{log}");
}

fn destination_is_gone(pg: Pg) {
    let (kill, start) =
        (|lab: &Lab| lab.clickhouse_server.kill(), |lab: &Lab| lab.clickhouse_server.start_again());
    let log = shuts_down_while(pg, &CHANGES, kill, start);
    assert!(!log.contains("stalled"), "{log}");
}

/// The destination answers, and refuses every statement: the Mirror stalls, and goes on by itself.
#[test]
fn destination_refuses() {
    let rename = |lab: &Lab, from: &str, to: &str| {
        lab.clickhouse.query("default", &format!("RENAME DATABASE {from} TO {to}"));
    };
    shuts_down_while(
        Pg::V18,
        &CHANGES[..1],
        |lab| rename(lab, &lab.database, &format!("{}_away", lab.database)),
        |lab| rename(lab, &format!("{}_away", lab.database), &lab.database),
    );
}

/// walferry itself was stopped when the source was told to shut down.
fn walferry_was_stopped(pg: Pg) {
    let lab = lab(pg);
    let mut run = lab.streaming(&mirror(&lab));
    for change in CHANGES {
        run.signal(Signal::SIGSTOP);
        lab.sql(change);
        signal(&lab.postgres_server, Signal::SIGINT);
        eventually("the shutdown to begin", || {
            let login = format!(
                "host=127.0.0.1 port={} user=postgres password=postgres-test dbname=postgres",
                lab.postgres_port
            );
            postgres::Client::connect(&login, postgres::NoTls).is_err()
        });
        run.signal(Signal::SIGCONT);
        shut_down(&lab, change);
        lab.postgres_server.start_again();
        assert_arrived(&lab, &mut run);
    }
    run.stop();
}

/// walferry stays frozen: PostgreSQL ends its stream itself.
#[test]
fn walferry_stays_stopped() {
    let settings = ["-c", "wal_sender_timeout=4s"];
    let lab = Lab::on(Server::postgres(Pg::V18, &settings).into(), Server::shared_clickhouse());
    lab.sql(TABLES);
    let mut run = lab.streaming(&mirror(&lab));
    run.signal(Signal::SIGSTOP);
    lab.sql("INSERT INTO t VALUES (1, 'row')");
    let began = Instant::now();
    lab.postgres_server.stop();
    assert!(began.elapsed() < Duration::from_secs(4) + WITHIN, "{:?}", began.elapsed());
    run.signal(Signal::SIGCONT);
    lab.postgres_server.start_again();
    assert_arrived(&lab, &mut run);
}

/// A smart shutdown waits for every session, and tells none that is there already.
#[test]
fn smart_shutdown() {
    let lab = lab(Pg::V18);
    let mut run = lab.streaming(&mirror(&lab));
    signal(&lab.clickhouse_server, Signal::SIGSTOP);
    lab.sql("INSERT INTO t VALUES (1, 'row')");
    lab.forget_connections();
    let server = lab.postgres_server.pid();
    signal(&lab.postgres_server, Signal::SIGTERM);
    eventually("the source to be down", || {
        std::fs::read_to_string(format!("/proc/{server}/stat")).map_or(true, |stat| stat.contains(") Z "))
    });
    signal(&lab.clickhouse_server, Signal::SIGCONT);
    lab.postgres_server.stop();
    lab.postgres_server.start_again();
    assert_arrived(&lab, &mut run);
}

/// The primary is stopped and its standby promoted while the destination hangs.
#[test]
fn switchover() {
    let mut lab = lab(Pg::V18);
    let standby = Standby::of(&lab.postgres_server, "standby");
    standby.hold_slots(&lab.postgres_server);
    eventually("the setting", || lab.source_value("SHOW synchronized_standby_slots") == "standby");
    let address = Proxy::to(lab.postgres_port);
    let mut mirror = mirror(&lab);
    mirror.postgres["spec"]["postgres"]["port"] = address.port.into();
    let before = lab.lsn();
    let mut run = lab.streaming(&mirror);
    let slot = run.status()["slotName"].as_str().unwrap().to_owned();
    standby.until_synced(&lab.postgres_server, &slot, before);
    signal(&lab.clickhouse_server, Signal::SIGSTOP);
    lab.sql(CHANGES[1]);
    until_sent(&lab);
    shut_down(&lab, "a switchover");
    standby.promote();
    lab.postgres_port = standby.server.port;
    address.set_target(lab.postgres_port);
    signal(&lab.clickhouse_server, Signal::SIGCONT);
    lab.sql("INSERT INTO t VALUES (5, 'e', 5)");
    run.eventually("a row of the promoted standby", || {
        lab.clickhouse
            .try_query(&lab.database, "SELECT count() FROM t FINAL WHERE id = 5")
            .is_ok_and(|count| count == "1\n")
    });
    assert_arrived(&lab, &mut run);
}

/// In the middle of the copy, with and without a key.
fn while_it_copies(pg: Pg) {
    let lab = lab(pg);
    lab.sql(
        "INSERT INTO t SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, 100000) i;
         INSERT INTO log SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, 50000) i",
    );
    let mut run = lab.run(&mirror(&lab));
    run.eventually("copied rows", || {
        lab.clickhouse
            .try_query(&lab.database, "SELECT count() FROM t")
            .is_ok_and(|count| count.trim() != "0")
    });
    signal(&lab.clickhouse_server, Signal::SIGSTOP);
    lab.sql("INSERT INTO t VALUES (-1, 'row'); INSERT INTO log VALUES (-1, 'row')");
    until_sent(&lab);
    shut_down(&lab, "a copy");
    signal(&lab.clickhouse_server, Signal::SIGCONT);
    lab.postgres_server.start_again();
    assert_arrived(&lab, &mut run);
    run.stop();
}

/// What ends in order leaves no complaint in the source's log.
fn leaves_no_complaint(pg: Pg) {
    let lab = lab(pg);
    let mirror = mirror(&lab);
    let mut run = lab.streaming(&mirror);
    lab.sql("ALTER TABLE t ADD x int; INSERT INTO t VALUES (1, 'a', 1); ALTER TABLE wide DROP big; INSERT INTO wide VALUES (9, 9)");
    lab.settle(&mut run);
    run.stop();
    lab.sql("INSERT INTO t SELECT i, repeat('x', 1000), i FROM generate_series(100, 20000) i");
    lab.catch_up(&mirror);
    let run = lab.streaming(&mirror);
    lab.sql("INSERT INTO t SELECT i, repeat('x', 1000), i FROM generate_series(20001, 30000) i");
    run.stop();
    eventually("the slot to be free", || lab.source_value("SELECT count(*) FROM pg_stat_replication") == "0");
    let log = std::fs::read_to_string(lab.postgres_server.folder.join("log")).unwrap();
    for complaint in
        ["client lost", "could not send data", "could not receive data", "unexpected EOF", "FATAL"]
    {
        let lines: Vec<_> = log.lines().filter(|line| line.contains(complaint)).collect();
        // Before it is ready, the server says so to whoever asks.
        let lines: Vec<_> = lines.iter().filter(|line| !line.contains("starting up")).collect();
        assert!(lines.is_empty(), "{lines:#?}");
    }
}

on_both!(leaves_no_complaint, destination_hangs, destination_is_gone, walferry_was_stopped, while_it_copies);
