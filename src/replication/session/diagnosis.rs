//! What keeps a started Mirror from continuing, by its state and the source, without changing anything: for
//! `walferry check`.

use super::{
    position::PositionRecord, publication::check_publication, slot::check_slot, timeline::SourceTimeline,
};
use crate::{
    model::ReplicatorConfig,
    postgres::{
        self, catalog,
        publication::{self, Publish},
        session::Session,
        slot::{self, SlotInfo},
        source_status::PublicationStatus,
        wire::{Connection, Purpose},
    },
    replication::{
        Error,
        table::store::{MirrorState, SourceRecord},
    },
};

/// Every connection is taken, which those in use may well be by Mirrors.
const TOO_MANY_CONNECTIONS: &str = "53300";

/// The faults that the engine would meet with this state at its next start, apart from those of single
/// tables. None before the Mirror has a slot, and none after a copy that was all that was asked for.
/// `recorded` reads the position on record.
///
/// # Errors
/// What the source answers.
pub async fn faults(
    config: &ReplicatorConfig,
    session: &Session,
    state: &MirrorState,
    recorded: impl AsyncFnOnce() -> Result<Option<PositionRecord>, Error>,
) -> Result<Vec<Error>, postgres::Error> {
    let Some(source) = state.source.as_ref().filter(|source| !source.finished) else {
        return Ok(Vec::new());
    };
    let timeline = match reach(config, source).await {
        Ok(timeline) => timeline,
        Err(Error::Source(error)) => return Err(error),
        // Slot and publication of another server mean nothing.
        Err(fault) => return Ok(vec![fault]),
    };
    let mut faults: Vec<Error> = source.check_versions().err().into_iter().collect();
    let found = slot::read(session, &config.mirror.slot_name()).await?;
    match (check_slot(config, Some(source), found), timeline) {
        (Err(fault), _) => faults.push(fault),
        (Ok(Some(slot)), Some(timeline)) => match check_position(session, slot, &timeline, recorded).await {
            Err(Error::Source(error)) => return Err(error),
            checked => faults.extend(checked.err()),
        },
        (Ok(_), _) => {}
    }
    for what in Publish::all(config) {
        let name = what.name(&config.mirror);
        let found = publication::read(session, &name).await?.map(|found| PublicationStatus::from(&found));
        faults.extend(check_publication(&name, what, found).err());
    }
    Ok(faults)
}

/// Compares slot and source with the position on record. The Mirror may be streaming: it writes the record
/// before it confirms, so the record is read between what the slot has confirmed and how far the log is.
async fn check_position(
    session: &Session,
    slot: SlotInfo,
    timeline: &SourceTimeline,
    recorded: impl AsyncFnOnce() -> Result<Option<PositionRecord>, Error>,
) -> Result<(), Error> {
    let Some(position) = recorded().await? else { return Err(Error::PositionUnknown { slot: slot.name }) };
    let Some(now) = slot::read(session, &slot.name).await? else { return Ok(()) };
    let slot = SlotInfo { current_lsn: now.current_lsn, ..slot };
    position.check(&slot, timeline.timeline(), catalog::is_standby(session).await?)
}

/// The server, unless it is another one, or on another timeline that can't be followed; `None` where no
/// connection is free.
async fn reach(config: &ReplicatorConfig, source: &SourceRecord) -> Result<Option<SourceTimeline>, Error> {
    let reached = async {
        let application = config.mirror.application_name();
        let mut wire = Connection::connect(&config.source, &application, Purpose::Replication).await?;
        let identity = wire.identify_system().await?;
        let timeline = SourceTimeline::read(&mut wire, identity, &config.source).await?;
        timeline.check_system(Some(source))?;
        timeline.switchpoint(source)?;
        Ok(timeline)
    };
    match reached.await {
        Err(Error::Source(error)) if error.sqlstate() == Some(TOO_MANY_CONNECTIONS) => Ok(None),
        other => other.map(Some),
    }
}
