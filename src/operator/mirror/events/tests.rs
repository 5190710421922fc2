use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

use super::*;
use crate::{
    model::{Lsn, MirrorIdentity, MirrorPhase, Progress, TableId},
    status::mirror_status,
};

fn progress() -> Progress {
    Progress::new(&MirrorIdentity { namespace: "team".into(), name: "demo".into(), uid: "0a".into() })
}

fn new_events(tracker: &mut EventTracker, progress: &Progress) -> Vec<String> {
    let events = tracker.new_events(&progress.report());
    events.into_iter().map(|event| format!("{} {}", event.reason, event.note)).collect()
}

#[test]
fn a_warning_is_published_once_and_again_when_it_changes() {
    let (mut tracker, progress) = (EventTracker::default(), progress());
    progress.table(&TableId::new("public", "users")).set_state(TableState::Streaming, None, "");
    for (message, expected) in
        [("a", vec!["ResyncUnknownTable a"]), ("a", vec![]), ("b", vec!["ResyncUnknownTable b"])]
    {
        let reason = Reason::ResyncUnknownTable;
        progress.set_warning(Some(MirrorFailure::new(reason, message)));
        assert_eq!(new_events(&mut tracker, &progress), expected);
    }
    progress.set_warning(None);
    assert_eq!(new_events(&mut tracker, &progress), Vec::<String>::new());
}

#[test]
fn an_automatic_copy_is_published_once_however_short() {
    let (mut tracker, progress) = (EventTracker::default(), progress());
    let users = progress.table(&TableId::new("public", "users"));
    users.set_state(TableState::Streaming, None, "");
    assert_eq!(new_events(&mut tracker, &progress), Vec::<String>::new());

    users.set_state(TableState::Pending, Reason::TableResync, "re-copied: a label was renamed");
    users.count_resync("re-copied: a label was renamed");
    users.count_resync("re-copied: a label was renamed");
    users.set_state(TableState::Streaming, None, "");
    let note = "TableResync public.users: re-copied: a label was renamed";
    assert_eq!(new_events(&mut tracker, &progress), [note]);
    assert_eq!(new_events(&mut tracker, &progress), Vec::<String>::new());

    users.set_state(TableState::Pending, Reason::TableResync, "");
    users.count_resync("a part of it is copied: a partition was attached");
    assert_eq!(
        new_events(&mut tracker, &progress),
        ["TableResync public.users: a part of it is copied: a partition was attached"]
    );
}

#[test]
fn an_operator_that_has_just_started_publishes_copies_in_progress() {
    let progress = progress();
    let users = progress.table(&TableId::new("public", "users"));
    users.set_state(TableState::Pending, Reason::TableResync, "");
    users.count_resync("why");
    assert_eq!(new_events(&mut EventTracker::default(), &progress), ["TableResync public.users: why"]);
    users.set_state(TableState::Streaming, None, "");
    assert_eq!(new_events(&mut EventTracker::default(), &progress), Vec::<String>::new());
}

#[test]
fn slot_events_are_published_once_even_when_the_replicator_is_offline_in_between() {
    let (mut tracker, progress) = (EventTracker::default(), progress());
    progress.table(&TableId::new("public", "users"));
    progress.set_slot(SlotReport { wal_status: Some("unreserved".to_owned()), ..SlotReport::default() });
    progress.add_takeover();
    let first: Vec<_> = tracker.new_events(&progress.report()).into_iter().map(|it| it.reason).collect();
    assert_eq!(first, [Reason::SlotAtRisk], "an earlier operator may have published the takeover");
    progress.add_takeover();
    assert_eq!(new_events(&mut tracker, &progress).len(), 1);
    let mut offline = progress.report();
    (offline.tables, offline.slot.takeovers) = (Vec::new(), 0);
    assert_eq!(tracker.new_events(&offline), []);
    assert_eq!(new_events(&mut tracker, &progress), Vec::<String>::new());
    progress.add_takeover();
    assert_eq!(new_events(&mut tracker, &progress).len(), 1);
}

#[test]
fn a_resync_is_published_when_the_annotation_changes() {
    let mut tracker = ResyncTracker::default();
    let mut requested = |value: &str| tracker.requested(Some(&value.to_owned())).map(|event| event.note);
    assert_eq!(requested("1"), None, "an earlier operator may have published it");
    assert_eq!(requested("2").unwrap(), "resyncing tables, as walferry.dev/resync=2 requests");
    assert_eq!(requested("2"), None);
    let mut tracker = ResyncTracker::default();
    assert_eq!(tracker.requested(None), None);
    assert_eq!(tracker.requested(Some(&"1".to_owned())).unwrap().reason, Reason::ResyncRequested);
    assert_eq!(tracker.requested(None), None);
}

struct Timeline {
    progress: Progress,
    status: MirrorStatus,
    mode: SnapshotMode,
}

impl Timeline {
    fn new() -> Timeline {
        let mirror = MirrorIdentity { namespace: "team".into(), name: "demo".into(), uid: "0a".into() };
        Timeline {
            progress: Progress::new(&mirror),
            status: MirrorStatus::default(),
            mode: SnapshotMode::Initial,
        }
    }

    /// The events of the next reconcile.
    fn reconcile(&mut self, phase: MirrorPhase, table: TableState) -> Vec<Reason> {
        let failure =
            (phase == MirrorPhase::Stalled).then(|| MirrorFailure::new(Reason::SourceSlotLost, "run this"));
        self.progress.set_phase(phase, failure);
        let failed = table == TableState::Failed;
        let reason = failed.then_some(Reason::DestinationTableMissing);
        let message = if failed { "run that" } else { "" };
        self.progress.table(&TableId::new("public", "users")).set_state(table, reason, message);
        let rest =
            if phase == MirrorPhase::Provisioning { TableState::Pending } else { TableState::Streaming };
        self.progress.table(&TableId::new("public", "other")).set_state(rest, None, "");
        if phase != MirrorPhase::Provisioning {
            self.progress.set_durable_lsn(Lsn(7));
        }
        let now = Time(Timestamp::UNIX_EPOCH);
        let next = mirror_status(&self.progress.report(), Some(1), Some(&self.status), &now);
        let events = status_events(&self.status, &next, self.mode);
        self.status = next;
        events.into_iter().map(|event| event.reason).collect()
    }
}

#[test]
fn a_long_copy_is_published_when_it_starts_and_finishes() {
    let mut timeline = Timeline::new();
    assert_eq!(timeline.reconcile(MirrorPhase::Provisioning, TableState::Pending), Vec::<Reason>::new());
    assert_eq!(
        timeline.reconcile(MirrorPhase::Snapshotting, TableState::Snapshotting),
        [Reason::Provisioned, Reason::SnapshotStarted]
    );
    assert_eq!(timeline.reconcile(MirrorPhase::Snapshotting, TableState::Snapshotting), Vec::<Reason>::new());
    assert_eq!(timeline.reconcile(MirrorPhase::Streaming, TableState::Streaming), [Reason::SnapshotFinished]);
    assert_eq!(timeline.reconcile(MirrorPhase::Streaming, TableState::Streaming), Vec::<Reason>::new());
}

#[test]
fn a_short_copy_is_published_immediately_and_not_again_after_a_restart() {
    let mut timeline = Timeline::new();
    assert_eq!(
        timeline.reconcile(MirrorPhase::Streaming, TableState::Streaming),
        [Reason::Provisioned, Reason::SnapshotStarted, Reason::SnapshotFinished]
    );
    assert_eq!(timeline.reconcile(MirrorPhase::Provisioning, TableState::Pending), Vec::<Reason>::new());
    assert_eq!(timeline.reconcile(MirrorPhase::Streaming, TableState::Streaming), Vec::<Reason>::new());
    let mut never = Timeline { mode: SnapshotMode::Never, ..Timeline::new() };
    assert_eq!(never.reconcile(MirrorPhase::Streaming, TableState::Streaming), [Reason::Provisioned]);
}

#[test]
fn added_tables_are_published_alone() {
    let mut timeline = Timeline::new();
    timeline.reconcile(MirrorPhase::Streaming, TableState::Streaming);
    timeline.reconcile(MirrorPhase::Provisioning, TableState::Pending);
    timeline.progress.table(&TableId::new("public", "new")).set_state(TableState::Streaming, None, "");
    let now = Time(Timestamp::UNIX_EPOCH);
    timeline.progress.set_phase(MirrorPhase::Streaming, None);
    timeline.progress.table(&TableId::new("public", "users")).set_state(TableState::Streaming, None, "");
    timeline.progress.table(&TableId::new("public", "other")).set_state(TableState::Streaming, None, "");
    let next = mirror_status(&timeline.progress.report(), Some(2), Some(&timeline.status), &now);
    let events = status_events(&timeline.status, &next, timeline.mode);
    assert_eq!(
        events.iter().map(|event| event.note.as_str()).collect::<Vec<_>>(),
        ["copying the existing rows of 1 table", "0 rows copied"]
    );
}

#[test]
fn failures_are_published_once() {
    let mut timeline = Timeline::new();
    timeline.reconcile(MirrorPhase::Streaming, TableState::Streaming);
    assert_eq!(timeline.reconcile(MirrorPhase::Streaming, TableState::Failed), [Reason::TableFailed]);
    assert_eq!(timeline.reconcile(MirrorPhase::Streaming, TableState::Failed), Vec::<Reason>::new());
    assert_eq!(timeline.reconcile(MirrorPhase::Stalled, TableState::Failed), [Reason::SourceSlotLost]);
    assert_eq!(timeline.reconcile(MirrorPhase::Stalled, TableState::Failed), Vec::<Reason>::new());
}
