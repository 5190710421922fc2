//! A Mirror's state at one moment, as `/status` has it: plain data that other layers read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Lsn, MirrorFailure, MirrorPhase, SlotPlace, TableState};
use crate::fault::{Reason, Remedy, optional, remedy};

/// Distance between source and destination; `None` is what isn't known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LagReport {
    /// Bytes of WAL between the end of the source's log and the last durable transaction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Seconds since the oldest transaction that is not yet durable was committed; while the source does not
    /// answer, or nothing flows, at most since when it was last known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
}

/// A slot as the source last showed it; `None` is what it didn't say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SlotReport {
    /// `pg_replication_slots.wal_status`: `reserved` or `extended`; `unreserved` when the source may give up
    /// WAL that the slot needs at its next checkpoint; `lost`.
    #[serde(rename = "slotWalStatus")]
    pub wal_status: Option<String>,
    /// Bytes of WAL that it holds back.
    pub retained_wal_bytes: Option<u64>,
    /// Bytes of WAL that can be written before the source may give it up; `None` without a limit.
    pub safe_wal_bytes: Option<i64>,
    /// How many transactions ago the oldest began whose catalog rows it keeps from vacuum.
    pub catalog_xmin_age: Option<i32>,
    /// Since when no client reads from it; from PostgreSQL 17.
    pub inactive_since: Option<String>,
    /// How often it was taken from a walsender that an earlier run had left behind, since the process began.
    #[serde(rename = "slotTakeovers")]
    pub takeovers: u64,
    /// How often it was gone on with at a promoted standby, since the process began.
    #[serde(rename = "slotFailovers")]
    pub failovers: u64,
}

/// What a slot that holds back much WAL may lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotRisk {
    /// The source may soon remove WAL that the slot still needs: more than four fifths of what it may keep
    /// are in use.
    Invalidation,
    /// The source keeps more than it would without the slot (`max_wal_size`), and nothing limits that
    /// (`max_slot_wal_keep_size`).
    FullDisk,
}

impl SlotReport {
    /// What may become of it, or of the source.
    pub fn risk(&self) -> Option<SlotRisk> {
        let retained = i64::try_from(self.retained_wal_bytes.unwrap_or_default()).unwrap_or(i64::MAX);
        match (self.wal_status.as_deref(), self.safe_wal_bytes) {
            (Some("unreserved"), _) => Some(SlotRisk::Invalidation),
            (_, Some(safe)) if safe < retained / 4 => Some(SlotRisk::Invalidation),
            (Some("extended"), None) => Some(SlotRisk::FullDisk),
            _ => None,
        }
    }

    /// Whether it is worth another warning after the state `before`: there is a risk now, or another one, or
    /// what is held back has passed another power of two.
    pub fn is_worse_than(&self, before: &SlotReport) -> bool {
        let magnitude = |slot: &SlotReport| slot.retained_wal_bytes.and_then(u64::checked_ilog2);
        let (risk, was) = (self.risk(), before.risk());
        risk.is_some() && (risk != was || magnitude(self) > magnitude(before))
    }
}

/// Automatic re-copies of a table, each after a change that the stream does not contain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AutomaticResyncs {
    /// How many have started, or were resumed, since the process began.
    #[serde(alias = "times")]
    pub count: u64,
    /// Why the last one started; empty when there was none.
    #[serde(alias = "why")]
    pub cause: String,
}

/// One table's figures at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TableReport {
    /// Schema at the source.
    pub schema: String,
    /// Table at the source.
    pub name: String,
    /// Table at the destination.
    pub target: String,
    /// What is happening to it.
    pub state: TableState,
    /// Rows copied by the snapshot.
    pub rows_copied: u64,
    /// Rows expected, 0 when unknown.
    pub rows_estimated: u64,
    /// Streamed inserts.
    pub inserted: u64,
    /// Streamed updates.
    pub updated: u64,
    /// Streamed deletes.
    pub deleted: u64,
    /// Streamed truncates.
    pub truncated: u64,
    /// Rows re-fetched for an unchanged TOAST value.
    #[serde(alias = "reread")]
    pub refetched: u64,
    /// Values that the destination type could not hold, by target column.
    pub out_of_range: BTreeMap<String, u64>,
    /// Automatic re-copies. Fields that replicators of earlier releases name otherwise are read by either
    /// name.
    #[serde(default, alias = "copiesAnew")]
    pub resyncs: AutomaticResyncs,
    /// Whether it is copied while tables stream that were copied before: it was added, or is re-copied.
    #[serde(default, alias = "joins")]
    pub copied_while_streaming: bool,
    /// The reason of a failure, else empty.
    #[serde(with = "optional")]
    pub reason: Option<Reason>,
    /// What failed and why, or what is being waited for; else empty.
    pub message: String,
    /// What helps against a failure, in order; none in the report of an older replicator.
    #[serde(default, deserialize_with = "remedy::known", skip_serializing_if = "Vec::is_empty")]
    pub remedies: Vec<Remedy>,
}

impl TableReport {
    /// Why it has failed, if it has.
    pub fn failure(&self) -> Option<MirrorFailure> {
        let failed = self.state == TableState::Failed;
        failed.then(|| MirrorFailure {
            reason: self.reason.unwrap_or(Reason::Unknown),
            message: self.message.clone(),
            remedies: self.remedies.clone(),
        })
    }
}

/// One Mirror's figures at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MirrorReport {
    /// Namespace of the Mirror.
    pub namespace: String,
    /// Name of the Mirror.
    pub name: String,
    /// What it is doing.
    pub phase: MirrorPhase,
    /// Why it does not move.
    pub failure: Option<MirrorFailure>,
    /// What its replicator does with earlier settings, while the failure keeps it from the present ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meanwhile: Option<MirrorPhase>,
    /// A warning that does not stop the Mirror.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<MirrorFailure>,
    /// The slot at the source.
    pub slot_name: String,
    /// The publication at the source.
    pub publication_name: String,
    /// Everything committed up to here is durable at the destination.
    #[serde(rename = "lastLSN")]
    pub last_lsn: Lsn,
    /// Distance to the source.
    pub lag: LagReport,
    /// The slot at the source.
    #[serde(flatten)]
    pub slot: SlotReport,
    /// Where the slot and the publication were made; `None` before, and where that is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot_place: Option<SlotPlace>,
    /// Every table, by name.
    pub tables: Vec<TableReport>,
}
