//! Applies decoded messages: rows into batches, batches into inserts, and the rare rest into steps for the stream.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::sync::OwnedSemaphorePermit;

use super::{
    batch::Building,
    checkpoint::{Checkpoint, Commit, Hold, PgMicros},
    inserter::Inserter,
    row::{KnownRelation, Scratch, Which},
};
use crate::{
    model::{BatchSettings, Lsn, Position, Steps, TableKind, TableSchema, TableSpec, Version},
    postgres::pgoutput::{self, Message, OldTuple, Relation},
    replication::{
        Destination, Error, Op,
        position::Witness,
        schema_change,
        table::{Table, Verdict},
    },
};

/// A table as the stream sees it.
pub(super) struct Slot<D: Destination> {
    pub(super) table: Arc<Table<D>>,
    pub(super) spec: TableSpec,
    pub(super) schema: Arc<TableSchema>,
    /// Changes up to here are in the table's copy.
    covered: Lsn,
    building: Option<Building<D>>,
    /// Whether the batch is to be inserted as soon as it ends with a step.
    due: bool,
    /// The steps of the transaction being received.
    steps: Steps,
    /// The commit LSN and ordinal of the next change, where there is no key.
    next: (Lsn, u64),
    /// When the last insert began.
    started: Instant,
}

impl<D: Destination> Slot<D> {
    /// The ordinal of a change in the transaction with this commit LSN: changes are counted by table, so that it is the same each
    /// time, whatever else is sent. Each has two, for an update is two rows.
    fn next_ordinal(&mut self, commit: Lsn) -> u64 {
        if self.next.0 != commit {
            self.next = (commit, 0);
        }
        let ordinal = self.next.1;
        self.next.1 += 2;
        ordinal
    }

    /// Whether what is being built has whole steps only, now that the stream has come as far as `transaction` says. Rows of one version
    /// may be of one key: in one insert the last of them counts, in two the one that is inserted last.
    fn is_whole(&self, transaction: Option<Transaction>) -> bool {
        let last = self.building.as_ref().and_then(|building| building.last);
        match (last, transaction) {
            (Some(last), Some(transaction)) => self.steps.is_over(last, transaction.commit, transaction.at),
            _ => true,
        }
    }
}

/// The transaction being received.
#[derive(Clone, Copy)]
struct Transaction {
    xid: u32,
    commit: Lsn,
    committed_at: PgMicros,
    /// Where in the log its latest change is.
    at: Lsn,
}

impl Transaction {
    fn mark(self) -> Commit {
        Commit { lsn: self.commit, xid: self.xid, at: self.committed_at }
    }
}

/// What a message does to a row.
#[derive(Clone, Copy)]
enum Change {
    Insert,
    Update(OldTuple),
    Delete(OldTuple),
}

/// What is left to do after a message; all but `Done` are rare.
pub(super) enum Step<D: Destination> {
    Done,
    /// A table's columns were announced.
    Relation(Relation),
    /// Slots' tables were truncated, with these versions; `None` where there is no room for one.
    Truncate(Vec<(usize, Option<Version>)>),
    /// A row is the first to need its relation, which was left unjudged: to be announced, then the message applied again.
    Late(Box<Relation>),
    /// The same message has to be applied again once a table's copy has its snapshot.
    Wait(Arc<Table<D>>),
    /// A row of a table that shows a partition's replica identity to be another one than the table's.
    IdentityDiffers(usize),
    /// A row can't be stored.
    Fail(usize, Error),
}

/// Turns messages into rows of batches, within the Mirror's memory.
pub(in crate::replication) struct Applier<D: Destination> {
    pub(super) slots: Vec<Slot<D>>,
    pub(super) inserter: Arc<Inserter<D>>,
    pub(super) checkpoint: Arc<Checkpoint>,
    /// The transaction by which the source proves to be the one of before.
    pub(super) witness: Witness,
    /// `None` marks a relation that is not ours.
    relations: HashMap<u32, Option<KnownRelation>>,
    /// The slot of the relation that was announced last, if it is one of ours: a partition is announced right behind its root.
    pub(super) announced: Option<usize>,
    /// Relations of rows that are in a copy already, which don't fit the table as it is now: a later row says whether they matter.
    unjudged: HashMap<u32, (usize, Relation)>,
    scratch: Scratch,
    transaction: Option<Transaction>,
    settings: BatchSettings,
    /// Slots that have a batch being built.
    dirty: Vec<usize>,
    /// Wire bytes applied since the batches' sizes were last looked at.
    unmeasured: usize,
}

/// Wire bytes between two looks at the batches' sizes.
const MEASURE_EVERY: usize = 128 << 10;

impl<D: Destination> Applier<D> {
    pub(in crate::replication) fn new(
        tables: Vec<(Arc<Table<D>>, TableSpec)>,
        inserter: Arc<Inserter<D>>,
        checkpoint: Arc<Checkpoint>,
        witness: Witness,
        settings: BatchSettings,
    ) -> Self {
        let long_ago = Instant::now().checked_sub(Duration::from_secs(3600)).unwrap_or_else(Instant::now);
        let slot = |(table, spec): (Arc<Table<D>>, TableSpec)| {
            table.sieve.begin_stream();
            let (schema, covered) = (Arc::new(table.schema()), table.record().covered);
            let (steps, next) = (Steps::default(), (Lsn::ZERO, 0));
            Slot { schema, covered, table, spec, building: None, due: false, steps, next, started: long_ago }
        };
        let slots = tables.into_iter().map(slot).collect();
        Applier {
            slots,
            inserter,
            checkpoint,
            witness,
            relations: HashMap::new(),
            announced: None,
            unjudged: HashMap::new(),
            scratch: Scratch::default(),
            transaction: None,
            settings,
            dirty: Vec::new(),
            unmeasured: 0,
        }
    }

    /// Takes what is being built for a slot, and a hold for the transaction being received: what a task does to the table behind the
    /// rows before it. `None` outside of a transaction.
    pub(super) fn begin_work(&mut self, slot: usize) -> Option<(Option<Building<D>>, Hold)> {
        let hold = self.checkpoint.hold(self.transaction?.committed_at);
        let mut building = self.take_building(slot);
        if let Some(building) = &mut building {
            building.account(&self.inserter.total_bytes);
        }
        Some((building, hold))
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

    /// Whether the batches' sizes should be looked at.
    #[inline]
    pub(super) fn wants_balance(&self) -> bool {
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
            Message::Insert { relation } => self.row(data, relation, Change::Insert),
            Message::Update { relation, old } => self.row(data, relation, Change::Update(old)),
            Message::Delete { relation, old } => self.row(data, relation, Change::Delete(old)),
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
            Message::Truncate { relations, .. } => Ok(self.truncated(&relations)),
            _ => Ok(Step::Done),
        }
    }

    /// Appends the rows that a change makes to its table's batch.
    #[inline]
    fn row(&mut self, data: &[u8], relation: u32, change: Change) -> Result<Step<D>, Error> {
        let Transaction { xid, commit, committed_at, at } =
            self.transaction.ok_or(Error::Protocol("a row outside a transaction"))?;
        let Some(known) = self.relations.get(&relation) else { return self.unjudged_row(relation, commit) };
        let Some(known) = known else { return Ok(Step::Done) };
        let Some(slot) = self.slots.get_mut(known.slot) else { return Ok(Step::Done) };
        // Before all that passes a change over: a transaction has the same versions each time that it is sent.
        let version = slot.steps.change(commit, at);
        if slot.table.failed() || commit <= slot.covered {
            return Ok(Step::Done);
        }
        if let Change::Update(old) | Change::Delete(old) = change
            && slot.schema.kind != TableKind::AppendOnly
            && known.identity_differs(old, &self.scratch)
        {
            return Ok(Step::IdentityDiffers(known.slot));
        }
        let (kind, mut at) = (slot.schema.kind, Position::from(version));
        if !kind.is_keyed() {
            match slot.table.sieve.judge(xid, commit, || self.checkpoint.hold(committed_at)) {
                Verdict::Take => {}
                Verdict::Leave => return Ok(Step::Done),
                Verdict::Wait => return Ok(Step::Wait(Arc::clone(&slot.table))),
            }
            match (kind, change) {
                (_, Change::Insert) => {}
                // Its publication does not send them, but somebody may have changed that.
                (TableKind::AppendOnly, _) => return Ok(Step::Done),
                (_, Change::Update(OldTuple::Full) | Change::Delete(OldTuple::Full)) => {}
                _ => return Ok(Step::Fail(known.slot, schema_change::without_old_rows(&slot.schema))),
            }
            at.ordinal = slot.next_ordinal(commit);
        }
        if slot.due && slot.building.as_ref().is_some_and(|building| building.last != Some(version)) {
            try_insert(&self.inserter, &mut self.dirty, known.slot, slot);
        }
        if slot.building.is_none() {
            let batch = match self.inserter.spares.take(&slot.schema) {
                Some(batch) => batch,
                None => match self.inserter.destination.batch(&slot.schema) {
                    Ok(batch) => batch,
                    Err(error) => return Ok(Step::Fail(known.slot, error.into())),
                },
            };
            let hold = self.checkpoint.hold(committed_at);
            slot.building = Some(Building::new(batch, Arc::clone(&slot.schema), hold));
            self.dirty.push(known.slot);
        }
        let Some(building) = slot.building.as_mut() else { return Ok(Step::Done) };
        let scratch = &mut self.scratch;
        let pushed = match change {
            Change::Insert => {
                building.counts.inserted += 1;
                building.push(known.tuple(data, Which::New, scratch), at.second(), Op::Upsert)
            }
            Change::Delete(_) => {
                building.counts.deleted += 1;
                building.push(known.tuple(data, Which::Old, scratch), at, Op::Delete)
            }
            Change::Update(old) => {
                building.counts.updated += 1;
                known.fill_from_old(old, scratch);
                let leaves = !kind.is_keyed() || (old != OldTuple::None && known.moved(data, scratch));
                let tombstone = if leaves {
                    building.push(known.tuple(data, Which::Old, scratch), at, Op::Delete)
                } else {
                    Ok(())
                };
                tombstone.and_then(|()| {
                    building.push(known.tuple(data, Which::New, scratch), at.second(), Op::Upsert)
                })
            }
        };
        if !building.waiting.is_empty() {
            building.waiting.written_by(xid);
        }
        Ok(match pushed {
            Ok(()) => Step::Done,
            Err(error) => Step::Fail(known.slot, Error::value(&slot.schema, &error)),
        })
    }

    /// What to do about a message of `bytes` of which only this beginning is there.
    pub(super) fn too_long(&mut self, beginning: &[u8], bytes: usize) -> Step<D> {
        let relation = pgoutput::decode_beginning(beginning, &mut self.scratch.new);
        let known = relation.and_then(|oid| self.relations.get(&oid)).and_then(Option::as_ref);
        let Some(known) = known else { return Step::Done };
        let Some(slot) = self.slots.get(known.slot).filter(|slot| !slot.table.failed()) else {
            return Step::Done;
        };
        let key = known.key_shown(beginning, &self.scratch.new);
        Step::Fail(known.slot, Error::too_long(&slot.schema, bytes, key.as_deref()))
    }

    /// A row of a relation that is not known: passed over when it is in a copy already.
    fn unjudged_row(&mut self, relation: u32, commit: Lsn) -> Result<Step<D>, Error> {
        let covered = |slot: usize| self.slots.get(slot).is_some_and(|slot| commit <= slot.covered);
        match self.unjudged.get(&relation) {
            Some((slot, _)) if covered(*slot) => Ok(Step::Done),
            Some(_) => match self.unjudged.remove(&relation) {
                Some((_, relation)) => Ok(Step::Late(Box::new(relation))),
                None => Ok(Step::Done),
            },
            None => Err(Error::Protocol("a row of a relation never announced")),
        }
    }

    /// The number of the transaction being received.
    pub(super) fn xid(&self) -> Option<u32> {
        self.transaction.map(|transaction| transaction.xid)
    }

    /// Whether the transaction being received is in a slot's copy already.
    pub(super) fn is_covered(&self, slot: usize) -> bool {
        let commit = self.transaction.map(|transaction| transaction.commit);
        self.slots.get(slot).is_some_and(|slot| commit.is_some_and(|commit| commit <= slot.covered))
    }

    /// Keeps a relation until a row needs it.
    pub(super) fn judge_later(&mut self, slot: usize, relation: Relation) {
        self.relations.remove(&relation.oid);
        self.unjudged.insert(relation.oid, (slot, relation));
    }

    /// Whether a slot's batch has whole steps only.
    pub(super) fn is_whole(&self, slot: usize) -> bool {
        self.slots.get(slot).is_none_or(|slot| slot.is_whole(self.transaction))
    }

    /// Takes what is being built for a slot, to insert it or to set it aside.
    pub(super) fn take_building(&mut self, slot: usize) -> Option<Building<D>> {
        self.dirty.retain(|dirty| *dirty != slot);
        self.slots.get_mut(slot).and_then(|slot| slot.building.take())
    }

    /// Remembers what a relation is.
    pub(super) fn know(&mut self, oid: u32, relation: Option<KnownRelation>) {
        self.unjudged.remove(&oid);
        self.relations.insert(oid, relation);
    }

    /// The slot of a relation, if it is ours.
    pub(super) fn slot_of(&self, oid: u32) -> Option<usize> {
        self.relations.get(&oid).and_then(Option::as_ref).map(|known| known.slot)
    }

    /// Which of our tables the transaction in hand has truncated, but for those whose copy shows that already.
    fn truncated(&mut self, relations: &[u32]) -> Step<D> {
        let mut slots = Vec::new();
        let Some(Transaction { xid, commit, committed_at, at }) = self.transaction else { return Step::Done };
        let known = relations.iter().filter_map(|oid| self.relations.get(oid)?.as_ref());
        for index in known.map(|known| known.slot) {
            let Some(slot) = self.slots.get(index) else { continue };
            if slot.table.failed() || commit <= slot.covered {
                continue;
            }
            match slot.table.sieve.judge(xid, commit, || self.checkpoint.hold(committed_at)) {
                Verdict::Take => slots.push(index),
                Verdict::Leave => {}
                Verdict::Wait => return Step::Wait(Arc::clone(&slot.table)),
            }
        }
        let versions = slots.into_iter().filter_map(|index| {
            let slot = self.slots.get_mut(index)?;
            Some((index, slot.steps.truncate(commit, at)))
        });
        Step::Truncate(versions.collect())
    }

    /// Starts the insert of a slot's batch, waiting for the one before it.
    ///
    /// # Errors
    /// [`Error::Task`] when the permit is closed, which nothing does.
    pub(super) async fn flush(&mut self, slot: usize) -> Result<(), Error> {
        let Some(table) = self.slots.get(slot).map(|slot| Arc::clone(&slot.table)) else { return Ok(()) };
        let permit = Arc::clone(&table.insert_permit)
            .acquire_owned()
            .await
            .map_err(|closed| Error::Task(closed.to_string()))?;
        self.start_insert(slot, permit);
        Ok(())
    }

    fn start_insert(&mut self, index: usize, permit: OwnedSemaphorePermit) {
        if let Some(slot) = self.slots.get_mut(index) {
            insert(&self.inserter, &mut self.dirty, index, slot, permit);
        }
    }

    /// Starts the insert of a slot's batch, or leaves it due: until its last step is over, or the insert before it.
    pub(super) fn try_flush(&mut self, index: usize) {
        let transaction = self.transaction;
        let Some(slot) = self.slots.get_mut(index) else { return };
        slot.due = true;
        if slot.is_whole(transaction) {
            try_insert(&self.inserter, &mut self.dirty, index, slot);
        }
    }

    /// Starts every insert that is due, and says when the next one will be.
    ///
    /// A batch is due when its table's last insert was begun twice that insert's duration ago (so a busy table gathers
    /// more rows instead of making more parts), and at the latest after `batch.maxDelayMilliseconds`. While a backlog
    /// is there batches grow to full size instead.
    pub(super) fn flush_due(&mut self, backlog: bool) -> Option<Instant> {
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        for index in self.dirty.clone() {
            let Some(slot) = self.slots.get(index) else { continue };
            let Some(building) = &slot.building else { continue };
            let latest = building.since + self.settings.max_delay;
            let paced = slot.started + slot.table.insert_time().saturating_mul(2);
            let due = if backlog { latest } else { paced.min(latest) };
            if due <= now {
                self.try_flush(index);
            } else {
                next = Some(next.map_or(due, |next| next.min(due)));
            }
        }
        next
    }

    /// Keeps the batches within the Mirror's memory: starts inserts of large ones, and waits when all of it is used.
    ///
    /// Where steps that are not over use all of it alone, one of them is inserted in parts: of such a step the insert that comes
    /// last counts, so for it the order of inserts matters.
    ///
    /// # Errors
    /// As [`Applier::flush`].
    pub(super) async fn balance(&mut self) -> Result<(), Error> {
        self.unmeasured = 0;
        let total = Arc::clone(&self.inserter.total_bytes);
        let mut largest: Option<(usize, usize)> = None;
        for index in self.dirty.clone() {
            let Some(building) = self.slots.get_mut(index).and_then(|slot| slot.building.as_mut()) else {
                continue;
            };
            building.account(&total);
            let bytes = building.bytes();
            if bytes >= self.settings.max_bytes / 4 {
                self.try_flush(index);
            } else if largest.is_none_or(|(_, most)| bytes > most) {
                largest = Some((index, bytes));
            }
        }
        while total.load(Ordering::Relaxed) >= self.settings.max_bytes {
            let in_parts = self.built_bytes() >= self.settings.max_bytes;
            match self.fullest(|slot| in_parts || slot.is_whole(self.transaction)) {
                Some(slot) => self.flush(slot).await?,
                None => self.inserter.ended.notified().await,
            }
        }
        Ok(())
    }

    /// Bytes in batches that are being built.
    fn built_bytes(&self) -> usize {
        let slots = self.dirty.iter().filter_map(|index| self.slots.get(*index));
        slots.filter_map(|slot| slot.building.as_ref()).map(Building::bytes).sum()
    }

    fn fullest(&self, may_go: impl Fn(&Slot<D>) -> bool) -> Option<usize> {
        let slots = self.dirty.iter().filter_map(|index| Some((*index, self.slots.get(*index)?)));
        let bytes = |slot: &Slot<D>| slot.building.as_ref().map_or(0, Building::bytes);
        slots.filter(|(_, slot)| may_go(slot)).max_by_key(|(_, slot)| bytes(slot)).map(|(index, _)| index)
    }

    /// Starts and awaits every insert. What ends within a step is not inserted, and its hold stays: it is sent again.
    ///
    /// # Errors
    /// As [`Applier::flush`].
    pub(super) async fn drain(&mut self) -> Result<(), Error> {
        for index in self.dirty.clone() {
            if self.is_whole(index) {
                self.flush(index).await?;
            } else if let Some(building) = self.take_building(index) {
                building.release(&self.inserter.total_bytes);
                std::mem::forget(building.hold);
            }
        }
        self.settle().await
    }

    /// Awaits the inserts in flight, without starting any.
    ///
    /// # Errors
    /// As [`Applier::flush`].
    pub(super) async fn settle(&self) -> Result<(), Error> {
        for slot in &self.slots {
            let permit = slot.table.insert_permit.acquire().await;
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

/// Starts the insert of a slot's batch, unless the one before it is still under way.
fn try_insert<D: Destination>(
    inserter: &Arc<Inserter<D>>,
    dirty: &mut Vec<usize>,
    index: usize,
    slot: &mut Slot<D>,
) {
    if let Ok(permit) = Arc::clone(&slot.table.insert_permit).try_acquire_owned() {
        insert(inserter, dirty, index, slot, permit);
    }
}

fn insert<D: Destination>(
    inserter: &Arc<Inserter<D>>,
    dirty: &mut Vec<usize>,
    index: usize,
    slot: &mut Slot<D>,
    permit: OwnedSemaphorePermit,
) {
    dirty.retain(|dirty| *dirty != index);
    slot.due = false;
    if let Some(mut building) = slot.building.take() {
        building.account(&inserter.total_bytes);
        slot.started = Instant::now();
        inserter.spawn(Arc::clone(&slot.table), building, permit);
    }
}
