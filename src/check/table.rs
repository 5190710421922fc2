//! One table at the source: whether it can be published without harm and read completely.

use super::{
    privileges,
    replica_identity::replica_identity,
    report::{Check, Outcome},
    row_filter::row_filter,
};
use crate::{
    fault::{Reason, Remedy},
    model::{MirrorFailure, TableId},
    postgres::{
        Error,
        catalog::{ServerFacts, TableFacts},
        publication::PublishedTable,
        quote::{ident, table as qualified},
    },
    replication,
};

/// A table whose description failed. One that the Mirror has copied already does not block the others.
pub(super) fn description_failed(table: &TableId, error: &Error, tracked: bool) -> Check {
    if tracked && matches!(error, Error::TableMissing { .. }) {
        let detail = "it was dropped at the source: this table fails alone, the others continue";
        let failure = replication::failure(&replication::Error::dropped(table));
        return Check::warning(table.to_string(), "table", Reason::SourceTableMissing, detail)
            .remedied(failure.remedies);
    }
    let reason = match error {
        Error::TableMissing { .. } => Reason::SourceTableMissing,
        Error::UnknownColumn { .. } => Reason::SourceUnknownColumn,
        Error::ColumnRenamed { parted, .. } => {
            return names_parted(table, &replication::columns_renamed(table, &parted.to_string()));
        }
        Error::Schema { .. } => Reason::SourceTableSpecInvalid,
        _ => Reason::SourceError,
    };
    Check::failure(table.to_string(), "table", reason, error.to_string()).remedied(error.remedies())
}

/// A partition whose changes are sent as those of a table above it.
pub(super) fn ancestor_published(table: &TableId, ancestor: &TableId) -> Check {
    let detail = format!(
        "it is a partition of {ancestor}, which is published too: its changes are sent as those of {ancestor}, and none as its own"
    );
    Check::failure(table.to_string(), "table", Reason::SourceAncestorPublished, detail)
        .remedied([replication::leave_to_ancestor(table, ancestor)])
}

/// Names of a table's entry that no longer mean the same columns: a column that is left out could arrive.
pub(super) fn names_parted(table: &TableId, error: &replication::Error) -> Check {
    let failure = replication::failure_of_table(table, error);
    Check::failure(table.to_string(), "columns", failure.reason, failure.message).remedied(failure.remedies)
}

/// A table whose rows at the destination were made from another entry of the Mirror.
pub(super) fn spec_changed(table: &TableId) -> Check {
    let detail = "the spec changed after it was copied (target, columns, where or engine)";
    let failure = replication::failure(&replication::Error::SpecChanged { table: table.clone() });
    Check::failure(table.to_string(), "table", Reason::SpecChanged, detail).remedied(failure.remedies)
}

/// A resync of a table that the Mirror doesn't have.
pub(super) fn unknown_to_resync(warning: MirrorFailure) -> Check {
    Check::warning("mirror", "resync", warning.reason, warning.message).remedied(warning.remedies)
}

/// All checks of a table. `excluded` are its columns that are not mirrored, `probe` is what PostgreSQL makes
/// of its row filter, `published` the table in the Mirror's publication, if it is there already.
pub(super) fn table(
    facts: &TableFacts,
    excluded: &[String],
    server: &ServerFacts,
    probe: Option<&Result<PublishedTable, Error>>,
    published: Option<&PublishedTable>,
) -> Vec<Check> {
    let subject = facts.schema.id.to_string();
    let mut checks = vec![
        privileges::readable(facts, excluded, server),
        replica_identity(&subject, facts, server.version_num),
    ];
    checks.extend(privileges::excluded(facts, excluded, server, published));
    checks.extend(standby(&subject, facts, server));
    checks.extend(row_security(&subject, facts, server));
    checks.extend(row_filter(facts, excluded, server, probe, published));
    checks.extend(order_by(&subject, facts));
    checks.extend(generated(&subject, facts));
    checks
}

/// Whether this says that UPDATE and DELETE of the application would fail once the table is published.
pub(super) fn breaks_writes(check: &Check) -> bool {
    let breaking = [Reason::SourceReplicaIdentityMissing, Reason::SourceRowFilterInvalid];
    check.outcome == Outcome::Failure && check.reason.is_some_and(|reason| breaking.contains(&reason))
}

/// Why a relation can't be replicated at all; nothing else of it is worth checking then.
pub(super) fn unsupported(facts: &TableFacts) -> Option<Check> {
    let subject = facts.schema.id.to_string();
    let refuse = |detail: String, fix: Remedy| {
        let reason = Reason::SourceTableUnsupported;
        Some(Check::failure(subject.as_str(), "table", reason, detail).remedied([fix]))
    };
    let leave_out = || Remedy::edit("spec.tables", format!("take {subject} out"));
    for relation in facts.relations() {
        let id = &relation.id;
        let kind = match (relation.kind, relation.persistence) {
            ('v', _) => "a view",
            ('m', _) => "a materialized view",
            ('f', _) => "a foreign table",
            (_, 'u') => {
                return refuse(
                    format!("{id} is unlogged, so its changes are not in the WAL"),
                    Remedy::run_at_source(format!("ALTER TABLE {} SET LOGGED;", qualified(id))),
                );
            }
            (_, 't') => "a temporary table",
            _ => continue,
        };
        return refuse(format!("{id} is {kind}, which logical replication does not send"), leave_out());
    }
    facts.inherits_children.then(|| {
        let (detail, mirror_them) = replication::inherited(&facts.schema.id);
        Check::failure(subject.as_str(), "table", Reason::SourceTableInherited, detail)
            .remedied([mirror_them])
    })
}

/// The copy of a table without a key must know which transactions it has, and a standby can't list them.
fn standby(subject: &str, facts: &TableFacts, server: &ServerFacts) -> Option<Check> {
    if facts.schema.kind.is_keyed() || !server.in_recovery {
        return None;
    }
    let detail = "a table without a key can't be copied from a standby";
    Some(
        Check::failure(subject, "standby", Reason::SourceTableUnsupported, detail)
            .act("name the primary in the source's ReplicationPeer"),
    )
}

fn row_security(subject: &str, facts: &TableFacts, server: &ServerFacts) -> Option<Check> {
    // A policy of a partition counts where that is named; it is read through the root then.
    let hidden = Some(&facts.relation).filter(|relation| relation.row_security_active)?;
    let detail = format!(
        "row-level security of {} hides rows from {}: the copy would lack rows that the stream has",
        hidden.id, server.role
    );
    Some(
        Check::failure(subject, "row-level security", Reason::SourceRowLevelSecurity, detail)
            .run_at_source(format!("ALTER ROLE {} BYPASSRLS;", ident(&server.role))),
    )
}

/// ClickHouse's sorting key takes no NULL.
fn order_by(subject: &str, facts: &TableFacts) -> Option<Check> {
    let schema = &facts.schema;
    let column = schema
        .order_by
        .iter()
        .filter_map(|index| schema.columns.get(*index))
        .find(|column| column.nullable)?;
    let detail = format!("engine.orderBy has {}, which may be NULL at the source", column.target_name);
    Some(Check::failure(subject, "order key", Reason::SourceTableSpecInvalid, detail).remedied([
        Remedy::any_of([
            vec![Remedy::edit("spec.tables[].engine.orderBy", format!("take {} out", column.target_name))],
            vec![Remedy::run_at_source(format!(
                "-- if nothing writes NULL into it\nALTER TABLE {} ALTER COLUMN {} SET NOT NULL;",
                qualified(&schema.id),
                ident(&column.name)
            ))],
        ]),
    ]))
}

fn generated(subject: &str, facts: &TableFacts) -> Option<Check> {
    if facts.generated_columns.is_empty() {
        return None;
    }
    let columns = facts.generated_columns.join(", ");
    Some(
        Check::warning(
            subject,
            "generated columns",
            Reason::SourceGeneratedColumns,
            format!("{columns}: not replicated, so left out of the target"),
        )
        .act("compute them at the destination, where that is needed: ALTER TABLE … ADD COLUMN … ALIAS …"),
    )
}

#[cfg(test)]
mod tests {
    use super::super::tests::{server_facts, table_facts};
    use super::*;
    use crate::{
        model::{IdentityKind, TableKind},
        postgres::catalog::{KeyCandidate, RelationFacts},
    };

    fn find<'a>(checks: &'a [Check], name: &str) -> &'a Check {
        checks.iter().find(|check| check.name == name).unwrap()
    }

    fn check(facts: &TableFacts, version: u32) -> Vec<Check> {
        table(facts, &[], &ServerFacts { version_num: version, ..server_facts() }, None, None)
    }

    fn leaf(identity: IdentityKind, key: &[&str]) -> RelationFacts {
        let key = key.iter().map(|column| (*column).to_owned()).collect();
        RelationFacts { id: TableId::new("public", "users_2026"), identity, key, ..table_facts().relation }
    }

    fn probed(columns: &[&str]) -> Result<PublishedTable, Error> {
        Ok(PublishedTable {
            entry: 1,
            id: TableId::new("public", "users"),
            oid: 1,
            row_filter: Some("(id > 5)".to_owned()),
            filter_columns: columns.iter().map(|column| (*column).to_owned()).collect(),
            columns: None,
            may_fail: Vec::new(),
        })
    }

    fn refused(sqlstate: &str) -> Result<PublishedTable, Error> {
        Err(Error::Server {
            sqlstate: sqlstate.to_owned(),
            message: "no".to_owned(),
            detail: None,
            hint: None,
        })
    }

    #[test]
    fn an_ordinary_table_is_fine() {
        let facts = table_facts();
        assert_eq!(unsupported(&facts), None);
        let checks = check(&facts, 180_004);
        assert!(checks.iter().all(|check| check.outcome == Outcome::Ok), "{checks:?}");
        assert_eq!(find(&checks, "replica identity").detail, "primary key id");
    }

    #[test]
    fn what_is_no_ordinary_table_is_refused() {
        let with = |kind, persistence| {
            let mut facts = table_facts();
            facts.relation.kind = kind;
            facts.relation.persistence = persistence;
            unsupported(&facts).unwrap().detail
        };
        assert!(with('v', 'p').contains("a view"));
        assert!(with('m', 'p').contains("a materialized view"));
        assert!(with('f', 'p').contains("a foreign table"));
        assert!(with('r', 't').contains("a temporary table"));
        assert!(with('r', 'u').contains("unlogged"));
        let inherited = unsupported(&TableFacts { inherits_children: true, ..table_facts() }).unwrap();
        assert_eq!(inherited.reason, Some(Reason::SourceTableInherited));
        let mut foreign = leaf(IdentityKind::Nothing, &[]);
        foreign.kind = 'f';
        let partitioned = TableFacts { partitions: vec![foreign], ..table_facts() };
        assert!(unsupported(&partitioned).unwrap().detail.contains("public.users_2026 is a foreign table"));
    }

    #[test]
    fn a_missing_identity_has_the_statement_that_adds_it() {
        let fix = |identity, candidate| {
            let mut facts = table_facts();
            facts.relation.identity = identity;
            facts.relation.candidate = candidate;
            facts.relation.key.clear();
            let checks = check(&facts, 180_004);
            let check = find(&checks, "replica identity");
            assert_eq!(check.reason, Some(Reason::SourceReplicaIdentityMissing));
            check.fix().unwrap()
        };
        let none = IdentityKind::Nothing;
        assert_eq!(
            fix(none, Some(KeyCandidate::PrimaryKey)),
            "ALTER TABLE \"public\".\"users\" REPLICA IDENTITY DEFAULT;"
        );
        assert_eq!(
            fix(none, Some(KeyCandidate::UniqueIndex("u".to_owned()))),
            "ALTER TABLE \"public\".\"users\" REPLICA IDENTITY USING INDEX \"u\";"
        );
        let deferrable =
            KeyCandidate::Deferrable { constraint: "pk".to_owned(), columns: vec!["id".to_owned()] };
        assert_eq!(
            fix(none, Some(deferrable)),
            "ALTER TABLE \"public\".\"users\" REPLICA IDENTITY FULL;\n-- or\n-- if nothing relies on the key being deferrable\n\
             ALTER TABLE \"public\".\"users\" DROP CONSTRAINT \"pk\", ADD PRIMARY KEY (\"id\");"
        );
        assert_eq!(
            fix(none, None),
            "ALTER TABLE \"public\".\"users\" REPLICA IDENTITY FULL;\n-- or\n\
             give it a primary key of the columns that name a row"
        );
    }

    #[test]
    fn whole_old_rows_take_no_key() {
        let mut facts = table_facts();
        facts.relation.key.clear();
        facts.schema.kind = TableKind::ChangeLog;
        facts.relation.identity = IdentityKind::Full;
        assert_eq!(find(&check(&facts, 180_004), "replica identity").outcome, Outcome::Ok);
        let standby = ServerFacts { in_recovery: true, ..server_facts() };
        assert_eq!(find(&table(&facts, &[], &standby, None, None), "standby").outcome, Outcome::Failure);
        facts.partitions = vec![leaf(IdentityKind::Default, &["id"])];
        assert_eq!(find(&check(&facts, 180_004), "replica identity").outcome, Outcome::Failure);
        facts.partitions.clear();
        (facts.relation.kind, facts.relation.candidate) = ('p', None);
        let checks = check(&facts, 180_004);
        let partitions_to_come = find(&checks, "replica identity");
        assert_eq!(partitions_to_come.outcome, Outcome::Warning);
        assert!(partitions_to_come.fix().unwrap().starts_with("ALTER TABLE … REPLICA IDENTITY FULL;"));
        facts.relation.kind = 'r';
        facts.relation.identity = IdentityKind::Default;
        assert_eq!(
            find(&check(&facts, 180_004), "replica identity").outcome,
            Outcome::Warning,
            "it fails alone"
        );
    }

    #[test]
    fn partitions_must_identify_rows_as_their_table_does() {
        let with = |root, partition| {
            let mut facts = TableFacts { partitions: vec![partition], ..table_facts() };
            facts.relation.identity = root;
            let checks = check(&facts, 180_004);
            find(&checks, "replica identity").outcome
        };
        let default = IdentityKind::Default;
        let full = IdentityKind::Full;
        assert_eq!(with(default, leaf(default, &["id"])), Outcome::Ok);
        assert_eq!(with(default, leaf(full, &["id"])), Outcome::Ok);
        assert_eq!(with(full, leaf(full, &[])), Outcome::Ok);
        assert_eq!(with(default, leaf(IdentityKind::Nothing, &[])), Outcome::Failure);
        assert_eq!(with(default, leaf(IdentityKind::Index, &["email"])), Outcome::Failure);
        assert_eq!(with(full, leaf(default, &["id"])), Outcome::Failure);
    }

    #[test]
    fn version_18_refuses_generated_columns_in_a_full_identity() {
        let mut facts = TableFacts { generated_columns: vec!["total".to_owned()], ..table_facts() };
        assert_eq!(find(&check(&facts, 180_004), "replica identity").outcome, Outcome::Ok);
        facts.relation.identity = IdentityKind::Full;
        assert_eq!(find(&check(&facts, 170_010), "replica identity").outcome, Outcome::Ok);
        assert_eq!(find(&check(&facts, 180_004), "replica identity").outcome, Outcome::Failure);
        assert_eq!(find(&check(&facts, 170_010), "generated columns").outcome, Outcome::Warning);
    }

    #[test]
    fn missing_privileges_of_the_root_alone_count() {
        let mut facts =
            TableFacts { partitions: vec![leaf(IdentityKind::Default, &["id"])], ..table_facts() };
        facts.partitions[0].schema_usage = false;
        facts.partitions[0].readable_columns = Some(Vec::new());
        facts.partitions[0].row_security_active = true;
        let checks = check(&facts, 180_004);
        let through_root = find(&checks, "SELECT");
        assert_eq!(through_root.outcome, Outcome::Ok);
        assert!(through_root.detail.ends_with("and its partition, 1 of them through it alone"));
        assert!(!checks.iter().any(|check| check.name == "row-level security"));
        facts.relation.schema_usage = false;
        facts.relation.readable_columns = Some(Vec::new());
        facts.relation.row_security_active = true;
        let checks = check(&facts, 180_004);
        assert_eq!(
            find(&checks, "SELECT").fix().unwrap(),
            "GRANT USAGE ON SCHEMA \"public\" TO \"mirror\";\nGRANT SELECT ON \"public\".\"users\" TO \"mirror\";"
        );
        let security = find(&checks, "row-level security");
        assert_eq!(security.reason, Some(Reason::SourceRowLevelSecurity));
        assert_eq!(security.fix().unwrap(), "ALTER ROLE \"mirror\" BYPASSRLS;");
    }

    #[test]
    fn row_filters_name_identity_columns_only() {
        let mut facts = table_facts();
        facts.schema.row_filter = Some("id > 5".to_owned());
        let outcome = |facts: &TableFacts, version, probe: Option<&_>, published: Option<&_>| {
            let server = ServerFacts { version_num: version, ..server_facts() };
            find(&table(facts, &[], &server, probe, published), "row filter").outcome
        };
        let outside = probed(&["email"]);
        assert_eq!(outcome(&facts, 140_023, None, None), Outcome::Failure);
        assert_eq!(outcome(&facts, 150_000, Some(&probed(&["id"])), None), Outcome::Ok);
        assert_eq!(outcome(&facts, 150_000, Some(&outside), None), Outcome::Failure);
        assert_eq!(outcome(&facts, 150_000, Some(&refused("42601")), None), Outcome::Failure);
        // Where the filter can't be probed, the existing publication shows it, or nothing does.
        assert_eq!(outcome(&facts, 150_000, Some(&refused("42501")), None), Outcome::Warning);
        assert_eq!(outcome(&facts, 150_000, Some(&refused("55P03")), None), Outcome::Warning);
        assert_eq!(outcome(&facts, 150_000, None, outside.as_ref().ok()), Outcome::Failure);
        assert_eq!(outcome(&facts, 150_000, None, None), Outcome::Warning);
        // The text of a filter that can't be probed is enough to refuse a dangerous one.
        facts.schema.row_filter = Some("\"email\" <> 'id'".to_owned());
        assert_eq!(outcome(&facts, 150_000, None, None), Outcome::Failure);
        facts.schema.row_filter = Some("id > 5".to_owned());
        let may_fail =
            probed(&["id"]).map(|probed| PublishedTable { may_fail: vec!["int4div".to_owned()], ..probed });
        assert_eq!(outcome(&facts, 150_000, Some(&may_fail), None), Outcome::Warning);
        facts.relation.identity = IdentityKind::Full;
        assert_eq!(outcome(&facts, 150_000, Some(&outside), None), Outcome::Ok);
        // Each partition's own identity counts.
        facts.partitions = vec![leaf(IdentityKind::Default, &["id"])];
        assert_eq!(outcome(&facts, 150_000, Some(&outside), None), Outcome::Failure);
    }

    #[test]
    fn a_nullable_order_column_is_refused() {
        let mut facts = table_facts();
        facts.schema.order_by = vec![0, 1];
        let checks = check(&facts, 180_004);
        assert_eq!(find(&checks, "order key").outcome, Outcome::Failure);
    }

    #[test]
    fn descriptions_that_fail_have_their_reason() {
        let id = TableId::new("public", "users");
        let missing = Error::TableMissing { table: id.clone(), hint: String::new() };
        assert_eq!(description_failed(&id, &missing, false).reason, Some(Reason::SourceTableMissing));
        let copied = description_failed(&id, &missing, true);
        assert_eq!((copied.outcome, copied.reason), (Outcome::Warning, Some(Reason::SourceTableMissing)));
        let invalid = Error::Schema { table: id.clone(), message: "x".to_owned(), remedies: Vec::new() };
        assert_eq!(description_failed(&id, &invalid, true).reason, Some(Reason::SourceTableSpecInvalid));
    }
}
