//! `check`, `verify`, `teardown`, help and exit codes.

use serde_json::json;
use walferry::fault::Reason;

use crate::{
    on_both,
    support::{Pg, TestEnv, UNTIL_CAUGHT_UP, Writer, printed, walferry},
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
    outcome
        .finds("ok", "source", "wal_level")
        .finds("warning", "public.t", "column types")
        .says(&["at: timestamp with time zone as DateTime64(6, 'UTC')"]);
    // `check` changes nothing.
    assert_eq!(
        env.source_value("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"),
        "0"
    );
    assert_eq!(env.source_value("SELECT count(*) FROM pg_publication"), "0");
    assert_eq!(env.target("SHOW TABLES"), "");
}

/// What `check` refuses, `run` refuses with the same statement to fix it.
fn check_and_run_give_the_same_fix(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql("CREATE TABLE nokey (a int); CREATE TABLE good (id int PRIMARY KEY)");
    let mirror = env.mirror(&["nokey", "good"]);
    let checked = env.command("check", &mirror, &[]).exits(1);
    let report = checked.finds("FAILURE", "public.nokey", "replica identity").text();
    let fix = printed(&report, "To fix:").swap_remove(0).sql;
    let fix = fix[fix.find("ALTER TABLE").expect("a fix in SQL")..].split(';').next().unwrap();
    let run = env.command("run", &mirror, &UNTIL_CAUGHT_UP);
    assert_ne!(run.code, Some(0));
    let run = run.refuses("public.nokey", Reason::SourceReplicaIdentityMissing);
    let repeats = run.log().iter().any(|line| line["error"].as_str().is_some_and(|text| text.contains(fix)));
    assert!(repeats, "{fix} is not in:\n{}", run.text());
}

fn verify_reports_differences(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql(
        "CREATE TABLE t (id int PRIMARY KEY, v text, n numeric(10,2)); INSERT INTO t SELECT i, 'v' || i, i / 3.0 FROM generate_series(1, 5000) i;
        CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1)",
    );
    let mirror = env.mirror(&["t", "other"]);
    // While the Mirror runs, its slot shows that nothing more will arrive, so verify need not wait long.
    let run = env.streaming(&mirror);
    env.command("verify", &mirror, &[]).exits(0).says(&["public.t"]);
    // A changed value, a missing row, and an unexpected row.
    env.target("INSERT INTO t SELECT id, 'tampered', n, _walferry_version + 1, 0 FROM t FINAL WHERE id = 77");
    env.target("INSERT INTO t SELECT id, v, n, _walferry_version + 1, 1 FROM t FINAL WHERE id = 88");
    env.target("INSERT INTO t SELECT 999999, v, n, 0, 0 FROM t FINAL WHERE id = 99");
    let outcome = env.command("verify", &mirror, &[]).exits(1);
    outcome.says(&["77", "v", "88", "999999"]);
    env.command("verify", &mirror, &["--table", "public.other"]).exits(0);
    env.command("verify", &mirror, &["--table", "public.t", "--max-differences", "1"]).exits(1);
    assert_ne!(env.command("verify", &mirror, &["--table", "public.nothere"]).code, Some(0));
    run.stop();
    // verify does not need a running Mirror, and a sample of 100 % compares every key.
    env.command("verify", &mirror, &["--sample", "100"]).exits(1);
    assert_ne!(env.command("verify", &mirror, &["--sample", "0"]).code, Some(0));
}

/// While the application writes, `verify` reports no difference that is only lag.
fn verify_rechecks_while_the_application_writes(pg: Pg) {
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

fn verify_is_inconclusive(pg: Pg) {
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
    check_and_run_give_the_same_fix,
    verify_reports_differences,
    verify_rechecks_while_the_application_writes,
    verify_is_inconclusive,
    teardown_is_complete_and_idempotent,
);

/// After teardown a run starts from nothing. It neither adopts the former rows of the target nor replaces
/// them without a resync.
#[test]
fn a_run_after_teardown() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'), (2, 'a')");
    let mirror = env.mirror(&["t"]);
    env.catch_up(&mirror);
    env.command("teardown", &mirror, &[]).exits(0);
    env.sql("UPDATE t SET v = 'b' WHERE id = 1; DELETE FROM t WHERE id = 2");
    let refused = env.command("run", &mirror, &UNTIL_CAUGHT_UP).exits(1);
    let name = mirror.mirror["metadata"]["name"].as_str().unwrap();
    refused
        .refuses("public.t", Reason::DestinationTableConflict)
        .says(&["TRUNCATE TABLE", &format!("Mirror {name}, metadata.annotations: set walferry.dev/resync")]);
    let mut asks = mirror.clone();
    asks.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1"});
    env.catch_up(&asks);
    env.assert_table("t", "id, v", "id");
    env.sql("INSERT INTO t VALUES (3, 'c')");
    env.catch_up(&mirror);
    env.assert_table("t", "id, v", "id");
}

/// A target that was dropped while nothing ran is noticed, also when no change is waiting for it.
#[test]
fn a_run_after_its_target_was_dropped() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let mirror = env.mirror(&["t", "other"]);
    env.catch_up(&mirror);
    env.target("DROP TABLE t SYNC");
    env.sql("INSERT INTO other VALUES (2)");
    env.command("check", &mirror, &[]).exits(0).finds("warning", "public.t", "target table");
    env.command("run", &mirror, &UNTIL_CAUGHT_UP)
        .exits(1)
        .refuses("public.t", Reason::DestinationTableMissing);
    assert_eq!(env.target("SELECT id FROM other FINAL"), "2\n");
}

/// Teardown drops neither the slot nor the publication of somebody else.
#[test]
fn teardown_leaves_other_slots_and_publications() {
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

/// A suspended Mirror writes nothing and keeps its slot, so it continues without a gap.
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

/// A JSON log has one object a line, and contains neither values of rows nor passwords.
#[test]
fn logs_are_json_and_keep_secrets() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'private-value')");
    let mirror = env.mirror(&["t"]);
    let outcome = env.command("run", &mirror, &UNTIL_CAUGHT_UP).exits(0);
    assert!(!outcome.stderr.trim().is_empty() || !outcome.stdout.trim().is_empty());
    for line in outcome.text().lines().filter(|line| line.starts_with('{')) {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
    for secret in ["private-value", "role-test", "limited-test"] {
        assert!(!outcome.text().contains(secret), "{secret} was logged");
    }
}
