//! What takes the slot's server, its log or its publication away.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::{Duration, Instant},
};

use serde_json::json;

use super::{CALM, ChaosEnv};
use crate::{
    support::{Direction, Standby, TestEnv, until},
    tables::{TABLES, Table},
};

impl ChaosEnv {
    /// The primary dies, its standby takes its place and gets a standby of its own. The replicator is behind, up to date, or would be
    /// ahead of the standby if the slot did not wait for that; while tables are copied as well.
    pub(super) fn fail_over(&mut self) {
        // A copy of it that is ended so is not made anew by itself.
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
                self.say("  the standby falls behind: what the application commits now is lost");
                self.standby.stop_receiving();
                self.wait_until(Instant::now() + Duration::from_secs(1));
            }
        }
        self.env.postgres_server.kill();
        self.standby.promote();
        self.env.postgres_server = Arc::clone(&self.standby.server);
        self.env.postgres_port = self.env.postgres_server.port;
        self.login.port.store(self.env.postgres_port, SeqCst);
        self.source_network.set_target(self.env.postgres_port);
        self.source_network.set_frozen(Direction::ToClient, false);
        self.renew_standby();
        self.say("  the standby has taken over, and has a standby");
    }

    /// Waits until the standby could take over with the replicator's slot, which has to have come to where the standby began.
    /// The application waits too.
    fn until_slot_synced(&mut self) {
        self.login.paused.store(true, SeqCst);
        let began = Instant::now();
        let sql = "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE synced AND NOT temporary AND invalidation_reason IS NULL)";
        while self.standby.value(sql) != "t" {
            // What the source notes now and then, a synchronized slot needs to begin; and the process that looks for it, every 30 s
            // once it has looked in vain, begins with short pauses when it is new.
            self.env.admin("SELECT pg_log_standby_snapshot()");
            self.standby.value(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'slotsync worker' AND backend_start < now() - interval '12 s'",
            );
            assert!(began.elapsed() < CALM, "the slot is not synchronized to the standby");
            self.wait_until(Instant::now() + Duration::from_millis(100));
        }
        self.login.paused.store(false, SeqCst);
        self.say("  the standby has the slot");
        self.wait_until(Instant::now() + Duration::from_secs(1));
    }

    /// Makes a new standby in the place of the last one, which has become the primary or ends here.
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

    /// The source gives up the slot's WAL while no replicator runs; the next one says so, and a resync brings it back.
    pub(super) fn lose_slot(&mut self) {
        self.until_streaming();
        self.say("  every table streams");
        self.kill_replicator();
        // A walsender that can't write its last words to a network that takes nothing would keep the slot for ever.
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
        self.held = true;
        self.until_stalled(Instant::now(), &["SourceSlotInvalidated"]);
        self.kill_replicator();
        self.env.admin("ALTER SYSTEM RESET max_slot_wal_keep_size");
        self.env.admin("SELECT pg_reload_conf()");
        // Its slot may be lost as well.
        self.renew_standby();
        self.resync();
    }

    /// Somebody takes a table out of the publication: it fails alone, and a resync brings it back.
    pub(super) fn change_publication(&mut self) {
        self.until_streaming();
        self.say("  every table streams");
        let table = TABLES[self.resyncs as usize % TABLES.len()].name;
        let publication = self
            .env
            .source_value(&format!("SELECT pubname FROM pg_publication_tables WHERE tablename = '{table}'"));
        self.env.sql(&format!("ALTER PUBLICATION {publication} DROP TABLE {table}"));
        let message = self.run.until_failed(table);
        assert!(message.contains("walferry.dev/resync"), "{message}");
        self.kill_replicator();
        self.resync();
    }

    /// A partition is changed while it is none: nothing of that is in the stream.
    pub(super) fn exchange_partition(&mut self) {
        self.env.sql(
            "BEGIN; ALTER TABLE parted DETACH PARTITION parted_1;
             UPDATE parted_1 SET n = -1 WHERE id % 7 = 0; DELETE FROM parted_1 WHERE id % 11 = 0;
             ALTER TABLE parted ATTACH PARTITION parted_1 FOR VALUES WITH (MODULUS 3, REMAINDER 1); COMMIT",
        );
        self.rewritten = Some(Instant::now());
    }

    /// The column becomes wider and narrower in turn, and each row gets another value on the way.
    pub(super) fn rewrite_table(&mut self) {
        self.rewrites += 1;
        let wider = if self.rewrites % 2 == 1 { "bigint" } else { "int" };
        self.env.sql(&format!("ALTER TABLE plain_2 ALTER n TYPE {wider} USING n + 1"));
        self.rewritten = Some(Instant::now());
    }

    /// Asks for every table to be copied again and starts a replicator that does it.
    pub(super) fn resync(&mut self) {
        self.resync_tables("");
    }

    /// The same for these tables (`schema.table`, divided by blanks), or for all where none is named.
    pub(super) fn resync_tables(&mut self, tables: &str) {
        self.resyncs += 1;
        self.mirror.mirror["metadata"]["annotations"] =
            json!({"walferry.dev/resync": format!("{} {tables}", self.resyncs)});
        drop(self.start_replicator());
    }
}

/// A standby of the test's PostgreSQL, for which failover slots wait.
pub(super) fn standby_of(env: &TestEnv, number: u32, options: &[&str]) -> Standby {
    let primary = &env.postgres_server;
    let standby = Standby::start(primary, &format!("standby_{number}"), options);
    standby.hold_slots(primary);
    standby
}
