//! Wrong set-ups: each gets a clear error, loses nothing and leaves the application's own writes alone.

use serde_json::json;

use crate::{
    on_both,
    support::{Mirror, Pg, Server, TestEnv},
};

/// `check` and `run` both refuse, with these words.
#[track_caller]
fn refused(env: &TestEnv, mirror: &Mirror, words: &[&str]) {
    env.command("check", mirror, &[]).exits(1).says(words);
    let run = env.command("run", mirror, &["--until-caught-up", "--http", "127.0.0.1:0"]);
    assert!(!matches!(run.code, Some(0 | 101) | None), "{run:?}");
    run.says(words);
}

/// A table whose UPDATEs would fail once published is not published.
fn without_replica_identity(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql(
        "CREATE TABLE nokey (a int); INSERT INTO nokey VALUES (1);
        CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING; INSERT INTO nothing VALUES (1);
        CREATE TABLE late (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED); INSERT INTO late VALUES (1)",
    );
    for table in ["nokey", "nothing", "late"] {
        refused(&env, &env.mirror(&[table]), &[table, "replica identity", "ALTER TABLE"]);
    }
    env.sql("UPDATE nokey SET a = 2; UPDATE nothing SET id = 2; UPDATE late SET id = 2; DELETE FROM nokey");
}

fn missing_table(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql("CREATE TABLE users (id int PRIMARY KEY)");
    refused(&env, &env.mirror(&["user"]), &["public.user", "users"]);
}

fn missing_columns(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v text)");
    for (columns, word) in [
        (json!({"exclude": ["w"]}), "columns.exclude"),
        (json!({"rename": {"w": "x"}}), "columns.rename"),
        (json!({"types": {"w": "String"}}), "columns.types"),
    ] {
        let mut mirror = env.mirror(&["t"]);
        mirror.table(0)["columns"] = columns;
        refused(&env, &mirror, &[word, "w"]);
    }
    let mut mirror = env.mirror(&["t"]);
    mirror.table(0)["columns"] = json!({"exclude": ["id"]});
    refused(&env, &mirror, &["id"]);
    mirror.table(0)["columns"] = json!({"rename": {"id": "v"}});
    refused(&env, &mirror, &["v"]);
    let mut mirror = env.mirror(&["t"]);
    mirror.table(0)["engine"] = json!({"orderBy": ["v", "id"]});
    refused(&env, &mirror, &["orderBy", "v"]);
}

fn wrong_password(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let mut mirror = env.mirror(&["t"]);
    mirror.secrets[0].1["password"] = json!("not-the-password");
    refused(&env, &mirror, &["password", &env.database]);
    let mut mirror = env.mirror(&["t"]);
    mirror.secrets[1].1["password"] = json!("not-the-password");
    let outcome = env.command("check", &mirror, &[]).exits(1).says(&["limited"]);
    assert!(!outcome.text().contains("not-the-password"));
    refused(&env, &mirror, &["limited"]);
}

fn nobody_answers(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let mut mirror = env.mirror(&["t"]);
    mirror.postgres["spec"]["postgres"]["port"] = json!(1);
    env.command("check", &mirror, &[]).exits(1).says(&["127.0.0.1"]);
    let mut mirror = env.mirror(&["t"]);
    mirror.clickhouse["spec"]["clickhouse"]["url"] = json!("http://127.0.0.1:1");
    env.command("check", &mirror, &[]).exits(1).says(&["127.0.0.1:1"]);
    let mut mirror = env.mirror(&["t"]);
    mirror.postgres["spec"]["postgres"]["database"] = json!("app_nowhere");
    refused(&env, &mirror, &["app_nowhere"]);
    let mut mirror = env.mirror(&["t"]);
    mirror.clickhouse["spec"]["clickhouse"]["database"] = json!("app_nowhere");
    refused(&env, &mirror, &["app_nowhere"]);
}

fn missing_rights(pg: Pg) {
    let env = TestEnv::new(pg);
    let role = env.database.clone();
    env.sql("CREATE TABLE mine (id int PRIMARY KEY)");
    env.admin("CREATE TABLE theirs (id int PRIMARY KEY)");
    refused(&env, &env.mirror(&["theirs"]), &["theirs", "GRANT SELECT"]);
    env.admin(&format!("ALTER ROLE {role} NOREPLICATION"));
    refused(&env, &env.mirror(&["mine"]), &["REPLICATION", "ALTER ROLE"]);
    env.admin(&format!("ALTER ROLE {role} REPLICATION"));
    let mut mirror = env.mirror(&["mine"]);
    mirror.secrets[1].1 = env.target_user("reader").to_secret();
    refused(&env, &mirror, &["GRANT", "reader"]);
    mirror.secrets[1].1 = env.target_user("frozen").to_secret();
    refused(&env, &mirror, &["readonly"]);
}

fn row_level_security(pg: Pg) {
    let env = TestEnv::new(pg);
    let role = env.database.clone();
    env.admin(&format!(
        "CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t ENABLE ROW LEVEL SECURITY; GRANT SELECT ON t TO {role};
        CREATE TABLE own (id int PRIMARY KEY); ALTER TABLE own OWNER TO {role}; ALTER TABLE own ENABLE ROW LEVEL SECURITY; ALTER TABLE own FORCE ROW LEVEL SECURITY"
    ));
    env.command("check", &env.mirror(&["t"]), &[]).exits(1).says(&["t", "BYPASSRLS"]);
    refused(&env, &env.mirror(&["own"]), &["own", "BYPASSRLS"]);
}

/// A target that is in the way is left as it is.
fn target_with_other_columns(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v text)");
    env.target("CREATE TABLE t (something Int32) ENGINE = MergeTree ORDER BY something");
    env.target("INSERT INTO t VALUES (5)");
    refused(&env, &env.mirror(&["t"]), &["t"]);
    assert_eq!(env.target("SELECT something FROM t"), "5\n");
}

on_both!(
    without_replica_identity,
    missing_table,
    missing_columns,
    wrong_password,
    nobody_answers,
    missing_rights,
    row_level_security,
    target_with_other_columns,
);

/// A row filter that names a column outside the identity would make the application's own UPDATE fail.
#[test]
fn row_filter_outside_the_identity() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, org int); INSERT INTO t VALUES (1, 1)");
    let mut mirror = env.mirror(&["t"]);
    mirror.table(0)["where"] = json!("org > 0");
    refused(&env, &mirror, &["org", "where"]);
    env.sql("UPDATE t SET org = 2");
    mirror.table(0)["where"] = json!("id > AND");
    refused(&env, &mirror, &["where"]);
    mirror.table(0)["where"] = json!("nonesuch > 1");
    refused(&env, &mirror, &["nonesuch"]);
    env.sql("UPDATE t SET org = 3");
}

#[test]
fn row_filter_on_postgres_14() {
    crate::needs_own_server!();
    let env = TestEnv::new(Pg::V14);
    env.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let mut mirror = env.mirror(&["t"]);
    mirror.table(0)["where"] = json!("id > 0");
    refused(&env, &mirror, &["where", "15"]);
}

#[test]
fn numeric_override_too_small() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, n numeric(20,4), m numeric, ts timestamptz)");
    let with = |column: &str, kind: &str| {
        let mut mirror = env.mirror(&["t"]);
        mirror.table(0)["columns"] = json!({"types": {column: kind}});
        env.command("check", &mirror, &[])
    };
    // It can lose digits: said before anything is copied.
    with("n", "Decimal(10, 2)").says(&["n", "Decimal(10, 2)"]);
    with("m", "Decimal(10, 2)").says(&["m", "Decimal(10, 2)"]);
    // These can't be at all.
    for (column, kind) in
        [("n", "UUID"), ("ts", "Array(String)"), ("id", "NoSuchType"), ("id", "String); DROP TABLE x; --")]
    {
        with(column, kind).exits(1).says(&[column]);
    }
    // A value that doesn't fit is counted or fails its table, and is never another number.
    let mut mirror = env.mirror(&["t"]);
    mirror.table(0)["columns"] = json!({"types": {"m": "Decimal(5, 2)"}});
    mirror.mirror["spec"]["outOfRange"] = json!("Fail");
    let mut run = env.streaming(&mirror);
    env.sql("INSERT INTO t (id, m) VALUES (1, 123456.5)");
    assert!(run.until_failed("t").contains('m'));
    assert_eq!(env.target_value("SELECT count() FROM t"), "0");
}

#[test]
fn wal_level_replica_and_no_free_slot() {
    crate::needs_own_server!();
    let server = Server::postgres(Pg::V18, &["-c", "wal_level=replica"]);
    let env = TestEnv::on(server.into(), Server::shared_clickhouse());
    env.sql("CREATE TABLE t (id int PRIMARY KEY)");
    // ALTER SYSTEM would have no effect on what the command line gives.
    refused(&env, &env.mirror(&["t"]), &["set wal_level = 'logical' in the command line"]);

    let server = Server::postgres(Pg::V18, &["-c", "max_replication_slots=1"]);
    let env = TestEnv::on(server.into(), Server::shared_clickhouse());
    env.sql("CREATE TABLE t (id int PRIMARY KEY)");
    env.source("SELECT pg_create_physical_replication_slot('other')");
    refused(&env, &env.mirror(&["t"]), &["max_replication_slots"]);
    env.source("SELECT pg_drop_replication_slot('other')");
}

#[test]
fn unlogged_temporary_and_foreign_tables() {
    let env = TestEnv::new(Pg::V18);
    env.sql(
        "CREATE UNLOGGED TABLE u (id int PRIMARY KEY); CREATE VIEW v AS SELECT 1 AS id; CREATE MATERIALIZED VIEW m AS SELECT 1 AS id",
    );
    for table in ["u", "v", "m"] {
        refused(&env, &env.mirror(&[table]), &[table]);
    }
}

/// The row filter, names and expressions come from a user; they are quoted.
#[test]
fn names_are_quoted() {
    let env = TestEnv::new(Pg::V18);
    env.sql(r#"CREATE TABLE "a; DROP TABLE x; --" (id int PRIMARY KEY, "b`c'd""e\f" text); INSERT INTO "a; DROP TABLE x; --" VALUES (1, 'x')"#);
    let mirror = env.mirror(&["a; DROP TABLE x; --"]);
    env.catch_up(&mirror);
    assert_eq!(env.target("SELECT count() FROM `a; DROP TABLE x; --` FINAL"), "1\n");
    env.verify(&mirror);
}
