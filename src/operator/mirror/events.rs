//! Which events a report or a new status is worth.

use std::collections::BTreeMap;

use crate::{
    api::{FailedTable, MirrorStatus, RESYNC, SnapshotMode, conditions::SNAPSHOTTED},
    fault::Reason,
    model::{MirrorFailure, MirrorReport, SlotReport, TableReport, TableState},
    operator::{
        events::{Event, stalled},
        object::condition,
    },
    status,
};

/// The events of the replicator's reports that no condition shows: slot warnings, takeovers, failovers,
/// re-copied tables.
#[derive(Debug, Default)]
pub(super) struct EventTracker {
    /// The slot as last reported.
    slot: SlotReport,
    /// The replicator's counters as last reported. An operator that has just started takes the first ones as
    /// known: an earlier operator may have published their events.
    counters: Option<Counters>,
    /// How often each table had been re-copied by then.
    recopies: BTreeMap<String, u64>,
    /// The warning as last reported.
    warning: Option<MirrorFailure>,
}

#[derive(Clone, Copy, Debug)]
struct Counters {
    takeovers: u64,
    failovers: u64,
}

impl EventTracker {
    /// The events of what is new in this report.
    pub(super) fn new_events(&mut self, report: &MirrorReport) -> Vec<Event> {
        let mut events = Vec::new();
        // Without a WAL status nobody has read the slot.
        if report.slot.wal_status.is_some() {
            let before = std::mem::replace(&mut self.slot, report.slot.clone());
            let warning = report.slot.is_worse_than(&before).then(|| status::slot_warning(report)).flatten();
            events.extend(warning.map(|(reason, note)| Event::warning(reason, note)));
        }
        // A report without tables was made without the replicator, which continues to count.
        if report.tables.is_empty() {
            return events;
        }
        let counters = Counters { takeovers: report.slot.takeovers, failovers: report.slot.failovers };
        let known = self.counters.replace(counters).unwrap_or(counters);
        if self.warning != report.warning {
            self.warning.clone_from(&report.warning);
            let warning = report.warning.iter();
            events.extend(warning.map(|warning| Event::warning(warning.reason, warning.message.clone())));
        }
        let slot = &report.slot_name;
        if counters.takeovers > known.takeovers {
            let note = format!("terminated a stale connection of this Mirror that was holding slot {slot}");
            events.push(Event::normal(Reason::SlotTakenOver, note));
        }
        if counters.failovers > known.failovers {
            let note =
                format!("a standby of the source was promoted; replication continues from slot {slot} there");
            events.push(Event::normal(Reason::FailedOver, note));
        }
        events.extend(report.tables.iter().filter_map(|table| self.recopied(table)));
        events
    }

    /// For the first report about a table, only a copy in progress counts: an earlier operator may have
    /// published older ones.
    fn recopied(&mut self, table: &TableReport) -> Option<Event> {
        let name = format!("{}.{}", table.schema, table.name);
        let (count, cause) = (table.resyncs.count, &table.resyncs.cause);
        let is_new = match self.recopies.insert(name.clone(), count) {
            Some(known) => count > known,
            None => count > 0 && matches!(table.state, TableState::Pending | TableState::Snapshotting),
        };
        is_new.then(|| Event::normal(Reason::TableResync, format!("{name}: {cause}")).about(name))
    }
}

/// The annotation that requests a resync, as last applied; `None` before the first reconcile.
#[derive(Debug, Default)]
pub(super) struct ResyncTracker(Option<Option<String>>);

impl ResyncTracker {
    /// The event of a resync when the annotation has a new value.
    pub(super) fn requested(&mut self, annotation: Option<&String>) -> Option<Event> {
        let before = self.0.replace(annotation.cloned())?;
        let requested = annotation.filter(|requested| before.as_ref() != Some(requested))?;
        let note = format!("resyncing tables, as {RESYNC}={requested} requests");
        Some(Event::normal(Reason::ResyncRequested, note))
    }
}

/// The events of what has changed between two statuses.
pub(super) fn status_events(before: &MirrorStatus, next: &MirrorStatus, mode: SnapshotMode) -> Vec<Event> {
    let mut events: Vec<Event> = stalled(&before.conditions, &next.conditions).into_iter().collect();
    let provisioned = before.last_lsn.is_none() && next.last_lsn.is_some();
    if provisioned {
        let name = |name: &Option<String>| name.clone().unwrap_or_default();
        let (publication, slot) = (name(&next.publication_name), name(&next.slot_name));
        let note = format!("created publication {publication} and slot {slot}");
        events.push(Event::normal(Reason::Provisioned, note));
    }
    if mode != SnapshotMode::Never {
        events.extend(snapshot_events(before, next, provisioned));
    }
    for failed in &next.failed_tables {
        let known = |table: &FailedTable| {
            (&table.schema, &table.name, &table.reason) == (&failed.schema, &failed.name, &failed.reason)
        };
        if !before.failed_tables.iter().any(known) {
            let table = format!("{}.{}", failed.schema, failed.name);
            let note = format!("{table}: {} ({})", failed.message, failed.reason);
            events.push(Event::warning(Reason::TableFailed, note).about(table));
        }
    }
    events
}

/// A short copy may start and finish between two reconciles: that of a new Mirror, or of tables that were
/// added.
fn snapshot_events(before: &MirrorStatus, next: &MirrorStatus, provisioned: bool) -> Vec<Event> {
    let state = |status: &MirrorStatus| {
        let condition = condition(&status.conditions, SNAPSHOTTED);
        condition.map(|condition| (condition.status == "True", condition.reason.clone()))
    };
    let copying = |state: &Option<(bool, String)>| {
        state.as_ref().is_some_and(|(_, reason)| Reason::Snapshotting == reason.as_str())
    };
    let total = |status: &MirrorStatus| status.tables.as_ref().map_or(0, |tables| tables.total);
    let added = total(next) > total(before);
    let (earlier, now) = (state(before), state(next));
    let finished = now.as_ref().is_some_and(|(done, _)| *done);
    let unobserved = finished && !copying(&earlier) && (provisioned || added);
    let mut events = Vec::new();
    if unobserved || (copying(&now) && !copying(&earlier)) {
        let count = total(next) - if added && !provisioned { total(before) } else { 0 };
        let tables = if count == 1 { "1 table".to_owned() } else { format!("{count} tables") };
        events.push(Event::normal(Reason::SnapshotStarted, format!("copying the existing rows of {tables}")));
    }
    if unobserved || (finished && copying(&earlier)) {
        let rows = next.snapshot.as_ref().map_or(0, |snapshot| snapshot.rows_copied);
        events.push(Event::normal(Reason::SnapshotFinished, format!("{rows} rows copied")));
    }
    events
}

#[cfg(test)]
mod tests;
