//! The publication: whether it can be made, or the one that is there is the one that is needed.

use std::collections::{BTreeSet, HashMap};

use super::{report::Check, source::SUBJECT};
use crate::{
    fault::{Reason, Remedy},
    model::{ReplicatorConfig, TableId, TableSchema},
    postgres::{
        Error,
        catalog::{ServerFacts, TableFacts},
        publication::{self, COMMENT_PREFIX, Member, Publication, Publish, PublishedTable},
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
pub(super) struct Wanted<'a> {
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

impl<'a> Wanted<'a> {
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
pub(super) fn publication(wanted: &Wanted<'_>, found: Option<&Publication>) -> Vec<Check> {
    match found {
        None if wanted.fit().next().is_none() => Vec::new(),
        None => missing_publication(wanted),
        Some(found) => existing(wanted, found),
    }
}

fn unusable(detail: String, fix: String) -> Check {
    Check::failure(SUBJECT, NAME, Reason::SourcePublicationUnusable, detail).run_at_source(fix)
}

/// The statements by which a role with more privileges creates the publication for walferry.
fn creation(wanted: &Wanted<'_>) -> String {
    let schemas: Vec<_> = wanted.fit().map(|table| table.schema.clone()).collect();
    let create = publication::create_statement(&wanted.name(), wanted.publish, &schemas);
    format!("{create};\n{};", comment(wanted))
}

fn comment(wanted: &Wanted<'_>) -> String {
    let comment = format!("{COMMENT_PREFIX}{}", wanted.config.mirror.uid);
    publication::comment_statement(&wanted.name(), &comment)
}

fn missing_publication(wanted: &Wanted<'_>) -> Vec<Check> {
    let (server, name) = (wanted.server, wanted.name());
    let unowned = not_owned(wanted.fit());
    // Instead of the ownership of all tables, a publication made by a role that has it will do.
    let owner = sole(wanted.fit().map(|table| table.relation.owner.as_str()));
    let who = match owner {
        Some(owner) => format!("as {owner}, with CREATE on database {}", server.database),
        None => "as superuser, or as a member of all owners of the tables".to_owned(),
    };
    let by_the_owner = format!("-- {who}\n{}", creation(wanted));
    if server.in_recovery {
        return vec![unusable(
            format!("{name} does not exist and can't be created on a standby"),
            by_the_owner,
        )];
    }
    if unowned.len() == wanted.fit().count() {
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

fn existing(wanted: &Wanted<'_>, found: &Publication) -> Vec<Check> {
    let name = wanted.name();
    if found.all_tables || found.schemas {
        let all = if found.all_tables { "FOR ALL TABLES" } else { "FOR TABLES IN SCHEMA" };
        return vec![unusable(
            format!("{name} is {all}; updates of a table without replica identity would fail at the source"),
            format!("DROP PUBLICATION {};\n{}", ident(&name), creation(wanted)),
        )];
    }
    let mut checks = Vec::new();
    if !found.owned_by_us {
        checks.push(unusable(
            format!("{name} exists, but its comment does not say that it is this Mirror's"),
            format!("{};", comment(wanted)),
        ));
    }
    if found.sends != Some(wanted.publish) || !found.via_root {
        checks.push(unusable(
            format!(
                "{name} does not send {}, or sends partitions instead of their table",
                wanted.publish.option()
            ),
            format!(
                "ALTER PUBLICATION {} SET (publish = '{}', publish_via_partition_root = true);",
                ident(&name),
                wanted.publish.option()
            ),
        ));
    }
    checks.extend(removed_tables(wanted, found));
    checks.extend(members(wanted, found));
    checks.extend(wanted.fit().filter_map(|table| {
        let published = found.tables.iter().find(|published| published.id == table.schema.id)?;
        member(wanted, found, table, published)
    }));
    if checks.is_empty() {
        checks.push(Check::ok(SUBJECT, NAME, format!("{name} exists")));
    }
    checks
}

/// Tables that were published for this Mirror and are no longer: adding them again would not bring the
/// missing changes.
fn removed_tables(wanted: &Wanted<'_>, found: &Publication) -> Vec<Check> {
    let known = wanted.tables().filter(|table| wanted.joined.tables.contains_key(&table.schema.id));
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
fn members(wanted: &Wanted<'_>, found: &Publication) -> Vec<Check> {
    let Wanted { server, joined, .. } = wanted;
    let name = wanted.name();
    let joining: Vec<_> = wanted
        .fit()
        .filter(|table| !joined.tables.contains_key(&table.schema.id))
        .filter(|table| !found.tables.iter().any(|published| published.id == table.schema.id))
        .collect();
    let leaving: Vec<_> = found
        .tables
        .iter()
        .filter(|published| !wanted.has(&published.id))
        .map(|published| published.id.clone())
        .collect();
    if joining.is_empty() && leaving.is_empty() {
        return Vec::new();
    }
    let obstacle = if server.in_recovery {
        Some("a standby can't change it".to_owned())
    } else if !found.may_alter {
        Some(format!("it belongs to {}, not to {}", found.owner, server.role))
    } else {
        None
    };
    let mut checks = Vec::new();
    for table in joining.iter().filter(|table| obstacle.is_some() || !table.relation.owned) {
        let why = obstacle.clone().unwrap_or_else(|| format!("{} does not own the table", server.role));
        let statements = publication::alter_statements(&name, &[&table.schema], &[], &[]);
        let detail = format!("it can't be added to {name}: {why}");
        let subject = table.schema.id.to_string();
        let check = Check::failure(subject, NAME, Reason::SourcePrivilegeMissing, detail);
        let who = role_that_may_alter(found, &not_owned([*table].into_iter()));
        checks.push(check.run_at_source(format!("-- {who}\n{};", statements.join(";\n"))));
    }
    let detail = format!("{} tables will be added to {name}, {} removed", joining.len(), leaving.len());
    match obstacle {
        None => checks.push(Check::ok(SUBJECT, NAME, detail)),
        // What is sent too much is left out; it may be there for a change of the Mirror that is still to
        // come.
        Some(obstacle) if !leaving.is_empty() => {
            let statements = publication::alter_statements(&name, &[], &leaving, &[]);
            let detail = format!("{} tables can't be removed from {name}: {obstacle}", leaving.len());
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

/// A published table with another filter than the Mirror's, or with a list of other columns.
fn member(
    wanted: &Wanted<'_>,
    found: &Publication,
    table: &TableFacts,
    published: &PublishedTable,
) -> Option<Check> {
    let schema = &table.schema;
    let as_transaction = |statements: Vec<String>| {
        let statements = format!("BEGIN;\n{};\nCOMMIT;", statements.join(";\n"));
        let unowned = not_owned([table].into_iter());
        match found.may_alter && unowned.is_empty() {
            true => statements,
            false => format!("-- {}\n{statements}", role_that_may_alter(found, &unowned)),
        }
    };
    let fix = || {
        let statements = publication::alter_statements(
            &wanted.name(),
            &[],
            &[],
            &[Member { table: schema, listed: false }],
        );
        as_transaction(statements)
    };
    let subject = schema.id.to_string();
    let failure = |detail: String| {
        Some(
            Check::failure(subject.as_str(), NAME, Reason::SourcePublicationUnusable, detail)
                .run_at_source(fix()),
        )
    };
    if let Some(list) = &published.columns {
        if let Some(why) = table.refuses_list() {
            return failure(format!("{why}: UPDATE and DELETE on it fail"));
        }
        if let Some(misfit) = list.misfit(schema) {
            let fix = as_transaction(publication::list_statements(&wanted.name(), schema));
            let reason = Reason::SourcePublicationUnusable;
            return Some(Check::failure(subject, NAME, reason, misfit).run_at_source(fix));
        }
    }
    match (&schema.row_filter, &published.row_filter) {
        (None, None) => None,
        (None, Some(theirs)) => failure(format!("published with WHERE {theirs}, which is not in the spec")),
        (Some(_), None) => failure("published without the Mirror's row filter".to_owned()),
        (Some(ours), Some(theirs)) => match agrees(wanted, &schema.id, theirs) {
            Ok(Some(true)) => None,
            Ok(Some(false)) => failure(format!("published with WHERE {theirs}, but the spec has {ours}")),
            _ if same_text(ours, theirs) || is_unchanged(wanted, schema, theirs) => None,
            result => {
                let error = result.err();
                let why = error.map_or_else(|| "PostgreSQL was not asked".to_owned(), Error::to_string);
                let detail = format!(
                    "published with WHERE {theirs}, and whether that equals {ours} is unknown ({why}): rows could be missing, or sent although they don't match"
                );
                let check = Check::failure(subject.as_str(), NAME, Reason::SourcePublicationUnusable, detail);
                let write = format!("if it does, set {}", serde_json::json!(theirs));
                let passes = error.is_some_and(Error::is_transient);
                let choices = [
                    vec![Remedy::edit("spec.tables[].where", write)],
                    vec![Remedy::run_at_source(format!("-- if it doesn't\n{}", fix()))],
                ];
                Some(check.remedied([Remedy::any_of(choices)]).transient(passes))
            }
        },
    }
}

/// Whether a table's published filter is the Mirror's; `None` where PostgreSQL was not asked.
fn agrees<'a>(wanted: &Wanted<'a>, id: &TableId, theirs: &str) -> Result<Option<bool>, &'a Error> {
    match (wanted.probes.get(id), wanted.agreements.get(id)) {
        (Some(Ok(probed)), _) => Ok(Some(probed.row_filter.as_deref() == Some(theirs))),
        (_, Some(agrees)) => agrees.as_ref().map(|agrees| Some(*agrees)),
        (Some(Err(error)), None) => Err(error),
        (None, None) => Ok(None),
    }
}

/// Whether a filter is written as PostgreSQL shows it.
fn same_text(ours: &str, theirs: &str) -> bool {
    let ours = ours.trim();
    ours == theirs || theirs.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) == Some(ours)
}

/// Whether neither the filter that the Mirror asks for nor the one that is there has changed since the table
/// joined.
fn is_unchanged(wanted: &Wanted<'_>, schema: &TableSchema, theirs: &str) -> bool {
    wanted.joined.tables.get(&schema.id).is_some_and(|record| {
        let published = record.published.as_ref().and_then(|published| published.row_filter.as_deref());
        record.spec.row_filter == schema.row_filter && published == Some(theirs)
    })
}

#[cfg(test)]
mod tests {
    use super::super::{
        report::Outcome,
        tests::{config, server_facts, table_facts},
    };
    use super::*;
    use crate::{
        model::{IdentityKind, TableSpec},
        postgres::publication::ColumnList,
    };

    fn found() -> Publication {
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

    fn published(name: &str, row_filter: Option<&str>) -> PublishedTable {
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

    fn check(server: &ServerFacts, facts: TableFacts, probes: &Probes, found: Option<&Publication>) -> Check {
        let config = config();
        let state = MirrorState::default();
        let wanted = Wanted {
            config: &config,
            publish: Publish::Everything,
            server,
            tables: &[facts],
            probes,
            agreements: &Agreements::new(),
            joined: &state,
            tables_breaking_writes: &BTreeSet::new(),
        };
        let mut checks = publication(&wanted, found);
        assert_eq!(checks.len(), 1, "{checks:?}");
        checks.remove(0)
    }

    fn all(tables: &[TableFacts], found: Option<&Publication>, breaking: &[&str]) -> Vec<Check> {
        let mut config = config();
        config.tables = tables.iter().map(|table| TableSpec::new(table.schema.id.clone())).collect();
        let breaking = breaking.iter().map(|name| TableId::new("public", *name)).collect();
        let (state, probes) = (MirrorState::default(), Probes::new());
        let (publish, server) = (Publish::Everything, server_facts());
        let wanted = Wanted {
            config: &config,
            publish,
            server: &server,
            tables,
            probes: &probes,
            agreements: &Agreements::new(),
            joined: &state,
            tables_breaking_writes: &breaking,
        };
        publication(&wanted, found)
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
        assert_eq!(check_more.outcome, Outcome::Warning, "it would send what is not wanted, no more");
    }

    #[test]
    fn filters_are_compared_in_postgresqls_own_form() {
        let with = |ours: Option<&str>, theirs: Option<&str>, normal: Option<&str>| {
            let mut facts = table_facts();
            facts.schema.row_filter = ours.map(str::to_owned);
            let probes = normal
                .map(|normal| (facts.schema.id.clone(), Ok(published("users", Some(normal)))))
                .into_iter()
                .collect();
            let found = Publication { tables: vec![published("users", theirs)], ..found() };
            check(&server_facts(), facts, &probes, Some(&found)).outcome
        };
        assert_eq!(with(Some("id>5"), Some("(id > 5)"), Some("(id > 5)")), Outcome::Ok);
        assert_eq!(with(Some("id>6"), Some("(id > 5)"), Some("(id > 6)")), Outcome::Failure);
        assert_eq!(with(Some("id>5"), None, Some("(id > 5)")), Outcome::Failure);
        assert_eq!(with(None, Some("(id > 5)"), None), Outcome::Failure);
        // What can't be compared may be another one, unless it is written as PostgreSQL shows it.
        assert_eq!(with(Some("id>5"), Some("(id > 5)"), None), Outcome::Failure);
        assert_eq!(with(Some("id > 5"), Some("(id > 5)"), None), Outcome::Ok);
        assert_eq!(with(Some("(id > 5)"), Some("(id > 5)"), None), Outcome::Ok);
    }

    #[test]
    fn a_column_list_has_to_fit() {
        let with = |names: &[&str], attnums: &[i16], identity| {
            let mut table = published("users", None);
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            table.columns = Some(ColumnList { names, attnums: attnums.to_vec() });
            let found = Publication { tables: vec![table], ..found() };
            let mut facts = table_facts();
            facts.relation.identity = identity;
            let check = check(&server_facts(), facts, &Probes::new(), Some(&found));
            let fix = check.fix().unwrap_or_default();
            (check.outcome, check.detail, fix)
        };
        let (default, full) = (IdentityKind::Default, IdentityKind::Full);
        assert_eq!(with(&["id", "email"], &[1, 2], default).0, Outcome::Ok);
        let (outcome, detail, fix) = with(&["id"], &[1], default);
        assert_eq!((outcome, detail.as_str()), (Outcome::Failure, "the column list lacks email"));
        assert_eq!(
            fix,
            "BEGIN;\nLOCK TABLE \"public\".\"users\" IN SHARE MODE;\nALTER PUBLICATION \"walferry_1f\" DROP TABLE ONLY \"public\".\"users\";\n\
             ALTER PUBLICATION \"walferry_1f\" ADD TABLE ONLY \"public\".\"users\" (\"id\", \"email\");\nCOMMIT;"
        );
        assert_eq!(with(&["id", "email", "secret"], &[1, 2, 3], default).0, Outcome::Failure);
        let (outcome, detail, fix) = with(&["id", "email"], &[1, 2], full);
        assert_eq!(outcome, Outcome::Failure);
        assert!(
            detail.contains("FULL") && fix.contains("ADD TABLE ONLY \"public\".\"users\";"),
            "{detail} {fix}"
        );
    }
}
