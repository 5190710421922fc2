//! The last step: status and events, from one report.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{Resource, ResourceExt};

use crate::{
    api::{Mirror, MirrorStatus, SnapshotMode, conditions as types},
    fault::Reason,
    model::MirrorReport,
    operator::{
        context::{Context, Written, previous},
        events::{self, Notice},
        scope::{Guarded, valid},
    },
    status,
};

/// Writes the status, if it is worth it, and tells what has changed since the one before.
///
/// # Errors
/// What the API server says.
pub(super) async fn publish(
    context: &Context,
    mirror: &Guarded<Mirror>,
    report: &MirrorReport,
) -> Result<(), kube::Error> {
    let uid = mirror.uid().unwrap_or_default();
    let known = valid(mirror).and_then(|mirror| mirror.status.as_ref());
    let (before, age) =
        context.memory.mirrors.of(&uid, |memory| previous(memory.written.as_ref(), mirror, known));
    let generation = mirror.meta().generation;
    let next = status::mirror_status(report, generation, before.as_ref(), &Time(Timestamp::now()));
    events::record_ready(&context.metrics, "Mirror", &uid, &next.conditions);
    if !status::write_now(before.as_ref(), &next, age) {
        return Ok(());
    }
    context.write_status(mirror, &next).await?;
    let written = Written::now(mirror, next.clone());
    context.memory.mirrors.of(&uid, |memory| memory.written = Some(written));
    let mode = valid(mirror).map(|mirror| mirror.spec.snapshot.mode).unwrap_or_default();
    for notice in notices(&before.unwrap_or_default(), &next, mode) {
        context.events.publish(&mirror.object_ref(&()), &notice).await;
    }
    Ok(())
}

/// What is worth an event between two statuses.
fn notices(before: &MirrorStatus, next: &MirrorStatus, mode: SnapshotMode) -> Vec<Notice> {
    let mut notices: Vec<Notice> =
        events::stalled(&before.conditions, &next.conditions).into_iter().collect();
    let provisioned = before.last_lsn.is_none() && next.last_lsn.is_some();
    if provisioned {
        let name = |name: &Option<String>| name.clone().unwrap_or_default();
        let note = format!(
            "publication {} and slot {} are made",
            name(&next.publication_name),
            name(&next.slot_name)
        );
        notices.push(Notice::normal(Reason::Provisioned, note));
    }
    if mode != SnapshotMode::Never {
        notices.extend(snapshot(before, next, provisioned));
    }
    for failed in &next.failed_tables {
        let known = |table: &crate::api::FailedTable| {
            (&table.schema, &table.name, &table.reason) == (&failed.schema, &failed.name, &failed.reason)
        };
        if !before.failed_tables.iter().any(known) {
            let table = format!("{}.{}", failed.schema, failed.name);
            let note = format!("{table}: {} ({})", failed.message, failed.reason);
            notices.push(Notice::warning(Reason::TableFailed, note).about(table));
        }
    }
    notices
}

/// A copy that is quicker than two looks has both begun and ended between them: that of a new Mirror, or of tables that joined.
fn snapshot(earlier: &MirrorStatus, next: &MirrorStatus, provisioned: bool) -> Vec<Notice> {
    let state = |status: &MirrorStatus| {
        let condition = events::find(&status.conditions, types::SNAPSHOTTED);
        condition.map(|condition| (condition.status == "True", condition.reason.clone()))
    };
    let copying = |state: &Option<(bool, String)>| {
        state.as_ref().is_some_and(|(_, reason)| Reason::Snapshotting == reason.as_str())
    };
    let total = |status: &MirrorStatus| status.tables.as_ref().map_or(0, |tables| tables.total);
    let joined = total(next) > total(earlier);
    let (before, now) = (state(earlier), state(next));
    let finished = now.as_ref().is_some_and(|(done, _)| *done);
    let quick = finished && !copying(&before) && (provisioned || joined);
    let mut notices = Vec::new();
    if quick || (copying(&now) && !copying(&before)) {
        let tables = total(next) - if joined && !provisioned { total(earlier) } else { 0 };
        notices.push(Notice::normal(
            Reason::SnapshotStarted,
            format!("copying the rows of {}", tables_of(tables)),
        ));
    }
    if quick || (finished && copying(&before)) {
        let rows = next.snapshot.as_ref().map_or(0, |snapshot| snapshot.rows_copied);
        notices.push(Notice::normal(Reason::SnapshotFinished, format!("{rows} rows copied")));
    }
    notices
}

fn tables_of(count: i32) -> String {
    if count == 1 { "1 table".to_owned() } else { format!("{count} tables") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Lsn, MirrorFailure, MirrorIdentity, MirrorPhase, Progress, TableId, TableState},
        status::mirror_status,
    };

    struct Story {
        progress: Progress,
        status: MirrorStatus,
        mode: SnapshotMode,
    }

    impl Story {
        fn new() -> Story {
            let mirror = MirrorIdentity { namespace: "team".into(), name: "demo".into(), uid: "0a".into() };
            Story {
                progress: Progress::new(&mirror),
                status: MirrorStatus::default(),
                mode: SnapshotMode::Initial,
            }
        }

        /// The events of the next look.
        fn look(&mut self, phase: MirrorPhase, table: TableState) -> Vec<Reason> {
            let failure = (phase == MirrorPhase::Stalled)
                .then(|| MirrorFailure::new(Reason::SourceSlotLost, "run this"));
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
            let told = notices(&self.status, &next, self.mode);
            self.status = next;
            told.into_iter().map(|notice| notice.reason).collect()
        }
    }

    #[test]
    fn a_long_copy_is_told_when_it_begins_and_ends() {
        let mut story = Story::new();
        assert_eq!(story.look(MirrorPhase::Provisioning, TableState::Pending), Vec::<Reason>::new());
        assert_eq!(
            story.look(MirrorPhase::Snapshotting, TableState::Snapshotting),
            [Reason::Provisioned, Reason::SnapshotStarted]
        );
        assert_eq!(story.look(MirrorPhase::Snapshotting, TableState::Snapshotting), Vec::<Reason>::new());
        assert_eq!(story.look(MirrorPhase::Streaming, TableState::Streaming), [Reason::SnapshotFinished]);
        assert_eq!(story.look(MirrorPhase::Streaming, TableState::Streaming), Vec::<Reason>::new());
    }

    #[test]
    fn a_short_copy_is_told_at_once_and_not_again_after_a_restart() {
        let mut story = Story::new();
        assert_eq!(
            story.look(MirrorPhase::Streaming, TableState::Streaming),
            [Reason::Provisioned, Reason::SnapshotStarted, Reason::SnapshotFinished]
        );
        assert_eq!(story.look(MirrorPhase::Provisioning, TableState::Pending), Vec::<Reason>::new());
        assert_eq!(story.look(MirrorPhase::Streaming, TableState::Streaming), Vec::<Reason>::new());
        let mut never = Story { mode: SnapshotMode::Never, ..Story::new() };
        assert_eq!(never.look(MirrorPhase::Streaming, TableState::Streaming), [Reason::Provisioned]);
    }

    #[test]
    fn tables_that_join_are_told_alone() {
        let mut story = Story::new();
        story.look(MirrorPhase::Streaming, TableState::Streaming);
        story.look(MirrorPhase::Provisioning, TableState::Pending);
        story.progress.table(&TableId::new("public", "new")).set_state(TableState::Streaming, None, "");
        let now = Time(Timestamp::UNIX_EPOCH);
        story.progress.set_phase(MirrorPhase::Streaming, None);
        story.progress.table(&TableId::new("public", "users")).set_state(TableState::Streaming, None, "");
        story.progress.table(&TableId::new("public", "other")).set_state(TableState::Streaming, None, "");
        let next = mirror_status(&story.progress.report(), Some(2), Some(&story.status), &now);
        let told: Vec<_> = notices(&story.status, &next, story.mode);
        assert_eq!(
            told.iter().map(|notice| notice.note.as_str()).collect::<Vec<_>>(),
            ["copying the rows of 1 table", "0 rows copied"]
        );
    }

    #[test]
    fn failures_are_told_once() {
        let mut story = Story::new();
        story.look(MirrorPhase::Streaming, TableState::Streaming);
        assert_eq!(story.look(MirrorPhase::Streaming, TableState::Failed), [Reason::TableFailed]);
        assert_eq!(story.look(MirrorPhase::Streaming, TableState::Failed), Vec::<Reason>::new());
        assert_eq!(story.look(MirrorPhase::Stalled, TableState::Failed), [Reason::SourceSlotLost]);
        assert_eq!(story.look(MirrorPhase::Stalled, TableState::Failed), Vec::<Reason>::new());
    }
}
