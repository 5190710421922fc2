use super::*;
use crate::model::{LagReport, Lsn, MirrorIdentity, Progress, SlotReport, TableId};

fn report(
    phase: MirrorPhase,
    failure: Option<(Reason, &str)>,
    tables: &[(&str, TableState)],
) -> MirrorReport {
    let progress =
        Progress::new(&MirrorIdentity { namespace: "default".into(), name: "m".into(), uid: "0".into() });
    let failure = failure.map(|(reason, message)| MirrorFailure::new(reason, message));
    progress.set_phase(phase, failure);
    for (name, state) in tables {
        let failed = *state == TableState::Failed;
        let reason = failed.then_some(Reason::DestinationTableMissing);
        let message = if failed { "run this" } else { "" };
        progress.table(&TableId::new("public", *name)).set_state(*state, reason, message);
    }
    let lag = LagReport { bytes: Some(0), seconds: Some(0.0) };
    MirrorReport { lag, ..progress.report() }
}

/// The conditions as `Type=Status Reason` lines.
fn summary(report: &MirrorReport) -> Vec<String> {
    let line = |c: &Condition| format!("{}={:?} {}", c.type_, c.status, c.reason);
    conditions(report).iter().map(line).collect()
}

#[test]
fn a_warning_is_in_ready() {
    let warning = |message: &str| MirrorFailure::new(Reason::ResyncUnknownTable, message);
    let streaming = report(MirrorPhase::Streaming, None, &[("t", TableState::Streaming)]);
    let warned = MirrorReport { warning: Some(warning("names public.typo")), ..streaming.clone() };
    let ready = conditions(&warned).remove(0);
    assert_eq!((ready.status, ready.reason), (ConditionStatus::True, Reason::ResyncUnknownTable));
    assert_eq!(ready.message, "streaming changes for public.t; names public.typo");
    assert_eq!(conditions(&warned)[1..], conditions(&streaming)[1..]);
    // A fault comes first.
    let stalled = report(MirrorPhase::Stalled, Some((Reason::SourceSlotLost, "gone")), &[]);
    let ready = conditions(&MirrorReport { warning: Some(warning("typo")), ..stalled }).remove(0);
    assert_eq!((ready.reason, ready.message.as_str()), (Reason::SourceSlotLost, "gone; typo"));
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
    let tables = [("a", TableState::Streaming), ("b", TableState::Snapshotting), ("c", TableState::Pending)];
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
fn a_table_that_is_added_leaves_the_mirror_ready() {
    let tables = [("a", TableState::Streaming), ("b", TableState::Snapshotting), ("c", TableState::Failed)];
    let mut report = report(MirrorPhase::Snapshotting, None, &tables[..2]);
    report.tables[1].copied_while_streaming = true;
    assert_eq!(
        summary(&report),
        [
            "Ready=True Streaming",
            "Reconciling=True Snapshotting",
            "SourceReady=True Connected",
            "DestinationReady=True Connected",
            "Snapshotted=False Snapshotting",
            "Streaming=True Streaming",
            "CaughtUp=False Snapshotting",
        ]
    );
    assert!(conditions(&report)[1].message.starts_with("public.b is being added while the others stream"));
    let mut failed = self::report(MirrorPhase::Snapshotting, None, &tables);
    failed.tables[1].copied_while_streaming = true;
    assert_eq!(summary(&failed)[0], "Ready=True StreamingWithFailedTables");
    // Alone, nothing else streams.
    report.tables.remove(0);
    assert_eq!(summary(&report)[0], "Ready=Unknown Progressing");
}

#[test]
fn a_lag_that_is_not_known() {
    let mut report = report(MirrorPhase::Streaming, None, &[("a", TableState::Streaming)]);
    report.lag = LagReport::default();
    assert!(summary(&report).contains(&"CaughtUp=Unknown Behind".to_owned()));
}

#[test]
fn streaming_and_behind() {
    let mut report = report(MirrorPhase::Streaming, None, &[("a", TableState::Streaming)]);
    report.lag.bytes = Some(3 << 19);
    report.lag.seconds = Some(2.25);
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
        "everything up to 0/0 is at the destination, except for failed tables"
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
    let retrying = report(MirrorPhase::Retrying, Some((Reason::DestinationUnreachable, "refused")), &tables);
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
    let stalled = report(MirrorPhase::Stalled, Some((Reason::SourceSlotLost, "resync")), &tables);
    let lines = summary(&stalled);
    assert_eq!(lines[0], "Ready=False SourceSlotLost");
    assert_eq!(lines[1], "Stalled=True SourceSlotLost");
    assert_eq!(lines[2], "SourceReady=False SourceSlotLost");
    assert_eq!(lines[3], "DestinationReady=Unknown Unknown");
    let repeated = conditions(&stalled).iter().filter(|condition| condition.message == "resync").count();
    assert_eq!(repeated, 3, "Streaming and CaughtUp don't repeat what to run");
}

#[test]
fn the_slot_warning_is_shown_in_every_state() {
    let with = |phase, failure: Option<(Reason, &str)>| {
        let mut report = report(phase, failure, &[("a", TableState::Streaming)]);
        report.slot.wal_status = Some("extended".to_owned());
        report.slot.retained_wal_bytes = Some(5 << 30);
        report
    };
    let streams = with(MirrorPhase::Streaming, None);
    assert_eq!(summary(&streams)[1], "SourceReady=True SourceDiskAtRisk");
    assert_eq!(conditions(&streams)[0].message, "streaming changes for public.a");
    let retries = with(MirrorPhase::Retrying, Some((Reason::DestinationUnreachable, "no route to host")));
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
    let report = report(
        MirrorPhase::Provisioning,
        Some((Reason::ReplicatorStarting, "the image is being pulled")),
        &[],
    );
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
    let failed = report(MirrorPhase::Deleting, Some((Reason::SourceUnreachable, "db:5432 is down")), &tables);
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
fn conditions_show_a_replicator_with_earlier_settings() {
    let stalled = |reason, meanwhile| MirrorReport {
        meanwhile: Some(meanwhile),
        ..report(MirrorPhase::Stalled, Some((reason, "run this")), &[("a", TableState::Streaming)])
    };
    assert_eq!(
        summary(&stalled(Reason::SourceAuthenticationFailed, MirrorPhase::Streaming)),
        [
            "Ready=False SourceAuthenticationFailed",
            "Stalled=True SourceAuthenticationFailed",
            "SourceReady=False SourceAuthenticationFailed",
            "DestinationReady=True Connected",
            "Snapshotted=True Copied",
            "Streaming=True Streaming",
            "CaughtUp=True NoLag",
        ]
    );
    let mut copying = stalled(Reason::InvalidSpec, MirrorPhase::Snapshotting);
    copying.slot = SlotReport { wal_status: Some("unreserved".to_owned()), ..SlotReport::default() };
    assert_eq!(
        summary(&copying)[2..],
        [
            "SourceReady=True SlotAtRisk",
            "DestinationReady=True Connected",
            "Snapshotted=True Copied",
            "Streaming=True Streaming",
            "CaughtUp=False Snapshotting",
        ]
    );
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
            assert!(conditions.iter().all(|c| !c.message.is_empty()), "{conditions:?}");
        }
    }
}
