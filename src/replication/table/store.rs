//! What a Mirror remembers at the destination: which source it follows, each table's schema and state, and
//! the chunks of its snapshot that are done.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    epoch::{EPOCH_ITEM, Writer},
    record::{FormerTable, TableRecord},
};
use crate::{
    model::{Lsn, SlotPlace, TableId},
    replication::{Destination, Error, StateRow, session::position::PositionRecord},
};

/// The source that a Mirror was started against.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceRecord {
    /// `IDENTIFY_SYSTEM`'s system identifier, unique to an initdb.
    pub system_identifier: String,
    /// `IDENTIFY_SYSTEM`'s timeline, which grows with each promotion.
    pub timeline: u32,
    /// From which timeline that one branched off, and where: two standbys that are promoted apart give theirs
    /// the same number.
    #[serde(default)]
    pub branch: Option<(u32, Lsn)>,
    /// When the server process that was last connected to began.
    #[serde(default)]
    pub server_started: String,
    /// Where the slot began.
    pub start_lsn: Lsn,
    /// Set when `snapshot.mode: InitialOnly` has copied everything and released the slot.
    #[serde(default)]
    pub finished: bool,
    /// The resync that this slot was made for, or the value that was there from the start.
    #[serde(default)]
    pub resync: Option<String>,
    /// What the versions of the Mirror's rows mean: `VERSION_SCHEME`, or an older number.
    #[serde(default)]
    pub version_scheme: u32,
    /// Where the slot was made; `None` in a record of before that was kept.
    #[serde(default)]
    pub place: Option<SlotPlace>,
}

/// What [`Version`](crate::model::Version) means. Rows of another scheme can't be compared with ours; 0 was
/// the commit LSN alone.
pub(in crate::replication) const VERSION_SCHEME: u32 = 1;

impl SourceRecord {
    /// Where the slot was made, as far as it is on record.
    pub fn place(&self) -> SlotPlace {
        let system_identifier = self.system_identifier.clone();
        self.place.clone().unwrap_or_else(|| SlotPlace { system_identifier, ..SlotPlace::default() })
    }

    /// Refuses to continue with rows whose versions mean something else than ours.
    ///
    /// # Errors
    /// [`Error::OtherVersions`]
    pub fn check_versions(&self) -> Result<(), Error> {
        match self.version_scheme {
            VERSION_SCHEME => Ok(()),
            found => Err(Error::OtherVersions { found, written: VERSION_SCHEME }),
        }
    }
}

/// A resync under way: from the intent until every table has its new record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResyncRecord {
    /// The annotation's value that asked for it.
    pub value: String,
    /// Whether the old slot and the old records are gone: from then on it goes as for a new Mirror.
    pub released: bool,
}

/// A Mirror's whole durable state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MirrorState {
    /// The source, once a slot was made.
    pub source: Option<SourceRecord>,
    /// Up to where the source may have heard that everything is durable, from before its slot is made.
    pub position: Option<PositionRecord>,
    /// Tables by name.
    pub tables: BTreeMap<TableId, TableRecord>,
    /// Finished chunks of each table's present plan, with the rows they held.
    pub chunks_done: BTreeMap<TableId, BTreeMap<usize, u64>>,
    /// A resync that has not got to the copy yet.
    pub resync: Option<ResyncRecord>,
    /// Tables that the Mirror had and has not now.
    pub former: BTreeMap<TableId, FormerTable>,
}

#[derive(Serialize, Deserialize)]
struct ChunkRecord {
    table: TableId,
    plan: u64,
    index: usize,
    rows: u64,
}

const SOURCE_ITEM: &str = "source";

const POSITION_ITEM: &str = "position";

const RESYNC_ITEM: &str = "resync";

const TABLE_PREFIX: &str = "table/";

const CHUNK_PREFIX: &str = "chunk/";

const FORMER_PREFIX: &str = "former/";

fn chunk_item(table: &TableId, index: usize) -> String {
    format!("{CHUNK_PREFIX}{index}/{table}")
}

/// Reads and writes a Mirror's state through its destination.
#[derive(Clone)]
pub struct StateStore<D> {
    destination: D,
    mirror: String,
    writer: Arc<Writer>,
}

impl<D: Destination> StateStore<D> {
    /// The state of the Mirror with this UID.
    pub fn new(destination: D, mirror: &str) -> Self {
        StateStore { destination, mirror: mirror.to_owned(), writer: Arc::new(Writer::new()) }
    }

    /// The same with an epoch that nobody else hears of.
    #[cfg(test)]
    pub(in crate::replication) fn claimed(self) -> Self {
        self.writer.begin(crate::replication::StateVersion::default());
        self
    }

    /// Reads everything, without taking the Mirror over.
    pub async fn load(&self) -> Result<MirrorState, Error> {
        parse(&self.destination.load_state(&self.mirror, None).await?.rows)
    }

    /// Reads the position, without taking the Mirror over.
    pub async fn recorded_position(&self) -> Result<Option<PositionRecord>, Error> {
        let found = self.destination.load_state(&self.mirror, Some(&[POSITION_ITEM])).await?;
        Ok(parse(&found.rows)?.position)
    }

    /// Reads everything, to continue from there: claims an epoch, unless the newest is this process's still.
    ///
    /// # Errors
    /// [`Error::Replaced`] when another process has claimed one since this one did, or at the same moment:
    /// what is in memory is older than what is on record; [`Error::RecordsForgotten`] when it is newer.
    pub async fn take(&self) -> Result<MirrorState, Error> {
        let found = self.destination.load_state(&self.mirror, None).await?;
        if self.writer.owns(&found) {
            if self.writer.misses(found.newest) {
                self.writer.end();
                return Err(Error::RecordsForgotten);
            }
            return parse(&found.rows);
        }
        if self.writer.end() {
            return Err(Error::Replaced);
        }
        let claim = self.writer.begin(found.newest);
        self.save(vec![row(EPOCH_ITEM.to_owned(), &claim)?]).await?;
        let found = self.destination.load_state(&self.mirror, None).await?;
        match self.writer.owns(&found) {
            true => parse(&found.rows),
            false => Err(Error::Replaced),
        }
    }

    /// Writes the source's record, and with it the position that it may have heard of.
    pub async fn save_source(
        &self,
        record: &SourceRecord,
        position: Option<&PositionRecord>,
    ) -> Result<(), Error> {
        let position = position.map(|position| row(POSITION_ITEM.to_owned(), position)).transpose()?;
        let source = row(SOURCE_ITEM.to_owned(), record)?;
        self.save([source].into_iter().chain(position).collect()).await
    }

    /// Writes the position that the source may hear of.
    pub async fn save_position(&self, record: &PositionRecord) -> Result<(), Error> {
        let (rows, version) = ([row(POSITION_ITEM.to_owned(), record)?], self.writer.next()?);
        self.destination.save_state(&self.mirror, &rows, version).await?;
        self.writer.record(version);
        Ok(())
    }

    /// Grows with each record that this process begins to write.
    pub(in crate::replication) fn records_begun(&self) -> u64 {
        self.writer.begun()
    }

    /// Writes claims of target tables, by their items; `None` removes one.
    pub(in crate::replication) async fn save_claims<T: Serialize>(
        &self,
        claims: Vec<(String, Option<T>)>,
    ) -> Result<(), Error> {
        let rows = claims.into_iter().map(|(item, claim)| match claim {
            Some(claim) => row(item, &claim),
            None => Ok(removed(item)),
        });
        self.save(rows.collect::<Result<_, _>>()?).await
    }

    /// Reads the position on record, and whether it is as new as the last one that this process has written;
    /// `None` where there is none of this process's epoch.
    ///
    /// # Errors
    /// [`Error::Replaced`] when another process has claimed a newer epoch.
    pub async fn load_position(&self) -> Result<Option<(PositionRecord, bool)>, Error> {
        let items = [EPOCH_ITEM, POSITION_ITEM];
        let found = self.destination.load_state(&self.mirror, Some(&items)).await?;
        if self.writer.is_replaced(&found) {
            return Err(Error::Replaced);
        }
        let position = parse(&found.rows)?.position;
        Ok(position
            .filter(|_| self.writer.owns(&found))
            .map(|position| (position, !self.writer.misses(found.newest))))
    }

    /// Writes a table's record.
    pub async fn save_table(&self, record: &TableRecord) -> Result<(), Error> {
        self.save_tables(std::slice::from_ref(record)).await
    }

    /// Writes tables' records by one statement.
    pub async fn save_tables(&self, records: &[TableRecord]) -> Result<(), Error> {
        let rows = records.iter().map(|record| row(format!("{TABLE_PREFIX}{}", record.schema.id), record));
        self.save(rows.collect::<Result<_, _>>()?).await
    }

    /// Records a finished chunk of the plan with number `plan`.
    pub async fn save_chunk(&self, table: &TableId, plan: u64, index: usize, rows: u64) -> Result<(), Error> {
        let record = ChunkRecord { table: table.clone(), plan, index, rows };
        self.save(vec![row(chunk_item(table, index), &record)?]).await
    }

    /// Writes the record of a table whose snapshot is over, and forgets its chunks, by one statement.
    pub async fn finish_snapshot(&self, record: &TableRecord, chunks: usize) -> Result<(), Error> {
        let table = &record.schema.id;
        let mut rows: Vec<_> = (0..chunks).map(|index| removed(chunk_item(table, index))).collect();
        rows.push(row(format!("{TABLE_PREFIX}{table}"), record)?);
        self.save(rows).await
    }

    /// Records that a resync is to be done: whatever happens from now on, it is gone through with.
    pub async fn begin_resync(&self, value: &str) -> Result<ResyncRecord, Error> {
        let record = ResyncRecord { value: value.to_owned(), released: false };
        self.save(vec![row(RESYNC_ITEM.to_owned(), &record)?]).await?;
        Ok(record)
    }

    /// Forgets source, tables and chunks, all but the resync, by one statement.
    pub async fn release_for_resync(
        &self,
        state: &MirrorState,
        record: &ResyncRecord,
    ) -> Result<ResyncRecord, Error> {
        let record = ResyncRecord { value: record.value.clone(), released: true };
        let mut rows = vec![row(RESYNC_ITEM.to_owned(), &record)?];
        rows.extend([SOURCE_ITEM, POSITION_ITEM].map(|item| removed(item.to_owned())));
        for table in state.tables.values() {
            rows.extend(forgotten(table));
            rows.push(former_row(&FormerTable::of(table, true))?);
        }
        self.save(rows).await?;
        Ok(record)
    }

    /// Records that every table of a resync has its record, but for those in `waiting`: their rows are
    /// replaced when they are added.
    pub async fn end_resync(&self, waiting: &[FormerTable]) -> Result<(), Error> {
        let rows = waiting.iter().map(former_row).chain([Ok(removed(RESYNC_ITEM.to_owned()))]);
        self.save(rows.collect::<Result<_, _>>()?).await
    }

    /// Writes the records of tables that are added, and forgets what was remembered of them from before.
    pub async fn save_added(
        &self,
        records: &[TableRecord],
        former: &BTreeMap<TableId, FormerTable>,
    ) -> Result<(), Error> {
        let rows = records.iter().map(|record| row(format!("{TABLE_PREFIX}{}", record.schema.id), record));
        let known = records.iter().map(|record| &record.schema.id).filter(|id| former.contains_key(*id));
        let rows = rows.chain(known.map(|id| Ok(removed(former_item(id)))));
        self.save(rows.collect::<Result<_, _>>()?).await
    }

    /// Forgets a table that the Mirror no longer has, but for the names of its columns at the target, and
    /// whether its rows there are to be replaced when it is added again.
    pub async fn forget_table(&self, record: &TableRecord, replace: bool) -> Result<FormerTable, Error> {
        let former = FormerTable::of(record, replace);
        let mut rows = forgotten(record);
        rows.push(former_row(&former)?);
        self.save(rows).await?;
        Ok(former)
    }

    async fn save(&self, rows: Vec<StateRow>) -> Result<(), Error> {
        if rows.is_empty() {
            return Ok(());
        }
        Ok(self.destination.save_state(&self.mirror, &rows, self.writer.next()?).await?)
    }
}

fn row(item: String, value: &impl Serialize) -> Result<StateRow, Error> {
    let value = serde_json::to_string(value).map_err(|source| Error::State { item: item.clone(), source })?;
    Ok(StateRow { item, value })
}

/// A table's record and those of its chunks, removed.
fn forgotten(record: &TableRecord) -> Vec<StateRow> {
    let table = &record.schema.id;
    let chunks = (0..record.chunks.len()).map(|index| chunk_item(table, index));
    chunks.chain([format!("{TABLE_PREFIX}{table}")]).map(removed).collect()
}

fn former_item(table: &TableId) -> String {
    format!("{FORMER_PREFIX}{table}")
}

fn former_row(former: &FormerTable) -> Result<StateRow, Error> {
    row(former_item(&former.table), former)
}

fn removed(item: String) -> StateRow {
    StateRow { item, value: String::new() }
}

fn parse(rows: &[StateRow]) -> Result<MirrorState, Error> {
    let mut state = MirrorState::default();
    let mut chunks = Vec::new();
    for row in rows {
        let failed = |source| Error::State { item: row.item.clone(), source };
        if row.item == SOURCE_ITEM {
            state.source = Some(serde_json::from_str(&row.value).map_err(failed)?);
        } else if row.item == POSITION_ITEM {
            state.position = Some(serde_json::from_str(&row.value).map_err(failed)?);
        } else if row.item == RESYNC_ITEM {
            state.resync = Some(serde_json::from_str(&row.value).map_err(failed)?);
        } else if row.item.starts_with(TABLE_PREFIX) {
            let record: TableRecord = serde_json::from_str(&row.value).map_err(failed)?;
            state.tables.insert(record.schema.id.clone(), record);
        } else if row.item.starts_with(CHUNK_PREFIX) {
            chunks.push(serde_json::from_str::<ChunkRecord>(&row.value).map_err(failed)?);
        } else if row.item.starts_with(FORMER_PREFIX) {
            let former: FormerTable = serde_json::from_str(&row.value).map_err(failed)?;
            state.former.insert(former.table.clone(), former);
        }
    }
    for chunk in chunks {
        let current = state.tables.get(&chunk.table).is_some_and(|table| table.plan == chunk.plan);
        if current {
            state.chunks_done.entry(chunk.table).or_default().insert(chunk.index, chunk.rows);
        }
    }
    Ok(state)
}

impl MirrorState {
    /// Indices of the chunks of a table's plan that are still to be copied.
    pub fn chunks_left(&self, record: &TableRecord) -> BTreeSet<usize> {
        let id = &record.schema.id;
        let of_this_plan = self.tables.get(id).is_some_and(|known| known.plan == record.plan);
        let done = self.chunks_done.get(id).filter(|_| of_this_plan);
        (0..record.chunks.len()).filter(|index| done.is_none_or(|done| !done.contains_key(index))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Chunk, TablePhase};
    use super::*;
    use crate::{
        fault::{Reason, Remedy},
        model::{MirrorFailure, Operations, TableKind, TableSchema, TableSpec},
        postgres::catalog::CatalogFingerprint,
    };

    fn record(plan: u64, chunks: usize) -> TableRecord {
        let storage = TableId::new("public", "t");
        let chunk = Chunk { storage, file_node: 1, from: 0, to: None, through_root: None, version: None };
        let id = TableId::new("public", "t");
        let spec = TableSpec::new(id);
        let schema = TableSchema {
            key: vec![],
            order_by: vec![],
            ..TableSchema::new(TableId::new("public", "t"), vec![])
        };
        TableRecord {
            plan,
            chunks: vec![chunk; chunks],
            ..TableRecord::new(spec, schema, TablePhase::Snapshotting)
        }
    }

    #[test]
    fn a_record_without_remedies_is_read_and_one_with_them_comes_back() {
        let id = TableId::new("public", "t");
        let schema = TableSchema::new(id.clone(), Vec::new());
        let mut record = TableRecord::new(TableSpec::new(id.clone()), schema, TablePhase::Streaming);
        let failure = MirrorFailure {
            remedies: vec![Remedy::run_at_source("SELECT 1"), Remedy::resync([&id])],
            ..MirrorFailure::new(Reason::SourceSchemaChanged, "why")
        };
        record.fail(failure.clone());
        let mut value = serde_json::to_value(&record).unwrap();
        assert_eq!(serde_json::from_value::<TableRecord>(value.clone()).unwrap(), record);
        assert_eq!(record.failure(), Some(failure));
        assert!(value.as_object_mut().unwrap().remove("remedies").is_some());
        let before = serde_json::from_value::<TableRecord>(value).unwrap();
        assert_eq!(before.failure(), Some(MirrorFailure::new(Reason::SourceSchemaChanged, "why")));
        record.set_reason(None, "");
        assert_eq!((record.message.as_str(), record.remedies.as_slice()), ("", [].as_slice()));
    }

    #[test]
    fn reads_back_what_was_written() {
        let table = record(2, 3);
        let source = SourceRecord {
            system_identifier: "7".into(),
            timeline: 2,
            branch: Some((1, Lsn(4))),
            server_started: "1.5".into(),
            start_lsn: Lsn(5),
            finished: false,
            resync: None,
            version_scheme: VERSION_SCHEME,
            place: Some(SlotPlace {
                system_identifier: "7".into(),
                host: "db".into(),
                port: 5432,
                database: "app".into(),
            }),
        };
        let resync = ResyncRecord { value: "1".into(), released: true };
        let chunk = |plan, index| {
            let record = ChunkRecord { table: table.schema.id.clone(), plan, index, rows: 9 };
            row(chunk_item(&table.schema.id, index), &record).unwrap()
        };
        let rows = vec![
            chunk(2, 1),
            chunk(1, 0),
            row("table/public.t".into(), &table).unwrap(),
            row(SOURCE_ITEM.into(), &source).unwrap(),
            row(RESYNC_ITEM.into(), &resync).unwrap(),
        ];
        let state = parse(&rows).unwrap();
        assert_eq!((&state.source, &state.resync), (&Some(source), &Some(resync)));
        assert_eq!(
            state.chunks_left(&table),
            BTreeSet::from([0, 2]),
            "a chunk of an older plan does not count"
        );
        assert_eq!(state.tables[&table.schema.id], table);
    }

    #[test]
    fn records_of_before_are_read() {
        let source = r#"{"systemIdentifier":"7","timeline":1,"startLsn":"0/5"}"#;
        let rows = [StateRow { item: SOURCE_ITEM.into(), value: source.into() }];
        let source = parse(&rows).unwrap().source.unwrap();
        assert_eq!(source.resync, None);
        let outdated = crate::replication::failure(&source.check_versions().unwrap_err());
        assert_eq!(outdated.reason, Reason::DestinationVersionsOutdated);
        assert_eq!(outdated.remedies, [Remedy::resync_all()]);
        let mut old = serde_json::to_value(record(1, 0)).unwrap();
        for field in ["copy_version", "seen"] {
            old.as_object_mut().unwrap().remove(field).unwrap();
        }
        let rows = [StateRow { item: "table/public.t".into(), value: old.to_string() }];
        let table = parse(&rows).unwrap().tables.into_values().next().unwrap();
        assert_eq!((table.copy_version, table.read_lsn), (Lsn::ZERO, Lsn(u64::MAX)));
    }

    #[test]
    fn renamed_fields_keep_their_names_in_records() {
        let mut written = serde_json::to_value(record(1, 0)).unwrap();
        written["covered"] = "0/10".into();
        written["cut"] = serde_json::json!({"snapshot": "10:20:12", "end": "0/20"});
        written["seen"] = "0/30".into();
        written["layout"] = serde_json::to_value(CatalogFingerprint::default()).unwrap();
        written["copy_anew"] = "why".into();
        written["joins"] = true.into();
        let rows = [StateRow { item: "table/public.t".into(), value: written.to_string() }];
        let table = parse(&rows).unwrap().tables.into_values().next().unwrap();
        assert_eq!(table.snapshot_lsn, Lsn(0x10));
        assert_eq!(table.boundary.as_ref().map(|boundary| boundary.end), Some(Lsn(0x20)));
        assert_eq!((table.read_lsn, table.resync_reason.as_deref()), (Lsn(0x30), Some("why")));
        assert!(table.fingerprint.is_some() && table.added_while_streaming);
        assert_eq!(serde_json::to_value(&table).unwrap(), written);
    }

    #[test]
    fn tables_without_a_key_are_recorded_as_before() {
        for (kind, operations, former) in [
            (TableKind::ChangeLog, Operations::ALL, serde_json::json!(["History", false])),
            (TableKind::AppendOnly, Operations::APPEND_ONLY, serde_json::json!(["InsertOnly", true])),
        ] {
            let mut table = record(1, 0);
            (table.schema.kind, table.spec.operations) = (kind, operations);
            let recorded = serde_json::to_value(&table).unwrap();
            assert_eq!(
                serde_json::json!([recorded["schema"]["kind"], recorded["spec"]["insert_only"]]),
                former
            );
            let rows = [StateRow { item: "table/public.t".into(), value: recorded.to_string() }];
            assert_eq!(parse(&rows).unwrap().tables.into_values().next().unwrap(), table);
        }
    }

    #[test]
    fn names_the_record_that_cannot_be_read() {
        let error = parse(&[StateRow { item: "source".into(), value: "{".into() }]).unwrap_err();
        assert!(error.to_string().contains("source"), "{error}");
    }
}
