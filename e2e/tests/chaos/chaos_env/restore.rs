//! Servers that are restored to an earlier copy of their disk.

use std::{
    sync::atomic::Ordering::SeqCst,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{ChaosEnv, SETTLE_TIMEOUT, replicator::recovers_by_resync};
use crate::{
    faults::Meanwhile,
    support::{Standby, parse_lsn, until},
};

/// The Mirror must be Stalled within this time: ten seconds, doubled for a busy machine.
const STALLED_WITHIN: Duration = Duration::from_secs(20);

/// The application pauses after this time, so that a busy machine can confirm what it has written.
const WRITES_FOR: Duration = Duration::from_secs(15);

/// How long the application writes rows that no replicator reads before they are lost.
const UNREAD_FOR: Duration = Duration::from_secs(3);

/// How many bytes the WAL grows past the recorded position, so that this position belongs to another history.
const GROWN_BY: u64 = 200_000;

impl ChaosEnv {
    /// PostgreSQL is restored to an earlier position of its timeline. What the application has committed
    /// since the copy is lost, and must disappear from the destination too.
    pub(super) fn restore_source(&mut self, meanwhile: Meanwhile) {
        self.begin_copy(meanwhile);
        let (mut copy, mut committed) = (None, 0);
        self.env.restart_postgres(false, || {
            copy = Some(self.env.postgres_server.snapshot());
            committed = self.done.transactions.load(SeqCst);
        });
        let copied = self.env.lsn();
        self.say("  PostgreSQL's disk is copied");
        self.after_copy(meanwhile, |env| env.recorded() > copied);
        let connection = self.connection();
        connection.paused.store(true, SeqCst);
        // The standby has the lost transactions, so it could not follow the restored primary.
        self.standby.server.kill();
        self.env.restart_postgres(false, || {
            let lost = self.done.transactions.load(SeqCst) - committed;
            self.done.lost.fetch_add(lost, SeqCst);
            self.env.postgres_server.restore(&copy.unwrap());
        });
        Standby::release_slots(&self.env.postgres_server);
        let (restored, log_end) = (Instant::now(), self.env.lsn());
        connection.paused.store(false, SeqCst);
        self.say("  PostgreSQL is restored");
        self.renew_standby();
        if meanwhile == Meanwhile::Dies {
            let past = self.recorded() + GROWN_BY;
            until("the WAL to grow past the recorded position", || (self.env.lsn() > past).then_some(()));
        }
        let stalls = self.recorded() > log_end;
        assert_eq!(
            stalls,
            meanwhile != Meanwhile::IsDown,
            "the recorded position does not suit this restore"
        );
        self.after_restore(meanwhile, restored, &["SourceWentBack"]);
    }

    /// ClickHouse loses what it has received since the copy.
    pub(super) fn restore_target(&mut self, meanwhile: Meanwhile) {
        self.begin_copy(meanwhile);
        let mut copy = None;
        self.env.restart_clickhouse(|| {
            self.remove_emptied_definitions();
            copy = Some(self.env.clickhouse_server.snapshot());
        });
        let copied = self.recorded();
        self.say("  ClickHouse's disk is copied");
        self.after_copy(meanwhile, |env| env.confirmed() > copied);
        self.env.restart_clickhouse(|| self.env.clickhouse_server.restore(&copy.unwrap()));
        self.say("  ClickHouse is restored");
        self.after_restore(meanwhile, Instant::now(), &["DestinationRestored", "SourceSlotAdvanced"]);
    }

    fn begin_copy(&mut self, meanwhile: Meanwhile) {
        self.until_streaming();
        // A backlog on a busy machine could delay the confirmation of the next rows by minutes.
        let connection = self.connection();
        connection.paused.store(true, SeqCst);
        self.until_arrived();
        connection.paused.store(false, SeqCst);
        self.say("  every table streams");
        if meanwhile == Meanwhile::IsDown {
            self.kill_replicator();
        }
    }

    /// The application writes rows that will be lost, until enough of them are confirmed for the loss to be
    /// noticed.
    fn after_copy(&mut self, meanwhile: Meanwhile, noticeable: impl Fn(&ChaosEnv) -> bool) {
        if meanwhile == Meanwhile::IsDown {
            return thread::sleep(UNREAD_FOR);
        }
        let began = Instant::now();
        while !noticeable(self) {
            assert!(began.elapsed() < SETTLE_TIMEOUT, "nothing was confirmed within {SETTLE_TIMEOUT:?}");
            self.connection.paused.store(began.elapsed() > WRITES_FOR, SeqCst);
            self.wait_until(Instant::now() + Duration::from_millis(200));
        }
        self.connection.paused.store(false, SeqCst);
        if meanwhile == Meanwhile::Dies {
            self.kill_replicator();
        }
        self.expected_down = true;
    }

    /// The replicator continues if nothing that is lost was confirmed. Otherwise it must stall until a resync
    /// is requested.
    fn after_restore(&mut self, meanwhile: Meanwhile, restored: Instant, reasons: &[&str]) {
        if meanwhile == Meanwhile::IsDown {
            drop(self.start_replicator());
            self.until_arrived();
            return self.say("  the replicator continues");
        }
        let mut began = restored;
        if meanwhile == Meanwhile::Dies {
            drop(self.start_replicator());
            (self.expected_down, began) = (true, Instant::now());
        }
        let reason = self.until_stalled(began, reasons);
        self.say(&format!("  {reason} after {:.1} s", began.elapsed().as_secs_f64()));
        self.kill_replicator();
        self.resync();
    }

    /// Waits until the Mirror is Stalled for one of these reasons, with a resync as remedy.
    pub(super) fn until_stalled(&mut self, began: Instant, reasons: &[&str]) -> String {
        loop {
            assert!(self.run.alive(), "the replicator ended");
            let status = if self.run.listening() { self.run.status() } else { Value::Null };
            let conditions = status["conditions"].as_array().map_or(&[][..], Vec::as_slice);
            let stalled = conditions.iter().find(|c| c["type"] == "Stalled" && c["status"] == "True");
            if let Some(stalled) = stalled {
                let reason = stalled["reason"].as_str().unwrap_or_default();
                assert!(reasons.contains(&reason), "{stalled:#}");
                assert!(recovers_by_resync(&status["failure"]), "{status:#}");
                return reason.to_owned();
            }
            assert!(began.elapsed() < STALLED_WITHIN, "the restore was not noticed; status: {status:#}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// The position that is recorded at the destination.
    fn recorded(&self) -> u64 {
        let record = self.env.target_value("SELECT value FROM _walferry_state FINAL WHERE item = 'position'");
        let record: Value = serde_json::from_str(&record).unwrap();
        record["lsn"].as_str().and_then(parse_lsn).unwrap()
    }

    /// The slot's confirmed position.
    fn confirmed(&self) -> u64 {
        let sql = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE database = current_database()";
        parse_lsn(&self.env.source_value(sql)).unwrap()
    }
}
