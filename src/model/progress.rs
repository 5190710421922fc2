//! How far a Mirror is: written by the engine, read by `/status`, `/metrics`, the terminal and the operator.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::{
    AutomaticResyncs, LagReport, Liveness, Lsn, MirrorFailure, MirrorIdentity, MirrorPhase, MirrorReport,
    SlotPlace, SlotReport, TableId, TableReport, TableState, lock,
};
use crate::fault::{Reason, Remedy, RemedyRenderer};

/// What was measured so long ago, or heard from the source, is not known any more.
const FRESH: Duration = Duration::from_secs(30);

/// Counters of one table, updated from the hot path without a lock.
#[derive(Debug, Default)]
pub struct TableProgress {
    /// Rows the snapshot has made durable at the destination.
    pub rows_copied: AtomicU64,
    /// Rows the source's statistics expect (`reltuples`), 0 when unknown.
    pub rows_estimated: AtomicU64,
    /// Streamed inserts, made durable.
    pub inserted: AtomicU64,
    /// Streamed updates, made durable.
    pub updated: AtomicU64,
    /// Streamed deletes, made durable.
    pub deleted: AtomicU64,
    /// Streamed truncates.
    pub truncated: AtomicU64,
    /// Rows re-fetched from the source for an unchanged TOAST value.
    pub refetched: AtomicU64,
    status: Mutex<TableStatus>,
    renderer: Option<Arc<dyn RemedyRenderer>>,
    /// Whether the source is a standby, for whose primary statements are that change the catalog.
    standby: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct TableStatus {
    state: TableState,
    message: String,
    remedies: Vec<Remedy>,
    reason: Option<Reason>,
    /// What is refused at present, and tried again.
    repeated: Option<MirrorFailure>,
    target: String,
    out_of_range: BTreeMap<String, u64>,
    resyncs: AutomaticResyncs,
    /// Whether the last one of them is under way.
    resyncing: bool,
    copied_while_streaming: bool,
}

impl TableProgress {
    fn status(&self) -> MutexGuard<'_, TableStatus> {
        lock(&self.status)
    }

    /// Moves the table to `state` with a message (empty for none).
    pub fn set_state(
        &self,
        state: TableState,
        reason: impl Into<Option<Reason>>,
        message: impl Into<String>,
    ) {
        let mut status = self.status();
        status.state = state;
        status.reason = reason.into();
        status.message = message.into();
        status.remedies.clear();
        status.resyncing &= matches!(state, TableState::Pending | TableState::Snapshotting);
    }

    /// Records that the table has stopped alone, why, and what helps.
    pub fn set_failed(&self, failure: MirrorFailure) {
        self.set_state(TableState::Failed, failure.reason, failure.message);
        self.status().remedies = failure.remedies;
    }

    /// Records what is refused for this table alone and tried again, or that nothing is.
    pub fn set_repeated(&self, failure: Option<MirrorFailure>) {
        self.status().repeated = failure;
    }

    /// What failed and what to do, for the log of this process.
    pub fn sentence(&self, failure: &MirrorFailure) -> String {
        failure.clone().for_source(self.standby.load(Relaxed)).sentence(self.renderer.as_deref())
    }

    /// Counts a re-copy that starts automatically, with its cause. One that continues after a restart counts
    /// once.
    pub fn count_resync(&self, cause: &str) {
        let mut status = self.status();
        if !std::mem::replace(&mut status.resyncing, true) {
            let count = status.resyncs.count + 1;
            status.resyncs = AutomaticResyncs { count, cause: cause.to_owned() };
        }
    }

    /// Records whether the table is copied beside others that have streamed before.
    pub fn set_copied_while_streaming(&self, copied: bool) {
        self.status().copied_while_streaming = copied;
    }

    /// The table's state.
    pub fn state(&self) -> TableState {
        self.status().state
    }

    /// Sets the target table's name.
    pub fn set_target(&self, target: &str) {
        self.status().target = target.to_owned();
    }

    /// Counts values of `column` that the destination type could not hold.
    pub fn count_out_of_range(&self, column: &str, values: u64) {
        *self.status().out_of_range.entry(column.to_owned()).or_default() += values;
    }
}

#[derive(Debug, Default)]
struct Overall {
    phase: MirrorPhase,
    failure: Option<MirrorFailure>,
    tables: BTreeMap<TableId, Arc<TableProgress>>,
    slot: SlotReport,
    slot_place: Option<SlotPlace>,
    warning: Option<MirrorFailure>,
    /// Seconds of lag, and when they were measured.
    lag: Option<(f64, Instant)>,
    /// When the source last said anything.
    heard: Option<Instant>,
}

/// How far one Mirror is. Shared by reference between the engine's tasks and its readers.
#[derive(Debug)]
pub struct Progress {
    mirror: MirrorIdentity,
    /// Everything committed up to here is durable at the destination.
    durable_lsn: AtomicU64,
    /// The end of the source's log as last heard of.
    source_lsn: AtomicU64,
    overall: Mutex<Overall>,
    liveness: Arc<Liveness>,
    renderer: Option<Arc<dyn RemedyRenderer>>,
    /// Whether the source is a standby, for whose primary statements are that change the catalog.
    standby: Arc<AtomicBool>,
}

impl Progress {
    /// The state of a Mirror that has not started.
    pub fn new(mirror: &MirrorIdentity) -> Self {
        Progress {
            renderer: None,
            standby: Arc::default(),
            mirror: mirror.clone(),
            durable_lsn: AtomicU64::new(0),
            source_lsn: AtomicU64::new(0),
            overall: Mutex::default(),
            liveness: Arc::default(),
        }
    }

    /// The same, with `renderer` for its remedies.
    pub fn with_renderer(self, renderer: Option<Arc<dyn RemedyRenderer>>) -> Self {
        Progress { renderer, ..self }
    }

    /// The renderer of remedies for this process.
    pub fn renderer(&self) -> Option<&Arc<dyn RemedyRenderer>> {
        self.renderer.as_ref()
    }

    /// What failed and what to do, for the log of this process.
    pub fn sentence(&self, failure: &MirrorFailure) -> String {
        failure.clone().for_source(self.standby.load(Relaxed)).sentence(self.renderer.as_deref())
    }

    /// Whether its tasks get on.
    pub fn liveness(&self) -> &Arc<Liveness> {
        &self.liveness
    }

    fn overall(&self) -> MutexGuard<'_, Overall> {
        lock(&self.overall)
    }

    /// The counters of `table`, made at first use.
    pub fn table(&self, table: &TableId) -> Arc<TableProgress> {
        let made = || {
            let (renderer, standby) = (self.renderer.clone(), Arc::clone(&self.standby));
            Arc::new(TableProgress { renderer, standby, ..TableProgress::default() })
        };
        self.overall().tables.entry(table.clone()).or_insert_with(made).clone()
    }

    /// Sets the phase and clears or sets the failure.
    pub fn set_phase(&self, phase: MirrorPhase, failure: Option<MirrorFailure>) {
        let mut overall = self.overall();
        overall.phase = phase;
        overall.failure = failure;
    }

    /// The phase.
    pub fn phase(&self) -> MirrorPhase {
        self.overall().phase
    }

    /// Records that everything committed up to `lsn` is durable.
    pub fn set_durable_lsn(&self, lsn: Lsn) {
        self.durable_lsn.fetch_max(lsn.0, Relaxed);
        self.source_lsn.fetch_max(lsn.0, Relaxed);
    }

    /// Everything committed up to here is durable.
    pub fn durable_lsn(&self) -> Lsn {
        Lsn(self.durable_lsn.load(Relaxed))
    }

    /// Records the end of the source's log, as it was just reported.
    pub fn set_source_lsn(&self, lsn: Lsn) {
        self.source_lsn.fetch_max(lsn.0, Relaxed);
        self.overall().heard = Some(Instant::now());
    }

    /// Records what the source says of the slot.
    pub fn set_slot(&self, slot: SlotReport) {
        let mut overall = self.overall();
        let SlotReport { takeovers, failovers, .. } = overall.slot;
        overall.slot = SlotReport { takeovers, failovers, ..slot };
    }

    /// What the source last said of the slot.
    pub fn slot(&self) -> SlotReport {
        self.overall().slot.clone()
    }

    /// Records whether the source is a standby.
    pub fn set_source_standby(&self, standby: bool) {
        self.standby.store(standby, Relaxed);
    }

    /// Records where the slot is.
    pub fn set_slot_place(&self, place: SlotPlace) {
        self.overall().slot_place = Some(place);
    }

    /// Records a warning that does not stop the Mirror, or that there is none.
    pub fn set_warning(&self, warning: Option<MirrorFailure>) {
        self.overall().warning = warning;
    }

    /// Records that the slot was taken from a walsender that an earlier run had left behind.
    pub fn add_takeover(&self) {
        self.overall().slot.takeovers += 1;
    }

    /// Records that a promoted standby is followed, whose log may end before what was known of the former
    /// primary's.
    pub fn add_failover(&self) {
        self.durable_lsn.store(0, Relaxed);
        self.source_lsn.store(0, Relaxed);
        self.overall().slot.failovers += 1;
    }

    /// Records how long ago the oldest transaction that is not yet durable was committed; 0 when none is.
    pub fn set_lag_seconds(&self, seconds: f64) {
        self.overall().lag = Some((seconds, Instant::now()));
    }

    /// A consistent copy of the figures.
    pub fn report(&self) -> MirrorReport {
        let (mirror, overall) = (&self.mirror, self.overall());
        let durable = self.durable_lsn();
        let source = Lsn(self.source_lsn.load(Relaxed));
        MirrorReport {
            namespace: mirror.namespace.clone(),
            name: mirror.name.clone(),
            phase: overall.phase,
            failure: overall.failure.clone().map(|failure| failure.for_source(self.standby.load(Relaxed))),
            meanwhile: None,
            warning: overall.warning.clone().map(|warning| warning.for_source(self.standby.load(Relaxed))),
            slot_name: mirror.slot_name(),
            publication_name: mirror.publication_name(),
            last_lsn: durable,
            lag: overall.lag(source.bytes_since(durable), Instant::now()),
            slot: overall.slot.clone(),
            slot_place: overall.slot_place.clone(),
            tables: overall.tables.iter().map(|(id, table)| table_report(id, table)).collect(),
        }
    }
}

fn table_report(id: &TableId, table: &TableProgress) -> TableReport {
    let status = table.status();
    let repeated = status.repeated.clone().filter(|_| status.state != TableState::Failed);
    let (reason, message, remedies) = match repeated {
        Some(failure) => (Some(failure.reason), failure.message, failure.remedies),
        None => (status.reason, status.message.clone(), status.remedies.clone()),
    };
    let remedies = match table.standby.load(Relaxed) {
        true => remedies.into_iter().map(Remedy::at_primary).collect(),
        false => remedies,
    };
    TableReport {
        schema: id.schema.clone(),
        name: id.name.clone(),
        target: status.target.clone(),
        state: status.state,
        rows_copied: table.rows_copied.load(Relaxed),
        rows_estimated: table.rows_estimated.load(Relaxed),
        inserted: table.inserted.load(Relaxed),
        updated: table.updated.load(Relaxed),
        deleted: table.deleted.load(Relaxed),
        truncated: table.truncated.load(Relaxed),
        refetched: table.refetched.load(Relaxed),
        out_of_range: status.out_of_range.clone(),
        resyncs: status.resyncs.clone(),
        copied_while_streaming: status.copied_while_streaming,
        reason,
        message,
        remedies,
    }
}

impl Overall {
    /// The lag as far as it is known now. What was committed at a source that does not answer is unknown: it
    /// may be as old as what was heard last, so the seconds grow.
    fn lag(&self, bytes: u64, now: Instant) -> LagReport {
        let since = |then: Instant| now.saturating_duration_since(then);
        let heard = self.heard.filter(|_| self.phase != MirrorPhase::Finished).map(since);
        let measured = self.lag.filter(|_| self.phase != MirrorPhase::Finished);
        let seconds = measured.map(|(seconds, at)| {
            let age = since(at);
            let silence = heard.filter(|silence| *silence >= FRESH).unwrap_or_default();
            let grown = if age >= Duration::from_secs(1) { seconds + age.as_secs_f64() } else { seconds };
            grown.max(silence.as_secs_f64())
        });
        LagReport { bytes: heard.filter(|silence| *silence < FRESH).map(|_| bytes), seconds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_in_reports_of_earlier_releases_are_read() {
        let progress = TableProgress::default();
        progress.count_resync("a label was renamed");
        progress.set_copied_while_streaming(true);
        progress.refetched.store(3, Relaxed);
        let report = table_report(&TableId::new("public", "users"), &progress);
        let mut document = serde_json::to_value(&report).unwrap();
        let fields = document.as_object_mut().unwrap();
        let names: Vec<_> =
            ["resyncs", "copiedWhileStreaming", "refetched"].map(|name| fields.remove(name)).into();
        assert_eq!(
            serde_json::to_value(names).unwrap(),
            serde_json::json!([{"count": 1, "cause": "a label was renamed"}, true, 3])
        );
        let former = serde_json::json!({"copiesAnew": {"times": 1, "why": "a label was renamed"}, "joins": true, "reread": 3});
        fields.extend(former.as_object().unwrap().clone());
        assert_eq!(serde_json::from_value::<TableReport>(document).unwrap(), report);
    }

    #[test]
    fn lag_grows_while_nothing_is_known_and_is_none_before() {
        let now = Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        let mut overall = Overall { phase: MirrorPhase::Streaming, ..Overall::default() };
        assert_eq!(overall.lag(7, now), LagReport::default());
        overall.heard = Some(now);
        assert_eq!(overall.lag(7, after(3)), LagReport { bytes: Some(7), seconds: None });
        overall.lag = Some((0.5, now));
        assert_eq!(overall.lag(7, now), LagReport { bytes: Some(7), seconds: Some(0.5) });
        // No longer measured.
        overall.phase = MirrorPhase::Stalled;
        assert_eq!(overall.lag(7, after(90)), LagReport { bytes: None, seconds: Some(90.5) });
        // Measured, but the source says nothing.
        overall.lag = Some((0.0, after(90)));
        assert_eq!(overall.lag(7, after(90)), LagReport { bytes: None, seconds: Some(90.0) });
        overall.phase = MirrorPhase::Finished;
        assert_eq!(overall.lag(7, after(90)), LagReport::default());
    }
}
