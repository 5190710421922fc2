//! What ClickHouse, or another server at its address, refuses: which table fails, how soon, and what is shown
//! of the answer.

use std::{
    io::{Read, Write},
    net::TcpListener,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use walferry::fault::{Reason, Remedy, Side};

use crate::support::{Gateway, Pg, Run, Server, TestEnv, Writer, eventually, failed_for, stalled_for};

/// Fails for a ClickHouse release with error codes that codes.tsv doesn't classify yet.
#[test]
fn every_code_of_this_server_is_listed() {
    let server = Server::shared_clickhouse();
    let all = server.as_clickhouse().query(
        "default",
        "SELECT number, errorCodeToName(number) FROM numbers(1, 2000) WHERE errorCodeToName(number) != '' ORDER BY number",
    );
    let listed: String = include_str!("../../../src/clickhouse/policy/codes.tsv")
        .lines()
        .map(|line| format!("{}\n", line.rsplit_once('\t').unwrap().0))
        .collect();
    assert_eq!(all, listed);
}

/// Waits until the table shows that it is retried for this reason, and returns its message.
#[track_caller]
fn retried_for(run: &mut Run, table: &str, reason: Reason) -> String {
    run.until_status(&format!("table {table} to be retried for {reason}"), |status| {
        let mut tables = status["tables"].as_array()?.iter();
        let found = tables.find(|found| found["name"] == table && found["reason"] == reason.name())?;
        found["message"].as_str().map(str::to_owned)
    })
}

/// Waits until the retries of a table have succeeded.
#[track_caller]
fn until_recovered(run: &mut Run, table: &str) {
    run.until_status(&format!("the retries of table {table} to succeed"), |status| {
        let mut tables = status["tables"].as_array()?.iter();
        tables.find(|found| found["name"] == table)?["message"].as_str()?.is_empty().then_some(())
    });
}

/// Waits until the table has failed, which takes longer than other waits.
#[track_caller]
fn until_given_up(run: &mut Run, table: &str, within: Duration) {
    let began = Instant::now();
    while run.table(table)["state"] != "Failed" {
        assert!(began.elapsed() < within, "{:#}", run.status());
        thread::sleep(Duration::from_millis(100));
    }
}

/// An unknown error of one table's inserts may be transient, so it is retried; after minutes that table fails
/// alone.
#[test]
fn a_table_whose_inserts_are_refused_for_minutes_stops_alone() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE b (id int PRIMARY KEY)");
    let mut run = env.streaming(&env.mirror(&["a", "b"]));
    env.target(
        "CREATE MATERIALIZED VIEW a_view ENGINE = MergeTree ORDER BY tuple() AS
        SELECT throwIf(v = 'geheim', 'words', toInt32(123456)) AS x FROM a SETTINGS allow_custom_error_code_in_throwif = 1",
    );
    env.sql("INSERT INTO a VALUES (1, 'geheim'); INSERT INTO b VALUES (1)");
    let began = Instant::now();
    run.eventually("the other table's row", || env.target_value("SELECT count() FROM b") == "1");
    until_given_up(&mut run, "a", Duration::from_secs(240));
    assert!(began.elapsed() > Duration::from_secs(60), "it failed after {:?}", began.elapsed());
    let failure = failed_for(&mut run, "a", Reason::DestinationError);
    // The server's code and the view's name are all that a user has to find the cause.
    assert!(failure.message.contains("123456") && failure.message.contains("a_view"), "{failure:?}");
    env.sql("INSERT INTO b VALUES (2)");
    env.settle(&mut run);
    assert_eq!(env.target_value("SELECT count() FROM b"), "2");
    assert_eq!(run.table("b")["state"], "Streaming");
    assert!(!format!("{:#}{}", run.status(), run.log()).contains("geheim"));
}

/// A revoked privilege on one target, or a missing database behind a view on it, fails that table alone: the
/// others continue, also after a restart, and a resync repairs it once the target is writable again.
#[test]
fn a_target_that_may_not_be_written_any_more_stops_alone() {
    crate::needs_own_server!();
    let env = TestEnv::on(Server::shared_postgres(Pg::V18), Arc::new(Server::clickhouse(&[])));
    env.sql("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); CREATE TABLE d (id int PRIMARY KEY); INSERT INTO a VALUES (1)");
    let mut mirror = env.mirror(&["a", "b", "d"]);
    let mut run = env.streaming(&mirror);
    let other = format!("{}_other", env.database);
    env.target(&format!("CREATE DATABASE {other}"));
    env.target(&format!("CREATE TABLE {other}.t (id Int32) ENGINE = MergeTree ORDER BY id"));
    env.target(&format!("CREATE MATERIALIZED VIEW d_view TO {other}.t AS SELECT id FROM d"));
    env.target(&format!("RENAME DATABASE {other} TO {other}_2"));
    env.revoke_at_target(&["REVOKE INSERT ON DB.a"]);
    env.sql("INSERT INTO a VALUES (2); INSERT INTO b VALUES (1); INSERT INTO d VALUES (1)");
    run.eventually("the other table's row", || env.target_value("SELECT count() FROM b") == "1");
    ["a", "d"].iter().for_each(|table| until_given_up(&mut run, table, Duration::from_secs(150)));
    failed_for(&mut run, "a", Reason::DestinationAccessDenied).resyncs_only("a");
    assert_ne!(run.table("d")["reason"], "");
    env.sql("INSERT INTO b VALUES (2)");
    env.settle(&mut run);
    run.stop();

    // A restart doesn't stop the other tables, and a new table fails alone too.
    env.revoke_at_target(&["REVOKE INSERT ON DB.a", "REVOKE CREATE TABLE ON DB.c"]);
    env.sql("CREATE TABLE c (id int PRIMARY KEY); INSERT INTO c VALUES (1); INSERT INTO b VALUES (3)");
    mirror.mirror["spec"]["tables"].as_array_mut().unwrap().push(json!({"schema": "public", "name": "c"}));
    env.command("check", &mirror, &[])
        .exits(1)
        .finds("warning", "public.a", "grants")
        .finds("FAILURE", "public.c", "grants");
    let mut run = env.run(&mirror);
    env.settle(&mut run);
    assert_eq!(env.target_value("SELECT count() FROM b"), "3");
    failed_for(&mut run, "c", Reason::DestinationAccessDenied);

    // What the remedies say is done.
    env.target(&format!("RENAME DATABASE {other}_2 TO {other}"));
    env.revoke_at_target(&[]);
    run.until_status("the new table to stream", |status| {
        let mut tables = status["tables"].as_array()?.iter();
        (tables.find(|table| table["name"] == "c")?["state"] == "Streaming").then_some(())
    });
    run.stop();
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1 public.a public.d"});
    env.catch_up(&mirror);
    for table in ["a", "b", "c", "d"] {
        env.assert_table(table, "id", "id");
    }
    env.verify(&mirror);
    env.target(&format!("DROP DATABASE {other}"));
}

/// A target that is read-only, or beyond a limit of its parts, shows its reason while it is retried and the
/// other tables' rows arrive. If it persists that table fails alone, so that the source can remove its log.
#[test]
fn a_target_that_takes_no_writes_stops_alone() {
    let env = TestEnv::new(Pg::V18);
    let tables = ["a", "b", "c"];
    for table in tables {
        env.sql(&format!("CREATE TABLE {table} (id int PRIMARY KEY); INSERT INTO {table} VALUES (0)"));
    }
    let mut mirror = env.mirror(&tables);
    let mut run = env.streaming(&mirror);
    env.target("ALTER TABLE a MODIFY SETTING table_readonly = 1");
    env.target("ALTER TABLE c MODIFY SETTING max_parts_in_total = 1");
    for table in tables {
        env.sql(&format!("INSERT INTO {table} VALUES (1)"));
    }
    run.eventually("the other table's row", || env.target_value("SELECT count() FROM b") == "2");
    for (table, reason) in [("a", Reason::DestinationReadOnly), ("c", Reason::DestinationTooManyParts)] {
        let message = retried_for(&mut run, table, reason);
        assert!(!message.contains('…'), "{message}");
        assert_eq!(run.table(table)["state"], "Streaming");
    }
    let (status, reason, _) = run.condition("Reconciling").unwrap();
    assert!(status == "True" && reason.starts_with("Destination"), "{status} {reason}");

    // One target is fixed before its table fails.
    env.target("ALTER TABLE c RESET SETTING max_parts_in_total");
    run.eventually("its row", || env.target_value("SELECT count() FROM c") == "2");
    until_recovered(&mut run, "c");

    until_given_up(&mut run, "a", Duration::from_secs(240));
    let failure = failed_for(&mut run, "a", Reason::DestinationReadOnly);
    assert!(!failure.message.contains('…'), "{failure:?}");
    env.sql("INSERT INTO b VALUES (2); INSERT INTO a VALUES (2)");
    env.settle(&mut run);

    failure.resyncs_only("a");
    let Some(Remedy::AnyOf { choices }) = failure.remedies.first() else { panic!("{failure:?}") };
    let [Remedy::RunAt { sql, .. }] = &choices[0][..] else { panic!("{failure:?}") };
    env.target(sql);
    run.stop();
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1 public.a"});
    env.catch_up(&mirror);
    for table in tables {
        env.assert_table(table, "id", "id");
    }
    env.verify(&mirror);
}

/// If the state table is refused as well, the whole Mirror stalls; it loses nothing, and continues when the
/// privilege is back.
#[test]
fn a_mirror_that_may_not_write_its_state_stalls() {
    crate::needs_own_server!();
    let env = TestEnv::on(Server::shared_postgres(Pg::V18), Arc::new(Server::clickhouse(&[])));
    env.sql("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)");
    let mut run = env.streaming(&env.mirror(&["a", "b"]));
    env.revoke_at_target(&["REVOKE INSERT ON DB.*"]);
    env.sql("INSERT INTO a VALUES (2); INSERT INTO b VALUES (1)");
    stalled_for(&mut run, Reason::DestinationAccessDenied);
    env.revoke_at_target(&[]);
    run.until_streaming();
    env.settle(&mut run);
    env.assert_table("a", "id", "id");
    env.assert_table("b", "id", "id");
}

/// An error that no retry can fix fails its table immediately, and its message never has a value of a row,
/// whatever the error code is.
#[test]
fn refused_rows_are_not_shown() {
    let env = TestEnv::new(Pg::V18);
    let cases = [
        ("number", "toInt32(v)"),
        ("network", "toIPv4(v)"),
        ("label", "CAST(v, 'Enum8(\\'x\\' = 1)')"),
        ("throw", "throwIf(v != 'x', 'geheim')"),
        ("object", "CAST(v, 'JSON')"),
        ("ident", "toUUID(v)"),
        ("moment", "toDateTime64(v, 3)"),
    ];
    let names: Vec<&str> = cases.iter().map(|(name, _)| *name).collect();
    for name in &names {
        env.sql(&format!("CREATE TABLE {name} (id int PRIMARY KEY, v text NOT NULL)"));
    }
    let mut run = env.streaming(&env.mirror(&names));
    for (name, expression) in cases {
        env.target(&format!(
            "CREATE MATERIALIZED VIEW {name}_view ENGINE = MergeTree ORDER BY tuple() AS SELECT {expression} AS x FROM {name}"
        ));
        env.sql(&format!("INSERT INTO {name} VALUES (1, 'geheim 4711{{'), (2, '{{\"geheim\" 4711')"));
    }
    for name in names {
        let failure = failed_for(&mut run, name, Reason::DestinationRejectsRows);
        assert!(failure.message.contains(&format!("{name}_view")), "{failure:?}");
    }
    let shown = format!("{:#}{}", run.status(), run.log());
    for secret in ["geheim", "4711"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

/// Of a server that is not ClickHouse only the status and the content type are shown, nothing of the body.
#[test]
fn answers_of_others_are_not_shown() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY)");
    for (head, shown) in [
        ("403 Forbidden\r\nContent-Type: text/html; charset=utf-8", "HTTP status 403, text/html"),
        ("404 Not Found\r\nContent-Type: application/json", "HTTP status 404, application/json"),
        ("302 Found\r\nLocation: http://geheim/", "HTTP status 302"),
        ("500 Internal Server Error\r\nX-Secret: geheim", "HTTP status 500"),
        ("200 OK\r\nContent-Type: text/plain", "not a version"),
    ] {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for mut client in listener.incoming().map_while(Result::ok) {
                let mut request = [0; 4096];
                let _ = client.read(&mut request);
                let body = "{\"password\": \"geheim\"}";
                let answer = format!(
                    "HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                let _ = client.write_all(answer.as_bytes());
            }
        });
        let mut mirror = env.mirror(&["t"]);
        mirror.clickhouse["spec"]["clickhouse"]["url"] = json!(format!("http://127.0.0.1:{port}"));
        let outcome = env.command("check", &mirror, &["--log-level", "debug"]).exits(1).says(&[shown]);
        assert!(!outcome.text().contains("geheim"), "{}", outcome.text());
    }
}

/// ClickHouse suggests names from everything on the server: names of other databases and tables are not
/// shown.
#[test]
fn guesses_of_the_server_are_not_shown() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE salary (id int PRIMARY KEY, v text); INSERT INTO salary VALUES (1, 'x')");
    let other = format!("{}_secret", env.database);
    env.target(&format!("CREATE DATABASE {other}"));
    env.target(&format!("CREATE TABLE {other}.salary (id Int32) ENGINE = MergeTree ORDER BY id"));
    // The server does suggest names for an unknown table, column, function and setting.
    for sql in [
        "SELECT * FROM salary",
        "SELECT dummi FROM system.one",
        "SELECT toStrin(1)",
        "SELECT 1 SETTINGS max_thread = 1",
    ] {
        let answer = env.clickhouse.try_query(&env.database, sql).unwrap_err();
        assert!(answer.contains("aybe you meant"), "{answer}");
    }
    let mut mirror = env.mirror(&["salary"]);
    for engine in [
        json!({"partitionBy": "toStrin(id)"}),
        json!({"partitionBy": "(id, idd)"}),
        json!({"ttl": "toDateTime(idd)"}),
        json!({"settings": {"index_granularit": "1"}}),
    ] {
        mirror.table(0)["engine"] = engine;
        let outcome =
            env.command("check", &mirror, &[]).exits(1).finds("FAILURE", "public.salary", "target table");
        assert!(!outcome.text().contains("you meant"), "{}", outcome.text());
    }
    let mut run = env.streaming(&env.mirror(&["salary"]));
    env.target("DROP TABLE salary SYNC");
    env.sql("INSERT INTO salary VALUES (2, 'y')");
    failed_for(&mut run, "salary", Reason::DestinationTableMissing);
    let shown = format!("{:#}{}", run.status(), run.log());
    assert!(!shown.contains(&other) && !shown.contains("you meant"), "{shown}");
    env.target(&format!("DROP DATABASE {other}"));
}

/// A refused TRUNCATE is retried by its table alone: later rows of other tables arrive, and the table catches
/// up.
#[test]
fn a_refused_truncate_keeps_no_other_table_waiting() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE b (id int PRIMARY KEY); INSERT INTO a SELECT i, 'old' FROM generate_series(1, 100) i");
    let mut run = env.streaming(&env.mirror(&["a", "b"]));
    env.sql("UPDATE a SET v = 'streamed' WHERE id < 10");
    env.settle(&mut run);
    env.target("ALTER TABLE a MODIFY SETTING table_readonly = 1");
    env.sql(
        "INSERT INTO a VALUES (200, 'before'); TRUNCATE a; INSERT INTO a VALUES (1, 'after'), (300, 'after');
        TRUNCATE a; INSERT INTO a VALUES (2, 'last'); INSERT INTO b VALUES (1)",
    );
    let began = Instant::now();
    run.eventually("the other table's row", || env.target_value("SELECT count() FROM b") == "1");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert!(env.target_value("SELECT count() FROM a FINAL") != "1");
    retried_for(&mut run, "a", Reason::DestinationReadOnly);
    env.target("ALTER TABLE a MODIFY SETTING table_readonly = 0");
    env.settle(&mut run);
    env.assert_table("a", "id, v", "id");
    assert_eq!(run.table("a")["truncated"], 2);

    // Late rows from before the TRUNCATE are deleted in the background, which may be refused later.
    env.target("ALTER TABLE a MODIFY SETTING table_readonly = 1");
    retried_for(&mut run, "a", Reason::DestinationReadOnly);
    env.sql("INSERT INTO b VALUES (2)");
    env.settle(&mut run);
    env.target("ALTER TABLE a MODIFY SETTING table_readonly = 0");
    until_recovered(&mut run, "a");
    assert_eq!(run.condition("Ready").unwrap().0, "True");
    env.assert_table("a", "id, v", "id");
}

/// A target that refuses new columns delays the other tables by half a minute at most, then its table fails
/// alone.
#[test]
fn a_refused_change_of_columns_keeps_the_others_waiting_for_a_bounded_time() {
    let env = TestEnv::new(Pg::V18);
    env.sql(
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); INSERT INTO a VALUES (1)",
    );
    let mut mirror = env.mirror(&["a", "b"]);
    let mut run = env.streaming(&mirror);
    env.target("ALTER TABLE a MODIFY SETTING table_readonly = 1");
    env.sql("ALTER TABLE a ADD COLUMN v text DEFAULT 'x'; INSERT INTO a VALUES (2, 'y'); INSERT INTO b VALUES (1)");
    let began = Instant::now();
    run.eventually("the other table's row", || env.target_value("SELECT count() FROM b") == "1");
    assert!(began.elapsed() < Duration::from_secs(90), "{:?}", began.elapsed());
    let failure = failed_for(&mut run, "a", Reason::SourceSchemaChanged);
    assert!(failure.sql(Side::Destination).contains("table_readonly = 0"), "{failure:?}");
    assert!(!failure.message.contains('…'), "{failure:?}");
    env.sql("INSERT INTO b VALUES (2)");
    env.settle(&mut run);
    run.stop();
    env.target("ALTER TABLE a MODIFY SETTING table_readonly = 0");
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1 public.a"});
    env.catch_up(&mirror);
    env.assert_table("a", "id, v", "id");
    env.assert_table("b", "id", "id");
}

/// The position advances although columns are added all the time while large values are re-fetched.
#[test]
fn the_position_moves_while_columns_come_all_the_time() {
    let env = TestEnv::new(Pg::V18);
    env.sql(
        "CREATE TABLE wide (id int PRIMARY KEY, a text, n int NOT NULL DEFAULT 0); ALTER TABLE wide ALTER a SET STORAGE EXTERNAL;
        INSERT INTO wide SELECT i, repeat(md5(i::text), 400) FROM generate_series(1, 4000) i",
    );
    let mut run = env.streaming(&env.mirror(&["wide"]));
    let writer = Writer::start(env.connect(), |n| {
        format!("UPDATE wide SET n = n + 1 WHERE id BETWEEN {0} AND {0} + 5", n * 37 % 4000)
    });
    let (mut client, began) = (env.connect(), Instant::now());
    let (mut column, mut known, mut since, mut longest) = (0, String::new(), began, Duration::ZERO);
    while began.elapsed() < Duration::from_secs(60) {
        client.batch_execute(&format!("ALTER TABLE wide ADD COLUMN c{column} int DEFAULT {column}")).unwrap();
        column += 1;
        thread::sleep(Duration::from_millis(700));
        let now = run.status()["lastLSN"].as_str().unwrap_or_default().to_owned();
        if now != known {
            (known, since) = (now, Instant::now());
        }
        longest = longest.max(since.elapsed());
    }
    println!("the position stayed for {longest:?} at most");
    assert!(longest < Duration::from_secs(20), "the position stayed for {longest:?}");
    writer.finish();
    env.settle(&mut run);
    env.assert_same(
        "SELECT id, n, md5(a) FROM wide ORDER BY id",
        "SELECT id, n, lower(hex(MD5(a))) FROM wide FINAL ORDER BY id",
    );
}

/// A copy's last statement deletes rows that are gone at the source. If the process is killed before that,
/// the next process runs it, and a refusal fails that table alone.
#[test]
fn a_clean_up_that_is_refused_after_a_restart_stops_its_table_alone() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE b (id int PRIMARY KEY); INSERT INTO a VALUES (1, 'x'), (2, 'y')");
    let gateway = Gateway::to(env.clickhouse.port);
    let mut mirror = env.mirror(&["a", "b"]);
    mirror.clickhouse["spec"]["clickhouse"]["url"] = format!("http://127.0.0.1:{}", gateway.port).into();
    env.catch_up(&mirror);
    env.sql("DELETE FROM a WHERE id = 2");
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1"});
    gateway.hold("toUInt8(1) FROM", 1000);
    let run = env.run(&mirror);
    eventually("the clean-up to be held back", || gateway.kept() > 0);
    run.kill();
    env.target("ALTER TABLE a ADD CONSTRAINT kept CHECK _walferry_deleted = 0");
    gateway.let_pass();
    let mut run = env.run(&mirror);
    failed_for(&mut run, "a", Reason::DestinationRejectsRows);
    env.sql("INSERT INTO b VALUES (1)");
    env.settle(&mut run);
    env.assert_table("b", "id", "id");
    run.stop();
    env.target("ALTER TABLE a DROP CONSTRAINT kept");
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "2 public.a"});
    env.catch_up(&mirror);
    env.assert_table("a", "id, v", "id");
    env.verify(&mirror);
}
