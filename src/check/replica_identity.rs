//! The replica identity of a table and its partitions: whether UPDATE and DELETE still work once it is
//! published.

use super::report::Check;
use crate::{
    fault::{Reason, Remedy},
    model::{IdentityKind, TableKind},
    postgres::{
        catalog::{GENERATED_IN_IDENTITY, KeyCandidate, RelationFacts, TableFacts},
        quote::{ident, table as qualified},
    },
};

/// Without a usable identity PostgreSQL refuses the application's own UPDATE and DELETE as soon as the table
/// is published.
pub(super) fn replica_identity(subject: &str, facts: &TableFacts, version: u32) -> Check {
    const NAME: &str = "replica identity";
    let failure = |detail: String, fix: Remedy| {
        Check::failure(subject, NAME, Reason::SourceReplicaIdentityMissing, detail).remedied([fix])
    };
    let root = &facts.relation;
    let full_is_refused = version >= GENERATED_IN_IDENTITY && !facts.generated_columns.is_empty();
    if facts.schema.kind == TableKind::AppendOnly {
        return Check::ok(subject, NAME, "not needed: only inserts are mirrored");
    }
    if facts.schema.kind.is_keyed() && root.key.is_empty() {
        let detail = match &root.candidate {
            Some(KeyCandidate::Deferrable { .. }) => {
                "the primary key is deferrable: once published, UPDATE and DELETE on it would fail"
            }
            _ => "none: once published, UPDATE and DELETE on it would fail",
        };
        return failure(detail.to_owned(), identity_fix(root, (!full_is_refused).then(|| full(facts))));
    }
    let unlike = || facts.partitions.iter().filter_map(|leaf| Some((leaf, leaf.unlike_root(root)?)));
    if let Some((leaf, detail)) = unlike().next() {
        let statements = unlike().map(|(leaf, _)| format!("{};", leaf.identity_statement()));
        let fix = Remedy::run_at_source(statements.collect::<Vec<_>>().join("\n"));
        return failure(format!("partition {} {detail}", leaf.id), fix);
    }
    if full_is_refused
        && let Some(full) = facts.relations().find(|relation| relation.identity == IdentityKind::Full)
    {
        return failure(
            format!(
                "{} is FULL with generated columns ({}): once published, UPDATE and DELETE on it would fail",
                full.id,
                facts.generated_columns.join(", ")
            ),
            identity_fix(full, None),
        );
    }
    if facts.schema.kind == TableKind::ChangeLog && root.identity != IdentityKind::Full {
        let detail = "no longer FULL, which it was when it was copied without a key: this table fails alone, the others continue";
        return Check::warning(subject, NAME, Reason::SourceReplicaIdentityMissing, detail)
            .run_at_source(format!("ALTER TABLE {} REPLICA IDENTITY FULL;", qualified(&root.id)));
    }
    if let Some(statement) = new_partitions_lack_identity(root) {
        let detail = "a new partition gets no replica identity from its table: UPDATE and DELETE on it fail at the source, until walferry \
                      notices and takes the table out of the publication";
        return Check::warning(subject, NAME, Reason::SourceReplicaIdentityMissing, detail)
            .act(format!("{statement} -- in the transaction that makes a partition, or attaches one"));
    }
    if facts.schema.kind == TableKind::ChangeLog {
        let detail = "FULL, without a key: the target gets each change as a row, to be counted with sum(_walferry_sign)";
        return Check::ok(subject, NAME, detail);
    }
    let kind = match root.identity {
        IdentityKind::Full => "FULL, key",
        IdentityKind::Index => "index on",
        _ => "primary key",
    };
    Check::ok(subject, NAME, format!("{kind} {}", root.key.join(", ")))
}

/// The statement that each new partition takes, where it has no usable replica identity without it: a
/// partition is made with that of its primary key, whatever its table's is.
fn new_partitions_lack_identity(root: &RelationFacts) -> Option<String> {
    if root.kind != 'p' || root.candidate == Some(KeyCandidate::PrimaryKey) {
        return None;
    }
    let identity = match root.identity {
        IdentityKind::Full => "FULL",
        IdentityKind::Index => "USING INDEX …",
        IdentityKind::Default | IdentityKind::Nothing => return None,
    };
    Some(format!("ALTER TABLE … REPLICA IDENTITY {identity};"))
}

/// What gives a relation a usable replica identity. `full` makes changes carry whole old rows, where that
/// would do.
fn identity_fix(relation: &RelationFacts, full: Option<Remedy>) -> Remedy {
    let table = qualified(&relation.id);
    let run = |sql: String| Remedy::run_at_source(sql);
    let key = match &relation.candidate {
        Some(KeyCandidate::PrimaryKey) => {
            return run(format!("ALTER TABLE {table} REPLICA IDENTITY DEFAULT;"));
        }
        Some(KeyCandidate::UniqueIndex(index)) => {
            return run(format!("ALTER TABLE {table} REPLICA IDENTITY USING INDEX {};", ident(index)));
        }
        Some(KeyCandidate::Deferrable { constraint, columns }) => {
            let columns: Vec<_> = columns.iter().map(|column| ident(column)).collect();
            run(format!(
                "-- if nothing relies on the key being deferrable\nALTER TABLE {table} DROP CONSTRAINT {}, ADD PRIMARY KEY ({});",
                ident(constraint),
                columns.join(", ")
            ))
        }
        None => Remedy::act("give it a primary key of the columns that name a row"),
    };
    match full {
        Some(full) => Remedy::any_of([vec![full], vec![key]]),
        None => key,
    }
}

/// The statements by which changes carry whole old rows, which takes no key.
fn full(facts: &TableFacts) -> Remedy {
    let lacking = facts.relations().filter(|relation| relation.identity != IdentityKind::Full);
    let statement = |relation: &RelationFacts| format!("{};", relation.identity_statement());
    Remedy::run_at_source(lacking.map(statement).collect::<Vec<_>>().join("\n"))
}
