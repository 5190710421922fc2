//! The source fails over to a physical standby, which may lack transactions that the destination has
//! received.

use nix::sys::signal::Signal;
use serde_json::json;
use walferry::fault::Reason;

use crate::{
    standby::{run_at_the_primary, slot_made},
    support::{
        Mirror, Pg, Proxy, Run, Server, Standby, TestEnv, UNTIL_CAUGHT_UP, eventually, failed_for,
        stalled_for,
    },
};

/// A primary with a standby, and an address that leads to whichever of them is the primary.
struct Pair {
    env: TestEnv,
    standby: Standby,
    address: Proxy,
}

impl Pair {
    /// Creates both; the primary's failover slots wait for the standby.
    fn with(statements: &str) -> Pair {
        let env = TestEnv::on(Server::postgres(Pg::V18, &[]).into(), Server::shared_clickhouse());
        env.sql(statements);
        let standby = Standby::of(&env.postgres_server, "standby");
        standby.hold_slots(&env.postgres_server);
        eventually("the setting", || env.source_value("SHOW synchronized_standby_slots") == "standby");
        let address = Proxy::to(env.postgres_port);
        Pair { env, standby, address }
    }

    fn mirror(&self, tables: &[&str]) -> Mirror {
        let mut mirror = self.env.mirror(tables);
        mirror.postgres["spec"]["postgres"]["port"] = json!(self.address.port);
        mirror
    }

    /// Runs the Mirror until everything has arrived and the standby has its slot.
    fn streaming(&self, mirror: &Mirror) -> Run {
        let before = self.env.lsn();
        let mut run = self.env.streaming(mirror);
        let slot = run.status()["slotName"].as_str().unwrap().to_owned();
        self.standby.until_synced(&self.env.postgres_server, &slot, before);
        run
    }

    /// Runs the last statements that the standby receives.
    fn last_received(&self, statements: &str) {
        self.env.sql(statements);
        self.standby.until_replayed(self.env.lsn());
        self.standby.stop_receiving();
    }

    /// Kills the primary and promotes the standby.
    fn fail_over(&mut self) {
        self.env.postgres_server.kill();
        self.standby.promote();
        self.env.postgres_port = self.standby.server.port;
        self.address.set_target(self.env.postgres_port);
    }

    /// Waits until a row that is written now has arrived.
    #[track_caller]
    fn settle(&self, run: &mut Run, table: &str) {
        self.env.sql(&format!("INSERT INTO {table} (id) VALUES (999999)"));
        let arrived = format!("SELECT count() FROM {table} FINAL WHERE id = 999999");
        run.eventually("a row of the promoted standby", || self.env.target_value(&arrived) == "1");
        run.until_streaming();
        self.env.settle(run);
    }

    #[track_caller]
    fn assert_log(&self, table: &str) {
        self.env.assert_same(
            &format!("SELECT id, n, count(*) FROM {table} GROUP BY id, n ORDER BY id, n"),
            &format!("SELECT id, n, sum(_walferry_sign) AS times FROM {table} FINAL GROUP BY id, n HAVING times != 0 ORDER BY id, n"),
        );
    }
}

const TABLES: &str = "CREATE TABLE a (id int PRIMARY KEY, n int); INSERT INTO a SELECT i, 0 FROM generate_series(1, 100) i;
    CREATE TABLE log (id int, n int); ALTER TABLE log REPLICA IDENTITY FULL; INSERT INTO log SELECT * FROM a;";

fn reason_of(run: &mut Run) -> String {
    run.condition("Stalled").map(|(_, reason, _)| reason).unwrap_or_default()
}

/// The destination has only fetched values that the standby lacks: from a transaction that changed them, and
/// from one that deleted their row. Their rows are streamed again, because the slot was not moved past them.
#[test]
fn behind_the_switchpoint() {
    crate::needs_own_server!();
    let mut pair = Pair::with(&format!(
        "{TABLES} CREATE TABLE wide (id int PRIMARY KEY, big text, n int); ALTER TABLE wide ALTER big SET STORAGE EXTERNAL;
         INSERT INTO wide SELECT i, repeat(md5(i::text), 200), 0 FROM generate_series(1, 5) i"
    ));
    let mirror = pair.mirror(&["a", "log", "wide"]);
    let mut run = pair.streaming(&mirror);
    let before = pair.env.lsn();
    let reached = format!("confirmed_flush_lsn >= pg_lsn '0/0' + {before}");
    eventually("the slot to be where the log is", || pair.env.slot(&mut run, &reached) == "t");
    run.signal(Signal::SIGSTOP);
    pair.last_received("UPDATE a SET n = 1 WHERE id <= 50; INSERT INTO log VALUES (200, 0), (200, 0); UPDATE wide SET n = 1 WHERE id <= 3");
    let last = pair.env.lsn();
    let lost = "UPDATE wide SET big = 'lost' || repeat('x', 5000) WHERE id = 1; DELETE FROM wide WHERE id = 2; INSERT INTO a VALUES (300, 1);
         INSERT INTO log VALUES (300, 1)";
    pair.env.sql(lost);
    run.signal(Signal::SIGCONT);
    run.eventually("the values to be fetched", || {
        pair.env.target_value("SELECT startsWith(big, 'lost') FROM wide FINAL WHERE id = 1") == "1"
    });
    run.until_lsn(last);
    let now = pair.env.source_value("SELECT clock_timestamp()");
    let heard = format!(
        "SELECT count(*) FROM pg_stat_replication WHERE application_name LIKE 'walferry%' AND reply_time > '{now}'"
    );
    run.eventually("a report to the source", || pair.env.source_value(&heard) == "1");
    let passed = format!("confirmed_flush_lsn >= pg_lsn '0/0' + {last}");
    assert_eq!(pair.env.slot(&mut run, &passed), "f", "the fetched values are not on the standby");
    assert_eq!(pair.env.slot(&mut run, &reached), "t");
    assert_eq!(pair.env.target_value("SELECT count() FROM a FINAL WHERE id = 300"), "0");
    pair.fail_over();
    pair.env.sql("UPDATE a SET n = 2 WHERE id > 90; DELETE FROM log WHERE id < 10; UPDATE wide SET n = 2 WHERE id = 3; ALTER TABLE a ADD b int DEFAULT 7");
    pair.settle(&mut run, "a");
    pair.env.assert_table("a", "id, n, b", "id");
    pair.assert_log("log");
    pair.env.assert_same(
        "SELECT id, md5(big), n FROM wide ORDER BY id",
        "SELECT id, lower(hex(MD5(big))), n FROM wide FINAL WHERE _walferry_deleted = 0 ORDER BY id",
    );
    pair.env.verify(&mirror);
    assert_eq!((reason_of(&mut run), &run.status()["slotFailovers"]), (String::new(), &json!(1)));
    // The new timeline is on record, and the stream continues from the slot of the new primary.
    run.stop();
    pair.env.catch_up(&mirror).says(&["0 rows copied"]);
}

/// The slot waited for no standby, so the destination has transactions that the promoted one lacks. The
/// Mirror stalls until a resync of the tables whose rows show them. A truncated table has no such row, and is
/// copied again automatically.
#[test]
fn ahead_of_the_switchpoint() {
    crate::needs_own_server!();
    let mut pair = Pair::with(&format!(
        "{TABLES} CREATE TABLE calm (id int PRIMARY KEY, n int); INSERT INTO calm SELECT * FROM a;
         CREATE TABLE emptied (id int PRIMARY KEY, n int); INSERT INTO emptied SELECT * FROM a"
    ));
    let mut mirror = pair.mirror(&["a", "log", "calm", "emptied"]);
    let mut run = pair.streaming(&mirror);
    Standby::release_slots(&pair.env.postgres_server);
    eventually("the setting", || pair.env.source_value("SHOW synchronized_standby_slots").is_empty());
    pair.last_received("UPDATE a SET n = 1 WHERE id <= 50; UPDATE calm SET n = 3");
    pair.env.sql("UPDATE a SET n = 4 WHERE id = 1; DELETE FROM a WHERE id = 2; INSERT INTO log VALUES (300, 1); TRUNCATE emptied");
    pair.env.settle(&mut run);
    pair.fail_over();
    let failure = stalled_for(&mut run, Reason::SourceTimelineChanged);
    assert_eq!(failure.resyncs(), Some(vec!["public.a".to_owned(), "public.log".to_owned()]), "{failure:?}");
    run.stop();
    pair.env.sql("UPDATE a SET n = 5 WHERE id > 90; DELETE FROM log WHERE id < 10; INSERT INTO emptied VALUES (200, 1)");
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1 public.a public.log"});
    let mut run = pair.env.run(&mirror);
    pair.settle(&mut run, "a");
    for table in ["a", "calm", "emptied"] {
        pair.env.assert_table(table, "id, n", "id");
    }
    pair.assert_log("log");
    pair.env.verify(&mirror);
    let resyncs = run.table("emptied")["resyncs"].clone();
    assert_eq!(resyncs["count"], 1, "copied again automatically: {resyncs}");
}

/// Tables that were added, and copied, with transactions that the standby lacks are copied again: one that
/// was not copied yet, and one with other columns too. The one that doesn't exist there fails alone.
#[test]
fn copies_with_lost_transactions() {
    crate::needs_own_server!();
    let tables = ["keyed", "late", "altered"];
    let create = tables.map(|table| {
        format!("CREATE TABLE {table} (id int PRIMARY KEY, n int); INSERT INTO {table} SELECT i, 0 FROM generate_series(1, 1000) i;")
    });
    let mut pair = Pair::with(&format!("{TABLES} {}", create.concat()));
    let run = pair.streaming(&pair.mirror(&["a"]));
    run.stop();
    pair.last_received("UPDATE keyed SET n = 1 WHERE id > 900; UPDATE a SET n = 1");
    let lost = "UPDATE keyed SET n = 2 WHERE id < 10; DELETE FROM keyed WHERE id BETWEEN 10 AND 20; INSERT INTO keyed VALUES (2000, 2);
         DELETE FROM log WHERE id = 1; INSERT INTO log VALUES (300, 1); ALTER TABLE altered ADD a int DEFAULT 5; UPDATE altered SET n = 1;
         CREATE TABLE gone (id int PRIMARY KEY); INSERT INTO gone VALUES (1)";
    pair.env.sql(lost);
    let mut writer = pair.env.connect();
    writer.batch_execute("BEGIN; INSERT INTO late VALUES (2000, 1)").unwrap();
    let mirror = pair.mirror(&["a", "keyed", "altered", "log", "gone", "late"]);
    let mut run = pair.env.run(&mirror);
    run.until_status("all tables but one to be copied", |status| {
        let tables = status["tables"].as_array()?;
        let waits = tables.iter().any(|table| table["reason"] == "WaitingForTransactions");
        let copied = tables.iter().filter(|table| table["state"] == "Streaming").count();
        (waits && copied == 5).then_some(())
    });
    assert_eq!(pair.env.target_value("SELECT sum(a) FROM altered FINAL"), "5000");
    assert_eq!(pair.env.target_value("SELECT n FROM keyed FINAL WHERE id = 2000"), "2");
    pair.fail_over();
    pair.env.sql("ALTER TABLE altered ADD b int DEFAULT 7; UPDATE altered SET n = 3 WHERE id < 100; UPDATE keyed SET n = 4 WHERE id = 500");
    failed_for(&mut run, "gone", Reason::SourceTimelineChanged);
    run.eventually("a row of the promoted standby", || {
        pair.env.target_value("SELECT count() FROM keyed FINAL WHERE n = 4") == "1"
    });
    run.until_status("the others to be copied", |status| {
        let tables = status["tables"].as_array()?;
        let rest = tables.iter().filter(|table| table["name"] != "gone");
        rest.clone().all(|table| table["state"] == "Streaming").then_some(())
    });
    pair.env.settle(&mut run);
    for table in ["a", "keyed", "late"] {
        pair.env.assert_table(table, "id, n", "id");
    }
    pair.env.assert_table("altered", "id, n, b", "id");
    pair.assert_log("log");
    assert_eq!(reason_of(&mut run), "");
}

/// The source is a standby and is promoted while it streams. All it has sent is part of its history, also
/// what it sent after the promotion and before walferry noticed it.
#[test]
fn a_standby_promoted_in_place() {
    crate::needs_own_server!();
    let mut env = TestEnv::on(Server::postgres(Pg::V18, &[]).into(), Server::shared_clickhouse());
    env.sql("CREATE TABLE a (id int PRIMARY KEY, n int); INSERT INTO a SELECT i, 0 FROM generate_series(1, 100) i");
    let standby = Standby::of(&env.postgres_server, "standby");
    standby.until_replayed(env.lsn());
    let mut mirror = env.mirror(&["a"]);
    mirror.postgres["spec"]["postgres"]["port"] = json!(standby.server.port);
    run_at_the_primary(&env, &standby, env.command("check", &mirror, &[]));
    let mut run = env.run(&mirror);
    slot_made(&env, &mut run);
    run.until_streaming();
    env.sql("UPDATE a SET n = 1 WHERE id <= 50");
    standby.until_replayed(env.lsn());
    env.postgres_server.kill();
    standby.promote();
    env.postgres_port = standby.server.port;
    env.sql("INSERT INTO a VALUES (300, 1)");
    run.eventually("a row of the new timeline", || {
        env.target_value("SELECT count() FROM a FINAL WHERE id = 300") == "1"
    });
    run.kill();
    env.sql("UPDATE a SET n = 2 WHERE id > 90");
    // Only the first start on the new timeline logs it.
    let timelines = || {
        let lines = env.command("run", &mirror, &UNTIL_CAUGHT_UP).exits(0).log();
        let changed = lines.into_iter().filter(|line| line["from"] == 1 && line["to"] == 2);
        changed.count()
    };
    assert_eq!(timelines(), 1);
    env.catch_up(&mirror).says(&["0 rows copied"]);
    env.assert_table("a", "id, n", "id");
    env.sql("DELETE FROM a WHERE id < 10");
    assert_eq!(timelines(), 0);
    env.assert_table("a", "id, n", "id");
}
