//! Both servers, the networks between them and the replicator, and the faults of each.

mod clock;
mod network;
mod repair;
mod replicator;
mod restore;
mod source;
mod target;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::Command,
    sync::{Arc, atomic::Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use self::clock::Clock;
use crate::{
    faults::Fault,
    support::{Gateway, Mirror, Pg, Proxy, Run, Server, Standby, TestEnv, TlsProxy, parse_lsn, until},
    tables::{TABLES, Table},
    workload::{Connection, Done},
};

/// Everything must have arrived within this time after all faults have ended.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(240);

/// The size of the destination's disk, which is a tmpfs.
const TARGET_DISK: &str = "1g";

/// The replicator reads the catalog again within this time, even on a busy machine.
const CATALOG_CHECK_TIMEOUT: Duration = Duration::from_secs(20);

/// The number of requests that the gateway holds back at a time.
const LATE_REQUESTS: usize = 4;

pub struct ChaosEnv {
    pub env: TestEnv,
    /// The standby of the test's PostgreSQL, with a synchronized copy of the Mirror's slot.
    standby: Standby,
    /// The options that primary and standby are started with.
    postgres_options: Vec<String>,
    mirror: Mirror,
    /// How the application connects to the primary.
    connection: Connection,
    /// What the application has done.
    pub done: Arc<Done>,
    source_network: Proxy,
    target_network: Proxy,
    _target_tls: TlsProxy,
    /// Between the TLS proxy and ClickHouse: delivers requests late.
    gateway: Gateway,
    /// PostgreSQL reads these files at each start.
    _certificates: tempfile::TempDir,
    /// Whether ClickHouse has its own small disk.
    small_disk: bool,
    clock: Option<Clock>,
    run: Run,
    /// A stopped replicator that `run` has replaced.
    replaced: Option<Run>,
    /// When a change was made that is visible only in the catalog.
    rewritten: Option<Instant>,
    /// Failed tables and their reasons, which are examined after all faults have ended.
    failed: BTreeMap<String, String>,
    /// Targets whose emptied definition was removed, so that ClickHouse starts.
    removed: RefCell<BTreeSet<String>>,
    /// Whether a fault keeps the replicator down or stopped.
    expected_down: bool,
    resyncs: u32,
    rewrites: u32,
    failovers: u32,
    standbys: u32,
    started: Instant,
    last_status: Instant,
    /// Logs of earlier replicators.
    logs: Vec<String>,
    /// How often each fault was injected.
    pub counts: BTreeMap<String, u32>,
    /// How often each kind of manual resync was needed.
    pub repairs: BTreeMap<String, u32>,
    /// How often a replicator could not start because a server was down.
    pub refused_starts: u32,
    pub peak_memory_mib: u64,
}

impl ChaosEnv {
    /// Starts servers, creates the tables and starts the replicator. All connections use TLS, without which a
    /// flipped bit would go unnoticed.
    pub fn start() -> ChaosEnv {
        let identity = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let (certificate, key) = (identity.cert.pem(), identity.signing_key.serialize_pem());
        let certificates = tempfile::tempdir().unwrap();
        for (file, text) in [("server.crt", &certificate), ("server.key", &key), ("ca.crt", &certificate)] {
            std::fs::write(certificates.path().join(file), text).unwrap();
        }
        // Little WAL, so that a slot can be lost within seconds, and what primary and standby need.
        let settings = [
            "max_wal_size=64MB",
            "min_wal_size=32MB",
            "hot_standby_feedback=on",
            "sync_replication_slots=on",
            "wal_retrieve_retry_interval=200ms",
        ];
        let settings = settings.iter().flat_map(|setting| ["-c", setting]);
        let options: Vec<&str> =
            ["--tls", certificates.path().to_str().unwrap()].into_iter().chain(settings).collect();
        let small_disk =
            Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|s| s.success());
        let disk: &[&str] = if small_disk { &["--disk", TARGET_DISK] } else { &[] };
        let env = TestEnv::on(Server::postgres(Pg::V18, &options).into(), Server::clickhouse(disk).into());
        for table in TABLES {
            env.sql(&table.ddl.replace("TABLE_NAME", table.name));
        }
        env.sql("CREATE TABLE unrelated (v text)");
        let standby = source::standby_of(&env, 0, &options);
        let connection = Connection {
            database: env.database.clone(),
            port: Arc::new(env.postgres_port.into()),
            paused: Arc::default(),
        };
        let gateway = Gateway::to(env.clickhouse.port);
        let target_tls = TlsProxy::to(gateway.port, &certificate, &key);
        let (source_network, target_network) = (Proxy::to(env.postgres_port), Proxy::to(target_tls.port));
        let names: Vec<&str> = TABLES.iter().map(|table| table.name).collect();
        let mut mirror = env.mirror(&names);
        for (index, _) in TABLES.iter().enumerate().filter(|(_, table)| table.append_only()) {
            mirror.table(index)["operations"] = json!(["Insert", "Truncate"]);
        }
        let tls = json!({"mode": "VerifyFull", "caSecretRef": {"name": "authority", "key": "ca.crt"}});
        let source = &mut mirror.postgres["spec"]["postgres"];
        source["port"] = source_network.port.into();
        source["tls"] = tls.clone();
        let target = &mut mirror.clickhouse["spec"]["clickhouse"];
        target["url"] = format!("https://127.0.0.1:{}", target_network.port).into();
        target["tls"] = tls;
        mirror.secrets.push(("authority".into(), json!({"ca.crt": certificate})));
        let clock = Clock::find();
        ChaosEnv {
            run: replicator::run(&env, &mirror, clock.as_ref()),
            replaced: None,
            rewritten: None,
            rewrites: 0,
            gateway,
            clock,
            env,
            standby,
            postgres_options: options.iter().map(|option| (*option).to_owned()).collect(),
            connection,
            done: Arc::default(),
            mirror,
            source_network,
            target_network,
            _target_tls: target_tls,
            _certificates: certificates,
            small_disk,
            failed: BTreeMap::new(),
            removed: RefCell::default(),
            expected_down: false,
            resyncs: 0,
            failovers: 0,
            standbys: 0,
            started: Instant::now(),
            last_status: Instant::now(),
            logs: Vec::new(),
            counts: BTreeMap::new(),
            repairs: BTreeMap::new(),
            refused_starts: 0,
            peak_memory_mib: 0,
        }
    }

    /// How the application connects.
    pub fn connection(&self) -> Connection {
        self.connection.clone()
    }

    /// Prints one line with the time since the start.
    pub fn say(&self, what: &str) {
        println!("{:7.1} s  {what}", self.started.elapsed().as_secs_f64());
    }

    /// Supervises the replicator until `time`.
    pub fn wait_until(&mut self, time: Instant) {
        loop {
            self.supervise();
            let left = time.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(Duration::from_millis(50)));
        }
    }

    /// Why this machine can't inject the fault.
    fn unsupported(&self, fault: Fault) -> Option<&'static str> {
        match fault {
            Fault::TargetDiskFull if !self.small_disk => Some("a small disk needs root"),
            Fault::JumpClock if self.clock.is_none() => Some("libfaketime is missing"),
            _ => None,
        }
    }

    /// Begins a fault.
    pub fn begin(&mut self, fault: Fault, lasts: Duration) {
        if let Some(reason) = self.unsupported(fault) {
            self.say(&format!("skipped: {fault}: {reason}"));
            return;
        }
        self.say(&match lasts.as_secs_f64() {
            0.0 => fault.to_string(),
            lasts => format!("{fault}, for {lasts:.1} s"),
        });
        *self.counts.entry(fault.to_string()).or_default() += 1;
        match fault {
            Fault::KillReplicator => self.kill_replicator(),
            Fault::TerminateReplicator => self.terminate_replicator(),
            Fault::FreezeReplicator => {
                self.expected_down = true;
                self.run.signal(Signal::SIGSTOP);
            }
            Fault::ReplaceReplicator => {
                self.run.signal(Signal::SIGSTOP);
                let run = self.run_again();
                self.replaced = Some(std::mem::replace(&mut self.run, run));
            }
            Fault::JumpClock => self.set_clock(["+3d", "-2h", "-30", "+90"][self.counts.len() % 4]),
            Fault::KillSource => self.env.postgres_server.kill(),
            Fault::RestartSourceFast => self.env.postgres_server.stop(),
            Fault::RestartSourceImmediate => {
                self.signal_source(Signal::SIGQUIT);
                self.env.postgres_server.stop();
            }
            Fault::EndWalsender => self.end_sessions("backend_type = 'walsender'"),
            Fault::EndSessions => self.end_sessions("backend_type IN ('walsender', 'client backend')"),
            Fault::KillTarget => self.env.clickhouse_server.kill(),
            Fault::FreezeTarget => self.signal_target(Signal::SIGSTOP),
            Fault::TargetTablesReadOnly => self.set_target("table_readonly = 1"),
            Fault::TargetTooManyParts => {
                self.set_target("parts_to_delay_insert = 1, parts_to_throw_insert = 1")
            }
            Fault::TargetWantsFreeDisk => {
                self.set_target("min_free_disk_bytes_to_perform_insert = 1000000000000000")
            }
            Fault::TargetDiskFull => self.fill_target_disk(),
            Fault::TargetUserReadOnly => self.restart_target_with("<readonly>1</readonly>"),
            Fault::TargetOutOfMemory => {
                self.restart_target_with("<max_memory_usage>1000000</max_memory_usage>")
            }
            Fault::Network(side, fault) => self.begin_network_fault(side, fault),
            Fault::FailOver => self.fail_over(),
            Fault::LoseSlot => self.lose_slot(),
            Fault::ChangePublication => self.change_publication(),
            Fault::ExchangePartition => self.exchange_partition(),
            Fault::RewriteTable => self.rewrite_table(),
            Fault::RestoreSource(meanwhile) => self.restore_source(meanwhile),
            Fault::RestoreTarget(meanwhile) => self.restore_target(meanwhile),
            Fault::DeliverLate => self.gateway.hold("INSERT INTO", LATE_REQUESTS),
        }
    }

    /// Ends a fault.
    pub fn end(&mut self, fault: Fault) {
        match fault {
            Fault::KillReplicator => drop(self.start_replicator()),
            Fault::FreezeReplicator => {
                self.run.signal(Signal::SIGCONT);
                self.expected_down = false;
            }
            Fault::ReplaceReplicator => self.end_replaced(),
            Fault::JumpClock => self.set_clock("+0"),
            Fault::DeliverLate => drop(self.gateway.deliver()),
            Fault::KillSource | Fault::RestartSourceFast | Fault::RestartSourceImmediate => {
                self.env.postgres_server.start_again()
            }
            Fault::KillTarget => {
                self.remove_emptied_definitions();
                self.env.clickhouse_server.start_again();
            }
            Fault::FreezeTarget => self.signal_target(Signal::SIGCONT),
            Fault::TargetTablesReadOnly => self.set_target("table_readonly = 0"),
            Fault::TargetTooManyParts => {
                self.set_target("parts_to_delay_insert = 1000, parts_to_throw_insert = 3000")
            }
            Fault::TargetWantsFreeDisk => self.set_target("min_free_disk_bytes_to_perform_insert = 0"),
            // The file does not exist where the fault was skipped.
            Fault::TargetDiskFull => drop(std::fs::remove_file(self.target_filler())),
            Fault::TargetUserReadOnly | Fault::TargetOutOfMemory => self.restart_target_with(""),
            Fault::Network(side, fault) => self.end_network_fault(side, fault),
            Fault::TerminateReplicator
            | Fault::EndWalsender
            | Fault::EndSessions
            | Fault::FailOver
            | Fault::LoseSlot
            | Fault::ChangePublication
            | Fault::ExchangePartition
            | Fault::RewriteTable
            | Fault::RestoreSource(_)
            | Fault::RestoreTarget(_) => {}
        }
    }

    /// Waits until every table streams.
    fn until_streaming(&mut self) {
        self.until_these_stream(|_| true);
    }

    /// Waits until these tables stream. The application pauses, because on a busy machine a copy might never
    /// catch up with it.
    fn until_these_stream(&mut self, which: impl Fn(&Table) -> bool) {
        let names: Vec<&str> = TABLES.iter().filter(|table| which(table)).map(|table| table.name).collect();
        self.connection.paused.store(true, SeqCst);
        self.until("tables to stream", |status| {
            let tables = status["tables"].as_array().map_or(&[][..], Vec::as_slice);
            let streams = |name: &&str| {
                tables.iter().any(|table| table["name"] == **name && table["state"] == "Streaming")
            };
            names.iter().all(streams)
        });
        self.connection.paused.store(false, SeqCst);
    }

    /// Waits until every table streams and everything has arrived, and repairs tables that need it.
    pub fn settle(&mut self) {
        if let Some(rewritten) = self.rewritten.take() {
            self.wait_until(rewritten + CATALOG_CHECK_TIMEOUT);
        }
        self.until_streaming();
        self.say("every table streams");
        self.until_arrived();
        if self.repair_tables() {
            self.until_streaming();
            self.until_arrived();
        }
    }

    /// Waits until what is committed now is at the destination.
    fn until_arrived(&mut self) {
        let lsn = self.env.lsn();
        self.until("everything to arrive", |status| {
            status["lastLSN"].as_str().and_then(parse_lsn).is_some_and(|reached| reached >= lsn)
        });
    }

    fn until(&mut self, awaited: &str, mut holds: impl FnMut(&Value) -> bool) {
        let mut began = Instant::now();
        loop {
            self.supervise();
            let status = if self.run.listening() { self.run.status() } else { Value::Null };
            if holds(&status) {
                return;
            }
            if !self.failed.is_empty() && self.repair_tables() {
                began = Instant::now();
            }
            let elapsed = began.elapsed();
            assert!(elapsed < SETTLE_TIMEOUT, "{awaited}: not within {SETTLE_TIMEOUT:?}; status: {status:#}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Compares every table by SQL and by `walferry verify`, and checks that the slot retains almost no WAL.
    pub fn assert_equal(&mut self) {
        self.say("everything has arrived");
        for table in TABLES {
            table.assert_equal(&self.env);
        }
        self.say("every table is equal by SQL");
        self.env.verify(&self.mirror);
        self.say("every table is equal by walferry verify");
        let retained = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint FROM pg_replication_slots WHERE database = current_database()";
        until("the slot to retain less than 1 MiB", || {
            // A slot's restart position advances with these snapshots, which the source logs only every 15 s.
            self.env.admin("SELECT pg_log_standby_snapshot()");
            let retained: u64 = self.env.source_value(retained).parse().unwrap();
            (retained < 1 << 20).then_some(())
        });
        self.note_memory();
    }

    /// How often a replicator was started.
    pub fn starts(&self) -> usize {
        self.logs.len() + 1
    }

    /// Writes the logs of all replicators to a file.
    pub fn keep_logs(&self, seed: u64) -> PathBuf {
        let path = std::env::temp_dir().join(format!("walferry-chaos-{seed}.log"));
        let logs: Vec<_> = self.logs.iter().cloned().chain([self.run.log()]).collect();
        let _ = std::fs::write(&path, logs.join("--- next replicator\n"));
        path
    }
}
