//! A source or destination that was restored from a backup, or has lost records: the Mirror stalls instead of losing
//! changes silently.

use std::sync::Arc;

use walferry::{
    fault::{Reason, Remedy},
    model::MirrorFailure,
};

use crate::{
    positions::{TABLE, heals, mirrored, recorded_lsn, run_once, stalls_until_a_resync},
    support::{Mirror, Pg, Run, Server, TestEnv, stalled_for, until},
};

fn own_clickhouse() -> TestEnv {
    TestEnv::on(Server::shared_postgres(Pg::V18), Arc::new(Server::clickhouse(&[])))
}

/// A backup of ClickHouse before some of the changes.
fn backup(env: &TestEnv) -> tempfile::TempDir {
    let mut taken = None;
    env.restart_clickhouse(|| taken = Some(env.clickhouse_server.snapshot()));
    taken.unwrap()
}

/// The Mirror stalls for one of these reasons, and offers a resync of every table.
#[track_caller]
fn stalls_for_one_of(run: &mut Run, reasons: &[Reason]) {
    let failure = run.until_status("the Mirror to stall", |status| {
        let mut conditions = status["conditions"].as_array()?.iter();
        conditions.find(|condition| condition["type"] == "Stalled" && condition["status"] == "True")?;
        serde_json::from_value::<MirrorFailure>(status["failure"].clone()).ok()
    });
    assert!(reasons.contains(&failure.reason), "{failure:?}");
    assert_eq!(failure.remedies, [Remedy::resync_all()], "{failure:?}");
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
    stalls_until_a_resync(&env, &mirror, Reason::SourceSlotAdvanced);
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
    stalls_for_one_of(&mut run, &[Reason::DestinationRestored, Reason::SourceSlotAdvanced]);
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
    stalls_for_one_of(&mut run, &[Reason::DestinationRestored, Reason::SourceSlotUnknown]);
    run.stop();
    run_once(&env, &mirror).exits(1).refuses("public.t", Reason::DestinationTableConflict);
    let mirror = heals(&env, &mirror);
    let removed = "INSERT INTO _walferry_state SELECT mirror, item, '', version + 1 FROM _walferry_state FINAL WHERE item = 'position'";
    env.target(removed);
    stalls_until_a_resync(&env, &mirror, Reason::DestinationPositionMissing);
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
    stalls_until_a_resync(&env, &mirror, Reason::SourceWentBack);
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
    stalls_as_gone_back(run);
    // A restart doesn't clear the failure.
    run_once(&env, &mirror).exits(1).stalls(Reason::SourceWentBack);
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
    stalls_as_gone_back(run);
    heals(&env, &mirror);
}

/// The Mirror stalls because the source was restored, and offers a resync of every table.
#[track_caller]
fn stalls_as_gone_back(mut run: Run) {
    let failure = stalled_for(&mut run, Reason::SourceWentBack);
    assert_eq!(failure.remedies, [Remedy::resync_all()], "{}", failure.message);
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
    stalls_as_gone_back(run);
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
    stalls_as_gone_back(run);
    // A restart doesn't clear the failure.
    run_once(&env, &mirror).exits(1).stalls(Reason::SourceWentBack);
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
