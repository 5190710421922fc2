//! What the engine of a target may be: partitions, TTL and settings that bring rows back are refused wherever they come from, what the
//! server refuses is known beforehand, and names that mean something to it are told.

use serde_json::json;

use super::replicate::Mounted;
use crate::support::{Mirror, Pg, TestEnv};

/// Gives the Mirror an identity that no other test's has: what runs it without a check takes none from its name.
fn identified(env: &TestEnv, mut mirror: Mirror) -> Mirror {
    mirror.mirror["metadata"]["uid"] =
        json!(format!("{:08x}-1c2d-4e5f-8a9b-0c1d2e3f4a5b", env.lsn() & 0xffff_ffff));
    mirror
}

fn keyed(env: &TestEnv) -> Mirror {
    env.sql("CREATE TABLE t (id int PRIMARY KEY, created timestamptz NOT NULL, v text); CREATE TABLE other (id int PRIMARY KEY)");
    env.mirror(&["t", "other"])
}

/// The statement that a message has, up to the sentence's end.
#[track_caller]
fn statement(message: &str) -> String {
    let from = message.find("ALTER TABLE `").unwrap_or_else(|| panic!("no statement in {message}"));
    let rest = &message[from..];
    let ends = ["; then copy", ", or in ", ", or kubectl"].iter().filter_map(|end| rest.find(end));
    rest[..ends.min().unwrap_or(rest.len())].to_owned()
}

/// The Mirror's own wishes, before anything is made.
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

/// What only the server can say of an expression or a setting is said by `check`, and fails the table alone where it comes later.
#[test]
fn what_the_server_refuses_is_known_beforehand() {
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
        let outcome = env.command("check", &mirror, &[]).exits(1).says(words);
        assert!(outcome.text().contains("ClickHouse refuses to create it"), "{engine}: {}", outcome.text());
    }
    assert_eq!(env.target_value("SELECT count() FROM system.tables WHERE database = currentDatabase()"), "0");
    mirror.table(0)["engine"] =
        json!({"partitionBy": "intDiv(id, 10)", "ttl": "toDateTime(id) + INTERVAL 99 YEAR"});
    env.command("check", &mirror, &[]).exits(0);
}

/// A table that joins a Mirror which runs, with an expression that the server refuses: it fails, the others stream.
#[test]
fn a_refused_table_joins_without_harm() {
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
    let message = run.until_failed("t");
    assert!(message.contains("code 184"), "{message}");
    env.settle(&mut run);
    assert_eq!(env.target_value("SELECT count() FROM other FINAL"), "1");
}

/// A target that somebody made beforehand.
#[test]
fn a_target_made_beforehand_is_held_to_the_same() {
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
    env.command("check", &mirror, &[]).exits(1).says(&["column v is EPHEMERAL", "columns.rename"]);
    make(columns, "PARTITION BY _part ORDER BY id");
    env.command("check", &mirror, &[]).exits(1).says(&["partitioned by _part", "target.table"]);
    make(columns, "PARTITION BY toYYYYMM(created) ORDER BY id");
    env.command("check", &mirror, &[]).exits(1).says(&["partitioned by created", "target.table"]);
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
    // Moves and recompression leave rows where they are.
    make(columns, "ORDER BY id TTL toDateTime(created) + INTERVAL 1 DAY RECOMPRESS CODEC(ZSTD(3))");
    env.command("check", &mirror, &[]).exits(0);
    env.catch_up(&mirror);
}

/// A target that somebody changes while it is written to: the table fails with the statement to run, which works.
#[test]
fn a_target_changed_later_fails_alone() {
    let env = TestEnv::new(Pg::V18);
    let mut mirror = keyed(&env);
    env.sql("INSERT INTO t VALUES (1, '2020-01-01', 'a')");
    let mut run = env.streaming(&mirror);
    env.target("ALTER TABLE t MODIFY TTL toDateTime(created) + INTERVAL 99 YEAR");
    let message = run.until_failed("t");
    assert!(message.contains("TTL that uses created"), "{message}");
    assert_eq!(run.table("t")["reason"], "DestinationEngineInvalid");
    env.target(&statement(&message));
    env.sql("INSERT INTO other VALUES (1); INSERT INTO t VALUES (2, '2020-01-01', 'b')");
    env.settle(&mut run);
    assert_eq!(env.target_value("SELECT count() FROM other"), "1");
    run.stop();
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1 public.t"});
    let mut run = env.streaming(&mirror);
    env.assert_table("t", "id, v", "id");
    // The server's own default counts where the table says nothing.
    env.target("ALTER TABLE t MODIFY SETTING allow_experimental_replacing_merge_with_cleanup = 1");
    let message = run.until_failed("t");
    env.target(&statement(&message));
    assert!(message.contains("MODIFY SETTING"), "{message}");
}

/// A layout that the target can be given: what `check` prints does it, while the Mirror runs.
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
    let outcome = env.command("check", &mirror, &[]).exits(0);
    assert!(!outcome.text().contains("keeps the layout"), "{}", outcome.text());
    run.stop();
    env.verify(&mirror);
    env.assert_table("t", "id, v", "id");
}

/// Names that ClickHouse takes for parts of one Nested column, or keeps for itself.
#[test]
fn names_that_mean_something_there() {
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
        env.command("check", &mirror, &[]).exits(1).says(&[column, "columns.rename"]);
        mirror.table(0)["columns"] = json!({"rename": {column: to}});
        env.catch_up(&mirror);
        env.verify(&mirror);
    }
    let mirror = env.mirror(&["fine", "product"]);
    env.command("check", &env.mirror(&["fine"]), &[]).exits(0).says(&["_part", "hides"]);
    let mounted = Mounted::new(&identified(&env, mirror));
    let mut run = mounted.run();
    run.until_failed("product");
    run.until_status("the other table to stream", |status| {
        let tables = status["tables"].as_array()?;
        tables.iter().any(|table| table["name"] == "fine" && table["state"] == "Streaming").then_some(())
    });
    env.sql(r#"ALTER TABLE fine ADD "label.fr" text[]; INSERT INTO fine VALUES (2, '{a,b}', 'c', 1, 2, 'p', '{x}')"#);
    let message = run.until_failed("fine");
    assert!(message.contains("label.fr") && message.contains("columns.rename"), "{message}");
}

/// A changed entry whose target stays as it is.
#[test]
fn a_layout_that_is_asked_for_and_not_there_is_told() {
    let env = TestEnv::new(Pg::V18);
    let mut mirror = keyed(&env);
    env.sql("INSERT INTO t VALUES (1, now(), 'a')");
    env.catch_up(&mirror);
    mirror.table(0)["engine"] =
        json!({"partitionBy": "intDiv(id, 10)", "settings": {"index_granularity": "1024"}});
    mirror.table(0)["columns"] = json!({"types": {"v": "LowCardinality(String)"}});
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1 public.t"});
    for _ in 0..2 {
        let outcome = env.command("check", &mirror, &[]);
        let text = outcome.text();
        assert!(
            text.contains("not partitioned by intDiv(id, 10)") && text.contains("target.table"),
            "{text}"
        );
    }
    mirror.table(0)["target"] = json!({"table": "t_2"});
    env.catch_up(&mirror);
    let outcome = env.command("check", &mirror, &[]).exits(0);
    assert!(!outcome.text().contains("keeps the layout"), "{}", outcome.text());
    env.verify(&mirror);
}

/// A column gets another type at the source: the statement of the message works whatever its old values are.
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
        let message = run.until_failed(name);
        let statement = statement(&message);
        env.target(&statement);
    }
    run.stop();
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": format!("1 {}", names.iter().map(|name| format!("public.{name}")).collect::<Vec<_>>().join(" "))});
    env.catch_up(&mirror);
    env.verify(&mirror);
}

/// A type that somebody changed at the target, which does not get through the old values: a resync says so, and how to go on.
#[test]
fn an_unreadable_target_is_told() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v text NOT NULL); INSERT INTO t VALUES (1, 'abc')");
    let mut mirror = env.mirror(&["t"]);
    env.catch_up(&mirror);
    env.target("ALTER TABLE t MODIFY COLUMN v Int32 SETTINGS alter_sync = 0, mutations_sync = 0");
    env.sql("ALTER TABLE t ALTER v TYPE int USING length(v)");
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1 public.t"});
    let mut run = env.run(&mirror);
    let message = run.until_failed("t");
    assert!(message.contains("column v can't be read"), "{message}");
    assert!(!message.contains("abc"), "{message}");
    let from = message.find("KILL MUTATION").unwrap();
    for statement in message[from..].split(". Once").next().unwrap().split("; ").take(2) {
        env.target(statement);
    }
    run.stop();
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "2 public.t"});
    env.catch_up(&mirror);
    env.verify(&mirror);
}
