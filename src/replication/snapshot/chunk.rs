//! Copies one chunk: short transactions at the source, one insert at the destination.

use std::{
    ops::Range,
    sync::{Mutex, MutexGuard, atomic::Ordering},
};

use super::{
    Destination, Error, SnapshotContext, Table, copy_fence,
    plan::LARGEST,
    range::{RangeEnd, RangeReader, Rows},
};
use crate::{
    model::{Lsn, TableSchema, Version, lock},
    postgres::{self, copy, session::Session, shared_snapshot::SharedSnapshot},
    replication::{
        Insert, TableBatch,
        table::{
            describe,
            record::{Chunk, TableRecord},
            schema,
        },
    },
};

/// How a chunk ended.
pub(super) enum Copied {
    /// All its rows are durable: so many, read when the source's log ended at `read_lsn` at the latest.
    Rows { rows: u64, read_lsn: Lsn },
    /// The table was rewritten since the plan was made, or the snapshot is gone.
    Rewritten,
    /// A column has another name than the plan knew. The table's record knows it now.
    Renamed,
}

/// A chunk and what its rows have in common.
#[derive(Clone, Copy)]
pub(super) struct ChunkRead<'a> {
    pub(super) chunk: &'a Chunk,
    /// Its number in the plan.
    pub(super) index: usize,
    /// The snapshot that all chunks of the plan are read in, where there is no key.
    pub(super) snapshot: Option<&'a SharedSnapshot>,
}

impl ChunkRead<'_> {
    /// The COPY of those of its rows that lie in these blocks. `partition` is the condition for its
    /// partition's rows, where they are read through the root.
    pub(super) fn statement(
        &self,
        schema: &TableSchema,
        blocks: Range<u64>,
        partition: Option<&str>,
    ) -> String {
        let blocks = copy::block_range(blocks.start, Some(blocks.end));
        let (source, condition) = match partition {
            Some(partition) => (copy::Source::Whole, format!("{partition} AND {blocks}")),
            None => (copy::Source::Only(&self.chunk.storage), blocks),
        };
        match self.snapshot {
            Some(_) => copy::placed_copy_statement(schema, source, Some(&condition)),
            None => copy::copy_statement(schema, source, Some(&condition)),
        }
    }

    /// Its blocks. What lies behind those that were planned was written after the slot was made, so the
    /// stream has it.
    fn blocks(&self) -> Range<u64> {
        self.chunk.from..self.chunk.to.unwrap_or(self.chunk.from + LARGEST)
    }

    /// Identifies a row of a plan by where it lies, which is the same each time that a snapshot is read. A
    /// chunk has fewer than 2^16 blocks.
    pub(super) fn ordinal(&self, ctid: &[u8]) -> Result<u64, postgres::Error> {
        let malformed = || postgres::Error::Protocol("a row's ctid is malformed".to_owned());
        let (block, number) = copy::row_place(ctid).ok_or_else(malformed)?;
        let block = u64::from(block).checked_sub(self.chunk.from).ok_or_else(malformed)?;
        Ok((self.index as u64) << 32 | block << 16 | u64::from(number))
    }
}

/// What a worker reuses from chunk to chunk.
struct WorkerState<D: Destination> {
    reader: RangeReader,
    schema: TableSchema,
    batch: D::Batch,
    /// The version of the rows.
    version: Version,
}

/// One worker's way to copy chunks.
pub(super) struct Copier<D: Destination> {
    worker: usize,
    state: Mutex<Option<WorkerState<D>>>,
}

impl<D: Destination> Copier<D> {
    pub(super) fn new(worker: usize) -> Self {
        Copier { worker, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, Option<WorkerState<D>>> {
        lock(&self.state)
    }

    /// Copies a chunk. After an error the connection is not used again, and none of the chunk's rows count as
    /// copied.
    pub(super) async fn copy(
        &self,
        context: &SnapshotContext<D>,
        table: &Table<D>,
        read: ChunkRead<'_>,
    ) -> Result<Copied, Error> {
        let TableRecord { schema, copy_version, .. } = table.record();
        let version = Version::copied(read.chunk.version.unwrap_or(copy_version));
        let state = self.state().take();
        let mut state = match state {
            Some(state) if state.schema == schema => WorkerState { version, ..state },
            Some(WorkerState { reader, .. }) => {
                WorkerState { reader, batch: context.destination.batch(&schema)?, schema, version }
            }
            None => {
                let reader = RangeReader::new(context.source.clone(), context.application_name.clone());
                WorkerState { reader, batch: context.destination.batch(&schema)?, schema, version }
            }
        };
        state.batch.clear();
        let mut sender = Sender {
            destination: &context.destination,
            table,
            fence: copy_fence(&context.fence, self.worker),
            insert: None,
            sent: 0,
        };
        let copied = copy_chunk(&mut state, &mut sender, read).await;
        let sent = sender.sent;
        match &copied {
            Ok(Copied::Renamed) => {
                *self.state() = Some(state);
                rename_columns(context, table).await?;
            }
            Ok(_) => *self.state() = Some(state),
            Err(error) => {
                table.progress.rows_copied.fetch_sub(sent, Ordering::Relaxed);
                // A partition went, or may be read through the root alone from now on; the table is there.
                let partition = read.chunk.storage != table.id;
                let denied = |source: &postgres::Error| {
                    source.sqlstate() == Some("42501") && read.chunk.through_root.is_none()
                };
                if partition
                    && matches!(error, Error::Source(source) if source.is_missing_table() || denied(source))
                {
                    return Ok(Copied::Rewritten);
                }
                if matches!(error, Error::Source(source) if describe::outdated(source)) {
                    rename_columns(context, table).await?;
                }
            }
        }
        copied
    }
}

/// Brings the names of a table's columns up to the catalog: a query with the old ones was refused, and the
/// stream, which has changes with a table's next row, may take long.
async fn rename_columns<D: Destination>(context: &SnapshotContext<D>, table: &Table<D>) -> Result<(), Error> {
    let session = Session::connect(&context.source, &context.application_name).await?;
    let record = table.record();
    let fresh = describe::describe(&session, &record).await?.schema;
    table.update(|record| record.schema = schema::rename_to_current(&record.schema, &fresh)).await
}

/// Copies a chunk by one insert, in as many ranges of blocks as it takes.
async fn copy_chunk<D: Destination>(
    state: &mut WorkerState<D>,
    sender: &mut Sender<'_, D>,
    read: ChunkRead<'_>,
) -> Result<Copied, Error> {
    let WorkerState { reader, schema, batch, version } = state;
    let mut rows = Rows::new(read, schema, *version);
    let mut left = read.blocks();
    while !left.is_empty() {
        let before = sender.sent;
        let blocks = reader.next_of(&left);
        match reader.read(&mut rows, blocks.clone(), batch, sender).await? {
            RangeEnd::Read { blocks: there } => {
                sender.send(batch, schema).await?;
                left = blocks.end..left.end.min(there);
            }
            RangeEnd::Overdue => sender.forget_since(before),
            // What was sent is made durable: it must not arrive after a TRUNCATE that waits for this chunk.
            RangeEnd::Rewritten => return sender.finish().await.map(|_| Copied::Rewritten),
            RangeEnd::Renamed => {
                sender.finish().await?;
                sender.forget_since(0);
                return Ok(Copied::Renamed);
            }
        }
    }
    let rows = sender.finish().await?;
    let read_lsn = reader.read_lsn().await?;
    Ok(Copied::Rows { rows, read_lsn })
}

/// The insert of a chunk's rows.
pub(super) struct Sender<'a, D: Destination> {
    destination: &'a D,
    pub(super) table: &'a Table<D>,
    fence: String,
    insert: Option<D::Insert>,
    /// Rows sent that count as copied.
    sent: u64,
}

impl<D: Destination> Sender<'_, D> {
    /// Sends the batch's rows and clears it.
    pub(super) async fn send(&mut self, batch: &mut D::Batch, schema: &TableSchema) -> Result<(), Error> {
        if batch.rows() == 0 {
            return Ok(());
        }
        let running = match self.insert.take() {
            Some(running) => self.insert.insert(running),
            None => self.insert.insert(self.destination.open_insert(schema, &self.fence).await?),
        };
        let rows = batch.rows() as u64;
        for (column, values) in batch.take_out_of_range() {
            if let Some(column) = schema.columns.get(column) {
                self.table.progress.count_out_of_range(&column.target_name, values);
            }
        }
        running.send(batch).await?;
        self.sent += rows;
        self.table.progress.rows_copied.fetch_add(rows, Ordering::Relaxed);
        Ok(())
    }

    /// Rows that were sent since then will be sent once more.
    fn forget_since(&mut self, before: u64) {
        self.table.progress.rows_copied.fetch_sub(self.sent - before, Ordering::Relaxed);
        self.sent = before;
    }

    /// Makes what was sent durable, and gives the number of its rows.
    async fn finish(&mut self) -> Result<u64, Error> {
        if let Some(insert) = self.insert.take() {
            insert.finish().await?;
        }
        Ok(self.sent)
    }
}
