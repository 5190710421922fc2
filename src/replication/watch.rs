//! Looks at the source's catalog now and then, for what the stream does not say.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    Error,
    provision::{check_publication, read_slot},
    state::MirrorState,
};
use crate::{
    model::{Progress, ReplicatorConfig},
    postgres::{publication, session::Session},
};

/// Time between two looks. Each is two small queries.
const EVERY: Duration = Duration::from_secs(10);

/// Watches until `end`, or until something is found that stops the Mirror, which goes to `fatal`.
///
/// A dropped publication must be seen here: since PostgreSQL 18 the walsender only warns and leaves the changes out.
pub(super) async fn run(
    config: Arc<ReplicatorConfig>,
    state: MirrorState,
    progress: Arc<Progress>,
    fatal: mpsc::Sender<Error>,
    end: CancellationToken,
) {
    let mut session: Option<Session> = None;
    loop {
        match look(&config, &state, &progress, &mut session).await {
            Ok(()) => {}
            // The stream meets the same fault and retries it.
            Err(Error::Source(error)) => {
                tracing::debug!(%error, "could not look at the source's catalog");
                session = None;
            }
            Err(error) => {
                if fatal.send(error).await.is_err() {
                    tracing::debug!("the stream had ended already");
                }
                return;
            }
        }
        tokio::select! {
            () = end.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

async fn look(
    config: &ReplicatorConfig,
    state: &MirrorState,
    progress: &Progress,
    session: &mut Option<Session>,
) -> Result<(), Error> {
    let session = match session {
        Some(session) => session,
        None => session.insert(Session::connect(&config.source, &config.mirror.application_name()).await?),
    };
    if let Some(slot) = read_slot(session, config, state.source.as_ref()).await? {
        progress.set_source_lsn(slot.current_lsn);
        if let Some(bytes) = slot.retained_bytes {
            progress.set_retained_wal_bytes(bytes);
        }
    }
    let name = config.mirror.publication_name();
    match publication::read(session, &name).await? {
        Some(found) => check_publication(&name, &found, state, config),
        None => Err(Error::PublicationChanged {
            publication: name,
            problem: "no longer exists at the source".to_owned(),
        }),
    }
}
