//! Copies one chunk: a short transaction at the source, one insert at the destination.

use std::sync::{Mutex, MutexGuard, PoisonError, atomic::Ordering};

use super::{Destination, Error, Surroundings, Table, copy_fence};
use crate::{
    model::{Cell, CellKind, Lsn, Position, TableSchema, Tuple, Version},
    postgres::{
        self,
        catalog::{self, LiveColumn},
        copy, pgoutput, quote,
        session::Session,
        shared_snapshot::{self, SharedSnapshot},
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
    /// All its rows are durable: so many, read when the source's log ended at `seen` at the latest.
    Rows { rows: u64, seen: Lsn },
    /// The table was rewritten since the plan was made, or the snapshot is gone.
    Moved,
    /// A column has another name than the plan knew. The table's record knows it now.
    Renamed,
}

/// A chunk and what its rows have in common.
#[derive(Clone, Copy)]
pub(super) struct Piece<'a> {
    pub(super) chunk: &'a Chunk,
    /// Its number in the plan.
    pub(super) index: usize,
    /// The snapshot that all chunks of the plan are read in, where there is no key.
    pub(super) snapshot: Option<&'a SharedSnapshot>,
}

impl Piece<'_> {
    /// `partition` is the condition for its partition's rows, where they are read through the root.
    fn statement(&self, schema: &TableSchema, partition: Option<&str>) -> String {
        let blocks = copy::block_range(self.chunk.from, self.chunk.to);
        let (source, condition) = match partition {
            Some(partition) => (copy::Source::Whole, format!("{partition} AND {blocks}")),
            None => (copy::Source::Only(&self.chunk.storage), blocks),
        };
        match self.snapshot {
            Some(_) => copy::placed_copy_statement(schema, source, Some(&condition)),
            None => copy::copy_statement(schema, source, Some(&condition)),
        }
    }

    /// Tells a row of a plan from all others by where it lies, which is the same each time that a snapshot is read. A chunk has
    /// fewer than 2^16 blocks.
    fn ordinal(&self, place: &[u8]) -> Result<u64, postgres::Error> {
        let malformed = || postgres::Error::Protocol("a row's ctid is malformed".to_owned());
        let (block, number) = copy::row_place(place).ok_or_else(malformed)?;
        let block = u64::from(block).checked_sub(self.chunk.from).ok_or_else(malformed)?;
        Ok((self.index as u64) << 32 | block << 16 | u64::from(number))
    }
}

/// What a worker keeps from chunk to chunk.
struct Kept<D: Destination> {
    connection: Connection,
    schema: TableSchema,
    batch: D::Batch,
    /// The version of the rows.
    version: Version,
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
        piece: Piece<'_>,
    ) -> Result<Copied, Error> {
        let TableRecord { schema, copy_version, .. } = table.record();
        let version = Version::copied(piece.chunk.version.unwrap_or(copy_version));
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
        let copied = copy_chunk(&mut kept, &around.destination, table, piece, &fence, &mut sent).await;
        match &copied {
            Ok(Copied::Renamed) => {
                *self.kept() = Some(kept);
                rename_columns(around, table).await?;
            }
            Ok(_) => *self.kept() = Some(kept),
            Err(error) => {
                table.progress.rows_copied.fetch_sub(sent, Ordering::Relaxed);
                // A partition went, or may be read through the root alone from now on; the table is there.
                let partition = piece.chunk.storage != table.id;
                let denied = |source: &postgres::Error| {
                    source.sqlstate() == Some("42501") && piece.chunk.through_root.is_none()
                };
                if partition
                    && matches!(error, Error::Source(source) if source.tells_missing_table() || denied(source))
                {
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
    piece: Piece<'_>,
    fence: &str,
    sent: &mut u64,
) -> Result<Copied, Error> {
    let chunk = piece.chunk;
    kept.connection.query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    if let Some(snapshot) = piece.snapshot {
        match kept.connection.query(&snapshot.import_statement()).await {
            Err(error) if shared_snapshot::tells_lost_snapshot(&error) => {
                kept.connection.query("ROLLBACK").await?;
                return Ok(Copied::Moved);
            }
            imported => drop(imported?),
        }
    }
    let partition = lock(kept, chunk).await?;
    let file_node_statement = match chunk.through_root {
        Some(oid) => catalog::file_node_statement_of(oid),
        None => catalog::file_node_statement(&chunk.storage),
    };
    let found = kept.connection.query(&file_node_statement).await?;
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
    let statement = piece.statement(&kept.schema, partition.as_deref());
    copy_rows(kept, destination, table, (piece, &statement), fence, sent).await?;
    kept.connection.query("COMMIT").await?;
    let seen = kept.connection.seen_until().await?;
    Ok(Copied::Rows { rows: *sent, seen })
}

/// Locks what holds a chunk's rows, and gives the condition for them where they are read through the root.
async fn lock<D: Destination>(kept: &mut Kept<D>, chunk: &Chunk) -> Result<Option<String>, Error> {
    let Some(oid) = chunk.through_root else {
        let storage = quote::table(&chunk.storage);
        kept.connection.query(&format!("LOCK TABLE ONLY {storage} IN ACCESS SHARE MODE")).await?;
        return Ok(None);
    };
    let answer = kept.connection.query(&catalog::partition_constraint_statement(oid)).await?;
    let constraint = answer.first().and_then(|row| row.first()).and_then(Option::as_deref);
    let condition = catalog::in_partition(oid, constraint);
    kept.connection.query(&catalog::lock_partition_statement(&kept.schema.id, &condition)).await?;
    Ok(Some(condition))
}

async fn copy_rows<D: Destination>(
    kept: &mut Kept<D>,
    destination: &D,
    table: &Table<D>,
    (piece, statement): (Piece<'_>, &str),
    fence: &str,
    sent: &mut u64,
) -> Result<(), Error> {
    let Kept { connection, schema, batch, version } = kept;
    let mut kinds = copy::cell_kinds(schema);
    let columns = kinds.len();
    kinds.extend(piece.snapshot.map(|_| CellKind::Binary));
    let mut cells: Vec<Cell> = Vec::with_capacity(kinds.len());
    let mut insert: Option<D::Insert> = None;
    let mut at = Position::from(*version);
    let mut rows = connection.copy_out(statement).await?;
    let mut unmeasured = 0;
    while let Some(row) = rows.next().await? {
        pgoutput::decode_copy_row(row, &kinds, &mut cells).map_err(crate::postgres::Error::from)?;
        if piece.snapshot.is_some() {
            at.ordinal = piece.ordinal(Tuple { data: row, cells: &cells }.bytes(columns))?;
            cells.truncate(columns);
        }
        batch
            .push(Tuple { data: row, cells: &cells }, at, Op::Upsert)
            .map_err(|error| Error::value(schema, &error))?;
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
