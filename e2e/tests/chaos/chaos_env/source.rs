//! Faults of the source: failover, a lost slot, a changed publication, rewritten tables.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use walferry::fault::Reason;

use super::{ChaosEnv, SETTLE_TIMEOUT};
use crate::{
    support::{Direction, Standby, TestEnv, eventually, failed_for, until},
    tables::{TABLES, Table},
};

impl ChaosEnv {
    pub(super) fn signal_source(&self, signal: Signal) {
        let pid = Pid::from_raw(self.env.postgres_server.pid());
        let _ = kill(pid, signal);
        eventually("PostgreSQL to end", || kill(pid, None).is_err());
    }

    pub(super) fn end_sessions(&self, which: &str) {
        let sql = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {which} AND pid <> pg_backend_pid()"
        );
        // The connection that sends this may end as well.
        let _ = self.env.connect_admin().batch_execute(&sql);
    }

    /// The primary dies, its standby is promoted and gets its own standby. The replicator is behind, up to
    /// date, or would be ahead of the standby if the slot did not wait for it. Tables may still be copied.
    pub(super) fn fail_over(&mut self) {
        // The copy of an append-only table that is interrupted in this way is not repeated automatically.
        self.until_these_stream(Table::append_only);
        self.until_slot_synced();
        self.failovers += 1;
        match self.failovers % 3 {
            0 => {}
            1 => {
                self.say("  the replicator falls behind");
                self.source_network.set_frozen(Direction::ToClient, true);
                self.wait_until(Instant::now() + Duration::from_secs(1));
            }
            _ => {
                self.say("  the standby falls behind: what the application commits now will be lost");
                self.standby.stop_receiving();
                self.wait_until(Instant::now() + Duration::from_secs(1));
            }
        }
        self.env.postgres_server.kill();
        self.standby.promote();
        self.env.postgres_server = Arc::clone(&self.standby.server);
        self.env.postgres_port = self.env.postgres_server.port;
        self.connection.port.store(self.env.postgres_port, SeqCst);
        self.source_network.set_target(self.env.postgres_port);
        self.source_network.set_frozen(Direction::ToClient, false);
        self.renew_standby();
        self.say("  the standby is promoted and has its own standby");
    }

    /// Waits until the standby has a usable copy of the replicator's slot, which must have reached the
    /// position at which the standby began. The application pauses meanwhile.
    fn until_slot_synced(&mut self) {
        self.connection.paused.store(true, SeqCst);
        let began = Instant::now();
        let sql = "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE synced AND NOT temporary AND invalidation_reason IS NULL)";
        while self.standby.value(sql) != "t" {
            // Synchronization begins with a running-transactions snapshot, which the source logs only every
            // 15 s. The slot sync worker sleeps longer after each failed attempt, up to 30 s; a new worker
            // begins with short pauses.
            self.env.admin("SELECT pg_log_standby_snapshot()");
            self.standby.value(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'slotsync worker' AND backend_start < now() - interval '12 s'",
            );
            assert!(began.elapsed() < SETTLE_TIMEOUT, "the slot is not synchronized to the standby");
            self.wait_until(Instant::now() + Duration::from_millis(100));
        }
        self.connection.paused.store(false, SeqCst);
        self.say("  the standby has the slot");
        self.wait_until(Instant::now() + Duration::from_secs(1));
    }

    /// Replaces the standby, which was promoted or stops here, by a new one.
    pub(super) fn renew_standby(&mut self) {
        self.standbys += 1;
        let options: Vec<&str> = self.postgres_options.iter().map(String::as_str).collect();
        self.standby = standby_of(&self.env, self.standbys, &options);
        let old = format!("slot_type = 'physical' AND slot_name <> '{}'", self.standby.slot);
        until("the last standby's slot to go", || {
            self.env.admin(&format!(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE {old} AND NOT active"
            ));
            let left =
                self.env.source_value(&format!("SELECT count(*) FROM pg_replication_slots WHERE {old}"));
            (left == "0").then_some(())
        });
    }

    /// The source removes the slot's WAL while no replicator runs. The next replicator must stall, and a
    /// resync recovers.
    pub(super) fn lose_slot(&mut self) {
        self.until_streaming();
        self.say("  every table streams");
        self.kill_replicator();
        // A walsender that hangs in a write to a frozen network would never release the slot.
        self.source_network.cut();
        let slot = |column: &str| {
            self.env.source_value(&format!(
                "SELECT {column} FROM pg_replication_slots WHERE database = current_database()"
            ))
        };
        self.env.admin("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'");
        self.env.admin("SELECT pg_reload_conf()");
        until("the slot to be lost", || {
            self.env.sql("INSERT INTO unrelated SELECT repeat('x', 1000) FROM generate_series(1, 20000); TRUNCATE unrelated");
            self.env.admin("SELECT pg_switch_wal()");
            self.env.admin("CHECKPOINT");
            (slot("wal_status") == "lost").then_some(())
        });
        drop(self.start_replicator());
        self.expected_down = true;
        self.until_stalled(Instant::now(), &["SourceSlotInvalidated"]);
        self.kill_replicator();
        self.env.admin("ALTER SYSTEM RESET max_slot_wal_keep_size");
        self.env.admin("SELECT pg_reload_conf()");
        // The standby's physical slot may be lost as well.
        self.renew_standby();
        self.resync();
    }

    /// Somebody removes a table from the publication: only this table fails, and a resync recovers it.
    pub(super) fn change_publication(&mut self) {
        self.until_streaming();
        self.say("  every table streams");
        let table = TABLES[self.resyncs as usize % TABLES.len()].name;
        let publication = self
            .env
            .source_value(&format!("SELECT pubname FROM pg_publication_tables WHERE tablename = '{table}'"));
        self.env.sql(&format!("ALTER PUBLICATION {publication} DROP TABLE {table}"));
        let failure = failed_for(&mut self.run, table, Reason::SourceNotPublished);
        assert!(failure.resyncs().is_some(), "{failure:?}");
        self.kill_replicator();
        self.resync();
    }

    /// A partition is changed while it is detached, so the stream has none of these changes.
    pub(super) fn exchange_partition(&mut self) {
        self.env.sql(
            "BEGIN; ALTER TABLE parted DETACH PARTITION parted_1;
             UPDATE parted_1 SET n = -1 WHERE id % 7 = 0; DELETE FROM parted_1 WHERE id % 11 = 0;
             ALTER TABLE parted ATTACH PARTITION parted_1 FOR VALUES WITH (MODULUS 3, REMAINDER 1); COMMIT",
        );
        self.rewritten = Some(Instant::now());
    }

    /// A column becomes wider and narrower in turn, and each row gets another value in the rewrite.
    pub(super) fn rewrite_table(&mut self) {
        self.rewrites += 1;
        let wider = if self.rewrites % 2 == 1 { "bigint" } else { "int" };
        self.env.sql(&format!("ALTER TABLE plain_2 ALTER n TYPE {wider} USING n + 1"));
        self.rewritten = Some(Instant::now());
    }

    /// Requests a resync of all tables and starts a replicator.
    pub(super) fn resync(&mut self) {
        self.resync_tables("");
    }

    /// Requests a resync of these tables (`schema.table`, separated by spaces; all if empty) and starts a
    /// replicator.
    pub(super) fn resync_tables(&mut self, tables: &str) {
        self.resyncs += 1;
        self.mirror.mirror["metadata"]["annotations"] =
            json!({"walferry.dev/resync": format!("{} {tables}", self.resyncs)});
        drop(self.start_replicator());
    }
}

/// Starts a standby of the test's PostgreSQL that failover slots wait for.
pub(super) fn standby_of(env: &TestEnv, number: u32, options: &[&str]) -> Standby {
    let primary = &env.postgres_server;
    let standby = Standby::start(primary, &format!("standby_{number}"), options);
    standby.hold_slots(primary);
    standby
}
