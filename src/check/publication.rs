//! The publication: whether it can be made, or the one that is there is the one that is needed.

mod member;

use std::collections::{BTreeSet, HashMap};

use super::{report::Check, source::SUBJECT};
use crate::{
    fault::{Reason, Remedy},
    model::{ReplicatorConfig, TableId},
    postgres::{
        Error,
        catalog::{ServerFacts, TableFacts},
        publication::{self, COMMENT_PREFIX, Publication, Publish, PublishedTable},
        quote::ident,
    },
    replication::MirrorState,
};

pub(super) const NAME: &str = "publication";

/// What PostgreSQL makes of the tables' row filters, where it was asked.
pub(super) type Probes = HashMap<TableId, Result<PublishedTable, Error>>;

/// Whether the published row filters of tables that couldn't be published for a try are the Mirror's, where
/// PostgreSQL was asked.
pub(super) type Agreements = HashMap<TableId, Result<bool, Error>>;

/// The publication that the Mirror needs, and what is known of who makes it.
pub(super) struct Desired<'a> {
    pub(super) config: &'a ReplicatorConfig,
    /// What it sends.
    pub(super) publish: Publish,
    pub(super) server: &'a ServerFacts,
    /// Those of the Mirror's tables that could be described.
    pub(super) tables: &'a [TableFacts],
    pub(super) probes: &'a Probes,
    pub(super) agreements: &'a Agreements,
    /// The tables that the Mirror has already.
    pub(super) joined: &'a MirrorState,
    /// Tables whose UPDATE and DELETE would fail once published as they are: no statement that publishes them
    /// is printed.
    pub(super) tables_breaking_writes: &'a BTreeSet<TableId>,
}

impl<'a> Desired<'a> {
    fn name(&self) -> String {
        self.publish.name(&self.config.mirror)
    }

    /// Those of the tables that are to be in it.
    fn tables(&self) -> impl Iterator<Item = &'a TableFacts> {
        let publish = self.publish;
        self.tables.iter().filter(move |table| Publish::of(table.schema.kind) == publish)
    }

    /// Those that publishing does no harm to.
    fn fit(&self) -> impl Iterator<Item = &'a TableFacts> {
        let breaking = self.tables_breaking_writes;
        self.tables().filter(move |table| !breaking.contains(&table.schema.id))
    }

    fn has(&self, id: &TableId) -> bool {
        let append_only = self.publish == Publish::Inserts;
        self.config
            .tables
            .iter()
            .any(|table| table.id == *id && table.operations.is_append_only() == append_only)
    }
}

/// Checks the publication that the Mirror will use.
pub(super) fn publication(desired: &Desired<'_>, found: Option<&Publication>) -> Vec<Check> {
    match found {
        None if desired.fit().next().is_none() => Vec::new(),
        None => missing_publication(desired),
        Some(found) => existing(desired, found),
    }
}

fn unusable(detail: String, fix: String) -> Check {
    Check::failure(SUBJECT, NAME, Reason::SourcePublicationUnusable, detail).run_at_source(fix)
}

/// The statements by which a role with more privileges creates the publication for walferry.
fn creation(desired: &Desired<'_>) -> String {
    let schemas: Vec<_> = desired.fit().map(|table| table.schema.clone()).collect();
    let create = publication::create_statement(&desired.name(), desired.publish, &schemas);
    format!("{create};\n{};", comment(desired))
}

fn comment(desired: &Desired<'_>) -> String {
    let comment = format!("{COMMENT_PREFIX}{}", desired.config.mirror.uid);
    publication::comment_statement(&desired.name(), &comment)
}

fn missing_publication(desired: &Desired<'_>) -> Vec<Check> {
    let (server, name) = (desired.server, desired.name());
    let unowned = not_owned(desired.fit());
    // Instead of the ownership of all tables, a publication made by a role that has it will do.
    let owner = sole(desired.fit().map(|table| table.relation.owner.as_str()));
    let who = match owner {
        Some(owner) => format!("as {owner}, with CREATE on database {}", server.database),
        None => "as superuser, or as a member of all owners of the tables".to_owned(),
    };
    let by_the_owner = format!("-- {who}\n{}", creation(desired));
    if server.in_recovery {
        return vec![unusable(
            format!("{name} does not exist and can't be created on a standby"),
            by_the_owner,
        )];
    }
    if unowned.len() == desired.fit().count() {
        let names: Vec<_> = unowned.iter().map(|table| table.schema.id.to_string()).collect();
        let lacks = format!("does not own {}", names.join(", "));
        return vec![may_not(SUBJECT, server, &format!("create {name}"), &lacks).run_at_source(by_the_owner)];
    }
    let mut checks: Vec<_> = unowned
        .iter()
        .map(|table| {
            let subject = table.schema.id.to_string();
            may_not(&subject, server, "publish it", "does not own it").run_at_source(by_the_owner.as_str())
        })
        .collect();
    checks.push(match server.may_create {
        true => Check::ok(SUBJECT, NAME, format!("{name} will be created")),
        false => {
            let lacks = format!("lacks CREATE on database {}", server.database);
            let (database, role) = (ident(&server.database), ident(&server.role));
            may_not(SUBJECT, server, &format!("create {name}"), &lacks)
                .run_at_source(format!("GRANT CREATE ON DATABASE {database} TO {role};"))
        }
    });
    checks
}

/// The one role of these; `None` when they are several.
fn sole<'a>(mut roles: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let first = roles.next()?;
    roles.all(|role| role == first).then_some(first)
}

fn may_not(subject: &str, server: &ServerFacts, what: &str, lacks: &str) -> Check {
    let detail = format!("{} may not {what}: it {lacks}", server.role);
    Check::failure(subject, NAME, Reason::SourcePrivilegeMissing, detail)
}

fn not_owned<'a>(tables: impl Iterator<Item = &'a TableFacts>) -> Vec<&'a TableFacts> {
    tables.filter(|table| !table.relation.owned).collect()
}

fn existing(desired: &Desired<'_>, found: &Publication) -> Vec<Check> {
    let name = desired.name();
    if found.all_tables || found.schemas {
        let all = if found.all_tables { "FOR ALL TABLES" } else { "FOR TABLES IN SCHEMA" };
        return vec![unusable(
            format!("{name} is {all}; updates of a table without replica identity would fail at the source"),
            format!("DROP PUBLICATION {};\n{}", ident(&name), creation(desired)),
        )];
    }
    let mut checks = Vec::new();
    if !found.owned_by_us {
        checks.push(unusable(
            format!("{name} exists, but its comment does not say that it is this Mirror's"),
            format!("{};", comment(desired)),
        ));
    }
    if found.sends != Some(desired.publish) || !found.via_root {
        checks.push(unusable(
            format!(
                "{name} does not send {}, or sends partitions instead of their table",
                desired.publish.option()
            ),
            format!(
                "ALTER PUBLICATION {} SET (publish = '{}', publish_via_partition_root = true);",
                ident(&name),
                desired.publish.option()
            ),
        ));
    }
    checks.extend(removed_tables(desired, found));
    checks.extend(members(desired, found));
    checks.extend(desired.fit().filter_map(|table| {
        let published = found.tables.iter().find(|published| published.id == table.schema.id)?;
        member::member(desired, found, table, published)
    }));
    if checks.is_empty() {
        checks.push(Check::ok(SUBJECT, NAME, format!("{name} exists")));
    }
    checks
}

/// Tables that were published for this Mirror and are no longer: adding them again would not bring the
/// missing changes.
fn removed_tables(desired: &Desired<'_>, found: &Publication) -> Vec<Check> {
    let known = desired.tables().filter(|table| desired.joined.tables.contains_key(&table.schema.id));
    let gone = known.filter(|table| !found.tables.iter().any(|published| published.id == table.schema.id));
    let warn = |table: &TableFacts| {
        let detail = "no longer in the publication: this table fails alone, the others continue";
        Check::warning(table.schema.id.to_string(), NAME, Reason::SourcePublicationUnusable, detail)
            .remedied([Remedy::resync([&table.schema.id])])
    };
    gone.map(warn).collect()
}

/// Tables that have to join or leave: walferry does it where it may. One that it may not publish does not
/// block the others.
fn members(desired: &Desired<'_>, found: &Publication) -> Vec<Check> {
    let Desired { server, joined, .. } = desired;
    let name = desired.name();
    let joining: Vec<_> = desired
        .fit()
        .filter(|table| !joined.tables.contains_key(&table.schema.id))
        .filter(|table| !found.tables.iter().any(|published| published.id == table.schema.id))
        .collect();
    let leaving: Vec<_> = found
        .tables
        .iter()
        .filter(|published| !desired.has(&published.id))
        .map(|published| published.id.clone())
        .collect();
    if joining.is_empty() && leaving.is_empty() {
        return Vec::new();
    }
    let cause = if server.in_recovery {
        Some("a standby can't change it".to_owned())
    } else if !found.may_alter {
        Some(format!("it belongs to {}, not to {}", found.owner, server.role))
    } else {
        None
    };
    let mut checks = Vec::new();
    for table in joining.iter().filter(|table| cause.is_some() || !table.relation.owned) {
        let why = cause.clone().unwrap_or_else(|| format!("{} does not own the table", server.role));
        let statements = publication::alter_statements(&name, &[&table.schema], &[], &[]);
        let detail = format!("it can't be added to {name}: {why}");
        let subject = table.schema.id.to_string();
        let check = Check::failure(subject, NAME, Reason::SourcePrivilegeMissing, detail);
        let who = role_that_may_alter(found, &not_owned([*table].into_iter()));
        checks.push(check.run_at_source(format!("-- {who}\n{};", statements.join(";\n"))));
    }
    let detail = format!("{} tables will be added to {name}, {} removed", joining.len(), leaving.len());
    match cause {
        None => checks.push(Check::ok(SUBJECT, NAME, detail)),
        // What is sent too much is left out; it may be there for a change of the Mirror that is still to
        // come.
        Some(cause) if !leaving.is_empty() => {
            let statements = publication::alter_statements(&name, &[], &leaving, &[]);
            let detail = format!("{} tables can't be removed from {name}: {cause}", leaving.len());
            let check = Check::warning(SUBJECT, NAME, Reason::SourcePrivilegeMissing, detail);
            let who = role_that_may_alter(found, &[]);
            checks.push(check.run_at_source(format!("-- {who}\n{};", statements.join(";\n"))));
        }
        Some(_) => {}
    }
    checks
}

/// Who has the privileges of those owners that the session's role lacks.
fn role_that_may_alter(found: &Publication, unowned: &[&TableFacts]) -> String {
    let of_publication = (!found.may_alter).then_some(found.owner.as_str());
    match sole(of_publication.into_iter().chain(unowned.iter().map(|table| table.relation.owner.as_str()))) {
        Some(owner) => format!("as {owner}"),
        None => "as superuser, or as a member of the owners of the publication and the tables".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        report::Outcome,
        tests::{config, server_facts, table_facts},
    };
    use super::*;
    use crate::model::TableSpec;

    pub(super) fn found() -> Publication {
        Publication {
            oid: 1,
            owned_by_us: true,
            owner: "mirror".to_owned(),
            may_alter: true,
            all_tables: false,
            schemas: false,
            sends: Some(Publish::Everything),
            via_root: true,
            tables: vec![published("users", None)],
        }
    }

    pub(super) fn published(name: &str, row_filter: Option<&str>) -> PublishedTable {
        PublishedTable {
            entry: 1,
            id: TableId::new("public", name),
            oid: 1,
            row_filter: row_filter.map(str::to_owned),
            filter_columns: Vec::new(),
            may_fail: Vec::new(),
            columns: None,
        }
    }

    pub(super) fn check(
        server: &ServerFacts,
        facts: TableFacts,
        probes: &Probes,
        found: Option<&Publication>,
    ) -> Check {
        let config = config();
        let state = MirrorState::default();
        let desired = Desired {
            config: &config,
            publish: Publish::Everything,
            server,
            tables: &[facts],
            probes,
            agreements: &Agreements::new(),
            joined: &state,
            tables_breaking_writes: &BTreeSet::new(),
        };
        let mut checks = publication(&desired, found);
        assert_eq!(checks.len(), 1, "{checks:?}");
        checks.remove(0)
    }

    fn all(tables: &[TableFacts], found: Option<&Publication>, breaking: &[&str]) -> Vec<Check> {
        let mut config = config();
        config.tables = tables.iter().map(|table| TableSpec::new(table.schema.id.clone())).collect();
        let breaking = breaking.iter().map(|name| TableId::new("public", *name)).collect();
        let (state, probes) = (MirrorState::default(), Probes::new());
        let (publish, server) = (Publish::Everything, server_facts());
        let desired = Desired {
            config: &config,
            publish,
            server: &server,
            tables,
            probes: &probes,
            agreements: &Agreements::new(),
            joined: &state,
            tables_breaking_writes: &breaking,
        };
        publication(&desired, found)
    }

    fn named(name: &str, owned: bool) -> TableFacts {
        let mut facts = table_facts();
        facts.schema.id = TableId::new("public", name);
        facts.relation.owned = owned;
        facts
    }

    #[test]
    fn a_table_that_may_not_be_published_keeps_no_other_from_it() {
        let tables = [named("users", true), named("foreign", false)];
        let subjects = |checks: &[Check]| -> Vec<(String, Outcome)> {
            checks.iter().map(|check| (check.subject.clone(), check.outcome)).collect()
        };
        let expected = [("public.foreign".to_owned(), Outcome::Failure), ("source".to_owned(), Outcome::Ok)];
        assert_eq!(subjects(&all(&tables, None, &[])), expected);
        let none = Publication { tables: Vec::new(), ..found() };
        let joining = all(&tables, Some(&none), &[]);
        assert_eq!(subjects(&joining), expected);
        assert_eq!(
            joining[0].fix().as_deref(),
            Some("-- as app\nALTER PUBLICATION \"walferry_1f\" ADD TABLE ONLY \"public\".\"foreign\";")
        );
    }

    #[test]
    fn no_statement_publishes_a_table_to_its_harm() {
        let tables = [named("users", false), named("breaking", false)];
        let statement = all(&tables, None, &["breaking"])[0].fix().unwrap();
        assert!(statement.contains("users") && !statement.contains("breaking"), "{statement}");
        let foreign = Publication { may_alter: false, tables: Vec::new(), ..found() };
        let joining = all(&tables, Some(&foreign), &["breaking"]);
        assert_eq!(joining.len(), 1);
        assert_eq!(joining[0].subject, "public.users");
        assert_eq!(all(&[named("breaking", false)], None, &["breaking"]), []);
    }

    fn simple(server: &ServerFacts, found: Option<&Publication>) -> Check {
        check(server, table_facts(), &Probes::new(), found)
    }

    const CREATION: &str = "CREATE PUBLICATION \"walferry_1f\" FOR TABLE ONLY \"public\".\"users\" \
        WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = true);\n\
        COMMENT ON PUBLICATION \"walferry_1f\" IS 'walferry mirror 1f';";

    #[test]
    fn is_created_by_a_role_with_the_privileges() {
        assert_eq!(simple(&server_facts(), None).outcome, Outcome::Ok);
        let no_create = ServerFacts { may_create: false, ..server_facts() };
        let check_create = simple(&no_create, None);
        assert_eq!(check_create.fix().as_deref(), Some("GRANT CREATE ON DATABASE \"app\" TO \"mirror\";"));
        let mut foreign = table_facts();
        foreign.relation.owned = false;
        let owned = check(&server_facts(), foreign, &Probes::new(), None);
        assert_eq!(owned.reason, Some(Reason::SourcePrivilegeMissing));
        assert_eq!(owned.fix(), Some(format!("-- as app, with CREATE on database app\n{CREATION}")));
        let standby = ServerFacts { in_recovery: true, ..server_facts() };
        let there = "-- as app, with CREATE on database app";
        assert_eq!(simple(&standby, None).fix(), Some(format!("{there}\n{CREATION}")));
    }

    #[test]
    fn one_that_fits_is_taken() {
        let check = simple(&server_facts(), Some(&found()));
        assert_eq!((check.outcome, check.detail.as_str()), (Outcome::Ok, "walferry_1f exists"));
    }

    #[test]
    fn one_that_does_not_fit_is_refused_with_what_changes_it() {
        for (found, fix) in [
            (
                Publication { all_tables: true, ..found() },
                format!("DROP PUBLICATION \"walferry_1f\";\n{CREATION}"),
            ),
            (
                Publication { owned_by_us: false, ..found() },
                "COMMENT ON PUBLICATION \"walferry_1f\" IS 'walferry mirror 1f';".to_owned(),
            ),
            (
                Publication { sends: None, ..found() },
                "ALTER PUBLICATION \"walferry_1f\" SET (publish = 'insert, update, delete, truncate', \
                 publish_via_partition_root = true);"
                    .to_owned(),
            ),
        ] {
            let check = simple(&server_facts(), Some(&found));
            assert_eq!(check.reason, Some(Reason::SourcePublicationUnusable));
            assert_eq!(check.fix(), Some(fix));
        }
    }

    #[test]
    fn tables_join_and_leave_where_the_role_may() {
        let other = Publication { tables: vec![published("old", None)], ..found() };
        let check_own = simple(&server_facts(), Some(&other));
        assert_eq!(check_own.detail, "1 tables will be added to walferry_1f, 1 removed");
        let foreign = Publication { may_alter: false, owner: "postgres".to_owned(), ..other };
        let checks = all(&[named("users", true)], Some(&foreign), &[]);
        assert_eq!(
            (checks[0].reason, checks[0].outcome),
            (Some(Reason::SourcePrivilegeMissing), Outcome::Failure)
        );
        let fixes: Vec<_> = checks.iter().filter_map(Check::fix).collect();
        assert_eq!(
            fixes,
            [
                "-- as postgres\nALTER PUBLICATION \"walferry_1f\" ADD TABLE ONLY \"public\".\"users\";",
                "-- as postgres\nALTER PUBLICATION \"walferry_1f\" DROP TABLE ONLY \"public\".\"old\";"
            ]
        );
        let too_many = vec![published("users", None), published("old", None)];
        let check_more = simple(&server_facts(), Some(&Publication { tables: too_many, ..foreign }));
        assert_eq!(check_more.outcome, Outcome::Warning, "it would send what is not desired, no more");
    }
}
