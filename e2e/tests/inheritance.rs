//! Tables that others inherit from are refused, also when that begins while they stream.

use crate::{
    on_both,
    support::{Lab, Pg, Run},
};

/// A table that fails for it, with the reason that it has at a start.
#[track_caller]
fn fails(run: &mut Run, table: &str) {
    let message = run.until_failed(table);
    assert!(message.contains(&format!("other tables inherit from public.{table}")), "{message}");
    assert!(message.contains("copied again automatically"), "{message}");
    assert_eq!(run.table(table)["reason"], "SourceTableInherited", "{message}");
}

/// It has all rows, and what was changed while it had failed.
#[track_caller]
fn recovers(lab: &Lab, run: &mut Run, tables: &[&str]) {
    run.until_streaming();
    lab.settle(run);
    for table in tables {
        lab.assert_table(table, "id, v", "id");
    }
}

/// While it streams, and while nobody looks.
fn a_table_that_others_begin_to_inherit_from(pg: Pg) {
    let lab = Lab::new(pg);
    lab.sql(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'); CREATE TABLE u (id int PRIMARY KEY, v text);
        CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (0) TO (100)",
    );
    let mirror = lab.mirror(&["t", "u", "p"]);
    let mut run = lab.streaming(&mirror);
    lab.sql(
        "CREATE TABLE child () INHERITS (t); CREATE TABLE p_2 PARTITION OF p FOR VALUES FROM (100) TO (200)",
    );
    fails(&mut run, "t");
    lab.sql(
        "INSERT INTO t VALUES (2, 'b'); INSERT INTO child VALUES (3, 'c'); DELETE FROM ONLY t WHERE id = 1",
    );
    lab.sql("INSERT INTO u VALUES (1, 'a'); INSERT INTO p VALUES (1, 'a'), (101, 'b')");
    run.eventually("the other tables to go on", || {
        lab.target_value("SELECT count() FROM u FINAL") == "1"
            && lab.target_value("SELECT count() FROM p FINAL") == "2"
    });
    lab.sql("ALTER TABLE child NO INHERIT t");
    recovers(&lab, &mut run, &["t", "u", "p"]);
    // Its own rows are none of the table's.
    assert_eq!(lab.target_value("SELECT count() FROM t FINAL WHERE id = 3 AND _walferry_deleted = 0"), "0");

    lab.sql("ALTER TABLE child INHERIT t");
    fails(&mut run, "t");
    lab.sql("UPDATE ONLY t SET v = 'c'; DROP TABLE child");
    recovers(&lab, &mut run, &["t", "u", "p"]);
    run.stop();

    lab.sql("CREATE TABLE child () INHERITS (t)");
    let mut run = lab.run(&mirror);
    fails(&mut run, "t");
    run.stop();
    lab.sql("INSERT INTO t VALUES (5, 'e'); DROP TABLE child");
    let mut run = lab.run(&mirror);
    recovers(&lab, &mut run, &["t", "u", "p"]);
    run.stop();
    lab.verify(&mirror);
}

on_both!(a_table_that_others_begin_to_inherit_from);

/// At its first start it has the same reason, and joins once no table inherits from it any more.
#[test]
fn a_table_that_others_inherit_from_joins_later() {
    let lab = Lab::new(Pg::V18);
    lab.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'); CREATE TABLE child () INHERITS (t); CREATE TABLE u (id int PRIMARY KEY, v text)");
    let mirror = lab.mirror(&["t", "u"]);
    let mut run = lab.run(&mirror);
    let message = run.until_failed("t");
    assert!(message.contains("other tables inherit from public.t"), "{message}");
    assert_eq!(run.table("t")["reason"], "SourceTableInherited", "{message}");
    lab.sql("ALTER TABLE child NO INHERIT t; INSERT INTO t VALUES (2, 'b')");
    recovers(&lab, &mut run, &["t", "u"]);
    run.stop();
}
