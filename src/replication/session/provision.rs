//! Brings source and destination to where streaming can start: publication, slot, target tables, state.

use std::{collections::BTreeSet, convert::Infallible, time::Duration};

use futures::{StreamExt, stream};
use tokio_util::sync::CancellationToken;

use super::{
    admission::Refused,
    failover::{Failover, Origin},
    resync::{self, Apart},
};
use crate::{
    fault::Reason,
    model::{
        Lsn, MirrorFailure, MirrorIdentity, MirrorPhase, Progress, ReplicatorConfig, SnapshotMode, TableId,
        TableSchema, TableSpec,
    },
    postgres::{
        catalog::{self, CatalogFingerprint, LiveColumn, TableFacts},
        publication::{self, ColumnList, Member, Publish, PublishedTable},
        session::Session,
        slot::{self, SlotInfo},
        source_status::PublicationStatus,
        visibility,
    },
    replication::{
        Destination, Error, ErrorKind, Policy,
        error::failure_of_table,
        monitor::catalog_diff::Surroundings,
        policy,
        retry::RetryObserver,
        snapshot,
        stream::stream_fence,
        table::{
            named_columns::NamedColumns,
            schema,
            store::{
                FormerTable, MirrorState, PublishedAs, SourceRecord, StateStore, TablePhase, TableRecord,
            },
            targets::{self, Claim, Claimed, Taken},
        },
    },
};

/// How often the transactions that ran when the slot was made are looked at.
const POLL: Duration = Duration::from_millis(20);

/// Target tables made at the same time: there may be thousands, and the destination far away.
const JOINED_AT_ONCE: usize = 8;

/// Targets that are asked for their newest row at the same time: each answer takes a read of one column.
pub(in crate::replication) const ASKED_AT_ONCE: usize = 8;

/// Records written at once; that of a table with many columns is large.
const SAVED_AT_ONCE: usize = 64;

/// How long a slot is in the making before it is said what that waits for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where a Mirror stands once everything it needs exists.
pub(in crate::replication) struct Provisioned {
    /// The durable state, with a record for each table.
    pub(in crate::replication) state: MirrorState,
    /// Whether tables without a plan must wait for their writers: the slot is older than their publication.
    pub(in crate::replication) joining: bool,
    /// Where the old timeline was left, if the source was followed to a promoted standby just now.
    pub(in crate::replication) failed_over: Option<Lsn>,
    /// Tables of which there is no record because they can't join yet.
    pub(in crate::replication) refused: Refused,
}

/// What is needed to bring a Mirror to where streaming can start.
pub(in crate::replication) struct Provisioner<'a, D: Destination> {
    pub(in crate::replication) config: &'a ReplicatorConfig,
    pub(in crate::replication) session: &'a Session,
    pub(in crate::replication) origin: &'a Origin,
    pub(in crate::replication) destination: &'a D,
    pub(in crate::replication) store: &'a StateStore<D>,
    pub(in crate::replication) progress: &'a Progress,
    /// Whether a copy of this process goes on; if not, nothing of an earlier one becomes visible any more.
    pub(in crate::replication) copying: bool,
    /// Tables that the checks keep from joining.
    pub(in crate::replication) refused: Refused,
    pub(in crate::replication) stop: &'a CancellationToken,
    /// Hears of what is repeated for single tables.
    pub(in crate::replication) observer: &'a RetryObserver,
}

/// The comment that marks a publication as this Mirror's.
pub fn publication_comment(mirror: &MirrorIdentity) -> String {
    format!("walferry mirror {}", mirror.uid)
}

/// The publications that the Mirror reads.
pub(in crate::replication) fn publications(config: &ReplicatorConfig) -> Vec<String> {
    Publish::all(config).map(|what| what.name(&config.mirror)).collect()
}

impl<D: Destination> Provisioner<'_, D> {
    /// Makes what is missing and checks what is there. Idempotent; never makes a second slot for a started Mirror.
    ///
    /// # Errors
    /// What the servers answer, and [`Error`]'s variants for a lost slot, a changed publication or another source.
    pub(in crate::replication) async fn provision(self) -> Result<Provisioned, Error> {
        let Provisioner { config, session, origin, destination, store, progress, copying, .. } = self;
        let (mut refused, around) = (
            self.refused,
            Surroundings { config, session, destination, stop: self.stop, observer: self.observer },
        );
        destination.prepare().await?;
        let (mut state, claims) = tokio::try_join!(store.take(), targets::claims(destination))?;
        let unfinished =
            |record: &TableRecord| record.phase == TablePhase::Snapshotting || !record.chunks.is_empty();
        if !copying && state.tables.values().any(unfinished) {
            snapshot::end_earlier_inserts(destination, &config.mirror.fence()).await?;
        }
        resync::release_if_due(config, session, &mut state, store, &mut refused).await?;
        origin.check_system(state.source.as_ref())?;
        origin.check_room()?;
        if state.source.as_ref().is_some_and(|source| source.finished) {
            check_finished(config, &state)?;
            return Ok(Provisioned { state, joining: false, failed_over: None, refused: Refused::new() });
        }
        state.source.as_ref().map_or(Ok(()), SourceRecord::check_versions)?;
        progress.set_warning(resync::unknown_names(config, &state));
        let mut apart = resync::set_apart(config, &mut state);
        resync::take_healed(&mut state, &mut apart);
        let failed_over = state.source.as_ref().map(|source| origin.switch(source)).transpose()?.flatten();
        if let Some(at) = failed_over {
            let failover = Failover { around: &around, store, found: origin.timeline(), at };
            failover.follow(&mut state, &mut apart).await?;
        }
        note_unconfirmed(&around, origin, store, &mut state).await?;
        check_position(config, session, origin, &state).await?;
        let Claimed { taken, unwanted } = targets::claim_all(config, destination, store, claims).await?;
        let free = |record: &TableRecord| !taken.contains_key(&record.schema.target);
        // What waited for another Mirror to release its target joins as if it were new.
        state.tables.retain(|_, record| !(targets::waits_for_target(record) && free(record)));
        compare_specs(config, &mut state, store).await?;
        let mut new = describe(config, session, store, &mut state, (&mut apart, &mut refused)).await?;
        put_off(&mut apart, &mut state, store).await?;
        refused.retain(|id, _| !state.tables.contains_key(id));
        if state.source.is_none() && new.is_empty() {
            return Err(Error::NoTableAdmitted { refused });
        }
        for what in Publish::all(config) {
            publish(config, session, &state, &mut new, what).await?;
        }
        let making = origin.position(config, Lsn::ZERO);
        let (found, joining) =
            ensure_slot(config, session, &state, progress, || store.save_position(&making)).await?;
        if state.source.is_none() {
            let resync = state.resync.as_ref().map(|resync| resync.value.clone());
            let (record, position) = (origin.new_record(found, resync), origin.position(config, found));
            store.save_source(&record, Some(&position)).await?;
            (state.source, state.position) = (Some(record), Some(position));
        }
        forget_left(config, &mut state, store).await?;
        targets::release(unwanted, store).await?;
        check_targets(config, destination, &mut state, store, &taken).await?;
        bring_up(&around, &mut state, store).await?;
        join_all(&around, store, &mut state, new, &taken).await?;
        end_resync(&mut state, store, &refused).await?;
        if let Some(source) = &mut state.source {
            let resync = apart.value.or_else(|| source.resync.clone());
            let now = origin.record(SourceRecord { resync, ..source.clone() });
            if now.timeline != source.timeline {
                // What the slot has of the new timeline; further positions of the old one say nothing there.
                state.position = Some(origin.position(config, found));
            }
            if now != *source {
                store.save_source(&now, state.position.as_ref()).await?;
            }
            if now.timeline != source.timeline {
                tracing::warn!(from = source.timeline, to = now.timeline, at = ?failed_over, "a standby was promoted; it is followed");
            }
            *source = now;
        }
        Ok(Provisioned { state, joining, failed_over, refused })
    }
}

/// Fails those tables alone whose entries in the Mirror are others than when they joined. One whose entry is again as it was is
/// copied again: its changes were left out meanwhile.
async fn compare_specs<D: Destination>(
    config: &ReplicatorConfig,
    state: &mut MirrorState,
    store: &StateStore<D>,
) -> Result<(), Error> {
    for spec in &config.tables {
        let Some(record) = state.tables.get_mut(&spec.id) else { continue };
        let failed = record.phase == TablePhase::Failed;
        let error = Error::SpecChanged { table: spec.id.clone() };
        if record.spec != *spec && spec.continues(&record.spec) {
            record.spec = spec.clone();
            store.save_table(record).await?;
        }
        if record.spec != *spec && !failed {
            set_aside(config, record, error)?;
            store.save_table(record).await?;
        } else if record.spec == *spec && failed && record.reason == Some(Reason::SpecChanged) {
            record.phase = TablePhase::Streaming;
            record.set_reason(None, "");
            record.copy_anew = Some("its entry in the Mirror was another one for a while".to_owned());
        }
    }
    Ok(())
}

/// Remembers of tables that were set apart and can't join yet that their rows are to be replaced when they do.
async fn put_off<D: Destination>(
    apart: &mut Apart,
    state: &mut MirrorState,
    store: &StateStore<D>,
) -> Result<(), Error> {
    for (id, record) in std::mem::take(&mut apart.records) {
        let former = store.forget_table(&record, true).await?;
        state.former.insert(id, former);
    }
    Ok(())
}

/// Ends a resync whose tables have joined. Those that were refused join later, over the rows that they have.
async fn end_resync<D: Destination>(
    state: &mut MirrorState,
    store: &StateStore<D>,
    refused: &Refused,
) -> Result<(), Error> {
    if state.resync.is_none() {
        return Ok(());
    }
    let waiting: Vec<FormerTable> = refused
        .keys()
        .map(|id| {
            let record = state.former.get(id).and_then(|former| former.record.clone());
            FormerTable { table: id.clone(), record, replace: true }
        })
        .collect();
    store.end_resync(&waiting).await?;
    state.resync = None;
    state.former.extend(waiting.into_iter().map(|former| (former.table.clone(), former)));
    Ok(())
}

/// Compares a started Mirror's slot and source with the position on record, before anything is changed.
///
/// # Errors
/// [`Error::PositionUnknown`], and those of [`PositionRecord::check`].
async fn check_position(
    config: &ReplicatorConfig,
    session: &Session,
    origin: &Origin,
    state: &MirrorState,
) -> Result<(), Error> {
    if state.source.is_none() {
        return Ok(());
    }
    let name = config.mirror.slot_name();
    let Some(slot) = slot::read(session, &name).await? else { return Ok(()) };
    let Some(position) = &state.position else { return Err(Error::PositionUnknown { slot: name }) };
    position.check(&slot, origin.timeline(), catalog::is_standby(session).await?)
}

/// A source that was started again may be one that was restored, and lack what the destination has without having confirmed it: notes
/// the newest such transaction, which the source has to send once more.
///
/// A table whose rows ClickHouse can't read is set aside: nothing else would tell what its target has of transactions that are lost.
///
/// # Errors
/// What the destination answers.
async fn note_unconfirmed<D: Destination>(
    around: &Surroundings<'_, D>,
    origin: &Origin,
    store: &StateStore<D>,
    state: &mut MirrorState,
) -> Result<(), Error> {
    let (Some(source), Some(position)) = (&state.source, &mut state.position) else { return Ok(()) };
    if source.timeline != origin.timeline() || source.server_started == origin.server_started() {
        return Ok(());
    }
    let wanted = around.config.tables.iter().filter_map(|spec| state.tables.get(&spec.id));
    let going = wanted.filter(|record| record.phase != TablePhase::Failed);
    let asked: Vec<_> = going
        .map(|record| async { (record.schema.id.clone(), newest_streamed(around, &record.schema).await) })
        .collect();
    let answers: Vec<_> = stream::iter(asked).buffer_unordered(ASKED_AT_ONCE).collect().await;
    for (id, newest) in answers {
        match newest {
            Ok(newest) => {
                let unconfirmed = newest.filter(|newest| *newest >= position.lsn);
                position.unconfirmed = position.unconfirmed.max(unconfirmed);
            }
            Err(error) => {
                let Some(record) = state.tables.get_mut(&id) else { continue };
                set_aside(around.config, record, error)?;
                store.save_table(record).await?;
            }
        }
    }
    Ok(())
}

/// The newest transaction that a target has streamed rows of; `None` where what is wrong with the target is found when it is taken up.
async fn newest_streamed<D: Destination>(
    around: &Surroundings<'_, D>,
    schema: &TableSchema,
) -> Result<Option<Lsn>, Error> {
    let fence = stream_fence(&around.config.mirror.fence(), schema);
    let ask =
        || async { Ok::<_, Error>(around.destination.newest_streamed_version(schema, &fence).await?.lsn()) };
    match ask().await {
        Ok(newest) => Ok(Some(newest)),
        Err(Error::Destination(refusal)) if refusal.kind == ErrorKind::Unclear => {
            around.start(&schema.id, ask).await.map(Some)
        }
        Err(error) if matches!(policy(&error).0, Policy::FailTable | Policy::Stall) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Forgets the tables that the Mirror no longer asks for.
async fn forget_left<D: Destination>(
    config: &ReplicatorConfig,
    state: &mut MirrorState,
    store: &StateStore<D>,
) -> Result<(), Error> {
    let wanted: BTreeSet<&TableId> = config.tables.iter().map(|table| &table.id).collect();
    for record in state.tables.values().filter(|record| !wanted.contains(&record.schema.id)) {
        tracing::info!(table = %record.schema.id, "table left the mirror; its target stays");
        let former = store.forget_table(record, false).await?;
        state.former.insert(record.schema.id.clone(), former);
    }
    state.tables.retain(|id, _| wanted.contains(id));
    Ok(())
}

/// Sets tables aside whose targets are other Mirrors', or not the tables that they were.
async fn check_targets<D: Destination>(
    config: &ReplicatorConfig,
    destination: &D,
    state: &mut MirrorState,
    store: &StateStore<D>,
    taken: &Taken,
) -> Result<(), Error> {
    let is_going = |record: &TableRecord| record.phase != TablePhase::Failed;
    let schemas: Vec<&TableSchema> =
        state.tables.values().filter(|record| is_going(record)).map(|record| &record.schema).collect();
    let identities = destination.identities(&schemas).await?;
    let going = state.tables.values_mut().filter(|record| is_going(record));
    for (record, identity) in going.zip(identities) {
        let outcome = match taken.get(&record.schema.target) {
            Some(claim) => Err(targets::taken(destination, &record.spec, claim)),
            None => targets::identify(record, identity),
        };
        let changed = match outcome {
            Err(error) => set_aside(config, record, error).map(|()| true)?,
            Ok(changed) => changed,
        };
        if changed {
            store.save_table(record).await?;
        }
    }
    Ok(())
}

/// Brings the tables that the Mirror has up to their catalog and targets. One that can't be is set aside.
async fn bring_up<D: Destination>(
    around: &Surroundings<'_, D>,
    state: &mut MirrorState,
    store: &StateStore<D>,
) -> Result<(), Error> {
    let is_going = |record: &TableRecord| record.phase != TablePhase::Failed;
    let going = || state.tables.values().filter(|record| is_going(record));
    let oids: Vec<u32> = going().map(|record| record.schema.oid).collect();
    let layouts = catalog::fingerprints(around.session, &oids).await?;
    // Without a change to insert, a target that was dropped meanwhile would not be missed.
    let schemas: Vec<&TableSchema> = going().map(|record| &record.schema).collect();
    let standing = around.destination.standing(&schemas).await?;
    for (record, stands) in state.tables.values_mut().filter(|record| is_going(record)).zip(standing) {
        let stands = match stands {
            true => Ok(()),
            false => {
                let require = || async { Ok(around.destination.require_columns(&record.schema).await?) };
                around.start(&record.schema.id, require).await
            }
        };
        let plan = record.plan;
        let outcome = match (stands, layouts.get(&record.schema.oid)) {
            (Ok(()), Some(layout)) => around.bring_up(record, layout).await,
            // A table that is gone is told by the watch.
            (stands, _) => stands.map(|()| false),
        };
        let changed = match outcome {
            Err(error) => {
                set_aside(around.config, record, error)?;
                true
            }
            Ok(changed) => changed,
        };
        if record.plan != plan {
            state.chunks_done.remove(&record.schema.id);
        }
        if changed {
            store.save_table(record).await?;
        }
    }
    Ok(())
}

/// A copy that is over can't be taken up again: its slot is gone, so changes made since would be missing.
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

/// A table that is new to the Mirror.
struct New {
    spec: TableSpec,
    schema: TableSchema,
    /// All its columns.
    columns: Vec<LiveColumn>,
    /// Its marks from before it was described: what changes later is seen by them.
    layout: Option<CatalogFingerprint>,
    published: Option<PublishedAs>,
    /// Whether it may be published with a list of its mirrored columns.
    listable: bool,
    /// Its record, when it was there before and alone is copied anew.
    before: Option<TableRecord>,
    /// Whether it is copied over the rows that its target has, with a slot that is older than the copy.
    alone: bool,
}

impl New {
    /// Takes up what there was before: the target's columns keep their names, where nothing else is asked for.
    fn take_up(&mut self, former: Option<&TableRecord>) {
        if let Some(before) = &self.before {
            let why = before.copy_anew.as_deref().unwrap_or("a resync asks for it");
            tracing::info!(table = %self.spec.id, why, "this table is copied anew");
        }
        if let Some(former) = self.before.as_ref().or(former) {
            schema::keep_target_names(former, &self.spec, &mut self.schema);
        }
    }

    /// Whether it is published in another way than it should be. PostgreSQL shows a row filter in its own words, so what a new filter became is
    /// known only of one that this session wrote; of a publication that it `may_alter` not, a change since the table joined is trusted.
    fn is_published_otherwise(&self, found: &PublishedTable, may_alter: bool) -> bool {
        let Some(before) = &self.before else { return false };
        let unfit = |list: &ColumnList| !self.listable || list.misfit(&self.schema).is_some();
        if found.columns.as_ref().is_some_and(unfit) {
            return true;
        }
        let published = before.published.as_ref();
        match published.filter(|_| before.spec.row_filter == self.spec.row_filter) {
            // What was asked for then is asked for now.
            Some(before) => found.row_filter != before.row_filter,
            None if self.spec.row_filter.is_none() => found.row_filter.is_some(),
            None => may_alter || published.is_some_and(|before| before.row_filter == found.row_filter),
        }
    }
}

/// The tables that are new to the Mirror, or join once more. One that can't be described is added to those that are refused.
async fn describe<D: Destination>(
    config: &ReplicatorConfig,
    session: &Session,
    store: &StateStore<D>,
    state: &mut MirrorState,
    (apart, refused): (&mut Apart, &mut Refused),
) -> Result<Vec<New>, Error> {
    let joins = |spec: &&TableSpec| !state.tables.contains_key(&spec.id) && !refused.contains_key(&spec.id);
    let specs: Vec<&TableSpec> = config.tables.iter().filter(joins).collect();
    let ids: Vec<&TableId> = specs.iter().map(|spec| &spec.id).collect();
    let oids: Vec<u32> = catalog::table_oids(session, &ids).await?.into_values().collect();
    let mut layouts = catalog::fingerprints(session, &oids).await?;
    let asked: Vec<_> = specs.iter().map(|spec| (*spec, [].as_slice())).collect();
    let mut new = Vec::new();
    for (spec, described) in specs.iter().zip(catalog::describe_all(session, &asked).await?) {
        let (listable, TableFacts { schema, columns, .. }) = match described {
            Ok(facts) => (facts.may_be_listed(), facts),
            Err(error) if error.is_transient() => return Err(error.into()),
            Err(error) => {
                refused.insert(spec.id.clone(), failure_of_table(&spec.id, &error.into()));
                continue;
            }
        };
        let former = state.former.get(&spec.id).cloned();
        // A resync of all tables copies it with a slot of its own.
        let replaced = former.clone().filter(|former| former.replace && state.resync.is_none());
        let alone = replaced.is_some() || apart.replaces(&spec.id);
        let before = apart.records.remove(&spec.id).or_else(|| replaced.and_then(|former| former.record));
        let alone = alone || before.is_some();
        let known = before.clone().or_else(|| former.as_ref().and_then(|former| former.record.clone()));
        if let Some(mut record) = known
            && let Err(error) = resync::require_withheld(&record, spec, &schema)
        {
            record.spec = (*spec).clone();
            set_aside(config, &mut record, error)?;
            store.save_table(&record).await?;
            state.tables.insert(spec.id.clone(), record);
            continue;
        }
        let layout = layouts.remove(&schema.oid);
        let mut joins =
            New { spec: (*spec).clone(), schema, columns, layout, published: None, listable, before, alone };
        joins.take_up(former.as_ref().and_then(|former| former.record.as_ref()));
        new.push(joins);
    }
    Ok(new)
}

/// Makes the publication, or adds what is new to the one that is there.
async fn publish(
    config: &ReplicatorConfig,
    session: &Session,
    state: &MirrorState,
    new: &mut [New],
    what: Publish,
) -> Result<(), Error> {
    let name = what.name(&config.mirror);
    let mut new: Vec<&mut New> = new.iter_mut().filter(|new| Publish::of(new.schema.kind) == what).collect();
    let comment = publication_comment(&config.mirror);
    let Some(found) = publication::read(session, &name).await? else {
        // PostgreSQL looks the publications up as they were when a change was made, so they must be older than the slot.
        if state.source.is_some() {
            return check_publication(&name, what, None);
        }
        let schemas: Vec<TableSchema> = new.iter().map(|new| new.schema.clone()).collect();
        publication::create(session, &name, what, &schemas, &comment).await?;
        tracing::info!(publication = name, tables = schemas.len(), "created the publication");
        return as_published(session, &name, &mut new).await;
    };
    check_publication(&name, what, Some(PublicationStatus::from(&found)))?;
    let published: BTreeSet<&TableId> = found.tables.iter().map(|table| &table.id).collect();
    let add: Vec<&TableSchema> =
        new.iter().map(|new| &new.schema).filter(|schema| !published.contains(&schema.id)).collect();
    let wanted =
        config.tables.iter().filter(|table| table.operations.is_append_only() == (what == Publish::Inserts));
    let wanted: BTreeSet<&TableId> = wanted.map(|table| &table.id).collect();
    // What a publication of somebody else's, or of the primary's, sends too much is left out.
    let leaves = |id: &&TableId| found.may_alter && !wanted.contains(*id);
    let drop: Vec<TableId> = published.into_iter().filter(leaves).cloned().collect();
    let of = |new: &New| found.tables.iter().find(|table| table.oid == new.schema.oid);
    let differs = |new: &New, published| new.is_published_otherwise(published, found.may_alter);
    let reset = new.iter().filter(|new| of(new).is_some_and(|published| differs(new, published)));
    // A list that somebody made stays one, where PostgreSQL takes it.
    let listed = |new: &New| new.listable && of(new).is_some_and(|published| published.columns.is_some());
    let reset: Vec<_> = reset.map(|new| Member { table: &new.schema, listed: listed(new) }).collect();
    if !add.is_empty() || !drop.is_empty() || !reset.is_empty() {
        publication::alter(session, &name, &add, &drop, &reset).await?;
        tracing::info!(
            publication = name,
            added = add.len(),
            dropped = drop.len(),
            "changed the publication"
        );
    }
    as_published(session, &name, &mut new).await
}

/// Notes how new tables are published: what changes later is seen by it.
async fn as_published(session: &Session, name: &str, new: &mut [&mut New]) -> Result<(), Error> {
    if new.is_empty() {
        return Ok(());
    }
    let found = publication::read(session, name).await?;
    let tables = found.map(|found| found.tables).unwrap_or_default();
    for new in new {
        new.published = tables.iter().find(|table| table.oid == new.schema.oid).map(PublishedAs::from);
    }
    Ok(())
}

/// Whether a publication that this Mirror runs on is still there and sends what it is there for.
pub(in crate::replication) fn check_publication(
    name: &str,
    what: Publish,
    found: Option<PublicationStatus>,
) -> Result<(), Error> {
    let problem = match (found, what) {
        (None, Publish::Everything) => "no longer exists at the source",
        (None, Publish::Inserts) => {
            "does not exist at the source, or no longer, and append-only tables need one that is as old as the slot"
        }
        (Some(found), _) if !found.owned_by_us => {
            "was not made by walferry for this mirror; drop or rename it first"
        }
        (Some(found), _) if found.sends == Some(what) => return Ok(()),
        (Some(_), Publish::Everything) => {
            "no longer publishes inserts, updates, deletes and truncates, or no longer partitions by their root"
        }
        (Some(_), Publish::Inserts) => {
            "no longer publishes inserts and truncates alone, or no longer partitions by their root"
        }
    };
    Err(Error::PublicationChanged { publication: name.to_owned(), problem: problem.to_owned() })
}

/// The slot's position, and whether it was there before. `announce` records that one is about to be made.
async fn ensure_slot(
    config: &ReplicatorConfig,
    session: &Session,
    state: &MirrorState,
    progress: &Progress,
    announce: impl AsyncFnOnce() -> Result<(), Error>,
) -> Result<(Lsn, bool), Error> {
    let name = config.mirror.slot_name();
    let found = slot::read(session, &name).await?;
    if state.source.is_some() {
        let found = check_slot(config, state.source.as_ref(), found)?;
        return Ok((found.and_then(|slot| slot.confirmed_flush_lsn).unwrap_or_default(), true));
    }
    if let Some(found) = found {
        drop_unrecorded(config, session, state, &found).await?;
    }
    announce().await?;
    let standby = catalog::is_standby(session).await?;
    let lsn = tokio::select! {
        made = slot::create(session, &name) => made?,
        never = tell_of_wait(progress, &name, standby) => match never {},
    };
    tracing::info!(slot = name, %lsn, "created the replication slot");
    progress.set_phase(MirrorPhase::Provisioning, None);
    wait_for_commits(session).await?;
    Ok((lsn, false))
}

/// Drops a slot of this Mirror's name of which nothing is on record: one that a killed run was making, or one that a resync may
/// replace. Where it stands says nothing about what the destination has.
///
/// # Errors
/// [`Error::SlotUnknown`] where it may be somebody else's.
async fn drop_unrecorded(
    config: &ReplicatorConfig,
    session: &Session,
    state: &MirrorState,
    found: &SlotInfo,
) -> Result<(), Error> {
    resync::require_own(config, found)?;
    let being_made = state.position.as_ref().is_some_and(|position| position.lsn == Lsn::ZERO);
    if !being_made && state.resync.is_none() {
        return Err(Error::SlotUnknown { slot: found.name.clone() });
    }
    slot::end_creation(session, &config.mirror.application_name()).await?;
    if slot::drop(session, &found.name).await? {
        tracing::info!(slot = found.name, "dropped a replication slot that was made and not recorded");
    }
    Ok(())
}

/// Says what a slot that is being made waits for, when it takes long.
async fn tell_of_wait(progress: &Progress, slot: &str, standby: bool) -> Infallible {
    tokio::time::sleep(PATIENCE).await;
    let waits = "PostgreSQL waits for transactions that ran when the slot was asked for";
    let message = match standby {
        true => format!(
            "replication slot {slot} is being made: {waits}, and the standby has to hear of them from the primary, which says nothing while it is \
             idle. To have it say so, run SELECT pg_log_standby_snapshot() at the primary, several times if transactions run there"
        ),
        false => format!(
            "replication slot {slot} is being made: {waits}. To see them, run SELECT pid::text AS pid_or_gid, xact_start, application_name AS \
             application_or_owner FROM pg_stat_activity WHERE backend_xid IS NOT NULL UNION ALL SELECT gid, prepared, owner::text FROM \
             pg_prepared_xacts ORDER BY 2; end them, or run COMMIT PREPARED or ROLLBACK PREPARED for a prepared one"
        ),
    };
    tracing::info!(slot, why = message, "waits for the replication slot");
    let failure = MirrorFailure::new(Reason::SourceSlotNotReady, message);
    progress.set_phase(MirrorPhase::Provisioning, Some(failure));
    std::future::pending().await
}

/// Waits for the transactions that run when a slot has just been made: one whose commit is in the log before the slot's start
/// is not in the stream, and not in the copy either as long as nobody sees it.
async fn wait_for_commits(session: &Session) -> Result<(), Error> {
    let mut awaited = visibility::running(session).await?;
    let mut told = false;
    while !awaited.is_empty() {
        let running = visibility::running(session).await?;
        awaited.retain(|transaction| running.contains(transaction));
        if !awaited.is_empty() && !std::mem::replace(&mut told, true) {
            tracing::info!(transactions = ?awaited, "waits for transactions that ran when the slot was made");
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// The Mirror's slot as it was found, checked; `None` only when the Mirror has never had one.
///
/// # Errors
/// [`Error::SlotMissing`], [`Error::SlotInvalidated`], [`Error::SlotForeign`], [`Error::SlotNotReady`].
pub(in crate::replication) fn check_slot(
    config: &ReplicatorConfig,
    source: Option<&SourceRecord>,
    found: Option<SlotInfo>,
) -> Result<Option<SlotInfo>, Error> {
    let name = config.mirror.slot_name();
    let Some(found) = found else {
        return match source {
            Some(source) => Err(Error::SlotMissing { slot: name, since: source.start_lsn }),
            None => Ok(None),
        };
    };
    if found.wal_status.as_deref() == Some("lost") {
        return Err(Error::SlotInvalidated {
            slot: name,
            wal_status: "lost".to_owned(),
            reason: found.invalidation_reason.clone(),
            cure: found.cure(),
        });
    }
    resync::require_own(config, &found)?;
    if found.confirmed_flush_lsn.is_none() {
        return Err(Error::SlotNotReady { slot: name });
    }
    Ok(Some(found))
}

/// Makes the targets and records of new tables.
async fn join_all<D: Destination>(
    around: &Surroundings<'_, D>,
    store: &StateStore<D>,
    state: &mut MirrorState,
    tables: Vec<New>,
    taken: &Taken,
) -> Result<(), Error> {
    let session = around.session;
    let slot_start = state.source.as_ref().map(|source| source.start_lsn);
    let over_rows_from = slot_start.filter(|_| state.resync.is_some());
    // They were described before.
    let seen = if tables.is_empty() { Lsn::ZERO } else { catalog::read_lsn(session).await? };
    let streams = state.tables.values().any(|record| record.phase == TablePhase::Streaming);
    let mut joins = Vec::new();
    for new in tables {
        // What streams already has other rows at its target than a new slot has.
        let alone = new.alone;
        let from = if alone { Some(catalog::flushed_position(session).await?) } else { over_rows_from };
        let why = new.before.as_ref().and_then(|before| before.copy_anew.clone());
        let claim = taken.get(&new.schema.target);
        joins.push(async move {
            let mut record = join(around, new, from, claim).await?;
            record.seen_until(seen);
            record.joins = streams && record.phase == TablePhase::Snapshotting;
            if alone {
                record.snapshot_lsn = record.copy_version;
            }
            if let (Some(why), TablePhase::Snapshotting) = (why, record.phase) {
                record.set_reason(Reason::TableResync, format!("it is copied anew: {why}"));
            }
            Ok::<_, Error>(record)
        });
    }
    let mut joined = stream::iter(joins).buffered(JOINED_AT_ONCE).chunks(SAVED_AT_ONCE);
    while let Some(records) = joined.next().await {
        let records: Vec<TableRecord> = records.into_iter().collect::<Result<_, _>>()?;
        store.save_joined(&records, &state.former).await?;
        records.iter().for_each(|record| drop(state.former.remove(&record.schema.id)));
        state.tables.extend(records.into_iter().map(|record| (record.schema.id.clone(), record)));
    }
    Ok(())
}

/// Makes a new table's target. A target that can't be used fails that table alone. In a resync, it is copied over the rows
/// that it has, with a slot that begins at `over_rows_from`.
async fn join<D: Destination>(
    around: &Surroundings<'_, D>,
    New { spec, schema, columns, layout, published, .. }: New,
    over_rows_from: Option<Lsn>,
    taken_by: Option<&Claim>,
) -> Result<TableRecord, Error> {
    let (config, destination) = (around.config, around.destination);
    let phase = match config.snapshot.mode {
        SnapshotMode::Never => TablePhase::Streaming,
        SnapshotMode::Initial | SnapshotMode::InitialOnly => TablePhase::Snapshotting,
    };
    let filter_columns = published.as_ref().map(|published| published.filter_columns.as_slice());
    let named = Some(NamedColumns::resolve(&spec, filter_columns.unwrap_or_default(), &columns));
    let mut record = TableRecord { layout, published, named, ..TableRecord::new(spec, schema, phase) };
    let made = around.start(&record.schema.id, || async {
        if let Some(claim) = taken_by {
            return Err(targets::taken(destination, &record.spec, claim));
        }
        let schema = &record.schema;
        destination.ensure_table(schema).await?;
        let copy_version = async {
            match over_rows_from {
                Some(start) if phase == TablePhase::Snapshotting => {
                    let fence = stream_fence(&config.mirror.fence(), schema);
                    resync::copy_version(destination, schema, record.spec.operations, start, &fence).await
                }
                None if phase == TablePhase::Snapshotting && destination.has_rows(schema).await? => {
                    Err(targets::has_rows(schema))
                }
                _ => Ok(Lsn::ZERO),
            }
        };
        let identity = async { Ok(destination.identities(&[schema]).await?.pop().flatten()) };
        tokio::try_join!(copy_version, identity)
    });
    match made.await {
        Ok((version, identity)) => (record.copy_version, record.target_id) = (version, identity),
        Err(error) => set_aside(config, &mut record, error)?,
    }
    Ok(record)
}

/// Fails the table alone where the error concerns it alone; else gives the error back.
pub(in crate::replication) fn set_aside(
    config: &ReplicatorConfig,
    record: &mut TableRecord,
    error: Error,
) -> Result<(), Error> {
    if policy(&error).0 != Policy::FailTable {
        return Err(error);
    }
    let failure = failure_of_table(&record.schema.id, &error);
    let why = config.sentence(&failure);
    tracing::error!(table = %record.schema.id, reason = %failure.reason, error = %why, "table can't be mirrored; the others go on");
    record.fail(failure);
    Ok(())
}
