//! Tables without a key: each row is at the destination as often as at the source, whatever is killed
//! meanwhile.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde_json::json;
use walferry::fault::{Reason, Side};

use crate::{
    on_both,
    support::{Direction, Mirror, Pg, Proxy, Server, TestEnv, Writer, eventually, failed_for, stalled_for},
};

/// Columns of every kind, with a value that is stored out of line and not sent by an update that doesn't
/// change it.
const TABLE: &str =
    "CREATE TABLE t (n int, v text, f float8, d numeric(9, 2), at timestamptz, tags int[], big text);
    ALTER TABLE t REPLICA IDENTITY FULL; ALTER TABLE t ALTER big SET STORAGE EXTERNAL;";

/// Compares how often each row exists, by SQL on both sides. A NULL array is an empty one at the destination.
#[track_caller]
fn assert_counts(env: &TestEnv, table: &str) {
    env.assert_same(
        &format!(
            "SELECT n, v, f, (d * 100)::bigint AS d, replace(coalesce(tags, '{{}}')::text, 'NULL', '-') AS tags, extract(epoch FROM at)::bigint AS at, md5(big) AS big, count(*)
             FROM {table} GROUP BY 1, 2, 3, 4, 5, 6, 7 ORDER BY n NULLS FIRST, v NULLS FIRST, f NULLS FIRST, d NULLS FIRST,
             replace(coalesce(tags, '{{}}')::text, 'NULL', '-') COLLATE \"C\" NULLS FIRST, at NULLS FIRST, md5(big) COLLATE \"C\" NULLS FIRST"
        ),
        &format!(
            "SELECT n, v, f, toInt64(d * 100) AS d, concat('{{', arrayStringConcat(arrayMap(x -> ifNull(toString(x), '-'), tags), ','), '}}') AS tags,
             toUnixTimestamp64Second(at) AS at, lower(hex(MD5(big))) AS big, sum(_walferry_sign) AS count
             FROM {table} FINAL GROUP BY ALL HAVING count != 0
             ORDER BY n NULLS FIRST, v NULLS FIRST, f NULLS FIRST, d NULLS FIRST, tags NULLS FIRST, at NULLS FIRST, big NULLS FIRST"
        ),
    );
}

/// Small pseudo-random numbers, the same for the same seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        // SplitMix64
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % end
    }
}

/// What an application does with table `t`, which has few different rows, each of them often.
fn application(seed: u64) -> String {
    let mut numbers = Numbers(seed);
    let mut value = |end| numbers.below(end).to_string();
    let row = |n: &str| {
        format!("({n}, 'v{n}', {n} / 4.0, {n}.25, to_timestamp({n}), ARRAY[{n}, NULL], repeat('{n} ', 1000))")
    };
    let one = |n: &str| format!("ctid = (SELECT ctid FROM t WHERE n = {n} LIMIT 1 FOR UPDATE)");
    let (a, b, c, d) = (value(20), value(20), value(20), value(20));
    match numbers.below(8) {
        0 | 1 => format!("INSERT INTO t VALUES {}, {}, {}", row(&a), row(&a), row(&b)),
        2 => format!("DELETE FROM t WHERE {}", one(&a)),
        3 => format!("UPDATE t SET v = 'moved' WHERE {}", one(&a)),
        4 => format!("UPDATE t SET n = {b} WHERE {}", one(&a)),
        5 => "INSERT INTO t SELECT".to_owned(),
        6 => format!(
            "BEGIN; INSERT INTO t VALUES {}; SAVEPOINT s; DELETE FROM t WHERE n = {b}; ROLLBACK TO s; UPDATE t SET f = f WHERE {}; INSERT INTO t VALUES {}; COMMIT",
            row(&a),
            one(&c),
            row(&d)
        ),
        _ => format!("INSERT INTO t SELECT r.* FROM generate_series(1, 10) i, (VALUES {}) r", row(&a)),
    }
}

fn keyless(env: &TestEnv) -> Mirror {
    env.sql(TABLE);
    env.mirror(&["t"])
}

/// One of several equal rows is deleted; rows consist of NULL alone; updates change all columns, one, or
/// none; TRUNCATE runs twice in a transaction.
fn every_change(pg: Pg) {
    let env = TestEnv::new(pg);
    let mirror = keyless(&env);
    env.sql("INSERT INTO t SELECT n % 7, 'v', 0.5, 1.5, to_timestamp(0), '{1}', repeat(md5((n % 7)::text), 200) FROM generate_series(1, 1000) n;
        INSERT INTO t SELECT FROM generate_series(1, 3)");
    env.command("check", &mirror, &[]).exits(0).finds("ok", "public.t", "replica identity");
    let mut run = env.streaming(&mirror);
    assert_counts(&env, "t");
    env.sql("DELETE FROM t WHERE ctid = (SELECT min(ctid) FROM t WHERE n = 3);
        DELETE FROM t WHERE ctid = (SELECT min(ctid) FROM t WHERE n IS NULL);
        UPDATE t SET v = 'w' WHERE ctid = (SELECT max(ctid) FROM t WHERE n = 3);
        UPDATE t SET n = 100 WHERE n = 4; UPDATE t SET n = n WHERE n = 5; UPDATE t SET n = NULL, v = NULL, f = NULL, d = NULL, at = NULL, tags = NULL, big = NULL WHERE n = 6");
    env.sql("BEGIN; INSERT INTO t VALUES (7), (7); UPDATE t SET n = 8 WHERE n = 7; DELETE FROM t WHERE n = 8; INSERT INTO t VALUES (7); COMMIT");
    env.settle(&mut run);
    assert_counts(&env, "t");
    // Columns are added and dropped; a count over the present columns finds the same rows.
    env.sql("ALTER TABLE t ADD more int DEFAULT 5; INSERT INTO t (n) VALUES (4), (4); UPDATE t SET more = 6 WHERE n = 3; ALTER TABLE t DROP d;
        DELETE FROM t WHERE ctid = (SELECT min(ctid) FROM t WHERE n = 3); INSERT INTO t (n) VALUES (9)");
    env.settle(&mut run);
    let counts = || {
        env.assert_same(
            "SELECT n, more, count(*) FROM t GROUP BY 1, 2 ORDER BY 1, 2",
            "SELECT n, more, sum(_walferry_sign) AS count FROM t FINAL GROUP BY ALL HAVING count != 0 ORDER BY 1, 2",
        );
    };
    counts();
    // TRUNCATE follows the new columns here, because an ALTER TABLE that follows a TRUNCATE may have
    // rewritten the table, which is copied again then.
    env.sql("BEGIN; INSERT INTO t VALUES (1); TRUNCATE t; INSERT INTO t VALUES (2), (2); TRUNCATE t; INSERT INTO t VALUES (3), (3); COMMIT; INSERT INTO t VALUES (3)");
    env.settle(&mut run);
    run.until_streaming();
    counts();
    assert_eq!(env.target_value("SELECT sum(_walferry_sign) FROM t FINAL"), "3");
    run.stop();
}

on_both!(every_change);

/// `verify` finds missing and surplus rows, and a resync removes the differences, also those of changes that
/// were never received.
#[test]
fn verify_and_resync() {
    let env = TestEnv::new(Pg::V18);
    let mut mirror = keyless(&env);
    env.sql("INSERT INTO t SELECT n % 7, 'v', 0.1, 1.5, to_timestamp(n), '{1}', repeat(md5((n % 7)::text), 200) FROM generate_series(1, 1000) n;
        INSERT INTO t SELECT FROM generate_series(1, 3); UPDATE t SET v = 'w' WHERE n = 5");
    env.catch_up(&mirror);
    env.verify(&mirror);
    env.sql("INSERT INTO t VALUES (1000), (1000)");
    env.target(
        "INSERT INTO t (n, _walferry_version, _walferry_ordinal, _walferry_sign) VALUES (2000, 1, 1, 1)",
    );
    let found = env.command("verify", &mirror, &[]).exits(1);
    found.says(&[
        "n = 1000",
        "2 times at the source and 0 times",
        "n = 2000",
        "0 times at the source and 1 times",
    ]);
    drop_slot(&env);
    env.sql("DELETE FROM t WHERE n = 1; ALTER TABLE t ADD id serial PRIMARY KEY");
    env.sql("ALTER TABLE t DROP id");
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1"});
    let mut run = env.run(&mirror);
    run.until_status("copied rows", |status| (status["tables"][0]["rowsCopied"].as_u64()? > 0).then_some(()));
    run.kill();
    env.catch_up(&mirror);
    assert_counts(&env, "t");
    // `verify` also succeeds while the application writes.
    let mut run = env.streaming(&mirror);
    let writer = Writer::start(env.connect(), application);
    env.verify(&mirror);
    assert!(writer.finish() > 0);
    env.settle(&mut run);
    assert_counts(&env, "t");
}

/// A table without a key needs REPLICA IDENTITY FULL. Without it the table is refused, or fails alone when it
/// loses that identity.
#[test]
fn tables_need_whole_old_rows() {
    let env = TestEnv::new(Pg::V18);
    let mut mirror = keyless(&env);
    env.sql("CREATE TABLE other (id int PRIMARY KEY); CREATE TABLE nothing (v text)");
    mirror.mirror["spec"]["tables"] = json!([{"schema": "public", "name": "t"}, {"schema": "public", "name": "other"},
        {"schema": "public", "name": "nothing"}]);
    env.command("check", &mirror, &[])
        .exits(1)
        .finds("FAILURE", "public.nothing", "replica identity")
        .says(&["REPLICA IDENTITY FULL"]);
    mirror.mirror["spec"]["tables"].as_array_mut().unwrap().pop();
    let mut run = env.streaming(&mirror);
    // A key that is added later changes nothing.
    env.sql("INSERT INTO t VALUES (1), (1); DELETE FROM t WHERE ctid = (SELECT min(ctid) FROM t); ALTER TABLE t ADD PRIMARY KEY (n); UPDATE t SET v = 'x'");
    env.settle(&mut run);
    assert_counts(&env, "t");
    run.stop();
    env.verify(&mirror);
    let mut run = env.streaming(&mirror);
    env.sql("ALTER TABLE t REPLICA IDENTITY DEFAULT; UPDATE t SET v = 'y'; INSERT INTO other VALUES (1)");
    let failure = failed_for(&mut run, "t", Reason::SourceSchemaChanged);
    assert!(failure.sql(Side::Source).contains("REPLICA IDENTITY FULL"), "{failure:?}");
    env.settle(&mut run);
    env.assert_table("other", "id", "id");
    run.stop();
    let full = "ALTER TABLE \"public\".\"t\" REPLICA IDENTITY FULL";
    env.command("check", &mirror, &[]).exits(1).says(&["it has failed", full, "copy public.t again"]);
    // Once it was run, the statement is not repeated; what the table missed still has to be copied.
    env.sql("ALTER TABLE t REPLICA IDENTITY FULL");
    let outcome = env.command("check", &mirror, &[]).exits(1);
    let report = outcome.says(&["it has failed", "the cause is gone", "copy public.t again"]).text();
    let (_, fixes) = report.split_once("To fix:").unwrap();
    assert!(!fixes.contains("REPLICA IDENTITY"), "{report}");
}

fn drop_slot(env: &TestEnv) {
    let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()";
    eventually("the slot to be dropped", || env.connect_admin().batch_execute(drop).is_ok());
}

/// A table is added while a transaction is open, so its copy waits. A second transaction commits meanwhile
/// and is not part of the stream, and as it waits for a missing synchronous standby it is still invisible
/// when the first one ends. The copy's snapshot must contain it.
#[test]
fn committed_but_not_yet_visible() {
    crate::needs_own_server!();
    let env = TestEnv::on(Server::postgres(Pg::V18, &[]).into(), Server::shared_clickhouse());
    for role in [&env.database, "postgres"] {
        env.admin(&format!("ALTER ROLE {role} SET synchronous_commit = local"));
    }
    env.hold_commits();
    env.sql("CREATE TABLE other (id int PRIMARY KEY)");
    env.streaming(&env.mirror(&["other"])).stop();
    env.sql(TABLE);
    env.sql("INSERT INTO t VALUES (1), (1)");
    let mut older = env.connect();
    older.batch_execute("BEGIN; INSERT INTO t VALUES (2)").unwrap();
    let mut run = env.run(&env.mirror(&["other", "t"]));
    run.until_status("the wait for an older transaction", |_| {
        let waiting = "SELECT count(*) FROM pg_publication_tables WHERE tablename = 't'";
        (env.source_value(waiting) == "1").then_some(())
    });
    eventually("the wait to be reported", || run.table("t")["reason"] == "WaitingForTransactions");
    let mut invisible = env.connect();
    let pid = invisible.query_one("SELECT pg_backend_pid()", &[]).unwrap().get::<_, i32>(0);
    let waits = std::thread::spawn(move || {
        invisible.batch_execute("SET synchronous_commit = on; INSERT INTO t VALUES (3), (3), (3)")
    });
    let waiting =
        format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'SyncRep'");
    eventually("the wait for the standby", || env.source_value(&waiting) == "1");
    // These commits are later in the log.
    env.sql("INSERT INTO other VALUES (1); INSERT INTO t VALUES (4)");
    eventually("the stream", || env.target_value("SELECT count() FROM other") == "1");
    older.batch_execute("COMMIT").unwrap();
    let snapshots = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_export_snapshot()%'";
    run.eventually("a snapshot", || env.source_value(snapshots) != "0");
    assert_eq!(env.target_value("SELECT count() FROM t"), "0");
    env.admin(&format!("SELECT pg_cancel_backend({pid})"));
    waits.join().unwrap().unwrap();
    run.until_streaming();
    env.settle(&mut run);
    assert_counts(&env, "t");
}

/// A copy that would block the application's ALTER TABLE gives up its snapshot, logs the reason, and starts
/// again.
#[test]
fn a_snapshot_given_up_for_alter_table() {
    let env = TestEnv::new(Pg::V18);
    let mut mirror = keyless(&env);
    env.sql("INSERT INTO t SELECT i % 50, md5(i::text), 0, 0, to_timestamp(0), '{}', repeat(md5(i::text), 20) FROM generate_series(1, 30000) i");
    let slow = Proxy::to(env.clickhouse.port);
    slow.set_bytes_per_second(Direction::ToServer, 1_000_000);
    mirror.clickhouse["spec"]["clickhouse"]["url"] = format!("http://127.0.0.1:{}", slow.port).into();
    let mut run = env.run(&mirror);
    run.until_status("the copy", |status| (status["tables"][0]["state"] == "Snapshotting").then_some(()));
    env.sql("ALTER TABLE t ADD added int");
    let started = std::time::Instant::now();
    while !run.log().contains("SourceSnapshotLost") {
        assert!(started.elapsed() < std::time::Duration::from_secs(60), "{}", run.log());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(!run.log().contains("SourceUnreachable"), "{}", run.log());
    slow.set_bytes_per_second(Direction::ToServer, 0);
    run.until_streaming();
    env.settle(&mut run);
    assert_counts(&env, "t");
}

/// Killed at random points of the copy and of the stream, while the application writes.
#[test]
fn killed_at_random() {
    let env = TestEnv::new(Pg::V18);
    let mirror = keyless(&env);
    env.sql("INSERT INTO t SELECT i % 50, 'many', i % 3, 0, to_timestamp(i % 2), '{}', NULL FROM generate_series(1, 100000) i; CREATE INDEX ON t (n)");
    static STATEMENTS: AtomicU64 = AtomicU64::new(0);
    let writers: Vec<_> = (0..2_u64)
        .map(|writer| {
            Writer::start(env.connect(), move |n| {
                STATEMENTS.fetch_add(1, Relaxed);
                application(writer << 32 | n)
            })
        })
        .collect();
    let mut numbers = Numbers(20_261_121);
    let (mut copying, mut streaming) = (0, 0);
    while copying < 2 || streaming < 2 {
        let mut run = env.run(&mirror);
        if copying < 2 {
            let rows = numbers.below(90_000);
            run.until_status("copied rows", |status| {
                (status["tables"][0]["rowsCopied"].as_u64()? >= rows).then_some(())
            });
            copying += u32::from(run.table("t")["state"] != "Streaming");
        } else {
            run.until_streaming();
            let more = STATEMENTS.load(Relaxed) + numbers.below(200);
            run.eventually("some changes", || STATEMENTS.load(Relaxed) >= more);
            streaming += 1;
        }
        run.kill();
    }
    assert!(writers.into_iter().map(Writer::finish).sum::<u64>() > 0);
    env.catch_up(&mirror);
    assert_counts(&env, "t");
    env.verify(&mirror);
}

/// Only inserts are mirrored, of a table without a key and of one with a key, while the application also
/// updates and deletes.
#[test]
fn inserts_alone() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE log (line text, n int); CREATE TABLE events (id int PRIMARY KEY, n int); CREATE TABLE other (id int PRIMARY KEY, v text);
        INSERT INTO log VALUES ('a', 1), ('a', 1), (NULL, NULL); INSERT INTO events SELECT i, 0 FROM generate_series(1, 100) i");
    let mut mirror = env.mirror(&["log", "events", "other"]);
    env.command("check", &mirror, &[]).exits(1).finds("FAILURE", "public.log", "replica identity");
    for table in 0..2 {
        mirror.table(table)["operations"] = json!(["Insert", "Truncate"]);
    }
    mirror.table(1)["engine"] = json!({"orderBy": ["n", "id"]});
    mirror.table(1)["where"] = json!("n < 9");
    env.sql("ALTER TABLE events ALTER n SET NOT NULL");
    // The publication for inserts must be older than the slot.
    let first = env.mirror(&["other"]);
    env.catch_up(&first);
    env.command("check", &mirror, &[])
        .exits(1)
        .finds("FAILURE", "source", "publication")
        .says(&["walferry.dev/resync"]);
    env.command("teardown", &first, &[]).exits(0);
    env.target("DROP TABLE other SYNC");
    env.command("check", &mirror, &[]).exits(0).finds("ok", "public.log", "replica identity");
    let run = env.streaming(&mirror);
    let application = "INSERT INTO log VALUES ('a', 1), ('b', 2); UPDATE log SET n = 3; DELETE FROM log WHERE line = 'b';
        INSERT INTO events SELECT i, 8 FROM generate_series(101, 110) i; UPDATE events SET n = 9 WHERE id < 3; DELETE FROM events WHERE id = 50;
        INSERT INTO events VALUES (200, 10); INSERT INTO other VALUES (1, 'x'), (2, 'y'); UPDATE other SET v = 'z' WHERE id = 1; DELETE FROM other WHERE id = 2";
    env.sql(application);
    run.kill();
    let mut run = env.streaming(&mirror);
    let log = "SELECT line, n, sum(_walferry_sign) FROM log FINAL GROUP BY ALL ORDER BY line NULLS LAST, n";
    assert_eq!(env.target(log), "a\t1\t3\nb\t2\t1\n\\N\t\\N\t1\n");
    let events = "SELECT min(id), max(id), count(), sum(_walferry_sign), sum(n) FROM events FINAL";
    assert_eq!(env.target(events), "1\t110\t110\t110\t80\n");
    env.assert_table("other", "id, v", "id");
    env.sql("BEGIN; INSERT INTO log VALUES ('gone'); TRUNCATE log; INSERT INTO log VALUES ('c', 4); COMMIT");
    env.settle(&mut run);
    assert_eq!(env.target(log), "c\t4\t1\n");
    // A publication that also sends updates would break the application's UPDATE, so the Mirror stalls.
    let publication = format!("{}_inserts", run.status()["publicationName"].as_str().unwrap());
    env.sql(&format!("ALTER PUBLICATION {publication} SET (publish = 'insert, update, truncate')"));
    let failure = stalled_for(&mut run, Reason::SourcePublicationChanged);
    assert!(failure.message.contains(&publication), "{failure:?}");
    run.stop();
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1"});
    env.catch_up(&mirror);
    env.sql("UPDATE log SET n = 5");
    assert_eq!(env.target(log), "c\t4\t1\n");
    assert_eq!(env.target(events), "3\t110\t107\t107\t80\n");
    env.command("teardown", &mirror, &[]).exits(0).says(&[&publication]);
    assert_eq!(env.source_value("SELECT count(*) FROM pg_publication"), "0");
}

/// Rows that move between partitions, and rows that enter and leave a filter on any column.
#[test]
fn partitions_and_filters() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (n int, v text) PARTITION BY LIST (n); CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1); CREATE TABLE t2 PARTITION OF t DEFAULT;
        ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t SELECT i % 3, 'v' FROM generate_series(1, 300) i;
        CREATE TABLE f (n int, v text); ALTER TABLE f REPLICA IDENTITY FULL; INSERT INTO f SELECT i % 3, 'v' FROM generate_series(1, 300) i");
    let mut mirror = env.mirror(&["t", "f"]);
    mirror.table(1)["where"] = json!("v <> 'hidden'");
    env.command("check", &mirror, &[])
        .exits(1)
        .finds("FAILURE", "public.t", "replica identity")
        .says(&["public.t1", "REPLICA IDENTITY FULL"]);
    env.sql("ALTER TABLE t1 REPLICA IDENTITY FULL; ALTER TABLE t2 REPLICA IDENTITY FULL");
    let mut run = env.streaming(&mirror);
    for table in ["t", "f"] {
        env.sql(&format!("UPDATE {table} SET n = 1 WHERE ctid = (SELECT min(ctid) FROM {table} WHERE n = 2); UPDATE {table} SET n = 0 WHERE n = 1;
            UPDATE {table} SET v = 'hidden' WHERE n = 0; UPDATE {table} SET v = 'back', n = 1 WHERE v = 'hidden' AND random() < 0.5"));
    }
    env.settle(&mut run);
    let counts = |table: &str, filter: &str| {
        env.assert_same(
            &format!("SELECT n, v, count(*) FROM {table} WHERE {filter} GROUP BY 1, 2 ORDER BY 1, 2"),
            &format!("SELECT n, v, sum(_walferry_sign) AS count FROM {table} FINAL GROUP BY ALL HAVING count != 0 ORDER BY 1, 2"),
        );
    };
    counts("t", "true");
    counts("f", "v <> 'hidden'");
    // The rows of an attached or detached partition are not in the stream.
    env.sql("CREATE TABLE t3 (n int, v text); ALTER TABLE t3 REPLICA IDENTITY FULL; INSERT INTO t3 SELECT 3, 'came' FROM generate_series(1, 5);
        ALTER TABLE t ATTACH PARTITION t3 FOR VALUES IN (3); INSERT INTO t VALUES (3, 'later')");
    run.eventually("the attached rows", || {
        env.target_value("SELECT sum(_walferry_sign) FROM t FINAL WHERE n = 3") == "6"
    });
    env.sql("CREATE TABLE t4 PARTITION OF t FOR VALUES IN (4); ALTER TABLE t4 REPLICA IDENTITY FULL; INSERT INTO t VALUES (4, 'new'), (4, 'new');
        ALTER TABLE t DETACH PARTITION t1; INSERT INTO t VALUES (3, 'last')");
    run.eventually("the detached rows to be removed", || {
        let of = |n| format!("sumIf(_walferry_sign, n = {n})");
        env.target(&format!("SELECT {}, {}, {} FROM t FINAL", of(1), of(3), of(4))) == "0\t7\t2\n"
    });
    run.until_streaming();
    env.settle(&mut run);
    counts("t", "true");
    run.stop();
    env.target(
        "INSERT INTO f (n, v, _walferry_version, _walferry_ordinal, _walferry_sign) VALUES (9, 'x', 1, 1, 1)",
    );
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1 public.f"});
    env.catch_up(&mirror);
    counts("t", "true");
    counts("f", "v <> 'hidden'");
    env.verify(&mirror);
}

/// Inserts that ClickHouse has stored only in some of its partitions when it is killed are completed.
#[test]
fn destination_killed() {
    crate::needs_own_server!();
    let env = TestEnv::on(Server::shared_postgres(Pg::V18), Server::clickhouse(&[]).into());
    let mut mirror = keyless(&env);
    env.sql("INSERT INTO t SELECT i % 50 FROM generate_series(1, 50000) i; CREATE INDEX ON t (n)");
    mirror.table(0)["engine"] = json!({"partitionBy": "n % 10", "settings": {"allow_nullable_key": "1"}});
    let writer = Writer::start(env.connect(), application);
    let mut run = env.run(&mirror);
    run.until_status("copied rows", |status| (status["tables"][0]["rowsCopied"].as_u64()? > 0).then_some(()));
    env.restart_clickhouse(|| {});
    run.until_streaming();
    for _ in 0..3 {
        env.sql("INSERT INTO t SELECT i % 50 FROM generate_series(1, 20000) i; DELETE FROM t WHERE n = 30");
        let rows = env.target_value("SELECT count() FROM t");
        run.eventually("some of the rows", || env.target_value("SELECT count() FROM t") != rows);
        env.restart_clickhouse(|| {});
    }
    assert!(writer.finish() > 0);
    env.settle(&mut run);
    assert_counts(&env, "t");
    env.verify(&mirror);
}
