//! Removes what a Mirror has: its slot and publication at the source and its state at the destination. Never a target table.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::{
    clickhouse::{Database, Error as ClickHouseError},
    fault::Reason,
    model::{ClickHouseEndpoint, INSERTS_SUFFIX, OutOfRange, PostgresEndpoint},
    postgres::{self, publication, session::Session, slot},
    replication::{Destination, DestinationError},
};

/// How long a replicator that is just ending may still hold its slot.
const RELEASE_WITHIN: Duration = Duration::from_secs(5);

/// Why something could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source answered with an error or could not be reached.
    #[error("source: {0}")]
    Source(#[from] postgres::Error),
    /// The destination answered with an error or could not be reached.
    #[error("destination: {0}")]
    Destination(#[from] DestinationError),
    /// Somebody reads from the slot.
    #[error(
        "slot {slot} is in use by the walsender with pid {pid}: stop the replicator first, or run SELECT pg_terminate_backend({pid}) at the source"
    )]
    SlotInUse {
        /// The slot.
        slot: String,
        /// The process that reads from it.
        pid: i32,
    },
}

impl Error {
    /// The reason that a condition shows; it begins with the side that the fault lies on.
    pub fn reason(&self) -> Reason {
        match self {
            Error::Source(postgres::Error::Authentication { .. }) => Reason::SourceAuthenticationFailed,
            Error::Source(source) if source.is_transient() => Reason::SourceUnreachable,
            Error::Source(_) => Reason::SourceError,
            Error::Destination(destination) => destination.reason,
            Error::SlotInUse { .. } => Reason::SourceSlotInUse,
        }
    }
}

impl From<ClickHouseError> for Error {
    fn from(error: ClickHouseError) -> Self {
        Error::Destination(error.into())
    }
}

/// What belongs to a Mirror at its source.
#[derive(Clone, Copy, Debug)]
pub struct SourceObjects<'a> {
    /// The replicator's `application_name`: a walsender of this name that has fallen silent is ended.
    pub application_name: &'a str,
    /// The replication slot.
    pub slot: &'a str,
    /// The publication, and with it that for inserts alone; one that walferry didn't make stays.
    pub publication: &'a str,
}

/// Drops slot and publication, and says for each what became of it. Idempotent.
///
/// # Errors
/// [`Error::Source`], and [`Error::SlotInUse`] when the slot's reader is alive.
pub async fn source(endpoint: &PostgresEndpoint, objects: SourceObjects<'_>) -> Result<Vec<String>, Error> {
    let SourceObjects { application_name, slot, publication } = objects;
    let session = Session::connect(endpoint, application_name).await?;
    slot::end_creation(&session, application_name).await?;
    slot::release_own_walsender(&session, slot, application_name).await?;
    wait_until_released(&session, slot).await?;
    let slot_dropped = slot::drop(&session, slot).await?;
    let mut done = vec![outcome("slot", slot, slot_dropped), drop_publication(&session, publication).await?];
    let inserts = format!("{publication}{INSERTS_SUFFIX}");
    if publication::read(&session, &inserts).await?.is_some() {
        done.push(drop_publication(&session, &inserts).await?);
    }
    Ok(done)
}

async fn drop_publication(session: &Session, name: &str) -> Result<String, Error> {
    Ok(match publication::read(session, name).await? {
        Some(found) if !found.owned_by_us => {
            format!("publication {name} isn't this mirror's and stays")
        }
        None => outcome("publication", name, false),
        Some(_) => match publication::drop(session, name).await {
            Err(postgres::Error::Standby { statements }) => {
                format!("publication {name} stays: run {statements} at the primary")
            }
            dropped => outcome("publication", name, dropped?),
        },
    })
}

/// Removes the state records of the Mirror with this UID. Idempotent.
///
/// # Errors
/// [`Error::Destination`].
pub async fn state(endpoint: &ClickHouseEndpoint, mirror_uid: &str) -> Result<(), Error> {
    let destination = Database::new(endpoint, OutOfRange::default())?;
    Ok(destination.drop_state(mirror_uid).await?)
}

async fn wait_until_released(session: &Session, slot_name: &str) -> Result<(), Error> {
    let deadline = Instant::now() + RELEASE_WITHIN;
    while let Some(pid) = slot::read(session, slot_name).await?.and_then(|slot| slot.active_pid) {
        if Instant::now() >= deadline {
            return Err(Error::SlotInUse { slot: slot_name.to_owned(), pid });
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

fn outcome(what: &str, name: &str, was_there: bool) -> String {
    if was_there { format!("{what} {name} dropped") } else { format!("{what} {name} was not there") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Side;

    #[test]
    fn reasons_tell_the_side() {
        assert_eq!(Error::Source(postgres::Error::Closed).reason(), Reason::SourceUnreachable);
        let in_use = Error::SlotInUse { slot: "walferry_0a".to_owned(), pid: 7 };
        assert_eq!(in_use.reason(), Reason::SourceSlotInUse);
        let refused = ClickHouseError::Settings("no".to_owned());
        assert_eq!(Error::from(refused).reason().side(), Side::Destination);
    }
}
