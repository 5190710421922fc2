//! A name in a table entry keeps meaning its column when that is renamed: an excluded column never arrives,
//! under no name.

use serde_json::{Value, json};
use walferry::fault::Reason;

use crate::{
    on_both,
    support::{Mirror, Pg, Run, TestEnv, failed_for},
};

/// A change of a table of its own; `{t}` is its name. Excluded values begin with SECRET.
struct Case {
    table: &'static str,
    create: &'static str,
    columns: fn() -> Value,
    /// Each string is one transaction, or several statements of one.
    change: &'static [&'static str],
}

const PLAIN: &str = "CREATE TABLE {t} (id int PRIMARY KEY, secret text, token text); INSERT INTO {t} VALUES (1, 'SECRET', 'token')";

fn exclude() -> Value {
    json!({"exclude": ["secret"]})
}

const fn plain(table: &'static str, change: &'static [&'static str]) -> Case {
    Case { table, create: PLAIN, columns: exclude, change }
}

/// Every way in which a name gets another column.
const PARTED: &[Case] = &[
    plain(
        "shifted",
        &[
            "ALTER TABLE {t} RENAME secret TO secret_old; ALTER TABLE {t} RENAME token TO secret",
            "INSERT INTO {t} VALUES (2, 'SECRET', 'token'); UPDATE {t} SET secret = 'x' WHERE id = 1",
        ],
    ),
    plain(
        "swapped",
        &[
            "ALTER TABLE {t} RENAME secret TO x; ALTER TABLE {t} RENAME token TO secret; ALTER TABLE {t} RENAME x TO token",
            "INSERT INTO {t} VALUES (2, 'SECRET', 'token'); UPDATE {t} SET token = 'SECRET too' WHERE id = 1",
        ],
    ),
    plain(
        "with_rows",
        &["INSERT INTO {t} VALUES (2, 'SECRET', 'token'); ALTER TABLE {t} RENAME secret TO x; INSERT INTO {t} VALUES (3, 'SECRET', 'token');
            ALTER TABLE {t} RENAME token TO secret; INSERT INTO {t} VALUES (4, 'SECRET', 'token'); ALTER TABLE {t} RENAME x TO token;
            INSERT INTO {t} VALUES (5, 'SECRET', 'token')"],
    ),
    plain(
        "added",
        &[
            "ALTER TABLE {t} RENAME secret TO x",
            "ALTER TABLE {t} ADD secret text",
            "INSERT INTO {t} VALUES (2, 'SECRET', 'token', 'new')",
        ],
    ),
    // The stream describes the table exactly as before.
    plain(
        "same_names",
        &["ALTER TABLE {t} DROP token; ALTER TABLE {t} ADD token text; ALTER TABLE {t} RENAME secret TO x; ALTER TABLE {t} RENAME token TO secret;
            ALTER TABLE {t} RENAME x TO token; INSERT INTO {t} VALUES (2, 'SECRET', 'new')"],
    ),
    Case {
        table: "taken_over",
        create: "CREATE TABLE {t} (id int PRIMARY KEY, token text, secret text); INSERT INTO {t} VALUES (1, 'token', 'SECRET')",
        columns: exclude,
        change: &["ALTER TABLE {t} DROP token; ALTER TABLE {t} RENAME secret TO token; ALTER TABLE {t} ADD secret text; INSERT INTO {t} VALUES (2, 'SECRET', 'new')"],
    },
    plain("away", &["ALTER TABLE {t} RENAME secret TO x", "INSERT INTO {t} VALUES (2, 'SECRET', 'token')"]),
    plain("no_row", &["ALTER TABLE {t} RENAME secret TO x; ALTER TABLE {t} RENAME token TO secret"]),
    plain("dropped", &["ALTER TABLE {t} DROP secret", "ALTER TABLE {t} ADD secret text", "INSERT INTO {t} VALUES (2, 'token', 'SECRET')"]),
    Case {
        table: "key",
        create: "CREATE TABLE {t} (id text PRIMARY KEY, secret text, n int); INSERT INTO {t} VALUES ('a', 'SECRET', 1)",
        columns: exclude,
        change: &[
            "ALTER TABLE {t} RENAME id TO x; ALTER TABLE {t} RENAME secret TO id; ALTER TABLE {t} RENAME x TO secret",
            "INSERT INTO {t} VALUES ('b', 'SECRET', 2); UPDATE {t} SET secret = 'c' WHERE secret = 'a'",
        ],
    },
    Case {
        table: "keyless",
        create: "CREATE TABLE {t} (n int, secret text, token text); ALTER TABLE {t} REPLICA IDENTITY FULL; INSERT INTO {t} VALUES (1, 'SECRET', 'token')",
        columns: exclude,
        change: &[
            "ALTER TABLE {t} RENAME secret TO x; ALTER TABLE {t} RENAME token TO secret; ALTER TABLE {t} RENAME x TO token; INSERT INTO {t} VALUES (2, 'SECRET', 'token')",
            "UPDATE {t} SET n = 3; DELETE FROM {t} WHERE n = 3",
        ],
    },
    // The leaf's columns have other attribute numbers.
    Case {
        table: "parts",
        create: "CREATE TABLE {t} (id int PRIMARY KEY, secret text, token text) PARTITION BY RANGE (id);
            CREATE TABLE {t}_1 (token text, gone int, secret text, id int NOT NULL); ALTER TABLE {t}_1 DROP gone;
            ALTER TABLE {t} ATTACH PARTITION {t}_1 FOR VALUES FROM (0) TO (100); INSERT INTO {t} VALUES (1, 'SECRET', 'token')",
        columns: exclude,
        change: &[
            "ALTER TABLE {t} RENAME secret TO x; ALTER TABLE {t} RENAME token TO secret; ALTER TABLE {t} RENAME x TO token; INSERT INTO {t} VALUES (2, 'SECRET', 'token')",
            "UPDATE {t}_1 SET token = 'SECRET too' WHERE id = 1",
        ],
    },
    Case {
        table: "renamed",
        create: "CREATE TABLE {t} (id int PRIMARY KEY, a text, b text); INSERT INTO {t} VALUES (1, 'a', 'b')",
        columns: || json!({"rename": {"a": "first"}}),
        change: &[
            "ALTER TABLE {t} RENAME a TO x; ALTER TABLE {t} RENAME b TO a; ALTER TABLE {t} RENAME x TO b",
            "INSERT INTO {t} VALUES (2, 'SECRET', 'SECRET')",
        ],
    },
    Case {
        table: "typed",
        create: "CREATE TABLE {t} (id int PRIMARY KEY, a text, b text); INSERT INTO {t} VALUES (1, 'a', 'b')",
        columns: || json!({"types": {"a": "LowCardinality(String)"}}),
        change: &["ALTER TABLE {t} RENAME a TO c", "ALTER TABLE {t} ADD a text", "INSERT INTO {t} VALUES (2, 'SECRET', 'SECRET', 'SECRET')"],
    },
];

fn write(case: &Case, statement: &str) -> String {
    statement.replace("{t}", case.table)
}

fn create(env: &TestEnv) -> Mirror {
    let names: Vec<&str> = PARTED.iter().map(|case| case.table).chain(["bystander"]).collect();
    let mut mirror = env.mirror(&names);
    for (index, case) in PARTED.iter().enumerate() {
        env.sql(&write(case, case.create));
        mirror.table(index)["columns"] = (case.columns)();
    }
    env.sql("CREATE TABLE bystander (id int PRIMARY KEY)");
    mirror
}

fn change(env: &TestEnv) {
    for case in PARTED {
        for statements in case.change {
            env.sql(&write(case, statements));
        }
    }
    env.sql("INSERT INTO bystander VALUES (1)");
}

/// The columns and rows of all targets, as they are stored.
fn stored(env: &TestEnv) -> String {
    let columns = "SELECT table, name FROM system.columns WHERE database = currentDatabase() AND NOT startsWith(table, '_') ORDER BY ALL";
    let names = env.target("SELECT name FROM system.tables WHERE database = currentDatabase() AND NOT startsWith(name, '_') ORDER BY 1");
    let rows = names.lines().map(|table| env.target(&format!("SELECT * FROM {table} ORDER BY ALL")));
    rows.fold(env.target(columns), |all, rows| all + &rows)
}

/// Every table fails alone and offers a resync, and its target has the columns of `before`.
#[track_caller]
fn assert_stopped(env: &TestEnv, run: &mut Run, before: &str) {
    let tables = run.until_status("its tables", |status| status["tables"].as_array().cloned());
    for case in PARTED.iter().filter(|case| tables.iter().any(|table| table["name"] == case.table)) {
        failed_for(run, case.table, Reason::SourceColumnRenamed).resyncs_only(case.table);
    }
    env.settle(run);
    env.assert_table("bystander", "id", "id");
    let after = stored(env);
    assert!(!after.contains("SECRET"), "{after}");
    let columns = |text: &str| text.lines().take_while(|line| line.matches('\t').count() == 1).count();
    assert_eq!(columns(before), columns(&after), "{after}");
}

fn while_it_streams(pg: Pg) {
    let env = TestEnv::new(pg);
    let mirror = create(&env);
    let mut run = env.streaming(&mirror);
    let before = stored(&env);
    change(&env);
    assert_stopped(&env, &mut run, &before);
    run.stop();
    // A restart doesn't clear the failure, and nothing reads the excluded columns.
    let mut run = env.run(&mirror);
    assert_stopped(&env, &mut run, &before);
    run.stop();
    env.command("check", &mirror, &[]).exits(1).finds("FAILURE", "public.swapped", "state");
    env.command("verify", &mirror, &[]).exits(2).says(&["public.swapped", "column secret"]);
}

fn while_it_is_down(pg: Pg) {
    let env = TestEnv::new(pg);
    let mirror = create(&env);
    env.catch_up(&mirror);
    let before = stored(&env);
    change(&env);
    let mut run = env.run(&mirror);
    assert_stopped(&env, &mut run, &before);
    run.stop();
}

/// The tables are published and wait to be copied.
fn before_it_is_copied(pg: Pg) {
    let env = TestEnv::new(pg);
    let mut mirror = create(&env);
    let mut all = mirror.mirror["spec"]["tables"].clone();
    // Its copy would hold a lock that blocks ALTER TABLE.
    all.as_array_mut().unwrap().retain(|table| table["name"] != "keyless");
    mirror.mirror["spec"]["tables"] = json!([{"schema": "public", "name": "bystander"}]);
    env.catch_up(&mirror);
    env.sql("CREATE TABLE gate (id int PRIMARY KEY)");
    let mut writer = env.connect();
    writer.batch_execute("BEGIN; INSERT INTO gate VALUES (1)").unwrap();
    let mut tables = vec![json!({"schema": "public", "name": "gate"})];
    tables.extend(all.as_array().unwrap().iter().cloned());
    mirror.mirror["spec"]["tables"] = tables.into();
    let mut run = env.run(&mirror);
    run.until_status("the copy to wait for the writer", |status| {
        let tables = status["tables"].as_array()?;
        let gate = tables.iter().find(|table| table["name"] == "gate")?;
        (gate["reason"] == "WaitingForTransactions").then_some(())
    });
    let before = stored(&env);
    change(&env);
    writer.batch_execute("COMMIT").unwrap();
    assert_stopped(&env, &mut run, &before);
    run.stop();
}

on_both!(while_it_streams, while_it_is_down, before_it_is_copied);

/// A name that returns to its column meant another column in between: the rows of that time are re-fetched
/// from the table.
#[test]
fn names_that_come_back() {
    let env = TestEnv::new(Pg::V18);
    env.sql(
        "CREATE TABLE t (id int PRIMARY KEY, secret text, token text, more text); INSERT INTO t VALUES (1, 'SECRET', 'token', 'm');
         CREATE TABLE u (id int PRIMARY KEY, a text, b text); INSERT INTO u VALUES (1, 'a', 'b')",
    );
    let mut mirror = env.mirror(&["t", "u"]);
    mirror.table(0)["columns"] = exclude();
    let changes = [
        "ALTER TABLE t RENAME secret TO x; ALTER TABLE t RENAME token TO secret; INSERT INTO t VALUES (2, 'SECRET', 't2', 'm');
         ALTER TABLE t RENAME secret TO token; ALTER TABLE t RENAME x TO secret",
        "ALTER TABLE t RENAME token TO y; ALTER TABLE t RENAME secret TO token; ALTER TABLE t RENAME more TO secret;
         INSERT INTO t VALUES (3, 'SECRET', 't3', 'm'); UPDATE t SET token = 'SECRET too' WHERE id = 1;
         ALTER TABLE t RENAME secret TO more; ALTER TABLE t RENAME token TO secret; ALTER TABLE t RENAME y TO token",
        "ALTER TABLE u RENAME a TO x; ALTER TABLE u RENAME b TO a; ALTER TABLE u RENAME x TO b; INSERT INTO u VALUES (2, 'a', 'b'); UPDATE u SET b = 'b' WHERE id = 1;
         ALTER TABLE u RENAME b TO x; ALTER TABLE u RENAME a TO b; ALTER TABLE u RENAME x TO a",
    ];
    let equal = |run: &mut Run| {
        run.eventually("both sides to be equal", || {
            let rows = |table: &str, columns: &str| {
                let target = env.target(&format!(
                    "SELECT {columns} FROM {table} FINAL WHERE _walferry_deleted = 0 ORDER BY id"
                ));
                env.source(&format!("SELECT {columns} FROM {table} ORDER BY id")) == target
            };
            rows("t", "id, token, more") && rows("u", "id, a, b")
        });
        run.until_streaming();
        assert!(!env.target("SELECT * FROM t").contains("SECRET"));
    };
    let mut run = env.streaming(&mirror);
    for change in changes {
        env.sql(change);
        env.settle(&mut run);
        equal(&mut run);
    }
    run.stop();
    env.sql("TRUNCATE t, u; INSERT INTO u VALUES (1, 'a', 'b')");
    changes.iter().for_each(|change| env.sql(change));
    // The same in separate transactions, with columns that are added in between.
    env.sql("ALTER TABLE t RENAME secret TO x");
    env.sql("INSERT INTO t VALUES (4, 'SECRET', 't4', 'm')");
    env.sql("ALTER TABLE t ADD secret text");
    env.sql("INSERT INTO t VALUES (5, 'SECRET', 't5', 'm', 'n')");
    env.sql("ALTER TABLE t DROP secret; ALTER TABLE t RENAME x TO secret; ALTER TABLE t ADD later int");
    let mut run = env.run(&mirror);
    equal(&mut run);
    // A change that keeps the name causes no re-copy.
    let copied = run.table("t")["rowsCopied"].clone();
    env.sql("ALTER TABLE t ALTER secret SET STATISTICS 7; INSERT INTO t VALUES (6, 'SECRET', 't6', 'm'); ALTER TABLE t ALTER secret SET NOT NULL");
    env.sql("INSERT INTO t VALUES (7, 'SECRET', 't7', 'm'); ALTER TABLE t ADD last int; INSERT INTO t VALUES (8, 'SECRET', 't8', 'm', 7, 8)");
    env.settle(&mut run);
    equal(&mut run);
    assert_eq!(run.table("t")["rowsCopied"], copied);
    run.stop();
    env.verify(&mirror);
}

/// A resync resolves the names again, but never mirrors a column that was excluded unless the entry names it.
#[test]
fn resync_after_a_rename() {
    let env = TestEnv::new(Pg::V18);
    env.sql(
        "CREATE TABLE t (id int PRIMARY KEY, secret text, token text); INSERT INTO t VALUES (1, 'SECRET', 'token');
         CREATE TABLE bystander (id int PRIMARY KEY)",
    );
    let mut mirror = env.mirror(&["t", "bystander"]);
    mirror.table(0)["columns"] = exclude();
    let mut run = env.streaming(&mirror);
    env.sql("ALTER TABLE t RENAME secret TO old; ALTER TABLE t ADD secret text; INSERT INTO t VALUES (2, 'SECRET', 'token', 'SECRET')");
    failed_for(&mut run, "t", Reason::SourceColumnRenamed);
    run.stop();
    let annotated = |mirror: &Mirror, value: &str| {
        let mut mirror = mirror.clone();
        mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": value});
        mirror
    };
    // The entry is unchanged: a resync of that table alone, then of all tables.
    let alone = annotated(&mirror, "1 public.t");
    env.command("check", &alone, &[]).finds("warning", "public.t", "columns");
    let mut run = env.run(&alone);
    let failure = failed_for(&mut run, "t", Reason::SourceColumnRenamed);
    assert!(failure.edits("spec.tables[].columns.exclude"), "{failure:?}");
    run.stop();
    env.command("run", &annotated(&mirror, "2"), &["--until-caught-up"])
        .exits(1)
        .refuses("public.t", Reason::SourceColumnRenamed);
    assert!(!env.target("SELECT * FROM t").contains("SECRET"));
    // The entry is changed as the remedy says.
    mirror.table(0)["columns"] = json!({"exclude": ["secret", "old"]});
    let mirror = annotated(&mirror, "3 public.t");
    env.catch_up(&mirror);
    env.assert_table("t", "id, token", "id");
    assert!(!env.target("SELECT * FROM t").contains("SECRET"));
    env.verify(&mirror);
    env.sql("ALTER TABLE t RENAME old TO older; INSERT INTO t VALUES (3, 'SECRET', 'token', 'SECRET')");
    let mut run = env.run(&mirror);
    failed_for(&mut run, "t", Reason::SourceColumnRenamed);
    run.stop();
    // A column that the entry names is mirrored.
    let mut mirror = annotated(&mirror, "4 public.t");
    mirror.table(0)["columns"] = json!({"exclude": ["secret"], "rename": {"older": "older"}});
    env.catch_up(&mirror);
    env.assert_table("t", "id, older, token", "id");
}

/// The copy evaluates the row filter by its text: excluded rows don't arrive when the name of the filter's
/// column moves.
#[test]
fn a_filter_s_column_during_the_copy() {
    let env = TestEnv::new(Pg::V18);
    env.sql(
        "CREATE TABLE t (region int, other int, id int, v text, PRIMARY KEY (id, region, other)); INSERT INTO t SELECT 1 - i % 2, i % 2, i, CASE WHEN i % 2 = 1 THEN 'SECRET' ELSE 'open' END FROM generate_series(1, 100) i;
         CREATE TABLE bystander (id int PRIMARY KEY); CREATE TABLE gate (id int PRIMARY KEY)",
    );
    env.catch_up(&env.mirror(&["bystander"]));
    let mut writer = env.connect();
    writer.batch_execute("BEGIN; INSERT INTO gate VALUES (1)").unwrap();
    let mut mirror = env.mirror(&["gate", "t", "bystander"]);
    mirror.table(1)["where"] = json!("region = 1");
    mirror.mirror["spec"]["snapshot"] = json!({"parallelism": 1});
    let mut run = env.run(&mirror);
    run.until_status("the copy to wait for the writer", |status| {
        let tables = status["tables"].as_array()?;
        let gate = tables.iter().find(|table| table["name"] == "gate")?;
        (gate["reason"] == "WaitingForTransactions").then_some(())
    });
    env.sql("ALTER TABLE t RENAME region TO x; ALTER TABLE t RENAME other TO region; ALTER TABLE t RENAME x TO other");
    writer.batch_execute("COMMIT").unwrap();
    let message = run.until_failed("t");
    // Where the table was copied before the renames, it is the published filter that is found changed.
    let reasons = [Reason::SourceColumnRenamed, Reason::SourceNotPublished].map(Reason::name);
    assert!(reasons.iter().any(|reason| run.table("t")["reason"] == *reason), "{message}");
    assert!(!env.target("SELECT * FROM t").contains("SECRET"));
    run.stop();
}
