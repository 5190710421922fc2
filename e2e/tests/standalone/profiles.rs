//! A Mirror's whole life with user or role settings that change the meaning of statements, on either side.

use serde_json::json;

use crate::{
    on_both,
    support::{Mirror, Pg, TestEnv},
};

/// Checks, copies, streams, follows new columns, truncates, verifies, resyncs and tears down.
#[track_caller]
fn whole_life(env: &TestEnv, mut mirror: Mirror) {
    env.command("check", &mirror, &[]).exits(0);
    let mut run = env.streaming(&mirror);
    env.sql(
        "INSERT INTO t SELECT i, 'streamed', i / 3.0, now(), '{x,NULL}', '{\"a\": 1}', '\\x00ff', 1.5, interval '1 day 2 hours', true
            FROM generate_series(1001, 3000) i;
        UPDATE t SET v = 'changed' WHERE id % 7 = 0; DELETE FROM t WHERE id % 11 = 0; INSERT INTO emptied VALUES (1)",
    );
    env.sql("ALTER TABLE t ADD added int NOT NULL DEFAULT 7; INSERT INTO t (id) VALUES (5000); ALTER TABLE t ALTER small TYPE bigint");
    env.sql("TRUNCATE emptied; INSERT INTO emptied VALUES (2), (3)");
    env.sql("INSERT INTO log VALUES ('a'), ('a'), ('b'); DELETE FROM log WHERE line = 'b'");
    env.settle(&mut run);
    env.verify(&mirror);
    run.stop();
    env.sql("INSERT INTO t (id, v) VALUES (6000, 'while it was down')");
    env.catch_up(&mirror);
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1"});
    env.catch_up(&mirror);
    env.verify(&mirror);
    assert_eq!(env.target_value("SELECT count() FROM emptied FINAL"), "2");
    env.command("check", &mirror, &[]).exits(0);
    env.command("teardown", &mirror, &[]).exits(0);
    assert_eq!(
        env.source("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"),
        ""
    );
}

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, v text, n numeric(12,4), at timestamptz, tags text[], doc jsonb, raw bytea, f float8, gap interval, \
     yes boolean, small int);
    INSERT INTO t SELECT i, 'copied', i / 7.0, now() - i * interval '1 hour', '{a,b}', '{\"k\": [1, null]}', '\\xdeadbeef', 0.1, interval '3 days', false, i
        FROM generate_series(1, 1000) i;
    CREATE TABLE emptied (id int PRIMARY KEY); INSERT INTO emptied VALUES (9);
    CREATE TABLE log (line text); ALTER TABLE log REPLICA IDENTITY FULL; INSERT INTO log VALUES ('first'), ('first')";

#[test]
fn of_a_clickhouse_user() {
    let env = TestEnv::new(Pg::V18);
    env.sql(TABLES);
    let mut mirror = env.mirror(&["t", "emptied", "log"]);
    mirror.secrets[1].1 = env.target_user("hostile").to_secret();
    whole_life(&env, mirror);
}

fn of_a_postgres_role(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql(TABLES);
    let (role, mirror) = (env.database.clone(), env.mirror(&["t", "emptied", "log"]));
    // The Mirror has a role of its own, whose settings differ from the application's.
    let settings = [
        ("statement_timeout", "'20ms'"),
        ("idle_in_transaction_session_timeout", "'20ms'"),
        ("DateStyle", "'SQL, DMY'"),
        ("IntervalStyle", "'sql_standard'"),
        ("TimeZone", "'Asia/Tokyo'"),
        ("bytea_output", "'escape'"),
        ("extra_float_digits", "-15"),
        ("search_path", "'nowhere'"),
        ("default_transaction_isolation", "'serializable'"),
        ("default_transaction_read_only", "on"),
        ("default_transaction_deferrable", "on"),
        ("row_security", "off"),
        ("standard_conforming_strings", "off"),
        ("xmlbinary", "'hex'"),
        ("client_encoding", "'LATIN1'"),
        ("quote_all_identifiers", "on"),
        ("array_nulls", "off"),
        ("lc_monetary", "'C'"),
        ("client_min_messages", "'debug1'"),
        ("enable_seqscan", "off"),
    ];
    let own = format!("{role}_mirror");
    env.admin(&format!("CREATE ROLE {own} LOGIN REPLICATION PASSWORD 'role-test' IN ROLE {role}"));
    for (name, value) in settings {
        env.admin(&format!("ALTER ROLE {own} SET {name} = {value}"));
    }
    env.admin(&format!("GRANT CREATE ON DATABASE {role} TO {own}"));
    let mut mirror = mirror;
    mirror.secrets[0].1 = json!({"username": own, "password": "role-test"});
    whole_life(&env, mirror);
    env.admin(&format!("REVOKE ALL ON DATABASE {role} FROM {own}; DROP OWNED BY {own}; DROP ROLE {own}"));
}

on_both!(of_a_postgres_role);
