//! The layout of targets: partitions, TTL and settings that would bring old rows back are refused wherever
//! they come from, `check` knows beforehand what the server refuses, and names that are special to it are
//! reported.

use serde_json::json;
use walferry::fault::{Reason, Side};

use super::replicate::Mounted;
use crate::support::{Failure, Mirror, Pg, TestEnv, failed_for};

/// Gives the Mirror an identity that no other test has, because `walferry replicate` derives none from its
/// name.
fn identified(env: &TestEnv, mut mirror: Mirror) -> Mirror {
    mirror.mirror["metadata"]["uid"] =
        json!(format!("{:08x}-1c2d-4e5f-8a9b-0c1d2e3f4a5b", env.lsn() & 0xffff_ffff));
    mirror
}

fn keyed(env: &TestEnv) -> Mirror {
    env.sql("CREATE TABLE t (id int PRIMARY KEY, created timestamptz NOT NULL, v text); CREATE TABLE other (id int PRIMARY KEY)");
    env.mirror(&["t", "other"])
}

/// The statement for the destination that a failure's remedies have.
#[track_caller]
fn statement(failure: &Failure) -> String {
    let sql = failure.sql(Side::Destination);
    let statement = sql.split("\n;\n").find(|statement| statement.starts_with("ALTER TABLE"));
    statement.unwrap_or_else(|| panic!("no statement in {failure:?}")).to_owned()
}

/// Expressions of the spec that would bring old rows back are refused before anything is created.
#[test]
fn expressions_that_would_bring_rows_back_are_refused() {
    let env = TestEnv::new(Pg::V18);
    let mut mirror = keyed(&env);
    for (engine, words) in [
        (json!({"ttl": "created + INTERVAL 1 DAY"}), "engine.ttl uses created"),
        (json!({"partitionBy": "toYYYYMM(created)"}), "engine.partitionBy uses created"),
        (json!({"partitionBy": "_walferry_version % 2"}), "engine.partitionBy uses _walferry_version"),
        (json!({"ttl": "toDateTime(`_walferry_deleted`)"}), "engine.ttl uses _walferry_deleted"),
        (json!({"partitionBy": "_part"}), "engine.partitionBy uses _part, which is no column of the table"),
        (
            json!({"partitionBy": "(intDiv(id, 10), `_partition_id`)"}),
            "engine.partitionBy uses _partition_id",
        ),
        (json!({"ttl": "toDateTime(_block_number)"}), "engine.ttl uses _block_number"),
        (json!({"ttl": "toDateTime(id) DELETE WHERE _table = 't'"}), "engine.ttl uses _table"),
        (json!({"orderBy": ["_part_offset"]}), "_part_offset"),
    ] {
        mirror.table(0)["engine"] = engine;
        env.command("check", &mirror, &[]).exits(1).says(&[words, "engine.orderBy"]);
    }
}

/// `check` asks the server about expressions and settings, and names what the server refuses.
#[test]
fn check_knows_what_the_server_refuses() {
    let env = TestEnv::new(Pg::V18);
    let mut mirror = keyed(&env);
    for (engine, words) in [
        (json!({"partitionBy": "max(id)"}), &["code 184", "ILLEGAL_AGGREGATION"][..]),
        (json!({"ttl": "max(toDateTime(id))"}), &["code 184"]),
        (json!({"ttl": "id"}), &["BAD_TTL_EXPRESSION"]),
        (json!({"partitionBy": "not sql"}), &["code 47", "sql"]),
        (json!({"partitionBy": "no_such_function(id)"}), &["no_such_function"]),
        (json!({"settings": {"index_granularity": "abc"}}), &["abc"]),
        (json!({"settings": {"no_such_setting": "1"}}), &["no_such_setting"]),
        (json!({"settings": {"storage_policy": "nowhere"}}), &["nowhere"]),
    ] {
        mirror.table(0)["engine"] = engine.clone();
        println!("{engine}");
        env.command("check", &mirror, &[]).exits(1).finds("FAILURE", "public.t", "target table").says(words);
    }
    assert_eq!(env.target_value("SELECT count() FROM system.tables WHERE database = currentDatabase()"), "0");
    mirror.table(0)["engine"] =
        json!({"partitionBy": "intDiv(id, 10)", "ttl": "toDateTime(id) + INTERVAL 99 YEAR"});
    env.command("check", &mirror, &[]).exits(0);
}

/// A table with an expression that the server refuses is added to a running Mirror: it fails, the others
/// stream.
#[test]
fn an_added_table_that_is_refused() {
    let env = TestEnv::new(Pg::V18);
    let mut mirror = keyed(&env);
    mirror = identified(&env, mirror);
    let mut only = env.mirror(&["other"]);
    only.mirror["metadata"] = mirror.mirror["metadata"].clone();
    env.catch_up(&only);
    mirror.table(0)["engine"] = json!({"partitionBy": "max(id)"});
    env.sql("INSERT INTO other VALUES (1)");
    let mounted = Mounted::new(&mirror);
    let mut run = mounted.run();
    let failure = failed_for(&mut run, "t", Reason::DestinationStatementRefused);
    assert!(failure.message.contains("code 184"), "{failure:?}");
    env.settle(&mut run);
    assert_eq!(env.target_value("SELECT count() FROM other FINAL"), "1");
}

/// The same rules hold for a target that exists already; the statements that `check` prints make it fit.
#[test]
fn an_existing_target_follows_the_same_rules() {
    let env = TestEnv::new(Pg::V18);
    let mirror = keyed(&env);
    let columns = "id Int32, created DateTime64(6, 'UTC'), v Nullable(String), _walferry_version UInt64, _walferry_deleted UInt8";
    let make = |columns: &str, clauses: &str| {
        env.target("DROP TABLE IF EXISTS t SYNC");
        env.target(&format!(
            "CREATE TABLE t ({columns}) ENGINE = ReplacingMergeTree(_walferry_version, _walferry_deleted) {clauses}"
        ));
    };
    make(&columns.replace("v Nullable(String)", "v Nullable(String) EPHEMERAL"), "ORDER BY id");
    let refused = |words: &[&str]| {
        let report = env.command("check", &mirror, &[]).exits(1).says(words);
        report.finds("FAILURE", "public.t", "target table");
    };
    refused(&["column v", "columns.rename"]);
    make(columns, "PARTITION BY _part ORDER BY id");
    refused(&["_part", "target.table"]);
    make(columns, "PARTITION BY toYYYYMM(created) ORDER BY id");
    refused(&["created", "target.table"]);
    for (columns, clauses) in [
        (columns.to_owned(), "ORDER BY id TTL toDateTime(created) + INTERVAL 1 DAY"),
        (columns.to_owned(), "ORDER BY id TTL toDateTime(id) DELETE WHERE _walferry_deleted = 1"),
        (
            columns
                .replace("v Nullable(String)", "v Nullable(String) TTL toDateTime(created) + INTERVAL 1 DAY"),
            "ORDER BY id",
        ),
        (columns.to_owned(), "ORDER BY id SETTINGS allow_experimental_replacing_merge_with_cleanup = 1"),
    ] {
        make(&columns, clauses);
        let outcome = env.command("check", &mirror, &[]).exits(1);
        let text = outcome.text();
        let line = text.lines().find(|line| line.contains("ALTER TABLE")).unwrap_or_else(|| panic!("{text}"));
        let from = line.find("ALTER TABLE").unwrap();
        env.target(&line[from..]);
        env.command("check", &mirror, &[]).exits(0);
    }
    // A TTL that only recompresses deletes no row.
    make(columns, "ORDER BY id TTL toDateTime(created) + INTERVAL 1 DAY RECOMPRESS CODEC(ZSTD(3))");
    env.command("check", &mirror, &[]).exits(0);
    env.catch_up(&mirror);
}

/// A target is changed while it is written to: the table fails alone, and the statement of its remedy fixes
/// it.
#[test]
fn a_target_changed_later_fails_alone() {
    let env = TestEnv::new(Pg::V18);
    let mut mirror = keyed(&env);
    env.sql("INSERT INTO t VALUES (1, '2020-01-01', 'a')");
    let mut run = env.streaming(&mirror);
    env.target("ALTER TABLE t MODIFY TTL toDateTime(created) + INTERVAL 99 YEAR");
    let failure = failed_for(&mut run, "t", Reason::DestinationEngineInvalid);
    env.target(&statement(&failure));
    env.sql("INSERT INTO other VALUES (1); INSERT INTO t VALUES (2, '2020-01-01', 'b')");
    env.settle(&mut run);
    assert_eq!(env.target_value("SELECT count() FROM other"), "1");
    run.stop();
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1 public.t"});
    let mut run = env.streaming(&mirror);
    env.assert_table("t", "id, v", "id");
    // The default of the server applies where the table has no setting.
    env.target("ALTER TABLE t MODIFY SETTING allow_experimental_replacing_merge_with_cleanup = 1");
    let failure = failed_for(&mut run, "t", Reason::DestinationEngineInvalid);
    assert!(statement(&failure).contains("MODIFY SETTING"), "{failure:?}");
    env.target(&statement(&failure));
}

/// Where a target's layout can be changed, the statements that `check` prints do so while the Mirror runs.
#[test]
fn a_layout_is_changed_by_the_statements_of_check() {
    let env = TestEnv::new(Pg::V18);
    let mut mirror = keyed(&env);
    env.sql("INSERT INTO t VALUES (1, '2020-01-01', 'a')");
    env.catch_up(&mirror);
    mirror.table(0)["engine"] = json!({
        "ttl": "toDateTime(id) + INTERVAL 100 YEAR",
        "settings": {"merge_with_ttl_timeout": "600", "min_bytes_for_wide_part": "0"}
    });
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1 public.t"});
    let outcome = env.command("check", &mirror, &[]).exits(0);
    let statements: Vec<&str> = outcome.stdout.lines().filter(|line| line.contains("ALTER TABLE")).collect();
    assert_eq!(statements.len(), 3, "{}", outcome.text());
    let run = env.streaming(&mirror);
    for statement in statements {
        env.target(statement.trim());
    }
    env.sql("UPDATE t SET v = 'b'; INSERT INTO t VALUES (2, '2020-01-01', 'c')");
    env.command("check", &mirror, &[]).exits(0).finds_nothing("public.t", "layout");
    run.stop();
    env.verify(&mirror);
    env.assert_table("t", "id, v", "id");
}

/// Names that ClickHouse takes for parts of one Nested column, or reserves for itself.
#[test]
fn names_that_are_special_to_clickhouse() {
    let env = TestEnv::new(Pg::V18);
    env.sql(
        r#"CREATE TABLE product (id int PRIMARY KEY, "label.en" text[] NOT NULL, "label.de" text[] NOT NULL);
        INSERT INTO product VALUES (1, '{red,crimson}', '{rot}');
        CREATE TABLE mixed (id int PRIMARY KEY, data text, "data.x" text, "data.y" int[]);
        INSERT INTO mixed VALUES (1, 'd', 'x', '{1,2}');
        CREATE TABLE own (id int PRIMARY KEY, _row_exists text, _part text); INSERT INTO own VALUES (1, 'a', 'b');
        CREATE TABLE fine (id int PRIMARY KEY, "label.en" text[], "label.de" text, "x.y" int, "x" int, _part text);
        INSERT INTO fine VALUES (1, '{a,b}', 'c', 1, 2, 'p')"#,
    );
    for (table, column, to) in [
        ("product", "label.de", "label_de"),
        ("mixed", "data.y", "data_y"),
        ("own", "_row_exists", "row_exists"),
    ] {
        let mut mirror = env.mirror(&[table]);
        let report = env.command("check", &mirror, &[]).exits(1).says(&[column, "columns.rename"]);
        report.finds("FAILURE", &format!("public.{table}"), "target table");
        mirror.table(0)["columns"] = json!({"rename": {column: to}});
        env.catch_up(&mirror);
        env.verify(&mirror);
    }
    let mirror = env.mirror(&["fine", "product"]);
    let report = env.command("check", &env.mirror(&["fine"]), &[]).exits(0).says(&["_part"]);
    report.finds("warning", "public.fine", "column names");
    let mounted = Mounted::new(&identified(&env, mirror));
    let mut run = mounted.run();
    failed_for(&mut run, "product", Reason::DestinationEngineInvalid);
    run.until_status("the other table to stream", |status| {
        let tables = status["tables"].as_array()?;
        tables.iter().any(|table| table["name"] == "fine" && table["state"] == "Streaming").then_some(())
    });
    env.sql(r#"ALTER TABLE fine ADD "label.fr" text[]; INSERT INTO fine VALUES (2, '{a,b}', 'c', 1, 2, 'p', '{x}')"#);
    let failure = failed_for(&mut run, "fine", Reason::SourceSchemaChanged);
    assert!(failure.message.contains("label.fr"), "{failure:?}");
    assert!(failure.edits("spec.tables[].columns.rename"), "{failure:?}");
}

/// A changed entry asks for a layout that the existing target can't be given: `check` warns until the table
/// has another target.
#[test]
fn a_layout_that_the_target_lacks() {
    let env = TestEnv::new(Pg::V18);
    let mut mirror = keyed(&env);
    env.sql("INSERT INTO t VALUES (1, now(), 'a')");
    env.catch_up(&mirror);
    mirror.table(0)["engine"] =
        json!({"partitionBy": "intDiv(id, 10)", "settings": {"index_granularity": "1024"}});
    mirror.table(0)["columns"] = json!({"types": {"v": "LowCardinality(String)"}});
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1 public.t"});
    for _ in 0..2 {
        env.command("check", &mirror, &[])
            .finds("warning", "public.t", "layout")
            .says(&["intDiv(id, 10)", "target.table"]);
    }
    mirror.table(0)["target"] = json!({"table": "t_2"});
    env.catch_up(&mirror);
    env.command("check", &mirror, &[]).exits(0).finds_nothing("public.t", "layout");
    env.verify(&mirror);
}

/// A column gets another type at the source: the statement of the remedy works whatever its old values are.
#[test]
fn advice_for_another_type_works_whatever_the_values_are() {
    let env = TestEnv::new(Pg::V18);
    let cases = [
        ("to_array", "text", "'x y'", "text[] USING ARRAY[a]"),
        ("to_length", "text NOT NULL", "'word'", "int USING length(a)"),
        ("to_text", "int", "7", "text USING 'seven'"),
        ("to_uuid", "text NOT NULL", "'x'", "uuid USING gen_random_uuid()"),
        ("to_day", "text", "'some day'", "date USING date '2020-01-02'"),
        ("to_scalar", "int[]", "'{1,2}'", "int USING a[1]"),
        ("to_flag", "numeric(10,2)", "1.5", "boolean USING a > 1"),
    ];
    let names: Vec<&str> = cases.iter().map(|(name, ..)| *name).collect();
    for (name, old, value, _) in cases {
        env.sql(&format!("CREATE TABLE {name} (id int PRIMARY KEY, a {old}); INSERT INTO {name} SELECT i, {value} FROM generate_series(1, 9) i"));
    }
    let mut mirror = env.mirror(&names);
    let mut run = env.streaming(&mirror);
    for (name, .., change) in cases {
        env.sql(&format!("ALTER TABLE {name} ALTER a TYPE {change}; INSERT INTO {name} (id, a) SELECT 10, a FROM {name} WHERE id = 1"));
    }
    for name in &names {
        let failure = failed_for(&mut run, name, Reason::SourceSchemaChanged);
        env.target(&statement(&failure));
    }
    run.stop();
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": format!("1 {}", names.iter().map(|name| format!("public.{name}")).collect::<Vec<_>>().join(" "))});
    env.catch_up(&mirror);
    env.verify(&mirror);
}

/// A column's type was changed at the target, and its old values can't be converted: a resync fails with the
/// statements that discard them, and succeeds after these have run.
#[test]
fn an_unreadable_target() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v text NOT NULL); INSERT INTO t VALUES (1, 'abc')");
    let mut mirror = env.mirror(&["t"]);
    env.catch_up(&mirror);
    env.target("ALTER TABLE t MODIFY COLUMN v Int32 SETTINGS alter_sync = 0, mutations_sync = 0");
    env.sql("ALTER TABLE t ALTER v TYPE int USING length(v)");
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1 public.t"});
    let mut run = env.run(&mirror);
    let failure = failed_for(&mut run, "t", Reason::DestinationTableConflict);
    assert!(!failure.message.contains("abc"), "the message has no value of a row: {failure:?}");
    let sql = failure.sql(Side::Destination);
    assert!(sql.starts_with("KILL MUTATION"), "{failure:?}");
    sql.split("; ").for_each(|statement| drop(env.target(statement)));
    run.stop();
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "2 public.t"});
    env.catch_up(&mirror);
    env.verify(&mirror);
}
