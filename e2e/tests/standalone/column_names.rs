//! Columns that take the former names of other columns: a name alone does not identify a column.

use nix::sys::signal::Signal;

use crate::{
    on_both,
    support::{Pg, Run, TestEnv},
};

/// Waits until these columns of the source and of the target, in this order, are equal, and that they stay
/// so.
#[track_caller]
fn equal(env: &TestEnv, run: &mut Run, table: &str, source: &str, target: &str) {
    let sides = || {
        (
            env.source(&format!("SELECT {source} FROM {table} ORDER BY 1")),
            env.target(&format!("SELECT {target} FROM {table} FINAL WHERE _walferry_deleted = 0 ORDER BY 1")),
        )
    };
    run.eventually(&format!("{table} to be equal"), || {
        let (source, target) = sides();
        source == target
    });
    env.settle(run);
    let (source, target) = sides();
    assert_eq!(source, target, "{table} stays equal");
}

#[track_caller]
fn equal_without_a_key(env: &TestEnv, run: &mut Run, source: &str, target: &str) {
    run.eventually("the table without a key to be equal", || {
        let visible = format!(
            "SELECT {target}, sum(_walferry_sign) AS n FROM keyless FINAL GROUP BY ALL HAVING n != 0 ORDER BY 1"
        );
        env.source(&format!("SELECT {source}, count(*) FROM keyless GROUP BY {source} ORDER BY 1")) == env.target(&visible)
    });
}

const TABLES: &str = "CREATE TABLE replaced (id int PRIMARY KEY, price text, price_new text); INSERT INTO replaced VALUES (1, 'p1', 'n1');
    CREATE TABLE swapped (id int PRIMARY KEY, a text, b text); INSERT INTO swapped VALUES (1, 'a1', 'b1');
    CREATE TABLE keyless (id int, a text, b text); ALTER TABLE keyless REPLICA IDENTITY FULL; INSERT INTO keyless VALUES (1, 'a1', 'b1')";
const RENAMES: &str = "ALTER TABLE replaced RENAME price TO price_old; ALTER TABLE replaced RENAME price_new TO price;
    INSERT INTO replaced VALUES (2, 'p2', 'n2');
    BEGIN; ALTER TABLE swapped RENAME a TO x; ALTER TABLE swapped RENAME b TO a; ALTER TABLE swapped RENAME x TO b; COMMIT;
    INSERT INTO swapped VALUES (2, 'a2', 'b2');
    BEGIN; ALTER TABLE keyless RENAME a TO x; ALTER TABLE keyless RENAME b TO a; ALTER TABLE keyless RENAME x TO b; COMMIT;
    INSERT INTO keyless VALUES (2, 'a2', 'b2')";
const DROPS: &str = "ALTER TABLE replaced DROP price_old; INSERT INTO replaced VALUES (3, 'n3'); UPDATE replaced SET price = 'n1x' WHERE id = 1;
    ALTER TABLE swapped DROP b; INSERT INTO swapped VALUES (3, 'b3'); UPDATE swapped SET a = 'b1x' WHERE id = 1;
    ALTER TABLE keyless DROP b; INSERT INTO keyless VALUES (3, 'b3'); DELETE FROM keyless WHERE id = 1";

/// A column is replaced: it is renamed, another column takes its name, and the renamed one is dropped.
fn a_column_is_replaced(pg: Pg) {
    for (stops, pauses) in [(false, true), (false, false), (true, true)] {
        let env = TestEnv::new(pg);
        env.sql(TABLES);
        let mirror = env.mirror(&["replaced", "swapped", "keyless"]);
        let mut run = env.streaming(&mirror);
        env.sql(RENAMES);
        if pauses {
            equal(&env, &mut run, "replaced", "id, price_old, price", "id, price, price_new");
            equal(&env, &mut run, "swapped", "id, b, a", "id, a, b");
        }
        if stops {
            run.stop();
            env.sql(DROPS);
            run = env.run(&mirror);
        } else {
            env.sql(DROPS);
        }
        equal(&env, &mut run, "replaced", "id, price", "id, price_new");
        equal(&env, &mut run, "swapped", "id, a", "id, b");
        equal_without_a_key(&env, &mut run, "id, a", "id, b");
        run.stop();
        env.verify(&mirror);
    }
}

/// A column is added, dropped or renamed, and added again with the same name before walferry has read any of
/// it.
fn a_column_is_added_twice(pg: Pg) {
    for stops in [false, true] {
        let env = TestEnv::new(pg);
        env.sql(
            "CREATE TABLE again (id int PRIMARY KEY); INSERT INTO again VALUES (1); CREATE TABLE moved (id int PRIMARY KEY); INSERT INTO moved VALUES (1);
             CREATE TABLE keyless (id int); ALTER TABLE keyless REPLICA IDENTITY FULL; INSERT INTO keyless VALUES (1)",
        );
        let mirror = env.mirror(&["again", "moved", "keyless"]);
        let run = env.streaming(&mirror);
        let frozen = if stops {
            run.stop();
            None
        } else {
            run.signal(Signal::SIGSTOP);
            Some(run)
        };
        env.sql(
            "ALTER TABLE again ADD a text DEFAULT 'x'; INSERT INTO again VALUES (2, 'y'); ALTER TABLE again DROP a;
             ALTER TABLE again ADD a text DEFAULT 'zz'; INSERT INTO again VALUES (3, 'w');
             ALTER TABLE moved ADD a text DEFAULT 'x'; INSERT INTO moved VALUES (2, 'y'); ALTER TABLE moved RENAME a TO b;
             ALTER TABLE moved ADD a text DEFAULT 'zz'; INSERT INTO moved VALUES (3, 'w', 'q');
             ALTER TABLE keyless ADD a text DEFAULT 'x'; INSERT INTO keyless VALUES (2, 'y'); ALTER TABLE keyless DROP a;
             ALTER TABLE keyless ADD a text DEFAULT 'zz'; DELETE FROM keyless WHERE id = 2; INSERT INTO keyless VALUES (3, 'w')",
        );
        let mut run = match frozen {
            Some(run) => {
                run.signal(Signal::SIGCONT);
                run
            }
            None => env.run(&mirror),
        };
        let columns =
            "SELECT count() FROM system.columns WHERE database = currentDatabase() AND name IN ('a', 'b')";
        run.eventually("the columns at the target", || env.target_value(columns) == "4");
        equal(&env, &mut run, "again", "id, a", "id, a");
        equal(&env, &mut run, "moved", "id, b, a", "id, b, a");
        equal_without_a_key(&env, &mut run, "id, a", "id, a");
        run.stop();
        env.verify(&mirror);
    }
}

on_both!(a_column_is_replaced, a_column_is_added_twice);
