//! `operations`: rows that the source removes stay at the target, in the stream and in a re-copy.

use serde_json::json;

use crate::support::{Mirror, Pg, TestEnv};

/// What each side has of a table, by key.
fn rows(env: &TestEnv, table: &str) -> String {
    env.target_value(&format!(
        "SELECT arrayStringConcat(groupArray(concat(toString(id), ' ', v)), ', ') FROM (SELECT id, v FROM {table} FINAL ORDER BY id)"
    ))
}

/// A Mirror of tables with these operations.
fn mirror(env: &TestEnv, tables: &[(&str, &[&str])]) -> Mirror {
    let names: Vec<&str> = tables.iter().map(|(name, _)| *name).collect();
    let mut mirror = env.mirror(&names);
    for (index, (_, operations)) in tables.iter().enumerate() {
        mirror.table(index)["operations"] = json!(operations);
    }
    mirror
}

/// A new value of the annotation for a resync.
fn resync(mirror: &mut Mirror, value: &str) {
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": value});
}

const KEPT: &[(&str, &[&str])] = &[
    ("no_delete", &["Insert", "Update", "Truncate"]),
    ("no_truncate", &["Insert", "Update", "Delete"]),
    ("upserts", &["Insert", "Update"]),
    ("inserts", &["Insert"]),
    ("all", &["Insert", "Update", "Delete", "Truncate"]),
];

/// Compares every table but the append-only one, whose rows stay as they were inserted.
fn verify(env: &TestEnv, mirror: &Mirror) {
    let keyed = KEPT.iter().filter(|(table, _)| *table != "inserts");
    let tables: Vec<String> = keyed.map(|(table, _)| format!("public.{table}")).collect();
    let options: Vec<&str> = tables.iter().flat_map(|table| ["--table", table.as_str()]).collect();
    env.command("verify", mirror, &options).exits(0);
}

/// Makes the same tables and the same rows for each selection of operations.
fn make(env: &TestEnv) {
    for (table, _) in KEPT {
        env.sql(&format!(
            "CREATE TABLE \"{table}\" (id int PRIMARY KEY, v text NOT NULL);
             INSERT INTO \"{table}\" SELECT i, 'old' FROM generate_series(1, 4) i"
        ));
    }
}

fn each(env: &TestEnv, statements: &str) {
    KEPT.iter().for_each(|(table, _)| env.sql(&statements.replace("TABLE_", &format!("\"{table}\""))));
}

/// Deletes, updates, changed keys and TRUNCATE in the stream; then a resync of everything; then all operations.
fn removed_rows_stay(pg: Pg) {
    let env = TestEnv::new(pg);
    make(&env);
    let mut mirror = mirror(&env, KEPT);
    let mut run = env.streaming(&mirror);
    each(
        &env,
        "DELETE FROM TABLE_ WHERE id = 1; UPDATE TABLE_ SET v = 'new' WHERE id = 2; UPDATE TABLE_ SET id = 30 WHERE id = 3",
    );
    env.settle(&mut run);
    assert_eq!(rows(&env, "no_delete"), "1 old, 2 new, 4 old, 30 old", "a changed key moves the row");
    assert_eq!(rows(&env, "no_truncate"), "2 new, 4 old, 30 old");
    assert_eq!(rows(&env, "upserts"), "1 old, 2 new, 4 old, 30 old");
    assert_eq!(rows(&env, "all"), "2 new, 4 old, 30 old");
    let inserted =
        "SELECT groupArray(row) FROM (SELECT concat(toString(id), ' ', v) AS row FROM inserts ORDER BY id)";
    assert_eq!(env.target_value(inserted), "['1 old','2 old','3 old','4 old']");
    verify(&env, &mirror);
    // The same rows come again, later than their removal.
    each(&env, "INSERT INTO TABLE_ VALUES (1, 'again')");
    each(&env, "BEGIN; TRUNCATE TABLE_; INSERT INTO TABLE_ VALUES (5, 'after'); COMMIT");
    env.settle(&mut run);
    assert_eq!(rows(&env, "no_delete"), "5 after");
    assert_eq!(rows(&env, "no_truncate"), "1 again, 2 new, 4 old, 5 after, 30 old");
    assert_eq!(rows(&env, "upserts"), "1 again, 2 new, 4 old, 5 after, 30 old");
    assert_eq!(rows(&env, "all"), "5 after");
    run.stop();

    // What is not at the source any more stays in a resync, what is there is replaced.
    each(&env, "UPDATE TABLE_ SET v = 'changed'; INSERT INTO TABLE_ VALUES (1, 'copied')");
    resync(&mut mirror, "1");
    env.catch_up(&mirror);
    assert_eq!(rows(&env, "no_delete"), "1 copied, 5 changed");
    assert_eq!(rows(&env, "no_truncate"), "1 copied, 2 new, 4 old, 5 changed, 30 old");
    assert_eq!(rows(&env, "upserts"), "1 copied, 2 new, 4 old, 5 changed, 30 old");
    assert_eq!(rows(&env, "all"), "1 copied, 5 changed");
    verify(&env, &mirror);

    // Other operations take effect without a re-copy; a resync then removes what is gone.
    mirror.table(2)["operations"] = json!(["Insert", "Update", "Delete", "Truncate"]);
    let mut run = env.streaming(&mirror);
    env.sql("DELETE FROM upserts WHERE id = 5");
    env.settle(&mut run);
    assert_eq!(rows(&env, "upserts"), "1 copied, 2 new, 4 old, 30 old");
    run.stop();
    resync(&mut mirror, "2 public.upserts");
    env.catch_up(&mirror);
    assert_eq!(rows(&env, "upserts"), "1 copied");
}

crate::on_both!(removed_rows_stay);

/// A change that is not in the stream has a table re-copied automatically: that keeps removed rows too.
#[test]
fn a_re_copy_keeps_removed_rows() {
    let env = TestEnv::new(Pg::V18);
    env.sql(
        "CREATE TABLE t (id int PRIMARY KEY, v text NOT NULL); INSERT INTO t VALUES (1, 'one'), (2, 'two')",
    );
    let mirror = mirror(&env, &[("t", &["Insert", "Update"])]);
    let mut run = env.streaming(&mirror);
    env.sql("DELETE FROM t WHERE id = 1");
    env.settle(&mut run);
    env.sql("ALTER TABLE t ALTER v TYPE text USING upper(v)");
    run.eventually("the table to be copied again", || rows(&env, "t") == "1 one, 2 TWO");
    env.verify(&mirror);
}

/// Rows can be kept by a key only, and a set without inserts, or with deletes alone, is refused where it stands.
#[test]
fn what_can_t_be_kept_is_refused() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE log (v text); ALTER TABLE log REPLICA IDENTITY FULL");
    let keyless = mirror(&env, &[("log", &["Insert", "Update"])]);
    env.command("check", &keyless, &[]).exits(1).says(&[
        "public.log",
        "operations leaves out Delete and Truncate, and the table has no key",
        "spec.tables[].operations",
    ]);
    let deletes = mirror(&env, &[("log", &["Insert", "Delete"])]);
    env.command("check", &deletes, &[])
        .exits(2)
        .says(&["spec.tables[0].operations", "Delete only together with Update"]);
    let nothing = mirror(&env, &[("log", &["Update"])]);
    env.command("check", &nothing, &[]).exits(2).says(&["spec.tables[0].operations", "must have Insert"]);
}
