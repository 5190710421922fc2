//! `check`, `verify`, `teardown`, help and exit codes.

use serde_json::json;

use crate::{
    on_both,
    support::{Pg, TestEnv, Writer, walferry},
};

#[test]
fn help_has_an_example_for_each_command() {
    let overview = walferry(&["--help"]).exits(0);
    for command in ["run", "check", "verify", "teardown", "crds", "replicate"] {
        assert!(overview.text().contains(command), "{command}");
        walferry(&[command, "--help"]).exits(0).says(&["example", &format!("walferry {command}")]);
    }
    walferry(&["--version"]).exits(0).says(&[env!("CARGO_PKG_VERSION")]);
    assert_ne!(walferry(&["runn"]).code, Some(0));
    assert_ne!(walferry(&["run"]).code, Some(0));
}

fn check_passes(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, n numeric(10,2), at timestamptz)");
    let outcome = env.command("check", &env.mirror(&["t"]), &[]).exits(0);
    outcome.says(&["ok", "wal_level", "public.t", "at: timestamp with time zone as DateTime64(6, 'UTC')"]);
    // It changes nothing.
    assert_eq!(
        env.source_value("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"),
        "0"
    );
    assert_eq!(env.source_value("SELECT count(*) FROM pg_publication"), "0");
    assert_eq!(env.target("SHOW TABLES"), "");
}

/// What `check` refuses, `run` refuses with the same words.
fn check_and_run_say_the_same(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql("CREATE TABLE nokey (a int); CREATE TABLE good (id int PRIMARY KEY)");
    let mirror = env.mirror(&["nokey", "good"]);
    let checked = env.command("check", &mirror, &[]).exits(1).says(&["nokey", "replica identity"]);
    let line = checked.text();
    let fix = line.lines().find(|line| line.contains("ALTER TABLE")).expect("a fix in SQL").to_owned();
    let fix =
        fix[fix.find("ALTER TABLE").unwrap()..].split([';', '│', '|', '…']).next().unwrap().trim().to_owned();
    let run = env.command("run", &mirror, &["--until-caught-up", "--http", "127.0.0.1:0"]);
    assert_ne!(run.code, Some(0));
    let first_words: String = fix.split(' ').take(3).collect::<Vec<_>>().join(" ");
    run.says(&["nokey", "replica identity", &first_words]);
}

fn verify_tells_differences(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql(
        "CREATE TABLE t (id int PRIMARY KEY, v text, n numeric(10,2)); INSERT INTO t SELECT i, 'v' || i, i / 3.0 FROM generate_series(1, 5000) i;
        CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1)",
    );
    let mirror = env.mirror(&["t", "other"]);
    // At work, the mirror tells by its slot that nothing more is to come: verify need not wait long to be sure.
    let run = env.streaming(&mirror);
    env.command("verify", &mirror, &[]).exits(0).says(&["public.t"]);
    // A changed value, a row too few, a row too many.
    env.target("INSERT INTO t SELECT id, 'tampered', n, _walferry_version + 1, 0 FROM t FINAL WHERE id = 77");
    env.target("INSERT INTO t SELECT id, v, n, _walferry_version + 1, 1 FROM t FINAL WHERE id = 88");
    env.target("INSERT INTO t SELECT 999999, v, n, 0, 0 FROM t FINAL WHERE id = 99");
    let outcome = env.command("verify", &mirror, &[]).exits(1);
    outcome.says(&["77", "v", "88", "999999"]);
    env.command("verify", &mirror, &["--table", "public.other"]).exits(0);
    env.command("verify", &mirror, &["--table", "public.t", "--max-differences", "1"]).exits(1);
    assert_ne!(env.command("verify", &mirror, &["--table", "public.nothere"]).code, Some(0));
    // Nor does it take a mirror that is at work.
    run.stop();
    // Every key is compared when the sample is all.
    env.command("verify", &mirror, &["--sample", "100"]).exits(1);
    assert_ne!(env.command("verify", &mirror, &["--sample", "0"]).code, Some(0));
}

/// Verifying while the application writes finds no difference that is only lag.
fn verify_settles_while_the_application_writes(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, 0 FROM generate_series(1, 20000) i");
    let mirror = env.mirror(&["t"]);
    let run = env.streaming(&mirror);
    let writer = Writer::start(env.connect(), |n| {
        format!("UPDATE t SET n = n + 1 WHERE id % 500 = {}; DELETE FROM t WHERE id = {n}", n % 500)
    });
    env.command("verify", &mirror, &[]).exits(0);
    writer.finish();
    run.stop();
}

fn verify_cannot_tell(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let mut mirror = env.mirror(&["t"]);
    env.catch_up(&mirror);
    mirror.clickhouse["spec"]["clickhouse"]["url"] = json!("http://127.0.0.1:1");
    env.command("verify", &mirror, &[]).exits(2);
}

fn teardown_is_complete_and_idempotent(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let mirror = env.mirror(&["t"]);
    env.catch_up(&mirror);
    env.command("teardown", &mirror, &[]).exits(0);
    assert_eq!(
        env.source_value("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"),
        "0"
    );
    assert_eq!(env.source_value("SELECT count(*) FROM pg_publication"), "0");
    assert_eq!(env.target("SELECT id FROM t FINAL"), "1\n");
    env.command("teardown", &mirror, &[]).exits(0);
}

on_both!(
    check_passes,
    check_and_run_say_the_same,
    verify_tells_differences,
    verify_settles_while_the_application_writes,
    verify_cannot_tell,
    teardown_is_complete_and_idempotent,
);

/// After teardown a new run begins anew. The target's rows of before are neither taken for its own nor replaced unasked.
#[test]
fn a_run_after_teardown() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'), (2, 'a')");
    let mirror = env.mirror(&["t"]);
    env.catch_up(&mirror);
    env.command("teardown", &mirror, &[]).exits(0);
    env.sql("UPDATE t SET v = 'b' WHERE id = 1; DELETE FROM t WHERE id = 2");
    let refused = env.command("run", &mirror, &["--until-caught-up", "--http", "127.0.0.1:0"]).exits(1);
    let name = mirror.mirror["metadata"]["name"].as_str().unwrap();
    refused.says(&[
        "has rows that this Mirror does not know of",
        "TRUNCATE TABLE",
        &format!("Mirror {name}, metadata.annotations: set walferry.dev/resync"),
    ]);
    let mut asks = mirror.clone();
    asks.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1"});
    env.catch_up(&asks);
    env.assert_table("t", "id, v", "id");
    env.sql("INSERT INTO t VALUES (3, 'c')");
    env.catch_up(&mirror);
    env.assert_table("t", "id, v", "id");
}

/// A target that was dropped while nothing ran is missed, also when no change is waiting for it.
#[test]
fn a_run_after_its_target_was_dropped() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let mirror = env.mirror(&["t", "other"]);
    env.catch_up(&mirror);
    env.target("DROP TABLE t SYNC");
    env.sql("INSERT INTO other VALUES (2)");
    env.command("check", &mirror, &[]).exits(0).says(&["warning", "was dropped"]);
    env.command("run", &mirror, &["--until-caught-up", "--http", "127.0.0.1:0"])
        .exits(1)
        .says(&["public.t", "failed"]);
    assert_eq!(env.target("SELECT id FROM other FINAL"), "2\n");
}

/// A slot and a publication that carry our name but aren't there any more or another's are not dropped.
#[test]
fn teardown_leaves_what_is_not_ours() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION theirs FOR TABLE t");
    env.source("SELECT pg_create_logical_replication_slot('theirs_' || current_database(), 'pgoutput')");
    let mirror = env.mirror(&["t"]);
    env.catch_up(&mirror);
    env.command("teardown", &mirror, &[]).exits(0);
    assert_eq!(
        env.source_value("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"),
        "1"
    );
    assert_eq!(env.source_value("SELECT pubname FROM pg_publication"), "theirs");
}

/// `suspend` does nothing but hold; the slot stays.
#[test]
fn suspend() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let mut mirror = env.mirror(&["t"]);
    env.catch_up(&mirror);
    env.sql("INSERT INTO t VALUES (1)");
    mirror.mirror["spec"]["suspend"] = json!(true);
    let mut run = env.run(&mirror);
    run.until_status("the suspended state", |status| {
        let conditions = status["conditions"].as_array()?;
        conditions.iter().any(|c| c["type"] == "Ready" && c["reason"] == "Suspended").then_some(())
    });
    run.stop();
    assert_eq!(env.target("SELECT id FROM t FINAL"), "");
    mirror.mirror["spec"]["suspend"] = json!(false);
    env.catch_up(&mirror);
    assert_eq!(env.target("SELECT id FROM t FINAL"), "1\n");
}

/// JSON logs are one object a line, without values of rows and without passwords.
#[test]
fn logs_are_json_and_keep_secrets() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'private-value')");
    let mirror = env.mirror(&["t"]);
    let options = ["--until-caught-up", "--http", "127.0.0.1:0", "--log-format", "json"];
    let outcome = env.command("run", &mirror, &options).exits(0);
    assert!(!outcome.stderr.trim().is_empty() || !outcome.stdout.trim().is_empty());
    for line in outcome.text().lines().filter(|line| line.starts_with('{')) {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
    for secret in ["private-value", "role-test", "limited-test"] {
        assert!(!outcome.text().contains(secret), "{secret} was logged");
    }
}
