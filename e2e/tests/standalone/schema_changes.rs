//! Every change of a table's definition: while it streams, while walferry is stopped, and before the table is
//! copied. A change is followed, or fails that table alone with a remedy, and a resync repairs it.

use serde_json::{Value, json};

use crate::support::{Mirror, Pg, Run, TestEnv, Writer, failed_message};

/// What the change does to the table's replication.
enum Outcome {
    /// Both sides are equal: the columns at the source, and at the target.
    Follows(&'static str, &'static str),
    /// The table fails alone for this reason with these remedies; after `fix` at the target and a resync both
    /// sides are equal.
    Fails { words: &'static [&'static str], fix: &'static str, columns: &'static str },
}

use Outcome::{Fails, Follows};

/// One change of a table of its own; `{t}` is its name.
struct Case {
    table: &'static str,
    /// The table's columns and its existing rows.
    create: &'static str,
    /// Each string is one transaction, or several statements of one.
    change: &'static [&'static str],
    outcome: Outcome,
}

const PLAIN: &str = "CREATE TABLE {t} (id int PRIMARY KEY, a text, b text); INSERT INTO {t} SELECT i, 'a' || i, 'b' || i FROM generate_series(1, 5) i";
const NUMBERS: &str = "CREATE TABLE {t} (id int PRIMARY KEY, n int, m bigint, d numeric(10,2), v varchar(20)); INSERT INTO {t} SELECT i, i, i, i + 0.25, 'v' FROM generate_series(1, 5) i";

const fn follows(table: &'static str, change: &'static [&'static str], columns: &'static str) -> Case {
    Case { table, create: PLAIN, change, outcome: Follows(columns, columns) }
}

/// Changes of columns, which the stream shows only by the rows that follow.
const COLUMNS: &[Case] = &[
    follows(
        "add_nullable",
        &["ALTER TABLE {t} ADD c int", "INSERT INTO {t} VALUES (6, 'x', 'y', 7)"],
        "id, a, b, c",
    ),
    follows(
        "add_constant",
        &[
            "ALTER TABLE {t} ADD c text NOT NULL DEFAULT 'it''s'",
            "UPDATE {t} SET a = 'x' WHERE id = 2",
            "INSERT INTO {t} VALUES (6, 'x', 'y', 'z')",
        ],
        "id, a, b, c",
    ),
    follows("add_and_no_row", &["ALTER TABLE {t} ADD c int DEFAULT 5"], "id, a, b, c"),
    follows(
        "add_volatile",
        &[
            "ALTER TABLE {t} ADD c int NOT NULL DEFAULT (random() * 1000000)::int",
            "INSERT INTO {t} VALUES (6, 'x', 'y')",
        ],
        "id, a, b, c",
    ),
    follows("add_identity", &["ALTER TABLE {t} ADD c int GENERATED ALWAYS AS IDENTITY"], "id, a, b, c"),
    follows(
        "add_stored",
        &[
            "ALTER TABLE {t} ADD g int GENERATED ALWAYS AS (id * 2) STORED",
            "INSERT INTO {t} VALUES (6, 'x', 'y')",
        ],
        "id, a, b",
    ),
    follows(
        "add_virtual",
        &[
            "ALTER TABLE {t} ADD g int GENERATED ALWAYS AS (id * 2) VIRTUAL",
            "INSERT INTO {t} VALUES (6, 'x', 'y')",
        ],
        "id, a, b",
    ),
    // This type has no binary decoder, so all columns are sent as text.
    follows(
        "add_text_only",
        &["ALTER TABLE {t} ADD c inet", "INSERT INTO {t} VALUES (6, 'x', 'y', '10.0.0.1')"],
        "id, a, b, c",
    ),
    Case {
        table: "rename",
        create: PLAIN,
        change: &[
            "ALTER TABLE {t} RENAME a TO c",
            "INSERT INTO {t} VALUES (6, 'x', 'y')",
            "UPDATE {t} SET c = 'z' WHERE id = 1",
        ],
        outcome: Follows("id, c, b", "id, a, b"),
    },
    Case {
        table: "rename_key",
        create: PLAIN,
        change: &[
            "ALTER TABLE {t} RENAME id TO key",
            "UPDATE {t} SET key = 9 WHERE key = 1; DELETE FROM {t} WHERE key = 2",
        ],
        outcome: Follows("key, a, b", "id, a, b"),
    },
    Case {
        table: "swap",
        create: PLAIN,
        change: &[
            "INSERT INTO {t} VALUES (6, 'old a', 'old b')",
            "ALTER TABLE {t} RENAME a TO x; ALTER TABLE {t} RENAME b TO a; ALTER TABLE {t} RENAME x TO b",
            "INSERT INTO {t} (id, a, b) VALUES (7, 'new a', 'new b')",
        ],
        outcome: Follows("id, b, a", "id, a, b"),
    },
    Case {
        table: "rename_and_reuse",
        create: PLAIN,
        change: &[
            "ALTER TABLE {t} RENAME a TO c",
            "ALTER TABLE {t} ADD a text",
            "INSERT INTO {t} VALUES (6, 'c', 'b', 'a')",
        ],
        outcome: Follows("id, c, b, a", "id, c, b, a"),
    },
    follows("drop", &["ALTER TABLE {t} DROP a", "INSERT INTO {t} VALUES (6, 'y')"], "id, b"),
    follows(
        "drop_and_add",
        &[
            "INSERT INTO {t} VALUES (6, 'old', 'old')",
            "ALTER TABLE {t} DROP b, ADD b text",
            "INSERT INTO {t} VALUES (7, 'x', 'new')",
        ],
        "id, a, b",
    ),
    follows(
        "drop_and_add_middle",
        &[
            "INSERT INTO {t} VALUES (6, 'old', 'old')",
            "ALTER TABLE {t} DROP a, ADD a text",
            "INSERT INTO {t} (id, a) VALUES (7, 'new')",
        ],
        "id, a, b",
    ),
    follows("drop_and_add_no_row", &["ALTER TABLE {t} DROP b, ADD b text DEFAULT 'd'"], "id, a, b"),
    Case {
        table: "drop_and_add_other",
        create: PLAIN,
        change: &["ALTER TABLE {t} DROP b, ADD b int", "INSERT INTO {t} VALUES (6, 'x', 7)"],
        outcome: Fails {
            words: &["b", "DROP COLUMN", "walferry.dev/resync"],
            fix: "ALTER TABLE {t} DROP COLUMN b",
            columns: "id, a, b",
        },
    },
    follows(
        "many_in_one",
        &[
            "INSERT INTO {t} VALUES (6, 'x', 'y'); ALTER TABLE {t} ADD c int DEFAULT 3; INSERT INTO {t} VALUES (7, 'x', 'y', 8); \
             UPDATE {t} SET c = 1 WHERE id < 3; ALTER TABLE {t} DROP b; INSERT INTO {t} VALUES (9, 'x', 4); \
             ALTER TABLE {t} ADD d text; INSERT INTO {t} VALUES (10, 'x', 4, 'd'); DELETE FROM {t} WHERE id = 4",
        ],
        "id, a, c, d",
    ),
    follows(
        "rolled_back",
        &[
            "BEGIN; ALTER TABLE {t} ADD c int; INSERT INTO {t} VALUES (6, 'x', 'y', 1); ROLLBACK",
            "BEGIN; SAVEPOINT s; ALTER TABLE {t} DROP a; INSERT INTO {t} VALUES (7, 'no'); ROLLBACK TO s; INSERT INTO {t} VALUES (8, 'x', 'y'); COMMIT",
        ],
        "id, a, b",
    ),
];

/// Changes of types, of the key, and of the table itself.
const TABLES: &[Case] = &[
    Case {
        table: "to_varchar",
        create: PLAIN,
        change: &[
            "ALTER TABLE {t} ALTER a TYPE varchar(50), ALTER b TYPE varchar(60)",
            "INSERT INTO {t} VALUES (6, 'x', 'y')",
        ],
        outcome: Follows("id, a, b", "id, a, b"),
    },
    Case {
        table: "to_text",
        create: NUMBERS,
        change: &[
            "ALTER TABLE {t} ALTER v TYPE text",
            "INSERT INTO {t} VALUES (6, 6, 6, 6.25, repeat('v', 50))",
        ],
        outcome: Follows("id, n, m, d, v", "id, n, m, d, v"),
    },
    Case {
        table: "widened",
        create: NUMBERS,
        change: &[
            "ALTER TABLE {t} ALTER n TYPE bigint",
            "INSERT INTO {t} VALUES (6, 6000000000, 6, 6.25, 'v')",
            "UPDATE {t} SET n = -n WHERE id < 3; DELETE FROM {t} WHERE id = 4",
        ],
        outcome: Follows("id, n, m, d, v", "id, n, m, d, v"),
    },
    Case {
        table: "widened_twice",
        create: "CREATE TABLE {t} (id int PRIMARY KEY, s smallint NOT NULL DEFAULT 5, r real, d numeric(10,2), i int[], c timestamp(3)); INSERT INTO {t} SELECT i, i, i / 8.0, i + 0.25, ARRAY[i], NULL FROM generate_series(1, 5) i",
        change: &[
            "INSERT INTO {t} VALUES (6, 6, 0.1, 6.25, '{6}')",
            "ALTER TABLE {t} ALTER s TYPE int, ALTER r TYPE double precision, ALTER d TYPE numeric(12,4), ALTER c TYPE timestamp(6)",
            "INSERT INTO {t} VALUES (7, 70000, 0.1, 7.1234, '{7}')",
            "ALTER TABLE {t} ALTER s TYPE numeric(20,2), ALTER i TYPE bigint[]",
            "INSERT INTO {t} VALUES (8, 80000.25, 0.2, 8.25, '{8000000000}'); UPDATE {t} SET r = 0.3 WHERE id = 2",
        ],
        outcome: Follows(
            "id, s::text, r, d::text, array_to_string(i, ',') AS i, c",
            "id, toDecimalString(s, 2) AS s, r, toDecimalString(assumeNotNull(d), 4) AS d, arrayStringConcat(i, ',') AS i, c",
        ),
    },
    // Computed values look like values that are only rewritten in another type.
    Case {
        table: "widened_using",
        create: NUMBERS,
        change: &[
            "INSERT INTO {t} VALUES (6, 6, 6, 6.25, 'v')",
            "ALTER TABLE {t} ALTER n TYPE bigint USING n * 3000000000, ALTER d TYPE numeric(14,2) USING d + 2",
        ],
        outcome: Follows("id, n, m, d, v", "id, n, m, d, v"),
    },
    Case {
        table: "widened_key",
        create: NUMBERS,
        change: &[
            "ALTER TABLE {t} ALTER id TYPE bigint",
            "INSERT INTO {t} VALUES (6000000000, 6, 6, 6.25, 'v')",
        ],
        outcome: Fails {
            words: &["id", "Int64", "sorted by", "walferry.dev/resync"],
            fix: "DROP TABLE {t} SYNC",
            columns: "id, n, m, d, v",
        },
    },
    Case {
        table: "retyped",
        create: NUMBERS,
        change: &["ALTER TABLE {t} ALTER n TYPE text", "INSERT INTO {t} VALUES (6, 'six', 6, 6.25, 'v')"],
        outcome: Fails {
            words: &["n", "String", "DROP COLUMN", "walferry.dev/resync"],
            fix: "ALTER TABLE {t} DROP COLUMN n",
            columns: "id, n, m, d, v",
        },
    },
    Case {
        table: "narrowed",
        create: NUMBERS,
        change: &[
            "INSERT INTO {t} VALUES (6, 6, 6, 6.25, 'v')",
            "ALTER TABLE {t} ALTER m TYPE int, ALTER d TYPE numeric(6,1)",
            "INSERT INTO {t} VALUES (7, 7, 7, 7.3, 'v')",
        ],
        // The target's columns keep their wider types.
        outcome: Follows("id, n, m, trim_scale(d), v", "id, n, m, d, v"),
    },
    Case {
        table: "precise",
        create: NUMBERS,
        change: &[
            "INSERT INTO {t} VALUES (6, 6, 6, 6.25, 'v')",
            "ALTER TABLE {t} ALTER d TYPE numeric(12,2)",
            "INSERT INTO {t} VALUES (7, 7, 7, 9999999999.25, 'v'); UPDATE {t} SET d = -1.25 WHERE id = 1",
        ],
        outcome: Follows("id, n, m, d, v", "id, n, m, d, v"),
    },
    Case {
        table: "computed",
        create: NUMBERS,
        change: &[
            "INSERT INTO {t} VALUES (6, 6, 6, 6.25, 'v')",
            "ALTER TABLE {t} ALTER n TYPE int USING n + 100",
            "INSERT INTO {t} VALUES (7, 7, 6, 6.25, 'v')",
        ],
        outcome: Follows("id, n, m, d, v", "id, n, m, d, v"),
    },
    Case {
        table: "label_added",
        create: "CREATE TYPE mood AS ENUM ('sad'); CREATE TABLE {t} (id int PRIMARY KEY, a mood); INSERT INTO {t} VALUES (1, 'sad')",
        change: &[
            "ALTER TYPE mood ADD VALUE 'glad'",
            "INSERT INTO {t} VALUES (2, 'glad')",
            "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'",
        ],
        outcome: Follows("id, a", "id, a"),
    },
    follows(
        "not_null_set",
        &["ALTER TABLE {t} ALTER a SET NOT NULL", "INSERT INTO {t} VALUES (6, 'x', 'y')"],
        "id, a, b",
    ),
    Case {
        table: "not_null_dropped",
        create: "CREATE TABLE {t} (id int PRIMARY KEY, a text NOT NULL, b int NOT NULL, c int NOT NULL); INSERT INTO {t} VALUES (1, 'x', 1, 1)",
        change: &[
            "INSERT INTO {t} VALUES (2, 'x', 2, 2)",
            "ALTER TABLE {t} ALTER a DROP NOT NULL, ALTER b DROP NOT NULL, ALTER c DROP NOT NULL",
            "INSERT INTO {t} VALUES (3, NULL, 3, 3), (4, 'y', NULL, 4)",
            "DELETE FROM {t} WHERE b IS NULL; ALTER TABLE {t} ALTER b SET NOT NULL",
            "UPDATE {t} SET a = NULL WHERE id = 1",
        ],
        outcome: Follows("id, a, b, c", "id, a, b, c"),
    },
    follows(
        "identity_full",
        &[
            "ALTER TABLE {t} REPLICA IDENTITY FULL",
            "UPDATE {t} SET id = 9 WHERE id = 1",
            "DELETE FROM {t} WHERE id = 2",
        ],
        "id, a, b",
    ),
    Case {
        table: "identity_index",
        create: "CREATE TABLE {t} (id int PRIMARY KEY, a text NOT NULL UNIQUE); INSERT INTO {t} SELECT i, i FROM generate_series(1, 5) i",
        change: &[
            "ALTER TABLE {t} REPLICA IDENTITY USING INDEX {t}_a_key",
            "UPDATE {t} SET id = 9 WHERE id = 1",
            "DELETE FROM {t} WHERE id = 2",
        ],
        outcome: Fails {
            words: &["(id)", "(a)", "walferry.dev/resync"],
            fix: "DROP TABLE {t} SYNC",
            columns: "id, a",
        },
    },
    Case {
        table: "other_key",
        create: "CREATE TABLE {t} (id int PRIMARY KEY, a text NOT NULL); INSERT INTO {t} SELECT i, i FROM generate_series(1, 5) i",
        change: &[
            "ALTER TABLE {t} DROP CONSTRAINT {t}_pkey, ADD PRIMARY KEY (id, a)",
            "INSERT INTO {t} VALUES (1, 'second')",
        ],
        outcome: Fails {
            words: &["sorted by", "walferry.dev/resync"],
            fix: "DROP TABLE {t} SYNC",
            columns: "id, a",
        },
    },
    // With REPLICA IDENTITY FULL the stream has the whole old row, so it doesn't show the changed key.
    Case {
        table: "other_key_full",
        create: "CREATE TABLE {t} (id int PRIMARY KEY, a text NOT NULL); ALTER TABLE {t} REPLICA IDENTITY FULL; INSERT INTO {t} SELECT i, i FROM generate_series(1, 5) i",
        change: &[
            "ALTER TABLE {t} DROP CONSTRAINT {t}_pkey, ADD PRIMARY KEY (id, a)",
            "INSERT INTO {t} VALUES (1, 'second'); UPDATE {t} SET a = 'x' WHERE id = 2",
        ],
        outcome: Fails {
            words: &["(id)", "(id, a)", "sorted by", "walferry.dev/resync"],
            fix: "DROP TABLE {t} SYNC",
            columns: "id, a",
        },
    },
    Case {
        table: "lost_key_full",
        create: "CREATE TABLE {t} (id int NOT NULL UNIQUE, a text); ALTER TABLE {t} REPLICA IDENTITY FULL; INSERT INTO {t} SELECT i, i FROM generate_series(1, 5) i",
        change: &[
            "ALTER TABLE {t} DROP CONSTRAINT {t}_id_key",
            "INSERT INTO {t} VALUES (1, 'second'), (1, 'second')",
        ],
        outcome: Fails {
            words: &["identified by (id)", "walferry.dev/resync"],
            fix: "DROP TABLE {t} SYNC",
            columns: "id, a",
        },
    },
    follows("vacuumed", &["VACUUM FULL {t}", "INSERT INTO {t} VALUES (6, 'x', 'y')"], "id, a, b"),
    follows("clustered", &["CLUSTER {t} USING {t}_pkey", "DELETE FROM {t} WHERE id = 3"], "id, a, b"),
    follows("truncated", &["TRUNCATE {t}", "INSERT INTO {t} VALUES (6, 'x', 'y')"], "id, a, b"),
];

fn write(case: &Case, statement: &str) -> String {
    statement.replace("{t}", case.table)
}

fn create(env: &TestEnv, cases: &[&Case]) {
    cases.iter().for_each(|case| env.sql(&write(case, case.create)));
    env.sql("CREATE TABLE bystander (id int PRIMARY KEY)");
}

fn change(env: &TestEnv, cases: &[&Case]) {
    let mut application = env.connect();
    for case in cases {
        for statement in case.change {
            let statement = write(case, statement);
            application.batch_execute(&statement).unwrap_or_else(|error| panic!("{statement}: {error:?}"));
        }
    }
    env.sql("INSERT INTO bystander VALUES (1)");
}

fn mirror_of(env: &TestEnv, cases: &[&Case]) -> Mirror {
    let names: Vec<_> = cases.iter().map(|case| case.table).chain(["bystander"]).collect();
    env.mirror(&names)
}

/// How the two sides differ, or how the query failed; `None` when they are equal.
fn difference(env: &TestEnv, table: &str, source: &str, target: &str) -> Option<String> {
    let source = env.source(&format!("SELECT {source} FROM {table} ORDER BY 1, 2"));
    let query = format!("SELECT {target} FROM {table} FINAL WHERE _walferry_deleted = 0 ORDER BY 1, 2");
    match env.clickhouse.try_query(&env.database, &query) {
        Ok(target) if target == source => None,
        Ok(target) => Some(format!("source:\n{source}target:\n{target}")),
        Err(error) => Some(error),
    }
}

fn settled(env: &TestEnv, run: &mut Run, case: &Case) -> Option<String> {
    let status = run.status();
    let table: Value = run.table(case.table);
    let plain = || table["message"].as_str().unwrap_or_default().to_owned();
    let message = failed_message(&status, case.table).unwrap_or_else(plain);
    let state = format!("{} {} {message:?}", table["state"], table["reason"]);
    match &case.outcome {
        Follows(source, target) => {
            let differs = difference(env, case.table, source, target);
            (state != "\"Streaming\" \"\" \"\"" || differs.is_some())
                .then(|| format!("{state}\n{}", differs.unwrap_or_default()))
        }
        Fails { words, .. } => {
            let failed = table["state"] == "Failed" && words.iter().all(|word| state.contains(word));
            (!failed).then_some(state)
        }
    }
}

/// Waits until every case has its expected outcome, or fails with all that have not.
#[track_caller]
fn assert_outcomes(env: &TestEnv, run: &mut Run, cases: &[&Case]) {
    env.settle(run);
    let started = std::time::Instant::now();
    loop {
        let wrong: Vec<String> = cases
            .iter()
            .filter_map(|case| settled(env, run, case).map(|found| format!("== {}: {found}", case.table)))
            .collect();
        if wrong.is_empty() {
            break;
        }
        assert!(started.elapsed().as_secs() < 35, "{}", wrong.join("\n"));
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    env.assert_table("bystander", "id", "id");
}

/// After the fixes at the targets a resync makes every table equal.
fn assert_repaired(env: &TestEnv, mirror: &Mirror, cases: &[&Case]) {
    let mut mirror = mirror.clone();
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1"});
    for case in cases {
        match &case.outcome {
            Fails { fix, .. } => drop(env.target(&write(case, fix))),
            Follows(..) => {}
        }
    }
    env.catch_up(&mirror);
    let wrong: Vec<String> = cases
        .iter()
        // That table has a change log from now on, and is compared below.
        .filter(|case| case.table != "lost_key_full")
        .filter_map(|case| {
            let (source, target) = match &case.outcome {
                Follows(source, target) => (*source, *target),
                Fails { columns, .. } => (*columns, *columns),
            };
            difference(env, case.table, source, target).map(|found| format!("== {}: {found}", case.table))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    env.assert_same(
        "SELECT id, a, count(*) FROM lost_key_full GROUP BY 1, 2 ORDER BY 1, 2",
        "SELECT id, a, sum(_walferry_sign) FROM lost_key_full FINAL GROUP BY ALL ORDER BY 1, 2",
    );
}

fn all() -> Vec<&'static Case> {
    COLUMNS.iter().chain(TABLES).collect()
}

#[test]
fn while_it_streams() {
    let (env, cases) = (TestEnv::new(Pg::V18), all());
    create(&env, &cases);
    let mirror = mirror_of(&env, &cases);
    let mut run = env.streaming(&mirror);
    change(&env, &cases);
    assert_outcomes(&env, &mut run, &cases);
    run.stop();
    // A restart clears no failure, and replayed messages change nothing.
    let mut run = env.run(&mirror);
    assert_outcomes(&env, &mut run, &cases);
    run.stop();
    assert_repaired(&env, &mirror, &cases);
}

#[test]
fn while_it_is_down() {
    let (env, cases) = (TestEnv::new(Pg::V18), all());
    create(&env, &cases);
    let mirror = mirror_of(&env, &cases);
    env.catch_up(&mirror);
    change(&env, &cases);
    let mut run = env.run(&mirror);
    assert_outcomes(&env, &mut run, &cases);
    run.stop();
}

/// The tables are published and wait to be copied.
#[test]
fn before_it_is_copied() {
    let (env, cases) = (TestEnv::new(Pg::V18), all());
    create(&env, &cases);
    env.catch_up(&env.mirror(&["bystander"]));
    env.sql("CREATE TABLE gate (id int PRIMARY KEY)");
    let mut writer = env.connect();
    writer.batch_execute("BEGIN; INSERT INTO gate VALUES (1)").unwrap();
    let names: Vec<_> =
        ["gate"].into_iter().chain(cases.iter().map(|case| case.table)).chain(["bystander"]).collect();
    let mirror = env.mirror(&names);
    let mut run = env.run(&mirror);
    run.until_status("the copy to wait for the writer", |status| {
        let tables = status["tables"].as_array()?;
        let gate = tables.iter().find(|table| table["name"] == "gate")?;
        (gate["reason"] == "WaitingForTransactions").then_some(())
    });
    change(&env, &cases);
    env.settle(&mut run);
    writer.batch_execute("COMMIT").unwrap();
    assert_outcomes(&env, &mut run, &cases);
    run.stop();
}

/// A new column with the former name of a renamed one is not taken for one that was dropped and added again.
#[test]
fn a_new_column_with_the_former_name_of_a_renamed_one() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t VALUES (1, 'a')");
    let mut run = env.streaming(&env.mirror(&["t"]));
    env.sql("ALTER TABLE t RENAME a TO b; ALTER TABLE t ADD a text; INSERT INTO t VALUES (2, 'b', 'a')");
    env.settle(&mut run);
    run.until_streaming();
    env.assert_same(
        "SELECT id, a, b FROM t ORDER BY id",
        "SELECT id, a, b FROM t FINAL WHERE _walferry_deleted = 0 ORDER BY id",
    );
    let log = run.log();
    let told = "column a was added at the source; target column a holds values of column b";
    assert!(log.contains(told) && !log.contains("dropped and added again"), "{log}");
    run.stop();
}

/// A renamed column keeps its name at the target until the statement that `check` prints is run there.
#[test]
fn a_renamed_column_gets_its_name_at_the_target_as_check_says() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v text, w int); INSERT INTO t VALUES (1, 'a', 1)");
    let mut mirror = env.mirror(&["t"]);
    env.catch_up(&mirror);
    env.sql(
        "ALTER TABLE t RENAME v TO title; ALTER TABLE t RENAME w TO weight; INSERT INTO t VALUES (2, 'b', 2)",
    );
    env.catch_up(&mirror);
    // The application writes all the time, and the Mirror streams until its file is changed.
    let run = env.streaming(&mirror);
    let writer = Writer::start(env.connect(), |n| {
        format!("INSERT INTO t VALUES ({n} + 100, 'w', {n}); UPDATE t SET weight = {n} WHERE id = 1")
    });
    let report = env.command("check", &mirror, &[]).exits(0).text();
    let mut lines = report.lines().map(str::trim);
    let statement = lines.find(|line| line.starts_with("ALTER TABLE") && line.contains("RENAME COLUMN"));
    env.target(statement.unwrap());
    run.stop();
    mirror.table(0)["columns"] = json!({"rename": {"title": "title", "weight": "weight"}});
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1 public.t"});
    let mut run = env.streaming(&mirror);
    env.sql("INSERT INTO t VALUES (3, 'c', 3); UPDATE t SET title = 'x' WHERE id = 1");
    assert!(writer.finish() > 0);
    env.settle(&mut run);
    run.stop();
    env.assert_table("t", "id, title, weight", "id");
    let columns = "SELECT groupArray(name) FROM (SELECT name FROM system.columns WHERE database = currentDatabase() AND table = 't' ORDER BY position)";
    assert_eq!(env.target_value(columns), "['id','title','weight','_walferry_version','_walferry_deleted']");
    env.verify(&mirror);
    assert!(!env.command("check", &mirror, &[]).exits(0).text().contains("RENAME COLUMN"));
}
