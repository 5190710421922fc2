//! Invalid set-ups: each is refused for its own reason, loses nothing and never breaks the application's
//! writes.

use serde_json::json;
use walferry::fault::Reason;

use crate::{
    on_both,
    support::{Finding, Mirror, Pg, Server, TestEnv, UNTIL_CAUGHT_UP, failed_for, findings},
};

/// `check` fails for the subject and names the words, which are fields or statements that fix it; `run`
/// refuses to start for the reason.
#[track_caller]
fn refused(env: &TestEnv, mirror: &Mirror, subject: &str, reason: Reason, words: &[&str]) {
    let report = env.command("check", mirror, &[]).exits(1).says(words).text();
    let fails = |found: &Finding| found.result == "FAILURE" && found.subject == subject;
    assert!(findings(&report).iter().any(fails), "no failure of {subject} in:\n{report}");
    let run = env.command("run", mirror, &UNTIL_CAUGHT_UP);
    assert!(!matches!(run.code, Some(0 | 101) | None), "{run:?}");
    run.refuses(subject, reason);
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
        let subject = format!("public.{table}");
        refused(
            &env,
            &env.mirror(&[table]),
            &subject,
            Reason::SourceReplicaIdentityMissing,
            &["ALTER TABLE"],
        );
    }
    env.sql("UPDATE nokey SET a = 2; UPDATE nothing SET id = 2; UPDATE late SET id = 2; DELETE FROM nokey");
}

fn missing_table(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql("CREATE TABLE users (id int PRIMARY KEY)");
    // The message proposes the table whose name is similar.
    refused(&env, &env.mirror(&["user"]), "public.user", Reason::SourceTableMissing, &["users"]);
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
        refused(&env, &mirror, "public.t", Reason::SourceUnknownColumn, &[word, "w"]);
    }
    let mut mirror = env.mirror(&["t"]);
    mirror.table(0)["columns"] = json!({"exclude": ["id"]});
    refused(&env, &mirror, "public.t", Reason::SourceTableSpecInvalid, &["columns.exclude", "id"]);
    mirror.table(0)["columns"] = json!({"rename": {"id": "v"}});
    refused(&env, &mirror, "public.t", Reason::SourceTableSpecInvalid, &["columns.rename", "v"]);
    let mut mirror = env.mirror(&["t"]);
    mirror.table(0)["engine"] = json!({"orderBy": ["v", "id"]});
    refused(&env, &mirror, "public.t", Reason::SourceTableSpecInvalid, &["orderBy", "v"]);
}

fn wrong_password(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let mut mirror = env.mirror(&["t"]);
    mirror.secrets[0].1["password"] = json!("not-the-password");
    refused(&env, &mirror, "source", Reason::SourceAuthenticationFailed, &[&env.database]);
    let mut mirror = env.mirror(&["t"]);
    mirror.secrets[1].1["password"] = json!("not-the-password");
    let outcome = env.command("check", &mirror, &[]).exits(1);
    assert!(!outcome.text().contains("not-the-password"));
    refused(&env, &mirror, "destination", Reason::DestinationAuthenticationFailed, &["limited"]);
}

fn unreachable_servers_and_missing_databases(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let mut mirror = env.mirror(&["t"]);
    mirror.postgres["spec"]["postgres"]["port"] = json!(1);
    env.command("check", &mirror, &[]).exits(1).finds("FAILURE", "source", "connection").says(&["127.0.0.1"]);
    let mut mirror = env.mirror(&["t"]);
    mirror.clickhouse["spec"]["clickhouse"]["url"] = json!("http://127.0.0.1:1");
    env.command("check", &mirror, &[])
        .exits(1)
        .finds("FAILURE", "destination", "connection")
        .says(&["127.0.0.1:1"]);
    let mut mirror = env.mirror(&["t"]);
    mirror.postgres["spec"]["postgres"]["database"] = json!("app_nowhere");
    refused(&env, &mirror, "source", Reason::SourceError, &["app_nowhere"]);
    let mut mirror = env.mirror(&["t"]);
    mirror.clickhouse["spec"]["clickhouse"]["database"] = json!("app_nowhere");
    refused(&env, &mirror, "destination", Reason::DestinationDatabaseMissing, &["app_nowhere"]);
}

fn missing_privileges(pg: Pg) {
    let env = TestEnv::new(pg);
    let role = env.database.clone();
    env.sql("CREATE TABLE mine (id int PRIMARY KEY)");
    env.admin("CREATE TABLE theirs (id int PRIMARY KEY)");
    let denied = Reason::SourcePrivilegeMissing;
    refused(&env, &env.mirror(&["theirs"]), "public.theirs", denied, &["GRANT SELECT"]);
    env.admin(&format!("ALTER ROLE {role} NOREPLICATION"));
    refused(&env, &env.mirror(&["mine"]), "source", denied, &["REPLICATION", "ALTER ROLE"]);
    env.admin(&format!("ALTER ROLE {role} REPLICATION"));
    let mut mirror = env.mirror(&["mine"]);
    mirror.secrets[1].1 = env.target_user("reader").to_secret();
    refused(&env, &mirror, "destination", Reason::DestinationAccessDenied, &["GRANT", "reader"]);
    mirror.secrets[1].1 = env.target_user("frozen").to_secret();
    refused(&env, &mirror, "destination", Reason::DestinationReadOnly, &["readonly"]);
}

fn row_level_security(pg: Pg) {
    let env = TestEnv::new(pg);
    let role = env.database.clone();
    env.admin(&format!(
        "CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t ENABLE ROW LEVEL SECURITY; GRANT SELECT ON t TO {role};
        CREATE TABLE own (id int PRIMARY KEY); ALTER TABLE own OWNER TO {role}; ALTER TABLE own ENABLE ROW LEVEL SECURITY; ALTER TABLE own FORCE ROW LEVEL SECURITY"
    ));
    env.command("check", &env.mirror(&["t"]), &[])
        .exits(1)
        .finds("FAILURE", "public.t", "row-level security")
        .says(&["BYPASSRLS"]);
    refused(&env, &env.mirror(&["own"]), "public.own", Reason::SourceRowLevelSecurity, &["BYPASSRLS"]);
}

/// A table with the target's name and other columns is refused and stays unchanged.
fn target_with_other_columns(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v text)");
    env.target("CREATE TABLE t (something Int32) ENGINE = MergeTree ORDER BY something");
    env.target("INSERT INTO t VALUES (5)");
    refused(&env, &env.mirror(&["t"]), "public.t", Reason::DestinationTableConflict, &["t"]);
    assert_eq!(env.target("SELECT something FROM t"), "5\n");
}

on_both!(
    without_replica_identity,
    missing_table,
    missing_columns,
    wrong_password,
    unreachable_servers_and_missing_databases,
    missing_privileges,
    row_level_security,
    target_with_other_columns,
);

/// A row filter on a column outside of the replica identity would make the application's UPDATE fail, so it
/// is refused before the table is published.
#[test]
fn row_filter_outside_the_identity() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, org int); INSERT INTO t VALUES (1, 1)");
    let mut mirror = env.mirror(&["t"]);
    mirror.table(0)["where"] = json!("org > 0");
    let invalid = Reason::SourceRowFilterInvalid;
    refused(&env, &mirror, "public.t", invalid, &["org", "where"]);
    env.sql("UPDATE t SET org = 2");
    mirror.table(0)["where"] = json!("id > AND");
    refused(&env, &mirror, "public.t", invalid, &["where"]);
    mirror.table(0)["where"] = json!("nonesuch > 1");
    refused(&env, &mirror, "public.t", invalid, &["nonesuch"]);
    env.sql("UPDATE t SET org = 3");
}

#[test]
fn row_filter_on_postgres_14() {
    crate::needs_own_server!();
    let env = TestEnv::new(Pg::V14);
    env.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let mut mirror = env.mirror(&["t"]);
    mirror.table(0)["where"] = json!("id > 0");
    refused(&env, &mirror, "public.t", Reason::SourceRowFilterInvalid, &["where", "15"]);
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
    // A type that may lose digits is a warning before anything is copied.
    for column in ["n", "m"] {
        with(column, "Decimal(10, 2)")
            .finds("warning", "public.t", "column types")
            .says(&[&format!("{column}: numeric"), "Decimal(10, 2)"]);
    }
    // A type that can't hold the column at all is a failure.
    for (column, kind) in
        [("n", "UUID"), ("ts", "Array(String)"), ("id", "NoSuchType"), ("id", "String); DROP TABLE x; --")]
    {
        with(column, kind).exits(1).finds("FAILURE", "public.t", "column types").says(&[column]);
    }
    // A value that doesn't fit fails its table, and is never stored as another number.
    let mut mirror = env.mirror(&["t"]);
    mirror.table(0)["columns"] = json!({"types": {"m": "Decimal(5, 2)"}});
    mirror.mirror["spec"]["outOfRange"] = json!("Fail");
    let mut run = env.streaming(&mirror);
    env.sql("INSERT INTO t (id, m) VALUES (1, 123456.5)");
    let failure = failed_for(&mut run, "t", Reason::ValueOutOfRange);
    assert!(failure.message.contains('m'), "{failure:?}");
    assert_eq!(env.target_value("SELECT count() FROM t"), "0");
}

#[test]
fn wal_level_replica_and_no_free_slot() {
    crate::needs_own_server!();
    let server = Server::postgres(Pg::V18, &["-c", "wal_level=replica"]);
    let env = TestEnv::on(server.into(), Server::shared_clickhouse());
    env.sql("CREATE TABLE t (id int PRIMARY KEY)");
    // ALTER SYSTEM would have no effect on what the command line gives.
    let (level, fix) = (Reason::SourceWalLevelNotLogical, "set wal_level = 'logical' in the command line");
    refused(&env, &env.mirror(&["t"]), "source", level, &[fix]);

    let server = Server::postgres(Pg::V18, &["-c", "max_replication_slots=1"]);
    let env = TestEnv::on(server.into(), Server::shared_clickhouse());
    env.sql("CREATE TABLE t (id int PRIMARY KEY)");
    env.source("SELECT pg_create_physical_replication_slot('other')");
    let no_slot = Reason::SourceNoFreeReplicationSlot;
    refused(&env, &env.mirror(&["t"]), "source", no_slot, &["max_replication_slots"]);
    env.source("SELECT pg_drop_replication_slot('other')");
}

#[test]
fn unlogged_tables_and_views() {
    let env = TestEnv::new(Pg::V18);
    env.sql(
        "CREATE UNLOGGED TABLE u (id int PRIMARY KEY); CREATE VIEW v AS SELECT 1 AS id; CREATE MATERIALIZED VIEW m AS SELECT 1 AS id",
    );
    for table in ["u", "v", "m"] {
        let subject = format!("public.{table}");
        refused(&env, &env.mirror(&[table]), &subject, Reason::SourceTableUnsupported, &[]);
    }
}

/// Names of tables and columns are quoted in every statement.
#[test]
fn names_are_quoted() {
    let env = TestEnv::new(Pg::V18);
    env.sql(r#"CREATE TABLE "a; DROP TABLE x; --" (id int PRIMARY KEY, "b`c'd""e\f" text); INSERT INTO "a; DROP TABLE x; --" VALUES (1, 'x')"#);
    let mirror = env.mirror(&["a; DROP TABLE x; --"]);
    env.catch_up(&mirror);
    assert_eq!(env.target("SELECT count() FROM `a; DROP TABLE x; --` FINAL"), "1\n");
    env.verify(&mirror);
}
