//! A target has one Mirror that writes it, and a target that was replaced is noticed.

use serde_json::json;
use walferry::fault::{Reason, Side};

use crate::{
    on_both,
    replicate::Mounted,
    support::{Failure, Mirror, Pg, Run, TestEnv, failed_for},
};

/// Two sources, and a Mirror of each into the first one's database.
fn two_sources(pg: Pg) -> (TestEnv, Mirror, TestEnv, Mirror) {
    let (one, two) = (TestEnv::new(pg), TestEnv::new(pg));
    one.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'one' FROM generate_series(1, 1000) i");
    two.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'two' FROM generate_series(1, 10) i;
        CREATE TABLE u (id int PRIMARY KEY); INSERT INTO u VALUES (1)");
    let (first, mut second) = (one.mirror(&["t"]), two.mirror(&["t", "u"]));
    second.clickhouse = first.clickhouse.clone();
    (one, first, two, second)
}

/// Waits until the table has failed for this reason, which may follow another one.
#[track_caller]
fn fails(run: &mut Run, table: &str, reason: Reason) -> Failure {
    run.until_status(&format!("table {table} to fail with {reason}"), |status| {
        let mut tables = status["tables"].as_array()?.iter();
        tables.find(|found| found["name"] == table && found["reason"] == reason.name()).map(drop)
    });
    failed_for(run, table, reason)
}

#[track_caller]
fn streams(run: &mut Run, table: &str) {
    run.until_status(&format!("table {table} to stream"), |status| {
        let tables = status["tables"].as_array()?;
        tables.iter().any(|entry| entry["name"] == table && entry["state"] == "Streaming").then_some(())
    });
}

/// The second Mirror's table fails with the first one's name and without any remedy that would destroy rows,
/// and its other table streams.
fn another_mirror_s_target(pg: Pg) {
    let (one, first, two, second) = two_sources(pg);
    let mut running = one.streaming(&first);
    let name = first.mirror["metadata"]["name"].as_str().unwrap();
    let check = two.command("check", &second, &[]).finds("FAILURE", "public.t", "target table");
    assert!(
        !check.text().contains("TRUNCATE") && !check.text().contains("walferry.dev/resync"),
        "{}",
        check.text()
    );
    let files = Mounted::new(&second);
    let mut run = files.run();
    let failure = fails(&mut run, "t", Reason::TargetTableTaken);
    assert!(failure.message.contains(name) && failure.edits("spec.tables"), "{failure:?}");
    assert!(failure.resyncs().is_none(), "{failure:?}");
    assert!(!failure.sql(Side::Destination).contains("TRUNCATE"), "{failure:?}");
    streams(&mut run, "u");
    one.sql("INSERT INTO t VALUES (2000, 'more')");
    two.sql("INSERT INTO t VALUES (3000, 'invisible')");
    one.settle(&mut running);
    two.settle(&mut run);
    one.assert_table("t", "id, v", "id");
    // The first Mirror is deleted: the target is free, and its rows are unknown to the second Mirror.
    running.stop();
    one.command("teardown", &first, &[]).exits(0);
    fails(&mut run, "t", Reason::DestinationTableConflict);
    run.stop();
    let mut healed = second.clone();
    healed.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1 public.t"});
    let files = Mounted::new(&healed);
    let mut run = files.run();
    streams(&mut run, "t");
    two.settle(&mut run);
    run.stop();
    assert_eq!(one.target_value("SELECT count(), min(v), max(v) FROM t FINAL"), "11\tinvisible\ttwo");
    two.command("teardown", &healed, &[]).exits(0);
}

on_both!(another_mirror_s_target);

/// A Mirror is gone and its claim is left: the remedy's statement releases the target.
#[test]
fn released_by_the_statement_of_the_remedy() {
    let (one, first, _two, second) = two_sources(Pg::V18);
    one.catch_up(&first);
    let files = Mounted::new(&second);
    let mut run = files.run();
    let failure = fails(&mut run, "t", Reason::TargetTableTaken);
    one.target("TRUNCATE TABLE t");
    one.target(&failure.sql(Side::Destination));
    streams(&mut run, "t");
    assert_eq!(one.target_value("SELECT count(), any(v) FROM t FINAL"), "10\ttwo");
    run.stop();
}

/// Of two Mirrors that start at the same time one writes the target, and the other one's table fails.
#[test]
fn two_that_start_at_the_same_moment() {
    for _ in 0..3 {
        let (one, first, two, second) = two_sources(Pg::V18);
        let (files, others) = (Mounted::new(&first), Mounted::new(&second));
        let mut runs = [files.run(), others.run()];
        let mut states = Vec::new();
        for run in &mut runs {
            states.push(run.until_status("table t to be decided", |status| {
                let tables = status["tables"].as_array()?;
                let table = tables.iter().find(|entry| entry["name"] == "t")?;
                let state = table["state"].as_str()?.to_owned();
                ["Streaming", "Failed"]
                    .contains(&state.as_str())
                    .then(|| (state, table["reason"].as_str().unwrap_or_default().to_owned()))
            }));
        }
        let failed: Vec<_> = states.iter().filter(|(state, _)| state == "Failed").collect();
        assert_eq!(failed.len(), 1, "{states:?}");
        assert_eq!(failed[0].1, "TargetTableTaken");
        let whose = one.target_value("SELECT uniqExact(v) FROM t FINAL");
        assert_eq!(whose, "1", "rows of one source alone");
        for run in runs {
            run.stop();
        }
        one.command("teardown", &first, &[]).exits(0);
        two.command("teardown", &second, &[]).exits(0);
    }
}

/// A table that is removed from its Mirror releases its target.
#[test]
fn a_removed_table_releases_its_target() {
    let (one, mut first, _two, second) = two_sources(Pg::V18);
    one.sql("CREATE TABLE other (id int PRIMARY KEY)");
    first.mirror["spec"]["tables"].as_array_mut().unwrap().push(json!({"schema": "public", "name": "other"}));
    one.catch_up(&first);
    first.mirror["spec"]["tables"].as_array_mut().unwrap().remove(0);
    one.catch_up(&first);
    one.target("TRUNCATE TABLE t");
    let files = Mounted::new(&second);
    let mut run = files.run();
    streams(&mut run, "t");
    run.stop();
}

const EXCHANGED: [&str; 2] = [
    "CREATE TABLE fresh AS t; EXCHANGE TABLES t AND fresh",
    "RENAME TABLE t TO kept; CREATE TABLE t AS kept",
];

fn replace_target(env: &TestEnv, statements: &str) {
    for statement in statements.split("; ") {
        env.target(statement);
    }
}

/// A target that a user exchanged or recreated fails its table alone, and a resync of that table repairs it.
#[test]
fn a_target_that_is_another_table() {
    for (index, statements) in EXCHANGED.into_iter().enumerate() {
        let env = TestEnv::new(Pg::V18);
        env.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2); CREATE TABLE u (id int PRIMARY KEY)");
        let mirror = env.mirror(&["t", "u"]);
        let down = index == 0;
        if down {
            env.catch_up(&mirror);
            replace_target(&env, statements);
        }
        let mut run = if down { env.run(&mirror) } else { env.streaming(&mirror) };
        if !down {
            replace_target(&env, statements);
        }
        fails(&mut run, "t", Reason::DestinationTableReplaced).resyncs_only("t");
        env.sql("INSERT INTO u VALUES (7)");
        env.settle(&mut run);
        env.assert_table("u", "id", "id");
        run.stop();
        let mut healed = mirror.clone();
        healed.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1 public.t"});
        env.catch_up(&healed);
        env.assert_table("t", "id", "id");
    }
}
