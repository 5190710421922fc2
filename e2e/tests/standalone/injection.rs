//! Names, filters and expressions that try to become statements, on both sides.

use postgres::NoTls;
use serde_json::{Value, json};
use walferry::fault::Reason;

use crate::support::{Mirror, Pg, TestEnv, UNTIL_CAUGHT_UP};

/// Names of tables and columns. Both sides have a canary table, which none of these may touch.
const NAMES: [&str; 14] = [
    "'; DROP TABLE canary; --",
    "\"; DROP TABLE canary; --",
    "`; DROP TABLE canary; --",
    "\\'; DROP TABLE canary; --",
    "\\`) ENGINE = Null; --",
    "x\\",
    "$$; DROP TABLE canary; $$",
    "'); DROP TABLE canary; /*",
    "*/ -- #",
    "a\nb\r\tc",
    "{x:Identifier} ${y} %s %27",
    "); SELECT pg_sleep(9); (",
    "‘ ’ “; DROP TABLE canary” −",
    "FORMAT Null SETTINGS readonly = 1",
];

/// As PostgreSQL quotes a name, independently of the program.
fn pg(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// As ClickHouse quotes a name, independently of the program.
fn ch(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "``"))
}

/// A database and a role of these names at the source, with the tables of [`NAMES`] in a schema of such a
/// name too.
fn create_tables(env: &TestEnv, login: &str, database: &str, schema: &str) -> postgres::Client {
    env.admin(&format!("CREATE ROLE {} LOGIN REPLICATION PASSWORD 'a''b\\c\"; --'", pg(login)));
    env.admin(&format!("CREATE DATABASE {} OWNER {}", pg(database), pg(login)));
    let mut config = postgres::Config::new();
    config.host("127.0.0.1").port(env.postgres_port).user(login).password("a'b\\c\"; --").dbname(database);
    let mut client = config.connect(NoTls).unwrap();
    let schema = pg(schema);
    client.batch_execute(&format!("CREATE SCHEMA {schema}; CREATE TABLE canary (id int)")).unwrap();
    for (index, name) in NAMES.iter().enumerate() {
        let (table, key, value) = (pg(name), pg(name), pg(&format!("{name}2")));
        client
            .batch_execute(&format!(
                "CREATE TABLE {schema}.{table} ({key} text PRIMARY KEY, {value} interval, big text);
                ALTER TABLE {schema}.{table} ALTER big SET STORAGE EXTERNAL;
                INSERT INTO {schema}.{table} VALUES ('{index}''\\', '1 day', repeat('x', 9000)), ('keep me out', null, null)"
            ))
            .unwrap();
    }
    client
}

#[test]
fn names_stay_names() {
    let env = TestEnv::new(Pg::V18);
    let (login, database, schema) =
        ("o'r\"\\; --", &format!("{}'\"\\; --", env.database), "'\"; DROP SCHEMA public CASCADE; --");
    let mut source = create_tables(&env, login, database, schema);
    let target = format!("{}'`\\; DROP", env.database);
    env.clickhouse.query("default", &format!("CREATE DATABASE {}", ch(&target)));
    env.clickhouse.query(
        "default",
        &format!("CREATE TABLE {}.canary (id Int8) ENGINE = MergeTree ORDER BY id", ch(&target)),
    );
    let mut mirror = env.mirror(&[]);
    mirror.postgres["spec"]["postgres"]["database"] = json!(database);
    mirror.clickhouse["spec"]["clickhouse"]["database"] = json!(target);
    mirror.secrets[0].1 = json!({"username": login, "password": "a'b\\c\"; --"});
    let tables = NAMES.iter().map(|name| {
        // Expressions with a quote after a backslash are refused, so these names can't be used in one.
        let partition =
            if name.contains('\\') { "tuple()".to_owned() } else { format!("cityHash64({}) % 2", ch(name)) };
        json!({"schema": schema, "name": name, "target": {"table": name},
            "where": format!("{} <> 'keep me out' -- it's; (", pg(name)),
            "columns": {"rename": {format!("{name}2"): format!("{name} renamed")}},
            "engine": {"orderBy": [name], "partitionBy": partition,
                "settings": {"index_granularity": "4096"}}})
    });
    mirror.mirror["spec"]["tables"] = tables.collect();

    env.command("check", &mirror, &[]).exits(0);
    let mut run = env.run(&mirror);
    run.until_streaming();
    for (index, name) in NAMES.iter().enumerate() {
        let (table, key, value) = (pg(name), pg(name), pg(&format!("{name}2")));
        source
            .batch_execute(&format!(
                "UPDATE {schema}.{table} SET {value} = '2 days' WHERE {key} = '{index}''\\';
                INSERT INTO {schema}.{table} VALUES ('new''', '3 days', '''; DROP TABLE canary; --'), ('gone', null, null);
                DELETE FROM {schema}.{table} WHERE {key} = 'gone'; ALTER TABLE {schema}.{table} ADD {added} text DEFAULT {text};
                UPDATE {schema}.{table} SET big = 'y' WHERE {key} = 'new'''",
                schema = pg(schema),
                added = pg(&format!("{name}3")),
                text = "E'\\'; DROP TABLE canary; --\\\\'",
            ))
            .unwrap();
    }
    env.settle(&mut run);
    for (index, name) in NAMES.iter().enumerate() {
        let expected = format!(
            "{index}'\\\t2 days\t9000\t'; DROP TABLE canary; --\\\nnew'\t3 days\t1\t'; DROP TABLE canary; --\\\n"
        );
        let query = format!(
            "SELECT {}, {}, length(big), {} FROM {}.{} FINAL WHERE _walferry_deleted = 0 ORDER BY 1 FORMAT TSVRaw",
            ch(name),
            ch(&format!("{name} renamed")),
            ch(&format!("{name}3")),
            ch(&target),
            ch(name)
        );
        assert_eq!(env.clickhouse.query("default", &query), expected, "{name}");
    }
    run.stop();
    env.verify(&mirror);
    env.command("teardown", &mirror, &[]).exits(0);
    source.batch_execute("SELECT * FROM canary").unwrap();
    assert_eq!(
        env.clickhouse.query("default", &format!("SELECT count() FROM {}.canary", ch(&target))),
        "0\n"
    );
    env.clickhouse.query("default", &format!("DROP DATABASE {}", ch(&target)));
    drop(source);
    env.admin(&format!("DROP DATABASE {} WITH (FORCE)", pg(database)));
    env.admin(&format!("DROP ROLE {}", pg(login)));
}

/// A table `t`, and a canary table on both sides.
fn with_canaries() -> TestEnv {
    let env = TestEnv::new(Pg::V18);
    env.sql(
        "CREATE TABLE canary (id int); CREATE TABLE t (id int PRIMARY KEY, v text, at timestamp); INSERT INTO t VALUES (1, 'a', now())",
    );
    env.target("CREATE TABLE canary (id Int8) ENGINE = MergeTree ORDER BY id");
    env
}

/// A Mirror of `t` whose entry has these fields too.
fn changed(env: &TestEnv, change: &Value) -> Mirror {
    let mut mirror = env.mirror(&["t"]);
    mirror.table(0).as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    mirror
}

/// The canaries are unchanged, and only `t` was ever published.
#[track_caller]
fn assert_canaries(env: &TestEnv) {
    assert_eq!(env.source_value("SELECT count(*) FROM canary"), "0");
    assert_eq!(env.target("SELECT count() FROM canary"), "0\n");
    assert_eq!(env.source_value("SELECT count(*) FROM pg_publication_tables WHERE tablename <> 't'"), "0");
}

/// Expressions that are more than an expression are refused when the file is read, with the field's name.
#[test]
fn statements_are_no_expressions() {
    let env = with_canaries();
    let invalid = |change: Value, field: &str| {
        let mirror = changed(&env, &change);
        env.command("check", &mirror, &[]).exits(2).says(&[field]);
        env.command("run", &mirror, &UNTIL_CAUGHT_UP).exits(2).says(&[field]);
    };
    // These would close the parenthesis, or publish another table together with this one.
    for filter in [
        "true) ; DROP TABLE canary; --",
        "true), TABLE public.canary WHERE (true",
        "id IN (SELECT id FROM canary)",
        "v = '\\') OR (v = ' OR true --'",
        "$$'$$ = ')' --",
        "true /*",
        "true\0",
    ] {
        invalid(json!({"where": filter}), "spec.tables[0].where");
    }
    for expression in [
        "id) ORDER BY id AS SELECT * FROM canary --",
        "id) SETTINGS storage_policy = 'other' --",
        "(SELECT max(id) FROM canary)",
        "id; DROP TABLE canary",
        "id -- ",
        "x'4\\') ORDER BY (id '",
        "\u{2018}) ORDER BY (id\u{2019}",
    ] {
        invalid(json!({"engine": {"partitionBy": expression}}), "engine.partitionBy");
        invalid(json!({"engine": {"ttl": expression}}), "engine.ttl");
    }
    for name in ["a = 1, b", "A", "a;", ""] {
        invalid(json!({"engine": {"settings": {name: "1"}}}), "engine.settings");
    }
    assert_canaries(&env);
}

/// What the file's rules accept is refused by the checks of both servers, or stays an expression.
#[test]
fn expressions_stay_expressions() {
    let env = with_canaries();
    let refused = |change: Value, reason: Reason, field: &str| {
        let mirror = changed(&env, &change);
        env.command("check", &mirror, &[]).exits(1).says(&[field]);
        env.command("run", &mirror, &UNTIL_CAUGHT_UP).exits(1).refuses("public.t", reason).says(&[field]);
    };
    refused(json!({"where": "pg_sleep(9) IS NULL"}), Reason::SourceRowFilterInvalid, "where");
    refused(json!({"engine": {"orderBy": ["id) ORDER BY (v"]}}), Reason::SourceUnknownColumn, "orderBy");
    for text in [
        "String) ENGINE = Null --",
        "DateTime64(3, 'UTC\\')')",
        "Enum8('a' = 1)",
        "String DEFAULT (SELECT 1)",
    ] {
        let change = json!({"columns": {"types": {"v": text}}});
        refused(change, Reason::DestinationTypeUnsupported, "columns.types");
    }
    // The value of a setting stays a value, so ClickHouse refuses a storage policy of that name.
    let mut mirror = env.mirror(&["t"]);
    mirror.table(0)["engine"] = json!({"settings": {"storage_policy": "default' AS SELECT 1 --"}});
    let run = env.command("run", &mirror, &UNTIL_CAUGHT_UP).exits(1);
    run.refuses("public.t", Reason::DestinationStatementRefused).says(&["engine"]);
    env.command("teardown", &mirror, &[]).exits(0);
    // Valid expressions work, whatever is quoted in them.
    let mut mirror = env.mirror(&["t"]);
    let table = mirror.table(0);
    table["where"] = json!("id > 0 AND (id <> 5 OR id = 7) -- it's ) ; fine");
    table["engine"] = json!({"orderBy": ["id", "at"], "partitionBy": "(toYYYYMM(at), id % 2)", "ttl": "at + INTERVAL 9 YEAR"});
    env.sql("ALTER TABLE t ALTER at SET NOT NULL; ALTER TABLE t REPLICA IDENTITY FULL");
    env.catch_up(&mirror);
    env.assert_table("t", "id", "id");
    env.verify(&mirror);
    assert_canaries(&env);
}
