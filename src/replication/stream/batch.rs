//! Rows of one table on their way to an insert.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use super::checkpoint::CheckpointGuard;
use crate::{
    model::{Cell, Position, TableSchema, Tuple, Version, lock},
    replication::{Destination, Op, TableBatch, ValueError},
};

/// Streamed rows by kind, counted when they are durable.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) inserted: u64,
    pub(super) updated: u64,
    pub(super) deleted: u64,
}

/// A row in its wire form.
pub(super) struct DeferredRow {
    data: Range<usize>,
    cells: Range<usize>,
    pub(super) position: Position,
    pub(super) op: Op,
    pub(super) incomplete: bool,
}

/// The fence of a table's streamed inserts, `prefix` being the Mirror's.
pub(in crate::replication) fn stream_fence(prefix: &str, table: &TableSchema) -> String {
    format!("{prefix}-{}", table.target)
}

/// Most batches whose memory is kept for the next rows of their tables: each may hold a quarter of
/// `batch.maxBytes`.
const POOLED: usize = 4;

/// Rows from the first one on whose unchanged TOAST values have to be fetched, in stream order.
///
/// Order must be kept among rows of one version, so everything after that row is deferred with it.
#[derive(Default)]
pub(super) struct DeferredRows {
    data: Vec<u8>,
    cells: Vec<Cell>,
    pub(super) rows: Vec<DeferredRow>,
    /// The transactions that wrote them.
    pub(super) transactions: Vec<u32>,
}

impl DeferredRows {
    /// Notes which transaction the last row is of.
    pub(super) fn written_by(&mut self, transaction: u32) {
        if self.transactions.last() != Some(&transaction) {
            self.transactions.push(transaction);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn bytes(&self) -> usize {
        self.data.len() + self.cells.len() * size_of::<Cell>()
    }

    fn push(&mut self, tuple: Tuple<'_>, position: Position, op: Op) {
        let (data_start, cells_start) = (self.data.len(), self.cells.len());
        for (index, cell) in tuple.cells.iter().enumerate() {
            let bytes = tuple.bytes(index);
            let start = u32::try_from(self.data.len() - data_start).unwrap_or(u32::MAX);
            self.cells.push(Cell { kind: cell.kind, start, len: cell.len });
            self.data.extend_from_slice(bytes);
        }
        self.rows.push(DeferredRow {
            data: data_start..self.data.len(),
            cells: cells_start..self.cells.len(),
            position,
            op,
            incomplete: op == Op::Upsert && tuple.has_unchanged(),
        });
    }

    pub(super) fn tuple(&self, row: &DeferredRow) -> Tuple<'_> {
        Tuple {
            data: self.data.get(row.data.clone()).unwrap_or_default(),
            cells: self.cells.get(row.cells.clone()).unwrap_or_default(),
        }
    }
}

/// Rows being collected for one insert.
pub(super) struct PendingBatch<D: Destination> {
    pub(super) values: D::Batch,
    pub(super) deferred: DeferredRows,
    pub(super) schema: Arc<TableSchema>,
    pub(super) counts: Counts,
    pub(super) guard: CheckpointGuard,
    pub(super) since: Instant,
    /// The version of the last row.
    pub(super) last: Option<Version>,
    counted_bytes: usize,
}

impl<D: Destination> PendingBatch<D> {
    pub(super) fn new(values: D::Batch, schema: Arc<TableSchema>, guard: CheckpointGuard) -> Self {
        PendingBatch {
            values,
            deferred: DeferredRows::default(),
            schema,
            counts: Counts::default(),
            guard,
            since: Instant::now(),
            last: None,
            counted_bytes: 0,
        }
    }

    /// Appends a row, or defers it where an earlier one is, or its own values have to be fetched.
    #[inline]
    pub(super) fn push(&mut self, tuple: Tuple<'_>, position: Position, op: Op) -> Result<(), ValueError> {
        self.last = Some(position.version);
        if self.deferred.is_empty() && !(op == Op::Upsert && tuple.has_unchanged()) {
            return self.values.push(tuple, position, op);
        }
        self.deferred.push(tuple, position, op);
        Ok(())
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.values.bytes() + self.deferred.bytes()
    }

    /// Brings the Mirror's total up to date with what this batch holds now.
    pub(super) fn account(&mut self, total: &AtomicUsize) {
        let now = self.bytes();
        total.fetch_add(now, Ordering::Relaxed);
        total.fetch_sub(self.counted_bytes, Ordering::Relaxed);
        self.counted_bytes = now;
    }

    /// Takes what this batch holds out of the Mirror's total.
    pub(super) fn release(&self, total: &AtomicUsize) {
        total.fetch_sub(self.counted_bytes, Ordering::Relaxed);
    }
}

/// Empty batches of earlier inserts, kept for their memory: those of the tables that were inserted into last.
pub(in crate::replication) struct BatchPool<D: Destination> {
    kept: Mutex<VecDeque<(Arc<TableSchema>, D::Batch)>>,
}

impl<D: Destination> Default for BatchPool<D> {
    fn default() -> Self {
        BatchPool { kept: Mutex::default() }
    }
}

impl<D: Destination> BatchPool<D> {
    fn kept(&self) -> MutexGuard<'_, VecDeque<(Arc<TableSchema>, D::Batch)>> {
        lock(&self.kept)
    }

    /// One that was made for this very schema.
    pub(super) fn take(&self, schema: &Arc<TableSchema>) -> Option<D::Batch> {
        let mut kept = self.kept();
        let index = kept.iter().position(|(made_for, _)| Arc::ptr_eq(made_for, schema))?;
        kept.remove(index).map(|(_, batch)| batch)
    }

    pub(super) fn keep(&self, schema: Arc<TableSchema>, batch: D::Batch) {
        let mut kept = self.kept();
        kept.push_back((schema, batch));
        if kept.len() > POOLED {
            kept.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::CellKind;

    fn cell(kind: CellKind, start: u32, len: u32) -> Cell {
        Cell { kind, start, len }
    }

    #[test]
    fn waiting_rows_keep_their_values() {
        let mut deferred = DeferredRows::default();
        let cells = [cell(CellKind::Text, 2, 3), cell(CellKind::Unchanged, 0, 0), cell(CellKind::Null, 0, 0)];
        deferred.push(Tuple { data: b"..abc", cells: &cells }, Version::ZERO.into(), Op::Upsert);
        deferred.push(
            Tuple { data: b"xyz", cells: &[cell(CellKind::Binary, 0, 3)] },
            Version::ZERO.into(),
            Op::Delete,
        );
        let tuples: Vec<_> = deferred.rows.iter().map(|row| deferred.tuple(row)).collect();
        assert_eq!(tuples[0].bytes(0), b"abc");
        assert!(tuples[0].has_unchanged());
        assert_eq!(tuples[1].bytes(0), b"xyz");
    }
}
