//! The `status` of a Mirror in the API: made from a report, and written only when that is worth a request.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition as ApiCondition, Time};

use super::{
    Condition,
    conditions::{conditions, in_state, rows_copied, rows_estimated},
    remedy::{Kubectl, with_remedies},
};
use crate::{
    api::{
        FailedTable, LagStatus, MirrorStatus, SlotStatus, SnapshotStatus, TableCounts, conditions as types,
    },
    model::{Lsn, MirrorPhase, MirrorReport, SlotPlace, TableReport, TableState},
};

/// Failed tables that a status lists.
const FAILED_TABLES: usize = 10;
/// Characters of the message of a failed table.
const TABLE_MESSAGE: usize = 1_024;
/// Characters of the message of a condition; the API would take 32,768, which is unreadable.
const CONDITION_MESSAGE: usize = 4_096;
/// How often figures alone are written.
const FIGURES: Duration = Duration::from_secs(5);

/// The status of a Mirror.
///
/// `generation` is the `metadata.generation` that the report is about, `previous` the status that the API
/// server has. What the report doesn't know is kept from there as far as it still holds: names, the slot's
/// place and, where it doesn't know the tables' state, `lastLSN`, the tables, the copy's figures and the
/// condition `Snapshotted`. A condition's time is `now` when its status differs from the previous one's.
pub fn mirror_status(
    report: &MirrorReport,
    generation: Option<i64>,
    previous: Option<&MirrorStatus>,
    now: &Time,
) -> MirrorStatus {
    let report = &with_remedies(report, &Kubectl::of(report));
    let nothing = MirrorStatus::default();
    let previous = previous.unwrap_or(&nothing);
    let mut conditions = api_conditions(conditions(report), generation, &previous.conditions, now);
    let asked = knows_tables(report);
    if !asked {
        keep(types::SNAPSHOTTED, &mut conditions, &previous.conditions);
    }
    let name = |name: &str, previous: &Option<String>| match name {
        "" => previous.clone(),
        name => Some(name.to_owned()),
    };
    let known = report.last_lsn != Lsn(0);
    MirrorStatus {
        observed_generation: generation,
        conditions,
        slot_name: name(&report.slot_name, &previous.slot_name),
        publication_name: name(&report.publication_name, &previous.publication_name),
        slot: report.slot_place.as_ref().map(slot).or_else(|| previous.slot.clone()),
        last_lsn: if known { Some(report.last_lsn.to_string()) } else { previous.last_lsn.clone() },
        // An outdated lag is worse than none.
        lag: lag(report),
        retained_wal_bytes: report.slot.retained_wal_bytes.map(saturating),
        tables: if asked { Some(table_counts(report)) } else { previous.tables.clone() },
        failed_tables: if asked { failed_tables(report) } else { previous.failed_tables.clone() },
        snapshot: if asked { Some(snapshot(report, previous)) } else { previous.snapshot.clone() },
    }
}

/// Whether `next` is to be written now over `previous`, which was written `since_last_write` ago: immediately
/// when what people and tools act on differs, at most every five seconds when only figures do, and never when
/// nothing does.
pub fn write_now(previous: Option<&MirrorStatus>, next: &MirrorStatus, since_last_write: Duration) -> bool {
    match previous {
        None => true,
        Some(previous) if previous == next => false,
        Some(previous) => matters(previous) != matters(next) || since_last_write >= FIGURES,
    }
}

/// What is worth a write of its own. `CaughtUp` is not: it comes and goes with every transaction.
fn matters(status: &MirrorStatus) -> impl PartialEq + use<'_> {
    let stable = status.conditions.iter().filter(|condition| condition.type_ != types::CAUGHT_UP);
    // A required action changes seldom, and the next check may be a minute away.
    let order = |c: &'_ ApiCondition| (c.type_ == types::STALLED).then(|| c.message.clone());
    let conditions: Vec<_> = stable.map(|c| (&c.type_, &c.status, &c.reason, order(c))).collect();
    let failed: Vec<_> =
        status.failed_tables.iter().map(|table| (&table.schema, &table.name, &table.reason)).collect();
    let names = (&status.slot_name, &status.publication_name, &status.slot);
    (status.observed_generation, names, conditions, &status.tables, failed)
}

/// Conditions as the API has them: reasons that it would refuse are replaced, messages that are too long are
/// truncated.
pub(super) fn api_conditions(
    conditions: Vec<Condition>,
    generation: Option<i64>,
    previous: &[ApiCondition],
    now: &Time,
) -> Vec<ApiCondition> {
    let convert = |condition: Condition| {
        let Condition { type_, status, reason, message } = condition;
        let status = status.as_str().to_owned();
        let earlier = previous.iter().find(|earlier| earlier.type_ == type_ && earlier.status == status);
        ApiCondition {
            last_transition_time: earlier.map_or(now, |earlier| &earlier.last_transition_time).clone(),
            message: cut(&message, CONDITION_MESSAGE),
            observed_generation: generation,
            reason: reason.into(),
            status,
            type_,
        }
    };
    conditions.into_iter().map(convert).collect()
}

/// Puts back what the previous conditions say of one type; the generation stays the present one.
fn keep(type_: &str, conditions: &mut [ApiCondition], previous: &[ApiCondition]) {
    let Some(previous) = previous.iter().find(|previous| previous.type_ == type_) else { return };
    for condition in conditions.iter_mut().filter(|condition| condition.type_ == type_) {
        let observed_generation = condition.observed_generation;
        *condition = ApiCondition { observed_generation, ..previous.clone() };
    }
}

fn lag(report: &MirrorReport) -> Option<LagStatus> {
    let bytes = report.lag.bytes.map(saturating);
    let seconds = report.lag.seconds.map(|seconds| (seconds as i64).max(0));
    (bytes.is_some() || seconds.is_some()).then_some(LagStatus { bytes, seconds })
}

/// Whether the report has the states of the tables. One that was made without asking the replicator has none,
/// and one of a replicator that has just started, or can't connect, has them all as if they were new.
fn knows_tables(report: &MirrorReport) -> bool {
    let at_work = matches!(report.phase, MirrorPhase::Snapshotting | MirrorPhase::Streaming);
    report.tables.iter().any(|table| at_work || table.state != TableState::Pending)
}

/// The copy's figures. A replicator counts from its own start, so that one with nothing left to copy has
/// none, and the last ones stay.
fn snapshot(report: &MirrorReport, previous: &MirrorStatus) -> SnapshotStatus {
    let (copied, estimated) = (saturating(rows_copied(report)), saturating(rows_estimated(report)));
    let now = SnapshotStatus { rows_copied: copied, rows_estimated: estimated };
    match &previous.snapshot {
        Some(previous) if estimated == 0 => previous.clone(),
        _ => now,
    }
}

fn slot(place: &SlotPlace) -> SlotStatus {
    SlotStatus {
        host: place.host.clone(),
        port: i32::from(place.port),
        database: place.database.clone(),
        system_identifier: place.system_identifier.clone(),
    }
}

/// Where a Mirror's slot was made, as its status says.
pub fn slot_place(status: &SlotStatus) -> SlotPlace {
    SlotPlace {
        host: status.host.clone(),
        port: u16::try_from(status.port).unwrap_or_default(),
        database: status.database.clone(),
        system_identifier: status.system_identifier.clone(),
    }
}

fn table_counts(report: &MirrorReport) -> TableCounts {
    let count = |tables: usize| i32::try_from(tables).unwrap_or(i32::MAX);
    let in_state = |state| in_state(report, state).count();
    TableCounts {
        total: count(report.tables.len()),
        snapshotting: count(in_state(TableState::Pending) + in_state(TableState::Snapshotting)),
        streaming: count(in_state(TableState::Streaming)),
        failed: count(in_state(TableState::Failed)),
    }
}

fn failed_tables(report: &MirrorReport) -> Vec<FailedTable> {
    let failed = |table: &TableReport| FailedTable {
        schema: table.schema.clone(),
        name: table.name.clone(),
        reason: table.reason.map_or_else(String::new, String::from),
        message: cut(&table.message, TABLE_MESSAGE),
    };
    in_state(report, TableState::Failed).take(FAILED_TABLES).map(failed).collect()
}

fn saturating(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// At most `most` characters, the last of them `…` when some are left out.
fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some(_) => text.chars().take(most - 1).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests;
