//! A physical standby of a test's server that can be paused, promoted, and synchronizes slots.

use std::sync::Arc;

use postgres::Client;

use super::{Pg, Server, eventually, parse_lsn};

/// A PostgreSQL 18 that replays another server's WAL through its own physical slot until it is promoted.
#[derive(Debug)]
pub struct Standby {
    /// The server, which a `TestEnv` can use once it is the primary.
    pub server: Arc<Server>,
    /// Its physical slot at the primary.
    pub slot: String,
}

impl Standby {
    /// A standby of `primary` with `hot_standby_feedback` that synchronizes the primary's failover slots.
    /// [`Standby::hold_slots`] makes these slots wait for it.
    pub fn of(primary: &Server, slot: &str) -> Standby {
        Standby::with(
            primary,
            slot,
            &["hot_standby_feedback=on", "wal_receiver_status_interval=1", "sync_replication_slots=on"],
        )
    }

    /// A standby with these settings.
    pub fn with(primary: &Server, slot: &str, settings: &[&str]) -> Standby {
        let settings: Vec<&str> = settings.iter().flat_map(|setting| ["-c", setting]).collect();
        Standby::start(primary, slot, &settings)
    }

    /// A standby with these options of `e2e/tools/servers`, such as those that the primary has.
    pub fn start(primary: &Server, slot: &str, options: &[&str]) -> Standby {
        let folder = primary.folder.to_str().unwrap();
        let standby = ["--standby-of", folder, "--slot", slot];
        let server = Arc::new(Server::postgres(Pg::V18, &[&standby, options].concat()));
        Standby { server, slot: slot.to_owned() }
    }

    /// Makes the primary's failover slots wait until this standby has received what they send
    /// (`synchronized_standby_slots`).
    pub fn hold_slots(&self, primary: &Server) {
        set(primary, &format!("synchronized_standby_slots = '{}'", self.slot));
    }

    /// Makes the primary's failover slots wait for no standby.
    pub fn release_slots(primary: &Server) {
        set(primary, "synchronized_standby_slots = ''");
    }

    /// Waits until it has replayed everything up to `lsn`.
    #[track_caller]
    pub fn until_replayed(&self, lsn: u64) {
        let mut admin = admin(&self.server);
        eventually("the standby to catch up", || {
            let row = admin.query_one("SELECT pg_last_wal_replay_lsn()::text", &[]).unwrap();
            row.get::<_, Option<String>>(0).and_then(|lsn| parse_lsn(&lsn)).is_some_and(|at| at >= lsn)
        });
    }

    /// Waits until the logical slot is usable after a failover, with everything up to `lsn` confirmed.
    #[track_caller]
    pub fn until_synced(&self, primary: &Server, slot: &str, lsn: u64) {
        let (mut primary, mut admin) = (admin(primary), admin(&self.server));
        let sql = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots \
                   WHERE slot_name::text = $1 AND synced AND NOT temporary AND invalidation_reason IS NULL";
        eventually("the slot to be synchronized", || {
            // Synchronization needs a running-transactions snapshot, which the primary logs every 15 s, and
            // the slot sync worker sleeps for up to 30 s. Both statements shorten these waits.
            primary.batch_execute("SELECT pg_log_standby_snapshot()").unwrap();
            admin.batch_execute("SELECT pg_reload_conf(), pg_sleep(0.1)").unwrap();
            let row = admin.query_opt(sql, &[&slot]).unwrap();
            row.and_then(|row| parse_lsn(row.get(0))).is_some_and(|at| at >= lsn)
        });
    }

    /// Disconnects the WAL receiver and waits until it has stopped.
    #[track_caller]
    pub fn stop_receiving(&self) {
        set(&self.server, "primary_conninfo = ''");
        self.until_receiving(false);
    }

    /// Connects the WAL receiver again.
    #[track_caller]
    pub fn receive_again(&self) {
        let mut admin = admin(&self.server);
        admin.batch_execute("ALTER SYSTEM RESET primary_conninfo").unwrap();
        admin.batch_execute("SELECT pg_reload_conf()").unwrap();
        self.until_receiving(true);
    }

    fn until_receiving(&self, wanted: bool) {
        let mut admin = admin(&self.server);
        let sql = "SELECT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')";
        eventually("the standby's WAL receiver", || {
            admin.query_one(sql, &[]).unwrap().get::<_, bool>(0) == wanted
        });
    }

    /// Pauses or resumes the replay of received WAL.
    pub fn set_replaying(&self, replaying: bool) {
        let function = if replaying { "pg_wal_replay_resume" } else { "pg_wal_replay_pause" };
        let mut admin = admin(&self.server);
        admin.batch_execute(&format!("SELECT {function}()")).unwrap();
        let state = if replaying { "not paused" } else { "paused" };
        eventually(&format!("the replay to be {state}"), || {
            admin.query_one("SELECT pg_get_wal_replay_pause_state()", &[]).unwrap().get::<_, &str>(0) == state
        });
    }

    /// Changes a setting of the standby while it runs.
    pub fn set(&self, setting: &str) {
        set(&self.server, setting);
    }

    /// One value that a superuser's query at the standby returns, as text.
    #[track_caller]
    pub fn value(&self, query: &str) -> String {
        let messages = admin(&self.server).simple_query(query).unwrap();
        let rows = messages.iter().filter_map(|message| match message {
            postgres::SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        rows.collect()
    }

    /// Promotes it; it accepts writes when this returns. The old primary keeps running unless it was killed
    /// before.
    pub fn promote(&self) {
        let promoted: bool = admin(&self.server).query_one("SELECT pg_promote()", &[]).unwrap().get(0);
        assert!(promoted, "the standby was not promoted within a minute");
    }
}

/// A superuser's connection to this server, independent of the test's port.
fn admin(server: &Server) -> Client {
    server.admin.connect(server.port, "postgres").unwrap()
}

/// Changes a setting while the server runs.
fn set(server: &Server, setting: &str) {
    let mut admin = admin(server);
    admin.batch_execute(&format!("ALTER SYSTEM SET {setting}")).unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").unwrap();
}
