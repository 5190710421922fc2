//! Keeps the publication from making the application's own statements fail.
//!
//! PostgreSQL refuses UPDATE and DELETE on a published table whose replica identity is unusable, or whose row filter names a column
//! outside of it. Such tables are never published; but a key may be dropped later. Then the table leaves the publication.

use std::{collections::HashMap, time::Instant};

use super::{Error, state::PublishedAs};
use crate::{
    fault::Reason,
    model::{TableId, TableSchema, resync_advice},
    postgres::{
        catalog::{self, RelationFacts},
        publication::{self, Publish, PublishedTable, alter_statements},
        session::Session,
    },
};

/// Takes tables out of the publication on which UPDATE and DELETE fail for being in it, and gives each, by oid, with what to say; also
/// those with partitions whose rows are never sent, or whose old rows come incomplete.
///
/// `what` is what the publication sends; `looked` is when nothing was wrong the last time.
///
/// # Errors
/// What the source answers; where the role may not alter the publication, what to say says so instead.
pub(super) async fn unfit(
    session: &Session,
    (name, what): (&str, Publish),
    may_alter: bool,
    published: &[&PublishedTable],
    looked: Option<Instant>,
) -> Result<HashMap<u32, Error>, Error> {
    let oids: Vec<u32> = published.iter().map(|table| table.oid).collect();
    let relations = catalog::relations(session, &oids).await?;
    let version = session.server_version_num();
    let mut taken = HashMap::new();
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
            let done = take_out(session, name, may_alter, members, looked).await?;
            taken.insert(table.oid, harmful(&table.id, &why, &done));
        } else if let Some(partition) = members.iter().find(|member| member.is_unlogged()) {
            let message = format!(
                "{} is a foreign or unlogged table, whose rows are not in the log: detach it",
                partition.id
            );
            let reason = Reason::SourceTableUnsupported;
            taken.insert(table.oid, Error::Table { table: table.id.clone(), reason, message });
        } else if what == Publish::Everything
            && let Some(error) = identity_differs(&table.id, members)
        {
            taken.insert(table.oid, error);
        }
    }
    Ok(taken)
}

/// The partitions of a table whose old rows are not what the table's replica identity says; `members` has the table first.
pub(super) fn identity_differs(table: &TableId, members: &[RelationFacts]) -> Option<Error> {
    let (root, leaves) = members.split_first()?;
    let unlike: Vec<_> =
        leaves.iter().filter_map(|leaf| Some((leaf, leaf.unlike_root(root)?))).take(MOST_NAMED).collect();
    let (leaf, why) = unlike.first()?;
    let statements: Vec<_> = unlike.iter().map(|(leaf, _)| leaf.identity_statement()).collect();
    let message = format!(
        "partition {} {why}. Run {}; the table is then copied again automatically",
        leaf.id,
        statements.join("; ")
    );
    Some(Error::Table { table: table.clone(), reason: Reason::SourceReplicaIdentityDiffers, message })
}

/// Partitions that one message names at most.
const MOST_NAMED: usize = 10;

/// A table whose changes are sent as those of a table above it.
pub(super) fn ancestor_published(table: &TableId, ancestor: &TableId) -> Error {
    let message = format!(
        "it is a partition of {ancestor}, which is published too: its changes are sent as those of {ancestor}, and none as its own. Take \
         {table} out of the mirror's tables, for its rows come with {ancestor}; or detach it, or take {ancestor} out, and {}",
        resync_advice(table)
    );
    Error::Table { table: table.clone(), reason: Reason::SourceAncestorPublished, message }
}

/// Takes a table out of the publication whose row filter fails for one of its rows: in the stream it would stop all others too.
///
/// # Errors
/// What the source answers. Where the role may not alter the publication, the table stays in it.
pub(super) async fn take_out_failing_filter(
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

/// Why a table is not published as it was when it joined, if that is so.
pub(super) fn published_otherwise(
    schema: &TableSchema,
    name: &str,
    before: &PublishedAs,
    now: &PublishedTable,
) -> Option<Error> {
    let table = &schema.id;
    if before.entry == now.entry
        && let Some(misfit) = now.columns.as_ref().and_then(|list| list.misfit(schema))
    {
        let message = format!(
            "{misfit}, so its values are missing at the destination: run {} (in the transaction that adds a column, or later), then {}",
            publication::transaction(&publication::list_statements(name, schema)),
            resync_advice(table)
        );
        return Some(Error::Table { table: table.clone(), reason: Reason::SourceNotPublished, message });
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
    let message = format!(
        "publication {name} {what}, so changes are missing at the destination. To have it published as the mirror asks, {}",
        resync_advice(table)
    );
    Some(Error::Table { table: table.clone(), reason: Reason::SourceNotPublished, message })
}

async fn take_out(
    session: &Session,
    name: &str,
    may_alter: bool,
    members: &[RelationFacts],
    looked: Option<Instant>,
) -> Result<String, Error> {
    let Some(RelationFacts { id, .. }) = members.first() else { return Ok(String::new()) };
    let since = match looked {
        Some(looked) => format!("for at most {} s", looked.elapsed().as_secs() + 1),
        None => "from that change on, while walferry was not looking".to_owned(),
    };
    let root = std::slice::from_ref(id);
    if may_alter {
        publication::alter(session, name, &[], root, &[]).await?;
        tracing::warn!(table = %id, publication = name, "table left the publication: it made UPDATE and DELETE fail");
        return Ok(format!("failed at the source {since}, until it was taken out of publication {name}"));
    }
    let statements = alter_statements(name, &[], root, &[]).join("; ");
    Ok(format!("fail at the source until somebody who may alter publication {name} runs {statements}"))
}

fn harmful(table: &TableId, why: &str, what: &str) -> Error {
    let message = format!(
        "{why}: a published table needs one that names every row, so UPDATE and DELETE on it {what}. walferry check says which \
         identity to give it; then {}",
        resync_advice(table)
    );
    Error::Table { table: table.clone(), reason: Reason::SourceReplicaIdentityMissing, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Column, SourceType},
        postgres::publication::ColumnList,
    };

    #[test]
    fn another_membership_is_told() {
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
        let told = |now: &PublishedTable| {
            published_otherwise(&schema, "p", &before, now).map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(told(&found(1, Some("(id > 5)"), None)), "");
        assert!(told(&found(2, Some("(id > 5)"), None)).contains("put back"));
        assert!(told(&found(1, Some("(id > 6)"), None)).contains("row filter"));
        assert!(told(&found(1, None, None)).contains("row filter"));
        assert!(told(&found(2, Some("(id > 5)"), Some("id"))).contains("columns"));
        let lacks = told(&found(1, Some("(id > 5)"), Some("id")));
        assert!(
            lacks.starts_with("table public.t: the column list lacks v") && lacks.contains("(\"id\", \"v\")"),
            "{lacks}"
        );
    }
}
