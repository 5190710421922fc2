//! Divides a table into chunks, and waits for the writers of a table that joins a running slot.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio_util::sync::CancellationToken;

use super::{Destination, Error, Table};
use crate::{
    fault::Reason,
    model::{Lsn, TableSchema, TableState},
    postgres::{
        catalog::{self, Storage},
        session::Session,
        shared_snapshot, visibility,
    },
    replication::table::record::Chunk,
};

/// Blocks of 8 KiB in a chunk: at least 8 MiB and at most 128 MiB of table.
pub(super) const SMALLEST: u64 = 1024;
pub(super) const LARGEST: u64 = 16384;

/// How often the transactions that a joining table waits for are queried.
pub(super) const POLL: Duration = Duration::from_millis(250);

/// The chunks of a table as it is now, and the rows its statistics expect.
///
/// Block counts come from the files' sizes. Rows in later blocks were written after the slot was made, so the
/// stream has them; still the last chunk has no end, which costs nothing.
pub(super) async fn chunks(
    session: &Session,
    schema: &TableSchema,
    parallelism: usize,
) -> Result<(Vec<Chunk>, u64), Error> {
    let storages = catalog::storage(session, schema).await?;
    if storages.is_empty() && !schema.partitioned {
        return Err(Error::dropped(&schema.id));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate, never negative here"
    )]
    let estimated = storages.iter().map(|storage| storage.estimated_rows.max(0.0)).sum::<f64>() as u64;
    let blocks: u64 = storages.iter().map(|storage| storage.blocks).sum();
    Ok((chunks_of(schema, &storages, chunk_blocks(blocks, parallelism), None), estimated))
}

/// The chunks of the relations with these oids, which joined a table later; their rows have a version of
/// their own.
pub(in crate::replication) async fn parts(
    session: &Session,
    schema: &TableSchema,
    oids: &BTreeSet<u32>,
    version: Lsn,
) -> Result<Vec<Chunk>, Error> {
    let mut storages = catalog::storage(session, schema).await?;
    storages.retain(|storage| oids.contains(&storage.oid));
    Ok(chunks_of(schema, &storages, SMALLEST, Some(version)))
}

fn chunks_of(schema: &TableSchema, storages: &[Storage], size: u64, version: Option<Lsn>) -> Vec<Chunk> {
    let chunk = |storage: &Storage, from, to| Chunk {
        storage: storage.id.clone(),
        file_node: storage.file_node,
        from,
        to,
        through_root: (schema.partitioned && !storage.readable).then_some(storage.oid),
        version,
    };
    let of = |storage| ranges_of(storage, size).map(move |(from, to)| chunk(storage, from, to));
    storages.iter().flat_map(of).collect()
}

fn ranges_of(storage: &Storage, size: u64) -> impl Iterator<Item = (u64, Option<u64>)> + use<> {
    ranges(storage.blocks, size).into_iter()
}

/// The number of a new plan: higher than the last one's and than those of an earlier life of the table in
/// this mirror, of which a record of a finished chunk may be left.
pub(in crate::replication) fn next_number(last: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    u64::try_from(now).unwrap_or_default().max(last.saturating_add(1))
}

/// About four chunks a worker, so that all workers end at nearly the same time.
fn chunk_blocks(blocks: u64, parallelism: usize) -> u64 {
    let workers = u64::try_from(parallelism.max(1)).unwrap_or(1);
    (blocks / (workers * 4)).clamp(SMALLEST, LARGEST)
}

fn ranges(blocks: u64, size: u64) -> Vec<(u64, Option<u64>)> {
    let starts: Vec<u64> = (0..blocks).step_by(usize::try_from(size).unwrap_or(usize::MAX)).collect();
    starts.iter().enumerate().map(|(index, from)| (*from, starts.get(index + 1).copied())).collect()
}

/// Waits until no transaction that was writing to the table when its publication was committed is left.
///
/// Such a transaction's earlier rows are not in the stream, and not in the copy either if it commits after
/// the first chunk was read. CREATE INDEX CONCURRENTLY waits the same way.
pub(super) async fn wait_for_writers<D: Destination>(
    session: &Session,
    table: &Table<D>,
    stop: &CancellationToken,
) -> Result<(), Error> {
    if let Some(next) = visibility::next_on_standby(session).await? {
        return wait_for_all_below(session, next, table, stop).await;
    }
    let oids: Vec<u32> =
        catalog::storage(session, &table.schema()).await?.iter().map(|storage| storage.oid).collect();
    let mut awaited: Vec<String> = catalog::lock_holders(session, &oids)
        .await?
        .into_iter()
        .map(|holder| holder.virtual_transaction)
        .collect();
    let mut logged = false;
    while !awaited.is_empty() {
        let present = catalog::lock_holders(session, &oids).await?;
        awaited.retain(|transaction| present.iter().any(|holder| holder.virtual_transaction == *transaction));
        let Some(holder) = present.iter().find(|holder| awaited.contains(&holder.virtual_transaction)) else {
            break;
        };
        let pid = holder.pid.map_or_else(|| "a prepared transaction".to_owned(), |pid| format!("pid {pid}"));
        let message = format!(
            "waits for {} transaction(s) that were writing to the table when it joined, first {pid} ({})",
            awaited.len(),
            holder.application_name
        );
        table.snapshot_filter.forget_visible(&shared_snapshot::current(session).await?);
        wait_once(table, message, &mut logged, stop).await?;
    }
    Ok(())
}

/// The same on a standby, which does not know who writes to which table: all transactions of the primary are
/// waited for.
async fn wait_for_all_below<D: Destination>(
    session: &Session,
    next: u32,
    table: &Table<D>,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let mut logged = false;
    while let Some(oldest) = visibility::oldest_below(session, next).await? {
        let message = format!(
            "waits for the transactions that were running at the primary when the table joined. The oldest is {oldest}: to see who it is, run \
             SELECT * FROM pg_stat_activity WHERE backend_xid = '{oldest}' there"
        );
        wait_once(table, message, &mut logged, stop).await?;
    }
    Ok(())
}

/// Reports what is waited for, in the log once, and waits until the next query.
async fn wait_once<D: Destination>(
    table: &Table<D>,
    message: String,
    logged: &mut bool,
    stop: &CancellationToken,
) -> Result<(), Error> {
    if !std::mem::replace(logged, true) {
        tracing::info!(table = %table.id, why = %message, "snapshot waits");
    }
    table.progress.set_state(TableState::Pending, Reason::WaitingForTransactions, message);
    tokio::select! {
        () = stop.cancelled() => Err(Error::Stopped),
        () = tokio::time::sleep(POLL) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_every_block_once() {
        assert_eq!(ranges(0, 10), vec![]);
        assert_eq!(ranges(1, 10), vec![(0, None)]);
        assert_eq!(ranges(25, 10), vec![(0, Some(10)), (10, Some(20)), (20, None)]);
        assert_eq!(ranges(20, 10), vec![(0, Some(10)), (10, None)]);
    }

    #[test]
    fn plan_numbers_differ_also_when_the_table_comes_back() {
        assert!(next_number(0) > 1_700_000_000_000_000);
        assert_eq!(next_number(u64::MAX - 1), u64::MAX);
    }

    #[test]
    fn chunks_are_neither_tiny_nor_huge() {
        assert_eq!(chunk_blocks(10, 4), 1024);
        assert_eq!(chunk_blocks(100_000, 4), 6250);
        assert_eq!(chunk_blocks(u64::MAX, 4), 16384);
    }
}
