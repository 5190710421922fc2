//! A wider type of a column reaches the target: while it is written, when walferry is killed meanwhile, and
//! without the privilege.

use serde_json::json;

use crate::support::{Pg, TestEnv, Writer};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, n smallint, d numeric(8,2), v text NOT NULL);
    INSERT INTO t SELECT i, i % 1000, i + 0.25, 'v' FROM generate_series(1, 5000) i";

/// The rewrite at the destination never ends, an application writes, and walferry is killed repeatedly:
/// readers see the new types immediately, and every row.
#[test]
fn while_the_destination_still_rewrites() {
    let env = TestEnv::new(Pg::V18);
    env.sql(TABLE);
    let mirror = env.mirror(&["t"]);
    env.catch_up(&mirror);
    env.target(&format!("SYSTEM STOP MERGES {}.t", env.database));
    let writer = Writer::start(env.connect(), |n| match n % 4 {
        0 => format!("INSERT INTO t VALUES ({}, {}, {n}.5, 'new')", 10_000 + n, n % 1000),
        1 => format!("UPDATE t SET n = n + 1, d = d + 1 WHERE id = {}", 1 + n * 7 % 5000),
        2 => format!("UPDATE t SET v = 'w{n}' WHERE id BETWEEN {0} AND {0} + 9", 1 + n * 13 % 5000),
        _ => format!("DELETE FROM t WHERE id = {}", 1 + n * 31 % 5000),
    });
    for change in [
        "ALTER TABLE t ALTER n TYPE int; UPDATE t SET n = 70000 WHERE id < 50",
        "ALTER TABLE t ALTER d TYPE numeric(14,2); UPDATE t SET d = 123456789012.5 WHERE id < 50",
        "ALTER TABLE t ALTER v DROP NOT NULL; UPDATE t SET v = NULL WHERE id < 50",
        "ALTER TABLE t ALTER n TYPE bigint, ALTER d TYPE numeric(20,3); UPDATE t SET n = 7000000000 WHERE id < 50",
    ] {
        let mut run = env.streaming(&mirror);
        let before = columns(&env);
        env.sql(change);
        run.eventually("a wider column", || columns(&env) != before);
        run.kill();
    }
    assert!(writer.finish() > 0);
    env.catch_up(&mirror);
    env.assert_same(
        "SELECT id, n, trim_scale(d), v FROM t ORDER BY id",
        "SELECT id, n, d, v FROM t FINAL WHERE _walferry_deleted = 0 ORDER BY id",
    );
    env.verify(&mirror);
    assert!(
        env.target_value(
            "SELECT count() FROM system.mutations WHERE database = currentDatabase() AND NOT is_done"
        ) != "0"
    );
    env.target(&format!("SYSTEM START MERGES {}.t", env.database));
    env.target("OPTIMIZE TABLE t FINAL");
    env.verify(&mirror);
}

fn columns(env: &TestEnv) -> String {
    env.target("SELECT name, type FROM system.columns WHERE database = currentDatabase() AND table = 't'")
}

/// The target is already wider: a process was killed before it recorded its change, or a user changed it.
#[test]
fn the_target_is_wider_already() {
    let env = TestEnv::new(Pg::V18);
    env.sql(TABLE);
    let mirror = env.mirror(&["t"]);
    env.catch_up(&mirror);
    env.target("ALTER TABLE t MODIFY COLUMN n Nullable(Int64), MODIFY COLUMN d Nullable(Decimal(20, 4)), MODIFY COLUMN v Nullable(String)");
    let mut run = env.streaming(&mirror);
    env.sql("UPDATE t SET n = -1, d = -1.25 WHERE id < 9; INSERT INTO t VALUES (9000, NULL, NULL, 'x')");
    env.settle(&mut run);
    env.sql("ALTER TABLE t ALTER n TYPE bigint, ALTER d TYPE numeric(20,4), ALTER v DROP NOT NULL; INSERT INTO t VALUES (9001, 9000000000, 1.0625, NULL)");
    env.settle(&mut run);
    run.eventually("the rows", || {
        env.source("SELECT id, n, trim_scale(d), v FROM t ORDER BY id")
            == env.target("SELECT id, n, d, v FROM t FINAL WHERE _walferry_deleted = 0 ORDER BY id")
    });
    run.until_streaming();
    run.stop();
    env.verify(&mirror);
}

/// An append-only table is never copied again: rows that the source has lost stay at the destination, and the
/// replayed log has rows of both types.
#[test]
fn where_only_inserts_are_mirrored() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE log (n smallint, r real, d numeric(8,2), v text NOT NULL, a int[]); INSERT INTO log VALUES (1, 0.1, 1.25, 'copied', '{1}')");
    let mut mirror = env.mirror(&["log"]);
    mirror.table(0)["operations"] = json!(["Insert", "Truncate"]);
    env.catch_up(&mirror);
    // Types change while walferry is stopped, then while it streams.
    env.sql("INSERT INTO log VALUES (2, 0.2, 2.25, 'down', '{2}'); DELETE FROM log WHERE n = 1; ALTER TABLE log ALTER n TYPE int, ALTER r TYPE float8, ALTER a TYPE bigint[]; INSERT INTO log VALUES (70000, 0.2, 3.25, 'down', '{8000000000}')");
    let mut run = env.streaming(&mirror);
    env.sql("INSERT INTO log VALUES (4, 0.1, 4.25, 'up', '{4}'); DELETE FROM log WHERE v = 'down'; ALTER TABLE log ALTER n TYPE bigint, ALTER d TYPE numeric(12,2), ALTER v DROP NOT NULL; INSERT INTO log VALUES (5000000000, 0.1, 5000000000.25, NULL, '{}')");
    env.settle(&mut run);
    run.until_streaming();
    let rows = "SELECT n, r, d, v, a, sum(_walferry_sign) FROM log FINAL GROUP BY ALL ORDER BY d";
    let expected = "1\t0.10000000149011612\t1.25\tcopied\t[1]\t1\n2\t0.20000000298023224\t2.25\tdown\t[2]\t1\n70000\t0.2\t3.25\tdown\t[8000000000]\t1\n\
        4\t0.1\t4.25\tup\t[4]\t1\n5000000000\t0.1\t5000000000.25\t\\N\t[]\t1\n";
    assert_eq!(env.target(rows), expected);
    run.kill();
    env.catch_up(&mirror);
    assert_eq!(env.target(rows), expected);
}

/// Without the privilege each such table fails alone, and its remedies are the statement and the grant;
/// either helps.
#[test]
fn without_the_privilege() {
    let env = TestEnv::new(Pg::V18);
    let names = ["narrow", "taking_null", "stays"];
    for name in names {
        env.sql(&TABLE.replace(" t ", &format!(" {name} ")));
    }
    let mut allowed = env.mirror(&names);
    let mut mirror = allowed.clone();
    mirror.secrets[1].1 = env.target_user("fixed").to_secret();
    env.command("check", &mirror, &[]).exits(0).says(&[
        "warning",
        "GRANT ALTER MODIFY COLUMN ON",
        "wider type",
    ]);
    let mut run = env.streaming(&mirror);
    // The privilege isn't needed until a NULL arrives.
    env.sql("ALTER TABLE stays ALTER v DROP NOT NULL; ALTER TABLE narrow ALTER n TYPE int; ALTER TABLE taking_null ALTER v DROP NOT NULL;
        UPDATE stays SET n = 7 WHERE id < 9; INSERT INTO narrow VALUES (6000, 70000, 1.25, 'x'); UPDATE taking_null SET v = NULL WHERE id = 1");
    for (name, statement) in [
        ("narrow", "MODIFY COLUMN `n` Nullable(Int32)"),
        ("taking_null", "MODIFY COLUMN `v` Nullable(String)"),
    ] {
        let message = run.until_failed(name);
        for words in [statement, "necessary to have the grant ALTER MODIFY COLUMN", "walferry.dev/resync"] {
            assert!(message.contains(words), "{message}");
        }
    }
    env.settle(&mut run);
    env.assert_table("stays", "id, n, d, v", "id");
    let steps = run.advice("narrow");
    run.stop();
    env.target(steps[0].strip_prefix("run at the destination: ").unwrap());
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1 public.narrow"});
    // The other table still fails.
    env.command("run", &mirror, &["--until-caught-up", "--http", "127.0.0.1:0"])
        .exits(1)
        .says(&["taking_null"]);
    env.assert_table("narrow", "id, n, d, v", "id");
    allowed.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "2 public.taking_null"});
    env.catch_up(&allowed);
    env.assert_table("taking_null", "id, n, d, v", "id");
    env.verify(&allowed);
}

/// A user makes columns of targets narrower while their tables stream: each table fails alone with the
/// statement that undoes it, before wrong values are stored; a column that only lost NULL gets it back.
#[test]
fn a_column_that_is_made_narrower() {
    let env = TestEnv::new(Pg::V18);
    env.sql(
        "CREATE TABLE numbers (id int PRIMARY KEY, n bigint); CREATE TABLE texts (id int PRIMARY KEY, v text NOT NULL); CREATE TABLE moments (id int PRIMARY KEY, at timestamptz);
        CREATE TABLE nulls (id int PRIMARY KEY, n bigint); CREATE TABLE stays (id int PRIMARY KEY); INSERT INTO numbers VALUES (1, 5000000000); INSERT INTO texts VALUES (1, 'abc');
        INSERT INTO moments VALUES (1, '2026-01-02 03:04:05.678901+00'); INSERT INTO nulls VALUES (1, 1)",
    );
    let tables = ["numbers", "texts", "moments", "nulls", "stays"];
    let mut mirror = env.mirror(&tables);
    let mut run = env.streaming(&mirror);
    env.target("ALTER TABLE numbers MODIFY COLUMN n Nullable(Int32)");
    env.target("ALTER TABLE texts MODIFY COLUMN v FixedString(3)");
    env.target("ALTER TABLE moments MODIFY COLUMN at Nullable(DateTime64(3, 'UTC'))");
    env.target("ALTER TABLE nulls MODIFY COLUMN n Int64 DEFAULT 0");
    env.sql("INSERT INTO stays VALUES (1); INSERT INTO numbers VALUES (2, 6000000000)");
    let statement = |message: String| {
        let from = message.find("ALTER TABLE").unwrap_or_else(|| panic!("no statement in {message}"));
        let whole = &message[from..];
        whole[..whole.find(", or ").or_else(|| whole.find("; then ")).unwrap()].to_owned()
    };
    let undo: Vec<String> = ["numbers", "texts", "moments"]
        .map(|table| {
            let message = run.until_failed(table);
            assert_eq!(run.table(table)["reason"], "DestinationTableConflict", "{message}");
            statement(message)
        })
        .to_vec();
    assert!(undo[0].ends_with("MODIFY COLUMN `n` Nullable(Int64)"), "{undo:?}");
    assert!(undo[1].ends_with("DROP COLUMN `v`") && undo[2].ends_with("DROP COLUMN `at`"), "{undo:?}");
    let type_of = "SELECT type FROM system.columns WHERE database = currentDatabase() AND table = 'nulls' AND name = 'n'";
    run.eventually("room for NULL", || env.target_value(type_of) == "Nullable(Int64)");
    env.sql("INSERT INTO nulls VALUES (2, NULL); INSERT INTO stays VALUES (2); INSERT INTO moments VALUES (2, '2026-01-02 03:04:05.000001+00')");
    env.settle(&mut run);
    run.stop();
    for statement in undo {
        env.target(&statement);
    }
    mirror.mirror["metadata"]["annotations"] =
        serde_json::json!({"walferry.dev/resync": "1 public.numbers public.texts public.moments"});
    env.catch_up(&mirror);
    env.assert_table("numbers", "id, n", "id");
    env.assert_table("texts", "id, v", "id");
    env.assert_table("nulls", "id, n", "id");
    env.assert_table("stays", "id", "id");
    env.verify(&mirror);
}
