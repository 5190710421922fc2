//! The program under test.

use std::{
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{DEADLINE, eventually, get, until};

/// How a command ended.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// Both streams, for messages that may be in either.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// Asserts the exit code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Outcome {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Asserts that each of `words` was printed, ignoring case.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Outcome {
        let text = self.text();
        let lower = text.to_lowercase();
        for word in words {
            assert!(lower.contains(&word.to_lowercase()), "'{word}' was not printed:\n{text}");
        }
        self
    }
}

/// The program. Linux kills it when the calling thread ends for any reason.
fn program() -> Command {
    // WALFERRY_BIN names another build, such as a release.
    let walferry = std::env::var("WALFERRY_BIN").unwrap_or(env!("CARGO_BIN_EXE_walferry").to_owned());
    let mut command = Command::new(if cfg!(target_os = "linux") { "setpriv" } else { &walferry });
    if cfg!(target_os = "linux") {
        command.args(["--pdeathsig", "KILL", "--", &walferry]);
    }
    command.env_remove("RUST_LOG").env("NO_COLOR", "1");
    command
}

/// Runs a command to its end.
#[track_caller]
pub fn walferry(arguments: &[&str]) -> Outcome {
    walferry_with_input(arguments, "")
}

/// Runs a command to its end with this standard input.
#[track_caller]
pub fn walferry_with_input(arguments: &[&str], input: &str) -> Outcome {
    let mut child = program()
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start walferry");
    // The program may end before it has read its whole input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let stdout = collect(child.stdout.take().unwrap());
    let stderr = collect(child.stderr.take().unwrap());
    let code = wait(&mut child, DEADLINE * 2).and_then(|status| status.code());
    Outcome { code, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

fn collect(mut stream: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Waits up to `limit`, then kills; `None` if it had to.
fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let started = Instant::now();
    while started.elapsed() < limit {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

/// A running `walferry run`. Its log is printed when the test fails.
#[derive(Debug)]
pub struct Run {
    child: Child,
    port: Option<u16>,
    log: Arc<Mutex<String>>,
    followers: Vec<thread::JoinHandle<()>>,
}

impl Run {
    /// Starts `walferry run -f FILE` with a free status port.
    pub fn start(file: &Path, options: &[&str]) -> Run {
        Run::command(&[&["run", "-f", file.to_str().unwrap()], options].concat(), &[])
    }

    /// Starts `walferry run -f FILE` with these environment variables.
    pub fn start_in(file: &Path, environment: &[(&str, String)]) -> Run {
        Run::command(&["run", "-f", file.to_str().unwrap()], environment)
    }

    /// Starts `walferry replicate` with a free status port.
    pub fn replicate(config: &Path, secrets: &Path) -> Run {
        let (config, secrets) = (config.to_str().unwrap(), secrets.to_str().unwrap());
        Run::command(&["replicate", "--config", config, "--secrets", secrets], &[])
    }

    fn command(arguments: &[&str], environment: &[(&str, String)]) -> Run {
        let mut child = program()
            .args(arguments)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .args(["--http", "127.0.0.1:0", "--log-format", "text"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start walferry");
        let log = Arc::new(Mutex::new(String::new()));
        let followers = vec![
            follow(child.stdout.take().unwrap(), log.clone()),
            follow(child.stderr.take().unwrap(), log.clone()),
        ];
        Run { child, port: None, log, followers }
    }

    /// What it has written so far to both streams.
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The process.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Whether the process is still running.
    pub fn alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Whether it has opened its HTTP interface.
    pub fn listening(&self) -> bool {
        self.port.is_some() || printed_port(&self.log()).is_some()
    }

    /// The port of its HTTP interface, once it has printed it.
    pub fn port(&mut self) -> u16 {
        if self.port.is_none() {
            self.port = Some(until("the HTTP address to be printed", || {
                let found = printed_port(&self.log());
                assert!(found.is_some() || self.alive(), "walferry ended early");
                found
            }));
        }
        self.port.unwrap()
    }

    /// `GET path` of its HTTP interface.
    pub fn http(&mut self, path: &str) -> Option<(u16, String)> {
        let port = self.port();
        get(port, path).ok()
    }

    /// The first Mirror in `/status`; null before it is there.
    pub fn status(&mut self) -> Value {
        let Some((200, body)) = self.http("/status") else { return Value::Null };
        serde_json::from_str::<Value>(&body).expect("/status is JSON")["mirrors"][0].clone()
    }

    /// One table in `/status`.
    pub fn table(&mut self, name: &str) -> Value {
        let status = self.status();
        let tables = status["tables"].as_array().cloned().unwrap_or_default();
        tables.into_iter().find(|table| table["name"] == name).unwrap_or(Value::Null)
    }

    /// The condition of this type, as (status, reason, message).
    pub fn condition(&mut self, kind: &str) -> Option<(String, String, String)> {
        let status = self.status();
        let condition =
            status["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)?;
        let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
        Some((text("status"), text("reason"), text("message")))
    }

    /// Waits until `look` returns something for the status. Panics if the process ends before.
    #[track_caller]
    pub fn until_status<T>(&mut self, awaited: &str, mut look: impl FnMut(&Value) -> Option<T>) -> T {
        let mut last = Value::Null;
        let started = Instant::now();
        loop {
            assert!(self.alive(), "walferry ended while waiting for {awaited}");
            last = match self.status() {
                Value::Null => last,
                status => status,
            };
            if let Some(found) = look(&last) {
                return found;
            }
            assert!(started.elapsed() < DEADLINE, "{awaited}: did not happen; status: {last:#}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until `holds` returns true. Panics if the process ends before.
    #[track_caller]
    pub fn eventually(&mut self, awaited: &str, mut holds: impl FnMut() -> bool) {
        eventually(awaited, || {
            assert!(self.alive(), "walferry ended while waiting for {awaited}");
            holds()
        });
    }

    /// Waits until every table streams.
    #[track_caller]
    pub fn until_streaming(&mut self) {
        self.until_status("all tables to stream", |status| {
            let tables = status["tables"].as_array()?;
            (!tables.is_empty() && tables.iter().all(|table| table["state"] == "Streaming")).then_some(())
        });
    }

    /// Waits until everything up to `lsn` is durable at the destination.
    #[track_caller]
    pub fn until_lsn(&mut self, lsn: u64) {
        self.until_status(&format!("lastLSN to reach {lsn:X}"), |status| {
            (parse_lsn(status["lastLSN"].as_str()?)? >= lsn).then_some(())
        });
    }

    /// Waits until the table has failed and returns its message with the remedy.
    #[track_caller]
    pub fn until_failed(&mut self, table: &str) -> String {
        self.until_status(&format!("table {table} to fail"), |status| failed_message(status, table))
    }

    /// The steps of the remedy for a table's failure.
    #[track_caller]
    pub fn advice(&mut self, table: &str) -> Vec<String> {
        advice(&self.status(), Some(table))
    }

    /// Waits until the Mirror is Stalled and returns (reason, message).
    #[track_caller]
    pub fn until_stalled(&mut self) -> (String, String) {
        self.until_status("the Mirror to stall", |status| {
            let conditions = status["conditions"].as_array()?;
            let stalled = conditions.iter().find(|c| c["type"] == "Stalled" && c["status"] == "True")?;
            Some((stalled["reason"].as_str()?.to_owned(), stalled["message"].as_str()?.to_owned()))
        })
    }

    /// Its peak resident memory in MiB.
    pub fn peak_memory_mib(&self) -> u64 {
        self.peak_memory_while_alive().expect("a memory high-water mark")
    }

    /// Its peak resident memory in MiB; `None` once it has ended.
    pub fn peak_memory_while_alive(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().unwrap() / 1024)
    }

    /// Sends SIGTERM: it must end with exit code 0 within 10 seconds.
    #[track_caller]
    pub fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let status = wait(&mut self.child, Duration::from_secs(10));
        assert_eq!(status.map(|status| status.code()), Some(Some(0)), "after SIGTERM");
    }

    /// Sends SIGKILL and waits for its end.
    pub fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        let _ = self.child.wait();
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.pid()), signal);
    }

    /// Waits until it ends without a signal, and returns the exit code and what it wrote.
    #[track_caller]
    pub fn ended(mut self) -> (Option<i32>, String) {
        let status = wait(&mut self.child, DEADLINE * 2);
        assert!(status.is_some(), "walferry did not exit");
        for follower in self.followers.drain(..) {
            follower.join().unwrap();
        }
        let log = self.log();
        (status.and_then(|status| status.code()), log)
    }
}

/// The steps of the remedy in `/status` for a table, or for the Mirror as a whole.
pub fn advice(status: &Value, table: Option<&str>) -> Vec<String> {
    let all = status["advice"].as_array().cloned().unwrap_or_default();
    let about = |entry: &&Value| match table {
        Some(name) => entry["table"].as_str().is_some_and(|full| full.ends_with(&format!(".{name}"))),
        None => entry["table"].is_null(),
    };
    let steps = all.iter().find(about).and_then(|entry| entry["steps"].as_array().cloned());
    steps.unwrap_or_default().iter().map(|step| step.as_str().unwrap().to_owned()).collect()
}

/// The message of a failed table with its remedy; `None` if the table has not failed.
pub fn failed_message(status: &Value, table: &str) -> Option<String> {
    let entry = status["tables"].as_array()?.iter().find(|entry| entry["name"] == table)?;
    let message = entry["message"].as_str().unwrap_or_default();
    let steps = advice(status, Some(table));
    let sentence = if steps.is_empty() {
        message.to_owned()
    } else {
        format!("{message}. To recover: {}", steps.join("; then "))
    };
    (entry["state"] == "Failed").then_some(sentence)
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            println!("--- log of walferry\n{}---", self.log());
        }
    }
}

fn follow(stream: impl Read + Send + 'static, log: Arc<Mutex<String>>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            log.push_str(&String::from_utf8_lossy(&line));
            log.push('\n');
        }
    })
}

/// The port in the first log line that names the address of the HTTP interface.
fn printed_port(log: &str) -> Option<u16> {
    let line = log.lines().find(|line| line.contains("serving http") && line.contains("127.0.0.1:"))?;
    let digits = line.split("127.0.0.1:").nth(1)?;
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok().filter(|port| *port != 0)
}

/// `16/B374D848` as a number.
pub fn parse_lsn(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    Some(u64::from_str_radix(high, 16).ok()? << 32 | u64::from_str_radix(low, 16).ok()?)
}
