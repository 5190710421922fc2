//! Copies one chunk: a short transaction at the source, one insert at the destination.

use std::sync::{Mutex, MutexGuard, PoisonError, atomic::Ordering};

use super::{Destination, Error, Surroundings, Table, copy_fence};
use crate::{
    model::{Cell, Lsn, TableSchema, Tuple},
    postgres::{
        catalog::{self, LiveColumn},
        copy, pgoutput, quote,
        session::Session,
        wire::{Connection, Purpose},
    },
    replication::{
        Insert, Op, TableBatch,
        schema_change::{self, Standing},
        state::{Chunk, TableRecord},
    },
};

/// Encoded bytes gathered before they are handed to the running insert.
const SEND_BYTES: usize = 1 << 20;

/// Bytes read between two looks at a batch's size.
const MEASURE_EVERY: usize = 64 << 10;

/// How a chunk ended.
pub(super) enum Copied {
    /// All its rows are durable: so many.
    Rows(u64),
    /// The table was rewritten since the plan was made.
    Moved,
    /// A column has another name than the plan knew. The table's record knows it now.
    Renamed,
}

/// What a worker keeps from chunk to chunk.
struct Kept<D: Destination> {
    connection: Connection,
    schema: TableSchema,
    batch: D::Batch,
    /// The version of the rows.
    version: Lsn,
}

/// One worker's way to copy chunks.
pub(super) struct Copier<D: Destination> {
    worker: usize,
    kept: Mutex<Option<Kept<D>>>,
}

impl<D: Destination> Copier<D> {
    pub(super) fn new(worker: usize) -> Self {
        Copier { worker, kept: Mutex::default() }
    }

    fn kept(&self) -> MutexGuard<'_, Option<Kept<D>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies a chunk. After an error the connection is not used again, and none of the chunk's rows count as copied.
    pub(super) async fn copy(
        &self,
        around: &Surroundings<D>,
        table: &Table<D>,
        chunk: &Chunk,
    ) -> Result<Copied, Error> {
        let TableRecord { schema, copy_version, .. } = table.record();
        let version = chunk.version.unwrap_or(copy_version);
        let kept = self.kept().take();
        let mut kept = match kept {
            Some(kept) if kept.schema == schema => Kept { version, ..kept },
            Some(Kept { connection, .. }) => {
                Kept { connection, batch: around.destination.batch(&schema)?, schema, version }
            }
            None => {
                let connection =
                    Connection::connect(&around.source, &around.application_name, Purpose::Copy).await?;
                Kept { connection, batch: around.destination.batch(&schema)?, schema, version }
            }
        };
        kept.batch.clear();
        let fence = copy_fence(&around.fence, self.worker);
        let mut sent = 0;
        let copied = copy_chunk(&mut kept, &around.destination, table, chunk, &fence, &mut sent).await;
        match &copied {
            Ok(Copied::Renamed) => {
                *self.kept() = Some(kept);
                rename_columns(around, table).await?;
            }
            Ok(_) => *self.kept() = Some(kept),
            Err(error) => {
                table.progress.rows_copied.fetch_sub(sent, Ordering::Relaxed);
                // A partition went, not the table.
                let partition = chunk.storage != table.id;
                if partition && matches!(error, Error::Source(source) if source.tells_missing_table()) {
                    return Ok(Copied::Moved);
                }
                if matches!(error, Error::Source(source) if schema_change::outdated(source)) {
                    rename_columns(around, table).await?;
                }
            }
        }
        copied
    }
}

/// Brings the names of a table's columns up to the catalog: a query with the old ones was refused, and the stream, which
/// tells of changes with a table's next row, may take long.
async fn rename_columns<D: Destination>(around: &Surroundings<D>, table: &Table<D>) -> Result<(), Error> {
    let session = Session::connect(&around.source, &around.application_name).await?;
    let record = table.record();
    let fresh = schema_change::describe(&session, &record.spec, &record.schema).await?;
    table.update(|record| record.schema = schema_change::as_now(&record.schema, &fresh)).await
}

/// The lock keeps rewrites out between the look at the file node and the last row.
async fn copy_chunk<D: Destination>(
    kept: &mut Kept<D>,
    destination: &D,
    table: &Table<D>,
    chunk: &Chunk,
    fence: &str,
    sent: &mut u64,
) -> Result<Copied, Error> {
    let storage = quote::table(&chunk.storage);
    kept.connection.query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    kept.connection.query(&format!("LOCK TABLE ONLY {storage} IN ACCESS SHARE MODE")).await?;
    let found = kept.connection.query(&catalog::file_node_statement(&chunk.storage)).await?;
    let file_node = found.first().and_then(|row| row.first()).and_then(Option::as_deref);
    if file_node != Some(chunk.file_node.to_string().as_str()) {
        kept.connection.query("ROLLBACK").await?;
        return Ok(Copied::Moved);
    }
    let live = kept.connection.query(&catalog::live_columns_statement(kept.schema.oid)).await?;
    let live: Vec<_> = live.iter().filter_map(|row| LiveColumn::from_text(row)).collect();
    match schema_change::standing(&kept.schema, &live) {
        Standing::Same => {}
        Standing::Renamed => {
            kept.connection.query("ROLLBACK").await?;
            return Ok(Copied::Renamed);
        }
        Standing::Retyped => return Err(Error::copy_anew(&table.id, "a column changed its type")),
    }
    copy_rows(kept, destination, table, chunk, fence, sent).await?;
    kept.connection.query("COMMIT").await?;
    Ok(Copied::Rows(*sent))
}

async fn copy_rows<D: Destination>(
    kept: &mut Kept<D>,
    destination: &D,
    table: &Table<D>,
    chunk: &Chunk,
    fence: &str,
    sent: &mut u64,
) -> Result<(), Error> {
    let Kept { connection, schema, batch, version } = kept;
    let condition = copy::block_range(chunk.from, chunk.to);
    let statement = copy::copy_statement(schema, &chunk.storage, Some(&condition));
    let kinds = copy::cell_kinds(schema);
    let mut cells: Vec<Cell> = Vec::with_capacity(kinds.len());
    let mut insert: Option<D::Insert> = None;
    let mut rows = connection.copy_out(&statement).await?;
    let mut unmeasured = 0;
    while let Some(row) = rows.next().await? {
        pgoutput::decode_copy_row(row, &kinds, &mut cells).map_err(crate::postgres::Error::from)?;
        batch
            .push(Tuple { data: row, cells: &cells }, *version, Op::Upsert)
            .map_err(|error| Error::value(&table.id, &error))?;
        unmeasured += row.len();
        if unmeasured < MEASURE_EVERY {
            continue;
        }
        unmeasured = 0;
        if batch.bytes() >= SEND_BYTES {
            send(destination, table, schema, batch, &mut insert, fence, sent).await?;
        }
    }
    if batch.rows() > 0 {
        send(destination, table, schema, batch, &mut insert, fence, sent).await?;
    }
    if let Some(insert) = insert {
        insert.finish().await?;
    }
    Ok(())
}

async fn send<D: Destination>(
    destination: &D,
    table: &Table<D>,
    schema: &TableSchema,
    batch: &mut D::Batch,
    insert: &mut Option<D::Insert>,
    fence: &str,
    sent: &mut u64,
) -> Result<(), Error> {
    let running = match insert.take() {
        Some(running) => insert.insert(running),
        None => insert.insert(destination.open_insert(schema, fence).await?),
    };
    let rows = batch.rows() as u64;
    for (column, values) in batch.take_out_of_range() {
        if let Some(column) = schema.columns.get(column) {
            table.progress.count_out_of_range(&column.target_name, values);
        }
    }
    running.send(batch).await?;
    *sent += rows;
    table.progress.rows_copied.fetch_add(rows, Ordering::Relaxed);
    Ok(())
}
