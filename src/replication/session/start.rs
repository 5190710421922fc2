//! Begins a session: connects, provisions, restores the tables and begins to stream.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::sync::Notify;

use super::{
    admission::report_refused,
    context::ProvisionContext,
    position::{Confirmable, PositionRecord, Witness},
    provision::{Provisioned, Provisioner},
    publication::publications,
    recorder::{Activity, Recorder},
    resync,
    supervisor::Supervisor,
    timeline::SourceTimeline,
};
use crate::{
    model::{Lsn, MirrorPhase, SlotReport, TableSpec, lock},
    postgres::{
        catalog,
        session::Session,
        slot::{self, Release},
        wire::{Connection, Purpose, ReplicationReader, ReplicationWriter, SystemIdentity},
    },
    replication::{
        Destination, Error, Refused,
        monitor::source::SourceMonitor,
        retry::RetryObserver,
        stream::Mark,
        table::{Table, store::MirrorState},
    },
};

/// The tables of a session, each with its entry in the Mirror.
pub(super) type SessionTables<D> = Vec<(Arc<Table<D>>, TableSpec)>;

/// A connection that has begun to stream.
pub(super) struct Started<D: Destination> {
    pub(super) session: Session,
    pub(super) state: MirrorState,
    /// Whether tables without a plan must wait for their writers.
    pub(super) slot_predates_publication: bool,
    /// Tables that can't be added yet.
    pub(super) refused: Refused,
    pub(super) tables: SessionTables<D>,
    pub(super) monitor: SourceMonitor<D>,
    pub(super) stream: StreamPosition<D>,
    pub(super) reader: ReplicationReader,
    pub(super) writer: ReplicationWriter,
    /// Whether values come in binary form.
    pub(super) binary: bool,
}

/// Where a stream begins, and what it has to bring again.
pub(super) struct StreamPosition<D: Destination> {
    /// The slot's position, and the last transaction on record.
    pub(super) start: Mark,
    /// Records how far the source may hear that rows are durable.
    pub(super) recorder: Recorder<D>,
    /// What the stream has to bring again.
    pub(super) witness: Witness,
}

impl<D: Destination> Supervisor<D> {
    /// Provisions and begins to stream; `None` when the copy was all that was asked for and is done.
    pub(super) async fn start(&self) -> Result<Option<Started<D>>, Error> {
        let (mut wire, identity, session) = self.connect().await?;
        let timeline = SourceTimeline::read(&mut wire, identity, &self.config.source).await?;
        self.progress.set_source_standby(catalog::is_standby(&session).await?);
        self.release_stale_reader(&session).await?;
        let provisioned = self.provision(&session, &timeline).await?;
        let Provisioned { state, slot_predates_publication, failed_over, refused } = provisioned;
        report_refused(&self.progress, &refused);
        self.progress.set_slot_place(timeline.place().clone());
        if failed_over.is_some() {
            self.progress.add_failover();
        }
        if state.source.as_ref().is_some_and(|source| source.finished) {
            self.release(&session).await?;
            return Ok(None);
        }
        let tables = self.restore_tables(&state);
        let Some(record) = state.position.clone() else {
            return Err(Error::PositionUnknown { slot: self.config.mirror.slot_name() });
        };
        let confirmable = Confirmable::new(record.lsn);
        let monitor = self.source_monitor(&state, &tables, timeline.server_started(), &confirmable);
        let found = monitor.check(&session, &self.stop).await?;
        let confirmed = found.and_then(|slot| slot.confirmed_flush_lsn).unwrap_or_default();
        let binary = tables.iter().all(|(table, _)| table.schema().has_binary_decoder());
        let (reader, writer) = self.start_stream(wire, &session, confirmed, binary).await?;
        let stream = self.stream_position(record, confirmed, timeline.timeline(), confirmable);
        self.progress.set_durable_lsn(confirmed);
        self.progress.set_slot(SlotReport { inactive_since: None, ..self.progress.slot() });
        Ok(Some(Started {
            session,
            state,
            slot_predates_publication,
            refused,
            tables,
            monitor,
            stream,
            reader,
            writer,
            binary,
        }))
    }

    /// Connects twice, to one server: for the stream, and for queries.
    async fn connect(&self) -> Result<(Connection, SystemIdentity, Session), Error> {
        let (application_name, source) = (self.config.mirror.application_name(), &self.config.source);
        let ((wire, identity), session) = tokio::try_join!(
            async {
                let mut wire = Connection::connect(source, &application_name, Purpose::Replication).await?;
                let identity = wire.identify_system().await?;
                Ok((wire, identity))
            },
            Session::connect(source, &application_name)
        )?;
        if catalog::server_started(&session).await? != identity.started {
            return Err(Error::TwoServers);
        }
        let before = lock(&self.server).replace(identity.clone());
        if before
            .is_some_and(|before| before.timeline != identity.timeline && before.started != identity.started)
        {
            // What is under way may come from the former primary.
            self.stop_and_reset().await;
        }
        Ok((wire, identity, session))
    }

    /// Ends an earlier connection of this Mirror: nothing is written beside a process that is at work.
    async fn release_stale_reader(&self, session: &Session) -> Result<(), Error> {
        let slot = self.config.mirror.slot_name();
        let application_name = self.config.mirror.application_name();
        match slot::release_own_walsender(session, &slot, &application_name).await? {
            Release::Held(by) => return Err(Error::SlotInUse { slot, by }),
            Release::Terminated => self.progress.add_takeover(),
            Release::Free => {}
        }
        Ok(())
    }

    async fn provision(&self, session: &Session, timeline: &SourceTimeline) -> Result<Provisioned, Error> {
        let copying = self.copying.lock().await.as_ref().is_some_and(|copying| !copying.task.is_finished());
        let provisioner = Provisioner {
            context: ProvisionContext {
                config: &self.config,
                session,
                destination: &self.destination,
                store: &self.store,
                stop: &self.stop,
                observer: &self.observer_of_start(),
            },
            timeline,
            progress: &self.progress,
            copying,
            refused: self.admission.refused().await?,
        };
        let provisioned = provisioner.provision().await;
        if let Err(Error::NoTableAdmitted { refused }) = &provisioned {
            self.admission.forget();
            report_refused(&self.progress, refused);
        }
        provisioned
    }

    /// Begins to stream from the slot's position.
    async fn start_stream(
        &self,
        wire: Connection,
        session: &Session,
        confirmed: Lsn,
        binary: bool,
    ) -> Result<(ReplicationReader, ReplicationWriter), Error> {
        let slot = self.config.mirror.slot_name();
        match wire.start_replication(&slot, confirmed, &publications(&self.config), binary).await {
            // object_in_use: somebody else was faster.
            Err(error) if error.sqlstate() == Some("55006") => {
                let by = slot::reader(session, &slot).await?;
                let by = by.unwrap_or_else(|| "a process that is just ending".to_owned());
                Err(Error::SlotInUse { slot, by })
            }
            streaming => {
                let streaming = streaming?;
                tracing::info!(slot, start = %confirmed, binary, "streaming");
                Ok(streaming)
            }
        }
    }

    fn stream_position(
        &self,
        record: PositionRecord,
        confirmed: Lsn,
        timeline: u32,
        confirmable: Arc<Confirmable>,
    ) -> StreamPosition<D> {
        let publications = publications(&self.config);
        let witness = record.witness(confirmed, timeline, &publications);
        let start = Mark { lsn: confirmed, commit: record.commit };
        let record = PositionRecord { publications, ..record };
        let recorder =
            Recorder { store: self.store.clone(), confirmable, record, noted: Activity::default() };
        StreamPosition { start, recorder, witness }
    }

    fn source_monitor(
        &self,
        state: &MirrorState,
        tables: &SessionTables<D>,
        server_started: &str,
        confirmable: &Arc<Confirmable>,
    ) -> SourceMonitor<D> {
        SourceMonitor {
            config: Arc::clone(&self.config),
            source: state.source.clone(),
            server_started: server_started.to_owned(),
            confirmable: Arc::clone(confirmable),
            progress: Arc::clone(&self.progress),
            tables: tables.iter().map(|(table, _)| Arc::clone(table)).collect(),
            observer: self.observer(tables),
            check_requested: Arc::new(Notify::new()),
            last_checked: Arc::clone(&self.last_checked),
            fingerprints: Mutex::new(HashMap::new()),
            awaited_columns: Mutex::new(HashMap::new()),
        }
    }

    /// Tables by their records; those known from an earlier connection stay.
    fn restore_tables(&self, state: &MirrorState) -> SessionTables<D> {
        let mut tables = lock(&self.tables);
        self.config
            .tables
            .iter()
            .filter_map(|spec| {
                let record = state.tables.get(&spec.id)?;
                let table = tables.entry(spec.id.clone()).or_insert_with(|| {
                    Arc::new(Table::new(record.clone(), self.progress.table(&spec.id), self.store.clone()))
                });
                Some((Arc::clone(table), spec.clone()))
            })
            .collect()
    }

    /// Reports transient errors, and their end, as the Mirror's phase.
    fn observer(&self, tables: &SessionTables<D>) -> RetryObserver {
        let progress = Arc::clone(&self.progress);
        let tables: Vec<_> = tables.iter().map(|(table, _)| Arc::clone(table)).collect();
        RetryObserver::new(Arc::clone(self.progress.liveness()), Arc::clone(&self.answers), move |failure| {
            match failure {
                Some(failure) => progress.set_phase(MirrorPhase::Retrying, Some(failure.clone())),
                None => {
                    let copying = tables.iter().any(|table| !table.failed() && !table.snapshot_over());
                    let phase = if copying { MirrorPhase::Snapshotting } else { MirrorPhase::Streaming };
                    progress.set_phase(phase, None);
                }
            }
        })
    }

    /// The same before anything streams.
    fn observer_of_start(&self) -> RetryObserver {
        let progress = Arc::clone(&self.progress);
        RetryObserver::new(Arc::clone(self.progress.liveness()), Arc::clone(&self.answers), move |failure| {
            let phase = failure.map_or(MirrorPhase::Provisioning, |_| MirrorPhase::Retrying);
            progress.set_phase(phase, failure.cloned());
        })
    }

    /// Drops slot and publication.
    pub(super) async fn release(&self, session: &Session) -> Result<(), Error> {
        if resync::release(&self.config, session).await? {
            tracing::info!(mirror = self.config.mirror.name, "copy finished; slot and publication dropped");
        }
        Ok(())
    }
}
