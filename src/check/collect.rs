//! Queries both servers for the facts that the checks decide from.

use std::collections::{BTreeSet, HashMap};

use futures::{StreamExt, stream};

use super::{
    destination::{self, ENGINE, MissingPrivileges, PRIVILEGES, STATE_PRIVILEGES, WIDENING},
    publication::{self, Wanted},
    report::{Check, CheckReport, Outcome},
    row_filter, source, table,
    target::{self, TargetFacts},
};
use crate::{
    clickhouse::{
        Client, Database, Error as ClickHouseError, ServerVersion, ddl, difference::differences, quote,
        state::STATE_TABLE, target::TargetTable, types::Features,
    },
    model::{
        ClickHouseEndpoint, OutOfRange, PostgresEndpoint, ReplicatorConfig, TableId, TableSchema, TableSpec,
    },
    postgres::{
        self,
        catalog::{self, TableFacts},
        publication::{self as pg_publication, Publish},
        session::Session,
        slot,
        wire::{Connection, Purpose},
    },
    replication::{self, Claim, DestinationError, MirrorState, StateStore, TableRecord},
};

/// Target tables that are queried concurrently.
const CONCURRENT_QUERIES: usize = 8;

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
                Err(error) => (MirrorState::default(), Some(destination::state_unusable(&error))),
            },
            None => (MirrorState::default(), None),
        };
        (server, reached, state, unusable)
    };
    let application_name = config.mirror.application_name();
    let source = Session::connect(&config.source, &application_name);
    let ((server, reached, state, unusable), session) = tokio::join!(destination, source);
    let (mut checks, tables, joined) = source_checks(config, only, session, (&state, reached.as_ref())).await;
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
    // Servers first, then each table with all that concerns it, in the Mirror's order.
    let tables = config.tables.iter().map(|spec| spec.id.to_string());
    let subjects = [source::SUBJECT, destination::SUBJECT].map(str::to_owned).into_iter().chain(tables);
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
            .map_err(|error| source::connection_failed(endpoint, &error))?;
        catalog::server_facts(&session)
            .await
            .map_err(|error| source::query_failed(source::SUBJECT, "catalog", &error))
    };
    let facts = match facts.await {
        Ok(facts) => facts,
        Err(check) => return (vec![check], None),
    };
    let mut checks = source::remedies_at_primary(source::peer(endpoint, &facts), &facts);
    if checks.iter().any(|check| check.outcome == Outcome::Failure) {
        return (checks, None);
    }
    match system_identifier(endpoint, application_name).await {
        Ok(system_identifier) => (checks, Some(SourceServer { version: facts.version, system_identifier })),
        Err(error) => {
            checks.push(source::connection_failed(endpoint, &error));
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

/// Checks, tables that could be described, and those that the Mirror has already and no resync copies again.
type SourceChecks = (Vec<Check>, Vec<TableFacts>, BTreeSet<TableId>);

async fn source_checks(
    config: &ReplicatorConfig,
    only: &[TableId],
    session: Result<Session, postgres::Error>,
    (state, destination): (&MirrorState, Option<&Reached>),
) -> SourceChecks {
    let failed = |check| (vec![check], Vec::new(), BTreeSet::new());
    let session = match session {
        Ok(session) => session,
        Err(error) => return failed(source::connection_failed(&config.source, &error)),
    };
    match source_facts(config, only, &session, (state, destination)).await {
        Ok(found) => found,
        Err(error) => failed(source::query_failed(source::SUBJECT, "catalog", &error)),
    }
}

async fn source_facts(
    config: &ReplicatorConfig,
    only: &[TableId],
    session: &Session,
    (state, destination): (&MirrorState, Option<&Reached>),
) -> Result<SourceChecks, postgres::Error> {
    let server = catalog::server_facts(session).await?;
    let slot = slot::read(session, &config.mirror.slot_name()).await?;
    let resync = replication::resync_due(config.resync.as_deref(), state).is_some();
    // With a resync, every table is added again.
    let empty = MirrorState::default();
    let mut joined = if resync { empty } else { state.clone() };
    let mut checks = source::server(&config.source, &server, slot.as_ref(), resync);
    checks.extend(replication::unknown_names(config, state).map(table::unknown_to_resync));
    let apart = replication::set_apart(config, &mut joined);
    let joined = &joined;
    // Only a Mirror that has a state is asked for its position as it is by now.
    let recorded = async || match destination {
        Some(Reached { database, .. }) => {
            StateStore::new(database.clone(), &config.mirror.uid).recorded_position().await
        }
        None => Ok(joined.position.clone()),
    };
    source::add_state_faults(
        &mut checks,
        replication::diagnosis::faults(config, session, joined, recorded).await?,
    );
    let known: BTreeSet<TableId> = joined.tables.keys().cloned().collect();
    if !source::is_usable(&checks) {
        return Ok((checks, Vec::new(), known));
    }
    let mut tables = Vec::new();
    let chosen = |spec: &&TableSpec| only.is_empty() || only.contains(&spec.id);
    let specs: Vec<_> = config.tables.iter().filter(chosen).collect();
    let named = |spec: &TableSpec| {
        let record = joined.tables.get(&spec.id).filter(|record| record.spec == *spec)?;
        Some(record.named.as_ref()?.columns.as_slice())
    };
    let asked: Vec<_> = specs.iter().map(|spec| (*spec, named(spec).unwrap_or_default())).collect();
    for (spec, described) in specs.iter().zip(catalog::describe_all(session, &asked).await?) {
        if joined.tables.get(&spec.id).is_some_and(|record| record.spec != **spec) {
            checks.push(table::spec_changed(&spec.id));
        }
        let tracked = joined.tables.contains_key(&spec.id);
        match described {
            Ok(mut facts) => match table::unsupported(&facts) {
                Some(check) => checks.push(check.downgrade_if_tracked(tracked)),
                None => {
                    let former = state.former.get(&spec.id).and_then(|former| former.record.as_ref());
                    let recorded = state.tables.get(&spec.id).or(former);
                    if !tracked {
                        // It joins again: its names are resolved again.
                        let alone = apart.record(&spec.id);
                        let refused = withheld(alone.or(recorded), spec, &facts);
                        checks.extend(refused.map(|check| check.downgrade_if_tracked(alone.is_some())));
                    }
                    if let Some(record) = recorded {
                        replication::keep_target_names(record, spec, &mut facts.schema);
                    }
                    if let Some(record) = joined.tables.get(&spec.id) {
                        facts.schema.keep_kind(&record.schema);
                    }
                    tables.push(facts);
                }
            },
            Err(error) => checks
                .push(table::description_failed(&spec.id, &error, tracked).downgrade_if_tracked(tracked)),
        }
    }
    let probes = probe_filters(session, &tables).await;
    let (mut publications, mut agreements) = (Vec::new(), publication::Agreements::new());
    for publish in Publish::all(config) {
        let found = pg_publication::read(session, &publish.name(&config.mirror)).await?;
        // A resync recreates it, where the role may.
        let mut found = found.filter(|found| !(resync && found.owned_by_us && found.may_alter));
        if let Some(found) = found.as_mut().filter(|found| found.may_alter) {
            found.tables.retain(|published| !apart.has(&published.id));
        }
        if let Some(found) = &found {
            agreements.extend(compare_filters(session, &tables, &probes, found).await);
        }
        publications.push((publish, found));
    }
    let published = |id: &TableId| {
        let found = publications.iter().filter_map(|(_, found)| found.as_ref());
        found.flat_map(|found| &found.tables).find(|published| published.id == *id)
    };
    let (mut of_tables, mut tables_breaking_writes) = (Vec::new(), BTreeSet::new());
    for facts in &tables {
        let id = &facts.schema.id;
        let spec = config.tables.iter().find(|spec| spec.id == *id);
        let excluded = spec.map(|spec| spec.exclude.as_slice()).unwrap_or_default();
        let found = table::table(facts, excluded, &server, probes.get(id), published(id));
        if found.iter().any(table::breaks_writes) {
            tables_breaking_writes.insert(id.clone());
        }
        let tracked = joined.tables.contains_key(id);
        of_tables.extend(found.into_iter().map(|check| check.downgrade_if_tracked(tracked)));
    }
    let broken = |check: &Check| check.name == publication::NAME && check.outcome == Outcome::Failure;
    // What a broken publication lacks is not reported: all of it is created again.
    let publications = if checks.iter().any(broken) { Vec::new() } else { publications };
    for (publish, found) in &publications {
        let wanted = Wanted {
            config,
            publish: *publish,
            server: &server,
            tables: &tables,
            probes: &probes,
            agreements: &agreements,
            joined,
            tables_breaking_writes: &tables_breaking_writes,
        };
        checks.extend(publication::publication(&wanted, found.as_ref()).into_iter().map(|check| {
            let tracked = joined.tables.keys().any(|id| id.to_string() == check.subject);
            check.downgrade_if_tracked(tracked)
        }));
    }
    let oids: Vec<u32> = tables.iter().map(|facts| facts.relation.oid).collect();
    let names = [config.mirror.publication_name(), config.mirror.inserts_publication_name()];
    let ancestors = catalog::published_ancestors(session, &oids, &names).await?;
    for facts in &tables {
        let id = &facts.schema.id;
        let nested = ancestors.get(&facts.relation.oid).map(|above| table::ancestor_published(id, above));
        checks.extend(nested.map(|check| check.downgrade_if_tracked(joined.tables.contains_key(id))));
    }
    checks.extend(of_tables);
    let records = specs.iter().filter_map(|spec| joined.tables.get(&spec.id));
    checks.extend(records.filter_map(table::failed));
    Ok((source::remedies_at_primary(checks, &server), tables, known))
}

/// Whether a table that is copied again would have a column mirrored that was left out.
fn withheld(record: Option<&TableRecord>, spec: &TableSpec, facts: &TableFacts) -> Option<Check> {
    let refused = replication::require_withheld(record?, spec, &facts.schema);
    refused.err().map(|error| table::withheld(&spec.id, &error))
}

/// Has PostgreSQL read the row filters of the tables that the role could publish.
async fn probe_filters(session: &Session, tables: &[TableFacts]) -> publication::Probes {
    let mut probes = publication::Probes::new();
    for facts in tables.iter().filter(|facts| facts.schema.row_filter.is_some() && facts.relation.owned) {
        if session.server_version_num() >= row_filter::ROW_FILTERS {
            let probed = pg_publication::probe(session, &facts.schema).await;
            probes.insert(facts.schema.id.clone(), probed);
        }
    }
    probes
}

/// A destination that can be used.
struct Reached {
    database: Database,
    version: ServerVersion,
    /// Privileges that the user lacks on the whole database, and may have on single tables.
    of_tables: Vec<&'static str>,
}

/// Has PostgreSQL compare row filters with a publication's, of tables that the role doesn't own, or that
/// couldn't be published for a try.
async fn compare_filters(
    session: &Session,
    tables: &[TableFacts],
    probes: &publication::Probes,
    found: &pg_publication::Publication,
) -> publication::Agreements {
    let mut agreements = publication::Agreements::new();
    for published in &found.tables {
        let Some(theirs) = &published.row_filter else { continue };
        let schema = tables.iter().map(|facts| &facts.schema).find(|schema| schema.id == published.id);
        let asked = schema.and_then(|schema| Some((schema, schema.row_filter.as_ref()?)));
        let is_probed = |schema: &TableSchema| matches!(probes.get(&schema.id), Some(Ok(_)));
        let Some((schema, filter)) = asked.filter(|(schema, _)| !is_probed(schema)) else {
            continue;
        };
        let agrees = pg_publication::filters_agree(session, schema, filter, theirs).await;
        agreements.insert(schema.id.clone(), agrees);
    }
    agreements
}

async fn reach_destination(
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

async fn targets(
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
        if check.outcome != Outcome::Failure || facts.copied_over {
            match database.try_definition(schema, &types).await {
                Ok(Some(trial)) => {
                    let ordered = spec.is_some_and(|spec| !spec.order_by.is_empty());
                    let layout = facts
                        .found
                        .as_ref()
                        .map(|found| differences(found, database.name(), schema, &types, (&trial, ordered)));
                    checks.extend(target::layout(schema, &layout.unwrap_or_default()));
                }
                Ok(None) => {}
                Err(error) => check = target::refused_target(schema, error),
            }
        }
        checks.push(check.downgrade_if_tracked(tracked));
        checks.extend(target::hidden_columns(schema));
        checks
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
