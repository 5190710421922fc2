//! Reads ranges of a chunk's blocks, each in a transaction that ends within seconds.
//!
//! A transaction that reads a table keeps an ALTER TABLE of the application waiting, and whoever comes after
//! that, readers too. So none is open while the destination is waited for, and none for long: a range that
//! takes too long is given up and read again in smaller ones. Its rows may then be sent twice, and the second
//! time with what has changed since; the stream brings such a change with a higher version, as it does for
//! rows of chunks that are read at different times.

use std::{ops::Range, pin::pin, time::Duration};

use tokio::time::{Instant, timeout, timeout_at};

use super::{
    Destination, Error,
    chunk::{ChunkRead, Sender},
    plan::{LARGEST, SMALLEST},
};
use crate::{
    model::{Cell, CellKind, Lsn, Position, PostgresEndpoint, TableSchema, Tuple, Version},
    postgres::{
        self,
        catalog::{self, LiveColumn},
        copy, pgoutput,
        session::Session,
        shared_snapshot,
        wire::{Connection, CopyOut, Purpose},
    },
    replication::{
        Op, TableBatch,
        table::{
            named_columns::NamedColumns,
            record::Chunk,
            schema::{self, ColumnNames},
        },
    },
};

/// How long a range's transaction may take, unless the range is one block.
const HELD_AT_MOST: Duration = Duration::from_secs(2);

/// How long it may take else: as long as a COPY may say nothing.
const SILENCE: Duration = Duration::from_secs(6 * 3600);

/// How much of [`HELD_AT_MOST`] the destination may take for one batch.
const SENT_WITHIN: Duration = Duration::from_secs(1);

/// Ranges that are read faster than this grow.
const GROWS_BELOW: Duration = Duration::from_millis(500);

/// Ranges that take longer than this shrink.
const SHRINKS_ABOVE: Duration = Duration::from_secs(1);

/// How long the rest of a range that is given up may take to arrive, before and after it was cancelled.
const REST_WITHIN: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(2)];

/// Encoded bytes gathered before they are handed to the running insert.
const SEND_BYTES: usize = 1 << 20;

/// Bytes read between two looks at a batch's size.
const MEASURE_EVERY: usize = 64 << 10;

/// How a range ended.
pub(super) enum RangeEnd {
    /// Its rows were read; the last of them are still in the batch. The storage has so many blocks: none
    /// behind them has rows that the stream doesn't bring.
    Read { blocks: u64 },
    /// It took too long. Smaller ones come next.
    Overdue,
    /// The table was rewritten since the plan was made, or the snapshot is gone.
    Rewritten,
    /// A column has another name than is known.
    Renamed,
}

/// A worker's connection, and how much it reads at once.
pub(super) struct RangeReader {
    source: PostgresEndpoint,
    application_name: String,
    connection: Option<Reading>,
    size: RangeSize,
}

struct Reading {
    connection: Connection,
    /// The server's process.
    pid: String,
}

impl RangeReader {
    pub(super) fn new(source: PostgresEndpoint, application_name: String) -> Self {
        RangeReader { source, application_name, connection: None, size: RangeSize::new() }
    }

    /// The blocks to read next.
    pub(super) fn next_of(&self, left: &Range<u64>) -> Range<u64> {
        left.start..left.end.min(left.start + self.size.blocks)
    }

    /// Reads a range of blocks, and sends batches as they fill up. After an error the connection is not used
    /// again.
    pub(super) async fn read<D: Destination>(
        &mut self,
        rows: &mut Rows<'_>,
        blocks: Range<u64>,
        batch: &mut D::Batch,
        sender: &mut Sender<'_, D>,
    ) -> Result<RangeEnd, Error> {
        let mut reading = self.take_connection().await?;
        let Begun { partition, blocks: there } =
            match begin(&mut reading.connection, rows.read, rows.schema, &sender.table.named()).await? {
                Ok(begun) => begun,
                Err(end) => {
                    reading.connection.query("ROLLBACK").await?;
                    self.connection = Some(reading);
                    return Ok(end);
                }
            };
        let began = Instant::now();
        // A single block can't be split; it is met only where a destination is slow, not where it hangs.
        let single = blocks.end - blocks.start <= 1;
        let (held, sent_within) = if single { (SILENCE, SILENCE) } else { (HELD_AT_MOST, SENT_WITHIN) };
        let statement = rows.read.statement(rows.schema, blocks, partition.as_deref());
        let mut answer = reading.connection.copy_out(&statement).await?;
        loop {
            let Ok(filled) = timeout_at(began + held, rows.fill(&mut answer, batch)).await else {
                batch.clear();
                let free = self.give_up(answer, &reading.pid).await;
                self.overdue(reading, free).await?;
                return Ok(RangeEnd::Overdue);
            };
            if filled? {
                break;
            }
            let mut sending = pin!(sender.send(batch, rows.schema));
            let limit = (began + held).min(Instant::now() + sent_within);
            if let Ok(sent) = timeout_at(limit, &mut sending).await {
                sent?;
                continue;
            }
            // From here on the destination is waited for without a transaction.
            let free = self.give_up(answer, &reading.pid).await;
            self.overdue(reading, free).await?;
            sending.await?;
            return Ok(RangeEnd::Overdue);
        }
        reading.connection.query("COMMIT").await?;
        self.size.adjust(began.elapsed());
        self.connection = Some(reading);
        Ok(RangeEnd::Read { blocks: there })
    }

    /// Ends the transaction of a range that takes too long, with its connection where that isn't `free`.
    async fn overdue(&mut self, mut reading: Reading, free: bool) -> Result<(), Error> {
        self.size.overdue();
        if free {
            reading.connection.query("ROLLBACK").await?;
            self.connection = Some(reading);
        }
        Ok(())
    }

    /// As [`catalog::read_lsn`], for all that was read.
    pub(super) async fn read_lsn(&mut self) -> Result<Lsn, Error> {
        let Reading { mut connection, pid } = self.take_connection().await?;
        let read_lsn = connection.read_lsn().await?;
        self.connection = Some(Reading { connection, pid });
        Ok(read_lsn)
    }

    async fn take_connection(&mut self) -> Result<Reading, Error> {
        if let Some(reading) = self.connection.take() {
            return Ok(reading);
        }
        let mut connection = Connection::connect(&self.source, &self.application_name, Purpose::Copy).await?;
        let pid = connection.query("SELECT pg_backend_pid()").await?.into_iter().flatten().next().flatten();
        let pid = pid.ok_or_else(|| postgres::Error::Protocol("no pg_backend_pid()".to_owned()))?;
        Ok(Reading { connection, pid })
    }

    /// Reads the answer to a COPY to its end, or cancels it; `false` when the connection can't be used any
    /// more.
    async fn give_up(&self, mut answer: CopyOut<'_>, pid: &str) -> bool {
        let [before, after] = REST_WITHIN;
        if let Ok(rest) = timeout(before, answer.skip()).await {
            return rest.is_ok();
        }
        let cancelled = async {
            let session = Session::connect(&self.source, &self.application_name).await?;
            session.client.batch_execute(&format!("SELECT pg_cancel_backend({pid})")).await?;
            session.close().await;
            Ok::<(), postgres::Error>(())
        };
        if let Err(error) = cancelled.await {
            tracing::debug!(%error, "a read could not be cancelled");
            return false;
        }
        match timeout(after, answer.skip()).await {
            Ok(Ok(())) => true,
            // query_canceled
            Ok(Err(error)) => error.sqlstate() == Some("57014"),
            Err(_) => false,
        }
    }
}

/// A range's transaction.
struct Begun {
    /// The condition for a partition's rows, where they are read through the root.
    partition: Option<String>,
    /// The length of what holds the rows.
    blocks: u64,
}

/// Begins a range's transaction, unless the table is not what the plan was made for.
///
/// The lock keeps rewrites out between the look at the file node and the last row.
async fn begin(
    connection: &mut Connection,
    read: ChunkRead<'_>,
    schema: &TableSchema,
    named: &NamedColumns,
) -> Result<Result<Begun, RangeEnd>, Error> {
    let chunk = read.chunk;
    // Without a snapshot to share, each statement has its own: the catalog is looked at as it is once the
    // lock is there.
    let isolation = if read.snapshot.is_some() { "REPEATABLE READ" } else { "READ COMMITTED" };
    connection.query(&format!("BEGIN ISOLATION LEVEL {isolation} READ ONLY")).await?;
    if let Some(snapshot) = read.snapshot {
        match connection.query(&snapshot.import_statement()).await {
            Err(error) if shared_snapshot::is_lost_snapshot(&error) => {
                return Ok(Err(RangeEnd::Rewritten));
            }
            imported => drop(imported?),
        }
    }
    let partition = lock(connection, chunk, schema).await?;
    let file_statement = match chunk.through_root {
        Some(oid) => catalog::file_statement_of(oid),
        None => catalog::file_statement(&chunk.storage),
    };
    let found = connection.query(&file_statement).await?;
    let answer = |index: usize| found.first().and_then(|row| row.get(index)).and_then(Option::as_deref);
    if answer(0) != Some(chunk.file_node.to_string().as_str()) {
        return Ok(Err(RangeEnd::Rewritten));
    }
    let blocks = answer(1).and_then(|blocks| blocks.parse().ok());
    let blocks = blocks.ok_or_else(|| postgres::Error::Protocol("no length of a table's file".to_owned()))?;
    let live = connection.query(&catalog::live_columns_statement(schema.oid)).await?;
    let live: Vec<_> = live.iter().filter_map(|row| LiveColumn::from_text(row)).collect();
    named.require(&schema.id, &live)?;
    match schema::check_columns(schema, &live) {
        ColumnNames::Same => Ok(Ok(Begun { partition, blocks })),
        ColumnNames::Renamed => Ok(Err(RangeEnd::Renamed)),
        ColumnNames::Retyped => Err(Error::recopy(&schema.id, "a column changed its type")),
    }
}

/// Locks what holds a chunk's rows, and gives the condition for them where they are read through the root.
async fn lock(
    connection: &mut Connection,
    chunk: &Chunk,
    schema: &TableSchema,
) -> Result<Option<String>, Error> {
    let Some(oid) = chunk.through_root else {
        connection.query(&copy::lock_statement(schema, copy::Source::Only(&chunk.storage))).await?;
        return Ok(None);
    };
    let answer = connection.query(&catalog::partition_constraint_statement(oid, schema.oid)).await?;
    let constraint = answer.first().and_then(|row| row.first()).and_then(Option::as_deref);
    let condition = catalog::in_partition(oid, constraint);
    connection.query(&catalog::lock_partition_statement(&schema.id, &condition)).await?;
    Ok(Some(condition))
}

/// Decodes the rows of a chunk.
pub(super) struct Rows<'a> {
    read: ChunkRead<'a>,
    schema: &'a TableSchema,
    kinds: Vec<CellKind>,
    cells: Vec<Cell>,
    at: Position,
}

impl<'a> Rows<'a> {
    pub(super) fn new(read: ChunkRead<'a>, schema: &'a TableSchema, version: Version) -> Self {
        let mut kinds = copy::cell_kinds(schema);
        kinds.extend(read.snapshot.map(|_| CellKind::Binary));
        Rows { read, schema, cells: Vec::with_capacity(kinds.len()), kinds, at: Position::from(version) }
    }

    /// Reads rows into the batch until it is large enough to be sent; `true` at their end.
    async fn fill<B: TableBatch>(&mut self, answer: &mut CopyOut<'_>, batch: &mut B) -> Result<bool, Error> {
        let columns = self.schema.columns.len();
        let mut unmeasured = 0;
        while let Some(row) = answer.next().await? {
            pgoutput::decode_copy_row(row, &self.kinds, &mut self.cells).map_err(postgres::Error::from)?;
            if self.read.snapshot.is_some() {
                let position = Tuple { data: row, cells: &self.cells }.bytes(columns);
                self.at.ordinal = self.read.ordinal(position)?;
                self.cells.truncate(columns);
            }
            batch
                .push(Tuple { data: row, cells: &self.cells }, self.at, Op::Upsert)
                .map_err(|error| Error::value(self.schema, &error))?;
            unmeasured += row.len();
            if unmeasured >= MEASURE_EVERY {
                unmeasured = 0;
                if batch.bytes() >= SEND_BYTES {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

/// How many blocks are read at once.
struct RangeSize {
    blocks: u64,
    /// After a range that took too long, ranges grow slowly.
    careful: bool,
}

impl RangeSize {
    fn new() -> Self {
        RangeSize { blocks: SMALLEST, careful: false }
    }

    fn adjust(&mut self, took: Duration) {
        if took < GROWS_BELOW {
            let more = if self.careful { self.blocks / 8 } else { self.blocks };
            self.blocks = (self.blocks + more.max(1)).min(LARGEST);
        } else if took > SHRINKS_ABOVE {
            self.blocks = (self.blocks / 2).max(1);
        }
    }

    fn overdue(&mut self) {
        self.blocks = (self.blocks / 4).max(1);
        self.careful = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_grow_while_they_are_fast_and_shrink_down_to_a_block() {
        let mut size = RangeSize::new();
        for _ in 0..10 {
            size.adjust(Duration::from_millis(100));
        }
        assert_eq!(size.blocks, LARGEST);
        size.adjust(Duration::from_millis(700));
        assert_eq!(size.blocks, LARGEST);
        size.adjust(Duration::from_millis(1500));
        assert_eq!(size.blocks, LARGEST / 2);
        for _ in 0..10 {
            size.overdue();
        }
        assert_eq!(size.blocks, 1);
        size.adjust(Duration::from_millis(100));
        assert_eq!(size.blocks, 2, "slowly, from now on");
    }
}
