//! Queries the destination: the server, the user's privileges, the state and the target tables.

use std::collections::BTreeSet;

use futures::{StreamExt, stream};

use super::super::{
    destination::{self, ENGINE, MissingPrivileges, PRIVILEGES, STATE_PRIVILEGES, WIDENING},
    report::{Check, Outcome},
    state,
    target::{self, TargetFacts},
};
use crate::{
    clickhouse::{
        Client, Database, Error as ClickHouseError, ServerVersion, ddl, difference::differences, quote,
        state::STATE_TABLE, target::TargetTable, types::ChType,
    },
    model::{ClickHouseEndpoint, OutOfRange, ReplicatorConfig, TableId, TableSchema},
    replication::{self, Claim, DestinationError, MirrorState, StateStore, TableRecord},
};

/// Target tables that are queried concurrently.
const CONCURRENT_QUERIES: usize = 8;

/// A destination that can be used.
pub(super) struct Reached {
    pub(super) database: Database,
    pub(super) version: ServerVersion,
    /// Privileges that the user lacks on the whole database, and may have on single tables.
    of_tables: Vec<&'static str>,
}

/// Checks the server and the user; the second is `None` when it can't be used.
pub(super) async fn reach_destination(
    endpoint: &ClickHouseEndpoint,
    out_of_range: OutOfRange,
) -> (Vec<Check>, Option<Reached>) {
    let version = async {
        let database = Database::new(endpoint, out_of_range)?;
        // Not Database::version, which refuses an old release before anything can be reported about it.
        let version = database.client().server_version().await?;
        Ok((database, version))
    };
    let (database, version) = match version.await {
        Ok(found) => found,
        Err(error) => return (vec![destination::failed("connection", error)], None),
    };
    match server_facts(database.client(), endpoint, version.clone()).await {
        Ok(facts) => {
            let checks = destination::server(endpoint, &facts);
            let usable = !checks.iter().any(|check| check.outcome == Outcome::Failure);
            let of_tables = facts.missing_privileges.map(|missing| missing.privileges).unwrap_or_default();
            (checks, usable.then_some(Reached { database, version, of_tables }))
        }
        Err(error) => (vec![destination::failed("grants", error)], None),
    }
}

async fn server_facts(
    client: &Client,
    endpoint: &ClickHouseEndpoint,
    version: ServerVersion,
) -> Result<destination::ServerFacts, ClickHouseError> {
    let databases =
        format!("SELECT count() FROM system.databases WHERE name = {}", quote::literal(&endpoint.database));
    let (databases, missing_privileges) =
        tokio::try_join!(client.query_text(&databases, &[]), missing_privileges(client, endpoint))?;
    let (database_exists, read_only) = (databases.trim() != "0", client.is_read_only().await?);
    Ok(destination::ServerFacts { version, database_exists, read_only, missing_privileges })
}

/// The privileges that are missing; `None` when the release has no CHECK GRANT.
async fn missing_privileges(
    client: &Client,
    endpoint: &ClickHouseEndpoint,
) -> Result<Option<MissingPrivileges>, ClickHouseError> {
    let database = format!("{}.*", quote::ident(&endpoint.database));
    let (engine, widening) = (format!("TABLE ENGINE ON {ENGINE}"), format!("{WIDENING} ON {database}"));
    let (lacking, engine, widening) = tokio::try_join!(
        lacking(client, &PRIVILEGES, &database),
        may(client, &engine),
        may(client, &widening)
    )?;
    let Some(privileges) = lacking else { return Ok(None) };
    let (engine, widening) = (engine == Some(false), widening == Some(false));
    let mut missing = MissingPrivileges { privileges, engine, widening, ..MissingPrivileges::default() };
    if !missing.privileges.is_empty() {
        let state = quote::table(&endpoint.database, STATE_TABLE);
        missing.state = may(client, &format!("{STATE_PRIVILEGES} ON {state}")).await? == Some(true);
    }
    Ok(Some(missing))
}

/// Which of these privileges the user lacks; `None` when the release doesn't know the statement. They are
/// asked for together first, which mostly is the only question.
async fn lacking(
    client: &Client,
    privileges: &[&'static str],
    on: &str,
) -> Result<Option<Vec<&'static str>>, ClickHouseError> {
    if privileges.is_empty() {
        return Ok(Some(Vec::new()));
    }
    match may(client, &format!("{} ON {on}", privileges.join(", "))).await? {
        None => return Ok(None),
        Some(true) => return Ok(Some(Vec::new())),
        Some(false) => {}
    }
    let mut lacking = Vec::new();
    for privilege in privileges {
        if may(client, &format!("{privilege} ON {on}")).await? == Some(false) {
            lacking.push(*privilege);
        }
    }
    Ok(Some(lacking))
}

/// Whether the user has a privilege; `None` when the release doesn't know the statement.
async fn may(client: &Client, privilege: &str) -> Result<Option<bool>, ClickHouseError> {
    const SYNTAX_ERROR: i32 = 62;
    match client.query_text(&format!("CHECK GRANT {privilege}"), &[]).await {
        Ok(answer) => Ok(Some(answer.trim() == "1")),
        Err(error) if error.code() == Some(SYNTAX_ERROR) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Checks the target tables of these.
pub(super) async fn targets(
    config: &ReplicatorConfig,
    reached: &Reached,
    schemas: &[&TableSchema],
    (state, joined): (&MirrorState, &BTreeSet<TableId>),
) -> Vec<Check> {
    let database = &reached.database;
    let names: Vec<&str> = schemas.iter().map(|schema| schema.target.as_str()).collect();
    let (found, claims) = tokio::join!(database.target_tables(&names), recorded_claims(database));
    let mut found = match found {
        Ok(found) => found,
        Err(error) => return vec![destination::failed("target tables", error)],
    };
    let (claims, unusable) = match claims {
        Ok(claims) => (claims, None),
        Err(error) => (Vec::new(), Some(destination::state_unusable(&error))),
    };
    let context = TargetContext { config, reached, claims: &claims, state, joined };
    let of_tables: Vec<_> = schemas
        .iter()
        .map(|schema| {
            let found = found.remove(&schema.target);
            context.checks(schema, found)
        })
        .collect();
    let of_tables: Vec<_> = stream::iter(of_tables).buffered(CONCURRENT_QUERIES).collect().await;
    unusable.into_iter().chain(of_tables.into_iter().flatten()).collect()
}

/// What the checks of all target tables have in common.
struct TargetContext<'a> {
    config: &'a ReplicatorConfig,
    reached: &'a Reached,
    claims: &'a [Claim],
    state: &'a MirrorState,
    joined: &'a BTreeSet<TableId>,
}

impl TargetContext<'_> {
    /// The checks of one target table.
    async fn checks(&self, schema: &TableSchema, found: Option<TargetTable>) -> Vec<Check> {
        let TargetContext { config, reached: Reached { database, version, of_tables }, .. } = self;
        let tracked = self.joined.contains(&schema.id);
        let (types, check) = target::column_types(schema, version.features());
        let mut checks = vec![check.downgrade_if_tracked(tracked)];
        let spec = config.tables.iter().find(|spec| spec.id == schema.id);
        checks.extend(spec.and_then(|spec| target::former_names(&config.destination, spec, schema)));
        let target = quote::table(database.name(), &schema.target);
        match lacking(database.client(), of_tables, &target).await {
            Ok(None) => {}
            Ok(Some(missing)) if missing.is_empty() => {}
            // Nothing else is known about it.
            Ok(Some(missing)) => {
                let denied = target::target_privileges(&config.destination, schema, &missing);
                checks.extend(denied.map(|check| check.downgrade_if_tracked(tracked)));
                return checks;
            }
            Err(error) => {
                checks.push(destination::failed("grants", error));
                return checks;
            }
        }
        let Some(types) = types else { return checks };
        if let Some(claim) = replication::foreign_claim(self.claims, &config.mirror.uid, &schema.target) {
            checks.push(target::taken(&config.destination, schema, claim).downgrade_if_tracked(tracked));
            return checks;
        }
        // It would be sorted by the key that it lacks, which is said of its replica identity.
        if schema.kind.is_keyed() && schema.order_by.is_empty() {
            return checks;
        }
        let facts = match target_facts(config, database, schema, self.state, found).await {
            Ok(facts) => facts,
            Err(error) => {
                checks.push(destination::failed("target table", error));
                return checks;
            }
        };
        let mut check = target::target(&config.destination, schema, &types, &facts);
        if facts.found.is_some() && self.failed_by_target(schema) {
            let fits = database.require_fit(schema, &types).await;
            check = fits.err().map_or(check, |error| target::refused_target(schema, error));
        }
        if check.outcome != Outcome::Failure || facts.copied_over {
            match self.layout(schema, &types, &facts).await {
                Ok(layout) => checks.extend(layout),
                Err(error) => check = target::refused_target(schema, error),
            }
        }
        checks.push(check.downgrade_if_tracked(tracked));
        checks.extend(target::hidden_columns(schema));
        checks
    }

    /// Whether the target keeps a layout that the entry no longer asks for. A table that is made for a try
    /// shows what it asks for.
    async fn layout(
        &self,
        schema: &TableSchema,
        types: &[ChType],
        facts: &TargetFacts,
    ) -> Result<Option<Check>, ClickHouseError> {
        let database = &self.reached.database;
        let Some(trial) = database.try_definition(schema, types).await? else { return Ok(None) };
        let Some(found) = &facts.found else { return Ok(None) };
        let spec = self.config.tables.iter().find(|spec| spec.id == schema.id);
        let ordered = spec.is_some_and(|spec| !spec.order_by.is_empty());
        let differences = differences(found, database.name(), schema, types, (&trial, ordered));
        Ok(target::layout(schema, &differences))
    }

    /// Whether the Mirror's state has the table as failed because of its target.
    fn failed_by_target(&self, schema: &TableSchema) -> bool {
        let failure = self.state.tables.get(&schema.id).and_then(TableRecord::failure);
        failure.is_some_and(|failure| state::is_of_target(failure.reason))
    }
}

/// The Mirror's durable state. Without a state table, it has none.
///
/// # Errors
/// What the destination answers, or a record that can't be read.
pub async fn recorded_state(
    config: &ReplicatorConfig,
    database: &Database,
) -> Result<MirrorState, replication::Error> {
    match has_state_table(database).await? {
        true => StateStore::new(database.clone(), &config.mirror.uid).load().await,
        false => Ok(MirrorState::default()),
    }
}

async fn has_state_table(database: &Database) -> Result<bool, replication::Error> {
    Ok(database.has_table(STATE_TABLE).await.map_err(DestinationError::from)?)
}

/// All claims of target tables beside this Mirror's. Without a state table, there are none.
async fn recorded_claims(database: &Database) -> Result<Vec<Claim>, replication::Error> {
    match has_state_table(database).await? {
        true => replication::claims(database).await,
        false => Ok(Vec::new()),
    }
}

async fn target_facts(
    config: &ReplicatorConfig,
    database: &Database,
    schema: &TableSchema,
    state: &MirrorState,
    found: Option<TargetTable>,
) -> Result<TargetFacts, ClickHouseError> {
    let target = &schema.target;
    let record = state.tables.get(&schema.id);
    // A table that waited for its target joins as if it were new.
    let ours =
        |record: &&TableRecord| record.schema.target == *target && !replication::waits_for_target(record);
    let tracked = record.filter(ours).is_some();
    let copied_over = replication::copies_over_rows(config.resync.as_deref(), state, &schema.id);
    let has_rows = if found.is_some() && !tracked && !copied_over {
        !database.client().query_text(&ddl::has_rows(database.name(), target), &[]).await?.is_empty()
    } else {
        false
    };
    Ok(TargetFacts { found, has_rows, tracked, copied_over })
}
