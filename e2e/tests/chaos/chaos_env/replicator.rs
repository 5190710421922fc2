//! The replicator: its supervision, and the faults that stop, replace or freeze it.

use std::{
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;
use walferry::fault::Remedy;

use super::{ChaosEnv, clock::Clock};
use crate::support::{Mirror, Run, TestEnv};

/// The pause before a replicator that has ended is started again.
const RESTART_DELAY: Duration = Duration::from_millis(300);

/// The interval at which the status is read.
const STATUS_INTERVAL: Duration = Duration::from_millis(500);

impl ChaosEnv {
    /// Starts the replicator again if it ended because a server was down. An end that no fault explains fails
    /// the test.
    pub(super) fn supervise(&mut self) {
        if self.expected_down {
            return;
        }
        if !self.run.alive() {
            thread::sleep(RESTART_DELAY);
            let before_listening = !self.run.listening();
            let (code, log) = self.start_replicator();
            assert!(failed_checks(code, before_listening), "the replicator ended with code {code:?}:\n{log}");
            self.refused_starts += 1;
        }
        if self.last_status.elapsed() < STATUS_INTERVAL || !self.run.listening() {
            return;
        }
        self.last_status = Instant::now();
        let status = self.run.status();
        if let Some(stalled) = stalled(&status) {
            panic!("a transient fault was reported as terminal: {stalled}");
        }
        self.failed.extend(failed_tables(&status));
    }

    /// Starts a replicator and returns the exit code and the log of the previous one, which has ended.
    pub(super) fn start_replicator(&mut self) -> (Option<i32>, String) {
        let run = self.run_again();
        let (code, log) = std::mem::replace(&mut self.run, run).ended();
        self.logs.push(log.clone());
        self.expected_down = false;
        (code, log)
    }

    pub(super) fn note_memory(&mut self) {
        // It may have just ended.
        let peak = self.run.peak_memory_while_alive().unwrap_or_default();
        self.peak_memory_mib = self.peak_memory_mib.max(peak);
    }

    /// Kills the replicator without starting another one.
    pub(super) fn kill_replicator(&mut self) {
        self.note_memory();
        self.expected_down = true;
        self.run.signal(Signal::SIGKILL);
        while self.run.alive() {
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends SIGTERM: the replicator must shut down within 10 s, whatever hangs.
    pub(super) fn terminate_replicator(&mut self) {
        self.note_memory();
        if !self.run.alive() {
            return;
        }
        self.run.signal(Signal::SIGTERM);
        let signalled = Instant::now();
        while self.run.alive() {
            assert!(
                signalled.elapsed() < Duration::from_secs(12),
                "the replicator did not end after SIGTERM"
            );
            thread::sleep(Duration::from_millis(2));
        }
        let before_listening = !self.run.listening();
        let run = self.run_again();
        let (code, log) = std::mem::replace(&mut self.run, run).ended();
        // A process that has just started does not handle signals yet.
        let just_started = code.is_none() && log.is_empty();
        assert!(
            code == Some(0) || just_started || failed_checks(code, before_listening),
            "exit code {code:?} after SIGTERM:\n{log}"
        );
        self.logs.push(log);
    }

    /// Starts another replicator for the same Mirror.
    pub(super) fn run_again(&self) -> Run {
        run(&self.env, &self.mirror, self.clock.as_ref())
    }

    /// Lets the replaced replicator continue for a while next to its replacement, then kills it.
    pub(super) fn end_replaced(&mut self) {
        let Some(replaced) = self.replaced.take() else { return };
        replaced.signal(Signal::SIGCONT);
        self.wait_until(Instant::now() + Duration::from_millis(1500));
        replaced.signal(Signal::SIGKILL);
        self.logs.push(replaced.ended().1);
    }

    pub(super) fn set_clock(&self, offset: &str) {
        if let Some(clock) = &self.clock {
            clock.set(offset);
        }
    }
}

/// Starts a replicator.
pub(super) fn run(env: &TestEnv, mirror: &Mirror, clock: Option<&Clock>) -> Run {
    Run::start_in(&env.write(mirror), &clock.map(Clock::environment).unwrap_or_default())
}

fn list<'a>(status: &'a Value, field: &str) -> &'a [Value] {
    status[field].as_array().map_or(&[], Vec::as_slice)
}

/// Whether a replicator ended because its checks failed, before it served HTTP, as opposed to a crash.
fn failed_checks(code: Option<i32>, before_listening: bool) -> bool {
    code == Some(1) && before_listening
}

/// The Stalled condition, which no fault of the schedule may cause.
fn stalled(status: &Value) -> Option<&Value> {
    // A server answers a corrupted TLS handshake with the same alert as a client that it does not accept.
    let handshake = |reason: &Value| reason == "SourceTlsFailed" || reason == "DestinationTlsFailed";
    list(status, "conditions").iter().find(|condition| {
        condition["type"] == "Stalled" && condition["status"] == "True" && !handshake(&condition["reason"])
    })
}

/// The names and reasons of failed tables.
fn failed_tables(status: &Value) -> impl Iterator<Item = (String, String)> {
    let text = |table: &Value, field: &str| table[field].as_str().unwrap_or_default().to_owned();
    let failed = list(status, "tables").iter().filter(|table| table["state"] == "Failed");
    failed.map(move |table| (text(table, "name"), text(table, "reason")))
}

/// Whether a remedy of the Mirror's failure is a resync.
pub(super) fn recovers_by_resync(failure: &Value) -> bool {
    let remedies: Vec<Remedy> = serde_json::from_value(failure["remedies"].clone()).unwrap_or_default();
    remedies.iter().any(Remedy::is_resync)
}
