use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::fault::Reason;
use crate::{
    model::{LagReport, MirrorFailure, MirrorPhase, SlotReport},
    status::{PeerOutcome, PeerReport, peer_status},
};

fn at(second: i64) -> Time {
    Time(Timestamp::from_second(second).unwrap())
}

fn table(name: &str, state: TableState, reason: impl Into<Option<Reason>>, message: &str) -> TableReport {
    TableReport {
        schema: "public".into(),
        name: name.into(),
        target: name.into(),
        state,
        rows_copied: 10,
        rows_estimated: 100,
        inserted: 0,
        updated: 0,
        deleted: 0,
        truncated: 0,
        refetched: 0,
        out_of_range: Default::default(),
        copied_while_streaming: false,
        resyncs: Default::default(),
        reason: reason.into(),
        message: message.into(),
        remedies: Vec::new(),
    }
}

fn report(phase: MirrorPhase, failure: Option<(Reason, &str)>, tables: Vec<TableReport>) -> MirrorReport {
    MirrorReport {
        namespace: "default".into(),
        name: "demo".into(),
        phase,
        failure: failure.map(|(reason, message)| MirrorFailure::new(reason, message)),
        meanwhile: None,
        warning: None,
        slot_name: "walferry_0a".into(),
        publication_name: "walferry_0a".into(),
        last_lsn: Lsn(0),
        lag: LagReport::default(),
        slot: SlotReport::default(),
        slot_place: None,
        tables,
    }
}

fn streaming() -> MirrorReport {
    MirrorReport {
        last_lsn: Lsn(0x1_0000_0010),
        lag: LagReport { bytes: Some(64), seconds: Some(2.9) },
        slot: SlotReport { retained_wal_bytes: Some(4096), ..SlotReport::default() },
        ..report(MirrorPhase::Streaming, None, vec![table("users", TableState::Streaming, None, "")])
    }
}

fn named<'a>(status: &'a MirrorStatus, type_: &str) -> &'a ApiCondition {
    status.conditions.iter().find(|condition| condition.type_ == type_).unwrap()
}

#[test]
fn keeps_the_slot_s_place_until_another_one_is_reported() {
    let place = |host: &str| SlotPlace {
        system_identifier: "7".into(),
        host: host.into(),
        port: 5432,
        database: "app".into(),
    };
    let made_at = |host| MirrorReport { slot_place: Some(place(host)), ..streaming() };
    let first = mirror_status(&made_at("a"), Some(1), None, &at(1));
    assert_eq!(first.slot.as_ref().map(slot_place), Some(place("a")));
    let suspended = report(MirrorPhase::Suspended, None, Vec::new());
    let offline = mirror_status(&suspended, Some(1), Some(&first), &at(2));
    assert_eq!(offline.slot, first.slot);
    let next = mirror_status(&made_at("b"), Some(1), Some(&offline), &at(3));
    assert_eq!(next.slot.as_ref().map(slot_place), Some(place("b")));
    let moved = MirrorStatus { slot: next.slot, ..offline.clone() };
    assert!(write_now(Some(&offline), &moved, Duration::ZERO));
}

#[test]
fn a_running_mirror() {
    let status = mirror_status(&streaming(), Some(3), None, &at(100));
    let expected = serde_json::json!({
        "observedGeneration": 3,
        "slotName": "walferry_0a",
        "publicationName": "walferry_0a",
        "lastLSN": "1/10",
        "lag": {"bytes": 64, "seconds": 2},
        "retainedWalBytes": 4096,
        "tables": {"total": 1, "snapshotting": 0, "streaming": 1, "failed": 0},
        "snapshot": {"rowsCopied": 10, "rowsEstimated": 100},
    });
    let mut value = serde_json::to_value(&status).unwrap();
    let conditions = value.as_object_mut().unwrap().remove("conditions").unwrap();
    assert_eq!(value, expected);
    assert_eq!(
        conditions[0],
        serde_json::json!({
            "type": "Ready", "status": "True", "reason": "Streaming", "message": "streaming changes for public.users",
            "observedGeneration": 3, "lastTransitionTime": "1970-01-01T00:01:40Z",
        })
    );
}

#[test]
fn the_first_patch_names_what_will_be_made() {
    let status = mirror_status(&report(MirrorPhase::Provisioning, None, vec![]), Some(1), None, &at(100));
    assert_eq!(
        (status.slot_name.as_deref(), status.publication_name.as_deref()),
        (Some("walferry_0a"), Some("walferry_0a"))
    );
    assert_eq!((status.last_lsn.as_ref(), status.lag.as_ref(), status.tables.as_ref()), (None, None, None));
    assert_eq!(kstatus(&status, Some(1), false), Kstatus::InProgress);
}

#[test]
fn times_change_with_the_status_alone() {
    let first = mirror_status(&streaming(), Some(1), None, &at(100));
    let mut later = streaming();
    later.tables.push(table("orders", TableState::Failed, Reason::DestinationTableMissing, "run this"));
    later.lag.bytes = Some(0);
    let later = mirror_status(&later, Some(2), Some(&first), &at(200));
    let ready = named(&later, "Ready");
    assert_eq!(Reason::StreamingWithFailedTables, ready.reason.as_str());
    assert_eq!((&ready.last_transition_time, ready.observed_generation), (&at(100), Some(2)));
    assert_eq!(named(&later, "CaughtUp").last_transition_time, at(200));
    assert_eq!(mirror_status(&streaming(), Some(1), Some(&first), &at(300)), first);
}

#[test]
fn keeps_what_a_report_without_tables_cannot_know() {
    let first = mirror_status(&streaming(), Some(1), None, &at(100));
    let stalled = MirrorReport {
        slot_name: String::new(),
        publication_name: String::new(),
        ..report(MirrorPhase::Stalled, Some((Reason::SecretMissing, "no Secret db")), vec![])
    };
    let status = mirror_status(&stalled, Some(2), Some(&first), &at(200));
    assert_eq!(status.slot_name, first.slot_name);
    assert_eq!(status.last_lsn, first.last_lsn);
    assert_eq!((&status.tables, &status.snapshot), (&first.tables, &first.snapshot));
    assert_eq!((status.lag.as_ref(), status.retained_wal_bytes), (None, None));
    let snapshotted = named(&status, "Snapshotted");
    assert_eq!((snapshotted.status.as_str(), snapshotted.observed_generation), ("True", Some(2)));
    assert_eq!(snapshotted.last_transition_time, at(100));
    assert_eq!(named(&status, "Streaming").last_transition_time, at(200));
    // A first report has nothing to keep.
    let status = mirror_status(&stalled, Some(1), None, &at(200));
    assert_eq!(named(&status, "Snapshotted").reason, "Provisioning");
    assert_eq!((status.slot_name, status.tables), (None, None));
}

#[test]
fn keeps_what_a_replicator_that_has_just_started_does_not_know() {
    let first = mirror_status(&streaming(), Some(1), None, &at(100));
    let pending = || vec![table("users", TableState::Pending, None, "")];
    for phase in [MirrorPhase::Provisioning, MirrorPhase::Stalled] {
        let status = mirror_status(&report(phase, None, pending()), Some(1), Some(&first), &at(200));
        assert_eq!((&status.tables, &status.snapshot), (&first.tables, &first.snapshot));
        assert_eq!(named(&status, "Snapshotted").status, "True");
    }
    let idle = vec![TableReport {
        rows_copied: 0,
        rows_estimated: 0,
        ..table("users", TableState::Streaming, None, "")
    }];
    let restarted =
        mirror_status(&report(MirrorPhase::Streaming, None, idle), Some(1), Some(&first), &at(200));
    assert_eq!(restarted.snapshot, first.snapshot);
    let copying = report(MirrorPhase::Snapshotting, None, pending());
    let status = mirror_status(&copying, Some(1), Some(&first), &at(200));
    assert_eq!(status.tables.map(|tables| tables.snapshotting), Some(1));
}

#[test]
fn lists_at_most_ten_failed_tables_and_cuts_long_words() {
    let failed =
        |index| table(&format!("t{index}"), TableState::Failed, Reason::DecodeFailed, &"é".repeat(2_000));
    let status = mirror_status(
        &report(MirrorPhase::Streaming, None, (0..12).map(failed).collect()),
        Some(1),
        None,
        &at(0),
    );
    assert_eq!(status.failed_tables.len(), 10);
    assert_eq!(status.tables.as_ref().unwrap().failed, 12);
    assert_eq!(status.failed_tables[0].message, format!("{}…", "é".repeat(1_023)));
    assert_eq!(named(&status, "Ready").message.chars().count(), 4_096);
}

#[test]
fn figures_beyond_the_apis_numbers_saturate() {
    let mut report = streaming();
    report.lag = LagReport { bytes: Some(u64::MAX), seconds: Some(f64::INFINITY) };
    report.slot.retained_wal_bytes = Some(u64::MAX);
    report.tables[0].rows_copied = u64::MAX;
    let status = mirror_status(&report, None, None, &at(0));
    assert_eq!(status.lag, Some(LagStatus { bytes: Some(i64::MAX), seconds: Some(i64::MAX) }));
    assert_eq!(status.retained_wal_bytes, Some(i64::MAX));
    assert_eq!(status.snapshot.unwrap().rows_estimated, i64::MAX);
    report.lag.seconds = Some(f64::NAN);
    assert_eq!(mirror_status(&report, None, None, &at(0)).lag.unwrap().seconds, Some(0));
}

#[test]
fn writes_state_immediately_and_figures_periodically() {
    let (soon, late) = (Duration::from_secs(1), Duration::from_secs(5));
    let of = |report: &MirrorReport, previous: Option<&MirrorStatus>| {
        mirror_status(report, Some(1), previous, &at(9))
    };
    let first = of(&streaming(), None);
    assert!(write_now(None, &first, Duration::ZERO));
    assert!(!write_now(Some(&first), &first, Duration::MAX));

    let figures: [fn(&mut MirrorReport); 4] = [
        |report| report.lag.bytes = Some(0),
        |report| report.last_lsn = Lsn(0x1_0000_0020),
        |report| report.slot.retained_wal_bytes = None,
        |report| report.tables[0].rows_copied = 11,
    ];
    for change in figures {
        let mut report = streaming();
        change(&mut report);
        let next = of(&report, Some(&first));
        assert!(!write_now(Some(&first), &next, soon) && write_now(Some(&first), &next, late));
    }

    let written_immediately: [fn(&mut MirrorReport); 5] = [
        |report| report.slot_name = "walferry_0b".into(),
        |report| report.phase = MirrorPhase::Suspended,
        |report| report.tables[0].state = TableState::Pending,
        |report| report.tables.push(table("orders", TableState::Streaming, None, "")),
        |report| report.tables.push(table("orders", TableState::Failed, Reason::DecodeFailed, "")),
    ];
    for change in written_immediately {
        let mut report = streaming();
        change(&mut report);
        assert!(write_now(Some(&first), &of(&report, Some(&first)), Duration::ZERO));
    }
    let stalled = |words| {
        of(&report(MirrorPhase::Stalled, Some((Reason::SecretKeyMissing, words)), Vec::new()), Some(&first))
    };
    assert!(write_now(Some(&stalled("add a")), &stalled("add b"), Duration::ZERO));
    let generation = MirrorStatus { observed_generation: Some(2), ..first.clone() };
    assert!(write_now(Some(&first), &generation, Duration::ZERO));
    let mut other_table = first.clone();
    other_table.failed_tables.push(FailedTable::default());
    assert!(write_now(Some(&first), &other_table, Duration::ZERO));
}

#[test]
fn peers() {
    let failure = |reason: Reason| MirrorFailure::new(reason, "why");
    let of = |outcome: PeerOutcome, previous: Option<&crate::api::ReplicationPeerStatus>| {
        let report = PeerReport { outcome, server_version: None, system_identifier: None };
        peer_status(&report, Some(4), previous, &at(200))
    };
    let connected = PeerReport {
        outcome: PeerOutcome::Connected { message: "PostgreSQL 18.4 at db:5432, TLS".into() },
        server_version: Some("18.4".into()),
        system_identifier: Some("7".into()),
    };
    let first = peer_status(&connected, Some(4), None, &at(100));
    let words = |status: &crate::api::ReplicationPeerStatus| -> Vec<String> {
        status.conditions.iter().map(|c| format!("{}={} {}", c.type_, c.status, c.reason)).collect()
    };
    assert_eq!(words(&first), ["Ready=True Connected"]);
    assert_eq!(first.conditions[0].observed_generation, Some(4));
    let retrying = of(PeerOutcome::Retrying(failure(Reason::SourceUnreachable)), Some(&first));
    assert_eq!(words(&retrying), ["Ready=False ProgressingWithRetry", "Reconciling=True SourceUnreachable"]);
    assert_eq!(
        (retrying.server_version.as_deref(), retrying.system_identifier.as_deref()),
        (Some("18.4"), Some("7"))
    );
    let stalled = of(PeerOutcome::Stalled(failure(Reason::SecretMissing)), None);
    assert_eq!(words(&stalled), ["Ready=False SecretMissing", "Stalled=True SecretMissing"]);
    assert_eq!(
        words(&of(PeerOutcome::Progressing, None)),
        ["Ready=Unknown Progressing", "Reconciling=True Progressing"]
    );
    let deleting = of(PeerOutcome::Deleting { message: "used by Mirror demo".into() }, None);
    assert_eq!(words(&deleting), ["Ready=False Deleting", "Reconciling=True Deleting"]);
}

/// The status that kstatus computes for a resource: the library by which Flux and similar tools decide
/// whether an object is done.
#[derive(Debug, PartialEq, Eq)]
enum Kstatus {
    Terminating,
    InProgress,
    Failed,
    Current,
}

/// Its rules for resources that it doesn't know: deletion, then the generation, then `Reconciling` and
/// `Stalled` in the order in which they stand, then `Ready`.
fn kstatus(status: &MirrorStatus, generation: Option<i64>, deleted: bool) -> Kstatus {
    if deleted {
        return Kstatus::Terminating;
    }
    if generation.is_some()
        && status.observed_generation.is_some()
        && status.observed_generation != generation
    {
        return Kstatus::InProgress;
    }
    for condition in status.conditions.iter().filter(|condition| condition.status == "True") {
        match condition.type_.as_str() {
            "Reconciling" => return Kstatus::InProgress,
            "Stalled" => return Kstatus::Failed,
            _ => {}
        }
    }
    match status.conditions.iter().find(|condition| condition.type_ == "Ready") {
        Some(ready) if ready.status != "True" => Kstatus::InProgress,
        _ => Kstatus::Current,
    }
}

/// What the checks that Flux runs over its own controllers' conditions ask for, and what the API asks of any
/// condition.
fn contract(
    conditions: &[ApiCondition],
    observed: Option<i64>,
    generation: i64,
) -> Result<(), TestCaseError> {
    let find = |type_: &str| conditions.iter().find(|condition| condition.type_ == type_);
    let (reconciling, stalled) = (find("Reconciling"), find("Stalled"));
    let ready = find("Ready").ok_or_else(|| TestCaseError::fail("no Ready"))?;
    prop_assert!(!(reconciling.is_some() && stalled.is_some()), "both");
    for abnormal in [reconciling, stalled].into_iter().flatten() {
        prop_assert_eq!(&abnormal.status, "True", "present though not true");
        // Of a Mirror that streams while a table joins it, only the reconciling one names that table.
        let joins = abnormal.type_ == "Reconciling"
            && abnormal.reason == "Snapshotting"
            && ["Streaming", "StreamingWithFailedTables"].contains(&ready.reason.as_str());
        prop_assert!(ready.status != "True" || joins, "ready and {}", abnormal.type_);
        prop_assert_eq!(&abnormal.message, &ready.message);
    }
    if let Some(stalled) = stalled {
        prop_assert_eq!((&ready.status[..], &ready.reason), ("False", &stalled.reason));
    }
    prop_assert!(
        ready.status == "True" || reconciling.is_some() || stalled.is_some(),
        "not ready without a reason"
    );
    prop_assert!(observed.is_some_and(|observed| (1..=generation).contains(&observed)));
    let mut types: Vec<&str> = conditions.iter().map(|condition| condition.type_.as_str()).collect();
    types.sort_unstable();
    types.dedup();
    prop_assert_eq!(types.len(), conditions.len(), "a type twice");
    for condition in conditions {
        prop_assert_eq!(condition.observed_generation, observed);
        prop_assert!(["True", "False", "Unknown"].contains(&condition.status.as_str()));
        let reason = &condition.reason;
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        prop_assert!(
            reason.starts_with(|c: char| c.is_ascii_alphabetic())
                && reason.ends_with(word)
                && reason.chars().all(|c| word(c) || c == ',' || c == ':')
                && reason.len() <= 1_024,
            "reason {reason:?}"
        );
        prop_assert!(condition.message.chars().count() <= 32_768);
    }
    Ok(())
}

fn phases() -> impl Strategy<Value = MirrorPhase> {
    proptest::sample::select(MirrorPhase::ALL.to_vec())
}

fn failures() -> impl Strategy<Value = MirrorFailure> {
    let reasons = proptest::sample::select(Reason::ALL.to_vec());
    let messages = prop_oneof![4 => ".{0,40}", 1 => Just("é".repeat(40_000))];
    (reasons, messages).prop_map(|(reason, message)| MirrorFailure::new(reason, message))
}

fn tables() -> impl Strategy<Value = Vec<TableReport>> {
    let states = proptest::sample::select(vec![
        TableState::Pending,
        TableState::Snapshotting,
        TableState::Streaming,
        TableState::Failed,
    ]);
    let table = (states, failures(), any::<bool>(), any::<u64>(), any::<u64>());
    proptest::collection::vec(table, 0..14).prop_map(|tables| {
        let tables = tables.into_iter().enumerate();
        tables
            .map(|(index, (state, failure, copied_while_streaming, rows_copied, rows_estimated))| {
                TableReport {
                    copied_while_streaming,
                    rows_copied,
                    rows_estimated,
                    ..table_of(index, state, &failure)
                }
            })
            .collect()
    })
}

fn table_of(index: usize, state: TableState, failure: &MirrorFailure) -> TableReport {
    table(&format!("t{index}"), state, failure.reason, &failure.message)
}

prop_compose! {
    fn reports()(
        phase in phases(),
        failure in proptest::option::of(failures()),
        meanwhile in proptest::option::of(phases()),
        tables in tables(),
        last_lsn in any::<u64>(),
        bytes in any::<u64>(),
        seconds in any::<f64>(),
        retained_wal_bytes in proptest::option::of(any::<u64>()),
    ) -> MirrorReport {
        MirrorReport {
            failure,
            meanwhile,
            last_lsn: Lsn(last_lsn),
            lag: LagReport { bytes: Some(bytes), seconds: Some(seconds) },
            slot: SlotReport { retained_wal_bytes, ..SlotReport::default() },
            ..report(phase, None, tables)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_mirror_is_read_right(history in proptest::collection::vec(reports(), 1..4), generation in 1..9_i64) {
        let mut previous: Option<MirrorStatus> = None;
        for (second, report) in (0..).zip(&history) {
            let status = mirror_status(report, Some(generation), previous.as_ref(), &at(second));
            contract(&status.conditions, status.observed_generation, generation)?;
            prop_assert!(status.failed_tables.len() <= 10);
            let works = report.phase == MirrorPhase::Snapshotting || report.phase == MirrorPhase::Streaming;
            let failed = in_state(report, TableState::Failed).count();
            let streams = in_state(report, TableState::Streaming).next().is_some();
            let expected = match report.phase {
                _ if works && failed > 0 && failed == report.tables.len() => Kstatus::Failed,
                MirrorPhase::Streaming if failed == 0 || streams => Kstatus::Current,
                MirrorPhase::Suspended | MirrorPhase::Finished => Kstatus::Current,
                MirrorPhase::Stalled => Kstatus::Failed,
                _ => Kstatus::InProgress,
            };
            prop_assert_eq!(kstatus(&status, Some(generation), false), expected, "{:?}", report.phase);
            let copied = |table: &TableReport| matches!(table.state, TableState::Streaming | TableState::Failed) || table.copied_while_streaming;
            let ready = status.conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
            if works && streams && report.tables.iter().all(copied) && report.phase == MirrorPhase::Snapshotting {
                let left = report.tables.iter().any(|table| table.state != TableState::Streaming && table.state != TableState::Failed);
                prop_assert_eq!(ready, left, "what streams stays ready while tables join");
            }
            prop_assert_eq!(kstatus(&status, Some(generation + 1), false), Kstatus::InProgress);
            prop_assert_eq!(kstatus(&status, Some(generation), true), Kstatus::Terminating);
            prop_assert_eq!(&mirror_status(report, Some(generation), Some(&status), &at(99)), &status, "not stable");
            let text = serde_json::to_string(&status).unwrap();
            prop_assert_eq!(&serde_json::from_str::<MirrorStatus>(&text).unwrap(), &status);
            previous = Some(status);
        }
    }

    #[test]
    fn every_peer_is_read_right(failure in failures(), kind in 0..5, generation in 1..9_i64) {
        let message = failure.message.clone();
        let outcome = match kind {
            0 => PeerOutcome::Progressing,
            1 => PeerOutcome::Connected { message },
            2 => PeerOutcome::Retrying(failure),
            3 => PeerOutcome::Stalled(failure),
            _ => PeerOutcome::Deleting { message },
        };
        let report = PeerReport { outcome, server_version: None, system_identifier: None };
        let status = peer_status(&report, Some(generation), None, &at(1));
        contract(&status.conditions, status.observed_generation, generation)?;
        let conditions = MirrorStatus { conditions: status.conditions, ..MirrorStatus::default() };
        let expected = match report.outcome {
            PeerOutcome::Connected { .. } => Kstatus::Current,
            PeerOutcome::Stalled(_) => Kstatus::Failed,
            _ => Kstatus::InProgress,
        };
        prop_assert_eq!(kstatus(&conditions, None, false), expected);
    }
}
