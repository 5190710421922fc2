//! Requests do no harm that reach ClickHouse late, twice, at another replica, or from a process that was
//! replaced.

use std::sync::Arc;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    on_both,
    support::{Direction, Gateway, Mirror, Pg, Proxy, Server, TestEnv, eventually},
};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

fn through(env: &TestEnv, tables: &[&str], port: u16) -> Mirror {
    let mut mirror = env.mirror(tables);
    mirror.clickhouse["spec"]["clickhouse"]["url"] = format!("http://127.0.0.1:{port}").into();
    mirror
}

/// The part of the URL that inserts of a table's streamed and copied rows have in common.
fn inserts_into(env: &TestEnv, table: &str) -> String {
    format!("INSERT INTO `{}`.`{table}`", env.database)
}

fn assert_delivered(answers: &[String]) {
    for answer in answers {
        assert!(answer.starts_with("HTTP/1.1 200"), "a late request was refused: {answer}");
    }
}

/// The first inserts of a transaction run a second time after all the others.
fn ties_within_a_transaction(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql(TABLE);
    let gateway = Gateway::to(env.clickhouse.port);
    let mut mirror = through(&env, &["t"], gateway.port);
    mirror.mirror["spec"]["batch"] = json!({"maxBytes": "1Mi", "maxDelayMilliseconds": 1});
    let mut run = env.streaming(&mirror);
    gateway.hold(&inserts_into(&env, "t"), 3);
    env.sql(
        "BEGIN; INSERT INTO t VALUES (1, 'first'), (2, 'x'); INSERT INTO t SELECT i, repeat('v', 60) FROM generate_series(3, 60000) i;
         UPDATE t SET v = 'second' WHERE id = 1; DELETE FROM t WHERE id = 2; UPDATE t SET v = 'last' WHERE id % 100 = 0; COMMIT",
    );
    env.settle(&mut run);
    assert_eq!(gateway.kept(), 3);
    env.assert_table("t", "id, v", "id");
    let steps = "SELECT uniqExact(_walferry_version) > 10 FROM t";
    assert_eq!(env.target_value(steps), "1", "the transaction was to be inserted in several steps");
    assert_delivered(&gateway.deliver());
    env.assert_table("t", "id, v", "id");
    assert_eq!(env.target_value("SELECT v FROM t FINAL WHERE id IN (1, 2)"), "second");
    run.stop();
}

/// The deletion for a TRUNCATE runs again after new rows were inserted, for a table with a key and one
/// without.
fn a_late_truncate(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql(TABLE);
    env.sql("CREATE TABLE log (n int); ALTER TABLE log REPLICA IDENTITY FULL");
    env.sql("INSERT INTO t VALUES (1, 'old'), (2, 'old'); INSERT INTO log SELECT i % 5 FROM generate_series(1, 100) i");
    let gateway = Gateway::to(env.clickhouse.port);
    let mut run = env.streaming(&through(&env, &["t", "log"], gateway.port));
    env.sql("INSERT INTO log VALUES (7), (7); DELETE FROM log WHERE n = 1");
    env.settle(&mut run);
    gateway.hold(" SELECT ", 2);
    env.sql("TRUNCATE t, log");
    eventually("the deletions of the TRUNCATE to be held back", || gateway.kept() == 2);
    env.sql("INSERT INTO t SELECT i, 'new' FROM generate_series(2, 100) i; INSERT INTO log SELECT i % 3 FROM generate_series(1, 10) i");
    env.settle(&mut run);
    let compare = || {
        env.assert_table("t", "id, v", "id");
        env.assert_same(
            "SELECT n, count(*) FROM log GROUP BY n ORDER BY n",
            "SELECT n, sum(_walferry_sign) AS times FROM log FINAL GROUP BY n HAVING times != 0 ORDER BY n",
        );
    };
    compare();
    assert_delivered(&gateway.deliver());
    compare();
    run.stop();
}

/// Inserts of copied and of streamed rows run again after a TRUNCATE.
fn inserts_after_a_truncate(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql(TABLE);
    env.sql("INSERT INTO t SELECT i, 'copied' FROM generate_series(1, 100) i");
    let gateway = Gateway::to(env.clickhouse.port);
    gateway.hold(&inserts_into(&env, "t"), 1);
    let mut run = env.streaming(&through(&env, &["t"], gateway.port));
    assert_eq!(gateway.kept(), 1);
    gateway.hold(&inserts_into(&env, "t"), 1);
    env.sql("INSERT INTO t SELECT i, 'streamed' FROM generate_series(101, 200) i");
    env.settle(&mut run);
    assert_eq!(gateway.kept(), 2);
    env.sql("TRUNCATE t; INSERT INTO t VALUES (7, 'new')");
    env.settle(&mut run);
    assert_delivered(&gateway.deliver());
    env.assert_table("t", "id, v", "id");
    run.stop();
}

/// An insert of the copy runs late and nobody repeats it: its process was killed, and the next one reads the
/// table after its rows were deleted.
#[test]
fn an_insert_that_nobody_repeats() {
    let env = TestEnv::new(Pg::V18);
    env.sql(TABLE);
    env.sql("INSERT INTO t SELECT i, 'copied' FROM generate_series(1, 100) i");
    let gateway = Gateway::to(env.clickhouse.port);
    gateway.hold(&inserts_into(&env, "t"), usize::MAX);
    let killed = env.run(&through(&env, &["t"], gateway.port));
    eventually("an insert to be held back", || gateway.kept() > 0);
    killed.kill();
    env.sql("TRUNCATE t; INSERT INTO t VALUES (7, 'new')");
    let run = env.streaming(&env.mirror(&["t"]));
    env.assert_table("t", "id, v", "id");
    gateway.let_pass();
    assert_delivered(&gateway.deliver());
    eventually("the late rows to be deleted", || env.target_value("SELECT count() FROM t FINAL") == "1");
    env.assert_table("t", "id, v", "id");
    run.stop();
}

/// The same for a table without a key: the copy starts again, with other positions than those of the late
/// rows.
#[test]
fn a_keyless_copy_that_nobody_repeats() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE log (n int); ALTER TABLE log REPLICA IDENTITY FULL; INSERT INTO log SELECT i % 3 FROM generate_series(1, 100) i");
    let gateway = Gateway::to(env.clickhouse.port);
    gateway.hold(&inserts_into(&env, "log"), usize::MAX);
    let killed = env.run(&through(&env, &["log"], gateway.port));
    eventually("an insert to be held back", || gateway.kept() > 0);
    killed.kill();
    let run = env.streaming(&env.mirror(&["log"]));
    gateway.let_pass();
    assert_delivered(&gateway.deliver());
    eventually("the late rows to be removed", || env.target_value("SELECT count() FROM log FINAL") == "100");
    env.assert_same(
        "SELECT n, count(*) FROM log GROUP BY n ORDER BY n",
        "SELECT n, sum(_walferry_sign) AS times FROM log FINAL GROUP BY n HAVING times != 0 ORDER BY n",
    );
    run.stop();
}

/// A process loses both servers while it applies a TRUNCATE, another one takes over, and the first one comes
/// back.
fn a_replaced_process_comes_back(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql(TABLE);
    env.sql("INSERT INTO t VALUES (1, 'old')");
    let (source, target) = (Proxy::to(env.postgres_port), Proxy::to(env.clickhouse.port));
    let mut mirror = through(&env, &["t"], target.port);
    mirror.postgres["spec"]["postgres"]["port"] = source.port.into();
    let first = env.streaming(&mirror);
    let freeze = |proxy: &Proxy, frozen| {
        proxy.set_frozen(Direction::ToServer, frozen);
        proxy.set_frozen(Direction::ToClient, frozen);
    };
    freeze(&target, true);
    env.sql("TRUNCATE t");
    std::thread::sleep(std::time::Duration::from_millis(1500));
    freeze(&source, true);
    env.sql("INSERT INTO t SELECT i, 'new' FROM generate_series(1, 100) i");
    let mut second = env.streaming(&env.mirror(&["t"]));
    env.assert_table("t", "id, v", "id");
    freeze(&target, false);
    freeze(&source, false);
    // Meanwhile the TRUNCATE of the first process runs, or that process notices that it has lost the slot.
    std::thread::sleep(std::time::Duration::from_secs(3));
    env.assert_table("t", "id, v", "id");
    first.kill();
    env.sql("UPDATE t SET v = 'newer' WHERE id < 10");
    second.until_streaming();
    env.settle(&mut second);
    env.assert_table("t", "id, v", "id");
    second.stop();
}

/// A frozen process continues after another one has done the same work, and more.
#[test]
fn a_frozen_process_continues() {
    let env = TestEnv::new(Pg::V18);
    env.sql(TABLE);
    env.sql("CREATE TABLE log (n int); ALTER TABLE log REPLICA IDENTITY FULL");
    let mirror = env.mirror(&["t", "log"]);
    let first = env.streaming(&mirror);
    for round in 0..5 {
        env.sql(&format!(
            "BEGIN; INSERT INTO t SELECT i, 'a{round}' FROM generate_series(1, 20000) i; INSERT INTO log SELECT i % 7 FROM generate_series(1, 20000) i;
             UPDATE t SET v = 'b' WHERE id % 3 = 0; DELETE FROM t WHERE id % 5 = 0; COMMIT"
        ));
        if round == 3 {
            first.signal(Signal::SIGSTOP);
        }
        env.sql(if round % 2 == 0 {
            "TRUNCATE t, log"
        } else {
            "DELETE FROM t; DELETE FROM log WHERE n < 5"
        });
    }
    env.sql("INSERT INTO t VALUES (1, 'last'); INSERT INTO log VALUES (1), (1)");
    let mut second = env.streaming(&mirror);
    let compare = || {
        env.assert_table("t", "id, v", "id");
        env.assert_same(
            "SELECT n, count(*) FROM log GROUP BY n ORDER BY n",
            "SELECT n, sum(_walferry_sign) AS times FROM log FINAL GROUP BY n HAVING times != 0 ORDER BY n",
        );
    };
    compare();
    first.signal(Signal::SIGCONT);
    std::thread::sleep(std::time::Duration::from_secs(3));
    env.settle(&mut second);
    compare();
    first.kill();
    second.stop();
}

/// A load balancer sends each insert to one of two servers or to both, as if they were replicas. Their rows
/// together, in either order, are those of the source.
#[test]
fn replicas_behind_a_balancer() {
    crate::needs_own_server!();
    let clickhouse = Arc::new(Server::clickhouse(&[]));
    let other = Server::clickhouse(&[]);
    let env = TestEnv::on(Server::shared_postgres(Pg::V18), clickhouse);
    let (first, second) = (env.clickhouse.port, other.port);
    let mut count = 0_usize;
    let gateway = Gateway::routed(move |request| {
        let data = request.contains("INSERT INTO `") && !request.contains("_walferry_state");
        count += usize::from(data);
        match (data, count % 3) {
            // In the end both replicas have the rows that a deletion reads, so it runs at both.
            (true, _) if request.contains(" SELECT ") => vec![second, first],
            (true, 0) => vec![first],
            (true, 1) => vec![second],
            (true, _) => vec![second, first],
            _ if request.contains("CREATE TABLE") => vec![second, first],
            _ => vec![first],
        }
    });
    other.as_clickhouse().query("default", &format!("CREATE DATABASE {}", env.database));
    env.sql(TABLE);
    env.sql("INSERT INTO t SELECT i, 'copied' FROM generate_series(1, 1000) i");
    let mut mirror = through(&env, &["t"], gateway.port);
    mirror.mirror["spec"]["batch"] = json!({"maxBytes": "1Mi", "maxDelayMilliseconds": 1});
    let mut run = env.streaming(&mirror);
    for round in 0..40 {
        env.sql(&format!(
            "UPDATE t SET v = 'r{round}' WHERE id % 7 = {round} % 7; DELETE FROM t WHERE id % 40 = {round};
             INSERT INTO t SELECT i, 'again' FROM generate_series({round}, {round} + 60) i ON CONFLICT (id) DO UPDATE SET v = 'again';
             UPDATE t SET id = id + 100000 WHERE id = {round} + 500"
        ));
        if round % 8 == 0 {
            env.settle(&mut run);
        }
    }
    env.sql("BEGIN; INSERT INTO t SELECT i, repeat('v', 60) FROM generate_series(200001, 230000) i; UPDATE t SET v = 'w' WHERE id > 200000; COMMIT");
    env.settle(&mut run);
    run.stop();
    let (here, there) = (&env.clickhouse, other.as_clickhouse());
    let spread = there.query(&env.database, "SELECT count() FROM t");
    assert!(spread.trim().parse::<u64>().unwrap() > 1000, "the other replica has {spread} rows");
    // Each replica fetches the other's rows after it has its own.
    let fetch = |port: u16| {
        format!(
            "INSERT INTO t SELECT * FROM url('http://127.0.0.1:{port}/?user=admin&password=clickhouse-test&query=SELECT%20*%20FROM%20{}.t%20FORMAT%20Native', Native)",
            env.database
        )
    };
    let held = there.query(&env.database, "SELECT count() FROM t");
    there.query(&env.database, &fetch(first));
    assert_ne!(there.query(&env.database, "SELECT count() FROM t"), held);
    let rows = "SELECT id, v FROM t FINAL WHERE _walferry_deleted = 0 ORDER BY id";
    here.query(&env.database, &fetch(second));
    env.assert_table("t", "id, v", "id");
    assert!(
        here.query(&env.database, rows) == there.query(&env.database, rows),
        "the order in which they came matters"
    );
}

on_both!(ties_within_a_transaction, a_late_truncate, inserts_after_a_truncate, a_replaced_process_comes_back);
