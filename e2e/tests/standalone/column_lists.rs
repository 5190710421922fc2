//! A publication with a column list, created by the tables' owner: excluded columns never leave the source.

use serde_json::json;
use walferry::fault::{Reason, Side};

use crate::support::{Mirror, Pg, Run, TestEnv, failed_for};

/// A slot of the test, which receives the bytes that the same publication sends.
const PEEK: &str = "column_list_peek";

/// Creates a role that may read the mirrored columns, the owner's publication with a list of them, and the
/// slot.
fn listed(env: &TestEnv) -> (Mirror, String) {
    let name = &env.database;
    env.sql(
        "CREATE TABLE t (id int PRIMARY KEY, secret text, v text, big text); ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
        INSERT INTO t SELECT i, 'SECRET', 'visible ' || i, repeat('x', 5000) FROM generate_series(1, 500) i;
        CREATE TABLE parts (id int PRIMARY KEY, secret text, v text) PARTITION BY RANGE (id);
        CREATE TABLE parts_1 (v text, secret text, id int PRIMARY KEY); ALTER TABLE parts ATTACH PARTITION parts_1 FOR VALUES FROM (0) TO (1000);
        INSERT INTO parts SELECT i, 'SECRET', 'visible ' || i FROM generate_series(1, 500) i; CREATE TABLE other (id int PRIMARY KEY)",
    );
    env.admin(&format!(
        "CREATE ROLE {name}_least LOGIN REPLICATION PASSWORD 'least-test'; GRANT USAGE ON SCHEMA public TO {name}_least;
        GRANT SELECT (id, v, big, ctid) ON t TO {name}_least; GRANT SELECT (id, v, ctid, tableoid) ON parts TO {name}_least;
        GRANT SELECT ON other TO {name}_least"
    ));
    let mut mirror = env.mirror(&["t", "parts", "other"]);
    mirror.secrets[0].1 = json!({"username": format!("{name}_least"), "password": "least-test"});
    (0..2).for_each(|table| mirror.table(table)["columns"] = json!({"exclude": ["secret"]}));
    let said = env.command("check", &mirror, &[]).exits(1).text();
    let (_, created) = said.split_once("CREATE PUBLICATION ").unwrap();
    let publication = created.split(' ').next().unwrap().trim_matches('"').to_owned();
    let (_, comment) = said.split_once("COMMENT ON PUBLICATION").unwrap();
    env.sql(&format!(
        "CREATE PUBLICATION {publication} FOR TABLE ONLY t (id, v, big), ONLY parts (id, v), ONLY other WITH (publish_via_partition_root = true);
        COMMENT ON PUBLICATION{}",
        comment.split(';').next().unwrap()
    ));
    env.admin(&format!("SELECT pg_create_logical_replication_slot('{PEEK}_{name}', 'pgoutput')"));
    (mirror, publication)
}

/// How many messages that the publication has sent contain a word.
fn sent(env: &TestEnv, publication: &str, word: &str) -> u32 {
    let query = format!(
        "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('{PEEK}_{}', NULL, NULL, 'proto_version', '1', 'publication_names', '{publication}')
         WHERE position('{word}'::bytea IN data) > 0",
        env.database
    );
    env.source_value(&query).parse().unwrap()
}

#[track_caller]
fn same(env: &TestEnv, run: &mut Run, t: &str) {
    env.settle(run);
    run.until_streaming();
    env.assert_table("t", t, "id");
    env.assert_table("parts", "id, v", "id");
}

fn clean_up(env: &TestEnv) {
    let name = &env.database;
    env.admin(&format!("DROP OWNED BY {name}_least; DROP ROLE {name}_least"));
}

/// Excluded values are not sent in a Mirror's whole life: the copy, each kind of change, values that are
/// fetched again, a renamed column, a new one, and a resync.
#[test]
fn excluded_values_stay_at_the_source() {
    let env = TestEnv::new(Pg::V18);
    let (mut mirror, publication) = listed(&env);
    env.command("check", &mirror, &[])
        .exits(0)
        .says(&["secret: not sent, the publication lists the other columns"]);
    let mut run = env.streaming(&mirror);
    env.sql(
        "INSERT INTO t VALUES (900, 'SECRET', 'visible', 'small'); UPDATE t SET v = 'w', secret = 'SECRET too' WHERE id < 50; DELETE FROM t WHERE id = 60;
        UPDATE t SET id = 901 WHERE id = 61; INSERT INTO parts VALUES (900, 'SECRET', 'visible'); UPDATE parts SET secret = 'SECRET too', v = 'w' WHERE id < 50",
    );
    same(&env, &mut run, "id, v, big");
    // A renamed column stays in the list.
    env.sql("ALTER TABLE t RENAME v TO w; INSERT INTO t VALUES (902, 'SECRET', 'visible', 'small')");
    env.settle(&mut run);
    run.until_streaming();
    env.assert_same(
        "SELECT id, w, big FROM t ORDER BY id",
        "SELECT id, v, big FROM t FINAL WHERE _walferry_deleted = 0 ORDER BY id",
    );
    env.sql("ALTER TABLE t RENAME w TO v");
    // An added column is not in the list: the table fails alone, with the statements that add it.
    env.sql(
        "ALTER TABLE t ADD extra text; INSERT INTO t VALUES (903, 'SECRET', 'visible', 'small', 'extra')",
    );
    let failure = failed_for(&mut run, "t", Reason::SourceNotPublished);
    let sql = failure.sql(Side::Source);
    env.sql("INSERT INTO other VALUES (1); INSERT INTO parts VALUES (901, 'SECRET', 'visible')");
    env.settle(&mut run);
    env.assert_table("other", "id", "id");
    let report = env.command("check", &mirror, &[]).exits(1);
    report.finds("FAILURE", "public.t", "state").finds("warning", "public.t", "publication");
    run.stop();
    assert!(sql.contains(r#""extra""#), "{failure:?}");
    let (_, rest) = sql.split_once("BEGIN;").unwrap();
    let (statements, _) = rest.split_once("COMMIT;").unwrap();
    env.sql(&format!("BEGIN;{statements}COMMIT; GRANT SELECT (extra) ON t TO {}_least", env.database));
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1 public.t"});
    env.command("check", &mirror, &[]).exits(0);
    let mut run = env.streaming(&mirror);
    env.sql("INSERT INTO t VALUES (904, 'SECRET', 'visible', 'small', 'extra'); UPDATE t SET extra = 'e' WHERE id < 9");
    same(&env, &mut run, "id, v, big, extra");
    run.stop();
    env.verify(&mirror);
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "2"});
    env.catch_up(&mirror);
    env.assert_table("t", "id, v, big, extra", "id");
    assert!(sent(&env, &publication, "visible") > 0);
    assert_eq!(sent(&env, &publication, "SECRET"), 0);
    clean_up(&env);
}

/// An excluded column and others exchange their names: the excluded values are never sent, whatever their
/// column is called.
#[test]
fn renames_beside_a_list() {
    let env = TestEnv::new(Pg::V18);
    let (mirror, publication) = listed(&env);
    let mut run = env.streaming(&mirror);
    env.sql(
        "ALTER TABLE t RENAME secret TO x; ALTER TABLE t RENAME v TO secret; ALTER TABLE t RENAME x TO v; INSERT INTO t VALUES (900, 'SECRET', 'visible', 'small');
        INSERT INTO parts VALUES (900, 'SECRET', 'visible')",
    );
    failed_for(&mut run, "t", Reason::SourceColumnRenamed);
    env.settle(&mut run);
    env.assert_table("parts", "id, v", "id");
    run.stop();
    assert_eq!(env.target_value("SELECT count() FROM t WHERE v LIKE '%SECRET%'"), "0");
    assert_eq!(sent(&env, &publication, "SECRET"), 0);
    clean_up(&env);
}

/// Column lists that `check` refuses: one that lacks a column, one that has an excluded column, and one with
/// which PostgreSQL refuses UPDATE.
#[test]
fn lists_that_do_not_fit() {
    let env = TestEnv::new(Pg::V18);
    let (mirror, publication) = listed(&env);
    for list in ["id, v", "id, v, big, secret"] {
        env.sql(&format!("ALTER PUBLICATION {publication} DROP TABLE t; ALTER PUBLICATION {publication} ADD TABLE t ({list})"));
        env.command("check", &mirror, &[])
            .exits(1)
            .finds("FAILURE", "public.t", "publication")
            .says(&[r#"ADD TABLE ONLY "public"."t" ("id", "v", "big");"#]);
    }
    env.sql(&format!(
        "ALTER PUBLICATION {publication} DROP TABLE t; ALTER PUBLICATION {publication} ADD TABLE t (id, v, big); ALTER TABLE t REPLICA IDENTITY FULL"
    ));
    env.command("check", &mirror, &[])
        .exits(1)
        .finds("FAILURE", "public.t", "publication")
        .says(&[r#"ADD TABLE ONLY "public"."t";"#]);
    env.sql("ALTER TABLE t REPLICA IDENTITY DEFAULT");
    let mut run = env.streaming(&mirror);
    // With this identity the application's own UPDATE fails, until the statement of the remedy has run.
    env.sql("ALTER TABLE t REPLICA IDENTITY FULL");
    let failure = failed_for(&mut run, "t", Reason::SourceReplicaIdentityMissing);
    env.sql(&failure.sql(Side::Source));
    env.sql("UPDATE t SET v = 'w'");
    run.stop();
    clean_up(&env);
}
