//! Queries both servers for the facts that the checks decide from.

mod destination;
mod source;

use std::collections::{BTreeSet, HashMap};

use self::{
    destination::{Reached, reach_destination, targets},
    source::SourceFindings,
};
use super::{
    destination::{SUBJECT as DESTINATION, state_unusable},
    report::{Check, CheckReport, Outcome},
    source::{SUBJECT as SOURCE, connection_failed, peer, query_failed, remedies_at_primary},
    state, target,
};
use crate::{
    clickhouse::{ServerVersion, types::Features},
    model::{ClickHouseEndpoint, OutOfRange, PostgresEndpoint, ReplicatorConfig, TableId},
    postgres::{
        self, catalog,
        session::Session,
        wire::{Connection, Purpose},
    },
    replication::MirrorState,
};

pub use destination::recorded_state;

/// Checks everything that a Mirror needs. A server that isn't reached is a failure, and what depends on it is
/// skipped.
pub async fn preflight(config: &ReplicatorConfig) -> CheckReport {
    preflight_of(config, &[]).await
}

/// The same for some of the tables alone, or for all when none is named.
pub(super) async fn preflight_of(config: &ReplicatorConfig, only: &[TableId]) -> CheckReport {
    let destination = async {
        let (server, reached) = reach_destination(&config.destination, config.out_of_range).await;
        let (state, unusable) = match &reached {
            Some(Reached { database, .. }) => match recorded_state(config, database).await {
                Ok(state) => (state, None),
                Err(error) => (MirrorState::default(), Some(state_unusable(&error))),
            },
            None => (MirrorState::default(), None),
        };
        (server, reached, state, unusable)
    };
    let application_name = config.mirror.application_name();
    let source = Session::connect(&config.source, &application_name);
    let ((server, reached, state, unusable), session) = tokio::join!(destination, source);
    let database = reached.as_ref().map(|reached| &reached.database);
    let SourceFindings { mut checks, tables, joined } =
        source::checks(config, only, session, (&state, database)).await;
    let joined: BTreeSet<TableId> = joined.tables.into_keys().collect();
    checks.extend(server);
    checks.extend(unusable);
    let schemas: Vec<_> = tables.iter().map(|facts| &facts.schema).collect();
    checks.extend(match reached {
        Some(reached) => targets(config, &reached, &schemas, (&state, &joined)).await,
        // Without the server, types are taken for those of the newest release.
        None => {
            schemas.iter().map(|schema| target::column_types(schema, Features::of(u32::MAX, 0)).1).collect()
        }
    });
    state::drop_done_statements(&mut checks);
    // Servers first, then each table with all that concerns it, in the Mirror's order.
    let tables = config.tables.iter().map(|spec| spec.id.to_string());
    let subjects = [SOURCE, DESTINATION].map(str::to_owned).into_iter().chain(tables);
    let ranks: HashMap<_, _> = subjects.zip(0_usize..).collect();
    checks.sort_by_key(|check| ranks.get(&check.subject).copied());
    CheckReport { checks, joined }
}

/// A source as [`source_server`] found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceServer {
    /// The server's version in its own words.
    pub version: String,
    /// The cluster's unique number; `None` when no replication connection was free.
    pub system_identifier: Option<String>,
}

/// Checks a PostgreSQL server, for no Mirror in particular: authentication, version, settings, the role's
/// privileges, and that a replication connection can be had. The second is `None` when it can't be used.
pub async fn source_server(
    endpoint: &PostgresEndpoint,
    application_name: &str,
) -> (Vec<Check>, Option<SourceServer>) {
    let facts = async {
        let session = Session::connect(endpoint, application_name)
            .await
            .map_err(|error| connection_failed(endpoint, &error))?;
        catalog::server_facts(&session).await.map_err(|error| query_failed(SOURCE, "catalog", &error))
    };
    let facts = match facts.await {
        Ok(facts) => facts,
        Err(check) => return (vec![check], None),
    };
    let mut checks = remedies_at_primary(peer(endpoint, &facts), &facts);
    if checks.iter().any(|check| check.outcome == Outcome::Failure) {
        return (checks, None);
    }
    match system_identifier(endpoint, application_name).await {
        Ok(system_identifier) => (checks, Some(SourceServer { version: facts.version, system_identifier })),
        Err(error) => {
            checks.push(connection_failed(endpoint, &error));
            (checks, None)
        }
    }
}

/// The system identifier over a replication connection; `None` when all of them are taken, which those in use
/// may well be by Mirrors.
async fn system_identifier(
    endpoint: &PostgresEndpoint,
    application_name: &str,
) -> Result<Option<String>, postgres::Error> {
    const TOO_MANY_CONNECTIONS: &str = "53300";
    let identity = async {
        Connection::connect(endpoint, application_name, Purpose::Replication).await?.identify_system().await
    };
    match identity.await {
        Ok(identity) => Ok(Some(identity.system_identifier)),
        Err(error) if error.sqlstate() == Some(TOO_MANY_CONNECTIONS) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Checks a ClickHouse server, for no Mirror in particular, and gives its version when it is usable.
pub async fn destination_server(endpoint: &ClickHouseEndpoint) -> (Vec<Check>, Option<ServerVersion>) {
    let (checks, reached) = reach_destination(endpoint, OutOfRange::default()).await;
    (checks, reached.map(|reached| reached.version))
}
