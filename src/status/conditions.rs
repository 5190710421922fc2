//! From a report to conditions.

use serde::{Deserialize, Serialize};

use super::slot::slot_warning;
use crate::{
    api::conditions::{self as types, reason},
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
    pub reason: String,
    /// Why, in a sentence, with what to run where a human is needed.
    pub message: String,
}

/// What the report comes to.
enum Overall {
    Provisioning { reason: String, message: String },
    Snapshotting { message: String },
    Streaming { message: String },
    StreamingWithFailedTables { message: String },
    Retrying(MirrorFailure),
    Stalled(MirrorFailure),
    Suspended { message: String },
    Deleting { reason: &'static str, message: String, cause: Option<String> },
    Finished,
}

/// The conditions of a Mirror: `Ready` first, then `Reconciling` or `Stalled` while they are true, then those that stay.
pub fn conditions(report: &MirrorReport) -> Vec<Condition> {
    let overall = Overall::of(report);
    let mut conditions = vec![overall.ready()];
    conditions.extend(overall.reconciling_or_stalled());
    let mut source = overall.side(types::SOURCE_READY, reason::SOURCE_PREFIX, "the source");
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
    conditions.push(overall.side(types::DESTINATION_READY, reason::DESTINATION_PREFIX, "the destination"));
    conditions.push(snapshotted(report));
    conditions.push(overall.streaming());
    conditions.push(overall.caught_up(report));
    conditions
}

impl Overall {
    fn of(report: &MirrorReport) -> Overall {
        let failure = || {
            report.failure.clone().unwrap_or_else(|| MirrorFailure {
                reason: reason::UNKNOWN.to_owned(),
                message: "no reason was given; see the log".to_owned(),
            })
        };
        match report.phase {
            MirrorPhase::Provisioning => provisioning(report.failure.as_ref()),
            MirrorPhase::Retrying => Overall::Retrying(failure()),
            MirrorPhase::Stalled => Overall::Stalled(failure()),
            MirrorPhase::Suspended => Overall::Suspended { message: suspended(report) },
            MirrorPhase::Finished => Overall::Finished,
            MirrorPhase::Deleting => deleting(report.failure.as_ref()),
            MirrorPhase::Snapshotting | MirrorPhase::Streaming => Overall::at_work(report),
        }
    }

    fn at_work(report: &MirrorReport) -> Overall {
        let failed = in_state(report, TableState::Failed).count();
        let streams = in_state(report, TableState::Streaming).next().is_some();
        if failed > 0 && failed == report.tables.len() {
            return Overall::Stalled(MirrorFailure {
                reason: reason::ALL_TABLES_FAILED.to_owned(),
                message: failed_tables(report),
            });
        }
        if report.phase == MirrorPhase::Snapshotting || (failed > 0 && !streams) {
            return Overall::Snapshotting { message: copying(report) };
        }
        if failed > 0 {
            return Overall::StreamingWithFailedTables { message: failed_tables(report) };
        }
        let message = match report.tables.as_slice() {
            [table] => format!("changes of {}.{} flow", table.schema, table.name),
            tables => format!("changes of {} tables flow", tables.len()),
        };
        Overall::Streaming { message }
    }

    fn ready(&self) -> Condition {
        use ConditionStatus::{False, True, Unknown};
        match self {
            Overall::Provisioning { message, .. } | Overall::Snapshotting { message } => {
                condition(types::READY, Unknown, reason::PROGRESSING, message)
            }
            Overall::Streaming { message } => condition(types::READY, True, reason::STREAMING, message),
            Overall::StreamingWithFailedTables { message } => {
                condition(types::READY, True, reason::STREAMING_WITH_FAILED_TABLES, message)
            }
            Overall::Retrying(failure) => {
                condition(types::READY, False, reason::PROGRESSING_WITH_RETRY, &failure.message)
            }
            Overall::Stalled(failure) => condition(types::READY, False, &failure.reason, &failure.message),
            Overall::Suspended { message } => condition(types::READY, True, reason::SUSPENDED, message),
            Overall::Deleting { reason, message, .. } => condition(types::READY, False, reason, message),
            Overall::Finished => {
                condition(types::READY, True, reason::FINISHED, "all that was asked for is done")
            }
        }
    }

    fn reconciling_or_stalled(&self) -> Option<Condition> {
        let (type_, reason, message) = match self {
            Overall::Provisioning { reason, message } => (types::RECONCILING, reason.as_str(), message),
            Overall::Snapshotting { message } => (types::RECONCILING, reason::SNAPSHOTTING, message),
            Overall::Deleting { reason, message, .. } => (types::RECONCILING, *reason, message),
            Overall::Retrying(failure) => (types::RECONCILING, failure.reason.as_str(), &failure.message),
            Overall::Stalled(failure) => (types::STALLED, failure.reason.as_str(), &failure.message),
            Overall::Streaming { .. }
            | Overall::StreamingWithFailedTables { .. }
            | Overall::Suspended { .. }
            | Overall::Finished => return None,
        };
        Some(condition(type_, ConditionStatus::True, reason, message))
    }

    /// `SourceReady` or `DestinationReady`: a fault says by the beginning of its reason which side it lies on.
    fn side(&self, type_: &str, prefix: &str, name: &str) -> Condition {
        use ConditionStatus::{False, True, Unknown};
        match self {
            Overall::Provisioning { .. } => {
                condition(type_, Unknown, reason::PROVISIONING, &format!("{name} is being checked"))
            }
            Overall::Retrying(failure) | Overall::Stalled(failure) if failure.reason.starts_with(prefix) => {
                condition(type_, False, &failure.reason, &failure.message)
            }
            Overall::Deleting { cause: Some(cause), message, .. } if cause.starts_with(prefix) => {
                condition(type_, False, cause, message)
            }
            Overall::Stalled(failure) if failure.reason == reason::ALL_TABLES_FAILED => {
                condition(type_, True, reason::CONNECTED, &format!("{name} is in use"))
            }
            Overall::Retrying(_)
            | Overall::Stalled(_)
            | Overall::Suspended { .. }
            | Overall::Deleting { .. }
            | Overall::Finished => {
                condition(type_, Unknown, reason::UNKNOWN, &format!("{name} is not in use at the moment"))
            }
            Overall::Snapshotting { .. }
            | Overall::Streaming { .. }
            | Overall::StreamingWithFailedTables { .. } => {
                condition(type_, True, reason::CONNECTED, &format!("{name} is in use"))
            }
        }
    }

    /// Why changes don't flow, or `None` when they do. `Ready` has the details, which nobody wants to read again.
    fn standstill(&self) -> Option<(&str, &str)> {
        match self {
            Overall::Snapshotting { .. }
            | Overall::Streaming { .. }
            | Overall::StreamingWithFailedTables { .. } => None,
            Overall::Provisioning { .. } => Some((reason::PROVISIONING, "see Reconciling")),
            Overall::Retrying(_) => Some((reason::PROGRESSING_WITH_RETRY, "see Reconciling")),
            Overall::Stalled(_) => Some((reason::STALLED, "see Stalled")),
            Overall::Suspended { .. } => Some((reason::SUSPENDED, "spec.suspend is true")),
            Overall::Deleting { .. } => Some((reason::DELETING, "the Mirror is being deleted")),
            Overall::Finished => Some((reason::FINISHED, "all that was asked for is done")),
        }
    }

    fn streaming(&self) -> Condition {
        match self.standstill() {
            None => condition(types::STREAMING, ConditionStatus::True, reason::STREAMING, "changes flow"),
            Some((reason, message)) => condition(types::STREAMING, ConditionStatus::False, reason, message),
        }
    }

    fn caught_up(&self, report: &MirrorReport) -> Condition {
        if let Some((reason, message)) = self.standstill() {
            return condition(types::CAUGHT_UP, ConditionStatus::Unknown, reason, message);
        }
        let lsn = report.last_lsn;
        if let Overall::Snapshotting { .. } = self {
            let message = "the rows that were there are not all copied";
            return condition(types::CAUGHT_UP, ConditionStatus::False, reason::SNAPSHOTTING, message);
        }
        let but = match self {
            Overall::StreamingWithFailedTables { .. } => ", but for the failed tables",
            _ => "",
        };
        if report.lag.bytes == 0 {
            let message = format!("everything up to {lsn} is at the destination{but}");
            return condition(types::CAUGHT_UP, ConditionStatus::True, reason::NO_LAG, &message);
        }
        let (bytes, seconds) = (size(report.lag.bytes), report.lag.seconds);
        let message = format!(
            "{bytes} of WAL and {seconds:.1} s behind; everything up to {lsn} is at the destination{but}"
        );
        condition(types::CAUGHT_UP, ConditionStatus::False, reason::BEHIND, &message)
    }
}

/// A failure says what is being waited for.
fn provisioning(failure: Option<&MirrorFailure>) -> Overall {
    let (reason, message) = match failure {
        Some(failure) => (failure.reason.as_str(), failure.message.as_str()),
        None => (reason::PROVISIONING, "connecting, checking, making publication, slot and target tables"),
    };
    Overall::Provisioning { reason: reason.to_owned(), message: message.to_owned() }
}

fn deleting(failure: Option<&MirrorFailure>) -> Overall {
    let message = "waiting for the replicator to end; then its slot, publication and state are removed";
    match failure {
        Some(MirrorFailure { reason, message }) => Overall::Deleting {
            reason: reason::CLEANUP_FAILED,
            message: message.clone(),
            cause: Some(reason.clone()),
        },
        None => Overall::Deleting { reason: reason::DELETING, message: message.to_owned(), cause: None },
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
            reason::PROVISIONING,
            "no table is being copied yet",
        )
    } else if left > 0 {
        condition(types::SNAPSHOTTED, ConditionStatus::False, reason::SNAPSHOTTING, &copying(report))
    } else if in_state(report, TableState::Streaming).next().is_none() {
        condition(
            types::SNAPSHOTTED,
            ConditionStatus::False,
            reason::ALL_TABLES_FAILED,
            &failed_tables(report),
        )
    } else {
        condition(
            types::SNAPSHOTTED,
            ConditionStatus::True,
            reason::COPIED,
            "the rows that were there are copied",
        )
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

fn failed_tables(report: &MirrorReport) -> String {
    let failed: Vec<&TableReport> = in_state(report, TableState::Failed).collect();
    let name = |table: &&TableReport| {
        format!("{}.{} ({}: {})", table.schema, table.name, table.reason, table.message)
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

pub(super) fn condition(type_: &str, status: ConditionStatus, reason: &str, message: &str) -> Condition {
    Condition { type_: type_.to_owned(), status, reason: reason.to_owned(), message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Lsn, MirrorIdentity, Progress, TableId};

    fn report(
        phase: MirrorPhase,
        failure: Option<(&str, &str)>,
        tables: &[(&str, TableState)],
    ) -> MirrorReport {
        let progress =
            Progress::new(&MirrorIdentity { namespace: "default".into(), name: "m".into(), uid: "0".into() });
        let failure =
            failure.map(|(reason, message)| MirrorFailure { reason: reason.into(), message: message.into() });
        progress.set_phase(phase, failure);
        for (name, state) in tables {
            let failed = *state == TableState::Failed;
            let (reason, message) = if failed { ("DestinationTableMissing", "run this") } else { ("", "") };
            progress.table(&TableId::new("public", *name)).set_state(*state, reason, message);
        }
        progress.report()
    }

    /// The conditions as `Type=Status Reason` lines.
    fn summary(report: &MirrorReport) -> Vec<String> {
        let line = |c: &Condition| format!("{}={:?} {}", c.type_, c.status, c.reason);
        conditions(report).iter().map(line).collect()
    }

    #[test]
    fn provisioning() {
        assert_eq!(
            summary(&report(MirrorPhase::Provisioning, None, &[])),
            [
                "Ready=Unknown Progressing",
                "Reconciling=True Provisioning",
                "SourceReady=Unknown Provisioning",
                "DestinationReady=Unknown Provisioning",
                "Snapshotted=False Provisioning",
                "Streaming=False Provisioning",
                "CaughtUp=Unknown Provisioning",
            ]
        );
    }

    #[test]
    fn snapshotting() {
        let tables =
            [("a", TableState::Streaming), ("b", TableState::Snapshotting), ("c", TableState::Pending)];
        let report = report(MirrorPhase::Snapshotting, None, &tables);
        assert_eq!(
            summary(&report),
            [
                "Ready=Unknown Progressing",
                "Reconciling=True Snapshotting",
                "SourceReady=True Connected",
                "DestinationReady=True Connected",
                "Snapshotted=False Snapshotting",
                "Streaming=True Streaming",
                "CaughtUp=False Snapshotting",
            ]
        );
        assert_eq!(conditions(&report)[0].message, "1 of 3 tables copied");
    }

    #[test]
    fn streaming_and_behind() {
        let mut report = report(MirrorPhase::Streaming, None, &[("a", TableState::Streaming)]);
        report.lag.bytes = 3 << 19;
        report.lag.seconds = 2.25;
        report.last_lsn = Lsn(0x10);
        assert_eq!(
            summary(&report),
            [
                "Ready=True Streaming",
                "SourceReady=True Connected",
                "DestinationReady=True Connected",
                "Snapshotted=True Copied",
                "Streaming=True Streaming",
                "CaughtUp=False Behind",
            ]
        );
        let message = "1.5 MiB of WAL and 2.2 s behind; everything up to 0/10 is at the destination";
        assert_eq!(conditions(&report)[5].message, message);
    }

    #[test]
    fn some_or_all_tables_failed() {
        let some =
            report(MirrorPhase::Streaming, None, &[("a", TableState::Streaming), ("b", TableState::Failed)]);
        assert_eq!(summary(&some)[0], "Ready=True StreamingWithFailedTables");
        assert_eq!(
            conditions(&some)[0].message,
            "1 of 2 tables have failed: public.b (DestinationTableMissing: run this)"
        );
        assert_eq!(
            conditions(&some)[5].message,
            "everything up to 0/0 is at the destination, but for the failed tables"
        );
        let all = report(MirrorPhase::Streaming, None, &[("b", TableState::Failed)]);
        assert_eq!(
            summary(&all),
            [
                "Ready=False AllTablesFailed",
                "Stalled=True AllTablesFailed",
                "SourceReady=True Connected",
                "DestinationReady=True Connected",
                "Snapshotted=False AllTablesFailed",
                "Streaming=False Stalled",
                "CaughtUp=Unknown Stalled",
            ]
        );
    }

    #[test]
    fn retrying_and_stalled_say_which_side() {
        let tables = [("a", TableState::Streaming)];
        let retrying = report(MirrorPhase::Retrying, Some(("DestinationUnreachable", "refused")), &tables);
        assert_eq!(
            summary(&retrying),
            [
                "Ready=False ProgressingWithRetry",
                "Reconciling=True DestinationUnreachable",
                "SourceReady=Unknown Unknown",
                "DestinationReady=False DestinationUnreachable",
                "Snapshotted=True Copied",
                "Streaming=False ProgressingWithRetry",
                "CaughtUp=Unknown ProgressingWithRetry",
            ]
        );
        let stalled = report(MirrorPhase::Stalled, Some(("SourceSlotLost", "resync")), &tables);
        let lines = summary(&stalled);
        assert_eq!(lines[0], "Ready=False SourceSlotLost");
        assert_eq!(lines[1], "Stalled=True SourceSlotLost");
        assert_eq!(lines[2], "SourceReady=False SourceSlotLost");
        assert_eq!(lines[3], "DestinationReady=Unknown Unknown");
        let told = conditions(&stalled).iter().filter(|condition| condition.message == "resync").count();
        assert_eq!(told, 3, "Streaming and CaughtUp don't repeat what to run");
    }

    #[test]
    fn a_slot_that_holds_back_much_is_told_whether_changes_flow_or_not() {
        let with = |phase, failure: Option<(&str, &str)>| {
            let mut report = report(phase, failure, &[("a", TableState::Streaming)]);
            report.slot.wal_status = Some("extended".to_owned());
            report.slot.retained_wal_bytes = Some(5 << 30);
            report
        };
        let streams = with(MirrorPhase::Streaming, None);
        assert_eq!(summary(&streams)[1], "SourceReady=True SourceDiskAtRisk");
        assert_eq!(conditions(&streams)[0].message, "changes of public.a flow");
        let retries = with(MirrorPhase::Retrying, Some(("DestinationUnreachable", "no route to host")));
        let message = &conditions(&retries)[0].message;
        assert!(
            message.starts_with("no route to host; meanwhile slot walferry_0 holds back 5.0 GiB"),
            "{message}"
        );
        assert_eq!(conditions(&retries)[1].message, "no route to host");
    }

    #[test]
    fn suspended_warns_of_the_wal() {
        let mut report = report(MirrorPhase::Suspended, None, &[("a", TableState::Streaming)]);
        report.slot.retained_wal_bytes = Some(5 << 30);
        assert_eq!(summary(&report)[0], "Ready=True Suspended");
        assert_eq!(summary(&report)[4], "Streaming=False Suspended");
        assert_eq!(
            conditions(&report)[0].message,
            "suspended; slot walferry_0 holds back 5.0 GiB of WAL at the source, whose disk may fill up"
        );
    }

    #[test]
    fn provisioning_says_what_it_waits_for() {
        let report =
            report(MirrorPhase::Provisioning, Some(("ReplicatorStarting", "the image is being pulled")), &[]);
        assert_eq!(
            summary(&report)[..4],
            [
                "Ready=Unknown Progressing",
                "Reconciling=True ReplicatorStarting",
                "SourceReady=Unknown Provisioning",
                "DestinationReady=Unknown Provisioning",
            ]
        );
        assert_eq!(conditions(&report)[0].message, "the image is being pulled");
    }

    #[test]
    fn a_copy_that_waits_says_for_whom() {
        let mut report = report(MirrorPhase::Snapshotting, None, &[("a", TableState::Pending)]);
        report.tables[0].message = "waits for transaction 7 of app".to_owned();
        assert_eq!(
            conditions(&report)[0].message,
            "0 of 1 tables copied; public.a: waits for transaction 7 of app"
        );
    }

    #[test]
    fn ready_needs_a_table_that_streams() {
        let tables = [("a", TableState::Failed), ("b", TableState::Pending)];
        let report = report(MirrorPhase::Streaming, None, &tables);
        assert_eq!(summary(&report)[..2], ["Ready=Unknown Progressing", "Reconciling=True Snapshotting"]);
    }

    #[test]
    fn deleting() {
        let tables = [("a", TableState::Streaming)];
        assert_eq!(
            summary(&report(MirrorPhase::Deleting, None, &tables)),
            [
                "Ready=False Deleting",
                "Reconciling=True Deleting",
                "SourceReady=Unknown Unknown",
                "DestinationReady=Unknown Unknown",
                "Snapshotted=True Copied",
                "Streaming=False Deleting",
                "CaughtUp=Unknown Deleting",
            ]
        );
        let failed = report(MirrorPhase::Deleting, Some(("SourceUnreachable", "db:5432 is down")), &tables);
        let lines = summary(&failed);
        assert_eq!(
            lines[..4],
            [
                "Ready=False CleanupFailed",
                "Reconciling=True CleanupFailed",
                "SourceReady=False SourceUnreachable",
                "DestinationReady=Unknown Unknown",
            ]
        );
        assert_eq!(conditions(&failed)[0].message, "db:5432 is down");
    }

    #[test]
    fn never_both_reconciling_and_stalled_and_always_ready_once() {
        for phase in MirrorPhase::ALL {
            for state in
                [TableState::Pending, TableState::Snapshotting, TableState::Streaming, TableState::Failed]
            {
                let conditions = conditions(&report(phase, None, &[("a", state)]));
                let count =
                    |types: &[&str]| conditions.iter().filter(|c| types.contains(&c.type_.as_str())).count();
                assert_eq!(count(&["Ready"]), 1);
                assert!(count(&["Reconciling", "Stalled"]) <= 1);
                assert!(
                    conditions.iter().all(|c| !c.reason.is_empty() && !c.message.is_empty()),
                    "{conditions:?}"
                );
            }
        }
    }
}
