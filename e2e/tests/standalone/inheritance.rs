//! A table that others inherit from fails alone, also when that begins while it streams.

use walferry::fault::Reason;

use crate::{
    on_both,
    support::{Pg, Run, TestEnv, failed_for},
};

/// Waits until the tables stream, and have all rows and the changes that were made while they had failed.
#[track_caller]
fn recovers(env: &TestEnv, run: &mut Run, tables: &[&str]) {
    run.until_streaming();
    env.settle(run);
    for table in tables {
        env.assert_table(table, "id, v", "id");
    }
}

/// Tables begin and cease to inherit from a table while it streams, and while nothing runs.
fn a_table_that_others_begin_to_inherit_from(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'); CREATE TABLE u (id int PRIMARY KEY, v text);
        CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (0) TO (100)",
    );
    let mirror = env.mirror(&["t", "u", "p"]);
    let mut run = env.streaming(&mirror);
    env.sql(
        "CREATE TABLE child () INHERITS (t); CREATE TABLE p_2 PARTITION OF p FOR VALUES FROM (100) TO (200)",
    );
    failed_for(&mut run, "t", Reason::SourceTableInherited);
    env.sql(
        "INSERT INTO t VALUES (2, 'b'); INSERT INTO child VALUES (3, 'c'); DELETE FROM ONLY t WHERE id = 1",
    );
    env.sql("INSERT INTO u VALUES (1, 'a'); INSERT INTO p VALUES (1, 'a'), (101, 'b')");
    run.eventually("the other tables to continue", || {
        env.target_value("SELECT count() FROM u FINAL") == "1"
            && env.target_value("SELECT count() FROM p FINAL") == "2"
    });
    env.sql("ALTER TABLE child NO INHERIT t");
    recovers(&env, &mut run, &["t", "u", "p"]);
    // Rows of the inheriting table don't belong to the table.
    assert_eq!(env.target_value("SELECT count() FROM t FINAL WHERE id = 3 AND _walferry_deleted = 0"), "0");

    env.sql("ALTER TABLE child INHERIT t");
    failed_for(&mut run, "t", Reason::SourceTableInherited);
    env.sql("UPDATE ONLY t SET v = 'c'; DROP TABLE child");
    recovers(&env, &mut run, &["t", "u", "p"]);
    run.stop();

    env.sql("CREATE TABLE child () INHERITS (t)");
    let mut run = env.run(&mirror);
    failed_for(&mut run, "t", Reason::SourceTableInherited);
    run.stop();
    env.sql("INSERT INTO t VALUES (5, 'e'); DROP TABLE child");
    let mut run = env.run(&mirror);
    recovers(&env, &mut run, &["t", "u", "p"]);
    run.stop();
    env.verify(&mirror);
}

on_both!(a_table_that_others_begin_to_inherit_from);

/// At the first start the table fails for the same reason, and is added once no table inherits from it.
#[test]
fn a_table_that_others_inherit_from_is_added_later() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'); CREATE TABLE child () INHERITS (t); CREATE TABLE u (id int PRIMARY KEY, v text)");
    let mirror = env.mirror(&["t", "u"]);
    let mut run = env.run(&mirror);
    failed_for(&mut run, "t", Reason::SourceTableInherited);
    env.sql("ALTER TABLE child NO INHERIT t; INSERT INTO t VALUES (2, 'b')");
    recovers(&env, &mut run, &["t", "u"]);
    run.stop();
}
