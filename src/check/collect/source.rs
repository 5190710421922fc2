//! Queries the source: the server, the tables and the publications.

use std::collections::BTreeSet;

use super::super::{
    publication::{self, Desired},
    report::{Check, Outcome},
    row_filter, source, state, table,
};
use crate::{
    clickhouse::Database,
    model::{ReplicatorConfig, TableId, TableSchema, TableSpec},
    postgres::{
        self,
        catalog::{self, ServerFacts, TableFacts},
        publication::{self as pg_publication, Publication, Publish},
        session::Session,
        slot,
    },
    replication::{self, MirrorState, StateStore, TableRecord, TableResyncs},
};

/// What the source said.
#[derive(Default)]
pub(super) struct SourceFindings {
    pub(super) checks: Vec<Check>,
    /// Tables that could be described.
    pub(super) tables: Vec<TableFacts>,
    /// The Mirror's state without the tables that a resync copies again.
    pub(super) joined: MirrorState,
}

impl SourceFindings {
    fn failed(check: Check) -> SourceFindings {
        SourceFindings { checks: vec![check], ..SourceFindings::default() }
    }
}

/// All checks of the source, for some of the tables alone, or for all when none is named. `destination` has
/// the position that the Mirror has by now.
pub(super) async fn checks(
    config: &ReplicatorConfig,
    only: &[TableId],
    session: Result<Session, postgres::Error>,
    (state, destination): (&MirrorState, Option<&Database>),
) -> SourceFindings {
    let session = match session {
        Ok(session) => session,
        Err(error) => return SourceFindings::failed(source::connection_failed(&config.source, &error)),
    };
    let collector = Collector::new(config, only, &session, state);
    match collector.findings(destination).await {
        Ok(found) => found,
        Err(error) => SourceFindings::failed(source::query_failed(source::SUBJECT, "catalog", &error)),
    }
}

/// What the queries of the source have in common.
struct Collector<'a> {
    config: &'a ReplicatorConfig,
    /// The entries of the tables that are checked.
    specs: Vec<&'a TableSpec>,
    session: &'a Session,
    /// What is on record.
    state: &'a MirrorState,
    /// The same without the tables that a resync copies again.
    joined: MirrorState,
    /// Tables that a resync names.
    resyncs: TableResyncs,
    /// Whether a resync of all tables is due.
    resync: bool,
}

/// A publication that the Mirror needs, and the one that is there.
type Publications = Vec<(Publish, Option<Publication>)>;

impl<'a> Collector<'a> {
    fn new(
        config: &'a ReplicatorConfig,
        only: &[TableId],
        session: &'a Session,
        state: &'a MirrorState,
    ) -> Collector<'a> {
        let resync = replication::resync_due(config.resync.as_deref(), state).is_some();
        // With a resync, every table is added again.
        let mut joined = if resync { MirrorState::default() } else { state.clone() };
        let resyncs = replication::take_resync_tables(config, &mut joined);
        let chosen = |spec: &&TableSpec| only.is_empty() || only.contains(&spec.id);
        let specs = config.tables.iter().filter(chosen).collect();
        Collector { config, specs, session, state, joined, resyncs, resync }
    }

    async fn findings(self, destination: Option<&Database>) -> Result<SourceFindings, postgres::Error> {
        let server = catalog::server_facts(self.session).await?;
        let mut checks = self.server_checks(&server, destination).await?;
        let mut tables = Vec::new();
        if source::is_usable(&checks) {
            tables = self.describe(&mut checks).await?;
            let broken = checks.iter().any(publication_is_broken);
            checks.extend(self.table_checks(&server, &tables, broken).await?);
            let records = self.specs.iter().filter_map(|spec| self.joined.tables.get(&spec.id));
            checks.extend(records.filter_map(state::failed));
            checks = source::remedies_at_primary(checks, &server);
        }
        Ok(SourceFindings { checks, tables, joined: self.joined })
    }

    fn is_tracked(&self, table: &TableId) -> bool {
        self.joined.tables.contains_key(table)
    }

    /// Checks of the server, of the slot, and of what the Mirror's state says of them.
    async fn server_checks(
        &self,
        server: &ServerFacts,
        destination: Option<&Database>,
    ) -> Result<Vec<Check>, postgres::Error> {
        let slot = slot::read(self.session, &self.config.mirror.slot_name()).await?;
        let mut checks = source::server(&self.config.source, server, slot.as_ref(), self.resync);
        let unknown = replication::unknown_names(self.config, self.state);
        checks.extend(unknown.map(table::unknown_to_resync));
        // Only a Mirror that has a state is asked for its position as it is by now.
        let recorded = async || match destination {
            Some(database) => {
                StateStore::new(database.clone(), &self.config.mirror.uid).recorded_position().await
            }
            None => Ok(self.joined.position.clone()),
        };
        let faults =
            replication::diagnosis::faults(self.config, self.session, &self.joined, recorded).await?;
        source::add_state_faults(&mut checks, faults);
        Ok(checks)
    }

    /// Describes the tables. What can't be described, or replicated, becomes a check.
    async fn describe(&self, checks: &mut Vec<Check>) -> Result<Vec<TableFacts>, postgres::Error> {
        let named = |spec: &TableSpec| {
            let record = self.joined.tables.get(&spec.id).filter(|record| spec.continues(&record.spec))?;
            Some(record.named.as_ref()?.columns.as_slice())
        };
        let asked: Vec<_> = self.specs.iter().map(|spec| (*spec, named(spec).unwrap_or_default())).collect();
        let mut tables = Vec::new();
        for (spec, described) in self.specs.iter().zip(catalog::describe_all(self.session, &asked).await?) {
            if self.joined.tables.get(&spec.id).is_some_and(|record| !spec.continues(&record.spec)) {
                checks.push(table::spec_changed(&spec.id));
            }
            let tracked = self.is_tracked(&spec.id);
            let refused = match described {
                Ok(facts) => match table::unsupported(&facts) {
                    None => {
                        tables.push(self.as_recorded(spec, facts, checks));
                        continue;
                    }
                    Some(check) => check,
                },
                Err(error) => table::description_failed(&spec.id, &error, tracked),
            };
            checks.push(refused.downgrade_if_tracked(tracked));
        }
        Ok(tables)
    }

    /// The table with the names and the kind that it has on record.
    fn as_recorded(&self, spec: &TableSpec, mut facts: TableFacts, checks: &mut Vec<Check>) -> TableFacts {
        let former = self.state.former.get(&spec.id).and_then(|former| former.record.as_ref());
        let recorded = self.state.tables.get(&spec.id).or(former);
        if !self.is_tracked(&spec.id) {
            // It joins again: its names are resolved again.
            let alone = self.resyncs.record(&spec.id);
            let refused = withheld(alone.or(recorded), spec, &facts);
            checks.extend(refused.map(|check| check.downgrade_if_tracked(alone.is_some())));
        }
        if let Some(record) = recorded {
            replication::keep_target_names(record, spec, &mut facts.schema);
        }
        if let Some(record) = self.joined.tables.get(&spec.id) {
            facts.schema.keep_kind(&record.schema);
        }
        facts
    }

    /// Checks of the described tables and of the publications that send them.
    async fn table_checks(
        &self,
        server: &ServerFacts,
        tables: &[TableFacts],
        publication_is_broken: bool,
    ) -> Result<Vec<Check>, postgres::Error> {
        let probes = probe_filters(self.session, tables).await;
        let (publications, agreements) = self.publications(tables, &probes).await?;
        let mut of_tables = Vec::new();
        let mut tables_breaking_writes = BTreeSet::new();
        for facts in tables {
            let found = self.checks_of_table(server, facts, &probes, &publications);
            if found.iter().any(table::breaks_writes) {
                tables_breaking_writes.insert(facts.schema.id.clone());
            }
            let tracked = self.is_tracked(&facts.schema.id);
            of_tables.extend(found.into_iter().map(|check| check.downgrade_if_tracked(tracked)));
        }
        let mut checks = Vec::new();
        // What a broken publication lacks is not reported: all of it is created again.
        let publications = if publication_is_broken { Vec::new() } else { publications };
        for (publish, found) in &publications {
            let desired = Desired {
                config: self.config,
                publish: *publish,
                server,
                tables,
                probes: &probes,
                agreements: &agreements,
                joined: &self.joined,
                tables_breaking_writes: &tables_breaking_writes,
            };
            checks.extend(publication::publication(&desired, found.as_ref()).into_iter().map(|check| {
                let tracked = self.joined.tables.keys().any(|id| id.to_string() == check.subject);
                check.downgrade_if_tracked(tracked)
            }));
        }
        checks.extend(self.published_ancestors(tables).await?);
        checks.extend(of_tables);
        Ok(checks)
    }

    fn checks_of_table(
        &self,
        server: &ServerFacts,
        facts: &TableFacts,
        probes: &publication::Probes,
        publications: &Publications,
    ) -> Vec<Check> {
        let id = &facts.schema.id;
        let published = publications
            .iter()
            .filter_map(|(_, found)| found.as_ref())
            .flat_map(|found| &found.tables)
            .find(|published| published.id == *id);
        let spec = self.config.tables.iter().find(|spec| spec.id == *id);
        let excluded = spec.map(|spec| spec.exclude.as_slice()).unwrap_or_default();
        table::table(facts, excluded, server, probes.get(id), published)
    }

    /// The publications that are there, and whether their row filters are the Mirror's.
    async fn publications(
        &self,
        tables: &[TableFacts],
        probes: &publication::Probes,
    ) -> Result<(Publications, publication::Agreements), postgres::Error> {
        let (mut publications, mut agreements) = (Vec::new(), publication::Agreements::new());
        for publish in Publish::all(self.config) {
            let found = pg_publication::read(self.session, &publish.name(&self.config.mirror)).await?;
            // A resync recreates it, where the role may.
            let mut found = found.filter(|found| !(self.resync && found.owned_by_us && found.may_alter));
            if let Some(found) = found.as_mut().filter(|found| found.may_alter) {
                found.tables.retain(|published| !self.resyncs.has(&published.id));
            }
            if let Some(found) = &found {
                agreements.extend(compare_filters(self.session, tables, probes, found).await);
            }
            publications.push((publish, found));
        }
        Ok((publications, agreements))
    }

    /// Tables whose changes are sent as those of a published table above them.
    async fn published_ancestors(&self, tables: &[TableFacts]) -> Result<Vec<Check>, postgres::Error> {
        let oids: Vec<u32> = tables.iter().map(|facts| facts.relation.oid).collect();
        let mirror = &self.config.mirror;
        let names = [mirror.publication_name(), mirror.inserts_publication_name()];
        let ancestors = catalog::published_ancestors(self.session, &oids, &names).await?;
        let check = |facts: &TableFacts| {
            let id = &facts.schema.id;
            let above = ancestors.get(&facts.relation.oid)?;
            Some(table::ancestor_published(id, above).downgrade_if_tracked(self.is_tracked(id)))
        };
        Ok(tables.iter().filter_map(check).collect())
    }
}

fn publication_is_broken(check: &Check) -> bool {
    check.name == publication::NAME && check.outcome == Outcome::Failure
}

/// Whether a table that is copied again would have a column mirrored that was left out.
fn withheld(record: Option<&TableRecord>, spec: &TableSpec, facts: &TableFacts) -> Option<Check> {
    let refused = replication::require_withheld(record?, spec, &facts.schema);
    refused.err().map(|error| table::names_parted(&spec.id, &error))
}

/// What PostgreSQL makes of the row filters of the tables that the role could publish.
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

/// Whether PostgreSQL takes row filters for those of a publication, where they couldn't be probed: of tables
/// that the role doesn't own, for one.
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
