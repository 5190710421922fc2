//! Applies decoded messages: rows into batches, batches into inserts, and the rare rest into steps for the
//! session.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use tokio::sync::OwnedSemaphorePermit;

use super::{
    batch::PendingBatch,
    checkpoint::{Checkpoint, CheckpointGuard, Commit, PgMicros},
    inserter::Inserter,
    row::{RelationMapping, Scratch, TupleSide},
    stream_table::{StreamTable, StreamTables, TableIndex},
};
use crate::{
    model::{BatchSettings, Lsn, Operation, Position, TableSpec, Version},
    postgres::pgoutput::{self, Message, OldTuple, Relation},
    replication::{
        Destination, Error, Op, ValueError,
        session::position::Witness,
        table::{Decision, Table, describe},
    },
};

/// The transaction being received.
#[derive(Clone, Copy)]
pub(super) struct Transaction {
    xid: u32,
    pub(super) commit: Lsn,
    committed_at: PgMicros,
    /// Where in the log its latest change is.
    pub(super) at: Lsn,
}

impl Transaction {
    fn mark(self) -> Commit {
        Commit { lsn: self.commit, xid: self.xid, at: self.committed_at }
    }
}

/// What a message does to a row.
#[derive(Clone, Copy)]
enum RowChange {
    Insert,
    Update(OldTuple),
    Delete(OldTuple),
}

impl RowChange {
    fn operation(self) -> Operation {
        match self {
            RowChange::Insert => Operation::Insert,
            RowChange::Update(_) => Operation::Update,
            RowChange::Delete(_) => Operation::Delete,
        }
    }
}

/// What is left to do after a message; all but `Done` are rare.
pub(super) enum Step<D: Destination> {
    Done,
    /// A table's columns were announced.
    Relation(Relation),
    /// Tables were truncated, with these versions; `None` where there is no room for one.
    Truncate(Vec<(TableIndex, Option<Version>)>),
    /// A row is the first to need its relation, which was deferred. The message has to be applied again after
    /// it.
    NeedsRelation(Box<Relation>),
    /// The same message has to be applied again once a table's copy has its snapshot.
    AwaitSnapshot(Arc<Table<D>>),
    /// A row of a table that shows a partition's replica identity to be another one than the table's.
    IdentityDiffers(TableIndex),
    /// A row can't be stored.
    Fail(TableIndex, Error),
}

/// What becomes of a change of a table without a key.
enum Keyless<D: Destination> {
    /// It is applied, with this ordinal.
    Apply(u64),
    /// This is done in its place.
    Instead(Step<D>),
}

/// Turns messages into rows of batches, within the Mirror's memory.
pub(in crate::replication) struct Applier<D: Destination> {
    pub(super) tables: StreamTables<D>,
    pub(super) inserter: Arc<Inserter<D>>,
    pub(super) checkpoint: Arc<Checkpoint>,
    /// The transaction by which the source proves to be the one of before.
    pub(super) witness: Witness,
    /// `None` marks a relation that is not ours.
    relations: HashMap<u32, Option<RelationMapping>>,
    /// The table of the last Relation message, if it is one of ours: a partition is announced right behind
    /// its root.
    pub(super) last_announced: Option<TableIndex>,
    /// Relations of rows that are in a copy already, which don't fit the table as it is now: a later row says
    /// whether they matter.
    deferred_relations: HashMap<u32, (TableIndex, Relation)>,
    scratch: Scratch,
    transaction: Option<Transaction>,
    settings: BatchSettings,
    /// Tables that have a pending batch.
    unflushed: Vec<TableIndex>,
    /// Wire bytes applied since the batches' sizes were last measured.
    unmeasured: usize,
}

/// Wire bytes between two measurements of the batches' sizes.
const MEASURE_EVERY: usize = 128 << 10;

impl<D: Destination> Applier<D> {
    pub(in crate::replication) fn new(
        tables: Vec<(Arc<Table<D>>, TableSpec)>,
        inserter: Arc<Inserter<D>>,
        checkpoint: Arc<Checkpoint>,
        witness: Witness,
        settings: BatchSettings,
    ) -> Self {
        Applier {
            tables: StreamTables::new(tables),
            inserter,
            checkpoint,
            witness,
            relations: HashMap::new(),
            last_announced: None,
            deferred_relations: HashMap::new(),
            scratch: Scratch::default(),
            transaction: None,
            settings,
            unflushed: Vec::new(),
            unmeasured: 0,
        }
    }

    /// Takes a table's pending batch, and a guard for the transaction being received, for a task that works
    /// on the table after the rows before it. `None` outside of a transaction.
    pub(super) fn begin_work(
        &mut self,
        index: TableIndex,
    ) -> Option<(Option<PendingBatch<D>>, CheckpointGuard)> {
        let guard = self.checkpoint.guard(self.transaction?.committed_at);
        let mut batch = self.take_batch(index);
        if let Some(batch) = &mut batch {
            batch.account(&self.inserter.total_bytes);
        }
        Some((batch, guard))
    }

    /// The commit of the transaction being received lies before here.
    pub(super) fn after_commit(&self) -> Lsn {
        Lsn(self.transaction.map_or(0, |transaction| transaction.commit.0 + 1))
    }

    /// The commit of the transaction being received.
    pub(super) fn commit(&self) -> Lsn {
        self.transaction.map(|transaction| transaction.commit).unwrap_or_default()
    }

    /// Whether the stream is between Begin and Commit.
    pub(super) fn in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    /// Whether [`Applier::enforce_memory_limit`] is due.
    #[inline]
    pub(super) fn memory_check_due(&self) -> bool {
        self.unmeasured >= MEASURE_EVERY
    }

    /// Applies one message of the stream, of a change that is in the log at `at`.
    ///
    /// # Errors
    /// A message that can't be decoded or breaks the protocol; [`Error::LogTooLong`].
    #[inline]
    pub(super) fn apply(&mut self, at: Lsn, data: &[u8]) -> Result<Step<D>, Error> {
        self.unmeasured += data.len();
        if let Some(transaction) = &mut self.transaction {
            transaction.at = at;
        }
        let message = pgoutput::decode(data, &mut self.scratch.old, &mut self.scratch.new)
            .map_err(crate::postgres::Error::from)?;
        match message {
            Message::Insert { relation } => self.row(data, relation, RowChange::Insert),
            Message::Update { relation, old } => self.row(data, relation, RowChange::Update(old)),
            Message::Delete { relation, old } => self.row(data, relation, RowChange::Delete(old)),
            Message::Begin { final_lsn: commit, commit_time: committed_at, xid } => {
                require_room(commit)?;
                let transaction = Transaction { xid, commit, committed_at, at };
                self.witness.meet(transaction.mark())?;
                self.transaction = Some(transaction);
                Ok(Step::Done)
            }
            Message::Commit { end_lsn, .. } => {
                let commit = self.transaction.take().map(Transaction::mark);
                self.checkpoint.received(end_lsn, commit);
                Ok(Step::Done)
            }
            Message::Relation(relation) => Ok(Step::Relation(relation)),
            Message::Truncate { relations, .. } => self.truncated(&relations),
            _ => Ok(Step::Done),
        }
    }

    /// Appends the rows that a change makes to its table's batch.
    #[inline]
    fn row(&mut self, data: &[u8], relation: u32, change: RowChange) -> Result<Step<D>, Error> {
        let transaction = self.transaction.ok_or(Error::Protocol("a row outside a transaction"))?;
        let Transaction { xid, commit, committed_at, at } = transaction;
        let Some(mapping) = self.relations.get(&relation) else {
            return self.row_of_deferred_relation(relation, commit);
        };
        let Some(mapping) = mapping else { return Ok(Step::Done) };
        let index = mapping.table;
        let entry = &mut self.tables[index];
        // Counted before any filter: a transaction has the same versions each time that it is sent.
        let version = entry.steps.change(commit, at);
        if entry.table.failed() || commit <= entry.snapshot_lsn {
            return Ok(Step::Done);
        }
        if !entry.spec.operations.contains(change.operation()) {
            return Ok(Step::Done);
        }
        if let RowChange::Update(old) | RowChange::Delete(old) = change
            && mapping.identity_differs(old, &self.scratch)
        {
            return Ok(Step::IdentityDiffers(index));
        }
        let mut position = Position::from(version);
        if !entry.schema.kind.is_keyed() {
            match keyless_change(entry, index, change, transaction, &self.checkpoint) {
                Keyless::Apply(ordinal) => position.ordinal = ordinal,
                Keyless::Instead(step) => return Ok(step),
            }
        }
        if entry.due && entry.pending.as_ref().is_some_and(|batch| batch.last != Some(version)) {
            try_insert(&self.inserter, &mut self.unflushed, index, entry);
        }
        let batch = match &mut entry.pending {
            Some(batch) => batch,
            none => {
                let values = match self.inserter.new_batch(&entry.schema) {
                    Ok(values) => values,
                    Err(error) => return Ok(Step::Fail(index, error)),
                };
                let guard = self.checkpoint.guard(committed_at);
                self.unflushed.push(index);
                none.insert(PendingBatch::new(values, Arc::clone(&entry.schema), guard))
            }
        };
        let pushed = push(batch, mapping, change, (data, position), &mut self.scratch);
        if !batch.deferred.is_empty() {
            batch.deferred.written_by(xid);
        }
        Ok(match pushed {
            Ok(()) => Step::Done,
            Err(error) => Step::Fail(index, Error::value(&entry.schema, &error)),
        })
    }

    /// What to do about a message of `bytes` of which only this beginning is there.
    pub(super) fn too_long(&mut self, beginning: &[u8], bytes: usize) -> Step<D> {
        let relation = pgoutput::decode_beginning(beginning, &mut self.scratch.new);
        let mapping = relation.and_then(|oid| self.relations.get(&oid)).and_then(Option::as_ref);
        let Some(mapping) = mapping else { return Step::Done };
        let entry = &self.tables[mapping.table];
        if entry.table.failed() {
            return Step::Done;
        }
        let key = mapping.key_shown(beginning, &self.scratch.new);
        Step::Fail(mapping.table, Error::too_long(&entry.schema, bytes, key.as_deref()))
    }

    /// A row of a relation that has no mapping: passed over when it is in a copy already.
    fn row_of_deferred_relation(&mut self, relation: u32, commit: Lsn) -> Result<Step<D>, Error> {
        match self.deferred_relations.entry(relation) {
            Entry::Vacant(_) => Err(Error::Protocol("a row of a relation never announced")),
            Entry::Occupied(deferred) if commit <= self.tables[deferred.get().0].snapshot_lsn => {
                Ok(Step::Done)
            }
            Entry::Occupied(deferred) => Ok(Step::NeedsRelation(Box::new(deferred.remove().1))),
        }
    }

    /// The number of the transaction being received.
    pub(super) fn xid(&self) -> Option<u32> {
        self.transaction.map(|transaction| transaction.xid)
    }

    /// Whether the transaction being received is in a table's copy already.
    pub(super) fn is_in_snapshot(&self, index: TableIndex) -> bool {
        self.transaction.is_some_and(|transaction| transaction.commit <= self.tables[index].snapshot_lsn)
    }

    /// Keeps a relation until a row needs it.
    pub(super) fn defer_relation(&mut self, index: TableIndex, relation: Relation) {
        self.relations.remove(&relation.oid);
        self.deferred_relations.insert(relation.oid, (index, relation));
    }

    /// Whether a table's batch has whole steps only.
    pub(super) fn is_whole(&self, index: TableIndex) -> bool {
        self.tables[index].is_whole(self.transaction)
    }

    /// Takes a table's pending batch, to insert it or to set it aside.
    pub(super) fn take_batch(&mut self, index: TableIndex) -> Option<PendingBatch<D>> {
        self.unflushed.retain(|unflushed| *unflushed != index);
        self.tables[index].pending.take()
    }

    /// Remembers what a relation is; `None` where it is not ours.
    pub(super) fn set_mapping(&mut self, oid: u32, mapping: Option<RelationMapping>) {
        self.deferred_relations.remove(&oid);
        self.relations.insert(oid, mapping);
    }

    /// Whether a relation is mapped to one of our tables.
    pub(super) fn is_mapped(&self, oid: u32) -> bool {
        self.relations.get(&oid).is_some_and(Option::is_some)
    }

    /// Which of our tables the transaction being received has truncated, but for those whose copy shows that
    /// already.
    ///
    /// # Errors
    /// [`Error::Protocol`] outside of a transaction.
    fn truncated(&mut self, relations: &[u32]) -> Result<Step<D>, Error> {
        let outside = Error::Protocol("TRUNCATE outside a transaction");
        let Transaction { xid, commit, committed_at, at } = self.transaction.ok_or(outside)?;
        let mut truncated = Vec::new();
        let mappings = relations.iter().filter_map(|oid| self.relations.get(oid)?.as_ref());
        for index in mappings.map(|mapping| mapping.table) {
            let entry = &self.tables[index];
            if entry.table.failed()
                || commit <= entry.snapshot_lsn
                || !entry.spec.operations.contains(Operation::Truncate)
            {
                continue;
            }
            let filter = &entry.table.snapshot_filter;
            match filter.decide(xid, commit, || self.checkpoint.guard(committed_at)) {
                Decision::Apply => truncated.push(index),
                Decision::Skip => {}
                Decision::Wait => return Ok(Step::AwaitSnapshot(Arc::clone(&entry.table))),
            }
        }
        let version = |index| (index, self.tables[index].steps.truncate(commit, at));
        Ok(Step::Truncate(truncated.into_iter().map(version).collect()))
    }

    /// Starts the insert of a table's batch, after the one before it.
    ///
    /// # Errors
    /// [`Error::Task`] when the permit is closed, which nothing does.
    pub(super) async fn flush(&mut self, index: TableIndex) -> Result<(), Error> {
        let permit = Arc::clone(&self.tables[index].table.insert_permit)
            .acquire_owned()
            .await
            .map_err(|closed| Error::Task(closed.to_string()))?;
        insert(&self.inserter, &mut self.unflushed, index, &mut self.tables[index], permit);
        Ok(())
    }

    /// Starts the insert of a table's batch, or leaves it due: until its last step is over, or the insert
    /// before it.
    pub(super) fn try_flush(&mut self, index: TableIndex) {
        let entry = &mut self.tables[index];
        entry.due = true;
        if entry.is_whole(self.transaction) {
            try_insert(&self.inserter, &mut self.unflushed, index, entry);
        }
    }

    /// Starts every insert that is due, and says when the next one will be.
    ///
    /// A batch is due when its table's last insert was begun twice that insert's duration ago (so a busy
    /// table gathers more rows instead of making more parts), and at the latest after
    /// `batch.maxDelayMilliseconds`. While there is a backlog, batches grow to full size instead.
    pub(super) fn flush_due(&mut self, backlog: bool) -> Option<Instant> {
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        for index in self.unflushed.clone() {
            let Some(due) = self.tables[index].insert_due(self.settings.max_delay, backlog) else { continue };
            if due <= now {
                self.try_flush(index);
            } else {
                next = Some(next.map_or(due, |next| next.min(due)));
            }
        }
        next
    }

    /// Keeps the batches within the Mirror's memory: starts inserts of large ones, and waits when all of it
    /// is used.
    ///
    /// Where steps that are not over use all of it alone, one of them is inserted in parts: of such a step
    /// the insert that comes last counts, so for it the order of inserts matters.
    ///
    /// # Errors
    /// As [`Applier::flush`].
    pub(super) async fn enforce_memory_limit(&mut self) -> Result<(), Error> {
        self.unmeasured = 0;
        let total = Arc::clone(&self.inserter.total_bytes);
        for index in self.unflushed.clone() {
            let Some(batch) = &mut self.tables[index].pending else { continue };
            batch.account(&total);
            if batch.bytes() >= self.settings.max_bytes / 4 {
                self.try_flush(index);
            }
        }
        while total.load(Ordering::Relaxed) >= self.settings.max_bytes {
            let in_parts = self.pending_bytes() >= self.settings.max_bytes;
            match self.fullest(|entry| in_parts || entry.is_whole(self.transaction)) {
                Some(index) => self.flush(index).await?,
                None => self.inserter.ended.notified().await,
            }
        }
        Ok(())
    }

    /// Bytes in pending batches.
    fn pending_bytes(&self) -> usize {
        self.unflushed.iter().map(|index| self.tables[*index].pending_bytes()).sum()
    }

    fn fullest(&self, may_go: impl Fn(&StreamTable<D>) -> bool) -> Option<TableIndex> {
        let tables = self.unflushed.iter().copied().filter(|index| may_go(&self.tables[*index]));
        tables.max_by_key(|index| self.tables[*index].pending_bytes())
    }

    /// Starts and awaits every insert. What ends within a step is not inserted, and its guard stays: it is
    /// sent again.
    ///
    /// # Errors
    /// As [`Applier::flush`].
    pub(super) async fn drain(&mut self) -> Result<(), Error> {
        for index in self.unflushed.clone() {
            if self.is_whole(index) {
                self.flush(index).await?;
            } else if let Some(batch) = self.take_batch(index) {
                batch.release(&self.inserter.total_bytes);
                std::mem::forget(batch.guard);
            }
        }
        self.await_inserts().await
    }

    /// Awaits the inserts in flight, without starting any.
    ///
    /// # Errors
    /// As [`Applier::flush`].
    pub(super) async fn await_inserts(&self) -> Result<(), Error> {
        for entry in self.tables.iter() {
            let permit = entry.table.insert_permit.acquire().await;
            drop(permit.map_err(|closed| Error::Task(closed.to_string()))?);
        }
        Ok(())
    }
}

/// Refuses a log that is longer than versions have room for.
///
/// # Errors
/// [`Error::LogTooLong`]
pub(in crate::replication) fn require_room(position: Lsn) -> Result<(), Error> {
    if position < Version::LIMIT { Ok(()) } else { Err(Error::LogTooLong { position }) }
}

/// Whether a change of a table without a key is applied, and with which ordinal.
fn keyless_change<D: Destination>(
    entry: &mut StreamTable<D>,
    index: TableIndex,
    change: RowChange,
    Transaction { xid, commit, committed_at, .. }: Transaction,
    checkpoint: &Arc<Checkpoint>,
) -> Keyless<D> {
    match entry.table.snapshot_filter.decide(xid, commit, || checkpoint.guard(committed_at)) {
        Decision::Apply => {}
        Decision::Skip => return Keyless::Instead(Step::Done),
        Decision::Wait => return Keyless::Instead(Step::AwaitSnapshot(Arc::clone(&entry.table))),
    }
    match change {
        RowChange::Insert | RowChange::Update(OldTuple::Full) | RowChange::Delete(OldTuple::Full) => {}
        _ => {
            let error = describe::without_old_rows(&entry.schema);
            return Keyless::Instead(Step::Fail(index, error));
        }
    }
    Keyless::Apply(entry.next_ordinal(commit))
}

/// Appends the rows that a change makes: the tombstone of an old row, then the new row.
#[inline]
fn push<D: Destination>(
    batch: &mut PendingBatch<D>,
    mapping: &RelationMapping,
    change: RowChange,
    (data, position): (&[u8], Position),
    scratch: &mut Scratch,
) -> Result<(), ValueError> {
    match change {
        RowChange::Insert => {
            batch.counts.inserted += 1;
            batch.push(mapping.tuple(data, TupleSide::New, scratch), position.second(), Op::Upsert)
        }
        RowChange::Delete(_) => {
            batch.counts.deleted += 1;
            batch.push(mapping.tuple(data, TupleSide::Old, scratch), position, Op::Delete)
        }
        RowChange::Update(old) => {
            batch.counts.updated += 1;
            mapping.fill_from_old(old, scratch);
            if !batch.schema.kind.is_keyed() || (old != OldTuple::None && mapping.key_changed(data, scratch))
            {
                batch.push(mapping.tuple(data, TupleSide::Old, scratch), position, Op::Delete)?;
            }
            batch.push(mapping.tuple(data, TupleSide::New, scratch), position.second(), Op::Upsert)
        }
    }
}

/// Starts the insert of a table's batch, unless the one before it is still under way.
fn try_insert<D: Destination>(
    inserter: &Arc<Inserter<D>>,
    unflushed: &mut Vec<TableIndex>,
    index: TableIndex,
    entry: &mut StreamTable<D>,
) {
    if let Ok(permit) = Arc::clone(&entry.table.insert_permit).try_acquire_owned() {
        insert(inserter, unflushed, index, entry, permit);
    }
}

fn insert<D: Destination>(
    inserter: &Arc<Inserter<D>>,
    unflushed: &mut Vec<TableIndex>,
    index: TableIndex,
    entry: &mut StreamTable<D>,
    permit: OwnedSemaphorePermit,
) {
    unflushed.retain(|unflushed| *unflushed != index);
    entry.due = false;
    if let Some(mut batch) = entry.pending.take() {
        batch.account(&inserter.total_bytes);
        entry.insert_started = Instant::now();
        inserter.spawn(Arc::clone(&entry.table), batch, permit);
    }
}
