//! The tables of a stream, as its event loop sees them.

use std::{
    ops::{Index, IndexMut},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{apply::Transaction, batch::PendingBatch};
use crate::{
    model::{Lsn, Steps, TableSchema, TableSpec},
    replication::{Destination, table::Table},
};

/// Which of a stream's tables. Only [`StreamTables`] makes one, so there is a table for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TableIndex(usize);

#[cfg(test)]
impl TableIndex {
    /// The only one of a stream with one table.
    pub(super) const FIRST: TableIndex = TableIndex(0);
}

/// A table as the stream sees it.
pub(super) struct StreamTable<D: Destination> {
    pub(super) table: Arc<Table<D>>,
    pub(super) spec: TableSpec,
    pub(super) schema: Arc<TableSchema>,
    /// Changes up to here are in the table's copy.
    pub(super) snapshot_lsn: Lsn,
    pub(super) pending: Option<PendingBatch<D>>,
    /// Whether the batch is to be inserted as soon as it ends with a step.
    pub(super) due: bool,
    /// The steps of the transaction being received.
    pub(super) steps: Steps,
    /// The commit LSN and ordinal of the next change, where there is no key.
    next: (Lsn, u64),
    /// When the last insert began.
    pub(super) insert_started: Instant,
}

impl<D: Destination> StreamTable<D> {
    fn new(table: Arc<Table<D>>, spec: TableSpec, insert_started: Instant) -> Self {
        table.snapshot_filter.begin_stream();
        StreamTable {
            schema: Arc::new(table.schema()),
            snapshot_lsn: table.record().snapshot_lsn,
            table,
            spec,
            pending: None,
            due: false,
            steps: Steps::default(),
            next: (Lsn::ZERO, 0),
            insert_started,
        }
    }

    /// The ordinal of a change in the transaction with this commit LSN: changes are counted by table, so that
    /// it is the same each time, whatever else is sent. Each has two, for an update is two rows.
    pub(super) fn next_ordinal(&mut self, commit: Lsn) -> u64 {
        if self.next.0 != commit {
            self.next = (commit, 0);
        }
        let ordinal = self.next.1;
        self.next.1 += 2;
        ordinal
    }

    /// Whether the pending batch has whole steps only, now that the stream has come as far as `transaction`
    /// says. Rows of one version may be of one key: in one insert the last of them counts, in two the one
    /// that is inserted last.
    pub(super) fn is_whole(&self, transaction: Option<Transaction>) -> bool {
        let last = self.pending.as_ref().and_then(|batch| batch.last);
        match (last, transaction) {
            (Some(last), Some(transaction)) => self.steps.is_over(last, transaction.commit, transaction.at),
            _ => true,
        }
    }

    /// When the pending batch is to be inserted, if there is one.
    pub(super) fn insert_due(&self, max_delay: Duration, backlog: bool) -> Option<Instant> {
        let latest = self.pending.as_ref()?.since + max_delay;
        let paced = self.insert_started + self.table.insert_time().saturating_mul(2);
        Some(if backlog { latest } else { paced.min(latest) })
    }

    /// Bytes in the pending batch.
    pub(super) fn pending_bytes(&self) -> usize {
        self.pending.as_ref().map_or(0, PendingBatch::bytes)
    }
}

/// All tables of a stream. Their number does not change while it lives.
pub(super) struct StreamTables<D: Destination>(Vec<StreamTable<D>>);

impl<D: Destination> StreamTables<D> {
    pub(super) fn new(tables: Vec<(Arc<Table<D>>, TableSpec)>) -> Self {
        let long_ago = Instant::now().checked_sub(Duration::from_secs(3600)).unwrap_or_else(Instant::now);
        StreamTables(
            tables.into_iter().map(|(table, spec)| StreamTable::new(table, spec, long_ago)).collect(),
        )
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &StreamTable<D>> {
        self.0.iter()
    }

    /// The table whose relation has this oid.
    pub(super) fn with_oid(&self, oid: u32) -> Option<TableIndex> {
        self.0.iter().position(|entry| entry.schema.oid == oid).map(TableIndex)
    }
}

impl<D: Destination> Index<TableIndex> for StreamTables<D> {
    type Output = StreamTable<D>;

    #[inline]
    fn index(&self, index: TableIndex) -> &StreamTable<D> {
        &self.0[index.0]
    }
}

impl<D: Destination> IndexMut<TableIndex> for StreamTables<D> {
    #[inline]
    fn index_mut(&mut self, index: TableIndex) -> &mut StreamTable<D> {
        &mut self.0[index.0]
    }
}
