//! Both servers, the networks between them and the replicator, and what is done to each.

mod clock;
mod repair;
mod restores;
mod source;

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write,
    path::PathBuf,
    process::Command,
    sync::{Arc, atomic::Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use self::clock::Clock;
use crate::{
    faults::{Fault, Side, Trouble},
    support::{
        Gateway, Mirror, Pg, Proxy, Run, Server, Standby, TestEnv, TlsProxy, eventually, parse_lsn, until,
    },
    tables::{TABLES, Table},
    workload::{Done, Login},
};

/// How long it may take until everything has arrived once all faults are over.
const CALM: Duration = Duration::from_secs(240);

/// A supervisor's pause before it starts a replicator again.
const RESTART_AFTER: Duration = Duration::from_millis(300);

/// The destination's disk, in memory.
const TARGET_DISK: &str = "1g";

/// Within which the replicator looks at the catalog again, with some to spare for a busy machine.
const NOTICED_WITHIN: Duration = Duration::from_secs(20);

/// Requests that are kept back at a time.
const LATE_REQUESTS: usize = 4;

/// Time between two looks at the status.
const LOOK_EVERY: Duration = Duration::from_millis(500);

pub struct ChaosEnv {
    pub env: TestEnv,
    /// Of the test's PostgreSQL, with a copy of the Mirror's slot.
    standby: Standby,
    /// What both are started with.
    postgres_options: Vec<String>,
    mirror: Mirror,
    /// Leads the application to the primary.
    login: Login,
    /// What the application has done.
    pub done: Arc<Done>,
    source_network: Proxy,
    target_network: Proxy,
    _target_tls: TlsProxy,
    /// Between the TLS proxy and ClickHouse: keeps requests back.
    gateway: Gateway,
    /// PostgreSQL reads them at each start.
    _certificates: tempfile::TempDir,
    /// Whether ClickHouse has a small disk of its own.
    small_disk: bool,
    clock: Option<Clock>,
    run: Run,
    /// One that stands still while `run` has its place.
    replaced: Option<Run>,
    /// When something happened that shows in the catalog alone.
    rewritten: Option<Instant>,
    /// Tables that failed, and the reasons: looked into once no fault is under way.
    failed: BTreeMap<String, String>,
    /// Whether the replicator is down, or stands still, because it was ordered to.
    held: bool,
    resyncs: u32,
    rewrites: u32,
    failovers: u32,
    standbys: u32,
    started: Instant,
    looked: Instant,
    /// Logs of earlier replicators.
    logs: Vec<String>,
    /// What was done, and how often.
    pub counts: BTreeMap<String, u32>,
    /// What was copied again because a message asked for it, and how often.
    pub repairs: BTreeMap<String, u32>,
    /// Ends of a replicator that could not start because a server was away.
    pub refused_starts: u32,
    pub peak_memory_mib: u64,
}

impl ChaosEnv {
    /// Starts servers, makes the tables and starts the replicator. Everything it sends goes over TLS, without which nobody
    /// would notice a bit that turned over.
    pub fn start() -> ChaosEnv {
        let identity = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let (certificate, key) = (identity.cert.pem(), identity.signing_key.serialize_pem());
        let certificates = tempfile::tempdir().unwrap();
        for (file, text) in [("server.crt", &certificate), ("server.key", &key), ("ca.crt", &certificate)] {
            std::fs::write(certificates.path().join(file), text).unwrap();
        }
        // So little WAL that a slot can be lost within seconds; what a standby needs, in either role.
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
            env.sql(&table.made_by.replace("TABLE_NAME", table.name));
        }
        env.sql("CREATE TABLE unrelated (v text)");
        let standby = source::standby_of(&env, 0, &options);
        let login = Login {
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
            run: run(&env, &mirror, clock.as_ref()),
            replaced: None,
            rewritten: None,
            rewrites: 0,
            gateway,
            clock,
            env,
            standby,
            postgres_options: options.iter().map(|option| (*option).to_owned()).collect(),
            login,
            done: Arc::default(),
            mirror,
            source_network,
            target_network,
            _target_tls: target_tls,
            _certificates: certificates,
            small_disk,
            failed: BTreeMap::new(),
            held: false,
            resyncs: 0,
            failovers: 0,
            standbys: 0,
            started: Instant::now(),
            looked: Instant::now(),
            logs: Vec::new(),
            counts: BTreeMap::new(),
            repairs: BTreeMap::new(),
            refused_starts: 0,
            peak_memory_mib: 0,
        }
    }

    /// For connections of the application.
    pub fn login(&self) -> Login {
        self.login.clone()
    }

    /// One line of what happens.
    pub fn say(&self, what: &str) {
        println!("{:7.1} s  {what}", self.started.elapsed().as_secs_f64());
    }

    /// Does nothing but look after the replicator until `moment`.
    pub fn wait_until(&mut self, moment: Instant) {
        loop {
            self.supervise();
            let left = moment.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(Duration::from_millis(50)));
        }
    }

    /// Starts a replicator that ended because a server was away; what no fault explains fails the test.
    fn supervise(&mut self) {
        if self.held {
            return;
        }
        if !self.run.alive() {
            thread::sleep(RESTART_AFTER);
            let log = self.start_replicator();
            assert!(log.contains("can't start") && !log.contains("panicked"), "the replicator ended:\n{log}");
            self.refused_starts += 1;
        }
        if self.looked.elapsed() < LOOK_EVERY || !self.run.listening() {
            return;
        }
        self.looked = Instant::now();
        let status = self.run.status();
        if let Some(stalled) = stalled(&status) {
            panic!("a transient fault was reported as terminal: {stalled}");
        }
        self.failed.extend(failed_tables(&status));
    }

    /// Starts a replicator, and gives the log of the last one, which has ended.
    fn start_replicator(&mut self) -> String {
        let run = run(&self.env, &self.mirror, self.clock.as_ref());
        let (_, log) = std::mem::replace(&mut self.run, run).ended();
        self.logs.push(log.clone());
        self.held = false;
        log
    }

    fn note_memory(&mut self) {
        // It may be about to end by itself.
        let peak = self.run.peak_memory_while_alive().unwrap_or_default();
        self.peak_memory_mib = self.peak_memory_mib.max(peak);
    }

    /// Kills the replicator, without starting another.
    fn kill_replicator(&mut self) {
        self.note_memory();
        self.held = true;
        self.run.signal(Signal::SIGKILL);
        while self.run.alive() {
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// SIGTERM: it must end in order within 10 s, whatever hangs.
    fn terminate_replicator(&mut self) {
        self.note_memory();
        if !self.run.alive() {
            return;
        }
        self.run.signal(Signal::SIGTERM);
        let asked = Instant::now();
        while self.run.alive() {
            assert!(asked.elapsed() < Duration::from_secs(12), "it does not end after SIGTERM");
            thread::sleep(Duration::from_millis(2));
        }
        let run = run(&self.env, &self.mirror, self.clock.as_ref());
        let (code, log) = std::mem::replace(&mut self.run, run).ended();
        // One that has only just begun does not listen to signals yet.
        let unborn = code.is_none() && log.is_empty();
        assert!(
            code == Some(0) || unborn || log.contains("can't start"),
            "code {code:?} after SIGTERM:\n{log}"
        );
        self.logs.push(log);
    }

    /// Why this machine can't have the fault.
    fn beyond_us(&self, fault: Fault) -> Option<&'static str> {
        match fault {
            Fault::TargetDiskFull if !self.small_disk => Some("only root can make a small disk"),
            Fault::JumpClock if self.clock.is_none() => Some("libfaketime can't be had"),
            _ => None,
        }
    }

    /// Begins a fault.
    pub fn begin(&mut self, fault: Fault, lasts: Duration) {
        if let Some(reason) = self.beyond_us(fault) {
            self.say(&format!("left out: {fault}, because {reason}"));
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
                self.held = true;
                self.run.signal(Signal::SIGSTOP);
            }
            Fault::ReplaceReplicator => {
                self.run.signal(Signal::SIGSTOP);
                let run = run(&self.env, &self.mirror, self.clock.as_ref());
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
            Fault::Network(side, trouble) => self.begin_trouble(side, trouble),
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

    /// Ends it.
    pub fn end(&mut self, fault: Fault) {
        match fault {
            Fault::KillReplicator => drop(self.start_replicator()),
            Fault::FreezeReplicator => {
                self.run.signal(Signal::SIGCONT);
                self.held = false;
            }
            Fault::ReplaceReplicator => self.end_replaced(),
            Fault::JumpClock => self.set_clock("+0"),
            Fault::DeliverLate => drop(self.gateway.deliver()),
            Fault::KillSource | Fault::RestartSourceFast | Fault::RestartSourceImmediate => {
                self.env.postgres_server.start_again()
            }
            Fault::KillTarget => self.env.clickhouse_server.start_again(),
            Fault::FreezeTarget => self.signal_target(Signal::SIGCONT),
            Fault::TargetTablesReadOnly => self.set_target("table_readonly = 0"),
            Fault::TargetTooManyParts => {
                self.set_target("parts_to_delay_insert = 1000, parts_to_throw_insert = 3000")
            }
            Fault::TargetWantsFreeDisk => self.set_target("min_free_disk_bytes_to_perform_insert = 0"),
            // It is not there where only root could have made it.
            Fault::TargetDiskFull => drop(std::fs::remove_file(self.target_filler())),
            Fault::TargetUserReadOnly | Fault::TargetOutOfMemory => self.restart_target_with(""),
            Fault::Network(side, trouble) => self.end_trouble(side, trouble),
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

    /// The replicator that was replaced continues, beside the one that has its place, and is killed.
    fn end_replaced(&mut self) {
        let Some(replaced) = self.replaced.take() else { return };
        replaced.signal(Signal::SIGCONT);
        self.wait_until(Instant::now() + Duration::from_millis(1500));
        replaced.signal(Signal::SIGKILL);
        self.logs.push(replaced.ended().1);
    }

    fn set_clock(&self, offset: &str) {
        if let Some(clock) = &self.clock {
            clock.set(offset);
        }
    }

    fn signal_source(&self, signal: Signal) {
        let pid = Pid::from_raw(self.env.postgres_server.pid());
        let _ = kill(pid, signal);
        eventually("PostgreSQL to end", || kill(pid, None).is_err());
    }

    fn signal_target(&self, signal: Signal) {
        kill(Pid::from_raw(self.env.clickhouse_server.pid()), signal).unwrap();
    }

    fn end_sessions(&self, which: &str) {
        let sql = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {which} AND pid <> pg_backend_pid()"
        );
        // It may meet itself among those that end.
        let _ = self.env.connect_admin().batch_execute(&sql);
    }

    /// Changes settings of every target table that there is.
    fn set_target(&self, settings: &str) {
        for table in TABLES {
            let sql = format!("ALTER TABLE {} MODIFY SETTING {settings}", table.name);
            match self.env.clickhouse.try_query(&self.env.database, &sql) {
                Ok(_) => {}
                Err(message) => assert!(message.contains("UNKNOWN_TABLE"), "{sql}: {message}"),
            }
        }
    }

    /// Restarts ClickHouse with this in the settings profile of the Mirror's user: it reads users only when it starts.
    fn restart_target_with(&self, settings: &str) {
        let path = self.env.clickhouse_server.folder.join("users.xml");
        let text = std::fs::read_to_string(&path).unwrap();
        let (head, tail) = text.split_once("<limited>").unwrap();
        let end = head.find("</profiles>").unwrap();
        let begin = head.find("<limits>").unwrap_or(end);
        let profile = format!("<limits>{settings}</limits>");
        let tail = tail.replacen("<profile>default</profile>", "<profile>limits</profile>", 1);
        std::fs::write(&path, format!("{}{profile}{}<limited>{tail}", &head[..begin], &head[end..])).unwrap();
        self.env.restart_clickhouse(|| {});
    }

    fn target_filler(&self) -> PathBuf {
        self.env.clickhouse_server.folder.join("data/filler")
    }

    fn fill_target_disk(&self) {
        let mut filler = File::create(self.target_filler()).unwrap();
        let zeros = vec![0; 1 << 20];
        while filler.write_all(&zeros).is_ok() {}
    }

    fn network(&self, side: Side) -> &Proxy {
        match side {
            Side::Source => &self.source_network,
            Side::Target => &self.target_network,
        }
    }

    fn begin_trouble(&self, side: Side, trouble: Trouble) {
        let network = self.network(side);
        match trouble {
            Trouble::Cut => network.cut(),
            Trouble::CutUnnoticed => network.cut_unnoticed(),
            Trouble::Refused => {
                network.set_closed(true);
                network.cut();
            }
            Trouble::Frozen(direction) | Trouble::BlackHole(direction) => network.set_frozen(direction, true),
            Trouble::Slow(direction) => network.set_bytes_per_second(direction, 200_000),
            Trouble::Corrupted(direction) => network.corrupt(direction, 3),
        }
    }

    fn end_trouble(&self, side: Side, trouble: Trouble) {
        let network = self.network(side);
        match trouble {
            Trouble::Cut | Trouble::CutUnnoticed => {}
            Trouble::Refused => network.set_closed(false),
            Trouble::Frozen(direction) => network.set_frozen(direction, false),
            Trouble::BlackHole(direction) => {
                network.cut();
                network.set_frozen(direction, false);
            }
            Trouble::Slow(direction) => network.set_bytes_per_second(direction, 0),
            Trouble::Corrupted(direction) => network.corrupt(direction, 0),
        }
    }

    /// Waits until every table streams.
    fn until_streaming(&mut self) {
        self.until_these_stream(|_| true);
    }

    /// Waits until these tables stream. The application waits too: on a busy machine a copy may never catch up with it.
    fn until_these_stream(&mut self, which: impl Fn(&Table) -> bool) {
        let names: Vec<&str> = TABLES.iter().filter(|table| which(table)).map(|table| table.name).collect();
        self.login.paused.store(true, SeqCst);
        self.until("tables to stream", |status| {
            let tables = status["tables"].as_array().map_or(&[][..], Vec::as_slice);
            let streams = |name: &&str| {
                tables.iter().any(|table| table["name"] == **name && table["state"] == "Streaming")
            };
            names.iter().all(streams)
        });
        self.login.paused.store(false, SeqCst);
    }

    /// Waits until what is at the source now has arrived.
    pub fn settle(&mut self) {
        if let Some(rewritten) = self.rewritten.take() {
            self.wait_until(rewritten + NOTICED_WITHIN);
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
            assert!(began.elapsed() < CALM, "waited {CALM:?} in vain for {awaited}; status: {status:#}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Compares every table by SQL on both sides, then as `walferry verify` does, and looks at what the slot keeps.
    pub fn assert_equal(&mut self) {
        self.say("everything has arrived");
        for table in TABLES {
            table.assert_equal(&self.env);
        }
        self.say("every table is equal by SQL");
        self.env.verify(&self.mirror);
        self.say("every table is equal by walferry verify");
        let retained = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint FROM pg_replication_slots WHERE database = current_database()";
        until("the slot to keep next to nothing", || {
            // The source notes now and then where a slot may begin; this has it done now.
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

    /// Where the logs of all replicators are, for a run that failed.
    pub fn keep_logs(&self, seed: u64) -> PathBuf {
        let path = std::env::temp_dir().join(format!("walferry-chaos-{seed}.log"));
        let logs: Vec<_> = self.logs.iter().cloned().chain([self.run.log()]).collect();
        let _ = std::fs::write(&path, logs.join("--- next replicator\n"));
        path
    }
}

/// Starts a replicator.
fn run(env: &TestEnv, mirror: &Mirror, clock: Option<&Clock>) -> Run {
    Run::start_in(&env.write(mirror), &clock.map(Clock::environment).unwrap_or_default())
}

fn list<'a>(status: &'a Value, field: &str) -> &'a [Value] {
    status[field].as_array().map_or(&[], Vec::as_slice)
}

/// The condition that says that the Mirror needs manual action, though nothing here does.
fn stalled(status: &Value) -> Option<&Value> {
    // A server that can make nothing of a garbled greeting says the same as one that wants another client.
    let greeting = |message: &Value| message.as_str().is_some_and(|m| m.contains("HandshakeFailure"));
    list(status, "conditions").iter().find(|condition| {
        condition["type"] == "Stalled" && condition["status"] == "True" && !greeting(&condition["message"])
    })
}

/// Names and reasons.
fn failed_tables(status: &Value) -> impl Iterator<Item = (String, String)> {
    let text = |table: &Value, field: &str| table[field].as_str().unwrap_or_default().to_owned();
    let failed = list(status, "tables").iter().filter(|table| table["state"] == "Failed");
    failed.map(move |table| (text(table, "name"), text(table, "reason")))
}
