//! Partitioned tables: rows in leaves of every shape, and partitions that are added and removed.

use serde_json::json;
use walferry::fault::{Reason, Remedy, Side};

use crate::{
    on_both,
    support::{Pg, Run, TestEnv, failed_for},
};

/// Three levels: leaves with another column order, with dropped columns, in another schema, and a default
/// partition.
const TREE: &str = "CREATE SCHEMA old;
    CREATE TABLE t (region text NOT NULL, id int NOT NULL, at date NOT NULL, v text, PRIMARY KEY (id, region, at)) PARTITION BY LIST (region);
    CREATE TABLE t_eu PARTITION OF t FOR VALUES IN ('eu') PARTITION BY RANGE (at);
    CREATE TABLE t_eu_23 PARTITION OF t_eu FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
    CREATE TABLE old.t_eu_22 (v text, gone int, at date NOT NULL, id int NOT NULL, region text NOT NULL);
    ALTER TABLE old.t_eu_22 DROP gone; ALTER TABLE t_eu ATTACH PARTITION old.t_eu_22 FOR VALUES FROM ('2022-01-01') TO ('2023-01-01');
    CREATE TABLE t_us (at date NOT NULL, v text, id int NOT NULL, region text NOT NULL);
    ALTER TABLE t ATTACH PARTITION t_us FOR VALUES IN ('us');
    CREATE TABLE t_rest PARTITION OF t DEFAULT;
    INSERT INTO t SELECT (ARRAY['eu', 'us', 'asia'])[1 + i % 3], i, '2022-06-01'::date + i % 500, 'v' || i FROM generate_series(1, 300) i;
    CREATE TABLE bystander (id int PRIMARY KEY)";

const COLUMNS: &str = "region, id, at, v";

/// Waits until both sides are equal and every table streams again.
#[track_caller]
fn equal(env: &TestEnv, run: &mut Run, what: &str) {
    env.settle(run);
    run.eventually(what, || {
        let target =
            format!("SELECT {COLUMNS} FROM t FINAL WHERE _walferry_deleted = 0 ORDER BY id, region, at");
        env.source(&format!("SELECT {COLUMNS} FROM t ORDER BY id, region, at")) == env.target(&target)
    });
    run.until_streaming();
}

fn rows_of_every_leaf(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql(TREE);
    let mirror = env.mirror(&["t", "bystander"]);
    let mut run = env.streaming(&mirror);
    // Rows move between leaves of both levels, by a changed partition key and by a changed key; some are
    // deleted in the leaf that they moved to.
    env.sql(
        "INSERT INTO t SELECT (ARRAY['eu', 'us', 'asia'])[1 + i % 3], i, '2022-06-01'::date + i % 500, 'w' || i FROM generate_series(301, 600) i;
        UPDATE t SET region = 'us' WHERE region = 'eu' AND id % 2 = 0; UPDATE t SET at = '2023-05-05' WHERE region = 'eu' AND at < '2023-01-01';
        UPDATE t SET region = 'mars', id = id + 1000 WHERE id % 7 = 0; DELETE FROM t WHERE region = 'us' AND id % 4 = 0;
        UPDATE t_us SET v = 'direct' WHERE id % 6 = 0; DELETE FROM old.t_eu_22; INSERT INTO t_rest VALUES ('asia', 9999, '2022-01-01', 'direct')",
    );
    equal(&env, &mut run, "the rows of all leaves");
    env.sql("TRUNCATE t; INSERT INTO t VALUES ('eu', 1, '2022-01-01', 'after')");
    equal(&env, &mut run, "TRUNCATE of the whole table");
    run.stop();
    env.verify(&mirror);
}

/// ATTACH, DETACH and DROP of a partition are not in the stream, so walferry has to find them in the catalog.
fn partitions_come_and_go(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql(TREE);
    let mirror = env.mirror(&["t", "bystander"]);
    let mut run = env.streaming(&mirror);
    env.sql("CREATE TABLE t_sa PARTITION OF t FOR VALUES IN ('sa'); INSERT INTO t VALUES ('sa', 1, '2022-01-01', 'new')");
    equal(&env, &mut run, "a new partition");
    // The attached partition has existing rows, whose keys were deleted from the table before.
    env.sql(
        "CREATE TABLE t_af (LIKE t INCLUDING ALL); INSERT INTO t_af SELECT 'af', i, '2022-01-01', 'attached' FROM generate_series(1, 2000) i;
        INSERT INTO t SELECT 'af', i, '2022-01-01', 'before' FROM generate_series(1, 100) i; DELETE FROM t WHERE region = 'af'",
    );
    env.sql("ALTER TABLE t ATTACH PARTITION t_af FOR VALUES IN ('af'); UPDATE t SET v = 'changed' WHERE region = 'af' AND id < 10; DELETE FROM t WHERE region = 'af' AND id = 11");
    equal(&env, &mut run, "an attached partition with rows");
    let copied = run.table("t")["rowsCopied"].as_u64().unwrap();
    assert!(copied <= 2000, "only the attached partition is copied: {copied}");
    env.sql("ALTER TABLE t DETACH PARTITION t_af; INSERT INTO t VALUES ('asia', 7777, '2022-01-01', 'x')");
    equal(&env, &mut run, "a detached partition");
    env.sql("ALTER TABLE t ATTACH PARTITION t_af FOR VALUES IN ('af'); INSERT INTO t VALUES ('asia', 7778, '2022-01-01', 'x')");
    equal(&env, &mut run, "the same partition again");
    // No row follows that would make walferry read the catalog.
    env.sql("TRUNCATE t_us; DROP TABLE t_eu");
    equal(&env, &mut run, "TRUNCATE of a leaf, and a dropped partition with partitions of its own");
    run.stop();
    env.verify(&mirror);
}

on_both!(
    rows_of_every_leaf,
    partitions_come_and_go,
    a_partition_that_was_away,
    short_lived_partitions,
    a_partition_that_was_away_while_it_is_down,
    partitions_with_another_identity,
    partitions_below_a_mirrored_table
);

/// Partitions change while walferry is stopped, and so do the columns of all leaves.
#[test]
fn while_it_is_down() {
    let env = TestEnv::new(Pg::V18);
    env.sql(TREE);
    let mirror = env.mirror(&["t", "bystander"]);
    for change in [
        "ALTER TABLE t DETACH PARTITION t_us; UPDATE t SET v = 'x' WHERE id < 20",
        "ALTER TABLE t ATTACH PARTITION t_us FOR VALUES IN ('us'); DELETE FROM t WHERE region = 'us' AND id < 20",
        "TRUNCATE t_rest; INSERT INTO t VALUES ('asia', 5, '2022-01-01', 'after')",
        "ALTER TABLE t ALTER v TYPE text USING v || '!'; INSERT INTO t VALUES ('asia', 6, '2022-01-01', 'after')",
        "ALTER TABLE t DROP v, ADD v text DEFAULT 'again'; INSERT INTO t VALUES ('asia', 7, '2022-01-01', 'last')",
    ] {
        env.catch_up(&mirror);
        env.sql(change);
        env.catch_up(&mirror);
        env.assert_table("t", COLUMNS, "id, region, at");
        env.verify(&mirror);
    }
}

/// Changes of a partition while it is detached are not in the stream, and afterwards every OID and every file
/// is the one from before.
const AWAY: [&str; 4] = [
    "BEGIN; ALTER TABLE t DETACH PARTITION t_us; UPDATE t_us SET v = 'away' WHERE id % 2 = 0; DELETE FROM t_us WHERE id % 5 = 0; INSERT INTO t_us VALUES ('2022-01-01', 'new', 7000, 'us');
        ALTER TABLE t ATTACH PARTITION t_us FOR VALUES IN ('us'); COMMIT",
    "ALTER TABLE t DETACH PARTITION t_us; UPDATE t_us SET v = 'apart' WHERE id % 3 = 0; ALTER TABLE t ATTACH PARTITION t_us FOR VALUES IN ('us')",
    // An intermediate table is detached: the links of its own partitions stay.
    "BEGIN; ALTER TABLE t DETACH PARTITION t_eu; DELETE FROM t_eu WHERE id % 4 = 0; ALTER TABLE t ATTACH PARTITION t_eu FOR VALUES IN ('eu'); COMMIT",
    // The partition is attached again at another place in the tree.
    "BEGIN; ALTER TABLE t_eu DETACH PARTITION old.t_eu_22; UPDATE old.t_eu_22 SET region = 'mars', v = 'moved'; ALTER TABLE t ATTACH PARTITION old.t_eu_22 FOR VALUES IN ('mars'); COMMIT",
];

fn a_partition_that_was_away(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql(TREE);
    let mirror = env.mirror(&["t", "bystander"]);
    let mut run = env.streaming(&mirror);
    for change in AWAY {
        env.sql(change);
        equal(&env, &mut run, change);
    }
    run.stop();
    env.verify(&mirror);
}

fn a_partition_that_was_away_while_it_is_down(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql(TREE);
    let mirror = env.mirror(&["t", "bystander"]);
    env.catch_up(&mirror);
    for change in AWAY {
        env.sql(change);
        env.catch_up(&mirror);
        env.assert_table("t", COLUMNS, "id, region, at");
    }
    env.verify(&mirror);
}

/// Partitions whose rows are in the stream, but which are gone when walferry reads the catalog for the first
/// time.
const SHORT_LIVED: [&str; 3] = [
    "CREATE TABLE t_x PARTITION OF t FOR VALUES IN ('x'); INSERT INTO t SELECT 'x', i, '2022-01-01', 'x' FROM generate_series(1, 50) i; DROP TABLE t_x",
    "CREATE TABLE t_y PARTITION OF t FOR VALUES IN ('y'); INSERT INTO t SELECT 'y', i, '2022-01-01', 'x' FROM generate_series(1, 50) i; ALTER TABLE t DETACH PARTITION t_y",
    "CREATE TABLE t_z PARTITION OF t FOR VALUES IN ('z'); INSERT INTO t VALUES ('z', 1, '2022-01-01', 'x'); TRUNCATE t_z; INSERT INTO t VALUES ('z', 2, '2022-01-01', 'y')",
];

fn short_lived_partitions(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql(TREE);
    let mirror = env.mirror(&["t", "bystander"]);
    let mut run = env.streaming(&mirror);
    let change = |statements: &str| {
        let mut application = env.connect();
        statements.split("; ").for_each(|statement| application.batch_execute(statement).unwrap());
    };
    for statements in SHORT_LIVED {
        change(statements);
        equal(&env, &mut run, statements);
    }
    run.stop();
    env.sql("DROP TABLE t_y, t_z");
    for statements in SHORT_LIVED {
        change(statements);
        let mut run = env.run(&mirror);
        equal(&env, &mut run, statements);
        run.stop();
    }
    env.verify(&mirror);
}

/// A new partition of a table without a key has no replica identity, which makes the application's DELETE
/// fail. walferry ends that within seconds.
#[test]
fn a_partition_without_identity() {
    let env = TestEnv::new(Pg::V18);
    env.sql(
        "CREATE TABLE log (day date, line text) PARTITION BY LIST (day); ALTER TABLE log REPLICA IDENTITY FULL; CREATE TABLE bystander (id int PRIMARY KEY);
        CREATE TABLE log_1 PARTITION OF log FOR VALUES IN ('2027-01-01'); ALTER TABLE log_1 REPLICA IDENTITY FULL",
    );
    let mirror = env.mirror(&["log", "bystander"]);
    env.command("check", &mirror, &[]).exits(0).finds("warning", "public.log", "replica identity");
    let mut run = env.streaming(&mirror);
    env.sql("CREATE TABLE log_2 PARTITION OF log FOR VALUES IN ('2027-01-02'); INSERT INTO log VALUES ('2027-01-02', 'x')");
    let (started, mut application) = (std::time::Instant::now(), env.connect());
    run.eventually("DELETE to work again", || {
        application.batch_execute("DELETE FROM log WHERE line = 'x'").is_ok()
    });
    assert!(started.elapsed().as_secs() < 5, "DELETE failed for {:?}", started.elapsed());
    let failure = failed_for(&mut run, "log", Reason::SourceReplicaIdentityMissing);
    failure.resyncs_only("log");
    assert!(failure.message.contains("log_2"), "{failure:?}");
    run.stop();
}

/// A partition is attached or truncated while the table is copied, by one worker so that the copy is slow.
#[test]
fn while_it_is_copied() {
    let env = TestEnv::new(Pg::V18);
    env.sql(
        "CREATE TABLE t (region text, id int, at date DEFAULT '2022-01-01', v text, PRIMARY KEY (id, region, at)) PARTITION BY LIST (region);
        CREATE TABLE t_a PARTITION OF t FOR VALUES IN ('a'); CREATE TABLE t_b PARTITION OF t FOR VALUES IN ('b'); ALTER TABLE t ALTER v SET STORAGE PLAIN;
        INSERT INTO t SELECT CASE WHEN i % 2 = 0 THEN 'a' ELSE 'b' END, i, '2022-01-01', repeat('x', 500) FROM generate_series(1, 60000) i;
        CREATE TABLE t_c (LIKE t INCLUDING ALL); INSERT INTO t_c SELECT 'c', i, '2022-01-01', 'attached' FROM generate_series(1, 100) i",
    );
    let mut mirror = env.mirror(&["t"]);
    mirror.mirror["spec"]["snapshot"] = json!({"parallelism": 1});
    let mut run = env.run(&mirror);
    run.until_status("the copy to begin", |status| {
        status["tables"][0]["rowsCopied"].as_u64().filter(|rows| *rows > 0)
    });
    env.sql("ALTER TABLE t ATTACH PARTITION t_c FOR VALUES IN ('c')");
    env.sql("TRUNCATE t_a; INSERT INTO t SELECT 'a', i, '2022-01-01', 'after' FROM generate_series(1, 50) i");
    equal(&env, &mut run, "all partitions");
    run.stop();
    env.verify(&mirror);
}

/// Rows of a foreign or unlogged partition are not in the log: its table fails alone until the partition is
/// detached.
#[test]
fn partitions_outside_the_log() {
    let env = TestEnv::new(Pg::V18);
    // A table with foreign partitions can have no unique index.
    env.sql(
        "CREATE TABLE u (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE u_1 PARTITION OF u FOR VALUES FROM (0) TO (100);
        CREATE TABLE f (id int, v text) PARTITION BY RANGE (id); CREATE TABLE f_1 PARTITION OF f FOR VALUES FROM (0) TO (100);
        ALTER TABLE f REPLICA IDENTITY FULL; ALTER TABLE f_1 REPLICA IDENTITY FULL; CREATE TABLE stays (id int PRIMARY KEY, v text);
        INSERT INTO u VALUES (1, 'v'); INSERT INTO f VALUES (1, 'v'); CREATE UNLOGGED TABLE u_2 (LIKE u INCLUDING ALL); INSERT INTO u_2 VALUES (100, 'not in the log')",
    );
    let role = &env.database;
    env.admin(&format!(
        "CREATE FOREIGN DATA WRAPPER nowhere; CREATE SERVER nowhere FOREIGN DATA WRAPPER nowhere; CREATE FOREIGN TABLE f_2 (id int, v text) SERVER nowhere; ALTER FOREIGN TABLE f_2 OWNER TO {role}"
    ));
    let mut mirror = env.mirror(&["u", "f", "stays"]);
    let mut run = env.streaming(&mirror);
    env.sql(
        "ALTER TABLE u ATTACH PARTITION u_2 FOR VALUES FROM (100) TO (200); INSERT INTO u VALUES (2, 'w'), (101, 'not in the log');
        ALTER TABLE f ATTACH PARTITION f_2 FOR VALUES FROM (100) TO (200); INSERT INTO f VALUES (2, 'w'); INSERT INTO stays VALUES (1, 'x')",
    );
    for (table, partition) in [("u", "u_2"), ("f", "f_2")] {
        let failure = failed_for(&mut run, table, Reason::SourceTableUnsupported);
        failure.resyncs_only(table);
        let detach = |remedy: &Remedy| matches!(remedy, Remedy::Act { how } if how.contains(partition));
        assert!(failure.remedies.iter().any(detach), "{failure:?}");
    }
    env.settle(&mut run);
    env.assert_table("stays", "id, v", "id");
    run.stop();
    env.command("check", &mirror, &[])
        .exits(1)
        .finds("warning", "public.u", "table")
        .finds("warning", "public.f", "table");
    env.sql("ALTER TABLE u DETACH PARTITION u_2; ALTER TABLE f DETACH PARTITION f_2; INSERT INTO u VALUES (3, 'y')");
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1 public.u public.f"});
    env.catch_up(&mirror);
    env.assert_table("u", "id, v", "id");
    env.verify(&mirror);
}

/// Tables whose old rows carry less, or other columns, where a partition has another replica identity.
const UNLIKE: &str = "CREATE TABLE by_key (id int, day date, doc text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
    CREATE TABLE by_order (id int, day date, status int NOT NULL, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
    CREATE TABLE by_index (id int, day date, code text NOT NULL, v text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
    CREATE UNIQUE INDEX by_index_code ON by_index (code, day);
    CREATE TABLE by_none (id int, day date, v text) PARTITION BY RANGE (day);
    ALTER TABLE by_key REPLICA IDENTITY FULL; ALTER TABLE by_order REPLICA IDENTITY FULL; ALTER TABLE by_none REPLICA IDENTITY FULL;
    ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code; ALTER TABLE by_key ALTER doc SET STORAGE EXTERNAL;
    CREATE TABLE bystander (id int PRIMARY KEY)";

const UNLIKE_TABLES: [&str; 4] = ["by_key", "by_order", "by_index", "by_none"];

/// For each table the partition of one month, with a replica identity of its own.
fn partitions(month: u32, identity: &str) -> String {
    let (from, to) = (format!("2026-{month:02}-01"), format!("2026-{:02}-01", month + 1));
    let of = |table: &&str| {
        let key = if *table == "by_none" {
            format!("ALTER TABLE by_none_{month} ADD PRIMARY KEY (id);")
        } else {
            String::new()
        };
        let identity = identity.replace("{t}", table).replace("{m}", &month.to_string());
        format!(
            "CREATE TABLE {table}_{month} PARTITION OF {table} FOR VALUES FROM ('{from}') TO ('{to}'); {key} {identity};"
        )
    };
    UNLIKE_TABLES.iter().map(of).collect()
}

/// Inserts, updates and deletes of one month's rows.
fn changes(month: u32) -> String {
    let day = format!("'2026-{month:02}-02'");
    let at = format!("day = {day}");
    format!(
        "INSERT INTO by_key SELECT i, {day}, repeat('doc' || i, 4000) FROM generate_series(1, 3) i; INSERT INTO by_order SELECT i, {day}, 1 FROM generate_series(1, 3) i;
         INSERT INTO by_index SELECT i, {day}, 'c' || i, 'v' FROM generate_series(1, 4) i; INSERT INTO by_none SELECT i, {day}, 'v' FROM generate_series(1, 3) i;
         UPDATE by_key SET id = 10 WHERE id = 1 AND {at}; DELETE FROM by_key WHERE id = 2 AND {at};
         UPDATE by_order SET status = 2 WHERE id = 1 AND {at}; DELETE FROM by_order WHERE id = 2 AND {at};
         UPDATE by_index SET code = 'x' WHERE id = 1 AND {at}; UPDATE by_index SET id = 20 WHERE id = 2 AND {at}; DELETE FROM by_index WHERE id = 3 AND {at};
         UPDATE by_none SET v = 'w' WHERE id = 1 AND {at}; DELETE FROM by_none WHERE id = 2 AND {at}"
    )
}

fn unlike_mirror(env: &TestEnv) -> crate::support::Mirror {
    let mut mirror = env.mirror(&["by_key", "by_order", "by_index", "by_none", "bystander"]);
    mirror.table(1)["engine"] = json!({"orderBy": ["status", "id", "day"]});
    mirror
}

#[track_caller]
fn unlike_equal(env: &TestEnv, run: &mut Run) {
    run.eventually("all tables to be equal", || {
        let keyed = [("by_key", "id, day, md5(doc)", "id, day, lower(hex(MD5(doc)))"), ("by_order", "id, day, status", "id, day, status"), ("by_index", "id, day, code, v", "id, day, code, v")];
        let same = |(table, source, target): &(&str, &str, &str)| {
            env.source(&format!("SELECT {source} FROM {table} ORDER BY id, day"))
                == env.target(&format!("SELECT {target} FROM {table} FINAL WHERE _walferry_deleted = 0 ORDER BY id, day"))
        };
        let counts = "SELECT id, day, v, sum(_walferry_sign) AS n FROM by_none FINAL GROUP BY ALL HAVING n != 0 ORDER BY id, day, v";
        keyed.iter().all(same)
            && env.source("SELECT id, day, v, count(*) FROM by_none GROUP BY 1, 2, 3 ORDER BY 1, 2, 3") == env.target(counts)
    });
    run.until_streaming();
}

/// A new partition doesn't inherit its table's replica identity. Its incomplete old rows never arrive, and
/// the table recovers once the partition has the right identity.
fn partitions_with_another_identity(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql(UNLIKE);
    let full = "ALTER TABLE {t}_{m} REPLICA IDENTITY FULL";
    env.sql(&partitions(1, full));
    let mirror = unlike_mirror(&env);
    let mut run = env.streaming(&mirror);
    env.sql(&changes(1));
    env.settle(&mut run);
    unlike_equal(&env, &mut run);
    env.sql(&partitions(2, ""));
    env.sql(&changes(2));
    env.sql("INSERT INTO bystander VALUES (1)");
    for table in UNLIKE_TABLES {
        let failure = failed_for(&mut run, table, Reason::SourceReplicaIdentityDiffers);
        let sql = failure.sql(Side::Source);
        assert!(sql.contains(&format!("{table}_2")), "{failure:?}");
        env.sql(&sql);
    }
    env.settle(&mut run);
    env.assert_table("bystander", "id", "id");
    unlike_equal(&env, &mut run);
    // The identity is wrong and corrected while walferry is stopped.
    run.stop();
    env.sql(&partitions(3, ""));
    env.sql(&changes(3));
    env.command("check", &mirror, &[]).exits(0).finds("warning", "public.by_index", "replica identity");
    for table in UNLIKE_TABLES {
        env.sql(&full.replace("{t}", table).replace("{m}", "3"));
    }
    let mut run = env.run(&mirror);
    unlike_equal(&env, &mut run);
    // The identity is wrong and corrected between two reads of the catalog.
    env.sql(&partitions(4, ""));
    env.sql(&changes(4));
    for table in UNLIKE_TABLES {
        env.sql(&full.replace("{t}", table).replace("{m}", "4"));
    }
    unlike_equal(&env, &mut run);
    // A partition that has the right identity from the start causes no re-copy of its table. With a key, the
    // partition alone is copied if it has rows when it is found.
    let copied = |run: &mut Run| UNLIKE_TABLES.map(|table| run.table(table)["rowsCopied"].as_u64().unwrap());
    let [.., by_index, by_none] = copied(&mut run);
    let mut client = env.connect();
    client.batch_execute(&format!("BEGIN; {} COMMIT", partitions(5, full))).unwrap();
    env.sql(&changes(5));
    env.settle(&mut run);
    unlike_equal(&env, &mut run);
    let now = copied(&mut run);
    assert!([by_index, 3].contains(&now[2]), "{now:?} of which {by_index} before");
    assert_eq!(now[3], by_none);
    run.stop();
    env.verify(&mirror);
}

/// A partition's changes are published under the topmost published table above it, so no table below that one
/// can be mirrored.
fn partitions_below_a_mirrored_table(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql(
        "CREATE TABLE p (id int, at int, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
         CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (0) TO (100); CREATE TABLE mid PARTITION OF p FOR VALUES FROM (100) TO (200) PARTITION BY RANGE (at);
         CREATE TABLE leaf (LIKE p INCLUDING ALL); CREATE TABLE deep (LIKE p INCLUDING ALL); CREATE TABLE parent (id int PRIMARY KEY, v text); CREATE TABLE child (id int PRIMARY KEY, v text);
         INSERT INTO p VALUES (1, 1, 'p'); INSERT INTO leaf VALUES (1, 201, 'leaf'); INSERT INTO deep VALUES (1, 101, 'deep')",
    );
    env.command("check", &env.mirror(&["p", "p_1"]), &[]).exits(1).finds("FAILURE", "public.p_1", "table");
    let mut mirror = env.mirror(&["p", "leaf", "deep", "parent", "child"]);
    mirror.table(2)["operations"] = json!(["Insert", "Truncate"]);
    let mut run = env.streaming(&mirror);
    env.sql("ALTER TABLE p ATTACH PARTITION leaf FOR VALUES FROM (200) TO (300); ALTER TABLE mid ATTACH PARTITION deep FOR VALUES FROM (100) TO (150); ALTER TABLE child INHERIT parent");
    env.sql("INSERT INTO p VALUES (2, 202, 'x'), (3, 103, 'x'); UPDATE p SET v = 'y' WHERE at IN (101, 201); INSERT INTO parent VALUES (1, 'p'); INSERT INTO child VALUES (2, 'c'); UPDATE parent SET v = 'both'");
    for table in ["leaf", "deep"] {
        let failure = failed_for(&mut run, table, Reason::SourceAncestorPublished);
        assert!(failure.edits("spec.tables"), "{failure:?}");
    }
    env.settle(&mut run);
    run.eventually("the table above them to have their rows", || {
        env.source("SELECT id, at, v FROM p ORDER BY id, at")
            == env.target("SELECT id, at, v FROM p FINAL WHERE _walferry_deleted = 0 ORDER BY id, at")
    });
    env.assert_table("child", "id, v", "id");
    env.assert_same(
        "SELECT id, v FROM ONLY parent ORDER BY id",
        "SELECT id, v FROM parent FINAL WHERE _walferry_deleted = 0 ORDER BY id",
    );
    run.stop();
    env.command("check", &mirror, &[]).exits(1).finds("FAILURE", "public.deep", "state");
    // The tables are removed from the Mirror, as the remedy says.
    mirror.mirror["spec"]["tables"] =
        json!([{"schema": "public", "name": "p"}, {"schema": "public", "name": "child"}]);
    env.catch_up(&mirror);
    env.verify(&mirror);
}

/// A parent table is refused, because its children's rows would be published under their own names.
#[test]
fn inheritance_is_refused() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE child () INHERITS (t)");
    let mirror = env.mirror(&["t"]);
    env.command("check", &mirror, &[]).exits(1).finds("FAILURE", "public.t", "table");
    // The child alone is an ordinary table once it has a key.
    env.sql("ALTER TABLE child ADD PRIMARY KEY (id); INSERT INTO t VALUES (1, 'parent'); INSERT INTO child VALUES (2, 'child')");
    let mut run = env.streaming(&env.mirror(&["child"]));
    env.sql(
        "UPDATE t SET v = 'both'; INSERT INTO t VALUES (3, 'parent'); INSERT INTO child VALUES (4, 'child')",
    );
    env.settle(&mut run);
    env.assert_table("child", "id, v", "id");
}
