//! The privileges that docs/security.md lists are enough for a Mirror's whole life, on both sides.

use serde_json::json;
use walferry::fault::Reason;

use crate::{
    on_both,
    support::{Mirror, Pg, TestEnv, failed_for},
};

/// A role with the documented privileges. The ClickHouse user of the tests has no others anyway, and the
/// tables belong to the application's role.
fn least(env: &TestEnv) -> Mirror {
    let name = &env.database;
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 500) i");
    env.admin(&format!(
        "CREATE ROLE {name}_least LOGIN REPLICATION PASSWORD 'least-test';
        GRANT USAGE ON SCHEMA public TO {name}_least; GRANT SELECT ON public.t TO {name}_least"
    ));
    let mut mirror = env.mirror(&["t"]);
    mirror.secrets[0].1 = json!({"username": format!("{name}_least"), "password": "least-test"});
    mirror
}

/// Who changes the publication when the Mirror needs another one.
#[derive(Clone, Copy, PartialEq)]
enum Publisher {
    Walferry,
    /// The tables' owner, by the statements that `check` prints for that role.
    Owner,
}

/// The statements of the first fix that `check` prints for this role.
fn statements_for(role: &str, report: &str) -> String {
    let heading = format!("    -- as {role}");
    let lines = report.lines().skip_while(|line| !line.starts_with(&heading)).skip(1);
    let statements: Vec<&str> = lines.take_while(|line| line.starts_with("    ")).collect();
    assert!(!statements.is_empty(), "nothing for {role} in {report}");
    statements.join("\n")
}

/// Asserts that `check` finds nothing missing once the owner has run the statements that it prints.
#[track_caller]
fn check(env: &TestEnv, mirror: &Mirror, publisher: Publisher) {
    if publisher == Publisher::Owner {
        let outcome = env.command("check", mirror, &[]);
        let report = outcome.text();
        if report.contains(&format!("    -- as {}", env.database)) {
            env.sql(&statements_for(&env.database, &report));
        }
    }
    env.command("check", mirror, &[]).exits(0);
}

/// Changes a table entry with a resync, adds a table, and removes it again.
fn changes(env: &TestEnv, mirror: &mut Mirror, publisher: Publisher) {
    let annotations = |value: &str| json!({"walferry.dev/resync": value});
    mirror.table(0)["columns"] = json!({"exclude": ["v"]});
    mirror.mirror["metadata"]["annotations"] = annotations("changed public.t");
    check(env, mirror, publisher);
    env.catch_up(mirror);
    env.assert_table("t", "id", "id");

    env.sql("CREATE TABLE added (id int PRIMARY KEY); INSERT INTO added VALUES (1)");
    env.admin(&format!("GRANT SELECT ON public.added TO {}_least", env.database));
    let before = mirror.clone();
    let tables = mirror.mirror["spec"]["tables"].as_array_mut().unwrap();
    tables.push(json!({"schema": "public", "name": "added"}));
    check(env, mirror, publisher);
    let mut run = env.streaming(mirror);
    env.sql("INSERT INTO added VALUES (2)");
    env.settle(&mut run);
    run.stop();
    env.assert_table("added", "id", "id");

    *mirror = before;
    check(env, mirror, publisher);
    env.catch_up(mirror);
    env.assert_table("t", "id", "id");
}

/// Copies, streams, follows a new column, and resyncs.
fn lives(env: &TestEnv, mirror: &mut Mirror, round: i32) {
    env.command("check", mirror, &[]).exits(0);
    let mut run = env.streaming(mirror);
    env.sql(&format!(
        "ALTER TABLE t ADD c{round} int DEFAULT 7; UPDATE t SET v = 'w' WHERE id < 9; DELETE FROM t WHERE id = {round}"
    ));
    env.sql(&format!("INSERT INTO t (id, v) VALUES ({}, 'new')", 1000 + round));
    env.settle(&mut run);
    run.stop();
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": round.to_string()});
    env.catch_up(mirror);
    env.assert_table("t", &format!("id, v, c{round}"), "id");
    env.verify(mirror);
}

/// The first printed statement that begins like this.
fn statement(report: &str, beginning: &str) -> String {
    let from = report.find(beginning).unwrap_or_else(|| panic!("no {beginning} in {report}"));
    report[from..].split(';').next().unwrap().to_owned()
}

fn clean_up(env: &TestEnv) {
    let name = &env.database;
    env.admin(&format!("DROP OWNED BY {name}_least; DROP ROLE {name}_least"));
}

/// walferry creates and changes the publication, as a member of the role that owns the tables.
fn with_the_owners_role(pg: Pg) {
    let env = TestEnv::new(pg);
    let mut mirror = least(&env);
    let name = &env.database;
    env.admin(&format!("GRANT CREATE ON DATABASE {name} TO {name}_least; GRANT {name} TO {name}_least"));
    lives(&env, &mut mirror, 1);
    changes(&env, &mut mirror, Publisher::Walferry);
    env.command("teardown", &mirror, &[]).exits(0);
    let left = "SELECT (SELECT count(*) FROM pg_replication_slots WHERE database = current_database()) + (SELECT count(*) FROM pg_publication)";
    assert_eq!(env.source_value(left), "0");
    clean_up(&env);
}

/// The owner creates the publication once, by the statements that `check` prints.
fn with_a_publication_made_by_the_owner(pg: Pg) {
    let env = TestEnv::new(pg);
    let mut mirror = least(&env);
    env.command("check", &mirror, &[]).exits(1);
    check(&env, &mirror, Publisher::Owner);
    lives(&env, &mut mirror, 1);
    changes(&env, &mut mirror, Publisher::Owner);
    // Teardown removes slot and state; only the owner can drop the publication.
    let report = env.command("teardown", &mirror, &[]).exits(0).text();
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
    assert_eq!(env.source_value(slots), "0");
    assert_eq!(env.target_value("SELECT count() FROM _walferry_state FINAL WHERE value != ''"), "0");
    let by = format!(" at the source as {}", env.database);
    let (statement, _) = report.split("stays: run ").nth(1).and_then(|rest| rest.split_once(&by)).unwrap();
    env.sql(statement);
    assert_eq!(env.source_value("SELECT count(*) FROM pg_publication"), "0");
    env.command("teardown", &mirror, &[]).exits(0);
    clean_up(&env);
}

/// SELECT on the root is enough for every kind of partition: with and without a key, by hash, in a schema
/// without USAGE, with row-level security, created or attached later, and changed by commands that are not in
/// the stream.
fn partitions_without_a_grant(pg: Pg) {
    let env = TestEnv::new(pg);
    let mut mirror = least(&env);
    let name = &env.database;
    env.sql(
        "CREATE SCHEMA closed; CREATE TABLE events (id int, day date NOT NULL, v text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
        CREATE TABLE closed.events_1 PARTITION OF events FOR VALUES FROM ('2027-01-01') TO ('2027-02-01'); CREATE TABLE events_rest PARTITION OF events DEFAULT;
        ALTER TABLE events_rest ENABLE ROW LEVEL SECURITY; INSERT INTO events SELECT i, '2027-01-20'::date + i % 30, 'v' || i FROM generate_series(1, 3000) i;
        CREATE TABLE hashed (id int PRIMARY KEY, v text) PARTITION BY HASH (id); CREATE TABLE hashed_0 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE hashed_1 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 1); INSERT INTO hashed SELECT i, 'v' FROM generate_series(1, 3000) i;
        CREATE TABLE logged (day date, line text) PARTITION BY LIST (day); ALTER TABLE logged REPLICA IDENTITY FULL;
        CREATE TABLE logged_1 PARTITION OF logged FOR VALUES IN ('2027-01-01'); ALTER TABLE logged_1 REPLICA IDENTITY FULL;
        INSERT INTO logged SELECT '2027-01-01', 'line ' || i % 10 FROM generate_series(1, 3000) i",
    );
    env.admin(&format!("GRANT SELECT ON events, hashed, logged TO {name}_least"));
    let tables: Vec<_> =
        ["t", "events", "hashed", "logged"].map(|table| json!({"schema": "public", "name": table})).to_vec();
    mirror.mirror["spec"]["tables"] = json!(tables);
    // The owner creates the publication, because membership in that role would be a privilege on everything.
    let report = env.command("check", &mirror, &[]).exits(1).text();
    env.sql(&format!(
        "{}; {}",
        statement(&report, "CREATE PUBLICATION"),
        statement(&report, "COMMENT ON PUBLICATION")
    ));
    env.command("check", &mirror, &[]).exits(0).finds("ok", "public.events", "SELECT");
    let mut run = env.streaming(&mirror);
    let same = |run: &mut crate::support::Run, what: &str| {
        env.settle(run);
        for (table, columns) in [("events", "id, day, v"), ("hashed", "id, v")] {
            let target =
                format!("SELECT {columns} FROM {table} FINAL WHERE _walferry_deleted = 0 ORDER BY ALL");
            run.eventually(&format!("{table} after {what}"), || {
                env.source(&format!("SELECT {columns} FROM {table} ORDER BY 1, 2")) == env.target(&target)
            });
        }
        run.eventually(&format!("logged after {what}"), || {
            let target = "SELECT day, line, sum(_walferry_sign) FROM logged FINAL GROUP BY ALL HAVING sum(_walferry_sign) > 0 ORDER BY ALL";
            let target = env.clickhouse.try_query(&env.database, target);
            target.is_ok_and(|target| target == env.source("SELECT day, line, count(*) FROM logged GROUP BY 1, 2 ORDER BY 1, 2"))
        });
        run.until_streaming();
    };
    same(&mut run, "the copy");
    env.sql(
        "CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM ('2027-03-01') TO ('2027-04-01'); INSERT INTO events VALUES (1, '2027-03-05', 'new');
        CREATE TABLE logged_2 (day date, line text); ALTER TABLE logged_2 REPLICA IDENTITY FULL; INSERT INTO logged_2 VALUES ('2027-02-02', 'attached');
        ALTER TABLE logged ATTACH PARTITION logged_2 FOR VALUES IN ('2027-02-02'); DELETE FROM hashed WHERE id % 3 = 0",
    );
    same(&mut run, "new partitions");
    env.sql(
        "CREATE TABLE closed.events_3 (LIKE events INCLUDING ALL); INSERT INTO closed.events_3 SELECT i, '2027-04-02', 'attached' FROM generate_series(1, 2000) i;
        ALTER TABLE events ATTACH PARTITION closed.events_3 FOR VALUES FROM ('2027-04-01') TO ('2027-05-01'); TRUNCATE hashed_0; UPDATE events SET v = 'w' WHERE id = 7",
    );
    same(&mut run, "changes that the stream lacks");
    run.stop();
    env.verify(&mirror);
    clean_up(&env);
}

/// A table is copied again automatically once its privilege is granted again; the other tables stream all the
/// time.
fn a_privilege_that_is_given_back(pg: Pg) {
    let env = TestEnv::new(pg);
    let role = &env.database;
    env.sql(
        "CREATE TABLE stays (id int PRIMARY KEY, n int); CREATE TABLE t (id int PRIMARY KEY, n int, big text); ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
        INSERT INTO t SELECT i, 0, repeat('x', 5000) FROM generate_series(1, 10) i; INSERT INTO stays VALUES (1, 0)",
    );
    let mirror = env.mirror(&["stays", "t"]);
    let mut run = env.streaming(&mirror);
    env.admin(&format!("REVOKE SELECT ON t FROM {role}; UPDATE t SET n = 1"));
    failed_for(&mut run, "t", Reason::SourcePrivilegeMissing);
    env.admin("DELETE FROM t WHERE id < 3; UPDATE t SET n = 2 WHERE id = 5; UPDATE stays SET n = 1");
    env.settle(&mut run);
    env.assert_table("stays", "id, n", "id");
    // The table stays failed while the privilege is missing, also after a restart.
    run.stop();
    let mut run = env.run(&mirror);
    failed_for(&mut run, "t", Reason::SourcePrivilegeMissing);
    env.admin(&format!("GRANT SELECT ON t TO {role}; INSERT INTO t VALUES (11, 3, 'y')"));
    run.until_streaming();
    env.settle(&mut run);
    env.assert_table("t", "id, n, big", "id");
    env.assert_table("stays", "id, n", "id");
    run.stop();
    env.verify(&mirror);
}

/// A role with SELECT on the mirrored columns alone, granted by the statements that `check` prints, is enough
/// for tables with and without a key, for partitioned ones, and for values that are re-fetched.
fn column_privileges_alone(pg: Pg) {
    let env = TestEnv::new(pg);
    let name = &env.database;
    env.sql(
        "CREATE TABLE t (id int PRIMARY KEY, secret text, v text, big text); ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
        INSERT INTO t SELECT i, 'SECRET', 'v' || i, repeat('x', 5000) FROM generate_series(1, 2000) i;
        CREATE TABLE log (n int, secret text, line text); ALTER TABLE log REPLICA IDENTITY FULL;
        INSERT INTO log SELECT i % 7, 'SECRET', 'line' FROM generate_series(1, 2000) i;
        CREATE TABLE parts (id int, secret text, v text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
        CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (1000); CREATE TABLE parts_2 (v text, secret text, id int PRIMARY KEY);
        ALTER TABLE parts ATTACH PARTITION parts_2 FOR VALUES FROM (1000) TO (9000);
        INSERT INTO parts SELECT i, 'SECRET', 'v' || i FROM generate_series(1, 2000) i;
        CREATE TABLE lines (n int, secret text, line text) PARTITION BY LIST (secret); ALTER TABLE lines REPLICA IDENTITY FULL;
        CREATE TABLE lines_1 PARTITION OF lines FOR VALUES IN ('SECRET'); ALTER TABLE lines_1 REPLICA IDENTITY FULL;
        INSERT INTO lines SELECT i % 7, 'SECRET', 'line' FROM generate_series(1, 2000) i",
    );
    env.admin(&format!(
        "CREATE ROLE {name}_least LOGIN REPLICATION PASSWORD 'least-test'; GRANT USAGE ON SCHEMA public TO {name}_least"
    ));
    let mut mirror = env.mirror(&["t", "log", "parts", "lines"]);
    mirror.secrets[0].1 = json!({"username": format!("{name}_least"), "password": "least-test"});
    (0..4).for_each(|table| mirror.table(table)["columns"] = json!({"exclude": ["secret"]}));
    let report = env.command("check", &mirror, &[]).exits(1).text();
    let grants: Vec<&str> =
        report.lines().map(str::trim).filter(|line| line.starts_with("GRANT SELECT")).collect();
    assert_eq!(grants.len(), 4, "{report}");
    let of_t = format!(r#"GRANT SELECT ("id", "v", "big", "ctid") ON "public"."t" TO "{name}_least";"#);
    assert!(grants.contains(&of_t.as_str()), "{report}");
    env.sql(&grants.join("\n"));
    env.sql(&format!("GRANT SELECT (id, v, ctid) ON parts_1 TO {name}_least"));
    env.sql(&format!(
        "{}; {}",
        statement(&report, "CREATE PUBLICATION"),
        statement(&report, "COMMENT ON PUBLICATION")
    ));
    env.command("check", &mirror, &[]).exits(0).finds("ok", "public.parts", "SELECT");
    for table in ["t", "log", "parts", "lines"] {
        let query = format!("SET ROLE {name}_least; SELECT secret FROM {table}");
        let refused = env.connect_admin().batch_execute(&query).unwrap_err();
        assert_eq!(refused.code().map(postgres::error::SqlState::code), Some("42501"));
    }
    let mut run = env.streaming(&mirror);
    let same = |run: &mut crate::support::Run, what: &str| {
        env.settle(run);
        for (table, columns) in [("t", "id, v, big"), ("parts", "id, v")] {
            let target =
                format!("SELECT {columns} FROM {table} FINAL WHERE _walferry_deleted = 0 ORDER BY id");
            run.eventually(&format!("{table} after {what}"), || {
                env.source(&format!("SELECT {columns} FROM {table} ORDER BY id")) == env.target(&target)
            });
        }
        for table in ["log", "lines"] {
            let source = format!("SELECT n, line, count(*) FROM {table} GROUP BY 1, 2 ORDER BY 1, 2");
            let target = format!(
                "SELECT n, line, sum(_walferry_sign) FROM {table} FINAL GROUP BY ALL HAVING sum(_walferry_sign) > 0 ORDER BY ALL"
            );
            run.eventually(&format!("{table} after {what}"), || {
                env.clickhouse
                    .try_query(&env.database, &target)
                    .is_ok_and(|target| target == env.source(&source))
            });
        }
        run.until_streaming();
    };
    same(&mut run, "the copy");
    env.sql(
        "INSERT INTO t VALUES (9001, 'SECRET', 'new', 'small'); UPDATE t SET v = 'w', secret = 'SECRET too' WHERE id < 50; DELETE FROM t WHERE id = 60;
        INSERT INTO log VALUES (1, 'SECRET', 'line'); UPDATE log SET n = 8 WHERE n = 3; DELETE FROM log WHERE n = 4;
        UPDATE parts SET v = 'w' WHERE id % 100 = 0; DELETE FROM parts WHERE id % 100 = 1;
        UPDATE lines SET n = 8 WHERE n = 3; DELETE FROM lines WHERE n = 4",
    );
    same(&mut run, "changes");
    env.sql(
        "CREATE TABLE lines_2 (n int, secret text, line text); ALTER TABLE lines_2 REPLICA IDENTITY FULL; INSERT INTO lines_2 VALUES (1, 'S2', 'attached');
        ALTER TABLE lines ATTACH PARTITION lines_2 FOR VALUES IN ('S2');
        CREATE TABLE parts_3 (id int PRIMARY KEY, secret text, v text); INSERT INTO parts_3 VALUES (9500, 'SECRET', 'attached');
        ALTER TABLE parts ATTACH PARTITION parts_3 FOR VALUES FROM (9000) TO (10000)",
    );
    same(&mut run, "attached partitions");
    env.sql("TRUNCATE log; INSERT INTO log VALUES (5, 'SECRET', 'later')");
    same(&mut run, "TRUNCATE");
    // A new column streams before the role may read it.
    env.sql("ALTER TABLE t ADD extra text DEFAULT 'e'; UPDATE t SET v = 'x' WHERE id = 70; INSERT INTO t (id, extra) VALUES (9002, 'f')");
    same(&mut run, "ADD COLUMN");
    env.assert_table("t", "id, v, extra", "id");
    env.command("check", &mirror, &[]).finds("warning", "public.t", "SELECT");
    env.sql(&format!("GRANT SELECT (extra) ON t TO {name}_least"));
    env.command("check", &mirror, &[]).exits(0);
    run.stop();
    env.verify(&mirror);
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1"});
    env.catch_up(&mirror);
    env.assert_table("t", "id, v, big, extra", "id");
    env.verify(&mirror);
    assert_eq!(
        env.target_value(
            "SELECT count() FROM system.columns WHERE database = currentDatabase() AND name = 'secret'"
        ),
        "0"
    );
    clean_up(&env);
}

on_both!(
    with_the_owners_role,
    column_privileges_alone,
    with_a_publication_made_by_the_owner,
    partitions_without_a_grant,
    a_privilege_that_is_given_back
);
