//! From a report to conditions.

use serde::{Deserialize, Serialize};

use super::slot::slot_warning;
use crate::{
    api::conditions as types,
    fault::{Reason, Side},
    model::{MirrorFailure, MirrorPhase, MirrorReport, TableReport, TableState},
};

/// Failed tables that a message names.
const NAMED_TABLES: usize = 5;

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It doesn't.
    False,
    /// Not known yet, or not any more.
    Unknown,
}

impl ConditionStatus {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            ConditionStatus::True => "True",
            ConditionStatus::False => "False",
            ConditionStatus::Unknown => "Unknown",
        }
    }
}

/// One aspect of a Mirror's state, in the words of Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// Which aspect: a constant of [`crate::api::conditions`].
    #[serde(rename = "type")]
    pub type_: String,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, in one CamelCase word.
    pub reason: Reason,
    /// Why, in a sentence, with what to run where action is required.
    pub message: String,
}

/// The state that follows from the report.
enum Overall {
    Provisioning {
        reason: Reason,
        message: String,
    },
    Snapshotting {
        message: String,
    },
    /// Some tables are copied while the others stream as before.
    Joining {
        failed: bool,
        message: String,
    },
    Streaming {
        message: String,
    },
    StreamingWithFailedTables {
        message: String,
    },
    Retrying(MirrorFailure),
    Stalled(MirrorFailure),
    Suspended {
        message: String,
    },
    Deleting {
        reason: Reason,
        message: String,
        cause: Option<Reason>,
    },
    Finished,
}

/// The conditions of a Mirror, with remedies in their messages: `Ready` first, then `Reconciling` or
/// `Stalled` while they are true, then the others.
pub fn conditions(report: &MirrorReport) -> Vec<Condition> {
    let overall = Overall::of(report, report.phase);
    let meanwhile = report.meanwhile.map(|phase| Overall::of(report, phase));
    // The conditions also report what a replicator with earlier settings does.
    let work = meanwhile.as_ref().unwrap_or(&overall);
    let side = |type_, side, name| overall.blame(type_, side).unwrap_or_else(|| work.side(type_, name));
    let mut ready = overall.ready();
    if let Some(MirrorFailure { reason, message, .. }) = &report.warning {
        if ready.reason == Reason::Streaming {
            ready.reason = *reason;
        }
        ready.message = format!("{}; {message}", ready.message);
    }
    let mut conditions = vec![ready];
    conditions.extend(overall.reconciling_or_stalled());
    let mut source = side(types::SOURCE_READY, Side::Source, "the source");
    if let Some((reason, message)) = slot_warning(report) {
        match (source.status, &overall) {
            (ConditionStatus::True, _) => {
                source = condition(types::SOURCE_READY, ConditionStatus::True, reason, &message);
            }
            (_, Overall::Provisioning { .. } | Overall::Retrying(_) | Overall::Stalled(_)) => {
                conditions[0].message = format!("{}; meanwhile {message}", conditions[0].message);
            }
            _ => {}
        }
    }
    conditions.push(source);
    conditions.push(side(types::DESTINATION_READY, Side::Destination, "the destination"));
    conditions.push(snapshotted(report));
    conditions.push(work.streaming());
    conditions.push(work.caught_up(report));
    conditions
}

impl Overall {
    /// What the figures come to in this phase.
    fn of(report: &MirrorReport, phase: MirrorPhase) -> Overall {
        let failure = || {
            let unknown = || MirrorFailure::new(Reason::Unknown, "no reason was given; see the log");
            report.failure.clone().unwrap_or_else(unknown)
        };
        match phase {
            MirrorPhase::Provisioning => provisioning(report.failure.as_ref()),
            MirrorPhase::Retrying => Overall::Retrying(failure()),
            MirrorPhase::Stalled => Overall::Stalled(failure()),
            MirrorPhase::Suspended => Overall::Suspended { message: suspended(report) },
            MirrorPhase::Finished => Overall::Finished,
            MirrorPhase::Deleting => deleting(report.failure.as_ref()),
            MirrorPhase::Snapshotting | MirrorPhase::Streaming => Overall::at_work(report, phase),
        }
    }

    fn at_work(report: &MirrorReport, phase: MirrorPhase) -> Overall {
        let failed = in_state(report, TableState::Failed).count();
        let streams = in_state(report, TableState::Streaming).next().is_some();
        if failed > 0 && failed == report.tables.len() {
            return Overall::Stalled(MirrorFailure::new(Reason::AllTablesFailed, failed_tables(report)));
        }
        let copying =
            |table: &&TableReport| matches!(table.state, TableState::Pending | TableState::Snapshotting);
        let mut left = report.tables.iter().filter(copying).peekable();
        let only_joins = left.peek().is_some() && left.all(|table| table.copied_while_streaming);
        if phase == MirrorPhase::Snapshotting && streams && only_joins {
            return Overall::Joining { failed: failed > 0, message: joining(report) };
        }
        if phase == MirrorPhase::Snapshotting || (failed > 0 && !streams) {
            return Overall::Snapshotting { message: self::copying(report) };
        }
        if failed > 0 {
            return Overall::StreamingWithFailedTables { message: failed_tables(report) };
        }
        let message = match report.tables.as_slice() {
            [table] => format!("streaming changes for {}.{}", table.schema, table.name),
            tables => format!("streaming changes for {} tables", tables.len()),
        };
        Overall::Streaming { message }
    }

    fn ready(&self) -> Condition {
        use ConditionStatus::{False, True, Unknown};
        match self {
            Overall::Provisioning { message, .. } | Overall::Snapshotting { message } => {
                condition(types::READY, Unknown, Reason::Progressing, message)
            }
            Overall::Streaming { message } | Overall::Joining { failed: false, message } => {
                condition(types::READY, True, Reason::Streaming, message)
            }
            Overall::Joining { failed: true, message } => {
                condition(types::READY, True, Reason::StreamingWithFailedTables, message)
            }
            Overall::StreamingWithFailedTables { message } => {
                condition(types::READY, True, Reason::StreamingWithFailedTables, message)
            }
            Overall::Retrying(failure) => {
                condition(types::READY, False, Reason::ProgressingWithRetry, &failure.message)
            }
            Overall::Stalled(failure) => condition(types::READY, False, failure.reason, &failure.message),
            Overall::Suspended { message } => condition(types::READY, True, Reason::Suspended, message),
            Overall::Deleting { reason, message, .. } => condition(types::READY, False, *reason, message),
            Overall::Finished => {
                condition(types::READY, True, Reason::Finished, "everything in the spec is done")
            }
        }
    }

    fn reconciling_or_stalled(&self) -> Option<Condition> {
        let (type_, reason, message) = match self {
            Overall::Provisioning { reason, message } => (types::RECONCILING, *reason, message),
            Overall::Snapshotting { message } | Overall::Joining { message, .. } => {
                (types::RECONCILING, Reason::Snapshotting, message)
            }
            Overall::Deleting { reason, message, .. } => (types::RECONCILING, *reason, message),
            Overall::Retrying(failure) => (types::RECONCILING, failure.reason, &failure.message),
            Overall::Stalled(failure) => (types::STALLED, failure.reason, &failure.message),
            Overall::Streaming { .. }
            | Overall::StreamingWithFailedTables { .. }
            | Overall::Suspended { .. }
            | Overall::Finished => return None,
        };
        Some(condition(type_, ConditionStatus::True, reason, message))
    }

    /// `SourceReady` or `DestinationReady`, when the fault lies on this side.
    fn blame(&self, type_: &str, side: Side) -> Option<Condition> {
        let (reason, message) = match self {
            Overall::Retrying(failure) | Overall::Stalled(failure) => (failure.reason, &failure.message),
            Overall::Deleting { cause: Some(cause), message, .. } => (*cause, message),
            _ => return None,
        };
        (reason.side() == side).then(|| condition(type_, ConditionStatus::False, reason, message))
    }

    /// `SourceReady` or `DestinationReady`, when nothing is wrong with this side.
    fn side(&self, type_: &str, name: &str) -> Condition {
        use ConditionStatus::{True, Unknown};
        match self {
            Overall::Provisioning { .. } => {
                condition(type_, Unknown, Reason::Provisioning, &format!("{name} is being checked"))
            }
            Overall::Stalled(failure) if failure.reason == Reason::AllTablesFailed => {
                condition(type_, True, Reason::Connected, &format!("{name} is in use"))
            }
            Overall::Retrying(_)
            | Overall::Stalled(_)
            | Overall::Suspended { .. }
            | Overall::Deleting { .. }
            | Overall::Finished => {
                condition(type_, Unknown, Reason::Unknown, &format!("{name} is not in use"))
            }
            Overall::Snapshotting { .. }
            | Overall::Joining { .. }
            | Overall::Streaming { .. }
            | Overall::StreamingWithFailedTables { .. } => {
                condition(type_, True, Reason::Connected, &format!("{name} is in use"))
            }
        }
    }

    /// Why no changes stream, or `None` when they do. `Ready` has the details.
    fn standstill(&self) -> Option<(Reason, &'static str)> {
        match self {
            Overall::Snapshotting { .. }
            | Overall::Joining { .. }
            | Overall::Streaming { .. }
            | Overall::StreamingWithFailedTables { .. } => None,
            Overall::Provisioning { .. } => Some((Reason::Provisioning, "see Reconciling")),
            Overall::Retrying(_) => Some((Reason::ProgressingWithRetry, "see Reconciling")),
            Overall::Stalled(_) => Some((Reason::Stalled, "see Stalled")),
            Overall::Suspended { .. } => Some((Reason::Suspended, "spec.suspend is true")),
            Overall::Deleting { .. } => Some((Reason::Deleting, "the Mirror is being deleted")),
            Overall::Finished => Some((Reason::Finished, "everything in the spec is done")),
        }
    }

    fn streaming(&self) -> Condition {
        match self.standstill() {
            None => {
                condition(types::STREAMING, ConditionStatus::True, Reason::Streaming, "streaming changes")
            }
            Some((reason, message)) => condition(types::STREAMING, ConditionStatus::False, reason, message),
        }
    }

    fn caught_up(&self, report: &MirrorReport) -> Condition {
        if let Some((reason, message)) = self.standstill() {
            return condition(types::CAUGHT_UP, ConditionStatus::Unknown, reason, message);
        }
        let lsn = report.last_lsn;
        if let Overall::Snapshotting { .. } | Overall::Joining { .. } = self {
            let message = "initial snapshot in progress";
            return condition(types::CAUGHT_UP, ConditionStatus::False, Reason::Snapshotting, message);
        }
        let but = match self {
            Overall::StreamingWithFailedTables { .. } => ", except for failed tables",
            _ => "",
        };
        let seconds = report.lag.seconds.map(|seconds| format!("{seconds:.1} s"));
        let behind = match report.lag.bytes {
            Some(0) => {
                let message = format!("everything up to {lsn} is at the destination{but}");
                return condition(types::CAUGHT_UP, ConditionStatus::True, Reason::NoLag, &message);
            }
            None => {
                let message = "the source has not reported the end of its log for half a minute";
                return condition(types::CAUGHT_UP, ConditionStatus::Unknown, Reason::Behind, message);
            }
            Some(bytes) => [Some(format!("{} of WAL", size(bytes))), seconds],
        };
        let behind: Vec<String> = behind.into_iter().flatten().collect();
        let message =
            format!("{} behind; everything up to {lsn} is at the destination{but}", behind.join(" and "));
        condition(types::CAUGHT_UP, ConditionStatus::False, Reason::Behind, &message)
    }
}

/// A failure's message says what is being waited for.
fn provisioning(failure: Option<&MirrorFailure>) -> Overall {
    let (reason, message) = match failure {
        Some(failure) => (failure.reason, failure.message.as_str()),
        None => (Reason::Provisioning, "connecting, checking, creating publication, slot and target tables"),
    };
    Overall::Provisioning { reason, message: message.to_owned() }
}

fn deleting(failure: Option<&MirrorFailure>) -> Overall {
    let message = "waiting for the replicator to terminate before removing its slot, publication and state";
    match failure {
        Some(MirrorFailure { reason, message, .. }) if *reason == Reason::Deleting => {
            Overall::Deleting { reason: Reason::Deleting, message: message.clone(), cause: None }
        }
        Some(MirrorFailure { reason, message, .. }) => Overall::Deleting {
            reason: Reason::CleanupFailed,
            message: message.clone(),
            cause: Some(*reason),
        },
        None => Overall::Deleting { reason: Reason::Deleting, message: message.to_owned(), cause: None },
    }
}

fn snapshotted(report: &MirrorReport) -> Condition {
    let started = report.tables.iter().any(|table| table.state != TableState::Pending);
    let left =
        in_state(report, TableState::Pending).chain(in_state(report, TableState::Snapshotting)).count();
    if !started {
        condition(
            types::SNAPSHOTTED,
            ConditionStatus::False,
            Reason::Provisioning,
            "no table is being copied yet",
        )
    } else if left > 0 {
        condition(types::SNAPSHOTTED, ConditionStatus::False, Reason::Snapshotting, &copying(report))
    } else if in_state(report, TableState::Streaming).next().is_none() {
        condition(types::SNAPSHOTTED, ConditionStatus::False, Reason::AllTablesFailed, &failed_tables(report))
    } else {
        condition(types::SNAPSHOTTED, ConditionStatus::True, Reason::Copied, "initial snapshot complete")
    }
}

pub(super) fn in_state(report: &MirrorReport, state: TableState) -> impl Iterator<Item = &TableReport> {
    report.tables.iter().filter(move |table| table.state == state)
}

/// Rows that the copy has made durable, of all tables.
pub(super) fn rows_copied(report: &MirrorReport) -> u64 {
    report.tables.iter().fold(0, |sum, table| sum.saturating_add(table.rows_copied))
}

/// Rows that the copy is expected to come to, of all tables; never fewer than are copied.
pub(super) fn rows_estimated(report: &MirrorReport) -> u64 {
    let rows = |table: &TableReport| table.rows_estimated.max(table.rows_copied);
    report.tables.iter().fold(0, |sum, table| sum.saturating_add(rows(table)))
}

fn copying(report: &MirrorReport) -> String {
    let copied = in_state(report, TableState::Streaming).count();
    let mut message = format!("{copied} of {} tables copied", report.tables.len());
    let (rows, estimated) = (rows_copied(report), rows_estimated(report));
    if estimated > 0 {
        message = format!("{message}, {rows} of about {estimated} rows");
    }
    let mut waiting = in_state(report, TableState::Pending).filter(|table| !table.message.is_empty());
    if let Some(table) = waiting.next() {
        message = format!("{message}; {}.{}: {}", table.schema, table.name, table.message);
    }
    if in_state(report, TableState::Failed).next().is_some() {
        message = format!("{message}; {}", failed_tables(report));
    }
    message
}

/// Which tables are copied while the others stream.
fn joining(report: &MirrorReport) -> String {
    let tables = in_state(report, TableState::Pending).chain(in_state(report, TableState::Snapshotting));
    let names: Vec<String> = tables.map(|table| format!("{}.{}", table.schema, table.name)).collect();
    let mut shown = names.iter().take(NAMED_TABLES).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > NAMED_TABLES {
        shown = format!("{shown} and {} more", names.len() - NAMED_TABLES);
    }
    let verb = if names.len() == 1 { "is" } else { "are" };
    format!("{shown} {verb} being added while the others stream; {}", copying(report))
}

fn failed_tables(report: &MirrorReport) -> String {
    let failed: Vec<&TableReport> = in_state(report, TableState::Failed).collect();
    let name = |table: &&TableReport| {
        let reason = table.reason.unwrap_or(Reason::Unknown);
        format!("{}.{} ({reason}: {})", table.schema, table.name, table.message)
    };
    let names: Vec<String> = failed.iter().take(NAMED_TABLES).map(name).collect();
    let more = failed.len().saturating_sub(NAMED_TABLES);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{} of {} tables have failed: {}{more}", failed.len(), report.tables.len(), names.join(", "))
}

fn suspended(report: &MirrorReport) -> String {
    let slot = &report.slot_name;
    match report.slot.retained_wal_bytes {
        Some(bytes) => {
            format!(
                "suspended; slot {slot} holds back {} of WAL at the source, whose disk may fill up",
                size(bytes)
            )
        }
        None => {
            format!(
                "suspended; while slot {slot} exists it holds back WAL at the source, whose disk may fill up"
            )
        }
    }
}

/// Bytes for people: to a tenth of the largest binary unit.
pub(super) fn size(bytes: u64) -> String {
    let units = [(1_u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}

pub(super) fn condition(type_: &str, status: ConditionStatus, reason: Reason, message: &str) -> Condition {
    Condition { type_: type_.to_owned(), status, reason, message: message.to_owned() }
}

#[cfg(test)]
mod tests;
