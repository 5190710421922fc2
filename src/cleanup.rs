//! Removes what a Mirror has: its slot and publications at the source and its state at the destination. Never
//! a target table.

use crate::{
    clickhouse::{Database, Error as ClickHouseError, state::STATE_TABLE},
    fault::Reason,
    model::{ClickHouseEndpoint, INSERTS_SUFFIX, MirrorIdentity, OutOfRange, PostgresEndpoint, SlotPlace},
    postgres::{
        self, catalog,
        removal::{self, Fate, MirrorObjects, RemovalError, Removed},
        session::Session,
        slot,
    },
    replication::{Destination, DestinationError, StateStore},
};

/// Why a Mirror could not be cleaned up.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// The source answered with an error or could not be reached.
    #[error("source: {0}")]
    Source(postgres::Error),
    /// The destination answered with an error or could not be reached.
    #[error("destination: {0}")]
    Destination(#[from] DestinationError),
    /// Another client reads from the slot.
    #[error(transparent)]
    SlotInUse(RemovalError),
    /// The peer names another server or database than that in which slot and publication were made.
    #[error(
        "slot {slot} and its publication were made at {made_at}, but the peer now names {found}: nothing was dropped. Point the peer to where they were made"
    )]
    OtherSource {
        /// The slot.
        slot: String,
        /// Where it was made.
        made_at: SlotPlace,
        /// What answers now.
        found: Box<SlotPlace>,
    },
}

impl CleanupError {
    /// The reason that a condition shows; it begins with the side that the fault lies on.
    pub fn reason(&self) -> Reason {
        match self {
            CleanupError::Source(postgres::Error::Authentication { .. }) => {
                Reason::SourceAuthenticationFailed
            }
            CleanupError::Source(source) => source.transient_reason().unwrap_or(Reason::SourceError),
            CleanupError::Destination(destination) => destination.reason,
            CleanupError::SlotInUse(_) => Reason::SourceSlotInUse,
            CleanupError::OtherSource { .. } => Reason::SourceReplaced,
        }
    }
}

impl From<postgres::Error> for CleanupError {
    fn from(error: postgres::Error) -> Self {
        CleanupError::Source(error)
    }
}

impl From<RemovalError> for CleanupError {
    fn from(error: RemovalError) -> Self {
        match error {
            RemovalError::Source(source) => CleanupError::Source(source),
            in_use @ RemovalError::SlotInUse { .. } => CleanupError::SlotInUse(in_use),
        }
    }
}

impl From<ClickHouseError> for CleanupError {
    fn from(error: ClickHouseError) -> Self {
        CleanupError::Destination(error.into())
    }
}

/// A Mirror whose slot, publications and state are removed, and where they are.
#[derive(Clone, Copy, Debug)]
pub struct MirrorRemoval<'a> {
    /// The Mirror; its UID names what it has.
    pub mirror: &'a MirrorIdentity,
    /// The source that its peer names now.
    pub source: &'a PostgresEndpoint,
    /// The destination that its peer names now.
    pub destination: &'a ClickHouseEndpoint,
    /// Where its slot was made, as its status says; without one, its state at the destination is asked.
    pub made_at: Option<&'a SlotPlace>,
}

/// What was removed, and what another role has to remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CleanupReport {
    /// The result for each, as text.
    pub done: Vec<String>,
    /// Whether something stays until a statement of `done` is run.
    pub incomplete: bool,
}

/// Removes slot, publications and state. Idempotent. What only its owner can drop stays, and its statement is
/// in the report.
///
/// # Errors
/// [`CleanupError::OtherSource`], before anything is touched; [`CleanupError::SlotInUse`] when the slot's
/// reader is alive; what the servers answer.
pub async fn remove(removal: MirrorRemoval<'_>) -> Result<CleanupReport, CleanupError> {
    let MirrorRemoval { mirror, source, destination, made_at } = removal;
    let database = Database::new(destination, OutOfRange::default())?;
    let recorded = match made_at {
        Some(place) => Some(place.clone()),
        None => recorded_place(&database, &mirror.uid).await,
    };
    let session = Session::connect(source, &mirror.application_name()).await?;
    require_same_source(&session, removal, recorded).await?;
    let objects = MirrorObjects {
        application_name: mirror.application_name(),
        slot: mirror.slot_name(),
        publications: vec![mirror.publication_name(), mirror.inserts_publication_name()],
    };
    let mut removed = removal::remove(&session, &objects).await?;
    // Few Mirrors ever have this one.
    removed.retain(|removed| removed.fate != Fate::Absent || !removed.name.ends_with(INSERTS_SUFFIX));
    database.drop_state(&mirror.uid).await?;
    let mut done: Vec<String> = removed.iter().map(ToString::to_string).collect();
    done.extend(["state removed".to_owned(), "target tables stay".to_owned()]);
    let stays = |removed: &Removed| matches!(removed.fate, Fate::Stays { .. });
    Ok(CleanupReport { done, incomplete: removed.iter().any(stays) })
}

/// Where the slot was made, as the Mirror's state says. A destination that can't say it keeps nothing from
/// being dropped at the source, where a slot holds back WAL; without the destination the removal is
/// incomplete anyway, and asks again.
async fn recorded_place(database: &Database, mirror_uid: &str) -> Option<SlotPlace> {
    let recorded = async {
        if !database.has_table(STATE_TABLE).await.map_err(DestinationError::from)? {
            return Ok(None);
        }
        let state = StateStore::new(database.clone(), mirror_uid).load().await?;
        Ok::<_, crate::replication::Error>(state.source.map(|source| source.place()))
    };
    recorded.await.unwrap_or_else(|error| {
        tracing::warn!(%error, "the state does not say where the slot was made");
        None
    })
}

/// Refuses another server or database than that in which slot and publication were made.
async fn require_same_source(
    session: &Session,
    removal: MirrorRemoval<'_>,
    recorded: Option<SlotPlace>,
) -> Result<(), CleanupError> {
    let PostgresEndpoint { host, port, database, .. } = removal.source;
    let found = SlotPlace {
        system_identifier: catalog::system_identifier(session).await?,
        host: host.clone(),
        port: *port,
        database: database.clone(),
    };
    let slot = removal.mirror.slot_name();
    let elsewhere = recorded.filter(|recorded| !recorded.is_same(&found));
    let made_at = match elsewhere {
        Some(made_at) => Some(made_at),
        // A slot belongs to one database, and so does its publication.
        None => slot::read(session, &slot).await?.and_then(|slot| slot.database).and_then(|of_slot| {
            (of_slot != *database).then(|| SlotPlace { database: of_slot, ..found.clone() })
        }),
    };
    match made_at {
        Some(made_at) => Err(CleanupError::OtherSource { slot, made_at, found: Box::new(found) }),
        None => Ok(()),
    }
}

/// The statements that drop a Mirror's slot and publications, for an operator to run manually.
pub fn statements(mirror: &MirrorIdentity) -> String {
    let (slot, publication) = (mirror.slot_name(), mirror.publication_name());
    let inserts = mirror.inserts_publication_name();
    format!("SELECT pg_drop_replication_slot('{slot}'); DROP PUBLICATION IF EXISTS {publication}, {inserts};")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Side;

    fn place(system: &str) -> SlotPlace {
        SlotPlace {
            system_identifier: system.into(),
            host: "db.example".into(),
            port: 5432,
            database: "app".into(),
        }
    }

    #[test]
    fn reasons_name_the_side() {
        assert_eq!(CleanupError::Source(postgres::Error::Closed).reason(), "SourceUnreachable");
        let in_use = RemovalError::SlotInUse { slot: "walferry_0a".to_owned(), pid: 7 };
        assert_eq!(CleanupError::from(in_use).reason(), "SourceSlotInUse");
        let refused = ClickHouseError::Settings("no".to_owned());
        assert_eq!(CleanupError::from(refused).reason().side(), Side::Destination);
    }

    #[test]
    fn another_server_is_refused_with_the_right_one() {
        let error = CleanupError::OtherSource {
            slot: "walferry_0a".into(),
            made_at: place("7"),
            found: Box::new(SlotPlace { host: "new.example".into(), ..place("8") }),
        };
        assert_eq!(error.reason(), "SourceReplaced");
        assert_eq!(
            error.to_string(),
            "slot walferry_0a and its publication were made at db.example:5432 in database app (system identifier 7), but the peer now names \
             new.example:5432 in database app (system identifier 8): nothing was dropped. Point the peer to where they were made"
        );
    }

    #[test]
    fn statements_drop_everything() {
        let mirror = MirrorIdentity { namespace: "team".into(), name: "shop".into(), uid: "0a".into() };
        assert_eq!(
            statements(&mirror),
            "SELECT pg_drop_replication_slot('walferry_0a'); DROP PUBLICATION IF EXISTS walferry_0a, walferry_0a_inserts;"
        );
    }
}
