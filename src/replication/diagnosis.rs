//! What keeps a started Mirror from going on, as its state and the source tell without anything being changed: for `walferry check`.

use super::{
    Error,
    failover::Origin,
    provision::{check_publication, check_slot},
    state::{MirrorState, SourceRecord},
};
use crate::{
    model::ReplicatorConfig,
    postgres::{
        self,
        overview::Standing,
        publication::{self, Publication, Publish},
        session::Session,
        slot,
        wire::{Connection, Purpose},
    },
};

/// Every connection is taken, which those in use may well be by Mirrors.
const TOO_MANY_CONNECTIONS: &str = "53300";

/// The faults that the engine would meet with this state at its next start, apart from those of single tables. None before the
/// Mirror has a slot, and none after a copy that was all that was asked for.
///
/// # Errors
/// What the source answers.
pub async fn faults(
    config: &ReplicatorConfig,
    session: &Session,
    state: &MirrorState,
) -> Result<Vec<Error>, postgres::Error> {
    let Some(source) = state.source.as_ref().filter(|source| !source.finished) else {
        return Ok(Vec::new());
    };
    if let Some(fault) = of_server(config, source).await? {
        // Slot and publication of another server mean nothing.
        return Ok(vec![fault]);
    }
    let mut faults: Vec<Error> = source.check_versions().err().into_iter().collect();
    let found = slot::read(session, &config.mirror.slot_name()).await?;
    faults.extend(check_slot(config, Some(source), found).err());
    let inserts = config.has_insert_only().then_some(Publish::Inserts);
    for what in [Publish::Everything].into_iter().chain(inserts) {
        let name = match what {
            Publish::Everything => config.mirror.publication_name(),
            Publish::Inserts => config.mirror.inserts_publication_name(),
        };
        let found = publication::read(session, &name).await?.map(|found| standing(&found));
        faults.extend(check_publication(&name, what, found).err());
    }
    Ok(faults)
}

fn standing(found: &Publication) -> Standing {
    Standing { owned_by_us: found.owned_by_us, sends: found.sends.filter(|_| found.via_root) }
}

/// Another server, or another timeline that can't be followed.
async fn of_server(
    config: &ReplicatorConfig,
    source: &SourceRecord,
) -> Result<Option<Error>, postgres::Error> {
    let looked = async {
        let application = config.mirror.application_name();
        let mut wire = Connection::connect(&config.source, &application, Purpose::Replication).await?;
        let identity = wire.identify_system().await?;
        let origin = Origin::of(&mut wire, identity, &config.source).await?;
        origin.check_system(Some(source))?;
        origin.switch(source).map(drop)
    };
    match looked.await {
        Err(Error::Source(error)) if error.sqlstate() == Some(TOO_MANY_CONNECTIONS) => Ok(None),
        Err(Error::Source(error)) => Err(error),
        other => Ok(other.err()),
    }
}
