//! The statements that `walferry check` prints are run verbatim while the application writes, until nothing
//! is left to fix. Then everything is mirrored.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::support::{Mirror, Pg, Server, TestEnv, Writer, findings, printed};

/// Something that prevents a table `t` from being mirrored.
struct Problem {
    /// Run as a superuser; `ROLE` is the Mirror's. The application writes as a superuser too.
    source: &'static str,
    /// Run at the destination.
    destination: &'static str,
    /// What the table's entry has besides its name.
    entry: fn() -> Value,
    /// The check that fails.
    check: &'static str,
    /// What the application does all the time; `{n}` is another number each time.
    writes: &'static str,
}

const WRITES: &str =
    "INSERT INTO t (id, n) VALUES ({n} + 10000, {n}); UPDATE t SET n = n + 1 WHERE id = {n} % 2000;
    DELETE FROM t WHERE id = {n} + 9990";
const ROWS: &str = "INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i";

#[track_caller]
fn is_fixed(env: &TestEnv, mirror: &Mirror, problem: &Problem) {
    let place = |sql: &str| sql.replace("ROLE", &env.database).replace("DB", &env.database);
    env.admin(&place(problem.source));
    if !problem.destination.is_empty() {
        place(problem.destination).split(";\n").for_each(|statement| drop(env.target(statement)));
    }
    let mut mirror = mirror.clone();
    for (key, value) in (problem.entry)().as_object().unwrap() {
        mirror.table(0)[key] = value.clone();
    }
    let check = problem.check;
    let report = env.command("check", &mirror, &[]).exits(1).text();
    let fails = findings(&report).iter().any(|found| found.result == "FAILURE" && found.check == check);
    assert!(fails, "no failure of {check} in:\n{report}");
    let writes = problem.writes;
    let writer = Writer::start(env.connect_admin(), move |n| writes.replace("{n}", &n.to_string()));
    for round in 0.. {
        let outcome = env.command("check", &mirror, &[]);
        let report = outcome.text();
        let statements = printed(&report, "To fix:");
        if statements.is_empty() {
            outcome.exits(0);
            break;
        }
        assert!(round < 4, "it is not fixed:\n{report}");
        statements.iter().for_each(|printed| printed.run(env, &env.postgres_server));
    }
    let mut run = env.streaming(&mirror);
    assert!(writer.finish() > 0, "{check}: nothing was written");
    env.settle(&mut run);
    run.stop();
    env.verify(&mirror);
}

/// Each of them in a pair of databases of its own.
#[track_caller]
fn are_fixed(problems: &[Problem]) {
    for problem in problems {
        let env = TestEnv::new(Pg::V18);
        is_fixed(&env, &env.mirror(&["t"]), problem);
    }
}

const NOTHING: fn() -> Value = || json!({});

/// What most problems have in common.
const PROBLEM: Problem = Problem { source: "", destination: "", entry: NOTHING, check: "", writes: WRITES };

#[test]
fn privileges_at_the_source() {
    are_fixed(&[
        Problem {
            source: "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i",
            check: "SELECT",
            ..PROBLEM
        },
        Problem {
            source: "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i;
                ALTER TABLE t OWNER TO ROLE; ALTER DATABASE DB OWNER TO postgres",
            check: "publication",
            ..PROBLEM
        },
        Problem {
            source: "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i;
                ALTER TABLE t OWNER TO ROLE; ALTER USER ROLE NOREPLICATION",
            check: "role",
            ..PROBLEM
        },
        Problem {
            source: "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i;
                ALTER TABLE t OWNER TO ROLE; ALTER TABLE t ENABLE ROW LEVEL SECURITY; ALTER TABLE t FORCE ROW LEVEL SECURITY;
                CREATE POLICY even ON t USING (n % 2 = 0)",
            check: "row-level security",
            ..PROBLEM
        },
        // The schema is closed too, and only some columns are mirrored.
        Problem {
            source: "CREATE SCHEMA closed; CREATE TABLE closed.t (id int PRIMARY KEY, n int, secret text DEFAULT 's');
                INSERT INTO closed.t SELECT i, i FROM generate_series(1, 2000) i",
            entry: || json!({"schema": "closed", "columns": {"exclude": ["secret"]}}),
            check: "SELECT",
            writes: "INSERT INTO closed.t (id, n) VALUES ({n} + 10000, {n}); UPDATE closed.t SET n = n + 1 WHERE id = {n} % 2000",
            ..PROBLEM
        },
        Problem {
            source: "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i;
                ALTER TABLE t OWNER TO ROLE; REVOKE CONNECT ON DATABASE DB FROM public, ROLE",
            check: "connection",
            ..PROBLEM
        },
    ]);
}

/// A publication with the Mirror's name exists, and is not the one that is needed.
#[test]
fn publications() {
    const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, n int, extra text); INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i;
        CREATE TABLE other (id int PRIMARY KEY); ALTER TABLE t OWNER TO ROLE; ALTER TABLE other OWNER TO ROLE;";
    const OURS: &str =
        "ALTER PUBLICATION PUBLICATION OWNER TO ROLE; COMMENT ON PUBLICATION PUBLICATION IS 'COMMENT'";
    let filtered: fn() -> Value = || json!({"where": "id > 3"});
    let cases = [
        ("CREATE PUBLICATION PUBLICATION FOR ALL TABLES", NOTHING),
        ("CREATE PUBLICATION PUBLICATION FOR TABLES IN SCHEMA public", NOTHING),
        ("CREATE PUBLICATION PUBLICATION FOR TABLE t WITH (publish_via_partition_root = true)", NOTHING),
        ("CREATE PUBLICATION PUBLICATION FOR TABLE t WITH (publish = 'insert'); OURS", NOTHING),
        (
            "CREATE PUBLICATION PUBLICATION FOR TABLE other WITH (publish_via_partition_root = true); OURS;
            ALTER PUBLICATION PUBLICATION OWNER TO postgres",
            NOTHING,
        ),
        (
            "CREATE PUBLICATION PUBLICATION FOR TABLE t WHERE (id > 5) WITH (publish_via_partition_root = true); OURS",
            NOTHING,
        ),
        (
            "CREATE PUBLICATION PUBLICATION FOR TABLE t WHERE (id > 5) WITH (publish_via_partition_root = true); OURS",
            filtered,
        ),
        (
            "CREATE PUBLICATION PUBLICATION FOR TABLE t (id, n) WITH (publish_via_partition_root = true); OURS",
            NOTHING,
        ),
    ];
    for (made, entry) in cases {
        let env = TestEnv::new(Pg::V18);
        let mirror = env.mirror(&["t"]);
        // The name and the comment of the publication are those that walferry itself uses.
        env.sql("CREATE TABLE t (id int PRIMARY KEY)");
        env.catch_up(&mirror);
        let name = env.source_value("SELECT pubname FROM pg_publication");
        let comment = env.source_value("SELECT obj_description(oid) FROM pg_publication");
        env.command("teardown", &mirror, &[]).exits(0);
        env.sql("DROP TABLE t");
        env.target("DROP TABLE t");
        let publication =
            made.replace("OURS", OURS).replace("PUBLICATION PUBLICATION", &format!("PUBLICATION {name}"));
        env.admin(&TABLE.replace("ROLE", &env.database));
        env.admin(&publication.replace("COMMENT'", &format!("{comment}'")).replace("ROLE", &env.database));
        is_fixed(&env, &mirror, &Problem { entry, check: "publication", ..PROBLEM });
    }
}

#[test]
fn replica_identities() {
    are_fixed(&[
        Problem {
            source: "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i;
                CREATE UNIQUE INDEX t_by_both ON t (n, id); ALTER TABLE t OWNER TO ROLE",
            entry: || json!({"engine": {"orderBy": ["n", "id"]}}),
            check: "table",
            ..PROBLEM
        },
        Problem {
            source: "CREATE TABLE t (id int, n int NOT NULL); INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i;
                ALTER TABLE t ALTER id SET NOT NULL; CREATE UNIQUE INDEX t_by_id ON t (id); ALTER TABLE t OWNER TO ROLE",
            check: "replica identity",
            ..PROBLEM
        },
        Problem {
            source: "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i;
                ALTER TABLE t REPLICA IDENTITY NOTHING; ALTER TABLE t OWNER TO ROLE",
            check: "replica identity",
            ..PROBLEM
        },
        Problem {
            source: "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i;
                ALTER TABLE t OWNER TO ROLE",
            entry: || json!({"where": "n > 7"}),
            check: "row filter",
            ..PROBLEM
        },
        Problem {
            source: "CREATE TABLE t (id int, n int); INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i;
                ALTER TABLE t OWNER TO ROLE",
            check: "replica identity",
            ..PROBLEM
        },
        Problem {
            source: "CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL); INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i;
                ALTER TABLE t OWNER TO ROLE",
            entry: || json!({"engine": {"orderBy": ["n", "id"]}}),
            check: "table",
            ..PROBLEM
        },
        Problem {
            source: "CREATE TABLE t (id int PRIMARY KEY, n int) PARTITION BY RANGE (id);
                CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (5000); CREATE TABLE t_2 PARTITION OF t DEFAULT;
                INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i; ALTER TABLE t_1 REPLICA IDENTITY NOTHING; ALTER TABLE t_2 REPLICA IDENTITY NOTHING;
                ALTER TABLE t OWNER TO ROLE; ALTER TABLE t_1 OWNER TO ROLE; ALTER TABLE t_2 OWNER TO ROLE",
            check: "replica identity",
            ..PROBLEM
        },
        Problem {
            source: "CREATE TABLE t (id int, n int) PARTITION BY RANGE (id);
                CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (5000); CREATE TABLE t_2 PARTITION OF t DEFAULT;
                INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i;
                ALTER TABLE t OWNER TO ROLE; ALTER TABLE t_1 OWNER TO ROLE; ALTER TABLE t_2 OWNER TO ROLE",
            check: "replica identity",
            ..PROBLEM
        },
        // REPLICA IDENTITY FULL is no remedy for a table with generated columns.
        Problem {
            source: "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, n int, twice int GENERATED ALWAYS AS (n * 2) STORED);
                INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i; ALTER TABLE t OWNER TO ROLE",
            check: "replica identity",
            ..PROBLEM
        },
        Problem {
            source: "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, n int); INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i;
                ALTER TABLE t OWNER TO ROLE",
            check: "replica identity",
            // The application relies on the key being deferrable.
            writes: "BEGIN; SET CONSTRAINTS ALL DEFERRED; UPDATE t SET id = 3 - id WHERE id IN (1, 2); COMMIT",
            ..PROBLEM
        },
    ]);
}

#[test]
fn unlogged_tables() {
    are_fixed(&[Problem {
        source: "CREATE UNLOGGED TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i;
            ALTER TABLE t OWNER TO ROLE",
        destination: "",
        entry: NOTHING,
        check: "table",
        writes: WRITES,
    }]);
}

#[test]
fn conflicting_targets() {
    const SOURCE: &str = "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i;
        ALTER TABLE t OWNER TO ROLE";
    are_fixed(&[
        Problem {
            source: SOURCE,
            destination: "CREATE TABLE t (id Int32, n Nullable(Int32), _walferry_version UInt64, _walferry_deleted UInt8)
                ENGINE = ReplacingMergeTree(_walferry_version, _walferry_deleted) ORDER BY id;
                INSERT INTO t VALUES (77, 1, 1, 0)",
            check: "target table",
            ..PROBLEM
        },
        Problem {
            source: SOURCE,
            destination: "CREATE TABLE t (id Int32, n Nullable(Int32)) ENGINE = MergeTree ORDER BY id",
            check: "target table",
            ..PROBLEM
        },
        Problem {
            source: SOURCE,
            destination: "DROP DATABASE DB",
            check: "database",
            ..PROBLEM
        },
    ]);
}

/// A user who may only read gets the grants that `check` prints.
#[test]
fn privileges_at_the_destination() {
    crate::needs_own_server!();
    let env = TestEnv::on(Server::shared_postgres(Pg::V18), Arc::new(Server::clickhouse(&[])));
    env.sql(&format!("CREATE TABLE t (id int PRIMARY KEY, n int); {ROWS}"));
    let mut mirror = env.mirror(&["t"]);
    mirror.secrets[1].1 = json!({"username": "reader", "password": "reader-test"});
    let report = env.command("check", &mirror, &[]).exits(1).text();
    let statements: String = printed(&report, "To fix:").into_iter().map(|printed| printed.sql).collect();
    assert!(!statements.is_empty(), "{report}");
    env.grant_at_target("reader", &statements);
    env.command("check", &mirror, &[]).exits(0);
    let writer = Writer::start(env.connect(), |n| WRITES.replace("{n}", &n.to_string()));
    let mut run = env.streaming(&mirror);
    assert!(writer.finish() > 0);
    env.settle(&mut run);
    run.stop();
    env.verify(&mirror);
}
