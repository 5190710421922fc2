//! Which rows and columns are mirrored, and rows that are changed indirectly: by triggers, cascades or MERGE.

use serde_json::json;
use walferry::fault::Reason;

use crate::support::{Mirror, Pg, TestEnv, failed_for, stalled_for};

/// Rows that enter and leave a filter by UPDATE, in the copy and in the stream.
#[test]
fn rows_that_enter_and_leave_a_filter() {
    let env = TestEnv::new(Pg::V18);
    env.sql(
        "CREATE TABLE by_key (org int, id int, v text, PRIMARY KEY (org, id));
        CREATE TABLE by_all (id int PRIMARY KEY, hidden bool, n int, big text); ALTER TABLE by_all REPLICA IDENTITY FULL, ALTER big SET STORAGE EXTERNAL;
        INSERT INTO by_key SELECT i % 3, i, 'v' FROM generate_series(1, 60) i;
        INSERT INTO by_all SELECT i, CASE i % 3 WHEN 0 THEN true WHEN 1 THEN false END, i, repeat(md5(i::text), 100) FROM generate_series(1, 60) i",
    );
    let mut mirror = env.mirror(&["by_key", "by_all"]);
    mirror.table(0)["where"] = json!("org > 0 -- the first is ours");
    mirror.table(1)["where"] = json!("hidden IS NOT TRUE AND n < 1000");
    let mut run = env.streaming(&mirror);
    env.sql(
        "UPDATE by_key SET org = 1 WHERE org = 0 AND id < 20; UPDATE by_key SET org = 0 WHERE org = 2 AND id < 20;
        UPDATE by_key SET org = 2, id = id + 1000 WHERE org = 0 AND id > 40; DELETE FROM by_key WHERE id % 10 = 0; UPDATE by_key SET v = 'w' WHERE id % 4 = 0;
        INSERT INTO by_key VALUES (0, 7000, 'out'), (1, 7001, 'in')",
    );
    env.sql(
        "UPDATE by_all SET hidden = true WHERE id % 5 = 0; UPDATE by_all SET hidden = NULL WHERE id % 7 = 0; UPDATE by_all SET n = 1000 + n WHERE id = 1;
        UPDATE by_all SET n = 0 WHERE id = 3; UPDATE by_all SET hidden = false, id = id + 500 WHERE id = 6; DELETE FROM by_all WHERE id IN (2, 9)",
    );
    env.settle(&mut run);
    let by_key = "SELECT org, id, v FROM by_key";
    env.assert_same(
        &format!("{by_key} WHERE org > 0 ORDER BY id"),
        &format!("{by_key} FINAL WHERE _walferry_deleted = 0 ORDER BY id"),
    );
    env.assert_same(
        "SELECT id, n, md5(big) FROM by_all WHERE hidden IS NOT TRUE AND n < 1000 ORDER BY id",
        "SELECT id, n, lower(hex(MD5(big))) FROM by_all FINAL WHERE _walferry_deleted = 0 ORDER BY id",
    );
    run.stop();
    env.verify(&mirror);
}

/// A role without privileges on the publication, and the owner's publication with another filter than the
/// Mirror's. Gives the Mirror and the publication's name.
fn published_with_another_filter(env: &TestEnv) -> (Mirror, String) {
    let name = &env.database;
    env.sql(
        "CREATE TABLE t (id int, v text, PRIMARY KEY (id, v)); CREATE TABLE u (id int PRIMARY KEY);
        INSERT INTO t VALUES (1, 'shown'), (2, 'hidden'); INSERT INTO u VALUES (1)",
    );
    env.admin(&format!(
        "CREATE ROLE {name}_least LOGIN REPLICATION PASSWORD 'least-test'; GRANT SELECT ON t, u TO {name}_least"
    ));
    let mut mirror = env.mirror(&["t", "u"]);
    mirror.secrets[0].1 = json!({"username": format!("{name}_least"), "password": "least-test"});
    mirror.table(0)["where"] = json!("v != 'hidden' -- the rest is ours");
    let said = env.command("check", &mirror, &[]).exits(1).text();
    let statement = |beginning: &str| {
        let from = said.find(beginning).unwrap_or_else(|| panic!("no {beginning} in {said}"));
        said[from..].split(';').next().unwrap().to_owned()
    };
    let publication = statement("COMMENT ON PUBLICATION").split('"').nth(1).unwrap().to_owned();
    env.sql(&format!(
        "CREATE PUBLICATION \"{publication}\" FOR TABLE t WHERE (v <> 'shown'), u WITH (publish_via_partition_root = true); {}",
        statement("COMMENT ON PUBLICATION")
    ));
    (mirror, publication)
}

/// Replaces the filter that the owner has published.
fn publish(env: &TestEnv, publication: &str, filter: &str) {
    env.sql(&format!(
        "BEGIN; ALTER PUBLICATION \"{publication}\" DROP TABLE t;
        ALTER PUBLICATION \"{publication}\" ADD TABLE t WHERE ({filter}); COMMIT"
    ));
}

/// With another filter, the publication would send too few rows or too many. The table fails alone until the
/// published filter means the same as the Mirror's.
#[test]
fn a_published_filter_that_differs() {
    let env = TestEnv::new(Pg::V18);
    let name = &env.database;
    let (mirror, publication) = published_with_another_filter(&env);
    env.command("check", &mirror, &[]).exits(1).finds("FAILURE", "public.t", "publication");
    let mut run = env.run(&mirror);
    failed_for(&mut run, "t", Reason::SourcePublicationUnusable);
    env.sql("INSERT INTO u VALUES (2)");
    env.settle(&mut run);
    run.eventually("both rows of the other table", || env.target_value("SELECT count() FROM u FINAL") == "2");

    publish(&env, &publication, "(((v <> 'hidden')))");
    run.until_streaming();
    env.sql("INSERT INTO t VALUES (3, 'shown'), (4, 'hidden')");
    env.settle(&mut run);
    env.assert_same(
        "SELECT id, v FROM t WHERE v <> 'hidden' ORDER BY id",
        "SELECT id, v FROM t FINAL WHERE _walferry_deleted = 0 ORDER BY id",
    );
    run.stop();
    env.command("check", &mirror, &[]).exits(0);
    env.admin(&format!("DROP OWNED BY {name}_least; DROP ROLE {name}_least"));
}

/// Filters are compared by their meaning, with no privileges but SELECT on the mirrored columns.
#[test]
fn published_filters_are_compared_by_meaning() {
    let env = TestEnv::new(Pg::V18);
    let name = &env.database;
    let (mut mirror, publication) = published_with_another_filter(&env);
    publish(&env, &publication, "v <> 'hidden'");
    env.admin(&format!(
        "REVOKE SELECT ON t FROM {name}_least; GRANT SELECT (id, v, ctid) ON t TO {name}_least"
    ));
    env.admin(&format!("REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC"));
    env.command("check", &mirror, &[]).exits(0).finds_nothing("public.t", "publication");
    mirror.table(0)["where"] = json!("v <> 'Hidden'");
    env.command("check", &mirror, &[]).exits(1).finds("FAILURE", "public.t", "publication");
    // The same meaning written otherwise, on columns whose types have modifiers; and other values.
    env.sql(
        "ALTER TABLE t ADD secret varchar(20), ADD kind char(3) DEFAULT 'abc', ADD odd numrange; ALTER TABLE t REPLICA IDENTITY FULL",
    );
    publish(&env, &publication, "NOT (secret = 'x') AND kind IN ('abc', 'def') AND odd @> 1.5");
    mirror.table(0)["where"] =
        json!("(t.secret <> 'x') AND (kind = ANY (ARRAY['abc'::char(3), 'def']) AND odd @> 2.5)");
    env.admin(&format!("GRANT SELECT (secret, kind, odd) ON t TO {name}_least"));
    env.command("check", &mirror, &[]).exits(1).finds("FAILURE", "public.t", "publication");
    mirror.table(0)["where"] =
        json!("(t.secret <> 'x') AND (kind = ANY (ARRAY['abc'::char(3), 'def']) AND odd @> 1.5)");
    env.command("check", &mirror, &[]).exits(0);
    // Where PostgreSQL can't compute the meaning, the text that it shows for the filter is accepted.
    publish(&env, &publication, "id > 0 OR 1 / 0 = 1");
    mirror.table(0)["where"] = json!("id > 0 OR 1 / 0 = 1");
    env.command("check", &mirror, &[])
        .exits(1)
        .finds("FAILURE", "public.t", "publication")
        .says(&["spec.tables[].where: if it does, set \"((id > 0) OR ((1 / 0) = 1))\""]);
    mirror.table(0)["where"] = json!("((id > 0) OR ((1 / 0) = 1))");
    env.command("check", &mirror, &[]).exits(0);
    env.admin(&format!("DROP OWNED BY {name}_least; DROP ROLE {name}_least"));
}

/// Generated and excluded columns never reach the target, whatever becomes of them at the source.
#[test]
fn generated_and_excluded_columns() {
    let env = TestEnv::new(Pg::V18);
    env.sql(
        "CREATE TABLE t (id int PRIMARY KEY, secret text, v text, twice int GENERATED ALWAYS AS (id * 2) STORED, thrice int GENERATED ALWAYS AS (id * 3) VIRTUAL);
        INSERT INTO t (id, secret, v) SELECT i, 'hush', 'v' || i FROM generate_series(1, 10) i",
    );
    let mut mirror = env.mirror(&["t"]);
    mirror.table(0)["columns"] = json!({"exclude": ["secret"]});
    let mut run = env.streaming(&mirror);
    env.sql("UPDATE t SET secret = 'x' WHERE id = 1; INSERT INTO t (id, secret, v) VALUES (11, 'y', 'z'); ALTER TABLE t ALTER twice SET EXPRESSION AS (id * 20)");
    env.sql("ALTER TABLE t ALTER secret TYPE bytea USING secret::bytea; INSERT INTO t (id, v) VALUES (12, 'after')");
    env.settle(&mut run);
    env.assert_table("t", "id, v", "id");
    let columns = "SELECT groupArray(name) FROM (SELECT name FROM system.columns WHERE database = currentDatabase() AND table = 't' ORDER BY position)";
    assert_eq!(env.target_value(columns), "['id','v','_walferry_version','_walferry_deleted']");
    // The excluded column is renamed: the table fails instead of storing its values under the new name.
    env.sql("ALTER TABLE t RENAME secret TO open; INSERT INTO t (id, v) VALUES (13, 'after')");
    let failure = failed_for(&mut run, "t", Reason::SourceColumnRenamed);
    assert!(failure.message.contains("columns.exclude"), "{failure:?}");
    assert_eq!(env.target_value(columns), "['id','v','_walferry_version','_walferry_deleted']");
    run.stop();
}

/// A privilege on the mirrored columns alone is not enough; `check` prints the GRANT with what is missing.
#[test]
fn a_column_without_privilege() {
    let env = TestEnv::new(Pg::V18);
    let role = &env.database;
    env.admin(&format!(
        "CREATE TABLE t (id int PRIMARY KEY, secret text, v text); GRANT SELECT (id, v) ON t TO {role}"
    ));
    let mut mirror = env.mirror(&["t"]);
    mirror.table(0)["columns"] = json!({"exclude": ["secret"]});
    env.command("check", &mirror, &[])
        .exits(1)
        .finds("FAILURE", "public.t", "SELECT")
        .says(&[r#"GRANT SELECT ("id", "v", "ctid") ON "public"."t""#]);
}

/// PostgreSQL can't send a changed row for which the filter fails, nor anything after it. The Mirror stalls
/// with the error's SQLSTATE, without values of the row, until the filter is replaced and all tables are
/// resynced.
#[test]
fn a_filter_that_fails_in_the_stream() {
    let env = TestEnv::new(Pg::V18);
    env.sql(
        "CREATE TABLE a (id int PRIMARY KEY, total int, quantity int, unit text, at timestamp); ALTER TABLE a REPLICA IDENTITY FULL; CREATE TABLE b (id int PRIMARY KEY);
        INSERT INTO a VALUES (1, 60, 10, 'day', '2027-01-09')",
    );
    let cases = [
        ("total / quantity > 5", "(2, 70, 0, 'day', '2027-01-09')", "SQLSTATE 22012"),
        ("date_part(unit, at) > 5", "(3, 70, 1, '4111 SECRET', '2027-01-09')", "SQLSTATE 22023"),
        ("date_part(unit, at) > 5", "(4, 70, 1, 'timezone', '2027-01-09')", "SQLSTATE 0A000"),
    ];
    for (round, (filter, row, sqlstate)) in cases.into_iter().enumerate() {
        env.sql("DELETE FROM a WHERE id > 1; INSERT INTO b SELECT coalesce(max(id), 0) + 1 FROM b");
        let mut mirror = env.mirror(&["a", "b"]);
        mirror.table(0)["where"] = json!(filter);
        mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": format!("broken-{round}")});
        let function = if filter.starts_with("total") { "int4div" } else { "date_part" };
        let checked = env.command("check", &mirror, &[]).exits(0);
        checked.finds("warning", "public.a", "row filter").says(&[function]);
        let mut run = env.streaming(&mirror);
        env.sql(&format!(
            "BEGIN; INSERT INTO b SELECT max(id) + 1 FROM b; INSERT INTO a VALUES {row}; COMMIT"
        ));
        let failure = stalled_for(&mut run, Reason::SourceRowFilterFailed);
        for name in [sqlstate, "public.a"] {
            assert!(failure.message.contains(name), "{failure:?}");
        }
        assert!(failure.resyncs().is_some(), "{failure:?}");
        let log = run.log();
        assert!(!log.contains("4111") && !log.contains("\"timezone\""), "{log}");
        run.stop();
        // As the remedy says: another filter, and a resync.
        mirror.table(0)["where"] = json!("CASE WHEN quantity <> 0 THEN total / quantity > 5 ELSE false END");
        mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": format!("fixed-{round}")});
        let mut run = env.streaming(&mirror);
        env.sql("INSERT INTO a VALUES (90, 1, 0), (91, 90, 1); DELETE FROM a WHERE id >= 90; INSERT INTO b SELECT max(id) + 1 FROM b");
        env.settle(&mut run);
        env.assert_table("b", "id", "id");
        env.assert_same(
            "SELECT id, total FROM a WHERE CASE WHEN quantity <> 0 THEN total / quantity > 5 ELSE false END ORDER BY id",
            "SELECT id, total FROM a FINAL WHERE _walferry_deleted = 0 ORDER BY id",
        );
        run.stop();
    }
}

/// A filter that fails for an existing row stops the copy of that table alone. The table leaves the
/// publication, so that the filter can't stop the stream of the others.
#[test]
fn a_filter_that_fails_in_the_copy() {
    let env = TestEnv::new(Pg::V18);
    env.sql(
        "CREATE TABLE a (id int PRIMARY KEY, total int, quantity int); ALTER TABLE a REPLICA IDENTITY FULL; CREATE TABLE b (id int PRIMARY KEY);
        INSERT INTO a VALUES (1, 60, 10), (2, 70, 0)",
    );
    let mut mirror = env.mirror(&["a", "b"]);
    mirror.table(0)["where"] = json!("total / quantity > 5");
    let mut run = env.run(&mirror);
    let failure = failed_for(&mut run, "a", Reason::SourceRowFilterFailed);
    assert!(failure.message.contains("22012"), "{failure:?}");
    run.eventually("the table to leave the publication", || {
        env.source_value("SELECT count(*) FROM pg_publication_tables WHERE tablename = 'a'") == "0"
    });
    env.sql("INSERT INTO a VALUES (3, 1, 0); INSERT INTO b VALUES (1)");
    env.settle(&mut run);
    env.assert_table("b", "id", "id");
    run.stop();
    mirror.table(0)["where"] = json!("total > 5 * quantity AND quantity <> 0");
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1 public.a"});
    let mut run = env.streaming(&mirror);
    env.sql("INSERT INTO a VALUES (4, 99, 1), (5, 99, 0)");
    env.settle(&mut run);
    assert_eq!(env.target("SELECT id FROM a FINAL WHERE _walferry_deleted = 0 ORDER BY id"), "1\n4\n");
    run.stop();
}

/// `check` warns only of filters that can fail for some values.
#[test]
fn a_filter_that_cannot_fail() {
    let env = TestEnv::new(Pg::V18);
    env.sql(
        "CREATE TABLE t (id int PRIMARY KEY, n numeric, f float8, v text, w varchar(9), d date, at timestamptz, j jsonb, a int[], u uuid, b bool); ALTER TABLE t REPLICA IDENTITY FULL",
    );
    let mut mirror = env.mirror(&["t"]);
    for filter in [
        "id > 5 AND n >= 1 AND f < 3 AND v = 'x' AND b",
        "d >= '2027-01-01' AND at < '2027-01-01' AND u <> 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'",
        "v LIKE 'a%' AND lower(w) = 'x' AND j ->> 'k' = 'v' AND j @> '{}' AND a && '{1}' AND id = ANY ('{1,2}') AND v IS NOT NULL",
    ] {
        mirror.table(0)["where"] = json!(filter);
        env.command("check", &mirror, &[]).exits(0).finds_nothing("public.t", "row filter");
    }
    for filter in ["id + 1 > 5", "substring(v from 1 for id) = 'a'", "n / id > 1"] {
        mirror.table(0)["where"] = json!(filter);
        env.command("check", &mirror, &[]).exits(0).finds("warning", "public.t", "row filter");
    }
}

/// A privilege that is revoked while rows are read stops that table alone.
#[test]
fn a_revoked_privilege() {
    let env = TestEnv::new(Pg::V18);
    let role = &env.database;
    env.sql(
        "CREATE TABLE stays (id int PRIMARY KEY, n int, big text); CREATE TABLE t (id int PRIMARY KEY, n int, big text);
        CREATE TABLE hidden (id int PRIMARY KEY, n int, big text);
        ALTER TABLE t ALTER big SET STORAGE EXTERNAL; ALTER TABLE stays ALTER big SET STORAGE EXTERNAL; ALTER TABLE hidden ALTER big SET STORAGE EXTERNAL;
        INSERT INTO t SELECT i, 0, repeat('x', 5000) FROM generate_series(1, 10) i; INSERT INTO stays SELECT * FROM t; INSERT INTO hidden SELECT * FROM t",
    );
    let mirror = env.mirror(&["stays", "t", "hidden"]);
    let mut run = env.streaming(&mirror);
    env.admin(&format!(
        "REVOKE SELECT ON t FROM {role}; ALTER TABLE hidden ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
        UPDATE t SET n = 1; UPDATE hidden SET n = 1; UPDATE stays SET n = 1"
    ));
    for table in ["t", "hidden"] {
        failed_for(&mut run, table, Reason::SourcePrivilegeMissing);
    }
    env.settle(&mut run);
    env.assert_table("stays", "id, n, big", "id");
    run.stop();
    // `check` prints the statements that restore the privileges, and repeats that both tables have failed.
    let words = ["GRANT SELECT ON", "BYPASSRLS"];
    let report = env.command("check", &mirror, &[]).exits(1).says(&words).says(&["2 failures"]);
    report.finds("FAILURE", "public.t", "state").finds("FAILURE", "public.hidden", "state");
    let mut again = mirror.clone();
    again.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1"});
    let report = env.command("check", &again, &[]).exits(1).says(&words);
    report.finds("FAILURE", "public.t", "SELECT").finds("FAILURE", "public.hidden", "row-level security");
    env.admin(&format!("GRANT SELECT ON t TO {role}; ALTER TABLE hidden NO FORCE ROW LEVEL SECURITY"));
    env.catch_up(&again);
    for table in ["stays", "t", "hidden"] {
        env.assert_table(table, "id, n, big", "id");
    }
}

/// Rows that are changed by cascades, deferred constraints, triggers, COPY, MERGE, ON CONFLICT, CTEs, cursors
/// and views.
#[test]
fn rows_changed_indirectly() {
    let env = TestEnv::new(Pg::V18);
    env.sql(
        "CREATE TABLE parent (id int PRIMARY KEY, n int NOT NULL DEFAULT 0, touched int NOT NULL DEFAULT 0);
        CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE);
        CREATE TABLE orphan (id int PRIMARY KEY, parent int DEFAULT 1 REFERENCES parent ON DELETE SET NULL ON UPDATE SET DEFAULT);
        CREATE TABLE later (id int PRIMARY KEY, parent int NOT NULL REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
        CREATE TABLE log (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, what text);
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO log (what) VALUES (TG_OP); NEW.touched := OLD.touched + 1; RETURN NEW; END $$;
        CREATE TRIGGER note BEFORE UPDATE ON parent FOR EACH ROW EXECUTE FUNCTION note();
        CREATE VIEW shown AS SELECT id, n FROM parent WHERE id > 0;
        INSERT INTO parent (id) SELECT generate_series(1, 40); INSERT INTO child SELECT i, 1 + i % 40 FROM generate_series(1, 100) i;
        INSERT INTO orphan SELECT i, 1 + i % 40 FROM generate_series(1, 100) i",
    );
    let tables = ["parent", "child", "orphan", "later", "log"];
    let mirror = env.mirror(&tables);
    let mut run = env.streaming(&mirror);
    env.sql("DELETE FROM parent WHERE id BETWEEN 2 AND 10; UPDATE parent SET id = id + 100 WHERE id BETWEEN 11 AND 20");
    env.sql("INSERT INTO later VALUES (1, 500), (2, 501); INSERT INTO parent (id) VALUES (500), (501); UPDATE later SET id = id + 10");
    env.sql(
        "MERGE INTO parent p USING (VALUES (1, 5), (21, 6), (900, 7)) AS s (id, n) ON p.id = s.id
        WHEN MATCHED AND s.n = 6 THEN DELETE WHEN MATCHED THEN UPDATE SET n = s.n WHEN NOT MATCHED THEN INSERT (id, n) VALUES (s.id, s.n)",
    );
    env.sql(
        "INSERT INTO parent (id, n) SELECT i, 9 FROM generate_series(20, 30) i ON CONFLICT (id) DO UPDATE SET n = parent.n + excluded.n;
        INSERT INTO parent (id) VALUES (1) ON CONFLICT DO NOTHING;
        WITH gone AS (DELETE FROM child WHERE id > 90 RETURNING id) INSERT INTO log (what) SELECT 'moved ' || id FROM gone;
        UPDATE shown SET n = 77 WHERE id = 30; DELETE FROM shown WHERE id = 31",
    );
    let mut client = env.connect();
    let mut copy = client.copy_in("COPY child FROM STDIN").unwrap();
    std::io::Write::write_all(&mut copy, b"1000\t1\n1001\t\\N\n").unwrap();
    copy.finish().unwrap();
    // A COPY that fails and a constraint that is violated at COMMIT leave nothing.
    let mut copy = client.copy_in("COPY child FROM STDIN").unwrap();
    std::io::Write::write_all(&mut copy, b"1002\t1\n1000\t1\n").unwrap();
    assert!(copy.finish().is_err());
    assert!(client.batch_execute("INSERT INTO later VALUES (99, 12345)").is_err());
    client
        .batch_execute("BEGIN; DECLARE c CURSOR FOR SELECT * FROM parent ORDER BY id FOR UPDATE; FETCH 3 FROM c; UPDATE parent SET n = -1 WHERE CURRENT OF c; COMMIT")
        .unwrap();
    env.sql(
        "TRUNCATE parent CASCADE; INSERT INTO parent (id) VALUES (1), (2); INSERT INTO child VALUES (1, 2)",
    );
    env.sql("INSERT INTO orphan VALUES (1, 2); UPDATE parent SET id = 3 WHERE id = 2");
    env.settle(&mut run);
    env.assert_table("parent", "id, n, touched", "id");
    env.assert_table("child", "id, parent", "id");
    env.assert_table("orphan", "id, parent", "id");
    env.assert_table("later", "id, parent", "id");
    env.assert_table("log", "id, what", "id");
    run.stop();
    env.verify(&mirror);
}
