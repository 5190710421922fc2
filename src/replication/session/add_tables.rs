//! Adds tables that are new to the Mirror, or that it has again: targets and records.

use futures::{StreamExt, stream};

use super::{
    claims::{self, Claim, Taken},
    context::ProvisionContext,
    resync::{self, TableResyncs},
};
use crate::{
    fault::Reason,
    model::{Lsn, SnapshotMode, TableId, TableSchema, TableSpec},
    postgres::{
        catalog::{self, CatalogFingerprint, LiveColumn, TableFacts},
        publication::{ColumnList, PublishedTable},
    },
    replication::{
        Destination, Error, Refused,
        failure::failure_of_table,
        stream::stream_fence,
        table::{
            named_columns::NamedColumns,
            record::{PublishedAs, TablePhase, TableRecord},
            store::MirrorState,
            target, target_names,
        },
    },
};

/// Target tables made at the same time: there may be thousands, and the destination far away.
const TABLES_IN_PARALLEL: usize = 8;

/// Records written by one statement; that of a table with many columns is large.
const RECORDS_PER_WRITE: usize = 64;

/// A table that is new to the Mirror.
pub(super) struct NewTable {
    spec: TableSpec,
    pub(super) schema: TableSchema,
    /// All its columns.
    columns: Vec<LiveColumn>,
    /// Its fingerprint from before it was described, by which a later change is found.
    fingerprint: Option<CatalogFingerprint>,
    pub(super) published: Option<PublishedAs>,
    /// Whether it may be published with a list of its mirrored columns.
    pub(super) listable: bool,
    /// Its record, when it was there before and alone is copied again.
    before: Option<TableRecord>,
    /// Whether it is copied over the rows that its target has, with a slot that is older than the copy.
    alone: bool,
}

impl NewTable {
    /// Keeps what there was before: the target's columns keep their names, where nothing else is asked for.
    fn keep_names(&mut self, former: Option<&TableRecord>) {
        if let Some(before) = &self.before {
            let why = before.resync_reason.as_deref().unwrap_or("a resync asks for it");
            tracing::info!(table = %self.spec.id, why, "this table is copied again");
        }
        if let Some(former) = self.before.as_ref().or(former) {
            target_names::keep_target_names(former, &self.spec, &mut self.schema);
        }
    }

    /// Whether it is published in another way than it should be. PostgreSQL shows a row filter in its own
    /// words, so what a new filter became is known only of one that this session wrote; of a publication that
    /// it may not alter (`may_alter`), a change since the table was added is trusted.
    pub(super) fn is_published_otherwise(&self, found: &PublishedTable, may_alter: bool) -> bool {
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

/// The tables that are new to the Mirror, or that it has again. One that can't be described is added to those
/// that are refused.
pub(super) async fn describe_new_tables<D: Destination>(
    context: &ProvisionContext<'_, D>,
    state: &mut MirrorState,
    resyncs: &mut TableResyncs,
    refused: &mut Refused,
) -> Result<Vec<NewTable>, Error> {
    let ProvisionContext { config, session, .. } = *context;
    let is_new = |spec: &&TableSpec| !state.tables.contains_key(&spec.id) && !refused.contains_key(&spec.id);
    let specs: Vec<&TableSpec> = config.tables.iter().filter(is_new).collect();
    let ids: Vec<&TableId> = specs.iter().map(|spec| &spec.id).collect();
    let oids: Vec<u32> = catalog::table_oids(session, &ids).await?.into_values().collect();
    let mut fingerprints = catalog::fingerprints(session, &oids).await?;
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
        let alone = replaced.is_some() || resyncs.replaces(&spec.id);
        let before = resyncs.records.remove(&spec.id).or_else(|| replaced.and_then(|former| former.record));
        let alone = alone || before.is_some();
        let known = before.clone().or_else(|| former.as_ref().and_then(|former| former.record.clone()));
        if let Some(mut record) = known
            && let Err(error) = resync::require_withheld(&record, spec, &schema)
        {
            record.spec = (*spec).clone();
            context.fail_and_save(&mut record, error).await?;
            state.tables.insert(spec.id.clone(), record);
            continue;
        }
        let fingerprint = fingerprints.remove(&schema.oid);
        let mut added = NewTable {
            spec: (*spec).clone(),
            schema,
            columns,
            fingerprint,
            published: None,
            listable,
            before,
            alone,
        };
        added.keep_names(former.as_ref().and_then(|former| former.record.as_ref()));
        new.push(added);
    }
    Ok(new)
}

/// Makes the targets and records of new tables.
pub(super) async fn add_tables<D: Destination>(
    context: &ProvisionContext<'_, D>,
    state: &mut MirrorState,
    tables: Vec<NewTable>,
    taken: &Taken,
) -> Result<(), Error> {
    let ProvisionContext { session, store, .. } = *context;
    let slot_start = state.source.as_ref().map(|source| source.start_lsn);
    let over_rows_from = slot_start.filter(|_| state.resync.is_some());
    // They were described before.
    let read_lsn = if tables.is_empty() { Lsn::ZERO } else { catalog::read_lsn(session).await? };
    let streams = state.tables.values().any(|record| record.phase == TablePhase::Streaming);
    let mut added = Vec::new();
    for new in tables {
        // What streams already has other rows at its target than a new slot has.
        let alone = new.alone;
        let from = if alone { Some(catalog::flushed_position(session).await?) } else { over_rows_from };
        let why = new.before.as_ref().and_then(|before| before.resync_reason.clone());
        let claim = taken.get(&new.schema.target);
        added.push(async move {
            let mut record = add_table(context, new, from, claim).await?;
            record.read_until(read_lsn);
            record.added_while_streaming = streams && record.phase == TablePhase::Snapshotting;
            if alone {
                record.snapshot_lsn = record.copy_version;
            }
            if let (Some(why), TablePhase::Snapshotting) = (why, record.phase) {
                record.set_reason(Reason::TableResync, format!("it is copied again: {why}"));
            }
            Ok::<_, Error>(record)
        });
    }
    let mut added = stream::iter(added).buffered(TABLES_IN_PARALLEL).chunks(RECORDS_PER_WRITE);
    while let Some(records) = added.next().await {
        let records: Vec<TableRecord> = records.into_iter().collect::<Result<_, _>>()?;
        store.save_added(&records, &state.former).await?;
        records.iter().for_each(|record| drop(state.former.remove(&record.schema.id)));
        state.tables.extend(records.into_iter().map(|record| (record.schema.id.clone(), record)));
    }
    Ok(())
}

/// Makes a new table's target. A target that can't be used fails that table alone. In a resync, it is copied
/// over the rows that it has, with a slot that begins at `over_rows_from`.
async fn add_table<D: Destination>(
    context: &ProvisionContext<'_, D>,
    NewTable { spec, schema, columns, fingerprint, published, .. }: NewTable,
    over_rows_from: Option<Lsn>,
    taken_by: Option<&Claim>,
) -> Result<TableRecord, Error> {
    let ProvisionContext { config, destination, .. } = *context;
    let phase = match config.snapshot.mode {
        SnapshotMode::Never => TablePhase::Streaming,
        SnapshotMode::Initial | SnapshotMode::InitialOnly => TablePhase::Snapshotting,
    };
    let filter_columns = published.as_ref().map(|published| published.filter_columns.as_slice());
    let named = Some(NamedColumns::resolve(&spec, filter_columns.unwrap_or_default(), &columns));
    let mut record = TableRecord { fingerprint, published, named, ..TableRecord::new(spec, schema, phase) };
    let made = context.start(&record.schema.id, || async {
        if let Some(claim) = taken_by {
            return Err(claims::taken(destination, &record.spec, claim));
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
                    Err(target::has_rows(schema))
                }
                _ => Ok(Lsn::ZERO),
            }
        };
        let identity = async { Ok(destination.identities(&[schema]).await?.pop().flatten()) };
        tokio::try_join!(copy_version, identity)
    });
    match made.await {
        Ok((version, identity)) => (record.copy_version, record.target_id) = (version, identity),
        Err(error) => context.fail_or_return(&mut record, error)?,
    }
    Ok(record)
}
