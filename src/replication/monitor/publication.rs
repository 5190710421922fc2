//! Keeps the publication from making the application's own statements fail.
//!
//! PostgreSQL refuses UPDATE and DELETE on a published table whose replica identity is unusable, or whose row
//! filter names a column outside of it. Such tables are never published; but a key may be dropped later. Then
//! the table leaves the publication.

use std::{collections::HashMap, time::Instant};

use crate::{
    fault::{Reason, Remedy},
    model::{TableId, TableSchema},
    postgres::{
        catalog::{self, RelationFacts},
        publication::{self, Publish, PublishedTable, alter_statements},
        session::Session,
    },
    replication::{Error, table::record::PublishedAs},
};

/// Takes tables out of the publication on which UPDATE and DELETE fail for being in it, and gives each, by
/// oid, with what to say; also those with partitions whose rows are never sent, or whose old rows come
/// incomplete.
///
/// `what` is what the publication sends; `last_checked` is when nothing was wrong the last time.
///
/// # Errors
/// What the source answers; where the role may not alter the publication, what to say says so instead.
pub(in crate::replication) async fn tables_breaking_writes(
    session: &Session,
    (name, what): (&str, Publish),
    may_alter: bool,
    published: &[&PublishedTable],
    last_checked: Option<Instant>,
) -> Result<HashMap<u32, Error>, Error> {
    let oids: Vec<u32> = published.iter().map(|table| table.oid).collect();
    let relations = catalog::relations(session, &oids).await?;
    let version = session.server_version_num();
    let mut breaking = HashMap::new();
    for table in published {
        let Some(members) = relations.get(&table.oid) else { continue };
        let filter_columns = if table.row_filter.is_some() { table.filter_columns.as_slice() } else { &[] };
        let refuses_list = |member: &RelationFacts| member.refuses_list(&table.columns.as_ref()?.names);
        let refuses = |member: &RelationFacts| {
            member.refuses_changes(filter_columns, version).or_else(|| refuses_list(member))
        };
        // Where only inserts are published, no other statement is refused.
        let refusal = members.iter().filter(|_| what == Publish::Everything).find_map(refuses);
        if let Some(why) = refusal {
            let (done, remedy) = take_out(session, name, may_alter, members, last_checked).await?;
            breaking.insert(
                table.oid,
                breaks_writes(&table.id, &why, &done).remedied(remedy).remedied([correct_identity()]),
            );
        } else if let Some(partition) = members.iter().find(|member| member.is_unlogged()) {
            let message =
                format!("{} is a foreign or unlogged table, whose rows are not in the log", partition.id);
            let error = Error::table(&table.id, Reason::SourceTableUnsupported, message);
            let detach = Remedy::act(format!("detach partition {}", partition.id));
            breaking.insert(table.oid, error.remedied([detach]));
        } else if what == Publish::Everything
            && let Some(error) = identity_differs(&table.id, members)
        {
            breaking.insert(table.oid, error);
        }
    }
    Ok(breaking)
}

/// The partitions of a table whose old rows are not what the table's replica identity says; `members` has the
/// table first.
pub(in crate::replication) fn identity_differs(table: &TableId, members: &[RelationFacts]) -> Option<Error> {
    let (root, leaves) = members.split_first()?;
    let unlike: Vec<_> =
        leaves.iter().filter_map(|leaf| Some((leaf, leaf.unlike_root(root)?))).take(MOST_NAMED).collect();
    let (leaf, why) = unlike.first()?;
    let statements = unlike.iter().map(|(leaf, _)| Remedy::run_at_source(leaf.identity_statement()));
    let message = format!(
        "partition {} {why}; the table is copied again automatically once that is corrected",
        leaf.id
    );
    Some(Error::table(table, Reason::SourceReplicaIdentityDiffers, message).remedied(statements))
}

/// Partitions that one message names at most.
const MOST_NAMED: usize = 10;

/// A table whose changes are sent as those of a table above it.
pub(in crate::replication) fn ancestor_published(table: &TableId, ancestor: &TableId) -> Error {
    let message = format!(
        "it is a partition of {ancestor}, which is published too: its changes are sent as those of {ancestor}, and none as its own"
    );
    Error::table(table, Reason::SourceAncestorPublished, message).remedied([Remedy::any_of([
        vec![leave_to_ancestor(table, ancestor)],
        vec![Remedy::edit("spec.tables", format!("take {ancestor} out")), Remedy::resync([table])],
    ])])
}

/// A table that others inherit from. One that `heals` is copied again automatically once none does any more.
pub(in crate::replication) fn has_children(table: &TableId, heals: bool) -> Error {
    let (mut message, mirror_them) = inherited(table);
    let mut remedies = vec![mirror_them];
    if heals {
        message.push_str("; it is copied again automatically once no table inherits from it any more");
    } else {
        remedies.push(Remedy::resync([table]));
    }
    Error::table(table, Reason::SourceTableInherited, message).remedied(remedies)
}

/// What to say of a table that others inherit from, and what helps.
pub fn inherited(table: &TableId) -> (String, Remedy) {
    let message = format!("other tables inherit from {table}, and their rows are not mirrored as its own");
    (message, Remedy::act("mirror the inheriting tables in its place, or make them partitions"))
}

/// What helps where a table's rows come with those of a table above it.
pub fn leave_to_ancestor(table: &TableId, ancestor: &TableId) -> Remedy {
    Remedy::edit("spec.tables", format!("take {table} out, for its rows come with {ancestor}"))
}

/// Takes a table out of the publication whose row filter fails for one of its rows: in the stream it would
/// stop all others too.
///
/// # Errors
/// What the source answers. Where the role may not alter the publication, the table stays in it.
pub(in crate::replication) async fn take_out_failing_filter(
    session: &Session,
    name: &str,
    table: &TableId,
) -> Result<(), Error> {
    if !publication::read(session, name).await?.is_some_and(|found| found.may_alter) {
        return Ok(());
    }
    publication::alter(session, name, &[], std::slice::from_ref(table), &[]).await?;
    tracing::warn!(%table, publication = name, "table left the publication: its where fails for one of its rows");
    Ok(())
}

/// Why a table is not published as it was when it was added, if that is so.
pub(in crate::replication) fn published_otherwise(
    schema: &TableSchema,
    name: &str,
    before: &PublishedAs,
    now: &PublishedTable,
) -> Option<Error> {
    let table = &schema.id;
    if before.entry == now.entry
        && let Some(misfit) = now.columns.as_ref().and_then(|list| list.misfit(schema))
    {
        let message = format!("{misfit}, so its values are missing at the destination");
        let statements = publication::transaction(&publication::list_statements(name, schema));
        let list = format!("-- in the transaction that adds a column, or later\n{statements}");
        return Some(
            Error::table(table, Reason::SourceNotPublished, message).remedied([Remedy::run_at_source(list)]),
        );
    }
    let what = if before.columns != now.columns.as_ref().map(|list| list.attnums.clone()) {
        "sends other columns of it than before"
    } else if before.row_filter != now.row_filter {
        "has another row filter for it than before"
    } else if before.entry != now.entry {
        "had it taken out and put back"
    } else {
        return None;
    };
    let message = format!("publication {name} {what}, so changes are missing at the destination");
    Some(Error::table(table, Reason::SourceNotPublished, message))
}

async fn take_out(
    session: &Session,
    name: &str,
    may_alter: bool,
    members: &[RelationFacts],
    last_checked: Option<Instant>,
) -> Result<(String, Option<Remedy>), Error> {
    let Some(RelationFacts { id, .. }) = members.first() else { return Ok((String::new(), None)) };
    let since = match last_checked {
        Some(checked) => format!("for at most {} s", checked.elapsed().as_secs() + 1),
        None => "from that change on, while walferry was not running".to_owned(),
    };
    let root = std::slice::from_ref(id);
    if may_alter {
        publication::alter(session, name, &[], root, &[]).await?;
        tracing::warn!(table = %id, publication = name, "table left the publication: it made UPDATE and DELETE fail");
        let done = format!("failed at the source {since}, until it was taken out of publication {name}");
        return Ok((done, None));
    }
    let statements = alter_statements(name, &[], root, &[]).join(";\n");
    let sql = format!("-- as a role that may alter publication {name}\n{statements};");
    let still_fails = format!("fail at the source for as long as publication {name} has it");
    Ok((still_fails, Some(Remedy::run_at_source(sql))))
}

/// Why a table had to leave the publication that no longer has it: this process, or one before it, may have
/// ended before that was on record. `None` where nothing about it refuses UPDATE and DELETE.
pub(in crate::replication) async fn why_left(
    session: &Session,
    name: &str,
    schema: &TableSchema,
) -> Result<Option<Error>, Error> {
    let relations = catalog::relations(session, &[schema.oid]).await?;
    let version = session.server_version_num();
    let members = relations.get(&schema.oid).into_iter().flatten();
    let refusal = members.into_iter().find_map(|member| member.refuses_changes(&[], version));
    let left = format!("failed at the source while publication {name} had it");
    Ok(refusal.map(|why| breaks_writes(&schema.id, &why, &left).remedied([correct_identity()])))
}

fn breaks_writes(table: &TableId, why: &str, what: &str) -> Error {
    let message =
        format!("{why}: a published table needs one that names every row, so UPDATE and DELETE on it {what}");
    Error::table(table, Reason::SourceReplicaIdentityMissing, message)
}

fn correct_identity() -> Remedy {
    Remedy::act("give it the replica identity that walferry check names")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Column, SourceType},
        postgres::publication::ColumnList,
        replication::failure,
    };

    #[test]
    fn another_membership_is_reported() {
        let id = TableId::new("public", "t");
        let found = |entry, row_filter: Option<&str>, columns: Option<&str>| PublishedTable {
            entry,
            id: id.clone(),
            oid: 7,
            row_filter: row_filter.map(str::to_owned),
            filter_columns: Vec::new(),
            may_fail: Vec::new(),
            columns: columns.map(|column| ColumnList { names: vec![column.to_owned()], attnums: vec![1] }),
        };
        let column = |attnum, name| Column { attnum, ..Column::new(name, SourceType::Text) };
        let schema = TableSchema::new(id.clone(), vec![column(1, "id"), column(2, "v")]);
        let before = PublishedAs::from(&found(1, Some("(id > 5)"), None));
        let message = |now: &PublishedTable| {
            let failure = published_otherwise(&schema, "p", &before, now).map(|error| failure(&error));
            failure.map_or_else(String::new, |failure| {
                let sql = failure.remedies.iter().filter_map(|remedy| match remedy {
                    Remedy::RunAt { sql, .. } => Some(sql.as_str()),
                    _ => None,
                });
                format!("{} {}", failure.message, sql.collect::<String>())
            })
        };
        assert_eq!(message(&found(1, Some("(id > 5)"), None)), "");
        assert!(message(&found(2, Some("(id > 5)"), None)).contains("put back"));
        assert!(message(&found(1, Some("(id > 6)"), None)).contains("row filter"));
        assert!(message(&found(1, None, None)).contains("row filter"));
        assert!(message(&found(2, Some("(id > 5)"), Some("id"))).contains("columns"));
        let lacks = message(&found(1, Some("(id > 5)"), Some("id")));
        assert!(
            lacks.starts_with("table public.t: the column list lacks v") && lacks.contains("(\"id\", \"v\")"),
            "{lacks}"
        );
    }
}
