//! The application: several connections that write all the time, whatever happens to the source.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use fastrand::Rng;
use postgres::{Client, NoTls, SimpleQueryMessage};

use crate::tables::{TABLES, Table};

/// Connections that write.
const WRITERS: u64 = 4;

/// What the application has done so far. Lives as long as the run, over pauses.
#[derive(Debug, Default)]
pub struct Done {
    /// Transactions that the source committed.
    pub transactions: AtomicU64,
    /// Those of them that are not there any more, because the source was restored.
    pub lost: AtomicU64,
    /// Rows that their statements reported.
    pub rows: AtomicU64,
    /// Columns that `growing` has got.
    columns: AtomicU32,
}

/// How the application comes to the primary, whichever server that is.
#[derive(Clone, Debug)]
pub struct Login {
    pub database: String,
    pub port: Arc<AtomicU16>,
    /// Whether it has to wait.
    pub paused: Arc<AtomicBool>,
}

impl Login {
    fn connect(&self) -> Result<Client, postgres::Error> {
        let (port, name) = (self.port.load(SeqCst), &self.database);
        let login = format!(
            "host=127.0.0.1 port={port} user={name} password=role-test dbname={name} connect_timeout=5"
        );
        Client::connect(&login, NoTls)
    }
}

/// Writers that write until they are dropped or finished.
#[derive(Debug)]
pub struct Workload {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<()>>,
}

impl Workload {
    /// Starts the writers. What they do depends on `seed` alone; how it interleaves does not.
    pub fn start(login: &Login, seed: u64, done: &Arc<Done>) -> Workload {
        let stop = Arc::new(AtomicBool::new(false));
        let writer = |number: u64| {
            let (stop, done, login) = (stop.clone(), done.clone(), login.clone());
            thread::spawn(move || write(&login, &mut Rng::with_seed(seed * 1000 + number), &stop, &done))
        };
        let writers = (0..WRITERS).map(writer).collect();
        Workload { stop, writers }
    }

    /// Whether a writer has met an error that no fault explains.
    pub fn failed(&self) -> bool {
        self.writers.iter().any(JoinHandle::is_finished)
    }

    /// Stops after the transactions in hand.
    #[track_caller]
    pub fn finish(mut self) {
        self.stop.store(true, SeqCst);
        for writer in self.writers.drain(..) {
            writer.join().expect("a writer failed");
        }
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
    }
}

fn write(login: &Login, rng: &mut Rng, stop: &AtomicBool, done: &Done) {
    let mut client: Option<Client> = None;
    while !stop.load(SeqCst) {
        if login.paused.load(SeqCst) {
            thread::sleep(Duration::from_millis(20));
            continue;
        }
        let Some(connected) = &mut client else {
            client = login.connect().ok();
            // A failover may have lost columns.
            if client.as_mut().is_some_and(|client| count_columns(client, done).is_err()) {
                client = None;
            }
            thread::sleep(Duration::from_millis(20));
            continue;
        };
        let table = &TABLES[rng.usize(0..TABLES.len())];
        if let Err(error) = transaction(connected, table, rng, done) {
            assert!(expected(&error), "the application's own write failed on {}: {error:?}", table.name);
            // It may be in a failed transaction, or gone.
            client = None;
        }
        thread::sleep(Duration::from_micros(rng.u64(0..30_000)));
    }
}

/// Takes the number of columns from the source. It may be too low when another writer adds one just now, which does no harm.
fn count_columns(client: &mut Client, done: &Done) -> Result<(), postgres::Error> {
    let sql = "SELECT count(*)::int FROM information_schema.columns WHERE table_name = 'growing' AND column_name LIKE 'x%'";
    let columns: i32 = client.query_one(sql, &[])?.get(0);
    done.columns.store(columns.unsigned_abs(), SeqCst);
    Ok(())
}

fn transaction(
    client: &mut Client,
    table: &Table,
    rng: &mut Rng,
    done: &Done,
) -> Result<(), postgres::Error> {
    let columns = done.columns.load(SeqCst);
    let statements = (table.change)(rng, columns);
    for message in client.simple_query(&statements)? {
        if let SimpleQueryMessage::CommandComplete(rows) = message {
            done.rows.fetch_add(rows, SeqCst);
        }
    }
    done.transactions.fetch_add(1, SeqCst);
    if statements.contains("ADD COLUMN") {
        let _ = done.columns.compare_exchange(columns, columns + 1, SeqCst, SeqCst);
    }
    Ok(())
}

/// Faults of the source, and the application's quarrels with itself; anything else, such as "cannot update table because it does
/// not have a replica identity", would be ours.
fn expected(error: &postgres::Error) -> bool {
    let Some(server) = error.as_db_error() else { return true };
    let code = server.code().code();
    // unique violation, deadlock, lock time-out, shutdown and start-up
    matches!(code, "23505" | "40P01" | "55P03") || code.starts_with("57P0")
}
