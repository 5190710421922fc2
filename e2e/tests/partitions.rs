//! Partitioned tables: rows in leaves of every shape, and partitions that come and go.

use serde_json::json;

use crate::{
    on_both,
    support::{Lab, Pg, Run},
};

/// Three levels, leaves with another column order, with dropped columns, in another schema, and a default one.
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

/// Waits until both sides are the same, and the table streams again.
#[track_caller]
fn equal(lab: &Lab, run: &mut Run, what: &str) {
    lab.settle(run);
    run.eventually(what, || {
        let target =
            format!("SELECT {COLUMNS} FROM t FINAL WHERE _walferry_deleted = 0 ORDER BY id, region, at");
        lab.source(&format!("SELECT {COLUMNS} FROM t ORDER BY id, region, at")) == lab.target(&target)
    });
    run.until_streaming();
}

fn rows_of_every_leaf(pg: Pg) {
    let lab = Lab::new(pg);
    lab.sql(TREE);
    let mirror = lab.mirror(&["t", "bystander"]);
    let mut run = lab.streaming(&mirror);
    // Rows move between leaves of both levels, by hand and by a key change; one is deleted where it came to.
    lab.sql(
        "INSERT INTO t SELECT (ARRAY['eu', 'us', 'asia'])[1 + i % 3], i, '2022-06-01'::date + i % 500, 'w' || i FROM generate_series(301, 600) i;
        UPDATE t SET region = 'us' WHERE region = 'eu' AND id % 2 = 0; UPDATE t SET at = '2023-05-05' WHERE region = 'eu' AND at < '2023-01-01';
        UPDATE t SET region = 'mars', id = id + 1000 WHERE id % 7 = 0; DELETE FROM t WHERE region = 'us' AND id % 4 = 0;
        UPDATE t_us SET v = 'direct' WHERE id % 6 = 0; DELETE FROM old.t_eu_22; INSERT INTO t_rest VALUES ('asia', 9999, '2022-01-01', 'direct')",
    );
    equal(&lab, &mut run, "the rows of all leaves");
    lab.sql("TRUNCATE t; INSERT INTO t VALUES ('eu', 1, '2022-01-01', 'after')");
    equal(&lab, &mut run, "TRUNCATE of the whole table");
    run.stop();
    lab.verify(&mirror);
}

/// None of it is in the stream.
fn partitions_come_and_go(pg: Pg) {
    let lab = Lab::new(pg);
    lab.sql(TREE);
    let mirror = lab.mirror(&["t", "bystander"]);
    let mut run = lab.streaming(&mirror);
    lab.sql("CREATE TABLE t_sa PARTITION OF t FOR VALUES IN ('sa'); INSERT INTO t VALUES ('sa', 1, '2022-01-01', 'new')");
    equal(&lab, &mut run, "a new partition");
    // Rows that were there before, with keys that were once deleted.
    lab.sql(
        "CREATE TABLE t_af (LIKE t INCLUDING ALL); INSERT INTO t_af SELECT 'af', i, '2022-01-01', 'attached' FROM generate_series(1, 2000) i;
        INSERT INTO t SELECT 'af', i, '2022-01-01', 'before' FROM generate_series(1, 100) i; DELETE FROM t WHERE region = 'af'",
    );
    lab.sql("ALTER TABLE t ATTACH PARTITION t_af FOR VALUES IN ('af'); UPDATE t SET v = 'changed' WHERE region = 'af' AND id < 10; DELETE FROM t WHERE region = 'af' AND id = 11");
    equal(&lab, &mut run, "an attached partition with rows");
    let copied = run.table("t")["rowsCopied"].as_u64().unwrap();
    assert!(copied <= 2000, "only the attached partition is copied: {copied}");
    lab.sql("ALTER TABLE t DETACH PARTITION t_af; INSERT INTO t VALUES ('asia', 7777, '2022-01-01', 'x')");
    equal(&lab, &mut run, "a detached partition");
    lab.sql("ALTER TABLE t ATTACH PARTITION t_af FOR VALUES IN ('af'); INSERT INTO t VALUES ('asia', 7778, '2022-01-01', 'x')");
    equal(&lab, &mut run, "the same partition again");
    // No row follows that would have the catalog looked at.
    lab.sql("TRUNCATE t_us; DROP TABLE t_eu");
    equal(&lab, &mut run, "TRUNCATE of a leaf, and a dropped partition with partitions of its own");
    run.stop();
    lab.verify(&mirror);
}

on_both!(
    rows_of_every_leaf,
    partitions_come_and_go,
    a_partition_that_was_away,
    a_partition_that_was_away_while_it_is_down
);

/// The same while nothing runs, and columns that change in all leaves.
#[test]
fn while_it_is_down() {
    let lab = Lab::new(Pg::V18);
    lab.sql(TREE);
    let mirror = lab.mirror(&["t", "bystander"]);
    for change in [
        "ALTER TABLE t DETACH PARTITION t_us; UPDATE t SET v = 'x' WHERE id < 20",
        "ALTER TABLE t ATTACH PARTITION t_us FOR VALUES IN ('us'); DELETE FROM t WHERE region = 'us' AND id < 20",
        "TRUNCATE t_rest; INSERT INTO t VALUES ('asia', 5, '2022-01-01', 'after')",
        "ALTER TABLE t ALTER v TYPE text USING v || '!'; INSERT INTO t VALUES ('asia', 6, '2022-01-01', 'after')",
        "ALTER TABLE t DROP v, ADD v text DEFAULT 'again'; INSERT INTO t VALUES ('asia', 7, '2022-01-01', 'last')",
    ] {
        lab.catch_up(&mirror);
        lab.sql(change);
        lab.catch_up(&mirror);
        lab.assert_table("t", COLUMNS, "id, region, at");
        lab.verify(&mirror);
    }
}

/// What a partition goes through while it is none is not in the stream, and afterwards all has the oids and files of before.
const AWAY: [&str; 4] = [
    "BEGIN; ALTER TABLE t DETACH PARTITION t_us; UPDATE t_us SET v = 'away' WHERE id % 2 = 0; DELETE FROM t_us WHERE id % 5 = 0; INSERT INTO t_us VALUES ('2022-01-01', 'new', 7000, 'us');
        ALTER TABLE t ATTACH PARTITION t_us FOR VALUES IN ('us'); COMMIT",
    "ALTER TABLE t DETACH PARTITION t_us; UPDATE t_us SET v = 'apart' WHERE id % 3 = 0; ALTER TABLE t ATTACH PARTITION t_us FOR VALUES IN ('us')",
    // The table between: its partitions' own links stay.
    "BEGIN; ALTER TABLE t DETACH PARTITION t_eu; DELETE FROM t_eu WHERE id % 4 = 0; ALTER TABLE t ATTACH PARTITION t_eu FOR VALUES IN ('eu'); COMMIT",
    // To another place in the tree.
    "BEGIN; ALTER TABLE t_eu DETACH PARTITION old.t_eu_22; UPDATE old.t_eu_22 SET region = 'mars', v = 'moved'; ALTER TABLE t ATTACH PARTITION old.t_eu_22 FOR VALUES IN ('mars'); COMMIT",
];

fn a_partition_that_was_away(pg: Pg) {
    let lab = Lab::new(pg);
    lab.sql(TREE);
    let mirror = lab.mirror(&["t", "bystander"]);
    let mut run = lab.streaming(&mirror);
    for change in AWAY {
        lab.sql(change);
        equal(&lab, &mut run, change);
    }
    run.stop();
    lab.verify(&mirror);
}

fn a_partition_that_was_away_while_it_is_down(pg: Pg) {
    let lab = Lab::new(pg);
    lab.sql(TREE);
    let mirror = lab.mirror(&["t", "bystander"]);
    lab.catch_up(&mirror);
    for change in AWAY {
        lab.sql(change);
        lab.catch_up(&mirror);
        lab.assert_table("t", COLUMNS, "id, region, at");
    }
    lab.verify(&mirror);
}

/// A partition that comes, goes or is emptied while the table is copied; one worker, so that the copy takes a while.
#[test]
fn while_it_is_copied() {
    let lab = Lab::new(Pg::V18);
    lab.sql(
        "CREATE TABLE t (region text, id int, at date DEFAULT '2022-01-01', v text, PRIMARY KEY (id, region, at)) PARTITION BY LIST (region);
        CREATE TABLE t_a PARTITION OF t FOR VALUES IN ('a'); CREATE TABLE t_b PARTITION OF t FOR VALUES IN ('b'); ALTER TABLE t ALTER v SET STORAGE PLAIN;
        INSERT INTO t SELECT CASE WHEN i % 2 = 0 THEN 'a' ELSE 'b' END, i, '2022-01-01', repeat('x', 500) FROM generate_series(1, 60000) i;
        CREATE TABLE t_c (LIKE t INCLUDING ALL); INSERT INTO t_c SELECT 'c', i, '2022-01-01', 'attached' FROM generate_series(1, 100) i",
    );
    let mut mirror = lab.mirror(&["t"]);
    mirror.mirror["spec"]["snapshot"] = json!({"parallelism": 1});
    let mut run = lab.run(&mirror);
    run.until_status("the copy to begin", |status| {
        status["tables"][0]["rowsCopied"].as_u64().filter(|rows| *rows > 0)
    });
    lab.sql("ALTER TABLE t ATTACH PARTITION t_c FOR VALUES IN ('c')");
    lab.sql("TRUNCATE t_a; INSERT INTO t SELECT 'a', i, '2022-01-01', 'after' FROM generate_series(1, 50) i");
    equal(&lab, &mut run, "all partitions");
    run.stop();
    lab.verify(&mirror);
}

/// A foreign or an unlogged partition, whose rows are not in the log: its table fails alone until it is detached.
#[test]
fn partitions_outside_the_log() {
    let lab = Lab::new(Pg::V18);
    // A table with foreign partitions can have no unique index.
    lab.sql(
        "CREATE TABLE u (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE u_1 PARTITION OF u FOR VALUES FROM (0) TO (100);
        CREATE TABLE f (id int, v text) PARTITION BY RANGE (id); CREATE TABLE f_1 PARTITION OF f FOR VALUES FROM (0) TO (100);
        ALTER TABLE f REPLICA IDENTITY FULL; ALTER TABLE f_1 REPLICA IDENTITY FULL; CREATE TABLE stays (id int PRIMARY KEY, v text);
        INSERT INTO u VALUES (1, 'v'); INSERT INTO f VALUES (1, 'v'); CREATE UNLOGGED TABLE u_2 (LIKE u INCLUDING ALL); INSERT INTO u_2 VALUES (100, 'not in the log')",
    );
    let role = &lab.database;
    lab.admin(&format!(
        "CREATE FOREIGN DATA WRAPPER nowhere; CREATE SERVER nowhere FOREIGN DATA WRAPPER nowhere; CREATE FOREIGN TABLE f_2 (id int, v text) SERVER nowhere; ALTER FOREIGN TABLE f_2 OWNER TO {role}"
    ));
    let mut mirror = lab.mirror(&["u", "f", "stays"]);
    let mut run = lab.streaming(&mirror);
    lab.sql(
        "ALTER TABLE u ATTACH PARTITION u_2 FOR VALUES FROM (100) TO (200); INSERT INTO u VALUES (2, 'w'), (101, 'not in the log');
        ALTER TABLE f ATTACH PARTITION f_2 FOR VALUES FROM (100) TO (200); INSERT INTO f VALUES (2, 'w'); INSERT INTO stays VALUES (1, 'x')",
    );
    for (table, partition) in [("u", "u_2"), ("f", "f_2")] {
        let message = run.until_failed(table);
        for words in [partition, "foreign or unlogged", "detach it", "walferry.dev/resync"] {
            assert!(message.contains(words), "{message}");
        }
        assert_eq!(run.table(table)["reason"], "SourceTableUnsupported");
    }
    lab.settle(&mut run);
    lab.assert_table("stays", "id, v", "id");
    run.stop();
    lab.command("check", &mirror, &[]).exits(0).says(&["warning", "public.u_2", "public.f_2"]);
    lab.sql("ALTER TABLE u DETACH PARTITION u_2; ALTER TABLE f DETACH PARTITION f_2; INSERT INTO u VALUES (3, 'y')");
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1 public.u public.f"});
    lab.catch_up(&mirror);
    lab.assert_table("u", "id, v", "id");
    lab.verify(&mirror);
}

/// Tables that inherit are refused, for their rows would be published as their own.
#[test]
fn inheritance_is_refused() {
    let lab = Lab::new(Pg::V18);
    lab.sql("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE child () INHERITS (t)");
    let mirror = lab.mirror(&["t"]);
    lab.command("check", &mirror, &[]).exits(1).says(&["public.t", "inherit"]);
    // The child by itself is a table like any other, once it has a key.
    lab.sql("ALTER TABLE child ADD PRIMARY KEY (id); INSERT INTO t VALUES (1, 'parent'); INSERT INTO child VALUES (2, 'child')");
    let mut run = lab.streaming(&lab.mirror(&["child"]));
    lab.sql(
        "UPDATE t SET v = 'both'; INSERT INTO t VALUES (3, 'parent'); INSERT INTO child VALUES (4, 'child')",
    );
    lab.settle(&mut run);
    lab.assert_table("child", "id, v", "id");
}
