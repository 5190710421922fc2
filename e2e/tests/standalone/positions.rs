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

use crate::{
    on_both,
    support::{
        Direction, EditedMirror, Gateway, Mirror, Outcome, Pg, Proxy, Run, Server, TestEnv, Writer,
        eventually, parse_lsn, until,
    },
};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'copied' FROM generate_series(1, 100) i";

/// The slot's name at the source.
fn slot(env: &TestEnv) -> String {
    env.source_value("SELECT slot_name FROM pg_replication_slots WHERE database = current_database() AND slot_name LIKE 'walferry%'")
}

fn mirrored(env: &TestEnv) -> Mirror {
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

fn run_once(env: &TestEnv, mirror: &Mirror) -> Outcome {
    env.command("run", mirror, &["--until-caught-up", "--http", "127.0.0.1:0"])
}

/// The Mirror stalls for this reason and writes nothing; the resync that its remedy names makes both sides
/// equal again while the application writes.
#[track_caller]
fn stalls_until_a_resync(env: &TestEnv, mirror: &Mirror, reason: &str, words: &[&str]) {
    let before = env.target_value("SELECT count() FROM t");
    // `walferry check` finds the failure before anything runs.
    env.command("check", mirror, &[]).exits(1).says(words);
    let mut run = env.run(mirror);
    let (found, message) = run.until_stalled();
    assert_eq!(found, reason, "{message}");
    for word in words.iter().chain(&["walferry.dev/resync"]) {
        assert!(message.contains(word), "'{word}' is not said in: {message}");
    }
    assert_eq!(env.target_value("SELECT count() FROM t"), before, "nothing is written");
    run.stop();
    heals(env, mirror);
}

#[track_caller]
fn heals(env: &TestEnv, mirror: &Mirror) -> Mirror {
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
    stalls_until_a_resync(&env, &mirror, "SourceSlotAdvanced", &["changes from"]);
}

fn dropped_and_made_again(pg: Pg) {
    let env = TestEnv::new(pg);
    let mirror = mirrored(&env);
    let slot = slot(&env);
    env.admin(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    env.sql("INSERT INTO t VALUES (200, 'missed')");
    env.admin(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"));
    stalls_until_a_resync(&env, &mirror, "SourceSlotAdvanced", &["changes from"]);
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
    stalls_until_a_resync(&env, &mirror, "SourceSlotAdvanced", &["changes from"]);
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
    run_once(&env, &other)
        .exits(1)
        .says(&["exists, and this mirror has no record of it", "walferry.dev/resync"]);
    assert_eq!(run_once(&env, &mirror).code, Some(0), "the first one continues");
    run_once(&env, &with_resync(&other, "1")).exits(0);
    env.sql("INSERT INTO t VALUES (200, 'elsewhere')");
    run_once(&env, &other).exits(0);
    stalls_until_a_resync(&env, &mirror, "SourceSlotAdvanced", &["changes from"]);
    run_once(&env, &other).exits(1).says(&["changes from", "walferry.dev/resync"]);
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
    let message = run.until_failed("torn");
    assert_eq!(run.table("torn")["reason"], "DestinationError", "{message}");
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
    assert_eq!(second.until_stalled().0, "SourceSlotUnknown");
    first = env.run(&mirror);
    env.sql("INSERT INTO t VALUES (200, 'x')");
    env.settle(&mut first);
    first.stop();
    second.stop();
    env.assert_table("t", "id, v", "id");
    env.clickhouse.query("default", &format!("DROP DATABASE {elsewhere}"));
}

/// The recorded position.
fn recorded_lsn(env: &TestEnv) -> String {
    let value = env.target_value("SELECT value FROM _walferry_state FINAL WHERE item = 'position'");
    let record: serde_json::Value = serde_json::from_str(&value).unwrap();
    record["lsn"].as_str().unwrap().to_owned()
}

fn own_clickhouse() -> TestEnv {
    TestEnv::on(Server::shared_postgres(Pg::V18), Arc::new(Server::clickhouse(&[])))
}

/// A backup of ClickHouse before some of the changes.
fn backup(env: &TestEnv) -> tempfile::TempDir {
    let mut taken = None;
    env.restart_clickhouse(|| taken = Some(env.clickhouse_server.snapshot()));
    taken.unwrap()
}

#[test]
fn clickhouse_restored_while_down() {
    crate::needs_own_server!();
    let env = own_clickhouse();
    let mirror = mirrored(&env);
    let yesterday = backup(&env);
    env.sql("INSERT INTO t VALUES (200, 'today'); DELETE FROM t WHERE id = 5");
    env.catch_up(&mirror);
    env.restart_clickhouse(|| env.clickhouse_server.restore(&yesterday));
    stalls_until_a_resync(&env, &mirror, "SourceSlotAdvanced", &["the destination was restored"]);
}

#[test]
fn clickhouse_restored_while_running() {
    crate::needs_own_server!();
    let env = own_clickhouse();
    let mirror = mirrored(&env);
    let yesterday = backup(&env);
    let mut run = env.streaming(&mirror);
    env.sql("INSERT INTO t VALUES (200, 'today'); DELETE FROM t WHERE id = 5");
    env.settle(&mut run);
    run.eventually("the position to be recorded", || {
        env.target_value("SELECT value FROM _walferry_state FINAL WHERE item = 'position'")
            .contains("\"lsn\"")
            && env.source_value(
                "SELECT confirmed_flush_lsn > restart_lsn FROM pg_replication_slots WHERE active",
            ) == "t"
    });
    env.restart_clickhouse(|| env.clickhouse_server.restore(&yesterday));
    let (reason, message) = run.until_stalled();
    assert!(["DestinationRestored", "SourceSlotAdvanced"].contains(&reason.as_str()), "{reason}: {message}");
    assert!(
        message.contains("restored from a backup") && message.contains("walferry.dev/resync"),
        "{message}"
    );
    run.stop();
    heals(&env, &mirror);
}

/// All records are lost, while the Mirror runs and while it is stopped.
#[test]
fn records_removed() {
    let env = TestEnv::new(Pg::V18);
    let mirror = mirrored(&env);
    let mut run = env.streaming(&mirror);
    env.target("TRUNCATE TABLE _walferry_state");
    let (reason, message) = run.until_stalled();
    assert!(["DestinationRestored", "SourceSlotUnknown"].contains(&reason.as_str()), "{reason}: {message}");
    run.stop();
    run_once(&env, &mirror).exits(1).says(&["rows that this Mirror does not know of", "walferry.dev/resync"]);
    let mirror = heals(&env, &mirror);
    let removed = "INSERT INTO _walferry_state SELECT mirror, item, '', version + 1 FROM _walferry_state FINAL WHERE item = 'position'";
    env.target(removed);
    stalls_until_a_resync(&env, &mirror, "DestinationPositionMissing", &["no record of how far"]);
}

fn own_postgres() -> TestEnv {
    TestEnv::on(Arc::new(Server::postgres(Pg::V18, &[])), Server::shared_clickhouse())
}

/// A snapshot of PostgreSQL's disk before some of the changes.
fn disk(env: &TestEnv) -> tempfile::TempDir {
    let mut taken = None;
    env.restart_postgres(false, || taken = Some(env.postgres_server.snapshot()));
    taken.unwrap()
}

#[test]
fn postgres_restored_on_its_timeline() {
    crate::needs_own_server!();
    let env = own_postgres();
    let mirror = mirrored(&env);
    let yesterday = disk(&env);
    env.sql("INSERT INTO t SELECT i, 'lost' FROM generate_series(200, 20000) i");
    env.catch_up(&mirror);
    env.restart_postgres(false, || env.postgres_server.restore(&yesterday));
    stalls_until_a_resync(&env, &mirror, "SourceWentBack", &["its log ends at"]);
}

/// After the restore other transactions have written the log past the lost position.
#[test]
fn postgres_restored_and_written_to() {
    crate::needs_own_server!();
    let env = own_postgres();
    let mirror = mirrored(&env);
    let yesterday = disk(&env);
    env.sql("INSERT INTO t SELECT i, 'lost' FROM generate_series(200, 2000) i; UPDATE t SET v = 'lost' WHERE id = 1");
    let lost = env.lsn();
    env.catch_up(&mirror);
    env.restart_postgres(false, || env.postgres_server.restore(&yesterday));
    env.sql("CREATE TABLE other (v text)");
    while env.lsn() <= lost + 1_000_000 {
        env.sql("INSERT INTO other SELECT repeat('x', 1000) FROM generate_series(1, 1000); UPDATE t SET v = 'kept' WHERE id = 2");
    }
    let run = env.run(&mirror);
    stops_as_gone_back(run, "was committed there before");
    // A restart doesn't clear the failure.
    run_once(&env, &mirror).exits(1).says(&["the source went back"]);
    heals(&env, &mirror);
}

#[test]
fn postgres_restored_while_running() {
    crate::needs_own_server!();
    let env = own_postgres();
    let mirror = mirrored(&env);
    let yesterday = disk(&env);
    let mut run = env.streaming(&mirror);
    env.sql("INSERT INTO t SELECT i, 'lost' FROM generate_series(200, 2000) i");
    env.settle(&mut run);
    let recorded = "SELECT count() FROM _walferry_state FINAL WHERE item = 'position' AND value LIKE '%xid%'";
    run.eventually("the position to be recorded", || env.target_value(recorded) == "1");
    env.restart_postgres(false, || env.postgres_server.restore(&yesterday));
    assert_eq!(run.until_stalled().0, "SourceWentBack");
    run.stop();
    heals(&env, &mirror);
}

/// The Mirror stalls because the source was restored, and offers a resync of every table.
#[track_caller]
fn stops_as_gone_back(mut run: Run, words: &str) {
    let (reason, message) = run.until_stalled();
    assert_eq!(reason, "SourceWentBack", "{message}");
    assert!(message.contains(words) && message.contains("walferry.dev/resync"), "{message}");
    run.stop();
}

/// Rows of `t` arrive while a row of another table can't be written, so nothing is confirmed.
fn unconfirmed(env: &TestEnv) -> (Mirror, Run) {
    env.sql(TABLE);
    env.sql("CREATE TABLE blocked (id int PRIMARY KEY)");
    let mirror = env.mirror(&["t", "blocked"]);
    env.catch_up(&mirror);
    // The view fails with the error of a server that is short of memory, which is retried.
    env.target(
        "CREATE MATERIALIZED VIEW blocked_view ENGINE = MergeTree ORDER BY tuple() AS
        SELECT throwIf(id > 0, 'words', toInt32(241)) AS x FROM blocked SETTINGS allow_custom_error_code_in_throwif = 1",
    );
    let run = env.streaming(&mirror);
    env.sql("INSERT INTO blocked VALUES (1)");
    (mirror, run)
}

fn unblock(env: &TestEnv) {
    env.target("DROP VIEW blocked_view");
}

/// Writes a row and waits until it is at the destination.
fn row_arrives(env: &TestEnv, run: &mut Run, id: u32) {
    env.sql(&format!("INSERT INTO t VALUES ({id}, 'new')"));
    let arrived = format!("SELECT count() FROM t WHERE id = {id}");
    run.eventually("the row to arrive", || env.target_value(&arrived) == "1");
}

/// The destination has rows of the lost transactions, although they were never confirmed.
#[test]
fn postgres_restored_to_what_was_not_confirmed() {
    crate::needs_own_server!();
    let env = own_postgres();
    let (mirror, mut run) = unconfirmed(&env);
    let yesterday = disk(&env);
    row_arrives(&env, &mut run, 200);
    env.restart_postgres(false, || env.postgres_server.restore(&yesterday));
    stops_as_gone_back(run, "its log ends at");
    unblock(&env);
    heals(&env, &mirror);
    env.assert_table("blocked", "id", "id");
}

/// The same where other transactions have written the log past the lost position before walferry is back.
#[test]
fn postgres_restored_to_what_was_not_confirmed_and_written_to() {
    crate::needs_own_server!();
    let env = own_postgres();
    let (mirror, mut run) = unconfirmed(&env);
    let yesterday = disk(&env);
    row_arrives(&env, &mut run, 200);
    let lost = env.lsn();
    run.kill();
    env.restart_postgres(false, || env.postgres_server.restore(&yesterday));
    until("the log to grow past it", || {
        env.sql("UPDATE t SET v = 'kept' WHERE id < 50");
        (env.lsn() > lost + 100_000).then_some(())
    });
    let run = env.run(&mirror);
    stops_as_gone_back(run, "has rows of a transaction");
    // A restart doesn't clear the failure.
    run_once(&env, &mirror).exits(1).says(&["the source went back"]);
    unblock(&env);
    heals(&env, &mirror);
    env.assert_table("blocked", "id", "id");
}

/// A crash of PostgreSQL loses nothing: changes that were not confirmed are sent again.
#[test]
fn postgres_crashes_before_anything_is_confirmed() {
    crate::needs_own_server!();
    let env = own_postgres();
    let (_, mut run) = unconfirmed(&env);
    row_arrives(&env, &mut run, 200);
    env.restart_postgres(false, || {});
    row_arrives(&env, &mut run, 201);
    unblock(&env);
    env.settle(&mut run);
    run.stop();
    env.assert_table("t", "id, v", "id");
    env.assert_table("blocked", "id", "id");
}

/// ClickHouse loses rows that were never confirmed, but no position: they are sent again without manual
/// action.
#[test]
fn clickhouse_restored_to_what_was_not_confirmed() {
    crate::needs_own_server!();
    let env = own_clickhouse();
    let (_, mut run) = unconfirmed(&env);
    row_arrives(&env, &mut run, 200);
    let version = || env.target_value("SELECT version FROM _walferry_state FINAL WHERE item = 'position'");
    let mut id = 200;
    // A backup that lacks the newest position is another case, so wait until it is recorded.
    let yesterday = until("a backup from after the last position", || {
        let recorded = recorded_lsn(&env);
        let yesterday = backup(&env);
        let before = version();
        id += 1;
        row_arrives(&env, &mut run, id);
        run.eventually("a record from after the row", || version() != before);
        (recorded_lsn(&env) == recorded && run.status()["lastLSN"] == recorded).then_some(yesterday)
    });
    env.restart_clickhouse(|| env.clickhouse_server.restore(&yesterday));
    let rows = || env.target_value(&format!("SELECT count() FROM t WHERE id = {id}"));
    assert_eq!(rows(), "0");
    run.eventually("the row to come again", || rows() == "1");
    unblock(&env);
    env.settle(&mut run);
    run.stop();
    env.assert_table("t", "id, v", "id");
    env.assert_table("blocked", "id", "id");
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
        let stalled = status["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|condition| condition["type"] == "Stalled" && condition["status"] == "True");
        assert!(stalled.is_none(), "{stalled:?}");
        status.to_string().contains("DestinationDiskFull").then_some(())
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
