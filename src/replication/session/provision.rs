//! Brings source and destination to where streaming can start: publication, slot, target tables, records.

use super::{
    add_tables::{NewTable, add_tables, describe_new_tables},
    claims::{self, Claim, Claimed, Taken},
    context::ProvisionContext,
    failover::Failover,
    known_tables::{check_targets, compare_specs, prune_removed_tables, reconcile_tables},
    position_check::{check_position, note_unconfirmed},
    publication::publish,
    resync::{self, TableResyncs},
    slot::ensure_slot,
    timeline::SourceTimeline,
};
use crate::{
    model::{Lsn, Progress, ReplicatorConfig, SnapshotMode},
    postgres::publication::Publish,
    replication::{
        Destination, Error, Refused, snapshot,
        table::{
            record::{FormerTable, TablePhase, TableRecord},
            store::{MirrorState, SourceRecord},
        },
    },
};

/// The state of a Mirror once everything it needs exists.
pub(super) struct Provisioned {
    /// The durable state, with a record for each table.
    pub(super) state: MirrorState,
    /// Whether the slot is older than the publication of new tables: those without a plan must wait for their
    /// writers.
    pub(super) slot_predates_publication: bool,
    /// Where the old timeline was left, if the source was followed to a promoted standby just now.
    pub(super) failed_over: Option<Lsn>,
    /// Tables of which there is no record because they can't be added yet.
    pub(super) refused: Refused,
}

/// What is needed to bring a Mirror to where streaming can start.
pub(super) struct Provisioner<'a, D: Destination> {
    pub(super) context: ProvisionContext<'a, D>,
    pub(super) timeline: &'a SourceTimeline,
    pub(super) progress: &'a Progress,
    /// Whether a copy of this process is at work; if not, nothing of an earlier one becomes visible any more.
    pub(super) copying: bool,
    /// Tables that the checks keep from being added.
    pub(super) refused: Refused,
}

impl<D: Destination> Provisioner<'_, D> {
    /// Makes what is missing and checks what is there. Idempotent; never makes a second slot for a started
    /// Mirror.
    ///
    /// # Errors
    /// What the servers answer, and [`Error`]'s variants for a lost slot, a changed publication or another
    /// source.
    pub(super) async fn provision(mut self) -> Result<Provisioned, Error> {
        let (mut state, claims) = self.load().await?;
        if state.source.as_ref().is_some_and(|source| source.finished) {
            check_finished(self.context.config, &state)?;
            return Ok(Provisioned {
                state,
                slot_predates_publication: false,
                failed_over: None,
                refused: Refused::new(),
            });
        }
        state.source.as_ref().map_or(Ok(()), SourceRecord::check_versions)?;
        self.progress.set_warning(resync::unknown_names(self.context.config, &state));
        let mut resyncs = resync::take_resync_tables(self.context.config, &mut state);
        resync::take_healed(&mut state, &mut resyncs);
        let failed_over = self.check_source(&mut state, &mut resyncs).await?;
        let Claimed { taken, unwanted } = self.claim_targets(&mut state, claims).await?;
        compare_specs(&self.context, &mut state).await?;
        let mut new = describe_new_tables(&self.context, &mut state, &mut resyncs, &mut self.refused).await?;
        self.put_off(&mut state, &mut resyncs).await?;
        self.refused.retain(|id, _| !state.tables.contains_key(id));
        if state.source.is_none() && new.is_empty() {
            return Err(Error::NoTableAdmitted { refused: self.refused });
        }
        let (slot, slot_predates_publication) = self.publish(&mut state, &mut new).await?;
        prune_removed_tables(&self.context, &mut state).await?;
        claims::release(unwanted, self.context.store).await?;
        self.bring_to_stream(&mut state, new, &taken).await?;
        self.record_source(&mut state, resyncs.value, slot, failed_over).await?;
        Ok(Provisioned { state, slot_predates_publication, failed_over, refused: self.refused })
    }

    /// Reads the records and the claims, after what an earlier copy may have on its way has ended; and
    /// releases everything where a resync is due.
    async fn load(&mut self) -> Result<(MirrorState, Vec<Claim>), Error> {
        let ProvisionContext { config, destination, store, .. } = self.context;
        destination.prepare().await?;
        let (mut state, claims) = tokio::try_join!(store.take(), claims::claims(destination))?;
        let unfinished =
            |record: &TableRecord| record.phase == TablePhase::Snapshotting || !record.chunks.is_empty();
        if !self.copying && state.tables.values().any(unfinished) {
            snapshot::end_earlier_inserts(destination, &config.mirror.fence()).await?;
        }
        resync::release_if_due(&self.context, &mut state, &mut self.refused).await?;
        self.timeline.check_system(state.source.as_ref())?;
        self.timeline.check_room()?;
        Ok((state, claims))
    }

    /// Follows the source to another timeline, and compares slot and source with the position on record.
    /// Gives where the recorded timeline was left, if it was.
    async fn check_source(
        &self,
        state: &mut MirrorState,
        resyncs: &mut TableResyncs,
    ) -> Result<Option<Lsn>, Error> {
        let switchpoint = match &state.source {
            Some(source) => self.timeline.switchpoint(source)?,
            None => None,
        };
        if let Some(at) = switchpoint {
            let failover = Failover { context: &self.context, found: self.timeline.timeline(), at };
            failover.follow(state, resyncs).await?;
        }
        note_unconfirmed(&self.context, self.timeline, state).await?;
        check_position(&self.context, self.timeline, state).await?;
        Ok(switchpoint)
    }

    async fn claim_targets(&self, state: &mut MirrorState, found: Vec<Claim>) -> Result<Claimed, Error> {
        let ProvisionContext { config, destination, store, .. } = self.context;
        let claimed = claims::claim_all(config, destination, store, found).await?;
        let free = |record: &TableRecord| !claimed.taken.contains_key(&record.schema.target);
        // What waited for another Mirror to release its target is added as if it were new.
        state.tables.retain(|_, record| !(claims::waits_for_target(record) && free(record)));
        Ok(claimed)
    }

    /// Remembers of tables that are to be resynced and can't be added yet that their rows are to be replaced
    /// when they are.
    async fn put_off(&self, state: &mut MirrorState, resyncs: &mut TableResyncs) -> Result<(), Error> {
        for (id, record) in std::mem::take(&mut resyncs.records) {
            let former = self.context.store.forget_table(&record, true).await?;
            state.former.insert(id, former);
        }
        Ok(())
    }

    /// Makes publication and slot, in this order, and records the source. Gives the slot's position, and
    /// whether it was there before.
    async fn publish(&self, state: &mut MirrorState, new: &mut [NewTable]) -> Result<(Lsn, bool), Error> {
        let ProvisionContext { config, store, .. } = self.context;
        for what in Publish::all(config) {
            publish(&self.context, state, new, what).await?;
        }
        let making = self.timeline.position(config, Lsn::ZERO);
        let announce = || store.save_position(&making);
        let (start, existed) = ensure_slot(&self.context, state, self.progress, announce).await?;
        if state.source.is_none() {
            let resync = state.resync.as_ref().map(|resync| resync.value.clone());
            let record = self.timeline.new_record(start, resync);
            let position = self.timeline.position(config, start);
            store.save_source(&record, Some(&position)).await?;
            (state.source, state.position) = (Some(record), Some(position));
        }
        Ok((start, existed))
    }

    /// Brings known tables up to catalog and target, and adds the new ones.
    async fn bring_to_stream(
        &self,
        state: &mut MirrorState,
        new: Vec<NewTable>,
        taken: &Taken,
    ) -> Result<(), Error> {
        check_targets(&self.context, state, taken).await?;
        reconcile_tables(&self.context, state).await?;
        add_tables(&self.context, state, new, taken).await?;
        self.end_resync(state).await
    }

    /// Ends a resync whose tables were added. Those that were refused are added later, over the rows that
    /// they have.
    async fn end_resync(&self, state: &mut MirrorState) -> Result<(), Error> {
        if state.resync.is_none() {
            return Ok(());
        }
        let waiting: Vec<FormerTable> = self
            .refused
            .keys()
            .map(|id| {
                let record = state.former.get(id).and_then(|former| former.record.clone());
                FormerTable { table: id.clone(), record, replace: true }
            })
            .collect();
        self.context.store.end_resync(&waiting).await?;
        state.resync = None;
        state.former.extend(waiting.into_iter().map(|former| (former.table.clone(), former)));
        Ok(())
    }

    /// Records the server as it is now, with the resync that is done, where the slot is at `slot`.
    async fn record_source(
        &self,
        state: &mut MirrorState,
        resync: Option<String>,
        slot: Lsn,
        failed_over: Option<Lsn>,
    ) -> Result<(), Error> {
        let Some(source) = &mut state.source else { return Ok(()) };
        let resync = resync.or_else(|| source.resync.clone());
        let now = self.timeline.record(SourceRecord { resync, ..source.clone() });
        if now.timeline != source.timeline {
            // What the slot has of the new timeline; further positions of the old one say nothing there.
            state.position = Some(self.timeline.position(self.context.config, slot));
        }
        if now != *source {
            self.context.store.save_source(&now, state.position.as_ref()).await?;
        }
        if now.timeline != source.timeline {
            tracing::warn!(from = source.timeline, to = now.timeline, at = ?failed_over, "a standby was promoted; it is followed");
        }
        *source = now;
        Ok(())
    }
}

/// A copy that is over can't be continued: its slot is gone, so changes made since would be missing.
fn check_finished(config: &ReplicatorConfig, state: &MirrorState) -> Result<(), Error> {
    let same_tables = config.tables.len() == state.tables.len()
        && config
            .tables
            .iter()
            .all(|spec| state.tables.get(&spec.id).is_some_and(|found| found.spec == *spec));
    if config.snapshot.mode == SnapshotMode::InitialOnly && same_tables {
        return Ok(());
    }
    Err(Error::CopyFinished)
}
