//! Resync: a new slot, and every table copied again into the target that it has.
//!
//! The copy's rows have the version just below the new slot's start: higher than all that was written before,
//! lower than anything that will be streamed. So they replace what is there row by row, and readers never see
//! an empty table. What is older still when a table is copied was not there any more, and is deleted.
//!
//! Every step can be repeated, and the intent is on record before the first: a process that is killed
//! anywhere in between is made up for by the next one, whatever the Mirror asks for by then.

use std::collections::{BTreeMap, BTreeSet};

use super::{context::ProvisionContext, slot::require_own};
use crate::{
    fault::Reason,
    model::{Lsn, MirrorFailure, Operations, ReplicatorConfig, TableId, TableSchema, TableSpec, Version},
    postgres::{
        catalog,
        removal::{self, Fate, MirrorObjects},
        session::Session,
        slot::{self, Release},
    },
    replication::{
        Destination, Error, Refused, failure_of_table,
        table::{
            record::{FormerTable, TablePhase, TableRecord},
            store::{MirrorState, ResyncRecord},
            target,
        },
    },
};

/// The value of a resync whose old slot and records must go before anything else is done, if there is one: it
/// was asked for, or begun. `asked` is the value of the Mirror's annotation.
pub fn resync_due<'a>(asked: Option<&'a str>, state: &'a MirrorState) -> Option<&'a str> {
    let started = state.source.is_some() || state.resync.is_some();
    let last = match (&state.resync, &state.source) {
        (Some(resync), _) => Some(resync.value.as_str()),
        (None, source) => source.as_ref().and_then(|source| source.resync.as_deref()),
    };
    if let Some(asked) = asked.filter(|asked| started && Some(*asked) != last && named(asked).is_empty()) {
        return Some(asked);
    }
    state.resync.as_ref().filter(|resync| !resync.released).map(|resync| resync.value.as_str())
}

/// Whether this table is copied over the rows that its target has when it is added: in a resync,
/// in a Mirror that was asked for one from its beginning, and where a resync could not add it before, or
/// names it although the Mirror does not have it any more. `asked` is the value of the Mirror's annotation.
pub fn copies_over_rows(asked: Option<&str>, state: &MirrorState, table: &TableId) -> bool {
    let covers = |value: &str| {
        let names = named(value);
        names.is_empty() || names.contains(&table.to_string().as_str())
    };
    let new = asked.filter(|_| state.source.is_none());
    let under_way = state.resync.as_ref().map(|resync| resync.value.as_str());
    let due = resync_due(asked, state).or_else(|| single_tables_due(asked, state));
    let waits = state.former.get(table).is_some_and(|former| former.replace);
    waits || [new, under_way, due].into_iter().flatten().any(covers)
}

/// The tables that a value names behind its first word, as `schema.table`; none when every table is meant.
fn named(value: &str) -> Vec<&str> {
    value.split([' ', ',']).filter(|word| !word.is_empty()).skip(1).collect()
}

/// Tables of which a resync is asked, and not of all.
#[derive(Debug, Default)]
pub struct TableResyncs {
    /// The annotation's value, to be recorded when they were added again; `None` when nothing is asked.
    pub(in crate::replication) value: Option<String>,
    /// What was recorded of them.
    pub(in crate::replication) records: BTreeMap<TableId, TableRecord>,
    /// Those that the annotation names, also where there is no record of them: they left the Mirror and come
    /// back.
    pub(in crate::replication) named: BTreeSet<TableId>,
}

impl TableResyncs {
    /// What was recorded of one of them.
    pub fn record(&self, table: &TableId) -> Option<&TableRecord> {
        self.records.get(table)
    }

    /// Whether this table is one of them, and was there before.
    pub fn has(&self, table: &TableId) -> bool {
        self.records.contains_key(table)
    }

    /// Whether the rows that this table's target has are to be replaced.
    pub fn replaces(&self, table: &TableId) -> bool {
        self.has(table) || self.named.contains(table)
    }
}

/// What to say about names behind the value's first word that are no tables of the Mirror's. Those that have
/// left it were asked for while they were there.
pub fn unknown_names(config: &ReplicatorConfig, state: &MirrorState) -> Option<MirrorFailure> {
    let known = |name: &&str| {
        let is = |id: &TableId| id.to_string() == *name;
        config.tables.iter().any(|spec| is(&spec.id))
            || state.tables.keys().chain(state.former.keys()).any(is)
    };
    let names = named(config.resync.as_deref()?);
    let unknown: Vec<&str> = names.into_iter().filter(|name| !known(name)).collect();
    if unknown.is_empty() {
        return None;
    }
    let message = format!(
        "annotation walferry.dev/resync names {}, which the mirror doesn't have, so nothing was copied for that: behind its first word, give \
         names as schema.table, or none to resync every table",
        unknown.join(", ")
    );
    Some(MirrorFailure::new(Reason::ResyncUnknownTable, message))
}

/// Takes the records of those tables out of the state of which a resync is asked: they are added again. Names
/// that the Mirror doesn't have are left to [`unknown_names`].
pub fn take_resync_tables(config: &ReplicatorConfig, state: &mut MirrorState) -> TableResyncs {
    let Some(value) = single_tables_due(config.resync.as_deref(), state) else {
        return TableResyncs::default();
    };
    let mut resyncs = TableResyncs { value: Some(value.to_owned()), ..TableResyncs::default() };
    for name in named(value) {
        let Some(spec) = config.tables.iter().find(|spec| spec.id.to_string() == name) else { continue };
        resyncs.named.insert(spec.id.clone());
        if let Some(record) = state.tables.remove(&spec.id) {
            state.chunks_done.remove(&spec.id);
            resyncs.records.insert(spec.id.clone(), record);
        }
    }
    resyncs
}

/// Takes the records of those tables out of the state that have failed because they might not be read, a
/// partition had another replica identity or other tables inherited from them, and that is over: what the
/// stream has skipped meanwhile comes with a copy, so they are added again.
pub(in crate::replication) fn take_healed(state: &mut MirrorState, resyncs: &mut TableResyncs) {
    let healed = |record: &TableRecord| {
        let heals = [
            Reason::SourcePrivilegeMissing,
            Reason::SourceReplicaIdentityDiffers,
            Reason::SourceTableInherited,
        ];
        let heals = heals.map(Some);
        record.phase == TablePhase::Failed && heals.contains(&record.reason) && record.resync_reason.is_some()
    };
    let tables: Vec<TableId> =
        state.tables.iter().filter(|(_, record)| healed(record)).map(|(id, _)| id.clone()).collect();
    for table in tables {
        state.chunks_done.remove(&table);
        resyncs.records.extend(state.tables.remove_entry(&table));
    }
}

/// The value of a resync of single tables that is not done yet.
fn single_tables_due<'a>(asked: Option<&'a str>, state: &MirrorState) -> Option<&'a str> {
    let last = state.source.as_ref().and_then(|source| source.resync.as_deref());
    let due = asked.filter(|asked| state.source.is_some() && Some(*asked) != last);
    due.filter(|value| !named(value).is_empty())
}

/// Releases what the Mirror has at the source and its records, if a resync is due. A new Mirror has nothing
/// to release: one that asks for a resync begins with it.
///
/// # Errors
/// A table that is missing, or a slot that is another's or in use, before anything is touched; what the
/// servers answer.
pub(super) async fn release_if_due<D: Destination>(
    context: &ProvisionContext<'_, D>,
    state: &mut MirrorState,
    refused: &mut Refused,
) -> Result<(), Error> {
    let ProvisionContext { config, session, store, .. } = *context;
    let Some(value) = resync_due(config.resync.as_deref(), state) else {
        if let (None, None, Some(value)) = (&state.source, &state.resync, &config.resync) {
            let asked = ResyncRecord { value: value.clone(), released: false };
            state.resync = Some(store.release_for_resync(state, &asked).await?);
        }
        return Ok(());
    };
    // What keeps a table from being copied is known from the checks; what the others need is checked once
    // more.
    let specs: Vec<_> = config.tables.iter().filter(|spec| !refused.contains_key(&spec.id)).collect();
    let asked: Vec<_> = specs.iter().map(|spec| (*spec, [].as_slice())).collect();
    for (spec, described) in specs.iter().zip(catalog::describe_all(session, &asked).await?) {
        let facts = described?;
        let former = || state.former.get(&spec.id).and_then(|former| former.record.as_ref());
        if let Some(record) = state.tables.get(&spec.id).or_else(former)
            && let Err(error) = require_withheld(record, spec, &facts.schema)
        {
            refused.insert(spec.id.clone(), failure_of_table(&spec.id, &error));
        }
    }
    if config.tables.iter().all(|spec| refused.contains_key(&spec.id)) {
        return Err(Error::NoTableAdmitted { refused: refused.clone() });
    }
    let slot_name = config.mirror.slot_name();
    if let Some(found) = slot::read(session, &slot_name).await? {
        require_own(config, &found)?;
    }
    let application_name = config.mirror.application_name();
    if let Release::Held(by) = slot::release_own_walsender(session, &slot_name, &application_name).await? {
        return Err(Error::SlotInUse { slot: slot_name, by });
    }
    tracing::info!(mirror = config.mirror.name, value, "resync: every table is copied again");
    let record = store.begin_resync(value).await?;
    release(config, session).await?;
    let record = store.release_for_resync(state, &record).await?;
    let former = std::mem::take(&mut state.former);
    let released = state.tables.values().map(|table| (table.schema.id.clone(), FormerTable::of(table, true)));
    *state = MirrorState {
        resync: Some(record),
        former: former.into_iter().chain(released).collect(),
        ..MirrorState::default()
    };
    Ok(())
}

/// Refuses to resolve a table's names again where a column that is left out would be mirrored, and its entry
/// does not say so.
///
/// # Errors
/// The table's own fault.
pub fn require_withheld(record: &TableRecord, spec: &TableSpec, fresh: &TableSchema) -> Result<(), Error> {
    match &record.named {
        // Another table of that name has other columns.
        Some(named) if record.schema.oid == fresh.oid => named.require_withheld(spec, fresh),
        _ => Ok(()),
    }
}

/// Drops slot and publication where they are this Mirror's, and says whether there was anything to drop.
/// Idempotent: a run that was killed before it is made up for by the next.
pub(in crate::replication) async fn release(
    config: &ReplicatorConfig,
    session: &Session,
) -> Result<bool, Error> {
    let mirror = &config.mirror;
    let objects = MirrorObjects {
        application_name: mirror.application_name(),
        slot: mirror.slot_name(),
        publications: vec![mirror.publication_name(), mirror.inserts_publication_name()],
    };
    // A publication that stays, the owner's or the primary's, will do again.
    let removed = removal::remove(session, &objects).await?;
    Ok(removed.iter().any(|removed| removed.fate == Fate::Dropped))
}

/// The version for rows that are copied over those of before, with a slot that began at `start`.
///
/// A transaction may begin to commit at the slot's very start, so it is the position before. A target that
/// has rows as new as that got them from another history (the source was replaced, or went back), whose
/// positions mean nothing here: it is emptied, unless it keeps rows that the source removed (`operations`).
/// `fence` is that of the table's streamed inserts: one that a killed process has left behind must not arrive
/// later.
pub(in crate::replication) async fn copy_version<D: Destination>(
    destination: &D,
    table: &TableSchema,
    operations: Operations,
    start: Lsn,
    fence: &str,
) -> Result<Lsn, Error> {
    let version = Lsn(start.0.saturating_sub(1));
    let newest = destination.newest_version(table, fence).await?;
    if newest >= Version::copied(version) {
        if table.kind.is_keyed() && operations.keep_removed_rows() {
            return Err(target::has_rows_of_another_history(table));
        }
        tracing::warn!(table = %table.id, newest = %newest.lsn(), %start, "target has rows of another history; emptying it");
        destination.empty(table, fence).await?;
    }
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::SourceRecord;

    fn source(resync: Option<&str>) -> Option<SourceRecord> {
        Some(SourceRecord {
            system_identifier: "7".into(),
            timeline: 1,
            branch: None,
            server_started: String::new(),
            start_lsn: Lsn(5),
            finished: false,
            resync: resync.map(str::to_owned),
            version_scheme: 1,
            place: None,
        })
    }

    #[test]
    fn rows_are_replaced_where_a_resync_says_so() {
        let table = TableId::new("public", "t");
        let over = |asked: Option<&str>, source: Option<SourceRecord>, resync: Option<ResyncRecord>| {
            copies_over_rows(asked, &MirrorState { source, resync, ..MirrorState::default() }, &table)
        };
        assert!(!over(None, None, None) && !over(None, source(None), None));
        assert!(!over(Some("1"), source(Some("1")), None));
        assert!(over(Some("1"), None, None) && over(Some("1"), source(None), None));
        assert!(
            over(None, None, under_way("2", true)) && over(None, source(Some("2")), under_way("2", true))
        );
        // Single tables, also in a new Mirror.
        assert!(over(Some("1 public.t"), None, None) && over(Some("1 public.t"), source(None), None));
        assert!(!over(Some("1 public.u"), None, None) && !over(Some("1 public.u"), source(None), None));
        assert!(!over(Some("1 public.t"), source(Some("1 public.t")), None));
    }

    fn under_way(value: &str, released: bool) -> Option<ResyncRecord> {
        Some(ResyncRecord { value: value.into(), released })
    }

    #[test]
    fn is_due_when_asked_again_or_begun() {
        let due = |asked: Option<&str>, source: Option<SourceRecord>, resync: Option<ResyncRecord>| {
            let state = MirrorState { source, resync, ..MirrorState::default() };
            resync_due(asked, &state).map(str::to_owned)
        };
        let some = |value: &str| Some(value.to_owned());
        assert_eq!(due(Some("1"), None, None), None, "a new Mirror has nothing to release");
        assert_eq!(due(None, source(None), None), None);
        assert_eq!(due(Some("1"), source(None), None), some("1"));
        assert_eq!(due(Some("1"), source(Some("1")), None), None);
        assert_eq!(due(None, source(Some("1")), None), None, "taking the annotation away asks for nothing");
        assert_eq!(due(Some("2"), source(Some("1")), None), some("2"));
        assert_eq!(due(Some("2 public.t"), source(Some("1")), None), None, "one table is another matter");
        assert_eq!(named("2"), Vec::<&str>::new());
        assert_eq!(named("2 public.t, shop.orders"), ["public.t", "shop.orders"]);
        // Begun: gone through with, also when the annotation is taken back.
        for asked in [None, Some("2")] {
            assert_eq!(due(asked, source(Some("1")), under_way("2", false)), some("2"));
            assert_eq!(due(asked, None, under_way("2", true)), None);
            assert_eq!(due(asked, source(Some("2")), under_way("2", true)), None);
        }
        // Taken back to the last one's value after the slot may be gone, or another one asked for: from the
        // start.
        assert_eq!(due(Some("1"), source(Some("1")), under_way("2", false)), some("1"));
        assert_eq!(due(Some("3"), None, under_way("2", true)), some("3"));
    }
}
