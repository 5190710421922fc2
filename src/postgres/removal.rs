//! Removes what a Mirror has at its source: its replication slot and its publications. Used by a resync, a
//! copy that is finished, `walferry teardown` and a Mirror that is deleted.

use std::{fmt, time::Duration};

use tokio::time::{Instant, sleep};

use super::{Error as SourceError, publication, session::Session, slot};

/// How long a replicator that is just ending may still hold its slot.
const RELEASE_WITHIN: Duration = Duration::from_secs(5);

/// Why a Mirror's slot and publications could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemovalError {
    /// The source answered with an error or could not be reached.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Another client reads from the slot.
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

/// What a Mirror has at its source.
#[derive(Clone, Debug)]
pub struct MirrorObjects {
    /// The replicator's `application_name`: a walsender of this name that has fallen silent is ended.
    pub application_name: String,
    /// The replication slot.
    pub slot: String,
    /// The publications that the Mirror may have.
    pub publications: Vec<String>,
}

/// What became of a slot or publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was dropped.
    Dropped,
    /// It was not there.
    Absent,
    /// It has the name but not the comment of a publication that walferry created: it is not ours.
    Foreign,
    /// It stays until a role with the privilege runs the statement.
    Stays {
        /// The statement.
        statement: String,
        /// Where, or as whom.
        by: String,
    },
}

/// A slot or publication, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// `slot` or `publication`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// What became of it.
    pub fate: Fate,
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Removed { kind, name, fate } = self;
        match fate {
            Fate::Dropped => write!(f, "{kind} {name} dropped"),
            Fate::Absent => write!(f, "{kind} {name} did not exist"),
            Fate::Foreign => write!(f, "{kind} {name} isn't this mirror's and stays"),
            Fate::Stays { statement, by } => write!(f, "{kind} {name} stays: run {statement} {by}"),
        }
    }
}

/// Drops the slot and the publications. Waits for a reader that is just ending, and ends one that an earlier
/// run has left behind. Idempotent: a run that was killed before it is made up for by the next.
///
/// # Errors
/// [`RemovalError::SlotInUse`] when the slot's reader is alive; what the server answers.
pub async fn remove(session: &Session, objects: &MirrorObjects) -> Result<Vec<Removed>, RemovalError> {
    let MirrorObjects { application_name, slot, publications } = objects;
    slot::end_creation(session, application_name).await?;
    slot::release_own_walsender(session, slot, application_name).await?;
    wait_until_released(session, slot).await?;
    let fate = if slot::drop(session, slot).await? { Fate::Dropped } else { Fate::Absent };
    let mut removed = vec![Removed { kind: "slot", name: slot.clone(), fate }];
    for name in publications {
        let fate = drop_publication(session, name).await?;
        removed.push(Removed { kind: "publication", name: name.clone(), fate });
    }
    Ok(removed)
}

async fn drop_publication(session: &Session, name: &str) -> Result<Fate, SourceError> {
    let owner = match publication::read(session, name).await? {
        None => return Ok(Fate::Absent),
        Some(found) if !found.owned_by_us => return Ok(Fate::Foreign),
        Some(found) => found.owner,
    };
    let stays = |by: String| Fate::Stays { statement: publication::drop_statement(name), by };
    match publication::drop(session, name).await {
        Ok(true) => Ok(Fate::Dropped),
        Ok(false) => Ok(Fate::Absent),
        Err(SourceError::Standby { .. }) => Ok(stays("at the primary".to_owned())),
        Err(error) if error.sqlstate() == Some(publication::INSUFFICIENT_PRIVILEGE) => {
            Ok(stays(format!("at the source as {owner}, its owner")))
        }
        Err(error) => Err(error),
    }
}

async fn wait_until_released(session: &Session, slot_name: &str) -> Result<(), RemovalError> {
    let deadline = Instant::now() + RELEASE_WITHIN;
    while let Some(pid) = slot::read(session, slot_name).await?.and_then(|slot| slot.active_pid) {
        if Instant::now() >= deadline {
            return Err(RemovalError::SlotInUse { slot: slot_name.to_owned(), pid });
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_is_reported_with_its_statement() {
        let removed = |fate| Removed { kind: "publication", name: "walferry_0a".into(), fate }.to_string();
        assert_eq!(removed(Fate::Dropped), "publication walferry_0a dropped");
        assert_eq!(removed(Fate::Absent), "publication walferry_0a did not exist");
        assert_eq!(removed(Fate::Foreign), "publication walferry_0a isn't this mirror's and stays");
        let statement = publication::drop_statement("walferry_0a");
        assert_eq!(
            removed(Fate::Stays { statement, by: "at the primary".into() }),
            "publication walferry_0a stays: run DROP PUBLICATION \"walferry_0a\" at the primary"
        );
    }
}
