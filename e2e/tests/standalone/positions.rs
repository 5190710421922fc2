//! Slot, source and destination that no longer agree on a position: no change is lost silently.

use std::{
    fs::File,
    io::Write,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
};

use nix::sys::signal::Signal;
use serde_json::json;
use walferry::fault::{Reason, Remedy};

use crate::{
    on_both,
    support::{
        Direction, EditedMirror, Gateway, Mirror, Outcome, Pg, Proxy, Run, Server, TestEnv, Writer,
        eventually, failed_for, parse_lsn, stalled_for, until,
    },
};

pub const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'copied' FROM generate_series(1, 100) i";

/// The slot's name at the source.
fn slot(env: &TestEnv) -> String {
    env.source_value("SELECT slot_name FROM pg_replication_slots WHERE database = current_database() AND slot_name LIKE 'walferry%'")
}

/// A table of which rows were copied and one was streamed, by processes that have ended.
pub fn mirrored(env: &TestEnv) -> Mirror {
    env.sql(TABLE);
    let mirror = env.mirror(&["t"]);
    env.catch_up(&mirror);
    env.sql("INSERT INTO t VALUES (101, 'streamed')");
    env.catch_up(&mirror);
    mirror
}

fn with_resync(mirror: &Mirror, value: &str) -> Mirror {
    let mut mirror = mirror.clone();
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": value});
    mirror
}

/// Runs until the Mirror has caught up, or can't.
pub fn run_once(env: &TestEnv, mirror: &Mirror) -> Outcome {
    env.command("run", mirror, &["--until-caught-up", "--http", "127.0.0.1:0"])
}

/// The Mirror stalls for this reason and writes nothing; the resync that its remedy names makes both sides
/// equal again while the application writes.
#[track_caller]
pub fn stalls_until_a_resync(env: &TestEnv, mirror: &Mirror, reason: Reason) {
    let before = env.target_value("SELECT count() FROM t");
    // `walferry check` finds the failure before anything runs.
    let check = if reason == Reason::SourceWentBack { "state" } else { "replication slot" };
    env.command("check", mirror, &[]).exits(1).finds("FAILURE", "source", check);
    let mut run = env.run(mirror);
    let failure = stalled_for(&mut run, reason);
    assert_eq!(failure.remedies, [Remedy::resync_all()], "{}", failure.message);
    assert_eq!(env.target_value("SELECT count() FROM t"), before, "nothing is written");
    run.stop();
    heals(env, mirror);
}

/// A resync makes both sides equal while the application writes. Gives the Mirror with its annotation.
#[track_caller]
pub fn heals(env: &TestEnv, mirror: &Mirror) -> Mirror {
    let writer = Writer::start(env.connect(), |n| format!("UPDATE t SET v = 'n{n}' WHERE id = {n} % 100"));
    static VALUE: AtomicU32 = AtomicU32::new(0);
    let healed = with_resync(mirror, &format!("heal-{}", VALUE.fetch_add(1, SeqCst)));
    let mut run = env.run(&healed);
    run.until_streaming();
    assert!(writer.finish() > 0);
    env.settle(&mut run);
    run.stop();
    env.assert_table("t", "id, v", "id");
    healed
}

fn advanced_by_hand(pg: Pg) {
    let env = TestEnv::new(pg);
    let mirror = mirrored(&env);
    env.sql("INSERT INTO t VALUES (200, 'missed')");
    env.admin(&format!("SELECT pg_replication_slot_advance('{}', pg_current_wal_lsn())", slot(&env)));
    stalls_until_a_resync(&env, &mirror, Reason::SourceSlotAdvanced);
}

fn dropped_and_made_again(pg: Pg) {
    let env = TestEnv::new(pg);
    let mirror = mirrored(&env);
    let slot = slot(&env);
    env.admin(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    env.sql("INSERT INTO t VALUES (200, 'missed')");
    env.admin(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"));
    stalls_until_a_resync(&env, &mirror, Reason::SourceSlotAdvanced);
}

fn copied_from_another(pg: Pg) {
    let env = TestEnv::new(pg);
    let mirror = mirrored(&env);
    let slot = slot(&env);
    env.sql("INSERT INTO t VALUES (200, 'missed')");
    env.admin(&format!(
        "SELECT pg_create_logical_replication_slot('{0}_other', 'pgoutput'); SELECT pg_drop_replication_slot('{0}');
         SELECT pg_copy_logical_replication_slot('{0}_other', '{0}'); SELECT pg_drop_replication_slot('{0}_other')",
        slot
    ));
    stalls_until_a_resync(&env, &mirror, Reason::SourceSlotAdvanced);
}

/// A Mirror doesn't start at another destination with a slot that has no record there. After a resync there,
/// the first destination stalls because it lacks changes.
fn pointed_elsewhere_and_back(pg: Pg) {
    let env = TestEnv::new(pg);
    let mirror = mirrored(&env);
    let elsewhere = format!("{}_elsewhere", env.database);
    env.clickhouse.query("default", &format!("CREATE DATABASE {elsewhere}"));
    let mut other = mirror.clone();
    other.clickhouse["spec"]["clickhouse"]["database"] = json!(elsewhere);
    run_once(&env, &other).exits(1).stalls(Reason::SourceSlotUnknown);
    assert_eq!(run_once(&env, &mirror).code, Some(0), "the first one continues");
    run_once(&env, &with_resync(&other, "1")).exits(0);
    env.sql("INSERT INTO t VALUES (200, 'elsewhere')");
    run_once(&env, &other).exits(0);
    stalls_until_a_resync(&env, &mirror, Reason::SourceSlotAdvanced);
    run_once(&env, &other).exits(1).stalls(Reason::SourceSlotAdvanced);
    env.clickhouse.query("default", &format!("DROP DATABASE {elsewhere}"));
}

/// The slot may be behind the record: a server that crashes forgets the last status updates that it received.
fn behind_after_a_crash(pg: Pg) {
    crate::needs_own_server!();
    let env = TestEnv::on(Arc::new(Server::postgres(pg, &[])), Server::shared_clickhouse());
    let mirror = mirrored(&env);
    env.admin("CHECKPOINT");
    let before = env.source_value("SELECT confirmed_flush_lsn FROM pg_replication_slots");
    let mut run = env.streaming(&mirror);
    for n in 200..205 {
        env.sql(&format!("INSERT INTO t VALUES ({n}, 'x')"));
        env.settle(&mut run);
    }
    run.eventually("the slot to move", || {
        env.source_value("SELECT confirmed_flush_lsn FROM pg_replication_slots") != before
    });
    env.restart_postgres(false, || {});
    env.sql("INSERT INTO t VALUES (300, 'after')");
    env.settle(&mut run);
    env.restart_postgres(false, || {});
    run.kill();
    env.catch_up(&mirror);
    env.assert_table("t", "id, v", "id");
}

on_both!(
    advanced_by_hand,
    dropped_and_made_again,
    copied_from_another,
    pointed_elsewhere_and_back,
    behind_after_a_crash
);

/// After a restart of the source each target is asked for its newest streamed row, several targets at a time.
#[test]
fn targets_are_queried_concurrently() {
    crate::needs_own_server!();
    let env = TestEnv::on(Arc::new(Server::postgres(Pg::V18, &[])), Server::shared_clickhouse());
    let tables: Vec<String> = (0..40).map(|n| format!("t{n}")).collect();
    let each = |statement: &str| tables.iter().for_each(|table| env.sql(&statement.replace('@', table)));
    each("CREATE TABLE @ (id int PRIMARY KEY)");
    let names: Vec<&str> = tables.iter().map(String::as_str).collect();
    let mut mirror = env.mirror(&names);
    env.catch_up(&mirror);
    each("INSERT INTO @ VALUES (1)");
    env.catch_up(&mirror);
    env.restart_postgres(true, || {});
    // Only the queries for the newest streamed row are routed to this proxy, which delays them.
    let waiting = Proxy::to(env.clickhouse.port);
    let (direct, slow) = (env.clickhouse.port, waiting.port);
    let gateway =
        Gateway::routed(move |request| vec![if request.contains("maxIf(") { slow } else { direct }]);
    waiting.set_frozen(Direction::ToServer, true);
    mirror.clickhouse["spec"]["clickhouse"]["url"] = json!(format!("http://127.0.0.1:{}", gateway.port));
    let mut run = env.run(&mirror);
    run.eventually("several queries at a time", || waiting.open() >= 4);
    waiting.set_frozen(Direction::ToServer, false);
    run.until_streaming();
    env.settle(&mut run);
    run.stop();
}

/// A target whose files are damaged at ClickHouse fails alone; the other tables continue.
#[test]
fn a_target_that_is_unreadable() {
    crate::needs_own_server!();
    let env = TestEnv::on(Arc::new(Server::postgres(Pg::V18, &[])), Arc::new(Server::clickhouse(&[])));
    env.sql("CREATE TABLE torn (id int PRIMARY KEY); CREATE TABLE whole (id int PRIMARY KEY)");
    let mirror = env.mirror(&["torn", "whole"]);
    env.catch_up(&mirror);
    env.sql("INSERT INTO torn SELECT generate_series(1, 100); INSERT INTO whole VALUES (1)");
    env.catch_up(&mirror);
    let parts = env.target(
        "SELECT path FROM system.parts WHERE active AND database = currentDatabase() AND table = 'torn'",
    );
    for part in parts.lines() {
        for file in std::fs::read_dir(part).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|extension| extension.to_string_lossy().contains("mrk")) {
                File::create(path).unwrap();
            }
        }
    }
    env.target("SYSTEM DROP MARK CACHE");
    env.restart_postgres(true, || {});
    let edited = EditedMirror::new(env, mirror);
    let mut run = edited.start();
    failed_for(&mut run, "torn", Reason::DestinationError);
    edited.env.sql("INSERT INTO torn VALUES (101); INSERT INTO whole VALUES (2)");
    edited.env.settle(&mut run);
    edited.env.assert_table("whole", "id", "id");
    let steps = run.advice("torn");
    assert!(steps.iter().any(|step| step.contains("DROP TABLE")), "{steps:?}");
    let mut run = edited.follow(run, &steps, "");
    run.until_streaming();
    edited.env.settle(&mut run);
    run.stop();
    edited.env.assert_table("torn", "id", "id");
    edited.env.verify(&edited.mirror);
}

/// The position recorded at the destination is never behind the one that the source has as confirmed, even
/// when the process is killed.
#[test]
fn the_record_is_never_behind_the_slot() {
    let env = TestEnv::new(Pg::V18);
    let mirror = mirrored(&env);
    let name = slot(&env);
    let confirmed = || {
        let lsn = env.source_value(&format!(
            "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{name}'"
        ));
        parse_lsn(&lsn).unwrap()
    };
    let recorded = || parse_lsn(&recorded_lsn(&env)).unwrap();
    assert_eq!(confirmed(), recorded(), "an orderly end records the last position");
    for _ in 0..3 {
        let mut run = env.run(&mirror);
        let writer =
            Writer::start(env.connect(), |n| format!("UPDATE t SET v = 'n{n}' WHERE id = {n} % 100"));
        let first = confirmed();
        let mut moved = 0;
        run.eventually("the slot to move twice", || {
            let position = confirmed();
            assert!(recorded() >= position, "the source has confirmed {position:X}, which is not recorded");
            moved = if position > first { moved + 1 } else { 0 };
            moved > 30
        });
        run.kill();
        assert!(recorded() >= confirmed());
        assert!(writer.finish() > 0);
    }
    env.catch_up(&mirror);
    env.assert_table("t", "id, v", "id");
}

/// Changes of tables that are not mirrored are confirmed too, so that the source can remove its log.
#[test]
fn an_idle_mirror_confirms_other_changes() {
    let env = TestEnv::new(Pg::V18);
    let mirror = mirrored(&env);
    env.sql("CREATE TABLE other (id int)");
    let run = env.run(&mirror);
    let writer = Writer::start(env.connect(), |n| format!("INSERT INTO other VALUES ({n})"));
    let goal = until("other changes", || {
        Some(env.lsn()).filter(|_| env.source_value("SELECT count(*) > 50 FROM other") == "t")
    });
    let reached = format!(
        "SELECT confirmed_flush_lsn >= pg_lsn '0/0' + {goal} FROM pg_replication_slots WHERE slot_name = '{}'",
        slot(&env)
    );
    eventually("the slot to pass them", || env.source_value(&reached) == "t");
    assert!(writer.finish() > 0);
    run.stop();
}

/// A second process with another destination waits for the first one, then stalls because the slot isn't its
/// own.
#[test]
fn two_processes_with_one_file_and_two_destinations() {
    let env = TestEnv::new(Pg::V18);
    // Without this privilege a role can't see when a walsender last received a status update.
    env.admin(&format!("GRANT pg_read_all_stats TO {}", env.database));
    let mirror = mirrored(&env);
    let elsewhere = format!("{}_elsewhere", env.database);
    env.clickhouse.query("default", &format!("CREATE DATABASE {elsewhere}"));
    let mut other = mirror.clone();
    other.clickhouse["spec"]["clickhouse"]["database"] = json!(elsewhere);
    let mut first = env.streaming(&mirror);
    let mut second = env.run(&other);
    second
        .until_status("the wait", |status| (status["failure"]["reason"] == "SourceSlotInUse").then_some(()));
    first.stop();
    stalled_for(&mut second, Reason::SourceSlotUnknown);
    first = env.run(&mirror);
    env.sql("INSERT INTO t VALUES (200, 'x')");
    env.settle(&mut first);
    first.stop();
    second.stop();
    env.assert_table("t", "id, v", "id");
    env.clickhouse.query("default", &format!("DROP DATABASE {elsewhere}"));
}

/// The recorded position.
pub fn recorded_lsn(env: &TestEnv) -> String {
    let value = env.target_value("SELECT value FROM _walferry_state FINAL WHERE item = 'position'");
    let record: serde_json::Value = serde_json::from_str(&value).unwrap();
    record["lsn"].as_str().unwrap().to_owned()
}

/// A ClickHouse whose disk is full still answers queries: its records are not reported as lost.
#[test]
fn records_of_a_full_disk() {
    crate::needs_own_server!();
    let small = Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|s| s.success());
    if !small {
        return println!("left out: only root can make a small disk");
    }
    let server = Server::clickhouse(&["--disk", "256m"]);
    let env = TestEnv::on(Server::shared_postgres(Pg::V18), Arc::new(server));
    let mirror = mirrored(&env);
    let filler = env.clickhouse_server.folder.join("data/filler");
    let mut file = File::create(&filler).unwrap();
    for size in [1 << 20, 1 << 10] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    drop(file);
    env.sql("INSERT INTO t VALUES (200, 'x')");
    let mut run = env.run(&mirror);
    run.until_status("the full disk to be met", |status| {
        let conditions = status["conditions"].as_array()?;
        let stalled = conditions.iter().find(|found| found["type"] == "Stalled" && found["status"] == "True");
        assert!(stalled.is_none(), "{stalled:?}");
        let mut all = conditions.iter().chain(status["tables"].as_array()?);
        all.any(|found| found["reason"] == Reason::DestinationDiskFull.name()).then_some(())
    });
    std::fs::remove_file(filler).unwrap();
    env.settle(&mut run);
    run.stop();
    env.assert_table("t", "id, v", "id");
}

/// A late write of a replaced process doesn't replace a record of the process that took over.
#[test]
fn a_frozen_process_and_the_one_that_took_over() {
    let env = TestEnv::new(Pg::V18);
    let mirror = mirrored(&env);
    let mut frozen = env.streaming(&mirror);
    frozen.signal(Signal::SIGSTOP);
    env.sql("INSERT INTO t VALUES (200, 'x')");
    let second: Run = env.streaming(&mirror);
    let epoch = "SELECT value, version FROM _walferry_state FINAL WHERE item = 'epoch'";
    let taken = env.target_value(epoch);
    second.signal(Signal::SIGSTOP);
    frozen.signal(Signal::SIGCONT);
    env.sql("UPDATE t SET v = 'y' WHERE id < 50");
    frozen.eventually("the first to take over again", || env.target_value(epoch) != taken);
    env.settle(&mut frozen);
    second.signal(Signal::SIGCONT);
    second.stop();
    env.sql("INSERT INTO t VALUES (300, 'z')");
    env.settle(&mut frozen);
    frozen.stop();
    env.assert_table("t", "id, v", "id");
}
