//! Servers that get an earlier copy of their disk back, while nobody tells the replicator.

use std::{
    sync::atomic::Ordering::SeqCst,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{CALM, ChaosEnv};
use crate::{
    faults::Meanwhile,
    support::{Standby, parse_lsn, until},
};

/// Within which the Mirror says that it waits for a human: ten seconds, with some to spare for a busy machine.
const STALLED_WITHIN: Duration = Duration::from_secs(20);

/// How long the application writes at most until some of it is confirmed.
const WRITES_FOR: Duration = Duration::from_secs(15);

/// How long the application writes what is lost where no replicator reads it.
const UNREAD_FOR: Duration = Duration::from_secs(3);

/// By how much the log grows past what was recorded, where it is to have another history there.
const GROWN_BY: u64 = 200_000;

impl ChaosEnv {
    /// PostgreSQL goes back on its timeline. What the application has committed since the copy is lost, and must be lost at the
    /// destination too.
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
        let login = self.login();
        login.paused.store(true, SeqCst);
        // It has what is lost, and could not follow any more.
        self.standby.server.kill();
        self.env.restart_postgres(false, || {
            let lost = self.done.transactions.load(SeqCst) - committed;
            self.done.lost.fetch_add(lost, SeqCst);
            self.env.postgres_server.restore(&copy.unwrap());
        });
        Standby::release_slots(&self.env.postgres_server);
        let (restored, log_end) = (Instant::now(), self.env.lsn());
        login.paused.store(false, SeqCst);
        self.say("  PostgreSQL is restored");
        self.renew_standby();
        if meanwhile == Meanwhile::Dies {
            let past = self.recorded() + GROWN_BY;
            until("the log to grow past the record", || (self.env.lsn() > past).then_some(()));
        }
        let stalls = self.recorded() > log_end;
        assert_eq!(stalls, meanwhile != Meanwhile::IsDown, "the record is not what this restore needs");
        self.after_restore(meanwhile, restored, &["SourceWentBack"]);
    }

    /// ClickHouse forgets what it has got since the copy.
    pub(super) fn restore_target(&mut self, meanwhile: Meanwhile) {
        self.begin_copy(meanwhile);
        let mut copy = None;
        self.env.restart_clickhouse(|| copy = Some(self.env.clickhouse_server.snapshot()));
        let copied = self.recorded();
        self.say("  ClickHouse's disk is copied");
        self.after_copy(meanwhile, |env| env.confirmed() > copied);
        self.env.restart_clickhouse(|| self.env.clickhouse_server.restore(&copy.unwrap()));
        self.say("  ClickHouse is restored");
        self.after_restore(meanwhile, Instant::now(), &["DestinationRestored", "SourceSlotAdvanced"]);
    }

    fn begin_copy(&mut self, meanwhile: Meanwhile) {
        self.until_streaming();
        // On a busy machine nothing of what comes next might be confirmed for minutes.
        let login = self.login();
        login.paused.store(true, SeqCst);
        self.until_arrived();
        login.paused.store(false, SeqCst);
        self.say("  every table streams");
        if meanwhile == Meanwhile::IsDown {
            self.kill_replicator();
        }
    }

    /// The application writes what is lost, until so much of it is confirmed that it can be noticed.
    fn after_copy(&mut self, meanwhile: Meanwhile, noticeable: impl Fn(&ChaosEnv) -> bool) {
        if meanwhile == Meanwhile::IsDown {
            return thread::sleep(UNREAD_FOR);
        }
        let began = Instant::now();
        while !noticeable(self) {
            assert!(began.elapsed() < CALM, "nothing is confirmed");
            self.login.paused.store(began.elapsed() > WRITES_FOR, SeqCst);
            self.wait_until(Instant::now() + Duration::from_millis(200));
        }
        self.login.paused.store(false, SeqCst);
        if meanwhile == Meanwhile::Dies {
            self.kill_replicator();
        }
        self.held = true;
    }

    /// The replicator goes on where nothing that is lost was confirmed. Else it stalls, and does not before a resync is asked for.
    fn after_restore(&mut self, meanwhile: Meanwhile, restored: Instant, reasons: &[&str]) {
        if meanwhile == Meanwhile::IsDown {
            drop(self.start_replicator());
            self.until_arrived();
            return self.say("  the replicator goes on");
        }
        let mut began = restored;
        if meanwhile == Meanwhile::Dies {
            drop(self.start_replicator());
            (self.held, began) = (true, Instant::now());
        }
        let reason = self.until_stalled(began, reasons);
        self.say(&format!("  {reason} after {:.1} s", began.elapsed().as_secs_f64()));
        self.kill_replicator();
        self.resync();
    }

    /// Waits until the Mirror is stalled, for one of these reasons, and says what helps.
    pub(super) fn until_stalled(&mut self, began: Instant, reasons: &[&str]) -> String {
        loop {
            assert!(self.run.alive(), "the replicator ended");
            let status = if self.run.listening() { self.run.status() } else { Value::Null };
            let conditions = status["conditions"].as_array().map_or(&[][..], Vec::as_slice);
            let stalled = conditions.iter().find(|c| c["type"] == "Stalled" && c["status"] == "True");
            if let Some(stalled) = stalled {
                let text = |field: &str| stalled[field].as_str().unwrap_or_default().to_owned();
                let (reason, message) = (text("reason"), text("message"));
                assert!(reasons.contains(&reason.as_str()), "{reason}: {message}");
                assert!(message.contains("walferry.dev/resync"), "{message}");
                return reason;
            }
            assert!(began.elapsed() < STALLED_WITHIN, "nobody noticed the restore; status: {status:#}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// The position on record at the destination.
    fn recorded(&self) -> u64 {
        let record = self.env.target_value("SELECT value FROM _walferry_state FINAL WHERE item = 'position'");
        let record: Value = serde_json::from_str(&record).unwrap();
        record["lsn"].as_str().and_then(parse_lsn).unwrap()
    }

    /// The position that the slot stands at.
    fn confirmed(&self) -> u64 {
        let sql = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE database = current_database()";
        parse_lsn(&self.env.source_value(sql)).unwrap()
    }
}
