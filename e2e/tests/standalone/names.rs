//! Odd names on both sides: in statements, in the stream, in the records of the state table, and in the
//! snapshot.

use serde_json::{Value, json};

use crate::support::{Pg, TestEnv};

/// Names that users do give to tables. Each one names a table, its columns and its enum type.
fn names() -> Vec<String> {
    let mut names: Vec<String> = [
        "select",
        "Order",
        "table name",
        "a.b",
        "a\"b",
        "a'b",
        "a`b",
        "a\\b",
        "a\\'b",
        "%s%n%",
        "{x}",
        "a--b",
        "/*a",
        "a;b",
        "$1",
        "?",
        "Ünï",
        "東京 😀",
        "a\tb",
        "a\nb",
        " a ",
        "_",
        "1",
        "NULL",
        "id",
        "-copy1",
        "ordinal",
        "k0",
        "xmin2",
        "a/b",
        "a#b",
        "a&b=c",
        "@a",
        "~",
        "e\u{301}",
    ]
    .map(str::to_owned)
    .into();
    // The longest names that PostgreSQL accepts, which counts bytes.
    names.extend(["x".repeat(63), "\"".repeat(63), "é".repeat(31)]);
    names
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn at_target(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`"))
}

fn text(name: &str) -> String {
    format!("'{}'", name.replace('\'', "''"))
}

#[test]
fn odd_names() {
    let env = TestEnv::new(Pg::V18);
    let schema = "Odd \"schema\" 'é' .";
    let mut sql = format!(
        "CREATE SCHEMA {0} AUTHORIZATION {1}; SET SESSION AUTHORIZATION {1}; SET search_path = {0}; SET standard_conforming_strings = on;",
        quoted(schema),
        env.database
    );
    for name in names() {
        let (q, label) = (quoted(&name), text(&name));
        sql += &format!(
            "CREATE TYPE {0} AS ENUM ({label});",
            quoted(&format!("{}T", name.chars().take(20).collect::<String>()))
        );
        let kind = quoted(&format!("{}T", name.chars().take(20).collect::<String>()));
        sql += &format!(
            "CREATE TABLE {q} ({q} text PRIMARY KEY, \"e%1\" {kind}, big text, n int); ALTER TABLE {q} ALTER big SET STORAGE EXTERNAL;
             INSERT INTO {q} SELECT {label} || i, {label}, repeat({label}, 5000), 0 FROM generate_series(1, 4) i;"
        );
    }
    env.admin(&sql);
    let mut mirror = env.mirror(&[]);
    mirror.mirror["spec"]["tables"] = names()
        .iter()
        .map(|name| json!({"schema": schema, "name": name, "target": {"table": name}}))
        .collect::<Vec<Value>>()
        .into();
    let mut run = env.streaming(&mirror);
    let compare = || {
        let (mut source, mut target) = (Vec::new(), Vec::new());
        for (number, name) in names().iter().enumerate() {
            let (q, t) = (quoted(name), at_target(name));
            source.push(format!(
                "SELECT {number} AS number, {q} AS k, \"e%1\"::text, md5(big), n FROM {}.{q}",
                quoted(schema)
            ));
            target.push(format!("SELECT {number} AS number, {t} AS k, toString(`e%1`), lower(hex(MD5(big))), n FROM {t} FINAL WHERE _walferry_deleted = 0"));
        }
        env.assert_same(
            &format!("SELECT * FROM ({}) AS u ORDER BY number, k COLLATE \"C\"", source.join(" UNION ALL ")),
            &format!("SELECT * FROM ({}) ORDER BY number, k", target.join(" UNION ALL ")),
        );
    };
    compare();
    let mut changes = format!("SET search_path = {};", quoted(schema));
    for name in names() {
        let (q, label) = (quoted(&name), text(&name));
        changes += &format!(
            "UPDATE {q} SET n = 1 WHERE {q} = {label} || 1; UPDATE {q} SET {q} = {label} || 'new' WHERE {q} = {label} || 2;
             DELETE FROM {q} WHERE {q} = {label} || 3; INSERT INTO {q} VALUES ({label}, {label}, NULL, 2);"
        );
    }
    env.admin(&changes);
    env.admin(&format!(
        "TRUNCATE {0}.\"a.b\", {0}.\"a'b\"; INSERT INTO {0}.\"a'b\" VALUES ('x', 'a''b', 'y', 3)",
        quoted(schema)
    ));
    env.settle(&mut run);
    compare();
    run.stop();
    // The records under these names are found again after a restart.
    env.admin(&format!("UPDATE {}.\"a\\b\" SET n = 7", quoted(schema)));
    env.catch_up(&mirror);
    compare();
    env.verify(&mirror);
}

/// Names that differ only in case or schema get separate targets; two tables with one target are refused.
#[test]
fn alike_names() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE SCHEMA other");
    let tables = [
        ("public", "t", "t"),
        ("public", "T", "T"),
        ("other", "t", "other_t"),
        ("other", "public.t", "public.t"),
    ];
    for (number, (schema, name, _)) in tables.iter().enumerate() {
        env.sql(&format!("CREATE TABLE {schema}.{0} (id int PRIMARY KEY, \"ID\" int, v text); INSERT INTO {schema}.{0} VALUES (1, {number}, '{schema}')", quoted(name)));
    }
    let mut mirror = env.mirror(&[]);
    let entries = tables
        .map(|(schema, name, target)| json!({"schema": schema, "name": name, "target": {"table": target}}));
    mirror.mirror["spec"]["tables"] = entries.to_vec().into();
    let mut clash = mirror.clone();
    clash.table(2)["target"] = json!({"table": "t"});
    let refused = env.command("check", &clash, &[]);
    assert_ne!(refused.code, Some(0), "{refused:?}");
    refused.says(&["spec.tables[2]", "already written by", "target.table"]);
    let mut run = env.streaming(&mirror);
    for (schema, name, _) in tables {
        env.sql(&format!("UPDATE {schema}.{0} SET v = v || '{schema}' WHERE id = 1; INSERT INTO {schema}.{0} VALUES (2, 2, 'new')", quoted(name)));
    }
    env.sql("DELETE FROM public.\"T\" WHERE id = 1; TRUNCATE other.t");
    env.settle(&mut run);
    for (schema, name, target) in tables {
        env.assert_same(
            &format!("SELECT '{schema}', id, \"ID\", v FROM {schema}.{} ORDER BY id", quoted(name)),
            &format!(
                "SELECT '{schema}', id, `ID`, v FROM {} FINAL WHERE _walferry_deleted = 0 ORDER BY id",
                at_target(target)
            ),
        );
    }
}
