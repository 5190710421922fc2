//! What is on record of one table: its schema, how far it is, and the plan of its copy.

use std::{
    ops::Range,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::{SnapshotBoundary, named_columns::NamedColumns};
use crate::{
    fault::{Reason, Remedy, optional, remedy},
    model::{Lsn, MirrorFailure, TableId, TableSchema, TableSpec, Version},
    postgres::{catalog::CatalogFingerprint, publication::PublishedTable},
};

/// How far a table is, durably.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TablePhase {
    /// Its snapshot is not complete.
    Snapshotting,
    /// Only changes remain.
    Streaming,
    /// Stopped alone.
    Failed,
}

/// A stretch of a table's blocks that is copied in one short transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// The table, or the leaf partition, that holds the blocks.
    pub storage: TableId,
    /// `pg_relation_filenode` when the plan was made; another one means that rows have moved.
    pub file_node: u32,
    /// First block.
    pub from: u64,
    /// The block after the last; `None` for everything from `from` on.
    pub to: Option<u64>,
    /// The oid of a partition that the role may not read by its own name: it is read through the root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub through_root: Option<u32>,
    /// The version of its rows, where it isn't that of the plan: a partition that was attached later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Lsn>,
}

/// A table's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRecord {
    /// What the Mirror asked for when the table was added; it can't change while the target holds its rows.
    pub spec: TableSpec,
    /// Its columns as last applied to the target.
    pub schema: TableSchema,
    /// How far it is.
    pub phase: TablePhase,
    /// The reason of a failure.
    #[serde(default, with = "optional")]
    pub reason: Option<Reason>,
    /// The failure in words.
    #[serde(default)]
    pub message: String,
    /// What helps against the failure, in order; none in a record of before there were any.
    #[serde(default, deserialize_with = "remedy::known", skip_serializing_if = "Vec::is_empty")]
    pub remedies: Vec<Remedy>,
    /// Identifies the plan, so that a chunk of an earlier plan is not taken for one of the present; 0
    /// before the first.
    #[serde(default)]
    pub plan: u64,
    /// The present plan.
    #[serde(default)]
    pub chunks: Vec<Chunk>,
    /// Rows that the source's statistics expected when the plan was made.
    #[serde(default)]
    pub rows_estimated: u64,
    /// The version of copied rows. Zero for a target that began empty; else that of a resync, and what is
    /// older when the copy is done is deleted.
    #[serde(default)]
    pub copy_version: Lsn,
    /// Changes of transactions up to here are in the copy already, and are not applied.
    #[serde(default, rename = "covered")]
    pub snapshot_lsn: Lsn,
    /// What is known of the table by queries, its copied rows and its columns, was in the source's log up to
    /// here; and so was the last TRUNCATE.
    #[serde(default = "unknown", rename = "seen")]
    pub read_lsn: Lsn,
    /// The catalog's fingerprint when the table was last reconciled with it.
    #[serde(default, rename = "layout")]
    pub fingerprint: Option<CatalogFingerprint>,
    /// How it was published when it was added.
    #[serde(default)]
    pub published: Option<PublishedAs>,
    /// What the names of its entry mean; `None` in a record of before there was one.
    #[serde(default)]
    pub named: Option<NamedColumns>,
    /// What identifies its target among tables of that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_id: Option<String>,
    /// Why the table has to be copied again before it is streamed.
    #[serde(default, rename = "copy_anew", skip_serializing_if = "Option::is_none")]
    pub resync_reason: Option<String>,
    /// Which transactions the copy has, for a table without a key: set when its present plan was made.
    #[serde(default, rename = "cut")]
    pub boundary: Option<SnapshotBoundary>,
    /// No row with a lower version counts any more: since the last TRUNCATE, or since the table was copied
    /// again.
    #[serde(default)]
    pub floor: Version,
    /// No copied row with a lower version counts any more: set when a table without a key was copied again.
    #[serde(default)]
    pub copy_floor: Version,
    /// When either was recorded, in seconds since 1970.
    #[serde(default)]
    pub floor_set: u64,
    /// Whether it is copied while tables stream that were copied before.
    #[serde(default, rename = "joins", skip_serializing_if = "std::ops::Not::not")]
    pub added_while_streaming: bool,
}

/// How long after the floor was set a process that begins checks for what an earlier one may have left on its
/// way.
const RECENT: Duration = Duration::from_secs(3600);

/// The time, in seconds since 1970.
fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// As late as can be, for a record of before there was one.
fn unknown() -> Lsn {
    Lsn(u64::MAX)
}

/// Which rows count no more when something was done with a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Floor {
    /// Those that did not count before.
    Unchanged,
    /// All with a lower version.
    Rows(Version),
    /// Of copied rows, those with a lower version.
    CopiedRows(Version),
}

/// A table's membership in the publication: another one sends other rows, or has not sent some.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PublishedAs {
    /// `pg_publication_rel.oid`
    pub entry: u32,
    /// The row filter, in PostgreSQL's own words.
    pub row_filter: Option<String>,
    /// The numbers of the columns of its column list, if somebody made one.
    #[serde(default, rename = "columnNumbers", skip_serializing_if = "Option::is_none")]
    pub columns: Option<Vec<i16>>,
    /// The columns that the row filter names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filter_columns: Vec<String>,
}

impl From<&PublishedTable> for PublishedAs {
    fn from(found: &PublishedTable) -> Self {
        PublishedAs {
            entry: found.entry,
            row_filter: found.row_filter.clone(),
            columns: found.columns.as_ref().map(|list| list.attnums.clone()),
            filter_columns: found
                .filter_columns
                .iter()
                .filter(|_| found.row_filter.is_some())
                .cloned()
                .collect(),
        }
    }
}

impl TableRecord {
    /// A table that is to be copied from its beginning into a target that began empty.
    pub fn new(spec: TableSpec, schema: TableSchema, phase: TablePhase) -> Self {
        TableRecord {
            spec,
            schema,
            phase,
            reason: None,
            message: String::new(),
            remedies: Vec::new(),
            plan: 0,
            chunks: Vec::new(),
            rows_estimated: 0,
            copy_version: Lsn::ZERO,
            snapshot_lsn: Lsn::ZERO,
            read_lsn: Lsn::ZERO,
            fingerprint: None,
            published: None,
            named: None,
            target_id: None,
            resync_reason: None,
            boundary: None,
            floor: Version::ZERO,
            copy_floor: Version::ZERO,
            floor_set: 0,
            added_while_streaming: false,
        }
    }

    /// Notes that it stops alone.
    pub fn fail(&mut self, failure: MirrorFailure) {
        self.phase = TablePhase::Failed;
        self.reason = Some(failure.reason);
        (self.message, self.remedies) = (failure.message, failure.remedies);
    }

    /// Why it has stopped alone, if it has.
    pub fn failure(&self) -> Option<MirrorFailure> {
        (self.phase == TablePhase::Failed).then(|| MirrorFailure {
            reason: self.reason.unwrap_or(Reason::Unknown),
            message: self.message.clone(),
            remedies: self.remedies.clone(),
        })
    }

    /// Notes what it does, or nothing.
    pub fn set_reason(&mut self, reason: impl Into<Option<Reason>>, message: impl Into<String>) {
        (self.reason, self.message) = (reason.into(), message.into());
        self.remedies.clear();
    }

    /// Notes which rows count no more.
    pub fn raise_floor(&mut self, floor: Floor) {
        let (known, version) = match floor {
            Floor::Unchanged => return,
            Floor::Rows(version) => (&mut self.floor, version),
            Floor::CopiedRows(version) => (&mut self.copy_floor, version),
        };
        if version > *known {
            *known = version;
            self.floor_set = unix_seconds();
        }
    }

    /// The versions of rows that a TRUNCATE with this version has to delete: those below the floor are
    /// deleted already. Where the floor is as high as that, an earlier process may have come to record it and
    /// no further.
    pub fn left_below(&self, version: Version) -> Range<Version> {
        if self.floor < version { self.floor..version } else { Version::ZERO..version }
    }

    /// Whether rows from before the floor may still be on their way.
    pub fn floor_is_recent(&self) -> bool {
        self.floor.max(self.copy_floor) > Version::ZERO
            && unix_seconds().saturating_sub(self.floor_set) < RECENT.as_secs()
    }

    /// Notes that something of it was read up to this position.
    pub fn read_until(&mut self, position: Lsn) {
        self.read_lsn = self.read_lsn.max(position);
    }
}

/// What is remembered of a table that the Mirror had, until it is added again: its target may still be there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerTable {
    /// The table.
    pub table: TableId,
    /// Its last record without the plan of its copy, by which its columns keep their names at the target.
    #[serde(default)]
    pub record: Option<TableRecord>,
    /// Whether a resync has asked for its rows at the target to be replaced, which is not done yet.
    #[serde(default)]
    pub replace: bool,
}

impl FormerTable {
    /// What is to be remembered of a table with this record.
    pub(in crate::replication) fn of(record: &TableRecord, replace: bool) -> Self {
        let record = TableRecord { chunks: Vec::new(), ..record.clone() };
        FormerTable { table: record.schema.id.clone(), record: Some(record), replace }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_truncate_deletes_what_the_one_before_has_not() {
        let id = TableId::new("public", "t");
        let schema = TableSchema::new(id.clone(), Vec::new());
        let mut record = TableRecord::new(TableSpec::new(id), schema, TablePhase::Snapshotting);
        let version = |number| Version::from_number(number);
        assert_eq!(record.left_below(version(9)), Version::ZERO..version(9));
        record.raise_floor(Floor::Rows(version(9)));
        assert!(record.floor_set > 1_700_000_000);
        assert_eq!(
            record.left_below(version(9)),
            Version::ZERO..version(9),
            "of which only the record may be written"
        );
        assert_eq!(record.left_below(version(12)), version(9)..version(12));
        record.raise_floor(Floor::Rows(version(5)));
        assert_eq!(record.floor, version(9));
    }
}
