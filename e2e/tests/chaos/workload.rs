//! The application: several connections that write all the time and reconnect after faults of the source.

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

/// The number of connections that write.
const WRITERS: u64 = 4;

/// What the application has done so far, in all rounds.
#[derive(Debug, Default)]
pub struct Done {
    /// Transactions that the source committed.
    pub transactions: AtomicU64,
    /// Transactions that were lost because the source was restored.
    pub lost: AtomicU64,
    /// Rows that their statements reported.
    pub rows: AtomicU64,
    /// The number of columns that were added to `growing`.
    columns: AtomicU32,
}

/// How the application connects to the current primary.
#[derive(Clone, Debug)]
pub struct Connection {
    pub database: String,
    pub port: Arc<AtomicU16>,
    /// Whether the application pauses.
    pub paused: Arc<AtomicBool>,
}

impl Connection {
    fn connect(&self) -> Result<Client, postgres::Error> {
        let (port, name) = (self.port.load(SeqCst), &self.database);
        let connection = format!(
            "host=127.0.0.1 port={port} user={name} password=role-test dbname={name} connect_timeout=5"
        );
        Client::connect(&connection, NoTls)
    }
}

/// Writers that write until they are dropped or finished.
#[derive(Debug)]
pub struct Workload {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<()>>,
}

impl Workload {
    /// Starts the writers. Their statements depend only on `seed`; how these interleave differs between runs.
    pub fn start(connection: &Connection, seed: u64, done: &Arc<Done>) -> Workload {
        let stop = Arc::new(AtomicBool::new(false));
        let writer = |number: u64| {
            let (stop, done, connection) = (stop.clone(), done.clone(), connection.clone());
            thread::spawn(move || write(&connection, &mut Rng::with_seed(seed * 1000 + number), &stop, &done))
        };
        let writers = (0..WRITERS).map(writer).collect();
        Workload { stop, writers }
    }

    /// Whether a writer has met an error that no fault explains.
    pub fn failed(&self) -> bool {
        self.writers.iter().any(JoinHandle::is_finished)
    }

    /// Stops after the current transactions.
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

fn write(connection: &Connection, rng: &mut Rng, stop: &AtomicBool, done: &Done) {
    let mut client: Option<Client> = None;
    while !stop.load(SeqCst) {
        if connection.paused.load(SeqCst) {
            thread::sleep(Duration::from_millis(20));
            continue;
        }
        let Some(connected) = &mut client else {
            client = connection.connect().ok();
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
            // The connection may be closed or in a failed transaction.
            client = None;
        }
        thread::sleep(Duration::from_micros(rng.u64(0..30_000)));
    }
}

/// Reads the number of columns from the source. It may be too low while another writer adds one, which then
/// fails harmlessly.
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

/// Whether faults of the source or conflicts between writers explain an error. Any other error, such as a
/// missing replica identity, would be caused by walferry.
fn expected(error: &postgres::Error) -> bool {
    let Some(server) = error.as_db_error() else { return true };
    let code = server.code().code();
    // unique violation, deadlock, lock timeout, shutdown and startup
    matches!(code, "23505" | "40P01" | "55P03") || code.starts_with("57P0")
}
