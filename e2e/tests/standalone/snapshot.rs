//! Copying existing rows.

use serde_json::json;

use std::time::{Duration, Instant};

use crate::{
    on_both,
    support::{Direction, Pg, Proxy, TestEnv, Writer, eventually},
};

/// Tables of every shape: empty, one row, many blocks, other kinds of keys, odd names, partitions, another
/// schema.
fn tables_of_every_shape(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql(
        r#"CREATE TABLE empty (id int PRIMARY KEY);
        CREATE TABLE one (id text PRIMARY KEY, v text); INSERT INTO one VALUES ('it''s', 'x');
        CREATE TABLE many (id bigint PRIMARY KEY, v text, n int);
        INSERT INTO many SELECT i, repeat('v', 50), i % 7 FROM generate_series(1, 40000) i;
        DELETE FROM many WHERE id % 10 = 0; UPDATE many SET n = n + 1 WHERE id % 13 = 0;
        CREATE TABLE pairs (a text, b int, c uuid, v int, PRIMARY KEY (b, a, c));
        INSERT INTO pairs SELECT 'a' || i % 10, i, md5(i::text)::uuid, i FROM generate_series(1, 500) i;
        CREATE TABLE "Task Run" ("Id" int PRIMARY KEY, "it's ""odd"" `here`" text, "select" int);
        INSERT INTO "Task Run" VALUES (1, 'x', 2);
        CREATE TABLE parts (id int, region text, v text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
        CREATE TABLE parts_eu PARTITION OF parts FOR VALUES IN ('eu');
        CREATE TABLE parts_us (v text, region text NOT NULL, id int NOT NULL);
        ALTER TABLE parts ATTACH PARTITION parts_us FOR VALUES IN ('us');
        INSERT INTO parts SELECT i, CASE WHEN i % 2 = 0 THEN 'eu' ELSE 'us' END, 'v' || i FROM generate_series(1, 1000) i;
        CREATE SCHEMA shop; CREATE TABLE shop.orders (id int PRIMARY KEY, total numeric(8,2));
        INSERT INTO shop.orders VALUES (1, 9.99);"#,
    );
    let mut mirror = env.mirror(&["empty", "one", "many", "pairs", "Task Run", "parts"]);
    let tables = mirror.mirror["spec"]["tables"].as_array_mut().unwrap();
    tables.push(json!({"schema": "shop", "name": "orders", "target": {"table": "shop_orders"}}));
    let mut run = env.streaming(&mirror);
    let many = run.table("many");
    assert_eq!((&many["state"], &many["rowsCopied"]), (&json!("Streaming"), &json!(36000)), "{many}");
    env.assert_table("empty", "id", "id");
    env.assert_table("one", "id, v", "id");
    env.assert_table("many", "id, v, n", "id");
    env.assert_table("pairs", "a, b, c, v", "b");
    env.assert_same(
        r#"SELECT "Id", "it's ""odd"" `here`", "select" FROM "Task Run""#,
        r"SELECT `Id`, `it's \u0022odd\u0022 \`here\``, `select` FROM `Task Run` FINAL"
            .replace("\\u0022", "\"")
            .as_str(),
    );
    env.assert_table("parts", "id, region, v", "id");
    env.assert_same("SELECT id, total FROM shop.orders", "SELECT id, total FROM shop_orders FINAL");
    env.sql(
        r#"UPDATE parts SET region = 'us' WHERE id = 2; UPDATE "Task Run" SET "select" = 3; INSERT INTO empty VALUES (1);
        DELETE FROM parts WHERE id = 3; INSERT INTO shop.orders VALUES (2, 1); DELETE FROM one"#,
    );
    env.settle(&mut run);
    env.assert_table("parts", "id, region, v", "id");
    env.assert_table("empty", "id", "id");
    env.assert_table("one", "id, v", "id");
    assert_eq!(env.target("SELECT `select` FROM `Task Run` FINAL"), "3\n");
    run.stop();
    env.verify(&mirror);
}

/// Rows are updated, inserted, deleted and get other keys while the copy runs.
fn while_the_application_writes(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql(
        "CREATE TABLE t (id int PRIMARY KEY, v text, n int NOT NULL DEFAULT 0);
        INSERT INTO t SELECT i, repeat('x', 200), 0 FROM generate_series(1, 60000) i",
    );
    let writer = Writer::start(env.connect(), |n| {
        let low = (n * 7919) % 60000;
        format!(
            "UPDATE t SET n = n + 1, v = repeat('y', {}) WHERE id BETWEEN {low} AND {low} + 50;
             DELETE FROM t WHERE id = {low}; INSERT INTO t VALUES ({}, 'new', {n}) ON CONFLICT DO NOTHING;
             UPDATE t SET id = -id WHERE id = {low} + 3 AND NOT EXISTS (SELECT FROM t WHERE id = -({low} + 3))",
            n % 400,
            100_000 + n
        )
    });
    let mirror = env.mirror(&["t"]);
    let mut run = env.run(&mirror);
    run.until_streaming();
    assert!(writer.finish() > 0);
    env.settle(&mut run);
    env.assert_table("t", "id, v, n", "id");
    run.stop();
    env.verify(&mirror);
}

/// The application alters a table while it is copied to a slow, then hanging destination: the statement, and
/// those after it, wait for seconds at most.
fn locks_nobody_out(pg: Pg) {
    let env = TestEnv::new(pg);
    let rows = "SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, 30000) i";
    env.sql(&format!(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t {rows};
         CREATE TABLE log (id int, v text); ALTER TABLE log REPLICA IDENTITY FULL; INSERT INTO log {rows}"
    ));
    let target = Proxy::to(env.clickhouse.port);
    for (table, column) in [("t", "x"), ("log", "y")] {
        let mut mirror = env.mirror(&[table]);
        mirror.mirror["metadata"]["name"] = json!(format!("only-{table}"));
        mirror.clickhouse["spec"]["clickhouse"]["url"] = json!(format!("http://127.0.0.1:{}", target.port));
        target.set_bytes_per_second(Direction::ToServer, 1 << 20);
        let mut run = env.run(&mirror);
        run.eventually("copied rows", || run_copied(&env, table));
        for (number, frozen) in [false, true].into_iter().enumerate() {
            target.set_frozen(Direction::ToServer, frozen);
            std::thread::sleep(Duration::from_secs(3));
            let began = Instant::now();
            env.sql(&format!("ALTER TABLE {table} ADD {column}{number} int; SELECT count(*) FROM {table}"));
            assert!(began.elapsed() < Duration::from_secs(6), "{table} was locked for {:?}", began.elapsed());
        }
        target.set_bytes_per_second(Direction::ToServer, 0);
        target.set_frozen(Direction::ToServer, false);
        env.sql(&format!(
            "UPDATE {table} SET {column}1 = 1 WHERE id % 100 = 0; DELETE FROM {table} WHERE id % 100 = 1"
        ));
        run.until_streaming();
        env.settle(&mut run);
        env.verify(&mirror);
        run.stop();
    }
}

/// Whether the copy is in progress.
fn run_copied(env: &TestEnv, table: &str) -> bool {
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'COPY (%' AND state = 'active'";
    env.source_value(waits) != "0"
        || env
            .clickhouse
            .try_query(&env.database, &format!("SELECT count() FROM {table}"))
            .is_ok_and(|count| count.trim() != "0")
}

on_both!(locks_nobody_out, tables_of_every_shape, while_the_application_writes);

/// After kill -9 the copy continues where it was, and copied chunks are not copied again.
#[test]
fn resumes_where_it_was_killed() {
    let env = TestEnv::new(Pg::V18);
    // About 80 MB, so that the copy takes long enough to be killed.
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v text); ALTER TABLE t ALTER v SET STORAGE PLAIN");
    env.sql("INSERT INTO t SELECT i, repeat(md5(i::text), 40) FROM generate_series(1, 60000) i");
    let mut mirror = env.mirror(&["t"]);
    mirror.mirror["spec"]["snapshot"] = json!({"mode": "Initial", "parallelism": 1});
    let mut run = env.run(&mirror);
    let copied = run.until_status("some rows to be copied, not all", |status| {
        status["tables"][0]["rowsCopied"].as_u64().filter(|rows| *rows > 0)
    });
    run.kill();
    assert!(copied < 60_000, "the copy was complete before the kill");
    let before = env.target_value("SELECT count() FROM t");
    let mut run = env.streaming(&mirror);
    assert_eq!(env.target_value("SELECT count() FROM t FINAL"), "60000");
    // Before the kill whole chunks were durable; at most the unfinished chunks are copied twice.
    let inserted: u64 = run.table("t")["rowsCopied"].as_u64().unwrap();
    assert!(inserted <= 60_000, "{inserted} rows copied, {before} were there");
    run.stop();
    env.verify(&mirror);
}

#[test]
fn mode_never_streams_only() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'old'), (2, 'old')");
    let mut mirror = env.mirror(&["t"]);
    mirror.mirror["spec"]["snapshot"] = json!({"mode": "Never"});
    let mut run = env.streaming(&mirror);
    env.sql("INSERT INTO t VALUES (3, 'new'); UPDATE t SET v = 'changed' WHERE id = 2");
    env.settle(&mut run);
    assert_eq!(env.target("SELECT id, v FROM t FINAL ORDER BY id"), "2\tchanged\n3\tnew\n");
}

#[test]
fn mode_initial_only_copies_and_ends() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 1000)");
    let mut mirror = env.mirror(&["t"]);
    mirror.mirror["spec"]["snapshot"] = json!({"mode": "InitialOnly"});
    let (code, _) = env.run(&mirror).ended();
    assert_eq!(code, Some(0));
    env.assert_table("t", "id", "id");
}

/// `where`, `exclude`, `rename`, `orderBy`, `partitionBy`, `settings` and `target` hold for copied and
/// streamed rows.
#[test]
fn choices_of_columns_rows_and_engine() {
    let env = TestEnv::new(Pg::V18);
    env.sql(
        r#"CREATE TABLE "TaskRun" (id int, org int NOT NULL, "createdAt" timestamptz NOT NULL, secret text, payload jsonb, gen int GENERATED ALWAYS AS (id * 2) STORED,
            PRIMARY KEY (id, org));
        INSERT INTO "TaskRun" SELECT i, i % 3, '2024-01-01'::timestamptz + i * interval '1 day', 'hush', '{}' FROM generate_series(1, 90) i"#,
    );
    let mut mirror = env.mirror(&["TaskRun"]);
    *mirror.table(0) = json!({"schema": "public", "name": "TaskRun", "target": {"table": "task_runs"}, "where": "org <> 0",
        "columns": {"exclude": ["secret"], "rename": {"createdAt": "created_at"}, "types": {"payload": "JSON"}},
        "engine": {"orderBy": ["org", "id"], "settings": {"index_granularity": "4096"}}});
    let mut run = env.streaming(&mirror);
    env.sql(
        r#"INSERT INTO "TaskRun" VALUES (100, 0, now(), 'hush', '{}'), (101, 1, '2024-07-01 00:00:00Z', 'hush', '{"a": 1}');
        UPDATE "TaskRun" SET org = 0 WHERE id = 1; UPDATE "TaskRun" SET org = 2 WHERE id = 3; UPDATE "TaskRun" SET secret = 'x' WHERE id = 4"#,
    );
    env.settle(&mut run);
    env.assert_same(
        r#"SELECT id, org, extract(epoch FROM "createdAt")::bigint FROM "TaskRun" WHERE org <> 0 ORDER BY id"#,
        "SELECT id, org, toInt64(toUnixTimestamp64Second(created_at)) FROM task_runs FINAL WHERE _walferry_deleted = 0 ORDER BY id",
    );
    let columns = "SELECT name, type FROM system.columns WHERE database = currentDatabase() AND table = 'task_runs' ORDER BY position FORMAT TSVRaw";
    let columns = env.target(columns);
    assert!(
        !columns.contains("secret") && !columns.contains("gen\t") && columns.contains("created_at\t"),
        "{columns}"
    );
    assert!(columns.contains("payload\tJSON") || columns.contains("payload\tNullable(JSON)"), "{columns}");
    let made = env.target("SHOW CREATE TABLE task_runs FORMAT TSVRaw");
    for part in [
        "ORDER BY (org, id)",
        "index_granularity = 4096",
        "ReplacingMergeTree(_walferry_version, _walferry_deleted)",
    ] {
        assert!(made.contains(part), "{part} not in {made}");
    }
    run.stop();
    env.verify(&mirror);
}

/// Partition key and TTL are ClickHouse expressions over the target's columns.
#[test]
fn partitions_and_time_to_live() {
    let env = TestEnv::new(Pg::V18);
    env.sql(
        "CREATE TABLE t (id int, at timestamptz, PRIMARY KEY (id, at));
        INSERT INTO t SELECT i, now() - i * interval '10 days' FROM generate_series(1, 20) i",
    );
    let mut mirror = env.mirror(&["t"]);
    mirror.table(0)["engine"] =
        json!({"partitionBy": "toYYYYMM(at)", "ttl": "toDateTime(at) + INTERVAL 10 YEAR"});
    env.catch_up(&mirror);
    let made = env.target("SHOW CREATE TABLE t FORMAT TSVRaw");
    assert!(made.contains("PARTITION BY (toYYYYMM(at))") && made.contains("TTL "), "{made}");
    assert_eq!(env.target_value("SELECT count() FROM t FINAL"), "20");
}

/// VACUUM FULL moves rows that are not copied yet into blocks that are, as CLUSTER does.
#[test]
fn rewritten_while_it_is_copied() {
    while_it_is_copied(1, "DELETE FROM t WHERE id % 3 = 0", "VACUUM FULL t");
}

#[test]
fn truncated_while_it_is_copied() {
    let refill = "INSERT INTO t SELECT i, 'after' FROM generate_series(1, 100) i";
    while_it_is_copied(2, "", &format!("BEGIN; TRUNCATE t; {refill}; COMMIT"));
}

/// Both sides are equal although `meanwhile` runs in the middle of the copy of 60,000 wide rows.
fn while_it_is_copied(parallelism: i32, prepare: &str, meanwhile: &str) {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v text); ALTER TABLE t ALTER v SET STORAGE PLAIN");
    env.sql("INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 60000) i");
    env.sql(prepare);
    let mut mirror = env.mirror(&["t"]);
    mirror.mirror["spec"]["snapshot"] = json!({"parallelism": parallelism});
    let mut run = env.run(&mirror);
    run.until_status("the copy to begin", |status| {
        status["tables"][0]["rowsCopied"].as_u64().filter(|rows| *rows > 0)
    });
    env.sql(meanwhile);
    run.until_streaming();
    env.settle(&mut run);
    env.assert_table("t", "id, v", "id");
    run.stop();
    env.verify(&mirror);
}

/// After ADD COLUMN with a constant default the old rows store no value, but PostgreSQL returns the default.
#[test]
fn missing_values_of_added_columns() {
    let env = TestEnv::new(Pg::V18);
    env.sql(
        "CREATE TABLE t (id int PRIMARY KEY, gone int); INSERT INTO t VALUES (1, 1), (2, 2);
        ALTER TABLE t ADD a text DEFAULT 'it''s', ADD b numeric(6,2) DEFAULT 1.5, ADD c int NOT NULL DEFAULT 7; ALTER TABLE t DROP gone;
        INSERT INTO t VALUES (3, 'x', 0, 0)",
    );
    env.catch_up(&env.mirror(&["t"]));
    env.assert_same(
        "SELECT id, a, trim_scale(b), c FROM t ORDER BY id",
        "SELECT id, a, b, c FROM t FINAL ORDER BY id",
    );
}

/// A table that is added to the file is copied while the others stream; one that is removed stops.
#[test]
fn tables_are_added_and_removed() {
    let env = TestEnv::new(Pg::V18);
    env.sql(
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY);
        INSERT INTO a VALUES (1); INSERT INTO b VALUES (1)",
    );
    env.catch_up(&env.mirror(&["a"]));
    env.sql("INSERT INTO a VALUES (2); INSERT INTO b VALUES (2)");
    let both = Mirrors { env: &env };
    both.expect(&["a", "b"], "1\n2\n", "1\n2\n");
    env.sql("INSERT INTO a VALUES (3); INSERT INTO b VALUES (3)");
    both.expect(&["b"], "1\n2\n", "1\n2\n3\n");
}

struct Mirrors<'a> {
    env: &'a TestEnv,
}

impl Mirrors<'_> {
    fn expect(&self, tables: &[&str], a: &str, b: &str) {
        self.env.catch_up(&self.env.mirror(tables));
        assert_eq!(self.env.target("SELECT id FROM a FINAL ORDER BY id"), a);
        assert_eq!(self.env.target("SELECT id FROM b FINAL ORDER BY id"), b);
    }
}

/// A transaction that wrote to a table before it was added to a running slot, and commits later, is not lost.
#[test]
fn a_transaction_that_is_open_when_a_table_is_added() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)");
    env.catch_up(&env.mirror(&["a"]));
    let mut open = env.connect();
    open.batch_execute("BEGIN; INSERT INTO b VALUES (1)").unwrap();
    let mirror = env.mirror(&["a", "b"]);
    let mut run = env.run(&mirror);
    // The table waits for that transaction, which its reason shows.
    run.until_status("the wait to be reported", |status| {
        let tables = status["tables"].as_array()?;
        let b = tables.iter().find(|table| table["name"] == "b")?;
        (b["reason"] == "WaitingForTransactions").then_some(())
    });
    env.sql("INSERT INTO a VALUES (1)");
    eventually("the other table to continue", || env.target("SELECT id FROM a FINAL") == "1\n");
    open.batch_execute("COMMIT").unwrap();
    run.until_streaming();
    env.settle(&mut run);
    assert_eq!(env.target("SELECT id FROM b FINAL"), "1\n");
}

/// Timeouts that a role or database has for the application end neither a long copy nor the stream of a long
/// transaction.
#[test]
fn timeouts_of_the_role_end_nothing() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, repeat('x', 300) FROM generate_series(1, 80000) i");
    let database = &env.database;
    for limit in ["transaction_timeout", "statement_timeout", "idle_in_transaction_session_timeout"] {
        env.admin(&format!("ALTER ROLE {database} SET {limit} = '150ms'"));
    }
    env.admin(&format!("ALTER DATABASE {database} SET idle_session_timeout = '150ms'"));
    let mut run = env.streaming(&env.mirror(&["t"]));
    env.admin("UPDATE t SET v = v || id; INSERT INTO t SELECT -i, 'y' FROM generate_series(1, 40000) i");
    env.settle(&mut run);
    env.assert_same(
        "SELECT count(*), sum(id), sum(length(v)) FROM t",
        "SELECT count(), sum(id), sum(length(v)) FROM t FINAL WHERE _walferry_deleted = 0",
    );
    let log = run.log();
    assert!(!log.contains("timeout") && !log.contains(" reason="), "a timeout ended something: {log}");
    run.stop();
}
