//! A physical standby of a server of the tests: kept back, promoted, and synchronizing slots.

use std::sync::Arc;

use postgres::{Client, NoTls};

use super::{Pg, Server, eventually, parse_lsn};

/// A PostgreSQL 18 that replays another server's log through a physical slot of its own, until it is promoted.
#[derive(Debug)]
pub struct Standby {
    /// The server, which a `TestEnv` can use once it is the primary.
    pub server: Arc<Server>,
    /// Its physical slot at the primary.
    pub slot: String,
}

impl Standby {
    /// A standby of `primary` that keeps the primary from vacuuming what it needs (`hot_standby_feedback`), and synchronizes the
    /// primary's failover slots. That the primary's logical slots wait for it is said by [`Standby::hold_slots`].
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

    /// Has the primary's failover slots wait until this standby has what they send (`synchronized_standby_slots`).
    pub fn hold_slots(&self, primary: &Server) {
        set(primary, &format!("synchronized_standby_slots = '{}'", self.slot));
    }

    /// Has the primary's failover slots wait for no standby.
    pub fn let_slots_go(primary: &Server) {
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

    /// Waits until it has the logical slot, fit to be used after a failover, with everything up to `lsn` confirmed.
    #[track_caller]
    pub fn until_synced(&self, primary: &Server, slot: &str, lsn: u64) {
        let (mut primary, mut admin) = (admin(primary), admin(&self.server));
        let sql = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots \
                   WHERE slot_name::text = $1 AND synced AND NOT temporary AND invalidation_reason IS NULL";
        eventually("the slot to be synchronized", || {
            // A slot is taken over from a snapshot on, which the primary logs anyway every 15 s, and what synchronizes slots
            // sleeps for up to 30 s, unless it is told to read its settings.
            primary.batch_execute("SELECT pg_log_standby_snapshot()").unwrap();
            admin.batch_execute("SELECT pg_reload_conf(), pg_sleep(0.1)").unwrap();
            let row = admin.query_opt(sql, &[&slot]).unwrap();
            row.and_then(|row| parse_lsn(row.get(0))).is_some_and(|at| at >= lsn)
        });
    }

    /// Stops to take the primary's log, and waits until it takes none.
    #[track_caller]
    pub fn stop_receiving(&self) {
        set(&self.server, "primary_conninfo = ''");
        self.until_receiving(false);
    }

    /// Takes the primary's log again.
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

    /// Stops or goes on to replay what it receives.
    pub fn set_replaying(&self, replaying: bool) {
        let function = if replaying { "pg_wal_replay_resume" } else { "pg_wal_replay_pause" };
        let mut admin = admin(&self.server);
        admin.batch_execute(&format!("SELECT {function}()")).unwrap();
        let state = if replaying { "not paused" } else { "paused" };
        eventually("the replay to obey", || {
            admin.query_one("SELECT pg_get_wal_replay_pause_state()", &[]).unwrap().get::<_, &str>(0) == state
        });
    }

    /// Changes a setting of the standby while it runs.
    pub fn set(&self, setting: &str) {
        set(&self.server, setting);
    }

    /// One value that the standby itself gives, to a superuser, as text.
    #[track_caller]
    pub fn value(&self, query: &str) -> String {
        let messages = admin(&self.server).simple_query(query).unwrap();
        let rows = messages.iter().filter_map(|message| match message {
            postgres::SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        rows.collect()
    }

    /// Makes it a primary, which takes writes when this returns. The old primary is to be killed before, or goes on by itself.
    pub fn promote(&self) {
        let promoted: bool = admin(&self.server).query_one("SELECT pg_promote()", &[]).unwrap().get(0);
        assert!(promoted, "the standby was not promoted within a minute");
    }
}

/// A superuser's connection to the server itself, whatever the test's port says.
fn admin(server: &Server) -> Client {
    let login =
        format!("host=127.0.0.1 port={} user=postgres password=postgres-test dbname=postgres", server.port);
    Client::connect(&login, NoTls).unwrap()
}

/// Changes a setting while the server runs.
fn set(server: &Server, setting: &str) {
    let mut admin = admin(server);
    admin.batch_execute(&format!("ALTER SYSTEM SET {setting}")).unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").unwrap();
}
